"""Contenders, measured in turn over several rounds and compared round by round.

A contender is a function that measures once: it returns its cost (seconds an item, or another unit), or a list of latencies.  Costs of
one round are compared with each other only: what the machine does beside hits all of them alike.  A contender that raises is reported
and the others go on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, repeat
from pathlib import Path
from statistics import median
from typing import Any

import streamlog

VALUE = bytes(range(100))
"""The value of a record, unless something else is said."""

MEDIAN, P99 = 0.5, 0.99


# ---- what is measured --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goal:
    """What a contender is held to.

    Without yardsticks its value is at most `limit`.  With yardsticks its ratio to the slowest of them is: cost by cost at most `limit`,
    or, if `rate`, their cost by its own at least `limit`.  A `limit` of None shows the ratio and judges nothing.
    """

    limit: float | None
    yardsticks: tuple[str, ...] = ()
    rate: bool = False
    at: float = MEDIAN


def at_most(limit: float, at: float = MEDIAN) -> Goal:
    """A value of at most `limit`."""
    return Goal(limit, at=at)


def cost(limit: float | None, *yardsticks: str, at: float = MEDIAN) -> Goal:
    """At most `limit` times the cost of the slowest of `yardsticks`."""
    return Goal(limit, yardsticks, at=at)


def rate(limit: float, *yardsticks: str) -> Goal:
    """At least `limit` times the rate of the slowest of `yardsticks`."""
    return Goal(limit, yardsticks, rate=True)


@dataclass
class Contender:
    """Something to measure; `rounds` are the results so far, `unit` is "s", "MiB" or "files"."""

    name: str
    measure: Callable[[], float | list[float]]
    goals: tuple[Goal, ...] = ()
    unit: str = "s"
    rounds: list[list[float]] = field(default_factory=list)
    error: str = ""

    def run(self) -> None:
        """Measure once more, unless it failed before."""
        if self.error:
            return
        try:
            result = self.measure()
            self.rounds.append(sorted(result) if isinstance(result, list) else [result])
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            if not isinstance(error, ImportError):
                traceback.print_exc()

    def costs(self, at: float) -> list[float]:
        """A quantile of each round."""
        return [latencies[min(len(latencies) - 1, int(at * len(latencies)))] for latencies in self.rounds]

    def cases(self) -> list[tuple[float, Goal | None]]:
        """The quantiles and goals that a table shows, one line each."""
        cases: list[tuple[float, Goal | None]] = [(goal.at, goal) for goal in self.goals]
        quantiles = [MEDIAN, P99] if self.rounds and len(self.rounds[0]) > 1 else [MEDIAN]
        cases += [(at, None) for at in quantiles if all(at != shown for shown, _ in cases)]
        return sorted(cases, key=lambda case: case[0])


class Place:
    """Where a group keeps its files, and what it has open: closed with the group."""

    def __init__(self, directory: Path, *, big: bool = False) -> None:
        self.directory, self.big = directory, big
        self.stack = ExitStack()
        self._numbers = count()

    def path(self, name: str) -> str:
        """A path of this group."""
        return str(self.directory / name)

    @cached_property
    def log(self) -> streamlog.Cluster:
        """A cluster."""
        return self.stack.enter_context(streamlog.open(self.path("log")))

    def new_topic(self, **config: Any) -> str:
        """The name of a new topic."""
        return self.log.create_topic(f"topic-{next(self._numbers)}", **config).name

    @contextmanager
    def topic(self, **config: Any) -> Iterator[str]:
        """A topic for one measurement."""
        name = self.new_topic(**config)
        try:
            yield name
        finally:
            self.log.delete_topic(name)


@dataclass(frozen=True)
class Group:
    """Contenders that are measured in turn; `core` is where this process stays meanwhile, None: anywhere."""

    name: str
    contenders: Callable[[Place], list[Contender]]
    rounds: int = 5
    core: int | None = 0


def run_group(group: Group, directory: Path, rounds: int | None = None, *, big: bool = False) -> list[Contender]:
    """Measure a group's contenders in turn, every other round backwards."""
    directory.mkdir()
    place = Place(directory, big=big)
    contenders: list[Contender] = []
    try:
        with place.stack, on_core(group.core):
            contenders += group.contenders(place)
            for number in range(rounds or group.rounds):
                for contender in contenders[:: -1 if number % 2 else 1]:
                    contender.run()
    except Exception as error:  # of setting up, or closing
        traceback.print_exc()
        contenders.append(Contender("the group itself", float, error=f"{type(error).__name__}: {error}"))
    return contenders


