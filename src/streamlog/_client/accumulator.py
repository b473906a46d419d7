"""`Accumulator`: the batches of a producer, from the first record until they are in the log or have failed (Kafka's RecordAccumulator).

A batch is closed when the next record does not fit, when `linger_ms` is over, by `flush`, or when memory runs out, and is appended by the
thread that closed it; where the partition's lock is not free at once, or another thread is appending to it, the batch waits in the
partition's queue (`Lane`), which is worked off in order.

One lock guards it all and is never held while appending.  `_busy` says that somebody is inside it: a thread that finds itself there
(a finalizer or a signal handler that calls `send` inside `send`, H18) puts its record aside instead of waiting for itself.  Nobody
waits for the lock itself: who is woken with it, and not with the interpreter, makes each other thread wait at its every record (measured:
four threads took five times as long).  One looks at `_busy` until it is down, and then takes the lock, with no call in between at which
the interpreter might change threads.
"""

from __future__ import annotations

import sys
from _thread import allocate_lock, get_ident
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType
    from typing import Any, ParamSpec, TypeVar

    from streamlog._client.target import Target
    from streamlog._client.transaction_manager import TransactionManager
    from streamlog.config import ProducerConfig

    P = ParamSpec("P")
    R = TypeVar("R")

from streamlog._client.batch import RECORD_MEMORY, ROW_BYTES, Delivery, RecordBatch, telling
from streamlog._client.lane import PATIENCE, Lane
from streamlog._client.meter import ProducerMeter
from streamlog._client.sender import Sender
from streamlog._os import locks
from streamlog._os.clock import monotonic, sleep
from streamlog._replica.home import Home
from streamlog.errors import BufferExhaustedError, ClosedError, InvalidStateError, StreamlogTimeoutError
from streamlog.partitioners import HASHES

PAUSE = 2e-5  # seconds between looks whether somebody is inside
_FOREVER = float("inf")
_SMALL = 31  # a batch of the smallest records takes so many times the memory of their bytes; where there is less for it, each is counted in


