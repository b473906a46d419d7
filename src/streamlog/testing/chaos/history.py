"""Histories: what a process did and was told, one line for each event.

Each line is a JSON object with `event` (what happened), `at` (seconds of the monotonic clock, which all processes of a machine share)
and the event's own fields.  A line is written by one write(2), so it survives a SIGKILL that comes after it.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

Event = dict[str, Any]


class History(NamedTuple):
    """The events of one process.  `worker` is the same in each of its lives, `kind` says what it does."""

    worker: str
    kind: str
    life: int
    events: list[Event]

    @property
    def name(self) -> str:
        """Worker and life, for messages."""
        return f"{self.worker}.{self.life}"


class HistoryWriter:
    """Writes a history.  Threads may share it: an event is one append to the file."""

    def __init__(self, path: Path | str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def note(self, event: str, **fields: Any) -> None:
        """Write an event down."""
        line = json.dumps({"event": event, "at": time.monotonic(), **fields}, separators=(",", ":")) + "\n"
        os.write(self._fd, line.encode())

    @contextmanager
    def call(self, name: str, bound: float) -> Iterator[None]:
        """Write down that a call begins, which has `bound` seconds, and how it ends."""
        self.note("call", call=name, bound=bound)
        error = ""
        try:
            yield
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            self.note("return", call=name, error=error)


def read_history(path: Path) -> History:
    """Read one file, named `<worker>.<life>.jsonl`.  A last line without its end was being written when the process was killed."""
    worker, life, _ = path.name.split(".")
    lines = path.read_bytes().splitlines(keepends=True)
    events = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return History(worker, worker.rpartition("-")[0], int(life), events)


def read_histories(directory: Path) -> list[History]:
    """Read all histories of a run, in the order of worker and life."""
    found = [read_history(path) for path in directory.glob("*.jsonl")]
    return sorted(found, key=lambda history: (history.worker, history.life))


def payload(record_id: str) -> str:
    """The value of the record with this id.  It follows from the id, so that every byte of it can be checked."""
    mark = zlib.crc32(record_id.encode())
    return f"{record_id}|{f'{mark:08x}' * (mark % 17)}"


def id_of(value: str) -> str:
    """The id in a record's value."""
    return value.partition("|")[0]


def ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Rising numbers as ranges [first, last]."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return found