# ---- measuring -----------------------------------------------------------------------------------------------------------------


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Keep this thread, and those that it starts, on a core, where there are such and such calls."""
    if core is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[core % len(before)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def timed(work: Callable[[], object], items: int) -> float:
    """Seconds an item of a call that does `items`."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) / items


def timed_for(seconds: float, step: Callable[[], object], at_once: int = 20) -> float:
    """Seconds a call, over so many seconds; the clock is looked at after every `at_once` calls."""
    calls, start = 0, time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        for _ in repeat(None, at_once):
            step()
        calls += at_once
    return (now - start) / calls


class Worker:
    """A process that runs a function of workers.py: it says when it is ready, is told to go, and answers with a result.

    Ended by force after `timeout` seconds, and at the end of its `with`.
    """

    def __init__(self, role: str, *, timeout: float = 60.0, **arguments: Any) -> None:
        command = [sys.executable, str(Path(__file__).with_name("workers.py")), role, json.dumps(arguments)]
        self.role = role
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._alarm = threading.Timer(timeout, self.process.kill)
        self._alarm.daemon = True
        self._alarm.start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._alarm.cancel()
        self.process.kill()
        self.process.communicate()

    def ready(self) -> None:
        """Wait until it has set up what it needs."""
        assert self.process.stdout is not None
        if self.process.stdout.readline().strip() != "ready":
            self.result()
            raise RuntimeError(f"worker {self.role} was not ready")

    def go(self) -> None:
        """Let it begin."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def result(self) -> Any:
        """What it returned.  Raises RuntimeError with the end of its traceback."""
        out, problem = self.process.communicate()
        if self.process.returncode:
            last = (problem.strip().splitlines() or ["killed: too slow"])[-1]
            sys.stderr.write(problem)
            raise RuntimeError(f"worker {self.role}: {last}")
        return json.loads(out.strip().splitlines()[-1])


def run_workers(*workers: Worker) -> list[Any]:
    """Let workers go together, the first one first; returns their results."""
    with ExitStack() as stack:
        for worker in workers:
            stack.enter_context(worker)
        for worker in workers:
            worker.ready()
        for worker in workers:
            worker.go()
        return [worker.result() for worker in workers]


# ---- reporting -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A line of the table, also what the JSON file holds.  `least` and `greatest` are None where there was one round.

    `ratio` is the median of the ratios by round.
    """

    contender: str
    unit: str
    median: float | None
    least: float | None
    greatest: float | None
    ratio: float | None
    yardsticks: tuple[str, ...]
    limit: float | None
    rate: bool
    error: str

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None: there is none, or nothing was measured."""
        judged = self.ratio if self.yardsticks else self.median
        if judged is None or self.limit is None:
            return None
        return judged >= self.limit if self.rate else judged <= self.limit

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        if self.error or self.median is None:
            return (self.contender, "error", self.error, "", "", "")
        spread = "" if self.least is None or self.greatest is None else f"{shown(self.least, self.unit)} .. {shown(self.greatest, self.unit)}"
        verdict = {None: "", True: "met", False: "missed"}[self.met]
        return (self.contender, shown(self.median, self.unit), spread, self.compared(), self.target(), verdict)

    def compared(self) -> str:
        """The median ratio, with its yardstick."""
        return "" if self.ratio is None else f"{self.ratio:.2f}x {'rate' if self.rate else 'cost'} of {' or '.join(self.yardsticks)}"

    def target(self) -> str:
        """What the ratio, or the value, is held to."""
        if self.limit is None:
            return ""
        limit = f"{self.limit:g}x" if self.yardsticks else shown(self.limit, self.unit)
        return f"{'>=' if self.rate else '<='} {limit}"


@dataclass(frozen=True)
class Results:
    """What one run measured of a group, when and where."""

    about: dict[str, Any]
    rows: list[Row]


HEAD = ("contender", "median", "spread", "ratio", "target", "")


def shown(value: float, unit: str) -> str:
    """A value as text, with a unit that suits its size."""
    if unit != "s":
        return f"{value:.4g} {unit}"
    for limit, factor, name in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
        if value < limit:
            return f"{value * factor:.3g} {name}"
    return f"{value:.3g} s"


def results_of(contenders: Sequence[Contender], note: str = "") -> Results:
    """The table of a group."""
    by_name = {contender.name: contender for contender in contenders}
    return Results(about(note), [_row(contender, at, goal, by_name) for contender in contenders for at, goal in contender.cases()])


def _row(contender: Contender, at: float, goal: Goal | None, by_name: dict[str, Contender]) -> Row:
    name = f"{contender.name}, p99" if at == P99 else contender.name
    values = contender.costs(at)
    middle = _rounded(median(values)) if values else None
    least, greatest = (_rounded(min(values)), _rounded(max(values))) if len(values) > 1 else (None, None)
    if goal is None:
        return Row(name, contender.unit, middle, least, greatest, None, (), None, False, contender.error)
    ratio = None
    if goal.yardsticks and values and all(by_name[yardstick].rounds for yardstick in goal.yardsticks):
        slowest = [max(costs) for costs in zip(*(by_name[yardstick].costs(at) for yardstick in goal.yardsticks))]
        ratio = _rounded(median(base / value if goal.rate else value / base for value, base in zip(values, slowest)))
    return Row(name, contender.unit, middle, least, greatest, ratio, goal.yardsticks, goal.limit, goal.rate, contender.error)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def about(note: str) -> dict[str, Any]:
    """When, and on what, a run takes place; `commit` ends with "+" where files were changed since."""
    import numpy

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()

    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else ""),
        "cores": os.cpu_count(),
        "cpu": models[0] if models else os.uname().machine,
        "kernel": os.uname().release,
        "python": sys.version.split()[0],
        "numpy": numpy.__version__,
        "note": note,
    }


def as_text(rows: Sequence[Row]) -> str:
    """The table, aligned."""
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [min(60, max(len(line[column]) for line in lines)) for column in range(len(HEAD))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def as_markdown(groups: Mapping[str, Results]) -> str:
    """The table of all groups in Markdown."""
    lines = [("group", *HEAD), ("---",) * (len(HEAD) + 1)]
    lines += [(name, *row.cells()) for name, results in groups.items() for row in results.rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def load(path: Path) -> dict[str, Results]:
    """The results by group that `save` wrote."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: Results(results["about"], [Row(**{**row, "yardsticks": tuple(row["yardsticks"])}) for row in results["rows"]])
        for name, results in found.items()
    }


