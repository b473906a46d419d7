"""Kafka's checkpoint files: a version, a count, then a line for each entry (org.apache.kafka.server.common.CheckpointFile)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

VERSION = 0


def encode(lines: Iterable[tuple[object, ...]]) -> bytes:
    """The file of these entries."""
    rows = [" ".join(map(str, line)) for line in lines]
    return "\n".join([str(VERSION), str(len(rows)), *rows, ""]).encode()


def decode(data: bytes, width: int) -> list[list[str]]:
    """The entries, each of `width` words.  Raises ValueError where the file is not whole."""
    lines = data.decode("ascii").split("\n")
    if len(lines) < 3 or lines[-1] or lines[0] != str(VERSION) or lines[1] != str(len(lines) - 3):
        raise ValueError("not a whole checkpoint file")
    rows = [line.split(" ") for line in lines[2:-1]]
    if any(len(row) != width for row in rows):
        raise ValueError(f"a line has not {width} words")
    return rows
