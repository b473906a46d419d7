"""Producer state between processes, as a model that is searched exhaustively: the code's own checks, and when it looks at the log.

Two processes, each with a producer, append to one log.  Appends are broken off at any point, tried again or given up; whoever comes
next adopts what is whole; segments roll; anyone takes snapshots; the log is cut (a restored copy) while processes live; processes die.
Each locked section is one step, with a choice where it is broken off: its inside is the matter of append.py.

    python -m model.producers                  search with every rule in force
    python -m model.producers --without RULE   the shortest counterexample without it
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from model.search import BrokenError, search
from streamlog._log.producer_state import SEQUENCES, ProducerStates
from streamlog.errors import InvalidProducerEpochError, OutOfOrderSequenceError

RULES = {
    "broken-off": "after an append of its own that was broken off a process folds the log before the next one",
    "leader-epoch": "... and where the log's leader epoch is another than at its last look",
    "gap": "a fold goes on to the end under the lock, what was just adopted included",
    "reach": "a snapshot counts only where its segment still reaches its offset",
    "salt": "... and is the segment in which it was taken",
    "new-epoch": "after a batch that was given up the producer goes on in a new epoch",
    "once": "a batch keeps its sequence when it is tried again",
}

Batch = tuple[int, int, int, int]  # producer, sequence, epoch, number: the number is what a reader sees
Entries = tuple[tuple[int, tuple[int, int, tuple[tuple[int, int, int, int], ...], int, int]], ...]


class Live(NamedTuple):
    """What a process knows."""

    epoch: int = -1
    offset: int = 0
    entries: Entries = ()
    inside: bool = False  # an append is under way, or was broken off


class Client(NamedTuple):
    """A producer: the next place in its sequence, and what it is sending."""

    sequence: int = 0
    epoch: int = 0
    number: int = 0  # of the next batch
    pending: Batch | None = None
    failed: bool = False  # the batch before was given up
    told: tuple[tuple[int, int], ...] = ()  # number and offset of what was acknowledged


class State(NamedTuple):
    """The log, its snapshots, and both processes."""

    log: tuple[Batch, ...] = ()
    published: int = 0
    leader_epoch: int = 0
    segments: tuple[tuple[int, int], ...] = ((0, 0),)  # base offset and salt
    snapshots: frozenset[tuple[int, int, Entries]] = frozenset()  # offset, salt of the segment, entries
    live: tuple[Live | None, ...] = (Live(), Live())
    clients: tuple[Client, ...] = (Client(), Client())
    left: tuple[int, ...] = (0, 0, 0, 0, 0)  # how often yet: break off, give up, cut, roll, snapshot
    cut: frozenset[tuple[int, int]] = frozenset()  # producer and number of what a cut took away


LIMIT = 1_000_000  # states
BREAK, GIVE_UP, CUT, ROLL, SNAPSHOT = range(5)
NOWHERE, BEFORE, BYTES, PUBLISHED, NOTED = range(5)  # where an append is broken off
INSTANCES = {  # batches of each producer; how often there may be a break, a giving up, a cut, a roll, a snapshot
    "cuts and snapshots": (2, (1, 0, 1, 1, 1)),
    "failures": (3, (2, 1, 0, 0, 0)),
    "failures and a cut": (3, (1, 1, 1, 0, 0)),
}


class Model:
    """The protocol, from where an instance starts; `rules` are in force."""

    def __init__(self, rules: frozenset[str], instance: str) -> None:
        self.batches, left = INSTANCES[instance]
        self.rules, self.start = rules, State(left=left)

    # ---- the protocol ----------------------------------------------------------------------------------------------------------

    def fold(self, s: State, states: ProducerStates, end: int) -> ProducerStates:
        for offset in range(states.offset, end):
            producer, sequence, epoch, _ = s.log[offset]
            states.record((producer, sequence, epoch), 1, offset, 0)
        states.offset = max(states.offset, end)
        return states

    def newest(self, s: State, end: int) -> ProducerStates:
        best = ProducerStates()
        for offset, salt, entries in s.snapshots:
            at = max(number for number, (base, _) in enumerate(s.segments) if base <= offset or number == 0)
            if "salt" in self.rules:
                at = next((number for number, segment in enumerate(s.segments) if segment[1] == salt), -1)
            reaches = at + 1 >= len(s.segments) or s.segments[at + 1][0] >= offset
            if at >= 0 and (reaches or "reach" not in self.rules) and best.offset < offset <= end:
                best = ProducerStates(offset, entries=dict(entries))
        return best

    def append(self, s: State, who: int, stop: int) -> tuple[State, str]:
        """An append of the pending batch, broken off at `stop`; what came of it."""
        s = s._replace(published=len(s.log))  # whoever comes next adopts what is whole
        live, client = s.live[who], s.clients[who]
        assert live is not None
        assert client.pending is not None
        states = ProducerStates(live.offset, live.epoch, dict(live.entries))
        if states.epoch < 0:
            states.epoch = s.leader_epoch
        must = live.inside and "broken-off" in self.rules
        if must or (states.epoch != s.leader_epoch and "leader-epoch" in self.rules):
            end = s.published if "gap" in self.rules else max(0, s.published - 1)
            newest = self.newest(s, end)
            if states.epoch != s.leader_epoch or newest.offset > states.offset:
                states = newest
            states = self.fold(s, states, end)
            states.epoch = s.leader_epoch
        producer, sequence, epoch, _ = client.pending
        offset, outcome = len(s.log), "written"
        try:
            found = states.check((producer, sequence, epoch), 1)
        except (OutOfOrderSequenceError, InvalidProducerEpochError):
            return self.put(s, who, states, inside=False), "refused"
        if found is not None:
            return self.put(s, who, states, inside=False), f"told {found[2]}"
        if stop == BEFORE:
            return self.put(s, who, states, inside=True), "broken off"
        s = s._replace(log=(*s.log, client.pending))
        if stop == BYTES:
            return self.put(s, who, states, inside=True), "broken off"
        s = s._replace(published=len(s.log))
        if stop != PUBLISHED:
            states.record((producer, sequence, epoch), 1, offset, 0)
            states.offset = offset + 1 if states.offset == offset else states.offset
        if stop != NOWHERE:
            return self.put(s, who, states, inside=True), "broken off"
        return self.put(s, who, states, inside=False), f"{outcome} {offset}"

    def put(self, s: State, who: int, states: ProducerStates, *, inside: bool) -> State:
        live = Live(states.epoch, states.offset, tuple(sorted(states.entries.items())), inside)
        return s._replace(live=tuple(live if number == who else old for number, old in enumerate(s.live)))

    def client(self, s: State, who: int, **changes: object) -> State:
        changed = s.clients[who]._replace(**changes)  # type: ignore[arg-type]
        return s._replace(clients=tuple(changed if number == who else old for number, old in enumerate(s.clients)))

    def use(self, s: State, what: int) -> State:
        return s._replace(left=tuple(left - (number == what) for number, left in enumerate(s.left)))

    # ---- Steps -------------------------------------------------------------------------------------------------------------------

    def steps(self, s: State) -> Iterator[tuple[str, State]]:
        """What may happen next."""
        for who, live in enumerate(s.live):
            if live is None:
                continue
            client = s.clients[who]
            if client.pending is None and client.number < self.batches:
                sequence, epoch = client.sequence, client.epoch
                if client.failed and "new-epoch" in self.rules:
                    sequence, epoch = 0, epoch + 1
                batch = who, sequence, epoch, client.number
                yield f"{who} sends {client.number}", self.client(
                    s, who, pending=batch, number=client.number + 1, sequence=sequence + 1 & SEQUENCES, epoch=epoch, failed=False
                )  # fmt: skip
            if client.pending is not None:
                for stop in (NOWHERE, BEFORE, BYTES, PUBLISHED, NOTED) if s.left[BREAK] else (NOWHERE,):
                    yield from self.tried(s, who, stop)
                if s.left[GIVE_UP]:
                    yield f"{who} gives up", self.client(self.use(s, GIVE_UP), who, pending=None, failed=True)
            if s.left[SNAPSHOT]:
                yield f"{who} takes a snapshot", self.snapshot(self.use(s, SNAPSHOT), who, live)
        if s.left[ROLL]:
            s2 = self.use(s._replace(published=len(s.log)), ROLL)
            yield "roll", s2._replace(segments=(*s.segments, (len(s.log), len(s.segments)))) if s.segments[-1][0] < len(s.log) else s2
        if s.left[CUT]:
            for end in {max(0, s.published - 1), max(0, s.published - 2)} - {s.published}:
                yield f"cut to {end}", self.cut(self.use(s, CUT), end)

    def tried(self, s: State, who: int, stop: int) -> Iterator[tuple[str, State]]:
        client = s.clients[who]
        assert client.pending is not None
        if "once" not in self.rules and s.live[who].inside:  # type: ignore[union-attr]
            producer, _, epoch, number = client.pending
            s = self.client(s, who, pending=(producer, client.sequence, epoch, number), sequence=client.sequence + 1)
        after, outcome = self.append(self.use(s, BREAK) if stop else s, who, stop)
        if outcome == "broken off":
            yield f"{who} is broken off at {stop}", after
        elif outcome == "refused":
            if all(producer != who for producer, _ in s.cut):
                raise BrokenError(f"batch {client.pending[3]} of producer {who} is refused, and nothing of it was cut away: {s.log}")
            yield f"{who} is refused", self.client(after, who, pending=None, failed=True)
        elif not stop:
            told = (*client.told, (client.pending[3], int(outcome.split()[1])))
            yield f"{who} is {outcome}", self.client(after, who, pending=None, told=told)

    def snapshot(self, s: State, who: int, live: Live) -> State:
        states = ProducerStates(live.offset, live.epoch, dict(live.entries))
        found = self.newest(s, s.published)
        if states.epoch != s.leader_epoch or found.offset > states.offset:
            states = found
        states = self.fold(s, states, s.published)
        salt = [salt for base, salt in s.segments if base <= states.offset][-1]
        return s._replace(snapshots=s.snapshots | {(states.offset, salt, tuple(sorted(states.entries.items())))})

    def cut(self, s: State, end: int) -> State:
        """The log loses its tail and goes on in a new segment at the next leader epoch."""
        segments = tuple(segment for segment in s.segments if segment[0] < end)
        gone = frozenset((producer, number) for producer, _, _, number in s.log[end:])
        return s._replace(
            log=s.log[:end], published=end, leader_epoch=s.leader_epoch + 1, segments=(*segments, (end, 10 + s.leader_epoch)), cut=s.cut | gone,
        )  # fmt: skip

    @staticmethod
    def canonical(s: State) -> State:
        """As it is."""
        return s

    @staticmethod
    def check(s: State) -> None:
        """Each batch once, in order; what was told is where it was told."""
        names = [(batch[0], batch[3]) for batch in s.log]
        if len(set(names)) != len(names):
            raise BrokenError(f"a batch is there twice: {names}")
        for who, client in enumerate(s.clients):
            places = [(epoch, sequence) for producer, sequence, epoch, _ in s.log if producer == who]
            begins = places if any(producer == who for producer, _ in s.cut) else [(-1, 0), *places]  # where all was cut it may begin anywhere
            for before, after in pairwise(begins):
                if after != ((before[0], before[1] + 1) if after[0] == before[0] else (max(after[0], before[0] + 1), 0)):
                    raise BrokenError(f"sequences of producer {who} have a gap: {places}")
            own = [number for producer, number in names if producer == who]
            if own != sorted(own):
                raise BrokenError(f"out of order: {own} of producer {who}")
            for number, offset in client.told:
                if (who, number) not in s.cut and (offset >= len(s.log) or names[offset] != (who, number)):
                    raise BrokenError(f"batch {number} of producer {who} was told {offset}: {names}")


if __name__ == "__main__":
    without = sys.argv[2:] if sys.argv[1:2] == ["--without"] else []
    for name in INSTANCES:
        count, way = search(Model(frozenset(RULES) - set(without), name), LIMIT)
        print(f"{name}: {count} states", *way, sep="\n    ")
