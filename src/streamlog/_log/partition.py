"""A partition's log in one process: append, sync, and what readers share.

`append` is the protocol of docs/crash-safety.md, step by step; tests/model/append.py is the same as a model that is searched
exhaustively, and its step names stand in the comments: up roll put words hwm down.
"""

from __future__ import annotations

from bisect import bisect_right

from streamlog._format import batch as fmt
from streamlog._format import index as index_format
from streamlog._format import names
from streamlog._format.batch import (
    BATCH_HEADER_SIZE,
    CONTROL,
    LOG_APPEND_TIME,
    NO_PRODUCER,
    SEGMENT_HEADER_SIZE,
    TRANSACTIONAL,
    seal_head,
)
from streamlog._log import aborted, epochs, recovery, segment
from streamlog._log.log import Log
from streamlog._log.pending import LogSettings, Pending
from streamlog._log.producer_state import BehindError, ProducerStateManager
from streamlog._log.segment import SegmentView
from streamlog._log.state import (
    ABORTED_END,
    ALIGNED,
    BELL,
    BOOT,
    DEAD,
    DIRECTORY,
    DIRTY,
    END,
    EPOCH,
    FAILED,
    FENCES,
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
    TURN,
    Slot,
)  # fmt: skip
from streamlog._os import files, locks, process
from streamlog._os.clock import monotonic_ns
from streamlog._os.files import O_CREAT, O_RDWR, O_TRUNC, SMALL_WRITE, FileSystem
from streamlog._os.locks import PARTITION, SYNC, TRANSACTION_STATE, ByteLock, LockFile, if_free, under
from streamlog._os.mapping import STRONG_ORDER
from streamlog._os.wake import Bell, barrier
from streamlog.errors import (
    CorruptRecordError,
    DiskFailedError,
    ResourceLimitError,
    StorageError,
    StorageFullError,
    StreamlogError,
    UnknownTopicOrPartitionError,
)

_FLAG = 2 * BELL + 1
_OFFSET_SPAN = 2**31 - 1


