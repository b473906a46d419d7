"""`streamlog.check`: every invariant of docs/invariants.md, checked on a cluster's files."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from streamlog._format.transaction_index import Aborted

from streamlog._client.groups import Groups
from streamlog._client.transaction_coordinator import TransactionCoordinator
from streamlog._coord.group import Group
from streamlog._coord.offsets import OffsetsLog
from streamlog._coord.transaction import ONGOING, PREPARING
from streamlog._coord.transaction_log import TransactionsLog
from streamlog._format import batch as fmt
from streamlog._format import checkpoint, names
from streamlog._format.batch import SEGMENT_HEADER_SIZE, UnknownVersionError
from streamlog._log.aborted import read_index
from streamlog._log.partition import PartitionLog
from streamlog._log.producer_state import ProducerStates, snapshots_that_count
from streamlog._log.reader import LogReader
from streamlog._log.segment import SegmentView
from streamlog._log.state import BOOT, DIRTY, END, EPOCH, FAILED, HWM, OPEN, POSITION, SEGMENT, START, SYNCED
from streamlog._os import files
from streamlog._os.locks import under
from streamlog._replica.home import Home
from streamlog._replica.metadata import TOPIC_ID, TopicMetadata
from streamlog.cluster import Cluster, open
from streamlog.errors import (
    InvalidProducerEpochError,
    OutOfOrderSequenceError,
    StorageError,
    UnknownTopicOrPartitionError,
    UnsupportedCompressionError,
)
from streamlog.types import Finding, TopicPartition


def check(location: str | os.PathLike[str] | Cluster, *, progress: Callable[[int, int], None] | None = None) -> list[Finding]:
    """Verify every checksum and every invariant; an empty list means that all hold.

    Other processes may go on writing meanwhile.  `progress` is called with the bytes done and the bytes in all.
    Raises: NotAClusterError and what else `open` raises.
    """
    if isinstance(location, Cluster):
        return _Check(location._home, location.timeout, progress).run()
    with open(location, create=False) as cluster:
        return _Check(cluster._home, cluster.timeout, progress).run()


class _Check:
    """One run."""

    def __init__(self, home: Home, timeout: float, progress: Callable[[int, int], None] | None) -> None:
        self._home, self._timeout, self._progress = home, timeout, progress
        self._findings: list[Finding] = []
        self._done = self._total = 0
        self._producers = ProducerStates()  # of the log that is being looked at, up to where that is
        self._snapshots: list[ProducerStates] = []  # that are still to come
        self._aborted: list[Aborted] = []  # transactions whose abort marker stands in the segment that is being looked at
        self._whole = True  # no damage so far: of what is missing nobody knows what it was

    def run(self) -> list[Finding]:
        """Check metadata, directories, then each partition."""
        home = self._home
        home.metadata.refresh(self._timeout)
        topics = [TopicMetadata(names.METADATA_TOPIC, TOPIC_ID, 1, {}), *home.metadata.topics.values()]
        self._check_directories(topics)
        logs = [replica for topic in topics for number in range(topic.partitions) for replica in self._replicas(topic, number)]
        self._total = sum(self._size(log) for log in logs)
        for log in logs:
            try:
                self._check_log(log)
            except UnknownTopicOrPartitionError:
                continue  # deleted meanwhile
            except (StorageError, FileNotFoundError) as error:
                self._found("I1", log.directory, str(error))
        if home.is_replicated:
            for key in sorted(home.metadata.partitions):
                self._check_replicas(key)
        self._check_groups()
        self._check_transactions()
        return self._findings

    def _found(self, invariant: str, path: str, message: str) -> None:
        self._findings.append(Finding(invariant, path, message))

    def _size(self, log: PartitionLog) -> int:
        try:
            return log.sizes()[1]
        except (OSError, StorageError):
            return 0

    def _check_directories(self, topics: list[TopicMetadata]) -> None:
        """I8: each replica in the metadata has its directory."""
        home = self._home
        for topic in topics:
            for number in range(topic.partitions):
                for broker in self._brokers(topic, number):
                    directory = home.directory(topic.name, number, broker)
                    if not files.is_directory(directory):
                        self._found("I8", directory, "the partition's directory is missing")

    def _brokers(self, topic: TopicMetadata, number: int) -> list[int]:
        """The brokers that have a replica of a partition and are online."""
        home = self._home
        if not home.is_replicated:
            return [0]
        alive = home.controller.alive()
        if topic.topic_id == TOPIC_ID:
            return [copy for copy in home.voters() if copy in alive or copy not in home.brokers]
        return [broker for broker in home.metadata.partitions[topic.topic_id, number].replicas if broker in alive]

    def _replicas(self, topic: TopicMetadata, number: int) -> list[PartitionLog]:
        home = self._home
        if not home.is_replicated:
            return [home.log(topic, number, self._timeout).replica]
        log = home.quorum if topic.topic_id == TOPIC_ID else home.replicated(topic, number, self._timeout)
        assert log is not None
        log.ensure_valid(self._timeout)
        return [log.on(broker) for broker in self._brokers(topic, number)]

    def _check_replicas(self, key: tuple[bytes, int]) -> None:
        """I16: the leader is in sync, and no in-sync replica lacks what is shown.  I17: below the high watermark replicas are equal."""
        topic, state = self._home.metadata.by_id.get(key[0]), self._home.metadata.partitions.get(key)
        if topic is None or state is None:
            return
        if state.leader < 0:
            out = [broker for broker in state.replicas if broker not in self._home.controller.alive()]
            path = self._home.directory(topic.name, key[1], state.replicas[0])
            self._found("I16", path, f"{topic.name}-{key[1]} has no leader; of its replicas {list(state.replicas)} brokers {out} are out")
            return
        log = self._home.replicated(topic, key[1], self._timeout)
        path, end = log.on(state.leader).directory, log.high_watermark
        if state.leader not in state.in_sync or not set(state.in_sync) <= set(state.replicas):
            self._found("I16", path, f"leader {state.leader}, in sync {state.in_sync}, replicas {state.replicas}")
        for broker in state.in_sync:
            replica = log.on(broker)
            if replica.words[HWM] < end and broker in log.state.in_sync:
                self._found("I16", replica.directory, f"an in-sync replica ends at {replica.words[HWM]}, below the high watermark {end}")
            elif broker != state.leader:
                self._compare(log.on(state.leader), replica, end)

    def _compare(self, leader: PartitionLog, follower: PartitionLog, end: int) -> None:
        ours, theirs = LogReader(leader, leader.start_offset), LogReader(follower, follower.start_offset)
        try:
            while ours.offset < end:
                found, copied = ours.next(), theirs.next()
                if found is None or copied is None or found.data[24:] != copied.data[24:] or found.base_offset != copied.base_offset:
                    self._found("I17", follower.directory, f"at offset {ours.offset} it differs from the leader's {leader.directory}")
                    return
        except (StorageError, FileNotFoundError):
            return  # damage is told where the replica itself is looked at

    def _check_log(self, log: PartitionLog) -> None:
        under(log.lock, self._timeout, log.look_again)  # what somebody who died left half done is finished first
        seen = under(log.lock, self._timeout, self._words, log)
        bases = log.segments()
        offset, epoch = bases[0], 0
        self._producers, self._snapshots = ProducerStates(), snapshots_that_count(log, seen[HWM])
        self._whole = True
        for base, limit in zip(bases, [*bases[1:], None]):
            if base != offset:
                self._found("I1", log.directory, f"a segment ends at offset {offset}, the next begins at {base}")
            offset, epoch = self._check_segment(log, base, limit, epoch, seen)
        self._check_words(log, seen, offset, epoch)
        self._check_epochs(log)

    @staticmethod
    def _words(log: PartitionLog) -> list[int]:
        return log.words[: OPEN + 1].tolist()

    def _check_segment(self, log: PartitionLog, base: int, limit: int | None, epoch: int, seen: list[int]) -> tuple[int, int]:
        """I1, I3, I4, I6: header, batches one after the other, checksums, columns, index.  Returns end offset and epoch."""
        view = SegmentView(log.fs, log.directory, base)
        header = view.header
        if (header.topic_id, header.partition) != (log.topic_id, log.partition):
            self._found("I1", view.path, f"the header names topic {header.topic_id.hex()}, partition {header.partition}")
        if header.leader_epoch < epoch:
            self._found("I5", view.path, f"leader epoch {header.leader_epoch} after {epoch}")
        end = seen[HWM] if limit is None else limit
        ahead = seen[POSITION] if base == seen[SEGMENT] else view.size
        position, offset, positions = SEGMENT_HEADER_SIZE, base, {}
        while offset < end:
            try:
                batch = view.batch(position, ahead)
                if batch.base_offset != offset or batch.leader_epoch != header.leader_epoch:
                    raise ValueError(f"offset {batch.base_offset} of epoch {batch.leader_epoch}; {offset} of {header.leader_epoch} is wanted")
                self._check_batch(batch)
            except UnsupportedCompressionError as error:
                self._found("I6", view.path, f"position {position}, offset {offset}: cannot be looked into: {error}")
            except (ValueError, UnknownVersionError) as error:
                self._found("I3", view.path, f"position {position}, offset {offset}: {error}")
                self._producers, self._snapshots, self._whole = ProducerStates(), [], False  # what is missing cannot be counted in
                beyond = view.after_damage(position, offset, min(ahead, view.size))
                if beyond is None:
                    return end, header.leader_epoch
                offset, position = beyond
                continue
            positions[position] = offset
            self._check_producer(log, view.path, batch)
            offset, position = batch.next_offset, position + batch.length
            self._tell(batch.length)
        if offset != end:
            self._found("I1", view.path, f"its batches end at offset {offset}, it ends at {end}")
        self._check_index(view, positions)
        self._check_transaction_index(log, base, offset)
        return offset, header.leader_epoch

    def _check_producer(self, log: PartitionLog, path: str, batch: fmt.Batch) -> None:
        """I11: a producer's batches follow one another.  I12: snapshots are the fold of what is below them."""
        states = self._producers
        if batch.producer_id >= 0 and not batch.attributes & fmt.CONTROL:
            producer, count = (batch.producer_id, batch.base_sequence, batch.producer_epoch), batch.last_offset_delta + 1
            entry = states.entries.get(batch.producer_id)
            expires = log.settings.producer_id_expiration_ms
            if entry is not None and batch.max_timestamp - entry[4] < expires:
                try:
                    if states.check(producer, count) is not None:
                        self._found("I11", path, f"offset {batch.base_offset}: a batch of producer {batch.producer_id} is there twice")
                except (OutOfOrderSequenceError, InvalidProducerEpochError) as error:
                    self._found("I11", path, f"offset {batch.base_offset}: {error}")
        aborted, is_marked = states.take_in(batch) or (None, True)
        if aborted is not None and is_marked:
            self._aborted.append(aborted)
        elif aborted is not None and self._whole:
            self._found("I13", path, f"offset {batch.base_offset}: the transaction of its producer that began at offset {aborted[1]} has no marker")
        while self._snapshots and self._snapshots[0].offset <= batch.next_offset:
            snapshot = self._snapshots.pop(0)
            same = snapshot.entries.items() <= states.entries.items() and snapshot.open == states.open  # who expired is not in it
            if snapshot.offset == batch.next_offset and not same:
                self._found("I12", f"{log.directory}/{names.snapshot(snapshot.offset)}", "it is not the fold of the batches below it")

    @staticmethod
    def _check_batch(batch: fmt.Batch) -> None:
        """I6: the columns fit the batch and its counts."""
        if not 0 < batch.count <= batch.last_offset_delta + 1:
            raise ValueError(f"{batch.count} records in {batch.last_offset_delta + 1} offsets")
        columns = batch.columns()
        for column in (columns.keys, columns.values, columns.headers):
            if column is not None:
                column.check()
        timestamps = [batch.base_timestamp] if columns.timestamps is None else columns.timestamps.tolist()
        if max(timestamps) != batch.max_timestamp:
            raise ValueError(f"max_timestamp {batch.max_timestamp}, {max(timestamps)} found")

    def _check_index(self, view: SegmentView, positions: dict[int, int]) -> None:
        """I4: entries rise, and point at batches."""
        index = view.index()
        last = (-1, -1, -1)
        for number in range(len(index)):
            entry = index.entry(number)
            if entry[1] in positions and positions[entry[1]] != entry[0]:
                self._found("I4", view.path, f"index entry {number} says offset {entry[0]}, position {entry[1]} has {positions[entry[1]]}")
            if not (entry[0] > last[0] and entry[1] > last[1] and entry[2] >= last[2]):
                self._found("I4", view.path, f"index entry {number} {entry} after {last}")
            last = entry

    def _check_transaction_index(self, log: PartitionLog, base: int, end: int) -> None:
        """I13: a segment's transaction index has the transactions whose abort marker stands in the segment."""
        aborted, self._aborted = self._aborted, []
        entries = read_index(log, base)
        found = {entry for entry in entries or () if entry[2] < end}
        if self._whole and entries is not None and found != set(aborted):
            path = f"{log.directory}/{names.transaction_index(base)}"
            self._found("I13", path, f"it has {sorted(found)}, the segment's markers abort {sorted(aborted)}")

    def _check_words(self, log: PartitionLog, seen: list[int], offset: int, epoch: int) -> None:
        """I2, I7, I14: the words agree with the log, where nobody is inside."""
        path = f"{log.directory} (state)"
        if seen[DIRTY] or seen[FAILED] or seen[BOOT] != log.boot:
            return  # the next one inside derives them anew
        if not seen[START] <= seen[SYNCED] <= seen[HWM] or seen[HWM] != seen[END]:
            self._found("I2", path, f"start {seen[START]}, synced {seen[SYNCED]}, high watermark {seen[HWM]}, end {seen[END]}")
        if (offset, epoch) != (seen[END], seen[EPOCH]):
            self._found("I7", path, f"the log ends at {offset} in epoch {epoch}, the words say {seen[END]} in {seen[EPOCH]}")

        if self._whole and seen[OPEN] != self._producers.first_open() + 1:
            self._found("I14", path, f"open transactions begin at {self._producers.open}, the words say {seen[OPEN] - 1}")

    def _check_epochs(self, log: PartitionLog) -> None:
        """I5: epochs and their starts rise."""
        entries = log.leader_epochs().entries
        if entries != sorted(set(entries)) or [start for _, start in entries] != sorted({start for _, start in entries}):
            self._found("I5", f"{log.directory}/{names.LEADER_EPOCHS}", f"entries do not rise: {entries}")
        try:
            checkpoint.decode(files.read_file(log.fs, f"{log.directory}/{names.LEADER_EPOCHS}"), 2)
        except (FileNotFoundError, ValueError):
            pass  # derived: it is not used then

    def _check_groups(self) -> None:
        """I9: each group's live state.  I10: a fold that begins at the snapshot is the fold of everything."""
        topic = self._home.metadata.topics.get(names.OFFSETS_TOPIC)
        groups = Groups(self._home, TransactionCoordinator(self._home))
        for number in range(0 if topic is None else topic.partitions):
            assert topic is not None
            log = self._home.log(topic, number, self._timeout)
            end = log.high_watermark
            try:
                found, whole = OffsetsLog(log).state(self._timeout), OffsetsLog(log, use_snapshot=False).state(self._timeout)
            except (StorageError, ValueError, TypeError) as error:
                self._found("I10", log.directory, f"its records cannot be folded: {error}")
                continue
            if found != whole and log.high_watermark == end:
                self._found("I10", f"{log.directory}/{names.OFFSETS_SNAPSHOT}", "the snapshot is not the fold of the records before it")
            for group_id, *_ in whole:
                path = f"{self._home.path}/{names.RUN}/{names.group(group_id)}"
                if files.exists(path):
                    group = groups.coordinator(group_id, self._timeout).change(self._timeout, lambda group: (group, None))[0]
                    self._check_group(group, path)

    def _check_transactions(self) -> None:
        """I15: the states of transactional ids."""
        topic = self._home.metadata.topics.get(names.TRANSACTIONS_TOPIC)
        owners: dict[int, str] = {}
        for number in range(0 if topic is None else topic.partitions):
            assert topic is not None
            log = self._home.log(topic, number, self._timeout)
            end = log.high_watermark
            found, whole = TransactionsLog(log), TransactionsLog(log, use_snapshot=False)
            try:
                found.refresh(self._timeout)
                whole.refresh(self._timeout)
            except (StorageError, ValueError, TypeError) as error:
                self._found("I15", log.directory, f"its records cannot be folded: {error}")
                continue
            if sorted(found.all()) != sorted(whole.all()) and log.high_watermark == end:
                self._found("I15", f"{log.directory}/{names.TRANSACTIONS_SNAPSHOT}", "the snapshot is not the fold of the records before it")
            for transaction in whole.all():
                other = owners.setdefault(transaction.producer_id, transaction.transactional_id)
                if other != transaction.transactional_id:
                    self._found("I15", log.directory, f"{other!r} and {transaction.transactional_id!r} share producer id {transaction.producer_id}")
                if bool(transaction.partitions) != (transaction.state in (ONGOING, *PREPARING)):
                    self._found("I15", log.directory, f"{transaction.transactional_id!r}: {transaction.state} with {transaction.partitions}")

    def _check_group(self, group: Group, path: str) -> None:
        owners: dict[TopicPartition, str] = {}
        for member in group.members.values():
            for tp, generation in member.owned.items():
                if tp in owners:
                    self._found("I9", path, f"{tp} of group {group.group_id!r} has two owners: {owners[tp]} and {member.member_id}")
                owners[tp] = member.member_id
                if not generation <= member.generation:
                    self._found("I9", path, f"{member.member_id} took {tp} in generation {generation} and is at {member.generation}")
            if not member.generation <= group.generation <= group.epoch:
                self._found("I9", path, f"generation {member.generation} of {member.member_id}, {group.generation} of epoch {group.epoch}")
        targets = [tp for member in group.members.values() for tp in member.target]
        if len(targets) != len(set(targets)):
            self._found("I9", path, f"the target of group {group.group_id!r} gives a partition to two members")

    def _tell(self, size: int) -> None:
        self._done += size
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)
