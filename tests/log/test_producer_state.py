"""Producer state: Kafka's rules against a model, and the same state by whatever way it is made."""

import os
import random
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamlog
from streamlog._format import batch as fmt
from streamlog._format import names
from streamlog._log import producer_state
from streamlog._log.partition import PartitionLog
from streamlog._log.pending import Pending
from streamlog._log.producer_state import SEQUENCES, ProducerStates, newest_snapshot
from streamlog.cluster import Cluster, _Place
from streamlog.errors import InvalidProducerEpochError, OutOfOrderSequenceError
from streamlog.testing.faults import FaultyFileSystem

LAST = SEQUENCES


# ---- the rules, against the whole history ------------------------------------------------------------------------------------


class Model:
    """Remembers everything; Kafka's ProducerAppendInfo and ProducerStateEntry in the fewest words."""

    def __init__(self) -> None:
        self.batches: dict[int, list[tuple[int, int, int, int]]] = {}  # of a producer id: epoch, first, last, offset

    def append(self, producer_id: int, epoch: int, first: int, count: int, offset: int) -> int | str | None:
        """An offset: a duplicate; a word: refused; None: appended."""
        written = self.batches.setdefault(producer_id, [])
        last = (first + count - 1) % 2**31
        if written:
            current = written[-1][0]
            if epoch < current:
                return "epoch"
            recent = [batch for batch in written[-5:] if batch[0] == current] if epoch == current else []
            for _, known_first, known_last, known_offset in recent:
                if (known_first, known_last) == (first, last):
                    return known_offset
            if first != ((written[-1][2] + 1) % 2**31 if epoch == current else 0):
                return "sequence"
        written.append((epoch, first, last, offset))
        return None


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 2), st.sampled_from(["next", "again", "gap", "back", "zero", "wrap"]), st.integers(1, 3)),
        max_size=40,
    )
)
def test_sequences_are_checked_as_kafka_does(steps: list[tuple[int, int, str, int]]) -> None:
    model, states, offset = Model(), ProducerStates(), 0
    for producer_id, epoch, what, count in steps:
        written = model.batches.get(producer_id) or [(0, LAST, LAST, -1)]
        known_epoch, known_first, known_last, _ = written[-1]
        first = {
            "next": (known_last + 1) % 2**31, "again": known_first, "gap": (known_last + 2) % 2**31, "back": max(0, known_first - 1),
            "zero": 0, "wrap": LAST - 1,
        }[what]  # fmt: skip
        if what == "again" and producer_id in model.batches:
            epoch, count = known_epoch, (known_last - known_first) % 2**31 + 1
        expected = model.append(producer_id, epoch, first, count, offset)
        try:
            found = states.check((producer_id, first, epoch), count)
            got: int | str | None = None if found is None else found[2]
        except OutOfOrderSequenceError:
            got = "sequence"
        except InvalidProducerEpochError:
            got = "epoch"
        assert got == expected
        if expected is None:
            states.record((producer_id, first, epoch), count, offset, 0)
            offset += count


@pytest.mark.parametrize(
    ("written", "asked", "answer"),
    [
        ([], (7, 5, 0), None),  # unknown: any sequence
        ([(7, 0, 0, 3)], (7, 3, 0), None),
        ([(7, 0, 0, 3)], (7, 4, 0), OutOfOrderSequenceError),  # a gap
        ([(7, 0, 0, 3)], (7, 2, 0), OutOfOrderSequenceError),  # an overlap
        ([(7, LAST - 2, 0, 3)], (7, 0, 0), None),  # 2^31 - 1 is followed by 0
        ([(7, LAST, 0, 3)], (7, 2, 0), None),  # a batch that wraps inside
        ([(7, 0, 1, 3)], (7, 3, 0), InvalidProducerEpochError),
        ([(7, 0, 0, 3)], (7, 3, 1), OutOfOrderSequenceError),  # a new epoch begins at 0
        ([(7, 0, 0, 3)], (7, 0, 1), None),
    ],
)
def test_single_rules(written: list[tuple[int, int, int, int]], asked: tuple[int, int, int], answer: type[Exception] | None) -> None:
    states = ProducerStates()
    for number, (producer_id, first, epoch, count) in enumerate(written):
        states.record((producer_id, first, epoch), count, 10 * number, 0)
    if answer is None:
        assert states.check(asked, 3) is None
    else:
        with pytest.raises(answer):
            states.check(asked, 3)


