"""`python -m streamlog.testing.chaos --seconds 60 --brokers 1 3 --seed 7`: run, print a summary, exit with 1 where a rule was broken."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from streamlog.testing.chaos.harness import Report, run

ROUND = 60.0
"""Seconds of one run at most: a longer time is spent on several, each with a cluster and a seed of its own."""


def main(arguments: list[str] | None = None) -> int:
    """Run as asked."""
    what = "Many processes on a cluster, disturbed at random, and a check of what they saw."
    parser = argparse.ArgumentParser(prog="python -m streamlog.testing.chaos", description=what)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each number of brokers")
    parser.add_argument("--brokers", type=int, nargs="+", choices=(1, 3), default=[1, 3])
    parser.add_argument("--seed", type=int, default=None, help="of the first run; the next ones count on from it")
    parser.add_argument("--directory", type=Path, default=None, help="where clusters are made (default: a temporary directory)")
    parser.add_argument("--workers", nargs="+", default=None, help="kinds of workers (default: all)")
    parser.add_argument("--avoid", nargs="+", default=[], help="kinds of workers, and acts of administrators and of the nemesis, to leave out")
    parser.add_argument("--keep", action="store_true", help="keep the directories of runs that broke no rule, too")
    parser.add_argument("--calm", action="store_true", help="disturb nobody")
    asked = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the workers are ended, too
    seed = random.randrange(2**31) if asked.seed is None else asked.seed
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    base = Path(tempfile.mkdtemp(prefix="streamlog-chaos-", dir=asked.directory or memory))
    print(f"seed {seed}; in {base}", flush=True)
    reports: list[Report] = []
    left = dict.fromkeys(asked.brokers, asked.seconds)
    while any(left.values()):
        for brokers in asked.brokers:
            if seconds := min(ROUND, left[brokers]):
                left[brokers] -= seconds
                directory = base / f"seed-{seed}-brokers-{brokers}"
                print(f"--- seed {seed}, brokers {brokers}, {seconds:.0f} s", flush=True)
                report = run(
                    directory, seconds=seconds, seed=seed, brokers=brokers, workers=asked.workers, avoid=asked.avoid, disturb=not asked.calm,
                    progress=lambda text: print(f"    {text}", flush=True),
                )  # fmt: skip
                print(report, flush=True)
                reports.append(report)
                if report.ok and not asked.keep:
                    shutil.rmtree(directory)
        seed += 1
    _summarize(reports)
    if any(base.iterdir()):
        print(f"histories, errors and clusters are in {base}")
    else:
        base.rmdir()
    return 0 if all(report.ok for report in reports) else 1


def _summarize(reports: list[Report]) -> None:
    print(f"\n{'seed':>12}{'brokers':>9}{'kills':>7}{'stops':>7}{'outages':>9}{'acknowledged':>14}{'committed':>11}{'violations':>12}")
    for report in reports:
        counts = report.counts
        print(
            f"{report.seed:>12}{report.brokers:>9}{counts['kills']:>7}{counts['stops']:>7}{counts['outages']:>9}"
            f"{counts['records acknowledged']:>14,}{counts['transactions committed']:>11,}{len(report.violations):>12}"
        )


if __name__ == "__main__":
    sys.exit(main())
