"""What users of groups see: shares, commits, listeners, static members, administration, bad input."""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import streamlog
from streamlog import OffsetAndMetadata, TopicPartition
from streamlog._client import listener
from streamlog._coord.group_file import VERSION
from streamlog._coord.offsets import CommittedOffset
from streamlog.assignors import RangeAssignor, Subscription

G = {"group_id": "g", "auto_offset_reset": "earliest"}


@pytest.fixture
def topic(log: streamlog.Cluster) -> Iterator[streamlog.Cluster]:
    """Topic "t" with 4 partitions of 10 records each."""
    log.create_topic("t", partitions=4)
    fill(log)
    return log


def fill(log: streamlog.Cluster, count: int = 10, topic: str = "t") -> None:
    with log.producer() as producer:
        for partition in log.topic(topic).partitions:
            for number in range(count):
                producer.send(topic, str(number), partition=partition)


def tp(partition: int, topic: str = "t") -> TopicPartition:
    return TopicPartition(topic, partition)


class Listener:
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, list[int]]] = []

    def on_partitions_assigned(self, tps: list[TopicPartition]) -> None:
        self.heard.append(("assigned", [tp.partition for tp in tps]))

    def on_partitions_revoked(self, tps: list[TopicPartition]) -> None:
        self.heard.append(("revoked", [tp.partition for tp in tps]))

    def on_partitions_lost(self, tps: list[TopicPartition]) -> None:
        self.heard.append(("lost", [tp.partition for tp in tps]))

    def take(self) -> list[tuple[str, list[int]]]:
        heard, self.heard = self.heard, []
        return heard


def settle(*consumers: streamlog.Consumer, rounds: int = 6) -> list[streamlog.Record]:
    """Poll all in turn until nothing changes."""
    records = []
    for _ in range(rounds):
        for consumer in consumers:
            records += consumer.poll()
    return records


def shares(*consumers: streamlog.Consumer) -> list[list[int]]:
    return [sorted(tp.partition for tp in consumer.assignment()) for consumer in consumers]


# ---- joining, sharing, leaving ---------------------------------------------------------------------------------------


def test_a_lone_member_gets_everything_in_its_first_poll(topic: streamlog.Cluster) -> None:
    with topic.consumer("t", **G) as consumer:
        assert consumer.assignment() == set()
        assert len(consumer.poll()) == 40
        assert shares(consumer) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("strategy", ["range", "roundrobin", "sticky", "cooperative-sticky", ["cooperative-sticky", "range"]])
def test_members_share_and_take_over(topic: streamlog.Cluster, strategy: object) -> None:
    a = topic.consumer("t", partition_assignment_strategy=strategy, **G)
    b = topic.consumer("t", partition_assignment_strategy=strategy, **G)
    assert len(settle(a, b)) == 40
    assert sorted(shares(a, b)[0] + shares(a, b)[1]) == [0, 1, 2, 3]
    assert [len(share) for share in shares(a, b)] == [2, 2]
    a.close()
    assert settle(b) == []  # committed by the one that left
    assert shares(b) == [[0, 1, 2, 3]]
    b.close()
    assert topic.group_offsets("g") == {tp(n): OffsetAndMetadata(10, 0) for n in range(4)}


def test_cooperative_members_keep_what_stays(topic: streamlog.Cluster) -> None:
    heard_a, heard_b = Listener(), Listener()
    a, b = topic.consumer(**G), topic.consumer(**G)
    a.subscribe(["t"], listener=heard_a)
    b.subscribe(["t"], listener=heard_b)
    a.poll()
    assert heard_a.take() == [("assigned", [0, 1, 2, 3])]
    settle(b, a)
    assert heard_a.take() == [("revoked", [2, 3]), ("assigned", [])]
    assert heard_b.take() == [("assigned", []), ("assigned", [2, 3])]
    b.close()
    assert heard_b.take() == [("revoked", [2, 3])]
    a.poll()
    assert heard_a.take() == [("assigned", [2, 3])]


def test_eager_members_give_everything_up_first(topic: streamlog.Cluster) -> None:
    heard = Listener()
    a = topic.consumer(partition_assignment_strategy="sticky", **G)
    a.subscribe(["t"], listener=heard)
    a.poll()
    b = topic.consumer("t", partition_assignment_strategy="sticky", **G)
    settle(b, a)
    assert heard.take() == [("assigned", [0, 1, 2, 3]), ("revoked", [0, 1, 2, 3]), ("assigned", [0, 1])]


def test_two_groups_read_everything_each(topic: streamlog.Cluster) -> None:
    for group in ("g1", "g2"):
        with topic.consumer("t", group_id=group, auto_offset_reset="earliest") as consumer:
            assert len(consumer.poll()) == 40


def test_more_members_than_partitions_wait_in_reserve(topic: streamlog.Cluster) -> None:
    consumers = [topic.consumer("t", **G) for _ in range(6)]
    settle(*consumers)
    assert sorted(map(len, shares(*consumers))) == [0, 0, 1, 1, 1, 1]
    with pytest.raises(streamlog.InvalidStateError):
        consumers[0].position(tp(0)) and consumers[1].position(tp(0))


def test_different_subscriptions(topic: streamlog.Cluster) -> None:
    topic.create_topic("u", partitions=2)
    a, b = topic.consumer("t", **G), topic.consumer("t", "u", **G)
    settle(a, b)
    assert {tp.topic for tp in a.assignment()} == {"t"}
    assert {tp for tp in b.assignment() if tp.topic == "u"} == {tp(0, "u"), tp(1, "u")}
    assert len(a.assignment()) == len(b.assignment()) == 3
    b.subscribe(["t"])
    settle(a, b)
    assert {tp.topic for tp in b.assignment()} == {"t"}
    assert len(b.assignment()) == 2


