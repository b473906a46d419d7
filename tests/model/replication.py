"""A replicated partition between processes, as a model that is searched exhaustively (H40).

Three replicas, each a log with a lock of its own; the partition's slot (leader, epoch, in-sync replicas, high watermark) has another one.
Writers append to the leader's log, copiers copy it to followers, a controller elects; a disk may hang: then who writes to it holds that log's
lock, for ever or for long, and may go on when everything has changed.  Who applies a change of the metadata to the slot may die between
any two stores.  A step is what happens under one lock, or between two looks at something shared.

    python -m model.replication                  (in tests/) search with every rule in force
    python -m model.replication --without RULE   the shortest counterexample without it
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from model.search import BrokenError, put, search

RULES = {
    "publish-checks": "the high watermark is advanced, and an append acknowledged, only if leader and epoch are those it was begun with (H40)",
    "copy-checks": "a copier compares leader and epoch under the follower's lock, after it read from the leader and before it cuts or writes (H40)",
    "log-lock-apart": "an election does not wait for the lock of a log (H40)",
    "aligned-counts": "a follower's log end counts once it was compared with the leader of this epoch (KIP-101)",
    "cut-by-epoch": "a follower cuts what the leader's epochs do not have before it copies (KIP-101, KIP-279)",
    "grow-first": "who joins the in-sync set is counted before the metadata say so",
    "joins-caught-up": "who joins has all below the high watermark, and was compared with the leader of this epoch",
    "turn-stored": "a change of leader stores `turn` for readers of the old one, after the leader and before the high watermark moves on (H4)",
    "turn-again": "who finds a change half applied stores `turn` again: nobody knows whether that was done",
    "applied-whole": "the high watermark stands still while a change of the metadata is half applied",
    "in-sync-elected": "the leader is elected from the in-sync set",
}

Record = tuple[int, int]  # epoch, and who wrote it
Place = tuple[int, int]  # leader and epoch
NOBODY = -1


class Writer(NamedTuple):
    """A process with one record to write, acks=all."""

    phase: str = "idle"  # idle, waits, inside (holds the leader's lock), written, acked, refused
    place: Place = (0, 0)
    offset: int = -1


class Copier(NamedTuple):
    """A process that copies to one follower at a time."""

    phase: str = "idle"  # idle, waits, inside (holds the follower's lock), cut, copy
    place: Place = (0, 0)
    follower: int = -1
    cut: int = -1
    record: Record | None = None


class Metadata(NamedTuple):
    """What is committed; the quorum that does so is quorum.py's matter."""

    leader: int = 0
    epoch: int = 0
    in_sync: frozenset[int] = frozenset((0, 1, 2))
    version: int = 0


class Slot(NamedTuple):
    """The live words of the partition."""

    leader: int = 0
    epoch: int = 0
    in_sync: frozenset[int] = frozenset((0, 1, 2))
    version: int = 0
    shown: int = 0  # high watermark
    applying: bool = False  # somebody began to apply a change of the metadata, and has not finished


class State(NamedTuple):
    """Everything shared, and who is at work."""

    metadata: Metadata = Metadata()
    slot: Slot = Slot()
    logs: tuple[tuple[Record, ...], ...] = ((), (), ())
    aligned: tuple[int, ...] = (0, 0, 0)  # epoch in which a log was last compared with its leader, or led
    reader: int = 0  # the replica that a reader reads, as long as it finds the `turn` that it knows; NOBODY: it looks again first
    failed: frozenset[int] = frozenset()
    writers: tuple[Writer, ...] = (Writer(), Writer())
    copiers: tuple[Copier, ...] = (Copier(), Copier())
    joining: int = NOBODY  # a replica that is on its way into the in-sync set, decided on the metadata of now
    left: tuple[int, ...] = (2, 0, 0, 1)  # failures, returns, removals from the in-sync set, deaths while applying


FAILURES, RETURNS, REMOVALS, DEATHS = range(4)


