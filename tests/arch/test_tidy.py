"""What keeps the code readable, as ratchets: a short function may not grow long."""

import ast
from pathlib import Path

import streamlog

SOURCE = Path(__file__).parents[2] / "src" / "streamlog"
LONGEST_FUNCTION = 75  # lines, docstring included: Producer.send
LONGEST_MODULE = 800  # lines


def test_functions_stay_short() -> None:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{path.name}: {node.name}"


def test_modules_stay_short() -> None:
    for path in SOURCE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= LONGEST_MODULE, path.name


def test_public_names_are_sorted_and_there() -> None:
    assert list(streamlog.__all__) == sorted(streamlog.__all__)
    for name in streamlog.__all__:
        assert getattr(streamlog, name) is not None
    public = {name for name in vars(streamlog) if not name.startswith("_")} - {"annotations", "TYPE_CHECKING"}
    modules = {name for name in public if type(getattr(streamlog, name)).__name__ == "module"}
    assert public - modules <= set(streamlog.__all__)


def test_errors_are_drawn_in_their_docstring() -> None:
    from streamlog import errors

    drawn = errors.__doc__ or ""
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception):
            assert name in drawn, name
