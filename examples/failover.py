"""A broker is lost and recovered while producers and consumers go on, with a picture of it.

Three brokers, one partition with three replicas.  The directory of its leader vanishes: the next record goes to another leader.  Later the
directory is back, and the broker catches up and joins.  `failover.png` shows the leader, the in-sync replicas, and how far the high
watermark and each replica's log are, over time.
"""

import argparse
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import streamlog

TOPIC = "payments"


class Sample(NamedTuple):
    """The partition at one moment."""

    seconds: float
    leader: int
    isr: tuple[int, ...]
    high_watermark: int


def watch(log: streamlog.Cluster, samples: list[Sample], stop: threading.Event, began: float) -> None:
    """Note how the partition stands, until told to stop."""
    topic = log.topic(TOPIC)
    while not stop.is_set():
        found = topic.describe().partitions[0]
        samples.append(Sample(time.monotonic() - began, found.leader, found.isr, found.end_offset))
        time.sleep(0.005)


def produce(log: streamlog.Cluster, acknowledged: list[int], gaps: list[float], stop: threading.Event) -> None:
    """Send a record after the other, each acknowledged by all in-sync replicas, and note how long the longest waited."""
    with log.producer(linger_ms=0) as producer:
        number = 0
        while not stop.is_set():
            began = time.monotonic()
            producer.send(TOPIC, str(number)).result()
            gaps.append(time.monotonic() - began)
            acknowledged.append(number)
            number += 1


def consume(log: streamlog.Cluster, seen: list[int], stop: threading.Event) -> None:
    """Read on until all is read after the end."""
    with log.consumer(TOPIC, auto_offset_reset="earliest") as consumer:
        while True:
            records = consumer.poll(timeout_ms=200)
            seen += [int(record.value) for record in records]
            if not records and stop.is_set():
                return


def main() -> int:
    """Returns the exit code: 0 if nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of the whole")
    parser.add_argument("--picture", type=Path, default=Path("failover.png"))
    args = parser.parse_args()
    logging.getLogger("streamlog").setLevel(logging.ERROR)  # that a broker failed is what this is about
    with tempfile.TemporaryDirectory() as directory:
        return fail_over(Path(directory), args.seconds, args.picture)


def fail_over(directory: Path, seconds: float, picture: Path) -> int:
    """Lose the leader's directory after a third of the time, bring it back after two thirds."""
    location = directory / "log"
    with streamlog.open(location, brokers=3) as log:
        log.create_topic(TOPIC, replication_factor=3, min_insync_replicas=2)
        acknowledged: list[int] = []
        seen: list[int] = []
        gaps: list[float] = []
        samples: list[Sample] = []
        stop, watched, began = threading.Event(), threading.Event(), time.monotonic()
        workers = [
            threading.Thread(target=produce, args=(log, acknowledged, gaps, stop)),
            threading.Thread(target=consume, args=(log, seen, stop)),
            threading.Thread(target=watch, args=(log, samples, watched, began)),
        ]
        for worker in workers:
            worker.start()
        events: list[tuple[float, str]] = []

        def event(what: str, act: Callable[[], object]) -> None:
            events.append((time.monotonic() - began, what))
            act()
            print(f"{events[-1][0]:5.2f} s  {what}")

        time.sleep(seconds / 3)
        leader = log.topic(TOPIC).describe().partitions[0].leader
        path, away = location / f"broker-{leader}", location / f"broker-{leader}.away"
        event(f"broker {leader}, which leads, is lost", lambda: os.rename(path, away))
        time.sleep(seconds / 3)
        event(f"broker {leader} is started again", lambda: os.rename(away, path))
        log.start_broker(leader)
        time.sleep(seconds / 3)
        stop.set()
        workers[0].join()
        workers[1].join()
        watched.set()
        workers[2].join()
        found = log.topic(TOPIC).describe().partitions[0]
        lost = set(acknowledged) - set(seen)
        print(f"{len(acknowledged)} records acknowledged, {len(seen)} read, {len(lost)} lost, {len(seen) - len(set(seen))} twice")
        print(f"the longest wait for an acknowledgement: {max(gaps) * 1000:.0f} ms")
        print(f"leader {found.leader}, in sync {list(found.isr)}")
        draw(samples, events, picture)
        return 0 if not lost and seen == sorted(set(seen)) and len(found.isr) == 3 else 1


def draw(samples: list[Sample], events: list[tuple[float, str]], picture: Path) -> None:
    """The picture, where matplotlib is installed."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 5), height_ratios=(2, 1))
    times = [sample.seconds for sample in samples]
    above.plot(times, [sample.high_watermark for sample in samples], color="#0b6e4f")
    above.set_ylabel("high watermark")
    for broker in range(3):
        in_sync = [broker if broker in sample.isr else None for sample in samples]
        leads = [broker if broker == sample.leader else None for sample in samples]
        below.plot(times, in_sync, color="#9fc5e8", linewidth=8, solid_capstyle="butt", label="in sync" if not broker else None)
        below.plot(times, leads, color="#1c4587", linewidth=3, solid_capstyle="butt", label="leader" if not broker else None)
    below.set_yticks(range(3), [f"broker {broker}" for broker in range(3)])
    below.set_ylim(-0.6, 2.6)
    below.set_xlabel("seconds")
    below.legend(loc="upper right", fontsize=8, ncols=2, bbox_to_anchor=(1, 1.3), frameon=False)
    for at, what in events:
        above.axvline(at, color="#b00020", linestyle=":", linewidth=1)
        below.axvline(at, color="#b00020", linestyle=":", linewidth=1)
        above.annotate(what, (at, 0), textcoords="offset points", xytext=(4, 4), fontsize=8, color="#b00020")
    above.set_title("a broker is lost and recovered")
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
    print(f"picture: {picture}")


if __name__ == "__main__":
    sys.exit(main())
