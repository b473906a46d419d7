"""The hazards that were seen in experiments, each as a test that fails when its rule is taken out (docs/crash-safety.md lists them)."""

import ctypes
import gc
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from _thread import get_ident
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType

import pytest

import streamlog
from conftest import values_of, wait_until
from streamlog._log import segment
from streamlog._log.fold import Fold
from streamlog._os import locks, mapping, wake
from streamlog._os.files import LOCAL
from streamlog.cluster import Cluster, _Place
from streamlog.testing.faults import FaultyFileSystem


def in_child(function: Callable[[], object]) -> int:
    """Fork; the child runs `function` and exits 0, or 1 with a traceback.  Returns its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)
    return pid


def finish(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    assert status == 0


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


# ---- words, mappings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["words", "pack_into"])
def test_h01_a_word_is_never_seen_torn(rule: str, place: Path) -> None:
    mapping.create(LOCAL, str(place / "page"), bytes(4096))
    page, _ = mapping.open_page(LOCAL, str(place / "page"), 4096)
    patterns = (0x0101010101010101, 0x7E7E7E7E7E7E7E7E)
    page.words[3] = patterns[0]

    def store() -> None:
        mine, _ = mapping.open_page(LOCAL, str(place / "page"), 4096)
        while True:
            for pattern in patterns:
                if rule == "words":
                    mine.words[3] = pattern
                else:
                    struct.pack_into(">Q", mine.map, 24, pattern)

    pid = in_child(store)
    try:
        deadline, torn = time.monotonic() + (1 if rule == "words" else 20), False
        while not torn and time.monotonic() < deadline:
            torn = any(page.words[3] not in patterns for _ in range(10_000))
    finally:
        kill(pid)
    assert torn == (rule == "pack_into"), "without the rule a torn word is seen at once"


def test_h03_a_page_that_cannot_be_read_is_an_error_and_no_signal(place: Path) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        with log.producer() as producer:
            for _ in range(40):
                producer.send("t", bytes(10_000))
        with log.consumer("t", auto_offset_reset="earliest") as consumer:
            consumer.poll(max_records=1)
            path = place / "log/broker-0/t-0/00000000000000000000.log"
            os.truncate(path, 100_000)  # as a bad block does, the kernel has no page to give
            with pytest.raises(streamlog.StorageError):
                while consumer.poll():
                    pass


@pytest.mark.parametrize("damage", ["deleted", "another's", "zero tail", "cut", "noise"])
def test_h06_derived_files_change_no_read(damage: str, place: Path, read_all) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t", segment_bytes=4096, index_interval_bytes=0)
        with log.producer(linger_ms=0) as producer:
            for number in range(100):
                producer.send("t", b"%d" % number + bytes(100), timestamp_ms=number)
        before = read_all(log, "t")
    folder = place / "log/broker-0/t-0"
    indexes = sorted(folder.glob("*.index"))
    assert len(indexes) > 2
    for number, index in enumerate(indexes):
        content = index.read_bytes()
        if damage == "deleted":
            index.unlink()
        elif damage == "another's":
            index.write_bytes(indexes[number - 1].read_bytes() + content)
        elif damage == "zero tail":
            index.write_bytes(content[: len(content) // 2] + bytes(len(content)))
        elif damage == "cut":
            index.write_bytes(content[: len(content) - 11])
        else:
            index.write_bytes(content[:24] + os.urandom(len(content)))
    if damage == "deleted":
        shutil.rmtree(place / "log/run")
        for name in ("recovery-point-offset-checkpoint", "t-0/leader-epoch-checkpoint"):
            (place / "log/broker-0" / name).unlink(missing_ok=True)
    else:
        (folder / "leader-epoch-checkpoint").write_text("garbage")
        (place / "log/broker-0/recovery-point-offset-checkpoint").write_text("0\n1\nx")
    with streamlog.open(place / "log") as log:
        assert read_all(log, "t") == before
        with log.consumer() as consumer:
            consumer.assign([("t", 0)])
            for offset in range(100):
                consumer.seek(("t", 0), offset)
                assert consumer.poll(max_records=1) == before[offset : offset + 1]
        if damage in ("deleted", "cut"):
            for time_ms in range(0, 100, 7):
                assert log.topic("t").offsets_for_times({0: time_ms})[0].offset == time_ms
        with log.producer() as producer:
            assert producer.send("t", b"after").result().offset == 100


def test_h07_a_copy_of_a_cluster_is_another_cluster_directory(place: Path, read_all) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        producer = log.producer(linger_ms=0)
        producer.send("t", b"1").result()
        subprocess.run(["cp", "-a", place / "log", place / "copy"], check=True)
        producer.send("t", b"only in the first").result()
        with streamlog.open(place / "copy") as copy, copy.producer(linger_ms=0) as copy_producer:
            copy_producer.send("t", b"only in the copy").result()
            assert [record.value for record in read_all(copy, "t")] == [b"1", b"only in the copy"]
            assert streamlog.check(copy) == []
        assert [record.value for record in read_all(log, "t")] == [b"1", b"only in the first"]


def test_h07_who_loses_run_closes_loudly(place: Path) -> None:
    log = streamlog.open(place / "log")
    log.create_topic("t")
    producer = log.producer(linger_ms=0)
    producer.send("t", b"x").result()
    shutil.rmtree(place / "log/run")
    log._home.next_tick = 0.0
    with pytest.raises(streamlog.DiskFailedError, match="removed or replaced"):
        producer.send("t", b"x").result()
    with pytest.raises(streamlog.ClosedError):
        log.topics()
    log.close()
    with streamlog.open(place / "log") as again:
        assert again.topic("t").end_offsets() == {0: 1}


def test_h08_a_lost_directory_is_no_silent_loss(place: Path) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        producer = log.producer(linger_ms=0)
        producer.send("t", b"x").result()
        shutil.rmtree(place / "log/broker-0/t-0")
        log._home.next_tick = 0.0
        with pytest.raises(streamlog.StorageError, match="gone"):
            producer.send("t", b"x").result()
    shutil.rmtree(place / "log/broker-0")
    (place / "log/broker-0").mkdir()
    with pytest.raises(streamlog.NotAClusterError, match="meta.properties"):
        streamlog.open(place / "log")


# ---- space -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(place: Path):
    """A file system of 1 MiB."""
    path = place / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.machine
def test_h10_a_full_disk_is_an_error_and_the_same_producer_goes_on(small_disk: Path, read_all) -> None:
    with streamlog.open(small_disk / "log") as log:
        log.create_topic("t", segment_bytes=65536)
        filler = small_disk / "filler"
        filler.write_bytes(bytes(300_000))
        acknowledged = []
        with log.producer(linger_ms=0, delivery_timeout_ms=300, retry_backoff_ms=10) as producer:
            for number in range(2000):
                delivery = producer.send("t", b"%d-" % number + bytes(1000))
                if isinstance(delivery.exception(), streamlog.StorageFullError):
                    break
                acknowledged.append(delivery.result().offset)
            else:
                pytest.fail("the disk never filled")
            assert len(acknowledged) > 100
            assert len(read_all(log, "t")) == len(acknowledged), "nothing acknowledged is lost while the disk is full"
            filler.unlink()
            offset = producer.send("t", b"after").result().offset
        records = read_all(log, "t")
        assert records[offset].value == b"after"
        assert [record.offset for record in records] == list(range(offset + 1))
        assert streamlog.check(log) == []


def test_h11_many_partitions_need_few_descriptors(place: Path) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t", 400, segment_bytes=4096)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def use() -> None:
        os.closerange(3, 4096)  # what earlier tests of this process left open is not what is counted
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        with streamlog.open(place / "log") as log, log.producer() as producer:
            for round_number in range(2):
                for number in range(400):
                    producer.send("t", b"%d" % round_number, partition=number)
                producer.flush()
            with log.consumer("t", auto_offset_reset="earliest", max_poll_records=10_000) as consumer:
                count = 0
                while found := consumer.poll():
                    count += len(found)
                assert count == 800

    finish(in_child(use))


def test_opening_costs_few_descriptors(place: Path) -> None:
    with streamlog.open(place / "log") as log:
        for number in range(50):
            log.create_topic(f"t{number}", 4)

    def use() -> None:
        before = len(os.listdir("/proc/self/fd"))
        with streamlog.open(place / "log") as log:
            assert len(log.topics()) == 50
            assert len(os.listdir("/proc/self/fd")) - before <= 16

    finish(in_child(use))


def test_descriptors_come_back_without_the_collector(place: Path) -> None:
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))

        def use() -> None:
            with streamlog.open(place / "log") as log:
                log.create_topic("t", exist_ok=True)
                with log.producer() as producer, log.consumer("t") as consumer:
                    producer.send("t", b"x")
                    consumer.poll()

        for _ in range(5):
            use()
        assert len(os.listdir("/proc/self/fd")) <= before
    finally:
        gc.enable()


# ---- locks, waiting, threads ---------------------------------------------------------------------------------------------------


class Bombed(Exception):
    """Raised by a signal handler."""


def test_h14_exceptions_from_signal_handlers_leak_no_lock(place: Path) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")

    def bombarded() -> None:
        log = streamlog.open(place / "log")
        producer, consumer = log.producer(linger_ms=0), log.consumer("t", auto_offset_reset="earliest")

        def handler(*_: object) -> None:
            raise Bombed

        signal.signal(signal.SIGALRM, handler)
        hits, rounds, deadline = 0, 0, time.monotonic() + 3
        acknowledged: list[bytes] = []
        read: list[bytes] = []
        while time.monotonic() < deadline:
            rounds += 1
            value = b"%d" % len(acknowledged)
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00002 + (rounds % 97) * 0.000003)
                producer.send("t", value).result(10)
                acknowledged.append(value)
                read += [record.value for record in consumer.poll()]
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Bombed:
                hits += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert hits > 1000, hits
        producer.flush(10)
        while found := consumer.poll():
            read += [record.value for record in found]
        lost = set(acknowledged) - set(read)
        assert len(lost) <= hits // 50, f"{len(lost)} lost between poll's return and the assignment, of {hits}"
        assert log._home.log(log._home.metadata.topic("t"), 0, 1).lock.acquire(False), "a thread lock leaked"

    finish(in_child(bombarded))
    with streamlog.open(place / "log") as log, log.producer() as producer:
        producer.send("t", b"after").result(10)
        assert streamlog.check(log) == []


def test_h15_calls_under_a_lock_keep_the_gil() -> None:
    from streamlog._os import files

    keeps_the_gil = 0x4  # FUNCFLAG_PYTHONAPI
    for function in (locks._held_fcntl, files._held_pwrite, wake._held_syscall):
        assert function._flags_ & keeps_the_gil if hasattr(function, "_flags_") else type(function)._flags_ & keeps_the_gil
    assert not type(ctypes.CDLL(None).getpid)._flags_ & keeps_the_gil


def test_h16_waits_are_bounded_and_name_the_holder(place: Path) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        with log.producer(linger_ms=0) as producer:
            producer.send("t", b"before").result()
            reading, writing = os.pipe()

            def stop_inside() -> None:
                mine = streamlog.open(place / "log")
                inner = mine._home.log(mine._home.metadata.topic("t"), 0, 5)

                def body() -> None:
                    inner.words[11] = os.getpid()  # the mark is up, as inside an append
                    os.write(writing, b"x")
                    signal.pause()

                locks.under(inner.lock, 5.0, body)

            pid = in_child(stop_inside)
            os.read(reading, 1)
            os.kill(pid, signal.SIGSTOP)
            with log.producer(linger_ms=0, delivery_timeout_ms=400) as impatient:
                began = time.monotonic()
                error = impatient.send("t", b"x").exception(10)
                assert isinstance(error, streamlog.StreamlogTimeoutError)
                assert time.monotonic() - began < 8
                assert str(pid) in str(error)
                assert "stopped" in str(error)
            kill(pid)
            assert producer.send("t", b"after").result(10).offset == 1, "who dies holds nobody up"


def test_h16_a_tight_relocker_starves_nobody(place: Path) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")

        def relock() -> None:
            mine = streamlog.open(place / "log")
            inner = mine._home.log(mine._home.metadata.topic("t"), 0, 5)
            while True:
                locks.under(inner.lock, 5.0, lambda: None)

        pid = in_child(relock)
        try:
            with log.producer(linger_ms=0) as producer:
                for _ in range(50):
                    producer.send("t", b"x").result(20)
        finally:
            kill(pid)


def test_h17_no_wake_up_is_lost(place: Path) -> None:
    rounds = 400
    with streamlog.open(place / "log") as log:
        log.create_topic("ping")
        log.create_topic("pong")

        def answer() -> None:
            mine = streamlog.open(place / "log")
            with mine.producer(linger_ms=0) as producer, mine.consumer("ping", auto_offset_reset="earliest") as consumer:
                for _ in range(rounds):
                    (record,) = consumer.poll(20_000, 1)
                    producer.send("pong", record.value)

        pid = in_child(answer)
        with log.producer(linger_ms=0) as producer, log.consumer("pong", auto_offset_reset="earliest") as consumer:
            began = time.monotonic()
            for number in range(rounds):
                producer.send("ping", b"%d" % number)
                assert consumer.poll(20_000, 1)[0].value == b"%d" % number
            assert time.monotonic() - began < rounds * wake.BOUND / 2, "waits end by the bound, not by the bell"
        finish(pid)


def test_h18_send_inside_send(place: Path, read_all) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t", 2)
        producer = log.producer(batch_size=300)

        class Sends:
            def __init__(self) -> None:
                self.cycle = self

            def __del__(self) -> None:
                sent.append(producer.send("t", b"from a finalizer", key=b"k"))

        sent: list[streamlog.Delivery] = []
        old = gc.get_threshold()
        gc.set_threshold(20)
        signal.signal(signal.SIGALRM, lambda *_: sent.append(producer.send("t", b"from a handler")))
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        try:
            for number in range(2000):
                Sends()
                sent.append(producer.send("t", b"%d" % number, key=None if number % 2 else b"k"))
                if number % 50 == 0:
                    producer.flush(20)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            gc.set_threshold(*old)
        gc.collect()
        producer.flush(20)
        producer.close(20)
        assert all(delivery.exception(20) is None for delivery in sent)
        records = read_all(log, "t")
        assert len(records) == len(sent) > 4000
        mine = [int(record.value) for record in records if record.value.isdigit() and record.key == b"k"]
        assert mine == sorted(mine), "the thread's own records keep their order"


def test_h20_an_append_reads_nothing_of_what_others_wrote(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamlog._log import partition

    with streamlog.open(place / "log") as log, streamlog.open(place / "log") as other:
        log.create_topic("t")
        with log.producer(linger_ms=0) as rare, other.producer(linger_ms=0) as busy:
            rare.send("t", b"x").result()
            busy.send("t", b"x").result()
            monkeypatch.setattr(partition.PartitionLog, "settle", lambda *_, **__: pytest.fail("the append looked at the log"))
            for _ in range(5):
                for _ in range(100):
                    busy.send("t", b"x").result()
                rare.send("t", b"x").result()


def test_h21_memory_of_a_batch_writer_is_bounded(place: Path) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        with log.producer(buffer_memory=1 << 20) as producer, producer.batch("t") as batch:
            for number in range(100_000):
                batch.append(bytes(100))
                if number % 1000 == 0:
                    held = batch._collector.gi_frame.f_locals["size"]
                    assert producer._memory + held <= 1 << 20
        assert batch.delivery.result().count == 100_000


# ---- life and death --------------------------------------------------------------------------------------------------------------


def test_h22_fork_shares_no_lock_and_no_buffer(place: Path, read_all) -> None:
    with streamlog.open(place / "log") as log:
        topic = log.create_topic("t")
        producer, consumer = log.producer(linger_ms=10_000), log.consumer("t", auto_offset_reset="earliest")
        producer.send("t", b"buffered in the parent")

        def child() -> None:
            for call in (lambda: producer.send("t", b"x"), producer.flush, consumer.poll):
                with pytest.raises(streamlog.ClosedError):
                    call()
            with log.producer() as mine:
                mine.send("t", b"child").result(10)
            assert topic.end_offsets() == {0: 1}
            log.close()

        finish(in_child(child))
        producer.flush()
        assert [record.value for record in read_all(log, "t")] == [b"child", b"buffered in the parent"]


def test_h22_a_killed_owner_whose_child_lives_holds_no_lock(place: Path) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        reading, writing = os.pipe()

        def owner() -> None:
            mine = streamlog.open(place / "log")
            inner = mine._home.log(mine._home.metadata.topic("t"), 0, 5)

            def body() -> None:
                grandchild = in_child(lambda: time.sleep(30))
                os.write(writing, b"%d\n" % grandchild)
                signal.pause()

            locks.under(inner.lock, 5.0, body)

        pid = in_child(owner)
        grandchild = int(os.read(reading, 20))
        time.sleep(0.05)
        kill(pid)
        try:
            with log.producer() as producer:
                producer.send("t", b"x").result(5)
        finally:
            os.kill(grandchild, signal.SIGKILL)


def test_spawned_processes_open_the_cluster_again(place: Path) -> None:
    script = (
        "import multiprocessing, streamlog\n"
        "def work(log, number):\n"
        "    producer = log.producer()\n"
        "    producer.send('t', b'%d' % number)\n"  # no flush, no close: the exit writes it (H25)
        "if __name__ == '__main__':\n"
        "    with streamlog.open('log') as log:\n"
        "        log.create_topic('t')\n"
        "        for method in ('spawn', 'fork'):\n"
        "            context = multiprocessing.get_context(method)\n"
        "            processes = [context.Process(target=work, args=(log, n)) for n in range(2)]\n"
        "            [p.start() for p in processes]; [p.join() for p in processes]\n"
        "            assert all(p.exitcode == 0 for p in processes)\n"
        "        assert log.topic('t').end_offsets() == {0: 4}, log.topic('t').end_offsets()\n"
    )
    (place / "main.py").write_text(script)
    done = subprocess.run([sys.executable, "main.py"], cwd=place, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_threads_share_a_producer(place: Path, read_all) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t", 3)
        with log.producer(batch_size=400) as producer:

            def work(name: int) -> None:
                for number in range(2000):
                    producer.send("t", b"%d %d" % (name, number), key=b"%d" % name)
                    if number % 500 == 0:
                        producer.flush()

            threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        records = read_all(log, "t")
        assert len(records) == 12_000
        for name in range(6):
            mine = [int(r.value.split()[1]) for r in records if r.value.startswith(b"%d " % name)]
            assert mine == list(range(2000))


def test_processes_and_threads_write_and_read_together(place: Path) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t", 2, segment_bytes=16_384)

        def write(name: int) -> None:
            with streamlog.open(place / "log") as mine, mine.producer(batch_size=1000) as producer:
                for number in range(5000):
                    producer.send("t", b"%d %d" % (name, number), partition=name % 2)

        pids = [in_child(lambda name=name: write(name)) for name in range(4)]
        with log.consumer("t", auto_offset_reset="earliest") as consumer:
            records: list[streamlog.Record] = []
            deadline = time.monotonic() + 60
            while len(records) < 20_000 and time.monotonic() < deadline:
                records += consumer.poll(1000)
        for pid in pids:
            finish(pid)
        for name in range(4):
            mine = [int(r.value.split()[1]) for r in records if r.value.startswith(b"%d " % name)]
            assert mine == list(range(5000))
        assert streamlog.check(log) == []


# ---- syncs -----------------------------------------------------------------------------------------------------------------------


def test_h30_after_a_failed_sync_all_refuse_until_it_is_opened_again(place: Path, read_all) -> None:
    fs = FaultyFileSystem()
    log = Cluster(_Place(place / "log"), fs=fs)
    log.create_topic("t")
    with streamlog.open(place / "log") as bystander, bystander.producer(linger_ms=0) as other:
        other.send("t", b"0").result()
        producer = log.producer(durability="fsync")
        assert producer.send("t", b"1").result().offset == 1
        fs.fail_when("sync", "*/t-0/*.log")
        assert isinstance(producer.send("t", b"2").exception(), streamlog.DiskFailedError)
        assert isinstance(producer.send("t", b"3").exception(), streamlog.DiskFailedError)
        assert isinstance(other.send("t", b"4").exception(), streamlog.DiskFailedError)
        before = read_all(bystander, "t")
        assert [record.value for record in before] == [b"0", b"1", b"2"], "what was visible stays visible"
        with streamlog.open(place / "log") as opener, opener.producer(durability="fsync") as again:
            assert again.send("t", b"5").result().offset == 3
        assert other.send("t", b"6").result().offset == 4, "the others see that it was recovered"
        assert producer.send("t", b"7").result().offset == 5
        after = read_all(bystander, "t")
        assert [record[:8] for record in after[:3]] == [record[:8] for record in before], "the same records, in a higher epoch"
        assert streamlog.check(bystander) == []
    log.close()


def test_group_commit_shares_syncs(place: Path) -> None:
    fs = FaultyFileSystem()
    slow = fs.inner.sync
    log = Cluster(_Place(place / "log"), fs=fs)
    log.create_topic("t")
    count = [0]

    def sync(fd: int, path: str) -> None:
        count[0] += "/t-0/" in path
        time.sleep(0.005)
        slow(fd, path)

    fs.sync = sync  # type: ignore[method-assign]
    with log.producer(durability="fsync") as producer:
        threads = [threading.Thread(target=lambda: [producer.send("t", b"x").result() for _ in range(10)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert count[0] <= 45, f"{count[0]} syncs for 80 records of 8 threads"
    log.close()


def test_a_damaged_byte_is_told_and_what_follows_can_be_read(place: Path) -> None:
    """Every byte of a log is damaged in turn: never a wrong record, never another error, and `seek` to `next_offset` goes on."""
    with streamlog.open(place / "log") as log:
        log.create_topic("t", segment_bytes=4096)
        with log.producer(linger_ms=0) as producer:
            for number in range(12):
                producer.send("t", b"value-%d" % number, key=b"k")
        path = place / "log/broker-0/t-0/00000000000000000000.log"
        whole = path.read_bytes()
        length = log._home.log(log._home.metadata.topic("t"), 0, 1).words[13]
        expected = [b"value-%d" % number for number in range(12)]
        for position in range(0, length, 1 if length < 2500 else 3):
            damaged = bytearray(whole)
            damaged[position] ^= 0x41
            with path.open("r+b") as file:
                file.write(damaged)
            values: dict[int, bytes] = {}
            errors = 0
            with log.consumer() as consumer:
                consumer.assign([("t", 0)])
                consumer.seek(("t", 0), 0)
                while True:
                    try:
                        found = consumer.poll()
                    except (streamlog.CorruptRecordError, streamlog.UnsupportedFormatError) as error:
                        errors += 1
                        assert errors < 5
                        assert error.path == str(path)
                        assert error.next_offset > consumer.position(("t", 0)), position
                        consumer.seek(("t", 0), error.next_offset)
                        continue
                    if not found:
                        break
                    values.update((record.offset, record.value) for record in found)
            assert all(value == expected[offset] for offset, value in values.items()), position
            assert errors == 1, f"byte {position}: {errors} errors"
            assert len(values) == (11 if position >= 64 else 0), f"byte {position}: {len(values)} of 12 could be read"
        with path.open("r+b") as file:
            file.write(whole)
        assert streamlog.check(log) == []


# ---- what attackers found ------------------------------------------------------------------------------------------------------


def test_nothing_outside_the_cluster_is_touched(place: Path) -> None:
    outside = place / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x")
    with streamlog.open(place / "log") as log:
        log.create_topic("a")
        broker = place / "log/broker-0"
        (broker / "stray-0").symlink_to(outside)
        (broker / "backup-2025").mkdir()
        (broker / "backup-2025" / "mine").write_bytes(b"x")
        log.delete_topic("a")
        log.create_topic("stray")
        log.delete_topic("stray")
    assert (outside / "precious").exists()
    assert (broker / "backup-2025" / "mine").exists()
    shutil.rmtree(place / "log/run")
    (place / "log/run").symlink_to(outside)
    with pytest.raises(streamlog.NotAClusterError, match="links"):
        streamlog.open(place / "log")
    assert [path.name for path in outside.iterdir()] == ["precious"]


def test_h07_a_backup_copied_over_the_cluster_in_one_boot(place: Path, read_all) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t", segment_bytes=4096)
        with log.producer(linger_ms=0) as producer:
            for number in range(30):
                producer.send("t", b"old-%d" % number + bytes(80))
    subprocess.run(["cp", "-a", place / "log", place / "backup"], check=True)
    with streamlog.open(place / "log") as log, log.producer(linger_ms=0) as producer:
        for number in range(60):
            producer.send("t", b"stale-%d" % number + bytes(80))
    subprocess.run(["cp", "-a", f"{place}/backup/.", place / "log"], check=True)
    with streamlog.open(place / "log") as log:
        with log.producer(linger_ms=0) as producer:
            offsets = [producer.send("t", b"new-%d" % number).result().offset for number in range(100)]
        records = {record.offset: record.value.rstrip(b"\0") for record in read_all(log, "t")}
        assert [records[offset] for offset in offsets] == [b"new-%d" % number for number in range(100)]
        assert [record.offset for record in read_all(log, "t")] == list(range(len(records)))
        assert streamlog.check(log) == []


def test_accepted_records_survive_signals_between_sends(place: Path, read_all) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")

    def bombarded() -> None:
        log = streamlog.open(place / "log")
        producer = log.producer(linger_ms=1, batch_size=300)

        def handler(*_: object) -> None:
            raise Bombed

        deliveries = [producer.send("t", b"0")]  # the first one takes longer than any signal below lets it
        signal.signal(signal.SIGALRM, handler)
        number, hits, deadline = 1, 0, time.monotonic() + 3
        while time.monotonic() < deadline:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00001 + (hits % 60) * 0.000001)
                for _ in range(1000):  # (a collector may have swallowed the exception)
                    deliveries.append(producer.send("t", b"%d" % number))
                    number += 1
            except Bombed:
                hits += 1
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        assert hits > 1000
        producer.flush(20)
        assert all(delivery.done() and delivery.exception() is None for delivery in deliveries)
        producer.close()

    finish(in_child(bombarded))
    with streamlog.open(place / "log") as log:
        values = [int(record.value) for record in read_all(log, "t")]
        assert sorted(set(values)) == list(range(max(values) + 1)), "an accepted record is lost"
        assert values == sorted(values)


def test_a_producer_that_is_dropped_loses_nothing(place: Path) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        for _ in range(20):
            log.producer(linger_ms=30).send("t", b"x")
            gc.collect()
        deadline = time.monotonic() + 10
        while log.topic("t").end_offsets() != {0: 20} and time.monotonic() < deadline:
            time.sleep(0.01)
        assert log.topic("t").end_offsets() == {0: 20}


def test_closing_a_cluster_closes_every_producer_whatever_else_fails(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = streamlog.open(place / "log")
    log.create_topic("t")
    consumers = [log.consumer("t") for _ in range(2)]  # held: a cluster closes those that somebody has
    producers = [log.producer(linger_ms=10_000) for _ in range(5)]
    for producer in producers:
        producer.send("t", b"x")

    def full(self: streamlog.Consumer, *_: object) -> None:
        raise streamlog.StorageFullError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(streamlog.Consumer, "close", full)
        with pytest.raises(streamlog.StorageFullError):
            log.close()
    assert len(consumers) == 2
    with streamlog.open(place / "log") as again:
        assert again.topic("t").end_offsets() == {0: 5}


def test_waiting_for_oneself_is_an_error_and_no_wait(place: Path, read_all) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        with log.producer(linger_ms=1000) as producer:
            errors: list[BaseException] = []

            def flushes(*_: object) -> None:
                producer.send("t", b"from the callback")
                try:
                    producer.flush()
                except streamlog.StreamlogError as error:
                    errors.append(error)

            producer.send("t", b"x", on_delivery=flushes)
            began = time.monotonic()
            producer.flush()
            assert time.monotonic() - began < 5
            assert isinstance(errors[0], streamlog.InvalidStateError)
        assert [record.value for record in read_all(log, "t")] == [b"x", b"from the callback"]


def test_signal_handlers_may_send_while_metadata_is_folded(place: Path) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")

        def create() -> None:
            with streamlog.open(place / "log") as mine:
                for number in range(150):
                    mine.create_topic(f"x{number}")

        pid = in_child(create)
        producer = log.producer(linger_ms=0)
        signal.signal(signal.SIGALRM, lambda *_: producer.send("t", b"h"))
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        try:
            while len(log.topics()) < 151:
                pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        finish(pid)
        producer.close(20)
        assert log.topic("t").end_offsets()[0] > 0


def at_each_instruction(of: set[CodeType], handler: Callable[[], object]) -> Callable[[FrameType, str, object], object]:
    """A trace function that calls `handler` where a signal could: before each instruction of these functions."""

    def trace(frame: FrameType, event: str, _: object) -> object:
        if frame.f_code not in of:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            sys.settrace(None)
            try:
                handler()
            finally:
                sys.settrace(trace)
        return trace

    return trace


def test_a_signal_handler_knows_at_each_instruction_that_its_thread_has_the_lock(place: Path) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        with log.producer(linger_ms=0) as producer:
            lock = log._home.log(log._refreshed().topic("t"), 0, 1.0).lock
            seen = []

            def handler() -> None:
                if lock.acquire.__self__.locked():
                    seen.append(get_ident() in locks.inside)

            sys.settrace(at_each_instruction({getattr(locks, "_unchecked", locks.under).__code__}, handler))
            try:
                producer.send("t", b"x")
            finally:
                sys.settrace(None)
            assert seen
            assert all(seen)
            assert get_ident() not in locks.inside


def test_a_signal_handler_that_wants_a_lock_of_its_own_thread_is_refused_at_once(place: Path) -> None:
    """At each instruction: it has the lock, or it is told; it never waits for itself."""
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        with log.producer(linger_ms=0) as producer:
            lock = log._home.log(log._refreshed().topic("t"), 0, 1.0).lock
            seen = []

            def handler() -> None:
                try:
                    locks.under(lock, 60.0, seen.append, "taken")
                except streamlog.InvalidStateError as error:
                    seen.append("refused" if "its own thread" in str(error) else str(error))

            began = time.monotonic()
            sys.settrace(at_each_instruction({getattr(locks, "_unchecked", locks.under).__code__}, handler))
            try:
                producer.send("t", b"x")
            finally:
                sys.settrace(None)
            assert {*seen} == {"taken", "refused"}
            assert time.monotonic() - began < 30
        assert values_of(log) == [b"x"]


@pytest.mark.parametrize("what", ["create_topic", "delete_topic", "add_partitions", "repair_partition"])
def test_a_signal_handler_inside_an_administrators_lock_is_told(what: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create, calls, errors = segment.create, [], []

    def interrupted(*arguments: object, **options: object) -> None:
        if not calls:
            calls.append(what)
            try:
                {
                    "create_topic": lambda: log.create_topic("v"),
                    "delete_topic": lambda: log.delete_topic("t"),
                    "add_partitions": lambda: log.topic("t").add_partitions(3),
                    "repair_partition": lambda: log.repair_partition("t", 0, keep="before"),
                }[what]()
            except streamlog.StreamlogError as error:
                errors.append(error)
        create(*arguments, **options)

    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        log.create_topic("w")
        monkeypatch.setattr(segment, "create", interrupted)
        began = time.monotonic()
        log.create_topic("u")
        assert time.monotonic() - began < 30
        assert [type(error) for error in errors] in ([streamlog.InvalidStateError], [])
        assert {"u", "w"} <= {*log.topics()}
        assert streamlog.check(log) == []


@pytest.mark.parametrize("idempotent", [True, False])
def test_a_signal_handler_inside_a_fold_ends_no_transaction(idempotent: bool, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait for the sender, who may wait for the fold."""
    with streamlog.open(place / "log") as log, streamlog.open(place / "log") as other:
        log.create_topic("t")
        producer = log.producer(transactional_id="x" if idempotent else None, linger_ms=10_000)
        if idempotent:
            producer.init_transactions()
        fold, calls, errors = Fold._fold_all, [], []

        def interrupted(self: Fold, timeout: float) -> None:
            if not calls and self is log._home.metadata:
                calls.append(1)
                try:
                    if idempotent:
                        producer.begin_transaction()
                    delivery = producer.send("t", b"x")
                    producer.commit_transaction() if idempotent else delivery.result()
                except streamlog.StreamlogError as error:
                    errors.append(error)
            fold(self, timeout)

        monkeypatch.setattr(Fold, "_fold_all", interrupted)
        other.create_topic("u")
        began = time.monotonic()
        log.topics()
        assert time.monotonic() - began < 8
        assert [type(error) for error in errors] == [streamlog.InvalidStateError]
        if idempotent:
            producer.commit_transaction()
        producer.close()
        assert values_of(log) == [b"x"]


