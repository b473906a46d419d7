"""`send_batch` of values of 1 KB, against writing the same bytes into reserved space."""

from __future__ import annotations

import os
from itertools import repeat
from typing import Any

import numpy as np
from harness import Contender, Group, Place, rate, timed

WIDTH, ROWS, CALLS = 1024, 1_000, 64


def contenders(place: Place) -> list[Contender]:
    """The cost is that of a record."""
    values = [os.urandom(WIDTH) for _ in range(ROWS)]
    joined = b"".join(values)
    array = np.frombuffer(joined, dtype=f"V{WIDTH}")
    return [
        Contender("pwritev, 1,000 buffers", lambda: pwritev(place, values)),
        Contender("pwritev, one buffer", lambda: pwritev(place, [joined])),
        Contender("send_batch, list", lambda: send_batch(place, values), (rate(0.6, "pwritev, 1,000 buffers"),)),
        Contender("send_batch, array", lambda: send_batch(place, array), (rate(0.6, "pwritev, one buffer"),)),
    ]


def pwritev(place: Place, buffers: list[bytes]) -> float:
    """The yardstick."""
    path, size = place.path("bare"), WIDTH * ROWS
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        os.posix_fallocate(file, 0, size * CALLS)

        def loop() -> None:
            for call in range(CALLS):
                os.pwritev(file, buffers, call * size)

        return timed(loop, ROWS * CALLS)
    finally:
        os.close(file)
        os.unlink(path)


def send_batch(place: Place, values: Any) -> float:
    """A call of 1,000 values each."""
    with place.topic() as topic, place.log.producer() as producer:

        def loop() -> None:
            for _ in repeat(None, CALLS):
                producer.send_batch(topic, values)
            producer.flush()

        return timed(loop, ROWS * CALLS)


GROUP = Group("bulk", contenders)
