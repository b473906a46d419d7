"""A reader of one partition: no lock and no system call in the steady state (docs/crash-safety.md, "The read")."""

from __future__ import annotations

from bisect import bisect_right

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

from streamlog._format.batch import (
    CONTROL,
    FORMAT_VERSION,
    SEGMENT_HEADER_SIZE,
    TRANSACTIONAL,
    Batch,
    DamagedVersionError,
    UnknownVersionError,
)
from streamlog._log.aborted import AbortedTransactions
from streamlog._log.log import Log
from streamlog._log.partition import PartitionLog
from streamlog._log.segment import SegmentView, VersionByteError
from streamlog._log.state import BOOT, DEAD, HWM, POSITION, SEGMENT, START, TURN
from streamlog._os.locks import under
from streamlog._os.mapping import STRONG_ORDER
from streamlog._os.wake import barrier
from streamlog.errors import (
    CorruptRecordError,
    DiskFailedError,
    OffsetOutOfRangeError,
    StorageError,
    UnknownTopicOrPartitionError,
    UnsupportedFormatError,
)

_LOOKS = 4  # without the lock: each fails only if a segment was rolled or cut meanwhile
_NO_LIMIT = 2**62


class LogReader:
    """Reads a partition's batches in order, from an offset.  Belongs to one thread."""

    __slots__ = (
        "_aborted", "_limit", "_shown", "_turn", "_view", "committed", "diverged", "epoch", "log", "offset", "opened", "position", "replica",
        "timeout", "verify", "words",
    )  # fmt: skip

    def __init__(
        self, log: Log, offset: int, *, epoch: int = -1, verify: bool = True, timeout: float = 60.0, committed: bool = False
    ) -> None:
        """Begin at `offset`, which was read in leader epoch `epoch` (-1: not known); if `committed`, stop at the last stable offset."""
        self.log, self.verify, self.timeout, self.committed = log, verify, timeout, committed
        self._shown = log.shown
        self._bind(log.replica)
        self.offset = offset  # of the next batch to read; at first possibly inside one
        self.epoch = epoch
        self.diverged: int | None = None  # where the log was cut below `offset`; who takes note of it puts None back
        self._view: SegmentView | None
        self.opened: Callable[[LogReader], None] | None = None  # told when a file is mapped
        self.position, self._limit = 0, 0

    def _bind(self, replica: PartitionLog) -> None:
        """Read this log from now on."""
        self.replica, self.words = replica, replica.words
        self._aborted = AbortedTransactions(replica, self.timeout) if self.committed else None
        self._view = None
        self._turn = -1

    def is_ready(self) -> bool:
        """Whether `next` has something to say: a batch, or a change to look into."""
        words = self.words
        if self.committed:
            return bool(self.log.last_stable_offset > self.offset or words[TURN] != self._turn)
        return bool(self._shown[HWM] > self.offset or words[TURN] != self._turn)

    def place(self) -> None:
        """Find the position now.  Raises like `next`."""
        if self.offset >= self._limit or self.words[TURN] != self._turn:
            self._locate()

    def hides(self, batch: Batch) -> bool:
        """Whether a batch that `next` returned is shown to nobody: a marker, or aborted records where only `committed` ones are wanted."""
        if not batch.attributes & TRANSACTIONAL:
            return False
        if batch.attributes & CONTROL:
            return True
        return self._aborted is not None and self._aborted.has(batch)

    def release(self) -> None:
        """Let the mapping go; the next look finds its place again."""
        self._view, self._turn = None, -1

    def next(self) -> Batch | None:
        """The next published batch, or None where there is none yet.

        Raises: OffsetOutOfRangeError, CorruptRecordError (its `next_offset` can be read), UnsupportedFormatError,
        DiskFailedError, UnknownTopicOrPartitionError.
        """
        while True:
            try:
                return self._next()
            except (StorageError, FileNotFoundError) as error:
                if not self.log.mend(self.replica, error, self.offset, self.timeout):
                    if isinstance(error, FileNotFoundError):
                        raise DiskFailedError(f"{error.filename} is gone; {self.log.name} cannot be read there") from None
                    raise
                self.release()

    def _next(self) -> Batch | None:
        shown = self._shown
        while True:
            if self.offset >= self._limit:
                self._locate()
            high_watermark = shown[HWM]  # first the high watermark, then turn (reader-hwm-then-turn)
            if not STRONG_ORDER:
                barrier()
            if self.committed:
                high_watermark = self.log.last_stable_offset
            if self.words[TURN] != self._turn:
                self._locate()
                continue
            if self.offset >= high_watermark:
                return None
            if self.offset >= self._limit:
                continue
            if self._view is None:
                self._locate()
                continue
            return self._read()

    def _read(self) -> Batch:
        view, position = self._view, self.position
        assert view is not None
        try:
            batch = self._batch(view, position, verify=self.verify)
        except (ValueError, UnknownVersionError):
            batch = under(self.replica.lock, self.timeout, self._read_again, view, position)  # H2
        offset, after, epoch = batch.next_offset, position + batch.length, batch.leader_epoch
        self.offset, self.position, self.epoch = offset, after, epoch  # together, whatever a signal handler raises
        return batch

    def _batch(self, view: SegmentView, position: int, *, verify: bool) -> Batch:
        """The batch at `position`, which has to hold `offset`.  Raises ValueError, UnknownVersionError."""
        batch = view.batch(position, self._published(), verify=verify)
        if not batch.base_offset <= self.offset < batch.next_offset:
            raise ValueError(f"base offset {batch.base_offset}, {self.offset} is wanted")
        return batch

    def _published(self) -> int:
        """Up to where the view's bytes may be touched: the end of a sealed segment, the published position of the active one."""
        words = self.words
        position = words[POSITION]
        assert self._view is not None
        active = words[SEGMENT] == self._view.header.base_offset and words[TURN] == self._turn
        return position if active else self._view.size

    def _read_again(self, view: SegmentView, position: int) -> Batch:
        """Under the lock: what still does not hold is damage."""
        view.checked = view.checked_from = 0
        try:
            return self._batch(view, position, verify=True)
        except (ValueError, UnknownVersionError) as error:
            end = min(self._published(), view.size)
            beyond = view.after_damage(position, self.offset, end)
            next_offset = beyond[0] if beyond else min(self._limit, self._shown[HWM])
            message = f"{view.path}, position {position}, offset {self.offset} of {self.log.name}: {error}; next readable: {next_offset}"
            if isinstance(error, DamagedVersionError):
                raise VersionByteError(message, view.path, position + 4, FORMAT_VERSION, error.version, next_offset) from None
            if isinstance(error, UnknownVersionError):
                raise UnsupportedFormatError(message, view.path, position, next_offset) from None
            expected, _, found = str(error).partition(", ")
            raise CorruptRecordError(message, view.path, position, expected, found, next_offset) from None

    # ---- the slow path: by offset ------------------------------------------------------------------------------------------

    def _locate(self) -> None:
        """Find the segment and the position of `offset`."""
        self.log.ensure_valid(self.timeout)
        for _ in range(_LOOKS):
            replica = self.log.replica
            if replica is not self.replica:
                self._bind(replica)
            turn = self.words[TURN]  # loaded before the directory is looked at (slow-turn-first), and before it is asked who leads
            if self.log.replica is not replica:
                continue
            try:
                if self._find(turn):
                    return
            except FileNotFoundError:
                break  # somebody is inside a cut, or died there, or the file is lost
        under(self.replica.lock, self.timeout, self._find_in_peace)

    def _find_in_peace(self) -> None:
        """Under the lock nothing changes: where segments come faster than one can look, or one is not there."""
        self.replica.look_again()
        try:
            self._find(self.words[TURN])
        except FileNotFoundError:
            self._missing()

    def _missing(self) -> None:
        if self.words[BOOT] == DEAD:
            raise UnknownTopicOrPartitionError(f"topic {self.log.topic!r} was deleted")
        raise CorruptRecordError(
            f"{self.replica.directory}: a segment of {self.log.name} is missing", self.replica.directory, 0, "a segment", None, self.offset
        )

    def _find(self, turn: int) -> bool:
        log, words = self.replica, self.words
        bases = log.segments()
        if self.epoch >= 0:
            self._check_epoch()
        high_watermark = self._shown[HWM]
        if words[BOOT] == DEAD:
            self._missing()
        if not words[START] <= self.offset <= high_watermark:
            if words[TURN] != turn:
                return False
            raise OffsetOutOfRangeError(f"offset {self.offset} of {log.name}: [{words[START]}, {high_watermark}] can be read")
        at = bisect_right(bases, self.offset) - 1
        limit = bases[at + 1] if at + 1 < len(bases) else _NO_LIMIT
        view = self._view if words[TURN] == self._turn else None
        self._turn = -1  # until the place is found, whatever interrupts
        if self.offset == high_watermark:
            view = None  # nothing to read yet: the file is opened when there is
        elif view is None or view.header.base_offset != bases[at]:
            view = self._open(bases[at], min(limit, high_watermark))
        position = words[POSITION]  # where the next batch will stand
        if view is not None:
            ahead = view.size if limit != _NO_LIMIT else words[POSITION]
            if words[TURN] != turn:
                return False
            try:
                position, _ = view.find(self.offset, ahead)
            except (ValueError, UnknownVersionError):
                position = self._find_around_damage(view, ahead)
        self._view, self._limit, self.position, self._turn = view, limit, position, turn
        if view is not None and self.opened is not None:
            self.opened(self)
        return bool(words[TURN] == turn)

    def _open(self, base_offset: int, end: int) -> SegmentView:
        """A segment's view; where its header is damaged the error says that the next segment can be read."""
        try:
            return SegmentView(self.replica.fs, self.replica.directory, base_offset)
        except (CorruptRecordError, UnsupportedFormatError) as error:
            error.next_offset = end
            raise

    def _find_around_damage(self, view: SegmentView, ahead: int) -> int:
        """A header on the way to `offset` is damaged: the first sound batch that holds `offset`, else the damage itself."""
        position, base = SEGMENT_HEADER_SIZE, view.header.base_offset
        while True:
            try:
                batch = view.batch(position, ahead)
                if batch.base_offset < base:
                    raise ValueError("falls")
                if batch.next_offset > self.offset:
                    return position
                position, base = position + batch.length, batch.next_offset
            except (ValueError, UnknownVersionError):
                beyond = view.after_damage(position, base - 1, min(ahead, view.size))
                if beyond is None or beyond[0] > self.offset:
                    return position
                base, position = beyond
            if base == self.offset:
                return position

    def _check_epoch(self) -> None:
        """A position that lies beyond the end of its epoch was cut away: go on from the divergence (KIP-320)."""
        known = self.replica.leader_epochs()
        end = known.end_offset_for(self.epoch, self._shown[HWM])
        if self.offset > end:
            self.offset = self.diverged = end


