"""Power cuts and transactions under "fsync": a commit that returned is whole, offsets included; what was aborted, or left open, never shows."""

from __future__ import annotations

import logging
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

import streamlog
from conftest import LONG
from streamlog import GroupMetadata, OffsetAndMetadata, TopicPartition
from streamlog.cluster import Cluster, _Place
from streamlog.testing.memory_fs import MemoryFileSystem

ROUNDS = 1200 if LONG else 120
PARTITIONS = 2
TP = TopicPartition("t", 0)
COMMITTED: dict[str, Any] = {"isolation_level": "read_committed", "auto_offset_reset": "earliest"}


class History:
    """What users were promised."""

    def __init__(self) -> None:
        self.number = 0
        self.committed: dict[bytes, int] = {}  # name of a transaction, and how many records it has
        self.gone: set[bytes] = set()  # aborted, or open when the power went
        self.offset: int | None = None  # of the group, as the last commit that had one left it

    def write(self, cluster: Cluster, fs: MemoryFileSystem, chance: random.Random) -> None:
        producers = [cluster.producer(transactional_id=name, durability="fsync", linger_ms=chance.choice((0, 1000))) for name in ("x", "y")]
        for producer in producers:
            producer.init_transactions()
        for _ in range(chance.randrange(2, 10)):
            producer = chance.choice(producers)
            self.transaction(producer, chance)
            if chance.random() < 0.3:
                fs.write_back(chance, 0.2)
            if chance.random() < 0.2:
                with cluster.producer(durability=chance.choice(("os", "fsync"))) as plain:
                    plain.send("t", b"plain", partition=chance.randrange(PARTITIONS)).result()
            if producer._manager.state.startswith("in a"):  # type: ignore[union-attr]
                if chance.random() < 0.5:
                    producers.remove(producer)  # stays open, as of a process that is there when the power goes
                    if not producers:
                        return
                else:
                    producer.abort_transaction()

    def transaction(self, producer: streamlog.Producer, chance: random.Random) -> None:
        self.number += 1
        name, count, offset = b"%d" % self.number, chance.randrange(1, 5), None
        producer.begin_transaction()
        for _ in range(count):
            producer.send("t", name + b"/" + bytes(chance.randrange(0, 1500)), partition=chance.randrange(PARTITIONS))
        if chance.random() < 0.5:
            producer.flush()
        if chance.random() < 0.4:
            offset = self.number
            producer.send_offsets({TP: offset}, GroupMetadata("g", -1, "", None))
        ending = chance.random()
        if ending < 0.6:
            producer.commit_transaction()
            self.committed[name], self.offset = count, self.offset if offset is None else offset
        else:
            self.gone.add(name)
            if ending < 0.85:
                producer.abort_transaction()

    def look(self, cluster: Cluster) -> None:
        """Nobody is in a transaction now."""
        with cluster.consumer("t", **COMMITTED) as consumer:
            found: list[bytes] = []
            for _ in range(500):
                found += [record.value.partition(b"/")[0] for record in consumer.poll(timeout_ms=10)]
                ends = {tp.partition: end for tp, end in consumer.end_offsets([("t", number) for number in range(PARTITIONS)]).items()}
                if not any(consumer.lag().values()) and ends == cluster.topic("t").end_offsets():
                    break
            else:
                raise AssertionError(f"readers are held up: {cluster.transactions()}")
        for name, count in self.committed.items():
            assert found.count(name) == count, f"transaction {name!r} of {count} records: {found.count(name)} are there"
        assert not self.gone & set(found), f"aborted, and shown: {self.gone & set(found)}"
        if self.offset is not None:
            assert cluster.group_offsets("g") == {TP: OffsetAndMetadata(self.offset)}


@pytest.mark.parametrize("start", range(4))
def test_h39_power_cuts(start: int, place: Path, seed: int) -> None:
    logging.getLogger("streamlog").setLevel(logging.ERROR)  # hanging transactions are told of
    try:
        for number in range(ROUNDS // 4):
            one_life_after_another(place, seed + start * 10_000 + number)
    finally:
        logging.getLogger("streamlog").setLevel(logging.NOTSET)


def one_life_after_another(place: Path, seed: int) -> None:
    chance, history = random.Random(seed), History()
    root = place / "life-0"
    root.mkdir()
    fs = MemoryFileSystem(str(root))
    fs.sync_dir(str(place))
    try:
        cluster = Cluster(_Place(root), fs=fs)
        cluster.create_topic("t", PARTITIONS, segment_bytes=chance.choice((4096, 1 << 20)), index_interval_bytes=0)
        for life in range(1, chance.randrange(2, 4)):
            history.write(cluster, fs, chance)
            if chance.random() < 0.3:
                cluster.close()  # with recovery points; and everything is closed when the power goes
            root = place / f"life-{life}"
            fs = fs.crash(seed + life, str(root))
            if not cluster._closed:
                for producer in [child for child in cluster._children if hasattr(child, "send")]:
                    producer._abandon("the power went")
                cluster._home.abandon()
            cluster = Cluster(_Place(root), fs=fs)
            history.look(cluster)
            cluster.maintain()
            assert cluster.hanging_transactions() == []
            assert streamlog.check(cluster) == []
        cluster.close()
        fs.end()
    except BaseException as error:
        error.add_note(f"one_life_after_another(place, {seed})")
        raise
    finally:
        for path in place.glob("life-*"):
            shutil.rmtree(path)


def test_a_failed_sync_of_states_is_recovered_by_an_opener(place: Path) -> None:
    """As of any other log: who was there is refused, and opening the cluster again mends it."""
    root = place / "life"
    root.mkdir()
    fs = MemoryFileSystem(str(root))
    fs.sync_dir(str(place))
    cluster = Cluster(_Place(root), fs=fs)
    cluster.create_topic("t")
    producer = cluster.producer(transactional_id="x", durability="fsync", max_block_ms=2000)
    producer.init_transactions()
    producer.begin_transaction()
    producer.send("t", b"v")
    producer.flush()
    fs.fail_syncs(1)
    with pytest.raises(streamlog.DiskFailedError):
        producer.commit_transaction()
    with pytest.raises(streamlog.DiskFailedError):
        producer.commit_transaction()
    with pytest.raises(streamlog.DiskFailedError):
        producer.close()
    cluster.close()
    cluster = Cluster(_Place(root), fs=fs)
    with cluster.producer(transactional_id="x") as again, again.transaction():
        again.send("t", b"w")
    with cluster.consumer("t", **COMMITTED) as consumer:
        assert [record.value for record in consumer.poll()] == [b"v", b"w"], "it was prepared when the sync failed"
    assert streamlog.check(cluster) == []
    cluster.close()
    fs.end()
