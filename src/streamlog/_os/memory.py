"""mmap(2) itself: `mmap.mmap` keeps a descriptor for each mapping, and a process has few of them (H11)."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref

_libc = ctypes.CDLL(None, use_errno=True)
_mmap, _munmap, _memmem = _libc.mmap, _libc.munmap, _libc.memmem
_mmap.restype, _munmap.restype, _memmem.restype = ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_memmem.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t)
_madvise = ctypes.PyDLL(None, use_errno=True).madvise  # keeps the interpreter, as `mmap.madvise` does: warm pages take 2 µs
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_FAILED = ctypes.c_void_p(-1).value
_POPULATE_READ = 22  # Linux 5.14


def mapped(fd: int, size: int, *, writable: bool) -> tuple[int, memoryview]:
    """Map the first `size` bytes of a file, shared.  Returns their address and a view.  They stay mapped as long as the view lives."""
    address = _mmap(None, size, mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0), mmap.MAP_SHARED, fd, 0)
    if address in (None, _FAILED):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    memory = (ctypes.c_char * size).from_address(address)
    weakref.finalize(memory, _munmap, address, size).atexit = False  # when the last view is gone; threads may read on at exit
    return address, memoryview(memory).cast("B")


class FileMap:
    """The first bytes of a file, mapped read-only, without a descriptor.  What holds a view holds the mapping."""

    __slots__ = ("_address", "size", "view")

    def __init__(self, fd: int, size: int) -> None:
        """`size` must not be beyond the file's end."""
        self._address, view = mapped(fd, size, writable=False)
        self.size, self.view = size, view.toreadonly()

    def find(self, pattern: bytes, start: int, end: int) -> int:
        """Position of `pattern` in [start, end); -1: it is not there."""
        found = _memmem(self._address + start, max(0, end - start), pattern, len(pattern))
        return -1 if found is None else int(found) - self._address

    def populate(self, start: int, end: int) -> bool:
        """Bring pages [start, end) in by a call that can fail; False where the kernel has none.  Raises OSError."""
        if sys.platform != "linux":
            return False
        if _madvise(self._address + start, end - start, _POPULATE_READ) == 0:
            return True
        number = ctypes.get_errno()
        if number == 22:  # EINVAL: not known
            return False
        raise OSError(number, os.strerror(number))
