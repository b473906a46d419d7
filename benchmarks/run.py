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
from harness import Group, Row, as_json, as_markdown, as_text, plot, rows_of, run_group

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
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--plot", type=Path, help="write a picture here (PNG; needs matplotlib)")
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where to measure: on a disk (default: the current directory)")
    parser.add_argument("--big", action="store_true", help="also a log of 5 GB")
    return parser.parse_args()


def measure(groups: list[Group], directory: Path, rounds: int | None, big: bool) -> list[Row]:
    """Run groups one after the other; files of one are gone before the next."""
    rows: list[Row] = []
    for group in groups:
        start = time.monotonic()
        own = rows_of(group.name, run_group(group, directory / group.name, rounds, big=big))
        print(f"{as_text(own)}\n({group.name}: {time.monotonic() - start:.0f} s)\n", flush=True)
        shutil.rmtree(directory / group.name)
        rows += own
    return rows


def main() -> None:
    """Measure, print, write what was asked for."""
    given = arguments()
    if given.dir.resolve().is_relative_to("/dev/shm"):
        sys.exit("--dir: on a disk, not in /dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="streamlog-bench-", dir=given.dir))
    try:
        rows = measure([group for group in GROUPS if not given.only or group.name in given.only], directory, given.rounds, given.big)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    missed = [f"{row.group}: {row.contender}" for row in rows if row.met is False]
    print(f"missed: {'; '.join(missed) or 'none'}")
    if given.markdown:
        given.markdown.write_text(as_markdown(rows), encoding="utf-8")
    if given.json:
        given.json.write_text(as_json(rows), encoding="utf-8")
    if given.plot:
        plot(rows, str(given.plot))


if __name__ == "__main__":
    main()
