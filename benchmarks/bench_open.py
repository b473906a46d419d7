"""Opening a cluster with many partitions: time and files."""

from __future__ import annotations

import gc
import os
import time
from functools import cache

from harness import Contender, Group, Place, at_most

import streamlog

TOPICS, PARTITIONS = 1_000, 4


def contenders(place: Place) -> list[Contender]:
    """The topics are made once, outside what is measured."""
    location = cache(lambda: filled(place))
    return [
        Contender("open 1,000 topics of 4", lambda: opened(location())[0], (at_most(20e-3),)),
        Contender("files open then", lambda: opened(location())[1], (at_most(16),), "files"),
    ]


def filled(place: Place) -> str:
    """A cluster that nobody has open."""
    path = place.path("many")
    with streamlog.open(path) as log:
        for number in range(TOPICS):
            log.create_topic(f"topic-{number}", partitions=PARTITIONS)
    return path


def opened(location: str) -> tuple[float, int]:
    """Seconds that opening takes, and files that are open more than before."""
    gc.collect()
    before, start = len(os.listdir("/proc/self/fd")), time.perf_counter()
    with streamlog.open(location, create=False):
        return time.perf_counter() - start, len(os.listdir("/proc/self/fd")) - before


GROUP = Group("open", contenders)
