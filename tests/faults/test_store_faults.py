"""A full disk, a torn journal, flipped bytes, several writers, readers beside a writer: nothing stored is lost."""

import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import store_jobs
from store_jobs import JOBS, child, content, copy, findings
from test_kill_generate import QUERIES, SCRIPTED, calls_written, journaled, rows, start

from benchmarks.labelling_store import make
from labelstore.errors import MsftError
from labelstore.runs import import_run
from labelstore.store.label_store import LabelStore
from teachers.journal import segments as journal

pytestmark = pytest.mark.test_all

ROOT = Path(__file__).resolve().parents[2]


# ------------------------------------------------------------------------------------------------- full disk
def _limited(job: Callable[[LabelStore], None], store: LabelStore, size: int, note: Path) -> None:
    """Run a job that may write no file beyond `size` bytes; what it says goes into a file."""
    note.write_text("")
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        job(store)
        said = "done"
    except MsftError as error:
        said = f"{error.message} | {error.hint}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    note.write_text(said)


def _fits_in(store: LabelStore, job: str, sizes: list[int], folder: Path) -> int:
    """Run a job under each limit; how often it failed. All of it is stored or nothing, and a rerun ends it."""
    whole = copy(store, folder / "whole")
    JOBS[job](whole)
    before, after = content(store), content(whole)
    failed = 0
    for size in sizes:
        victim, note = copy(store, folder / f"at{size}"), folder / f"said{size}"
        process = child(_limited, JOBS[job], victim, size, note)
        process.join()
        said = note.read_text()
        assert said, f"{job} at {size} bytes ended with {process.exitcode} and no message"
        if said != "done":
            failed += 1
            assert "room" in said
        assert content(victim) == (after if said == "done" else before)
        assert {f.what for f in findings(victim)} <= {"leftover", "view"}
        JOBS[job](victim)
        assert content(victim) == after
        assert findings(victim) == []
        shutil.rmtree(victim.path.parent)
    return failed


@pytest.mark.parametrize("job", JOBS)
def test_a_limit_on_file_sizes(tmp_path: Path, job: str) -> None:
    store = store_jobs.made(tmp_path / "made")
    size = store.path.stat().st_size
    assert _fits_in(store, job, [16 << 10, size + 4096], tmp_path) > 0


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_many_limits_on_file_sizes(tmp_path: Path, job: str, capsys: pytest.CaptureFixture[str]) -> None:
    store = store_jobs.made(tmp_path / "made")
    rng = random.Random(len(job))
    sizes = sorted({rng.randrange(4096, 2 * store.path.stat().st_size) for _ in range(20)})
    failed = _fits_in(store, job, sizes, tmp_path)
    with capsys.disabled():
        print(f"\n{job}: {len(sizes)} limits, {failed} failed, 0 losses")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("job", ["import documents", "import a run", "build a view"])
def test_a_full_disk(tmp_path: Path, small_disk: Path, job: str) -> None:
    store = copy(store_jobs.made(tmp_path / "made"), small_disk / "s")
    before = content(store)
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        room = shutil.disk_usage(small_disk).free
        file.write(bytes(room - (8 << 10)))
    with pytest.raises(MsftError, match="room"):
        JOBS[job](store)
    assert content(store) == before
    ballast.unlink()
    JOBS[job](store)
    assert content(store) != before
    assert findings(store) == []


# ---------------------------------------------------------------------------------------------- torn journal
def _torn(tmp_path: Path, trials: int) -> None:
    """A labelling killed, its journal's tail torn by some bytes; the rerun keeps each whole call and ends it."""
    rng = random.Random(trials)
    for trial in range(trials):
        store, asked = make(tmp_path / f"{trial}.duckdb", QUERIES), tmp_path / f"asked{trial}"
        process = start(SCRIPTED, str(store.path), str(asked))
        while process.poll() is None and calls_written(store) < 20_000:
            pass
        process.kill()
        process.communicate()
        segments = journal.segments(store.files / "journal")
        assert segments, "the kill came in the middle of the work"
        with segments[-1].open("r+b") as file:
            file.truncate(max(0, segments[-1].stat().st_size - rng.randrange(1, 2_000)))
        done = journaled(store)
        again = start(SCRIPTED, str(store.path), str(asked))
        output, errors = again.communicate()
        assert output.strip() == str(QUERIES), errors
        stored = dict(rows(store, "SELECT call_key, reply FROM calls"))
        assert {key: stored.get(key) for key in done} == {key: reply for key, (_, reply) in done.items()}
        assert rows(store, "SELECT count(*) = count(DISTINCT request) FROM calls") == [(True,)]
        assert not journal.segments(store.files / "journal")