def save(path: Path, groups: Mapping[str, Results]) -> None:
    """One row a line, so that two runs can be compared by `git diff`."""
    texts = []
    for name, results in groups.items():
        rows = ",\n  ".join(json.dumps(vars(row), ensure_ascii=False) for row in results.rows)
        texts.append(f'{json.dumps(name)}: {{"about": {json.dumps(results.about)}, "rows": [\n  {rows}\n]}}')
    path.write_text("{\n" + ",\n".join(texts) + "\n}\n", encoding="utf-8")


def plot(groups: Mapping[str, Results], path: Path, source: str) -> None:
    """How much of its target each contender uses up, at the median: left of the line is met.  `source` is written into the file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    judged = [(name, row) for name, results in groups.items() for row in results.rows if row.met is not None][::-1]
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.2 * len(judged)))
    for height, (_, row) in enumerate(judged):
        value = row.ratio if row.yardsticks else row.median
        assert value is not None
        assert row.limit is not None
        axes.barh(height, row.limit / value if row.rate else value / row.limit, color="tab:green" if row.met else "tab:red", alpha=0.5)
    axes.set_yticks(range(len(judged)), [f"{name}: {row.contender} ({row.target()})" for name, row in judged], fontsize=7)
    axes.set_ylim(-1, len(judged))
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("part of the target that is used up")
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Source": source, "Software": None})
