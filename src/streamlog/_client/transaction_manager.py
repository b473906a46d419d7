"""A producer's side of its transactions (Kafka's TransactionManager): what may be called when, and what the log hears of it.

    UNINITIALIZED --init--> READY --begin--> IN_TRANSACTION --commit--> COMMITTING --> READY
                                             IN_TRANSACTION --abort---> ABORTING ----> READY
                                             IN_TRANSACTION --a record failed--> ABORTABLE_ERROR --abort--> ABORTING
                                             any --fenced--> FATAL_ERROR: nothing but `close`

COMMITTING and ABORTING stay where the call was broken off: only the same call goes on then.  A partition is registered before its first
batch of the transaction, with all others that have records waiting, in one record (H39).
"""

from __future__ import annotations

import weakref
from _thread import RLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Any

    from streamlog._client.batch import RecordBatch
    from streamlog._client.groups import Groups
    from streamlog._client.lane import Lane
    from streamlog._client.writer import BatchWriter
    from streamlog._coord.offsets import CommittedOffset
    from streamlog._coord.transaction import Partition, Transaction
    from streamlog.producer import Producer
    from streamlog.types import GroupMetadata

from streamlog._client.transactions import Transactions
from streamlog._coord.transaction import ONGOING, PREPARING, AddPartitions, End, Init, apply
from streamlog._format.batch import NO_PRODUCER, TRANSACTIONAL
from streamlog._log.partition import Pending
from streamlog._log.producer_state import SEQUENCES
from streamlog._os import process
from streamlog._os.clock import monotonic
from streamlog.errors import (
    AbortableTransactionError,
    FencedError,
    InvalidProducerEpochError,
    InvalidStateError,
    InvalidTxnStateError,
    ProducerFencedError,
    TransactionAbortedError,
)
from streamlog.types import TopicPartition

UNINITIALIZED, READY, IN_TRANSACTION, COMMITTING, ABORTING, ABORTABLE_ERROR, FATAL_ERROR = (
    "not initialised", "ready", "in a transaction", "committing", "aborting", "failed, to be aborted", "fenced",
)  # fmt: skip
_PATIENCE = 0.1  # seconds that an append under its partition's lock waits for a fold of states


