"""The replicas of a partition: one leads, the others copy its log (KIP-101, KIP-279).

Every replica is a `PartitionLog` with a lock of its own; the leadership has another one, under which no disk is touched (H40).  A writer takes
the leader's log lock and compares the leadership after that; who copies reads from the leader without a lock, then takes the follower's
and compares too.  So a disk that hangs holds up its own log only, and who comes back from it finds that the world has gone on.
tests/model/replication.py is this protocol as a model; the names of its steps stand in the comments.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

from streamlog._format import names
from streamlog._format.batch import BATCH_HEADER_SIZE, CONTROL, NO_PRODUCER, SEGMENT_HEADER_SIZE, TRANSACTIONAL, Batch
from streamlog._format.control import is_commit
from streamlog._log import recovery
from streamlog._log.log import Log
from streamlog._log.partition import PartitionLog
from streamlog._log.pending import Pending
from streamlog._log.producer_state import BehindError
from streamlog._log.reader import LogReader
from streamlog._log.segment import SegmentView
from streamlog._log.state import ALIGNED, BELL, DAMAGED, END, EPOCH, HWM, POSITION, SEGMENT, Slot
from streamlog._os import locks
from streamlog._os.locks import LEADERSHIP, ByteLock, LockFile, under
from streamlog._os.wake import Bell
from streamlog._replica import blame, leadership
from streamlog._replica.leadership import APPLYING, EPOCH_START, IN_SYNC, MARKERS, PLACE, STABLE, epoch_of, leader_of, members
from streamlog.errors import CorruptRecordError, StorageError, UnsupportedFormatError

FETCH_BYTES = 1 << 20  # read from the leader at one time, and written under one hold of the follower's lock


class MovedError(Exception):
    """Another replica leads by now, or in another epoch: look again."""


class Copy(Pending):
    """A batch of the leader's on its way to a follower."""

    is_copy = True

    def __init__(self, batch: Pending | Batch) -> None:
        self.attributes, self.count, self.base_offset = batch.attributes, batch.count, batch.base_offset
        self.base_timestamp, self.max_timestamp, self.uncompressed = batch.base_timestamp, batch.max_timestamp, batch.uncompressed
        if isinstance(batch, Batch):
            self.columns: Any = batch.data[BATCH_HEADER_SIZE:]
            self.epoch, producer = batch.leader_epoch, (batch.producer_id, batch.base_sequence, batch.producer_epoch)
            self.producer = NO_PRODUCER if producer == NO_PRODUCER else producer
            self.commit = bool(batch.attributes & CONTROL) and is_commit(batch)
        else:
            self.columns, self.epoch, self.producer, self.commit = batch.columns, batch.epoch, batch.producer, batch.commit


