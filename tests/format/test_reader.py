"""The reader that knows docs/format.md only: what it finds in golden bytes, in damaged ones and in what streamlog wrote."""

import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgpack
import pytest

import streamlog
from format import reader
from format.reader import Damage, Record, UnknownVersion, read_checkpoint, read_index, read_partition, read_segment, topics

GOLDEN = Path(__file__).parent / "golden"
SEGMENT, INDEX = (bytes.fromhex((GOLDEN / f"{name}.hex").read_text()) for name in ("segment", "index"))
SALT, END, TIME = 0x1122334455667788, 107, 1_700_000_000_000
STARTS = [64, 160, 408, 504]  # of the golden batches, and where the last one ends


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :]


# Golden bytes


def test_every_golden_file_is_read_here() -> None:
    assert sorted(path.name for path in GOLDEN.iterdir()) == ["index.hex", "segment.hex"]


def test_golden_segment_header() -> None:
    header, batches, rest = read_segment(SEGMENT)
    assert header == reader.Header(SALT, bytes(range(16)), 100, 3, 7, 100)
    assert (len(batches), rest, len(SEGMENT)) == (3, 504, 504)
    assert header == read_segment(SEGMENT, END)[0]


def test_golden_batch_headers() -> None:
    _, batches, _ = read_segment(SEGMENT)
    fields = ["base_offset", "attributes", "length", "count", "last_offset_delta", "base_timestamp", "max_timestamp", "uncompressed"]
    assert [[getattr(batch, field) for field in fields] for batch in batches] == [
        [100, 0x0800, 96, 1, 0, TIME, TIME, 16],
        [101, 0x1E00, 248, 3, 2, TIME + 5, TIME + 5, 168],
        [104, 0x0800, 96, 3, 2, TIME + 9, TIME + 9, 16],
    ]
    assert {(batch.producer_id, batch.base_sequence, batch.producer_epoch, batch.leader_epoch) for batch in batches} == {(-1, -1, -1, 7)}


def test_golden_records() -> None:
    _, batches, _ = read_segment(SEGMENT)
    assert [batch.records() for batch in batches] == [
        [Record(100, TIME, None, b"hello", [])],
        [
            Record(101, TIME + 5, b"user-1", b"/home", [("trace", b"\1\2"), ("none", None)]),
            Record(102, TIME + 3, b"user-2", None, []),
            Record(103, TIME + 4, None, b"", []),
        ],
        [Record(104 + i, TIME + 9, None, value, []) for i, value in enumerate([b"ab", b"cd", b"ef"])],
    ]


def test_golden_index() -> None:
    entries = read_index(INDEX, SALT)
    assert entries == [(100, 64, TIME), (101, 160, TIME + 5)]
    assert read_index(INDEX, SALT + 1) == []
    assert {(offset, position) for offset, position, _ in entries} <= {(batch.base_offset, at) for batch, at in zip(read_segment(SEGMENT)[1], STARTS)}


# Damage


@pytest.mark.parametrize("position", range(len(SEGMENT)))
def test_a_flipped_bit_in_a_segment(position: int) -> None:
    data, at = flipped(SEGMENT, position), max(start for start in [0, *STARTS] if start <= position)
    with pytest.raises(UnknownVersion if position - at == 4 else Damage):
        read_segment(data, END)
    if at and position - at != 4:  # in the last segment, damage is where the log ends
        _, batches, rest = read_segment(data)
        assert (len(batches), rest) == (STARTS.index(at), at)


@pytest.mark.parametrize("position", range(24))
def test_a_flipped_bit_in_an_index_header(position: int) -> None:
    data = flipped(INDEX, position)
    if position < 8:
        with pytest.raises(UnknownVersion if position == 4 else Damage):
            read_index(data, SALT)
    else:  # the salt, and so another segment's; the base offset, which no entry depends on
        assert read_index(data, SALT) == ([] if 8 <= position < 16 else read_index(INDEX, SALT))


