"""A directory that is replaced or removed: the decision is made under the metadata lock, on metadata that were read under it."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import streamlog
from conftest import values_of
from replica.clusters import Disks, brokers, log_of, lose
from streamlog._format import names
from streamlog._os.files import LOCAL
from streamlog._os.locks import LockFile
from streamlog._replica import administration, directories


class Watched(Disks):
    """Notes each time that a directory of a replica is renamed or removed while nobody holds the metadata lock."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self._path, self._prober = home / "run" / names.CLUSTER_LOCKS, None
        self.unlocked: list[str] = []
        self.moved = 0

    def _look(self, path: str) -> None:
        if names.parse_partition(path.rpartition("/")[2]) is None or not os.path.isdir(path):
            return
        self.moved += 1
        if self._path.exists():
            prober = LockFile(LOCAL, str(self._path))
            if not prober.is_held_elsewhere(0):
                self.unlocked.append(path)
            prober.close()

    def replace(self, source: str, target: str) -> None:
        self._look(source)
        super().replace(source, target)

    def rmdir(self, path: str) -> None:
        self._look(path)
        super().rmdir(path)


@contextmanager
def watched(place: Path, count: int = 3) -> Iterator[tuple[streamlog.Cluster, Watched]]:
    disks = Watched(place / "log")
    with brokers(place, count, disks) as cluster:
        yield cluster, disks
        assert disks.unlocked == []
        assert disks.moved


def filled(cluster: streamlog.Cluster, topic: str = "t", factor: int = 3) -> None:
    cluster.create_topic(topic, replication_factor=factor)
    with cluster.producer() as producer:
        for number in range(20):
            producer.send(topic, b"%d" % number)


def test_deleting_a_topic_takes_its_directories_away_under_the_lock(place: Path) -> None:
    with watched(place) as (cluster, _):
        filled(cluster)
        cluster.delete_topic("t")


def test_a_replica_that_moved_is_removed_under_the_lock(place: Path) -> None:
    with watched(place, 4) as (cluster, _):
        filled(cluster)
        cluster.reassign_partitions({("t", 0): [3, 0, 1]})
        cluster.reassign_partitions({("t", 0): [2, 3, 0]})


def test_a_lost_replica_is_made_anew_under_the_lock(place: Path) -> None:
    with watched(place) as (cluster, _):
        filled(cluster)
        cluster.stop_broker(1)
        path = place / "log/broker-1/t-0"
        for segment in path.glob("*.log"):
            segment.unlink()
        cluster.start_broker(1)
        assert cluster.topic("t").describe().partitions[0].isr == (0, 1, 2)


def test_a_repaired_broker_is_emptied_under_the_lock(place: Path) -> None:
    with watched(place) as (cluster, _):
        filled(cluster)
        cluster.stop_broker(2)
        (place / "log/broker-2/meta.properties").unlink()
        cluster.repair_broker(2)
        assert cluster.topic("t").describe().partitions[0].isr == (0, 1, 2)


def test_a_scrub_leaves_topics_alone_that_it_has_not_heard_of(place: Path) -> None:
    with brokers(place) as cluster, streamlog.open(place / "log") as other:
        filled(cluster, "old")
        home = cluster._home
        home.refresh(10.0)  # its look, before the other process makes a topic
        filled(other, "new")
        for broker in range(3):
            directories.sweep(home, broker, 10.0)
        assert len(values_of(other, "new")) == 20
        assert streamlog.check(other) == []


def test_a_scrub_removes_what_a_creation_left(place: Path) -> None:
    with brokers(place) as cluster:
        filled(cluster)
        home = cluster._home
        left_over = place / "log/broker-1/gone-0"
        directories.make(home, "gone", bytes(range(16)), 0, 1)
        assert left_over.is_dir()
        assert cluster.repair() == {}
        assert not left_over.exists()


def test_topics_made_during_a_scrub_stay(place: Path) -> None:
    with brokers(place) as cluster, streamlog.open(place / "log") as other:
        for number in range(3):
            filled(cluster, f"old{number}")
        done = threading.Event()

        def scrub() -> None:
            for _ in range(5):
                administration.repair(cluster._home, 60.0)
            done.set()

        thread = threading.Thread(target=scrub)
        thread.start()
        made = 0
        while not done.is_set() or made < 3:
            filled(other, f"new{made}")
            made += 1
        thread.join()
        for number in range(made):
            assert len(values_of(other, f"new{number}")) == 20


def test_a_replica_made_anew_by_two_is_made_once(place: Path) -> None:
    """The one that comes second replaces nothing: what the first has copied since is there."""
    with brokers(place) as cluster:
        filled(cluster)
        home, log = cluster._home, log_of(cluster)
        cluster.stop_broker(1)
        replica = log.on(1)
        seen = directories.identity(home, replica.directory)
        for _ in range(2):
            directories.make_anew(home, "t", log._key, 1, seen, replica.void, 10.0)
        first = directories.identity(home, replica.directory)
        directories.make_anew(home, "t", log._key, 1, seen, replica.void, 10.0)
        assert directories.identity(home, replica.directory) == first != seen
        cluster.start_broker(1)
        assert cluster.topic("t").describe().partitions[0].isr == (0, 1, 2)
        found = directories.identity(home, replica.directory)
        directories.make_anew(home, "t", log._key, 1, found, replica.void, 10.0)  # it is in sync by now
        assert directories.identity(home, replica.directory) == found


def test_a_move_that_went_back_keeps_its_replica(place: Path) -> None:
    with brokers(place) as cluster:
        filled(cluster)
        log = log_of(cluster)
        directories.drop(cluster._home, "t", log._key, 2, log.on(2).void, 10.0)
        assert (place / "log/broker-2/t-0").is_dir()


def test_damage_of_a_replica_that_joined_meanwhile_is_not_cut(place: Path) -> None:
    with brokers(place) as cluster:
        filled(cluster)
        log = log_of(cluster)
        end = log.on(2).words[0]
        log._discard(log.on(2), 2, names.log(0))
        assert log.on(2).words[0] == end
        assert cluster.topic("t").describe().partitions[0].isr == (0, 1, 2)


def test_two_brokers_that_are_added_at_once_get_numbers_of_their_own(place: Path) -> None:
    with brokers(place) as cluster, streamlog.open(place / "log") as other:
        found: list[int] = []
        threads = [threading.Thread(target=lambda each=each: found.append(each.add_broker())) for each in (cluster, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == [3, 4]
        cluster._refreshed()
        assert sorted(broker.broker for broker in cluster.brokers()) == [0, 1, 2, 3, 4]


def test_a_broker_that_another_one_repairs_is_not_emptied_again(place: Path) -> None:
    with brokers(place) as cluster, streamlog.open(place / "log") as other:
        filled(cluster)
        cluster.stop_broker(2)
        lose(place, 2)
        other._refreshed()
        cluster.repair_broker(2)
        with pytest.raises(streamlog.InvalidStateError, match="is online"):
            administration.reformat(other._home, 2, 10.0)
        assert cluster.topic("t").describe().partitions[0].isr == (0, 1, 2)
