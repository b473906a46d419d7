"""The layer that talks to the operating system."""

import threading
import time
from pathlib import Path

import pytest

import streamlog
from streamlog._os import files, locks, mapping, wake
from streamlog._os.files import LOCAL
from streamlog._os.locks import METADATA, PARTITION, ByteLock, LockFile, under


@pytest.mark.parametrize("magic", [0x6969, 0x01021997, 0x65735546, 0x1234])
def test_file_systems_that_share_no_locks_are_refused(magic: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = files._NETWORK_MAGIC.get(magic, "unknown")
    monkeypatch.setattr(files, "file_system_name", lambda _: (name, False))
    with pytest.raises(streamlog.UnsupportedFileSystemError, match=name):
        streamlog.open(place / "log")
    assert not (place / "log").exists()
    streamlog.open(place / "log", unsafe_filesystem=True).close()


def test_this_file_system_is_known(place: Path) -> None:
    assert files.file_system_name(str(place))[1]


def test_locks_are_taken_in_order(place: Path) -> None:
    lock_file = LockFile(LOCAL, str(place / "locks"))
    outer, inner = (ByteLock(lock_file, rank, rank, lambda: "a lock") for rank in (METADATA, PARTITION))
    assert under(outer, 1.0, under, inner, 1.0, lambda: 5) == 5
    with pytest.raises(AssertionError, match="lock order"):
        under(inner, 1.0, under, outer, 1.0, lambda: 5)
    assert under(inner, 1.0, lambda: 6) == 6
    lock_file.close()


def test_a_lock_keeps_threads_and_descriptions_apart(place: Path) -> None:
    first, second = (LockFile(LOCAL, str(place / "locks")) for _ in range(2))
    mine, other = ByteLock(first, 7, PARTITION, lambda: "mine"), ByteLock(second, 7, PARTITION, lambda: "other")
    inside, most = [0], [0]

    def work(lock: ByteLock) -> None:
        def body() -> None:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.0001)
            inside[0] -= 1

        for _ in range(200):
            under(lock, 20.0, body)

    threads = [threading.Thread(target=work, args=(lock,)) for lock in (mine, mine, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert not second.is_held_elsewhere(7)
    assert second.try_exclusive(9)
    assert first.is_held_elsewhere(9), "a probe takes nothing"
    assert not first.try_exclusive(9)
    first.close()
    second.close()


@pytest.mark.parametrize("futexes", [True, False])
def test_waiters_wake_by_the_bell_or_by_looking(futexes: bool, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wake, "_registered", futexes and wake._registered)
    mapping.create(LOCAL, str(place / "page"), bytes(4096))
    page, _ = mapping.open_page(LOCAL, str(place / "page"), 4096)
    bells = [wake.Bell(page, index) for index in (0, 8)]
    for count in (1, 2):
        ready = [False]

        def ring(ready: list[bool] = ready, bell: wake.Bell = bells[count - 1]) -> None:
            ready[0] = True
            bell.ring()

        threading.Timer(0.01, ring).start()
        waiter, deadline = wake.Waiter(bells[:count]), time.monotonic() + 10
        while not ready[0] and time.monotonic() < deadline:
            waiter.wait(10.0, lambda ready=ready: ready[0])
        assert ready[0]


def test_threads_inside_a_section_are_known(place: Path) -> None:
    lock_file = LockFile(LOCAL, str(place / "locks"))
    lock = ByteLock(lock_file, 0, PARTITION, lambda: "a lock")
    assert under(lock, 1.0, lambda: threading.get_ident() in locks.inside)
    assert threading.get_ident() not in locks.inside
    lock_file.close()


def test_threads_exclude_each_other_through_any_two_locks_of_a_byte(place: Path) -> None:
    """The kernel does not: they share a description."""
    file = locks.LockFile(LOCAL, str(place / "lock"))
    one, other, another = (locks.ByteLock(file, byte, locks.PARTITION, lambda: "it") for byte in (7, 7, 8))
    refused = []

    def try_both() -> None:
        locks.under(another, 1.0, lambda: None)
        try:
            locks.under(other, 0.05, lambda: None)
        except streamlog.StreamlogTimeoutError as error:
            refused.append(error)

    def inside() -> None:
        thread = threading.Thread(target=try_both)
        thread.start()
        thread.join()

    locks.under(one, 1.0, inside)
    assert len(refused) == 1
    file.close()
