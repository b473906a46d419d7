"""From a cold process to the first record written and read."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from functools import cache

from harness import Contender, Group, Place, cost, timed

RUNS = 5

STREAMLOG = """
import streamlog
with streamlog.open({path!r}, create=False) as log:
    with log.producer() as producer:
        producer.send("clicks", bytes(100))
        producer.flush()
    with log.consumer(auto_offset_reset="earliest") as consumer:
        consumer.assign([("clicks", 0)])
        assert consumer.poll(1000)
"""

SQLITE = """
import sqlite3
log = sqlite3.connect({path!r})
log.execute("insert into log (value) values (?)", (bytes(100),))
log.commit()
assert log.execute("select value from log where number = 1").fetchone()
"""


def contenders(place: Place) -> list[Contender]:
    """Against an interpreter that does nothing."""
    topic, table = cache(lambda: made_cluster(place)), cache(lambda: made_table(place))
    return [
        Contender("python -c pass", lambda: cold(place, "pass")),
        Contender("streamlog: open, send, poll", lambda: cold(place, STREAMLOG.format(path=topic())), (cost(3.2, "python -c pass"),)),
        Contender("import streamlog", lambda: cold(place, "import streamlog"), (cost(None, "python -c pass"),)),
        Contender("SQLite: open, insert, select", lambda: cold(place, SQLITE.format(path=table())), (cost(None, "python -c pass"),)),
    ]


def made_cluster(place: Place) -> str:
    """A cluster with a topic."""
    place.log.create_topic("clicks")
    return place.log.location


def made_table(place: Place) -> str:
    """A database with a table."""
    path = place.path("log.sqlite")
    connection = sqlite3.connect(path)
    connection.execute("pragma journal_mode = wal")
    connection.execute("create table log (number integer primary key, value blob)")
    connection.close()
    return path


def cold(place: Place, code: str) -> float:
    """Seconds of a process; that modules are compiled is made sure of first."""
    command = [sys.executable, "-c", code]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = place.path("compiled")

    def loop() -> None:
        for _ in range(RUNS):
            subprocess.run(command, check=True, env=environment)

    subprocess.run(command, check=True, env=environment)
    return timed(loop, RUNS)


GROUP = Group("start", contenders, core=None)
