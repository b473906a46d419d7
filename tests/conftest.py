"""Fixtures: clusters on tmpfs whose invariants are checked when a test is done with them, and seeds that are printed."""

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("STREAMLOG_VERIFY", "1")  # before streamlog is imported: the order of locks is checked

import streamlog

LONG = os.environ.get("STREAMLOG_LONG") == "1"


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not LONG:
            item.add_marker(pytest.mark.skip(reason="the long form: STREAMLOG_LONG=1"))


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
