"""This process: its number, randomness, and what happens when it forks."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

pid = os.getpid
random_bytes = os.urandom


def after_fork_in_child(function: Callable[[], None]) -> None:
    """Call `function` in every forked child, before its own code runs."""
    os.register_at_fork(after_in_child=function)
