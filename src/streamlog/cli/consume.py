"""`streamlog consume`: records to standard output."""

from __future__ import annotations

import argparse
import sys
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from streamlog.cli.common import Commands

from streamlog.cli.common import count, open_cluster
from streamlog.cli.formats import formatter
from streamlog.cluster import Cluster
from streamlog.consumer import Consumer
from streamlog.errors import ConfigurationError
from streamlog.types import TopicPartition

_MOST = 10_000  # records of one poll
_IDLE_MS = 1_000  # of one wait


def add_commands(commands: Commands) -> None:
    """Add `consume`."""
    parser = commands.add_parser("consume", help="records to standard output")
    parser.add_argument("topic", metavar="TOPIC")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--from-beginning", action="store_true", help="otherwise only what comes from now on")
    start.add_argument("--offset", type=count, metavar="N", help="begin here; needs --partition")
    parser.add_argument("--partition", type=count, metavar="N", help="only this one")
    parser.add_argument(
        "--isolation-level", choices=("read_uncommitted", "read_committed"), default="read_uncommitted",
        help="read_committed: nothing of transactions that were aborted or are open",
    )  # fmt: skip
    parser.add_argument("--max", type=count, metavar="N", help="end after so many records")
    parser.add_argument("--timeout-ms", type=count, metavar="N", help="end when idle for so long; otherwise never")
    parser.add_argument("--format", type=formatter, default="value", metavar="FORMAT", help=_FORMAT_HELP)
    parser.set_defaults(run=_consume)


_FORMAT_HELP = (
    "value (the default), key-value (a tab between), json, or a text with %%t topic, %%p partition, %%o offset, %%k key, %%s value, "
    "%%T timestamp (ms), %%h headers, \\n and \\t"
)


def _consume(args: argparse.Namespace) -> int:
    if args.offset is not None and args.partition is None:
        raise ConfigurationError("--offset needs --partition: each partition counts its own offsets")
    with open_cluster(args) as cluster, _consumer(cluster, args) as consumer:
        try:
            _copy(consumer, args)
        finally:
            sys.stdout.buffer.flush()
    return 0


def _consumer(cluster: Cluster, args: argparse.Namespace) -> Consumer:
    reset = "none" if args.offset is not None else "earliest" if args.from_beginning else "latest"
    if args.partition is None:
        return cluster.consumer(args.topic, auto_offset_reset=reset, isolation_level=args.isolation_level)
    consumer = cluster.consumer(auto_offset_reset=reset, isolation_level=args.isolation_level)
    tp = TopicPartition(args.topic, args.partition)
    consumer.assign([tp])
    if args.offset is not None:
        consumer.seek(tp, args.offset)
    return consumer


def _copy(consumer: Consumer, args: argparse.Namespace) -> None:
    """Write records as they come; what is written is flushed before each wait."""
    out, show = sys.stdout.buffer, args.format
    left = float("inf") if args.max is None else args.max
    patience = float("inf") if args.timeout_ms is None else args.timeout_ms / 1000
    end = monotonic() + patience
    while left > 0:
        most = int(min(left, _MOST))
        records = consumer.poll(max_records=most)
        if not records:
            out.flush()
            records = consumer.poll(int(min(_IDLE_MS, max(0.0, end - monotonic()) * 1000)), max_records=most)
        if records:
            out.write(b"".join(map(show, records)))
            left -= len(records)
            end = monotonic() + patience
        elif monotonic() >= end:
            return
