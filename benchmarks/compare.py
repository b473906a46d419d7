"""This tree against another one: `python benchmarks/compare.py OTHER/src`.

Each round runs every group three times, in an order that changes: with the other tree, with the other tree again, and with this
one.  A row is slower if its median is worse by more than 3 %, and by more than the other tree is against itself in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
LEAST = 0.03
Costs = dict[str, list[float]]  # by group and row, one of each round


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="the `src` directory of the tree to compare with")
    parser.add_argument("--own", type=Path, default=HERE.parent / "src", help="the one of this tree")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", action="append", default=[], help="this group; may be repeated")
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where to measure: on a disk")
    return parser.parse_args()


def measure(source: Path, group: str, directory: Path, into: Costs) -> None:
    """Run a group once with the library of a tree."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        Path(file.name).write_text("{}")
        command = [sys.executable, str(HERE / "run.py"), "--rounds", "1", "--only", group, "--dir", str(directory), "--json", file.name]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": str(source)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        for number, row in enumerate(json.loads(Path(file.name).read_text()).get(group, {}).get("rows", [])):
            if isinstance(row.get("median"), int | float):
                into[f"{group} {number:2}: {row['contender']}"].append(row["median"])


def main() -> None:
    """Measure and print; exit with 1 where a row is slower."""
    given = arguments()
    other, again, own = (defaultdict(list) for _ in range(3))  # type: ignore[var-annotated]
    for number in range(given.rounds):
        for group in given.only:
            turn = [(given.other, other), (given.other, again), (given.own, own)]
            for source, into in turn[number % 3 :] + turn[: number % 3]:
                measure(source.resolve(), group, given.dir, into)
        print(f"round {number + 1} of {given.rounds}", file=sys.stderr, flush=True)
    slower = 0
    for name in sorted(own):
        if other[name] and again[name]:
            noise = abs(median(again[name]) / median(other[name]) - 1)
            ratio = median(own[name]) / median([*other[name], *again[name]])
            is_slower = ratio - 1 > max(LEAST, noise)
            slower += is_slower
            print(f"{ratio:6.3f}  against itself {1 + noise:6.3f}  {'SLOWER' if is_slower else '      '}  {name}")
    sys.exit(1 if slower else 0)


if __name__ == "__main__":
    main()
