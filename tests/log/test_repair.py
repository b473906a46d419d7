"""Transactions and a repair: nothing aborted is shown, nothing that was committed is hidden, and nothing commits without its records."""

import itertools
import multiprocessing
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from random import Random
from threading import Event

import pytest

import streamlog
from conftest import wait_until
from crash.steps import die_at, steps_of
from log.damaged import HEADER, batch_at, committed, filled, flip, read, read_around, reboot, streamlog_command
from streamlog._format.batch import PREFIX
from streamlog._log.state import DIRTY
from streamlog._os import process
from streamlog._replica import checkpoints

FIRST = "broker-0/t-0/00000000000000000000.log"


@pytest.mark.parametrize("since", [0, 1, 2])
@pytest.mark.parametrize("marker", ["sound", "rotten"])
@pytest.mark.parametrize("first", ["commit_transaction", "abort_transaction"])
@pytest.mark.parametrize("second", ["commit_transaction", "abort_transaction"])
@pytest.mark.parametrize("keep", ["before", "behind"])
def test_a_transaction_whose_marker_went_ends_as_it_had_ended(first: str, second: str, keep: str, marker: str, since: int, location: Path) -> None:
    """Whatever its transactional id has done `since`.  The producer's next marker does not end it."""
    with streamlog.open(location) as log:
        log.create_topic("t")
        log.create_topic("other")
        with log.producer(transactional_id="x", linger_ms=0) as producer, log.producer(linger_ms=0) as other:
            producer.init_transactions()
            rots = [other.send("t", b"rots").result()] if keep == "behind" else []
            producer.begin_transaction()
            producer.send("t", b"first").result()
            rots += [other.send("t", b"rots").result()] if keep == "before" else []
            getattr(producer, first)()
            other.send("t", b"last").result()
            for number in range(since):
                producer.begin_transaction()
                producer.send("other", b"x").result()
                getattr(producer, ("commit_transaction", "abort_transaction")[number])()
            flip(location / FIRST, batch_at(location / FIRST, rots[0].offset)[0] + 90)
            if marker == "rotten":
                flip(location / FIRST, batch_at(location / FIRST, 2)[0] + 60)
            assert streamlog_command(location, "repair", "t:0", "--keep", keep).returncode == 0
            shown = [b"first"] * (first == "commit_transaction" and (keep, marker) != ("behind", "rotten"))
            shown += [b"last"] * (keep == "behind")
            assert committed(log) == shown, "at once"
            producer.begin_transaction()
            producer.send("t", b"second").result()
            getattr(producer, second)()
        shown += [b"second"] * (second == "commit_transaction")
        assert committed(log) == shown
        assert streamlog.check(log) == []
    reboot(location)
    with streamlog.open(location) as log:
        assert committed(log) == shown
        assert streamlog.check(log) == []


@pytest.mark.parametrize("outcome", ["commit_transaction", "abort_transaction"])
@pytest.mark.parametrize("keep", ["before", "behind"])
def test_a_marker_that_rots_behind_a_newer_snapshot_keeps_no_repair_waiting(keep: str, outcome: str, location: Path) -> None:
    """The snapshot at the segment's end knows that the transaction ended; a fold from before the damage does not."""
    with streamlog.open(location) as log:
        log.create_topic("t", segment_bytes=4096)
        with log.producer(transactional_id="x", linger_ms=0) as producer, log.producer(linger_ms=0) as plain:
            producer.init_transactions()
            producer.begin_transaction()
            producer.send("t", b"first").result()
            getattr(producer, outcome)()
            for _ in range(8):
                plain.send("t", b"-" * 1000).result()
            flip(location / FIRST, batch_at(location / FIRST, 1)[0] + 60)
            log.repair_partition("t", 0, keep=keep)
        first = [b"first"] * (outcome == "commit_transaction" and keep == "before")
        assert committed(log) == first + [b"-" * 1000] * (8 if keep == "behind" else 0)
        assert streamlog.check(log) == []


