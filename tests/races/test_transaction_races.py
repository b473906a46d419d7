"""Interleavings of transactions that were once wrong: each test fails without the rule that closes its hole."""

import linecache
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import streamlog
from conftest import records_of, values_of
from streamlog import GroupMetadata, OffsetAndMetadata, ProducerFencedError, StreamlogTimeoutError, TopicPartition
from streamlog._client.transaction_coordinator import TransactionCoordinator
from streamlog._client.transaction_manager import READY, TransactionManager
from streamlog._coord.transaction_log import TransactionsLog
from streamlog._log.aborted import AbortedTransactions
from streamlog._log.partition import PartitionLog
from streamlog._log.pending import Marker
from streamlog._log.reader import LogReader
from streamlog._log.state import DIRTY, FAILED
from streamlog.cluster import Cluster, _Place
from streamlog.errors import DiskFailedError, InvalidTxnStateError
from streamlog.testing.faults import FaultyFileSystem

COMMITTED: dict[str, Any] = {"isolation_level": "read_committed"}
NOBODY = GroupMetadata("g", -1, "", None)


def committed(log: streamlog.Cluster, topic: str = "t") -> list[bytes]:
    return [record.value for record in records_of(log, topic, **COMMITTED)]


@contextmanager
def replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[Any]:
    real = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield real
    finally:
        setattr(owner, name, real)


def view_of(log: streamlog.Cluster, partition: int = 0, topic: str = "t") -> PartitionLog:
    return log._home.log(log._refreshed().topic(topic), partition, 5)


def test_an_open_transaction_that_was_folded_ends_with_its_epoch(log: streamlog.Cluster) -> None:
    """Another process's marker that is not folded yet does not let the id's next transaction begin where the former one did."""
    log.create_topic("t")
    with streamlog.open(log.location) as other, log.producer(transactional_id="y") as beside:
        producer = other.producer(transactional_id="x")
        producer.init_transactions()
        producer.begin_transaction()
        producer.send("t", b"committed").result()
        with beside.transaction():
            beside.send("t", b"y")  # its marker makes this process fold x's open transaction
        producer.commit_transaction()
        producer.close()
        with log.producer(transactional_id="x") as heir:
            heir.init_transactions()
            heir.begin_transaction()
            heir.send("t", b"never").result()
            heir.abort_transaction()
        assert committed(log) == [b"committed", b"y"]


def test_the_size_of_an_index_is_of_the_segment_that_was_read(log: streamlog.Cluster) -> None:
    """A roll stores `turn` before the new index's size: a reader in between must not take the old size for the new segment's."""
    log.create_topic("t")
    with log.producer(transactional_id="x") as producer:
        producer.init_transactions()
        for _ in range(3):
            producer.begin_transaction()
            producer.send("t", b"never").result()
            producer.abort_transaction()
        view = view_of(log)
        known = AbortedTransactions(view, 5)
        from streamlog._log.state import ABORTED_END

        real = view.words[ABORTED_END]
        view.words[ABORTED_END] = real + 32  # the former segment's, as in the middle of a roll
        try:
            assert known._try_to_learn(0)
        finally:
            view.words[ABORTED_END] = real
        assert known._size == real
        known._size = real + 320
        assert not known._try_to_learn(0), "an index that shrank was begun anew"
    assert committed(log) == []


