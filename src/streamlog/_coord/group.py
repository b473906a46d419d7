"""A consumer group's coordinator, as a transition table: pure, with time passed in.

The shape is KIP-848's.  Whatever a target assignment depends on raises the group's `epoch`; a target computed for an epoch makes it the
group's `generation`; each member then goes over to it by itself: it first gives up what it must (`Release`), and takes a partition
(`Take`) only when nobody else owns it.  So no partition ever has two owners, whatever the assignor says.

`TABLE` has a row for each event: from which state it may come and where it leads, the guards that refuse it, and its effect.
`apply` runs a row and returns the group as it is then; an event that is refused raises and changes nothing.  docs/groups.md draws the
states from this table, and tests/model/groups.py searches what members, clocks and kills can do with it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

from streamlog.errors import (
    CommitFailedError,
    FencedInstanceIdError,
    IllegalGenerationError,
    InconsistentGroupProtocolError,
    InvalidStateError,
    NonEmptyGroupError,
    RebalanceInProgressError,
    StreamlogError,
    UnknownMemberIdError,
)
from streamlog.types import NamedTuple, TopicPartition

EMPTY, ASSIGNING, RECONCILING, STABLE, DEAD = STATES = ("Empty", "Assigning", "Reconciling", "Stable", "Dead")
MAX_MEMBERS = 1024
CLAIM_MS = 1000  # a claim older than this is open to others, and to who failed at it (H35)


class Subscription(NamedTuple):
    """What a member asks for."""

    topics: tuple[str, ...]
    pattern: tuple[str, int] | None  # a regular expression and its flags, in place of `topics`
    since: int  # version of the metadata when the pattern was subscribed to
    assignors: tuple[str, ...]  # names, the preferred first


class Member(NamedTuple):
    """A member of a group."""

    member_id: str
    group_instance_id: str | None
    client_id: str
    pid: int
    slot: int  # its liveness byte and its heartbeat words
    tag: int  # stands in its heartbeats: a former owner of the slot has another one
    session_timeout_ms: int
    max_poll_interval_ms: int
    subscription: Subscription
    generation: int = -1  # that it went over to; -1: none yet
    target: frozenset[TopicPartition] = frozenset()
    owned: dict[TopicPartition, int] = {}
    """What nobody else may take, with the generation in which it was taken (the assignment epoch)."""
    namespace: int = 0
    """Of `pid`."""


class GroupTopic(NamedTuple):
    """A topic that the group reads, or has read, as its last target knows it.

    Partitions from `base` on appeared after the group began, and are read from their beginning.
    """

    topic_id: bytes
    partitions: int
    base: int
    wanted: bool = True  # somebody subscribes to it


class Claim(NamedTuple):
    """A member computes the target for an epoch."""

    member_id: str
    epoch: int
    at_ms: int


class Group(NamedTuple):
    """A group.  Replaced, never changed.  Times are monotonic milliseconds of this boot."""

    group_id: str
    epoch: int = 0  # rises with everything that the target depends on
    generation: int = 0  # epoch that the target was computed for
    assignor: str = ""
    cooperative: bool = True
    metadata_version: int = -1  # of the target's partition counts
    topics: dict[str, GroupTopic] = {}
    patterns: dict[str, int] = {}
    """Patterns that were ever subscribed to, with the metadata version of the first time: topics that came later are new."""
    members: dict[str, Member] = {}
    claim: Claim | None = None
    assign_at_ms: int = 0  # no target before this (group_initial_rebalance_delay_ms)
    assign_until_ms: int = 0  # the delay is not extended beyond this
    joins: int = 0
    dead: bool = True  # it was deleted, or nobody ever joined or committed

    @property
    def state(self) -> str:
        """One of `STATES`."""
        if self.dead:
            return DEAD
        if not self.members:
            return EMPTY
        if self.epoch != self.generation:
            return ASSIGNING
        for member in self.members.values():
            if member.generation != self.generation or member.owned.keys() != member.target:
                return RECONCILING
        return STABLE

    def owners(self) -> dict[TopicPartition, str]:
        """Who owns what."""
        return {tp: member.member_id for member in self.members.values() for tp in member.owned}

    def instance(self, group_instance_id: str | None) -> Member | None:
        """The member with a group instance id."""
        if group_instance_id is None:
            return None
        return next((member for member in self.members.values() if member.group_instance_id == group_instance_id), None)


# ---- events ----------------------------------------------------------------------------------------------------------


class Join(NamedTuple):
    """A consumer becomes a member; one with the instance id of another takes its place."""

    member: Member
    now_ms: int
    delay_ms: int = 0


class Leave(NamedTuple):
    """A member goes by itself."""

    member_id: str


class Death(NamedTuple):
    """The liveness lock of a member is free."""

    member_id: str


class Expire(NamedTuple):
    """Others have waited too long for a member: ages (ms) of its last heartbeat and its last poll."""

    member_id: str
    by: str  # the member that judges
    heartbeat_ms: int
    poll_ms: int


class Subscribe(NamedTuple):
    """A member asks for something else, or (equal) for a new target."""

    member_id: str
    subscription: Subscription


class PartitionsChanged(NamedTuple):
    """The metadata, at a version later than the target's, has other partitions for it."""

    metadata_version: int


