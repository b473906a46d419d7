"""What an operator does with brokers and replicas: add, retire, move, repair.  Each step is a metadata record; who is cut short goes on."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from streamlog._replica.election import PartitionState
    from streamlog._replica.home import Home
    from streamlog._replica.replicated import ReplicatedLog

    Key = tuple[bytes, int]

from streamlog._format import names
from streamlog._log.state import HWM
from streamlog._os import files
from streamlog._os.clock import left, monotonic, sleep
from streamlog._os.locks import under
from streamlog._replica import description, directories, election, leadership
from streamlog._replica.brokers import make as make_broker
from streamlog._replica.brokers import read_properties
from streamlog._replica.topics import INTERNAL_REPLICAS
from streamlog.errors import (
    ConfigurationError,
    InvalidStateError,
    NotAClusterError,
    NotEnoughReplicasError,
    NotLeaderOrFollowerError,
    StreamlogTimeoutError,
    UnknownTopicOrPartitionError,
)

_PAUSE = 0.01  # seconds between looks at a replica that catches up


def add(home: Home, path: str | None, timeout: float) -> int:
    """Add a broker, empty; returns its id.  Internal topics get a replica there, up to three."""
    deadline = monotonic() + timeout
    added: list[int] = []

    def decide() -> list[list[Any]]:
        number = max(home.metadata.brokers) + 1
        place = path or f"{home.path}/{names.broker(number)}"
        directory_id = _made_broker(home, number, place)
        home.open_broker(number, place)
        assert home.quorum is not None
        home.quorum.rejoin(number, left(deadline))  # before its copy counts
        added.append(number)
        return [["RegisterBrokerRecord", number, description.relative(home.path, place), directory_id]]

    home.metadata.write(timeout, decide)
    home.follow_brokers()
    spread_internal(home, left(deadline))
    return added[0]


def _made_broker(home: Home, number: int, place: str) -> str:
    """Make the directory of a broker that is added, or take the one of an `add` that was cut short; returns its id.  Under the metadata lock."""
    if number >= leadership.MAX_BROKERS:
        raise ConfigurationError(f"a cluster has at most {leadership.MAX_BROKERS} brokers")
    if any(description.absolute(home.path, broker.path) == place for broker in home.metadata.brokers.values()):
        raise ConfigurationError(f"{place} is a broker of this cluster already")
    if not files.exists(f"{place}/{names.META_PROPERTIES}"):
        return make_broker(home.fs, place, number, home.cluster_id, home.path)
    found = read_properties(home.fs, place)
    if found["cluster.id"] != home.cluster_id or found.get("broker.id") != str(number):
        raise NotAClusterError(f"{place}: must be empty or new; its {names.META_PROPERTIES} is that of another broker")
    return found.get("directory.id", "")


def add_second(home: Home, path: str | None) -> None:
    """Make a cluster of one broker one of two.  Nobody else is here; this home is closed when it returns.

    The metadata log is copied to the new copies before they count.  Commit step: `cluster.json`, which names both brokers.
    Raises: InvalidStateError: others have the cluster open.
    """
    if not home.is_last():
        raise InvalidStateError(f"the second broker is added while nobody else has the cluster open; processes {home.processes()} have")
    try:
        place = path or f"{home.path}/{names.broker(1)}"
        if files.exists(f"{place}/{names.META_PROPERTIES}"):
            if read_properties(home.fs, place)["cluster.id"] != home.cluster_id:
                raise NotAClusterError(f"{place} is a broker of another cluster")
        else:
            make_broker(home.fs, place, 1, home.cluster_id, home.path)
        log = home.metadata.log.replica
        log.sync(60.0)
        for target in (f"{place}/{log.name}", home.directory(names.METADATA_TOPIC, 0, leadership.HOME)):
            if files.is_directory(target):
                files.remove_directory(home.fs, target)
            home.fs.mkdir(target)
            for base in log.segments():
                data = files.read_file(home.fs, f"{log.directory}/{names.log(base)}", 1 << 40)
                name = f"{target}/{names.log(base)}"
                files.write_whole(home.fs, name, data, temporary=f"{name}{names.TEMPORARY}")
            files.take_owner(target, home.path)
            home.fs.sync_dir(target.rpartition("/")[0])
        found = home.description._replace(brokers={**home.description.brokers, 1: place})
        description.write(home.fs, home.path, found)
    finally:
        home.close()


def spread_internal(home: Home, timeout: float) -> None:
    """Internal topics follow the number of brokers, up to three replicas."""
    wanted, loads = min(INTERNAL_REPLICAS, len(home.controller.alive())), load(home)
    targets: dict[Key, tuple[int, ...]] = {}
    for key, state in home.metadata.partitions.items():
        topic = home.metadata.by_id[key[0]]
        if topic.name in names.INTERNAL_TOPICS and len(state.replicas) < wanted:
            others = _least_loaded(home, loads, state.replicas)
            targets[key] = (*state.replicas, *others[: wanted - len(state.replicas)])
    if targets:
        reassign(home, targets, None, timeout, waits_for_brokers=False)


def load(home: Home) -> dict[int, int]:
    """Replicas on each broker."""
    found = dict.fromkeys(home.metadata.brokers, 0)
    for state in home.metadata.partitions.values():
        for broker in state.replicas:
            found[broker] = found.get(broker, 0) + 1
    return found


def _least_loaded(home: Home, loads: Mapping[int, int], without: Sequence[int]) -> list[int]:
    """The brokers that are online, but for some, those with the fewest replicas first."""
    return sorted(home.controller.alive().difference(without), key=lambda broker: (loads[broker], broker))


def retire(home: Home, broker: int, progress: Callable[[int, int], None] | None, timeout: float) -> None:
    """Move everything off a broker, then forget it.  Where there are too few others a partition has a replica less.

    Raises: InvalidStateError: it is one of the last two, or the only one that has some partition's records.
    """
    deadline = monotonic() + timeout
    metadata = home.metadata
    home.controller._known(broker)
    if len(metadata.brokers) <= 2:
        raise InvalidStateError("a cluster of several brokers keeps at least two")
    targets: dict[Key, tuple[int, ...]] = {}
    loads = load(home)
    for key, state in metadata.partitions.items():
        if broker not in (*state.replicas, *state.target):
            continue
        wanted = state.target or state.replicas
        rest = tuple(member for member in wanted if member != broker)
        others = _least_loaded(home, loads, (broker, *rest))
        if others:
            loads[others[0]] += 1
        at = wanted.index(broker) if broker in wanted else len(rest)
        targets[key] = (*rest[:at], *others[:1], *rest[at:])
        if not targets[key]:
            raise InvalidStateError(f"{_name(home, key)}: no other broker is online to take its only replica")
    reassign(home, targets, progress, left(deadline))
    _forget(home, broker, deadline)


def _forget(home: Home, broker: int, deadline: float) -> None:
    quorum = home.quorum
    assert quorum is not None
    remaining = [number for number in home.metadata.brokers if number != broker]
    if len(remaining) == 2:  # a third copy that votes: it has everything before it counts
        home._make_home_copy()
        under(home.metadata._lock, left(deadline), quorum.rejoin, leadership.HOME, left(deadline))
    down = [number for number in remaining if not home.metadata.brokers[number].is_online]
    if down:
        raise InvalidStateError(f"brokers {down} are not online: start them first, so that a majority of those that stay has all metadata")

    def decide() -> list[list[Any]]:
        if any(broker in (*state.replicas, *state.target) for state in home.metadata.partitions.values()):
            raise InvalidStateError(f"broker {broker} has got new replicas meanwhile; retire it again")
        return [["UnregisterBrokerRecord", broker]] if broker in home.metadata.brokers else []

    home.metadata.write(left(deadline), decide)
    home.follow_brokers()
    under(home.metadata._lock, left(deadline), quorum.catch_up, left(deadline))


def reassign(
    home: Home, targets: Mapping[Key, Sequence[int]], progress: Callable[[int, int], None] | None, timeout: float, *,
    waits_for_brokers: bool = True,
) -> None:  # fmt: skip
    """Move partitions to other replicas; the first of each is to lead.  What is under way already is only finished.

    With `waits_for_brokers` a new replica's broker that goes out is waited for; without, its partition is left under way.

    `progress` is called with the records copied and the records in all, of replicas that are new, whenever that has changed.  Where it
    is cut short (an error, a time-out, a kill) what is under way goes on with the next call that names the partition; the old replicas
    serve until then.
    """
    deadline = monotonic() + timeout
    for key, target in targets.items():
        _check_target(home, key, target)
    before = {key: home.metadata.partitions[key].in_sync for key in targets}
    for key, target in targets.items():
        _begin_move(home, key, tuple(target), left(deadline))
    logs = {key: home.replicated(home.metadata.by_id[key[0]], key[1], timeout) for key in targets}
    waiting, told = dict(logs), (-1, -1)
    new = {key: [broker for broker in targets[key] if broker not in before[key]] for key in targets}
    while waiting:
        for key, log in list(waiting.items()):
            state = home.metadata.partitions.get(key)
            is_held_up = state is not None and not waits_for_brokers and not home.controller.alive().issuperset(state.target)
            if state is None or not state.target or is_held_up:
                del waiting[key]
                continue
            if _advance(home, log, state, left(deadline)):
                _end_move(home, key, left(deadline))
                del waiting[key]
        if progress is not None and (now := _progress(home, logs, new)) != told:
            told = now
            progress(*now)
        if waiting:
            home.tick()
            home.controller.probe()
            if monotonic() > deadline:
                raise StreamlogTimeoutError(f"{len(waiting)} of {len(targets)} partitions are not moved within {timeout:g} s; call it again to go on")
            sleep(_PAUSE)


def _name(home: Home, key: Key) -> str:
    return f"{home.metadata.by_id[key[0]].name}-{key[1]}"


def _check_target(home: Home, key: Key, target: Sequence[int]) -> None:
    if key not in home.metadata.partitions:
        raise UnknownTopicOrPartitionError("there is no such partition")
    unknown = [broker for broker in target if broker not in home.metadata.brokers]
    if unknown or not target:
        raise ConfigurationError(f"{_name(home, key)}: {list(target)} are no replicas: brokers {sorted(home.metadata.brokers)} are there")
    if len(set(target)) < len(target):
        raise ConfigurationError(f"{_name(home, key)}: {list(target)} are no replicas: a broker is named twice")
    down = [broker for broker in target if broker not in home.controller.alive()]
    if down:
        raise InvalidStateError(f"{_name(home, key)}: brokers {down} are not online")


def _begin_move(home: Home, key: Key, target: tuple[int, ...], timeout: float) -> None:
    topic = home.metadata.by_id[key[0]]

    def decide() -> dict[Key, PartitionState]:
        now = home.metadata.partitions.get(key)
        if now is None:
            raise UnknownTopicOrPartitionError(f"topic {topic.name!r} was deleted")
        for broker in target:
            if broker not in now.replicas:
                directories.make(home, topic.name, key[0], key[1], broker)
                home.fs.sync_dir(home.brokers[broker].path)
        replicas = (*target, *(broker for broker in now.replicas if broker not in target))
        return {key: election.changed(now, replicas=replicas, target=target)}

    home.controller._decide(decide, timeout)


def _advance(home: Home, log: ReplicatedLog, state: PartitionState, timeout: float) -> bool:
    """Let the new replicas catch up; whether all of them are in sync."""
    for broker in state.target:
        if broker not in state.in_sync and broker in home.controller.alive():
            try:
                home.controller.bring_in(log, broker, min(0.2, timeout))
            except (StreamlogTimeoutError, NotLeaderOrFollowerError, NotEnoughReplicasError):
                pass  # its lock is taken, it is being elected: the next round
    now = home.metadata.partitions.get((log.topic_id, log.partition))
    return now is not None and set(now.target) <= set(now.in_sync)


def _end_move(home: Home, key: Key, timeout: float) -> None:
    dropped: list[int] = []
    home.controller.pay_debts([key], timeout)

    def decide() -> dict[Key, PartitionState]:
        state = home.metadata.partitions.get(key)
        if state is None or not state.target or not set(state.target) <= set(state.in_sync):
            return {}
        dropped[:] = [broker for broker in state.replicas if broker not in state.target]
        after = state._replace(
            replicas=state.target, target=(), in_sync=tuple(sorted(state.target)),
            eligible=tuple(broker for broker in state.eligible if broker in state.target),
        )  # fmt: skip
        after = election.elected(after, home.controller.alive(), unclean=False, preferred=True)
        return {key: home.controller._led_anew(key, state, after)}

    home.controller._decide(decide, timeout)
    topic = home.metadata.by_id.get(key[0])
    for broker in dropped if topic is not None else ():
        assert topic is not None
        home.replicated(topic, key[1], timeout).drop_replica(broker, timeout)


def _progress(home: Home, logs: Mapping[Key, ReplicatedLog], targets: Mapping[Key, Sequence[int]]) -> tuple[int, int]:
    done = total = 0
    for key, log in logs.items():
        end = log.high_watermark
        for broker in targets[key]:
            total += end
            done += min(end, log.on(broker).words[HWM]) if broker in home.metadata.brokers else 0
    return done, total


def reformat(home: Home, broker: int, timeout: float) -> None:
    """A broker's directory was lost, emptied or replaced: take it as an empty one, copy everything from the others.

    Raises: InvalidStateError: it is online, or the only one with some partition's records (nothing is changed then); NotAClusterError: the
    directory holds something else.
    """
    deadline = monotonic() + timeout
    metadata = home.metadata
    home.controller._known(broker)
    directory_ids: list[str] = []

    def decide() -> dict[Key, PartitionState]:
        changes = {}
        for key, state in metadata.partitions.items():
            if broker in state.replicas:
                after = election.without(state, broker, home.controller._min_in_sync(key), lost=True)
                changes[key] = election.changed(state, **after._asdict())
        return changes

    def records() -> list[list[Any]]:
        known = metadata.brokers[broker]
        if known.is_online:
            raise InvalidStateError(f"broker {broker} is online; stop it first")
        alone = [_name(home, key) for key, state in metadata.partitions.items() if {*state.in_sync, *state.eligible} == {broker}]
        if alone:
            raise InvalidStateError(f"broker {broker} is the only one with records of {', '.join(sorted(alone)[:5])}: they would be lost")
        directory_ids.append(_emptied(home, broker))
        return [
            ["RegisterBrokerRecord", broker, known.path, directory_ids[0]],
            ["BrokerRegistrationChangeRecord", broker, known.state, known.reason],
        ]

    home.controller._decide(decide, left(deadline), records)
    home.controller.start(broker, left(deadline))


def _emptied(home: Home, broker: int) -> str:
    """The directory of a broker, empty and open, with what is left of a former one removed; returns its id.  Under the metadata lock."""
    path = home.brokers[broker].path
    home.brokers[broker].close()
    is_marked = files.exists(f"{path}/{names.META_PROPERTIES}")
    if files.is_directory(path) and not is_marked:
        for name in home.fs.listdir(path):
            if names.parse_partition(name) is not None and files.is_directory(f"{path}/{name}"):
                files.remove_directory(home.fs, f"{path}/{name}")
            elif name in (names.RECOVERY_POINTS, names.HIGH_WATERMARKS):
                home.fs.unlink(f"{path}/{name}")
    if is_marked:
        home.brokers[broker].check_owner(home.cluster_id)
        directory_id = read_properties(home.fs, path).get("directory.id", "")
    else:
        directory_id = make_broker(home.fs, path, broker, home.cluster_id, home.path)
    home.open_broker(broker, path)
    return directory_id


def repair(home: Home, timeout: float) -> dict[str, int]:
    """Read every copy that is online, and copy anew what is damaged; returns what was, with how many records were copied."""
    deadline = monotonic() + timeout
    repaired: dict[str, int] = {}
    quorum = home.quorum
    assert quorum is not None
    for broker, count in under(home.metadata._lock, left(deadline), quorum.scrub, left(deadline)).items():
        repaired[f"{names.METADATA_TOPIC}-0 {'in the home' if broker == leadership.HOME else f'on broker {broker}'}"] = count
    for key in sorted(home.metadata.partitions):
        topic = home.metadata.by_id.get(key[0])
        if topic is None:
            continue
        log = home.replicated(topic, key[1], timeout)
        for broker in log.state.replicas:
            if broker not in home.controller.alive():
                continue
            error = log.damage_of(broker, left(deadline))
            if error is not None:
                before = log.on(broker).words[HWM]
                home.controller.damaged(log, broker, error, left(deadline))
                kept = log.on(broker).words[HWM]
                home.controller.bring_in(log, broker, left(deadline))
                repaired[f"{log.name} on broker {broker}"] = before - kept
    for broker in sorted(home.controller.alive()):
        directories.sweep(home, broker, left(deadline))
    return repaired

