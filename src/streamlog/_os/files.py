"""The one file-system protocol: every byte, name and sync of a cluster goes through a `FileSystem`.

Assumptions about the disk (A1-A5) stand in docs/crash-safety.md.  Tests put another `FileSystem` in place of `LOCAL`:
`streamlog.testing.faults` fails, halves or kills at a call by name; `streamlog.testing.memory_fs` loses power.

Errors of the kernel become ours here: no space is `StorageFullError`, the rest `DiskFailedError`; a missing file stays
`FileNotFoundError`, since for a reader it means "look at the directory again".
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat as stat_module
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol
else:
    Protocol = object

from streamlog._os.memory import FileMap
from streamlog.errors import DiskFailedError, ResourceLimitError, StorageError, StorageFullError, UnsupportedFileSystemError

if sys.platform == "win32":
    raise ImportError("streamlog needs POSIX byte-range locks and shared mappings, which Windows lacks; use WSL 2")

O_RDONLY, O_RDWR, O_CREAT, O_EXCL, O_TRUNC = os.O_RDONLY, os.O_RDWR, os.O_CREAT, os.O_EXCL, os.O_TRUNC
PAGE = mmap.PAGESIZE
SMALL_WRITE = 64 << 10  # below this a write keeps the GIL (H15); above, copying takes long enough to let others run

_libc = ctypes.PyDLL(None)
_held_pwrite = _libc.pwrite
_held_pwrite.restype = ctypes.c_ssize_t
_libc_unlocked = ctypes.CDLL(None, use_errno=True)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_OWN_LIMITS = {errno.EMFILE: "this process's RLIMIT_NOFILE", errno.EFBIG: "this process's RLIMIT_FSIZE", errno.ENFILE: "the machine's fs.file-max"}
_NOFOLLOW_CLOEXEC = os.O_NOFOLLOW | os.O_CLOEXEC


def storage_error(error: OSError, path: str, what: str) -> Exception:
    """Our error for the kernel's: `what` was tried with `path`."""
    if error.errno in _NO_SPACE:
        return StorageFullError(f"{what} {path}: no space left on the device; free some and go on")
    if error.errno in _OWN_LIMITS:
        return ResourceLimitError(f"{what} {path}: {error.strerror}; raise {_OWN_LIMITS[error.errno]} and try again")
    if error.errno in (errno.ENAMETOOLONG, errno.EISDIR):
        return StorageError(f"{what} {path}: {error.strerror}")
    if error.errno in (errno.EACCES, errno.EPERM):
        made: OSError = PermissionError(error.errno, f"{what}: permission denied", path)
        return made
    return DiskFailedError(f"{what} {path}: {error.strerror}")


class FileSystem(Protocol):
    """What the log asks of a file system.  Paths are absolute strings; positions and sizes are bytes."""

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        """Open without following a symbolic link in the last component; closed on exec."""
        raise NotImplementedError

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        raise NotImplementedError

    def pread(self, fd: int, size: int, position: int, path: str) -> bytes:
        """Read up to `size` bytes."""
        raise NotImplementedError

    def pwrite(self, fd: int, data: bytes, position: int, path: str) -> None:
        """Write all of `data` or raise."""
        raise NotImplementedError

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], position: int, path: str) -> None:
        """Write all of the buffers, one after the other, or raise."""
        raise NotImplementedError

    def allocate(self, fd: int, size: int, path: str) -> None:
        """Make the file at least `size` bytes, with its blocks reserved where the file system can; never shrinks."""
        raise NotImplementedError

    def truncate(self, fd: int, size: int, path: str) -> None:
        """Cut or extend the file to `size`."""
        raise NotImplementedError

    def sync(self, fd: int, path: str) -> None:
        """Return once the file's data is on the disk (A2)."""
        raise NotImplementedError

    def sync_dir(self, path: str) -> None:
        """Return once the directory's names are on the disk (A3)."""
        raise NotImplementedError

    def replace(self, source: str, target: str) -> None:
        """Rename over `target`, atomically (A3)."""
        raise NotImplementedError

    def link(self, source: str, target: str) -> None:
        """Give a file a second name; FileExistsError where the name is taken."""
        raise NotImplementedError

    def unlink(self, path: str) -> None:
        """Remove a name."""
        raise NotImplementedError

    def mkdir(self, path: str) -> None:
        """Make a directory; FileExistsError where it is there."""
        raise NotImplementedError

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        raise NotImplementedError

    def listdir(self, path: str) -> list[str]:
        """The names in a directory, in no order."""
        raise NotImplementedError

    def stat(self, path: str) -> os.stat_result:
        """Stat by path, not following a link."""
        raise NotImplementedError

    def fstat(self, fd: int) -> os.stat_result:
        """Stat by descriptor."""
        raise NotImplementedError

    def map(self, fd: int, size: int, path: str) -> FileMap:
        """Map the first `size` bytes, shared and read-only; `size` must not be beyond the file's end."""
        raise NotImplementedError

    def free_bytes(self, path: str) -> int:
        """Bytes that may still be written on the file system of `path`."""
        raise NotImplementedError

    def boot_id(self) -> int:
        """A number, not 0 or 1, that changes with every boot."""
        raise NotImplementedError


