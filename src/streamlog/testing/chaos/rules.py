"""The rules: pure functions from evidence to violations.  `docs/chaos.md` lists them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, pairwise

from streamlog.testing.chaos.evidence import Evidence, Final, View, Violation
from streamlog.testing.chaos.history import History, id_of, payload
from streamlog.testing.chaos.plan import GROUPS, INPUT, OUTPUT, PLAIN

SLACK = 5.0
"""Seconds that a call may return late: the machine has other things to do."""

RECOVERY = 15.0
"""Seconds in which a broker whose disk works again is online again, or its failure is not held against anybody."""

EXAMPLES = 5
"""Messages name so many examples."""

Rule = Callable[[Evidence], Iterator[str]]


def some(found: Iterable[object]) -> str:
    """The first few of what was found, and how many there are."""
    listed = list(found)
    return f"{len(listed)}, such as {', '.join(map(str, listed[:EXAMPLES]))}"


# ---- records --------------------------------------------------------------------------------------------------------------------


def acknowledged_records_stay(evidence: Evidence) -> Iterator[str]:
    """An acknowledged record is where its producer was told, with its value: in every view, unless its transaction was aborted."""
    deleted = evidence.deleted()
    for view in evidence.final.views:
        there = {(topic, partition, offset): value for topic, partition, offset, value in view.all()}
        lost, other = [], []
        for ack in evidence.acks:
            send = evidence.sends[ack.record_id]
            if send.topic in deleted or (view.committed and evidence.outcome_of(ack.record_id) not in (None, "committed")):
                continue
            if not _is_replicated(view, send.topic, ack.partition):
                continue
            value = there.get((send.topic, ack.partition, ack.offset))
            if value is None:
                lost.append(f"{ack.record_id} at {send.topic}-{ack.partition}:{ack.offset}")
            elif value != payload(ack.record_id):
                other.append(f"{ack.record_id} at {send.topic}-{ack.partition}:{ack.offset}, where {value[:40]!r} is")
        if lost:
            yield f"{view.name}: acknowledged and not there: {some(lost)}"
        if other:
            yield f"{view.name}: acknowledged, and another record is there: {some(other)}"


def _is_replicated(view: View, topic: str, partition: int) -> bool:
    """Whether a view must show a partition: a replica's view shows only what its broker has a replica of."""
    return partition in view.records.get(topic, {}) or not view.name.startswith("replica")


def records_were_sent(evidence: Evidence) -> Iterator[str]:
    """Every record was sent by somebody, to this topic, with this value."""
    for view in evidence.final.views:
        wrong = []
        for topic, partition, offset, value in view.all():
            send = evidence.sends.get(id_of(value))
            if send is None or send.topic != topic or value != payload(id_of(value)):
                wrong.append(f"{value[:40]!r} at {topic}-{partition}:{offset}")
        if wrong:
            yield f"{view.name}: nobody sent {some(wrong)}"


def nothing_is_there_twice(evidence: Evidence) -> Iterator[str]:
    """A record of an idempotent or transactional producer is there at most once; offsets rise."""
    for view in evidence.final.views:
        counts = Counter(id_of(value) for _, _, _, value in view.all())
        twice = [record_id for record_id, count in counts.items() if count > 1 and _is_idempotent(evidence, record_id)]
        if twice:
            yield f"{view.name}: there twice: {some(twice)}"
        for topic, partitions in view.records.items():
            for partition, records in partitions.items():
                if any(first >= second for (first, _), (second, _) in pairwise(records)):
                    yield f"{view.name}: offsets of {topic}-{partition} do not rise"


def _is_idempotent(evidence: Evidence, record_id: str) -> bool:
    send = evidence.sends.get(record_id)
    facts = None if send is None else evidence.producers.get(send.producer)
    return facts is not None and (facts.idempotent or facts.transactional)


def order_is_kept(evidence: Evidence) -> Iterator[str]:
    """The records of a producer are in each partition in the order in which they were sent; a repeated one counts where it is first."""
    for view in evidence.final.views:
        wrong = []
        for topic, partitions in view.records.items():
            for partition, records in partitions.items():
                last: dict[str, int] = {}
                seen: set[str] = set()
                for offset, value in records:
                    record_id = id_of(value)
                    send = evidence.sends.get(record_id)
                    if send is None or record_id in seen:
                        continue
                    seen.add(record_id)
                    if evidence.order[record_id] < last.get(send.producer, -1):
                        wrong.append(f"{record_id} at {topic}-{partition}:{offset}")
                    last[send.producer] = evidence.order[record_id]
        if wrong:
            yield f"{view.name}: after a record that was sent later: {some(wrong)}"