class Replicas(Log):
    """What holds for every partition with several replicas, users' and metadata's.  Safe to share between threads."""

    def __init__(
        self, topic: str, topic_id: bytes, partition: int, slot: Slot, lock_file: LockFile, lock_byte: int, on: Callable[[int], PartitionLog]
    ) -> None:
        """`on` gives the replica on a broker."""
        self.topic, self.topic_id, self.partition = topic, topic_id, partition
        self.name = f"{topic}-{partition}"
        self.slot, self.shown = slot, slot.words
        self.leadership = slot.words
        self.bell = Bell(slot.page, slot.bell_index)
        self._halves, self._flag = slot.halves, 2 * BELL + 1
        self.lock = ByteLock(lock_file, lock_byte, LEADERSHIP, lambda: locks.describe(f"leadership of {self.name}", self.leadership, APPLYING))
        self._replicas: dict[int, PartitionLog] = {}
        self._make_replica = on
        self._led = 0  # place in which this process has written
        self._sources: dict[int, LogReader] = {}  # readers of the leader's log, by follower
        self._last_leader = -1

    def on(self, broker: int) -> PartitionLog:
        """The replica on a broker."""
        found = self._replicas.get(broker)
        if found is None:
            found = self._replicas[broker] = self._make_replica(broker)
        return found

    def broker_of(self, replica: PartitionLog) -> int:
        """The broker that a replica is on; -1: it is none of this partition's any more."""
        return next((broker for broker, known in self._replicas.items() if known is replica), -1)

    # ---- as a log ------------------------------------------------------------------------------------------------------------

    @property
    def replica(self) -> PartitionLog:
        """The leader's log; with no leader that of the last one known here."""
        leader = leader_of(self.leadership[PLACE])
        if leader < 0:
            leader = self._any()
        self._last_leader = leader
        return self._replicas.get(leader) or self.on(leader)

    def _any(self) -> int:
        """A broker that has a replica."""
        raise NotImplementedError

    @property
    def words(self) -> memoryview:  # type: ignore[override]
        """The slot of the leader's log."""
        return self.replica.words

    @property
    def directory(self) -> str:  # type: ignore[override]
        """The directory of the leader's log."""
        return self.replica.directory

    @property
    def high_watermark(self) -> int:
        """Readers see offsets below it."""
        return self.leadership[HWM]

    @property
    def last_stable_offset(self) -> int:
        """Readers of committed records see offsets below it."""
        return self.leadership[STABLE]

    @property
    def start_offset(self) -> int:
        """The first offset that can be read."""
        return self.replica.start_offset

    def is_unsettled(self) -> bool:
        """Whether the leader's log goes on above the high watermark, or may do."""
        leader = self.replica
        return leader.is_unsettled() or leader.words[HWM] > self.leadership[HWM]

    def forget_sources(self, follower: int = -1) -> None:
        """Let go of what is mapped of the leader's log for one follower, or for all."""
        for broker in [follower] if follower >= 0 else list(self._sources):
            reader = self._sources.pop(broker, None)  # nobody has it then
            if reader is not None:
                reader.release()

    def reading(self, follower: int) -> None:
        """A leader's file was mapped for a follower: whoever counts them may have another one let go (H11)."""

    def close(self) -> None:
        """Close the files; nobody uses the log any more."""
        self.forget_sources()
        for replica in list(self._replicas.values()):
            replica.close()

    def release_files(self) -> bool:
        """Close the files of all replicas where no thread of this process is inside."""
        self.forget_sources()
        released = [replica.release_files() for replica in list(self._replicas.values())]
        return all(released)

    def used_replicas(self) -> dict[int, PartitionLog]:
        """The replicas that this process has looked at, by broker."""
        return dict(self._replicas)

    # ---- the leader ------------------------------------------------------------------------------------------------------------

    def locked(self, replica: PartitionLog, timeout: float, function: Callable[..., Any], *args: Any) -> Any:
        """Call `function` under a replica's lock; what has to be folded first is folded without it."""
        broker = self.broker_of(replica)
        while True:
            try:
                found = blame.on(broker, under, replica.lock, timeout, function, replica, *args)
                break
            except BehindError as behind:
                blame.on(broker, behind.fold, *behind.arguments)
        if replica.producers.snapshot_is_due:
            replica.producers.take_snapshot()
        return found

    def lead(self, place: int, timeout: float) -> PartitionLog:
        """The leader's log, in its epoch: who comes first begins that.  Raises MovedError."""
        leader = self.on(leader_of(place))
        if leader.words[ALIGNED] != epoch_of(place):
            self.locked(leader, timeout, self._lead, place)
        return leader

    def _lead(self, leader: PartitionLog, place: int) -> None:
        if self.leadership[PLACE] != place:
            raise MovedError
        leader.settle(for_append=True)
        epoch, words = epoch_of(place), leader.words
        if words[END] < self.leadership[HWM]:
            raise CorruptRecordError(
                f"{leader.directory}: it ends at {words[END]}, and records below {self.leadership[HWM]} were acknowledged: it is not as it was",
                f"{leader.directory}/{names.log(words[SEGMENT])}", words[POSITION], self.leadership[HWM], words[END], self.leadership[HWM],
            )  # fmt: skip
        if words[ALIGNED] != epoch:
            if words[EPOCH] != epoch:
                leader.begin_epoch(epoch, words[END])
            self.leadership[EPOCH_START] = leader.epoch_start
            words[ALIGNED] = epoch  # from here on followers compare with it, and its end counts
        leader.producers.broken_off = True  # others led meanwhile: what is known of producers is derived anew
        self._led = place

    def write(self, batch: Pending, place: int, timeout: float) -> None:
        """Append to the leader's log; nobody sees it yet.  Raises MovedError, and like `PartitionLog.append`."""
        self.locked(self.on(leader_of(place)), timeout, self._write, batch, place)

    def _write(self, leader: PartitionLog, batch: Pending, place: int) -> None:
        """Under the leader's log lock, with the leadership looked at after it was taken (writer is inside)."""
        words = self.leadership
        if words[PLACE] != place:
            raise MovedError
        if self._led != place or leader.words[ALIGNED] != epoch_of(place):
            self._lead(leader, place)
        if batch.attributes & CONTROL:
            words[MARKERS] = leader.words[END] + 1  # before its end covers the marker
        leader._append(batch)

    # ---- the high watermark ------------------------------------------------------------------------------------------------------

    def publish(self, place: int, needed: int, timeout: float) -> None:
        """Store how far all in-sync replicas are, if there are as many as are `needed`."""
        under(self.lock, timeout, self._publish, place, needed)

    def _publish(self, place: int, needed: int) -> None:
        words = self.leadership
        if words[PLACE] != place or words[APPLYING]:
            return
        epoch, leader = epoch_of(place), self.on(leader_of(place)).words
        counted = members(words[IN_SYNC])
        if len(counted) < needed:
            return
        end = 2**63
        for broker in counted:
            slot = self.on(broker).words
            if slot[ALIGNED] != epoch:
                return
            end = min(end, slot[HWM])
        if end > words[HWM] or end > words[STABLE]:
            leadership.publish(words, max(end, words[HWM]), leader)

    def ring(self) -> None:
        """Wake who waits for records."""
        if self._halves[self._flag]:
            self.bell.ring()

    # ---- followers ---------------------------------------------------------------------------------------------------------------

    def fetch(self, broker: int, place: int, timeout: float, batch: Pending | None = None) -> bool:
        """Copy to a follower what its log lacks, at most `FETCH_BYTES`; whether it then had all that the leader had.

        `batch`, the last one that was written, need not be read if it is all that is missing.  A log that was not compared with the
        leader's in this epoch is, and cut where they differ.
        Raises: MovedError; StreamlogTimeoutError: another process has the follower's lock; and what disks do.
        """
        follower, words = self.on(broker), self.on(broker).words
        if words[ALIGNED] != epoch_of(place):
            self._align(follower, place, timeout)
        start = words[HWM]
        if batch is not None and batch.base_offset == start and batch.epoch == epoch_of(place):
            copies: list[Pending] = [Copy(batch)]
        else:
            copies = blame.on(leader_of(place), self._read, broker, place, start, timeout)
        if copies:
            self.locked(follower, timeout, self._copy, place, copies)
        return words[HWM] >= self.on(leader_of(place)).words[HWM]

    def _read(self, broker: int, place: int, start: int, timeout: float) -> list[Pending]:
        """Batches of the leader's log from `start` on, checked.  Without a lock: it may be cut meanwhile, who copies looks again."""
        leader = self.on(leader_of(place))
        reader = self._sources.pop(broker, None)  # nobody else's as long as it is out
        if reader is None or reader.offset != start or reader.log is not leader:
            reader = LogReader(leader, start, timeout=timeout)
        copies: list[Pending] = []
        size = 0
        while size < FETCH_BYTES and reader.offset < leader.words[HWM]:
            found = reader.next()
            if found is None:
                break
            copies.append(Copy(found))
            size += found.length
        self._sources[broker] = reader
        self.reading(broker)
        return copies

    def _copy(self, follower: PartitionLog, place: int, copies: list[Pending]) -> None:
        """Under the follower's log lock, with the leadership looked at after it was taken and the leader's log was read."""
        words = follower.words
        if self.leadership[PLACE] != place or words[ALIGNED] != epoch_of(place):
            raise MovedError
        follower._settle_if_changed(for_append=True)
        copies = [copy for copy in copies if copy.base_offset >= words[END]]  # another process may have been faster
        while copies and copies[0].base_offset == words[END]:
            first = copies[0]
            if first.epoch != words[EPOCH]:
                leader = self.on(leader_of(place))
                follower.begin_epoch(first.epoch, leader.leader_epochs().start_of(first.epoch))
            run = 0
            while run < len(copies) and copies[run].epoch == first.epoch and not copies[run].attributes & TRANSACTIONAL:
                run += 1
            if run > 1:
                follower.append_copies(copies[:run])
            else:
                if first.attributes & CONTROL:
                    follower.producers.exact()  # where the transaction began, and which are open after it
                follower._append(first)
            copies = copies[max(run, 1) :]

    def _align(self, follower: PartitionLog, place: int, timeout: float) -> None:
        """Compare a follower's log with the leader's, epoch by epoch, and cut it where they differ (never at its high watermark)."""
        leader = self.lead(place, timeout)
        blame.on(self.broker_of(follower), follower.ensure_valid, timeout)
        known, end = leader.leader_epochs(), leader.words[HWM]
        self.locked(follower, timeout, self._compare, place, known, end)

    def _compare(self, follower: PartitionLog, place: int, leader_epochs: Any, leader_end: int) -> None:
        if self.leadership[PLACE] != place:
            raise MovedError
        follower._settle_if_changed(for_append=True)
        words = follower.words
        end = divergence(follower.leader_epochs(), words[END], leader_epochs, leader_end)
        if words[DAMAGED] and not self.on(leader_of(place)).words[DAMAGED]:
            end = min(end, words[DAMAGED] - 1)  # the leader has what is missing here
        if end < words[END]:
            at = max((entry for entry in leader_epochs.entries if entry[1] <= end), default=(epoch_of(place), end))
            recovery.cut(follower, end, *at)
        words[ALIGNED] = epoch_of(place)


