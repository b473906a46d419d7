"""What a file of a cluster holds, line by line, also where it is damaged: `python -m streamlog.dump FILE`.

Reads one file and nothing else, takes no lock and changes nothing, so it can look at a cluster that is in use.  Where bytes do not
hold it says at which position, what was expected and what was found, goes on at the next batch whose checksum holds, and says what
it cannot see.  `streamlog.check` is the one that compares the files of a cluster with each other.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

from streamlog._format import batch as fmt
from streamlog._format import checkpoint, compression, index, names, transaction_index
from streamlog._format.batch import SEGMENT_HEADER_SIZE, Batch, SegmentHeader, UnknownVersionError
from streamlog._format.control import is_commit
from streamlog._format.producer_snapshot import SNAPSHOT_MAGIC, ProducerSnapshot
from streamlog._log import fold, state
from streamlog._os.files import LOCAL, PAGE
from streamlog._replica import description, home
from streamlog._replica.metadata import TOPIC_ID as METADATA_TOPIC_ID
from streamlog.errors import UnsupportedCompressionError
from streamlog.record_batch import to_records

_FLAGS = {
    "log-append-time": fmt.LOG_APPEND_TIME, "transactional": fmt.TRANSACTIONAL, "control": fmt.CONTROL,
    "offsets": fmt.HAS_OFFSETS, "timestamps": fmt.HAS_TIMESTAMPS,
    "keys": fmt.HAS_KEYS, "values": fmt.HAS_VALUES, "headers": fmt.HAS_HEADERS,
}  # fmt: skip


def dump(path: str, write: Callable[[str], object], *, records: bool = False) -> bool:
    """Describe a file, calling `write` with one line at a time.

    Args:    records: show each record of a segment too; those of the metadata log are always shown.
    Returns: whether everything in it holds and is of a version that this program knows.
    Raises:  OSError where the file cannot be read.
    """
    with open(path, "rb") as file:
        file_dump = _FileDump(path, file.read(), write, records)
    file_dump.run()
    return file_dump.sound


class _FileDump:
    """One file's bytes, and where its lines go."""

    def __init__(self, path: str, data: bytes, write: Callable[[str], object], records: bool) -> None:
        self.path, self.data, self.line, self.records = path, data, write, records
        self.name = path.rpartition("/")[2]
        self.sound = True

    def run(self) -> None:
        """Say what the file is by its magic, or by its name where the magic is damaged or there is none."""
        suffix = "." + self.name.rpartition(".")[2]
        describe = _BY_MAGIC.get(self.data[:4]) or _BY_NAME.get(self.name) or _BY_NAME.get(suffix)
        if describe is None:
            self.damage(0, f"not a file of a cluster: its name and its first bytes {self.data[:4]!r} say nothing")
        else:
            describe(self)

    def damage(self, position: int, what: str) -> None:
        """Say what does not hold, and where."""
        self.sound = False
        self.line(f"DAMAGED at position {position}: {what}")

    def has_head(self, magic: bytes, size: int) -> bool:
        """Whether a binary file begins as it must and is of a version that can be shown; says so where not."""
        if len(self.data) < size:
            self.damage(0, f"{len(self.data)} bytes, the header alone has {size}")
        elif self.data[:4] != magic:
            self.damage(0, f"magic {self.data[:4]!r}, {magic!r} is wanted; cannot see what follows")
        elif self.data[4] != fmt.FORMAT_VERSION:
            self.newer(0, self.data[4])
        else:
            return True
        return False

    def newer(self, position: int, version: int) -> None:
        """Say that a version is unknown: the file may be fine, the program is old."""
        self.sound = False
        known = fmt.FORMAT_VERSION
        self.line(f"UNKNOWN VERSION at position {position}: format version {version}; this program knows up to {known} and cannot see what it holds")


# ---- segments --------------------------------------------------------------------------------------------------------


def _segment(file: _FileDump) -> None:
    data = file.data
    try:
        SegmentHeader(data)
    except UnknownVersionError as error:
        file.newer(0, error.version)
        return
    except ValueError as error:
        file.damage(0, str(error))
        if len(data) < SEGMENT_HEADER_SIZE:
            return
        file.line("going on with the header's fields as they stand; if its salt is damaged no checksum below will hold")
    salt, topic_id, base_offset, partition, epoch, epoch_start = fmt.SEGMENT_BODY.unpack_from(data, fmt.PREFIX.size)
    kind = "segment of the metadata log" if topic_id == METADATA_TOPIC_ID else "segment"
    file.line(
        f"{kind}: version {data[4]} topic {topic_id.hex()} partition {partition} base offset {base_offset} "
        f"leader epoch {epoch} from {epoch_start} salt {salt:#018x} {len(data)} bytes"
    )
    for named in names.base_offsets([file.name]):
        if named != base_offset:
            file.damage(40, f"base offset {base_offset}, the file's name says {named}")
            base_offset = named
    _batches(file, salt, base_offset, epoch, topic_id == METADATA_TOPIC_ID)


