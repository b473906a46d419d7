"""Shared words: the only place that makes them.  Everybody else indexes the views that this module hands out.

A word is read and written through `memoryview.cast`, naturally aligned, so that it is never seen torn (H1: `struct.pack_into`
zeroes a word before it fills it).  State files are written out, not sparse, before they are mapped (H13).
"""

from __future__ import annotations

import os
from _thread import get_ident

from streamlog._os import process
from streamlog._os.clock import monotonic_ns
from streamlog._os.files import O_CREAT, O_EXCL, O_RDWR, PAGE, FileSystem
from streamlog._os.memory import mapped

STRONG_ORDER = os.uname().machine in ("x86_64", "AMD64", "i686", "i386")
"""Whether a store is seen before every later store, as on x86; elsewhere a publisher passes a barrier first (H2)."""


class Page:
    """A mapped state file: `words` (64-bit) and `halves` (32-bit) over the same bytes.

    Shared by all processes; who may store which word is said where the words are named.  Lives as long as a view does.
    """

    __slots__ = ("address", "halves", "map", "size", "words")

    def __init__(self, fd: int, size: int) -> None:
        self.size = size
        self.address, self.map = mapped(fd, size, writable=True)
        self.words, self.halves = self.map.cast("Q"), self.map.cast("I")


def create(fs: FileSystem, path: str, content: bytes) -> None:
    """Bring a state file into being whole, unless it is there: written aside, then linked to its name (H7)."""
    temporary = f"{path}.{process.token()}.{get_ident()}.{monotonic_ns()}.tmp"
    fd = fs.open(temporary, O_RDWR | O_CREAT | O_EXCL)
    try:
        fs.pwrite(fd, content, 0, temporary)
        fs.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        fs.close(fd)
        fs.unlink(temporary)


def open_page(fs: FileSystem, path: str, least: int) -> tuple[Page, tuple[int, int]]:
    """Map a state file, all of it, for reading and writing.  Returns the page and the file's (device, inode).

    A file of fewer than `least` bytes is what a power cut leaves of one that was never synced: it is made that long first, with zeros.
    """
    fd = fs.open(path, O_RDWR)
    try:
        if fs.fstat(fd).st_size < least:
            fs.allocate(fd, least, path)
        found = fs.fstat(fd)
        size = found.st_size & -PAGE
        return Page(fd, size), (found.st_dev, found.st_ino)
    finally:
        fs.close(fd)
