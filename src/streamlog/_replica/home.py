"""A cluster's home directory in one process: who is here, what of `run/` counts, and the logs that are open.

Everybody who has the cluster open holds the file `lock` shared; making or remaking `run/` needs it exclusively (H7), so live
state is only ever reset where nobody uses it.
"""

from __future__ import annotations

import struct
import weakref
from _thread import RLock, get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from streamlog._replica.controller import Controller
    from streamlog._replica.fetcher import Fetcher
    from streamlog._replica.quorum import Quorum
    from streamlog._replica.replicated import ReplicatedLog

from streamlog._format import names
from streamlog._log import partition as partition_log
from streamlog._log.log import Log
from streamlog._log.partition import PartitionLog
from streamlog._log.pending import LogSettings
from streamlog._log.state import OPEN, Slot, StateFile
from streamlog._os import files, locks, mapping, process
from streamlog._os.clock import Clock, monotonic, sleep
from streamlog._os.files import FileSystem
from streamlog._os.locks import METADATA, PARTITION, ByteLock, LockFile, under
from streamlog._os.wake import Bell
from streamlog._replica import description, leadership
from streamlog._replica.brokers import Broker, read_properties
from streamlog._replica.description import FORMAT_VERSION, Description
from streamlog._replica.election import change_record, created
from streamlog._replica.home_log import HomeLog
from streamlog._replica.metadata import STOPPED, TOPIC_ID, Metadata, TopicMetadata
from streamlog.config import ClusterConfig
from streamlog.errors import (
    ClosedError,
    DiskFailedError,
    NotAClusterError,
    NotEnoughReplicasError,
    NotLeaderOrFollowerError,
    ResourceLimitError,
    StorageError,
    StreamlogError,
    StreamlogTimeoutError,
    UnknownTopicOrPartitionError,
)

_STATE = struct.Struct("<4sB3xQQQ")  # magic, version, boot id, device and inode of this very file
_STATE_MAGIC = b"SLR1"
_CLOCK, _BELL, _NEXT_ID, _END_ID, _RUN_ID, _MOUNT, _AGREED, _HOLDER, _PROCESSES = 8, 9, 10, 11, 12, 13, 14, 17, 64  # words of cluster.state
_ID_BLOCK = 1000  # producer ids that one metadata record gives away, as in Kafka
_STATE_BYTES = 4 * files.PAGE
_MAX_PROCESSES = _STATE_BYTES // 8 - _PROCESSES
_OPEN_SOURCES = 48  # leaders' files that are mapped for followers
_TICK = 1.0  # seconds between looks whether our files are still those under their names
_NOTICE = 3.0  # seconds in which others notice that a broker's directory is not there any more
_SAVE = 5.0  # seconds between checkpoints (Kafka's replica.high.watermark.checkpoint.interval.ms)


class TopicFiles:
    """The state files of one topic, and its partitions' logs.  Needs no descriptor of its own."""

    __slots__ = ("leaders", "lock", "logs", "states", "topic_id")

    def __init__(self, lock_file: LockFile, topic_id: bytes, what: str) -> None:
        self.topic_id = topic_id
        self.states: dict[int, StateFile] = {}  # by broker
        self.leaders: StateFile | None = None  # with several brokers
        index = names.lock_bytes(topic_id) + names.TOPIC_LOCK
        self.lock = ByteLock(lock_file, index, PARTITION, lambda: f"the {what}, held by another process")
        self.logs: dict[int, PartitionLog | ReplicatedLog] = {}


