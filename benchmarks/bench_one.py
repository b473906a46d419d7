"""One record at a time, acknowledged, against taking and giving back a file lock; and the same beside a thread that computes."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from harness import VALUE, Contender, Group, Place, cost, timed_for

SECONDS = 0.5


def contenders(place: Place) -> list[Contender]:
    """This process is on no core in particular: the second thread has one of its own where there is one."""
    return [
        Contender("flock_pair", lambda: flock_pair(place)),
        Contender("send + flush", lambda: send_flush(place), (cost(8, "flock_pair"),)),
        Contender("send + flush beside a busy thread", lambda: send_flush_busy(place), (cost(10, "send + flush"),)),
    ]


def flock_pair(place: Place) -> float:
    """The yardstick."""
    file = os.open(place.path("lock"), os.O_RDWR | os.O_CREAT)

    def pair() -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_UN)

    try:
        return timed_for(SECONDS, pair)
    finally:
        os.close(file)


def send_flush(place: Place) -> float:
    """Each record is acknowledged before the next."""
    with place.topic() as topic, place.log.producer() as producer:

        def one() -> None:
            producer.send(topic, VALUE)
            producer.flush()

        one()
        return timed_for(SECONDS, one)


def send_flush_busy(place: Place) -> float:
    """Whoever lets the interpreter's lock go here waits 5 ms for it."""
    with busy_thread():
        return send_flush(place)


@contextmanager
def busy_thread() -> Iterator[None]:
    """A thread that computes."""
    done = threading.Event()

    def compute() -> None:
        while not done.is_set():
            sum(number * number for number in range(1_000))

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


GROUP = Group("one", contenders, core=None)
