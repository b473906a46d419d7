"""Groups as users drive them, against a model: joins, leaves, deaths, stalls, subscription and partition changes, in any order."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import streamlog
from streamlog import TopicPartition

STRATEGIES = ["cooperative-sticky", "sticky", "range", "roundrobin"]
TOPICS = ("a", "b")
SESSION_MS, POLL_MS = 20_000, 60_000


class Reader:
    """A consumer, and what the model knows of it."""

    def __init__(self, consumer: streamlog.Consumer, topics: list[str], instance: str | None) -> None:
        self.consumer, self.topics, self.instance = consumer, topics, instance
        self.owns: set[TopicPartition] = set()  # what it was told
        self.stalled = False

    def on_partitions_assigned(self, tps: list[TopicPartition]) -> None:
        assert not self.owns & set(tps), "told twice of a partition"
        self.owns |= set(tps)

    def on_partitions_revoked(self, tps: list[TopicPartition]) -> None:
        assert self.owns >= set(tps), "a partition was revoked that it did not have"
        self.owns -= set(tps)

    def on_partitions_lost(self, tps: list[TopicPartition]) -> None:
        assert self.owns >= set(tps), "a partition was lost that it did not have"
        self.owns -= set(tps)


class Groups(RuleBasedStateMachine):
    """At most five readers of one group over two topics."""

    @initialize(strategy=st.sampled_from(STRATEGIES))
    def begin(self, strategy: str) -> None:
        self.place = Path(tempfile.mkdtemp(dir="/dev/shm"))
        self.log = streamlog.open(self.place / "log")
        self.strategy = strategy
        self.readers: list[Reader] = []
        self.zombies: list[Reader] = []
        self.gone: list[streamlog.Consumer] = []  # killed: kept, so that no finalizer runs
        self.partitions = {"a": 3, "b": 1}
        for topic, count in self.partitions.items():
            self.log.create_topic(topic, partitions=count)
        self.producer = self.log.producer(linger_ms=0)
        self.written: dict[TopicPartition, int] = {}
        self.processed: dict[TopicPartition, set[int]] = {}
        self.committed: dict[TopicPartition, int] = {}
        self.generation = 0

    def teardown(self) -> None:
        if hasattr(self, "log"):
            try:
                for reader in [*self.readers, *self.zombies]:
                    self.wake(reader)
                self.settle_all()
                assert streamlog.check(self.log) == []
            finally:
                self.log.close()
                shutil.rmtree(self.place)

    # ---- rules -----------------------------------------------------------------------------------------------------------------

    def awake(self) -> list[Reader]:
        return [reader for reader in self.readers if not reader.stalled]

    @precondition(lambda self: len(self.readers) < 5)
    @rule(topics=st.sampled_from([["a"], ["b"], ["a", "b"]]), instance=st.sampled_from([None, None, "S"]))
    def join(self, topics: list[str], instance: str | None) -> None:
        if any(reader.instance == instance for reader in self.readers if instance):
            return
        consumer = self.log.consumer(
            group_id="g", group_instance_id=instance, auto_offset_reset="earliest", partition_assignment_strategy=self.strategy,
            session_timeout_ms=SESSION_MS, max_poll_interval_ms=POLL_MS, auto_commit_interval_ms=0,
        )  # fmt: skip
        reader = Reader(consumer, topics, instance)
        consumer.subscribe(topics, listener=reader)
        self.readers.append(reader)

    @precondition(lambda self: self.awake())
    @rule(at=st.integers(0, 4), times=st.integers(1, 3))
    def poll(self, at: int, times: int) -> None:
        for _ in range(times):
            self._poll(self.awake()[at % len(self.awake())])

    def _poll(self, reader: Reader) -> None:
        for record in reader.consumer.poll(max_records=3):
            tp = TopicPartition(record.topic, record.partition)
            assert tp in reader.owns
            assert int(record.value) == record.offset
            self.processed.setdefault(tp, set()).add(record.offset)

    @precondition(lambda self: self.awake())
    @rule(at=st.integers(0, 4))
    def commit(self, at: int) -> None:
        reader = self.awake()[at % len(self.awake())]
        try:
            reader.consumer.commit()
        except streamlog.CommitFailedError:
            assert not self._is_member(reader), "a member's commit was refused"

    def _is_member(self, reader: Reader) -> bool:
        member_id = reader.consumer.group_metadata().member_id
        return bool(member_id) and member_id in {member.member_id for member in self.log.describe_group("g").members}

    @precondition(lambda self: self.awake())
    @rule(at=st.integers(0, 4))
    def close(self, at: int) -> None:
        reader = self.awake()[at % len(self.awake())]
        self.readers.remove(reader)
        reader.consumer.close()
        assert not reader.owns

    @precondition(lambda self: self.readers)
    @rule(at=st.integers(0, 4))
    def kill(self, at: int) -> None:
        """Its lock goes, and nothing else happens any more."""
        reader = self.readers.pop(at % len(self.readers))
        self._silence(reader)
        member = reader.consumer._membership
        assert member is not None
        if member._slot >= 0:
            member._file.free_slot(member._slot)
        self.gone.append(reader.consumer)
        self.log._children.discard(reader.consumer)

    def _silence(self, reader: Reader) -> None:
        member = reader.consumer._membership
        assert member is not None
        member._timers.remove(member)
        reader.stalled = True

    @precondition(lambda self: self.awake())
    @rule(at=st.integers(0, 4))
    def stall(self, at: int) -> None:
        """It stops for a while: no polls, no heartbeats."""
        self._silence(self.awake()[at % len(self.awake())])

    def wake(self, reader: Reader) -> None:
        member = reader.consumer._membership
        assert member is not None
        reader.stalled = False
        if member._slot >= 0:
            member._timers.add(member)

    @precondition(lambda self: len(self.awake()) < len(self.readers))
    @rule()
    def go_on(self) -> None:
        for reader in self.readers:
            if reader.stalled:
                if reader.consumer.group_metadata().member_id and not self._is_member(reader):
                    before = self.log.group_offsets("g")
                    for tp in list(reader.owns)[:1]:
                        with pytest.raises(streamlog.CommitFailedError):
                            reader.consumer.commit({tp: 0})
                    assert self.log.group_offsets("g") == before
                self.wake(reader)

    @rule(ms=st.sampled_from([SESSION_MS + 1, POLL_MS + 1]))
    def time_passes(self, ms: int) -> None:
        """Whoever is awake polls in time: first, so that nobody is late, and after."""
        self.log._home.clock.advance(ms // 2)
        for reader in self.awake():
            self._poll(reader)
        self.log._home.clock.advance(ms - ms // 2)
        for reader in self.awake():
            member = reader.consumer._membership
            assert member is not None
            member.attention = True
            self._poll(reader)

    @precondition(lambda self: self.awake())
    @rule(at=st.integers(0, 4), topics=st.sampled_from([["a"], ["b"], ["a", "b"]]))
    def subscribe(self, at: int, topics: list[str]) -> None:
        reader = self.awake()[at % len(self.awake())]
        reader.topics = topics
        reader.consumer.subscribe(topics, listener=reader)

    @precondition(lambda self: sum(self.partitions.values()) < 8)
    @rule(topic=st.sampled_from(TOPICS))
    def grow(self, topic: str) -> None:
        self.partitions[topic] += 1
        self.log.topic(topic).add_partitions(self.partitions[topic])

    @rule(topic=st.sampled_from(TOPICS), at=st.integers(0, 7), count=st.integers(1, 5))
    def produce(self, topic: str, at: int, count: int) -> None:
        tp = TopicPartition(topic, at % self.partitions[topic])
        for _ in range(count):
            self.producer.send(topic, str(self.written.get(tp, 0)), partition=tp.partition)
            self.written[tp] = self.written.get(tp, 0) + 1

    @precondition(lambda self: self.awake())
    @rule()
    def rebalance(self) -> None:
        try:
            self.awake()[0].consumer.enforce_rebalance()
        except streamlog.UnknownMemberIdError:
            assert not self._is_member(self.awake()[0])

    @rule()
    def settle(self) -> None:
        if not any(reader.stalled for reader in self.readers):
            self.settle_all()

    def settle_all(self) -> None:
        """Time passes until the dead are expired; then, left alone, everything is somebody's and everything is read."""
        self.time_passes(SESSION_MS + 1)
        for _ in range(60):
            for reader in self.awake():
                self._poll(reader)
        if not self.awake() or any(reader.stalled for reader in self.readers):
            return
        group = self.log.describe_group("g")
        assert group.state == "Stable"
        assert len(group.members) == len(self.readers)
        by_member = {member.member_id: member.assignment for member in group.members}
        for reader in self.readers:
            assert by_member[reader.consumer.group_metadata().member_id] == reader.owns == reader.consumer.assignment()
            assert {tp.topic for tp in reader.owns} <= set(reader.topics)
        wanted = {topic for reader in self.readers for topic in reader.topics}
        everything = {TopicPartition(topic, n) for topic in wanted for n in range(self.partitions[topic])}
        owned = [tp for reader in self.readers for tp in reader.owns]
        assert sorted(owned) == sorted(everything), "an orphan partition, or one with two owners"
        for tp in everything:
            assert self.processed.get(tp, set()) == set(range(self.written.get(tp, 0))), f"records of {tp} were skipped"

    # ---- invariants ------------------------------------------------------------------------------------------------------------

    @invariant()
    def never_two_owners(self) -> None:
        if not hasattr(self, "log"):
            return
        member = next((reader.consumer._membership for reader in self.readers if reader.consumer._membership is not None), None)
        group = None if member is None else member._file.load()
        if group is None:
            return
        owned = [tp for one in group.members.values() for tp in one.owned]
        assert len(owned) == len(set(owned))
        assert group.generation >= self.generation
        self.generation = group.generation

    @invariant()
    def offsets_never_go_back(self) -> None:
        if not hasattr(self, "log"):
            return
        try:
            found = {tp: offset.offset for tp, offset in self.log.group_offsets("g").items()}
        except streamlog.GroupIdNotFoundError:
            return
        for tp, offset in found.items():
            assert offset >= self.committed.get(tp, 0), f"{tp} went back"
            assert set(range(offset)) <= self.processed.get(tp, set()), f"{tp}: committed and not processed"
        self.committed = found


LONG = bool(os.environ.get("STREAMLOG_LONG"))
Groups.TestCase.settings = settings(max_examples=1500 if LONG else 120, stateful_step_count=60 if LONG else 40, deadline=None)
TestGroups = Groups.TestCase
