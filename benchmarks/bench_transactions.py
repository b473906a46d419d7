"""Transactions: small ones, larger ones beside plain sends, the exactly-once loop, reading committed records, the death of a producer."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from functools import cache
from typing import Any

from harness import VALUE, Contender, Group, Place, at_most, cost, rate, timed, timed_for

import streamlog

SECONDS = 0.5
COUNT = 400_000
LOOP = 100_000
_numbers = itertools.count()

DIES = """
import os, sys
import streamlog
with streamlog.open(sys.argv[1]) as log:
    producer = log.producer(transactional_id=sys.argv[3], linger_ms=0)
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(sys.argv[2], b"never").result()
    print("ready", flush=True)
    sys.stdin.readline()
"""


def contenders(place: Place) -> list[Contender]:
    """All in one cluster; nothing is deleted but the topics, so states pile up as they do in use."""
    whole, mixed = cache(lambda: filled(place, aborted=0)), cache(lambda: filled(place, aborted=1))
    return [
        Contender("a transaction of 1 record", lambda: transactions(place, 1), (at_most(200e-6),)),
        Contender("100 records over 4 partitions, flushed", lambda: plain(place, 100)),
        Contender("the same in a transaction", lambda: transactions(place, 100), (cost(2.5, "100 records over 4 partitions, flushed"),)),
        Contender("1,000 records, flushed", lambda: plain(place, 1000)),
        Contender("the same in a transaction of 1,000", lambda: transactions(place, 1000), (rate(0.8, "1,000 records, flushed"),)),
        Contender("exactly once: consume, transform, produce by 100", lambda: loop(place), (at_most(1 / 150_000),)),
        Contender("poll, read_uncommitted", lambda: read(place, whole(), "read_uncommitted")),
        Contender("poll, read_committed", lambda: read(place, whole(), "read_committed"), (rate(0.9, "poll, read_uncommitted"),)),
        Contender("poll where 1 of 5 was aborted, read_uncommitted", lambda: read(place, mixed(), "read_uncommitted")),
        Contender(
            "the same, read_committed", lambda: read(place, mixed(), "read_committed"),
            (rate(0.9, "poll where 1 of 5 was aborted, read_uncommitted"),),
        ),
        Contender("kill -9 of a producer: committed readers go on", lambda: death(place), (at_most(0.1),)),
    ]


def producer_of(place: Place) -> streamlog.Producer:
    return place.log.producer(transactional_id=f"bench-{next(_numbers)}", linger_ms=1000, batch_size=1 << 20)


def transactions(place: Place, records: int) -> float:
    """Seconds a transaction."""
    with place.topic(partitions=1 if records == 1 else 4) as topic, producer_of(place) as producer:
        producer.init_transactions()
        partitions = 1 if records == 1 else 4
        send = producer.send

        def one() -> None:
            producer.begin_transaction()
            for number in range(records):
                send(topic, VALUE, partition=number % partitions)
            producer.commit_transaction()

        one()
        return timed_for(SECONDS, one, 5)


def plain(place: Place, records: int) -> float:
    """Seconds for the same records, sent and flushed."""
    with place.topic(partitions=4) as topic, place.log.producer(linger_ms=1000, batch_size=1 << 20) as producer:
        send = producer.send

        def one() -> None:
            for number in range(records):
                send(topic, VALUE, partition=number % 4)
            producer.flush()

        one()
        return timed_for(SECONDS, one, 5)


def loop(place: Place) -> float:
    """Seconds a record: read_committed in, transform, out, offsets in the transaction, batches of 100."""
    with place.topic() as source, place.topic() as target, producer_of(place) as producer:
        with place.log.producer() as filler, filler.batch(source) as batch:
            for _ in range(LOOP):
                batch.append(VALUE)
        options: dict[str, Any] = {"auto_offset_reset": "earliest", "enable_auto_commit": False, "isolation_level": "read_committed"}
        with place.log.consumer(source, group_id=f"loop-{next(_numbers)}", max_poll_records=100, **options) as consumer:
            producer.init_transactions()
            done = 0

            def work() -> None:
                nonlocal done
                while done < LOOP:
                    records = consumer.poll(1000)
                    producer.begin_transaction()
                    for record in records:
                        producer.send(target, record.value.lower())
                    producer.send_offsets(consumer)
                    producer.commit_transaction()
                    done += len(records)

            return timed(work, LOOP)


def filled(place: Place, aborted: int) -> str:
    """A topic of transactions of 100 records from two producers, so many of each five `aborted`."""
    topic = place.new_topic()
    producers = [producer_of(place), producer_of(place)]
    for producer in producers:
        producer.init_transactions()
    for number in range(COUNT // 100):
        producer = producers[number % 2]
        producer.begin_transaction()
        for _ in range(100):
            producer.send(topic, VALUE)
        if number % 5 < aborted:
            producer.flush()
            producer.abort_transaction()
        else:
            producer.commit_transaction()
    for producer in producers:
        producer.close()
    return topic


def read(place: Place, topic: str, level: str) -> float:
    """Seconds a record that is written there."""
    with place.log.consumer(topic, isolation_level=level, auto_offset_reset="earliest") as consumer:

        def work() -> None:
            while consumer.lag()[streamlog.TopicPartition(topic, 0)]:
                while consumer.poll():
                    pass

        return timed(work, COUNT)


def death(place: Place) -> float:
    """Seconds from the signal until a reader has what came after the open transaction."""
    with place.topic() as topic, place.log.producer(linger_ms=0) as after:
        command = [sys.executable, "-c", DIES, place.log.location, topic, f"dies-{next(_numbers)}"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        after.send(topic, VALUE).result()
        with place.log.consumer(topic, isolation_level="read_committed", auto_offset_reset="earliest") as consumer:
            assert consumer.poll(50) == []
            start = time.perf_counter()
            process.kill()
            while not consumer.poll(1000):
                pass
            seconds = time.perf_counter() - start
        process.communicate()
        return seconds


GROUP = Group("transactions", contenders, rounds=5)
