"""The bytes of a producer snapshot: what a log's batches below an offset say of its producers.

It is derived: it counts only with its checksum, for the segment of its salt and base offset, and where that segment still reaches
its offset.  Header, 48 bytes, then for each producer a row of 48 bytes and one of 24 for each remembered batch, in the order of the log:

    offset size type field         meaning
    0      4    4s   magic         b"SLP2"
    4      1    u8   version       1
    5      3    3x   reserved      zero
    8      8    u64  checksum      xxh3-64 of bytes 16 to the end, seed: the segment's salt
    16     8    u64  salt          of the segment that holds the offset
    24     8    i64  base_offset   of that segment
    32     8    i64  offset        all batches below it are counted in; also the file's name
    40     8    u64  producers     how many follow

    0      8    i64  producer_id
    8      8    i64  open          offset of the first record of its open transaction; -1: none is open
    16     8    i64  offset        of its last batch or marker
    24     8    i64  timestamp     the largest of that (ms)
    32     4    i32  next          sequence that comes next
    36     2    i16  epoch         of the producer
    38     2    u16  batches       how many follow
    40     8    8x   reserved      zero

    0      8    i64  base_offset   of the batch
    8      8    i64  timestamp     the batch's largest (ms)
    16     4    i32  first         sequence of its first record
    20     4    i32  last          sequence of its last record
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

from streamlog._format.batch import checksum

SNAPSHOT_MAGIC, SNAPSHOT_VERSION = b"SLP2", 1
PREFIX = struct.Struct("<4sB3xQ")
HEAD = struct.Struct("<QqqQ")
PRODUCER = struct.Struct("<qqqqihH8x")
BATCH = struct.Struct("<qqii")
_ROWS_AT = PREFIX.size + HEAD.size

Row = tuple[int, int, int, int, int, int, tuple[tuple[int, int, int, int], ...]]
"""Producer id, open, offset, timestamp, next, epoch; of each batch base offset, timestamp, first and last sequence."""


def encode(salt: int, base_offset: int, offset: int, rows: Iterable[Row]) -> bytes:
    """A snapshot's bytes."""
    pieces = [PRODUCER.pack(*row[:6], len(row[6])) + b"".join([BATCH.pack(*batch) for batch in row[6]]) for row in rows]
    body = HEAD.pack(salt, base_offset, offset, len(pieces)) + b"".join(pieces)
    return PREFIX.pack(SNAPSHOT_MAGIC, SNAPSHOT_VERSION, checksum(body, salt)) + body


class ProducerSnapshot:
    """A snapshot, read and checked."""

    __slots__ = ("_data", "base_offset", "offset", "producers", "salt")

    def __init__(self, data: bytes) -> None:
        """Raises ValueError, which says what is wrong."""
        if len(data) < _ROWS_AT:
            raise ValueError(f"{len(data)} bytes, a producer snapshot has at least {_ROWS_AT}")
        magic, version, found = PREFIX.unpack_from(data)
        if (magic, version) != (SNAPSHOT_MAGIC, SNAPSHOT_VERSION):
            raise ValueError(f"magic {magic!r} version {version}, {SNAPSHOT_MAGIC!r} version {SNAPSHOT_VERSION} is wanted")
        self._data = data
        self.salt, self.base_offset, self.offset, self.producers = HEAD.unpack_from(data, PREFIX.size)
        if checksum(data[PREFIX.size :], self.salt) != found:
            raise ValueError("the checksum does not hold")

    def __iter__(self) -> Iterator[Row]:
        """The producers.  Raises ValueError where the file does not hold as many as it says."""
        position = _ROWS_AT
        try:
            for _ in range(self.producers):
                *fields, count = PRODUCER.unpack_from(self._data, position)
                position += PRODUCER.size
                batches = tuple(BATCH.unpack_from(self._data, position + number * BATCH.size) for number in range(count))
                position += count * BATCH.size
                yield *fields, batches
        except struct.error as error:
            raise ValueError(f"the rows do not fit: {error}") from None
        if position != len(self._data):
            raise ValueError(f"{len(self._data) - position} bytes after the last row")
