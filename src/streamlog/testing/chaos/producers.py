"""Workers that produce: one record after the other, with keys, in bulk, and in transactions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from streamlog import Cluster, StreamlogError
from streamlog.errors import FencedError, RetriableError, StorageError
from streamlog.testing.chaos.history import payload
from streamlog.testing.chaos.plan import INPUT, PLAIN
from streamlog.testing.chaos.worker import Worker

DELIVERY, BLOCK = 10.0, 5.0
"""Seconds that a delivery may take, and that `send` may wait for memory."""

LIMITS: dict[str, Any] = {"delivery_timeout_ms": int(DELIVERY * 1000), "max_block_ms": int(BLOCK * 1000)}


class NotedProducer:
    """A producer whose records, and what became of them, are written down."""

    def __init__(self, worker: Worker, cluster: Cluster, **config: Any) -> None:
        self.name, self.history = worker.new_name(), worker.history
        self.transaction: int | None = None
        self._sent = 0
        self._pending: list[tuple[list[str], Any]] = []
        idempotent = config.get("enable_idempotence", True)
        self.history.note("producer", producer=self.name, idempotent=idempotent, transactional="transactional_id" in config)
        with self.history.call("producer", BLOCK):
            self.producer = cluster.producer(**{**LIMITS, **config})

    def new_ids(self, count: int) -> list[str]:
        """Ids that no other record has."""
        first, self._sent = self._sent, self._sent + count
        return [f"{self.name}.{number}" for number in range(first, first + count)]

    def send(self, topic: str, ids: Sequence[str], keys: Sequence[str] | None = None, partition: int | None = None) -> None:
        """Send records one after the other."""
        self._note(topic, ids)
        with self.history.call("send", BLOCK + DELIVERY):
            for number, record_id in enumerate(ids):
                key = None if keys is None else keys[number]
                self._pending.append(([record_id], self.producer.send(topic, payload(record_id), key=key, partition=partition)))

    def send_batch(self, topic: str, ids: Sequence[str], partition: int | None = None) -> None:
        """Send records in bulk, to one partition.  A delivery is of as many records as its batch has."""
        self._note(topic, ids)
        with self.history.call("send_batch", BLOCK + DELIVERY):
            deliveries = self.producer.send_batch(topic, [payload(record_id).encode() for record_id in ids], partition=partition)
        if len(deliveries) == 1:
            self._pending.append((list(ids), deliveries[0]))

    def write(self, topic: str, ids: Sequence[str], partition: int | None = None) -> None:
        """Send records through `Producer.batch`."""
        self._note(topic, ids)
        with self.history.call("batch", BLOCK + DELIVERY), self.producer.batch(topic, partition=partition) as batch:
            for record_id in ids:
                batch.append(payload(record_id).encode())
        self._pending.append((list(ids), batch.delivery))

    def _note(self, topic: str, ids: Sequence[str]) -> None:
        self.history.note("send", producer=self.name, topic=topic, ids=list(ids), transaction=self.transaction)

    def flush(self) -> None:
        """Wait for what was sent, then write down what became of it."""
        try:
            with self.history.call("flush", DELIVERY):
                self.producer.flush(DELIVERY)
        finally:
            self.settle()

    def settle(self) -> None:
        """Write down what became of the records whose delivery is done."""
        waiting, acks, failed = [], [], []
        for ids, delivery in self._pending:
            if not delivery.done():
                waiting.append((ids, delivery))
            elif (error := delivery.exception()) is not None:
                failed.append((ids, error))
            else:
                found = delivery.result()
                first = found.base_offset if hasattr(found, "base_offset") else found.offset
                acks += [(record_id, found.partition, first + number) for number, record_id in enumerate(ids)]
        self._pending = waiting
        if acks:
            self.history.note("ack", acks=acks)
        for ids, error in failed:
            self.history.note("failed", ids=ids, error=type(error).__name__, text=str(error)[:300])

    def close(self) -> None:
        """Close the producer, then write down what became of the rest."""
        try:
            with self.history.call("close producer", DELIVERY):
                self.producer.close(DELIVERY)
        finally:
            self.settle()


@contextmanager
def noted(worker: Worker, cluster: Cluster, **config: Any) -> Iterator[NotedProducer]:
    """A producer that is closed at the end."""
    made = NotedProducer(worker, cluster, **config)
    try:
        yield made
    finally:
        made.close()


class Producing(Worker):
    """Base of the workers that write until they are told to end."""

    def config(self) -> dict[str, Any]:
        """Options of the next producer object."""
        return {"linger_ms": self.rng.choice((0, 5, 50)), "durability": self.rng.choice(("os", "os", "os", "fsync"))}

    def work(self, cluster: Cluster) -> None:
        """Write with one producer object for a while, then with the next."""
        while not self.ended():
            with noted(self, cluster, **self.config()) as producer:
                for _ in range(self.rng.randrange(20, 200)):
                    if self.ended():
                        break
                    try:
                        self.write(producer)
                        if self.rng.random() < 0.5:
                            producer.flush()
                    except RetriableError as error:
                        self.trouble("write", error)
                    producer.settle()
                    self.pause(0.01)

    def write(self, producer: NotedProducer) -> None:
        """Send some records."""
        raise NotImplementedError


class Plain(Producing):
    """Records without keys; every other producer object is not idempotent."""

    def config(self) -> dict[str, Any]:
        return {**super().config(), "enable_idempotence": self.rng.random() < 0.5, "partitioner": self.rng.choice(("sticky", "round_robin"))}

    def write(self, producer: NotedProducer) -> None:
        producer.send(PLAIN, producer.new_ids(self.rng.randrange(1, 20)))


class Keyed(Producing):
    """Records with keys, compressed at times, in both topics."""

    def config(self) -> dict[str, Any]:
        return {**super().config(), "compression_type": self.rng.choice((None, "gzip"))}

    def write(self, producer: NotedProducer) -> None:
        ids = producer.new_ids(self.rng.randrange(1, 12))
        producer.send(self.rng.choice((PLAIN, INPUT)), ids, keys=[f"key-{self.rng.randrange(9)}" for _ in ids])


class Bulk(Producing):
    """Records in bulk: `send_batch` and `Producer.batch`."""

    def write(self, producer: NotedProducer) -> None:
        ids, partition = producer.new_ids(self.rng.randrange(1, 60)), self.rng.choice((None, 0, 1, 2))
        if self.rng.random() < 0.7:
            producer.send_batch(PLAIN, ids, partition)
        else:
            producer.write(PLAIN, ids, partition)


class NotedTransactions(NotedProducer):
    """A transactional producer, whose transactions are written down."""

    def __init__(self, worker: Worker, cluster: Cluster, **config: Any) -> None:
        super().__init__(worker, cluster, **{"transaction_timeout_ms": 3000, **config})
        self._transactions = 0
        with self.history.call("init_transactions", DELIVERY):
            self.producer.init_transactions(DELIVERY)

    def begin(self) -> None:
        """Begin a transaction."""
        self.producer.begin_transaction()
        self.transaction = self._transactions
        self._transactions += 1
        self.history.note("begin", producer=self.name, transaction=self.transaction)

    def commit(self) -> None:
        """Commit it.  Where the outcome is not known the same call tells it later, so it is made again; it raises where it never does."""
        self.history.note("committing", producer=self.name, transaction=self.transaction)
        for _ in range(3):
            try:
                with self.history.call("commit_transaction", DELIVERY):
                    self.producer.commit_transaction(DELIVERY)
            except (RetriableError, StorageError) as error:
                self.history.note("trouble", what="commit", error=type(error).__name__, text=str(error)[:300])
                last = error
                continue
            self._over("committed")
            return
        raise last

    def abort(self) -> None:
        """Abort it."""
        with self.history.call("abort_transaction", DELIVERY):
            self.producer.abort_transaction(DELIVERY)
        self._over("aborted")

    def _over(self, outcome: str) -> None:
        self.settle()
        self.history.note(outcome, producer=self.name, transaction=self.transaction)
        self.transaction = None


class Transactional(Worker):
    """Transactions over several partitions of both topics; every third one is aborted on purpose."""

    def work(self, cluster: Cluster) -> None:
        config = {"linger_ms": self.rng.choice((0, 5)), "transactional_id": self.task.worker}
        producer = NotedTransactions(self, cluster, **config)
        try:
            while not self.ended():
                self.one_transaction(producer)
                self.pause(0.03)
        except FencedError as error:
            self.trouble("fenced", error)
            self.ending = self.ending or self.was_replaced()
        finally:
            producer.close()

    def one_transaction(self, producer: NotedTransactions) -> None:
        """One transaction, which ends with a commit or an abort; an error that neither can mend leaves it to the next producer."""
        producer.begin()
        try:
            for _ in range(self.rng.randrange(1, 4)):
                ids = producer.new_ids(self.rng.randrange(1, 8))
                producer.send(self.rng.choice((PLAIN, INPUT)), ids, partition=self.rng.choice((None, 0, 1, 2)))
                if self.rng.random() < 0.3:
                    producer.flush()
            if self.rng.random() < 0.7:
                producer.commit()
                return
        except FencedError:
            raise
        except StreamlogError as error:
            self.trouble("transaction", error)
        producer.abort()
