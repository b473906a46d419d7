"""`Quorum`: the metadata log of a cluster with several brokers, a copy in each, committed by a majority (Raft's two rules; H41).

All writers hold the metadata lock and write in the present controller epoch to the copy that leads it; the others copy from it, as followers do.
A record counts, and is shown, when a majority of the copies has it on its disk.  A new controller epoch begins where nobody knows how far the
log is committed (since a boot), and where the leading copy failed:

- of a readable majority the copy with the greatest (epoch of its last record, end) leads: it has all that was committed;
- its epoch is above every one that a copy of a majority has promised or written, and promised by a majority before it is used, so that it is
  used once (`quorum-state` in each copy);
- nothing is committed before a record of its own epoch is on a majority: an older record there might be overruled by one of an epoch between.

A disk may hang in any call: what touches a copy's disk runs on a thread of its own, and is not waited for for ever (H40).
tests/model/quorum.py searches this protocol exhaustively.
"""

from __future__ import annotations

from _thread import allocate_lock, get_ident, start_new_thread
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any

    from streamlog._log.partition import PartitionLog
    from streamlog._log.state import Slot
    from streamlog._os.files import FileSystem
    from streamlog._os.locks import ByteLock, LockFile
    from streamlog.errors import CorruptRecordError, UnsupportedFormatError

from streamlog._format import batch as fmt
from streamlog._format import names
from streamlog._log.pending import Pending
from streamlog._log.state import DIRECTORY, EPOCH, FAILED, HWM
from streamlog._os import files, locks, process
from streamlog._os.clock import left, monotonic, sleep
from streamlog._os.locks import under
from streamlog._replica import blame, leadership
from streamlog._replica.again import NeedsControllerError
from streamlog._replica.leadership import APPLYING, PLACE, STABLE, VERSION, epoch_of, leader_of
from streamlog._replica.replicas import MovedError, Replicas, cut_before_damage, first_damage
from streamlog.errors import DiskFailedError, NotEnoughReplicasError, StorageFullError, StreamlogError, StreamlogTimeoutError

_BROKEN = (*blame.BROKEN, *blame.DAMAGED)
_PAUSE = 0.002  # seconds
_PATIENCE = 1.0  # seconds that a copy's disk is waited for once a majority has answered


