"""What the commands share."""

from __future__ import annotations

import argparse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

import streamlog
from streamlog.errors import ConfigurationError


def location(args: argparse.Namespace) -> str:
    """Where the cluster is.  Raises ConfigurationError where nothing says so."""
    found: str | None = args.location
    if not found:
        raise ConfigurationError("which cluster? give --location DIR before the command, or set STREAMLOG_LOCATION")
    return found


def open_cluster(args: argparse.Namespace, *, create: bool = False) -> streamlog.Cluster:
    """The cluster; none is made by a misspelt directory."""
    return streamlog.open(location(args), create=create)


def pair(text: str) -> tuple[str, str]:
    """A `name=value` argument."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r}: NAME=VALUE is wanted")
    return name, value


def count(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 0 is wanted")
    return int(text)


def counted(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths)))
