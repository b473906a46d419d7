"""The command line: `streamlog --location DIR topics|produce|consume|groups|transactions|brokers|dump|verify …`.

Exit codes: 0; 1 where `dump` or `verify` found damage; 2 for an error (one line on stderr); 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

from streamlog._version import __version__
from streamlog.cli import brokers, checks, consume, groups, produce, topics, transactions
from streamlog.errors import StreamlogError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; `argv` is without the program's name.  Returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return 0  # who reads us has seen enough
    except KeyboardInterrupt:
        return 130
    except (StreamlogError, OSError) as error:
        print(f"streamlog: {_message(error)}", file=sys.stderr)
        return 2
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="streamlog", description="Kafka's log as a library: look at and use a cluster's directory.",
        epilog="Exit codes: 0 done; 1 damage or a broken invariant was found; 2 an error, told on stderr; 130 Ctrl-C.",
    )  # fmt: skip
    parser.add_argument("--location", metavar="DIR", default=os.environ.get("STREAMLOG_LOCATION"), help="the cluster (or $STREAMLOG_LOCATION)")
    parser.add_argument("--version", action="version", version=f"streamlog {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (topics, produce, consume, groups, transactions, brokers, checks):
        module.add_commands(commands)
    return parser


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, StreamlogError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _drop_output() -> None:
    """Let what is still buffered go nowhere, so that the interpreter's last flush does not complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
