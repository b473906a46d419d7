"""`Consumer`: reads the partitions that it was assigned, at its own pace."""

from __future__ import annotations

import weakref
from _thread import RLock
from operator import length_hint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from streamlog.config import ConsumerConfig

from streamlog._format.batch import Batch
from streamlog._log.partition import PartitionLog
from streamlog._log.reader import LogReader, find_timestamp
from streamlog._log.state import POSITION
from streamlog._os import process
from streamlog._os.clock import monotonic
from streamlog._os.wake import MAX_BELLS, Bell, Waiter
from streamlog._replica.home import Home
from streamlog._replica.metadata import TopicMetadata
from streamlog.config import parse_duration_ms
from streamlog.errors import (
    ClosedError,
    ConcurrentModificationError,
    ConfigurationError,
    CorruptRecordError,
    InvalidStateError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    StreamlogError,
    UnknownTopicOrPartitionError,
    WakeupError,
)
from streamlog.record_batch import RecordBatch, deserialized, to_records
from streamlog.topic import beginning_offset, end_offset, offset_for_time
from streamlog.types import OffsetAndTimestamp, Record, TopicPartition

_OPEN_VIEWS = 96  # partitions of a consumer whose file is mapped at one time (H11)


class Cursor:
    """Where a consumer is in one partition.

    `position` is the offset of the next record to return, None until it is first needed.  `batch` with `records` from `at` on is what
    was read and not returned yet.
    """

    __slots__ = ("at", "batch", "log", "paused", "position", "reader", "records", "reset", "stops_at", "topic_id", "tp")

    def __init__(self, tp: TopicPartition, topic_id: bytes, log: PartitionLog, reset: str) -> None:
        self.tp, self.topic_id, self.log, self.reset = tp, topic_id, log, reset
        self.position: int | None = None
        self.reader: LogReader | None = None
        self.paused = False
        self.drop()

    def drop(self) -> None:
        """Forget what was read ahead."""
        self.stops_at = -1  # a record in `batch` that a deserializer refused: the next call begins, and fails, there
        self.batch: Batch | None = None
        self.records: list[Record] = []
        self.at = 0

    def move(self, position: int | None) -> None:
        """Go on at `position`; None: look it up by the reset policy."""
        self.drop()
        self.position, self.reader = position, None


