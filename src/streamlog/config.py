"""Configuration: one frozen class for each kind of object, checked once, before anything is opened.

Names are Kafka's with `.` written `_`; dotted names are taken too (`{"linger.ms": 5}`).  An unknown name, a value of the
wrong type or out of range, and a value whose feature this version does not have are errors that say what would do.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, ClassVar

from streamlog.errors import ConfigurationError, InvalidConfigError, InvalidTransactionTimeoutError, UnknownConfigError

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
COMPRESSION_LEVELS: dict[str, tuple[int | None, int | None]] = {"gzip": (-1, 9), "snappy": (None, None), "lz4": (1, 12), "zstd": (-131_072, 22)}


class Field:
    """One option: how a value is checked, its default, and what it means."""

    __slots__ = ("check", "default", "doc", "effective")

    def __init__(self, check: Callable[[str, Any], Any], default: Any, doc: str, effective: bool = True) -> None:
        self.check, self.default, self.doc, self.effective = check, default, doc, effective


def number(
    default: int | None, low: int, high: int, doc: str, error: type[ConfigurationError] = InvalidConfigError, *, effective: bool = True
) -> Any:
    """A whole number in [low, high]; a string of digits is taken too.  Out of range is an `error`."""

    def check(name: str, value: Any) -> int | None:
        if value is None and default is None:
            return None
        if isinstance(value, str) and value.isascii() and value.removeprefix("-").isdigit():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidConfigError(f"{name}={value!r}: a whole number in [{low}, {high}] is wanted")
        if not low <= value <= high:
            raise error(f"{name}={value}: out of range [{low}, {high}]")
        return value

    return Field(check, default, doc, effective)


def boolean(default: bool, doc: str) -> Any:
    """True or False, or the strings "true" and "false"."""

    def check(name: str, value: Any) -> bool:
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if not isinstance(value, bool):
            raise InvalidConfigError(f"{name}={value!r}: True or False is wanted")
        return value

    return Field(check, default, doc)


def choice(default: Any, values: Iterable[Any], doc: str, *, later: Iterable[Any] = ()) -> Any:
    """One of `values`; a value in `later` is Kafka's but not in this version, and is refused with that reason."""
    values, later = tuple(values), tuple(later)

    def check(name: str, value: Any) -> Any:
        for known in values:
            if type(value) is type(known) and value == known:
                return value
            if type(known) is int and str(known) == value:
                return known
        if any(type(value) is type(known) and value == known for known in later):
            raise InvalidConfigError(f"{name}={value!r}: not in this version; one of {_listed(values)} is")
        raise InvalidConfigError(f"{name}={value!r}: one of {_listed((*values, *later))} is wanted")

    return Field(check, default, doc)


def text(default: str | None, doc: str) -> Any:
    """A string."""

    def check(name: str, value: Any) -> str | None:
        if value is not None and not isinstance(value, str):
            raise InvalidConfigError(f"{name}={value!r}: a string is wanted")
        try:
            (value or "").encode()
        except UnicodeEncodeError as error:
            raise InvalidConfigError(f"{name}={value!r} is not UTF-8: {error}") from None
        return value

    return Field(check, default, doc)


def serde(doc: str) -> Any:
    """A callable, or the name of a serde."""

    def check(name: str, value: Any) -> Any:
        if value is None or callable(value):
            return value
        from streamlog import serdes  # here: only those who name a serde pay for it

        return serdes.named(name, value)

    return Field(check, None, doc)


def absent(default: Any, feature: str) -> Any:
    """An option of Kafka's whose feature this version does not have: it can only be left at its default."""

    def check(name: str, value: Any) -> Any:
        if value != default or type(value) is not type(default):
            raise InvalidConfigError(f"{name}={value!r}: {feature} not in this version; leave {name} out")
        return value

    return Field(check, default, f"Only {default!r}: {feature} not in this version.")


