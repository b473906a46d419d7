"""What a process does as the coordinator of transactional ids: it changes their states, writes markers, and ends what others left open.

A state is changed under the lock of its id: refold, apply the table, append the record.  No marker is written before its Prepare can be read,
and a transaction is complete when all its partitions have theirs.  Whoever meets a transaction that is prepared, or whose producer is dead
or late, carries it to its end (docs/transactions.md).
"""

from __future__ import annotations

import weakref
from _thread import RLock
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from typing import TypeVar

    from streamlog._coord.transaction import Partition

    R = TypeVar("R")

from streamlog._client.internal_topic import InternalTopic
from streamlog._coord.transaction import LAST_EPOCH, NOBODY, ONGOING, PREPARING, Abort, Complete, Init, Transaction, apply, needs_producer_id
from streamlog._coord.transaction_log import TransactionsLog
from streamlog._format import names
from streamlog._log.aborted import open_transactions
from streamlog._log.log import Log
from streamlog._log.pending import Marker
from streamlog._log.reader import producer_at
from streamlog._os import locks, mapping, process
from streamlog._os.clock import left, monotonic
from streamlog._os.files import PAGE
from streamlog._os.locks import TRANSACTION, ByteLock, LockFile, under
from streamlog._os.mapping import Page
from streamlog._replica.again import starting_over
from streamlog._replica.home import Home
from streamlog.errors import (
    ConcurrentTransactionsError,
    CorruptRecordError,
    InvalidProducerEpochError,
    StreamlogError,
    StreamlogTimeoutError,
    UnknownTopicOrPartitionError,
)

SMALL_GAP = 64  # states that are folded under a lock: 0.5 ms
_OWNERS = 1 << 20  # bytes of `transactions.lock` from here on are producers': their liveness (H23)


