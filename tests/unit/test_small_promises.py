"""Small things that did not hold."""

import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import streamlog
from conftest import values_of
from streamlog import OffsetAndMetadata, TopicPartition
from streamlog._coord import group as groups
from streamlog._os import process
from streamlog.assignors import RangeAssignor


def test_a_wait_for_the_metadata_names_the_holder(log: streamlog.Cluster) -> None:
    with streamlog.open(log.location) as other:
        metadata = log._home.metadata
        seen: list[str] = []

        def wait() -> None:
            with pytest.raises(streamlog.StreamlogTimeoutError) as caught:
                other._home.metadata.write(0.05, list)
            seen.append(str(caught.value))

        def decide() -> list[list[object]]:
            thread = threading.Thread(target=wait)
            thread.start()
            thread.join()
            return []

        metadata.write(10.0, decide)
        assert f"metadata lock of the cluster, held by process {os.getpid()}" in seen[0]
    assert process.of_token(process.token()) == (os.getpid(), True)


def test_looking_at_transactions_and_maintaining_go_on_while_topics_go(place: Path) -> None:
    with streamlog.open(place / "log") as log, streamlog.open(place / "log") as other:
        done = threading.Event()

        def churn() -> None:
            for number in range(40):
                other.create_topic(f"t{number}", partitions=2)
                with other.producer(transactional_id=f"x{number % 3}") as producer, producer.transaction():
                    producer.send(f"t{number}", "1")
                with other.consumer(f"t{number}", group_id="g", auto_offset_reset="earliest") as consumer:
                    consumer.poll(timeout_ms=50)
                other.delete_topic(f"t{number}")
            done.set()

        thread = threading.Thread(target=churn)
        thread.start()
        while not done.is_set():
            log.maintain()
            log.transactions()
            log.hanging_transactions()
            log.groups()
            try:
                log.describe_group("g")
            except streamlog.GroupIdNotFoundError:
                pass
        thread.join()


def test_a_static_member_that_comes_back_while_a_target_is_computed_is_no_stranger(log: streamlog.Cluster) -> None:
    """It has the same epoch, and another member id."""
    log.create_topic("t", partitions=2)
    config = {"group_id": "g", "group_instance_id": "a", "auto_offset_reset": "earliest"}
    came: list[streamlog.Consumer] = []

    class Slow(RangeAssignor):
        name = "slow"

        def assign(self, members, partitions):
            if not came:
                came.append(log.consumer("t", partition_assignment_strategy=self, **config))
                came[0].poll()
            return super().assign(members, partitions)

    with log.consumer("t", partition_assignment_strategy=Slow(), **config) as first:
        with pytest.raises(streamlog.FencedInstanceIdError):
            for _ in range(3):
                first.poll(timeout_ms=50)
    deadline = time.monotonic() + 20
    while len(came[0].assignment()) < 2:
        came[0].poll(timeout_ms=50)
        assert time.monotonic() < deadline
    came[0].close()


def test_an_assignor_that_names_a_stranger_is_told_so(log: streamlog.Cluster) -> None:
    log.create_topic("t")

    class Wrong(RangeAssignor):
        name = "wrong"

        def assign(self, members, partitions):
            return {"nobody": [TopicPartition("t", 0)]}

    with log.consumer("t", group_id="g", partition_assignment_strategy=Wrong()) as consumer:
        for _ in range(2):
            with pytest.raises(streamlog.InvalidStateError, match="who is no member"):
                deadline = time.monotonic() + 20
                while time.monotonic() < deadline:
                    consumer.poll(timeout_ms=200)


