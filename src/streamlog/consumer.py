"""`Consumer`: reads the partitions that it was assigned, or that its group gives it, at its own pace."""

from __future__ import annotations

import sys
from _thread import RLock
from operator import length_hint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from streamlog._client.groups import Groups
    from streamlog._client.membership import Membership
    from streamlog._client.offsets import Noted, Offsets
    from streamlog._coord.offsets import CommittedOffset
    from streamlog.config import ConsumerConfig
    from streamlog.metrics import ConsumerMetrics
    from streamlog.record_batch import RecordBatch

from streamlog._client import ends
from streamlog._client.cursor import Cursor
from streamlog._client.exclusive import AT_ONCE, exclusive
from streamlog._client.fetcher import Fetcher
from streamlog._client.inputs import check_timeout, checked_offsets, compiled, listed, milliseconds, topic_partition
from streamlog._client.listener import Listener
from streamlog._client.meter import ConsumerMeter
from streamlog._client.offsets import NOT_A_MEMBER, processed, under_topic_ids
from streamlog._client.share import Share
from streamlog._format.names import INTERNAL_TOPICS
from streamlog._log.log import Log
from streamlog._log.reader import beginning_offset, end_offset
from streamlog._os.clock import monotonic, sleep
from streamlog._os.wake import Bell
from streamlog._replica.home import Home
from streamlog._replica.metadata import TopicMetadata
from streamlog.errors import (
    ClosedError,
    CommitFailedError,
    ConcurrentModificationError,
    ConfigurationError,
    InvalidStateError,
    StorageFullError,
    StreamlogError,
    StreamlogTimeoutError,
    UnknownTopicOrPartitionError,
    WakeupError,
)
from streamlog.topic import offset_for_time
from streamlog.types import GroupMetadata, OffsetAndMetadata, OffsetAndTimestamp, Record, TopicPartition

_LOCK_PATIENCE = 0.1  # seconds: a poll that waits less for records waits this long for the group's lock


