"""Who leads, who is in sync: what becomes of a partition's state when brokers fail and come back.  Pure: a state goes in, a state comes out.

The rules are Kafka's (org.apache.kafka.controller.PartitionChangeBuilder; KIP-966): a leader comes from the in-sync replicas, else from the
eligible ones, else, where `unclean_leader_election_enable` says so, from any that lives.  Who leaves the in-sync set while it has, or gets,
fewer than `min_insync_replicas` members stays eligible: from then on the high watermark stands still, so that it misses nothing that is shown.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import Any

from streamlog.types import NamedTuple

NOBODY = -1


class PartitionState(NamedTuple):
    """A partition as the metadata have it.  Brokers by id; `replicas` in order of preference, the others sorted."""

    replicas: tuple[int, ...]
    leader: int = NOBODY
    leader_epoch: int = 0
    in_sync: tuple[int, ...] = ()
    eligible: tuple[int, ...] = ()
    partition_epoch: int = 0
    target: tuple[int, ...] = ()
    """Replicas that the partition is on its way to; empty: it stays."""


def created(replicas: Sequence[int], alive: Collection[int] | None = None) -> PartitionState:
    """A new partition.  Its first replica leads and must be alive.  The replicas that are `alive` (None: all) are in sync."""
    return PartitionState(tuple(replicas), replicas[0], 1, tuple(sorted(broker for broker in replicas if alive is None or broker in alive)))


def changed(state: PartitionState, floor: int = 0, **changes: object) -> PartitionState:
    """The state with these changes.  A partition epoch for each; a leader epoch, above `floor`, where the leader is another."""
    after: PartitionState = state._replace(**changes)  # type: ignore[arg-type]
    if after == state:
        return state
    epoch = state.leader_epoch
    if after.leader != state.leader or floor > epoch:
        epoch = max(epoch, floor) + 1
    return after._replace(leader_epoch=epoch, partition_epoch=state.partition_epoch + 1)


def without(state: PartitionState, broker: int, min_in_sync: int, *, lost: bool = False) -> PartitionState:
    """A replica is not in sync any more; where its records are `lost` it is not eligible either.  Epochs are not raised here."""
    in_sync = tuple(member for member in state.in_sync if member != broker)
    if len(in_sync) >= effective(min_in_sync, state):
        eligible: tuple[int, ...] = ()
    elif broker in state.in_sync and not lost:
        eligible = tuple(sorted({*state.eligible, broker}))
    else:
        eligible = state.eligible
    if lost:
        eligible = tuple(member for member in eligible if member != broker)
    return state._replace(in_sync=in_sync, eligible=eligible)


def joined(state: PartitionState, broker: int, min_in_sync: int) -> PartitionState:
    """A replica is in sync (again)."""
    in_sync = tuple(sorted({*state.in_sync, broker}))
    enough = len(in_sync) >= effective(min_in_sync, state)
    eligible = () if enough else tuple(member for member in state.eligible if member != broker)
    return changed(state, in_sync=in_sync, eligible=eligible)


def effective(min_in_sync: int, state: PartitionState) -> int:
    """`min_insync_replicas`, of which there cannot be more than replicas."""
    return min(min_in_sync, len(state.replicas))


def elected(state: PartitionState, alive: Collection[int], *, unclean: bool, preferred: bool = False) -> PartitionState:
    """The state with a leader that lives, where there can be one.  Epochs are not raised here.

    The present leader stays, unless a `preferred` one, the first of the replicas, can take over.
    """
    candidates = [broker for broker in state.replicas if broker in state.in_sync and broker in alive]
    if preferred and candidates and candidates[0] == state.replicas[0]:
        return state._replace(leader=candidates[0])
    if state.leader in candidates:
        return state
    if candidates:
        return state._replace(leader=candidates[0])
    for broker in state.replicas:
        if broker in state.eligible and broker in alive:
            eligible = tuple(member for member in state.eligible if member != broker)
            return state._replace(leader=broker, in_sync=(broker,), eligible=eligible)
    if unclean:
        for broker in state.replicas:
            if broker in alive:
                return state._replace(leader=broker, in_sync=(broker,), eligible=())
    return state._replace(leader=NOBODY)


def after_boot(
    state: PartitionState, ends: dict[int, tuple[int, int]], high_watermark: int, min_in_sync: int, *, unclean: bool, floor: int,
    damaged: Collection[int] = (),
) -> PartitionState:  # fmt: skip
    """The first election after a reboot, which may have been a power cut (H32): the longest log leads, at a new epoch.

    Args: ends: of each replica that can be read, the epoch of its last record and its end; floor: the highest epoch in any of the logs.
    A member that ends below the checkpointed `high_watermark` leaves first; where nobody is left the partition waits for an operator.
    A `damaged` one leaves where another one is whole.
    """
    after = state
    members = {*state.in_sync, *state.eligible} & ends.keys()
    if any(broker not in damaged and ends[broker][1] >= high_watermark for broker in members):
        for broker in sorted(members.intersection(damaged)):
            after = without(after, broker, min_in_sync, lost=True)
    for broker in sorted({*state.in_sync, *state.eligible}):
        if broker in ends and ends[broker][1] < high_watermark:
            after = without(after, broker, min_in_sync, lost=True)
    candidates = [broker for broker in after.replicas if broker in ends and (broker in after.in_sync or broker in after.eligible)]
    if not candidates and unclean:
        candidates = [broker for broker in after.replicas if broker in ends]
    if not candidates:
        after = after._replace(leader=NOBODY)
    else:
        leader = max(candidates, key=lambda broker: (ends[broker], broker == state.leader, -after.replicas.index(broker)))
        in_sync = tuple(sorted({*(member for member in after.in_sync if member in ends), leader}))
        after = after._replace(leader=leader, in_sync=in_sync, eligible=tuple(member for member in after.eligible if member not in in_sync))
    return after._replace(leader_epoch=max(state.leader_epoch, floor) + 1, partition_epoch=state.partition_epoch + 1)


def assignment(partitions: range, factor: int, brokers: Sequence[int], start: int) -> list[tuple[int, ...]]:
    """Replicas of new partitions, spread evenly, leaders too (org.apache.kafka's StripedReplicaPlacer without racks).

    `start` moves on with the partitions that there are, so that topics of one partition do not all lead at the first broker.
    """
    count = len(brokers)
    found = []
    for number in partitions:
        first = (start + number) % count
        shift = (start + number) // count
        others = [brokers[(first + 1 + (shift + k) % (count - 1)) % count] for k in range(factor - 1)] if count > 1 else []
        found.append((brokers[first], *others))
    return found


def change_record(key: tuple[bytes, int], state: PartitionState) -> list[Any]:
    """The metadata record of what a partition is now."""
    return ["PartitionChangeRecord", *key, *map(_packed, state)]


def _packed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
