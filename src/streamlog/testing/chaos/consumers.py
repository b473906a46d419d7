"""Workers that consume: members of groups, and exactly-once loops."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from streamlog import Cluster, Record, StreamlogError, TopicPartition
from streamlog.consumer import Consumer
from streamlog.errors import CommitFailedError, FencedError, RetriableError
from streamlog.testing.chaos.history import HistoryWriter, id_of, ranges
from streamlog.testing.chaos.plan import BILLING, GROUPS, INPUT, OUTPUT, PLAIN, group_of
from streamlog.testing.chaos.producers import DELIVERY, NotedTransactions
from streamlog.testing.chaos.worker import Worker

CALL = 5.0
"""Seconds of `default_api_timeout_ms`."""

MEMBER: dict[str, Any] = {
    "auto_offset_reset": "earliest", "session_timeout_ms": 1000, "heartbeat_interval_ms": 100, "auto_commit_interval_ms": 50,
    "default_api_timeout_ms": int(CALL * 1000), "max_poll_records": 100,
}  # fmt: skip


class NotedConsumer:
    """A member of a group whose polls are written down, and what it processed."""

    def __init__(self, history: HistoryWriter, cluster: Cluster, topic: str, **config: Any) -> None:
        self.history, self.group = history, config["group_id"]
        with history.call("consumer", CALL):
            self.consumer: Consumer = cluster.consumer(**{**MEMBER, **config})
        self.consumer.subscribe([topic], listener=self)

    def on_partitions_assigned(self, partitions: Iterable[TopicPartition]) -> None:
        """Write down what is this member's now."""
        self._own("assigned", partitions)

    def on_partitions_revoked(self, partitions: Iterable[TopicPartition]) -> None:
        """Write down what it gave away."""
        self._own("revoked", partitions)

    def on_partitions_lost(self, partitions: Iterable[TopicPartition]) -> None:
        """Write down what was taken from it."""
        self._own("lost", partitions)

    def _own(self, event: str, partitions: Iterable[TopicPartition]) -> None:
        self.history.note(event, group=self.group, partitions=[list(tp) for tp in partitions])

    def poll(self, timeout_ms: int) -> list[Record]:
        """Records, which are processed when this returns."""
        with self.history.call("poll", timeout_ms / 1000 + CALL):
            records = self.consumer.poll(timeout_ms=timeout_ms)
        if records:
            by: dict[TopicPartition, list[int]] = defaultdict(list)
            for record in records:
                by[TopicPartition(record.topic, record.partition)].append(record.offset)
            self.history.note("processed", group=self.group, at_offsets=[[*tp, ranges(offsets)] for tp, offsets in by.items()])
        return records

    def close(self, *, autocommit: bool = True) -> None:
        """Leave the group."""
        with self.history.call("close consumer", CALL):
            self.consumer.close(autocommit=autocommit, timeout=CALL)


class GroupMember(Worker):
    """A member of one of the groups; commits by itself, or by hand."""

    def work(self, cluster: Cluster) -> None:
        group = group_of(self.task.seed, self.task.number)
        plan = GROUPS[group]
        config: dict[str, Any] = {"partition_assignment_strategy": plan.assignor, "isolation_level": plan.isolation_level}
        if plan.static:
            config["group_instance_id"] = self.task.worker
        by_hand = self.rng.random() < 0.3
        member = NotedConsumer(self.history, cluster, PLAIN, group_id=group, enable_auto_commit=not by_hand, **config)
        try:
            until = self.rng.randrange(50, 1000)
            while not self.ended() and until:
                until -= 1
                self._step(member, by_hand=by_hand)
        except FencedError as error:
            self.trouble("fenced", error)
            self.ending = self.ending or self.was_replaced()
        finally:
            member.close()

    def _step(self, member: NotedConsumer, *, by_hand: bool) -> None:
        try:
            if member.poll(200):
                if by_hand:
                    with self.history.call("commit", CALL):
                        member.consumer.commit()
                self.pause(0.01)
        except (RetriableError, CommitFailedError) as error:
            self.trouble("poll", error)


class ExactlyOnce(Worker):
    """Consume, transform, produce: each record of `input` becomes one of `output`, in a transaction with the offset."""

    def work(self, cluster: Cluster) -> None:
        producer = NotedTransactions(self, cluster, transactional_id=self.task.worker, linger_ms=5)
        consumer = billing_consumer(self.history, cluster)
        try:
            until = self.rng.randrange(50, 500)
            while not self.ended() and until:
                until -= 1
                if records := consumer.poll(100):
                    one_bill(self, producer, consumer, records, abort=self.rng.random() < 0.1)
                    self.pause(0.02)
        except FencedError as error:
            self.trouble("fenced", error)
            self.ending = self.ending or self.was_replaced()
        finally:
            try:
                producer.close()
            finally:
                consumer.close(autocommit=False)


def billing_consumer(history: HistoryWriter, cluster: Cluster) -> NotedConsumer:
    """A member of the group of the exactly-once loops."""
    config: dict[str, Any] = {"isolation_level": "read_committed", "enable_auto_commit": False, "max_poll_records": 40}
    return NotedConsumer(history, cluster, INPUT, group_id=BILLING, **config)


def one_bill(worker: Worker, producer: NotedTransactions, consumer: NotedConsumer, records: list[Record], *, abort: bool = False) -> None:
    """One transaction of an exactly-once loop.  Where it does not commit, the consumer goes back to what is committed."""
    producer.begin()
    try:
        names = producer.new_ids(len(records))
        ids = [f"{id_of(record.value.decode())}!{name}" for record, name in zip(records, names)]
        producer.send(OUTPUT, ids, keys=[record.key or record.topic for record in records])
        with worker.history.call("send_offsets", DELIVERY):
            producer.producer.send_offsets(consumer.consumer, timeout=DELIVERY)
        if not abort:
            producer.commit()
            return
    except FencedError:
        raise
    except StreamlogError as error:
        worker.trouble("bill", error)
    producer.abort()
    with worker.history.call("seek_to_committed", CALL):
        consumer.consumer.seek_to_committed()
