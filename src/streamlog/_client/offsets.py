"""Offsets on their way to a commit: under the ids of their topics, with the generation in which each was noted (H34)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import TypeAlias

    from streamlog._client.cursor import Cursor
    from streamlog._coord.offsets import CommittedOffset
    from streamlog._replica.metadata import Metadata

    Offsets: TypeAlias = "dict[tuple[bytes, int], CommittedOffset]"
    Noted: TypeAlias = "dict[TopicPartition, int]"

from streamlog.errors import UnknownTopicOrPartitionError
from streamlog.types import OffsetAndMetadata, TopicPartition

NOT_A_MEMBER = "-"  # a member id that nobody has: of a consumer that was in its group, or will be


def processed(cursors: Iterable[Cursor]) -> dict[TopicPartition, OffsetAndMetadata]:
    """How far each partition is processed, where anything is."""
    return {
        cursor.tp: OffsetAndMetadata(cursor.processed, None if cursor.epoch < 0 else cursor.epoch)
        for cursor in cursors
        if cursor.processed is not None
    }


def under_topic_ids(
    offsets: Mapping[TopicPartition, OffsetAndMetadata], cursors: Mapping[TopicPartition, Cursor], known: Metadata, generation: int,
    now_ms: int, *, explicit: bool,
) -> tuple[Offsets, Noted]:  # fmt: skip
    """Offsets under the ids of the topics that were read.  What was deleted since is left out, or, if `explicit`, an error.

    An offset that its cursor has is noted in the cursor's generation, others in the member's `generation`.
    """
    written, generations = {}, {}
    for tp, offset in offsets.items():
        cursor, topic = cursors.get(tp), known.topics.get(tp.topic)
        if topic is None or (cursor is not None and cursor.topic_id != topic.topic_id):
            if explicit:
                raise UnknownTopicOrPartitionError(f"topic {tp.topic!r} was deleted since {tp.topic}-{tp.partition} was assigned; poll again")
            continue
        own = cursor is not None and cursor.processed == offset.offset
        generations[tp] = cursor.generation if own and cursor is not None else generation
        written[topic.topic_id, tp.partition] = committed_offset(offset, now_ms)
    return written, generations


def by_topic_id(offsets: Mapping[TopicPartition, OffsetAndMetadata], known: Metadata, now_ms: int) -> Offsets:
    """Offsets of topics that are there, as they are committed now."""
    return {(known.topic(tp.topic).topic_id, tp.partition): committed_offset(offset, now_ms) for tp, offset in offsets.items()}


def committed_offset(offset: OffsetAndMetadata, now_ms: int) -> CommittedOffset:
    """An offset as it is committed now."""
    from streamlog._coord.offsets import CommittedOffset  # here: a consumer without a group needs none

    epoch = -1 if offset.leader_epoch is None else offset.leader_epoch
    return CommittedOffset(offset.offset, epoch, offset.metadata, now_ms)
