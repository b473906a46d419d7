"""What brokers remember of their logs: what is on the disk for certain, and high watermarks.  Derived: they spare scans, and tell after a
reboot what must not be missing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from streamlog._log.partition import PartitionLog
    from streamlog._replica.brokers import Broker
    from streamlog._replica.home import Home

from streamlog._format import names
from streamlog._log.state import SYNCED
from streamlog._os.locks import CHECKPOINT, ByteLock, under
from streamlog._replica.metadata import TOPIC_ID

Offsets = dict[tuple[str, int], int]
_LOCKS = 1 << 20  # bytes of `cluster.lock` from here on are the locks of brokers' checkpoints
_PATIENCE = 10.0  # seconds that lowering a checkpoint waits for others who write it


def save(home: Home, timeout: float) -> None:
    """Write the checkpoints of brokers of which this process knows more than they say."""
    replicas: dict[int, list[PartitionLog]] = {}
    marks: dict[int, Offsets] = {}
    for number, replica in home.used_replicas():
        replicas.setdefault(number, []).append(replica)
    for log in home.replicated_logs():
        for number in log.used_replicas():
            marks.setdefault(number, {})[log.topic_id.hex(), log.partition] = log.high_watermark
    for number in {*replicas, *marks} & {number for number, broker in home.brokers.items() if broker.lock_file is not None}:
        broker, used = home.brokers[number], replicas.get(number, [])
        due = any(replica.words[SYNCED] > broker.recovery_points.get(_key(replica), 0) for replica in used)
        if due or marks.get(number, {}).items() - broker.high_watermarks.items():
            under(_lock(home, number), timeout, _write, home, broker, used, marks.get(number, {}))


def _key(replica: PartitionLog) -> tuple[str, int]:
    return replica.topic_id.hex(), replica.partition


def _lock(home: Home, broker: int) -> ByteLock:
    return ByteLock(home.run_locks, _LOCKS + broker, CHECKPOINT, lambda: f"the lock of the checkpoints of broker {broker}, held by another process")


def _write(home: Home, broker: Broker, replicas: list[PartitionLog], marks: Offsets) -> None:
    known = {*(topic_id.hex() for topic_id in home.metadata.by_id), TOPIC_ID.hex()}
    points = {_key(replica): replica.words[SYNCED] for replica in replicas}  # under the lock: who cuts a log lowers the word first
    broker.recovery_points = broker.save(names.RECOVERY_POINTS, points, known)
    if marks:
        broker.high_watermarks = broker.save(names.HIGH_WATERMARKS, marks, known)


def lower(home: Home, number: int, key: tuple[str, int], offset: int) -> None:
    """A log on a broker is about to be cut to `offset`, or its directory to be replaced: its recovery point goes down first.

    Else what is cut would be taken for damage after a reboot.
    """
    broker = home.brokers.get(number)
    if broker is not None:
        under(_lock(home, number), _PATIENCE, broker.lower, names.RECOVERY_POINTS, key, offset)
        broker.recovery_points[key] = min(broker.recovery_points.get(key, 0), offset)
