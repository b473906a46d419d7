"""A topic as a producer sees it: its partitions, which of them a record goes to, and how batches for it are made."""

from __future__ import annotations

import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamlog._replica.metadata import Metadata
    from streamlog.config import ProducerConfig
    from streamlog.producer import Producer

from streamlog._client.batch import RecordBatch
from streamlog._client.lane import Lane
from streamlog._format import compression
from streamlog._format.batch import BATCH_HEADER_SIZE
from streamlog._log.log import Log
from streamlog._replica.metadata import TopicMetadata
from streamlog.errors import InvalidTimestampError
from streamlog.partitioners import Sticky

_HEADS = 3 * 32  # bytes of column heads and padding of a batch


class Nowhere(Lane):
    """Stands for the sticky lane where a partitioner chooses for each record: no record fits its batch, and nothing else of it is used."""

    def __init__(self, closed: RecordBatch) -> None:
        self.batch = closed


class Target:
    """One topic."""

    __slots__ = (
        "__weakref__", "after_max_ms", "append_time", "available", "before_max_ms", "codec", "count", "is_plain", "lanes", "level",
        "max_message_bytes", "metadata", "partitions", "room", "stickiness", "sticky",
    )  # fmt: skip

    def __init__(self, producer: Producer, metadata: TopicMetadata, logs: list[Log], closed: RecordBatch) -> None:
        """Raises UnsupportedCompressionError."""
        config = metadata.config
        self.metadata, self.count = metadata, metadata.partitions
        self.partitions = range(self.count)
        self.available: Sequence[int] = self.partitions  # those that have a leader
        self.max_message_bytes = config.max_message_bytes
        self.append_time = config.message_timestamp_type == "LogAppendTime"
        self.before_max_ms, self.after_max_ms = config.message_timestamp_before_max_ms, config.message_timestamp_after_max_ms
        self._choose_codec(producer.config)
        self.is_plain = self.codec is None and not self.append_time  # a batch is written as its rows are encoded
        bytes_left = self.max_message_bytes - BATCH_HEADER_SIZE - _HEADS
        self.room: int = max(0, min(producer.batch_room, bytes_left - bytes_left // 32))  # a 32nd: bitmaps of nulls
        self.lanes = [Lane(producer, self, log, closed) for log in logs]
        self.stickiness = Sticky(self.partitions, producer.config.batch_size)
        self.sticky: Lane = Nowhere(closed)
        if producer.config.partitioner == "sticky":
            self.sticky = self.lanes[self.stickiness.partition]

    def _choose_codec(self, config: ProducerConfig) -> None:
        """The topic's codec, which a broker would recompress to, else the producer's.  Raises UnsupportedCompressionError."""
        wanted = self.metadata.config.compression_type
        name = config.compression_type if wanted == "producer" else wanted
        self.codec = None if name in (None, "none", "uncompressed") else compression.codec(name)
        self.level = config.compression_level if name == config.compression_type else None

    def take_over(self, old: Target) -> None:
        """The topic grew, or its configuration is another: what is there keeps its lanes, and with them its batches and their order."""
        self.lanes[: old.count] = old.lanes
        for lane in old.lanes:
            lane.target = weakref.ref(self)
        if not isinstance(old.sticky, Nowhere):
            self.stickiness.partition, self.sticky = old.stickiness.partition, old.sticky

    def batch_completed(self, size: int) -> None:
        """The open batch of the sticky lane takes no more records.  Under the producer's lock."""
        self.stickiness.batch_completed(size)
        self.sticky = self.lanes[self.stickiness.partition]

    def restrict(self, metadata: Metadata) -> None:
        """Records without a key go to partitions that have a leader, where any has (as in Kafka).  Under the producer's lock."""
        if not metadata.partitions:
            return  # one broker leads all
        topic_id = self.metadata.topic_id
        states = ((number, metadata.partitions.get((topic_id, number))) for number in self.partitions)
        available = [number for number, state in states if state is not None and state.leader >= 0] or self.partitions
        self.available = available
        if not isinstance(self.sticky, Nowhere):
            self.stickiness.restrict(available)
            self.sticky = self.lanes[self.stickiness.partition]

    def switch(self) -> None:
        """Records without a key go on elsewhere."""
        if not isinstance(self.sticky, Nowhere):
            self.stickiness.switch()
            self.sticky = self.lanes[self.stickiness.partition]

    def check_timestamps(self, least: int, most: int, now_ms: int) -> None:
        """Raise InvalidTimestampError where records that carry their own time are too old or too new for the topic (Kafka's rule)."""
        if self.append_time:
            return
        for name, found, limit in (("before", now_ms - least, self.before_max_ms), ("after", most - now_ms, self.after_max_ms)):
            if found > limit:
                raise InvalidTimestampError(
                    f"a timestamp is {found} ms {name} now; topic {self.metadata.name!r} takes message_timestamp_{name}_max_ms={limit}"
                )
