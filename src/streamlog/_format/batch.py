"""The bytes of a segment header and of a batch.

A segment begins with a header; batches follow without a gap, each a multiple of 8 bytes long, up to the segment's end;
what comes after (reserved or torn) is no part of the log.  Integers are little-endian.  docs/format.md draws the same
tables, a test compares them.

Segment header, 64 bytes; the checksum covers bytes 16 to 64, unsalted:

    offset size type field         meaning
    0      4    4s   magic         b"SLS1"
    4      1    u8   version       FormatVersion
    5      3    3x   reserved      zero
    8      8    u64  checksum      xxh3-64 of bytes 16 to 64, seed 0
    16     8    u64  salt          random; seeds every checksum in this segment and marks its derived files
    24     16   16s  topic_id      of the topic that the segment belongs to
    40     8    i64  base_offset   offset of the first record; also the file's name
    48     4    i32  partition     number of the partition
    52     4    i32  leader_epoch  epoch in which the segment was begun; every batch in it has this epoch
    56     8    i64  epoch_start   where that epoch begins; above base_offset where a recovery wrote older records anew

Batch header, 80 bytes; the checksum covers all that follows it, columns included, seeded with the segment's salt:

    offset size type field              meaning
    0      4    4s   magic              b"SLB1"
    4      1    u8   version            FormatVersion
    5      3    3x   reserved           zero
    8      8    u64  checksum           xxh3-64 of bytes 16 to length, seed: the segment's salt
    16     8    i64  base_offset        offset of the first record
    24     4    u32  attributes         see Attributes
    28     4    u32  length             bytes of the batch, header and padding included; a multiple of 8
    32     4    i32  count              records in the batch
    36     4    i32  last_offset_delta  the next batch begins at base_offset + last_offset_delta + 1
    40     8    i64  base_timestamp     milliseconds since 1970-01-01 UTC; of every record, unless HAS_TIMESTAMPS
    48     8    i64  max_timestamp      largest timestamp in the batch
    56     8    i64  producer_id        -1: none
    64     4    i32  base_sequence      -1: none
    68     2    i16  producer_epoch     -1: none
    70     2    2x   reserved           zero
    72     4    i32  leader_epoch       epoch of the leader that wrote the batch
    76     4    u32  uncompressed       bytes of the columns, before compression

The columns, each padded with zeros to a multiple of 8 bytes, in this order, those that the attributes name:
offsets (i32 each: delta to base_offset), timestamps (i64 each: ms), keys, values, headers.  The last three are bytes
columns, Arrow-shaped: a head of i32 `width` and i32 `nulls`; if nulls > 0 a validity bitmap, least significant bit
first, padded; if width is -1, count + 1 i32 offsets, padded, else every value is `width` bytes long; then the data, padded.
A record's headers are a msgpack array of [name, value] pairs; null where it has none.

Where the attributes name a codec (bits 0-2) the columns are one compressed block: see `compression`.
"""

from __future__ import annotations

import struct
from array import array
from itertools import accumulate, chain, pairwise

import xxhash

from streamlog._format import compression

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

checksum: Callable[..., int] = xxhash.xxh3_64_intdigest

FORMAT_VERSION = 1
"""1: the first.  A program that finds a version it does not know raises UnsupportedFormatError and touches nothing."""

SEGMENT_MAGIC, BATCH_MAGIC = b"SLS1", b"SLB1"
PREFIX = struct.Struct("<4sB3xQ")  # magic, version, checksum: both headers begin with it
SEGMENT_BODY = struct.Struct("<Q16sqiiq")
BATCH_BODY = struct.Struct("<qIIiiqqqih2xiI")
BATCH = struct.Struct("<4sB3xQqIIiiqqqih2xiI")
COLUMN = struct.Struct("<ii")

SEGMENT_HEADER_SIZE = PREFIX.size + SEGMENT_BODY.size
BATCH_HEADER_SIZE = PREFIX.size + BATCH_BODY.size
assert SEGMENT_HEADER_SIZE == 64  # 16 + 8 + 16 + 8 + 4 + 4 + 8
assert BATCH_HEADER_SIZE == BATCH.size == 80  # 16 + 8 + 6 * 4 - 8 + 3 * 8 + 4 + 2 + 2 + 4 + 4

NO_PRODUCER = (-1, -1, -1)  # producer id, base sequence, producer epoch

