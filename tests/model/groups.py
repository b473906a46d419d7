"""A consumer group as a model that is searched exhaustively: members, their timers, kills and stops between every two steps.

The group itself is the code's: every change goes through `streamlog._coord.group.apply` with its table (`table` takes a rule out by
removing its guard), and `proceed` says what a member does next.  The model adds what is around it: applications that have a record in
hand, offsets that were noted and are committed later, processes that stop, go on or die, and an assignor that may answer anything.

    python groups.py                     search every instance with every rule in force
    python groups.py --rules             list the rules
    python groups.py --without RULE      the shortest counterexample of the first instance that breaks without that rule
    python groups.py --all               --without, for each rule in turn
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import ExitStack
from itertools import product
from typing import Any, NamedTuple
from unittest.mock import patch

from streamlog._coord import group as g
from streamlog._coord.group import Commit, Death, Expire, Group, Install, Join, Member, Release, Subscribe, Subscription, apply
from streamlog.errors import StreamlogError
from streamlog.types import TopicPartition

RULES = {  # name: what the rule says
    "take-free": "a member takes a partition only when nobody else owns it",
    "give-up": "a member gives up what the target takes from it",
    "release-in-poll": "H33: only the application's thread releases, between two records, never the timers",
    "expire": "H33: any other member expires one that is silent for too long",
    "not-itself": "H33: nobody expires itself: alone in its group a member keeps what it has",
    "late-judge": "H33: a judge that was itself stopped waits one session before it judges others",
    "commit-member": "H34: a commit counts only from a member",
    "commit-owner": "H34: ... that owns the partition in the group's state",
    "commit-assigned": "H34: ... since the generation in which the offset was noted, or before",
    "commit-reached": "H34: ... which is not beyond the one that the member has reached (against clients that make generations up)",
    "commit-not-equal": "H34: and no more than that: an offset noted in an earlier generation counts while the partition stayed",
    "commit-order": "H34: a member's own commits keep their order",
    "anybody-computes": "H35: that the target is behind is itself the to-do, whoever changed the group",
    "claim-ages": "H35: a claim older than a second is open to others",
    "install-swap": "H35: a target counts only if the group is still what it was computed for",
    "sane": "an assignor's nonsense is refused: a partition to two members, or to a stranger",
}
_GUARDS = {
    "not-itself": (Expire, g.by_another), "commit-owner": (Commit, g.is_owner),
    "commit-assigned": (Commit, g.noted_since_assigned), "commit-reached": (Commit, g.noted_by_now),
    "install-swap": (Install, g.is_current), "sane": (Install, g.is_sane),
}  # fmt: skip
_SESSION_OVER = 10**6
_SUBSCRIPTION = Subscription(("t",), None, 0, ("a",))


class Instance(NamedTuple):
    """How much is searched."""

    members: int = 2
    partitions: int = 1
    epochs: int = 4  # changes of the group
    records: int = 0  # in each partition
    noted: int = 0  # commits that a member may have on their way
    kills: int = 0
    stops: int = 0
    suspends: int = 0  # everything stops, and goes on
    cooperative: bool = True
    forgers: bool = False  # clients that make generations up
    nonsense: bool = False  # an assignor that gives one partition to two members
    rotates: bool = False  # one that moves everything each time, in place of one that may answer anything


INSTANCES = {
    "nonsense": Instance(members=2, partitions=1, epochs=3, nonsense=True),
    "suspend": Instance(members=2, partitions=1, epochs=3, suspends=1),
    "two on their way": Instance(members=1, partitions=1, epochs=2, records=2, noted=2),
    "forged": Instance(members=2, partitions=1, epochs=5, records=2, noted=1, forgers=True),
    "commits": Instance(members=2, partitions=1, epochs=5, records=2, noted=1),
    "records": Instance(members=2, partitions=1, epochs=4, records=1, kills=1, stops=1),
    "records, eager": Instance(members=2, partitions=2, epochs=4, records=1, kills=1, cooperative=False),
    "commits, stop": Instance(members=2, partitions=1, epochs=4, records=2, noted=1, stops=1),
    "owners of 2": Instance(members=2, partitions=2, epochs=4, kills=1, stops=1),
    "three, killed": Instance(members=3, partitions=2, epochs=3, records=1, noted=1, kills=1, rotates=True),
    "three, stopped": Instance(members=3, partitions=1, epochs=3, records=1, noted=1, kills=1, stops=1, rotates=True),
    "all": Instance(members=3, partitions=2, epochs=3, records=1, noted=1, kills=1, stops=1, rotates=True),
    "owners": Instance(members=3, partitions=2, epochs=3, kills=1, stops=1),
    "owners, eager": Instance(members=3, partitions=2, epochs=3, kills=1, stops=1, cooperative=False),
}


class Local(NamedTuple):
    """A process with one consumer."""

    status: str = "runs"  # "runs", "stopped", "dead"
    name: str = ""  # its member id
    joined: int = 0
    generation: int = -1
    owned: tuple[tuple[int, int], ...] = ()  # partition and position, as the application knows
    hand: int = -1  # partition of the record in hand
    noted: tuple[tuple[str, int, int, int], ...] = ()  # as whom, partition, offset, generation
    releases: tuple[int, tuple[int, ...]] | None = None  # generation and partitions, told to the application
    claim: int = -1  # epoch that it computes a target for
    silent: bool = False  # its last heartbeat is old
    late: bool = False  # it was stopped itself: it judges nobody yet


class State(NamedTuple):
    """A state of the search."""

    group: Group
    locals: tuple[Local, ...]
    committed: tuple[int, ...]
    kills: int
    stops: int
    suspends: int
    changer: str  # who changed the group last

    def key(self) -> tuple[Any, ...]:
        """What makes two states the same; equal members in another order are."""
        group, claim = self.group, self.group.claim
        claimant = claim.member_id if claim is not None and claim.epoch == group.epoch else None
        rows, names = [], set()
        for local in self.locals:
            name = local.name
            names.add(name)
            noted = tuple((who == name, *rest) for who, *rest in local.noted)
            flags = (local.status, bool(name), local.silent, local.late, claimant == name, self.changer == name)
            own = (local.joined, local.generation, local.owned, local.hand, noted, local.releases or (-1, ()), local.claim)
            rows.append((flags, own, _seat(group.members.get(name))))
        strangers = sorted(_seat(member) for name, member in group.members.items() if name not in names)
        rows.sort()
        return (
            tuple(rows), tuple(strangers), group.epoch, group.generation, claimant is not None, self.committed, self.kills, self.stops,
            self.suspends,
        )  # fmt: skip


def _seat(member: Member | None) -> tuple[Any, ...]:
    """A member in the group's state."""
    if member is None:
        return ()
    return member.generation, tuple(sorted(tp[1] for tp in member.target)), tuple(sorted((tp[1], epoch) for tp, epoch in member.owned.items()))


