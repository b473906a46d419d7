"""Anonymous memory of a process that writes, and of one that reads, 10^6 records: the peak that is seen from outside."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

from bench_processes import consumer, filled, producer
from harness import Contender, Group, Place, Worker, at_most

LIMIT = 45.0  # MiB


def contenders(place: Place) -> list[Contender]:
    """Linux only: /proc."""
    topic = cache(lambda: filled(place, "send"))
    return [
        Contender("producer of 10^6: send", lambda: producer_peak(place, "send"), (at_most(LIMIT),), "MiB"),
        Contender("producer of 10^6: batch.append", lambda: producer_peak(place, "batch.append"), (at_most(LIMIT),), "MiB"),
        Contender("consumer of 10^6: poll", lambda: peak(consumer(place, topic())), (at_most(LIMIT),), "MiB"),
    ]


def producer_peak(place: Place, how: str) -> float:
    """Of one that writes."""
    with place.topic() as topic:
        return peak(producer(place, topic, how))


def peak(worker: Worker) -> float:
    """The largest RssAnon of a worker (MiB)."""
    with worker:
        worker.ready()
        worker.go()
        status, largest = Path(f"/proc/{worker.process.pid}/status"), 0
        while worker.process.poll() is None:
            for line in status.read_text().splitlines():
                if line.startswith("RssAnon:"):
                    largest = max(largest, int(line.split()[1]))
            time.sleep(0.001)
        worker.result()
    return largest / 1024


GROUP = Group("memory", contenders, rounds=1, core=None)
