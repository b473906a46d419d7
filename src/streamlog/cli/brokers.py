"""`streamlog brokers`: list, describe, stop, start, add, retire, repair brokers, move partitions, elect leaders."""

from __future__ import annotations

import argparse
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from streamlog.cli.common import Commands
    from streamlog.cluster import Cluster

from streamlog.cli.common import count, counted, open_cluster, print_table
from streamlog.cli.topics import state_of
from streamlog.errors import ConfigurationError

_COLUMNS = ("broker", "state", "leaders", "replicas", "in sync", "path", "reason")


def add_commands(commands: Commands) -> None:
    """Add `brokers` and what it can do."""
    actions = commands.add_parser("brokers", help="list, describe, stop, start, add, retire, repair; move partitions").add_subparsers(
        metavar="ACTION", required=True
    )
    parser = actions.add_parser("list", help="the brokers and their states")
    parser.set_defaults(run=_list)
    parser = actions.add_parser("describe", help="a broker and the partitions that it has")
    parser.add_argument("broker", type=count, metavar="ID")
    parser.set_defaults(run=_describe)
    for name, what, function in (
        ("stop", "take a broker out: its leaders move first", lambda cluster, broker: cluster.stop_broker(broker)),
        ("start", "bring a broker back, and let it catch up", lambda cluster, broker: cluster.start_broker(broker)),
        ("repair", "take a broker whose directory was lost as an empty one", lambda cluster, broker: cluster.repair_broker(broker)),
        ("retire", "move everything off a broker, then forget it", _retire),
    ):
        parser = actions.add_parser(name, help=what)
        parser.add_argument("broker", type=count, metavar="ID")
        parser.set_defaults(run=_acting(function))
    parser = actions.add_parser("add", help="add a broker, empty")
    parser.add_argument("path", nargs="?", metavar="DIR", help="its directory, best on a disk of its own; below the cluster where none is given")
    parser.set_defaults(run=_add)
    parser = actions.add_parser("reassign", help="move a partition to other brokers")
    parser.add_argument("moves", nargs="+", metavar="TOPIC-PARTITION=ID,ID,…", help="the first is to lead")
    parser.set_defaults(run=_reassign)
    parser = actions.add_parser("reassignments", help="partitions that are on their way; the same `reassign` goes on with one")
    parser.set_defaults(run=_reassignments)
    parser = actions.add_parser("elect", help="give partitions their preferred leaders")
    parser.add_argument("partitions", nargs="*", metavar="TOPIC-PARTITION", help="all where none is given")
    parser.add_argument("--unclean", action="store_true", help="partitions without a leader get any replica that lives: loses records")
    parser.set_defaults(run=_elect)
    parser = actions.add_parser("scrub", help="read all replicas, and copy anew what is damaged")
    parser.set_defaults(run=_scrub)


def _list(args: argparse.Namespace) -> int:
    with open_cluster(args) as cluster:
        _print_brokers(cluster)
    return 0


def _print_brokers(cluster: Cluster, only: int | None = None) -> None:
    rows = [
        tuple(map(str, (each.broker, each.state, each.leaders, each.replicas, each.in_sync, each.path, each.reason)))
        for each in cluster.brokers() if only in (None, each.broker)
    ]  # fmt: skip
    if not rows:
        raise ConfigurationError(f"there is no broker {only}: there are {[each.broker for each in cluster.brokers()]}")
    print_table([_COLUMNS, *rows])


def _describe(args: argparse.Namespace) -> int:
    with open_cluster(args) as cluster:
        _print_brokers(cluster, args.broker)
        rows = [("partition", "leads", "in sync", "state")]
        for name in cluster.topics(internal=True):
            if name == "__cluster_metadata":
                continue
            for partition in cluster.topic(name).describe().partitions:
                if args.broker in partition.replicas:
                    leads, in_sync = args.broker == partition.leader, args.broker in partition.isr
                    rows.append((f"{name}-{partition.partition}", _yes(leads), _yes(in_sync), state_of(partition)))
        print_table(rows)
    return 0


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _acting(function: Callable[[Cluster, int], object]) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        with open_cluster(args) as cluster:
            function(cluster, args.broker)
            _print_brokers(cluster)
        return 0

    return run


def _retire(cluster: Cluster, broker: int) -> None:
    cluster.retire_broker(broker, on_progress=_progress)


def _progress(done: int, total: int) -> None:
    print(f"{done} of {total} records copied", file=sys.stderr)


def _add(args: argparse.Namespace) -> int:
    with open_cluster(args) as cluster:
        print(f"broker {cluster.add_broker(args.path)} was added")
        _print_brokers(cluster)
    return 0


def _reassign(args: argparse.Namespace) -> int:
    moves = dict(map(_move, args.moves))
    with open_cluster(args) as cluster:
        cluster.reassign_partitions(moves, on_progress=_progress)
    return 0


def _move(text: str) -> tuple[tuple[str, int], list[int]]:
    partition, _, brokers = text.partition("=")
    if not all(broker.isdecimal() for broker in brokers.split(",")):
        raise ConfigurationError(f"{text!r}: TOPIC-PARTITION=ID,ID,… is wanted, clicks-0=2,0,1 for one")
    return _partition(partition), [int(broker) for broker in brokers.split(",")]


def _partition(text: str) -> tuple[str, int]:
    topic, _, number = text.rpartition("-")
    if not topic or not number.isdecimal():
        raise ConfigurationError(f"{text!r}: TOPIC-PARTITION is wanted, clicks-0 for one")
    return topic, int(number)


def _reassignments(args: argparse.Namespace) -> int:
    with open_cluster(args) as cluster:
        rows = [(f"{each.topic}-{each.partition}", _ids(each.replicas), _ids(each.target), str(each.missing)) for each in cluster.reassignments()]
        print_table([("partition", "replicas", "target", "missing records"), *rows])
    return 0


def _ids(brokers: tuple[int, ...]) -> str:
    return ",".join(map(str, brokers))


def _elect(args: argparse.Namespace) -> int:
    with open_cluster(args) as cluster:
        led = cluster.elect_leaders([_partition(text) for text in args.partitions] or None, unclean=args.unclean)
        print_table([("partition", "leader"), *((f"{tp.topic}-{tp.partition}", "none" if leader < 0 else str(leader)) for tp, leader in led.items())])
    return 0


def _scrub(args: argparse.Namespace) -> int:
    with open_cluster(args) as cluster:
        found = cluster.repair()
        for name, records in found.items():
            print(f"{name}: damaged, {counted(records, 'record')} copied anew")
        print(counted(len(found), "damaged replica"))
    return 0
