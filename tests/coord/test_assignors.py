"""Assignors, against what Kafka's own answered (KafkaAssignors.java made kafka_assignors.json with Apache Kafka 4.4.0) and against rules."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlog import TopicPartition, assignors
from streamlog.assignors import CooperativeStickyAssignor, RangeAssignor, RoundRobinAssignor, StickyAssignor, Subscription
from streamlog.errors import InvalidConfigError

CASES: list[dict[str, Any]] = json.loads(Path(__file__).with_name("kafka_assignors.json").read_text())
Assignment = Mapping[str, Sequence[TopicPartition]]


def members_of(case: dict[str, Any]) -> dict[str, Subscription]:
    return {
        member["id"]: Subscription(tuple(member["topics"]), tuple(TopicPartition(*tp) for tp in member["owned"]), member["instance"])
        for member in case["members"]
    }


def moves(members: Mapping[str, Subscription], partitions: Mapping[str, int], assignment: Assignment) -> int:
    """Partitions that a member had, might have kept, and has no longer."""
    return sum(
        tp.topic in member.topics and tp.partition < partitions.get(tp.topic, 0) and tp not in assignment[member_id]
        for member_id, member in members.items()
        for tp in member.owned
    )


def spread(loads: Sequence[int]) -> int:
    return sum(load * load for load in loads)


def check_complete(members: Mapping[str, Subscription], partitions: Mapping[str, int], assignment: Assignment) -> None:
    given_out = [tp for tps in assignment.values() for tp in tps]
    assert len(given_out) == len(set(given_out))
    wanted = {topic for member in members.values() for topic in member.topics}
    assert set(given_out) == {TopicPartition(topic, n) for topic in wanted for n in range(partitions.get(topic, 0))}
    assert set(assignment) == set(members)
    assert all(tp.topic in members[member_id].topics for member_id, tps in assignment.items() for tp in tps)


@pytest.mark.parametrize(("name", "assignor"), [("range", RangeAssignor()), ("roundrobin", RoundRobinAssignor())])
def test_range_and_roundrobin_are_kafkas(name: str, assignor: Any) -> None:
    for number, case in enumerate(CASES):
        found = assignor.assign(members_of(case), case["partitions"])
        for member_id, expected in case[name].items():
            mine = [list(tp) for tp in found[member_id]]
            if name == "range":  # Kafka takes topics in the order of a hash map
                mine, expected = sorted(mine), sorted(expected)
            assert mine == expected, f"case {number}, member {member_id}"


@pytest.mark.parametrize("assignor", [StickyAssignor(), CooperativeStickyAssignor()], ids=lambda assignor: assignor.name)
def test_sticky_is_no_worse_than_kafkas_in_balance_and_moves(assignor: Any) -> None:
    better = 0
    for number, case in enumerate(CASES):
        members, partitions = members_of(case), case["partitions"]
        found = assignor.assign(members, partitions)
        check_complete(members, partitions, found)
        kafka = case[assignor.name]
        mine = spread([len(tps) for tps in found.values()]), moves(members, partitions, found)
        theirs = spread(list(kafka["loads"].values())), kafka["moves"]
        assert mine <= theirs, f"case {number}: (squares of the loads, moves) {mine}, Kafka has {theirs}"
        better += mine < theirs
    print(f"{assignor.name}: better than Kafka's in {better} of {len(CASES)} cases")


TOPICS = ("a", "b", "c", "d")
MEMBERS = st.dictionaries(st.sampled_from("uvwxyz"), st.sets(st.sampled_from(TOPICS)).map(lambda topics: tuple(sorted(topics))), min_size=1)
PARTITIONS = st.dictionaries(st.sampled_from(TOPICS), st.integers(0, 6))


def best(members: Mapping[str, Subscription], partitions: Mapping[str, int]) -> tuple[int, int]:
    """The least (squares of the loads, moves), by trying everything."""
    wanted = sorted(
        TopicPartition(topic, n) for topic, count in partitions.items() for n in range(count) if any(topic in m.topics for m in members.values())
    )
    states: dict[tuple[int, ...], int] = {(0,) * len(members): 0}
    names = sorted(members)
    owner = {tp: name for name in names for tp in members[name].owned if tp.topic in members[name].topics and tp in wanted}
    for tp in wanted:
        after: dict[tuple[int, ...], int] = {}
        for loads, moved in states.items():
            for at, name in enumerate(names):
                if tp.topic in members[name].topics:
                    key = (*loads[:at], loads[at] + 1, *loads[at + 1 :])
                    cost = moved + (owner.get(tp, name) != name)
                    after[key] = min(after.get(key, cost), cost)
        states = after
    return min((spread(loads), moved) for loads, moved in states.items())


@settings(max_examples=200, deadline=None)
@given(subscribed=MEMBERS, partitions=PARTITIONS, seed=st.integers(0, 10**6))
def test_sticky_is_as_good_as_possible(subscribed: dict[str, tuple[str, ...]], partitions: dict[str, int], seed: int) -> None:
    rng = random.Random(seed)
    partitions = {topic: min(count, 3) for topic, count in partitions.items()}
    everything = [TopicPartition(topic, n) for topic, count in partitions.items() for n in range(count)]
    owned: dict[str, list[TopicPartition]] = {name: [] for name in subscribed}
    for tp in everything:
        if rng.random() < 0.7:
            owned[rng.choice(sorted(subscribed))].append(tp)
    members = {name: Subscription(topics, tuple(owned[name])) for name, topics in list(subscribed.items())[:4]}
    found = StickyAssignor().assign(members, partitions)
    check_complete(members, partitions, found)
    assert (spread([len(tps) for tps in found.values()]), moves(members, partitions, found)) == best(members, partitions)


@settings(max_examples=200, deadline=None)
@given(subscribed=MEMBERS, partitions=PARTITIONS)
def test_every_assignor_gives_out_everything_once(subscribed: dict[str, tuple[str, ...]], partitions: dict[str, int]) -> None:
    members = {name: Subscription(topics) for name, topics in subscribed.items()}
    for assignor in assignors.BY_NAME.values():
        check_complete(members, partitions, assignor().assign(members, partitions))


def test_sticky_again_moves_nothing() -> None:
    rng = random.Random(3)
    members = {f"m{n}": Subscription(tuple(sorted(rng.sample(TOPICS, rng.randint(1, 4))))) for n in range(9)}
    partitions = dict.fromkeys(TOPICS, 13)
    first = StickyAssignor().assign(members, partitions)
    again = {name: member._replace(owned=tuple(first[name])) for name, member in members.items()}
    assert {name: set(tps) for name, tps in StickyAssignor().assign(again, partitions).items()} == {n: set(tps) for n, tps in first.items()}


def test_what_two_members_say_they_own_is_nobodys() -> None:
    both = TopicPartition("a", 0)
    members = {"u": Subscription(("a",), (both,)), "v": Subscription(("a",), (both, TopicPartition("a", 1)))}
    found = StickyAssignor().assign(members, {"a": 2})
    assert found == {"u": [both], "v": [TopicPartition("a", 1)]}


def test_no_members_get_nothing() -> None:
    for assignor in assignors.BY_NAME.values():
        assert assignor().assign({}, {"a": 3}) == {}


@pytest.mark.parametrize("value", ["stickey", "", None, [], 5, object(), ["range", "range"], [RangeAssignor, "range"], type("X", (), {})])
def test_what_is_no_assignor_is_refused(value: object) -> None:
    with pytest.raises(InvalidConfigError, match="strategy"):
        assignors.resolved("strategy", value)


def test_names_classes_and_objects_are_taken() -> None:
    mine = RangeAssignor()
    mine.name = "mine"
    found = assignors.resolved("strategy", ["sticky", RoundRobinAssignor, mine])
    assert [assignor.name for assignor in found] == ["sticky", "roundrobin", "mine"]
