"""Numbers in the documents are the code's: each phrase is made from the value that it speaks of."""

import json
from typing import Any

import pytest

from crash import test_random_kills
from docs.pages import ROOT, prose_of
from streamlog._client import batch, fetcher, meter
from streamlog._coord import group
from streamlog._format import batch as fmt
from streamlog._format import compression, names
from streamlog._log import open_files, producer_state, state
from streamlog._os import files, wake, watch
from streamlog._replica import controller, home, leadership, replicas, topics
from streamlog.cluster import MAX_PARTITIONS
from streamlog.config import INT32_MAX, ClusterConfig, Config, ConsumerConfig, ProducerConfig, TopicConfig
from streamlog.partitioners import _REMEMBERED_BYTES

MIB, DAY_MS, HOUR_MS = 1 << 20, 86_400_000, 3_600_000
WORDS = {1: "one", 2: "two", 3: "three", 5: "five"}


def default(config: type[Config], name: str) -> Any:
    return config.fields[name].default


def data(path: str) -> Any:
    return json.loads((ROOT / path).read_text())


README = [
    f"{default(TopicConfig, 'max_message_bytes') // MIB} MiB for a batch, some {round(fmt.BATCH_HEADER_SIZE + 16, -2)} bytes of overhead included",
    f"at most {(INT32_MAX + 1) >> 30} GiB",
    f"{MAX_PARTITIONS:,} partitions a topic",
    f"{group.MAX_MEMBERS:,} members a group",
    f'`durability="{default(ProducerConfig, "durability")}"` (default)',
    f'(`auto_offset_reset="{default(ConsumerConfig, "auto_offset_reset")}"`), unless told otherwise',
]
ARCHITECTURE = [
    f"`segment_bytes` is {default(TopicConfig, 'segment_bytes') // MIB} MiB (at least 4 KiB)",
    f"(`retention_ms={default(TopicConfig, 'retention_ms')}`)",
    f"one {open_files._SHARE}th of the process's limit (RLIMIT_NOFILE), at least {open_files._FEWEST} and at most {open_files._MOST}",
    f"at most {fetcher._OPEN_VIEWS} partitions of a consumer are mapped at one time",
    f"A blocked `poll` wakes once in {wake.BOUND:.0f} second",
    f"one for each other process in it (at most {watch._MOST})",
    f"at most {home._OPEN_SOURCES} leaders' files are mapped to copy from",
    f"I/O below {files.SMALL_WRITE >> 10} KiB keeps the GIL",
    f"one for each segment and every {producer_state.SNAPSHOT_EVERY // MIB} MiB",
    f"only one in {home._ID_BLOCK:,} producers pays a sync",
]
CRASH_SAFETY = [
    f"writers killed at random under load ({test_random_kills.KILLS if not test_random_kills.LONG else 150} times;",
    f"its last {WORDS[producer_state.REMEMBERED]} batches",
    f"Snapshots are written after each roll and every {producer_state.SNAPSHOT_EVERY // MIB} MiB",
    f"at most {producer_state.SNAPSHOT_EVERY // MIB} MiB of log are between snapshots",
    f"for more than {watch._MOST} processes, the locks are probed every {watch.PROBE * 1000:.0f} ms",
    f"waits {home._NOTICE:.0f} s for them to notice",
]
FORMAT = [
    f"topic `{names.OFFSETS_TOPIC}` ({default(ClusterConfig, 'offsets_topic_num_partitions')} partitions unless",
    f"topic `{names.TRANSACTIONS_TOPIC}` ({default(ClusterConfig, 'transaction_state_log_num_partitions')} partitions unless",
    f"compact, segments of {topics._INTERNAL_SEGMENT_BYTES // MIB} MiB",
    f"ids come in blocks of {home._ID_BLOCK:,}",
    f"the home's copy is {leadership.HOME}",
    f"at most {compression.LARGEST // MIB} MiB",
    f"a partition's slot of {state.SLOT_BYTES} bytes",
    f"a partition's leadership of {leadership.WORDS * 8} bytes",
    f"(UTF-8, seed 0) mod {names.TRANSACTION_STRIPES}",
    f"`transactions.state`: {names.TRANSACTION_STRIPES} u64 words",
    f"has 1 to {names.MAX_TOPIC_NAME} characters",
    f"its last batches (up to {WORDS[producer_state.REMEMBERED]})",
]
GROUPS = [
    f"`offsets_retention_minutes` ({default(ClusterConfig, 'offsets_retention_minutes') // 1440} days)",
    f"it probes the locks every {watch.PROBE * 1000:.0f} ms",
    f"at most {group.MAX_MEMBERS:,} members",
    f"The default assignor is {default(ConsumerConfig, 'partition_assignment_strategy')};",
    f"Tests compare {len(data('tests/coord/kafka_assignors.json'))} of its answers",
    "and a second later one of them tries again" if group.CLAIM_MS == 1000 else "?",
]
PRODUCER = [
    f"`buffer_memory` ({default(ProducerConfig, 'buffer_memory') // MIB} MiB)",
    f"keys, values and {batch.RECORD_MEMORY} bytes a record",
    f"for keys that come again (up to {_REMEMBERED_BYTES // MIB} MiB of them)",
    f"holds what librdkafka chose for {len(data('tests/client/partitions.json')['keys'])} keys",
    f"batches of {default(ProducerConfig, 'batch_size') >> 10} KiB",
    f"a batch has at most {compression.LARGEST // MIB} MiB",
    f"the last {WORDS[producer_state.REMEMBERED]} batches of each id",
    f"Ids come in blocks of {home._ID_BLOCK:,}",
    f"`producer_id_expiration_ms` ({WORDS[default(ClusterConfig, 'producer_id_expiration_ms') // DAY_MS]} day;",
    f"`message_timestamp_after_max_ms` ahead ({WORDS[default(TopicConfig, 'message_timestamp_after_max_ms') // HOUR_MS]} hour,",
    f"over the last {meter._WINDOW:.0f} to {2 * meter._WINDOW:.0f} seconds",
    f'"{default(TopicConfig, "compression_type")}", the default, leaves it',
]
REPLICATION = [
    f"`replica_lag_time_max_ms` ({default(ClusterConfig, 'replica_lag_time_max_ms') // 1000} s)",
    f"(write, sync, read) after {controller._FIRST_PROBE} s",
    f"have as many replicas as there are brokers, up to {WORDS[topics.INTERNAL_REPLICAS]}",
    "copies a megabyte at a time" if replicas.FETCH_BYTES == MIB else "?",
    f'`acks="{default(ProducerConfig, "acks")}"`** (the default)',
]
TRANSACTIONS = [
    f"`transaction_timeout_ms` ({default(ProducerConfig, 'transaction_timeout_ms') // 1000} s, at most 15 min)",
    f"`transactional_id_expiration_ms` (an option of the cluster, {default(ClusterConfig, 'transactional_id_expiration_ms') // DAY_MS} days)",
    f"it looks every {fetcher._LOOK_EVERY * 1000:.0f} ms",
    f"`{names.TRANSACTIONS_TOPIC}` has {default(ClusterConfig, 'transaction_state_log_num_partitions')} partitions",
]
PERFORMANCE = [f"That reader looks every {fetcher._LOOK_EVERY * 1000:.0f} ms"]
PHRASES = {
    "README.md": README, "docs/architecture.md": ARCHITECTURE, "docs/crash-safety.md": CRASH_SAFETY, "docs/format.md": FORMAT,
    "docs/groups.md": GROUPS, "docs/producer.md": PRODUCER, "docs/replication.md": REPLICATION, "docs/transactions.md": TRANSACTIONS,
    "docs/performance.md": PERFORMANCE,
}  # fmt: skip


@pytest.mark.parametrize(("page", "phrase"), [(page, phrase) for page, phrases in PHRASES.items() for phrase in phrases])
def test_a_number_is_the_codes(page: str, phrase: str) -> None:
    assert phrase in prose_of(page)


def test_limits_are_enforced_where_they_are_told() -> None:
    for config, name, below, least in ((TopicConfig, "segment_bytes", 4095, 4096), (ProducerConfig, "transaction_timeout_ms", 900_001, 900_000)):
        config({name: least})
        with pytest.raises(ValueError, match=name):
            config({name: below})


def test_help_lists_every_option() -> None:
    for config in (ProducerConfig, ConsumerConfig, TopicConfig):
        assert all(f"    {name} = " in (config.__doc__ or "") for name in config.fields)
