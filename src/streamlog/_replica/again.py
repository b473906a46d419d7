"""Letting go of locks to have the controller act, and starting over (H19)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    R = TypeVar("R")

from streamlog._os.clock import monotonic, sleep
from streamlog.errors import NotLeaderOrFollowerError

_PAUSE = 0.002  # seconds: others elect, too


class NeedsControllerError(NotLeaderOrFollowerError):
    """An append inside another lock met something that only the controller can settle: let go, call `settle`, and start over (H19)."""

    def __init__(self, message: str, settle: Callable[[], object]) -> None:
        super().__init__(message)
        self.settle = settle


def starting_over(deadline: float, function: Callable[..., R], *args: Any) -> R:
    """Call what takes locks and appends inside; where that needs the controller it lets go, has it act, and starts over, until `deadline`.

    Raises: NotLeaderOrFollowerError: the controller could not settle it until then, and what `function` raises.
    """
    while True:
        try:
            return function(*args)
        except NeedsControllerError as need:
            need.settle()
            if monotonic() >= deadline:
                raise
            sleep(_PAUSE)
