"""`with producer.transaction():`"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from streamlog._client.transaction_manager import TransactionManager
    from streamlog.producer import Producer

from streamlog._client.transaction_manager import ABORTABLE_ERROR, ABORTING, FATAL_ERROR, IN_TRANSACTION, READY, UNINITIALIZED
from streamlog.errors import ClosedError, InvalidTxnStateError


class TransactionContext:
    """Commits at the end of the block, and aborts where an exception ends it.

    A block that has ended its transaction itself is left alone.  Every other block that ends without an exception raises where its transaction
    does not count: the producer was closed or fenced inside it, or the block began another transaction.
    """

    def __init__(self, producer: Producer, manager: TransactionManager) -> None:
        self._producer, self._manager = producer, manager
        self._number = -1

    def __enter__(self) -> Producer:
        if self._manager.state == UNINITIALIZED:
            self._producer.init_transactions()
        elif self._manager.state == ABORTING:
            self._producer.abort_transaction()  # the former block's, which took too long
        self._producer.begin_transaction()
        self._number = self._manager.number
        return self._producer

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        manager = self._manager
        if kind is not None:
            self._abort()
        elif manager.number != self._number:
            if manager.state != READY:
                self._abort()
                if manager.state == FATAL_ERROR and manager.error is not None:
                    raise manager.error
                raise InvalidTxnStateError("the block ended its transaction and began another one, which must end inside the block: it was aborted")
        elif manager.closed_inside == self._number:
            raise ClosedError("the producer was closed inside the transaction's block: nothing of the transaction counts")
        elif manager.ended != self._number:
            try:
                self._producer.commit_transaction()
            except BaseException:
                self._abort()
                raise

    def _abort(self) -> None:
        """Abort where that is still possible; what the block raised is what its caller sees."""
        if self._manager.state in (IN_TRANSACTION, ABORTABLE_ERROR) and not self._producer._closed_reason:
            try:
                self._producer.abort_transaction()
            except Exception:
                import logging

                logging.getLogger("streamlog").exception("abort of a transaction of %r", self._producer)
