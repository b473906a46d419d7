"""Steps and faults by name.

Every store to a shared word and every call of the file system that changes something is a *step*, named after what it does:
`word HWM`, `write *.log`, `rename *.log`, …  A `Steps` object sees each of them before, half-way through (writes) and after, and may
count, fail or kill there.  Nothing in the library knows of it: `FaultyFileSystem` and `StepWords` stand in for the real ones.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import signal
from collections.abc import Callable, Sequence
from typing import Any

from streamlog._log import state
from streamlog._log.state import Slot
from streamlog._os.files import LOCAL, FileSystem, storage_error
from streamlog._os.memory import FileMap

Phase = str  # "before", "half" or "after"


class Steps:
    """What happens at each step.  `hook(number, name, phase)` is called with numbers from 0."""

    def __init__(self, hook: Callable[[int, str, Phase], None] | None = None) -> None:
        self.names: list[str] = []
        self.hook = hook
        self.active = True

    def begin(self, name: str) -> int:
        """Enter a step."""
        if not self.active:
            return -1
        self.names.append(name)
        return self._tell(len(self.names) - 1, "before")

    def half(self, number: int) -> None:
        """Half of a write is done."""
        self._tell(number, "half")

    def end(self, number: int) -> None:
        """Leave a step."""
        self._tell(number, "after")

    def _tell(self, number: int, phase: Phase) -> int:
        if number >= 0 and self.hook is not None and self.active:
            self.hook(number, self.names[number], phase)
        return number


def kill_at(number: int, phase: Phase) -> Steps:
    """Steps of a process that kills itself (SIGKILL) at one of them."""

    def hook(at: int, _: str, now: Phase) -> None:
        if (at, now) == (number, phase):
            os.kill(os.getpid(), signal.SIGKILL)

    return Steps(hook)


def pattern_of(path: str) -> str:
    """A path as it stands in a step's name: the digits of offsets and processes left out."""
    name = path.rpartition("/")[2]
    return re.sub(r"\.\d+(\.\d+)*(?=\.tmp$)", "", re.sub(r"^(\d{20})", "*", name)) or name


class StepWords:
    """The words of a slot, each store a step."""

    def __init__(self, words: memoryview, steps: Steps) -> None:
        self._words, self._steps = words, steps

    def __getitem__(self, index: int) -> int:
        return self._words[index]

    def __setitem__(self, index: int, value: int) -> None:
        number = self._steps.begin(f"word {state.NAMES[index]}{'' if value else '=0'}")
        self._words[index] = value
        self._steps.end(number)


def step_words(steps: Steps) -> Callable[[], None]:
    """Make the words of all slots opened from now on steps; returns what undoes it.  For a process of its own, or a test."""
    original = Slot.__init__

    def patched(slot: Slot, *args: Any) -> None:
        original(slot, *args)
        slot.words = StepWords(slot.words, steps)  # type: ignore[assignment]

    Slot.__init__ = patched  # type: ignore[method-assign, assignment]

    def undo() -> None:
        Slot.__init__ = original  # type: ignore[method-assign]

    return undo


class FaultyFileSystem(FileSystem):
    """A file system whose calls are steps, and which fails when told to."""

    def __init__(self, inner: FileSystem = LOCAL, steps: Steps | None = None) -> None:
        self.inner, self.steps = inner, steps or Steps()
        self._paths: dict[int, str] = {}
        self._faults: list[dict[str, Any]] = []

    def fail_when(self, op: str, path: str = "*", *, nth: int = 1, times: int = 1, number: int = errno.EIO) -> None:
        """Fail the `nth` call of `op` ("write", "sync", "rename", …) whose path matches, and the `times` - 1 after it."""
        self._faults.append({"op": op, "path": path, "nth": nth, "times": times, "errno": number})

    def clear(self) -> None:
        """Fail no more."""
        self._faults.clear()

    def _enter(self, op: str, path: str) -> int:
        for fault in self._faults:
            if fault["op"] == op and fnmatch.fnmatch(path, fault["path"]):
                fault["nth"] -= 1
                if fault["nth"] < 1 <= fault["times"] + fault["nth"]:
                    raise storage_error(OSError(fault["errno"], os.strerror(fault["errno"])), path, op)
        return self.steps.begin(f"{op} {pattern_of(path)}")

    def _step(self, op: str, path: str, call: Callable[..., Any], *args: Any) -> Any:
        number = self._enter(op, path)
        result = call(*args)
        self.steps.end(number)
        return result

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        """Opening is a step where it may create."""
        if flags & os.O_CREAT:
            fd: int = self._step("create", path, self.inner.open, path, flags, mode)
        else:
            fd = self.inner.open(path, flags, mode)
        self._paths[fd] = path
        return fd

    def close(self, fd: int) -> None:
        """No step."""
        self.inner.close(fd)

    def pread(self, fd: int, size: int, position: int, path: str) -> bytes:
        """No step, but may fail ("read")."""
        self._enter_quietly("read", path)
        return self.inner.pread(fd, size, position, path)

    def _enter_quietly(self, op: str, path: str) -> None:
        active, self.steps.active = self.steps.active, False
        try:
            self._enter(op, path)
        finally:
            self.steps.active = active

    def pwrite(self, fd: int, data: bytes, position: int, path: str) -> None:
        """A step with a middle."""
        self.pwritev(fd, (data,), position, path)

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], position: int, path: str) -> None:
        """A step with a middle: half of the bytes are written when it is told."""
        number = self._enter("write", path)
        data = b"".join(buffers)
        middle = len(data) // 2
        self.inner.pwrite(fd, data[:middle], position, path)
        self.steps.half(number)
        self.inner.pwrite(fd, data[middle:], position + middle, path)
        self.steps.end(number)

    def allocate(self, fd: int, size: int, path: str) -> None:
        """A step."""
        self._step("allocate", path, self.inner.allocate, fd, size, path)

    def truncate(self, fd: int, size: int, path: str) -> None:
        """A step."""
        self._step("truncate", path, self.inner.truncate, fd, size, path)

    def sync(self, fd: int, path: str) -> None:
        """A step."""
        self._step("sync", path, self.inner.sync, fd, path)

    def sync_dir(self, path: str) -> None:
        """A step."""
        self._step("sync_dir", path, self.inner.sync_dir, path)

    def replace(self, source: str, target: str) -> None:
        """A step, named after the target."""
        self._step("rename", target, self.inner.replace, source, target)

    def link(self, source: str, target: str) -> None:
        """A step, named after the target."""
        self._step("link", target, self.inner.link, source, target)

    def unlink(self, path: str) -> None:
        """A step."""
        self._step("unlink", path, self.inner.unlink, path)

    def mkdir(self, path: str) -> None:
        """A step."""
        self._step("mkdir", path, self.inner.mkdir, path)

    def rmdir(self, path: str) -> None:
        """A step."""
        self._step("rmdir", path, self.inner.rmdir, path)

    def listdir(self, path: str) -> list[str]:
        """No step."""
        return self.inner.listdir(path)

    def stat(self, path: str) -> os.stat_result:
        """No step."""
        return self.inner.stat(path)

    def fstat(self, fd: int) -> os.stat_result:
        """No step."""
        return self.inner.fstat(fd)

    def map(self, fd: int, size: int, path: str) -> FileMap:
        """No step."""
        return self.inner.map(fd, size, path)

    def free_bytes(self, path: str) -> int:
        """No step."""
        return self.inner.free_bytes(path)

    def boot_id(self) -> int:
        """No step."""
        return self.inner.boot_id()
