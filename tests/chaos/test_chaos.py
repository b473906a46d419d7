"""A short run of the chaos harness for each number of brokers; `make chaos` and `make soak` run longer ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamlog.testing import chaos

SECONDS = 10


@pytest.mark.parametrize("brokers", [1, 3])
def test_processes_are_killed_stopped_and_robbed_of_their_disks(place: Path, seed: int, brokers: int) -> None:
    report = chaos.run(place, seconds=SECONDS, seed=seed, brokers=brokers)
    print(report)
    assert report.ok, report
    assert report.counts["records acknowledged"] > 100
    assert report.counts["transactions committed"] > 0
    assert report.counts["inputs processed once"] > 0
    assert report.counts["kills"] > 3
    assert report.counts["ways of reading"] == (2 if brokers == 1 else 11)


def test_nobody_is_disturbed(place: Path, seed: int) -> None:
    """The workers by themselves: what they do is right, and no error comes of it that they did not ask for."""
    report = chaos.run(place, seconds=2, seed=seed, workers=["keyed", "transactional", "exactlyonce", "group", "observer"], disturb=False)
    print(report)
    assert report.ok, report
    assert report.counts["records acknowledged"] > 10
    assert set(report.troubles) <= {"TransactionAbortedError"}, "of records that an abort on purpose dropped"


def test_a_record_that_is_lost_is_found(place: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness as a whole notices: a record that was acknowledged is taken out of the final state."""
    from streamlog.testing.chaos import harness

    real = harness.final_of

    def final_of(loaded):  # type: ignore[no-untyped-def]
        for view in loaded["views"]:
            view["records"]["plain"]["0"].pop(0)
        return real(loaded)

    monkeypatch.setattr(harness, "final_of", final_of)
    report = chaos.run(place, seconds=1, seed=seed, workers=["bulk", "bulk"], disturb=False)
    assert {violation.rule for violation in report.violations} >= {"acknowledged_records_stay"}
