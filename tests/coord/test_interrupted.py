"""Calls broken off, closed from inside, overtaken by others: each with its interleaving."""

from __future__ import annotations

import gc
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog import Consumer, TopicPartition
from streamlog._client.listener import Listener
from streamlog._client.membership import Membership
from streamlog._coord.group import Group
from streamlog._coord.group_file import VERSION

G: dict[str, Any] = {"group_id": "g", "auto_offset_reset": "earliest"}


class Interrupted(Exception):
    """What a signal handler raises."""


@pytest.fixture
def two(place: Path) -> Iterator[tuple[streamlog.Cluster, streamlog.Cluster]]:
    """Two open clusters of one directory stand for two processes: their locks are apart.  Topic "t" has 2 partitions of 3 records."""
    with streamlog.open(place / "log") as one, streamlog.open(place / "log") as other:
        one.create_topic("t", partitions=2)
        fill(one, "t", 3)
        yield one, other
        assert streamlog.check(one) == []


def fill(log: streamlog.Cluster, topic: str, count: int) -> None:
    with log.producer(linger_ms=0) as producer:
        for partition in log.topic(topic).partitions:
            for number in range(count):
                producer.send(topic, f"{partition}:{number}", partition=partition)


def settle(*consumers: streamlog.Consumer) -> list[str]:
    found = []
    for _ in range(6):
        for consumer in consumers:
            found += [record.value.decode() for record in consumer.poll()]
    return found


def wrap(consumer: streamlog.Consumer, name: str, wrapper: Callable[..., Any]) -> None:
    """Put `wrapper(original, *arguments)` in place of a method of a consumer's membership, once."""
    member = consumer._membership
    assert member is not None
    original = getattr(member, name)

    def once(*arguments: Any) -> Any:
        delattr(member, name)
        return wrapper(original, *arguments)

    setattr(member, name, once)


def fail_next_store(consumer: streamlog.Consumer) -> None:
    """The disk is full when the group's state is written next."""
    assert consumer._membership is not None
    file = consumer._membership.coordinator.file
    original = file.store

    def full(group: Group) -> None:
        file.store = original  # type: ignore[method-assign]
        raise streamlog.StorageFullError("no space left")

    file.store = full  # type: ignore[method-assign]


def test_a_version_that_came_after_the_step_is_looked_at(two: Any) -> None:
    """A waits for what B gives up; B does so between A's step and A's noting of the version."""
    one, other = two
    a, b = one.consumer("t", **G), other.consumer("t", **G)
    b.poll()
    a.poll()
    b.enforce_rebalance()

    def overtaken(original: Any, timeout: float) -> Any:
        result = original(timeout)
        b.poll()
        return result

    wrap(a, "_change", overtaken)
    settle(a, b)
    assert len(a.assignment()) == len(b.assignment()) == 1
    assert a._membership is not None
    assert a._membership._seen == a._membership._file.words[VERSION]


def test_a_tell_that_is_broken_off_is_finished_by_the_next_poll(two: Any) -> None:
    one, _ = two
    consumer = one.consumer("t", **G)
    original = consumer._receive

    def broken(partitions: Any) -> None:
        consumer._receive = original  # type: ignore[method-assign]
        raise Interrupted

    consumer._receive = broken  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        consumer.poll()
    assert len(settle(consumer)) == 6


def test_a_target_with_a_topic_that_this_process_has_not_heard_of(two: Any) -> None:
    one, other = two
    a, b = one.consumer(**G), other.consumer(**G)
    for consumer in (a, b):
        consumer.subscribe(pattern="t.*")
    settle(a, b)

    def overtaken(original: Any, timeout: float) -> Any:
        one.create_topic("t2", partitions=2)
        fill(one, "t2", 2)
        for _ in range(3):
            a.poll(max_records=1)
        a.seek_to_beginning()
        return original(timeout)

    b.enforce_rebalance()
    wrap(b, "_change", overtaken)
    found = settle(b, a)
    assert {tp.topic for tp in a.assignment() | b.assignment()} == {"t", "t2"}
    assert found