def test_who_comes_second_to_an_end_finds_it_done(log: streamlog.Cluster) -> None:
    """Helpers finish a commit, and end what is found open, while its producer, or the next one, is at it."""
    log.create_topic("t")
    real_finish, real_abort = TransactionCoordinator.finish, TransactionCoordinator._abort
    with log.producer(transactional_id="x") as producer:
        producer.init_transactions()

        def finish(self: TransactionCoordinator, found: Any, timeout: float) -> Any:
            real_finish(self, found, timeout)
            return real_finish(self, found, timeout)

        with replaced(TransactionCoordinator, "finish", finish):
            with producer.transaction():
                producer.send("t", b"v")
            producer.begin_transaction()
            producer.send("t", b"never").result()
            producer.abort_transaction()
            producer.begin_transaction()
            producer.send("t", b"never").result()

        def abort(self: TransactionCoordinator, found: Any, timeout: float) -> Any:
            real_abort(self, found, timeout)
            return real_abort(self, found, timeout)

        with replaced(TransactionCoordinator, "_abort", abort), log.producer(transactional_id="x") as heir, heir.transaction():
            heir.send("t", b"w")
    assert committed(log) == [b"v", b"w"]


def test_threads_that_send_offsets_lose_none(log: streamlog.Cluster) -> None:
    log.create_topic("t", 2)
    with log.producer(transactional_id="x") as producer:
        producer.init_transactions()
        for number in range(30):
            producer.begin_transaction()
            barrier = threading.Barrier(2)

            def run(partition: int, number: int = number, barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                producer.send_offsets({TopicPartition("t", partition): number + 1}, NOBODY)

            threads = [threading.Thread(target=run, args=(partition,)) for partition in (0, 1)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            producer.commit_transaction()
            assert {offset.offset for offset in log.group_offsets("g").values()} == {number + 1}


def test_h39_under_fsync_each_step_is_on_the_disk_before_the_next(place: Path) -> None:
    """Data and offsets, Prepare, markers, Complete; and a helper, too, waits for the Prepare that it reads."""
    order: list[str] = []
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        with log.producer(transactional_id="x", durability="fsync") as producer:
            producer.init_transactions()
            real_append, real_sync = PartitionLog.append, PartitionLog._sync_files

            def append(self: PartitionLog, batch: Any, timeout: float) -> None:
                real_append(self, batch, timeout)
                order.append(f"{'marker' if isinstance(batch, Marker) else 'append'} {self.topic}")

            def sync(self: PartitionLog) -> None:
                real_sync(self)
                order.append(f"sync {self.topic}")

            with replaced(PartitionLog, "append", append), replaced(PartitionLog, "_sync_files", sync):
                with producer.transaction():
                    producer.send("t", b"v")
                    producer.send_offsets({TopicPartition("t", 0): 1}, NOBODY)
                state = "__transaction_state"
                first_marker = min(number for number, what in enumerate(order) if what.startswith("marker"))
                prepared = max(number for number, what in enumerate(order[:first_marker]) if what == f"append {state}")
                assert "sync t" in order[:prepared], order
                assert "sync __consumer_offsets" in order[:prepared], order
                assert f"sync {state}" in order[prepared:first_marker], order
                complete = len(order) - 1 - order[::-1].index(f"append {state}")
                for topic in ("t", "__consumer_offsets"):
                    marker = order.index(f"marker {topic}")
                    assert f"sync {topic}" in order[marker:complete], order
        with log.producer(transactional_id="x", durability="fsync") as producer:
            coordinator = producer._manager._coordinator  # type: ignore[union-attr]
            real_finish = coordinator.finish
            coordinator.finish = lambda *_: (_ for _ in ()).throw(StreamlogTimeoutError("stopped after its Prepare"))  # type: ignore[method-assign]
            with pytest.raises(StreamlogTimeoutError), producer.transaction():
                producer.send("t", b"w")
            coordinator.finish = real_finish  # type: ignore[method-assign]
            order.clear()
            real_sync_log = PartitionLog.sync

            def noted(self: PartitionLog, timeout: float) -> None:
                order.append(f"sync {self.topic}")
                real_sync_log(self, timeout)

            with replaced(PartitionLog, "sync", noted), replaced(PartitionLog, "append", append):
                coordinator.settled("x", 5)  # as one who has read the Prepare just now
            assert order.index(f"sync {state}") < order.index("marker t")
            producer.commit_transaction()
        assert committed(log) == [b"v", b"w"]


def test_a_signal_handler_inside_the_fold_decides_nothing(log: streamlog.Cluster) -> None:
    """It sees a table that is not up to date; a transaction that it does not find there is not hanging."""
    log.create_topic("t")
    with streamlog.open(log.location) as other, other.producer(transactional_id="x", linger_ms=0) as producer:
        with log.producer(transactional_id="y") as beside, beside.transaction():
            beside.send("t", b"y")
        producer.init_transactions()
        producer.begin_transaction()
        producer.send("t", b"v").result()
        with log.consumer("t", auto_offset_reset="earliest", **COMMITTED) as consumer:
            real = TransactionsLog._fold
            fired = []

            def fold(self: TransactionsLog, batch: Any) -> None:
                if not fired:
                    fired.append(1)
                    os.kill(os.getpid(), signal.SIGUSR1)
                real(self, batch)

            before = signal.signal(signal.SIGUSR1, lambda *_: consumer.poll(30))
            try:
                with replaced(TransactionsLog, "_fold", fold):
                    log.transactions()
            finally:
                signal.signal(signal.SIGUSR1, before)
            assert fired
        producer.commit_transaction()
    assert committed(log) == [b"y", b"v"]


def test_a_batch_is_read_again_where_it_could_not_be_told_whether_it_counts(log: streamlog.Cluster) -> None:
    log.create_topic("t", 2)
    with log.producer(transactional_id="x") as producer, producer.transaction():
        for partition in (0, 1):
            producer.send("t", b"%d" % partition, partition=partition)
    real, raised = LogReader.hides, []

    def hides(self: LogReader, batch: Any) -> bool:
        if self.log.partition == 1 and not raised:
            raised.append(1)
            raise StreamlogTimeoutError("the lock is taken")
        return real(self, batch)

    with log.consumer(auto_offset_reset="earliest", **COMMITTED) as consumer, replaced(LogReader, "hides", hides):
        consumer.assign([("t", 1), ("t", 0)])
        found: list[bytes] = []
        for _ in range(5):
            try:
                found += [record.value for record in consumer.poll()]
            except StreamlogTimeoutError:
                pass
        assert sorted(found) == [b"0", b"1"]


@pytest.mark.parametrize("end", ["commit", "abort"])
def test_an_end_that_is_broken_off_can_be_repeated(end: str, log: streamlog.Cluster) -> None:
    """Ctrl-C at each line of the manager, and of the coordinator: the same call again ends it, whatever had been done."""
    log.create_topic("t", 2)
    wanted, number = [], 0
    with log.producer(transactional_id="x") as producer:
        producer.init_transactions()
        while True:
            left = number
            producer.begin_transaction()
            value = b"%d" % number
            for partition in (0, 1):
                producer.send("t", value, partition=partition)
            producer.flush()
            call = producer.commit_transaction if end == "commit" else producer.abort_transaction

            entered: set[tuple[Any, int]] = set()

            def trace(frame: Any, event: str, argument: Any, entered: set[tuple[Any, int]] = entered) -> Any:
                nonlocal left
                if "_client/transaction" not in frame.f_code.co_filename:
                    return None
                leaves = False  # the line of a `with` comes again when its block is left, where no signal is handled before the lock is let go
                if event == "line" and linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with "):
                    leaves = (frame, frame.f_lineno) in entered
                    entered ^= {(frame, frame.f_lineno)}
                if event == "line" and frame.f_code.co_name != "_alone" and not leaves:  # nor between `finally` and its first call
                    left -= 1
                    if left == -1:
                        sys.settrace(None)
                        raise KeyboardInterrupt
                return trace

            sys.settrace(trace)
            try:
                call()
                interrupted = False
            except KeyboardInterrupt:
                interrupted = True
            finally:
                sys.settrace(None)
            if interrupted and producer._manager.state != READY:  # type: ignore[union-attr]
                call()
            if end == "commit":
                wanted.append(value)
            if not interrupted:
                break
            number += 1
    assert number > 60
    assert sorted(committed(log)) == sorted(wanted * 2)


def test_a_registration_that_is_broken_off_is_ended(log: streamlog.Cluster) -> None:
    """Whether it counts nobody knows then: the abort asks."""
    log.create_topic("t")
    real = TransactionCoordinator.change
    for broken_off in ("before", "after"):
        with log.producer(transactional_id="x") as producer:
            producer.init_transactions()

            def change(self: TransactionCoordinator, *args: Any, when: str = broken_off) -> Any:
                if when == "after":
                    real(self, *args)
                raise KeyboardInterrupt

            producer.begin_transaction()
            producer.send("t", b"never")
            with replaced(TransactionCoordinator, "change", change), pytest.raises(KeyboardInterrupt):
                producer.flush()
            producer.abort_transaction()
            assert log.describe_transaction("x").state in ("CompleteAbort", "Empty")
            with producer.transaction():
                producer.send("t", b"v")
    assert committed(log) == [b"v", b"v"]


def test_a_bulk_send_that_ran_out_of_memory_dooms_the_transaction(log: streamlog.Cluster) -> None:
    from streamlog._os.locks import under

    log.create_topic("t", max_message_bytes=20_000)
    with log.producer(transactional_id="x", buffer_memory=25_000, max_block_ms=200, batch_size=1000) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send("t", b"v").result()
        held, go = threading.Event(), threading.Event()
        thread = threading.Thread(target=lambda: under(view_of(log).lock, 5, lambda: (held.set(), go.wait(10))))
        thread.start()
        held.wait()
        producer.send_batch("t", [b"v" * 1000] * 60)
        go.set()
        thread.join()
        with pytest.raises(streamlog.BufferExhaustedError):
            producer.commit_transaction()
        producer.abort_transaction()
    assert committed(log) == []


def test_a_batch_writer_belongs_to_its_transaction(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(transactional_id="x") as producer:
        producer.init_transactions()
        producer.begin_transaction()
        writer = producer.batch("t")
        writer.append(b"first")
        with pytest.raises(InvalidTxnStateError, match="still open"):
            producer.commit_transaction()
        producer.abort_transaction()
        producer.begin_transaction()
        with pytest.raises(InvalidTxnStateError, match="has ended"):
            writer.__exit__(None, None, None)
        producer.send("t", b"second")
        producer.commit_transaction()
    assert values_of(log) == [b"second"]


def test_a_busy_partition_keeps_nobody_from_a_dead_transaction(log: streamlog.Cluster) -> None:
    log.create_topic("t", 2)
    producer = log.producer(transactional_id="x", linger_ms=0)
    producer.init_transactions()
    producer.begin_transaction()
    producer.send("t", b"never", partition=1).result()
    producer._manager._finalizer()  # type: ignore[union-attr]  # as if its process had died
    with log.producer() as plain:
        plain.send("t", b"after", partition=1)
        plain.send_batch("t", [b"busy"] * 100_000, partition=0)
    with log.consumer("t", auto_offset_reset="earliest", max_poll_records=10, **COMMITTED) as consumer:
        for _ in range(5_000):
            if b"after" in [record.value for record in consumer.poll()]:
                break
        else:
            raise AssertionError("50,000 records of the other partition came first")
    with pytest.raises(ProducerFencedError):
        producer.commit_transaction()
    producer.close()


def test_a_full_disk_at_an_abort_holds_no_reader_up(place: Path) -> None:
    """There is no room for the transaction index: what it would say is known all the same."""
    fs = FaultyFileSystem()
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        cluster = Cluster(_Place(place / "log"), fs=fs)
        producer = cluster.producer(transactional_id="x", max_block_ms=500)
        producer.init_transactions()
        with producer.transaction():
            producer.send("t", b"v")
        producer.begin_transaction()
        producer.send("t", b"never").result()
        fs.fail_when("write", "*.txnindex*", times=10**6, number=28)
        with pytest.raises(streamlog.StorageFullError):
            producer.abort_transaction()
        fresh = Cluster(_Place(place / "log"), fs=fs)  # another process, on the same full disk
        for level, wanted in (("read_uncommitted", [b"v", b"never"]), ("read_committed", [b"v"])):
            assert [record.value for record in records_of(fresh, isolation_level=level)] == wanted
        fresh.close()
        fs.clear()
        producer.abort_transaction()
        with producer.transaction():
            producer.send("t", b"w")
        cluster.close()
        assert committed(log) == [b"v", b"w"]
        assert streamlog.check(log) == []


def test_a_partition_that_refuses_its_marker_keeps_none_from_the_others(log: streamlog.Cluster) -> None:
    log.create_topic("t", 3)
    with log.producer(transactional_id="x") as producer:
        producer.init_transactions()
        producer.begin_transaction()
        for partition in range(3):
            producer.send("t", b"%d" % partition, partition=partition)
        producer.flush()
        real = PartitionLog.append

        def append(self: PartitionLog, batch: Any, timeout: float) -> None:
            if isinstance(batch, Marker) and self.partition == 0:
                raise DiskFailedError("injected")
            real(self, batch, timeout)

        with replaced(PartitionLog, "append", append):
            with pytest.raises(DiskFailedError):
                producer.commit_transaction()
            stable = log.topic("t").end_offsets(isolation_level="read_committed")
            assert stable == {0: 0, 1: 2, 2: 2}
        producer.commit_transaction()
    assert sorted(committed(log)) == [b"0", b"1", b"2"]
    assert view_of(log).words[FAILED] == view_of(log).words[DIRTY] == 0


def test_close_after_a_time_out_says_nothing(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    producer = log.producer(transactional_id="x", transaction_timeout_ms=1000)
    producer.init_transactions()
    producer.begin_transaction()
    producer.send("t", b"never").result()
    log._home.clock.advance(2000)
    producer.close()
    assert committed(log) == []


def test_a_forked_child_keeps_no_transaction_alive(place: Path) -> None:
    """The parent dies, its child lives on: the transaction is over."""
    script = f"""
import os, sys, time
import streamlog
log = streamlog.open({str(place / "log")!r})
producer = log.producer(transactional_id="x", linger_ms=0)
producer.init_transactions()
producer.begin_transaction()
producer.send("t", b"never").result()
if os.fork() == 0:
    time.sleep(20)
    os._exit(0)
print("ready", flush=True)
sys.stdin.readline()
os.kill(os.getpid(), 9)
"""
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with log.producer() as plain:
            plain.send("t", b"after")
        try:
            with log.consumer("t", auto_offset_reset="earliest", **COMMITTED) as consumer:
                assert consumer.poll(timeout_ms=100) == []
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
                assert [record.value for record in consumer.poll(timeout_ms=10_000)] == [b"after"]
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def test_a_damaged_first_batch_of_an_open_transaction_holds_nobody_up(log: streamlog.Cluster) -> None:
    """Who began it is known by what is whole of it."""
    log.create_topic("t")
    producer = log.producer(transactional_id="x", linger_ms=0)
    producer.init_transactions()
    producer.begin_transaction()
    for number in range(2):
        producer.send("t", b"never %d" % number).result()
    producer._manager._finalizer()  # type: ignore[union-attr]
    with log.producer() as plain:
        plain.send("t", b"after")
    path = Path(log._place.path) / "broker-0" / "t-0" / "00000000000000000000.log"
    data = bytearray(path.read_bytes())
    data[64 + 60] ^= 1  # the producer id of the first batch
    with path.open("r+b") as file:
        file.write(data)
    with log.consumer("t", auto_offset_reset="earliest", **COMMITTED) as consumer:
        found: list[bytes] = []
        for _ in range(50):
            try:
                found += [record.value for record in consumer.poll(timeout_ms=100)]
            except streamlog.CorruptRecordError as error:
                consumer.seek(("t", 0), error.next_offset)
            if found:
                break
        assert found == [b"after"]
    producer.close()
    log.delete_topic("t")  # what is damaged stays so


def test_offsets_survive_a_commit_of_another_thread(log: streamlog.Cluster) -> None:
    """They are in the transaction, or refused."""
    log.create_topic("t")
    tp = TopicPartition("t", 0)
    outcomes = Counter[bool]()
    with log.producer(transactional_id="x") as producer:
        producer.init_transactions()
        for number in range(20):
            producer.begin_transaction()
            producer.send("t", b"v")
            sent: list[bool] = []

            def run(number: int = number, sent: list[bool] = sent) -> None:
                try:
                    producer.send_offsets({tp: number + 1}, NOBODY)
                    sent.append(True)
                except InvalidTxnStateError:
                    sent.append(False)

            thread = threading.Thread(target=run)
            thread.start()
            producer.commit_transaction()
            thread.join()
            outcomes.update(sent)
            if sent == [True]:
                assert log.group_offsets("g") == {tp: OffsetAndMetadata(number + 1)}
            else:
                assert sent == [False]
        assert sum(outcomes.values()) == 20


def test_managers_states_are_left_alone_by_what_they_refuse(log: streamlog.Cluster) -> None:
    """An abort from inside this producer's own `send` is refused, and its state is what it was."""
    log.create_topic("t")
    with log.producer(transactional_id="x") as producer:
        producer.init_transactions()
        producer.begin_transaction()
        manager = producer._manager
        assert isinstance(manager, TransactionManager)
        with replaced(type(producer), "_is_entered", lambda self: True):
            for call in (producer.abort_transaction, producer.commit_transaction):
                with pytest.raises(streamlog.InvalidStateError):
                    call()
        producer.send("t", b"v")
        producer.commit_transaction()
    assert committed(log) == [b"v"]


def test_a_send_at_the_end_of_a_commits_flush_is_refused(log: streamlog.Cluster) -> None:
    """Nothing is taken that the commit would not write."""
    log.create_topic("t")
    with log.producer(transactional_id="x", linger_ms=60_000) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send("t", b"v")
        real, refused = type(producer).flush, []

        def flush(self: Any, timeout: float | None = None) -> None:
            real(self, timeout)
            try:
                producer.send("t", b"late")
            except InvalidTxnStateError:
                refused.append(1)

        with replaced(type(producer), "flush", flush):
            producer.commit_transaction()
        assert refused
    assert committed(log) == [b"v"]


def test_nobody_waits_for_a_fold_under_a_partitions_lock(log: streamlog.Cluster) -> None:
    """Another thread folds the states: the append lets its lock go meanwhile."""
    log.create_topic("t")
    with log.producer(transactional_id="x", linger_ms=0) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send("t", b"v").result()
        states = producer._manager._coordinator.states.keeper("x", 5)  # type: ignore[union-attr]
        held, go = threading.Event(), threading.Event()

        def fold() -> None:
            with states._fold_lock:
                held.set()
                go.wait(10)

        thread = threading.Thread(target=fold)
        thread.start()
        held.wait()
        states.version -= 1  # there is something to fold
        producer._known_targets["t"].lanes[0].fences = -1  # and the next batch asks
        delivery = producer.send("t", b"w")
        with log.producer(linger_ms=0) as plain:
            plain.send("t", b"plain").result(timeout=5)  # the partition's lock is free
        assert not delivery.done()
        go.set()
        thread.join()
        delivery.result(timeout=10)
        producer.commit_transaction()
    assert sorted(committed(log)) == [b"plain", b"v", b"w"]


def test_h29_offsets_that_are_on_the_disk_speak_of_records_that_are(log: streamlog.Cluster) -> None:
    """Of the topic that was read, too."""
    from streamlog._log.state import SYNCED

    log.create_topic("t")
    with log.producer() as plain:
        plain.send("t", b"v")
    with log.producer(transactional_id="x", durability="fsync") as producer, producer.transaction():
        producer.send_offsets({TopicPartition("t", 0): 1}, NOBODY)
        assert view_of(log).words[SYNCED] == 1


def test_a_batch_of_an_aborted_transaction_hinders_no_commit(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(transactional_id="x") as producer:
        producer.init_transactions()
        producer.begin_transaction()
        writer = producer.batch("t")
        writer.append(b"never")
        producer.abort_transaction()
        with producer.transaction():
            producer.send("t", b"v")
        with pytest.raises(InvalidTxnStateError):
            writer.__exit__(None, None, None)
    assert committed(log) == [b"v"]


def test_a_commit_whose_own_callback_aborts_says_so(log: streamlog.Cluster) -> None:
    """Nobody ends a transaction while it is being ended: what commits is whole."""
    log.create_topic("t", 2)
    refused: list[Exception] = []

    def abort(*_: object) -> None:
        try:
            producer.abort_transaction(1)
        except InvalidTxnStateError as error:
            refused.append(error)

    with log.producer(transactional_id="x", linger_ms=60_000) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send("t", b"a", partition=0, on_delivery=abort)
        producer.send("t", b"b", partition=1)
        producer.commit_transaction()
    assert refused
    assert sorted(committed(log)) == [b"a", b"b"]


def test_threads_that_end_one_transaction(log: streamlog.Cluster) -> None:
    """One of them does, the others are told; whatever the outcome, it is whole."""
    log.create_topic("t", 2)
    with log.producer(transactional_id="x", linger_ms=60_000) as producer:
        producer.init_transactions()
        for number in range(40):
            producer.begin_transaction()
            for partition in (0, 1):
                producer.send("t", b"%d" % number, partition=partition)
            done: list[str] = []
            barrier = threading.Barrier(3)

            def end(name: str, barrier: threading.Barrier = barrier, done: list[str] = done) -> None:
                barrier.wait()
                try:
                    getattr(producer, f"{name}_transaction")()
                    done.append(name)
                except InvalidTxnStateError:
                    pass

            threads = [threading.Thread(target=end, args=(name,)) for name in ("commit", "commit", "abort")]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(done) == 1
            assert committed(log).count(b"%d" % number) == (2 if done == ["commit"] else 0)


def test_pending_offsets_that_hang_are_decided(log: streamlog.Cluster) -> None:
    """A power cut took the state of a transaction, and left its offsets: who needs them ends it, and so does `maintain`."""
    log.create_topic("t")
    with log.producer(transactional_id="y") as other, other.transaction():
        other.send_offsets({TopicPartition("t", 0): 0}, NOBODY)
    with log.producer() as plain:
        plain.send("t", b"v")
    for ended_by in ("a member", "maintain"):
        with log.producer(transactional_id="x") as producer:
            producer.init_transactions()
            producer.begin_transaction()
            producer.send_offsets({TopicPartition("t", 0): 1}, NOBODY)
            manager = producer._manager
            assert manager is not None
            manager._coordinator.change("x", 5, lambda found: found._replace(state="Empty", partitions=frozenset()))
            if ended_by == "maintain":
                log.maintain()
                assert log.hanging_transactions() == []
            else:
                with log.consumer("t", group_id="g", enable_auto_commit=False) as consumer:
                    assert [record.value for record in consumer.poll(timeout_ms=2000)] == [b"v"]
            with pytest.raises(streamlog.StreamlogError):
                producer.commit_transaction()


def test_only_the_transaction_that_holds_an_offset_is_aborted_for_it(log: streamlog.Cluster) -> None:
    """It ended meanwhile, and the producer's next one has nothing to do with it."""
    log.create_topic("t")
    with log.producer(transactional_id="x") as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send_offsets({TopicPartition("t", 0): 1}, NOBODY)
        manager = producer._manager
        assert manager is not None
        offsets = log._groups.coordinator("g", 5).offsets
        producer_id, epoch = manager.current
        producer.commit_transaction()
        producer.begin_transaction()
        producer.send("t", b"v").result()
        manager._coordinator.end_for_member(offsets.log, producer_id, epoch, gone=True, timeout=5)
        producer.commit_transaction()
    assert committed(log) == [b"v"]


def test_h31_a_copy_takes_producer_ids_of_its_own(place: Path) -> None:
    """Its logs may know transactions that its states do not: an id's next one must not pass for one of those."""
    import shutil

    home, copy = place / "home", place / "copy"
    with streamlog.open(home) as log:
        log.create_topic("t")
        with log.producer(transactional_id="x") as producer:
            with producer.transaction():
                producer.send("t", b"1")
            states = list((home / "broker-0").glob("__transaction_state*"))
            (copy / "broker-0").mkdir(parents=True)
            for path in states:
                shutil.copytree(path, copy / "broker-0" / path.name)
            producer.begin_transaction()
            producer.send("t", b"never")
            producer.flush()
            for path in (home / "broker-0").iterdir():
                if path not in states:
                    (shutil.copytree if path.is_dir() else shutil.copy)(path, copy / "broker-0" / path.name)
            shutil.copy(home / "cluster.json", copy)
    with streamlog.open(copy) as log:
        with log.producer(transactional_id="x") as producer, producer.transaction():
            producer.send("t", b"2")
        with log.consumer("t", auto_offset_reset="earliest", **COMMITTED) as consumer:
            found: list[bytes] = []
            while b"2" not in found:
                found += [record.value for record in consumer.poll(timeout_ms=5000)]
        assert found == [b"1", b"2"]
        assert streamlog.check(log) == []


def test_the_dead_are_seen_to_together(log: streamlog.Cluster) -> None:
    """A reader that many of them hold up ends one after the other in one look."""
    log.create_topic("t")
    producers = [log.producer(transactional_id=f"x{number}", linger_ms=0) for number in range(50)]
    for producer in producers:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send("t", b"never").result()
        producer._manager._finalizer()  # type: ignore[union-attr]
    with log.producer() as plain:
        log._home.next_tick = float("inf")
        plain.send("t", b"after")
    with log.consumer("t", auto_offset_reset="earliest", **COMMITTED) as consumer:
        found: list[bytes] = []
        for polls in range(10):  # noqa: B007
            found += [record.value for record in consumer.poll(timeout_ms=20)]
            if found:
                break
        assert found == [b"after"]
        assert polls < 5
    for producer in producers:
        producer.close()


@pytest.mark.parametrize("boot", [True, False])
@pytest.mark.parametrize("who", ["topic", "consumer", "lag"])
def test_who_asks_where_committed_records_end_ends_what_the_dead_left_open(who: str, boot: bool, place: Path) -> None:
    """At the first call: before it nothing in this process has looked at the log."""
    pid = os.fork()
    if pid == 0:
        log = streamlog.open(place / "log")
        log.create_topic("t")
        producer = log.producer(transactional_id="x", linger_ms=0)
        producer.init_transactions()
        producer.begin_transaction()
        producer.send("t", b"never").result()
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    if boot:
        shutil.rmtree(place / "log/run")
    with streamlog.open(place / "log") as log:
        if who == "topic":
            assert log.topic("t").end_offsets(isolation_level="read_committed") == {0: 2}
            return
        with log.consumer("t", auto_offset_reset="earliest", **COMMITTED) as consumer:
            if who == "consumer":
                assert consumer.end_offsets([("t", 0)]) == {("t", 0): 2}
            else:
                consumer.seek(("t", 0), 0)
                assert [*consumer.lag().values()] == [2]
