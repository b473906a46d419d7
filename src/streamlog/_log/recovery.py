"""Recovery of a partition: what was observed decides, by a table, what is done.  Everything but `tell` runs under the partition's lock.

Only the high watermark is believed; the rest is derived from the log.  The log is the segments in order, each up to where the
next begins, as long as the bases join, the epochs do not fall and every batch is whole; what does not join is stale.
"""

from __future__ import annotations

from _thread import get_ident
from bisect import bisect_right
from itertools import pairwise

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from streamlog._log.partition import PartitionLog
    from streamlog._log.pending import Pending

from streamlog._format import batch as fmt
from streamlog._format import index as index_format
from streamlog._format import names
from streamlog._format.batch import SEGMENT_HEADER_SIZE, SegmentHeader
from streamlog._log import aborted, epochs, segment
from streamlog._log.segment import SegmentView
from streamlog._log.state import (
    ABORTED_END,
    ALIGNED,
    BOOT,
    DAMAGED,
    DIRECTORY,
    DIRTY,
    END,
    EPOCH,
    FAILED,
    FIRST_TIMESTAMP,
    HWM,
    INDEX_END,
    INDEXED,
    INODE,
    MAX_TIMESTAMP,
    MOUNT,
    OPEN,
    POSITION,
    SALT,
    SEGMENT,
    START,
    SYNCED,
    SYNCED_AT,
    SYNCING,
)  # fmt: skip
from streamlog._os import files, locks, process
from streamlog._os.clock import monotonic_ns
from streamlog._os.files import O_CREAT, O_RDWR, O_TRUNC
from streamlog.errors import CorruptRecordError, DiskFailedError, StorageError

_EVERYTHING = 2**62
_COPY = 1 << 20


class Facts:
    """What step 1 of an append, or a reader's first look, finds."""

    __slots__ = ("dirty", "failed", "opener", "valid")

    def __init__(self, valid: bool, failed: bool, dirty: bool, opener: bool) -> None:
        self.valid = valid  # the slot counts for this boot and this directory
        self.failed = failed  # a sync failed, and this is an append
        self.dirty = dirty  # somebody died between the first byte and the last word
        self.opener = opener  # this process has not appended here since it opened the log


class Row:
    """A line of the table: None stands for either."""

    __slots__ = ("action", "facts", "why")

    def __init__(self, facts: tuple[bool | None, ...], action: Callable[[PartitionLog], None] | None, why: str) -> None:
        self.facts, self.action, self.why = facts, action, why

    def fits(self, facts: Facts) -> bool:
        """Whether the facts are those of this row."""
        seen = (facts.valid, facts.failed, facts.dirty, facts.opener)
        return all(want is None or want == fact for want, fact in zip(self.facts, seen))


def decide(facts: Facts) -> Callable[[PartitionLog], None] | None:
    """The action for these facts; None: nothing is to be done."""
    return next(row for row in CASES if row.fits(facts)).action


