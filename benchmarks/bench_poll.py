"""Reading: records, values, and columns in place against a plain mapped file."""

from __future__ import annotations

import sqlite3
import time
from functools import cache
from importlib import import_module
from itertools import repeat
from typing import Any

import numpy as np
from harness import VALUE, Contender, Group, Place, at_most, rate, timed

import streamlog

COUNT = 300_000
PIECE, PIECES = 1 << 20, 128  # of the columns, bytes


# ---- records -------------------------------------------------------------------------------------------------------------------


def contenders(place: Place) -> list[Contender]:
    """A topic that was filled by plain `send`; SQLite and LMDB by hand for comparison."""
    topic = cache(lambda: filled(place))
    table = cache(lambda: filled_table(place))
    environment = cache(lambda: filled_lmdb(place))
    return [
        Contender("poll: records", lambda: poll(place.log, topic()), (at_most(0.45e-6),)),
        Contender("poll_batches: values", lambda: poll_values(place.log, topic()), (at_most(0.12e-6),)),
        Contender("SQLite: values", lambda: read_table(table())),
        Contender("LMDB cursor: values", lambda: read_lmdb(environment())),
    ]


def filled(place: Place) -> str:
    """A topic of `COUNT` records."""
    topic = place.new_topic()
    with place.log.producer() as producer:
        for _ in repeat(None, COUNT):
            producer.send(topic, VALUE)
    return topic


def poll(log: streamlog.Cluster, topic: str) -> float:
    """All records as objects."""
    with log.consumer(topic, auto_offset_reset="earliest") as consumer:

        def loop() -> None:
            left, poll = COUNT, consumer.poll
            while left:
                records = poll(1000)
                assert records
                left -= len(records)

        return timed(loop, COUNT)


def poll_values(log: streamlog.Cluster, topic: str) -> float:
    """All values as bytes objects."""
    with log.consumer(topic, auto_offset_reset="earliest") as consumer:

        def loop() -> None:
            left = COUNT
            while left:
                batches = consumer.poll_batches(1000)
                assert batches
                left -= sum(len(batch.values.to_list()) for batch in batches)

        return timed(loop, COUNT)


def filled_table(place: Place) -> sqlite3.Connection:
    """A log as one writes it by hand in SQLite."""
    connection = sqlite3.connect(place.path("log.sqlite"))
    place.stack.callback(connection.close)
    connection.execute("pragma journal_mode = wal")
    connection.execute("create table log (number integer primary key, value blob)")
    connection.executemany("insert into log (value) values (?)", repeat((VALUE,), COUNT))
    connection.commit()
    return connection


def read_table(connection: sqlite3.Connection) -> float:
    """All values as bytes objects."""
    return timed(lambda: sum(1 for _ in connection.execute("select value from log")), COUNT)


def filled_lmdb(place: Place) -> Any:
    """A log as one writes it by hand in LMDB."""
    environment = import_module("lmdb").open(place.path("lmdb"), map_size=1 << 30)
    place.stack.callback(environment.close)
    with environment.begin(write=True) as transaction:
        for number in range(COUNT):
            transaction.put(number.to_bytes(8, "big"), VALUE, append=True)
    return environment


def read_lmdb(environment: Any) -> float:
    """All values as bytes objects."""
    with environment.begin() as transaction:
        return timed(lambda: sum(1 for _ in transaction.cursor().iternext(keys=False, values=True)), COUNT)


# ---- columns -------------------------------------------------------------------------------------------------------------------


def column_contenders(place: Place) -> list[Contender]:
    """The maximum of 64-bit numbers in batches of 1 MiB; the cost is that of a piece."""
    topic = cache(lambda: filled_with_numbers(place))
    path = cache(lambda: numbers_file(place))
    return [
        Contender("np.max over a mapped file", lambda: max_of_file(path())),
        Contender("poll_batches: to_numpy().max()", lambda: max_of_topic(place.log, topic(), True), (rate(0.7, "np.max over a mapped file"),)),
        Contender("the same, check_crcs=False", lambda: max_of_topic(place.log, topic(), False)),
    ]


def numbers() -> np.ndarray[Any, np.dtype[np.uint64]]:
    """One piece."""
    return np.random.default_rng(1).integers(0, 2**63, PIECE // 8, dtype=np.uint64)


def filled_with_numbers(place: Place) -> str:
    """A topic of `PIECES` batches."""
    topic, piece = place.new_topic(max_message_bytes=PIECE + 4096), numbers()
    with place.log.producer() as producer:
        for _ in repeat(None, PIECES):
            producer.send_batch(topic, piece)
    return topic


def numbers_file(place: Place) -> str:
    """A file of the same bytes."""
    path, piece = place.path("numbers"), numbers().tobytes()
    with open(path, "wb") as file:
        for _ in repeat(None, PIECES):
            file.write(piece)
    return path


def max_of_file(path: str) -> float:
    """The yardstick: mapped afresh, piece by piece."""
    return timed(lambda: max(int(piece.max()) for piece in np.memmap(path, np.uint64, "r").reshape(PIECES, -1)), PIECES)


def max_of_topic(log: streamlog.Cluster, topic: str, check: bool) -> float:
    """The same by `poll_batches`."""
    with log.consumer(topic, auto_offset_reset="earliest", check_crcs=check) as consumer:
        largest, left, start = 0, PIECE // 8 * PIECES, time.perf_counter()
        while left:
            batches = consumer.poll_batches(1000)
            assert batches
            for batch in batches:
                largest = max(largest, int(batch.values.to_numpy(np.uint64).max()))
                left -= batch.count
        return (time.perf_counter() - start) / PIECES


GROUP = Group("poll", contenders)
COLUMNS = Group("columns", column_contenders)
