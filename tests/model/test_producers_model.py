"""Producer state between processes: every reachable state of the small instances is good, and each rule is needed."""

import pytest

from model.producers import INSTANCES, LIMIT, RULES, Model
from model.search import search


@pytest.mark.parametrize("instance", INSTANCES)
def test_every_reachable_state_is_good(instance: str) -> None:
    count, way = search(Model(frozenset(RULES), instance), LIMIT)
    assert way == []
    assert count > 20_000


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_is_needed(rule: str) -> None:
    assert any(search(Model(frozenset(RULES) - {rule}, instance), LIMIT)[1] for instance in INSTANCES)
