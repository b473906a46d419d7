"""The published divergences of logs, step by step: KIP-101 (two scenarios) and KIP-279; and the rules of epochs that they rest on."""

from pathlib import Path

import pytest

import streamlog
from conftest import values_of
from replica.clusters import assert_equal_replicas, brokers, log_of, records_on
from streamlog._format import batch as fmt
from streamlog._log.epochs import Epochs
from streamlog._log.pending import Pending
from streamlog._log.state import ALIGNED, END, HWM
from streamlog._replica.leadership import PLACE, leader_of
from streamlog._replica.replicas import MovedError, divergence
from streamlog._replica.replicated import ReplicatedLog


def pending(value: bytes, *, acks_all: bool = True) -> Pending:
    batch = Pending()
    batch.attributes, batch.columns = fmt.encode_rows([value])
    batch.count, batch.acks_all = 1, acks_all
    return batch


def write_to_leader(log: ReplicatedLog, value: bytes) -> None:
    """The leader has it, and nobody copies it."""
    batch = pending(value)
    log.write(batch, log.leadership[PLACE], 1.0)


def move(cluster: streamlog.Cluster, log: ReplicatedLog, leader: int) -> None:
    """Leadership goes to `leader`; both stay in sync, and nobody copies anything."""
    controller = cluster._home.controller
    key = log.topic_id, log.partition
    from streamlog._replica import election

    controller._decide(lambda: {key: election.changed(log.state, leader=leader)}, 10.0)
    assert leader_of(log.leadership[PLACE]) == leader


def two(place: Path):  # type: ignore[no-untyped-def]
    return brokers(place, 5)


def test_kip_101_scenario_1_a_follower_that_restarts_does_not_cut_to_its_high_watermark(place: Path) -> None:
    """A leads, B follows.  B has fetched m2, and does not know yet that it is below the high watermark.  B restarts; before it has
    fetched again A fails, and B leads.  With truncation to B's own high watermark, m2, which was acknowledged, is lost.
    """
    with two(place) as cluster:
        cluster.create_topic("t", replication_factor=2)
        log = log_of(cluster)
        a, b = log.state.replicas
        log.append(pending(b"m1"), 1.0)
        log.append(pending(b"m2"), 1.0)  # acknowledged: A and B have it
        assert log.high_watermark == 2
        cluster._home.brokers[b].high_watermarks[log.topic_id.hex(), 0] = 1  # what B knew last
        log.on(b).revive()  # B restarts: nothing but its log counts
        assert log.on(b).words[END] == 2, "it keeps what it has"
        cluster.stop_broker(a)
        assert log.state.leader == b
        assert values_of(cluster) == [b"m1", b"m2"]
        log.append(pending(b"m3"), 1.0)
        cluster.start_broker(a)
        assert_equal_replicas(log)


def test_kip_101_scenario_2_logs_of_equal_length_that_differ_are_made_equal(place: Path) -> None:
    """Both restart after a power cut: B, which is up first, has m1 only, leads in a new epoch, and gets m3 at the offset where A has m2.
    By length, or by high watermark, A's m2 would stay: two logs of one length with different records.
    """
    with two(place) as cluster:
        cluster.create_topic("t", replication_factor=2, unclean_leader_election_enable=True)
        log = log_of(cluster)
        a, b = log.state.replicas
        log.append(pending(b"m1"), 1.0)
        cluster.stop_broker(b)
        log.append(pending(b"m2"), 1.0)  # A alone has it
        cluster.stop_broker(a)
        cluster.start_broker(b)  # B leads, uncleanly
        log.append(pending(b"m3"), 1.0)
        assert [log.on(broker).words[END] for broker in (a, b)] == [2, 2]
        cluster.start_broker(a)
        assert [record[2] for record in records_on(log, a)] == [record[2] for record in records_on(log, b)]
        assert values_of(cluster) == [b"m1", b"m3"]
        assert_equal_replicas(log)


