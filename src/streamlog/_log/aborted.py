"""Which transactions of a log were aborted, and which are open: the transaction index of each segment, and its recovery.

A segment's index has an entry for each transaction whose abort marker stands in the segment; so whether a record was aborted is said by the
index of its segment or of a later one.  The indexes are derived: what is missing or damaged is made anew from the log.
"""

from __future__ import annotations

from bisect import bisect_right

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from streamlog._format.batch import Batch
    from streamlog._format.transaction_index import Aborted
    from streamlog._log.log import Log
    from streamlog._log.partition import PartitionLog
    from streamlog._log.producer_state import ProducerStates

from streamlog._format import names
from streamlog._format import transaction_index as index_format
from streamlog._log import segment
from streamlog._log.producer_state import newest_snapshot
from streamlog._log.state import ABORTED_END, END, EPOCH, HWM, OPEN, SALT, SEGMENT, TURN
from streamlog._os import files, process
from streamlog._os.files import O_CREAT, O_RDWR, O_TRUNC, FileSystem
from streamlog._os.locks import under
from streamlog.errors import CorruptRecordError, StorageFullError

_LOOKS = 4  # without the lock: each fails only if a segment was rolled meanwhile
_INFINITE = 2**63


def _path(directory: str, base_offset: int) -> str:
    return f"{directory}/{names.transaction_index(base_offset)}"


def create_index(fs: FileSystem, directory: str, base_offset: int, salt: int) -> int:
    """Begin the transaction index of a segment that has no batch yet; returns its size."""
    path, data = _path(directory, base_offset), index_format.header(salt, base_offset)
    fd = fs.open(path, O_RDWR | O_CREAT | O_TRUNC)
    try:
        fs.pwrite(fd, data, 0, path)
    finally:
        fs.close(fd)
    return len(data)


def append_entry(log: PartitionLog, entry: Aborted) -> None:
    """Add to the active segment's index; the file is opened for it: aborts are rare.  Under the partition's lock."""
    words = log.words
    path, at, data = _path(log.directory, words[SEGMENT]), words[ABORTED_END], index_format.encode(words[SALT], [entry])
    fd = log.fs.open(path, O_RDWR)
    try:
        log.fs.pwrite(fd, data, at, path)
    finally:
        log.fs.close(fd)
    words[ABORTED_END] = at + len(data)


def read_index(log: PartitionLog, base_offset: int) -> list[Aborted] | None:
    """The entries of a segment's transaction index; None where it is missing or damaged.

    Where the segment's header rotted the index is believed by itself: the records of earlier segments can be read, and what was aborted is known.
    """
    try:
        data = files.read_file(log.fs, _path(log.directory, base_offset))
        try:
            salt = segment.read_header(log.fs, f"{log.directory}/{names.log(base_offset)}").salt
        except CorruptRecordError:
            salt = index_format.salt_of(data)
        return index_format.decode(data, salt, base_offset)
    except (FileNotFoundError, ValueError):
        return None


def _from(log: PartitionLog, offset: int) -> list[int]:
    """The segments from that of `offset` on."""
    bases = log.segments()
    return bases[max(0, bisect_right(bases, offset) - 1) :]


def fold(log: PartitionLog, states: ProducerStates, end: int) -> list[tuple[int, Aborted]]:
    """Count the log's batches up to `end` in; returns the transactions that were aborted: base offset of a segment, and its index entry.

    Where a marker is damaged the index that was there says what it was.  Where that is not whole either, the records are shown to nobody.
    """
    found: list[tuple[int, Aborted]] = []

    def tell(base: int, entry: Aborted, is_marked: bool) -> None:
        found.extend([(base, entry)] if is_marked else _unmarked(log, base, entry))

    states.fold(log, end, tell)
    return found


def _unmarked(log: PartitionLog, base: int, entry: Aborted) -> list[tuple[int, Aborted]]:
    """What the indexes say of a transaction that ended somewhere before the batch at the entry's last offset, which is in segment `base`."""
    producer_id, first, last = entry
    is_known = True
    for each in [each for each in _from(log, first) if each <= last]:
        entries = read_index(log, each)
        is_known = is_known and entries is not None
        for known in entries or ():
            if known[0] == producer_id and known[1] <= first < known[2]:
                return [(each, known)]
    return [] if is_known else [(base, entry)]


def recover(log: PartitionLog, start: int) -> tuple[list[Aborted], int]:
    """Derive from the log which transactions are open, and the indexes of the segments from that of `start` on.

    Returns the indexes' entries, and what the word OPEN has to be once the high watermark is that of the end; until then it keeps readers
    from what is open now and from what was.  An index that there is no room for is removed: what is there is whole.  Under the
    partition's lock, with the words of the end stored.
    """
    words, bases = log.words, _from(log, start)
    states = newest_snapshot(log, bases[0])
    ended = fold(log, states, words[END])
    found = {base: [entry for at, entry in ended if at == base] for base in bases}
    words[ABORTED_END] = 0
    for base, entries in found.items():
        if base == bases[-1] or read_index(log, base) != entries:
            size = _replace_index(log, base, entries, synced=base != bases[-1])  # a sealed one may lie below the recovery point
            if base == bases[-1]:
                words[ABORTED_END] = size
    log.store_fences()
    first_open = states.first_open() + 1
    if first_open and not 0 < words[OPEN] < first_open:
        words[OPEN] = first_open
    return [entry for entries in found.values() for entry in entries], first_open