def strategies(default: str, doc: str) -> Any:
    """One assignor or a list of them, each a name, a class or an object; the value is a tuple of objects."""

    def check(name: str, value: Any) -> Any:
        from streamlog import assignors  # here: only consumers in groups pay for it

        return assignors.resolved(name, value)

    return Field(check, default, doc)


def partitioner(default: str, doc: str) -> Any:
    """A partitioner: a name, which the value then is, a callable, a class or an object."""

    def check(name: str, value: Any) -> Any:
        from streamlog import partitioners  # here: only who names one pays for it

        return partitioners.resolved(name, value)

    return Field(check, default, doc)


def reset_policy(default: str, doc: str) -> Any:
    """Kafka's reset policies: "earliest", "latest", "none" or "by_duration:" and an ISO 8601 duration."""

    def check(name: str, value: Any) -> str:
        if value in ("earliest", "latest", "none"):
            return str(value)
        if isinstance(value, str) and value.startswith("by_duration:"):
            parse_duration_ms(value.removeprefix("by_duration:"))
            return value
        raise InvalidConfigError(f'{name}={value!r}: "earliest", "latest", "none" or "by_duration:PT1H" is wanted')

    return Field(check, default, doc)


def parse_duration_ms(duration: str) -> int:
    """Milliseconds of an ISO 8601 duration of days, hours, minutes and seconds ("P1DT2H30M5.5S")."""
    import re

    found = re.fullmatch(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?", duration)
    if not found or not any(found.groups()):
        raise InvalidConfigError(f"{duration!r} is not an ISO 8601 duration such as PT1H or P1DT30M")
    days, hours, minutes, seconds = (float(group or 0) for group in found.groups())
    return int((((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1000)


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(repr, values))


class Config:
    """A frozen set of options.  Subclasses list their fields; an instance has a value for each of them."""

    fields: ClassVar[dict[str, Field]] = {}

    def __init_subclass__(cls) -> None:
        cls.fields = {name: field for name, field in vars(cls).items() if isinstance(field, Field)}
        lines = [f"    {name} = {field.default!r}: {field.doc}" for name, field in cls.fields.items()]
        cls.__doc__ = "\n".join([cls.__doc__ or "", "", *lines])  # what `help` shows

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        values = {name: field.default for name, field in self.fields.items()}
        for key, value in (options or {}).items():
            name = key.replace(".", "_") if isinstance(key, str) else key
            field = self.fields.get(name)
            if field is None:
                raise UnknownConfigError(self._unknown(key))
            values[name] = field.check(name, value)
        self.__dict__.update(values)
        self.validate({key.replace(".", "_") for key in options or ()})

    def validate(self, given: set[str]) -> None:
        """Check rules between fields; `given` are those that the user named."""

    def __setattr__(self, name: str, value: object) -> None:
        raise ConfigurationError(f"{type(self).__name__} is frozen: make a new one to change {name}")

    def __repr__(self) -> str:
        changed = {k: v for k, v in self.items().items() if v != self.fields[k].default}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in changed.items())})"

    def items(self) -> dict[str, Any]:
        """All options with their values."""
        return {name: self.__dict__[name] for name in self.fields}

    def _unknown(self, key: object) -> str:
        import difflib  # here: 4 ms that only a mistake pays

        near = difflib.get_close_matches(str(key).replace(".", "_"), self.fields, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(self.fields))}"
        return f"{key!r} is not an option of {type(self).__name__.removesuffix('Config').lower()}s{hint}"


class ClusterConfig(Config):
    """Options of a cluster as a whole, stored at its creation; opening with another value is an error."""

    group_initial_rebalance_delay_ms: int = number(0, 0, 300_000, "Wait for more members before a first assignment (ms).")
    offsets_retention_minutes: int = number(10_080, 1, INT32_MAX, "A group without members keeps its offsets this long (minutes).")
    producer_id_expiration_ms: int = number(86_400_000, 1, INT32_MAX, "Sequences of a producer that writes no more are forgotten (ms).")
    offsets_topic_num_partitions: int = number(8, 1, 10_000, "Partitions of the topic that keeps committed offsets.")
    transactional_id_expiration_ms: int = number(604_800_000, 1, INT32_MAX, "A transactional id that nobody uses is forgotten (ms).")
    transaction_state_log_num_partitions: int = number(8, 1, 10_000, "Partitions of the topic of transaction states.")
    replica_lag_time_max_ms: int = number(30_000, 1, INT64_MAX, "A follower that lags longer leaves the in-sync set (ms).")


