"""Partition assignors: which member of a group gets which partitions.  Pure; can be called alone.

    members = {"a": Subscription(("clicks",)), "b": Subscription(("clicks",), owned=(TopicPartition("clicks", 0),))}
    StickyAssignor().assign(members, {"clicks": 3})      # {"a": [TopicPartition("clicks", 1), …], "b": […]}

`range` and `roundrobin` give what Kafka's do, partition for partition; `sticky` and `cooperative-sticky` (KIP-54, KIP-429) are balanced as
well as subscriptions allow and, among the balanced assignments, move the fewest partitions.  One's own is an object with a `name`, a
`cooperative` flag and an `assign` method (`Assignor`); docs/groups.md has an example.
"""

from __future__ import annotations

from itertools import cycle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Protocol
else:
    Protocol = object

from streamlog.errors import InvalidConfigError
from streamlog.types import NamedTuple, TopicPartition


class Subscription(NamedTuple):
    """What a member wants and has: topics, the partitions that it owns now, its `group_instance_id` if it is static, its `client_id`."""

    topics: tuple[str, ...]
    owned: tuple[TopicPartition, ...] = ()
    group_instance_id: str | None = None
    client_id: str = ""


class Assignor(Protocol):
    """What a group needs of an assignor.  Called on a consumer's own thread, inside `poll`, under no lock; one member at a time calls it."""

    name: str
    """By this the members of a group recognise it."""
    cooperative: bool
    """Whether members keep what stays theirs; else each gives up everything first."""

    def assign(self, members: Mapping[str, Subscription], partitions: Mapping[str, int]) -> Mapping[str, Iterable[TopicPartition]]:
        """Partitions by member id; `partitions` has the number of partitions of each topic.  No partition to two members."""
        raise NotImplementedError


def _in_order(members: Mapping[str, Subscription]) -> list[str]:
    """Member ids as Kafka orders them: static members first, by instance id, then the others, in the order of Java's strings."""

    def key(member_id: str) -> tuple[bool, bytes]:
        instance = members[member_id].group_instance_id
        return instance is None, (member_id if instance is None else instance).encode("utf-16-be", "surrogatepass")

    return sorted(members, key=key)


def _known_topics(members: Mapping[str, Subscription], partitions: Mapping[str, int]) -> list[str]:
    """The topics that somebody subscribed to and that have partitions, sorted."""
    return sorted({topic for member in members.values() for topic in member.topics if partitions.get(topic, 0) > 0})


class RangeAssignor:
    """Topic by topic, contiguous ranges to the members in order; the first ones get one more (org.apache.kafka's RangeAssignor)."""

    name, cooperative = "range", False

    def assign(self, members: Mapping[str, Subscription], partitions: Mapping[str, int]) -> dict[str, list[TopicPartition]]:
        """See `Assignor`."""
        assignment: dict[str, list[TopicPartition]] = {member_id: [] for member_id in members}
        ordered = _in_order(members)
        for topic in _known_topics(members, partitions):
            takers = [member_id for member_id in ordered if topic in members[member_id].topics]
            share, more = divmod(partitions[topic], len(takers))
            first = 0
            for number, member_id in enumerate(takers):
                after = first + share + (number < more)
                assignment[member_id] += [TopicPartition(topic, partition) for partition in range(first, after)]
                first = after
        return assignment


class RoundRobinAssignor:
    """All partitions, topic by topic, dealt to the members in order; who did not subscribe is passed over (RoundRobinAssignor)."""

    name, cooperative = "roundrobin", False

    def assign(self, members: Mapping[str, Subscription], partitions: Mapping[str, int]) -> dict[str, list[TopicPartition]]:
        """See `Assignor`."""
        assignment: dict[str, list[TopicPartition]] = {member_id: [] for member_id in members}
        topics = {member_id: frozenset(member.topics) for member_id, member in members.items()}
        circle = cycle(_in_order(members))
        for topic in _known_topics(members, partitions):
            for partition in range(partitions[topic]):
                taker = next(member_id for member_id in circle if topic in topics[member_id])
                assignment[taker].append(TopicPartition(topic, partition))
        return assignment


