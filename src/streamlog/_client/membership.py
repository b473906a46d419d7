"""A consumer's membership in a group: joins it, goes over to each new target, commits, leaves.

All of it happens inside the consumer's calls, on the application's thread (H33); the timers only say that there is something to look at
(`attention`).  What must be given up is given up between two steps under the group's lock: the application is told, what it processed is
committed, and only then the partitions are released.
"""

from __future__ import annotations

import weakref
from operator import index

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol

    from streamlog._client.coordinator import Offsets
    from streamlog._client.timers import Timers

    class Holder(Protocol):
        """The consumer, as its membership needs it.  Errors of its listener are kept for later."""

        def held(self) -> dict[TopicPartition, int]: ...

        def revoke(self, partitions: list[TopicPartition]) -> None: ...

        def lose(self, partitions: list[TopicPartition]) -> None: ...

        def receive(self, partitions: dict[TopicPartition, int]) -> None: ...


from streamlog import assignors
from streamlog._client.coordinator import Coordinator
from streamlog._client.offsets import NOT_A_MEMBER
from streamlog._coord.group import (
    ASSIGNING,
    CLAIM_MS,
    RECONCILING,
    STABLE,
    Commit,
    Group,
    GroupTopic,
    Install,
    Join,
    Leave,
    Member,
    PartitionsChanged,
    Proceed,
    Release,
    Subscribe,
    Subscription,
    apply,
    chosen_assignor,
    proceed,
    to_take,
)
from streamlog._coord.group_file import VERSION, GroupFile
from streamlog._format.names import INTERNAL_TOPICS
from streamlog._os import process
from streamlog._os.clock import monotonic
from streamlog._os.watch import OUT_OF_SIGHT
from streamlog._replica.metadata import Metadata, TopicMetadata
from streamlog.config import ConsumerConfig
from streamlog.errors import FencedInstanceIdError, InvalidStateError, RebalanceInProgressError
from streamlog.types import GroupMetadata, TopicPartition

_LATE_MS = 1_000  # a timer that ran so late says more about its own process than about others (H33)
# Lateness is of this process and measured by its own clock; sessions are the cluster's, whose clock tests may move.


class Todo:
    """What a step under the lock came to, if the group it returned was stored; and what is left to do outside the lock."""

    __slots__ = ("joined", "lost", "next", "subscribed")

    def __init__(self) -> None:
        self.joined: Member | None = None
        self.subscribed: Subscription | None = None
        self.lost = False
        self.next = Proceed()


