"""`BatchWriter`: values into one partition, by a call at C level."""

from __future__ import annotations

from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from streamlog._client.lane import Lane
    from streamlog.producer import Producer

from streamlog._client.batch import BatchDelivery, RecordBatch
from streamlog._format import batch as fmt
from streamlog.errors import ClosedError, InvalidTxnStateError, RecordTooLargeError, SerializationError

_CHUNK = 64 << 10  # bytes written at a time
_END = object()
_COLUMN_ROOM = fmt.BATCH_HEADER_SIZE + 32  # header, column head and padding


class BatchWriter:
    """Appends values to one partition; `append` is the `send` of a generator, so a call at C level (H21).

    Values are written 64 KiB at a time and at the end of the `with` block; `delivery` is of all of them.  Belongs to one thread.
    """

    __slots__ = (
        "__weakref__", "_collector", "_counting", "_error", "_lane", "_left", "_limit", "_producer", "_whole", "append", "transaction",
    )  # fmt: skip

    def __init__(self, producer: Producer, lane: Lane, limit: int) -> None:
        """`limit`: the topic's `max_message_bytes`."""
        self._producer, self._lane, self._limit = producer, lane, limit
        self._whole = RecordBatch(lane, None, 0, 1, producer._now_ms())
        self._whole.whole = True
        manager = producer._manager
        self.transaction = 0 if manager is None else manager.number
        if manager is not None:
            manager.writers.add(self)
        self._error: Exception | None = None  # what ended the collecting early
        self._counting = allocate_lock()
        self._left = 1  # batches on their way, and one for the writer itself
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
        manager = self._producer._manager
        if manager is not None:
            manager.writers.discard(self)
        if kind is None and self._error is None:
            try:
                self._collector.send(_END)  # type: ignore[arg-type]
            except StopIteration:
                pass
            error = self._error
        self._collector.close()
        self.append = self._refuse
        failed = error or self._error
        if failed is not None and manager is not None and manager.number == self.transaction:
            manager.refused(failed)  # what was dropped was part of the transaction
        self._end_one(failed)

    def _refuse(self, value: bytes) -> None:  # noqa: ARG002  (stands in for `append`)
        raise ClosedError("the batch is closed, or a value was refused before")

    def _collect(self) -> Generator[None, bytes, None]:
        values: list[bytes] = []
        append, size = values.append, 0
        try:
            while True:
                value = yield
                if value.__class__ is not bytes:
                    break
                append(value)
                size += len(value) + 4  # its offset: empty values fill a batch too
                if size >= _CHUNK:
                    self._write(values, size - 4 * len(values))
                    values.clear()
                    size = 0
            if value is not _END:
                raise SerializationError(f"a value of type {type(value).__name__} is not bytes; a batch takes nothing else")
            if values:
                self._write(values, size - 4 * len(values))
        except Exception as error:
            self._error = error
            self.append = self._refuse
            raise

    def _write(self, values: list[bytes], size: int) -> None:
        limit, largest = self._limit, self._producer.config.max_request_size
        if size + 4 * len(values) + _COLUMN_ROOM > min(limit, largest):
            if len(values) == 1:
                raise RecordTooLargeError(f"a value of {size} bytes is above max_message_bytes={limit} or max_request_size={largest}")
            half = len(values) // 2
            self._write(values[:half], sum(map(len, values[:half])))
            self._write(values[half:], sum(map(len, values[half:])))
            return
        manager = self._producer._manager
        if manager is not None and manager.number != self.transaction:
            raise InvalidTxnStateError("the transaction that this batch was begun in has ended")
        attributes, columns = fmt.encode_rows(values)
        self._left += 1
        self._whole.count += len(values)
        batch = self._producer._send_encoded(self._lane, attributes, columns, len(values), None)
        batch.call_when_finished(lambda: self._written(batch))

    def _written(self, batch: RecordBatch) -> None:
        whole = self._whole
        if batch.error is None and (whole.base_offset < 0 or batch.base_offset < whole.base_offset):
            whole.base_offset = batch.base_offset
        self._end_one(batch.error)

    def _end_one(self, error: BaseException | None) -> None:
        with self._counting:
            self._left -= 1
            self._whole.error = self._whole.error or error
            last = self._left == 0
        if last:
            self._whole.written = True
            self._whole.finish(self._whole.error)
