"""Hearing at once that a process has ended: pidfds in one `poll` (H24).

What it says is a hint: pids are of this pid namespace and may be used again, so whoever hears looks at the locks.  Where the kernel
offers none, `wait` returns after `PROBE` seconds at the latest and the caller probes the locks.
"""

from __future__ import annotations

import os
import select
from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Set

from streamlog._os.files import storage_error

OUT_OF_SIGHT = 0  # stands for processes of other pid namespaces: a pid of theirs may be anybody's here
PROBE = 0.025  # seconds between looks where nothing can be heard
_MOST = 64  # processes watched by descriptor; beyond, their locks are probed


class Watch:
    """Watches processes; belongs to one thread, `wake` excepted."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._fds: dict[int, int] = {}  # pidfd by pid
        self._ended: set[int] = set()  # heard of, and still asked for: the caller has more to do
        try:
            self._wake_read, self._wake_write = os.pipe()
        except OSError as error:
            raise storage_error(error, "a pipe", "open") from error
        os.set_blocking(self._wake_write, False)
        self._poll.register(self._wake_read, select.POLLIN)
        self._lock = allocate_lock()  # nobody writes to a descriptor that is another's by now
        self.deaf = False
        """Whether some of the processes can only be probed."""

    def close(self) -> None:
        """Close all descriptors."""
        with self._lock:
            fds, self._fds = [*self._fds.values(), self._wake_read, self._wake_write], {}
            self._wake_read = self._wake_write = -1
        for fd in fds:
            os.close(fd)

    def wake(self) -> None:
        """End `wait`; any thread."""
        with self._lock:
            if self._wake_write >= 0:
                try:
                    os.write(self._wake_write, b"\0")
                except BlockingIOError:
                    pass  # full: it wakes anyway

    @property
    def followed(self) -> set[int]:
        """The processes that are watched by descriptor."""
        return set(self._fds)

    def follow(self, pids: Set[int]) -> None:
        """Watch these processes and no others."""
        for pid in self._fds.keys() - pids:
            self._drop(pid)
        self._ended &= pids
        self.deaf = len(pids) > _MOST or bool(self._ended) or OUT_OF_SIGHT in pids
        for pid in sorted(pids - self._fds.keys() - self._ended - {OUT_OF_SIGHT})[: _MOST - len(self._fds)]:
            try:
                fd = os.pidfd_open(pid)
            except (AttributeError, OSError):
                self.deaf = True
                continue
            self._fds[pid] = fd
            self._poll.register(fd, select.POLLIN)

    def _drop(self, pid: int) -> None:
        fd = self._fds.pop(pid)
        self._poll.unregister(fd)
        os.close(fd)

    def wait(self, seconds: float) -> bool:
        """Sleep until a process ends, `wake` is called or the time is over; whether to look at once who is there."""
        if self.deaf:
            seconds = min(seconds, PROBE)
        ready = {fd for fd, _ in self._poll.poll(max(0.0, seconds) * 1000)}
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        ended = [pid for pid, fd in self._fds.items() if fd in ready]
        for pid in ended:
            self._drop(pid)
            self._ended.add(pid)
        return bool(ended) or self.deaf
