"""What `Producer.metrics()` and `Consumer.metrics()` return: plain numbers at one moment, named as Kafka's metrics.

Totals count from the object's start.  Rates are per second, and averages and maxima are taken, over the last 30 to 60 seconds
(over the time since the start where that is less); 0 where nothing happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from streamlog.types import TopicPartition


@dataclass(frozen=True, slots=True)
class ProducerMetrics:
    """A producer's figures.  Records count when they are written, not when they are sent."""

    record_send_total: int
    record_send_rate: float
    """Records per second."""
    outgoing_byte_total: int
    """Bytes written to the logs, headers of batches included."""
    outgoing_byte_rate: float
    batch_total: int
    batch_size_avg: float
    """Bytes of a batch as it was written."""
    batch_size_max: int
    records_per_batch_avg: float
    compression_rate_avg: float
    """Bytes after compression for each byte before; 1.0 without."""
    record_queue_time_avg: float
    """Milliseconds from the first record of a batch until it was written."""
    record_queue_time_max: float
    record_error_total: int
    """Records that failed."""
    record_retry_total: int
    """Times that a batch was tried again."""
    buffer_total_bytes: int
    """`buffer_memory`."""
    buffer_available_bytes: int
    """What is free of it; a batch that is still filled counts as full."""
    buffer_exhausted_total: int
    """Sends that failed after `max_block_ms`."""
    waiting_threads: int
    """Threads that wait for buffer memory."""


@dataclass(frozen=True, slots=True)
class ConsumerMetrics:
    """A consumer's figures."""

    records_consumed_total: int
    records_consumed_rate: float
    """Records per second."""
    bytes_consumed_total: int
    """Bytes of the batches that were read, as they are stored."""
    bytes_consumed_rate: float
    fetch_total: int
    """Polls that returned records."""
    records_per_fetch_avg: float
    commit_total: int
    rebalance_total: int
    """Times that the assignment changed."""
    assigned_partitions: int
    records_lag: Mapping[TopicPartition, int]
    """Records between position and log end, of each assigned partition with a position."""
    records_lag_max: int