class BrokenError(Exception):
    """A property does not hold."""


def table(rules: Set[str]) -> dict[type, g.Transition]:
    """The code's table without the guards of the rules that are taken out."""
    made = dict(g.TABLE)
    for rule, (event, guard) in _GUARDS.items():
        if rule not in rules:
            made[event] = made[event]._replace(guards=tuple(other for other in made[event].guards if other is not guard))
    if "commit-member" not in rules:
        row = made[Commit]
        others = [guard for guard in row.guards if guard is not g.commits_from_outside_need_no_members]
        made[Commit] = row._replace(guards=tuple(map(_only_of_members, others)))
    if "commit-not-equal" not in rules:

        def equal(group: Group, event: Commit) -> None:
            if any(generation != group.generation for generation in event.noted.values()):
                raise BrokenCommitError

        made[Commit] = made[Commit]._replace(guards=(*made[Commit].guards, equal))
    return made


def _only_of_members(guard: Callable[[Group, Any], None]) -> Callable[[Group, Any], None]:
    return lambda group, event: guard(group, event) if event.member_id in group.members else None


def _everything(group: Group, member: Member) -> frozenset[TopicPartition]:
    return member.target - member.owned.keys()


def _nothing(group: Group, member: Member) -> frozenset[TopicPartition]:
    return frozenset()