def test_partitions_that_appear_later_are_read_from_their_beginning(topic: streamlog.Cluster) -> None:
    with topic.consumer("t", group_id="g") as consumer:  # auto_offset_reset="latest"
        assert consumer.poll() == []
        topic.topic("t").add_partitions(6)
        with topic.producer() as producer:
            for partition in range(6):
                producer.send("t", "new", partition=partition)
        assert sorted(record.partition for record in settle(consumer)) == [0, 1, 2, 3, 4, 5]


def test_they_are_even_if_the_group_was_away(topic: streamlog.Cluster) -> None:
    with topic.consumer("t", group_id="g") as consumer:
        consumer.poll()
    topic.topic("t").add_partitions(5)
    with topic.producer() as producer:
        producer.send("t", "new", partition=4)
    with topic.consumer("t", group_id="g") as consumer:
        assert [record.value for record in settle(consumer)] == [b"new"]


def test_new_topics_that_match_a_pattern_are_picked_up(topic: streamlog.Cluster) -> None:
    consumer = topic.consumer(group_id="g")
    consumer.subscribe(pattern="t.*")
    consumer.poll()
    topic.create_topic("t2")
    topic.create_topic("other")
    fill(topic, 3, "t2")
    assert len(settle(consumer)) == 3
    assert consumer.subscription() == {"t", "t2"}
    consumer.close()
    topic.create_topic("t3")  # while the group is away
    fill(topic, 2, "t3")
    consumer = topic.consumer(group_id="g")
    consumer.subscribe(pattern="t.*")
    assert len(settle(consumer)) == 2


def test_a_topic_subscribed_to_later_starts_by_the_reset_policy(topic: streamlog.Cluster) -> None:
    topic.create_topic("old")
    fill(topic, 5, "old")
    consumer = topic.consumer("t", group_id="g")
    consumer.poll()
    consumer.subscribe(["t", "old"])
    assert settle(consumer) == []


def test_internal_topics_are_hidden(topic: streamlog.Cluster) -> None:
    consumer = topic.consumer(**G)
    consumer.subscribe(pattern=".*")
    settle(consumer)
    assert consumer.subscription() == {"t"}
    assert topic.topics() == ["t"]
    assert "__consumer_offsets" in topic.topics(internal=True)
    assert len(topic.topic("__consumer_offsets").partitions) == 8
    assert topic.topic("__consumer_offsets").config["cleanup_policy"] == "compact"
    with pytest.raises(streamlog.InvalidTopicError):
        topic.delete_topic("__consumer_offsets")
    with pytest.raises(streamlog.InvalidTopicError):
        topic.topic("__consumer_offsets").add_partitions(9)
    with topic.producer() as producer, pytest.raises(streamlog.InvalidTopicError):
        producer.send("__consumer_offsets", b"x")


@pytest.mark.parametrize("group", [{}, {"group_id": "g"}])
def test_a_users_topic_may_begin_with_underscores_and_match_a_pattern(topic: streamlog.Cluster, group: dict[str, str]) -> None:
    topic.create_topic("__mine")
    consumer = topic.consumer(**group)
    consumer.subscribe(pattern="__.*")
    consumer.poll()
    assert consumer.subscription() == {"__mine"}


def test_enforce_rebalance_asks_for_a_new_generation(topic: streamlog.Cluster) -> None:
    consumer = topic.consumer("t", **G)
    consumer.poll()
    before = consumer.group_metadata().generation
    consumer.enforce_rebalance()
    consumer.poll()
    assert consumer.group_metadata().generation == before + 1


def test_group_metadata_is_a_snapshot(topic: streamlog.Cluster) -> None:
    consumer = topic.consumer("t", client_id="me", **G)
    assert consumer.group_metadata() == streamlog.GroupMetadata("g", -1, "", None)
    consumer.poll()
    found = consumer.group_metadata()
    assert (found.group_id, found.generation, found.group_instance_id) == ("g", 1, None)
    assert found.member_id.startswith("me-")


def test_the_initial_delay_gathers_members(place: Any) -> None:
    with streamlog.open(place / "delay", group_initial_rebalance_delay_ms=1000) as log:
        log.create_topic("t", partitions=4)
        a, b = log.consumer("t", **G), log.consumer("t", **G)
        begun = time.monotonic()
        a.poll()
        b.poll()
        assert a.assignment() == b.assignment() == set()
        while not (a.assignment() and b.assignment()):
            a.poll(5)
            b.poll(5)
        assert time.monotonic() - begun > 2  # b came while the delay ran: it ran once more
        assert log.describe_group("g").generation == 2  # one assignment for both joins
        assert [len(share) for share in shares(a, b)] == [2, 2]


def test_a_poll_that_waits_wakes_up_for_its_share(topic: streamlog.Cluster) -> None:
    a, found = topic.consumer("t", **G), []
    a.poll()
    b = topic.consumer("t", **G)
    waiter = threading.Thread(target=lambda: found.extend(b.poll(timeout_ms=20_000)))
    waiter.start()
    while waiter.is_alive():
        a.poll(timeout_ms=10)
        fill(topic, 1)
    waiter.join()
    assert found


# ---- what is committed -----------------------------------------------------------------------------------------------


def committed(log: streamlog.Cluster) -> dict[int, int]:
    try:
        return {tp.partition: found.offset for tp, found in log.group_offsets("g").items()}
    except streamlog.GroupIdNotFoundError:
        return {}


def one(log: streamlog.Cluster, **config: Any) -> streamlog.Consumer:
    """A consumer of the one partition of topic "o", with ten records."""
    if "o" not in log.topics():
        log.create_topic("o")
        fill(log, 10, "o")
    return log.consumer("o", **{**G, **config})


