"""Process locks: bytes of a file, by open file description (OFD), with a thread lock in front.

The kernel drops a dead process's locks, so nobody has to.  `under` is the one place that takes a lock (H14): no context
manager, because an exception raised by a signal handler between taking and entering would leak it.  A wait is bounded by
the caller's time-out (H16).  Order, outer to inner, checked where STREAMLOG_VERIFY=1: `METADATA`, `GROUP`, `TRANSACTION`, `SYNC`,
`PARTITION` (of one replica's log), `TRANSACTION_STATE`, `LEADERSHIP` (of a partition with several replicas: its shared words, no disk),
`CHECKPOINT` (of a broker: a small file).
A sync stores what it covered under the partition's lock, and nobody who holds that one waits for a sync; a transactional append looks at the
transaction's state under its partition's lock, and nobody who writes a state holds another's.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
import weakref
from _thread import LockType, RLock, allocate_lock, get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")

from streamlog._os import process
from streamlog._os.clock import monotonic, sleep
from streamlog._os.files import O_CREAT, O_RDWR, FileSystem
from streamlog.errors import InvalidStateError, StreamlogTimeoutError

METADATA, GROUP, TRANSACTION, SYNC, PARTITION, TRANSACTION_STATE, LEADERSHIP, CHECKPOINT = range(8)
_SPINS, _PAUSE = 50, 30e-6  # tries at once, then constant sleeps (s): back-off starves (H16)

if sys.platform == "darwin":
    _GETLK, _SETLK = 92, 90

    class _Flock(ctypes.Structure):
        _fields_ = (
            ("start", ctypes.c_int64), ("length", ctypes.c_int64), ("pid", ctypes.c_int),
            ("type", ctypes.c_short), ("whence", ctypes.c_short),
        )  # fmt: skip
else:
    _GETLK, _SETLK = 36, 37  # F_OFD_GETLK, F_OFD_SETLK

    class _Flock(ctypes.Structure):
        _fields_ = (
            ("type", ctypes.c_short), ("whence", ctypes.c_short), ("start", ctypes.c_int64),
            ("length", ctypes.c_int64), ("pid", ctypes.c_int),
        )  # fmt: skip


_held_fcntl = ctypes.PyDLL(None).fcntl  # keeps the GIL: it cannot block, and letting the GIL go under a lock costs 5 ms (H15)


def _range(kind: int, index: int) -> Any:
    return ctypes.byref(_Flock(type=kind, whence=os.SEEK_SET, start=index, length=1, pid=0))


class LockFile:
    """A file of lock bytes and this process's one open file description of it.  Never mapped, renamed or deleted."""

    def __init__(self, fs: FileSystem, path: str) -> None:
        self.path = path
        self.thread_locks: weakref.WeakValueDictionary[int, LockType] = weakref.WeakValueDictionary()
        """By byte: the kernel does not keep the threads that share a description from each other."""
        self._fs = fs
        self.fd = fs.open(path, O_RDWR | O_CREAT)
        found = fs.fstat(self.fd)
        self.identity = (found.st_dev, found.st_ino)

    def close(self) -> None:
        """Close the description and with it all its locks.  After a fork the parent keeps its own."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self._fs.close(fd)

    def replaced(self) -> bool:
        """Whether the path names another file by now, so that two holders of one lock are possible (H7)."""
        try:
            found = self._fs.stat(self.path)
        except FileNotFoundError:
            return True
        return (found.st_dev, found.st_ino) != self.identity

    def try_shared(self, index: int) -> bool:
        """Take a byte shared, or turn an exclusive hold into a shared one."""
        return bool(_held_fcntl(self.fd, _SETLK, _range(fcntl.F_RDLCK, index)) == 0)

    def try_exclusive(self, index: int) -> bool:
        """Take a byte exclusively, not through `under`: for holds that last as long as the description."""
        return bool(_held_fcntl(self.fd, _SETLK, _range(fcntl.F_WRLCK, index)) == 0)

    def unlock(self, index: int) -> None:
        """Let a byte go."""
        _held_fcntl(self.fd, _SETLK, _range(fcntl.F_UNLCK, index))

    def is_held_elsewhere(self, index: int) -> bool:
        """Whether another description holds the byte; takes nothing, so a probe never looks like an owner (H23)."""
        probe = _Flock(type=fcntl.F_WRLCK, whence=os.SEEK_SET, start=index, length=1, pid=0)
        _held_fcntl(self.fd, _GETLK, ctypes.byref(probe))
        return bool(probe.type != fcntl.F_UNLCK)


_making = RLock()  # (a signal handler may make a lock, too)


class ByteLock:
    """One byte of a `LockFile`, used through `under`."""

    __slots__ = ("acquire", "describe", "file", "give", "index", "rank", "release", "take")

    def __init__(self, file: LockFile, index: int, rank: int, describe: Callable[[], str]) -> None:
        with _making:  # every `ByteLock` of a byte has the same one
            thread_lock = file.thread_locks.get(index)
            if thread_lock is None:
                thread_lock = file.thread_locks[index] = allocate_lock()
        self.acquire, self.release = thread_lock.acquire, thread_lock.release
        self.file, self.index, self.rank = file, index, rank
        self.take, self.give = _range(fcntl.F_WRLCK, index), _range(fcntl.F_UNLCK, index)
        self.describe = describe  # says which lock it is and who holds it, for the error of a wait that ended


_AT_ONCE = (False,)
inside: set[int] = set()
"""Threads that take, hold or give a lock: code that a collector or a signal runs there must not take locks (H18)."""
folding: set[int] = set()
"""Threads that fold a log, for which they hold a lock that is not of this kind."""


def is_interrupted() -> bool:
    """Whether a collector or a signal runs this code inside a lock or a fold of its thread: it must not wait for another thread."""
    me = get_ident()
    return me in inside or me in folding


def forget_threads() -> None:
    """In a forked child: the parent's other threads are not here."""
    inside.clear()
    folding.clear()


