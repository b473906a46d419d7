"""A real group: eight processes, killed and stopped at random while records are written.

Each process writes down what it is told about its partitions and what it processed, with times.  Afterwards: every record was processed;
each owner processed a partition in order; no two owners overlap, where a stopped member's time ends with its expiry; and nothing that was
committed by a member whose time was over counts.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgpack
import pytest

import streamlog
from replica.chaos import Chaos
from streamlog import TopicPartition

LONG = os.environ.get("STREAMLOG_LONG") == "1"
PARTITIONS, MEMBERS = 24, 8
SECONDS = 60 if LONG else 12

WORKER = """
import json, os, sys, time
import streamlog
location, path, strategy = sys.argv[1:]
out = open(path, "a", buffering=1)
def note(kind, **fields):
    out.write(json.dumps(dict(kind=kind, at=time.monotonic(), **fields)) + "\\n")
class Listener:
    def on_partitions_assigned(self, tps):
        me = consumer.group_metadata()
        note("assigned", tps=[tp.partition for tp in tps], member=me.member_id, generation=me.generation)
    def on_partitions_revoked(self, tps): note("revoked", tps=[tp.partition for tp in tps])
    def on_partitions_lost(self, tps): note("lost", tps=[tp.partition for tp in tps])
with streamlog.open(location) as log:
    consumer = log.consumer(group_id="g", auto_offset_reset="earliest", partition_assignment_strategy=strategy, session_timeout_ms=700,
                            heartbeat_interval_ms=100, auto_commit_interval_ms=20, max_poll_records=50, default_api_timeout_ms=2000)
    consumer.subscribe(["t"], listener=Listener())
    while True:
        try:
            records = consumer.poll(timeout_ms=200)
        except streamlog.RetriableError as error:
            note("timeout", text=str(error))
            continue
        if records:
            by = {}
            for record in records:
                by.setdefault(record.partition, []).append(record.offset)
            note("processed", by=by, member=consumer.group_metadata().member_id)
