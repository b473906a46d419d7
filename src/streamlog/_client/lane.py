"""Topics and partitions as a producer sees them."""

from __future__ import annotations

import random
import weakref
from _thread import allocate_lock, get_ident
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from streamlog.producer import Producer

from streamlog._client.batch import RecordBatch
from streamlog._log.partition import PartitionLog
from streamlog._replica.metadata import TopicMetadata
from streamlog.partitioners import xxh3_partition


class Lane:
    """One partition: the open batch, and closed ones in order.  Changed under the producer's lock."""

    __slots__ = ("batch", "bytes_since_switch", "failed_at", "flushes", "gone", "holder", "log", "name", "partition", "producer", "queue",
                 "target", "topic", "tries", "trouble", "turn")  # fmt: skip

    def __init__(self, producer: Producer, target: Target, log: PartitionLog, closed: RecordBatch) -> None:
        self.producer, self.log = producer, log
        self.target = weakref.ref(target)  # weakly: a closed producer's mappings go without the collector
        self.topic, self.partition, self.name = log.topic, log.partition, log.name
        self.batch = closed
        self.queue: deque[RecordBatch] = deque()
        self.turn = allocate_lock()  # held by the thread that appends the queue
        self.holder = 0  # which thread that is
        self.gone = False  # the topic was deleted
        self.bytes_since_switch = 0
        self.flushes = log.settings.flush_messages < 2**63 - 1 or log.settings.flush_ms < 2**63 - 1
        self.tries, self.failed_at = 0, 0.0
        self.trouble: BaseException | None = None  # the last error that may yet go away

    def is_own_turn(self) -> bool:
        """Whether this thread is appending the queue: a callback or a signal handler asks, and must not wait for itself."""
        return self.turn.locked() and self.holder == get_ident()


class Target:
    """One topic."""

    __slots__ = ("__weakref__", "count", "lanes", "max_message_bytes", "metadata", "sticky")

    def __init__(self, producer: Producer, metadata: TopicMetadata, logs: list[PartitionLog], closed: RecordBatch) -> None:
        self.metadata, self.count = metadata, metadata.partitions
        self.max_message_bytes = metadata.config.max_message_bytes
        self.lanes = [Lane(producer, self, log, closed) for log in logs]
        self.sticky = random.choice(self.lanes)

    def choose(self, key: bytes | None, partition: int | None) -> Lane:
        """The partition of a record: as given, by its key's hash, or the sticky one."""
        if partition is not None:
            return self.lanes[partition]
        return self.sticky if key is None else self.lanes[xxh3_partition(key, self.count)]

    def switch(self) -> None:
        """Choose the next partition of unkeyed records, uniformly (KIP-794)."""
        self.sticky.bytes_since_switch = 0
        self.sticky = random.choice(self.lanes)

    def take_over(self, old: Target) -> None:
        """The topic grew: what is there keeps its lanes, and with them its batches and their order."""
        self.lanes[: old.count] = old.lanes
        for lane in old.lanes:
            lane.target = weakref.ref(self)
        self.sticky = old.sticky
