"""The documents as tests look at them: pages, what stands in backticks, headings, tables."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "tests/model/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def words_of(page: Path) -> str:
    """A page without its blocks of code and without comments."""
    return re.sub(r"<!--.*?-->", "", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M), flags=re.S)


def prose_of(page: str) -> str:
    """The words of a page with single spaces, to look for a phrase in."""
    return " ".join(words_of(ROOT / page).split())


def spans(page: Path) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", words_of(page))


def anchors(page: Path) -> set[str]:
    """What a link into the page may name, as GitHub makes it from headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.*)$", words_of(page), re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{sum(one.partition('-')[0] == slug for one in found)}")
    return set(found)


def tables(page: Path) -> Iterator[list[list[str]]]:
    """The cells of each table; the first row is the head."""
    rows: list[list[str]] = []
    for line in [*words_of(page).splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])])
        elif rows:
            yield rows
            rows = []
