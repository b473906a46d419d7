"""However a process begins and ends: what a producer took is written, or somebody hears that it is not."""

import subprocess
import sys
from pathlib import Path

import pytest

import streamlog

PROGRAM = """
import multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
import streamlog

location, method, where, how = sys.argv[1:]
log = streamlog.open(location)
producer = log.producer(linger_ms=60_000) if where == "module" else None

def work(count):
    used = producer or log.producer(linger_ms=60_000)
    for number in range(count):
        used.send("t", str(number))

if __name__ == "__main__":
    context = multiprocessing.get_context(method)
    if how == "Process":
        process = context.Process(target=work, args=(100,))
        process.start()
        process.join()
        assert process.exitcode == 0, process.exitcode
    elif how == "Pool":
        pool = context.Pool(1)
        pool.map(work, [50, 50])
        pool.close()
        pool.join()
    else:
        with ProcessPoolExecutor(1, mp_context=context) as executor:
            list(executor.map(work, [50, 50]))
"""


@pytest.mark.parametrize("how", ["Process", "Pool", "ProcessPoolExecutor"])
@pytest.mark.parametrize("where", ["module", "local"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_loses_nothing_without_a_word(method: str, where: str, how: str, place: Path) -> None:
    program = place / "program.py"
    program.write_text(PROGRAM)
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        done = subprocess.run([sys.executable, program, place / "log", method, where, how], capture_output=True, text=True, timeout=60)
        written = log.topic("t").end_offsets()[0]
    if method == "fork" and where == "module":  # an inherited producer is the parent's
        assert done.returncode != 0
        assert "ClosedError" in done.stderr
    else:
        assert (done.returncode, written) == (0, 100), done.stderr


def test_a_producer_made_before_multiprocessing_is_imported_is_finished_too(place: Path) -> None:
    code = """if True:
        import sys, streamlog
        log = streamlog.open(sys.argv[1])
        first = log.producer(linger_ms=60_000)
        import multiprocessing
        def work():
            log.producer(linger_ms=60_000).send("t", "child")
        first.send("t", "parent")
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join()
    """
    with streamlog.open(place / "log") as log:
        log.create_topic("t")
        subprocess.run([sys.executable, "-c", code, place / "log"], check=True, timeout=60)
        assert log.topic("t").end_offsets()[0] == 2
