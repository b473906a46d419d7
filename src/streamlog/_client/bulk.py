"""What `send_batch` takes, cut into encoded batches: one pass a column, nothing per record above C level where keys are absent."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from operator import itemgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from streamlog._client.lane import Lane
    from streamlog._client.target import Target
    from streamlog.producer import Producer

from streamlog._client.inputs import pack_headers, to_bytes
from streamlog._format import batch as fmt
from streamlog._format.compression import LARGEST
from streamlog.errors import InvalidTimestampError, RecordTooLargeError, SerializationError
from streamlog.partitioners import partitions_of

Chunk = tuple[int, bytes, int, "list[int] | None"]  # attributes, columns, count, timestamps
_SLACK = fmt.BATCH_HEADER_SIZE + 96  # header, column heads and padding of a batch


def split(
    producer: Producer, target: Target, values: Any, keys: Any, timestamps: Any, headers: Any, partition: int | None
) -> Iterator[tuple[Lane, Chunk]]:
    """The encoded batches with their lanes, in order.  All input is checked before the first is returned."""
    fixed = _fixed_rows(values)
    rows: Sequence[bytes | None] = [] if fixed is not None else _rows("value", values, producer)
    count = len(fixed[0]) // fixed[1] if fixed is not None else len(rows)
    key_rows = None if keys is None else _rows("key", _unpacked(keys), producer)
    times = None if timestamps is None else _timestamps(timestamps)
    packed = None if headers is None else _headers(headers)
    for name, column in (("keys", key_rows), ("timestamps_ms", times), ("headers", packed)):
        if column is not None and len(column) != count:
            raise SerializationError(f"{name} has {len(column)} rows, values has {count}")
    if count == 0:
        return iter(())
    if times is not None:
        target.check_timestamps(min(times), max(times), producer._now_ms())
        times = None if target.append_time else times
    chooses = producer._partitioner is not None and partition is None  # for each row
    if fixed is not None and key_rows is None and packed is None and times is None and not chooses:
        return _fixed_chunks(producer, target, fixed, partition)
    if fixed is not None:
        rows = _cut_fixed(*fixed)
    return _row_chunks(producer, target, rows, key_rows, times, packed, partition)


def _fixed_rows(values: Any) -> tuple[memoryview, int] | None:
    """The bytes and the width of a NumPy array's rows; None for anything else."""
    kind = type(values).__module__.partition(".")[0]
    if kind == "pyarrow" or hasattr(values, "__arrow_c_array__"):
        raise SerializationError("Arrow arrays are not in this version; give a list of bytes or a NumPy array")
    if kind != "numpy":
        return None
    if values.ndim != 1 or values.dtype.hasobject or values.dtype.itemsize == 0:
        raise SerializationError(f"an array of shape {values.shape} and dtype {values.dtype}: one dimension and a fixed size are wanted")
    import numpy

    contiguous = numpy.ascontiguousarray(values)
    return contiguous.view(numpy.uint8).data, contiguous.dtype.itemsize


def _cut_fixed(data: memoryview, width: int) -> list[bytes]:
    whole = bytes(data)
    return [whole[at : at + width] for at in range(0, len(whole), width)]


def _unpacked(column: Any) -> Any:
    fixed = _fixed_rows(column)
    return column if fixed is None else _cut_fixed(*fixed)


def _rows(what: str, column: Any, producer: Producer) -> Sequence[bytes | None]:
    """A column of bytes; what is not bytes goes through the serializer, as in `send`."""
    serializer = producer.config.key_serializer if what == "key" else producer.config.value_serializer
    try:
        rows = column if isinstance(column, list) else list(column)
    except TypeError:
        raise SerializationError(f"{what}s of type {type(column).__name__}: a list of bytes or a NumPy array is wanted") from None
    if isinstance(column, bytes | str):
        raise SerializationError(f"{what}s: a list is wanted, not one {type(column).__name__}")
    if serializer is None and set(map(type, rows)) <= {bytes}:
        return rows
    return [to_bytes(what, row, serializer) for row in rows]


def _timestamps(timestamps: Any) -> list[int]:
    try:
        times = timestamps.tolist() if hasattr(timestamps, "tolist") else list(timestamps)
    except TypeError:
        times = [None]
    if isinstance(timestamps, bytes | str) or not all(type(time) is int and 0 <= time < 2**63 for time in times):
        raise InvalidTimestampError("timestamps_ms: whole numbers of milliseconds in [0, 2**63) are wanted")
    return times


def _headers(headers: Any) -> list[bytes | None]:
    try:
        return [None if row is None else pack_headers(row) for row in headers]
    except TypeError:
        raise SerializationError(f"headers={headers!r}: a list with the headers of each row, or None, is wanted") from None


