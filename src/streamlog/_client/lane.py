"""A partition as a producer sees it: the open batch, the closed ones in order, and how they get into the log."""

from __future__ import annotations

import sys
import weakref
from _thread import allocate_lock, get_ident
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from streamlog._client.target import Target
    from streamlog.producer import Producer

from streamlog._client.batch import RecordBatch
from streamlog._format.batch import BATCH_HEADER_SIZE
from streamlog._log.log import Log
from streamlog._log.producer_state import SEQUENCES
from streamlog._os import locks
from streamlog._os.clock import monotonic, sleep
from streamlog.errors import (
    DiskFailedError,
    InvalidProducerEpochError,
    ProducerFencedError,
    RecordTooLargeError,
    RetriableError,
    StreamlogError,
    StreamlogTimeoutError,
    UnknownTopicOrPartitionError,
)

PATIENCE = 0.05  # seconds that a flush, or the sender, waits for a partition's lock before it looks around
_GIVE_WAY = 5e-5  # seconds; a sender that is due waits for the interpreter, which writes to several brokers let go and take again before it
#                   gets it: each then pays for waking it in vain (a send + flush to three brokers took twice as long)
_LAST_EPOCH = 2**15 - 1  # of a producer id
_AT_ONCE = (False,)


class Lane:
    """One partition of one producer.  Queue and open batch are changed under the producer's lock, the rest by who has the turn."""

    __slots__ = (
        "batch", "expected", "failed", "failed_at", "fences", "flushes", "gone", "holder", "log", "name", "next", "partition", "producer", "queue",
        "retries", "target", "topic", "tries", "trouble", "turn",
    )  # fmt: skip

    def __init__(self, producer: Producer, target: Target, log: Log, closed: RecordBatch) -> None:
        self.producer, self.log = producer, log
        self.target = weakref.ref(target)  # weakly: a closed producer's mappings go without the collector
        self.topic, self.partition, self.name = log.topic, log.partition, log.name
        self.batch = closed
        self.queue: deque[RecordBatch] = deque()
        self.turn = allocate_lock()  # held by the thread that appends the queue
        self.holder = 0  # which thread that is
        self.next = -1, 0, 0  # producer id, sequence and epoch of the next batch
        self.failed = False  # the batch before it failed: nobody knows whether it is in the log
        self.fences = -1  # of the partition, when the transaction was last known to be open
        self.gone = False  # the topic was deleted
        self.expected = target.room // 128  # records of a batch, going by the last one
        self.flushes = log.settings.flush_messages < 2**63 - 1 or log.settings.flush_ms < 2**63 - 1
        self.tries, self.failed_at, self.retries = 0, 0.0, 0
        self.trouble: BaseException | None = None  # the last error that may yet go away

    def is_own_turn(self) -> bool:
        """Whether this thread is appending the queue: a callback or a signal handler asks, and must not wait for itself."""
        return self.turn.locked() and (self.holder == get_ident() or (self.holder == 0 and self._is_draining()))

    def _is_draining(self) -> bool:
        """Whether this thread is inside `drain`, though it has not said yet that the turn is its own."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code is Lane.drain.__code__ and frame.f_locals.get("self") is self:
                return True
            frame = frame.f_back
        return False

    # ---- the queue -----------------------------------------------------------------------------------------------------------

    def drain(self, *, wait: bool = False, until: RecordBatch | None = None) -> None:
        """Append the queue in order, at least up to the batch `until`.

        With the partition's lock taken elsewhere, or this thread inside a locked section, the queue is left to the sender.
        """
        producer = self.producer
        me = get_ident()
        if me in locks.inside or me in locks.folding or producer._is_entered():  # `is_interrupted`, without the call
            producer._sender.expect(0.0)
            return
        while self.queue and not self.queue[0].open:
            held: list[bool] = []
            blocked = True
            try:  # the idiom of `locks.under`: nothing that a signal handler raises leaks the turn (H14)
                held.extend(map(self.turn.acquire, _AT_ONCE))
                if not held[0]:
                    return  # whoever has the turn looks at the queue again after giving it back
                self.holder = get_ident()
                batches = list(self.queue)
                if batches and batches[-1].open:
                    batches.pop()
                blocked = self._write(batches, wait)
                producer._inside(producer._settle, self, batches)
            finally:
                if True in held:
                    self.holder = 0
                    self.turn.release()
                    if producer._abandoned:
                        producer._give_up(self)  # it was closed meanwhile, and did not wait for us
                    elif blocked:
                        producer._sender.expect(self.next_try())
            if blocked:
                return
            if producer._gives_way and monotonic() >= producer._sender.wake_at:
                sleep(_GIVE_WAY)
            if until is not None and until.written:
                if self.queue:
                    self._hand_over()
                return

    def _hand_over(self) -> None:
        """Others have queued batches meanwhile: one who waits for them goes on, or the sender."""
        try:
            waiter = self.queue[0].waiters.pop()
        except IndexError:
            self.producer._sender.expect(0.0)
        else:
            waiter()

    def _write(self, batches: list[RecordBatch], wait: bool) -> bool:
        """Write batches in order, sync them together, finish them; returns whether the rest must be tried again."""
        done = 0
        for batch in batches:
            if not batch.written and batch.base_offset < 0 and batch.error is None and not self._append(batch, wait):
                break
            done += 1
        ended = [batch for batch in batches[:done] if not batch.written]  # some may be, where an exception broke this off before
        if (self.producer._fsync or self.flushes) and ended:
            self._sync(ended)
        for batch in ended:
            batch.stored = len(batch.columns)
            batch.columns = b""
            batch.written = True
            if batch.waiters or batch.callbacks or batch.error is not None:
                batch.finish(batch.error)
            else:
                batch.finished = True
                if batch.waiters:  # one came in between
                    batch.finish(None)
        return done < len(batches)

    def _sync(self, batches: list[RecordBatch]) -> None:
        """Wait until the batches are on the disk, where that was asked for."""
        written = [batch for batch in batches if batch.error is None]
        if not written or not (self.producer._fsync or self.log.flush_due()):
            return
        try:
            for batch in reversed(written):  # the last first: its sync covers the others
                self.log.wait_synced(batch, self.producer._delivery)
        except (StreamlogError, OSError) as error:
            for batch in written:
                self._fail(batch, error)

    def _append(self, batch: RecordBatch, wait: bool) -> bool:
        """Write one batch; False: not yet.  An error that does not go away is the batch's."""
        producer = self.producer
        try:
            if not batch.encoded:
                if not (batch.rows or batch.plain):
                    return True  # its first record never came: `send` was interrupted in time
                batch.encode()
                if producer._tells:
                    producer._tell_partitioner(self, batch)
            if BATCH_HEADER_SIZE + len(batch.columns) > batch.limit:
                raise RecordTooLargeError(
                    f"a batch of {BATCH_HEADER_SIZE + len(batch.columns)} bytes is above max_message_bytes={batch.limit} (topic {self.topic!r})"
                )
            producer._look_around()
            if self.gone:
                raise UnknownTopicOrPartitionError(f"topic {self.topic!r} was deleted")
            if producer._manager is not None:
                producer._manager.enlist(self, batch, PATIENCE if wait else 0.0)
            if producer._idempotent:
                self._identify(batch)
            batch.acks_all = producer._acks_all
            self.log.append(batch, PATIENCE if wait else 0.0)
        except RetriableError as error:
            return self._is_final(batch, error)
        except (StreamlogError, OSError) as error:
            if isinstance(error, OSError) and error.errno is None and not isinstance(error, StreamlogError):
                raise  # no call's: a signal handler's, an alarm's TimeoutError for one
            self._fail(batch, error if isinstance(error, StreamlogError) else DiskFailedError(f"append to {self.name}: {error}"))
        if self.trouble is not None:
            self.tries, self.trouble = 0, None
        return True

    def _fail(self, batch: RecordBatch, error: BaseException) -> None:
        """A batch has failed.  First the lane: a batch without an error yet is tried again, in the place that it has."""
        self.failed = self.failed or batch.producer[0] >= 0
        manager = self.producer._manager
        if manager is not None:
            if isinstance(error, InvalidProducerEpochError):
                error = ProducerFencedError(str(error))
            manager.fail(error)
        batch.error = error

    def admit(self, fences: int) -> None:
        """Under the partition's lock: is the transaction still open?  Asked for its first batch, and after each marker of anybody's."""
        if fences != self.fences:
            assert self.producer._manager is not None
            self.producer._manager.admit(self.log.topic_id, self.partition)
            self.fences = fences

    # ---- sequences -----------------------------------------------------------------------------------------------------------

    def _identify(self, batch: RecordBatch) -> None:
        """Give a batch its place in the producer's sequence: after the batch before it; a batch that is tried again keeps its own.

        After a batch that failed what follows begins a new epoch, so that it is neither taken for that batch nor for what comes after it
        (KIP-360).  The batch has its place before `next` moves on, and `next` follows from it: whatever interrupts this, no place is
        given twice.
        """
        if batch.producer[0] < 0:
            producer_id, sequence, epoch = self.next
            manager = self.producer._manager
            if manager is not None:
                if (producer_id, epoch) != manager.current:  # each transaction has an epoch of its own
                    sequence, self.fences = 0, -1
                producer_id, epoch = manager.current
            elif producer_id < 0:
                producer_id = self.producer._id()
            elif self.failed and epoch < _LAST_EPOCH:
                sequence, epoch = 0, epoch + 1
            elif self.failed:
                producer_id, sequence, epoch = self.producer._id(new=True), 0, 0
            batch.producer = producer_id, sequence, epoch
        producer_id, sequence, epoch = batch.producer
        self.next = producer_id, sequence + batch.count & SEQUENCES, epoch
        self.failed = False

    # ---- trying again --------------------------------------------------------------------------------------------------------

    def _is_final(self, batch: RecordBatch, error: RetriableError) -> bool:
        """Whether an error that may go away is the batch's end: after `retries`, or `delivery_timeout_ms`."""
        config = self.producer.config
        self.trouble, self.failed_at = error, monotonic()
        expired = self.failed_at > batch.begun + config.delivery_timeout_ms / 1000
        if isinstance(error, StreamlogTimeoutError):
            if not expired:
                return False  # the lock is another's: no try of ours
            error = StreamlogTimeoutError(f"not written within delivery_timeout_ms={config.delivery_timeout_ms}: {error}")
        else:
            self.tries += 1
            if not expired and self.tries <= config.retries:
                self.retries += 1
                return False
        self._fail(batch, error)
        self.tries, self.trouble = 0, None
        return True

    def next_try(self) -> float:
        """When to append again (monotonic seconds); 0: now."""
        if not self.tries:
            return 0.0
        config = self.producer.config
        backoff = config.retry_backoff_ms * 2.0 ** min(self.tries - 1, 30)
        after = self.failed_at + min(backoff, max(config.retry_backoff_max_ms, config.retry_backoff_ms)) / 1000
        try:
            return min(after, self.queue[0].begun + config.delivery_timeout_ms / 1000)  # then it fails, and no later
        except IndexError:
            return after