def _batches(file: _FileDump, salt: int, offset: int, epoch: int, metadata: bool) -> None:
    """The batches from the header on; beyond damage those whose checksum holds."""
    view, end, position = memoryview(file.data), len(file.data), SEGMENT_HEADER_SIZE
    batches = records = 0
    while position < end:
        try:
            batch = fmt.parse(view, salt, position, end)
        except (ValueError, UnknownVersionError) as error:
            found = _next_sound(file.data, salt, position + 8, offset)
            if not _say_gap(file, position, offset, error, found):
                break
            assert found is not None
            position, batch = found
            offset, epoch = batch.base_offset, batch.leader_epoch
        if (batch.base_offset, batch.leader_epoch) != (offset, epoch):
            what = f"base offset {batch.base_offset} in epoch {batch.leader_epoch}, {offset} in epoch {epoch} is wanted"
            file.damage(position, f"{what}: batches are missing, or this one is stale")
        _batch(file, position, batch, metadata)
        batches, records = batches + 1, records + batch.count
        offset, epoch, position = batch.next_offset, batch.leader_epoch, position + batch.length
    file.line(f"{batches} batches, {records} records, next offset {offset}")


def _next_sound(data: bytes, salt: int, position: int, offset: int) -> tuple[int, Batch] | None:
    """The first batch from `position` on that is of a later offset and whose checksum holds."""
    view = memoryview(data)
    while (position := data.find(fmt.BATCH_MAGIC, position)) >= 0:
        if not position & 7:
            try:
                batch = fmt.parse(view, salt, position, len(data))
            except (ValueError, UnknownVersionError):
                pass
            else:
                if batch.base_offset > offset:
                    return position, batch
        position += 1
    return None


def _say_gap(file: _FileDump, position: int, offset: int, error: Exception, found: tuple[int, Batch] | None) -> bool:
    """Say why there is no batch at `position`; whether a sound one was found beyond."""
    left = len(file.data) - position
    if found is None and file.data.count(0, position) == left:
        file.line(f"position {position}: {left} bytes reserved for what comes; cannot see whether more was here: the high watermark is in run/")
        return False
    if isinstance(error, UnknownVersionError):
        file.newer(position, error.version)
    else:
        file.damage(position, str(error))
    if found is None:
        file.line(
            f"no sound batch in the {left} bytes that follow: cannot see whether they are a torn append, which nobody was told of and "
            "recovery drops, or records; `streamlog verify` compares with the high watermark"
        )
        return False
    file.line(f"cannot see offsets {offset} to {found[1].base_offset - 1}; going on at position {found[0]}")
    return True


def _batch(file: _FileDump, position: int, batch: Batch, metadata: bool) -> None:
    flags = " ".join(name for name, bit in _FLAGS.items() if batch.attributes & bit)
    codec = compression.name_of(batch.attributes & fmt.CODEC)
    producer = "none" if batch.producer_id < 0 else f"{batch.producer_id} epoch {batch.producer_epoch} sequence {batch.base_sequence}"
    file.line(
        f"batch at position {position}: offsets {batch.base_offset} to {batch.next_offset - 1} count {batch.count} length {batch.length} "
        f"timestamp {batch.base_timestamp} max {batch.max_timestamp} leader epoch {batch.leader_epoch} producer {producer} "
        f"columns [{flags}] codec {codec} uncompressed {batch.uncompressed} checksum {batch.checksum:#018x}"
    )
    if batch.attributes & fmt.CONTROL:
        try:
            file.line(f"    {batch.base_offset}: marker: {'commit' if is_commit(batch) else 'abort'}")
        except ValueError as error:
            file.damage(position, str(error))
    elif file.records or metadata:
        try:
            _records(file, batch, metadata)
        except ValueError as error:  # the checksum holds: it was written like this
            file.damage(position, f"the columns cannot be cut apart: {error}")
        except UnsupportedCompressionError as error:
            file.line(f"    cannot see its records: {error}")


def _records(file: _FileDump, batch: Batch, metadata: bool) -> None:
    columns = batch.columns()
    for column in (columns.keys, columns.values, columns.headers):
        if column is not None:
            column.check()
    for record in to_records(batch, "", 0):
        if metadata:
            file.line(f"    {record.offset}: {_metadata_record(record.value)}")
        else:
            headers = "".join(f" {name}={value!r}" for name, value in record.headers)
            file.line(f"    {record.offset}: timestamp {record.timestamp_ms} key {record.key!r} value {record.value!r}{headers}")


