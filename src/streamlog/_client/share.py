"""`Share`: the partitions of one consumer, as its membership in a group sees them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamlog.consumer import Consumer
    from streamlog.types import TopicPartition


class Share:
    """What its membership asks of a consumer, during one poll."""

    __slots__ = ("_consumer", "_patience")

    def __init__(self, consumer: Consumer, patience: float) -> None:
        self._consumer, self._patience = consumer, patience

    def held(self) -> dict[TopicPartition, int]:
        """The partitions that are read, with the generation in which the group gave them."""
        return {tp: cursor.assignment for tp, cursor in self._consumer._fetcher.cursors.items()}

    def revoke(self, partitions: Sequence[TopicPartition]) -> None:
        """These are about to go to another member."""
        consumer = self._consumer
        consumer._commit_by_itself(self._patience, partitions)
        consumer._listener.hear("on_partitions_revoked", partitions)
        consumer._drop(partitions)

    def lose(self, partitions: Sequence[TopicPartition]) -> None:
        """These are another member's already."""
        self._consumer._drop(partitions)
        self._consumer._listener.hear("on_partitions_lost", partitions)

    def receive(self, partitions: Mapping[TopicPartition, int]) -> None:
        """These are ours."""
        self._consumer._receive(partitions)