class ClaimTarget(NamedTuple):
    """A member sets out to compute the target of the present epoch."""

    member_id: str
    now_ms: int


class Install(NamedTuple):
    """A computed target; counts only if the group is still what it was computed for (compare-and-swap by `epoch`)."""

    member_id: str
    epoch: int
    assignor: str
    cooperative: bool
    metadata_version: int
    topics: Mapping[str, GroupTopic]
    targets: Mapping[str, frozenset[TopicPartition]]  # by member id


class Release(NamedTuple):
    """A member has given up partitions (its application knows) and goes over to a generation."""

    member_id: str
    generation: int
    partitions: frozenset[TopicPartition]


class Take(NamedTuple):
    """A member takes what is its by the target and nobody else's."""

    member_id: str


class Commit(NamedTuple):
    """Offsets are to be committed; `noted` has the generation in which each was noted.  No member id: by nobody in the group."""

    member_id: str
    group_instance_id: str | None
    noted: Mapping[TopicPartition, int]


class Alter(NamedTuple):
    """Offsets are to be set from outside."""


class Delete(NamedTuple):
    """The group and its offsets are to go."""


# ---- guards ----------------------------------------------------------------------------------------------------------


def is_member(group: Group, event: Any) -> None:
    """Strangers and evicted members are refused; a static member whose place was taken is told so."""
    if event.member_id in group.members:
        return
    if group.instance(getattr(event, "group_instance_id", None)) is not None:
        raise FencedInstanceIdError(
            f"group_instance_id={event.group_instance_id!r} of group {group.group_id!r} was taken over by another consumer: close this one"
        )
    who = f"{event.member_id!r} is no member" if event.member_id else "it has members, and this consumer is none of them"
    raise UnknownMemberIdError(f"group {group.group_id!r}: {who} (any more); poll again to join it")


def has_room(group: Group, event: Join) -> None:
    """A group has at most `MAX_MEMBERS` members."""
    if len(group.members) >= MAX_MEMBERS and group.instance(event.member.group_instance_id) is None:
        raise InvalidStateError(f"group {group.group_id!r} has {MAX_MEMBERS} members already")


def is_new(group: Group, event: Join) -> None:
    """A member id joins once."""
    if event.member.member_id in group.members:
        raise InvalidStateError(f"{event.member.member_id!r} is a member of group {group.group_id!r} already")


def shares_an_assignor(group: Group, event: Any) -> None:
    """There is an assignor that all members know."""
    if isinstance(event, Join):
        asked, instance = event.member.subscription, event.member.group_instance_id
        others = [member for member in group.members.values() if instance is None or member.group_instance_id != instance]
    else:
        asked, others = event.subscription, [member for member in group.members.values() if member.member_id != event.member_id]
    common = set(asked.assignors).intersection(*(member.subscription.assignors for member in others))
    if not common:
        known = sorted({name for member in others for name in member.subscription.assignors})
        raise InconsistentGroupProtocolError(
            f"partition_assignment_strategy={list(asked.assignors)}: the members of group {group.group_id!r} know {known}, and all of them "
            "must share one"
        )


def is_dynamic(group: Group, event: Death) -> None:
    """The dead are buried at once, but a static member is waited for until its session ends."""
    if group.members[event.member_id].group_instance_id is not None:
        raise InvalidStateError(f"{event.member_id!r} is a static member: its session is waited for")


def by_another(group: Group, event: Expire) -> None:
    """Nobody expires itself: alone in its group a member keeps what it has (H33)."""
    if event.by == event.member_id:
        raise InvalidStateError(f"{event.member_id!r} does not judge itself")


def is_overdue(group: Group, event: Expire) -> None:
    """Its session or its poll interval is over."""
    member = group.members[event.member_id]
    if event.heartbeat_ms <= member.session_timeout_ms and event.poll_ms <= member.max_poll_interval_ms:
        raise InvalidStateError(f"{event.member_id!r} is not overdue")