def test_every_topic_that_is_listed_can_be_had(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.consumer("t", group_id="g") as consumer:
        consumer.poll()
    with log.producer(transactional_id="x") as producer:
        producer.init_transactions()
    assert log.topics(internal=True) == ["__consumer_offsets", "__transaction_state", "t"]
    for name in log.topics(internal=True):
        assert log.topic(name).describe().partitions


def test_nothing_stays_mapped_after_close(place: Path) -> None:
    def mapped() -> list[str]:
        return [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if str(place) in line]

    gc.collect()
    gc.disable()
    try:
        log = streamlog.open(place / "log")
        log.create_topic("t", partitions=3)
        with log.producer() as producer:
            producer.send("t", "1")
        assert values_of(log) == [b"1"]
        assert mapped()
        del producer
        log.close()
        assert mapped() == [], "without the collector"
    finally:
        gc.enable()


def test_deleted_topics_and_groups_leave_no_files_in_run(place: Path) -> None:
    for _ in range(2):
        with streamlog.open(place / "log") as log:
            for number in range(5):
                log.create_topic(f"t{number}")
                with log.producer() as producer:
                    producer.send(f"t{number}", "1")
                with log.consumer(f"t{number}", group_id=f"g{number}", auto_offset_reset="earliest") as consumer:
                    consumer.poll(timeout_ms=1000)
                log.delete_group(f"g{number}")
                log.delete_topic(f"t{number}")
            log.create_topic("kept", exist_ok=True)
            with log.consumer("kept", group_id="kept") as consumer:
                consumer.poll(timeout_ms=100)
    found = sorted(path.suffix for path in (place / "log/run").iterdir() if path.suffix in (".group", ".leaders") or len(path.name) > 30)
    assert found == [".group", ".state", ".state", ".state"], "the metadata, the offsets, the topic"
    with streamlog.open(place / "log") as log:
        assert [listed.group_id for listed in log.groups()] == ["kept"]
        assert streamlog.check(log) == []


def test_metadata_of_an_offset_may_be_none(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    log.alter_group_offsets("g", {("t", 0): OffsetAndMetadata(0, None, None)})
    assert log.group_offsets("g") == {TopicPartition("t", 0): OffsetAndMetadata(0, None, "")}


def test_a_home_that_was_closed_says_so_and_not_that_its_disk_failed(place: Path) -> None:
    log = streamlog.open(place / "log")
    home = log._home
    log.close()
    home.next_tick = 0.0
    with pytest.raises(streamlog.ClosedError, match="closed"):
        home.tick()


@pytest.mark.parametrize("how", ["poll", "iterate", "group"])
def test_a_cluster_is_closed_though_a_thread_polls(how: str, place: Path) -> None:
    log = streamlog.open(place / "log")
    log.create_topic("t")
    consumer = log.consumer("t", **({"group_id": "g"} if how == "group" else {}))
    ready, ended = threading.Event(), []

    def read() -> None:
        ready.set()
        try:
            if how == "iterate":
                for _ in consumer:
                    pass
                ended.append("end")
            else:
                while True:
                    consumer.poll(timeout_ms=60_000)
        except streamlog.ClosedError:
            ended.append("closed")

    thread = threading.Thread(target=read)
    thread.start()
    ready.wait()
    while not consumer._busy:
        time.sleep(0.001)
    log.close()
    thread.join(10)
    assert not thread.is_alive()
    assert ended in (["closed"], ["end"])


def test_what_handlers_send_at_exit_is_written(place: Path) -> None:
    code = """if True:
        import atexit, logging, sys
        late = []
        atexit.register(lambda: late and late[0].send("t", "from an earlier hook"))
        import streamlog
        log = streamlog.open(sys.argv[1])
        producer = log.producer(linger_ms=60_000)
        late.append(producer)
        class Handler(logging.Handler):
            def emit(self, record):
                producer.send("t", record.getMessage())
            def close(self):
                producer.send("t", "from logging.shutdown")
                super().close()
        logging.getLogger("app").addHandler(Handler())
        logging.getLogger("app").error("while it ran")
    """
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        done = subprocess.run([sys.executable, "-c", code, place / "log"], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert sorted(values_of(log)) == [b"from an earlier hook", b"from logging.shutdown", b"while it ran"]


def test_the_initial_delay_is_extended_once_for_each_time_that_it_has_run() -> None:
    """Kafka's InitialDelayedJoin."""
    from coord.test_group_table import member

    group = groups.Group("g")
    group = groups.apply(group, groups.Join(member("a")._replace(max_poll_interval_ms=300_000), 1000, 3000))
    assert group.assign_at_ms == 4000
    for name, now in (("b", 1500), ("c", 2000), ("d", 3900)):
        group = groups.apply(group, groups.Join(member(name), now, 3000))
        assert group.assign_at_ms == 7000
    group = groups.apply(group, groups.Join(member("e"), 4100, 3000))
    assert group.assign_at_ms == 10_000
