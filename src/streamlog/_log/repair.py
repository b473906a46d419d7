"""Damage of which no other copy exists: what can be read around it, and the two ways to go on without it.

Nothing here happens by itself.  An operator looks at the holes and decides: the log ends before the damage, or it begins behind it.  Either
way the segments that are touched are copied aside first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Set

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamlog._log.partition import PartitionLog

from streamlog._format import batch as fmt
from streamlog._format import names
from streamlog._log import aborted, epochs, recovery, segment
from streamlog._log.pending import Marker
from streamlog._log.producer_state import newest_snapshot
from streamlog._log.reader import LogReader
from streamlog._log.segment import SegmentView
from streamlog._log.state import DAMAGED, DIRTY, END, EPOCH, HWM, OPEN, START, SYNCED
from streamlog._os import files
from streamlog._os.files import O_CREAT, O_RDWR, O_TRUNC
from streamlog._os.locks import under
from streamlog.errors import ConfigurationError, CorruptRecordError, StreamlogError, UnsupportedFormatError

Hole = tuple[int, int, str]
"""First offset that cannot be read, the next one that can (or the end), and why."""


def holes(log: PartitionLog, timeout: float) -> list[Hole]:
    """Read a whole log; returns what cannot be read, in order."""
    log.ensure_valid(timeout)
    end, found = log.words[HWM], list[Hole]()
    reader = LogReader(log, log.start_offset, timeout=timeout)
    while reader.offset < end:
        try:
            if reader.next() is None:
                break
        except (CorruptRecordError, UnsupportedFormatError) as error:
            first, after = reader.offset, max(error.next_offset, reader.offset + 1)
            found.append((first, after, str(error)))
            reader = LogReader(log, after, timeout=timeout)
    return found


Outcomes = Mapping[tuple[int, int], bool]
"""Whether a transaction was committed, by producer id and epoch."""


class OpenTransactionsError(Exception):
    """Transactions are open by the log, and nobody has said how they ended: they could commit without the records that go."""

    def __init__(self, transactions: Set[tuple[int, int]]) -> None:
        self.transactions = transactions  # producer ids and epochs


def end_before(log: PartitionLog, offset: int, ended: Outcomes, timeout: float) -> str:
    """The log ends at `offset`, before a hole; what stood behind goes.  Returns where the segments were copied to.

    The transactions whose markers go, or went with the hole, get them anew in the same step; `ended` says of the latter how they ended.
    Raises: OpenTransactionsError.
    """
    return str(under(log.lock, timeout, _end_before, log, offset, ended))


def _end_before(log: PartitionLog, offset: int, ended: Outcomes) -> str:
    log.settle(for_append=True)
    _check(log, log.words[START] <= offset < log.words[END], offset)
    markers = _markers(log, offset, ended)
    bases = log.segments()
    aside = _copy_aside(log, bases[bisect_right(bases, offset) - 1 :])
    epoch = log.words[EPOCH] + 1
    recovery.cut(log, offset, epoch, offset, markers)
    recovery.sync_file(log, offset)  # the epoch is used from now on
    log.fs.sync_dir(log.directory)
    return aside


def _markers(log: PartitionLog, offset: int, ended: Outcomes) -> list[Marker]:
    """The markers of the transactions that are open at `offset` and ended behind it.  Raises OpenTransactionsError where one has not."""
    states = newest_snapshot(log, offset)
    aborted.fold(log, states, offset)
    open_then = [(producer_id, states.entries[producer_id][0], first) for producer_id, first in states.open.items()]
    not_committed = {entry[:2] for _, entry in aborted.fold(log, states, log.words[END])}
    still = {(producer_id, states.entries[producer_id][0]) for producer_id in states.open}
    if not still <= ended.keys():
        raise OpenTransactionsError(still)
    not_committed |= {(producer_id, first) for producer_id, epoch, first in open_then if not ended.get((producer_id, epoch), True)}
    now = log.settings.now_ms()
    return [Marker(producer_id, epoch + 1, now, commit=(producer_id, first) not in not_committed) for producer_id, epoch, first in open_then]


def begin_behind(log: PartitionLog, offset: int, ended: Outcomes, timeout: float) -> str:
    """The log begins at `offset`, behind a hole; what stood before goes.  Returns where the segments were copied to.

    Raises: OpenTransactionsError.
    """
    return str(under(log.lock, timeout, _begin_behind, log, offset, ended))


def _begin_behind(log: PartitionLog, offset: int, ended: Outcomes) -> str:
    log.settle(for_append=True)
    words = log.words
    _check(log, words[START] < offset <= words[END], offset)
    _markers(log, words[END], ended)
    recovery.go_on(log, words[END])  # what is rewritten is sealed then
    bases = log.segments()
    at = bisect_right(bases, offset) - 1
    aside = _copy_aside(log, bases[: at + (bases[at] != offset)])
    words[DIRTY] = log.token
    if bases[at] != offset:
        _write_rest(log, bases[at], offset, bases[at + 1])
    words[START] = offset  # before a name goes
    words[SYNCED] = max(words[SYNCED], offset)
    kept = [base for base in log.segments() if base > offset]
    recovery.drop_snapshots(log, -1)  # they are folds of what is gone
    for base in bases:
        if base < offset:
            recovery.remove_segment(log, base)
            log.fs.sync_dir(log.directory)  # from the front: after a power cut there is no gap
    epochs.save(log.fs, log.directory, epochs.from_headers(log.fs, log.directory, [offset, *kept]))
    log.store_turn()
    if words[DAMAGED] <= offset:
        words[DAMAGED] = 0
    _, words[OPEN] = aborted.recover(log, offset)
    words[DIRTY] = 0
    return aside


def _check(log: PartitionLog, fits: object, offset: int) -> None:
    if not fits:
        raise ConfigurationError(f"offset {offset} of {log.name}: must be inside the log, which is [{log.words[START]}, {log.words[END]})")


def _copy_aside(log: PartitionLog, bases: Sequence[int]) -> str:
    """Copy segments into a directory beside the partition's; all of it is on the disk when this returns."""
    target = f"{log.directory.rpartition('/')[0]}/{names.set_aside(log.topic, log.partition, log.settings.now_ms())}"
    log.fs.mkdir(target)
    files.take_owner(target, log.directory)
    for base in bases:
        data = files.read_file(log.fs, f"{log.directory}/{names.log(base)}", 1 << 40)
        path = f"{target}/{names.log(base)}"
        files.write_whole(log.fs, path, data, temporary=f"{path}{names.TEMPORARY}")
    log.fs.sync_dir(target.rpartition("/")[0])
    return target


