"""A run: start the workers, disturb them, let them end, read everything, check."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import streamlog
from streamlog.testing.chaos.evidence import Evidence, Final, Violation, final_of
from streamlog.testing.chaos.history import HistoryWriter, read_histories
from streamlog.testing.chaos.nemesis import Nemesis
from streamlog.testing.chaos.plan import PARTITIONS, WORKERS
from streamlog.testing.chaos.processes import Processes
from streamlog.testing.chaos.rules import RULES

STARTING, ENDING, READING = 20.0, 60.0, 240.0
"""Seconds that all workers have to start, and to end, and that the final reader has."""


class Report(NamedTuple):
    """What a run came to."""

    seed: int
    brokers: int
    seconds: float
    violations: tuple[Violation, ...]
    counts: dict[str, int]
    troubles: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether no rule was broken."""
        return not self.violations

    def __str__(self) -> str:
        lines = [f"seed {self.seed}, {self.brokers} broker{'s' if self.brokers > 1 else ''}, {self.seconds:.0f} s"]
        lines += [f"  {name:<24}{count:>9,}" for name, count in self.counts.items()]
        lines.append("  errors that workers met: " + (", ".join(f"{name} {count}" for name, count in self.troubles.items()) or "none"))
        lines += [f"  VIOLATION of {rule}: {message}" for rule, message in self.violations]
        return "\n".join(lines)


def run(
    location: str | os.PathLike[str],
    *,
    seconds: float = 10.0,
    seed: int | None = None,
    brokers: int = 1,
    workers: Sequence[str] | None = None,
    avoid: Sequence[str] = (),
    disturb: bool = True,
    progress: Callable[[str], object] = str,
) -> Report:
    """Run workers on a new cluster, disturb them, and check what they saw.

    Args:   location: an empty or new directory; the cluster is made in `log` below it, beside the histories.  Remove it afterwards.
            seconds: how long the workers are disturbed; ending, reading and checking come after that.
            seed: of all random choices (None: a new one, which the report has).  The same seed gives the same choices; processes race.
            brokers: 1, or 3 for replicas in three directories.
            workers: kinds of workers, repeated where there are to be several (None: all of `plan.WORKERS`).
            avoid: kinds of workers, and acts of administrators and of the nemesis ("repair", "take_away", …: names of their methods), to leave out:
                it lets one look past a fault that is known.
            disturb: whether processes are killed and stopped, and disks fail.
            progress: told what is going on, in a line of text.
    """
    seed = random.randrange(2**31) if seed is None else seed
    base = Path(location)
    histories = base / "histories"
    histories.mkdir(parents=True)
    history = HistoryWriter(histories / "nemesis.0.jsonl")
    processes = Processes(base / "log", histories, seed, brokers, history, avoid)
    began = time.monotonic()
    try:
        _create(base / "log", brokers)
        _disturb(processes, history, [kind for kind in workers or WORKERS if kind not in avoid], seed, seconds, disturb=disturb, progress=progress)
        final = _read(processes, base, progress)
    finally:
        processes.kill_all()
    progress("checking")
    evidence = Evidence(read_histories(histories), final)
    violations = tuple(Violation(name, message) for name, rule in RULES.items() for message in rule(evidence))
    return Report(seed, brokers, time.monotonic() - began, violations, _counts(evidence, processes), _troubles(evidence))


def _create(location: Path, brokers: int) -> None:
    """The cluster and its topics.  Segments are small, so that there are many."""
    with streamlog.open(location, brokers=brokers, replica_lag_time_max_ms=5000) as cluster:
        for name, partitions in PARTITIONS.items():
            cluster.create_topic(
                name, partitions, replication_factor=brokers, segment_bytes=1 << 17, index_interval_bytes=1024, min_insync_replicas=min(brokers, 2)
            )


def _disturb(
    processes: Processes, history: HistoryWriter, kinds: Sequence[str], seed: int, seconds: float, *, disturb: bool, progress: Callable[[str], object]
) -> None:
    rng = random.Random(seed)
    nemesis = Nemesis(processes, rng, history)
    numbers: Counter[str] = Counter()
    for kind in kinds:
        processes.begin(kind, numbers[kind])
        numbers[kind] += 1
    processes.wait_for_all(STARTING)
    end = time.monotonic() + seconds
    told = time.monotonic() + 10.0
    while time.monotonic() < end:
        time.sleep(rng.uniform(0.02, 0.3))
        processes.tend()
        if disturb:
            nemesis.step()
        if time.monotonic() > told:
            told += 10.0
            progress(f"{processes.kills} kills, {processes.stops} stops, {nemesis.outages} outages; {end - time.monotonic():.0f} s to go")
    nemesis.heal()
    history.note("healed", outages=nemesis.outages)
    progress("all disks work, everybody ends")
    for name in processes.end_all(ENDING):
        history.note("did not end", name=name, seconds=ENDING)


def _read(processes: Processes, base: Path, progress: Callable[[str], object]) -> Final:
    """The final state, read by a process of its own: whatever happens there, there is a report."""
    progress("reading")
    process = processes.begin("final", 0)
    until = time.monotonic() + READING
    while process.is_there and time.monotonic() < until:
        time.sleep(0.05)
    path = base / "final.json"
    if process.is_there:
        processes.kill(process)
    if not path.exists():
        return Final(problems=[f"the final state could not be read: see {base / 'stderr'}"])
    return final_of(json.loads(path.read_text()))


def _counts(evidence: Evidence, processes: Processes) -> dict[str, int]:
    outcomes = Counter(evidence.outcomes.values())
    return {
        "processes": len(evidence.workers),
        "kills": processes.kills,
        "stops": processes.stops,
        "outages": sum(event["event"] == "outage" for event in evidence.nemesis),
        "records sent": len(evidence.sends),
        "records acknowledged": len(evidence.acks),
        "longest silence (ms)": _longest_silence(evidence),
        "transactions committed": outcomes["committed"],
        "transactions aborted": outcomes["aborted"],
        "transactions unknown": outcomes["begin"] + outcomes["committing"],
        "inputs processed once": len(evidence.committed_ids("output")),
        "looks at groups": sum(1 for _ in evidence.of("group")),
        "records at the end": sum(1 for _ in evidence.final.views[0].all()) if evidence.final.views else 0,
        "ways of reading": len(evidence.final.views),
    }


def _longest_silence(evidence: Evidence) -> int:
    """The longest time in which no producer was told of a record, in ms."""
    times = sorted(event["at"] for event in evidence.of("ack"))
    return int(max((after - before for before, after in pairwise(times)), default=0.0) * 1000)


def _troubles(evidence: Evidence) -> dict[str, int]:
    return dict(Counter(event["error"] for event in evidence.of("trouble", "failed")).most_common())
