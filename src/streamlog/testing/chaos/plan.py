"""What a run consists of: its topics, its groups and its workers."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

PLAIN, INPUT, OUTPUT = "plain", "input", "output"
"""Records of all producers; the input of the exactly-once loops, and its output."""

PARTITIONS = {PLAIN: 3, INPUT: 4, OUTPUT: 3}
MOST_PARTITIONS = 6

BILLING = "billing"
"""The group of the exactly-once loops."""


class GroupPlan(NamedTuple):
    """A group that reads the topic `plain`."""

    assignor: str
    isolation_level: str
    static: bool


GROUPS = {
    "sharing": GroupPlan("cooperative-sticky", "read_uncommitted", False),
    "ranging": GroupPlan("range", "read_uncommitted", True),
    "rounding": GroupPlan("roundrobin", "read_committed", False),
    "sticking": GroupPlan("sticky", "read_committed", True),
}

WORKERS = [
    "plain", "keyed", "bulk", "transactional", "group", "group", "group", "exactlyonce", "exactlyonce", "admin", "observer", "forking",
    "limited", "faulty",
]  # fmt: skip
"""Kinds of workers, one process each."""


class Task(NamedTuple):
    """What a worker process is told when it is started."""

    location: str
    histories: str
    kind: str
    number: int
    life: int
    seed: int
    brokers: int
    avoid: list[str] = []
    """Acts of administrators that are left out."""

    @property
    def worker(self) -> str:
        """The worker's name, the same in each of its lives."""
        return f"{self.kind}-{self.number}"

    def dump(self) -> str:
        """As an argument of a command."""
        return json.dumps(self._asdict())

    @classmethod
    def load(cls, text: str) -> Task:
        """From such an argument."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**fields)


def group_of(seed: int, number: int) -> str:
    """The group that the group consumer with this number is in: two are in one group, then there is one in each.  The seed says in which."""
    names = list(GROUPS)
    return names[(seed + max(0, number - 1)) % len(names)]
