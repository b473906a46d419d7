"""Metadata that lost records to damage: topics whose records went are taken back from their directories.

A topic's directories and the headers of its segments tell its name, its id and how many partitions it has.  They do not tell its configuration.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from streamlog._replica.home import Home

from streamlog._format import names
from streamlog._log import segment
from streamlog._replica.metadata import TOPIC_ID as METADATA_TOPIC_ID
from streamlog._replica.topics import internal_config
from streamlog.errors import StreamlogError

_BROKER = 0  # the only one: with several brokers the metadata have other copies
_IDS_A_MILLISECOND = 1 << 20  # more producer ids than are ever given in one


def take_back(home: Home, timeout: float) -> list[str]:
    """Write records of topics that the disk has and the metadata have not; returns their names.

    Producer ids go on where nobody can have had one: the record of those that were given away may be lost, too.
    """
    found: dict[str, tuple[bytes, int]] = {}

    def decide() -> list[list[Any]]:
        metadata = home.metadata
        found.update(_unknown_topics(home))
        records: list[list[Any]] = [["ProducerIdsRecord", max(metadata.next_producer_id, home.clock.now_ms() * _IDS_A_MILLISECOND)]]
        for name, (topic_id, partitions) in found.items():
            config = internal_config() if name in names.INTERNAL_TOPICS else {}
            records.append(["TopicRecord", name, topic_id, partitions, config])
        return records

    home.metadata.write(timeout, decide)
    return sorted(found)


def _unknown_topics(home: Home) -> dict[str, tuple[bytes, int]]:
    """Names of unknown topics that have directories, their ids, and how many partitions they had."""
    metadata, path = home.metadata, home.brokers[_BROKER].path
    found: dict[str, tuple[bytes, int]] = {}
    for entry in sorted(home.fs.listdir(path)):
        name, number = names.parse_partition(entry) or ("", 0)
        topic_id = _topic_id(home, f"{path}/{entry}", number) if name and name not in metadata.topics else None
        if topic_id is None or topic_id in metadata.by_id or topic_id in metadata.removed or topic_id == METADATA_TOPIC_ID:
            continue
        known, partitions = found.get(name, (topic_id, 0))
        if known == topic_id:
            found[name] = topic_id, max(partitions, number + 1)
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
