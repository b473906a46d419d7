"""Transactional producers as their users see them: the rules of calls, what counts, what readers see, offsets, time-outs."""

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamlog
from conftest import records_of, values_of
from streamlog import (
    AbortableTransactionError,
    ClosedError,
    CommitFailedError,
    ConfigurationError,
    InvalidStateError,
    InvalidTxnStateError,
    OffsetAndMetadata,
    ProducerFencedError,
    RecordTooLargeError,
    TopicPartition,
    TransactionAbortedError,
    TransactionalIdNotFoundError,
    UnstableOffsetCommitError,
)

COMMITTED: dict[str, Any] = {"isolation_level": "read_committed"}


def committed(log: streamlog.Cluster, topic: str = "t") -> list[bytes]:
    return [record.value for record in records_of(log, topic, **COMMITTED)]


# ---- what counts -----------------------------------------------------------------------------------------------------------


def test_committed_records_count_and_aborted_ones_never_do(log: streamlog.Cluster) -> None:
    log.create_topic("t", 3)
    with log.producer(transactional_id="x") as producer:
        producer.init_transactions()
        producer.begin_transaction()
        for number in range(30):
            producer.send("t", b"%d" % number, key=b"%d" % number)
        assert committed(log) == []
        producer.commit_transaction()
        assert sorted(committed(log)) == sorted(b"%d" % number for number in range(30))
        producer.begin_transaction()
        for number in range(30):
            producer.send("t", b"never", key=b"%d" % number)
        producer.flush()
        assert values_of(log).count(b"never") == 30, "read_uncommitted shows them"
        producer.abort_transaction()
    assert b"never" not in committed(log)
    assert values_of(log).count(b"never") == 30, "and goes on to do so"