def all_views_agree(evidence: Evidence) -> Iterator[str]:
    """Whoever leads, and whichever replica is read: the same records are at the same offsets."""
    for committed in (False, True):
        views = [view for view in evidence.final.views if view.committed == committed]
        for view in views[1:]:
            for topic, partitions in view.records.items():
                for partition, records in partitions.items():
                    expected = views[0].records.get(topic, {}).get(partition)
                    if expected is not None and list(records) != list(expected):
                        differing = sorted(set(records) ^ set(expected))
                        places = [f"offset {offset}: {value[:30]!r}" for offset, value in differing]
                        yield f"{view.name} and {views[0].name} differ in {topic}-{partition}: {some(places)}"


# ---- transactions -----------------------------------------------------------------------------------------------------------------


def transactions_are_whole(evidence: Evidence) -> Iterator[str]:
    """Committed readers see all records of a transaction or none; all of one whose commit returned."""
    sent: dict[tuple[str, int], list[str]] = defaultdict(list)
    for record_id in evidence.sends:
        if (transaction := evidence.transaction_of(record_id)) is not None:
            sent[transaction].append(record_id)
    for view in evidence.final.views:
        if not view.committed:
            continue
        there = {id_of(value) for _, _, _, value in view.all()}
        for transaction, ids in sent.items():
            seen = [record_id for record_id in ids if record_id in there]
            outcome = evidence.outcomes.get(transaction, "begin")
            if seen and len(seen) < len(ids):
                yield f"{view.name}: of transaction {transaction} ({outcome}) {len(seen)} of {len(ids)} records are there, not {ids[0]}…"
            elif outcome == "committed" and not seen:
                yield f"{view.name}: transaction {transaction} was committed, and nothing of it is there"


def aborted_records_are_never_seen(evidence: Evidence) -> Iterator[str]:
    """Committed readers see nothing of a transaction that was aborted, or that was never to be committed."""
    for view in evidence.final.views:
        if view.committed:
            wrong = [
                f"{id_of(value)} ({outcome}) at {topic}-{partition}:{offset}"
                for topic, partition, offset, value in view.all()
                if (outcome := evidence.outcome_of(id_of(value))) in ("aborted", "begin")
            ]
            if wrong:
                yield f"{view.name}: of transactions without a commit: {some(wrong)}"
    if evidence.final.hanging:
        yield f"open transactions are left: {some(evidence.final.hanging)}"


def each_input_has_one_output(evidence: Evidence) -> Iterator[str]:
    """Each record of the input that committed readers see has exactly one in the output; the output has no other."""
    inputs = evidence.committed_ids(INPUT)
    outputs = Counter(record_id.partition("!")[0] for record_id in evidence.committed_ids(OUTPUT))
    if more := [record_id for record_id, count in outputs.items() if count > 1]:
        yield f"inputs that were processed more than once: {some(more)}"
    if missing := sorted(inputs - outputs.keys()):
        yield f"inputs that were not processed: {some(missing)}"
    if foreign := sorted(outputs.keys() - inputs):
        yield f"outputs of inputs that are not there: {some(foreign)}"


# ---- groups -----------------------------------------------------------------------------------------------------------------------


def committed_offsets_never_go_back(evidence: Evidence) -> Iterator[str]:
    """What one look at a group shows is never less, or gone, in a look that began after the first one had ended."""
    looks: dict[str, list[tuple[float, float, dict[tuple[str, int], int]]]] = defaultdict(list)
    for event in evidence.of("group"):
        offsets = {(topic, partition): offset for topic, partition, offset in event["offsets"]}
        looks[event["group"]].append((event["asked"], event["at"], offsets))
    for group, found in looks.items():
        highest: dict[tuple[str, int], int] = {}
        ended = sorted(found, key=lambda look: look[1])
        at = 0
        for asked, _, offsets in sorted(found, key=lambda look: look[0]):
            while at < len(ended) and ended[at][1] < asked:
                for tp, offset in ended[at][2].items():
                    highest[tp] = max(highest.get(tp, 0), offset)
                at += 1
            for tp, offset in highest.items():
                if offsets.get(tp, -1) < offset:
                    yield f"group {group}, {tp[0]}-{tp[1]}: {offset}, then {offsets.get(tp, 'nothing')}"
    for event in evidence.of("reset"):
        if event["wanted"] != event["found"]:
            yield f"group {event['group']}: set to {event['wanted']}, read back as {event['found']}"