def _replace_index(log: PartitionLog, base: int, entries: list[Aborted], *, synced: bool) -> int:
    """Write a segment's index aside and rename it; returns its size, 0 where it cannot be made."""
    path = _path(log.directory, base)
    try:
        salt = segment.read_header(log.fs, f"{log.directory}/{names.log(base)}").salt
        data = index_format.header(salt, base) + index_format.encode(salt, entries)
        files.write_whole(log.fs, path, data, temporary=f"{path}.{process.token()}{names.TEMPORARY}", synced=synced)
        return len(data)
    except CorruptRecordError:
        return 0  # nobody can read the segment either
    except StorageFullError:
        for name in (path, f"{path}.{process.token()}{names.TEMPORARY}"):
            try:
                log.fs.unlink(name)
            except FileNotFoundError:
                pass
        return 0


def open_transactions(anybodys: Log) -> list[tuple[int, int, int]]:
    """The transactions that are open now: producer id, epoch, offset of the first record.  Without the lock."""
    log = anybodys.replica
    states = newest_snapshot(log, log.words[HWM])
    states.fold(log, log.words[HWM])
    return sorted((producer_id, states.entries[producer_id][0], first) for producer_id, first in states.open.items())


def check_active_index(log: PartitionLog) -> None:
    """Make sure that the active segment has its index, whole up to where the words say.  Under the partition's lock."""
    words = log.words
    try:
        size = log.fs.stat(_path(log.directory, words[SEGMENT])).st_size
        if size == words[ABORTED_END]:
            return
    except FileNotFoundError:
        pass
    if words[END] == words[SEGMENT]:
        words[ABORTED_END] = create_index(log.fs, log.directory, words[SEGMENT], words[SALT])
    else:
        _, words[OPEN] = recover(log, words[SEGMENT])
    if not words[ABORTED_END]:
        raise StorageFullError(f"{log.directory}: there is no room for a transaction index")


class AbortedTransactions:
    """What a reader knows of the aborted transactions from its segment on.  Belongs to the reader's thread."""

    __slots__ = ("_epoch", "_last", "_log", "_ranges", "_size", "_timeout", "_turn", "_until")

    def __init__(self, log: PartitionLog, timeout: float) -> None:
        self._log, self._timeout = log, timeout
        self._ranges: dict[int, list[tuple[int, int]]] = {}  # by producer id: first offset and marker, in order
        self._turn = self._epoch = -1  # of the log, at the last look
        self._last = -1  # the segment that was active then: the indexes of those before it do not change within an epoch
        self._size = 0  # bytes of its index that are known
        self._until = 0  # records below it are known to be committed or aborted

    def has(self, batch: Batch) -> bool:
        """Whether a transactional batch below the last stable offset was aborted."""
        if batch.base_offset >= self._until:
            self._learn(batch.base_offset)
        ranges = self._ranges.get(batch.producer_id, ())
        at = bisect_right(ranges, (batch.base_offset, _INFINITE)) - 1
        return at >= 0 and batch.base_offset < ranges[at][1]

    def _learn(self, offset: int) -> None:
        for _ in range(_LOOKS):
            if self._try_to_learn(offset):
                return
        under(self._log.lock, self._timeout, self._learn_in_peace, offset)

    def _try_to_learn(self, offset: int) -> bool:
        """Take in what is new; False where the segments changed, or an index is not there."""
        log, words = self._log, self._log.words
        until = log.last_stable_offset  # before the index: what ended below it has its entry
        turn, epoch, size = words[TURN], words[EPOCH], words[ABORTED_END]
        if turn != self._turn:
            self._until, self._turn = 0, -1
            self._forget_before(offset, known=epoch == self._epoch)
            for base in [base for base in _from(log, offset) if base >= self._last]:
                entries = read_index(log, base)
                if entries is None:
                    return False
                self._add(entries)
                self._last = base
                size = index_format.HEADER.size + len(entries) * index_format.ENTRY.size  # the word may be the former segment's yet
        elif size != self._size:
            try:
                self._add(self._read_active(size))
            except ValueError:
                return False
        if words[TURN] != turn:
            self._turn = -1
            return False
        self._turn, self._epoch, self._size, self._until = turn, epoch, size, until
        return True

    def _forget_before(self, offset: int, *, known: bool) -> None:
        """Drop what the reader has passed, or everything unless it is still `known` to be right."""
        if not known:
            self._ranges, self._last = {}, -1
        ranges = ((producer_id, [each for each in found if each[1] > offset]) for producer_id, found in self._ranges.items())
        self._ranges = {producer_id: found for producer_id, found in ranges if found}

    def _read_active(self, size: int) -> list[Aborted]:
        """What was added.  Raises ValueError where that is not there, or damaged."""
        log = self._log
        if size < self._size:
            raise ValueError("it was begun anew")
        path = _path(log.directory, self._last)
        fd = log.fs.open(path, O_RDWR)
        try:
            data = log.fs.pread(fd, size - self._size, self._size, path)
        finally:
            log.fs.close(fd)
        if len(data) != size - self._size:
            raise ValueError("the file is shorter")
        return index_format.decode_entries(data, segment.read_header(log.fs, f"{log.directory}/{names.log(self._last)}").salt)

    def _learn_in_peace(self, offset: int) -> None:
        """Under the partition's lock: what is missing is made anew; it counts, whether there is room for the file or not."""
        log = self._log
        log.look_again()
        self._turn = self._epoch = -1
        if not self._try_to_learn(offset):
            self._forget_before(offset, known=False)
            entries, log.words[OPEN] = recover(log, offset)
            self._add(entries)
            self._until = log.last_stable_offset  # `_turn` stays: where there was no room for the files the next look makes them

    def _add(self, entries: Iterable[Aborted]) -> None:
        for producer_id, first, last in entries:
            ranges = self._ranges.setdefault(producer_id, [])
            if not ranges or ranges[-1] < (first, last):  # an entry may stand there twice, or be read again
                ranges.append((first, last))