def is_later(group: Group, event: PartitionsChanged) -> None:
    """A process whose metadata is older than the target's knows nothing new."""
    if event.metadata_version <= group.metadata_version:
        raise InvalidStateError(f"metadata version {event.metadata_version} is not later than {group.metadata_version}")


def claim_is_open(group: Group, event: ClaimTarget) -> None:
    """One member computes a target; if it takes more than a second, another may (H35)."""
    if not is_open_to_claim(group, event.now_ms):
        raise RebalanceInProgressError(f"group {group.group_id!r}: its target is being computed")


def is_current(group: Group, event: Install) -> None:
    """What the target depends on has not changed since it was begun to compute: compare-and-swap (H35).

    A static member that comes back is another member of the same epoch.
    """
    if event.epoch != group.epoch or not event.targets.keys() <= group.members.keys():
        raise RebalanceInProgressError(f"group {group.group_id!r} changed while its target was computed")


def is_sane(group: Group, event: Install) -> None:
    """Each partition goes to at most one member, who subscribed to it.  An assignor may be anybody's."""
    seen: dict[TopicPartition, str] = {}
    for member_id, partitions in event.targets.items():
        for tp in partitions:
            if tp in seen:
                raise InvalidStateError(f"assignor {event.assignor!r} gave {tp} to both {seen[tp]!r} and {member_id!r}")
            topic = event.topics.get(tp.topic)
            if topic is None or not topic.wanted or not 0 <= tp.partition < topic.partitions:
                raise InvalidStateError(f"assignor {event.assignor!r} gave {member_id!r} {tp}, which is not there or not subscribed to")
            seen[tp] = member_id


def goes_forward(group: Group, event: Release) -> None:
    """A member goes over to a generation that exists, never back."""
    if not group.members[event.member_id].generation <= event.generation <= group.generation:
        raise IllegalGenerationError(f"generation {event.generation} of group {group.group_id!r}, which is at {group.generation}")


def went_over(group: Group, event: Take) -> None:
    """Who has not yet given up what it must, takes nothing."""
    if group.members[event.member_id].generation != group.generation:
        raise RebalanceInProgressError(f"{event.member_id!r} has partitions to give up first")


def is_owner(group: Group, event: Commit) -> None:
    """Only a partition's owner in the group's state commits for it (H34)."""
    if group.members:
        for tp in event.noted:
            if tp not in group.members[event.member_id].owned:
                raise CommitFailedError(f"{tp.topic}-{tp.partition} is not {event.member_id!r}'s in group {group.group_id!r} (any more); poll again")


def noted_since_assigned(group: Group, event: Commit) -> None:
    """An offset noted before the partition came (back) to the member is of another time (H34)."""
    if group.members:
        member = group.members[event.member_id]
        for tp, generation in event.noted.items():
            if generation < member.owned.get(tp, -1):
                raise IllegalGenerationError(
                    f"{tp.topic}-{tp.partition}: noted in generation {generation}, assigned since generation {member.owned[tp]}"
                )


def noted_by_now(group: Group, event: Commit) -> None:
    """Nor can it be of a generation that the member has not reached (H34)."""
    if group.members:
        member = group.members[event.member_id]
        for tp, generation in event.noted.items():
            if generation > member.generation:
                raise IllegalGenerationError(f"{tp.topic}-{tp.partition}: noted in generation {generation}, the member is at {member.generation}")


def commits_from_outside_need_no_members(group: Group, event: Commit) -> None:
    """With members, only members commit; without, whoever names none (an `assign`ed consumer)."""
    if group.members or event.member_id:
        is_member(group, event)


# ---- effects ---------------------------------------------------------------------------------------------------------


def _with(group: Group, member: Member, **changes: Any) -> Group:
    return group._replace(members={**group.members, member.member_id: member}, **changes)


def _join(group: Group, event: Join) -> Group:
    member, old = event.member, group.instance(event.member.group_instance_id)
    group = group._replace(dead=False, joins=group.joins + 1)
    if old is not None:
        members = {key: value for key, value in group.members.items() if value is not old}
        heir = member._replace(
            generation=old.generation, target=old.target, owned={tp: epoch for tp, epoch in old.owned.items() if tp in old.target}
        )
        group = _with(group._replace(members=members), heir)
        # the same subscription: no rebalance.  A pattern's first version is the group's, not the member's.
        if heir.subscription._replace(since=0) == old.subscription._replace(since=0):
            return group
        return group._replace(epoch=group.epoch + 1)
    if not group.members:
        group = group._replace(assign_at_ms=event.now_ms + event.delay_ms, assign_until_ms=event.now_ms + member.max_poll_interval_ms)
    elif group.assign_at_ms - event.delay_ms <= event.now_ms < group.assign_at_ms:
        # as in Kafka: once for each time that the delay has run, however many join in it (InitialDelayedJoin)
        group = group._replace(assign_at_ms=min(group.assign_at_ms + event.delay_ms, group.assign_until_ms))
    return _with(group, member, epoch=group.epoch + 1)


