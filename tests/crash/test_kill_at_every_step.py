"""A child kills itself at each named step of append, roll, cut, create, delete and checkpoint: before, half-way through a write, after.

After each death another process, which had the cluster open all the time where there was one, goes on at once; nothing acknowledged is
lost, nothing torn is shown, every invariant holds.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import streamlog
from crash.steps import die_at, steps_of
from streamlog.cluster import Cluster

SMALL = {"segment_bytes": 4096, "index_interval_bytes": 0}


def nothing(cluster: Cluster, ack: Callable[[str], None]) -> None:
    pass


def three_records(cluster: Cluster, ack: Callable[[str], None]) -> None:
    cluster.create_topic("t", **SMALL)
    with cluster.producer() as producer:
        for number in range(3):
            producer.send("t", b"before-%d" % number)
            producer.flush()


def nearly_full(cluster: Cluster, ack: Callable[[str], None]) -> None:
    cluster.create_topic("t", **SMALL)
    with cluster.producer() as producer:
        for number in range(3):
            producer.send("t", b"before-%d" % number + bytes(1000))
            producer.flush()


def append(cluster: Cluster, ack: Callable[[str], None], durability: str = "os") -> None:
    producer = cluster.producer(durability=durability, linger_ms=1000)
    for number in range(2):
        value = b"record-%d" % number + b"." * 900
        if producer.send("t", value).result is not None:
            producer.flush()
            ack(f"record-{number}")


def append_synced(cluster: Cluster, ack: Callable[[str], None]) -> None:
    append(cluster, ack, "fsync")


def cut(cluster: Cluster, ack: Callable[[str], None]) -> None:
    """A sync fails; the next opener writes the doubtful part anew."""
    steps = cluster._fs.steps
    steps.active = False
    cluster._fs.fail_when("sync", "*/t-0/*.log")
    with cluster.producer(durability="fsync") as producer:
        with pytest.raises(streamlog.DiskFailedError):
            producer.send("t", b"doubtful").result()
    cluster.close()
    steps.active = True
    again = Cluster(cluster._place, fs=cluster._fs)
    with again.producer() as producer:
        producer.send("t", b"record-0")
        producer.flush()
        ack("record-0")


def create_cluster(cluster: Cluster, ack: Callable[[str], None]) -> None:
    other = Cluster(type(cluster._place)(cluster._place.path + "-other"), fs=cluster._fs)
    other.create_topic("made")
    ack("made")


def create_topic(cluster: Cluster, ack: Callable[[str], None]) -> None:
    cluster.create_topic("made", 2)
    ack("made")


def grow_topic(cluster: Cluster, ack: Callable[[str], None]) -> None:
    cluster.topic("t").add_partitions(2)
    ack("grown")


def delete_topic(cluster: Cluster, ack: Callable[[str], None]) -> None:
    cluster.delete_topic("t")
    ack("deleted")


def checkpoint(cluster: Cluster, ack: Callable[[str], None]) -> None:
    cluster._fs.steps.active = False
    append(cluster, ack, "fsync")
    cluster._fs.steps.active = True
    cluster.close()


def reboot(cluster: Cluster, ack: Callable[[str], None]) -> None:
    """The first open after a reboot: the slots do not count."""
    cluster._fs.steps.active = False
    cluster.close()
    boot = cluster._fs.boot_id() + 1
    cluster._fs.boot_id = lambda: boot
    cluster._fs.steps.active = True
    again = Cluster(cluster._place, fs=cluster._fs)
    with again.producer() as producer:
        producer.send("t", b"record-0")
        producer.flush()
    ack("record-0")


SCENARIOS = {
    "append": (three_records, append),
    "roll": (nearly_full, append),
    "sync": (three_records, append_synced),
    "cut": (three_records, cut),
    "reboot": (nearly_full, reboot),
    "create_cluster": (nothing, create_cluster),
    "create_topic": (nothing, create_topic),
    "grow_topic": (three_records, grow_topic),
    "delete_topic": (three_records, delete_topic),
    "checkpoint": (three_records, checkpoint),
}
BYSTANDER = {"append", "roll", "sync", "create_topic", "grow_topic", "delete_topic", "checkpoint"}  # another process is there meanwhile


def read_values(cluster: Cluster, topic: str) -> list[bytes]:
    with cluster.consumer(topic, auto_offset_reset="earliest") as consumer:
        values: list[bytes] = []
        offsets: dict[int, int] = {}
        while found := consumer.poll():
            for record in found:
                assert record.offset == offsets.get(record.partition, 0), "offsets have no gap and no repetition"
                offsets[record.partition] = record.offset + 1
                values.append(record.value)
        return values


def go_on(cluster: Cluster, name: str, acknowledged: list[str]) -> None:
    """What a process finds and does after another one died."""
    began = time.monotonic()
    if "deleted" in acknowledged:
        assert "t" not in cluster.topics()
    if name == "delete_topic":
        cluster.create_topic("first")  # whoever writes metadata next, were it for a producer's id, adopts a deletion that was cut short, or not
    if name == "create_topic" or name == "create_cluster":
        topic = cluster.create_topic("made", 2, exist_ok=True)
        assert topic.partitions
        if "made" in acknowledged:
            assert "made" in cluster.topics()
        target = "made"
    else:
        if "t" not in cluster.topics():
            assert name == "delete_topic"
            cluster.create_topic("t", **SMALL)
        target = "t"
    before = read_values(cluster, target)
    kept = [value.rstrip(b"\0.").decode() for value in before]
    assert kept == sorted(kept), "records of one producer keep their order"
    for record in acknowledged:
        if record.startswith("record"):
            assert record in kept, f"{record} was acknowledged and is lost"
    assert set(kept) <= {"before-0", "before-1", "before-2", "record-0", "record-1", "doubtful"}, "nothing torn is shown"
    with cluster.producer() as producer:
        producer.send(target, b"~after").result(timeout=10)
    after = read_values(cluster, target)
    if target == "t" and name != "grow_topic":  # a whole batch that was not visible yet may be adopted: it was never acknowledged
        assert after[: len(before)] == before
        assert after[-1] == b"~after"
        assert len(after) <= len(before) + 2
    if name in ("create_topic", "grow_topic"):
        cluster.topic(target).add_partitions(5)
        assert len(cluster.topic(target).partitions) == 5
    if name == "delete_topic":
        cluster.delete_topic("t")
        cluster.create_topic("other")
        cluster.delete_topic("other")
        assert not [path for path in (Path(cluster._place.path) / "broker-0").iterdir() if path.name.startswith("t-")]
    assert time.monotonic() - began < 20, "nobody was held up"
    assert streamlog.check(cluster) == []


@pytest.mark.parametrize("name", SCENARIOS)
def test_kill_at_every_step(name: str, place: Path) -> None:
    before, scenario = SCENARIOS[name]
    names = steps_of(place / "rehearsal", before, scenario)
    assert names
    shutil.rmtree(place / "rehearsal")
    deaths = 0
    for number, step in enumerate(names):
        for phase in ("before", "half", "after") if step.startswith("write") else ("before", "after"):
            path = place / f"{number}-{phase}"
            bystander = streamlog.open(path) if name in BYSTANDER else None
            acknowledged, killed = die_at(path, number, phase, before, scenario)
            if not killed:
                continue  # the child took fewer steps this time
            deaths += 1
            try:
                if name == "create_cluster":
                    path = Path(f"{path}-other")
                with bystander or streamlog.open(path) as cluster:
                    go_on(cluster, name, acknowledged)
            except BaseException as error:
                error.add_note(f"the child died {phase} step {number}, {step!r}, of {names}")
                raise
            shutil.rmtree(path)
    print(f"{name}: {deaths} deaths at {len(names)} steps: {names}")
    assert deaths >= len(names)
