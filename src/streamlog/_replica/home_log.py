"""`HomeLog`: a partition's log, or a replica's, as part of an open home."""

from __future__ import annotations

import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from streamlog._replica.home import Home

from streamlog._format import names
from streamlog._log import open_files
from streamlog._log.partition import PartitionLog


class HomeLog(PartitionLog):
    """A log of an open home: its files count against the home's limit, and its checkpoints are its broker's."""

    def __init__(self, home: Home, *args: Any, broker: int) -> None:
        super().__init__(*args)
        self._home, self._broker = weakref.ref(home), broker
        self._key = self.topic_id.hex(), self.partition

    def _open_active(self, base_offset: int) -> None:
        super()._open_active(base_offset)
        open_files.opened(self)

    def _is_of_this_mount(self) -> bool:
        return super()._is_of_this_mount() or self._is_used_elsewhere()

    def _is_used_elsewhere(self) -> bool:
        """Whether another process has the broker open: nobody unmounts its disk then.  In its mount namespace the mount has another number."""
        home = self._home()
        lock_file = None if home is None or self._broker not in home.brokers else home.brokers[self._broker].lock_file
        return lock_file is not None and lock_file.is_held_elsewhere(0)

    def release_files(self) -> bool:
        released = super().release_files()
        if released:
            open_files.closed(self)
        return released

    def close(self) -> None:
        super().close()
        open_files.closed(self)

    def checkpointed_high_watermark(self) -> int:
        home = self._home()
        return 0 if home is None else home.checkpointed_high_watermark(self.topic_id, self.partition)

    def reload_recovery_point(self) -> None:
        home = self._home()
        if home is not None and self._broker in home.brokers:
            self.recovery_point = home.brokers[self._broker].load(names.RECOVERY_POINTS).get(self._key, 0)

    def lower_recovery_point(self, offset: int) -> None:
        super().lower_recovery_point(offset)
        home = self._home()
        if home is not None:
            from streamlog._replica import checkpoints  # here: opening needs none

            checkpoints.lower(home, self._broker, self._key, offset)