def _remove(group: Group, event: Leave | Death | Expire) -> Group:
    members = {key: value for key, value in group.members.items() if key != event.member_id}
    return group._replace(members=members, epoch=group.epoch + 1, claim=None)


def _subscribe(group: Group, event: Subscribe) -> Group:
    return _with(group, group.members[event.member_id]._replace(subscription=event.subscription), epoch=group.epoch + 1)


def _partitions_changed(group: Group, event: PartitionsChanged) -> Group:
    return group._replace(epoch=group.epoch + 1)


def _claim(group: Group, event: ClaimTarget) -> Group:
    return group._replace(claim=Claim(event.member_id, group.epoch, event.now_ms))


def _install(group: Group, event: Install) -> Group:
    # what was owned of a topic that was deleted since is nobody's, whatever has its name now; a group forgets no topic's id
    anew = {name for name, topic in event.topics.items() if name not in group.topics or group.topics[name].topic_id != topic.topic_id}
    members = {}
    for key, member in group.members.items():
        owned = {tp: epoch for tp, epoch in member.owned.items() if tp.topic not in anew} if anew else member.owned
        members[key] = member._replace(target=event.targets.get(key, frozenset()), owned=owned)
    patterns = dict(group.patterns)
    for member in members.values():
        if member.subscription.pattern is not None:
            patterns.setdefault(member.subscription.pattern[0], member.subscription.since)
    return group._replace(
        generation=event.epoch, assignor=event.assignor, cooperative=event.cooperative, metadata_version=event.metadata_version,
        topics=dict(event.topics), patterns=patterns, members=members, claim=None,
    )  # fmt: skip


def _release(group: Group, event: Release) -> Group:
    member = group.members[event.member_id]
    owned = {tp: epoch for tp, epoch in member.owned.items() if tp not in event.partitions}
    return _with(group, member._replace(owned=owned, generation=event.generation))


def _take(group: Group, event: Take) -> Group:
    member = group.members[event.member_id]
    free = to_take(group, member)
    return _with(group, member._replace(owned={**member.owned, **dict.fromkeys(sorted(free), group.generation)}))


def _begin_to_exist(group: Group, event: Commit | Alter) -> Group:
    return group._replace(dead=False) if group.dead else group  # the same: nobody is woken for a commit


def _delete(group: Group, event: Delete) -> Group:
    return Group(group.group_id, epoch=group.epoch, generation=group.generation, joins=group.joins)


# ---- the table -------------------------------------------------------------------------------------------------------


class Transition(NamedTuple):
    """A row: where it may start and may lead, what refuses it, what it does; from another state it is a `refusal`."""

    edges: Mapping[str, tuple[str, ...]]
    guards: tuple[Callable[[Group, Any], None], ...]
    effect: Callable[[Group, Any], Group]
    refusal: type[StreamlogError] = InvalidStateError


_WITH_MEMBERS = (ASSIGNING, RECONCILING, STABLE)
_GONE = dict.fromkeys(_WITH_MEMBERS, (ASSIGNING, EMPTY))