class StickyAssignor:
    """Balanced, with the fewest moves; members give up everything first (eager)."""

    name, cooperative = "sticky", False

    def assign(self, members: Mapping[str, Subscription], partitions: Mapping[str, int]) -> dict[str, list[TopicPartition]]:
        """See `Assignor`."""
        topics = _known_topics(members, partitions)
        if not members:
            return {}
        wanted = {member_id: frozenset(member.topics).intersection(topics) for member_id, member in members.items()}
        owned = _owned(members, wanted, partitions)
        if len(set(wanted.values())) == 1:
            return _equal(sorted(members), owned, topics, partitions)
        return _unequal(wanted, owned, topics, partitions)


class CooperativeStickyAssignor(StickyAssignor):
    """Balanced, with the fewest moves; members go on with what stays theirs (the default)."""

    name, cooperative = "cooperative-sticky", True


def _owned(
    members: Mapping[str, Subscription], wanted: Mapping[str, frozenset[str]], partitions: Mapping[str, int]
) -> dict[str, list[TopicPartition]]:
    """What each member owns and may keep; what two members say they own is nobody's (as in Kafka)."""
    owners: dict[TopicPartition, str | None] = {}
    for member_id, member in members.items():
        for tp in member.owned:
            if tp.topic in wanted[member_id] and tp.partition < partitions[tp.topic]:
                owners[tp] = member_id if owners.setdefault(tp, member_id) == member_id else None
    owned: dict[str, list[TopicPartition]] = {member_id: [] for member_id in members}
    for tp, owner in owners.items():
        if owner is not None:
            owned[owner].append(tp)
    return owned


def _equal(
    ordered: list[str], owned: dict[str, list[TopicPartition]], topics: list[str], partitions: Mapping[str, int]
) -> dict[str, list[TopicPartition]]:
    """All want the same: everybody keeps up to the share, and the rest fills up who has less."""
    total = sum(partitions[topic] for topic in topics)
    share, more = divmod(total, len(ordered))
    fuller = sorted(ordered, key=lambda member_id: -len(owned[member_id]))[:more]  # who has the most keeps one more
    quota = dict.fromkeys(ordered, share) | dict.fromkeys(fuller, share + 1)
    assignment = {member_id: sorted(owned[member_id])[: quota[member_id]] for member_id in ordered}
    kept = {tp for taken in assignment.values() for tp in taken}
    free = (tp for topic in topics for number in range(partitions[topic]) if (tp := TopicPartition(topic, number)) not in kept)
    for member_id, taken in assignment.items():
        for _ in range(quota[member_id] - len(taken)):
            taken.append(next(free))
    return assignment


# ---- different subscriptions -----------------------------------------------------------------------------------------
#
# Partitions of one topic are alike but for who owns them, so the unknowns are counts: how many partitions of each topic each member
# has.  Least cost is wanted: first the sum of the squares of the members' loads (balance), then the partitions taken from who owns
# them (moves).  That is a flow of least cost: start from what everybody has, then run around cycles of negative cost until there is
# none (Klein, "A primal method for minimal cost flows", 1967).  A cycle goes member -> topic (gives one up) -> member (takes it) …,
# and through the node `None` (any member may have one more, for another's one less).


