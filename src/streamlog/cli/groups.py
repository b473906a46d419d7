"""`streamlog groups`: list, describe, reset offsets, delete."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import datetime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from streamlog.cli.common import Commands
    from streamlog.types import GroupDescription

import streamlog
from streamlog.cli.common import count, open_cluster, print_table
from streamlog.config import parse_duration_ms
from streamlog.errors import ConfigurationError, GroupIdNotFoundError, InvalidConfigError, NonEmptyGroupError, StreamlogError
from streamlog.types import TopicPartition

_COLUMNS = ("topic", "partition", "committed", "end", "lag", "member", "client", "pid")
_DATETIME_HELP = "the first record at or after 2013-01-31T18:30:00 (local time, or with +00:00 at its end)"
_CLEAR = "\x1b[H\x1b[2J"


def add_commands(commands: Commands) -> None:
    """Add `groups` and what it can do."""
    actions = commands.add_parser("groups", help="list, describe, reset-offsets, delete").add_subparsers(metavar="ACTION", required=True)
    parser = actions.add_parser("list", help="ids and states of the groups")
    parser.set_defaults(run=_list)
    parser = actions.add_parser("describe", help="members, offsets and lag")
    parser.add_argument("ids", nargs="*", metavar="GROUP", help="all where none is given")
    parser.add_argument("--watch", type=_seconds, nargs="?", const=1.0, metavar="SECONDS", help="again every second (or so many) until Ctrl-C")
    parser.set_defaults(run=_describe)
    _add_reset(actions)
    parser = actions.add_parser("delete", help="delete groups without members, and their offsets")
    parser.add_argument("ids", nargs="+", metavar="GROUP")
    parser.set_defaults(run=_delete)


def _add_reset(actions: Commands) -> None:
    parser = actions.add_parser("reset-offsets", help="set the offsets of a group without members; only shown unless --execute")
    parser.add_argument("id", metavar="GROUP")
    parser.add_argument("--topic", action="append", default=[], metavar="NAME[:P,…]", help="a topic, or some of its partitions; may be repeated")
    parser.add_argument("--all-topics", action="store_true", help="every topic that the group has offsets of")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--to-earliest", action="store_true", help="the first record that can be read")
    where.add_argument("--to-latest", action="store_true", help="the end")
    where.add_argument("--to-offset", type=count, metavar="N")
    where.add_argument("--to-datetime", type=_datetime_ms, metavar="TIME", help=_DATETIME_HELP)
    where.add_argument("--shift-by", type=int, metavar="N", help="N records on, or back where it is negative")
    where.add_argument("--by-duration", type=_duration_ms, metavar="DURATION", help="the first record of the last PT1H30M, say")
    parser.add_argument("--execute", action="store_true", help="do it")
    parser.set_defaults(run=_reset)


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0.01 <= found < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r}: seconds from 0.01 are wanted (groups go before --watch)")
    return found


def _datetime_ms(text: str) -> int:
    try:
        found = datetime.fromisoformat(text)
        return max(0, int(found.timestamp() * 1000))
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(f"{text!r}: a time such as 2013-01-31T18:30:00 is wanted") from None


def _duration_ms(text: str) -> int:
    try:
        return parse_duration_ms(text)
    except InvalidConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _list(args: argparse.Namespace) -> int:
    with open_cluster(args) as cluster:
        for group in cluster.groups():
            print(f"{_shown(group.group_id)}  {group.state}")
    return 0


def _describe(args: argparse.Namespace) -> int:
    with open_cluster(args) as cluster:
        while True:
            found = [cluster.describe_group(group_id) for group_id in args.ids] if args.ids else list(_all(cluster))
            if args.watch and sys.stdout.isatty():
                print(_CLEAR, end="")
            for group in found:
                _print_group(cluster, group)
            if not args.watch:
                return 0
            sys.stdout.flush()
            time.sleep(args.watch)


def _all(cluster: streamlog.Cluster) -> Iterable[GroupDescription]:
    for group in cluster.groups():
        try:
            yield cluster.describe_group(group.group_id)
        except GroupIdNotFoundError:
            continue  # deleted meanwhile


def _shown(group_id: str) -> str:
    """A group's id, which may be any text, for a terminal."""
    return group_id if group_id.isprintable() else repr(group_id)


