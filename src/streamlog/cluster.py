"""`open` and `Cluster`: a cluster directory as a user holds it, with its administration."""

from __future__ import annotations

import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from os import PathLike
    from typing import Any

    from streamlog._client.groups import Groups
    from streamlog._client.transaction_coordinator import TransactionCoordinator
    from streamlog.consumer import Consumer
    from streamlog.producer import Producer
    from streamlog.types import (
        BrokerDescription,
        Damage,
        GroupDescription,
        GroupListing,
        HangingTransaction,
        OffsetAndMetadata,
        Reassignment,
        TopicPartition,
        TransactionDescription,
        TransactionListing,
    )

from streamlog._format import names
from streamlog._log.log import Log
from streamlog._os import files, process
from streamlog._os.files import LOCAL, FileSystem
from streamlog._os.locks import LockFile
from streamlog._replica import topics as topic_admin
from streamlog._replica.description import FORMAT_VERSION
from streamlog._replica.home import Home
from streamlog._replica.leadership import MAX_BROKERS
from streamlog._replica.metadata import Metadata, TopicMetadata
from streamlog.config import ClusterConfig, TopicConfig
from streamlog.errors import (
    ClosedError,
    ConcurrentModificationError,
    ConfigurationError,
    InvalidConfigError,
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    InvalidStateError,
    InvalidTopicError,
    StreamlogError,
)
from streamlog.topic import Topic
from streamlog.types import ClusterDescription

MAX_PARTITIONS = 10_000
_PATIENCE = 5.0  # seconds that `close` waits for the thread of a consumer to notice


def open(  # noqa: A001  (streamlog.open is the contract)
    location: str | PathLike[str],
    *,
    create: bool = True,
    brokers: int | Sequence[str | PathLike[str]] | None = None,
    unsafe_filesystem: bool = False,
    **options: Any,
) -> Cluster:
    """Open a cluster, and create it where there is none.

    Args:   location: a directory (str, PathLike or file:// URL), or "memory://" or "memory://name" for a throw-away one.
            create: False refuses a directory that is not a cluster yet.
            brokers: how many, each in a directory below the location, or their directories, best on a disk each: 1 where nothing is said.
            A cluster keeps its brokers: give the same, or none, when it is opened again (`add_broker`, `retire_broker` change them).
            unsafe_filesystem: open on a file system whose locks or mappings are not shared (from one process only).
            options: of the cluster as a whole (`help(streamlog.config.ClusterConfig)` lists them), stored at its creation.
    Raises: NotAClusterError, UnsupportedFormatError, UnsupportedFileSystemError, ConfigurationError, PermissionError,
            StreamlogTimeoutError.
    """
    ClusterConfig(options)
    place = _Place(location, unsafe_filesystem=unsafe_filesystem, brokers=brokers)
    if isinstance(place.brokers, list):
        _check_apart(place.brokers, place.path)
        from streamlog._client import broker_admin

        broker_admin.warn_of_shared_devices(place.path, place.brokers)
    return Cluster(place, create=create, options=options)


class _Place:
    """Where a cluster is: its directory, and whether it goes away with its last user."""

    def __init__(
        self, location: str | PathLike[str], *, unsafe_filesystem: bool = False, brokers: int | Sequence[str | PathLike[str]] | None = None
    ) -> None:
        self.brokers = _checked_brokers(brokers)
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


def _checked_brokers(brokers: Any) -> int | list[str] | None:
    """A number of brokers, or their directories."""
    if brokers is None:
        return None
    if isinstance(brokers, int) and not isinstance(brokers, bool):
        if not 1 <= brokers <= MAX_BROKERS:
            raise InvalidConfigError(f"brokers={brokers}: out of range [1, {MAX_BROKERS}]")
        return brokers
    if isinstance(brokers, str | bytes) or not hasattr(brokers, "__iter__"):
        raise InvalidConfigError(f"brokers={brokers!r}: a number, or a list of directories, is wanted")
    given = list(brokers)
    texts = [files.path_text(broker) for broker in given]
    if not texts or not all(texts) or len(texts) > MAX_BROKERS:
        raise InvalidConfigError(f"brokers={given!r}: 1 to {MAX_BROKERS} directories are wanted")
    for text in texts:
        if "\0" in text or ("://" in text and not text.startswith("file://")):
            raise InvalidConfigError(f"brokers={given!r}: {text!r} is no directory; brokers are directories of this machine")
    found = [files.absolute(files.from_url(text.removeprefix("file://")) if text.startswith("file://") else text) for text in texts]
    _check_apart(found)
    return found


