"""`ReplicatedLog`: the log of a partition of a cluster with several brokers.

An append writes the leader's log; under acks="all" the same call then copies it to the in-sync followers and moves the high watermark on, so
that what is acknowledged is in all of them.  Under acks=1 the record is a debt, which the home's fetcher pays, or who closes, or who waits
to read it (H42).  Whoever meets a failure has the controller elect another leader and goes on there.
"""

from __future__ import annotations

from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from streamlog._log.partition import PartitionLog
    from streamlog._log.pending import LogSettings, Pending
    from streamlog._log.state import Slot
    from streamlog._os.locks import LockFile
    from streamlog._replica.controller import Controller
    from streamlog._replica.election import PartitionState
    from streamlog._replica.home import Home


from streamlog._format import names
from streamlog._log.reader import LogReader
from streamlog._log.state import ALIGNED, BOOT, DEAD, END, HWM, SYNCED
from streamlog._os import files, locks, process
from streamlog._os.clock import left, monotonic
from streamlog._os.locks import under
from streamlog._replica import blame, directories, leadership
from streamlog._replica.again import NeedsControllerError
from streamlog._replica.blame import BROKEN, DAMAGED
from streamlog._replica.leadership import APPLYING, EPOCH_START, FORMER, IN_SYNC, MARKERS, PLACE, STABLE, VERSION, leader_of, members
from streamlog._replica.replicas import MovedError, Replicas, cut_before_damage, first_damage
from streamlog.errors import (
    CorruptRecordError,
    DiskFailedError,
    NotEnoughReplicasAfterAppendError,
    NotEnoughReplicasError,
    NotLeaderOrFollowerError,
    OffsetOutOfRangeError,
    StorageError,
    StreamlogError,
    StreamlogTimeoutError,
    UnknownTopicOrPartitionError,
    UnsupportedFormatError,
)

_SHORT = 1.0  # seconds: for a lock under which no disk is touched


