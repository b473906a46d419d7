"""Each rule of the chaos harness is seen to fail: a small history in which all is well, and what breaks each rule of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamlog.testing.chaos.evidence import Evidence, Final, View
from streamlog.testing.chaos.history import History, HistoryWriter, id_of, payload, ranges, read_history
from streamlog.testing.chaos.plan import BILLING, GROUPS, INPUT, OUTPUT, PLAIN
from streamlog.testing.chaos.rules import RECOVERY, RULES, SLACK, check
from streamlog.testing.chaos.worker import KINDS

Event = dict[str, Any]


class Story:
    """A run that can be changed before it is checked.

    In `plain`: two records of an idempotent producer, a committed transaction, an aborted one, and two records of a producer that is not
    idempotent.  In `input` one record, and in `output` what an exactly-once loop made of it.
    """

    def __init__(self) -> None:
        self.events: dict[str, list[Event]] = {
            "keyed-0": [
                told("start"),
                told("producer", producer="k", idempotent=True, transactional=False),
                told("send", producer="k", topic=PLAIN, ids=["k.0", "k.1"], transaction=None),
                told("send", producer="k", topic=INPUT, ids=["k.2"], transaction=None),
                told("ack", acks=[["k.0", 0, 0], ["k.1", 0, 1], ["k.2", 0, 0]]),
                told("end"),
            ],
            "transactional-0": [
                told("producer", producer="t", idempotent=True, transactional=True),
                told("begin", producer="t", transaction=0),
                told("send", producer="t", topic=PLAIN, ids=["t.0", "t.1"], transaction=0),
                told("committing", producer="t", transaction=0),
                told("ack", acks=[["t.0", 0, 2], ["t.1", 0, 3]]),
                told("committed", producer="t", transaction=0),
                told("begin", producer="t", transaction=1),
                told("send", producer="t", topic=PLAIN, ids=["t.2"], transaction=1),
                told("ack", acks=[["t.2", 0, 5]]),
                told("aborted", producer="t", transaction=1),
            ],
            "plain-0": [
                told("producer", producer="p", idempotent=False, transactional=False),
                told("send", producer="p", topic=PLAIN, ids=["p.0", "p.1", "p.2"], transaction=None),
                told("ack", acks=[["p.0", 0, 7], ["p.1", 0, 8]]),
                told("failed", ids=["p.2"], error="StreamlogTimeoutError", text=""),
            ],
            "exactlyonce-0": [
                told("producer", producer="e", idempotent=True, transactional=True),
                told("begin", producer="e", transaction=0),
                told("send", producer="e", topic=OUTPUT, ids=["k.2!e.0"], transaction=0),
                told("committing", producer="e", transaction=0),
                told("committed", producer="e", transaction=0),
            ],
            "group-0": [told("processed", group=group, at_offsets=[[PLAIN, 0, [[0, 3], [5, 5], [7, 8]]]]) for group in GROUPS],
            "observer-0": [
                look(1.0, 1.1, "sharing", [["m", [[PLAIN, 0]]]], 2),
                look(2.0, 2.1, "sharing", [["m", []], ["n", [[PLAIN, 0]]]], 9),
                look(1.0, 1.1, BILLING, [], 1),
                told("brokers", brokers=[[0, "online", ""]]),
                told("checked", findings=[]),
                told("repaired", replicas={}),
                told("reset", group="mine", wanted=3, found=3),
                told("created", topic="made"),
                told("created", topic="gone"),
                told("deleting", topic="gone"),
                told("deleted", topic="gone"),
            ],
            "nemesis-0": [],
        }
        everything = [(0, "k.0"), (1, "k.1"), (2, "t.0"), (3, "t.1"), (5, "t.2"), (7, "p.0"), (8, "p.1")]
        rest = {INPUT: {0: values([(0, "k.2")])}, OUTPUT: {0: values([(0, "k.2!e.0")])}}
        self.views = {
            "read_uncommitted": {PLAIN: {0: values(everything)}, **rest},
            "read_committed": {PLAIN: {0: values([record for record in everything if record[1] != "t.2"])}, **rest},
            "replica on broker 1": {PLAIN: {0: values(everything)}},
        }
        self.final: dict[str, Any] = {"findings": [], "hanging": [], "topics": [PLAIN, INPUT, OUTPUT, "made"], "problems": []}

    def add(self, worker: str, *events: Event) -> None:
        self.events.setdefault(worker, []).extend(events)

    def plain(self, view: str) -> list[tuple[int, str]]:
        return self.views[view][PLAIN][0]

    def evidence(self) -> tuple[list[History], Final]:
        histories = [History("nemesis" if name == "nemesis-0" else name, name.rpartition("-")[0], 0, events) for name, events in self.events.items()]
        views = [View(name, name == "read_committed", records) for name, records in self.views.items()]
        return histories, Final(views, **self.final)

    def broken(self) -> set[str]:
        return {violation.rule for violation in check(*self.evidence())}


def told(event: str, at: float = 1.0, **fields: Any) -> Event:
    return {"event": event, "at": at, **fields}


def look(asked: float, at: float, group: str, members: list[Any], offset: int) -> Event:
    return told("group", at, asked=asked, group=group, generation=1, members=members, offsets=[[PLAIN, 0, offset]])


def values(records: list[tuple[int, str]]) -> list[tuple[int, str]]:
    return [(offset, payload(record_id)) for offset, record_id in records]


def test_nothing_is_wrong_with_the_story_as_it_is() -> None:
    assert check(*Story().evidence()) == []


BAD: list[tuple[str, str, Callable[[Story], object]]] = [
    ("acknowledged_records_stay", "lost", lambda s: s.plain("read_uncommitted").pop()),
    ("acknowledged_records_stay", "lost_on_one_replica", lambda s: s.plain("replica on broker 1").pop(0)),
    ("acknowledged_records_stay", "at_another_offset", lambda s: moved(s.plain("read_committed"), 0, 6)),
    ("acknowledged_records_stay", "another_value", lambda s: changed(s.plain("read_uncommitted"), 1, payload("k.0"))),
    ("acknowledged_records_stay", "of_a_committed_transaction", lambda s: s.plain("read_committed").pop(2)),
    ("records_were_sent", "phantom", lambda s: s.plain("read_uncommitted").append((9, payload("nobody.0")))),
    ("records_were_sent", "damaged_value", lambda s: changed(s.plain("read_uncommitted"), 0, payload("k.0") + "x")),
    ("records_were_sent", "in_another_topic", lambda s: s.plain("read_uncommitted").append((9, payload("k.2")))),
    ("nothing_is_there_twice", "idempotent", lambda s: s.plain("read_uncommitted").append((9, payload("k.1")))),
    ("nothing_is_there_twice", "transactional", lambda s: s.plain("replica on broker 1").append((9, payload("t.0")))),
    ("nothing_is_there_twice", "in_another_partition", lambda s: s.views["read_committed"][PLAIN].update({1: values([(0, "k.1")])})),
    ("nothing_is_there_twice", "one_offset_read_twice", lambda s: s.plain("read_uncommitted").append((8, payload("p.1")))),
    ("order_is_kept", "idempotent", lambda s: swapped(s.plain("read_uncommitted"), 0, 1)),
    ("order_is_kept", "not_idempotent", lambda s: swapped(s.plain("replica on broker 1"), -1, -2)),
    ("all_views_agree", "replica", lambda s: s.plain("replica on broker 1").pop()),
    ("all_views_agree", "another_leader", lambda s: s.views.update({"replica on broker 2": {PLAIN: {0: values([(0, "k.0")])}}})),
    ("transactions_are_whole", "half", lambda s: s.plain("read_committed").pop(3)),
    ("transactions_are_whole", "nothing_of_it", lambda s: s.plain("read_committed").__delitem__(slice(2, 4))),
    ("transactions_are_whole", "half_of_one_that_is_not_known", lambda s: half_of_an_unknown(s)),
    ("aborted_records_are_never_seen", "aborted", lambda s: s.plain("read_committed").insert(4, (5, payload("t.2")))),
    ("aborted_records_are_never_seen", "never_to_be_committed", lambda s: never_committed(s)),
    ("aborted_records_are_never_seen", "left_open", lambda s: s.final["hanging"].append([PLAIN, 0, 9, 1, 1])),
    ("each_input_has_one_output", "none", lambda s: s.views["read_committed"].update({OUTPUT: {0: []}})),
    ("each_input_has_one_output", "two", lambda s: s.views["read_committed"][OUTPUT][0].append((3, payload("k.2!e.1")))),
    ("each_input_has_one_output", "of_no_input", lambda s: s.views["read_committed"].update({INPUT: {0: []}})),
    ("committed_offsets_never_go_back", "less", lambda s: s.add("observer-1", look(3.0, 3.1, "sharing", [], 8))),
    ("committed_offsets_never_go_back", "gone", lambda s: s.add("observer-1", {**look(3.0, 3.1, "sharing", [], 8), "offsets": []})),
    ("committed_offsets_never_go_back", "reset_is_lost", lambda s: s.add("admin-0", told("reset", group="mine", wanted=3, found=2))),
    ("a_partition_has_one_owner", "two", lambda s: s.add("observer-1", look(3.0, 3.1, "sharing", [["a", [[PLAIN, 0]]], ["b", [[PLAIN, 0]]]], 9))),
    ("what_is_committed_was_processed", "skipped", lambda s: s.events["group-0"].__setitem__(0, processed("sharing", [[0, 1], [3, 8]]))),
    ("what_is_committed_was_processed", "the_end_was_never_read", lambda s: s.events["group-0"].__setitem__(1, processed("ranging", [[0, 7]]))),
    ("topics_stay_as_they_were_made", "lost", lambda s: s.final["topics"].remove("made")),
    ("topics_stay_as_they_were_made", "back", lambda s: s.final["topics"].append("gone")),
    ("waits_are_bounded", "late", lambda s: s.add("keyed-0", call(1.0), told("return", 8.1 + SLACK, call="flush", error=""))),
    ("waits_are_bounded", "never", lambda s: (s.add("keyed-0", call(1.0)), s.add("nemesis-0", told("kill", 9.0 + SLACK, worker="keyed-0", life=0)))),
    ("nobody_crashes", "exception", lambda s: s.add("keyed-0", told("crash", text="Traceback\nKeyError: 1"))),
    ("nobody_crashes", "signal", lambda s: s.add("nemesis-0", told("exited", worker="keyed-0", life=0, code=-7, expected=False))),
    ("errors_stay_where_they_belong", "others", lambda s: s.add("keyed-0", told("trouble", what="write", error="DiskFailedError", text=""))),
    ("errors_stay_where_they_belong", "a_delivery", lambda s: s.add("keyed-0", told("failed", ids=["k.0"], error="StorageFullError", text=""))),
    ("errors_stay_where_they_belong", "broker", lambda s: s.add("observer-0", told("brokers", brokers=[[1, "failed", "why"]]))),
    ("errors_stay_where_they_belong", "another_broker", lambda s: another_broker_failed(s)),
    ("the_check_is_clean", "at_the_end", lambda s: s.final["findings"].append(["I1", "path", "message"])),
    ("the_check_is_clean", "meanwhile", lambda s: s.add("admin-0", told("checked", findings=[["I2", "path", "message"]]))),
    ("the_check_is_clean", "repaired", lambda s: s.add("admin-0", told("repaired", replicas={"plain-0 on broker 1": 3}))),
    ("the_end_is_reached", "held_up", lambda s: s.final["problems"].append("the exactly-once loop: not done after 30 s")),
    ("the_end_is_reached", "a_worker", lambda s: s.add("nemesis-0", told("did not end", name="keyed-0.0", seconds=60.0))),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "how", "spoil"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_a_bad_history_breaks_the_rule(rule: str, how: str, spoil: Callable[[Story], object]) -> None:
    story = Story()
    spoil(story)
    assert rule in story.broken()


def test_every_rule_is_seen_to_fail() -> None:
    assert {rule for rule, _, _ in BAD} == set(RULES)


GOOD: list[tuple[str, Callable[[Story], object]]] = [
    ("a_record_that_failed_may_be_there", lambda s: every_view(s, (9, payload("p.2")))),
    ("without_idempotence_a_record_may_be_there_twice", lambda s: every_view(s, (9, payload("p.0")))),
    ("a_commit_that_was_not_confirmed_may_count", lambda s: s.events["transactional-0"].pop(5)),
    ("a_deleted_topic_takes_its_records_along", lambda s: deleted_with_a_record(s)),
    ("a_look_that_began_earlier_may_show_less", lambda s: s.add("observer-1", look(2.05, 3.0, "sharing", [], 8))),
    ("a_stopped_process_may_be_late", lambda s: stopped_in_a_call(s)),
    ("who_ends_because_it_was_told_to_did_not_crash", lambda s: s.add("nemesis-0", told("exited", worker="a-0", life=0, code=-15, expected=True))),
    ("a_disk_that_fails_is_noticed", lambda s: failed_disk(s, 1.0 + RECOVERY)),
    ("who_makes_its_own_trouble_may_have_it", lambda s: s.add("faulty-0", told("trouble", what="write", error="DiskFailedError", text=""))),
    ("what_is_away_is_missing", lambda s: (failed_disk(s, 2.0), s.add("admin-0", told("checked", 1.5, findings=[["I8", "path", "missing"]])))),
]  # fmt: skip


@pytest.mark.parametrize(("how", "change"), GOOD, ids=lambda value: value if isinstance(value, str) else "")
def test_what_may_happen_breaks_no_rule(how: str, change: Callable[[Story], object]) -> None:
    story = Story()
    change(story)
    assert check(*story.evidence()) == []


# ---- what the rows above do to the story


def moved(records: list[tuple[int, str]], number: int, offset: int) -> None:
    records[number] = offset, records[number][1]


def changed(records: list[tuple[int, str]], number: int, value: str) -> None:
    records[number] = records[number][0], value


def swapped(records: list[tuple[int, str]], first: int, second: int) -> None:
    one, two = records[first], records[second]
    records[first], records[second] = (one[0], two[1]), (two[0], one[1])


def processed(group: str, offsets: list[list[int]]) -> Event:
    return told("processed", group=group, at_offsets=[[PLAIN, 0, offsets]])


def call(at: float) -> Event:
    return told("call", at, call="flush", bound=7.0)


def every_view(story: Story, record: tuple[int, str]) -> None:
    for view in story.views:
        story.plain(view).append(record)
    for event in story.events["group-0"]:
        event["at_offsets"][0][2].append([record[0], record[0]])


def half_of_an_unknown(story: Story) -> None:
    story.events["transactional-0"].pop(5)
    story.events["transactional-0"].pop(4)
    for view in story.views:
        story.plain(view).pop(3)


def never_committed(story: Story) -> None:
    del story.events["transactional-0"][3:]


def another_broker_failed(story: Story) -> None:
    failed_disk(story, 1.5)
    story.add("observer-0", told("brokers", 1.2, brokers=[[2, "failed", "another disk"]]))


def deleted_with_a_record(story: Story) -> None:
    story.add("keyed-0", told("send", producer="k", topic="gone", ids=["k.3"], transaction=None), told("ack", acks=[["k.3", 0, 0]]))


def stopped_in_a_call(story: Story) -> None:
    story.add("keyed-0", call(1.0), told("return", 20.0, call="flush", error=""))
    story.add("nemesis-0", told("stop", 2.0, worker="keyed-0", life=0), told("continue", 12.0, worker="keyed-0", life=0))


def failed_disk(story: Story, at: float) -> None:
    story.add("nemesis-0", told("outage", 0.5, what="away", broker=1), told("outage over", 1.0, what="away", broker=1))
    story.add("observer-0", told("brokers", at, brokers=[[1, "failed", "it is away"]]))


# ---- histories


def test_a_line_that_was_being_written_at_a_death_is_passed_over(place: Any) -> None:
    path = place / "keyed-0.3.jsonl"
    writer = HistoryWriter(path)
    with pytest.raises(KeyError), writer.call("flush", 2.0):
        raise KeyError
    with path.open("a") as file:
        file.write('{"event":"ac')
    history = read_history(path)
    assert (history.worker, history.kind, history.life) == ("keyed-0", "keyed", 3)
    assert [(event["event"], event["call"]) for event in history.events] == [("call", "flush"), ("return", "flush")]
    assert history.events[1]["error"] == "KeyError"


def test_a_call_that_never_returned_lasts_until_the_death() -> None:
    events = [call(1.0), told("call", 2.0, call="send", bound=1.0), told("return", 3.0, call="send", error="")]
    found = {each.name: each for each in Evidence([History("keyed-0", "keyed", 0, events)], Final()).calls()}
    assert (found["send"].ended, found["flush"].ended) == (3.0, None)


def test_payloads_tell_their_id() -> None:
    assert id_of(payload("a.1!b.2")) == "a.1!b.2"
    assert payload("a") != payload("b")
    assert ranges([0, 1, 2, 5, 7, 8]) == [(0, 2), (5, 5), (7, 8)]


def test_the_page_lists_every_rule_and_every_kind_of_worker() -> None:
    page = (Path(__file__).parents[2] / "docs" / "chaos.md").read_text()
    listed = set(re.findall(r"^\| `(\w+)` \|", page, re.M))
    assert listed == {*RULES, *KINDS} - {"final"}
