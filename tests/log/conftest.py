"""Where the cluster of a test is."""

from pathlib import Path

import pytest


@pytest.fixture
def location(place: Path) -> Path:
    return place / "log"