def test_kip_279_fast_fail_overs_one_question_is_not_enough(place: Path) -> None:
    """B leads in epoch 1 and 3, A in 2 and 4.  A has [0: e1][1: e2][2: e2]; B has [0: e1][1: e3].  A leads; B asks for the end of epoch 3.

    A has never heard of epoch 3: its answer is epoch 2, which B never heard of; B has to go on to epoch 1, and ask again.  With one
    question B would keep offset 1 of epoch 3 where A has offset 1 of epoch 2 (KAFKA-6361).
    """
    with two(place) as cluster:
        cluster.create_topic("t", replication_factor=2)
        log = log_of(cluster)
        b, a = log.state.replicas
        log.append(pending(b"0 of e1"), 1.0)
        move(cluster, log, a)
        write_to_leader(log, b"1 of e2")
        write_to_leader(log, b"2 of e2")
        move(cluster, log, b)
        write_to_leader(log, b"1 of e3")
        move(cluster, log, a)
        log.lead(log.leadership[PLACE], 1.0)
        assert [epoch for _, epoch, _ in records_on(log, a)] == [1, 2, 2]
        assert [epoch for _, epoch, _ in records_on(log, b)] == [1, 3]
        assert log.high_watermark == 1
        leader, follower = log.on(a), log.on(b)
        asked = leader.leader_epochs().floor(3, leader.words[HWM])
        assert asked == (2, 3), "the largest epoch up to 3 that A knows, and where it ended"
        assert divergence(follower.leader_epochs(), 2, leader.leader_epochs(), 3) == 1
        log.append(pending(b"3 of e4"), 1.0)
        assert [(offset, epoch) for offset, epoch, _ in records_on(log, a)] == [(0, 1), (1, 2), (2, 2), (3, 4)]
        assert records_on(log, a) == records_on(log, b)
        assert values_of(cluster) == [b"0 of e1", b"1 of e2", b"2 of e2", b"3 of e4"]


def test_a_follower_is_never_cut_to_its_high_watermark(place: Path) -> None:
    """Three replicas; the new leader has more than the follower's high watermark says, and the follower keeps what both have."""
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        log = log_of(cluster)
        _first, second, third = log.state.replicas
        write_to_leader(log, b"a")
        place_ = log.leadership[PLACE]
        for broker in (second, third):
            log.fetch(broker, place_, 1.0)
        assert log.high_watermark == 0
        cuts: list[int] = []
        move(cluster, log, second)
        from streamlog._log import recovery

        real = recovery.cut
        recovery.cut = lambda replica, offset, *rest: (cuts.append(offset), real(replica, offset, *rest))  # type: ignore[assignment]
        try:
            log.append(pending(b"b"), 1.0)
        finally:
            recovery.cut = real
        assert cuts == []
        assert values_of(cluster) == [b"a", b"b"]