def opened(log: streamlog.Cluster) -> streamlog.Producer:
    """Records at 0 to 4 of `t`: 1 and 2 in a transaction that is open, which has one in `other` as well; returns its producer."""
    log.create_topic("t")
    log.create_topic("other")
    producer = log.producer(transactional_id="x", linger_ms=0, durability="fsync")
    producer.init_transactions()
    with log.producer(linger_ms=0, durability="fsync") as plain:
        plain.send("t", b"before").result()
        producer.begin_transaction()
        producer.send("other", b"open").result()
        producer.send("t", b"open").result()
        producer.send("t", b"open").result()
        plain.send("t", b"behind").result()
        plain.send("t", b"last").result()
    return producer


@pytest.mark.parametrize("keep", ["before", "behind"])
@pytest.mark.parametrize("rotten", range(5))
def test_no_transaction_commits_without_what_a_repair_removed(rotten: int, keep: str, location: Path) -> None:
    with streamlog.open(location) as log:
        producer = opened(log)
        flip(location / FIRST, batch_at(location / FIRST, rotten)[0] + 90)
        log.repair_partition("t", 0, keep=keep)
        values = [b"before", b"open", b"open", b"behind", b"last"]
        shown = [value for value in (values[:rotten] if keep == "before" else values[rotten + 1 :]) if value != b"open"]
        assert committed(log) == shown
        with pytest.raises(streamlog.ProducerFencedError):
            producer.commit_transaction()
        producer.close()
        with log.producer(transactional_id="x", linger_ms=0) as again:
            again.init_transactions()
            with again.transaction():
                again.send("t", b"again")
        assert committed(log) == [*shown, b"again"]
        with log.consumer("other", auto_offset_reset="earliest", isolation_level="read_committed") as consumer:
            assert consumer.poll() == []
        assert streamlog.check(log) == []


@pytest.mark.parametrize("keep", ["before", "behind"])
@pytest.mark.parametrize("rotten", range(5))
@pytest.mark.parametrize("boot", [True, False])
def test_a_repair_ends_the_transaction_of_a_process_that_was_killed(boot: bool, rotten: int, keep: str, location: Path) -> None:
    pid = os.fork()
    if pid == 0:
        opened(streamlog.open(location))
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    with streamlog.open(location) as log:
        read(log)  # closing it says on the disk how much is there
    flip(location / FIRST, batch_at(location / FIRST, rotten)[0] + 90)
    if boot:
        reboot(location)
    with streamlog.open(location) as log:
        log.repair_partition("t", 0, keep=keep)
        values = [b"before", b"open", b"open", b"behind", b"last"]
        assert committed(log) == [value for value in (values[:rotten] if keep == "before" else values[rotten + 1 :]) if value != b"open"]
        assert log.topic("t").end_offsets(isolation_level="read_committed") == log.topic("t").end_offsets(), "no transaction is open"
        assert streamlog.check(log) == []


@pytest.mark.parametrize("keep", ["before", "behind"])
@pytest.mark.parametrize("boot", [True, False])
def test_who_dies_in_a_repair_shows_no_aborted_record(boot: bool, keep: str, place: Path) -> None:
    """At each step: the log is as before, or repaired, and in between the markers are there with the cut."""

    def before(log: streamlog.Cluster, _: Callable[[str], None]) -> None:
        log.create_topic("t", segment_bytes=4096)
        with log.producer(transactional_id="a", linger_ms=0) as aborts, log.producer(transactional_id="c", linger_ms=0) as commits:
            for producer in (aborts, commits):
                producer.init_transactions()
                producer.begin_transaction()
            aborts.send("t", b"aborted").result()
            commits.send("t", b"committed").result()
            with log.producer(linger_ms=0, durability="fsync") as plain:
                rots = plain.send("t", b"rots" * 20).result().offset
                aborts.send("t", b"aborted").result()
                commits.send("t", b"committed, too").result()
                aborts.abort_transaction()
                commits.commit_transaction()
                plain.send("t", b"last").result()
        checkpoints.save(log._home, 10.0)  # else a reboot cuts what was not synced for certain
        path = Path(log.location) / FIRST
        flip(path, batch_at(path, rots)[0] + 90)

    def scenario(log: streamlog.Cluster, _: Callable[[str], None]) -> None:
        log.repair_partition("t", 0, keep=keep)

    as_before = [b"committed", b"committed, too", b"last"]
    repaired = as_before[:1] if keep == "before" else as_before[1:]
    names, seen = steps_of(place / "rehearsal", before, scenario), set()
    for number, step in enumerate(names):
        for phase in ("half", "after") if step.startswith("write") else ("after",):
            path = place / f"{number}-{phase}"
            _, killed = die_at(path, number, phase, before, scenario)
            if boot:
                reboot(path)
            with streamlog.open(path) as log:
                shown = committed(log)
                assert shown in (as_before, repaired), f"the child died {phase} step {number}, {step!r}, of {names}"
                log.repair_partition("t", 0, keep=keep)
                assert committed(log) == (repaired if shown != repaired else shown)
                assert streamlog.check(log) == [], f"the child died {phase} step {number}, {step!r}, of {names}"
            seen.add((tuple(shown), killed))
    assert {(tuple(as_before), True), (tuple(repaired), True)} <= seen


