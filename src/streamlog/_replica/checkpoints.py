"""What brokers remember of their logs: what is on the disk for certain, and high watermarks.  Derived: they spare scans, and tell after a
reboot what must not be missing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from streamlog._replica.brokers import Broker
    from streamlog._replica.home import Home

from streamlog._format import names
from streamlog._log.state import SYNCED
from streamlog._os.locks import SYNC, ByteLock, under
from streamlog._replica.metadata import TOPIC_ID

Offsets = dict[tuple[str, int], int]
_LOCKS = 1 << 20  # bytes of `cluster.lock` from here on are the locks of brokers' checkpoints


def save(home: Home, timeout: float) -> None:
    """Write the checkpoints of brokers of which this process knows more than they say."""
    points: dict[int, Offsets] = {}
    marks: dict[int, Offsets] = {}
    for number, replica in home.used_replicas():
        points.setdefault(number, {})[replica.topic_id.hex(), replica.partition] = replica.words[SYNCED]
    for log in home.replicated_logs():
        for number in log.used_replicas():
            marks.setdefault(number, {})[log.topic_id.hex(), log.partition] = log.high_watermark
    for number in {*points, *marks} & {number for number, broker in home.brokers.items() if broker.lock_file is not None}:
        broker = home.brokers[number]
        due = any(offset > broker.recovery_points.get(key, 0) for key, offset in points.get(number, {}).items())
        if due or marks.get(number, {}).items() - broker.high_watermarks.items():
            lock = ByteLock(home.run_locks, _LOCKS + number, SYNC, lambda: "the lock of a broker's checkpoints")
            under(lock, timeout, _write, home, broker, points.get(number, {}), marks.get(number, {}))


def _write(home: Home, broker: Broker, points: Offsets, marks: Offsets) -> None:
    known = {*(topic_id.hex() for topic_id in home.metadata.by_id), TOPIC_ID.hex()}
    broker.recovery_points = broker.save(names.RECOVERY_POINTS, points, known)
    if marks:
        broker.high_watermarks = broker.save(names.HIGH_WATERMARKS, marks, known)
