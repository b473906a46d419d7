"""A cluster's home directory in one process: who is here, what of `run/` counts, and the logs that are open.

Everybody who has the cluster open holds the file `lock` shared; making or remaking `run/` needs it exclusively (H7), so live
state is only ever reset where nobody uses it.
"""

from __future__ import annotations

import struct
import weakref
from _thread import RLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

from streamlog._format import checkpoint, names
from streamlog._log import partition as partition_log
from streamlog._log.partition import LogSettings, PartitionLog
from streamlog._log.state import OPEN, SYNCED, StateFile
from streamlog._os import files, locks, mapping, process
from streamlog._os.clock import Clock, monotonic, sleep
from streamlog._os.files import FileSystem
from streamlog._os.locks import METADATA, PARTITION, ByteLock, LockFile, under
from streamlog._os.wake import Bell
from streamlog._replica import metadata as metadata_log
from streamlog._replica.metadata import Metadata, TopicMetadata
from streamlog.config import ClusterConfig
from streamlog.errors import (
    ClosedError,
    DiskFailedError,
    InvalidConfigError,
    NotAClusterError,
    StreamlogError,
    StreamlogTimeoutError,
    UnknownTopicOrPartitionError,
    UnsupportedFormatError,
)

FORMAT_VERSION = 1
_STATE = struct.Struct("<4sB3xQQQ")  # magic, version, boot id, device and inode of this very file
_STATE_MAGIC = b"SLR1"
_CLOCK, _BELL, _NEXT_ID, _END_ID, _RUN_ID, _PROCESSES = 8, 9, 10, 11, 12, 64  # words of cluster.state
_ID_BLOCK = 1000  # producer ids that one metadata record gives away, as in Kafka
_STATE_PAGES = 4
_MAX_PROCESSES = _STATE_PAGES * files.PAGE // 8 - _PROCESSES
_OPEN_LOGS = 80  # up to three descriptors each (H11)
_TICK = 1.0  # seconds between looks whether our files are still those under their names
_OURS = frozenset((names.LOCK, names.CLUSTER, names.RUN, names.broker(0)))


class TopicFiles:
    """The state file of one topic, and its partitions' logs.  Needs no descriptor of its own."""

    __slots__ = ("lock", "logs", "state")

    def __init__(self, state: StateFile, lock_file: LockFile, topic_id: bytes) -> None:
        self.state = state
        index = names.lock_bytes(topic_id) + names.TOPIC_LOCK
        self.lock = ByteLock(lock_file, index, PARTITION, lambda: f"the topic lock of {state.path}, held by another process")
        self.logs: dict[int, PartitionLog] = {}


