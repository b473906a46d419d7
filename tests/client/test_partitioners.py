"""Partitioners: other clients' choices for the same keys, columns equal to scalars, spread, and what one's own may do wrong."""

import json
import random
from collections import Counter
from pathlib import Path
from threading import Event, Thread

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamlog
from streamlog.partitioners import HASHES, HashPartitioner, RoundRobinPartitioner, Sticky, murmur2, partition_of, partitions_of

VECTORS = json.loads((Path(__file__).parent / "partitions.json").read_text())
"""Partitions that librdkafka chose (its partitioners by name, for 1, 7 and 64 partitions), as a broker reported them."""


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (b"21", -973932308), (b"foobar", -790332482), (b"abc", 479470107),
        (b"a-little-bit-long-string", -985981536), (b"a-little-bit-longer-string", -1486304829),
    ],
)  # fmt: skip
def test_murmur2_is_javas(key: bytes, expected: int) -> None:
    """The vectors of Kafka's UtilsTest."""
    assert murmur2(key) == expected


@pytest.mark.parametrize("partitions", [1, 7, 64])
@pytest.mark.parametrize(("key_hash", "name"), [("murmur2", "murmur2_random"), ("crc32", "consistent_random"), ("fnv1a", "fnv1a_random")])
def test_other_clients_choose_the_same(key_hash: str, name: str, partitions: int) -> None:
    keys = [bytes.fromhex(key) for key in VECTORS["keys"]]
    assert [partition_of(key, partitions, key_hash) for key in keys] == VECTORS[f"{name}/{partitions}"]
    assert partitions_of(keys, partitions, key_hash).tolist() == VECTORS[f"{name}/{partitions}"]


@given(st.lists(st.none() | st.binary(max_size=20), max_size=30), st.integers(1, 1000), st.sampled_from(sorted(HASHES)))
def test_a_column_is_partitioned_as_its_keys_are(keys: list[bytes | None], partitions: int, key_hash: str) -> None:
    found = partitions_of(keys, partitions, key_hash)
    assert found.tolist() == [-1 if key is None else partition_of(key, partitions, key_hash) for key in keys]


def test_what_murmur2_remembers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from streamlog import partitioners

    calls = []
    real = partitioners._murmur2
    monkeypatch.setattr(partitioners, "_murmur2", lambda key: calls.append(key) or real(key))
    key = b"a key that is hashed once"
    assert murmur2(key) == murmur2(bytes(bytearray(key))) == real(key)
    assert calls == [key]
    for number in range(40):
        murmur2(b"%d" % number + bytes(1 << 18))
        assert sum(map(len, partitioners._murmur2_of)) <= 8 << 20