def test_five_batches_are_remembered() -> None:
    states = ProducerStates()
    for number in range(7):
        states.record((1, 2 * number, 0), 2, 100 + 2 * number, 0)
    for number in range(2, 7):
        assert states.check((1, 2 * number, 0), 2) == (2 * number, 2 * number + 1, 100 + 2 * number, 0)
    with pytest.raises(OutOfOrderSequenceError):
        states.check((1, 2, 0), 2)
    with pytest.raises(OutOfOrderSequenceError):  # the same first, another last
        states.check((1, 12, 0), 1)


# ---- one state, many ways ----------------------------------------------------------------------------------------------------


def pending(producer: tuple[int, int, int], count: int, timestamp: int = 10**12) -> Pending:
    batch = Pending()
    batch.attributes, batch.columns = fmt.encode_rows([b"v"] * count)
    batch.count, batch.base_timestamp, batch.max_timestamp, batch.producer = count, timestamp, timestamp, producer
    return batch


def log_of(cluster: streamlog.Cluster, topic: str = "t") -> PartitionLog:
    return cluster._home.log(cluster._home.metadata.topic(topic), 0, 5)


def folded(log: PartitionLog, *, snapshots: bool) -> ProducerStates:
    states = newest_snapshot(log, log.high_watermark) if snapshots else ProducerStates()
    states.fold(log, log.high_watermark)
    return states


def snapshots(log: PartitionLog) -> list[int]:
    return names.snapshot_offsets(os.listdir(log.directory))