def _metadata_record(value: bytes) -> str:
    import msgpack

    return " ".join(field.hex() if isinstance(field, bytes) else str(field) for field in msgpack.unpackb(value))


# ---- other files -----------------------------------------------------------------------------------------------------


def _index(file: _FileDump) -> None:
    if not file.has_head(index.INDEX_MAGIC, index.HEADER.size):
        return
    _, version, salt, base_offset = index.HEADER.unpack_from(file.data)
    file.line(f"index: version {version} base offset {base_offset}; counts only for the segment of salt {salt:#018x}")
    entries = index.SparseIndex(file.data, salt, base_offset)
    last = (base_offset - 1, 0, -1)
    for number in range(len(entries)):
        entry = entries.entry(number)
        if entry[0] <= last[0] or entry[1] <= last[1] or entry[2] < last[2] or entry[1] & 7:
            file.damage(index.HEADER.size + number * index.ENTRY.size, f"entry {entry} does not follow {last}")
        file.line(f"    offset {entry[0]} position {entry[1]} max timestamp {entry[2]}")
        last = entry
    if odd := (len(file.data) - index.HEADER.size) % index.ENTRY.size:
        file.damage(len(file.data) - odd, f"{odd} bytes, an entry has {index.ENTRY.size}")
    file.line(f"{len(entries)} entries; cannot see whether batches stand where they point")


def _producer_snapshot(file: _FileDump) -> None:
    try:
        found = ProducerSnapshot(file.data)
    except ValueError as error:
        file.damage(0, f"{error}; cannot see its rows (the file is derived)")
        return
    file.line(f"producer snapshot: offset {found.offset}; counts only for the segment {found.base_offset} of salt {found.salt:#018x}")
    try:
        for producer_id, first_open, offset, timestamp, following, epoch, batches in found:
            transaction = "none" if first_open < 0 else f"open from {first_open}"
            file.line(
                f"    producer {producer_id} epoch {epoch} next sequence {following} last offset {offset} timestamp {timestamp} "
                f"transaction {transaction}"
            )
            for at, written, first, last in batches:
                file.line(f"        sequences {first} to {last} offset {at} timestamp {written}")
    except ValueError as error:
        file.damage(len(file.data), str(error))
    for named in names.snapshot_offsets([file.name]):
        if named != found.offset:
            file.damage(32, f"offset {found.offset}, the file's name says {named}")


def _transaction_index(file: _FileDump) -> None:
    if not file.has_head(transaction_index.TRANSACTION_INDEX_MAGIC, transaction_index.HEADER.size):
        return
    _, version, salt, base_offset = transaction_index.HEADER.unpack_from(file.data)
    file.line(f"transaction index: version {version} base offset {base_offset}; counts only for the segment of salt {salt:#018x}")
    try:
        entries = transaction_index.decode(file.data, salt, base_offset)
    except ValueError as error:
        file.damage(transaction_index.HEADER.size, f"{error} (the file is derived and is made anew)")
        return
    for producer_id, first, last in entries:
        file.line(f"    producer {producer_id} aborted from offset {first} to its marker at {last}")
    file.line(f"{len(entries)} aborted transactions")


def _fold_snapshot(file: _FileDump) -> None:
    import msgpack

    if len(file.data) < fold.SNAPSHOT.size:
        file.damage(0, f"{len(file.data)} bytes, the header alone has {fold.SNAPSHOT.size} (the file is derived)")
        return
    magic, _, expected = fold.SNAPSHOT.unpack_from(file.data)
    body = file.data[fold.SNAPSHOT.size :]
    if magic != fold.SNAPSHOT_MAGIC or fmt.checksum(body) != expected:
        file.damage(0, "its magic or checksum does not hold (the file is derived)")
        return
    offset, epoch, state = msgpack.unpackb(body, strict_map_key=False)
    file.line(f"snapshot of a fold: up to offset {offset}, leader epoch {epoch}")
    for row in state:
        file.line(f"    {row}")


def _checkpoint(file: _FileDump) -> None:
    fields = ("epoch", "start offset") if file.name == names.LEADER_EPOCHS else ("topic", "partition", "offset")
    try:
        rows = checkpoint.decode(file.data, len(fields))
    except ValueError as error:
        file.damage(0, f"{error}; cannot see its entries (the file is derived and is made anew)")
        rows = []
    for row in rows:
        file.line("    " + " ".join(f"{field} {word}" for field, word in zip(fields, row)))
    file.line(f"checkpoint: {len(rows)} entries")


