"""Waking across processes: a bell is a 32-bit word and a flag beside it, in a mapped page (H17).

The waiter reads the bell, raises the flag, passes a `membarrier`, looks again, and sleeps in a futex on the bell's old value.
The publisher stores what it publishes, reads the flag, and only if it is up clears it, stores a fresh value and wakes all.
The barrier takes the place of the one that the publisher does not pay for.  No sleep is longer than `BOUND`: that is how late a waiter hears of a
record whose publisher was killed before it rang.  Without futexes a waiter polls.
"""

from __future__ import annotations

import ctypes
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

from streamlog._os.clock import monotonic, monotonic_ns, sleep
from streamlog._os.mapping import Page

BOUND = 1.0  # seconds
_POLL = 0.0005  # seconds between looks where the kernel offers no better
MAX_BELLS = 120  # futex_waitv takes 128

_FUTEX_WAIT, _FUTEX_WAKE = 0, 1
_NUMBERS = {"x86_64": (202, 449, 324), "aarch64": (98, 449, 283)}  # futex, futex_waitv, membarrier
_futex, _futex_waitv, _membarrier = _NUMBERS.get(os.uname().machine, (0, 0, 0)) if sys.platform == "linux" else (0, 0, 0)
_GLOBAL_EXPEDITED, _REGISTER_GLOBAL_EXPEDITED = 2, 4

_waiting_syscall = ctypes.CDLL(None, use_errno=True).syscall  # lets the GIL go: it sleeps
_held_syscall = ctypes.PyDLL(None).syscall  # keeps the GIL: it cannot block (H15)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


class _WaitV(ctypes.Structure):
    _fields_ = (("value", ctypes.c_uint64), ("address", ctypes.c_uint64), ("flags", ctypes.c_uint32), ("reserved", ctypes.c_uint32))


_FUTEX2_SIZE_U32 = 2


def register() -> bool:
    """Announce this process to `membarrier`; False where the kernel has none (waiters then poll).  Once per process."""
    return bool(_membarrier and _held_syscall(_membarrier, _REGISTER_GLOBAL_EXPEDITED, 0) == 0)


_registered = register()


def barrier() -> None:
    """Order the loads and stores of every registered process before and after this point (0.9 µs)."""
    if _registered:
        _held_syscall(_membarrier, _GLOBAL_EXPEDITED, 0)


class Bell:
    """A bell at 32-bit index `index` of `page`, its flag at `index + 1`."""

    __slots__ = ("address", "halves", "index", "page")

    def __init__(self, page: Page, index: int) -> None:
        self.page, self.index, self.halves = page, index, page.halves
        self.address = page.address + 4 * index

    def ring(self) -> None:
        """Wake everybody who waits; called only where the flag is up."""
        self.halves[self.index + 1] = 0
        self.halves[self.index] = monotonic_ns() >> 10 & 0xFFFFFFFF
        if _futex:
            _held_syscall(_futex, ctypes.c_void_p(self.address), _FUTEX_WAKE, 0x7FFFFFFF, 0, 0, 0)


class Waiter:
    """Waits on some bells; belongs to one thread."""

    def __init__(self, bells: Sequence[Bell]) -> None:
        self._bells = bells
        self._flags = [(bell.halves, bell.index) for bell in bells]
        self._array = (_WaitV * max(1, len(bells)))()
        for entry, bell in zip(self._array, bells):
            entry.address, entry.flags = bell.address, _FUTEX2_SIZE_U32

    def wait(self, timeout: float, ready: Callable[[], bool]) -> None:
        """Sleep until a bell rings, at most `timeout` and `BOUND` seconds; not at all if `ready()`.

        May return early; a signal ends it.
        """
        timeout = min(timeout, BOUND)
        values = [halves[index] for halves, index in self._flags]
        for halves, index in self._flags:
            halves[index + 1] = 1
        barrier()
        if ready() or timeout <= 0:
            return
        if not _registered or not self._bells:
            self._poll(timeout, ready)
        elif len(values) == 1:
            span = _Timespec(int(timeout), int(timeout % 1 * 1e9))
            address = ctypes.c_void_p(self._bells[0].address)
            _waiting_syscall(_futex, address, _FUTEX_WAIT, ctypes.c_uint32(values[0]), ctypes.byref(span), 0, 0)
        else:
            for entry, value in zip(self._array, values):
                entry.value = value
            until = monotonic_ns() + int(timeout * 1e9)
            span = _Timespec(until // 10**9, until % 10**9)
            count = len(values)
            if _waiting_syscall(_futex_waitv, self._array, count, 0, ctypes.byref(span), 1) == -1 and ctypes.get_errno() == 38:
                self._poll(timeout, ready)  # ENOSYS: Linux before 5.16

    def _poll(self, timeout: float, ready: Callable[[], bool]) -> None:
        deadline = monotonic() + timeout
        while not ready() and monotonic() < deadline:
            sleep(_POLL)
