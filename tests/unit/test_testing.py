"""`streamlog.testing.open`: a cluster on a file-system double."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

import streamlog
from conftest import values_of
from streamlog import testing


def test_a_fault_that_was_asked_for_is_met(place: Path) -> None:
    disks = testing.FaultyFileSystem()
    with testing.open(place / "log", fs=disks) as cluster:
        cluster.create_topic("t")
        with cluster.producer(linger_ms=0, retries=0) as producer:
            disks.fail_when("write", "*.log", number=errno.ENOSPC)
            with pytest.raises(streamlog.StorageFullError):
                producer.send("t", b"a").result(10)
            disks.clear()
            producer.send("t", b"b").result(10)
        assert values_of(cluster) == [b"b"]


def test_options_are_those_of_open(place: Path) -> None:
    disks = testing.FaultyFileSystem()
    with pytest.raises(streamlog.NotAClusterError):
        testing.open(place / "log", fs=disks, create=False)
    with pytest.raises(streamlog.UnknownConfigError):
        testing.open(place / "log", fs=disks, offsets_topic_num_partition=3)
    with testing.open(place / "log", fs=disks, brokers=3, offsets_topic_num_partitions=3) as cluster:
        assert len(cluster.brokers()) == 3
    with streamlog.open(place / "log", create=False) as cluster:
        assert len(cluster.brokers()) == 3


def test_a_cluster_on_a_memory_file_system_survives_a_power_cut(place: Path) -> None:
    (place / "log").mkdir()
    machine = testing.MemoryFileSystem(str(place / "log"))
    with testing.open(place / "log", fs=machine) as cluster:
        cluster.create_topic("t")
        with cluster.producer(durability="fsync") as producer:
            producer.send("t", b"a").result(10)
        after = machine.crash(1, str(place / "after"))
    with testing.open(place / "after", fs=after) as cluster:
        assert values_of(cluster) == [b"a"]
        after.end()


def test_the_doubles_are_imported_when_they_are_asked_for() -> None:
    code = "import sys, streamlog.testing as t; print(sorted(m for m in sys.modules if m.startswith('streamlog.testing')), hasattr(t, 'no'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['streamlog.testing'] False\n"
