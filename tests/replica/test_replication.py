"""Leaders, followers, high watermarks and in-sync sets, and failures that are real."""

import errno
import os
import shutil
import time
from pathlib import Path

import pytest

import streamlog
from conftest import values_of
from replica.clusters import WRITES, Disks, assert_equal_replicas, brokers, log_of, lose, records_on, settle
from streamlog import TopicPartition
from streamlog._log.state import ALIGNED, END, HWM


def put(cluster: streamlog.Cluster, *values: bytes, **config: object) -> list[int]:
    with cluster.producer(linger_ms=0, **config) as producer:
        return [producer.send("t", value, partition=0).result(10).offset for value in values]


# ---- replicas


def test_what_is_acknowledged_by_all_is_in_all_logs(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        assert put(cluster, b"a", b"b", b"c") == [0, 1, 2]
        log = log_of(cluster)
        assert [log.on(broker).words[END] for broker in range(3)] == [3, 3, 3]
        assert log.high_watermark == 3
        assert_equal_replicas(log)


def test_replicas_and_leaders_are_spread_evenly(place: Path) -> None:
    with brokers(place, 4) as cluster:
        cluster.create_topic("a", partitions=8, replication_factor=3)
        for number in range(4):
            cluster.create_topic(f"one{number}", replication_factor=2)
        found = cluster.brokers()
        assert [each.leaders for each in found] == [3, 3, 3, 3]
        assert [each.replicas for each in found] == [8, 8, 8, 8]
        assert all(len(set(partition.replicas)) == 3 for partition in cluster.topic("a").describe().partitions)


def test_internal_topics_follow_the_number_of_brokers_up_to_three(place: Path) -> None:
    for count, wanted in ((2, 2), (4, 3)):
        with brokers(place / str(count), count) as cluster:
            cluster.create_topic("t", replication_factor=2)
            put(cluster, b"a")
            with cluster.consumer("t", group_id="g", auto_offset_reset="earliest") as consumer:
                consumer.poll()
            assert {len(each.replicas) for each in cluster.topic("__consumer_offsets").describe().partitions} == {wanted}


def test_a_record_acknowledged_by_the_leader_alone_is_shown_once_all_have_it(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        log = log_of(cluster)
        cluster._home.fetcher.stop()  # nobody copies by himself
        with cluster.producer(linger_ms=0, acks=1) as producer:
            assert producer.send("t", b"a").result(10).offset == 0
            assert (log.high_watermark, log.debt()) == (0, 1)
            assert values_of(cluster) == []
            with cluster.consumer("t", auto_offset_reset="earliest") as consumer:
                assert [record.value for record in consumer.poll(timeout_ms=2000)] == [b"a"], "a reader that waits pays (H42)"
            producer.send("t", b"b").result(10)
        assert log.debt() == 0, "who closes pays"


def test_nothing_is_owed_for_long(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        with cluster.producer(linger_ms=0, acks=1) as producer:
            producer.send("t", b"a").result(10)
            log, until = log_of(cluster), time.monotonic() + 5
            while log.debt() and time.monotonic() < until:
                time.sleep(0.001)
            assert log.high_watermark == 1


def test_too_few_in_sync_replicas_refuse_before_anything_is_written(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3, min_insync_replicas=3)
        put(cluster, b"a")
        cluster.stop_broker(2)
        log = log_of(cluster)
        with cluster.producer(linger_ms=0, retries=1, retry_backoff_ms=1) as producer:
            with pytest.raises(streamlog.NotEnoughReplicasError, match="min_insync"):
                producer.send("t", b"b").result(10)
        assert [log.on(broker).words[END] for broker in range(3)] == [1, 1, 1]
        with cluster.producer(linger_ms=0, acks=1) as producer:
            producer.send("t", b"c").result(10)  # acks=1 does not ask
        assert log.high_watermark == 1, "the high watermark does not move below min_insync_replicas (KAFKA-15583)"
        cluster.start_broker(2)
        assert put(cluster, b"d") == [2]
        assert values_of(cluster) == [b"a", b"c", b"d"]


def test_fewer_replicas_after_the_append(place: Path) -> None:
    disks = Disks()
    with brokers(place, disks=disks) as cluster:
        cluster.create_topic("t", replication_factor=3, min_insync_replicas=3)
        put(cluster, b"a")
        follower = log_of(cluster).state.replicas[2]
        disks.fail(follower)
        with cluster.producer(linger_ms=0, retries=1, retry_backoff_ms=1) as producer:
            with pytest.raises((streamlog.NotEnoughReplicasAfterAppendError, streamlog.NotEnoughReplicasError)):
                producer.send("t", b"b").result(10)
        disks.heal()
        cluster.start_broker(follower)
        assert put(cluster, b"c") == [2]
        assert values_of(cluster) == [b"a", b"b", b"c"], "it was in the leader's log, and came to count"


def test_readers_see_nothing_above_the_high_watermark(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        put(cluster, b"a")
        log = log_of(cluster)
        cluster._home.fetcher.stop()
        with cluster.producer(linger_ms=0, acks=1) as producer:
            producer.send("t", b"b").result(10)
            topic = cluster.topic("t")
            assert topic.end_offsets() == {0: 1}
            assert log.on(log.state.leader).words[END] == 2


def test_the_checkpoint_remembers_the_high_watermark(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        put(cluster, b"a", b"b")
    for broker in range(3):
        lines = (place / "log" / f"broker-{broker}" / "replication-offset-checkpoint").read_text().splitlines()
        assert lines[2].endswith(" 0 2")


# ---- failures


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
def test_a_leader_whose_disk_fails_loses_nothing(place: Path, number: int) -> None:
    disks = Disks()
    with brokers(place, disks=disks) as cluster:
        cluster.create_topic("t", replication_factor=3)
        with cluster.producer(linger_ms=0) as producer:
            sent = [producer.send("t", b"%d" % n).result(10).offset for n in range(10)]
            leader = log_of(cluster).state.leader
            disks.fail(leader, number, WRITES)
            sent += [producer.send("t", b"%d" % n).result(10).offset for n in range(10, 20)]
        assert sent == list(range(20))
        state = log_of(cluster).state
        assert state.leader != leader
        assert leader not in state.in_sync
        assert cluster.brokers()[leader].state == "failed"
        assert values_of(cluster) == [b"%d" % n for n in range(20)]
        disks.heal()
        cluster.start_broker(leader)
        assert cluster.brokers()[leader].state == "online"
        assert_equal_replicas(log_of(cluster))
        assert log_of(cluster).state.in_sync == (0, 1, 2)


def test_a_follower_whose_disk_fails_holds_nobody_up(place: Path) -> None:
    disks = Disks()
    with brokers(place, disks=disks) as cluster:
        cluster.create_topic("t", replication_factor=3)
        put(cluster, b"a")
        follower = log_of(cluster).state.replicas[1]
        disks.fail(follower)
        assert put(cluster, b"b", b"c") == [1, 2]
        assert follower not in log_of(cluster).state.in_sync
        disks.heal()
        time.sleep(0.15)
        cluster._home.controller.look_after()  # the probe finds that it works again
        assert_equal_replicas(log_of(cluster))


def test_the_last_broker_on_a_full_disk_is_a_full_disk(place: Path) -> None:
    disks = Disks()
    with brokers(place, disks=disks) as cluster:
        cluster.create_topic("t", replication_factor=3)
        put(cluster, b"a")
        for broker in range(3):
            disks.fail(broker, errno.ENOSPC, ("write", "create", "allocate"))
        with cluster.producer(linger_ms=0, retries=1, retry_backoff_ms=1) as producer, pytest.raises(streamlog.StorageFullError):
            producer.send("t", b"b").result(10)
        disks.heal()
        assert {each.state for each in cluster.brokers()} == {"online"}
        assert put(cluster, b"c") == [1]


def test_a_directory_that_is_deleted_under_our_feet(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        put(cluster, b"a", b"b")
        leader = log_of(cluster).state.leader
        lose(place, leader)
        cluster._home.next_tick = 0
        assert put(cluster, b"c") == [2]
        assert cluster.brokers()[leader].state == "failed"
        assert values_of(cluster) == [b"a", b"b", b"c"]
        with pytest.raises(streamlog.NotAClusterError):
            cluster.start_broker(leader)
        cluster.repair_broker(leader)
        assert_equal_replicas(log_of(cluster))
        assert log_of(cluster).state.in_sync == (0, 1, 2)


def test_a_directory_that_is_emptied_under_our_feet(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        put(cluster, b"a", b"b")
        leader = log_of(cluster).state.leader
        for path in (place / "log" / f"broker-{leader}").iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        cluster._home.next_tick = 0
        assert put(cluster, b"c") == [2]
        cluster.repair_broker(leader)
        assert_equal_replicas(log_of(cluster))


def test_a_broker_of_another_cluster_is_refused(place: Path) -> None:
    with brokers(place / "other") as other:
        other.create_topic("t", replication_factor=3)
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        put(cluster, b"a")
        leader = log_of(cluster).state.leader
        lose(place, leader)
        shutil.copytree(place / "other" / "log" / f"broker-{leader}", place / "log" / f"broker-{leader}")
        cluster._home.next_tick = 0
        assert put(cluster, b"b") == [1]
        for call in (cluster.start_broker, cluster.repair_broker):
            with pytest.raises(streamlog.NotAClusterError, match="belongs to cluster"):
                call(leader)


def test_a_broker_that_is_not_there_when_a_cluster_is_opened_is_out(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", partitions=3, replication_factor=3)
        put(cluster, b"a")
    os.rename(place / "log" / "broker-1", place / "away")
    with brokers(place) as cluster:
        assert [each.state for each in cluster.brokers()] == ["online", "failed", "online"]
        assert put(cluster, b"b") == [1]
        os.rename(place / "away", place / "log" / "broker-1")
        cluster.start_broker(1)
        assert_equal_replicas(log_of(cluster))


def test_rot_in_the_leader_is_repaired_from_a_follower(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        put(cluster, *(b"%d" % n for n in range(20)))
        log = log_of(cluster)
        leader = log.state.leader
        path = Path(log.on(leader).directory) / f"{0:020}.log"
        data = bytearray(path.read_bytes())
        at = 64 + 5 * ((log.on(leader).words[12 + 1] - 64) // 20) + 40
        data[at] ^= 1
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(data[at : at + 1])
        assert values_of(cluster) == [b"%d" % n for n in range(20)], "a reader goes on at another replica"
        assert log.state.leader != leader
        settle(log)
        assert log.state.in_sync == (0, 1, 2)
        assert_equal_replicas(log)


def test_rot_in_a_follower_is_found_and_repaired(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        put(cluster, *(b"%d" % n for n in range(20)))
        log = log_of(cluster)
        follower = log.state.replicas[1]
        with open(Path(log.on(follower).directory) / f"{0:020}.log", "r+b") as file:
            file.seek(700)
            byte = file.read(1)
            file.seek(700)
            file.write(bytes([byte[0] ^ 4]))
        found = cluster.repair()
        assert list(found) == [f"t-0 on broker {follower}"]
        assert_equal_replicas(log)
        assert cluster.repair() == {}


def test_rot_in_the_only_replica_is_told(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=1)
        put(cluster, b"a", b"b")
        log = log_of(cluster)
        path = Path(log.on(log.state.leader).directory) / f"{0:020}.log"
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.write_bytes(data)
        with pytest.raises(streamlog.CorruptRecordError):
            values_of(cluster)
        path.write_bytes(bytes(data[:100]) + bytes([data[100] ^ 1]) + bytes(data[101:]))


# ---- stop and start, elections


def test_a_broker_that_is_stopped_hands_over_first(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", partitions=3, replication_factor=3)
        put(cluster, b"a")
        for broker in (0, 1):
            cluster.stop_broker(broker)
            assert all(each.leader not in (-1, broker) for each in cluster.topic("t").describe().partitions)
            assert put(cluster, b"b%d" % broker) == [1 + broker]
            cluster.start_broker(broker)
        assert cluster.elect_leaders() == {TopicPartition("t", n): log_of(cluster, "t", n).state.replicas[0] for n in range(3)}
        assert_equal_replicas(log_of(cluster))


def test_without_a_leader_writing_waits_and_reading_goes_on(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=1)
        put(cluster, b"a")
        (broker,) = log_of(cluster).state.replicas
        cluster.stop_broker(broker)
        assert cluster.topic("t").describe().partitions[0].leader == -1
        with cluster.producer(linger_ms=0, delivery_timeout_ms=300, retry_backoff_ms=10) as producer:
            with pytest.raises(streamlog.NotLeaderOrFollowerError, match=f"broker {broker}: stopped"):
                producer.send("t", b"b").result(10)
        assert values_of(cluster) == [b"a"]
        cluster.start_broker(broker)
        assert put(cluster, b"c") == [1]


def test_the_last_of_a_majority_cannot_be_stopped(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.stop_broker(0)
        with pytest.raises(streamlog.InvalidStateError, match=r"while \[0\] are out"):
            cluster.stop_broker(1)
        cluster.start_broker(0)
        cluster.stop_broker(1)
        cluster.start_broker(1)


def test_an_eligible_replica_leads_where_no_member_lives(place: Path) -> None:
    with brokers(place, 7) as cluster:
        cluster.create_topic("t", replication_factor=3, min_insync_replicas=2)
        put(cluster, b"a")
        first, second, third = log_of(cluster).state.replicas
        cluster.stop_broker(first)
        cluster.stop_broker(second)  # fewer than two: it stays eligible
        state = log_of(cluster).state
        assert (state.in_sync, state.eligible) == ((third,), (second,))
        cluster.stop_broker(third)
        assert log_of(cluster).state.leader == -1
        cluster.start_broker(first)
        assert log_of(cluster).state.leader == -1, "it left while two were in sync: it may lack records"
        cluster.start_broker(second)
        assert log_of(cluster).state.leader == second
        cluster.start_broker(third)
        assert put(cluster, b"b") == [1]
        assert_equal_replicas(log_of(cluster))


def test_an_unclean_election_loses_records_and_says_where(place: Path) -> None:
    with brokers(place, 5) as cluster:
        cluster.create_topic("t", replication_factor=2)
        put(cluster, b"a")
        first, second = log_of(cluster).state.replicas
        cluster.stop_broker(second)
        put(cluster, b"b", b"c")
        with cluster.consumer("t", auto_offset_reset="earliest") as consumer:
            assert [record.value for record in consumer.poll(timeout_ms=1000)] == [b"a", b"b", b"c"]
            cluster.stop_broker(first)
            cluster.start_broker(second)
            assert log_of(cluster).state.leader == -1
            assert cluster.elect_leaders(unclean=True) == {TopicPartition("t", 0): second}
            assert put(cluster, b"d") == [1]
            assert [record.value for record in consumer.poll(timeout_ms=1000)] == [b"d"], "it goes on at the divergence (KIP-320)"
        cluster.start_broker(first)
        assert_equal_replicas(log_of(cluster))
        assert values_of(cluster) == [b"a", b"d"]


def test_an_unclean_election_by_configuration(place: Path) -> None:
    with brokers(place, 5) as cluster:
        cluster.create_topic("t", replication_factor=2, unclean_leader_election_enable=True)
        put(cluster, b"a")
        first, second = log_of(cluster).state.replicas
        cluster.stop_broker(second)
        put(cluster, b"b")
        cluster.stop_broker(first)
        cluster.start_broker(second)
        assert log_of(cluster).state.leader == second
        assert values_of(cluster) == [b"a"]


def test_a_replica_that_lags_leaves_and_joins_again(place: Path) -> None:
    with brokers(place, replica_lag_time_max_ms=100) as cluster:
        cluster.create_topic("t", replication_factor=3)
        put(cluster, b"a")
        log = log_of(cluster)
        follower = log.on(log.state.replicas[1])
        assert follower.lock.acquire(False)  # another thread is inside, and does not come out
        try:
            assert put(cluster, b"b") == [1]
            assert log.state.replicas[1] not in log.state.in_sync
        finally:
            follower.lock.release()
        assert_equal_replicas(log)
        assert log.state.in_sync == (0, 1, 2)


def test_a_leader_whose_log_is_held_up_is_replaced(place: Path) -> None:
    with brokers(place, replica_lag_time_max_ms=100) as cluster:
        cluster.create_topic("t", replication_factor=3)
        put(cluster, b"a")
        log = log_of(cluster)
        leader = log.on(log.state.leader)
        assert leader.lock.acquire(False)
        try:
            assert put(cluster, b"b") == [1]
            assert log.on(log.state.leader) is not leader
        finally:
            leader.lock.release()
        assert_equal_replicas(log)


# ---- after a reboot


def test_after_a_reboot_everything_goes_on_in_a_new_epoch(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", partitions=2, replication_factor=3)
        put(cluster, b"a", b"b")
        epoch = cluster.topic("t").describe().partitions[0].leader_epoch
    shutil.rmtree(place / "log" / "run")
    with brokers(place) as cluster:
        assert values_of(cluster) == [b"a", b"b"]
        assert put(cluster, b"c") == [2]
        assert cluster.topic("t").describe().partitions[0].leader_epoch > epoch
        assert_equal_replicas(log_of(cluster))


def test_h32_after_a_reboot_the_longest_log_leads(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        put(cluster, *(b"%d" % n for n in range(10)))
        replicas = log_of(cluster).state.replicas
    shutil.rmtree(place / "log" / "run")
    for broker in replicas[:2]:  # what the power cut left of the first two is less
        path = place / "log" / f"broker-{broker}" / "t-0" / f"{0:020}.log"
        os.truncate(path, 64 + 3 * 200)
        (place / "log" / f"broker-{broker}" / "recovery-point-offset-checkpoint").unlink(missing_ok=True)
    with brokers(place) as cluster:
        assert values_of(cluster) == [b"%d" % n for n in range(10)]
        state = log_of(cluster).state
        assert state.leader == replicas[2]
        assert_equal_replicas(log_of(cluster))


def test_h32_where_nobody_can_prove_completeness_the_partition_waits(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        put(cluster, *(b"%d" % n for n in range(10)))
    shutil.rmtree(place / "log" / "run")
    for broker in range(3):
        os.truncate(place / "log" / f"broker-{broker}" / "t-0" / f"{0:020}.log", 64 + 3 * 200)
        lines = [line for line in (place / "log" / f"broker-{broker}" / "replication-offset-checkpoint").read_text().splitlines() if line]
        assert lines[2].endswith(" 0 10")
        (place / "log" / f"broker-{broker}" / "recovery-point-offset-checkpoint").unlink(missing_ok=True)
    with brokers(place) as cluster:
        with cluster.producer(linger_ms=0, delivery_timeout_ms=300, retry_backoff_ms=10) as producer:
            with pytest.raises(streamlog.NotLeaderOrFollowerError, match="no leader"):
                producer.send("t", b"x").result(10)
        cluster.elect_leaders([("t", 0)], unclean=True)
        offset = put(cluster, b"x")[0]
        assert 0 < offset < 10


# ---- brokers come and go


def test_brokers_are_added_and_partitions_moved(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", partitions=2, replication_factor=2)
        put(cluster, b"a", b"b")
        assert cluster.add_broker() == 3
        seen: list[tuple[int, int]] = []
        cluster.reassign_partitions({("t", 0): [3, 0], ("t", 1): [3, 1, 2]}, on_progress=lambda done, total: seen.append((done, total)))
        described = cluster.topic("t").describe().partitions
        assert [(each.leader, each.replicas, each.isr) for each in described] == [(3, (3, 0), (0, 3)), (3, (3, 1, 2), (1, 2, 3))]
        assert seen[-1][0] == seen[-1][1]
        assert cluster.reassignments() == []
        assert put(cluster, b"c") == [2]
        assert_equal_replicas(log_of(cluster))
    with brokers(place, None) as cluster:  # type: ignore[arg-type]
        assert [each.broker for each in cluster.brokers()] == [0, 1, 2, 3]
        assert values_of(cluster) == [b"a", b"b", b"c"]


def test_a_broker_retires(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", partitions=3, replication_factor=2)
        with cluster.producer() as producer:
            for number in range(30):
                producer.send("t", b"%d" % number, partition=number % 3)
        cluster.retire_broker(1)
        assert [each.broker for each in cluster.brokers()] == [0, 2]
        assert all(set(each.replicas) == {0, 2} and len(each.isr) == 2 for each in cluster.topic("t").describe().partitions)
        assert sorted(values_of(cluster)) == sorted(b"%d" % n for n in range(30))
        with pytest.raises(streamlog.InvalidStateError, match="at least two"):
            cluster.retire_broker(2)
    with brokers(place, None) as cluster:  # type: ignore[arg-type]
        assert len(values_of(cluster)) == 30


def test_one_broker_becomes_several(place: Path) -> None:
    with streamlog.open(place / "log") as cluster:
        cluster.create_topic("t", partitions=2)
        put(cluster, b"a", b"b")
        with cluster.consumer("t", group_id="g", auto_offset_reset="earliest") as consumer:
            consumer.poll()
            consumer.commit()
        with streamlog.open(place / "log"), pytest.raises(streamlog.InvalidStateError, match="nobody else"):
            cluster.add_broker()
    with streamlog.open(place / "log") as cluster:
        assert cluster.add_broker() == 1
        assert cluster.add_broker() == 2
        assert values_of(cluster) == [b"a", b"b"]
        cluster.reassign_partitions({("t", 0): [0, 1, 2]})
        assert put(cluster, b"c") == [2]
        assert_equal_replicas(log_of(cluster))
        assert cluster.group_offsets("g")[TopicPartition("t", 0)].offset == 2
        assert {len(each.replicas) for each in cluster.topic("__consumer_offsets").describe().partitions} == {3}
        assert streamlog.check(cluster) == []


def test_a_home_that_was_lost_is_made_anew_from_the_brokers(place: Path) -> None:
    paths = [place / f"disk{number}" / "b" for number in range(3)]
    with pytest.warns(UserWarning, match="one device"):
        cluster = streamlog.open(place / "home", brokers=paths, offsets_topic_num_partitions=3)
    with cluster:
        cluster.create_topic("t", replication_factor=3)
        put(cluster, b"a")
    shutil.rmtree(place / "home")
    with pytest.warns(UserWarning, match="one device"):
        cluster = streamlog.open(place / "home", brokers=paths)
    with cluster:
        assert values_of(cluster) == [b"a"]
        assert cluster._home.config.offsets_topic_num_partitions == 3
        assert put(cluster, b"b") == [1]
    with streamlog.open(place / "home") as cluster:
        assert values_of(cluster) == [b"a", b"b"]


def test_a_description_that_was_lost_is_made_anew(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        put(cluster, b"a")
    (place / "log" / "cluster.json").unlink()
    with brokers(place) as cluster:
        assert values_of(cluster) == [b"a"]


def test_bad_input_changes_nothing(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=2)
        put(cluster, b"a")
        before = log_of(cluster).state, cluster.brokers()
        for call, error in (
            (lambda: cluster.create_topic("u", replication_factor=4), streamlog.InvalidReplicationFactorError),
            (lambda: cluster.create_topic("u", replication_factor=0), streamlog.InvalidReplicationFactorError),
            (lambda: cluster.stop_broker(7), streamlog.ConfigurationError),
            (lambda: cluster.stop_broker("1"), streamlog.ConfigurationError),  # type: ignore[arg-type]
            (lambda: cluster.start_broker(True), streamlog.ConfigurationError),
            (lambda: cluster.repair_broker(1), streamlog.InvalidStateError),
            (lambda: cluster.reassign_partitions({("t", 0): []}), streamlog.ConfigurationError),
            (lambda: cluster.reassign_partitions({("t", 0): [0, 0]}), streamlog.ConfigurationError),
            (lambda: cluster.reassign_partitions({("t", 0): [0, 9]}), streamlog.ConfigurationError),
            (lambda: cluster.reassign_partitions({("t", 5): [0, 1]}), streamlog.UnknownTopicOrPartitionError),
            (lambda: cluster.reassign_partitions({("t", 0): "01"}), streamlog.ConfigurationError),
            (lambda: cluster.reassign_partitions([("t", 0)]), streamlog.ConfigurationError),  # type: ignore[arg-type]
            (lambda: cluster.elect_leaders("t"), streamlog.ConfigurationError),
            (lambda: cluster.add_broker(place / "log" / "broker-1"), streamlog.ConfigurationError),
            (lambda: cluster.add_broker(""), streamlog.ConfigurationError),
            (lambda: streamlog.open(place / "log", brokers=2), streamlog.ConfigurationError),
            (lambda: streamlog.open(place / "x", brokers=0), streamlog.ConfigurationError),
            (lambda: streamlog.open(place / "x", brokers=True), streamlog.ConfigurationError),
            (lambda: streamlog.open(place / "x", brokers="ab"), streamlog.ConfigurationError),
            (lambda: streamlog.open(place / "x", brokers=["/a", "/a"]), streamlog.ConfigurationError),
            (lambda: streamlog.open(place / "x", brokers=["/a", "/a/b"]), streamlog.ConfigurationError),
            (lambda: streamlog.open(place / "x", brokers=[place / "x", place / "y"]), streamlog.ConfigurationError),
            (lambda: cluster.add_broker("memory://"), streamlog.ConfigurationError),
            (lambda: cluster.add_broker("a\0b"), streamlog.ConfigurationError),
        ):  # fmt: skip
            with pytest.raises(error):
                call()
        assert (log_of(cluster).state, cluster.brokers()) == before
        assert not (place / "x").exists()
        assert put(cluster, b"b") == [1]


def test_with_one_broker_there_is_nothing_to_stop(place: Path) -> None:
    with streamlog.open(place / "log") as cluster:
        assert [(each.broker, each.state) for each in cluster.brokers()] == [(0, "online")]
        for call in (cluster.stop_broker, cluster.start_broker, cluster.retire_broker):
            with pytest.raises(streamlog.InvalidStateError, match="one broker"):
                call(0)


# ---- transactions and groups through leader changes


def test_a_transaction_goes_on_through_a_leader_change(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        with cluster.producer(transactional_id="x", linger_ms=0) as producer:
            producer.init_transactions()
            producer.begin_transaction()
            producer.send("t", b"a").result(10)
            cluster.stop_broker(log_of(cluster).state.leader)
            producer.send("t", b"b").result(10)
            with cluster.consumer("t", auto_offset_reset="earliest", isolation_level="read_committed") as consumer:
                assert consumer.poll(timeout_ms=100) == []
                producer.commit_transaction()
                assert [record.value for record in consumer.poll(timeout_ms=1000)] == [b"a", b"b"]
            producer.begin_transaction()
            producer.send("t", b"c").result(10)
            producer.abort_transaction()
        for broker in range(3):
            if cluster.brokers()[broker].state != "online":
                cluster.start_broker(broker)
        assert_equal_replicas(log_of(cluster))
        for broker in log_of(cluster).state.replicas:
            cluster.reassign_partitions({("t", 0): [broker, *(other for other in range(3) if other != broker)]})
            cluster.elect_leaders()
            assert log_of(cluster).state.leader == broker
            with cluster.consumer("t", auto_offset_reset="earliest", isolation_level="read_committed") as consumer:
                assert [record.value for record in consumer.poll(timeout_ms=1000)] == [b"a", b"b"], f"broker {broker} leads"


def test_a_batch_that_was_sent_again_to_another_leader_is_there_once(place: Path) -> None:
    disks = Disks()
    with brokers(place, disks=disks) as cluster:
        cluster.create_topic("t", replication_factor=3)
        with cluster.producer(linger_ms=0) as producer:
            for number in range(60):
                if number % 10 == 5:
                    disks.fail(log_of(cluster).state.leader, ops=("write",))
                producer.send("t", b"%d" % number).result(10)
                if number % 10 == 5:
                    disks.heal()
                    for each in cluster.brokers():
                        if each.state != "online":
                            cluster.start_broker(each.broker)
        assert values_of(cluster) == [b"%d" % n for n in range(60)]
        assert_equal_replicas(log_of(cluster))


def test_slots_of_followers_know_transactions(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=2)
        log = log_of(cluster)
        with cluster.producer(transactional_id="x", linger_ms=0) as producer, producer.transaction():
            producer.send("t", b"a").result(10)
            for broker in log.state.replicas:
                words = log.on(broker).words
                assert words[22] == 1  # OPEN
                assert words[ALIGNED] == log.state.leader_epoch
                assert words[HWM] == 1
        assert log.last_stable_offset == log.high_watermark == 2
        assert [log.on(broker).words[22] for broker in log.state.replicas] == [0, 0]
        assert len(records_on(log, log.state.replicas[1])) == 2


def test_what_a_broker_missed_is_copied_in_large_pieces_that_roll_as_they_should(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3, segment_bytes=4096, index_interval_bytes=512)
        put(cluster, b"first")
        follower = log_of(cluster).state.replicas[2]
        cluster.stop_broker(follower)
        with cluster.producer(linger_ms=0) as producer:
            for number in range(300):
                producer.send("t", b"%d" % number * (number % 40 + 1), timestamp_ms=1_700_000_000_000 + number).result(10)
        with cluster.producer(transactional_id="x", linger_ms=0) as producer, producer.transaction():
            for number in range(20):
                producer.send("t", b"tx %d" % number).result(10)
        cluster.start_broker(follower)
        log = log_of(cluster)
        assert_equal_replicas(log)
        assert len(log.on(follower).segments()) > 5
        cluster.elect_leaders()
        cluster.reassign_partitions({("t", 0): [follower, *(broker for broker in range(3) if broker != follower)]})
        assert log.state.leader == follower
        assert len(values_of(cluster)) == 321


def test_a_second_home_is_refused_while_the_first_is_open(place: Path) -> None:
    paths = [place / f"disk{number}" / "b" for number in range(3)]
    with pytest.warns(UserWarning, match="one device"):
        cluster = streamlog.open(place / "home", brokers=paths)
    with cluster:
        cluster.create_topic("t", replication_factor=3)
        put(cluster, b"a")
        with pytest.warns(UserWarning, match="one device"), pytest.raises(streamlog.NotAClusterError, match="another home"):
            streamlog.open(place / "other", brokers=paths)
        assert put(cluster, b"b") == [1]
    shutil.rmtree(place / "home")
    with pytest.warns(UserWarning, match="one device"):
        cluster = streamlog.open(place / "home", brokers=paths[::-1])
    with cluster:
        assert values_of(cluster) == [b"a", b"b"]
        assert [each.path for each in cluster.brokers()] == [str(path) for path in paths], "they keep their ids"


def test_a_repaired_broker_is_opened_again_by_who_had_the_old_one_open(place: Path) -> None:
    with brokers(place) as cluster, streamlog.open(place / "log") as other:
        cluster.create_topic("t", replication_factor=3)
        put(cluster, b"a")
        lose(place, 1)
        cluster._home.next_tick = 0
        put(cluster, b"b")
        other.repair_broker(1)
        for each in (cluster, other):
            each._home.next_tick = 0
            each._home.tick()
        assert {each.state for each in cluster.brokers()} == {"online"}
        os.rename(place / "log" / "broker-2", place / "away")
        cluster._home.next_tick = 0
        assert put(cluster, b"c", b"d") == [2, 3]
        os.rename(place / "away", place / "log" / "broker-2")
        other.start_broker(2)
        assert_equal_replicas(log_of(cluster))


def test_the_broker_that_leads_the_metadata_retires(place: Path) -> None:
    with brokers(place, 4) as cluster:
        cluster.create_topic("t", replication_factor=3)
        put(cluster, b"a")
        cluster.retire_broker(0)
        with streamlog.open(place / "log") as other:
            assert [each.broker for each in other.brokers()] == [1, 2, 3]
            assert put(other, b"b") == [1]
    with streamlog.open(place / "log") as cluster:
        assert values_of(cluster) == [b"a", b"b"]


def test_who_was_counted_and_did_not_join_holds_nobody_up(place: Path) -> None:
    """A process dies between counting a replica and the record that lets it join; then that broker fails."""
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        put(cluster, b"a")
        cluster.stop_broker(2)
        log = log_of(cluster)
        log.leadership[4] |= 1 << 2  # IN_SYNC
        assert put(cluster, b"b") == [1]  # it is copied to, whatever it is called
        cluster._home.controller.fail(2, OSError("gone"), 10.0)
        assert log.leadership[4] == 0b11
        cluster.start_broker(2)
        assert_equal_replicas(log)


def test_leaders_that_move_on_purpose_take_what_they_alone_have_with_them(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        cluster._home.fetcher.stop()
        with cluster.producer(linger_ms=0, acks=1) as producer:
            for number in range(50):
                producer.send("t", b"%d" % number).result(10)
                if number % 10 == 9:
                    leader = log_of(cluster).state.leader
                    cluster.stop_broker(leader)
                    cluster.start_broker(leader)
        assert values_of(cluster) == [b"%d" % n for n in range(50)]
