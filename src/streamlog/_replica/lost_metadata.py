"""Compares metadata that lost records to damage with the disk, and writes the records that are missing.

Topics and partitions that have directories come back.  A topic that has none is deleted.  The number of partitions never falls.
The directories and the headers of segments tell a topic's name, its id and how many partitions it has.  They do not tell its configuration.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from streamlog._replica.home import Home

from streamlog._format import names
from streamlog._log import segment
from streamlog._replica.metadata import TopicMetadata
from streamlog._replica.topics import internal_config
from streamlog.errors import StreamlogError

_BROKER = 0  # the only one: with several brokers the metadata have other copies
_IDS_A_MILLISECOND = 1 << 20  # more producer ids than are ever given in one

Directories = dict[int, bytes | None]
"""Of a topic: the topic id in each partition's directory; None where no header can be read."""


def compare(home: Home, timeout: float) -> list[str]:
    """Write what the disk has, or has not, and the metadata do not know; returns what was changed, a sentence each.

    Producer ids go on where nobody can have had one: the record of those that were given away may be lost, too.
    """
    changes: list[str] = []

    def decide() -> list[list[Any]]:
        metadata, found = home.metadata, _directories(home)
        records: list[list[Any]] = [["ProducerIdsRecord", max(metadata.next_producer_id, home.clock.now_ms() * _IDS_A_MILLISECOND)]]
        for name in sorted({*found, *metadata.topics} - {names.METADATA_TOPIC}):
            records += _of_topic(home, name, metadata.topics.get(name), found.get(name, {}), changes)
        return records

    home.metadata.write(timeout, decide)
    return changes


def _directories(home: Home) -> dict[str, Directories]:
    path, found = home.brokers[_BROKER].path, dict[str, Directories]()
    for entry in home.fs.listdir(path):
        parsed = names.parse_partition(entry)
        if parsed is not None:
            found.setdefault(parsed[0], {})[parsed[1]] = _topic_id(home, f"{path}/{entry}", parsed[1])
    return found


def _topic_id(home: Home, directory: str, number: int) -> bytes | None:
    """The id in the header of any segment in a partition's directory; None where no header can be read."""
    for base in names.base_offsets(home.fs.listdir(directory)):
        try:
            header = segment.read_header(home.fs, f"{directory}/{names.log(base)}")
        except (StreamlogError, OSError):
            continue
        if header.partition == number:
            return bytes(header.topic_id)
    return None


def _of_topic(home: Home, name: str, known: TopicMetadata | None, found: Directories, changes: list[str]) -> list[list[Any]]:
    """The records that a topic lacks."""
    metadata, ids = home.metadata, set(found.values())
    if known is not None and (known.topic_id in ids or None in ids):
        partitions = _partitions(found, known.topic_id)
        if partitions <= known.partitions:
            return []
        changes.append(f"topic {name!r} has {partitions} partitions again, as it has directories")
        return [["PartitionsRecord", known.topic_id, partitions]]
    records: list[list[Any]] = []
    if known is not None:
        changes.append(f"topic {name!r} (id {known.topic_id.hex()}) is deleted: it has no directory")
        records.append(["RemoveTopicRecord", known.topic_id])
    unknown = sorted(topic_id for topic_id in ids if topic_id is not None and topic_id not in {*metadata.by_id, *metadata.removed})
    if unknown:
        topic_id = max(unknown, key=lambda each: _partitions(found, each))
        partitions = _partitions(found, topic_id)
        taken = f"topic {name!r} (partitions: {partitions}) was taken back from its directories"
        changes.append(f"{taken}; its configuration is lost, and is the default now")
        records.append(["TopicRecord", name, topic_id, partitions, internal_config() if name in names.INTERNAL_TOPICS else {}])
    return records


def _partitions(found: Directories, topic_id: bytes) -> int:
    """How many partitions a topic of this id has, by its directories."""
    return max((number + 1 for number, each in found.items() if each == topic_id), default=0)
