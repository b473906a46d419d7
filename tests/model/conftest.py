"""Searches keep every state that they saw: looking through those for garbage takes a third of their time, and finds none."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def without_collector(request: pytest.FixtureRequest) -> Iterator[None]:
    if not request.module.__name__.endswith("_model"):
        yield  # what runs the code itself
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()