def transact(location: Path, name: str, stop: Event) -> None:
    """Commit and abort in turn, in both topics, until told to stop; a new producer after each fencing."""
    with streamlog.open(location) as log:
        producer = None
        for number in itertools.count():
            if stop.is_set():
                break
            try:
                if producer is None:
                    producer = log.producer(transactional_id=name, linger_ms=0)
                    producer.init_transactions()
                producer.begin_transaction()
                for topic in ("t", "other"):
                    producer.send(topic, b"aborted" if number % 2 else b"%s %d" % (name.encode(), number))
                producer.flush()
                producer.abort_transaction() if number % 2 else producer.commit_transaction()
            except streamlog.ProducerFencedError:
                producer.close()
                producer = None


@pytest.mark.parametrize("keep", ["before", "behind"])
def test_producers_of_other_processes_run_transactions_while_a_log_is_repaired(keep: str, location: Path) -> None:
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with streamlog.open(location) as log:
        log.create_topic("t")
        log.create_topic("other")
        children = [context.Process(target=transact, args=(location, name, stop)) for name in ("x", "y", "z")]
        for child in children:
            child.start()
        try:
            with log.producer(linger_ms=0) as plain:
                for _ in range(12):
                    begun = log.topic("t").end_offsets()[0]
                    wait_until(lambda: log.topic("t").end_offsets()[0] > begun + 8)
                    rotten = plain.send("t", b"plain").result().offset
                    newest = sorted((location / "broker-0/t-0").glob("*.log"))[-1]
                    flip(newest, batch_at(newest, rotten)[0] + 90)
                    log.repair_partition("t", 0, keep=keep)
                    assert b"aborted" not in committed(log)
        finally:
            stop.set()
            for child in children:
                child.join(60)
        assert [child.exitcode for child in children] == [0, 0, 0]
        values, gaps = read_around(log, isolation_level="read_committed")
        assert gaps == []
        assert b"aborted" not in [record.value for record in values]
        with log.consumer("other", auto_offset_reset="earliest", isolation_level="read_committed") as consumer:
            whole = set(itertools.chain.from_iterable([record.value for record in found] for found in iter(consumer.poll, [])))
        assert {record.value for record in values} - {b"plain"} <= whole
        assert streamlog.check(log) == []


class History:
    """Records of transactions and others in a topic, at random; `fates` says what became of each, by offset."""

    def __init__(self, log: streamlog.Cluster, random: Random) -> None:
        self.fates: dict[int, str] = {}
        self.open: dict[streamlog.Producer, list[int]] = {}
        log.create_topic("t", **random.choice([{}, {"segment_bytes": 4096}]))
        log.create_topic("other")
        plain = log.producer(linger_ms=0)
        producers = [log.producer(transactional_id=f"x{number}", linger_ms=0) for number in range(random.randint(1, 4))]
        for producer in producers:
            producer.init_transactions()
        for _ in range(random.randint(5, 60)):
            producer = random.choice([plain, *producers])
            value = bytes(random.randrange(300))
            if producer is plain:
                self.fates[plain.send("t", value).result().offset] = "plain"
            elif producer not in self.open:
                producer.begin_transaction()
                self.open[producer] = []
            elif random.random() < 0.6:
                self.open[producer].append(producer.send("t", value).result().offset)
                self.fates[self.open[producer][-1]] = "open"
            else:
                producer.send("other", b"x").result()
                fate = random.choice(["committed", "aborted"])
                producer.commit_transaction() if fate == "committed" else producer.abort_transaction()
                self.fates.update(dict.fromkeys(self.open.pop(producer), fate))
        if random.random() < 0.7:
            checkpoints.save(log._home, 10.0)


