"""`send` and `batch.append`, against the least that a thread-safe buffer costs: an append under a lock."""

from __future__ import annotations

import threading
from itertools import cycle, islice, repeat

from harness import VALUE, Contender, Group, Place, at_most, cost, rate, timed

COUNT = 300_000
KEYS = [b"user-%d" % number for number in range(1_000)]


def contenders(place: Place) -> list[Contender]:
    """Flushes are part of what is measured."""
    return [
        Contender("locked_append", locked_append),
        Contender("send", lambda: send(place), (cost(3.2, "locked_append"),)),
        Contender("send with a key", lambda: send_keyed(place), (cost(4.2, "locked_append"),)),
        Contender("send, four threads share", lambda: send_shared(place), (rate(0.75, "send"),)),
        Contender("batch.append", lambda: batch_append(place), (at_most(0.2e-6),)),
    ]


def locked_append() -> float:
    """The yardstick."""
    lock, rows = threading.Lock(), list[bytes]()

    def append(value: bytes) -> None:
        with lock:
            rows.append(value)

    def loop() -> None:
        for _ in repeat(None, COUNT):
            append(VALUE)

    return timed(loop, COUNT)


def send(place: Place) -> float:
    """Without a key."""
    with place.topic() as topic, place.log.producer() as producer:

        def loop() -> None:
            send = producer.send
            for _ in repeat(None, COUNT):
                send(topic, VALUE)
            producer.flush()

        return timed(loop, COUNT)


def send_shared(place: Place) -> float:
    """Four threads and one producer; the cost of a record, all threads' together."""
    with place.topic() as topic, place.log.producer() as producer:

        def work() -> None:
            send = producer.send
            for _ in repeat(None, COUNT // 4):
                send(topic, VALUE)

        def loop() -> None:
            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            producer.flush()

        return timed(loop, COUNT)


def send_keyed(place: Place) -> float:
    """With one of 1,000 keys in turn."""
    keys = list(islice(cycle(KEYS), COUNT))
    with place.topic() as topic, place.log.producer() as producer:

        def loop() -> None:
            send = producer.send
            for key in keys:
                send(topic, VALUE, key=key)
            producer.flush()

        return timed(loop, COUNT)


def batch_append(place: Place) -> float:
    """The call for tight loops."""
    with place.topic() as topic, place.log.producer() as producer:

        def loop() -> None:
            with producer.batch(topic) as batch:
                append = batch.append
                for _ in repeat(None, COUNT):
                    append(VALUE)
            producer.flush()

        return timed(loop, COUNT)


GROUP = Group("send", contenders)
