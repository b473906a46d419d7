"""`streamlog topics`: list, create, describe and delete topics."""

from __future__ import annotations

import argparse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from streamlog.cli.common import Commands

from streamlog.cli.common import count, open_cluster, pair, print_table
from streamlog.config import TopicConfig
from streamlog.errors import UnknownTopicOrPartitionError
from streamlog.types import PartitionDescription, TopicDescription

_COLUMNS = ("partition", "leader", "epoch", "beginning", "stable", "end", "segments", "bytes")


def add_commands(commands: Commands) -> None:
    """Add `topics` and what it can do."""
    actions = commands.add_parser("topics", help="list, create, describe, delete").add_subparsers(metavar="ACTION", required=True)
    parser = actions.add_parser("list", help="names of the topics")
    parser.add_argument("--internal", action="store_true", help="streamlog's own too")
    parser.set_defaults(run=_list)
    parser = actions.add_parser("create", help="create a topic, and the cluster where there is none")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--partitions", type=count, default=1, metavar="N")
    parser.add_argument("--config", type=pair, action="append", default=[], metavar="NAME=VALUE", help="a topic option; may be repeated")
    parser.add_argument("--if-not-exists", action="store_true", help="no error where there is one")
    parser.set_defaults(run=_create)
    parser = actions.add_parser("describe", help="offsets, sizes and configuration")
    parser.add_argument("names", nargs="*", metavar="NAME", help="all where none is given")
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
    with open_cluster(args, create=True) as cluster:
        topic = cluster.create_topic(args.name, partitions=args.partitions, exist_ok=args.if_not_exists, **overrides)
        print(f"{topic.name}: {len(topic.partitions)} partitions, id {topic.id}")
    return 0


def _describe(args: argparse.Namespace) -> int:
    with open_cluster(args) as cluster:
        for name in args.names or cluster.topics():
            _print_topic(cluster.topic(name).describe())
    return 0


def _print_topic(topic: TopicDescription) -> None:
    fields = TopicConfig.fields
    changed = [f"{name}={value}" for name, value in topic.config.items() if value != fields[name].default]
    print(f"{topic.name}: {len(topic.partitions)} partitions, id {topic.id}, config {' '.join(changed) or 'default'}")
    print_table([_COLUMNS, *(_row(partition) for partition in topic.partitions)])


def _row(partition: PartitionDescription) -> tuple[str, ...]:
    number, leader, epoch, _, _, beginning, end, segments, size, stable = partition
    return tuple(map(str, (number, leader, epoch, beginning, stable, end, segments, size)))


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