class Consumer:
    """Reads records.

    Belongs to one thread at a time: a second one gets ConcurrentModificationError (`wakeup()` excepted).  With a `group_id` the members
    of the group share the partitions of what they subscribe to, and commit how far they are; without one a consumer reads all partitions
    and commits nothing.
    """

    def __init__(
        self, home: Home, config: ConsumerConfig, look_into: Callable[[Log, float], None], groups: Groups | None = None
    ) -> None:
        """`look_into` sees to an open transaction of a log; `groups` is there if and only if there is a `group_id`."""
        self._home, self.config, self._groups = home, config, groups
        self._metadata = home.metadata
        self._version = home.metadata.version
        self._renew_lock()
        self._timeout = config.default_api_timeout_ms / 1000
        self._gathers = config.fetch_min_bytes > 1
        self._closed_reason = ""
        self._busy = self._fetching = False
        self._close_asked: tuple[bool, float | None] | None = None  # inside another call
        self._committed_only = config.isolation_level == "read_committed"
        self._fetcher = Fetcher(home, config, look_into)
        self._meter = ConsumerMeter()
        self._subscribed: set[str] = set()
        self._pattern: Any = None
        self._listener = Listener()
        self._assigned_by_hand = False
        self._woken = False
        self._chunk: list[Record] = []  # what iteration is handing out
        self._chunk_left: Iterator[Record] = iter(())
        self._chunk_cursors: list[Cursor] = []  # where it was taken from
        self._counted = 0  # records of `_chunk` that count as processed
        self._in_hand: Record | None = None  # what the loop has not asked beyond
        self._stores = False  # `store_offset` was used: nothing else says what is processed
        self._membership: Membership | None = None
        self._locked_out_since: float | None = None
        self._next_commit = monotonic() + config.auto_commit_interval_ms / 1000
        self._callbacks: list[Callable[[], object]] = []  # of `commit_async`
        self._handling: BaseException | None = None  # the exception that was being handled at the last poll: not the loop's
        if groups is not None:
            self._fetcher.committed, self._fetcher.generation = self._committed_of, self._generation
        ends.remember_consumer(self)

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._handling = sys.exc_info()[1] if kind is None else None  # the block's own outcome counts, not what is handled around it
        self.close()

    def __repr__(self) -> str:
        group = f" in group {self.config.group_id!r}" if self.config.group_id else ""
        return f"<streamlog.Consumer of {self._home.path}{group}{' (closed)' if self._closed_reason else ''}>"

    def _renew_lock(self) -> None:
        lock = RLock()  # held while a call runs: tells a second thread
        self._acquire, self._release = lock.acquire, lock.release

    def _check_open(self) -> None:
        if self._closed_reason:
            raise ClosedError(f"the consumer is closed: {self._closed_reason}")
        self._home.check_open()

    # ---- what counts as processed ------------------------------------------------------------------------------------------------

    def _count_chunk(self) -> None:
        """Of the records that iteration handed out all but the last are processed; the last when the loop asks for the next one."""
        handed = len(self._chunk) - length_hint(self._chunk_left)
        if handed:
            self._in_hand = self._chunk[handed - 1]
        if not self._stores:
            for record in self._chunk[self._counted : max(0, handed - 1)]:
                self._count(record)
        self._counted = max(self._counted, handed - 1)

    def _count(self, record: Record) -> None:
        cursor = self._fetcher.cursors.get(TopicPartition(record.topic, record.partition))
        if cursor is not None:
            cursor.process(record.offset + 1, record.leader_epoch, self._generation())

    def _take_back(self) -> None:
        """Records that iteration has fetched and not handed out: their partitions stand before them again."""
        self._count_chunk()
        left = self._chunk[len(self._chunk) - length_hint(self._chunk_left) :]
        list(self._chunk_left)  # the running loop finds its list at an end and comes back for more
        self._chunk, self._chunk_cursors, self._counted = [], [], 0
        first: dict[TopicPartition, int] = {}
        for record in left:
            first.setdefault(TopicPartition(record.topic, record.partition), record.offset)
        for tp, offset in first.items():
            cursor = self._fetcher.cursors.get(tp)
            if cursor is not None:
                cursor.move(offset)

    def _count_handed(self) -> None:
        """What the last `poll` returned is processed."""
        if not self._stores:
            generation = self._generation()
            for cursor in self._fetcher.handed:
                if cursor.position is not None:
                    cursor.process(cursor.position, -1 if cursor.reader is None else cursor.reader.epoch, generation)
        self._fetcher.handed = []

    def _asked_for_more(self) -> None:
        if self._fetcher.handed:
            self._count_handed()
        if self._in_hand is not None:
            record, self._in_hand = self._in_hand, None
            if not self._stores:
                self._count(record)

    @exclusive(keep_chunk=True)
    def store_offset(self, record: Record) -> None:
        """This record and those before it in its partition are processed; from now on only what is stored is committed.

        Raises: InvalidStateError where its partition is not assigned.
        """
        tp = topic_partition(record[:2])
        self._known(tp).process(record.offset + 1, record.leader_epoch, self._generation())
        self._stores = True

    # ---- what is read ----------------------------------------------------------------------------------------------------------

    @exclusive()
    def subscribe(self, topics: Iterable[str] = (), pattern: Any = None, listener: Any = None) -> None:
        """Read `topics`, or those whose name a regular expression matches whole; with a group, the partitions that it gives this member.

        Replaces an earlier subscription; what stays keeps its position.  Topics and partitions that come later are picked up and read from
        their beginning.  A `listener` has any of `on_partitions_assigned(tps)` (what was added), `on_partitions_revoked(tps)` (what is about
        to go: it may still be committed) and `on_partitions_lost(tps)` (gone already); all are called inside `poll`, on its thread.
        Raises: UnknownTopicOrPartitionError, InvalidStateError after `assign`.
        """
        if self._assigned_by_hand:
            raise InvalidStateError("subscribe and assign exclude each other: call unsubscribe() first")
        names = [topic.name if hasattr(topic, "_topic_id") else topic for topic in listed("topics", topics)]
        for name in names:
            if not isinstance(name, str):
                raise UnknownTopicOrPartitionError(f"{name!r} is not a topic's name")
        wanted = set(names)
        if bool(wanted) == (pattern is not None):
            raise ConfigurationError("subscribe takes either topics or a pattern")
        self._metadata.refresh(self._timeout)
        for topic in wanted:
            self._metadata.topic(topic)
        if pattern is not None:
            pattern = compiled(pattern)
        told = Listener(listener)
        self._subscribed, self._pattern, self._listener = wanted, pattern, told
        if self._groups is not None:
            self._version = self._metadata.version
            self._member().subscribe(tuple(sorted(wanted)), None if pattern is None else (pattern.pattern, pattern.flags))
        else:
            self._follow_metadata(first=True)

    @exclusive()
    def assign(self, partitions: Iterable[TopicPartition | tuple[str, int]]) -> None:
        """Read these partitions and no others, whatever a group says.  What stays keeps its position.

        With a `group_id` offsets are kept under its name, as long as it has no members.
        Raises: UnknownTopicOrPartitionError, InvalidStateError after `subscribe`.
        """
        if self._is_subscribed():
            raise InvalidStateError("assign and subscribe exclude each other: call unsubscribe() first")
        self._metadata.refresh(self._timeout)
        wanted = [topic_partition(tp) for tp in listed("partitions", partitions)]
        cursors = {tp: self._cursor(tp, self.config.auto_offset_reset) for tp in wanted}
        if any(tp not in cursors for tp in self._fetcher.cursors):
            self._commit_by_itself(self._timeout)
        self._fetcher.set_cursors(cursors)
        self._assigned_by_hand = bool(cursors)

    @exclusive()
    def unsubscribe(self) -> None:
        """Read nothing, and leave the group."""
        try:
            self._depart(monotonic() + self._timeout, autocommit=True)
        finally:
            listener, self._listener = self._listener, Listener()
            self._subscribed, self._pattern, self._assigned_by_hand = set(), None, False
        listener.raise_error()

    def assignment(self) -> set[TopicPartition]:
        """The partitions that are read."""
        return set(self._fetcher.cursors)

    def subscription(self) -> set[str]:
        """The topics that are subscribed to."""
        if self._pattern is not None:
            return {tp.topic for tp in self._fetcher.cursors}
        return set(self._subscribed)

    def _is_subscribed(self) -> bool:
        return bool(self._subscribed) or self._pattern is not None

    def _cursor(self, tp: TopicPartition, reset: str) -> Cursor:
        metadata = self._metadata.topic(tp.topic)
        known = self._fetcher.cursors.get(tp)
        if known is not None and known.topic_id == metadata.topic_id:
            return known
        return Cursor(tp, metadata.topic_id, self._home.log(metadata, tp.partition, self._timeout), reset)

    def _follow_metadata(self, *, first: bool = False) -> None:
        """Topics were created, grew or went.  Partitions that appear later are read from their beginning."""
        self._home.refresh(self._timeout)
        self._version = self._metadata.version
        if not self._is_subscribed():
            return
        topics = self._subscribed_topics()
        if self._groups is not None:
            return  # the group sees to it
        reset = self.config.auto_offset_reset if first else "earliest"
        cursors: dict[TopicPartition, Cursor] = {}
        for topic in topics:
            for number in range(topic.partitions):
                tp = TopicPartition(topic.name, number)
                cursors[tp] = self._cursor(tp, reset)
        added = [tp for tp in cursors if tp not in self._fetcher.cursors]
        self._fetcher.set_cursors(cursors)
        if added:
            self._listener.hear("on_partitions_assigned", added)

    def _subscribed_topics(self) -> list[TopicMetadata]:
        known = self._metadata.topics
        if self._pattern is not None:
            return [topic for name, topic in sorted(known.items()) if self._pattern.fullmatch(name) and name not in INTERNAL_TOPICS]
        return [self._metadata.topic(name) for name in sorted(self._subscribed)]

    # ---- the group -------------------------------------------------------------------------------------------------------------

    def _member(self) -> Membership:
        """This consumer's membership; nobody hears of it before the first poll."""
        if self._membership is None:
            from streamlog._client.membership import Membership  # here: a consumer without a group does not need it

            assert self._groups is not None
            assert self.config.group_id is not None
            coordinator = self._groups.coordinator(self.config.group_id, self._timeout)
            self._membership = Membership(coordinator, self._groups.timers, self._metadata, self.config)
        return self._membership

    def _generation(self) -> int:
        return -1 if self._membership is None else self._membership.generation

    def _follow_group(self, member: Membership, deadline: float) -> None:
        """Do what the group asks for.  Where its lock, or room on the disk, cannot be had a poll goes on with the partitions that there are,
        up to the default time-out.
        """
        patience = max(_LOCK_PATIENCE, min(deadline - monotonic(), self._timeout))
        try:
            member.poll(Share(self, patience), patience)
            self._locked_out_since = None
        except (StreamlogTimeoutError, StorageFullError) as error:
            now = monotonic()
            self._locked_out_since = self._locked_out_since or now
            in_vain = isinstance(error, StorageFullError) and not self._fetcher.rotation
            if in_vain or now - self._locked_out_since >= self._timeout:
                self._locked_out_since = None
                raise
        finally:
            self._listener.raise_error()

    def _drop(self, partitions: Iterable[TopicPartition]) -> None:
        gone = set(partitions)
        self._fetcher.set_cursors({tp: cursor for tp, cursor in self._fetcher.cursors.items() if tp not in gone})

    def _receive(self, partitions: Mapping[TopicPartition, int]) -> None:
        """Partitions are ours from now on, each since a generation.  One whose topic is gone already is left out."""
        member = self._member()
        cursors, added = dict(self._fetcher.cursors), []
        for tp, generation in partitions.items():
            reset = "earliest" if member.read_from_beginning(tp) else self.config.auto_offset_reset
            try:
                if tp.topic not in self._metadata.topics or tp.partition >= self._metadata.topics[tp.topic].partitions:
                    self._metadata.refresh(self._timeout)
                cursor = self._cursor(tp, reset)
            except UnknownTopicOrPartitionError:
                continue
            cursor.assignment = generation
            cursors[tp] = cursor
            added.append(tp)
        self._fetcher.set_cursors(cursors)
        self._meter.rebalances += 1
        self._listener.hear("on_partitions_assigned", added)

    def _depart(self, deadline: float, *, autocommit: bool) -> None:
        """Give everything up: commit, tell the listener, leave the group."""
        member = self._membership
        try:
            if autocommit:
                self._commit_by_itself(max(0.0, deadline - monotonic()) / 2)  # the other half is for leaving
            if member is not None and self._fetcher.cursors:
                self._listener.hear("on_partitions_revoked", sorted(self._fetcher.cursors))
            self._fetcher.set_cursors({})
            if member is not None and not self._home.closed:
                member.leave(max(0.0, deadline - monotonic()))
        except BaseException:
            self._fetcher.set_cursors({})
            if member is not None:
                member.abandon()
            raise

    def group_metadata(self) -> GroupMetadata:
        """This consumer's membership as it is now, for a producer that commits its offsets.  Raises InvalidStateError without a group."""
        self._need_group()
        if self._membership is None:
            return GroupMetadata(self.config.group_id or "", -1, "", self.config.group_instance_id)
        return self._membership.metadata()

    @exclusive()
    def enforce_rebalance(self) -> None:
        """Ask the group for a new assignment; it comes with the next polls of its members."""
        self._need_group()
        if not self._is_subscribed():
            raise InvalidStateError("only a consumer that is subscribed takes part in rebalances")
        if self._membership is not None and self._membership.member_id:
            self._membership.rebalance(self._timeout)

    def _need_group(self) -> None:
        if self._groups is None:
            raise InvalidStateError("the consumer has no group: give it a group_id")

    # ---- commits ---------------------------------------------------------------------------------------------------------------

    @exclusive(keep_chunk=True)
    def commit(self, offsets: Mapping[Any, Any] | None = None) -> None:
        """Commit offsets (`{partition: offset or OffsetAndMetadata}`; the next to read), all or none; without them what is processed.

        Records of the last `poll` count as processed then; the record that a `for` loop has in hand does not.  Durability: as configured.
        Raises: CommitFailedError and its leaves (the partitions have moved: poll), FencedInstanceIdError, InvalidStateError (no group),
        OffsetMetadataTooLargeError, UnknownTopicOrPartitionError, StreamlogTimeoutError.
        """
        self._commit(self._to_commit(offsets), self._timeout, explicit=offsets is not None)
        self._run_callbacks()

    @exclusive(keep_chunk=True)
    def commit_async(
        self,
        offsets: Mapping[Any, Any] | None = None,
        callback: Callable[[dict[TopicPartition, OffsetAndMetadata], BaseException | None], object] | None = None,
    ) -> None:
        """Commit, and have the outcome told: `callback(offsets, error)` runs in the next `poll`, `commit` or `close`, on its thread.

        The commit itself is written at once, in order with all others; it is not tried again.
        """
        wanted, error = self._to_commit(offsets), None
        try:
            self._commit(wanted, self._timeout, explicit=offsets is not None)
        except StreamlogError as failure:
            error = failure
        if callback is not None:
            self._callbacks.append(lambda: callback(wanted, error))

    @exclusive(keep_chunk=True)
    def _for_transaction(self) -> tuple[Offsets, Noted, GroupMetadata]:
        """What a producer commits for this consumer: all that it has returned, with the generations in which that was noted."""
        self._need_group()
        if self.config.enable_auto_commit:
            raise ConfigurationError("the consumer commits by itself, whatever becomes of the transaction: make it with enable_auto_commit=False")
        wanted = self._to_commit(None)
        record = self._record_in_hand()
        if record is not None:
            wanted[TopicPartition(record.topic, record.partition)] = OffsetAndMetadata(record.offset + 1, record.leader_epoch)
        member = self._member()
        written, noted = self._noted(wanted, member, explicit=False)
        metadata = member.metadata()
        if self._is_subscribed() and not metadata.member_id:
            metadata = metadata._replace(member_id=NOT_A_MEMBER)  # it was in the group, or will be
        return written, noted, metadata

    def _record_in_hand(self) -> Record | None:
        """What a `for` loop has in hand, unless only stored offsets count."""
        handed = len(self._chunk) - length_hint(self._chunk_left)
        return self._chunk[handed - 1] if handed and not self._stores else self._in_hand

    def _to_commit(self, offsets: Mapping[Any, Any] | None) -> dict[TopicPartition, OffsetAndMetadata]:
        self._need_group()
        if offsets is None:
            self._count_handed()
            if self._chunk:
                self._count_chunk()
            return processed(self._fetcher.rotation)
        self._metadata.refresh(self._timeout)
        return checked_offsets(offsets, self._metadata)

    def _commit(self, offsets: dict[TopicPartition, OffsetAndMetadata], timeout: float, *, explicit: bool = False) -> None:
        member, cursors = self._member(), self._fetcher.cursors
        written, noted = self._noted(offsets, member, explicit=explicit)
        if not written:
            return
        if self._is_subscribed():
            member.commit(written, noted, timeout)
        else:
            member.coordinator.commit_from_outside(noted, written, durability=self.config.durability, timeout=timeout)
        self._meter.commits += 1
        for tp in noted:
            if tp in cursors:
                cursors[tp].committed = offsets[tp].offset

    def _noted(self, offsets: Mapping[TopicPartition, OffsetAndMetadata], member: Membership, *, explicit: bool) -> tuple[Offsets, Noted]:
        now = self._home.clock.agreed_ms()
        return under_topic_ids(offsets, self._fetcher.cursors, self._metadata, member.generation, now, explicit=explicit)

    def _commit_by_itself(self, timeout: float, partitions: Iterable[TopicPartition] | None = None) -> None:
        """Auto-commit of what is processed and not committed yet.  What goes wrong is logged: the records are read again."""
        if self._groups is None or not self.config.enable_auto_commit or self._home.closed:
            return
        cursors = self._fetcher.cursors
        chosen = cursors.values() if partitions is None else [cursors[tp] for tp in partitions if tp in cursors]
        offsets = processed([cursor for cursor in chosen if cursor.processed != cursor.committed])
        try:
            if offsets:
                self._commit(offsets, timeout)
        except StreamlogError as error:
            import logging

            level = logging.INFO if isinstance(error, CommitFailedError) else logging.WARNING
            logging.getLogger("streamlog").log(level, "auto-commit of group %r failed: %s", self.config.group_id, error)

    def _run_callbacks(self) -> None:
        while self._callbacks:
            self._callbacks.pop(0)()

    def _committed_of(self, cursor: Cursor) -> CommittedOffset | None:
        return self._member().coordinator.start_offset(cursor.topic_id, cursor.tp.partition, self._timeout)

    @exclusive(keep_chunk=True)
    def committed(self, tp: TopicPartition | tuple[str, int]) -> OffsetAndMetadata | None:
        """What the group committed for a partition, assigned or not; None where there is nothing."""
        self._need_group()
        wanted = topic_partition(tp)
        self._metadata.refresh(self._timeout)
        found = self._member().coordinator.offset_of(self._metadata.topic(wanted.topic).topic_id, wanted.partition, self._timeout)
        return None if found is None else found.public()

    # ---- reading ---------------------------------------------------------------------------------------------------------------

    @exclusive(fetches=True)
    def poll(self, timeout_ms: int = 0, max_records: int | None = None) -> list[Record]:
        """The next records, at most `max_records` (`max_poll_records`), waiting up to `timeout_ms` for the first.

        With a group this is where the consumer joins, takes and gives up partitions, hears of it and commits.
        Raises: CorruptRecordError (`seek` to its `next_offset` to go on), UnknownTopicOrPartitionError (deleted), WakeupError,
        NoOffsetForPartitionError and OffsetOutOfRangeError (`auto_offset_reset="none"`), SerializationError (a deserializer failed: the records
        before it were returned; `seek` to its `next_offset` to pass over it), InvalidStateError (nothing is subscribed or assigned),
        FencedInstanceIdError, InconsistentGroupProtocolError.
        """
        limit = self.config.max_poll_records if max_records is None else max_records
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ConfigurationError(f"max_records={max_records!r}: a whole number from 1 is wanted")
        return self._fetch(monotonic() + milliseconds(timeout_ms), self._fetcher.take_all, limit)

    @exclusive(fetches=True)
    def poll_batches(self, timeout_ms: int = 0) -> list[RecordBatch]:
        """The next batches as columns in place, up to `max_partition_fetch_bytes` of each partition; waits like `poll`."""
        return self._fetch(monotonic() + milliseconds(timeout_ms), self._fetcher.take_all_batches)

    def _fetch(self, deadline: float, take: Callable[..., list[Any]], *args: int) -> list[Any]:
        if self._fetching:
            raise InvalidStateError("a poll inside a poll: its listener, or a signal handler, cannot fetch records")
        if not self._reads():
            raise InvalidStateError("the consumer reads nothing: name topics, or call subscribe() or assign() first")
        try:
            self._fetching, self._handling = True, sys.exc_info()[1]
            self._asked_for_more()
            while True:
                self._look_around(deadline)
                if self._close_asked is not None or not self._reads():  # a listener's doing
                    return []
                self._fetcher.place()
                self._fetcher.see_to_transactions()
                if self._gathers:
                    self._fetcher.gather(deadline, self._other_bells(), self._is_called)
                if found := take(*args):
                    self._fetcher.hand_over()
                    self._meter.fetched(found, self._fetcher.read)
                    return found
                if not self._fetcher.wait(deadline, self._other_bells(), self._is_called, self._wakes_at()):
                    return []
        finally:
            self._fetching = False

    def _reads(self) -> bool:
        return self._is_subscribed() or self._assigned_by_hand

    def _look_around(self, deadline: float) -> None:
        if self._woken:
            self._woken = False
            raise WakeupError("wakeup() was called")
        if self._callbacks:
            self._run_callbacks()
        if self._groups is not None:
            now = monotonic()
            if now >= self._next_commit:
                self._next_commit = now + self.config.auto_commit_interval_ms / 1000
                self._commit_by_itself(_LOCK_PATIENCE)
        if self._metadata.changed() or self._metadata.version != self._version:
            self._follow_metadata()
            self._listener.raise_error()
        member = self._membership
        if member is not None and self._is_subscribed():
            member.beat_poll(max(1, int(1000 * (self._next_commit - monotonic()))))
            if member.is_due():
                self._follow_group(member, deadline)

    def _wakes_at(self) -> float:
        """When a sleeping poll has to commit, or to show that it lives (monotonic s)."""
        if self._groups is None:
            return float("inf")
        return min(self._next_commit, monotonic() + self.config.max_poll_interval_ms / 4000)

    def _is_called(self) -> bool:
        """Whether a sleeping poll has something else to do than to take records."""
        member = self._membership
        is_due = member is not None and self._is_subscribed() and member.is_due()
        return is_due or self._woken or self._close_asked is not None or self._metadata.changed()

    def _other_bells(self) -> Sequence[Bell]:
        bells = [self._metadata.log.bell] if self._is_subscribed() else []
        if self._membership is not None and self._is_subscribed():
            bells.append(self._membership.coordinator.file.bell)
        return bells

    def __iter__(self) -> Iterator[Record]:
        """Records one by one, waiting for more; ends after `consumer_timeout_ms` without one, and when a signal handler closes the consumer.

        At least once: a record counts as processed, and may be committed, when the loop asks for the next one, so not after `break` or an
        exception: who goes on from what is committed reads it again.  This consumer itself goes on after it.  With a group that is also when
        the loop commits, gives partitions up and takes others, whatever is left of the records that were fetched together.
        """
        while True:
            if self._groups is None:
                yield from self._chunk_left
            else:
                for record in self._chunk_left:
                    yield record
                    if self._has_to_look():
                        break  # what is left goes back where it came from
            if self._chunk and not length_hint(self._chunk_left):  # handed out to the end, and asked for more
                self._fetcher.handed, self._chunk, self._chunk_cursors, self._counted, self._in_hand = self._chunk_cursors, [], [], 0, None
            if not self._next_chunk():
                return

    def _has_to_look(self) -> bool:
        """Whether a loop in a group has something to do before the next record: the timers say so."""
        member = self._membership
        return monotonic() >= self._next_commit if member is None or not self._is_subscribed() else member.is_called()

    @exclusive(fetches=True)
    def _next_chunk(self) -> bool:
        """Fetch what iteration hands out next; False where there was nothing for too long."""
        idle = self.config.consumer_timeout_ms
        records = self._fetch(monotonic() + (1e9 if idle is None else idle / 1000), self._fetcher.take_all, self.config.max_poll_records)
        self._chunk_cursors, self._fetcher.handed = self._fetcher.handed, []
        self._chunk, self._chunk_left, self._counted = records, iter(records), 0
        return bool(records)

    def _forget_parent(self) -> None:
        """In a forked child: this consumer, and what it has fetched, are the parent's."""
        self._renew_lock()
        list(self._chunk_left)  # a running loop finds its records at an end
        self._chunk, self._chunk_cursors = [], []
        self._closed_reason = "it belongs to the process that this one was forked from"

    def wakeup(self) -> None:
        """End a `poll` of another thread, or the next one, with WakeupError.  Any thread may call it."""
        self._woken = True
        self._ring()

    # ---- positions -------------------------------------------------------------------------------------------------------------

    def _known(self, tp: Any) -> Cursor:
        cursor = self._fetcher.cursors.get(topic_partition(tp))
        if cursor is None:
            raise InvalidStateError(f"{tp} is not assigned to this consumer")
        return cursor

    @exclusive()
    def position(self, tp: TopicPartition | tuple[str, int]) -> int:
        """Offset of the next record to be returned.

        Raises: UnstableOffsetCommitError: an open transaction of the group decides on it.
        """
        cursor = self._known(tp)
        if cursor.position is None:
            self._fetcher.begin(cursor)
        assert cursor.position is not None
        return cursor.position

    def seek(self, tp: TopicPartition | tuple[str, int], offset: int) -> None:
        """Go on at `offset`; out of range, the reset policy acts at the next poll."""
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
            raise ConfigurationError(f"offset={offset!r}: a whole number from 0 is wanted")
        self._move([tp], lambda _: offset)

    def seek_to_beginning(self, *partitions: TopicPartition | tuple[str, int]) -> None:
        """Go to the first record that can be read; without partitions: in all assigned."""
        self._move(partitions, lambda cursor: beginning_offset(cursor.log, self._timeout))

    def seek_to_end(self, *partitions: TopicPartition | tuple[str, int]) -> None:
        """Go to the end; without partitions: in all assigned."""
        self._move(partitions, lambda cursor: self._end_of(cursor.log))

    def seek_to_time(self, timestamp_ms: int) -> None:
        """Go to the first record at or after a time (ms) in all assigned partitions; to the end where there is none."""

        def place(cursor: Cursor) -> int:
            found = offset_for_time(cursor.log, timestamp_ms, self._timeout, committed=self._committed_only)
            return self._end_of(cursor.log) if found is None else found.offset

        self._move((), place)

    def seek_to_committed(self) -> None:
        """Go to what the group committed in all assigned partitions; by the reset policy where there is nothing."""
        self._need_group()
        self._move((), lambda _: None)

    @exclusive()
    def _move(self, partitions: Sequence[Any], place: Callable[[Cursor], int | None]) -> None:
        """Change positions.  A commit then commits the new ones: it is by request that they go back."""
        cursors = [self._known(tp) for tp in partitions] or list(self._fetcher.rotation)
        for cursor, offset in [(cursor, place(cursor)) for cursor in cursors]:
            cursor.move(offset)
            if offset is None:
                cursor.processed, self._fetcher.unplaced = None, True
            elif not self._stores:
                cursor.process(offset, -1, self._generation())
            if self._in_hand is not None and cursor.tp == self._in_hand[:2]:
                self._in_hand = None
            self._fetcher.handed = [other for other in self._fetcher.handed if other is not cursor]

    def pause(self, *partitions: TopicPartition | tuple[str, int]) -> None:
        """Return nothing of these partitions until `resume`; their positions stay."""
        self._set_paused(partitions, True)

    def resume(self, *partitions: TopicPartition | tuple[str, int]) -> None:
        """Go on with paused partitions."""
        self._set_paused(partitions, False)

    @exclusive()
    def _set_paused(self, partitions: Sequence[Any], paused: bool) -> None:
        for cursor in [self._known(tp) for tp in partitions]:
            cursor.paused = paused

    def paused(self) -> set[TopicPartition]:
        """The partitions that are paused."""
        return {tp for tp, cursor in self._fetcher.cursors.items() if cursor.paused}

    def lag(self) -> dict[TopicPartition, int]:
        """Records between position and end, by assigned partition."""
        return {tp: max(0, self._end_of(cursor.log) - self.position(tp)) for tp, cursor in list(self._fetcher.cursors.items())}

    def metrics(self) -> ConsumerMetrics:
        """What this consumer did so far and lately; see `streamlog.metrics`.  Any thread may ask, also after `close`."""
        return self._meter.metrics(dict(self._fetcher.cursors), committed=self._committed_only)

    def beginning_offsets(self, partitions: Iterable[TopicPartition | tuple[str, int]]) -> dict[TopicPartition, int]:
        """First offset that can be read, by partition, assigned or not."""
        return {tp: beginning_offset(log, self._timeout) for tp, log in self._logs(partitions)}

    def end_offsets(self, partitions: Iterable[TopicPartition | tuple[str, int]]) -> dict[TopicPartition, int]:
        """Offset after the last visible record, by partition, assigned or not; under "read_committed" the last stable offset."""
        return {tp: self._end_of(log) for tp, log in self._logs(partitions)}

    def _end_of(self, log: Log) -> int:
        if self._committed_only:
            self._fetcher.see_to_transaction(log)  # what a dead producer left open is no reason to stop here
        return end_offset(log, self._timeout, committed=self._committed_only)

    def offsets_for_times(self, times: Mapping[TopicPartition | tuple[str, int], int]) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """The first record at or after a time (ms), by partition; None where there is none."""
        if not hasattr(times, "values"):
            raise ConfigurationError(f"times={times!r}: a mapping of partitions to milliseconds is wanted")
        found, only = zip(self._logs(times), times.values()), self._committed_only
        return {tp: offset_for_time(log, timestamp_ms, self._timeout, committed=only) for (tp, log), timestamp_ms in found}

    @exclusive()
    def _logs(self, partitions: Iterable[Any]) -> list[tuple[TopicPartition, Log]]:
        self._metadata.refresh(self._timeout)
        wanted = [topic_partition(tp) for tp in listed("partitions", partitions)]
        return [(tp, self._home.log(self._metadata.topic(tp.topic), tp.partition, self._timeout)) for tp in wanted]

    def close(self, autocommit: bool = True, timeout: float | None = None) -> None:
        """Stop reading: commit what is processed (if `autocommit` and the configuration say so), tell the listener, leave the group.

        Where an exception came since, records of the last `poll` do not count as processed.  Waits for other processes at most
        `timeout` seconds (None: `default_api_timeout_ms`); a group that could not be told finds out by itself.  A static member stays in
        its group until its session ends.  Inside another call (of a listener, of a signal handler) it happens when that call ends.
        Batches that are held stay valid.
        """
        check_timeout(timeout)
        if self._closed_reason:
            return
        held: list[bool] = []
        try:
            held.extend(map(self._acquire, AT_ONCE))
            if not held[0]:
                raise ConcurrentModificationError("a consumer belongs to one thread; another one is using it")
            if self._busy:
                self._close_asked = autocommit, timeout
            else:
                self._close(autocommit, monotonic() + (self._timeout if timeout is None else timeout))
        finally:
            if True in held:
                self._release()

    def close_from_outside(self, timeout: float) -> bool:
        """Close while another thread is inside a call: that thread closes the consumer when the call ends.  Returns whether it did."""
        self._close_asked, deadline = (True, timeout), monotonic() + timeout
        while not self._closed_reason and monotonic() < deadline:
            try:
                self.close(timeout=timeout)  # the call may have ended before it was asked
            except ConcurrentModificationError:
                self._ring()
                sleep(0.002)
        return bool(self._closed_reason)

    def _ring(self) -> None:
        """End the sleep of a poll."""
        for bell in [self._home.bell, self._metadata.log.bell, *(cursor.log.bell for cursor in self._fetcher.rotation[:1])]:
            bell.ring()

    def _close(self, autocommit: bool, deadline: float) -> None:
        self._close_asked = None
        if self._chunk:
            self._take_back()
        if sys.exc_info()[1] is not self._handling:
            self._fetcher.handed = []  # an exception since the last poll
        self._count_handed()
        self._busy = True
        try:
            self._depart(deadline, autocommit=autocommit)
            self._run_callbacks()
            self._listener.raise_error()
        except BaseException:
            if self._membership is not None:
                self._membership.abandon()
            raise
        finally:
            self._closed_reason = self._closed_reason or "close() was called"
            self._chunk, self._chunk_left, self._handling = [], iter(()), None
            self._fetcher.close()
            self._busy = False
