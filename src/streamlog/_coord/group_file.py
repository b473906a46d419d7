"""A group's live state: a small file in `run/`, changed under the group's lock, watched by its members.

    page 0    magic, version, random id; words: VERSION, BELL (two 32-bit words), HOLDER, and a descriptor for each of two slots
    beats     two words for each member slot: its last heartbeat and its last poll, as tag << 44 | monotonic ms
    slots     the group, packed; version v is in slot v & 1

A new version is written (by `pwrite`, so that a full disk is an error) into the slot that does not hold the present one, then its
descriptor, then VERSION: a death on the way leaves the old version.  Outside the lock a member stores its own two beats and nothing
else.  The file is born whole, grows in place, and is never renamed over or unlinked while the cluster is open (H7).  Its id says which
bytes of `groups.lock` are the group's: the first is its lock, the others the liveness of its members.
"""

from __future__ import annotations

from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

from streamlog._coord.group import MAX_MEMBERS, Claim, Group, GroupTopic, Member, Subscription
from streamlog._format import names
from streamlog._format.batch import checksum
from streamlog._os import locks, mapping, process
from streamlog._os.files import O_RDWR, PAGE, FileSystem
from streamlog._os.locks import GROUP, ByteLock, LockFile, under
from streamlog._os.wake import Bell
from streamlog.errors import StorageError, UnsupportedFormatError
from streamlog.types import TopicPartition

