"""`streamlog produce`: each line of standard input becomes a record."""

from __future__ import annotations

import argparse
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from streamlog.cli.common import Commands

from streamlog.cli.common import count, counted, open_cluster, pair
from streamlog.errors import SerializationError

_CHUNK = 1 << 20  # bytes read at a time


def add_commands(commands: Commands) -> None:
    """Add `produce`."""
    parser = commands.add_parser("produce", help="a record for each line of standard input")
    parser.add_argument("topic", metavar="TOPIC")
    parser.add_argument("--key-separator", type=os.fsencode, metavar="S", help="lines are KEY S VALUE, split at the first S; otherwise all value")
    parser.add_argument("--header", type=pair, action="append", default=[], metavar="NAME=VALUE", help="of every record; may be repeated")
    parser.add_argument("--partition", type=count, metavar="N", help="instead of the key's, or one that changes now and then")
    parser.add_argument("--config", type=pair, action="append", default=[], metavar="NAME=VALUE", help="a producer option; may be repeated")
    parser.add_argument("--sync", action="store_true", help="records count as written when they are on the disk")
    parser.set_defaults(run=_produce)


def _produce(args: argparse.Namespace) -> int:
    headers = [(name, os.fsencode(value)) for name, value in args.header]
    written = 0
    config = dict(args.config) | ({"durability": "fsync"} if args.sync else {})
    with open_cluster(args) as cluster, cluster.producer(config) as producer:
        producer.partitions_for(args.topic)  # a topic that is not there is an error before a line is read
        try:
            for lines in read_lines(sys.stdin.buffer):
                keys = None
                values = lines
                if args.key_separator:
                    keys, values = split_keys(lines, args.key_separator, written)
                rows = [headers] * len(lines) if headers else None
                for delivery in producer.send_batch(args.topic, values, keys=keys, headers=rows, partition=args.partition):
                    written += delivery.result().count
        finally:
            print(f"{counted(written, 'record')} written", file=sys.stderr)
    return 0


def read_lines(stream: BinaryIO) -> Iterator[list[bytes]]:
    """Lists of lines, without their ends, as soon as there are any; a last line needs no end."""
    pieces: list[bytes] = []
    while chunk := stream.read1(_CHUNK):  # type: ignore[attr-defined]
        whole, newline, rest = chunk.rpartition(b"\n")
        if newline:
            yield b"".join([*pieces, whole]).split(b"\n")
            pieces = []
        pieces.append(rest)
    if last := b"".join(pieces):
        yield [last]


def split_keys(lines: list[bytes], separator: bytes, before: int) -> tuple[list[bytes], list[bytes]]:
    """Keys and values; `before` counts the lines that came earlier, for the error of a line without separator."""
    parts = [line.partition(separator) for line in lines]
    for number, (_, found, _) in enumerate(parts, start=before + 1):
        if not found:
            raise SerializationError(f"line {number} has no key: the separator {separator!r} is not in it")
    return [key for key, _, _ in parts], [value for _, _, value in parts]