def _opened_or_made(path: str, flags: int, mode: int) -> int:
    """Open a file, or make it so that all who use its directory can use it."""
    if not flags & O_EXCL:
        try:
            return os.open(path, flags & ~O_CREAT)
        except FileNotFoundError:
            pass
    fd = os.open(path, flags, mode)
    try:
        made_like_its_directory(path, fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def made_like_its_directory(path: str, fd: int | None = None) -> None:
    """Give a file or a directory that was just made to those who have the directory that it is in (H26).

    What root makes takes the owner of the directory, so that `sudo` locks nobody out.  Where a group, or everybody, may write to the directory, they
    may to the file, whatever the umask of the process that made it.  Not in one where each may touch only what is his own, as in `/tmp` (sticky).
    """
    parent, made = os.stat(path.rpartition("/")[0] or "/"), os.stat(path if fd is None else fd, follow_symlinks=fd is not None)
    target: int | str = path if fd is None else fd
    is_directory_ = stat_module.S_ISDIR(made.st_mode)
    wanted = made.st_mode
    for bit in (stat_module.S_IWGRP, stat_module.S_IWOTH):
        if parent.st_mode & bit and not parent.st_mode & stat_module.S_ISVTX:
            wanted |= bit | bit << 1 | (bit >> 1 if is_directory_ else 0)
    if os.geteuid() == 0 and (parent.st_uid, parent.st_gid) != (made.st_uid, made.st_gid):
        os.chown(target, parent.st_uid, parent.st_gid)
    elif parent.st_mode & stat_module.S_IWGRP and parent.st_gid != made.st_gid:
        try:
            os.chown(target, -1, parent.st_gid)
        except PermissionError:
            pass  # not a group of ours: whoever made the directory has set it up otherwise
    if wanted != made.st_mode:
        os.chmod(target, stat_module.S_IMODE(wanted))


on_exhausted: list[Callable[[], bool]] = []
"""Called where this process has no descriptor left: each lets go of some that it can open again, and says whether it did."""


_boot_ids: list[int] = []
"""What was read of it: a process does not live longer than the boot; each log asks, and 33 µs are a third of what it costs to make one."""


def _boot_id() -> int:
    if not _boot_ids:
        _boot_ids.append(_read_boot_id())
    return _boot_ids[0]


def _read_boot_id() -> int:
    if sys.platform == "linux":
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return int(file.read().replace(b"-", b"")[:15], 16) + 2
    import subprocess

    found = subprocess.run(["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, check=True)
    return int(found.stdout.replace(b"-", b"")[:15], 16) + 2


class LocalFileSystem(FileSystem):
    """The kernel's own."""

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        try:
            if flags & O_CREAT:
                return _opened_or_made(path, flags | _NOFOLLOW_CLOEXEC, mode)
            return os.open(path, flags | _NOFOLLOW_CLOEXEC, mode)
        except (FileNotFoundError, FileExistsError, PermissionError):
            raise
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE) and any(let_go() for let_go in on_exhausted):
                return self.open(path, flags, mode)
            raise storage_error(error, path, "open") from error

    def close(self, fd: int) -> None:
        os.close(fd)

    def pread(self, fd: int, size: int, position: int, path: str) -> bytes:
        try:
            return os.pread(fd, size, position)
        except OSError as error:
            raise storage_error(error, path, "read") from error

    def pwrite(self, fd: int, data: bytes, position: int, path: str) -> None:
        # Without argument types ctypes is 0.4 µs faster; a C int holds what is checked here.  A short or failed write
        # is repeated by `os.pwrite`, which says why.
        size = len(data)
        if size > SMALL_WRITE or position > 0x7FFFFFFF or _held_pwrite(fd, data, size, position) != size:
            self.pwritev(fd, (data,), position, path)

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], position: int, path: str) -> None:
        try:
            written = os.pwritev(fd, buffers, position)
            if written != sum(map(len, buffers)):
                rest = memoryview(b"".join(buffers))[written:]
                while rest:
                    position += written
                    written = os.pwrite(fd, rest, position)
                    rest = rest[written:]
        except OSError as error:
            raise storage_error(error, path, "write") from error

    def allocate(self, fd: int, size: int, path: str) -> None:
        # fallocate(2) itself: the C library's emulation writes zeros block by block (H10).
        if sys.platform == "linux":
            call = _libc_unlocked.fallocate64 if sys.maxsize < 2**32 else _libc_unlocked.fallocate
            if call(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size)) == 0:
                return
            number = ctypes.get_errno()
            if number not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise storage_error(OSError(number, os.strerror(number)), path, "reserve space in")
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)

    def truncate(self, fd: int, size: int, path: str) -> None:
        try:
            os.ftruncate(fd, size)
        except OSError as error:
            raise storage_error(error, path, "truncate") from error

    def sync(self, fd: int, path: str) -> None:
        try:
            os.fdatasync(fd) if sys.platform == "linux" else os.fsync(fd)
        except OSError as error:
            raise storage_error(error, path, "sync") from error

    def sync_dir(self, path: str) -> None:
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        except OSError as error:
            raise storage_error(error, path, "sync directory") from error
        finally:
            os.close(fd)

    def replace(self, source: str, target: str) -> None:
        self._named(os.rename, source, target)

    def link(self, source: str, target: str) -> None:
        self._named(os.link, source, target)

    def unlink(self, path: str) -> None:
        self._named(os.unlink, path)

    def mkdir(self, path: str) -> None:
        self._named(os.mkdir, path)
        made_like_its_directory(path)

    def rmdir(self, path: str) -> None:
        self._named(os.rmdir, path)

    def _named(self, call: object, *paths: str) -> None:
        try:
            call(*paths)  # type: ignore[operator]
        except (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError):
            raise
        except OSError as error:
            raise storage_error(error, paths[-1], call.__name__) from error  # type: ignore[attr-defined]

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def stat(self, path: str) -> os.stat_result:
        return os.stat(path, follow_symlinks=False)

    def fstat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def map(self, fd: int, size: int, path: str) -> FileMap:
        try:
            return FileMap(fd, size)
        except OSError as error:
            raise storage_error(error, path, "map") from error

    def free_bytes(self, path: str) -> int:
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def boot_id(self) -> int:
        return _boot_id()


