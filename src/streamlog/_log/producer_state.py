"""What a log remembers of its producers, a fold of its batches (KIP-98; Kafka's ProducerStateManager).

For each producer id: its epoch, and sequences, offset and time of its last five batches.  By that a batch that is sent again is answered
with its first offset, and a gap in the sequences is refused.  And the transactions that are open: who wants to end one has to know all.

A producer's state is the fold of the log, whoever appends to it.  One exception makes appends cheap (H20): a producer id that this process gave
out is written by nobody else.  So what this process appended for its own producers is all that their next append has to know, and those
entries alone may stand in the state beyond `offset`, up to which everything is folded.  The process reads the log for them only where an append
of its own was broken off (somebody may have adopted the batch), where the log goes on in another leader epoch (batches may have been cut
away), and for a producer that is not known and does not begin at 0.

Everything else is decided on, and counted in, with all folded that is published: a marker, which anybody may write; a copy of a leader's
batch, since any process copies any producer's batches; a batch of a `foreign` producer id, which was given out elsewhere and may come
through another process the next time.  One folds up to the published end without the lock, from the newest snapshot on or from what is known
already; the last gap under it.
"""

from __future__ import annotations

from bisect import bisect_right

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamlog._format.transaction_index import Aborted
    from streamlog._log.partition import PartitionLog
    from streamlog._log.pending import Pending

from streamlog._format import names
from streamlog._format.batch import (
    CONTROL,
    LOG_APPEND_TIME,
    NO_PRODUCER,
    SEGMENT_HEADER_SIZE,
    TRANSACTIONAL,
    Batch,
    UnknownVersionError,
)
from streamlog._format.control import is_commit
from streamlog._format.producer_snapshot import ProducerSnapshot, Row, encode
from streamlog._log import segment
from streamlog._log.segment import SegmentView
from streamlog._log.state import END, EPOCH, HWM, POSITION
from streamlog._os import files, process
from streamlog.errors import CorruptRecordError, InvalidProducerEpochError, OutOfOrderSequenceError, StreamlogError

SEQUENCES = 2**31 - 1  # a mask: the sequence after it is 0
REMEMBERED = 5  # batches of a producer, as Kafka: so many of its requests may be in flight
SNAPSHOT_EVERY = 4 << 20  # bytes of log between snapshots inside a segment: 256 full batches, 0.4 ms of fold
_TRIES = 3  # folds that a cut in between may spoil, before the fold is done under the lock
_SMALL_GAP = 64  # offsets, and so at most batches, that are folded under the lock at once: 0.1 ms

Remembered = tuple[int, int, int, int]  # of a batch: first and last sequence, base offset, largest timestamp
Entry = tuple[int, int, tuple[Remembered, ...], int, int]
"""Of a producer: epoch, sequence that comes next, batches in order, offset and timestamp of its last batch or marker."""


