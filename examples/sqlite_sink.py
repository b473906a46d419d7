"""Exactly once into a database of one's own: rows and offsets in the same SQLite transaction.

Consumers of a group write orders into a table.  How far they have read is kept in another table of the same database, changed in the same
transaction, and not in the log: when a partition is assigned to one, it goes to the place that the database says.  So a crash between two
transactions repeats nothing and loses nothing.  And the place is moved only from where it is expected to be: a consumer that was stopped
for so long that another has its partitions finds it elsewhere, and writes nothing.  Here a sink is killed at random, again and again, until
all orders are in.
"""

import random
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from multiprocessing import get_context

import streamlog

ORDERS, PARTITIONS = 5_000, 3


class GoWhereTheDatabaseSays:
    """A listener: the consumer's places are the database's."""

    def __init__(self, consumer: streamlog.Consumer, database: sqlite3.Connection) -> None:
        self._consumer, self._database = consumer, database
        self.places: dict[tuple[str, int], int] = {}

    def on_partitions_assigned(self, partitions: list[streamlog.TopicPartition]) -> None:
        """Called inside `poll`, before anything of them is read."""
        for tp in partitions:
            with self._database:
                self._database.execute("INSERT OR IGNORE INTO offsets VALUES (?, ?, 0)", tp)
            (self.places[tp],) = self._database.execute("SELECT next FROM offsets WHERE topic = ? AND partition = ?", tp).fetchone()
            self._consumer.seek(tp, self.places[tp])

    def move(self, tp: tuple[str, int], offset: int) -> None:
        """Inside the database's transaction.  Raises LookupError where another consumer has moved the place since."""
        there = (offset, *tp, self.places[tp])
        if not self._database.execute("UPDATE offsets SET next = ? WHERE topic = ? AND partition = ? AND next = ?", there).rowcount:
            raise LookupError(f"{tp} is another's by now")


def sink(location: str, path: str) -> None:
    """Orders from the log into the database; ends when there are no more."""
    with streamlog.open(location) as log, closing(sqlite3.connect(path)) as database:
        options = {"enable_auto_commit": False, "isolation_level": "read_committed", "value_deserializer": "json"}
        with log.consumer(group_id="sink", max_poll_records=50, **options) as consumer:  # type: ignore[arg-type]
            places = GoWhereTheDatabaseSays(consumer, database)
            consumer.subscribe(["orders"], listener=places)
            while records := consumer.poll(timeout_ms=500):
                ends = {(record.topic, record.partition): record.offset + 1 for record in records}  # the last one of a partition stays
                try:
                    with database:  # one transaction: all of it, or nothing
                        for record in records:
                            database.execute("INSERT INTO orders VALUES (?, ?)", (record.value["id"], record.value["amount"]))
                        for tp, offset in ends.items():
                            places.move(tp, offset)
                    places.places.update(ends)
                except LookupError:
                    pass  # the next poll tells this consumer that it was expired, and gives it partitions anew


def main() -> None:
    """Write orders, let the sink run and die, count."""
    rng, place = random.Random(), tempfile.mkdtemp(prefix="sqlite-sink-")
    location, path = f"{place}/log", f"{place}/orders.db"
    try:
        with closing(sqlite3.connect(path)) as database, streamlog.open(location) as log:
            database.execute("CREATE TABLE orders (id INTEGER, amount INTEGER)")  # no unique key: a row that came twice would show
            database.execute("CREATE TABLE offsets (topic TEXT, partition INTEGER, next INTEGER, PRIMARY KEY (topic, partition))")
            database.commit()
            log.create_topic("orders", PARTITIONS)
            with log.producer(value_serializer="json") as producer:
                for number in range(ORDERS):
                    producer.send("orders", {"id": number, "amount": number % 100}, key=str(number))
            deaths = 0
            while True:
                process = get_context("spawn").Process(target=sink, args=(location, path))
                process.start()
                process.join(rng.uniform(0.1, 0.6) if deaths < 5 else None)
                if process.exitcode is not None:
                    break
                process.kill()
                process.join()
                deaths += 1
            rows, distinct, total = database.execute("SELECT count(*), count(DISTINCT id), sum(amount) FROM orders").fetchone()
        if (rows, distinct, total) != (ORDERS, ORDERS, sum(number % 100 for number in range(ORDERS))):
            sys.exit(f"{rows} rows of {distinct} orders, {ORDERS} were written")
        print(f"{rows} orders in the database, each once, after {deaths} deaths of the sink")
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