def after_boot(log: PartitionLog) -> None:
    """The slot does not count: a reboot, a power cut, a restored copy, another disk, or `run/` is gone.  Go on in a new segment.

    The log is what is whole from the recovery point on; later segments are removed; the new segment has a new salt and the
    epoch above the highest in any segment's header, and is on the disk, name included, before the slot counts (H27).
    Where the log ends below what was on the disk it is damaged: nothing is removed then, and the log goes on behind everything.
    """
    fs, directory, words = log.fs, log.directory, log.words
    live = _durable(log)
    words[BOOT] = 0
    words[HWM] = words[ALIGNED] = words[DAMAGED] = 0
    words[FAILED] = words[SYNCING] = 0
    listing = log.listing()
    for name in listing:
        if name.endswith(names.TEMPORARY):
            fs.unlink(f"{directory}/{name}")
    bases = names.base_offsets(listing)
    headers = {base: _header(log, base) for base in bases}
    if not bases:
        raise DiskFailedError(f"{directory} has no segment; {log.name} cannot be opened")
    if headers[bases[0]] is None:  # a log has a first segment, and its header is on the disk before anything else
        live = max(live, bases[0] + 1)
    durable = max(live, log.recovery_point)
    epoch = max([epochs.last_saved(fs, directory), *(header.leader_epoch for header in headers.values() if header)])  # a header may have rotted
    if not log.is_replica:
        epoch += 1  # of a replica the metadata raise it, before anything is written to it
    kept, end, tail = _whole(log, _continuing(log, bases, headers, durable), headers)
    if end < durable:
        log.reload_recovery_point()
        durable = max(live, log.recovery_point)
    if end < durable:
        damaged, kept, tail = end, _continuing(log, bases, headers, _EVERYTHING), None
        end = max(durable, log.checkpointed_high_watermark(), _last_sound(log, kept, damaged))
        words[DAMAGED] = damaged + 1
        _tell_damage(log, damaged, end)
    elif (tail is not None and not SegmentView(fs, directory, tail[0]).is_blank(tail[1])) or kept[-1] != bases[-1]:
        _tell_cut(log, end, _last_sound(log, bases, end))
    _sync_kept(log, [base for base in kept if base != end])
    _begin_segment(log, end, epoch)  # before any is removed: their epochs would be forgotten with them
    kept = [base for base in kept if base != end] + [end]
    for base in bases:
        if base not in kept:
            remove_segment(log, base)
    if tail is not None and tail[0] != end:
        _cut_file(log, *tail)
    drop_snapshots(log, end)
    epochs.save(fs, directory, epochs.from_headers(fs, directory, kept))
    log.store_turn()
    words[SYNCED], words[SYNCED_AT], words[START] = end, monotonic_ns() // 1_000_000, kept[0]
    _store_words(log, SegmentView(fs, directory, end), SEGMENT_HEADER_SIZE, end)
    words[OPEN] = 0
    _, first_open = aborted.recover(log, max(log.recovery_point - 1, 0))
    words[DIRECTORY], words[MOUNT] = fs.stat(directory).st_ino, files.mount_of(directory)
    words[HWM] = end
    words[OPEN] = first_open
    words[DIRTY] = 0
    words[BOOT] = log.boot


def _durable(log: PartitionLog) -> int:
    """Below this offset everything must be there by what the slot says; 0 where that is of another boot, or of other files.

    It says what was synced; and, where the disk was mounted all the time, what was published: a page that was written stays readable until the
    next boot.  What is missing there is damage, not a tail.
    """
    words = log.words
    if words[BOOT] != log.boot or words[DIRECTORY] != log.fs.stat(log.directory).st_ino:
        return 0
    try:
        inode = log.fs.stat(f"{log.directory}/{names.log(words[SEGMENT])}").st_ino
    except FileNotFoundError:
        return 0
    if inode != words[INODE]:
        return 0  # the files were replaced: they are a copy of another time
    return words[HWM] if words[MOUNT] == files.mount_of(log.directory) else words[SYNCED]


def tell(log: PartitionLog) -> None:
    """Log what was found, unless this thread is inside a lock (H18): then a later call does."""
    if get_ident() not in locks.inside:
        import logging  # here: 6 ms of a cold start

        while log.untold:
            level, message = log.untold.pop(0)
            getattr(logging.getLogger("streamlog"), level)("%s", message)


def _tell_damage(log: PartitionLog, first: int, end: int) -> None:
    lost = f"offset {first} is missing or cannot be read; nothing is removed, and the log goes on at offset {end}"
    log.untold.append(("error", f"{log.name} is damaged: {lost} ({log.directory})"))


def _tell_cut(log: PartitionLog, end: int, last: int) -> None:
    """Sound batches follow where the log ends now: they had not been synced, and what stood before them is lost (H27)."""
    if last > end:
        cut_off = f"what follows, up to offset {last}, had not been synced, is not whole, and is cut"
        log.untold.append(("warning", f"{log.name} ends at offset {end} after a reboot, or a power cut: {cut_off} ({log.directory})"))


