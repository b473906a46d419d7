"""The command line, command by command: in this process, and as a process where pipes and signals matter."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import streamlog
from streamlog.cli import main
from streamlog.cli.produce import read_lines

Run = Callable[..., str]


@pytest.fixture
def cluster(place: Path) -> Path:
    """Where a cluster is that nobody has open, with topic `t` of two partitions."""
    with streamlog.open(place / "log") as log:
        log.create_topic("t", partitions=2)
    return place / "log"


@pytest.fixture
def run(cluster: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run a command on the cluster, check its exit code, and return what it printed on standard output."""

    def run_command(*arguments: str, code: int = 0) -> str:
        assert main(["--location", str(cluster), *arguments]) == code
        return capfdbinary.readouterr().out.decode()

    return run_command


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Put bytes on standard input."""
    return lambda data: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def command(cluster: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "streamlog", "--location", str(cluster), *arguments]


def segment(cluster: Path, partition: str = "t-0") -> Path:
    return cluster / "broker-0" / partition / f"{0:020}.log"


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


def send(cluster: Path, *values: str, partition: int = 0) -> None:
    """Each value becomes a batch of its own."""
    with streamlog.open(cluster) as log, log.producer(linger_ms=0) as producer:
        for value in values:
            producer.send("t", value, key="k", partition=partition, timestamp_ms=7)


# ---- topics ----------------------------------------------------------------------------------------------------------


def test_topics_are_created_listed_described_and_deleted(run: Run) -> None:
    assert run("topics", "create", "orders", "--partitions", "3", "--config", "segment.bytes=4096").startswith("orders: 3 partitions")
    assert run("topics", "list").split() == ["orders", "t"]
    run("groups", "reset-offsets", "g", "--topic", "t", "--to-earliest", "--execute")
    assert run("topics", "list").split() == ["orders", "t"]
    assert run("topics", "list", "--internal").split() == ["__consumer_offsets", "orders", "t"]
    described = run("topics", "describe", "orders").splitlines()
    assert described[0].endswith("config segment_bytes=4096")
    assert [line.split()[0] for line in described[1:]] == ["partition", "0", "1", "2"]
    assert run("topics", "describe").count("config") == 2
    assert run("topics", "delete", "orders") == "orders: deleted\n"
    assert run("topics", "list").split() == ["t"]


def test_creating_or_deleting_twice_is_an_error_unless_it_is_said_not_to_be(run: Run) -> None:
    run("topics", "create", "t", code=2)
    assert run("topics", "create", "t", "--if-not-exists").startswith("t: 2 partitions")
    run("topics", "delete", "nowhere", code=2)
    assert run("topics", "delete", "nowhere", "--if-exists") == ""


def test_the_first_topic_makes_the_cluster_and_nothing_else_does(place: Path) -> None:
    new = str(place / "new")
    assert main(["--location", new, "topics", "list"]) == 2
    assert not (place / "new").exists()
    assert main(["--location", new, "topics", "create", "a"]) == 0
    assert main(["--location", new, "topics", "list"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["topics", "describe", "tt"], "did you mean 't'?"),
        (["topics", "create", "a", "--config", "segment_byte=1"], "did you mean 'segment_bytes'?"),
        (["topics", "create", "a", "--config", "partitions=3"], "not an option"),
        (["topics", "create", "a", "--partitions", "0"], "partitions=0"),
        (["consume", "t", "--offset", "3"], "--offset needs --partition"),
        (["consume", "t", "--partition", "9"], "not 9"),
        (["consume", "t", "--partition", "0", "--offset", "9", "--timeout-ms", "0"], "9"),
        (["produce", "nowhere"], "'nowhere'"),
        (["dump", "nowhere.log"], "nowhere.log: No such file"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(cluster: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--location", str(cluster), *arguments]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert said in shown[-1]
    assert shown[-1].startswith("streamlog: ")


def test_the_location_comes_from_the_environment_or_is_asked_for(
    cluster: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("STREAMLOG_LOCATION", raising=False)
    assert main(["topics", "list"]) == 2
    assert "--location" in capsys.readouterr().err
    monkeypatch.setenv("STREAMLOG_LOCATION", str(cluster))
    assert main(["topics", "list"]) == 0
    assert capsys.readouterr().out == "t\n"


@pytest.mark.parametrize(
    "arguments",
    ["", "topics", "consume t --format jsno", "consume t --format %q", "produce t --header x", "consume t --max -1", "nonsense"],
)
def test_a_command_line_that_means_nothing_is_exit_code_2(arguments: str) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments.split())
    assert exit_info.value.code == 2


# ---- produce and consume ---------------------------------------------------------------------------------------------


def test_lines_come_back_byte_for_byte(run: Run, give: Callable[[bytes], None], capfdbinary: pytest.CaptureFixture[bytes], cluster: Path) -> None:
    data = b"plain\n\n\xff\x00binary\r\nlast without end"
    give(data)
    assert main(["--location", str(cluster), "produce", "t", "--partition", "1", "--sync"]) == 0
    assert capfdbinary.readouterr().err == b"4 records written\n"
    assert main(["--location", str(cluster), "consume", "t", "--from-beginning", "--timeout-ms", "0"]) == 0
    assert capfdbinary.readouterr().out == data + b"\n"


def test_keys_and_headers(run: Run, give: Callable[[bytes], None], cluster: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    give(b"a:1:x\nb:\n")
    run("produce", "t", "--key-separator", ":", "--header", "from=test")
    shown = sorted(run("consume", "t", "--from-beginning", "--timeout-ms", "0", "--format", "%k|%s|%h\n").splitlines())
    assert shown == ["a|1:x|from=test", "b||from=test"]
    give(b"c:1\nno key\n")
    assert main(["--location", str(cluster), "produce", "t", "--key-separator", ":"]) == 2
    assert b"line 2 has no key" in capfdbinary.readouterr().err


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_lines_are_the_same_however_they_arrive(size: int) -> None:
    data = b"\nab\n\ncdefg\nlast"

    class Dribble(io.BytesIO):
        def read1(self, most: int | None = -1, /) -> bytes:
            return super().read1(size)

    assert [line for lines in read_lines(Dribble(data)) for line in lines] == data.split(b"\n")
    assert [line for lines in read_lines(Dribble(data + b"\n")) for line in lines] == data.split(b"\n")


@pytest.mark.parametrize(
    ("form", "wanted"),
    [("value", "v\n"), ("key-value", "k\tv\n"), (r"%t-%p@%o %k=%s %T%%\n", "t-1@0 k=v 7%\n"), (r"\\%s\t", "\\v\t")],
)
def test_formats(run: Run, cluster: Path, form: str, wanted: str) -> None:
    send(cluster, "v", partition=1)
    assert run("consume", "t", "--from-beginning", "--timeout-ms", "0", "--format", form) == wanted


def test_json_shows_bytes_that_are_no_text_in_base64(run: Run, cluster: Path) -> None:
    with streamlog.open(cluster) as log, log.producer() as producer:
        producer.send("t", b"\xff\x00", key="schlüssel", partition=0, timestamp_ms=7, headers=[("h", None)])
    assert json.loads(run("consume", "t", "--from-beginning", "--timeout-ms", "0", "--format", "json")) == {
        "topic": "t", "partition": 0, "offset": 0, "timestamp_ms": 7, "timestamp_type": "CreateTime", "key": "schlüssel",
        "value": {"base64": "/wA="}, "headers": [["h", None]], "leader_epoch": 0,
    }  # fmt: skip


def test_where_to_begin_and_when_to_end(run: Run, cluster: Path) -> None:
    send(cluster, "0", "1", "2", "3")
    send(cluster, "x", partition=1)
    assert run("consume", "t", "--timeout-ms", "0") == ""
    assert run("consume", "t", "--partition", "0", "--offset", "1", "--max", "2") == "1\n2\n"
    assert run("consume", "t", "--partition", "0", "--from-beginning", "--timeout-ms", "20") == "0\n1\n2\n3\n"
    assert run("consume", "t", "--max", "0") == ""


@pytest.mark.usefixtures("sigint")
def test_a_consumer_shows_at_once_what_a_producer_sends_and_ends_at_an_interrupt(cluster: Path) -> None:
    consumer = subprocess.Popen(command(cluster, "consume", "t", "--from-beginning"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    producer = subprocess.Popen(command(cluster, "produce", "t"), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert consumer.stdout is not None
    assert producer.stdin is not None
    for line in (b"first\n", b"second\n"):
        producer.stdin.write(line)
        producer.stdin.flush()
        assert consumer.stdout.readline() == line
    consumer.send_signal(signal.SIGINT)
    assert consumer.communicate(timeout=20) == (b"", b"")
    assert consumer.returncode == 130
    assert producer.communicate(timeout=20)[1] == b"2 records written\n"


def test_a_reader_that_goes_away_is_no_error(cluster: Path) -> None:
    with streamlog.open(cluster) as log, log.producer() as producer:
        producer.send_batch("t", [b"x" * 100] * 20_000)
    consumer = subprocess.Popen(command(cluster, "consume", "t", "--from-beginning"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert consumer.stdout is not None
    assert consumer.stderr is not None
    consumer.stdout.readline()
    consumer.stdout.close()
    with consumer.stderr:
        assert consumer.stderr.read() == b""
    assert consumer.wait(timeout=20) == 0


def test_a_cold_start_imports_neither_rich_nor_numpy() -> None:
    program = "import sys, streamlog.cli; sys.exit(sorted({'rich', 'numpy', 'msgpack'} & set(sys.modules)) or 0)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


# ---- dump ------------------------------------------------------------------------------------------------------------


def test_dump_shows_batches_and_records(run: Run, cluster: Path) -> None:
    send(cluster, "one", "two")
    shown = run("dump", str(segment(cluster)))
    assert "batch at position 64: offsets 0 to 0 count 1" in shown
    assert "2 batches, 2 records, next offset 2" in shown
    assert "value b" not in shown
    assert "1: timestamp 7 key b'k' value b'two'" in run("dump", "--records", str(segment(cluster)))


def test_dump_goes_on_behind_damage(run: Run, cluster: Path) -> None:
    send(cluster, "one", "two", "three")
    flip(segment(cluster), 64 + 80 + 2)  # a column of the first batch
    shown = run("dump", str(segment(cluster)), "--records", code=1)
    assert "DAMAGED at position 64: checksum 0x" in shown
    assert "cannot see offsets 0 to 0; going on at position" in shown
    assert "value b'two'" in shown
    assert "2 batches, 2 records, next offset 3" in shown


def test_dump_says_that_it_cannot_tell_a_torn_tail_from_a_damaged_one(run: Run, cluster: Path) -> None:
    send(cluster, "only")
    flip(segment(cluster), 64 + 80 + 2)
    assert "cannot see whether they are a torn append" in run("dump", str(segment(cluster)), code=1)


@pytest.mark.parametrize("position", [0, 10, 45])
def test_dump_reads_batches_under_a_damaged_segment_header(run: Run, cluster: Path, position: int) -> None:
    send(cluster, "one")
    flip(segment(cluster), position)
    shown = run("dump", str(segment(cluster)), "--records", code=1)
    assert "DAMAGED at position 0" in shown
    assert "value b'one'" in shown


@pytest.mark.parametrize("position", [4, 64 + 4])
def test_dump_says_that_a_version_is_newer(run: Run, cluster: Path, position: int) -> None:
    send(cluster, "one")
    flip(segment(cluster), position)
    assert "format version 254; this program knows up to 1" in run("dump", str(segment(cluster)), code=1)


def test_dump_decodes_the_metadata_log(run: Run, cluster: Path) -> None:
    shown = run("dump", str(segment(cluster, "__cluster_metadata-0")))
    assert "segment of the metadata log" in shown
    assert "TopicRecord t " in shown


def test_dump_of_every_file_of_a_cluster_finds_no_damage(run: Run, cluster: Path) -> None:
    with streamlog.open(cluster) as log:
        log.create_topic("small", segment_bytes=4096, index_interval_bytes=0)
        with log.producer(linger_ms=0, durability="fsync") as producer:
            for number in range(60):
                producer.send("small", bytes(200), key=str(number))
        files = [path for path in cluster.rglob("*") if path.is_file()]
        shown = {path.name: run("dump", str(path)) for path in files}  # code 0, also while the cluster is open
    assert {path.suffix for path in files} >= {".log", ".index", ".state", ".lock", ".json", ".properties"}
    assert "processes" in shown["cluster.state"]
    assert "format_version 1" in shown["cluster.json"]
    assert "cluster.id" in shown["meta.properties"]
    assert "entries" in shown["leader-epoch-checkpoint"]
    assert "entries" in run("dump", str(cluster / "broker-0" / "recovery-point-offset-checkpoint"))
    states = [text for name, text in shown.items() if name.endswith(".state") and "slots" in text]
    assert any("end=60" in text and "hwm=60" in text for text in states)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("leader-epoch-checkpoint", b"0\n2\n0 0\n"),
        ("recovery-point-offset-checkpoint", b"\xff"),
        ("cluster.json", b'{"format_version": 1,'),
        ("cluster.json", b"[]"),
        ("cluster.json", b'{"format_version": 2}'),
        ("meta.properties", b"version=1\nnonsense\n"),
        ("00000000000000000000.index", b"SLI1\1"),
        ("00000000000000000000.index", b"SLI1\1\0\0\0" + bytes(16) + b"\1" * 30),
        ("00000000000000000000.index", b"nope" + bytes(20)),
        ("00000000000000000000.log", b"SLS1"),
        ("00000000000000000000.log", b""),
        ("cluster.state", b"SLR1\2" + bytes(8187)),
        ("0123.state", b"what" + bytes(8188)),
        ("letter.txt", b"dear mother"),
    ],
)
def test_dump_says_what_is_wrong_with_a_file(place: Path, run: Run, name: str, content: bytes) -> None:
    (place / name).write_bytes(content)
    shown = run("dump", str(place / name), code=1)
    assert "DAMAGED" in shown or "UNKNOWN VERSION" in shown


def test_dump_says_that_a_copied_state_file_does_not_count(place: Path, run: Run, cluster: Path) -> None:
    (place / "copy.state").write_bytes((cluster / "run" / "cluster.state").read_bytes())
    assert "does not count" in run("dump", str(place / "copy.state"))


def test_dump_is_a_module_too(cluster: Path) -> None:
    send(cluster, "one")
    shown = subprocess.run([sys.executable, "-m", "streamlog.dump", segment(cluster)], capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "1 batches, 1 records" in shown.stdout


@pytest.mark.parametrize("position", range(64, 200, 3))
def test_dump_survives_any_flipped_byte(run: Run, cluster: Path, position: int) -> None:
    send(cluster, "one", "two")
    flip(segment(cluster), position)
    run("dump", str(segment(cluster)), "--records", code=1)


# ---- verify ----------------------------------------------------------------------------------------------------------


def test_verify_finds_nothing_wrong_with_a_sound_cluster_and_a_flipped_byte_in_another(run: Run, cluster: Path) -> None:
    send(cluster, "one", "two")
    assert run("verify") == ""
    flip(segment(cluster), 64 + 80 + 2)
    assert str(segment(cluster)) in run("verify", code=1)


def test_verify_shows_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def check(location: str, *, progress: Callable[[int, int], None]) -> list[streamlog.Finding]:
        progress(1, 4)
        time.sleep(0.02)
        progress(2, 4)
        return []

    monkeypatch.setattr(streamlog, "check", check, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich.console", None)  # as if it were not installed
    monkeypatch.setattr("streamlog.cli.checks._EVERY", 0.01)
    assert main(["--location", "anywhere", "verify"]) == 0
    assert capsys.readouterr().err == "50% of 4 bytes\neverything holds\n"


# ---- groups ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def group(cluster: Path) -> Path:
    """A group "g" that read 10 records of each partition of `t` and left; then 5 more came."""
    with streamlog.open(cluster) as log:
        for count in (10, 5):
            with log.producer() as producer:
                for partition in (0, 1):
                    for number in range(count):
                        producer.send("t", str(number), partition=partition, timestamp_ms=1_000_000 * (count == 5) + number)
            if count == 10:
                with log.consumer("t", group_id="g", client_id="ann", auto_offset_reset="earliest") as consumer:
                    assert len(consumer.poll()) == 20
    return cluster


def offsets(cluster: Path) -> dict[int, int]:
    with streamlog.open(cluster) as log:
        return {tp.partition: found.offset for tp, found in log.group_offsets("g").items()}


def test_groups_are_listed_and_described(run: Run, group: Path) -> None:
    assert run("groups", "list") == "g  Empty\n"
    shown = run("groups", "describe", "g")
    assert "g: Empty, 0 members, generation 1, assignor cooperative-sticky" in shown
    assert shown.splitlines()[2].split() == ["t", "0", "10", "15", "5", "-", "-", "-"]
    with streamlog.open(group) as log, log.consumer("t", group_id="g", client_id="bob") as consumer:
        consumer.poll()
        idle = log.consumer("t", group_id="g")
        for _ in range(3):
            idle.poll()
            consumer.poll()
        shown = run("groups", "describe")
        assert "Stable, 2 members" in shown
        assert any(line.split()[6] == "bob" and line.split()[7] == str(os.getpid()) for line in shown.splitlines()[2:])


def test_groups_describe_of_an_unknown_group_is_an_error(run: Run) -> None:
    run("groups", "describe", "nix", code=2)
    run("groups", "delete", "nix", code=2)
    assert run("groups", "list") == ""


@pytest.mark.usefixtures("sigint")
def test_groups_describe_goes_on_with_watch(group: Path) -> None:
    process = subprocess.Popen(command(group, "groups", "describe", "--watch", "0.05"), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = [process.stdout.readline() for _ in range(8)]
    assert sum(line.startswith("g: Empty") for line in seen) >= 2
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    process.stdout.close()


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (["--to-earliest"], {0: 0, 1: 0}), (["--to-latest"], {0: 15, 1: 15}), (["--to-offset", "3"], {0: 3, 1: 3}),
        (["--to-offset", "99"], {0: 15, 1: 15}), (["--shift-by", "-4"], {0: 6, 1: 6}), (["--shift-by", "2"], {0: 12, 1: 12}),
        (["--shift-by", "-40"], {0: 0, 1: 0}), (["--to-datetime", "1970-01-01T00:16:40+00:00"], {0: 10, 1: 10}),
        (["--by-duration", "P30000D"], {0: 0, 1: 0}), (["--by-duration", "PT1H"], {0: 15, 1: 15}),
    ],
)  # fmt: skip
def test_groups_reset_offsets(run: Run, group: Path, where: list[str], expected: dict[int, int]) -> None:
    shown = run("groups", "reset-offsets", "g", "--all-topics", *where)
    assert "nothing was changed" in shown
    assert offsets(group) == {0: 10, 1: 10}
    rows = [line.split() for line in shown.splitlines() if line.startswith("  ")]
    assert [int(row[3]) for row in rows[1:]] == list(expected.values())
    assert ("is taken" in shown) == (where[1:] in (["99"], ["-40"]))
    run("groups", "reset-offsets", "g", "--all-topics", *where, "--execute")
    assert offsets(group) == expected


def test_groups_reset_offsets_of_some_partitions_and_of_a_new_group(run: Run, group: Path) -> None:
    run("groups", "reset-offsets", "g", "--topic", "t:1", "--to-earliest", "--execute")
    assert offsets(group) == {0: 10, 1: 0}
    run("groups", "reset-offsets", "new", "--topic", "t", "--to-offset", "7", "--execute")
    assert run("groups", "list") == "g  Empty\nnew  Empty\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["g", "--to-earliest"], ["g", "--topic", "nix", "--to-earliest"], ["g", "--topic", "t:7", "--to-earliest"],
        ["g", "--topic", "t:x", "--to-earliest"], ["new", "--topic", "t", "--shift-by", "1"], ["new", "--all-topics", "--to-latest"],
    ],
)  # fmt: skip
def test_groups_reset_offsets_refuses(run: Run, group: Path, arguments: list[str]) -> None:
    run("groups", "reset-offsets", *arguments, "--execute", code=2)
    assert offsets(group) == {0: 10, 1: 10}


@pytest.mark.parametrize("arguments", [["--to-datetime", "yesterday"], ["--by-duration", "1h"], ["--to-offset", "-1"], ["--shift-by", "x"], []])
def test_groups_reset_offsets_refuses_what_is_no_place(group: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--location", str(group), "groups", "reset-offsets", "g", "--all-topics", *arguments])


def test_groups_with_members_are_left_alone(run: Run, group: Path) -> None:
    with streamlog.open(group) as log, log.consumer("t", group_id="g") as consumer:
        consumer.poll()
        run("groups", "reset-offsets", "g", "--all-topics", "--to-earliest", "--execute", code=2)
        run("groups", "delete", "g", code=2)
    assert run("groups", "delete", "nix", "g", code=2) == "g: deleted\n"
    assert run("groups", "list") == ""


def test_produce_with_a_producers_options_and_dump_shows_them(run: Run, give: Callable[[bytes], None], cluster: Path) -> None:
    give(b"a line\n" * 1000)
    run("produce", "t", "--partition", "0", "--config", "compression.type=gzip", "--config", "compression_level=9")
    shown = run("dump", str(segment(cluster)))
    assert "codec gzip" in shown
    assert "producer 0 epoch 0 sequence 0" in shown
    assert run("consume", "t", "--from-beginning", "--timeout-ms", "50").count("a line\n") == 1000
    give(b"x\n")
    run("produce", "t", "--config", "compression_type=lzma", code=2)
    with streamlog.open(cluster) as log:
        partition = log._home.log(log._home.metadata.topic("t"), 0, 5)
        partition.producers.take_snapshot()
        (path,) = Path(partition.directory).glob("*.snapshot")
    shown = run("dump", str(path))
    assert "producer snapshot: offset 1000" in shown
    assert "producer 0 epoch 0 next sequence 1000" in shown
    assert "sequences 0 to 999 offset 0" in shown
    flip(path, 50)
    assert "the checksum does not hold" in run("dump", str(path), code=1)
    run("verify")


def test_transactions_from_the_shell(run: Run, cluster: Path) -> None:
    with streamlog.open(cluster) as log:
        with log.producer(transactional_id="bank", client_id="me", linger_ms=0) as producer:
            producer.init_transactions()
            producer.begin_transaction()
            producer.send("t", b"v", partition=1).result()
            assert "bank" in run("transactions", "list")
            assert "Ongoing" in run("transactions", "list")
            shown = run("transactions", "describe")
            assert "client 'me' (alive)" in shown
            assert "of 60 s, in t-1" in shown
            assert run("transactions", "find-hanging") == ""
            assert "yes" in run("transactions", "list")
            assert run("transactions", "abort", "bank") == "bank: aborted; its producer is fenced\n"
            assert run("transactions", "abort", "bank") == "bank: nothing was open; its producer is fenced\n"
            assert "(alive)" not in run("transactions", "describe", "bank")
        path = cluster / "broker-0" / "t-1" / "00000000000000000000"
        assert "marker: abort" in run("dump", f"{path}.log")
        assert "aborted from offset 0 to its marker at 1" in run("dump", f"{path}.txnindex")
        for name in ("offsets-snapshot", "transactions-snapshot"):
            for found in cluster.rglob(name):
                run("dump", str(found))
    place = ["--topic", "t", "--partition", "0"]
    for arguments in (["describe", "nobody"], ["abort", "nobody"], ["abort"], ["abort", "x", *place], ["abort", *place]):
        run("transactions", *arguments, code=2)
    done = subprocess.run(command(cluster, "transactions", "abort", *place, "--start-offset", "0"), capture_output=True, text=True)
    assert done.returncode == 2
    assert "no hanging transaction begins at offset 0 of t-0" in done.stderr
    assert "(gone, or fenced)" in run("transactions", "describe", "bank")
