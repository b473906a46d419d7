"""Whose failure it is: the broker that an error is about fails, no other, and what can go on without it does."""

import errno
import gc
import os
import shutil
import time
from pathlib import Path

import pytest

import streamlog
from conftest import values_of, wait_until
from replica.clusters import WRITES, Disks, brokers, log_of, lose
from streamlog._log import open_files
from streamlog._log.reader import LogReader
from streamlog._replica import blame, checkpoints, directories
from streamlog.testing import open as open_with


def states(log: streamlog.Cluster) -> list[str]:
    return [broker.state for broker in log.brokers()]


@pytest.mark.parametrize("op", ["write", "read"])
@pytest.mark.parametrize("order", [0, 1])
def test_a_path_inside_another_path_blames_nobody(op: str, order: int, place: Path) -> None:
    paths = [place / "data", place / "mnt/data", place / "mnt/other"]
    (place / "mnt").mkdir()
    fs = Disks()
    with open_with(place / "home", fs=fs, brokers=paths) as log:
        log.create_topic("t", replication_factor=3)
        if order:
            log.reassign_partitions({("t", 0): [1, 0, 2]})
        with log.producer(linger_ms=0) as producer:
            producer.send("t", b"1").result()
            fs.fail_when("write", f"{paths[1]}/t-0/*", times=10**9)
            fs.fail_when("read", f"{paths[1]}/*", times=10**9)
            producer.send("t", b"2").result()
            wait_until(lambda: states(log) == ["online", "failed", "online"])
            fs.clear()
        log.start_broker(1)
        assert values_of(log) == [b"1", b"2"]


ACTIONS = {
    "create_topic everywhere": lambda log: log.create_topic("new", partitions=3, replication_factor=3),
    "create_topic": lambda log: log.create_topic("new", partitions=3, replication_factor=2),
    "add_partitions": lambda log: log.topic("t").add_partitions(4),
    "group": lambda log: log.consumer("t", group_id="g", auto_offset_reset="earliest").poll(timeout_ms=100),
    "transaction": lambda log: log.producer(transactional_id="x").init_transactions(),
    "producer id": lambda log: log.producer().send("t", b"2").result(),
    "delete_topic": lambda log: log.delete_topic("t"),
    "maintain": lambda log: log.maintain(),
}


@pytest.mark.parametrize("how", ["gone", "file", "full", "failing", "read-only"])
@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_what_makes_directories_goes_on_without_a_broker_that_cannot(action: str, how: str, place: Path) -> None:
    fs = Disks()
    with brokers(place, 3, fs) as log:
        log.create_topic("t", partitions=1, replication_factor=3)
        with log.producer(linger_ms=0) as producer:
            producer.send("t", b"1").result()
        if how in ("gone", "file"):
            shutil.move(place / "log/broker-0", place / "away")
            if how == "file":
                (place / "log/broker-0").touch()
        else:
            number = {"full": errno.ENOSPC, "failing": errno.EIO, "read-only": errno.EROFS}[how]
            fs.fail(0, number, WRITES)
        for _ in range(2):
            try:
                ACTIONS[action](log)
            except (streamlog.InvalidPartitionsError, streamlog.UnknownTopicOrPartitionError, streamlog.TopicAlreadyExistsError):
                assert _, "only the second time"
        fs.heal()
        if how in ("gone", "file"):
            if how == "file":
                (place / "log/broker-0").unlink()
            elif (place / "log/broker-0").exists():
                shutil.rmtree(place / "log/broker-0")
            shutil.move(place / "away", place / "log/broker-0")
        log._refreshed()
        for broker in log.brokers():
            if broker.state != "online":
                log.start_broker(broker.broker)
        for topic in log.topics(internal=True):
            if topic != "__cluster_metadata":
                for partition in log.topic(topic).describe().partitions:
                    assert partition.leader >= 0


def test_one_broker_whose_directory_is_gone_is_an_error_of_ours(place: Path) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        shutil.move(place / "log/broker-0", place / "away")
        with pytest.raises(streamlog.StreamlogError):
            log.create_topic("u")
        shutil.move(place / "away", place / "log/broker-0")


