"""The values that users hold: named tuples without behaviour."""

from __future__ import annotations

import collections

TYPE_CHECKING = False  # `typing` costs 10 ms of a 30 ms cold start; type checkers take this name for true
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, ClassVar
    from typing import NamedTuple as NamedTuple
else:

    class NamedTupleMeta(type):
        """`typing.NamedTuple` without `typing`: a class body of annotated fields becomes a named tuple."""

        def __new__(cls, name, bases, namespace):
            """Build the class, or, for the base itself, a plain type."""
            if not bases:
                return super().__new__(cls, name, bases, namespace)
            fields = list(namespace.pop("__annotations__", {}))
            defaults = [namespace.pop(field) for field in fields if field in namespace]
            made = collections.namedtuple(name, fields, defaults=defaults, module=namespace["__module__"])
            for key, value in namespace.items():
                if key not in ("__module__", "__qualname__"):
                    setattr(made, key, value)
            return made

    class NamedTuple(metaclass=NamedTupleMeta):
        """Base of the named tuples below."""


class TopicPartition(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


class OffsetAndMetadata(NamedTuple):
    """A committed offset: the next record to read, the leader epoch of the last one read (None: not known) and the committer's own words."""

    offset: int
    leader_epoch: int | None = None
    metadata: str = ""


class OffsetAndTimestamp(NamedTuple):
    """Where a look-up by time ended: the first record at or after the time asked for."""

    offset: int
    timestamp_ms: int
    leader_epoch: int


class RecordMetadata(NamedTuple):
    """Where a record was written.  `offset` is -1 under `acks=0`."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int


class BatchMetadata(NamedTuple):
    """Where a batch of `count` records was written: offsets `base_offset` to `base_offset + count - 1`."""

    topic: str
    partition: int
    base_offset: int
    count: int  # type: ignore[assignment]  # shadows tuple.count, which nobody asks of a result


class TimestampType(str):
    """Who gave a record its timestamp: the producer (`CREATE_TIME`) or the log (`LOG_APPEND_TIME`)."""

    __slots__ = ()
    CREATE_TIME: ClassVar[TimestampType]
    LOG_APPEND_TIME: ClassVar[TimestampType]

    def __repr__(self) -> str:
        return f"TimestampType.{'CREATE_TIME' if self == 'CreateTime' else 'LOG_APPEND_TIME'}"


TimestampType.CREATE_TIME = TimestampType("CreateTime")
TimestampType.LOG_APPEND_TIME = TimestampType("LogAppendTime")


class Record(NamedTuple):
    """One record, as a consumer returns it.  `headers` is a tuple of (str, bytes or None) pairs, empty where there are none."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    timestamp_type: TimestampType
    key: Any
    value: Any
    headers: tuple[tuple[str, bytes | None], ...]
    leader_epoch: int


class PartitionDescription(NamedTuple):
    """A partition as it stands: leader (-1: none, it is offline) and replicas are broker ids; sizes are bytes on disk, reserved space not counted.

    `isr` are the in-sync replicas, fewer than `replicas` where it is under-replicated; `eligible` those that may lead where none of them lives.
    Readers of committed records see offsets below `last_stable_offset`: the end, or where the earliest open transaction began.
    """

    partition: int
    leader: int
    leader_epoch: int
    replicas: tuple[int, ...]
    isr: tuple[int, ...]
    beginning_offset: int
    end_offset: int
    segments: int
    size_bytes: int
    last_stable_offset: int
    eligible: tuple[int, ...] = ()


class BrokerDescription(NamedTuple):
    """A broker as it stands: `state` is "online", "failed" or "stopped", `reason` says why.

    `leaders`, `replicas` and `in_sync` count partitions: that it leads, has a replica of, and has an in-sync one of.
    """

    broker: int
    path: str
    state: str
    reason: str
    leaders: int
    replicas: int
    in_sync: int


class Reassignment(NamedTuple):
    """A partition on its way to other brokers: `missing` are the records that its new replicas lack, added up."""

    topic: str
    partition: int
    replicas: tuple[int, ...]
    target: tuple[int, ...]
    missing: int


class TopicDescription(NamedTuple):
    """A topic as it stands: its id (32 hexadecimal digits), its configuration and its partitions."""

    name: str
    id: str
    config: Mapping[str, Any]
    partitions: tuple[PartitionDescription, ...]


class GroupMetadata(NamedTuple):
    """A consumer's membership at one moment, as a producer needs it to commit offsets in a transaction."""

    group_id: str
    generation: int
    member_id: str
    group_instance_id: str | None


class GroupListing(NamedTuple):
    """A group and its state: "Empty", "Assigning", "Reconciling", "Stable" or "Dead"."""

    group_id: str
    state: str


class MemberDescription(NamedTuple):
    """A member of a group and the partitions that are its own now."""

    member_id: str
    group_instance_id: str | None
    client_id: str
    pid: int
    assignment: frozenset[TopicPartition]


class GroupDescription(NamedTuple):
    """A group as it stands.  `offsets` are what it committed, `lag` the records after that; members are listed by member id."""

    group_id: str
    state: str
    generation: int
    assignor: str
    members: tuple[MemberDescription, ...]
    offsets: Mapping[TopicPartition, OffsetAndMetadata]
    lag: Mapping[TopicPartition, int]


class TransactionListing(NamedTuple):
    """A transactional id, the state of its transaction ("Empty", "Ongoing", "PrepareCommit", …), and its producer id."""

    transactional_id: str
    state: str
    producer_id: int


class TransactionDescription(NamedTuple):
    """A transactional id as it stands.

    `pid` is the process of its producer, `alive` whether that producer is; `partitions` are those of the open transaction.
    """

    transactional_id: str
    state: str
    producer_id: int
    producer_epoch: int
    client_id: str
    pid: int
    alive: bool
    timeout_ms: int
    started_ms: int
    partitions: tuple[TopicPartition, ...]


class HangingTransaction(NamedTuple):
    """An open transaction in a partition of which its transactional id knows nothing: a power cut took what ended it."""

    topic: str
    partition: int
    first_offset: int
    producer_id: int
    producer_epoch: int


class ClusterDescription(NamedTuple):
    """A cluster as it stands.  `pids` are the processes that have it open."""

    location: str
    cluster_id: str
    format_version: int
    brokers: tuple[int, ...]
    topics: int
    partitions: int
    pids: tuple[int, ...]


class Damage(NamedTuple):
    """Offsets of a partition that cannot be read: from `first_offset` up to, but not including, `next_offset`.  `reason` says why."""

    topic: str
    partition: int
    first_offset: int
    next_offset: int
    reason: str


class Finding(NamedTuple):
    """Something that `streamlog.check` found: the invariant's number in docs/invariants.md, the file, and what is wrong."""

    invariant: str
    path: str
    message: str
