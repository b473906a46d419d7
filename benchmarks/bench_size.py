"""Does a log's size matter?  Appends and look-ups in logs of 10 MB to 1 GB (5 GB with --big), against the smallest."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from harness import VALUE, Contender, Group, Place, cost, timed

SIZES = {"10 MB": 10**7, "100 MB": 10**8, "1 GB": 10**9}
APPENDS, LOOK_UPS = 2_000, 300
ROWS = 100_000  # of a call that fills


@dataclass(frozen=True)
class Filled:
    """A topic with `count` records, which were written between two times."""

    topic: str
    count: int
    since_ms: int
    until_ms: int


def contenders(place: Place) -> list[Contender]:
    """Each log is filled with batches of 16 KiB, such as `send` makes, once."""
    sizes = SIZES | ({"5 GB": 5 * 10**9} if place.big else {})
    logs = {label: cache(partial(filled, place, size)) for label, size in sizes.items()}
    made: list[Contender] = []
    for what, measure in (("append", append), ("seek + poll", seek), ("offsets_for_times", find)):
        for label, log in logs.items():
            goals = () if label == next(iter(sizes)) else (cost(None, f"{what} at {next(iter(sizes))}"),)
            made.append(Contender(f"{what} at {label}", _measurement(place, measure, log), goals))
    return made


def _measurement(place: Place, measure: Callable[[Place, Filled], float], log: Callable[[], Filled]) -> Callable[[], float]:
    return lambda: measure(place, log())


def filled(place: Place, size: int) -> Filled:
    """A topic of so many bytes of values."""
    topic, since = place.new_topic(max_message_bytes=16 << 10), time.time_ns() // 1_000_000
    rows = np.frombuffer(VALUE * ROWS, dtype=f"V{len(VALUE)}")
    with place.log.producer() as producer:
        for _ in range(size // rows.nbytes):
            producer.send_batch(topic, rows)
    return Filled(topic, size // rows.nbytes * ROWS, since, time.time_ns() // 1_000_000)


def append(place: Place, log: Filled) -> float:
    """One record at a time, acknowledged."""
    with place.log.producer() as producer:

        def loop() -> None:
            for _ in range(APPENDS):
                producer.send(log.topic, VALUE)
                producer.flush()

        return timed(loop, APPENDS)


def seek(place: Place, log: Filled) -> float:
    """The record at an offset anywhere in the log."""
    offsets = [random.randrange(log.count) for _ in range(LOOK_UPS)]
    with place.log.consumer() as consumer:
        tp = (log.topic, 0)
        consumer.assign([tp])

        def loop() -> None:
            for offset in offsets:
                consumer.seek(tp, offset)
                [record] = consumer.poll(1000, max_records=1)
                assert record.offset == offset

        return timed(loop, LOOK_UPS)


def find(place: Place, log: Filled) -> float:
    """The first record at or after a time."""
    times = [random.randrange(log.since_ms, log.until_ms + 1) for _ in range(LOOK_UPS)]
    with place.log.consumer() as consumer:

        def loop() -> None:
            for time_ms in times:
                consumer.offsets_for_times({(log.topic, 0): time_ms})

        return timed(loop, LOOK_UPS)


GROUP = Group("size", contenders)
