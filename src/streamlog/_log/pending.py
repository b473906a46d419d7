"""What goes into a log (`Pending`, `Marker`), and what a log needs of its topic's configuration (`LogSettings`)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

from streamlog._format.batch import NO_PRODUCER
from streamlog._format.control import encode_marker
from streamlog._os.clock import wall_ms


class Pending:
    """Encoded records on their way into a log.  The appender fills `base_offset` and `epoch` in, and the times under LOG_APPEND_TIME."""

    is_copy = False
    """Of a batch of the leader's: it is written as it stands, and nothing is asked."""
    foreign = False
    """Its producer id was given out elsewhere: whether it is in the log already is decided with everything folded."""
    acks_all = True
    """Acknowledged when all in-sync replicas have it, not just the leader."""
    placed: tuple[int, int] | None = None
    """Offset and leader epoch in the leader's log, of a batch that is not acknowledged yet."""
    commit = False
    """Of a marker: the transaction counts."""
    attributes = count = 0
    columns = b""
    uncompressed = -1  # bytes of the columns before they were compressed; -1: they are not
    base_timestamp = max_timestamp = 0
    producer: tuple[int, int, int] = NO_PRODUCER  # id, base sequence, epoch
    base_offset = epoch = -1

    def admit(self, fences: int) -> None:
        """Called under the partition's lock before a transactional batch is written; raises where its transaction is not open any more,
        and BehindError where it has to fold something first.

        `fences` is another number after each marker that was written to the partition.
        """


class Marker(Pending):
    """The end of a producer's transaction in a partition."""

    def __init__(self, producer_id: int, epoch: int, now_ms: int, *, commit: bool) -> None:
        """`epoch` is above that of the records."""
        self.commit, self.count = commit, 1
        self.attributes, self.columns = encode_marker(commit=commit)
        self.base_timestamp = self.max_timestamp = now_ms
        self.producer = producer_id, -1, epoch


class LogSettings:
    """What a partition's log needs of its topic's configuration."""

    __slots__ = (
        "agreed_ms", "flush_messages", "flush_ms", "index_interval_bytes", "now_ms", "producer_id_expiration_ms", "reserve", "segment_bytes",
        "segment_ms",
    )  # fmt: skip

    def __init__(
        self,
        segment_bytes: int = 64 << 20,
        segment_ms: int = 604_800_000,
        index_interval_bytes: int = 4096,
        flush_messages: int = 2**63 - 1,
        flush_ms: int = 2**63 - 1,
        *,
        reserve: bool = True,
        now_ms: Callable[[], int] = wall_ms,
        agreed_ms: Callable[[], int] = wall_ms,
        producer_id_expiration_ms: int = 86_400_000,
    ) -> None:
        self.now_ms, self.agreed_ms, self.producer_id_expiration_ms = now_ms, agreed_ms, producer_id_expiration_ms
        self.segment_bytes, self.segment_ms, self.index_interval_bytes = segment_bytes, segment_ms, index_interval_bytes
        self.flush_messages, self.flush_ms, self.reserve = flush_messages, flush_ms, reserve
