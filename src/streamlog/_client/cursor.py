"""`Cursor`: where a consumer is in one partition."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from streamlog._format.batch import Batch
    from streamlog._log.log import Log
    from streamlog.types import Record, TopicPartition

from streamlog._log.reader import LogReader


class Cursor:
    """Where a consumer is in one partition.

    `position` is the offset of the next record to return, None until it is first needed.  `batch` with `records` from `at` on is what
    was read and not returned yet.  `processed` is the offset that may be committed, None where there is none, noted in the group's
    `generation`; `committed` the one that was committed last; `assignment` the generation in which the group gave the partition.
    """

    __slots__ = (
        "assignment", "at", "batch", "committed", "epoch", "generation", "held_up", "log", "paused", "position", "processed", "reader", "records",
        "reset", "stops_at", "topic_id", "tp", "truncated",
    )  # fmt: skip

    def __init__(self, tp: TopicPartition, topic_id: bytes, log: Log, reset: str) -> None:
        self.tp, self.topic_id, self.log, self.reset = tp, topic_id, log, reset
        self.position: int | None = None
        self.reader: LogReader | None = None
        self.paused = False
        self.held_up = False  # an open transaction of the group decides where it begins
        self.epoch = -1  # leader epoch of the last record before `processed` (or `position`, where it was looked up)
        self.generation = self.assignment = -1
        self.processed: int | None = None
        self.committed: int | None = None
        self.truncated: tuple[int, int] | None = None  # offset and epoch at which the log went on differently, where nobody has decided yet
        self.drop()

    def drop(self) -> None:
        """Forget what was read ahead."""
        self.stops_at = -1  # a record in `batch` that a deserializer refused: the next call begins, and fails, there
        self.batch: Batch | None = None
        self.records: list[Record] = []
        self.at = 0

    def move(self, position: int | None) -> None:
        """Go on at `position`; None: look it up when it is needed."""
        self.drop()
        self.position, self.reader, self.truncated = position, None, None

    def process(self, offset: int, epoch: int, generation: int) -> None:
        """All below `offset` is processed."""
        self.processed, self.epoch, self.generation = offset, epoch, generation

    def pass_over(self, batch: Batch, generation: int) -> None:
        """Nothing of a batch is shown: go on after it; where all before it was processed it counts as processed too."""
        self.position = batch.next_offset
        if self.processed == batch.base_offset:
            self.process(batch.next_offset, batch.leader_epoch, generation)
