"""The model of the append holds with every rule, and breaks without any one of them."""

from __future__ import annotations

import os
from collections.abc import Set

import pytest

from model import append

BREAKS = {  # rule: the shortest instance that breaks without it
    "dirty": "roll",
    "dirty-before-bytes": "roll",
    "dirty-before-roll": "roll",
    "hwm-before-clean": "roll",
    "words-before-clean": "roll",
    "bytes-before-hwm": "fsync, short",
    "only-hwm": "roll",
    "adopt": "power cut, short",
    "turn-before-hwm": "log start, short",
    "segment-before-turn": "log start, short",
    "turn-at-recovery": "roll, 2 writers",
    "reader-hwm-then-turn": "log start, short",
    "slow-turn-first": "log start, short",
    "limit": "log start, short",
    "epoch-check": "power cut, short",
    "epoch-end-lowest": "failed sync, cut after it",
    "turn-at-start": "log start, short",
    "cut-hwm-first": "cut, roll",
    "cut-segment-first": "cut, roll",
    "cut-epoch": "cut, fsync, power cut",
    "boot-segment": "fsync, short",
    "boot-epoch": "fsync, short",
    "boot-always": "fsync, short",
    "boot-sync": "failed sync, 2 power cuts",
    "boot-drop": "power cut, roll",
    "boot-word-last": "power cut, short",
    "sync-all": "cut, fsync, power cut",
    "sync-note-first": "fsync, short",
    "synced-compared": "cut, fsync, power cut",
    "ack-after-sync": "fsync, short",
    "ack-synced-first": "cut, fsync, power cut",
    "note-epoch-first": "cut, fsync, power cut",
    "failed-mark": "failed sync, 2 power cuts",
    "failed-before-syncing": "failed sync, kill",
    "syncing-mark": "failed sync, 2 power cuts",
    "syncing-if-interrupted": "failed sync, 2 power cuts",
    "sync-asks-failed": "failed sync, 2 syncs",
    "rewrite-new-segment": "failed sync, 2 power cuts",
    "rewrite-all": "failed sync, rewrite of 2",
    "rewrite-from-start": "failed sync, log start",
    "rewrite-sync-first": "failed sync, short",
    "rewrite-epoch": "2 failed syncs",
    "rewrite-epoch-start": "failed sync, reader",
    "rewrite-epoch-first": "failed sync, 2 power cuts",
    "rewrite-mark": "failed sync, killed rewrite",
    "rewrite-turn": "failed sync, reader",
    "failed-cleared-last": "failed sync, killed rewrite",
    "dirty-epoch": "cut, kill, power cut",
    "dirty-drop": "cut, roll",
    "stale-skipped": "2 failed syncs",
    "boot-segment-before-drop": "failed sync, 2 power cuts",
}
NOT_SHOWN = {"rewrite-drop"}  # what it leaves behind says the same, and is passed over: tidiness, as far as the model sees
LONG_BREAKS = ("rewrite-epoch", "stale-skipped")
LONG = bool(os.environ.get("STREAMLOG_LONG"))
slow = (pytest.mark.slow, pytest.mark.skipif(not LONG, reason="STREAMLOG_LONG=1 runs it"))


def counterexample(name: str, rules: Set[str]) -> list[str]:
    states, _, path = append.check(name, rules)
    assert path != ["limit"], f"{name}: more than {states:,} states"
    return path or []


def told(path: list[str]) -> str:
    return "".join(f"\n    {line}" for line in path)


@pytest.mark.parametrize("name", [pytest.param(name, marks=slow if name in append.LONG else ()) for name in append.INSTANCES])
def test_every_property_holds(name: str) -> None:
    path = counterexample(name, set(append.RULES))
    assert not path, f"{name} fails in {len(path)} steps:{told(path)}"


@pytest.mark.parametrize("rule", [pytest.param(rule, marks=slow if rule in LONG_BREAKS else ()) for rule in BREAKS])
def test_breaks_without_rule(rule: str) -> None:
    path = counterexample(BREAKS[rule], set(append.RULES) - {rule})
    assert path, f"{BREAKS[rule]} holds without {rule!r} ({append.RULES[rule]}): the rule is not needed there, or the model does not follow it"


def test_every_rule_is_tried() -> None:
    assert BREAKS.keys() | NOT_SHOWN == append.RULES.keys()
    assert not BREAKS.keys() & NOT_SHOWN


def test_breaks_with_a_cut_after_a_kill() -> None:
    path = counterexample("power cut, short", {*append.RULES, "kill-cut"})
    assert path, "a torn tail that is cut in the same boot, in an epoch that a power cut loses, does no harm"
