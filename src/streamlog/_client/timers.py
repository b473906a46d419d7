"""The thread that keeps time for a process's group members: heartbeats, deaths of others, deadlines.

It stores heartbeats and tries locks, touches no log and runs no user code: what it finds, the members carry out in their next `poll`,
for which it wakes them.
"""

from __future__ import annotations

import weakref
from _thread import allocate_lock, start_new_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from streamlog._client.membership import Membership

from streamlog._os import process
from streamlog._os.watch import Watch
from streamlog._replica.home import Home

_LONGEST_SLEEP_MS = 5_000


class Timers:
    """Started when the first member joins; ends when the last is gone.  Holds members weakly and never keeps a process alive."""

    def __init__(self, home: Home) -> None:
        self._home = weakref.ref(home)
        self._clock = home.clock
        self._members: weakref.WeakSet[Membership] = weakref.WeakSet()
        self._lock = allocate_lock()
        self._watch: Watch | None = None
        self._pid = process.pid()

    def add(self, member: Membership) -> None:
        """Keep time for a member from now on."""
        with self._lock:
            self._members.add(member)
            if self._watch is None:
                self._watch = Watch()
                start_new_thread(self._run, (self._watch,))
            else:
                self._watch.wake()

    def remove(self, member: Membership) -> None:
        """It has left."""
        with self._lock:
            self._members.discard(member)

    def beat(self, now: int) -> None:
        """Whoever runs speaks for all members of its process before it judges others."""
        for member in list(self._members):
            member.beat(now)

    def wake(self) -> None:
        """Something changed: look again at who is to be watched."""
        watch = self._watch
        if watch is not None:
            watch.wake()

    def close(self) -> None:
        """End the thread soon."""
        with self._lock:
            self._members.clear()
            self.wake()

    def _run(self, watch: Watch) -> None:
        probe = True
        try:
            while (members := self._at_work()) is not None:
                now, next_ms = self._clock.monotonic_ms(), _LONGEST_SLEEP_MS
                pids: set[int] = set()
                for member in members:
                    next_ms = min(next_ms, member.tick(now, probe=probe) - now)
                    pids |= member.others()
                member = members = None  # type: ignore[assignment]  # asleep, it keeps nobody alive
                followed = watch.followed
                watch.follow(pids - {self._pid})
                # who was not watched until now may have died before
                probe = True if watch.followed - followed else watch.wait(max(1, next_ms) / 1000)
        finally:
            watch.close()

    def _at_work(self) -> list[Membership] | None:
        """The members; None ends the thread."""
        home = self._home()
        with self._lock:
            members = list(self._members)
            if not members or home is None or home.closed:
                self._watch = None
                return None
            return members