class Home:
    """An open cluster directory.  Safe to share between threads; not between a process and its fork."""

    def __init__(self, fs: FileSystem, path: str, *, create: bool, config: Mapping[str, Any], timeout: float, reserve: bool) -> None:
        self.fs, self.path, self._reserve = fs, path, reserve
        self.closed = ""
        self._lock = RLock()
        self._topics: dict[bytes, TopicFiles] = {}
        self._open_logs: dict[PartitionLog, None] = {}
        self.next_tick = monotonic() + _TICK
        self.met_transaction: Callable[[PartitionLog], None] = _nothing
        """Called now and then for a log with an open transaction: its producer may be dead."""
        self._lock_files: list[LockFile] = []
        try:
            self._enter(create, config, timeout)
        except BaseException:
            self.abandon()
            raise
        _homes.add(self)

    # ---- entering ------------------------------------------------------------------------------------------------------------

    def _enter(self, create: bool, config: Mapping[str, Any], timeout: float) -> None:
        self._wanted_config = {name: ClusterConfig(config).items()[name] for name in config}
        self._prepare(create)
        self._home_lock = self._locked(timeout)
        broker = f"{self.path}/{names.broker(0)}"
        self.cluster_id = self._check_cluster()
        self._broker_lock = self.keep(LockFile(self.fs, f"{broker}/{names.LOCK}"))
        if not self._broker_lock.try_shared(0):
            raise StreamlogTimeoutError(f"{broker} is being remade by another process")
        run = f"{self.path}/{names.RUN}"
        self._run_locks = self.keep(LockFile(self.fs, f"{run}/{names.CLUSTER_LOCKS}"))
        self._partition_locks = self.keep(LockFile(self.fs, f"{run}/{names.PARTITION_LOCKS}"))
        self._claim_process()
        self.clock = Clock(self._page.words, _CLOCK)
        self.bell = Bell(self._page, _BELL * 2)
        self._recovery_points = self._load_recovery_points()
        topic = TopicMetadata(names.METADATA_TOPIC, metadata_log.TOPIC_ID, 1, {})
        log = self.log(topic, 0, timeout)
        lock = ByteLock(self._run_locks, 0, METADATA, lambda: "the metadata lock of the cluster")
        self.metadata = Metadata(log, lock)
        self.metadata.now_ms = self.clock.now_ms
        self.metadata.refresh(timeout)

    def keep(self, lock_file: LockFile) -> LockFile:
        """Watch a lock file's name from now on, and close it with the home."""
        self._lock_files.append(lock_file)
        return lock_file

    def _prepare(self, create: bool) -> None:
        """The directory is ours, or may become so."""
        try:
            listing = set(self.fs.listdir(self.path))
        except FileNotFoundError:
            if not create:
                raise NotAClusterError(f"{self.path} does not exist, and create=False") from None
            files.make_directories(self.path)
            return
        except NotADirectoryError:
            raise NotAClusterError(f"{self.path} is a file; a cluster is a directory") from None
        for name in (names.RUN, names.broker(0)):
            if name in listing and not files.is_directory(f"{self.path}/{name}"):
                raise NotAClusterError(f"{self.path}/{name} is not a directory; links are not followed")
        if names.CLUSTER in listing:
            return
        strangers = sorted(name for name in listing - _OURS if not name.endswith(names.TEMPORARY))
        if strangers:
            raise NotAClusterError(f"{self.path} is not a cluster: it has {strangers[0]!r} and no {names.CLUSTER}")
        if not create:
            raise NotAClusterError(f"{self.path} is not a cluster: it has no {names.CLUSTER}, and create=False")

    def _locked(self, timeout: float) -> LockFile:
        """Hold the home's lock shared, with a cluster and a `run/` that counts; make either where nobody else is here."""
        deadline = monotonic() + timeout
        while True:
            lock_file = self.keep(LockFile(self.fs, f"{self.path}/{names.LOCK}"))
            if self._hold(lock_file.try_shared, deadline) and not lock_file.replaced():
                if self._is_made():
                    return lock_file
                lock_file.unlock(0)
                if not self._hold(lock_file.try_exclusive, deadline):
                    raise StreamlogTimeoutError(
                        f"{self.path}/{names.RUN} does not count (removed, copied or half made) while other processes have the "
                        "cluster open; close them first"
                    )
                if not lock_file.replaced():
                    self._make()
                    lock_file.try_shared(0)
                    return lock_file
            lock_file.close()  # the directory was swept between our opening and locking
            self._lock_files.remove(lock_file)
            if monotonic() > deadline:
                raise StreamlogTimeoutError(f"{self.path} is being made or removed by another process")
            files.make_directories(self.path)

    @staticmethod
    def _hold(take: Callable[[int], bool], deadline: float) -> bool:
        while not take(0):
            if monotonic() > deadline:
                return False
            sleep(0.001)
        return True

    def _is_made(self) -> bool:
        """Map `cluster.state`; whether it and the cluster are there and count."""
        try:
            self.fs.stat(f"{self.path}/{names.CLUSTER}")
            self._page, identity = mapping.open_page(self.fs, f"{self.path}/{names.RUN}/{names.CLUSTER_STATE}")
        except FileNotFoundError:
            return False
        return self._page.map[: _STATE.size] == self._state_header(identity)

    def _state_header(self, identity: tuple[int, int]) -> bytes:
        return _STATE.pack(_STATE_MAGIC, FORMAT_VERSION, self.fs.boot_id(), *identity)

    def _make(self) -> None:
        """Nobody else is here: make the cluster where there is none, and begin `run/` anew.  State files are reset in place."""
        self._make_cluster()
        run = f"{self.path}/{names.RUN}"
        try:
            self.fs.mkdir(run)
            files.take_owner(run, self.path)
        except FileExistsError:
            for name in self.fs.listdir(run):
                if name != names.CLUSTER_STATE and not files.is_directory(f"{run}/{name}"):
                    self.fs.unlink(f"{run}/{name}")
        path = f"{run}/{names.CLUSTER_STATE}"
        try:
            self._page, identity = mapping.open_page(self.fs, path)
        except FileNotFoundError:
            mapping.create(self.fs, path, bytes(_STATE_PAGES * files.PAGE))
            self._page, identity = mapping.open_page(self.fs, path)
        for number in range(self._page.size // 8):
            self._page.words[number] = 0
        self._page.words[_RUN_ID] = int.from_bytes(process.random_bytes(8), "little") >> 1
        self._page.map[: _STATE.size] = self._state_header(identity)

    def _make_cluster(self) -> None:
        """Bring a cluster into being.  Commit step: `cluster.json` takes its name."""
        path = f"{self.path}/{names.CLUSTER}"
        try:
            self.fs.stat(path)
            return
        except FileNotFoundError:
            pass
        broker = f"{self.path}/{names.broker(0)}"
        for name in self.fs.listdir(self.path):
            if name.startswith(names.broker(0)) and name.endswith(names.TEMPORARY):
                files.remove_tree(f"{self.path}/{name}")
        if files.is_directory(broker):
            cluster_id = _read_properties(self.fs, broker)["cluster.id"]
            if self.fs.listdir(broker) and not self._is_new(broker):
                raise NotAClusterError(f"{self.path} has lost its {names.CLUSTER}: restore it, or copy the topics elsewhere")
        else:
            cluster_id = process.random_bytes(16).hex()
            self._make_broker(broker, cluster_id)
        self.fs.sync_dir(self.path)
        files.write_whole(self.fs, path, _encode_cluster(cluster_id, self._wanted_config), temporary=f"{path}{names.TEMPORARY}")

    def _make_broker(self, broker: str, cluster_id: str) -> None:
        temporary = f"{broker}.{process.pid()}{names.TEMPORARY}"
        self.fs.mkdir(temporary)
        partition_log.create(self.fs, f"{temporary}/{names.partition(names.METADATA_TOPIC, 0)}", metadata_log.TOPIC_ID, 0)
        path = f"{temporary}/{names.META_PROPERTIES}"
        properties = f"version=1\ncluster.id={cluster_id}\nbroker.id=0\n".encode()
        files.write_whole(self.fs, path, properties, temporary=f"{path}{names.TEMPORARY}")
        files.take_owner(temporary, self.path)
        self.fs.replace(temporary, broker)

    def _is_new(self, broker: str) -> bool:
        """Whether a broker has no topic: its making was cut short before `cluster.json`."""
        return not any(
            parsed and parsed[0] != names.METADATA_TOPIC for parsed in map(names.parse_partition, self.fs.listdir(broker))
        )

    def _check_cluster(self) -> str:
        path = f"{self.path}/{names.CLUSTER}"
        import json

        try:
            found = json.loads(files.read_file(self.fs, path))
            version, cluster_id, stored = found["format_version"], found["cluster_id"], found["config"]
        except (ValueError, KeyError, TypeError) as error:
            raise NotAClusterError(f"{path} is not a cluster's description: {error}") from None
        if version > FORMAT_VERSION:
            raise UnsupportedFormatError(f"{path}: format version {version}; this program knows up to {FORMAT_VERSION}", path)
        self.config = ClusterConfig(stored)
        for name, value in self._wanted_config.items():
            if value != getattr(self.config, name):
                raise InvalidConfigError(f"{name}={value}: this cluster was created with {getattr(self.config, name)}")
        broker = f"{self.path}/{names.broker(0)}"
        owner = _read_properties(self.fs, broker)["cluster.id"]
        if owner != cluster_id:
            raise NotAClusterError(f"{broker} belongs to cluster {owner}, this is cluster {cluster_id}")
        return str(cluster_id)

    def _claim_process(self) -> None:
        """A liveness byte of our own, then our name beside it (H23)."""
        for number in range(_MAX_PROCESSES):
            if self._run_locks.try_exclusive(number + 1):
                self._page.words[_PROCESSES + number] = process.pid()
                self._process = number
                return
        raise StreamlogTimeoutError(f"{self.path} is open in {_MAX_PROCESSES} processes already")

    @property
    def run_id(self) -> int:
        """A number drawn when the live state was made: another one after a reboot, in a copy, and where `run/` was lost."""
        return self._page.words[_RUN_ID]

    def processes(self) -> tuple[int, ...]:
        """Pids of the processes that have the cluster open."""
        found = [process.pid()]
        for number, pid in enumerate(self._page.words[_PROCESSES : _PROCESSES + _MAX_PROCESSES].tolist()):
            if pid and number != self._process and self._run_locks.is_held_elsewhere(number + 1):
                found.append(pid)
        return tuple(sorted(set(found)))

    # ---- logs ------------------------------------------------------------------------------------------------------------------

    def directory(self, topic: str, partition: int) -> str:
        """Where a partition's files are."""
        return f"{self.path}/{names.broker(0)}/{names.partition(topic, partition)}"

    def log(self, topic: TopicMetadata, partition: int, timeout: float) -> PartitionLog:
        """The log of a partition; its slot and lock are opened, its files are not.  Raises UnknownTopicOrPartitionError."""
        if not 0 <= partition < topic.partitions:
            raise UnknownTopicOrPartitionError(f"topic {topic.name!r} has partitions 0 to {topic.partitions - 1}, not {partition}")
        with self._lock:
            self.check_open()
            found = self._topics.get(topic.topic_id) or self._open_topic(topic.topic_id, timeout)
            log = found.logs.get(partition)
            if log is None:
                log = found.logs[partition] = self._make_log(found, topic, partition, timeout)
            return log

    def _open_topic(self, topic_id: bytes, timeout: float) -> TopicFiles:
        state = StateFile(self.fs, f"{self.path}/{names.RUN}/{names.state(topic_id)}", topic_id)
        found = TopicFiles(state, self._partition_locks, topic_id)
        if not found.state.is_claimed():
            under(found.lock, timeout, found.state.claim)
        self._topics[topic_id] = found
        return found

    def _make_log(self, found: TopicFiles, topic: TopicMetadata, partition: int, timeout: float) -> PartitionLog:
        if not found.state.holds(partition):
            under(found.lock, timeout, found.state.grow, partition)
        config = topic.config
        settings = LogSettings(
            config.segment_bytes, config.segment_ms, config.index_interval_bytes, config.flush_messages, config.flush_ms,
            reserve=self._reserve, now_ms=self.clock.now_ms, producer_id_expiration_ms=self.config.producer_id_expiration_ms,
        )  # fmt: skip
        return _HomeLog(
            self, self.fs, self.directory(topic.name, partition), topic.name, topic.topic_id, partition,
            found.state.slot(partition), self._partition_locks, self.bell, settings,
            self._recovery_points.get((topic.topic_id.hex(), partition), 0),
        )  # fmt: skip

    def new_producer_id(self, timeout: float) -> int:
        """A producer id that nobody else has, had or gets.  Under no lock.

        Ids come in blocks, each a metadata record that is on the disk before an id of it is used (H31).  How much of the block is used
        is live state, for all processes: what a reboot forgets of a block is never given away.
        """
        words, found = self._page.words, [-1]

        def decide() -> list[list[Any]]:
            used_up = words[_NEXT_ID] >= words[_END_ID]
            return [["ProducerIdsRecord", self.metadata.next_producer_id + _ID_BLOCK]] if used_up else []

        def take() -> None:
            if words[_NEXT_ID] >= words[_END_ID]:
                words[_NEXT_ID] = self.metadata.next_producer_id - _ID_BLOCK  # first: until the end follows the block counts as used up
                words[_END_ID] = self.metadata.next_producer_id
            found[0] = words[_NEXT_ID]
            words[_NEXT_ID] = found[0] + 1

        self.metadata.write(timeout, decide, take)
        return found[0]

    def release_topic(self, topic_id: bytes) -> None:
        """Close a topic's files."""
        with self._lock:
            found = self._topics.pop(topic_id, None)
            if found is not None:
                for log in found.logs.values():
                    self._open_logs.pop(log, None)
                    log.release_files()

    def refresh(self, timeout: float) -> None:
        """Fold the metadata, and let go of topics that were deleted."""
        self.metadata.refresh(timeout)
        for topic_id in [topic_id for topic_id in self._topics if topic_id not in self.metadata.by_id]:
            if topic_id != metadata_log.TOPIC_ID:
                self.release_topic(topic_id)

    def opened(self, log: PartitionLog) -> None:
        """A log has opened its files: beyond `_OPEN_LOGS` the one that did so longest ago closes its own (H11)."""
        self._open_logs.pop(log, None)
        self._open_logs[log] = None
        if len(self._open_logs) > _OPEN_LOGS:
            for oldest in list(self._open_logs)[:-1]:
                if oldest.release_files():
                    self._open_logs.pop(oldest, None)
                    return

    def all_logs(self) -> Iterator[PartitionLog]:
        """The logs that this process has used."""
        for found in list(self._topics.values()):
            yield from list(found.logs.values())

    # ---- looking after ---------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Once a second, before an append and while waiting: are our files still those under their names (H7, H8)?  Is a transaction open
        where we read or write?
        """
        now = monotonic()
        if now < self.next_tick:
            return
        self.next_tick = now + _TICK
        for lock_file in list(self._lock_files):
            if lock_file.replaced():
                self.closed = f"{lock_file.path} was removed or replaced while the cluster was open"
                raise DiskFailedError(f"{self.closed}; close it in every process and open it again")
        for log in self.all_logs():
            log.check_place()
            if log.words[OPEN]:
                self.met_transaction(log)

    def check_open(self) -> None:
        """Raise ClosedError or what closed us."""
        if self.closed:
            raise ClosedError(f"{self.path}: {self.closed}")

    def _load_recovery_points(self) -> dict[tuple[str, int], int]:
        """What is on the disk for certain: spares a scan after a reboot.  Derived; a damaged file says nothing."""
        try:
            rows = checkpoint.decode(files.read_file(self.fs, f"{self.path}/{names.broker(0)}/{names.RECOVERY_POINTS}"), 3)
            return {(topic_id, int(number)): int(offset) for topic_id, number, offset in rows}
        except (FileNotFoundError, ValueError, UnicodeDecodeError):
            return {}

    def save_recovery_points(self, timeout: float) -> None:
        """Write the checkpoint if a log of ours has more on the disk than it says."""
        synced = {(log.topic_id.hex(), log.partition): log.words[SYNCED] for log in self.all_logs()}
        if any(offset > self._recovery_points.get(key, 0) for key, offset in synced.items()):
            under(self.metadata._lock, timeout, self._write_recovery_points, synced)

    def _write_recovery_points(self, synced: dict[tuple[str, int], int]) -> None:
        points = self._load_recovery_points()
        points.update((key, offset) for key, offset in synced.items() if offset)
        known = {*(topic_id.hex() for topic_id in self.metadata.by_id), metadata_log.TOPIC_ID.hex()}
        rows = [(*key, offset) for key, offset in sorted(points.items()) if key[0] in known]
        path = f"{self.path}/{names.broker(0)}/{names.RECOVERY_POINTS}"
        files.write_whole(self.fs, path, checkpoint.encode(rows), temporary=f"{path}{names.TEMPORARY}")
        self._recovery_points = points

    # ---- leaving ---------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave: what is here goes on without us."""
        with self._lock:
            if not self.closed:
                self.closed = "closed"
                try:
                    self.save_recovery_points(1.0)
                except (StreamlogError, OSError):
                    pass  # derived: it only spares a scan
                self._page.words[_PROCESSES + self._process] = 0
            self.abandon()

    def abandon(self) -> None:
        """Close all descriptors, unlocking nothing by name: a forked child's copies are its parent's locks (H22)."""
        self.closed = self.closed or "closed"
        for found in self._topics.values():
            for log in found.logs.values():
                log.close()
        self._topics.clear()
        self._open_logs.clear()
        for lock_file in self._lock_files:
            lock_file.close()
        self._lock_files.clear()

    def __del__(self) -> None:
        self.abandon()  # only closes descriptors: a collector may run this inside a locked section

    def is_last(self) -> bool:
        """Whether nobody else has the cluster open; the caller is on its way out and then holds it exclusively."""
        return self._home_lock.try_exclusive(0)


def _nothing(_: PartitionLog) -> None:
    """Nobody coordinates transactions here."""


class _HomeLog(PartitionLog):
    """A log whose open files count against the home's limit."""

    def __init__(self, home: Home, *args: Any) -> None:
        super().__init__(*args)
        self._home = weakref.ref(home)

    def _open_active(self, base_offset: int) -> None:
        super()._open_active(base_offset)
        home = self._home()
        if home is not None:
            home.opened(self)


def _encode_cluster(cluster_id: str, config: dict[str, Any]) -> bytes:
    import json

    return json.dumps(
        {"format_version": FORMAT_VERSION, "cluster_id": cluster_id, "brokers": [names.broker(0)], "config": config}, indent=2
    ).encode()


def _read_properties(fs: FileSystem, broker: str) -> dict[str, str]:
    """A broker's `meta.properties`.  A registered broker without it is failed, never made anew (H8)."""
    path = f"{broker}/{names.META_PROPERTIES}"
    try:
        lines = files.read_file(fs, path).decode().splitlines()
    except FileNotFoundError:
        raise NotAClusterError(f"{path} is missing: the broker's directory was lost or another disk is mounted there") from None
    found = dict(line.partition("=")[::2] for line in lines if "=" in line)
    if "cluster.id" not in found:
        raise NotAClusterError(f"{path} names no cluster")
    return found


_homes: weakref.WeakSet[Home] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for home in list(_homes):
        home._lock = RLock()
        home.closed = "it belongs to the process that this one was forked from"
        home.abandon()
    _homes.clear()
    locks.inside.clear()


process.after_fork_in_child(_after_fork_in_child)