def test_a_loop_commits_what_it_asked_beyond(log: streamlog.Cluster) -> None:
    with one(log) as consumer:
        for record in consumer:
            if record.offset == 4:
                break
    assert committed(log) == {0: 4}


def test_an_exception_in_the_loop_leaves_its_record_to_be_read_again(log: streamlog.Cluster) -> None:
    with pytest.raises(RuntimeError), one(log) as consumer:
        for record in consumer:
            if record.offset == 4:
                raise RuntimeError
    assert committed(log) == {0: 4}
    with one(log) as consumer:
        assert next(iter(consumer)).offset == 4


def test_a_loop_that_ends_by_itself_commits_everything(log: streamlog.Cluster) -> None:
    with one(log, consumer_timeout_ms=0) as consumer:
        assert len(list(consumer)) == 10
    assert committed(log) == {0: 10}


def test_commit_inside_a_loop_leaves_out_the_record_in_hand(log: streamlog.Cluster) -> None:
    with one(log, enable_auto_commit=False) as consumer:
        for record in consumer:
            consumer.commit()
            assert committed(log).get(0, 0) == record.offset
            if record.offset == 6:
                break


def test_records_of_a_poll_count_at_the_next_call(log: streamlog.Cluster) -> None:
    with one(log, auto_commit_interval_ms=0) as consumer:
        consumer.poll(max_records=3)
        assert committed(log) == {}
        consumer.poll(max_records=2)
        assert committed(log) == {0: 3}
        consumer.commit()
        assert committed(log) == {0: 5}
        consumer.poll(max_records=1)
    assert committed(log) == {0: 6}


def test_close_after_an_exception_does_not_count_the_last_poll(log: streamlog.Cluster) -> None:
    with pytest.raises(RuntimeError), one(log) as consumer:
        consumer.poll(max_records=3)
        consumer.poll(max_records=3)
        raise RuntimeError
    assert committed(log) == {0: 3}


def test_poll_batches_count_like_polls(log: streamlog.Cluster) -> None:
    with one(log) as consumer:
        assert sum(len(batch) for batch in consumer.poll_batches()) == 10
        assert committed(log) == {}
    assert committed(log) == {0: 10}


def test_stored_offsets_are_all_that_is_committed(log: streamlog.Cluster) -> None:
    with one(log) as consumer:
        records = consumer.poll()
        consumer.store_offset(records[2])
        consumer.poll()
        consumer.commit()
        assert committed(log) == {0: 3}
        for record in consumer.poll():
            raise AssertionError(record)
    assert committed(log) == {0: 3}
    with one(log) as consumer, pytest.raises(streamlog.InvalidStateError):
        consumer.store_offset(records[2])  # not assigned yet


def test_store_offset_in_a_loop(log: streamlog.Cluster) -> None:
    with one(log) as consumer:
        for record in consumer:
            consumer.store_offset(record)
            if record.offset == 4:
                break
    assert committed(log) == {0: 5}


def test_without_auto_commit_nothing_is_committed_by_itself(log: streamlog.Cluster) -> None:
    with one(log, enable_auto_commit=False) as consumer:
        consumer.poll()
        consumer.poll()
    assert committed(log) == {}
    with one(log) as consumer:
        assert len(consumer.poll()) == 10
        consumer.close(autocommit=False)
    assert committed(log) == {}


def test_a_consumer_at_the_end_commits_where_it_stands(log: streamlog.Cluster) -> None:
    with one(log, auto_offset_reset="latest") as consumer:
        consumer.poll()
    assert committed(log) == {0: 10}
    fill(log, 2, "o")
    with one(log, auto_offset_reset="latest") as consumer:
        assert len(consumer.poll()) == 2


def test_commit_before_the_first_poll_commits_nothing(log: streamlog.Cluster) -> None:
    with one(log) as consumer:
        consumer.commit()
    assert committed(log) == {}


def test_explicit_offsets_with_metadata(log: streamlog.Cluster) -> None:
    with one(log, enable_auto_commit=False) as consumer:
        consumer.poll()
        assert consumer.committed(tp(0, "o")) is None
        consumer.commit({("o", 0): OffsetAndMetadata(7, None, "half-way")})
        assert consumer.committed(("o", 0)) == OffsetAndMetadata(7, None, "half-way")
        consumer.commit({("o", 0): 3})
        assert consumer.committed(("o", 0)) == OffsetAndMetadata(3)


def test_commit_async_tells_in_the_next_call(log: streamlog.Cluster) -> None:
    told: list[Any] = []
    with one(log, enable_auto_commit=False) as consumer:
        consumer.poll(max_records=4)
        consumer.commit_async(callback=lambda offsets, error: told.append((offsets, error)))
        assert committed(log) == {0: 4}
        assert told == []
        consumer.poll(max_records=1)
        assert told == [({tp(0, "o"): OffsetAndMetadata(4, 0)}, None)]


def test_seeks_are_committed_too(log: streamlog.Cluster) -> None:
    with one(log) as consumer:
        consumer.poll()
        consumer.seek(("o", 0), 2)
        consumer.commit()
        assert committed(log) == {0: 2}
        consumer.seek_to_beginning()
        consumer.seek_to_committed()
        assert consumer.position(("o", 0)) == 2


def test_a_commit_wakes_no_member(log: streamlog.Cluster) -> None:
    with one(log) as consumer:
        consumer.poll()
        assert consumer._membership is not None
        file = consumer._membership.coordinator.file
        before = file.words[VERSION]
        consumer.commit()
        assert file.words[VERSION] == before


def test_fsync_commits(log: streamlog.Cluster) -> None:
    with one(log, durability="fsync") as consumer:
        consumer.poll()
        consumer.commit()
    assert committed(log) == {0: 10}


