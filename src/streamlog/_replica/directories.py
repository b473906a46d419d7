"""The directories of replicas: how they come into being, are replaced, and go.

A directory is somebody's as long as the metadata say so.  So a call that replaces or removes one decides under the metadata lock, on metadata
that it read under that lock: what it saw before may be old, and what it would remove may hold acknowledged records by now.  Under the lock a
directory that goes only changes its name.  A name that ends in `-delete` is never used again, so its files are removed under any lock or none.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from streamlog._replica.home import Home

from streamlog._format import names
from streamlog._log import partition as partition_log
from streamlog._log import segment
from streamlog._os import files, process
from streamlog._replica import blame, checkpoints
from streamlog._replica.metadata import TOPIC_ID as METADATA_TOPIC_ID
from streamlog.errors import DiskFailedError, StorageError

_OURS = (names.LOG, names.INDEX, names.TRANSACTION_INDEX, names.SNAPSHOT, names.TEMPORARY, names.LEADER_EPOCHS)


def identity(home: Home, directory: str) -> int:
    """The inode of a directory; -1: there is none."""
    try:
        return home.fs.stat(directory).st_ino
    except (FileNotFoundError, NotADirectoryError):
        return -1


def make(home: Home, name: str, topic_id: bytes, number: int, broker: int) -> None:
    """Make the directory of a replica, empty.  What is there under its name is a leftover.  Under the metadata lock.

    Raises: DiskFailedError, StorageFullError: the broker's directory cannot be used.
    """
    _making(home, broker, f"{name}-{number}", lambda: _make(home, name, topic_id, number, broker))


def _making(home: Home, broker: int, replica: str, function: Callable[[], object]) -> None:
    """Call what makes a directory.  A broker that is gone fails: that is no error of the call's."""
    try:
        blame.on(broker, function)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        failed = DiskFailedError(f"{home.brokers[broker].path}: a replica of {replica} cannot be made: {error}")
        failed.broker = broker
        raise failed from None


def _make(home: Home, name: str, topic_id: bytes, number: int, broker: int) -> None:
    directory = home.directory(name, number, broker)
    if files.exists(directory):  # of a creation, a deletion or a move that was cut short
        remove(home, [take_away(home, directory)])
        checkpoints.lower(home, broker, (topic_id.hex(), number), 0)
    partition_log.create(home.fs, directory, topic_id, number)
    files.take_owner(directory, home.path)


def make_anew(
    home: Home, name: str, key: tuple[bytes, int], broker: int, seen: int, void: Callable[[], object], timeout: float
) -> None:  # fmt: skip
    """Put an empty directory in the place of one that cannot be used, of which `seen` is the identity.

    `void` makes the shared words of the replica count for nothing; it is called where the directory is replaced.  Nothing is done where
    another process was faster, where the replica is in sync on a broker that is online, or where it is none any more.
    Raises: DiskFailedError, StorageFullError: the broker's directory cannot be used.
    """
    directory, taken = home.directory(name, key[1], broker), list[str]()

    def act() -> None:
        state, known = home.metadata.partitions.get(key), home.metadata.brokers.get(broker)
        if state is None or known is None or broker not in state.replicas or identity(home, directory) != seen:
            return
        if known.is_online and broker in state.in_sync:
            return
        if seen >= 0:
            taken.append(take_away(home, directory))
        void()
        checkpoints.lower(home, broker, (key[0].hex(), key[1]), 0)
        partition_log.create(home.fs, directory, key[0], key[1])
        files.take_owner(directory, home.path)

    home.metadata.write(timeout, list, lambda: _making(home, broker, f"{name}-{key[1]}", act))
    remove(home, taken)


def drop(home: Home, name: str, key: tuple[bytes, int], broker: int, void: Callable[[], object], timeout: float) -> None:
    """Remove a replica's directory after its partition has moved, unless the partition has come back meanwhile.  `void`: see `make_anew`."""
    taken: list[str] = []

    def act() -> None:
        state = home.metadata.partitions.get(key)
        directory = home.directory(name, key[1], broker) if broker in home.brokers else ""
        if (state is None or broker not in state.replicas) and files.is_directory(directory):
            void()
            checkpoints.lower(home, broker, (key[0].hex(), key[1]), 0)
            taken.append(take_away(home, directory))

    home.metadata.write(timeout, list, act)
    remove(home, taken)


def take_away(home: Home, directory: str, topic_id: bytes = b"") -> str:
    """Give a partition's directory a name that nobody uses, and return it.  Readers that have it mapped go on reading.

    Under the metadata lock.
    """
    broker, _, name = directory.rpartition("/")
    topic, number = names.parse_partition(name) or (name, 0)
    target = f"{broker}/{names.deleted(topic, number, topic_id or process.random_bytes(16))}"
    home.fs.replace(directory, target)
    return target


def remove(home: Home, taken: Iterable[str]) -> None:
    """Remove directories that were taken away.  Under any lock or none."""
    for directory in taken:
        files.remove_directory(home.fs, directory)


def sweep(home: Home, broker: int, timeout: float) -> None:
    """Remove what creations, deletions and moves that were cut short left behind on a broker."""
    candidates = leftovers(home, broker)
    if candidates:
        taken: list[str] = []
        home.metadata.write(timeout, list, lambda: taken.extend(take_leftovers(home, candidates)))
        remove(home, taken)


def leftovers(home: Home, broker: int) -> list[str]:
    """Directories on a broker that belong to nothing, as far as this process has heard: `take_leftovers` asks again under the lock."""
    path = home.brokers[broker].path
    try:
        found = [f"{path}/{name}" for name in home.fs.listdir(path) if names.parse_partition(name) or name.endswith(names.DELETED)]
    except OSError:
        if not home.is_replicated:
            raise
        return []
    return [directory for directory in found if files.is_directory(directory) and _is_leftover(home, directory)]


def take_leftovers(home: Home, candidates: Iterable[str]) -> list[str]:
    """Of some directories take away those that are leftovers; returns what is to be removed.  Under the metadata lock, all folded."""
    taken = []
    for directory in candidates:
        if directory.endswith(names.DELETED):
            taken.append(directory)
        elif files.is_directory(directory) and _is_leftover(home, directory):
            taken.append(take_away(home, directory))
    return taken


def _is_leftover(home: Home, directory: str) -> bool:
    """Whether a directory holds nothing but segments of topics, or partitions, that the metadata do not have."""
    known = home.metadata.by_id
    try:
        listing = home.fs.listdir(directory)
    except FileNotFoundError:
        return False  # somebody was faster
    if not all(name.endswith(_OURS) for name in listing):
        return False
    for base in names.base_offsets(listing):
        try:
            header = segment.read_header(home.fs, f"{directory}/{names.log(base)}")
        except (StorageError, OSError):
            return False
        owner = known.get(header.topic_id)
        if header.topic_id == METADATA_TOPIC_ID or (owner is not None and header.partition < owner.partitions):
            return False
    return directory.endswith(names.DELETED) or bool(listing)