class PartitionLog(Log):
    """The log of one partition, or of one replica of it.  Opens nothing before its first use; safe to share between threads."""

    is_replica = False
    """One of several: leader epochs come from the metadata, and what is lost from the other replicas."""

    def __init__(
        self,
        fs: FileSystem,
        directory: str,
        topic: str,
        topic_id: bytes,
        partition: int,
        slot: Slot,
        lock_file: LockFile,
        cluster_bell: Bell,
        settings: LogSettings,
        recovery_point: int = 0,
    ) -> None:
        self.fs, self.directory = fs, directory
        self.topic, self.topic_id, self.partition = topic, topic_id, partition
        self.slot, self.words, self.settings = slot, slot.words, settings
        self.shown = slot.words
        self.recovery_point = recovery_point
        self._segment_bytes, self._segment_ms = settings.segment_bytes, settings.segment_ms
        self._index_interval = settings.index_interval_bytes
        self.producers = ProducerStateManager(self)
        self.boot, self.token = fs.boot_id(), process.token()
        self.name = names.partition(topic, partition)
        lock_byte = names.lock_bytes(topic_id) + 4 * partition
        name, words = self.name, self.words
        rank = TRANSACTION_STATE if topic == names.TRANSACTIONS_TOPIC else PARTITION
        self.lock = ByteLock(lock_file, lock_byte, rank, lambda: locks.describe(f"partition lock of {name}", words, DIRTY))
        self.sync_lock = ByteLock(lock_file, lock_byte + 1, SYNC, lambda: locks.describe(f"sync lock of {name}", words, SYNCING))
        self.bell = Bell(slot.page, slot.bell_index)
        self._cluster_bell = cluster_bell
        self._cluster_flag = cluster_bell.index + 1
        self._cluster_halves = cluster_bell.halves
        self._halves, self._map = slot.halves, slot.map
        self._known_start, self._known_end = slot.known_start, slot.known_end
        self._fd = self._index_fd = self._inode = -1
        self._salt = self.epoch = self.epoch_start = self.base_offset = self._reserved = 0
        self._path = ""
        self.forget()
        self._inside = False  # an append of this process is under way, or was broken off
        self._looked = False  # this process has compared the slot with the files
        self.untold: list[tuple[str, str]] = []
        """Levels and messages for the log of the program: nothing is logged under a lock (H18)."""
        self._may_recover_failure = True  # the first look of an opener; later ones refuse (H30)
        self._largest: dict[tuple[int, int], int] = {}  # of sealed segments, which do not change
        self._listing: tuple[int, list[int]] = (-1, [])
        self._epochs: tuple[int, epochs.Epochs | None] = (-1, None)
        self._sync_fd = -1, -1  # inode and descriptor of the segment that was synced last; under the sync lock

    @property
    def replica(self) -> PartitionLog:
        """This very log."""
        return self

    def used_replicas(self) -> dict[int, PartitionLog]:
        """This very log, of the only broker."""
        return {0: self}

    # ---- what this process knows of the active segment: counts only while `_known` is what the slot says ---------------

    def forget(self) -> None:
        """Drop what is known; files are closed.  Under the lock, or where nobody else can be inside."""
        self._known = b""
        fds, self._fd, self._index_fd = (self._fd, self._index_fd), -1, -1
        for fd in fds:
            if fd >= 0:
                self.fs.close(fd)

    def release_files(self) -> bool:
        """Close the files if no thread of this process is inside; they are opened again when needed."""
        return if_free(self.sync_lock, self._close_sync_fd) and if_free(self.lock, self.forget)

    def close(self) -> None:
        """Close the files; nobody uses the log any more."""
        self.forget()
        self._close_sync_fd()
        self.producers.close()

    def check_place(self) -> None:
        """Let go of files whose directory was removed or replaced under our feet: the next append looks again (H8)."""
        words = self.words
        if words[BOOT] == self.boot:
            try:
                inode = self.fs.stat(self.directory).st_ino
            except FileNotFoundError:
                inode = -1
            if inode != words[DIRECTORY]:
                self.release_files()

    # ---- append ----------------------------------------------------------------------------------------------------------

    def append(self, batch: Pending, timeout: float) -> None:
        """Write a batch and publish it; `batch.base_offset` and `batch.epoch` say where it went.

        Durability: the kernel has it.  A batch of an idempotent producer that is in the log already is not written again.
        Raises: StreamlogTimeoutError (nothing written), StorageFullError, DiskFailedError, UnknownTopicOrPartitionError,
                OutOfOrderSequenceError, InvalidProducerEpochError; of a transactional batch what its `admit` raises.
        """
        while True:
            try:
                under(self.lock, timeout, self._append, batch)
                break
            except BehindError as behind:
                behind.fold(*behind.arguments)
        if self.untold:
            recovery.tell(self)
        if self.producers.snapshot_is_due:
            self.producers.take_snapshot()
        if self._halves[_FLAG]:
            self.bell.ring()
        if self._cluster_halves[self._cluster_flag]:
            self._cluster_bell.ring()

    def _append(self, batch: Pending) -> None:
        words = self.words
        if self._inside:
            self.producers.broken_off = True
        if self._map[self._known_start : self._known_end] != self._known:
            self.settle(for_append=True)
        transactional = batch.attributes & TRANSACTIONAL
        if transactional:
            batch.admit(words[FENCES])
        if batch.producer is not NO_PRODUCER and not batch.is_copy and self.producers.answer(batch):
            return
        if batch.attributes & LOG_APPEND_TIME and not batch.is_copy:
            batch.base_timestamp = batch.max_timestamp = self.settings.now_ms()
        columns, position, offset = batch.columns, words[POSITION], words[END]
        length = BATCH_HEADER_SIZE + len(columns)
        try:
            self._inside = True
            words[DIRTY] = self.token  # up
            end = position + length
            if position > SEGMENT_HEADER_SIZE and self._rolls_before(batch, offset, position):
                self._roll(offset, position)
                end, position = SEGMENT_HEADER_SIZE + length, SEGMENT_HEADER_SIZE
            if end > self._reserved:
                self._reserve(end)
            head = seal_head(
                self._salt, columns, offset, batch.attributes, length, batch.count, batch.count - 1, batch.base_timestamp,
                batch.max_timestamp, *batch.producer, self.epoch, len(columns) if batch.uncompressed < 0 else batch.uncompressed,
            )  # fmt: skip
            if length <= SMALL_WRITE:  # put
                self.fs.pwrite(self._fd, head + columns, position, self._path)
            else:
                self.fs.pwritev(self._fd, (head, columns), position, self._path)
            if position == SEGMENT_HEADER_SIZE:
                words[FIRST_TIMESTAMP] = batch.base_timestamp
            if batch.max_timestamp > words[MAX_TIMESTAMP]:
                words[MAX_TIMESTAMP] = batch.max_timestamp
            if position - words[INDEXED] >= self._index_interval:
                self._write_index_entry(offset, position)
            if transactional:
                self._announce(batch, offset)
            words[END] = offset + batch.count  # words
            words[POSITION] = end
            if not STRONG_ORDER:
                barrier()
            words[HWM] = offset + batch.count  # hwm
            batch.base_offset, batch.epoch = offset, self.epoch
            self.producers.appended(batch, offset, end)
            if transactional and batch.attributes & CONTROL:
                words[OPEN] = self.producers.states.first_open() + 1
            words[DIRTY] = 0  # down
            self._inside = False
        except BaseException:
            self._known = b""  # the mark is up: whoever comes next derives the words from the log
            raise

    def append_copies(self, copies: list[Pending]) -> None:
        """Append batches of the leader's that follow one another, all of the active segment's epoch and none transactional.

        As many as fit a segment are one write: one by one, a copier that has to take the interpreter back after each write falls behind a
        writer in the same process.  Under the lock, settled.
        """
        words, at = self.words, 0
        try:
            self._inside = True
            while at < len(copies):
                words[DIRTY] = self.token  # up
                if words[POSITION] > SEGMENT_HEADER_SIZE and self._rolls_before(copies[at], copies[at].base_offset, words[POSITION]):
                    self._roll(words[END], words[POSITION])
                at += self._put_copies(copies[at:])
                words[DIRTY] = 0  # down
            self._inside = False
        except BaseException:
            self._known = b""
            raise

    def _rolls_before(self, batch: Pending, offset: int, position: int) -> bool:
        """Whether a segment that has records is left before this batch (Kafka's LogSegment.shouldRoll)."""
        return bool(
            position + BATCH_HEADER_SIZE + len(batch.columns) > self._segment_bytes
            or batch.max_timestamp - self.words[FIRST_TIMESTAMP] > self._segment_ms
            or offset + batch.count - self.base_offset > _OFFSET_SPAN
        )

    def _put_copies(self, copies: list[Pending]) -> int:
        """Write those that go into the active segment; returns how many."""
        words = self.words
        start = position = words[POSITION]
        indexed, largest = words[INDEXED], words[MAX_TIMESTAMP]
        pieces: list[bytes] = []
        entries: list[bytes] = []
        ends: list[int] = []
        for batch in copies:
            if pieces and self._rolls_before(batch, batch.base_offset, position):
                break
            if position == SEGMENT_HEADER_SIZE:
                words[FIRST_TIMESTAMP] = batch.base_timestamp
            columns = batch.columns
            head = seal_head(
                self._salt, columns, batch.base_offset, batch.attributes, BATCH_HEADER_SIZE + len(columns), batch.count, batch.count - 1,
                batch.base_timestamp, batch.max_timestamp, *batch.producer, self.epoch, batch.uncompressed,
            )  # fmt: skip
            pieces += (head, columns)
            largest = max(largest, batch.max_timestamp)
            if position - indexed >= self._index_interval:
                entries.append(index_format.ENTRY.pack(batch.base_offset, position, largest))
                indexed = position
            position += BATCH_HEADER_SIZE + len(columns)
            ends.append(position)
        if position > self._reserved:
            self._reserve(position)
        self.fs.pwritev(self._fd, (b"".join(pieces),), start, self._path)  # put
        words[MAX_TIMESTAMP] = largest
        if entries:
            self.fs.pwrite(self._index_fd, b"".join(entries), words[INDEX_END], self._index_path)
            words[INDEXED], words[INDEX_END] = indexed, words[INDEX_END] + len(entries) * index_format.ENTRY.size
        done = copies[: len(ends)]
        words[END] = done[-1].base_offset + done[-1].count  # words
        words[POSITION] = position
        if not STRONG_ORDER:
            barrier()
        words[HWM] = words[END]  # hwm
        for batch, end in zip(done, ends):
            self.producers.appended(batch, batch.base_offset, end)
        return len(done)

    def _announce(self, batch: Pending, offset: int) -> None:
        """Of a transactional batch, before the high watermark covers it: what keeps `read_committed` from it, or tells that it was aborted."""
        words = self.words
        if not batch.attributes & CONTROL:
            if not words[OPEN]:
                words[OPEN] = offset + 1
            return
        producer_id = batch.producer[0]
        first = self.producers.states.open.get(producer_id, -1)
        if first >= 0 and not batch.commit:
            aborted.append_entry(self, (producer_id, first, offset))
        self.store_fences()

    def _batch_at(self, offset: int) -> fmt.Batch | None:
        """The batch that begins at `offset`, if one does.  Under the lock."""
        if not self.words[START] <= offset < self.words[END]:
            return None
        bases = self.segments()
        view = SegmentView(self.fs, self.directory, bases[bisect_right(bases, offset) - 1])
        position, base = view.find(offset, self.words[POSITION])
        return view.batch(position, 0) if base == offset else None

    def is_unsettled(self) -> bool:
        """Whether a process died inside."""
        return bool(self.words[DIRTY])

    def mend(self, replica: PartitionLog, error: Exception, offset: int, timeout: float) -> bool:  # noqa: ARG002
        """There is no other replica."""
        return False

    def catch_up(self, timeout: float) -> None:
        """Adopt what a process that died here left above the high watermark, so that whoever decides next knows of it."""
        under(self.lock, timeout, self._settle_if_changed, for_append=True)

    def _settle_if_changed(self, *, for_append: bool) -> None:
        if self._map[self._known_start : self._known_end] != self._known:
            self.settle(for_append=for_append)

    def _roll(self, offset: int, position: int, epoch: int = -1, epoch_start: int = -1) -> None:
        """Go on in a new segment, in another epoch if one is given: its name, then `turn`, then segment and position."""
        old_fd, old_path, words = self._fd, self._path, self.words
        if position > SEGMENT_HEADER_SIZE:
            self._write_index_entry(offset, position)  # the closing entry: the sealed segment's largest timestamp
        salt = segment.new_salt()
        if epoch < 0:
            epoch, epoch_start = self.epoch, self.epoch_start
        header = fmt.seal_segment_header(salt, self.topic_id, offset, self.partition, epoch, epoch_start)
        segment.create(self.fs, self.directory, header, offset)  # roll
        self.store_turn()
        old_index_fd, self._fd, self._index_fd = self._index_fd, -1, -1
        try:
            self._open_active(offset)
        finally:
            self.fs.close(old_index_fd)
        words[SEGMENT], words[INODE], words[SALT], words[EPOCH] = offset, self._inode, salt, epoch
        words[POSITION], words[MAX_TIMESTAMP], words[INDEXED], words[INDEX_END] = SEGMENT_HEADER_SIZE, 0, 0, 0
        self._create_index()
        words[ABORTED_END] = aborted.create_index(self.fs, self.directory, offset, salt)
        self._learn()
        self.producers.rolled()
        try:
            if position > SEGMENT_HEADER_SIZE:
                self.fs.truncate(old_fd, position, old_path)
        finally:
            self.fs.close(old_fd)

    def begin_epoch(self, epoch: int, start: int) -> None:
        """Go on in a leader epoch that begins at `start`: in a new segment; one without records is replaced.  Under the lock, settled.

        The epoch is on the disk elsewhere: it comes from the metadata.
        """
        words = self.words
        known = [entry for entry in self.leader_epochs().entries if entry[0] < epoch and entry[1] < start]
        try:
            self._inside = True
            words[DIRTY] = self.token
            self._roll(words[END], words[POSITION], epoch, start)
            words[DIRTY] = 0
            self._inside = False
        except BaseException:
            self._known = b""
            raise
        try:
            epochs.save(self.fs, self.directory, epochs.Epochs([*known, (epoch, start)]), synced=False)
        except StorageFullError:
            pass  # derived: it is read from the segments' headers then

    def store_turn(self) -> None:
        """Announce a change that is not an append: a value that was never there before (H4)."""
        words = self.words
        words[TURN] = max(words[TURN] + 1, monotonic_ns())

    def store_fences(self) -> None:
        """Announce a marker, to those that have a transaction open here."""
        words = self.words
        words[FENCES] = max(words[FENCES] + 1, monotonic_ns())

    def _reserve(self, needed: int) -> None:
        size = self.fs.fstat(self._fd).st_size
        if size < needed:
            if self.settings.reserve:
                size = segment.reserve(self.fs, self._fd, self._path, size, needed, self.settings.segment_bytes)
            else:
                size = max(size, -(-needed // segment.FIRST_STEP) * segment.FIRST_STEP)
                self.fs.truncate(self._fd, size, self._path)
        self._reserved = size

    # ---- index -------------------------------------------------------------------------------------------------------------

    @property
    def _index_path(self) -> str:
        return f"{self.directory}/{names.index(self.base_offset)}"

    def _create_index(self) -> None:
        self._index_fd = self.fs.open(self._index_path, O_RDWR | O_CREAT | O_TRUNC)
        head = index_format.header(self._salt, self.base_offset)
        self.fs.pwrite(self._index_fd, head, 0, self._index_path)
        self.words[INDEX_END], self.words[INDEXED] = len(head), 0

    def _write_index_entry(self, offset: int, position: int) -> None:
        entry = index_format.ENTRY.pack(offset, position, self.words[MAX_TIMESTAMP])
        at = self.words[INDEX_END]
        self.fs.pwrite(self._index_fd, entry, at, self._index_path)
        self.words[INDEXED], self.words[INDEX_END] = position, at + len(entry)

    # ---- the slow path of step 1 -----------------------------------------------------------------------------------------

    def settle(self, *, for_append: bool) -> None:
        """Bring slot and memory in step with the log, recovering it where that is due.  Under the partition's lock.

        Raises: UnknownTopicOrPartitionError (deleted), DiskFailedError (a sync failed, or the directory is gone).
        """
        words = self.words
        self.forget()
        if words[BOOT] == DEAD:
            raise self._gone()
        action = recovery.decide(self._facts(for_append))
        if action is not None:
            action(self)
        if for_append:
            self._may_recover_failure = False
        try:
            self._open_active(words[SEGMENT])
        except CorruptRecordError:  # its header rotted: what it holds is damaged, and the log goes on behind it
            self.forget()
            words[DIRTY] = self.token
            recovery.after_death(self)
            self._open_active(words[SEGMENT])
        if self._inode != words[INODE] or self._salt != words[SALT]:
            self.forget()
            raise DiskFailedError(f"{self._path} is not the file that {self.name} was written to: it was replaced; open the cluster again")
        self._looked = True
        try:
            self._open_index()
            aborted.check_active_index(self)
        except StorageFullError:
            self.forget()
            if for_append:
                raise
            return  # a reader does without
        self._learn()

    def _facts(self, for_append: bool) -> recovery.Facts:
        words = self.words
        try:
            directory = self.fs.stat(self.directory).st_ino
        except (FileNotFoundError, NotADirectoryError):
            raise self._gone() from None
        bases = names.base_offsets(self.listing())
        active = self._is_of_this_mount() if words[DIRTY] else self._is_active(bases)
        return recovery.Facts(
            valid=words[BOOT] == self.boot and words[DIRECTORY] == directory and active,
            failed=bool(words[FAILED]) and for_append,
            dirty=bool(words[DIRTY]),
            opener=self._may_recover_failure and not self.is_replica,
        )

    def _is_of_this_mount(self) -> bool:
        """Whether the mark was set on the disk as it is mounted now.  After another mount it is as old as the page that it stands on."""
        return self.words[MOUNT] in (0, files.mount_of(self.directory)) or self._looked

    def _is_active(self, bases: list[int]) -> bool:
        """Whether the words speak of the files that are there.

        Not where a backup was copied over them in this boot (H7), or the disk came back as it was at another time: then the file is shorter
        than the words say, the batches do not end where they say, or there are more.  The batches are looked at once, by each opener.
        """
        words = self.words
        if not bases or bases[-1] != words[SEGMENT]:
            return False
        try:
            if self.fs.stat(f"{self.directory}/{names.log(bases[-1])}").st_size < words[POSITION]:
                return False
            return self._looked or self._ends_as_said()
        except FileNotFoundError:
            return False

    def _ends_as_said(self) -> bool:
        """Whether the active segment's batches end at POSITION."""
        words = self.words
        try:
            view = SegmentView(self.fs, self.directory, words[SEGMENT])
            if view.header.salt != words[SALT]:
                return True  # told when it is opened
            position, offset = view.nearest(words[END], words[POSITION])
            for at, batch in view.batches(position, offset, words[END], words[POSITION]):
                position, offset = at + batch.length, batch.next_offset
            if offset < words[END]:
                return not view.is_blank(position)  # else a batch rotted: told when it is read
            return position == words[POSITION] and (view.is_blank(position) or view.batch(position, view.size).base_offset != offset)
        except (ValueError, fmt.UnknownVersionError, StorageError):
            return True

    def _open_active(self, base_offset: int) -> None:
        self.base_offset = base_offset
        self._path = f"{self.directory}/{names.log(base_offset)}"
        self._fd = self.fs.open(self._path, O_RDWR)
        found = self.fs.fstat(self._fd)
        self._inode, self._reserved = found.st_ino, found.st_size
        header = segment._checked_header(self.fs.pread(self._fd, SEGMENT_HEADER_SIZE, 0, self._path), self._path)
        self._salt, self.epoch, self.epoch_start = header.salt, header.leader_epoch, header.epoch_start

    def _open_index(self) -> None:
        """The active segment's index; begun anew where it is missing or another's (it is derived)."""
        head = index_format.header(self._salt, self.base_offset)
        try:
            self._index_fd = self.fs.open(self._index_path, O_RDWR)
            size = self.fs.fstat(self._index_fd).st_size
            if self.fs.pread(self._index_fd, len(head), 0, self._index_path) == head and size >= self.words[INDEX_END] > 0:
                return
            fd, self._index_fd = self._index_fd, -1  # first: a number that is closed may be another file's by the time of an error
            self.fs.close(fd)
        except FileNotFoundError:
            pass
        self._create_index()

    def _learn(self) -> None:
        """What the slot says now is what this process knows."""
        self.epoch = self.words[EPOCH]
        self._known = bytes(self._map[self._known_start : self._known_end - 16]) + bytes(16)  # with `failed` and the mark down

    def look_again(self) -> None:
        """For readers whose segment is not there: with nobody inside, what the directory shows is what counts.  Under the lock."""
        self._listing = (-1, [])
        self._settle_if_changed(for_append=False)

    def checkpointed_high_watermark(self) -> int:
        """What was published before the boot, as far as a checkpoint remembers; 0 where there is none."""
        return 0

    def reload_recovery_point(self) -> None:
        """Ask the checkpoint again: another process may have lowered it."""

    def lower_recovery_point(self, offset: int) -> None:
        """The log is about to be cut to `offset`: no checkpoint may say more when that is done.  Under the log's lock."""
        self.recovery_point = min(self.recovery_point, offset)

    def void(self) -> None:
        """The directory is about to be removed or replaced: what the slot says counts for no directory, though the next has its inode."""
        self.words[ALIGNED] = self.words[BOOT] = self.words[SYNCED] = 0

    def revive(self) -> None:
        """Of a replica whose broker comes back: believe nothing that is not on its disk or in its slot.  Under the lock."""
        words = self.words
        words[ALIGNED] = 0
        if words[BOOT] == self.boot and (words[FAILED] or words[SYNCING]) and self._facts(for_append=False).valid:
            recovery.rewrite_in_place(self)
        self._listing = (-1, [])
        self.settle(for_append=False)

    def ensure_valid(self, timeout: float) -> None:
        """For readers: recover the log if nobody has since the boot, so that the slot counts."""
        words = self.words
        if words[BOOT] == DEAD:
            raise self._gone()
        if words[BOOT] != self.boot or not self._looked:
            under(self.lock, timeout, self._look_first)
        if self.untold:
            recovery.tell(self)

    def _look_first(self) -> None:
        """A process that only reads looks once whether the slot counts."""
        if not self._looked:
            self.settle(for_append=False)

    # ---- what readers share: lists that count while `turn` is the one they were read at ----------------------------------

    def listing(self) -> list[str]:
        """Names in the directory.  Raises DiskFailedError, UnknownTopicOrPartitionError: it is gone."""
        try:
            return self.fs.listdir(self.directory)
        except (FileNotFoundError, NotADirectoryError):
            raise self._gone() from None

    def _gone(self) -> StreamlogError:
        if self.words[BOOT] == DEAD:
            return UnknownTopicOrPartitionError(f"topic {self.topic!r} (id {self.topic_id.hex()}) was deleted")
        return DiskFailedError(f"{self.directory} is gone; {self.name} cannot be read or written")

    def segments(self) -> list[int]:
        """Base offsets of the segments, in order; fresh as of the present `turn`."""
        turn = self.words[TURN]  # before the directory (slow-turn-first)
        if self._listing[0] != turn:
            self._listing = turn, names.base_offsets(self.listing())
        return self._listing[1]

    def leader_epochs(self) -> epochs.Epochs:
        """Leader epochs with their start offsets, fresh as of the present `turn`."""
        turn = self.words[TURN]
        found = self._epochs[1]
        if found is None or self._epochs[0] != turn:
            found = epochs.load(self.fs, self.directory, self.segments())
            self._epochs = turn, found
        return found

    def largest_timestamp(self, base_offset: int, limit: int) -> int | None:
        """The largest timestamp of a sealed segment that ends at `limit`; None where its index does not say."""
        found = self._largest.get((base_offset, limit))
        if found is None:
            index = SegmentView(self.fs, self.directory, base_offset).index()
            closing = index.entry(len(index) - 1) if len(index) else (-1, 0, 0)
            if closing[0] != limit:
                return None
            found = self._largest[base_offset, limit] = closing[2]
        return found

    @property
    def high_watermark(self) -> int:
        """Readers see offsets below it."""
        return self.words[HWM]

    @property
    def last_stable_offset(self) -> int:
        """Readers of committed records see offsets below it: the high watermark, or where the earliest open transaction began."""
        words = self.words
        high_watermark = words[HWM]  # first: what `open` says is at least as new
        if not STRONG_ORDER:
            barrier()
        first_open = words[OPEN]
        return first_open - 1 if 0 < first_open <= high_watermark else high_watermark

    @property
    def start_offset(self) -> int:
        """The first offset that can be read."""
        return self.words[START]

    def sizes(self) -> tuple[int, int]:
        """Segments and their bytes, reserved space not counted."""
        bases = self.segments()
        try:
            sealed = sum(self.fs.stat(f"{self.directory}/{names.log(base)}").st_size for base in bases[:-1])
        except FileNotFoundError as error:
            raise DiskFailedError(f"{error.filename} is gone; a part of {self.name} cannot be read") from None
        return len(bases), sealed + self.words[POSITION]

    # ---- sync ----------------------------------------------------------------------------------------------------------------

    def wait_synced(self, batch: Pending, timeout: float) -> None:
        """Return once a batch that was appended is on the disk.  One sync serves all who wait (group commit).

        Raises: DiskFailedError (a sync failed: refused until the cluster is opened again), StreamlogTimeoutError.
        """
        words, end = self.words, batch.base_offset + batch.count
        while True:
            synced = words[SYNCED]  # before the epoch (H30)
            if words[FAILED]:
                raise DiskFailedError(f"{self.name}: a sync failed before offset {end} was on the disk; open the cluster again")
            if words[EPOCH] != batch.epoch:
                under(self.lock, timeout, self._find_again, batch)
            elif synced >= end:
                return
            else:
                under(self.sync_lock, timeout, self._sync, end, timeout)

    def _find_again(self, batch: Pending) -> None:
        """The log went on in another epoch: a recovery has written the batch anew where it was, or it is gone."""
        found = self._batch_at(batch.base_offset)
        if found is None or found.count != batch.count or bytes(found.data[BATCH_HEADER_SIZE:]) != batch.columns:
            raise DiskFailedError(f"{self.name}: offset {batch.base_offset} was cut away before it was on the disk")
        batch.epoch = self.words[EPOCH]

    def sync(self, timeout: float) -> None:
        """Return once all that is published now is on the disk.  Raises like `wait_synced`."""
        words, end = self.words, self.words[HWM]
        while words[SYNCED] < end:
            if words[FAILED]:
                self.catch_up(timeout)  # an opener recovers; who was there when it failed is refused
            under(self.sync_lock, timeout, self._sync, end, timeout)

    def _sync(self, end: int, timeout: float) -> None:
        """Sync everything from the recovery point on.  Under the sync lock, never under the partition's."""
        words = self.words
        if words[SYNCED] >= end or words[FAILED]:
            return
        if words[SYNCING]:  # whoever began a sync died in it: its error, if there was one, died with it (H30)
            under(self.lock, timeout, self._recover_unknown_sync)
            return
        epoch, noted = words[EPOCH], words[HWM]
        words[SYNCING] = self.token  # stays up where a signal handler breaks the sync off: nobody has seen its outcome
        try:
            self._sync_files()
        except ResourceLimitError:
            words[SYNCING] = 0  # it has not begun: nothing failed but this process
            raise
        except OSError as error:
            self._may_recover_failure = False  # who sees it stops (H30)
            words[FAILED] = 1
            words[SYNCING] = 0
            raise DiskFailedError(f"sync of {self.name}: {error}; it refuses writes until the cluster is opened again") from error
        except StorageFullError:
            words[FAILED] = 1
            words[SYNCING] = 0
            raise
        under(self.lock, timeout, self._store_synced, noted, epoch)
        words[SYNCING] = 0

    def _store_synced(self, noted: int, epoch: int) -> None:
        words = self.words
        if words[EPOCH] == epoch and words[SYNCED] < noted:
            words[SYNCED] = noted
            words[SYNCED_AT] = monotonic_ns() // 1_000_000

    def _recover_unknown_sync(self) -> None:
        if self.words[SYNCING] and self.words[BOOT] == self.boot:
            self.forget()
            (recovery.rewrite_in_place if self.is_replica else recovery.rewrite_unsynced)(self)

    def _sync_files(self) -> None:
        """Older segments from the recovery point, the directory, then the active segment (H29)."""
        bases = self.segments()
        first = max(0, bisect_right(bases, self.words[SYNCED] - 1) - 1)  # what is derived from a segment that ends there may not be on it
        for base in bases[first:-1]:
            recovery.sync_file(self, base)
        path, inode = f"{self.directory}/{names.log(bases[-1])}", self.words[INODE]
        if self._sync_fd[0] != inode:  # opening it each time costs 5 µs
            self._close_sync_fd()
            self._sync_fd = inode, self.fs.open(path, O_RDWR)
            self.fs.sync_dir(self.directory)
        self.fs.sync(self._sync_fd[1], path)

    def _close_sync_fd(self) -> None:
        (_, fd), self._sync_fd = self._sync_fd, (-1, -1)
        if fd >= 0:
            self.fs.close(fd)

    def flush_due(self) -> bool:
        """Whether `flush_messages` or `flush_ms` asks for a sync now."""
        words, settings = self.words, self.settings
        return bool(
            words[HWM] - words[SYNCED] >= settings.flush_messages
            or (words[HWM] > words[SYNCED] and monotonic_ns() // 1_000_000 - words[SYNCED_AT] >= settings.flush_ms)
        )

    # ---- birth and death -----------------------------------------------------------------------------------------------------

    def mark_deleted(self, timeout: float) -> None:
        """The topic is deleted: the slot's words are 0 for ever, waiters wake."""
        under(self.lock, timeout, self._mark_deleted)
        self.bell.ring()

    def _mark_deleted(self) -> None:
        self.forget()
        words = self.words
        words[BOOT] = DEAD
        words[HWM] = 0
        self.store_turn()

    def initialise(self, timeout: float) -> None:
        """Fill the slot of a partition that was just made, so that its first use is no recovery."""
        under(self.lock, timeout, recovery.begin, self)


def create(fs: FileSystem, directory: str, topic_id: bytes, partition: int) -> None:
    """Bring an empty partition into being, on the disk before this returns (the metadata record commits it)."""
    fs.mkdir(directory)
    header = fmt.seal_segment_header(segment.new_salt(), topic_id, 0, partition, 0, 0)
    segment.create(fs, directory, header, 0, synced=True)
