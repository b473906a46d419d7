"""Transactions between processes, as two models that are searched exhaustively.

`Commits`: two producers with one transactional id, two helpers, two partitions.  Anyone may stop for ever, or go on much later, between any
two steps: so a producer that was replaced is a zombie, and a helper's marker may come late.  The states are changed by the code's own
table, and a partition decides with the code's own `ProducerStates`.  A step is what happens under one lock.

`Offsets`: a group's partition goes from one member to another while the first has its offset in a transaction (H37).

    python -m model.transactions                  (in tests/) search with every rule in force
    python -m model.transactions --without RULE   the shortest counterexample without it
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from model.search import BrokenError, put, search
from streamlog._coord.transaction import (
    COMPLETE_ABORT,
    COMPLETE_COMMIT,
    ONGOING,
    PREPARING,
    Abort,
    AddPartitions,
    Complete,
    End,
    Init,
    Transaction,
    apply,
)
from streamlog._log.producer_state import ProducerStates
from streamlog.errors import ConcurrentTransactionsError, InvalidProducerEpochError, InvalidTxnStateError, ProducerFencedError

RULES = {
    "prepare-first": "no marker before the Prepare record can be read",
    "marker-above": "a marker is applied if its epoch is above the producer's in the partition; equal with nothing open it is there already (H38)",
    "complete-that-prepare": "Complete is written only over the Prepare that was found (H38)",
    "epoch-rises": "a Prepare raises the epoch, for the markers and for what comes next (KIP-890)",
    "register-first": "a partition is registered before its first record (H39)",
    "all-marked": "all registered partitions get the marker, empty or not (H39)",
    "admit": "the first batch of a transaction in a partition, and the first after anybody's marker, asks for the state under the lock (H39)",
}
OFFSET_RULES = {
    "wait": "a member that needs a start offset waits while one is pending (H37)",
    "expel": "who waits for the offset of a member that is gone aborts its transaction (H37)",
    "member": "offsets are taken from members that own the partition only (H34)",
}

PRODUCER = 1


# ---- commits ---------------------------------------------------------------------------------------------------------------


class Client(NamedTuple):
    """A producer."""

    phase: str = "new"  # new, ready, open, ended, fenced
    epoch: int = -1
    registered: frozenset[int] = frozenset()
    written: tuple[int, int] = (0, 0)  # records, by partition
    admitted: tuple[int, int] = (-1, -1)  # markers that a partition had when the transaction was last known to be open


class Helper(NamedTuple):
    """A process that carries a transaction to its end: the producer's own, or any other."""

    found: Transaction | None = None
    marked: frozenset[int] = frozenset()
    empty: frozenset[int] = frozenset()  # partitions that looked empty (used where a rule is out of force)


class Partition(NamedTuple):
    """The end of a partition's log: what came before its last marker was checked when that came."""

    markers: int = 0
    fenced: int = -1  # epoch of the last marker
    knows: bool = True  # that epoch; else it has expired
    records: tuple[int, ...] = ()  # epochs of the records after it

    def states(self) -> ProducerStates:
        """What the code knows."""
        return _states(self.fenced if self.knows else -1, self.records)


class State(NamedTuple):
    """The state log's last record, two partitions, and who is there."""

    transaction: Transaction = Transaction("t")
    partitions: tuple[Partition, ...] = (Partition(), Partition())
    clients: tuple[Client, ...] = (Client(), Client())
    helpers: tuple[Helper, ...] = (Helper(), Helper())
    decided: frozenset[tuple[int, bool]] = frozenset()  # epoch of a transaction, and what its Prepare said
    left: tuple[int, ...] = (2, 1, 1)  # transactions, aborts from outside, expiries


BEGIN, TIMEOUT, EXPIRE = range(3)


@lru_cache
def _states(fenced: int, records: tuple[int, ...]) -> ProducerStates:
    states = ProducerStates()
    if fenced >= 0:
        states.mark(PRODUCER, fenced, 0, 0)
    for offset, epoch in enumerate(records, 1):
        states.record((PRODUCER, sequence_of(states, epoch), epoch), 1, offset, 0, 1)
    return states


