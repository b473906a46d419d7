"""A second reader of a cluster's files, written from docs/format.md alone: `python reader.py HOME [TOPIC]`."""

import json
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import xxhash

SEGMENT_HEADER, BATCH_HEADER, INDEX_HEADER = "4sB3sQQ16sqiiq", "4sB3sQqIIiiqqqih2xiI", "4sB3sQq"  # of 64, 80 and 24 bytes
SNAPSHOT_HEADER, PRODUCER, BATCH, ABORTED = "4sB3sQQqqQ", "qqqqihH8x", "qqii", "qqqQ"  # of 48, 48, 24 and 32 bytes
CODEC, LARGEST = 7, 64 << 20
OTHER_RECORDS = {"ProducerIdsRecord", "ClusterRecord", "LeaderChangeRecord", "RegisterBrokerRecord", "BrokerRegistrationChangeRecord",
                 "UnregisterBrokerRecord", "PartitionChangeRecord"}  # fmt: skip
LOG_APPEND_TIME, TRANSACTIONAL, CONTROL, HAS_OFFSETS, HAS_TIMESTAMPS, HAS_KEYS, HAS_VALUES, HAS_HEADERS = (
    1 << bit for bit in (3, 4, 5, 8, 9, 10, 11, 12)
)
READABLE = CODEC | LOG_APPEND_TIME | TRANSACTIONAL | CONTROL | HAS_OFFSETS | HAS_TIMESTAMPS | HAS_KEYS | HAS_VALUES | HAS_HEADERS  # no reserved bits
Headers = list[tuple[str, bytes | None]]
Header = NamedTuple("Header", [("salt", int), ("topic_id", bytes), ("base_offset", int), ("partition", int), ("leader_epoch", int), ("epoch_start", int)])  # noqa: UP014, E501
Record = NamedTuple("Record", [("offset", int), ("timestamp_ms", int), ("key", bytes | None), ("value", bytes | None), ("headers", Headers)])  # noqa: UP014
Topic = NamedTuple("Topic", [("topic_id", bytes), ("partitions", int), ("config", dict[str, Any])])  # noqa: UP014


class Damage(Exception):
    """The bytes are not what a writer wrote."""


class UnknownVersion(Exception):
    """The bytes may be fine, but this reader does not know their version."""


def check(holds: bool, what: str, error: type[Exception] = Damage) -> None:
    """Fail unless it holds."""
    if not holds:
        raise error(what)


