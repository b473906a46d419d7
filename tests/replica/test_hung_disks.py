"""H40: a disk that does not answer.  Who writes there is stuck, with what it holds; everybody else goes on."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import streamlog
from conftest import values_of
from replica.clusters import Disks, assert_equal_replicas, log_of
from replica.test_replication import put
from streamlog.cluster import Cluster, _Place


class HangingDisks(Disks):
    """Writes and syncs below a broker wait until `thaw`, as the kernel's do: the caller stays inside, with its locks."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen: set[int] = set()
        self.open_again = threading.Event()
        self.waiting = 0

    def freeze(self, broker: int) -> None:
        self.frozen.add(broker)

    def thaw(self) -> None:
        self.frozen.clear()
        self.open_again.set()

    def _enter(self, op: str, path: str) -> int:
        if any(f"/broker-{broker}" in path for broker in self.frozen):
            self.waiting += 1
            self.open_again.wait()
        return super()._enter(op, path)

    def _enter_quietly(self, op: str, path: str) -> None:
        pass  # reading what is in memory goes on

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], position: int, path: str) -> None:
        super().pwritev(fd, buffers, position, path)


def bring_back(cluster: streamlog.Cluster) -> None:
    """A disk that answers again may have a call of before in it for a moment."""
    until = time.monotonic() + 10
    for each in cluster.brokers():
        while cluster.brokers()[each.broker].state != "online":
            try:
                cluster.start_broker(each.broker)
            except streamlog.DiskFailedError:
                assert time.monotonic() < until
                time.sleep(0.02)


@pytest.mark.parametrize("whose", ["leader", "follower"])
def test_a_disk_that_hangs_holds_up_its_own_log_only(place: Path, whose: str) -> None:
    disks = HangingDisks()
    with Cluster(_Place(place / "log", brokers=3), options={"replica_lag_time_max_ms": 300}, fs=disks) as cluster:
        cluster.create_topic("t", replication_factor=3)
        put(cluster, b"a")
        log = log_of(cluster)
        state = log.state
        victim = state.leader if whose == "leader" else state.replicas[1]
        disks.freeze(victim)
        stuck = threading.Thread(target=lambda: put(cluster, b"stuck"), daemon=True)
        stuck.start()
        until = time.monotonic() + 5
        while not disks.waiting and time.monotonic() < until:
            time.sleep(0.001)
        assert disks.waiting, "somebody is inside the disk"
        began = time.monotonic()
        assert put(cluster, b"b")[0] in (1, 2)
        assert time.monotonic() - began < 10
        assert log.state.leader != victim
        assert victim not in log.state.in_sync
        assert values_of(cluster)[-1] == b"b"
        cluster.create_topic("u", replication_factor=2) if len(cluster._home.controller.alive()) > 1 else None
        disks.thaw()
        stuck.join(20)
        assert not stuck.is_alive()
        bring_back(cluster)
        assert_equal_replicas(log)
        assert values_of(cluster).count(b"stuck") == 1
        assert values_of(cluster).count(b"b") == 1
        assert streamlog.check(cluster) == []


def test_the_metadata_go_on_while_the_disk_of_their_leading_copy_hangs(place: Path) -> None:
    disks = HangingDisks()
    with Cluster(_Place(place / "log", brokers=3), options={"replica_lag_time_max_ms": 300}, fs=disks) as cluster:
        cluster.create_topic("t", replication_factor=3)
        quorum = cluster._home.quorum
        assert quorum is not None
        from streamlog._replica.leadership import PLACE, leader_of

        victim = leader_of(quorum.leadership[PLACE])
        disks.freeze(victim)
        began = time.monotonic()
        cluster._home.new_producer_id(10.0)
        with cluster.producer(linger_ms=0) as producer:  # needs ids, perhaps an election
            producer.send("t", b"a", partition=0).result(20)
        assert time.monotonic() - began < 15
        disks.thaw()
        time.sleep(0.1)
        bring_back(cluster)
        assert_equal_replicas(log_of(cluster))
        assert streamlog.check(cluster) == []