def _last_sound(log: PartitionLog, bases: list[int], offset: int) -> int:
    """The end of the last sound batch in the segments from that of `offset` on."""
    end = offset
    for base in bases[max(0, bisect_right(bases, offset) - 1) :]:
        end = max(end, base)
        try:
            view = SegmentView(log.fs, log.directory, base)
        except StorageError:
            continue  # its header is damaged: nothing in it can be told from damage
        for batch in sound_batches(view, SEGMENT_HEADER_SIZE, base, view.size):
            end = max(end, batch.next_offset)
    return end


def sound_batches(view: SegmentView, position: int, offset: int, ahead: int) -> Iterator[fmt.Batch]:
    """The sound batches of a segment from `position` on, whatever lies between them."""
    while True:
        for at, batch in view.batches(position, offset, _EVERYTHING, ahead):
            yield batch
            position, offset = at + batch.length, batch.next_offset
        beyond = view.after_damage(position, offset - 1, min(ahead, view.size))
        if beyond is None:
            return
        offset, position = beyond


def begin(log: PartitionLog) -> None:
    """The partition was just made by this process, and nobody has been here: the slot counts as it stands."""
    words = log.words
    if words[BOOT] == 0:
        log.store_turn()
        _store_words(log, SegmentView(log.fs, log.directory, 0), SEGMENT_HEADER_SIZE, 0)
        words[DIRECTORY], words[MOUNT] = log.fs.stat(log.directory).st_ino, files.mount_of(log.directory)
        words[SYNCED_AT] = monotonic_ns() // 1_000_000
        words[BOOT] = log.boot


def _header(log: PartitionLog, base: int) -> SegmentHeader | None:
    """A segment's header, None where it is damaged or belongs to another log."""
    try:
        header = segment.read_header(log.fs, f"{log.directory}/{names.log(base)}")
    except CorruptRecordError:
        return None
    whole = (header.topic_id, header.partition, header.base_offset) == (log.topic_id, log.partition, base)
    return header if whole else None


def _continuing(log: PartitionLog, bases: list[int], headers: dict[int, SegmentHeader | None], durable: int) -> list[int]:
    """The segments that belong to the log; the others are leftovers of an older life of it.

    A segment of an epoch below an earlier one's is a leftover.  One whose header cannot be read belongs to the log, and is damaged, if it begins
    below `durable` and the segment before it has no batch at its base offset.
    """
    kept: list[int] = []
    epoch = 0
    for base in bases:
        header = headers[base]
        if header is None:
            if base < durable and not (kept and _reaches(log, kept[-1], base)):
                kept.append(base)
        elif header.leader_epoch >= epoch:
            epoch = header.leader_epoch
            kept.append(base)
    return kept


def _reaches(log: PartitionLog, base: int, offset: int) -> bool:
    """Whether a segment has a sound batch at `offset`, so that no other segment begins there."""
    try:
        view = SegmentView(log.fs, log.directory, base)
        position, found = view.find(offset, view.size)
        return found == offset and view.batch(position, view.size).base_offset == offset
    except (ValueError, StorageError, fmt.UnknownVersionError):
        return False


def _begin_segment(log: PartitionLog, offset: int, epoch: int) -> None:
    """Make an empty segment in a new epoch; it is on the disk, name included, before the epoch is used."""
    header = fmt.seal_segment_header(segment.new_salt(), log.topic_id, offset, log.partition, epoch, offset)
    segment.create(log.fs, log.directory, header, offset, synced=True)


def _whole(log: PartitionLog, bases: list[int], headers: dict[int, SegmentHeader | None]) -> tuple[list[int], int, tuple[int, int] | None]:
    """The segments that make up the log, its end, and the last segment with the position where its whole batches end.

    Segments that lie wholly below the recovery point are on the disk by contract and are not scanned.
    """
    first = max(0, bisect_right(bases, log.recovery_point) - 1)
    kept, end = bases[:first], bases[first]
    tail: tuple[int, int] | None = None
    for base, limit in zip(bases[first:], [*bases[first + 1 :], _EVERYTHING]):
        header = headers[base]
        if base != end or header is None:
            break
        end, position = _scan(log, base, limit)
        kept.append(base)
        tail = base, position
    return kept, end, tail


