"""What the rules look at: the histories of a run and the final state, put in order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from streamlog.testing.chaos.history import Event, History, id_of


class Violation(NamedTuple):
    """Something that must not be: the rule, and what was found."""

    rule: str
    message: str


class Send(NamedTuple):
    """A record that a producer was given; `transaction` is None outside one."""

    topic: str
    producer: str
    transaction: int | None


class Ack(NamedTuple):
    """What a producer was told of a record."""

    record_id: str
    partition: int
    offset: int


class ProducerFacts(NamedTuple):
    """A producer object."""

    idempotent: bool
    transactional: bool


class View(NamedTuple):
    """The records as one way of reading shows them: by topic and partition, offset and value of each."""

    name: str
    committed: bool
    records: Mapping[str, Mapping[int, Sequence[tuple[int, str]]]]

    def all(self) -> Iterator[tuple[str, int, int, str]]:
        """Topic, partition, offset and value of each record."""
        for topic, partitions in self.records.items():
            for partition, records in partitions.items():
                for offset, value in records:
                    yield topic, partition, offset, value


class Final(NamedTuple):
    """The cluster at the end of a run."""

    views: Sequence[View] = ()
    findings: Sequence[Sequence[str]] = ()
    hanging: Sequence[Sequence[Any]] = ()
    topics: Sequence[str] = ()
    problems: Sequence[str] = ()


def final_of(loaded: Mapping[str, Any]) -> Final:
    """From the file that the final reader writes."""
    views = []
    for view in loaded["views"]:
        records = {
            topic: {int(partition): [(offset, value) for offset, value in found] for partition, found in partitions.items()}
            for topic, partitions in view["records"].items()
        }
        views.append(View(view["name"], view["isolation"] == "read_committed", records))
    return Final(views, loaded["findings"], loaded["hanging"], loaded["topics"], loaded["problems"])


class Call(NamedTuple):
    """A call of the library by one process; `ended` is None where it never returned."""

    history: History
    name: str
    bound: float
    began: float
    ended: float | None


class Evidence:
    """Histories of workers and of the parent (`nemesis`), and the final state."""

    def __init__(self, histories: Iterable[History], final: Final) -> None:
        self.histories, self.final = list(histories), final
        self.workers = [history for history in self.histories if history.worker != "nemesis"]
        self.nemesis = [event for history in self.histories if history.worker == "nemesis" for event in history.events]
        self.sends: dict[str, Send] = {}
        self.order: dict[str, int] = {}
        """The place of a record among those of its producer."""
        self.acks: list[Ack] = []
        self.producers: dict[str, ProducerFacts] = {}
        self.outcomes: dict[tuple[str, int], str] = {}
        """The last that is known of a transaction: "begin", "committing", "committed" or "aborted"."""
        for event in self.of("producer"):
            self.producers[event["producer"]] = ProducerFacts(event["idempotent"], event["transactional"])
        for event in self.of("send"):
            for record_id in event["ids"]:
                self.order[record_id] = len(self.order)
                self.sends[record_id] = Send(event["topic"], event["producer"], event["transaction"])
        for event in self.of("ack"):
            self.acks += [Ack(*ack) for ack in event["acks"]]
        for event in self.of("begin", "committing", "committed", "aborted"):
            self.outcomes[event["producer"], event["transaction"]] = event["event"]

    def of(self, *names: str) -> Iterator[Event]:
        """Events of these names, in the order of each process."""
        for history in self.workers:
            for event in history.events:
                if event["event"] in names:
                    yield event

    def deleted(self) -> set[str]:
        """Topics that somebody deleted, or began to."""
        return {event["topic"] for event in self.of("deleting")}

    def transaction_of(self, record_id: str) -> tuple[str, int] | None:
        """The transaction that a record was sent in."""
        send = self.sends.get(record_id)
        return None if send is None or send.transaction is None else (send.producer, send.transaction)

    def outcome_of(self, record_id: str) -> str | None:
        """What is known of its transaction; None: it was sent outside one."""
        transaction = self.transaction_of(record_id)
        return None if transaction is None else self.outcomes.get(transaction, "begin")

    def committed_ids(self, topic: str) -> set[str]:
        """Ids of the records that committed readers see in a topic, in the first view that shows it."""
        for view in self.final.views:
            if view.committed:
                return {id_of(value) for records in view.records.get(topic, {}).values() for _, value in records}
        return set()

    def calls(self) -> Iterator[Call]:
        """Calls with their bounds.  Calls of one process may stand inside one another."""
        for history in self.workers:
            begun: dict[str, list[Event]] = defaultdict(list)
            for event in history.events:
                if event["event"] == "call":
                    begun[event["call"]].append(event)
                elif event["event"] == "return" and begun[event["call"]]:
                    call = begun[event["call"]].pop()
                    yield Call(history, call["call"], call["bound"], call["at"], event["at"])
            for calls in begun.values():
                for call in calls:
                    yield Call(history, call["call"], call["bound"], call["at"], None)

    def stopped(self, history: History) -> list[tuple[float, float]]:
        """When a process was stopped; one that was not continued is stopped for ever."""
        found: list[tuple[float, float]] = []
        since: float | None = None
        for event in self.nemesis:
            if event.get("worker") != history.worker or event.get("life") != history.life:
                continue
            if event["event"] == "stop" and since is None:
                since = event["at"]
            elif event["event"] == "continue" and since is not None:
                found.append((since, event["at"]))
                since = None
        return found if since is None else [*found, (since, float("inf"))]

    def died(self, history: History) -> float:
        """When the parent knew a process to be gone: killed, or ended."""
        times = [
            event["at"]
            for event in self.nemesis
            if event["event"] in ("kill", "exited") and event["worker"] == history.worker and event["life"] == history.life
        ]
        return min(times, default=float("inf"))
