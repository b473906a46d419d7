"""What the documents say of producers and consumers, and the library did not do."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import streamlog
from conftest import values_of
from streamlog import OffsetAndMetadata, TopicPartition
from streamlog._log.partition import PartitionLog
from streamlog.cluster import Cluster, _Place
from streamlog.testing.faults import FaultyFileSystem

T0 = TopicPartition("t", 0)


def fill(log: streamlog.Cluster, count: int, partitions: int = 1, **config: object) -> None:
    log.create_topic("t", partitions=partitions, **config)
    with log.producer() as producer:
        for number in range(count):
            producer.send("t", b"%d" % number, partition=number % partitions)


def wait_for(what: str, ready) -> None:
    deadline = time.monotonic() + 20
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


# ---- a loop in a group looks at the group when it asks for the next record


def test_a_loop_commits_what_it_is_done_with(log: streamlog.Cluster) -> None:
    fill(log, 400)
    with log.consumer("t", group_id="g", auto_offset_reset="earliest", auto_commit_interval_ms=20) as consumer:
        for record in consumer:
            if record.offset == 5:
                time.sleep(0.05)
            if record.offset >= 10:
                time.sleep(0.01)
            committed = log.group_offsets("g").get(T0, OffsetAndMetadata(0)).offset if record.offset else 0
            assert committed <= record.offset, "what the loop has in hand is not done"
            if committed > 5:
                break
            assert record.offset < 300, "nothing is committed inside a chunk"


def test_a_loop_gives_partitions_up_between_two_records(log: streamlog.Cluster) -> None:
    fill(log, 400, partitions=2)
    handled: list[tuple[int, int]] = []
    going = threading.Event()

    def work() -> None:
        with log.consumer("t", group_id="g", auto_offset_reset="earliest", consumer_timeout_ms=500) as consumer:
            for record in consumer:
                handled.append((record.partition, record.offset))
                going.set()
                time.sleep(0.005)

    thread = threading.Thread(target=work)
    thread.start()
    going.wait()
    with log.consumer("t", group_id="g", auto_offset_reset="earliest") as second:
        first: list[streamlog.Record] = []
        wait_for("a partition", lambda: (first.extend(second.poll(timeout_ms=10)), second.assignment())[1])
        assert len(handled) < 300, "the first member went through all that it had fetched"
        handled.extend((record.partition, record.offset) for record in first)
        while thread.is_alive() or sum(log.describe_group("g").lag.values()):
            handled.extend((record.partition, record.offset) for record in second.poll(timeout_ms=10))
            second.commit()
    thread.join()
    assert sorted(handled) == [(partition, offset) for partition in range(2) for offset in range(200)]


def test_a_slow_loop_that_goes_on_asking_is_not_expired(log: streamlog.Cluster) -> None:
    """Each record takes a fraction of `max_poll_interval_ms`, all that were fetched together take longer; nothing is handled twice."""
    fill(log, 60, partitions=2)
    handled: list[tuple[int, int]] = []
    lock = threading.Lock()

    def work() -> None:
        config = {"group_id": "g", "auto_offset_reset": "earliest", "consumer_timeout_ms": 1000, "max_poll_interval_ms": 600}
        with log.consumer("t", **config) as consumer:
            for record in consumer:
                with lock:
                    handled.append((record.partition, record.offset))
                time.sleep(0.04)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(handled) == [(partition, offset) for partition in range(2) for offset in range(30)]


def test_a_loop_that_is_killed_has_committed_what_it_was_done_with(place: Path) -> None:
    code = """if True:
        import sys, time, streamlog
        log = streamlog.open(sys.argv[1])
        for record in log.consumer("t", group_id="g", auto_offset_reset="earliest", auto_commit_interval_ms=50):
            print(record.offset, flush=True)
            time.sleep(0.01)
    """
    with streamlog.open(place / "log") as log:
        fill(log, 400)
        worker = subprocess.Popen([sys.executable, "-c", code, place / "log"], stdout=subprocess.PIPE, text=True)
        assert worker.stdout is not None
        while int(worker.stdout.readline()) < 100:
            pass
        worker.kill()
        worker.wait()
        worker.stdout.close()
        assert 0 < log.group_offsets("g")[T0].offset <= 400


def test_an_assigned_loop_commits_too(log: streamlog.Cluster) -> None:
    fill(log, 100)
    with log.consumer(group_id="g", auto_offset_reset="earliest", auto_commit_interval_ms=10) as consumer:
        consumer.assign([T0])
        for record in consumer:
            time.sleep(0.005)
            if record.offset == 50:
                break
        assert log.group_offsets("g")[T0].offset > 5


# ---- truncation


@pytest.mark.parametrize("reset", ["none", "earliest"])
def test_who_resets_by_hand_is_told_of_a_truncation(reset: str, place: Path) -> None:
    with streamlog.open(place / "log", brokers=5) as log:
        log.create_topic("t", replication_factor=2, unclean_leader_election_enable=True)
        first, second = log.topic("t").describe().partitions[0].replicas

        def put(count: int) -> None:
            with log.producer(linger_ms=0) as producer:
                for _ in range(count):
                    producer.send("t", b"x").result()

        put(5)
        log.stop_broker(second)
        put(5)
        with log.consumer(auto_offset_reset=reset) as consumer:
            consumer.assign([T0])
            consumer.seek(T0, 0)
            while consumer.poll(timeout_ms=50):
                pass
            log.stop_broker(first)
            log.start_broker(second)
            put(3)
            if reset == "none":
                for _ in range(2):  # until somebody decides
                    with pytest.raises(streamlog.LogTruncationError) as caught:
                        consumer.poll(timeout_ms=500)
                    assert caught.value.divergent[T0].offset == 5
                    assert isinstance(caught.value, streamlog.OffsetOutOfRangeError)
                consumer.seek(T0, caught.value.divergent[T0].offset)
            assert [record.offset for record in consumer.poll(timeout_ms=500)] == [5, 6, 7]


# ---- topics that go, and come anew


@pytest.mark.parametrize("again", [False, True])
def test_send_says_that_a_topic_is_gone_and_sends_to_the_one_that_took_its_name(again: bool, log: streamlog.Cluster) -> None:
    log.create_topic("t", partitions=4)
    with log.producer() as producer:
        for number in range(8):
            producer.send("t", b"old", partition=number % 4)
        producer.flush()
        with streamlog.open(log.location) as other:
            other.delete_topic("t")
            if again:
                other.create_topic("t")
        if again:
            assert producer.send("t", b"new").result().offset == 0
            assert values_of(log) == [b"new"]
        else:
            with pytest.raises(streamlog.UnknownTopicOrPartitionError):
                producer.send("t", b"new")


# ---- bounds


@pytest.mark.parametrize("argument", [{}, {"key": b"k"}, {"headers": {"a": b"b"}}])
def test_a_signal_handler_that_sends_goes_by_what_is_known_of_topics(
    argument: dict[str, object], log: streamlog.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One signal follows the other while topics are looked up again: a handler that began to look, too, would never end."""
    log.create_topic("t")
    with log.producer(linger_ms=0) as producer:
        producer.send("t", b"first").result(10)
        refresh, depth = log._home.refresh, 0

        def interrupted(timeout: float) -> None:
            nonlocal depth
            depth += 1
            if depth < 20:
                producer.send("t", b"handler", **argument)
            refresh(timeout)

        with streamlog.open(log.location) as other:
            other.create_topic("u")
        monkeypatch.setattr(log._home, "refresh", interrupted)
        producer.send("t", b"last", **argument)
        monkeypatch.undo()
        assert depth == 1
    assert values_of(log, "t") == [b"first", b"handler", b"last"]


