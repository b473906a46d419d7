"""Batches: golden bytes, and round trips of whatever a user may send."""

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlog._format import batch as fmt
from streamlog._format import index as index_format

GOLDEN = Path(__file__).parent / "golden"
DOCS = Path(__file__).parents[2] / "docs" / "format.md"
SALT = 0x1122334455667788
maybe_bytes = st.none() | st.binary(max_size=30)


def seal(offset: int, timestamp: int, salt: int = SALT, **rows: list) -> bytes:
    attributes, columns = fmt.encode_rows(**rows)
    times = rows.get("timestamps") or [timestamp]
    count = len(rows["values"])
    fields = (offset, attributes, 80 + len(columns), count, count - 1, times[0], max(times), -1, -1, -1, 7, len(columns))
    return fmt.seal_head(salt, columns, *fields) + columns


@given(
    st.lists(st.tuples(maybe_bytes, maybe_bytes, maybe_bytes, st.integers(0, 2**63 - 1)), min_size=1, max_size=40),
    st.sets(st.sampled_from(["keys", "headers", "timestamps"])),
)
def test_what_is_encoded_is_decoded(rows: list, present: set) -> None:
    keys, values, headers, timestamps = (list(column) for column in zip(*rows))
    given_columns = {"keys": keys, "headers": headers, "timestamps": timestamps}
    data = seal(5, timestamps[0], values=values, **{name: given_columns[name] for name in present})
    assert len(data) % 8 == 0
    batch = fmt.parse(memoryview(data), SALT, 0, len(data))
    columns = batch.columns()
    assert (columns.values.to_list() if columns.values else [None] * len(rows)) == values
    for name in ("keys", "headers"):
        column = getattr(columns, name)
        assert (column.to_list() if column else [None] * len(rows)) == (given_columns[name] if name in present else [None] * len(rows))
    assert (columns.timestamps.tolist() if columns.timestamps else None) == (timestamps if "timestamps" in present else None)
    assert list(batch.offsets()) == list(range(5, 5 + len(rows)))


@given(st.binary(min_size=1, max_size=60), st.data())
@settings(max_examples=300)
def test_every_flipped_bit_is_noticed(value: bytes, data: st.DataObject) -> None:
    whole = bytearray(seal(5, 9, values=[value, None], keys=[b"k", value]))
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    with pytest.raises((ValueError, fmt.UnknownVersionError)):
        fmt.parse(memoryview(bytes(whole)), SALT, 0, len(whole))


def test_another_salt_is_another_segment() -> None:
    data = seal(5, 9, values=[b"x"])
    with pytest.raises(ValueError, match="checksum"):
        fmt.parse(memoryview(data), SALT + 1, 0, len(data))


def test_unwritten_space_is_no_batch() -> None:
    with pytest.raises(ValueError, match="magic"):
        fmt.parse(memoryview(bytes(4096)), 0, 0, 4096)


def golden(name: str) -> bytes:
    return bytes.fromhex((GOLDEN / name).read_text())


def test_golden_bytes() -> None:
    import msgpack

    header = fmt.seal_segment_header(SALT, bytes(range(16)), 100, 3, 7, 100)
    first = seal(100, 1700000000000, values=[b"hello"])
    headers = [msgpack.packb([["trace", b"\1\2"], ["none", None]]), None, None]
    times = [1700000000005, 1700000000003, 1700000000004]
    second = seal(101, 0, values=[b"/home", None, b""], keys=[b"user-1", b"user-2", None], headers=headers, timestamps=times)
    third = seal(104, 1700000000009, values=[b"ab", b"cd", b"ef"])
    assert header + first + second + third == golden("segment.hex")
    entries = index_format.ENTRY.pack(100, 64, 1700000000000) + index_format.ENTRY.pack(101, 160, 1700000000005)
    assert index_format.header(SALT, 100) + entries == golden("index.hex")


@pytest.mark.parametrize(
    ("title", "layout"),
    [
        ("Segment header", fmt.PREFIX.format[1:] + fmt.SEGMENT_BODY.format[1:]),
        ("Batch:", fmt.BATCH.format[1:]),
        ("Sparse index", index_format.HEADER.format[1:]),
    ],
)
def test_the_page_shows_the_code(title: str, layout: str) -> None:
    section = DOCS.read_text().split(f"# {title}")[1].split("\n#")[0]
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", section, re.M)
    kinds = {"u8": "B", "u32": "I", "u64": "Q", "i16": "h", "i32": "i", "i64": "q"}
    drawn = "".join(kinds.get(kind, kind) for _, _, kind in rows)
    assert drawn == layout
    position = 0
    for offset, size, kind in rows:
        assert (int(offset), int(size)) == (position, struct.calcsize("<" + kinds.get(kind, kind)))
        position += int(size)


def test_the_worked_example_is_golden() -> None:
    example = re.findall(r"^[0-9a-f]{4}  ((?:[0-9a-f]{2} ){16})", DOCS.read_text(), re.M)
    assert bytes.fromhex("".join(example)) == golden("segment.hex")[:160]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), max_size=30), st.integers(0, 60), st.integers(0, 60))
def test_h06_a_sparse_index_never_leads_beyond(steps: list, offset: int, timestamp: int) -> None:
    entries, at, largest = [], 0, 0
    for time, step in steps:
        largest = max(largest, time)
        entries.append((at, 64 + at * 8, largest))
        at += step
    data = index_format.header(SALT, 0) + b"".join(index_format.ENTRY.pack(*entry) for entry in entries)
    index = index_format.SparseIndex(data, SALT, 0)
    position = index.by_offset(offset)
    assert position == max((p for o, p, _ in entries if o <= offset), default=0)
    before = [time for (time, _), (_, p, _) in zip(steps, entries) if p < index.by_timestamp(timestamp)]
    assert all(time < timestamp for time in before), "a record at or after the time would be passed over"
    assert len(index_format.SparseIndex(data, SALT + 1, 0)) == 0, "another segment's index does not count"