def _check_apart(paths: list[str], home: str = "") -> None:
    """Brokers fail one by one: none is in another, nor is it the home itself.  Raises InvalidConfigError."""
    for number, path in enumerate(paths):
        for other in paths[:number]:
            if path == other or path.startswith(f"{other}/") or other.startswith(f"{path}/"):
                raise InvalidConfigError(f"brokers {other} and {path}: a directory of its own is wanted for each")
        if home and (path == home or home.startswith(f"{path}/") or path.startswith(f"{home}/{names.RUN}")):
            raise InvalidConfigError(f"broker {path}: the cluster's own directory {home} is not a broker; one below it, or elsewhere, can be")


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
        self, place: _Place, *, create: bool = True, options: Mapping[str, Any] | None = None, fs: FileSystem = LOCAL,
        reads_metadata: bool = True,
    ) -> None:  # fmt: skip
        """`reads_metadata`: False for who repairs them."""
        self._reads_metadata = reads_metadata
        self._place, self._options, self._fs = place, dict(options or {}), fs
        self.location = place.location
        self.timeout = 60.0
        """Seconds that administration waits for other processes."""
        self._children: weakref.WeakSet[Producer | Consumer] = weakref.WeakSet()
        self._closed = False
        self._home_of_process: Home | None = None
        self._groups_of_home: Groups | None = None
        self._transactions_of_home: TransactionCoordinator | None = None
        self._enter(create)

    def _enter(self, create: bool) -> None:
        place = self._place
        if not place.unsafe_filesystem:
            files.check_file_system(files.nearest_existing(place.path))
        self._home_of_process = Home(
            self._fs, place.path, create=create, config=self._options, timeout=self.timeout, reserve=not place.throw_away, brokers=place.brokers,
            reads_metadata=self._reads_metadata,
        )  # fmt: skip
        cluster = weakref.ref(self)  # weakly: a cluster that is dropped goes at once
        self._home_of_process.met_transaction = lambda log: _see_to_transaction(cluster(), log)

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
        if metadata.changed() and self._reads_metadata:
            self._home.refresh(self.timeout)
        return metadata

    def _log(self, topic: TopicMetadata, partition: int) -> Log:
        return self._home.log(topic, partition, self.timeout)

    # ---- topics --------------------------------------------------------------------------------------------------------------

    def create_topic(self, name: str, partitions: int = 1, replication_factor: int = 1, exist_ok: bool = False, **topic_config: Any) -> Topic:
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
        brokers = len(self._home.brokers)
        if isinstance(replication_factor, bool) or not isinstance(replication_factor, int) or not 1 <= replication_factor <= brokers:
            has = "1 broker" if brokers == 1 else f"{brokers} brokers"
            raise InvalidReplicationFactorError(f"replication_factor={replication_factor!r}: the cluster has {has}")
        config = TopicConfig(topic_config).items()
        if config["cleanup_policy"] != "delete":
            raise InvalidConfigError(f"cleanup_policy={config['cleanup_policy']!r}: compaction is not in this version; leave cleanup_policy out")
        overrides = {key.replace(".", "_"): config[key.replace(".", "_")] for key in topic_config}
        self._refreshed()
        topic_admin.create(self._home, name, partitions, overrides, exist_ok=exist_ok, timeout=self.timeout, replication_factor=replication_factor)
        return self.topic(name)

    def topic(self, name: str, *, key: Any = None, value: Any = None) -> Topic:
        """A handle of a topic; `key` and `value` name serdes ("str", "json", "msgpack") for its producers and consumers."""
        from streamlog import serdes

        for option, given in (("key", key), ("value", value)):
            if given is not None:
                serdes.named(option, given)
        return Topic(self, name, self._refreshed().topic(name).topic_id, key=key, value=value)

    def topics(self, internal: bool = False) -> list[str]:
        """Names of the topics, sorted; with `internal` also those that streamlog keeps groups and transactions in."""
        found = self._refreshed().topics
        if internal:
            return sorted(found)
        return sorted(name for name in list(found) if name not in names.INTERNAL_TOPICS)  # a signal handler may fold meanwhile

    def delete_topic(self, name: str) -> None:
        """Delete a topic and all its records.  Commit step: the synced metadata record.

        Views that are held stay valid; its producers and consumers get UnknownTopicOrPartitionError.
        """
        self._refreshed().topic(name, writable=True)
        topic_admin.delete(self._home, name, self.timeout)

    def _add_partitions(self, name: str, topic_id: bytes, total: int) -> None:
        _check_partitions(total)
        self._refreshed().topic(name, writable=True)
        topic_admin.grow(self._home, name, topic_id, total, self.timeout)

    # ---- producers and consumers -------------------------------------------------------------------------------------------

    def producer(self, config: Mapping[str, Any] | None = None, /, **options: Any) -> Producer:
        """A new producer; options as keyword arguments, or a mapping with Kafka's dotted names.

        `help(streamlog.config.ProducerConfig)` lists them.
        """
        from streamlog.config import ProducerConfig
        from streamlog.producer import Producer

        checked = ProducerConfig({**_mapping(config), **options})
        made = Producer(self._home, checked, None if checked.transactional_id is None else self._groups)
        self._children.add(made)
        return made

    def consumer(self, *topics: str, config: Mapping[str, Any] | None = None, **options: Any) -> Consumer:
        """A new consumer, subscribed to `topics` if any are given; with `group_id` a member of that group from its first poll on.

        `help(streamlog.config.ConsumerConfig)` lists the options.
        """
        from streamlog.config import ConsumerConfig
        from streamlog.consumer import Consumer

        checked = ConsumerConfig({**_mapping(config), **options})
        home = self._home
        made = Consumer(home, checked, self._look_into, None if checked.group_id is None else self._groups)
        self._children.add(made)
        if topics:
            try:
                made.subscribe(topics)
            except BaseException:
                made.close()
                raise
        return made

    # ---- groups ----------------------------------------------------------------------------------------------------------------

    @property
    def _groups(self) -> Groups:
        home, found = self._home, self._groups_of_home
        if found is None or found.home is not home:
            from streamlog._client.groups import Groups  # here: 5 ms that only users of groups pay

            found = self._groups_of_home = Groups(home, self._transactions)
        self._refreshed()
        return found

    def groups(self) -> list[GroupListing]:
        """The groups, by id, with their states."""
        return self._groups.listing(self.timeout)

    def describe_group(self, group_id: str) -> GroupDescription:
        """Members and what they own, committed offsets and lag.  Raises GroupIdNotFoundError."""
        return self._groups.describe(group_id, self.timeout)

    def group_offsets(self, group_id: str) -> dict[TopicPartition, OffsetAndMetadata]:
        """What a group committed.  Raises GroupIdNotFoundError."""
        return self._groups.offsets(group_id, self.timeout)

    def alter_group_offsets(self, group_id: str, offsets: Mapping[Any, int | OffsetAndMetadata]) -> None:
        """Set committed offsets of a group that has no members; begins the group where there is none.

        Raises: NonEmptyGroupError, UnknownTopicOrPartitionError, OffsetMetadataTooLargeError; nothing is changed then.
        """
        self._groups.alter(group_id, offsets, self.timeout)

    def delete_group(self, group_id: str) -> None:
        """Delete a group that has no members, and its offsets.  Raises NonEmptyGroupError, GroupIdNotFoundError."""
        self._groups.existing(group_id, self.timeout).delete(self.timeout)

    def maintain(self) -> None:
        """Do now what time asks for: end transactions that are over, forget transactional ids that nobody uses
        (`transactional_id_expiration_ms`), drop offsets that have expired (`offsets_retention_minutes`), and groups that have none left.
        """
        from streamlog._client import transaction_admin

        try:
            transaction_admin.maintain(self._transactions, self.timeout)
        finally:
            self._groups.maintain(self.timeout)

    # ---- transactions ----------------------------------------------------------------------------------------------------------

    @property
    def _transactions(self) -> TransactionCoordinator:
        home, found = self._home, self._transactions_of_home
        if found is None or found.home is not home:
            from streamlog._client.transaction_coordinator import TransactionCoordinator  # here: opening a cluster needs none

            found = self._transactions_of_home = TransactionCoordinator(home)
        return found

    def _look_into(self, log: Log, timeout: float) -> None:
        """Somebody met an open transaction in a log."""
        self._transactions.look_into(log, timeout)

    def transactions(self) -> list[TransactionListing]:
        """The transactional ids, sorted, with their states."""
        from streamlog._client import transaction_admin

        return transaction_admin.listing(self._transactions, self.timeout)

    def describe_transaction(self, transactional_id: str) -> TransactionDescription:
        """Producer, state and partitions of a transactional id.  Raises TransactionalIdNotFoundError."""
        from streamlog._client import transaction_admin

        return transaction_admin.describe(self._transactions, transactional_id, self.timeout)

    def abort_transaction(self, transactional_id: str) -> None:
        """Abort what a transactional id has open, and fence its producer; a commit that is decided is carried out first.

        Raises: TransactionalIdNotFoundError.
        """
        from streamlog._client import transaction_admin

        transaction_admin.abort(self._transactions, transactional_id, self.timeout)

    def hanging_transactions(self) -> list[HangingTransaction]:
        """Open transactions of which their transactional ids know nothing.  A reader that is held up by one ends it."""
        from streamlog._client import transaction_admin

        return transaction_admin.hanging(self._transactions, self.timeout)

    def end_hanging_transaction(self, topic: str, partition: int, first_offset: int) -> None:
        """End a hanging transaction: by the outcome that its transactional id has on record, else by an abort.

        Raises: TransactionalIdNotFoundError where none begins there.
        """
        from streamlog._client import transaction_admin

        transaction_admin.end_hanging(self._transactions, topic, partition, first_offset, self.timeout)

    # ---- brokers -----------------------------------------------------------------------------------------------------------------

    def brokers(self) -> list[BrokerDescription]:
        """The brokers, by id, with their states and what they have."""
        from streamlog._client import broker_admin

        self._refreshed()
        return broker_admin.describe(self._home)

    def stop_broker(self, broker: int) -> None:
        """Take a broker out: its leaders move first, then nothing is written to it.  Partitions without another in-sync replica go offline."""
        from streamlog._client import broker_admin

        self._refreshed()
        number = broker_admin.checked(self._home, broker)
        self._home.controller.stop(number, self.timeout)

    def start_broker(self, broker: int) -> None:
        """Bring back a broker that was stopped or failed; when this returns its replicas have caught up, unless a warning says otherwise.

        Raises: NotAClusterError (the directory is not there, or is another cluster's), DiskFailedError, StorageFullError.
        """
        from streamlog._client import broker_admin

        self._refreshed()
        number = broker_admin.checked(self._home, broker)
        self._home.controller.start(number, self.timeout)
        from streamlog._replica import administration

        administration.spread_internal(self._home, self.timeout)  # of topics that were made while it was out

    def add_broker(self, path: str | PathLike[str] | None = None) -> int:
        """Add a broker, in a directory of its own or below the cluster's; returns its id.  What is there stays where it is: `reassign_partitions`.

        A cluster of one broker becomes one of two; nobody else may have it open then, and nothing in this process use it.
        """
        from streamlog._client import broker_admin

        place = None if path is None else _checked_brokers([path])
        assert place is None or isinstance(place, list)
        self._refreshed()
        if place:
            there = [broker.path for broker in self._home.brokers.values()]
            if place[0] in there:
                raise ConfigurationError(f"{place[0]} is a broker of this cluster already")
            _check_apart([*there, *place], self._place.path)
            broker_admin.warn_of_shared_devices(self._place.path, [*there, *place])
        if not self._home.is_replicated:
            return self._become_several(place[0] if place else None)
        from streamlog._replica import administration

        return administration.add(self._home, place[0] if place else None, self.timeout)

    def _become_several(self, path: str | None) -> int:
        home = self._home
        if self._has_open_children():
            raise InvalidStateError("the second broker is added while nobody uses the cluster: close its producers and consumers first")
        config, timeout = self._options, self.timeout
        from streamlog._replica import administration

        administration.add_second(home, path)
        self._groups_of_home = self._transactions_of_home = None
        self._options = config
        self._place.brokers = None
        self.timeout = timeout
        self._enter(create=False)
        administration.spread_internal(self._home, timeout)
        return 1

    def retire_broker(self, broker: int, *, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Move everything off a broker, then forget it.  Raises InvalidStateError where that cannot be."""
        from streamlog._client import broker_admin
        from streamlog._replica import administration

        self._refreshed()
        administration.retire(self._home, broker_admin.checked(self._home, broker), on_progress, self.timeout)

    def repair_broker(self, broker: int) -> None:
        """Take a broker whose directory was lost, emptied or replaced by an empty one as a new one: all is copied from the others.

        Raises: InvalidStateError (it is online, or the only one that has some records), NotAClusterError (something else is there).
        """
        from streamlog._client import broker_admin
        from streamlog._replica import administration

        self._refreshed()
        administration.reformat(self._home, broker_admin.checked(self._home, broker), self.timeout)

    def repair(self) -> dict[str, int]:
        """Read all replicas, and copy anew what is damaged; returns the damaged replicas, and how many records of each were copied.

        Raises: CorruptRecordError: some damaged records have no other copy, as with one broker; see `damage` and `repair_partition`.
        """
        from streamlog._replica import administration

        self._refreshed()
        if self._home.is_replicated:
            return administration.repair(self._home, self.timeout)
        from streamlog._client import damage

        damage.refuse(self._home, self.timeout)
        return {}

    def damage(self, topic: str, partition: int) -> list[Damage]:
        """Read a whole partition; returns the ranges of offsets that cannot be read, in order."""
        from streamlog._client import damage

        self._refreshed()
        return damage.of(self._home, topic, partition, self.timeout)

    def repair_partition(self, topic: str, partition: int, *, keep: str) -> str:
        """Go on without damaged records of which there is no other copy.

        Args:   keep: "before": the log ends before the first damaged offset, and all records after it are removed; "behind": the log
                begins after the last damaged offset, and all records before it are removed.
        Transactions that are open in the partition are aborted first, and fence their producers.
        Returns the directory into which the segments were copied first; "" where nothing is damaged.
        Metadata are then compared with the disk, damaged or not: topics, and partitions, of which they lost the records are taken back.
        Raises: InvalidStateError (with several brokers: `repair` copies from another one; an internal topic while the cluster is in use).
        """
        from streamlog._client import damage

        self._refreshed()
        if topic in names.INTERNAL_TOPICS:
            return self._repair_folded(topic, partition, keep)
        return damage.repair(self._transactions, topic, partition, keep, self.timeout)

    def _repair_folded(self, topic: str, partition: int, keep: str) -> str:
        """Repair a log that processes keep in folded form.  The folds begin anew, in this process too."""
        from streamlog._client import damage

        home = self._home
        if self._has_open_children() or not home.is_last():
            others = [pid for pid in home.processes() if pid != process.pid()]
            users = f"; processes {others} have it open" if others else ""
            raise InvalidStateError(f"{topic}: no producer, consumer or other process must use the cluster while it is repaired{users}")
        try:
            aside = damage.repair(self._transactions, topic, partition, keep, self.timeout)
        finally:
            if self._groups_of_home is not None:
                self._groups_of_home.close()
            self._groups_of_home = self._transactions_of_home = self._home_of_process = None
            home.close()
        if topic == names.METADATA_TOPIC:
            self._reads_metadata = True
            damage.compare_with_disk(self._home, self.timeout)
        return aside

    def reassign_partitions(
        self, assignments: Mapping[Any, Sequence[int]], *, on_progress: Callable[[int, int], None] | None = None, timeout: float | None = None
    ) -> None:
        """Move partitions: `{("clicks", 0): [2, 0, 1]}`; the first broker is to lead.  The number of replicas may change.

        Returns when the new replicas are in sync and the old ones are gone.  Producers and consumers go on meanwhile.
        Args:   on_progress: called with the records copied, and the records in all; timeout: seconds, None: as long as it takes.
        Raises: StreamlogTimeoutError (call it again to go on), ConfigurationError, InvalidStateError (a new broker is not online).
        """
        from streamlog._client import broker_admin

        self._refreshed()
        broker_admin.reassign(self._home, assignments, on_progress, 1e6 if timeout is None else timeout)

    def reassignments(self) -> list[Reassignment]:
        """Partitions that are on their way to other brokers: one that was cut short goes on with the same `reassign_partitions`."""
        from streamlog._client import broker_admin

        self._refreshed()
        return broker_admin.reassignments(self._home)

    def elect_leaders(self, partitions: Iterable[Any] | None = None, *, unclean: bool = False) -> dict[TopicPartition, int]:
        """Give partitions (all where none are named) their preferred leaders: the first of their replicas, where it is in sync.

        With `unclean` a partition without a leader gets any replica that lives: records that only the others had are lost.
        Returns the leaders; -1: there is none.
        """
        from streamlog._client import broker_admin

        self._refreshed()
        return broker_admin.elect(self._home, partitions, self.timeout, unclean=unclean)

    # ---- the whole -------------------------------------------------------------------------------------------------------------

    def describe(self) -> ClusterDescription:
        """Where the cluster is, what is in it and who has it open."""
        home, metadata = self._home, self._refreshed()
        topics = [metadata.topics[name] for name in self.topics()]
        partitions = sum(topic.partitions for topic in topics)
        brokers = tuple(sorted(home.brokers))
        return ClusterDescription(self.location, home.cluster_id, FORMAT_VERSION, brokers, len(topics), partitions, home.processes())

    def close(self) -> None:
        """Close the cluster and its producers (flushed) and consumers.  A throw-away cluster goes with its last user."""
        if self._closed:
            return
        home = self._home_of_process
        try:
            self._close_children()
        finally:
            self._closed = True
            if self._groups_of_home is not None and self._groups_of_home.home is home and home is not None and not home.closed:
                self._groups_of_home.close()
            self._groups_of_home = self._transactions_of_home = None
            if home is not None and home.closed:
                home.abandon()
            elif home is not None:
                if self._place.throw_away and home.is_last():
                    files.remove_tree(home.path)
                    home.abandon()
                else:
                    home.close()
            self._home_of_process = None

    def _has_open_children(self) -> bool:
        return any(not child._closed_reason for child in list(self._children))

    def _close_children(self) -> None:
        """Producers first, each of them whatever becomes of the others; the first error is raised when all were tried."""
        first: BaseException | None = None
        for child in sorted(self._children, key=lambda child: hasattr(child, "subscribe")):
            try:
                child.close()
            except ConcurrentModificationError as error:
                if not child.close_from_outside(_PATIENCE):  # type: ignore[union-attr]
                    first = first or error
            except Exception as error:
                first = first or error
        if first is not None:
            raise first


def _reopen(place: _Place, options: dict[str, Any]) -> Cluster:
    return Cluster(place, create=False, options=options)


def _see_to_transaction(cluster: Cluster | None, log: Log) -> None:
    """Whoever reads or writes where a transaction is open ends what a dead producer left, though nobody waits for it yet."""
    try:
        if cluster is not None and not cluster._closed:
            cluster._look_into(log, 0.0)
    except StreamlogError:
        pass  # somebody else is at it, or will be


def _mapping(config: Any) -> dict[str, Any]:
    if config is not None and not hasattr(config, "keys"):
        raise InvalidConfigError(f"config={config!r}: a mapping, or keyword arguments, are wanted")
    return dict(config or {})


def _check_partitions(count: Any) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_PARTITIONS:
        raise InvalidPartitionsError(f"partitions={count!r}: a whole number in [1, {MAX_PARTITIONS}] is wanted")