def test_a_signal_handler_inside_a_first_look_up_does_not_fold_again(log: streamlog.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Topics are made all the time: handlers that interrupt handlers would never catch up."""
    log.create_topic("t")
    with streamlog.open(log.location) as other, log.producer(linger_ms=0) as producer:
        make, refresh, looks, depth = producer._make_target, log._home.refresh, [], 0

        def interrupted(metadata: object) -> object:
            nonlocal depth
            depth += 1
            if depth < 20:
                other.create_topic(f"u{depth}")
                producer.send("t", b"handler")
            return make(metadata)

        monkeypatch.setattr(log._home, "refresh", lambda timeout: looks.append(refresh(timeout)))
        monkeypatch.setattr(type(producer), "_make_target", lambda _, metadata: interrupted(metadata))
        other.create_topic("u")
        producer.send("t", b"last")
        monkeypatch.undo()
        assert depth == 20
        assert len(looks) <= 2, "one look, and one before the append"
    assert values_of(log, "t") == [*[b"handler"] * 19, b"last"]


@pytest.mark.parametrize("size", [1, 100, 5000])
def test_buffer_memory_bounds_batches_that_are_larger(size: int, log: streamlog.Cluster) -> None:
    from streamlog._client.batch import RECORD_MEMORY

    log.create_topic("t")
    with log.producer(buffer_memory=1 << 20, batch_size=1_000_000, linger_ms=600_000) as producer:
        most, sent = 0, 0
        for _ in range(4 << 20):
            producer.send("t", bytes(size))
            sent += 1
            if sent % 64 == 0:
                waiting = sum(batch.records for lane in list(producer._active) for batch in lane.queue)
                most = max(most, waiting * (size + RECORD_MEMORY))
            if sent * (size + RECORD_MEMORY) > 4 << 20:
                break
        assert most <= 1.1 * (1 << 20)
        if size == 100:
            producer.send("t", b"k", key=b"1")
            producer.send("t", b"k", headers=[("a", b"b")])
    assert log.topic("t").end_offsets()[0] == sent + 2 * (size == 100)


def test_a_delivery_fails_at_its_timeout_and_not_a_back_off_later(place: Path) -> None:
    fs = FaultyFileSystem()
    with Cluster(_Place(place / "log"), fs=fs) as cluster:
        cluster.create_topic("t")
        with cluster.producer(delivery_timeout_ms=1000, retry_backoff_ms=700, retry_backoff_max_ms=60_000, linger_ms=0) as producer:
            producer.send("t", b"1").result()
            fs.fail_when("write", "*/t-0/*.log", times=10**9, number=28)
            delivery = producer.send("t", b"2")
            lane = delivery[0].lane
            wait_for("a second try", lambda: lane.tries == 2)
            assert lane.next_try() <= delivery[0].begun + 1.0, "the back-off alone would be 1.4 s"
            assert producer.metrics().record_retry_total > 0
            with pytest.raises(streamlog.StorageFullError):
                delivery.result()
            fs.clear()


def test_the_first_poll_waits_for_fetch_min_bytes_too(log: streamlog.Cluster) -> None:
    fill(log, 1)
    with log.consumer("t", auto_offset_reset="earliest", fetch_min_bytes=10_000, fetch_max_wait_ms=60_000) as consumer:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.extend(record.offset for record in consumer.poll(timeout_ms=30_000)))
        consumer.seek(T0, 0)
        thread.start()
        time.sleep(0.1)
        assert found == []
        with log.producer() as producer:
            producer.send("t", bytes(20_000)).result()
        thread.join()
        assert found == [0, 1]


@pytest.mark.parametrize("how", ["poll", "poll_batches"])
def test_only_the_first_batch_may_pass_max_partition_fetch_bytes(how: str, log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(linger_ms=0) as producer:
        for size in (600, 600, 3000, 100, 100):
            producer.send("t", bytes(size)).result()
    with log.consumer("t", auto_offset_reset="earliest", max_partition_fetch_bytes=1000) as consumer:
        seen = []
        while found := getattr(consumer, how)():
            seen.append([record.offset for record in found] if how == "poll" else [offset for batch in found for offset in batch.offsets])
    assert seen == [[0], [1], [2], [3, 4]]


def test_a_consumer_spins_after_activity_only(log: streamlog.Cluster) -> None:
    fill(log, 1)
    with log.consumer("t", auto_offset_reset="earliest", fetch_spin_us=40_000) as consumer:
        consumer.poll(timeout_ms=100)
        consumer.poll(timeout_ms=100)
        before = time.thread_time()
        consumer.poll(timeout_ms=1000)
        assert time.thread_time() - before < 0.5, "twenty wake-ups of 40 ms each would be 0.8 s"


def test_lag_and_its_metric_agree(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(transactional_id="x") as producer:
        with producer.transaction():
            producer.send("t", "1")
        producer.begin_transaction()
        producer.send("t", "2").result()
        for level in ("read_committed", "read_uncommitted"):
            with log.consumer("t", auto_offset_reset="earliest", isolation_level=level) as consumer:
                consumer.poll(max_records=1)
                assert consumer.metrics().records_lag == consumer.lag()
        producer.abort_transaction()


def test_records_without_a_key_go_where_there_is_a_leader(place: Path) -> None:
    with streamlog.open(place / "log", brokers=3) as log:
        log.create_topic("t", partitions=3)
        gone = next(each.partition for each in log.topic("t").describe().partitions if each.leader == 1)
        config = {"delivery_timeout_ms": 5000, "linger_ms": 0}
        producers = [log.producer(partitioner=name, **config) for name in ("sticky", "round_robin", "hash")]
        for producer in producers:
            producer.send("t", b"before").result()
        log.stop_broker(1)
        for producer in producers:
            for _ in range(30):
                assert producer.send("t", bytes(2000)).result().partition != gone
        log.start_broker(1)
        for producer in producers:
            seen: set[int] = set()
            for _ in range(200):
                seen.add(producer.send("t", bytes(20_000)).result().partition)
            assert gone in seen
            producer.close()


def test_a_topic_is_made_while_a_broker_is_out(place: Path) -> None:
    with streamlog.open(place / "log", brokers=3) as log:
        log.stop_broker(2)
        log.create_topic("t", partitions=3, replication_factor=3)
        with pytest.raises(streamlog.InvalidReplicationFactorError):
            log.create_topic("u", replication_factor=4)
        with log.producer(linger_ms=0) as producer:
            for partition in range(3):
                producer.send("t", b"1", partition=partition).result()
        assert {each.isr for each in log.topic("t").describe().partitions} == {(0, 1)}
        log.start_broker(2)
        assert {each.isr for each in log.topic("t").describe().partitions} == {(0, 1, 2)}
        assert streamlog.check(log) == []


def test_a_thread_that_gets_the_log_of_a_topic_that_is_being_made_keeps_it(log: streamlog.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    initialise, got, threads = PartitionLog.initialise, [], []

    def interrupted(partition: PartitionLog, timeout: float) -> None:
        initialise(partition, timeout)
        threads.append(threading.Thread(target=lambda: got.append(log._home.log(log._home.metadata.topic("t"), 0, 10.0))))
        threads[-1].start()
        threads[-1].join(0.05)

    monkeypatch.setattr(PartitionLog, "initialise", interrupted)
    log.create_topic("t", partitions=2)
    for thread in threads:
        thread.join(20)
    assert len(got) == 2
    assert all(each is log._home.log(log._refreshed().topic("t"), 0, 1.0) for each in got)
    with log.producer() as producer:
        producer.send("t", b"x").result()
