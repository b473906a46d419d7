"""The end of a run: what is left is worked off, then everything is read, from every replica and in every way."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlog
from streamlog import Cluster, StreamlogError, TopicPartition
from streamlog._format.names import METADATA_TOPIC
from streamlog._log.reader import LogReader
from streamlog._log.state import HWM
from streamlog.errors import RetriableError
from streamlog.record_batch import to_records
from streamlog.testing.chaos.administration import look_at_brokers, look_at_group
from streamlog.testing.chaos.consumers import NotedConsumer, billing_consumer, one_bill
from streamlog.testing.chaos.plan import BILLING, GROUPS, PLAIN
from streamlog.testing.chaos.producers import NotedTransactions
from streamlog.testing.chaos.worker import Worker

PATIENCE = 30.0
"""Seconds that a step at the end may take, with nobody there who disturbs it."""

Records = dict[str, dict[int, list[tuple[int, str]]]]
"""By topic and partition: offset and value of each record."""


class FinalReader(Worker):
    """Works off what is left, and writes `final.json` beside the histories' directory."""

    def work(self, cluster: Cluster) -> None:
        """Each step that goes wrong is written down; the others are done all the same."""
        self.final: dict[str, Any] = {"views": [], "findings": [], "hanging": [], "topics": [], "problems": []}
        if self.task.brokers > 1:
            self._step("start brokers", self._start_brokers, cluster)
        self._step("bills", self._bills, cluster)
        for group in GROUPS:
            self._step(f"group {group}", self._finish_group, cluster, group)
        for group in (*GROUPS, BILLING):
            look_at_group(self, cluster, group)
        self._step("maintain", Cluster.maintain, cluster)
        self._step("hanging", lambda: self.final["hanging"].extend(map(list, cluster.hanging_transactions())))
        self._step("topics", lambda: self.final["topics"].extend(cluster.topics()))
        self._read_through_consumers(cluster, "")
        if self.task.brokers > 1:
            self._step("replicas", self._read_replicas, cluster)
            for broker in range(self.task.brokers):
                self._step(f"leader {broker}", self._let_lead, cluster, broker)
                self._read_through_consumers(cluster, f", led by broker {broker}")
        self._step("check", lambda: self.final["findings"].extend(map(list, streamlog.check(cluster))))
        path = Path(self.task.histories).parent / "final.json"
        path.with_suffix(".tmp").write_text(json.dumps(self.final))
        path.with_suffix(".tmp").rename(path)
        self.ending = True

    def _step(self, name: str, function: Callable[..., object], *args: Any) -> None:
        try:
            function(*args)
        except StreamlogError as error:
            self.trouble(name, error)
            self.final["problems"].append(f"{name}: {type(error).__name__}: {error}")

    def _within(self, seconds: float, what: str, done: Callable[[], bool]) -> None:
        """Repeat until done.  What may succeed later may do so until the time is over."""
        until = time.monotonic() + seconds
        last: RetriableError | None = None
        while True:
            try:
                if done():
                    return
            except RetriableError as error:
                last = error
                time.sleep(0.05)
            if time.monotonic() > until or self.ended():
                self.final["problems"].append(f"{what}: not done after {seconds:.0f} s{'' if last is None else f': {last}'}")
                return

    def _start_brokers(self, cluster: Cluster) -> None:
        def done() -> bool:
            states = look_at_brokers(self, cluster)
            for broker, state in states.items():
                if state != "online":
                    try:
                        cluster.start_broker(broker)
                    except StreamlogError as error:
                        self.trouble(f"start broker {broker}", error)
                        time.sleep(0.2)
            return set(states.values()) == {"online"}

        self._within(PATIENCE, "brokers", done)

    def _bills(self, cluster: Cluster) -> None:
        """The exactly-once loop, until the input is at its end."""
        producer, consumer = NotedTransactions(self, cluster, transactional_id=self.task.worker), billing_consumer(self.history, cluster)

        def done() -> bool:
            if records := consumer.poll(100):
                one_bill(self, producer, consumer, records)
            return not records and _is_at_end(cluster, consumer, "input")

        self._within(PATIENCE, "the exactly-once loop", done)
        producer.close()
        consumer.close(autocommit=False)

    def _finish_group(self, cluster: Cluster, group: str) -> None:
        """A member that reads what the others left."""
        plan = GROUPS[group]
        config = {"partition_assignment_strategy": plan.assignor, "isolation_level": plan.isolation_level, "max_poll_records": 1000}
        member = NotedConsumer(self.history, cluster, PLAIN, group_id=group, **config)
        self._within(PATIENCE, f"group {group}", lambda: not member.poll(100) and _is_at_end(cluster, member, PLAIN))
        member.close()

    def _read_through_consumers(self, cluster: Cluster, suffix: str) -> None:
        for isolation in ("read_uncommitted", "read_committed"):
            self._step(isolation + suffix, self._read_through_consumer, cluster, isolation, suffix)

    def _read_through_consumer(self, cluster: Cluster, isolation: str, suffix: str) -> None:
        records: Records = {}
        for topic in cluster.topics():
            partitions = cluster.topic(topic).partitions
            found: dict[int, list[tuple[int, str]]] = {number: [] for number in partitions}
            with cluster.consumer(topic, auto_offset_reset="earliest", isolation_level=isolation) as consumer:

                def done(consumer: streamlog.Consumer = consumer, topic: str = topic, found: dict[int, list[tuple[int, str]]] = found) -> bool:
                    for record in (batch := consumer.poll(timeout_ms=20, max_records=10_000)):
                        found[record.partition].append((record.offset, record.value.decode()))
                    return not batch and _read_all(cluster, consumer, topic)

                self._within(PATIENCE, f"{isolation}{suffix} of {topic}", done)
            records[topic] = found
        self._add_view(isolation + suffix, isolation, records)

    def _add_view(self, name: str, isolation: str, records: Records) -> None:
        self.final["views"].append({"name": name, "isolation": isolation, "records": records})

    def _read_replicas(self, cluster: Cluster) -> None:
        """The log of each replica, as it lies there.  It reaches into the library: no public call reads a follower."""
        by_broker: dict[int, Records] = {broker: {} for broker in range(self.task.brokers)}
        home, metadata = cluster._home, cluster._refreshed()
        for topic in cluster.topics():
            known = metadata.topic(topic)
            for partition in range(known.partitions):
                log = home.replicated(known, partition, 10.0)
                for broker in sorted({*log.state.replicas} & {*home.controller.alive()}):
                    home.controller.bring_in(log, broker, 10.0)
                log.catch_up(10.0)
                for broker in log.state.replicas:
                    replica = log.on(broker)
                    replica.ensure_valid(10.0)
                    reader = LogReader(replica, replica.start_offset)
                    found = by_broker[broker].setdefault(topic, {}).setdefault(partition, [])
                    while reader.offset < replica.words[HWM] and (batch := reader.next()) is not None:
                        if not reader.hides(batch):
                            found += [(record.offset, record.value.decode()) for record in to_records(batch, topic, partition)]
        for broker, records in by_broker.items():
            self._add_view(f"replica on broker {broker}", "read_uncommitted", records)

    def _let_lead(self, cluster: Cluster, broker: int) -> None:
        """Make a broker the leader of all partitions that it has a replica of, and look at what groups committed as it has it."""
        orders: dict[TopicPartition, list[int]] = {}
        for topic in cluster.topics(internal=True):
            if topic == METADATA_TOPIC:
                continue
            for partition in cluster.topic(topic).describe().partitions:
                if broker in partition.replicas:
                    rest = [other for other in partition.replicas if other != broker]
                    orders[TopicPartition(topic, partition.partition)] = [broker, *rest]
        cluster.reassign_partitions(orders, timeout=PATIENCE)
        led = cluster.elect_leaders(list(orders))
        wrong = {tp: leader for tp, leader in led.items() if leader != broker}
        if wrong:
            self.final["problems"].append(f"broker {broker} does not lead {wrong}")
        with streamlog.open(self.task.location, create=False) as fresh:  # which has read nothing of another leader
            for group in (*GROUPS, BILLING):
                look_at_group(self, fresh, group)


def _is_at_end(cluster: Cluster, member: NotedConsumer, topic: str) -> bool:
    """Whether a member has all partitions of the topic, and has read them."""
    consumer = member.consumer
    return {tp.partition for tp in consumer.assignment()} == set(cluster.topic(topic).partitions) and _read_all(cluster, consumer, topic)


def _read_all(cluster: Cluster, consumer: streamlog.Consumer, topic: str) -> bool:
    """Whether a consumer is at the end of the log in all its partitions: nothing keeps committed readers from the last record."""
    ends = cluster.topic(topic).end_offsets()
    return all(consumer.position(tp) >= ends[tp.partition] for tp in consumer.assignment())
