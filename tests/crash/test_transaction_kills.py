"""Transactions and real deaths: a child that kills itself at each step of one; and consume-transform-produce by four processes that are
killed and stopped at random, after which the output has every input exactly once.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import streamlog
from conftest import LONG, records_of
from crash.steps import die_at, steps_of
from replica.chaos import Chaos
from streamlog.cluster import Cluster

RECORDS, WORKERS = 100_000 if LONG else 20_000, 4
COMMITTED = {"isolation_level": "read_committed"}


def topics(cluster: Cluster, ack: Callable[[str], None]) -> None:
    cluster.create_topic("t", 2, segment_bytes=4096)
    with cluster.producer(transactional_id="x") as producer, producer.transaction():
        producer.send("t", b"first" + bytes(3500), partition=0)
        producer.send("t", b"first" + bytes(3500), partition=1)
    cluster.alter_group_offsets("g", {("t", 0): 0})


def commit(cluster: Cluster, ack: Callable[[str], None]) -> None:
    producer = cluster.producer(transactional_id="x", linger_ms=1000)
    producer.init_transactions()
    producer.begin_transaction()
    for number in range(2):
        producer.send("t", b"second-%d" % number + bytes(500), partition=number)
    producer.send_offsets({("t", 0): 1}, streamlog.GroupMetadata("g", -1, "", None))
    producer.commit_transaction()
    ack("committed")


def abort(cluster: Cluster, ack: Callable[[str], None]) -> None:
    producer = cluster.producer(transactional_id="x", linger_ms=0)
    producer.init_transactions()
    producer.begin_transaction()
    for number in range(2):
        producer.send("t", b"second-%d" % number + bytes(500), partition=number)
    producer.abort_transaction()
    ack("aborted")


@pytest.mark.parametrize("scenario", [commit, abort], ids=lambda scenario: scenario.__name__)
def test_killed_at_every_step(scenario: Callable[[Cluster, Callable[[str], None]], None], place: Path) -> None:
    """All of the transaction is seen, offsets included, or nothing; readers go on; the next producer of the id goes on."""
    names = steps_of(place / "dry", topics, scenario)
    assert len(names) > 50
    outcomes, missed = Counter[bool](), 0
    for number in range(len(names)):
        for phase in ("before", "half", "after") if names[number].startswith("write ") else ("before", "after"):
            path = place / f"{number}-{phase}"
            lines, killed = die_at(path, number, phase, topics, scenario)
            missed += not killed
            if not killed:
                continue  # one step or another depends on the clock, and those after it move
            with streamlog.open(path) as log:
                with log.consumer("t", auto_offset_reset="earliest", **COMMITTED) as consumer:
                    ends, found = consumer.end_offsets([("t", 0), ("t", 1)]), []
                    deadline = time.monotonic() + 10
                    while sum(consumer.lag().values()) or ends != log_ends(log):
                        found += [record.value[:8] for record in consumer.poll(timeout_ms=20)]
                        ends = consumer.end_offsets([("t", 0), ("t", 1)])
                        assert time.monotonic() < deadline, f"held up after a death at {names[number]}, {phase}"
                second = sorted(value for value in found if value.startswith(b"second"))
                assert second in ([], [b"second-0", b"second-1"]), f"split at {names[number]}, {phase}"
                outcomes[bool(second)] += 1
                if lines:
                    assert bool(second) == (lines == ["committed"])
                if scenario is commit:
                    assert log.group_offsets("g") == {("t", 0): streamlog.OffsetAndMetadata(1 if second else 0)}
                with log.producer(transactional_id="x") as producer, producer.transaction():
                    producer.send("t", b"third", partition=0)
                assert b"third" in [record.value for record in records_of(log, **COMMITTED)]
                assert log.hanging_transactions() == []
                assert streamlog.check(log) == [], f"{names[number]}, {phase}"
    assert missed < len(names) // 3, "most places are met"
    assert outcomes[False] > 20
    assert (outcomes[True] > 10) == (scenario is commit)


def log_ends(log: streamlog.Cluster) -> dict[streamlog.TopicPartition, int]:
    return {streamlog.TopicPartition("t", number): end for number, end in log.topic("t").end_offsets().items()}


WORKER = """
import sys
import streamlog
from streamlog import CommitFailedError, ProducerFencedError, StreamlogError
location, name = sys.argv[1:]
with streamlog.open(location) as log:
    while True:
        consumer = log.consumer("in", group_id="g", auto_offset_reset="earliest", isolation_level="read_committed", enable_auto_commit=False,
                                session_timeout_ms=700, heartbeat_interval_ms=100, max_poll_records=40, default_api_timeout_ms=3000)
        producer = log.producer(transactional_id=name, transaction_timeout_ms=1000, max_block_ms=3000)
        try:
            producer.init_transactions()
            while True:
                records = consumer.poll(timeout_ms=100)
                if not records:
                    continue
                try:
                    with producer.transaction():
                        for record in records:
                            producer.send("out", record.value + b"!", key=record.key)
                        producer.send_offsets(consumer)
                except ProducerFencedError:
                    raise
                except StreamlogError as error:
                    print(type(error).__name__, error, flush=True)
                    consumer.seek_to_committed()
        except StreamlogError as error:
            print(type(error).__name__, error, flush=True)
        try:
            producer.close(timeout=1)
        except StreamlogError as error:
            print(type(error).__name__, error, flush=True)
        consumer.close(autocommit=False, timeout=1)
