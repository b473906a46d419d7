"""Counters behind `metrics()`: totals, and what the last half minute to minute added, for rates and averages."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamlog._client import batch as producing
    from streamlog._client.cursor import Cursor
    from streamlog._client.lane import Lane
    from streamlog.metrics import ConsumerMetrics, ProducerMetrics
    from streamlog.record_batch import RecordBatch
    from streamlog.types import TopicPartition

from streamlog._format.batch import BATCH_HEADER_SIZE
from streamlog._os.clock import monotonic
from streamlog.types import Record

_WINDOW = 30.0  # seconds, as Kafka's metrics.sample.window.ms; rates are over the present window and the one before


class Meter:
    """Counters.  Whoever adds holds the lock that guards them; reading needs none, and may miss what is being added."""

    __slots__ = ("_before", "_now", "turn_at")
    counters: tuple[str, ...] = ()
    peaks: tuple[str, ...] = ()  # largest values of the present window

    def __init__(self) -> None:
        for name in (*self.counters, *self.peaks):
            setattr(self, name, 0)
        self._before = self._now = self._sample(monotonic())  # when the two windows began, with totals and peaks then
        self.turn_at = self._now[0] + _WINDOW  # monotonic time at which to call `turn`

    def _sample(self, now: float) -> tuple[float, dict[str, float]]:
        return now, {name: getattr(self, name) for name in (*self.counters, *self.peaks)}

    def turn(self, now: float) -> None:
        """Begin a new window."""
        sample = self._sample(now)
        idle = now >= self.turn_at + _WINDOW  # nobody looked: the window before this one is empty
        for name in self.peaks:
            sample[1][name] = 0 if idle else getattr(self, name)
            setattr(self, name, 0)
        self._before, self._now = sample if idle else self._now, sample
        self.turn_at = now + _WINDOW

    def recent(self) -> tuple[float, dict[str, float]]:
        """Seconds of the two windows; what was added to each counter and the largest value of each peak in them."""
        now = monotonic()
        if now >= self.turn_at:
            self.turn(now)
        since, then = self._before
        found = {name: getattr(self, name) - then[name] for name in self.counters}
        return max(now - since, 1e-3), found | {name: max(getattr(self, name), self._now[1][name]) for name in self.peaks}


class ConsumerMeter(Meter):
    """What a consumer counts: once for each call that returned records, on its thread."""

    counters = __slots__ = ("bytes", "commits", "fetches", "rebalances", "records")
    bytes: int
    commits: int
    fetches: int
    rebalances: int
    records: int

    def fetched(self, found: Sequence[Record | RecordBatch], read: int) -> None:
        """A call returns records, or batches; `read`: bytes of all the batches that were read so far."""
        self.records += len(found) if type(found[0]) is Record else sum(map(len, found))
        self.bytes = read
        self.fetches += 1
        if (now := monotonic()) >= self.turn_at:
            self.turn(now)

    def metrics(self, cursors: Mapping[TopicPartition, Cursor], *, committed: bool) -> ConsumerMetrics:
        """The figures at this moment; the lag behind what can be read, which ends at the last stable offset where only `committed` records are."""
        from streamlog.metrics import ConsumerMetrics  # here: dataclasses cost 6 ms

        seconds, recent = self.recent()
        ends = {tp: cursor.log.last_stable_offset if committed else cursor.log.high_watermark for tp, cursor in cursors.items()}
        lag = {tp: max(0, ends[tp] - at) for tp, cursor in cursors.items() if (at := cursor.position) is not None}
        return ConsumerMetrics(
            records_consumed_total=self.records,
            records_consumed_rate=recent["records"] / seconds,
            bytes_consumed_total=self.bytes,
            bytes_consumed_rate=recent["bytes"] / seconds,
            fetch_total=self.fetches,
            records_per_fetch_avg=recent["records"] / (recent["fetches"] or 1),
            commit_total=self.commits,
            rebalance_total=self.rebalances,
            assigned_partitions=len(cursors),
            records_lag=lag,
            records_lag_max=max(lag.values(), default=0),
        )


class ProducerMeter(Meter):
    """What a producer counts: once for each batch, when it is off its queue, under the producer's lock."""

    counters = ("batches", "bytes", "errors", "exhausted", "queue_time", "records", "retries", "saved")
    peaks = ("largest", "longest")  # bytes of a batch, seconds in the queue
    __slots__ = (*counters, *peaks)
    batches: int
    bytes: int
    errors: int
    exhausted: int
    queue_time: float
    records: int
    retries: int
    saved: int
    largest: int
    longest: float

    def count(self, lane: Lane, batch: producing.RecordBatch, now: float) -> None:
        """A batch was written, or has failed."""
        if lane.retries:
            self.retries += lane.retries
            lane.retries = 0
        if batch.error is not None:
            self.errors += batch.records
            return
        size, queued = batch.stored + BATCH_HEADER_SIZE, now - batch.begun
        self.records += batch.count
        self.batches += 1
        self.bytes += size
        self.queue_time += queued
        if batch.uncompressed >= 0:
            self.saved += batch.uncompressed - batch.stored
        if now >= self.turn_at:
            self.turn(now)
        if size > self.largest:
            self.largest = size
        if queued > self.longest:
            self.longest = queued

    def metrics(self, buffer_memory: int, used: int, waiting: int, retrying: int = 0) -> ProducerMetrics:
        """The figures at this moment."""
        from streamlog.metrics import ProducerMetrics  # here: dataclasses cost 6 ms

        seconds, recent = self.recent()
        batches, columns = recent["batches"] or 1, recent["bytes"] - recent["batches"] * BATCH_HEADER_SIZE
        return ProducerMetrics(
            record_send_total=self.records,
            record_send_rate=recent["records"] / seconds,
            outgoing_byte_total=self.bytes,
            outgoing_byte_rate=recent["bytes"] / seconds,
            batch_total=self.batches,
            batch_size_avg=recent["bytes"] / batches,
            batch_size_max=int(recent["largest"]),
            records_per_batch_avg=recent["records"] / batches,
            compression_rate_avg=columns / (columns + recent["saved"]) if columns else 1.0,
            record_queue_time_avg=recent["queue_time"] / batches * 1000,
            record_queue_time_max=recent["longest"] * 1000,
            record_error_total=self.errors,
            record_retry_total=self.retries + retrying,
            buffer_total_bytes=buffer_memory,
            buffer_available_bytes=max(0, buffer_memory - used),
            buffer_exhausted_total=self.exhausted,
            waiting_threads=waiting,
        )
