"""Producers, transactional and plain, interleaved at random and killed between any two steps, against a model of what readers may see.

Each writer has the cluster open by itself, as a process of its own has; a kill breaks its call off at a step, and drops its locks with
everything else.  After each operation a reader compares every partition with the model, at both isolation levels.
"""

import random
from pathlib import Path
from typing import Any

import pytest

import streamlog
from conftest import LONG
from streamlog._log.aborted import open_transactions
from streamlog._log.state import DIRTY
from streamlog.cluster import Cluster, _Place
from streamlog.errors import ProducerFencedError, StreamlogError
from streamlog.testing.faults import FaultyFileSystem, Steps, step_words

PARTITIONS = 3
OPEN, COMMITTED, ABORTED, DEAD, UNKNOWN = "open", "committed", "aborted", "dead", "unknown"


class Killed(BaseException):
    """As SIGKILL: nothing that would run after it does."""


class Writer:
    """A process with one producer."""

    def __init__(self, path: Path, transactional_id: str | None) -> None:
        self.steps = Steps()
        self.steps.active = False
        undo = step_words(self.steps)
        self.cluster = Cluster(_Place(path), fs=FaultyFileSystem(steps=self.steps))
        self.transactional_id = transactional_id
        self.producer = self.cluster.producer(transactional_id=transactional_id, linger_ms=60_000)
        for partition in range(PARTITIONS):  # the slots are opened while their words are steps
            self.cluster._log(self.cluster._refreshed().topic("t"), partition)
        undo()
        self.transaction: int | None = None
        self.initialised = False
        self.waits: list[tuple[int, bytes, Any]] = []  # sent and not known to be written: partition, value, delivery

    def dies(self, at: int, phase: str) -> None:
        """Be killed at the step of this number of the next call."""
        self.steps.names.clear()
        self.steps.active = True

        def hook(number: int, name: str, now: str) -> None:
            if (number, now) == (at, phase):
                raise Killed(name)

        self.steps.hook = hook

    def lives(self) -> None:
        self.steps.active, self.steps.hook = False, None

    def gone(self) -> None:
        """What the kernel does when a process has died."""
        self.lives()
        self.producer._sender.stop()
        self.producer._closed_reason = "killed"
        self.producer._active.clear()
        if self.producer._manager is not None:
            self.producer._manager._finalizer and self.producer._manager._finalizer.detach()
        self.cluster._home.abandon()