def under(lock: ByteLock, timeout: float, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call `function` while this thread, of all threads of all processes, holds `lock`.

    `timeout` is in seconds; -1 waits for ever.  An exception of any kind lets the lock go.
    Raises: StreamlogTimeoutError, naming the holder; InvalidStateError: this very thread has the lock, and a signal handler, say, wants it.
    """
    held: list[bool] = []
    me = get_ident()
    outermost = me not in inside
    try:
        inside.add(me)  # before the lock is taken, and until it is given: a signal may come between any two of these lines
        held.extend(map(lock.acquire, _AT_ONCE))
        if not held[0] or _held_fcntl(lock.file.fd, _SETLK, lock.take):
            _contend(lock, timeout, held, not outermost)
        return function(*args, **kwargs)
    finally:
        try:
            if True in held:
                try:
                    _held_fcntl(lock.file.fd, _SETLK, lock.give)
                finally:
                    lock.release()
        finally:
            if outermost:
                inside.discard(me)


def is_own(lock: ByteLock) -> bool:
    """Whether this thread holds the lock: the frames say so at each instruction, and cost those nothing who do not ask."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in _holders and True in frame.f_locals.get("held", ()) and frame.f_locals["lock"].acquire == lock.acquire:
            return True
        frame = frame.f_back
    return False


def if_free(lock: ByteLock, function: Callable[[], object]) -> bool:
    """Call `function` if no thread of this process is inside `lock`, which keeps them out meanwhile; returns whether."""
    held: list[bool] = []
    me = get_ident()
    outermost = me not in inside
    try:
        inside.add(me)
        held.extend(map(lock.acquire, _AT_ONCE))
        if held[0]:
            function()
        return held[0]
    finally:
        try:
            if True in held:
                lock.release()
        finally:
            if outermost:
                inside.discard(me)


_holders = (under.__code__, if_free.__code__)


def _contend(lock: ByteLock, timeout: float, held: list[bool], is_nested: bool) -> None:
    """Another thread, or another process, is inside: wait, then try again until `timeout`."""
    if is_nested and not held[0] and is_own(lock):
        raise InvalidStateError(
            f"{lock.describe()}: a signal handler, or a finalizer, cannot take a lock that its own thread holds; call again when it has returned"
        )
    timeout = min(timeout, 1e6)  # eleven days: more is too much for `acquire`
    deadline = monotonic() + timeout if timeout >= 0 else float("inf")
    if not held[0]:
        held.extend(map(lock.acquire, (True,), (timeout,)))
        if True not in held:
            raise StreamlogTimeoutError(f"waited {timeout:g} s for {lock.describe()}: another thread of this process has it")
    tries = 0
    while _held_fcntl(lock.file.fd, _SETLK, lock.take):
        try:  # the slow way says why
            fcntl.fcntl(lock.file.fd, _SETLK, bytes(lock.take._obj))
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        tries += 1
        if tries < _SPINS:
            continue
        if monotonic() >= deadline:
            raise StreamlogTimeoutError(f"waited {timeout:g} s for {lock.describe()}")
        sleep(_PAUSE)


# ---- order, checked in debug -----------------------------------------------------------------------------------------

if os.environ.get("STREAMLOG_VERIFY") == "1":
    _unchecked, _ranks = under, {}  # type: ignore[var-annotated]

    def under(lock: ByteLock, timeout: float, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """`under`, with the order of locks checked."""
        stack = _ranks.setdefault(get_ident(), [])
        if stack and (lock.rank, lock.file.path, lock.index) < stack[-1] and not is_own(lock):  # its own: `_contend` tells
            raise AssertionError(f"lock order: {lock.describe()} is wanted inside {stack}")
        stack.append((lock.rank, lock.file.path, lock.index))
        try:
            return _unchecked(lock, timeout, function, *args, **kwargs)
        finally:
            stack.pop()


def describe(what: str, words: memoryview, word: int) -> str:
    """Which lock it is and who holds it (the token in a shared word), for the error of a wait that ended."""
    pid, is_ours = process.of_token(words[word])
    holder = "another process"
    if pid:
        holder = f"process {pid} ({process_state(pid) if is_ours else 'of another pid namespace: a container'})"
    return f"the {what}, held by {holder}"


def process_state(pid: int) -> str:
    """What a process is doing, for messages: "stopped", "running", "dead", …"""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            letter = file.read().rpartition(b")")[2].split()[0].decode()
    except (FileNotFoundError, ProcessLookupError):
        return "dead" if sys.platform == "linux" else "unknown"
    names = {"T": "stopped", "t": "stopped by a debugger", "D": "waiting for a disk", "Z": "dead", "R": "running", "S": "asleep"}
    return names.get(letter, letter)
