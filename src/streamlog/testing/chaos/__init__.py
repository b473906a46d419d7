"""Chaos: many processes on one cluster, killed, stopped and robbed of their disks at random, and a check of all that they saw.

    from streamlog.testing import chaos

    report = chaos.run("scratch", seconds=10, seed=7, brokers=3)
    assert report.ok, report

On the command line: `python -m streamlog.testing.chaos --seconds 60 --brokers 1 3`.  What is checked stands in `docs/chaos.md`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from streamlog.testing.chaos.evidence import Violation
    from streamlog.testing.chaos.harness import Report, run
    from streamlog.testing.chaos.rules import check

_LATER = {"Report": "harness", "Violation": "evidence", "check": "rules", "run": "harness"}

__all__ = ["Report", "Violation", "check", "run"]


def __getattr__(name: str) -> object:
    """Import the harness when it is first asked for."""
    if name not in _LATER:
        raise AttributeError(f"module 'streamlog.testing.chaos' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"streamlog.testing.chaos.{_LATER[name]}"), name)
