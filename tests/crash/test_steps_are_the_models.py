"""The code's steps, in the order in which it takes them, are the model's: up roll put words hwm down."""

from itertools import groupby
from pathlib import Path

import pytest

from crash.steps import steps_of
from crash.test_kill_at_every_step import append, cut, nearly_full, reboot, three_records
from model.append import ORDER

NAMES = {  # a step of the code: the model's name for it
    "word DIRTY": "up", "word DIRTY=0": "down", "word HWM": "hwm", "write *.log": "put",
    "word END": "words", "word POSITION": "words", "word MAX_TIMESTAMP": "words", "word FIRST_TIMESTAMP": "words",
    "write *.index": "words", "word INDEXED": "words", "word INDEX_END": "words",
}  # fmt: skip


def in_the_models_words(steps: list[str]) -> list[list[str]]:
    """The appends among the steps, each as the model's step names; a roll is all between the mark and the write."""
    appends: list[list[str]] = []
    for step in steps:
        name = NAMES.get(step)
        if name == "up":
            appends.append([])
        if appends and "down" not in appends[-1]:  # what comes after it is no part of the append
            rolling = name not in ("up", "put") and "put" not in appends[-1]
            appends[-1].append("roll" if rolling else str(name))
    return [[name for name, _ in groupby(names)] for names in appends]


@pytest.mark.parametrize("rolls", [False, True])
def test_an_append_takes_the_models_steps(rolls: bool, place: Path) -> None:
    steps = steps_of(place / "log", nearly_full if rolls else three_records, append)
    order = [name for name in ORDER.split() if name not in ("late", "roll")]
    found = in_the_models_words(steps)
    assert len(found) == 2
    for names in found:
        assert [name for name in names if name != "roll"] == order
        assert "roll" not in names or names.index("roll") == 1
    assert any("roll" in names for names in found) == rolls


def before(steps: list[str], *wanted: str) -> bool:
    """Whether these steps come in this order, the first of each after the one before it."""
    rest = iter(steps)
    return all(any(step == name for step in rest) for name in wanted)


def test_a_rewrite_takes_the_models_steps(place: Path) -> None:
    steps = steps_of(place / "log", three_records, cut)
    assert before(
        steps,
        "write *.log.tmp", "sync *.log.tmp",  # aside, synced
        "word DIRTY", "write *.log.tmp", "sync *.log.tmp", "rename *.log", "sync_dir t-0",  # the epoch is durable
        "rename *.log", "sync_dir t-0", "word TURN", "word SYNCED", "word SYNCING=0", "word FAILED=0", "word DIRTY=0",
    ), steps  # fmt: skip


def test_a_reboot_takes_the_models_steps(place: Path) -> None:
    steps = steps_of(place / "log", nearly_full, reboot)
    mine = steps[len(steps) - 1 - steps[::-1].index("word BOOT=0") :]
    assert before(mine, "sync *.log.tmp", "rename *.log", "sync_dir t-0", "word TURN", "word EPOCH", "word HWM", "word BOOT"), mine
    stores = [step for step in mine[: mine.index("word BOOT") + 1] if step.startswith("word ")]
    assert stores[-1] == "word BOOT", "the boot word is stored last"
