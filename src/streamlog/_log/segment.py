"""A segment: its file, how it is born, how it is read.

A segment's file takes its name whole: written aside, then renamed (H45).  It is read through a read-only mapping; every page
is brought in by a call that can fail before it is touched (H3).
"""

from __future__ import annotations

from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

from streamlog._format import batch as fmt
from streamlog._format import index as index_format
from streamlog._format import names
from streamlog._format.batch import SEGMENT_HEADER_SIZE, Batch, DamagedVersionError, SegmentHeader, UnknownVersionError
from streamlog._os import files, process
from streamlog._os.files import O_CREAT, O_RDONLY, O_RDWR, O_TRUNC, PAGE, FileSystem
from streamlog.errors import CorruptRecordError, StorageError, StorageFullError, UnsupportedFormatError

FIRST_AHEAD, LAST_AHEAD = 64 << 10, 4 << 20  # bytes brought in at a time: doubles as long as reading goes on
FIRST_STEP, LAST_STEP = 64 << 10, 16 << 20  # reserved space grows by doubling, between these (H11)


class VersionByteError(CorruptRecordError, UnsupportedFormatError):
    """A version byte rotted: whoever reads is told of a version that this program does not know, and recovery of damage."""


def new_salt() -> int:
    """A salt that no earlier life of the file had, and no user can guess."""
    return int.from_bytes(process.random_bytes(8), "little")


def create(fs: FileSystem, directory: str, header: bytes, base_offset: int, *, content: bytes = b"", synced: bool = False) -> None:
    """Bring a segment into being under its name, replacing one of that name.  Commit step: the rename.

    With `synced`, file and name are on the disk before this returns (A2, A3).
    """
    path = f"{directory}/{names.log(base_offset)}"
    temporary = f"{path}.{process.token()}.{get_ident()}{names.TEMPORARY}"
    fd = fs.open(temporary, O_RDWR | O_CREAT | O_TRUNC)
    try:
        fs.pwritev(fd, (header, content), 0, temporary)
        if synced:
            fs.sync(fd, temporary)
    finally:
        fs.close(fd)
    files.take_owner(temporary, directory)
    fs.replace(temporary, path)
    if synced:
        fs.sync_dir(directory)


