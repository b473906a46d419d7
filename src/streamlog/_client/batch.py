"""A producer's batch and the handles of its records."""

from __future__ import annotations

from _thread import allocate_lock, get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from streamlog._client.lane import Lane
    from streamlog._client.target import Target

from streamlog._client.inputs import check_timeout
from streamlog._format import batch as fmt
from streamlog._format.compression import LARGEST
from streamlog._log.pending import Pending
from streamlog._os.clock import monotonic
from streamlog.errors import RecordTooLargeError, StreamlogTimeoutError
from streamlog.types import BatchMetadata, RecordMetadata

RECORD_MEMORY = 150  # bytes that a record takes beside key and value, about: what Python needs for the objects
ROW_BYTES = {1: 4, 2: 8, 4: 24}
"""By stride: what a record takes in a batch beside its parts: offsets of the columns, and with all of them a timestamp and bits."""
GRACE = 2.0  # seconds after `delivery_timeout_ms` in which the sender fails what was not delivered, with its reason


Plain = tuple[int, bytes, int, "list[int] | None", int, int]
"""A batch before compression: attributes, columns, count, timestamps where they differ, first or common and largest timestamp."""


telling: set[int] = set()
"""Threads that call `on_delivery`: they may send while their producer closes."""


class RecordBatch(Pending):
    """Records of one partition on their way.

    `rows` is one flat list, so that a record enters by one atomic operation whatever interrupts `send`: values (stride 1), keys and
    values (2), or keys, values, headers and timestamps (4).  Changed under the producer's lock until closed, then only by who appends it.
    """

    deadline = 0.0  # of the linger; like `begun` in monotonic seconds
    room: int
    charge = 0  # bytes that each record takes of `room` beside its own: where memory is so small that they have to be counted
    open = False  # takes records; the last of its queue then
    encoded = False
    plain: Plain | None = None
    limit = 2**31 - 1  # of the topic, for the batch as it is written
    stored = 0  # bytes of columns that were written
    timestamps: list[int] | None = None
    callbacks: tuple[tuple[int, Callable[[RecordMetadata | None, BaseException | None], object]], ...] = ()
    error: BaseException | None = None
    acknowledged = False  # by acks=0: whatever becomes of it, its deliveries stand
    finished = False  # nothing more is known later; stored last
    whole = False  # stands for all batches of a BatchWriter; is in no queue
    transaction = 0  # number of its producer's transaction
    written = False  # nothing is left to write; under acks=0 that comes later than `finished`

    def __init__(self, lane: Lane, target: Target | None, room: int, stride: int, timestamp_ms: int) -> None:
        """`target` says how it is encoded: None where it is encoded already, or will never be."""
        self.lane, self.target, self.room, self.capacity, self.memory, self.stride = lane, target, room, room, room, stride
        self.rows: list[Any] = []
        self.base_timestamp = timestamp_ms
        self.begun = monotonic()
        self.waiters: list[Callable[[], object]] = []

    def admit(self, fences: int) -> None:
        """See `Pending.admit`."""
        self.lane.admit(fences)

    @property
    def size(self) -> int:
        """Bytes of keys and values, about."""
        return self.capacity - self.room

    @property
    def records(self) -> int:
        """How many records there are so far."""
        return self.count or len(self.rows) // self.stride

    def cost(self, size: int, stride: int) -> int:
        """Room that a record of `size` bytes with columns of `stride` takes, what widening adds to the others included."""
        mine = self.stride
        size += self.charge
        if stride <= mine:
            return size + ROW_BYTES[mine]
        return size + ROW_BYTES[stride] + len(self.rows) // mine * (ROW_BYTES[stride] - ROW_BYTES[mine])

    def widen(self, stride: int) -> None:
        """Make room in each row for keys (2) or for keys, headers and timestamps (4)."""
        rows, old = self.rows, self.stride
        wide: list[Any] = [None] * (len(rows) // old * stride)
        if old == 1:
            wide[1::stride] = rows
        else:
            wide[0::stride], wide[1::stride] = rows[0::2], rows[1::2]
        self.rows, self.stride = wide, stride

    def encode(self) -> None:
        """Make the columns, compressed where that is asked for and saves something.  Done again from `plain` where it was broken off.

        Raises: RecordTooLargeError (above 2 GiB, or 64 MiB where it is compressed), UnsupportedCompressionError.
        """
        try:
            self._encode()
        except OverflowError as error:
            raise RecordTooLargeError(f"{self.size} bytes in a batch of {self.lane.name}: {error}") from None

    def _encode(self) -> None:
        target = self.target
        append_time = target is not None and target.append_time
        if self.stride == 1 and self.plain is None and target is not None and target.is_plain:  # the usual case costs 0.5 µs less like this
            self.count, self.limit, self.max_timestamp = len(self.rows), target.max_message_bytes, self.base_timestamp
            self.attributes, self.columns = fmt.encode_rows(self.rows)
            self.encoded = True
            self.rows, self.target = [], None
            return
        if self.plain is None:
            self.plain = self._encode_rows(append_time)
        attributes, columns, self.count, self.timestamps, self.base_timestamp, self.max_timestamp = self.plain
        uncompressed = -1
        if target is not None:
            self.limit = target.max_message_bytes
            if append_time:
                attributes |= fmt.LOG_APPEND_TIME
            if target.codec is not None:
                if len(columns) > LARGEST:
                    raise RecordTooLargeError(f"{len(columns)} bytes: a batch that is compressed holds at most {LARGEST}")
                compressed = target.codec.compress(columns, target.level)
                if len(compressed) < len(columns):
                    attributes, uncompressed, columns = attributes | target.codec.id, len(columns), compressed
        self.attributes, self.uncompressed, self.columns = attributes, uncompressed, columns
        self.encoded = True
        self.rows, self.plain, self.target = [], None, None

    def _encode_rows(self, append_time: bool) -> Plain:
        rows, stride = self.rows, self.stride
        count, first = len(rows) // stride, self.base_timestamp
        if stride == 1:
            return *fmt.encode_rows(rows), count, None, first, first
        times = None
        last = first
        if stride == 4 and not append_time:
            times = [first if time is None else time for time in rows[3::4]]
            first, last = times[0], max(times)
            if times.count(first) == count:
                times = None  # one fits all
        headers = rows[2::4] if stride == 4 else None
        return *fmt.encode_rows(rows[1::stride], rows[0::stride], headers, times), count, times, first, last

    # ---- ending ------------------------------------------------------------------------------------------------------------

    def finish(self, error: BaseException | None) -> None:
        """The records are written, or have failed: waiters wake, callbacks run.  Called by who ends the batch, outside locks."""
        first = not self.finished  # under acks=0 it was finished when it was begun
        if first:
            self.error = error
            self.finished = True
        self._call_waiters()
        if first and self.callbacks:
            self.tell_all()

    def tell_all(self) -> None:
        """Call each record's `on_delivery`, in order.  Ctrl-C, or `sys.exit` in one, comes after the others."""
        broken_off: BaseException | None = None
        me = get_ident()
        outermost = me not in telling
        try:
            telling.add(me)
            for number, callback in self.callbacks:
                try:
                    self.tell(number, callback)
                except BaseException as error:
                    broken_off = error
        finally:
            if outermost:
                telling.discard(me)
        if broken_off is not None:
            raise broken_off

    def tell(self, number: int, callback: Callable[[RecordMetadata | None, BaseException | None], object]) -> None:
        """Call a record's `on_delivery`; what it raises is logged."""
        try:
            callback(None, self.error) if self.error is not None else callback(self.metadata(number), None)
        except Exception:
            import logging

            logging.getLogger("streamlog").exception("on_delivery of a record of %s raised", self.lane.name)

    def call_when_finished(self, callback: Callable[[], object]) -> None:
        """Call `callback` once, now or later, by any thread."""
        self.waiters.append(callback)
        if self.written:
            self._call_waiters()

    def _call_waiters(self) -> None:
        """Call everybody who waits.  What one of them raises is its own: the others, and who writes the batch, do not hear of it."""
        while self.waiters:
            try:
                waiter = self.waiters.pop()
            except IndexError:
                break  # another thread was faster
            try:
                waiter()
            except Exception:
                import logging

                logging.getLogger("streamlog").exception("who waits for a record of %s raised", self.lane.name)

    def no_longer_wait(self, callback: Callable[[], object]) -> None:
        """Do not call `callback` any more, if it has not been called."""
        try:
            self.waiters.remove(callback)
        except ValueError:
            pass

    def wait(self, timeout: float) -> None:
        """Return when finished, or when it is the caller's turn to go on with the queue.  Raises StreamlogTimeoutError."""
        gate = allocate_lock()
        gate.acquire()
        self.call_when_finished(gate.release)
        if not gate.acquire(True, max(0.0, min(timeout, 1e6))) and not self.written:
            self.no_longer_wait(gate.release)
            raise StreamlogTimeoutError(f"waited for a record of {self.lane.name}: {self.lane.trouble or 'not written yet'}")

    def join(self, timeout: float | None) -> None:
        """Return when finished.  Raises StreamlogTimeoutError."""
        check_timeout(timeout)
        if self.finished:
            return
        producer = self.lane.producer
        seconds = producer.config.delivery_timeout_ms / 1000 + GRACE if timeout is None else min(timeout, 1e9)
        deadline = monotonic() + seconds
        while not self.finished:
            if self.whole:
                if producer._forked:
                    producer._check_open()
                self.wait(deadline - monotonic())
            else:
                producer._write_now(self, deadline)

    def metadata(self, number: int) -> RecordMetadata:
        """Where record `number` was written.  Raises what the batch failed with."""
        if self.error is not None and not self.acknowledged:
            raise self.error
        timestamp = self.base_timestamp if self.timestamps is None else self.timestamps[number]
        if self.stride == 4 and not self.encoded:  # under acks=0 this is asked before it is
            timestamp = self.rows[4 * number + 3] or timestamp
        offset = -1 if self.base_offset < 0 or self.lane.producer.config.acks == 0 else self.base_offset + number
        return RecordMetadata(self.lane.topic, self.lane.partition, offset, timestamp)

    def state(self) -> str:
        """For messages."""
        return f"failed: {self.error}" if self.error else "written" if self.finished else "on its way"


class Delivery(tuple[RecordBatch, int]):
    """What became of a record.  Light: a batch and a number, made at C level (0.08 µs)."""

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
        return None if self[0].acknowledged else self[0].error

    def __await__(self) -> Generator[Any, None, Any]:
        if not self[0].finished:
            import asyncio

            loop = asyncio.get_running_loop()
            future = loop.create_future()

            def resolve() -> None:
                if not future.done():
                    future.set_result(None)

            def wake() -> None:
                try:
                    loop.call_soon_threadsafe(resolve)
                except RuntimeError:
                    pass  # the loop was closed: nobody waits in it any more

            self[0].call_when_finished(wake)
            try:
                yield from future
            finally:
                self[0].no_longer_wait(wake)
        return self.result()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self[0].lane.name}: {self[0].state()}>"


class BatchDelivery(Delivery):
    """What became of a batch that `send_batch` or `Producer.batch` wrote."""

    __slots__ = ()

    def result(self, timeout: float | None = None) -> BatchMetadata:  # type: ignore[override]
        """Where the batch was written: its base offset and count.  Raises like `Delivery.result`."""
        batch = self[0]
        batch.join(timeout)
        batch.metadata(0)
        return BatchMetadata(batch.lane.topic, batch.lane.partition, batch.base_offset, batch.count)