@pytest.mark.parametrize("position", [*range(24, 40), *range(48, 64)])
def test_a_flipped_bit_in_an_index_entry_makes_a_hint_that_does_not_count(position: int) -> None:
    hints = {(offset, place) for offset, place, _ in read_index(flipped(INDEX, position), SALT)}
    assert len(hints & {(batch.base_offset, at) for batch, at in zip(read_segment(SEGMENT)[1], STARTS)}) == 1


@pytest.mark.parametrize("size", range(0, len(SEGMENT), 8))
def test_a_segment_cut_short(size: int) -> None:
    if size < 64:
        with pytest.raises(Damage):
            read_segment(SEGMENT[:size])
        return
    for tail in (b"", bytes(200), SEGMENT[64:160]):  # nothing, what was reserved, a batch that does not come next
        data = SEGMENT[:size] + tail
        whole = [start for start in STARTS if start <= size and data[:start] == SEGMENT[:start]]
        if size == 64 and tail == SEGMENT[64:160]:
            whole = [64, 160]
        assert read_segment(data)[2] == whole[-1]
        with pytest.raises(Damage):
            read_segment(data, END)


def test_a_segment_ends_where_the_next_begins() -> None:
    _, batches, rest = read_segment(SEGMENT, 104)
    assert ([batch.base_offset for batch in batches], rest) == ([100, 101], 408)
    with pytest.raises(Damage):
        read_segment(SEGMENT, 103)


@pytest.mark.parametrize("bit", [6, 7, 13, 31])
def test_attributes_of_a_newer_version(bit: int) -> None:
    batch = bytearray(SEGMENT[64:160])
    struct.pack_into("<I", batch, 24, 1 << 11 | 1 << bit)
    struct.pack_into("<Q", batch, 8, reader.xxhash.xxh3_64_intdigest(bytes(batch[16:]), SALT))
    with pytest.raises(UnknownVersion):
        read_segment(SEGMENT[:64] + batch)


def test_columns_that_no_writer_here_writes() -> None:
    """Offsets with gaps, a validity bitmap of more than a byte, values of width 0."""
    deltas, count = [3 * i for i in range(9)], 9
    keys = struct.pack("<2iH6x10i", -1, 1, 0b1_1111_0111, *[0, 1, 2, 3, 3, 4, 5, 6, 7, 8]) + b"abcefghi"
    columns = struct.pack("<9i4x", *deltas) + keys + struct.pack("<2i", 0, 0)
    head = struct.pack("<qIIiiqqqih2xiI", 100, 0xD00, 80 + len(columns), count, 29, TIME, TIME, -1, -1, -1, 7, len(columns))
    checksum = reader.xxhash.xxh3_64_intdigest(head + columns, SALT)
    batch = struct.pack("<4sB3xQ", b"SLB1", 1, checksum) + head + columns
    _, (found,), _ = read_segment(SEGMENT[:64] + batch, 130)
    keys_of = [None if i == 3 else bytes([97 + i]) for i in range(9)]
    assert found.records() == [Record(100 + delta, TIME, key, b"", []) for delta, key in zip(deltas, keys_of)]


def test_checkpoints() -> None:
    assert read_checkpoint("0\n2\n1 0\n2 17\n") == [["1", "0"], ["2", "17"]]
    assert read_checkpoint("0\n0\n") == []
    for text in ("0\n2\n1 0\n", "0\n1\n1 0", "0\n"):
        with pytest.raises((Damage, ValueError)):
            read_checkpoint(text)
    with pytest.raises(UnknownVersion):
        read_checkpoint("1\n0\n")


# What streamlog wrote