def _scan(log: PartitionLog, base: int, limit: int) -> tuple[int, int]:
    """End offset and position of a segment's whole batches; its index, which no sync has covered, is written anew."""
    view = SegmentView(log.fs, log.directory, base)
    offset, position, largest, indexed = base, SEGMENT_HEADER_SIZE, 0, 0
    pieces = [index_format.header(view.header.salt, base)]
    for at, batch in view.batches(position, base, limit, view.size):
        largest = max(largest, batch.max_timestamp)
        if at - indexed >= log.settings.index_interval_bytes:
            pieces.append(index_format.ENTRY.pack(batch.base_offset, at, largest))
            indexed = at
        offset, position = batch.next_offset, at + batch.length
    pieces.append(index_format.ENTRY.pack(offset, position, largest))
    path = f"{log.directory}/{names.index(base)}"
    fd = log.fs.open(path, O_RDWR | O_CREAT | O_TRUNC)
    try:
        log.fs.pwrite(fd, b"".join(pieces), 0, path)
        log.fs.sync(fd, path)
    finally:
        log.fs.close(fd)
    return offset, position


def after_death(log: PartitionLog) -> None:
    """The mark is up: somebody died inside.  A whole batch above the high watermark is adopted; a torn one is no part of the log.

    What is published and cannot be read, or stands behind bytes that cannot be read, is damage: nothing is removed, and the log goes on behind it.
    """
    fs, directory, words = log.fs, log.directory, log.words
    hwm = words[HWM]
    bases = names.base_offsets(log.listing())
    gone = [base for base, after in pairwise(bases) if after <= words[START]]  # who died had made the log begin behind them
    for base in gone:
        remove_segment(log, base)
    bases = bases[len(gone) :]
    headers = {base: _header(log, base) for base in bases}
    kept = [base for base in _continuing(log, bases, headers, hwm) if base <= hwm]
    kept = kept or [base for base in bases if base == hwm]  # the header of an empty active segment rotted
    if not kept:
        raise CorruptRecordError(f"{directory} has no segment that reaches offset {hwm}", directory, 0, "a segment", None, hwm)
    for base in bases:
        if base not in kept:
            remove_segment(log, base)
    damaged, position, end, transactional = _adopted(log, kept, hwm)
    view = SegmentView(fs, directory, kept[-1]) if headers[kept[-1]] is not None else None
    if damaged is not None and damaged < end:
        words[DAMAGED] = damaged + 1
        _tell_damage(log, damaged, end)
    if view is None or damaged is not None or (view.header.leader_epoch != words[EPOCH] and not log.is_replica):
        # also where somebody died in a cut: its epoch may not be on the disk
        epoch = max(words[EPOCH], 0 if view is None else view.header.leader_epoch) + (not log.is_replica)
        _begin_segment(log, end, epoch)
        view, position = SegmentView(fs, directory, end), SEGMENT_HEADER_SIZE
    log.store_turn()
    _store_words(log, view, position, end)
    first_open = aborted.recover(log, view.header.base_offset)[1] if transactional else 0
    words[HWM] = end
    words[OPEN] = first_open
    words[DIRTY] = 0


def _adopted(log: PartitionLog, bases: list[int], hwm: int) -> tuple[int | None, int, int, bool]:
    """What follows the high watermark in the last segment.

    Returns the first offset that is damaged (None: none is), the position and the offset where the log goes on, and whether there are
    transactional batches that are not known to have ended.
    """
    transactional = bool(log.words[OPEN])
    try:
        view = SegmentView(log.fs, log.directory, bases[-1])
        position, end = view.find(hwm, view.size)
        if end != hwm:
            raise ValueError(f"the log ends at {end}, below {hwm}")
    except (ValueError, CorruptRecordError, fmt.UnknownVersionError):
        return _first_bad(log, bases), 0, max(hwm, _last_sound(log, bases, bases[-1])), True
    while not view.is_blank(position):
        at, batch = next(view.batches(position, end, _EVERYTHING, view.size), (position, None))
        if batch is None:
            break
        end, position = batch.next_offset, at + batch.length
        transactional = transactional or bool(batch.attributes & fmt.TRANSACTIONAL)
    else:
        return None, position, end, transactional
    beyond = _last_sound(log, bases, end)
    return (None, position, end, transactional) if beyond == end else (end, 0, beyond, True)


