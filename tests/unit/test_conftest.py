"""The tests' own fixtures: they need no handler of the process that runs them, and what a test leaves fails no other one."""

import shutil
import subprocess
import sys
from pathlib import Path

TESTS = """
import gc, signal, subprocess, sys, time
import pytest

CHILD = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]

def test_the_process_ignores_sigint():
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN

def test_here(sigint):
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)

def test_in_a_child(sigint):
    with subprocess.Popen(CHILD, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == -signal.SIGINT

def test_the_process_ignores_it_again():
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN

def test_that_fails():
    file, child = open(__file__), subprocess.Popen(CHILD, stdout=subprocess.PIPE)
    raise ValueError

def test_after_it():
    gc.collect()

def test_that_leaves_a_process():
    subprocess.Popen(CHILD, stdout=subprocess.PIPE)

def test_after_that():
    gc.collect()
"""


def test_sigint_may_be_ignored_and_leftovers_fail_nobody_else(place: Path) -> None:
    shutil.copy(Path(__file__).parents[1] / "conftest.py", place)
    (place / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-W", "error", "-p", "no:cacheprovider", "--tb=no", "test_it.py"]
    done = subprocess.run(["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command], cwd=place, capture_output=True, text=True, timeout=60)
    told = {line.split(" - ")[0] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))}
    assert told == {"FAILED test_it.py::test_that_fails", "ERROR test_it.py::test_that_leaves_a_process"}, done.stdout
