"""Workers in trouble of their own: they fork, run into limits of their process, or have a disk that fails.  Others must not notice."""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from streamlog import Cluster, StreamlogError, testing
from streamlog.errors import ClosedError, RetriableError
from streamlog.testing.chaos.history import HistoryWriter
from streamlog.testing.chaos.plan import PLAIN, Task
from streamlog.testing.chaos.producers import NotedProducer, noted
from streamlog.testing.chaos.worker import Worker
from streamlog.testing.faults import FaultyFileSystem, Steps

CHANGES = ("write", "sync", "create", "rename", "sync_dir", "truncate", "allocate", "mkdir", "unlink", "link")
LARGEST_FILE = 1 << 16
"""Bytes.  Segments grow beyond it."""

ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC}


class Forking(Worker):
    """Forks with a cluster and a producer open.  The child uses the cluster, and must be refused the producer."""

    def work(self, cluster: Cluster) -> None:
        children = 0
        while not self.ended():
            with noted(self, cluster) as producer:
                producer.send(PLAIN, producer.new_ids(3))
                children += 1
                pid = os.fork()
                if pid == 0:
                    self._child(children, cluster, producer)
                producer.send(PLAIN, producer.new_ids(3))
                producer.flush()
                os.waitpid(pid, 0)
            self.pause(0.5)

    def _child(self, number: int, cluster: Cluster, inherited: NotedProducer) -> None:
        """Send some records; end without closing anything."""
        name = f"{self.task.worker}c{number}"
        try:
            self.history = HistoryWriter(f"{self.task.histories}/{name}.{self.task.life}.jsonl")
            self.history.note("start", pid=os.getpid())
            self._names = name
            try:
                inherited.producer.send(PLAIN, b"never")
                self.history.note("crash", text="a producer that was inherited through fork took a record")
            except ClosedError:
                pass
            own = NotedProducer(self, cluster)
            own.send(PLAIN, own.new_ids(3))
            own.flush()
            self.history.note("end")
        except StreamlogError as error:
            self.trouble("child", error)
            self.history.note("end")
        except BaseException as error:
            self.history.note("crash", text=repr(error))
        finally:
            os._exit(0)


class UnlimitedHistory(HistoryWriter):
    """A history that is written whatever the largest file may be."""

    def note(self, event: str, **fields: Any) -> None:
        """Write an event down, with the limit lifted meanwhile."""
        low, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        super().note(event, **fields)
        resource.setrlimit(resource.RLIMIT_FSIZE, (low, hard))


class Limited(Worker):
    """Produces while the limits of its own process are low: the largest file (RLIMIT_FSIZE), or open files (RLIMIT_NOFILE)."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.history = UnlimitedHistory(f"{task.histories}/{task.worker}.{task.life}.jsonl")

    def work(self, cluster: Cluster) -> None:
        while not self.ended():
            try:
                limit = self.rng.choice((None, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE))
                options = {"linger_ms": 0, "delivery_timeout_ms": 1000, "max_block_ms": 1000}
                with limited(limit, self), noted(self, cluster, **options) as producer:
                    producer.send(PLAIN, producer.new_ids(5))
                    producer.flush()
            except StreamlogError as error:
                self.trouble("limited", error)
            except OSError as error:  # its own: from the interpreter, or not one that the library names
                self.trouble("limited", error)
            self.pause(0.2)


@contextmanager
def limited(limit: int | None, worker: Worker) -> Iterator[None]:
    """Lower a limit of this process for a while."""
    if limit is None:
        yield
        return
    soft, hard = resource.getrlimit(limit)
    low = len(os.listdir("/dev/fd")) + 1 if limit == resource.RLIMIT_NOFILE else LARGEST_FILE
    worker.history.note("limit", name="NOFILE" if limit == resource.RLIMIT_NOFILE else "FSIZE", low=low)
    resource.setrlimit(limit, (low, hard))
    try:
        yield
    finally:
        resource.setrlimit(limit, (soft, hard))
        worker.history.note("limit over")


class Faulty(Worker):
    """Produces on a file system that fails when the parent says so, by lines on the standard input."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        steps = Steps()
        steps.active = False
        self.disks = FaultyFileSystem(steps=steps)
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def run(self) -> None:
        """Listen to the parent meanwhile."""
        self._listener.start()
        super().run()

    def open(self) -> Cluster:
        """On the double."""
        return testing.open(self.task.location, fs=self.disks, create=False)

    def work(self, cluster: Cluster) -> None:
        """What a plain producer does."""
        while not self.ended():
            with noted(self, cluster, linger_ms=self.rng.choice((0, 5)), durability=self.rng.choice(("os", "fsync"))) as producer:
                for _ in range(50):
                    if self.ended():
                        break
                    try:
                        producer.send(PLAIN, producer.new_ids(self.rng.randrange(1, 20)))
                        producer.flush()
                    except StreamlogError as error:
                        self.trouble("write", error)
                        if not isinstance(error, RetriableError):
                            raise  # everything is opened again
                    self.pause(0.02)

    def _listen(self) -> None:
        while select.select([sys.stdin], [], []) and (line := sys.stdin.readline()):
            told: dict[str, Any] = json.loads(line)
            if told["fail"] is None:
                self.disks.clear()
                self.history.note("disk works")
                continue
            below = self.task.location if told["broker"] is None else f"{self.task.location}/broker-{told['broker']}"
            for operation in CHANGES if told["fail"] == "ENOSPC" else (*CHANGES, "read"):
                for path in (below, f"{below}/*"):
                    self.disks.fail_when(operation, path, times=10**9, number=ERRORS[told["fail"]])
            self.history.note("disk fails", error=told["fail"], broker=told["broker"])