class TransactionManager:
    """Belongs to one producer; like that it may be used by any number of threads."""

    def __init__(self, producer: Producer, transactions: Transactions, groups: Groups, transactional_id: str) -> None:
        self._producer, self._transactions, self._groups, self._id = producer, transactions, groups, transactional_id
        self._clock = transactions.clock
        self.state = UNINITIALIZED
        self.number = 0
        """Of the transaction; batches know theirs."""
        self.error: BaseException | None = None  # what dooms the transaction, or the producer
        self._owner = 0
        self._producer_id = self._epoch = -1
        self._current = (-1, -1)  # producer id and epoch of the transaction
        self._lock = RLock()  # for registering
        self._registered: frozenset[Partition] = frozenset()
        self._begun = False  # something was, or may have been, registered
        self.writers: weakref.WeakSet[BatchWriter] = weakref.WeakSet()
        """Batch writers that are open."""
        self._offsets_next: dict[int, int] = {}  # sequences in `__consumer_offsets`, by partition
        self._finalizer: Any = None

    # ---- what the user calls ---------------------------------------------------------------------------------------------------

    def init(self, timeout: float) -> None:
        """Take the id over."""
        self._expect("init_transactions", UNINITIALIZED)
        config = self._producer.config
        if not self._owner:
            self._owner = self._transactions.take_owner()  # the lock first, the name second (H23)
            self._finalizer = weakref.finalize(self, self._transactions.free_owner, self._owner)
            self._finalizer.atexit = False  # the kernel does it
        home = self._producer._home
        event = Init(
            self._owner, process.pid(), config.client_id, config.transaction_timeout_ms, config.durability == "fsync",
            home.fs.boot_id(), self._clock.now_ms(),
        )  # fmt: skip
        self._become(self._transactions.init(self._id, event, timeout))
        self.state = READY

    def begin(self) -> None:
        """Records may be sent from now on."""
        self._expect("begin_transaction", READY)
        self.number += 1
        self.error, self._registered, self._begun, self._offsets_next = None, frozenset(), False, {}
        self._current = self._producer_id, self._epoch
        self._producer._targets = self._producer._known_targets
        self.state = IN_TRANSACTION

    def commit(self, timeout: float) -> None:
        """Write what was sent, then make all of it count."""
        deadline = monotonic() + timeout
        self._expect("commit_transaction", IN_TRANSACTION, COMMITTING)
        if self.state == IN_TRANSACTION:
            if self.writers:
                raise InvalidTxnStateError("commit_transaction is not possible: a batch() of this transaction is still open")
            self._stop()
            try:
                self._producer.flush(_left(deadline))
            finally:
                if self.state == IN_TRANSACTION and self.error is None:
                    self._producer._targets = self._producer._known_targets
            if self.error is not None:
                raise self.error
            with self._lock:  # not while offsets are being sent
                self._stop()
                self.state = COMMITTING
        self._end(deadline, commit=True)

    def abort(self, timeout: float) -> None:
        """Drop what is not written yet; what is written never counts."""
        deadline = monotonic() + timeout
        self._expect("abort_transaction", IN_TRANSACTION, ABORTABLE_ERROR, ABORTING)
        with self._lock:
            self._stop()
            self.state = ABORTING
        for lane in list(self._producer._active):
            lane.tries = 0
        self._producer.flush(_left(deadline))
        self._end(deadline, commit=False)

    def _stop(self) -> None:
        """No more records: open batches are closed, and none is begun."""
        producer = self._producer
        if producer._is_entered():
            raise InvalidStateError("a signal handler, or a finalizer, inside this producer's `send` cannot end its transaction; it can after it")
        producer._targets = {}
        producer._inside(producer._end_all)

    def _end(self, deadline: float, *, commit: bool) -> None:
        """Prepare, the commit point; then markers and Complete, which anybody else would write if we could not."""
        if self._begun:
            if commit and self._producer._fsync:
                self._transactions.sync(self._registered, _left(deadline))  # the offsets; records were synced as they were written
            event = End(self._owner, *self._current, commit, self._clock.now_ms(), self._clock.monotonic_ms())
            try:
                after = self._transactions.change(self._id, _left(deadline), lambda found: self._ended(found, event))
                if after.state in PREPARING:
                    after = self._transactions.finish(after, _left(deadline))
            except FencedError as error:
                self._fence(error)
                raise
            self._become(after)
        self._begun = False
        if self.state != FATAL_ERROR:
            self.state = READY

    def _ended(self, found: Transaction, event: End) -> Transaction:
        """The id after its End; the same where nothing came to be registered."""
        mine = (found.owner, found.producer_id, found.epoch) == event[:3]
        return found if mine and found.state not in (ONGOING, *PREPARING) else apply(found, event)

    def close(self, timeout: float) -> None:
        """Abort what is open, and let the id go."""
        try:
            if self.state in (IN_TRANSACTION, ABORTABLE_ERROR, ABORTING):
                self.abort(timeout)
            elif self.state == COMMITTING:
                self.commit(timeout)
        except FencedError:
            pass  # others have ended it, or will
        finally:
            self.state = FATAL_ERROR
            if self._finalizer is not None:
                self._finalizer()

    # ---- states ----------------------------------------------------------------------------------------------------------------

    def _expect(self, what: str, *states: str) -> None:
        if self.state == FATAL_ERROR and self.error is not None:
            raise ProducerFencedError(str(self.error)) from self.error
        if self.state == ABORTABLE_ERROR and ABORTABLE_ERROR not in states and self.error is not None:
            if what == "commit_transaction":
                raise self.error
            raise InvalidTxnStateError(f"{what} is not possible: the transaction has failed ({self.error}); call abort_transaction()")
        if self.state not in states:
            raise InvalidTxnStateError(f"{what} is not possible: the producer of transactional_id={self._id!r} is {self.state}")

    def check_sending(self) -> None:
        """Raise where no record may be sent."""
        if self.state == ABORTABLE_ERROR:
            raise AbortableTransactionError(f"the transaction has failed ({self.error}); call abort_transaction()") from self.error
        self._expect("send", IN_TRANSACTION)
        if self._producer._targets is not self._producer._known_targets:
            raise InvalidTxnStateError("send is not possible: the transaction is being committed by another thread")

    def fail(self, error: BaseException) -> None:
        """A record was not written: the transaction cannot be committed any more."""
        if isinstance(error, FencedError):
            self._fence(error)
        elif self.state == IN_TRANSACTION:
            self.error, self.state = error, ABORTABLE_ERROR
            self._producer._targets = {}

    def refused(self, error: BaseException) -> None:
        """`send` did not take a record, for a reason that is not a call out of turn."""
        if not isinstance(error, (InvalidStateError, AbortableTransactionError, FencedError)):
            self.fail(error)

    def _fence(self, error: BaseException) -> None:
        self.error, self.state = error, FATAL_ERROR
        self._producer._targets = {}

    def _become(self, found: Transaction) -> None:
        """This is the id now."""
        self._producer_id, self._epoch = found.producer_id, found.epoch
        if found.owner != self._owner:  # the commit counts; what comes after it is another's
            self._fence(ProducerFencedError(f"transactional_id={self._id!r} is not this producer's any more: another producer has taken it over"))

    # ---- writing ---------------------------------------------------------------------------------------------------------------

    def enlist(self, lane: Lane, batch: RecordBatch, timeout: float) -> None:
        """Make a batch one of the transaction, before it is appended.

        Raises: TransactionAbortedError (its transaction is not open any more), ProducerFencedError, StreamlogTimeoutError.
        """
        if batch.transaction != self.number or self.state not in (IN_TRANSACTION, COMMITTING):
            raise TransactionAbortedError(f"the transaction was aborted before this record was written to {lane.name}")
        key = lane.log.topic_id, lane.partition
        if key not in self._registered:
            waiting = [other for other in list(self._producer._active) if not other.gone]
            self._register({key, *((other.log.topic_id, other.partition) for other in waiting)}, timeout)
        batch.attributes |= TRANSACTIONAL
        if batch.producer[0] < 0:
            producer_id, sequence, epoch = lane.next
            if (producer_id, epoch) != self._current:
                sequence, lane.fences = 0, -1
            batch.producer = self._current[0], sequence, self._current[1]
        producer_id, sequence, epoch = batch.producer
        lane.next = producer_id, sequence + batch.count & SEQUENCES, epoch

    def _register(self, partitions: set[Partition], timeout: float) -> None:
        with self._lock:
            event = AddPartitions(self._owner, *self._current, frozenset(partitions), self._clock.now_ms(), self._clock.monotonic_ms())
            self._begun = True  # first: whether it is, nobody knows where this is broken off
            after = self._transactions.change(self._id, timeout, lambda found: apply(found, event))
            self._registered = after.partitions

    def admit(self, topic_id: bytes, partition: int) -> None:
        """Under a partition's lock: is the transaction still open, this partition in it?  Else its marker is, or will be, there (H39).

        Raises: ProducerFencedError.
        """
        found = self._transactions.current(self._id, _PATIENCE)
        mine = (found.owner, found.producer_id, found.epoch) == (self._owner, *self._current)
        if not mine or found.state != ONGOING or (topic_id, partition) not in found.partitions:
            raise ProducerFencedError(
                f"transactional_id={self._id!r}: the transaction is not open any more: it timed out, or another producer has taken the id over"
            )

    # ---- offsets ---------------------------------------------------------------------------------------------------------------

    def send_offsets(
        self, offsets: Mapping[tuple[bytes, int], CommittedOffset], noted: Mapping[TopicPartition, int], metadata: GroupMetadata, timeout: float
    ) -> None:
        """Commit a group's offsets with the transaction.  The group is asked now whether the member may (H34).

        Raises: CommitFailedError and its leaves, FencedInstanceIdError: the transaction can only be aborted then.
        """
        deadline = monotonic() + timeout
        with self._lock:
            self.check_sending()
            self._send_offsets(offsets, noted, metadata, deadline)

    def _send_offsets(
        self, offsets: Mapping[tuple[bytes, int], CommittedOffset], noted: Mapping[TopicPartition, int], metadata: GroupMetadata, deadline: float
    ) -> None:
        coordinator = self._groups.coordinator(metadata.group_id, _left(deadline))
        log = coordinator.offsets.log
        try:
            if (log.topic_id, log.partition) not in self._registered:
                self._register({(log.topic_id, log.partition)}, _left(deadline))
        except FencedError as error:
            self._fence(error)
            raise
        try:
            coordinator.commit_in_transaction(metadata, noted, offsets, _Offsets(self, log.topic_id, log.partition), _left(deadline))
        except InvalidProducerEpochError as error:
            fenced = ProducerFencedError(f"transactional_id={self._id!r}: {error}")
            self._fence(fenced)
            raise fenced from error
        except BaseException as error:
            self.fail(error if isinstance(error, Exception) else AbortableTransactionError(f"send_offsets was broken off: {error!r}"))
            raise

    def next_offsets(self, partition: int, count: int) -> tuple[int, int, int]:
        """The place of a batch of offsets in the producer's sequence.  Under the partition's lock."""
        sequence = self._offsets_next.get(partition, 0)
        self._offsets_next[partition] = sequence + count & SEQUENCES
        return self._current[0], sequence, self._current[1]


