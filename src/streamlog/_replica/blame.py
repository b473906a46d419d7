"""Whose error it is: a disk that fails in a call is the disk of the broker that the call was about."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")

from streamlog.errors import CorruptRecordError, DiskFailedError, StorageError, StorageFullError, UnsupportedFormatError

BROKEN = (DiskFailedError, StorageFullError, FileNotFoundError, NotADirectoryError, PermissionError)
"""Errors that mean that a broker's directory cannot be used: it fails (EIO), is full, is missing, or is read-only."""
DAMAGED = (CorruptRecordError, UnsupportedFormatError)
"""Errors that mean that a replica is damaged.  An unknown format version may be damage: another replica may have a known one."""


def on(broker: int, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call what touches the directory of one broker alone; an error of its disk says so, unless it knows better."""
    try:
        return function(*args, **kwargs)
    except (OSError, StorageError, StorageFullError) as error:
        if owner_of(error) is None and not isinstance(error, TimeoutError):
            error.broker = broker  # type: ignore[union-attr]
        raise


def owner_of(error: BaseException) -> int | None:
    """The broker that an error is about; None: it does not say."""
    found: int | None = getattr(error, "broker", None)
    return found