def check_what_is_shown(log: streamlog.Cluster, fates: dict[int, str]) -> list[tuple[int, int]]:
    """Nothing but what was committed, and all of it that is there; returns the gaps."""
    topic = log.topic("t")
    if streamlog.check(log) == []:
        wait_until(lambda: topic.end_offsets(isolation_level="read_committed") == topic.end_offsets())  # somebody ends what is hanging
    shown = {record.offset for record in read_around(log, isolation_level="read_committed")[0]}
    assert {fates[offset] for offset in shown} <= {"plain", "committed"}
    records, gaps = read_around(log)
    if not gaps:
        assert {record.offset for record in records if fates[record.offset] in ("plain", "committed")} <= shown
    return gaps


@pytest.mark.parametrize("how", ["lives", "is killed", "is killed by a reboot"])
def test_whatever_rots_a_repair_shows_what_was_committed_and_nothing_else(how: str, place: Path, seed: int) -> None:
    """One to three bytes rot, anywhere in the log; its process lives on, or was killed."""
    for number in range(40):
        random = Random(seed * 1000 + number)
        location = place / str(number)
        if how == "lives":
            log = streamlog.open(location)
            history = History(log, random)
            fates, still_open = history.fates, history.open
        else:
            pid = os.fork()
            if pid == 0:
                (place / "fates").write_bytes(pickle.dumps(History(streamlog.open(location), Random(seed * 1000 + number)).fates))
                os.kill(os.getpid(), signal.SIGKILL)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
            fates, still_open = pickle.loads((place / "fates").read_bytes()), {}
        segments = sorted((location / "broker-0/t-0").glob("*.log"))
        for path in random.sample(segments, min(len(segments), random.randint(1, 3))):  # (two bytes of one header may look like a newer version's)
            flip(path, random.randrange(len(path.read_bytes().rstrip(b"\0"))))
        if how == "is killed by a reboot":
            reboot(location)
        if how != "lives":
            log = streamlog.open(location)
        try:
            check_what_is_shown(log, fates)
            keep = random.choice(["before", "behind"])
            log.repair_partition("t", 0, keep=keep)
            assert check_what_is_shown(log, fates) == []
            assert streamlog.check(log) == []
            for producer, offsets in still_open.items():
                try:
                    producer.commit_transaction()
                    assert offsets == []
                except streamlog.ProducerFencedError:
                    pass
            log.close()
        except BaseException as error:
            error.add_note(f"round {number}")
            raise
        shutil.rmtree(location)


# ---- without a repair


@pytest.mark.parametrize("index", ["whole", "lost"])
@pytest.mark.parametrize("outcome", ["commit_transaction", "abort_transaction"])
@pytest.mark.parametrize("boot", [True, False])
def test_a_marker_that_rots_lets_nothing_aborted_be_seen(boot: bool, outcome: str, index: str, location: Path) -> None:
    """At each byte.  The index says what was aborted; where it is lost, what has no marker is shown to nobody."""
    with streamlog.open(location) as log:
        log.create_topic("t")
        with log.producer(transactional_id="x", linger_ms=0, durability="fsync") as producer:
            producer.init_transactions()
            for value, end in ((b"first", outcome), (b"second", "commit_transaction")):
                producer.begin_transaction()
                producer.send("t", value).result()
                getattr(producer, end)()
    position, length = batch_at(location / FIRST, 1)
    for at in range(0, length, 1 if (boot, outcome, index) == (True, "abort_transaction", "whole") else 5):
        flip(location / FIRST, position + at)
        if boot:
            reboot(location)
            if index == "lost":
                (location / FIRST).with_suffix(".txnindex").unlink()
        with streamlog.open(location) as log:
            shown = [b"first"] * (outcome == "commit_transaction" and not (boot and index == "lost")) + [b"second"]
            assert committed(log) == shown, at
            assert read(log) == ([0, 2], [(1, 2)]), at
            assert {finding.invariant for finding in streamlog.check(log)} == {"I3"}, at
            with log.producer(transactional_id="y", linger_ms=0) as producer:
                producer.init_transactions()
        flip(location / FIRST, position + at)
        if boot and index == "lost":
            reboot(location)
            with streamlog.open(location) as log:
                assert committed(log)[-1] == b"second", "the index is made anew"


