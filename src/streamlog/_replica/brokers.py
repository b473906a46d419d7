"""A broker: a directory, best on a disk of its own.  How it is made, recognised, and what it remembers of its logs."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

from streamlog._format import checkpoint, names
from streamlog._log import partition as partition_log
from streamlog._os import files, process
from streamlog._os.clock import monotonic, sleep
from streamlog._os.files import FileSystem
from streamlog._os.locks import LockFile
from streamlog._replica.metadata import TOPIC_ID
from streamlog.errors import NotAClusterError, StorageError, StreamlogTimeoutError

_PATIENCE = 2.0  # seconds that another process's opening is waited for
_PROBE = "probe"
_LEFT_OVERS = {"lost+found", names.LOCK, names.partition(names.METADATA_TOPIC, 0)}  # of a file system, or of a making that was cut short


class Broker:
    """A broker's directory as this process has it open."""

    def __init__(self, fs: FileSystem, number: int, path: str) -> None:
        self.fs, self.number, self.path = fs, number, path
        self.lock_file: LockFile | None = None
        self.recovery_points: dict[tuple[str, int], int] = {}
        """What is on the disk for certain, by topic id and partition: spares a scan after a reboot."""
        self.high_watermarks: dict[tuple[str, int], int] = {}

    def open(self, cluster_id: str, home: str = "") -> None:
        """Hold the directory's lock, shared, and read what it remembers.

        `home` names the live state that its users share: who comes first writes it into the lock's file, and another home is refused, since its
        processes would not see ours.  Empty: the directory is below its home.
        Raises: NotAClusterError, StreamlogTimeoutError, and what disks do.
        """
        if files.exists(self.path) and not files.is_directory(self.path):
            raise NotAClusterError(f"{self.path} is not a directory; links are not followed")
        self.check_owner(cluster_id)
        self.close()
        lock_file = LockFile(self.fs, f"{self.path}/{names.LOCK}")
        try:
            self._hold(lock_file, home.encode())
        except BaseException:
            lock_file.close()
            raise
        self.lock_file = lock_file
        self.recovery_points = self.load(names.RECOVERY_POINTS)
        self.high_watermarks = self.load(names.HIGH_WATERMARKS)

    def _hold(self, lock_file: LockFile, home: bytes) -> None:
        until = monotonic() + _PATIENCE
        while home:
            if lock_file.try_exclusive(0):  # nobody else has it open
                self.fs.truncate(lock_file.fd, 0, lock_file.path)
                self.fs.pwrite(lock_file.fd, home, 0, lock_file.path)
                break
            if lock_file.try_shared(0):
                found = self.fs.pread(lock_file.fd, 4096, 0, lock_file.path)
                if found.partition(b" ")[0] != home.partition(b" ")[0]:  # its path may be another one: of another mount of the same directory
                    where = found.partition(b" ")[2].decode(errors="replace").strip()
                    raise NotAClusterError(f"{self.path} is in use by processes that have another home: {where}")
                return
            if monotonic() > until:
                break
            sleep(0.002)
        if not lock_file.try_shared(0):
            raise StreamlogTimeoutError(f"{self.path} is being remade by another process")

    def check_owner(self, cluster_id: str) -> None:
        """Is this the directory of that broker of that cluster?  Raises NotAClusterError."""
        found = read_properties(self.fs, self.path)
        if found["cluster.id"] != cluster_id:
            raise NotAClusterError(f"{self.path} belongs to cluster {found['cluster.id']}, this is cluster {cluster_id}")
        if found.get("broker.id", str(self.number)) != str(self.number):
            raise NotAClusterError(f"{self.path} is broker {found['broker.id']} of its cluster, not broker {self.number}")

    def close(self) -> None:
        """Let the directory go."""
        lock_file, self.lock_file = self.lock_file, None
        if lock_file is not None:
            lock_file.close()

    def is_replaced(self) -> bool:
        """Whether the directory is gone, or another one by now (H8)."""
        try:
            return self.lock_file is not None and (self.lock_file.replaced() or not files.exists(f"{self.path}/{names.META_PROPERTIES}"))
        except OSError:
            return True

    def probe(self) -> None:
        """Write, sync and read a small file: whether the disk works.  Raises what it does."""
        path = f"{self.path}/{_PROBE}.{process.token()}{names.TEMPORARY}"
        data = process.random_bytes(4096)
        try:
            files.write_whole(self.fs, path, data, temporary=f"{path}.{names.TEMPORARY}")
            if files.read_file(self.fs, path) != data:
                raise OSError(5, "what was written is not what is read", path)
        finally:
            for left_over in (path, f"{path}.{names.TEMPORARY}"):
                try:
                    self.fs.unlink(left_over)
                except OSError:
                    pass

    # ---- what it remembers -----------------------------------------------------------------------------------------------------

    def load(self, name: str) -> dict[tuple[str, int], int]:
        """A checkpoint.  Derived; a damaged file says nothing."""
        try:
            rows = checkpoint.decode(files.read_file(self.fs, f"{self.path}/{name}"), 3)
            return {(topic_id, int(number)): int(offset) for topic_id, number, offset in rows}
        except (FileNotFoundError, ValueError, UnicodeDecodeError):
            return {}

    def save(self, name: str, offsets: Mapping[tuple[str, int], int], known: set[str]) -> dict[tuple[str, int], int]:
        """Write a checkpoint: what it says already, and these offsets, of topics that are there."""
        points = self.load(name)
        points.update((key, offset) for key, offset in offsets.items() if offset)
        self._write(name, points, known)
        return points

    def lower(self, name: str, key: tuple[str, int], offset: int) -> None:
        """A checkpoint says no more than `offset` of a log from now on; that is on the disk when this returns."""
        points = self.load(name)
        if points.get(key, 0) > offset:
            points[key] = offset
            self._write(name, points, {topic_id for topic_id, _ in points})

    def _write(self, name: str, points: Mapping[tuple[str, int], int], known: set[str]) -> None:
        rows = [(*key, offset) for key, offset in sorted(points.items()) if key[0] in known]
        path = f"{self.path}/{name}"
        files.write_whole(self.fs, path, checkpoint.encode(rows), temporary=f"{path}{names.TEMPORARY}")


