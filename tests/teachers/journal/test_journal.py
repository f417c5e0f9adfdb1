"""The journal keeps what was written, whatever happened to the writer, and says what it could not read."""

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from teachers.errors import TeacherError
from teachers.journal import segments as journal
from teachers.journal.segments import Damage, Journal


def write(folder: Path, n: int = 5, **options: int) -> list[Path]:
    with Journal(folder, "job", {"labeling": {"name": "L"}}, **options) as own:
        for k in range(n):
            own.append({"t": "call", "status": "ok", "k": k, "reply": "x" * 50 + "\u2028\n\udc80"})
    return journal.segments(folder)


def calls(path: Path, damage: Damage | None = None) -> list[int]:
    return [r["k"] for r in journal.read(path, damage) if r["t"] == "call"]


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    (path,) = write(tmp_path)
    head, *records = journal.read(path)
    assert head["t"] == "header"
    assert head["job"] == "job"
    assert [r["k"] for r in records] == [0, 1, 2, 3, 4]
    assert records[0]["reply"].endswith("\u2028\n\udc80"), "line separators and lone surrogates survive"


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_torn_tail_costs_one_record_and_is_reported(tmp_path: Path, cut: int) -> None:
    (path,) = write(tmp_path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - cut)
    damage = Damage()
    assert calls(path, damage) == [0, 1, 2, 3]
    assert damage.torn > 0
    assert damage.lines == []


def test_every_truncation_leaves_a_prefix(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 4)
    whole = path.read_bytes()
    seen = set()
    for size in range(0, len(whole) + 1, 3):
        path.write_bytes(whole[:size])
        found = calls(path)
        assert found == list(range(len(found)))
        seen.add(len(found))
    assert seen == {0, 1, 2, 3} or seen == {0, 1, 2, 3, 4}


def test_damage_in_the_middle_is_named_and_skipped(tmp_path: Path) -> None:
    (path,) = write(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"k":1', b'"k":9')  # valid JSON, wrong checksum
    path.write_bytes(b"".join(lines))
    damage = Damage()
    assert calls(path, damage) == [0, 2, 3, 4]
    assert damage.lines == [3]


def test_segments_rotate_and_each_has_its_header(tmp_path: Path) -> None:
    paths = write(tmp_path, 40, rotate_bytes=1000)
    assert len(paths) > 3
    assert all((journal.header(path) or {})["labeling"] == {"name": "L"} for path in paths)
    assert [k for path in paths for k in calls(path)] == list(range(40))


def test_open_segments_are_known_and_readable(tmp_path: Path) -> None:
    own = Journal(tmp_path, "job", {})
    own.append({"t": "call", "status": "ok", "k": 0})
    (path,) = journal.segments(tmp_path)
    assert journal.is_open(path)
    (row,) = journal.summary(tmp_path)
    assert row["being_written"]
    assert row["statuses"] == {"ok": 1}
    own.close()
    assert not journal.is_open(path)


def test_never_more_than_the_limit_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, most = threading.Event(), []

    def slow(file: int) -> None:
        synced.wait(5)

    own = Journal(tmp_path, "job", {}, sync_calls=8, sync_seconds=60)
    own.append({"t": "call", "k": 0})
    monkeypatch.setattr(os, "fsync", slow)

    def writer() -> None:
        for k in range(1, 20):
            own.append({"t": "call", "k": k})
            most.append(k)

    thread = threading.Thread(target=writer)
    thread.start()
    time.sleep(0.3)
    assert len(most) == 7, "the eighth record that is not on disk waits"
    synced.set()
    thread.join(5)
    own.close()
    assert len(most) == 19


def test_records_reach_the_disk_within_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    own = Journal(tmp_path, "job", {}, sync_seconds=0.05)
    own.append({"t": "call", "k": 0})
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (real(file), done.set()))
    assert done.wait(10), "one record alone is synced after the interval"
    own.close()


def test_a_failing_disk_is_an_error_and_not_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Journal(tmp_path, "job", {})
    own.append({"t": "call", "k": 0})

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(TeacherError, match="No space left"):
        own.append({"t": "call", "k": 1})
    monkeypatch.undo()
    with pytest.raises(TeacherError, match="No space left"):
        own.append({"t": "call", "k": 2})
    own.close()


def _endless(folder: str) -> None:
    own = Journal(Path(folder), "job", {})
    k = 0
    while True:
        own.append({"t": "call", "status": "ok", "k": k, "reply": "y" * 400})
        k += 1


def test_a_killed_writer_leaves_a_readable_segment(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_endless, args=(str(tmp_path),))
    process.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and sum(p.stat().st_size for p in journal.segments(tmp_path)) < 200_000:
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (path,) = journal.segments(tmp_path)
    damage = Damage()
    found = calls(path, damage)
    assert found == list(range(len(found)))
    assert len(found) > 100
    assert not damage.lines
    assert not journal.is_open(path), "the lock went with its holder"


def test_decode_refuses_what_is_not_a_record() -> None:
    good = journal.encode({"t": "call"})
    assert journal.decode(good) == {"t": "call"}
    for bad in (
        b"",
        b"\n",
        good[:-1],
        good[1:],
        b"0" * 16 + good[16:],
        json.dumps({"t": "call"}).encode() + b"\n",
    ):
        assert journal.decode(bad) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"scores": [-0.25, None, float("-inf"), float("inf")]},
        {"scores": None, "reply": "Straße\u2028中\udc80"},
        {"scores": [0.1], "reply": "𝛼 \x00\x1f\n"},
        {"scores": None, "hashes": [2**64 - 1, 0], "seconds": 0.1 + 0.2, "calls": [(0, "k")]},
    ],
)
def test_a_record_comes_back_to_the_bit(fields: journal.Record) -> None:
    line = journal.encode({"t": "call", **fields})
    assert line.count(b"\n") == 1
    found = journal.decode(line)
    assert found is not None
    assert found == json.loads(json.dumps({"t": "call", **fields}))


def test_a_score_that_is_no_number_stays_one() -> None:
    found = journal.decode(journal.encode({"scores": [float("nan")]}))
    assert found is not None
    assert found["scores"][0] != found["scores"][0]
