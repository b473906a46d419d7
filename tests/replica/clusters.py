"""Clusters of several brokers whose disks fail when told to, and what their replicas hold."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import streamlog
from streamlog import Cluster, testing
from streamlog._log.reader import LogReader
from streamlog._log.state import HWM
from streamlog._replica.replicated import ReplicatedLog
from streamlog.testing import FaultyFileSystem

WRITES = ("write", "sync", "create", "rename", "sync_dir", "truncate", "allocate", "mkdir", "unlink")


class Disks(FaultyFileSystem):
    """A file system on which whole brokers fail."""

    def fail(self, broker: int, number: int = errno.EIO, ops: tuple[str, ...] = (*WRITES, "read")) -> None:
        for op in ops:
            self.fail_when(op, f"*/broker-{broker}/*", times=10**9, number=number)
            self.fail_when(op, f"*/broker-{broker}", times=10**9, number=number)

    def heal(self) -> None:
        self.clear()


@contextmanager
def brokers(place: Path, count: int = 3, disks: Disks | None = None, **options: Any) -> Iterator[Cluster]:
    """An open cluster; afterwards every invariant holds of what is online."""
    with testing.open(place / "log", brokers=count, fs=disks or Disks(), **options) as cluster:
        yield cluster
        if disks is not None:
            disks.heal()
        assert streamlog.check(cluster) == []


def log_of(cluster: Cluster, topic: str = "t", partition: int = 0) -> ReplicatedLog:
    return cluster._home.replicated(cluster._refreshed().topic(topic), partition, 10.0)


def records_on(log: ReplicatedLog, broker: int, end: int | None = None) -> list[tuple[int, int, bytes]]:
    """Offset, leader epoch and columns of each batch of a replica; up to an offset, if one is given."""
    replica = log.on(broker)
    replica.ensure_valid(10.0)
    reader = LogReader(replica, replica.start_offset)
    found = []
    while reader.offset < (replica.words[HWM] if end is None else min(end, replica.words[HWM])) and (batch := reader.next()) is not None:
        found.append((batch.base_offset, batch.leader_epoch, bytes(batch.data[80:])))
    return found


def settle(log: ReplicatedLog) -> None:
    """Let every replica catch up and join."""
    cluster = log._home
    for broker in log.state.replicas:
        if broker in cluster.controller.alive():
            cluster.controller.bring_in(log, broker, 10.0)
    log.catch_up(10.0)


def assert_equal_replicas(log: ReplicatedLog) -> None:
    """Every replica holds what was published when this began; others may go on writing."""
    end = log.high_watermark
    settle(log)
    leader = log.state.leader
    expected = records_on(log, leader, end)
    assert log.on(leader).words[HWM] >= end
    for broker in log.state.replicas:
        found = records_on(log, broker, end)
        different = [(ours, theirs) for ours, theirs in zip_longest(expected, found) if ours != theirs]
        assert not different, f"{log.name}: broker {broker} differs from the leader, {leader}: {different[:2]}"


def lose(place: Path, broker: int) -> None:
    """The broker's directory is gone."""
    shutil.rmtree(place / "log" / f"broker-{broker}")