def a_partition_has_one_owner(evidence: Evidence) -> Iterator[str]:
    """In no look at a group do two members own one partition."""
    for event in evidence.of("group"):
        owners: dict[tuple[str, int], str] = {}
        for member, partitions in event["members"]:
            for topic, partition in partitions:
                if (other := owners.setdefault((topic, partition), member)) != member:
                    yield f"group {event['group']}: {topic}-{partition} is owned by {other} and {member}"


def what_is_committed_was_processed(evidence: Evidence) -> Iterator[str]:
    """Members of a group processed every record below its committed offset, and at the end every record."""
    processed: dict[tuple[str, str, int], list[tuple[int, int]]] = defaultdict(list)
    for event in evidence.of("processed"):
        for topic, partition, found in event["at_offsets"]:
            processed[event["group"], topic, partition] += [(first, last) for first, last in found]
    committed: dict[tuple[str, str, int], int] = defaultdict(int)
    for event in evidence.of("group"):
        for topic, partition, offset in event["offsets"]:
            key = event["group"], topic, partition
            committed[key] = max(committed[key], offset)
    for group, plan in GROUPS.items():
        view = next((view for view in evidence.final.views if view.committed == (plan.isolation_level == "read_committed")), None)
        for partition, records in ({} if view is None else view.records.get(PLAIN, {})).items():
            key = group, PLAIN, partition
            visible = [offset for offset, _ in records]
            missing = _not_covered(visible, processed[key])
            below = [offset for offset in missing if offset < committed[key]]
            if below:
                yield f"group {group}: {PLAIN}-{partition} is committed up to {committed[key]}, and nobody processed {some(below)}"
            elif missing:
                yield f"group {group}: nobody processed in {PLAIN}-{partition} {some(missing)}"


def _not_covered(offsets: list[int], covered: list[tuple[int, int]]) -> list[int]:
    """Rising offsets that are in none of the ranges."""
    missing, at = [], 0
    ordered = sorted(covered)
    reach = -1
    for offset in offsets:
        while at < len(ordered) and ordered[at][0] <= offset:
            reach = max(reach, ordered[at][1])
            at += 1
        if offset > reach:
            missing.append(offset)
    return missing


# ---- the cluster ------------------------------------------------------------------------------------------------------------------


def topics_stay_as_they_were_made(evidence: Evidence) -> Iterator[str]:
    """A topic that was created, and that nobody deleted, is there; one that was deleted is not."""
    there, deleted = set(evidence.final.topics), evidence.deleted()
    created = {event["topic"] for event in evidence.of("created")}
    gone = {event["topic"] for event in evidence.of("deleted")}
    if missing := sorted(created - deleted - there):
        yield f"created, never deleted, and not there: {some(missing)}"
    if back := sorted(gone & there):
        yield f"deleted, and there: {some(back)}"


def waits_are_bounded(evidence: Evidence) -> Iterator[str]:
    """A call returns within its time-out and some slack; the time in which its own process was stopped does not count."""
    late: dict[str, list[str]] = defaultdict(list)
    for call in evidence.calls():
        ended = call.ended if call.ended is not None else evidence.died(call.history)
        if ended == float("inf"):
            ended = call.history.events[-1]["at"]
        took = ended - call.began - _overlap(evidence.stopped(call.history), call.began, ended)
        if took > call.bound + SLACK:
            never = "" if call.ended is not None else ", and had not returned"
            late[call.name].append(f"{call.history.name}: {took:.1f} s at {call.began:.3f}{never}")
    for name, found in late.items():
        yield f"{name} took longer than it may: {some(found)}"


def _overlap(intervals: list[tuple[float, float]], began: float, ended: float) -> float:
    return sum(max(0.0, min(end, ended) - max(start, began)) for start, end in intervals)


def nobody_crashes(evidence: Evidence) -> Iterator[str]:
    """No call raises what is not the library's own error, and no process dies of a signal that the parent did not send."""
    crashes: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for history in evidence.workers:
        for event in history.events:
            if event["event"] == "crash":
                trace = event["text"].rstrip()
                crashes[trace.rpartition("\n")[2]].append((history.name, trace))
    for error, found in crashes.items():
        yield f"{error}: {some(name for name, _ in found)}\n{_shortened(found[0][1])}"
    for event in evidence.nemesis:
        if event["event"] == "exited" and event["code"] < 0 and not event["expected"]:
            yield f"{event['worker']}.{event['life']} died of signal {-event['code']}, which nobody sent"