@pytest.fixture
def home(place: Path) -> Path:
    """A closed cluster: topic `a-b.c` of three partitions and several segments, an empty one and a removed one."""
    with streamlog.open(place / "log") as log:
        log.create_topic("a-b.c", partitions=3, segment_bytes=4096)
        log.create_topic("empty", partitions=2)
        log.create_topic("removed", partitions=1)
        for start in range(0, 600, 20):
            with log.producer() as producer:
                for i in range(start, start + 20):
                    kinds = [(b"key-%d" % (i % 7), b"%d" % i * (i % 50)), (b"key", None), (None, b""), (None, b"%05d" % i)]
                    key, value = kinds[i // 20 % 4 if i % 5 else i % 4]  # some batches mixed, some not
                    headers = [("", b""), ("name", None), ("name", bytes([i % 256]))] if i % 3 == 0 else []
                    producer.send("a-b.c", value, key=key, headers=headers, timestamp_ms=TIME + i * 37 % 100)
        log.delete_topic("removed")
    return place / "log"


def partitions(home: Path) -> Iterator[tuple[int, Path]]:
    for number in range(topics(home)["a-b.c"].partitions):
        yield number, home / "broker-0" / f"a-b.c-{number}"


def consumed(home: Path) -> dict[int, list[Record]]:
    """What a consumer returns, by partition."""
    found: dict[int, list[Record]] = {number: [] for number in range(3)}
    with streamlog.open(home) as log, log.consumer("a-b.c", auto_offset_reset="earliest") as consumer:
        while records := consumer.poll():
            for record in records:
                headers = [(name, value) for name, value in record.headers]
                found[record.partition].append(Record(record.offset, record.timestamp_ms, record.key, record.value, headers))
    return found


def test_the_reader_finds_what_a_consumer_finds(home: Path) -> None:
    found = {number: list(read_partition(path)) for number, path in partitions(home)}
    assert sum(map(len, found.values())) == 600
    assert all(len(list(path.glob("*.log"))) > 1 for _, path in partitions(home))
    assert any(record.value is None and record.key for records in found.values() for record in records)
    assert consumed(home) == found
    assert {number: list(read_partition(path)) for number, path in partitions(home)} == found  # a consumer wrote nothing there


def test_the_topics_that_exist(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = topics(home)
    assert {name: (about.partitions, about.config) for name, about in found.items()} == {"a-b.c": (3, {"segment_bytes": 4096}), "empty": (2, {})}
    for number, path in partitions(home):
        header, _, _ = read_segment(min(path.glob("*.log")).read_bytes(), None)
        assert (header.topic_id, header.partition) == (found["a-b.c"].topic_id, number)
    reader.main(str(home))
    reader.main(str(home), "a-b.c")
    *_, line = capsys.readouterr().out.splitlines()
    assert line.endswith(" 3 " + " ".join(str(len(list(read_partition(path)))) for _, path in partitions(home)))


def test_the_topics_of_several_brokers_and_of_a_cluster_with_options(place: Path) -> None:
    with streamlog.open(place / "log", brokers=3, offsets_topic_num_partitions=2) as log:
        log.create_topic("t", partitions=2, replication_factor=3)
        with log.producer() as producer:
            producer.send("t", b"one", partition=1).result()
            log.stop_broker(log.topic("t").describe().partitions[1].leader)
            producer.send("t", b"two", partition=1).result()
    homes = [place / "log" / f"broker-{number}" for number in range(3)]
    assert {name: about.partitions for name, about in topics(place / "log").items() if name == "t"} == {"t": 2}
    found = [[record.value for record in read_partition(home / "t-1")] for home in homes]
    assert sorted(found) == [[b"one"], [b"one", b"two"], [b"one", b"two"]]


def test_the_metadata_log_is_a_partition_like_any_other(home: Path) -> None:
    log = home / "broker-0" / "__cluster_metadata-0"
    header, _, _ = read_segment(min(log.glob("*.log")).read_bytes())
    assert header.topic_id == bytes(15) + b"\1"
    records = list(read_partition(log))
    assert all(record.key is None and record.value is not None for record in records)
    assert [msgpack.unpackb(record.value or b"")[0] for record in records] == [*["TopicRecord"] * 3, "ProducerIdsRecord", "RemoveTopicRecord"]


def test_index_entries_point_at_batches(home: Path) -> None:
    for _, directory in partitions(home):
        paths: list[Path | None] = [*sorted(directory.glob("*.log")), None]
        for path, following in pairwise(paths):
            assert path is not None
            header, batches, rest = read_segment(path.read_bytes(), int(following.stem) if following else None)
            at, places, largest = 64, {}, -1
            for batch in batches:
                largest = max(largest, batch.max_timestamp)
                places[batch.base_offset] = at, largest
                at += batch.length
            if following:
                places[int(following.stem)] = rest, largest
            entries = read_index(path.with_suffix(".index").read_bytes(), header.salt)
            assert all(places[offset] == (position, timestamp) for offset, position, timestamp in entries)
            assert not following or entries[-1][:2] == (int(following.stem), rest)


def test_every_checkpoint_is_read(home: Path) -> None:
    found = {path.name: read_checkpoint(path.read_text()) for path in home.rglob("*-checkpoint")}
    assert found.keys() >= {"recovery-point-offset-checkpoint", "leader-epoch-checkpoint"}
    assert all(len(bytes.fromhex(words[0])) == 16 and len(words) == 3 for words in found["recovery-point-offset-checkpoint"])


def test_derived_files_change_no_read(home: Path) -> None:
    found = {number: list(read_partition(path)) for number, path in partitions(home)}
    for path in [*home.rglob("*.index"), *home.rglob("*-checkpoint"), *(home / "run").iterdir()]:
        path.unlink()
    assert consumed(home) == found


def test_a_bit_flipped_in_a_file_that_is_not_the_last(home: Path) -> None:
    path = min((home / "broker-0" / "a-b.c-0").glob("*.log"))
    path.write_bytes(flipped(path.read_bytes(), 64 + 90))
    with pytest.raises(Damage):
        list(read_partition(path.parent))


def test_the_reader_finds_what_a_committed_consumer_finds(place: Path) -> None:
    """Two producers, commits and aborts over rolls, and one transaction that stays open; indexes and snapshots say the same."""
    with streamlog.open(place / "log") as log:
        log.create_topic("t", 2, segment_bytes=4096)
        plain, producers = log.producer(linger_ms=0), [log.producer(transactional_id=name, linger_ms=0) for name in ("x", "y")]
        for producer in producers:
            producer.init_transactions()
        for number in range(40):
            producer = producers[number % 2]
            producer.begin_transaction()
            for part in range(3):
                producer.send("t", b"%d-%d" % (number, part) + bytes(300), partition=part % 2).result()
            plain.send("t", b"plain %d" % number, partition=0).result()
            producer.abort_transaction() if number % 5 == 0 else producer.commit_transaction()
        producers[0].begin_transaction()
        producers[0].send("t", b"open", partition=0).result()
        plain.send("t", b"after", partition=0).result()
        for level in ("read_uncommitted", "read_committed"):
            with log.consumer("t", isolation_level=level, auto_offset_reset="earliest") as consumer:
                found: dict[int, list[tuple[int, bytes]]] = {0: [], 1: []}
                while records := consumer.poll():
                    for record in records:
                        found[record.partition].append((record.offset, record.value))
            for number in (0, 1):
                read = read_partition(place / "log" / "broker-0" / f"t-{number}", committed=level == "read_committed")
                assert [(record.offset, record.value) for record in read] == found[number]
        for directory in (place / "log" / "broker-0").glob("t-*"):
            aborted = 0
            for path in directory.glob("*.log"):
                header, batches, _ = read_segment(path.read_bytes())
                entries = reader.read_transaction_index(path.with_suffix(".txnindex").read_bytes(), header.salt)
                markers = [batch for batch in batches if batch.attributes & reader.CONTROL and not batch.is_commit()]
                assert [(entry[0], entry[2]) for entry in entries] == [(batch.producer_id, batch.base_offset) for batch in markers]
                aborted += len(entries)
            assert aborted == 8
            for path in directory.glob("*.snapshot"):
                *_, offset, snapshot = reader.read_snapshot(path.read_bytes())
                assert offset == int(path.stem)
                assert {fields[0] for fields, _ in snapshot} <= {batch.producer_id for batch in reader.read_batches(directory)}
        for producer in (plain, *producers):
            producer.close()
        assert streamlog.check(log) == []