def beginning_offset(log: Log, timeout: float) -> int:
    """First offset that can be read."""
    log.ensure_valid(timeout)
    return log.start_offset


def end_offset(log: Log, timeout: float, *, committed: bool = False) -> int:
    """Offset that the next record becomes visible at, or the next `committed` one."""
    log.ensure_valid(timeout)
    return log.last_stable_offset if committed else log.high_watermark


def is_held_up(log: Log, offset: int) -> bool:
    """Whether there are records from `offset` on that an open transaction keeps from readers of committed ones."""
    return log.last_stable_offset <= offset < log.high_watermark


def producer_at(log: Log, offset: int, timeout: float) -> tuple[int, int]:
    """Producer id and epoch of the batch that holds `offset`; (-1, -1) where there is none."""
    batch = LogReader(log, offset, timeout=timeout).next()
    return (-1, -1) if batch is None else (batch.producer_id, batch.producer_epoch)


def find_timestamp(log: Log, timestamp_ms: int, timeout: float, *, committed: bool = False) -> tuple[int, int, int] | None:
    """Offset, timestamp and leader epoch of the first record, in log order, at or after `timestamp_ms`; None: there is none.

    A sealed segment whose closing index entry says that all is earlier is passed over; inside one the index narrows the scan.
    """
    stable = end_offset(log, timeout, committed=committed)
    high_watermark, log = log.high_watermark, log.replica
    aborted = AbortedTransactions(log, timeout) if committed else None
    bases = [base for base in log.segments() if base <= high_watermark]  # a replica may have more
    for base, limit in zip(bases, [*bases[1:], high_watermark]):
        if limit != high_watermark and (largest := log.largest_timestamp(base, limit)) is not None and largest < timestamp_ms:
            continue
        view = SegmentView(log.fs, log.directory, base)
        index = view.index()
        position, offset = SEGMENT_HEADER_SIZE, base
        hint = index.by_timestamp(timestamp_ms)
        if hint > SEGMENT_HEADER_SIZE and (found := view._hinted(hint, limit, view.size)) is not None and found < limit:
            position, offset = hint, found
        end = min(limit, stable)
        for at, batch in view.batches(position, offset, end, view.size):
            if batch.max_timestamp >= timestamp_ms and not batch.attributes & CONTROL and not (aborted and aborted.has(batch)):
                return _first_at_or_after(batch, timestamp_ms)
            offset, position = batch.next_offset, at + batch.length
        if offset < end:
            found_next = view.after_damage(position, offset, view.size)
            next_offset = found_next[0] if found_next else end
            message = f"{view.path}: no whole batch at offset {offset} of {log.name}; next readable: {next_offset}"
            raise CorruptRecordError(message, view.path, position, offset, None, next_offset)
    return None


def _first_at_or_after(batch: Batch, timestamp_ms: int) -> tuple[int, int, int]:
    timestamps = batch.columns().timestamps
    if timestamps is None:
        return batch.base_offset, batch.base_timestamp, batch.leader_epoch
    number = next(n for n, timestamp in enumerate(timestamps) if timestamp >= timestamp_ms)
    return batch.offsets()[number], timestamps[number], batch.leader_epoch
