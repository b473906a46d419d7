"""What a producer keeps through interruptions between its own steps, a close that does not wait, and callbacks that misbehave."""

import os
import sys
import threading
import time
from pathlib import Path

import pytest

import streamlog
from conftest import values_of
from streamlog._client.batch import telling
from streamlog._format import names
from streamlog._log.producer_state import ProducerStateManager
from streamlog.cluster import Cluster, _Place
from streamlog.producer import Producer
from streamlog.testing.faults import FaultyFileSystem

LONG_MAX = 2**63 - 1


class Interruption(BaseException):
    """As Ctrl-C."""


def held_up(log: streamlog.Cluster, producer: Producer, value: bytes) -> tuple[streamlog.Delivery, object]:
    """A record whose append waits, on the sender's thread, for the partition's lock; and the lock."""
    lane = producer._targets["t"].lanes[0]
    lane.log.lock.acquire()
    delivery = producer.send("t", value)
    while not lane.turn.locked():
        time.sleep(0.0005)
    return delivery, lane.log.lock


def test_a_close_that_does_not_wait_gives_no_sequence_twice(log: streamlog.Cluster) -> None:
    """The thread that is appending goes on: what it writes is not taken for what was written before."""
    log.create_topic("t")
    producer = log.producer(linger_ms=1)
    producer.send("t", b"0").result()
    first, lock = held_up(log, producer, b"1")
    (second,) = producer.send_batch("t", [b"2"])
    with pytest.raises(streamlog.StreamlogTimeoutError):
        producer.close(timeout=0.005)
    lock.release()  # type: ignore[attr-defined]
    outcomes = [delivery.exception(timeout=5) for delivery in (first, second)]
    written = values_of(log)
    assert written == [b"0", b"1", b"2"][: len(written)]
    for value, error in zip((b"1", b"2"), outcomes):
        assert (value in written) == (error is None)


def test_close_refuses_other_threads_first_and_then_writes_what_was_taken(log: streamlog.Cluster) -> None:
    """Who goes on sending keeps no `close` waiting; what a callback sends is still taken."""
    log.create_topic("t")
    producer = log.producer(linger_ms=1)
    producer.send("t", b"0").result()
    _, lock = held_up(log, producer, b"1")
    producer.send("t", b"2", on_delivery=lambda *_: producer.send("t", b"of a callback"))
    closing = threading.Thread(target=producer.close)
    closing.start()
    while not producer._closing:
        time.sleep(0.0005)
    for send in (
        lambda: producer.send("t", b"late"),
        lambda: producer.send("t", b"late", key=b"k"),
        lambda: producer.send("t", b"late", headers={"a": b"b"}),
        lambda: producer.send_batch("t", [b"late"]),
    ):
        with pytest.raises(streamlog.ClosedError):
            send()
    lock.release()  # type: ignore[attr-defined]
    closing.join(20)
    assert not closing.is_alive()
    assert values_of(log) == [b"0", b"1", b"2", b"of a callback"]


def test_a_forked_child_knows_no_thread_that_calls_callbacks(log: streamlog.Cluster) -> None:
    """The ident of a thread of the parent may be that of a thread of the child's."""
    log.create_topic("t")
    with log.producer(linger_ms=0) as producer:
        inside, go_on = threading.Event(), threading.Event()
        sender = threading.Thread(target=lambda: producer.send("t", b"1", on_delivery=lambda *_: (inside.set(), go_on.wait(20))).result())
        sender.start()
        assert inside.wait(20)
        pid = os.fork()
        if pid == 0:
            os._exit(len(telling))
        go_on.set()
        sender.join(20)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert not telling


