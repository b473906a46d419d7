"""Partition assignors: which member of a group gets which partitions.  Pure; can be called alone.

    members = {"a": Subscription(("clicks",)), "b": Subscription(("clicks",), owned=(TopicPartition("clicks", 0),))}
    StickyAssignor().assign(members, {"clicks": 3})      # {"a": [TopicPartition("clicks", 1), …], "b": […]}

`range` and `roundrobin` give what Kafka's do, partition for partition.  `sticky` and
`cooperative-sticky` (KIP-54, KIP-429) balance the members' loads as well as subscriptions allow, move
the fewest partitions that this takes, and then spread each topic over its members.  One's own is an
object with a `name`, a `cooperative` flag and an `assign` method (`Assignor`); docs/groups.md has an
example.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush, heapreplace
from itertools import chain, compress, cycle, groupby
from operator import itemgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
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
    asked = {tuple(member.topics) for member in members.values()}
    return sorted({topic for topics in asked for topic in topics if partitions.get(topic, 0) > 0})


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


SMALL = 500
"""Members times topics.  Above it, a group with equal subscriptions gets the quick answer instead of the best one."""


class StickyAssignor:
    """Balanced, with the fewest moves, each topic spread over its members; members give up everything first (eager)."""

    name, cooperative = "sticky", False

    def assign(self, members: Mapping[str, Subscription], partitions: Mapping[str, int]) -> dict[str, list[TopicPartition]]:
        """See `Assignor`."""
        topics = _known_topics(members, partitions)
        if not members:
            return {}
        known = {asked: frozenset(asked).intersection(topics) for asked in {tuple(member.topics) for member in members.values()}}
        wanted = {member_id: known[tuple(member.topics)] for member_id, member in members.items()}
        owned = _owned(members, wanted, partitions)
        if len(set(known.values())) == 1 and (len(members) * len(topics) > SMALL or not any(owned.values())):
            return _dealt(sorted(members), owned, topics, partitions)
        return _best(wanted, owned, topics, partitions)


class CooperativeStickyAssignor(StickyAssignor):
    """The same, but members go on with what stays theirs (the default)."""

    name, cooperative = "cooperative-sticky", True


def _owned(
    members: Mapping[str, Subscription], wanted: Mapping[str, frozenset[str]], partitions: Mapping[str, int]
) -> dict[str, list[TopicPartition]]:
    """What each member owns and may keep.

    A claim to a partition that does not exist, or of a topic that the member does not want, counts
    for nothing.  If two members claim a partition, neither owns it (as in Kafka).
    """
    numbers = {topic: range(partitions[topic]) for topics in set(wanted.values()) for topic in topics}
    owned: dict[str, list[TopicPartition]] = {}
    claimed: set[TopicPartition] = set()
    twice: set[TopicPartition] = set()
    for member_id, member in members.items():
        asked = wanted[member_id]
        owned[member_id] = mine = [tp for tp in member.owned if tp[0] in asked and tp[1] in numbers[tp[0]]]
        twice.update(claimed.intersection(mine))
        claimed.update(mine)
    if len(claimed) == sum(map(len, owned.values())):
        return owned
    return {member_id: [tp for tp in dict.fromkeys(mine) if tp not in twice] for member_id, mine in owned.items()}


# ---- large groups with equal subscriptions ---------------------------------------------------------------------------


def _dealt(
    ordered: list[str], owned: dict[str, list[TopicPartition]], topics: list[str], partitions: Mapping[str, int]
) -> dict[str, list[TopicPartition]]:
    """Each member keeps up to its share, and the free partitions are dealt topic by topic.

    Balance and moves are the best.  The spread of topics is nearly the best: a member that has too
    many chooses what it gives up before it is known who takes it.  If nobody owns anything, the
    spread is the best, too, and this is Kafka's answer, partition for partition.
    """
    share, more = divmod(sum(partitions[topic] for topic in topics), len(ordered))  # so many members get one more than the share
    fair = {topic: partitions[topic] / len(ordered) for topic in topics}
    assignment: dict[str, list[TopicPartition]] = {}
    for member_id in ordered:
        assignment[member_id] = _kept(sorted(owned[member_id]), share + (more > 0), fair)
        more -= len(assignment[member_id]) > share
    load = {member_id: len(taken) for member_id, taken in assignment.items() if len(taken) < share + (more > 0)}
    if not load:
        return assignment
    counts = {topic: dict.fromkeys(load, 0) for topic in topics}  # what each member in `load` has of a topic
    for member_id in load:
        for topic, _ in assignment[member_id]:
            counts[topic][member_id] += 1
    unkept = {topic: bytearray(b"\1") * partitions[topic] for topic in topics}  # by number (a set of pairs costs twice the time)
    for topic, number in chain.from_iterable(assignment.values()):
        unkept[topic][number] = 0
    for topic, count in counts.items():
        free = [TopicPartition(topic, n) for n in compress(range(partitions[topic]), unkept[topic])][::-1]
        while free:  # first to the members that have the fewest of the topic, then to those that have one more, …
            fewest = min(count[member_id] for member_id in load)
            for member_id in sorted(load, key=load.__getitem__):  # of equal loads, the member that has waited longest comes first
                if member_id not in load or count[member_id] != fewest:
                    continue
                assignment[member_id].append(free.pop())
                count[member_id] = fewest + 1
                now = load.pop(member_id) + 1
                more -= now > share
                if now < share + (more > 0):
                    load[member_id] = now
                elif now > share and not more:
                    load = {other: number for other, number in load.items() if number < share}
                if not free:
                    break
    return assignment


def _kept(mine: list[TopicPartition], number: int, fair: Mapping[str, float]) -> list[TopicPartition]:
    """So many of a member's partitions; it gives up those of the topics that it has the most of, compared with a fair share."""
    if len(mine) <= number:
        return mine
    places = [(place - fair[topic], tp) for topic, alike in groupby(mine, key=itemgetter(0)) for place, tp in enumerate(alike)]
    return [tp for _, tp in sorted(places)[:number]]


