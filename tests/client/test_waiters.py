"""Who waits for a record: one waiter's failure is its own."""

import asyncio
import logging
import threading
from pathlib import Path

import pytest

import streamlog


def test_an_abandoned_await_keeps_nobody_else_waiting(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    told: list[object] = []
    with log.producer(linger_ms=300) as producer:
        ready = threading.Event()

        async def patient() -> None:
            delivery = producer.send("t", "a", on_delivery=lambda metadata, error: told.append(metadata))
            ready.set()
            told.append(await asyncio.wait_for(delivery, 10))

        async def gives_up() -> None:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(producer.send("t", "b"), 0.01)

        thread = threading.Thread(target=lambda: asyncio.run(patient()))
        thread.start()
        ready.wait()
        asyncio.run(gives_up())  # its loop is closed before the batch is written
        producer.flush()
        thread.join()
    assert [metadata.offset for metadata in told] == [0, 0]


def test_what_a_waiter_raises_reaches_nobody_else(log: streamlog.Cluster, caplog: pytest.LogCaptureFixture) -> None:
    log.create_topic("t")
    called: list[str] = []

    def fails() -> None:
        called.append("fails")
        raise ZeroDivisionError

    with log.producer(transactional_id="x", linger_ms=60_000) as producer:
        with caplog.at_level(logging.ERROR, "streamlog"), producer.transaction():
            delivery = producer.send("t", "a", on_delivery=lambda *_: called.append("on_delivery"))
            delivery[0].call_when_finished(lambda: called.append("last"))
            delivery[0].call_when_finished(fails)
            delivery[0].call_when_finished(lambda: called.append("first"))
        assert delivery.result().offset == 0
    assert called == ["first", "fails", "last", "on_delivery"]
    assert "ZeroDivisionError" in caplog.text


def test_an_await_that_was_cancelled_leaves_nothing_behind(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(linger_ms=60_000) as producer:
        delivery = producer.send("t", "a")

        async def gives_up() -> None:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(wait())), 0.01)

        async def wait() -> object:
            return await delivery

        asyncio.run(gives_up())
        assert delivery[0].waiters == []


# ---- the end of a transaction's block


def committed(log: streamlog.Cluster) -> list[bytes]:
    with log.consumer("t", auto_offset_reset="earliest", isolation_level="read_committed") as consumer:
        return [record.value for record in consumer.poll(timeout_ms=100)]


@pytest.mark.parametrize("what", ["producer", "cluster"])
def test_a_block_whose_producer_was_closed_inside_raises(what: str, place: Path) -> None:
    log = streamlog.open(place / "log")
    log.create_topic("t")
    producer = log.producer(transactional_id="x")
    with pytest.raises(streamlog.ClosedError), producer.transaction():
        producer.send("t", "paid")
        (producer if what == "producer" else log).close()
    with streamlog.open(place / "log") as again:
        assert committed(again) == []
    log.close()


