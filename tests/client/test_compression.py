"""Compression: every codec both ways, the topic's word over the producer's, sizes checked before they are believed."""

import random
import struct
import sys
import zlib
from pathlib import Path

import cramjam
import pytest

import streamlog
from format import reader
from streamlog._format import batch as fmt
from streamlog._format import compression
from streamlog._format.compression import LARGEST, codec, numbered

CODECS = ["gzip", "snappy", "lz4", "zstd"]


def attributes(log: streamlog.Cluster, topic: str) -> set[str]:
    """Codecs of the batches of a topic."""
    with log.consumer(topic, auto_offset_reset="earliest") as consumer:
        return {compression.name_of(batch._batch.attributes & fmt.CODEC) for batch in consumer.poll_batches()}


@pytest.mark.parametrize("name", CODECS)
def test_all_that_is_sent_comes_back(name: str, log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t")
    rows = [(random.choice([None, b"key-%d" % number]), random.choice([None, b"value " * (number % 40)])) for number in range(2000)]
    with log.producer(compression_type=name) as producer:
        for key, value in rows[:1000]:
            producer.send("t", value, key=key, headers={"h": b"1"} if value else None)
        producer.flush()
        producer.send_batch("t", [value for _, value in rows[1000:]], keys=[key or b"" for key, _ in rows[1000:]])
        with producer.batch("t") as batch:
            for _ in range(1000):
                batch.append(b"written in a tight loop")
    records = read_all(log, "t")
    assert [(record.key, record.value) for record in records[:1000]] == rows[:1000]
    assert [(record.key, record.value) for record in records[1000:2000]] == [(key or b"", value) for key, value in rows[1000:]]
    assert [record.value for record in records[2000:]] == [b"written in a tight loop"] * 1000
    assert [record.headers for record in records[:1000]] == [(("h", b"1"),) if value else () for _, value in rows[:1000]]
    assert attributes(log, "t") == {name}
    mine = list(reader.read_partition(Path(log._home.directory("t", 0))))
    assert [(record.key, record.value) for record in mine] == [(record.key, record.value) for record in records], "a second reader agrees"
    with log.consumer("t", auto_offset_reset="earliest") as consumer:
        columns = consumer.poll_batches()
        assert [value for batch in columns for value in batch.values] == [record.value for record in records]


@pytest.mark.parametrize("name", CODECS)
def test_what_compression_makes_no_smaller_is_left_as_it_is(name: str, log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t")
    value = random.randbytes(5000)
    with log.producer(compression_type=name) as producer:
        producer.send("t", value)
        producer.send("t", b"")
    assert [record.value for record in read_all(log, "t")] == [value, b""]
    assert attributes(log, "t") == {"none"}


@pytest.mark.parametrize(
    ("topic", "producer", "expected"),
    [
        ("producer", None, "none"), ("producer", "none", "none"), ("producer", "lz4", "lz4"), ("gzip", None, "gzip"), ("zstd", "lz4", "zstd"),
        ("uncompressed", "zstd", "none"), ("lz4", "lz4", "lz4"),
    ],
)  # fmt: skip
def test_the_topics_codec_decides(topic: str, producer: str | None, expected: str, log: streamlog.Cluster) -> None:
    log.create_topic("t", compression_type=topic)
    with log.producer(compression_type=producer, compression_level=3 if producer == "zstd" else None) as made:
        made.send("t", bytes(1000))
    assert attributes(log, "t") == {expected}


@pytest.mark.parametrize(("name", "low", "high"), [("gzip", 1, 9), ("lz4", 1, 9), ("zstd", -50, 19)])
def test_levels_make_a_difference(name: str, low: int, high: int, log: streamlog.Cluster) -> None:
    sizes = []
    values = [b'{"user": %d, "page": "/home/%d"}' % (number, number % 7) for number in range(1000)]
    for level in (low, high):
        topic = log.create_topic(f"t{level}".replace("-", "_"))
        with log.producer(compression_type=name, compression_level=level) as producer:
            producer.send_batch(topic.name, values)
        sizes.append(topic.describe().partitions[0].size_bytes)
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(
    ("name", "level"), [("gzip", 10), ("gzip", -2), ("lz4", 0), ("lz4", 13), ("zstd", 23), ("snappy", 1), (None, 1), ("none", 1)]
)
def test_levels_out_of_range(name: str | None, level: int, log: streamlog.Cluster) -> None:
    with pytest.raises(streamlog.InvalidConfigError, match="compression_level"):
        log.producer(compression_type=name, compression_level=level)


@pytest.mark.parametrize("name", ["snappy", "lz4", "zstd"])
def test_a_missing_codec_names_the_extra(name: str, log: streamlog.Cluster, monkeypatch: pytest.MonkeyPatch, read_all) -> None:
    log.create_topic("t")
    with log.producer(compression_type=name) as producer:
        producer.send("t", bytes(1000))
    monkeypatch.setitem(sys.modules, "cramjam", None)
    monkeypatch.setattr(compression, "_codecs", {})
    with log.producer(compression_type=name) as producer, pytest.raises(streamlog.UnsupportedCompressionError, match=r"pystreamlog\[compression\]"):
        producer.send("t", b"v")
    with log.consumer("t", auto_offset_reset="earliest") as consumer:
        for _ in range(2):  # nothing is passed over
            with pytest.raises(streamlog.UnsupportedCompressionError, match="pip install"):
                consumer.poll()
        monkeypatch.undo()
        assert [record.value for record in consumer.poll()] == [bytes(1000)]


def test_gzip_needs_nothing(log: streamlog.Cluster, monkeypatch: pytest.MonkeyPatch, read_all) -> None:
    monkeypatch.setitem(sys.modules, "cramjam", None)
    monkeypatch.setattr(compression, "_codecs", {})
    log.create_topic("t")
    with log.producer(compression_type="gzip") as producer:
        producer.send("t", bytes(1000))
    assert attributes(log, "t") == {"gzip"}


# ---- sizes -------------------------------------------------------------------------------------------------------------------

COMPRESSORS = {
    "gzip": lambda data: zlib.compress(data, 9, 31), "snappy": cramjam.snappy.compress_raw,
    "lz4": cramjam.lz4.compress, "zstd": cramjam.zstd.compress,
}  # fmt: skip


def block(name: str, data: bytes) -> memoryview:
    packed = bytes(COMPRESSORS[name](data))
    return memoryview(struct.pack("<I", len(packed)) + packed + bytes(-(4 + len(packed)) & 7))


@pytest.mark.parametrize("name", CODECS)
def test_a_block_gives_what_its_header_promises_or_nothing(name: str) -> None:
    data = b"0123456789" * 100
    assert bytes(codec(name).decompress(block(name, data), 1000)) == data
    for wrong in (0, 1, 999, 1001, 64 << 20, LARGEST + 1, 2**32 - 1):
        with pytest.raises(ValueError, match="block|bytes of columns"):
            codec(name).decompress(block(name, data), wrong)
    good = bytes(block(name, data))
    for damaged in (b"", good[:3], good[:20], struct.pack("<I", 2**32 - 1) + good[4:], good[:4] + b"\xff" * (len(good) - 4), bytes(len(good))):
        with pytest.raises(ValueError, match="block"):
            codec(name).decompress(memoryview(damaged), 1000)


@pytest.mark.parametrize("name", CODECS)
def test_a_bomb_takes_no_memory(name: str, log: streamlog.Cluster) -> None:
    """A crafted batch whose checksum holds: 256 MiB of zeros behind a header that says 1,000 bytes, and one that says it all."""
    import resource

    bomb = block(name, bytes(256 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for size in (1000, 256 << 20):
        with pytest.raises(ValueError, match="block|bytes of columns"):
            codec(name).decompress(bomb, size)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10, "kilobytes"


@pytest.mark.parametrize("number", [5, 6, 7])
def test_codecs_of_a_newer_program(number: int) -> None:
    with pytest.raises(streamlog.UnsupportedCompressionError, match=f"codec {number}"):
        numbered(number)


@pytest.mark.parametrize("name", CODECS)
def test_max_message_bytes_counts_after_compression(name: str, log: streamlog.Cluster, read_all) -> None:
    log.create_topic("t", max_message_bytes=10_000)
    with log.producer(compression_type=name, max_request_size=4 << 20) as producer:
        producer.send("t", bytes(100_000)).result()
        noise = random.randbytes(10_000)
        with pytest.raises(streamlog.RecordTooLargeError, match="max_message_bytes=10000"):
            producer.send("t", noise).result()
        producer.send_batch("t", [bytes(50_000)] * 3)
        assert [delivery.exception() for delivery in producer.send_batch("t", [b"small", noise])][-1].__class__ is streamlog.RecordTooLargeError
        producer.send("t", b"after").result()
    values = [record.value for record in read_all(log, "t")]
    assert values == [bytes(100_000), *[bytes(50_000)] * 3, b"small", b"after"]


def test_more_than_64_mib_is_not_compressed_into_one_batch(log: streamlog.Cluster) -> None:
    log.create_topic("t", max_message_bytes=200 << 20, segment_bytes=1 << 30)
    with log.producer(compression_type="lz4", max_request_size=200 << 20, buffer_memory=512 << 20) as producer:
        with pytest.raises(streamlog.RecordTooLargeError, match=str(LARGEST)):
            producer.send("t", bytes(LARGEST + 1)).result()
        producer.send_batch("t", [bytes(1 << 20)] * 70)
    with log.consumer("t", auto_offset_reset="earliest") as consumer:
        batches = consumer.poll_batches()
        assert all(batch._batch.uncompressed <= LARGEST for batch in batches)
        assert sum(map(len, batches)) == 70 or consumer.lag()


@pytest.mark.parametrize("name", CODECS)
def test_what_a_signal_handler_raises_inside_a_codec_is_its_own(name: str, log: streamlog.Cluster, monkeypatch: pytest.MonkeyPatch, read_all) -> None:
    """An alarm's TimeoutError is neither a refusal of the codec nor damage: it comes out, and nothing is lost."""
    log.create_topic("t")
    found = codec(name)
    compress, decompress = found._compress, found._decompress

    def once(real):
        def call(*args):
            monkeypatch.undo()
            found._compress, found._decompress = compress, decompress
            raise TimeoutError("alarm")

        return call

    with log.producer(compression_type=name, linger_ms=60_000) as producer:
        delivery = producer.send("t", bytes(1000))
        found._compress = once(compress)
        with pytest.raises(TimeoutError, match="alarm"):
            producer.flush()
        producer.flush()
        assert delivery.exception() is None
    with log.consumer("t", auto_offset_reset="earliest") as consumer:
        found._decompress = once(decompress)
        with pytest.raises(TimeoutError, match="alarm"):
            consumer.poll()
        assert [record.value for record in consumer.poll()] == [bytes(1000)]