def reserve(fs: FileSystem, fd: int, path: str, size: int, needed: int, limit: int) -> int:
    """Make room for `needed` bytes in a file of `size`, if possible with a step ahead.  Returns the new size.

    A step that does not fit is not tried (a failed reservation keeps what it got, H10); without room for `needed` nothing
    is reserved, and the write itself says that the disk is full.
    """
    step = min(max(size, FIRST_STEP), LAST_STEP)
    wanted = max(needed, min(size + step, max(limit, needed)))
    wanted = -(-wanted // PAGE) * PAGE
    if fs.free_bytes(path) < (wanted - size) * 2:
        wanted = -(-needed // PAGE) * PAGE
    try:
        fs.allocate(fd, wanted, path)
    except Exception:
        fs.truncate(fd, size, path)  # nobody has mapped beyond: no published byte is there
        return size
    return wanted


def read_header(fs: FileSystem, path: str) -> SegmentHeader:
    """The header of a segment's file.  Raises CorruptRecordError, UnsupportedFormatError (VersionByteError is both), FileNotFoundError."""
    fd = fs.open(path, O_RDONLY)
    try:
        return _checked_header(fs.pread(fd, SEGMENT_HEADER_SIZE, 0, path), path)
    finally:
        fs.close(fd)


def _checked_header(data: bytes, path: str) -> SegmentHeader:
    try:
        return SegmentHeader(data)
    except DamagedVersionError as error:
        raise VersionByteError(f"{path}: {error}", path, 4, fmt.FORMAT_VERSION, error.version, -1) from None
    except UnknownVersionError as error:
        raise UnsupportedFormatError(f"{path}: {error}", path) from None
    except ValueError as error:
        raise CorruptRecordError(f"{path}: {error}", path, 0, fmt.SEGMENT_MAGIC, data[:16], -1) from None


class SegmentView:
    """A segment's file, mapped for reading.  Belongs to one thread; the batches that it returns outlive it."""

    __slots__ = ("_ahead", "_fs", "_map", "_view", "checked", "checked_from", "header", "inode", "path", "size")

    def __init__(self, fs: FileSystem, directory: str, base_offset: int) -> None:
        """Raises FileNotFoundError (the directory changed), CorruptRecordError or UnsupportedFormatError (its header)."""
        self._fs, self.path = fs, f"{directory}/{names.log(base_offset)}"
        fd = fs.open(self.path, O_RDONLY)
        try:
            self.header = _checked_header(fs.pread(fd, SEGMENT_HEADER_SIZE, 0, self.path), self.path)
            if self.header.base_offset != base_offset:
                found = self.header.base_offset
                raise CorruptRecordError(f"{self.path}: its header says {found}", self.path, 40, base_offset, found, -1)
            self._map_file(fd)
        finally:
            fs.close(fd)
        self.checked_from = self.checked = 0
        self._ahead = FIRST_AHEAD

    def _map_file(self, fd: int) -> None:
        found = self._fs.fstat(fd)
        mapping = self._fs.map(fd, found.st_size, self.path)
        # together, whatever a signal handler raises.  It may be sealed, and cut to its end, meanwhile: no byte is touched that was not brought in
        self._map, self._view, self.size, self.inode = mapping, mapping.view, found.st_size, found.st_ino

    def grow(self) -> None:
        """Map what the file has become.  Raises FileNotFoundError where another file has the name by now."""
        fd = self._fs.open(self.path, O_RDONLY)
        try:
            if self._fs.fstat(fd).st_ino != self.inode:
                raise FileNotFoundError(self.path)
            self._map_file(fd)
        finally:
            self._fs.close(fd)

    def bring_in(self, start: int, end: int, ahead: int) -> None:
        """Make bytes [start, end) safe to touch, and some up to `ahead` if that succeeds.  Raises DiskFailedError."""
        if end > self.size:
            self.grow()
        if not self.checked_from <= start <= self.checked:
            self.checked_from = self.checked = start & -PAGE
        if end <= self.checked:
            return
        ahead = min(max(end, min(ahead, self.checked + self._ahead)), self.size)
        self._ahead = min(2 * self._ahead, LAST_AHEAD)
        for until in (ahead, end):
            try:
                files.populate(self._map, self.checked, until, self._read, self.path)
            except (StorageError, StorageFullError):
                if until == end:
                    raise
                continue  # a sealed segment was cut to its end meanwhile: what is asked for is still there
            self.checked = -(-until // PAGE) * PAGE
            return

    def _read(self, size: int, position: int) -> bytes:
        fd = self._fs.open(self.path, O_RDONLY)
        try:
            return self._fs.pread(fd, size, position, self.path)
        finally:
            self._fs.close(fd)

    def batch(self, position: int, ahead: int, *, verify: bool = True) -> Batch:
        """The batch at `position`; up to `ahead` the bytes are published.

        Raises: ValueError (torn, stale or damaged), UnknownVersionError, DiskFailedError.
        """
        end = position + fmt.BATCH_HEADER_SIZE
        if end > self.checked or position < self.checked_from:
            if end > self.size and end > self._file_size():
                raise ValueError(f"the file ends at {self.size}, a batch header was to stand at {position}")
            self.bring_in(position, end, ahead)
        length = int.from_bytes(self._view[position + 28 : position + 32], "little")
        end = position + length
        if end > self.checked and end <= max(self.size, self._file_size()):
            self.bring_in(position, end, ahead)
        return fmt.parse(self._view, self.header.salt, position, min(self.size, self.checked), verify=verify)

    def is_blank(self, position: int) -> bool:
        """Whether nothing was ever written at `position`: the file ends there, or its space is reserved only."""
        return not any(self._read(fmt.BATCH_HEADER_SIZE, position))  # (a page that is mapped is made first where nothing was written)

    def _file_size(self) -> int:
        return self._fs.stat(self.path).st_size

    def batches(self, position: int, offset: int, limit: int, ahead: int, *, verify: bool = True) -> Iterator[tuple[int, Batch]]:
        """Position and batch, one after the other, from the batch of `offset` at `position`, while they continue the log.

        Ends without an error at `limit` (an offset) or at the first bytes that are not the next batch.
        Raises: UnsupportedFormatError (a newer program wrote here), DiskFailedError.
        """
        while offset < limit:
            try:
                found = self.batch(position, ahead, verify=verify)
            except ValueError:
                return
            except UnknownVersionError as error:
                raise UnsupportedFormatError(f"{self.path}, position {position}: {error}", self.path, position) from None
            if found.base_offset != offset or found.leader_epoch != self.header.leader_epoch:
                return
            yield position, found
            offset, position = found.next_offset, position + found.length

    def find(self, offset: int, ahead: int) -> tuple[int, int]:
        """Position and base offset of the batch that holds `offset`, or of the end where `offset` is the next one.

        Looks in the index for a place to begin and hops from header to header; never touches a byte beyond `offset`.
        Raises ValueError where a header on the way is damaged.
        """
        position, base = self.nearest(offset, ahead)
        while base < offset:
            batch = self.batch(position, ahead)  # a damaged length or count would lead astray
            if batch.base_offset != base:
                raise ValueError(f"base offset {batch.base_offset}, {base} is wanted")
            if batch.next_offset > offset:
                break
            position, base = position + batch.length, batch.next_offset
        return position, base

    def nearest(self, offset: int, ahead: int) -> tuple[int, int]:
        """Position and base offset of a sound batch at or before `offset`, by the index; of the segment's begin where that knows none."""
        hint = self.index().by_offset(offset)
        if hint > SEGMENT_HEADER_SIZE and (found := self._hinted(hint, offset, ahead)) is not None:
            return hint, found
        return SEGMENT_HEADER_SIZE, self.header.base_offset

    def _hinted(self, position: int, offset: int, ahead: int) -> int | None:
        """The base offset of the batch that an index entry points to, if a sound one stands there."""
        if position & 7 or position + fmt.BATCH_HEADER_SIZE > max(self.size, self._file_size()):
            return None
        try:
            batch = self.batch(position, ahead)
        except (ValueError, UnknownVersionError):
            return None
        return batch.base_offset if batch.base_offset <= offset else None

    def index(self) -> index_format.SparseIndex:
        """The segment's index; empty where there is none or it is another's."""
        path = self.path.removesuffix(names.LOG) + names.INDEX
        try:
            data = files.read_file(self._fs, path)
        except FileNotFoundError:
            data = b""
        return index_format.SparseIndex(data, self.header.salt, self.header.base_offset)

    def after_damage(self, position: int, offset: int, end: int) -> tuple[int, int] | None:
        """Base offset and position of the first sound batch beyond a damaged one at `position`, or None.

        A scan for a header whose checksum holds: the salt keeps a user's bytes from passing for one.
        """
        at = position + 8
        while at + fmt.BATCH_HEADER_SIZE <= end:
            until = min(end, at + LAST_AHEAD)
            self.bring_in(at, until, until)
            found = self._map.find(fmt.BATCH_MAGIC, at, until)
            if found < 0:
                at = until if until == end else until - 3
                continue
            try:
                batch = self.batch(found, end)
            except (ValueError, UnknownVersionError):
                at = found + 1
                continue
            if batch.base_offset > offset and not found & 7:
                return batch.base_offset, found
            at = found + 1
        return None
