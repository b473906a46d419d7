"""`Fold`: what one process knows of a log that it reads forward, batch by batch.

Topics, committed offsets and transactions are folds over internal logs.  A fold may begin at a snapshot, a file beside the segments: it is
derived, counts only where its checksum holds, it is of this partition and the log still reaches its offset; whoever has folded far enough
beyond it writes the next one, aside, then renamed.
"""

from __future__ import annotations

import struct
from _thread import RLock, get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypeVar

    from streamlog._format.batch import Batch

    R = TypeVar("R")

from streamlog._format import batch as fmt
from streamlog._format import names
from streamlog._log.log import Log
from streamlog._log.pending import Pending
from streamlog._log.reader import LogReader
from streamlog._os import files, locks
from streamlog.errors import StorageError, StreamlogError, StreamlogTimeoutError

SNAPSHOT = struct.Struct("<4sIQ")  # magic, zero, checksum of the rest
SNAPSHOT_MAGIC = b"SLO2"


class Fold:
    """Safe to share between threads.  A batch is folded again where an exception from outside broke its folding off."""

    snapshot = ""
    """Name of the snapshot's file; empty: there is none."""
    snapshot_every = 0
    """Offsets between snapshots."""

    def __init__(self, log: Log, *, use_snapshot: bool = True) -> None:
        self.log = log
        self.version = 0
        """Offset up to which the log is folded."""
        self._uses_snapshot = use_snapshot and bool(self.snapshot)
        self._snapshot_at = 0
        self._fold_lock: Any = RLock()  # it knows its owner from the very instruction that takes it: no signal comes between the two
        self._reader: LogReader | None = None

    def _fold(self, batch: Batch) -> None:
        """Take a batch in."""
        raise NotImplementedError

    def _end(self) -> int:
        """How far the log may be folded now."""
        return self.log.high_watermark

    def is_inside(self) -> bool:
        """Whether this very thread is inside the fold: a signal handler or a finalizer brought it here (H18)."""
        return bool(self._fold_lock._is_owned())

    def refresh(self, timeout: float) -> None:
        """Fold what is there.  From inside the fold nothing is done: one sees what is folded so far.

        Raises: StreamlogTimeoutError: another thread is at it, for longer than `timeout` seconds.
        """
        self.log.ensure_valid(timeout)
        if not self.is_inside() and (self._reader is None or self._end() > self.version):
            self._locked(timeout, self._fold_all)
            self.keep_up(timeout)

    def catch_up(self, timeout: float) -> None:
        """Fold what is there, for a decision.  Raises StreamlogTimeoutError inside the fold, where one sees too little for that."""
        if self.is_inside():
            raise StreamlogTimeoutError(
                f"a signal handler, or a finalizer, inside the fold of {self.log.name} cannot decide on what it holds; try again after it"
            )
        self.refresh(timeout)

    def _locked(self, timeout: float, function: Callable[[float], R]) -> R:
        held: list[bool] = []
        me = get_ident()
        outermost = me not in locks.folding
        try:  # the idiom of `locks.under` (H14)
            locks.folding.add(me)
            held.extend(map(self._fold_lock.acquire, (True,), (min(timeout, 1e6),)))
            if not held[0]:
                raise StreamlogTimeoutError(f"waited {timeout:g} s for another thread, which folds {self.log.name}")
            return function(timeout)
        finally:
            try:
                if True in held:
                    self._fold_lock.release()
            finally:
                if outermost:
                    locks.folding.discard(me)

    def _fold_all(self, timeout: float) -> None:
        reader = self._reader
        if reader is None:
            if self._uses_snapshot:
                self._load_snapshot()
            self.version = max(self.version, self.log.start_offset)
            reader = self._reader = LogReader(self.log, self.version)
        while self._end() > self.version:
            if reader.offset != self.version:  # an exception from outside interrupted the fold of a batch
                reader = self._reader = LogReader(self.log, self.version)
            reader.timeout = timeout
            batch = reader.next()
            if batch is None:
                break
            self._fold(batch)
            self.version = batch.next_offset

    # ---- snapshots ---------------------------------------------------------------------------------------------------------

    def _copied(self) -> Any:
        """A copy of the state, quickly made."""
        raise NotImplementedError

    def _packed(self, state: Any) -> Any:
        """Such a copy, for msgpack."""
        raise NotImplementedError

    def _unpack(self, packed: Any) -> None:
        """Take the state from what `_packed` gave."""
        raise NotImplementedError

    @property
    def _snapshot_path(self) -> str:
        return f"{self.log.directory}/{self.snapshot}"

    def _load_snapshot(self) -> None:
        """Begin at the snapshot, if it is whole and of this log."""
        import msgpack  # here: 4 ms of a cold start

        log = self.log
        try:
            data = files.read_file(log.fs, self._snapshot_path)
            magic, _, expected = SNAPSHOT.unpack_from(data)
            body = data[SNAPSHOT.size :]
            if magic != SNAPSHOT_MAGIC or fmt.checksum(body) != expected:
                return
            topic_id, partition, offset, epoch, state = msgpack.unpackb(body, strict_map_key=False)
            end = log.replica.leader_epochs().end_offset_for(epoch, log.high_watermark)
        except (FileNotFoundError, ValueError, struct.error, StorageError):
            return
        if (topic_id, partition) == (log.topic_id, log.partition) and log.start_offset <= offset <= end:
            self._unpack(state)
            self.version = self._snapshot_at = offset

    def keep_up(self, timeout: float) -> None:
        """Fold, and write a snapshot, once one is due (H36): also for who only writes, or reads inside locks only.  Does nothing there."""
        due = self._uses_snapshot and self.log.high_watermark - self._snapshot_at >= self.snapshot_every
        if not due or self.is_inside() or get_ident() in locks.inside:
            return
        taken = self._locked(timeout, self._take_snapshot)
        if taken is not None:
            self._save_snapshot(*taken)

    def _take_snapshot(self, timeout: float) -> tuple[int, int, Any] | None:
        """Version, epoch and state; packing and writing them holds nobody up.  None: another thread was faster."""
        self._fold_all(timeout)
        if self._reader is None or self.version - self._snapshot_at < self.snapshot_every:
            return None
        self._snapshot_at = self.version
        return self.version, self._reader.epoch, self._copied()

    def _save_snapshot(self, version: int, epoch: int, state: Any) -> None:
        import msgpack

        body = msgpack.packb((self.log.topic_id, self.log.partition, version, epoch, self._packed(state)))
        path = self._snapshot_path
        data = SNAPSHOT.pack(SNAPSHOT_MAGIC, 0, fmt.checksum(body)) + body
        try:
            files.write_whole(self.log.fs, path, data, temporary=f"{path}.{self.log.replica.token}{names.TEMPORARY}", synced=False)
        except (OSError, StreamlogError):
            pass  # derived: it only spares a longer fold


def packed(records: Iterable[tuple[list[Any], list[Any] | None]], now_ms: int, batch: Pending | None = None) -> Pending:
    """A batch of records whose keys and values are msgpack; without a value one takes its key away."""
    import msgpack

    batch = batch or Pending()
    rows = [(msgpack.packb(key), None if value is None else msgpack.packb(value)) for key, value in records]
    batch.attributes, batch.columns = fmt.encode_rows([value for _, value in rows], [key for key, _ in rows])
    batch.count = len(rows)
    batch.base_timestamp = batch.max_timestamp = now_ms
    return batch


def unpacked(batch: Batch) -> list[tuple[list[Any], list[Any] | None]]:
    """Keys and values that `packed` wrote."""
    import msgpack

    columns, unpack = batch.columns(), msgpack.unpackb
    assert columns.keys is not None
    values = [None] * batch.count if columns.values is None else columns.values.to_list()
    return [(unpack(key), None if value is None else unpack(value)) for key, value in zip(columns.keys.to_list(), values)]