class ReplicatedLog(Replicas):
    """Safe to share between threads."""

    def __init__(
        self, home: Home, topic: str, topic_id: bytes, partition: int, slot: Slot, lock_file: LockFile, lock_byte: int,
        on: Callable[[int], PartitionLog], settings: LogSettings,
    ) -> None:  # fmt: skip
        super().__init__(topic, topic_id, partition, slot, lock_file, lock_byte, on)
        self._home, self.settings, self.fs = home, settings, home.fs
        self.boot = home.fs.boot_id()
        self._metadata = home.metadata
        self._key = topic_id, partition
        self._lagging: dict[int, float] = {}  # since when an append waits for a follower's lock (monotonic s)

    def reading(self, follower: int) -> None:
        """Of the leaders' files that are mapped for followers, only so many stay so."""
        self._home.reads_for(self, follower)

    # ---- the leadership --------------------------------------------------------------------------------------------------------

    @property
    def _controller(self) -> Controller:
        return self._home.controller

    @property
    def state(self) -> PartitionState:
        """The partition as the metadata have it, as far as folded.  Raises UnknownTopicOrPartitionError."""
        found = self._metadata.partitions.get(self._key)
        if found is None:
            raise UnknownTopicOrPartitionError(f"topic {self.topic!r} (id {self.topic_id.hex()}) was deleted")
        return found

    def _any(self) -> int:
        """With no leader: who has all that is shown."""
        state = self._metadata.partitions.get(self._key)
        if state is None:
            return max(self._last_leader, 0)
        return max(state.in_sync or state.eligible or state.replicas, key=lambda broker: (self.on(broker).words[HWM], broker == self._last_leader))

    @property
    def min_in_sync(self) -> int:
        """Replicas that have to be in sync for acks="all", and for the high watermark to move on."""
        topic = self._metadata.by_id.get(self.topic_id)
        return 1 if topic is None else min(topic.config.min_insync_replicas, len(self.state.replicas))

    def place(self, timeout: float) -> int:
        """Leader and epoch, with the shared words in step with the metadata.

        Raises: NotLeaderOrFollowerError (nobody leads), UnknownTopicOrPartitionError.
        """
        words, metadata = self.leadership, self._metadata
        if metadata.changed():
            self._home.refresh(timeout)
        while True:
            state = metadata.partitions.get(self._key)
            if state is None:
                state = self.state
            version = words[VERSION]
            if version == state.partition_epoch + 1 and not words[APPLYING]:
                break
            if version > state.partition_epoch + 1:
                self._home.refresh(timeout)
                if self.state is state:
                    raise NotLeaderOrFollowerError(f"{self.name}: its leadership is newer than the metadata that can be read")
            elif version == 0:
                self._call(lambda: self._controller.after_boot(self, timeout))
            else:
                self.apply(state, timeout)
        place = words[PLACE]
        if leader_of(place) < 0:
            self._call(lambda: self._controller.offline(self, timeout))
            place = words[PLACE]
            if leader_of(place) < 0:
                raise NotLeaderOrFollowerError(self._why_offline())
        return place

    def _why_offline(self) -> str:
        state, brokers = self.state, self._metadata.brokers
        how = "; ".join(f"broker {number}: {brokers[number].described()}" for number in state.replicas if number in brokers)
        eligible = sorted({*state.in_sync, *state.eligible})
        return f"{self.name} has no leader: {how}; it can be led by {eligible or 'none of them'}: start_broker, or elect_leaders(unclean=True)"

    def _call(self, function: Callable[[], object]) -> None:
        """Have the controller do something; not from inside a locked section, which has to be left first."""
        if get_ident() in locks.inside:
            raise NeedsControllerError(f"{self.name}: its leader is being elected", function)
        function()

    def apply(self, state: PartitionState, timeout: float, high_watermark: int = -1) -> None:
        """Make the shared words say what the metadata do, unless they say something newer."""
        under(self.lock, timeout, self._apply, state, high_watermark)
        self.ring()

    def _apply(self, state: PartitionState, high_watermark: int) -> None:
        words = self.leadership
        if words[VERSION] > state.partition_epoch + 1 or (words[VERSION] == state.partition_epoch + 1 and not words[APPLYING]):
            return
        again = words[APPLYING]  # somebody died here
        if not again:
            words[FORMER] = words[PLACE]
        words[APPLYING] = process.token()
        place = leadership.place(state.leader, state.leader_epoch)
        if high_watermark >= 0:
            words[HWM] = words[STABLE] = high_watermark
        words[IN_SYNC] = leadership.mask(state.in_sync)
        if words[PLACE] != place and state.leader >= 0 and (slot := self.on(state.leader).words)[BOOT] == self.boot and slot[HWM] < words[HWM]:
            words[HWM] = words[STABLE] = slot[HWM]  # an unclean election: what is not there any more is not shown
        if words[PLACE] != place or high_watermark >= 0 or again:
            former = leader_of(words[FORMER])
            words[PLACE] = place  # from here on who led before publishes nothing
            for broker in {*state.replicas, *([former] if former >= 0 else [])}:
                self.on(broker).store_turn()  # readers look again before the high watermark goes beyond what the old leader had
            words[MARKERS] = self.on(state.leader).words[END] if state.leader >= 0 else 0
        words[VERSION] = state.partition_epoch + 1
        words[APPLYING] = 0

    def count_in(self, broker: int, place: int, timeout: float) -> bool:
        """Before the metadata let a replica join the in-sync set: count it, if it has all below the high watermark (grow first)."""
        return bool(under(self.lock, timeout, self._count_in, broker, place))

    def _count_in(self, broker: int, place: int) -> bool:
        words, slot, leader = self.leadership, self.on(broker).words, self.on(leader_of(place)).words
        if words[PLACE] != place or words[APPLYING] or not slot[ALIGNED] == leader[ALIGNED] == leadership.epoch_of(place):
            return False
        if slot[HWM] < max(words[HWM], words[EPOCH_START]):
            return False
        words[IN_SYNC] |= 1 << broker
        return True

    def count_as_written(self, timeout: float) -> None:
        """The in-sync set is what the metadata say.  Under the metadata lock, with nothing left that may come to count."""

        def reset() -> None:
            words = self.leadership
            if words[VERSION] == self.state.partition_epoch + 1 and not words[APPLYING]:
                words[IN_SYNC] = leadership.mask(self.state.in_sync)

        if self.leadership[VERSION] and self.leadership[IN_SYNC] != leadership.mask(self.state.in_sync):
            under(self.lock, timeout, reset)

    def ends_short(self, broker: int) -> bool:
        """Whether a replica is known to end below the high watermark."""
        slot = self.on(broker).words
        return bool(slot[BOOT] == self.boot and slot[HWM] < self.leadership[HWM])

    # ---- append ----------------------------------------------------------------------------------------------------------------

    def append(self, batch: Pending, timeout: float) -> None:
        """Write a batch; under acks="all" it is in all in-sync replicas when this returns.

        A batch that is written but not acknowledged yet (`batch.placed`) is not written again where the call is repeated.
        Raises: NotEnoughReplicasError (nothing written), NotEnoughReplicasAfterAppendError, NotLeaderOrFollowerError,
                StreamlogTimeoutError, and like `PartitionLog.append`.
        """
        try:
            self._append(batch, timeout)
        except BaseException:
            batch.base_offset = -1  # written or not: it is not acknowledged, and the next try goes on where this one ended
            raise

    def _append(self, batch: Pending, timeout: float) -> None:
        deadline = monotonic() + timeout
        tries = 0
        while True:
            place = self.place(max(timeout, 1.0))
            try:
                if batch.placed is not None and not self._is_there(batch, place, timeout):
                    batch.placed = None
                if batch.placed is None:
                    self._write_to_leader(batch, place, timeout)
                if batch.acks_all:
                    self._acknowledge(batch, place, deadline)
                else:
                    self._owe(place, timeout)
                assert batch.placed is not None
                batch.base_offset, batch.epoch = batch.placed
                self.ring()
                self._home.ring()
                return
            except MovedError:
                tries += 1
                if tries > 3 and monotonic() > deadline:
                    raise StreamlogTimeoutError(f"{self.name}: its leader changes again and again") from None
            except (*BROKEN, *DAMAGED) as error:
                tries += 1
                if tries > len(self.state.replicas) + 1:
                    raise
                self._call_for(error, leader_of(place), place, timeout)

    def _write_to_leader(self, batch: Pending, place: int, timeout: float) -> None:
        if batch.acks_all and (count := self.leadership[IN_SYNC].bit_count()) < self.min_in_sync:
            raise NotEnoughReplicasError(f"{self.name}: {count} replicas are in sync, min_insync_replicas={self.min_in_sync}; nothing was written")
        try:
            self.write(batch, place, timeout)
        except StreamlogTimeoutError as error:
            self._wait_for(leader_of(place), error, timeout)
        self._lagging.pop(leader_of(place), None)
        batch.placed = batch.base_offset, batch.epoch

    def _acknowledge(self, batch: Pending, place: int, deadline: float) -> None:
        """Copy to the in-sync followers until the high watermark is beyond the batch (acks="all")."""
        assert batch.placed is not None
        words, end = self.leadership, batch.placed[0] + batch.count
        while words[HWM] < end:
            behind = self._copy_to_followers(place, end, deadline, batch)
            self.publish(place, self.min_in_sync, 1.0)
            if words[HWM] >= end:
                break
            if words[PLACE] != place:
                raise MovedError
            if (count := words[IN_SYNC].bit_count()) < self.min_in_sync:
                raise NotEnoughReplicasAfterAppendError(
                    f"{self.name}: offset {batch.placed[0]} is in the leader's log, {count} replicas are in sync, "
                    f"min_insync_replicas={self.min_in_sync}"
                )
            if words[APPLYING] or words[VERSION] != self.state.partition_epoch + 1:
                raise MovedError
            if behind is not None and monotonic() >= deadline:
                raise behind
        if words[PLACE] != place:
            raise MovedError  # what is shown may be another leader's

    def _copy_to_followers(self, place: int, end: int, deadline: float, batch: Pending | None = None) -> StreamlogTimeoutError | None:
        """One fetch for each in-sync follower that is behind; returns what one could not be had for."""
        leader, epoch, trouble = leader_of(place), leadership.epoch_of(place), None
        for broker in members(self.leadership[IN_SYNC]):
            slot = self.on(broker).words
            if broker == leader or (slot[HWM] >= end and slot[ALIGNED] == epoch):
                continue
            try:
                self.fetch(broker, place, max(0.0, min(deadline - monotonic(), 0.05)), batch)
                self._lagging.pop(broker, None)
            except StreamlogTimeoutError as error:
                trouble = error
                self._wait_for(broker, error, 0.0, quietly=True)
            except BROKEN as error:
                self._call_for(error, broker, place, 1.0)
                raise MovedError from None
        return trouble

    def _wait_for(self, broker: int, error: StreamlogTimeoutError, timeout: float, *, quietly: bool = False) -> None:
        """A replica's log lock could not be had: after `replica_lag_time_max_ms` it counts as failed (H40)."""
        since = self._lagging.setdefault(broker, monotonic() - timeout)
        if (monotonic() - since) * 1000 > self._home.config.replica_lag_time_max_ms:
            self._lagging.pop(broker, None)
            self._call(lambda: self._controller.shrink(self, broker, f"its log's lock could not be had: {error}", 10.0))
            raise MovedError from None
        if not quietly:
            raise error

    def _call_for(self, error: Exception, broker: int, place: int, timeout: float) -> None:
        """A disk failed us, in `place`: the broker is out, or its replica is damaged; or the partition has moved, and one looks again."""
        timeout = max(timeout, 10.0)
        owner = blame.owner_of(error)
        owner = broker if owner is None else owner
        if get_ident() not in locks.inside:
            self._home.refresh(timeout)
        if self.leadership[PLACE] != place or owner not in self.state.replicas:
            return
        opened = self._home.brokers.get(owner)
        if opened is not None and (opened.is_replaced() or not files.is_directory(opened.path)):
            error = DiskFailedError(f"{opened.path} was removed or replaced: {error}")
        elif isinstance(error, DAMAGED) or not files.is_directory(self.on(owner).directory):
            if any(member != owner for member in self.state.in_sync):
                self._call(lambda: self._controller.damaged(self, owner, error, timeout))
                return
            if isinstance(error, DAMAGED):
                raise error
        self._call(lambda: self._controller.fail(owner, error, timeout))

    def _is_there(self, batch: Pending, place: int, timeout: float) -> bool:
        """Whether a batch that was written under a former leader is in the log of the present one (KIP-101)."""
        assert batch.placed is not None
        offset, epoch = batch.placed
        if epoch == leadership.epoch_of(place):
            return True
        leader = self.lead(place, max(timeout, 1.0))
        return bool(leader.leader_epochs().floor(epoch, leader.words[HWM]) >= (epoch, offset + batch.count))

    # ---- debts ---------------------------------------------------------------------------------------------------------------

    def _owe(self, place: int, timeout: float) -> None:
        """acks=1: it is in the leader's log.  With nobody to copy it, it is shown at once; else the fetcher sees to it."""
        if self.leadership[PLACE] != place:
            raise MovedError
        if self.leadership[IN_SYNC].bit_count() == 1:
            self.publish(place, self.min_in_sync, max(timeout, 1.0))
        else:
            self._home.fetcher.owe(self)

    def debt(self) -> int:
        """Records in the leader's log that are not shown yet."""
        return int(self.replica.words[HWM] - self.leadership[HWM]) if leader_of(self.leadership[PLACE]) >= 0 else 0

    def replicate(self, timeout: float) -> bool:
        """Copy what in-sync followers lack, once; whether nothing is owed any more.  Raises like `append`."""
        deadline = monotonic() + timeout
        place = self.place(timeout)
        try:
            leader = self.lead(place, timeout)
            end = leader.words[HWM]
            self._copy_to_followers(place, end, deadline)
            self.publish(place, self.min_in_sync, timeout)
        except MovedError:
            return False
        except (*BROKEN, *DAMAGED) as error:
            self._call_for(error, leader_of(place), place, timeout)
            return False
        self.ring()
        return bool(self.leadership[HWM] >= end)

    def pay(self, timeout: float) -> None:
        """For who waits, or goes: copy what is owed (H42)."""
        if self.debt() and get_ident() not in locks.inside:
            try:
                while not self.replicate(timeout) and timeout > 0:
                    timeout -= 0.05
            except (NotLeaderOrFollowerError, StreamlogTimeoutError, NotEnoughReplicasError, UnknownTopicOrPartitionError):
                pass  # another one's turn, or nobody's

    def catch_up(self, timeout: float) -> None:
        """Bring what is in the leader's log below the high watermark, so that whoever decides next knows of it."""
        deadline = monotonic() + timeout
        while True:
            place = self.place(timeout)
            try:
                leader = self.lead(place, timeout)
                blame.on(leader_of(place), leader.catch_up, timeout)
                if leader.words[HWM] <= self.leadership[HWM] or self.replicate(timeout):
                    return
                if self.leadership[IN_SYNC].bit_count() < self.min_in_sync:
                    raise NotEnoughReplicasError(f"{self.name}: too few replicas are in sync, min_insync_replicas={self.min_in_sync}")
            except MovedError:
                pass
            except BROKEN as error:
                self._call_for(error, leader_of(place), place, timeout)
            if monotonic() > deadline:
                raise StreamlogTimeoutError(f"{self.name}: its followers could not be brought up to date within {timeout:g} s")

    # ---- reading ---------------------------------------------------------------------------------------------------------------

    def ensure_valid(self, timeout: float) -> None:
        """For readers: see that the shared words count, and that the log to be read is whole."""
        if self.topic_id in self._metadata.removed or self.replica.words[BOOT] == DEAD:
            raise UnknownTopicOrPartitionError(f"topic {self.topic!r} (id {self.topic_id.hex()}) was deleted")
        words = self.leadership
        try:
            if words[VERSION] == 0 or words[APPLYING]:
                self.replicate(timeout)  # the first look since the boot: what is in all logs is shown
            replica = self.replica
            blame.on(self.broker_of(replica), replica.ensure_valid, timeout)
        except MovedError:
            pass  # the next look finds who leads
        except NeedsControllerError:
            raise
        except NotLeaderOrFollowerError:
            pass  # what is below the high watermark can be read as long as the disk is there
        except BROKEN as error:
            self._call_for(error, self._last_leader, words[PLACE], timeout)

    def mend(self, replica: PartitionLog, error: Exception, offset: int, timeout: float) -> bool:
        """Reading `replica` failed: have another one lead, and this one repaired, where there is another one."""
        broker = self.broker_of(replica)
        place = self.leadership[PLACE]
        if get_ident() in locks.inside:
            if broker == leader_of(place) and isinstance(error, (*BROKEN, *DAMAGED)):
                raise NeedsControllerError(f"{self.name}: {error}", lambda: self._mend_or_raise(replica, error, offset, max(timeout, 1.0)))
            return False
        if broker != leader_of(place):
            return broker >= 0 and leader_of(place) >= 0
        if isinstance(error, DAMAGED) and not self._is_sound_elsewhere(broker, offset, timeout):
            return False  # the same everywhere: of a newer version, say
        if not isinstance(error, (*BROKEN, *DAMAGED)):
            return False
        try:
            self._call_for(error, broker, place, timeout)
        except NotLeaderOrFollowerError:
            return False
        return self.leadership[PLACE] != place and leader_of(self.leadership[PLACE]) >= 0

    def _mend_or_raise(self, replica: PartitionLog, error: Exception, offset: int, timeout: float) -> None:
        """Raises what was read where no other replica has it: trying again would find the same."""
        if not self.mend(replica, error, offset, timeout) and isinstance(error, DAMAGED):
            raise error

    def _is_sound_elsewhere(self, broker: int, offset: int, timeout: float) -> bool:
        """Whether another in-sync replica has what cannot be read in this one."""
        for other in self.state.in_sync:
            if other != broker:
                try:
                    if LogReader(self.on(other), offset, timeout=timeout).next() is not None:
                        return True
                except (StorageError, OSError, OffsetOutOfRangeError):
                    continue
        return False

    # ---- sync ----------------------------------------------------------------------------------------------------------------

    def wait_synced(self, batch: Pending, timeout: float) -> None:
        """Return once a batch that was appended is on the disk: of the leader, under acks="all" of all in-sync replicas (H32)."""
        self._sync(batch.base_offset + batch.count, timeout, all_=batch.acks_all)

    def sync(self, timeout: float) -> None:
        """Return once all that is published now is on the disks of all in-sync replicas."""
        self._sync(self.high_watermark, timeout, all_=True)

    def _sync(self, end: int, timeout: float, *, all_: bool) -> None:
        deadline = monotonic() + timeout
        while True:
            place = self.place(timeout)
            words = self.leadership
            brokers = [leader_of(place), *members(words[IN_SYNC])] if all_ else [leader_of(place)]
            try:
                for broker in dict.fromkeys(brokers):
                    replica = self.on(broker)
                    while replica.words[SYNCED] < end:
                        if replica.words[HWM] < end:
                            raise MovedError
                        blame.on(broker, replica.sync, left(deadline))
            except BROKEN as error:
                self._call_for(error, broker, place, timeout)
                continue
            except MovedError:
                if monotonic() > deadline:
                    raise StreamlogTimeoutError(f"{self.name}: not on the disk of all in-sync replicas within {timeout:g} s") from None
                self.replicate(left(deadline))
                continue
            if words[PLACE] == place:
                return

    def flush_due(self) -> bool:
        """Whether `flush_messages` or `flush_ms` asks for a sync now."""
        return self.replica.flush_due()

    # ---- replicas that come back ---------------------------------------------------------------------------------------------------

    def follow(self, broker: int, place: int, timeout: float) -> bool:
        """Copy to a replica until it has all that is shown, and is counted; whether it is.

        Counted at once, the high watermark waits for it from then on: else a fast writer would be ahead again by the time of the record.
        """
        deadline = monotonic() + timeout
        try:
            while True:
                self.fetch(broker, place, min(timeout, 1.0))
                if self.count_in(broker, place, 1.0):
                    return True
                if monotonic() > deadline:
                    return False
        except MovedError:
            return False
        except DAMAGED as error:
            if blame.owner_of(error) in (None, broker):
                self.discard_from_damage(broker, error, timeout)
            else:
                self._call_for(error, leader_of(place), place, timeout)
            return False
        except BROKEN as error:
            self._call_for(error, broker, place, timeout)
            return False

    def revive(self, broker: int, timeout: float) -> bool:
        """A broker comes back: look at its replica as if for the first time, with nothing believed that only memory says.

        Returns whether its records are there; where the directory is not, an empty one is made.
        """
        replica = self.on(broker)
        seen = directories.identity(self._home, replica.directory)
        try:
            under(replica.lock, timeout, replica.revive)
        except (DiskFailedError, FileNotFoundError, *DAMAGED):
            is_spare = any(member != broker for member in self.state.in_sync)
            if not is_spare and files.is_directory(replica.directory) and names.base_offsets(self.fs.listdir(replica.directory)):
                raise
            directories.make_anew(self._home, self.topic, self._key, broker, seen, replica.void, timeout)
            under(replica.lock, timeout, replica.revive)
            return False
        return True

    def drop_replica(self, broker: int, timeout: float) -> None:
        """The partition has moved: a replica's directory goes.  One that cannot be removed now is a leftover, which `repair` removes."""
        replica = self.on(broker)
        self._replicas.pop(broker, None)
        self.forget_sources()
        replica.close()
        try:
            directories.drop(self._home, self.topic, self._key, broker, replica.void, timeout)
        except (OSError, StreamlogError):
            pass

    def damage_of(self, broker: int, timeout: float) -> CorruptRecordError | UnsupportedFormatError | None:
        """Read a whole replica: the first damage of what another one has, if there is any."""
        found = first_damage(self.on(broker), timeout)
        return None if found is None or not self._is_sound_elsewhere(broker, found[0], timeout) else found[1]

    def discard_from_damage(self, broker: int, error: Exception, timeout: float) -> None:
        """Cut a replica that is not in sync before its first damaged batch: what it loses it copies from the leader.

        One whose directory is gone, in a broker that is there, is made anew.
        """
        replica = self.on(broker)
        if broker in self.state.in_sync:
            return
        try:
            if not files.is_directory(replica.directory):
                self.revive(broker, timeout)
            elif isinstance(error, DAMAGED) and error.path.startswith(f"{replica.directory}/"):
                under(replica.lock, timeout, self._discard, replica, broker, error.path)
        except BROKEN as failed:
            if blame.owner_of(failed) not in (None, broker):
                raise
            reason = failed
            self._call(lambda: self._controller.fail(broker, reason, timeout))  # its directory went meanwhile

    def _discard(self, replica: PartitionLog, broker: int, path: str) -> None:
        aligned, replica.words[ALIGNED] = replica.words[ALIGNED], 0  # first: from here on nobody lets it join the in-sync set
        if under(self.lock, _SHORT, lambda: self.leadership[IN_SYNC] >> broker & 1):
            replica.words[ALIGNED] = aligned  # it has joined meanwhile: the damage is looked at again
            return
        cut_before_damage(replica, path)

    # ---- birth, death, and in between --------------------------------------------------------------------------------------------

    def initialise(self, timeout: float) -> None:
        """Fill the slots of a partition that was just made, so that its first use is no recovery."""
        state = self.state
        for broker in state.replicas:
            try:
                self.on(broker).initialise(timeout)
            except BROKEN:
                pass  # it is out, or just lost: its start, or the first use of its replica, finds out
        if not self.leadership[VERSION]:
            self.apply(state, timeout, 0)

    def mark_deleted(self, timeout: float) -> None:
        """The topic is deleted: the slots' words are 0 for ever, waiters wake."""
        for replica in list(self._replicas.values()):
            replica.mark_deleted(timeout)
        self.ring()

    def check_place(self) -> None:
        """Is the directory of each replica still there (H8)?"""
        for broker, replica in list(self._replicas.items()):
            known = self._metadata.brokers.get(broker)
            if known is None or not known.is_online:
                replica.release_files()
            else:
                replica.check_place()