class TopicConfig(Config):
    """Options of a topic, stored with it in the metadata log, so that all processes agree.

    Kafka's defaults, except `segment_bytes` (64 MiB) and `retention_ms` (-1: nothing is deleted that nobody asked to delete).
    """

    cleanup_policy: str = choice("delete", ["delete", "compact"], "What happens to old segments.", later=["compact,delete"])
    compression_type: str = choice(
        "producer", ["producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"], "Codec of the log, whatever a producer asks for."
    )
    flush_messages: int = number(INT64_MAX, 1, INT64_MAX, "Sync once this many records are not on disk yet.")
    flush_ms: int = number(INT64_MAX, 0, INT64_MAX, "Sync at an append once the last sync is this old (ms).")
    index_interval_bytes: int = number(4096, 0, INT32_MAX, "An index entry at least every so many bytes of log.")
    max_message_bytes: int = number(1_048_588, 0, INT32_MAX, "Largest batch (bytes, as written).")
    message_timestamp_after_max_ms: int = number(3_600_000, 0, INT64_MAX, "A record's own timestamp is at most so far ahead (ms).")
    message_timestamp_before_max_ms: int = number(INT64_MAX, 0, INT64_MAX, "A record's own timestamp is at most so old (ms).")
    message_timestamp_type: str = choice("CreateTime", ["CreateTime", "LogAppendTime"], "Who gives records their timestamps.")
    min_insync_replicas: int = number(1, 1, INT32_MAX, 'Replicas that must be in sync for acks="all".')
    retention_bytes: int = absent(-1, "retention is")
    retention_ms: int = absent(-1, "retention is")
    segment_bytes: int = number(64 << 20, 4096, INT32_MAX, "A segment is closed before it grows beyond this (bytes).")
    segment_ms: int = number(604_800_000, 1, INT64_MAX, "A segment is closed when it spans more event time than this (ms).")
    unclean_leader_election_enable: bool = boolean(False, "A replica that lacks records may lead where no other one can: loses them.")