# Attributes (u32): bits 0-6 are Kafka's
CODEC = 7  # bits 0-2: number of the codec, 0: none
LOG_APPEND_TIME = 1 << 3
TRANSACTIONAL = 1 << 4
CONTROL = 1 << 5  # see `control`  (6 delete horizon: not in this version)
HAS_OFFSETS = 1 << 8
HAS_TIMESTAMPS = 1 << 9
HAS_KEYS = 1 << 10
HAS_VALUES = 1 << 11
HAS_HEADERS = 1 << 12
KNOWN_ATTRIBUTES = CODEC | LOG_APPEND_TIME | TRANSACTIONAL | CONTROL | HAS_OFFSETS | HAS_TIMESTAMPS | HAS_KEYS | HAS_VALUES | HAS_HEADERS

_PADS = [bytes(-n & 7) for n in range(8)]


# ---- encoding --------------------------------------------------------------------------------------------------------


def encode_column(values: Sequence[bytes | None]) -> list[bytes]:
    """The pieces of a bytes column, to be joined.  Raises OverflowError above 2**31 - 1 bytes of data."""
    try:
        widths = set(map(len, values))  # type: ignore[arg-type]
    except TypeError:
        return _encode_nullable(values)
    if len(widths) == 1:
        (width,) = widths
        return [COLUMN.pack(width, 0), *values, _PADS[width * len(values) & 7]]  # type: ignore[list-item]
    return [COLUMN.pack(-1, 0), *_variable(values)]  # type: ignore[arg-type]


def _variable(values: Sequence[bytes]) -> list[bytes]:
    offsets = array("i", accumulate(map(len, values), initial=0))  # raises OverflowError itself
    return [offsets.tobytes(), _PADS[4 * len(offsets) & 7], *values, _PADS[offsets[-1] & 7]]


def _encode_nullable(values: Sequence[bytes | None]) -> list[bytes]:
    bits = "".join(["0" if value is None else "1" for value in reversed(values)])
    size = len(values) + 7 >> 3
    bitmap = int(bits, 2).to_bytes(size + (-size & 7), "little")
    return [COLUMN.pack(-1, bits.count("0")), bitmap, *_variable([value or b"" for value in values])]


def encode_fixed_column(data: bytes | memoryview, width: int) -> list[bytes | memoryview]:
    """The pieces of a column of equal widths whose values lie in `data`, one after the other."""
    return [COLUMN.pack(width, 0), data, _PADS[len(data) & 7]]


def encode_rows(
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None] | None = None,
    headers: Sequence[bytes | None] | None = None,
    timestamps: Sequence[int] | None = None,
) -> tuple[int, bytes]:
    """Attributes and columns of a batch.  A column of which every value is None is left out.  `headers` are msgpack."""
    if len(values) == 1 and keys is None and headers is None and timestamps is None and (value := values[0]) is not None:
        return HAS_VALUES, COLUMN.pack(len(value), 0) + value + _PADS[len(value) & 7]  # 0.5 µs less than what follows
    attributes = 0
    pieces: list[bytes] = []
    if timestamps is not None:
        attributes |= HAS_TIMESTAMPS
        pieces.append(array("q", timestamps).tobytes())
    if keys is not None and keys.count(None) != len(keys):
        attributes |= HAS_KEYS
        pieces += encode_column(keys)
    if values[0] is not None or values.count(None) != len(values):
        attributes |= HAS_VALUES
        pieces += encode_column(values)
    if headers is not None and headers.count(None) != len(headers):
        attributes |= HAS_HEADERS
        pieces += encode_column(headers)
    return attributes, b"".join(pieces)


def seal_segment_header(salt: int, topic_id: bytes, base_offset: int, partition: int, leader_epoch: int, epoch_start: int) -> bytes:
    """The header of a segment."""
    body = SEGMENT_BODY.pack(salt, topic_id, base_offset, partition, leader_epoch, epoch_start)
    return PREFIX.pack(SEGMENT_MAGIC, FORMAT_VERSION, checksum(body, 0)) + body


def seal_head(salt: int, columns: bytes, *fields: Any) -> bytes:
    """The 80 bytes in front of `columns`; `fields` are those of BATCH_BODY, in order."""
    body = BATCH_BODY.pack(*fields)
    if len(columns) < 4096:  # joining costs less than a streamed hash (measured: 0.15 against 0.35 µs)
        return PREFIX.pack(BATCH_MAGIC, FORMAT_VERSION, checksum(body + columns, salt)) + body
    hasher = xxhash.xxh3_64(body, salt)
    hasher.update(columns)
    return PREFIX.pack(BATCH_MAGIC, FORMAT_VERSION, hasher.intdigest()) + body


