"""The bytes of a producer snapshot: what a log's batches below an offset say of its idempotent producers.

It is derived: it counts only with its checksum, for the segment of its salt and base offset, and where that segment still reaches
its offset.  Header, 48 bytes, then a row of 40 bytes for each remembered batch, those of one producer in the order of the log:

    offset size type field         meaning
    0      4    4s   magic         b"SLP1"
    4      1    u8   version       1
    5      3    3x   reserved      zero
    8      8    u64  checksum      xxh3-64 of bytes 16 to the end, seed: the segment's salt
    16     8    u64  salt          of the segment that holds the offset
    24     8    i64  base_offset   of that segment
    32     8    i64  offset        all batches below it are counted in; also the file's name
    40     8    u64  rows          how many follow

    0      8    i64  producer_id
    8      8    i64  base_offset   of the batch
    16     8    i64  timestamp     the batch's largest (ms)
    24     4    i32  first         sequence of its first record
    28     4    i32  last          sequence of its last record
    32     2    i16  epoch         of the producer
    34     6    6x   reserved      zero
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

from streamlog._format.batch import checksum

SNAPSHOT_MAGIC, SNAPSHOT_VERSION = b"SLP1", 1
PREFIX = struct.Struct("<4sB3xQ")
HEAD = struct.Struct("<QqqQ")
ROW = struct.Struct("<qqqiih6x")
_ROWS_AT = PREFIX.size + HEAD.size

Row = tuple[int, int, int, int, int, int]  # producer id, base offset, timestamp, first, last, epoch


def encode(salt: int, base_offset: int, offset: int, rows: Iterable[Row]) -> bytes:
    """A snapshot's bytes."""
    packed = [ROW.pack(*row) for row in rows]
    body = HEAD.pack(salt, base_offset, offset, len(packed)) + b"".join(packed)
    return PREFIX.pack(SNAPSHOT_MAGIC, SNAPSHOT_VERSION, checksum(body, salt)) + body


class ProducerSnapshot:
    """A snapshot, read and checked."""

    __slots__ = ("_data", "base_offset", "offset", "rows", "salt")

    def __init__(self, data: bytes) -> None:
        """Raises ValueError, which says what is wrong."""
        if len(data) < _ROWS_AT:
            raise ValueError(f"{len(data)} bytes, a producer snapshot has at least {_ROWS_AT}")
        magic, version, found = PREFIX.unpack_from(data)
        if (magic, version) != (SNAPSHOT_MAGIC, SNAPSHOT_VERSION):
            raise ValueError(f"magic {magic!r} version {version}, {SNAPSHOT_MAGIC!r} version {SNAPSHOT_VERSION} is wanted")
        self._data = data
        self.salt, self.base_offset, self.offset, self.rows = HEAD.unpack_from(data, PREFIX.size)
        if len(data) != _ROWS_AT + self.rows * ROW.size or checksum(data[PREFIX.size :], self.salt) != found:
            raise ValueError("the checksum does not hold")

    def __iter__(self) -> Iterator[Row]:
        return ROW.iter_unpack(self._data[_ROWS_AT:])
