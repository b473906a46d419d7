"""This process: its number and what names it, randomness, and what happens when it forks."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

pid = os.getpid
random_bytes = os.urandom
_PIDS = 32  # bits of a token that are the process id
_tokens: dict[int, int] = {}


def namespace() -> int:
    """The pid namespace of this process: a pid means something only with it.  0: the machine has none."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def token() -> int:
    """What names this process among all of the machine, those in containers included: its namespace and its pid."""
    own = os.getpid()
    found = _tokens.get(own)
    if found is None:
        _tokens.clear()
        found = _tokens[own] = namespace() << _PIDS | own
    return found


def of_token(word: int) -> tuple[int, bool]:
    """The pid of a token, and whether it is a pid of our own namespace."""
    found = word >> _PIDS
    return word & (1 << _PIDS) - 1, found in (0, token() >> _PIDS)


def after_fork_in_child(function: Callable[[], None]) -> None:
    """Call `function` in every forked child, before its own code runs."""
    os.register_at_fork(after_in_child=function)