def test_partitions_that_go_are_committed_before(topic: streamlog.Cluster) -> None:
    a = topic.consumer("t", **G)
    a.poll()
    b = topic.consumer("t", **G)
    assert settle(b, a) == []
    assert committed(topic) == {2: 10, 3: 10}


def test_a_listener_may_commit_what_is_revoked(topic: streamlog.Cluster) -> None:
    a = topic.consumer(enable_auto_commit=False, **G)

    class Committing:
        def on_partitions_revoked(self, tps: list[TopicPartition]) -> None:
            a.commit(dict.fromkeys(tps, 5))

    a.subscribe(["t"], listener=Committing())
    a.poll()
    b = topic.consumer("t", enable_auto_commit=False, **G)
    assert sorted((record.partition, record.offset) for record in settle(b, a)) == [(p, o) for p in (2, 3) for o in range(5, 10)]
    assert committed(topic) == {2: 5, 3: 5}


def test_an_error_in_a_listener_comes_out_when_the_change_is_complete(topic: streamlog.Cluster) -> None:
    class Failing:
        def on_partitions_assigned(self, tps: list[TopicPartition]) -> None:
            raise RuntimeError("mine")

    consumer = topic.consumer(**G)
    consumer.subscribe(["t"], listener=Failing())
    with pytest.raises(RuntimeError, match="mine"):
        consumer.poll()
    assert len(consumer.assignment()) == 4
    assert len(consumer.poll()) == 40


def test_without_on_partitions_lost_revoked_hears_of_it(topic: streamlog.Cluster) -> None:
    heard: list[Any] = []

    class Old:
        def on_partitions_revoked(self, tps: list[TopicPartition]) -> None:
            heard.append(len(tps))

    a = topic.consumer(session_timeout_ms=1000, **G)
    a.subscribe(["t"], listener=Old())
    a.poll()
    evict(topic, a)
    a.poll()
    assert heard == [4]


def evict(log: streamlog.Cluster, consumer: streamlog.Consumer) -> None:
    """Have another member expire a consumer that stopped polling."""
    member = consumer._membership
    assert member is not None
    log._home.clock.advance(consumer.config.max_poll_interval_ms + 1)
    other = log.consumer("t", **G)
    other.poll()
    other.close()


def test_an_expired_member_hears_of_its_loss_and_its_commits_are_refused(topic: streamlog.Cluster, caplog: pytest.LogCaptureFixture) -> None:
    heard = Listener()
    consumer = topic.consumer(max_poll_interval_ms=10_000, **G)
    consumer.subscribe(["t"], listener=heard)
    consumer.poll()
    evict(topic, consumer)
    before = committed(topic)
    with pytest.raises(streamlog.UnknownMemberIdError):
        consumer.commit()
    with pytest.raises(streamlog.CommitFailedError):
        consumer.commit({tp(0): 1})
    assert committed(topic) == before
    with caplog.at_level(logging.INFO):
        consumer.poll()
    assert heard.take() == [("assigned", [0, 1, 2, 3]), ("lost", [0, 1, 2, 3]), ("assigned", [0, 1, 2, 3])]


def test_a_commit_of_what_is_not_ones_own_is_refused(topic: streamlog.Cluster) -> None:
    a, b = topic.consumer("t", **G), topic.consumer("t", **G)
    settle(a, b)
    with pytest.raises(streamlog.CommitFailedError, match="poll again"):
        a.commit({tp(3): 1, tp(0): 9})
    assert committed(topic).get(0) != 9


@pytest.mark.parametrize("how", ["paused", "limited"])
def test_every_partition_is_placed_by_the_first_poll(topic: streamlog.Cluster, how: str) -> None:
    """Under "latest" what is written after it is read, however late its partition's turn comes."""

    class Pausing:
        def on_partitions_assigned(self, tps: list[TopicPartition]) -> None:
            if how == "paused":
                consumer.pause(*tps)

    topic.alter_group_offsets("g", {tp(1): 0})
    consumer = topic.consumer(group_id="g", max_poll_records=3)
    consumer.subscribe(["t"], listener=Pausing())
    consumer.poll()
    fill(topic, 2)
    consumer.resume(*consumer.paused())
    found = [record for _ in range(20) for record in consumer.poll()]
    assert sum(record.partition != 1 for record in found) == 6


# ---- static members --------------------------------------------------------------------------------------------------


def test_a_static_member_comes_back_to_its_partitions_without_a_rebalance(topic: streamlog.Cluster) -> None:
    a = topic.consumer("t", group_instance_id="A", **G)
    heard = Listener()
    b = topic.consumer(group_instance_id="B", **G)
    b.subscribe(["t"], listener=heard)
    settle(a, b)
    mine, generation = a.assignment(), topic.describe_group("g").generation
    heard.take()
    a.close()
    assert len(topic.describe_group("g").members) == 2
    settle(b)
    again = topic.consumer("t", group_instance_id="A", **G)
    settle(again, b)
    assert again.assignment() == mine
    assert topic.describe_group("g").generation == generation
    assert heard.take() == []


def test_a_static_member_that_stays_away_is_expired(topic: streamlog.Cluster) -> None:
    a, b = topic.consumer("t", group_instance_id="A", **G), topic.consumer("t", **G)
    settle(a, b)
    a.close()
    settle(b)
    assert len(b.assignment()) == 2
    topic._home.clock.advance(45_001)
    beat(b)
    settle(b)
    assert len(b.assignment()) == 4


def beat(consumer: streamlog.Consumer) -> None:
    """Do what the timers will do soon."""
    member = consumer._membership
    assert member is not None
    member.tick(member._clock.monotonic_ms(), probe=True)
    member.attention = True