class ProducerStates:
    """Producers by id, and open transactions.  Entries are replaced, never changed, so that a copy is cheap and exact."""

    __slots__ = ("entries", "epoch", "offset", "open")

    def __init__(self, offset: int = 0, epoch: int = -1, entries: dict[int, Entry] | None = None, open_: dict[int, int] | None = None) -> None:
        self.entries = {} if entries is None else entries
        self.open = {} if open_ is None else open_  # offset of the first record, by producer id
        self.offset = offset  # all batches below it are counted in
        self.epoch = epoch  # leader epoch of the log when it was looked at

    def copy(self) -> ProducerStates:
        """The same, to go on with."""
        return ProducerStates(self.offset, self.epoch, dict(self.entries), dict(self.open))

    def check(self, producer: tuple[int, int, int], count: int) -> Remembered | None:
        """The batch that was written already, if this is one; None: the records may be appended (Kafka's ProducerAppendInfo).

        Args:   producer: producer id, base sequence, producer epoch.
        Raises: OutOfOrderSequenceError, InvalidProducerEpochError.
        """
        producer_id, first, epoch = producer
        entry = self.entries.get(producer_id)
        if entry is None:
            return None  # never seen, or expired: any sequence will do
        known, expected, batches, _, _ = entry
        if epoch == known:
            if first == expected:
                return None
            last = first + count - 1 & SEQUENCES
            for remembered in batches:
                if remembered[0] == first and remembered[1] == last:
                    return remembered
            raise OutOfOrderSequenceError(f"producer {producer_id} sent sequence {first}, {expected} is wanted: records between are missing")
        if epoch < known:
            raise InvalidProducerEpochError(f"epoch {epoch} of producer {producer_id}: epoch {known} has written since")
        if first:
            raise OutOfOrderSequenceError(f"producer {producer_id} begins epoch {epoch} with sequence {first}, 0 is wanted")
        return None

    def check_marker(self, producer_id: int, epoch: int) -> bool:
        """Whether a marker of `epoch` is to be written; False: it was (H38).

        Raises: InvalidProducerEpochError: it comes too late, the transaction that it would end is a later one.
        """
        known = self.entries[producer_id][0] if producer_id in self.entries else -1
        if epoch > known:
            return True
        if epoch == known and producer_id not in self.open:
            return False
        raise InvalidProducerEpochError(f"a marker of epoch {epoch} of producer {producer_id} comes too late: epoch {known} has written since")

    def record(self, producer: tuple[int, int, int], count: int, offset: int, timestamp: int, transactional: int = 0) -> int:
        """A batch is in the log.  One that is counted in already changes nothing.

        Returns where a transaction began that is over, since the producer has begun another, and whose marker was not counted in; -1: none.
        """
        producer_id, first, epoch = producer
        entry = self.entries.get(producer_id)
        if entry is not None and offset <= entry[3]:
            return -1
        unmarked = -1
        if transactional and (producer_id not in self.open or (entry is not None and entry[0] != epoch)):
            unmarked = self.open.get(producer_id, -1)  # each transaction has an epoch of its own
            self.open[producer_id] = offset  # before the entry: a copy that has the one has the other
        remembered = first, first + count - 1 & SEQUENCES, offset, timestamp
        before = () if entry is None or epoch != entry[0] else entry[2][1 - REMEMBERED :]
        self.entries[producer_id] = epoch, first + count & SEQUENCES, (*before, remembered), offset, timestamp
        return unmarked

    def mark(self, producer_id: int, epoch: int, offset: int, timestamp: int) -> int:
        """A marker is in the log.  Returns where the transaction that it ends began; -1: none was open."""
        entry = self.entries.get(producer_id)
        if entry is not None and offset <= entry[3]:
            return -1
        first = self.open.pop(producer_id, -1)  # before the entry, as in `record`
        self.entries[producer_id] = epoch, 0, (), offset, timestamp
        return first

    def first_open(self) -> int:
        """Where the earliest open transaction began; -1: none is open."""
        return min(self.open.values(), default=-1)

    def fold(self, log: PartitionLog, end: int, tell: Callable[[int, Aborted, bool], object] | None = None) -> None:
        """Count the log's batches up to `end` in; damaged ones are passed over.  Without the lock a cut may spoil it: the epoch tells.

        `tell` gets what `take_in` returns, with the base offset of the segment before it.
        """
        bases = log.segments()
        while self.offset < end:
            at = bisect_right(bases, self.offset) - 1
            sealed = at + 1 < len(bases)
            limit = min(bases[at + 1], end) if sealed else end
            base = bases[max(at, 0)]
            try:
                view = SegmentView(log.fs, log.directory, base)
            except CorruptRecordError:
                self.offset = limit
                continue  # its header is damaged, and nothing in it can be told from damage
            for batch in _sound(view, max(self.offset, bases[0]), limit, view.size if sealed else log.words[POSITION]):
                ended = self.take_in(batch)
                if ended is not None and tell is not None:
                    tell(base, *ended)
            self.offset = limit

    def take_in(self, batch: Batch) -> tuple[Aborted, bool] | None:
        """Count a sound batch of the log in.

        Returns what the transaction index has to say of a transaction that the batch ends without a commit, and whether its marker is
        there.  It is not where that was damaged, and the producer goes on with another transaction: whether it was aborted the log does not say.
        """
        first, is_marker = -1, bool(batch.attributes & CONTROL)
        if is_marker:
            first = self.mark(batch.producer_id, batch.producer_epoch, batch.base_offset, batch.max_timestamp)
            if first >= 0 and is_commit(batch):
                return None
        elif batch.producer_id >= 0:
            producer = batch.producer_id, batch.base_sequence, batch.producer_epoch
            first = self.record(producer, batch.last_offset_delta + 1, batch.base_offset, batch.max_timestamp, batch.attributes & TRANSACTIONAL)
        return None if first < 0 else ((batch.producer_id, first, batch.base_offset), is_marker)

    def rows(self) -> Iterator[Row]:
        """As a snapshot has them."""
        for producer_id, (epoch, expected, batches, offset, timestamp) in self.entries.items():
            remembered = tuple((at, written, first, last) for first, last, at, written in batches)
            yield producer_id, self.open.get(producer_id, -1), offset, timestamp, expected, epoch, remembered