def sequence_of(states: ProducerStates, epoch: int) -> int:
    """Producers count right: sequences are the matter of producers.py."""
    entry = states.entries.get(PRODUCER)
    return entry[1] if entry is not None and entry[0] == epoch else 0


class Commits:
    """The protocol; `rules` are in force."""

    start = State()

    def __init__(self, rules: frozenset[str]) -> None:
        self.rules = rules

    def steps(self, s: State) -> Iterator[tuple[str, State]]:
        for who in range(2):
            yield from self.client_steps(s, who)
        for who in range(2):
            yield from self.helper_steps(s, who)
        if s.left[EXPIRE]:
            for p in range(2):
                if s.partitions[p].knows and s.partitions[p].fenced >= 0 and not s.partitions[p].records:
                    forgot = put(s.partitions, p, s.partitions[p]._replace(knows=False))
                    yield f"{p} forgets the producer", self.use(s, EXPIRE)._replace(partitions=forgot)

    def use(self, s: State, what: int) -> State:
        return s._replace(left=put(s.left, what, s.left[what] - 1))

    def client(self, s: State, who: int, **changes: Any) -> State:
        return s._replace(clients=put(s.clients, who, s.clients[who]._replace(**changes)))

    def fenced(self, s: State, who: int) -> State:
        return s._replace(clients=put(s.clients, who, Client("fenced")))

    @staticmethod
    def canonical(s: State) -> State:
        """Helpers are all alike."""
        first, second = s.helpers
        return s if repr(first) <= repr(second) else s._replace(helpers=(second, first))

    # ---- producers -----------------------------------------------------------------------------------------------------------

    def client_steps(self, s: State, who: int) -> Iterator[tuple[str, State]]:
        client, transaction, name = s.clients[who], s.transaction, "AB"[who]
        if client.phase == "new" and (who == 0 or s.clients[0].phase != "new"):
            yield from self.init(s, who)
        elif client.phase == "ready" and s.left[BEGIN]:
            yield f"{name} begins", self.client(
                self.use(s, BEGIN), who, phase="open", registered=frozenset(), written=(0, 0), admitted=(-1, -1)
            )  # fmt: skip
        elif client.phase == "open":
            for p in range(2):
                if p not in client.registered:
                    event = AddPartitions(who + 1, PRODUCER, client.epoch, frozenset({(b"", p)}), 0, 0)
                    yield from self.asked(s, who, event, f"{name} registers {p}", registered=client.registered | {p})
                if client.written[p] < 2 - p and (p in client.registered or "register-first" not in self.rules):
                    yield self.write(s, who, p)
            if any(client.written):
                for commit in (True, False):
                    end = End(who + 1, PRODUCER, client.epoch, commit, 0, 0)
                    done = Client("ended", client.epoch)._asdict()
                    yield from self.asked(s, who, end, f"{name} {'commits' if commit else 'aborts'}", **done)
        elif client.phase == "ended" and transaction.state in (COMPLETE_COMMIT, COMPLETE_ABORT) and transaction.owner == who + 1:
            yield f"{name} is told", self.client(s, who, phase="ready", epoch=transaction.epoch)

    def init(self, s: State, who: int) -> Iterator[tuple[str, State]]:
        transaction = s.transaction
        try:
            after = apply(transaction, Init(who + 1, 0, "", 10, False, 1, 0, PRODUCER))
        except ConcurrentTransactionsError:
            if transaction.state == ONGOING:
                yield f"{'AB'[who]} ends what it finds", self.aborted(s)
            return  # somebody has to carry out what is prepared first
        yield f"{'AB'[who]} takes the id", self.client(s._replace(transaction=after), who, phase="ready", epoch=after.epoch)

    def asked(self, s: State, who: int, event: Any, name: str, **changes: Any) -> Iterator[tuple[str, State]]:
        try:
            after = apply(s.transaction, event)
        except (ProducerFencedError, InvalidTxnStateError):
            yield f"{name}: fenced", self.fenced(s, who)
        except ConcurrentTransactionsError:
            return
        else:
            yield name, self.client(self.prepared(s, after), who, **changes)

    def prepared(self, s: State, after: Transaction) -> State:
        if after.state in PREPARING and s.transaction.state == ONGOING:
            s = s._replace(decided=s.decided | {after.ended[1:]})
            if "epoch-rises" not in self.rules:
                after = after._replace(epoch=s.transaction.epoch)
        return s._replace(transaction=after)

    def write(self, s: State, who: int, p: int) -> tuple[str, State]:
        """Under the partition's lock."""
        client, transaction, partition = s.clients[who], s.transaction, s.partitions[p]
        name, markers = f"{'AB'[who]} writes to {p}", partition.markers
        if "admit" in self.rules and client.admitted[p] != markers:
            known = (b"", p) in transaction.partitions or "register-first" not in self.rules
            begun = transaction.state == ONGOING or "register-first" not in self.rules
            if not (begun and known and transaction.owner == who + 1 and transaction.epoch == client.epoch):
                return f"{name}: fenced", self.fenced(s, who)
        states = partition.states()
        try:
            states.check((PRODUCER, sequence_of(states, client.epoch), client.epoch), 1)
        except InvalidProducerEpochError:
            return f"{name}: fenced", self.fenced(s, who)
        s = s._replace(partitions=put(s.partitions, p, partition._replace(records=(*partition.records, client.epoch))))
        return name, self.client(
            s, who, written=put(client.written, p, client.written[p] + 1), admitted=put(client.admitted, p, markers)
        )  # fmt: skip

    # ---- helpers -------------------------------------------------------------------------------------------------------------

    def aborted(self, s: State) -> State:
        return self.prepared(s, apply(s.transaction, Abort(PRODUCER, s.transaction.epoch, 0)))

    def helper_steps(self, s: State, who: int) -> Iterator[tuple[str, State]]:
        helper, transaction, name = s.helpers[who], s.transaction, f"helper {who}"

        def to(**changes: Any) -> tuple[Any, ...]:
            return put(s.helpers, who, helper._replace(**changes))

        if helper.found is None:
            if transaction.state == ONGOING and s.left[TIMEOUT]:
                if "all-marked" not in self.rules and not helper.empty:
                    empty = frozenset(p for p in range(2) if not s.partitions[p].records)
                    yield f"{name} looks around", s._replace(helpers=to(empty=empty))
                yield f"{name} aborts what hangs", self.aborted(self.use(s, TIMEOUT))
            if transaction.state in PREPARING:
                yield f"{name} reads the Prepare", s._replace(helpers=to(found=transaction, marked=frozenset()))
            if "prepare-first" not in self.rules and transaction.state == ONGOING:
                early = apply(transaction, End(transaction.owner, PRODUCER, transaction.epoch, True, 0, 0))
                yield f"{name} begins to commit", s._replace(helpers=to(found=early, marked=frozenset()))
            return
        found = helper.found
        for p in sorted({p for _, p in found.partitions} - helper.marked):
            if p in helper.empty:
                yield f"{name} passes {p} over", s._replace(helpers=to(marked=helper.marked | {p}))
                continue
            partition = self.marked(s, p, found)
            yield f"{name} marks {p}", s._replace(partitions=put(s.partitions, p, partition), helpers=to(marked=helper.marked | {p}))
        if helper.marked >= {p for _, p in found.partitions}:
            after = self.completed(transaction, found)
            yield f"{name} completes", s._replace(
                transaction=after or transaction, helpers=to(found=None, marked=frozenset(), empty=frozenset())
            )  # fmt: skip

    def marked(self, s: State, p: int, found: Transaction) -> Partition:
        """A partition after a marker came."""
        partition = s.partitions[p]
        if "marker-above" in self.rules and "epoch-rises" in self.rules:
            try:
                if not partition.states().check_marker(PRODUCER, found.epoch):
                    return partition
            except InvalidProducerEpochError:
                return partition  # it comes too late
        decided = dict(s.decided)
        for epoch in partition.records:
            if decided.get(epoch) != found.ended[2]:
                kind = "commit" if found.ended[2] else "abort"
                raise BrokenError(f"{p}: transaction {epoch} is ended by {kind}, decided was {decided.get(epoch)}")
        return Partition(partition.markers + 1, found.epoch)

    def completed(self, transaction: Transaction, found: Transaction) -> Transaction | None:
        if "complete-that-prepare" not in self.rules:
            return apply(found, Complete(found, 0))
        try:
            return apply(transaction, Complete(found, 0))
        except (ConcurrentTransactionsError, InvalidTxnStateError):
            return None

    # ---- properties ----------------------------------------------------------------------------------------------------------

    @staticmethod
    def check(s: State) -> None:
        transaction = s.transaction
        lives = transaction.epoch if transaction.state == ONGOING else transaction.ended[1] if transaction.state in PREPARING else None
        for p, partition in enumerate(s.partitions):
            for epoch in partition.records:
                if epoch < partition.fenced:
                    raise BrokenError(f"{p}: a record of epoch {epoch} after a marker of epoch {partition.fenced}")
                if epoch != lives:
                    raise BrokenError(f"{p}: transaction {epoch} hangs; the id is {transaction.state} {transaction.epoch}")