def _fixed_chunks(
    producer: Producer, target: Target, fixed: tuple[memoryview, int], partition: int | None
) -> Iterator[tuple[Lane, Chunk]]:
    data, width = fixed
    _check(producer, target, width)
    step = max(1, _limit(producer, target) // width) * width
    lane = _lane(target, partition)
    for start in range(0, len(data), step):
        part = data[start : start + step]
        yield lane, (fmt.HAS_VALUES, b"".join(fmt.encode_fixed_column(part, width)), len(part) // width, None)
    if partition is None:
        target.switch()


def _row_chunks(
    producer: Producer, target: Target, values: Sequence[bytes | None], keys: Sequence[bytes | None] | None,
    times: list[int] | None, headers: list[bytes | None] | None, partition: int | None,
) -> Iterator[tuple[Lane, Chunk]]:  # fmt: skip
    limit = _limit(producer, target)
    chooses = producer._partitioner is not None and partition is None
    if keys is None and headers is None and times is None and not chooses and None not in values:
        _check(producer, target, max(map(len, values)))  # type: ignore[arg-type]
        if sum(map(len, values)) + 4 * len(values) <= limit:  # type: ignore[arg-type]  # the usual case pays nothing per row here
            yield _lane(target, partition), _chunk(range(len(values)), values, None, None, None)
            if partition is None:
                target.switch()
            return
    sizes = _sizes(values, keys, headers, times)
    if max(sizes) + _SLACK > min(target.max_message_bytes, producer.config.max_request_size):
        _check(producer, target, max(_sizes(values, keys, headers, None, offset=0)))
    if any(column is not None and None in column for column in (values, keys, headers)):
        limit -= limit // 32  # bitmaps
    for lane, numbers in _lanes(producer, target, keys, values, partition):
        ends = list(accumulate(map(sizes.__getitem__, numbers)))  # bytes up to and with each row
        start = done = 0
        while start < len(numbers):
            end = max(start + 1, bisect_right(ends, done + limit))
            yield lane, _chunk(numbers[start:end], values, keys, times, headers)
            start, done = end, ends[end - 1]
    if partition is None and keys is None:
        target.switch()


def _sizes(values: Sequence[bytes | None], keys: Any, headers: Any, times: list[int] | None, *, offset: int = 4) -> list[int]:
    """Bytes of each row: its parts, an `offset` of each, and its timestamp where it has one."""
    columns: list[Sequence[Any]] = [values, *(column for column in (keys, headers) if column is not None)]
    extra = offset * len(columns) + (0 if times is None else 8)
    return [extra + sum(map(len, filter(None, row))) for row in zip(*columns)]


def _limit(producer: Producer, target: Target) -> int:
    """Bytes of rows that one batch takes, before compression."""
    return max(0, min(target.max_message_bytes - _SLACK, producer.config.buffer_memory, LARGEST - _SLACK))


def _lane(target: Target, partition: int | None) -> Lane:
    """The partition that was asked for, or the sticky one."""
    return target.sticky if partition is None else target.lanes[partition]


def _lanes(
    producer: Producer, target: Target, keys: Sequence[bytes | None] | None, values: Sequence[bytes | None], partition: int | None
) -> Iterator[tuple[Lane, Sequence[int]]]:
    """Lanes with the numbers of their rows, in order."""
    if partition is not None or (producer._partitioner is None and (keys is None or not producer._keyed)):
        yield _lane(target, partition), range(len(values))
        return
    import numpy as np

    chosen = np.full(len(values), -1, np.int64)
    if keys is not None and producer._keyed:
        chosen = partitions_of(keys, target.count, producer.config.key_hash)
    elif keys is None:
        keys = [None] * len(values)
    for row in np.flatnonzero(chosen < 0).tolist():
        number = producer._partition_of(target, keys[row], values[row], None)
        if number is None:  # all others without a key go to the sticky one too
            chosen[chosen < 0] = _lane(target, None).partition
            break
        chosen[row] = number
    rows = np.argsort(chosen, kind="stable")
    numbers, starts = np.unique(chosen[rows], return_index=True)
    for number, group in zip(numbers.tolist(), np.split(rows, starts[1:])):
        yield target.lanes[number], group.tolist()


def _chunk(
    numbers: Sequence[int], values: Sequence[bytes | None], keys: Sequence[bytes | None] | None,
    times: list[int] | None, headers: list[bytes | None] | None,
) -> Chunk:  # fmt: skip
    def pick(column: Sequence[Any] | None) -> list[Any] | None:
        if column is None:
            return None
        if isinstance(numbers, range):
            whole = len(numbers) == len(column) and isinstance(column, list)
            return column if whole else list(column[numbers.start : numbers.stop])  # type: ignore[return-value]
        return list(itemgetter(*numbers)(column)) if len(numbers) > 1 else [column[numbers[0]]]

    chosen = pick(times)
    picked = pick(values)
    assert picked is not None
    attributes, columns = fmt.encode_rows(picked, pick(keys), pick(headers), chosen)
    return attributes, columns, len(numbers), chosen


def _check(producer: Producer, target: Target, size: int) -> None:
    if size > producer.config.max_request_size:
        raise RecordTooLargeError(f"a record of {size} bytes is above max_request_size={producer.config.max_request_size} (producer)")
    if size + fmt.BATCH_HEADER_SIZE > target.max_message_bytes and target.codec is None:
        name = target.metadata.name
        raise RecordTooLargeError(f"a record of {size} bytes is above max_message_bytes={target.max_message_bytes} (topic {name!r})")
