"""`Producer`: send → accumulate → append.

`send` puts a record into its partition's open batch.  A batch is closed when the next record does not fit, when `linger_ms` is over, or
by `flush`, and is appended by the thread that closed it; where the partition's lock is not free at once, or earlier batches wait, it
joins the partition's queue, which the sender thread works off in order.
"""

from __future__ import annotations

import atexit
import random
import weakref
from _thread import RLock, allocate_lock, get_ident, start_new_thread
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
    from typing import Any

    from streamlog.config import ProducerConfig
    from streamlog.topic import Topic

from streamlog._format import batch as fmt
from streamlog._log.partition import PartitionLog, Pending
from streamlog._os import locks, process
from streamlog._os.clock import monotonic
from streamlog._replica.home import Home
from streamlog._replica.metadata import TopicMetadata
from streamlog.errors import (
    BufferExhaustedError,
    ClosedError,
    DiskFailedError,
    InvalidTimestampError,
    RecordTooLargeError,
    RetriableError,
    SerializationError,
    StreamlogError,
    StreamlogTimeoutError,
    UnknownTopicOrPartitionError,
)
from streamlog.partitioners import xxh3_partition
from streamlog.types import BatchMetadata, RecordMetadata

_RECORD_BYTES = 4  # of a record in a batch beside key and value: its offset in a bytes column
_PATIENCE = 0.05  # seconds that a flush, or the sender, waits for a partition's lock before it looks around
_MAX_BACKOFF = 1.0  # seconds between tries


class Delivery(tuple["RecordBatch", int]):
    """What became of a record.  Light: a batch and a number, made without a lock of its own (0.1 µs)."""

    __slots__ = ()

    def done(self) -> bool:
        """Whether the record was written, or failed."""
        return self[0].finished

    def result(self, timeout: float | None = None) -> RecordMetadata:
        """Where the record was written.

        Args: timeout: seconds; None: the producer's `delivery_timeout_ms`.
        Raises: StreamlogTimeoutError, or what the record failed with.
        """
        self[0].join(timeout)
        return self[0].metadata(self[1])

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the record failed with, or None; waits like `result`."""
        self[0].join(timeout)
        return self[0].error

    def __await__(self) -> Generator[Any, None, RecordMetadata]:
        batch = self[0]
        if not batch.finished:
            import asyncio

            loop = asyncio.get_running_loop()
            future = loop.create_future()
            batch.call_when_finished(lambda: loop.call_soon_threadsafe(lambda: future.done() or future.set_result(None)))
            yield from future
        return batch.metadata(self[1])

    def __repr__(self) -> str:
        return f"<Delivery {self.result()}>" if self.done() and self[0].error is None else f"<Delivery {self[0].state()}>"


class BatchDelivery(Delivery):
    """What became of a batch that `send_batch` or `Producer.batch` wrote."""

    __slots__ = ()

    def result(self, timeout: float | None = None) -> BatchMetadata:  # type: ignore[override]
        """Where the batch was written.  Raises like `Delivery.result`."""
        batch = self[0]
        batch.join(timeout)
        batch.metadata(0)
        return BatchMetadata(batch.lane.topic, batch.lane.partition, batch.base_offset, batch.count)


class RecordBatch:
    """Records of one partition on their way.

    `rows` is one flat list, so that a record enters by one atomic operation whatever interrupts `send`: values (stride 1), keys and
    values (2), or keys, values, headers and timestamps (4).  Changed under the producer's lock until closed, then only by who appends it.
    """

    __slots__ = (
        "attributes", "base_offset", "callbacks", "columns", "count", "deadline", "error", "finished", "lane", "pending", "room",
        "rows", "stride", "timestamp_ms", "timestamps", "waiters", "wanted_size",
    )  # fmt: skip

    def __init__(self, lane: Lane, room: int, stride: int) -> None:
        self.lane, self.room, self.stride = lane, room, stride
        self.wanted_size = room
        self.rows: list[Any] = []
        self.columns: bytes | None = None
        self.attributes = self.count = 0
        self.base_offset = -1
        self.timestamp_ms, self.timestamps = lane.producer._now_ms(), None
        self.deadline = 0.0
        self.callbacks: list[tuple[int, Callable[[RecordMetadata | None, BaseException | None], object]]] = []
        self.waiters: list[Callable[[], object]] = []
        self.error: BaseException | None = None
        self.finished = False
        self.pending: Pending | None = None

    def widen(self, stride: int) -> None:
        """Make room in each row for keys (2) or for keys, headers and timestamps (4)."""
        if self.stride < stride:
            rows, old = self.rows, self.stride
            wide: list[Any] = [None] * (len(rows) // old * stride)
            if old == 1:
                wide[1::stride] = rows
            else:
                wide[0::stride], wide[1::stride] = rows[0::2], rows[1::2]
            self.rows, self.stride = wide, stride

    def encode(self) -> Pending:
        """The bytes of the batch; the rows are let go."""
        if self.pending is None:
            if self.columns is None:
                self._encode_rows()
            assert self.columns is not None
            timestamps = self.timestamps
            base = self.timestamp_ms if timestamps is None else timestamps[0]
            largest = base if timestamps is None else max(timestamps)
            self.pending = Pending(self.attributes, self.columns, self.count, base, largest)
            self.rows = []
        return self.pending

    def _encode_rows(self) -> None:
        rows, stride = self.rows, self.stride
        self.count = len(rows) // stride
        keys, values, headers = None, rows, None
        if stride > 1:
            keys, values = rows[0::stride], rows[1::stride]
        if stride == 4:
            headers = rows[2::4]
            given = rows[3::4]
            if given.count(None) != len(given):
                times = [self.timestamp_ms if time is None else time for time in given]
                self.timestamp_ms = times[0]
                if times.count(times[0]) != len(times):
                    self.timestamps = times
        self.attributes, self.columns = fmt.encode_rows(values, keys, headers, self.timestamps)

    def size(self) -> int:
        """Bytes of keys and values: what counts against `buffer_memory` (open batches count as full)."""
        return self.wanted_size - self.room

    # ---- ending: `finished` is stored last; waiters are called by who ends the batch -------------------------------------------

    def finish(self, error: BaseException | None) -> None:
        """The records are written, or have failed."""
        if not self.finished:
            self.error = error
            if self.pending is not None and error is None:
                self.base_offset = self.pending.base_offset
            self.finished = True
        while self.waiters:
            self.waiters.pop(0)()
        for number, callback in self.callbacks:
            try:
                callback(None, error) if error is not None else callback(self.metadata(number), None)
            except Exception:
                import logging

                logging.getLogger("streamlog").exception("on_delivery of a record of %s-%d", self.lane.topic, self.lane.partition)
        self.callbacks = []

    def call_when_finished(self, callback: Callable[[], object]) -> None:
        """Call now or later, once."""
        self.waiters.append(callback)
        if self.finished:
            while self.waiters:
                try:
                    self.waiters.pop(0)()
                except IndexError:
                    return  # who finished the batch was faster

    def join(self, timeout: float | None) -> None:
        """Return when finished.  Raises StreamlogTimeoutError."""
        if timeout is None:
            timeout = self.lane.producer.config.delivery_timeout_ms / 1000
        deadline = monotonic() + timeout
        while not self.finished:
            self.wait(max(0.0, deadline - monotonic()))
            if not self.finished:
                self.lane.producer._drain(self.lane, wait=True, until=self)

    def wait(self, timeout: float) -> None:
        """Return when finished, or when it is the caller's turn to go on with the queue.  Raises StreamlogTimeoutError."""
        if self.finished:
            return
        deadline = monotonic() + timeout
        while not self.finished:
            gate = allocate_lock()
            gate.acquire()
            self.call_when_finished(gate.release)
            if not gate.acquire(True, max(0.0, min(deadline - monotonic(), 1e6))) and not self.finished:
                if gate.release in self.waiters:
                    self.waiters.remove(gate.release)
                reason = self.lane.trouble or "not written yet"
                raise StreamlogTimeoutError(f"waited {timeout:g} s for a record of {self.lane.name}: {reason}")
            if self.lane.queue and not self.lane.draining:
                return  # woken to go on with the queue

    def metadata(self, number: int) -> RecordMetadata:
        """Where record `number` was written.  Raises what the batch failed with."""
        if self.error is not None:
            raise self.error
        timestamp = self.timestamp_ms if self.timestamps is None else self.timestamps[number]
        offset = self.base_offset + number if self.base_offset >= 0 else -1
        return RecordMetadata(self.lane.topic, self.lane.partition, offset, timestamp)

    def state(self) -> str:
        """For messages."""
        return f"failed: {self.error}" if self.error else "written" if self.finished else "on its way"


class Lane:
    """One partition as a producer sees it: the open batch, and closed ones in order.  Changed under the producer's lock."""

    __slots__ = ("batch", "bytes_since_switch", "draining", "failed_at", "log", "name", "partition", "producer", "queue", "target",
                 "topic", "tries", "trouble")  # fmt: skip

    def __init__(self, producer: Producer, target: Target, log: PartitionLog) -> None:
        self.producer, self.target, self.log = producer, target, log
        self.topic, self.partition, self.name = log.topic, log.partition, log.name
        self.batch = producer._closed_batch
        self.queue: deque[RecordBatch] = deque()
        self.draining = False
        self.bytes_since_switch = 0
        self.tries, self.failed_at = 0, 0.0
        self.trouble: BaseException | None = None  # the last error that may yet go away


class Target:
    """A topic as a producer sees it."""

    __slots__ = ("count", "lanes", "max_message_bytes", "metadata", "sticky")

    def __init__(self, producer: Producer, metadata: TopicMetadata) -> None:
        self.metadata, self.count = metadata, metadata.partitions
        self.max_message_bytes = metadata.config.max_message_bytes
        timeout = producer.config.max_block_ms / 1000
        self.lanes = [Lane(producer, self, producer._home.log(metadata, number, timeout)) for number in range(self.count)]
        self.sticky = random.choice(self.lanes)

    def switch(self) -> None:
        """Choose the next partition of unkeyed records, uniformly (KIP-794)."""
        self.sticky.bytes_since_switch = 0
        self.sticky = random.choice(self.lanes)
        self.sticky.bytes_since_switch = 0


