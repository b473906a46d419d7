"""What a user does, and what a user does wrong."""

import asyncio
import os
import pickle
import threading
import time
from pathlib import Path

import numpy
import pytest

import streamlog
from streamlog import TopicPartition


def test_five_lines(place: Path) -> None:
    with streamlog.open(place / "events") as log:
        log.create_topic("clicks", partitions=4, exist_ok=True)
        with log.producer() as producer:
            producer.send("clicks", key="user-1", value="/home")
        with log.consumer("clicks", auto_offset_reset="earliest", consumer_timeout_ms=50) as consumer:
            assert [(record.key, record.value) for record in consumer] == [(b"user-1", b"/home")]


def test_reopening_finds_everything(place: Path) -> None:
    with streamlog.open(place) as log:
        topic = log.create_topic("t", 3, segment_bytes="8192")
        with log.producer() as producer:
            producer.send("t", b"x", partition=1)
    with streamlog.open(str(place), create=False) as log:
        again = log.topic("t")
        assert (again.id, again.partitions, again.config["segment_bytes"]) == (topic.id, [0, 1, 2], 8192)
        assert again.end_offsets() == {0: 0, 1: 1, 2: 0}
        assert log.topics() == ["t"]
        assert log.topics(internal=True) == ["t"]  # the metadata are no topic that one can have


