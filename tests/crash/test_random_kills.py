"""Writers are killed at random, again and again, while others write and read: nothing acknowledged is lost, nobody is held up."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

import streamlog
from conftest import LONG
from replica.chaos import Chaos

KILLS = 2000 if LONG else 150


def writer(path: Path, life: int, pipe: int, durability: str) -> None:
    """Write until killed; tell each acknowledged value."""
    with streamlog.open(path) as log, log.producer(durability=durability, linger_ms=random.choice((0, 1000))) as producer:
        number = 0
        while True:
            value = b"%d.%d." % (life, number) + b"." * random.choice((10, 10, 700))
            producer.send("t", value, key=random.choice((None, value)))
            producer.flush()
            os.write(pipe, value[: value.index(b".", value.index(b".") + 1)] + b"\n")
            number += 1


def start_writer(path: Path, life: int, pipe: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            random.seed(life)
            writer(path, life, pipe, "fsync" if life % 5 == 0 else "os")
        finally:
            os._exit(1)
    return pid


@pytest.mark.parametrize("brokers", [1, 3])
def test_random_kills(place: Path, seed: int, brokers: int, request: pytest.FixtureRequest) -> None:
    """With three brokers one of them is out at times, too."""
    chance, path, kills = random.Random(seed), place / "log", KILLS if brokers == 1 else KILLS // 2
    with streamlog.open(path, brokers=brokers) as log:
        log.create_topic("t", 2, replication_factor=brokers, segment_bytes=8192, index_interval_bytes=512)
        chaos = Chaos(log, path, random.Random(seed))
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        acknowledged: set[bytes] = set()
        rest = b""
        seen: list[streamlog.Record] = []
        with log.producer() as bystander, log.consumer("t", auto_offset_reset="earliest") as reader:
            pids = [start_writer(path, life, writing) for life in range(2)]
            request.addfinalizer(lambda: end(pids))
            for life in range(2, kills + 2):
                time.sleep(chance.random() * 0.012)
                os.kill(pids[0], signal.SIGKILL)
                os.waitpid(pids.pop(0), 0)
                pids.append(start_writer(path, life, writing))
                chaos.step(0.2)
                began = time.monotonic()
                bystander.send("t", b"bystander.%d" % life).result(timeout=20)
                assert time.monotonic() - began < 15, "a kill held somebody up"
                seen += reader.poll(max_records=10**6)
                rest += drain(reading)
                *lines, rest = rest.split(b"\n")
                acknowledged.update(lines)
                acknowledged.add(b"bystander.%d" % life)
            end(pids)
            bystander.send("t", b"bystander.end").result(timeout=20)
            acknowledged.update((rest + drain(reading)).split(b"\n")[:-1])
            chaos.end()
            assert streamlog.check(log) == []  # finishes what the last to die left, and may adopt a whole batch of theirs
            while found := reader.poll(max_records=10**6):
                seen += found
        values = [b".".join(record.value.split(b".")[:2]) for record in seen]
        assert acknowledged <= set(values), f"acknowledged and lost: {sorted(acknowledged - set(values))[:10]}"
        places = sorted((record.partition, record.offset) for record in seen)
        assert len(places) == len(set(places)), f"an offset was read twice: {[p for p, q in zip(places, places[1:]) if p == q][:10]}"
        assert len(values) == len(set(values)), "a record twice"
        for partition in range(2):
            offsets = [record.offset for record in seen if record.partition == partition]
            assert offsets == list(range(len(offsets))), "a gap or a repetition"
        with log.consumer("t", auto_offset_reset="earliest") as again:
            second: list[streamlog.Record] = []
            while found := again.poll(max_records=10**6):
                second += found
        assert sorted(record[1:8] for record in second) == sorted(record[1:8] for record in seen), "all but the epoch, which a rewrite raises"
        print(f"{kills} kills, {len(acknowledged)} acknowledged, {len(seen)} seen")


def end(pids: list[int]) -> None:
    while pids:
        os.kill(pids[-1], signal.SIGKILL)
        os.waitpid(pids.pop(), 0)


def drain(fd: int) -> bytes:
    data = b""
    while True:
        try:
            data += os.read(fd, 1 << 16)
        except BlockingIOError:
            return data
