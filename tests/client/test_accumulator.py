"""The accumulator: what closes a batch, how much memory may wait, what is too large, how long a record lives, who hears of it."""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import streamlog
from conftest import values_of
from streamlog._client.batch import RECORD_MEMORY
from streamlog.cluster import Cluster, _Place
from streamlog.errors import StorageFullError
from streamlog.testing.faults import FaultyFileSystem

FULL = {"op": "write", "path": "*/t-0/*.log", "times": 10**9, "number": errno.ENOSPC}


def batches_of(log: streamlog.Cluster, topic: str = "t") -> list[int]:
    """Records of each batch."""
    with log.consumer(topic, auto_offset_reset="earliest") as consumer:
        return [len(batch) for batch in consumer.poll_batches()]


# ---- what closes a batch -----------------------------------------------------------------------------------------------------


def test_size_closes_a_batch(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(batch_size=1000, linger_ms=60_000) as producer:
        for _ in range(100):
            producer.send("t", bytes(96))
    assert batches_of(log) == [10] * 10


def test_a_larger_record_has_a_batch_of_its_own(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(batch_size=1000, linger_ms=60_000) as producer:
        for size in (10, 10, 5000, 10, 10):
            producer.send("t", bytes(size))
    assert batches_of(log) == [2, 1, 2]


def test_linger_closes_a_batch(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(linger_ms=20) as producer:
        delivery = producer.send("t", b"v")
        delivery.result(timeout=5)
        producer.send("t", b"w")
        assert batches_of(log) == [1]


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"linger_ms": 0}])
def test_without_batching_each_send_writes(options: dict[str, int], log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(**options) as producer:
        for _ in range(5):
            assert producer.send("t", b"v").done()
    assert batches_of(log) == [1] * 5


def test_memory_pressure_closes_batches(log: streamlog.Cluster) -> None:
    """Of all partitions: what is open everywhere must not add up to more than `buffer_memory`."""
    log.create_topic("t", 50)
    with log.producer(batch_size=10_000, linger_ms=60_000, buffer_memory=100_000) as producer:
        for number in range(2000):
            producer.send("t", bytes(90), partition=number % 50)
            assert producer.metrics().buffer_available_bytes >= 0
            assert producer._memory <= 100_000 or len(producer._active) == 1
        assert producer.metrics().buffer_exhausted_total == 0
    assert sum(batches_of(log)) == 2000


# ---- memory ------------------------------------------------------------------------------------------------------------------


def test_a_full_buffer_blocks_then_says_why(place: Path) -> None:
    fs = FaultyFileSystem()
    with Cluster(_Place(place / "log"), fs=fs) as cluster:
        cluster.create_topic("t")
        with cluster.producer(buffer_memory=20_000, batch_size=2000, max_block_ms=150, retry_backoff_ms=10) as producer:
            producer.send("t", b"first").result()
            fs.fail_when(**FULL)
            accepted, began = 0, time.monotonic()
            with pytest.raises(streamlog.BufferExhaustedError, match="does not take records") as caught:
                while True:
                    producer.send("t", bytes(100))
                    accepted += 1
            assert time.monotonic() - began > 0.1
            assert "max_block_ms=150" in str(caught.value)
            most = 20_000 // (100 + RECORD_MEMORY)
            assert most / 2 < accepted <= most + 1, "keys, values and 150 bytes a record count"
            metrics = producer.metrics()
            assert metrics.buffer_exhausted_total == 1
            assert metrics.buffer_available_bytes < 5000
            fs.clear()
            producer.flush()  # (the next try comes after `retry_backoff_ms`, maybe later than `max_block_ms`)
            producer.send("t", b"last").result()
        assert values_of(cluster) == [b"first", *[bytes(100)] * accepted, b"last"], "what was accepted is there"


def test_who_waits_goes_on_when_there_is_room(place: Path) -> None:
    fs = FaultyFileSystem()
    with Cluster(_Place(place / "log"), fs=fs) as cluster:
        cluster.create_topic("t")
        with cluster.producer(buffer_memory=20_000, batch_size=2000, retry_backoff_ms=10) as producer:
            producer.send("t", b"first").result()
            fs.fail_when(**FULL)
            sent: list[int] = []

            def work() -> None:
                for number in range(300):
                    producer.send("t", bytes(100))
                    sent.append(number)

            thread = threading.Thread(target=work)
            thread.start()
            while not producer.metrics().waiting_threads:
                time.sleep(0.001)
            assert len(sent) < 300
            fs.clear()
            thread.join(timeout=20)
            assert len(sent) == 300
        assert sum(batches_of(cluster)) == 301


OUTRUN = """
import errno, resource, sys, threading
import streamlog
from streamlog.cluster import Cluster, _Place
from streamlog.testing.faults import FaultyFileSystem
from pathlib import Path

def rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

keyed = sys.argv[2] == "keyed"
blocked = threading.Event()
stuck = threading.Event()
def hook(_, name, phase):
    if phase == "before" and name == "write *.log" and blocked.is_set():
        stuck.set()
        threading.Event().wait()  # a disk that does not answer, under the partition's lock
fs = FaultyFileSystem()
cluster = Cluster(_Place(Path(sys.argv[1])), fs=fs)
cluster.create_topic("t")
producer = cluster.producer(max_block_ms=300)
for _ in range(20_000):
    producer.send("t", bytes(100), key=b"k" if keyed else None)
producer.flush()
fs.steps.hook = hook
blocked.set()
producer.send("t", b"stuck")
threading.Thread(target=producer.flush, daemon=True).start()
stuck.wait()
before, kept, sent = rss(), [], 0
try:
    while True:
        kept.append(producer.send("t", b"%0100d" % sent, key=b"%010d" % sent if keyed else None))
        sent += 1
except streamlog.BufferExhaustedError:
    pass
print(sent, rss() - before, producer.config.buffer_memory, flush=True)
import os
os._exit(0)
"""


@pytest.mark.parametrize("kind", ["plain", "keyed"])
def test_a_producer_that_outruns_its_disk_grows_by_its_buffer_and_no_more(kind: str, place: Path) -> None:
    """Every delivery is held, which costs most; 1.2 times `buffer_memory` and one batch."""
    run = subprocess.run(
        [sys.executable, "-c", OUTRUN, str(place / "log"), kind], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "STREAMLOG_VERIFY": "0"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    sent, grown, buffer_memory = map(int, run.stdout.split())
    assert sent > buffer_memory / (100 + 10 + RECORD_MEMORY) * 0.9
    assert grown < 1.2 * buffer_memory + 16_384 * 3, f"{grown / buffer_memory:.2f} of buffer_memory"


# ---- too large ---------------------------------------------------------------------------------------------------------------


def test_too_large_says_which_limit(log: streamlog.Cluster) -> None:
    log.create_topic("t", max_message_bytes=5000)
    log.create_topic("u", max_message_bytes=10 << 20)
    with log.producer() as producer:
        for topic, size, limit in (("t", 5000, "max_message_bytes=5000"), ("u", (1 << 20) + 1, "max_request_size=1048576")):
            for call in (
                lambda: producer.send(topic, bytes(size)), lambda: producer.send(topic, b"v", key=bytes(size)),
                lambda: producer.send(topic, b"v", headers={"h": bytes(size)}), lambda: producer.send_batch(topic, [b"v", bytes(size)]),
            ):  # fmt: skip
                with pytest.raises(streamlog.RecordTooLargeError, match=limit):
                    call()
        with pytest.raises(streamlog.RecordTooLargeError, match="max_request_size"), producer.batch("u") as batch:
            batch.append(bytes((1 << 20) + 1))
    assert log.topic("t").end_offsets() == log.topic("u").end_offsets() == {0: 0}
    with log.producer(buffer_memory=10_000) as producer, pytest.raises(streamlog.RecordTooLargeError, match="buffer_memory=10000"):
        producer.send("u", bytes(10_001))


@pytest.mark.parametrize("limit", [200, 300, 1000, 5000])
@pytest.mark.parametrize("codec", [None, "gzip", "lz4"])
def test_batches_stay_within_max_message_bytes(limit: int, codec: str | None, log: streamlog.Cluster) -> None:
    """Also where `batch_size` is above it: no batch is made that the topic refuses."""
    log.create_topic("t", max_message_bytes=limit)
    with log.producer(compression_type=codec, linger_ms=60_000) as producer:
        deliveries = []
        for number in range(2000):
            key = None if number % 3 else b"k%d" % number
            headers = {"h": b"1"} if number % 7 == 0 else None
            value = None if number % 5 == 0 and key else os.urandom(number % 20)
            deliveries.append(producer.send("t", value, key=key, headers=headers, timestamp_ms=number if number % 11 == 0 else None))
        deliveries += producer.send_batch("t", [os.urandom(number % 20) for number in range(500)])
        producer.flush()
        assert [delivery.exception() for delivery in deliveries if delivery.exception()] == []
    with log.consumer("t", auto_offset_reset="earliest") as consumer:
        batches = consumer.poll_batches()
    assert sum(map(len, batches)) == 2500
    assert max(batch._batch.length for batch in batches) <= limit


# ---- how long a record lives -------------------------------------------------------------------------------------------------


def test_delivery_timeout_bounds_a_records_life(place: Path) -> None:
    fs = FaultyFileSystem()
    with Cluster(_Place(place / "log"), fs=fs) as cluster:
        cluster.create_topic("t")
        heard: list[BaseException | None] = []
        with cluster.producer(delivery_timeout_ms=300, retry_backoff_ms=10, linger_ms=5) as producer:
            producer.send("t", b"0").result()
            fs.fail_when(**FULL)
            began = time.monotonic()
            delivery = producer.send("t", b"lost", on_delivery=lambda _, error: heard.append(error))
            assert isinstance(delivery.exception(), StorageFullError)
            assert 0.2 < time.monotonic() - began < 5
            assert producer.metrics().record_retry_total > 3
            assert producer.metrics().record_error_total == 1
            fs.clear()
            producer.send("t", b"2").result()
        assert [type(error) for error in heard] == [StorageFullError]
        assert batches_of(cluster) == [1, 1]


def test_retries_bound_the_tries_and_back_off(place: Path) -> None:
    fs = FaultyFileSystem()
    with Cluster(_Place(place / "log"), fs=fs) as cluster:
        cluster.create_topic("t")
        with cluster.producer(retries=3, retry_backoff_ms=20, retry_backoff_max_ms=40) as producer:
            producer.send("t", b"0").result()
            fs.fail_when(**FULL)
            began = time.monotonic()
            assert isinstance(producer.send("t", b"lost").exception(), StorageFullError)
            assert time.monotonic() - began >= 0.02 + 0.04 + 0.04 - 0.005
            assert producer.metrics().record_retry_total == 3


# ---- callbacks ---------------------------------------------------------------------------------------------------------------


def test_callbacks_come_in_order_and_one_that_raises_stops_nobody(log: streamlog.Cluster, caplog: pytest.LogCaptureFixture) -> None:
    log.create_topic("t", 2)
    heard: dict[int, list[int]] = {0: [], 1: []}

    def told(metadata: streamlog.RecordMetadata | None, error: BaseException | None) -> None:
        assert metadata is not None
        heard[metadata.partition].append(metadata.offset)
        if metadata.offset % 10 == 3:
            raise ValueError("in a callback")

    with log.producer(batch_size=500) as producer:
        for number in range(200):
            producer.send("t", bytes(40), partition=number % 2, on_delivery=told)
    assert heard == {0: list(range(100)), 1: list(range(100))}
    assert caplog.text.count("ValueError: in a callback") == 20


def test_ctrl_c_in_a_callback_leaves_out_no_other(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    heard: list[int] = []

    def told(metadata: streamlog.RecordMetadata | None, error: BaseException | None) -> None:
        assert metadata is not None
        heard.append(metadata.offset)
        if metadata.offset == 1:
            raise KeyboardInterrupt

    with log.producer(linger_ms=60_000) as producer:
        for _ in range(5):
            producer.send("t", b"v", on_delivery=told)
        with pytest.raises(KeyboardInterrupt):
            producer.flush()
        assert heard == [0, 1, 2, 3, 4]
        producer.send("t", b"after").result()


def test_callbacks_may_send(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer() as producer:
        producer.send("t", b"1", on_delivery=lambda *_: producer.send("t", b"2", on_delivery=lambda *_: producer.send("t", b"3")))
        producer.flush()
    assert sum(batches_of(log)) == 3


# ---- the end of a process ----------------------------------------------------------------------------------------------------

AT_EXIT = """
import errno, sys
from pathlib import Path
from streamlog.cluster import Cluster, _Place
from streamlog.testing.faults import FaultyFileSystem
fs = FaultyFileSystem()
cluster = Cluster(_Place(Path(sys.argv[1])), fs=fs)
cluster.create_topic("t")
patience = 60_000 if sys.argv[2] == "fine" else 2_000
producer = cluster.producer(linger_ms=patience, delivery_timeout_ms=patience, retry_backoff_ms=10)
producer.send("t", b"first").result()
if sys.argv[2] != "fine":
    fs.fail_when("write", "*/t-0/*.log", times=10**9, number=errno.ENOSPC)
for _ in range(7):
    producer.send("t", b"v")
if sys.argv[2] == "stuck":
    flush = producer.flush
    type(producer).flush = lambda self, timeout=None: flush(0.2)
"""


@pytest.mark.parametrize("disk", ["fine", "full", "stuck"])
def test_the_exit_of_the_interpreter_writes_or_says_what_was_lost(disk: str, place: Path) -> None:
    run = subprocess.run([sys.executable, "-c", AT_EXIT, str(place / "log"), disk], capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode == 0
    with streamlog.open(place / "log") as log:
        assert sum(batches_of(log)) == (8 if disk == "fine" else 1)
    assert ("lost 7 records" in run.stderr) == (disk != "fine"), run.stderr
    assert disk != "fine" or run.stderr == ""


# ---- acks --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("acks", [0, 1, "all", -1, "1", "0"])
def test_every_kind_of_acks(acks: object, log: streamlog.Cluster) -> None:
    log.create_topic("t", min_insync_replicas=2)  # of one replica one is enough, as in Kafka: min(min.insync.replicas, replication factor)
    with log.producer(acks=acks) as producer:
        found = producer.send("t", b"v").result()
        assert found.offset == (-1 if str(acks) == "0" else 0)
    assert batches_of(log) == [1]


@pytest.mark.parametrize("serializer", [lambda _: "text", lambda _: None, lambda _: 7, lambda _: 1 / 0])
def test_serializers_that_return_no_bytes(serializer: object, log: streamlog.Cluster) -> None:
    log.create_topic("t")
    for option in ("value_serializer", "key_serializer"):
        with log.producer(**{option: serializer}) as producer:
            for call in (lambda: producer.send("t", b"v", key=b"k"), lambda: producer.send_batch("t", [b"v"], keys=[b"k"])):
                with pytest.raises(streamlog.SerializationError, match=option):
                    call()
    assert batches_of(log) == []


def test_acks_0_stands_whatever_becomes_of_the_record(log: streamlog.Cluster) -> None:
    log.create_topic("t", max_message_bytes=1000)
    with log.producer(acks=0, compression_type="gzip") as producer:
        delivery = producer.send("t", os.urandom(5000))
        assert (delivery.done(), delivery.result().offset) == (True, -1)
        producer.flush()
        assert (delivery.result().offset, delivery.exception()) == (-1, None)
        assert producer.metrics().record_error_total == 1