class TransactionCoordinator:
    """Safe to share between threads; belongs to one open home."""

    def __init__(self, home: Home) -> None:
        self.home, self.clock = home, home.clock
        self.states = InternalTopic(home, names.TRANSACTIONS_TOPIC, home.config.transaction_state_log_num_partitions, TransactionsLog)
        self._lock = RLock()
        self._locks: dict[int, ByteLock] = {}
        self._files: tuple[LockFile, LockFile, Page] | None = None
        self._met: weakref.WeakKeyDictionary[Log, tuple[int, tuple[int, int]]] = weakref.WeakKeyDictionary()

    # ---- states ----------------------------------------------------------------------------------------------------------------

    def current(self, transactional_id: str, timeout: float) -> Transaction:
        """An id as of now."""
        log = self.states.keeper(transactional_id, timeout)
        log.catch_up(timeout)
        return log.get(transactional_id)

    def change(self, transactional_id: str, timeout: float, function: Callable[[Transaction], Transaction]) -> Transaction:
        """Under the id's lock: `function` gets the state and returns it as it is to be; returns that when it counts.

        Durability: a Prepare is on the disk where the id's producer asked for that.
        Raises: StreamlogTimeoutError, and what `function` raises; nothing is changed then.
        """
        deadline = monotonic() + timeout
        log = self.states.keeper(transactional_id, timeout)
        if log.log.high_watermark - log.version > SMALL_GAP:
            log.refresh(timeout)  # a long fold happens outside the lock
        lock = self._lock_of(transactional_id)
        after = starting_over(deadline, lambda: under(lock, left(deadline), self._change, log, transactional_id, function, deadline))
        log.keep_up(left(deadline))
        if after.synced and after.state in PREPARING:
            log.log.sync(left(deadline))  # nobody acts on it before (H29), and who repeats the call waits as well
        return after

    def _change(
        self, log: TransactionsLog, transactional_id: str, function: Callable[[Transaction], Transaction], deadline: float
    ) -> Transaction:
        _, _, page = self._opened()
        stripe = names.transaction_lock(transactional_id)
        page.words[stripe] = process.token()
        try:
            if log.log.is_unsettled():
                log.log.catch_up(left(deadline))  # maybe of this id: who died writing its state left it above the high watermark
            log.catch_up(left(deadline))
            before = log.get(transactional_id)
            after = function(before)
            if after != before:
                log.append(after, left(deadline))
            return after
        finally:
            page.words[stripe] = 0

    def _opened(self) -> tuple[LockFile, LockFile, Page]:
        """The locks, twice (a probe sees those of other descriptions only), and the page that says who holds them."""
        with self._lock:
            if self._files is None:
                fs, run = self.home.fs, f"{self.home.path}/{names.RUN}"
                path = f"{run}/{names.TRANSACTION_HOLDERS}"
                mapping.create(fs, path, bytes(PAGE))
                page, _ = mapping.open_page(fs, path, PAGE)
                path = f"{run}/{names.TRANSACTION_LOCKS}"
                self._files = self.home.keep(LockFile(fs, path)), self.home.keep(LockFile(fs, path)), page
            return self._files

    def _lock_of(self, transactional_id: str) -> ByteLock:
        return self._lock_at(names.transaction_lock(transactional_id))

    def _lock_at(self, stripe: int) -> ByteLock:
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
        """Its producer is gone.  Takes no lock: a collector may run this anywhere, in a forked child too, where the file is closed."""
        files = self._files
        if files is not None and files[0].fd >= 0:
            files[0].unlock(_OWNERS + owner)

    def is_alive(self, transaction: Transaction) -> bool:
        """Whether an id's producer lives.  Free means dead; held proves nothing."""
        _, prober, _ = self._opened()
        return transaction.owner != NOBODY and prober.is_held_elsewhere(_OWNERS + transaction.owner)

    # ---- to an end -----------------------------------------------------------------------------------------------------------

    def init(self, transactional_id: str, event: Init, timeout: float) -> Transaction:
        """Take an id over for a producer: end what is open, fence who had it."""
        deadline = monotonic() + timeout
        while True:
            found = self.settled(transactional_id, left(deadline))
            if event.new_producer_id < 0 and needs_producer_id(found, event.run):
                event = event._replace(new_producer_id=self.home.new_producer_id(left(deadline)))
            try:
                return self.change(transactional_id, left(deadline), partial(_initialised, event=event))
            except ConcurrentTransactionsError:
                if monotonic() >= deadline:
                    raise

    def settled(self, transactional_id: str, timeout: float) -> Transaction:
        """An id with nothing open and nothing prepared any more."""
        deadline = monotonic() + timeout
        found = self.current(transactional_id, timeout)
        while found.unmarked is not None:
            if monotonic() > deadline:
                raise StreamlogTimeoutError(f"waited {timeout:g} s for transactional_id={transactional_id!r}, which is {found.state}")
            found = self.carry_on(found, left(deadline), abort=True)
        return found

    def carry_on(self, found: Transaction, timeout: float, *, abort: bool = False) -> Transaction:
        """Finish what is prepared, and abort what is open and over (its producer dead or late), or in any case if `abort`.

        Returns the id as it is then.
        """
        if found.state in PREPARING:
            return self.finish(found, timeout)
        if found.state == ONGOING and (abort or self.clock.monotonic_ms() > found.deadline_ms or not self.is_alive(found)):
            return self._abort(found, timeout)
        return found

    def _abort(self, found: Transaction, timeout: float) -> Transaction:
        """End a transaction that was found open, unless it went on meanwhile; its producer is fenced."""
        deadline = monotonic() + timeout
        event = Abort(found.producer_id, found.epoch, self.clock.agreed_ms())
        try:
            prepared = self.change(found.transactional_id, timeout, lambda now: apply(now, event))
        except ConcurrentTransactionsError:
            return self.current(found.transactional_id, left(deadline))
        return self.finish(prepared, left(deadline))

    def without_open(self, ids: Collection[str], partition: Partition, timeout: float, function: Callable[[], R]) -> R:
        """Call `function` while none of these ids has a transaction open in a partition, nor begins one: what is open there is aborted."""
        deadline = monotonic() + timeout
        held: list[Transaction] = []

        def inside() -> R:
            held.extend(self._without_open(each, partition, deadline) for each in ids)
            return function()

        for stripe in sorted(set(map(names.transaction_lock, ids)), reverse=True):
            inside = partial(under, self._lock_at(stripe), left(deadline), inside)
        try:
            return inside()
        finally:
            for each in held:
                if each.state in PREPARING:
                    self.finish(each, left(deadline))

    def _without_open(self, transactional_id: str, partition: Partition, deadline: float) -> Transaction:
        """Under the id's lock; what is prepared counts when this returns."""

        def ended(found: Transaction) -> Transaction:
            if found.state != ONGOING or partition not in found.partitions:
                return found
            return apply(found, Abort(found.producer_id, found.epoch, self.clock.agreed_ms()))

        log = self.states.keeper(transactional_id, left(deadline))
        after = self._change(log, transactional_id, ended, deadline)
        if after.synced and after.state in PREPARING:
            log.log.sync(left(deadline))  # nobody acts on it before (H29)
        return after

    def finish(self, found: Transaction, timeout: float) -> Transaction:
        """Carry out what is prepared: a marker in each partition, then Complete.  Returns the id as it is then.

        Any number of processes may be at it, and each may be stopped anywhere: a marker that is there is not written again, one that comes too
        late is refused, and Complete is written only over that Prepare (H38).  A partition that does not take its marker keeps none from
        the others; its error is raised then, and the transaction stays prepared.
        """
        deadline = monotonic() + timeout
        if found.synced:
            self.states.keeper(found.transactional_id, timeout).log.sync(left(deadline))  # one reads what is not yet on the disk
        trouble: StreamlogError | None = None
        for topic_id, partition in sorted(found.partitions):
            try:
                log = self._partition_log(topic_id, partition, left(deadline))
                if log is not None:
                    log.append(Marker(found.ended.producer_id, found.epoch, self.clock.now_ms(), commit=found.ended.commit), left(deadline))
            except InvalidProducerEpochError:
                continue  # others have finished here, and the producer went on; if it did so everywhere Complete is refused
            except UnknownTopicOrPartitionError:
                continue  # deleted meanwhile
            except StreamlogError as error:
                trouble = trouble or error
        if trouble is not None:
            raise trouble
        if found.synced:
            self.sync(found.partitions, left(deadline))
        new_producer_id = self.home.new_producer_id(left(deadline)) if found.epoch > LAST_EPOCH else -1
        event = Complete(found, self.clock.agreed_ms(), new_producer_id)
        try:
            return self.change(found.transactional_id, left(deadline), lambda now: apply(now, event))
        except ConcurrentTransactionsError:
            return self.current(found.transactional_id, left(deadline))

    def sync(self, partitions: Iterable[Partition], timeout: float) -> None:
        """Return once all that these partitions hold now is on the disk."""
        deadline = monotonic() + timeout
        for topic_id, partition in sorted(partitions):
            log = self._partition_log(topic_id, partition, left(deadline))
            if log is not None:
                log.sync(left(deadline))

    def _partition_log(self, topic_id: bytes, partition: int, timeout: float) -> Log | None:
        """A partition that was registered; None where its topic was deleted."""
        by_id = self.home.metadata.by_id
        topic = by_id.get(topic_id)
        if topic is None or partition >= topic.partitions:
            self.home.refresh(timeout)
            topic = by_id.get(topic_id)
        return None if topic is None else self.home.log(topic, partition, timeout)

    # ---- who meets an open transaction -----------------------------------------------------------------------------------------

    def look_into(self, log: Log, timeout: float) -> None:
        """Somebody met the earliest open transaction of a partition: end it if its producer is dead or late."""
        first = log.last_stable_offset
        if first >= log.high_watermark:
            return
        for producer in self._producers_at(log, first, timeout):
            found = self.of_producer(producer[0], timeout)
            if found is not None and found.unmarked == producer:
                self.carry_on(found, timeout)
            elif log.last_stable_offset == first:  # what ended it would stand in the log by now
                self.end_hanging(log, *producer, timeout)

    def _producers_at(self, log: Log, first: int, timeout: float) -> list[tuple[int, int]]:
        """Producer id and epoch of the earliest open transaction, which begins at `first`; of all that are open where that is damaged."""
        met = self._met.get(log)
        if met is None or met[0] != first:
            try:
                met = self._met[log] = first, producer_at(log, first, timeout)
            except CorruptRecordError:
                return [(producer_id, epoch) for producer_id, epoch, _ in open_transactions(log)]
        return [met[1]]

    def of_producer(self, producer_id: int, timeout: float) -> Transaction | None:
        """The id that has, or had, a producer id."""
        for log in self.states.all(timeout):
            if (found := log.by_producer(producer_id)) is not None:
                return found
        return None

    def end_hanging(self, log: Log, producer_id: int, epoch: int, timeout: float) -> None:
        """What ended a transaction is lost here (a power cut; H39): end it by the outcome that is on record, else abort it."""
        commit = self.was_committed(producer_id, epoch, timeout)
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

    def was_committed(self, producer_id: int, epoch: int, timeout: float) -> bool:
        """The outcome of a transaction that is not open any more: of the last of its id, else of any whose record is still in the log."""
        found = self.of_producer(producer_id, timeout)
        if found is not None and found.ended[:2] == (producer_id, epoch):
            return found.ended.commit
        return any(log.ever_committed(producer_id, epoch, timeout) for log in self.states.all(timeout))

    def end_for_member(self, log: Log, producer_id: int, epoch: int, *, gone: bool, timeout: float) -> None:
        """Offsets in `log` are pending in this transaction, and somebody waits for them: see that they do not stay so (H37).

        If the member that sent them is `gone` from its group, the transaction goes with it.
        """
        found = self.of_producer(producer_id, timeout)
        if found is not None and found.unmarked == (producer_id, epoch):
            self.carry_on(found, timeout, abort=gone)
        else:
            self.end_hanging(log, producer_id, epoch, timeout)  # writes nothing if its marker is there, which is the usual case


def _initialised(found: Transaction, event: Init) -> Transaction:
    """The id after the event, if that has the producer id that it needs."""
    if event.new_producer_id < 0 and needs_producer_id(found, event.run):
        raise ConcurrentTransactionsError(f"transactional_id={found.transactional_id!r} went on meanwhile")
    return apply(found, event)
