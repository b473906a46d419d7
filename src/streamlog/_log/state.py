"""The state slot of a partition: shared words that say how far the log goes, and the file that holds a topic's slots.

    word            meaning                                                        stored by, under
    HWM             high watermark: readers see offsets below it; stored last      appender, partition lock
    BELL            two 32-bit words: bell and waiter flag (H17)                   appender; waiters raise the flag
    FENCES          changes with each control batch; before HWM                    appender, recovery
    TURN            changes with everything that is not an append                  appender, recovery; partition lock
    BOOT            boot that the slot counts for; DEAD: the topic is deleted      recovery (last), deletion; partition lock
    DIRECTORY       inode of the partition's directory                             recovery
    SEGMENT INODE SALT EPOCH   the active segment                                  roll, recovery
    FAILED          a sync failed: nothing is written until recovery               sync, sync lock
    DIRTY           token of the process inside; up before the first byte          appender, recovery
    END POSITION    next offset, and where in the active segment it goes           appender
    MAX_TIMESTAMP   largest timestamp in the active segment                        appender
    FIRST_TIMESTAMP of the active segment's first batch                            appender
    INDEXED INDEX_END   position of the last index entry, size of the index file   appender
    START           log start offset                                               recovery
    SYNCED          everything below it is on the disk                             sync, partition lock
    SYNCING         token of the process that is syncing                           sync, sync lock
    SYNCED_AT       monotonic ms of the last sync                                  sync, partition lock
    OPEN            first offset of the earliest open transaction, plus 1; 0: none appender, recovery: before the HWM that covers
                                                                                   a transaction, after the one that ends it
    ABORTED_END     size of the active segment's transaction index                 appender, recovery; before OPEN
    ALIGNED         of a replica: the leader epoch in which its log was last compared with the leader's, or led: from then on its
                    end counts                                                     copier, leader, recovery; log lock
    DAMAGED         first offset that was lost though it was on the disk, plus 1; 0: none that recovery has met
                                                                                   recovery; copier, when it cuts before it
    MOUNT           mount through which the files were last recovered; 0: not known    recovery

The last stable offset is the lesser of HWM and OPEN - 1; who wants it loads HWM first (docs/crash-safety.md, "Transactions").
Readers load HWM, then TURN, and nothing else in the steady state; those of committed records OPEN after HWM.  All words are
stale-safe: a reader that sees an old high watermark waits; one that sees an old `turn` sees an old high watermark too.  TURN to
DIRTY lie together, so that an appender compares what it knows in one step.  The whole file is live state: it counts only for this
boot and this inode (H7).
"""

from __future__ import annotations

import struct

from streamlog._os import mapping
from streamlog._os.files import O_RDWR, PAGE, FileSystem
from streamlog._os.mapping import Page

(
    HWM, BELL, FENCES, TURN, BOOT, DIRECTORY, SEGMENT, INODE, SALT, EPOCH, FAILED, DIRTY, END, POSITION, MAX_TIMESTAMP,
    FIRST_TIMESTAMP, INDEXED, INDEX_END, START, SYNCED, SYNCING, SYNCED_AT, OPEN, ABORTED_END, ALIGNED, DAMAGED, MOUNT,
) = range(27)  # fmt: skip
NAMES = (
    "HWM", "BELL", "FENCES", "TURN", "BOOT", "DIRECTORY", "SEGMENT", "INODE", "SALT", "EPOCH", "FAILED", "DIRTY", "END", "POSITION",
    "MAX_TIMESTAMP", "FIRST_TIMESTAMP", "INDEXED", "INDEX_END", "START", "SYNCED", "SYNCING", "SYNCED_AT", "OPEN", "ABORTED_END", "ALIGNED",
    "DAMAGED", "MOUNT",
)  # fmt: skip
KNOWN = slice(TURN * 8, DIRTY * 8 + 8)  # bytes of a slot that only something other than an append changes

SLOT_WORDS = 32
SLOT_BYTES = SLOT_WORDS * 8
DEAD = 1  # value of BOOT; boot ids are larger

_LEAST = PAGE * 2  # bytes of a file: its header, and the first slots
_MAGIC = b"SLT1"
_HEADER = struct.Struct("<4sB3x16sQQ")  # magic, version, topic id, device and inode of this very file


class StateFile:
    """The slots of a topic's partitions, mapped.  Born whole, reset in place, never renamed over or unlinked."""

    def __init__(self, fs: FileSystem, path: str, topic_id: bytes, slot_words: int = SLOT_WORDS) -> None:
        self._fs, self.path, self._topic_id = fs, path, topic_id
        self._slot_words, self._slot_bytes = slot_words, 8 * slot_words
        try:
            self._open()
        except FileNotFoundError:
            mapping.create(fs, path, bytes(_LEAST))
            self._open()

    def _open(self) -> None:
        self.page, self.identity = mapping.open_page(self._fs, self.path, _LEAST)

    def claim(self) -> None:
        """Make the slots count for this file: a copy of another one, or one not begun, is zeroed first.  Needs the topic's lock."""
        wanted = _HEADER.pack(_MAGIC, 1, self._topic_id, *self.identity)
        if self.page.map[: _HEADER.size] != wanted:
            words = self.page.words
            for number in range(self.page.size // 8):
                words[number] = 0
            self.page.map[: _HEADER.size] = wanted

    def is_claimed(self) -> bool:
        """Whether the slots count for this very file."""
        return bool(self.page.map[: _HEADER.size] == _HEADER.pack(_MAGIC, 1, self._topic_id, *self.identity))

    def holds(self, partition: int) -> bool:
        """Whether the mapped file has a slot for this partition."""
        return PAGE + (partition + 1) * self._slot_bytes <= self.page.size

    def grow(self, partition: int) -> None:
        """Make room for this partition's slot; live slots keep their words.  Needs the topic's lock."""
        fd = self._fs.open(self.path, O_RDWR)
        try:
            size = -(-(PAGE + (partition + 1) * self._slot_bytes) // PAGE) * PAGE
            if self._fs.fstat(fd).st_size < size:
                self._fs.allocate(fd, size, self.path)
        finally:
            self._fs.close(fd)
        self._open()

    def slot(self, partition: int) -> Slot:
        """The partition's slot."""
        return Slot(self.page, PAGE + partition * self._slot_bytes, self._slot_words)


class Slot:
    """Views of one slot: `words` are indexed by the names above."""

    __slots__ = ("halves", "known_end", "known_start", "map", "page", "words")

    def __init__(self, page: Page, start: int, slot_words: int = SLOT_WORDS) -> None:
        self.page, self.map = page, page.map
        self.words = page.words[start // 8 : start // 8 + slot_words]
        self.halves = page.halves[start // 4 : start // 4 + 2 * slot_words]
        self.known_start, self.known_end = start + KNOWN.start, start + KNOWN.stop

    @property
    def bell_index(self) -> int:
        """Index of the bell in the page's 32-bit words."""
        return (self.known_start - KNOWN.start) // 4 + 2 * BELL
