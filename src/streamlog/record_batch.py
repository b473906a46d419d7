"""`RecordBatch`: the columns of a batch as a consumer returns them, in place."""

from __future__ import annotations

from functools import partial
from itertools import repeat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    import numpy
    import numpy.typing

from streamlog._format import batch as fmt
from streamlog._format.batch import Batch
from streamlog.errors import CorruptRecordError, SerializationError
from streamlog.types import Record, TimestampType

_record = partial(tuple.__new__, Record)  # a named tuple made at C level: 0.12 µs with the zip around it
_TYPES = (TimestampType.CREATE_TIME, TimestampType.LOG_APPEND_TIME)


class BytesColumn:
    """A column of bytes or nulls: views onto the mapped file, valid as long as they are held."""

    __slots__ = ("_column", "_count", "_skip")

    def __init__(self, column: fmt.BytesColumn | None, count: int, skip: int) -> None:
        self._column, self._count, self._skip = column, count, skip

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> bytes | None:
        if not -self._count <= number < self._count:
            raise IndexError(f"{number} of a column of {self._count}")
        column, at = self._column, number % self._count + self._skip
        if column is None or (column.bitmap is not None and not column.bitmap[at >> 3] >> (at & 7) & 1):
            return None
        if column.offsets is None:
            return bytes(column.data[at * column.width : (at + 1) * column.width])
        return bytes(column.data[column.offsets[at] : column.offsets[at + 1]])

    def __iter__(self) -> Iterator[bytes | None]:
        return iter(self.to_list())

    def to_list(self) -> list[bytes | None]:
        """The values, None where null (copies)."""
        if self._column is None:
            return [None] * self._count
        values = self._column.to_list()
        return values[self._skip :] if self._skip else values

    def to_numpy(self, dtype: Any = None) -> numpy.typing.NDArray[Any]:
        """An array of the values.

        With a dtype, or where all values have one width: a view of the bytes as they lie, shape (count,), or (count, width / itemsize)
        where a value holds several items; without a dtype raw bytes (`V<width>`).  Else an array of objects.
        Raises: SerializationError where values of unequal width, or nulls, are to be of one dtype.
        """
        import numpy

        column = self._column
        if column is None or column.offsets is not None or column.width == 0:
            if dtype is not None:
                raise SerializationError(f"values of unequal width, or nulls, are no array of {dtype}; use to_list()")
            return numpy.array(self.to_list(), dtype=object)
        wanted = numpy.dtype(f"V{column.width}" if dtype is None else dtype)
        if column.width % wanted.itemsize:
            raise SerializationError(f"values of {column.width} bytes are no array of {wanted} ({wanted.itemsize} bytes)")
        array = numpy.frombuffer(column.data, dtype=wanted)
        items = column.width // wanted.itemsize
        shaped = array if items == 1 else array.reshape(-1, items)
        return shaped[self._skip :]


