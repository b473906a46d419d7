"""The other processes of a benchmark: `workers.py ROLE ARGUMENTS`; see harness.Worker."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from itertools import repeat
from typing import Any

import streamlog

VALUE = bytes(range(100))
IDLE = 20.0  # seconds without a record after which a reader gives up
WARM_UP = 100  # messages of a latency measurement that do not count


def main() -> None:
    """Run a role and print what it returns."""
    arguments = json.loads(sys.argv[2])
    core = arguments.pop("core", None)
    if core is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[core % len(cores)]})
    print(json.dumps(ROLES[sys.argv[1]](**arguments)))


def start_line() -> None:
    """Say that all is set up, and wait for the word."""
    print("ready", flush=True)
    sys.stdin.readline()


# ---- throughput ----------------------------------------------------------------------------------------------------------------


def compute() -> float:
    """Seconds of a loop in Python."""
    start_line()
    start = time.perf_counter()
    for _ in range(20_000_000):
        pass
    return time.perf_counter() - start


def produce(location: str, topic: str, count: int, how: str) -> float:
    """Write records one by one by `send` or `batch.append`; returns seconds from the first to the flush."""
    with streamlog.open(location, create=False) as log, log.producer() as producer:
        start_line()
        start = time.perf_counter()
        if how == "send":
            send = producer.send
            for _ in repeat(None, count):
                send(topic, VALUE)
        else:
            with producer.batch(topic) as batch:
                append = batch.append
                for _ in repeat(None, count):
                    append(VALUE)
        producer.flush()
        return time.perf_counter() - start


def consume(location: str, topic: str, count: int) -> float:
    """Count records; returns seconds from the first to the last."""
    with streamlog.open(location, create=False) as log, log.consumer(topic, auto_offset_reset="earliest") as consumer:
        consumer.position((topic, 0))
        start_line()
        poll = consumer.poll
        found = len(_first(poll))
        start = time.perf_counter()
        while found < count:
            found += len(poll(1000) or _first(poll))
        return time.perf_counter() - start


def _first(poll: Callable[[int], list[Any]]) -> list[Any]:
    deadline = time.monotonic() + IDLE
    while time.monotonic() < deadline:
        if records := poll(1000):
            return records
    raise TimeoutError(f"no record for {IDLE} s")


# ---- groups --------------------------------------------------------------------------------------------------------------------


def share(location: str, topic: str, group: str, partitions: int, count: int, **config: Any) -> float:
    """Read a share of `partitions` partitions, `count` records in all, as a member of a group; returns seconds from the word to the last."""

    class Paused:
        def on_partitions_assigned(self, tps: list[streamlog.TopicPartition]) -> None:
            consumer.pause(*tps)

    with streamlog.open(location, create=False) as log, log.consumer(group_id=group, auto_offset_reset="earliest", **config) as consumer:
        consumer.subscribe([topic], listener=Paused())
        while len(consumer.assignment()) != partitions:
            consumer.poll(20)
        start_line()
        consumer.resume(*consumer.assignment())
        start, found, poll = time.perf_counter(), 0, consumer.poll
        while found < count:
            found += len(poll(1000))
        return time.perf_counter() - start


def member(location: str, topic: str, group: str) -> None:
    """Poll for ever, and say in the topic "reads" when the first record of each new partition came; SIGTERM ends it in order."""
    new: set[int] = set()

    class Listener:
        def on_partitions_assigned(self, tps: list[streamlog.TopicPartition]) -> None:
            new.update(tp.partition for tp in tps)

    with streamlog.open(location, create=False) as log, log.producer(linger_ms=0) as producer:
        consumer = log.consumer(group_id=group, auto_offset_reset="earliest")
        signal.signal(signal.SIGTERM, lambda *_: consumer.close())
        consumer.subscribe([topic], listener=Listener())
        consumer.poll()
        start_line()
        try:
            while True:
                records = consumer.poll(1000)
                if new and (come := new.intersection(record.partition for record in records)):
                    now = time.monotonic()
                    new -= come
                    for partition in come:
                        producer.send("reads", json.dumps([partition, now]))
        except streamlog.ClosedError:
            pass


# ---- latency -------------------------------------------------------------------------------------------------------------------


def send_pings(location: str, topic: str, count: int) -> None:
    """One `send` and `flush` each millisecond, with the time in the value."""
    with streamlog.open(location, create=False) as log, log.producer() as producer:
        rest = bytes(92)

        def send() -> None:
            producer.send(topic, time.perf_counter_ns().to_bytes(8, "little") + rest)
            producer.flush()

        start_line()
        _each_millisecond(count + WARM_UP, send)


def receive_pings(location: str, topic: str, count: int, spin_us: int) -> list[float]:
    """Seconds that each took until `poll` returned it."""
    latencies: list[float] = []
    with streamlog.open(location, create=False) as log, log.consumer(topic, fetch_spin_us=spin_us) as consumer:
        consumer.position((topic, 0))
        start_line()
        deadline = time.monotonic() + IDLE
        while len(latencies) < count + WARM_UP and time.monotonic() < deadline:
            for record in consumer.poll(1000):
                latencies.append((time.perf_counter_ns() - int.from_bytes(record.value[:8], "little")) / 1e9)
    return _counted(latencies, count)


def send_futex_pings(path: str, count: int) -> None:
    """What can be had at best: the time into a mapped file, a word beside it is raised, a futex wakes."""
    import futex

    page = futex.Page(path)
    start_line()
    _each_millisecond(count + WARM_UP, lambda: page.publish(time.perf_counter_ns()))


def receive_futex_pings(path: str, count: int, spin: bool) -> list[float]:
    """Seconds that each took; by spinning, or asleep until woken."""
    import futex

    page = futex.Page(path)
    latencies: list[float] = []
    start_line()
    for number in range(count + WARM_UP):
        page.wait_beyond(number, spin)
        latencies.append((time.perf_counter_ns() - page.payload()) / 1e9)
    return _counted(latencies, count)


def _each_millisecond(count: int, step: Callable[[], object]) -> None:
    due = time.perf_counter() + 0.05
    for _ in repeat(None, count):
        due += 0.001
        if (left := due - time.perf_counter()) > 0:
            time.sleep(left)
        step()


def _counted(latencies: list[float], count: int) -> list[float]:
    if len(latencies) < count + WARM_UP:
        raise TimeoutError(f"{len(latencies)} of {count + WARM_UP} messages came")
    return latencies[WARM_UP:]


ROLES: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (compute, produce, consume, share, member, send_pings, receive_pings, send_futex_pings, receive_futex_pings)
}

if __name__ == "__main__":
    main()
