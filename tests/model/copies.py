"""Copies of a leader's batches by several processes, as a model that is searched exhaustively: the code's own fold of producers.

The leader's log is given: transactions that are aborted and committed, and batches of a plain producer.  Two processes copy it to a follower's
log, each as far as it likes, one batch at a time; each has a state of its own, may take snapshots of the follower's log, may be killed and
begin again from the newest snapshot.  Whoever copies a marker writes the transaction index and the word OPEN.  At any time the follower may
lead: then a batch that is sent again has to be answered.

    python -m model.copies                  search with every rule in force
    python -m model.copies --without RULE   the shortest counterexample without it
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

from model.search import BrokenError, put, search
from streamlog._log.producer_state import Entry, ProducerStates
from streamlog.errors import OutOfOrderSequenceError

RULES = {
    "next": "a copy is counted in only where all before it is; else a fold does so later",
    "marker": "a marker is copied with everything folded",
    "lead": "who leads folds everything before it answers",
}

X, Y = 1, 2
RECORD, ABORT, COMMIT = range(3)
LEADER = (  # producer, sequence, epoch, kind
    (X, 0, 0, RECORD), (Y, 0, 0, RECORD), (X, 1, 0, RECORD), (X, -1, 1, ABORT),
    (X, 0, 1, RECORD), (Y, 1, 0, RECORD), (X, 1, 1, RECORD), (X, -1, 2, COMMIT),
)  # fmt: skip
TRANSACTIONAL = {X}
LIMIT = 500_000


class Live(NamedTuple):
    """What a process knows of the follower's producers: all below `offset` is folded."""

    offset: int = 0
    entries: tuple[tuple[int, Entry], ...] = ()
    open: tuple[tuple[int, int], ...] = ()


class State(NamedTuple):
    """How far the follower's log goes, what was derived from it, and what each process knows."""

    end: int = 0
    aborted: tuple[tuple[int, int, int], ...] = ()
    first_open: int = 0
    snapshot: Live = Live()
    live: tuple[Live, ...] = (Live(), Live())
    left: tuple[int, int] = (1, 1)  # how often a process is killed yet, and how often a snapshot is taken


def states_of(live: Live) -> ProducerStates:
    return ProducerStates(live.offset, 0, dict(live.entries), dict(live.open))


def live_of(states: ProducerStates) -> Live:
    return Live(states.offset, tuple(sorted(states.entries.items())), tuple(sorted(states.open.items())))


def take_in(states: ProducerStates, at: int) -> tuple[int, int, int] | None:
    """Count a batch in; of a marker that aborts, the entry of the transaction index."""
    producer, sequence, epoch, kind = LEADER[at]
    if kind == RECORD:
        states.record((producer, sequence, epoch), 1, at, 0, producer in TRANSACTIONAL)
        return None
    first = states.mark(producer, epoch, at, 0)
    return (producer, first, at) if kind == ABORT and first >= 0 else None


def folded(states: ProducerStates, end: int) -> ProducerStates:
    for at in range(states.offset, end):
        take_in(states, at)
    states.offset = max(states.offset, end)
    return states


class Model:
    """The protocol; `rules` are in force."""

    start = State()

    def __init__(self, rules: frozenset[str]) -> None:
        self.rules = rules

    def steps(self, s: State) -> Iterator[tuple[str, State]]:
        """What may happen next."""
        for who in (0, 1):
            if s.end < len(LEADER):
                yield f"{who} copies {s.end}", self.copy(s, who)
            if s.left[0]:
                yield f"{who} is killed, and begins again", s._replace(live=put(s.live, who, s.snapshot), left=(s.left[0] - 1, s.left[1]))
            if s.left[1]:
                taken = live_of(folded(states_of(s.live[who]), s.end))
                yield f"{who} takes a snapshot", s._replace(snapshot=taken, left=(s.left[0], s.left[1] - 1))
            self.lead(s, who)

    def copy(self, s: State, who: int) -> State:
        at, states = s.end, states_of(s.live[who])
        producer, _, _, kind = LEADER[at]
        first_open, index = s.first_open, s.aborted
        if kind != RECORD:
            if "marker" in self.rules:
                folded(states, at)
            first = states.open.get(producer, -1)
            if kind == ABORT and first >= 0:
                index = (*index, (producer, first, at))
        elif producer in TRANSACTIONAL and not first_open:
            first_open = at + 1
        if states.offset == at or "next" not in self.rules:
            is_next = states.offset == at
            take_in(states, at)
            if is_next:
                states.offset = at + 1
        if kind != RECORD:
            first_open = states.first_open() + 1
        return s._replace(end=at + 1, aborted=index, first_open=first_open, live=put(s.live, who, live_of(states)))

    def lead(self, s: State, who: int) -> None:
        """Were this replica to lead now: the last batch of each producer is sent again, through this process."""
        states = states_of(s.live[who])
        if "lead" in self.rules:
            folded(states, s.end)
        last = {batch[0]: (at, batch) for at, batch in enumerate(LEADER[: s.end])}
        for at, (producer, sequence, epoch, kind) in last.values():
            if kind == RECORD:
                try:
                    found = states.check((producer, sequence, epoch), 1)
                except OutOfOrderSequenceError as error:
                    raise BrokenError(f"{who} leads and refuses batch {at}, which is there: {error}") from None
                if found is None or found[2] != at:
                    raise BrokenError(f"{who} leads and writes batch {at} a second time")

    @staticmethod
    def canonical(s: State) -> State:
        """As it is."""
        return s

    @staticmethod
    def check(s: State) -> None:
        """The derived state is the fold of the log."""
        states, index = ProducerStates(), []
        for at in range(s.end):
            if (entry := take_in(states, at)) is not None:
                index.append(entry)
        if s.aborted != tuple(index):
            raise BrokenError(f"the transaction index has {s.aborted}, the log {index}: aborted records would be shown")
        if s.first_open != states.first_open() + 1:
            raise BrokenError(f"the word OPEN is {s.first_open}, the first open transaction begins at {states.first_open()}")
        exact = live_of(folded(ProducerStates(), s.snapshot.offset))
        if s.snapshot != exact:
            raise BrokenError(f"a snapshot at {s.snapshot.offset} is {s.snapshot}, the fold is {exact}")


if __name__ == "__main__":
    without = sys.argv[2:] if sys.argv[1:2] == ["--without"] else []
    count, way = search(Model(frozenset(RULES) - set(without)), LIMIT)
    print(f"{count} states", *way, sep="\n    ")