class _LettingFileSystem(LocalFileSystem):
    """The same, with every write letting the interpreter go: a disk that hangs then holds up its own caller only (H40)."""

    def pwrite(self, fd: int, data: bytes, position: int, path: str) -> None:
        self.pwritev(fd, (data,), position, path)


LOCAL: FileSystem = LocalFileSystem()
_LETTING: FileSystem = _LettingFileSystem()


def letting_go(fs: FileSystem) -> FileSystem:
    """The file system whose calls never keep the interpreter while they wait for a disk."""
    return _LETTING if fs is LOCAL else fs


# ---- what needs no double in tests -------------------------------------------------------------------------------


def absolute(path: str) -> str:
    """The path, absolute and with links resolved, so that a process which changes its directory keeps its files."""
    return os.path.realpath(os.path.expanduser(path))


def path_text(location: object) -> str:
    """A path or a URL as text; empty for what is neither."""
    found = os.fspath(location) if isinstance(location, str | os.PathLike) else ""
    found = found if isinstance(found, str) else os.fsdecode(found)
    try:
        os.fsencode(found)
    except UnicodeEncodeError:
        return ""
    return found


def from_url(rest: str) -> str:
    """The path of what follows `file://` in a URL."""
    from urllib.parse import unquote

    return unquote(rest.removeprefix("localhost"))