def test_a_second_holder_of_an_instance_id_fences_the_first(topic: streamlog.Cluster) -> None:
    heard = Listener()
    old = topic.consumer(group_instance_id="A", **G)
    old.subscribe(["t"], listener=heard)
    old.poll()
    new = topic.consumer("t", group_instance_id="A", **G)
    new.poll()
    with pytest.raises(streamlog.FencedInstanceIdError):
        old.commit()
    with pytest.raises(streamlog.FencedInstanceIdError):
        old.poll()
    with pytest.raises(streamlog.FencedInstanceIdError):
        old.poll()
    assert heard.take() == [("assigned", [0, 1, 2, 3]), ("lost", [0, 1, 2, 3])]
    old.close()
    assert len(new.assignment()) == 4
    settle(new)
    assert len(topic.describe_group("g").members) == 1


# ---- members that vanish ---------------------------------------------------------------------------------------------


def test_a_consumer_that_is_collected_leaves_its_share(topic: streamlog.Cluster) -> None:
    a, b = topic.consumer("t", **G), topic.consumer("t", **G)
    settle(a, b)
    del a
    gc.collect()
    beat(b)
    settle(b)
    assert len(b.assignment()) == 4


def test_alone_in_its_group_a_member_keeps_what_it_has(topic: streamlog.Cluster) -> None:
    heard = Listener()
    consumer = topic.consumer(max_poll_interval_ms=1000, session_timeout_ms=1000, **G)
    consumer.subscribe(["t"], listener=heard)
    consumer.poll()
    topic._home.clock.advance(3_600_000)
    beat(consumer)
    consumer.poll()
    assert heard.take() == [("assigned", [0, 1, 2, 3])]


def test_h33_a_judge_that_was_stopped_itself_waits_a_session(topic: streamlog.Cluster) -> None:
    a, b = topic.consumer("t", **G), topic.consumer("t", **G)
    settle(a, b)
    silent, judge = a._membership, b._membership
    assert silent is not None
    assert judge is not None
    silent._timers.remove(silent)
    topic._home.clock.advance(50_000)
    judge._last_tick -= 50
    beat(b)
    settle(b)
    assert len(b.assignment()) == 2
    judge._judge_from = 0
    beat(b)
    settle(b)
    assert len(b.assignment()) == 4


def test_h22_a_child_has_no_part_in_its_parents_membership(topic: streamlog.Cluster) -> None:
    a = topic.consumer("t", **G)
    a.poll()
    child = os.fork()
    if child == 0:
        try:
            a.poll()
        except streamlog.ClosedError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(a.poll()) == 0
    assert topic.describe_group("g").state == "Stable"


# ---- bad input -------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[Callable[[streamlog.Cluster], object], type[Exception]]] = {
    "commit without a group": (lambda log: log.consumer("t").commit(), streamlog.InvalidStateError),
    "committed without a group": (lambda log: log.consumer("t").committed(tp(0)), streamlog.InvalidStateError),
    "group metadata without a group": (lambda log: log.consumer("t").group_metadata(), streamlog.InvalidStateError),
    "seek to committed without a group": (lambda log: log.consumer("t").seek_to_committed(), streamlog.InvalidStateError),
    "rebalance without a group": (lambda log: log.consumer("t").enforce_rebalance(), streamlog.InvalidStateError),
    "rebalance after assign": (lambda log: assigned(log).enforce_rebalance(), streamlog.InvalidStateError),
    "assign after subscribe": (lambda log: log.consumer("t", **G).assign([tp(0)]), streamlog.InvalidStateError),
    "subscribe after assign": (lambda log: assigned(log).subscribe(["t"]), streamlog.InvalidStateError),
    "empty group id": (lambda log: log.consumer(group_id=""), streamlog.InvalidConfigError),
    "group id of another type": (lambda log: log.consumer(group_id=5), streamlog.InvalidConfigError),
    "instance id without a group": (lambda log: log.consumer(group_instance_id="x"), streamlog.InvalidConfigError),
    "empty instance id": (lambda log: log.consumer(group_id="g", group_instance_id=""), streamlog.InvalidConfigError),
    "unknown strategy": (lambda log: log.consumer(group_id="g", partition_assignment_strategy="rang"), streamlog.InvalidConfigError),
    "heartbeat above session": (
        lambda log: log.consumer(group_id="g", session_timeout_ms=1000, heartbeat_interval_ms=2000), streamlog.InvalidConfigError,
    ),
    "offsets are no mapping": (lambda log: joined(log).commit([tp(0)]), streamlog.ConfigurationError),
    "negative offset": (lambda log: joined(log).commit({tp(0): -1}), streamlog.ConfigurationError),
    "offset is a bool": (lambda log: joined(log).commit({tp(0): True}), streamlog.ConfigurationError),
    "offset is a float": (lambda log: joined(log).commit({tp(0): 1.0}), streamlog.ConfigurationError),
    "offset too large": (lambda log: joined(log).commit({tp(0): 2**63}), streamlog.ConfigurationError),
    "metadata of another type": (lambda log: joined(log).commit({tp(0): OffsetAndMetadata(1, None, b"x")}), streamlog.ConfigurationError),
    "metadata too large": (lambda log: joined(log).commit({tp(0): OffsetAndMetadata(1, None, "ä" * 2049)}), streamlog.OffsetMetadataTooLargeError),
    "commit of an unknown topic": (lambda log: joined(log).commit({("nix", 0): 1}), streamlog.UnknownTopicOrPartitionError),
    "commit of an unknown partition": (lambda log: joined(log).commit({tp(4): 1}), streamlog.UnknownTopicOrPartitionError),
    "commit of no partition": (lambda log: joined(log).commit({5: 1}), streamlog.UnknownTopicOrPartitionError),
    "commit as a stranger": (lambda log: (joined(log), log.consumer("t", **G).commit({tp(0): 1})), streamlog.UnknownMemberIdError),
    "commit beside a living group": (lambda log: (joined(log), assigned(log).commit({tp(0): 1})), streamlog.UnknownMemberIdError),
    "describe an unknown group": (lambda log: log.describe_group("nix"), streamlog.GroupIdNotFoundError),
    "offsets of an unknown group": (lambda log: log.group_offsets("nix"), streamlog.GroupIdNotFoundError),
    "delete an unknown group": (lambda log: log.delete_group("nix"), streamlog.GroupIdNotFoundError),
    "describe no group": (lambda log: log.describe_group(None), streamlog.ConfigurationError),
    "alter a group with members": (lambda log: (joined(log), log.alter_group_offsets("g", {tp(0): 0})), streamlog.NonEmptyGroupError),
    "delete a group with members": (lambda log: (joined(log), log.delete_group("g")), streamlog.NonEmptyGroupError),
    "alter of an unknown partition": (lambda log: log.alter_group_offsets("g", {tp(9): 0}), streamlog.UnknownTopicOrPartitionError),
    "a group id that is no text": (lambda log: log.alter_group_offsets("\ud800", {tp(0): 0}), streamlog.ConfigurationError),
    "a client id that is no text": (lambda log: log.consumer(group_id="g", client_id="\ud800"), streamlog.InvalidConfigError),
    "metadata that is no text": (
        lambda log: log.alter_group_offsets("g", {tp(0): OffsetAndMetadata(0, None, "\ud800")}), streamlog.ConfigurationError,
    ),
    "alter by a list": (lambda log: log.alter_group_offsets("g", [tp(0)]), streamlog.ConfigurationError),
    "a listener that hears nothing": (lambda log: log.consumer(**G).subscribe(["t"], listener=print), streamlog.ConfigurationError),
    "no strategy in common": (
        lambda log: (joined(log), log.consumer("t", partition_assignment_strategy="range", **G).poll()), streamlog.InconsistentGroupProtocolError,
    ),
    "reset none": (lambda log: log.consumer("t", group_id="n", auto_offset_reset="none").poll(), streamlog.NoOffsetForPartitionError),
}  # fmt: skip
_kept: list[streamlog.Consumer] = []


