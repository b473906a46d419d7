"""`Producer`: what a user calls.  `send` puts a record into its partition's open batch; the rest is the accumulator's."""

from __future__ import annotations

from _thread import get_ident
from operator import index

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from streamlog._client.groups import Groups
    from streamlog._client.offsets import Noted, Offsets
    from streamlog._client.transaction_context import TransactionContext
    from streamlog._client.transaction_manager import TransactionManager
    from streamlog.config import ProducerConfig
    from streamlog.consumer import Consumer
    from streamlog.metrics import ProducerMetrics
    from streamlog.topic import Topic
    from streamlog.types import GroupMetadata

from streamlog._client import ends
from streamlog._client.accumulator import PAUSE, Accumulator, takes_the_lock
from streamlog._client.batch import GRACE, RECORD_MEMORY, ROW_BYTES, BatchDelivery, Delivery, RecordBatch
from streamlog._client.inputs import check_partition, check_timeout, check_timestamp, pack_headers, to_bytes
from streamlog._client.lane import Lane
from streamlog._client.target import Target
from streamlog._client.writer import BatchWriter
from streamlog._format import batch as fmt
from streamlog._log.log import Log
from streamlog._os import locks
from streamlog._os.clock import monotonic, sleep
from streamlog._replica.home import Home
from streamlog._replica.metadata import TopicMetadata
from streamlog.errors import (
    BufferExhaustedError,
    ClosedError,
    ConfigurationError,
    InvalidTxnStateError,
    RecordTooLargeError,
    SerializationError,
    StreamlogError,
    UnknownTopicOrPartitionError,
    UnsupportedCompressionError,
)
from streamlog.partitioners import HashPartitioner, Partitioner, RoundRobinPartitioner, partition_of
from streamlog.types import RecordMetadata


