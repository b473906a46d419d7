"""Looking at transactions, and ending them, from outside."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from streamlog._log.partition import PartitionLog

from streamlog._client.transaction_coordinator import TransactionCoordinator
from streamlog._coord.transaction import PREPARING, Expire, Fence, Transaction, apply
from streamlog._log.aborted import open_transactions
from streamlog._log.log import Log
from streamlog._os.clock import left, monotonic
from streamlog.errors import ConfigurationError, StreamlogError, TransactionalIdNotFoundError, UnknownTopicOrPartitionError
from streamlog.types import HangingTransaction, TopicPartition, TransactionDescription, TransactionListing


def listing(coordinator: TransactionCoordinator, timeout: float) -> list[TransactionListing]:
    """All ids, sorted."""
    found = [transaction for log in coordinator.states.all(timeout) for transaction in log.all()]
    return sorted(TransactionListing(each.transactional_id, each.state, each.producer_id) for each in found)


def existing(coordinator: TransactionCoordinator, transactional_id: str, timeout: float) -> Transaction:
    """An id that somebody used.  Raises TransactionalIdNotFoundError."""
    if not isinstance(transactional_id, str):
        raise ConfigurationError(f"transactional_id={transactional_id!r}: a name is wanted")
    if coordinator.states.partitions:
        found = coordinator.current(transactional_id, timeout)
        if found.producer_id >= 0:
            return found
    raise TransactionalIdNotFoundError(f"nobody has used transactional_id={transactional_id!r}")


def describe(coordinator: TransactionCoordinator, transactional_id: str, timeout: float) -> TransactionDescription:
    """An id as it stands."""
    found, by_id = existing(coordinator, transactional_id, timeout), coordinator.home.metadata.by_id
    partitions = sorted(TopicPartition(by_id[topic_id].name, number) for topic_id, number in found.partitions if topic_id in by_id)
    return TransactionDescription(
        transactional_id, found.state, found.producer_id, found.epoch, found.client_id, found.pid, coordinator.is_alive(found),
        found.timeout_ms, found.started_ms, tuple(partitions),
    )  # fmt: skip


def abort(coordinator: TransactionCoordinator, transactional_id: str, timeout: float) -> None:
    """Abort what an id has open, carry out what is prepared, and fence its producer in any case."""
    deadline = monotonic() + timeout
    existing(coordinator, transactional_id, timeout)
    coordinator.settled(transactional_id, left(deadline))
    event = Fence(coordinator.clock.agreed_ms())
    coordinator.change(transactional_id, left(deadline), lambda found: apply(found, event) if found.owner else found)


def hanging(coordinator: TransactionCoordinator, timeout: float, troubles: list[StreamlogError] | None = None) -> list[HangingTransaction]:
    """Open transactions of which their transactional ids know nothing.

    `troubles`: gets the errors of partitions that cannot be looked at, and the others are looked at; None: the first is raised.
    """
    home = coordinator.home
    home.refresh(timeout)
    topics = sorted(home.metadata.topics.values(), key=lambda topic: topic.name)
    found: list[HangingTransaction] = []
    for topic in topics:
        for partition in range(topic.partitions):
            try:
                found += _hanging_in(coordinator, home.log(topic, partition, timeout), timeout)
            except UnknownTopicOrPartitionError:
                break  # deleted meanwhile
            except StreamlogError as error:
                if troubles is None:
                    raise
                troubles.append(error)
    return found


def _hanging_in(coordinator: TransactionCoordinator, log: Log, timeout: float) -> list[HangingTransaction]:
    log.ensure_valid(timeout)
    if log.last_stable_offset == log.high_watermark:
        return []
    unknown = []
    for producer_id, epoch, first in open_transactions(log):
        found = coordinator.of_producer(producer_id, timeout)
        if found is None or found.unmarked != (producer_id, epoch):
            unknown.append((producer_id, epoch, first))
    still = open_transactions(log) if unknown else []  # one may have ended between the two looks
    return [HangingTransaction(log.topic, log.partition, each[2], each[0], each[1]) for each in unknown if each in still]


def end_hanging(coordinator: TransactionCoordinator, topic: str, partition: int, first_offset: int, timeout: float) -> None:
    """End a hanging transaction.  Raises TransactionalIdNotFoundError where none begins there, UnknownTopicOrPartitionError."""
    coordinator.home.refresh(timeout)
    log = coordinator.home.log(coordinator.home.metadata.topic(topic), partition, timeout)
    for each in _hanging_in(coordinator, log, timeout):
        if each.first_offset == first_offset:
            coordinator.end_hanging(log, each.producer_id, each.producer_epoch, timeout)
            return
    raise TransactionalIdNotFoundError(f"no hanging transaction begins at offset {first_offset} of {topic}-{partition}")


def open_ids(coordinator: TransactionCoordinator, log: PartitionLog, timeout: float) -> set[str]:
    """The ids whose transaction may have records in a partition, and is neither ended nor over: what is over is ended here."""
    deadline, key = monotonic() + timeout, (log.topic_id, log.partition)
    every = [found for states in coordinator.states.all(timeout) for found in states.all()]
    there = [found for found in every if found.unmarked is not None and key in found.partitions]
    now = [coordinator.carry_on(found, left(deadline)) for found in there]
    return {found.transactional_id for found in now if found.unmarked is not None and key in found.partitions}


def outcomes(coordinator: TransactionCoordinator, transactions: Iterable[tuple[int, int]], timeout: float) -> dict[tuple[int, int], bool]:
    """Of those transactions (producer id and epoch) whose outcome is decided: whether they were committed."""
    decided = {}
    for producer_id, epoch in transactions:
        found = coordinator.of_producer(producer_id, timeout)
        if found is None or found.unmarked != (producer_id, epoch) or found.state in PREPARING:
            decided[producer_id, epoch] = coordinator.was_committed(producer_id, epoch, timeout)
    return decided


def maintain(coordinator: TransactionCoordinator, timeout: float) -> None:
    """End what is over, and forget ids that nobody has used for `transactional_id_expiration_ms`; the first error is raised at the end."""
    limit = coordinator.clock.agreed_ms() - coordinator.home.config.transactional_id_expiration_ms
    troubles: list[StreamlogError] = []
    for found in [found for log in coordinator.states.all(timeout) for found in log.all()]:
        try:
            now = coordinator.carry_on(found, timeout)
            if now.unmarked is None and now.updated_ms < limit and not coordinator.is_alive(now):
                _expire(coordinator, now, timeout)
        except StreamlogError as error:
            troubles.append(error)
    for each in hanging(coordinator, timeout, troubles):
        try:
            end_hanging(coordinator, each.topic, each.partition, each.first_offset, timeout)
        except (UnknownTopicOrPartitionError, TransactionalIdNotFoundError):
            continue  # deleted, or ended by somebody else
        except StreamlogError as error:
            troubles.append(error)
    if troubles:
        raise troubles[0]


def _expire(coordinator: TransactionCoordinator, found: Transaction, timeout: float) -> None:
    coordinator.change(found.transactional_id, timeout, lambda now: apply(now, Expire()) if now == found else now)