# ---- the kernel's own


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[list[Path]]:
    """Three ext4 file systems in files, mounted; skipped where this machine does not let us."""
    made: list[Path] = []
    try:
        for number in range(3):
            image, target = tmp_path / f"disk{number}.img", tmp_path / f"disk{number}"
            with open(image, "wb") as file:
                file.truncate(64 << 20)
            target.mkdir()
            for command in (["mkfs.ext4", "-q", "-F", str(image)], ["mount", "-o", "loop", str(image), str(target)]):
                if subprocess.run(command, capture_output=True, check=False).returncode:
                    pytest.skip(f"{command[0]} is not possible here")
            made.append(target)
        yield made
    except FileNotFoundError as error:
        pytest.skip(f"{error.filename} is not here")
    finally:
        for target in made:
            subprocess.run(["fsfreeze", "-u", str(target)], capture_output=True, check=False)
            subprocess.run(["umount", "-l", str(target)], capture_output=True, check=False)


WRITER = """
import sys, streamlog
with streamlog.open(sys.argv[1]) as log, log.producer(linger_ms=0) as producer:
    number = 0
    while True:
        producer.send("t", b"%s.%d" % (sys.argv[2].encode(), number)).result(60)
        print(number, flush=True)
        number += 1
"""


@pytest.mark.machine
def test_h40_a_frozen_file_system(place: Path, mounts: list[Path]) -> None:
    """One writer is stuck in the kernel with the leader's lock; another process goes on after `replica_lag_time_max_ms`."""
    paths = [mount / "broker" for mount in mounts]
    with streamlog.open(place / "log", brokers=paths, replica_lag_time_max_ms=500) as cluster:
        cluster.create_topic("t", replication_factor=3)
        log = log_of(cluster)
        leader = log.state.leader
        import sys

        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(place / "log"), "w"], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "0\n"
        if subprocess.run(["fsfreeze", "-f", str(mounts[leader])], capture_output=True, check=False).returncode:
            writer.kill()
            writer.communicate()
            pytest.skip("fsfreeze is not possible here")
        try:
            until = time.monotonic() + 10
            while not os.path.exists(f"/proc/{writer.pid}/stat") or " D " not in Path(f"/proc/{writer.pid}/stat").read_text():
                assert time.monotonic() < until, "the writer does not wait for the disk"
                time.sleep(0.005)
            with cluster.producer(linger_ms=0) as producer:
                producer.send("t", b"after").result(30)
            assert log.state.leader != leader
            assert values_of(cluster)[-1] == b"after"
        finally:
            subprocess.run(["fsfreeze", "-u", str(mounts[leader])], check=True)
            time.sleep(0.3)
            writer.kill()
            writer.communicate()
        bring_back(cluster)
        assert_equal_replicas(log)
        assert streamlog.check(cluster) == []


def test_a_full_disk_of_one_broker(place: Path, mounts: list[Path]) -> None:
    """ENOSPC from the kernel: the broker is out, the others go on; it comes back when there is room."""
    paths = [mount / "broker" for mount in mounts]
    with streamlog.open(place / "log", brokers=paths) as cluster:
        cluster.create_topic("t", replication_factor=3)
        put(cluster, b"a")
        leader = log_of(cluster).state.leader
        filler = mounts[leader] / "filler"
        with open(filler, "wb") as file:
            try:
                while True:
                    file.write(bytes(1 << 20))
                    file.flush()
            except OSError:
                pass
        values = [b"%d" % number + bytes(5000) for number in range(200)]
        put(cluster, *values)
        assert cluster.brokers()[leader].state == "failed"
        assert "StorageFull" in cluster.brokers()[leader].reason
        filler.unlink()
        cluster.start_broker(leader)
        assert_equal_replicas(log_of(cluster))
        assert values_of(cluster) == [b"a", *values]
