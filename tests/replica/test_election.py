"""Who leads: the rules as rows, and what holds whatever happens (org.apache.kafka's PartitionChangeBuilder; KIP-966)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlog._replica.election import NOBODY, PartitionState, after_boot, assignment, changed, created, elected, joined, without

STATE = PartitionState((2, 0, 1), 2, 5, (0, 1, 2))


def failed(state: PartitionState, broker: int, alive: set[int], min_in_sync: int, *, unclean: bool) -> PartitionState:
    """What the controller makes of a broker's failure."""
    return changed(state, **elected(without(state, broker, min_in_sync), alive, unclean=unclean)._asdict())


def test_a_new_partition_is_led_by_its_first_replica() -> None:
    assert created([2, 0, 1]) == PartitionState((2, 0, 1), 2, 1, (0, 1, 2))


@pytest.mark.parametrize(
    ("state", "alive", "unclean", "leader", "in_sync"),
    [
        (STATE, {0, 1, 2}, False, 2, (0, 1, 2)),
        (STATE._replace(leader=NOBODY), {0, 1}, False, 0, (0, 1, 2)),  # in the order of the replicas
        (STATE._replace(leader=NOBODY, in_sync=(1,)), {0, 1}, False, 1, (1,)),
        (STATE._replace(leader=NOBODY, in_sync=(), eligible=(0, 1)), {1}, False, 1, (1,)),
        (STATE._replace(leader=NOBODY, in_sync=(), eligible=(0,)), {1}, False, NOBODY, ()),
        (STATE._replace(leader=NOBODY, in_sync=(), eligible=(0,)), {1}, True, 1, (1,)),
        (STATE._replace(leader=NOBODY, in_sync=(2,)), set(), True, NOBODY, (2,)),
    ],
)
def test_the_leader_is_in_sync_else_eligible_else_any_if_that_is_wanted(
    state: PartitionState, alive: set[int], unclean: bool, leader: int, in_sync: tuple[int, ...]
) -> None:
    after = elected(state, alive, unclean=unclean)
    assert (after.leader, after.in_sync) == (leader, in_sync)


def test_the_preferred_leader_takes_over_only_where_it_is_in_sync() -> None:
    state = STATE._replace(leader=0)
    assert elected(state, {0, 1, 2}, unclean=False).leader == 0
    assert elected(state, {0, 1, 2}, unclean=False, preferred=True).leader == 2
    assert elected(state._replace(in_sync=(0, 1)), {0, 1, 2}, unclean=False, preferred=True).leader == 0


def test_who_leaves_below_the_minimum_stays_eligible() -> None:
    after = failed(STATE, 2, {0, 1}, 2, unclean=False)
    assert (after.in_sync, after.eligible, after.leader, after.leader_epoch, after.partition_epoch) == ((0, 1), (), 0, 6, 1)
    after = failed(after, 0, {1}, 2, unclean=False)
    assert (after.in_sync, after.eligible, after.leader) == ((1,), (0,), 1)
    after = failed(after, 1, set(), 2, unclean=False)
    assert (after.in_sync, after.eligible, after.leader) == ((), (0, 1), NOBODY)
    after = changed(after, **elected(after, {0}, unclean=False)._asdict())
    assert (after.in_sync, after.eligible, after.leader) == ((0,), (1,), 0)
    after = joined(after, 1, 2)
    assert (after.in_sync, after.eligible) == ((0, 1), ())


def test_who_lost_records_is_not_eligible() -> None:
    assert without(STATE._replace(in_sync=(2,)), 2, 1, lost=True).eligible == ()
    assert without(STATE._replace(in_sync=(), eligible=(0, 2)), 2, 1, lost=True).eligible == (0,)


@pytest.mark.parametrize(
    ("ends", "mark", "unclean", "leader", "in_sync"),
    [
        ({0: (1, 10), 1: (1, 12), 2: (1, 9)}, 9, False, 1, (0, 1, 2)),  # the longest
        ({0: (2, 10), 1: (1, 12), 2: (1, 9)}, 9, False, 0, (0, 1, 2)),  # of the highest last epoch
        ({0: (1, 10), 1: (1, 12), 2: (1, 8)}, 9, False, 1, (0, 1)),  # below the high watermark: out
        ({0: (1, 8), 1: (1, 8), 2: (1, 8)}, 9, False, NOBODY, ()),
        ({0: (1, 8), 1: (1, 7)}, 9, True, 0, (0,)),
        ({0: (1, 9)}, 9, False, 0, (0,)),
    ],
)
def test_h32_after_a_reboot(ends: dict[int, tuple[int, int]], mark: int, unclean: bool, leader: int, in_sync: tuple[int, ...]) -> None:
    after = after_boot(STATE, ends, mark, 1, unclean=unclean, floor=7)
    assert after.leader == leader
    assert after.leader_epoch == 8
    if leader != NOBODY:
        assert after.in_sync == in_sync


@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from(["fail", "return", "join"]), st.integers(0, 2)), max_size=20),
)
def test_what_holds_whatever_happens(min_in_sync: int, events: list[tuple[str, int]]) -> None:
    """Every replica that may lead has what was shown: the model says of each how far it is."""
    state, alive = created((0, 1, 2)), {0, 1, 2}
    shown, ends = 0, {0: 0, 1: 0, 2: 0}
    leaders: dict[int, int] = {state.leader_epoch: state.leader}
    for what, broker in events:
        if state.leader != NOBODY:  # the leader writes; who is in sync copies; the high watermark follows
            ends[state.leader] += 1
            for member in state.in_sync:
                ends[member] = ends[state.leader]
            if len(state.in_sync) >= min(min_in_sync, 3):
                shown = max(shown, ends[state.leader])
        before = state
        if what == "fail" and broker in alive:
            alive -= {broker}
            state = failed(state, broker, alive, min_in_sync, unclean=False)
        elif what == "return":
            alive |= {broker}
            state = changed(state, **elected(state, alive, unclean=False)._asdict())
        elif what == "join" and broker in alive and state.leader != NOBODY:
            ends[broker] = ends[state.leader]
            state = joined(state, broker, min_in_sync)
        assert state.partition_epoch - before.partition_epoch == (state != before)
        assert leaders.setdefault(state.leader_epoch, state.leader) == state.leader
        assert set(state.in_sync) <= alive
        assert not set(state.in_sync) & set(state.eligible)
        assert state.leader == NOBODY or state.leader in state.in_sync
        assert all(ends[member] >= shown for member in (*state.in_sync, *state.eligible))


@pytest.mark.parametrize("brokers", [1, 2, 3, 5])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_replicas_are_spread_evenly(brokers: int, factor: int) -> None:
    if factor > brokers:
        return
    found = assignment(range(4 * brokers), factor, range(brokers), 0)
    assert all(len(set(replicas)) == factor for replicas in found)
    for place in range(factor):
        counts = [sum(replicas[place] == broker for replicas in found) for broker in range(brokers)]
        assert max(counts) - min(counts) <= (0 if place == 0 else 4)
