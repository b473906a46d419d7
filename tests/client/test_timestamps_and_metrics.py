"""Who gives timestamps and which are taken; and what `metrics()` says."""

import time

import pytest

import streamlog
from streamlog._client import meter
from streamlog.metrics import ConsumerMetrics, ProducerMetrics

HOUR = 3_600_000


def test_log_append_time_is_the_logs(log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t", message_timestamp_type="LogAppendTime")
    before = log._home.clock.now_ms()
    with log.producer(linger_ms=30) as producer:
        deliveries = [producer.send("t", b"v", timestamp_ms=5), producer.send("t", b"w")]
        time.sleep(0.005)
        producer.flush()
        (bulk,) = producer.send_batch("t", [b"x", b"y"], timestamps_ms=[1, 2])
        bulk.result()
    after = log._home.clock.now_ms()
    records = read_all(log, "t")
    assert len({record.timestamp_ms for record in records[:2]}) == 1
    for record in records:
        assert before + 5 <= record.timestamp_ms <= after
        assert record.timestamp_type is streamlog.TimestampType.LOG_APPEND_TIME
    assert [delivery.result().timestamp_ms for delivery in deliveries] == [records[0].timestamp_ms] * 2
    assert log.topic("t").offsets_for_times({0: 5})[0] == (0, records[0].timestamp_ms, 0)


def test_create_time_is_the_producers(log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t")
    with log.producer() as producer:
        producer.send("t", b"v", timestamp_ms=5)
        producer.send("t", b"w", timestamp_ms=7)
    records = read_all(log, "t")
    assert [record.timestamp_ms for record in records] == [5, 7]
    assert {record.timestamp_type for record in records} == {streamlog.TimestampType.CREATE_TIME}


def test_timestamps_out_of_range(log: streamlog.Cluster) -> None:
    log.create_topic("t", message_timestamp_before_max_ms=HOUR, message_timestamp_after_max_ms=HOUR)
    log.create_topic("default")
    log.create_topic("appended", message_timestamp_type="LogAppendTime", message_timestamp_before_max_ms=HOUR)
    now = log._home.clock.now_ms()
    with log.producer() as producer:
        for wrong, name in ((now - 2 * HOUR, "message_timestamp_before_max_ms=3600000"), (now + 2 * HOUR, "message_timestamp_after_max_ms=3600000")):
            with pytest.raises(streamlog.InvalidTimestampError, match=name):
                producer.send("t", b"v", timestamp_ms=wrong)
            with pytest.raises(streamlog.InvalidTimestampError, match=name):
                producer.send_batch("t", [b"v", b"w"], timestamps_ms=[now, wrong])
        with pytest.raises(streamlog.InvalidTimestampError):
            producer.send("default", b"v", timestamp_ms=now + 2 * HOUR)  # as in Kafka since 4.0: an hour ahead
        producer.send("default", b"v", timestamp_ms=0)
        producer.send("t", b"v", timestamp_ms=now - HOUR // 2)
        producer.send("appended", b"v", timestamp_ms=0)
    assert log.topic("t").end_offsets() == {0: 1}


def test_what_a_producer_did(log: streamlog.Cluster) -> None:
    log.create_topic("t")
    with log.producer(compression_type="gzip", buffer_memory=1 << 20, linger_ms=60_000) as producer:
        empty = producer.metrics()
        assert isinstance(empty, ProducerMetrics)
        assert (empty.record_send_total, empty.batch_size_avg, empty.buffer_available_bytes) == (0, 0, 1 << 20)
        for _ in range(100):
            producer.send("t", bytes(100))
        waiting = producer.metrics()
        assert waiting.record_send_total == 0
        assert waiting.buffer_available_bytes < 1 << 20
        producer.flush()
        producer.send_batch("t", [bytes(100)] * 50)
        found = producer.metrics()
        assert (found.record_send_total, found.batch_total, found.records_per_batch_avg) == (150, 2, 75)
        assert found.outgoing_byte_total == log.topic("t").describe().partitions[0].size_bytes - 64
        assert 0 < found.compression_rate_avg < 0.1
        assert found.record_send_rate > 0
        assert found.outgoing_byte_rate > 0
        assert 0 < found.record_queue_time_avg <= found.record_queue_time_max
        assert found.batch_size_avg <= found.batch_size_max
        assert (found.record_error_total, found.record_retry_total, found.waiting_threads) == (0, 0, 0)
        assert found.buffer_available_bytes == 1 << 20
    assert producer.metrics().record_send_total == 150, "after close too"


def test_what_a_consumer_did(log: streamlog.Cluster) -> None:
    log.create_topic("t", 2)
    with log.producer() as producer:
        for number in range(100):
            producer.send("t", b"v", partition=number % 2)
    with log.consumer("t", group_id="g", auto_offset_reset="earliest", max_poll_records=10) as consumer:
        assert isinstance(consumer.metrics(), ConsumerMetrics)
        assert consumer.metrics().records_lag == {}
        records = consumer.poll(1000)
        found = consumer.metrics()
        assert (found.records_consumed_total, found.fetch_total, found.records_per_fetch_avg) == (len(records), 1, len(records))
        assert found.bytes_consumed_total > 0
        assert found.records_consumed_rate > 0
        assert (found.assigned_partitions, found.rebalance_total, found.commit_total) == (2, 1, 0)
        assert sum(found.records_lag.values()) == 100 - len(records)
        assert found.records_lag_max == max(found.records_lag.values())
        consumer.commit()
        assert consumer.metrics().commit_total == 1
        while records := consumer.poll():
            pass
        assert consumer.metrics().records_consumed_total == 100
        assert consumer.metrics().records_lag_max == 0
    with log.consumer("t", auto_offset_reset="earliest") as consumer:
        assert sum(map(len, consumer.poll_batches())) == 100
        assert consumer.metrics().records_consumed_total == 100


def test_rates_are_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(meter, "monotonic", lambda: now[0])
    counted = meter.ProducerMeter()

    def write(records: int, size: int) -> None:
        counted.records += records
        counted.largest = max(counted.largest, size)
        if now[0] >= counted.turn_at:
            counted.turn(now[0])

    write(100, 7)
    now[0] += 10
    assert counted.metrics(1, 0, 0).record_send_rate == 10
    now[0] += 25  # the first window is over
    write(40, 3)
    now[0] += 5
    found = counted.metrics(1, 0, 0)
    assert (found.record_send_rate, found.batch_size_max, found.record_send_total) == (140 / 40, 7, 140)
    now[0] += 30
    write(0, 0)
    now[0] += 10
    found = counted.metrics(1, 0, 0)
    assert (found.record_send_rate, found.record_send_total) == (0, 140), "what is older does not count"
    now[0] += 1000
    write(50, 2)
    now[0] += 1
    assert counted.metrics(1, 0, 0).record_send_rate <= 50
