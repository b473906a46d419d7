"""The coordinator of a transactional id, as a transition table: pure, with time passed in.

The states are Kafka's.  A transaction is begun by registering the first partition (`AddPartitions`); the record of a Prepare state is its
commit point, after which anybody may write the markers and then complete it.  Each transaction, and each `init_transactions`, is of an
epoch of its own (KIP-890): a Prepare raises it, so that its markers fence what is written late.

Who may act for an id is said by `owner`, a random number that a producer takes at `init_transactions`: it is also the byte of
`transactions.lock` that this producer holds as long as it lives.  An abort that the producer did not ask for leaves the id without an owner,
and that producer is fenced for good.

`TABLE` has a row for each event, as _coord/group.py does for groups.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

from streamlog.errors import ConcurrentTransactionsError, InvalidTxnStateError, ProducerFencedError
from streamlog.types import NamedTuple

EMPTY, ONGOING, PREPARE_COMMIT, PREPARE_ABORT, COMPLETE_COMMIT, COMPLETE_ABORT, DEAD = STATES = (
    "Empty", "Ongoing", "PrepareCommit", "PrepareAbort", "CompleteCommit", "CompleteAbort", "Dead",
)  # fmt: skip
PREPARING = (PREPARE_COMMIT, PREPARE_ABORT)
COMPLETED = (COMPLETE_COMMIT, COMPLETE_ABORT)
LAST_EPOCH = 32_766  # the one after it is for a marker alone
NOBODY = 0

Partition = tuple[bytes, int]  # topic id, partition


class Ended(NamedTuple):
    """A transaction of which the outcome is decided."""

    producer_id: int = -1
    epoch: int = -1
    commit: bool = False


class Transaction(NamedTuple):
    """What is known of a transactional id.  Replaced, never changed."""

    transactional_id: str
    state: str = DEAD
    producer_id: int = -1
    epoch: int = -1  # of the transaction that is open; once it is prepared, of its markers and of the next transaction
    owner: int = NOBODY
    run: int = 0  # of the live state (`run/`) in which the producer id was given: another after a reboot, and in a copy (H31)
    pid: int = 0
    client_id: str = ""
    timeout_ms: int = 0
    deadline_ms: int = 0  # monotonic, of the boot: an open transaction is aborted then
    started_ms: int = 0  # wall clock
    updated_ms: int = 0
    synced: bool = False  # durability="fsync": records and offsets, Prepare and markers are each on the disk before what comes next
    ended: Ended = Ended()  # the transaction that was prepared last
    partitions: frozenset[Partition] = frozenset()
    """Those that get a marker."""

    @property
    def unmarked(self) -> tuple[int, int] | None:
        """Producer id and epoch of the transaction that may be open in its partitions."""
        if self.state == ONGOING:
            return self.producer_id, self.epoch
        return self.ended[:2] if self.state in PREPARING else None


# ---- events ----------------------------------------------------------------------------------------------------------------


class Init(NamedTuple):
    """A producer takes the id over.  `new_producer_id` is used where there is none yet, or the present one cannot be gone on with."""

    owner: int
    pid: int
    client_id: str
    timeout_ms: int
    synced: bool
    run: int
    now_ms: int
    new_producer_id: int = -1


class AddPartitions(NamedTuple):
    """The producer is about to write to partitions; with the first a transaction begins.  Times: wall clock, and monotonic."""

    owner: int
    producer_id: int
    epoch: int
    partitions: frozenset[Partition]
    now_ms: int
    monotonic_ms: int


class End(NamedTuple):
    """The producer commits or aborts."""

    owner: int
    producer_id: int
    epoch: int
    commit: bool
    now_ms: int
    monotonic_ms: int


class Abort(NamedTuple):
    """Others end a transaction that they found open: its producer is dead, hangs, was expired with its group's member, or is replaced."""

    producer_id: int
    epoch: int
    now_ms: int


