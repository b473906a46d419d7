"""Which partition a record goes to.  Pure; can be called alone.

    partition_of(b"user-1", 12)                             # what a default producer chooses
    partition_of(b"user-1", 12, "murmur2")                  # what Kafka's Java client chooses
    partitions_of([b"user-1", b"user-2", None], 12)         # a whole column: array([7, 2, -1]); -1 where there is no key

A key's partition is the hash of its serialized bytes modulo the number of partitions: all of them, not only those that can be
written.  `b""` is a key, None is not.  Records without one go to a *sticky* partition (KIP-794), round robin, or anywhere.

One's own partitioner is a callable or a `Partitioner`.  It runs on the thread that sends, under no lock; several threads may be in it at
once.  What it raises comes out of `send`, and nothing was sent then.
"""

from __future__ import annotations

import random
from itertools import count
from struct import Struct
from zlib import crc32 as _crc32

import xxhash

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    import numpy

from streamlog.errors import InvalidConfigError

_31_BITS, _32_BITS = 0x7FFFFFFF, 0xFFFFFFFF
_MURMUR2_SEED, _MURMUR2_M = 0x9747B28C, 0x5BD1E995
_WORD = Struct("<I")
_FNV_OFFSET, _FNV_PRIME = 0x811C9DC5, 0x01000193
_REMEMBERED_BYTES = 8 << 20  # of keys whose murmur2 is remembered


# ---- hashes --------------------------------------------------------------------------------------------------------------

_murmur2_of: dict[bytes, int] = {}
_murmur2_left = [_REMEMBERED_BYTES]


def murmur2(key: bytes) -> int:
    """Java's hash of a key, signed as Java has it (org.apache.kafka.common.utils.Utils.murmur2).

    In Python it takes 0.3 µs a byte, so what was hashed is remembered, up to 8 MiB of keys.
    """
    found = _murmur2_of.get(key)
    if found is None:
        found = _murmur2(key)
        cost = len(key) + 100  # and what a dictionary's row takes
        if cost > _murmur2_left[0]:
            _murmur2_of.clear()
            _murmur2_left[0] = _REMEMBERED_BYTES
        if cost <= _REMEMBERED_BYTES:
            _murmur2_of[key] = found
            _murmur2_left[0] -= cost
    return found


def _murmur2(key: bytes) -> int:
    length, m = len(key), _MURMUR2_M
    whole = length & ~3
    h = _MURMUR2_SEED ^ length
    for (k,) in _WORD.iter_unpack(memoryview(key)[:whole]):
        k = k * m & _32_BITS
        k = (k ^ k >> 24) * m & _32_BITS
        h = h * m & _32_BITS ^ k
    if whole < length:
        h = (h ^ int.from_bytes(key[whole:], "little")) * m & _32_BITS
    h = (h ^ h >> 13) * m & _32_BITS
    h ^= h >> 15
    return h - (h >> 31 << 32)


def fnv1a(key: bytes) -> int:
    """Librdkafka's and Sarama's FNV-1a: 32 bits taken as signed, without the sign (rdfnv1a.c)."""
    h = _FNV_OFFSET
    for byte in key:
        h = (h ^ byte) * _FNV_PRIME & _32_BITS
    return h if h <= _31_BITS else (1 << 32) - h


HASHES: dict[str, tuple[Callable[[bytes], int], int]] = {
    "xxh3": (xxhash.xxh3_64_intdigest, _31_BITS),  # the low 31 bits of XXH3-64; 0.1 µs
    "murmur2": (murmur2, _31_BITS),  # Kafka's Java client: `& 0x7fffffff`, not `abs`
    "crc32": (_crc32, _32_BITS),  # librdkafka's consistent_random
    "fnv1a": (fnv1a, _32_BITS),
}
"""`key_hash` by name: a function, and the bits of its result that count."""


def partition_of(key: bytes, partitions: int, key_hash: str = "xxh3") -> int:
    """The partition of a serialized key."""
    function, bits = _named(key_hash)
    return (function(key) & bits) % partitions


def _named(key_hash: str) -> tuple[Callable[[bytes], int], int]:
    if key_hash not in HASHES:
        raise InvalidConfigError(f"key_hash={key_hash!r}: one of {', '.join(map(repr, HASHES))} is wanted")
    return HASHES[key_hash]


# ---- a column of keys ------------------------------------------------------------------------------------------------------


def partitions_of(keys: Sequence[bytes | None], partitions: int, key_hash: str = "xxh3") -> numpy.ndarray[Any, Any]:
    """The partition of each key, as int64, shape (len(keys),): what `partition_of` says, -1 where the key is None.

    murmur2 and fnv1a are computed for all keys of one length at once (0.1 µs a key of 10 bytes).
    """
    import numpy as np

    chosen = np.full(len(keys), -1, np.int64)
    there = [number for number, key in enumerate(keys) if key is not None] if None in keys else range(len(keys))
    given: Sequence[Any] = [keys[number] for number in there] if len(there) < len(keys) else keys
    function, bits = _named(key_hash)
    if key_hash in _BY_LENGTH:
        hashes = _hash_by_length(given, _BY_LENGTH[key_hash])
    else:
        hashes = np.fromiter(map(function, given), np.uint64, len(given))
    chosen[np.asarray(there, np.int64)] = (hashes & np.uint64(bits)) % np.uint64(partitions)
    return chosen


