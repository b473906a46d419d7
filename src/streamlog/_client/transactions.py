"""What a process does as the coordinator of transactional ids: it changes their states, writes markers, and ends what others left open.

A state is changed under the lock of its id: refold, apply the table, append the record.  No marker is written before its Prepare can be read,
and a transaction is complete when all its partitions have theirs.  Whoever meets a transaction that is prepared, or whose producer is dead
or late, carries it to its end (docs/transactions.md).
"""

from __future__ import annotations

from _thread import RLock
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

from streamlog._coord.transaction import (
    COMPLETED,
    EMPTY,
    LAST_EPOCH,
    NOBODY,
    ONGOING,
    PREPARING,
    Abort,
    Complete,
    Expire,
    Init,
    Transaction,
    apply,
    needs_producer_id,
)
from streamlog._coord.transaction_log import TransactionsLog
from streamlog._format import names
from streamlog._log.partition import Marker, PartitionLog
from streamlog._log.reader import producer_at
from streamlog._log.state import DIRTY, HWM
from streamlog._log.transactions import open_transactions
from streamlog._os import locks, mapping, process
from streamlog._os.clock import monotonic
from streamlog._os.files import PAGE
from streamlog._os.locks import TRANSACTION, ByteLock, LockFile, under
from streamlog._os.mapping import Page
from streamlog._replica import topics
from streamlog._replica.home import Home
from streamlog.errors import (
    ConcurrentTransactionsError,
    CorruptRecordError,
    InvalidProducerEpochError,
    StreamlogError,
    StreamlogTimeoutError,
    TransactionalIdNotFoundError,
    UnknownTopicOrPartitionError,
)
from streamlog.types import HangingTransaction, TopicPartition, TransactionDescription, TransactionListing

_SMALL_GAP = 64  # states that are folded under the lock of an id: 0.5 ms
_OWNERS = 1 << 20  # bytes of `transactions.lock` from here on are producers': their liveness (H23)


