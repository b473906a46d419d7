"""Scenarios that a child process runs and dies in, at each of their steps."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from streamlog import Cluster, testing
from streamlog.testing.faults import FaultyFileSystem, Steps, kill_at, step_words

Scenario = Callable[[Cluster, Callable[[str], None]], None]


def cluster_with(steps: Steps, path: Path, fs: FaultyFileSystem | None = None) -> Cluster:
    """A cluster whose steps are seen."""
    step_words(steps)
    return testing.open(path, fs=fs or FaultyFileSystem(steps=steps))


def run_child(path: Path, steps: Steps, before: Scenario, scenario: Scenario) -> tuple[list[str], bool]:
    """Fork a child that runs `before`, then `scenario` with the steps live.  Returns what it acknowledged, and whether it was killed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            steps.active = False
            cluster = cluster_with(steps, path)
            before(cluster, lambda text: None)
            steps.active = True
            scenario(cluster, lambda text: os.write(writing, text.encode() + b"\n") and None)
            steps.active = False
            os.write(writing, b"".join(b"STEP %s\n" % name.encode() for name in steps.names))
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        lines = pipe.read().splitlines()
    _, status = os.waitpid(pid, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or status == 0, f"the child ended with status {status}"
    return lines, killed


def steps_of(path: Path, before: Scenario, scenario: Scenario) -> list[str]:
    """The names of a scenario's steps."""
    lines, killed = run_child(path, Steps(), before, scenario)
    assert not killed
    return [line.removeprefix("STEP ") for line in lines if line.startswith("STEP ")]


def die_at(path: Path, number: int, phase: str, before: Scenario, scenario: Scenario) -> tuple[list[str], bool]:
    """Run a scenario in a child that kills itself at a step."""
    return run_child(path, kill_at(number, phase), before, scenario)