class BrokenCommitError(StreamlogError):
    """A commit refused for its generation alone."""


class Model:
    """The steps of an instance."""

    def __init__(self, instance: Instance, rules: Set[str]) -> None:
        self.instance, self.rules, self.table = instance, rules, table(rules)
        self.partitions = [TopicPartition("t", number) for number in range(instance.partitions)]

    def start(self) -> State:
        """Nobody has joined."""
        found = self.instance
        return State(
            Group("g"), (Local(),) * found.members, (0,) * found.partitions, found.kills, found.stops, found.suspends, ""
        )  # fmt: skip

    # ---- steps -----------------------------------------------------------------------------------------------------------------

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """All that can happen next."""
        for number, local in enumerate(state.locals):
            if local.status == "runs":
                yield from self._member_steps(state, number, local)
            yield from self._fate(state, number, local)
        if state.suspends and any(local.name for local in state.locals):
            slept = tuple(local._replace(silent=True, late=True) if local.status == "runs" else local for local in state.locals)
            yield "everything stops for a while", state._replace(locals=slept, suspends=state.suspends - 1)

    def _put(self, state: State, number: int, local: Local, **changes: Any) -> State:
        locals_ = list(state.locals)
        locals_[number] = local
        return state._replace(locals=tuple(locals_), **changes)

    def _fate(self, state: State, number: int, local: Local) -> Iterator[tuple[str, State]]:
        who = f"process {number}"
        if local.status == "runs" and state.kills and local.name:
            yield f"{who} is killed", self._put(state, number, Local("dead", local.name, local.joined), kills=state.kills - 1)
        if local.status == "runs" and state.stops and local.name:
            yield f"{who} is stopped", self._put(state, number, local._replace(status="stopped", silent=True), stops=state.stops - 1)
        if local.status == "stopped":
            yield f"{who} goes on", self._put(state, number, local._replace(status="runs", late=True))

    def _member_steps(self, state: State, number: int, local: Local) -> Iterator[tuple[str, State]]:
        group, who = state.group, f"process {number}"
        if local.silent:
            yield f"{who}: heartbeat", self._put(state, number, local._replace(silent=False))
        if local.late and not any(other.silent and other.status == "runs" for other in state.locals):
            yield f"{who}: has waited a session", self._put(state, number, local._replace(late=False))
        if local.name:
            yield from self._judge(state, number, local)
        if "release-in-poll" not in self.rules and local.hand >= 0 and local.name in group.members:
            yield from self._timer_releases(state, number, local)
        yield from self._application(state, number, local)
        if local.hand < 0:
            yield from self._poll(state, number, local)

    def _judge(self, state: State, number: int, local: Local) -> Iterator[tuple[str, State]]:
        """The timers' findings, carried out under the group's lock."""
        group = state.group
        for other_number, other in enumerate(state.locals):
            if other.name not in group.members or (other.name == local.name and "not-itself" in self.rules):
                continue
            if group.epoch >= self.instance.epochs + 1:
                continue
            if other.status == "dead":
                after = apply(group, Death(other.name), self.table)
                yield f"process {number} buries {other_number}", state._replace(group=after, changer=local.name)
            elif other.name == local.name:
                if other.silent and len(group.members) == 1:
                    raise BrokenError("a member that is alone in its group expired itself")
            elif other.silent and not (local.late and "late-judge" in self.rules) and "expire" in self.rules:
                if other.status == "runs" and self.instance.suspends and local.late:
                    raise BrokenError("a member was expired by one that was stopped just as long")
                after = apply(group, Expire(other.name, local.name, _SESSION_OVER, 0), self.table)
                yield f"process {number} expires {other_number}", state._replace(group=after, changer=local.name)

    def _timer_releases(self, state: State, number: int, local: Local) -> Iterator[tuple[str, State]]:
        group, member = state.group, state.group.members[local.name]
        release = g.to_release(group, member)
        if release and group.state == g.RECONCILING:
            after = apply(group, Release(local.name, group.generation, release), self.table)
            kept = tuple(pair for pair in local.owned if self.partitions[pair[0]] not in release)
            local = local._replace(owned=kept, generation=group.generation)
            yield f"process {number}: its timer releases {sorted(release)}", self._put(state, number, local, group=after)

    def _application(self, state: State, number: int, local: Local) -> Iterator[tuple[str, State]]:
        who, positions = f"process {number}", dict(local.owned)
        if local.releases is None and local.hand < 0:
            for partition, position in local.owned:
                if position < self.instance.records:
                    yield f"{who}: takes record {position} of {partition} in hand", self._put(state, number, local._replace(hand=partition))
        if local.hand >= 0:
            done = positions[local.hand] + 1 if local.hand in positions else 0
            owned = tuple((partition, done if partition == local.hand else position) for partition, position in local.owned)
            yield f"{who}: is done with it", self._put(state, number, local._replace(hand=-1, owned=owned))
        if len(local.noted) < self.instance.noted:
            for partition, position in local.owned:
                generation = 99 if self.instance.forgers else local.generation
                note = (local.name, partition, position, generation)
                if position and note not in local.noted and state.committed[partition] < position:
                    yield f"{who}: notes {partition}:{position}", self._put(state, number, local._replace(noted=(*local.noted, note)))
        for at in range(len(local.noted) if "commit-order" not in self.rules else min(1, len(local.noted))):
            rest = local.noted[:at] + local.noted[at + 1 :]
            yield f"{who}: commits {local.noted[at]}", self._commit(state, number, local._replace(noted=rest), local.noted[at])

    def _commit(self, state: State, number: int, local: Local, note: tuple[str, int, int, int]) -> State:
        name, partition, offset, generation = note
        try:
            apply(state.group, Commit(name, None, {self.partitions[partition]: generation}), self.table)
        except (StreamlogError, KeyError):
            return self._put(state, number, local)
        if offset < state.committed[partition]:
            raise BrokenError(f"the committed offset of {partition} goes back from {state.committed[partition]} to {offset}")
        committed = list(state.committed)
        committed[partition] = offset
        return self._put(state, number, local, committed=tuple(committed))

    def _poll(self, state: State, number: int, local: Local) -> Iterator[tuple[str, State]]:
        group, who = state.group, f"process {number}"
        if local.claim >= 0:
            yield from self._install(state, number, local)
        elif local.releases is not None:
            yield f"{who}: has given up {local.releases[1]}", self._released(state, number, local)
        elif not local.name:
            if group.epoch < self.instance.epochs and local.joined < 2:
                name = f"{number}.{local.joined}"
                after = apply(group, Join(Member(name, None, "", number, number, 0, 1, 1, _SUBSCRIPTION), 0), self.table)
                joined = local._replace(name=name, joined=local.joined + 1, silent=False)
                yield f"{who}: joins as {name}", self._put(state, number, joined, group=after, changer=name)
        elif local.name not in group.members:
            lost = Local(local.status, "", local.joined, noted=local.noted, late=local.late)
            yield f"{who}: finds that it was expired", self._put(state, number, lost)
        else:
            if group.state == g.STABLE and group.epoch < self.instance.epochs:
                after = apply(group, Subscribe(local.name, _SUBSCRIPTION), self.table)
                yield f"{who}: asks for a new target", state._replace(group=after, changer=local.name)
            yield from self._proceed(state, number, local)

    def _proceed(self, state: State, number: int, local: Local) -> Iterator[tuple[str, State]]:
        group, who = state.group, f"process {number}"
        now = 0
        claim = group.claim
        if claim is not None and claim.epoch == group.epoch and "claim-ages" in self.rules:
            holder = next((other for other in state.locals if other.name == claim.member_id), None)
            computes = holder is not None and holder.status == "runs" and holder.claim >= 0
            now = 0 if computes else g.CLAIM_MS + 1  # a second passes only while nobody computes
        if group.state == g.ASSIGNING and "anybody-computes" not in self.rules and state.changer != local.name:
            return
        after, todo = g.proceed(group, local.name, now, self.table)
        if todo.claimed:
            yield f"{who}: claims epoch {after.epoch}", self._put(state, number, local._replace(claim=after.epoch), group=after)
        elif todo.release:
            partitions = tuple(tp.partition for tp in sorted(todo.release))
            revoking = self._put(state, number, local._replace(releases=(group.generation, partitions)))
            yield f"{who}: gives up {partitions}", self._commit_revoked(revoking, number, partitions)
        elif after is not group or after.members[local.name].generation != local.generation:
            member = after.members[local.name]
            known = dict(local.owned)
            owned = tuple((tp.partition, known.get(tp.partition, state.committed[tp.partition])) for tp in sorted(member.owned))
            told = local._replace(owned=owned, generation=member.generation)
            if (told, after) != (local, group):
                yield f"{who}: goes on with {[partition for partition, _ in owned]}", self._put(state, number, told, group=after)

    def _commit_revoked(self, state: State, number: int, partitions: tuple[int, ...]) -> State:
        """What is processed is committed before its partition goes; the group must take it."""
        local = state.locals[number]
        for partition, position in local.owned:
            mine = partition in partitions and local.name in state.group.members and not local.noted  # one's own commits keep their order
            if mine and self.instance.noted and not self.instance.forgers and position > state.committed[partition]:
                before = state.committed[partition]
                state = self._commit(state, number, state.locals[number], (local.name, partition, position, local.generation))
                if state.committed[partition] == before:
                    raise BrokenError(f"the owner's last commit of {partition} was refused")
        return state

    def _released(self, state: State, number: int, local: Local) -> State:
        assert local.releases is not None
        generation, partitions = local.releases
        group, local = state.group, local._replace(releases=None)
        if local.name in group.members:
            released = frozenset(self.partitions[partition] for partition in partitions)
            group = apply(group, Release(local.name, generation, released), self.table)
            local = local._replace(owned=tuple(pair for pair in local.owned if pair[0] not in partitions), generation=generation)
        return self._put(state, number, local, group=group)

    def _install(self, state: State, number: int, local: Local) -> Iterator[tuple[str, State]]:
        """The assignor may answer anything."""
        group, who = state.group, f"process {number}"
        names = sorted(group.members)
        topics = {"t": g.GroupTopic(b"t", len(self.partitions), len(self.partitions))}
        choices: list[tuple[str, ...]] = list(product(names, repeat=len(self.partitions))) if names else [()]
        if self.instance.rotates and names:
            choices = [tuple(names[(local.claim + number) % len(names)] for number in range(len(self.partitions)))]
        for choice in choices:
            targets = {name: frozenset(tp for tp, owner in zip(self.partitions, choice) if owner == name) for name in names}
            if self.instance.nonsense:
                targets = dict.fromkeys(names, frozenset(self.partitions))
            event = Install(local.name, local.claim, "a", self.instance.cooperative, 0, topics, targets)
            try:
                after = apply(group, event, self.table)
            except AssertionError as error:
                raise BrokenError(f"a target of another time was installed ({error})") from None
            except StreamlogError:
                yield f"{who}: its target is refused", self._put(state, number, local._replace(claim=-1))
                return
            if after.generation < group.generation:
                raise BrokenError(f"the generation goes back from {group.generation} to {after.generation}")
            yield f"{who}: installs {dict(zip(self.partitions, choice))}", self._put(state, number, local._replace(claim=-1), group=after)

    # ---- properties --------------------------------------------------------------------------------------------------------------

    def check(self, state: State, steps: list[tuple[str, State]]) -> None:
        """What holds in every state."""
        group, seen = state.group, set()
        for member in group.members.values():
            for tp in member.owned:
                if tp in seen:
                    raise BrokenError(f"{tp} has two owners")
                seen.add(tp)
        for local in state.locals:
            if local.hand >= 0 and local.name in group.members and self.partitions[local.hand] not in group.members[local.name].owned:
                raise BrokenError(f"a record of {local.hand} is in hand, and the partition is free for others")
        going_on = [name for name, _ in steps if _is_protocol(name)]
        if not going_on:
            self._check_settled(state)
        runs = any(local.status == "runs" and local.name in group.members for local in state.locals)
        if runs and group.state == g.ASSIGNING and "expire" in self.rules and all("expires" in name for name in going_on):
            raise BrokenError("the target waits for one that is stopped")

    def _check_settled(self, state: State) -> None:
        """Nobody who runs has anything left to do about the group."""
        group = state.group
        running = [local for local in state.locals if local.status == "runs" and local.name in group.members]
        if not running or (self.instance.nonsense and "sane" in self.rules) or group.epoch >= self.instance.epochs:
            return
        if group.state != g.STABLE:
            raise BrokenError(f"the group stays {group.state} for ever")
        owned = {tp for member in group.members.values() for tp in member.owned}
        if owned != set(self.partitions):
            raise BrokenError("a partition is nobody's for ever")


