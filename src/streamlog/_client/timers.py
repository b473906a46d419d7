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
_AFTER_ERROR_MS = 1_000


class Timers:
    """Started when the first member joins; ends when the last is gone.  Holds members weakly and never keeps a process alive."""

    def __init__(self, home: Home) -> None:
        self._home = weakref.ref(home)
        self._clock = home.clock
        self._members: dict[int, weakref.ref[Membership]] = {}  # copied in one step: no lock where a signal handler may come
        self._lock = allocate_lock()  # for starting and ending
        self._watch: Watch | None = None
        self._pid = process.pid()

    def add(self, member: Membership) -> None:
        """Keep time for a member from now on."""
        self._members[id(member)] = weakref.ref(member)
        with self._lock:
            if self._watch is None:
                watch = Watch()
                start_new_thread(self._run, (watch,))
                self._watch = watch
        self.wake()

    def remove(self, member: Membership) -> None:
        """It has left."""
        self._members.pop(id(member), None)

    def members(self) -> list[Membership]:
        """Those that are there."""
        found = []
        for key, reference in list(self._members.items()):
            member = reference()
            if member is None:
                self._members.pop(key, None)
            else:
                found.append(member)
        return found

    def beat(self, now: int) -> None:
        """Whoever runs speaks for all members of its process before it judges others."""
        for member in self.members():
            member.beat(now)

    def wake(self) -> None:
        """Something changed: look again at who is to be watched."""
        watch = self._watch
        if watch is not None:
            watch.wake()

    def close(self) -> None:
        """End the thread soon."""
        self._members.clear()
        self.wake()

    def _run(self, watch: Watch) -> None:
        probe = True
        try:
            while members := self._at_work():
                now, next_ms = self._clock.monotonic_ms(), _LONGEST_SLEEP_MS
                pids: set[int] = set()
                for member in members:
                    next_ms = min(next_ms, self._tick(member, now, probe=probe) - now)
                    pids |= member.others()
                del members, member  # asleep, it keeps nobody alive
                followed = watch.followed
                watch.follow(pids - {self._pid})
                # who was not watched until now may have died before
                probe = True if watch.followed - followed else watch.wait(max(1, next_ms) / 1000)
        finally:
            with self._lock:
                if self._watch is watch:
                    self._watch = None
            watch.close()

    @staticmethod
    def _tick(member: Membership, now: int, *, probe: bool) -> int:
        try:
            return member.tick(now, probe=probe)
        except Exception:  # one member's trouble (a closed descriptor, a full table) must not silence the others
            import logging

            logging.getLogger("streamlog").exception("timers of %r", member)
            return now + _AFTER_ERROR_MS

    def _at_work(self) -> list[Membership]:
        """The members; none ends the thread."""
        home = self._home()
        with self._lock:
            members = self.members()
            if not members or home is None or home.closed:
                self._watch = None  # whoever is added from now on starts another
                return []
            return members
