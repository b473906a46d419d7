"""`with producer.transaction():`"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from streamlog._client.transaction_manager import TransactionManager
    from streamlog.producer import Producer

from streamlog._client.transaction_manager import ABORTABLE_ERROR, ABORTING, IN_TRANSACTION, UNINITIALIZED


class TransactionContext:
    """Commits at the end of the block, and aborts where an exception ends it; a block that has ended its transaction itself is left alone."""

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
        if kind is not None:
            self._abort()
        elif self._is_open():
            try:
                self._producer.commit_transaction()
            except BaseException:
                self._abort()
                raise

    def _is_open(self) -> bool:
        return self._manager.number == self._number and self._manager.state in (IN_TRANSACTION, ABORTABLE_ERROR)

    def _abort(self) -> None:
        """Abort where that is still possible; what the block raised is what its caller sees."""
        if self._is_open():
            try:
                self._producer.abort_transaction()
            except Exception:
                import logging

                logging.getLogger("streamlog").exception("abort of a transaction of %r", self._producer)
