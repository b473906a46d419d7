"""Two processes, a producer and a consumer, at once: as fast as the slower of them alone?"""

from __future__ import annotations

from functools import cache

from harness import Contender, Goal, Group, Place, Worker, at_most, cost, rate, run_workers

COUNT = 1_000_000


def contenders(place: Place) -> list[Contender]:
    """Producers on one core, consumers on the other; both at once is measured at the consumer, from the first record to the last.

    The loops tell what two cores of this machine are worth at the moment.
    """
    made = [
        Contender("a loop alone", loops),
        Contender("two unrelated loops at once", lambda: loops(0, 1), (cost(None, "a loop alone"),)),
    ]
    for how in ("send", "batch.append"):
        extra: tuple[Goal, ...] = (at_most(1 / 1.2e6),) if how == "batch.append" else ()
        made += _contenders(place, how, extra)
    return made


def loops(*cores: int) -> float:
    """Seconds of the slowest of processes that have nothing to do with each other, one a core."""
    return float(max(run_workers(*(Worker("compute", core=core) for core in cores or (0,)))))


def _contenders(place: Place, how: str, goals: tuple[Goal, ...]) -> list[Contender]:
    topic = cache(lambda: filled(place, how))
    names = f"{how}: producer alone", f"{how}: consumer alone"
    return [
        Contender(names[0], lambda: producer_alone(place, how)),
        Contender(names[1], lambda: consumer_alone(place, topic())),
        Contender(f"{how}: both at once", lambda: both(place, how), (rate(0.85, *names), *goals)),
    ]


def producer(place: Place, topic: str, how: str) -> Worker:
    """A process that writes."""
    return Worker("produce", core=0, location=place.log.location, topic=topic, count=COUNT, how=how)


def consumer(place: Place, topic: str) -> Worker:
    """A process that reads."""
    return Worker("consume", core=1, location=place.log.location, topic=topic, count=COUNT)


def filled(place: Place, how: str) -> str:
    """A topic to read."""
    topic = place.new_topic()
    run_workers(producer(place, topic, how))
    return topic


def producer_alone(place: Place, how: str) -> float:
    """Seconds a record."""
    with place.topic() as topic:
        return float(run_workers(producer(place, topic, how))[0]) / COUNT


def consumer_alone(place: Place, topic: str) -> float:
    """Seconds a record."""
    return float(run_workers(consumer(place, topic))[0]) / COUNT


def both(place: Place, how: str) -> float:
    """Seconds a record, at the consumer."""
    with place.topic() as topic:
        return float(run_workers(consumer(place, topic), producer(place, topic, how))[0]) / COUNT


GROUP = Group("processes", contenders, rounds=3, core=None)