def _is_protocol(step: str) -> bool:
    """Whether a step is the protocol's own, and not fate's or the application's choice."""
    words = (
        "joins", "finds", "claims", "gives up", "has given up", "goes on with", "installs", "refused", "buries", "expires", "is done",
        "heartbeat", "has waited",
    )  # fmt: skip
    return any(word in step for word in words)


def check(name: str, rules: Set[str] = frozenset(RULES), limit: int = 3_000_000) -> tuple[int, str, list[str]]:
    """Search an instance.  Returns the number of states, and, if a property breaks, which one and the shortest way there."""
    with ExitStack() as stack:
        if "take-free" not in rules:
            stack.enter_context(patch.object(g, "to_take", _everything))
        if "give-up" not in rules:
            stack.enter_context(patch.object(g, "to_release", _nothing))
        return _search(Model(INSTANCES[name], rules), limit)


def _search(model: Model, limit: int) -> tuple[int, str, list[str]]:
    start = model.start()
    seen: dict[tuple[Any, ...], tuple[tuple[Any, ...] | None, str]] = {start.key(): (None, "")}
    queue = deque([(start.key(), start)])
    while queue:
        key, state = queue.popleft()
        try:
            steps = list(model.steps(state))
            model.check(state, steps)
        except BrokenError as error:
            return len(seen), str(error), _path(seen, key)
        for step, after in steps:
            after_key = after.key()
            if after_key not in seen:
                seen[after_key] = key, step
                queue.append((after_key, after))
        if len(seen) > limit:
            return len(seen), "limit", []
    return len(seen), "", []