def _write_rest(log: PartitionLog, base: int, offset: int, limit: int) -> None:
    """Make a segment of the batches of another one from `offset` on.  Commit step: it takes its name."""
    view = SegmentView(log.fs, log.directory, base)
    path = f"{log.directory}/{names.log(offset)}"
    temporary = f"{path}{names.TEMPORARY}"
    salt, header = segment.new_salt(), view.header
    start = min(header.epoch_start, offset)
    pieces = [fmt.seal_segment_header(salt, log.topic_id, offset, log.partition, header.leader_epoch, start)]
    sound = (batch for batch in recovery.sound_batches(view, fmt.SEGMENT_HEADER_SIZE, base, view.size) if offset <= batch.base_offset < limit)
    end = offset
    for batch in sound:
        if batch.base_offset != end:
            raise StreamlogError(f"offset {end} of {log.name} cannot be read either: the log must begin after the last hole of this segment")
        pieces.append(fmt.reseal(bytes(batch.data), salt, header.leader_epoch))
        end = batch.next_offset
    fd = log.fs.open(temporary, O_RDWR | O_CREAT | O_TRUNC)
    try:
        log.fs.pwritev(fd, (b"".join(pieces),), 0, temporary)
        log.fs.sync(fd, temporary)
    finally:
        log.fs.close(fd)
    files.take_owner(temporary, log.directory)
    log.fs.replace(temporary, path)
