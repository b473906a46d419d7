"""Exhaustive search of a model's states, breadth first: what it finds is the shortest way to a broken property."""

from __future__ import annotations

from collections import deque
from typing import Any


class BrokenError(Exception):
    """A property does not hold."""


def put(items: tuple[Any, ...], number: int, item: Any) -> tuple[Any, ...]:
    return (*items[:number], item, *items[number + 1 :])


def search(model: Any, limit: int = 2_000_000) -> tuple[int, list[str]]:
    """States seen, and the shortest way to one that breaks a property; empty: there is none."""
    came: dict[Any, tuple[Any, str] | None] = {model.start: None}
    queue = deque([model.start])
    while queue:
        s = at = queue.popleft()
        try:
            for name, after in model.steps(s):
                after = model.canonical(after)
                if after not in came:
                    came[after] = s, name
                    at = after
                    model.check(after)
                    queue.append(after)
                    at = s
        except BrokenError as error:
            way = [str(error)]
            while (step := came[at]) is not None:
                at, done = step
                way.append(done)
            return len(came), way[::-1]
        if len(came) > limit:
            raise AssertionError(f"more than {limit} states")
    return len(came), []
