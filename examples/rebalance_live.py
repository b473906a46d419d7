"""Members come and go, and a picture in the terminal shows who owns what: a row for each process, a column for each partition.

Processes join one by one, are killed with `kill -9`, stopped and continued, while records are written all the time.  A partition that
nobody owns is shown in the last row; look how short that is.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess

import streamlog

TOPIC, GROUP = "ticks", "readers"


def read(location: str) -> None:
    """A member: reads until it is killed."""
    with (
        streamlog.open(location) as log,
        log.consumer(TOPIC, group_id=GROUP, auto_offset_reset="earliest", session_timeout_ms=1000, heartbeat_interval_ms=200) as consumer,
    ):
        while True:
            consumer.poll(timeout_ms=1000)


def picture(group: streamlog.GroupDescription, partitions: int) -> str:
    """Who owns what."""
    rows = [f"generation {group.generation:3}  {group.state:11}  " + "".join(f"{p:>3}" for p in range(partitions))]
    owned = set()
    for member in group.members:
        mine = {tp.partition for tp in member.assignment}
        owned |= mine
        rows.append(f"{'pid ' + str(member.pid):>29}  " + "".join("  #" if p in mine else "  ." for p in range(partitions)))
    rows.append(f"{'nobody':>29}  " + "".join("  ." if p in owned else "  ?" for p in range(partitions)))
    return "\n".join(rows)


def disturb(rng: random.Random, location: str, members: list[BaseProcess], most: int) -> str:
    """Let one come, kill one, or stop one for two seconds; returns what was done."""
    kind = rng.choice(["join", "kill", "stop"]) if len(members) > 1 else "join"
    if kind == "join" and len(members) < most:
        members.append(get_context("spawn").Process(target=read, args=(location,), daemon=True))
        members[-1].start()
        return f"pid {members[-1].pid} joins"
    victim = rng.choice(members)
    assert victim.pid is not None
    if kind == "stop":
        os.kill(victim.pid, signal.SIGSTOP)
        get_context("spawn").Process(target=wake, args=(victim.pid,), daemon=True).start()
        return f"pid {victim.pid} is stopped for two seconds"
    members.remove(victim)
    victim.kill()
    return f"pid {victim.pid} is killed"


def wake(pid: int) -> None:
    """Continue a stopped process."""
    time.sleep(2)
    os.kill(pid, signal.SIGCONT)


def main() -> int:
    """Returns the exit code: 0 if in the end everything is somebody's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--partitions", type=int, default=12)
    parser.add_argument("--members", type=int, default=5, help="at most")
    parser.add_argument("--seed", type=int)
    args = parser.parse_args()
    rng, live = random.Random(args.seed), sys.stdout.isatty()
    with tempfile.TemporaryDirectory() as location, streamlog.open(location) as log, log.producer() as producer:
        log.create_topic(TOPIC, partitions=args.partitions)
        members: list[BaseProcess] = []
        news, last, next_event = "", "", 0.0
        end = time.monotonic() + args.seconds
        while (now := time.monotonic()) < end or not settled(log, args.partitions):
            if now > next_event and now < end:
                news, next_event = disturb(rng, location, members, args.members), now + 1.5
            producer.send(TOPIC, b"tick")
            if members and log.groups():
                shown = picture(log.describe_group(GROUP), args.partitions)
                if live or shown != last:
                    print(("\x1b[H\x1b[2J" if live else "") + f"{shown}\n{news}\n", flush=True)
                last = shown
            time.sleep(0.05)
            if now > end + 20:
                return 1
        for member in members:
            member.kill()
            member.join()
    print("all partitions have an owner")
    return 0


def settled(log: streamlog.Cluster, partitions: int) -> bool:
    """Whether everything is somebody's."""
    group = log.describe_group(GROUP)
    return group.state == "Stable" and sum(len(member.assignment) for member in group.members) == partitions


if __name__ == "__main__":
    sys.exit(main())
