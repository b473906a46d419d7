"""Bytes that rot on one of several brokers: another replica has them, of users' topics and of the metadata."""

import os
from pathlib import Path

import pytest

import streamlog
from log.damaged import flip
from replica.clusters import brokers
from streamlog._os.locks import under
from streamlog._replica.again import NeedsControllerError

METADATA = "__cluster_metadata"


def rot(directory: Path, where: str) -> None:
    """The headers of a log's segments rot, or the first batch of each, or the last one."""
    for path in directory.glob("*.log"):
        data = path.read_bytes().rstrip(b"\0")
        if where == "header" or len(data) > 160:
            flip(path, {"header": 30, "first batch": 64 + 40, "last batch": len(data) - 20}[where])


def copies(place: Path) -> list[Path]:
    """The directories that have a copy of the metadata."""
    return sorted({path.parent for path in (place / "log").glob(f"**/{METADATA}-0/*.log")})


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("where", ["header", "first batch", "last batch"])
@pytest.mark.parametrize("topics", ["t", METADATA, "all"])
@pytest.mark.parametrize("order", ["rots first", "is written first"])
def test_who_reads_meets_no_rot_that_another_broker_can_mend(order: str, topics: str, where: str, count: int, place: Path) -> None:
    """The log that leads rots, the metadata copy that leads, or both; and another process writes to both."""
    with brokers(place, count) as cluster:
        cluster.create_topic("t", replication_factor=count, segment_bytes=4096)
        with cluster.producer(linger_ms=0) as producer:
            for number in range(50):
                producer.send("t", b"%d" % number).result()
        consumer = cluster.consumer("t", auto_offset_reset="earliest", max_poll_records=10, fetch_max_bytes=400)
        values = [record.value for record in consumer.poll()]
        leader = place / f"log/broker-{cluster.topic('t').describe().partitions[0].leader}"

        def writes() -> None:
            pid = os.fork()
            if pid == 0:
                with streamlog.open(place / "log") as log:
                    log.create_topic("u", replication_factor=count)
                    with log.producer(linger_ms=0) as producer:
                        producer.send("t", b"50").result(20)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

        def rots() -> None:
            for directory in leader.glob("*-0" if topics == "all" else f"{topics}-0"):
                rot(directory, where)

        for step in (rots, writes) if order == "rots first" else (writes, rots):
            step()
        while len(values) < 51:
            found = consumer.poll(timeout_ms=1000)
            assert found
            values += [record.value for record in found]
        assert values == [b"%d" % number for number in range(51)]
        consumer.close()
        cluster.repair()
        assert streamlog.check(cluster) == []
        assert [each.state for each in cluster.brokers()] == ["online"] * count


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("where", ["header", "first batch", "last batch"])
@pytest.mark.parametrize("which", range(3))
def test_a_scrub_mends_copies_of_the_metadata(which: int, where: str, count: int, place: Path) -> None:
    """Each copy, that of the home beside two brokers too; whoever knew the topics knows them after it."""
    with brokers(place, count) as cluster:
        for number in range(5):
            cluster.create_topic(f"t{number}", replication_factor=2)
        rot(copies(place)[which], where)
        assert {finding.path.startswith(str(copies(place)[which])) for finding in streamlog.check(cluster)} == {True}
        repaired = cluster.repair()
        assert [name.startswith(f"{METADATA}-0 ") for name in repaired] in ([True], [])  # [] where the check had it mended: another one led
        assert streamlog.check(cluster) == []
        assert cluster.repair() == {}
        cluster.create_topic("t5", replication_factor=2)
        for other in set(copies(place)) - {copies(place)[which]}:
            rot(other, "header")  # what was mended can lead
            break
        assert cluster.repair() != {}
    with brokers(place, count) as cluster:
        assert cluster.topics() == [f"t{number}" for number in range(6)]
        assert streamlog.check(cluster) == []


def test_a_scrub_says_where_no_copy_of_the_metadata_is_sound(place: Path) -> None:
    with brokers(place, 3) as cluster:
        cluster.create_topic("t", replication_factor=3)
        sizes = []
        for directory in copies(place):
            rot(directory, "first batch")
            sizes.append([path.stat().st_size for path in directory.glob("*.log")])
        with pytest.raises(streamlog.CorruptRecordError):
            cluster.repair()
        assert sizes == [[path.stat().st_size for path in directory.glob("*.log")] for directory in copies(place)], "nothing is cut"
        for directory in copies(place):
            rot(directory, "first batch")  # whole again
        assert streamlog.check(cluster) == []


def test_metadata_that_rot_under_a_lock_are_read_from_another_copy(place: Path) -> None:
    with brokers(place, 3) as cluster, brokers(place, 3) as other:
        home = cluster._home

        def unread() -> None:
            other.create_topic(f"t{len(other.topics())}", replication_factor=3)
            home.metadata._reader = None
            rot(Path(home.quorum.replica.directory), "header")

        unread()
        leads = home.quorum.replica
        under(home.metadata._lock, 10.0, home.metadata.refresh, 10.0)
        assert home.quorum.replica is not leads
        cluster.repair()
        assert streamlog.check(cluster) == []
        cluster.create_topic("mine", replication_factor=3)
        lock = home.replicated(cluster._refreshed().topic("mine"), 0, 10.0).on(0).lock
        unread()
        with pytest.raises(NeedsControllerError) as caught:
            under(lock, 10.0, home.metadata.refresh, 10.0)
        assert caught.value.settle()
        assert cluster.topics() == ["mine", "t0", "t2"]
        cluster.repair()