class Membership:
    """Belongs to one consumer, and to its thread; `tick` and `others` are the timers'."""

    def __init__(self, coordinator: Coordinator, timers: Timers, metadata: Metadata, config: ConsumerConfig) -> None:
        self.coordinator, self._timers, self._metadata, self.config = coordinator, timers, metadata, config
        self._file: GroupFile = coordinator.file
        self._clock, self._namespace = coordinator.clock, process.namespace()
        self._assignors = {a.name: a for a in assignors.resolved("partition_assignment_strategy", config.partition_assignment_strategy)}
        self.attention = False
        """Stored by the timers: there may be something to do that no new version of the group says."""
        self.pulse = False
        """Stored by the timers: time has passed, and a commit may be due, or the application was silent for long."""
        self._pulse_at = self._wakes_at = _NEVER  # when (ms) the timers do so, and when they look here again
        self._seen = -1  # version of the group file that was acted on
        self._resolved_at = -1  # version of the metadata that was looked at
        self._stale = -1  # generation whose target does not fit the metadata
        self.member_id = ""
        self._slot = self._tag = -1
        self.generation = -1
        self._told = -1  # generation of which the application heard
        self._subscription: Subscription | None = None
        self._wanted: Subscription | None = None
        self._next_beat = 0
        self._last_tick = self._judge_from = 0.0  # by this process's own clock (s)
        self._finalizer: Any = None
        self._fenced = ""

    # ---- in `poll` -----------------------------------------------------------------------------------------------------------

    def subscribe(self, topics: tuple[str, ...], pattern: tuple[str, int] | None) -> None:
        """What the group hears at the next poll."""
        self._wanted = Subscription(topics, pattern, self._metadata.version, tuple(self._assignors))
        self.attention = True

    def is_due(self) -> bool:
        """Whether `poll` has something to look at: one load."""
        return bool(self.attention or self._file.words[VERSION] != self._seen or self._metadata.version != self._resolved_at)

    def is_called(self) -> bool:
        """Whether a loop that hands out records has to look at the group before the next one."""
        return self.pulse or self.attention or self._file.words[VERSION] != self._seen

    def beat_poll(self, within_ms: int) -> None:
        """The application asks for records; unless it does so again, the timers call it after `within_ms`, or when it has to show that it lives."""
        if self._slot >= 0:
            now = self._clock.monotonic_ms()
            self._file.beat(self._slot, self._tag, now, poll=True)
            self.pulse, self._pulse_at = False, now + min(within_ms, self.config.max_poll_interval_ms // 4)
            if self._pulse_at < self._wakes_at:
                self._wakes_at = self._pulse_at
                self._timers.wake()

    def poll(self, holder: Holder, timeout: float) -> None:
        """Join, or do what the group's state asks of this member.  Waits for the group's lock at most `timeout` seconds each time.

        Raises: FencedInstanceIdError, InconsistentGroupProtocolError, StreamlogTimeoutError, and what an assignor raises.
        """
        self.check_fenced()
        try:
            while (self._wanted or self._subscription) is not None and self.is_due():
                self._look(holder, timeout)
        except BaseException:
            self.attention = True  # whatever was broken off is looked at again by the next poll
            raise

    def _look(self, holder: Holder, timeout: float) -> None:
        """One look at the group, and what it asks for."""
        self.attention = False
        version, resolved_at = self._file.words[VERSION], self._metadata.version
        self._compare_topics()
        if not self._is_idle(holder):
            group, todo, version = self._change(timeout)
            if todo.lost:
                return self._lose(group, holder)
            if todo.next.release:
                return self._give_up(todo.next.release, group.generation, holder, timeout)
            if todo.next.claimed:
                return self._compute(group, timeout)
            self._tell(group, holder)
        self._seen, self._resolved_at = version, resolved_at
        return self._timers.wake()  # others may have come

    def _change(self, timeout: float) -> tuple[Group, Todo, int]:
        """Take a step; what it changes of this member counts when the group is stored."""
        try:
            group, todo, version = self.coordinator.change(timeout, self._step)
            if todo.joined is not None:
                self._become(todo.joined)
        except BaseException:
            if not self.member_id:
                self._leave_slot()  # whether the group has us or not: a member whose byte is free is dead
            raise
        if todo.subscribed is not None:
            self._subscription = todo.subscribed
            if self._wanted is todo.subscribed:
                self._wanted = None
        return group, todo, version

    def _is_idle(self, holder: Holder) -> bool:
        """Whether a look without the lock shows that there is nothing to do."""
        group = self._file.load()
        if group is None or not self.member_id or self._wanted is not None:
            return False
        after, todo = self._step(group)
        member = after.members.get(self.member_id)
        if after is not group or member is None or todo.lost or todo.next != Proceed():
            return False
        return member.owned == holder.held() and (group.state == ASSIGNING or self._told == group.generation)

    def _step(self, group: Group) -> tuple[Group, Todo]:
        """What can be done at once, and what is left to do outside the lock.  Changes nothing here but a slot that it claims."""
        todo = Todo()
        now = self._clock.monotonic_ms()
        self._timers.beat(now)
        group = self.coordinator.tidied(group, self.member_id or NOT_A_MEMBER, may_expire=self._may_judge())
        if not self.member_id:
            group, todo.joined = self._join(group, now)
            todo.subscribed = todo.joined.subscription
        member_id = self.member_id if todo.joined is None else todo.joined.member_id
        member = group.members.get(member_id)
        if member is None:
            todo.lost = True
            return group, todo
        wanted = self._wanted
        if wanted is not None and todo.joined is None:
            if _is_new(member.subscription, wanted):
                group = apply(group, Subscribe(member_id, wanted))
            todo.subscribed = wanted
        version = self._metadata.version
        if self._stale == group.generation and group.state in (RECONCILING, STABLE) and version > group.metadata_version:
            group = apply(group, PartitionsChanged(version))
        group, todo.next = proceed(group, member_id, now)
        return group, todo

    def _may_judge(self) -> bool:
        """Whether our own silence is none: who was stopped may find that all others were, and waits a session (H33)."""
        now = monotonic()
        if self.member_id and now - self._last_tick > (self.config.heartbeat_interval_ms + _LATE_MS) / 1000:
            self._judge_from = now + self.config.session_timeout_ms / 1000
            self._last_tick = now
        return now >= self._judge_from

    def _join(self, group: Group, now: int) -> tuple[Group, Member]:
        config, name = self.config, self.config.client_id or "consumer"
        subscription, tag = self._wanted or self._subscription, group.joins + 1
        assert subscription is not None
        asked = Member(
            f"{name}-{process.random_bytes(8).hex()}", config.group_instance_id, config.client_id, process.pid(), -1, tag,
            config.session_timeout_ms, config.max_poll_interval_ms, subscription, namespace=process.namespace(),
        )  # fmt: skip
        delay = self.coordinator.home.config.group_initial_rebalance_delay_ms
        apply(group, Join(asked, now, delay))  # refused before anything is taken
        self._slot = self._file.claim_slot(group, tag, now)
        joined = asked._replace(slot=self._slot)
        return apply(group, Join(joined, now, delay)), joined

    def _become(self, joined: Member) -> None:
        """The group has us."""
        self._tag, self.generation, self._told = joined.tag, -1, -1
        self._next_beat = self._clock.monotonic_ms() + self.config.heartbeat_interval_ms
        self._last_tick = monotonic()
        self._pulse_at = 0  # at once: the loop says when its next commit is due
        self._finalizer = weakref.finalize(self, self._file.free_slot, joined.slot)
        self._timers.add(self)
        self.member_id = joined.member_id  # last: until then whatever breaks this off gives the slot back

    # ---- what happens outside the lock -----------------------------------------------------------------------------------------

    def _give_up(self, partitions: frozenset[TopicPartition], generation: int, holder: Holder, timeout: float) -> None:
        held = holder.held()
        known = [tp for tp in sorted(partitions) if tp in held]
        if known:
            holder.revoke(known)
        event = Release(self.member_id, generation, partitions)
        if not event.member_id:
            return  # the listener left the group
        group, _, _ = self.coordinator.change(timeout, lambda group: (apply(group, event) if _has(group, event) else group, None))
        if _has(group, event):
            self.generation = max(self.generation, generation)

    def _lose(self, group: Group, holder: Holder) -> None:
        """The group went on without this member."""
        lost = sorted(holder.held())
        self._leave_slot()
        if group.instance(self.config.group_instance_id) is not None:
            self._fenced = f"group_instance_id={self.config.group_instance_id!r} was taken over by another consumer: close this one"
        if lost:
            holder.lose(lost)
        self.check_fenced()
        self.attention = True

    def check_fenced(self) -> None:
        """Raise FencedInstanceIdError once another consumer has this one's instance id."""
        if self._fenced:
            raise FencedInstanceIdError(f"group {self.coordinator.group_id!r}: {self._fenced}")

    def _tell(self, group: Group, holder: Holder) -> None:
        """The application hears of what was taken, and once of each generation that it went over to.

        What it holds decides, not what it was told: where a call was broken off, the next one goes on.
        """
        member, held = group.members[self.member_id], holder.held()
        gone = sorted(tp for tp, epoch in held.items() if member.owned.get(tp) != epoch)  # a topic of this name was made anew
        if gone:
            holder.lose(gone)
        added = {tp: epoch for tp, epoch in sorted(member.owned.items()) if held.get(tp) != epoch}
        self.generation = member.generation
        if member.generation >= 0 and (added or self._told != member.generation):
            holder.receive(added)
            self._told = member.generation

    def _compute(self, group: Group, timeout: float) -> None:
        """Compute the target that was claimed, and install it unless the group has changed meanwhile (H35).

        Where that fails the claim stands for its second: the error comes out of `poll`, and this member and others read on until then.
        """
        install = self._target(group, timeout)
        try:
            self.coordinator.change(timeout, lambda found: (apply(found, install), None))
        except RebalanceInProgressError:
            pass  # it changed: the next look sees to it

    def _target(self, group: Group, timeout: float) -> Install:
        """Ask the assignor.  Its answer is anybody's: it is checked here for shape and in the table for sense."""
        metadata = self._metadata
        if metadata.version < group.metadata_version or metadata.changed():
            metadata.refresh(timeout)
        version, known = metadata.version, dict(metadata.topics)
        names = {member_id: _topics_of(member.subscription, known) for member_id, member in group.members.items()}
        wanted = {topic for listed in names.values() for topic in listed}
        members = {
            member_id: assignors.Subscription(names[member_id], tuple(sorted(member.owned)), member.group_instance_id, member.client_id)
            for member_id, member in group.members.items()
        }
        assignor = self._assignors[chosen_assignor(group)]
        answer = assignor.assign(members, {topic: known[topic].partitions for topic in sorted(wanted)})
        targets: dict[str, frozenset[TopicPartition]] = {}
        try:
            for member_id, partitions in answer.items():
                if member_id not in names:
                    raise InvalidStateError(f"assignor {assignor.name!r} gave partitions to {member_id!r}, who is no member")
                given = [_checked(*tp) for tp in partitions]
                targets[member_id] = frozenset(given)
                unwanted = {tp for tp in given if member_id in names and tp.topic not in names[member_id]}
                if len(targets[member_id]) != len(given) or unwanted:
                    why = f"{min(unwanted)}, whose topic it did not subscribe to" if unwanted else "a partition twice"
                    raise InvalidStateError(f"assignor {assignor.name!r} gave {member_id!r} {why}")
        except (TypeError, AttributeError, ValueError) as error:
            raise InvalidStateError(f"assignor {assignor.name!r} returned {answer!r}: partitions by member id are wanted ({error})") from None
        topics = {name: topic._replace(wanted=False) for name, topic in group.topics.items()}
        for name in sorted(wanted):
            topics[name] = GroupTopic(known[name].topic_id, known[name].partitions, self._base(group, known[name]))
        cooperative = bool(getattr(assignor, "cooperative", False))
        return Install(self.member_id, group.epoch, assignor.name, cooperative, version, topics, targets)

    def _base(self, group: Group, topic: TopicMetadata) -> int:
        """How many partitions of a topic were there when the group began to read it; those that came later are read from their beginning."""
        before = group.topics.get(topic.name)
        if before is not None:
            return before.base if before.topic_id == topic.topic_id else 0  # made anew: all of it came later
        for member in group.members.values():
            subscription = member.subscription
            if subscription.pattern is not None and _matches(subscription.pattern, topic.name):
                since = group.patterns.get(subscription.pattern[0], subscription.since)
                if topic.created > since:
                    return 0
        return topic.partitions

    def _compare_topics(self) -> None:
        """Whether topics came, grew or went since the target was computed.  Outside the lock: patterns are the users'."""
        group, version = self._file.load(), self._metadata.version
        if group is None or version <= group.metadata_version:
            return
        known = dict(self._metadata.topics)
        wanted = {topic for member in group.members.values() for topic in _topics_of(member.subscription, known)}
        now = {topic: (known[topic].topic_id, known[topic].partitions) for topic in wanted}
        if now != {name: (topic.topic_id, topic.partitions) for name, topic in group.topics.items() if topic.wanted}:
            self._stale = group.generation

    def read_from_beginning(self, tp: TopicPartition) -> bool:
        """Whether a partition appeared after the group began."""
        group = self._file.load()
        topic = None if group is None else group.topics.get(tp.topic)
        return topic is not None and tp.partition >= topic.base

    # ---- commit, leave -------------------------------------------------------------------------------------------------------

    def commit(self, offsets: Offsets, noted: Mapping[TopicPartition, int], timeout: float) -> None:
        """Commit offsets as this member.  Raises CommitFailedError and its leaves, FencedInstanceIdError, StreamlogTimeoutError."""
        self.check_fenced()
        event = Commit(self.member_id or NOT_A_MEMBER, self.config.group_instance_id, noted)
        self.coordinator.commit(event, offsets, durability=self.config.durability, timeout=timeout)

    def rebalance(self, timeout: float) -> None:
        """Ask for a new target.  Raises UnknownMemberIdError."""
        assert self._subscription is not None
        event = Subscribe(self.member_id, self._subscription)
        self.coordinator.change(timeout, lambda group: (apply(group, event), None))

    def leave(self, timeout: float) -> None:
        """Leave the group; a static member stays in it until its session ends or it comes back.  The application was told before."""
        event = Leave(self.member_id)
        self._subscription = self._wanted = None
        if not event.member_id:
            return
        try:
            if self.config.group_instance_id is None:
                self.coordinator.change(timeout, lambda group: (apply(group, event) if _has(group, event) else group, None))
            else:
                self._file.beat(self._slot, self._tag, self._clock.monotonic_ms())
        finally:
            self._leave_slot()

    def abandon(self) -> None:
        """Be gone without a word: the free byte tells the others.  For a leave that was broken off."""
        self._subscription = self._wanted = None
        self._leave_slot()

    def _leave_slot(self) -> None:
        slot, self._slot, self.member_id = self._slot, -1, ""
        self.generation = self._told = -1
        self._timers.remove(self)
        if slot >= 0:
            self._file.free_slot(slot)
        if self._finalizer is not None:
            self._finalizer.detach()

    def metadata(self) -> GroupMetadata:
        """A snapshot for producers."""
        return GroupMetadata(self.coordinator.group_id, self.generation, self.member_id, self.config.group_instance_id)

    # ---- the timers' side ------------------------------------------------------------------------------------------------------

    def tick(self, now: int, *, probe: bool) -> int:
        """Store the heartbeat if it is due, and look for what the member should see to; returns when (ms) to come again."""
        if self._slot < 0:
            return now + _NEVER
        self._wakes_at = self._tick(now, probe=probe)
        return self._wakes_at

    def _tick(self, now: int, *, probe: bool) -> int:
        slot = self._slot
        self._may_judge()
        self._last_tick = monotonic()
        beaten = self.beat(now)
        group = self._file.load()
        if now >= self._pulse_at:
            self.pulse, self._pulse_at = True, _NEVER
        if group is None:
            return min(self._next_beat, self._pulse_at)
        near = {member.slot for member in self._neighbours(group)}
        due = now + _NEVER
        for member in group.members.values():
            if member.slot != slot:
                due = min(due, self._due(member, now, beaten or (probe and member.slot in near)))
        mine = group.members.get(self.member_id)
        if mine is None or (group.state == RECONCILING and (mine.generation != group.generation or to_take(group, mine))):
            due = now
        if group.state == ASSIGNING:
            claim = group.claim
            claimed_until = claim.at_ms + CLAIM_MS + 1 if claim is not None and claim.epoch == group.epoch else 0
            due = min(due, max(claimed_until, group.assign_at_ms))
        if due <= now:
            if not self.attention:
                self.attention = True
                self._file.bell.ring()
            due = now + _AGAIN_MS  # until the application has polled
        return max(now + 1, min(due, self._next_beat, self._pulse_at))

    def beat(self, now: int) -> bool:
        """Store the heartbeat if it is due."""
        slot, tag = self._slot, self._tag
        if slot < 0 or now < self._next_beat:
            return False
        self._file.beat(slot, tag, now)
        self._next_beat = now + self.config.heartbeat_interval_ms
        return True

    def _due(self, member: Member, now: int, probe: bool) -> int:
        """When another member has to be looked at by us: at once if it is dead, else when it will be overdue."""
        if probe and member.group_instance_id is None and not self._file.is_alive(member.slot):
            return now
        heartbeat_ms, poll_ms = self._file.ages(member, now)
        waits = max(0, int(1000 * (self._judge_from - monotonic())))
        return now + max(waits, 1 + min(member.session_timeout_ms - heartbeat_ms, member.max_poll_interval_ms - poll_ms))

    def others(self) -> set[int]:
        """Pids of the processes that this member listens to; `OUT_OF_SIGHT` for one that has none in our namespace."""
        group = self._file.load() if self._slot >= 0 else None
        if group is None:
            return set()
        near = [member for member in self._neighbours(group) if member.group_instance_id is None]
        return {member.pid if member.namespace == self._namespace else OUT_OF_SIGHT for member in near}

    def _neighbours(self, group: Group) -> list[Member]:
        """Those that come next in the ring of members: if all listened to all, a death would cost the square of their number.

        All others are looked at with each heartbeat.
        """
        ring = sorted(group.members.values(), key=lambda member: (member.slot <= self._slot, member.slot))
        return [member for member in ring if member.slot != self._slot][:_NEIGHBOURS]


_NEVER = 1 << 40
_NEIGHBOURS = 12
_AGAIN_MS = 100


def _checked(topic: Any, partition: Any) -> TopicPartition:
    if not isinstance(topic, str) or isinstance(partition, bool):
        raise TypeError(f"({topic!r}, {partition!r}) is not a (topic, partition)")
    return TopicPartition(topic, index(partition))


def _has(group: Group, event: Leave | Release) -> bool:
    return event.member_id in group.members


def _is_new(old: Subscription, new: Subscription) -> bool:
    return old._replace(since=0) != new._replace(since=0)


def _topics_of(subscription: Subscription, known: Mapping[str, TopicMetadata]) -> tuple[str, ...]:
    """The topics that a subscription means now."""
    pattern = subscription.pattern
    if pattern is None:
        return tuple(sorted(topic for topic in subscription.topics if topic in known))
    return tuple(sorted(topic for topic in known if _matches(pattern, topic)))


def _matches(pattern: tuple[str, int], topic: str) -> bool:
    import re

    return topic not in INTERNAL_TOPICS and re.compile(*pattern).fullmatch(topic) is not None
