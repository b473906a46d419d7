"""Write the figures of results.json into README.md, docs/ and the picture: `python benchmarks/render.py`; `--check` only compares.

A page has blocks, whose text is made here (`BLOCKS`), and figures inside its own sentences:

    <!-- begin table -->…<!-- end -->
    `send` takes <!--= send: send -->600 ns<!--=-->, <!--= ratio send: send -->4.7<!--=--> times as long as the yardstick.

A figure names a group and a contender.  A word before them asks for something else than the median (`FIELDS`).
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from harness import Results, Row, as_markdown, load, plot, shown

ROOT = Path(__file__).parents[1]
RESULTS, PICTURE = ROOT / "benchmarks" / "results.json", ROOT / "docs" / "performance.png"
BLOCK = re.compile(r"(<!-- begin ([\w-]+) -->\n).*?(<!-- end -->)", re.S)
FIGURE = re.compile(r"(<!--= (?:(ratio|cost|target) )?(\w+): (.*?) -->).*?(<!--=-->)")
Found = dict[str, Results]


# ---- one figure ----------------------------------------------------------------------------------------------------------------


def two_digits(value: float | None) -> float:
    """A value with the digits that count in a sentence.  Raises LookupError where there is none."""
    if value is None:
        raise LookupError("it has no such figure")
    return float(f"{value:.2g}")


def cost(row: Row) -> float:
    """How many times the yardstick's cost, also where the target speaks of rates."""
    ratio = two_digits(row.ratio)
    return two_digits(1 / ratio) if row.rate else ratio


FIELDS: dict[str | None, Callable[[Row], str]] = {
    None: lambda row: shown(two_digits(row.median), row.unit),
    "ratio": lambda row: f"{two_digits(row.ratio):#.2g}".rstrip("."),
    "cost": lambda row: f"{cost(row):#.2g}".rstrip("."),
    "target": lambda row: row.target()[3:].removesuffix("x"),
}


def row_of(found: Found, group: str, contender: str) -> Row:
    """A row by its name; of several the first."""
    for row in found[group].rows if group in found else ():
        if row.contender == contender:
            return row
    raise LookupError(f"results.json must have a row {group}: {contender} (the largest log is measured with --big)")


def figure(found: Found, field: str | None, group: str, contender: str) -> str:
    """As it stands in a sentence."""
    try:
        return FIELDS[field](row_of(found, group, contender))
    except LookupError as error:
        raise LookupError(f"{field or 'median'} of {group}: {contender}: {error}") from None


# ---- blocks --------------------------------------------------------------------------------------------------------------------


def how_fast(found: Found) -> str:
    """README's sentence."""

    def of(group: str, contender: str) -> str:
        return figure(found, None, group, contender)

    cores = {results.about["cores"] for results in found.values()}
    text = (
        f"On a machine with {' or '.join(map(str, sorted(cores)))} shared cores: `send` {of('send', 'send')} a record, `batch.append` "
        f"{of('send', 'batch.append')}, `poll` {of('poll', 'poll: records')} a record, values as a column {of('poll', 'poll_batches: values')}, "
        f"one `send` and `flush` {of('one', 'send + flush')}, from one process to another {of('latency', 'send + flush to poll')}; partitions of "
        f"a killed group member are read again after {of('groups', 'kill -9 of one of 8: its partitions are read again')}, a commit takes "
        f"{of('groups', 'one synchronous commit')}. All of it, against named yardsticks in the same run, and which targets are missed: "
        "[docs/performance.md](docs/performance.md).\n"
    )
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False) + "\n"


def runs(found: Found) -> str:
    """When and where the groups were measured."""
    groups: dict[str, list[str]] = {}
    for name, results in found.items():
        about = results.about
        told = (
            f"on {about['date']} at commit {about['commit']}: {about['cores']} cores ({about['cpu']}), Linux {about['kernel']}, CPython "
            f"{about['python']}, NumPy {about['numpy']}. {about['note']}"
        )
        groups.setdefault(told.strip(), []).append(name)
    most = max(groups.values(), key=len)
    others = "All groups" if len(groups) == 1 else "All other groups"
    lines = [
        f"- {others if names is most else ', '.join(f'`{name}`' for name in names)} {told}"
        for told, names in sorted(groups.items(), key=lambda item: item[1] is most)
    ]
    return "".join(textwrap.fill(line, 100, subsequent_indent="  ") + "\n" for line in lines)


def codecs(found: Found) -> str:
    """What a codec saves and costs."""
    rows = {row.contender: row for row in found["compression"].rows}
    lines = ["| codec | size | produce | consume |", "| --- | --- | --- | --- |"]
    for name in (contender.removeprefix("stored, ") for contender in rows if contender.startswith("stored, ")):
        own = [rows[f"{what}, {name}"] for what in ("stored", "produce", "consume")]
        cells = [FIELDS[None if row.ratio is None else "cost"](row) for row in own]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines) + "\n"


BLOCKS: dict[str, Callable[[Found], str]] = {"how-fast": how_fast, "runs": runs, "table": as_markdown, "codecs": codecs}


# ---- pages ---------------------------------------------------------------------------------------------------------------------


def rendered(text: str, found: Found) -> str:
    """A page with the results' figures."""
    text = BLOCK.sub(lambda match: match[1] + BLOCKS[match[2]](found) + match[3], text)
    return FIGURE.sub(lambda match: match[1] + figure(found, match[2], match[3], match[4]) + match[5], text)


def source() -> str:
    """What the picture is drawn from, as it stands in its file."""
    return f"results.json {hashlib.sha256(RESULTS.read_bytes()).hexdigest()}"


def main() -> None:
    """Render, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page or the picture is not of these results")
    check = parser.parse_args().check
    found, stale = load(RESULTS), []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        if (new := rendered(text, found)) != text:
            stale.append(page.name)
            if not check:
                page.write_text(new, encoding="utf-8")
    if not PICTURE.exists() or source().encode() not in PICTURE.read_bytes():
        stale.append(PICTURE.name)
        if not check:
            plot(found, PICTURE, source())
    print("not of these results:" if check else "written:", ", ".join(stale) or "none")
    if check and stale:
        sys.exit(1)


if __name__ == "__main__":
    main()