def first_damage(replica: PartitionLog, timeout: float) -> tuple[int, CorruptRecordError | UnsupportedFormatError] | None:
    """Read a whole replica: the first offset that cannot be read, and why."""
    replica.ensure_valid(timeout)
    end = replica.words[HWM]
    reader = LogReader(replica, replica.start_offset, timeout=timeout)
    try:
        while reader.offset < end and reader.next() is not None:
            pass
    except blame.DAMAGED as error:
        return reader.offset, error
    return None


def cut_before_damage(replica: PartitionLog, path: str) -> None:
    """Cut a replica before the first damaged batch of the file that an error named.  Under the replica's lock."""
    bases, name = replica.segments(), path.rpartition("/")[2]
    offset = base = int(name[:20]) if name[:20].isdigit() else bases[0]
    try:
        view = SegmentView(replica.fs, replica.directory, base)
        for _, batch in view.batches(SEGMENT_HEADER_SIZE, base, replica.words[END], view.size):
            offset = batch.next_offset
    except (StorageError, FileNotFoundError):
        pass  # its header is damaged, or it is not there: all of the segment goes
    at = max((entry for entry in replica.leader_epochs().entries if entry[1] <= offset), default=(0, 0))
    recovery.cut(replica, offset, *at)


def divergence(own: Any, own_end: int, leaders: Any, leader_end: int) -> int:
    """Where a follower's log stops being the leader's: asked until the epochs agree (org.apache.kafka's AbstractFetcherThread, KIP-279)."""
    end = own_end
    while True:
        epoch = own.last_before(end)
        if epoch < 0:
            return 0
        found, found_end = leaders.floor(epoch, leader_end)
        if found == epoch:
            return int(min(end, found_end))
        # the leader has not heard of our last epoch: what we have of the one that it answers is asked for next
        end = int(min(end, found_end, own.end_offset_for(found, end))) if found >= 0 else 0