def _shortened(trace: str) -> str:
    """A traceback without its source lines."""
    return "\n".join(line for line in trace.splitlines() if line.startswith("  File") or not line.startswith(" "))


DISK_ERRORS = {"DiskFailedError", "StorageFullError", "CorruptRecordError", "NotAClusterError", "UnsupportedFormatError", "StorageError"}
HARMED_BY_ITSELF = {"limited", "faulty"}


def errors_stay_where_they_belong(evidence: Evidence) -> Iterator[str]:
    """Who works on a disk that works gets no error of a disk, and a broker fails only if its disk did."""
    faults = list(_faults(evidence))
    for history in evidence.workers:
        if history.kind in HARMED_BY_ITSELF:
            continue
        wrong = [
            f"{event['error']} in {event.get('what', 'a delivery')}: {event['text']}"
            for event in history.events
            if event["event"] in ("trouble", "failed") and event["error"] in DISK_ERRORS and not _is_excused(faults, event["at"], None)
        ]
        if wrong:
            yield f"{history.name} was told of a disk though none had failed: {some(wrong[:2])}"
    failed = {
        f"broker {broker} ({reason})"
        for event in evidence.of("brokers")
        for broker, state, reason in event["brokers"]
        if state == "failed" and not _is_excused(faults, event["at"], broker)
    }
    if failed:
        yield f"brokers failed, and their disks did not: {some(sorted(failed))}"


def _faults(evidence: Evidence) -> Iterator[tuple[float, float, int | None]]:
    """When disks did not work: from, to, and the broker (None: the only one)."""
    since: dict[int | None, float] = {}
    for event in sorted(evidence.nemesis, key=lambda event: event["at"]):
        if event["event"] == "outage":
            since.setdefault(event["broker"], event["at"])
        elif event["event"] == "outage over" and event["broker"] in since:
            yield since.pop(event["broker"]), event["at"], event["broker"]
    for broker, begun in since.items():
        yield begun, float("inf"), broker


def _is_excused(faults: list[tuple[float, float, int | None]], at: float, broker: int | None) -> bool:
    """Whether a disk (of this broker, where one is named) had failed not long before."""
    return any(begun <= at <= ended + RECOVERY and (broker is None or whose in (broker, None)) for begun, ended, whose in faults)


def the_check_is_clean(evidence: Evidence) -> Iterator[str]:
    """`streamlog.check` finds nothing, during the run and at its end; a repair finds nothing to repair."""
    for invariant, found in groupby(sorted(map(list, evidence.final.findings)), key=lambda finding: finding[0]):
        yield f"at the end, {invariant}: {some([f'{path}: {message}' for _, path, message in found])}"
    faults = list(_faults(evidence))
    for event in evidence.of("checked"):
        if event["findings"] and not _is_excused(faults, event["at"], None):  # what is away is missing
            yield f"during the run: {some(event['findings'])}"
    for event in evidence.of("repaired"):
        if event["replicas"]:
            yield f"a repair found damage: {event['replicas']}"


def the_end_is_reached(evidence: Evidence) -> Iterator[str]:
    """With nobody there who disturbs it the cluster works off what is left, and shows everything."""
    yield from evidence.final.problems
    for event in evidence.nemesis:
        if event["event"] == "did not end":
            yield f"{event['name']} was told to end, and had not {event['seconds']:.0f} s later"


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        acknowledged_records_stay, records_were_sent, nothing_is_there_twice, order_is_kept, all_views_agree, transactions_are_whole,
        aborted_records_are_never_seen, each_input_has_one_output, committed_offsets_never_go_back, a_partition_has_one_owner,
        what_is_committed_was_processed, topics_stay_as_they_were_made, waits_are_bounded, nobody_crashes, errors_stay_where_they_belong,
        the_check_is_clean, the_end_is_reached,
    )
}  # fmt: skip


def check(histories: Iterable[History], final: Final) -> list[Violation]:
    """Apply all rules; an empty list means that nothing is wrong."""
    evidence = Evidence(histories, final)
    return [Violation(name, message) for name, rule in RULES.items() for message in rule(evidence)]
