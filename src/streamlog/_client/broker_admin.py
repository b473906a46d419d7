"""Brokers and replicas, as an operator asks for them: a cluster's calls, in the terms of `_replica`."""

from __future__ import annotations

import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from typing import Any

from streamlog._client.inputs import topic_partition
from streamlog._format import names
from streamlog._log.state import HWM
from streamlog._os import files
from streamlog._replica import administration
from streamlog._replica.home import Home
from streamlog._replica.metadata import ONLINE
from streamlog.errors import ConfigurationError, InvalidStateError
from streamlog.types import BrokerDescription, Reassignment, TopicPartition


def describe(home: Home) -> list[BrokerDescription]:
    """Every broker, by id."""
    if not home.is_replicated:
        partitions = sum(topic.partitions for topic in home.metadata.topics.values())
        return [BrokerDescription(0, home.brokers[0].path, ONLINE, "", partitions, partitions, partitions)]
    states = list(home.metadata.partitions.values())
    return [
        BrokerDescription(
            number, home.brokers[number].path, broker.state, broker.reason or _trouble(home, number),
            sum(number == state.leader for state in states), sum(number in state.replicas for state in states),
            sum(number in state.in_sync for state in states),
        )
        for number, broker in sorted(home.metadata.brokers.items()) if number in home.brokers
    ]  # fmt: skip


def _trouble(home: Home, number: int) -> str:
    return "" if home.brokers[number].lock_file is not None else "cannot be opened here"


def checked(home: Home, broker: Any) -> int:
    """A broker's id.  Raises ConfigurationError, InvalidStateError (with one broker there is nothing to do)."""
    if isinstance(broker, bool) or not isinstance(broker, int):
        raise ConfigurationError(f"broker={broker!r}: the id of a broker, a whole number, is wanted")
    needs_several(home)
    if broker not in home.metadata.brokers:
        raise ConfigurationError(f"there is no broker {broker}: there are {sorted(home.metadata.brokers)}")
    return broker


def needs_several(home: Home) -> None:
    """Raise InvalidStateError with one broker."""
    if not home.is_replicated:
        raise InvalidStateError("the cluster has one broker; add_broker gives it another")


def keys_of(home: Home, partitions: Iterable[Any] | None) -> list[tuple[bytes, int]]:
    """Partitions by topic id; None: all that there are."""
    if partitions is None:
        return sorted(home.metadata.partitions)
    if isinstance(partitions, str) or not hasattr(partitions, "__iter__"):
        raise ConfigurationError(f"partitions={partitions!r}: a list of partitions is wanted")
    return [key_of(home, tp) for tp in partitions]


def key_of(home: Home, tp: Any) -> tuple[bytes, int]:
    """A partition by topic id.  Raises UnknownTopicOrPartitionError."""
    found = topic_partition(tp)
    topic = home.metadata.topic(found.topic)
    home.log(topic, found.partition, 60.0)
    return topic.topic_id, found.partition


def public(home: Home, key: tuple[bytes, int]) -> TopicPartition:
    """A partition by its topic's name."""
    return TopicPartition(home.metadata.by_id[key[0]].name, key[1])


def reassign(
    home: Home, assignments: Mapping[Any, Sequence[int]], progress: Callable[[int, int], None] | None, timeout: float
) -> None:  # fmt: skip
    """Move partitions to other brokers."""
    needs_several(home)
    if not hasattr(assignments, "items"):
        raise ConfigurationError(f"assignments={assignments!r}: a mapping of partitions to lists of brokers is wanted")
    targets = {}
    for tp, brokers in assignments.items():
        if isinstance(brokers, str) or not hasattr(brokers, "__iter__"):
            raise ConfigurationError(f"assignments: {tp!r}: {brokers!r} is not a list of brokers")
        targets[key_of(home, tp)] = tuple(brokers)
    administration.reassign(home, targets, progress, timeout)


def reassignments(home: Home) -> list[Reassignment]:
    """Partitions that are on their way to other brokers."""
    found = []
    for key, state in sorted(home.metadata.partitions.items()):
        if state.target:
            log = home.replicated(home.metadata.by_id[key[0]], key[1], 60.0)
            end = log.high_watermark
            missing = sum(max(0, end - log.on(broker).words[HWM]) for broker in state.target)
            found.append(Reassignment(*public(home, key), state.replicas, state.target, missing))
    return found


def elect(home: Home, partitions: Iterable[Any] | None, timeout: float, *, unclean: bool) -> dict[TopicPartition, int]:
    """Elect leaders; returns who leads now."""
    needs_several(home)
    led = home.controller.elect(keys_of(home, partitions), timeout, unclean=unclean)
    return {public(home, key): leader for key, leader in led.items()}


def warn_of_shared_devices(home: str, paths: Collection[str]) -> None:
    """Brokers that were put on paths of their own are to fail on their own: say so where two share a device."""
    seen: dict[int, str] = {}
    for path in paths:
        device = files.device_of(files.nearest_existing(path))
        if device in seen:
            warnings.warn(
                f"brokers {seen[device]} and {path} are on one device: they fail together, and replicas there add no safety", stacklevel=4
            )
            return
        seen[device] = path
    if len(paths) == 2 and files.device_of(files.nearest_existing(home)) in seen:
        copy = f"{home}/{names.partition(names.METADATA_TOPIC, 0)}"
        warnings.warn(
            f"two brokers: the third copy of the metadata, {copy}, is on the device of one of them; if that fails nothing can be changed",
            stacklevel=4,
        )