def _sound(view: SegmentView, offset: int, limit: int, ahead: int) -> Iterator[Batch]:
    """The sound batches of [offset, limit) in a segment (readers tell of the others)."""
    try:
        position, base = view.find(offset, ahead)
    except (ValueError, UnknownVersionError):
        position, base = SEGMENT_HEADER_SIZE, view.header.base_offset
    while base < limit:
        for at, batch in view.batches(position, base, limit, ahead):
            if batch.base_offset >= offset:
                yield batch
            position, base = at + batch.length, batch.next_offset
        beyond = view.after_damage(position, base, min(ahead, view.size)) if base < limit else None
        if beyond is None:
            return
        base, position = beyond


# ---- snapshots -------------------------------------------------------------------------------------------------------------


def newest_snapshot(log: PartitionLog, end: int, after: int = -1) -> ProducerStates:
    """The states of the newest snapshot that counts, after `after` and not beyond `end`; empty, at offset 0, where there is none."""
    for offset in reversed(names.snapshot_offsets(log.listing())):
        if after < offset <= end and (states := _load(log, offset)) is not None:
            return states
    return ProducerStates()


def snapshots_that_count(log: PartitionLog, end: int) -> list[ProducerStates]:
    """Every snapshot up to `end`, in order."""
    found = (_load(log, offset) for offset in names.snapshot_offsets(log.listing()) if offset <= end)
    return [states for states in found if states is not None]


def _load(log: PartitionLog, offset: int) -> ProducerStates | None:
    """A snapshot; None where it does not count: it is derived, an older one, or the log, will do."""
    try:
        found = ProducerSnapshot(files.read_file(log.fs, f"{log.directory}/{names.snapshot(offset)}"))
    except (FileNotFoundError, ValueError):
        return None
    if found.offset != offset or not _counts(log, log.segments(), found):
        return None
    states = ProducerStates(offset)
    try:
        for producer_id, open_, at, timestamp, expected, epoch, batches in found:
            remembered = tuple((first, last, where, written) for where, written, first, last in batches)
            states.entries[producer_id] = epoch, expected, remembered, at, timestamp
            if open_ >= 0:
                states.open[producer_id] = open_
    except ValueError:
        return None
    return states


def _counts(log: PartitionLog, bases: list[int], found: ProducerSnapshot) -> bool:
    """Whether the segment that the snapshot was made in is still there and still reaches its offset."""
    at = bisect_right(bases, found.base_offset) - 1
    if at < 0 or bases[at] != found.base_offset or (at + 1 < len(bases) and bases[at + 1] < found.offset):
        return False
    try:
        header = segment.read_header(log.fs, f"{log.directory}/{names.log(found.base_offset)}")
    except CorruptRecordError:
        return False
    return bool(header.salt == found.salt)


