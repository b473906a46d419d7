"""The limits of one process are its own, and a disk that is full is full: nobody else is blamed, and nothing is dropped."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import streamlog
from conftest import values_of


def child(code: str, *arguments: object, check: bool = True) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert not check or done.returncode == 0, done.stderr
    return done


MANY = """
import resource, sys, os
import streamlog
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))
with streamlog.open(sys.argv[1]) as log, log.producer() as producer:
    for topic in log.topics():
        for partition in log.topic(topic).partitions:
            producer.send(topic, b"1", partition=partition)
    producer.flush()
    consumers = [log.consumer(*log.topics(), auto_offset_reset="earliest") for _ in range(5)]
    for consumer in consumers:
        found = []
        while len(found) < 200:
            found += consumer.poll(timeout_ms=1000)
        assert len(found) == 200, len(found)
    for topic in log.topics():
        for partition in log.topic(topic).partitions:
            producer.send(topic, b"2", partition=partition)
    producer.flush()
    with log.consumer(*log.topics(), group_id="g", auto_offset_reset="earliest") as member:
        member.poll(timeout_ms=1000)
        while sum(log.group_offsets("g").get(streamlog.TopicPartition(t, p), (0,))[0] for t in log.topics() for p in log.topic(t).partitions) < 400:
            member.poll(timeout_ms=100)
            member.commit()
    print(len(os.listdir("/proc/self/fd")))
"""


@pytest.mark.parametrize("limit", [64, 256, 1024])
def test_many_partitions_and_consumers_fit_any_limit_of_descriptors(limit: int, place: Path) -> None:
    """macOS has 256."""
    with streamlog.open(place / "log") as log:
        for number in range(4):
            log.create_topic(f"t{number}", partitions=50)
    done = child(MANY, place / "log", limit)
    assert int(done.stdout) < limit


def test_several_clusters_share_one_bound(place: Path) -> None:
    code = """if True:
        import os, resource, sys, streamlog
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
        logs = [streamlog.open(f"{sys.argv[1]}/{n}") for n in range(4)]
        for log in logs:
            log.create_topic("t", partitions=40)
            with log.producer(linger_ms=0) as producer:
                for partition in range(40):
                    producer.send("t", b"1", partition=partition).result()
        print(len(os.listdir("/proc/self/fd")))
    """
    assert int(child(code, place).stdout) < 200


LIMITED = """if True:
    import resource, sys, time, streamlog
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
    with streamlog.open(sys.argv[1]) as log:
        producer = log.producer(linger_ms=0, delivery_timeout_ms=2000)
        failed = 0
        for number in range(60):
            try:
                producer.send("t", bytes(5000)).result()
            except streamlog.ResourceLimitError as error:
                assert "RLIMIT_FSIZE" in str(error), error
                failed += 1
        producer.close()
        print(failed)
"""


@pytest.mark.parametrize("brokers", [1, 3])
def test_a_limit_of_one_process_fails_no_broker(brokers: int, place: Path) -> None:
    with streamlog.open(place / "log", brokers=brokers) as log:
        log.create_topic("t", replication_factor=brokers)
        with log.producer(linger_ms=0) as producer:
            for _ in range(10):
                producer.send("t", bytes(5000)).result()
            assert int(child(LIMITED, place / "log", 100_000).stdout) > 0
            assert [broker.state for broker in log.brokers()] == ["online"] * brokers
            producer.send("t", b"after").result()
        assert [broker.state for broker in log.brokers()] == ["online"] * brokers
        if brokers > 1:
            assert log.topic("t").describe().partitions[0].leader_epoch == 1
        assert values_of(log)[-1] == b"after"
        assert streamlog.check(log) == []


def test_a_sync_that_could_not_be_begun_fails_nobody(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        replica = log._log(log._refreshed().topic("t"), 0).replica
        with log.producer(linger_ms=0, durability="fsync", retries=0) as producer:

            def none_left() -> None:
                raise streamlog.ResourceLimitError("open: Too many open files")

            monkeypatch.setattr(replica, "_sync_files", none_left)
            with pytest.raises(streamlog.ResourceLimitError):
                producer.send("t", b"1").result()
            monkeypatch.undo()
            assert producer.send("t", b"2").result().offset == 1
        assert streamlog.check(log) == []


FULL = """if True:
    import os, sys, time, streamlog
    log = streamlog.open(sys.argv[1])
    log.create_topic("t", partitions=2)
    producer = log.producer(linger_ms=0, delivery_timeout_ms=60_000)
    producer.send("t", "x", partition=0).result(5)
    hog = open(sys.argv[2] + "/hog", "wb", buffering=0)
    try:
        while True:
            hog.write(bytes(4096))
    except OSError:
        pass
    os.ftruncate(hog.fileno(), os.fstat(hog.fileno()).st_size - 12 * 4096)
    deliveries = [producer.send("t", os.urandom(90_000), partition=0) for _ in range(4)]
    while producer.metrics().record_retry_total < 2:
        time.sleep(0.01)
    waiting = [delivery for delivery in deliveries if not delivery.done()]
    assert waiting and not any(delivery.exception() for delivery in deliveries if delivery.done())
    assert "no space left" in str(waiting[0][0].lane.trouble), waiting[0][0].lane.trouble
    os.ftruncate(hog.fileno(), 0)
    print([delivery.result(30).offset for delivery in deliveries], producer.send("t", "y", partition=0).result(5).offset)
    producer.close()
    log.close()
"""


@pytest.mark.machine
@pytest.mark.parametrize("location", ["log", "memory://"])
def test_a_full_tmpfs_is_full_and_no_failed_disk(
    location: str, tmp_path: Path, in_namespace: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    mount = Path("/dev/shm") if location == "memory://" else tmp_path / "small"
    mount.mkdir(exist_ok=True)
    program = tmp_path / "full.py"
    program.write_text(FULL)
    where = location if location == "memory://" else mount / location
    done = in_namespace("-m", "sh", "-c", f"mount -t tmpfs -o size=4m none {mount} && exec {sys.executable} {program} {where} {mount}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[1, 2, 3, 4] 5"


def test_the_bound_follows_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from streamlog._log import open_files
    from streamlog._os import files

    for limit, bound in ((64, 5), (256, 21), (1024, 85), (1 << 20, 256), (16, 4)):
        monkeypatch.setattr(files, "descriptor_limit", lambda limit=limit: limit)
        assert open_files.bound() == bound
