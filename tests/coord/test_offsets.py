"""`__consumer_offsets`: where groups are kept, the fold, its snapshots, what a cut takes away."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import streamlog
from streamlog import OffsetAndMetadata, TopicPartition
from streamlog._coord.offsets import OffsetsLog
from streamlog._format import names

T0 = TopicPartition("t", 0)


@pytest.mark.parametrize(
    ("group", "partition"),  # org.apache.kafka.common.utils.Utils.abs("…".hashCode()) % 50, by a JVM
    [("", 0), ("a", 47), ("test-group", 12), ("console-consumer-12345", 6), ("polygenelubricants", 0), ("grüße", 23), ("日本語", 43), ("🎉", 11)],
)
def test_a_groups_partition_is_kafkas(group: str, partition: int) -> None:
    assert names.keeper_partition(group, 50) == partition


def offsets_log(cluster: streamlog.Cluster, group: str = "g") -> OffsetsLog:
    return cluster._groups.coordinator(group, 5).offsets


def commit(cluster: streamlog.Cluster, count: int, group: str = "g") -> None:
    with cluster.consumer(group_id=group) as consumer:
        consumer.assign([T0])
        for number in range(count):
            consumer.commit({T0: number})


def test_the_fold_begins_at_the_snapshot(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OffsetsLog, "snapshot_every", 100)
    with streamlog.open(place / "log", offsets_topic_num_partitions=1) as log:
        log.create_topic("t")
        commit(log, 350)
        log.alter_group_offsets("other", {T0: OffsetAndMetadata(5, 0, "ü")})
        assert offsets_log(log).group("g", 5).offsets[(log.topic("t")._topic_id, 0)].offset == 349
        expected = log.group_offsets("g"), log.group_offsets("other")
        path = Path(offsets_log(log)._snapshot_path)
    content = path.read_bytes()
    with streamlog.open(place / "log") as log:
        found = offsets_log(log)
        found._load_snapshot()
        assert found.version >= 300
        assert (log.group_offsets("g"), log.group_offsets("other")) == expected
    for damage in (b"", content[:-1], content[:30] + b"\xff" + content[31:], b"x" * 100):
        path.write_bytes(damage)  # derived: a damaged one is not used
        with streamlog.open(place / "log") as log:
            assert (log.group_offsets("g"), log.group_offsets("other")) == expected
    path.unlink()
    with streamlog.open(place / "log") as log:
        assert (log.group_offsets("g"), log.group_offsets("other")) == expected
        assert streamlog.check(log) == []


def test_a_snapshot_of_what_was_cut_away_is_not_used(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut may take commits that a snapshot has: the snapshot goes with them."""
    monkeypatch.setattr(OffsetsLog, "snapshot_every", 10)
    with streamlog.open(place / "log", offsets_topic_num_partitions=1) as log:
        log.create_topic("t")
        commit(log, 8)
        shutil.copytree(place / "log" / "broker-0", place / "before")
        commit(log, 50)
        assert log.group_offsets("g") == {T0: OffsetAndMetadata(49)}
        snapshot = Path(offsets_log(log)._snapshot_path)
        content = snapshot.read_bytes()
    shutil.rmtree(place / "log" / "run")  # the next boot, with what was on the disk before
    shutil.rmtree(place / "log" / "broker-0")
    shutil.copytree(place / "before", place / "log" / "broker-0")
    snapshot.write_bytes(content)
    with streamlog.open(place / "log") as log:
        assert log.group_offsets("g") == {T0: OffsetAndMetadata(7)}
        commit(log, 60)
        assert log.group_offsets("g") == {T0: OffsetAndMetadata(59)}


def test_h36_who_only_commits_writes_snapshots_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OffsetsLog, "snapshot_every", 50)
    with streamlog.open(place / "log", offsets_topic_num_partitions=1) as log:
        log.create_topic("t")
        commit(log, 500)
        path = Path(offsets_log(log)._snapshot_path)
        assert path.exists()
        fresh = OffsetsLog(offsets_log(log).log)
        fresh._load_snapshot()
        assert fresh.version > 400


