"""A file system that loses power.

Files live in a directory, best on tmpfs; what has been synced is remembered beside it.  `crash(seed)` makes the directory that a machine
finds after a power cut: synced data and names are there; of each page and each name that was changed since, the old or the new value,
chosen by the seed; a file that was never synced may have length 0 under its name.  So it is in `run/` too, none of which is ever synced.
"""

from __future__ import annotations

import os
import random

from streamlog._os.files import PAGE, LocalFileSystem, storage_error

Inode = int


class MemoryFileSystem(LocalFileSystem):
    """The local file system below `root`, with a memory of what a power cut would leave."""

    def __init__(self, root: str, boot: int = 1000) -> None:
        self.root, self._boot = root, boot
        self._synced: dict[Inode, bytes] = {}
        self._names: dict[Inode, dict[str, Inode]] = {}  # by directory: its names at its last sync
        self._held: dict[Inode, int] = {}  # a descriptor for each file seen, so that its data outlives its name
        self._syncs_fail = 0
        self._lost: dict[Inode, bytes] = {}  # content at a failed sync: clean pages, though not on the disk

        for directory, _, files in os.walk(root):  # what is there at the start is on the disk
            self._names[os.stat(directory).st_ino] = self._listing(directory)
            for name in files:
                fd = self.open(f"{directory}/{name}", os.O_RDWR)
                self._synced[os.fstat(fd).st_ino] = _content(fd)
                self.close(fd)

    def boot_id(self) -> int:
        """The boot of this life of the machine."""
        return self._boot

    def fail_syncs(self, count: int) -> None:
        """Let the next `count` syncs of files fail; what they should have written is never written by a later one."""
        self._syncs_fail = count

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        fd = super().open(path, flags, mode)
        inode = os.fstat(fd).st_ino
        if inode not in self._held and not flags & os.O_DIRECTORY:
            self._held[inode] = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
            self._synced.setdefault(inode, b"")
        return fd

    def sync(self, fd: int, path: str) -> None:
        inode, content = os.fstat(fd).st_ino, _content(fd)
        if self._syncs_fail:
            self._syncs_fail -= 1
            self._lost[inode] = content
            raise storage_error(OSError(5, "Input/output error"), path, "sync")
        lost = self._lost.get(inode)
        if lost is not None:  # only what was written again since the failure is dirty
            old = self._synced[inode]
            content = b"".join(
                (old if new == was else content)[start : start + PAGE].ljust(len(new), b"\0")
                for start in range(0, len(content), PAGE)
                for new, was in [(content[start : start + PAGE], lost[start : start + PAGE])]
            )
        self._synced[inode] = content

    def sync_dir(self, path: str) -> None:
        self._names[os.stat(path).st_ino] = self._listing(path)

    def _listing(self, path: str) -> dict[str, Inode]:
        return {entry.name: entry.inode() for entry in os.scandir(path)}

    def write_back(self, chance: random.Random, share: float) -> None:
        """The kernel writes pages of some files back by itself, as it may at any time."""
        for inode, fd in list(self._held.items()):
            if inode not in self._lost and chance.random() < share:
                self._synced[inode] = _content(fd)

    def crash(self, seed: int, target: str) -> MemoryFileSystem:
        """What is on the disk after a power cut, in the new directory `target`; printed seeds bring a failure back."""
        chance = random.Random(seed)
        os.makedirs(target)
        contents = {inode: self._after_crash(inode, fd, chance) for inode, fd in self._held.items()}
        self._rebuild(self.root, target, contents, chance)
        self.end()
        return MemoryFileSystem(target, self._boot + 1)

    def end(self) -> None:
        """Let go of the files."""
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()

    def _after_crash(self, inode: Inode, fd: int, chance: random.Random) -> bytes:
        old, new = self._synced.get(inode, b""), _content(fd)
        size = chance.choice((len(old), len(new)))
        pages = []
        for start in range(0, max(len(old), len(new)), PAGE):
            before, after = old[start : start + PAGE], new[start : start + PAGE]
            pages.append(chance.choice((before, after)).ljust(PAGE, b"\0"))
        return b"".join(pages)[:size].ljust(min(size, len(pages) * PAGE), b"\0")

    def _rebuild(self, source: str, target: str, contents: dict[Inode, bytes], chance: random.Random) -> None:
        now = self._listing(source) if os.path.isdir(source) else {}
        durable = self._names.get(os.stat(source).st_ino, {})
        for name in sorted({*now, *durable}):
            inode = chance.choice((now.get(name), durable.get(name)))
            path, below = f"{target}/{name}", f"{source}/{name}"
            if inode is None:
                continue
            if inode in contents:
                with open(path, "wb") as file:
                    file.write(contents[inode])
            elif os.path.isdir(below):
                os.mkdir(path)
                self._rebuild(below, path, contents, chance)


def _content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)
