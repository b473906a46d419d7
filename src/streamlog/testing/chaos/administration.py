"""Workers that administrate, and one that only looks."""

from __future__ import annotations

from collections.abc import Callable

import streamlog
from streamlog import Cluster, StreamlogError, TopicPartition
from streamlog.errors import GroupIdNotFoundError, InvalidPartitionsError
from streamlog.testing.chaos.plan import BILLING, GROUPS, MOST_PARTITIONS, PLAIN
from streamlog.testing.chaos.producers import noted
from streamlog.testing.chaos.worker import ADMINISTRATION, Worker


class Administrator(Worker):
    """Creates and deletes topics, adds partitions, resets offsets, checks; with several brokers stops, starts and repairs them."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._topics: list[str] = []

    def work(self, cluster: Cluster) -> None:
        acts: list[Callable[[Cluster], object]] = [
            self.create_topic, self.create_topic, self.delete_topic, self.delete_topic, self.add_partitions, self.describe, self.describe,
            self.reset_offsets, self.maintain, self.check,
        ]  # fmt: skip
        if self.task.brokers > 1:
            acts += [self.stop_broker, self.start_brokers, self.start_brokers, self.start_brokers, self.elect_leaders, self.repair]
        acts = [act for act in acts if act.__name__ not in self.task.avoid]
        while not self.ended():
            act = self.rng.choice(acts)
            if act in (self.check, self.repair) and self.rng.random() < 0.8:
                continue  # they read everything
            try:
                with self.history.call(act.__name__, 2 * ADMINISTRATION):
                    act(cluster)
            except StreamlogError as error:
                self.trouble(act.__name__, error)
            self.pause(0.3)

    def create_topic(self, cluster: Cluster) -> None:
        """Create one, and write a few records."""
        name = f"made-{self.new_name()}"
        self.history.note("creating", topic=name)
        cluster.create_topic(name, self.rng.randrange(1, 4), replication_factor=self.rng.choice((1, self.task.brokers)))
        self.history.note("created", topic=name)
        self._topics.append(name)
        with noted(self, cluster, linger_ms=0) as producer:
            producer.send(name, producer.new_ids(5))

    def delete_topic(self, cluster: Cluster) -> None:
        """Delete one of one's own."""
        if self._topics:
            name = self._topics.pop(self.rng.randrange(len(self._topics)))
            self.history.note("deleting", topic=name)
            cluster.delete_topic(name)
            self.history.note("deleted", topic=name)

    def add_partitions(self, cluster: Cluster) -> None:
        """Let the topic that everybody uses grow."""
        total = len(cluster.topic(PLAIN).partitions) + 1
        if total <= MOST_PARTITIONS and self.rng.random() < 0.3:
            try:
                cluster.topic(PLAIN).add_partitions(total)
            except InvalidPartitionsError as error:  # somebody else was faster
                self.trouble("add_partitions", error)

    def describe(self, cluster: Cluster) -> None:
        """Look at everything."""
        cluster.describe()
        cluster.groups()
        cluster.transactions()
        cluster.topic(PLAIN).describe()
        look_at_brokers(self, cluster)

    def reset_offsets(self, cluster: Cluster) -> None:
        """Reset the offsets of a group that nobody else uses, and read them back."""
        group, wanted = f"reset-{self.task.worker}", self.rng.randrange(1000)
        cluster.alter_group_offsets(group, {(PLAIN, 0): wanted})
        found = cluster.group_offsets(group)[TopicPartition(PLAIN, 0)].offset
        self.history.note("reset", group=group, wanted=wanted, found=found)

    def maintain(self, cluster: Cluster) -> None:
        """Do what time asks for."""
        cluster.maintain()

    def check(self, cluster: Cluster) -> None:
        """Check the files while others go on."""
        self.history.note("checked", findings=[list(finding) for finding in streamlog.check(cluster)])

    def stop_broker(self, cluster: Cluster) -> None:
        """Take one out, where all are in."""
        states = look_at_brokers(self, cluster)
        if set(states.values()) == {"online"} and self.rng.random() < 0.5:
            broker = self.rng.choice(sorted(states))
            self.history.note("stopping", broker=broker)
            cluster.stop_broker(broker)

    def start_brokers(self, cluster: Cluster) -> None:
        """Bring back those that are out."""
        for broker, state in look_at_brokers(self, cluster).items():
            if state != "online":
                cluster.start_broker(broker)
                self.history.note("started", broker=broker)

    def elect_leaders(self, cluster: Cluster) -> None:
        """Give leadership back."""
        cluster.elect_leaders()

    def repair(self, cluster: Cluster) -> None:
        """Read all replicas.  Nothing damages a file in a run, so nothing is repaired."""
        self.history.note("repaired", replicas=cluster.repair())


def look_at_brokers(worker: Worker, cluster: Cluster) -> dict[int, str]:
    """Write down the brokers' states, and return them."""
    brokers = cluster.brokers()
    worker.history.note("brokers", brokers=[[each.broker, each.state, each.reason] for each in brokers])
    return {each.broker: each.state for each in brokers}


class Observer(Worker):
    """Looks at groups again and again: who owns what, and what is committed."""

    def work(self, cluster: Cluster) -> None:
        while not self.ended():
            for group in (*GROUPS, BILLING):
                look_at_group(self, cluster, group)
            if self.task.brokers > 1:
                look_at_brokers(self, cluster)
            self.pause(0.1)


def look_at_group(worker: Worker, cluster: Cluster, group: str) -> None:
    """Write down a group's owners and offsets.  `asked` is when the question was put; the answer is of some moment after that."""
    import time

    asked = time.monotonic()
    try:
        with worker.history.call("describe_group", ADMINISTRATION):
            found = cluster.describe_group(group)
    except GroupIdNotFoundError:
        return
    except StreamlogError as error:
        worker.trouble("describe_group", error)
        return
    members = [[member.member_id, sorted(map(list, member.assignment))] for member in found.members]
    offsets = [[*tp, committed.offset] for tp, committed in found.offsets.items()]
    worker.history.note("group", group=group, asked=asked, generation=found.generation, members=members, offsets=offsets)
