"""`__consumer_offsets`: what groups committed, as a fold over a log.

Keys and values are msgpack arrays; a key begins with Kafka's name for it.  The last record of a key counts, one without a value takes
it away.

    ["OffsetCommit", group, topic id, partition]    [offset, leader epoch, metadata, commit time (ms), member]
    ["GroupMetadata", group]                        [epoch, assignor, empty since (ms) or nil, {topic: [id, partitions, base, wanted]},
                                                    {pattern: since}]

Committed offsets are kept by topic id: those of a deleted topic are nobody's.  A group is written when it begins, at each new generation
and when it becomes empty; who is in it is live state (group_file.py) and does not outlive the boot.

A transactional batch of commits is pending until its marker.  It names the member, whose transaction is aborted when it is expired (H37).
A process folds a partition when it first needs a group of it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from streamlog._format.batch import Batch

from streamlog._coord.group import Group
from streamlog._format import names
from streamlog._format.batch import CONTROL, TRANSACTIONAL
from streamlog._format.control import is_commit
from streamlog._log.fold import Fold, packed, unpacked
from streamlog._log.log import Log
from streamlog._log.pending import Pending
from streamlog.types import NamedTuple, OffsetAndMetadata

Place = tuple[bytes, int]  # topic id and partition
OFFSET_COMMIT, GROUP_METADATA = "OffsetCommit", "GroupMetadata"


class CommittedOffset(NamedTuple):
    """An offset as it was committed."""

    offset: int
    leader_epoch: int  # -1: not known
    metadata: str
    commit_ms: int
    member_id: str = ""  # who sent it in a transaction: to be known as long as that is open

    def public(self) -> OffsetAndMetadata:
        """As users see it."""
        return OffsetAndMetadata(self.offset, None if self.leader_epoch < 0 else self.leader_epoch, self.metadata)


class GroupMetadata(NamedTuple):
    """What of a group outlives its members."""

    epoch: int
    assignor: str
    empty_since_ms: int | None
    topics: dict[str, list[Any]]
    patterns: dict[str, int]


class Held(NamedTuple):
    """An offset in an open transaction: the producer's epoch, and where its batch stands in the log."""

    committed: CommittedOffset | None
    at: int
    epoch: int


class GroupOffsets:
    """A group in the fold."""

    __slots__ = ("metadata", "offsets", "pending")

    def __init__(self, metadata: GroupMetadata | None = None) -> None:
        self.metadata = metadata
        self.offsets: dict[Place, CommittedOffset] = {}
        self.pending: dict[Place, dict[int, Held]] = {}
        """What open transactions hold, by producer id."""


def commit_record(group_id: str, topic_id: bytes, partition: int, committed: CommittedOffset | None) -> tuple[list[Any], list[Any] | None]:
    """Key and value of a committed offset; None takes it away."""
    return [OFFSET_COMMIT, group_id, topic_id, partition], None if committed is None else list(committed)


def metadata_record(group_id: str, metadata: GroupMetadata | None) -> tuple[list[Any], list[Any] | None]:
    """Key and value of a group; None takes it away."""
    return [GROUP_METADATA, group_id], None if metadata is None else list(metadata)