class Complete(NamedTuple):
    """All markers of a Prepare that was found are written."""

    found: Transaction
    now_ms: int
    new_producer_id: int = -1  # where the epochs of the old one are used up


class Fence(NamedTuple):
    """Nothing is open; whose id it is may use it no more."""

    now_ms: int


class Expire(NamedTuple):
    """Nobody has used the id for `transactional_id_expiration_ms`."""


# ---- guards ----------------------------------------------------------------------------------------------------------------


def is_owner(transaction: Transaction, event: Any) -> None:
    """Whose id was taken over, or whose transaction was aborted by others, is fenced for good."""
    if event.owner != transaction.owner:
        raise fenced(transaction)


def fenced(transaction: Transaction) -> ProducerFencedError:
    """What a producer is told that does not have the id any more."""
    why = "another has taken it over" if transaction.owner != NOBODY else "its transaction timed out, or was ended from outside"
    return ProducerFencedError(f"transactional_id={transaction.transactional_id!r} is not this producer's any more: {why}; make a new one")


def is_in_time(transaction: Transaction, event: Any) -> None:
    """After its time-out a transaction only aborts, whoever is first to say so."""
    if transaction.state == ONGOING and event.monotonic_ms > transaction.deadline_ms:
        raise ProducerFencedError(
            f"transactional_id={transaction.transactional_id!r}: the transaction took longer than transaction_timeout_ms={transaction.timeout_ms}; "
            "close this producer and make a new one"
        )


def is_current(transaction: Transaction, event: Any) -> None:
    """The transaction is the one that the event speaks of."""
    if (event.producer_id, event.epoch) != (transaction.producer_id, transaction.epoch):
        raise ConcurrentTransactionsError(f"transactional_id={transaction.transactional_id!r} is at epoch {transaction.epoch}, not {event.epoch}")


def ends_it(transaction: Transaction, event: End) -> None:
    """Ending is idempotent, for the same outcome and the same transaction only."""
    if transaction.state == ONGOING:
        is_current(transaction, event)
    elif transaction.ended != (event.producer_id, event.epoch, event.commit):
        raise InvalidTxnStateError(
            f"transactional_id={transaction.transactional_id!r} has no transaction of epoch {event.epoch} to end: its state is {transaction.state}"
        )


def is_still_that_prepare(transaction: Transaction, event: Complete) -> None:
    """A helper that was stopped must not overwrite what came after (H38)."""
    if transaction != event.found:
        raise ConcurrentTransactionsError(f"transactional_id={transaction.transactional_id!r} went on meanwhile")


# ---- effects ---------------------------------------------------------------------------------------------------------------


def needs_producer_id(transaction: Transaction, run: int) -> bool:
    """Whether `Init` takes a new producer id: the first time; after a reboot, or in a copy (states that data knows may be lost); or where
    the epochs are used up.
    """
    return transaction.producer_id < 0 or transaction.run != run or transaction.epoch >= LAST_EPOCH


def _init(transaction: Transaction, event: Init) -> Transaction:
    producer_id, epoch = transaction.producer_id, transaction.epoch + 1
    if needs_producer_id(transaction, event.run):
        producer_id, epoch = event.new_producer_id, 0
    return transaction._replace(
        state=EMPTY, producer_id=producer_id, epoch=epoch, owner=event.owner, run=event.run, pid=event.pid, client_id=event.client_id,
        timeout_ms=event.timeout_ms, synced=event.synced, updated_ms=event.now_ms,
    )  # fmt: skip


def _add_partitions(transaction: Transaction, event: AddPartitions) -> Transaction:
    if transaction.state == ONGOING:
        partitions = transaction.partitions | event.partitions
        return transaction if partitions == transaction.partitions else transaction._replace(partitions=partitions, updated_ms=event.now_ms)
    return transaction._replace(
        state=ONGOING, partitions=event.partitions, started_ms=event.now_ms, updated_ms=event.now_ms,
        deadline_ms=event.monotonic_ms + transaction.timeout_ms,
    )  # fmt: skip


