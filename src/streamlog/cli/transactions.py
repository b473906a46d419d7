"""`streamlog transactions`: list, describe, abort, find-hanging."""

from __future__ import annotations

import argparse
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from streamlog.cli.common import Commands

from streamlog.cli.common import count, open_cluster, print_table
from streamlog.errors import ConfigurationError


def add_commands(commands: Commands) -> None:
    """Add `transactions` and what it can do."""
    parser = commands.add_parser("transactions", help="list, describe, abort, find-hanging")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    parser = actions.add_parser("list", help="transactional ids, their states and producer ids")
    parser.set_defaults(run=_list)
    parser = actions.add_parser("describe", help="producer, state and partitions of an id")
    parser.add_argument("ids", nargs="*", metavar="ID", help="all where none is given")
    parser.set_defaults(run=_describe)
    parser = actions.add_parser("abort", help="abort what an id has open (its producer is fenced), or a hanging transaction")
    parser.add_argument("id", nargs="?", metavar="ID")
    parser.add_argument("--topic", metavar="NAME", help="of a hanging transaction, as find-hanging shows it")
    parser.add_argument("--partition", type=count, metavar="N")
    parser.add_argument("--start-offset", type=count, metavar="N", help="where it begins")
    parser.set_defaults(run=_abort)
    parser = actions.add_parser("find-hanging", help="open transactions of which their ids know nothing")
    parser.set_defaults(run=_find_hanging)


def _list(args: argparse.Namespace) -> int:
    with open_cluster(args) as log:
        found = [log.describe_transaction(each.transactional_id) for each in log.transactions()]
    if found:
        rows = [(each.transactional_id, each.state, str(each.producer_id), str(each.pid), "yes" if each.alive else "no") for each in found]
        print_table([("transactional id", "state", "producer id", "pid", "alive"), *rows])
    return 0


def _describe(args: argparse.Namespace) -> int:
    with open_cluster(args) as log:
        for name in args.ids or [each.transactional_id for each in log.transactions()]:
            found = log.describe_transaction(name)
            alive = "alive" if found.alive else "gone, or fenced"
            client = f" client {found.client_id!r}" if found.client_id else ""
            print(f"{name}: {found.state}, producer {found.producer_id} epoch {found.producer_epoch}, process {found.pid}{client} ({alive})")
            if found.partitions:
                open_for = max(0.0, time.time() - found.started_ms / 1000)
                where = ", ".join(f"{tp.topic}-{tp.partition}" for tp in found.partitions)
                print(f"  open for {open_for:.1f} s of {found.timeout_ms / 1000:g} s, in {where}")
    return 0


def _abort(args: argparse.Namespace) -> int:
    place = (args.topic, args.partition, args.start_offset)
    if args.id is not None and place != (None, None, None):
        raise ConfigurationError("give an id, or --topic, --partition and --start-offset of a hanging transaction: not both")
    if args.id is None and None in place:
        raise ConfigurationError("which transaction? give its id, or --topic, --partition and --start-offset of a hanging one")
    with open_cluster(args) as log:
        if args.id is not None:
            was = log.describe_transaction(args.id).state
            log.abort_transaction(args.id)
            done = {"Ongoing": "aborted", "PrepareCommit": "its commit was decided, and is carried out", "PrepareAbort": "aborted"}
            print(f"{args.id}: {done.get(was, 'nothing was open')}; its producer is fenced")
        else:
            log.end_hanging_transaction(*place)
            print(f"{args.topic}-{args.partition}: the transaction from offset {args.start_offset} on is ended")
    return 0


def _find_hanging(args: argparse.Namespace) -> int:
    with open_cluster(args) as log:
        found = log.hanging_transactions()
    if not found:
        return 0
    rows = [(each.topic, str(each.partition), str(each.first_offset), str(each.producer_id), str(each.producer_epoch)) for each in found]
    print_table([("topic", "partition", "start offset", "producer id", "epoch"), *rows])
    return 0