def _first_bad(log: PartitionLog, bases: list[int]) -> int:
    """The first offset of the last segment at which no sound batch begins."""
    try:
        view = SegmentView(log.fs, log.directory, bases[-1])
    except StorageError:
        return bases[-1]
    end = bases[-1]
    for _, batch in view.batches(SEGMENT_HEADER_SIZE, end, _EVERYTHING, view.size):
        end = batch.next_offset
    return end


def go_on(log: PartitionLog, offset: int) -> None:
    """Go on at `offset` in a new segment, at a raised epoch; it is on the disk before the epoch is used.  Under the partition's lock, settled."""
    words = log.words
    log.forget()
    words[DIRTY] = log.token
    _begin_segment(log, offset, words[EPOCH] + 1)
    log.store_turn()
    _store_words(log, SegmentView(log.fs, log.directory, offset), SEGMENT_HEADER_SIZE, offset)
    words[HWM] = offset
    words[DIRTY] = 0


def cut(log: PartitionLog, offset: int, epoch: int, epoch_start: int, markers: Sequence[Pending] = ()) -> None:
    """Cut a log to `offset`; it goes on in a new segment, which begins with `markers`.

    A follower's goes on in the epoch of the leader's record there (H45).  Who dies before the segment has its name leaves the records there:
    they are adopted, and cut again, since ALIGNED was not stored.  Under the log's lock, settled.
    """
    fs, directory, words = log.fs, log.directory, log.words
    words[SYNCED] = min(words[SYNCED], offset)
    log.lower_recovery_point(offset)  # before anything is cut: else the next boot takes what was cut for damage
    bases = names.base_offsets(log.listing())
    known = [entry for entry in log.leader_epochs().entries if entry[0] < epoch and entry[1] < epoch_start]
    log.forget()
    words[DIRTY] = log.token
    words[HWM] = offset
    salt = segment.new_salt()
    header = fmt.seal_segment_header(salt, log.topic_id, offset, log.partition, epoch, epoch_start)
    content = b"".join(_sealed(marker, salt, offset + number, epoch) for number, marker in enumerate(markers))
    segment.create(fs, directory, header, offset, content=content)
    for base in bases:
        if base > offset:
            remove_segment(log, base)
    drop_snapshots(log, offset)
    log.store_turn()
    if words[DAMAGED] > offset:
        words[DAMAGED] = 0
    end = offset + len(markers)
    _store_words(log, SegmentView(fs, directory, offset), SEGMENT_HEADER_SIZE + len(content), end)
    _, first_open = aborted.recover(log, max(offset - 1, 0))  # the segment that ends here may have entries of later markers
    words[HWM] = end
    words[OPEN] = first_open
    words[DIRTY] = 0
    epochs.save(fs, directory, epochs.Epochs([*known, (epoch, epoch_start)]), synced=False)


def _sealed(marker: Pending, salt: int, offset: int, epoch: int) -> bytes:
    """A marker's bytes in a segment."""
    columns = marker.columns
    head = fmt.seal_head(
        salt, columns, offset, marker.attributes, fmt.BATCH_HEADER_SIZE + len(columns), marker.count, marker.count - 1, marker.base_timestamp,
        marker.max_timestamp, *marker.producer, epoch, len(columns),
    )  # fmt: skip
    return head + columns


def rewrite_in_place(log: PartitionLog) -> None:
    """A sync of a replica failed: what it should have covered is written anew, byte for byte, under the same names (H30).

    Nothing else changes: it is the same log, of which now more is on the disk.  Under the log's lock.
    """
    fs, directory, words = log.fs, log.directory, log.words
    log.forget()
    if words[DIRTY]:
        after_death(log)
    bases = names.base_offsets(log.listing())
    for base in bases[max(0, bisect_right(bases, words[SYNCED] - 1) - 1) :]:
        path = f"{directory}/{names.log(base)}"
        temporary = f"{path}.{process.token()}{names.TEMPORARY}"
        data = files.read_file(fs, path, 1 << 40)
        fd = fs.open(temporary, O_RDWR | O_CREAT | O_TRUNC)
        try:
            fs.pwritev(fd, (data,), 0, temporary)
            fs.sync(fd, temporary)
        finally:
            fs.close(fd)
        fs.replace(temporary, path)
    fs.sync_dir(directory)
    log.store_turn()
    words[INODE] = SegmentView(fs, directory, bases[-1]).inode
    words[SYNCED] = words[END]
    words[SYNCING] = words[FAILED] = 0


