"""The metadata log between processes and disks, as a model that is searched exhaustively (H41).

Three copies, each on a disk of its own: records with the controller epoch that wrote them, and the highest epoch that the copy has promised.
One controller at a time holds the metadata lock; it may die between any two steps, and the next one may read other disks.  A step is what
one copy's disk does, or the controller's look at what it has in memory.

    python -m model.quorum                  (in tests/) search with every rule in force
    python -m model.quorum --without RULE   the shortest counterexample without it
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

from model.search import BrokenError, put, search

RULES = {
    "longest-leads": "a new controller takes, of a readable majority, the copy with the greatest (epoch of its last record, end) (Raft, 5.4.1)",
    "own-epoch": "nothing is committed until a record of the controller's own epoch is on a majority (Raft, 5.4.2)",
    "promised": "an epoch is promised by a majority before anything is written in it",
    "majority-committed": "a record counts when a majority has it on its disk",
    "cut-by-epoch": "a copy is cut where its epochs stop being the leader's before it copies (KIP-101)",
}

Record = tuple[int, int]  # controller epoch, and a number of its own


class Copy(NamedTuple):
    log: tuple[Record, ...] = ()
    promised: int = 0


class State(NamedTuple):
    copies: tuple[Copy, ...] = (Copy(), Copy(), Copy())
    epoch: int = 0  # of the controller; 0: there is none
    leader: int = -1  # the copy that it writes to first
    readable: frozenset[int] = frozenset()  # by this controller
    writing: bool = False  # its promise is complete
    committed: tuple[Record, ...] = ()  # what was shown to anybody
    number: int = 0
    left: tuple[int, int] = (4, 0)  # controllers still to come, records still to be written by users


class Quorum:
    """The protocol; `rules` are in force."""

    start = State()

    def __init__(self, rules: frozenset[str]) -> None:
        self.rules = rules

    @staticmethod
    def canonical(s: State) -> State:
        return s

    def steps(self, s: State) -> Iterator[tuple[str, State]]:
        yield from self.new_controllers(s)
        if s.epoch:
            yield from self.promises(s)
        if s.writing:
            yield from self.writes(s)
            yield from self.copying(s)
            yield from self.commits(s)

    def new_controllers(self, s: State) -> Iterator[tuple[str, State]]:
        """The former one died, at any moment; the next one can read some disks."""
        if not s.left[0]:
            return
        for size in range(2, 4):  # a majority at least: fewer could not promise
            for readable in combinations(range(3), size):
                known = [s.copies[copy] for copy in readable]
                epoch = max(max(copy.promised, *(record[0] for record in copy.log), 0) for copy in known) + 1
                leaders = self.leaders(s, readable)
                for leader in leaders:
                    left = s.left[0] - 1, s.left[1]
                    at_once = "promised" not in self.rules
                    after = s._replace(epoch=epoch, leader=leader, readable=frozenset(readable), writing=at_once, left=left)
                    yield f"a controller of epoch {epoch} reads {list(readable)}, {leader} leads", after

    def leaders(self, s: State, readable: tuple[int, ...]) -> list[int]:
        if "longest-leads" not in self.rules:
            return list(readable)

        def key(copy: int) -> tuple[int, int]:
            log = s.copies[copy].log
            return (log[-1][0] if log else 0, len(log))

        return [max(readable, key=lambda copy: (key(copy), -copy))]

    def promises(self, s: State) -> Iterator[tuple[str, State]]:
        if s.writing:
            return
        for copy in s.readable:
            if s.copies[copy].promised < s.epoch:
                copies = put(s.copies, copy, s.copies[copy]._replace(promised=s.epoch))
                kept = sum(copies[other].promised == s.epoch for other in s.readable)
                yield f"{copy} promises epoch {s.epoch}", s._replace(copies=copies, writing=kept >= 2 and copies[s.leader].promised == s.epoch)

    def writes(self, s: State) -> Iterator[tuple[str, State]]:
        """The first record of an epoch is its own; users' records come after it."""
        log = s.copies[s.leader].log
        is_first = not log or log[-1][0] != s.epoch
        if is_first or s.left[1]:
            left = s.left if is_first else (s.left[0], s.left[1] - 1)
            copy = s.copies[s.leader]._replace(log=(*log, (s.epoch, s.number)))
            yield f"{s.leader} gets ({s.epoch}, {s.number})", s._replace(copies=put(s.copies, s.leader, copy), number=s.number + 1, left=left)

    def copying(self, s: State) -> Iterator[tuple[str, State]]:
        source = s.copies[s.leader].log
        for copy in s.readable - {s.leader}:
            log = s.copies[copy].log
            same = 0
            while same < min(len(log), len(source)) and log[same] == source[same]:
                same += 1
            if same < len(log):
                if "cut-by-epoch" in self.rules:
                    yield f"{copy} is cut to {same}", s._replace(copies=put(s.copies, copy, s.copies[copy]._replace(log=log[:same])))
                    continue
                if len(log) >= len(source):
                    continue
            if len(log) < len(source):
                after = s.copies[copy]._replace(log=(*log, source[len(log)]))
                yield f"{copy} copies {source[len(log)]}", s._replace(copies=put(s.copies, copy, after))

    def commits(self, s: State) -> Iterator[tuple[str, State]]:
        source = s.copies[s.leader].log
        wanted = 2 if "majority-committed" in self.rules else 1
        for end in range(len(s.committed) + 1, len(source) + 1):
            having = sum(len(s.copies[copy].log) >= end and self.matches(s.copies[copy].log, source, end) for copy in s.readable)
            if having < wanted:
                break
            if "own-epoch" in self.rules and source[end - 1][0] != s.epoch:
                continue  # only with one of its own epoch behind it
            yield f"{source[:end]} is committed", s._replace(committed=source[:end])

    def matches(self, log: tuple[Record, ...], source: tuple[Record, ...], end: int) -> bool:
        """By length where a copy is never cut: it cannot be told apart then."""
        return "cut-by-epoch" not in self.rules or log[:end] == source[:end]

    def check(self, s: State) -> None:
        """What was committed once is in every controller's log for ever; an epoch's records are those of one controller."""
        if s.writing and s.epoch and s.copies[s.leader].log[: len(s.committed)] != s.committed:
            raise BrokenError(f"{s.committed} was committed, the controller of epoch {s.epoch} has {s.copies[s.leader].log}")
        at: dict[tuple[int, int], Record] = {}
        for copy in s.copies:
            for offset, record in enumerate(copy.log):
                known = at.setdefault((record[0], offset), record)
                if known != record:
                    raise BrokenError(f"offset {offset} of epoch {record[0]} is {known} and {record}: two controllers had one epoch")


def main() -> None:
    without = set(sys.argv[2:] if sys.argv[1:2] == ["--without"] else [])
    count, way = search(Quorum(frozenset(RULES) - without), 5_000_000)
    print(f"{count} states", *way, sep="\n    ", flush=True)


if __name__ == "__main__":
    main()

