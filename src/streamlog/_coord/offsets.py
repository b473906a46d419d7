"""`__consumer_offsets`: what groups committed, as a fold over a log.

Keys and values are msgpack arrays; a key begins with Kafka's name for it.  The last record of a key counts, one without a value takes
it away.

    ["OffsetCommit", group, topic id, partition]    [offset, leader epoch, metadata, commit time (ms)]
    ["GroupMetadata", group]                        [epoch, assignor, empty since (ms) or nil, {topic: [id, partitions, base, wanted]},
                                                    {pattern: since}]

Committed offsets are kept by topic id: those of a deleted topic are nobody's.  A group is written when it begins, at each new generation
and when it becomes empty; who is in it is live state (group_file.py) and does not outlive the boot.

A process folds a partition when it first needs a group of it, from the snapshot `offsets-snapshot` on.  The snapshot is derived: whoever
has folded `_SNAPSHOT_EVERY` records beyond it writes the next one, aside, then renamed.
"""

from __future__ import annotations

import struct
from _thread import allocate_lock, get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

from streamlog._coord.group import Group
from streamlog._format import batch as fmt
from streamlog._format import names
from streamlog._log.partition import PartitionLog, Pending
from streamlog._log.reader import LogReader
from streamlog._os import files
from streamlog.errors import StorageError, StreamlogError
from streamlog.types import NamedTuple, OffsetAndMetadata

_SNAPSHOT_EVERY = 2048  # records: folding them costs 8 ms
_SNAPSHOT = struct.Struct("<4sIQ")  # magic, zero, checksum of the rest
_SNAPSHOT_MAGIC = b"SLO1"
OFFSET_COMMIT, GROUP_METADATA = "OffsetCommit", "GroupMetadata"


class CommittedOffset(NamedTuple):
    """An offset as it was committed."""

    offset: int
    leader_epoch: int  # -1: not known
    metadata: str
    commit_ms: int

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


class GroupOffsets:
    """A group in the fold."""

    __slots__ = ("metadata", "offsets")

    def __init__(self, metadata: GroupMetadata | None = None) -> None:
        self.metadata = metadata
        self.offsets: dict[tuple[bytes, int], CommittedOffset] = {}


def commit_record(group_id: str, topic_id: bytes, partition: int, committed: CommittedOffset | None) -> tuple[list[Any], list[Any] | None]:
    """Key and value of a committed offset; None takes it away."""
    return [OFFSET_COMMIT, group_id, topic_id, partition], None if committed is None else list(committed)


def metadata_record(group_id: str, metadata: GroupMetadata | None) -> tuple[list[Any], list[Any] | None]:
    """Key and value of a group; None takes it away."""
    return [GROUP_METADATA, group_id], None if metadata is None else list(metadata)


