"""The documents say what is: their examples run, their tables are the code's."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path

import pytest

from docs.pages import PAGES, ROOT, anchors, prose_of, tables, words_of
from streamlog._format import compression
from streamlog._log import recovery
from streamlog.config import COMPRESSION_LEVELS, ProducerConfig, TopicConfig

WITH_EXAMPLES = ("README.md", "docs/chaos.md", "docs/groups.md", "docs/producer.md", "docs/replication.md", "docs/transactions.md")
BLOCKS = [block for page in WITH_EXAMPLES for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", words_of(page)):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_row_of_a_table_has_the_cells_of_its_head(page: Path) -> None:
    for head, rule, *rows in tables(page):
        assert all(re.fullmatch(r":?-+:?", cell) for cell in rule), head
        assert [row for row in rows if len(row) != len(head)] == []


def test_figures_are_those_of_the_benchmarks() -> None:
    """`python benchmarks/render.py` makes it so."""
    done = subprocess.run([sys.executable, ROOT / "benchmarks/render.py", "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_group_of_benchmarks_is_described() -> None:
    (rows,) = (rows[2:] for rows in tables(ROOT / "benchmarks/README.md") if rows[0][0] == "group")
    groups = re.findall(r'Group\(\s*"(\w+)"', "".join(path.read_text() for path in (ROOT / "benchmarks").glob("bench_*.py")))
    assert sorted(row[0].strip("`") for row in rows) == sorted(groups)
    assert set(json.loads((ROOT / "benchmarks/results.json").read_text())) == set(groups)


def test_the_targets_that_are_missed_are_explained_and_no_others() -> None:
    text = (ROOT / "docs/performance.md").read_text()
    missed = re.findall(r"^\| (\w+) \| ([^|]*) \|.*\| missed \|$", text, re.M)
    section = text.partition("## Where targets are missed")[2]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| ") and "<!--=" in line]
    explained = [found for row in rows for found in re.findall(r"<!--= (?:ratio )?(\w+): (.*?) -->", row[2])]
    assert missed
    assert explained == sorted(missed, key=explained.index)
    assert all("<!--= target" in row[1] for row in rows)


def test_the_second_reader_knows_the_page_alone_and_has_the_lines_that_are_told() -> None:
    source = (ROOT / "tests/format/reader.py").read_text()
    tree = ast.parse(source)
    imported = {name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in (alias.name for alias in node.names)}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(name.startswith("streamlog") for name in imported)
    documented = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)]
    lines = {number for number, line in enumerate(source.splitlines(), 1) if line.strip() and not line.lstrip().startswith("#")}
    for node in documented:
        lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    assert f"a second reader in {len(lines)} lines of code that" in prose_of("README.md")


CODECS = {name: number for number in range(1, 8) if not (name := compression.name_of(number)).startswith("codec")}


def test_codecs_are_those_of_the_code() -> None:
    (blocks,) = (rows[2:] for rows in tables(ROOT / "docs/format.md") if rows[0] == ["codec", "block"])
    assert [row[0] for row in blocks] == [f"{number} {name}" for name, number in CODECS.items()]
    drawn = re.findall(r"^    (\d) (\w+) ", compression.__doc__ or "", re.M)
    assert drawn == [(str(number), name) for name, number in CODECS.items()]
    listed = ", ".join(f"{number} {name}" for name, number in {"none": 0, **CODECS}.items())
    assert f"number of the codec: {listed}" in prose_of("docs/format.md")
    (costs,) = (rows[2:] for rows in tables(ROOT / "docs/producer.md") if rows[0][0] == "codec")
    assert {row[0].split()[0] for row in costs} == {"none", *CODECS}
    assert set(CODECS) == set(COMPRESSION_LEVELS)
    assert [TopicConfig({"compression_type": name}).compression_type for name in CODECS] == list(CODECS)
    for page in ("README.md", "docs/producer.md"):
        assert all(name in prose_of(page) for name in CODECS)
    levels = ", ".join(f"{name} {low} to {high}" for name, (low, high) in COMPRESSION_LEVELS.items() if low is not None)
    assert f"`compression_level` ({levels})" in prose_of("docs/producer.md")
    assert levels in ProducerConfig.fields["compression_level"].doc


def test_what_is_told_of_the_package_is_what_is_built() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    readme = prose_of("README.md")
    assert f"The distribution is called `{project['name']}`, the import `streamlog`." in readme
    assert [name.partition(">")[0] for name in project["optional-dependencies"]["compression"]] == ["cramjam"]
    assert f"Python {project['requires-python'].removeprefix('>=')} or newer" in readme
    assert project["license"]["text"].replace("-", " ") == "Apache 2.0"
    assert "Licence: Apache 2.0." in readme
    kinds = {path.suffix for path in (ROOT / "src/streamlog").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert kinds == {".py", ".typed"}  # pure Python, so one wheel
    recipes = (ROOT / "Makefile").read_text()
    assert re.search(r"^test: .*\blint$\n.*-m pytest$", recipes, re.M)
    assert re.search(r"^lint:.*\n.*ruff check$\n.*mypy$", recipes, re.M)


def test_code_stands_where_the_architecture_page_says() -> None:
    (rows,) = (rows[2:] for rows in tables(ROOT / "docs/architecture.md") if rows[0][0] == "step")
    for row in rows:
        path = ROOT
        for part in re.findall(r"`([^`]+)`", row[1]):
            if part.endswith(".py"):
                path = ROOT / "src/streamlog" / part
            else:
                owner, _, name = part.rpartition(".")
                assert re.search(rf"^( *def {name}\(|{name}\b.* = )", path.read_text(), re.M), part
                assert not owner or f"class {owner}" in path.read_text(), part