def reseal(batch: bytes, salt: int, leader_epoch: int) -> bytes:
    """The same batch for another segment: its salt, its epoch."""
    fields = list(BATCH_BODY.unpack_from(batch, PREFIX.size))
    fields[-2] = leader_epoch
    columns = batch[BATCH_HEADER_SIZE:]
    return seal_head(salt, columns, *fields) + columns


# ---- decoding --------------------------------------------------------------------------------------------------------


class SegmentHeader:
    """A segment's header, read and checked."""

    __slots__ = ("base_offset", "epoch_start", "leader_epoch", "partition", "salt", "topic_id", "version")

    def __init__(self, data: bytes) -> None:
        """Raises ValueError (not a segment header) or UnknownVersionError."""
        if len(data) < SEGMENT_HEADER_SIZE or data[:4] != SEGMENT_MAGIC:
            raise ValueError(f"no segment header: magic {bytes(data[:4])!r}, {SEGMENT_MAGIC!r} is wanted")
        _, self.version, found = PREFIX.unpack_from(data)
        is_sound = found == checksum(data[PREFIX.size : SEGMENT_HEADER_SIZE], 0)
        if self.version != FORMAT_VERSION:
            raise (DamagedVersionError if is_sound else UnknownVersionError)(self.version)
        if any(data[5:8]) or not is_sound:
            raise ValueError("the segment header's checksum does not hold")
        fields = SEGMENT_BODY.unpack_from(data, PREFIX.size)
        self.salt, self.topic_id, self.base_offset, self.partition, self.leader_epoch, self.epoch_start = fields


class UnknownVersionError(Exception):
    """A version byte that this program does not know."""

    def __init__(self, version: int) -> None:
        super().__init__(f"format version {version}; this program knows up to {FORMAT_VERSION}")
        self.version = version


class DamagedVersionError(UnknownVersionError, ValueError):
    """The rest has the layout and the checksum of a version that this program knows, so the byte is damaged: a later version has others."""


class Batch:
    """A batch in place: header fields, and columns decoded when asked for.

    `data` is a view of the whole batch (read-only bytes, shape (length,)); the object keeps it, and so the mapping, alive.
    """

    __slots__ = (
        "_columns", "attributes", "base_offset", "base_sequence", "base_timestamp", "checksum", "count", "data", "last_offset_delta",
        "leader_epoch", "length", "max_timestamp", "producer_epoch", "producer_id", "uncompressed",
    )  # fmt: skip

    def __init__(self, data: memoryview, fields: tuple[Any, ...]) -> None:
        self.data = data
        self._columns: Columns | None = None
        (
            _, _, self.checksum, self.base_offset, self.attributes, self.length, self.count, self.last_offset_delta,
            self.base_timestamp, self.max_timestamp, self.producer_id, self.base_sequence, self.producer_epoch,
            self.leader_epoch, self.uncompressed,
        ) = fields  # fmt: skip

    @property
    def next_offset(self) -> int:
        """Offset at which the next batch begins."""
        end: int = self.base_offset + self.last_offset_delta + 1
        return end

    def columns(self) -> Columns:
        """The columns, cut apart; decompressed once where they are compressed.

        Raises: ValueError (they do not fit the batch, or the block is damaged), UnsupportedCompressionError.
        """
        if self._columns is None:
            codec = self.attributes & CODEC
            if codec:
                data = compression.numbered(codec).decompress(self.data[BATCH_HEADER_SIZE:], self.uncompressed)
                self._columns = Columns(data, self.attributes, self.count)
            else:
                self._columns = Columns(self.data[BATCH_HEADER_SIZE:], self.attributes, self.count)
        return self._columns

    def offsets(self) -> Sequence[int]:
        """Offset of each record."""
        if not self.attributes & HAS_OFFSETS:
            return range(self.base_offset, self.base_offset + self.count)
        return [self.base_offset + delta for delta in self.columns().offsets or ()]


