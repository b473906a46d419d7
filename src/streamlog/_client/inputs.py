"""What users give to a producer, turned into what a batch holds, or refused with a reason."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from streamlog._client.lane import Target

from streamlog.errors import ConfigurationError, InvalidTimestampError, SerializationError, UnknownTopicOrPartitionError


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
        raise InvalidTimestampError(f"timestamp_ms={timestamp_ms!r}: milliseconds in [0, 2**63) are wanted")


def check_timeout(timeout: Any) -> None:
    """Raise ConfigurationError unless this is a number of seconds, or None."""
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0):
        raise ConfigurationError(f"timeout={timeout!r}: seconds from 0, or None, are wanted")


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
