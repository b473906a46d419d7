"""A producer's side of its transactions (Kafka's TransactionManager): what may be called when, and what the log hears of it.

    UNINITIALIZED --init--> READY --begin--> IN_TRANSACTION --commit--> FLUSHING --> COMMITTING --> READY
                                             IN_TRANSACTION --abort---------------> ABORTING ----> READY
                                             IN_TRANSACTION, FLUSHING --a record failed--> ABORTABLE_ERROR --abort--> ABORTING
                                             any --fenced--> FATAL_ERROR: nothing but `close`

COMMITTING and ABORTING stay where the call was broken off: only the same call goes on then.  A partition is registered before its first
batch of the transaction, with all others that have records waiting, in one record (H39).
"""

from __future__ import annotations

import weakref
from _thread import RLock, allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from streamlog._client.batch import RecordBatch
    from streamlog._client.groups import Groups
    from streamlog._client.lane import Lane
    from streamlog._client.offsets import Offsets
    from streamlog._client.writer import BatchWriter
    from streamlog._coord.transaction import Partition, Transaction
    from streamlog.producer import Producer
    from streamlog.types import GroupMetadata

from streamlog._client.transaction_coordinator import SMALL_GAP, TransactionCoordinator
from streamlog._coord.group import Commit
from streamlog._coord.transaction import ONGOING, PREPARING, AddPartitions, End, Init, apply, fenced
from streamlog._format.batch import NO_PRODUCER, TRANSACTIONAL
from streamlog._log.pending import Pending
from streamlog._log.producer_state import SEQUENCES, BehindError
from streamlog._os import process
from streamlog._os.clock import left, monotonic
from streamlog.errors import (
    AbortableTransactionError,
    FencedError,
    InvalidProducerEpochError,
    InvalidStateError,
    InvalidTxnStateError,
    ProducerFencedError,
    StreamlogTimeoutError,
    TransactionAbortedError,
)
from streamlog.types import TopicPartition

UNINITIALIZED = "not initialised: call init_transactions()"
READY = "ready, and in no transaction: call begin_transaction()"
IN_TRANSACTION = "in a transaction"
FLUSHING = "committing"
COMMITTING = "committing, and nobody knows yet whether it is done: call commit_transaction() again, which tells"
ABORTING = "aborting: call abort_transaction() again"
ABORTABLE_ERROR = "in a transaction that has failed: call abort_transaction()"
FATAL_ERROR = "closed, or fenced"
_PATIENCE = 1.0  # seconds that an append, let go of its lock, waits for the fold of states


