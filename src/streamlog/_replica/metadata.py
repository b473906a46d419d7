"""`__cluster_metadata`: the log of which everything that exists is a fold.

A record is a msgpack array: its name (Kafka's), then its fields.  Records are written under the cluster's metadata lock and are on
the disk before anybody acts on them, the writer included: a fold reads no further than what is synced.

    ["TopicRecord", name, id, partitions, config]      a topic exists; config holds what differs from the defaults
    ["PartitionsRecord", id, partitions]               it has more partitions now
    ["ConfigRecord", id, config]                       its configuration is this now
    ["RemoveTopicRecord", id]                          it is gone, for ever: ids are never used again
    ["ProducerIdsRecord", next]                        producer ids below `next` are given away, in a block

With several brokers also:

    ["LeaderChangeRecord", copy, epoch]                the first of a controller epoch: which copy of this log leads
    ["ClusterRecord", config]                          the options of the cluster as a whole
    ["RegisterBrokerRecord", id, path, directory id]   a broker is there; a path without a slash is below the home
    ["BrokerRegistrationChangeRecord", id, state, why] it is online, failed or stopped
    ["UnregisterBrokerRecord", id]                     it is gone
    ["PartitionChangeRecord", topic id, partition, replicas, leader, leader epoch, in sync, eligible, partition epoch, target]
                                                       what a partition is from now on; the target is where reassignment takes it
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

from streamlog._format import batch as fmt
from streamlog._format import names
from streamlog._log.fold import Fold
from streamlog._log.log import Log
from streamlog._log.pending import Pending
from streamlog._log.state import FAILED as SYNC_FAILED
from streamlog._log.state import HWM, SYNCED
from streamlog._os import process
from streamlog._os.locks import ByteLock, under
from streamlog._replica.election import PartitionState
from streamlog.config import TopicConfig
from streamlog.errors import CorruptRecordError, InvalidTopicError, UnknownTopicOrPartitionError, UnsupportedFormatError

ONLINE, FAILED, STOPPED = "online", "failed", "stopped"
TOPIC_ID = (1).to_bytes(16, "big")  # as Kafka's, org.apache.kafka.common.Uuid.METADATA_TOPIC_ID


def _nothing() -> None:
    """With one broker there is nothing to see to."""


class TopicMetadata:
    """A topic as the metadata log has it.  Replaced, never changed."""

    __slots__ = ("_config", "created", "name", "overrides", "partitions", "topic_id")

    def __init__(self, name: str, topic_id: bytes, partitions: int, overrides: dict[str, Any], created: int = 0) -> None:
        """`created`: version of the metadata in which the topic first was."""
        self.name, self.topic_id, self.partitions, self.overrides, self.created = name, topic_id, partitions, overrides, created
        self._config: TopicConfig | None = None

    @property
    def config(self) -> TopicConfig:
        """All options, checked when first asked for (opening a cluster of 1,000 topics checks none)."""
        if self._config is None:
            self._config = TopicConfig(self.overrides)
        return self._config


class BrokerMetadata:
    """A broker as the metadata log has it.  Replaced, never changed."""

    __slots__ = ("directory_id", "number", "path", "reason", "state")

    def __init__(self, number: int, path: str, directory_id: str, state: str = ONLINE, reason: str = "") -> None:
        self.number, self.path, self.directory_id, self.state, self.reason = number, path, directory_id, state, reason

    @property
    def is_online(self) -> bool:
        """Whether its replicas may lead and follow."""
        return self.state == ONLINE

    def described(self) -> str:
        """State and reason, for messages."""
        return f"{self.state} ({self.reason})" if self.reason and self.reason != self.state else self.state


class Metadata(Fold):
    """This process's fold of the metadata log, as far as it is on the disk.  Safe to share between threads."""

    def __init__(self, log: Log, lock: ByteLock, *, quorum: bool = False) -> None:
        """`quorum`: the log's high watermark is what a majority has on the disk."""
        super().__init__(log)
        self._lock = lock
        self._end_words, self._end_index = (log.shown, HWM) if quorum else (log.words, SYNCED)
        self._quorum = quorum
        self.brokers: dict[int, BrokerMetadata] = {}
        """Where there are several."""
        self.cluster_config: dict[str, Any] = {}
        self.partitions: dict[tuple[bytes, int], PartitionState] = {}
        """Where there are several brokers: by topic id and number."""
        self.written: Callable[[], None] = _nothing
        """Called after each write, under no lock."""
        self._folded = 0  # version after the batch that is being folded
        self.topics: dict[str, TopicMetadata] = {}
        self.by_id: dict[bytes, TopicMetadata] = {}
        self.removed: set[bytes] = set()
        """Ids of topics that were deleted.  An id in neither may be of a topic that this process has not heard of yet."""
        self.next_producer_id = 0
        """Of the next block."""

    def changed(self) -> bool:
        """Whether there is more to fold: one load."""
        return bool(self._end_words[self._end_index] != self.version)

    def refresh(self, timeout: float) -> None:
        """Fold what is on the disk; sync first what a writer that died left unsynced.

        After a sync that failed nothing more comes, and writers are refused; what was on the disk before can be read.
        """
        self.log.ensure_valid(timeout)
        if not self._quorum:
            words = self.log.words
            if words[SYNCED] < words[HWM] and not words[SYNC_FAILED]:
                self.log.sync(timeout)
        super().refresh(timeout)

    def _end(self) -> int:
        return self._end_words[self._end_index]

    def _fold_all(self, timeout: float) -> None:
        try:
            super()._fold_all(timeout)
        except CorruptRecordError as error:
            if self._quorum:
                raise
            hint = f"`streamlog repair {names.METADATA_TOPIC}:0` shows what can be done"
            raise CorruptRecordError(f"{error}; {hint}", error.path, error.position, error.expected, error.found, error.next_offset) from None
        if self._reader is not None:
            self._reader.release()

    def _fold(self, batch: fmt.Batch) -> None:
        import msgpack  # here: 4 ms of a cold start

        self._folded = batch.next_offset
        values = batch.columns().values
        assert values is not None
        for value in values.to_list():
            name, *fields = msgpack.unpackb(value)
            handler = getattr(self, f"_fold_{name}", None)
            if handler is None:
                raise UnsupportedFormatError(f"{self.log.directory}: record {name!r} is of a newer version", self.log.directory)
            handler(*fields)

    def _put(self, topic: TopicMetadata) -> None:
        self.by_id[topic.topic_id] = self.topics[topic.name] = topic

    def _fold_TopicRecord(self, name: str, topic_id: bytes, partitions: int, config: dict[str, Any]) -> None:
        self._put(TopicMetadata(name, topic_id, partitions, config, self._folded))

    def _fold_PartitionsRecord(self, topic_id: bytes, partitions: int) -> None:
        old = self.by_id.get(topic_id)
        if old is not None:  # (a repair may have cut its topic's record away)
            self._put(TopicMetadata(old.name, topic_id, partitions, old.overrides, old.created))

    def _fold_ConfigRecord(self, topic_id: bytes, config: dict[str, Any]) -> None:
        old = self.by_id.get(topic_id)
        if old is not None:
            self._put(TopicMetadata(old.name, topic_id, old.partitions, config, old.created))

    def _fold_RemoveTopicRecord(self, topic_id: bytes) -> None:
        self.removed.add(topic_id)
        old = self.by_id.pop(topic_id, None)
        if old is not None:  # folding a record again changes nothing
            del self.topics[old.name]
            for number in range(old.partitions):
                self.partitions.pop((topic_id, number), None)

    def _fold_LeaderChangeRecord(self, copy: int, epoch: int) -> None:
        """Who leads this log stands in its leadership."""

    def _fold_ClusterRecord(self, config: dict[str, Any]) -> None:
        self.cluster_config = config

    def _fold_RegisterBrokerRecord(self, number: int, path: str, directory_id: str) -> None:
        self.brokers = {**self.brokers, number: BrokerMetadata(number, path, directory_id)}

    def _fold_BrokerRegistrationChangeRecord(self, number: int, state: str, reason: str) -> None:
        old = self.brokers[number]
        self.brokers = {**self.brokers, number: BrokerMetadata(number, old.path, old.directory_id, state, reason)}

    def _fold_UnregisterBrokerRecord(self, number: int) -> None:
        self.brokers = {known: broker for known, broker in self.brokers.items() if known != number}

    def _fold_PartitionChangeRecord(self, topic_id: bytes, partition: int, *fields: Any) -> None:
        if topic_id in self.by_id:
            self.partitions[topic_id, partition] = PartitionState._make(tuple(field) if isinstance(field, list) else field for field in fields)

    def _fold_ProducerIdsRecord(self, next_producer_id: int) -> None:
        self.next_producer_id = next_producer_id

    # ---- writing -------------------------------------------------------------------------------------------------------------

    def write(self, timeout: float, decide: Callable[[], list[list[Any]]], act: Callable[[], None] | None = None) -> None:
        """Under the metadata lock, with all folded: append and sync the records that `decide` returns, fold them, then `act`.

        `decide` raises what must be refused, and prepares what the records speak of; the synced append is the commit step.
        """
        under(self._lock, timeout, self._write, timeout, decide, act)
        self.written()

    def _write(self, timeout: float, decide: Callable[[], list[list[Any]]], act: Callable[[], None] | None) -> None:
        self.holder[0] = process.token()
        try:
            self._write_as_holder(timeout, decide, act)
        finally:
            self.holder[0] = 0

    def _write_as_holder(self, timeout: float, decide: Callable[[], list[list[Any]]], act: Callable[[], None] | None) -> None:
        import msgpack

        self.log.catch_up(timeout)
        self.catch_up(timeout)
        records = decide()
        if records:
            batch = Pending()
            batch.attributes, batch.columns = fmt.encode_rows([msgpack.packb(record) for record in records])
            batch.count, batch.base_timestamp = len(records), self.now_ms()
            batch.max_timestamp = batch.base_timestamp
            self.log.append(batch, timeout)
            self.log.wait_synced(batch, timeout)
            self.log.bell.ring()  # who waits for metadata waits for what is synced
            self.refresh(timeout)
        if act is not None:
            act()

    now_ms: Callable[[], int]
    holder: memoryview
    """A shared word: the token of the process that holds the lock."""

    def topic(self, name: str, *, writable: bool = False) -> TopicMetadata:
        """A topic by name.  Raises UnknownTopicOrPartitionError, and where it is to be `writable` by users InvalidTopicError."""
        if writable and name in names.INTERNAL_TOPICS:
            raise InvalidTopicError(f"{name!r} is an internal topic: only streamlog writes to it")
        found = self.topics.get(name) if isinstance(name, str) else None
        if found is None:
            import difflib

            near = difflib.get_close_matches(str(name), self.topics, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; create it with create_topic"
            raise UnknownTopicOrPartitionError(f"there is no topic {name!r}{hint}")
        return found
