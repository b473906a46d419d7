"""The sparse index of a segment: hints where to begin to look, derived from the log and checked against it.

A header of 24 bytes (magic b"SLI1", version u8, 3 zero bytes, the segment's salt u64, its base offset i64), then entries
of three i64: offset and position of a batch, and the largest timestamp in the segment before that batch and in it.  The file
counts only if its salt is the segment's; an entry counts only if a batch header of that offset stands at that position.
"""

from __future__ import annotations

import struct
from bisect import bisect_right

from streamlog._format.batch import FORMAT_VERSION

INDEX_MAGIC = b"SLI1"
HEADER = struct.Struct("<4sB3xQq")
ENTRY = struct.Struct("<qqq")
assert HEADER.size == 24  # 4 + 1 + 3 + 8 + 8
assert ENTRY.size == 24  # 3 * 8


def header(salt: int, base_offset: int) -> bytes:
    """What the file begins with."""
    return HEADER.pack(INDEX_MAGIC, FORMAT_VERSION, salt, base_offset)


class SparseIndex:
    """An index file's bytes, to look in.  Empty where they are not this segment's."""

    __slots__ = ("_offsets", "_positions", "_timestamps")

    def __init__(self, data: bytes | memoryview, salt: int, base_offset: int) -> None:
        if bytes(data[: HEADER.size]) != header(salt, base_offset):
            data = b""
        entries = memoryview(data)[HEADER.size :]
        words = entries[: len(entries) // ENTRY.size * ENTRY.size].cast("q")
        self._offsets, self._positions, self._timestamps = words[0::3], words[1::3], words[2::3]

    def __len__(self) -> int:
        return len(self._offsets)

    def entry(self, number: int) -> tuple[int, int, int]:
        """Offset, position and running maximum of timestamps."""
        return self._offsets[number], self._positions[number], self._timestamps[number]

    def by_offset(self, offset: int) -> int:
        """Position of the last entry at or before `offset`; 0 where there is none."""
        at = bisect_right(self._offsets, offset)
        return self._positions[at - 1] if at else 0

    def by_timestamp(self, timestamp_ms: int) -> int:
        """Position of the last entry before which no timestamp reaches `timestamp_ms`; 0 where there is none.

        The running maximum of entry i - 1 covers every batch up to and including that entry's.
        """
        at = bisect_right(self._timestamps, timestamp_ms - 1)
        return self._positions[at - 1] if at else 0