class Machine:
    """The cluster, its writers, and the model."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.random = path, random.Random(seed)
        self.reader = streamlog.open(path)
        self.reader.create_topic("t", PARTITIONS, segment_bytes=4096)
        self.writers: list[Writer] = []
        self.zombies: list[Writer] = []  # replaced, and not heard of since
        self.statuses: dict[int, str] = {}
        self.values: dict[bytes, int | None] = {}  # what was sent, and in which transaction
        self.written: list[tuple[int, int, bytes]] = []  # acknowledged: partition, offset, value
        self.count = 0
        self.history: list[str] = []
        for transactional_id in ("x", "y", None):
            self.add(transactional_id)

    def add(self, transactional_id: str | None) -> None:
        self.writers.append(Writer(self.path, transactional_id))

    # ---- operations ----------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        writer = self.random.choice(self.writers)
        kill = self.random.random() < 0.25
        if kill:
            writer.dies(self.random.randrange(25), self.random.choice(("before", "half", "after")))
        try:
            self.operate(writer)
        except Killed:
            self.killed(writer, "killed in " + self.history[-1])
            return
        except ProducerFencedError:
            self.settle(writer)
            if writer.transaction is not None and self.statuses[writer.transaction] == OPEN:
                self.statuses[writer.transaction] = DEAD
            self.killed(writer, f"fenced in {self.history[-1]}")
            return
        finally:
            writer.lives()
        self.settle(writer)

    def killed(self, writer: Writer, what: str) -> None:
        self.history.append(what)
        if writer.transaction is not None and self.statuses[writer.transaction] == OPEN:
            self.statuses[writer.transaction] = UNKNOWN if "commit" in what else DEAD
        writer.gone()
        self.writers.remove(writer)
        self.add(writer.transactional_id)

    def operate(self, writer: Writer) -> None:
        producer, name = writer.producer, writer.transactional_id
        if name is None:
            choices = ["send", "send", "flush"]
        elif not writer.initialised:
            choices = ["init"]
        elif writer.transaction is None:
            choices = ["begin", "begin", "begin", "rival"]
        else:
            choices = ["send"] * 6 + ["flush", "commit", "commit", "abort", "rival"]
        what = self.random.choice(choices)
        self.history.append(f"{name} {what}")
        if what == "init":
            for other in [*self.writers, *self.zombies]:
                if other is not writer and other.transactional_id == name and other.transaction is not None:
                    self.statuses[other.transaction] = DEAD
            producer.init_transactions()
            writer.initialised = True
        elif what == "begin":
            producer.begin_transaction()
            self.count += 1
            writer.transaction, self.statuses[self.count] = self.count, OPEN
        elif what == "send":
            self.count += 1
            value = b"%d" % self.count + bytes(self.random.choice((0, 500)))
            partition = self.random.randrange(PARTITIONS)
            self.values[value] = writer.transaction
            writer.waits.append((partition, value, producer.send("t", value, partition=partition)))
        elif what == "flush":
            producer.flush()
            if writer.transaction is not None and producer._manager is not None and producer._manager.error is not None:
                raise ProducerFencedError(str(producer._manager.error))
        elif what == "commit":
            producer.commit_transaction()
            self.end(writer, COMMITTED)
        elif what == "abort":
            producer.abort_transaction()
            self.end(writer, ABORTED)
        else:  # another producer takes the id over
            self.writers.remove(writer)  # the zombie stays, and may go on at any time
            self.add(name)
            self.zombies.append(writer)

    def end(self, writer: Writer, status: str) -> None:
        assert writer.transaction is not None
        self.settle(writer)
        self.statuses[writer.transaction] = status
        writer.transaction = None

    def wake_a_zombie(self) -> None:
        """A producer that another may have replaced goes on: what it does counts, or it is fenced."""
        if self.zombies:
            writer = self.zombies.pop(self.random.randrange(len(self.zombies)))
            self.writers.append(writer)
            self.history.append(f"{writer.transactional_id} goes on")

    def settle(self, writer: Writer) -> None:
        """What is known to be written by now."""
        left = []
        for partition, value, delivery in writer.waits:
            if not delivery.done():
                left.append((partition, value, delivery))
            elif delivery.exception() is None:
                self.written.append((partition, delivery.result().offset, value))
        writer.waits = left

    # ---- what readers see ----------------------------------------------------------------------------------------------------

    def read(self, partition: int, level: str) -> tuple[dict[int, bytes], int]:
        """Values by offset, and the position after them."""
        with self.reader.consumer(isolation_level=level) as consumer:
            consumer.assign([("t", partition)])
            consumer.seek(("t", partition), 0)
            found = {}
            while records := consumer.poll():
                found.update({record.offset: record.value for record in records})
            return found, consumer.position(("t", partition))

    def check(self) -> None:
        for partition in range(PARTITIONS):
            seen, stable = self.read(partition, "read_committed")  # first: who waits for the dead ends what they left
            everything, end = self.read(partition, "read_uncommitted")
            for at, offset, value in self.written:
                assert at != partition or everything.get(offset) == value, "an acknowledged record is there"
            assert seen.items() <= everything.items()
            assert stable <= end
            firsts = [offset for offset, value in everything.items() if self.is_open(value)]
            assert not firsts or stable <= min(firsts), "nothing of an open transaction is passed"
            view = self.reader._log(self.reader._refreshed().topic("t"), partition)
            held = sorted(first for _, _, first in open_transactions(view))
            exact = held[0] if held else view.high_watermark
            assert view.last_stable_offset == exact or (view.last_stable_offset < exact and view.words[DIRTY]), "the last stable offset"
            assert not firsts or min(firsts) in held
            for first in held:
                transaction = self.values[everything[first]]
                assert transaction is not None
                assert self.statuses[transaction] in (OPEN, DEAD, UNKNOWN), "what has ended is not open"
            for offset, value in everything.items():
                transaction = self.values[value]
                status = COMMITTED if transaction is None else self.statuses[transaction]
                if status == COMMITTED:
                    assert (offset in seen) == (offset < stable)
                elif status != UNKNOWN:
                    assert offset not in seen, f"{value!r} is {status}"
            offsets = sorted(everything)
            assert len(set(everything.values())) == len(offsets), "no record is there twice"

    def is_open(self, value: bytes) -> bool:
        transaction = self.values[value]
        if transaction is None or self.statuses[transaction] != OPEN:
            return False
        return any(writer.transaction == transaction for writer in [*self.writers, *self.zombies])

    def finish(self) -> None:
        """In the end every transaction is seen whole, or not at all."""
        for writer in [*self.writers, *self.zombies]:
            writer.gone()
            if writer.transaction is not None and self.statuses[writer.transaction] == OPEN:
                self.statuses[writer.transaction] = DEAD
        self.reader.maintain()
        shown: dict[int, set[bool]] = {}
        for partition in range(PARTITIONS):
            everything, end = self.read(partition, "read_uncommitted")
            seen, stable = self.read(partition, "read_committed")
            assert stable == end, "nothing is held up any more"
            for offset, value in everything.items():
                if (transaction := self.values[value]) is not None:
                    shown.setdefault(transaction, set()).add(offset in seen)
        for transaction, whole in shown.items():
            assert len(whole) == 1, f"transaction {transaction} is split"
        for partition, _, value in self.written:
            transaction = self.values[value]
            if transaction is None or self.statuses[transaction] == COMMITTED:
                assert value in self.read(partition, "read_committed")[0].values()
        assert streamlog.check(self.reader) == []
        self.reader.close()


@pytest.mark.parametrize("round_", range(300 if LONG else 12))
def test_writers_that_are_killed_anywhere(round_: int, place: Path, seed: int) -> None:
    machine = Machine(place / "log", seed + round_)
    try:
        for _ in range(100):
            if machine.random.random() < 0.1:
                machine.wake_a_zombie()
            machine.step()
            machine.check()
        machine.finish()
    except StreamlogError as error:
        raise AssertionError(f"{machine.history}") from error
    except AssertionError as error:
        raise AssertionError(f"{error}: {machine.history}") from error
