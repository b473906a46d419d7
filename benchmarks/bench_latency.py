"""Process to process, one record at a time, 1,000 a second: from before `send` to the record that `poll` returns."""

from __future__ import annotations

from pathlib import Path

from harness import P99, Contender, Group, Place, Worker, at_most, cost, run_workers

COUNT = 2_000
SPIN_US = 2_000


def contenders(place: Place) -> list[Contender]:
    """Against a mapped file with a futex, which is as little as two Python processes can do and sleep."""
    yardstick = "mapped file and futex"
    return [
        Contender(yardstick, lambda: futex(place, spin=False)),
        Contender("mapped file, reader spins", lambda: futex(place, spin=True)),
        Contender("send + flush to poll", lambda: pings(place, 0), (cost(1.5, yardstick), cost(2, yardstick, at=P99))),
        Contender(f"the same, fetch_spin_us={SPIN_US}", lambda: pings(place, SPIN_US), (at_most(15e-6),)),
    ]


def futex(place: Place, *, spin: bool) -> list[float]:
    """The yardstick."""
    path = place.path("page")
    Path(path).write_bytes(bytes(4096))
    receiver = Worker("receive_futex_pings", core=1, path=path, count=COUNT, spin=spin)
    latencies: list[float] = run_workers(receiver, Worker("send_futex_pings", core=0, path=path, count=COUNT))[0]
    return latencies


def pings(place: Place, spin_us: int) -> list[float]:
    """Through a topic."""
    with place.topic() as topic:
        receiver = Worker("receive_pings", core=1, location=place.log.location, topic=topic, count=COUNT, spin_us=spin_us)
        sender = Worker("send_pings", core=0, location=place.log.location, topic=topic, count=COUNT)
        latencies: list[float] = run_workers(receiver, sender)[0]
        return latencies


GROUP = Group("latency", contenders, rounds=3, core=None)