def _end(transaction: Transaction, event: End) -> Transaction:
    if transaction.state != ONGOING:
        return transaction  # a repetition
    return _prepared(transaction, event.now_ms, commit=event.commit)


def _abort(transaction: Transaction, event: Abort) -> Transaction:
    return _prepared(transaction, event.now_ms, commit=False)._replace(owner=NOBODY)


def _prepared(transaction: Transaction, now_ms: int, *, commit: bool) -> Transaction:
    return transaction._replace(
        state=PREPARE_COMMIT if commit else PREPARE_ABORT, ended=Ended(transaction.producer_id, transaction.epoch, commit),
        epoch=transaction.epoch + 1, updated_ms=now_ms,
    )  # fmt: skip


def _complete(transaction: Transaction, event: Complete) -> Transaction:
    producer_id, epoch = transaction.producer_id, transaction.epoch
    if epoch > LAST_EPOCH:
        producer_id, epoch = event.new_producer_id, 0
    return transaction._replace(
        state=COMPLETE_COMMIT if transaction.ended.commit else COMPLETE_ABORT, producer_id=producer_id, epoch=epoch, partitions=frozenset(),
        updated_ms=event.now_ms,
    )  # fmt: skip


def _fence(transaction: Transaction, event: Fence) -> Transaction:
    return transaction._replace(state=EMPTY, owner=NOBODY, updated_ms=event.now_ms)


def _expire(transaction: Transaction, _: Expire) -> Transaction:
    return Transaction(transaction.transactional_id)


# ---- the table -------------------------------------------------------------------------------------------------------------


class Transition(NamedTuple):
    """A row: where it may start and may lead, what refuses it, what it does."""

    edges: Mapping[str, tuple[str, ...]]
    guards: tuple[Callable[[Transaction, Any], None], ...]
    effect: Callable[[Transaction, Any], Transaction]


_IDLE = (EMPTY, *COMPLETED)

TABLE: dict[type, Transition] = {
    Init: Transition(dict.fromkeys((*_IDLE, DEAD), (EMPTY,)), (), _init),
    AddPartitions: Transition(dict.fromkeys((*_IDLE, ONGOING), (ONGOING,)), (is_owner, is_current, is_in_time), _add_partitions),
    End: Transition(
        {ONGOING: PREPARING, **{state: (state,) for state in (*PREPARING, *COMPLETED)}}, (is_owner, ends_it, is_in_time), _end
    ),
    Abort: Transition({ONGOING: (PREPARE_ABORT,)}, (is_current,), _abort),
    Complete: Transition({PREPARE_COMMIT: (COMPLETE_COMMIT,), PREPARE_ABORT: (COMPLETE_ABORT,)}, (is_still_that_prepare,), _complete),
    Fence: Transition(dict.fromkeys(_IDLE, (EMPTY,)), (), _fence),
    Expire: Transition(dict.fromkeys(_IDLE, (DEAD,)), (), _expire),
}  # fmt: skip


def apply(transaction: Transaction, event: Any) -> Transaction:
    """The transactional id after an event.  Raises what refuses it; nothing is changed then.

    Raises: ProducerFencedError, InvalidTxnStateError, ConcurrentTransactionsError (another process is at it: look again).
    """
    row = TABLE[type(event)]
    if transaction.state not in row.edges:
        _refuse(transaction, event)
    for guard in row.guards:
        guard(transaction, event)
    after = row.effect(transaction, event)
    assert after.state in row.edges[transaction.state], f"{type(event).__name__}: {transaction.state} -> {after.state}"
    return after


def _refuse(transaction: Transaction, event: Any) -> NoReturn:
    what = f"transactional_id={transaction.transactional_id!r}: {type(event).__name__} is not possible, its state is {transaction.state}"
    if isinstance(event, (AddPartitions, End)):
        is_owner(transaction, event)
        if transaction.state not in PREPARING:
            raise InvalidTxnStateError(what)
    raise ConcurrentTransactionsError(what)  # somebody else has done it, or is doing something first