def joined(log: streamlog.Cluster) -> streamlog.Consumer:
    consumer = log.consumer("t", **G)
    consumer.poll()
    _kept.append(consumer)
    return consumer


def assigned(log: streamlog.Cluster) -> streamlog.Consumer:
    consumer = log.consumer(**G)
    consumer.assign([tp(0)])
    return consumer


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_clear_error_and_harms_no_group(topic: streamlog.Cluster, name: str) -> None:
    act, error = BAD[name]
    _kept.clear()
    with pytest.raises(error) as caught:
        act(topic)
    assert len(str(caught.value)) > 20
    for member in _kept:
        member.poll()
        assert len(member.assignment()) == 4
        assert topic.describe_group("g").state == "Stable"
        member.close()
    _kept.clear()
    with topic.consumer("t", **G) as consumer:
        consumer.poll()
        assert len(consumer.assignment()) == 4


class Wrong(RangeAssignor):
    """Answers what it was told to."""

    name = "wrong"

    def __init__(self, answer: Callable[[Any, Any], Any]) -> None:
        self.answer = answer

    def assign(self, members: Any, partitions: Any) -> Any:
        return self.answer(members, partitions)


NONSENSE: dict[str, Callable[[Any, Any], Any]] = {
    "an unknown member": lambda members, partitions: {"nobody": [("t", 0)]},
    "a partition twice": lambda members, partitions: {next(iter(members)): [("t", 0), ("t", 0)]},
    "an unknown partition": lambda members, partitions: {next(iter(members)): [("t", 4)]},
    "a topic not subscribed to": lambda members, partitions: {next(iter(members)): [("u", 0)]},
    "None": lambda members, partitions: None,
    "a list": lambda members, partitions: [("t", 0)],
    "numbers": lambda members, partitions: {next(iter(members)): 5},
    "a partition as text": lambda members, partitions: {next(iter(members)): [("t", "0")]},
    "a partition as a float": lambda members, partitions: {next(iter(members)): [("t", 0.0)]},
    "a partition as a bool": lambda members, partitions: {next(iter(members)): [("t", True)]},
    "not partitions": lambda members, partitions: {next(iter(members)): ["t-0"]},
}


@pytest.mark.parametrize("name", NONSENSE)
def test_an_assignors_nonsense_is_refused(topic: streamlog.Cluster, name: str) -> None:
    topic.create_topic("u")
    wrong = Wrong(NONSENSE[name])
    consumer = topic.consumer("t", partition_assignment_strategy=wrong, **G)
    for _ in range(2):
        with pytest.raises(streamlog.InvalidStateError, match="assignor 'wrong'"):
            consumer.poll()
        assert consumer.poll() == []  # once a second
        topic._home.clock.advance(1001)
        beat(consumer)
    assert topic.describe_group("g").state == "Assigning"
    wrong.answer = lambda members, partitions: {next(iter(members)): [("t", 1)]}
    consumer.poll()
    assert shares(consumer) == [[1]]


def test_one_partition_to_two_members_is_refused(topic: streamlog.Cluster) -> None:
    wrong = Wrong(lambda members, partitions: {key: [("t", 0)] for key in members})
    a, b = (topic.consumer("t", partition_assignment_strategy=wrong, **G) for _ in range(2))
    a.poll()
    with pytest.raises(streamlog.InvalidStateError, match="to both"):
        b.poll()
    assert shares(a, b) == [[0], []]