def exists(path: str) -> bool:
    """Whether something has this name."""
    return os.path.lexists(path)


def nearest_existing(path: str) -> str:
    """The path, or the nearest directory above it that exists."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def device_of(path: str) -> int:
    """The device that a path is on."""
    return os.stat(path).st_dev


_STATX_MNT_ID, _STATX_MNT_ID_UNIQUE = 0x1000, 0x4000


def mount_of(path: str) -> int:
    """A number of the mount that a path is on; 0: not known.

    A later mount of this boot has another one (from Linux 6.8 on; before, a number is used again).  So has the same mount in another namespace.
    """
    statx = getattr(_libc_unlocked, "statx", None)
    buffer = ctypes.create_string_buffer(256)
    if statx is None or statx(-100, os.fsencode(path), 0, _STATX_MNT_ID | _STATX_MNT_ID_UNIQUE, buffer) != 0:
        return 0
    return int.from_bytes(buffer.raw[144:152], "little") if int.from_bytes(buffer.raw[:4], "little") & (_STATX_MNT_ID | _STATX_MNT_ID_UNIQUE) else 0


def is_directory(path: str) -> bool:
    """Whether there is a directory of this name, not through a link in the last component."""
    try:
        return stat_module.S_ISDIR(os.stat(path, follow_symlinks=False).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def make_directories(path: str) -> None:
    """Make a directory and those above it, with the user's umask."""
    os.makedirs(path, exist_ok=True)


def remove_directory(fs: FileSystem, path: str) -> None:
    """Remove a directory of files.  What is gone already is no error: several processes may be at it.

    A link is removed itself, never followed; a directory inside is left, and so is this one then.
    """
    try:
        if not is_directory(path):
            fs.unlink(path)
            return
        for name in fs.listdir(path):
            if not is_directory(f"{path}/{name}"):
                _unlink_if_there(fs, f"{path}/{name}")
        fs.rmdir(path)
    except FileNotFoundError:
        pass
    except Exception:
        if not fs.listdir(path):
            raise


def _unlink_if_there(fs: FileSystem, path: str) -> None:
    try:
        fs.unlink(path)
    except FileNotFoundError:
        pass


