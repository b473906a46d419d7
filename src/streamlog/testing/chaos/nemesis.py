"""What disturbs the workers, at random by a seed: deaths, stops, replacements, and disks that fail, fill up or vanish."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from streamlog.testing.chaos.history import HistoryWriter
from streamlog.testing.chaos.processes import Process, Processes

LONGEST_STOP = 2.0
"""Seconds."""

REPLACEABLE = {"transactional", "exactlyonce", "group"}
"""Kinds of workers that have a name in the cluster, for which a later life takes it over."""


class Outage(NamedTuple):
    """A disk that does not work: "EIO" or "ENOSPC" in one process, or "away" for everybody."""

    what: str
    broker: int | None
    until: float
    process: Process | None


class Nemesis:
    """One act at each step.  At most one disk is out at a time."""

    def __init__(self, processes: Processes, rng: random.Random, history: HistoryWriter) -> None:
        self._processes, self._rng, self._history = processes, rng, history
        self._outage: Outage | None = None
        self._quiet_until = time.monotonic() + 1.0
        self.outages = 0
        self._acts: list[tuple[Callable[[], None], int]] = [
            (self._kill, 8), (self._stop, 8), (self._end, 2), (self._replace, 3), (self._fail_a_disk, 3),
        ]  # fmt: skip
        if processes.brokers > 1:
            self._acts.append((self._take_away, 2))
        self._acts = [(act, weight) for act, weight in self._acts if act.__name__.lstrip("_") not in processes.avoid]

    def step(self) -> None:
        """Act, and end an outage whose time is over."""
        if self._outage is not None and time.monotonic() > self._outage.until:
            self.heal()
        if self._acts:
            acts, weights = zip(*self._acts)
            act: Callable[[], None] = self._rng.choices(acts, weights)[0]
            act()

    def heal(self) -> None:
        """All disks work again."""
        outage, self._outage = self._outage, None
        if outage is None:
            return
        if outage.what == "away":
            assert outage.broker is not None
            os.rename(self._away(outage.broker), self._path(outage.broker))
        elif outage.process is not None:
            outage.process.tell(fail=None)
        self._history.note("outage over", what=outage.what, broker=outage.broker)
        self._quiet_until = time.monotonic() + 1.0

    def _anybody(self) -> Process:
        return self._processes.current[self._rng.choice(sorted(self._processes.current))]

    def _kill(self) -> None:
        process = self._anybody()
        self._processes.kill(process)

    def _stop(self) -> None:
        self._processes.stop(self._anybody(), self._rng.choice((0.05, 0.3, 1.0, LONGEST_STOP)))

    def _end(self) -> None:
        process = self._anybody()
        self._processes.end(process)

    def _replace(self) -> None:
        names = [name for name, process in sorted(self._processes.current.items()) if process.task.kind in REPLACEABLE]
        if names:
            process = self._processes.current[self._rng.choice(names)]
            if process.is_there and not process.stopped_until:
                self._processes.replace(process, self._rng.choice((0.3, 1.0, LONGEST_STOP)))

    def _fail_a_disk(self) -> None:
        """In the process that opened the cluster on a double."""
        faulty = [process for _, process in sorted(self._processes.current.items()) if process.task.kind == "faulty" and process.is_there]
        if faulty and self._may_fail():
            process, what = self._rng.choice(faulty), self._rng.choice(("EIO", "ENOSPC"))
            broker: int | None = self._rng.randrange(self._processes.brokers)
            if self._processes.brokers == 1 and self._rng.random() < 0.3:
                broker = None  # the disk of the only broker is that of the cluster's own files, too
            self._begin(Outage(what, broker, time.monotonic() + self._rng.uniform(0.2, 1.5), process))
            process.tell(fail=what, broker=broker)

    def _take_away(self) -> None:
        """A broker's directory is somewhere else for a while."""
        if self._may_fail():
            broker = self._rng.randrange(self._processes.brokers)
            self._begin(Outage("away", broker, time.monotonic() + self._rng.uniform(0.2, 2.5), None))
            os.rename(self._path(broker), self._away(broker))

    def _may_fail(self) -> bool:
        return self._outage is None and time.monotonic() > self._quiet_until

    def _begin(self, outage: Outage) -> None:
        self._outage = outage
        self.outages += 1
        self._history.note("outage", what=outage.what, broker=outage.broker)

    def _path(self, broker: int) -> Path:
        return self._processes.location / f"broker-{broker}"

    def _away(self, broker: int) -> Path:
        return self._path(broker).with_suffix(".away")