class Quorum(Replicas):
    """Everything that changes something is called under the metadata lock."""

    def __init__(
        self, fs: FileSystem, topic_id: bytes, slot: Slot, lock_file: LockFile, lock_byte: int, on: Callable[[int], PartitionLog],
        voters: Callable[[], list[int]], is_out: Callable[[int], str], longest_ms: int, lock: ByteLock,
        now_ms: Callable[[], int],
    ) -> None:  # fmt: skip
        """`lock` is the metadata lock; `voters` are all copies, `is_out` says of which nothing can be expected: that they "failed",
        or are "stopped"; empty: neither.

        A disk that does not answer for `longest_ms` hangs.
        """
        super().__init__(names.METADATA_TOPIC, topic_id, 0, slot, lock_file, lock_byte, on)
        self.fs, self.voters, self._is_out = fs, voters, is_out
        self._longest, self._metadata_lock, self._now_ms = longest_ms / 1000, lock, now_ms
        self._back: set[int] = set()  # copies of brokers that are about to be online again
        self._busy: dict[int, float] = {}  # copies whose disk has not answered yet, and since when it is asked
        self.failures: dict[int, Exception] = {}
        """What went wrong with copies since somebody looked."""

    def _any(self) -> int:
        return self.voters()[0]

    @property
    def majority(self) -> int:
        """Copies that make a majority."""
        return len(self.voters()) // 2 + 1

    # ---- as a log ------------------------------------------------------------------------------------------------------------

    def ensure_valid(self, timeout: float) -> None:
        """For readers: nothing to see to; `catch_up` was called when the cluster was opened."""

    def is_begun(self) -> bool:
        """Whether a controller epoch was begun since the boot: the high watermark counts."""
        words = self.leadership
        return bool(words[VERSION]) and not words[APPLYING] and leader_of(words[PLACE]) in self.voters()

    def append(self, batch: Pending, timeout: float) -> None:
        """Write records; they are on the disks of a majority when this returns.

        Raises: NotEnoughReplicasError, StorageFullError: nobody knows whether they will count.
        """
        deadline, place = monotonic() + timeout, self.leadership[PLACE]
        try:
            self._on_leader(place, partial(self.write, batch, place, left(deadline)), deadline)
            self._commit(place, deadline)
        except _LeaderFailedError:
            self._begin_epoch(deadline, batch)

    def wait_synced(self, batch: Pending, timeout: float) -> None:
        """`append` did so."""

    def sync(self, timeout: float) -> None:
        """What is shown is on the disks of a majority."""

    def catch_up(self, timeout: float) -> None:
        """Commit what a writer that died left behind; begin a controller epoch where there is none, or the copy that leads is gone."""
        deadline = monotonic() + timeout
        self.failures.clear()
        try:
            if not self.is_begun() or not self._is_there(self.replica):
                self._begin_epoch(deadline)
            elif self.is_unsettled():
                place = self.leadership[PLACE]
                self._on_leader(place, partial(self.replica.catch_up, left(deadline)), deadline)
                self._commit(place, deadline)
        except _LeaderFailedError:
            self._begin_epoch(deadline)

    def mend(self, replica: PartitionLog, error: Exception, offset: int, timeout: float) -> bool:
        """Reading the copy that leads failed: another one leads from now on.

        Raises: NeedsControllerError: this thread is inside another lock, and cannot take that of the metadata.
        """
        if replica is self.replica:
            if locks.is_own(self._metadata_lock):
                self._replace(replica, timeout)
            elif get_ident() in locks.inside:
                raise NeedsControllerError(f"{self.name}: {error}", lambda: self.mend(replica, error, offset, max(timeout, 1.0)))
            else:
                under(self._metadata_lock, timeout, self._replace, replica, timeout)
        return self.replica is not replica

    def _replace(self, replica: PartitionLog, timeout: float) -> None:
        if self.replica is replica:
            self.failures.clear()
            self.failures[leader_of(self.leadership[PLACE])] = DiskFailedError(f"{replica.directory} cannot be read")
            self._begin_epoch(monotonic() + timeout)

    def _is_there(self, copy: PartitionLog) -> bool:
        """Whether a copy's directory is the one that was written to: else what is written and synced is nowhere (H8)."""
        try:
            return self.fs.stat(copy.directory).st_ino == copy.words[DIRECTORY]
        except OSError:
            return False

    # ---- committing ------------------------------------------------------------------------------------------------------------

    def _commit(self, place: int, deadline: float) -> None:
        """Bring the leading copy's log to the disks of a majority, then show it."""
        leader = self.on(leader_of(place))
        end = leader.words[HWM]

        def follow(broker: int) -> Callable[[], None]:
            def work() -> None:
                copy = self.on(broker)
                if broker != leader_of(place):
                    if copy.words[FAILED]:
                        under(copy.lock, left(deadline), copy.revive)  # a sync failed once: what it should have covered is written anew
                    while not self.fetch(broker, place, left(deadline)):
                        pass
                copy.sync(left(deadline))
                if not self._is_there(copy):
                    raise DiskFailedError(f"{copy.directory} is gone")

            return work

        out = {broker: self._is_out(broker) for broker in self.voters() if broker != leader_of(place) and broker not in self._back}
        wanted = [broker for broker in self.voters() if not out.get(broker)]
        if len(wanted) < self.majority:  # what failed may work again by now
            wanted = [broker for broker in self.voters() if out.get(broker) != "stopped"]
        answers = self._ask({broker: follow(broker) for broker in wanted}, deadline, self.majority)
        errors = {broker: answer for broker, answer in answers.items() if isinstance(answer, Exception)}
        if leader_of(place) in errors or any(blame.owner_of(error) == leader_of(place) for error in errors.values()):
            raise _LeaderFailedError
        done = [broker for broker, answer in answers.items() if not isinstance(answer, Exception)]
        if len(done) < self.majority:
            self._refuse(answers, "have it")
        words = self.leadership
        words[HWM] = words[STABLE] = max(words[HWM], end)
        self.ring()

    def _refuse(self, answers: dict[int, Any], what: str) -> None:
        errors = {broker: answer for broker, answer in answers.items() if isinstance(answer, Exception)}
        full = next((error for error in errors.values() if isinstance(error, StorageFullError)), None)
        if full is not None:
            raise full
        done = len(answers) - len(errors)
        said = "; ".join(f"{_name(broker)}: {error}" for broker, error in sorted(errors.items())) or "the others are out"
        raise NotEnoughReplicasError(f"{done} of {len(self.voters())} copies of the metadata {what}, {self.majority} are wanted: {said}")

    def _on_leader(self, place: int, work: Callable[[], object], deadline: float) -> None:
        broker = leader_of(place)
        answers = self._ask({broker: work}, deadline, 1)
        answer = answers.get(broker)
        if not answers or isinstance(answer, (MovedError, StreamlogTimeoutError, *_BROKEN)):
            raise _LeaderFailedError
        if isinstance(answer, Exception):
            raise answer

    def _ask(self, wanted: dict[int, Callable[[], Any]], deadline: float, enough: int) -> dict[int, Any]:
        """Have each copy do something, on a thread of its own: their answers or errors.

        Once `enough` have done it the others have a moment more; who has not answered then is left out, and not asked until it has.
        """
        answers: dict[int, Any] = {}
        gate = allocate_lock()
        gate.acquire()

        def run(broker: int, work: Callable[[], Any]) -> None:
            try:
                answers[broker] = work()
            except Exception as error:  # told to who asked
                answers[broker] = error
            finally:
                self._busy.pop(broker, None)
                try:
                    gate.release()
                except RuntimeError:
                    pass

        while sum(broker not in self._busy for broker in wanted) < min(enough, len(wanted)) and monotonic() < deadline:
            if all(self._hangs(broker) for broker in wanted if broker in self._busy):
                break
            sleep(_PAUSE)  # slow, or asked by another call that gave up
        asked = [broker for broker in wanted if broker not in self._busy]
        for broker in asked:
            self._busy[broker] = monotonic()
            start_new_thread(run, (broker, wanted[broker]))
        until = min(deadline, monotonic() + self._longest)
        late = until
        while len(answers) < len(asked):
            if sum(not isinstance(answer, Exception) for answer in list(answers.values())) >= enough:
                late = min(late, monotonic() + _PATIENCE)
            if monotonic() >= late:
                break
            gate.acquire(True, max(0.001, min(late - monotonic(), 0.05)))
        found = dict(answers)
        for broker in wanted:
            if broker not in found:
                if self._hangs(broker):
                    self.failures[broker] = DiskFailedError(f"the disk of {_name(broker)} does not answer")
            elif isinstance(found[broker], _BROKEN):
                owner = blame.owner_of(found[broker])
                self.failures[broker if owner is None else owner] = found[broker]
        return found

    def _hangs(self, broker: int) -> bool:
        """Whether a copy's disk has not answered for so long that it counts as failed."""
        return broker in self._busy and monotonic() - self._busy[broker] >= 0.9 * self._longest

    # ---- a new controller epoch ------------------------------------------------------------------------------------------------

    def _begin_epoch(self, deadline: float, batch: Pending | None = None) -> None:
        """Choose the copy that leads, promise an epoch, and commit a record of it; with it a `batch` that another copy did not take."""
        words = self.leadership
        while True:
            place = self._choose(deadline)
            words[APPLYING] = process.token()
            words[PLACE] = place
            for copy in {*self._replicas.values(), *map(self.on, self.voters())}:
                copy.store_turn()
            try:
                for each in (self._first_record(place), batch):
                    if each is not None:
                        self._on_leader(place, partial(self.write, each, place, left(deadline)), deadline)
                self._commit(place, deadline)
            except _LeaderFailedError:
                continue  # it is among the failures now: another one
            words[VERSION] = epoch_of(place)  # only now: who finds it begun may commit what stands in the log
            words[APPLYING] = 0
            return

    def _choose(self, deadline: float) -> int:
        """The place of a new controller: the best copy of a majority that can be read, and an epoch that a majority has promised."""
        answers = self._ask({broker: self._looker(broker, deadline) for broker in self.voters()}, deadline, len(self.voters()))
        seen = {broker: answer for broker, answer in answers.items() if not isinstance(answer, Exception) and broker not in self.failures}
        if len(seen) < self.majority:
            self._refuse(answers, "can be read")
        epoch = max(promised for promised, _, _ in seen.values()) + 1
        answers = self._ask({broker: self._promiser(broker, epoch) for broker in seen}, deadline, self.majority)
        kept = {broker: seen[broker] for broker, answer in answers.items() if not isinstance(answer, Exception)}
        if len(kept) < self.majority:
            self._refuse(answers, "can be written")
        return leadership.place(max(kept, key=lambda broker: (kept[broker][1:], -broker)), epoch)

    def _first_record(self, place: int) -> Pending:
        """What a controller epoch begins with."""
        import msgpack  # here: 4 ms of a cold start

        batch = Pending()
        batch.attributes, batch.columns = fmt.encode_rows([msgpack.packb(["LeaderChangeRecord", leader_of(place), epoch_of(place)])])
        batch.count = 1
        batch.base_timestamp = batch.max_timestamp = self._now_ms()
        return batch

    def _looker(self, broker: int, deadline: float) -> Callable[[], tuple[int, int, int]]:
        def look() -> tuple[int, int, int]:
            """Highest epoch that a copy has heard of, epoch of its last record, and its end."""
            copy = self.on(broker)
            under(copy.lock, left(deadline), copy.revive)
            end = copy.words[HWM]
            return max(self._promise(broker), copy.words[EPOCH]), copy.leader_epochs().last_before(end), end

        return look

    def _promise_path(self, broker: int) -> str:
        return f"{self.on(broker).directory}/{names.QUORUM_STATE}"

    def _promise(self, broker: int) -> int:
        import json

        try:
            return int(json.loads(files.read_file(self.fs, self._promise_path(broker)))["leaderEpoch"])
        except FileNotFoundError:
            return 0

    def _promiser(self, broker: int, epoch: int) -> Callable[[], None]:
        def promise() -> None:
            import json

            path = self._promise_path(broker)
            data = json.dumps({"data_version": 0, "leaderEpoch": epoch}).encode()
            files.write_whole(self.fs, path, data, temporary=f"{path}{names.TEMPORARY}")

        return promise

    def rejoin(self, broker: int, timeout: float) -> None:
        """A copy comes back: bring it up to date.  Raises what its disk does."""
        deadline = monotonic() + timeout
        place = self.leadership[PLACE]
        copy = self.on(broker)

        def work() -> None:
            under(copy.lock, left(deadline), copy.revive)
            while broker != leader_of(place) and not self.fetch(broker, place, left(deadline)):
                pass
            copy.sync(left(deadline))

        answers = self._ask({broker: work}, deadline, 1)
        answer = answers.get(broker, DiskFailedError(f"the disk of {_name(broker)} does not answer"))
        if isinstance(answer, Exception):
            raise answer
        self._promise_again(broker, epoch_of(place))
        self.failures.pop(broker, None)
        self._back.add(broker)

    def scrub(self, timeout: float) -> dict[int, int]:
        """Read every copy that can be used, and copy anew what is damaged; returns how many records, by copy.

        Raises: CorruptRecordError, UnsupportedFormatError: no copy is sound; NotEnoughReplicasError: those that are sound are no majority.
        """
        deadline = monotonic() + timeout
        self.catch_up(left(deadline))
        there = [broker for broker in self.voters() if not self._is_out(broker)]
        looks = self._ask({broker: partial(first_damage, self.on(broker), left(deadline)) for broker in there}, deadline, len(there))
        damage = {broker: look[1] for broker, look in looks.items() if isinstance(look, tuple)}
        if leader_of(self.leadership[PLACE]) in damage:
            if not any(look is None for look in looks.values()):
                raise damage[leader_of(self.leadership[PLACE])]
            self.failures.update(damage)  # none of them leads
            self._begin_epoch(deadline)
        return {broker: self._copy_anew(broker, error, deadline) for broker, error in damage.items()}

    def _copy_anew(self, broker: int, error: CorruptRecordError | UnsupportedFormatError, deadline: float) -> int:
        copy = self.on(broker)
        before = copy.words[HWM]
        under(copy.lock, left(deadline), cut_before_damage, copy, error.path)
        kept = copy.words[HWM]
        self.rejoin(broker, left(deadline))
        return before - kept

    def left(self, broker: int, timeout: float) -> None:
        """A broker is out: nothing is written to its copy, another one leads."""
        self._back.discard(broker)
        if leader_of(self.leadership[PLACE]) == broker:
            under(self._metadata_lock, timeout, self._replace, self.on(broker), timeout)

    def is_majority(self, copies: Collection[int]) -> bool:
        """Whether these copies could commit something."""
        return len(set(copies) & set(self.voters())) >= self.majority

    def _promise_again(self, broker: int, epoch: int) -> None:
        if self._promise(broker) < epoch:
            self._promiser(broker, epoch)()


class _LeaderFailedError(StreamlogError):
    """The copy that leads cannot be written: another one has to."""


def _name(broker: int) -> str:
    return "the home's copy" if broker == leadership.HOME else f"broker {broker}"
