"""Groups: rebalances after a death and a leave, a first assignment, commits, assignors, two members against one."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import ExitStack
from functools import cache
from typing import Any

from bench_one import send_flush
from harness import VALUE, Contender, Group, Place, Worker, at_most, cost, rate, run_workers, timed, timed_for

import streamlog
from streamlog import TopicPartition
from streamlog.assignors import StickyAssignor, Subscription

MEMBERS, PARTITIONS = 8, 24
COUNT = 1_000_000
SECONDS = 0.5


def contenders(place: Place) -> list[Contender]:
    """All in one cluster, which has had a group.  What two cores are worth at the moment: the two loops in the group `processes`."""
    live = Living(place)
    shared = cache(lambda: filled(place))
    return [
        Contender("kill -9 of one of 8: its partitions are read again", lambda: live.rebalance(signal.SIGKILL), (at_most(0.05),)),
        Contender("a clean leave of one of 8: its partitions are read", lambda: live.rebalance(signal.SIGTERM), (at_most(0.02),)),
        Contender("subscribe to first record, alone", lambda: first_record(place), (at_most(0.01),)),
        Contender("one send + flush", lambda: send_flush(place)),
        Contender("one synchronous commit", lambda: commit(place), (cost(5, "one send + flush"),)),
        Contender("poll in a group, no auto-commit", lambda: read(place, shared(), enable_auto_commit=False)),
        Contender("poll in a group, auto-commit", lambda: read(place, shared()), (rate(0.99, "poll in a group, no auto-commit"),)),
        Contender("sticky: 1,000 members, 10,000 partitions", lambda: sticky(1000, 10_000), (at_most(1.0),)),
        Contender("sticky: 100 members, 5,000 partitions", lambda: sticky(100, 5000), (at_most(0.1),)),
        Contender("one process reads two partitions", lambda: members(place, shared(), 1)),
        Contender("a group of two processes reads them", lambda: members(place, shared(), 2), (rate(1.7, "one process reads two partitions"),)),
    ]


class Living:
    """Eight member processes that poll continuously; one goes, another comes."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._members: list[Worker] = []
        self._stack = place.stack.enter_context(ExitStack())

    def _start(self) -> None:
        if not self._members:
            self._place.log.create_topic("live", partitions=PARTITIONS)
            self._place.log.create_topic("reads")
        while len(self._members) < MEMBERS:
            worker = self._stack.enter_context(Worker("member", location=self._place.log.location, topic="live", group="live", timeout=600))
            worker.ready()
            worker.go()
            self._members.append(worker)
        while self._group().state != "Stable" or len(self._group().members) != MEMBERS:
            time.sleep(0.01)
        self._tick(range(PARTITIONS))  # so that everybody has read something of everything that it has
        time.sleep(0.2)

    def _group(self) -> streamlog.GroupDescription:
        return self._place.log.describe_group("live")

    def _tick(self, partitions: object) -> None:
        with self._place.log.producer(linger_ms=0) as producer:
            for partition in partitions:  # type: ignore[attr-defined]
                producer.send("live", b"tick", partition=partition)

    def rebalance(self, how: signal.Signals) -> float:
        """Seconds from the signal to the moment when survivors have read something of each partition of the one that went."""
        self._start()
        victim = self._members.pop(0)
        mine = next(member.assignment for member in self._group().members if member.pid == victim.process.pid)
        waiting = {tp.partition for tp in mine}
        with self._place.log.consumer("reads") as reads, self._place.log.producer(linger_ms=0) as producer:
            reads.poll()
            start, last = time.monotonic(), 0.0
            os.kill(victim.process.pid, how)
            while waiting:
                for partition in waiting:
                    producer.send("live", b"tick", partition=partition)
                for record in reads.poll(1):
                    partition, at = json.loads(record.value)
                    if partition in waiting and at > start:
                        waiting.discard(partition)
                        last = max(last, at)
            victim.process.wait()
            return last - start


def first_record(place: Place) -> float:
    """Seconds."""
    with place.topic() as topic, place.log.producer() as producer:
        producer.send(topic, VALUE).result()
        with place.log.consumer(group_id="first", auto_offset_reset="earliest") as consumer:
            start = time.perf_counter()
            consumer.subscribe([topic])
            while not consumer.poll(1000):
                pass
            return time.perf_counter() - start


def commit(place: Place) -> float:
    """Seconds of a commit of one partition by a member."""
    with place.topic() as topic, place.log.consumer(topic, group_id="commit", auto_offset_reset="earliest") as consumer:
        consumer.poll()
        return timed_for(SECONDS, lambda: consumer.commit({TopicPartition(topic, 0): 0}))


def filled(place: Place) -> str:
    """A topic of two partitions with a million records each."""
    topic = place.new_topic(partitions=2)
    with place.log.producer() as producer:
        for partition in (0, 1):
            with producer.batch(topic, partition=partition) as batch:
                for _ in range(COUNT):
                    batch.append(VALUE)
    return topic


def read(place: Place, topic: str, **config: Any) -> float:
    """Seconds a record, in this process."""
    found = 0
    with place.log.consumer(topic, group_id=f"read-{time.monotonic_ns()}", auto_offset_reset="earliest", **config) as consumer:
        consumer.poll()

        def work() -> None:
            nonlocal found
            while records := consumer.poll():
                found += len(records)

        return timed(work, 2 * COUNT)


def sticky(members: int, partitions: int) -> float:
    """Seconds of an assignment after one of the members is gone: equal subscriptions to ten topics."""
    topics = {f"topic-{number}": partitions // 10 for number in range(10)}
    before = StickyAssignor().assign({str(number): Subscription(tuple(topics)) for number in range(members + 1)}, topics)
    now = {member: Subscription(tuple(topics), tuple(owned)) for member, owned in before.items() if member != "0"}
    return timed(lambda: StickyAssignor().assign(now, topics), 1)


def members(place: Place, topic: str, count: int) -> float:
    """Seconds a record, at the slower of the members."""
    group = f"share-{time.monotonic_ns()}"
    share = 2 // count
    workers = [
        Worker("share", core=core, location=place.log.location, topic=topic, group=group, partitions=share, count=share * COUNT)
        for core in range(count)
    ]
    return float(max(run_workers(*workers))) / (2 * COUNT)


GROUP = Group("groups", contenders, rounds=5, core=None)