# ---- different subscriptions, and small groups -----------------------------------------------------------------------
#
# Partitions of one topic differ only in who owns them, so the unknowns are counts: how many partitions
# of each topic each member has.  The least cost is sought: first the sum of the squares of the members'
# loads (balance), then the partitions taken from their owners (moves), then the sum of the squares of
# the counts (each topic spread over its members).  All three are convex, so this is a flow of least
# cost: start from some counts, then send one unit around a cycle of negative cost until there is none
# (Klein, "A primal method for minimal cost flows", 1967).  A cycle goes from a member to a topic (the
# member gives one up), from the topic to a member (which takes it), and so on.  Through the hub, one
# member's load may grow by one while another's shrinks by one.


class _Flow:
    """Counts of partitions by member and topic.  Nodes are numbers: members, then topics, then the hub."""

    def __init__(self, wanted: Mapping[str, frozenset[str]], owned: dict[str, list[TopicPartition]], free: Mapping[str, int]) -> None:
        self.members, self.topics = sorted(wanted), sorted(free)
        self.hub = len(self.members) + len(self.topics)
        node_of = {topic: node for node, topic in enumerate(self.topics, len(self.members))}
        self.owned = [{node_of[topic]: 0 for topic in sorted(wanted[member_id])} for member_id in self.members]
        for counts, member_id in zip(self.owned, self.members):
            for tp in owned[member_id]:
                counts[node_of[tp.topic]] += 1
        self.count = [dict(counts) for counts in self.owned]
        self.load = [len(owned[member_id]) for member_id in self.members]
        self.takers: dict[int, list[int]] = {node: [] for node in node_of.values()}
        for member, counts in enumerate(self.owned):
            for topic in counts:
                self.takers[topic].append(member)
        total = sum(self.load) + sum(free.values())
        edges = 2 * self.hub + 1  # of a cycle, at most
        self.move = 1 + edges * (2 * total + 1)  # outweighs whatever a cycle does to the counts
        self.balance = self.move * (edges + 1)  # outweighs all moves of a cycle
        self._start({node_of[topic]: number for topic, number in free.items()}, -(-total // len(self.members)))

    def _start(self, free: dict[int, int], share: int) -> None:
        """Counts that are near the best.  Members give up what they have above the share; the members with least take what is free."""
        for member, counts in enumerate(self.count):
            shared = [(-count, topic) for topic, count in counts.items() if count and len(self.takers[topic]) > 1]
            heapify(shared)
            while self.load[member] > share and shared:
                count, topic = heappop(shared)
                self._add(member, topic, -1)
                free[topic] += 1
                if count < -1:
                    heappush(shared, (count + 1, topic))
        for topic in sorted(self.takers, key=lambda topic: len(self.takers[topic])):  # first the topics that few members want
            heap = [(self.load[member], self.count[member][topic], member) for member in self.takers[topic]]
            heapify(heap)
            for _ in range(free[topic]):
                load, count, member = heap[0]
                heapreplace(heap, (load + 1, count + 1, member))
                self._add(member, topic, 1)

    def _add(self, member: int, topic: int, number: int) -> None:
        self.count[member][topic] += number
        self.load[member] += number

    def _edges(self, node: int) -> Iterator[tuple[int, int]]:
        """Where one unit can go from a node, and what that costs."""
        if node == self.hub:
            yield from ((member, self.balance * (1 - 2 * load)) for member, load in enumerate(self.load) if load)
        elif node >= len(self.members):
            for member in self.takers[node]:
                count = self.count[member][node]
                yield member, 2 * count + 1 - (self.move if count < self.owned[member][node] else 0)
        else:
            yield self.hub, self.balance * (2 * self.load[node] + 1)
            owned = self.owned[node]
            for topic, count in self.count[node].items():
                if count:
                    yield topic, 1 - 2 * count + (self.move if count <= owned[topic] else 0)

    def improve(self) -> None:
        """Until no cycle of negative cost is left (Bellman and Ford's search).

        A cycle changes only the costs between its own nodes.  The search need not begin again: it goes
        on from these nodes, with the distances that it has.
        """
        distance = [0] * (self.hub + 1)
        before = [-1] * (self.hub + 1)
        queue, queued = deque(range(self.hub + 1)), set(range(self.hub + 1))
        while queue:
            queued.remove(start := queue.popleft())
            for end, cost in self._edges(start):
                if distance[start] + cost < distance[end]:
                    if path := _path(before, end, start):
                        for one, other in zip(path, [*path[1:], path[0]]):
                            if self.hub not in (one, other):
                                self._add(*((one, other, -1) if one < len(self.members) else (other, one, 1)))
                        for node in path:
                            before[node] = -1
                        queue += [node for node in path if node not in queued]
                        queued.update(path)
                        break
                    distance[end], before[end] = distance[start] + cost, start
                    if end not in queued:
                        queue.append(end)
                        queued.add(end)


def _path(before: list[int], first: int, last: int) -> list[int] | None:
    """The nodes by which the search came from one to another, if it did."""
    path = [last]
    while path[-1] != first:
        if (node := before[path[-1]]) < 0:
            return None
        path.append(node)
    return path[::-1]


def _best(
    wanted: Mapping[str, frozenset[str]], owned: dict[str, list[TopicPartition]], topics: list[str], partitions: Mapping[str, int]
) -> dict[str, list[TopicPartition]]:
    """The least cost, found as a flow; which partitions they are is settled at the end, and a member keeps its own first."""
    kept = {tp for taken in owned.values() for tp in taken}
    free = {topic: [tp for number in range(partitions[topic]) if (tp := TopicPartition(topic, number)) not in kept] for topic in topics}
    flow = _Flow(wanted, owned, {topic: len(left) for topic, left in free.items()})
    flow.improve()
    assignment: dict[str, list[TopicPartition]] = {}
    missing: list[tuple[list[TopicPartition], str, int]] = []
    for member_id, counts in zip(flow.members, flow.count):
        assignment[member_id] = taken = []
        mine: dict[str, list[TopicPartition]] = {}
        for tp in sorted(owned[member_id]):
            mine.setdefault(tp.topic, []).append(tp)
        for node, count in counts.items():
            topic = flow.topics[node - len(flow.members)]
            had = mine.get(topic, [])
            taken += had[:count]
            free[topic] += had[count:]
            if count > len(had):
                missing.append((taken, topic, count - len(had)))
    for taken, topic, number in missing:
        taken += free[topic][:number]
        del free[topic][:number]
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
