"""A partition with three replicas against a model: brokers stop, start, fill up, lose their tail, rot; machines reboot.

What must hold after each step: nothing that was acknowledged by all in-sync replicas is lost as long as one of them has its bytes; the high
watermark never goes back; what readers see is in every in-sync replica, and never another record; an epoch has one leader.  At the end all
is healed, and all replicas are equal, record for record.
"""

import errno
import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import streamlog
from conftest import LONG
from replica.clusters import WRITES, Disks, assert_equal_replicas, log_of, settle
from streamlog._format import batch as fmt
from streamlog._log.pending import Pending
from streamlog._log.reader import LogReader
from streamlog._log.state import BOOT, HWM
from streamlog._replica.leadership import PLACE, epoch_of, leader_of
from streamlog.cluster import Cluster, _Place
from streamlog.errors import StreamlogError

BROKERS = st.integers(0, 2)


class Replicas(RuleBasedStateMachine):
    @initialize(min_in_sync=st.integers(1, 2))
    def begin(self, min_in_sync: int) -> None:
        self.place = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.disks = Disks()
        self.broken: set[int] = set()
        self.number = 0
        self.acked: dict[int, bytes] = {}
        self.seen: list[bytes] = []  # what a reader could see, by offset
        self.leaders: dict[int, int] = {}
        self.intact = {0, 1, 2}  # brokers that have not lost acknowledged bytes
        self.open()
        self.cluster.create_topic("t", replication_factor=3, min_insync_replicas=min_in_sync, segment_bytes=4096)
        self.begun = True

    def open(self) -> None:
        self.cluster = Cluster(_Place(self.place / "log", brokers=3), fs=self.disks)
        self.cluster._home.fetcher.stop()  # nothing happens by itself

    @property
    def log(self):  # type: ignore[no-untyped-def]
        return log_of(self.cluster)

    # ---- what happens

    @rule(acks=st.sampled_from(["all", 1]), count=st.integers(1, 3), size=st.sampled_from([1, 1, 500]))
    def append(self, acks: object, count: int, size: int) -> None:
        batch, values = Pending(), []
        for _ in range(count):
            self.number += 1
            values.append(b"%d" % self.number * size)
        batch.attributes, batch.columns = fmt.encode_rows(values)
        batch.count, batch.acks_all = count, acks == "all"
        try:
            self.log.append(batch, 0.2)
        except (StreamlogError, OSError):
            return
        if acks == "all":
            self.acked.update((batch.base_offset + n, value) for n, value in enumerate(values))

    @rule()
    def copy(self) -> None:
        try:
            self.log.replicate(0.1)
        except (StreamlogError, OSError):
            pass

    @rule(broker=BROKERS)
    def stop(self, broker: int) -> None:
        self.attempt(self.cluster.stop_broker, broker)

    @rule(broker=BROKERS)
    def start(self, broker: int) -> None:
        self.attempt(self.cluster.start_broker, broker)

    @rule(broker=BROKERS, number=st.sampled_from([errno.EIO, errno.ENOSPC, errno.EROFS]))
    def fail(self, broker: int, number: int) -> None:
        if len(self.broken | {broker}) < 2:  # the metadata want a majority
            self.broken.add(broker)
            self.disks.fail(broker, number, WRITES)

    @rule()
    def heal(self) -> None:
        self.broken.clear()
        self.disks.heal()

    @rule()
    def probe(self) -> None:
        self.attempt(self.cluster._home.controller.look_after)

    @rule()
    def elect(self) -> None:
        self.attempt(self.cluster.elect_leaders)

    def attempt(self, call, *args) -> None:  # type: ignore[no-untyped-def]
        try:
            call(*args)
        except (StreamlogError, OSError):
            pass

    @rule(broker=BROKERS, bytes_lost=st.integers(1, 600))
    def lose_tail(self, broker: int, bytes_lost: int) -> None:
        """Of a broker that is out; another one that may lead has what was acknowledged."""
        state = self.log.state
        if self.cluster.brokers()[broker].state == "online" or not self.others_have_it(state, broker):
            return
        replica = self.log.on(broker)
        path = max(Path(replica.directory).glob("*.log"))
        size = path.stat().st_size
        os.truncate(path, max(64, size - bytes_lost)) if size > 64 else None
        (self.place / "log" / f"broker-{broker}" / "recovery-point-offset-checkpoint").unlink(missing_ok=True)
        replica.recovery_point = 0
        replica.forget()
        replica.words[BOOT] = 0  # its machine was another one, which rebooted
        self.intact.discard(broker)

    @rule(broker=BROKERS, where=st.floats(0, 1), bit=st.integers(0, 7))
    def rot(self, broker: int, where: float, bit: int) -> None:
        """A bit of what is shown flips on one disk."""
        state = self.log.state
        if not self.others_have_it(state, broker) or broker in self.broken:
            return
        replica = self.log.on(broker)
        paths = sorted(Path(replica.directory).glob("*.log"))
        path = paths[int(where * (len(paths) - 1))]
        data = path.read_bytes()
        at = 64 + int(where * (len(data) - 65)) if len(data) > 65 else -1
        if at < 64 or not data[at]:
            return
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(bytes([data[at] ^ 1 << bit]))
        self.scrub()
        if not self.has_all(broker):  # who is out, or cannot be repaired now, may become the last one that is left: no rot there
            with open(path, "r+b") as file:
                file.seek(at)
                file.write(data[at : at + 1])

    def scrub(self) -> None:
        """Whoever is online is read, and repaired."""
        try:
            self.cluster.repair()
        except (StreamlogError, OSError):
            pass

    def others_have_it(self, state, broker: int) -> bool:  # type: ignore[no-untyped-def]
        return any(self.has_all(other) for other in ({*state.in_sync, *state.eligible} & self.intact) - {broker})

    def has_all(self, broker: int) -> bool:
        """Whether a replica can be read up to the high watermark: damage that nobody has found yet is damage."""
        log = self.log
        try:
            return bool(len(self.read(log.on(broker), log.high_watermark)) >= max(log.high_watermark, len(self.seen)))
        except (StreamlogError, OSError):
            return False

    @rule()
    def reboot(self) -> None:
        self.heal()
        self.cluster.close()
        shutil.rmtree(self.place / "log" / "run")
        self.open()

    # ---- what holds

    @precondition(lambda self: getattr(self, "begun", False))
    @invariant()
    def holds(self) -> None:
        log = self.log
        try:
            place = log.place(1.0)
        except (StreamlogError, OSError):
            return
        assert self.leaders.setdefault(epoch_of(place), leader_of(place)) == leader_of(place), "an epoch has one leader"
        try:
            visible = self.visible(log)
        except (StreamlogError, OSError):
            return
        assert len(visible) >= len(self.seen) or log.leadership[PLACE] != place, "the high watermark goes back"
        assert visible[: len(self.seen)] == self.seen[: len(visible)], "what was shown is another record now"
        self.seen = max(self.seen, visible, key=len)
        for offset, value in self.acked.items():
            assert offset < len(visible), f"offset {offset} was acknowledged, {len(visible)} are shown"
            assert visible[offset] == value
        self.refresh_intact(log)

    def visible(self, log) -> list[bytes]:  # type: ignore[no-untyped-def]
        return self.read(log, log.high_watermark)

    @staticmethod
    def read(log, end: int) -> list[bytes]:  # type: ignore[no-untyped-def]
        found: list[bytes] = []
        reader = LogReader(log, 0, timeout=1.0)
        while reader.offset < end and (batch := reader.next()) is not None:
            values = batch.columns().values
            assert values is not None
            found += values.to_list()
        return found

    def refresh_intact(self, log) -> None:  # type: ignore[no-untyped-def]
        """Who is in sync has what was acknowledged."""
        if log.leadership[HWM] == len(self.seen):
            self.intact |= {broker for broker in log.state.in_sync if broker in self.intact or self.has_all(broker)}

    def teardown(self) -> None:
        if not getattr(self, "begun", False):
            return
        try:
            self.heal()
            for _ in range(2):  # what could not be decided for want of a majority may be, once there is one: a failure of before, say
                for broker in range(3):
                    self.cluster.start_broker(broker)
            self.scrub()
            log = self.log
            settle(log)  # a record that was on the leader alone may have rotted: copying it finds that, and the next look brings the leader in
            assert_equal_replicas(log)
            visible = self.visible(log)
            assert all(visible[offset] == value for offset, value in self.acked.items())
            assert log.state.in_sync == (0, 1, 2)
            assert streamlog.check(self.cluster) == []
        finally:
            self.cluster.close()
            shutil.rmtree(self.place, ignore_errors=True)


TestReplicas = Replicas.TestCase
TestReplicas.settings = settings(
    max_examples=600 if LONG else 60, stateful_step_count=50 if LONG else 30, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
