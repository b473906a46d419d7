"""What a process does as the coordinator of a group: changes its state under the group's lock, and writes its offsets.

The log record comes first, then the group's file (H35).  No user code runs here, and nothing waits under the lock (decision 8).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import TypeVar

    from streamlog._coord.group_file import GroupFile

    R = TypeVar("R")

from streamlog._coord.group import (
    EMPTY,
    Alter,
    Commit,
    Death,
    Delete,
    Expire,
    Group,
    GroupTopic,
    apply,
)
from streamlog._coord.group_file import HOLDER
from streamlog._coord.offsets import CommittedOffset, GroupMetadata, GroupOffsets, OffsetsLog, commit_record, expired, metadata_record
from streamlog._os import process
from streamlog._os.locks import under
from streamlog._replica.home import Home
from streamlog.types import TopicPartition


class Coordinator:
    """A group, as this process coordinates it.  Safe to share between threads."""

    def __init__(self, home: Home, group_id: str, file: GroupFile, offsets: OffsetsLog) -> None:
        self.home, self.group_id, self.file, self.offsets = home, group_id, file, offsets
        self.clock = home.clock

    # ---- the group's state ---------------------------------------------------------------------------------------------------

    def change(self, timeout: float, function: Callable[[Group], tuple[Group, R]]) -> tuple[Group, R]:
        """Under the group's lock: `function` gets the group and returns it as it is to be, with an answer.

        Raises: StreamlogTimeoutError, naming who holds the lock, and what `function` raises; nothing is changed then.
        """
        if self.file.load() is None:
            self.offsets.refresh(timeout)  # a long fold happens outside the lock
        return under(self.file.lock, timeout, self._change, function, timeout)

    def _change(self, function: Callable[[Group], tuple[Group, R]], timeout: float) -> tuple[Group, R]:
        self.file.words[HOLDER] = process.pid()
        try:
            before = self._load(timeout)
            after, answer = function(before)
            if after is not before:
                self._store(before, after, timeout)
            return after, answer
        finally:
            self.file.words[HOLDER] = 0

    def _load(self, timeout: float) -> Group:
        """The live state; where there is none since the boot, what the log remembers: nobody is in the group."""
        found = self.file.load()
        if found is not None:
            return found
        kept = self.offsets.group(self.group_id, timeout)
        if kept.metadata is None:
            return Group(self.group_id, dead=not kept.offsets)
        metadata = kept.metadata
        topics = {name: GroupTopic(*topic) for name, topic in metadata.topics.items()}
        group = Group(
            self.group_id, epoch=metadata.epoch, generation=metadata.epoch, assignor=metadata.assignor, topics=topics,
            patterns=metadata.patterns, dead=False,
        )  # fmt: skip
        if metadata.empty_since_ms is None:
            self._write([self._metadata_record(group)], timeout)
        return group

    def _store(self, before: Group, after: Group, timeout: float) -> None:
        """Commit step: the store of the group file's version."""
        if after.dead and not before.dead:
            self._write([*self._tombstones(timeout), metadata_record(self.group_id, None)], timeout)
        elif (after.generation, after.dead, not after.members) != (before.generation, before.dead, not before.members):
            records = [self._metadata_record(after)]
            if after.members and not before.members:
                records += self._expired_records(before, timeout)  # what is too old does not come back to life
            self._write(records, timeout)
        self.file.store(after)

    def _metadata_record(self, group: Group) -> tuple[list[object], list[object] | None]:
        topics = {name: list(topic) for name, topic in group.topics.items()}
        empty_since = None if group.members else self.clock.now_ms()
        return metadata_record(self.group_id, GroupMetadata(group.epoch, group.assignor, empty_since, topics, group.patterns))

    def _write(self, records: Iterable[tuple[list[object], list[object] | None]], timeout: float) -> None:
        self.offsets.append(list(records), self.clock.now_ms(), timeout)

    def tidied(self, group: Group, by: str, *, may_expire: bool = True) -> Group:
        """The group without its dead, and without those that others have waited too long for.  Under the group's lock."""
        now = self.clock.monotonic_ms()
        for member_id, member in group.members.items():
            if member_id == by:
                continue
            if member.group_instance_id is None and not self.file.is_alive(member.slot):
                group = apply(group, Death(member_id))
            elif may_expire:
                heartbeat_ms, poll_ms = self.file.ages(member, now)
                if heartbeat_ms > member.session_timeout_ms or poll_ms > member.max_poll_interval_ms:
                    group = apply(group, Expire(member_id, by, heartbeat_ms, poll_ms))
        return group

    def current(self, timeout: float) -> Group:
        """The group as it stands, without its dead."""
        return self.change(timeout, lambda group: (self.tidied(group, ""), None))[0]

    # ---- offsets -------------------------------------------------------------------------------------------------------------

    def commit(
        self, member_id: str, group_instance_id: str | None, offsets: Mapping[TopicPartition, CommittedOffset],
        noted: Mapping[TopicPartition, int], *, durability: str, timeout: float,
    ) -> None:  # fmt: skip
        """Commit offsets, all or none.  Raises CommitFailedError and its leaves, FencedInstanceIdError, StreamlogTimeoutError."""
        event = Commit(member_id, group_instance_id, noted)
        self._commit(lambda group: apply(group, event), offsets, durability, timeout)

    def alter(self, offsets: Mapping[TopicPartition, CommittedOffset], *, timeout: float) -> None:
        """Set offsets from outside.  Raises NonEmptyGroupError."""
        self._commit(lambda group: apply(self.tidied(group, ""), Alter()), offsets, "os", timeout)

    def _commit(
        self, check: Callable[[Group], Group], offsets: Mapping[TopicPartition, CommittedOffset], durability: str, timeout: float
    ) -> None:
        topics = {topic: self.home.metadata.topic(topic) for topic in {tp.topic for tp in offsets}}
        if durability == "fsync":  # an offset that is on the disk speaks of records that are (H29)
            for tp in offsets:
                self.home.log(topics[tp.topic], tp.partition, timeout).sync(timeout)
        records = [
            commit_record(self.group_id, topics[tp.topic].topic_id, tp.partition, committed) for tp, committed in offsets.items()
        ]

        def write(group: Group) -> tuple[Group, object]:
            after = check(group)
            return after, self.offsets.append(records, self.clock.now_ms(), timeout)

        _, batch = self.change(timeout, write)
        if durability == "fsync":
            self.offsets.log.wait_synced(batch, timeout)  # type: ignore[arg-type]

    def committed(self, timeout: float) -> dict[TopicPartition, CommittedOffset]:
        """Offsets that count: of topics that are there, and not expired."""
        offsets, is_expired = self._fold(timeout)
        by_id = self.home.metadata.by_id
        return {
            TopicPartition(by_id[topic_id].name, partition): committed
            for (topic_id, partition), committed in offsets.items()
            if topic_id in by_id and not is_expired((topic_id, partition), committed)
        }

    def offset_of(self, topic_id: bytes, partition: int, timeout: float) -> CommittedOffset | None:
        """What was committed for one partition."""
        found = self.offsets.group(self.group_id, timeout)
        committed = found.offsets.get((topic_id, partition))
        if committed is not None and self._is_expired(found)((topic_id, partition), committed):
            return None
        return committed

    def _is_expired(self, found: GroupOffsets, group: Group | None = None) -> Callable[[tuple[bytes, int], CommittedOffset], bool]:
        return expired(found, group or self.file.load(), self.clock.now_ms(), self.home.config.offsets_retention_minutes)

    def _fold(
        self, timeout: float, group: Group | None = None
    ) -> tuple[dict[tuple[bytes, int], CommittedOffset], Callable[[tuple[bytes, int], CommittedOffset], bool]]:
        found = self.offsets.group(self.group_id, timeout)
        return self.offsets.committed(self.group_id, timeout), self._is_expired(found, group)

    def _expired_records(self, group: Group, timeout: float) -> list[tuple[list[object], list[object] | None]]:
        offsets, is_expired = self._fold(timeout, group)
        by_id = self.home.metadata.by_id
        gone = [key for key, committed in offsets.items() if key[0] not in by_id or is_expired(key, committed)]
        return [commit_record(self.group_id, *key, None) for key in gone]

    def _tombstones(self, timeout: float) -> list[tuple[list[object], list[object] | None]]:
        return [commit_record(self.group_id, *key, None) for key in self.offsets.committed(self.group_id, timeout)]

    def delete(self, timeout: float) -> None:
        """Delete the group and its offsets.  Raises NonEmptyGroupError."""
        self.change(timeout, lambda group: (apply(self.tidied(group, ""), Delete()), None))

    def maintain(self, timeout: float) -> None:
        """Write down which offsets have expired; a group that is empty and has none left goes."""

        def clean(group: Group) -> tuple[Group, None]:
            group = self.tidied(group, "")
            records = self._expired_records(group, timeout)
            if records:
                self._write(records, timeout)
            if group.state == EMPTY and not self.committed(timeout) and self._is_over(timeout):
                group = apply(group, Delete())
            return group, None

        self.change(timeout, clean)

    def _is_over(self, timeout: float) -> bool:
        metadata = self.offsets.group(self.group_id, timeout).metadata
        age = self.clock.now_ms() - (metadata.empty_since_ms if metadata and metadata.empty_since_ms is not None else self.clock.now_ms())
        return age > self.home.config.offsets_retention_minutes * 60_000
