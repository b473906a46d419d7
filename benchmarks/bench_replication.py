"""Replication: three replicas beside one on the same device, the debt of acks=1, one record's latency, and the death of a leader."""

from __future__ import annotations

import shutil
import sys
import time
from statistics import median
from typing import Any

from harness import VALUE, Contender, Group, Place, at_most, cost, rate

import streamlog

COUNT = 200_000
BULK = 20
VALUES = [VALUE] * 10_000
LATENCY = 1_000
DEATHS = 7


class Clusters:
    """One cluster of one broker, and one of three, on the same device; made when first needed."""

    def __init__(self, place: Place) -> None:
        self._place, self.directory = place, place.directory
        self._open: dict[int, streamlog.Cluster] = {}
        self._topics = 0

    def topic(self, brokers: int, factor: int) -> tuple[streamlog.Cluster, str]:
        """A new topic in the cluster of so many brokers."""
        log = self._open.get(brokers)
        if log is None:
            log = self._open[brokers] = self._place.stack.enter_context(streamlog.open(self.directory / f"of-{brokers}", brokers=brokers))
        self._topics += 1
        name = f"t{self._topics}"
        log.create_topic(name, replication_factor=factor)
        return log, name


def contenders(place: Place) -> list[Contender]:
    """Each measures on a topic of its own, which is deleted."""
    clusters = Clusters(place)
    debts: list[int] = []
    one = "send, factor 1, one broker"
    return [
        Contender(one, lambda: sending(clusters, 1, 1)),
        Contender("send, factor 1, three brokers", lambda: sending(clusters, 3, 1), (rate(0.5, one),)),
        Contender('send, factor 3, acks="all"', lambda: sending(clusters, 3, 3), (rate(0.6, one),)),
        Contender("send, factor 3, acks=1, to the acknowledgement", lambda: sending(clusters, 3, 3, debts, acks=1), (rate(0.75, one),)),
        Contender("bulk, factor 1", lambda: bulk(clusters, 1, 1)),
        Contender('bulk, factor 3, acks="all"', lambda: bulk(clusters, 3, 3), (rate(0.28, "bulk, factor 1"),)),
        Contender("bulk, factor 3, acks=1, to the acknowledgement", lambda: bulk(clusters, 3, 3, acks=1), (rate(0.75, "bulk, factor 1"),)),
        Contender("one record, factor 1", lambda: latency(clusters, 1, 1)),
        Contender('one record, factor 3, acks="all"', lambda: latency(clusters, 3, 3), (cost(4, "one record, factor 1"),)),
        Contender("the leader's directory fails: next acknowledged record", lambda: failover(clusters), (at_most(0.02),)),
    ]


def sending(clusters: Clusters, brokers: int, factor: int, debts: list[int] | None = None, **config: Any) -> float:
    """Seconds a record of 100 bytes through `send`, up to the last acknowledgement."""
    log, topic = clusters.topic(brokers, factor)
    with log.producer(**config) as producer:
        send = producer.send
        began = time.perf_counter()
        for _ in range(COUNT):
            send(topic, VALUE)
        producer.flush()
        took = time.perf_counter() - began
        if debts is not None:
            owed = log._home.replicated(log._home.metadata.topics[topic], 0, 10.0).debt()
            debts.append(owed)
            print(f"    acks=1: {owed} of {COUNT} records owed to followers at the last acknowledgement (median {median(debts)})", file=sys.stderr)
    log.delete_topic(topic)
    return took / COUNT


def bulk(clusters: Clusters, brokers: int, factor: int, **config: Any) -> float:
    """Seconds a record through `send_batch`, in batches of 1 MB."""
    log, topic = clusters.topic(brokers, factor)
    with log.producer(**config) as producer:
        began = time.perf_counter()
        for _ in range(BULK):
            producer.send_batch(topic, VALUES)
        producer.flush()
        took = time.perf_counter() - began
    log.delete_topic(topic)
    return took / (BULK * len(VALUES))


def latency(clusters: Clusters, brokers: int, factor: int) -> list[float]:
    """Seconds from `send` to the acknowledgement of single records."""
    log, topic = clusters.topic(brokers, factor)
    found = []
    with log.producer(linger_ms=0) as producer:
        for _ in range(LATENCY):
            began = time.perf_counter()
            producer.send(topic, VALUE).result()
            found.append(time.perf_counter() - began)
    log.delete_topic(topic)
    return found


def failover(clusters: Clusters) -> list[float]:
    """Seconds from the first record after the leader's disk began to fail to its acknowledgement, through the election."""
    from streamlog.cluster import Cluster, _Place
    from streamlog.testing.faults import FaultyFileSystem

    found = []
    path = clusters.directory / "failing"
    disks = FaultyFileSystem()
    with Cluster(_Place(path, brokers=3), fs=disks) as log:
        log.create_topic("t", replication_factor=3)
        with log.producer(linger_ms=0) as producer:
            for _ in range(DEATHS):
                for _ in range(50):
                    producer.send("t", VALUE).result()
                leader = log.topic("t").describe().partitions[0].leader
                for op in ("write", "sync", "create", "rename", "sync_dir", "truncate", "allocate"):
                    disks.fail_when(op, f"*/broker-{leader}/*", times=10**9)
                began = time.perf_counter()
                producer.send("t", VALUE).result()
                found.append(time.perf_counter() - began)
                disks.clear()
                log.start_broker(leader)
    shutil.rmtree(path)
    return found


GROUP = Group("replication", contenders, rounds=5, core=None)
