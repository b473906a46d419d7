"""The table of transactional ids: every event in every state goes where the table says, or is refused and changes nothing."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlog import ConcurrentTransactionsError, InvalidTxnStateError, ProducerFencedError
from streamlog._coord.transaction import (
    COMPLETE_COMMIT,
    COMPLETED,
    DEAD,
    EMPTY,
    LAST_EPOCH,
    NOBODY,
    ONGOING,
    PREPARE_ABORT,
    PREPARE_COMMIT,
    PREPARING,
    STATES,
    TABLE,
    Abort,
    AddPartitions,
    Complete,
    End,
    Expire,
    Init,
    Transaction,
    apply,
)

P, Q = (b"t", 0), (b"t", 1)
INIT = Init(7, 100, "me", 1000, False, 1, 5, new_producer_id=3)


def begun(*partitions: tuple[bytes, int]) -> Transaction:
    return apply(apply(Transaction("x"), INIT), AddPartitions(7, 3, 0, frozenset(partitions or (P,)), 10, 10))


def test_the_usual_way() -> None:
    found = apply(Transaction("x"), INIT)
    assert (found.state, found.producer_id, found.epoch, found.owner) == (EMPTY, 3, 0, 7)
    found = apply(found, AddPartitions(7, 3, 0, frozenset({P}), 10, 10))
    assert (found.state, found.partitions, found.deadline_ms) == (ONGOING, {P}, 1010)
    found = apply(found, AddPartitions(7, 3, 0, frozenset({Q}), 20, 20))
    assert (found.partitions, found.deadline_ms) == ({P, Q}, 1010)
    prepared = apply(found, End(7, 3, 0, True, 30, 30))
    assert (prepared.state, prepared.epoch, prepared.ended) == (PREPARE_COMMIT, 1, (3, 0, True))
    found = apply(prepared, Complete(prepared, 40))
    assert (found.state, found.epoch, found.partitions) == (COMPLETE_COMMIT, 1, frozenset())
    assert apply(found, AddPartitions(7, 3, 1, frozenset({P}), 50, 50)).state == ONGOING
    assert apply(found, INIT._replace(owner=8)).epoch == 2, "each init_transactions is an epoch of its own"
    assert apply(found, Expire()) == Transaction("x")


def test_ending_is_idempotent_for_the_same_outcome_only() -> None:
    prepared = apply(begun(), End(7, 3, 0, True, 30, 30))
    done = apply(prepared, Complete(prepared, 40))
    for found in (prepared, done):
        assert apply(found, End(7, 3, 0, True, 50, 50)) == found
        with pytest.raises(InvalidTxnStateError):
            apply(found, End(7, 3, 0, False, 50, 50))
        with pytest.raises(InvalidTxnStateError):
            apply(found, End(7, 3, 1, True, 50, 50))


def test_who_others_ended_it_for_is_fenced() -> None:
    aborted = apply(begun(), Abort(3, 0, 30))
    assert (aborted.state, aborted.owner, aborted.epoch) == (PREPARE_ABORT, NOBODY, 1)
    done = apply(aborted, Complete(aborted, 40))
    for found in (aborted, done, apply(done, INIT._replace(owner=8))):
        for event in (AddPartitions(7, 3, 0, frozenset({P}), 50, 50), End(7, 3, 0, True, 50, 50), End(7, 3, 0, False, 50, 50)):
            with pytest.raises(ProducerFencedError):
                apply(found, event)


def test_a_time_out_is_exact() -> None:
    assert apply(begun(), End(7, 3, 0, True, 0, 1010)).state == PREPARE_COMMIT
    for event in (End(7, 3, 0, True, 0, 1011), End(7, 3, 0, False, 0, 1011), AddPartitions(7, 3, 0, frozenset({Q}), 0, 1011)):
        with pytest.raises(ProducerFencedError):
            apply(begun(), event)


def test_helpers_that_come_late_change_nothing() -> None:
    """H38."""
    prepared = apply(begun(), End(7, 3, 0, True, 30, 30))
    done = apply(prepared, Complete(prepared, 40))
    later = apply(done, AddPartitions(7, 3, 1, frozenset({P}), 50, 50))
    for found in (done, later, apply(later, End(7, 3, 1, True, 60, 60))):
        with pytest.raises(ConcurrentTransactionsError):
            apply(found, Complete(prepared, 70))
    for found in (prepared, done, later):
        with pytest.raises(ConcurrentTransactionsError):
            apply(found, Abort(3, 0, 70))
    for found in (begun(), prepared):
        with pytest.raises(ConcurrentTransactionsError):
            apply(found, INIT)


def test_epochs_and_boots_that_end() -> None:
    last = begun()._replace(epoch=LAST_EPOCH)
    prepared = apply(last, End(7, 3, LAST_EPOCH, True, 30, 30))
    assert prepared.epoch == LAST_EPOCH + 1, "for the markers alone"
    done = apply(prepared, Complete(prepared, 40, new_producer_id=9))
    assert (done.producer_id, done.epoch, done.ended) == (9, 0, (3, LAST_EPOCH, True))
    assert apply(done, End(7, 3, LAST_EPOCH, True, 50, 50)) == done, "its producer asks again"
    idle = apply(Transaction("x"), INIT)
    assert apply(idle._replace(epoch=LAST_EPOCH), INIT._replace(new_producer_id=9))[2:4] == (9, 0)
    assert apply(idle, INIT._replace(run=2, new_producer_id=9))[2:4] == (9, 0), "H31: after a reboot data may know epochs that the log lost"


owners, epochs = st.sampled_from([7, 8]), st.integers(0, 3)
partitions = st.frozensets(st.sampled_from([P, Q]), min_size=1)
events = st.one_of(
    st.builds(lambda owner: INIT._replace(owner=owner), owners),
    st.builds(AddPartitions, owners, st.just(3), epochs, partitions, st.just(0), st.sampled_from([0, 5000])),
    st.builds(End, owners, st.just(3), epochs, st.booleans(), st.just(0), st.sampled_from([0, 5000])),
    st.builds(Abort, st.just(3), epochs, st.just(0)),
    st.just("complete"),
    st.just(Expire()),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(events, max_size=25))
def test_whatever_comes(sequence: list[Any]) -> None:
    """States change along the edges, epochs only rise, a decision stands, and only the owner's word counts."""
    found = Transaction("x")
    prepares = [found]
    for event in sequence:
        if event == "complete":
            event = Complete(prepares[-1], 0)
        before = found
        try:
            found = apply(found, event)
        except (ConcurrentTransactionsError, InvalidTxnStateError, ProducerFencedError):
            continue
        assert found.state in TABLE[type(event)].edges[before.state]
        assert found.state == DEAD or found.epoch >= before.epoch
        assert bool(found.partitions) == (found.state in (ONGOING, *PREPARING))
        if before.state in PREPARING:
            assert found.ended == before.ended
        if isinstance(event, (AddPartitions, End)):
            assert event.owner == before.owner
        if found.state in PREPARING:
            prepares.append(found)
        if before.state in PREPARING and found.state in COMPLETED:
            assert found.state.removeprefix("Complete") == before.state.removeprefix("Prepare")


def test_the_states_are_drawn_from_the_table() -> None:
    """docs/transactions.md shows each edge."""
    text = (Path(__file__).parents[2] / "docs" / "transactions.md").read_text()
    drawn = {(a, b) for a, b in re.findall(r"^    (\w+) --> (\w+)", text, re.M)}
    edges = {(a, b) for row in TABLE.values() for a, targets in row.edges.items() for b in targets if a != b}
    assert drawn == edges
    assert {state for edge in edges for state in edge} == set(STATES)
