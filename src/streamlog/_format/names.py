"""Every file name of a cluster, both ways.  The tree is drawn in docs/format.md."""

from __future__ import annotations

import xxhash

LOCK = "lock"
CLUSTER = "cluster.json"
RUN = "run"
CLUSTER_STATE = "cluster.state"
CLUSTER_LOCKS = "cluster.lock"
PARTITION_LOCKS = "partitions.lock"
GROUP_LOCKS = "groups.lock"
TRANSACTION_LOCKS = "transactions.lock"
TRANSACTION_HOLDERS = "transactions.state"
TRANSACTION_STRIPES = 512
TOPIC_LOCK = 65_535
META_PROPERTIES = "meta.properties"
RECOVERY_POINTS = "recovery-point-offset-checkpoint"
HIGH_WATERMARKS = "replication-offset-checkpoint"
QUORUM_STATE = "quorum-state"
LEADER_EPOCHS = "leader-epoch-checkpoint"
LOG, INDEX, TRANSACTION_INDEX, SNAPSHOT = ".log", ".index", ".txnindex", ".snapshot"
TEMPORARY = ".tmp"
DELETED = "-delete"
DAMAGED = "-damaged"
OFFSETS_SNAPSHOT = "offsets-snapshot"
TRANSACTIONS_SNAPSHOT = "transactions-snapshot"
METADATA_TOPIC = "__cluster_metadata"
OFFSETS_TOPIC = "__consumer_offsets"
TRANSACTIONS_TOPIC = "__transaction_state"
INTERNAL_TOPICS = frozenset((METADATA_TOPIC, OFFSETS_TOPIC, TRANSACTIONS_TOPIC, "__share_group_state"))
MAX_TOPIC_NAME = 249

_LEGAL = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")  # (`re` costs 5 ms of a cold start)
_DIGITS = frozenset("0123456789")


def topic_problem(name: object) -> str | None:
    """Why `name` cannot name a topic, or None (Kafka's rules: org.apache.kafka.common.internals.Topic)."""
    if not isinstance(name, str):
        return f"a topic's name is a str, not {type(name).__name__}"
    if name in ("", ".", ".."):
        return f"{name!r} cannot name a topic"
    if len(name) > MAX_TOPIC_NAME:
        return f"a topic's name has at most {MAX_TOPIC_NAME} characters, this one {len(name)}"
    if not _LEGAL.issuperset(name):
        return f"{name!r} cannot name a topic: letters, digits, '.', '_' and '-' can stand in it"
    return None


def collision_key(topic: str) -> str:
    """Two topics with the same key collide in metrics, where '.' becomes '_'."""
    return topic.replace(".", "_")


def broker(number: int) -> str:
    """Directory of a broker below the home."""
    return f"broker-{number}"


def partition(topic: str, number: int) -> str:
    """Directory of a partition's replica, below its broker."""
    return f"{topic}-{number}"


def parse_partition(name: str) -> tuple[str, int] | None:
    """Topic and partition of a replica's directory."""
    topic, dash, number = name.rpartition("-")
    if not dash or topic_problem(topic) or not number or not _DIGITS.issuperset(number):
        return None
    return topic, int(number)


def deleted(topic: str, number: int, topic_id: bytes) -> str:
    """What a deleted partition's directory is called until its files are gone (at most 255 bytes)."""
    return f"{topic[:200]}-{number}.{topic_id.hex()}{DELETED}"


def set_aside(topic: str, number: int, now_ms: int) -> str:
    """Directory beside a partition's that holds copies of damaged segments."""
    return f"{topic[:200]}-{number}.{now_ms}{DAMAGED}"


def log(base_offset: int) -> str:
    """File of the segment that begins at `base_offset`."""
    return f"{base_offset:020}{LOG}"


def index(base_offset: int) -> str:
    """Sparse index of that segment."""
    return f"{base_offset:020}{INDEX}"


def transaction_index(base_offset: int) -> str:
    """Transactions that were aborted in that segment."""
    return f"{base_offset:020}{TRANSACTION_INDEX}"


def snapshot(offset: int) -> str:
    """State of the producers of the batches below `offset`."""
    return f"{offset:020}{SNAPSHOT}"


def base_offsets(listing: list[str]) -> list[int]:
    """First offsets of the segments in a directory's listing, in order."""
    return _offsets(listing, LOG)


def snapshot_offsets(listing: list[str]) -> list[int]:
    """Offsets of the producer snapshots in a directory's listing, in order."""
    return _offsets(listing, SNAPSHOT)


def _offsets(listing: list[str], ending: str) -> list[int]:
    length = 20 + len(ending)
    return sorted(int(name[:20]) for name in listing if len(name) == length and name.endswith(ending) and _DIGITS.issuperset(name[:20]))


def state(topic_id: bytes, broker: int = 0) -> str:
    """State slots of a topic's replicas on a broker, in `run/`."""
    return f"{topic_id.hex()}.{broker}.state" if broker else f"{topic_id.hex()}.state"


def leaders(topic_id: bytes) -> str:
    """Leaders, in-sync sets and high watermarks of a topic's partitions, in `run/`."""
    return f"{topic_id.hex()}.leaders"


def partition_locks(broker: int) -> str:
    """Lock bytes of the replicas on a broker, in `run/`."""
    return f"partitions.{broker}.lock" if broker else PARTITION_LOCKS


def group(group_id: str) -> str:
    """Live state of a group, in `run/`.  A group's id may be any text, so its hash stands in the name."""
    return f"{xxhash.xxh3_128_hexdigest(group_id.encode())}.group"


def keeper_partition(name: str, partitions: int) -> int:
    """The partition of `__consumer_offsets` that keeps a group, or of `__transaction_state` that keeps a transactional id.

    Kafka's formula, by Java's hash of the string (org.apache.kafka's Utils.abs).
    """
    number = 0
    data = name.encode("utf-16-be", "surrogatepass")
    for at in range(0, len(data), 2):
        number = 31 * number + (data[at] << 8 | data[at + 1]) & 0xFFFFFFFF
    return (0 if number == 0x80000000 else number if number < 0x80000000 else 0x100000000 - number) % partitions


def transaction_lock(transactional_id: str) -> int:
    """The byte of `transactions.lock`, below `TRANSACTION_STRIPES`, that is the lock of a transactional id; some ids share one."""
    return xxhash.xxh3_64_intdigest(transactional_id.encode()) % TRANSACTION_STRIPES


def lock_bytes(random_id: bytes) -> int:
    """First of the 65,536 bytes of a lock file that are a topic's or a group's: 47 bits of its random id say where.

    In `partitions.lock` byte 4 p is partition p's, byte 4 p + 1 its sync lock, byte 4 p + 2 that of its leadership, the last one the topic's own;
    other brokers have a file each for the first two.  In `groups.lock` the
    first byte is the group's lock, byte 1 + s the liveness of member slot s.
    """
    return int.from_bytes(random_id[:6], "big") >> 1 << 16