def test_a_torn_journal(tmp_path: Path) -> None:
    _torn(tmp_path, 1)


@pytest.mark.slow
def test_many_torn_journals(tmp_path: Path) -> None:
    _torn(tmp_path, 20)


# ---------------------------------------------------------------------------------------------- flipped bytes
def _flipped(tmp_path: Path, trials: int) -> tuple[int, int]:
    """(flips that verify named, flips that changed nothing); there is no third kind."""
    store = store_jobs.made(tmp_path / "made")
    JOBS["mine negatives"](store)
    before, size = content(store), store.path.stat().st_size
    rng = random.Random(trials)
    named = 0
    for trial in range(trials):
        victim = copy(store, tmp_path / "victim")
        with victim.path.open("r+b") as file:
            file.seek(rng.randrange(12_288, size))  # the three headers are DuckDB's own to check
            at = file.tell()
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ (1 << rng.randrange(8))]))
        wrong = findings(victim)
        if wrong:
            named += 1
            assert all(f.hint for f in wrong)
            assert any(f.what in ("block", "store") for f in wrong), f"trial {trial}, byte {at}: {wrong}"
        else:
            assert content(victim) == before, f"trial {trial}, byte {at}"
        shutil.rmtree(victim.path.parent)
    return named, trials - named


def test_flipped_bytes(tmp_path: Path) -> None:
    named, harmless = _flipped(tmp_path, 4)
    assert named + harmless == 4


@pytest.mark.slow
def test_many_flipped_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named, harmless = _flipped(tmp_path, 50)
    with capsys.disabled():
        print(f"\n50 flipped bytes: {named} named, {harmless} in free space, 0 unseen")
    assert named > 0


# ------------------------------------------------------------------------------------- writers and readers
def _import_as(store: LabelStore, name: str) -> None:
    import_run.import_run(store, store.path.parent / "a" / "run.txt", "a", name)


def test_several_writers_wait_for_each_other(tmp_path: Path) -> None:
    store = store_jobs.made(tmp_path / "made")
    processes = [child(_import_as, store, f"r{n}") for n in range(4)]
    processes += [child(JOBS["import documents"], store)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 5
    assert rows(store, "SELECT name, n_candidates FROM runs ORDER BY name") == [
        (name, store_jobs.QUERIES * store_jobs.DEPTH) for name in ("bm25", "r0", "r1", "r2", "r3")
    ]
    assert rows(store, "SELECT count(*) FROM documents") == [(2 * store_jobs.DOCUMENTS,)]
    assert findings(store) == []


def _read_until(store: LabelStore, stop: Path, out: Path) -> None:
    """Read over and over; each time a run is there whole or not at all."""
    n = 0
    while not stop.exists() or n == 0:
        with store.read() as con:
            torn = con.execute(
                """SELECT count(*) FROM runs r LEFT JOIN (SELECT run, count(*) AS n FROM candidates GROUP BY run) c
                   USING (run) WHERE c.n IS DISTINCT FROM r.n_candidates"""
            ).fetchall()[0][0]
        if torn:
            raise RuntimeError(f"{torn} runs are not whole")
        n += 1
        time.sleep(0.3)  # ten that never rest leave two cores nothing for the writer
    out.write_text(str(n))


def test_ten_readers_beside_one_writer(tmp_path: Path) -> None:
    store = store_jobs.made(tmp_path / "made")
    stop = tmp_path / "stop"
    readers = [child(_read_until, store, stop, tmp_path / f"read{n}") for n in range(10)]
    for n in range(3):
        writer = child(_import_as, store, f"r{n}")
        writer.join()
        assert writer.exitcode == 0
    stop.touch()
    for reader in readers:
        reader.join()
    assert [reader.exitcode for reader in readers] == [0] * 10
    assert all(int((tmp_path / f"read{n}").read_text()) > 0 for n in range(10))
    assert findings(store) == []


def test_a_command_that_finds_no_room_says_so(tmp_path: Path) -> None:
    """At the command line: one line, a hint, exit 1, no traceback."""
    store = store_jobs.made(tmp_path / "made")
    done = subprocess.run(
        [
            sys.executable, "-m", "cli.main", "runs", "import", str(store.path.parent / "a" / "run.txt"),
            "--store", str(store.path), "--name", "again",
        ],
        cwd=ROOT, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, resource.RLIM_INFINITY)),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "room" in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr
