"""`Producer`: send → accumulate → append.

`send` puts a record into its partition's open batch.  A batch is closed when the next record does not fit, when `linger_ms` is over, or
by `flush`, and is appended by the thread that closed it; where the partition's lock is not free at once, or another thread is
appending to it, the batch waits in the partition's queue, which is worked off in order.

One lock guards it all and is never held while appending.  `_busy` says that somebody is inside it: a thread that finds itself there
(a finalizer or a signal handler that calls `send` inside `send`, H18) puts its record aside instead of waiting for itself.  Nobody
waits for the lock itself: who is woken with it, and not with the interpreter, makes each other thread wait at its every record (measured:
four threads took five times as long).  One looks at `_busy` until it is down, and then takes the lock, with no call in between at which
the interpreter might change threads.
"""

from __future__ import annotations

import sys
from _thread import allocate_lock, get_ident
from collections import deque
from operator import index

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import FrameType
    from typing import Any

    from streamlog.config import ProducerConfig
    from streamlog.metrics import ProducerMetrics
    from streamlog.topic import Topic

from streamlog._client import ends
from streamlog._client.batch import GRACE, RECORD_MEMORY, ROW_BYTES, BatchDelivery, Delivery, RecordBatch
from streamlog._client.inputs import check_partition, check_timeout, check_timestamp, pack_headers, to_bytes
from streamlog._client.lane import PATIENCE, Lane
from streamlog._client.meter import ProducerMeter
from streamlog._client.sender import Sender
from streamlog._client.target import Target
from streamlog._client.writer import BatchWriter
from streamlog._format import batch as fmt
from streamlog._os.clock import monotonic, sleep
from streamlog._replica.home import Home
from streamlog._replica.metadata import TopicMetadata
from streamlog.errors import (
    BufferExhaustedError,
    ClosedError,
    InvalidStateError,
    RecordTooLargeError,
    SerializationError,
    StreamlogTimeoutError,
    UnknownTopicOrPartitionError,
    UnsupportedCompressionError,
)
from streamlog.partitioners import HASHES, HashPartitioner, Partitioner, RoundRobinPartitioner
from streamlog.types import RecordMetadata

_OFFSET_BYTES = 4  # of each key, value or header in a batch: its offset in a bytes column
_PAUSE = 2e-5  # seconds between looks whether somebody is inside
_FOREVER = float("inf")


class Producer:
    """Writes records.

    Threads: any number may share a producer; records of one thread keep their order within a partition, and `send` may be entered
    again by its own thread.  Processes: belongs to the one that made it.
    """

    __slots__ = (  # an instance with more than 30 attributes of its own finds them more slowly: 8% of `send`
        "__weakref__", "_abandoned", "_acknowledged_at_once", "_active", "_aside", "_begun", "_block", "_busy", "_closed_batch", "_closed_reason",
        "_delivery", "_forked", "_fsync", "_hash", "_hash_bits", "_home", "_idempotent", "_keyed", "_linger", "_lock", "_memory",
        "_metadata", "_meter", "_now_ms", "_partitioner", "_producer_id", "_rounds", "_sender", "_serialize_key", "_serialize_value",
        "_targets", "_tells", "_unbatched", "_version", "_waiting", "config", "dropped",
    )  # fmt: skip

    def __init__(self, home: Home, config: ProducerConfig) -> None:
        self._home, self.config = home, config
        self._metadata, self._now_ms = home.metadata, home.clock.now_ms
        self._lock = allocate_lock()
        self._busy = False
        self._aside: deque[RecordBatch] = deque()  # what a thread sent from inside its own `send`
        self._closed_reason = ""
        self._forked = False
        self._closed_batch = RecordBatch.__new__(RecordBatch)  # stands where no batch is open; has no room for any record
        self._closed_batch.room, self._closed_batch.stride, self._closed_batch.waiters, self._closed_batch.rows = -1, 1, [], []
        self._abandoned = False  # closed, and nobody waits for what is left
        self._targets: dict[Any, Target] = {}
        self._active: dict[Lane, None] = {}  # lanes with a batch, open or closed
        self._memory = 0  # bytes of their batches; an open one counts as full.  May be too high after an interruption
        self._linger, self._delivery = config.linger_ms / 1000, config.delivery_timeout_ms / 1000
        self._block = min(config.max_block_ms / 1000, 1e6)  # eleven days; Java's largest number is more than a wait can take
        self._acknowledged_at_once = config.acks == 0
        self._fsync = config.durability == "fsync"
        self._unbatched = config.batch_size == 0 or config.linger_ms == 0
        self._idempotent = config.enable_idempotence
        self._producer_id = -1  # given when first needed
        self._hash, self._hash_bits = HASHES[config.key_hash]
        named = config.partitioner if isinstance(config.partitioner, str) else ""
        self._keyed = named in ("sticky", "hash") and not config.partitioner_ignore_keys
        self._partitioner: Partitioner | None = None  # of records that have neither a partition nor a key that says
        if named != "sticky":
            self._partitioner = RoundRobinPartitioner() if named == "round_robin" else HashPartitioner() if named else config.partitioner
        self._tells = hasattr(self._partitioner, "batch_completed") and not named
        self._meter = ProducerMeter()
        self._waiting = 0  # threads that wait for memory
        self._serialize_key, self._serialize_value = config.key_serializer, config.value_serializer
        self._sender = Sender(self)
        self._version = self._metadata.version
        self.dropped = 0  # records that `close` had to give up
        self._rounds = self._begun = 0  # batches begun, and how many there were at the sender's last round
        ends.remember(self)

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
        if type(value) is not bytes or self._serialize_value is not None:
            value = to_bytes("value", value, self._serialize_value)
        if key is None:
            size = _OFFSET_BYTES if value is None else len(value) + _OFFSET_BYTES
            if not self._busy and not self._aside:
                with self._lock:
                    self._busy = True
                    try:
                        batch = target.sticky.batch
                        room = batch.room - size
                        if room >= 0 and batch.stride == 1:
                            rows = batch.rows
                            delivery = Delivery((batch, len(rows)))
                            rows.append(value)
                            batch.room = room
                            return delivery
                    finally:
                        self._busy = False
        else:
            if type(key) is not bytes or self._serialize_key is not None:
                key = to_bytes("key", key, self._serialize_key)
            size = len(key) + (2 * _OFFSET_BYTES if value is None else len(value) + 2 * _OFFSET_BYTES)
            hash_of = self._hash  # (an attribute that is called where it stands is looked for as a method first: 0.05 µs)
            lane = target.lanes[(hash_of(key) & self._hash_bits) % target.count]
            if self._keyed and not self._busy and not self._aside:
                with self._lock:
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
        stride = 1 if key is None else 2
        return self._send_slowly(target, (key, value, None, None), stride, size - ROW_BYTES[stride], None, None)

    def _send_in_full(
        self, topic: Any, value: Any, key: Any, headers: Any, partition: Any, timestamp_ms: Any, on_delivery: Any
    ) -> Delivery:
        """`send` with any of the rarer arguments."""
        target = self._target_of(topic)
        value = to_bytes("value", value, self._serialize_value)
        key = to_bytes("key", key, self._serialize_key)
        packed = pack_headers(headers) if headers is not None else None
        if timestamp_ms is not None:
            check_timestamp(timestamp_ms)
            target.check_timestamps(timestamp_ms, timestamp_ms, self._now_ms())
        if on_delivery is not None and not callable(on_delivery):
            raise SerializationError(f"on_delivery={on_delivery!r} cannot be called")
        if partition is not None:
            partition = check_partition(target, partition)
        size = sum(len(part) for part in (key, value, packed) if part is not None)
        stride = 4 if packed is not None or timestamp_ms is not None else 1 if key is None else 2
        return self._send_slowly(target, (key, value, packed, timestamp_ms), stride, size, partition, on_delivery)

    def _send_slowly(
        self, target: Target, row: tuple[Any, ...], stride: int, size: int, partition: int | None, on_delivery: Any
    ) -> Delivery:
        """`send` where there is no open batch with room, or the record has more than key and value.  `size`: bytes of its parts."""
        self._check_size(target, size)
        partition = self._partition_of(target, row[0], row[1], partition)
        urgent = False
        while True:
            if self._is_entered():
                return self._send_aside(target, row, partition, on_delivery, size)
            if self._aside:  # sent earlier, maybe by this thread: it goes first
                self._route_aside()
            full = None
            while self._busy:
                sleep(_PAUSE)
            with self._lock:
                self._busy = True
                try:
                    lane = target.sticky if partition is None else target.lanes[partition]
                    batch = lane.batch
                    if batch is self._closed_batch and (urgent or self._has_memory(lane, size)):
                        batch = self._begin(lane, target, size + ROW_BYTES[stride], stride)
                    if batch.room >= (needed := batch.cost(size, stride)):
                        if batch.stride < stride:
                            batch.widen(stride)
                        rows = batch.rows
                        delivery = Delivery((batch, len(rows) // batch.stride))
                        rows += row[1:2] if batch.stride == 1 else row[: batch.stride]
                        batch.room -= needed
                        if on_delivery is not None and not self._acknowledged_at_once:
                            batch.callbacks += ((delivery[1], on_delivery),)
                        if self._unbatched:
                            self._end(lane)
                        break
                    if batch is not self._closed_batch:
                        full = lane
                        self._end(lane)
                finally:
                    self._busy = False
            if full is not None:
                full.drain()
            else:
                urgent = self._wait_for_memory(lane, size)
        if self._unbatched:
            lane.drain()
        if self._aside:
            self._route_aside()
        if on_delivery is not None and self._acknowledged_at_once:
            batch.tell(delivery[1], on_delivery)
        return delivery

    def _partition_of(self, target: Target, key: bytes | None, value: bytes | None, partition: int | None) -> int | None:
        """The partition of a record: as given, by its key's hash, or as the partitioner says; None: the sticky one.  Under no lock.

        Raises: UnknownTopicOrPartitionError (the partitioner names none that exists), and what a partitioner raises.
        """
        if partition is not None:
            return partition
        if key is not None and self._keyed:
            return (self._hash(key) & self._hash_bits) % target.count
        if self._partitioner is None:
            return None
        if self.config.partitioner_ignore_keys and isinstance(self._partitioner, HashPartitioner):
            key = None
        chosen = self._partitioner.partition(target.metadata.name, key, value, target.partitions)
        try:
            return check_partition(target, index(chosen))
        except TypeError:
            raise UnknownTopicOrPartitionError(f"{self._partitioner!r} returned {chosen!r}, which is no partition's number") from None

    def _tell_partitioner(self, lane: Lane, batch: RecordBatch) -> None:
        """A batch takes no more records.  Under no lock; what a partitioner raises at that is logged."""
        try:
            self._partitioner.batch_completed(lane.topic, lane.partition, batch.size)  # type: ignore[union-attr]
        except Exception:
            import logging

            logging.getLogger("streamlog").exception("batch_completed of %r raised", self._partitioner)

    def _id(self, *, new: bool = False) -> int:
        """The producer id; a `new` one for a partition where all epochs of it are used up.  Under no lock.  Raises RetriableError."""
        if new:
            return self._home.new_producer_id(self._block)
        if self._producer_id < 0:
            self._producer_id = self._home.new_producer_id(self._block)
        return self._producer_id

    def _has_memory(self, lane: Lane, size: int) -> bool:
        """Whether another batch may be begun; the first always."""
        wanted, limit = max(self.config.batch_size, size) + lane.expected * RECORD_MEMORY, self.config.buffer_memory
        if self._memory + wanted > limit:
            self._memory = sum(batch.memory for lane in list(self._active) for batch in list(lane.queue))
        return not self._memory or self._memory + wanted <= limit

    def _begin(self, lane: Lane, target: Target, size: int, stride: int) -> RecordBatch:
        """Open a batch: the last of its partition's queue as long as it is open.  Under the producer's lock."""
        if self._closed_reason:
            self._check_open()
        room = target.room
        if size > room:
            room = size
        batch = RecordBatch(lane, target, room, stride, self._now_ms())
        batch.memory += lane.expected * RECORD_MEMORY
        batch.deadline = deadline = batch.begun + self._linger
        batch.finished = self._acknowledged_at_once
        if lane.queue:
            lane.queue[-1].open = False  # an interruption may have left one open that is not the lane's any more
        batch.open = True
        self._enqueue(lane, batch)
        lane.batch = batch
        self._begun += 1
        if deadline < self._sender.wake_at and not self._unbatched:
            self._sender.expect(deadline)
        return batch

    def _enqueue(self, lane: Lane, batch: RecordBatch) -> None:
        """A batch joins the queue of its partition.  Under the producer's lock."""
        self._memory += batch.memory
        self._active[lane] = None
        lane.queue.append(batch)
        self._sender.keeper = self  # until all is written: a producer that is dropped loses nothing

    def _end(self, lane: Lane) -> None:
        """Close the open batch, if there is one: it takes no more records, then it may be written.  Under the producer's lock."""
        batch, lane.batch = lane.batch, self._closed_batch
        if lane.queue:
            lane.queue[-1].open = False
        if batch is self._closed_batch:
            return
        lane.expected = records = len(batch.rows) // batch.stride
        size = batch.capacity - batch.room
        memory = size + records * RECORD_MEMORY
        self._memory += memory - batch.memory
        batch.memory = memory
        target = lane.target()
        if target is not None and lane is target.sticky and target.count > 1:
            target.batch_completed(size)

    # ---- a thread inside its own `send` ------------------------------------------------------------------------------------

    def _is_entered(self) -> bool:
        """Whether somebody, and maybe this thread, is inside the lock."""
        return self._busy and self._is_inside()

    def _is_inside(self) -> bool:
        """Whether this very thread may be inside the lock: a finalizer or a signal handler brought it here.

        Looked at only where somebody is inside.  A callback that sends is taken for one too: its record goes aside for no time.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and self._is_ours(frame.f_locals.get("self")):
            frame = frame.f_back  # the call that asks is not inside yet
        while frame is not None:
            if frame.f_code in _LOCKING and frame.f_locals.get("self") is self:
                return True
            frame = frame.f_back
        return False

    def _is_ours(self, caller: object) -> bool:
        return caller is self or getattr(caller, "producer", None) is self

    def _send_aside(self, target: Target, row: tuple[Any, ...], partition: int | None, on_delivery: Any, size: int) -> Delivery:
        """The record waits in a batch of its own until the `send` that this one is inside of is done (H18)."""
        lane = target.sticky if partition is None else target.lanes[partition]
        batch = RecordBatch(lane, target, size, 4, self._now_ms())
        batch.rows, batch.room = list(row), 0
        batch.memory += RECORD_MEMORY
        batch.deadline = batch.begun + self._linger
        if on_delivery is not None:
            batch.callbacks = ((0, on_delivery),)
        self._aside.append(batch)
        self._sender.expect(0.0)
        return Delivery((batch, 0))

    def _route_aside(self) -> None:
        """Queue what was sent from inside `send`."""
        if self._is_entered():
            return
        lanes = []
        while self._busy:
            sleep(_PAUSE)
        with self._lock:
            self._busy = True
            try:
                while self._aside:
                    batch = self._aside[0]
                    lane = batch.lane
                    self._end(lane)
                    if not (lane.queue and lane.queue[-1] is batch):  # it is, where an exception broke this off
                        self._enqueue(lane, batch)
                    self._aside.popleft()
                    lanes.append(lane)
            finally:
                self._busy = False
        for lane in lanes:
            lane.drain()

    # ---- checks --------------------------------------------------------------------------------------------------------------

    def _check_size(self, target: Target, size: int) -> None:
        """Raise RecordTooLargeError, saying which limit; a record that is above the topic's by overhead alone fails when it is written."""
        largest, batch_limit, memory = self.config.max_request_size, target.max_message_bytes, self.config.buffer_memory
        if size > largest:
            raise RecordTooLargeError(f"a record of {size} bytes is above max_request_size={largest} (producer)")
        if size + fmt.BATCH_HEADER_SIZE > batch_limit and target.codec is None:
            name = target.metadata.name
            raise RecordTooLargeError(f"a record of {size} bytes is above max_message_bytes={batch_limit} (topic {name!r})")
        if size + RECORD_MEMORY > memory:
            raise RecordTooLargeError(f"a record of {size} bytes is above buffer_memory={memory} (producer)")

    def _check_open(self) -> None:
        if self._closed_reason:
            raise ClosedError(f"the producer is closed: {self._closed_reason}")
        self._home.check_open()

    def _target_of(self, topic: Any) -> Target:
        found = self._targets.get(topic) if isinstance(topic, str) else None
        return self._target(topic) if found is None or self._metadata.changed() or self._metadata.version != self._version else found

    def _target(self, topic: Any) -> Target:
        """What this producer knows of a topic, looked up when first needed and after the metadata changed."""
        self._check_open()
        name = topic if isinstance(topic, str) else topic.name if hasattr(topic, "_topic_id") else None
        if name is None:
            raise UnknownTopicOrPartitionError(f"{topic!r} is not a topic's name")
        if self._metadata.changed():
            self._home.refresh(self._block)
        metadata = self._metadata.topic(name, writable=True)
        expected = getattr(topic, "_topic_id", metadata.topic_id)
        if expected != metadata.topic_id:
            raise UnknownTopicOrPartitionError(f"topic {name!r} (id {expected.hex()}) was deleted")
        known = self._targets.get(name)
        if known is None or known.metadata is not metadata:
            made = self._make_target(metadata)
            while self._busy:
                sleep(_PAUSE)
            with self._lock:
                self._busy = True
                try:
                    known = self._targets.get(name)
                    if known is None or known.metadata is not metadata:
                        if known is not None and known.metadata.topic_id == made.metadata.topic_id:
                            made.take_over(known)
                        known = self._targets[name] = made
                finally:
                    self._busy = False
        return known

    def _make_target(self, metadata: TopicMetadata) -> Target:
        logs = [self._home.log(metadata, number, self._block) for number in range(metadata.partitions)]
        return Target(self, metadata, logs, self._closed_batch)

    def _follow_metadata(self) -> None:
        """Topics were created, grew or went: look them up again.  Once for each change, before a batch is appended."""
        self._home.refresh(self._block)
        self._version = self._metadata.version
        for name, target in list(self._targets.items()):
            now = self._metadata.topics.get(name)
            if now is None or now.topic_id != target.metadata.topic_id:
                self._targets.pop(name, None)
                for lane in target.lanes:
                    lane.gone = True
            elif now is not target.metadata:
                try:
                    self._target(name)
                except UnsupportedCompressionError:
                    pass  # a codec that is not installed here: what is there goes on as it was

    def partitions_for(self, topic: str) -> list[int]:
        """Partition numbers of a topic."""
        return list(range(self._target(topic).count))

    # ---- appending -----------------------------------------------------------------------------------------------------------

    def _look_around(self) -> None:
        """Before each append: are the files still ours, and the topics still what they were?"""
        home, metadata = self._home, self._metadata
        if monotonic() > home.next_tick:
            home.tick()
        if metadata.version != self._version or metadata.changed():
            self._follow_metadata()

    def _settle(self, lane: Lane, batches: list[RecordBatch]) -> None:
        """Take what is written off the queue, and count it."""
        now = monotonic()
        while self._busy:
            sleep(_PAUSE)
        with self._lock:
            self._busy = True
            try:
                for batch in batches:
                    if not batch.written:
                        break
                    if lane.queue and lane.queue[0] is batch:
                        lane.queue.popleft()
                        self._memory -= batch.memory
                        self._meter.count(lane, batch, now)
                if not lane.queue:
                    self._active.pop(lane, None)
                    if not self._active:
                        self._memory = 0
            finally:
                self._busy = False

    def _wait_for_memory(self, lane: Lane, size: int) -> bool:
        """`buffer_memory` is full: write what can be written, then wait for the sender, at most `max_block_ms`.

        Returns whether the record must be taken as it is: a callback's, on the thread that frees memory after it.
        """
        deadline = monotonic() + self._block
        self._waiting += 1
        try:
            while not self._frees_memory(lane, size):
                if any(active.is_own_turn() for active in list(self._active)):
                    return True
                for active in self._end_open(_FOREVER):
                    if not active.tries:
                        active.drain()
                if self._frees_memory(lane, size):
                    return False
                if monotonic() >= deadline:
                    self._meter.exhausted += 1
                    raise self._exhausted()
                self._check_open()
                sleep(0.002)
            return False
        finally:
            self._waiting -= 1

    def _frees_memory(self, lane: Lane, size: int) -> bool:
        """`_has_memory`, where the lock is not held."""
        while self._busy:
            sleep(_PAUSE)
        with self._lock:
            self._busy = True
            try:
                return self._has_memory(lane, size)
            finally:
                self._busy = False

    def _exhausted(self) -> BufferExhaustedError:
        trouble = next((lane.trouble for lane in list(self._active) if lane.trouble), None)
        cause = f"; the log does not take records: {trouble}" if trouble else ""
        return BufferExhaustedError(f"buffer_memory={self.config.buffer_memory} was full for max_block_ms={self.config.max_block_ms}{cause}")

    def _end_open(self, now: float) -> list[Lane]:
        """Close the open batches whose linger is over; returns the lanes with something to append."""
        while self._busy:
            sleep(_PAUSE)
        with self._lock:
            self._busy = True
            try:
                for lane in list(self._active):
                    if not lane.queue:
                        del self._active[lane]  # an exception kept `_settle` from it
                    elif lane.batch is self._closed_batch or lane.batch.deadline <= now:
                        self._end(lane)
                return list(self._active)
            finally:
                self._busy = False

    def _work(self) -> float:
        """The sender's round: what is due is written.  Returns when there is more to do (monotonic; inf: when called)."""
        if self._aside:
            self._route_aside()
        now = monotonic()
        for lane in self._end_open(now):
            if now >= lane.next_try():
                lane.drain(wait=True)
        while self._busy:
            sleep(_PAUSE)
        with self._lock:
            self._busy = True
            try:
                times = [lane.batch.deadline for lane in self._active if lane.batch is not self._closed_batch]
                closed = [lane for lane in self._active if lane.queue and not lane.queue[0].open and not lane.turn.locked()]
                times += [lane.next_try() or now for lane in closed]
                if not self._active:
                    self._sender.keeper = None
                if not times and self._begun != self._rounds:  # busy, though nothing is open now: one more round spares a call
                    times.append(now + max(self._linger, 0.001))
                self._rounds = self._begun
            finally:
                self._busy = False
        return min(times, default=_FOREVER)

    # ---- flush and close -----------------------------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> None:
        """Return when every record sent before is written, or has failed (its delivery says so).

        Args:   timeout: seconds; None: `delivery_timeout_ms`.
        Raises: StreamlogTimeoutError, ClosedError.
        """
        check_timeout(timeout)
        if self._closed_reason:
            self._check_open()
        if self._aside:
            self._route_aside()
        if self._is_entered():
            return  # the records of the `send` that this call is inside of are not sent before it
        while self._busy:
            sleep(_PAUSE)
        with self._lock:
            self._busy = True
            try:
                lasts = []
                for lane in self._active:
                    self._end(lane)
                    if lane.queue:
                        lasts.append(lane.queue[-1])
            finally:
                self._busy = False
        deadline = -1.0
        for last in lasts:
            last.lane.drain(until=last)
            if not last.written:
                if deadline < 0:
                    deadline = monotonic() + (self._delivery + GRACE if timeout is None else timeout)
                while not last.written:
                    self._write_now(last, deadline)

    def _write_now(self, batch: RecordBatch, deadline: float) -> None:
        """Bring a batch nearer to its end: write it and those before it, or wait while another thread does.

        A batch that others still fill stays open as long as another thread is writing: so waiting threads share one append and one sync.
        """
        lane = batch.lane
        if self._forked:
            self._check_open()
        if lane.is_own_turn():
            raise InvalidStateError(f"{lane.name}: called from inside this thread's own append, by a callback or a signal handler")
        left = deadline - monotonic()
        if left <= 0:
            reason = lane.trouble or "another thread is writing"
            raise StreamlogTimeoutError(f"a record of {lane.name} is not written yet: {reason}")
        if lane.turn.locked() or lane.tries or (self._is_entered()):
            try:
                batch.wait(min(left, PATIENCE))
            except StreamlogTimeoutError:
                return
        if batch.open and not lane.turn.locked():
            while self._busy:
                sleep(_PAUSE)
            with self._lock:
                self._busy = True
                try:
                    if batch.open:
                        self._end(lane)
                finally:
                    self._busy = False
        if not batch.written and not lane.tries:
            lane.drain(wait=True, until=batch)

    def metrics(self) -> ProducerMetrics:
        """What this producer did so far and lately; see `streamlog.metrics`.  Any thread may ask, also after `close`."""
        used = sum(batch.memory for lane in list(self._active) for batch in list(lane.queue))
        return self._meter.metrics(self.config.buffer_memory, used, self._waiting)

    def close(self, timeout: float | None = None) -> None:
        """Write what is left, also what callbacks send meanwhile, then close.

        What cannot be written within `timeout` seconds (None: `delivery_timeout_ms`) fails with ClosedError.
        """
        if self._closed_reason:
            return
        check_timeout(timeout)
        if self._is_entered() or any(lane.is_own_turn() for lane in list(self._active)):
            self._closed_reason, self._targets = "close() was called", {}
            return  # a signal handler inside this thread's own send or append, which goes on after it, or at exit
        try:
            deadline = monotonic() + (self._delivery + GRACE if timeout is None else timeout)
            while not self._home.closed and (self._aside or any(lane.queue for lane in list(self._active))):
                self.flush(max(0.0, deadline - monotonic()))
        finally:
            self._abandon("close() was called")

    def _abandon(self, reason: str) -> None:
        """Take nothing more; fail what is left."""
        self._closed_reason = reason
        self._targets = {}
        self._sender.stop()
        self._abandoned = True
        for lane in list(self._active):
            self._give_up(lane)
        self._sender.keeper = None

    def _give_up(self, lane: Lane) -> None:
        """Fail what is left of a lane, unless another thread has its turn: that one comes here afterwards."""
        held: list[bool] = []
        try:
            held.extend(map(lane.turn.acquire, (False,)))
            if not held[0]:
                return
            lane.holder = get_ident()
            while self._busy:
                sleep(_PAUSE)
            with self._lock:
                self._busy = True
                try:
                    self._end(lane)
                    left = list(lane.queue)
                    self.dropped += sum(batch.records for batch in left)
                    lane.queue.clear()
                    self._active.pop(lane, None)
                finally:
                    self._busy = False
            for batch in left:
                batch.written = True
                batch.finish(ClosedError(f"the producer was closed before the record was written: {self._closed_reason}"))
        finally:
            if True in held:
                lane.holder = 0
                lane.turn.release()

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

        Rows with keys are partitioned by their hash, in one pass; rows without go to one partition, or where the partitioner says; order
        within a partition is kept.  Batches are
        filled up to the topic's `max_message_bytes`.  Returns a delivery for each batch; where memory ran out after the first, the
        deliveries of the rest have failed with BufferExhaustedError.
        Raises: like `send`; nothing is sent then.
        """
        from streamlog._client import bulk

        target = self._target_of(topic)
        if partition is not None:
            partition = check_partition(target, partition)
        chunks = bulk.split(self, target, values, keys, timestamps_ms, headers, partition)
        sent: list[BatchDelivery] = []
        exhausted: BufferExhaustedError | None = None
        for lane, chunk in chunks:
            try:
                if exhausted is None:
                    sent.append(BatchDelivery((self._send_encoded(lane, *chunk), 0)))
                    continue
            except BufferExhaustedError as error:
                if not sent:
                    raise
                exhausted = error
            sent.append(BatchDelivery((self._never_sent(lane, chunk[2], exhausted), 0)))
        return sent

    def _never_sent(self, lane: Lane, count: int, error: BufferExhaustedError) -> RecordBatch:
        batch = RecordBatch(lane, None, 0, 1, self._now_ms())
        batch.count, batch.written = count, True
        batch.finish(error)
        return batch

    def _send_encoded(self, lane: Lane, attributes: int, columns: bytes, count: int, timestamps: list[int] | None) -> RecordBatch:
        """Queue and append a batch that is encoded already."""
        size = len(columns)
        batch = RecordBatch(lane, lane.target(), size, 1, self._now_ms())
        first = last = batch.base_timestamp
        if timestamps is not None:
            first, last = timestamps[0], max(timestamps)
        batch.plain, batch.count, batch.room = (attributes, columns, count, timestamps, first, last), count, 0
        batch.deadline = batch.begun + self._linger
        urgent = False
        while True:
            while self._busy:
                sleep(_PAUSE)
            with self._lock:
                self._busy = True
                try:
                    self._check_open()
                    if urgent or self._has_memory(lane, size):
                        self._end(lane)
                        self._enqueue(lane, batch)
                        break
                finally:
                    self._busy = False
            urgent = self._wait_for_memory(lane, size)
        lane.drain()
        return batch

    def batch(self, topic: str | Topic, *, key: Any = None, partition: int | None = None) -> BatchWriter:
        """A writer for tight loops: `with producer.batch("clicks") as batch: batch.append(value)`.

        One partition, chosen at entry: `partition`, else by `key`, else as the partitioner says.  An exception in the body drops what is not
        yet written.
        """
        target = self._target(topic)
        if partition is not None:
            partition = check_partition(target, partition)
        chosen = self._partition_of(target, to_bytes("key", key, self._serialize_key), None, partition)
        lane = target.sticky if chosen is None else target.lanes[chosen]
        if lane is target.sticky:
            target.switch()
        return BatchWriter(self, lane, target.max_message_bytes)


_LOCKING = frozenset(
    function.__code__
    for function in vars(Producer).values()
    if hasattr(function, "__code__") and "_lock" in function.__code__.co_names
)
"""The code that takes the producer's lock: a thread with one of these below it may be inside."""