def test_a_signal_handler_may_fold_at_each_instruction_of_a_fold(place: Path) -> None:
    """It is inside the fold, and does nothing, or it can have the fold's lock."""

    def create() -> None:
        with streamlog.open(place / "log") as mine:
            mine.create_topic("t")

    with streamlog.open(place / "log") as log:
        metadata = log._home.metadata
        seen = []

        def handler() -> None:
            inside = metadata.is_inside()
            free = not inside and metadata._fold_lock.acquire(False)
            if free:
                metadata._fold_lock.release()
            seen.append(inside or free)

        finish(in_child(create))
        sys.settrace(at_each_instruction({Fold._locked.__code__}, handler))
        try:
            metadata.refresh(1.0)
        finally:
            sys.settrace(None)
        assert len(seen) > 20
        assert all(seen)
        assert not metadata.is_inside()
        assert log.topics() == ["t"]


@pytest.mark.parametrize("how", ["close", "flush", "result"])
def test_a_signal_handler_inside_a_lock_waits_for_no_record(how: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes it may need that lock: an idempotent producer's first record needs the metadata's."""
    create, calls, errors = segment.create, [], []

    def interrupted(*arguments: object, **options: object) -> None:
        if not calls:
            calls.append(producer := log.producer(linger_ms=0, enable_idempotence=True, delivery_timeout_ms=20_000))
            try:
                delivery = producer.send("t", b"h")
                {"close": producer.close, "flush": producer.flush, "result": delivery.result}[how]()
            except streamlog.StreamlogError as error:
                errors.append(error)
        create(*arguments, **options)

    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        monkeypatch.setattr(segment, "create", interrupted)
        began = time.monotonic()
        log.create_topic("u")
        assert time.monotonic() - began < 15, "the delivery time-out is 20 s"
        assert [type(error) for error in errors] == ([] if how == "close" else [streamlog.InvalidStateError])
        wait_until(lambda: values_of(log) == [b"h"])


def test_a_refused_value_ends_a_batch_with_an_error(place: Path, read_all) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        with log.producer() as producer:
            with producer.batch("t") as batch:
                batch.append(b"1")
                for bad in ("str", None):
                    with pytest.raises(streamlog.StreamlogError):
                        batch.append(bad)  # type: ignore[arg-type]
            assert isinstance(batch.delivery.exception(), streamlog.SerializationError)
            with pytest.raises(streamlog.ClosedError):
                batch.append(b"2")
        assert read_all(log, "t") == []


def test_descriptors_of_dropped_and_deleted_things_come_back(place: Path) -> None:
    with streamlog.open(place / "log") as log, streamlog.open(place / "log") as other:
        def round_trip(number: int) -> None:
            other.create_topic(f"t{number}", 2)
            with log.producer() as producer, log.consumer(f"t{number}") as consumer:
                producer.send(f"t{number}", b"x")
                consumer.poll()
            other.delete_topic(f"t{number}")
            dropped = streamlog.open(place / "log").producer()
            dropped.close()

        round_trip(0)
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        for number in range(1, 8):
            round_trip(number)
        log.topics()
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_pending_deliveries_in_a_forked_child(place: Path) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        producer = log.producer(linger_ms=10_000)
        delivery = producer.send("t", b"x")

        def child() -> None:
            with pytest.raises(streamlog.ClosedError):
                delivery.result()

        finish(in_child(child))
        producer.flush()
        assert delivery.result().offset == 0


def test_look_ups_by_time_tell_damage(place: Path) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        with log.producer(linger_ms=0) as producer:
            for number in range(5):
                producer.send("t", b"v", timestamp_ms=1000 + number)
        path = place / "log/broker-0/t-0/00000000000000000000.log"
        data = bytearray(path.read_bytes())
        data[64 + 48] ^= 0x40  # max_timestamp of the first batch
        with path.open("r+b") as file:
            file.write(data)
        with pytest.raises(streamlog.CorruptRecordError) as caught:
            log.topic("t").offsets_for_times({0: 1003})
        assert caught.value.next_offset == 1


def test_a_segment_that_is_cut_to_its_end_while_it_is_mapped(log: streamlog.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A roll gives back what was reserved: between a reader's look at the size and its mapping."""
    from streamlog._os.files import LocalFileSystem

    log.create_topic("t", segment_bytes=4096)
    with log.producer(linger_ms=0) as producer:
        producer.send("t", b"a" * 100).result()
        real, cuts = LocalFileSystem.map, []

        def cut_first(self: LocalFileSystem, fd: int, size: int, path: str) -> object:
            if not cuts and path.endswith(".log"):
                cuts.append(size)
                for _ in range(2):
                    producer.send("t", b"b" * 3000).result()  # rolls
            return real(self, fd, size, path)

        monkeypatch.setattr(LocalFileSystem, "map", cut_first)
        assert len(values_of(log)) == 3
        assert cuts