def test_a_failing_assignor_does_not_keep_its_members_from_reading(topic: streamlog.Cluster) -> None:
    def two_are_too_many(members: Any, partitions: Any) -> Any:
        if len(members) > 1:
            raise ZeroDivisionError
        return RangeAssignor().assign(members, partitions)

    a, b = (topic.consumer("t", partition_assignment_strategy=Wrong(two_are_too_many), **G) for _ in range(2))
    assert len(a.poll()) == 40
    with pytest.raises(ZeroDivisionError):
        b.poll()
    fill(topic, 1)
    assert len(a.poll()) == 4


def test_an_assignors_error_comes_out_of_poll_and_others_go_on(topic: streamlog.Cluster) -> None:
    def fail(members: Any, partitions: Any) -> Any:
        raise ZeroDivisionError

    wrong = Wrong(fail)
    consumer = topic.consumer("t", partition_assignment_strategy=wrong, **G)
    with pytest.raises(ZeroDivisionError):
        consumer.poll()
    right = Wrong(lambda members, partitions: RangeAssignor().assign(members, partitions))
    other = topic.consumer("t", partition_assignment_strategy=right, **G)
    other.poll()
    assert len(other.assignment()) == 2


def test_an_own_assignor_sees_what_members_want_and_have(topic: streamlog.Cluster) -> None:
    seen: list[Any] = []

    def assign(members: Any, partitions: Any) -> Any:
        seen.append((sorted(members.values()), dict(partitions)))
        return RangeAssignor().assign(members, partitions)

    consumer = topic.consumer("t", partition_assignment_strategy=Wrong(assign), group_instance_id="A", client_id="me", **G)
    consumer.poll()
    consumer.enforce_rebalance()
    consumer.poll()
    owned = tuple(tp(n) for n in range(4))
    assert seen == [([Subscription(("t",), (), "A", "me")], {"t": 4}), ([Subscription(("t",), owned, "A", "me")], {"t": 4})]


@pytest.mark.usefixtures("sigint")
def test_ctrl_c_in_a_listener_loses_nothing(topic: streamlog.Cluster) -> None:
    class Interrupted:
        def on_partitions_revoked(self, tps: list[TopicPartition]) -> None:
            signal.raise_signal(signal.SIGINT)

    a = topic.consumer(**G)
    a.subscribe(["t"], listener=Interrupted())
    a.poll()
    b = topic.consumer("t", **G)
    b.poll()
    with pytest.raises(KeyboardInterrupt):
        a.poll()
    assert len(a.assignment()) == 4
    a._listener = listener.Listener()
    settle(a, b)
    assert shares(a, b) == [[0, 1], [2, 3]]


# ---- from outside ----------------------------------------------------------------------------------------------------


def test_describe_shows_members_offsets_and_lag(topic: streamlog.Cluster) -> None:
    assert topic.groups() == []
    a = topic.consumer("t", client_id="ann", **G)
    b = topic.consumer("t", client_id="bob", **G)
    settle(a, b)
    a.commit({next(iter(a.assignment())): 4})
    found = topic.describe_group("g")
    assert (found.group_id, found.state, found.assignor) == ("g", "Stable", "cooperative-sticky")
    assert [member.client_id for member in found.members] == ["ann", "bob"]
    assert {member.assignment for member in found.members} == {frozenset(a.assignment()), frozenset(b.assignment())}
    assert 6 in found.lag.values()
    a.close()
    b.close()
    assert topic.groups() == [streamlog.GroupListing("g", "Empty")]
    assert topic.describe_group("g").members == ()


def test_offsets_can_be_altered_while_nobody_is_there(topic: streamlog.Cluster) -> None:
    topic.alter_group_offsets("g", {tp(0): 9, ("t", 1): OffsetAndMetadata(8, None, "by hand")})
    assert topic.group_offsets("g") == {tp(0): OffsetAndMetadata(9), tp(1): OffsetAndMetadata(8, None, "by hand")}
    with topic.consumer("t", **G) as consumer:
        assert len(consumer.poll()) == 1 + 2 + 20


def test_a_group_can_be_deleted(topic: streamlog.Cluster) -> None:
    with topic.consumer("t", **G) as consumer:
        consumer.poll()
    topic.delete_group("g")
    assert topic.groups() == []
    with topic.consumer("t", **G) as consumer:
        assert len(consumer.poll()) == 40


def test_assigned_consumers_commit_under_a_groups_name(topic: streamlog.Cluster) -> None:
    with topic.consumer(**G) as consumer:
        consumer.assign([tp(1)])
        assert len(consumer.poll()) == 10
    assert topic.group_offsets("g") == {tp(1): OffsetAndMetadata(10, 0)}
    assert topic.groups() == [streamlog.GroupListing("g", "Empty")]
    with topic.consumer(**G) as consumer:
        consumer.assign([tp(1)])
        assert consumer.poll() == []


def test_offsets_of_a_deleted_topic_are_gone(topic: streamlog.Cluster) -> None:
    with topic.consumer("t", **G) as consumer:
        consumer.poll()
    topic.delete_topic("t")
    assert topic.group_offsets("g") == {}
    topic.create_topic("t", partitions=4)
    fill(topic, 3)
    with topic.consumer("t", **G) as consumer:
        assert len(consumer.poll()) == 12


def test_a_topic_made_anew_under_a_members_feet(topic: streamlog.Cluster) -> None:
    heard = Listener()
    consumer = topic.consumer(**G)
    consumer.subscribe(["t"], listener=heard)
    consumer.poll()
    topic.delete_topic("t")
    with pytest.raises(streamlog.UnknownTopicOrPartitionError):
        consumer.poll()
    topic.create_topic("t", partitions=4)
    fill(topic, 2)
    assert len(settle(consumer)) == 8
    assert heard.take() == [("assigned", [0, 1, 2, 3]), ("lost", [0, 1, 2, 3]), ("assigned", [0, 1, 2, 3])]


