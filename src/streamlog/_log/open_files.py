"""The logs whose files this process has open: as many as its limit of descriptors allows, over all its clusters (H11).

Beyond the bound the log that opened its files longest ago closes them, if no thread is inside; it opens them again when it needs them.  Where a
descriptor cannot be had all the same, half of them close theirs.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from streamlog._log.partition import PartitionLog

from streamlog._os import files

_SHARE, _FEWEST, _MOST = 12, 4, 256  # a log has up to three descriptors: a quarter of those that a process may have

_open: dict[PartitionLog, None] = {}  # the longest open first.  Changed by single operations: threads and signal handlers may be here at once


def bound() -> int:
    """How many logs may have their files open."""
    return min(_MOST, max(_FEWEST, files.descriptor_limit() // _SHARE))


def opened(log: PartitionLog) -> None:
    """A log has opened its files."""
    _open.pop(log, None)
    _open[log] = None
    if len(_open) > bound():
        for oldest in list(_open)[:-1]:
            if oldest.release_files():
                return


def closed(log: PartitionLog) -> None:
    """A log has closed its files."""
    _open.pop(log, None)


def let_go() -> bool:
    """No descriptor is left: close what can be opened again; whether there was any."""
    found = list(_open)
    released = [log.release_files() for log in found[: len(found) // 2 + 1]]
    return any(released)


files.on_exhausted.append(let_go)