class Producer(Accumulator):
    """Writes records.

    Threads: any number may share a producer; records of one thread keep their order within a partition, and `send` may be entered
    again by its own thread.  Processes: belongs to the one that made it.
    """

    __slots__ = ("_following", "_keyed", "_partitioner", "_tells")

    def __init__(self, home: Home, config: ProducerConfig, groups: Groups | None = None) -> None:
        """`groups` is there if and only if there is a `transactional_id`."""
        super().__init__(home, config)
        if groups is not None:
            from streamlog._client.transaction_manager import TransactionManager  # here: only transactional producers need it

            assert config.transactional_id is not None
            self._manager = TransactionManager(self, groups.transactions, groups, config.transactional_id)
            self.accept(False)
        named = config.partitioner if isinstance(config.partitioner, str) else ""
        self._keyed = named in ("sticky", "hash") and not config.partitioner_ignore_keys
        self._partitioner: Partitioner | None = None  # of records that have neither a partition nor a key that says
        if named != "sticky":
            self._partitioner = RoundRobinPartitioner() if named == "round_robin" else HashPartitioner() if named else config.partitioner
        self._following: set[int] = set()  # threads that look topics up
        self._tells = hasattr(self._partitioner, "batch_completed") and not named
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
        try:
            if headers is not None or partition is not None or timestamp_ms is not None or on_delivery is not None:
                return self._send_in_full(topic, value, key, headers, partition, timestamp_ms, on_delivery)
            try:
                target = self._targets[topic]
            except (KeyError, TypeError):
                target = self._target(topic)
            if type(value) is not bytes or self._serialize_value is not None:
                value = to_bytes("value", value, self._serialize_value)
            if key is None:
                size = self._row if value is None else len(value) + self._row
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
                size = len(key) + (self._keyed_row if value is None else len(value) + self._keyed_row)
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
            stride, size = (1, size - self._row) if key is None else (2, size - self._keyed_row)
            if (self._metadata.changed() or self._metadata.version != self._version) and not self._is_entered():
                self._follow_metadata()
                target = self._target(target.metadata.name)  # the topic may be another one by now, or none
            return self._send_slowly(target, (key, value, None, None), stride, size, None, None)
        except StreamlogError as error:
            self._refused(error)
            raise

    def _send_in_full(self, topic: Any, value: Any, key: Any, headers: Any, partition: Any, timestamp_ms: Any, on_delivery: Any) -> Delivery:
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

    def _send_slowly(self, target: Target, row: tuple[Any, ...], stride: int, size: int, partition: int | None, on_delivery: Any) -> Delivery:
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
                sleep(PAUSE)
            with self._lock:
                self._busy = True
                try:
                    lane = target.sticky if partition is None else target.lanes[partition]
                    batch = lane.batch
                    if batch is self._closed_batch and (urgent or self._has_memory(lane, size)):
                        batch = self._begin(lane, target, size + ROW_BYTES[stride] + self._charge, stride)
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
            return partition_of(key, target.count, self.config.key_hash)
        if self._partitioner is None:
            return None
        if self.config.partitioner_ignore_keys and isinstance(self._partitioner, HashPartitioner):
            key = None
        free = isinstance(self._partitioner, RoundRobinPartitioner) or (key is None and isinstance(self._partitioner, HashPartitioner))
        chosen = self._partitioner.partition(target.metadata.name, key, value, target.available if free else target.partitions)
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

    def _refused(self, error: BaseException) -> None:
        """A record was not taken: who goes on all the same must not commit the rest (as Kafka's)."""
        if self._manager is not None:
            self._manager.refused(error)

    # ---- checks --------------------------------------------------------------------------------------------------------------

    def _check_size(self, target: Target, size: int) -> None:
        """Raise RecordTooLargeError, saying which limit; a record that is above the topic's by overhead alone fails when it is written."""
        largest, batch_limit, memory = self.config.max_request_size, target.max_message_bytes, self.config.buffer_memory
        if size > largest:
            raise RecordTooLargeError(f"a record of {size} bytes is above max_request_size={largest} (producer)")
        if size + fmt.BATCH_HEADER_SIZE > batch_limit and target.codec is None:
            name = target.metadata.name
            over = fmt.BATCH_HEADER_SIZE
            raise RecordTooLargeError(f"a record of {size} bytes and {over} of its batch are above max_message_bytes={batch_limit} (topic {name!r})")
        if size + RECORD_MEMORY > memory:
            raise RecordTooLargeError(f"a record of {size} bytes, and {RECORD_MEMORY} for its objects, are above buffer_memory={memory} (producer)")

    def _target_of(self, topic: Any) -> Target:
        found = self._targets.get(topic) if isinstance(topic, str) else None
        return self._target(topic) if found is None or self._metadata.changed() or self._metadata.version != self._version else found

    def _target(self, topic: Any) -> Target:
        """What this producer knows of a topic, looked up when first needed and after the metadata changed."""
        self._check_open()
        name = topic if isinstance(topic, str) else topic.name if hasattr(topic, "_topic_id") else None
        if name is None:
            raise UnknownTopicOrPartitionError(f"{topic!r} is not a topic's name")
        if self._is_nested():
            return self._look_up(name, topic)
        try:
            self._following.add(get_ident())
            if self._metadata.changed():
                self._follow()
            return self._look_up(name, topic)
        finally:
            self._following.discard(get_ident())

    def _look_up(self, name: str, topic: Any) -> Target:
        metadata = self._metadata.topic(name, writable=True)
        expected = getattr(topic, "_topic_id", metadata.topic_id)
        if expected != metadata.topic_id:
            raise UnknownTopicOrPartitionError(f"topic {name!r} (id {expected.hex()}) was deleted")
        known = self._targets.get(name)
        if known is None or known.metadata is not metadata:
            made = self._make_target(metadata)
            known = self._inside(self._install, made)
        return known

    def _install(self, made: Target) -> Target:
        """From now on this is what is known of its topic, unless another thread was faster.  Under the producer's lock."""
        name, metadata = made.metadata.name, made.metadata
        known = self._known_targets.get(name)
        if known is not None and known.metadata is metadata:
            return known
        if known is not None and known.metadata.topic_id == metadata.topic_id:
            made.take_over(known)
        made.restrict(self._metadata)
        self._known_targets[name] = made
        return made

    def _make_target(self, metadata: TopicMetadata) -> Target:
        logs: list[Log] = [self._home.log(metadata, number, self._block) for number in range(metadata.partitions)]
        return Target(self, metadata, logs, self._closed_batch)

    def _follow_metadata(self) -> None:
        """Topics were created, grew or went: look them up again.  Once for each change, before a batch is appended."""
        if self._is_nested():
            return
        try:
            self._following.add(get_ident())
            self._follow()
        finally:
            self._following.discard(get_ident())

    def _is_nested(self) -> bool:
        """Whether a signal handler runs this inside a look-up, or a lock, of its thread: it goes by what is known.

        If it began to look up again, one signal after the other could go ever deeper.
        """
        return get_ident() in self._following or locks.is_interrupted()

    def _follow(self) -> None:
        self._home.refresh(self._block)
        self._version = self._metadata.version
        for name, target in list(self._known_targets.items()):
            now = self._metadata.topics.get(name)
            if now is None or now.topic_id != target.metadata.topic_id:
                self._known_targets.pop(name, None)
                for lane in target.lanes:
                    lane.gone = True
            elif now is not target.metadata:
                try:
                    self._inside(self._install, self._make_target(now))
                except UnsupportedCompressionError:
                    pass  # a codec that is not installed here: what is there goes on as it was
            elif self._gives_way:
                self._inside(target.restrict, self._metadata)

    def partitions_for(self, topic: str) -> list[int]:
        """Partition numbers of a topic."""
        if self._closed_reason:
            self._check_open()
        self._home.refresh(self._block)
        return list(range(self._metadata.topic(topic, writable=True).partitions))

    # ---- appending -----------------------------------------------------------------------------------------------------------

    def _look_around(self) -> None:
        """Before each append: are the files still ours, and the topics still what they were?"""
        home, metadata = self._home, self._metadata
        if monotonic() > home.next_tick:
            home.tick()
        if metadata.version != self._version or metadata.changed():
            self._follow_metadata()

    # ---- transactions --------------------------------------------------------------------------------------------------------

    def init_transactions(self, timeout: float | None = None) -> None:
        """Take over the `transactional_id`: what its former producer left open is ended, and that one is fenced.  Once, before all others.

        Args:   timeout: seconds; None: `max_block_ms`.
        Raises: InvalidTxnStateError, StreamlogTimeoutError (call it again), ClosedError.
        """
        self._transactional("init_transactions").init(self._seconds(timeout))

    def begin_transaction(self) -> None:
        """Begin a transaction: what is sent from now on counts when it is committed, all or none.  Raises InvalidTxnStateError."""
        self._transactional("begin_transaction").begin()

    def commit_transaction(self, timeout: float | None = None) -> None:
        """Write what was sent, and make it count.  When this returns, readers of committed records see it.

        Durability: as configured; under "os" a power cut may split a transaction.
        Args:   timeout: seconds; None: `max_block_ms`.
        Raises: the error of a record that was not written (`abort_transaction` is all that is left then), ProducerFencedError (the producer
                is done for), InvalidTxnStateError; StreamlogTimeoutError, StorageFullError, DiskFailedError: nobody knows yet whether it is
                committed, and calling it again tells.
        """
        self._transactional("commit_transaction").commit(self._seconds(timeout))

    def abort_transaction(self, timeout: float | None = None) -> None:
        """End the transaction; nothing of it counts, and what is not written yet is dropped (its deliveries: TransactionAbortedError).

        A consumer does not go back by itself: call its `seek_to_committed()`.
        Raises: ProducerFencedError, InvalidTxnStateError; StreamlogTimeoutError, StorageFullError, DiskFailedError (call it again).
        """
        self._transactional("abort_transaction").abort(self._seconds(timeout))

    def transaction(self) -> TransactionContext:
        """`with producer.transaction():` begins one, commits it at the end of the block, and aborts it where an exception ends the block.

        The first one calls `init_transactions` where nobody has.
        """
        from streamlog._client.transaction_context import TransactionContext

        return TransactionContext(self, self._transactional("transaction"))

    def send_offsets(
        self, offsets: Consumer | Mapping[Any, Any], group_metadata: GroupMetadata | None = None, *, timeout: float | None = None
    ) -> None:
        """Commit a group's offsets with the transaction: they count if and when it does.

        Args:   offsets: a consumer, for all that it has returned (the record that its `for` loop has in hand included: what it leads to is in
                the transaction); or `{partition: offset or OffsetAndMetadata}` with the `group_metadata()` of the consumer.
        Raises: CommitFailedError and what derives from it, FencedInstanceIdError (the partitions have moved), ConfigurationError (the
                consumer commits by itself, say), …: whatever it is, only `abort_transaction` is left then.  InvalidTxnStateError,
                ProducerFencedError.
        """
        manager, seconds = self._transactional("send_offsets"), self._seconds(timeout)
        manager.check_sending("send_offsets")
        try:
            sent = self._offsets_to_send(offsets, group_metadata, seconds)
        except StreamlogError as error:
            manager.fail(error)  # who goes on all the same must not commit the rest
            raise
        if sent[0]:
            manager.send_offsets(*sent, seconds)

    def _offsets_to_send(self, offsets: Any, sender: GroupMetadata | None, seconds: float) -> tuple[Offsets, Noted, GroupMetadata]:
        from streamlog._client.inputs import checked_offsets, checked_sender
        from streamlog._client.offsets import by_topic_id

        of_consumer = hasattr(offsets, "_for_transaction")
        if of_consumer == (sender is not None):
            raise ConfigurationError("send_offsets takes a consumer alone, or offsets and the consumer's group_metadata()")
        if of_consumer:
            found: tuple[Offsets, Noted, GroupMetadata] = offsets._for_transaction()
            return found
        sender = checked_sender(sender)
        self._home.refresh(seconds)
        checked = checked_offsets(offsets, self._metadata)
        return by_topic_id(checked, self._metadata, self._home.clock.agreed_ms()), dict.fromkeys(checked, sender.generation), sender

    def _transactional(self, what: str) -> TransactionManager:
        if self._closed_reason:
            raise ClosedError(f"the producer is closed: {self._closed_reason}")
        if self._manager is None:
            raise InvalidTxnStateError(f"{what} is not possible: the producer has no transactional_id")
        self._home.check_open()
        return self._manager

    def _seconds(self, timeout: float | None) -> float:
        check_timeout(timeout)
        return self._block if timeout is None else timeout

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
        deadline = -1.0
        for last in self._inside(self._end_all):
            last.lane.drain(until=last)
            if not last.written:
                if deadline < 0:
                    deadline = monotonic() + (self._delivery + GRACE if timeout is None else timeout)
                while not last.written:
                    self._write_now(last, deadline)

    def metrics(self) -> ProducerMetrics:
        """What this producer did so far and lately; see `streamlog.metrics`.  Any thread may ask, also after `close`."""
        active = list(self._active)
        used = sum(batch.memory for lane in active for batch in list(lane.queue))
        return self._meter.metrics(self.config.buffer_memory, used, self._waiting, sum(lane.retries for lane in active))

    @property
    def lost(self) -> int:
        """Records that were not written and are not tried again: they failed, or `close` gave them up.  A transaction's do not count."""
        return 0 if self._manager is not None else self._meter.errors + self.dropped

    def close(self, timeout: float | None = None) -> None:
        """Write what is left, also what callbacks send meanwhile, then close.  From now on `send` of other threads raises ClosedError.

        What cannot be written within `timeout` seconds (None: `delivery_timeout_ms`) fails with ClosedError.
        """
        if self._closed_reason:
            return
        check_timeout(timeout)
        if self._is_entered() or locks.is_interrupted() or any(lane.is_own_turn() for lane in list(self._active)):
            self._closed_reason, self._targets = "close() was called", {}
            return  # a signal handler inside this thread's own send, append or lock: the sender writes the rest after it, or who ends the process
        try:
            deadline = monotonic() + (self._delivery + GRACE if timeout is None else timeout)
            self._closing, self._targets = True, {}
            if self._manager is not None and not self._home.closed:
                self._manager.close(max(0.0, deadline - monotonic()))
            while not self._home.closed and (self._aside or any(lane.queue for lane in list(self._active))):
                self.flush(max(0.0, deadline - monotonic()))
            if self._gives_way and not self._acks_all and not self._home.closed:
                self._home.fetcher.pay(max(0.0, deadline - monotonic()))  # followers copy what is in leaders' logs only (H42)
        finally:
            self._abandon("close() was called")

    def end_with_process(self) -> None:
        """The process ends: write what is left, and from now on each record at once, since no thread comes after.  A transaction is aborted."""
        if self._manager is not None:
            self.close()
        elif not self._closed_reason:
            self._unbatched = True
            try:
                self.flush()
            except BaseException:
                self._abandon("its process ended")
                raise
            if self._gives_way and not self._acks_all and not self._home.closed:
                self._home.fetcher.pay(self._delivery)

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
        within a partition is kept.  Batches are filled up to the topic's `max_message_bytes`.  Returns a delivery for each batch; where
        memory ran out after the first, the deliveries of the rest have failed with BufferExhaustedError.
        Raises: like `send`; nothing is sent then.
        """
        try:
            return self._send_batch(topic, values, keys, timestamps_ms, headers, partition)
        except StreamlogError as error:
            self._refused(error)
            raise

    def _send_batch(
        self, topic: Any, values: Any, keys: Any, timestamps_ms: Any, headers: Sequence[Any] | None, partition: int | None
    ) -> list[BatchDelivery]:
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
        self._refused(error)
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
        while not self._inside(self._take_encoded, lane, batch, urgent):
            urgent = self._wait_for_memory(lane, size)
        lane.drain()
        return batch

    def _take_encoded(self, lane: Lane, batch: RecordBatch, urgent: bool) -> bool:
        """Queue it where there is memory.  Under the producer's lock."""
        self._check_open()
        if not (urgent or self._has_memory(lane, batch.size)):
            return False
        self._end(lane)
        self._enqueue(lane, batch)
        return True

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


takes_the_lock(Producer)
