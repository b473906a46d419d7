"""Files that one user makes are everybody's who has the home: root locks nobody out, nor does a member of a group with a narrow umask."""

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import streamlog
from conftest import values_of

NOBODY = 65_534
TRANSACTION = "; ".join([
    "p = log.producer(transactional_id='x')", "p.init_transactions()", "p.begin_transaction()", "p.send('TOPIC', b'root')", "p.commit_transaction()",
    "p.close()",
])  # fmt: skip
ADMINISTRATOR = {
    "open": "pass",
    "read": "log.consumer('t', auto_offset_reset='earliest').poll()",
    "send": "log.producer(linger_ms=0).send('t', b'root').result()",
    "create a topic": "log.create_topic('r').producer(linger_ms=0).send('r', b'root').result()",
    "grow a topic": "log.topic('t').add_partitions(5)",
    "group": "log.consumer('t', group_id='g', auto_offset_reset='earliest').poll(timeout_ms=100)",
    "transaction": TRANSACTION.replace("TOPIC", "t"),
    "everything": "\n    ".join([
        "log.create_topic('r')",
        "c = log.consumer('t', group_id='g', auto_offset_reset='earliest'); c.poll(timeout_ms=100); c.close()",
        TRANSACTION.replace("TOPIC", "r"),
    ]),
}  # fmt: skip
SERVICE = """
import os, sys, streamlog
with streamlog.open(sys.argv[1]) as log:
    log.create_topic("t", exist_ok=True)
    for topic in log.topics():
        with log.producer(linger_ms=0) as producer:
            producer.send(topic, b"service").result()
        with log.consumer(topic, group_id="g", auto_offset_reset="earliest") as consumer:
            assert consumer.poll(timeout_ms=2000)
        with log.producer(transactional_id="x") as producer, producer.transaction():
            producer.send(topic, b"in a transaction")
    log.create_topic("mine", exist_ok=True)
    log.topic("t").add_partitions(len(log.topic("t").partitions) + 1)
    log.maintain()
assert streamlog.check(sys.argv[1]) == []
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that everybody can reach."""
    if os.geteuid() != 0:
        pytest.skip("only root can be several users")
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    subprocess.run(["rm", "-rf", path], check=True)


PRELUDE = """
import difflib, encodings.idna, encodings.utf_16_be, importlib, json, logging, os, pkgutil, re, subprocess, sys, threading, typing
import msgpack, numpy, streamlog
for module in pkgutil.walk_packages(streamlog.__path__, "streamlog."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
user, groups, umask = int(sys.argv[2]), [int(group) for group in sys.argv[3].split(",") if group], int(sys.argv[4])
if user:
    os.setgroups(groups)
    os.setgid(groups[0] if groups else user)
    os.setuid(user)
os.umask(umask)
"""


def run(code: str, location: Path, *, user: int = 0, groups: tuple[int, ...] = (), umask: int = 0o022) -> None:
    """Run code as a user; everything is imported before, since the interpreter may lie where others cannot read it."""
    command = [sys.executable, "-c", PRELUDE + code, str(location), str(user), ",".join(map(str, groups)), str(umask)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 0, done.stderr


def administrator(what: str) -> str:
    return f"import sys, streamlog\nwith streamlog.open(sys.argv[1]) as log:\n    {ADMINISTRATOR[what]}\n"


@pytest.mark.machine
@pytest.mark.parametrize("what", sorted(ADMINISTRATOR))
def test_what_root_does_locks_the_service_out_of_nothing(what: str, shared: Path) -> None:
    home = shared / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    run(SERVICE, home / "log", user=NOBODY)
    run(administrator(what), home / "log", umask=0o077)
    owners = {path.stat().st_uid for path in (home / "log").rglob("*")}
    assert owners == {NOBODY}
    run(SERVICE, home / "log", user=NOBODY)


@pytest.mark.machine
def test_a_cluster_that_root_makes_in_somebodys_directory_is_theirs(shared: Path) -> None:
    home = shared / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    run(administrator("open").replace("pass", "log.create_topic('t')"), home)
    run(SERVICE, home, user=NOBODY)


@pytest.mark.machine
@pytest.mark.parametrize("brokers", [1, 3])
def test_members_of_a_group_share_a_home_whatever_their_umask(brokers: int, shared: Path) -> None:
    home, group = shared / "home", 4_711
    home.mkdir()
    os.chown(home, 0, group)
    home.chmod(0o2775)
    first = SERVICE.replace("open(sys.argv[1])", f"open(sys.argv[1], brokers={brokers})")
    run(first, home, user=1001, groups=(1001, group), umask=0o022)
    run(SERVICE, home, user=1002, groups=(1002, group), umask=0o077)
    run(SERVICE, home, user=1001, groups=(1001, group), umask=0o022)
    for path in home.rglob("*"):
        assert path.stat().st_mode & stat.S_IWGRP, path
        assert path.stat().st_gid == group


def test_a_directory_that_is_private_has_private_files(place: Path) -> None:
    location = place / "log"
    location.mkdir(mode=0o700)
    old = os.umask(0o077)
    try:
        with streamlog.open(location) as log:
            log.create_topic("t")
            with log.producer() as producer:
                producer.send("t", "1")
            assert values_of(log) == [b"1"]
    finally:
        os.umask(old)
    for path in location.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) in (0o600, 0o700)


def test_a_sticky_directory_makes_nothing_everybodys(place: Path) -> None:
    """As `/tmp`: there each has what is his own."""
    place.chmod(0o1777)
    before = os.umask(0o077)
    try:
        with pytest.warns(UserWarning, match="one device"):
            log = streamlog.open(place / "home", brokers=[place / f"b{n}" for n in range(3)])
        log.create_topic("t", replication_factor=3)
        with log.producer() as producer:
            producer.send("t", b"x").result()
        log.close()
    finally:
        os.umask(before)
    for path in [place / "home", *place.glob("*/**/*"), *place.glob("b*")]:
        assert not stat.S_IMODE(path.lstat().st_mode) & 0o077, path