def _print_group(cluster: streamlog.Cluster, group: GroupDescription) -> None:
    print(f"{_shown(group.group_id)}: {group.state}, {len(group.members)} members, generation {group.generation}, assignor {group.assignor or '-'}")
    owners = {tp: member for member in group.members for tp in member.assignment}
    rows = []
    partitions = sorted({*owners, *group.offsets})
    ends = {topic: cluster.topic(topic).end_offsets() for topic in {tp.topic for tp in partitions}}
    for tp in partitions:
        owner, committed = owners.get(tp), group.offsets.get(tp)
        who = ("-", "-", "-") if owner is None else (owner.member_id, owner.client_id or "-", str(owner.pid))
        end = ends[tp.topic].get(tp.partition, 0)
        place = ("-", str(end), "-") if committed is None else (str(committed.offset), str(end), str(group.lag[tp]))
        rows.append((tp.topic, str(tp.partition), *place, *who))
    for member in group.members:
        if not member.assignment:
            rows.append(("-", "-", "-", "-", "-", member.member_id, member.client_id or "-", str(member.pid)))
    if rows:
        print_table([_COLUMNS, *rows])


def _delete(args: argparse.Namespace) -> int:
    code = 0
    with open_cluster(args) as cluster:
        for group_id in args.ids:
            try:
                cluster.delete_group(group_id)
                print(f"{group_id}: deleted")
            except StreamlogError as error:  # the others are deleted all the same
                print(f"streamlog: {error}", file=sys.stderr)
                code = 2
    return code


# ---- reset-offsets ---------------------------------------------------------------------------------------------------


def _reset(args: argparse.Namespace) -> int:
    with open_cluster(args) as cluster:
        known = {group.group_id for group in cluster.groups()}
        committed = {tp: found.offset for tp, found in cluster.group_offsets(args.id).items()} if args.id in known else {}
        partitions = list(_chosen(cluster, args, committed))
        if not partitions:
            raise ConfigurationError("which partitions? give --topic NAME, or --all-topics for those that the group has offsets of")
        place = _place(cluster, args, committed)
        new = {tp: place(tp) for tp in partitions}
        if args.id in known and (members := cluster.describe_group(args.id).members):
            raise NonEmptyGroupError(f"group {args.id!r} has {len(members)} members; its offsets can be set when they have left")
        if args.execute:
            cluster.alter_group_offsets(args.id, new)
        rows = [(tp.topic, str(tp.partition), str(committed.get(tp, "-")), str(offset)) for tp, offset in sorted(new.items())]
        print_table([("topic", "partition", "committed", "new"), *rows])
        if not args.execute:
            print("nothing was changed; --execute does it")
    return 0


def _chosen(cluster: streamlog.Cluster, args: argparse.Namespace, committed: Iterable[TopicPartition]) -> Iterable[TopicPartition]:
    if args.all_topics:
        yield from (tp for tp in committed)
    for text in args.topic:
        name, _, numbers = text.partition(":")
        partitions = cluster.topic(name).partitions
        try:
            wanted = [int(number) for number in numbers.split(",")] if numbers else partitions
        except ValueError:
            raise ConfigurationError(f"--topic {text!r}: NAME or NAME:0,1,2 is wanted") from None
        if missing := [number for number in wanted if number not in partitions]:
            raise ConfigurationError(f"--topic {text!r}: topic {name!r} has partitions 0 to {partitions[-1]}, not {missing[0]}")
        yield from (TopicPartition(name, number) for number in wanted)


def _place(cluster: streamlog.Cluster, args: argparse.Namespace, committed: dict[TopicPartition, int]) -> Callable[[TopicPartition], int]:
    """Where each partition's offset goes; what lies outside of its log is drawn to the nearest end."""
    wanted: int | None = args.to_offset
    shift: int | None = args.shift_by

    topics: dict[str, tuple[streamlog.Topic, dict[int, int], dict[int, int]]] = {}

    def place(tp: TopicPartition) -> int:
        if tp.topic not in topics:
            found_topic = cluster.topic(tp.topic)
            topics[tp.topic] = found_topic, found_topic.beginning_offsets(), found_topic.end_offsets()
        (topic, firsts, ends), number = topics[tp.topic], tp.partition
        first, end = firsts[number], ends[number]
        if args.to_earliest:
            return first
        if args.to_latest:
            return end
        if wanted is not None:
            return _clipped(tp, wanted, first, end)
        if shift is not None:
            if tp not in committed:
                raise ConfigurationError(f"--shift-by: group {args.id!r} has no offset of {tp.topic}-{number} to shift")
            return _clipped(tp, committed[tp] + shift, first, end)
        at = args.to_datetime if args.to_datetime is not None else max(0, int(time.time() * 1000) - args.by_duration)
        found = topic.offsets_for_times({number: at})[number]
        return end if found is None else found.offset

    return place


def _clipped(tp: TopicPartition, offset: int, first: int, end: int) -> int:
    nearest = min(max(offset, first), end)
    if nearest != offset:
        print(f"{tp.topic}-{tp.partition}: {offset} is outside of [{first}, {end}]; {nearest} is taken")
    return nearest
