"""A producer's batch and the handles of its records."""

from __future__ import annotations

from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from streamlog._client.lane import Lane

from streamlog._client.inputs import check_timeout
from streamlog._format import batch as fmt
from streamlog._log.partition import Pending
from streamlog._os.clock import monotonic
from streamlog.errors import StreamlogTimeoutError
from streamlog.types import BatchMetadata, RecordMetadata

GRACE = 2.0  # seconds after `delivery_timeout_ms` in which the sender fails what was not delivered, with its reason


class RecordBatch(Pending):
    """Records of one partition on their way.

    `rows` is one flat list, so that a record enters by one atomic operation whatever interrupts `send`: values (stride 1), keys and
    values (2), or keys, values, headers and timestamps (4).  Changed under the producer's lock until closed, then only by who appends it.
    """

    deadline = 0.0
    timestamps: list[int] | None = None
    callbacks: tuple[tuple[int, Callable[[RecordMetadata | None, BaseException | None], object]], ...] = ()
    error: BaseException | None = None
    finished = False  # nothing more is known later; stored last
    whole = False  # stands for all batches of a BatchWriter; is in no queue
    written = False  # nothing is left to write; under acks=0 that comes later than `finished`

    def __init__(self, lane: Lane, room: int, stride: int, timestamp_ms: int) -> None:
        self.lane, self.room, self.memory, self.stride = lane, room, room, stride
        self.rows: list[Any] = []
        self.base_timestamp = timestamp_ms
        self.waiters: list[Callable[[], object]] = []

    @property
    def size(self) -> int:
        """Bytes of keys and values, about."""
        return self.memory - self.room

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
        """Make the columns; the rows are let go."""
        rows, stride = self.rows, self.stride
        self.max_timestamp = self.base_timestamp
        if stride == 1:
            self.count = len(rows)
            self.attributes, self.columns = fmt.encode_rows(rows)
        else:
            self.count = len(rows) // stride
            headers = rows[2::4] if stride == 4 else None
            if stride == 4:
                self._take_timestamps(rows[3::4])
            self.attributes, self.columns = fmt.encode_rows(rows[1::stride], rows[0::stride], headers, self.timestamps)
        self.rows = []

    def _take_timestamps(self, given: list[int | None]) -> None:
        """Timestamps where records have their own; the batch's where one fits all."""
        times = [self.base_timestamp if time is None else time for time in given]
        self.base_timestamp, self.max_timestamp = times[0], max(times)
        if times.count(times[0]) != len(times):
            self.timestamps = times

    # ---- ending ------------------------------------------------------------------------------------------------------------

    def finish(self, error: BaseException | None) -> None:
        """The records are written, or have failed: waiters wake, callbacks run.  Called by who ends the batch, outside locks."""
        first = not self.finished  # under acks=0 it was finished when it was begun
        if first:
            self.error = error
            self.finished = True
        while self.waiters:
            try:
                self.waiters.pop()()
            except IndexError:
                break  # another thread was faster
        for number, callback in self.callbacks if first else ():
            self.tell(number, callback)

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
            while self.waiters:
                try:
                    self.waiters.pop()()
                except IndexError:
                    break

    def wait(self, timeout: float) -> None:
        """Return when finished, or when it is the caller's turn to go on with the queue.  Raises StreamlogTimeoutError."""
        gate = allocate_lock()
        gate.acquire()
        self.call_when_finished(gate.release)
        if not gate.acquire(True, max(0.0, min(timeout, 1e6))) and not self.written:
            if gate.release in self.waiters:
                self.waiters.remove(gate.release)
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
                self.wait(deadline - monotonic())
            else:
                producer._write_now(self, deadline)

    def metadata(self, number: int) -> RecordMetadata:
        """Where record `number` was written.  Raises what the batch failed with."""
        if self.error is not None:
            raise self.error
        timestamp = self.base_timestamp if self.timestamps is None else self.timestamps[number]
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
        return self[0].error

    def __await__(self) -> Generator[Any, None, Any]:
        if not self[0].finished:
            import asyncio

            loop = asyncio.get_running_loop()
            future = loop.create_future()

            def resolve() -> None:
                if not future.done():
                    future.set_result(None)

            self[0].call_when_finished(lambda: loop.call_soon_threadsafe(resolve))
            yield from future
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
