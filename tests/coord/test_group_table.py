"""The transition table: every event in every state that can be reached, and the page that is made from it."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from streamlog import TopicPartition
from streamlog._coord import group as g
from streamlog._coord.group import TABLE, Group, GroupTopic, Member, Subscription, apply
from streamlog._coord.group_file import decode, encode
from streamlog.errors import StreamlogError

P0 = TopicPartition("t", 0)
SUBSCRIPTION = Subscription(("t",), None, 0, ("a", "b"))
DOCS = Path(__file__).parents[2] / "docs" / "groups.md"


def member(name: str, instance: str | None = None, assignors: tuple[str, ...] = ("a", "b")) -> Member:
    return Member(name, instance, "", 1, 0, 1, 1000, 1000, SUBSCRIPTION._replace(assignors=assignors))


def events(group: Group) -> list[Any]:
    """All that could be tried now, sensible or not."""
    names = ["x", "s", "s2"]
    targets = [{}, *({name: frozenset([P0])} for name in group.members)]
    topics = {"t": GroupTopic(b"t", 2, 2)}
    found: list[Any] = [g.Join(member("x"), 0), g.Join(member("s", "S"), 0), g.Join(member("s2", "S"), 0)]
    found += [g.Join(member("z", None, ("c",)), 0), g.Delete(), g.Alter(), g.PartitionsChanged(1), g.PartitionsChanged(99)]
    for name in names:
        found += [g.Leave(name), g.Death(name), g.Expire(name, "o", 2000, 0), g.Expire(name, "o", 0, 0), g.Expire(name, name, 2000, 0)]
        found += [g.ClaimTarget(name, 0), g.ClaimTarget(name, 5000), g.Take(name), g.Subscribe(name, SUBSCRIPTION)]
        found += [g.Release(name, generation, frozenset(tps)) for generation in (group.generation, group.generation + 1) for tps in ([], [P0])]
        found += [g.Commit(name, None, {P0: generation}) for generation in (0, group.generation)]
        found += [g.Install(name, group.epoch, "a", cooperative, 1, topics, target) for cooperative in (True, False) for target in targets]
    found += [g.Commit("", None, {P0: -1}), g.Install("x", group.epoch - 1, "a", True, 1, topics, {})]
    return found


def frozen(group: Group) -> bytes:
    return encode(group._replace(joins=0, assign_at_ms=0, assign_until_ms=0))


@pytest.fixture(scope="module")
def explored() -> tuple[dict[bytes, Group], set[tuple[str, str, str]]]:
    """The groups that a dynamic and a static member and three changes can lead to, and every edge that was gone."""
    start = Group("g")
    seen, edges, front = {frozen(start): start}, set(), [start]
    while front:
        group = front.pop()
        for event in events(group):
            before = encode(group)
            try:
                after = apply(group, event)
            except StreamlogError:
                assert encode(group) == before, f"{event} was refused and changed something"
                continue
            assert encode(group) == before, f"{event} changed the group that it was given"
            assert after.epoch >= group.epoch or isinstance(event, g.Delete)
            assert after.generation >= group.generation
            edges.add((type(event).__name__, group.state, after.state))
            owners = [tp for one in after.members.values() for tp in one.owned]
            assert len(owners) == len(set(owners)), f"two owners after {event}"
            key = frozen(after)
            if key not in seen and after.epoch <= 3:
                seen[key] = after
                front.append(after)
    return seen, edges


def test_every_edge_of_the_table_is_gone_and_no_other(explored: Any) -> None:
    _, edges = explored
    table = {
        (event.__name__, source, target) for event, row in TABLE.items() for source, targets in row.edges.items() for target in targets
    }
    assert edges == table


def test_encoding_keeps_every_group(explored: Any) -> None:
    seen, _ = explored
    for group in itertools.islice(seen.values(), 3000):
        assert decode(encode(group)) == group


def test_the_diagram_in_the_docs_is_made_from_the_table() -> None:
    page = DOCS.read_text()
    found = re.search(r"```mermaid\n(.*?)```", page, re.DOTALL)
    assert found
    assert found[1] == diagram(), "run: python tests/coord/test_group_table.py"


def diagram() -> str:
    """The states and what leads from one to another."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for event, row in TABLE.items():
        for source, targets in row.edges.items():
            for target in targets:
                if source != target:
                    arrows.setdefault((source, target), []).append(event.__name__)
    order = {state: number for number, state in enumerate(g.STATES)}
    found = sorted(arrows.items(), key=lambda arrow: [order[state] for state in arrow[0]])
    lines = [f"    {source} --> {target}: {', '.join(names)}" for (source, target), names in found]
    return "\n".join(["stateDiagram-v2", "    [*] --> Dead", *lines, ""])


def test_of_several_assignors_most_votes_win_and_ties_go_to_the_oldest_member() -> None:
    group = apply(Group("g"), g.Join(member("x", None, ("a", "b", "c")), 0))
    assert g.chosen_assignor(group) == "a"
    group = apply(group, g.Join(member("y", None, ("b", "a")), 0))
    assert g.chosen_assignor(group) == "a"
    group = apply(group, g.Join(member("z", None, ("b", "a")), 0))
    assert g.chosen_assignor(group) == "b"


def test_a_group_is_limited() -> None:
    group = Group("g")
    for number in range(g.MAX_MEMBERS):
        group = group._replace(members={**group.members, str(number): member(str(number))}, dead=False, epoch=1)
    with pytest.raises(StreamlogError, match="1024 members"):
        apply(group, g.Join(member("x"), 0))


if __name__ == "__main__":
    page = DOCS.read_text()
    DOCS.write_text(re.sub(r"```mermaid\n.*?```", lambda _: f"```mermaid\n{diagram()}```", page, flags=re.DOTALL))