@pytest.mark.parametrize("what", ["header", "batch"])
@pytest.mark.parametrize("byte", [0, 2, 0x81, 0xFF])
def test_a_version_byte_that_rots_is_damage(byte: int, what: str, location: Path) -> None:
    """A later version does not have this version's checksum.  Who reads is told of the version; recovery and repair know better."""
    path = filled(location, 100, segment_bytes=4096)
    segments = sorted(path.parent.glob("*.log"))
    bases = [int(each.stem) for each in segments]
    which = bases[1] + 2
    position = batch_at(path, 2)[0] if what == "batch" else 0
    with open(segments[1], "r+b") as file:
        file.seek(position + 4)
        file.write(bytes([byte]))
    gap = (which, which + 1) if what == "batch" else (bases[1], bases[2])
    reboot(location)
    for again in range(2):
        with streamlog.open(location) as log:
            assert read(log) == ([n for n in range(100 + again) if not gap[0] <= n < gap[1]], [gap])
            with log.consumer("t", auto_offset_reset="earliest") as consumer, pytest.raises(streamlog.UnsupportedFormatError):
                while consumer.poll():
                    pass
            with log.producer(linger_ms=0) as producer:
                assert producer.send("t", b"new").result().offset == 100 + again
    with streamlog.open(location) as log:
        log.repair_partition("t", 0, keep="behind")
        assert read(log) == (list(range(gap[1], 102)), [])
        assert streamlog.check(log) == []


@pytest.mark.parametrize("what", ["header", "batch"])
def test_a_newer_version_is_touched_by_nobody(what: str, location: Path) -> None:
    path = filled(location, 20)
    position = batch_at(path, 10)[0] if what == "batch" else 0
    with open(path, "r+b") as file:
        file.seek(position)
        file.write(PREFIX.pack(b"SLB1" if what == "batch" else b"SLS1", 2, 12345))
    data = path.read_bytes()
    reboot(location)
    with streamlog.open(location) as log:
        with pytest.raises(streamlog.UnsupportedFormatError), log.consumer("t", auto_offset_reset="earliest") as consumer:
            while consumer.poll():
                pass
        with pytest.raises(streamlog.UnsupportedFormatError), log.producer(linger_ms=0) as producer:
            producer.send("t", b"new").result()
        with pytest.raises(streamlog.UnsupportedFormatError):
            log.repair_partition("t", 0, keep="before")
    assert path.read_bytes() == data


@pytest.mark.parametrize("at", [0, 4, 8, 28, 60, 90])
def test_a_log_whose_first_batch_rots_goes_on_after_a_death(at: int, location: Path) -> None:
    path = filled(location, 100)  # more than an index entry's worth: who recovers begins to look behind the first batch
    flip(path, HEADER + at)
    pid = os.fork()
    if pid == 0:
        with streamlog.open(location) as log:
            words = log._log(log._refreshed().topic("t"), 0).words
            producer = log.producer(linger_ms=0)
            producer.send("t", b"x").result()
            words[DIRTY] = process.token()  # it dies in an append
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    with streamlog.open(location) as log, log.producer(linger_ms=0) as producer:
        assert producer.send("t", b"new").result().offset == 101
        assert read(log) == (list(range(1, 102)), [(0, 1)])