"""


def start(location: Path, number: int) -> subprocess.Popen[bytes]:
    with open(location.parent / "errors", "ab") as errors:
        return subprocess.Popen([sys.executable, "-c", WORKER, str(location), f"worker-{number}"], stdout=errors)


@pytest.mark.parametrize("brokers", [1, 3])
def test_exactly_once_under_fire(place: Path, seed: int, brokers: int) -> None:
    """Four workers of one group; each may be killed, and comes back under its name, or be stopped for longer than its time-outs.

    With three brokers one of them is out at times, too.
    """
    rng, location = random.Random(seed), place / "log"
    total = RECORDS if brokers == 1 else RECORDS // 2
    with streamlog.open(location, brokers=brokers) as log:
        log.create_topic("in", 6, replication_factor=brokers)
        log.create_topic("out", 4, replication_factor=brokers, segment_bytes=65_536)
        chaos = Chaos(log, location, random.Random(seed))
        workers = [start(location, number) for number in range(WORKERS)]
        stopped: dict[int, float] = {}
        kills = stops = sent = 0
        deadline = time.monotonic() + 240
        try:
            with log.producer() as producer, log.consumer("out", auto_offset_reset="earliest", **COMMITTED) as consumer:
                found: list[bytes] = []
                quiet_since = time.monotonic()
                while len(found) < total or time.monotonic() - quiet_since < 2:
                    assert time.monotonic() < deadline, f"{len(found)} of {total} after {kills} kills and {stops} stops"
                    for _ in range(min(200, total - sent)):
                        producer.send("in", b"%d" % sent, key=b"%d" % (sent % 50))
                        sent += 1
                    if records := consumer.poll(timeout_ms=20):
                        found += [record.value for record in records]
                        quiet_since = time.monotonic()
                    for number, until in list(stopped.items()):
                        if time.monotonic() > until:
                            os.kill(workers[number].pid, signal.SIGCONT)
                            del stopped[number]
                    chaos.step(0.05)
                    if len(found) < total * 0.9 and rng.random() < 0.15:
                        number = rng.randrange(WORKERS)
                        if number in stopped:
                            continue
                        if rng.random() < 0.6:
                            workers[number].kill()
                            workers[number].wait()
                            workers[number] = start(location, number)
                            kills += 1
                        else:
                            os.kill(workers[number].pid, signal.SIGSTOP)
                            stopped[number] = time.monotonic() + rng.choice((0.05, 0.5, 1.5, 3))
                            stops += 1
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        chaos.end()
        counts = Counter(found)
        print(f"{kills} kills, {stops} stops")
        assert [value for value, count in counts.items() if count > 1] == []
        assert set(counts) == {b"%d!" % number for number in range(total)}
        by_key: dict[bytes | None, list[int]] = {}
        for record in records_of(log, "out", **COMMITTED):
            by_key.setdefault(record.key, []).append(int(record.value[:-1]))
        assert all(numbers == sorted(numbers) for numbers in by_key.values()), "in order for each key"
        log.maintain()
        assert log.hanging_transactions() == []
        assert streamlog.check(log) == []
        errors = Counter(line.split()[0] for line in (place / "errors").read_text().splitlines())
        print(f"what workers were told: {dict(errors)}")
        told = {"ProducerFencedError", "UnknownMemberIdError", "CommitFailedError", "IllegalGenerationError", "StreamlogTimeoutError"}
        assert set(errors) <= (told if brokers == 1 else told | {"NotLeaderOrFollowerError", "NeedsControllerError", "NotEnoughReplicasError"})
        assert kills > 3
        assert stops > 1


ZOMBIE = """
import sys
import streamlog
with streamlog.open(sys.argv[1]) as log:
    producer = log.producer(transactional_id="x", linger_ms=0)
    producer.init_transactions()
    producer.begin_transaction()
    producer.send("t", b"zombie-1")
    print("open", flush=True)
    sys.stdin.readline()
    errors = []
    send = lambda: producer.send("t", b"zombie-2").result()
    for call in (send, producer.commit_transaction, producer.begin_transaction, producer.abort_transaction):
        try:
            call()
            errors.append("nothing")
        except streamlog.StreamlogError as error:
            errors.append(type(error).__name__)
    print(*errors, flush=True)
"""


def test_a_zombie_that_wakes_is_fenced(place: Path) -> None:
    """Stopped through a take-over and then continued."""
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        process = subprocess.Popen(
            [sys.executable, "-c", ZOMBIE, str(place / "log")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "open\n"
        os.kill(process.pid, signal.SIGSTOP)
        with log.producer(transactional_id="x") as producer, producer.transaction():
            producer.send("t", b"new")
        os.kill(process.pid, signal.SIGCONT)
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline().split() == ["ProducerFencedError"] * 4
        process.communicate()
        assert [record.value for record in records_of(log, **COMMITTED)] == [b"new"]
        assert [record.value for record in records_of(log)] == [b"zombie-1", b"new"]
        assert streamlog.check(log) == []


@pytest.mark.parametrize("phase", ["data", "commit"])
def test_a_dead_producer_holds_nobody_up(phase: str, place: Path) -> None:
    """Killed with an open transaction: a reader that waits goes on, long before the time-out."""
    script = ZOMBIE.replace("sys.stdin.readline()", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    if phase == "commit":
        die = "    producer._manager._coordinator.finish = lambda *_: os.kill(os.getpid(), 9)\n"
        script = script.replace('    print("open", flush=True)\n', f"    import os\n{die}    producer.commit_transaction()\n")
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        subprocess.run([sys.executable, "-c", script, str(place / "log")], stdout=subprocess.DEVNULL, check=False)
        with log.producer() as plain:
            plain.send("t", b"after")
        with log.consumer("t", auto_offset_reset="earliest", **COMMITTED) as consumer:
            found: list[bytes] = []
            while b"after" not in found:
                records = consumer.poll(timeout_ms=10_000)
                assert records
                found += [record.value for record in records]
        assert found == ([b"zombie-1"] if phase == "commit" else []) + [b"after"]
        assert streamlog.check(log) == []