# ---- offsets ---------------------------------------------------------------------------------------------------------------


class Groups(NamedTuple):
    """One partition of a topic, read by A and then by B; `results` are the inputs whose results count, in order."""

    a: str = "reads"  # reads, holds (records in hand), sent (offsets), gone (committed, or fenced); it may stop anywhere
    b: str = "away"  # away, owner, begun, done
    a_is_member: bool = True
    open: bool = False  # A's transaction, which holds its results
    pending: bool = False  # and its offset
    committed: int = 0
    begins: int = -1  # where B begins
    results: tuple[int, ...] = ()


class Offsets:
    """A processes record 0 in a transaction; B takes the partition over and processes from where it begins."""

    start = Groups()

    def __init__(self, rules: frozenset[str]) -> None:
        self.rules = rules

    def steps(self, s: Groups) -> Iterator[tuple[str, Groups]]:
        if s.a == "reads" and s.a_is_member:
            yield "A reads the record", s._replace(a="holds", open=True)
        if s.a == "holds" and s.open and (s.a_is_member or "member" not in self.rules):
            yield "A sends its offset", s._replace(a="sent", pending=True)
        if s.a == "sent" and s.open:
            yield "A commits", s._replace(
                a="gone", open=False, pending=False, committed=max(s.committed, int(s.pending)), results=(*s.results, 0)
            )  # fmt: skip
        if s.a_is_member:
            yield "A is expired, B owns the partition", s._replace(a_is_member=False, b="owner")
        if s.b == "owner":
            if not s.pending or "wait" not in self.rules:
                yield "B begins", s._replace(b="begun", begins=s.committed)
            elif "expel" in self.rules:
                yield "B aborts A's transaction", s._replace(open=False, pending=False)
        if s.b == "begun":
            yield "B processes", s._replace(b="done", results=(*s.results, *range(s.begins, 1)), committed=1)

    @staticmethod
    def canonical(s: Groups) -> Groups:
        """As it is."""
        return s

    def check(self, s: Groups) -> None:
        if len(set(s.results)) != len(s.results):
            raise BrokenError("the record's results are there twice")
        if s.b == "owner" and not any(name.startswith("B") for name, _ in self.steps(s)):
            raise BrokenError("B waits for A, which may have stopped for ever")


def main() -> None:
    without = set(sys.argv[2:] if sys.argv[1:2] == ["--without"] else [])
    for model in (Commits(frozenset(RULES) - without), Offsets(frozenset(OFFSET_RULES) - without)):
        count, way = search(model)
        print(f"{type(model).__name__}: {count} states", *way, sep="\n    ")


if __name__ == "__main__":
    main()