def _state_slots(file: _FileDump) -> None:
    if not any(file.data):
        file.line("state slots: not begun")
        return
    if not file.has_head(state._MAGIC, PAGE):
        return
    _, version, topic_id, *identity = state._HEADER.unpack_from(file.data)
    file.line(f"state slots: version {version} topic {topic_id.hex()}; {_counts(file.path, identity)}")
    for number, start in enumerate(range(PAGE, len(file.data) - state.SLOT_BYTES + 1, state.SLOT_BYTES)):
        words = struct.unpack_from(f"<{state.SLOT_WORDS}Q", file.data, start)
        if any(words):
            file.line(f"    partition {number}: {_slot(words)}")
    file.line("cannot see whether the segments agree with this: `streamlog verify` can")


def _slot(words: tuple[int, ...]) -> str:
    shown: dict[str, object] = dict(zip((name.lower() for name in state.NAMES), words))
    shown["bell"], shown["salt"] = f"{words[state.BELL] & 0xFFFFFFFF}/{words[state.BELL] >> 32}", f"{words[state.SALT]:#018x}"
    boots = {LOCAL.boot_id(): "this", state.DEAD: "deleted", 0: "never"}
    shown["boot"] = boots.get(words[state.BOOT], "another: the slot does not count")
    return " ".join(f"{name}={value}" for name, value in shown.items())


def _counts(path: str, identity: list[int]) -> str:
    found = LOCAL.stat(path)
    if identity == [found.st_dev, found.st_ino]:
        return "counts"
    return f"does not count: written for device {identity[0]} inode {identity[1]}, this is {found.st_dev} {found.st_ino} (a copy)"


def _cluster_state(file: _FileDump) -> None:
    if not file.has_head(home._STATE_MAGIC, PAGE):
        return
    _, version, boot, *identity = home._STATE.unpack_from(file.data)
    words = struct.unpack_from(f"<{len(file.data) // 8}Q", file.data)
    counts = _counts(file.path, identity) if boot == LOCAL.boot_id() else "does not count: of another boot"
    pids = " ".join(str(pid) for pid in words[home._PROCESSES :] if pid)
    file.line(f"cluster state: version {version}; {counts}")
    file.line(f"    clock offset {words[home._CLOCK]} bell {words[home._BELL] & 0xFFFFFFFF} processes {pids or 'none'}")
    file.line("cannot see which of the processes are alive: their locks say so")


def _cluster_json(file: _FileDump) -> None:
    import json

    try:
        found: dict[str, Any] = json.loads(file.data)
        version, fields = found["format_version"], list(found.items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        file.damage(getattr(error, "pos", 0), f"not a cluster's description: {error!r}")
        return
    for name, value in fields:
        file.line(f"    {name} {json.dumps(value)}")
    if version != description.FORMAT_VERSION:
        file.newer(0, version)


def _properties(file: _FileDump) -> None:
    position = 0
    found = set()
    for line in file.data.split(b"\n"):
        name, separator, value = line.decode("utf-8", "backslashreplace").partition("=")
        if separator:
            found.add(name)
            file.line(f"    {name} {value}")
        elif name:
            file.damage(position, f"{name!r}, name=value is wanted")
        position += len(line) + 1
    if missing := {"version", "cluster.id", "broker.id"} - found:
        file.damage(0, f"{', '.join(sorted(missing))} is missing")


def _lock(file: _FileDump) -> None:
    file.line("lock file: holds nothing; processes lock its bytes")


_BY_MAGIC: dict[bytes, Callable[[_FileDump], None]] = {
    fmt.SEGMENT_MAGIC: _segment,
    index.INDEX_MAGIC: _index,
    transaction_index.TRANSACTION_INDEX_MAGIC: _transaction_index,
    SNAPSHOT_MAGIC: _producer_snapshot,
    state._MAGIC: _state_slots,
    home._STATE_MAGIC: _cluster_state,
}
_BY_NAME: dict[str, Callable[[_FileDump], None]] = {
    names.LOG: _segment,
    names.INDEX: _index,
    names.TRANSACTION_INDEX: _transaction_index,
    names.SNAPSHOT: _producer_snapshot,
    names.CLUSTER_STATE: _cluster_state,
    ".state": _state_slots,
    names.LEADER_EPOCHS: _checkpoint,
    names.RECOVERY_POINTS: _checkpoint,
    names.OFFSETS_SNAPSHOT: _fold_snapshot,
    names.TRANSACTIONS_SNAPSHOT: _fold_snapshot,
    names.CLUSTER: _cluster_json,
    names.META_PROPERTIES: _properties,
    names.LOCK: _lock,
    ".lock": _lock,
}

if __name__ == "__main__":
    import sys

    from streamlog.cli import main  # here: a user of `dump` needs no command line

    sys.exit(main(["dump", *sys.argv[1:]]))
