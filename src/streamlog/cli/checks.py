"""`streamlog dump` and `streamlog verify`: what files hold, and whether they hold what they must."""

from __future__ import annotations

import argparse
import sys
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from streamlog.cli.common import Commands

import streamlog
from streamlog._format import names
from streamlog.cli.common import counted, location

_EVERY = 1.0  # seconds between lines of progress


def add_commands(commands: Commands) -> None:
    """Add `dump`, `verify` and `repair`."""
    parser = commands.add_parser("dump", help="show what a file of a cluster holds, damaged or not")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--records", action="store_true", help="of a segment: each record too")
    parser.set_defaults(run=_dump)
    parser = commands.add_parser("verify", help="check everything that must hold in a cluster's files")
    parser.set_defaults(run=_verify)
    parser = commands.add_parser("repair", help="show which offsets of a partition cannot be read; with --keep, go on without them")
    parser.add_argument("partition", metavar="TOPIC:PARTITION", type=_partition)
    parser.add_argument(
        "--keep", choices=("before", "behind"),
        help="before: the log ends before the damage, and what follows is removed; behind: it begins after the damage, and what precedes is "
        "removed.  The segments are copied first, into a directory whose name ends in -damaged.  Without --keep nothing is changed",
    )  # fmt: skip
    parser.set_defaults(run=_repair)


def _dump(args: argparse.Namespace) -> int:
    from streamlog.dump import dump

    return 0 if dump(args.file, print, records=args.records) else 1


def _verify(args: argparse.Namespace) -> int:
    show, stop = _progress()
    try:
        findings = streamlog.check(location(args), progress=show)
    finally:
        stop()
    for finding in findings:
        print(f"{finding.invariant} {finding.path}: {finding.message}")
    print(counted(len(findings), "finding") if findings else "everything holds", file=sys.stderr)
    return 1 if findings else 0


def _partition(text: str) -> tuple[str, int]:
    topic, colon, number = text.rpartition(":")
    if not colon or not topic or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: must be TOPIC:PARTITION")
    return topic, int(number)


def _repair(args: argparse.Namespace) -> int:
    topic, partition = args.partition
    with _open_to_repair(location(args), topic) as cluster:
        found = cluster.damage(topic, partition)
        for each in found:
            print(f"offsets {each.first_offset} to {each.next_offset - 1} cannot be read: {each.reason}")
        if not found:
            if topic == names.METADATA_TOPIC and args.keep:  # an earlier repair may have been killed before it compared them with the disk
                cluster.repair_partition(topic, partition, keep=args.keep)
            print("everything can be read", file=sys.stderr)
            return 0
        if len(cluster.brokers()) > 1:
            print("nothing was changed; `streamlog brokers scrub` copies damaged records from a replica that still has them", file=sys.stderr)
            return 1
        if args.keep is None:
            print(_choice(topic, found[0].first_offset, found[-1].next_offset), file=sys.stderr)
            return 1
        aside = cluster.repair_partition(topic, partition, keep=args.keep)
        where = f"ends at offset {found[0].first_offset}" if args.keep == "before" else f"begins at offset {found[-1].next_offset}"
        print(f"the log {where} now")
        print(f"the segments were copied to {aside}; nothing reads that directory, and it can be removed")
    return 0


def _choice(topic: str, first: int, after: int) -> str:
    """What an operator can do about damage from `first` to before `after`."""
    lines = [
        "nothing was changed; choose what is kept:",
        f"  --keep before: the log ends at offset {first}; the records from there on are removed",
        f"  --keep behind: the log begins at offset {after}; the records before it are removed",
    ]
    if topic in names.INTERNAL_TOPICS:
        lines.append("  (in an internal topic later records replace earlier ones: if there are records after the damage, --keep behind loses less)")
    return "\n".join(lines)


def _open_to_repair(where: str, topic: str) -> streamlog.Cluster:
    """The cluster; where its metadata are to be repaired they need not be readable."""
    from streamlog import cluster
    if topic != names.METADATA_TOPIC:
        return streamlog.open(where, create=False)
    return cluster.Cluster(cluster._Place(where), create=False, reads_metadata=False)


def _progress() -> tuple[Callable[[int, int], None] | None, Callable[[], None]]:
    """What shows progress on a terminal (a bar where `rich` is installed, else a line now and then), and what ends it."""
    if not sys.stderr.isatty():
        return None, lambda: None
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        return _Percentage().show, lambda: None
    bar = Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task("verify")
    bar.start()
    return lambda done, total: bar.update(task, completed=done, total=total), bar.stop


class _Percentage:
    """A line on stderr every second."""

    def __init__(self) -> None:
        self.next = monotonic() + _EVERY

    def show(self, done: int, total: int) -> None:
        """`done` of `total` bytes were read."""
        if monotonic() >= self.next:
            self.next = monotonic() + _EVERY
            print(f"{100 * done // max(total, 1)}% of {total} bytes", file=sys.stderr)
