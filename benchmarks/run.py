"""Run the benchmarks: `python benchmarks/run.py`; see README.md."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import bench_bulk
import bench_compression
import bench_fsync
import bench_groups
import bench_latency
import bench_memory
import bench_one
import bench_open
import bench_poll
import bench_processes
import bench_replication
import bench_send
import bench_size
import bench_start
import bench_transactions
from harness import Group, Results, as_text, load, results_of, run_group, save

GROUPS: list[Group] = [
    bench_send.GROUP,
    bench_one.GROUP,
    bench_poll.GROUP,
    bench_poll.COLUMNS,
    bench_bulk.GROUP,
    bench_compression.GROUP,
    bench_processes.GROUP,
    bench_groups.GROUP,
    bench_transactions.GROUP,
    bench_replication.GROUP,
    bench_latency.GROUP,
    bench_fsync.GROUP,
    bench_start.GROUP,
    bench_memory.GROUP,
    bench_size.GROUP,
    bench_open.GROUP,
]


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, help="rounds of each group (default: the group's own)")
    parser.add_argument("--only", action="append", choices=[group.name for group in GROUPS], help="this group; may be repeated")
    parser.add_argument("--json", type=Path, help="write the results here; groups that were not measured stay as they are in it")
    parser.add_argument("--note", default="", help="a sentence about the machine, kept with the results")
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where to measure: on a disk (default: the current directory)")
    parser.add_argument("--big", action="store_true", help="also a log of 5 GB")
    return parser.parse_args()


def measure(groups: list[Group], directory: Path, given: argparse.Namespace) -> dict[str, Results]:
    """Run groups one after the other; files of one are gone before the next."""
    found = {}
    for group in groups:
        start = time.monotonic()
        found[group.name] = results_of(run_group(group, directory / group.name, given.rounds, big=given.big), given.note)
        print(f"{group.name}\n{as_text(found[group.name].rows)}\n({time.monotonic() - start:.0f} s)\n", flush=True)
        shutil.rmtree(directory / group.name)
    return found


def main() -> None:
    """Measure, print, and keep the results where that was asked for."""
    given = arguments()
    if given.dir.resolve().is_relative_to("/dev/shm"):
        sys.exit("--dir: on a disk, not in /dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="streamlog-bench-", dir=given.dir))
    try:
        found = measure([group for group in GROUPS if not given.only or group.name in given.only], directory, given)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    missed = [f"{name}: {row.contender}" for name, results in found.items() for row in results.rows if row.met is False]
    print(f"missed: {'; '.join(missed) or 'none'}")
    if given.json:
        found = {**(load(given.json) if given.json.exists() else {}), **found}
        save(given.json, {group.name: found[group.name] for group in GROUPS if group.name in found})


if __name__ == "__main__":
    main()
