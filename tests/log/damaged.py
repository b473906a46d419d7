"""Logs that rot, and what can be read of them."""

import shutil
import subprocess
import sys
from pathlib import Path

import streamlog

HEADER, BATCH = 64, 96  # bytes of a segment's header, and of a batch of one short value


def filled(location: Path, count: int = 40, *, durability: str = "fsync", **config: object) -> Path:
    """A topic with so many records, each a batch; returns the first segment's file."""
    with streamlog.open(location) as log:
        log.create_topic("t", **config)
        with log.producer(linger_ms=0, durability=durability) as producer:
            for number in range(count):
                producer.send("t", b"%06d" % number).result()
    return location / "broker-0/t-0/00000000000000000000.log"


def flip(path: Path, position: int) -> None:
    """Let a byte rot."""
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0xFF]))


def reboot(location: Path) -> None:
    """What is in `run/` is of another boot."""
    shutil.rmtree(location / "run")


def batch_at(path: Path, offset: int) -> tuple[int, int]:
    """Position and length of the batch that begins at an offset of a first segment."""
    data, position = path.read_bytes(), HEADER
    while int.from_bytes(data[position + 16 : position + 24], "little") != offset:
        position += int.from_bytes(data[position + 28 : position + 32], "little")
    return position, int.from_bytes(data[position + 28 : position + 32], "little")


def read(log: streamlog.Cluster) -> tuple[list[int], list[tuple[int, int]]]:
    """Offsets that can be read, and from where to where not."""
    records, gaps = read_around(log)
    return [record.offset for record in records], gaps


def read_around(log: streamlog.Cluster, **config: str) -> tuple[list[streamlog.Record], list[tuple[int, int]]]:
    """Records that can be read, and from where to where not."""
    found: list[streamlog.Record] = []
    gaps: list[tuple[int, int]] = []
    with log.consumer("t", auto_offset_reset="earliest", **config) as consumer:
        while True:
            try:
                records = consumer.poll()
            except streamlog.CorruptRecordError as error:
                gaps.append((consumer.position(("t", 0)), error.next_offset))
                consumer.seek(("t", 0), error.next_offset)
                continue
            if not records:
                return found, gaps
            found += records


def committed(log: streamlog.Cluster) -> list[bytes]:
    """Values of the records that a reader of committed ones is shown, around damage."""
    return [record.value for record in read_around(log, isolation_level="read_committed")[0]]


def streamlog_command(location: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line."""
    command = [sys.executable, "-m", "streamlog", "--location", str(location), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)
