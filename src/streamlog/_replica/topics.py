"""Topics come, grow and go: what is done on the disk, and the metadata record that commits it.  All under the metadata lock."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

from streamlog._format import names
from streamlog._os import files, process
from streamlog._replica import blame, directories
from streamlog._replica.blame import BROKEN
from streamlog._replica.election import assignment, change_record, created
from streamlog._replica.home import Home
from streamlog._replica.metadata import Metadata, TopicMetadata
from streamlog.errors import (
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    InvalidTopicError,
    StreamlogError,
    StreamlogTimeoutError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)

INTERNAL_REPLICAS = 3  # at most, as in Kafka
AS_MANY_AS_THERE_ARE = 0  # brokers that are online when the topic is made, up to that
_INTERNAL_SEGMENT_BYTES = 4 << 20  # a fold of an internal topic begins at a segment's start at the latest, once old ones are cleaned (H36)


def create(
    home: Home, name: str, partitions: int, overrides: dict[str, Any], *, exist_ok: bool, timeout: float, replication_factor: int = 1
) -> None:
    """Create a topic.  Commit step: the synced metadata record.

    Raises: TopicAlreadyExistsError, InvalidTopicError (collision), InvalidReplicationFactorError (more replicas than brokers).
    """
    metadata = home.metadata
    if exist_ok and name in metadata.topics:
        return
    topic_id = process.random_bytes(16)

    def decide() -> list[list[Any]]:
        if name in metadata.topics:
            if exist_ok:
                return []
            raise TopicAlreadyExistsError(f"there is a topic {name!r}")
        _check_collision(name, metadata)
        made = _make_partitions(home, name, topic_id, range(partitions), replication_factor)
        return [["TopicRecord", name, topic_id, partitions, overrides], *made]

    _write(home, timeout, decide, lambda: _initialise(home, metadata.by_id.get(topic_id), 0, timeout))


def create_internal(home: Home, name: str, partitions: int, timeout: float) -> None:
    """Create an internal topic unless it is there."""
    create(home, name, partitions, internal_config(), exist_ok=True, timeout=timeout, replication_factor=AS_MANY_AS_THERE_ARE)


def internal_config() -> dict[str, Any]:
    """Of an internal topic: compacted, in small segments."""
    return {"cleanup_policy": "compact", "segment_bytes": _INTERNAL_SEGMENT_BYTES}


def grow(home: Home, name: str, topic_id: bytes, total: int, timeout: float) -> None:
    """Add partitions.  Raises InvalidPartitionsError where `total` is not more than there are."""
    metadata, first = home.metadata, [0]

    def decide() -> list[list[Any]]:
        topic = metadata.by_id.get(topic_id)
        if topic is None:
            raise UnknownTopicOrPartitionError(f"topic {name!r} was deleted")
        if total <= topic.partitions:
            raise InvalidPartitionsError(f"topic {name!r} has {topic.partitions} partitions; they only grow, {total} is not more")
        first[0] = topic.partitions
        first_state = metadata.partitions.get((topic_id, 0))
        factor = 1 if first_state is None else len(first_state.replicas)
        made = _make_partitions(home, name, topic_id, range(topic.partitions, total), factor)
        return [["PartitionsRecord", topic_id, total], *made]

    _write(home, timeout, decide, lambda: _initialise(home, metadata.by_id.get(topic_id), first[0], timeout))


def _write(home: Home, timeout: float, decide: Callable[[], list[list[Any]]], act: Callable[[], None]) -> None:
    """Write metadata for which directories are made; a broker whose directory cannot be used fails, and it is done without that one (H43)."""
    while True:
        try:
            home.metadata.write(timeout, decide, act)
            return
        except BROKEN as error:
            broker = blame.owner_of(error)
            if not home.is_replicated or broker not in home.controller.alive():
                raise
            home.controller.fail(broker, error, timeout)


def delete(home: Home, name: str, timeout: float) -> None:
    """Delete a topic and its records.  Commit step: the synced metadata record."""
    metadata = home.metadata
    doomed: list[TopicMetadata] = []
    taken: list[str] = []
    states: dict[int, tuple[int, ...]] = {}

    def decide() -> list[list[Any]]:
        topic = metadata.topic(name)
        doomed.append(topic)
        states.update({number: metadata.partitions[topic.topic_id, number].replicas for number in range(topic.partitions) if home.is_replicated})
        return [["RemoveTopicRecord", topic.topic_id]]

    def act() -> None:
        topic, held_up = doomed[0], ""
        for number in range(topic.partitions):
            try:
                home.log(topic, number, timeout).mark_deleted(timeout)
            except StreamlogTimeoutError as error:
                held_up = held_up or str(error)
        home.bell.ring()
        home.release_topic(topic.topic_id)
        for number in range(topic.partitions):
            for broker in states.get(number, (0,)):
                try:
                    directory = home.directory(topic.name, number, broker)
                    if files.exists(directory):
                        taken.append(directories.take_away(home, directory, topic.topic_id))
                except (StreamlogError, OSError):
                    if not home.is_replicated:
                        raise  # of several brokers one may be out: `repair` finishes the deletion
        for broker in home.brokers:
            try:
                taken.extend(directories.take_leftovers(home, directories.leftovers(home, broker)))
            except (StreamlogError, OSError):
                if not home.is_replicated:
                    raise
        if held_up:
            raise StreamlogTimeoutError(f"topic {name!r} is deleted, but a process is still inside it: {held_up}")

    try:
        metadata.write(timeout, decide, act)
    finally:
        _remove(home, taken)


def _remove(home: Home, taken: list[str]) -> None:
    """Remove what was taken away.  With several brokers one may be out: `repair`, or the next deletion of a topic, removes the rest."""
    for directory in taken:
        try:
            directories.remove(home, [directory])
        except (StreamlogError, OSError):
            if not home.is_replicated:
                raise


def _check_collision(name: str, metadata: Metadata) -> None:
    key = names.collision_key(name)
    for other in metadata.topics:
        if names.collision_key(other) == key:
            raise InvalidTopicError(f"{name!r} collides with topic {other!r}: they differ only in '.' and '_'")


def _initialise(home: Home, topic: TopicMetadata | None, first: int, timeout: float) -> None:
    if topic is not None:
        home.initialise(topic, first, timeout)


def _make_partitions(home: Home, name: str, topic_id: bytes, numbers: range, factor: int) -> list[list[Any]]:
    """Make the directories of new partitions; returns the records of who has them, where there are several brokers."""
    if not home.is_replicated:
        for number in numbers:
            directories.make(home, name, topic_id, number, 0)
        home.fs.sync_dir(home.brokers[0].path)
        return []
    alive = sorted(home.controller.alive())
    out = sorted(set(home.metadata.brokers) - set(alive))
    if factor == AS_MANY_AS_THERE_ARE:
        factor = min(INTERNAL_REPLICAS, len(alive))
    if factor > len(alive) + len(out) or not alive:
        limit = f"must be at most {len(alive) + len(out)}, the number of brokers; one of them must be online, {len(alive)} are"
        raise InvalidReplicationFactorError(f"replication_factor={factor}: {limit}")
    found = assignment(numbers, min(factor, len(alive)), alive, len(home.metadata.partitions) - numbers.start)
    found = [(*replicas, *out[: factor - len(replicas)]) for replicas in found]  # those that are out get theirs when they come back
    for number, replicas in zip(numbers, found):
        for broker in replicas:
            if broker in alive:
                directories.make(home, name, topic_id, number, broker)
    for broker in alive:
        blame.on(broker, home.fs.sync_dir, home.brokers[broker].path)
    return [change_record((topic_id, number), created(replicas, alive)) for number, replicas in zip(numbers, found)]
