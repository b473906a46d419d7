"""Transactions between processes: every reachable state is good, and each rule is needed (hazards H37 to H39)."""

import pytest

from model.search import search
from model.transactions import OFFSET_RULES, RULES, Commits, Offsets


def test_every_reachable_state_of_commits_is_good() -> None:
    count, way = search(Commits(frozenset(RULES)))
    assert way == []
    assert count > 200_000


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_of_commits_is_needed(rule: str) -> None:
    assert search(Commits(frozenset(RULES) - {rule}))[1]


def test_every_reachable_state_of_offsets_is_good() -> None:
    assert search(Offsets(frozenset(OFFSET_RULES)))[1] == []


@pytest.mark.parametrize("rule", OFFSET_RULES)
def test_each_rule_of_offsets_is_needed(rule: str) -> None:
    assert search(Offsets(frozenset(OFFSET_RULES) - {rule}))[1]
