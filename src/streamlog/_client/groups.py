"""The groups of a cluster, as one process sees them: opens what belongs to a group when it is first asked for."""

from __future__ import annotations

import weakref
from _thread import RLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

from streamlog._client.coordinator import Coordinator
from streamlog._client.inputs import checked_offsets
from streamlog._client.internal_topic import InternalTopic
from streamlog._client.offsets import by_topic_id
from streamlog._client.timers import Timers
from streamlog._client.transaction_coordinator import TransactionCoordinator
from streamlog._coord.group import DEAD, EMPTY
from streamlog._coord.group_file import GroupFile
from streamlog._coord.offsets import OffsetsLog
from streamlog._format import names
from streamlog._log.reader import end_offset
from streamlog._os import files
from streamlog._os.locks import LockFile
from streamlog._replica.home import Home
from streamlog.errors import ConfigurationError, GroupIdNotFoundError, UnknownTopicOrPartitionError
from streamlog.types import GroupDescription, GroupListing, MemberDescription, OffsetAndMetadata, TopicPartition


class Groups:
    """Safe to share between threads; belongs to one open home."""

    def __init__(self, home: Home, transactions: TransactionCoordinator) -> None:
        self.home, self.transactions = home, transactions
        self.timers = Timers(home)
        self._lock = RLock()
        # one of each group at a time (its thread lock stands before the file's), as long as somebody uses it: listing costs no descriptors
        self._coordinators: weakref.WeakValueDictionary[str, Coordinator] = weakref.WeakValueDictionary()
        self._offsets = InternalTopic(home, names.OFFSETS_TOPIC, home.config.offsets_topic_num_partitions, OffsetsLog)
        self._lock_files: tuple[LockFile, LockFile] | None = None

    def coordinator(self, group_id: str, timeout: float) -> Coordinator:
        """The coordinator of a group, whether it exists or not; makes `__consumer_offsets` where there is none yet."""
        with self._lock:
            found = self._coordinators.get(group_id)
            if found is None:
                check_group_id(group_id)
                offsets = self._offsets.keeper(group_id, timeout)
                found = self._coordinators[group_id] = Coordinator(self.home, group_id, self._file(group_id), offsets, self.transactions)
            return found

    def _file(self, group_id: str) -> GroupFile:
        home, run = self.home, f"{self.home.path}/{names.RUN}"
        if self._lock_files is None:
            path = f"{run}/{names.GROUP_LOCKS}"  # twice: a probe sees the locks of other descriptions only (H23)
            self._lock_files = home.keep(LockFile(home.fs, path)), home.keep(LockFile(home.fs, path))
        return GroupFile(home.fs, run, group_id, *self._lock_files)

    # ---- from outside --------------------------------------------------------------------------------------------------------

    def ids(self, timeout: float) -> list[str]:
        """Groups that exist: by a member or a commit."""
        return sorted(group_id for log in self._offsets.all(timeout) for group_id in log.groups(timeout))

    def listing(self, timeout: float) -> list[GroupListing]:
        """Groups and their states."""
        return [GroupListing(group_id, self._state(group_id, timeout)) for group_id in self.ids(timeout)]

    def _state(self, group_id: str, timeout: float) -> str:
        if not files.exists(f"{self.home.path}/{names.RUN}/{names.group(group_id)}"):
            return EMPTY  # nobody was in it since the boot
        return self.coordinator(group_id, timeout).current(timeout).state

    def existing(self, group_id: str, timeout: float) -> Coordinator:
        """The coordinator of a group that exists.  Raises GroupIdNotFoundError."""
        check_group_id(group_id)
        if self._offsets.partitions and group_id in self._offsets.keeper(group_id, timeout).groups(timeout):
            return self.coordinator(group_id, timeout)
        raise GroupIdNotFoundError(f"there is no group {group_id!r}: a group begins with its first member or commit")

    def describe(self, group_id: str, timeout: float) -> GroupDescription:
        """A group as it stands."""
        coordinator = self.existing(group_id, timeout)
        group = coordinator.current(timeout)
        offsets = coordinator.committed(timeout)
        members = sorted(group.members.values())
        described = tuple(
            MemberDescription(member.member_id, member.group_instance_id, member.client_id, member.pid, frozenset(member.owned)) for member in members
        )
        committed = {tp: found.public() for tp, found in sorted(offsets.items())}
        lag = {}
        for tp, at in committed.items():
            try:
                lag[tp] = max(0, self._end(tp, timeout) - at.offset)
            except UnknownTopicOrPartitionError:
                continue  # deleted meanwhile
        return GroupDescription(group_id, group.state, group.generation, group.assignor, described, committed, lag)

    def _end(self, tp: TopicPartition, timeout: float) -> int:
        log = self.home.log(self.home.metadata.topic(tp.topic), tp.partition, timeout)
        return end_offset(log, timeout)

    def offsets(self, group_id: str, timeout: float) -> dict[TopicPartition, OffsetAndMetadata]:
        """What a group committed."""
        return {tp: found.public() for tp, found in sorted(self.existing(group_id, timeout).committed(timeout).items())}

    def alter(self, group_id: str, offsets: Mapping[Any, Any], timeout: float) -> None:
        """Set a group's offsets.  Raises NonEmptyGroupError, UnknownTopicOrPartitionError, OffsetMetadataTooLargeError."""
        now, known = self.home.clock.agreed_ms(), self.home.metadata
        checked = checked_offsets(offsets, known)
        if checked:
            self.coordinator(group_id, timeout).alter(by_topic_id(checked, known, now), timeout=timeout)

    def maintain(self, timeout: float) -> None:
        """Drop expired offsets and the groups that are left with none."""
        for group_id in self.ids(timeout):
            self.coordinator(group_id, timeout).maintain(timeout)

    def close(self) -> None:
        """Stop the timers; the home closes the files.  The last process that leaves removes the state of groups that it deleted."""
        self.timers.close()
        deleted, self.home.deleted_groups = self.home.deleted_groups, set()
        if deleted and self.home.is_last():
            for group_id in deleted:
                if self._state(group_id, 1.0) == DEAD:
                    self.home.fs.unlink(f"{self.home.path}/{names.RUN}/{names.group(group_id)}")


def check_group_id(group_id: object) -> None:
    """A group's id is any text but the empty one."""
    try:
        named = isinstance(group_id, str) and bool(group_id.encode())
    except UnicodeEncodeError:
        named = False
    if not named:
        raise ConfigurationError(f"group_id={group_id!r}: a name, to be written as UTF-8, is wanted")