@pytest.mark.parametrize("first", ["commit_transaction", "abort_transaction"])
def test_a_block_that_begins_another_transaction_raises(first: str, log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(transactional_id="x") as producer:
        with pytest.raises(streamlog.InvalidTxnStateError, match="began another one"), producer.transaction():
            producer.send("t", "1")
            getattr(producer, first)()
            producer.begin_transaction()
            producer.send("t", "2")
        assert committed(log) == ([b"1"] if first == "commit_transaction" else [])
        with producer.transaction():
            producer.send("t", "3")
        assert committed(log)[-1:] == [b"3"]


@pytest.mark.parametrize("end", ["commit_transaction", "abort_transaction"])
@pytest.mark.parametrize("again", [False, True])
def test_a_block_that_ends_its_transactions_itself_is_left_alone(end: str, again: bool, log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(transactional_id="x") as producer, producer.transaction():
        for _ in range(1 + again):
            if _:
                producer.begin_transaction()
            producer.send("t", "1")
            getattr(producer, end)()
    assert committed(log) == ([b"1"] * (1 + again) if end == "commit_transaction" else [])


def test_a_block_that_hides_that_its_producer_was_fenced_raises(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(transactional_id="x") as producer, log.producer(transactional_id="x") as other:
        with pytest.raises(streamlog.ProducerFencedError), producer.transaction():
            producer.send("t", "1").result()
            other.init_transactions()
            try:
                producer.send("t", "2").result()
            except streamlog.StreamlogError:
                pass  # it goes on as if nothing had happened
        with other.transaction():
            other.send("t", "3")
    assert committed(log) == [b"3"]


def test_a_block_that_closes_its_producer_after_the_commit_is_left_alone(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    producer = log.producer(transactional_id="x")
    with producer.transaction():
        producer.send("t", "1")
        producer.commit_transaction()
        producer.close()
    assert committed(log) == [b"1"]


def test_a_fenced_producer_neither_begins_nor_commits(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    producer, other = log.producer(transactional_id="x"), log.producer(transactional_id="x")
    producer.init_transactions()
    other.init_transactions()
    with pytest.raises(streamlog.ProducerFencedError):
        producer.begin_transaction()
    third = log.producer(transactional_id="x")
    other.begin_transaction()
    third.init_transactions()
    with pytest.raises(streamlog.ProducerFencedError):
        other.commit_transaction()  # though nothing was sent
    for each in (producer, other, third):
        each.close()


# ---- a consumer inside somebody else's exception, and in a forked child


@pytest.mark.parametrize("how", ["with", "close"])
def test_a_consumer_that_is_used_while_an_exception_is_handled_commits(how: str, log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer() as producer:
        producer.send("t", "x")
    seen = []
    for _ in range(3):
        try:
            raise OSError("the primary is down")
        except OSError:
            if how == "with":
                with log.consumer("t", group_id="g", auto_offset_reset="earliest") as consumer:
                    seen.append(len(consumer.poll(timeout_ms=50)))
            else:
                consumer = log.consumer("t", group_id="g", auto_offset_reset="earliest")
                seen.append(len(consumer.poll(timeout_ms=50)))
                consumer.close()
    assert seen == [1, 0, 0]


@pytest.mark.parametrize("how", ["with", "finally"])
@pytest.mark.parametrize("handled", [False, True])
def test_an_exception_of_its_own_block_keeps_a_consumer_from_committing(how: str, handled: bool, log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer() as producer:
        producer.send("t", "x")

    def use() -> int:
        found = 0
        try:
            if how == "with":
                with log.consumer("t", group_id="g", auto_offset_reset="earliest") as consumer:
                    found = len(consumer.poll(timeout_ms=50))
                    raise ZeroDivisionError
            consumer = log.consumer("t", group_id="g", auto_offset_reset="earliest")
            try:
                found = len(consumer.poll(timeout_ms=50))
                raise ZeroDivisionError
            finally:
                consumer.close()
        except ZeroDivisionError:
            return found

    for _ in range(2):
        if handled:
            try:
                raise OSError
            except OSError:
                assert use() == 1
        else:
            assert use() == 1


def test_a_forked_child_has_none_of_an_inherited_consumers_records(place: Path) -> None:
    from races.test_hazards import finish, in_child

    with streamlog.open(place / "log") as log:
        log.create_topic("jobs")
        with log.producer() as producer:
            for number in range(400):
                producer.send("jobs", str(number))
        with log.consumer("jobs", group_id="g", auto_offset_reset="earliest", consumer_timeout_ms=50) as consumer:
            records = iter(consumer)
            assert [next(records).offset for _ in range(3)] == [0, 1, 2]

            def child() -> None:
                with pytest.raises(streamlog.ClosedError):
                    next(records)

            finish(in_child(child))
            assert [record.offset for record in records] == list(range(3, 400))


# ---- offsets that a transaction holds


@pytest.mark.parametrize("how", ["maintain", "delete"])
def test_offsets_that_a_transaction_holds_are_whole(how: str, place: Path) -> None:
    with streamlog.open(place / "log", offsets_retention_minutes=1) as log:
        log.create_topic("t", partitions=2)
        log.alter_group_offsets("g", {("t", 0): 1})
        nobody = streamlog.GroupMetadata("g", -1, "", None)
        with log.producer(transactional_id="w", transaction_timeout_ms=900_000) as producer, producer.transaction():
            producer.send_offsets({("t", 0): 100, ("t", 1): 100}, nobody)
            if how == "maintain":
                log._home.clock.advance(120_000)
                log.maintain()
                log._home.clock.advance(-120_000)  # (else what was sent before is too old when it counts)
            else:
                log.delete_group("g")
        if how == "delete":
            assert log.groups() == []
        else:
            assert {tp.partition: found.offset for tp, found in log.group_offsets("g").items()} == {0: 100, 1: 100}
        assert streamlog.check(log) == []


def test_a_block_that_was_fenced_between_two_transactions_says_so(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(transactional_id="x") as producer, log.producer(transactional_id="x") as other:
        with pytest.raises(streamlog.ProducerFencedError), producer.transaction():
            producer.commit_transaction()
            producer.begin_transaction()
            other.init_transactions()
            try:
                producer.send("t", "1").result()
            except streamlog.StreamlogError:
                pass


def test_a_consumer_is_closed_from_outside_though_its_call_has_just_ended(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    consumer = log.consumer("t")
    consumer.poll(timeout_ms=0)
    assert consumer.close_from_outside(10.0)
    assert consumer._handling is None
