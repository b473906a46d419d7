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
    """Named counters.  Whoever adds holds the lock that guards them; reading needs none, and may miss what is being added."""

    __slots__ = ("_before", "_now", "_peaks", "totals")

    def __init__(self, *names: str) -> None:
        self.totals = dict.fromkeys(names, 0.0)
        self._peaks = [(0.0, 0.0), (0.0, 0.0)]  # largest of what was given to `peak`: in this window, in the one before
        start = monotonic(), self.totals.copy()
        self._before = self._now = start  # when the two windows began, with the totals then

    def peak(self, first: float, second: float) -> None:
        """Note two values where they are the largest so far."""
        self._turn()
        known = self._peaks[0]
        if first > known[0] or second > known[1]:
            self._peaks[0] = max(first, known[0]), max(second, known[1])

    def peaks(self) -> tuple[float, float]:
        """The largest of each in the two windows."""
        (a, b), (c, d) = self._peaks
        return max(a, c), max(b, d)

    def recent(self) -> tuple[float, dict[str, float]]:
        """Seconds of the two windows, and what was added in them."""
        self._turn()
        since, then = self._before
        return max(monotonic() - since, 1e-3), {name: total - then[name] for name, total in self.totals.items()}

    def _turn(self) -> None:
        """Begin a new window where the present one is over."""
        now = monotonic()
        elapsed = now - self._now[0]
        if elapsed >= _WINDOW:
            start = now, self.totals.copy()
            idle = elapsed >= 2 * _WINDOW  # nobody looked: the window before this one is empty
            self._before, self._now = start if idle else self._now, start
            self._peaks = [(0.0, 0.0), (0.0, 0.0) if idle else self._peaks[0]]


class ConsumerMeter(Meter):
    """What a consumer counts: once for each call that returned records, on its thread."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("records", "bytes", "fetches", "commits", "rebalances")

    def fetched(self, found: Sequence[Record | RecordBatch], read: int) -> None:
        """A call returns records, or batches; `read`: bytes of all the batches that were read so far."""
        totals = self.totals
        totals["records"] += len(found) if type(found[0]) is Record else sum(map(len, found))
        totals["bytes"] = read
        totals["fetches"] += 1
        self.peak(0.0, 0.0)

    def metrics(self, cursors: Mapping[TopicPartition, Cursor]) -> ConsumerMetrics:
        """The figures at this moment."""
        from streamlog.metrics import ConsumerMetrics

        seconds, recent = self.recent()
        totals = self.totals
        lag = {tp: max(0, cursor.log.high_watermark - at) for tp, cursor in cursors.items() if (at := cursor.position) is not None}
        return ConsumerMetrics(
            records_consumed_total=int(totals["records"]),
            records_consumed_rate=recent["records"] / seconds,
            bytes_consumed_total=int(totals["bytes"]),
            bytes_consumed_rate=recent["bytes"] / seconds,
            fetch_total=int(totals["fetches"]),
            records_per_fetch_avg=recent["records"] / (recent["fetches"] or 1.0),
            commit_total=int(totals["commits"]),
            rebalance_total=int(totals["rebalances"]),
            assigned_partitions=len(cursors),
            records_lag=lag,
            records_lag_max=max(lag.values(), default=0),
        )


class ProducerMeter(Meter):
    """What a producer counts: once for each batch, when it is off its queue, under the producer's lock."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("records", "bytes", "batches", "saved", "queue_time", "errors", "retries", "exhausted")

    def count(self, lane: Lane, batch: producing.RecordBatch, now: float) -> None:
        """A batch was written, or has failed."""
        totals = self.totals
        totals["retries"] += lane.retries
        lane.retries = 0
        if batch.error is not None:
            totals["errors"] += batch.records
            return
        size = batch.stored + BATCH_HEADER_SIZE
        totals["records"] += batch.count
        totals["batches"] += 1
        totals["bytes"] += size
        totals["queue_time"] += now - batch.begun
        if batch.uncompressed >= 0:
            totals["saved"] += batch.uncompressed - batch.stored
        self.peak(now - batch.begun, size)

    def metrics(self, buffer_memory: int, used: int, waiting: int) -> ProducerMetrics:
        """The figures at this moment."""
        from streamlog.metrics import ProducerMetrics  # here: dataclasses cost 6 ms

        seconds, recent = self.recent()
        totals, (queued, largest) = self.totals, self.peaks()
        batches, columns = recent["batches"] or 1.0, recent["bytes"] - recent["batches"] * BATCH_HEADER_SIZE
        return ProducerMetrics(
            record_send_total=int(totals["records"]),
            record_send_rate=recent["records"] / seconds,
            outgoing_byte_total=int(totals["bytes"]),
            outgoing_byte_rate=recent["bytes"] / seconds,
            batch_total=int(totals["batches"]),
            batch_size_avg=recent["bytes"] / batches,
            batch_size_max=int(largest),
            records_per_batch_avg=recent["records"] / batches,
            compression_rate_avg=columns / (columns + recent["saved"]) if columns else 1.0,
            record_queue_time_avg=recent["queue_time"] / batches * 1000,
            record_queue_time_max=queued * 1000,
            record_error_total=int(totals["errors"]),
            record_retry_total=int(totals["retries"]),
            buffer_total_bytes=buffer_memory,
            buffer_available_bytes=max(0, buffer_memory - used),
            buffer_exhausted_total=int(totals["exhausted"]),
            waiting_threads=waiting,
        )