TABLE: dict[type, Transition] = {
    Join: Transition(
        {
            DEAD: (ASSIGNING,), EMPTY: (ASSIGNING,), ASSIGNING: (ASSIGNING,), RECONCILING: (ASSIGNING, RECONCILING, STABLE),
            STABLE: (ASSIGNING, STABLE),
        },
        (is_new, has_room, shares_an_assignor), _join,
    ),
    Leave: Transition(_GONE, (is_member,), _remove, UnknownMemberIdError),
    Death: Transition(_GONE, (is_member, is_dynamic), _remove, UnknownMemberIdError),
    Expire: Transition(_GONE, (is_member, by_another, is_overdue), _remove, UnknownMemberIdError),
    Subscribe: Transition(dict.fromkeys(_WITH_MEMBERS, (ASSIGNING,)), (is_member, shares_an_assignor), _subscribe, UnknownMemberIdError),
    PartitionsChanged: Transition({RECONCILING: (ASSIGNING,), STABLE: (ASSIGNING,)}, (is_later,), _partitions_changed),
    ClaimTarget: Transition({ASSIGNING: (ASSIGNING,)}, (is_member, claim_is_open), _claim),
    Install: Transition({ASSIGNING: (RECONCILING,)}, (is_current, is_sane), _install, RebalanceInProgressError),
    Release: Transition(
        {ASSIGNING: (ASSIGNING,), RECONCILING: (RECONCILING, STABLE)}, (is_member, goes_forward), _release, UnknownMemberIdError
    ),
    Take: Transition({RECONCILING: (RECONCILING, STABLE)}, (is_member, went_over), _take),
    Commit: Transition(
        {DEAD: (EMPTY,), **{state: (state,) for state in (EMPTY, *_WITH_MEMBERS)}},
        (commits_from_outside_need_no_members, is_owner, noted_since_assigned, noted_by_now), _begin_to_exist,
    ),
    Alter: Transition({DEAD: (EMPTY,), EMPTY: (EMPTY,)}, (), _begin_to_exist, NonEmptyGroupError),
    Delete: Transition({EMPTY: (DEAD,)}, (), _delete, NonEmptyGroupError),
}  # fmt: skip


def apply(group: Group, event: Any, table: Mapping[type, Transition] = TABLE) -> Group:
    """The group after an event.  Raises what refuses it; the group is as it was then."""
    row, state = table[type(event)], group.state
    if state not in row.edges:
        _refuse(group, event, row)
    for guard in row.guards:
        guard(group, event)
    after = row.effect(group, event)
    assert after.state in row.edges[state], f"{type(event).__name__}: {state} -> {after.state}"
    return after


def _refuse(group: Group, event: Any, row: Transition) -> NoReturn:
    if row.refusal is UnknownMemberIdError:
        is_member(group, event)
    what = f"its state is {group.state}"
    if group.members and row.refusal is NonEmptyGroupError:
        static = [member.group_instance_id for member in group.members.values() if member.group_instance_id is not None]
        stay = f"; static members ({', '.join(static)}) stay until their session ends, closed or not" if static else ""
        what = f"it has {len(group.members)} members{stay}"
    raise row.refusal(f"group {group.group_id!r}: {type(event).__name__.lower()} is not possible, {what}")


# ---- what a member has to do -----------------------------------------------------------------------------------------


def to_release(group: Group, member: Member) -> frozenset[TopicPartition]:
    """What a member must give up before it goes over to the present generation: under an eager assignor everything."""
    if member.generation == group.generation:
        return frozenset()
    return frozenset(member.owned) if not group.cooperative else frozenset(member.owned) - member.target


def to_take(group: Group, member: Member) -> frozenset[TopicPartition]:
    """What is a member's by the target and nobody's yet."""
    missing = member.target - member.owned.keys()
    if not missing:
        return missing
    return missing.difference(*(other.owned for other in group.members.values()))


def is_open_to_claim(group: Group, now_ms: int) -> bool:
    """Whether a target is wanted that nobody is computing (any more)."""
    claim = group.claim
    claimed = claim is not None and claim.epoch == group.epoch and now_ms - claim.at_ms <= CLAIM_MS
    return group.state == ASSIGNING and now_ms >= group.assign_at_ms and not claimed


def chosen_assignor(group: Group) -> str:
    """Of the assignors that all members know the one that most prefer; of equals the first that the oldest member names."""
    lists = [member.subscription.assignors for member in group.members.values()]
    common = set(lists[0]).intersection(*lists)
    ordered = [name for name in lists[0] if name in common]
    votes = [next(name for name in names if name in common) for names in lists]
    return max(ordered, key=votes.count)


class Proceed(NamedTuple):
    """How far a member got: it has to `release` partitions, or to compute the target that it `claimed`, or nothing."""

    release: frozenset[TopicPartition] = frozenset()
    claimed: bool = False


def proceed(group: Group, member_id: str, now_ms: int, table: Mapping[type, Transition] = TABLE) -> tuple[Group, Proceed]:
    """Do all that a member can do at once: claim a target that is wanted, or go over to the one that is there and take what is free."""
    if is_open_to_claim(group, now_ms):
        return apply(group, ClaimTarget(member_id, now_ms), table), Proceed(claimed=True)
    if group.state == RECONCILING:
        member = group.members[member_id]
        if member.generation != group.generation:
            if release := to_release(group, member):
                return group, Proceed(release)
            group = apply(group, Release(member_id, group.generation, frozenset()), table)
        if group.state == RECONCILING and to_take(group, group.members[member_id]):
            group = apply(group, Take(member_id), table)
    return group, Proceed()
