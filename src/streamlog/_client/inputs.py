"""What users give, turned into what is stored, or refused with a reason."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from streamlog._client.target import Target
    from streamlog._replica.metadata import Metadata

from streamlog.errors import (
    ConfigurationError,
    InvalidTimestampError,
    OffsetMetadataTooLargeError,
    SerializationError,
    UnknownTopicOrPartitionError,
)
from streamlog.types import GroupMetadata, OffsetAndMetadata, TopicPartition


def to_bytes(what: str, given: Any, serializer: Callable[[Any], Any] | None) -> bytes | None:
    """A key or value as bytes.  Raises SerializationError, which names a serializer."""
    if given is None:
        return None
    if serializer is not None:
        try:
            given = serializer(given)
        except Exception as error:
            raise SerializationError(f"{what}_serializer failed: {error!r}") from error
        if given is None or isinstance(given, str):
            raise SerializationError(f"{what}_serializer returned {type(given).__name__}; bytes are wanted")
    if isinstance(given, str):
        try:
            return given.encode()
        except UnicodeEncodeError as error:
            raise SerializationError(f"{what} {given!r} is not UTF-8: {error}") from None
    try:
        return bytes(memoryview(given))
    except (TypeError, ValueError):
        hint = f'give {what}_serializer="json", "msgpack", "str" or a callable'
        raise SerializationError(f"a {what} of type {type(given).__name__} is not bytes; {hint}") from None


def check_timestamp(timestamp_ms: Any) -> None:
    """Raise InvalidTimestampError unless this is a time in milliseconds."""
    if isinstance(timestamp_ms, bool) or not isinstance(timestamp_ms, int) or not 0 <= timestamp_ms < 2**63:
        raise InvalidTimestampError(f"timestamp_ms={timestamp_ms!r}: a whole number (int) of milliseconds in [0, 2**63) is wanted")


def check_timeout(timeout: Any) -> None:
    """Raise ConfigurationError unless this is a number of seconds, or None."""
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 <= timeout <= float("inf")):
        raise ConfigurationError(f"timeout={timeout!r}: seconds from 0, or None, are wanted")
    if timeout is not None and 1e12 < timeout < float("inf"):
        raise ConfigurationError("timeout: at most 10**12 seconds, or None, are wanted")


def check_partition(target: Target, partition: Any) -> int:
    """A partition that exists.  Raises UnknownTopicOrPartitionError."""
    if isinstance(partition, bool) or not isinstance(partition, int) or not 0 <= partition < target.count:
        name = target.metadata.name
        raise UnknownTopicOrPartitionError(f"partition={partition!r}: topic {name!r} has partitions 0 to {target.count - 1}")
    return partition


def pack_headers(headers: Any) -> bytes | None:
    """Headers as msgpack; None where there are none.  Raises SerializationError."""
    import msgpack

    pairs = headers.items() if hasattr(headers, "items") else headers
    try:
        rows = [(name, value if value is None else bytes(memoryview(value))) for name, value in pairs]
    except (TypeError, ValueError):
        raise SerializationError(f"headers={headers!r}: pairs of str and bytes (or None), or a mapping, are wanted") from None
    if not all(isinstance(name, str) for name, _ in rows):
        raise SerializationError(f"headers={headers!r}: a header's name is a str")
    try:
        packed: bytes = msgpack.packb(rows)
    except UnicodeEncodeError as error:
        raise SerializationError(f"headers={headers!r}: a name is not UTF-8: {error}") from None
    return packed if rows else None


MAX_OFFSET_METADATA = 4096  # bytes, as Kafka's offset.metadata.max.bytes


def listed(what: str, given: Any) -> list[Any]:
    """The items of an argument that is to be a collection."""
    try:
        return [given] if isinstance(given, str) else list(given)
    except TypeError:
        raise ConfigurationError(f"{what}={given!r}: a list is wanted") from None


def topic_partition(given: Any) -> TopicPartition:
    """A (topic, partition), whatever kind of pair it is.  Raises UnknownTopicOrPartitionError."""
    try:
        topic, partition = given
    except (TypeError, ValueError):
        raise UnknownTopicOrPartitionError(f"{given!r} is not a (topic, partition)") from None
    if not isinstance(topic, str) or isinstance(partition, bool) or not isinstance(partition, int):
        raise UnknownTopicOrPartitionError(f"{given!r} is not a (topic, partition)")
    return TopicPartition(topic, partition)


def milliseconds(timeout_ms: Any) -> float:
    """Seconds, given as milliseconds.  Raises ConfigurationError."""
    if isinstance(timeout_ms, bool) or not isinstance(timeout_ms, int | float) or not timeout_ms >= 0:
        raise ConfigurationError(f"timeout_ms={timeout_ms!r}: milliseconds from 0 are wanted")
    return min(timeout_ms, 10**12) / 1000


def checked_offsets(offsets: Any, metadata: Metadata) -> dict[TopicPartition, OffsetAndMetadata]:
    """Offsets to commit, by partition.  Raises ConfigurationError, OffsetMetadataTooLargeError, UnknownTopicOrPartitionError."""
    if not hasattr(offsets, "items"):
        raise ConfigurationError(f"offsets={offsets!r}: a mapping of partitions to offsets is wanted")
    checked = {topic_partition(tp): _checked_offset(offset) for tp, offset in offsets.items()}
    for tp in checked:
        if not 0 <= tp.partition < metadata.topic(tp.topic).partitions:
            raise UnknownTopicOrPartitionError(f"there is no partition {tp.partition} of topic {tp.topic!r}")
    return checked


def checked_sender(sender: Any) -> GroupMetadata:
    """What `Consumer.group_metadata()` gives.  Raises ConfigurationError."""
    if isinstance(sender, GroupMetadata) and isinstance(sender.generation, int):
        try:
            "".join((sender.group_id, sender.member_id, sender.group_instance_id or "")).encode()
            return sender
        except (TypeError, UnicodeEncodeError):
            pass
    raise ConfigurationError(f"group_metadata={sender!r}: what Consumer.group_metadata() gives is wanted")


def _checked_offset(given: Any) -> OffsetAndMetadata:
    found = given if isinstance(given, OffsetAndMetadata) else OffsetAndMetadata(given)
    if found.metadata is None:
        found = found._replace(metadata="")
    for number, least in ((found.offset, 0), (0 if found.leader_epoch is None else found.leader_epoch, -1)):
        if isinstance(number, bool) or not isinstance(number, int) or not least <= number < 2**63:
            raise ConfigurationError(f"offset {given!r}: a whole number from 0, or OffsetAndMetadata, is wanted")
    try:
        size = len(found.metadata.encode())
    except (AttributeError, UnicodeEncodeError):
        raise ConfigurationError(f"offset {given!r}: its metadata is a str, to be written as UTF-8") from None
    if size > MAX_OFFSET_METADATA:
        raise OffsetMetadataTooLargeError(f"{size} bytes of metadata; an offset takes at most {MAX_OFFSET_METADATA}")
    return found


def compiled(pattern: Any) -> Any:
    """A regular expression of topics' names.  Raises ConfigurationError."""
    import re

    try:
        compiled = re.compile(pattern)
        compiled.fullmatch("")
    except (re.error, TypeError) as error:
        raise ConfigurationError(f"pattern={pattern!r}: must be a regular expression of str: {error}") from None
    return compiled
