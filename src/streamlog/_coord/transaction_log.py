"""`__transaction_state`: what becomes of transactional ids, as a fold over a log.

Keys and values are msgpack arrays; the last record of a key counts, one without a value takes it away (state Dead).

    ["Transaction", transactional id]   [state, producer id, epoch, owner, run, pid, client id, timeout (ms), deadline (monotonic ms),
                                         started (ms), updated (ms), synced, [producer id, epoch, commits] of the last one prepared,
                                         [[topic id, partition], …]]
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from streamlog._format.batch import Batch
    from streamlog._log.pending import Pending

from streamlog._coord.transaction import DEAD, Ended, Transaction
from streamlog._format import names
from streamlog._log.fold import Fold, packed, unpacked
from streamlog._log.log import Log
from streamlog._log.reader import LogReader

_KIND = "Transaction"


class TransactionsLog(Fold):
    """One partition of `__transaction_state`, and this process's fold of it.  Safe to share between threads."""

    snapshot, snapshot_every = names.TRANSACTIONS_SNAPSHOT, 4096

    def __init__(self, log: Log, *, use_snapshot: bool = True) -> None:
        super().__init__(log, use_snapshot=use_snapshot)
        self._transactions: dict[str, Transaction] = {}
        self._by_producer: dict[int, str] = {}

    def append(self, transaction: Transaction, timeout: float) -> Pending:
        """Write the state of an id; it counts when this returns."""
        value = None if transaction.state == DEAD else _encode(transaction)
        batch = packed([([_KIND, transaction.transactional_id], value)], transaction.updated_ms)
        self.log.append(batch, timeout)
        return batch

    def get(self, transactional_id: str) -> Transaction:
        """An id, as far as folded."""
        return self._transactions.get(transactional_id) or Transaction(transactional_id)

    def by_producer(self, producer_id: int) -> Transaction | None:
        """The id that has a producer id, or had it when its last transaction was prepared."""
        found = self._by_producer.get(producer_id)
        return None if found is None else self._transactions.get(found)

    def ever_committed(self, producer_id: int, epoch: int, timeout: float) -> bool:
        """Whether any record says that a transaction was committed: reads the whole log, for what is lost elsewhere."""
        reader = LogReader(self.log, self.log.start_offset, timeout=timeout)
        while (batch := reader.next()) is not None:
            for (_, transactional_id), value in unpacked(batch):
                if value is not None and _decode(transactional_id, value).ended == (producer_id, epoch, True):
                    return True
        return False

    def all(self) -> list[Transaction]:
        """All ids, as far as folded."""
        return list(self._transactions.values())

    def _fold(self, batch: Batch) -> None:
        for (_, transactional_id), value in unpacked(batch):
            self._put(transactional_id, value)

    def _put(self, transactional_id: str, value: Any) -> None:
        old = self._transactions.get(transactional_id)
        if value is None:
            self._transactions.pop(transactional_id, None)
        else:
            now = _decode(transactional_id, value)
            self._transactions[transactional_id] = now
            for producer_id in _producers(now):
                self._by_producer[producer_id] = transactional_id
        if old is not None:
            for producer_id in _producers(old) - _producers(self.get(transactional_id)):
                self._by_producer.pop(producer_id, None)

    def _copied(self) -> Any:
        return dict(self._transactions)

    def _packed(self, state: Any) -> Any:
        return [(transactional_id, _encode(transaction)) for transactional_id, transaction in state.items()]

    def _unpack(self, packed: Any) -> None:
        for transactional_id, value in packed:
            self._put(transactional_id, value)


def _producers(transaction: Transaction) -> set[int]:
    """The producer ids that are known to be an id's."""
    return {transaction.producer_id, transaction.ended.producer_id} - {-1}


def _encode(transaction: Transaction) -> list[Any]:
    return [*transaction[1:-1], list(transaction.partitions)]


def _decode(transactional_id: str, value: Any) -> Transaction:
    *fields, ended, partitions = value
    return Transaction._make((transactional_id, *fields, Ended(*ended), frozenset(map(tuple, partitions))))
