"""Claims of the documents that no other test is about."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest

import streamlog
from arch.test_imports import LAYERS
from docs.pages import PAGES, ROOT, prose_of, tables
from format import reader
from streamlog import cli
from streamlog._format import names
from streamlog._log import recovery, segment
from streamlog._os import files, locks

SOURCE = ROOT / "src" / "streamlog"


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


# README


def test_the_demo_is_what_the_readme_says() -> None:
    numbers = re.search(r"^PARTITIONS, PRODUCERS, CONSUMERS = (\d), (\d), (\d)$", text_of("examples/flights.py"), re.M)
    assert numbers
    words = {"2": "two", "3": "three", "6": "six"}
    partitions, producers, consumers = (words[number] for number in numbers.groups())
    assert f"a topic of {partitions} partitions: {producers} producer processes, {consumers} consumer processes in a group" in prose_of("README.md")
    assert "336,776 flights" in prose_of("README.md")  # which the demo checks


def test_what_is_not_there_is_refused_by_name(log: streamlog.Cluster) -> None:
    for option in ({"retention_ms": 1000}, {"retention_bytes": 1000}):
        with pytest.raises(streamlog.InvalidConfigError, match="retention is not in this version"):
            log.create_topic("t", **option)
    with pytest.raises(streamlog.InvalidConfigError, match="compaction is not in this version"):
        log.create_topic("t", cleanup_policy="compact")
    assert '(`InvalidConfigError`: "retention is not in this version")' in prose_of("README.md")


def test_windows_is_refused() -> None:
    assert "use WSL 2" in run("import sys; sys.platform = 'win32'; import streamlog")


def test_numpy_and_msgpack_are_loaded_when_they_are_needed() -> None:
    loaded = "print(sorted({'numpy', 'msgpack'} & set(sys.modules)));"
    program = (
        f"import sys, streamlog; {loaded} log = streamlog.open('memory://'); log.create_topic('t'); producer = log.producer();"
        f"producer.send('t', b'x').result(); log.consumer('t', auto_offset_reset='earliest').poll(); {loaded} log.close()"
    )
    assert run(program).split("\n")[:2] == ["[]", "['msgpack']"]


def test_a_reader_that_keeps_up_takes_no_lock_and_makes_few_system_calls(log: streamlog.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    log.create_topic("t")
    with log.producer() as producer:
        for _ in range(20):
            producer.send_batch("t", [bytes(1000)] * 500)
    with log.consumer("t", auto_offset_reset="earliest", max_poll_records=100) as consumer:
        consumer.poll()
        calls = {"lock": 0, "populate": 0}

        def counted(name: str, function: object) -> object:
            def call(*arguments: object) -> object:
                calls[name] += 1
                return function(*arguments)  # type: ignore[operator]

            return call

        monkeypatch.setattr(locks, "_held_fcntl", counted("lock", locks._held_fcntl))
        monkeypatch.setattr(files, "populate", counted("populate", files.populate))
        polls = 0
        while consumer.poll():
            polls += 1
        assert polls == 99
        assert calls["lock"] == 0
        assert 0 < calls["populate"] < 20 * 500 * 1100 / segment.FIRST_AHEAD / 4


def test_descriptors_are_as_many_as_the_architecture_page_says(place: Path) -> None:
    def opened() -> int:
        return len(os.listdir("/dev/fd"))

    before = opened()
    with streamlog.open(place / "log") as log:
        assert opened() - before <= 8
        log.create_topic("a")
        few = opened()
        for number in range(20):
            log.create_topic(f"t-{number}", partitions=3)
        assert opened() == few
        with log.producer() as producer:
            producer.send("a", b"x").result()
            assert opened() - few <= 3
    (table,) = (rows for rows in tables(ROOT / "docs/architecture.md") if rows[0][0] == "object")
    rows = {row[0]: row[2] for row in table[2:]}
    assert rows["an open cluster"].startswith("about eight")
    assert rows["a topic; a partition that is read"].startswith("none")
    assert rows["a partition in use"].startswith("up to three")


# The command line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_are_understood(page: Path) -> None:
    for block in re.findall(r"^```\n(.*?)^```$", page.read_text(), re.S | re.M):
        for line in re.findall(r"(?:^|\| )streamlog (.*)$", block, re.M):
            cli._parser().parse_args(shlex.split(line))


# Architecture, crash safety, the format


def test_the_layers_are_those_of_the_imports() -> None:
    block = text_of("docs/architecture.md").partition("## Layers")[2].partition("```\n")[2].partition("```")[0]
    drawn = re.findall(r"(?:^|  )(_\w+|user|types)(?= )", block.replace("types,", "types "), re.M)
    assert drawn == ["user", "_client", "_coord", "_replica", "_log", "_os", "_format", "types"]
    assert {name for name in LAYERS if name.startswith("_")} - {"_version"} == {name for name in drawn if name.startswith("_")}
    assert set(LAYERS["user"]) >= {*drawn, "config", "errors"}
    for upper, lower in zip(drawn, drawn[1:]):
        assert upper in LAYERS["user"]
        assert upper not in LAYERS[lower], "a layer imports one that is drawn above it"


def test_the_order_of_locks_is_told_alike() -> None:
    ranks = ("METADATA", "GROUP", "TRANSACTION", "SYNC", "PARTITION", "TRANSACTION_STATE", "LEADERSHIP")
    assert sorted(ranks, key=lambda name: int(getattr(locks, name))) == list(ranks)
    for page, order in {
        "docs/replication.md": "sync, one replica's log, transaction states, leadership.",
        "docs/architecture.md": "sync, a replica's log (with one broker: the partition), the partition of transaction states, leadership (",
        "docs/crash-safety.md": "sync, partition, the partition of states, leadership;",
    }.items():
        assert f"metadata, group, transactional id, {order}" in prose_of(page)


def test_the_slow_path_is_the_table_of_the_code() -> None:
    (rows,) = (rows[2:] for rows in tables(ROOT / "docs/crash-safety.md") if rows[0][0] == "slot counts")
    facts = [tuple({"yes": True, "no": False, "\N{EN DASH}": None}[cell] for cell in row[:4]) for row in rows]
    assert facts == [row.facts for row in recovery.CASES]


def test_a_transaction_adds_three_states_of_the_size_that_is_told(place: Path) -> None:
    with streamlog.open(place / "log", transaction_state_log_num_partitions=1) as log:
        log.create_topic("t")
        with log.producer(transactional_id="biller") as producer:
            for _ in range(10):
                with producer.transaction():
                    producer.send("t", b"x")
        states = list(reader.read_batches(place / "log" / "broker-0" / "__transaction_state-0"))[-30:]
    assert sum(batch.count for batch in states) == 30
    kinds = [msgpack.unpackb(batch.records()[0].value or b"")[0] for batch in states]
    assert kinds == ["Ongoing", "PrepareCommit", "CompleteCommit"] * 10
    told = re.search(r"A transaction adds three states of some (\d+) bytes to it", prose_of("docs/transactions.md"))
    assert told
    assert 0.8 < sum(batch.length for batch in states) / 30 / int(told[1]) < 1.25


def test_every_hazard_has_a_test_or_is_said_to_have_none() -> None:
    tested = {int(number) for path in (ROOT / "tests").rglob("test_*.py") for number in re.findall(r"def test_h(\d+)_", path.read_text())}
    section = text_of("docs/crash-safety.md").partition("## Hazards, by number")[2]
    listed = {int(number) for number in re.findall(r"\bH(\d+)\b", section)}
    named = {int(n) for path in [*SOURCE.rglob("*.py"), *PAGES] for n in re.findall(r"\bH(\d+)\b", path.read_text())}
    assert named <= tested | listed
    assert tested | listed == set(range(1, max(named) + 1))


def test_every_invariant_is_checked() -> None:
    listed = re.findall(r"^\| (I\d+) \|", text_of("docs/invariants.md"), re.M)
    assert set(listed) == set(re.findall(r'"(I\d+)"', text_of("src/streamlog/_check.py")))


def test_the_tree_is_what_a_cluster_has(place: Path) -> None:
    """Each file of a cluster that was used in every way is drawn, and each one that is drawn is there."""
    (rows,) = (rows[2:] for rows in tables(ROOT / "docs/format.md") if rows[0][0] == "path")
    drawn = [name for row in rows for name in re.findall(r"`([^`]+)`", row[0])]
    drawn += [f"run/{name}" for row in rows if row[0] == "`run/`" for name in re.findall(r"`([^`]+)`", row[1])]
    drawn = [name for name in drawn if name not in ("*.tmp", "*-delete", "run/", "broker-0/<topic>-<partition>.<time (ms)>-damaged/")]
    kinds = {
        "<topic>": r"[\w.-]+", "<partition>": r"\d+", "<base offset, 20 digits>": r"\d{20}", "<offset, 20 digits>": r"\d{20}",
        "<topic id>": "[0-9a-f]{32}", "<broker>": r"\d+", "<hash of its id>": r"[0-9a-f]+", "broker-0": r"broker-\d",
    }  # fmt: skip
    patterns = {}
    for name in drawn:
        pattern = re.escape(name.replace("…", "broker-0/<topic>-<partition>") if "__cluster" not in name else name.replace("…", "broker-0"))
        for kind, meaning in kinds.items():
            pattern = pattern.replace(re.escape(kind), meaning)
        patterns[name] = re.compile(pattern if not pattern.endswith("/") else pattern + ".*")
    found = []
    for where, brokers in (("one", 1), ("three", 3)):
        with streamlog.open(place / where, brokers=brokers) as log:
            log.create_topic("t", segment_bytes=4096, replication_factor=brokers)
            with log.producer(transactional_id="x") as producer:
                for _ in range(10):
                    with producer.transaction():
                        producer.send("t", bytes(1000))
            with log.consumer("t", group_id="g", auto_offset_reset="earliest") as consumer:
                consumer.poll()
                consumer.commit()
            if brokers == 3:
                log.stop_broker(log.topic("t").describe().partitions[0].leader)
                log.create_topic("u")
                with log.producer() as producer:
                    producer.send("t", b"x").result()
            found += [str(path.relative_to(place / where)) for path in (place / where).rglob("*") if path.is_file()]
        found += [str(path.relative_to(place / where)) for path in (place / where).rglob("*") if path.is_file()]
    exact = {name: pattern for name, pattern in patterns.items() if not name.endswith("/")}
    assert {path for path in found if not any(pattern.fullmatch(path) for pattern in exact.values())} == set()
    later = {f"…/{names.OFFSETS_SNAPSHOT}", f"…/{names.TRANSACTIONS_SNAPSHOT}"}  # of longer logs
    assert {name for name, pattern in patterns.items() if not any(pattern.fullmatch(path) for path in found)} == later
