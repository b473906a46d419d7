"""`streamlog topics`: list, create, describe and delete topics."""

from __future__ import annotations

import argparse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from streamlog.cli.common import Commands

import streamlog
from streamlog.cli.common import count, counted, location, open_cluster, pair, print_table
from streamlog.config import TopicConfig
from streamlog.errors import UnknownTopicOrPartitionError
from streamlog.types import PartitionDescription, TopicDescription

_COLUMNS = ("partition", "leader", "epoch", "beginning", "stable", "end", "segments", "bytes")
_REPLICA_COLUMNS = ("replicas", "isr", "state")


def add_commands(commands: Commands) -> None:
    """Add `topics` and what it can do."""
    actions = commands.add_parser("topics", help="list, create, describe, delete").add_subparsers(metavar="ACTION", required=True)
    parser = actions.add_parser("list", help="names of the topics")
    parser.add_argument("--internal", action="store_true", help="streamlog's own too")
    parser.set_defaults(run=_list)
    parser = actions.add_parser("create", help="create a topic, and the cluster where there is none")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--partitions", type=count, default=1, metavar="N")
    parser.add_argument("--brokers", type=count, metavar="N", help="of the cluster, where that is made too")
    parser.add_argument("--replication-factor", type=count, default=1, metavar="N", help="copies, each on another broker")
    parser.add_argument("--config", type=pair, action="append", default=[], metavar="NAME=VALUE", help="a topic option; may be repeated")
    parser.add_argument("--if-not-exists", action="store_true", help="no error where there is one")
    parser.set_defaults(run=_create)
    parser = actions.add_parser("describe", help="offsets, sizes and configuration")
    parser.add_argument("names", nargs="*", metavar="NAME", help="all where none is given")
    parser.add_argument("--under-replicated-partitions", action="store_true", help="only partitions that lack an in-sync replica")
    parser.add_argument("--unavailable-partitions", action="store_true", help="only partitions without a leader")
    parser.set_defaults(run=_describe)
    parser = actions.add_parser("delete", help="delete a topic and its records")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--if-exists", action="store_true", help="no error where there is none")
    parser.set_defaults(run=_delete)


def _list(args: argparse.Namespace) -> int:
    with open_cluster(args) as cluster:
        for name in cluster.topics(internal=args.internal):
            print(name)
    return 0


def _create(args: argparse.Namespace) -> int:
    overrides = dict(args.config)
    TopicConfig(overrides)  # refuses what is no option, before a name could pass for another argument of `create_topic`
    with streamlog.open(location(args), brokers=args.brokers) as cluster:
        topic = cluster.create_topic(
            args.name, partitions=args.partitions, replication_factor=args.replication_factor, exist_ok=args.if_not_exists, **overrides
        )
        print(f"{topic.name}: {counted(len(topic.partitions), 'partition')}, id {topic.id}")
    return 0


def _describe(args: argparse.Namespace) -> int:
    with open_cluster(args) as cluster:
        for name in args.names or cluster.topics():
            topic = cluster.topic(name).describe()
            if args.unavailable_partitions or args.under_replicated_partitions:
                wanted = ("offline",) if args.unavailable_partitions else ("offline", "under-replicated")
                topic = topic._replace(partitions=tuple(each for each in topic.partitions if state_of(each) in wanted))
            if topic.partitions:
                _print_topic(topic)
    return 0


def _print_topic(topic: TopicDescription) -> None:
    fields = TopicConfig.fields
    changed = [f"{name}={value}" for name, value in topic.config.items() if value != fields[name].default]
    print(f"{topic.name}: {counted(len(topic.partitions), 'partition')}, id {topic.id}, config {' '.join(changed) or 'default'}")
    if all(partition.replicas == (0,) and partition.leader == 0 for partition in topic.partitions):
        print_table([_COLUMNS, *(_row(partition) for partition in topic.partitions)])
    else:
        print_table([(*_COLUMNS, *_REPLICA_COLUMNS), *((*_row(partition), *_replicas(partition)) for partition in topic.partitions)])


def _row(partition: PartitionDescription) -> tuple[str, ...]:
    number, leader, epoch, _, _, beginning, end, segments, size, stable, _ = partition
    return tuple(map(str, (number, "none" if leader < 0 else leader, epoch, beginning, stable, end, segments, size)))


def _replicas(partition: PartitionDescription) -> tuple[str, ...]:
    return ",".join(map(str, partition.replicas)), ",".join(map(str, partition.isr)) or "none", state_of(partition)


def state_of(partition: PartitionDescription) -> str:
    """Whether a partition can be written, and has all its replicas: "offline", "under-replicated" or "ok"."""
    if partition.leader < 0:
        return "offline"
    return "under-replicated" if len(partition.isr) < len(partition.replicas) else "ok"


def _delete(args: argparse.Namespace) -> int:
    with open_cluster(args) as cluster:
        try:
            cluster.delete_topic(args.name)
        except UnknownTopicOrPartitionError:
            if not args.if_exists:
                raise
        else:
            print(f"{args.name}: deleted")
    return 0