def test_an_empty_key_is_a_key_and_none_is_not(log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t", 7)
    with log.producer(batch_size=0) as producer:
        for _ in range(40):
            producer.send("t", b"empty", key=b"")
            producer.send("t", b"none")
    records = read_all(log, "t")
    assert {record.partition for record in records if record.key == b""} == {partition_of(b"", 7)}
    assert len({record.partition for record in records if record.key is None}) > 1


@pytest.mark.parametrize("key_hash", sorted(HASHES))
def test_send_and_send_batch_agree(key_hash: str, log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t", 5)
    keys = [b"key-%d" % (number % 50) for number in range(200)]
    with log.producer(key_hash=key_hash) as producer:
        for key in keys:
            producer.send("t", b"one", key=key)
        producer.send_batch("t", [b"many"] * len(keys), keys=keys)
        producer.send_batch("t", numpy.zeros(len(keys), "i8"), keys=keys)
    records = read_all(log, "t")
    assert len(records) == 600
    assert all(record.partition == partition_of(record.key, 5, key_hash) for record in records)


def test_rows_keep_their_order_within_a_partition(log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t", 3)
    keys: list[bytes | None] = [random.choice([None, b"a", b"b", b"c", b"d"]) for _ in range(500)]
    with log.producer() as producer:
        producer.send_batch("t", [b"%d" % number for number in range(500)], keys=keys)
    for number in range(3):
        values = [int(record.value) for record in read_all(log, "t") if record.partition == number]
        assert values == sorted(values)


# ---- records without a key -------------------------------------------------------------------------------------------------


def test_sticky_stays_for_a_batch_and_less_than_two() -> None:
    """KIP-794: it switches once `batch_size` bytes went to the partition and the batch is complete."""
    sticky = Sticky(range(50), 1000)
    stays: list[int] = []
    for _ in range(3000):
        before, sent = sticky.partition, 0
        while sticky.partition == before:
            size = random.randrange(1, 1001)
            sent += size
            sticky.batch_completed(size)
            if sent >= 1000:
                break
        assert 1000 <= sent < 2000
        stays.append(before)
    counts = Counter(stays)
    assert len(counts) == 50
    assert max(counts.values()) < 3 * min(counts.values()), "uniform"


def test_a_slow_partition_gets_no_more_than_the_others(log: streamlog.Cluster, read_all) -> None:
    """Batches that a lingering flush closes early do not make the partition switch: bytes do."""
    log.create_topic("t", 4)
    with log.producer(batch_size=2000, linger_ms=10_000) as producer:
        for number in range(8000):
            producer.send("t", bytes(46))
            if number % 7 == 0:
                producer.flush()
    sizes = Counter(record.partition for record in read_all(log, "t"))
    assert len(sizes) == 4
    assert max(sizes.values()) < 2 * min(sizes.values())
    runs = []
    for record in sorted(read_all(log, "t"), key=lambda record: (record.partition, record.offset)):
        runs.append(record.partition)
    assert len(runs) == 8000


def test_round_robin_skips_no_partition(log: streamlog.Cluster, read_all) -> None:
    """KAFKA-9965: with a second call at each new batch every other partition was left out."""
    log.create_topic("t", 6)
    log.create_topic("u", 3)
    with log.producer(partitioner="round_robin", batch_size=0) as producer:
        for number in range(60):
            producer.send("t", b"%d" % number, key=b"k" if number % 2 else None)
            producer.send("u", b"x")
        producer.send_batch("t", [b"row"] * 12)
    assert Counter(record.partition for record in read_all(log, "t")) == dict.fromkeys(range(6), 12)
    assert Counter(record.partition for record in read_all(log, "u")) == dict.fromkeys(range(3), 20)
    chooser = RoundRobinPartitioner()
    assert [chooser.partition("t", None, None, range(3)) for _ in range(5)] == [0, 1, 2, 0, 1]


def test_hash_spreads_unkeyed_records_one_by_one(log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t", 4)
    with log.producer(partitioner="hash", key_hash="crc32") as producer:
        for _ in range(400):
            producer.send("t", b"v")
            producer.send("t", b"v", key=b"k")
    records = read_all(log, "t")
    counts = Counter(record.partition for record in records if record.key is None)
    assert len(counts) == 4
    assert min(counts.values()) > 50
    assert {record.partition for record in records if record.key} == {partition_of(b"k", 4, "crc32")}
    assert HashPartitioner("fnv1a").partition("t", b"k", None, range(9)) == partition_of(b"k", 9, "fnv1a")


@pytest.mark.parametrize("name", ["sticky", "hash"])
def test_keys_may_be_ignored(name: str, log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t", 4)
    with log.producer(partitioner=name, partitioner_ignore_keys=True, batch_size=100) as producer:
        for _ in range(200):
            producer.send("t", bytes(40), key=b"one key")
        producer.send_batch("t", [b"x"] * 5, keys=[b"one key"] * 5)
    assert len({record.partition for record in read_all(log, "t")}) == 4


def test_an_explicit_partition_always_wins(log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t", 4)

    def never(*_: object) -> int:
        raise AssertionError("not asked")

    with log.producer(partitioner=never) as producer:
        producer.send("t", b"v", key=b"k", partition=3)
        producer.send_batch("t", [b"v"] * 3, keys=[b"a", b"b", None], partition=3)
        with producer.batch("t", partition=3) as batch:
            batch.append(b"v")
    assert {record.partition for record in read_all(log, "t")} == {3}
    with log.producer(partitioner="round_robin") as producer:
        producer.send("t", b"v", partition=1)


# ---- one's own -------------------------------------------------------------------------------------------------------------


class ByLength(streamlog.Partitioner):
    """By the value's length; keeps what it hears of."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int, int]] = []

    def partition(self, topic, key, value, partitions):
        return partitions[len(value) % len(partitions)]

    def batch_completed(self, topic, partition, size):
        self.heard.append((topic, partition, size))
        raise RuntimeError("logged, and nothing is lost")


def test_a_partitioner_hears_of_completed_batches(log: streamlog.Cluster, read_all, caplog: pytest.LogCaptureFixture) -> None:
    log.create_topic("t", 3)
    chooser = ByLength()
    with log.producer(partitioner=chooser, batch_size=1000) as producer:
        for number in range(300):
            producer.send("t", bytes(number % 30), key=b"any")
        producer.send_batch("t", [bytes(4), bytes(5), bytes(7)])
        with producer.batch("t", partition=0) as batch:
            batch.append(b"x")
    records = read_all(log, "t")
    assert len(records) == 304
    assert all(record.partition == len(record.value) % 3 for record in records if record.value != b"x")
    assert {topic for topic, _, _ in chooser.heard} == {"t"}
    assert {number for _, number, _ in chooser.heard} == {0, 1, 2}
    assert all(size <= 1000 for _, _, size in chooser.heard)
    assert "batch_completed" in caplog.text
    with log.producer(partitioner=ByLength) as producer:  # a class
        assert producer.send("t", b"ab").result().partition == 2


@pytest.mark.parametrize("answer", [4, -1, 2**70, None, "0", 1.0, b"1"])
def test_a_partition_that_is_not_there(answer: object, log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t", 4)
    with log.producer(partitioner=lambda *_: answer) as producer:
        for call in (lambda: producer.send("t", b"v"), lambda: producer.send("t", b"v", key=b"k"), lambda: producer.batch("t"),
                     lambda: producer.send_batch("t", [b"a", b"b"])):  # fmt: skip
            with pytest.raises(streamlog.UnknownTopicOrPartitionError):
                call()
        assert producer.send("t", b"fine", partition=1).result().partition == 1
    assert [record.value for record in read_all(log, "t")] == [b"fine"]


def test_numbers_of_other_types_will_do(log: streamlog.Cluster) -> None:
    log.create_topic("t", 4)
    with log.producer(partitioner=lambda *_: numpy.int32(2)) as producer:
        assert producer.send("t", b"v").result().partition == 2


def test_what_a_partitioner_raises_comes_out_of_send(log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t", 4)

    def broken(topic, key, value, partitions):
        raise KeyError("tenant")

    with log.producer(partitioner=broken) as producer:
        with pytest.raises(KeyError, match="tenant"):
            producer.send("t", b"v")
        with pytest.raises(KeyError):
            producer.send_batch("t", [b"v"])
        producer.send("t", b"fine", partition=0)
    assert [record.value for record in read_all(log, "t")] == [b"fine"]


def test_a_partitioner_that_blocks_holds_up_only_its_own_send(log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t", 2)
    entered, leave = Event(), Event()

    def slow(topic, key, value, partitions):
        if value == b"slow":
            entered.set()
            assert leave.wait(10)
        return 0

    with log.producer(partitioner=slow) as producer:
        thread = Thread(target=producer.send, args=("t", b"slow"))
        thread.start()
        assert entered.wait(10)
        producer.send("t", b"quick").result(timeout=5)
        producer.flush(timeout=5)
        leave.set()
        thread.join()
    assert [record.value for record in read_all(log, "t")] == [b"quick", b"slow"]


def test_a_partitioner_may_send(log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t", 2)

    def auditing(topic, key, value, partitions):
        if topic == "t" and value != b"audit":
            producer.send("t", b"audit")
        return 0

    with log.producer(partitioner=auditing) as producer:
        producer.send("t", b"v")
    assert sorted(record.value for record in read_all(log, "t")) == [b"audit", b"v"]


@pytest.mark.parametrize("value", ["stickyy", 7, None, object()])
def test_what_is_no_partitioner(value: object, log: streamlog.Cluster) -> None:
    with pytest.raises(streamlog.InvalidConfigError):
        log.producer(partitioner=value)
