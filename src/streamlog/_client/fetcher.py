"""`Fetcher`: takes records and batches from a consumer's partitions, in turns, and waits for more."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streamlog._coord.offsets import CommittedOffset
    from streamlog._format.batch import Batch
    from streamlog._log.log import Log
    from streamlog.config import ConsumerConfig
    from streamlog.types import Record, TopicPartition

from streamlog._client.cursor import Cursor
from streamlog._log.reader import LogReader, end_offset, find_timestamp, is_held_up
from streamlog._log.state import OPEN, POSITION
from streamlog._os.clock import monotonic
from streamlog._os.wake import MAX_BELLS, Bell, Waiter
from streamlog._replica.home import Home
from streamlog.config import parse_duration_ms
from streamlog.errors import (
    CorruptRecordError,
    LogTruncationError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    StreamlogError,
    UnstableOffsetCommitError,
)
from streamlog.record_batch import RecordBatch, deserialized, to_records
from streamlog.types import OffsetAndMetadata

_LOOK_EVERY = 0.02  # seconds between looks at an open transaction that keeps records from us
_PATIENCE = 0.1  # seconds that such a look waits for a lock
_OPEN_VIEWS = 96  # partitions of a consumer whose file is mapped at one time (H11)


def _no_generation() -> int:
    """There is no group."""
    return -1


class Fetcher:
    """The partitions that a consumer reads.  Belongs to its thread."""

    def __init__(self, home: Home, config: ConsumerConfig, look_into: Callable[[Log, float], None]) -> None:
        """`look_into` sees to an open transaction that keeps records of a log from us."""
        self._home, self.config, self._look_into = home, config, look_into
        self._timeout = config.default_api_timeout_ms / 1000
        self.cursors: dict[TopicPartition, Cursor] = {}
        self.rotation: list[Cursor] = []
        self.handed: list[Cursor] = []
        """Partitions of which the last call returned something."""
        self.taken: list[tuple[Cursor, int]] = []
        """Partitions that this call has taken something of, and where they stood before."""
        self.committed: Callable[[Cursor], CommittedOffset | None] | None = None
        """Where the group was, if there is one."""
        self.generation: Callable[[], int] = _no_generation
        """The group's generation now."""
        self.read = 0
        """Bytes of the batches that were read, as they are stored."""
        self.unplaced = False
        """Whether some partition may have no position yet."""
        self._committed_only = config.isolation_level == "read_committed"
        self._next_look = 0.0
        self._was_busy = True  # records were returned since the last wait
        self._views: dict[LogReader, None] = {}
        self._waiter: Waiter | None = None

    def set_cursors(self, cursors: dict[TopicPartition, Cursor]) -> None:
        """Read these partitions and no others."""
        self.cursors = cursors
        self.rotation = list(cursors.values())
        self.handed = [cursor for cursor in self.handed if cursors.get(cursor.tp) is cursor]
        self.unplaced = True
        self._views = {}
        self._waiter = None
        self.taken = []

    def close(self) -> None:
        """The consumer is closed: no circle keeps what is mapped."""
        self.set_cursors({})
        self.committed, self.generation = None, _no_generation

    def place(self) -> None:
        """Give every partition its position, paused ones too, before anything is read: what is written from now on comes after "latest".

        One that has none to begin at stays without, and its turn says why.
        """
        if self.unplaced:
            failed = False
            for cursor in self.rotation:
                if cursor.position is None:
                    cursor.held_up = False
                    try:
                        self._look_up(cursor)
                    except UnstableOffsetCommitError:
                        failed = cursor.held_up = True
                    except StreamlogError:
                        failed = True
            self.unplaced = failed

    def take_all(self, limit: int) -> list[Record]:
        """Up to `limit` records that can be read now.  `taken` says where from; `rewind` takes it all back."""
        self.taken = []
        records: list[Record] = []
        for cursor in self._turns():
            try:
                if self._begin_turn(cursor):
                    self._take(cursor, records, limit)
            except StreamlogError:
                if not records:
                    raise
                break  # it comes again at the next call, which begins where it stands
            if len(records) >= limit:
                break
        return records

    def take_all_batches(self) -> list[RecordBatch]:
        """The batches that can be read now, up to `max_partition_fetch_bytes` of each partition.  `taken` as in `take_all`."""
        self.taken = []
        batches: list[RecordBatch] = []
        for cursor in self._turns():
            try:
                if self._begin_turn(cursor):
                    self._take_batches(cursor, batches)
            except StreamlogError:
                if not batches:
                    raise
                break
        return batches

    def _begin_turn(self, cursor: Cursor) -> bool:
        ready = self._ready(cursor)
        if ready and cursor.position is not None:
            self.taken.append((cursor, cursor.position))
        return ready

    def rewind(self) -> None:
        """The call was broken off: what was taken was not returned."""
        for cursor, position in self.taken:
            cursor.move(position)
        self.taken = []

    def hand_over(self) -> None:
        """What was taken is returned: at the next call it counts as processed."""
        self.handed = [cursor for cursor, position in self.taken if cursor.position != position]
        self.taken = []
        self._was_busy = True

    def _turns(self) -> list[Cursor]:
        """The partitions, each time beginning with another."""
        rotation = self.rotation
        if len(rotation) > 1:
            rotation.append(rotation.pop(0))
        return rotation

    def _ready(self, cursor: Cursor) -> bool:
        """Whether there is something to take; finds the position where none is known."""
        if cursor.paused or cursor.held_up:
            return False
        if cursor.reader is None:
            self.begin(cursor)
        if cursor.records or cursor.batch is not None or cursor.truncated is not None:
            return True
        reader = cursor.reader
        assert reader is not None
        return reader.is_ready()

    def begin(self, cursor: Cursor) -> None:
        """Open a reader at the position, which is looked up first where there is none."""
        if cursor.position is None:
            self._look_up(cursor)
        assert cursor.position is not None
        epoch = cursor.epoch if cursor.position == cursor.processed else -1
        cursor.reader = LogReader(
            cursor.log, cursor.position, epoch=epoch, verify=self.config.check_crcs, timeout=self._timeout, committed=self._committed_only
        )
        cursor.reader.opened = self._opened

    def _look_up(self, cursor: Cursor) -> None:
        """Where a partition without a position begins: where its group was, else by the reset policy."""
        found = None if self.committed is None else self.committed(cursor)
        if found is not None:
            cursor.position = cursor.committed = found.offset
        else:
            cursor.position = self._reset_position(cursor, cursor.reset)
        cursor.process(cursor.position, -1 if found is None else found.leader_epoch, self.generation())

    def _opened(self, reader: LogReader) -> None:
        """A reader has mapped a file: beyond `_OPEN_VIEWS` the one that did so longest ago lets its own go (H11)."""
        self._views.pop(reader, None)
        self._views[reader] = None
        if len(self._views) > _OPEN_VIEWS:
            oldest = next(iter(self._views))
            del self._views[oldest]
            oldest.release()

    def _reset_position(self, cursor: Cursor, policy: str) -> int:
        log = cursor.log
        log.ensure_valid(self._timeout)
        if policy == "earliest":
            return log.start_offset
        if policy == "latest":
            return end_offset(log, self._timeout, committed=self._committed_only)
        if policy == "none":
            raise NoOffsetForPartitionError(f'{log.name} has no position, and auto_offset_reset is "none": seek first')
        since = max(0, self._home.clock.now_ms() - parse_duration_ms(policy.removeprefix("by_duration:")))
        found = find_timestamp(log, since, self._timeout, committed=self._committed_only)
        return end_offset(log, self._timeout, committed=self._committed_only) if found is None else found[0]

    def _next_batch(self, cursor: Cursor) -> Batch | None:
        """The next batch of a partition; an offset out of range makes the reset policy act."""
        while True:
            if cursor.truncated is not None:
                raise self._truncation(cursor, *cursor.truncated)
            if cursor.reader is None:
                self.begin(cursor)
            assert cursor.reader is not None
            try:
                batch = cursor.reader.next()
            except OffsetOutOfRangeError:
                policy = self.config.auto_offset_reset
                if policy == "none":
                    raise
                cursor.move(self._reset_position(cursor, policy))
                continue
            diverged = cursor.reader.diverged
            if diverged is not None:
                cursor.reader.diverged = None
                if self.config.auto_offset_reset == "none":
                    cursor.truncated = diverged, cursor.log.replica.leader_epochs().last_before(diverged)
                    continue
                cursor.position = diverged if cursor.position is None else min(cursor.position, diverged)
            if batch is None:
                return None
            try:
                hidden = cursor.reader.hides(batch)
            except BaseException:
                cursor.reader = None  # it has moved on: what it read is read again
                raise
            if not hidden:
                return batch
            cursor.pass_over(batch, self.generation())

    @staticmethod
    def _truncation(cursor: Cursor, offset: int, epoch: int) -> LogTruncationError:
        where = OffsetAndMetadata(offset, None if epoch < 0 else epoch)
        return LogTruncationError(
            f"{cursor.log.name}: position {cursor.position} lies beyond offset {offset}, where the log was cut; seek to go on", {cursor.tp: where}
        )

    def _take(self, cursor: Cursor, records: list[Record], limit: int) -> None:
        """Move records of a partition into `records`, up to `limit` of them and `max_partition_fetch_bytes`."""
        size, most = 0, self.config.max_partition_fetch_bytes
        while len(records) < limit and size < most:
            if not cursor.records:
                batch, cursor.batch = cursor.batch or self._next_batch(cursor), None
                if batch is None:
                    return
                cursor.batch = batch  # stays if a deserializer raises
                if size and size + batch.uncompressed > most:
                    return  # as in Kafka only the first one may be larger
                self._decode(cursor, batch)
                size += batch.uncompressed
                self.read += batch.length
            left = limit - len(records)
            at, found, stops_at = cursor.at, cursor.records, cursor.stops_at
            if at == 0 and len(found) <= left:
                records += found
                cursor.drop()
            else:
                records += found[at : at + left]
                cursor.at = at + left
                if cursor.at >= len(found):
                    cursor.drop()
            cursor.position = found[cursor.at].offset if cursor.records else self._after(cursor)
            if stops_at >= 0 and not cursor.records:
                cursor.move(stops_at)
                return

    @staticmethod
    def _after(cursor: Cursor) -> int:
        assert cursor.reader is not None
        return cursor.reader.offset

    def _decode(self, cursor: Cursor, batch: Batch) -> None:
        config, tp = self.config, cursor.tp
        try:
            found = to_records(batch, tp.topic, tp.partition)
        except ValueError as error:  # only where check_crcs=False let damage through
            cursor.drop()
            message = f"offset {batch.base_offset} of {cursor.log.name}: {error}; next readable: {batch.next_offset}"
            cursor.move(cursor.position)
            raise CorruptRecordError(message, cursor.log.directory, 0, "columns that fit", str(error), batch.next_offset) from None
        position = cursor.position
        assert position is not None
        if batch.base_offset < position:
            found = [record for record in found if record.offset >= position]
        if config.key_deserializer is not None or config.value_deserializer is not None:
            found, refused = deserialized(found, config.key_deserializer, config.value_deserializer)
            if refused is not None:
                if not found:
                    cursor.move(position)
                    raise refused
                cursor.records, cursor.at, cursor.stops_at = found, 0, refused.offset
                return
        cursor.records, cursor.at = found, 0
        if not found:
            cursor.drop()
            cursor.position = batch.next_offset

    def _take_batches(self, cursor: Cursor, batches: list[RecordBatch]) -> None:
        size, most = 0, self.config.max_partition_fetch_bytes
        while size < most:
            batch = cursor.batch or self._next_batch(cursor)
            if batch is None:
                return
            if size and size + batch.uncompressed > most:
                cursor.batch = batch
                return
            position = cursor.position
            assert position is not None
            batches.append(RecordBatch(batch, cursor.tp.topic, cursor.tp.partition, position))
            size += batch.uncompressed
            self.read += batch.length
            cursor.drop()
            cursor.position = batch.next_offset

    # ---- waiting ---------------------------------------------------------------------------------------------------------------

    def wait(self, deadline: float, also: Sequence[Bell], ready: Callable[[], bool], wake_at: float = float("inf")) -> bool:
        """Sleep until there may be something to read, `ready()` after one of the bells `also`, or `wake_at`; False at the deadline."""
        now = monotonic()
        if now >= deadline:
            return False
        held_up = any(cursor.held_up for cursor in self.rotation) or bool(self._held_up_logs())
        self._home.tick()
        for cursor in self.rotation:
            cursor.log.pay(0.0)  # what nobody else is there to bring below the high watermark (H42)
        if self.config.fetch_spin_us and self._was_busy:
            self._was_busy = False  # after activity only: an idle consumer sleeps
            until = min(deadline, now + self.config.fetch_spin_us / 1e6)
            while monotonic() < until:
                if ready() or self.anything():
                    return True
        if self._waiter is None:
            self._waiter = Waiter(self._bells(also))
        until = min(deadline, wake_at, now + _LOOK_EVERY if held_up else deadline)
        self._waiter.wait(max(0.0, until - now), lambda: ready() or self.anything())
        return True

    def _held_up_logs(self) -> list[Log]:
        """Logs of which an open transaction keeps records from us."""
        if not self._committed_only:
            return []
        placed = [(cursor.log, cursor.position) for cursor in self.rotation if not cursor.paused and cursor.position is not None]
        return [log for log, position in placed if is_held_up(log, position)]

    def see_to_transactions(self) -> None:
        """Now and then, whatever else there is to read: do the producers of transactions that hold us up still live?"""
        now = monotonic()
        if not self._committed_only or now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY
        for log in self._held_up_logs():
            self.see_to_transaction(log)

    def see_to_transaction(self, log: Log) -> None:
        """Whoever is held up ends what dead or late producers left open."""
        see_to_transaction(log, self._look_into)

    def gather(self, deadline: float, also: Sequence[Bell], ready: Callable[[], bool]) -> None:
        """Let what is there grow to `fetch_min_bytes`, for at most `fetch_max_wait_ms` and not beyond the deadline of the poll."""
        until = min(deadline, monotonic() + self.config.fetch_max_wait_ms / 1000)
        try:
            for cursor in self.rotation:
                if not (cursor.paused or cursor.held_up or cursor.position is None):
                    if cursor.reader is None:
                        self.begin(cursor)
                    assert cursor.reader is not None
                    cursor.reader.place()
        except (StreamlogError, FileNotFoundError):
            return  # who takes records is told
        while (now := monotonic()) < until and self.anything() and not (ready() or self._is_enough()):
            if self._waiter is None:
                self._waiter = Waiter(self._bells(also))
            self._waiter.wait(until - now, lambda: ready() or self._is_enough())

    def _is_enough(self) -> bool:
        """Whether `fetch_min_bytes` are published after the positions; a partition whose segment changed counts as enough."""
        total, enough = 0, self.config.fetch_min_bytes
        for cursor in self.rotation:
            reader = cursor.reader
            if not cursor.paused and cursor.batch is not None:
                return True
            if reader is None and not (cursor.paused or cursor.held_up):
                return True
            if not cursor.paused and reader is not None and reader.is_ready():
                total += max(0, reader.words[POSITION] - reader.position) or enough
        return total >= enough

    def anything(self) -> bool:
        """Whether some partition may have something to read."""
        for cursor in self.rotation:  # noqa: SIM110  (a generator costs 0.3 µs, and this is looked at before each sleep)
            if not (cursor.paused or cursor.held_up) and (cursor.reader is None or cursor.reader.is_ready()):
                return True
        return False

    def _bells(self, also: Sequence[Bell]) -> Sequence[Bell]:
        bells = [*also, *(cursor.log.bell for cursor in self.rotation)]
        if len(bells) <= MAX_BELLS:
            return bells or [self._home.bell]
        return [self._home.bell, *also]


def see_to_transaction(log: Log, look_into: Callable[[Log, float], None]) -> None:
    """End what dead or late producers left open in a log, one after the other: `look_into` does so with the earliest."""
    until = monotonic() + _PATIENCE
    try:
        log.ensure_valid(_PATIENCE)
        while log.words[OPEN]:
            before = log.last_stable_offset
            look_into(log, _PATIENCE)
            if log.last_stable_offset == before or monotonic() > until:
                break
    except StreamlogError:
        pass  # its lock is taken, a disk is full: somebody else, or the next look, will end it