def test_records_carry_what_was_sent(log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t")
    with log.producer() as producer:
        producer.send("t", b"v", key=b"", headers=[("a", b"1"), ("a", None)], timestamp_ms=42)
        producer.send("t", None, key="tombstone", headers={"h": b""})
        producer.send("t", bytearray(b"ba"), key=memoryview(b"mv"))
        producer.send("t", "ä")
        producer.send("t")
    first, second, third, fourth, fifth = read_all(log, "t")
    assert first[2:8] == (0, 42, streamlog.TimestampType.CREATE_TIME, b"", b"v", (("a", b"1"), ("a", None)))
    assert (second.key, second.value, second.headers) == (b"tombstone", None, (("h", b""),))
    assert (third.key, third.value, third.headers) == (b"mv", b"ba", ())
    assert (fourth.key, fourth.value) == (None, "ä".encode())
    assert (fifth.key, fifth.value) == (None, None)
    assert abs(fifth.timestamp_ms - time.time() * 1000) < 10_000


def test_deliveries(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    heard: list[object] = []
    with log.producer(linger_ms=10_000) as producer:
        deliveries = [producer.send("t", b"%d" % n, on_delivery=lambda *told: heard.append(told)) for n in range(3)]
        assert not deliveries[0].done()
        began = time.monotonic()
        assert deliveries[1].result() == ("t", 0, 1, deliveries[1].result().timestamp_ms)
        assert time.monotonic() - began < 5, "who waits for a result does not wait for the linger"
        assert all(delivery.done() and delivery.exception() is None for delivery in deliveries)
        assert [told[0].offset for told in heard] == [0, 1, 2]  # type: ignore[index]

        async def awaited() -> streamlog.RecordMetadata:
            return await producer.send("t", b"awaited")

    with log.producer(linger_ms=1) as producer:
        assert asyncio.run(awaited_send(producer)).offset == 3


async def awaited_send(producer: streamlog.Producer) -> streamlog.RecordMetadata:
    return await producer.send("t", b"awaited")


def test_linger_writes_without_a_flush(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    producer = log.producer(linger_ms=1)
    delivery = producer.send("t", b"x")
    deadline = time.monotonic() + 10
    while not delivery.done() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert delivery.done()


def test_acks_0_resolves_without_an_offset(log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t")
    with log.producer(acks=0) as producer:
        heard: list[object] = []
        delivery = producer.send("t", b"x", on_delivery=lambda *told: heard.append(told))
        assert delivery.done()
        assert delivery.result().offset == -1
        assert len(heard) == 1
        producer.flush()
        assert delivery.result().offset == -1
    assert [record.value for record in read_all(log, "t")] == [b"x"]


def test_keys_keep_their_partition_and_their_order(log: streamlog.Cluster, read_all) -> None:
    from streamlog.partitioners import partition_of

    log.create_topic("t", 5)
    with log.producer(batch_size=500) as producer:
        for number in range(500):
            producer.send("t", b"%d" % number, key=b"k%d" % (number % 7))
    records = read_all(log, "t")
    assert len(records) == 500
    for record in records:
        assert record.partition == partition_of(record.key, 5)
    for key in range(7):
        values = [int(record.value) for record in records if record.key == b"k%d" % key]
        assert values == sorted(values)


def test_unkeyed_records_stick_and_spread(log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t", 4)
    with log.producer(batch_size=1000) as producer:
        for _ in range(2000):
            producer.send("t", b"x" * 50)
    per_partition = [sum(1 for r in read_all(log, "t") if r.partition == p) for p in range(4)]
    assert sum(per_partition) == 2000
    assert min(per_partition) > 100, "all partitions get their share"


def test_mixed_rows_share_a_batch(log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t")
    with log.producer(linger_ms=1000) as producer:
        producer.send("t", b"0")
        producer.send("t", b"1", key=b"k")
        producer.send("t", b"2", headers=[("h", b"x")])
        producer.send("t", b"3")
        producer.send("t", None, key=b"k", timestamp_ms=7)
    records = read_all(log, "t")
    assert [r.value for r in records] == [b"0", b"1", b"2", b"3", None]
    assert [r.key for r in records] == [None, b"k", None, None, b"k"]
    assert [r.headers for r in records] == [(), (), (("h", b"x"),), (), ()]
    assert records[4].timestamp_ms == 7
    assert records[0].timestamp_ms == records[3].timestamp_ms > 7


def test_batch_writer(log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t", 2)
    with log.producer() as producer:
        with producer.batch("t", partition=1) as batch:
            for number in range(5000):
                batch.append(b"%06d" % number)
        assert batch.delivery.result() == ("t", 1, 0, 5000)
        with pytest.raises(RuntimeError, match="body"), producer.batch("t", partition=0) as batch:
            batch.append(b"dropped")
            raise RuntimeError("body")
        assert isinstance(batch.delivery.exception(), RuntimeError)
        with pytest.raises(streamlog.SerializationError), producer.batch("t") as batch:
            batch.append("text")  # type: ignore[arg-type]
        with pytest.raises(streamlog.RecordTooLargeError), producer.batch("t") as batch:
            batch.append(bytes(2 << 20))
    assert [record.value for record in read_all(log, "t")] == [b"%06d" % number for number in range(5000)]


def test_send_batch(log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t", 3)
    kind = numpy.dtype([("id", "<u4"), ("price", "<f8")])
    rows = numpy.zeros(1000, dtype=kind)
    rows["id"] = numpy.arange(1000)
    with log.producer() as producer:
        metadata = [delivery.result() for delivery in producer.send_batch("t", rows, partition=2)]
        assert sum(found.count for found in metadata) == 1000
        keys = [b"k%d" % (n % 10) for n in range(100)]
        producer.send_batch("t", [b"%d" % n for n in range(100)], keys=keys, timestamps_ms=list(range(100)), headers=[None] * 100)
        producer.send_batch("t", [None, b"x", "text"], keys=["a", "a", "a"])
        assert producer.send_batch("t", []) == []
        with pytest.raises(streamlog.SerializationError):
            producer.send_batch("t", [b"x"], keys=[b"a", b"b"])
        with pytest.raises(streamlog.SerializationError):
            producer.send_batch("t", b"one value")
        with pytest.raises(streamlog.SerializationError):
            producer.send_batch("t", numpy.zeros((2, 2)))
    with log.consumer("t", auto_offset_reset="earliest") as consumer:
        batches = [batch for batch in consumer.poll_batches() if batch.partition == 2 and len(batch.values[0] or b"") == kind.itemsize]
        array = numpy.concatenate([batch.values.to_numpy(kind) for batch in batches])
        assert (array["id"] == numpy.arange(1000)).all()
    keyed = [r for r in read_all(log, "t") if r.key and r.key.startswith(b"k")]
    assert sorted(int(r.value) for r in keyed) == list(range(100))
    for key in {r.key for r in keyed}:
        assert [r.timestamp_ms for r in keyed if r.key == key] == sorted(int(r.value) for r in keyed if r.key == key)


def test_large_send_batch_is_cut_at_max_message_bytes(log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t", max_message_bytes=10_000)
    with log.producer() as producer:
        metadata = [delivery.result() for delivery in producer.send_batch("t", [bytes([n % 256]) * 1000 for n in range(50)])]
    assert len(metadata) == 6
    assert [record.value[0] for record in read_all(log, "t")] == list(range(50))


def test_columns(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer() as producer:
        for number in range(10):
            producer.send("t", number.to_bytes(8, "little"), key=b"k" if number % 2 else None, timestamp_ms=100 + number)
    with log.consumer("t", auto_offset_reset="earliest") as consumer:
        assert [record.offset for record in consumer.poll(max_records=4)] == [0, 1, 2, 3]
        (batch,) = consumer.poll_batches()
    assert (batch.topic, batch.partition, batch.base_offset, batch.last_offset, batch.count, len(batch)) == ("t", 0, 4, 9, 6, 6)
    assert batch.values.to_numpy(numpy.uint64).tolist() == [4, 5, 6, 7, 8, 9]
    assert batch.timestamps_ms.tolist() == [104, 105, 106, 107, 108, 109]
    assert batch.offsets.tolist() == [4, 5, 6, 7, 8, 9]
    assert batch.keys.to_list() == [None, b"k"] * 3
    assert batch.keys[1] == b"k"
    assert batch.keys[-2] is None
    assert [record.offset for record in batch] == [4, 5, 6, 7, 8, 9]
    with pytest.raises(IndexError):
        batch.values[6]
    with pytest.raises(streamlog.SerializationError):
        batch.keys.to_numpy(numpy.uint8)
    log.delete_topic("t")
    assert batch.values.to_numpy(numpy.uint64).tolist() == [4, 5, 6, 7, 8, 9], "a view stays valid, whatever happens to the topic"


def test_serdes(log: streamlog.Cluster) -> None:
    topic = log.create_topic("t")
    typed = log.topic("t", key="str", value="msgpack")
    with typed.producer() as producer:
        producer.send(typed, {"a": [1, None]}, key="k")
    with typed.consumer(auto_offset_reset="earliest") as consumer:
        (record,) = consumer.poll()
        assert (record.key, record.value) == ("k", {"a": [1, None]})
    with log.producer(value_serializer="json") as producer:
        producer.send("t", {"ä": 1})
        with pytest.raises(streamlog.SerializationError, match="failed"):
            producer.send("t", {1, 2})
    with log.consumer("t", auto_offset_reset="earliest", value_deserializer="json") as consumer:
        with pytest.raises(streamlog.SerializationError, match="offset 0"):
            consumer.poll()
        assert consumer.position(("t", 0)) == 0
        consumer.seek(("t", 0), 1)
        assert consumer.poll()[0].value == {"ä": 1}
    assert topic.end_offsets() == {0: 2}


def test_iteration_is_at_least_once(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer() as producer:
        for number in range(10):
            producer.send("t", b"%d" % number)
    with log.consumer("t", auto_offset_reset="earliest", consumer_timeout_ms=20) as consumer:
        for record in consumer:
            if record.offset == 3:
                assert consumer.position(("t", 0)) == 4
                break
        assert [record.offset for record in consumer.poll(max_records=2)] == [4, 5]
        with pytest.raises(ZeroDivisionError):
            for record in consumer:
                1 / (record.offset - 7)
        assert [record.offset for record in consumer] == [8, 9]
        consumer.seek_to_beginning()
        seen = []
        for record in consumer:
            seen.append(record.offset)
            if record.offset == 5 and len(seen) == 6:
                consumer.seek(("t", 0), 8)
        assert seen == [0, 1, 2, 3, 4, 5, 8, 9]


def test_positions_and_seeks(log: streamlog.Cluster) -> None:
    log.create_topic("t", 2)
    tp, other = TopicPartition("t", 0), TopicPartition("t", 1)
    with log.producer() as producer:
        for number in range(10):
            producer.send("t", b"%d" % number, partition=0, timestamp_ms=1000 + number * 10)
    with log.consumer() as consumer:
        consumer.assign([tp, other])
        assert consumer.assignment() == {tp, other}
        assert consumer.position(tp) == 10
        consumer.seek_to_beginning(tp)
        assert consumer.poll(max_records=3)[-1].offset == 2
        assert consumer.position(tp) == 3
        consumer.seek(tp, 7)
        assert [record.offset for record in consumer.poll()] == [7, 8, 9]
        consumer.seek_to_time(1035)
        assert (consumer.position(tp), consumer.position(other)) == (4, 0)
        consumer.pause(tp)
        assert consumer.paused() == {tp}
        assert consumer.poll(20) == []
        consumer.resume(tp)
        assert consumer.poll()[0].offset == 4
        assert consumer.lag() == {tp: 0, other: 0}
        assert consumer.beginning_offsets([tp]) == {tp: 0}
        assert consumer.end_offsets([tp, other]) == {tp: 10, other: 0}
        found = consumer.offsets_for_times({tp: 1000, other: 1})
        assert (found[tp].offset, found[tp].timestamp_ms, found[other]) == (0, 1000, None)
        consumer.seek(tp, 999)
        assert consumer.poll() == []
        assert consumer.position(tp) == 10, "out of range: the reset policy acted"
        with pytest.raises(streamlog.InvalidStateError):
            consumer.subscribe(["t"])
        consumer.unsubscribe()
        with pytest.raises(streamlog.InvalidStateError):
            consumer.position(tp)


@pytest.mark.parametrize(("policy", "position"), [("earliest", 0), ("latest", 3), ("by_duration:PT1H", 2)])
def test_reset_policies(log: streamlog.Cluster, policy: str, position: int) -> None:
    log.create_topic("t")
    now = int(time.time() * 1000)
    with log.producer() as producer:
        for age in (10 * 3_600_000, 5 * 3_600_000, 0):
            producer.send("t", b"x", timestamp_ms=now - age)
    with log.consumer("t", auto_offset_reset=policy) as consumer:
        assert consumer.position(("t", 0)) == position


def test_reset_policy_none_raises(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.consumer("t", auto_offset_reset="none") as consumer:
        with pytest.raises(streamlog.NoOffsetForPartitionError):
            consumer.poll()
        consumer.seek(("t", 0), 5)
        with pytest.raises(streamlog.OffsetOutOfRangeError):
            consumer.poll()


def test_look_up_by_time_returns_the_first_record_in_log_order(log: streamlog.Cluster, seed: int) -> None:
    import random

    chance = random.Random(seed)
    log.create_topic("t", segment_bytes=4096, index_interval_bytes=0)
    times: list[int] = []
    with log.producer(batch_size=200) as producer:
        for _ in range(600):
            times.append(chance.randrange(1000))
            producer.send("t", b"x" * chance.randrange(60), timestamp_ms=times[-1])
    topic = log.topic("t")
    for wanted in [0, 1, 500, 990, 999, 1000, *(chance.randrange(1000) for _ in range(50))]:
        first = next((offset for offset, found in enumerate(times) if found >= wanted), None)
        found = topic.offsets_for_times({0: wanted})[0]
        assert (found.offset if found else None) == first
        assert found is None or found.timestamp_ms == times[found.offset]


def test_segments_roll_by_bytes_and_event_time(log: streamlog.Cluster, read_all) -> None:
    log.create_topic("bytes", segment_bytes=4096)
    log.create_topic("time", segment_ms=1000)
    with log.producer(linger_ms=0) as producer:
        for number in range(40):
            producer.send("bytes", b"%d" % number + bytes(500))
            producer.send("time", b"%d" % number, timestamp_ms=number * 100)
        producer.send("bytes", bytes(100_000))
    described = log.topic("bytes").describe().partitions[0]
    assert described.segments == 8
    assert (described.beginning_offset, described.end_offset, described.leader, described.isr) == (0, 41, 0, (0,))
    assert log.topic("time").describe().partitions[0].segments == 4
    assert len(read_all(log, "bytes")) == 41
    assert [int(record.value) for record in read_all(log, "time")] == list(range(40))


def test_partitions_grow_under_producers_and_consumers(log: streamlog.Cluster) -> None:
    topic = log.create_topic("t")
    with log.producer() as producer, log.consumer("t", auto_offset_reset="latest") as consumer:
        consumer.poll()
        topic.add_partitions(3)
        for number in range(3):
            producer.send("t", b"%d" % number, partition=number)
        producer.flush()
        records = []
        while found := consumer.poll(50):
            records += found
        assert sorted(record.value for record in records) == [b"0", b"1", b"2"], "what appears later is read from its beginning"
        with pytest.raises(streamlog.InvalidPartitionsError, match="only grow"):
            topic.add_partitions(3)
        assert producer.partitions_for("t") == [0, 1, 2]


def test_deleted_and_made_again(log: streamlog.Cluster, read_all) -> None:
    old = log.create_topic("t")
    with log.producer() as producer, log.consumer("t", auto_offset_reset="earliest") as consumer:
        producer.send("t", b"old").result()
        assert consumer.poll()[0].value == b"old"
        log.delete_topic("t")
        assert log.topics() == []
        with pytest.raises(streamlog.UnknownTopicOrPartitionError):
            consumer.poll()
        with pytest.raises(streamlog.UnknownTopicOrPartitionError):
            producer.send("t", b"lost").result()
        new = log.create_topic("t")
        assert new.id != old.id
        assert producer.send("t", b"new").result().offset == 0
        with pytest.raises(streamlog.UnknownTopicOrPartitionError, match="deleted"):
            old.end_offsets()
        with pytest.raises(streamlog.UnknownTopicOrPartitionError, match="deleted"):
            producer.send(old, b"x")
    assert [record.value for record in read_all(log, "t")] == [b"new"]


def test_a_pattern_follows_topics(log: streamlog.Cluster) -> None:
    log.create_topic("a-1")
    with log.consumer() as consumer, log.producer(linger_ms=0) as producer:
        consumer.subscribe(pattern="a-.*")
        consumer.poll()
        log.create_topic("a-2")
        log.create_topic("b")
        for topic in ("a-1", "a-2", "b"):
            producer.send(topic, topic)
        seen = []
        while found := consumer.poll(50):
            seen += [record.value for record in found]
        assert sorted(seen) == [b"a-1", b"a-2"]
        assert consumer.subscription() == {"a-1", "a-2"}


def test_waiting_consumers_wake(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(linger_ms=0) as producer, log.consumer("t") as consumer:
        consumer.poll()
        threading.Timer(0.2, lambda: producer.send("t", b"x")).start()
        assert consumer.poll(timeout_ms=20_000)[0].value == b"x"
        threading.Timer(0.1, consumer.wakeup).start()
        with pytest.raises(streamlog.WakeupError):
            consumer.poll(timeout_ms=20_000)
        entered = threading.Event()

        def second_thread() -> None:
            entered.wait()
            with pytest.raises(streamlog.ConcurrentModificationError):
                consumer.poll()

        thread = threading.Thread(target=second_thread)
        thread.start()
        threading.Timer(0.1, entered.set).start()
        consumer.poll(timeout_ms=500)
        thread.join()


def test_fetch_min_bytes_gathers(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(linger_ms=0) as producer, log.consumer("t", fetch_min_bytes=2000, fetch_max_wait_ms=10_000) as consumer:
        consumer.poll()
        producer.send("t", bytes(1000))
        timer = threading.Timer(0.2, lambda: producer.send("t", bytes(1500)))
        timer.start()
        assert len(consumer.poll(timeout_ms=10_000)) == 2
        timer.join()


def test_pickled_clusters_open_again(place: Path) -> None:
    with streamlog.open(place) as log:
        topic = log.create_topic("t")
        copy, topic_copy = pickle.loads(pickle.dumps((log, topic)))
        with copy:
            assert copy.topics() == ["t"]
            assert topic_copy.id == topic.id
        topic_copy._cluster.close()


def test_memory_clusters_are_shared_by_name_and_go_away() -> None:
    with streamlog.open("memory://shared-in-a-test") as log, streamlog.open("memory://shared-in-a-test") as other:
        log.create_topic("t")
        assert other.topics() == ["t"]
        path = Path(log._place.path)
    assert not path.exists()
    with streamlog.open("memory://") as log, streamlog.open("memory://") as other:
        log.create_topic("t")
        assert other.topics() == []
        assert pickle.loads(pickle.dumps(log)).topics() == ["t"]


def test_closed_things_say_so(place: Path) -> None:
    log = streamlog.open(place)
    log.create_topic("t")
    producer, consumer = log.producer(), log.consumer("t")
    pending = producer.send("t", b"written by close")
    log.close()
    log.close()
    assert pending.result().offset == 0
    for call in (lambda: producer.send("t", b"x"), producer.flush, consumer.poll, log.topics, lambda: log.create_topic("u")):
        with pytest.raises(streamlog.ClosedError):
            call()


def test_dotted_names_and_options_without_effect(log: streamlog.Cluster) -> None:
    log.create_topic("t", **{"segment.bytes": "65536"})
    assert log.topic("t").config["segment_bytes"] == 65536
    with log.producer({"linger.ms": 0, "request.timeout.ms": 1000}) as producer:
        assert producer.config.linger_ms == 0
    with pytest.raises(streamlog.ConfigurationError, match="frozen"):
        producer.config.linger_ms = 1


BAD_CALLS = {
    "topic name": (lambda log: log.create_topic("a/b"), streamlog.InvalidTopicError),
    "topic name ..": (lambda log: log.create_topic(".."), streamlog.InvalidTopicError),
    "topic name too long": (lambda log: log.create_topic("x" * 250), streamlog.InvalidTopicError),
    "topic name no str": (lambda log: log.create_topic(5), streamlog.InvalidTopicError),
    "topic name with a newline": (lambda log: log.create_topic("a\n"), streamlog.InvalidTopicError),
    "internal topic": (lambda log: log.create_topic("__consumer_offsets"), streamlog.InvalidTopicError),
    "collision": (lambda log: log.create_topic("t.x") and log.create_topic("t_x"), streamlog.InvalidTopicError),
    "exists": (lambda log: log.create_topic("t"), streamlog.TopicAlreadyExistsError),
    "no partitions": (lambda log: log.create_topic("u", 0), streamlog.InvalidPartitionsError),
    "partitions True": (lambda log: log.create_topic("u", True), streamlog.InvalidPartitionsError),
    "partitions 1.5": (lambda log: log.create_topic("u", 1.5), streamlog.InvalidPartitionsError),
    "replicas": (lambda log: log.create_topic("u", 1, 3), streamlog.InvalidReplicationFactorError),
    "unknown config": (lambda log: log.create_topic("u", segment_byte=1), streamlog.UnknownConfigError),
    "config range": (lambda log: log.create_topic("u", segment_bytes=1), streamlog.InvalidConfigError),
    "config type": (lambda log: log.create_topic("u", segment_bytes=[]), streamlog.InvalidConfigError),
    "feature not there": (lambda log: log.create_topic("u", cleanup_policy="compact"), streamlog.InvalidConfigError),
    "unknown topic": (lambda log: log.topic("nope"), streamlog.UnknownTopicOrPartitionError),
    "delete unknown": (lambda log: log.delete_topic("nope"), streamlog.UnknownTopicOrPartitionError),
    "send unknown": (lambda log: log.producer().send("nope", b""), streamlog.UnknownTopicOrPartitionError),
    "send no str": (lambda log: log.producer().send(7, b""), streamlog.UnknownTopicOrPartitionError),
    "send unhashable": (lambda log: log.producer().send([], b""), streamlog.UnknownTopicOrPartitionError),
    "partition 9": (lambda log: log.producer().send("t", b"", partition=9), streamlog.UnknownTopicOrPartitionError),
    "partition -1": (lambda log: log.producer().send("t", b"", partition=-1), streamlog.UnknownTopicOrPartitionError),
    "partition True": (lambda log: log.producer().send("t", b"", partition=True), streamlog.UnknownTopicOrPartitionError),
    "value int": (lambda log: log.producer().send("t", 5), streamlog.SerializationError),
    "key list": (lambda log: log.producer().send("t", b"", key=[]), streamlog.SerializationError),
    "value surrogate": (lambda log: log.producer().send("t", "\ud800"), streamlog.SerializationError),
    "serializer returns str": (lambda log: log.producer(value_serializer=str).send("t", 5), streamlog.SerializationError),
    "serializer returns None": (lambda log: log.producer(value_serializer=lambda _: None).send("t", 5), streamlog.SerializationError),
    "headers": (lambda log: log.producer().send("t", b"", headers=[("a", 5)]), streamlog.SerializationError),
    "header name": (lambda log: log.producer().send("t", b"", headers=[(b"a", b"")]), streamlog.SerializationError),
    "timestamp": (lambda log: log.producer().send("t", b"", timestamp_ms=-1), streamlog.InvalidTimestampError),
    "timestamp float": (lambda log: log.producer().send("t", b"", timestamp_ms=1.5), streamlog.InvalidTimestampError),
    "too large": (lambda log: log.producer().send("t", bytes(2 << 20)), streamlog.RecordTooLargeError),
    "too large for the topic": (lambda log: log.producer().send("small", bytes(5000)), streamlog.RecordTooLargeError),
    "unknown producer option": (lambda log: log.producer(linger=5), streamlog.UnknownConfigError),
    "acks": (lambda log: log.producer(acks="most"), streamlog.InvalidConfigError),
    "idempotence": (lambda log: log.producer(enable_idempotence=True, acks=1), streamlog.InvalidConfigError),
    "compression": (lambda log: log.producer(compression_type="lzma"), streamlog.InvalidConfigError),
    "a transactional id without a name": (lambda log: log.producer(transactional_id=""), streamlog.InvalidConfigError),
    "transactions without idempotence": (lambda log: log.producer(transactional_id="x", enable_idempotence=False), streamlog.InvalidConfigError),
    "transactions without acks": (lambda log: log.producer(transactional_id="x", acks=1), streamlog.InvalidConfigError),
    "a transaction time-out of 0": (
        lambda log: log.producer(transactional_id="x", transaction_timeout_ms=0), streamlog.InvalidTransactionTimeoutError
    ),
    "a transaction time-out of an hour": (
        lambda log: log.producer(transactional_id="x", transaction_timeout_ms=3_600_000), streamlog.InvalidTransactionTimeoutError
    ),
    "linger above delivery": (lambda log: log.producer(linger_ms=10, delivery_timeout_ms=5), streamlog.InvalidConfigError),
    "serializer name": (lambda log: log.producer(value_serializer="pickle"), streamlog.InvalidConfigError),
    "compaction": (lambda log: log.create_topic("x", cleanup_policy="compact"), streamlog.InvalidConfigError),
    "consume unknown": (lambda log: log.consumer("nope"), streamlog.UnknownTopicOrPartitionError),
    "assign unknown": (lambda log: log.consumer().assign([("t", 7)]), streamlog.UnknownTopicOrPartitionError),
    "assign rubbish": (lambda log: log.consumer().assign([7]), streamlog.UnknownTopicOrPartitionError),
    "seek unassigned": (lambda log: log.consumer("t").seek(("small", 0), 0), streamlog.InvalidStateError),
    "seek negative": (lambda log: log.consumer("t").seek(("t", 0), -1), streamlog.ConfigurationError),
    "poll negative": (lambda log: log.consumer("t").poll(-1), streamlog.ConfigurationError),
    "poll nothing": (lambda log: log.consumer("t").poll(0, 0), streamlog.ConfigurationError),
    "reset policy": (lambda log: log.consumer("t", auto_offset_reset="first"), streamlog.InvalidConfigError),
    "duration": (lambda log: log.consumer("t", auto_offset_reset="by_duration:5"), streamlog.InvalidConfigError),
    "isolation level": (lambda log: log.topic("t").end_offsets(isolation_level="x"), streamlog.InvalidConfigError),
    "brokers": (lambda log: streamlog.open(log._place.path, brokers=3), streamlog.InvalidConfigError),
    "cluster option": (lambda log: streamlog.open(log._place.path, offsets_topic_num_partitions=9), streamlog.InvalidConfigError),
    "unknown cluster option": (lambda log: streamlog.open(log._place.path, offset_topic=9), streamlog.UnknownConfigError),
    "kafka": (lambda log: streamlog.open("kafka://host:9092"), streamlog.ConfigurationError),
    "location": (lambda log: streamlog.open(5), streamlog.ConfigurationError),
    "memory name": (lambda log: streamlog.open("memory://../x"), streamlog.ConfigurationError),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_refused_and_writes_nothing(name: str, log: streamlog.Cluster) -> None:
    call, error = BAD_CALLS[name]
    log.create_topic("t", 2)
    log.create_topic("small", max_message_bytes=4096)
    before = log.topic("t").end_offsets(), log.topic("small").end_offsets(), set(os.listdir(Path(log._place.path) / "broker-0"))
    with pytest.raises(error):
        call(log)
    if name != "collision":
        assert before == (log.topic("t").end_offsets(), log.topic("small").end_offsets(), set(os.listdir(Path(log._place.path) / "broker-0")))


def test_an_unknown_option_names_the_nearest(log: streamlog.Cluster) -> None:
    with pytest.raises(streamlog.UnknownConfigError, match="linger_ms"):
        log.producer(lingr_ms=5)


def test_directories_that_are_not_ours(place: Path) -> None:
    (place / "file").write_text("x")
    with pytest.raises(streamlog.NotAClusterError, match="file"):
        streamlog.open(place)
    with pytest.raises(streamlog.NotAClusterError, match="is a file"):
        streamlog.open(place / "file")
    with pytest.raises(streamlog.NotAClusterError, match="create=False"):
        streamlog.open(place / "missing", create=False)
    assert sorted(path.name for path in place.iterdir()) == ["file"]
    streamlog.open(place / "log").close()
    description = (place / "log" / "cluster.json").read_text()
    (place / "log" / "cluster.json").write_text(description.replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(streamlog.UnsupportedFormatError, match="version 9"):
        streamlog.open(place / "log")
    (place / "log" / "cluster.json").write_text(description)
    streamlog.open(place / "other").close()
    (place / "log" / "broker-0").rename(place / "log-broker")
    (place / "other" / "broker-0").rename(place / "log" / "broker-0")
    with pytest.raises(streamlog.NotAClusterError, match="belongs to cluster"):
        streamlog.open(place / "log")


def test_files_take_the_umask(place: Path) -> None:
    old = os.umask(0o027)
    try:
        with streamlog.open(place / "log") as log:
            log.create_topic("t")
    finally:
        os.umask(old)
    for folder, folders, files in os.walk(place / "log"):
        for name in [*folders, *files]:
            assert os.stat(os.path.join(folder, name)).st_mode & 0o027 == 0, name


def test_links_are_not_followed_out(place: Path, log: streamlog.Cluster) -> None:
    log.create_topic("t")
    outside = place / "outside"
    outside.write_bytes(b"precious")
    broker = Path(log._place.path) / "broker-0"
    (broker / "t-0" / "00000000000000000000.index").symlink_to(outside)
    with log.producer() as producer:
        error = producer.send("t", b"x").exception()
        assert error is None or isinstance(error, streamlog.StreamlogError)
    assert outside.read_bytes() == b"precious"
    (broker / "t-0" / "00000000000000000000.index").unlink()