_MAGIC = b"SLG1\x02\0\0\0"
_ID = slice(8, 24)
VERSION, BELL, HOLDER = 4, 5, 6
_SLOTS = (8, 12)  # word of each descriptor: offset, capacity, length, checksum
_BEATS = PAGE // 8
_CONTENT = PAGE + -(-MAX_MEMBERS * 16 // PAGE) * PAGE
_FIRST_CAPACITY = 4096
_LEAST = _CONTENT + 2 * _FIRST_CAPACITY
_MAKING = 1 << 62  # a byte of `groups.lock` that is no group's
_MS = (1 << 44) - 1
_TAGS = 1 << 20


class GroupFile:
    """The live state of one group in this process.  `store` needs the group's lock; safe to share between threads."""

    def __init__(self, fs: FileSystem, run: str, group_id: str, lock_file: LockFile, prober: LockFile) -> None:
        self.group_id, self._fs = group_id, fs
        self._path = f"{run}/{names.group(group_id)}"
        try:
            self._page, _ = mapping.open_page(fs, self._path, _LEAST)
        except FileNotFoundError:
            mapping.create(fs, self._path, self._new())
            self._page, _ = mapping.open_page(fs, self._path, _LEAST)
        self._lock_file, self._prober = lock_file, prober
        if self._page.map[:8] != _MAGIC:
            under(ByteLock(lock_file, _MAKING, GROUP, lambda: f"lock of the state of group {group_id!r}, which is made anew"), 10.0, self._make_anew)
        self.words = self._page.words
        self._fd = fs.open(self._path, O_RDWR)
        self._first_byte = names.lock_bytes(bytes(self._page.map[_ID]))
        self.lock = ByteLock(lock_file, self._first_byte, GROUP, partial(locks.describe, f"lock of group {group_id!r}", self.words, HOLDER))
        self.bell = Bell(self._page, 2 * BELL)
        self._held: set[int] = set()  # member slots of this process
        self._seen: tuple[int, Group | None] = (-1, None)

    def _make_anew(self) -> None:
        """The file is not a group's: a power cut left it empty, short or zeroed, and nobody has it open.  It is written in place (H7).

        Raises: UnsupportedFormatError: programs of another version have members in the group.
        """
        if self._page.map[:8] != _MAGIC:
            first = names.lock_bytes(bytes(self._page.map[_ID]))
            is_ours = bytes(self._page.map[:4]) == _MAGIC[:4]
            if is_ours and any(self._prober.is_held_elsewhere(first + 1 + slot) for slot in range(MAX_MEMBERS)):
                raise UnsupportedFormatError(f"{self._path}: members of group {self.group_id!r} are of another version of this program", self._path)
            content = self._new()
            self._page.map[8 : len(content)] = content[8:]
            self._page.map[:8] = content[:8]

    @staticmethod
    def _new() -> bytes:
        page = bytearray(_LEAST)
        page[: len(_MAGIC)], page[_ID] = _MAGIC, process.random_bytes(16)
        words = memoryview(page).cast("Q")
        for number, at in enumerate(_SLOTS):
            words[at], words[at + 1] = _CONTENT + number * _FIRST_CAPACITY, _FIRST_CAPACITY
        return bytes(page)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            fd, self._fd = self._fd, -1
            self._fs.close(fd)

    # ---- the group ---------------------------------------------------------------------------------------------------------

    def load(self) -> Group | None:
        """The group, or None where the file has none yet.  Without the lock it may be of a moment ago, and None may mean "busy"."""
        version = self.words[VERSION]
        seen, group = self._seen
        if seen == version:
            return group
        if version == 0:
            return None
        at = _SLOTS[version & 1]
        offset, _, length, expected = self.words[at : at + 4].tolist()
        data = self._fs.pread(self._fd, length, offset, self._path)
        if checksum(data) != expected:
            return None  # without the lock: overwritten while it was read
        group = decode(data)
        self._seen = version, group
        return group

    def store(self, group: Group) -> None:
        """Make `group` the present version and wake who watches.  Commit step: the store of VERSION."""
        words, version = self.words, self.words[VERSION] + 1
        data, at = encode(group), _SLOTS[version & 1]
        if len(data) > words[at + 1]:
            offset = self._fs.fstat(self._fd).st_size
            capacity = -(-2 * len(data) // PAGE) * PAGE
            self._fs.allocate(self._fd, offset + capacity, self._path)
            words[at + 2] = 0
            words[at], words[at + 1] = offset, capacity
        self._fs.pwrite(self._fd, data, words[at], self._path)
        words[at + 2], words[at + 3] = len(data), checksum(data)
        words[VERSION] = version
        self._seen = version, group
        if self._page.halves[2 * BELL + 1]:
            self.bell.ring()

    # ---- members' liveness -------------------------------------------------------------------------------------------------

    def claim_slot(self, group: Group, tag: int, now_ms: int) -> int:
        """Lock a liveness byte that no member has; its name comes second (H23).  Under the group's lock."""
        used = {member.slot for member in group.members.values()} | self._held
        for slot in range(MAX_MEMBERS):
            if slot not in used and self._lock_file.try_exclusive(self._first_byte + 1 + slot):
                self._held.add(slot)
                self.beat(slot, tag, now_ms)
                self.beat(slot, tag, now_ms, poll=True)
                return slot
        raise StorageError(f"group {self.group_id!r} has no free member slot")

    def free_slot(self, slot: int) -> None:
        """Unlock a liveness byte: its member is gone."""
        if slot in self._held and self._lock_file.fd >= 0:
            self._lock_file.unlock(self._first_byte + 1 + slot)
            self._held.discard(slot)  # last: while it is held, no other thread of this process takes the byte

    def is_alive(self, slot: int) -> bool:
        """Whether somebody holds a member's liveness byte.  Free means dead; held proves nothing."""
        return self._prober.is_held_elsewhere(self._first_byte + 1 + slot)

    def beat(self, slot: int, tag: int, now_ms: int, *, poll: bool = False) -> None:
        """Store a member's heartbeat, or the time of its poll."""
        self.words[_BEATS + 2 * slot + poll] = (tag % _TAGS) << 44 | now_ms & _MS

    def ages(self, member: Member, now_ms: int) -> tuple[int, int]:
        """Milliseconds since a member's last heartbeat and last poll; a beat of the slot's former owner counts as one of now."""
        ages = []
        for number in (0, 1):
            beat = self.words[_BEATS + 2 * member.slot + number]
            if beat >> 44 != member.tag % _TAGS:
                self.beat(member.slot, member.tag, now_ms, poll=bool(number))
                beat = now_ms
            ages.append(max(0, now_ms - (beat & _MS)))
        return ages[0], ages[1]


# ---- bytes -----------------------------------------------------------------------------------------------------------


def encode(group: Group) -> bytes:
    """A group as msgpack: its fields in order, partitions by topic."""
    import msgpack  # here: 4 ms of a cold start

    topics = list(dict.fromkeys(tp.topic for member in group.members.values() for tp in (*member.target, *member.owned)))
    index = {name: number for number, name in enumerate(topics)}
    members = [
        [
            *member[:8], list(member.subscription), member.generation,
            [(index[topic], partition) for topic, partition in member.target],
            [(index[topic], partition, epoch) for (topic, partition), epoch in member.owned.items()], member.namespace,
        ]
        for member in group.members.values()
    ]  # fmt: skip
    fields = group._asdict() | {"members": members, "topics": {name: list(topic) for name, topic in group.topics.items()}}
    packed: bytes = msgpack.packb([topics, list(fields.values())])
    return packed


def decode(data: bytes) -> Group:
    """The group that `encode` packed."""
    import msgpack

    topics, values = msgpack.unpackb(data, strict_map_key=False)
    fields: dict[str, Any] = dict(zip(Group._fields, values))
    members = {}
    for *first, subscription, generation, target, owned, namespace in fields["members"]:
        asked, pattern, since, assignors = subscription
        member = Member._make((
            *first, Subscription(tuple(asked), None if pattern is None else (pattern[0], pattern[1]), since, tuple(assignors)), generation,
            frozenset(TopicPartition(topics[number], partition) for number, partition in target),
            {TopicPartition(topics[number], partition): epoch for number, partition, epoch in owned}, namespace,
        ))  # fmt: skip
        members[member.member_id] = member
    fields["members"] = members
    fields["topics"] = {name: GroupTopic(*topic) for name, topic in fields["topics"].items()}
    fields["claim"] = None if fields["claim"] is None else Claim(*fields["claim"])
    return Group(**fields)