class OffsetsLog:
    """One partition of `__consumer_offsets`, and this process's fold of it.  Safe to share between threads."""

    def __init__(self, log: PartitionLog, *, use_snapshot: bool = True) -> None:
        self.log, self._use_snapshot = log, use_snapshot
        self._lock = allocate_lock()
        self._folding = 0  # the thread that folds
        self._reader: LogReader | None = None
        self._next = self._snapshot_at = 0
        self._groups: dict[str, GroupOffsets] = {}

    def append(self, records: Iterable[tuple[list[Any], list[Any] | None]], now_ms: int, timeout: float) -> Pending:
        """Write records as one batch: all or none of them are there."""
        import msgpack  # here: 4 ms of a cold start

        batch = Pending()
        rows = [(msgpack.packb(key), None if value is None else msgpack.packb(value)) for key, value in records]
        batch.attributes, batch.columns = fmt.encode_rows([value for _, value in rows], [key for key, _ in rows])
        batch.count = len(rows)
        batch.base_timestamp = batch.max_timestamp = now_ms
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

    def committed(self, group_id: str, timeout: float) -> dict[tuple[bytes, int], CommittedOffset]:
        """A group's offsets as of now (a copy)."""
        self.refresh(timeout)
        found = self._groups.get(group_id)
        return {} if found is None else dict(found.offsets)

    def state(self, timeout: float) -> list[tuple[Any, ...]]:
        """Everything as of now, in an order that does not depend on how it came about."""
        self.refresh(timeout)
        return sorted(
            (group_id, group.metadata or (), sorted(group.offsets.items())) for group_id, group in list(self._groups.items())
        )  # fmt: skip

    # ---- the fold ----------------------------------------------------------------------------------------------------------

    def refresh(self, timeout: float) -> None:
        """Fold what is visible."""
        self.log.ensure_valid(timeout)
        me = get_ident()
        if self._folding == me or (self._reader is not None and self.log.high_watermark <= self._next):
            return  # a signal handler or finalizer inside the fold sees what is folded so far (H18)
        with self._lock:
            self._folding = me
            try:
                self._fold_all(timeout)
            finally:
                self._folding = 0

    def keep_up(self, timeout: float) -> None:
        """Fold, and so write a snapshot, once a snapshot is due: who only commits reads nothing otherwise (H36).  Outside locks."""
        if self.log.high_watermark - self._next >= _SNAPSHOT_EVERY:
            self.refresh(timeout)

    def _fold_all(self, timeout: float) -> None:
        if self._reader is None:
            if self._use_snapshot:
                self._load_snapshot()
            self._reader = LogReader(self.log, self._next, timeout=timeout)
        while self._next < self.log.high_watermark:
            if self._reader.offset != self._next:  # an exception from outside interrupted the fold of a batch
                self._reader = LogReader(self.log, self._next, timeout=timeout)
            batch = self._reader.next()
            if batch is None:
                break
            self._fold(batch)
            self._next = batch.next_offset
        if self._use_snapshot and self._next - self._snapshot_at >= _SNAPSHOT_EVERY:
            self._save_snapshot(self._reader.epoch)

    def _fold(self, batch: fmt.Batch) -> None:
        import msgpack

        columns, unpack, groups = batch.columns(), msgpack.unpackb, self._groups
        assert columns.keys is not None
        values = [None] * batch.count if columns.values is None else columns.values.to_list()
        for packed, value in zip(columns.keys.to_list(), values):
            kind, group_id, *where = unpack(packed)
            group = groups.get(group_id)
            if group is None:
                group = groups[group_id] = GroupOffsets()
            if kind == OFFSET_COMMIT:
                if value is None:
                    group.offsets.pop(tuple(where), None)
                else:
                    group.offsets[tuple(where)] = CommittedOffset(*unpack(value))
            elif kind == GROUP_METADATA:
                group.metadata = None if value is None else GroupMetadata(*unpack(value))
            if value is None and group.metadata is None and not group.offsets:
                del groups[group_id]

    @property
    def _snapshot_path(self) -> str:
        return f"{self.log.directory}/{names.OFFSETS_SNAPSHOT}"

    def _load_snapshot(self) -> None:
        """Begin at the snapshot, if it is whole and of this log."""
        import msgpack

        try:
            data = files.read_file(self.log.fs, self._snapshot_path)
            magic, _, expected = _SNAPSHOT.unpack_from(data)
            body = data[_SNAPSHOT.size :]
            if magic != _SNAPSHOT_MAGIC or fmt.checksum(body) != expected:
                return
            offset, epoch, rows = msgpack.unpackb(body)
            end = self.log.leader_epochs().end_offset_for(epoch, self.log.high_watermark)
        except (FileNotFoundError, ValueError, struct.error, StorageError):
            return
        if not self.log.start_offset <= offset <= end:
            return
        for group_id, metadata, offsets in rows:
            group = self._groups[group_id] = GroupOffsets(None if metadata is None else GroupMetadata(*metadata))
            group.offsets = {(topic_id, partition): CommittedOffset(*committed) for topic_id, partition, committed in offsets}
        self._next = self._snapshot_at = offset

    def _save_snapshot(self, epoch: int) -> None:
        import msgpack

        rows = [
            (group_id, group.metadata, [(*key, committed) for key, committed in group.offsets.items()])
            for group_id, group in self._groups.items()
        ]
        body = msgpack.packb((self._next, epoch, rows))
        path = self._snapshot_path
        data = _SNAPSHOT.pack(_SNAPSHOT_MAGIC, 0, fmt.checksum(body)) + body
        self._snapshot_at = self._next
        try:
            files.write_whole(self.log.fs, path, data, temporary=f"{path}.{self.log.pid}{names.TEMPORARY}", synced=False)
        except (OSError, StreamlogError):
            pass  # derived: it only spares a longer fold


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
