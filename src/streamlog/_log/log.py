"""`Log`: a partition's log as those above see it, whether it has one replica or several.

`PartitionLog` is one replica's log, and all there is where there is one broker; `streamlog._replica.replicated.ReplicatedLog` keeps several
of them alike.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from streamlog._log.partition import PartitionLog
    from streamlog._log.pending import LogSettings, Pending
    from streamlog._os.files import FileSystem
    from streamlog._os.wake import Bell


class Log:
    """Safe to share between threads.  Opens nothing before its first use."""

    topic: str
    topic_id: bytes
    partition: int
    name: str
    fs: FileSystem
    settings: LogSettings
    bell: Bell
    """Rung when there is more to read, where its flag is up."""
    words: memoryview
    """The slot of `replica`."""
    directory: str
    """Where its files are."""
    shown: memoryview
    """Shared words, of which word HWM is the high watermark."""

    if TYPE_CHECKING:  # attributes or properties, as they come

        @property
        def replica(self) -> PartitionLog:
            """The log whose files are read and written now: the leader's."""
            raise NotImplementedError

        @property
        def high_watermark(self) -> int:
            """Readers see offsets below it."""
            raise NotImplementedError

        @property
        def last_stable_offset(self) -> int:
            """Readers of committed records see offsets below it: the high watermark, or where the earliest open transaction began."""
            raise NotImplementedError

        @property
        def start_offset(self) -> int:
            """The first offset that can be read."""
            raise NotImplementedError

    def append(self, batch: Pending, timeout: float) -> None:
        """Write a batch and publish it; `batch.base_offset` and `batch.epoch` say where it went."""
        raise NotImplementedError

    def sync(self, timeout: float) -> None:
        """Return once all that is published now is on the disk."""
        raise NotImplementedError

    def wait_synced(self, batch: Pending, timeout: float) -> None:
        """Return once a batch that was appended is on the disk."""
        raise NotImplementedError

    def flush_due(self) -> bool:
        """Whether `flush_messages` or `flush_ms` asks for a sync now."""
        raise NotImplementedError

    def ensure_valid(self, timeout: float) -> None:
        """For readers: see that the shared words count, and whose log is to be read."""
        raise NotImplementedError

    def is_unsettled(self) -> bool:
        """Whether somebody may have left something above the high watermark."""
        raise NotImplementedError

    def catch_up(self, timeout: float) -> None:
        """Bring what somebody left there below it, so that whoever decides next knows of it."""
        raise NotImplementedError

    def pay(self, timeout: float) -> None:
        """For who waits, or goes: see to records that are written and not shown yet.  Does nothing where that is another's to do."""

    def mend(self, replica: PartitionLog, error: Exception, offset: int, timeout: float) -> bool:
        """Reading `replica` at `offset` failed.  Whether to look again: another one leads now, or the damage is repaired."""
        raise NotImplementedError

    def segments(self) -> list[int]:
        """Base offsets of the segments, in order."""
        return self.replica.segments()
