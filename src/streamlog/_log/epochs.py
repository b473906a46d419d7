"""Leader epochs and where they begin (KIP-101, KIP-279): a fold over segment headers, kept in `leader-epoch-checkpoint`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

from streamlog._format import checkpoint, names
from streamlog._log import segment
from streamlog._os import files
from streamlog._os.files import FileSystem
from streamlog.errors import StorageError


class Epochs:
    """Epochs with their start offsets, rising in both."""

    __slots__ = ("entries",)

    def __init__(self, entries: Sequence[tuple[int, int]]) -> None:
        self.entries = list(entries)

    def latest(self) -> int:
        """The epoch that is written now."""
        return self.entries[-1][0]

    def last_before(self, end: int) -> int:
        """The epoch of the record before `end`; -1: there is none."""
        return max((number for number, start in self.entries if start < end), default=-1)

    def start_of(self, epoch: int) -> int:
        """Where an epoch begins, or the next higher one that is known."""
        return min((start for number, start in self.entries if number >= epoch), default=-1)

    def floor(self, epoch: int, log_end: int) -> tuple[int, int]:
        """The largest epoch up to `epoch` that has records, and where it ended: what a leader answers (KIP-279); (-1, 0): none."""
        found = max((number for number, start in self.entries if number <= epoch and start < log_end), default=-1)
        return (-1, 0) if found < 0 else (found, min(log_end, self.end_offset_for(found, log_end)))

    def end_offset_for(self, epoch: int, log_end: int) -> int:
        """Where an epoch ended: the start of the next higher one, or the log's end (org.apache.kafka's LeaderEpochFileCache)."""
        return min((start for number, start in self.entries if number > epoch), default=log_end)


def load(fs: FileSystem, directory: str, bases: Sequence[int]) -> Epochs:
    """The epochs of a log: from the checkpoint where it agrees with the active segment, else from the segment headers."""
    try:
        latest = segment.read_header(fs, f"{directory}/{names.log(bases[-1])}").leader_epoch
        rows = checkpoint.decode(files.read_file(fs, f"{directory}/{names.LEADER_EPOCHS}"), 2)
        entries = [(int(epoch), int(start)) for epoch, start in rows]
        begun = {*bases, *(start for _, start in entries if start < bases[0])}  # an epoch begins with a segment
        if entries and entries == sorted(set(entries)) and entries[-1][0] == latest and begun.issuperset(start for _, start in entries):
            return Epochs(entries)
    except (FileNotFoundError, ValueError, StorageError):
        pass  # a damaged header hides its epoch; it is told where the segment is read
    return from_headers(fs, directory, bases)


def last_saved(fs: FileSystem, directory: str) -> int:
    """The highest epoch of the checkpoint; 0 where there is none."""
    try:
        return max((int(epoch) for epoch, _ in checkpoint.decode(files.read_file(fs, f"{directory}/{names.LEADER_EPOCHS}"), 2)), default=0)
    except (FileNotFoundError, ValueError, StorageError):
        return 0


def from_headers(fs: FileSystem, directory: str, bases: Sequence[int]) -> Epochs:
    """The epochs that the segments themselves name."""
    entries: list[tuple[int, int]] = []
    for base in bases:
        try:
            header = segment.read_header(fs, f"{directory}/{names.log(base)}")
        except StorageError:
            continue  # a damaged header hides its epoch; the next one bounds it
        if not entries or header.leader_epoch > entries[-1][0]:
            while entries and entries[-1][1] >= header.epoch_start:
                entries.pop()  # an epoch without records: the next one at its start replaces it
            entries.append((header.leader_epoch, header.epoch_start))
    return Epochs(entries)


def save(fs: FileSystem, directory: str, epochs: Epochs, *, synced: bool = True) -> None:
    """Write the checkpoint (derived: a crash leaves the old one, or none that is whole, which then does not agree and is not used)."""
    path = f"{directory}/{names.LEADER_EPOCHS}"
    files.write_whole(fs, path, checkpoint.encode(epochs.entries), temporary=f"{path}{names.TEMPORARY}", synced=synced)
