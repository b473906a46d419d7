"""The clocks: wall time for records, the machine's monotonic time for waits, and an agreed wall time for what expires.

A cluster's clocks can be moved for all its processes by an offset word in `run/` (tests do).
"""

from __future__ import annotations

import time

monotonic = time.monotonic
monotonic_ns = time.monotonic_ns
sleep = time.sleep
_time_ns = time.time_ns

_TOLERANCE_MS = 60_000  # clocks that differ by less are taken for the same: NTP moves them by so much
_CONFIRMED_MS = 3_600_000  # a clock that jumped is believed after an hour in which nobody has contradicted it


def _namespace_offsets() -> dict[str, int]:
    """Nanoseconds by which this process's time namespace has moved the clocks of the machine; containers may (Linux 5.6)."""
    try:
        with open("/proc/self/timens_offsets") as file:
            rows = [line.split() for line in file]
        return {name: int(seconds) * 10**9 + int(nanoseconds) for name, seconds, nanoseconds in rows}
    except (OSError, ValueError):
        return {}


_moved = _namespace_offsets()
_MONOTONIC_MOVED, _BOOT_MOVED = _moved.get("monotonic", 0), _moved.get("boottime", 0)
_boot_clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def wall_ms() -> int:
    """Milliseconds since 1970-01-01 UTC, by this process's clock."""
    return _time_ns() // 1_000_000


def since_boot_ms() -> int:
    """Milliseconds since the machine was started, the time that it slept included; in every namespace the same."""
    return (time.clock_gettime_ns(_boot_clock) - _BOOT_MOVED) // 1_000_000


class Clock:
    """Wall time and monotonic time in whole milliseconds, moved by the cluster's offset word.

    Safe to share between threads and processes: a word that two of them store at once has the value of one of them.
    """

    __slots__ = ("_agreed", "_offset_index", "_words")

    def __init__(self, words: memoryview, offset_index: int, agreed_index: int) -> None:
        """`agreed_index` is the first of three words: when the machine was started by the agreed wall clock, the same by a clock that jumped,
        and since when that one has not been contradicted.
        """
        self._words, self._offset_index, self._agreed = words, offset_index, agreed_index

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC, by this process's clock: for records."""
        return _time_ns() // 1_000_000 + self._words[self._offset_index]

    def agreed_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC, by a clock on which all processes of the cluster agree: for what expires.

        A process whose clock is wrong gets the time of the others, so it does not make their offsets expire.  If a clock jumps, the cluster
        follows it after an hour in which no process has contradicted it.  A clock that was wrong when the cluster was first opened after
        the boot, and is corrected later, counts as one that jumped.
        """
        words, at = self._words, self._agreed
        uptime = since_boot_ms()
        started = _time_ns() // 1_000_000 - uptime
        agreed = words[at]
        if not agreed or abs(started - agreed) <= _TOLERANCE_MS:
            words[at] = agreed = max(1, started)
            words[at + 2] = 0
        elif not words[at + 2] or abs(started - words[at + 1]) > _TOLERANCE_MS:
            words[at + 1], words[at + 2] = max(1, started), max(1, uptime)
        elif uptime - words[at + 2] > _CONFIRMED_MS:
            words[at] = agreed = max(1, started)
            words[at + 2] = 0
        return agreed + uptime + words[self._offset_index]

    def monotonic_ms(self) -> int:
        """Milliseconds that all processes of this boot agree on, whatever their namespace; they never go back.  For sessions and deadlines."""
        return (monotonic_ns() - _MONOTONIC_MOVED) // 1_000_000 + self._words[self._offset_index]

    def advance(self, ms: int) -> None:
        """Move the clocks of every process of the cluster forward."""
        self._words[self._offset_index] += ms


def left(deadline: float) -> float:
    """Seconds until a deadline of `monotonic`; 0 after it."""
    return max(0.0, deadline - monotonic())
