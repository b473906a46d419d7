"""Other clocks, other pid namespaces, other mounts: what another process of the cluster sees differently."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import streamlog
from streamlog._log.state import DIRTY
from streamlog._os import clock, locks, process
from streamlog._os.clock import Clock
from streamlog._os.watch import OUT_OF_SIGHT, Watch

DAY = 86_400_000
MONTH = 30 * DAY


# ---- the wall clock


class Machine:
    """A wall clock for each process, and the time since the boot."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.uptime = 1_800_000_000_000, 5_000_000
        self.words = memoryview(bytearray(80)).cast("Q")
        monkeypatch.setattr(clock, "since_boot_ms", lambda: self.uptime)
        self._patch = monkeypatch

    def agreed(self, wrong_by: int = 0) -> int:
        """What a process sees whose clock is wrong; relative to the right time."""
        self._patch.setattr(clock, "_time_ns", lambda: (self.now + wrong_by) * 1_000_000)
        return Clock(self.words, 0, 1).agreed_ms() - self.now

    def passes(self, ms: int) -> None:
        self.now += ms
        self.uptime += ms


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.mark.parametrize("wrong_by", [MONTH, -MONTH, -3650 * DAY, 120_000])
def test_one_wrong_clock_changes_nothing_for_anybody(wrong_by: int, machine: Machine) -> None:
    assert machine.agreed() == 0
    for _ in range(48):
        machine.passes(1_800_000)
        assert machine.agreed(wrong_by) == 0
        assert machine.agreed() == 0


def test_a_clock_that_was_put_right_is_followed_after_an_hour(machine: Machine) -> None:
    machine.agreed(-MONTH)  # wrong at the boot
    assert machine.agreed() == -MONTH
    machine.passes(3_500_000)
    assert machine.agreed() == -MONTH
    machine.passes(200_000)
    assert machine.agreed() == 0


def test_a_clock_that_is_adjusted_a_little_is_followed_at_once(machine: Machine) -> None:
    assert machine.agreed() == 0
    for second in range(1, 30):
        assert machine.agreed(second * 1000) == second * 1000


def child(location: Path, code: str, *, wrong_by: int = 0) -> str:
    program = f"""if True:
        import sys, time, streamlog
        from streamlog._os import clock
        clock._time_ns = lambda: time.time_ns() + {wrong_by} * 1_000_000
        with streamlog.open({str(location)!r}) as log:
            {code}
    """
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_a_process_whose_clock_is_wrong_expires_nothing(place: Path) -> None:
    with streamlog.open(place / "log", transactional_id_expiration_ms=DAY, producer_id_expiration_ms=DAY) as log:
        log.create_topic("t", segment_bytes=4096)
        with log.producer(transactional_id="x") as producer, producer.transaction():
            producer.send("t", "1")
        with log.consumer("t", group_id="g", auto_offset_reset="earliest") as consumer:
            consumer.poll(timeout_ms=1000)
        before = log.group_offsets("g")
        assert before
        child(place / "log", "log.maintain()", wrong_by=MONTH)
        assert child(place / "log", "print(len(log.group_offsets('g')))", wrong_by=MONTH) == "1"
        assert log.group_offsets("g") == before
        assert [found.transactional_id for found in log.transactions()] == ["x"]


def test_what_a_process_with_a_slow_clock_commits_counts(place: Path) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        log._home.clock.agreed_ms()
        with log.producer() as producer:
            producer.send("t", "1")
        code = "c = log.consumer('t', group_id='h', auto_offset_reset='earliest'); print(len(c.poll(timeout_ms=1000))); c.close()"
        assert child(place / "log", code, wrong_by=-3650 * DAY) == "1"
        assert [found.offset for found in log.group_offsets("h").values()] == [1]
        assert streamlog.check(log) == []


# ---- pid namespaces


def test_a_pid_of_another_namespace_is_not_looked_up() -> None:
    words = memoryview(bytearray(8)).cast("Q")
    words[0] = process.token()
    assert "(running)" in locks.describe("lock", words, 0)
    words[0] = (process.namespace() + 1) << 32 | 1
    assert locks.describe("lock", words, 0) == "the lock, held by process 1 (of another pid namespace: a container)"
    words[0] = 0
    assert locks.describe("lock", words, 0) == "the lock, held by another process"


def test_who_cannot_be_seen_is_probed() -> None:
    watch = Watch()
    watch.follow({OUT_OF_SIGHT})
    began = time.monotonic()
    assert watch.wait(10) is True
    assert time.monotonic() - began < 5
    assert watch.followed == set()
    watch.close()


MEMBER = """if True:
    import sys, streamlog
    log = streamlog.open(sys.argv[1])
    consumer = log.consumer("t", group_id="g", session_timeout_ms=60_000, heartbeat_interval_ms=20_000)
    held = -1
    while True:
        consumer.poll(timeout_ms=1000)
        if len(consumer.assignment()) != held:
            held = len(consumer.assignment())
            print(held, flush=True)
"""


