"""Several processes copy to one follower: what is derived there is the fold of its log, and whoever leads next answers what is sent again."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import streamlog
from replica.clusters import brokers, log_of
from streamlog._format import batch as fmt
from streamlog._log.pending import Pending
from streamlog.errors import OutOfOrderSequenceError


def committed(cluster: streamlog.Cluster) -> list[bytes]:
    with cluster.consumer("t", auto_offset_reset="earliest", isolation_level="read_committed") as consumer:
        found: list[bytes] = []
        while records := consumer.poll(timeout_ms=200, max_records=10_000):
            found += [record.value for record in records]
    return found


def each_leads_in_turn(cluster: streamlog.Cluster) -> list[list[bytes]]:
    """What readers of committed records see of each replica."""
    seen, led = [], set()
    while len(led) < 3:
        cluster._refreshed()
        leader = cluster.topic("t").describe().partitions[0].leader
        led.add(leader)
        seen.append(committed(cluster))
        others = [broker for broker in range(3) if broker not in led]
        cluster.reassign_partitions({("t", 0): [*others, *led]})
        cluster.elect_leaders()
    return seen


def test_what_was_aborted_is_hidden_whoever_copied_and_whoever_leads(place: Path, seed: int) -> None:
    rng = random.Random(seed)
    wanted: list[bytes] = []
    with brokers(place) as first, streamlog.open(place / "log") as second:
        first.create_topic("t", replication_factor=3, segment_bytes=8192)
        clusters = [first, second]
        plain = [cluster.producer(linger_ms=0) for cluster in clusters]
        transactional = [cluster.producer(linger_ms=0, transactional_id=f"x{n}") for n, cluster in enumerate(clusters)]
        for producer in transactional:
            producer.init_transactions()
        inside: list[list[bytes]] = [[], []]
        for number in range(300):
            who, what = rng.randrange(2), rng.random()
            value = b"%d" % number + bytes(rng.randrange(200))
            if what < 0.4:
                plain[who].send("t", value).result()
                wanted.append(value)
            elif what < 0.8:
                if not inside[who]:
                    transactional[who].begin_transaction()
                transactional[who].send("t", value).result()
                inside[who].append(value)
            elif inside[who]:
                if rng.random() < 0.5:
                    transactional[who].abort_transaction()
                else:
                    transactional[who].commit_transaction()
                    wanted += inside[who]
                inside[who] = []
            if rng.random() < 0.02:
                leader = log_of(first).state.leader
                first.stop_broker(leader)
                first.start_broker(leader)
        for producer in [*plain, *transactional]:
            producer.close()
        assert all(sorted(seen) == sorted(wanted) for seen in each_leads_in_turn(first))


WRITER = """
import sys, streamlog
location, kind = sys.argv[1:]
with streamlog.open(location) as log:
    if kind == "plain":
        with log.producer(linger_ms=0) as producer:
            while True:
                producer.send("t", b"plain").result()
    with log.producer(linger_ms=0, transactional_id=kind) as producer:
        producer.init_transactions()
        while True:
            producer.begin_transaction()
            for _ in range(4):
                producer.send("t", b"aborted").result()
            producer.abort_transaction()
"""


def test_what_was_aborted_is_hidden_though_those_who_copied_are_killed(place: Path, seed: int) -> None:
    rng = random.Random(seed)
    with brokers(place) as cluster:
        cluster.create_topic("t", replication_factor=3, segment_bytes=16384)
        kinds = ["a", "b", "plain", "plain"]

        def start(kind: str) -> subprocess.Popen[bytes]:
            return subprocess.Popen([sys.executable, "-c", WRITER, str(place / "log"), kind], stderr=subprocess.DEVNULL)

        writers = [start(kind) for kind in kinds]
        until = time.monotonic() + 6
        while time.monotonic() < until:
            time.sleep(0.3)
            if rng.random() < 0.5:
                number = rng.randrange(4)
                writers[number].send_signal(signal.SIGKILL)
                writers[number].wait()
                writers[number] = start(kinds[number])
            elif rng.random() < 0.3:
                leader = log_of(cluster).state.leader
                cluster.stop_broker(leader)
                cluster.start_broker(leader)
        for writer in writers:
            writer.kill()
            writer.wait()
        assert cluster.topic("t").end_offsets()[0] > 20
        for seen in each_leads_in_turn(cluster):
            assert b"aborted" not in seen


# ---- producer ids that were given out elsewhere


class Foreign(Pending):
    foreign = True


def foreign(sequence: int, value: bytes, *, producer_id: int = 70_000, epoch: int = 0) -> Foreign:
    batch = Foreign()
    batch.attributes, batch.columns = fmt.encode_rows([value])
    batch.count, batch.producer = 1, (producer_id, sequence, epoch)
    batch.base_timestamp = batch.max_timestamp = 1
    return batch


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("others", [0, 200])
def test_a_batch_of_a_foreign_producer_that_comes_through_another_process_is_answered(count: int, others: int, place: Path) -> None:
    """`others`: batches between, more than are folded under the lock."""
    with brokers(place, count) as first, streamlog.open(place / "log") as second:
        first.create_topic("t", replication_factor=count)
        logs = [cluster._log(cluster._refreshed().topic("t"), 0) for cluster in (first, second)]
        with second.producer(linger_ms=0) as producer:
            for sequence in range(3):
                sent = foreign(sequence, b"%d" % sequence)
                logs[0].append(sent, 10.0)
                for _ in range(others):
                    producer.send("t", b"other").result()
                again = foreign(sequence, b"%d" % sequence)
                logs[1].append(again, 10.0)
                assert again.base_offset == sent.base_offset
        with pytest.raises(OutOfOrderSequenceError):
            logs[1].append(foreign(4, b"4"), 10.0)
        logs[1].append(foreign(3, b"3"), 10.0)
        assert first.topic("t").end_offsets()[0] == 4 + 3 * others