def make(fs: FileSystem, path: str, number: int, cluster_id: str, like: str) -> str:
    """Bring a broker's directory into being, with an empty copy of the metadata log; returns its directory id.

    Commit step: `meta.properties`, or the directory, takes its name.  Raises NotAClusterError where something else is there.
    """
    try:
        return _make(fs, path, number, cluster_id, like)
    except OSError as error:
        files.remove_tree(f"{path}.{process.token()}{names.TEMPORARY}")
        if isinstance(error, StorageError):
            raise
        raise NotAClusterError(f"{path} cannot become a broker: {error.strerror or error}") from None


def _make(fs: FileSystem, path: str, number: int, cluster_id: str, like: str) -> str:
    in_place = files.is_directory(path)  # made beforehand: perhaps a mount point, which nothing can take the place of
    made = path if in_place else f"{path}.{process.token()}{names.TEMPORARY}"
    metadata = f"{made}/{names.partition(names.METADATA_TOPIC, 0)}"
    if in_place:
        strangers = sorted(name for name in fs.listdir(path) if name not in _LEFT_OVERS and not name.endswith(names.TEMPORARY))
        if strangers:
            raise NotAClusterError(f"{path} cannot become a broker: it is not empty, it has {strangers[0]!r}")
        if files.is_directory(metadata):
            files.remove_directory(fs, metadata)
    else:
        files.make_directories(path.rpartition("/")[0])
        fs.mkdir(made)
    partition_log.create(fs, metadata, TOPIC_ID, 0)
    directory_id = process.random_bytes(16).hex()
    properties = f"version=1\ncluster.id={cluster_id}\nbroker.id={number}\ndirectory.id={directory_id}\n".encode()
    target = f"{made}/{names.META_PROPERTIES}"
    files.write_whole(fs, target, properties, temporary=f"{target}{names.TEMPORARY}")
    files.take_owner(made, like)
    if not in_place:
        fs.replace(made, path)
    return directory_id


def read_properties(fs: FileSystem, broker: str) -> dict[str, str]:
    """A broker's `meta.properties`.  A registered broker without it is failed, never made anew (H8)."""
    path = f"{broker}/{names.META_PROPERTIES}"
    try:
        lines = files.read_file(fs, path).decode(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        raise NotAClusterError(f"{path} is missing: the broker's directory was lost or another disk is mounted there") from None
    found = dict(line.partition("=")[::2] for line in lines if "=" in line)
    if "cluster.id" not in found:
        raise NotAClusterError(f"{path} names no cluster")
    return found