def test_revoked_then_given_back_before_it_was_released(two: Any) -> None:
    one, other = two
    a = one.consumer("t", **G)
    a.poll()
    b = other.consumer("t", **G)
    b.poll()

    def timed_out(original: Any, partitions: Any, generation: int, holder: Any, timeout: float) -> None:
        holder.revoke(sorted(partitions))
        b.close()
        raise streamlog.StreamlogTimeoutError("the lock could not be had")

    wrap(a, "_give_up", timed_out)
    a.poll()
    fill(one, "t", 1)
    assert sorted(settle(a)) == ["0:0", "1:0"]
    assert len(a.assignment()) == 2


def test_records_of_one_partition_are_not_lost_by_the_error_of_another(two: Any) -> None:
    one, _ = two
    one.alter_group_offsets("g", {("t", 0): 0})
    consumer = one.consumer("t", group_id="g", auto_offset_reset="none")
    for _ in range(4):
        try:
            records = consumer.poll()
        except streamlog.NoOffsetForPartitionError:
            continue
        assert [record.offset for record in records if record.partition == 0] == [0, 1, 2]
        break
    else:
        pytest.fail("the records of partition 0 never came")


@pytest.mark.parametrize("how", ["poll", "poll_batches"])
def test_a_call_that_is_broken_off_returns_nothing_and_moves_nothing(two: Any, how: str) -> None:
    one, _ = two
    consumer = one.consumer("t", **G)
    consumer.subscribe(["t"])
    original = consumer._fetcher._begin_turn
    turns = 0

    def broken(cursor: Any) -> bool:
        nonlocal turns
        turns += 1
        if turns == 2:
            raise Interrupted
        return original(cursor)

    consumer._fetcher._begin_turn = broken  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        getattr(consumer, how)()
    assert len(settle(consumer)) == 6


def test_a_cluster_left_by_an_exception_does_not_count_the_last_poll(place: Path) -> None:
    with pytest.raises(ZeroDivisionError), streamlog.open(place / "log") as log:
        log.create_topic("t")
        fill(log, "t", 5)
        consumer = log.consumer("t", **G)
        assert len(consumer.poll()) == 5
        raise ZeroDivisionError
    with streamlog.open(place / "log") as log:
        consumer = log.consumer("t", **G)
        try:
            assert len(consumer.poll()) == 5
            raise ZeroDivisionError
        except ZeroDivisionError:
            consumer.close()
        assert len(log.consumer("t", **G).poll()) == 5


def test_what_was_read_of_a_deleted_topic_is_not_committed_for_its_successor(two: Any) -> None:
    one, _ = two
    one.create_topic("u")
    fill(one, "u", 10)
    consumer = one.consumer("t", "u", **G)
    assert len(consumer.poll()) == 16
    one.delete_topic("u")
    one.create_topic("u")
    fill(one, "u", 15)
    with pytest.raises(streamlog.UnknownTopicOrPartitionError, match="deleted"):
        consumer.commit({("u", 0): 10})
    consumer.close()
    assert {tp.topic for tp in one.group_offsets("g")} == {"t"}
    assert len(one.consumer("u", **G).poll()) == 15


def test_a_slow_member_keeps_nothing_of_a_topic_made_anew(two: Any) -> None:
    """One generation lies between its deletion and its successor, and the slow member has seen neither."""
    one, other = two
    fast, slow = one.consumer("t", **G), other.consumer("t", **G)
    settle(fast, slow)
    one.delete_topic("t")
    one.create_topic("other")
    third = one.consumer("other", **G)
    third.poll()
    one.create_topic("t", partitions=2)
    fill(one, "t", 2)
    assert sorted(settle(fast, third, slow)) == ["0:0", "0:1", "1:0", "1:1"]


def test_a_group_remembers_what_it_has_read_of_topics_that_nobody_wants_for_a_while(two: Any) -> None:
    one, _ = two
    one.create_topic("u")
    a, b = one.consumer("t", group_id="g"), one.consumer("u", group_id="g")
    settle(a, b)
    a.close()
    settle(b)
    one.topic("t").add_partitions(3)
    with one.producer() as producer:
        producer.send("t", "new", partition=2)
    a = one.consumer("t", group_id="g")
    assert settle(a, b) == ["new"]


