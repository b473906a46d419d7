"""The model of a group holds with every rule, and breaks without any one of them.  Its transition table is the code's."""

from __future__ import annotations

import pytest

from model import groups

BREAKS = {  # rule: the first instance that breaks without it
    "take-free": "suspend",
    "give-up": "suspend",
    "release-in-poll": "forged",
    "expire": "records",
    "not-itself": "suspend",
    "late-judge": "suspend",
    "commit-member": "commits, stop",
    "commit-owner": "commits",
    "commit-assigned": "commits",
    "commit-reached": "forged",
    "commit-not-equal": "commits",
    "commit-order": "two on their way",
    "anybody-computes": "records",
    "claim-ages": "records",
    "install-swap": "suspend",
    "sane": "nonsense",
}
LONG_INSTANCES = ("all", "owners", "owners, eager")  # the two before them have 3 members, too


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG_INSTANCES else name for name in groups.INSTANCES]
)
def test_every_property_holds_with_every_rule(name: str) -> None:
    states, broken, path = groups.check(name, limit=20_000_000)
    assert not broken, f"{broken} after {states:,} states" + "".join(f"\n    {step}" for step in path)


def test_every_rule_is_searched() -> None:
    assert set(BREAKS) == set(groups.RULES)


@pytest.mark.parametrize(("rule", "name"), BREAKS.items())
def test_taking_out_a_rule_breaks_a_property(rule: str, name: str) -> None:
    _, broken, path = groups.check(name, frozenset(groups.RULES) - {rule})
    assert broken, f"nothing breaks without {rule!r} in {name!r}"
    print(f"without {rule}: {broken}" + "".join(f"\n    {step}" for step in path))