def _hash_by_length(keys: Sequence[bytes], function: Callable[[Any], Any]) -> numpy.ndarray[Any, Any]:
    """Hashes as uint64; `function` takes keys of one length as uint8, shape (rows, length), and returns uint32."""
    import numpy as np

    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    hashes = np.empty(len(keys), np.uint64)
    for length in np.unique(lengths).tolist():
        rows = np.flatnonzero(lengths == length)
        data = b"".join(keys if len(rows) == len(keys) else map(keys.__getitem__, rows.tolist()))
        hashes[rows] = function(np.frombuffer(data, np.uint8).reshape(len(rows), length))
    return hashes


def _murmur2_rows(rows: Any) -> Any:
    import numpy as np

    length = rows.shape[1]
    whole, m = length & ~3, np.uint32(_MURMUR2_M)
    h = np.full(len(rows), _MURMUR2_SEED ^ length, np.uint32)
    words = np.ascontiguousarray(rows[:, :whole]).view("<u4").astype(np.uint32, copy=False)
    for k in words.T:
        k = k * m
        k = (k ^ k >> np.uint32(24)) * m
        h = h * m ^ k
    if whole < length:
        tail = sum(rows[:, whole + byte].astype(np.uint32) << np.uint32(8 * byte) for byte in range(length - whole))
        h = (h ^ tail) * m
    h = (h ^ h >> np.uint32(13)) * m
    return h ^ h >> np.uint32(15)


def _fnv1a_rows(rows: Any) -> Any:
    import numpy as np

    h = np.full(len(rows), _FNV_OFFSET, np.uint32)
    for column in rows.T:
        h = (h ^ column) * np.uint32(_FNV_PRIME)
    return np.where(h <= _31_BITS, h, ~h + np.uint32(1))


_BY_LENGTH = {"murmur2": _murmur2_rows, "fnv1a": _fnv1a_rows}


# ---- records without a key -------------------------------------------------------------------------------------------------


class Partitioner:
    """What a producer asks for the partition of each record that names none; and tells of each batch that is complete."""

    def partition(self, topic: str, key: bytes | None, value: bytes | None, partitions: Sequence[int]) -> int:
        """One of `partitions`, which are all that the topic has.  Key and value as they are stored.  Several threads may be in it at once."""
        raise NotImplementedError(f"{type(self).__name__} has no `partition` method")

    def batch_completed(self, topic: str, partition: int, size: int) -> None:
        """A batch of `size` bytes takes no more records: it was full, its linger was over, or it was flushed.

        Called by the thread that writes the batch: one that sends or flushes, or the producer's own.
        """


class RoundRobinPartitioner(Partitioner):
    """Each record to the next partition, whatever its key; topic by topic.  No partition is skipped (KAFKA-9965)."""

    def __init__(self) -> None:
        self._turns: dict[str, count[int]] = {}

    def partition(self, topic: str, key: bytes | None, value: bytes | None, partitions: Sequence[int]) -> int:  # noqa: ARG002
        """The next one."""
        turn = self._turns.get(topic)
        if turn is None:
            turn = self._turns.setdefault(topic, count())
        return partitions[next(turn) % len(partitions)]


class HashPartitioner(Partitioner):
    """Records with a key by its hash, others at random, each for itself."""

    def __init__(self, key_hash: str = "xxh3") -> None:
        self._key_hash = key_hash

    def partition(self, topic: str, key: bytes | None, value: bytes | None, partitions: Sequence[int]) -> int:  # noqa: ARG002
        """By hash, or any."""
        return random.choice(partitions) if key is None else partitions[partition_of(key, len(partitions), self._key_hash)]


class CallablePartitioner(Partitioner):
    """A function as a partitioner."""

    def __init__(self, function: Callable[[str, bytes | None, bytes | None, Sequence[int]], int]) -> None:
        self._function = function

    def __repr__(self) -> str:
        return repr(self._function)

    def partition(self, topic: str, key: bytes | None, value: bytes | None, partitions: Sequence[int]) -> int:
        """What the function says."""
        return self._function(topic, key, value, partitions)


class Sticky:
    """The partition of one topic's records without a key: uniform whatever the speed of partitions (KIP-794).

    It stays for at least `batch_size` bytes and until the batch there is complete.  A batch has at most `batch_size` bytes (or is one
    record), so it stays for less than twice that.  Not thread-safe.
    """

    __slots__ = ("_batch_size", "_bytes", "partition", "partitions")

    def __init__(self, partitions: Sequence[int], batch_size: int) -> None:
        self.partitions, self._batch_size, self._bytes = partitions, batch_size, 0
        self.partition = random.choice(partitions)

    def batch_completed(self, size: int) -> None:
        """A batch of the partition takes no more records."""
        self._bytes += size
        if self._bytes >= self._batch_size:
            self.switch()

    def switch(self) -> None:
        """Go on with any partition: the same one again too, as in Kafka."""
        self.partition, self._bytes = random.choice(self.partitions), 0

    def restrict(self, partitions: Sequence[int]) -> None:
        """From now on only these can be chosen: the others have no leader."""
        self.partitions = partitions
        if self.partition not in partitions:
            self.switch()


def resolved(option: str, value: Any) -> Partitioner | str:
    """The partitioner that a name, a callable, a class or an object stands for; names stay names.  Raises InvalidConfigError."""
    if isinstance(value, str) and value in ("sticky", "round_robin", "hash"):
        return value
    if isinstance(value, type) and issubclass(value, Partitioner):
        try:
            return value()
        except TypeError as error:
            raise InvalidConfigError(f"{option}={value!r}: a class that takes no arguments is wanted, or an object: {error}") from None
    if callable(getattr(value, "partition", None)) and not isinstance(value, str):
        return value  # type: ignore[no-any-return]
    if callable(value):
        return CallablePartitioner(value)
    raise InvalidConfigError(f"{option}={value!r}: 'sticky', 'round_robin', 'hash', a callable or a Partitioner is wanted")
