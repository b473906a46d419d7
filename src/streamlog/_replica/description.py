"""`cluster.json`: what a cluster is and where its brokers are; and how a cluster comes into being.

With one broker it is the truth.  With several the metadata log says the same, so that a home that was lost is made anew from the brokers.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

from streamlog._format import names
from streamlog._os import files, process
from streamlog._os.files import FileSystem
from streamlog._replica.brokers import make as make_broker
from streamlog._replica.brokers import read_properties
from streamlog.config import ClusterConfig
from streamlog.errors import InvalidConfigError, NotAClusterError, UnsupportedFormatError
from streamlog.types import NamedTuple

FORMAT_VERSION = 1


class Description(NamedTuple):
    """What `cluster.json` says.  `config` are the options given at creation, `brokers` directories by id."""

    cluster_id: str
    config: dict[str, Any]
    brokers: dict[int, str]


def relative(home: str, path: str) -> str:
    """A broker's path as it is written down: below the home without the home."""
    return path.removeprefix(f"{home}/")


def absolute(home: str, path: str) -> str:
    """Where a broker is that was written down so."""
    return path if path.startswith("/") else f"{home}/{path}"


def paths(home: str, brokers: int | list[str]) -> dict[int, str]:
    """Where the brokers of a new cluster are, by id."""
    if isinstance(brokers, int):
        return {number: f"{home}/{names.broker(number)}" for number in range(brokers)}
    return dict(enumerate(brokers))


def read(fs: FileSystem, home: str) -> Description:
    """Raises NotAClusterError, UnsupportedFormatError, FileNotFoundError."""
    import json

    path = f"{home}/{names.CLUSTER}"
    try:
        found = json.loads(files.read_file(fs, path))
        version, cluster_id, config, brokers = found["format_version"], found["cluster_id"], found["config"], found["brokers"]
        named = brokers.items() if isinstance(brokers, dict) else enumerate(brokers)
        where = {int(number): absolute(home, broker) for number, broker in named}
    except (ValueError, KeyError, TypeError) as error:
        remedy = "restore it; with several brokers you may move it away, and it is made anew from theirs"
        raise NotAClusterError(f"{path} is not a cluster's description: {error}; {remedy}") from None
    if version > FORMAT_VERSION:
        raise UnsupportedFormatError(f"{path}: format version {version}; this program knows up to {FORMAT_VERSION}", path)
    return Description(str(cluster_id), config, where)


def write(fs: FileSystem, home: str, description: Description) -> None:
    """Commit step: it takes its name."""
    import json

    path = f"{home}/{names.CLUSTER}"
    brokers = {str(number): relative(home, broker) for number, broker in sorted(description.brokers.items())}
    found = {"format_version": FORMAT_VERSION, "cluster_id": description.cluster_id, "brokers": brokers, "config": description.config}
    files.write_whole(fs, path, json.dumps(found, indent=2).encode(), temporary=f"{path}.{process.token()}{names.TEMPORARY}")


def check_wanted(description: Description, home: str, config: Mapping[str, Any], brokers: Mapping[int, str] | None) -> None:
    """Is this the cluster that was asked for?  Raises InvalidConfigError."""
    stored = ClusterConfig(description.config)
    for name, value in config.items():
        if value != getattr(stored, name):
            raise InvalidConfigError(f"{name}={value}: this cluster was created with {getattr(stored, name)}")
    if brokers is not None and set(brokers.values()) != set(description.brokers.values()):
        there = ", ".join(relative(home, broker) for broker in description.brokers.values())
        for broker in brokers.values():
            if files.exists(f"{broker}/{names.META_PROPERTIES}") and broker not in description.brokers.values():
                raise InvalidConfigError(
                    f"brokers: {home} is cluster {description.cluster_id}, with {there}; {broker} is a broker of another one. If that one's home was "
                    "lost, open it at a place that is empty"
                )
        raise InvalidConfigError(f"brokers: this cluster has {len(description.brokers)} ({there}); add_broker and retire_broker change that")


def make(fs: FileSystem, home: str, config: dict[str, Any], brokers: dict[int, str] | None) -> None:
    """Bring a cluster into being, or its description back; nobody else is here.  Commit step: `cluster.json` takes its name."""
    found = _by_their_ids(fs, brokers) if brokers else _found(fs, home)
    _sweep(fs, found)
    cluster_id = _owner(fs, home, found)
    for number, broker in found.items():
        if not files.exists(f"{broker}/{names.META_PROPERTIES}"):
            make_broker(fs, broker, number, cluster_id, home)
    fs.sync_dir(home)
    write(fs, home, Description(cluster_id, config, found))


def _by_their_ids(fs: FileSystem, brokers: dict[int, str]) -> dict[int, str]:
    """Brokers of a cluster whose home was lost keep their ids, in whatever order they are given."""
    own = {}
    for path in brokers.values():
        if files.exists(f"{path}/{names.META_PROPERTIES}"):
            own[int(read_properties(fs, path).get("broker.id", "-1"))] = path
    others = [path for path in brokers.values() if path not in own.values()]
    free = (number for number in range(len(brokers) + len(own)) if number not in own)
    return dict(sorted({**own, **dict(zip(free, others))}.items()))


def _found(fs: FileSystem, home: str) -> dict[int, str]:
    """The brokers below the home: of a cluster whose making was cut short, or that lost its description."""
    found = {}
    for name in fs.listdir(home):
        number = name.removeprefix("broker-")
        if number != name and number.isdigit() and files.is_directory(f"{home}/{name}"):
            found[int(number)] = f"{home}/{name}"
    return dict(sorted(found.items())) or paths(home, 1)


def _sweep(fs: FileSystem, brokers: Mapping[int, str]) -> None:
    """Remove what makings that were cut short left behind."""
    for broker in brokers.values():
        parent, _, name = broker.rpartition("/")
        if not files.is_directory(parent):
            continue
        for left_over in fs.listdir(parent):
            if left_over.startswith(f"{name}.") and left_over.endswith(names.TEMPORARY):
                files.remove_tree(f"{parent}/{left_over}")


def _owner(fs: FileSystem, home: str, brokers: Mapping[int, str]) -> str:
    """The id of the cluster that the brokers belong to already, or a new one.  Raises NotAClusterError."""
    owners = {
        number: read_properties(fs, broker)["cluster.id"]
        for number, broker in brokers.items()
        if files.exists(f"{broker}/{names.META_PROPERTIES}")
    }
    if len(set(owners.values())) > 1:
        listed = ", ".join(f"{brokers[number]}: {owner}" for number, owner in owners.items())
        raise NotAClusterError(f"these brokers are of several clusters: {listed}")
    if owners and not all(_is_new(fs, brokers[number]) for number in owners):
        if len(brokers) == 1:
            raise NotAClusterError(f"{home} has lost its {names.CLUSTER}: restore it, or copy the topics elsewhere")
        if len(owners) <= len(brokers) // 2:
            raise NotAClusterError(f"{home} has lost its {names.CLUSTER}, and of brokers {sorted(brokers)} only {sorted(owners)} are there")
    return next(iter(owners.values()), process.random_bytes(16).hex())


def _is_new(fs: FileSystem, broker: str) -> bool:
    """Whether a broker has no topic: its making was cut short before `cluster.json`."""
    return not any(parsed and parsed[0] != names.METADATA_TOPIC for parsed in map(names.parse_partition, fs.listdir(broker)))
