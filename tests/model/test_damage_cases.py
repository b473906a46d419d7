"""Every way in which a small log may be found: which of its batches are sound, what was synced, and how it is opened.

Six batches in two segments; each batch, and each segment's header, is sound or not; the recovery point stands anywhere; the log is opened
after a reboot, in the same boot, or after a death.  All of it is tried on the code itself, and compared with the rule.
"""

import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog._log import recovery
from streamlog._log.partition import PartitionLog
from streamlog._log.state import BOOT, DIRTY, END, HWM, MOUNT, POSITION

HEADER, BATCH, COUNT, ROLL = 64, 96, 6, 3
SOUND = list(product((True, False), repeat=COUNT))
HEADERS = [(True, True), (False, True), (True, False), (False, False)]
CASES = [
    (sound, headers)
    for headers in HEADERS
    for sound in SOUND
    if all(headers[number // ROLL] or sound[number] for number in range(COUNT))  # what a bad header makes of its batches is one case
]


def expected(sound: tuple[bool, ...], durable: int, how: str, headers: tuple[bool, bool] = (True, True)) -> tuple[list[int], int]:
    """What can be read, and where the log goes on."""
    sound = tuple(sound[number] and headers[number // ROLL] for number in range(COUNT))
    if not headers[0]:
        durable = max(durable, 1)  # a log begins with a header that was on the disk before anything else
    scanned = ROLL if durable >= ROLL and how == "boot" else 0  # a segment wholly below the recovery point is not looked through
    if how == "death":
        scanned = ROLL  # only what follows the high watermark is, and what leads to it
    first_bad = next((n for n in range(scanned, COUNT) if not sound[n]), COUNT)
    end = first_bad
    if first_bad < durable:
        end = max([durable, ROLL, *(n + 1 for n in range(COUNT) if sound[n])])
    return [n for n in range(min(end, COUNT)) if sound[n]], end


class Cases:
    """A log that is put back before each case."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.log = streamlog.open(place / "log")
        self.log.create_topic("t", segment_bytes=4096)
        with self.log.producer(linger_ms=0) as producer:
            for number in range(COUNT):
                if number == ROLL:
                    self.roll()
                producer.send("t", b"%06d" % number).result()
        self.partition = self.log._log(self.log._refreshed().topic("t"), 0).replica
        self.partition.release_files()
        shutil.copytree(self.partition.directory, place / "kept")
        self.words = self.partition.words.tolist()

    def roll(self) -> None:
        """Go on in a new segment, in the same epoch."""
        from streamlog._os.locks import under

        partition = self.log._log(self.log._refreshed().topic("t"), 0).replica

        def inside() -> None:
            partition.settle(for_append=True)
            partition._roll(partition.words[END], partition.words[POSITION])

        under(partition.lock, 10.0, inside)

    def put_back(self, sound: tuple[bool, ...], headers: tuple[bool, bool]) -> None:
        directory = Path(self.partition.directory)
        for path in directory.iterdir():
            path.unlink()
        for path in (self.place / "kept").iterdir():
            data = bytearray(path.read_bytes())
            if path.suffix == ".log":
                base = int(path.stem)
                if not headers[base // ROLL]:
                    data[:40] = b"\xee" * 40
                for number in range(base, ROLL if base == 0 else COUNT):
                    if not sound[number]:
                        data[HEADER + BATCH * (number - base) + 90] ^= 0xFF
            with open(directory / path.name, "wb") as file:
                file.write(data)
        for number, word in enumerate(self.words):
            self.partition.words[number] = word
        inode = self.partition.fs.stat(f"{directory}/{ROLL:020}.log").st_ino
        self.partition.words[7] = inode  # INODE
        assert self.partition.words[MOUNT]
        self.partition.release_files()
        self.partition._looked = False

    def run(self, sound: tuple[bool, ...], durable: int, how: str, headers: tuple[bool, bool] = (True, True)) -> tuple[list[int], int]:
        self.put_back(sound, headers)
        self.partition.recovery_point = durable
        self.partition.reload_recovery_point = lambda: None  # type: ignore[method-assign]
        if how == "boot":
            self.partition.words[BOOT] = 0
        elif how == "death":
            self.partition.words[DIRTY] = 4_000_000
        found = []
        with self.log.consumer("t", auto_offset_reset="earliest") as consumer:
            while True:
                try:
                    records = consumer.poll()
                except streamlog.CorruptRecordError as error:
                    consumer.seek(("t", 0), error.next_offset)
                    continue
                if not records:
                    break
                found += [record.offset for record in records]
        return found, self.partition.words[HWM]


@pytest.fixture
def cases(place: Path) -> Cases:
    return Cases(place)


@pytest.mark.parametrize("durable", [0, 1, 2, 3, 4, 6])
def test_after_a_reboot_what_was_on_the_disk_is_kept_and_the_rest_ends_at_the_first_bad_batch(durable: int, cases: Cases) -> None:
    for sound, headers in CASES:
        assert cases.run(sound, durable, "boot", headers) == expected(sound, durable, "boot", headers), (sound, headers, durable)


@pytest.mark.parametrize("how", ["death", "live"])
def test_within_a_boot_nothing_that_was_published_goes(how: str, cases: Cases) -> None:
    for sound, headers in CASES:
        assert cases.run(sound, 0, how, headers) == expected(sound, COUNT, "death", headers), (sound, headers)


@pytest.mark.parametrize("rule", ["durable", "behind everything"])
def test_each_rule_is_needed(rule: str, cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    if rule == "durable":
        whole = recovery._whole

        def short(log: PartitionLog, bases: list[int], headers: Any) -> Any:
            kept, end, tail = whole(log, bases, headers)
            log.recovery_point = min(log.recovery_point, end)
            return kept, end, tail

        monkeypatch.setattr(recovery, "_whole", short)
        monkeypatch.setattr(recovery, "_durable", lambda _: 0)
    else:
        monkeypatch.setattr(recovery, "_last_sound", lambda _log, _bases, offset: offset)
    assert any(cases.run(sound, 4, "boot") != expected(sound, 4, "boot") for sound in SOUND)
