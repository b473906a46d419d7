"""Fixtures: clusters on tmpfs whose invariants are checked when a test is done with them, and seeds that are printed.

What a test leaves behind is put away with it: processes that it started are ended, and after a failure garbage is collected.
"""

import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("STREAMLOG_VERIFY", "1")  # before streamlog is imported: the order of locks is checked

import streamlog

LONG = os.environ.get("STREAMLOG_LONG") == "1"
NO_SKIP = os.environ.get("STREAMLOG_NO_SKIP") == "1"
FAILED = pytest.StashKey[bool]()


def records_of(cluster: streamlog.Cluster, topic: str = "t", **config: Any) -> list[streamlog.Record]:
    """All records of a topic, in order within each partition."""
    with cluster.consumer(topic, auto_offset_reset="earliest", **config) as consumer:
        records: list[streamlog.Record] = []
        while found := consumer.poll():
            records += found
        return records


def values_of(cluster: streamlog.Cluster, topic: str = "t") -> list[bytes]:
    """Their values."""
    return [record.value for record in records_of(cluster, topic)]


def wait_until(ready: Callable[[], bool]) -> None:
    """Return once something holds; fail after 20 s."""
    deadline = time.monotonic() + 20
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not LONG:
            item.add_marker(pytest.mark.skip(reason="the long form: STREAMLOG_LONG=1"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    if call.excinfo is not None:
        item.stash[FAILED] = True
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.skipped and NO_SKIP and "machine" in item.keywords:
        report.outcome, report.longrepr = "failed", f"skipped, though STREAMLOG_NO_SKIP=1: {report.longrepr}"


def pytest_runtest_logfinish() -> None:
    """Drop what a failed test held: its traceback keeps files open, whose warnings would fail a later test."""
    if getattr(sys, "last_value", None) is not None:
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            vars(sys).pop(name, None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()


@pytest.fixture(autouse=True)
def leftovers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Processes that the test started have ended, and their pipes are closed; else that is done here, and the test fails."""
    started: list[subprocess.Popen[Any]] = []

    class Remembered(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Remembered)
    yield
    left = []
    for process in started:
        pipes = [pipe for pipe in (process.stdin, process.stdout, process.stderr) if pipe is not None and not pipe.closed]
        if process.poll() is None or pipes:
            left.append(process.args)
            process.kill()
            process.wait()
            for pipe in pipes:
                pipe.close()
    assert not left or FAILED in request.node.stash, f"the test left processes or their pipes: {left}"


@pytest.fixture
def sigint() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt here and in children, also where whoever started the tests ignores it (`nohup make test &`)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def in_namespace() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Whether a command can be run in namespaces of its own; the test that asks is marked `machine`."""

    def run(*command: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(["unshare", *command], capture_output=True, text=True, timeout=60, **options)

    try:
        tried = run("-m", "-p", "-f", "true")
    except FileNotFoundError:
        pytest.skip("unshare is not here")
    if tried.returncode:
        pytest.skip(f"namespaces are not possible here: {tried.stderr.strip()}")
    return run


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory on tmpfs, where a sync costs nothing."""
    path = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def log(place: Path) -> Iterator[streamlog.Cluster]:
    """An open cluster; afterwards every invariant holds."""
    with streamlog.open(place / "log") as cluster:
        yield cluster
        assert streamlog.check(cluster) == []


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed that is printed when the test fails; STREAMLOG_SEED brings it back."""
    number = int(os.environ.get("STREAMLOG_SEED", random.randrange(2**31)))
    print(f"seed of {request.node.name}: STREAMLOG_SEED={number}")
    return number


@pytest.fixture
def read_all() -> Callable[..., list[streamlog.Record]]:
    """`records_of`."""
    return records_of