class Transactions:
    """Safe to share between threads; belongs to one open home."""

    def __init__(self, home: Home) -> None:
        self.home, self.clock = home, home.clock
        self._lock = RLock()
        self._logs: dict[int, TransactionsLog] = {}
        self._log_of: dict[str, TransactionsLog] = {}  # by transactional id, of those that were asked for
        self._locks: dict[int, ByteLock] = {}
        self._files: tuple[LockFile, LockFile, Page] | None = None

    # ---- states ----------------------------------------------------------------------------------------------------------------

    def _topic_partitions(self) -> int:
        """Partitions of `__transaction_state`; 0: there is no such topic yet."""
        topic = self.home.metadata.topics.get(names.TRANSACTIONS_TOPIC)
        return 0 if topic is None else topic.partitions

    def _log(self, transactional_id: str, timeout: float) -> TransactionsLog:
        """The log that keeps an id; makes `__transaction_state` where there is none."""
        found = self._log_of.get(transactional_id)
        if found is not None:
            return found
        count = self._topic_partitions()
        if not count:
            topics.create_internal(self.home, names.TRANSACTIONS_TOPIC, self.home.config.transaction_state_log_num_partitions, timeout)
            count = self._topic_partitions()
        found = self._log_of[transactional_id] = self._numbered(names.keeper_partition(transactional_id, count), timeout)
        return found

    def _numbered(self, partition: int, timeout: float) -> TransactionsLog:
        with self._lock:
            found = self._logs.get(partition)
            if found is None:
                topic = self.home.metadata.topics[names.TRANSACTIONS_TOPIC]
                found = self._logs[partition] = TransactionsLog(self.home.log(topic, partition, timeout))
            return found

    def _all_logs(self, timeout: float) -> Iterator[TransactionsLog]:
        """Every log of states, refolded."""
        if self.home.metadata.changed():
            self.home.refresh(timeout)
        for number in range(self._topic_partitions()):
            log = self._numbered(number, timeout)
            self._refresh(log, timeout)
            yield log

    def current(self, transactional_id: str, timeout: float) -> Transaction:
        """An id as of now."""
        log = self._log(transactional_id, timeout)
        self._refresh(log, timeout)
        return log.get(transactional_id)

    @staticmethod
    def _refresh(log: TransactionsLog, timeout: float) -> None:
        log.refresh(timeout)
        if log._is_folding():
            raise StreamlogTimeoutError("a signal handler, or a finalizer, inside the fold of transactions cannot decide on them; try again after it")

    def change(self, transactional_id: str, timeout: float, function: Callable[[Transaction], Transaction]) -> Transaction:
        """Under the id's lock: `function` gets the state and returns it as it is to be; returns that when it counts.

        Durability: as the id's producer wants it.  Raises: StreamlogTimeoutError, and what `function` raises; nothing is changed then.
        """
        deadline = monotonic() + timeout
        log = self._log(transactional_id, timeout)
        if log.log.high_watermark - log.version > _SMALL_GAP:
            log.refresh(timeout)  # a long fold happens outside the lock
        after = under(self._lock_of(transactional_id), _left(deadline), self._change, log, transactional_id, function, deadline)
        log.keep_up(_left(deadline))
        if after.synced and after.state in PREPARING:
            log.log.sync(_left(deadline))  # nobody acts on it before (H29), and who repeats it waits as well
        return after

    def _change(
        self, log: TransactionsLog, transactional_id: str, function: Callable[[Transaction], Transaction], deadline: float
    ) -> Transaction:
        _, _, page = self._opened()
        stripe = names.transaction_lock(transactional_id)
        page.words[stripe] = process.pid()
        try:
            if log.log.words[DIRTY]:
                log.log.catch_up(_left(deadline))  # maybe of this id: who died writing its state left it above the high watermark
            before = self.current(transactional_id, _left(deadline))
            after = function(before)
            if after != before:
                log.append(after, _left(deadline))
            return after
        finally:
            page.words[stripe] = 0

    def _opened(self) -> tuple[LockFile, LockFile, Page]:
        """The locks, twice (a probe sees those of other descriptions only), and the page that says who holds them."""
        with self._lock:
            if self._files is None:
                fs, run = self.home.fs, f"{self.home.path}/{names.RUN}"
                path = f"{run}/{names.TRANSACTION_STATE}"
                mapping.create(fs, path, bytes(PAGE))
                page, _ = mapping.open_page(fs, path)
                path = f"{run}/{names.TRANSACTION_LOCKS}"
                self._files = self.home.keep(LockFile(fs, path)), self.home.keep(LockFile(fs, path)), page
            return self._files

    def _lock_of(self, transactional_id: str) -> ByteLock:
        stripe = names.transaction_lock(transactional_id)
        with self._lock:
            found = self._locks.get(stripe)
            if found is None:
                lock_file, _, page = self._opened()
                found = self._locks[stripe] = ByteLock(
                    lock_file, stripe, TRANSACTION, lambda: locks.describe("lock of a transactional id", page.words, stripe)
                )
            return found

    # ---- who lives -----------------------------------------------------------------------------------------------------------

    def take_owner(self) -> int:
        """A random number for a producer, whose liveness byte it is as long as this process holds it."""
        lock_file, _, _ = self._opened()
        while True:
            owner = (int.from_bytes(process.random_bytes(8), "big") >> 2) + 1
            if lock_file.try_exclusive(_OWNERS + owner):
                return owner

    def free_owner(self, owner: int) -> None:
        """Its producer is gone."""
        lock_file, _, _ = self._opened()
        if lock_file.fd >= 0:
            lock_file.unlock(_OWNERS + owner)

    def is_alive(self, transaction: Transaction) -> bool:
        """Whether an id's producer lives.  Free means dead; held proves nothing."""
        _, prober, _ = self._opened()
        return transaction.owner != NOBODY and prober.is_held_elsewhere(_OWNERS + transaction.owner)

    def _is_over(self, transaction: Transaction) -> bool:
        return self.clock.monotonic_ms() > transaction.deadline_ms or not self.is_alive(transaction)

    # ---- to an end -----------------------------------------------------------------------------------------------------------

    def init(self, transactional_id: str, event: Init, timeout: float) -> Transaction:
        """Take an id over for a producer: end what is open, fence who had it."""
        deadline = monotonic() + timeout
        while True:
            found = self.settled(transactional_id, _left(deadline), abort=True)
            if event.new_producer_id < 0 and needs_producer_id(found, event.boot):
                event = event._replace(new_producer_id=self.home.new_producer_id(_left(deadline)))
            try:
                return self.change(transactional_id, _left(deadline), partial(_initialised, event=event))
            except ConcurrentTransactionsError:
                if monotonic() >= deadline:
                    raise

    def settled(self, transactional_id: str, timeout: float, *, abort: bool = False) -> Transaction:
        """An id with nothing prepared any more, and if `abort` nothing open."""
        deadline = monotonic() + timeout
        found = self.current(transactional_id, timeout)
        while found.state in PREPARING or (abort and found.state == ONGOING):
            found = self.abort(found, _left(deadline)) if found.state == ONGOING else self.finish(found, _left(deadline))
        return found

    def abort(self, found: Transaction, timeout: float) -> Transaction:
        """End a transaction that was found open, unless it went on meanwhile; its producer is fenced.  Returns the id as it is then."""
        deadline = monotonic() + timeout
        event = Abort(found.producer_id, found.epoch, self.clock.now_ms())
        try:
            prepared = self.change(found.transactional_id, timeout, lambda now: apply(now, event))
        except ConcurrentTransactionsError:
            return self.current(found.transactional_id, _left(deadline))
        return self.finish(prepared, _left(deadline))

    def finish(self, found: Transaction, timeout: float) -> Transaction:
        """Carry out what is prepared: a marker in each partition, then Complete.  Returns the id as it is then.

        Any number of processes may be at it, and each may be stopped anywhere: a marker that is there is not written again, one that comes too
        late is refused, and Complete is written only over that Prepare (H38).
        """
        deadline = monotonic() + timeout
        if found.synced:
            self._log(found.transactional_id, timeout).log.sync(_left(deadline))  # one reads what is not yet on the disk
        trouble: StreamlogError | None = None
        for topic_id, partition in sorted(found.partitions):
            try:
                log = self._partition_log(topic_id, partition, _left(deadline))
                if log is not None:
                    log.append(Marker(found.ended[0], found.epoch, self.clock.now_ms(), commit=found.ended[2]), _left(deadline))
            except InvalidProducerEpochError:
                return self.current(found.transactional_id, _left(deadline))  # others have finished, and the producer went on
            except UnknownTopicOrPartitionError:
                continue  # deleted meanwhile
            except StreamlogError as error:
                trouble = trouble or error  # the others get theirs; this one will, from whoever meets it when it takes records again
        if trouble is not None:
            raise trouble
        if found.synced:
            self.sync(found.partitions, _left(deadline))
        new_producer_id = self.home.new_producer_id(_left(deadline)) if found.epoch > LAST_EPOCH else -1
        event = Complete(found, self.clock.now_ms(), new_producer_id)
        try:
            return self.change(found.transactional_id, _left(deadline), lambda now: apply(now, event))
        except ConcurrentTransactionsError:
            return self.current(found.transactional_id, _left(deadline))

    def sync(self, partitions: Iterable[tuple[bytes, int]], timeout: float) -> None:
        """Return once all that these partitions hold now is on the disk."""
        deadline = monotonic() + timeout
        for topic_id, partition in sorted(partitions):
            log = self._partition_log(topic_id, partition, _left(deadline))
            if log is not None:
                log.sync(_left(deadline))

    def _partition_log(self, topic_id: bytes, partition: int, timeout: float) -> PartitionLog | None:
        """A partition that was registered; None where its topic was deleted."""
        metadata = self.home.metadata
        if topic_id not in metadata.by_id:
            self.home.refresh(timeout)
        topic = metadata.by_id.get(topic_id)
        if topic is not None and partition >= topic.partitions:
            self.home.refresh(timeout)
            topic = metadata.by_id.get(topic_id)
        return None if topic is None else self.home.log(topic, partition, timeout)

    # ---- who meets an open transaction -----------------------------------------------------------------------------------------

    def look_into(self, log: PartitionLog, timeout: float) -> None:
        """Somebody is held up by the earliest open transaction of a partition: end it if nobody else will."""
        first = log.last_stable_offset
        if first >= log.words[HWM]:
            return
        producer_id, epoch = self._producer_at(log, first, timeout)
        found = self.of_producer(producer_id, timeout)
        if found is not None and found.state == ONGOING and (found.producer_id, found.epoch) == (producer_id, epoch):
            if self._is_over(found):
                self.abort(found, timeout)
        elif found is not None and found.state in PREPARING and found.ended[:2] == (producer_id, epoch):
            self.finish(found, timeout)
        elif log.last_stable_offset == first and self._producer_at(log, first, timeout) == (producer_id, epoch):
            self._end_hanging(log, producer_id, epoch, found, timeout)

    @staticmethod
    def _producer_at(log: PartitionLog, first: int, timeout: float) -> tuple[int, int]:
        """Who began the transaction whose first record stands at `first`."""
        try:
            return producer_at(log, first, timeout)
        except CorruptRecordError:
            return next((each[:2] for each in open_transactions(log) if each[2] == first), (-1, -1))

    def of_producer(self, producer_id: int, timeout: float) -> Transaction | None:
        """The id that has, or had, a producer id."""
        for log in self._all_logs(timeout):
            if (found := log.by_producer(producer_id)) is not None:
                return found
        return None

    def _end_hanging(self, log: PartitionLog, producer_id: int, epoch: int, found: Transaction | None, timeout: float) -> None:
        """What ended the transaction is lost here (a power cut; H39): end it by the outcome that is on record, else abort it."""
        commit = found is not None and found.ended == (producer_id, epoch, True)
        marker = Marker(producer_id, epoch + 1, self.clock.now_ms(), commit=commit)
        try:
            log.append(marker, timeout)
        except InvalidProducerEpochError:
            return
        if marker.base_offset < 0:
            return  # somebody was faster
        import logging

        outcome = "committed, as its transactional id says" if commit else "aborted"
        logging.getLogger("streamlog").warning("a hanging transaction of producer %s epoch %s in %s was %s", producer_id, epoch, log.name, outcome)

    def end_for_member(self, producer_id: int, *, abort: bool, timeout: float) -> None:
        """Offsets of this producer are pending, and somebody waits for them: see that they do not stay so (H37).

        With `abort` the member that sent them is not in its group any more, and its transaction goes with it.
        """
        found = self.of_producer(producer_id, timeout)
        if found is None or found.state not in (ONGOING, *PREPARING):
            return
        if found.state in PREPARING:
            self.finish(found, timeout)
        elif abort or self._is_over(found):
            self.abort(found, timeout)

    # ---- from outside ----------------------------------------------------------------------------------------------------------

    def listing(self, timeout: float) -> list[TransactionListing]:
        """All ids, sorted."""
        found = [transaction for log in self._all_logs(timeout) for transaction in log.all()]
        return sorted(TransactionListing(each.transactional_id, each.state, each.producer_id) for each in found)

    def existing(self, transactional_id: str, timeout: float) -> Transaction:
        """An id that somebody used.  Raises TransactionalIdNotFoundError."""
        for log in self._all_logs(timeout):
            found = log.get(transactional_id)
            if found.producer_id >= 0:
                return found
        raise TransactionalIdNotFoundError(f"nobody has used transactional_id={transactional_id!r}")

    def describe(self, transactional_id: str, timeout: float) -> TransactionDescription:
        """An id as it stands."""
        found, by_id = self.existing(transactional_id, timeout), self.home.metadata.by_id
        partitions = sorted(TopicPartition(by_id[topic_id].name, number) for topic_id, number in found.partitions if topic_id in by_id)
        return TransactionDescription(
            transactional_id, found.state, found.producer_id, found.epoch, found.client_id, found.pid, self.is_alive(found), found.timeout_ms,
            found.started_ms, tuple(partitions),
        )  # fmt: skip

    def hanging(self, timeout: float) -> list[HangingTransaction]:
        """Open transactions of which their transactional ids know nothing."""
        found = []
        self.home.refresh(timeout)
        for topic in sorted(self.home.metadata.topics.values(), key=lambda topic: topic.name):
            for partition in range(topic.partitions):
                log = self.home.log(topic, partition, timeout)
                if log.last_stable_offset < log.high_watermark:
                    unknown = [each for each in open_transactions(log) if not self._is_known(*each[:2], timeout)]
                    still = open_transactions(log) if unknown else []  # one may have ended between the two looks
                    found += [
                        HangingTransaction(topic.name, partition, first, producer_id, epoch)
                        for producer_id, epoch, first in unknown
                        if (producer_id, epoch, first) in still
                    ]
        return found

    def _is_known(self, producer_id: int, epoch: int, timeout: float) -> bool:
        found = self.of_producer(producer_id, timeout)
        if found is None:
            return False
        now = (found.producer_id, found.epoch) if found.state == ONGOING else found.ended[:2] if found.state in PREPARING else None
        return now == (producer_id, epoch)

    def end_hanging(self, topic: str, partition: int, first_offset: int, timeout: float) -> None:
        """End a hanging transaction.  Raises TransactionalIdNotFoundError where there is none that begins there."""
        for each in self.hanging(timeout):
            if (each.topic, each.partition, each.first_offset) == (topic, partition, first_offset):
                log = self.home.log(self.home.metadata.topic(topic), partition, timeout)
                found = self.of_producer(each.producer_id, timeout)
                self._end_hanging(log, each.producer_id, each.producer_epoch, found, timeout)
                return
        raise TransactionalIdNotFoundError(f"no hanging transaction begins at offset {first_offset} of {topic}-{partition}")

    def maintain(self, timeout: float) -> None:
        """End what is over, and forget ids that nobody has used for `transactional_id_expiration_ms`."""
        limit = self.clock.now_ms() - self.home.config.transactional_id_expiration_ms
        for found in [found for log in self._all_logs(timeout) for found in log.all()]:
            if found.state in PREPARING:
                self.finish(found, timeout)
            elif found.state == ONGOING and self._is_over(found):
                self.abort(found, timeout)
            elif found.state in (EMPTY, *COMPLETED) and found.updated_ms < limit and not self.is_alive(found):
                self._expire(found, timeout)

    def _expire(self, found: Transaction, timeout: float) -> None:
        def expired(now: Transaction) -> Transaction:
            return apply(now, Expire()) if now == found else now

        self.change(found.transactional_id, timeout, expired)


def _initialised(found: Transaction, event: Init) -> Transaction:
    """The id after the event, if that has the producer id that it needs."""
    if event.new_producer_id < 0 and needs_producer_id(found, event.boot):
        raise ConcurrentTransactionsError(f"transactional_id={found.transactional_id!r} went on meanwhile")
    return apply(found, event)


def _left(deadline: float) -> float:
    return max(0.0, deadline - monotonic())
