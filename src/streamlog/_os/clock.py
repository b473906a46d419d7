"""The clocks: wall time for records and retention, monotonic time for waits.

A cluster's clock can be moved for all its processes by an offset word in `run/` (tests do).
"""

from __future__ import annotations

import time

monotonic = time.monotonic
monotonic_ns = time.monotonic_ns
sleep = time.sleep
_time_ns = time.time_ns


def wall_ms() -> int:
    """Milliseconds since 1970-01-01 UTC, by this machine's clock."""
    return _time_ns() // 1_000_000


class Clock:
    """Wall time in whole milliseconds, moved by the cluster's offset word."""

    __slots__ = ("_offset_index", "_words")

    def __init__(self, words: memoryview, offset_index: int) -> None:
        self._words, self._offset_index = words, offset_index

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC."""
        return _time_ns() // 1_000_000 + self._words[self._offset_index]

    def monotonic_ms(self) -> int:
        """Milliseconds that all processes of this boot agree on; they never go back.  For sessions and deadlines."""
        return monotonic_ns() // 1_000_000 + self._words[self._offset_index]

    def advance(self, ms: int) -> None:
        """Move the clocks of every process of the cluster forward."""
        self._words[self._offset_index] += ms


def left(deadline: float) -> float:
    """Seconds until a deadline of `monotonic`; 0 after it."""
    return max(0.0, deadline - monotonic())
