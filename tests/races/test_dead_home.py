"""A home that was found dead stays dead, for every call of every object."""

import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import streamlog
from streamlog.errors import ClosedError, DiskFailedError

HARM: dict[str, Callable[[Path], object]] = {
    "removed": shutil.rmtree,
    "renamed": lambda path: path.rename(path.with_name("away")),
    "replaced": lambda path: (path.rename(path.with_name("away")), shutil.copytree(path.with_name("away"), path)),
}
DEAD = (ClosedError, DiskFailedError)


@pytest.mark.parametrize("brokers", [1, 3])
@pytest.mark.parametrize("durability", ["os", "fsync"])
@pytest.mark.parametrize("harm", sorted(HARM))
def test_nothing_is_acknowledged_once_the_directory_was_found_gone(harm: str, durability: str, brokers: int, place: Path) -> None:
    log = streamlog.open(place / "log", brokers=brokers)
    log.create_topic("t", replication_factor=brokers)
    producer = log.producer(durability=durability, linger_ms=0, delivery_timeout_ms=3000)
    bulk = log.producer(durability=durability, delivery_timeout_ms=3000)
    transactional = log.producer(transactional_id="x", durability=durability, delivery_timeout_ms=3000, max_block_ms=3000)
    transactional.init_transactions()
    consumer = log.consumer("t", group_id="g", auto_offset_reset="earliest", default_api_timeout_ms=3000)
    producer.send("t", b"1").result()
    assert len(consumer.poll(timeout_ms=1000)) == 1
    HARM[harm](place / "log")
    deadline = time.monotonic() + 10
    while not log._home_of_process.closed:  # within a second, whatever is tried
        with contextlib.suppress(streamlog.StreamlogError):
            producer.send("t", b"unnoticed").result()
        assert time.monotonic() < deadline
    for _ in range(20):
        with pytest.raises(DEAD):
            producer.send("t", b"lost").result()
        with pytest.raises(DEAD):
            for delivery in bulk.send_batch("t", [b"lost"] * 10):
                delivery.result()
        with pytest.raises(DEAD), transactional.transaction():
            transactional.send("t", b"lost")
        with pytest.raises(DEAD):
            consumer.poll()
        with pytest.raises(DEAD):
            consumer.commit()
        for call in (log.topics, log.groups, log.describe, log.maintain, lambda: log.create_topic("other"), lambda: log.topic("t").end_offsets()):
            with pytest.raises(DEAD):
                call()
    for child in (producer, bulk, transactional, consumer):
        child.close()
    log.close()
