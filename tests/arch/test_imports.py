"""The folder is the layer: imports point down only, and only `_os` talks to the operating system."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "streamlog"
LAYERS = {  # a layer may import itself (where it says so) and what stands in its set
    "errors": set(), "types": set(), "_version": set(),
    "config": {"errors", "serdes", "assignors", "partitioners"}, "serdes": {"errors"}, "partitioners": {"errors"}, "metrics": {"types"},
    "assignors": {"errors", "types"},
    "record_batch": {"_format", "errors", "types"},
    "_os": {"_os", "errors"},
    "_format": {"_format", "errors"},
    "_log": {"_log", "_os", "_format", "errors"},
    "_replica": {"_replica", "_log", "_os", "_format", "config", "errors", "types"},
    "_coord": {"_coord", "_log", "_os", "_format", "config", "errors", "types"},
    "_client": {
        "_client", "_coord", "_replica", "_log", "_os", "_format", "config", "partitioners", "assignors", "record_batch", "metrics", "errors",
        "types",
    },
    "user": {
        "user", "_client", "_coord", "_replica", "_log", "_os", "_format", "config", "partitioners", "assignors", "serdes", "record_batch", "metrics",
        "errors", "types", "_version",
    },
}  # fmt: skip
SYSTEM = {"os", "mmap", "fcntl", "time", "socket", "select", "signal", "shutil", "tempfile", "subprocess"}
EXEMPT = {"cli", "testing", "__main__", "dump", "_check"}  # they stand above, and may look everywhere
KEPT_OUT = {"numpy", "msgpack", "asyncio", "typing", "typing_extensions", "dataclasses", "logging", "re", "enum", "json", "difflib", "threading"}


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        top = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if top not in EXEMPT:
            found.append((top if top in LAYERS else "user", path))
    return found


def imports(path: Path, *, top_level: bool = False) -> list[str]:
    """Modules that a file imports at run time; with `top_level` only while it is imported itself."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING")
        or (top_level and isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef))
        for child in (block.body if isinstance(block, ast.If) else [block])
        for node in ast.walk(child)
    }
    names = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
            if node.module == "streamlog":
                names += [f"streamlog.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize(("layer", "path"), modules(), ids=lambda value: value.name if isinstance(value, Path) else value)
def test_imports_point_down(layer: str, path: Path) -> None:
    for name in imports(path):
        if name.startswith("streamlog."):
            target = name.split(".")[1]
            assert (target if target in LAYERS else "user") in LAYERS[layer], f"{path.name} ({layer}) imports {name}"


@pytest.mark.parametrize(("layer", "path"), modules(), ids=lambda value: value.name if isinstance(value, Path) else value)
def test_only_os_talks_to_the_system(layer: str, path: Path) -> None:
    if layer != "_os":
        assert not SYSTEM & {name.partition(".")[0] for name in imports(path)}


@pytest.mark.parametrize(("layer", "path"), modules(), ids=lambda value: value.name if isinstance(value, Path) else value)
def test_what_is_slow_to_import_is_imported_where_it_is_needed(layer: str, path: Path) -> None:
    if layer != "metrics":  # which is imported where it is needed
        assert not KEPT_OUT & {name.partition(".")[0] for name in imports(path, top_level=True)}


def test_format_does_nothing_but_bytes() -> None:
    for path in (SOURCE / "_format").glob("*.py"):
        assert not {"logging", "io", "pathlib"} & {name.partition(".")[0] for name in imports(path)}
        assert "open(" not in path.read_text()


def test_inner_packages_hold_a_docstring_and_nothing_else() -> None:
    for folder in ("_os", "_format", "_log", "_replica", "_coord", "_client"):
        body = ast.parse((SOURCE / folder / "__init__.py").read_text()).body
        assert len(body) == 1
        assert isinstance(body[0], ast.Expr)