def _path(seen: Mapping[tuple[Any, ...], tuple[tuple[Any, ...] | None, str]], key: tuple[Any, ...] | None) -> list[str]:
    path: list[str] = []
    while key is not None:
        key, step = seen[key]
        path.append(step)
    return path[-2::-1]


def first_break(rule: str) -> tuple[str, int, str, list[str]]:
    """The first instance that breaks without a rule."""
    for name in INSTANCES:
        states, broken, path = check(name, frozenset(RULES) - {rule})
        if broken:
            return name, states, broken, path
    return "", 0, "", []


def main(argv: list[str]) -> int:
    """See the module's docstring."""
    if argv[:1] == ["--rules"]:
        print("\n".join(f"{name:18} {text}" for name, text in RULES.items()))
    elif argv[:1] in (["--without"], ["--all"]):
        for rule in argv[1:] or RULES:
            name, states, broken, path = first_break(rule)
            print(f"without {rule}: {name or 'NOTHING'} breaks after {states:,} states: {broken}")
            print("".join(f"    {step}\n" for step in path), end="")
    else:
        for name in argv or INSTANCES:
            begun = time.monotonic()
            states, broken, path = check(name)
            print(f"{name}: {states:,} states in {time.monotonic() - begun:.1f} s{': ' + broken if broken else ', every property holds'}")
            print("".join(f"    {step}\n" for step in path), end="")
    return 0

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
