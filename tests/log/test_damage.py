"""Damage is not a tail: what was on the disk, or published in this boot, is never cut away in silence."""

import logging
import os
import shutil
import signal
from _thread import get_ident
from pathlib import Path

import pytest

import streamlog
from conftest import values_of
from log.damaged import BATCH, HEADER, filled, flip, read, reboot, streamlog_command
from replica.clusters import brokers, log_of, records_on, settle
from streamlog._client import damage
from streamlog._log import recovery
from streamlog._log.partition import PartitionLog
from streamlog._log.state import ALIGNED, BOOT, DAMAGED, DIRTY, END, EPOCH, HWM, MOUNT, SYNCED
from streamlog._os import files, locks
from streamlog._os.locks import under
from streamlog.cli import main


def sizes(location: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (location / "broker-0/t-0").glob("*.log")}


@pytest.mark.parametrize("config", [{}, {"segment_bytes": 4096}])
@pytest.mark.parametrize("which", [0, 7, 39])
def test_a_bit_that_rots_below_the_recovery_point_costs_its_batch_alone(which: int, config: dict[str, int], location: Path, caplog) -> None:
    filled(location, **config)
    base, path = max((int(path.stem), path) for path in (location / "broker-0/t-0").glob("*.log") if int(path.stem) <= which)
    flip(path, HEADER + BATCH * (which - base) + 90)
    before = sizes(location)
    reboot(location)
    with caplog.at_level(logging.ERROR, "streamlog"), streamlog.open(location) as log:
        assert read(log) == ([n for n in range(40) if n != which], [(which, which + 1)])
        assert before.items() <= sizes(location).items(), "nothing is removed"
        with log.producer(linger_ms=0) as producer:
            placed = producer.send("t", b"new").result()
        assert placed.offset == 40
        assert {finding.invariant for finding in streamlog.check(log)} == {"I3"}
    if not (config and which < 30):  # a segment that lies wholly below the recovery point is not scanned
        assert f"offset {which} is missing or cannot be read" in caplog.text
    reboot(location)
    with streamlog.open(location) as log:
        assert read(log) == ([n for n in range(41) if n != which], [(which, which + 1)])


def test_a_tail_that_was_not_synced_is_cut_though_sound_batches_follow(location: Path, caplog) -> None:
    """H27: at and above the recovery point nobody knows what was on the disk.  The log says so."""
    path = filled(location, durability="os")
    flip(path, HEADER + BATCH * 10 + 90)
    reboot(location)
    with streamlog.open(location) as log:
        assert read(log) == (list(range(10)), [])
        with log.producer(linger_ms=0) as producer:
            assert producer.send("t", b"new").result().offset == 10
        assert streamlog.check(log) == []
    assert "t-0 ends at offset 10" in caplog.text
    assert "up to offset 40" in caplog.text
    caplog.clear()
    reboot(location)
    with streamlog.open(location) as log:
        assert read(log)[0] == list(range(11))
    assert not caplog.text, "a log that ends where it was written to is not cut"


def test_a_file_that_lost_its_synced_end_is_damaged(location: Path) -> None:
    path = filled(location)
    os.truncate(path, HEADER + BATCH * 25)
    reboot(location)
    with streamlog.open(location) as log:
        assert read(log) == (list(range(25)), [(25, 40)])
        assert log.topic("t").end_offsets() == {0: 40}
        assert streamlog.check(log) != []


@pytest.mark.parametrize("what", ["header", "file", "first header"])
def test_a_synced_segment_that_cannot_be_read_is_kept(what: str, location: Path) -> None:
    filled(location, 100, segment_bytes=4096)
    segments = sorted((location / "broker-0/t-0").glob("*.log"))
    bases = [int(path.stem) for path in segments]
    assert len(bases) > 2
    lost = 0 if what == "first header" else 1
    if what == "file":
        segments[lost].unlink()
    else:
        flip(segments[lost], 30)
    reboot(location)
    with streamlog.open(location) as log:
        kept = [n for n in range(100) if not bases[lost] <= n < bases[lost + 1]]
        assert read(log) == (kept, [(bases[lost], bases[lost + 1])])
        assert (what == "file") != segments[lost].exists()
        with log.producer(linger_ms=0) as producer:
            assert producer.send("t", b"new").result().offset == 100
        assert streamlog.check(log) != []