def test_a_partition_whose_directory_is_gone_is_an_error_of_ours_and_holds_up_no_other(place: Path) -> None:
    with streamlog.open(place / "log") as log:
        for topic in ("a", "b"):
            log.create_topic(topic)
        with log.producer(transactional_id="x") as producer:
            producer.init_transactions()
            producer.begin_transaction()
            for topic in ("a", "b"):
                producer.send(topic, b"1").result()
            shutil.rmtree(place / "log/broker-0/a-0")
            for action in (log.topic("a").describe, log.maintain, log.hanging_transactions, log.topic("a").end_offsets):
                try:
                    action()
                except streamlog.DiskFailedError as error:
                    assert "a-0 is gone" in str(error)
            with pytest.raises(streamlog.DiskFailedError):
                log.topic("a").describe()
            assert log.topic("b").describe().partitions[0].segments == 1
            log.delete_topic("a")
            log.maintain()


BROKEN_BROKERS = {
    "a file": lambda broker: (shutil.rmtree(broker), broker.touch()),
    "a link to nowhere": lambda broker: (shutil.rmtree(broker), broker.symlink_to("/nowhere")),
    "empty properties": lambda broker: (broker / "meta.properties").write_bytes(b""),
    "properties that rotted": lambda broker: (broker / "meta.properties").write_bytes(b"\x00\xff{"),
    "nothing": shutil.rmtree,
}


@pytest.mark.parametrize("how", sorted(BROKEN_BROKERS))
@pytest.mark.parametrize("broker", [0, 2])
def test_a_broker_that_is_no_broker_any_more_keeps_no_cluster_from_opening(broker: int, how: str, place: Path) -> None:
    with brokers(place) as log:
        log.create_topic("t", replication_factor=3)
        with log.producer() as producer:
            producer.send("t", b"1").result()
    BROKEN_BROKERS[how](place / f"log/broker-{broker}")
    with streamlog.open(place / "log") as log:
        assert values_of(log) == [b"1"]
        assert [each.state for each in log.brokers()].count("online") == 2
        with pytest.raises(streamlog.StreamlogError):
            log.start_broker(broker)
    assert streamlog.check(place / "log") == []


@pytest.mark.parametrize("how", sorted(BROKEN_BROKERS))
def test_of_one_broker_it_is_a_clear_error(how: str, place: Path) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
    BROKEN_BROKERS[how](place / "log/broker-0")
    with pytest.raises(streamlog.NotAClusterError, match="broker-0"):
        streamlog.open(place / "log")


def test_a_commit_goes_on_though_a_directory_vanishes_under_its_fold(place: Path) -> None:
    with brokers(place) as log:
        log.create_topic("t", replication_factor=3)
        with log.producer(transactional_id="x") as producer, streamlog.open(place / "log") as other:
            producer.init_transactions()
            for number in range(3):
                with producer.transaction():
                    producer.send("t", b"%d" % number)
                with other.producer(transactional_id=f"other{number}") as second, second.transaction():
                    second.send("t", b"x")
            leader = log_of(log, "__transaction_state").state.leader
            with producer.transaction():
                producer.send("t", b"last").result()
                lose(place, leader)
            assert b"last" in values_of(log)
            log.stop_broker(leader) if log.brokers()[leader].state == "online" else None
            log.repair_broker(leader)


def test_waiting_for_a_leader_ends(place: Path) -> None:
    with brokers(place, transaction_state_log_num_partitions=1) as log:
        log.create_topic("t", replication_factor=3)
        with log.producer(transactional_id="x") as producer:
            producer.init_transactions()
        state = log_of(log, "__transaction_state")
        home = log._home
        from streamlog._replica import election

        nobody = election.changed(state.state, leader=-1, in_sync=(), eligible=())
        home.controller._decide(lambda: {state._key: nobody}, 10.0)
        producer = log.producer(transactional_id="y")
        began = time.monotonic()
        with pytest.raises(streamlog.NotLeaderOrFollowerError):
            producer.init_transactions(timeout=1)
        assert time.monotonic() - began < 20
        assert {finding.invariant for finding in streamlog.check(log)} == {"I16"}
        assert any("has no leader" in finding.message for finding in streamlog.check(log))
        log.elect_leaders(unclean=True)
        producer.init_transactions()
        producer.close()
        for broker in range(3):
            home.controller.bring_in(state, broker, 10.0)


def test_a_checkpoint_that_another_process_writes_is_left_for_later(place: Path) -> None:
    with brokers(place) as log, streamlog.open(place / "log") as other:
        log.create_topic("t", replication_factor=3)
        with log.producer(linger_ms=0) as producer:
            producer.send("t", b"1").result()

        for broker in range(3):
            lock = checkpoints._lock(other._home, broker)
            assert lock.file.try_exclusive(lock.index)
            log._home._next_save = log._home.next_tick = 0.0
            log._home.tick()
            lock.file.unlock(lock.index)


