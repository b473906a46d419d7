"""An internal topic whose partitions are folds: `__consumer_offsets`, `__transaction_state`."""

from __future__ import annotations

from _thread import RLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Generic, TypeVar

    from streamlog._log.log import Log

    F = TypeVar("F", bound="Fold")
else:  # `typing` costs a third of a cold start

    class Generic:
        """Stands for typing's."""

        def __class_getitem__(cls, _: object) -> type:
            return cls

    F = None

from streamlog._format import names
from streamlog._log.fold import Fold
from streamlog._replica import topics
from streamlog._replica.home import Home


class InternalTopic(Generic[F]):
    """The folds of its partitions in this process, each made when it is first asked for.  Safe to share between threads."""

    def __init__(self, home: Home, name: str, partitions: int, fold: Callable[[Log], F]) -> None:
        """`partitions`: how many it gets when it is made, which the first key does."""
        self._home, self._name, self._wanted, self._make = home, name, partitions, fold
        self._lock = RLock()
        self._folds: dict[int, F] = {}
        self._places: dict[str, int] = {}  # partitions by key: a transaction asks five times, and the hash takes 2 µs

    @property
    def partitions(self) -> int:
        """How many there are; 0: the topic is not there yet."""
        topic = self._home.metadata.topics.get(self._name)
        return 0 if topic is None else topic.partitions

    def keeper(self, key: str, timeout: float) -> F:
        """The fold that keeps a key; makes the topic where there is none."""
        if not self.partitions:
            topics.create_internal(self._home, self._name, self._wanted, timeout)
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = names.keeper_partition(key, self.partitions)
        return self.fold(place, timeout)

    def fold(self, partition: int, timeout: float) -> F:
        """The fold of a partition that is there."""
        with self._lock:
            found = self._folds.get(partition)
            if found is None:
                topic = self._home.metadata.topics[self._name]
                found = self._folds[partition] = self._make(self._home.log(topic, partition, timeout))
            return found

    def all(self, timeout: float) -> Iterator[F]:
        """Every fold, up to date.  Raises StreamlogTimeoutError inside one of them."""
        if self._home.metadata.changed():
            self._home.refresh(timeout)
        for partition in range(self.partitions):
            fold = self.fold(partition, timeout)
            fold.catch_up(timeout)
            yield fold
