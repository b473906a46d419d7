"""The ends of a process: what a producer has not written yet is written at exit; a forked child has none of it."""

from __future__ import annotations

import atexit
import sys
import weakref
from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from streamlog.consumer import Consumer
    from streamlog.producer import Producer

from streamlog._client.batch import telling
from streamlog._os import process

_producers: weakref.WeakSet[Producer] = weakref.WeakSet()
_consumers: weakref.WeakSet[Consumer] = weakref.WeakSet()
_registered: set[int] = set()


def remember(producer: Producer) -> None:
    """See to a producer when the process ends or forks."""
    _producers.add(producer)
    _finalize_at_exit()


def remember_consumer(consumer: Consumer) -> None:
    """See to a consumer when the process forks."""
    _consumers.add(consumer)


def _after_fork_in_child() -> None:
    for consumer in list(_consumers):
        consumer._forget_parent()
    _consumers.clear()
    for producer in list(_producers):
        producer._lock, producer._busy = allocate_lock(), False
        producer._closed_reason = "it belongs to the process that this one was forked from"
        producer._forked = True
        producer.accept(False)
    _producers.clear()
    telling.clear()


def _at_exit() -> None:
    """Write what is left, or say how much was lost.

    What handlers send that run after this one (`logging.shutdown`, hooks that were registered earlier) is written at once.
    """
    for producer in list(_producers):
        before, reason = producer.lost, ""
        try:
            for lane in list(producer._active) if producer._closed_reason else ():
                lane.drain(wait=True)  # closed inside its own append
            producer.end_with_process()
        except Exception as error:
            reason = f": {error}"
        lost = producer.lost - before
        if reason or lost:
            sys.stderr.write(f"streamlog: {producer!r} lost {lost} records at exit{reason}\n")


class _AfterFork:
    """A key, which `multiprocessing` holds weakly, for what it is told to call in its children."""


_after_fork = _AfterFork()


def _finalize_at_exit() -> None:
    """Children of multiprocessing may skip `atexit` (H25): they have a finalizer of their own.

    A child of the fork server imports the main module, and so may make producers, before `multiprocessing` forgets all finalizers that it
    has from its parent.  It then calls what `register_after_fork` was given: that makes ours again.
    """
    util = sys.modules.get("multiprocessing.util")
    if util is not None and process.pid() not in _registered:
        _registered.add(process.pid())
        util.register_after_fork(_after_fork, lambda _: util.Finalize(None, _at_exit, exitpriority=100))
        util.Finalize(None, _at_exit, exitpriority=100)


process.after_fork_in_child(_after_fork_in_child)
atexit.register(_at_exit)
