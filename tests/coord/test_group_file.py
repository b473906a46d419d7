"""A group's live state: two slots, liveness bytes, heartbeats; deaths half-way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import streamlog
from streamlog._coord.group import MAX_MEMBERS, Group, Member, Subscription
from streamlog._coord.group_file import VERSION, GroupFile
from streamlog._format import names
from streamlog._os.files import LOCAL
from streamlog._os.locks import LockFile, under
from streamlog.testing.faults import FaultyFileSystem

MEMBER = Member("m", None, "", 1, 0, 7, 1000, 1000, Subscription(("t",), None, 0, ("a",)))


def open_file(place: Path, fs: object = LOCAL) -> GroupFile:
    path = str(place / "groups.lock")
    return GroupFile(fs, str(place), "g", LockFile(LOCAL, path), LockFile(LOCAL, path))  # type: ignore[arg-type]


@pytest.fixture
def file(place: Path) -> GroupFile:
    return open_file(place)


def test_versions_alternate_between_two_slots_and_all_see_the_last(place: Path, file: GroupFile) -> None:
    other = open_file(place)
    assert other.load() is None
    for epoch in range(1, 40):
        file.store(Group("g", epoch=epoch))
        assert other.load() == file.load() == Group("g", epoch=epoch)


def test_a_group_that_grows_moves_to_larger_slots(place: Path, file: GroupFile) -> None:
    other = open_file(place)
    for count in (1, 50, 400, MAX_MEMBERS, 2, 900):
        group = Group("g", members={str(n): MEMBER._replace(member_id=str(n), slot=n) for n in range(count)}, dead=False)
        file.store(group)
        file.store(group._replace(epoch=1))
        assert other.load() == group._replace(epoch=1)
    assert (place / next(p.name for p in place.glob("*.group"))).stat().st_size < 4 << 20


def test_a_write_that_fails_leaves_the_old_state(place: Path) -> None:
    fs = FaultyFileSystem(LOCAL)
    file, other = open_file(place, fs), open_file(place)
    old = Group("g", epoch=3, members={"m": MEMBER}, dead=False)
    file.store(old)
    fs.fail_when(op="write", path="*.group")
    with pytest.raises(streamlog.StorageError):
        file.store(old._replace(epoch=4))
    assert other.load() == file.load() == old
    file.store(old._replace(epoch=5))
    assert other.load() == old._replace(epoch=5)


CHILD = """
import sys, os, signal
from pathlib import Path
sys.path.insert(0, {tests!r})
from coord.test_group_file import open_file, MEMBER
from streamlog._coord.group import Group
from streamlog._os.locks import under
file = open_file(Path({place!r}))
class Kill:
    def __init__(self, fs): self.fs = fs
    def __getattr__(self, name): return getattr(self.fs, name)
    def pwrite(self, fd, data, position, path):
        if {when!r} == "before": os.kill(os.getpid(), signal.SIGKILL)
        self.fs.pwrite(fd, data[: len(data) // 2] if {when!r} == "half-way" else data, position, path)
        os.kill(os.getpid(), signal.SIGKILL)
def store():
    file.store(Group("g", epoch=1, members={{"m": MEMBER}}, dead=False))
    if {when!r} == "holding":
        print("inside", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    file._fs = Kill(file._fs)
    file.store(Group("g", epoch=2, members={{"m": MEMBER}}, dead=False))
under(file.lock, 5, store)
"""


def child(place: Path, when: str) -> subprocess.Popen[str]:
    code = CHILD.format(tests=str(Path(__file__).parents[1]), place=str(place), when=when)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("when", ["before", "half-way", "after"])
def test_h35_a_death_inside_a_write_leaves_the_old_state_and_blocks_nobody(place: Path, when: str) -> None:
    with child(place, when) as process:
        assert process.wait(20) == -signal.SIGKILL
    file = open_file(place)
    group = under(file.lock, 1, file.load)
    assert group is not None
    assert group.epoch == 1
    file.store(group._replace(epoch=3))
    assert file.load() == group._replace(epoch=3)


def test_a_death_inside_the_lock_blocks_nobody_and_a_stop_is_named(place: Path) -> None:
    file = open_file(place)
    with child(place, "holding") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "inside\n"
        while "T" not in Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]:
            time.sleep(0.001)
        with pytest.raises(streamlog.StreamlogTimeoutError, match="lock of group 'g'"):
            under(file.lock, 0.1, file.load)
        process.kill()
        process.wait(10)
        assert under(file.lock, 1, file.load) is not None


def test_h23_a_slot_is_alive_as_long_as_its_byte_is_held(place: Path, file: GroupFile) -> None:
    other = open_file(place)
    first = file.claim_slot(Group("g"), 1, 0)
    second = file.claim_slot(Group("g"), 2, 0)
    third = other.claim_slot(Group("g"), 3, 0)
    assert len({first, second, third}) == 3
    assert all(each.is_alive(slot) for each in (file, other) for slot in (first, second, third))
    file.free_slot(first)
    assert not other.is_alive(first)
    assert not file.is_alive(first)
    assert other.is_alive(second)
    assert other.claim_slot(Group("g"), 4, 0) == first


def test_h35_a_beat_of_a_slots_former_owner_counts_as_one_of_now(file: GroupFile) -> None:
    slot = file.claim_slot(Group("g"), 7, 1000)
    mine = MEMBER._replace(slot=slot)
    assert file.ages(mine, 1500) == (500, 500)
    file.beat(slot, 6, 400)  # late, by who had the slot before
    assert file.ages(mine, 2000) == (0, 1000)
    assert file.ages(mine, 2600) == (600, 1600)  # and the session begins anew


def test_readers_without_the_lock_never_see_half_a_group(place: Path, file: GroupFile) -> None:
    pid = os.fork()
    if pid == 0:
        mine = open_file(place)
        try:
            for epoch in range(2000):
                mine.store(Group("g", epoch=epoch, members={str(n): MEMBER._replace(member_id=str(n)) for n in range(epoch % 40)}, dead=False))
        finally:
            os._exit(0)
    last, looks = -1, 0
    while not os.waitpid(pid, os.WNOHANG)[0]:
        group = file.load()
        if group is not None:
            looks += 1
            assert group.epoch >= last
            assert len(group.members) == group.epoch % 40
            last = group.epoch
    assert looks


def test_the_version_word_is_stored_last(file: GroupFile) -> None:
    seen: list[int] = []
    real = file._fs.pwrite

    class Watching:
        def __getattr__(self, name: str) -> Callable[..., object]:
            return getattr(LOCAL, name)  # type: ignore[no-any-return]

        def pwrite(self, fd: int, data: bytes, position: int, path: str) -> None:
            seen.append(file.words[VERSION])
            real(fd, data, position, path)

    file._fs = Watching()  # type: ignore[assignment]
    file.store(Group("g"))
    assert seen == [0]
    assert file.words[VERSION] == 1


def test_members_of_another_version_are_not_wiped_out(place: Path, log: streamlog.Cluster) -> None:
    log.create_topic("t")
    path = place / "log/run" / names.group("g")
    consumer = log.consumer("t", group_id="g")
    consumer.poll(timeout_ms=100)

    def of_another_version() -> None:
        with open(path, "r+b") as file:
            file.seek(4)
            file.write(b"\x63")

    of_another_version()
    with streamlog.open(place / "log") as other, pytest.raises(streamlog.UnsupportedFormatError, match="another version"):
        other.describe_group("g")
    with open(path, "r+b") as file:
        file.seek(4)
        file.write(b"\x02")
    consumer.close()
    of_another_version()
    with streamlog.open(place / "log") as other, other.consumer("t", group_id="g") as consumer:
        consumer.poll(timeout_ms=100)
        assert other.describe_group("g").state in ("Stable", "Assigning")