def parse(data: memoryview, salt: int, position: int, end: int, *, verify: bool = True) -> Batch:
    """The batch at `position` of a segment's bytes; no byte at or beyond `end` is looked at.

    Raises: ValueError, saying what is wrong (a torn, stale or damaged batch); UnknownVersionError.
    """
    if end - position < BATCH_HEADER_SIZE:
        raise ValueError(f"{end - position} bytes left, a batch header has {BATCH_HEADER_SIZE}")
    fields = BATCH.unpack_from(data, position)
    if fields[0] != BATCH_MAGIC:
        raise ValueError(f"magic {fields[0]!r}, {BATCH_MAGIC!r} is wanted")
    length = fields[5]
    fits = not length & 7 and BATCH_HEADER_SIZE <= length <= end - position
    if fields[1] != FORMAT_VERSION:
        is_sound = fits and checksum(data[position + PREFIX.size : position + length], salt) == fields[2]
        raise (DamagedVersionError if is_sound else UnknownVersionError)(fields[1])
    if not fits:
        raise ValueError(f"length {length} is not a multiple of 8 in [{BATCH_HEADER_SIZE}, {end - position}]")
    batch = Batch(data[position : position + length], fields)
    if verify:
        found = checksum(batch.data[PREFIX.size :], salt)
        if found != batch.checksum:
            raise ValueError(f"checksum {batch.checksum:#018x} written, {found:#018x} found")
        if any(batch.data[5:8]):
            raise ValueError(f"reserved bytes {bytes(batch.data[5:8])!r}, zeros are wanted")
        if batch.attributes & ~KNOWN_ATTRIBUTES:
            raise UnknownVersionError(FORMAT_VERSION + 1)
    return batch


class BytesColumn:
    """A bytes column in place.  `width` is -1 where `offsets` (i32) say where each value begins and ends."""

    __slots__ = ("bitmap", "count", "data", "nulls", "offsets", "width")

    def __init__(self, view: memoryview, position: int, count: int) -> None:
        self.count = count
        self.width, self.nulls = COLUMN.unpack_from(view, position)
        position += COLUMN.size
        self.bitmap: memoryview | None = None
        if self.nulls:
            self.bitmap, position = _cut(view, position, count + 7 >> 3)
        if self.width < 0:
            raw, position = _cut(view, position, 4 * (count + 1))
            self.offsets: memoryview | None = raw.cast("i")
            size = self.offsets[count]
            if self.width != -1 or self.offsets[0] != 0 or size < 0:
                raise ValueError("the offsets of a column do not begin at 0 or do not rise")
        else:
            self.offsets, size = None, self.width * count
        self.data, _ = _cut(view, position, size)

    @property
    def end(self) -> int:
        """Bytes of the column, padding included."""
        size = COLUMN.size + len(self.data) + (-len(self.data) & 7)
        if self.bitmap is not None:
            size += len(self.bitmap) + (-len(self.bitmap) & 7)
        if self.offsets is not None:
            size += 4 * len(self.offsets) + (-4 * len(self.offsets) & 7)
        return size

    def to_list(self) -> list[Any]:
        """The values as bytes objects, None where null (copies)."""
        if self.width > 0:
            return list(chain.from_iterable(struct.iter_unpack(f"{self.width}s", self.data)))
        if self.width == 0:
            return [b""] * self.count
        assert self.offsets is not None
        data = bytes(self.data)
        bounds = self.offsets.tolist()
        values: list[bytes | None] = [data[a:b] for a, b in pairwise(bounds)]
        if self.bitmap is not None:
            bits = bin(int.from_bytes(self.bitmap, "little") | 1 << self.count)[:2:-1]
            values = [value if bit == "1" else None for value, bit in zip(values, bits)]
        return values

    def check(self) -> None:
        """Raise ValueError unless the offsets rise (H9): done once for each batch that is decoded from disk."""
        if self.offsets is not None:
            bounds = self.offsets.tolist()
            if bounds != sorted(bounds):
                raise ValueError("the offsets of a column do not rise")


class Columns:
    """The columns of one batch, cut apart in place; absent ones are None."""

    __slots__ = ("headers", "keys", "offsets", "timestamps", "values")

    def __init__(self, data: memoryview, attributes: int, count: int) -> None:
        position = 0
        self.offsets: memoryview | None = None
        self.timestamps: memoryview | None = None
        self.keys: BytesColumn | None = None
        self.values: BytesColumn | None = None
        self.headers: BytesColumn | None = None
        if attributes & HAS_OFFSETS:
            raw, position = _cut(data, position, 4 * count)
            self.offsets = raw.cast("i")
        if attributes & HAS_TIMESTAMPS:
            raw, position = _cut(data, position, 8 * count)
            self.timestamps = raw.cast("q")
        if attributes & HAS_KEYS:
            self.keys = BytesColumn(data, position, count)
            position += self.keys.end
        if attributes & HAS_VALUES:
            self.values = BytesColumn(data, position, count)
            position += self.values.end
        if attributes & HAS_HEADERS:
            self.headers = BytesColumn(data, position, count)


def _cut(view: memoryview, position: int, size: int) -> tuple[memoryview, int]:
    """`size` bytes at `position`, and where what follows their padding begins."""
    if position + size > len(view):
        raise ValueError(f"a column of {size} bytes at {position} does not fit a batch of {len(view)} bytes")
    return view[position : position + size], position + size + (-size & 7)