class Consumer:
    """Reads records.

    Belongs to one thread at a time: a second one gets ConcurrentModificationError (`wakeup()` excepted).  Without a group it reads all
    partitions of what it subscribes to and commits nothing.
    """

    def __init__(self, home: Home, config: ConsumerConfig) -> None:
        self._home, self.config = home, config
        self._metadata = home.metadata
        self._version = home.metadata.version
        self._lock = RLock()  # held while a call runs: tells a second thread
        self._timeout = config.default_api_timeout_ms / 1000
        self._gathers = config.fetch_min_bytes > 1
        self._closed_reason = ""
        self._cursors: dict[TopicPartition, Cursor] = {}
        self._rotation: list[Cursor] = []
        self._views: dict[LogReader, None] = {}
        self._subscribed: set[str] = set()
        self._pattern: Any = None
        self._listener: Any = None
        self._assigned_by_hand = False
        self._waiter: Waiter | None = None
        self._woken = False
        self._chunk: list[Record] = []  # what iteration is handing out
        self._chunk_left: Iterator[Record] = iter(())
        _consumers.add(self)

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<streamlog.Consumer of {self._home.path}{' (closed)' if self._closed_reason else ''}>"

    def _enter(self) -> None:
        """Begin a call: no other thread is in one, and what iteration holds goes back to its partitions."""
        if not self._lock.acquire(False):
            raise ConcurrentModificationError("a consumer belongs to one thread; another one is using it")
        try:
            if self._closed_reason:
                raise ClosedError(f"the consumer is closed: {self._closed_reason}")
            self._home.check_open()
            if self._chunk:
                self._take_back()
        except BaseException:
            self._lock.release()
            raise

    def _leave(self) -> None:
        self._lock.release()

    def _take_back(self) -> None:
        """Records that iteration has fetched and not handed out: their partitions stand before them again."""
        left = self._chunk[len(self._chunk) - length_hint(self._chunk_left) :]
        list(self._chunk_left)  # the running loop finds its list at an end and comes back for more
        self._chunk = []
        first: dict[TopicPartition, int] = {}
        for record in left:
            first.setdefault(TopicPartition(record.topic, record.partition), record.offset)
        for tp, offset in first.items():
            cursor = self._cursors.get(tp)
            if cursor is not None:
                cursor.move(offset)

    # ---- what is read ----------------------------------------------------------------------------------------------------------

    def subscribe(self, topics: Iterable[str] = (), pattern: Any = None, listener: Any = None) -> None:
        """Read all partitions of `topics`, or of those whose name a regular expression matches whole, also of partitions that come later.

        Replaces an earlier subscription; what stays keeps its position.  `listener.on_partitions_assigned(tps)` hears of new partitions.
        Raises: UnknownTopicOrPartitionError, InvalidStateError after `assign`.
        """
        self._enter()
        try:
            if self._assigned_by_hand:
                raise InvalidStateError("subscribe and assign exclude each other: call unsubscribe() first")
            names = [topic.name if hasattr(topic, "_topic_id") else topic for topic in _listed("topics", topics)]
            for name in names:
                if not isinstance(name, str):
                    raise UnknownTopicOrPartitionError(f"{name!r} is not a topic's name")
            wanted = set(names)
            if bool(wanted) == (pattern is not None):
                raise ConfigurationError("subscribe takes either topics or a pattern")
            self._metadata.refresh(self._timeout)
            for topic in wanted:
                self._metadata.topic(topic)
            if pattern is not None:
                import re

                try:
                    pattern = re.compile(pattern)
                    pattern.fullmatch("")
                except (re.error, TypeError) as error:
                    raise ConfigurationError(f"pattern={pattern!r}: a regular expression of str is wanted: {error}") from None
            self._subscribed, self._pattern, self._listener = wanted, pattern, listener
            self._follow_metadata(first=True)
        finally:
            self._leave()

    def assign(self, partitions: Iterable[TopicPartition | tuple[str, int]]) -> None:
        """Read these partitions and no others.  What stays keeps its position.

        Raises: UnknownTopicOrPartitionError, InvalidStateError after `subscribe`.
        """
        self._enter()
        try:
            if self._subscribed or self._pattern is not None:
                raise InvalidStateError("assign and subscribe exclude each other: call unsubscribe() first")
            self._metadata.refresh(self._timeout)
            wanted = [_topic_partition(tp) for tp in _listed("partitions", partitions)]
            cursors = {tp: self._cursor(tp, self.config.auto_offset_reset) for tp in wanted}
            self._set_cursors(cursors)
            self._assigned_by_hand = bool(cursors)
        finally:
            self._leave()

    def unsubscribe(self) -> None:
        """Read nothing."""
        self._enter()
        try:
            self._subscribed, self._pattern, self._listener, self._assigned_by_hand = set(), None, None, False
            self._set_cursors({})
        finally:
            self._leave()

    def assignment(self) -> set[TopicPartition]:
        """The partitions that are read."""
        return set(self._cursors)

    def subscription(self) -> set[str]:
        """The topics that are subscribed to."""
        if self._pattern is not None:
            return {tp.topic for tp in self._cursors}
        return set(self._subscribed)

    def _cursor(self, tp: TopicPartition, reset: str) -> Cursor:
        metadata = self._metadata.topic(tp.topic)
        known = self._cursors.get(tp)
        if known is not None and known.topic_id == metadata.topic_id:
            return known
        return Cursor(tp, metadata.topic_id, self._home.log(metadata, tp.partition, self._timeout), reset)

    def _set_cursors(self, cursors: dict[TopicPartition, Cursor]) -> None:
        self._cursors = cursors
        self._rotation = list(cursors.values())
        self._views = {}
        self._waiter = None

    def _follow_metadata(self, *, first: bool = False) -> None:
        """Topics were created, grew or went.  Partitions that appear later are read from their beginning."""
        self._home.refresh(self._timeout)
        self._version = self._metadata.version
        if not self._subscribed and self._pattern is None:
            return
        reset = self.config.auto_offset_reset if first else "earliest"
        cursors: dict[TopicPartition, Cursor] = {}
        for topic in self._subscribed_topics():
            for number in range(topic.partitions):
                tp = TopicPartition(topic.name, number)
                cursors[tp] = self._cursor(tp, reset)
        added = [tp for tp in cursors if tp not in self._cursors]
        self._set_cursors(cursors)
        hear = getattr(self._listener, "on_partitions_assigned", None)
        if added and hear is not None:
            hear(added)

    def _subscribed_topics(self) -> list[TopicMetadata]:
        known = self._metadata.topics
        if self._pattern is not None:
            return [topic for name, topic in sorted(known.items()) if self._pattern.fullmatch(name)]
        return [self._metadata.topic(name) for name in sorted(self._subscribed)]

    # ---- reading ---------------------------------------------------------------------------------------------------------------

    def poll(self, timeout_ms: int = 0, max_records: int | None = None) -> list[Record]:
        """The next records, at most `max_records` (`max_poll_records`), waiting up to `timeout_ms` for the first.

        Raises: CorruptRecordError (`seek` to its `next_offset` to go on), UnknownTopicOrPartitionError (deleted), WakeupError,
        NoOffsetForPartitionError and OffsetOutOfRangeError (`auto_offset_reset="none"`), SerializationError (a deserializer failed: the records
        before it were returned; `seek` to its `next_offset` to pass over it), InvalidStateError (nothing is subscribed or assigned).
        """
        self._enter()
        try:
            limit = self.config.max_poll_records if max_records is None else max_records
            if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
                raise ConfigurationError(f"max_records={max_records!r}: a whole number from 1 is wanted")
            return self._fetch(limit, monotonic() + _seconds(timeout_ms))
        finally:
            self._leave()

    def _fetch(self, limit: int, deadline: float) -> list[Record]:
        while True:
            self._look_around()
            if self._gathers:
                self._gather(deadline)
            records = self._take_all(limit)
            if records or not self._wait(deadline):
                return records

    def _take_all(self, limit: int) -> list[Record]:
        records: list[Record] = []
        begun: list[tuple[Cursor, int | None]] = []
        try:
            for cursor in self._turns():
                if not self._ready(cursor):
                    continue
                begun.append((cursor, cursor.position))
                try:
                    self._take(cursor, records, limit)
                except StreamlogError:
                    if not records:
                        raise
                    break  # it comes again at the next call, which begins where it stands
                if len(records) >= limit:
                    break
        except BaseException as error:
            if not isinstance(error, StreamlogError):
                for cursor, position in begun:  # interrupted: what was taken was not returned
                    cursor.move(position)
            raise
        return records

    def _turns(self) -> list[Cursor]:
        """The partitions, each time beginning with another."""
        rotation = self._rotation
        if len(rotation) > 1:
            rotation.append(rotation.pop(0))
        return rotation

    def _look_around(self) -> None:
        if not self._rotation and not self._subscribed and self._pattern is None and not self._assigned_by_hand:
            raise InvalidStateError("the consumer reads nothing: name topics, or call subscribe() or assign() first")
        if self._woken:
            self._woken = False
            raise WakeupError("wakeup() was called")
        if self._metadata.changed() or self._metadata.version != self._version:
            self._follow_metadata()

    def _ready(self, cursor: Cursor) -> bool:
        """Whether there is something to take; finds the position where none is known."""
        if cursor.paused:
            return False
        if cursor.reader is None:
            self._begin(cursor)
        if cursor.records or cursor.batch is not None:
            return True
        reader = cursor.reader
        assert reader is not None
        return reader.is_ready()

    def _begin(self, cursor: Cursor) -> None:
        """Open a reader at the position, which is looked up first where there is none."""
        if cursor.position is None:
            cursor.position = self._reset_position(cursor, cursor.reset)
        cursor.reader = LogReader(cursor.log, cursor.position, verify=self.config.check_crcs, timeout=self._timeout)
        cursor.reader.opened = self._opened

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
            return log.high_watermark
        if policy == "none":
            raise NoOffsetForPartitionError(f'{log.name} has no position, and auto_offset_reset is "none": seek first')
        since = max(0, self._home.clock.now_ms() - parse_duration_ms(policy.removeprefix("by_duration:")))
        found = find_timestamp(log, since, self._timeout)
        return log.high_watermark if found is None else found[0]

    def _next_batch(self, cursor: Cursor) -> Batch | None:
        """The next batch of a partition; an offset out of range makes the reset policy act."""
        while True:
            if cursor.reader is None:
                self._begin(cursor)
            assert cursor.reader is not None
            try:
                batch = cursor.reader.next()
            except OffsetOutOfRangeError:
                policy = self.config.auto_offset_reset
                if policy == "none":
                    raise
                cursor.move(self._reset_position(cursor, policy))
                continue
            if batch is None:
                position = cursor.reader.offset
                assert cursor.position is not None
                cursor.position = min(cursor.position, position)  # the log was cut
            return batch

    def _take(self, cursor: Cursor, records: list[Record], limit: int) -> None:
        """Move records of a partition into `records`, up to `limit` of them and `max_partition_fetch_bytes`."""
        size, most = 0, self.config.max_partition_fetch_bytes
        while len(records) < limit and size < most:
            if not cursor.records:
                batch, cursor.batch = cursor.batch or self._next_batch(cursor), None
                if batch is None:
                    return
                cursor.batch = batch  # stays if a deserializer raises
                self._decode(cursor, batch)
                size += batch.length
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

    def poll_batches(self, timeout_ms: int = 0) -> list[RecordBatch]:
        """The next batches as columns in place, up to `max_partition_fetch_bytes` of each partition; waits like `poll`."""
        self._enter()
        try:
            deadline = monotonic() + _seconds(timeout_ms)
            while True:
                self._look_around()
                if self._gathers:
                    self._gather(deadline)
                batches: list[RecordBatch] = []
                for cursor in self._turns():
                    if self._ready(cursor):
                        position = cursor.position
                        try:
                            self._take_batches(cursor, batches)
                        except StreamlogError:
                            if not batches:
                                raise
                            break
                        except BaseException:
                            cursor.move(position)
                            raise
                if batches or not self._wait(deadline):
                    return batches
        finally:
            self._leave()

    def _take_batches(self, cursor: Cursor, batches: list[RecordBatch]) -> None:
        size, most = 0, self.config.max_partition_fetch_bytes
        while size < most:
            batch = cursor.batch or self._next_batch(cursor)
            if batch is None:
                return
            position = cursor.position
            assert position is not None
            batches.append(RecordBatch(batch, cursor.tp.topic, cursor.tp.partition, position))
            size += batch.length
            cursor.drop()
            cursor.position = batch.next_offset

    def __iter__(self) -> Iterator[Record]:
        """Records one by one, waiting for more; ends after `consumer_timeout_ms` without one.

        At least once: what the loop has not asked for yet counts as not read, also after `break` or an exception.
        """
        idle = self.config.consumer_timeout_ms
        while True:
            yield from self._chunk_left
            self._enter()
            try:
                records = self._fetch(self.config.max_poll_records, monotonic() + (1e9 if idle is None else idle / 1000))
                self._chunk, self._chunk_left = records, iter(records)
            finally:
                self._leave()
            if not records:
                return

    # ---- waiting ---------------------------------------------------------------------------------------------------------------

    def _wait(self, deadline: float) -> bool:
        """Sleep until there may be something to read; False at the deadline."""
        now = monotonic()
        if now >= deadline:
            return False
        self._home.tick()
        if self.config.fetch_spin_us:
            until = min(deadline, now + self.config.fetch_spin_us / 1e6)
            while monotonic() < until:
                if self._anything():
                    return True
        if self._waiter is None:
            self._waiter = Waiter(self._bells())
        self._waiter.wait(deadline - now, self._anything)
        return True

    def _gather(self, deadline: float) -> None:
        """Let what is there grow to `fetch_min_bytes`, for at most `fetch_max_wait_ms` and not beyond the deadline of the poll."""
        until = min(deadline, monotonic() + self.config.fetch_max_wait_ms / 1000)
        while (now := monotonic()) < until and self._anything() and not self._is_enough():
            if self._waiter is None:
                self._waiter = Waiter(self._bells())
            self._waiter.wait(until - now, self._is_enough)

    def _is_enough(self) -> bool:
        """Whether `fetch_min_bytes` are published after the positions; a partition whose segment changed counts as enough."""
        total, enough = 0, self.config.fetch_min_bytes
        for cursor in self._rotation:
            reader = cursor.reader
            if not cursor.paused and (cursor.batch is not None or reader is None):
                return True
            if not cursor.paused and reader is not None and reader.is_ready():
                total += max(0, reader.words[POSITION] - reader.position) or enough
        return self._woken or total >= enough

    def _anything(self) -> bool:
        if self._woken or self._metadata.changed():
            return True
        for cursor in self._rotation:  # noqa: SIM110  (a generator costs 0.3 µs, and this is looked at before each sleep)
            if not cursor.paused and (cursor.reader is None or cursor.reader.is_ready()):
                return True
        return False

    def _bells(self) -> Sequence[Bell]:
        bells = [cursor.log.bell for cursor in self._rotation]
        if len(bells) < MAX_BELLS:
            return [self._metadata.log.bell, *bells] if self._subscribed or self._pattern or not bells else bells
        return [self._home.bell]

    def wakeup(self) -> None:
        """End a `poll` of another thread, or the next one, with WakeupError.  Any thread may call it."""
        self._woken = True
        for bell in [self._home.bell, self._metadata.log.bell, *(cursor.log.bell for cursor in self._rotation[:1])]:
            bell.ring()

    # ---- positions -------------------------------------------------------------------------------------------------------------

    def _known(self, tp: Any) -> Cursor:
        cursor = self._cursors.get(_topic_partition(tp))
        if cursor is None:
            raise InvalidStateError(f"{tp} is not assigned to this consumer")
        return cursor

    def position(self, tp: TopicPartition | tuple[str, int]) -> int:
        """Offset of the next record to be returned."""
        self._enter()
        try:
            cursor = self._known(tp)
            if cursor.position is None:
                self._begin(cursor)
            assert cursor.position is not None
            return cursor.position
        finally:
            self._leave()

    def seek(self, tp: TopicPartition | tuple[str, int], offset: int) -> None:
        """Go on at `offset`; out of range, the reset policy acts at the next poll."""
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
            raise ConfigurationError(f"offset={offset!r}: a whole number from 0 is wanted")
        self._move([tp], lambda _: offset)

    def seek_to_beginning(self, *partitions: TopicPartition | tuple[str, int]) -> None:
        """Go to the first record that can be read; without partitions: in all assigned."""
        self._move(partitions, lambda cursor: beginning_offset(cursor.log, self._timeout))

    def seek_to_end(self, *partitions: TopicPartition | tuple[str, int]) -> None:
        """Go to the end; without partitions: in all assigned."""
        self._move(partitions, lambda cursor: end_offset(cursor.log, self._timeout))

    def seek_to_time(self, timestamp_ms: int) -> None:
        """Go to the first record at or after a time (ms) in all assigned partitions; to the end where there is none."""

        def place(cursor: Cursor) -> int:
            found = offset_for_time(cursor.log, timestamp_ms, self._timeout)
            return end_offset(cursor.log, self._timeout) if found is None else found.offset

        self._move((), place)

    def _move(self, partitions: Sequence[Any], place: Any) -> None:
        self._enter()
        try:
            cursors = [self._known(tp) for tp in partitions] or self._rotation
            for cursor, offset in [(cursor, place(cursor)) for cursor in cursors]:
                cursor.move(offset)
        finally:
            self._leave()

    def pause(self, *partitions: TopicPartition | tuple[str, int]) -> None:
        """Return nothing of these partitions until `resume`; their positions stay."""
        self._set_paused(partitions, True)

    def resume(self, *partitions: TopicPartition | tuple[str, int]) -> None:
        """Go on with paused partitions."""
        self._set_paused(partitions, False)

    def _set_paused(self, partitions: Sequence[Any], paused: bool) -> None:
        self._enter()
        try:
            for cursor in [self._known(tp) for tp in partitions]:
                cursor.paused = paused
        finally:
            self._leave()

    def paused(self) -> set[TopicPartition]:
        """The partitions that are paused."""
        return {tp for tp, cursor in self._cursors.items() if cursor.paused}

    def lag(self) -> dict[TopicPartition, int]:
        """Records between position and end, by assigned partition."""
        return {tp: max(0, end_offset(cursor.log, self._timeout) - self.position(tp)) for tp, cursor in list(self._cursors.items())}

    def beginning_offsets(self, partitions: Iterable[TopicPartition | tuple[str, int]]) -> dict[TopicPartition, int]:
        """First offset that can be read, by partition, assigned or not."""
        return {tp: beginning_offset(log, self._timeout) for tp, log in self._logs(partitions)}

    def end_offsets(self, partitions: Iterable[TopicPartition | tuple[str, int]]) -> dict[TopicPartition, int]:
        """Offset after the last visible record, by partition, assigned or not."""
        return {tp: end_offset(log, self._timeout) for tp, log in self._logs(partitions)}

    def offsets_for_times(
        self, times: Mapping[TopicPartition | tuple[str, int], int]
    ) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """The first record at or after a time (ms), by partition; None where there is none."""
        if not hasattr(times, "values"):
            raise ConfigurationError(f"times={times!r}: a mapping of partitions to milliseconds is wanted")
        found = zip(self._logs(times), times.values())
        return {tp: offset_for_time(log, timestamp_ms, self._timeout) for (tp, log), timestamp_ms in found}

    def _logs(self, partitions: Iterable[Any]) -> list[tuple[TopicPartition, PartitionLog]]:
        self._enter()
        try:
            self._metadata.refresh(self._timeout)
            wanted = [_topic_partition(tp) for tp in _listed("partitions", partitions)]
            return [(tp, self._home.log(self._metadata.topic(tp.topic), tp.partition, self._timeout)) for tp in wanted]
        finally:
            self._leave()

    def close(self, timeout: float | None = None) -> None:  # noqa: ARG002  (nothing to wait for without a group)
        """Stop reading.  Batches that are held stay valid."""
        if not self._closed_reason:
            if not self._lock.acquire(False):
                raise ConcurrentModificationError("a consumer belongs to one thread; another one is using it")
            try:
                self._closed_reason = "close() was called"
                self._chunk, self._chunk_left = [], iter(())
                self._set_cursors({})
            finally:
                self._lock.release()


