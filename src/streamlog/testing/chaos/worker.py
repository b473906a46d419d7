"""A worker process: `python -m streamlog.testing.chaos.worker TASK`.

It opens the cluster, works until it is told to end by SIGTERM, and opens the cluster anew after an error.  What it does and is told stands
in its history.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import streamlog
from streamlog import Cluster, StreamlogError
from streamlog.testing.chaos.history import HistoryWriter
from streamlog.testing.chaos.plan import Task

OPEN, ADMINISTRATION = 60.0, 30.0
"""Seconds that opening, and a call of administration, may take."""


class Worker:
    """What all workers have: a cluster, a history, and a random generator of their own."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.rng = random.Random(f"{task.seed} {task.worker} {task.life}")
        self.history = HistoryWriter(Path(task.histories) / f"{task.worker}.{task.life}.jsonl")
        self.ending = False
        self.parent = os.getppid()
        self._made, self._names = 0, task.worker

    def run(self) -> None:
        """Work until the end."""
        self.history.note("start", pid=os.getpid())
        signal.signal(signal.SIGTERM, self._end)
        while not self.ended():
            try:
                with self.history.call("open", OPEN):
                    cluster = self.open()
                cluster.timeout = ADMINISTRATION / 3
                try:
                    self.work(cluster)
                finally:
                    with self.history.call("close", 2 * ADMINISTRATION):
                        cluster.close()
            except StreamlogError as error:
                self.trouble("session", error)
                self.pause(0.05)
        self.history.note("end")

    def open(self) -> Cluster:
        """Open the cluster; workers with a file system of their own do it otherwise."""
        return streamlog.open(self.task.location, create=False)

    def work(self, cluster: Cluster) -> None:
        """Do one's work until `ended` is true or something goes wrong."""
        raise NotImplementedError

    def ended(self) -> bool:
        """Whether to stop; a worker whose parent is gone stops, too."""
        return self.ending or os.getppid() != self.parent

    def was_replaced(self) -> bool:
        """Whether a later life of this worker has begun: it has the transactional id, or the place in the group, now."""
        lives = (int(path.name.split(".")[1]) for path in Path(self.task.histories).glob(f"{self.task.worker}.*.jsonl"))
        return max(lives) > self.task.life

    def _end(self, *_: object) -> None:
        self.ending = True

    def pause(self, seconds: float) -> None:
        """Sleep for a random time up to this, longer now and then: somebody who works without a pause leaves the others no machine."""
        time.sleep(seconds * self.rng.random() * self.rng.choice((1, 1, 1, 4)))

    def trouble(self, what: str, error: BaseException) -> None:
        """An error that the library raised."""
        self.history.note("trouble", what=what, error=type(error).__name__, text=str(error)[:300])

    def new_name(self) -> str:
        """A name for a producer object, used once."""
        self._made += 1
        return f"{self._names}.{self.task.life}.{self._made}"


KINDS = {
    "plain": "producers.Plain", "keyed": "producers.Keyed", "bulk": "producers.Bulk", "transactional": "producers.Transactional",
    "group": "consumers.GroupMember", "exactlyonce": "consumers.ExactlyOnce",
    "admin": "administration.Administrator", "observer": "administration.Observer",
    "forking": "wounds.Forking", "limited": "wounds.Limited", "faulty": "wounds.Faulty",
    "final": "final_state.FinalReader",
}  # fmt: skip
"""Where the worker of each kind is; a process imports its own only."""


def worker_of(task: Task) -> Worker:
    """The worker that carries out a task."""
    from importlib import import_module

    module, _, name = KINDS[task.kind].partition(".")
    made: Worker = getattr(import_module(f"streamlog.testing.chaos.{module}"), name)(task)
    return made


def main(argument: str) -> None:
    """Run a task; an exception that is not the library's own is written down and ends the process."""
    worker = worker_of(Task.load(argument))
    try:
        worker.run()
    except BaseException:
        worker.history.note("crash", text=traceback.format_exc()[-12_000:])
        raise


if __name__ == "__main__":
    main(sys.argv[1])