def rewrite_unsynced(log: PartitionLog) -> None:
    """A sync failed, or its outcome died with its process: everything past the recovery point is written anew (H30).

    Its pages are readable and may not be on the disk, and a later sync would not say so.  They are copied into a new segment at a
    raised epoch, written aside and synced; an empty segment at the log's end makes the epoch durable; the rename commits.  The copy's
    header says that its epoch begins at the log's end, so that a reader that stands among the records neither repeats nor misses one.
    """
    fs, directory, words = log.fs, log.directory, log.words
    if words[DIRTY]:
        after_death(log)
    synced, end, bases = words[SYNCED], words[END], names.base_offsets(log.listing())
    start, epoch = max(synced, bases[0]), words[EPOCH] + 1
    temporary = f"{directory}/{names.log(start)}.{process.token()}{names.TEMPORARY}"
    if start < end:
        _copy(log, temporary, bases, start, end, epoch)
    words[DIRTY] = log.token
    _begin_segment(log, end, epoch)
    if start < end:
        fs.replace(temporary, f"{directory}/{names.log(start)}")
    kept = [base for base in bases if base < start] + sorted({start, end})
    for base in bases:
        if base not in kept:
            remove_segment(log, base)
    fs.sync_dir(directory)
    epochs.save(fs, directory, epochs.from_headers(fs, directory, kept))
    log.store_turn()
    _store_words(log, SegmentView(fs, directory, end), SEGMENT_HEADER_SIZE, end)
    _, words[OPEN] = aborted.recover(log, start)
    words[SYNCED] = end
    words[SYNCING] = words[FAILED] = 0
    words[DIRTY] = 0


def _copy(log: PartitionLog, path: str, bases: list[int], start: int, end: int, epoch: int) -> None:
    """Write and sync a segment that holds the batches of [start, end), sealed with another salt and epoch."""
    fd = log.fs.open(path, O_RDWR | O_CREAT | O_TRUNC)
    try:
        salt = segment.new_salt()
        pieces = [fmt.seal_segment_header(salt, log.topic_id, start, log.partition, epoch, end)]
        position = size = 0
        for batch in _batches(log, bases, start, end):
            pieces.append(fmt.reseal(bytes(batch.data), salt, epoch))
            size += batch.length
            if size >= _COPY:
                data = b"".join(pieces)
                log.fs.pwritev(fd, (data,), position, path)
                position, pieces, size = position + len(data), [], 0
        log.fs.pwritev(fd, (b"".join(pieces),), position, path)
        log.fs.sync(fd, path)
    finally:
        log.fs.close(fd)


def _batches(log: PartitionLog, bases: list[int], start: int, end: int) -> Iterator[fmt.Batch]:
    """The batches of [start, end).  Raises CorruptRecordError where one is not whole."""
    for base, limit in zip(bases, [*bases[1:], end]):
        if limit <= start or base >= end:
            continue
        view = SegmentView(log.fs, log.directory, base)
        at, offset = view.find(max(start, base), view.size)
        for _, batch in view.batches(at, offset, min(limit, end), view.size):
            yield batch
            offset = batch.next_offset
        if offset < min(limit, end):
            raise CorruptRecordError(f"{view.path}: no whole batch at offset {offset}", view.path, 0, offset, None, min(limit, end))


def refuse(log: PartitionLog) -> None:
    """Who wrote here when the sync failed, or after, must see the failure, not go round it (H30); a replica waits for its broker's start."""
    raise DiskFailedError(f"a sync of {log.name} failed; it refuses writes until the cluster is opened again")


