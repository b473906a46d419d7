"""`streamlog brokers`, and what `topics` shows of replicas."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import streamlog


def run(place: Path, *arguments: str, fails: bool = False) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "streamlog", "--location", str(place / "log"), *arguments], capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def cluster(place: Path) -> Path:
    with streamlog.open(place / "log", brokers=3) as log:
        log.create_topic("t", partitions=3, replication_factor=3, min_insync_replicas=2)
        with log.producer() as producer:
            for number in range(9):
                producer.send("t", b"%d" % number, partition=number % 3)
    return place


def table(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_brokers_are_listed_stopped_and_started(cluster: Path) -> None:
    rows = table(run(cluster, "brokers", "list"))
    assert [row[:2] for row in rows[1:]] == [["0", "online"], ["1", "online"], ["2", "online"]]
    run(cluster, "brokers", "stop", "1")
    assert ["1", "stopped"] in [row[:2] for row in table(run(cluster, "brokers", "list"))]
    described = run(cluster, "topics", "describe", "t")
    assert described.count("under-replicated") == 3
    assert "1" not in [row[1] for row in table(described)[2:]], "it leads nothing"
    assert run(cluster, "topics", "describe", "t", "--under-replicated-partitions").count("under-replicated") == 3
    assert run(cluster, "topics", "describe", "--unavailable-partitions") == ""
    assert "cannot be stopped" in run(cluster, "brokers", "stop", "2", fails=True)
    run(cluster, "brokers", "start", "1")
    assert "under-replicated" not in run(cluster, "topics", "describe", "t")
    assert [row for row in table(run(cluster, "brokers", "describe", "1")) if row[0] == "t-1"] == [["t-1", "no", "yes", "ok"]]
    run(cluster, "brokers", "elect")
    assert [row for row in table(run(cluster, "brokers", "describe", "1")) if row[0] == "t-1"] == [["t-1", "yes", "yes", "ok"]]


def test_brokers_are_added_moved_to_and_retired(cluster: Path) -> None:
    assert "broker 3 was added" in run(cluster, "brokers", "add")
    assert "records copied" in run(cluster, "brokers", "reassign", "t-0=3,0,1")
    row = next(row for row in table(run(cluster, "topics", "describe", "t")) if row and row[0] == "0")
    assert (row[1], row[8], row[9]) == ("3", "3,0,1", "0,1,3")
    run(cluster, "brokers", "retire", "2")
    assert [row[0] for row in table(run(cluster, "brokers", "list"))[1:]] == ["0", "1", "3"]
    with streamlog.open(cluster / "log") as log:
        assert streamlog.check(log) == []


def test_a_lost_directory_is_repaired(cluster: Path) -> None:
    os.rename(cluster / "log" / "broker-1", cluster / "away")
    rows = table(run(cluster, "brokers", "list"))
    assert ["1", "failed"] in [row[:2] for row in rows]
    assert "meta.properties is missing" in run(cluster, "brokers", "start", "1", fails=True)
    run(cluster, "brokers", "repair", "1")
    assert "under-replicated" not in run(cluster, "topics", "describe", "t")
    assert run(cluster, "brokers", "scrub") == "0 damaged replicas\n"


def test_mistakes_are_told_in_a_line(cluster: Path) -> None:
    for arguments, said in (
        (("brokers", "stop", "7"), "there is no broker 7"),
        (("brokers", "describe", "7"), "there is no broker 7"),
        (("brokers", "reassign", "t=1"), "is wanted"),
        (("brokers", "reassign", "t-0=1,1"), "are no replicas"),
        (("brokers", "repair", "1"), "is online"),
        (("topics", "create", "u", "--replication-factor", "5"), "3 brokers"),
    ):
        output = run(cluster, *arguments, fails=True)
        assert said in output
        assert output.count("\n") == 1


def test_topics_are_created_with_replicas(cluster: Path) -> None:
    run(cluster, "topics", "create", "u", "--partitions", "2", "--replication-factor", "2")
    with streamlog.open(cluster / "log") as log:
        assert all(len(each.replicas) == 2 for each in log.topic("u").describe().partitions)