"""


class Member:
    """A process with one consumer, and what it wrote down."""

    def __init__(self, place: Path, number: int, strategy: str) -> None:
        self.path = place / f"member-{number}.jsonl"
        self.process = subprocess.Popen([sys.executable, "-c", WORKER, str(place / "log"), str(self.path), strategy])
        self.killed_at = float("inf")
        self.stopped_until = 0.0

    def notes(self) -> list[dict[str, Any]]:
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def kill(self) -> None:
        self.killed_at = min(self.killed_at, time.monotonic())
        self.process.kill()
        self.process.wait()


def departures(place: Path, stop: threading.Event, seen: list[tuple[float, str]]) -> None:
    """Who is gone from the group, and when it was last seen there.  Read without the lock: a stopped process holds nobody up."""
    looked = 0.0
    with streamlog.open(place / "log") as log:
        file = log._groups.coordinator("g", 10).file
        last: frozenset[str] = frozenset()
        while not stop.is_set():
            before, group = time.monotonic(), file.load()
            now = last if group is None else frozenset(group.members)
            seen.extend((looked, member) for member in last - now)
            last, looked = now, before
            time.sleep(0.001)


@pytest.mark.parametrize(("strategy", "brokers"), [("cooperative-sticky", 1), ("range", 1), ("cooperative-sticky", 3)])
def test_eight_members_killed_and_stopped_at_random(place: Path, seed: int, strategy: str, brokers: int) -> None:
    """With three brokers one of them is out at times, too."""
    rng = random.Random(seed)
    with streamlog.open(place / "log", brokers=brokers) as log:
        log.create_topic("t", partitions=PARTITIONS, replication_factor=brokers)
        chaos = Chaos(log, place / "log", random.Random(seed))
        members = [Member(place, number, strategy) for number in range(MEMBERS)]
        stop, gone = threading.Event(), []
        watcher = threading.Thread(target=departures, args=(place, stop, gone))
        watcher.start()
        everybody = list(members)
        written = [0] * PARTITIONS
        try:
            end = time.monotonic() + SECONDS
            with log.producer() as producer:
                while time.monotonic() < end:
                    for _ in range(40):
                        partition = rng.randrange(PARTITIONS)
                        producer.send("t", str(written[partition]), partition=partition)
                        written[partition] += 1
                    disturb(rng, place, members, everybody, strategy)
                    chaos.step(0.01)
                    time.sleep(0.01)
            for member in members:
                os.kill(member.process.pid, signal.SIGCONT)
            chaos.end()
            wait_until_all_is_committed(log, written)
            wait_until_all_is_owned(log)
        finally:
            stop.set()
            watcher.join()
            for member in everybody:
                member.kill()
        check_notes(everybody, written, gone)
        check_commits(log, written)
        assert streamlog.check(log) == []


def disturb(rng: random.Random, place: Path, members: list[Member], everybody: list[Member], strategy: str) -> None:
    """Now and then kill one and start another, or stop one for a while."""
    now = time.monotonic()
    for member in members:
        if member.stopped_until and now > member.stopped_until:
            os.kill(member.process.pid, signal.SIGCONT)
            member.stopped_until = 0.0
    chance = rng.random()
    if chance < 0.02:
        victim = rng.choice(members)
        victim.kill()
        members.remove(victim)
        members.append(Member(place, len(everybody), strategy))
        everybody.append(members[-1])
    elif chance < 0.04:
        sleeper = rng.choice(members)
        if not sleeper.stopped_until:
            os.kill(sleeper.process.pid, signal.SIGSTOP)
            sleeper.stopped_until = now + rng.choice([0.05, 0.3, 2.0])


def wait_until_all_is_committed(log: streamlog.Cluster, written: list[int]) -> None:
    deadline = time.monotonic() + 60
    while True:
        found = log.group_offsets("g")
        behind = {p: count for p, count in enumerate(written) if count and (TopicPartition("t", p) not in found or found["t", p].offset < count)}
        if not behind:
            return
        assert time.monotonic() < deadline, f"not all was read and committed: {behind}, {log.describe_group('g')}"
        time.sleep(0.05)


def wait_until_all_is_owned(log: streamlog.Cluster) -> None:
    """One that was continued or started last may still be joining: left alone, the group comes to rest."""
    deadline = time.monotonic() + 60
    while (group := log.describe_group("g")).state != "Stable":
        assert time.monotonic() < deadline, group
        time.sleep(0.05)
    assert sorted(tp.partition for one in group.members for tp in one.assignment) == list(range(PARTITIONS))


def check_notes(everybody: list[Member], written: list[int], gone: list[tuple[float, str]]) -> None:
    gone_at = {member: at for at, member in gone}
    processed: dict[int, set[int]] = defaultdict(set)
    intervals: dict[int, list[tuple[float, float, str]]] = defaultdict(list)
    stays = 0
    for number, member in enumerate(everybody):
        owned: dict[int, tuple[float, str]] = {}
        last: dict[int, int] = {}
        me = ""
        for note in member.notes():
            if note["kind"] == "assigned":
                me = note["member"]
                for partition in note["tps"]:
                    assert partition not in owned, f"member {number} was told twice of {partition}"
                    owned[partition] = note["at"], me
                    last.pop(partition, None)
            elif note["kind"] in ("revoked", "lost"):
                for partition in note["tps"]:
                    begun, who = owned.pop(partition)
                    intervals[partition].append((begun, min(note["at"], gone_at.get(who, float("inf"))), f"{number}: {who}"))
                    stays += 1
            elif note["kind"] == "processed":
                for text, offsets in note["by"].items():
                    partition = int(text)
                    assert partition in owned, f"member {number} processed {partition}, which it did not own"
                    expected = list(range(offsets[0], offsets[0] + len(offsets)))
                    assert offsets == expected, f"member {number}, partition {partition}: {offsets}"
                    assert offsets[0] == last.get(partition, offsets[0] - 1) + 1, f"member {number} skipped or repeated in {partition}"
                    last[partition] = offsets[-1]
                    processed[partition].update(offsets)
        for partition, (begun, who) in owned.items():
            intervals[partition].append((begun, min(member.killed_at, gone_at.get(who, float("inf"))), f"{number}: {who}"))
    for partition, count in enumerate(written):
        assert processed[partition] == set(range(count)), f"partition {partition}: not every record was processed"
        ordered = sorted(intervals[partition])
        for (_, end, before), (begun, _, after) in zip(ordered, ordered[1:]):
            assert begun >= end, f"partition {partition} had two owners for {end - begun:.4f} s: {before} and {after}"
    print(f"{sum(written)} records, {len(everybody)} members, {stays} stays ended, {len(gone_at)} departures")


def check_commits(log: streamlog.Cluster, written: list[int]) -> None:
    """No commit went back: one of a member whose time was over would have."""
    last = dict.fromkeys(range(PARTITIONS), 0)
    with log.consumer(auto_offset_reset="earliest") as consumer:
        consumer.assign([("__consumer_offsets", partition) for partition in log.topic("__consumer_offsets").partitions])
        while records := consumer.poll():
            for record in records:
                kind, _, *where = msgpack.unpackb(record.key)
                if kind == "OffsetCommit":
                    partition, offset = where[1], msgpack.unpackb(record.value)[0]
                    assert last[partition] <= offset <= written[partition]
                    last[partition] = offset