class ProducerConfig(Config):
    """Options of one producer.  Defaults are those of Kafka's Java client where nothing else is said."""

    acks: Any = choice("all", ["all", 1, 0, -1], 'What a send waits for: "all" in-sync replicas, the leader (1), nothing (0).')
    batch_size: int = number(16_384, 0, INT32_MAX, "Largest batch of one partition that `send` fills (bytes); 0: no batching.")
    buffer_memory: int = number(32 << 20, 1, INT64_MAX, "Bytes of records not written yet, 150 for each added; beyond it `send` waits.")
    client_id: str = text("", "A name for error messages and metrics.")
    compression_level: int | None = number(None, -131_072, 22, "gzip -1 to 9, lz4 1 to 12, zstd -131072 to 22; None: the codec's own.")
    compression_type: Any = choice(None, [None, "none", *COMPRESSION_LEVELS], "Codec of the batches.")
    delivery_timeout_ms: int = number(120_000, 1, INT32_MAX, "A record not written so long after its send has failed (ms).")
    durability: str = choice("os", ["os", "fsync"], 'Acknowledged when the kernel has it ("os") or the disk ("fsync").')
    enable_idempotence: bool = boolean(True, 'No record twice by retries; needs acks="all" and retries, without which it is off.')
    key_hash: str = choice("xxh3", ["xxh3", "murmur2", "crc32", "fnv1a"], "Hash that gives a key its partition.")
    key_serializer: Any = serde("Callable or name that turns keys into bytes.")
    linger_ms: int = number(5, 0, INT32_MAX, "How long a batch waits for more records (ms); 0: each send writes.")
    max_block_ms: int = number(60_000, 0, INT64_MAX, "How long `send` waits for buffer memory (ms).")
    max_request_size: int = number(1 << 20, 0, INT32_MAX, "Largest record (bytes of key, value and headers).")
    partitioner: Any = partitioner("sticky", '"sticky", "round_robin", "hash", a callable or a Partitioner: see streamlog.partitioners.')
    partitioner_ignore_keys: bool = boolean(False, 'Spread keyed records like unkeyed ones ("sticky" and "hash").')
    retries: int = number(INT32_MAX, 0, INT32_MAX, "How often a write that may yet succeed is tried again.")
    retry_backoff_max_ms: int = number(1_000, 0, INT32_MAX, "Longest pause between tries (ms).")
    retry_backoff_ms: int = number(100, 0, INT32_MAX, "First pause between tries (ms); doubles up to `retry_backoff_max_ms`.")
    transaction_timeout_ms: int = number(60_000, 1, 900_000, "An open transaction is aborted after so long (ms).", InvalidTransactionTimeoutError)
    transactional_id: str | None = text(None, "Makes a transactional producer; who has the id later fences who had it before.")
    value_serializer: Any = serde("Callable or name that turns values into bytes.")
    max_in_flight_requests_per_connection: int = number(5, 1, INT32_MAX, "Without effect: no network.", effective=False)
    metadata_max_age_ms: int = number(300_000, 0, INT64_MAX, "Without effect: changes are seen at once.", effective=False)
    request_timeout_ms: int = number(30_000, 1, INT32_MAX, "Without effect: no network.", effective=False)

    def validate(self, given: set[str]) -> None:
        """Kafka's rules: linger must leave time to deliver (without the request time-out); what idempotence needs; a codec's levels."""
        if "delivery_timeout_ms" not in given and self.linger_ms > self.delivery_timeout_ms:
            self.__dict__["delivery_timeout_ms"] = min(self.linger_ms + self.request_timeout_ms, INT32_MAX)  # as the Java client does
        if self.linger_ms > self.delivery_timeout_ms:
            raise InvalidConfigError(f"delivery_timeout_ms={self.delivery_timeout_ms}: at least linger_ms={self.linger_ms} is wanted")
        low, high = COMPRESSION_LEVELS.get(self.compression_type, (None, None))
        if self.compression_level is not None and (low is None or high is None or not low <= self.compression_level <= high):
            takes = "takes none" if low is None else f"takes one in [{low}, {high}]"
            raise InvalidConfigError(f"compression_level={self.compression_level}: compression_type={self.compression_type!r} {takes}")
        self._validate_idempotence(given)

    def _validate_idempotence(self, given: set[str]) -> None:
        """An explicit wish that cannot be had is an error; where idempotence is only the default it is off then.  Transactions need it."""
        if self.transactional_id == "":
            raise InvalidConfigError("transactional_id='': a name, or None for a producer without transactions, is wanted")
        if self.transactional_id is not None:
            given = {*given, "enable_idempotence"}
            if not self.enable_idempotence:
                raise InvalidConfigError(f"enable_idempotence=False: transactional_id={self.transactional_id!r} wants idempotence")
        if not self.enable_idempotence:
            return
        in_flight = self.max_in_flight_requests_per_connection
        if in_flight > 5:
            raise InvalidConfigError(f"max_in_flight_requests_per_connection={in_flight}: at most 5 is wanted, or enable_idempotence=False")
        for name, value, enough in (("acks", self.acks, self.acks in ("all", -1)), ("retries", self.retries, self.retries > 0)):
            if not enough:
                if "enable_idempotence" in given:
                    wanted = 'acks="all"' if name == "acks" else "retries of at least 1"
                    what = "enable_idempotence=True wants" if self.transactional_id is None else f"transactional_id={self.transactional_id!r} wants"
                    raise InvalidConfigError(f"{name}={value!r}: {what} {wanted}")
                self.__dict__["enable_idempotence"] = False


