"""`Topic`: a topic as a user holds it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from streamlog._replica.metadata import TopicMetadata
    from streamlog.cluster import Cluster
    from streamlog.consumer import Consumer
    from streamlog.producer import Producer

from streamlog._log.log import Log
from streamlog._log.reader import beginning_offset, end_offset, find_timestamp
from streamlog._replica.election import PartitionState
from streamlog.config import INT64_MAX
from streamlog.errors import InvalidConfigError, InvalidTimestampError, StorageError, UnknownTopicOrPartitionError
from streamlog.types import OffsetAndTimestamp, PartitionDescription, TopicDescription

_ALONE = PartitionState((0,), 0, in_sync=(0,))  # with one broker


def offset_for_time(log: Log, timestamp_ms: Any, timeout: float, *, committed: bool = False) -> OffsetAndTimestamp | None:
    """The first record at or after a time; if `committed`, of those that are."""
    if isinstance(timestamp_ms, bool) or not isinstance(timestamp_ms, int) or not 0 <= timestamp_ms <= INT64_MAX:
        raise InvalidTimestampError(f"{timestamp_ms!r} is not a time in milliseconds")
    found = find_timestamp(log, timestamp_ms, timeout, committed=committed)
    return None if found is None else OffsetAndTimestamp(*found)


class Topic:
    """A topic of a cluster.  Cheap to make; can be shared between threads, pickled, and used after a fork.

    A topic that was deleted, even if another was made under its name, raises UnknownTopicOrPartitionError.
    """

    def __init__(self, cluster: Cluster, name: str, topic_id: bytes, *, key: Any = None, value: Any = None) -> None:
        self._cluster, self.name, self._topic_id = cluster, name, topic_id
        self._key, self._value = key, value

    def __repr__(self) -> str:
        return f"<streamlog.Topic {self.name!r} in {self._cluster.location}>"

    @property
    def _metadata(self) -> TopicMetadata:
        found = self._cluster._refreshed().by_id.get(self._topic_id)
        if found is None:
            raise UnknownTopicOrPartitionError(f"topic {self.name!r} (id {self.id}) was deleted")
        return found

    @property
    def id(self) -> str:
        """32 hexadecimal digits, never used again after the topic is deleted."""
        return self._topic_id.hex()

    @property
    def partitions(self) -> list[int]:
        """Partition numbers, from 0."""
        return list(range(self._metadata.partitions))

    @property
    def config(self) -> Mapping[str, Any]:
        """All options with their values."""
        return self._metadata.config.items()

    def _logs(self) -> dict[int, Log]:
        found = self._metadata
        return {number: self._cluster._log(found, number) for number in range(found.partitions)}

    def add_partitions(self, total: int) -> None:
        """Grow to `total` partitions.  Keys are then spread over all of them; what is written stays where it is.

        Raises: InvalidPartitionsError where `total` is not more than there are.
        """
        self._cluster._add_partitions(self.name, self._topic_id, total)

    def beginning_offsets(self) -> dict[int, int]:
        """First offset that can be read, by partition."""
        return {number: beginning_offset(log, self._cluster.timeout) for number, log in self._logs().items()}

    def end_offsets(self, *, isolation_level: str = "read_uncommitted") -> dict[int, int]:
        """Offset after the last visible record, by partition; under "read_committed" the last stable offset.

        Transactions that dead or late producers left open are ended then, as by a consumer.
        """
        committed = _is_committed(isolation_level)
        if committed:
            from streamlog._client.fetcher import see_to_transaction

            for log in self._logs().values():
                see_to_transaction(log, self._cluster._look_into)
        return {number: end_offset(log, self._cluster.timeout, committed=committed) for number, log in self._logs().items()}

    def offsets_for_times(self, times: Mapping[int, int], *, isolation_level: str = "read_uncommitted") -> dict[int, OffsetAndTimestamp | None]:
        """The first record at or after a time (ms), by partition; None where there is none."""
        committed = _is_committed(isolation_level)
        found, timeout = self._metadata, self._cluster.timeout
        if not hasattr(times, "items") or not all(type(number) is int for number in times):
            raise InvalidConfigError(f"times={times!r}: a mapping of partition numbers to milliseconds is wanted")
        return {
            number: offset_for_time(self._cluster._log(found, number), ms, timeout, committed=committed) for number, ms in times.items()
        }  # fmt: skip

    def describe(self) -> TopicDescription:
        """Configuration, and for each partition leader, epoch, offsets and size."""
        found = self._metadata
        partitions = [self._describe_partition(number, log) for number, log in self._logs().items()]
        return TopicDescription(found.name, self.id, found.config.items(), tuple(partitions))

    def _describe_partition(self, number: int, log: Log) -> PartitionDescription:
        log.ensure_valid(self._cluster.timeout)
        state = self._cluster._home.metadata.partitions.get((self._topic_id, number))
        try:
            (segments, size), epoch = log.replica.sizes(), log.replica.leader_epochs().latest()
        except (OSError, StorageError):
            if state is None:
                raise
            segments, size, epoch = 0, 0, state.leader_epoch  # its broker is out, or just being lost
        state = state or _ALONE
        return PartitionDescription(
            number, state.leader, epoch, state.replicas, state.in_sync, log.start_offset, log.high_watermark, segments, size,
            log.last_stable_offset, state.eligible,
        )  # fmt: skip

    def producer(self, config: Mapping[str, Any] | None = None, /, **options: Any) -> Producer:
        """A producer that uses this handle's key and value serdes."""
        return self._cluster.producer(config, **self._serdes("serializer"), **options)

    def consumer(self, config: Mapping[str, Any] | None = None, /, **options: Any) -> Consumer:
        """A consumer of this topic that uses this handle's key and value serdes."""
        return self._cluster.consumer(self.name, config=config, **self._serdes("deserializer"), **options)

    def _serdes(self, kind: str) -> dict[str, Any]:
        given = {f"key_{kind}": self._key, f"value_{kind}": self._value}
        return {name: value for name, value in given.items() if value is not None}


def _is_committed(level: str) -> bool:
    if level not in ("read_uncommitted", "read_committed"):
        raise InvalidConfigError(f'isolation_level={level!r}: "read_uncommitted" or "read_committed" is wanted')
    return level == "read_committed"
