"""The documents say what is: their examples run, their tables are the code's."""

import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from streamlog._log import recovery

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/chaos.md", "docs/groups.md", "docs/producer.md", "docs/replication.md", "docs/transactions.md")
BLOCKS = [block for page in PAGES for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme_examples_run(number: int, place: Path) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", BLOCKS[number]], cwd=place, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    if number == 0:
        assert done.stdout.split(" ", 1)[1] == "0 b'user-1' b'/home'\n"


def test_readme_shell_lines_run(place: Path) -> None:
    lines = re.findall(r"^(?:streamlog|printf) .*$", (ROOT / "README.md").read_text(), re.M)
    assert len(lines) == 5
    script = "\n".join(re.sub(r"(?<!\S)streamlog ", f"{sys.executable} -m streamlog ", line) for line in lines)
    done = subprocess.run(["sh", "-ec", script], cwd=place, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "user-1 /home" in done.stdout


def test_the_docstring_of_the_package_runs(place: Path) -> None:
    import streamlog

    example = re.search(r"\n\n((?:    .*\n|\n)+)", streamlog.__doc__ or "")
    assert example
    code = "\n".join(line[4:] for line in example[1].splitlines())
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "b'/home'" in done.stdout


def test_commands_of_the_readme_are_in_the_makefile() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    for command in re.findall(r"^make (\w+)$", (ROOT / "README.md").read_text(), re.M):
        assert command in targets
    assert "make test\n" in (ROOT / ".ci/run").read_text()


def test_every_combination_of_facts_hits_exactly_one_case() -> None:
    for facts in product((True, False), repeat=4):
        rows = [row for row in recovery.CASES if row.fits(recovery.Facts(*facts))]
        assert len(rows) == 1, facts


def test_every_finding_of_check_is_a_listed_invariant() -> None:
    listed = set(re.findall(r"^\| (I\d+) \|", (ROOT / "docs/invariants.md").read_text(), re.M))
    used = set(re.findall(r'"(I\d+)"', (ROOT / "src/streamlog/_check.py").read_text()))
    assert used <= listed


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_named_code_exists() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for path in re.findall(r"`((?:_\w+/|tests/)[\w/.]+)`", page.read_text()):
            assert (ROOT / "src/streamlog" / path).exists() or (ROOT / path).exists(), f"{page.name}: {path}"