class ConsumerConfig(Config):
    """Options of one consumer.  Defaults are those of Kafka's Java client where nothing else is said."""

    auto_offset_reset: str = reset_policy("latest", "Where to start without a position, or with one that is out of range.")
    check_crcs: bool = boolean(True, "Verify each batch's checksum.")
    client_id: str = text("", "A name for error messages and metrics.")
    consumer_timeout_ms: int | None = number(None, 0, INT64_MAX, "Iteration ends after so long without a record (ms).")
    default_api_timeout_ms: int = number(60_000, 0, INT32_MAX, "Time-out of calls that give none (ms).")
    fetch_max_wait_ms: int = number(500, 0, INT32_MAX, "How long a poll waits for `fetch_min_bytes` (ms).")
    fetch_min_bytes: int = number(1, 1, INT32_MAX, "A waiting poll returns once so many bytes are there.")
    fetch_spin_us: int = number(0, 0, 1_000_000, "Look at the log this long before sleeping (µs); costs a core, saves a wake-up.")
    auto_commit_interval_ms: int = number(5_000, 0, INT32_MAX, "Processed offsets are committed this often, in `poll` (ms).")
    durability: str = choice("os", ["os", "fsync"], 'A commit returns when the kernel has it ("os") or the disk ("fsync").')
    enable_auto_commit: bool = boolean(True, "Commit processed offsets by itself, in `poll`, before partitions go, and in `close`.")
    group_id: str | None = text(None, "The group that shares the partitions of what is subscribed to.")
    group_instance_id: str | None = text(None, "Makes a static member: one that comes back with this id takes its old place.")
    heartbeat_interval_ms: int = number(3_000, 1, INT32_MAX, "How often the group hears that this process lives (ms).")
    max_poll_interval_ms: int = number(300_000, 1, INT32_MAX, "Who does not poll for so long is expired by the other members (ms).")
    partition_assignment_strategy: Any = strategies("cooperative-sticky", "Assignors, the preferred first: names, classes or objects.")
    session_timeout_ms: int = number(45_000, 1, INT32_MAX, "Who is silent for so long is expired by the other members (ms).")
    isolation_level: str = choice("read_uncommitted", ["read_uncommitted", "read_committed"], "Whether records of open transactions are shown.")
    key_deserializer: Any = serde("Callable or name that turns key bytes into keys.")
    max_partition_fetch_bytes: int = number(1 << 20, 1, INT32_MAX, "Bytes that one poll takes from one partition.")
    max_poll_records: int = number(500, 1, INT32_MAX, "Records that one poll returns.")
    value_deserializer: Any = serde("Callable or name that turns value bytes into values.")
    fetch_max_bytes: int = number(52_428_800, 0, INT32_MAX, "Without effect: no network.", effective=False)
    metadata_max_age_ms: int = number(300_000, 0, INT64_MAX, "Without effect: changes are seen at once.", effective=False)
    request_timeout_ms: int = number(30_000, 1, INT32_MAX, "Without effect: no network.", effective=False)

    def validate(self, given: set[str]) -> None:
        """Kafka's rules between the times of a group, and what a group needs."""
        if self.group_id == "":
            raise InvalidConfigError("group_id='': a name, or None for a consumer without a group, is wanted")
        if self.group_instance_id is not None and (self.group_id is None or not self.group_instance_id):
            raise InvalidConfigError(f"group_instance_id={self.group_instance_id!r}: it takes a name, and a group_id")
        if self.heartbeat_interval_ms >= self.session_timeout_ms:
            if "heartbeat_interval_ms" not in given:
                self.__dict__["heartbeat_interval_ms"] = max(1, self.session_timeout_ms // 3)  # left at its default: follows
                return
            raise InvalidConfigError(
                f"heartbeat_interval_ms={self.heartbeat_interval_ms}: less than session_timeout_ms={self.session_timeout_ms} is wanted"
            )