class RecordBatch:
    """A batch of one partition, column by column.

    Valid as long as it is held, whatever happens to the topic; never changes.  Safe to share between threads.
    """

    __slots__ = ("_batch", "_skip", "_timestamps", "partition", "topic")

    def __init__(self, batch: Batch, topic: str, partition: int, offset: int) -> None:
        """The records of `batch` from `offset` on."""
        self._batch, self.topic, self.partition = batch, topic, partition
        self._skip = 0
        if offset > batch.base_offset:
            self._skip = sum(1 for number in batch.offsets() if number < offset)

    def __repr__(self) -> str:
        return f"<streamlog.RecordBatch {self.topic}-{self.partition} [{self.base_offset}, {self.last_offset}] of {self.count}>"

    def __len__(self) -> int:
        return self.count

    @property
    def columns(self) -> fmt.Columns:
        """The columns as they are on disk; decompressed where they are compressed."""
        try:
            return self._batch.columns()
        except ValueError as error:  # the checksum holds, or was not looked at (check_crcs=False)
            batch = self._batch
            message = f"offset {batch.base_offset} of {self.topic}-{self.partition}: {error}; next readable: {batch.next_offset}"
            raise CorruptRecordError(message, "", 0, "columns that fit", str(error), batch.next_offset) from None

    @property
    def count(self) -> int:
        """Records."""
        count: int = self._batch.count - self._skip
        return count

    @property
    def base_offset(self) -> int:
        """Offset of the first record."""
        return self._batch.offsets()[self._skip]

    @property
    def last_offset(self) -> int:
        """Offset of the last record."""
        return self._batch.offsets()[-1]

    @property
    def leader_epoch(self) -> int:
        """Leader epoch that the batch was written in."""
        epoch: int = self._batch.leader_epoch
        return epoch

    @property
    def timestamp_type(self) -> TimestampType:
        """Who gave the timestamps."""
        return _TYPES[bool(self._batch.attributes & fmt.LOG_APPEND_TIME)]

    @property
    def offsets(self) -> numpy.typing.NDArray[numpy.int64]:
        """Offset of each record, shape (count,)."""
        import numpy

        return numpy.array(self._batch.offsets()[self._skip :], dtype=numpy.int64)

    @property
    def timestamps_ms(self) -> numpy.typing.NDArray[numpy.int64]:
        """Timestamp of each record, shape (count,)."""
        import numpy

        if self.columns.timestamps is None:
            return numpy.full(self.count, self._batch.base_timestamp, dtype=numpy.int64)
        return numpy.frombuffer(self.columns.timestamps, dtype=numpy.int64)[self._skip :]

    @property
    def keys(self) -> BytesColumn:
        """Key of each record."""
        return BytesColumn(self.columns.keys, self.count, self._skip)

    @property
    def values(self) -> BytesColumn:
        """Value of each record."""
        return BytesColumn(self.columns.values, self.count, self._skip)

    @property
    def headers(self) -> list[tuple[tuple[str, bytes | None], ...]]:
        """Headers of each record."""
        return _headers(self.columns.headers, self._batch.count)[self._skip :]

    def __iter__(self) -> Iterator[Record]:
        return iter(to_records(self._batch, self.topic, self.partition)[self._skip :])


def _headers(column: fmt.BytesColumn | None, count: int) -> list[tuple[tuple[str, bytes | None], ...]]:
    if column is None:
        return [()] * count
    import msgpack

    return [() if packed is None else tuple(map(tuple, msgpack.unpackb(packed))) for packed in column.to_list()]


def to_records(batch: Batch, topic: str, partition: int) -> list[Record]:
    """All records of a batch, keys and values as bytes.  One pass a column, at C level."""
    columns, count = batch.columns(), batch.count
    keys: Sequence[Any] | repeat[None] = repeat(None) if columns.keys is None else columns.keys.to_list()
    values: Sequence[Any] | repeat[None] = repeat(None) if columns.values is None else columns.values.to_list()
    timestamps: Any = repeat(batch.base_timestamp) if columns.timestamps is None else columns.timestamps.tolist()
    headers: Any = repeat(()) if columns.headers is None else _headers(columns.headers, count)
    rows = zip(
        repeat(topic), repeat(partition), batch.offsets(), timestamps, repeat(_TYPES[bool(batch.attributes & fmt.LOG_APPEND_TIME)]),
        keys, values, headers, repeat(batch.leader_epoch),
    )  # fmt: skip
    return list(map(_record, rows))


def deserialized(
    records: list[Record], key: Callable[[Any], Any] | None, value: Callable[[Any], Any] | None
) -> tuple[list[Record], SerializationError | None]:
    """The records with keys and values as objects, up to the first that a deserializer refuses, and its error."""
    done: list[Record] = []
    for record in records:
        what = "key"
        try:
            if key is not None and record.key is not None:
                record = record._replace(key=key(record.key))
            what = "value"
            if value is not None and record.value is not None:
                record = record._replace(value=value(record.value))
        except Exception as error:
            place = f"offset {record.offset} of {record.topic}-{record.partition}"
            message = f"{what}_deserializer failed on {place}: {error!r}; seek to {record.offset + 1} to pass over it"
            refused = SerializationError(message, record.topic, record.partition, record.offset)
            refused.__cause__ = error
            return done, refused
        done.append(record)
    return done, None
