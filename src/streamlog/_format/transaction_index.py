"""The bytes of a segment's transaction index: the transactions whose abort marker stands in the segment.

A header of 24 bytes (magic b"SLA1", version u8, 3 zero bytes, the segment's salt u64, its base offset i64), then entries of four i64:
producer id, offset of the transaction's first record in the partition (maybe in an earlier segment), offset of its marker, and a checksum
(xxh3-64 of the first three, seed: the salt).  The file is there from the time on that its segment is first opened for appending; where it is
missing, is another segment's or has a damaged entry it is made anew from the log.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

from streamlog._format.batch import FORMAT_VERSION, checksum

TRANSACTION_INDEX_MAGIC = b"SLA1"
HEADER = struct.Struct("<4sB3xQq")
_FIELDS = struct.Struct("<qqq")
ENTRY = struct.Struct("<qqqQ")

Aborted = tuple[int, int, int]  # producer id, first offset, offset of the marker


def header(salt: int, base_offset: int) -> bytes:
    """What the file begins with."""
    return HEADER.pack(TRANSACTION_INDEX_MAGIC, FORMAT_VERSION, salt, base_offset)


def encode(salt: int, entries: Iterable[Aborted]) -> bytes:
    """Entries as they are appended."""
    return b"".join([ENTRY.pack(*entry, checksum(_FIELDS.pack(*entry), salt)) for entry in entries])


def salt_of(data: bytes) -> int:
    """The salt that a file names itself.  Raises ValueError where it is no transaction index."""
    if len(data) < HEADER.size or data[:4] != TRANSACTION_INDEX_MAGIC:
        raise ValueError("no transaction index")
    return int(HEADER.unpack_from(data)[2])


def decode(data: bytes, salt: int, base_offset: int) -> list[Aborted]:
    """The entries of a file.  Raises ValueError where it is another segment's, torn or damaged."""
    if data[: HEADER.size] != header(salt, base_offset) or (len(data) - HEADER.size) % ENTRY.size:
        raise ValueError("not this segment's transaction index")
    return decode_entries(data[HEADER.size :], salt)


def decode_entries(data: bytes, salt: int) -> list[Aborted]:
    """Entries.  Raises ValueError where one is damaged."""
    entries = []
    for producer_id, first, last, found in ENTRY.iter_unpack(data):
        if found != checksum(_FIELDS.pack(producer_id, first, last), salt):
            raise ValueError(f"the checksum of ({producer_id}, {first}, {last}) does not hold")
        entries.append((producer_id, first, last))
    return entries
