"""The outbox: what a database transaction did becomes records in the log, each exactly once and in order.

An application changes its tables and adds a row to the table `outbox` in one SQLite transaction.  A relay sends those rows to the log and
notes, in the transaction that sends them, which row comes next; so it need not tell the database, and after a crash it goes on where the
log says.  The note is a committed offset: that of a group `outbox-relay`, which nobody is a member of (so anybody may commit for it), for a
partition that stands for the outbox; its value is the number of the next row.  The relay's transactional id makes sure that there is one: a
second one fences the first.  Here the relay is killed at random while the application goes on.
"""

import random
import shutil
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from multiprocessing import get_context

import streamlog
from streamlog import GroupMetadata, TopicPartition

ACCOUNTS = 2_000
NOTE, RELAY = TopicPartition("accounts", 0), GroupMetadata("outbox-relay", -1, "", None)


def open_account(database: sqlite3.Connection, number: int) -> None:
    """The application: an account, and word of it, or neither."""
    with database:
        database.execute("INSERT INTO accounts VALUES (?, ?)", (number, f"owner {number}"))
        database.execute("INSERT INTO outbox (key, value) VALUES (?, ?)", (str(number), f"opened {number}"))


def relay(location: str, path: str) -> None:
    """Outbox rows into the log, until killed."""
    with (
        streamlog.open(location) as log,
        closing(sqlite3.connect(path, timeout=30)) as database,
        log.producer(transactional_id="outbox-relay") as producer,
    ):
        producer.init_transactions()  # before the look: nobody else notes anything from now on
        following = next_row(log)
        while True:
            rows = database.execute("SELECT id, key, value FROM outbox WHERE id >= ? ORDER BY id LIMIT 100", (following,)).fetchall()
            if not rows:
                time.sleep(0.01)
                continue
            with producer.transaction():
                for _, key, value in rows:
                    producer.send("accounts", value, key=key)
                following = rows[-1][0] + 1
                producer.send_offsets({NOTE: following}, RELAY)


def next_row(log: streamlog.Cluster) -> int:
    """Where the log says that the relay is."""
    try:
        return log.group_offsets(RELAY.group_id)[NOTE].offset
    except (streamlog.GroupIdNotFoundError, KeyError):
        return 0


def main() -> None:
    """Open accounts while a relay runs and dies, then compare."""
    rng, place = random.Random(), tempfile.mkdtemp(prefix="outbox-")
    location, path = f"{place}/log", f"{place}/bank.db"
    try:
        with closing(sqlite3.connect(path, timeout=30)) as database, streamlog.open(location) as log:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("CREATE TABLE accounts (id INTEGER PRIMARY KEY, owner TEXT)")
            database.execute("CREATE TABLE outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT, value TEXT)")
            database.commit()
            log.create_topic("accounts", 3)
            context, deaths, opened = get_context("spawn"), 0, 0
            while opened < ACCOUNTS or next_row(log) <= ACCOUNTS:
                process = context.Process(target=relay, args=(location, path), daemon=True)
                process.start()
                until = time.monotonic() + rng.uniform(0.15, 0.6)
                while time.monotonic() < until and (opened < ACCOUNTS or next_row(log) <= ACCOUNTS):
                    if opened < ACCOUNTS:
                        open_account(database, opened)
                        opened += 1
                    else:
                        time.sleep(0.01)
                process.kill()
                process.join()
                deaths += 1
            with log.consumer("accounts", auto_offset_reset="earliest", isolation_level="read_committed") as consumer:
                found: dict[int, list[int]] = {}
                while any(consumer.lag().values()):
                    for record in consumer.poll(timeout_ms=100):
                        found.setdefault(record.partition, []).append(int(record.key))
        numbers = [number for partition in found.values() for number in partition]
        if sorted(numbers) != list(range(ACCOUNTS)) or any(partition != sorted(partition) for partition in found.values()):
            sys.exit(f"{len(numbers)} records, {len(set(numbers))} of them different, for {ACCOUNTS} accounts; or not in order")
        print(f"{ACCOUNTS} accounts, {len(numbers)} records, each once and in order, after {deaths} deaths of the relay")
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
