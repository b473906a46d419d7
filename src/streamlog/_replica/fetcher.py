"""The thread that copies to followers what nobody waits for: records acknowledged under acks=1, replicas that are behind (Kafka's fetchers)."""

from __future__ import annotations

import weakref
from _thread import allocate_lock, start_new_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from streamlog._replica.home import Home
    from streamlog._replica.replicated import ReplicatedLog

from streamlog._os.clock import monotonic
from streamlog._replica.leadership import PLACE, leader_of
from streamlog.errors import StreamlogError

_ROUND = 1.0  # seconds between looks at replicas that are not in sync, and at brokers that failed
_AFTER_ERROR = 0.05
_IDLE = 10.0  # seconds without work after which the thread ends


class Fetcher:
    """Started when first needed; ends when there was nothing to do for a while.  Holds its home weakly, never keeps a process alive."""

    def __init__(self, home: Home) -> None:
        self._home = weakref.ref(home)
        self._owed: dict[ReplicatedLog, None] = {}
        self._gate = allocate_lock()
        self._gate.acquire()
        self._starting = allocate_lock()
        self._runs = self._stopped = False

    def owe(self, log: ReplicatedLog) -> None:
        """There is something to copy, soon."""
        if log not in self._owed:
            self._owed[log] = None
            self.wake()

    def wake(self) -> None:
        """There may be something to do."""
        with self._starting:
            if not self._runs and not self._stopped:
                self._runs = True
                try:
                    start_new_thread(self._run, ())
                except RuntimeError:  # no more threads: who closes pays
                    self._runs = False
        try:
            self._gate.release()
        except RuntimeError:
            pass  # awake already

    def pay(self, timeout: float) -> None:
        """Copy what is owed, on this thread."""
        deadline = monotonic() + timeout
        while self._owed and monotonic() < deadline:
            log, _ = self._owed.popitem()
            log.pay(max(0.1, deadline - monotonic()))

    def stop(self) -> None:
        """End the thread soon."""
        self._stopped = True
        self.wake()

    def forget_threads(self) -> None:
        """In a forked child: the thread, and who held the locks, are the parent's."""
        self._gate, self._starting = allocate_lock(), allocate_lock()
        self._runs, self._stopped = False, True

    def _run(self) -> None:
        next_round, last_work = monotonic() + _ROUND, monotonic()
        while True:
            home = self._home()
            if home is None or home.closed or self._stopped:
                break
            now = monotonic()
            pause = _ROUND
            if self._owed:
                last_work = now
                pause = self._work()
            if now >= next_round:
                next_round = now + _ROUND
                try:
                    if home.controller.look_after():
                        last_work = now
                except (StreamlogError, OSError):
                    pass  # the next round tries again
                except Exception:
                    if not home.closed:  # else a lock's file was closed under our feet
                        raise
            if now - last_work > _IDLE:
                with self._starting:
                    if not self._owed:
                        self._runs = False
                        return
            del home
            self._gate.acquire(True, pause)
        self._runs = False

    def _work(self) -> float:
        """Copy once for each log that owes; returns when to look again (s)."""
        pause = _ROUND
        for log in list(self._owed):
            self._owed.pop(log, None)
            try:
                if not log.replicate(0.05) and leader_of(log.leadership[PLACE]) >= 0:
                    self._owed[log] = None
                    pause = 0.0
            except (StreamlogError, OSError):
                self._owed[log] = None  # its lock is taken, its leader is gone: again
                pause = min(pause, _AFTER_ERROR)
            except Exception:
                if self._stopped:
                    return pause
                import logging

                logging.getLogger("streamlog").exception("fetcher of %s", log.name)
        return pause