def test_start_broker_waits_for_no_other_broker(place: Path) -> None:
    with brokers(place) as log:
        with log.consumer(group_id="g") as consumer:
            consumer.subscribe(pattern="t")
            consumer.poll()
        log.stop_broker(2)
        log.timeout = 5.0
        began = time.monotonic()
        log.start_broker(2)
        log.start_broker(1)
        assert time.monotonic() - began < 20


def test_a_wait_for_a_lock_is_no_fault_of_a_disk() -> None:
    def fails(error: Exception) -> None:
        raise error

    for error, owner in ((streamlog.StreamlogTimeoutError("busy"), None), (streamlog.DiskFailedError("EIO"), 2), (FileNotFoundError(), 2)):
        with pytest.raises(type(error)):
            blame.on(2, fails, error)
        assert blame.owner_of(error) == owner


def test_damage_that_every_replica_has_is_told_at_once_also_inside_a_lock(place: Path) -> None:
    with brokers(place, 2) as log:
        log.create_topic("t", replication_factor=2)
        with log.producer(durability="fsync") as producer:
            producer.send("t", b"1").result()
        with log.consumer("t", group_id="g", auto_offset_reset="earliest") as consumer:
            consumer.poll(timeout_ms=1000)
            consumer.commit()
    offsets = [path for path in (place / "log/broker-0").glob("__consumer_offsets-*/*.log") if path.read_bytes()[64:68] != bytes(4)]
    for broker in range(2):
        path = place / f"log/broker-{broker}/{offsets[0].parent.name}/{offsets[0].name}"
        data = bytearray(path.read_bytes())
        data[64 + 90] ^= 0xFF
        path.write_bytes(data)
    with streamlog.open(place / "log") as log, log.consumer(group_id="g", default_api_timeout_ms=3000) as consumer:
        consumer.assign([("t", 0)])
        with pytest.raises(streamlog.CorruptRecordError):
            consumer.commit({("t", 0): 1})


@pytest.mark.parametrize("count", [1, 3])
def test_a_cluster_that_is_closed_leaves_nothing_open(count: int, place: Path) -> None:
    before = set(open_files._open)
    with brokers(place, count) as log:
        log.create_topic("t", replication_factor=count)
        with log.producer() as producer:
            producer.send("t", b"1").result()
        assert set(open_files._open) - before
    gc.collect()
    assert set(open_files._open) <= before


def test_a_broker_that_goes_while_its_replica_is_made_anew_fails(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create, gone = directories.partition_log.create, place / "log/broker-1"

    def goes_first(fs, directory: str, *arguments) -> None:
        if directory.startswith(f"{gone}/") and gone.exists():
            shutil.rmtree(gone)
        create(fs, directory, *arguments)

    with brokers(place) as log:
        log.create_topic("t", replication_factor=3)
        with log.producer(linger_ms=0) as producer:
            producer.send("t", b"1").result()
            shutil.rmtree(gone / "t-0")
            monkeypatch.setattr(directories.partition_log, "create", goes_first)
            wait_until(lambda: (producer.send("t", b"2").result(), states(log))[1] == ["online", "failed", "online"])
            producer.send("t", b"3").result()
        with pytest.raises(streamlog.StreamlogError):
            log.start_broker(1)
        assert states(log) == ["online", "failed", "online"]
        assert (values_of(log)[0], set(values_of(log)[1:-1]), values_of(log)[-1]) == (b"1", {b"2"}, b"3")


def test_a_replica_cannot_be_made_anew_where_its_broker_is_gone(place: Path) -> None:
    with brokers(place) as log:
        log.create_topic("t", replication_factor=3)
        key = log._refreshed().topic("t").topic_id, 0
        log.stop_broker(1)
        shutil.rmtree(place / "log/broker-1")
        with pytest.raises(streamlog.DiskFailedError, match="cannot be made") as raised:
            directories.make_anew(log._home, "t", key, 1, -1, lambda: None, 10.0)
        assert blame.owner_of(raised.value) == 1


def test_a_reader_whose_files_are_gone_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        reader = LogReader(log._home.log(log._refreshed().topic("t"), 0, 1.0), 0)
        path = str(place / "log/broker-0/t-0/x.log")
        monkeypatch.setattr(LogReader, "_next", lambda _: os.stat(path))
        with pytest.raises(streamlog.DiskFailedError, match="x.log is gone; t-0"):
            reader.next()
