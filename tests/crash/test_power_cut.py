"""Power cuts: what was acknowledged under "fsync" is there, a lost record never comes back, logs never disagree within an epoch."""

import contextlib
import random
import shutil
from pathlib import Path

import pytest

import streamlog
from conftest import LONG
from streamlog.cluster import Cluster, _Place
from streamlog.testing.memory_fs import MemoryFileSystem

ROUNDS = 4000 if LONG else 400


class History:
    """What users were promised and shown."""

    def __init__(self) -> None:
        self.acknowledged: set[bytes] = set()
        self.shown: dict[tuple[int, int], bytes] = {}  # (epoch, offset) -> value
        self.lost: set[bytes] = set()
        self.sent: set[bytes] = set()

    def look(self, cluster: Cluster, *, after_cut: bool) -> None:
        with cluster.consumer("t", auto_offset_reset="earliest") as consumer:
            records: list[streamlog.Record] = []
            while found := consumer.poll():
                records += found
        values = {record.value for record in records}
        assert len(values) == len(records), "no record twice"
        assert [record.offset for record in records] == list(range(len(records)))
        assert values >= self.acknowledged, f"acknowledged and lost: {self.acknowledged - values}"
        assert not values & self.lost, f"lost records came back: {values & self.lost}"
        for record in records:
            shown = self.shown.setdefault((record.leader_epoch, record.offset), record.value)
            assert shown == record.value, f"offset {record.offset} of epoch {record.leader_epoch} was {shown}, is {record.value}"
        if after_cut:
            self.lost |= self.sent - values


def write(cluster: Cluster, fs: MemoryFileSystem, chance: random.Random, history: History, life: int) -> None:
    failing = False
    for number in range(chance.randrange(1, 12)):
        if chance.random() < 0.1:
            fs.fail_syncs(1)
            failing = True
        value = b"%d-%d-" % (life, number) + bytes(chance.randrange(0, 1500))
        with cluster.producer(durability=chance.choice(("os", "fsync")), linger_ms=chance.choice((0, 1000))) as producer:
            history.sent.add(value)
            with contextlib.suppress(streamlog.DiskFailedError):
                delivery = producer.send("t", value)
                producer.flush()
                delivery.result()
                if producer.config.durability == "fsync":
                    history.acknowledged.add(value)
        if failing and chance.random() < 0.5:
            break


@pytest.mark.parametrize("start", range(4))
def test_h27_h29_h30_power_cuts(start: int, place: Path, seed: int) -> None:
    for number in range(ROUNDS // 4):
        one_life_after_another(place, seed + start * 10_000 + number)


def one_life_after_another(place: Path, seed: int) -> None:
    chance, history = random.Random(seed), History()
    root = place / "life-0"
    root.mkdir()
    fs = MemoryFileSystem(str(root))
    fs.sync_dir(str(place))
    try:
        cluster = Cluster(_Place(root), fs=fs)
        cluster._home.new_producer_id(10)  # here: the syncs that fail are to be the topic's
        cluster.create_topic("t", segment_bytes=4096, index_interval_bytes=0)
        for life in range(1, chance.randrange(2, 5)):
            write(cluster, fs, chance, history, life)
            if chance.random() < 0.5:  # close and open again in the same boot: a failed sync is recovered
                fs.fail_syncs(0)
                cluster.close()
                cluster = Cluster(_Place(root), fs=fs)
                write(cluster, fs, chance, history, life + 100)
            history.look(cluster, after_cut=False)
            root = place / f"life-{life}"
            fs = fs.crash(seed + life, str(root))
            cluster._home.abandon()
            cluster = Cluster(_Place(root), fs=fs)
            cluster._home.new_producer_id(10)
            history.look(cluster, after_cut=True)
            assert streamlog.check(cluster) == []
        cluster.close()
        fs.end()
    except BaseException as error:
        error.add_note(f"one_life_after_another(place, {seed})")
        raise
    finally:
        for path in place.glob("life-*"):
            shutil.rmtree(path)