class _Offsets(Pending):
    """Offsets on their way."""

    def __init__(self, manager: TransactionManager, topic_id: bytes, partition: int) -> None:
        self._manager, self._topic_id, self._partition = manager, topic_id, partition

    def admit(self, fences: int) -> None:  # noqa: ARG002  (asked for each time)
        self._manager.admit(self._topic_id, self._partition)
        if self.producer is NO_PRODUCER:
            self.producer = self._manager.next_offsets(self._partition, self.count)


class TransactionContext:
    """`with producer.transaction():` commits at the end of the block, and aborts where an exception ends it."""

    def __init__(self, producer: Producer, manager: TransactionManager) -> None:
        self._producer, self._manager = producer, manager

    def __enter__(self) -> Producer:
        if self._manager.state == UNINITIALIZED:
            self._producer.init_transactions()
        self._producer.begin_transaction()
        return self._producer

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            try:
                self._producer.commit_transaction()
            except BaseException:
                self._abort_quietly()
                raise
        else:
            self._abort_quietly()

    def _abort_quietly(self) -> None:
        """Abort where that is still possible; what the block raised is what its caller sees."""
        if self._manager.state in (IN_TRANSACTION, ABORTABLE_ERROR, ABORTING):
            try:
                self._producer.abort_transaction()
            except Exception:
                import logging

                logging.getLogger("streamlog").exception("abort of a transaction of %r", self._producer)


def _left(deadline: float) -> float:
    return max(0.0, deadline - monotonic())
