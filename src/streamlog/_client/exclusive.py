"""`exclusive`: a consumer belongs to one thread at a time."""

from __future__ import annotations

from functools import wraps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Concatenate, ParamSpec, TypeVar

    from streamlog.consumer import Consumer

    P = ParamSpec("P")
    R = TypeVar("R")

from streamlog.errors import ConcurrentModificationError

AT_ONCE = (False,)


def exclusive(
    *, keep_chunk: bool = False, fetches: bool = False
) -> Callable[[Callable[Concatenate[Consumer, P], R]], Callable[Concatenate[Consumer, P], R]]:
    """One thread at a time: a method of a consumer that a second one may not call meanwhile.

    Before it what iteration holds goes back to its partitions, unless `keep_chunk`.  A call that `fetches` and is broken off returns
    nothing: positions are then as before.  A `close` that a listener or a signal handler asked for happens when the outermost call ends.
    """

    def decorate(function: Callable[Concatenate[Consumer, P], R]) -> Callable[Concatenate[Consumer, P], R]:
        @wraps(function)
        def call(self: Consumer, *args: P.args, **kwargs: P.kwargs) -> R:
            held: list[bool] = []
            outermost = False
            try:
                held.extend(map(self._acquire, AT_ONCE))  # as in `_os.locks.under`: an exception leaks no lock (H14)
                if not held[0]:
                    raise ConcurrentModificationError("a consumer belongs to one thread; another one is using it")
                outermost = not self._busy
                self._busy = True
                self._check_open()
                if self._chunk and not keep_chunk:
                    self._take_back()
                return function(self, *args, **kwargs)
            except BaseException:
                if fetches and outermost:
                    self._fetcher.rewind()
                    self._chunk, self._chunk_left = [], iter(())
                raise
            finally:
                try:
                    if outermost:
                        self._busy = False
                        if self._close_asked is not None:
                            self.close(*self._close_asked)
                finally:
                    if True in held:
                        self._release()

        return call  # type: ignore[return-value]  # the checker names the first argument

    return decorate
