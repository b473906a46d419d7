"""The worker processes of a run, as their parent sees them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from streamlog.testing.chaos.history import HistoryWriter
from streamlog.testing.chaos.plan import Task


class Process:
    """One life of a worker."""

    def __init__(self, task: Task, errors: Path, environment: Mapping[str, str]) -> None:
        self.task = task
        self.stopped_until = 0.0
        self.expected = False
        """Whether the parent has told it to end."""
        command = [sys.executable, "-m", "streamlog.testing.chaos.worker", task.dump()]
        with errors.open("ab") as file:
            self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=file, env=environment)

    @property
    def is_there(self) -> bool:
        """Whether it runs, or is stopped."""
        return self.popen.poll() is None

    def tell(self, **told: object) -> None:
        """Write a line to its standard input."""
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.write(json.dumps(told).encode() + b"\n")
            self.popen.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # it is gone


class Processes:
    """All of them.  Every signal is written down before, or after, it is sent: stops are never shorter than noted."""

    def __init__(self, location: Path, histories: Path, seed: int, brokers: int, history: HistoryWriter, avoid: Sequence[str] = ()) -> None:
        self.location, self.histories, self.seed, self.brokers = location, histories, seed, brokers
        self.history, self.avoid = history, list(avoid)
        self.errors = histories.parent / "stderr"
        self.current: dict[str, Process] = {}
        """By worker: the life that counts."""
        self.former: list[Process] = []
        """Lives that another one has replaced while they were stopped."""
        self.kills = self.stops = 0
        self._environment = _environment(histories.parent / "bytecode")

    def begin(self, kind: str, number: int, life: int = 0) -> Process:
        """Start a process."""
        task = Task(str(self.location), str(self.histories), kind, number, life, self.seed, self.brokers, self.avoid)
        process = Process(task, self.errors, self._environment)
        self._note("started", process, pid=process.popen.pid)
        self.current[task.worker] = process
        return process

    def wait_for_all(self, seconds: float) -> None:
        """Return when every worker has begun, or the time is over."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if all((self.histories / f"{name}.{process.task.life}.jsonl").exists() for name, process in self.current.items()):
                return
            time.sleep(0.02)

    def next_life(self, process: Process) -> Process:
        """Start the worker again."""
        return self.begin(process.task.kind, process.task.number, process.task.life + 1)

    def kill(self, process: Process) -> None:
        """SIGKILL, and wait: it is gone when this returns."""
        process.expected = True
        process.popen.kill()
        process.popen.wait()
        self._note("kill", process)
        self.kills += 1

    def stop(self, process: Process, seconds: float) -> None:
        """SIGSTOP; `tend` continues it after a while."""
        if process.is_there and not process.stopped_until:
            self._note("stop", process)
            process.popen.send_signal(signal.SIGSTOP)
            process.stopped_until = time.monotonic() + seconds
            self.stops += 1

    def resume(self, process: Process) -> None:
        """SIGCONT."""
        if process.stopped_until:
            process.stopped_until = 0.0
            if process.is_there:
                process.popen.send_signal(signal.SIGCONT)
            self._note("continue", process)

    def end(self, process: Process) -> None:
        """SIGTERM: it closes everything and ends."""
        process.expected = True
        if process.is_there:
            self._note("terminate", process)
            process.popen.terminate()

    def replace(self, process: Process, seconds: float) -> None:
        """Stop a process for a while, and start the next life of its worker meanwhile: it wakes up as a zombie."""
        self.stop(process, seconds)
        self.former.append(process)
        self.next_life(process)

    def tend(self) -> None:
        """Continue whose time is over, and start again who ended."""
        now = time.monotonic()
        for process in [*self.current.values(), *self.former]:
            if process.stopped_until and now > process.stopped_until:
                self.resume(process)
        for process in [*self.current.values()]:
            if not process.is_there:
                self._bury(process)
                self.next_life(process)
        for process in [*self.former]:
            if not process.is_there:
                self._bury(process)
                self.former.remove(process)

    def end_all(self, seconds: float) -> list[str]:
        """Let all end; returns those that had to be killed."""
        everybody = [*self.current.values(), *self.former]
        for process in everybody:
            self.resume(process)
            self.end(process)
        until = time.monotonic() + seconds
        while any(process.is_there for process in everybody) and time.monotonic() < until:
            time.sleep(0.02)
        late = [process for process in everybody if process.is_there]
        for process in late:
            self.kill(process)
        for process in everybody:
            self._bury(process)
        self.current.clear()
        self.former.clear()
        return [f"{process.task.worker}.{process.task.life}" for process in late]

    def kill_all(self) -> None:
        """Leave nobody behind, whatever happened."""
        for process in [*self.current.values(), *self.former]:
            if process.is_there:
                process.popen.kill()
                process.popen.wait()
            if process.popen.stdin is not None:
                process.popen.stdin.close()

    def _bury(self, process: Process) -> None:
        code = process.popen.wait()
        if process.popen.stdin is not None:
            try:
                process.popen.stdin.close()
            except (BrokenPipeError, ValueError):
                pass
        self._note("exited", process, code=code, expected=process.expected)

    def _note(self, event: str, process: Process, **fields: object) -> None:
        self.history.note(event, worker=process.task.worker, life=process.task.life, **fields)


def _environment(bytecode: Path) -> dict[str, str]:
    """The environment of workers.  They are many and short-lived, so they compile no module twice, even where Python is told to keep nothing."""
    found = dict(os.environ)
    if found.pop("PYTHONDONTWRITEBYTECODE", None) is not None:
        found["PYTHONPYCACHEPREFIX"] = str(bytecode)
        modules = ", ".join(f"streamlog.testing.chaos.{name}" for name in ("administration", "consumers", "producers", "wounds", "worker"))
        subprocess.run([sys.executable, "-c", f"import {modules}, streamlog._client.groups"], env=found, check=True)
    return found
