"""What a process does as the coordinator of a group: changes its state under the group's lock, and writes its offsets.

The log record comes first, then the group's file (H35).  No user code runs here, and nothing waits under the lock (decision 8).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import TypeAlias, TypeVar

    from streamlog._client.transaction_coordinator import TransactionCoordinator
    from streamlog._coord.group_file import GroupFile
    from streamlog._log.pending import Pending

    R = TypeVar("R")
    Offsets: TypeAlias = "Mapping[tuple[bytes, int], CommittedOffset]"  # by topic id and partition

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
from streamlog._coord.group_file import HOLDER, VERSION
from streamlog._coord.offsets import CommittedOffset, GroupMetadata, GroupOffsets, OffsetsLog, commit_record, expired, metadata_record
from streamlog._format.batch import TRANSACTIONAL
from streamlog._log.fold import packed
from streamlog._os import process
from streamlog._os.clock import left, monotonic
from streamlog._os.locks import under
from streamlog._replica.again import starting_over
from streamlog._replica.home import Home
from streamlog.errors import StreamlogError, UnstableOffsetCommitError
from streamlog.types import TopicPartition


class Coordinator:
    """A group, as this process coordinates it.  Safe to share between threads."""

    def __init__(self, home: Home, group_id: str, file: GroupFile, offsets: OffsetsLog, transactions: TransactionCoordinator) -> None:
        self.home, self.group_id, self.file, self.offsets, self._transactions = home, group_id, file, offsets, transactions
        self.clock = home.clock
        self._has_looked = False  # this process has compared the live state with what the log remembers

    # ---- the group's state ---------------------------------------------------------------------------------------------------

    def change(self, timeout: float, function: Callable[[Group], tuple[Group, R]]) -> tuple[Group, R, int]:
        """Under the group's lock: `function` gets the group and returns it as it is to be, with an answer.

        Returns the group, the answer, and the version of the group's file that they are of.
        Raises: StreamlogTimeoutError, naming who holds the lock, and what `function` raises; nothing is changed then.
        """
        deadline = monotonic() + timeout
        if self.file.load() is None:
            self.offsets.refresh(timeout)  # a long fold happens outside the lock
        changed = starting_over(deadline, lambda: under(self.file.lock, left(deadline), self._change, function, deadline))
        self.offsets.keep_up(timeout)
        return changed

    def _change(self, function: Callable[[Group], tuple[Group, R]], deadline: float) -> tuple[Group, R, int]:
        self.file.words[HOLDER] = process.token()
        try:
            before = self._load(deadline)
            after, answer = function(before)
            if after is not before:
                self._store(before, after, deadline)
            return after, answer, self.file.words[VERSION]
        finally:
            self.file.words[HOLDER] = 0

    def _load(self, deadline: float) -> Group:
        """The live state; where there is none since the boot, what the log remembers: nobody is in the group."""
        found = self.file.load()
        if found is not None and self._has_looked:
            return found
        kept = self.offsets.group(self.group_id, left(deadline))
        if found is not None:
            recorded = -1 if kept.metadata is None else kept.metadata.epoch
            self._has_looked = found.epoch >= recorded
            # else it is of another time: the disk came back as it was, or who wrote the record died before the state
            return found if self._has_looked else found._replace(epoch=recorded + 1)
        if kept.metadata is None:
            return Group(self.group_id, dead=not kept.offsets)
        metadata = kept.metadata
        topics = {name: GroupTopic(*topic) for name, topic in metadata.topics.items()}
        group = Group(
            self.group_id, epoch=metadata.epoch, generation=metadata.epoch, assignor=metadata.assignor, topics=topics,
            patterns=metadata.patterns, dead=False,
        )  # fmt: skip
        if metadata.empty_since_ms is None:
            self._write([self._metadata_record(group)], deadline)
        return group

    def _store(self, before: Group, after: Group, deadline: float) -> None:
        """Commit step: the store of the group file's version."""
        if after.dead and not before.dead:
            gone = [commit_record(self.group_id, *key, None) for key in self.offsets.places(self.group_id, left(deadline))]
            self._write([*gone, metadata_record(self.group_id, None)], deadline)
        elif (after.generation, after.dead, not after.members) != (before.generation, before.dead, not before.members):
            records = [self._metadata_record(after)]
            if after.members and not before.members:
                records += self._expired_records(before, deadline)  # what is too old does not come back to life
            self._write(records, deadline)
        self.file.store(after)

    def _metadata_record(self, group: Group) -> tuple[list[object], list[object] | None]:
        topics = {name: list(topic) for name, topic in group.topics.items()}
        empty_since = None if group.members else self.clock.agreed_ms()
        return metadata_record(self.group_id, GroupMetadata(group.epoch, group.assignor, empty_since, topics, group.patterns))

    def _write(self, records: Iterable[tuple[list[object], list[object] | None]], deadline: float) -> Pending:
        return self.offsets.append(list(records), self.clock.now_ms(), left(deadline))

    def tidied(self, group: Group, by: str, *, may_expire: bool = False) -> Group:
        """The group without its dead, static ones once their session is over.  Under the group's lock.

        A member that `may_expire` others judges those that live, too: who was silent or did not poll for too long (H33).
        """
        now = self.clock.monotonic_ms()
        for member_id, member in group.members.items():
            if member_id == by:
                continue
            alive = self.file.is_alive(member.slot)
            if not alive and member.group_instance_id is None:
                group = apply(group, Death(member_id))
            elif may_expire or not alive:
                heartbeat_ms, poll_ms = self.file.ages(member, now)
                if heartbeat_ms > member.session_timeout_ms or (may_expire and poll_ms > member.max_poll_interval_ms):
                    group = apply(group, Expire(member_id, by, heartbeat_ms, poll_ms))
        return group

    def current(self, timeout: float) -> Group:
        """The group as it stands, without its dead."""
        return self.change(timeout, lambda group: (self.tidied(group, ""), None))[0]

    # ---- offsets -------------------------------------------------------------------------------------------------------------

    def commit_from_outside(self, noted: Mapping[TopicPartition, int], offsets: Offsets, *, durability: str, timeout: float) -> None:
        """Commit as nobody in particular: counts while the group has no members."""
        self.commit(Commit("", None, noted), offsets, durability=durability, timeout=timeout)

    def commit(self, event: Commit, offsets: Offsets, *, durability: str, timeout: float) -> None:
        """Commit offsets, all or none.  Raises CommitFailedError and its leaves, FencedInstanceIdError, StreamlogTimeoutError."""
        self._commit(lambda group: self._checked(group, event), offsets, durability, timeout)

    def alter(self, offsets: Offsets, *, timeout: float) -> None:
        """Set offsets from outside.  Raises NonEmptyGroupError."""
        self._commit(lambda group: apply(self.tidied(group, ""), Alter()), offsets, "os", timeout)

    def _commit(self, check: Callable[[Group], Group], offsets: Offsets, durability: str, timeout: float) -> None:
        deadline = monotonic() + timeout
        self._sync_sources(durability, offsets, deadline)
        records = [commit_record(self.group_id, *key, committed) for key, committed in offsets.items()]
        _, batch, _ = self.change(left(deadline), lambda group: (check(group), self._write(records, deadline)))
        if durability == "fsync":
            self.offsets.log.wait_synced(batch, left(deadline))

    def commit_in_transaction(
        self, event: Commit, offsets: Offsets, batch: Pending, *, durability: str, timeout: float
    ) -> None:
        """Write offsets as a `batch` of a transaction, all or none: they are pending until it ends.  Raises like `commit`."""
        deadline = monotonic() + timeout
        self._sync_sources(durability, offsets, deadline)
        records = [commit_record(self.group_id, *key, committed._replace(member_id=event.member_id)) for key, committed in offsets.items()]
        packed(records, self.clock.now_ms(), batch)
        batch.attributes |= TRANSACTIONAL

        def step(group: Group) -> tuple[Group, None]:
            checked = self._checked(group, event)
            self.offsets.log.append(batch, left(deadline))
            return checked, None

        self.change(left(deadline), step)

    def _checked(self, group: Group, event: Commit) -> Group:
        """The group, if it takes the commit; strangers see it without its dead."""
        return apply(group if event.member_id else self.tidied(group, ""), event)

    def _sync_sources(self, durability: str, offsets: Offsets, deadline: float) -> None:
        """An offset that is on the disk speaks of records that are (H29)."""
        if durability == "fsync":
            for topic_id, partition in offsets:
                self.home.log(self.home.metadata.by_id[topic_id], partition, left(deadline)).sync(left(deadline))

    def start_offset(self, topic_id: bytes, partition: int, timeout: float) -> CommittedOffset | None:
        """Where a member that has got a partition begins.  An offset that is pending has to be waited for (H37, KIP-447).

        Raises: UnstableOffsetCommitError: not known yet, look again.
        """
        self._end_pending(timeout)
        self.offsets.catch_up(timeout)
        pending = self.offsets.group(self.group_id, timeout).pending.get((topic_id, partition))
        if pending:
            who = f"a transaction of producer {min(pending)}"
            raise UnstableOffsetCommitError(f"group {self.group_id!r}: {who} holds an offset of partition {partition}, and is open")
        return self._offset_of(topic_id, partition, timeout)  # after the look: nobody but the owner can have put one there since

    def _end_pending(self, timeout: float) -> None:
        """Who needs the group's offsets sees to transactions that hold some: of who is dead, late or not in the group any more."""
        pending = self.offsets.group(self.group_id, timeout).pending
        if not pending or self.offsets.is_inside():
            return
        group = self.file.load()
        senders = {
            (producer_id, held.epoch, "" if held.committed is None else held.committed.member_id)
            for by_producer in list(pending.values())
            for producer_id, held in list(by_producer.items())
        }
        for producer_id, epoch, member_id in senders:
            gone = bool(member_id) and (group is None or member_id not in group.members)
            try:
                self._transactions.end_for_member(self.offsets.log, producer_id, epoch, gone=gone, timeout=timeout)
            except StreamlogError:
                pass  # some partition of it does not take its marker: these offsets are decided all the same, or stay pending

    def committed(self, timeout: float) -> dict[TopicPartition, CommittedOffset]:
        """Offsets that count: of topics that are there, and not expired."""
        self._end_pending(timeout)
        found = self.offsets.group(self.group_id, timeout)
        is_expired = self._is_expired(found)
        by_id = self.home.metadata.by_id
        return {
            TopicPartition(by_id[topic_id].name, partition): committed
            for (topic_id, partition), committed in list(found.offsets.items())
            if topic_id in by_id and not is_expired((topic_id, partition), committed)
        }

    def offset_of(self, topic_id: bytes, partition: int, timeout: float) -> CommittedOffset | None:
        """What was committed for one partition."""
        self._end_pending(timeout)
        return self._offset_of(topic_id, partition, timeout)

    def _offset_of(self, topic_id: bytes, partition: int, timeout: float) -> CommittedOffset | None:
        found = self.offsets.group(self.group_id, timeout)
        committed = found.offsets.get((topic_id, partition))
        if committed is not None and self._is_expired(found)((topic_id, partition), committed):
            return None
        return committed

    def _is_expired(self, found: GroupOffsets, group: Group | None = None) -> Callable[[tuple[bytes, int], CommittedOffset], bool]:
        return expired(found, group or self.file.load(), self.clock.agreed_ms(), self.home.config.offsets_retention_minutes)

    def _expired_records(self, group: Group, deadline: float) -> list[tuple[list[object], list[object] | None]]:
        found = self.offsets.group(self.group_id, left(deadline))
        is_expired = self._is_expired(found, group)
        removed = self.home.metadata.removed
        gone = [
            key for key, committed in list(found.offsets.items())
            if key[0] in removed or (is_expired(key, committed) and key not in found.pending)  # what a transaction holds is in use
        ]  # fmt: skip
        return [commit_record(self.group_id, *key, None) for key in gone]

    def delete(self, timeout: float) -> None:
        """Delete the group and its offsets.  Raises NonEmptyGroupError."""
        self.change(timeout, lambda group: (apply(self.tidied(group, ""), Delete()), None))
        self.home.deleted_groups.add(self.group_id)

    def maintain(self, timeout: float) -> None:
        """Write down which offsets have expired; a group that is empty and has none left goes."""
        deadline = monotonic() + timeout

        def clean(group: Group) -> tuple[Group, None]:
            group = self.tidied(group, "")
            records = self._expired_records(group, deadline)
            if records:
                self._write(records, deadline)
            if group.state == EMPTY and self._is_over(deadline):
                group = apply(group, Delete())
            return group, None

        self.change(timeout, clean)

    def _is_over(self, deadline: float) -> bool:
        found = self.offsets.group(self.group_id, left(deadline))
        since = None if found.metadata is None else found.metadata.empty_since_ms
        is_used = found.offsets or found.pending or since is None
        return not is_used and self.clock.agreed_ms() - (since or 0) > self.home.config.offsets_retention_minutes * 60_000
