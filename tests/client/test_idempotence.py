"""Exactly once into the log: whatever breaks off an append, each record is there once and in order."""

import errno
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import streamlog
from conftest import records_of, values_of
from streamlog._format import names
from streamlog.cluster import Cluster, _Place
from streamlog.errors import DiskFailedError, StorageFullError
from streamlog.testing.faults import FaultyFileSystem, Steps

SMALL = {"segment_bytes": 4096, "index_interval_bytes": 0}


class Interruption(BaseException):
    """As Ctrl-C: raised anywhere, caught by nobody inside."""


@contextmanager
def stepped(path: Path) -> Iterator[tuple[Cluster, Steps]]:
    """A cluster whose steps can be made to fail."""
    from streamlog.testing.faults import step_words

    steps = Steps()
    undo = step_words(steps)
    cluster = Cluster(_Place(path), fs=FaultyFileSystem(steps=steps))
    try:
        yield cluster, steps
    finally:
        steps.hook = None
        cluster.close()
        undo()


def raising(at: int, phase: str, error: type[BaseException]) -> Callable[[int, str, str], None]:
    def hook(number: int, name: str, now: str) -> None:
        if (number, now) == (at, phase):
            raise error(f"injected at {name}")

    return hook


@pytest.mark.parametrize(("error", "other"), [(StorageFullError, False), (Interruption, False), (Interruption, True)])
def test_a_fault_between_any_two_steps_duplicates_nothing(error: type[BaseException], other: bool, place: Path) -> None:
    """Each step of appends that roll, each of its phases: a disk that is full for a moment, or Ctrl-C; and then another process's append."""
    wanted = [b"%d" % number + bytes(700) for number in range(8)]
    number, places, taken = 0, 0, 1
    while number < taken:
        for phase in ("before", "half", "after"):
            path = place / f"{number}-{phase}"
            with stepped(path) as (cluster, steps), streamlog.open(path) as beside, beside.producer() as neighbour:
                cluster.create_topic("t", **SMALL)
                with cluster.producer(linger_ms=1000, retry_backoff_ms=0) as producer:
                    producer.send("t", wanted[0])
                    producer.flush()
                    steps.names.clear()
                    steps.hook = raising(number, phase, error)
                    for value in wanted[1:]:
                        producer.send("t", value)  # into the open batch: no step
                        for _ in range(3):
                            try:
                                producer.flush(timeout=10)
                                break
                            except Interruption:
                                places += 1
                                if other:
                                    neighbour.send("t", b"other").result()
                    steps.hook = None
                taken = max(taken, len(steps.names))
                found = [value for value in values_of(cluster) if value != b"other"]
                assert found == wanted, (number, phase, steps.names[number])
                assert streamlog.check(cluster) == []
        number += 1
    assert taken > 40
    assert places > 20 or error is StorageFullError


@pytest.mark.parametrize("other", [False, True])
def test_bytes_that_were_written_are_not_written_again(other: bool, place: Path) -> None:
    """The fault comes after the bytes and before the acknowledgement; another process may have adopted them by the time of the retry."""
    fs = FaultyFileSystem()
    with Cluster(_Place(place / "log"), fs=fs) as cluster, streamlog.open(place / "log") as bystander:
        cluster.create_topic("t")
        done: list[str] = []

        def hook(_: int, name: str, phase: str) -> None:
            if name == "write *.log" and phase == "after" and not done:
                done.append(name)
                raise StorageFullError("after the bytes")

        with cluster.producer(linger_ms=1000, retry_backoff_ms=200) as producer, bystander.producer() as neighbour:
            neighbour.send("t", b"first").result()
            delivery = producer.send("t", b"once")
            fs.steps.hook = hook
            thread = threading.Thread(target=producer.flush)
            thread.start()
            while not done:
                pass
            if other:
                neighbour.send("t", b"adopts").result()
            thread.join()
            assert delivery.result().offset == 1
            producer.send("t", b"after").result()
            assert producer.metrics().record_retry_total == 1
        assert values_of(cluster) == [b"first", b"once", *([b"adopts"] if other else []), b"after"]


def test_without_idempotence_a_retry_may_duplicate(place: Path) -> None:
    """As in Kafka; this is what the rule is for."""
    fs = FaultyFileSystem()
    with Cluster(_Place(place / "log"), fs=fs) as cluster:
        cluster.create_topic("t")
        with cluster.producer(enable_idempotence=False, retry_backoff_ms=0) as producer:
            fs.steps.hook = fail_once("write *.log", "after")
            producer.send("t", b"twice").result()
        assert values_of(cluster) == [b"twice", b"twice"]


def fail_once(step: str, phase: str, error: type[BaseException] = StorageFullError) -> Callable[[int, str, str], None]:
    done: list[int] = []

    def hook(number: int, name: str, now: str) -> None:
        if (name, now) == (step, phase) and not done:
            done.append(number)
            raise error(f"injected {phase} {name}")

    return hook