class Accumulator:
    """What `Producer` is below its calls."""

    __slots__ = (  # an instance with more than 30 attributes of its own finds them more slowly: 8% of `send`
        "__weakref__", "_abandoned", "_acknowledged_at_once", "_acks_all", "_active", "_aside", "_begun", "_block", "_busy", "_charge",
        "_closed_batch", "_closed_reason", "_closing", "_delivery", "_forked", "_fsync", "_gives_way", "_hash", "_hash_bits", "_home", "_idempotent",
        "_keyed_row", "_known_targets", "_linger", "_lock", "_manager", "_memory", "_metadata", "_meter", "_now_ms", "_producer_id", "_rounds",
        "_row", "_sender", "_serialize_key", "_serialize_value", "_targets", "_unbatched", "_version", "_waiting", "batch_room", "config",
        "dropped",
    )  # fmt: skip

    def __init__(self, home: Home, config: ProducerConfig) -> None:
        self._home, self.config = home, config
        self._metadata, self._now_ms = home.metadata, home.clock.now_ms
        self._lock = allocate_lock()
        self._busy = False
        self._aside: deque[RecordBatch] = deque()  # what a thread sent from inside its own `send`
        self._closed_reason = ""
        self._closing = False  # only callbacks may send
        self._forked = False
        self._closed_batch = RecordBatch.__new__(RecordBatch)  # stands where no batch is open; has no room for any record
        self._closed_batch.room, self._closed_batch.stride, self._closed_batch.waiters, self._closed_batch.rows = -1, 1, [], []
        self._abandoned = False  # closed, and nobody waits for what is left
        self._known_targets: dict[Any, Target] = {}
        self._targets = self._known_targets  # another, empty one where nothing may be sent: then each `send` asks
        self._manager: TransactionManager | None = None
        self._active: dict[Lane, None] = {}  # lanes with a batch, open or closed
        self._memory = 0  # bytes of their batches; an open one counts as full.  May be too high after an interruption
        self._charge = RECORD_MEMORY if config.buffer_memory < _SMALL * config.batch_size else 0
        self._row, self._keyed_row = ROW_BYTES[1] + self._charge, ROW_BYTES[2] + self._charge
        self.batch_room: int = min(config.batch_size, config.buffer_memory // 2) if self._charge else config.batch_size
        self._linger, self._delivery = config.linger_ms / 1000, config.delivery_timeout_ms / 1000
        self._block = min(config.max_block_ms / 1000, 1e6)  # eleven days; Java's largest number is more than a wait can take
        self._acknowledged_at_once = config.acks == 0
        self._fsync = config.durability == "fsync"
        self._unbatched = config.batch_size == 0 or config.linger_ms == 0
        self._idempotent = config.enable_idempotence
        self._gives_way = home.is_replicated
        self._acks_all = config.acks in ("all", -1)
        self._producer_id = -1  # given when first needed
        self._hash, self._hash_bits = HASHES[config.key_hash]
        self._meter = ProducerMeter()
        self._waiting = 0  # threads that wait for memory
        self._serialize_key, self._serialize_value = config.key_serializer, config.value_serializer
        self._sender = Sender(self)
        self._version = self._metadata.version
        self.dropped = 0  # records that `close` had to give up
        self._rounds = self._begun = 0  # batches begun, and how many there were at the sender's last round

    def _check_open(self) -> None:
        if self._closed_reason:
            raise ClosedError(f"the producer is closed: {self._closed_reason}")
        if self._closing and get_ident() not in telling:
            raise ClosedError("the producer is being closed: close() was called")
        self._home.check_open()
        if self._manager is not None:
            self._manager.check_sending()

    # ---- for a producer's transactions -----------------------------------------------------------------------------------------

    def accept(self, accepting: bool) -> None:
        """Take records, or have each `send` ask whether it may: it finds no topic then."""
        self._targets = self._known_targets if accepting else {}

    def end_batches(self) -> None:
        """Close every open batch.  Raises InvalidStateError from inside this producer's own `send`."""
        if self._is_entered():
            raise InvalidStateError("a signal handler, or a finalizer, inside this producer's `send` cannot end its transaction; it can after it")
        self._inside(self._end_all)

    def drop_waiting(self) -> None:
        """Do not wait before the next try of a batch: it will be refused."""
        for lane in list(self._active):
            lane.tries = 0

    def waiting_partitions(self) -> list[tuple[bytes, int]]:
        """Topic ids and partitions that have batches, open or closed."""
        return [(lane.log.topic_id, lane.partition) for lane in list(self._active) if not lane.gone]

    def _inside(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `function` under the lock.  (`send` does it in its own frame: a call less for each record.)"""
        while self._busy:
            sleep(PAUSE)
        with self._lock:
            self._busy = True
            try:
                return function(*args, **kwargs)
            finally:
                self._busy = False

    def _has_memory(self, lane: Lane, size: int) -> bool:
        """Whether another batch may be begun; the first always.  Under the producer's lock."""
        wanted, limit = max(self.batch_room, size), self.config.buffer_memory
        if not self._charge:
            wanted += lane.expected * RECORD_MEMORY
        if self._memory + wanted > limit:
            self._memory = sum(batch.memory for lane in list(self._active) for batch in list(lane.queue))
        return not self._memory or self._memory + wanted <= limit

    def _begin(self, lane: Lane, target: Target, size: int, stride: int) -> RecordBatch:
        """Open a batch: the last of its partition's queue as long as it is open.  Under the producer's lock."""
        if self._closed_reason or self._manager is not None:
            self._check_open()
        room = target.room
        if size > room:
            room = size
        batch = RecordBatch(lane, target, room, stride, self._now_ms())
        if self._charge:
            batch.charge = self._charge
        else:
            batch.memory += lane.expected * RECORD_MEMORY
        batch.deadline = deadline = batch.begun + self._linger
        batch.finished = batch.acknowledged = self._acknowledged_at_once
        if lane.queue:
            lane.queue[-1].open = False  # an interruption may have left one open that is not the lane's any more
        batch.open = True
        self._enqueue(lane, batch)
        lane.batch = batch
        self._begun += 1
        if deadline < self._sender.wake_at and not self._unbatched:
            self._sender.expect(deadline)
        return batch

    def _enqueue(self, lane: Lane, batch: RecordBatch) -> None:
        """A batch joins the queue of its partition.  Under the producer's lock."""
        if self._manager is not None:
            batch.transaction = self._manager.number
        self._memory += batch.memory
        self._active[lane] = None
        lane.queue.append(batch)
        self._sender.keeper = self  # until all is written: a producer that is dropped loses nothing

    def _end(self, lane: Lane) -> None:
        """Close the open batch, if there is one: it takes no more records, then it may be written.  Under the producer's lock."""
        batch, lane.batch = lane.batch, self._closed_batch
        if lane.queue:
            lane.queue[-1].open = False
        if batch is self._closed_batch:
            return
        lane.expected = batch.records
        memory = batch.size + (0 if batch.charge else batch.records * RECORD_MEMORY)
        self._memory += memory - batch.memory
        batch.memory = memory
        target = lane.target()
        if target is not None and lane is target.sticky and target.count > 1:
            target.batch_completed(batch.size)

    def _settle(self, lane: Lane, batches: list[RecordBatch]) -> None:
        """Take what is written off the queue, and count it.  Under the producer's lock."""
        now = monotonic()
        for batch in batches:
            if not batch.written:
                break
            if lane.queue and lane.queue[0] is batch:
                lane.queue.popleft()
                self._memory -= batch.memory
                self._meter.count(lane, batch, now)
        if not lane.queue:
            self._active.pop(lane, None)
            if not self._active:
                self._memory = 0

    def _end_all(self) -> list[RecordBatch]:
        """Close every open batch; returns the last one of each queue.  Under the producer's lock."""
        for lane in self._active:
            self._end(lane)
        return [lane.queue[-1] for lane in self._active if lane.queue]

    # ---- memory ---------------------------------------------------------------------------------------------------------------

    def _wait_for_memory(self, lane: Lane, size: int) -> bool:
        """`buffer_memory` is full: write what can be written, then wait for the sender, at most `max_block_ms`.

        Returns whether the record must be taken as it is: a callback's, on the thread that frees memory after it.
        """
        deadline = monotonic() + self._block
        self._waiting += 1
        try:
            while not self._inside(self._has_memory, lane, size):
                if any(active.is_own_turn() for active in list(self._active)):
                    return True
                for active in self._inside(self._end_open, _FOREVER):
                    if not active.tries:
                        active.drain()
                if self._inside(self._has_memory, lane, size):
                    return False
                if monotonic() >= deadline:
                    self._meter.exhausted += 1
                    raise self._exhausted()
                self._check_open()
                sleep(0.002)
            return False
        finally:
            self._waiting -= 1

    def _exhausted(self) -> BufferExhaustedError:
        trouble = next((lane.trouble for lane in list(self._active) if lane.trouble), None)
        cause = f"; the log does not take records: {trouble}" if trouble else ""
        return BufferExhaustedError(f"buffer_memory={self.config.buffer_memory} was full for max_block_ms={self.config.max_block_ms}{cause}")

    # ---- the sender's work, and waiting for it ------------------------------------------------------------------------------------

    def _end_open(self, now: float) -> list[Lane]:
        """Close the open batches whose linger is over; returns the lanes with something to append.  Under the producer's lock."""
        for lane in list(self._active):
            if not lane.queue:
                del self._active[lane]  # an exception kept `_settle` from it
            elif lane.batch is self._closed_batch or lane.batch.deadline <= now:
                self._end(lane)
        return list(self._active)

    def _work(self) -> float:
        """The sender's round: what is due is written.  Returns when there is more to do (monotonic; inf: when called)."""
        if self._aside:
            self._route_aside()
        now = monotonic()
        for lane in self._inside(self._end_open, now):
            if now >= lane.next_try():
                lane.drain(wait=True)
        return self._inside(self._next_round, now)

    def _next_round(self, now: float) -> float:
        """When the sender has something to do again.  Under the producer's lock."""
        times = [lane.batch.deadline for lane in self._active if lane.batch is not self._closed_batch]
        closed = [lane for lane in self._active if lane.queue and not lane.queue[0].open and not lane.turn.locked()]
        times += [lane.next_try() or now for lane in closed]
        if not self._active:
            self._sender.keeper = None
        if not times and self._begun != self._rounds:  # busy, though nothing is open now: one more round spares a call
            times.append(now + max(self._linger, 0.001))
        self._rounds = self._begun
        return min(times, default=_FOREVER)

    def _write_now(self, batch: RecordBatch, deadline: float) -> None:
        """Bring a batch nearer to its end: write it and those before it, or wait while another thread does.

        A batch that others still fill stays open as long as another thread is writing: so waiting threads share one append and one sync.
        """
        lane = batch.lane
        if self._forked:
            self._check_open()
        if lane.is_own_turn():
            raise InvalidStateError(
                f"a callback, or a signal handler, cannot wait for a record of {lane.name}: this thread is writing that partition, and goes on "
                "when it returns; wait on another thread, or after it"
            )
        if locks.is_interrupted():
            raise InvalidStateError(
                f"a signal handler, or a finalizer, inside a lock of this thread cannot wait for a record of {lane.name}: who writes it may need "
                "that lock; wait after it"
            )
        left = deadline - monotonic()
        if left <= 0:
            reason = lane.trouble or "another thread is writing"
            raise StreamlogTimeoutError(f"a record of {lane.name} is not written yet: {reason}")
        if lane.turn.locked() or lane.tries or self._is_entered():
            try:
                batch.wait(min(left, PATIENCE))
            except StreamlogTimeoutError:
                return
        if batch.open and not lane.turn.locked():
            self._inside(self._end_if_open, batch)
        if not batch.written and not lane.tries:
            lane.drain(wait=True, until=batch)

    def _end_if_open(self, batch: RecordBatch) -> None:
        if batch.open:
            self._end(batch.lane)

    def _abandon(self, reason: str) -> None:
        """Take nothing more; fail what is left."""
        self._closed_reason = reason
        self._targets = {}
        self._sender.stop()
        self._abandoned = True
        for lane in list(self._active):
            self._give_up(lane)
        self._sender.keeper = None
        self._known_targets = {}  # no circle keeps what is mapped

    def _give_up(self, lane: Lane) -> None:
        """Fail what is left of a lane, unless another thread has its turn: that one comes here afterwards."""
        held: list[bool] = []
        try:
            held.extend(map(lane.turn.acquire, (False,)))
            if not held[0]:
                return
            lane.holder = get_ident()
            for batch in self._inside(self._clear, lane):
                batch.written = True
                batch.finish(ClosedError(f"the producer was closed before the record was written: {self._closed_reason}"))
        finally:
            if True in held:
                lane.holder = 0
                lane.turn.release()

    def _clear(self, lane: Lane) -> list[RecordBatch]:
        """Take everything off a queue.  Under the producer's lock."""
        self._end(lane)
        left = list(lane.queue)
        self.dropped += sum(batch.records for batch in left)
        lane.queue.clear()
        self._active.pop(lane, None)
        return left

    # ---- a thread inside its own `send` ------------------------------------------------------------------------------------

    def _is_entered(self) -> bool:
        """Whether somebody, and maybe this thread, is inside the lock."""
        return self._busy and self._is_inside()

    def _is_inside(self) -> bool:
        """Whether this very thread may be inside the lock: a finalizer or a signal handler brought it here.

        Looked at only where somebody is inside.  A callback that sends is taken for one too: its record goes aside for no time.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and self._is_ours(frame.f_locals.get("self")):
            frame = frame.f_back  # the call that asks is not inside yet
        while frame is not None:
            if frame.f_code in LOCKING and frame.f_locals.get("self") is self:
                return True
            frame = frame.f_back
        return False

    def _is_ours(self, caller: object) -> bool:
        return caller is self or getattr(caller, "producer", None) is self

    def _send_aside(self, target: Target, row: tuple[Any, ...], partition: int | None, on_delivery: Any, size: int) -> Delivery:
        """The record waits in a batch of its own until the `send` that this one is inside of is done (H18)."""
        lane = target.sticky if partition is None else target.lanes[partition]
        batch = RecordBatch(lane, target, size, 4, self._now_ms())
        batch.rows, batch.room = list(row), 0
        batch.memory += RECORD_MEMORY
        batch.deadline = batch.begun + self._linger
        if on_delivery is not None:
            batch.callbacks = ((0, on_delivery),)
        self._aside.append(batch)
        self._sender.expect(0.0)
        return Delivery((batch, 0))

    def _route_aside(self) -> None:
        """Queue what was sent from inside `send`."""
        if self._is_entered():
            return
        for lane in self._inside(self._queue_aside):
            lane.drain()

    def _queue_aside(self) -> list[Lane]:
        """Returns the lanes that got something.  Under the producer's lock."""
        lanes = []
        while self._aside:
            batch = self._aside[0]
            lane = batch.lane
            self._end(lane)
            if not (lane.queue and lane.queue[-1] is batch):  # it is, where an exception broke this off
                self._enqueue(lane, batch)
            self._aside.popleft()
            lanes.append(lane)
        return lanes


LOCKING: set[CodeType] = set()
"""The code that takes the lock: a thread with one of these below it may be inside."""


def takes_the_lock(owner: type) -> None:
    """Note which functions of a class do."""
    functions = (getattr(function, "__code__", None) for function in vars(owner).values())
    LOCKING.update(code for code in functions if code is not None and "_lock" in code.co_names)


takes_the_lock(Accumulator)
