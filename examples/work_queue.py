"""A work queue: N processes share jobs as one group; a job whose worker dies is done by another.

A job is a number to be factored.  Each worker commits a job when its answer is written (`store_offset`), so a worker that is killed in
the middle of one costs nothing but that job's time.  One of them is killed here on purpose.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from multiprocessing import get_context

import streamlog

JOBS, ANSWERS, GROUP = "jobs", "answers", "workers"


def factors(number: int) -> list[int]:
    """The prime factors of a number, by trial division."""
    found, divisor = [], 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return [*found, number] if number > 1 else found


def work(location: str, until_killed_after: int) -> None:
    """Take jobs until there are none for three seconds; or die in the middle of one."""
    with (
        streamlog.open(location) as log,
        log.producer(value_serializer="json", key_serializer="str") as producer,
        log.consumer(
            JOBS, group_id=GROUP, value_deserializer="json", auto_offset_reset="earliest", consumer_timeout_ms=3000,
            auto_commit_interval_ms=50, max_poll_records=10,
        ) as jobs,
    ):  # fmt: skip
        for done, job in enumerate(jobs):
            if done == until_killed_after:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = {"number": job.value, "factors": factors(job.value), "worker": os.getpid()}
            producer.send(ANSWERS, answer, key=str(job.value)).result()
            jobs.store_offset(job)  # done: it may be committed


def main() -> int:
    """Returns the exit code: 0 if every job was answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=400)
    args = parser.parse_args()
    numbers = [10**12 + 39 * n for n in range(args.jobs)]
    with tempfile.TemporaryDirectory() as location, streamlog.open(location) as log:
        log.create_topic(JOBS, partitions=2 * args.workers)
        log.create_topic(ANSWERS)
        spawn = get_context("spawn")
        workers = [spawn.Process(target=work, args=(location, 20 if n == 0 else -1)) for n in range(args.workers)]
        for worker in workers:
            worker.start()
        while not log.groups() or len(log.describe_group(GROUP).members) < args.workers:
            time.sleep(0.01)
        with log.producer(value_serializer="json") as producer:
            for at, number in enumerate(numbers):
                producer.send(JOBS, number, partition=at % (2 * args.workers))
        for worker in workers:
            worker.join()
        answers: dict[int, list[int]] = {}
        by_worker: dict[int, int] = {}
        with log.topic(ANSWERS, value="json").consumer(auto_offset_reset="earliest", consumer_timeout_ms=0) as consumer:
            for record in consumer:
                answers[record.value["number"]] = record.value["factors"]
                by_worker[record.value["worker"]] = by_worker.get(record.value["worker"], 0) + 1
    for pid, count in by_worker.items():
        killed = " (killed)" if pid == workers[0].pid else ""
        print(f"worker {pid}{killed}: {count} jobs")
    print(f"{len(answers)} of {len(numbers)} jobs answered, {sum(by_worker.values()) - len(answers)} of them twice")
    return 0 if set(answers) == set(numbers) else 1


if __name__ == "__main__":
    sys.exit(main())
