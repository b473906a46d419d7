"""Several processes that copy to one follower: every state of the model, and each rule taken out."""

import pytest

from model.copies import LIMIT, RULES, Model
from model.search import search


def test_what_is_derived_of_a_copied_log_is_its_fold() -> None:
    count, way = search(Model(frozenset(RULES)), LIMIT)
    assert way == []
    assert count > 1000


@pytest.mark.parametrize("rule", sorted(RULES))
def test_each_rule_is_needed(rule: str) -> None:
    assert search(Model(frozenset(RULES) - {rule}), LIMIT)[1], f"without {rule!r} nothing breaks: {RULES[rule]}"
