"""What hears of partitions that come and go: the object that a consumer was given."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from streamlog.types import TopicPartition

from streamlog.errors import ConfigurationError

_EVENTS = ("on_partitions_assigned", "on_partitions_revoked", "on_partitions_lost")


class Listener:
    """Tells a user's listener; what that raises comes out of the consumer's call when the change is complete."""

    __slots__ = ("_error", "_told")

    def __init__(self, told: Any = None) -> None:
        """Raises ConfigurationError."""
        if told is not None and not any(callable(getattr(told, event, None)) for event in _EVENTS):
            raise ConfigurationError(f"listener={told!r}: must be an object with any of {', '.join(_EVENTS)}; each takes a list of partitions")
        self._told = told
        self._error: BaseException | None = None

    def hear(self, event: str, partitions: Sequence[TopicPartition]) -> None:
        """Tell it."""
        hear = getattr(self._told, event, None)
        if hear is None and event == "on_partitions_lost":
            hear = getattr(self._told, "on_partitions_revoked", None)  # as Kafka's
        if hear is not None:
            try:
                hear(list(partitions))
            except Exception as error:
                self._error = self._error or error

    def raise_error(self) -> None:
        """Raise the first that it raised, if it did."""
        error, self._error = self._error, None
        if error is not None:
            raise error