def test_what_this_process_has_not_heard_of_is_not_taken_for_deleted(two: Any) -> None:
    one, other = two
    one.alter_group_offsets("g", {("t", 0): 1})
    groups = one._groups
    other.create_topic("new")
    other.alter_group_offsets("g", {("new", 0): 77})
    groups.maintain(5)
    assert other.group_offsets("g")["new", 0].offset == 77


@pytest.mark.parametrize("what", ["close", "unsubscribe"])
def test_a_listener_may_close_or_unsubscribe_and_nobody_joins_again(two: Any, what: str) -> None:
    one, _ = two

    class Ending:
        def on_partitions_assigned(self, tps: list[TopicPartition]) -> None:
            getattr(consumer, what)()

    consumer = one.consumer(**G)
    consumer.subscribe(["t"], listener=Ending())
    assert consumer.poll() == []
    assert one.describe_group("g").state == "Empty"
    with pytest.raises(streamlog.InvalidStateError):
        consumer.poll()


def test_a_signal_handler_may_close_a_consumer_that_waits(two: Any) -> None:
    one, _ = two
    consumer = one.consumer("t", **G)
    consumer.poll()
    previous = signal.signal(signal.SIGALRM, lambda *_: consumer.close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert list(consumer) == []  # the loop ends
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert one.describe_group("g").state == "Empty"
    assert one.group_offsets("g")["t", 0].offset == 3


def test_a_poll_inside_a_poll_is_refused(two: Any) -> None:
    one, _ = two

    class Greedy:
        def on_partitions_assigned(self, tps: list[TopicPartition]) -> None:
            consumer.poll()

    consumer = one.consumer(**G)
    consumer.subscribe(["t"], listener=Greedy())
    with pytest.raises(streamlog.InvalidStateError, match="inside a poll"):
        consumer.poll()


@pytest.mark.parametrize("instance", [None, "S"])
def test_a_join_whose_store_fails_is_tried_again(two: Any, instance: str | None) -> None:
    one, other = two
    static = {} if instance is None else {"group_instance_id": instance}
    with one.consumer("t", **G, **static) as consumer:
        consumer.poll()
    consumer = other.consumer("t", **G, **static)
    fail_next_store(consumer)
    with pytest.raises(streamlog.StorageFullError):
        consumer.poll()
    consumer.poll()
    assert len(consumer.assignment()) == 2
    assert len(one.describe_group("g").members) == 1


def test_a_subscription_whose_store_fails_is_not_forgotten(two: Any) -> None:
    one, _ = two
    one.create_topic("u")
    consumer = one.consumer("t", **G)
    consumer.poll()
    consumer.subscribe(["t", "u"])
    fail_next_store(consumer)
    consumer.poll()  # it goes on with what it has
    assert len(consumer.assignment()) == 2
    consumer.poll()
    assert len(consumer.assignment()) == 3


def test_looking_at_a_group_expires_nobody_who_lives(two: Any) -> None:
    one, other = two
    consumer = one.consumer("t", max_poll_interval_ms=1000, session_timeout_ms=1000, **G)
    consumer.poll()
    one._home.clock.advance(100_000)
    assert other.describe_group("g").state == "Stable"
    assert other.groups()[0].state == "Stable"
    consumer.commit()


def test_a_commit_from_outside_counts_once_the_only_member_is_dead(two: Any) -> None:
    one, other = two
    member = one.consumer("t", **G)
    member.poll()
    with other.consumer(**G) as outside:
        outside.assign([("t", 0)])
        with pytest.raises(streamlog.UnknownMemberIdError):
            outside.commit({("t", 0): 1})
        one._children.discard(member)
        del member
        gc.collect()
        outside.commit({("t", 0): 1})


def test_a_close_that_is_broken_off_in_its_commit_still_leaves(two: Any) -> None:
    one, _ = two
    consumer = one.consumer("t", **G)
    consumer.poll()

    def broken(*_: object) -> None:
        raise Interrupted

    consumer._commit_by_itself = broken  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        consumer.close()
    assert one.describe_group("g").state == "Empty"


def test_the_timers_survive_an_error_of_one_member(two: Any, caplog: pytest.LogCaptureFixture) -> None:
    one, _ = two
    a, b = (one.consumer("t", heartbeat_interval_ms=20, session_timeout_ms=2000, **G) for _ in range(2))
    settle(a, b)
    assert a._membership is not None
    assert b._membership is not None
    a._membership.tick = lambda *_, **__: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    before = b._membership._next_beat
    a._membership._timers.wake()
    deadline = time.monotonic() + 10
    while b._membership._next_beat == before:
        assert time.monotonic() < deadline, "nobody beats any more"
        time.sleep(0.01)
    assert "timers of" in caplog.text


def test_a_fold_may_be_entered_again_by_a_signal_handler(two: Any) -> None:
    one, _ = two
    one.alter_group_offsets("g", {("t", 0): 1})
    offsets = one._groups.coordinator("g", 5).offsets
    original, seen = offsets._fold, []

    def again(batch: Any) -> None:
        seen.append(dict(offsets.group("g", 1).offsets))
        original(batch)

    offsets._reader, offsets.version, offsets._groups = None, 0, {}
    offsets._fold = again
    assert one.group_offsets("g")["t", 0].offset == 1
    assert seen


def test_closing_after_the_cluster_lost_its_files_is_quiet(place: Path) -> None:
    log = streamlog.open(place / "log")
    log.create_topic("t")
    consumer = log.consumer("t", **G)
    consumer.poll()
    log._home.abandon()
    consumer.close()
    log.close()


def test_listing_many_groups_keeps_no_descriptors(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    for number in range(60):
        log.alter_group_offsets(f"group-{number}", {("t", 0): number})
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert len(log.groups()) == 60
    for number in range(60):
        log.describe_group(f"group-{number}")
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the handler raises inside the interpreter's finalizers, too
def test_polls_bombarded_by_signals_settle(two: Any, seed: int) -> None:
    """Members come, go and are interrupted at random instants; left alone they own everything, once."""
    one, other = two
    rng, consumers = random.Random(seed), []
    interrupts = 0

    def interrupt(*_: object) -> None:
        raise Interrupted

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        end = time.monotonic() + 4
        while time.monotonic() < end:
            if len(consumers) < 3:
                consumers.append(rng.choice((one, other)).consumer("t", heartbeat_interval_ms=300, **G))
            elif rng.random() < 0.3:
                consumers.pop(rng.randrange(3)).close()
            for _ in range(15):
                for consumer in consumers:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, rng.uniform(3e-5, 8e-4))
                        consumer.poll()
                        signal.setitimer(signal.ITIMER_REAL, 0)
                    except Interrupted:
                        interrupts += 1
            deadline = time.monotonic() + 5
            while sorted(tp for consumer in consumers for tp in consumer.assignment()) != [("t", 0), ("t", 1)]:
                assert time.monotonic() < deadline, [consumer.assignment() for consumer in consumers]
                for consumer in consumers:
                    consumer.poll(5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    print(f"{interrupts} interrupts")
    for consumer in consumers:
        consumer.close()


@pytest.mark.parametrize("at", ["_depart", "leave", "hear"])
def test_a_close_that_is_broken_off_leaves_no_ghost(two: Any, at: str) -> None:
    one, other = two
    a, b = one.consumer("t", **G), other.consumer("t", **G)
    settle(a, b)

    def broken(*_: object, **__: object) -> None:
        raise Interrupted

    targets = {"_depart": (Consumer, "_depart"), "leave": (Membership, "leave"), "hear": (Listener, "hear")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*targets[at], broken)
        with pytest.raises(Interrupted):
            a.close()
    a.close()
    assert b._membership is not None
    b._membership.attention = True
    settle(b)
    assert len(b.assignment()) == 2


def test_an_unsubscribe_that_fails_is_one_all_the_same(two: Any) -> None:
    one, _ = two
    consumer = one.consumer("t", **G)
    consumer.poll()

    def broken(*_: object) -> None:
        raise streamlog.StreamlogTimeoutError("the lock could not be had")

    consumer._membership.leave = broken
    with pytest.raises(streamlog.StreamlogTimeoutError):
        consumer.unsubscribe()
    del consumer._membership.leave
    for call in (consumer.poll, consumer.enforce_rebalance):
        with pytest.raises(streamlog.InvalidStateError):
            call()
    consumer.subscribe(["t"])
    assert len(consumer.poll()) == 6  # neither a poll, nor a commit, nor a close: the last records count as not processed
    assert len(consumer.assignment()) == 2
