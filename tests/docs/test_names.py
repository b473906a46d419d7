"""What stands in backticks exists: paths, functions, classes, options, commands."""

import argparse
import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

from docs.pages import PAGES, ROOT, spans
from streamlog import cli

SOURCE = ROOT / "src" / "streamlog"
OBJECTS = {"log": "Cluster", "producer": "Producer", "consumer": "Consumer", "home": "Home", "batch": "BatchWriter"}
"""What variables of the documents stand for."""
OTHERS = {
    *("flock", "fdatasync", "pwrite", "pwritev", "mmap", "mmap.mmap", "fcntl", "ctypes.PyDLL", "MADV_POPULATE_READ"),  # the system's
    *("signal.signal", "signal.SIGTERM", "sys.exit", "help", "lambda", "break", "with", "for"),  # Python's
    *("murmur2_random", "consistent_random", "fnv1a_random", "auto.leader.rebalance.enable", "send_offsets_to_transaction"),  # Kafka's
    *("delete_records", "pystreamlog"),  # what is not there yet; the distribution's name
    *("hello", "u", "i", "h"),  # examples, letters
}
"""Words of others, and words that name nothing."""


@cache
def names() -> set[str]:
    """Every name and every word in a string of the code: functions, arguments, attributes, keys, records, options."""
    found: set[str] = set()
    for path in [*SOURCE.rglob("*.py"), *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tests/model").glob("*.py"), ROOT / "tests/conftest.py"]:
        found |= {path.stem, path.parent.name}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found |= {node.name, node.name.removeprefix("_fold_")}  # the method that folds a record bears its name
            elif isinstance(node, ast.arg):
                found.add(node.arg)
            elif isinstance(node, ast.Name):
                found.add(node.id)
            elif isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
                text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
                if len(text) < 60 and "\n" not in text:  # not a docstring
                    found |= {text, *re.findall(r"\w+", text)}
    return found


@cache
def members() -> dict[str, set[str]]:
    """The names inside each class of the code, with those of its bases."""
    found: dict[str, set[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                own = found.setdefault(node.name, set())
                for child in ast.walk(node):
                    if isinstance(child, ast.FunctionDef):
                        own.add(child.name)
                    elif isinstance(child, ast.Attribute):
                        own.add(child.attr)
                    elif isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
                        own.add(child.target.id)
    return found


def resolves(name: str) -> bool:
    """Whether a name, dotted or not, is one of the code's."""
    if name in OTHERS or name in names() or name.upper() in names():  # words of shared memory are constants of the code
        return True
    first, _, rest = name.partition(".")
    if first == "streamlog" and rest:
        holder: object = importlib.import_module("streamlog")
        for part in rest.split("."):
            if not hasattr(holder, part):
                try:
                    holder = importlib.import_module(f"{holder.__name__}.{part}")  # type: ignore[attr-defined]
                    continue
                except (ImportError, AttributeError):
                    return False
            holder = getattr(holder, part)
        return True
    return rest in members().get(OBJECTS.get(first, first), ())


def is_path(span: str) -> bool:
    return bool(re.fullmatch(r"[\w.*-]*/[\w./*-]*|[\w*-]+\.(py|md|json|hex|java)", span)) and span != "memory://"


@cache
def tree() -> set[str]:
    """The names of the files that a cluster has, as docs/format.md draws them."""
    table = (ROOT / "docs/format.md").read_text().partition("## The tree")[2].partition("## A partition")[0]
    return {name for span in re.findall(r"`([^`]+)`", table) for name in (span, *span.split("/")) if name}


def path_exists(page: Path, path: str) -> bool:
    places = (ROOT, ROOT / "src", SOURCE, page.parent, ROOT / "examples", ROOT / "benchmarks")
    return any(list(place.glob(path.rstrip("/"))) for place in places) or all(part in tree() for part in path.rstrip("/").split("/"))


def is_command(words: list[str]) -> bool:
    """Whether a command line's actions and options are those of the program; `a|b` stands for each."""
    parser = cli._parser()
    for word in words:
        deeper = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        options = {option for action in parser._actions for option in action.option_strings}
        if word.startswith("--"):
            if word not in options:
                return False
        elif deeper:
            if not all(one in deeper[0] for one in word.split("|")):
                return False
            parser = deeper[0][word.split("|")[-1]]
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_stands_in_backticks_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    wrong = []
    for span in spans(page):
        words = re.sub(r"^(\.venv/bin/)?streamlog (--location \S+ )?", "streamlog ", span).split()
        if words[0] == "make":
            right = all(re.search(rf"^{word}:", makefile, re.M) for word in words[1:])
        elif words[0] in ("python", "pip", "pytest") or (is_path(words[0]) and len(words) > 1):
            right = all(path_exists(page, word) for word in words if is_path(word))
        elif words[0].endswith("streamlog"):
            right = is_command(words[1:])
        elif len(words) > 1 and words[0] in ("topics", "brokers", "groups", "transactions", "produce", "consume"):
            right = is_command(words)
        elif span.startswith("test_"):
            right = any(f"def {span.removesuffix('…')}" in path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
        elif is_path(span):
            right = path_exists(page, span)
        elif page.name == "format.md" and (span in tree() or re.search(r"[<…]", span)):
            right = True
        else:
            code = re.sub(r"\"[^\"]*\"|'[^']*'|\b0x\w+|-\w+", "", span)
            right = all(resolves(name) for name in re.findall(r"(?<![\w.])[A-Za-z_][\w.]*", code))
        if not right:
            wrong.append(span)
    assert not wrong
