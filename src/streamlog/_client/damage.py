"""Damaged partitions of which there is no other copy, as an operator asks for them."""

from __future__ import annotations

from streamlog._client import transaction_admin
from streamlog._client.transaction_coordinator import TransactionCoordinator
from streamlog._format import names
from streamlog._log import repair as log_repair
from streamlog._log.partition import PartitionLog
from streamlog._os.clock import left, monotonic
from streamlog._replica import lost_metadata
from streamlog._replica.home import Home
from streamlog._replica.metadata import TOPIC_ID, TopicMetadata
from streamlog.errors import ConfigurationError, CorruptRecordError, InvalidStateError, StreamlogTimeoutError
from streamlog.types import Damage


def _log(home: Home, topic: str, partition: int, timeout: float) -> PartitionLog:
    """The replica that is read; of the metadata the only one."""
    if topic == names.METADATA_TOPIC and partition == 0:
        return home.log(TopicMetadata(names.METADATA_TOPIC, TOPIC_ID, 1, {}), 0, timeout).replica
    return home.log(home.metadata.topic(topic), partition, timeout).replica


def of(home: Home, topic: str, partition: int, timeout: float) -> list[Damage]:
    """What of a partition cannot be read."""
    return [Damage(topic, partition, *hole) for hole in log_repair.holes(_log(home, topic, partition, timeout), timeout)]


def refuse(home: Home, timeout: float) -> None:
    """Raise CorruptRecordError where anything is damaged."""
    for topic in list(home.metadata.topics.values()):
        for number in range(topic.partitions):
            for first, after, reason in log_repair.holes(_log(home, topic.name, number, timeout), timeout):
                how = f"`streamlog repair {topic.name}:{number}` shows what can be done"
                message = f"{topic.name}-{number} is damaged at offset {first}, and there is no other copy; {how} ({reason})"
                raise CorruptRecordError(message, _log(home, topic.name, number, timeout).directory, 0, first, None, after)


def repair(coordinator: TransactionCoordinator, topic: str, partition: int, keep: str, timeout: float) -> str:
    """Go on without what is damaged; returns where the segments were copied to.

    Transactions that are open in the partition are aborted first: no commit is to succeed without records that were acknowledged.
    """
    home, deadline = coordinator.home, monotonic() + timeout
    if keep not in ("before", "behind"):
        raise ConfigurationError(f'keep={keep!r}: must be "before" or "behind"')
    if home.is_replicated:
        raise InvalidStateError(f"{topic}-{partition}: the cluster must have one broker; with several, Cluster.repair() copies from another one")
    log = _log(home, topic, partition, timeout)
    found = log_repair.holes(log, timeout)
    if not found:
        return ""
    if topic in (names.METADATA_TOPIC, names.TRANSACTIONS_TOPIC):
        return _cut(log, found, keep, {}, left(deadline))  # they have no transactions, and may be what is damaged
    ids, asked = set[str](), set[tuple[int, int]]()  # ids that may have a transaction open there, and transactions that are, by the log

    def cut() -> str:
        return _cut(log, found, keep, transaction_admin.outcomes(coordinator, asked, left(deadline)), left(deadline))

    while True:
        ids |= transaction_admin.open_ids(coordinator, log, left(deadline))
        try:
            aside = coordinator.without_open(ids, (log.topic_id, log.partition), left(deadline), cut)
        except log_repair.OpenTransactionsError as error:
            asked |= error.transactions
            if monotonic() > deadline:
                raise StreamlogTimeoutError(f"waited {timeout:g} s for the transactions in {log.name} to end") from None
            continue
        if ids:
            import logging

            some = ", ".join(sorted(ids)[:5]) + ", …" * (len(ids) > 5)
            logging.getLogger("streamlog").warning("%s was repaired: %d transactions were open there, and were ended: %s", log.name, len(ids), some)
        return aside


def _cut(log: PartitionLog, found: list[log_repair.Hole], keep: str, ended: log_repair.Outcomes, timeout: float) -> str:
    if keep == "before":
        return log_repair.end_before(log, found[0][0], ended, timeout)
    return log_repair.begin_behind(log, found[-1][1], ended, timeout)


def compare_with_disk(home: Home, timeout: float) -> None:
    """Bring metadata that lost records in step with the directories; each change is logged."""
    import logging

    for change in lost_metadata.compare(home, timeout):
        logging.getLogger("streamlog").warning(change)