def _seconds(timeout_ms: Any) -> float:
    if isinstance(timeout_ms, bool) or not isinstance(timeout_ms, int | float) or not timeout_ms >= 0:
        raise ConfigurationError(f"timeout_ms={timeout_ms!r}: milliseconds from 0 are wanted")
    return min(timeout_ms, 10**12) / 1000


def _listed(what: str, given: Any) -> list[Any]:
    """The items of an argument that is to be a collection."""
    try:
        return [given] if isinstance(given, str) else list(given)
    except TypeError:
        raise ConfigurationError(f"{what}={given!r}: a list is wanted") from None


def _topic_partition(given: Any) -> TopicPartition:
    try:
        topic, partition = given
    except (TypeError, ValueError):
        raise UnknownTopicOrPartitionError(f"{given!r} is not a (topic, partition)") from None
    if not isinstance(topic, str) or isinstance(partition, bool) or not isinstance(partition, int):
        raise UnknownTopicOrPartitionError(f"{given!r} is not a (topic, partition)")
    return TopicPartition(topic, partition)


_consumers: weakref.WeakSet[Consumer] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for consumer in list(_consumers):
        consumer._lock = RLock()
        consumer._closed_reason = "it belongs to the process that this one was forked from"
    _consumers.clear()


process.after_fork_in_child(_after_fork_in_child)