def test_offsets_expire_when_a_group_is_empty_for_long(place: Any) -> None:
    with streamlog.open(place / "old", offsets_retention_minutes=10) as log:
        log.create_topic("t", partitions=1)
        fill(log)
        with log.consumer("t", **G) as consumer:
            consumer.poll()
            log._home.clock.advance(20 * 60_000)
            consumer.commit()
            assert committed(log) == {0: 10}
            log._home.clock.advance(20 * 60_000)
            assert committed(log) == {0: 10}  # it has a member
        assert committed(log) == {0: 10}
        log._home.clock.advance(9 * 60_000)
        assert committed(log) == {0: 10}
        log._home.clock.advance(2 * 60_000)
        assert committed(log) == {}
        with log.consumer("t", **G) as consumer:
            assert len(consumer.poll()) == 10
        log._home.clock.advance(11 * 60_000)
        log.maintain()
        assert log.groups() == []


def test_offsets_outlive_the_process_and_the_boot(place: Any) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t", partitions=4)
        fill(log)
        with log.consumer("t", **G) as consumer:
            consumer.poll()
            generation = consumer.group_metadata().generation
    import shutil

    shutil.rmtree(place / "log" / "run")
    with streamlog.open(place / "log") as log:
        assert committed(log) == dict.fromkeys(range(4), 10)
        assert log.groups() == [streamlog.GroupListing("g", "Empty")]
        with log.consumer("t", **G) as consumer:
            assert consumer.poll() == []
            assert consumer.group_metadata().generation > generation
        assert streamlog.check(log) == []


def test_h34_an_offset_noted_before_the_partition_came_back_is_refused(topic: streamlog.Cluster) -> None:
    """A commit on its way while its partition goes to another member and returns."""
    a = topic.consumer("t", **G)
    a.poll()
    member = a._membership
    assert member is not None
    noted = {tp(3): member.generation}
    late = {(topic.topic("t")._topic_id, 3): CommittedOffset(1, 0, "", 0)}
    b = topic.consumer("t", **G)
    settle(b, a)
    with pytest.raises(streamlog.CommitFailedError):
        member.commit(late, noted, 5)  # it is b's
    b.close()
    settle(a)
    before = committed(topic)
    with pytest.raises(streamlog.IllegalGenerationError):
        member.commit(late, noted, 5)  # it is a's again, since a later generation
    with pytest.raises(streamlog.IllegalGenerationError):
        member.commit(late, {tp(3): 99}, 5)
    assert committed(topic) == before


def test_h34_what_was_noted_in_an_earlier_generation_counts_while_the_partition_stayed(topic: streamlog.Cluster) -> None:
    a = topic.consumer("t", enable_auto_commit=False, **G)
    a.poll(max_records=40)
    b = topic.consumer("t", **G)
    b.poll()  # the target is another now, and a has not gone over to it
    a.commit()
    assert committed(topic) == dict.fromkeys(range(4), 10)


# ---- real deaths -----------------------------------------------------------------------------------------------------

MEMBER = """
import os, sys, time, streamlog
log = streamlog.open(sys.argv[1])
consumer = log.consumer("t", group_id="g", auto_offset_reset="earliest", heartbeat_interval_ms=60_000, session_timeout_ms=600_000)
while not consumer.assignment():
    consumer.poll(10)
if sys.argv[2] == "fork" and os.fork() == 0:
    time.sleep(60)
    os._exit(0)
print("in", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_h22_h24_a_killed_process_is_heard_of_at_once(topic: streamlog.Cluster, how: str) -> None:
    """By its lock, long before its heartbeat would be missed; a child that it forked does not keep the lock."""
    survivor = topic.consumer("t", heartbeat_interval_ms=60_000, session_timeout_ms=600_000, **G)
    survivor.poll()
    process = subprocess.Popen([sys.executable, "-c", MEMBER, topic.location, how], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        while not select.select([process.stdout], [], [], 0)[0]:
            survivor.poll(10)
        assert process.stdout.readline() == "in\n"
        settle(survivor)
        assert len(survivor.assignment()) == 2
        process.kill()
        deadline = time.monotonic() + 20
        while len(survivor.assignment()) < 4:
            survivor.poll(timeout_ms=1000)
            assert time.monotonic() < deadline, "nobody heard of the death"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_stopped_holder_of_the_lock_is_named_and_the_poll_goes_on(topic: streamlog.Cluster) -> None:
    """What is owned is read on; after the default time-out the error says whom it waits for."""
    consumer = topic.consumer("t", default_api_timeout_ms=500, **G)
    assert len(consumer.poll()) == 40
    code = (
        "import os, signal, sys, streamlog\nfrom streamlog._os.locks import under\n"
        "coordinator = streamlog.open(sys.argv[1])._groups.coordinator('g', 5)\n"
        "coordinator.change(5, lambda group: os.kill(os.getpid(), signal.SIGSTOP))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, topic.location])
    try:
        while os.waitpid(process.pid, os.WUNTRACED | os.WNOHANG) == (0, 0):
            time.sleep(0.01)
        assert consumer._membership is not None
        consumer._membership.attention = True
        fill(topic, 1)
        consumer._membership.subscribe(("t",), ("x", 0))  # so that there is something to do under the lock
        assert len(consumer.poll()) == 4
        with pytest.raises(streamlog.StreamlogTimeoutError, match=f"process {process.pid} .stopped"):
            for _ in range(40):
                consumer.poll()
        with pytest.raises(streamlog.StreamlogTimeoutError, match="stopped"):
            consumer.commit()
    finally:
        process.kill()
        process.wait()
    consumer.commit()
    assert committed(topic) == dict.fromkeys(range(4), 11)
