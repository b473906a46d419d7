"""Which partition a record goes to: pure functions, callable alone.

A key's partition is the hash of its serialized bytes, `& 0x7fffffff`, modulo the number of partitions: all of them, not only
those that can be written.  `b""` is a key, None is not.
"""

from __future__ import annotations

import xxhash


def xxh3_partition(key: bytes, partitions: int) -> int:
    """The partition of a key under `key_hash="xxh3"`: the low 31 bits of XXH3-64."""
    return (xxhash.xxh3_64_intdigest(key) & 0x7FFFFFFF) % partitions
