"""Doubles for tests, and the seam to open a cluster on one.

    from streamlog import testing

    disks = testing.FaultyFileSystem()
    with testing.open("events", fs=disks) as log:
        disks.fail_when("sync", "*.log")        # the next sync of a segment fails

`FaultyFileSystem` fails, or kills its process, at a step by name.  `MemoryFileSystem` loses power.  The package
`streamlog.testing.chaos` runs many processes on a cluster, disturbs them at random and checks what they saw.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike
    from typing import Any

    from streamlog._os.files import FileSystem
    from streamlog.cluster import Cluster
    from streamlog.testing.faults import FaultyFileSystem, Steps
    from streamlog.testing.memory_fs import MemoryFileSystem

_LATER = {"FaultyFileSystem": "faults", "MemoryFileSystem": "memory_fs", "Steps": "faults"}

__all__ = ["FaultyFileSystem", "MemoryFileSystem", "Steps", "open"]


def open(
    location: str | PathLike[str],
    *,
    fs: FileSystem,
    create: bool = True,
    brokers: int | Sequence[str | PathLike[str]] | None = None,
    unsafe_filesystem: bool = False,
    **options: Any,
) -> Cluster:
    """Open a cluster as `streamlog.open` does, on the file system `fs`.

    A forked child keeps `fs`.  A cluster that is pickled is opened on the real file system again.

    Args:   fs: a `FaultyFileSystem`, a `MemoryFileSystem`, or anything with the methods of `FileSystem`.
            location, create, brokers, unsafe_filesystem, options: as in `streamlog.open`.
    Raises: what `streamlog.open` raises, and what `fs` raises.
    """
    from streamlog.cluster import Cluster, _Place
    from streamlog.config import ClusterConfig

    ClusterConfig(options)
    place = _Place(location, unsafe_filesystem=unsafe_filesystem, brokers=brokers)
    return Cluster(place, create=create, options=options, fs=fs)


def __getattr__(name: str) -> object:
    """Import a double when it is first asked for."""
    if name not in _LATER:
        raise AttributeError(f"module 'streamlog.testing' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"streamlog.testing.{_LATER[name]}"), name)