def remove_tree(path: str) -> None:
    """Remove a directory and what is in it; what is gone already is no error."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def read_file(fs: FileSystem, path: str, limit: int = 1 << 26) -> bytes:
    """The whole of a small file."""
    fd = fs.open(path, O_RDONLY)
    try:
        return fs.pread(fd, min(limit, fs.fstat(fd).st_size), 0, path)
    finally:
        fs.close(fd)


def write_whole(fs: FileSystem, path: str, data: bytes, *, temporary: str, synced: bool = True) -> None:
    """Give `path` new content so that a crash leaves the old or the new: written aside, synced, renamed (the commit
    step), directory synced (A2, A3).  Not `synced`: for a derived file that carries a checksum.
    """
    fd = fs.open(temporary, O_RDWR | O_CREAT | O_TRUNC)
    try:
        fs.pwrite(fd, data, 0, temporary)
        if synced:
            fs.sync(fd, temporary)
    finally:
        fs.close(fd)
    fs.replace(temporary, path)
    if synced:
        fs.sync_dir(path.rpartition("/")[0])


def take_owner(path: str, like: str) -> None:
    """Give a file made by root the owner of the directory `like`, so that `sudo` locks nobody out (H26)."""
    if os.geteuid() == 0:
        owner = os.stat(like)
        if owner.st_uid != 0:
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


_LOCAL_MAGIC = {
    0xEF53: "ext4", 0x58465342: "xfs", 0x9123683E: "btrfs", 0x01021994: "tmpfs", 0x2FC12FC1: "zfs",
    0xF2F52010: "f2fs", 0x794C7630: "overlayfs", 0x858458F6: "ramfs", 0x3153464A: "jfs", 0x52654973: "reiserfs",
    0xCA451A4E: "bcachefs",
}  # fmt: skip
_NETWORK_MAGIC = {
    0x6969: "NFS", 0xFF534D42: "CIFS", 0xFE534D42: "SMB2", 0x517B: "SMB", 0x01021997: "9p", 0x65735546: "FUSE",
    0x6A656A63: "virtiofs", 0x5346414F: "AFS", 0x00C36400: "Ceph", 0x0BD00BD0: "Lustre", 0x47504653: "GPFS",
}  # fmt: skip


def file_system_name(path: str) -> tuple[str, bool]:
    """The kind of file system that holds `path`, and whether it keeps our promises (shared mappings, byte locks)."""
    if sys.platform != "linux":
        return "local", True
    buffer = ctypes.create_string_buffer(256)
    if _libc_unlocked.statfs(os.fsencode(path), buffer) != 0:
        return "unknown", False
    magic = ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF
    if magic in _LOCAL_MAGIC:
        return _LOCAL_MAGIC[magic], True
    return _NETWORK_MAGIC.get(magic, f"unknown (magic {magic:#x})"), False


def descriptor_limit() -> int:
    """Files that this process may have open at one time."""
    limit = os.sysconf("SC_OPEN_MAX")  # the present RLIMIT_NOFILE, without the import of `resource`
    return 1 << 20 if limit < 0 else limit


def memory_directory() -> str:
    """A directory of this user's on tmpfs where there is one, else below the temporary directory; made if missing."""
    shared = "/dev/shm"  # noqa: S108  (the name that the C library uses)
    base = shared if is_directory(shared) and os.access(shared, os.W_OK) else tempfile_directory()
    root = f"{base}/streamlog-{os.getuid()}"
    os.makedirs(root, mode=0o700, exist_ok=True)
    if os.stat(root, follow_symlinks=False).st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "belongs to another user", root)
    return root


def tempfile_directory() -> str:
    """Where temporary files go."""
    import tempfile

    return tempfile.gettempdir()


def check_file_system(path: str) -> None:
    """Refuse a file system on which locks or mappings are not shared by all who open it."""
    name, good = file_system_name(path)
    if not good:
        raise UnsupportedFileSystemError(
            f"{path} is on {name}, where locks and mappings are not reliably shared between processes; "
            "put the cluster on a local disk, or pass unsafe_filesystem=True and open it from one process only"
        )


# ---- reading mapped files: every page is brought in by a call that can fail before it is touched (H3) ----------------


def populate(mapping: FileMap, start: int, end: int, read: Callable[[int, int], bytes], path: str) -> None:
    """Bring pages [start, end) of a mapping in, so that a bad block is an error here and no SIGBUS later.

    `read(size, position)` reads the file, where the kernel has no call for it, or to find out why it failed: a full tmpfs has no room for
    pages that were never written, though the file can be read.
    """
    begin = start & -PAGE
    try:
        if not mapping.populate(begin, end):
            read(end - begin, begin)
    except OSError as error:
        if error.errno == errno.EFAULT and len(read(end - begin, begin)) == end - begin:
            raise StorageFullError(f"read {path}: no space left on the device for pages of it; free some and go on") from error
        raise storage_error(error, path, "read") from error