class TransactionManager:
    """Belongs to one producer; like that it may be used by any number of threads."""

    def __init__(self, producer: Producer, coordinator: TransactionCoordinator, groups: Groups, transactional_id: str) -> None:
        self._producer, self._coordinator, self._groups, self._id = producer, coordinator, groups, transactional_id
        self._clock = coordinator.clock
        self.state = UNINITIALIZED
        self.number = 0
        """Of the transaction; batches know theirs."""
        self.ended = self.closed_inside = -1
        """Numbers of the transaction that its producer ended last, and of the one that was open when the producer was closed."""
        self.error: BaseException | None = None
        """What dooms the transaction, or the producer."""
        self.current = (-1, -1)
        """Producer id and epoch of the transaction."""
        self.writers: weakref.WeakSet[BatchWriter] = weakref.WeakSet()
        """Batch writers that are open."""
        self._owner = 0
        self._following = (-1, -1)  # producer id and epoch of the next transaction
        self._lock = RLock()  # for registering, for sending offsets, and for what must not happen meanwhile
        self._end_lock = allocate_lock()  # held by who ends the transaction
        self._registered: frozenset[Partition] = frozenset()
        self._begun = False  # something was, or may have been, registered
        self._offsets_next: dict[int, int] = {}  # sequences in `__consumer_offsets`, by partition
        self._finalizer: Any = None

    # ---- what the user calls ---------------------------------------------------------------------------------------------------

    def init(self, timeout: float) -> None:
        """Take the id over."""
        self._expect("init_transactions", UNINITIALIZED)
        config = self._producer.config
        if not self._owner:
            self._owner = self._coordinator.take_owner()  # the lock first, the name second (H23)
            self._finalizer = weakref.finalize(self, self._coordinator.free_owner, self._owner)
            self._finalizer.atexit = False  # the kernel does it
        event = Init(
            self._owner, process.pid(), config.client_id, config.transaction_timeout_ms, config.durability == "fsync",
            self._coordinator.home.run_id, self._clock.agreed_ms(),
        )  # fmt: skip
        self._follow(self._coordinator.init(self._id, event, timeout))
        self.state = READY

    def begin(self) -> None:
        """Records may be sent from now on."""
        self._expect("begin_transaction", READY)
        self._check_owner()
        self.number += 1
        self.error, self._registered, self._begun, self._offsets_next = None, frozenset(), False, {}
        self.current = self._following
        self._producer.accept(True)
        self.state = IN_TRANSACTION

    def _check_owner(self) -> None:
        """Raise ProducerFencedError where another producer has taken the id over since."""
        log = self._coordinator.states.keeper(self._id, self._producer._block)
        if log.is_inside():
            return  # a signal handler inside the fold: the first record, or the commit, is told
        log.catch_up(self._producer._block)
        found = log.get(self._id)
        if (found.owner, found.producer_id, found.epoch) != (self._owner, *self._following):
            self._fence(fenced(found))
            self._expect("begin_transaction")

    def commit(self, timeout: float) -> None:
        """Write what was sent, then make all of it count."""
        self._alone("commit_transaction", self._commit, monotonic() + timeout)

    def _commit(self, deadline: float) -> None:
        self._expect("commit_transaction", IN_TRANSACTION, FLUSHING, COMMITTING)
        if self.state != COMMITTING:
            if any(writer.transaction == self.number for writer in self.writers):
                raise InvalidTxnStateError("commit_transaction is not possible: a batch() of this transaction is still open")
            with self._lock:  # not while offsets are being sent
                self._producer.end_batches()
                self._producer.accept(False)
                self.state = FLUSHING
            try:
                self._producer.flush(left(deadline))
            except BaseException:
                if self.state == FLUSHING:
                    self.state = IN_TRANSACTION
                    self._producer.accept(True)
                raise
            with self._lock:
                if self.error is not None:
                    raise self.error
                self.state = COMMITTING
        self._end(deadline, commit=True)

    def abort(self, timeout: float) -> None:
        """Drop what is not written yet; what is written never counts."""
        self._alone("abort_transaction", self._abort, monotonic() + timeout)

    def _abort(self, deadline: float) -> None:
        self._expect("abort_transaction", IN_TRANSACTION, FLUSHING, ABORTABLE_ERROR, ABORTING)
        with self._lock:
            self._producer.end_batches()
            self._producer.accept(False)
            self.state = ABORTING
        self._producer.drop_waiting()
        self._producer.flush(left(deadline))
        self._end(deadline, commit=False)

    def _alone(self, what: str, function: Callable[[float], None], deadline: float) -> None:
        """Neither another thread, nor a callback inside, ends the transaction meanwhile."""
        held: list[bool] = []
        try:  # the idiom of `locks.under` (H14)
            held.extend(map(self._end_lock.acquire, (False,)))
            if not held[0]:
                raise InvalidTxnStateError(f"{what} is not possible: the transaction is being ended by another call")
            function(deadline)
        finally:
            if True in held:
                self._end_lock.release()

    def _end(self, deadline: float, *, commit: bool) -> None:
        """Prepare, the commit point; then markers and Complete, which anybody else would write if we could not."""
        if self._begun:
            if commit and self._producer.config.durability == "fsync":
                self._coordinator.sync(self._registered, left(deadline))  # the offsets; records were synced as they were written
            event = End(self._owner, *self.current, commit, self._clock.agreed_ms(), self._clock.monotonic_ms())
            try:
                after = self._coordinator.change(self._id, left(deadline), lambda found: self._ended(found, event))
                if after.state in PREPARING:
                    after = self._coordinator.finish(after, left(deadline))
            except FencedError as error:
                self._fence(error)
                raise
            self._follow(after)
        elif commit:
            self._check_owner()
        self._begun, self.ended = False, self.number
        if self.state != FATAL_ERROR:
            self.state = READY

    def _ended(self, found: Transaction, event: End) -> Transaction:
        """The id after its End; the same where nothing came to be registered."""
        mine = (found.owner, found.producer_id, found.epoch) == event[:3]
        return found if mine and found.unmarked is None and not self._registered else apply(found, event)

    def close(self, timeout: float) -> None:
        """Abort what is open, and let the id go."""
        try:
            if self.state in (IN_TRANSACTION, FLUSHING, ABORTABLE_ERROR, ABORTING):
                self.closed_inside = self.number
                self.abort(timeout)
            elif self.state == COMMITTING:
                self.commit(timeout)
        except (FencedError, InvalidTxnStateError):
            pass  # others have ended it, or will; or another thread is at it
        finally:
            self.state = FATAL_ERROR
            if self._finalizer is not None:
                self._finalizer()

    # ---- states ----------------------------------------------------------------------------------------------------------------

    def _expect(self, what: str, *states: str) -> None:
        if self.state == FATAL_ERROR and self.error is not None:
            raise ProducerFencedError(str(self.error)) from self.error
        if self.state == ABORTABLE_ERROR and what == "commit_transaction" and self.error is not None:
            raise self.error
        if self.state not in states:
            raise InvalidTxnStateError(f"{what} is not possible: the producer of transactional_id={self._id!r} is {self.state}")

    def check_sending(self, what: str = "send") -> None:
        """Raise where no record may be sent."""
        if self.state == ABORTABLE_ERROR:
            raise AbortableTransactionError(f"the transaction has failed ({self.error}); call abort_transaction()") from self.error
        self._expect(what, IN_TRANSACTION)

    def fail(self, error: BaseException) -> None:
        """A record, or offsets, were not taken or not written: the transaction cannot be committed any more."""
        if isinstance(error, FencedError):
            self._fence(error)
        elif self.state in (IN_TRANSACTION, FLUSHING):
            self.error, self.state = error, ABORTABLE_ERROR
            self._producer.accept(False)

    def refused(self, error: BaseException) -> None:
        """`send` did not take a record, for a reason that is not a call out of turn."""
        if not isinstance(error, (InvalidStateError, AbortableTransactionError, FencedError)):
            self.fail(error)

    def _fence(self, error: BaseException) -> None:
        self.error, self.state = error, FATAL_ERROR
        self._producer.accept(False)

    def _follow(self, found: Transaction) -> None:
        """The next transaction is of this producer id and epoch."""
        self._following = found.producer_id, found.epoch
        if found.owner != self._owner:  # the commit counts; what comes after it is another's
            self._fence(fenced(found))

    # ---- writing ---------------------------------------------------------------------------------------------------------------

    def enlist(self, lane: Lane, batch: RecordBatch, timeout: float) -> None:
        """Make a batch one of the transaction, before it is appended.

        Raises: TransactionAbortedError (its transaction is not open any more), ProducerFencedError, StreamlogTimeoutError.
        """
        if batch.transaction != self.number or self.state not in (IN_TRANSACTION, FLUSHING, COMMITTING):
            raise TransactionAbortedError(f"the transaction was aborted before this record was written to {lane.name}")
        key = lane.log.topic_id, lane.partition
        if key not in self._registered:
            self._register({key, *self._producer.waiting_partitions()}, timeout)
        batch.attributes |= TRANSACTIONAL

    def _register(self, partitions: set[Partition], timeout: float) -> None:
        with self._lock:
            event = AddPartitions(self._owner, *self.current, frozenset(partitions), self._clock.agreed_ms(), self._clock.monotonic_ms())
            self._begun = True  # first: whether it is, nobody knows where this is broken off
            after = self._coordinator.change(self._id, timeout, lambda found: apply(found, event))
            self._registered = after.partitions

    def admit(self, topic_id: bytes, partition: int) -> None:
        """Under a partition's lock: is the transaction still open, this partition in it?  Else its marker is, or will be, there (H39).

        Raises: ProducerFencedError; BehindError: there is more to fold than is done under a lock.
        """
        log = self._coordinator.states.keeper(self._id, 0.0)
        try:
            if log.log.high_watermark - log.version > SMALL_GAP:
                raise BehindError(log.catch_up, _PATIENCE)
            log.catch_up(0.0)
        except StreamlogTimeoutError:
            raise BehindError(log.catch_up, _PATIENCE) from None  # another thread is at it
        found = log.get(self._id)
        mine = (found.owner, found.producer_id, found.epoch) == (self._owner, *self.current)
        if not mine or found.state != ONGOING or (topic_id, partition) not in found.partitions:
            raise ProducerFencedError(
                f"transactional_id={self._id!r}: the transaction is not open any more: it timed out, or another producer has taken the id over"
            )

    # ---- offsets ---------------------------------------------------------------------------------------------------------------

    def send_offsets(self, offsets: Offsets, noted: Mapping[TopicPartition, int], sender: GroupMetadata, timeout: float) -> None:
        """Commit a group's offsets with the transaction.  The group is asked now whether the member may (H34).

        Raises: CommitFailedError and its leaves, FencedInstanceIdError: the transaction can only be aborted then.
        """
        deadline = monotonic() + timeout
        with self._lock:
            self.check_sending("send_offsets")
            try:
                self._send_offsets(offsets, noted, sender, deadline)
            except InvalidProducerEpochError as error:
                fenced = ProducerFencedError(f"transactional_id={self._id!r}: {error}")
                self._fence(fenced)
                raise fenced from error
            except Exception as error:
                self.fail(error)
                raise
            except BaseException as error:
                self.fail(AbortableTransactionError(f"send_offsets was broken off: {error!r}"))
                raise

    def _send_offsets(self, offsets: Offsets, noted: Mapping[TopicPartition, int], sender: GroupMetadata, deadline: float) -> None:
        coordinator = self._groups.coordinator(sender.group_id, left(deadline))
        log = coordinator.offsets.log
        if (log.topic_id, log.partition) not in self._registered:
            self._register({(log.topic_id, log.partition)}, left(deadline))
        event = Commit(sender.member_id, sender.group_instance_id, noted)
        batch = _OffsetsBatch(self, log.topic_id, log.partition)
        durability = self._producer.config.durability
        coordinator.commit_in_transaction(event, offsets, batch, durability=durability, timeout=left(deadline))

    def next_offsets(self, partition: int, count: int) -> tuple[int, int, int]:
        """The place of a batch of offsets in the producer's sequence.  Under the partition's lock."""
        sequence = self._offsets_next.get(partition, 0)
        self._offsets_next[partition] = sequence + count & SEQUENCES
        return self.current[0], sequence, self.current[1]


class _OffsetsBatch(Pending):
    """Offsets on their way."""

    def __init__(self, manager: TransactionManager, topic_id: bytes, partition: int) -> None:
        self._manager, self._topic_id, self._partition = manager, topic_id, partition

    def admit(self, fences: int) -> None:  # noqa: ARG002  (asked for each time)
        self._manager.admit(self._topic_id, self._partition)
        if self.producer is NO_PRODUCER:
            self.producer = self._manager.next_offsets(self._partition, self.count)