class OffsetsLog(Fold):
    """One partition of `__consumer_offsets`, and this process's fold of it.  Safe to share between threads."""

    snapshot, snapshot_every = names.OFFSETS_SNAPSHOT, 2048  # folding so many records costs 8 ms

    def __init__(self, log: Log, *, use_snapshot: bool = True) -> None:
        super().__init__(log, use_snapshot=use_snapshot)
        self._groups: dict[str, GroupOffsets] = {}
        self._open: dict[int, set[tuple[str, Place]]] = {}
        """By producer id: what of which group its open transaction holds."""

    def append(self, records: Iterable[tuple[list[Any], list[Any] | None]], now_ms: int, timeout: float) -> Pending:
        """Write records as one batch: all or none of them are there."""
        batch = packed(records, now_ms)
        self.log.append(batch, timeout)
        return batch

    def groups(self, timeout: float) -> dict[str, GroupOffsets]:
        """All groups of this partition, with all folded that is visible now.  A copy of the table; its values must not be changed."""
        self.refresh(timeout)
        return dict(self._groups)

    def group(self, group_id: str, timeout: float) -> GroupOffsets:
        """A group as of now."""
        self.refresh(timeout)
        return self._groups.get(group_id) or GroupOffsets()

    def places(self, group_id: str, timeout: float) -> list[Place]:
        """The partitions of which a group has committed an offset, or holds one in an open transaction."""
        self.refresh(timeout)
        found = self._groups.get(group_id)
        return [] if found is None else sorted({*found.offsets, *found.pending})

    def state(self, timeout: float) -> list[tuple[Any, ...]]:
        """Everything as of now, in an order that does not depend on how it came about."""
        self.refresh(timeout)
        return sorted(
            (group_id, group.metadata or (), sorted(group.offsets.items()), sorted((place, sorted(held)) for place, held in group.pending.items()))
            for group_id, group in list(self._groups.items())
        )

    # ---- the fold ----------------------------------------------------------------------------------------------------------

    def _fold(self, batch: Batch) -> None:
        if batch.attributes & CONTROL:
            self._end_transaction(batch.producer_id, commit=is_commit(batch))
            return
        for (kind, group_id, *where), value in unpacked(batch):
            group = self._group(group_id)
            if kind == GROUP_METADATA:
                group.metadata = None if value is None else GroupMetadata(*value)
            elif kind == OFFSET_COMMIT:
                place: Place = (where[0], where[1])
                committed = None if value is None else CommittedOffset(*value)
                if batch.attributes & TRANSACTIONAL:
                    self._open.setdefault(batch.producer_id, set()).add((group_id, place))
                    group.pending.setdefault(place, {})[batch.producer_id] = Held(committed, batch.base_offset, batch.producer_epoch)
                else:
                    self._commit(group, place, committed, batch.base_offset)
            self._drop_empty(group_id)

    def _group(self, group_id: str) -> GroupOffsets:
        group = self._groups.get(group_id)
        if group is None:
            group = self._groups[group_id] = GroupOffsets()
        return group

    def _drop_empty(self, group_id: str) -> None:
        group = self._groups.get(group_id)
        if group is not None and group.metadata is None and not (group.offsets or group.pending):
            del self._groups[group_id]

    @staticmethod
    def _commit(group: GroupOffsets, place: Place, committed: CommittedOffset | None, at: int) -> None:
        """An offset counts; of a plain commit and a transactional one the later in the log does."""
        if committed is None:
            group.offsets.pop(place, None)
        else:
            group.offsets[place] = committed
        held = group.pending.get(place)
        if held:
            for producer_id in [producer_id for producer_id, older in held.items() if older.at < at]:
                del held[producer_id]
            if not held:
                del group.pending[place]

    def _end_transaction(self, producer_id: int, *, commit: bool) -> None:
        """Its marker is there: what was pending counts, or never did.  Folded again it changes nothing."""
        for group_id, place in list(self._open.get(producer_id, ())):
            group = self._group(group_id)
            held = group.pending.get(place, {})
            if commit and producer_id in held:
                self._commit(group, place, held[producer_id].committed, held[producer_id].at)
            held.pop(producer_id, None)
            if not held:
                group.pending.pop(place, None)
            self._drop_empty(group_id)
        self._open.pop(producer_id, None)

    def _copied(self) -> Any:
        return [
            (group_id, group.metadata, dict(group.offsets), {place: dict(held) for place, held in group.pending.items()})
            for group_id, group in self._groups.items()
        ]  # fmt: skip

    def _packed(self, state: Any) -> Any:
        return [
            (
                group_id, metadata, [(*place, committed) for place, committed in offsets.items()],
                [(*place, producer_id, *held) for place, by_producer in pending.items() for producer_id, held in by_producer.items()],
            )
            for group_id, metadata, offsets, pending in state
        ]  # fmt: skip

    def _unpack(self, packed: Any) -> None:
        for group_id, metadata, offsets, pending in packed:
            group = self._groups[group_id] = GroupOffsets(None if metadata is None else GroupMetadata(*metadata))
            group.offsets = {(topic_id, partition): CommittedOffset(*committed) for topic_id, partition, committed in offsets}
            for topic_id, partition, producer_id, committed, at, epoch in pending:
                place = topic_id, partition
                held = Held(None if committed is None else CommittedOffset(*committed), at, epoch)
                group.pending.setdefault(place, {})[producer_id] = held
                self._open.setdefault(producer_id, set()).add((group_id, place))


def expired(found: GroupOffsets, live: Group | None, now_ms: int, retention_minutes: int) -> Callable[[tuple[bytes, int], CommittedOffset], bool]:
    """Tells which offsets nobody kept alive for `offsets_retention_minutes`: of a group without members, since it became empty or since
    the commit; of a group with members, those of topics that none of them subscribes to, since the commit (KIP-211).
    """
    limit = now_ms - retention_minutes * 60_000
    if live is not None and live.members:
        kept = {topic.topic_id for topic in live.topics.values() if topic.wanted}
        return lambda key, committed: committed.commit_ms < limit and key[0] not in kept
    if found.metadata is not None and found.metadata.empty_since_ms is None:
        return lambda key, committed: False  # noqa: ARG005  (its members died and nobody has looked since)
    since = 0 if found.metadata is None else found.metadata.empty_since_ms or 0
    return lambda key, committed: max(committed.commit_ms, since) < limit  # noqa: ARG005