class Home:
    """An open cluster directory.  Safe to share between threads; not between a process and its fork."""

    fetcher: Fetcher
    controller: Controller
    """Both only where there are several brokers."""

    def __init__(
        self, fs: FileSystem, path: str, *, create: bool, config: Mapping[str, Any], timeout: float, reserve: bool,
        brokers: int | list[str] | None = None, reads_metadata: bool = True,
    ) -> None:  # fmt: skip
        """`brokers`: how many, below the home, or where they are; None: as it was made, with one where it is made now.

        `reads_metadata`: False for who repairs them.
        """
        self._reads_metadata = reads_metadata
        self.fs, self.path, self._reserve = fs, path, reserve
        self.closed = ""
        self._lock = RLock()
        self._topics: dict[bytes, TopicFiles] = {}
        self._sources: dict[tuple[ReplicatedLog, int], None] = {}
        self.cluster_id = ""
        self.description = Description("", {}, {})
        self.brokers: dict[int, Broker] = {}
        self.quorum: Quorum | None = None
        self.deleted_groups: set[str] = set()
        self._broker_locks: dict[int, LockFile] = {}
        self.next_tick = monotonic() + _TICK
        self._next_save = monotonic() + _SAVE
        self.met_transaction: Callable[[Log], None] = _nothing
        """Called now and then for a log with an open transaction: its producer may be dead."""
        self._lock_files: list[LockFile] = []
        try:
            self._enter(create, config, None if brokers is None else description.paths(path, brokers), timeout)
        except BaseException:
            self.abandon()
            raise
        _homes.add(self)

    # ---- entering ------------------------------------------------------------------------------------------------------------

    def _enter(self, create: bool, config: Mapping[str, Any], brokers: dict[int, str] | None, timeout: float) -> None:
        self._wanted_config = {name: ClusterConfig(config).items()[name] for name in config}
        self._wanted_brokers = brokers
        self._prepare(create)
        self._home_lock = self._locked(timeout)
        self._read_description()
        run = f"{self.path}/{names.RUN}"
        self.run_locks = self.keep(LockFile(self.fs, f"{run}/{names.CLUSTER_LOCKS}"))
        self._partition_locks = self.keep(LockFile(self.fs, f"{run}/{names.PARTITION_LOCKS}"))
        unopened = self._open_brokers()
        self._claim_process()
        self.clock = Clock(self._page.words, _CLOCK, _AGREED)
        self.bell = Bell(self._page, _BELL * 2)
        holder = self._page.words[_HOLDER : _HOLDER + 1]
        lock = ByteLock(self.run_locks, 0, METADATA, lambda: locks.describe("metadata lock of the cluster", holder, 0))
        if self.is_replicated:
            from streamlog._replica.controller import Controller  # here: a third of a cold start, which one broker does without
            from streamlog._replica.fetcher import Fetcher

            self.fetcher, self.controller = Fetcher(self), Controller(self)
            self.fs = files.letting_go(self.fs)  # a disk that hangs must not keep the interpreter (H40)
            self.quorum = self._make_quorum(lock)
            self.metadata = Metadata(self.quorum, lock, quorum=True)
        else:
            self.metadata = Metadata(self.log(TopicMetadata(names.METADATA_TOPIC, TOPIC_ID, 1, {}), 0, timeout), lock)
        self.metadata.now_ms, self.metadata.holder = self.clock.now_ms, holder
        if self.quorum is not None:
            self._join_quorum(self.quorum, lock, unopened, timeout)
        if self._reads_metadata:
            self.metadata.refresh(timeout)

    @property
    def is_replicated(self) -> bool:
        """Whether there are several brokers: partitions have leaders then, and the metadata a quorum."""
        return len(self.brokers) > 1

    def _identity(self) -> str:
        """What names our live state to who has another home (of several brokers only: one is below its home)."""
        return f"{self.run_id} {self.path}\n" if len(self.description.brokers) > 1 else ""

    def _open_brokers(self) -> dict[int, Exception]:
        """Open the brokers' directories; returns those of several that cannot be."""
        unopened: dict[int, Exception] = {}
        for number, path in self.description.brokers.items():
            broker = self.brokers[number] = Broker(self.fs, number, path)
            try:
                broker.open(self.cluster_id, self._identity())
            except (OSError, StreamlogError) as error:
                if len(self.description.brokers) == 1 or isinstance(error, ResourceLimitError):
                    raise
                unopened[number] = error
        if len(unopened) == len(self.description.brokers):
            raise next(iter(unopened.values()))
        return unopened

    def _make_quorum(self, lock: ByteLock) -> Quorum:
        files_ = self._open_topic(TOPIC_ID, 60.0)
        topic = TopicMetadata(names.METADATA_TOPIC, TOPIC_ID, 1, {})
        if len(self.brokers) == 2:
            self._make_home_copy()
        lock_byte = names.lock_bytes(TOPIC_ID) + 2
        from streamlog._replica.quorum import Quorum

        return Quorum(
            self.fs, TOPIC_ID, self._leadership(files_, 0, 60.0), self._partition_locks, lock_byte,
            lambda broker: self._replica(files_, topic, 0, broker), self.voters, self._is_out, self.config.replica_lag_time_max_ms,
            lock, self.clock.now_ms,
        )  # fmt: skip

    def voters(self) -> list[int]:
        """The copies of the metadata log: one in each broker; of two the home holds a third."""
        found = sorted(self.metadata.brokers or self.brokers)
        return [*found, leadership.HOME] if len(found) == 2 else found

    def _is_out(self, broker: int) -> str:
        known, opened = self.metadata.brokers.get(broker), self.brokers.get(broker)
        if opened is not None and opened.lock_file is None and not (known is not None and known.is_online and self._reopens(broker)):
            return STOPPED  # nothing is written to what could not be opened
        return "" if known is None or known.is_online else known.state

    def _make_home_copy(self) -> None:
        directory = self.directory(names.METADATA_TOPIC, 0, leadership.HOME)
        if not files.is_directory(directory):
            partition_log.create(self.fs, directory, TOPIC_ID, 0)
            self.fs.sync_dir(self.path)

    def _join_quorum(self, quorum: Quorum, lock: ByteLock, unopened: dict[int, Exception], timeout: float) -> None:
        """See that the metadata can be read, that they know the brokers, and that who cannot be opened is out (H43)."""
        if not quorum.is_begun():
            under(lock, timeout, quorum.catch_up, timeout)
        metadata = self.metadata
        metadata.refresh(timeout)
        if not metadata.brokers:
            metadata.write(timeout, self._first_records)
        metadata.written = self._after_write
        self.follow_brokers()
        for number, error in unopened.items():
            until = monotonic() + min(timeout, _NOTICE)
            while number in self.controller.alive() and len(self.processes()) > 1 and not self._opens(number):
                if monotonic() > until:
                    raise StorageError(f"broker {number} cannot be opened here, though other processes have it open: {error}") from error
                sleep(0.02)  # others look once a second whether it is there
                metadata.refresh(timeout)
            if number in self.controller.alive() and self.brokers[number].lock_file is None:
                try:
                    self.controller.fail(number, error, timeout)
                except NotEnoughReplicasError as refused:
                    import logging  # here: 6 ms of a cold start

                    logging.getLogger("streamlog").warning("%s", refused)
        self._describe_anew()

    def _opens(self, number: int) -> bool:
        """Whether a broker's directory, which is not the one that we opened, is that broker's: it was brought back, or repaired."""
        try:
            self.metadata.refresh(1.0)
        except (OSError, StreamlogError):
            return False
        return self._reopens(number)

    def _reopens(self, number: int) -> bool:
        """Open a broker's directory again, if it is the one that the metadata have."""
        try:
            known = self.metadata.brokers.get(number)
            found = read_properties(self.fs, self.brokers[number].path).get("directory.id", "")
            if known is None or (known.directory_id and found != known.directory_id):
                return False
            self.brokers[number].open(self.cluster_id, self._identity())
        except (OSError, StreamlogError):
            return False
        return True

    def _first_records(self) -> list[list[Any]]:
        if self.metadata.brokers:
            return []
        found: list[list[Any]] = [["ClusterRecord", self.description.config]]
        for number, broker in sorted(self.brokers.items()):
            directory_id = read_properties(self.fs, broker.path).get("directory.id", "")
            found.append(["RegisterBrokerRecord", number, description.relative(self.path, broker.path), directory_id])
        for topic in self.metadata.topics.values():  # of a cluster that had one broker until now
            found += [change_record((topic.topic_id, number), created((0,))) for number in range(topic.partitions)]
        return found

    def _after_write(self) -> None:
        """Copies of the metadata that failed in a write: their brokers are out."""
        quorum = self.quorum
        if quorum is None or not quorum.failures:
            return
        failures, quorum.failures = quorum.failures, {}
        for broker, error in failures.items():
            known = self.metadata.brokers.get(broker)
            if known is not None and known.is_online:
                self.controller.fail(broker, error, 10.0)

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
        if names.RUN in listing and not files.is_directory(f"{self.path}/{names.RUN}"):
            raise NotAClusterError(f"{self.path}/{names.RUN} is not a directory; links are not followed")
        if names.CLUSTER in listing:
            return
        strangers = sorted(name for name in listing if not _is_ours(name))
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
                    self._follow_mount(lock_file)
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
            self._page, identity = mapping.open_page(self.fs, f"{self.path}/{names.RUN}/{names.CLUSTER_STATE}", _STATE_BYTES)
        except FileNotFoundError:
            return False
        return self._page.map[: _STATE.size] == self._state_header(identity)

    def _state_header(self, identity: tuple[int, int]) -> bytes:
        return _STATE.pack(_STATE_MAGIC, FORMAT_VERSION, self.fs.boot_id(), *identity)

    def _make(self) -> None:
        """Nobody else is here: make the cluster where there is none, and begin `run/` anew.  State files are reset in place."""
        if not files.exists(f"{self.path}/{names.CLUSTER}"):
            description.make(self.fs, self.path, self._wanted_config, self._wanted_brokers)
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
            self._page, identity = mapping.open_page(self.fs, path, _STATE_BYTES)
        except FileNotFoundError:
            mapping.create(self.fs, path, bytes(_STATE_BYTES))
            self._page, identity = mapping.open_page(self.fs, path, _STATE_BYTES)
        for number in range(self._page.size // 8):
            self._page.words[number] = 0
        self._begin_run()
        self._page.map[: _STATE.size] = self._state_header(identity)

    def _begin_run(self) -> None:
        """Draw a new number, and give away no producer id that was left: pages of another time may say that used ones are free (H31)."""
        words = self._page.words
        words[_RUN_ID] = int.from_bytes(process.random_bytes(8), "little") >> 1
        words[_NEXT_ID] = words[_END_ID]
        words[_MOUNT] = files.mount_of(self.path)

    def _follow_mount(self, lock_file: LockFile) -> None:
        """Begin a new run if the mount is another one, and nobody is here: the disk may have come back as it was at an earlier time."""
        if self._page.words[_MOUNT] != files.mount_of(self.path) and lock_file.try_exclusive(0):
            self._begin_run()
            lock_file.try_shared(0)

    def _describe_anew(self) -> None:
        """Bring `cluster.json` in step with the metadata: it was lost, or brokers came and went."""
        found = self._described()
        if found == self.description or get_ident() in locks.inside:
            return
        try:
            under(self.metadata._lock, 1.0, self._write_description)
        except (StreamlogError, OSError):
            return  # derived: the next look tries again
        self.description, self.config = found, ClusterConfig(found.config)

    def _described(self) -> Description:
        """The cluster as the metadata have it."""
        metadata = self.metadata
        brokers = {number: description.absolute(self.path, broker.path) for number, broker in metadata.brokers.items()}
        return Description(self.cluster_id, dict(metadata.cluster_config), brokers)

    def _write_description(self) -> None:
        description.write(self.fs, self.path, self._described())

    def _read_description(self) -> None:
        self.description = description.read(self.fs, self.path)
        description.check_wanted(self.description, self.path, self._wanted_config, self._wanted_brokers)
        self.cluster_id, self.config = self.description.cluster_id, ClusterConfig(self.description.config)

    def _claim_process(self) -> None:
        """A liveness byte of our own, then our name beside it (H23)."""
        for number in range(_MAX_PROCESSES):
            if self.run_locks.try_exclusive(number + 1):
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
            if pid and number != self._process and self.run_locks.is_held_elsewhere(number + 1):
                found.append(pid)
        return tuple(sorted(set(found)))

    # ---- logs ------------------------------------------------------------------------------------------------------------------

    def directory(self, topic: str, partition: int, broker: int = 0) -> str:
        """Where a replica's files are."""
        if broker != leadership.HOME and broker not in self.brokers:
            self.follow_brokers()
            if broker not in self.brokers:
                raise NotLeaderOrFollowerError(f"broker {broker} was retired")
        place = self.path if broker == leadership.HOME else self.brokers[broker].path
        return f"{place}/{names.partition(topic, partition)}"

    def replicated(self, topic: TopicMetadata, partition: int, timeout: float) -> ReplicatedLog:
        """The log of a partition, with several brokers."""
        return self.log(topic, partition, timeout)  # type: ignore[return-value]

    def log(self, topic: TopicMetadata, partition: int, timeout: float) -> PartitionLog | ReplicatedLog:
        """The log of a partition; its slot and lock are opened, its files are not.  Raises UnknownTopicOrPartitionError."""
        if not 0 <= partition < topic.partitions:
            raise UnknownTopicOrPartitionError(f"topic {topic.name!r} has partitions 0 to {topic.partitions - 1}, not {partition}")
        with self._lock:
            self.check_open()
            found = self._topics.get(topic.topic_id) or self._open_topic(topic.topic_id, timeout)
            log = found.logs.get(partition)
            if log is None:
                make = self._make_replicated if self.is_replicated else self._make_log
                log = found.logs[partition] = make(found, topic, partition, timeout)
            return log

    def _open_topic(self, topic_id: bytes, timeout: float) -> TopicFiles:
        found = TopicFiles(self._partition_locks, topic_id, f"topic lock of {topic_id.hex()}")
        if not self.is_replicated:
            self._state(found, topic_id, 0, timeout)
        self._topics[topic_id] = found
        return found

    def _state(self, found: TopicFiles, topic_id: bytes, broker: int, timeout: float) -> StateFile:
        """The slots of a topic's replicas on a broker."""
        state = found.states.get(broker)
        if state is None:
            state = StateFile(self.fs, f"{self.path}/{names.RUN}/{names.state(topic_id, broker)}", topic_id)
            if not state.is_claimed():
                under(found.lock, timeout, state.claim)
            found.states[broker] = state
        return state

    def _slot(self, found: TopicFiles, state: StateFile, partition: int, timeout: float) -> Slot:
        if not state.holds(partition):
            under(found.lock, timeout, state.grow, partition)
        return state.slot(partition)

    def _leadership(self, found: TopicFiles, partition: int, timeout: float) -> Slot:
        """The leadership of a partition, in the topic's file of those."""
        if found.leaders is None:
            path = f"{self.path}/{names.RUN}/{names.leaders(found.topic_id)}"
            found.leaders = StateFile(self.fs, path, found.topic_id, leadership.WORDS)
            if not found.leaders.is_claimed():
                under(found.lock, timeout, found.leaders.claim)
        return self._slot(found, found.leaders, partition, timeout)

    def _settings(self, topic: TopicMetadata) -> LogSettings:
        config = topic.config
        return LogSettings(
            config.segment_bytes, config.segment_ms, config.index_interval_bytes, config.flush_messages, config.flush_ms,
            reserve=self._reserve, now_ms=self.clock.now_ms, agreed_ms=self.clock.agreed_ms,
            producer_id_expiration_ms=self.config.producer_id_expiration_ms,
        )  # fmt: skip

    def _make_log(self, found: TopicFiles, topic: TopicMetadata, partition: int, timeout: float, broker: int = 0) -> PartitionLog:
        slot = self._slot(found, self._state(found, topic.topic_id, broker, timeout), partition, timeout)
        points = self.brokers[broker].recovery_points if broker in self.brokers else {}
        return HomeLog(
            self, self.fs, self.directory(topic.name, partition, broker), topic.name, topic.topic_id, partition, slot,
            self._locks_of(broker), self.bell, self._settings(topic), points.get((topic.topic_id.hex(), partition), 0), broker=broker,
        )  # fmt: skip

    def _locks_of(self, broker: int) -> LockFile:
        """The file with the locks of a broker's replicas."""
        if broker == 0:
            return self._partition_locks
        found = self._broker_locks.get(broker)
        if found is None:
            found = self._broker_locks[broker] = self.keep(LockFile(self.fs, f"{self.path}/{names.RUN}/{names.partition_locks(broker)}"))
        return found

    def _replica(self, found: TopicFiles, topic: TopicMetadata, partition: int, broker: int) -> PartitionLog:
        with self._lock:
            made = self._make_log(found, topic, partition, 60.0, broker)
            made.is_replica = True
            return made

    def _make_replicated(self, found: TopicFiles, topic: TopicMetadata, partition: int, timeout: float) -> ReplicatedLog:
        from streamlog._replica.replicated import ReplicatedLog

        lock_byte = names.lock_bytes(topic.topic_id) + 4 * partition + 2
        return ReplicatedLog(
            self, topic.name, topic.topic_id, partition, self._leadership(found, partition, timeout), self._partition_locks, lock_byte,
            lambda broker: self._replica(found, topic, partition, broker), self._settings(topic),
        )  # fmt: skip

    def ring(self) -> None:
        """Wake who waits for the whole cluster."""
        if self.bell.halves[self.bell.index + 1]:
            self.bell.ring()

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

    def reads_for(self, log: ReplicatedLog, follower: int) -> None:
        """A leader's file is mapped for a follower: beyond `_OPEN_SOURCES` the one that was so longest ago is let go (H11)."""
        key = log, follower
        self._sources.pop(key, None)
        self._sources[key] = None
        if len(self._sources) > _OPEN_SOURCES:
            oldest = next(iter(self._sources), key)
            self._sources.pop(oldest, None)
            oldest[0].forget_sources(oldest[1])

    def initialise(self, topic: TopicMetadata, first: int, timeout: float) -> None:
        """Fill the slots of partitions that were just made, from `first` on, and let their files go."""
        with self._lock:  # no thread gets a log that is closed here
            in_use = topic.topic_id in self._topics
            for number in range(first, topic.partitions):
                self.log(topic, number, timeout).initialise(timeout)
            if not in_use:
                self.release_topic(topic.topic_id, unused=True)

    def release_topic(self, topic_id: bytes, *, unused: bool = False) -> None:
        """Close a topic's files; if `unused`, nobody but the caller has had its logs."""
        with self._lock:
            found = self._topics.pop(topic_id, None)
            if found is not None:
                for log in found.logs.values():
                    log.close() if unused else log.release_files()
                for key in [key for key in list(self._sources) if key[0].topic_id == topic_id]:
                    self._sources.pop(key, None)

    def refresh(self, timeout: float) -> None:
        """Fold the metadata, and let go of topics that were deleted."""
        self.metadata.refresh(timeout)
        if self.is_replicated:
            if self.metadata.brokers.keys() != self.brokers.keys():
                self.follow_brokers()
            for number, broker in list(self.brokers.items()):
                if broker.lock_file is None and (known := self.metadata.brokers.get(number)) is not None and known.is_online:
                    self._reopens(number)  # another process brought it back
        for topic_id in [topic_id for topic_id in self._topics if topic_id not in self.metadata.by_id]:
            if topic_id != TOPIC_ID:
                self.release_topic(topic_id)

    def all_logs(self) -> Iterator[PartitionLog | ReplicatedLog]:
        """The logs that this process has used."""
        for found in list(self._topics.values()):
            yield from list(found.logs.values())

    def replicated_logs(self) -> list[ReplicatedLog]:
        """Of several brokers the logs that this process has used."""
        return list(self.all_logs()) if self.is_replicated else []  # type: ignore[arg-type]

    def used_replicas(self) -> Iterator[tuple[int, PartitionLog]]:
        """Brokers and replicas that this process has used, those of the metadata included."""
        for log in self.all_logs():
            yield from log.used_replicas().items()
        if self.quorum is not None:
            yield from self.quorum.used_replicas().items()

    # ---- looking after ---------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Once a second, before appends and in waits: are our files those under their names (H7, H8)?  Is a transaction open in what we use?"""
        now = monotonic()
        if now < self.next_tick:
            return
        if self.closed == "closed":
            self.check_open()
        if self.closed:
            raise DiskFailedError(f"{self.path}: {self.closed}; close it in every process and open it again")
        self.next_tick = now + _TICK
        for lock_file in list(self._lock_files):
            if lock_file.replaced():
                self._die(f"{lock_file.path} was removed or replaced while the cluster was open")
        self._check_brokers()
        for log in self.all_logs():
            log.check_place()
            if log.words[OPEN]:
                self.met_transaction(log)
        if self.is_replicated:
            if now >= self._next_save:
                self._next_save = now + _SAVE
                try:
                    self._save_checkpoints(0.0)
                except (StreamlogError, OSError):
                    pass  # derived, and another process may be at it: the next time
            self.fetcher.wake()

    def _die(self, reason: str) -> None:
        """The files under our feet are not ours any more: from now on every look says so, also that of an append (H7, H8)."""
        self.closed, self.next_tick = reason, 0.0
        raise DiskFailedError(f"{reason}; close it in every process and open it again")

    def _check_brokers(self) -> None:
        """Is each broker's directory still the one that was opened (H8)?"""
        for number, broker in list(self.brokers.items()):
            if not broker.is_replaced():
                continue
            error = DiskFailedError(f"{broker.path} was removed or replaced while the cluster was open")
            if not self.is_replicated:
                self._die(str(error))
            try:
                if not self._opens(number) and number in self.controller.alive():
                    self.controller.fail(number, error, 10.0)
            except (StreamlogError, OSError):
                pass  # without a majority nothing can be changed; who writes there is told
            broker = self.brokers[number]
            if broker.is_replaced():
                broker.close()

    def check_open(self) -> None:
        """Raise ClosedError or what closed us."""
        if self.closed:
            raise ClosedError(f"{self.path}: {self.closed}")

    def _save_checkpoints(self, timeout: float) -> None:
        from streamlog._replica import checkpoints  # here: opening needs none

        checkpoints.save(self, timeout)

    def checkpointed_high_watermark(self, topic_id: bytes, partition: int) -> int:
        """What was shown of a partition before the boot, as far as a broker remembers."""
        return max((broker.high_watermarks.get((topic_id.hex(), partition), 0) for broker in self.brokers.values()), default=0)

    # ---- brokers -----------------------------------------------------------------------------------------------------------------

    def broker_left(self, number: int) -> None:
        """A broker is out: let go of its files."""
        if self.quorum is not None:
            self.quorum.left(number, 10.0)
        self.fetcher.wake()
        for broker, replica in self.used_replicas():
            if broker == number:
                replica.release_files()
        self.ring()

    def open_broker(self, number: int, path: str) -> None:
        """Open a broker's directory that was just made."""
        broker = self.brokers[number] = Broker(self.fs, number, path)
        broker.open(self.cluster_id, self._identity())

    def follow_brokers(self) -> None:
        """Brokers came or went: open and close their directories, and describe the cluster anew."""
        known = self.metadata.brokers
        if not known or set(known) == set(self.brokers) == set(self.description.brokers):
            return
        for number, found in known.items():
            if number not in self.brokers:
                broker = Broker(self.fs, number, description.absolute(self.path, found.path))
                try:
                    broker.open(self.cluster_id, self._identity())
                except (OSError, StreamlogError):
                    pass  # who writes to it finds out
                self.brokers[number] = broker
        for number in [number for number in self.brokers if number not in known]:
            for broker_number, replica in self.used_replicas():
                if broker_number == number:
                    replica.release_files()
            self.brokers.pop(number).close()
        self._describe_anew()

    def reopen_broker(self, number: int, timeout: float) -> None:
        """A broker is to come back: is its directory there, ours, and does its disk work?  Raises what does not hold."""
        broker = self.brokers[number]
        if broker.lock_file is None or broker.is_replaced():
            broker.open(self.cluster_id, self._identity())
        else:
            broker.check_owner(self.cluster_id)
        broker.probe()
        known = self.metadata.brokers[number]
        found = read_properties(self.fs, broker.path).get("directory.id", "")
        if known.directory_id and found != known.directory_id:
            raise NotAClusterError(f"{broker.path} is not the directory that was broker {number}: repair_broker takes it as an empty one")
        if self.quorum is not None:
            under(self.metadata._lock, timeout, self.quorum.rejoin, number, timeout)

    # ---- leaving ---------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave: what is here goes on without us."""
        with self._lock:
            if not self.closed:
                self.closed = "closed"
                try:
                    if self.is_replicated:
                        self.fetcher.pay(1.0)
                    self._save_checkpoints(1.0)
                    if self.metadata.removed and self.is_last():
                        from streamlog._replica import run_files  # here: few processes delete topics

                        run_files.sweep(self)
                except (StreamlogError, OSError):
                    pass  # derived: it only spares a scan
                self._page.words[_PROCESSES + self._process] = 0
            self.abandon()

    def abandon(self) -> None:
        """Close all descriptors, unlocking nothing by name: a forked child's copies are its parent's locks (H22)."""
        self.closed = self.closed or "closed"
        if "fetcher" in self.__dict__:
            self.fetcher.stop()
        for broker in self.brokers.values():
            broker.close()
        if self.quorum is not None:
            self.quorum.close()
        for found in self._topics.values():
            for log in found.logs.values():
                log.close()
        self._topics.clear()
        for lock_file in self._lock_files:
            lock_file.close()
        self._lock_files.clear()

    def __del__(self) -> None:
        self.abandon()  # only closes descriptors: a collector may run this inside a locked section

    def is_last(self) -> bool:
        """Whether nobody else has the cluster open; the caller is on its way out and then holds it exclusively."""
        return self._home_lock.try_exclusive(0)


def _is_ours(name: str) -> bool:
    """Whether a cluster's home may have an entry of this name before it has a description."""
    ours = name in (names.LOCK, names.CLUSTER, names.RUN, names.partition(names.METADATA_TOPIC, 0))
    return ours or name.startswith("broker-") or name.endswith(names.TEMPORARY)


def _nothing(_: Log) -> None:
    """Nobody coordinates transactions here."""


_homes: weakref.WeakSet[Home] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for home in list(_homes):
        home._lock = RLock()
        if "fetcher" in home.__dict__:
            home.fetcher.forget_threads()
        home.closed = "it belongs to the process that this one was forked from"
        home.abandon()
    _homes.clear()
    locks.forget_threads()


process.after_fork_in_child(_after_fork_in_child)