class _Flow:
    """Counts of partitions by member and topic, improved step by step."""

    def __init__(self, wanted: Mapping[str, frozenset[str]], owned: dict[str, list[TopicPartition]], free: Mapping[str, int]) -> None:
        self.wanted = wanted
        self.members, self.topics = sorted(wanted), sorted(free)
        self.owned = {member_id: dict.fromkeys(sorted(wanted[member_id]), 0) for member_id in self.members}
        for member_id, kept in owned.items():
            for tp in kept:
                self.owned[member_id][tp.topic] += 1
        self.count = {member_id: dict(counts) for member_id, counts in self.owned.items()}
        self.load = {member_id: len(owned[member_id]) for member_id in self.members}
        self.takers = {topic: [member_id for member_id in self.members if topic in wanted[member_id]] for topic in self.topics}
        self.big = 1 + 2 * (len(self.members) + len(self.topics))  # one unit of balance outweighs all moves of a cycle
        for topic in sorted(self.topics, key=lambda topic: len(self.takers[topic])):  # who can go to few goes first
            for _ in range(free[topic]):
                member_id = min(self.takers[topic], key=lambda taker: (self.load[taker], self.count[taker][topic] >= self.owned[taker][topic]))
                self._add(member_id, topic, 1)

    def _add(self, member_id: str, topic: str, number: int) -> None:
        self.count[member_id][topic] += number
        self.load[member_id] += number

    def _edges(self) -> list[tuple[Any, Any, int]]:
        """Where one unit can go, and what it costs."""
        edges: list[tuple[Any, Any, int]] = []
        for member_id in self.members:
            load, owned = self.load[member_id], self.owned[member_id]
            node = ("member", member_id)
            edges += [(node, None, self.big * (2 * load + 1)), (None, node, -self.big * (2 * load - 1))] if load else [
                (node, None, self.big)
            ]  # fmt: skip
            for topic, count in self.count[member_id].items():
                edges.append((("topic", topic), node, -1 if count < owned[topic] else 0))
                if count:
                    edges.append((node, ("topic", topic), 1 if count <= owned[topic] else 0))
        return edges

    def improve(self) -> None:
        """Until no cycle of negative cost is left (Bellman and Ford's search)."""
        while (cycle_ := self._negative_cycle()) is not None:
            for start, end in zip(cycle_, [*cycle_[1:], cycle_[0]]):
                if start is not None and end is not None:
                    if start[0] == "topic":
                        self._add(end[1], start[1], 1)
                    else:
                        self._add(start[1], end[1], -1)

    def _negative_cycle(self) -> list[Any] | None:
        edges = self._edges()
        cost: dict[Any, int] = {node: 0 for edge in edges for node in edge[:2]}
        before: dict[Any, Any] = {}
        for _ in range(len(cost)):
            changed = None
            for start, end, price in edges:
                reached = cost[start] + price
                if reached < cost[end]:
                    cost[end], before[end], changed = reached, start, (end,)
            if changed is None:
                return None
            if (found := _cycle(before, changed[0])) is not None:
                return found
        return None


def _cycle(before: dict[Any, Any], node: Any) -> list[Any] | None:
    """The cycle that the way back from a node runs into, in order; such a cycle is of negative cost."""
    seen: dict[Any, int] = {}
    path: list[Any] = []
    while node not in seen:
        seen[node] = len(path)
        path.append(node)
        if node not in before:
            return None
        node = before[node]
    return path[seen[node] :][::-1]


def _unequal(
    wanted: Mapping[str, frozenset[str]], owned: dict[str, list[TopicPartition]], topics: list[str], partitions: Mapping[str, int]
) -> dict[str, list[TopicPartition]]:
    kept = {tp for taken in owned.values() for tp in taken}
    free = {topic: [tp for number in range(partitions[topic]) if (tp := TopicPartition(topic, number)) not in kept] for topic in topics}
    flow = _Flow(wanted, owned, {topic: len(left) for topic, left in free.items()})
    flow.improve()
    assignment: dict[str, list[TopicPartition]] = {}
    for member_id in flow.members:
        assignment[member_id] = taken = []
        for topic, count in flow.count[member_id].items():
            mine = sorted(tp for tp in owned[member_id] if tp.topic == topic)
            taken += mine[:count]
            free[topic] += mine[count:]
    for member_id, taken in assignment.items():
        for topic, count in flow.count[member_id].items():
            missing = count - sum(tp.topic == topic for tp in taken)
            taken += free[topic][:missing]
            del free[topic][:missing]
    return assignment


# ---- by name ---------------------------------------------------------------------------------------------------------

BY_NAME: dict[str, type[Any]] = {
    assignor.name: assignor for assignor in (RangeAssignor, RoundRobinAssignor, StickyAssignor, CooperativeStickyAssignor)
}


def resolved(option: str, value: Any) -> tuple[Assignor, ...]:
    """The assignors that a name, a class, an object or a list of them stands for.  Raises InvalidConfigError."""
    given = list(value) if isinstance(value, list | tuple) else [value]
    found: list[Assignor] = []
    for item in given:
        if isinstance(item, str) and item in BY_NAME:
            item = BY_NAME[item]
        if isinstance(item, type):
            try:
                item = item()
            except TypeError as error:
                raise InvalidConfigError(f"{option}={item!r}: a class that takes no arguments is wanted, or an object: {error}") from None
        name = getattr(item, "name", None)
        if not (isinstance(name, str) and name and callable(getattr(item, "assign", None))):
            raise InvalidConfigError(f"{option}={item!r}: one of {', '.join(map(repr, BY_NAME))}, or an object with name and assign, is wanted")
        if name in (other.name for other in found):
            raise InvalidConfigError(f"{option}: {name!r} is named twice")
        found.append(item)
    if not found:
        raise InvalidConfigError(f"{option}={value!r}: at least one assignor is wanted")
    return tuple(found)