def test_h40_a_writer_that_comes_back_from_a_hung_disk_publishes_nothing(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        log = log_of(cluster)
        log.append(pending(b"a"), 1.0)
        old = log.leadership[PLACE]
        late = pending(b"late")
        log.write(late, old, 1.0)  # inside its disk when the world goes on
        move(cluster, log, log.state.replicas[1])
        log.append(pending(b"b"), 1.0)
        log.publish(old, 1, 1.0)
        assert log.high_watermark == 2
        with pytest.raises(MovedError):
            log.write(pending(b"later"), old, 1.0)
        with pytest.raises(MovedError):
            log.fetch(log.state.replicas[2], old, 1.0)
        with pytest.raises(MovedError):
            log.locked(log.on(log.state.replicas[2]), 1.0, log._copy, old, [])
        assert values_of(cluster) == [b"a", b"b"]
        assert_equal_replicas(log)


def test_h40_a_copier_that_comes_late_writes_nothing(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        log = log_of(cluster)
        log.append(pending(b"a"), 1.0)
        _first, second, third = log.state.replicas
        old = log.leadership[PLACE]
        write_to_leader(log, b"old")
        copies = log._read(third, old, 1, 1.0)
        move(cluster, log, second)
        log.append(pending(b"new"), 1.0)
        with pytest.raises(MovedError):
            log.locked(log.on(third), 1.0, log._copy, old, copies)
        assert_equal_replicas(log)
        assert values_of(cluster) == [b"a", b"new"]


def test_a_change_that_is_half_applied_is_announced_again(place: Path) -> None:
    """Found by the model: who dies between the leader and `turn` leaves readers of the old leader without a word."""
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        log = log_of(cluster)
        log.append(pending(b"a"), 1.0)
        with cluster.consumer("t", auto_offset_reset="earliest") as consumer:
            assert [record.value for record in consumer.poll(timeout_ms=1000)] == [b"a"]
            write_to_leader(log, b"never")
            old = log.on(log.state.leader)
            real, died = type(old).store_turn, []

            def store_turn(self: object) -> None:
                if not died:
                    died.append(1)
                    raise KeyboardInterrupt
                real(self)  # type: ignore[arg-type]

            type(old).store_turn = store_turn  # type: ignore[method-assign, assignment]
            try:
                with pytest.raises(KeyboardInterrupt):
                    move(cluster, log, log.state.replicas[1])
            finally:
                type(old).store_turn = real  # type: ignore[method-assign]
            assert died
            log.append(pending(b"b"), 1.0)
            assert [record.value for record in consumer.poll(timeout_ms=1000)] == [b"b"]


# ---- epochs (org.apache.kafka's LeaderEpochFileCache; KIP-279)


@pytest.mark.parametrize(
    ("asked", "answer"),
    [(0, (-1, 0)), (1, (1, 10)), (2, (1, 10)), (3, (3, 25)), (4, (4, 40)), (9, (4, 40))],
)
def test_the_end_of_an_epoch_is_where_the_next_higher_one_begins(asked: int, answer: tuple[int, int]) -> None:
    assert Epochs([(1, 0), (3, 10), (4, 25)]).floor(asked, 40) == answer


def test_an_epoch_without_records_answers_nothing() -> None:
    epochs = Epochs([(1, 0), (3, 10), (5, 40)])
    assert epochs.floor(5, 40) == (3, 40)
    assert epochs.last_before(40) == 3
    assert epochs.last_before(10) == 1
    assert epochs.last_before(0) == -1


@pytest.mark.parametrize(
    ("own", "own_end", "leaders", "leader_end", "cut"),
    [
        ([(1, 0)], 5, [(1, 0)], 9, 5),  # behind
        ([(1, 0)], 9, [(1, 0)], 5, 5),  # ahead, in one epoch
        ([(1, 0)], 9, [(1, 0), (2, 5)], 9, 5),  # the leader went on in another epoch before
        ([(1, 0), (3, 5)], 9, [(1, 0), (2, 4)], 9, 4),
        ([(1, 0), (3, 5)], 9, [(1, 0), (2, 7)], 9, 5),
        ([(2, 0)], 9, [(1, 0)], 9, 0),  # nothing in common
        ([(1, 0)], 0, [(1, 0)], 9, 0),
        ([(1, 0), (3, 3), (5, 6)], 9, [(1, 0), (2, 2), (4, 4)], 9, 2),  # three questions
    ],
)
def test_where_logs_differ(own: list[tuple[int, int]], own_end: int, leaders: list[tuple[int, int]], leader_end: int, cut: int) -> None:
    assert divergence(Epochs(own), own_end, Epochs(leaders), leader_end) == cut


def test_aligned_says_which_log_ends_count(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        log = log_of(cluster)
        log.append(pending(b"a"), 1.0)
        move(cluster, log, log.state.replicas[1])
        write_to_leader(log, b"b")
        log.publish(log.leadership[PLACE], 1, 1.0)
        assert log.high_watermark == 1, "the others were not compared with the leader of this epoch"
        assert log.on(log.state.leader).words[ALIGNED] == log.state.leader_epoch
        assert log.replicate(1.0)
        assert log.high_watermark == 2