class Producer:
    """Writes records.

    Threads: any number may share a producer; records of one thread keep their order within a partition, and `send` may be entered
    again by its own thread (a finalizer, a signal handler).  Processes: belongs to the one that made it.
    """

    def __init__(self, home: Home, config: ProducerConfig) -> None:
        self._home, self.config = home, config
        self._metadata = home.metadata
        self._now_ms = home.clock.now_ms
        self._lock = RLock()  # guards lanes; never held while appending
        self._busy = False  # this thread is between two steps of `send`
        self._aside: deque[RecordBatch] = deque()  # sent by a thread inside its own `send` (H18)
        self._closed_reason = ""
        self._closed_batch = RecordBatch.__new__(RecordBatch)
        self._closed_batch.room, self._closed_batch.stride = -1, 1
        self._targets: dict[Any, Target] = {}
        self._open: dict[Lane, None] = {}  # lanes with an open batch
        self._queued: dict[Lane, None] = {}  # lanes with a queue
        self._memory = 0
        self._linger = config.linger_ms / 1000
        self._acknowledged_at_once = config.acks == 0
        self._fsync = config.durability == "fsync"
        self._unbatched = config.batch_size == 0 or config.linger_ms == 0
        self._block = config.max_block_ms / 1000
        self._delivery = config.delivery_timeout_ms / 1000
        self._ignore_keys = config.partitioner_ignore_keys
        self._serialize_key, self._serialize_value = config.key_serializer, config.value_serializer
        self._sender = _Sender(self)
        self._version = self._metadata.version
        _producers.add(self)

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<streamlog.Producer of {self._home.path}{' (closed)' if self._closed_reason else ''}>"

    # ---- send ----------------------------------------------------------------------------------------------------------------

    def send(
        self,
        topic: str | Topic,
        value: Any = None,
        *,
        key: Any = None,
        headers: Mapping[str, bytes | None] | Iterable[tuple[str, bytes | None]] | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        on_delivery: Callable[[RecordMetadata | None, BaseException | None], object] | None = None,
    ) -> Delivery:
        """Send a record; returns at once, unless `buffer_memory` is full.

        Args:   topic: its name, or a handle.  value, key: bytes, bytes-like, str (as UTF-8), or what the serializers take; a value of None
                with a key is a tombstone.  headers: pairs of str and bytes or None.  partition: None lets the key's hash, or the sticky
                choice, decide.  timestamp_ms: None takes the time at which the record's batch was begun.
                on_delivery: called with (metadata, None) or (None, error) by the thread that completes the batch, outside locks.
        Raises: UnknownTopicOrPartitionError, RecordTooLargeError, SerializationError, InvalidTimestampError, BufferExhaustedError,
                ClosedError; what happens later comes through the delivery.
        """
        if headers is not None or partition is not None or timestamp_ms is not None or on_delivery is not None:
            return self._send_in_full(topic, value, key, headers, partition, timestamp_ms, on_delivery)
        try:
            target = self._targets[topic]
        except (KeyError, TypeError):
            target = self._target(topic)
        if self._serialize_value is not None or type(value) is not bytes:
            value = self._bytes("value", value, self._serialize_value)
        if key is None:
            size = len(value) + _RECORD_BYTES if value is not None else _RECORD_BYTES
            with self._lock:
                if not self._busy:
                    self._busy = True
                    try:
                        batch = target.sticky.batch
                        room = batch.room - size
                        if room >= 0:
                            rows, stride = batch.rows, batch.stride
                            if stride == 1:
                                delivery = Delivery((batch, len(rows)))
                                rows.append(value)
                            else:
                                delivery = Delivery((batch, len(rows) // stride))
                                rows += (None, value) if stride == 2 else (None, value, None, None)
                            batch.room = room
                            return delivery
                    finally:
                        self._busy = False
        else:
            if self._serialize_key is not None or type(key) is not bytes:
                key = self._bytes("key", key, self._serialize_key)
            size = len(key) + _RECORD_BYTES * 2 + (len(value) if value is not None else 0)
            if not self._ignore_keys:
                lane = target.lanes[xxh3_partition(key, target.count)]
                with self._lock:
                    if not self._busy:
                        self._busy = True
                        try:
                            batch = lane.batch
                            room = batch.room - size
                            if room >= 0 and batch.stride == 2:
                                rows = batch.rows
                                delivery = Delivery((batch, len(rows) >> 1))
                                rows += (key, value)
                                batch.room = room
                                return delivery
                        finally:
                            self._busy = False
        return self._send_slowly(target, key, value, None, None, None, None, size)

    def _send_in_full(
        self, topic: Any, value: Any, key: Any, headers: Any, partition: Any, timestamp_ms: Any, on_delivery: Any
    ) -> Delivery:
        """`send` with any of the rarer arguments."""
        target = self._targets.get(topic) if isinstance(topic, str) else None
        target = target or self._target(topic)
        value = self._bytes("value", value, self._serialize_value)
        key = self._bytes("key", key, self._serialize_key)
        packed = _pack_headers(headers) if headers is not None else None
        if timestamp_ms is not None and (
            isinstance(timestamp_ms, bool) or not isinstance(timestamp_ms, int) or not 0 <= timestamp_ms < 2**63
        ):
            raise InvalidTimestampError(f"timestamp_ms={timestamp_ms!r}: milliseconds in [0, 2**63) are wanted")
        if on_delivery is not None and not callable(on_delivery):
            raise SerializationError(f"on_delivery={on_delivery!r} cannot be called")
        if partition is not None:
            partition = self._check_partition(target, partition)
        size = 4 * _RECORD_BYTES + sum(len(part) for part in (key, value, packed) if part is not None)
        return self._send_slowly(target, key, value, packed, timestamp_ms, partition, on_delivery, size)

    def _check_partition(self, target: Target, partition: Any) -> int:
        if isinstance(partition, bool) or not isinstance(partition, int) or not 0 <= partition < target.count:
            name = target.metadata.name
            raise UnknownTopicOrPartitionError(f"partition={partition!r}: topic {name!r} has partitions 0 to {target.count - 1}")
        return partition

    def _send_slowly(
        self, target: Target, key: Any, value: Any, headers: Any, timestamp_ms: Any, partition: Any, on_delivery: Any, size: int
    ) -> Delivery:
        """`send` where there is no open batch with room, or the record has more than key and value."""
        self._check_size(target, size)
        wide = headers is not None or timestamp_ms is not None
        stride = 4 if wide else 2 if key is not None else 1
        row = (key, value, headers, timestamp_ms)
        while True:
            with self._lock:
                self._check_open()
                if self._busy:
                    return self._send_aside(target, row, partition, on_delivery, size)
                self._busy = True
                try:
                    lane = self._choose(target, key, partition)
                    batch = lane.batch
                    if batch.room >= size or (batch is self._closed_batch and self._begin(lane, size, stride)):
                        batch = lane.batch
                        batch.widen(stride)
                        number = len(batch.rows) // batch.stride
                        batch.rows += row[1:2] if batch.stride == 1 else row[: batch.stride]
                        batch.room -= size
                        if on_delivery is not None:
                            batch.callbacks.append((number, on_delivery))
                        at_once = self._unbatched
                        if at_once:
                            self._end(lane)
                        delivery = Delivery((batch, number))
                        break
                    full = batch is not self._closed_batch
                    if full:
                        self._end(lane)
                finally:
                    self._busy = False
            if full:
                self._drain(lane)
            else:
                self._wait_for_memory()
        if at_once:
            self._drain(lane)
        if self._aside:
            self._route_aside()
        return delivery

    def _choose(self, target: Target, key: bytes | None, partition: int | None) -> Lane:
        if partition is not None:
            return target.lanes[partition]
        if key is not None and not self._ignore_keys:
            return target.lanes[xxh3_partition(key, target.count)]
        return target.sticky

    def _begin(self, lane: Lane, size: int, stride: int) -> bool:
        """Open a batch, if `buffer_memory` allows."""
        room = max(self.config.batch_size, size)
        if self._memory + room > self.config.buffer_memory and self._memory:
            return False
        self._memory += room
        batch = RecordBatch(lane, room, stride)
        batch.deadline = monotonic() + self._linger
        lane.batch = batch
        self._open[lane] = None
        if not self._unbatched:
            self._sender.expect(batch.deadline)
        return True

    def _end(self, lane: Lane) -> None:
        """Close the open batch: it joins the queue of its partition.  Under the producer's lock."""
        batch, lane.batch = lane.batch, self._closed_batch
        self._open.pop(lane, None)
        self._enqueue(lane, batch)
        target = lane.target
        if lane is target.sticky:
            lane.bytes_since_switch += batch.size()
            if lane.bytes_since_switch >= self.config.batch_size:  # KIP-794: so that slow partitions do not get more
                target.switch()

    def _enqueue(self, lane: Lane, batch: RecordBatch) -> None:
        """A closed batch joins the queue of its partition.  Under the producer's lock."""
        lane.queue.append(batch)
        self._queued[lane] = None
        if self._acknowledged_at_once:
            batch.encode()
            pending, batch.pending = batch.pending, None
            batch.finish(None)
            batch.pending = pending

    def _send_aside(self, target: Target, row: tuple[Any, ...], partition: int | None, on_delivery: Any, size: int) -> Delivery:
        """This thread is inside `send` already: the record waits in a batch of its own until that one is done (H18)."""
        batch = RecordBatch(self._choose(target, row[0], partition), size, 4)
        batch.rows = list(row)
        batch.room = 0
        if on_delivery is not None:
            batch.callbacks.append((0, on_delivery))
        self._aside.append(batch)
        self._sender.expect(0.0)
        return Delivery((batch, 0))

    def _route_aside(self) -> None:
        """Queue what was sent from inside `send`."""
        lanes = []
        with self._lock:
            if self._busy:
                return
            while self._aside:
                batch = self._aside.popleft()
                lane = batch.lane
                if lane.batch is not self._closed_batch:
                    self._end(lane)
                self._memory += batch.wanted_size
                self._enqueue(lane, batch)
                lanes.append(lane)
        for lane in lanes:
            self._drain(lane)

    # ---- checks --------------------------------------------------------------------------------------------------------------

    def _bytes(self, what: str, given: Any, serializer: Callable[[Any], Any] | None) -> bytes | None:
        """A key or value as bytes."""
        if given is None:
            return None
        if serializer is not None:
            try:
                given = serializer(given)
            except Exception as error:
                raise SerializationError(f"{what}_serializer failed: {error!r}") from error
            if given is None or isinstance(given, str):
                raise SerializationError(f"{what}_serializer returned {type(given).__name__}; bytes are wanted")
        if isinstance(given, bytes):
            return bytes(given)
        if isinstance(given, str):
            try:
                return given.encode()
            except UnicodeEncodeError as error:
                raise SerializationError(f"{what} {given!r} is not UTF-8: {error}") from None
        try:
            return bytes(memoryview(given))
        except TypeError:
            pass
        hint = f'give {what}_serializer="json", "msgpack", "str" or a callable'
        raise SerializationError(f"a {what} of type {type(given).__name__} is not bytes; {hint}")

    def _check_size(self, target: Target, size: int) -> None:
        limit = self.config.max_request_size
        if size - 4 * _RECORD_BYTES > limit:
            raise RecordTooLargeError(f"a record of {size} bytes is above max_request_size={limit} (producer)")
        limit = target.max_message_bytes
        if size + fmt.BATCH_HEADER_SIZE > limit:
            raise RecordTooLargeError(f"a record of {size} bytes is above max_message_bytes={limit} (topic {target.metadata.name!r})")
        if size > self.config.buffer_memory:
            raise RecordTooLargeError(f"a record of {size} bytes is above buffer_memory={self.config.buffer_memory} (producer)")

    def _check_open(self) -> None:
        if self._closed_reason:
            raise ClosedError(f"the producer is closed: {self._closed_reason}")
        if self._home.closed:
            raise ClosedError(f"the cluster is closed: {self._home.closed}")

    def _target(self, topic: Any) -> Target:
        """What this producer knows of a topic, looked up when first needed and after the metadata changed."""
        self._check_open()
        name = topic if isinstance(topic, str) else getattr(topic, "name", None)
        if not isinstance(name, str):
            raise UnknownTopicOrPartitionError(f"{topic!r} is not a topic's name")
        if self._metadata.changed():
            self._metadata.refresh(self._block)
        metadata = self._metadata.topic(name)
        with self._lock:
            known = self._targets.get(name)
            if known is None or known.metadata is not metadata:
                known = self._targets[name] = self._renewed(known, Target(self, metadata))
            return known

    def _renewed(self, old: Target | None, new: Target) -> Target:
        """A topic that grew keeps its lanes, and with them its open batches and their order."""
        if old is not None and old.metadata.topic_id == new.metadata.topic_id:
            new.lanes[: old.count] = old.lanes
            for lane in old.lanes:
                lane.target = new
            new.sticky = old.sticky
        return new

    def _follow_metadata(self) -> None:
        """Topics were created, grew or went: look them up again.  Once for each change, before a batch is appended."""
        self._metadata.refresh(self._block)
        self._version = self._metadata.version
        with self._lock:
            for name, target in list(self._targets.items()):
                now = self._metadata.topics.get(name)
                if now is None or now.topic_id != target.metadata.topic_id:
                    del self._targets[name]
                elif now is not target.metadata:
                    self._targets[name] = self._renewed(target, Target(self, now))

    def _work(self) -> float:
        """The sender's round: what is due is written.  Returns when there is more to do (monotonic; inf: when called)."""
        if self._aside:
            self._route_aside()
        now = monotonic()
        for lane in self._end_open(now):
            if not lane.tries or now >= lane.failed_at + self._backoff(lane):
                self._drain(lane, wait=True)
        with self._lock:
            times = [lane.batch.deadline for lane in self._open]
            times += [lane.failed_at + self._backoff(lane) if lane.tries else now for lane in self._queued if not lane.draining]
        return min(times, default=float("inf"))

    def partitions_for(self, topic: str) -> list[int]:
        """Partition numbers of a topic."""
        return list(range(self._target(topic).count))

    # ---- appending -----------------------------------------------------------------------------------------------------------

    def _drain(self, lane: Lane, *, wait: bool = False, until: RecordBatch | None = None) -> None:
        """Append the queue of a partition in order, at least up to the batch `until`.

        With the partition's lock taken elsewhere, or this thread inside a locked section, the queue is left to the sender.
        """
        if get_ident() in locks.inside:
            self._sender.expect(0.0)
            return
        while True:
            with self._lock:
                if lane.draining:
                    return
                if not lane.queue:
                    self._queued.pop(lane, None)
                    return
                lane.draining = True
                batches = list(lane.queue)
            blocked = True
            try:
                blocked = self._append_all(lane, batches, wait)
            finally:
                self._settle(lane, batches)
                if blocked:
                    self._sender.expect(lane.failed_at + self._backoff(lane) if lane.tries else 0.0)
            if blocked:
                return
            if until is not None and until.finished and lane.queue:
                self._hand_over(lane)
                return

    def _settle(self, lane: Lane, batches: list[RecordBatch]) -> None:
        """Take what is written off the queue, and let others at it."""
        with self._lock:
            for batch in batches:
                if not batch.finished or batch.pending is not None:
                    break
                lane.queue.popleft()
                self._memory -= batch.wanted_size
            lane.draining = False
            if not lane.queue:
                self._queued.pop(lane, None)

    def _hand_over(self, lane: Lane) -> None:
        """Others have queued batches meanwhile: one who waits for them goes on, or the sender."""
        waiters = lane.queue[0].waiters if lane.queue else []
        try:
            waiters.pop()()
        except IndexError:
            self._sender.expect(0.0)

    def _append_all(self, lane: Lane, batches: list[RecordBatch], wait: bool) -> bool:
        """Write batches in order, sync them together, finish them; returns whether the rest must be tried again."""
        written: list[RecordBatch] = []
        blocked = False
        for batch in batches:
            if not self._append(lane, batch, wait):
                blocked = True
                break
            written.append(batch)
        last = next((batch.pending for batch in reversed(written) if batch.error is None), None)
        if last is not None and (self._fsync or lane.log.flush_due()):
            try:
                lane.log.wait_synced(last.base_offset + last.count, last.epoch, self._delivery)
            except StreamlogError as error:
                for batch in written:
                    batch.error = batch.error or error
        for batch in written:
            batch.finish(batch.error)
            batch.pending = batch.columns = None
        return blocked

    def _append(self, lane: Lane, batch: RecordBatch, wait: bool) -> bool:
        """Write one batch; False: not yet.  An error that does not go away is the batch's."""
        try:
            pending = batch.encode()
            if pending.base_offset < 0:
                self._home.tick()
                if self._metadata.version != self._version or self._metadata.changed():
                    self._follow_metadata()
                if lane.target.metadata.topic_id not in self._metadata.by_id:
                    raise UnknownTopicOrPartitionError(f"topic {lane.topic!r} was deleted")
                lane.log.append(pending, _PATIENCE if wait else 0.0)
        except RetriableError as error:
            lane.trouble, lane.failed_at = error, monotonic()
            expired = lane.failed_at > batch.deadline - self._linger + self._delivery
            if isinstance(error, StreamlogTimeoutError):
                if not expired:
                    return False  # the lock is another's: no try of ours
                error = StreamlogTimeoutError(f"not written within delivery_timeout_ms={self.config.delivery_timeout_ms}: {error}")
            else:
                lane.tries += 1
                if not expired and lane.tries <= self.config.retries:
                    return False
            batch.error = error
        except (StreamlogError, OSError, OverflowError) as error:
            batch.error = error if isinstance(error, StreamlogError) else DiskFailedError(f"append to {lane.name}: {error}")
        lane.tries, lane.trouble = 0, None
        return True

    def _backoff(self, lane: Lane) -> float:
        return min(self.config.retry_backoff_ms / 1000 * 2 ** min(max(lane.tries - 1, 0), 10), _MAX_BACKOFF)

    def _wait_for_memory(self) -> None:
        """`buffer_memory` is full: write what can be written, then wait for the sender, at most `max_block_ms`."""
        deadline = monotonic() + self._block
        while self._memory + self.config.batch_size > self.config.buffer_memory and self._memory:
            self._end_open(monotonic() + 1e9)
            for lane in list(self._queued):
                self._drain(lane)
            if monotonic() > deadline:
                trouble = next((lane.trouble for lane in list(self._queued) if lane.trouble), None)
                cause = f"; the log does not take records: {trouble}" if trouble else ""
                raise BufferExhaustedError(
                    f"buffer_memory={self.config.buffer_memory} was full for max_block_ms={self.config.max_block_ms}{cause}"
                )
            self._check_open()
            self._sender.pause(0.005)

    def _end_open(self, now: float) -> list[Lane]:
        """Close the open batches whose linger is over; returns the lanes with something to append."""
        with self._lock:
            if self._busy:
                return []
            for lane in [lane for lane in self._open if lane.batch.deadline <= now]:
                self._end(lane)
            return list(self._queued)

    # ---- flush and close -----------------------------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> None:
        """Return when every record sent before is written, or has failed (its delivery says so).

        Args:   timeout: seconds; None: `delivery_timeout_ms`.
        Raises: StreamlogTimeoutError.
        """
        self._check_open()
        if self._aside:
            self._route_aside()
        with self._lock:
            if not self._busy:
                for lane in list(self._open):
                    self._end(lane)
            lanes = [(lane, lane.queue[-1]) for lane in self._queued]
        deadline = -1.0
        for lane, last in lanes:
            self._drain(lane, until=last)
            if not last.finished:
                if deadline < 0:
                    deadline = monotonic() + (self._delivery if timeout is None else timeout)
                self._wait_for(lane, last, deadline)

    def _wait_for(self, lane: Lane, last: RecordBatch, deadline: float) -> None:
        """Wait for a queued batch: by writing the queue where nobody else does."""
        while not last.finished:
            left = deadline - monotonic()
            if left <= 0:
                reason = lane.trouble or "another thread is writing them"
                raise StreamlogTimeoutError(f"flush: records of {lane.name} are not written yet: {reason}")
            if lane.draining or lane.tries:
                try:
                    last.wait(min(left, _PATIENCE))
                except StreamlogTimeoutError:
                    continue
            else:
                self._drain(lane, wait=True, until=last)

    def close(self, timeout: float | None = None) -> None:
        """Write what is left, then close.  What cannot be written within `timeout` seconds fails with ClosedError."""
        if self._closed_reason:
            return
        try:
            if not self._home.closed:
                self.flush(timeout)
        finally:
            self._abandon("close() was called")

    def _abandon(self, reason: str) -> None:
        """Take nothing more; fail what is left."""
        self._closed_reason = reason
        self._targets = {}
        self._sender.stop()
        left = []
        with self._lock:
            for lane in list(self._open):
                lane.queue.append(lane.batch)
                lane.batch = self._closed_batch
                self._queued[lane] = None
            for lane in list(self._queued):
                if not lane.draining:
                    left += lane.queue
                    lane.queue.clear()
            self._open.clear()
            self._queued.clear()
        for batch in left:
            if not batch.finished:
                batch.finish(ClosedError(f"the producer was closed before the record was written: {reason}"))

    # ---- bulk ----------------------------------------------------------------------------------------------------------------

    def send_batch(
        self,
        topic: str | Topic,
        values: Any,
        *,
        keys: Any = None,
        timestamps_ms: Any = None,
        headers: Sequence[Any] | None = None,
        partition: int | None = None,
    ) -> list[BatchDelivery]:
        """Send many records at once: a list of bytes, or a NumPy array (1-D, structured or of fixed size, stored as it lies in memory).

        Rows with keys are partitioned by their hash, rows without go to one partition; order within a partition is kept.  Batches are
        filled up to the topic's `max_message_bytes`.  Returns a delivery for each batch.
        Raises: like `send`; nothing is sent then.
        """
        from streamlog import _bulk

        target = self._targets.get(topic) if isinstance(topic, str) else None
        target = target or self._target(topic)
        if partition is not None:
            partition = self._check_partition(target, partition)
        deliveries = []
        for lane, chunk in _bulk.split(self, target, values, keys, timestamps_ms, headers, partition):
            deliveries.append(self._send_encoded(lane, chunk))
        return deliveries

    def _send_encoded(self, lane: Lane, chunk: tuple[int, bytes, int, list[int] | None]) -> BatchDelivery:
        """Queue and append a batch that is encoded already."""
        attributes, columns, count, timestamps = chunk
        size = len(columns)
        while True:
            with self._lock:
                self._check_open()
                if not self._busy and (not self._memory or self._memory + size <= self.config.buffer_memory):
                    self._memory += size
                    if lane.batch is not self._closed_batch:
                        self._end(lane)
                    batch = RecordBatch(lane, size, 1)
                    batch.room = 0
                    batch.attributes, batch.columns, batch.count, batch.timestamps = attributes, columns, count, timestamps
                    batch.deadline = monotonic() + self._linger
                    self._enqueue(lane, batch)
                    break
            self._wait_for_memory()
        self._drain(lane)
        return BatchDelivery((batch, 0))

    def batch(self, topic: str | Topic, *, key: Any = None, partition: int | None = None) -> BatchWriter:
        """A writer for tight loops: `with producer.batch("clicks") as batch: batch.append(value)`.

        One partition, chosen at entry: `partition`, else by `key`, else the sticky one.  An exception in the body drops what is not yet written.
        """
        target = self._target(topic)
        if partition is not None:
            partition = self._check_partition(target, partition)
        lane = self._choose(target, self._bytes("key", key, self._serialize_key), partition)
        if lane is target.sticky:
            target.switch()
        return BatchWriter(self, lane)


class BatchWriter:
    """Appends values to one partition; `append` is the `send` of a generator, so a call at C level (H21).

    Values are written 64 KiB at a time and at the end of the `with` block; `delivery` is of all of them.  Belongs to one thread.
    """

    __slots__ = ("_collector", "_count", "_lane", "_left", "_producer", "_whole", "append")

    def __init__(self, producer: Producer, lane: Lane) -> None:
        self._producer, self._lane = producer, lane
        self._whole = RecordBatch(lane, 0, 1)
        self._left, self._count = 1, 0  # batches on their way, and one for the writer itself; records
        self._collector = self._collect()
        next(self._collector)
        self.append: Callable[[bytes], None] = self._collector.send
        """Add a value (bytes).  Raises SerializationError, RecordTooLargeError, BufferExhaustedError; the writer is done for then."""

    @property
    def delivery(self) -> BatchDelivery:
        """What became of all the values; done some time after the `with` block ended."""
        return BatchDelivery((self._whole, 0))

    def __enter__(self) -> BatchWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is None:
            try:
                self._collector.send(None)  # type: ignore[arg-type]
            except StopIteration:
                pass
        else:
            self._collector.close()
        self._finished(error if isinstance(error, Exception) else None)

    def _collect(self) -> Generator[None, bytes, None]:
        values: list[bytes] = []
        append, size = values.append, 0
        while True:
            value = yield
            if value.__class__ is not bytes:
                break
            append(value)
            size += len(value)
            if size >= _WRITER_BYTES:
                self._write(values, size)
                values.clear()
                size = 0
        if value is not None:
            raise SerializationError(f"a value of type {type(value).__name__} is not bytes; a batch takes nothing else")
        if values:
            self._write(values, size)

    def _write(self, values: list[bytes], size: int) -> None:
        target = self._lane.target
        if size + 4 * len(values) + _COLUMN_ROOM > target.max_message_bytes:
            if len(values) == 1:
                raise RecordTooLargeError(f"a value of {size} bytes is above max_message_bytes={target.max_message_bytes}")
            half = len(values) // 2
            self._write(values[:half], sum(map(len, values[:half])))
            self._write(values[half:], sum(map(len, values[half:])))
            return
        if max(map(len, values)) > self._producer.config.max_request_size:
            limit = self._producer.config.max_request_size
            raise RecordTooLargeError(f"a value of {max(map(len, values))} bytes is above max_request_size={limit}")
        attributes, columns = fmt.encode_rows(values)
        self._left += 1
        self._count += len(values)
        batch = self._producer._send_encoded(self._lane, (attributes, columns, len(values), None))[0]
        batch.call_when_finished(lambda: self._written(batch))

    def _written(self, batch: RecordBatch) -> None:
        if batch.error is None and (self._whole.base_offset < 0 or batch.base_offset < self._whole.base_offset):
            self._whole.base_offset = batch.base_offset
        self._finished(batch.error)

    def _finished(self, error: BaseException | None) -> None:
        with self._producer._lock:
            self._left -= 1
            self._whole.error = self._whole.error or error
            self._whole.count = self._count
            last = self._left == 0
        if last:
            self._whole.finish(self._whole.error)


class _Sender:
    """The thread that closes batches whose linger is over and works off queues; started when first needed.

    Holds its producer only while it works, never keeps a process alive, and ends when the producer is closed or gone.
    """

    def __init__(self, producer: Producer) -> None:
        self._producer = weakref.ref(producer)
        self._gate = allocate_lock()
        self._gate.acquire()
        self._wake_at = 0.0  # monotonic; inf: when called.  Stored by the sender, read by everybody: a stale value costs a look
        self._started = self._stopped = False

    def expect(self, deadline: float) -> None:
        """There is something to do at `deadline` (monotonic seconds)."""
        if not self._started:
            self._started = True
            start_new_thread(self._run, ())
        elif deadline < self._wake_at:
            self._wake()

    def _wake(self) -> None:
        try:
            self._gate.release()
        except RuntimeError:
            pass  # awake already

    def stop(self) -> None:
        """End the thread soon."""
        self._stopped = True
        if self._started:
            self._wake()

    @staticmethod
    def pause(seconds: float) -> None:
        """Let the sender and others work."""
        gate = allocate_lock()
        gate.acquire()
        gate.acquire(True, seconds)

    def _run(self) -> None:
        while not self._stopped:
            producer = self._producer()
            if producer is None:
                return
            self._wake_at = 0.0
            try:
                wake_at = producer._work()
            except Exception:  # the queue stays; what went wrong is told, and tried again
                import logging

                logging.getLogger("streamlog").exception("sender of %r", producer)
                wake_at = monotonic() + _MAX_BACKOFF
            del producer
            self._wake_at = wake_at
            self._gate.acquire(True, max(0.0, min(wake_at - monotonic(), 5.0)))


_WRITER_BYTES = 64 << 10
_COLUMN_ROOM = fmt.BATCH_HEADER_SIZE + 32  # header, column head and padding


def _pack_headers(headers: Any) -> bytes | None:
    """Headers as msgpack; None where there are none.  Raises SerializationError."""
    import msgpack

    pairs = headers.items() if hasattr(headers, "items") else headers
    try:
        rows = [(name, value if value is None else bytes(memoryview(value))) for name, value in pairs]
    except (TypeError, ValueError):
        raise SerializationError(f"headers={headers!r}: pairs of str and bytes (or None), or a mapping, are wanted") from None
    if not all(isinstance(name, str) for name, _ in rows):
        raise SerializationError(f"headers={headers!r}: a header's name is a str")
    packed: bytes = msgpack.packb(rows)
    return packed if rows else None


_producers: weakref.WeakSet[Producer] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for producer in list(_producers):
        producer._lock = RLock()
        producer._closed_reason = "it belongs to the process that this one was forked from"
        producer._targets = {}
    _producers.clear()


def _at_exit() -> None:
    """Write what is left, or say how much was lost."""
    import sys

    for producer in list(_producers):
        try:
            producer.close()
        except Exception as error:
            sys.stderr.write(f"streamlog: {producer!r} could not write all its records at exit: {error}\n")


process.after_fork_in_child(_after_fork_in_child)
atexit.register(_at_exit)
