"""The thread that does what nobody waits for: linger, queued batches, retries."""

from __future__ import annotations

import weakref
from _thread import allocate_lock, start_new_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from streamlog._client.accumulator import Accumulator

from streamlog._os.clock import monotonic

_RETRY = 1.0  # seconds after an error that nobody expected
_LONGEST_SLEEP = 5.0  # seconds: then a look whether the producer is still there


class Sender:
    """Closes batches whose linger is over and works off queues; started when first needed.

    Holds its producer only while it works, never keeps a process alive (a thread that `threading` does not know), and ends when the
    producer is closed or gone.
    """

    def __init__(self, producer: Accumulator) -> None:
        self._producer = weakref.ref(producer)
        self._gate = allocate_lock()
        self._gate.acquire()
        self._started = self._stopped = False
        self.keeper: Accumulator | None = None
        """The producer, as long as it has something to write."""
        self.wake_at = float("inf")
        """Monotonic time of the next round.  Stored by the sender; a reader that sees an old value calls it in vain, or once too often."""

    def expect(self, deadline: float) -> None:
        """There is something to do at `deadline` (monotonic seconds); called where that is before `wake_at`."""
        if not self._started:
            self._started = True
            self.wake_at = deadline
            try:
                start_new_thread(self._run, ())
            except RuntimeError:  # no more threads just now, or the interpreter ends: `flush` and `close` write
                self._started = False
        elif deadline < self.wake_at:
            self._wake()

    def _wake(self) -> None:
        try:
            self._gate.release()
        except RuntimeError:
            pass  # awake already

    def stop(self) -> None:
        """End the thread soon."""
        self._stopped = True
        if self._started:
            self._wake()

    def _run(self) -> None:
        while not self._stopped:
            producer = self._producer()
            if producer is None:
                return
            try:
                self.wake_at = producer._work()
            except BaseException:  # `sys.exit` in a callback too.  The queue stays: what went wrong is told, and tried again
                import logging

                logging.getLogger("streamlog").exception("sender of %r", producer)
                self.wake_at = monotonic() + _RETRY
            del producer
            self._gate.acquire(True, max(0.0, min(self.wake_at - monotonic(), _LONGEST_SLEEP)))