def take(data: BytesIO, layout: str) -> tuple[Any, ...]:
    """The next values of a layout, as `struct` writes it, and past the padding to a multiple of 8 bytes."""
    size = struct.calcsize("<" + layout)
    found = data.read((size + 7) // 8 * 8)
    check(len(found) >= size, "the bytes end too early")
    return struct.unpack_from("<" + layout, found)


def take_header(data: bytes, layout: str, magic: bytes) -> list[Any]:
    """The fields of a header that follow its magic and its version, which are verified."""
    found, version, reserved, *fields = take(BytesIO(data), layout)
    check(version == 1 or found != magic, f"version {version} of {magic!r}", UnknownVersion)
    check((found, reserved) == (magic, bytes(3)), f"{found + reserved!r} stands where {magic!r} and zeros should")
    return fields


def take_column(columns: BytesIO, count: int) -> list[bytes | None]:
    """The next bytes column."""
    width, nulls = take(columns, "2i")
    (bitmap,) = take(columns, f"{(count + 7) // 8}s") if nulls else (b"",)
    bounds = take(columns, f"{count + 1}i") if width == -1 else [width * i for i in range(count + 1)]
    (data,) = take(columns, f"{bounds[-1]}s")
    return [None if nulls and not bitmap[i // 8] >> i % 8 & 1 else data[bounds[i] : bounds[i + 1]] for i in range(count)]


def decompress(codec: int, data: bytes, size: int) -> bytes:
    """Columns out of a compressed block."""
    (length,) = struct.unpack_from("<I", data)
    check(length <= len(data) - 4 and size <= LARGEST, "the sizes of a compressed block")
    block = data[4 : 4 + length]
    if codec == 1:
        columns = zlib.decompressobj(31).decompress(block, size + 1)
    else:
        import cramjam

        buffer = bytearray(size)
        into = {2: cramjam.snappy.decompress_raw_into, 3: cramjam.lz4.decompress_into, 4: cramjam.zstd.decompress_into}
        check(codec in into, f"codec {codec}", UnknownVersion)
        columns = bytes(buffer[: into[codec](block, buffer)])
    check(len(columns) == size, "the size of what was compressed")
    return columns


class Batch:
    """The batch at a position of a segment, verified."""

    def __init__(self, data: bytes, position: int, salt: int) -> None:
        (self.checksum, self.base_offset, self.attributes, self.length, self.count, self.last_offset_delta, self.base_timestamp,
         self.max_timestamp, self.producer_id, self.base_sequence, self.producer_epoch, self.leader_epoch,
         self.uncompressed) = take_header(data[position : position + 80], BATCH_HEADER, b"SLB1")
        self.columns = data[position + 80 : position + self.length]
        check(xxhash.xxh3_64_intdigest(data[position + 16 : position + self.length], salt) == self.checksum, "the checksum of a batch")
        check(not self.attributes & ~READABLE, f"batch of attributes {self.attributes:#x}", UnknownVersion)

    def is_commit(self) -> bool:
        """Whether a marker commits."""
        version, kind = struct.unpack_from(">hh", self.records()[0].key or b"")
        check((version, kind) in ((0, 0), (0, 1)), "a marker that neither commits nor aborts", UnknownVersion)
        return bool(kind)

    def records(self) -> list[Record]:
        """The records, in the order of their offsets."""
        count, has = self.count, self.attributes
        columns = BytesIO(decompress(has & CODEC, self.columns, self.uncompressed) if has & CODEC else self.columns)
        deltas = take(columns, f"{count}i") if has & HAS_OFFSETS else range(count)
        times = take(columns, f"{count}q") if has & HAS_TIMESTAMPS else [self.base_timestamp] * count
        keys, values, packed = [take_column(columns, count) if has & bit else [None] * count for bit in (HAS_KEYS, HAS_VALUES, HAS_HEADERS)]
        check(not columns.read(), "a batch longer than its columns")
        headers = [[(name, value) for name, value in msgpack.unpackb(each)] if each is not None else [] for each in packed]
        return [Record(self.base_offset + delta, *rest) for delta, *rest in zip(deltas, times, keys, values, headers)]


def read_segment(data: bytes, end: int | None = None) -> tuple[Header, list[Batch], int]:
    """The header, the batches and the position after them; `end` is where the next segment begins, None: there is no next one."""
    checksum, *fields = take_header(data[:64], SEGMENT_HEADER, b"SLS1")
    check(xxhash.xxh3_64_intdigest(data[16:64], 0) == checksum, "the checksum of a segment header")
    header, batches, position = Header(*fields), list[Batch](), 64
    expected = header.base_offset
    with suppress(Damage):  # the log ends there, unless there is a next segment
        while end is None or expected < end:
            batch = Batch(data, position, header.salt)
            check((batch.base_offset, batch.leader_epoch) == (expected, header.leader_epoch), "not the batch that comes next")
            batches.append(batch)
            position, expected = position + batch.length, expected + batch.last_offset_delta + 1
    check(end is None or expected == end, f"a segment ends at offset {expected}, the next begins at {end}")
    return header, batches, position


def read_partition(directory: Path, committed: bool = False) -> Iterator[Record]:
    """The records of a partition in order, markers left out; only those that count if `committed`."""
    batches = list(read_batches(directory))
    fate, open_, stable = dict[int, bool](), dict[int, list[int]](), None
    for batch in batches:
        if batch.attributes & CONTROL:
            fate.update(dict.fromkeys(open_.pop(batch.producer_id, []), batch.is_commit()))
        elif batch.attributes & TRANSACTIONAL:
            open_.setdefault(batch.producer_id, []).append(batch.base_offset)
    stable = min((offsets[0] for offsets in open_.values()), default=None)
    for batch in batches:
        if committed and batch.base_offset == stable:
            return
        if not batch.attributes & CONTROL and not (committed and fate.get(batch.base_offset) is False):
            yield from batch.records()


def read_batches(directory: Path) -> Iterator[Batch]:
    """The batches of a partition in order; each segment ends where the next begins."""
    paths, number, epoch = sorted(directory.glob("[0-9]" * 20 + ".log")), int(directory.name.rpartition("-")[2]), -1
    for path, following in zip(paths, [*paths[1:], None]):
        header, batches, _ = read_segment(path.read_bytes(), int(following.stem) if following else None)
        check((header.base_offset, header.partition) == (int(path.stem), number) and header.leader_epoch >= epoch, f"{path} does not belong there")
        epoch = header.leader_epoch
        yield from batches


def read_index(data: bytes, salt: int) -> list[tuple[int, int, int]]:
    """The entries (offset, position, timestamp), which are hints; none if the index is another segment's."""
    found, _ = take_header(data[:24], INDEX_HEADER, b"SLI1")
    return list(struct.iter_unpack("<3q", data[24 : len(data) // 24 * 24])) if found == salt else []


def read_snapshot(data: bytes) -> tuple[int, int, int, list[tuple[tuple[int, ...], list[tuple[int, ...]]]]]:
    """Salt, base offset, offset, and each producer with its batches, of a producer snapshot."""
    checksum, salt, base_offset, offset, count = take_header(data[:48], SNAPSHOT_HEADER, b"SLP2")
    check(xxhash.xxh3_64_intdigest(data[16:], salt) == checksum, "the checksum of a snapshot")
    rows, producers = BytesIO(data[48:]), []
    for _ in range(count):
        *fields, batches = take(rows, PRODUCER)
        producers.append((tuple(fields), [take(rows, BATCH) for _ in range(batches)]))
    check(not rows.read(), "a snapshot longer than its rows")
    return salt, base_offset, offset, producers


def read_transaction_index(data: bytes, salt: int) -> list[tuple[int, int, int]]:
    """Producer id, first offset and marker of the transactions that were aborted in a segment."""
    found, _ = take_header(data[:24], INDEX_HEADER, b"SLA1")
    check(found == salt, "the index of another segment")
    entries = list(struct.iter_unpack("<" + ABORTED, data[24:]))
    check(all(xxhash.xxh3_64_intdigest(struct.pack("<qqq", *entry[:3]), salt) == entry[3] for entry in entries), "the checksum of an entry")
    return [entry[:3] for entry in entries]


def read_checkpoint(text: str) -> list[list[str]]:
    """The entries of a checkpoint, as words."""
    version, count, *lines = text.split("\n")
    check(version == "0", f"checkpoint of version {version}", UnknownVersion)
    check(lines[-1:] == [""] and count == str(len(lines) - 1), "a checkpoint that is cut short")
    return [line.split(" ") for line in lines[:-1]]


def topics(home: Path) -> dict[str, Topic]:
    """The topics that exist, by name: the fold of the metadata log."""
    check(json.loads((home / "cluster.json").read_text())["format_version"] == 1, "cluster of another version", UnknownVersion)
    found: dict[bytes, list[Any]] = {}
    for record in read_partition(home / "broker-0" / "__cluster_metadata-0"):
        kind, *fields = msgpack.unpackb(record.value or b"")
        if kind == "TopicRecord":
            found[fields[1]] = fields
        elif kind in ("PartitionsRecord", "ConfigRecord"):
            found[fields[0]][2 if kind == "PartitionsRecord" else 3] = fields[1]
        elif kind == "RemoveTopicRecord":
            del found[fields[0]]
        else:
            check(kind in OTHER_RECORDS, f"metadata record {kind}", UnknownVersion)
    return {name: Topic(*rest) for name, *rest in found.values()}


def main(home: str, topic: str | None = None) -> None:
    """Print the topics, or one topic and how many records each of its partitions has."""
    for name, about in topics(Path(home)).items():
        counts = (sum(1 for _ in read_partition(Path(home) / "broker-0" / f"{name}-{number}")) for number in range(about.partitions))
        if topic in (None, name):
            print(name, about.topic_id.hex(), about.config, about.partitions, *(counts if topic else ()))


if __name__ == "__main__":
    main(*sys.argv[1:])
