"""Replication and the metadata quorum, searched exhaustively (H40, H41): every property holds, and without any one rule some does not."""

import pytest

from model import quorum, replication
from model.replication import INSTANCES, Replication
from model.search import search

OF_DEATHS = ("turn-again", "applied-whole", "log-lock-apart")  # the others break in the smaller instance, too


@pytest.mark.parametrize("instance", INSTANCES)
def test_every_reachable_state_of_a_replicated_partition_is_good(instance: str) -> None:
    states, way = search(Replication(frozenset(replication.RULES), INSTANCES[instance]), 5_000_000)
    assert way == []
    assert states > 100_000


@pytest.mark.parametrize("rule", replication.RULES)
def test_each_rule_of_replication_is_needed(rule: str) -> None:
    rules, instance = frozenset(replication.RULES) - {rule}, "two failures" if rule in OF_DEATHS else "out and in again"
    assert search(Replication(rules, INSTANCES[instance]), 5_000_000)[1], rule


def test_every_reachable_state_of_the_quorum_is_good() -> None:
    states, way = search(quorum.Quorum(frozenset(quorum.RULES)))
    assert way == []
    assert states > 50_000


@pytest.mark.parametrize("rule", quorum.RULES)
def test_each_rule_of_the_quorum_is_needed(rule: str) -> None:
    assert search(quorum.Quorum(frozenset(quorum.RULES) - {rule}))[1], rule