@pytest.mark.parametrize("round_", range(3))
def test_threads_and_faults_keep_order_and_count(round_: int, place: Path, seed: int) -> None:
    """Against the simplest model: what a thread sent to a partition, in order, each record once; a failed one at most once."""
    chance = random.Random(seed + round_)
    with stepped(place / "log") as (cluster, steps):
        cluster.create_topic("t", 3, **SMALL)
        guard = threading.Lock()

        def hook(_: int, name: str, phase: str) -> None:
            with guard:
                broken = chance.random() < 0.01
            if broken and name.startswith(("word", "write *.log", "write *.index", "create *.log", "rename *.log")):
                raise StorageFullError(f"injected {phase} {name}")

        steps.hook = hook
        deliveries: list[list[tuple[int, bytes, streamlog.Delivery]]] = [[], [], [], []]
        with cluster.producer(linger_ms=1, retry_backoff_ms=1, retries=chance.choice((2, 1000)), batch_size=300) as producer:

            def work(number: int) -> None:
                own = random.Random(seed * 7 + number)
                for count in range(400):
                    value = b"%d-%d" % (number, count)
                    partition = own.randrange(3)
                    deliveries[number].append((partition, value, producer.send("t", value, partition=partition)))
                    if own.random() < 0.02:
                        producer.flush()

            threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            producer.flush()
            steps.hook = None
        records = records_of(cluster)
        at = {(record.partition, record.offset): record.value for record in records}
        assert len({record.value for record in records}) == len(records), "no record twice"
        for number, sent in enumerate(deliveries):
            for partition in range(3):
                written = [record.value for record in records if record.partition == partition and record.value.startswith(b"%d-" % number)]
                acknowledged = [value for where, value, delivery in sent if where == partition and delivery.exception() is None]
                order = [value for where, value, _ in sent if where == partition]
                assert [value for value in order if value in set(written)] == written, "in the order of the sends"
                assert set(acknowledged) <= set(written), "what was acknowledged is there"
            for _, value, delivery in sent:
                if delivery.exception() is None:
                    found = delivery.result()
                    assert at[found.partition, found.offset] == value, "at the offset that was told"
        assert streamlog.check(cluster) == []


def test_after_a_failed_batch_the_next_is_not_taken_for_it(place: Path) -> None:
    """A batch that failed may be in the log: what comes after it begins a new epoch, and is written whatever its size."""
    fs = FaultyFileSystem()
    with Cluster(_Place(place / "log"), fs=fs) as cluster:
        cluster.create_topic("t")
        with cluster.producer(retries=1, retry_backoff_ms=0) as producer:
            producer.send("t", b"0").result()
            fs.fail_when("write", "*/t-0/*.log", times=2, number=errno.ENOSPC)
            fs.steps.hook = fail_once("write *.log", "after")
            assert isinstance(producer.send("t", b"doubtful").exception(), StorageFullError)
            fs.steps.hook = None
            fs.clear()
            assert producer.send("t", b"2").result().offset >= 1
            assert producer.send("t", b"3").result().offset >= 2
            lane = producer._targets["t"].lanes[0]
            assert lane.next[1:] == (2, 1), "sequence and epoch"
        values = values_of(cluster)
        assert [value for value in values if value != b"doubtful"] == [b"0", b"2", b"3"]


def test_epochs_and_sequences_run_out(place: Path) -> None:
    log = streamlog.open(place / "log")
    log.create_topic("t")
    with log.producer() as producer:
        producer.send("t", b"0").result()
        lane = producer._targets["t"].lanes[0]
        producer_id = lane.next[0]
        lane.next, lane.failed = (producer_id, 7, 2**15 - 1), True
        producer.send("t", b"1").result()
        assert lane.next[1:] == (1, 0)
        assert lane.next[0] != producer_id, "a new id, since the epochs of the old one are used up"
        lane.next = lane.next[0], 2**31 - 1, 0
        lane.log.producers.states.entries[lane.next[0]] = 0, 2**31 - 1, ((2**31 - 2, 2**31 - 2, 1, 0),), 1, 0
        producer.send("t", b"2").result()
        assert lane.next[1] == 0, "after 2^31 - 1 comes 0"
        producer.send("t", b"3").result()
    assert values_of(log) == [b"0", b"1", b"2", b"3"]
    log.close()


