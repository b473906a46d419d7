"""`durability="fsync"`: one thread against a bare loop of write and sync, and eight threads that share syncs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count

from harness import VALUE, Contender, Group, Place, cost, rate, timed, timed_for

from streamlog import Producer

SECONDS = 0.5
THREADS, EACH = 8, 100
RECORD = 300  # bytes of a write and sync that a record comes to


def contenders(place: Place) -> list[Contender]:
    """The cost is that of a record."""
    return [
        Contender("pwrite + fdatasync", lambda: bare(place)),
        Contender("one thread: send + flush", lambda: one_thread(place), (rate(0.95, "pwrite + fdatasync"),)),
        Contender("8 threads, one producer: send + result", lambda: threads(place, 1), (rate(3, "one thread: send + flush"),)),
        Contender("8 threads, a producer each: send + result", lambda: threads(place, THREADS), (rate(3, "one thread: send + flush"),)),
        Contender("8 threads, one producer, linger_ms=0", lambda: threads(place, 1, 0), (cost(None, "one thread: send + flush"),)),
    ]


def bare(place: Place) -> float:
    """The yardstick: one write after the other into a file that has its space."""
    path = place.path("bare")
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        os.posix_fallocate(file, 0, 64 << 20)
        os.fsync(file)
        payload, positions = bytes(RECORD), _positions()

        def one() -> None:
            os.pwrite(file, payload, next(positions))
            os.fdatasync(file)

        one()
        return timed_for(SECONDS, one)
    finally:
        os.close(file)
        os.unlink(path)


def _positions() -> Iterator[int]:
    return count(0, RECORD)


def one_thread(place: Place) -> float:
    """Each record is on the disk before the next."""
    with place.topic() as topic, place.log.producer(durability="fsync") as producer:

        def one() -> None:
            producer.send(topic, VALUE)
            producer.flush()

        one()
        return timed_for(SECONDS, one)


def threads(place: Place, producers: int, linger_ms: int = 5) -> float:
    """Each thread waits for each of its records."""
    with place.topic() as topic, ExitStack() as stack, ThreadPoolExecutor(THREADS) as pool:
        made = [stack.enter_context(place.log.producer(durability="fsync", linger_ms=linger_ms)) for _ in range(producers)]

        def work(producer: Producer) -> None:
            for _ in range(EACH):
                producer.send(topic, VALUE).result(30)

        return timed(lambda: list(pool.map(work, [made[number % producers] for number in range(THREADS)])), THREADS * EACH)


GROUP = Group("fsync", contenders, core=None)