def test_a_close_that_does_not_wait_leaves_no_delivery_without_an_end(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    told: list[BaseException | None] = []
    producer = log.producer(linger_ms=1, retries=0)
    producer.send("t", b"0").result()
    _, lock = held_up(log, producer, b"1")
    delivery = producer.send("t", b"2", on_delivery=lambda _, error: told.append(error))
    with pytest.raises(streamlog.StreamlogTimeoutError):
        producer.close(timeout=0.005)
    time.sleep(0.2)
    lock.release()  # type: ignore[attr-defined]
    error = delivery.exception(timeout=5)
    while not told:
        time.sleep(0.001)
    assert told == [error]
    assert (b"2" in values_of(log)) == (error is None)
    assert error is None or isinstance(error, streamlog.ClosedError)


def test_a_batch_that_is_being_opened_is_not_written_yet(log: streamlog.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread drains the queue just after the new batch joined it."""
    log.create_topic("t")
    real = Producer._enqueue

    def slowly(self: Producer, lane: object, batch: object) -> None:
        real(self, lane, batch)  # type: ignore[arg-type]
        if threading.current_thread().name == "opener":
            time.sleep(0.05)

    monkeypatch.setattr(Producer, "_enqueue", slowly)
    with log.producer(linger_ms=0) as producer:
        producer.send("t", b"0").result()
        found: list[streamlog.Delivery] = []
        thread = threading.Thread(target=lambda: found.append(producer.send("t", b"1")), name="opener")
        thread.start()
        time.sleep(0.02)
        producer._targets["t"].lanes[0].drain()
        thread.join()
        assert found[0].result(timeout=5).offset == 1
    assert values_of(log) == [b"0", b"1"]


def test_an_opening_that_is_interrupted_holds_up_nothing(log: streamlog.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    log.create_topic("t")
    real = Producer._enqueue

    def interrupted(self: Producer, lane: object, batch: object) -> None:
        real(self, lane, batch)  # type: ignore[arg-type]
        monkeypatch.undo()
        raise Interruption

    with log.producer(linger_ms=5) as producer:
        monkeypatch.setattr(Producer, "_enqueue", interrupted)
        with pytest.raises(Interruption):
            producer.send("t", b"never accepted")
        assert producer.send("t", b"1").result(timeout=5).offset == 0
        producer.flush(timeout=5)
    assert values_of(log) == [b"1"]


@pytest.mark.parametrize("where", ["count", "_enqueue"])
def test_interruptions_of_bookkeeping(where: str, log: streamlog.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between taking a batch off its queue and the rest; between taking a record from aside and queueing it."""
    from streamlog._client.meter import ProducerMeter

    log.create_topic("t", 2)
    with log.producer(linger_ms=5) as producer:
        producer.send("t", b"0", partition=0).result()
        if where == "_enqueue":
            target = producer._targets["t"]
            producer._send_aside(target, (None, b"aside", None, None), 0, None, 5)
        owner = ProducerMeter if where == "count" else Producer

        def interrupted(*_: object) -> None:
            monkeypatch.undo()
            raise Interruption

        monkeypatch.setattr(owner, where, interrupted)
        with pytest.raises(Interruption):
            producer.send("t", b"1", partition=0)
            producer.flush()
        if where == "_enqueue":
            producer.send("t", b"1", partition=0)
        producer.flush(timeout=5)
        began = time.monotonic()
        for number in range(5):
            producer.send("t", b"%d" % number, partition=1).result(timeout=5)
        assert time.monotonic() - began < 2, "the sender works as before"
    values = values_of(log)
    assert sorted(values) == sorted([b"0", b"1", *[b"%d" % number for number in range(5)], *([b"aside"] if where == "_enqueue" else [])])


def test_a_second_interruption_in_the_handler_of_the_first(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the bytes, and again before anything is noted: another process adopts the batch, and it is not written again."""
    fs = FaultyFileSystem()
    with Cluster(_Place(place / "log"), fs=fs) as cluster, streamlog.open(place / "log") as other:
        cluster.create_topic("t")
        with cluster.producer(linger_ms=60_000) as producer, other.producer() as neighbour:
            producer.send("t", b"0")
            producer.flush()
            log = producer._targets["t"].lanes[0].log
            seen: list[int] = []

            def tracer(frame, event, arg):
                if event == "exception" and frame.f_code.co_name == "_append" and frame.f_locals.get("self") is log and not seen:
                    seen.append(frame.f_lineno)
                    raise Interruption  # in place of what was on its way, before the handler's first line
                return tracer

            def hook(_: int, name: str, phase: str) -> None:
                if name == "write *.log" and phase == "after":
                    fs.steps.hook = None
                    raise Interruption

            delivery = producer.send("t", b"1")
            fs.steps.hook = hook
            sys.settrace(tracer)
            try:
                with pytest.raises(Interruption):
                    producer.flush()
            finally:
                sys.settrace(None)
            assert seen
            neighbour.send("t", b"adopts").result()
            producer.flush()
            assert delivery.result().offset == 1
        assert values_of(cluster) == [b"0", b"1", b"adopts"]


def test_sys_exit_in_a_callback_ends_no_sender(log: streamlog.Cluster, caplog: pytest.LogCaptureFixture) -> None:
    log.create_topic("t")
    with log.producer(linger_ms=5) as producer:
        producer.send("t", b"0", on_delivery=lambda *_: sys.exit(1))
        delivery = producer.send("t", b"1")
        while not delivery.done():
            time.sleep(0.001)
        late = producer.send("t", b"2")
        deadline = time.monotonic() + 5
        while not late.done():
            assert time.monotonic() < deadline, "the sender is gone"
            time.sleep(0.001)
    assert values_of(log) == [b"0", b"1", b"2"]


def test_a_callback_may_send_while_the_buffer_is_full(log: streamlog.Cluster) -> None:
    """The thread that would wait is the one that frees memory."""
    log.create_topic("t")
    with log.producer(buffer_memory=2000, batch_size=1000, max_block_ms=2000, linger_ms=60_000) as producer:
        deliveries: list[streamlog.Delivery] = []
        for number in range(6):
            producer.send("t", bytes(700), on_delivery=lambda *_, number=number: deliveries.append(producer.send("t", b"%d" % number + bytes(700))))
        producer.flush()
        began = time.monotonic()
        producer.flush()
        assert time.monotonic() - began < 1
    assert all(delivery.exception() is None for delivery in deliveries)
    assert len(values_of(log)) == 12


def test_a_buffer_that_runs_full_inside_send_batch(place: Path) -> None:
    """What was sent has deliveries, and so has what was not."""
    import errno

    fs = FaultyFileSystem()
    with Cluster(_Place(place / "log"), fs=fs) as cluster:
        cluster.create_topic("t", max_message_bytes=1000)
        with cluster.producer(buffer_memory=1500, max_block_ms=50, retry_backoff_ms=10) as producer:
            producer.send("t", b"0").result()
            fs.fail_when("write", "*/t-0/*.log", times=10**9, number=errno.ENOSPC)
            deliveries = producer.send_batch("t", [bytes(400)] * 6)
            assert isinstance(deliveries[-1].exception(), streamlog.BufferExhaustedError)
            fs.clear()
            producer.flush()
            written = sum(delivery.result().count for delivery in deliveries if delivery.exception() is None)
            assert 0 < written < 6
            assert repr(deliveries[-1])
        assert len(values_of(cluster)) == 1 + written


def test_nulls_of_send_batch_take_their_room(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer() as producer:
        for values in ([b"v"] * 2 + [None] * 400_000, [None] * 300_000):
            deliveries = producer.send_batch("t", values, keys=[b"k"] * len(values))
            assert [delivery.exception() for delivery in deliveries if delivery.exception()] == []


def test_the_longest_times_of_java(log: streamlog.Cluster) -> None:
    """2^63 - 1 milliseconds is what its clients write for "for ever"."""
    log.create_topic("t")
    with log.producer(max_block_ms=LONG_MAX) as producer:
        lock = log._home.metadata._lock
        lock.acquire()
        threading.Timer(0.1, lock.release).start()
        producer.send("t", b"v").result(timeout=5)
    with log.producer(linger_ms=200_000) as producer:  # the delivery's time-out follows, where it was left at its default
        assert producer.config.delivery_timeout_ms == 230_000
    with pytest.raises(streamlog.InvalidConfigError):
        log.producer(linger_ms=200_000, delivery_timeout_ms=120_000)


def test_a_batch_writers_delivery_in_a_forked_child(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(linger_ms=60_000) as producer:
        writer = producer.batch("t")
        writer.append(b"v")
        pid = os.fork()
        if pid == 0:
            try:
                writer.delivery.result()
            except streamlog.ClosedError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        with writer:
            pass


def test_a_damaged_header_of_an_old_segment_stops_no_append(place: Path) -> None:
    with streamlog.open(place / "log") as cluster:
        cluster.create_topic("t", segment_bytes=4096)
        with cluster.producer(linger_ms=0) as producer:
            for number in range(20):
                producer.send("t", b"%d" % number + bytes(1000)).result()
            log = producer._targets["t"].lanes[0].log
            directory = Path(log.directory)
            for path in directory.glob("*.snapshot"):
                path.unlink()
            with open(directory / names.log(0), "r+b") as file:
                file.seek(20)
                file.write(b"\xff\xff")
            log.producers.broken_off = True
            assert producer.send("t", b"after").result().offset == 20


def test_who_has_the_turn_is_known_at_once(log: streamlog.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler that flushes just as the turn is taken waits for nobody."""
    log.create_topic("t")
    with log.producer() as producer:
        producer.send("t", b"0").result()
        lane = producer._targets["t"].lanes[0]
        real, asked = ProducerStateManager.answer, []

        def handler(self: ProducerStateManager, batch: object) -> bool:
            monkeypatch.undo()
            lane.holder = 0  # as before it was noted
            asked.append(lane.is_own_turn())
            return real(self, batch)  # type: ignore[arg-type]

        monkeypatch.setattr(ProducerStateManager, "answer", handler)
        producer.send("t", b"1").result()
        assert asked == [True]
        assert not lane.is_own_turn()


def test_acks_0_tells_the_records_own_time(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(acks=0) as producer:
        assert producer.send("t", b"v", timestamp_ms=123).result() == ("t", 0, -1, 123)