def test_lost_records_are_told_and_the_producer_goes_on(place: Path) -> None:
    """The log was cut below what was acknowledged (a restored copy): a gap is refused, once; then a new epoch begins."""
    with streamlog.open(place / "log") as cluster:
        cluster.create_topic("t")
        with cluster.producer() as producer:
            for number in range(3):
                producer.send("t", b"%d" % number).result()
            log = cluster._home.log(cluster._home.metadata.topic("t"), 0, 5)
            segment = Path(log.directory) / names.log(0)
            data = segment.read_bytes()
            os.truncate(segment, 64 + 2 * 96)
            assert len(data) > 64 + 3 * 96 - 1
            log.words[4] = 0  # BOOT: the slot does not count
            with pytest.raises(streamlog.OutOfOrderSequenceError):
                producer.send("t", b"3").result()
            assert producer.send("t", b"4").result().offset == 2
        assert values_of(cluster) == [b"0", b"1", b"4"]


# ---- producer ids ------------------------------------------------------------------------------------------------------------


def test_h31_an_id_is_given_once(place: Path) -> None:
    """To many processes, killed ones among them; a block is on the disk before an id of it is used."""
    with streamlog.open(place / "log") as cluster:
        found: set[int] = set()
        for life in range(8):
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                for _ in range(300):
                    os.write(writing, b"%d\n" % cluster._home.new_producer_id(10))
                    if life % 2 and _ == 200:
                        os.kill(os.getpid(), signal.SIGKILL)
                os._exit(0)
            os.close(writing)
            with os.fdopen(reading) as pipe:
                given = [int(line) for line in pipe.read().split()]
            os.waitpid(pid, 0)
            assert len(given) >= 201
            assert not found & set(given)
            found |= set(given)
        assert len(found) > 2000
        cluster.topics()
        assert cluster._home.metadata.next_producer_id > max(found)
        assert cluster._home.metadata.next_producer_id <= 4000, "processes share a block"


def test_h31_no_id_without_a_synced_record(place: Path) -> None:
    fs = FaultyFileSystem()
    cluster = Cluster(_Place(place / "log"), fs=fs)
    cluster.create_topic("t")
    with cluster.producer() as producer:
        fs.fail_when("sync", "*/__cluster_metadata-0/*.log", times=1000)
        assert isinstance(producer.send("t", b"v").exception(timeout=10), DiskFailedError)
    fs.clear()
    assert values_of(cluster) == []
    cluster.close()
    with streamlog.open(place / "log") as again, again.producer() as producer:
        producer.send("t", b"v").result()
        assert values_of(again) == [b"v"]


def test_each_producer_has_its_own_id_and_a_partition_its_own_sequence(log: streamlog.Cluster) -> None:
    log.create_topic("t", 2)
    seen: dict[int, list[int]] = {}
    for _ in range(3):
        with log.producer(linger_ms=0) as producer:
            for _ in range(4):
                for partition in range(2):
                    producer.send("t", b"v", partition=partition)
            for lane in producer._targets["t"].lanes:
                seen.setdefault(lane.next[0], []).append(lane.next[1])
    assert list(seen.values()) == [[4, 4]] * 3


@pytest.mark.parametrize(
    ("options", "idempotent"),
    [
        ({}, True), ({"acks": 1}, False), ({"acks": 0}, False), ({"retries": 0}, False), ({"acks": -1}, True), ({"enable_idempotence": False}, False),
        ({"enable_idempotence": "true", "acks": "all"}, True), ({"enable_idempotence": False, "max_in_flight_requests_per_connection": 9}, False),
        ({"enable_idempotence": True, "acks": 1}, None), ({"enable_idempotence": True, "acks": 0}, None),
        ({"enable.idempotence": True, "retries": 0}, None), ({"max_in_flight_requests_per_connection": 6}, None),
    ],
)  # fmt: skip
def test_kafkas_rules_for_what_does_not_go_together(options: dict[str, object], idempotent: bool | None, log: streamlog.Cluster) -> None:
    log.create_topic("t")
    if idempotent is None:
        with pytest.raises(streamlog.InvalidConfigError):
            log.producer(options)
        return
    with log.producer(options) as producer:
        assert producer.config.enable_idempotence is idempotent
        producer.send("t", b"v").result()
    with log.consumer("t", auto_offset_reset="earliest") as consumer:
        (batch,) = consumer.poll_batches()
        assert (batch._batch.producer_id >= 0) is idempotent


@pytest.mark.parametrize("kill", [False, True])
def test_children_of_a_fork_write_under_their_own_id(kill: bool, place: Path) -> None:
    with streamlog.open(place / "log") as cluster:
        cluster.create_topic("t")
        with cluster.producer() as producer:
            producer.send("t", b"parent").result()
            pid = os.fork()
            if pid == 0:
                with cluster.producer() as own:
                    own.send("t", b"child").result()
                    if kill:
                        os.kill(os.getpid(), signal.SIGKILL)
                os._exit(0)
            os.waitpid(pid, 0)
            producer.send("t", b"parent again").result()
        assert values_of(cluster) == [b"parent", b"child", b"parent again"]
        assert streamlog.check(cluster) == []