class Replication:
    """The protocol; `rules` are in force."""

    def __init__(self, rules: frozenset[str], start: State | None = None) -> None:
        self.rules, self.start = rules, start or State()

    @staticmethod
    def canonical(s: State) -> State:
        """Those who do the same work are alike; a version counts by what it is above."""
        behind = int(s.metadata.version != s.slot.version)
        metadata, slot = s.metadata._replace(version=behind), s.slot._replace(version=0)
        return s._replace(copiers=tuple(sorted(s.copiers, key=repr)), metadata=metadata, slot=slot)

    def steps(self, s: State) -> Iterator[tuple[str, State]]:
        for number in range(len(s.writers)):
            yield from self.writer_steps(s, number)
        for number in range(len(s.copiers)):
            yield from self.copier_steps(s, number)
        yield from self.controller_steps(s)
        yield from self.publish(s)
        if s.reader == NOBODY and s.slot.leader != NOBODY:
            yield f"the reader reads {s.slot.leader}", s._replace(reader=s.slot.leader)

    # ---- writers -----------------------------------------------------------------------------------------------------------

    def is_free(self, s: State, replica: int) -> bool:
        """Whether nobody holds the lock of a replica's log."""
        return not any(w.phase == "inside" and w.place[0] == replica for w in s.writers) and not any(
            c.phase in ("inside", "cut", "copy") and c.follower == replica for c in s.copiers
        )

    def writer_steps(self, s: State, number: int) -> Iterator[tuple[str, State]]:
        w, place = s.writers[number], (s.slot.leader, s.slot.epoch)

        def become(writer: Writer, **changes: Any) -> State:
            return s._replace(writers=put(s.writers, number, writer), **changes)

        name = f"writer {number}"
        if w.phase == "idle" and place[0] not in s.failed and place[0] != NOBODY:
            yield f"{name} looks: leader {place[0]}, epoch {place[1]}", become(w._replace(phase="waits", place=place))
        if w.phase == "waits" and w.place[0] not in s.failed and self.is_free(s, w.place[0]):
            if place == w.place:
                after = become(w._replace(phase="inside"))
                yield f"{name} is inside", self.lead(after, place)
            else:
                yield f"{name} finds another leader", become(Writer())
        if w.phase == "inside":
            leader, epoch = w.place
            log = s.logs[leader]
            logs = put(s.logs, leader, (*log, (epoch, number)))
            yield f"{name} writes", become(w._replace(phase="written", offset=len(log)), logs=logs)
            if leader in s.failed:
                yield f"{name} gets an error", become(Writer("refused"))
        if w.phase == "written":
            if place != w.place and "publish-checks" in self.rules:
                yield f"{name} finds that another leads", become(Writer("refused"))
            elif s.slot.shown > w.offset:
                yield f"{name} is acknowledged", become(w._replace(phase="acked"))

    def lead(self, s: State, place: Place) -> State:
        """Under the log's lock: the first of an epoch begins a segment."""
        return s._replace(aligned=put(s.aligned, place[0], place[1]))

    # ---- the high watermark ------------------------------------------------------------------------------------------------

    def publish(self, s: State) -> Iterator[tuple[str, State]]:
        """Under the partition's lock: the least log end of those that count."""
        slot = s.slot
        if slot.applying and "applied-whole" in self.rules:
            return
        places = [(slot.leader, slot.epoch)]
        if "publish-checks" not in self.rules:
            places += [w.place for w in s.writers if w.phase == "written" and w.place not in places]
        for leader, epoch in places:
            if leader == NOBODY or s.aligned[leader] != epoch:
                continue
            counted = slot.in_sync | {leader} if leader == slot.leader else {leader}
            if "aligned-counts" in self.rules and any(s.aligned[r] != epoch for r in counted):
                continue
            end = min(len(s.logs[r]) for r in counted)
            if end > slot.shown:
                yield f"the high watermark is {end}", s._replace(slot=slot._replace(shown=end))

    # ---- copiers -----------------------------------------------------------------------------------------------------------

    def copier_steps(self, s: State, number: int) -> Iterator[tuple[str, State]]:
        c, place = s.copiers[number], (s.slot.leader, s.slot.epoch)

        def become(copier: Copier, **changes: Any) -> State:
            return s._replace(copiers=put(s.copiers, number, copier), **changes)

        name = f"copier {number}"
        unchanged = place == c.place
        if c.phase == "idle":
            for follower in range(3):
                behind = s.aligned[follower] != place[1] or (place[0] >= 0 and len(s.logs[follower]) < len(s.logs[place[0]]))
                if follower != place[0] and behind and not {follower, place[0]} & s.failed and place[0] != NOBODY:
                    yield f"{name} looks: leader {place[0]}, epoch {place[1]}", become(Copier("waits", place, follower))
            return
        leader, epoch = c.place
        follower = c.follower
        if c.phase == "waits" and self.is_free(s, follower):
            if unchanged or "copy-checks" not in self.rules:
                if s.aligned[leader] == epoch or leader != place[0]:  # else nobody has begun to lead
                    yield f"{name} is inside {follower}", become(c._replace(phase="inside"))
                elif self.is_free(s, leader):
                    yield f"{name} makes {leader} lead", self.lead(s, place)
            else:
                yield f"{name} finds another leader", become(Copier())
        log, source = s.logs[follower], s.logs[leader]
        if c.phase == "inside":
            if s.aligned[follower] != epoch:
                yield f"{name} compares {follower} with {leader}", become(c._replace(phase="cut", cut=self.divergence(log, source)))
            elif len(log) < len(source):
                yield f"{name} reads from {leader}", become(c._replace(phase="copy", record=source[len(log)]))
            yield f"{name} is done", become(Copier())
        if c.phase in ("cut", "copy") and not unchanged and "copy-checks" in self.rules:
            yield f"{name} finds another leader", become(Copier())
        elif c.phase == "cut":
            logs = put(s.logs, follower, log[: c.cut])
            yield f"{name} cuts {follower} to {c.cut}", become(c._replace(phase="inside", cut=-1), logs=logs, aligned=put(s.aligned, follower, epoch))
        elif c.phase == "copy":
            assert c.record is not None
            yield f"{name} copies to {follower}", become(c._replace(phase="inside", record=None), logs=put(s.logs, follower, (*log, c.record)))

    def divergence(self, log: tuple[Record, ...], source: tuple[Record, ...]) -> int:
        """Where to cut: asked until the epochs agree, as `org.apache.kafka.server.AbstractFetcherThread` does."""
        if "cut-by-epoch" not in self.rules:
            return min(len(log), len(source))
        end = len(log)
        while end:
            epoch = log[end - 1][0]
            found = [number for number, record in enumerate(source) if record[0] <= epoch]
            theirs = max((source[number][0] for number in found), default=-1)
            own_end = max((number + 1 for number in range(end) if log[number][0] <= theirs), default=0)
            cut = min(end, len(found), own_end if theirs < epoch else end)
            if theirs == epoch:
                return cut
            end = cut
        return 0

    # ---- the controller ----------------------------------------------------------------------------------------------------

    def controller_steps(self, s: State) -> Iterator[tuple[str, State]]:
        """Under the metadata lock, each commit and what follows it."""
        m = s.metadata
        if s.slot.version != m.version:
            yield from self.apply(s)
            return  # who comes to the metadata lock applies first
        if s.left[FAILURES]:
            for replica in range(3):
                if replica not in s.failed:
                    yield f"{replica} fails", self.elect(s._replace(failed=s.failed | {replica}, left=self.spend(s, FAILURES)))
        if s.left[RETURNS]:
            for replica in s.failed:
                if not any(w.phase == "inside" and w.place[0] == replica for w in s.writers):
                    yield f"{replica} is back", self.elect(s._replace(failed=s.failed - {replica}, left=self.spend(s, RETURNS)))
        if s.left[REMOVALS]:
            for replica in m.in_sync - {m.leader}:
                changed = m._replace(in_sync=m.in_sync - {replica}, version=m.version + 1)
                yield f"{replica} leaves the in-sync set", s._replace(metadata=changed, left=self.spend(s, REMOVALS), joining=NOBODY)
        yield from self.join(s)

    @staticmethod
    def spend(s: State, what: int) -> tuple[int, ...]:
        return put(s.left, what, s.left[what] - 1)

    def elect(self, s: State) -> State:
        """A replica failed or is back."""
        m = s.metadata
        alive = m.in_sync - s.failed
        candidates = alive if "in-sync-elected" in self.rules else frozenset(range(3)) - s.failed
        leader = m.leader if m.leader in alive else min(candidates, default=NOBODY)
        epoch = m.epoch + (leader != m.leader)
        in_sync = alive or (m.in_sync if leader == NOBODY else frozenset((leader,)))
        return s._replace(metadata=Metadata(leader, epoch, in_sync, m.version + 1), joining=NOBODY)

    def join(self, s: State) -> Iterator[tuple[str, State]]:
        m, slot = s.metadata, s.slot
        if s.joining == NOBODY:
            for replica in frozenset(range(3)) - s.failed - slot.in_sync:
                if m.leader == NOBODY or s.aligned[m.leader] != m.epoch:
                    continue
                if "joins-caught-up" in self.rules and (
                    s.aligned[replica] != slot.epoch or len(s.logs[replica]) < slot.shown
                ):
                    continue
                counted = slot._replace(in_sync=slot.in_sync | {replica}) if "grow-first" in self.rules else slot
                yield f"{replica} is counted", s._replace(slot=counted, joining=replica)
        else:
            replica = s.joining
            if replica in slot.in_sync or "grow-first" not in self.rules:
                changed = m._replace(in_sync=m.in_sync | {replica}, version=m.version + 1)
                yield f"{replica} joins the in-sync set", s._replace(metadata=changed, joining=NOBODY)
            else:
                yield f"{replica} does not join", s._replace(joining=NOBODY)

    def apply(self, s: State) -> Iterator[tuple[str, State]]:
        """Under the partition's lock, store by store."""
        m, slot = s.metadata, s.slot
        if "log-lock-apart" not in self.rules and not self.is_free(s, slot.leader):
            return
        stores = ["in-sync", "leader", "turn", "version"]
        after = s._replace(slot=slot._replace(applying=True))
        for number, store in enumerate(stores):
            slot = after.slot
            if store == "in-sync":
                after = after._replace(slot=slot._replace(in_sync=m.in_sync))
            elif store == "leader":
                after = after._replace(slot=slot._replace(leader=m.leader, epoch=m.epoch))
            elif store == "turn":
                if (m.epoch != s.slot.epoch or (s.slot.applying and "turn-again" in self.rules)) and "turn-stored" in self.rules:
                    after = after._replace(reader=NOBODY)
            else:
                after = after._replace(slot=slot._replace(version=m.version, applying=False))
            if number + 1 < len(stores):
                if s.left[DEATHS]:
                    yield f"who applies dies after: {store}", after._replace(left=self.spend(s, DEATHS))
            else:
                yield f"leader {m.leader}, epoch {m.epoch}, in sync {sorted(m.in_sync)} from now on", after

    # ---- properties --------------------------------------------------------------------------------------------------------

    def check(self, s: State) -> None:
        """What a reader could see is in every log that may lead, for ever the same; so is what was acknowledged."""
        for number, log in enumerate(s.logs):
            if any(after[0] < before[0] for before, after in zip(log, log[1:])):
                raise BrokenError(f"epochs fall in {number}: {log}")
        slot = s.slot
        if slot.leader != NOBODY:
            visible = s.logs[slot.leader][: slot.shown]
            if len(visible) < slot.shown:
                raise BrokenError(f"{slot.leader} leads and ends below the high watermark {slot.shown}")
            for replica in s.metadata.in_sync:
                if s.logs[replica][: slot.shown] != visible:
                    raise BrokenError(f"{replica} may lead and has {s.logs[replica][: slot.shown]}, readers of {slot.leader} see {visible}")
            if s.reader != NOBODY and s.logs[s.reader][: slot.shown] != visible:
                raise BrokenError(f"a reader sees {s.logs[s.reader][: slot.shown]} in {s.reader}, which led once; it is {visible}")
        for number, w in enumerate(s.writers):
            if w.phase == "acked":
                for replica in s.metadata.in_sync:
                    if len(s.logs[replica]) <= w.offset or s.logs[replica][w.offset][1] != number:
                        raise BrokenError(f"what writer {number} wrote was acknowledged, {replica} may lead and does not have it")
        if s.slot.version != s.metadata.version and not any(True for _ in self.apply(s)):
            raise BrokenError("the election waits for a disk that may hang for ever")


INSTANCES = {
    "two failures": State(left=(2, 0, 0, 1)),
    "a failure and a return": State(left=(1, 1, 0, 0)),
    "out and in again": State(left=(1, 0, 1, 0)),
}


def main() -> None:
    without = set(sys.argv[2:] if sys.argv[1:2] == ["--without"] else [])
    for name, start in INSTANCES.items():
        count, way = search(Replication(frozenset(RULES) - without, start), 5_000_000)
        print(f"{name}: {count} states", *way, sep="\n    ", flush=True)


if __name__ == "__main__":
    main()
