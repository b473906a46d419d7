"""`open` and `Cluster`: a cluster directory as a user holds it, with its administration."""

from __future__ import annotations

import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike
    from typing import Any

    from streamlog.consumer import Consumer
    from streamlog.producer import Producer

from streamlog._format import names
from streamlog._log import partition as partition_log
from streamlog._log import segment
from streamlog._log.partition import PartitionLog
from streamlog._os import files, process
from streamlog._os.files import LOCAL, FileSystem
from streamlog._os.locks import LockFile
from streamlog._replica.home import FORMAT_VERSION, Home
from streamlog._replica.metadata import TOPIC_ID as METADATA_TOPIC_ID
from streamlog._replica.metadata import Metadata, TopicMetadata
from streamlog.config import ClusterConfig, TopicConfig
from streamlog.errors import (
    ClosedError,
    ConfigurationError,
    InvalidConfigError,
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    InvalidTopicError,
    StorageError,
    StreamlogTimeoutError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from streamlog.topic import Topic
from streamlog.types import ClusterDescription

MAX_PARTITIONS = 10_000


def open(  # noqa: A001  (streamlog.open is the contract)
    location: str | PathLike[str],
    *,
    create: bool = True,
    brokers: int | None = None,
    unsafe_filesystem: bool = False,
    **options: Any,
) -> Cluster:
    """Open a cluster, and create it where there is none.

    Args:   location: a directory (str, PathLike or file:// URL), or "memory://" or "memory://name" for a throw-away one.
            create: False refuses a directory that is not a cluster yet.
            brokers: 1; more come with replication.
            unsafe_filesystem: open on a file system whose locks or mappings are not shared (from one process only).
            options: of the cluster as a whole (`help(streamlog.config.ClusterConfig)` lists them), stored at its creation.
    Raises: NotAClusterError, UnsupportedFormatError, UnsupportedFileSystemError, ConfigurationError, PermissionError,
            StreamlogTimeoutError.
    """
    if brokers not in (None, 1):
        raise InvalidConfigError(f"brokers={brokers!r}: not in this version; one broker is")
    ClusterConfig(options)
    return Cluster(_Place(location, unsafe_filesystem=unsafe_filesystem), create=create, options=options)


class _Place:
    """Where a cluster is: its directory, and whether it goes away with its last user."""

    def __init__(self, location: str | PathLike[str], *, unsafe_filesystem: bool = False) -> None:
        text = files.path_text(location)
        if not text or "\0" in text:
            raise ConfigurationError(f"location={location!r}: a path or a URL is wanted")
        scheme, separator, rest = text.partition("://")
        self.location, self.unsafe_filesystem, self.throw_away = text, unsafe_filesystem, False
        if not separator:
            self.path = files.absolute(text)
        elif scheme == "file":
            self.path = files.absolute(files.from_url(rest))
        elif scheme == "memory":
            self.throw_away = True
            self.path = _memory_path(rest)
            self.location = f"memory://{self.path.rpartition('/')[2]}"
        elif scheme == "kafka":
            raise ConfigurationError(f"location={text!r}: Kafka clusters are not in this version")
        else:
            raise ConfigurationError(f"location={text!r}: a path, file://, or memory:// is wanted")


def _memory_path(name: str) -> str:
    root = files.memory_directory()
    if not name:
        _sweep_memory(root)
        name = f"anonymous-{process.pid()}-{process.random_bytes(6).hex()}"
    elif names.topic_problem(name):
        raise ConfigurationError(f"location='memory://{name}': letters, digits, '.', '_' and '-' can stand in the name")
    return f"{root}/{name}"


def _sweep_memory(root: str) -> None:
    """Remove throw-away clusters that nobody has open: their processes were killed (H12)."""
    for name in LOCAL.listdir(root):
        path = f"{root}/{name}"
        if not files.exists(f"{path}/{names.LOCK}"):
            continue
        lock_file = LockFile(LOCAL, f"{path}/{names.LOCK}")
        try:
            if lock_file.try_exclusive(0):
                files.remove_tree(path)
        finally:
            lock_file.close()


class Cluster:
    """An open cluster.

    Threads: any number may share it.  Processes: any number may have the same directory open; it can be pickled (a spawned
    process opens it again) and used after a fork (it opens itself again in the child on first use).
    """

    def __init__(
        self, place: _Place, *, create: bool = True, options: Mapping[str, Any] | None = None, fs: FileSystem = LOCAL
    ) -> None:
        self._place, self._options, self._fs = place, dict(options or {}), fs
        self.location = place.location
        self.timeout = 60.0
        """Seconds that administration waits for other processes."""
        self._children: weakref.WeakSet[Producer | Consumer] = weakref.WeakSet()
        self._closed = False
        self._home_of_process: Home | None = None
        self._enter(create)

    def _enter(self, create: bool) -> None:
        place = self._place
        if not place.unsafe_filesystem:
            files.check_file_system(files.nearest_existing(place.path))
        self._home_of_process = Home(
            self._fs, place.path, create=create, config=self._options, timeout=self.timeout, reserve=not place.throw_away
        )

    @property
    def _home(self) -> Home:
        home = self._home_of_process
        if self._closed:
            raise ClosedError(f"{self.location} is closed")
        if home is None or home.closed:
            if home is not None and "forked" not in home.closed:
                home.check_open()
            self._children = weakref.WeakSet()
            self._enter(create=False)
            home = self._home_of_process
            assert home is not None
        return home

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._place, self._options)

    def __repr__(self) -> str:
        return f"<streamlog.Cluster {self.location!r}{' (closed)' if self._closed else ''}>"

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refreshed(self) -> Metadata:
        """The metadata, with all folded that is on the disk."""
        metadata = self._home.metadata
        if metadata.changed():
            self._home.refresh(self.timeout)
        return metadata

    def _log(self, topic: TopicMetadata, partition: int) -> PartitionLog:
        return self._home.log(topic, partition, self.timeout)

    # ---- topics --------------------------------------------------------------------------------------------------------------

    def create_topic(
        self, name: str, partitions: int = 1, replication_factor: int = 1, exist_ok: bool = False, **topic_config: Any
    ) -> Topic:
        """Create a topic; it is on the disk before this returns.

        With `exist_ok` a topic of this name is returned as it is, whatever its partitions and configuration.
        Raises: InvalidTopicError, InvalidPartitionsError, InvalidReplicationFactorError, UnknownConfigError,
        InvalidConfigError, TopicAlreadyExistsError; nothing is written then.
        """
        if problem := names.topic_problem(name):
            raise InvalidTopicError(problem)
        if name in names.INTERNAL_TOPICS:
            raise InvalidTopicError(f"{name!r} is the name of an internal topic")
        _check_partitions(partitions)
        if isinstance(replication_factor, bool) or replication_factor != 1:
            raise InvalidReplicationFactorError(f"replication_factor={replication_factor!r}: the cluster has 1 broker")
        config = TopicConfig(topic_config).items()
        overrides = {key.replace(".", "_"): config[key.replace(".", "_")] for key in topic_config}
        home, metadata = self._home, self._refreshed()
        if not (exist_ok and name in metadata.topics):
            topic_id = process.random_bytes(16)

            def decide() -> list[list[Any]]:
                if name in metadata.topics:
                    if exist_ok:
                        return []
                    raise TopicAlreadyExistsError(f"there is a topic {name!r}")
                self._check_collision(name, metadata)
                for number in range(partitions):
                    self._make_partition(name, topic_id, number)
                self._fs.sync_dir(f"{home.path}/{names.broker(0)}")
                return [["TopicRecord", name, topic_id, partitions, overrides]]

            metadata.write(self.timeout, decide, lambda: self._initialise(metadata.by_id.get(topic_id), 0))
        return self.topic(name)

    def _initialise(self, topic: TopicMetadata | None, first: int) -> None:
        """Fill the slots of partitions just made, and let their files go."""
        if topic is not None:
            home = self._home
            in_use = topic.topic_id in home._topics
            for number in range(first, topic.partitions):
                home.log(topic, number, self.timeout).initialise(self.timeout)
            if not in_use:
                home.release_topic(topic.topic_id)

    def _check_collision(self, name: str, metadata: Metadata) -> None:
        key = names.collision_key(name)
        for other in metadata.topics:
            if names.collision_key(other) == key:
                raise InvalidTopicError(f"{name!r} collides with topic {other!r}: they differ only in '.' and '_'")

    def _make_partition(self, name: str, topic_id: bytes, number: int) -> None:
        directory = self._home.directory(name, number)
        if files.exists(directory):  # of a topic whose creation or deletion was cut short
            self._discard(directory, names.deleted(name, number, process.random_bytes(16)))
        partition_log.create(self._fs, directory, topic_id, number)
        files.take_owner(directory, self._home.path)

    def _discard(self, directory: str, new_name: str) -> None:
        """Take a partition's directory out of the way, then remove it.  Readers that have it mapped go on reading."""
        target = f"{directory.rpartition('/')[0]}/{new_name}"
        self._fs.replace(directory, target)
        files.remove_directory(self._fs, target)

    def topic(self, name: str, *, key: Any = None, value: Any = None) -> Topic:
        """A handle of a topic; `key` and `value` name serdes ("str", "json", "msgpack") for its producers and consumers."""
        from streamlog import serdes

        for option, given in (("key", key), ("value", value)):
            if given is not None:
                serdes.named(option, given)
        return Topic(self, name, self._refreshed().topic(name).topic_id, key=key, value=value)

    def topics(self, internal: bool = False) -> list[str]:
        """Names of the topics, sorted; with `internal` also streamlog's own."""
        found = self._refreshed().topics
        return sorted([*found, names.METADATA_TOPIC] if internal else found)

    def delete_topic(self, name: str) -> None:
        """Delete a topic and all its records.  Commit step: the synced metadata record.

        Views that are held stay valid; its producers and consumers get UnknownTopicOrPartitionError.
        """
        home, metadata = self._home, self._refreshed()
        doomed: list[TopicMetadata] = []

        def decide() -> list[list[Any]]:
            topic = metadata.topic(name)
            doomed.append(topic)
            return [["RemoveTopicRecord", topic.topic_id]]

        def act() -> None:
            topic, held_up = doomed[0], ""
            for number in range(topic.partitions):
                try:
                    home.log(topic, number, self.timeout).mark_deleted(self.timeout)
                except StreamlogTimeoutError as error:
                    held_up = held_up or str(error)
            home.bell.ring()
            home.release_topic(topic.topic_id)
            for number in range(topic.partitions):
                directory = home.directory(name, number)
                if files.exists(directory):
                    self._discard(directory, names.deleted(name, number, topic.topic_id))
            self._finish_deletions()
            if held_up:
                raise StreamlogTimeoutError(f"topic {name!r} is deleted, but a process is still inside it: {held_up}")

        metadata.write(self.timeout, decide, act)

    def _finish_deletions(self) -> None:
        """Remove what creations and deletions that were cut short left behind.  Under the metadata lock."""
        broker = f"{self._home.path}/{names.broker(0)}"
        for name in self._fs.listdir(broker):
            directory, parsed = f"{broker}/{name}", names.parse_partition(name.removesuffix(names.DELETED).partition(".")[0])
            if not files.is_directory(directory) or not self._is_leftover(directory):
                continue
            if name.endswith(names.DELETED):
                files.remove_directory(self._fs, directory)
            elif parsed:
                self._discard(directory, names.deleted(*parsed, process.random_bytes(16)))

    def _is_leftover(self, directory: str) -> bool:
        """Whether a directory holds nothing but segments of topics, or partitions, that the metadata does not have."""
        known = self._home.metadata.by_id
        listing = self._fs.listdir(directory)
        for name in listing:
            if not name.endswith((names.LOG, names.INDEX, names.TEMPORARY, names.LEADER_EPOCHS)):
                return False
        for base in names.base_offsets(listing):
            try:
                header = segment.read_header(self._fs, f"{directory}/{names.log(base)}")
            except (StorageError, OSError):
                return False
            owner = known.get(header.topic_id)
            if header.topic_id == METADATA_TOPIC_ID or (owner is not None and header.partition < owner.partitions):
                return False
        return directory.endswith(names.DELETED) or bool(listing)

    def _add_partitions(self, name: str, topic_id: bytes, total: int) -> None:
        _check_partitions(total)
        metadata, first = self._home.metadata, [0]

        def decide() -> list[list[Any]]:
            topic = metadata.by_id.get(topic_id)
            if topic is None:
                raise UnknownTopicOrPartitionError(f"topic {name!r} was deleted")
            if total <= topic.partitions:
                raise InvalidPartitionsError(f"topic {name!r} has {topic.partitions} partitions; they only grow, {total} is not more")
            first[0] = topic.partitions
            for number in range(topic.partitions, total):
                self._make_partition(name, topic_id, number)
            self._fs.sync_dir(f"{self._home.path}/{names.broker(0)}")
            return [["PartitionsRecord", topic_id, total]]

        metadata.write(self.timeout, decide, lambda: self._initialise(metadata.by_id.get(topic_id), first[0]))

    # ---- producers and consumers -------------------------------------------------------------------------------------------

    def producer(self, config: Mapping[str, Any] | None = None, /, **options: Any) -> Producer:
        """A new producer; options as keyword arguments, or a mapping with Kafka's dotted names.

        `help(streamlog.config.ProducerConfig)` lists them.
        """
        from streamlog.config import ProducerConfig
        from streamlog.producer import Producer

        made = Producer(self._home, ProducerConfig({**_mapping(config), **options}))
        self._children.add(made)
        return made

    def consumer(self, *topics: str, config: Mapping[str, Any] | None = None, **options: Any) -> Consumer:
        """A new consumer, subscribed to all partitions of `topics` if any are given (`help(streamlog.config.ConsumerConfig)` lists them)."""
        from streamlog.config import ConsumerConfig
        from streamlog.consumer import Consumer

        made = Consumer(self._home, ConsumerConfig({**_mapping(config), **options}))
        self._children.add(made)
        if topics:
            try:
                made.subscribe(topics)
            except BaseException:
                made.close()
                raise
        return made

    # ---- the whole -------------------------------------------------------------------------------------------------------------

    def describe(self) -> ClusterDescription:
        """Where the cluster is, what is in it and who has it open."""
        home, metadata = self._home, self._refreshed()
        partitions = sum(topic.partitions for topic in metadata.topics.values())
        return ClusterDescription(
            self.location, home.cluster_id, FORMAT_VERSION, (0,), len(metadata.topics), partitions, home.processes()
        )

    def close(self) -> None:
        """Close the cluster and its producers (flushed) and consumers.  A throw-away cluster goes with its last user."""
        if self._closed:
            return
        home = self._home_of_process
        try:
            self._close_children()
        finally:
            self._closed = True
            if home is not None and home.closed:
                home.abandon()
            elif home is not None:
                if self._place.throw_away and home.is_last():
                    files.remove_tree(home.path)
                    home.abandon()
                else:
                    home.close()
            self._home_of_process = None

    def _close_children(self) -> None:
        """Producers first, each of them whatever becomes of the others; the first error is raised when all were tried."""
        first: BaseException | None = None
        for child in sorted(self._children, key=lambda child: hasattr(child, "subscribe")):
            try:
                child.close()
            except Exception as error:
                first = first or error
        if first is not None:
            raise first


def _reopen(place: _Place, options: dict[str, Any]) -> Cluster:
    return Cluster(place, create=False, options=options)


def _mapping(config: Any) -> dict[str, Any]:
    if config is not None and not hasattr(config, "keys"):
        raise InvalidConfigError(f"config={config!r}: a mapping, or keyword arguments, are wanted")
    return dict(config or {})


def _check_partitions(count: Any) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_PARTITIONS:
        raise InvalidPartitionsError(f"partitions={count!r}: a whole number in [1, {MAX_PARTITIONS}] is wanted")