@pytest.fixture
def members() -> Iterator[list["subprocess.Popen[str]"]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for each in started:
        each.kill()
        each.wait()
        assert each.stdout is not None
        each.stdout.close()


@pytest.mark.machine
def test_a_member_that_is_killed_in_a_container_is_replaced_at_once(place: Path, members: list["subprocess.Popen[str]"], in_namespace) -> None:
    """Both are pid 1 of their namespace; nobody waits for a session or a heartbeat to end."""
    with streamlog.open(place / "log") as log:
        log.create_topic("t", partitions=4)

    def start() -> "subprocess.Popen[str]":
        command = ["unshare", "-p", "-f", "--kill-child", "--mount-proc", sys.executable, "-c", MEMBER, str(place / "log")]
        members.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return members[-1]

    first = start()
    wait_for(first, "4")
    second = start()
    wait_for(first, "2")
    wait_for(second, "2")
    second.kill()
    began = time.monotonic()
    wait_for(first, "4")
    assert time.monotonic() - began < 15, "a heartbeat interval is 20 s"


def wait_for(member: "subprocess.Popen[str]", line: str) -> None:
    assert member.stdout is not None
    while (found := member.stdout.readline().strip()) != line:
        assert found, "it ended"


# ---- time namespaces, mounts


@pytest.mark.machine
def test_members_in_two_time_namespaces_live_in_peace(place: Path, in_namespace: Callable[..., "subprocess.CompletedProcess[str]"]) -> None:
    code = """if True:
        import sys, time, streamlog
        log = streamlog.open(sys.argv[1])
        consumer = log.consumer("t", group_id="g")
        until = time.monotonic() + 3
        while time.monotonic() < until:
            consumer.poll(timeout_ms=100)
        print(len(consumer.assignment()), log.describe_group("g").generation)
        consumer.close()
    """
    with streamlog.open(place / "log") as log:
        log.create_topic("t", partitions=4)
        with log.consumer("t", group_id="g") as consumer:
            moved = ["unshare", "-T", "--monotonic", "864000", "--boottime", "864000", sys.executable, "-c", code, str(place / "log")]
            other = subprocess.Popen(moved, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            while other.poll() is None:
                consumer.poll(timeout_ms=50)
            said, errors = other.communicate()
            assert other.returncode == 0, errors
            held, generation = map(int, said.split())
            assert held == 2
            assert generation < 8


@pytest.mark.machine
@pytest.mark.parametrize("brokers", [1, 3])
def test_a_volume_that_is_mounted_twice_is_one_home(
    brokers: int, place: Path, in_namespace: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    other = place / "other"
    other.mkdir()
    volume = place / "volume"
    volume.mkdir()
    code = """if True:
        import sys, streamlog
        with streamlog.open(sys.argv[1]) as log:
            with log.producer() as producer:
                print(producer.send("t", "from there").result(20).offset)
            print(len(log.brokers()), [broker.state for broker in log.brokers()])
    """
    with streamlog.open(volume / "log", brokers=brokers) as log:
        log.create_topic("t", replication_factor=brokers)
        with log.producer() as producer:
            producer.send("t", "here").result()
        for expected in (1, 2):
            inner = f"mount --bind {volume} {other} && exec {sys.executable} -c '{code}' {other}/log"
            done = in_namespace("-m", "sh", "-c", inner)
            assert done.returncode == 0, done.stderr
            assert done.stdout.split("\n")[:2] == [str(expected), f"{brokers} {['online'] * brokers}"]
        with log.producer() as producer:
            assert producer.send("t", "here").result().offset == 3
        assert {broker.state for broker in log.brokers()} == {"online"}
        assert streamlog.check(log) == []


@pytest.mark.machine
def test_a_mark_of_the_dead_is_met_in_another_mount_namespace(place: Path, in_namespace: Callable[..., "subprocess.CompletedProcess[str]"]) -> None:
    """The number of a mount is one of its namespace: where others have the log open the disk was there all the time."""
    code = """if True:
        import sys, streamlog
        with streamlog.open(sys.argv[1]) as log, log.producer(linger_ms=0) as producer:
            print(producer.send("t", b"2").result().offset)
    """
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        with log.producer(linger_ms=0) as producer:
            producer.send("t", b"1").result()
            words = log._log(log._refreshed().topic("t"), 0).words
            words[DIRTY] = 4_000_000  # of a process that died inside
            done = in_namespace("-m", sys.executable, "-c", code, str(place / "log"))
            assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
            assert producer.send("t", b"3").result().offset == 2
        found = log.topic("t").describe().partitions[0]
        assert (found.leader_epoch, found.segments) == (0, 1), "it was not opened as after a reboot"