CASES = (
    #    valid  failed dirty  opener
    Row((False, None, None, None), after_boot, "the slot is of another boot or directory: only the files count"),
    Row((True, True, None, True), rewrite_unsynced, "an opener after a failed sync writes the doubtful part anew"),
    Row((True, True, None, False), refuse, "after a failed sync everybody else stops"),
    Row((True, False, True, None), after_death, "an owner died inside: derive the words from the log"),
    Row((True, False, False, None), None, "nothing happened, or another process rolled or recovered"),
)


# ---- pieces --------------------------------------------------------------------------------------------------------------


def _store_words(log: PartitionLog, view: SegmentView, position: int, end: int) -> None:
    """Active segment, end and position, and what the next append needs to know of the segment."""
    words = log.words
    words[SEGMENT], words[INODE], words[SALT] = view.header.base_offset, view.inode, view.header.salt
    words[EPOCH], words[POSITION], words[END] = view.header.leader_epoch, position, end
    words[FIRST_TIMESTAMP], words[MAX_TIMESTAMP], words[INDEXED], words[INDEX_END] = _measure(view, position, end)
    words[ABORTED_END] = 0  # to be looked at


def _measure(view: SegmentView, position: int, end: int) -> tuple[int, int, int, int]:
    """First and largest timestamp of a segment's batches, which end at `position` with offset `end`, its last index entry and its index's size."""
    if position == SEGMENT_HEADER_SIZE:
        return 0, 0, 0, 0
    base = view.header.base_offset
    first = next((batch.base_timestamp for _, batch in view.batches(SEGMENT_HEADER_SIZE, base, end, position)), 0)  # 0 if it rotted: one rolls
    index = view.index()
    count = len(index)
    while count and index.entry(count - 1)[1] >= position:
        count -= 1
    offset, at, largest = index.entry(count - 1) if count else (base, SEGMENT_HEADER_SIZE, 0)
    size = index_format.HEADER.size + count * index_format.ENTRY.size if len(index) else 0
    largest = max([largest, *(batch.max_timestamp for _, batch in view.batches(at, offset, end, position))])
    return first, largest, at if count else 0, size


def drop_snapshots(log: PartitionLog, end: int) -> None:
    """Remove snapshots of a state that the log does not reach; none of them counts any more."""
    for offset in names.snapshot_offsets(log.listing()):
        if offset > end:
            try:
                log.fs.unlink(f"{log.directory}/{names.snapshot(offset)}")
            except FileNotFoundError:
                pass


def remove_segment(log: PartitionLog, base: int) -> None:
    """Remove a segment and what is derived from it.  Under the partition's lock, with the mark up."""
    for name in (names.log(base), names.index(base), names.transaction_index(base)):
        try:
            log.fs.unlink(f"{log.directory}/{name}")
        except FileNotFoundError:
            pass


def _sync_kept(log: PartitionLog, kept: list[int]) -> None:
    """Where the boot is the same (a restored copy, a lost `run/`) pages may not be on the disk yet."""
    for base in kept[max(0, bisect_right(kept, log.recovery_point) - 1) :]:
        sync_file(log, base)


def sync_file(log: PartitionLog, base_offset: int) -> None:
    """Sync a segment that is not the active one, and what is derived from it: below the recovery point neither is looked through again."""
    for name in (names.log(base_offset), names.index(base_offset), names.transaction_index(base_offset)):
        path = f"{log.directory}/{name}"
        try:
            fd = log.fs.open(path, O_RDWR)
        except FileNotFoundError:
            continue  # an index is derived; a segment's absence is told where it is read
        try:
            log.fs.sync(fd, path)
        finally:
            log.fs.close(fd)


def _cut_file(log: PartitionLog, base: int, position: int) -> None:
    """Give back the space behind the last whole batch of a segment that is sealed now."""
    path = f"{log.directory}/{names.log(base)}"
    try:
        fd = log.fs.open(path, O_RDWR)
    except StorageError:
        return
    try:
        log.fs.truncate(fd, position, path)
    finally:
        log.fs.close(fd)