@pytest.mark.parametrize("round_", range(4))
def test_every_way_leads_to_the_same_state(round_: int, place: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes' views, segments that roll, snapshots, appends that are broken off: the fold of the log is one."""
    monkeypatch.setattr(producer_state, "SNAPSHOT_EVERY", 600)
    chance = random.Random(seed + round_)
    fs = FaultyFileSystem()
    clusters = [Cluster(_Place(place / "log"), fs=fs) for _ in range(3)]
    clusters[0].create_topic("t", segment_bytes=4096, index_interval_bytes=0)
    for cluster in clusters:
        cluster.topics()
    views = [log_of(cluster) for cluster in clusters]
    last: dict[int, tuple[int, int, int]] = {}  # of a producer: owner's view, epoch, next sequence
    for number in range(300):
        producer_id = chance.randrange(8)
        view, epoch, sequence = last.get(producer_id, (chance.randrange(3), 0, 0))
        if chance.random() < 0.05:
            epoch, sequence = epoch + 1, 0
        count = chance.randrange(1, 6)
        batch = pending((producer_id, sequence, epoch), count)
        if chance.random() < 0.2:
            fault = chance.choice(("before", "half", "after"))
            fs.steps.hook = lambda at, name, phase, fault=fault: breaking(name, phase, fault)
            with pytest.raises(InterruptedError):
                views[view].append(batch, 5)
            fs.steps.hook = None
            if chance.random() < 0.5:  # somebody else comes first
                views[(view + 1) % 3].append(pending(fmt.NO_PRODUCER, 1), 5)
        before = batch.base_offset
        views[view].append(batch, 5)
        assert before in (-1, batch.base_offset)
        last[producer_id] = view, epoch, sequence + count
        if number % 50 == 0:  # sent again: answered with its first offset
            again = pending((producer_id, sequence, epoch), count)
            views[view].append(again, 5)
            assert again.base_offset == batch.base_offset
    entries = folded(views[0], snapshots=False).entries
    assert len(snapshots(views[0])) > 3
    assert {producer_id: (entry[0], entry[1]) for producer_id, entry in entries.items()} == {
        producer_id: (epoch, sequence) for producer_id, (_, epoch, sequence) in last.items()
    }
    for view in views:
        assert folded(view, snapshots=True).entries == entries
        for producer_id, (owner, *_) in last.items():
            if views[owner] is view:
                assert view.producers.states.entries[producer_id] == entries[producer_id], "what its owner knows without reading"
    for offset in snapshots(views[0]):  # each one that counts is the fold of what is before it
        states = newest_snapshot(views[0], offset)
        whole = ProducerStates()
        whole.fold(views[0], states.offset)
        assert states.entries == whole.entries
    for cluster in clusters:
        cluster.close()
    assert streamlog.check(place / "log") == []


def breaking(name: str, phase: str, wanted: str) -> None:
    if name == "write *.log" and phase == wanted:
        raise InterruptedError


def test_snapshots_of_another_life_do_not_count(log: streamlog.Cluster) -> None:
    log.create_topic("t", segment_bytes=4096)
    view = log_of(log)
    sequence = 0
    while len(snapshots(view)) < 2:
        view.append(pending((1, sequence, 0), 50), 5)
        sequence += 50
    first, second = snapshots(view)
    path = Path(view.directory) / names.snapshot(second)
    whole = path.read_bytes()
    end = view.high_watermark
    assert newest_snapshot(view, end).offset == second
    assert newest_snapshot(view, second - 1).offset == first, "not beyond the end that is asked for"
    for damaged in (b"", whole[:-1], whole + b"\0", b"X" + whole[1:], whole[:60] + b"\1" + whole[61:]):
        path.write_bytes(damaged)
        assert newest_snapshot(view, end).offset == first
    salt = struct.unpack_from("<Q", whole, 16)[0]
    body = whole[16:24].replace(whole[16:24], struct.pack("<Q", salt ^ 1)) + whole[24:]
    path.write_bytes(whole[:8] + struct.pack("<Q", fmt.checksum(body, salt ^ 1)) + body)
    assert newest_snapshot(view, end).offset == first, "of another segment's salt"
    path.rename(path.with_name(names.snapshot(second + 1)))
    assert newest_snapshot(view, end).offset == first, "under another name"
    path.with_name(names.snapshot(second + 1)).unlink()
    (Path(view.directory) / names.snapshot(first)).unlink()
    states = newest_snapshot(view, end)
    assert (states.offset, states.entries) == (0, {}), "none: the log alone"
    assert folded(view, snapshots=True).entries[1][1] == sequence


def test_a_cut_takes_the_state_back(place: Path) -> None:
    """The log goes on in another epoch, and has lost a tail: what is known is what the log says."""
    with streamlog.open(place / "log") as cluster:
        cluster.create_topic("t")
        view = log_of(cluster)
        for sequence in range(0, 30, 10):
            view.append(pending((1, sequence, 0), 10), 5)
        view.producers.take_snapshot()
        stale = Path(view.directory) / names.snapshot(30)
        kept = stale.read_bytes()
        segment = Path(view.directory) / names.log(0)
        position = view.words[13]
    data = segment.read_bytes()
    segment.write_bytes(data[: position - 8])  # the last batch is torn
    for path in (place / "log" / "run").iterdir():
        path.unlink()
    with streamlog.open(place / "log") as cluster:
        view = log_of(cluster)
        view.ensure_valid(5)
        assert view.high_watermark == 20
        with pytest.raises(OutOfOrderSequenceError):
            view.append(pending((1, 30, 0), 10), 5)
        again = pending((1, 10, 0), 10)
        view.append(again, 5)
        assert again.base_offset == 10
        assert not stale.exists()
        stale.write_bytes(kept)  # its removal was not on the disk at another power cut
        view.append(pending((2, 0, 0), 20), 5)
        assert newest_snapshot(view, view.high_watermark).offset == 0, "it speaks of records that were cut away"
        view.append(pending((1, 20, 0), 10), 5)
        assert streamlog.check(cluster) == []


def test_producers_that_write_no_more_are_forgotten(place: Path) -> None:
    with streamlog.open(place / "log", producer_id_expiration_ms=60_000) as cluster:
        cluster.create_topic("t", segment_bytes=4096)
        view = log_of(cluster)
        now = cluster._home.clock.now_ms()
        view.append(pending((1, 0, 0), 10, now - 120_000), 5)  # old records, but appended just now
        view.append(pending((2, 0, 0), 10, now), 5)
        view.producers.take_snapshot()
        assert set(newest_snapshot(view, view.high_watermark).entries) == {1, 2}
        cluster._home.clock.advance(61_000)
        view.append(pending((3, 0, 0), 10, now + 61_000), 5)
        view.producers.take_snapshot()
        view.append(pending((3, 10, 0), 10, now + 61_000), 5)
        assert set(newest_snapshot(view, view.high_watermark).entries) == {3}
        assert set(view.producers.states.entries) == {3}
        view.append(pending((1, 77, 0), 1, now), 5)  # an unknown producer may begin anywhere


def test_h20_only_its_own_appends_are_looked_at(log: streamlog.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rare writer beside a busy one that rolls segments reads nothing of the log; a fold is for what may have changed its own state."""
    log.create_topic("t", segment_bytes=4096)
    other = streamlog.open(log.location)
    mine, busy = log_of(log), log_of(other)
    mine.append(pending((1, 0, 0), 1), 5)
    folds: list[int] = []
    real = ProducerStates.fold
    monkeypatch.setattr(ProducerStates, "fold", lambda self, log, end: folds.append(end) or real(self, log, end))
    for number in range(200):
        busy.append(pending((2, number, 0), 1), 5)
    folds.clear()
    mine.append(pending((1, 1, 0), 1), 5)
    assert folds == []
    with pytest.raises(OutOfOrderSequenceError):
        mine.append(pending((3, 5, 0), 1), 5) or mine.append(pending((3, 4, 0), 1), 5)
    assert len(folds) == 2, "an unknown producer that does not begin at 0: once without the lock, once under it"
    other.close()


def test_a_fold_is_not_done_under_the_lock(log: streamlog.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    log.create_topic("t")
    view = log_of(log)
    for sequence in range(0, 1000, 10):
        view.append(pending((1, sequence, 0), 10), 5)
    view.producers.states, view.producers.broken_off = ProducerStates(0, view.epoch), True  # as one that wrote none of it
    under_lock: list[tuple[bool, int]] = []
    real = ProducerStates.fold

    def fold(self: ProducerStates, log: PartitionLog, end: int, aborted: object = None) -> None:
        from _thread import get_ident

        from streamlog._os import locks

        under_lock.append((get_ident() in locks.inside, end - self.offset))
        real(self, log, end)

    monkeypatch.setattr(ProducerStates, "fold", fold)
    view.append(pending((1, 1000, 0), 10), 5)
    assert under_lock == [(False, 1000), (True, 0)]


def test_check_finds_what_is_wrong_with_sequences(place: Path) -> None:
    """A batch twice, a gap, an epoch that falls, a snapshot that says something else."""
    for name, wrong in (("twice", (1, 0, 0)), ("gap", (1, 7, 0)), ("falls", (1, 0, 1)), ("begins", (1, 3, 3))):
        with streamlog.open(place / name) as cluster:
            cluster.create_topic("t")
            view = log_of(cluster)
            view.append(pending((1, 0, 0 if name != "falls" else 2), 2), 5)
            view.producers.states.entries[1] = wrong[2], wrong[1], ((0, 0, 0, 0),), 0, 0  # so that it is taken
            view.append(pending(wrong, 3), 5)
            assert {finding.invariant for finding in streamlog.check(cluster)} == {"I11"}, name
    with streamlog.open(place / "snapshot") as cluster:
        cluster.create_topic("t")
        view = log_of(cluster)
        view.append(pending((1, 0, 0), 2), 5)
        view.producers.states.entries[1] = 0, 5, ((0, 4, 0, 10**12),), 0, 10**12
        view.producers.take_snapshot()
        assert {finding.invariant for finding in streamlog.check(cluster)} == {"I12"}