def test_markers_take_offsets_and_are_never_shown(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(transactional_id="x") as producer:
        for number in range(3):
            with producer.transaction():
                producer.send("t", b"%d" % number)
    assert log.topic("t").end_offsets() == {0: 6}
    for level in ("read_uncommitted", "read_committed"):
        found = records_of(log, isolation_level=level)
        assert [(record.offset, record.value) for record in found] == [(0, b"0"), (2, b"1"), (4, b"2")]
        with log.consumer("t", isolation_level=level, auto_offset_reset="earliest") as consumer:
            batches = consumer.poll_batches()
            assert [batch.base_offset for batch in batches] == [0, 2, 4]
            consumer.poll()
            assert consumer.position(TopicPartition("t", 0)) == 6, "the position moves past what is hidden"
            assert consumer.lag() == {TopicPartition("t", 0): 0}


def test_an_open_transaction_holds_committed_readers_up(log: streamlog.Cluster) -> None:
    """The last stable offset: for `poll`, the end, the lag, the time, and the start at the end."""
    log.create_topic("t")
    tp = TopicPartition("t", 0)
    with log.producer(linger_ms=0) as plain, log.producer(transactional_id="x", linger_ms=0) as producer:
        plain.send("t", b"before", timestamp_ms=1000)
        producer.init_transactions()
        producer.begin_transaction()
        producer.send("t", b"open", timestamp_ms=2000)
        plain.send("t", b"after", timestamp_ms=3000)
        with log.consumer("t", auto_offset_reset="earliest", **COMMITTED) as consumer:
            assert [record.value for record in consumer.poll()] == [b"before"]
            assert consumer.poll() == []
            assert consumer.end_offsets([tp]) == {tp: 1}
            assert consumer.lag() == {tp: 0}
            assert consumer.offsets_for_times({tp: 2000}) == {tp: None}
            consumer.seek_to_end()
            assert consumer.position(tp) == 1
            topic = log.topic("t")
            assert topic.end_offsets() == {0: 3}
            assert topic.end_offsets(isolation_level="read_committed") == {0: 1}
            assert topic.offsets_for_times({0: 2000}, isolation_level="read_committed") == {0: None}
            assert topic.offsets_for_times({0: 2000})[0].offset == 1  # type: ignore[union-attr]
            with log.consumer("t", **COMMITTED) as latest:
                assert latest.poll() == []
                assert latest.position(tp) == 1
            producer.commit_transaction()
            assert [record.value for record in consumer.poll()] == [b"open", b"after"]
            assert consumer.end_offsets([tp]) == {tp: 4}


def test_several_open_transactions_end_in_any_order(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    tops = log.topic("t")
    producers = [log.producer(transactional_id=f"x{number}", linger_ms=0) for number in range(3)]
    for number, producer in enumerate(producers):
        producer.init_transactions()
        producer.begin_transaction()
        producer.send("t", b"%d" % number)
    stable = lambda: tops.end_offsets(isolation_level="read_committed")[0]  # noqa: E731
    assert stable() == 0
    producers[1].abort_transaction()
    assert stable() == 0
    producers[0].commit_transaction()
    assert stable() == 2, "the third one began there"
    assert committed(log) == [b"0"]
    producers[2].commit_transaction()
    assert stable() == tops.end_offsets()[0] == 6
    assert committed(log) == [b"0", b"2"]
    for producer in producers:
        producer.close()


def test_an_empty_transaction_writes_nothing(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(transactional_id="x") as producer:
        producer.init_transactions()
        before = log.describe_transaction("x")
        for end in (producer.commit_transaction, producer.abort_transaction):
            producer.begin_transaction()
            end()
        assert log.describe_transaction("x") == before
    assert log.topic("t").end_offsets() == {0: 0}


def test_partitions_are_registered_together(log: streamlog.Cluster) -> None:
    """In one record for all that a flush touches."""
    log.create_topic("t", 4)
    with log.producer(transactional_id="x", linger_ms=60_000) as producer:
        producer.init_transactions()
        state = log._home.log(log._home.metadata.topics["__transaction_state"], producer._manager._coordinator.states.keeper("x", 1).log.partition, 1)  # type: ignore[union-attr]
        before = state.high_watermark
        producer.begin_transaction()
        for partition in range(4):
            producer.send("t", b"v", partition=partition)
        producer.flush()
        assert state.high_watermark == before + 1
        assert len(log.describe_transaction("x").partitions) == 4
        producer.commit_transaction()
        assert state.high_watermark == before + 3, "and then Prepare and Complete"


@pytest.mark.parametrize("codec", [None, "zstd"])
def test_transactions_over_rolls_and_many_aborts(codec: str | None, log: streamlog.Cluster) -> None:
    """Aborted ranges are found in the index of later segments."""
    log.create_topic("t", segment_bytes=4096)
    wanted = []
    with log.producer(transactional_id="x", compression_type=codec) as producer:
        producer.init_transactions()
        for number in range(60):
            producer.begin_transaction()
            for part in range(number % 9 + 1):
                producer.send("t", b"%d-%d" % (number, part) + bytes(300))
                producer.flush()
            if number % 3:
                wanted += [b"%d-%d" % (number, part) + bytes(300) for part in range(number % 9 + 1)]
                producer.commit_transaction()
            else:
                producer.abort_transaction()
    assert committed(log) == wanted
    for start in range(0, log.topic("t").end_offsets()[0], 7):
        with log.consumer(**COMMITTED) as consumer:
            consumer.assign([("t", 0)])
            consumer.seek(("t", 0), start)
            found: list[bytes] = []
            while records := consumer.poll():
                found += [record.value for record in records if record.offset >= start]
            assert found == wanted[len(wanted) - len(found) :]


def test_bulk_and_batch_writers_take_part(log: streamlog.Cluster) -> None:
    log.create_topic("t", 2)
    with log.producer(transactional_id="x") as producer:
        with producer.transaction():
            producer.send_batch("t", [b"a"] * 100, keys=[b"%d" % n for n in range(100)])
            with producer.batch("t", partition=1) as batch:
                for _ in range(100):
                    batch.append(b"b")
            assert committed(log) == []
        assert sorted(committed(log)) == [b"a"] * 100 + [b"b"] * 100


# ---- the rules of calls ------------------------------------------------------------------------------------------------------


def test_calls_out_of_turn_change_nothing(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer() as plain:
        for call in (plain.init_transactions, plain.begin_transaction, plain.commit_transaction, plain.abort_transaction, plain.transaction):
            with pytest.raises(InvalidTxnStateError, match="no transactional_id"):
                call()
    producer = log.producer(transactional_id="x")

    def refused(*calls: Callable[[], object]) -> None:
        for call in calls:
            with pytest.raises(InvalidTxnStateError):
                call()

    def send() -> object:
        return producer.send("t", b"v")

    def send_in_full() -> object:
        return producer.send("t", b"v", partition=0)

    def bulk() -> object:
        return producer.send_batch("t", [b"v"])

    def offsets() -> object:
        return producer.send_offsets({("t", 0): 1}, streamlog.GroupMetadata("g", -1, "", None))

    sending = (send, send_in_full, bulk, offsets)
    refused(producer.begin_transaction, producer.commit_transaction, producer.abort_transaction, *sending)
    producer.init_transactions()
    refused(producer.init_transactions, producer.commit_transaction, producer.abort_transaction, *sending)
    producer.begin_transaction()
    refused(producer.init_transactions, producer.begin_transaction)
    send()
    producer.commit_transaction()
    refused(producer.commit_transaction, producer.abort_transaction, *sending)
    assert producer.partitions_for("t") == [0]
    producer.close()
    for call in (producer.begin_transaction, send):
        with pytest.raises(ClosedError):
            call()
    assert committed(log) == [b"v"]


def test_a_record_that_fails_dooms_the_transaction(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    log.create_topic("gone")
    with log.producer(transactional_id="x") as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send("t", b"doomed")
        delivery = producer.send("gone", b"v")
        log.delete_topic("gone")
        with pytest.raises(streamlog.UnknownTopicOrPartitionError):
            producer.commit_transaction()
        assert isinstance(delivery.exception(), streamlog.UnknownTopicOrPartitionError)
        with pytest.raises(streamlog.UnknownTopicOrPartitionError):
            producer.commit_transaction()
        with pytest.raises(AbortableTransactionError):
            producer.send("t", b"more")
        with pytest.raises(InvalidTxnStateError, match="abort_transaction"):
            producer.begin_transaction()
        producer.abort_transaction()
        with producer.transaction():
            producer.send("t", b"fine")
    assert committed(log) == [b"fine"]


def test_what_send_refuses_dooms_the_transaction_too(log: streamlog.Cluster) -> None:
    """As Kafka's: who ignores it must not commit the rest."""
    log.create_topic("t", max_message_bytes=1000)
    with log.producer(transactional_id="x") as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send("t", b"v")
        with pytest.raises(RecordTooLargeError):
            producer.send("t", bytes(2000))
        with pytest.raises(RecordTooLargeError):
            producer.commit_transaction()
        producer.abort_transaction()
    assert committed(log) == []


def test_the_block_aborts_where_it_raises(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(transactional_id="x") as producer:
        with pytest.raises(KeyError), producer.transaction():
            producer.send("t", b"never")
            raise KeyError
        with producer.transaction() as same:
            assert same is producer
            producer.send("t", b"v")
        with pytest.raises(InvalidTxnStateError), producer.transaction(), producer.transaction():
            pass
        with producer.transaction():
            producer.send("t", b"never")
            producer.abort_transaction()  # without an exception
        with producer.transaction():
            producer.send("t", b"w")
            producer.commit_transaction()
    assert committed(log) == [b"v", b"w"]


def test_a_block_that_took_too_long_to_abort(log: streamlog.Cluster) -> None:
    """The next one goes on with it; a commit that took too long is the user's to repeat, since only that tells the outcome."""
    log.create_topic("t")
    with log.producer(transactional_id="x") as producer:
        manager = producer._manager
        assert manager is not None
        for outcome in ("abort", "commit"):
            real = manager._coordinator.finish
            manager._coordinator.finish = lambda *_: (_ for _ in ()).throw(streamlog.StreamlogTimeoutError("injected"))  # type: ignore[method-assign]
            with pytest.raises((KeyError, streamlog.StreamlogTimeoutError)), producer.transaction():
                producer.send("t", outcome.encode()).result()
                if outcome == "abort":
                    raise KeyError
            manager._coordinator.finish = real  # type: ignore[method-assign]
            if outcome == "commit":
                with pytest.raises(InvalidTxnStateError, match=r"commit_transaction\(\) again, which tells"):
                    producer.begin_transaction()
                producer.commit_transaction()
            with producer.transaction():
                producer.send("t", b"next")
    assert committed(log) == [b"next", b"commit", b"next"]


def test_what_is_not_written_at_an_abort_is_dropped(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    heard: list[object] = []
    with log.producer(transactional_id="x", linger_ms=60_000) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        delivery = producer.send("t", b"never", on_delivery=lambda metadata, error: heard.append(error))
        producer.abort_transaction()
        with pytest.raises(TransactionAbortedError):
            delivery.result()
        assert [type(error) for error in heard] == [TransactionAbortedError]
    assert log.topic("t").end_offsets() == {0: 0}, "not even a marker"


def test_close_aborts(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    producer = log.producer(transactional_id="x", linger_ms=0)
    producer.init_transactions()
    producer.begin_transaction()
    producer.send("t", b"never")
    producer.close()
    assert log.describe_transaction("x").state == "CompleteAbort"
    assert committed(log) == []
    assert log.topic("t").end_offsets(isolation_level="read_committed") == {0: 2}


def test_threads_share_a_transaction(log: streamlog.Cluster) -> None:
    log.create_topic("t", 3)
    with log.producer(transactional_id="x", linger_ms=1) as producer:
        for round_ in range(10):
            with producer.transaction():
                threads = [
                    threading.Thread(target=lambda n=n: [producer.send("t", b"%d" % n, key=b"%d" % i) for i in range(50)]) for n in range(4)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            assert len(committed(log)) == 200 * (round_ + 1)


def test_a_send_beside_a_commit_is_in_it_or_refused(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    accepted = 0
    with log.producer(transactional_id="x", linger_ms=1) as producer:
        producer.init_transactions()
        for _ in range(30):
            producer.begin_transaction()
            started = threading.Event()

            def run(started: threading.Event = started) -> None:
                nonlocal accepted
                try:
                    while True:
                        producer.send("t", b"v")
                        accepted += 1
                        started.set()
                except InvalidTxnStateError:
                    pass

            thread = threading.Thread(target=run)
            thread.start()
            started.wait()
            producer.commit_transaction()
            thread.join()
    assert len(committed(log)) == accepted


# ---- fencing -----------------------------------------------------------------------------------------------------------------


def test_who_takes_the_id_fences_who_had_it(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    old, new = (log.producer(transactional_id="x", linger_ms=0) for _ in range(2))
    old.init_transactions()
    old.begin_transaction()
    old.send("t", b"never")
    new.init_transactions()
    delivery = old.send("t", b"zombie")
    assert isinstance(delivery.exception(), ProducerFencedError)
    for call in (old.commit_transaction, old.abort_transaction, old.begin_transaction, lambda: old.send("t", b"more")):
        with pytest.raises(ProducerFencedError):
            call()
    with new.transaction():
        new.send("t", b"v")
    old.close()
    with new.transaction():
        new.send("t", b"w")
    new.close()
    assert committed(log) == [b"v", b"w"]
    assert b"zombie" not in values_of(log)


def test_a_zombie_that_was_idle_is_fenced_by_its_next_transaction(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(transactional_id="x") as old:
        old.init_transactions()
        with log.producer(transactional_id="x") as new:
            new.init_transactions()
            with pytest.raises(ProducerFencedError):
                old.begin_transaction()
            with pytest.raises(ProducerFencedError):
                old.send("t", b"zombie")
    assert values_of(log) == []


def test_a_transaction_that_takes_too_long(log: streamlog.Cluster) -> None:
    """Readers go on, and its producer is fenced, for good."""
    log.create_topic("t")
    with log.producer(transactional_id="x", transaction_timeout_ms=1000, linger_ms=0) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send("t", b"never")
        with log.producer() as plain:
            plain.send("t", b"after")
        with log.consumer("t", auto_offset_reset="earliest", **COMMITTED) as consumer:
            assert consumer.poll(timeout_ms=100) == []
            log._home.clock.advance(2000)
            assert [record.value for record in consumer.poll(timeout_ms=10_000)] == [b"after"]
        with pytest.raises(ProducerFencedError):
            producer.commit_transaction()
        with pytest.raises(ProducerFencedError):
            producer.begin_transaction()
    with log.producer(transactional_id="x") as producer, producer.transaction():
        producer.send("t", b"again")
    assert committed(log) == [b"after", b"again"]


def test_the_time_out_counts_where_nobody_met_it(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(transactional_id="x", transaction_timeout_ms=1000, linger_ms=0) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send("t", b"never")
        log._home.clock.advance(2000)
        with pytest.raises(ProducerFencedError, match="transaction_timeout_ms"):
            producer.commit_transaction()
    assert committed(log) == []


def test_epochs_run_out(log: streamlog.Cluster) -> None:
    """After epoch 32766 the id goes on with a new producer id."""
    log.create_topic("t")
    with log.producer(transactional_id="x") as producer:
        producer.init_transactions()
        manager = producer._manager
        assert manager is not None
        coordinator = manager._coordinator
        first = log.describe_transaction("x").producer_id
        coordinator.change("x", 5, lambda found: found._replace(epoch=32_764))
        manager._following = first, 32_764
        for number in range(5):
            with producer.transaction():
                producer.send("t", b"%d" % number)
        found = log.describe_transaction("x")
        assert found.producer_id != first
        assert found.producer_epoch == 2
        coordinator.change("x", 5, lambda found: found._replace(epoch=32_766))
        with log.producer(transactional_id="x") as other:
            other.init_transactions()
            assert log.describe_transaction("x").producer_epoch == 0
    assert committed(log) == [b"0", b"1", b"2", b"3", b"4"]


def test_a_dropped_producer_holds_nobody_up(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    producer = log.producer(transactional_id="x", linger_ms=0)
    producer.init_transactions()
    producer.begin_transaction()
    producer.send("t", b"never")
    producer._sender.stop()
    del producer
    gc.collect()
    with log.producer() as plain:
        plain.send("t", b"v")
    with log.consumer("t", auto_offset_reset="earliest", **COMMITTED) as consumer:
        assert [record.value for record in consumer.poll(timeout_ms=10_000)] == [b"v"]


def test_who_writes_beside_a_dead_producer_ends_its_transaction(log: streamlog.Cluster) -> None:
    """Though nobody reads."""
    log.create_topic("t")
    producer = log.producer(transactional_id="x", linger_ms=0)
    producer.init_transactions()
    producer.begin_transaction()
    producer.send("t", b"never").result()
    with log.producer(linger_ms=0) as plain:
        plain.send("t", b"v").result()
        assert log.topic("t").end_offsets(isolation_level="read_committed") == {0: 0}, "its producer lives"
        producer._manager._finalizer()  # type: ignore[union-attr]  # as if its process had died
        log._home.next_tick = 0.0
        plain.send("t", b"w").result()
    assert log.topic("t").end_offsets(isolation_level="read_committed") == {0: 4}
    producer.close()


# ---- offsets -------------------------------------------------------------------------------------------------------------------


def test_consume_transform_produce(log: streamlog.Cluster) -> None:
    log.create_topic("in", 2)
    log.create_topic("out")
    with log.producer() as plain:
        for number in range(100):
            plain.send("in", b"%d" % number, key=b"%d" % number)
    tps = [TopicPartition("in", number) for number in range(2)]
    failed = False
    with log.consumer("in", group_id="g", auto_offset_reset="earliest", enable_auto_commit=False, **COMMITTED) as consumer:
        with log.producer(transactional_id="x") as producer:
            done = 0
            while done < 100:
                records = consumer.poll(max_records=10)
                try:
                    with producer.transaction():
                        for record in records:
                            producer.send("out", b"<" + record.value + b">")
                        producer.send_offsets(consumer)
                        assert consumer.committed(tps[records[0].partition]) != OffsetAndMetadata(records[-1].offset + 1), "pending"
                        if done >= 50 and not failed:
                            failed = True
                            raise KeyError
                    done += len(records)
                except KeyError:
                    consumer.seek_to_committed()
        assert {tp: consumer.committed(tp).offset for tp in tps} == consumer.end_offsets(tps)  # type: ignore[union-attr]
    assert failed
    assert sorted(committed(log, "out")) == sorted(b"<%d>" % number for number in range(100))


def test_the_record_in_hand_of_a_loop_counts(log: streamlog.Cluster) -> None:
    log.create_topic("in")
    log.create_topic("out")
    with log.producer() as plain:
        for number in range(10):
            plain.send("in", b"%d" % number)
    with log.producer(transactional_id="x") as producer:
        for most in (4, 100):
            options = {"auto_offset_reset": "earliest", "enable_auto_commit": False, "consumer_timeout_ms": 0}
            with log.consumer("in", group_id="g", **options) as consumer:
                for count, record in enumerate(consumer, 1):
                    with producer.transaction():
                        producer.send("out", record.value)
                        producer.send_offsets(consumer)
                    if count == most:
                        break
    assert committed(log, "out") == [b"%d" % number for number in range(10)]


def test_send_offsets_is_refused_where_it_cannot_keep_its_promise(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer() as plain:
        plain.send("t", b"v")
    with log.producer(transactional_id="x") as producer:
        producer.init_transactions()

        def refused(error: type[Exception], *args: Any, match: str = "(?s).*") -> None:
            """Whatever the reason, who goes on all the same cannot commit the rest."""
            producer.begin_transaction()
            producer.send("t", b"never")
            with pytest.raises(error, match=match):
                producer.send_offsets(*args)
            with pytest.raises(error):
                producer.commit_transaction()
            producer.abort_transaction()

        with log.consumer("t") as nobody:
            refused(InvalidStateError, nobody)
        with log.consumer("t", group_id="g") as automatic:
            refused(ConfigurationError, automatic, match="enable_auto_commit")
        with log.consumer("t", group_id="g", enable_auto_commit=False) as consumer:
            refused(ConfigurationError, consumer, consumer.group_metadata())
        refused(ConfigurationError, {("t", 0): 1})
        refused(ConfigurationError, {("t", 0): 1}, "g")
        refused(streamlog.UnknownTopicOrPartitionError, {("other", 0): 1}, streamlog.GroupMetadata("g", -1, "", None))
        assert committed(log) == [b"v"]
        with log.consumer("t", group_id="g", auto_offset_reset="earliest", enable_auto_commit=False) as consumer:
            consumer.poll()
            producer.begin_transaction()
            stranger = streamlog.GroupMetadata("g", 1, "nobody", None)
            with pytest.raises(CommitFailedError):
                producer.send_offsets({("t", 0): 1}, stranger)
            with pytest.raises(CommitFailedError):
                producer.commit_transaction()
            producer.abort_transaction()
            with producer.transaction():
                producer.send_offsets({("t", 0): 1}, consumer.group_metadata())
            assert consumer.committed(("t", 0)) == OffsetAndMetadata(1)


def test_offsets_without_members(log: streamlog.Cluster) -> None:
    """As of an assigned consumer, or of a program that keeps a group's offsets itself; of two commits the later one in the log wins."""
    log.create_topic("t")
    nobody = streamlog.GroupMetadata("g", -1, "", None)
    tp = TopicPartition("t", 0)
    with log.producer(transactional_id="x") as producer:
        with producer.transaction():
            producer.send_offsets({tp: 5}, nobody)
            assert log.group_offsets("g") == {}
        assert log.group_offsets("g") == {tp: OffsetAndMetadata(5)}
        with producer.transaction():
            producer.send_offsets({tp: 7}, nobody)
            log.alter_group_offsets("g", {tp: 3})
        assert log.group_offsets("g") == {tp: OffsetAndMetadata(3)}, "the plain one came later"
        with producer.transaction():
            log.alter_group_offsets("g", {tp: 4})
            producer.send_offsets({tp: 8}, nobody)
        assert log.group_offsets("g") == {tp: OffsetAndMetadata(8)}
        with log.producer(transactional_id="y") as other:
            producer.begin_transaction()
            producer.send_offsets({tp: 10}, nobody)
            with other.transaction():
                other.send_offsets({tp: 20}, nobody)
            producer.commit_transaction()
        assert log.group_offsets("g") == {tp: OffsetAndMetadata(20)}
        with pytest.raises(KeyError), producer.transaction():
            producer.send_offsets({tp: 99}, nobody)
            raise KeyError
        assert log.group_offsets("g") == {tp: OffsetAndMetadata(20)}


def test_h37_who_needs_a_pending_offset_waits_for_it(log: streamlog.Cluster) -> None:
    log.create_topic("in")
    log.create_topic("out")
    with log.producer() as plain:
        for number in range(4):
            plain.send("in", b"%d" % number)
    options = {"group_id": "g", "auto_offset_reset": "earliest", "enable_auto_commit": False}
    nobody = streamlog.GroupMetadata("g", -1, "", None)
    tp = TopicPartition("in", 0)
    with log.producer(transactional_id="x") as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send_offsets({tp: 2}, nobody)
        with log.consumer("in", **options) as consumer:
            assert consumer.poll(timeout_ms=100) == [], "it might be 0 or 2"
            with pytest.raises(UnstableOffsetCommitError):
                consumer.position(tp)
            producer.commit_transaction()
            assert [record.value for record in consumer.poll(timeout_ms=5000)] == [b"2", b"3"]


def test_h37_a_member_that_is_expired_takes_its_transaction_with_it(log: streamlog.Cluster) -> None:
    log.create_topic("in")
    log.create_topic("out")
    with log.producer() as plain:
        for number in range(4):
            plain.send("in", b"%d" % number)
    options = {
        "group_id": "g", "auto_offset_reset": "earliest", "enable_auto_commit": False, "max_poll_interval_ms": 5000, "session_timeout_ms": 10**6,
    }  # fmt: skip
    with log.producer(transactional_id="x", linger_ms=0) as producer, log.consumer("in", **options) as stuck:
        producer.init_transactions()
        assert len(stuck.poll()) == 4
        producer.begin_transaction()
        producer.send("out", b"never")
        producer.send_offsets(stuck)
        with log.consumer("in", **options) as other:
            other.poll()
            log._home.clock.advance(6000)
            found: list[streamlog.Record] = []
            for _ in range(100):
                found += other.poll(timeout_ms=50)
                if found:
                    break
            assert [record.value for record in found] == [b"0", b"1", b"2", b"3"]
            with pytest.raises(ProducerFencedError):
                producer.commit_transaction()
    assert committed(log, "out") == []


# ---- administration ------------------------------------------------------------------------------------------------------------


def test_listing_describing_and_aborting(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    assert log.transactions() == []
    for call in (log.describe_transaction, log.abort_transaction):
        with pytest.raises(TransactionalIdNotFoundError):
            call("x")
    with log.producer(transactional_id="x", client_id="me", linger_ms=0) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send("t", b"v")
        found = log.describe_transaction("x")
        assert (found.state, found.client_id, found.alive, found.partitions) == ("Ongoing", "me", True, (TopicPartition("t", 0),))
        assert [(each.transactional_id, each.state) for each in log.transactions()] == [("x", "Ongoing")]
        log.abort_transaction("x")
        assert not log.describe_transaction("x").alive
        with pytest.raises(ProducerFencedError):
            producer.commit_transaction()
    assert committed(log) == []


def test_aborting_fences_a_producer_that_has_written_nothing_yet(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(transactional_id="x", linger_ms=60_000) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send("t", b"never")
        log.abort_transaction("x")
        with pytest.raises(ProducerFencedError):
            producer.commit_transaction()
    assert values_of(log) == []


def test_lag_and_end_are_not_those_of_the_dead(log: streamlog.Cluster) -> None:
    """Who reads until there is no lag, or up to the end, must not stop at what a dead producer left open."""
    log.create_topic("t")
    producer = log.producer(transactional_id="x", linger_ms=0)
    for read in ("lag", "end_offsets", "seek_to_end", "iterate"):
        producer = log.producer(transactional_id="x", linger_ms=0)
        producer.init_transactions()
        producer.begin_transaction()
        producer.send("t", b"never").result()
        producer._manager._finalizer()  # type: ignore[union-attr]  # as if its process had died
        with log.producer() as plain:
            log._home.next_tick = float("inf")  # a producer looks into it as well
            plain.send("t", b"after")
        end = log.topic("t").end_offsets()[0] + 1  # the marker
        with log.consumer("t", auto_offset_reset="earliest", consumer_timeout_ms=0, **COMMITTED) as consumer:
            tp = TopicPartition("t", 0)
            if read == "lag":
                assert consumer.lag() == {tp: end}
            elif read == "end_offsets":
                assert consumer.end_offsets([tp]) == {tp: end}
            elif read == "seek_to_end":
                consumer.seek_to_end()
                assert consumer.position(tp) == end
            else:
                assert [record.value for record in consumer][-1] == b"after"
        producer.close()


def test_ids_that_nobody_uses_are_forgotten(place: Path) -> None:
    with streamlog.open(place / "log", transactional_id_expiration_ms=1000) as log:
        log.create_topic("t")
        with log.producer(transactional_id="used") as used, log.producer(transactional_id="x") as producer:
            used.init_transactions()
            with producer.transaction():
                producer.send("t", b"v")
            log._home.clock.advance(5000)
            log.maintain()
            assert [each.transactional_id for each in log.transactions()] == ["used", "x"], "their producers live"
            producer.close()
            log.maintain()
            assert [each.transactional_id for each in log.transactions()] == ["used"]
        with log.producer(transactional_id="x") as producer, producer.transaction():
            producer.send("t", b"w")
        assert committed(log) == [b"v", b"w"]
        assert streamlog.check(log) == []


def test_h39_what_a_power_cut_left_open_is_ended(log: streamlog.Cluster) -> None:
    """A marker was lost, or the state: a transaction hangs, is listed, and is ended by the outcome on record, else aborted."""
    log.create_topic("t")
    home = log._home
    view = home.log(home.metadata.topics["t"], 0, 5)
    with log.producer(transactional_id="x") as producer:
        with producer.transaction():
            producer.send("t", b"committed")
        from streamlog._client.transaction_coordinator import TransactionCoordinator
        from streamlog._format import batch as fmt
        from streamlog._log.pending import Pending

        transactions = TransactionCoordinator(home)
        found = transactions.current("x", 5)
        for producer_id, epoch, value in ((found.producer_id + 500, 3, b"unknown"), (found.producer_id, found.epoch, b"lost")):
            batch = Pending()
            batch.attributes, batch.columns = fmt.encode_rows([value])
            batch.attributes |= fmt.TRANSACTIONAL
            batch.count, batch.producer = 1, (producer_id, 0, epoch)
            view.append(batch, 5)
        transactions.change("x", 5, lambda now: now._replace(ended=(now.producer_id, now.epoch, True), epoch=now.epoch + 1))
        hanging = log.hanging_transactions()
        assert [(each.topic, each.first_offset, each.producer_id) for each in hanging] == [
            ("t", 3, found.producer_id), ("t", 2, found.producer_id + 500),
        ]  # fmt: skip
        with pytest.raises(TransactionalIdNotFoundError):
            log.end_hanging_transaction("t", 0, 0)
        log.end_hanging_transaction("t", 0, 2)
        with log.consumer("t", auto_offset_reset="earliest", **COMMITTED) as consumer:
            seen: list[bytes] = []
            while len(seen) < 2:
                seen += [record.value for record in consumer.poll(timeout_ms=5000)]
        assert seen == [b"committed", b"lost"]
        assert log.hanging_transactions() == []
