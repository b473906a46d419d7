"""What a power cut, or a disk that comes back, leaves in `run/`: files that are missing, empty, short, zeroed or old are made anew."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import streamlog
from conftest import values_of
from streamlog._os import files
from streamlog._os.files import LOCAL
from streamlog.cluster import Cluster, _Place
from streamlog.testing.faults import FaultyFileSystem

KINDS = {
    "cluster": "cluster.state", "topic": "*.state", "leaders": "*.leaders", "group": "*.group", "transactions": "transactions.state",
    "lock": "*.lock", "all": "*",
}  # fmt: skip


class Booted(FaultyFileSystem):
    """A machine that was started again."""

    def __init__(self, boot: int) -> None:
        super().__init__()
        self._boot = boot

    def boot_id(self) -> int:
        return LOCAL.boot_id() + self._boot


def matching(run: Path, kind: str) -> list[Path]:
    if kind == "topic":
        return [path for path in run.glob("*.state") if len(path.name) >= 38]
    return list(run.glob(KINDS[kind]))


HARM: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "empty": lambda path: os.truncate(path, 0),
    "short": lambda path: os.truncate(path, min(100, path.stat().st_size)),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


def use(location: Path, value: bytes, fs: FaultyFileSystem | None = None, brokers: int | None = None) -> None:
    """Everything that keeps state in `run/`."""
    with Cluster(_Place(location, brokers=brokers), fs=fs or LOCAL) as log:
        log.create_topic("t", exist_ok=True, replication_factor=brokers or len(log.brokers()))
        with log.producer(durability="fsync") as producer:
            producer.send("t", value).result()
        with log.producer(transactional_id="x", durability="fsync") as producer, producer.transaction():
            producer.send("t", value + b"x")
        with log.consumer("t", group_id="g", auto_offset_reset="earliest", durability="fsync") as consumer:
            assert value in [record.value for record in consumer.poll(timeout_ms=1000)]


@pytest.mark.parametrize("brokers", [1, 3])
@pytest.mark.parametrize("boot", [0, 1], ids=["same boot", "another boot"])
@pytest.mark.parametrize("harm", sorted(HARM))
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_live_state_that_a_power_cut_took_is_made_anew(kind: str, harm: str, boot: int, brokers: int, place: Path) -> None:
    location = place / "log"
    use(location, b"1", brokers=brokers)
    found = matching(location / "run", kind)
    assert found or (kind == "leaders" and brokers == 1)
    for path in found:
        HARM[harm](path)
    use(location, b"2", Booted(boot))
    with Cluster(_Place(location), fs=Booted(boot)) as log:
        assert values_of(log) == [b"1", b"1x", b"2", b"2x"]
        assert sum(log.describe_group("g").lag.values()) <= 1  # a marker may come after what was read
        assert streamlog.check(log) == []


def test_producer_ids_of_another_time_are_not_given_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H31: the disk was away, and the page that says which ids of a block are used came back as it was."""
    mount = [files.mount_of(str(place))]
    monkeypatch.setattr(files, "mount_of", lambda _: mount[0])
    location = place / "log"
    page = location / "run/cluster.state"
    with streamlog.open(location) as log:
        first = log._home.new_producer_id(10.0)
    old = page.read_bytes()
    with streamlog.open(location) as log:
        used = [log._home.new_producer_id(10.0) for _ in range(5)]
        run = log._home.run_id
    with open(page, "r+b") as file:
        file.write(old)
    mount[0] += 1
    with streamlog.open(location) as log:
        assert log._home.new_producer_id(10.0) not in {first, *used}
        assert log._home.run_id != run


def test_a_group_whose_state_is_older_than_its_record_goes_on_above_it(place: Path) -> None:
    location = place / "log"
    with streamlog.open(location) as log:
        log.create_topic("t")
        with log.producer() as producer:
            producer.send("t", b"1")
        with log.consumer("t", group_id="g", auto_offset_reset="earliest") as consumer:
            consumer.poll(timeout_ms=1000)
    (path,) = (location / "run").glob("*.group")
    old = path.read_bytes()
    with streamlog.open(location) as log:
        for _ in range(3):
            with log.consumer("t", group_id="g") as consumer:
                consumer.poll(timeout_ms=100)
        before = log.describe_group("g").generation
    with open(path, "r+b") as file:
        file.write(old)
    with streamlog.open(location) as log, log.consumer("t", group_id="g") as consumer:
        consumer.poll(timeout_ms=1000)
        assert log.describe_group("g").generation > before


def test_who_leaves_last_removes_no_state_of_a_topic_that_others_made(place: Path) -> None:
    with streamlog.open(place / "log") as log:
        log.create_topic("gone")
        log.delete_topic("gone")
        pid = os.fork()
        if pid == 0:
            with streamlog.open(place / "log") as other:
                other.create_topic("t")
                with other.producer() as producer:
                    producer.send("t", b"x").result()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    with streamlog.open(place / "log") as log:
        assert values_of(log) == [b"x"]
        assert log.topic("t").describe().partitions[0].segments == 1, "it is not opened as after a reboot"