def test_processes_see_each_others_commits(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with streamlog.open(log.location) as other:
        for number in range(5):
            log.alter_group_offsets("g", {T0: number})
            assert other.group_offsets("g") == {T0: OffsetAndMetadata(number)}


def test_a_commit_is_all_or_nothing(log: streamlog.Cluster) -> None:
    log.create_topic("t", partitions=3)
    with pytest.raises(streamlog.UnknownTopicOrPartitionError):
        log.alter_group_offsets("g", {("t", 0): 1, ("t", 3): 1})
    assert log.groups() == []


def test_h28_a_committed_offset_beyond_a_cut_goes_on_from_the_divergence(place: Path) -> None:
    """Committed 10 in epoch 0; the cut leaves 4 records, new ones fill 4 to 20: what is new is not skipped."""
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        with log.producer(linger_ms=0) as producer:
            for number in range(4):
                producer.send("t", f"old {number}")
        shutil.copytree(place / "log" / "broker-0" / "t-0", place / "cut")
        with log.producer(linger_ms=0) as producer:
            for number in range(4, 10):
                producer.send("t", f"old {number}")
        with log.consumer("t", group_id="g", auto_offset_reset="earliest") as consumer:
            assert len(consumer.poll()) == 10
        assert log.group_offsets("g") == {T0: OffsetAndMetadata(10, 0)}
    shutil.rmtree(place / "log" / "run")
    shutil.rmtree(place / "log" / "broker-0" / "t-0")
    shutil.copytree(place / "cut", place / "log" / "broker-0" / "t-0")
    with streamlog.open(place / "log") as log:
        with log.producer() as producer:
            for number in range(16):
                producer.send("t", f"new {number}")
        with log.consumer("t", group_id="g", auto_offset_reset="earliest") as consumer:
            assert [record.value for record in consumer.poll()] == [b"new %d" % number for number in range(16)]


def test_h29_a_commit_under_fsync_syncs_what_it_speaks_of(place: Path) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        with log.producer() as producer:
            producer.send("t", b"x")
        partition = log._log(log._home.metadata.topic("t"), 0)
        consumer = log.consumer("t", group_id="g", auto_offset_reset="earliest", durability="fsync")
        consumer.poll()
        from streamlog._log.state import HWM, SYNCED

        assert partition.words[SYNCED] == 0
        consumer.commit()
        assert partition.words[SYNCED] == 1
        log_of_offsets = offsets_log(log).log
        assert log_of_offsets.words[SYNCED] == log_of_offsets.words[HWM]
        consumer.close()


def test_h19_the_first_commit_of_a_cluster_makes_the_topic_outside_inner_locks(place: Path) -> None:
    """Many processes at once: one makes `__consumer_offsets`, all commit.  (Lock order is checked: STREAMLOG_VERIFY=1.)"""
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
    code = (
        "import sys, streamlog\n"
        "with streamlog.open(sys.argv[1]) as log, log.consumer(group_id=sys.argv[2]) as consumer:\n"
        "    consumer.assign([('t', 0)])\n    consumer.commit({('t', 0): int(sys.argv[2])})\n"
    )
    environment = {**os.environ, "STREAMLOG_VERIFY": "1"}
    children = [subprocess.Popen([sys.executable, "-c", code, str(place / "log"), str(n)], env=environment) for n in range(6)]
    assert [child.wait(60) for child in children] == [0] * 6
    with streamlog.open(place / "log") as log:
        assert log.topics(internal=True).count("__consumer_offsets") == 1
        assert {group: log.group_offsets(group)[T0].offset for group in map(str, range(6))} == {str(n): n for n in range(6)}


def test_a_full_disk_refuses_a_commit_and_the_group_goes_on(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.consumer("t", group_id="g", auto_offset_reset="earliest") as consumer:
        consumer.poll()
        found = offsets_log(log)
        original = found.log.append

        def full(*args: object) -> None:
            raise streamlog.StorageFullError("no space left")

        found.log.append = full  # type: ignore[method-assign]
        with pytest.raises(streamlog.StorageFullError):
            consumer.commit({T0: 0})
        found.log.append = original  # type: ignore[method-assign]
        consumer.commit({T0: 0})
        assert consumer.committed(T0) == OffsetAndMetadata(0)


def test_a_reader_of_the_offsets_log_can_be_interrupted(log: streamlog.Cluster) -> None:
    """A signal in the middle of a fold loses no commit."""
    log.create_topic("t")
    commit(log, 2000)
    with streamlog.open(log.location) as other:
        found = offsets_log(other)

        def raising(*_: object) -> None:
            raise KeyboardInterrupt

        previous = signal.signal(signal.SIGALRM, raising)
        try:
            for _ in range(20):
                signal.setitimer(signal.ITIMER_REAL, 0.0005)
                try:
                    found.refresh(5)
                except KeyboardInterrupt:
                    continue
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
        finally:
            signal.signal(signal.SIGALRM, previous)
        assert other.group_offsets("g") == {T0: OffsetAndMetadata(1999)}


def test_check_finds_a_snapshot_that_lies_and_two_owners(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OffsetsLog, "snapshot_every", 10)
    with streamlog.open(place / "log", offsets_topic_num_partitions=1) as log:
        log.create_topic("t", partitions=2)
        commit(log, 12)
        found = offsets_log(log)
        found.refresh(5)
        for group in found._groups.values():
            group.offsets.clear()
        found._save_snapshot(found.version, 0, found._copied())
        consumers = [log.consumer("t", group_id="g") for _ in range(2)]
        for consumer in consumers * 3:
            consumer.poll()
        coordinator = log._groups.coordinator("g", 5)
        group = coordinator.file.load()
        assert group is not None
        everything = {T0: 2, TopicPartition("t", 1): 2}
        broken = group._replace(members={key: member._replace(owned=everything) for key, member in group.members.items()})
        coordinator.change(5, lambda _: (broken, None))
        assert {finding.invariant for finding in streamlog.check(log)} == {"I9", "I10"}
        coordinator.change(5, lambda _: (group, None))
        Path(found._snapshot_path).unlink()
        assert streamlog.check(log) == []