def save_snapshot(log: PartitionLog, states: ProducerStates) -> None:
    """Write a snapshot; it takes the place of older ones of the same segment."""
    bases = log.segments()
    base = bases[bisect_right(bases, states.offset) - 1]
    salt = segment.read_header(log.fs, f"{log.directory}/{names.log(base)}").salt
    path = f"{log.directory}/{names.snapshot(states.offset)}"
    data = encode(salt, base, states.offset, states.rows())
    files.write_whole(log.fs, path, data, temporary=f"{path}.{process.token()}{names.TEMPORARY}", synced=False)
    for offset in names.snapshot_offsets(log.listing()):
        if base <= offset < states.offset:
            try:
                log.fs.unlink(f"{log.directory}/{names.snapshot(offset)}")
            except FileNotFoundError:
                pass


# ---- in one process ----------------------------------------------------------------------------------------------------------


class BehindError(Exception):
    """The append has to wait for a fold, which is not done under the lock: `fold(*arguments)` does it.  Nothing was written."""

    def __init__(self, fold: Callable[..., object], *arguments: object) -> None:
        self.fold, self.arguments = fold, arguments


class ProducerStateManager:
    """What this process knows of one partition's producers.  Under the partition's lock where nothing else is said."""

    __slots__ = ("_ahead", "_expired", "_log", "_snapshot_at", "broken_off", "snapshot_is_due", "states")

    def __init__(self, log: PartitionLog) -> None:
        self._log = log
        self.states = ProducerStates()
        self._ahead: ProducerStates | None = None  # folded without the lock, to be brought up to the end under it
        self.broken_off = False  # an append of this process ended somewhere inside: somebody may have adopted its batch
        self._expired: dict[int, Entry] = {}  # to be forgotten
        self.snapshot_is_due = False  # `take_snapshot` should be called
        self._snapshot_at = -1  # position in the active segment from which the bytes to the next snapshot are counted; -1: not begun

    def close(self) -> None:
        """The log is not used any more: no circle keeps its shared words mapped.  Closing twice is harmless."""
        if hasattr(self, "_log"):
            del self._log

    def rolled(self) -> None:
        """The log goes on in a new segment of ours: a snapshot is due.  In one of another process that one sees to it."""
        self._snapshot_at, self.snapshot_is_due = 0, True

    def answer(self, batch: Pending) -> bool:
        """Whether the batch is in the log already; it then knows where.

        Raises: OutOfOrderSequenceError, InvalidProducerEpochError; BehindError: fold without the lock, and try again.
        """
        states, log = self.states, self._log
        producer_id, first, epoch = batch.producer
        entry = states.entries.get(producer_id)
        if batch.attributes & CONTROL:
            return not self.exact().check_marker(producer_id, epoch)
        if batch.foreign:
            states = self.exact()
        else:
            if states.epoch == log.epoch and not self.broken_off and entry is not None and entry[0] == epoch and entry[1] == first:
                return False  # as it nearly always is
            if states.epoch < 0:
                states.epoch = log.epoch  # the first look: nothing is known, so nothing can be stale
            if states.epoch != log.epoch or self.broken_off or (first and entry is None):
                states = self._install()
        found = states.check(batch.producer, batch.count)
        if found is None:
            return False
        batch.base_offset, batch.epoch = found[2], log.epoch
        if batch.attributes & LOG_APPEND_TIME:
            batch.base_timestamp = batch.max_timestamp = found[3]
        return True

    def exact(self) -> ProducerStates:
        """The fold of everything that is published.  Raises BehindError."""
        states, log = self.states, self._log
        end = log.words[END]
        if states.epoch == log.epoch and not self.broken_off and end - states.offset <= _SMALL_GAP:
            if states.offset < end:
                states.fold(log, end)
            return states
        return self._install()

    def _install(self) -> ProducerStates:
        ahead, log = self._ahead, self._log
        if ahead is None or ahead.epoch != log.epoch:
            raise BehindError(self.catch_up)
        ahead.fold(log, log.words[END])
        self.states, self._ahead, self.broken_off = ahead, None, False
        return ahead

    def appended(self, batch: Pending, offset: int, position: int) -> None:
        """The batch is published; it ends at `position`."""
        states, producer = self.states, batch.producer
        if states.epoch < 0 and offset == 0:
            states.epoch = self._log.epoch
        is_next = states.offset == offset and states.epoch == self._log.epoch
        if producer is not NO_PRODUCER:
            if batch.is_copy and not is_next:
                pass  # not our own: a fold counts it in when somebody asks
            elif batch.attributes & CONTROL:
                states.mark(producer[0], producer[2], offset, batch.max_timestamp)
            else:
                states.record(producer, batch.count, offset, batch.max_timestamp, batch.attributes & TRANSACTIONAL)
            if position - self._snapshot_at > SNAPSHOT_EVERY:
                self.snapshot_is_due = self._snapshot_at >= 0
                self._snapshot_at = position
        if is_next:
            states.offset = offset + batch.count
        if self._expired:
            expired, self._expired = self._expired, {}
            for producer_id, entry in expired.items():
                if states.entries.get(producer_id) is entry:
                    del states.entries[producer_id]

    # ---- without the lock ----------------------------------------------------------------------------------------------------

    def catch_up(self) -> None:
        """Fold what is published, from the newest snapshot on, or from what is known already."""
        log = self._log
        for _ in range(_TRIES):
            epoch = log.words[EPOCH]
            try:
                states = self._folded()
            except (FileNotFoundError, ValueError, IndexError):
                continue  # somebody cuts the log, or did so meanwhile
            if log.words[EPOCH] == epoch:
                states.epoch = epoch
                self._ahead = states
                return
        self._ahead = ProducerStates(0, log.words[EPOCH])  # it is cut again and again: all of it under the lock then

    def take_snapshot(self) -> None:
        """Write a snapshot of all that is published.  It is derived: a failure loses nothing but time."""
        self.snapshot_is_due = False
        try:
            states = self._folded()
            self._forget_expired(states)
            save_snapshot(self._log, states)
        except (StreamlogError, OSError, ValueError, IndexError):
            pass  # a full disk, or somebody cuts the log

    def _folded(self) -> ProducerStates:
        """The fold up to the published end.  Our own states need no lock: what they know beyond `offset` was published before."""
        log, live = self._log, self.states
        states, end, epoch = live.copy(), log.words[HWM], log.words[EPOCH]
        if states.offset < end or states.epoch != epoch:
            found = newest_snapshot(log, end, states.offset if states.epoch == epoch else -1)
            if states.epoch != epoch or found.offset > states.offset:
                states = found
            states.fold(log, end)
        return states

    def _forget_expired(self, states: ProducerStates) -> None:
        """Drop producers that have not written for `producer_id_expiration_ms`, by their records' time and by that of the segment's
        file: records may be of any time, and what was appended just now may be sent again.
        """
        settings = self._log.settings
        before = settings.agreed_ms() - settings.producer_id_expiration_ms
        for producer_id, entry in list(states.entries.items()):
            _, _, _, offset, timestamp = entry
            if timestamp < before and producer_id not in states.open and self._written_ms(offset) < before:
                del states.entries[producer_id]
                self._expired[producer_id] = entry

    def _written_ms(self, offset: int) -> int:
        """When the segment that holds `offset` was last written to."""
        bases = self._log.segments()
        name = names.log(bases[max(0, bisect_right(bases, offset) - 1)])
        return self._log.fs.stat(f"{self._log.directory}/{name}").st_mtime_ns // 1_000_000