ROT = b"\xee" * 40


def rot_header(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(ROT)


@pytest.mark.parametrize("durability", ["os", "fsync"])
@pytest.mark.parametrize("config", [{}, {"segment_bytes": 4096}])
@pytest.mark.parametrize("boot", [True, False])
@pytest.mark.parametrize("keep", ["before", "behind"])
def test_a_header_that_rots_costs_its_segment_alone(
    keep: str, boot: bool, config: dict[str, int], durability: str, location: Path
) -> None:
    """Also the header of the only segment, or of the one that is written to."""
    filled(location, 100, durability=durability, **config)
    last = sorted((location / "broker-0/t-0").glob("*.log"))[-1]
    base = int(last.stem)
    assert bool(base) == bool(config)
    rot_header(last)
    if boot:
        reboot(location)
    synced = 100 if durability == "fsync" or not boot else max(base, 1)
    damage = [] if synced == base else [(base, synced)]
    with streamlog.open(location) as log:
        assert read(log) == (list(range(base)), damage)
        with log.producer(linger_ms=0) as producer:
            assert producer.send("t", b"new").result().offset == synced
        assert bool(streamlog.check(log)) == bool(damage)
        assert read(log) == ([*range(base), synced], damage)
    if damage:
        assert last.read_bytes()[:40] == ROT
        assert streamlog_command(location, "repair", "t:0", "--keep", keep).returncode == 0
        with streamlog.open(location) as log:
            assert read(log) == (list(range(base)) if keep == "before" else [synced], [])
            with log.producer(linger_ms=0) as producer:
                assert producer.send("t", b"new").result().offset == (base if keep == "before" else synced + 1)
            assert streamlog.check(log) == []


def test_a_leftover_without_a_header_does_not_hide_what_is_there(location: Path) -> None:
    """A name that a cut removed, and a power cut brought back."""
    filled(location)
    leftover = location / "broker-0/t-0" / f"{20:020}.log"
    leftover.write_bytes(bytes(HEADER))
    reboot(location)
    with streamlog.open(location) as log:
        assert read(log) == (list(range(40)), [])
        assert not leftover.exists()
        assert streamlog.check(log) == []


def test_metadata_that_rotted_are_not_cut(location: Path) -> None:
    with streamlog.open(location) as log:
        for number in range(5):
            log.create_topic(f"t{number}")
        path = location / "broker-0/__cluster_metadata-0/00000000000000000000.log"
        second = HEADER + int.from_bytes(path.read_bytes()[HEADER + 28 : HEADER + 32], "little")
    flip(path, second + 85)
    reboot(location)
    for _ in range(2):
        with pytest.raises(streamlog.CorruptRecordError, match="next readable.*`streamlog repair __cluster_metadata:0`"):
            streamlog.open(location)
        assert sorted(each.name for each in (location / "broker-0").glob("t*")) == [f"t{number}-0" for number in range(5)]
    shown = streamlog_command(location, "repair", "__cluster_metadata:0")
    assert shown.returncode == 1
    assert "offsets 1 to 1 cannot be read" in shown.stdout
    done = streamlog_command(location, "repair", "__cluster_metadata:0", "--keep", "behind")
    assert done.returncode == 0, done.stderr
    assert "topic 't0' (partitions: 1) was taken back" in done.stderr
    with streamlog.open(location) as log:
        assert log.topics() == [f"t{number}" for number in range(5)]
        assert streamlog.check(log) == []


@pytest.mark.parametrize("keep", ["before", "behind"])
@pytest.mark.parametrize("boot", [True, False])
def test_topics_whose_metadata_rotted_are_taken_back_with_their_records(boot: bool, keep: str, location: Path) -> None:
    with streamlog.open(location) as log:
        log.create_topic("t", partitions=2)
        log.topic("t").add_partitions(3)
        log.create_topic("gone")
        log.delete_topic("gone")
        with log.producer() as producer:
            for number in range(30):
                producer.send("t", b"%d" % number, partition=number % 3)
        with log.consumer("t", group_id="g", auto_offset_reset="earliest") as consumer:
            assert len(consumer.poll(max_records=10)) == 10
            consumer.commit()
            committed = [consumer.committed(("t", number)) for number in range(3)]
        with log.producer(enable_idempotence=True) as producer:
            first = producer._id()
    flip(location / "broker-0/__cluster_metadata-0/00000000000000000000.log", HEADER + 85)
    if boot:
        reboot(location)
    done = streamlog_command(location, "repair", "__cluster_metadata:0", "--keep", keep)
    assert done.returncode == 0, done.stderr
    with streamlog.open(location) as log:
        assert log.topics() == ["t"]
        assert log.topics(internal=True) == ["__consumer_offsets", "t"]
        assert sorted(values_of(log)) == sorted(b"%d" % number for number in range(30))
        with log.consumer(group_id="g") as consumer:
            consumer.subscribe(["t"])
            assert [consumer.committed(("t", number)) for number in range(3)] == committed
        with log.producer(enable_idempotence=True) as producer:
            assert producer._id() > first
            producer.send("t", b"new", partition=0).result()
        assert streamlog.check(log) == []
        log.create_topic("gone")


def records_of_metadata(location: Path) -> tuple[Path, list[int]]:
    """The metadata log's first segment, and where each of its batches begins."""
    path = location / "broker-0/__cluster_metadata-0/00000000000000000000.log"
    data, found = path.read_bytes(), [HEADER]
    while length := int.from_bytes(data[found[-1] + 28 : found[-1] + 32], "little"):
        found.append(found[-1] + length)
    return path, found[:-1]


@pytest.mark.parametrize("keep", ["before", "behind"])
def test_partitions_and_deletions_whose_metadata_rotted_are_taken_from_the_disk(keep: str, location: Path) -> None:
    with streamlog.open(location) as log:
        log.create_topic("t", compression_type="gzip")
        log.create_topic("again")
        old = log.topic("again").id
        log.topic("t").add_partitions(3)
        log.delete_topic("again")
        log.create_topic("again")
        assert log.topic("again").id != old
        with log.producer() as producer:
            for partition in range(3):
                producer.send("t", b"%d" % partition, partition=partition)
            producer.send("again", b"new")
    path, batches = records_of_metadata(location)
    for number in ((2,) if keep == "before" else (0, 2, 3)):
        flip(path, batches[number] + 85)
    reboot(location)
    done = streamlog_command(location, "repair", "__cluster_metadata:0", "--keep", keep)
    assert done.returncode == 0, done.stderr
    with streamlog.open(location) as log:
        log.create_topic("other")
        log.delete_topic("other")  # removes what belongs to nothing
        assert log.topics() == ["again", "t"]
        assert log.topic("again").id != old
        assert log.topic("t").config["compression_type"] == ("gzip" if keep == "before" else "producer")
        assert sorted(values_of(log, "t")) == [b"0", b"1", b"2"]
        assert values_of(log, "again") == [b"new"]
        assert streamlog.check(log) == []


def test_a_repair_of_metadata_that_was_killed_is_finished_by_the_next(location: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with streamlog.open(location) as log:
        log.create_topic("t")
        log.create_topic("u")
    path, batches = records_of_metadata(location)
    flip(path, batches[0] + 85)
    reboot(location)
    monkeypatch.setattr(damage, "compare_with_disk", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    pid = os.fork()
    if pid == 0:
        main(["--location", str(location), "repair", "__cluster_metadata:0", "--keep", "behind"])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    done = streamlog_command(location, "repair", "__cluster_metadata:0", "--keep", "behind")
    assert "topic 't' (partitions: 1) was taken back" in done.stderr
    with streamlog.open(location) as log:
        assert log.topics() == ["t", "u"]


def test_an_internal_topic_is_repaired_while_nobody_else_uses_the_cluster(location: Path) -> None:
    """Their folds would stay as they are."""
    with streamlog.open(location) as log:
        log.create_topic("t")
        log.create_topic("u")
        with streamlog.open(location):
            path, batches = records_of_metadata(location)
            flip(path, batches[1] + 85)
            with pytest.raises(streamlog.InvalidStateError, match="no producer, consumer or other process"):
                log.repair_partition("__cluster_metadata", 0, keep="before")
        with log.producer(), pytest.raises(streamlog.InvalidStateError):
            log.repair_partition("__cluster_metadata", 0, keep="before")
        log.repair_partition("__cluster_metadata", 0, keep="before")
        assert log.topics() == ["t", "u"]
        with log.producer() as producer:
            producer.send("u", b"x").result()
        with streamlog.open(location) as other:
            assert other.topics() == ["t", "u"]


def rotten_middle(location: Path) -> tuple[list[int], int]:
    """A committed transaction, an aborted one, and segments after both; the header of one of those rots.  Returns bases, and which."""
    with streamlog.open(location) as log:
        log.create_topic("t", segment_bytes=4096)
        with log.producer(transactional_id="x", linger_ms=0) as producer:
            with producer.transaction():
                producer.send("t", b"committed").result()
            producer.begin_transaction()
            producer.send("t", b"aborted").result()
            producer.abort_transaction()
        with log.producer(linger_ms=0, durability="fsync") as producer:
            for number in range(100):
                producer.send("t", b"%06d" % number).result()
    segments = sorted((location / "broker-0/t-0").glob("*.log"))
    rot_header(segments[1])
    return [int(path.stem) for path in segments], 1


@pytest.mark.parametrize("boot", [True, False])
def test_who_reads_committed_records_reads_around_a_rotten_header(boot: bool, location: Path) -> None:
    bases, which = rotten_middle(location)
    if boot:
        reboot(location)
    with streamlog.open(location) as log, log.consumer("t", auto_offset_reset="earliest", isolation_level="read_committed") as consumer:
        values = []
        while True:
            try:
                records = consumer.poll()
            except streamlog.CorruptRecordError as error:
                assert error.next_offset == bases[which + 1]
                consumer.seek(("t", 0), error.next_offset)
                continue
            if not records:
                break
            values += [record.value for record in records]
        assert values[0] == b"committed"
        assert b"aborted" not in values
        assert values[-1] == b"000099"


def test_an_epoch_whose_header_rotted_is_not_used_again(location: Path) -> None:
    for _ in range(3):
        filled(location, 5) if not (location / "broker-0").exists() else None
        reboot(location)
        with streamlog.open(location) as log, log.producer(linger_ms=0, durability="fsync") as producer:
            producer.send("t", b"x").result()
            epoch = log.topic("t").describe().partitions[0].leader_epoch
    rot_header(sorted((location / "broker-0/t-0").glob("*.log"))[-1])
    reboot(location)
    with streamlog.open(location) as log, log.producer(linger_ms=0) as producer:
        producer.send("t", b"y").result()
        assert log.topic("t").describe().partitions[0].leader_epoch > epoch


@pytest.mark.parametrize("boot", [True, False])
@pytest.mark.parametrize("step", range(4))
def test_who_dies_while_a_log_is_begun_behind_damage_loses_none_that_follows(step: int, boot: bool, location: Path) -> None:
    filled(location, 150, segment_bytes=4096)
    bases = sorted(int(path.stem) for path in (location / "broker-0/t-0").glob("*.log"))
    which = bases[3] + 2
    flip(location / f"broker-0/t-0/{bases[3]:020}.log", HEADER + BATCH * 2 + 90)
    pid = os.fork()
    if pid == 0:
        remove, calls = recovery.remove_segment, iter(range(99))

        def dies(log: PartitionLog, base: int) -> None:
            if next(calls) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            remove(log, base)

        recovery.remove_segment = dies
        with streamlog.open(location) as log:
            log.repair_partition("t", 0, keep="behind")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    if boot:
        reboot(location)
    with streamlog.open(location) as log:
        offsets, gaps = read(log)
        assert offsets[-1] == 149
        assert set(range(which + 1, 150)) <= set(offsets)
        with log.producer(linger_ms=0) as producer:
            assert producer.send("t", b"new").result().offset == 150
        if not boot:
            assert offsets[0] == which + 1, "it began there when the repair died"
        assert gaps in ([], [(which, which + 1)])
        log.repair_partition("t", 0, keep="behind")
        assert read(log)[1] == []


def test_nothing_is_logged_under_a_lock(location: Path) -> None:
    """A handler that sends would wait for who recovers, who waits for the handler (H18)."""
    seen = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append((record.getMessage(), get_ident() in locks.inside))

    path = filled(location)
    flip(path, HEADER + BATCH * 10 + 90)
    reboot(location)
    handler = Handler()
    logging.getLogger("streamlog").addHandler(handler)
    try:
        with streamlog.open(location) as log, log.producer() as producer:
            producer.send("t", b"x").result()
    finally:
        logging.getLogger("streamlog").removeHandler(handler)
    assert [inside for _, inside in seen] == [False]


# ---- within one boot


@pytest.mark.parametrize("lost", [1, 5, 10, 50, 96, 97, 300])
def test_a_live_file_that_is_shorter_than_the_words_say_is_damaged(lost: int, location: Path) -> None:
    path = filled(location, 6, durability="os")
    os.truncate(path, HEADER + BATCH * 6 - lost)
    left = (BATCH * 6 - lost) // BATCH
    with streamlog.open(location) as log:
        assert read(log) == (list(range(left)), [(left, 6)])
        with log.producer(linger_ms=0) as producer:
            assert producer.send("t", b"new").result().offset == 6
        assert streamlog.check(log) != []
        assert read(log) == ([*range(left), 6], [(left, 6)])


def test_a_death_over_damage_loses_nothing(location: Path) -> None:
    path = filled(location, 10, durability="os")
    with streamlog.open(location) as log:
        words = log._log(log._refreshed().topic("t"), 0).words
        flip(path, HEADER + BATCH * 4 + 90)
        words[DIRTY] = 4_000_000  # of a process that died inside
        with log.producer(linger_ms=0) as producer:
            assert producer.send("t", b"new").result().offset == 10
        assert words[DAMAGED] == 5
        assert read(log) == ([n for n in range(11) if n != 4], [(4, 5)])


def test_sound_batches_behind_what_a_dead_process_wrote_are_kept(location: Path) -> None:
    """Within one boot a page that was written stays: bytes that cannot be read between sound ones are no torn tail."""
    path = filled(location, 10, durability="os")
    with streamlog.open(location) as log:
        words = log._log(log._refreshed().topic("t"), 0).words
        flip(path, HEADER + BATCH * 7 + 90)
        words[HWM] = words[END] = 7
        words[DIRTY] = 4_000_000
        with log.producer(linger_ms=0) as producer:
            assert producer.send("t", b"new").result().offset == 10
        assert read(log) == ([n for n in range(11) if n != 7], [(7, 8)])


def test_torn_bytes_of_a_dead_process_are_written_over(location: Path) -> None:
    path = filled(location, 10, durability="os")
    with streamlog.open(location) as log:
        words = log._log(log._refreshed().topic("t"), 0).words
        with open(path, "r+b") as file:
            file.seek(HEADER + BATCH * 10)
            file.write(os.urandom(50))
        words[DIRTY] = 4_000_000
        with log.producer(linger_ms=0) as producer:
            assert producer.send("t", b"new").result().offset == 10
        assert words[DAMAGED] == 0
        assert read(log) == (list(range(11)), [])
        assert len(list(path.parent.glob("*.log"))) == 1


# ---- a disk that comes back as it was at another time, within one boot


class Remounted:
    """The live words, and the files, as they were at two times; between them the disk was unmounted."""

    def __init__(self, location: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = location / "broker-0/t-0/00000000000000000000.log"
        self.location = location
        self._mount = files.mount_of(str(location.parent))
        assert self._mount
        monkeypatch.setattr(files, "mount_of", lambda _: self._mount)

    def states(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (self.location / "run").glob("*.state") if len(path.name) > 30}

    def put_back(self, saved: dict[Path, bytes]) -> None:
        for path, data in saved.items():
            with open(path, "r+b") as file:
                file.write(data)
        self._mount += 1


def test_a_log_that_is_newer_than_the_words_is_opened_as_after_a_reboot(location: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Remounted(location, monkeypatch)
    filled(location, 5, durability="fsync")
    saved = disk.states()
    with streamlog.open(location) as log, log.producer(linger_ms=0, durability="fsync") as producer:
        for number in range(5, 12):
            producer.send("t", b"%06d" % number).result()
    disk.put_back(saved)
    with streamlog.open(location) as log:
        assert read(log) == (list(range(12)), [])
        with log.producer(linger_ms=0) as producer:
            assert producer.send("t", b"new").result().offset == 12
        partition = log.topic("t").describe().partitions[0]
        assert partition.leader_epoch == 1
        assert partition.segments == 2
        assert streamlog.check(log) == []


def test_a_log_that_is_older_than_the_words_lost_what_was_not_synced(location: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Remounted(location, monkeypatch)
    filled(location, 5, durability="fsync")
    saved = disk.path.read_bytes()
    with streamlog.open(location) as log, log.producer(linger_ms=0) as producer:
        for number in range(5, 12):
            producer.send("t", b"%06d" % number).result()
    old = saved[: HEADER + 5 * BATCH]
    with open(disk.path, "r+b") as file:
        file.write(old + bytes(disk.path.stat().st_size - len(old)))  # with its space reserved still
    disk.put_back({})
    with streamlog.open(location) as log:
        assert read(log) == (list(range(5)), [])
        with log.producer(linger_ms=0) as producer:
            assert producer.send("t", b"new").result().offset == 5
        assert streamlog.check(log) == []


def test_what_was_synced_and_is_missing_after_a_remount_is_damage(location: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Remounted(location, monkeypatch)
    filled(location, 12, durability="fsync")
    (location / "broker-0/recovery-point-offset-checkpoint").unlink()
    os.truncate(disk.path, HEADER + 5 * BATCH)
    disk.put_back({})
    with streamlog.open(location) as log:
        assert read(log) == (list(range(5)), [(5, 12)])
        assert streamlog.check(log) != []


def test_a_mark_that_is_up_on_an_old_page_is_no_death(location: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Remounted(location, monkeypatch)
    filled(location, 5, durability="fsync")
    with streamlog.open(location) as log:
        words = log._log(log._refreshed().topic("t"), 0).words
        assert words[MOUNT]
        assert words[SYNCED] == 5
        words[DIRTY] = 4_000_000
    disk.put_back({})
    with streamlog.open(location) as log, log.producer(linger_ms=0) as producer:
        assert producer.send("t", b"new").result().offset == 5
        assert log.topic("t").describe().partitions[0].leader_epoch == 1, "it was opened as after a reboot"


def test_the_words_are_believed_where_they_speak_of_the_files(location: Path) -> None:
    filled(location, 5, durability="os")
    for _ in range(3):
        with streamlog.open(location) as log:
            assert read(log) == (list(range(5)), [])
            found = log.topic("t").describe().partitions[0]
            assert (found.leader_epoch, found.segments) == (0, 1)


# ---- one broker: an operator decides


@pytest.mark.parametrize("keep", ["before", "behind"])
@pytest.mark.parametrize("config", [{}, {"segment_bytes": 4096}])
@pytest.mark.parametrize("boot", [True, False])
def test_one_broker_goes_on_before_or_behind_the_damage(keep: str, config: dict[str, int], boot: bool, location: Path) -> None:
    filled(location, 100, **config)
    base, path = max((int(path.stem), path) for path in (location / "broker-0/t-0").glob("*.log") if int(path.stem) <= 50)
    flip(path, HEADER + BATCH * (50 - base) + 90)
    data = path.read_bytes()
    if boot:
        reboot(location)
    shown = streamlog_command(location, "repair", "t:0")
    assert shown.returncode == 1
    assert "offsets 50 to 50 cannot be read" in shown.stdout
    assert "--keep before: the log ends at offset 50" in shown.stderr
    assert "--keep behind: the log begins at offset 51" in shown.stderr
    with streamlog.open(location) as log:
        assert [(each.first_offset, each.next_offset) for each in log.damage("t", 0)] == [(50, 51)]
        with pytest.raises(streamlog.CorruptRecordError, match="streamlog repair t:0"):
            log.repair()
        aside = Path(log.repair_partition("t", 0, keep=keep))
        assert (aside / path.name).read_bytes()[: HEADER + 40 * BATCH] == data[: HEADER + 40 * BATCH]
        wanted = list(range(50)) if keep == "before" else list(range(51, 100))
        assert read(log) == (wanted, [])
        assert log.repair() == {}
        with log.producer(linger_ms=0) as producer:
            assert producer.send("t", b"new", partition=0).result().offset == wanted[-1] + 1
        assert streamlog.check(log) == []
    for again in (False, True):
        if again:
            reboot(location)
        with streamlog.open(location) as log:
            assert read(log) == ([*wanted, wanted[-1] + 1], [])
            assert streamlog.check(log) == []


def test_repair_says_that_nothing_is_damaged(location: Path) -> None:
    filled(location, 5)
    done = streamlog_command(location, "repair", "t:0", "--keep", "before")
    assert (done.returncode, done.stderr) == (0, "everything can be read\n")
    assert streamlog_command(location, "repair", "t").returncode == 2
    assert "must be TOPIC:PARTITION" in streamlog_command(location, "repair", "t").stderr


# ---- several brokers


def fill_replicas(place: Path) -> None:
    """A topic on three brokers with 20 records, each a batch."""
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        with cluster.producer(linger_ms=0, durability="fsync") as producer:
            for number in range(20):
                producer.send("t", b"%06d" % number).result()


def crash(place: Path) -> None:
    shutil.rmtree(place / "log/run")


def test_a_replica_that_lost_what_it_had_synced_is_repaired_from_another(place: Path) -> None:
    for victim in range(3):
        here = place / str(victim)
        fill_replicas(here)
        flip(here / f"log/broker-{victim}/t-0/00000000000000000000.log", HEADER + BATCH * 10 + 90)
        crash(here)
        with brokers(here) as cluster:
            assert read(cluster) == (list(range(20)), [])
            log = log_of(cluster)
            settle(log)
            assert log.state.in_sync == (0, 1, 2)
            assert records_on(log, victim) == records_on(log, (victim + 1) % 3)


@pytest.mark.parametrize("boot", [True, False])
def test_a_replica_whose_header_rotted_is_repaired_from_another(boot: bool, place: Path) -> None:
    for victim in range(3):
        here = place / str(victim)
        fill_replicas(here)
        rot_header(here / f"log/broker-{victim}/t-0/00000000000000000000.log")
        if boot:
            crash(here)
        with brokers(here) as cluster:
            assert read(cluster) == (list(range(20)), [])
            with cluster.producer(linger_ms=0) as producer:
                assert producer.send("t", b"new").result().offset == 20
            cluster.repair()
            log = log_of(cluster)
            settle(log)
            assert log.state.in_sync == (0, 1, 2)
            assert records_on(log, victim) == records_on(log, (victim + 1) % 3)


def test_with_several_brokers_repair_names_the_scrub(place: Path) -> None:
    with brokers(place) as cluster:
        cluster.create_topic("t")
        with cluster.producer(durability="fsync") as producer:
            producer.send("t", b"x").result()
        leader = log_of(cluster).state.leader
    flip(place / f"log/broker-{leader}/t-0/00000000000000000000.log", HEADER + 90)
    crash(place)
    shown = streamlog_command(place / "log", "repair", "t:0", "--keep", "before")
    assert shown.returncode == 1
    assert "offsets 0 to 0 cannot be read" in shown.stdout
    assert "`streamlog brokers scrub`" in shown.stderr


def test_where_every_replica_is_damaged_nothing_is_removed(place: Path) -> None:
    fill_replicas(place)
    paths = [place / f"log/broker-{broker}/t-0/00000000000000000000.log" for broker in range(3)]
    for path in paths:
        flip(path, HEADER + BATCH * 10 + 90)
    before = [path.stat().st_size for path in paths]
    crash(place)
    with streamlog.open(place / "log") as cluster:
        assert read(cluster)[0] == [n for n in range(20) if n != 10]
        assert [path.stat().st_size for path in paths] == before
        assert streamlog.check(cluster) != []


def test_what_was_cut_on_purpose_is_no_damage_after_a_reboot(place: Path) -> None:
    """KIP-101: a follower had synced records that the leader has not."""
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3)
        with cluster.producer(linger_ms=0, durability="fsync") as producer:
            for number in range(10):
                producer.send("t", b"%06d" % number).result()
    checkpoint = place / "log/broker-1/recovery-point-offset-checkpoint"
    assert "0 10\n" in checkpoint.read_text()
    with brokers(place) as cluster:
        log = log_of(cluster)
        replica = log.on(1)
        replica.ensure_valid(10.0)
        replica.words[ALIGNED] = 0
        under(replica.lock, 10.0, lambda: (replica.settle(for_append=True), recovery.cut(replica, 4, replica.words[EPOCH], 0)))
        assert "0 4\n" in checkpoint.read_text()
        replica.words[BOOT] = 0
        under(replica.lock, 10.0, replica.settle, for_append=False)
        assert (replica.words[END], replica.words[DAMAGED]) == (4, 0)
        with cluster.producer(linger_ms=0) as producer:
            producer.send("t", b"again").result()
        assert replica.words[END] == 11
