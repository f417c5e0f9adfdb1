"""A run of any size is re-ranked in bounded memory, with the store free, and an end halfway leaves nothing."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import made_store
import numpy as np
import pyarrow as pa
import pytest
import tiny_models

from labelstore.errors import BadInput
from labelstore.store import keys, lookup
from labelstore.store.label_store import LabelStore
from labelstore.upkeep.verify.verify import verify
from students.jobs import candidates as jobs
from students.jobs import rerank
from students.jobs.register import add_student
from students.jobs.rerank import rerank_run
from students.rerank.reranker import Reranker

pytestmark = pytest.mark.test_all

ROOT = Path(__file__).resolve().parents[3]

MEMORY = """
import sys
from pathlib import Path
from labelstore.store.label_store import LabelStore
from students.jobs.rerank import rerank_run

made = rerank_run(
    LabelStore(sys.argv[1]), student="tiny", dataset="c/train", run="first", depth=int(sys.argv[2]), precision="fp32"
)
print(made.n_candidates, Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


def filled(folder: Path, model: Path, n_queries: int, text: str | None = None, depth: int = 30) -> LabelStore:
    """A store with a run over `n_queries` training queries, three new passages a query, and a tiny student."""
    store = made_store.make(
        folder / "s.duckdb", n_queries=n_queries, n_documents=3 * n_queries + depth, depth=depth, labels=False
    )
    add_student(store, str(model), name="tiny", max_length=32)
    if text is not None:
        with store.write() as con:
            rows = con.execute("SELECT document, doc_id FROM documents").fetchall()
            texts = [f"{doc_id} {text}" for _, doc_id in rows]
            longer = pa.table(
                {
                    "document": [document for document, _ in rows],
                    "text": texts,
                    "text_hash": pa.array([keys.text_hash(None, one) for one in texts], pa.uint64()),
                }
            )
            con.register("longer", longer)
            con.execute(
                """UPDATE documents SET text = l.text, text_hash = l.text_hash FROM longer l
                   WHERE l.document = documents.document"""
            )
    return store


def found_in(store: LabelStore, depth: int = 30) -> jobs.Candidates:
    with store.read() as con:
        return jobs.candidates(con, lookup.run(con, lookup.dataset(con, "c/train"), "first"), depth)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_scores_do_not_depend_on_the_block_and_equal_one_call_with_all_texts(tmp_path, tiny, precision):
    store = filled(tmp_path, tiny("electra"), 40)
    found = found_in(store)
    reranker = Reranker.load(tiny("electra"), precision=precision, max_length=32, device="cpu")
    with store.read() as con:
        lists = jobs.lists(con, found)
    expected = np.concatenate(reranker.scores(lists.texts))
    ticks: list[tuple[int, int | None]] = []
    for block_bytes in (2_000, 7_000, 1 << 30):
        got = jobs.score(
            store, reranker, found, block_bytes=block_bytes, progress=lambda *tick: ticks.append(tick)
        )
        assert np.array_equal(got, expected)
        assert ticks[-1] == (1200, 1200)
        assert {total for _, total in ticks} == {1200}
    assert np.ptp(expected) > 1e-3
    assert not list(tmp_path.glob("tmp*")), "nothing lies beside the store"


def test_blocks_hold_as_much_as_they_may_and_every_text_once(tmp_path, tiny):
    store = filled(tmp_path, tiny("bert"), 40)
    passages = found_in(store).passages
    blocks = list(passages.blocks(store, 2_000))
    assert len(blocks) > 5
    assert all(sum(len(text) + 64 for text in block) <= 2_000 for block in blocks)
    with store.read() as con:
        texts = dict(con.execute("SELECT document, text FROM documents").fetchall())
    assert [t for block in blocks for t in block] == [texts[key] for key in passages.key.tolist()]


def test_the_run_does_not_depend_on_the_block(tmp_path, tiny, monkeypatch):
    store = filled(tmp_path, tiny("bert"), 40)
    whole = rerank_run(store, student="tiny", dataset="c/train", run="first", name="whole")
    monkeypatch.setattr(rerank, "score", lambda *a, **k: jobs.score(*a, **k, block_bytes=3_000))
    cut = rerank_run(store, student="tiny", dataset="c/train", run="first", name="cut")
    assert cut.run != whole.run
    assert cut.content_hash == whole.content_hash


def test_memory_does_not_grow_with_the_texts(tmp_path):
    """Ten times the queries, each passage 16 kB: 17 MB of text, which as strings, ids and frames takes hundreds."""
    model = tiny_models.make("bert", tmp_path / "model")
    peaks = {}
    for n_queries in (30, 300):
        folder = tmp_path / str(n_queries)
        folder.mkdir()
        store = filled(folder, model, n_queries, "what does water cause in a city " * 500, depth=10)
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(store.path), "10"], cwd=ROOT, capture_output=True, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        pairs, kilobytes = map(int, done.stdout.split())
        assert pairs == 10 * n_queries
        peaks[n_queries] = kilobytes / 1024
    assert peaks[300] < peaks[30] + 40, peaks


def test_the_store_is_free_while_texts_are_tokenised_and_pairs_scored(tmp_path, tiny, monkeypatch):
    store = filled(tmp_path, tiny("bert"), 12)
    other = LabelStore(store.path, lock_wait=1)
    written: list[str] = []

    def writing(name, real):
        def call(self, *arguments):
            with other.write() as con:
                con.execute(
                    "UPDATE collections SET name = name"
                )  # as any job that is not about these candidates
            written.append(name)
            return real(self, *arguments)

        return call

    monkeypatch.setattr(Reranker, "score_pairs", writing("scored", Reranker.score_pairs))
    from students.text.token_file import TokenFile

    monkeypatch.setattr(TokenFile, "add", writing("tokenised", TokenFile.add))
    assert rerank_run(store, student="tiny", dataset="c/train", run="first").n_candidates == 360
    assert written == ["tokenised", "tokenised", "scored"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("UPDATE documents SET text = 'another', text_hash = 1 WHERE doc_id = 'd3'", "1 texts of documents"),
        ("UPDATE queries SET text = 'another', text_hash = 1 WHERE query_id = 'q3'", "1 texts of queries"),
        ("UPDATE runs SET content_hash = 'other' WHERE name = 'first'", "replaced"),
        ("DELETE FROM students", "replaced"),
    ],
)  # fmt: skip
def test_what_changes_meanwhile_is_noticed_and_nothing_is_stored(tmp_path, tiny, monkeypatch, change, says):
    store = filled(tmp_path, tiny("bert"), 12)
    real = jobs.score

    def meanwhile(*arguments, **options):
        with store.write() as con:
            con.execute(change)
        return real(*arguments, **options)

    monkeypatch.setattr(rerank, "score", meanwhile)
    with pytest.raises(BadInput, match=says):
        rerank_run(store, student="tiny", dataset="c/train", run="first")
    with store.read() as con:
        assert con.execute("SELECT name FROM runs").fetchall() == [("first",), ("first",)]
        assert con.execute("SELECT count(*) FROM provenance WHERE kind = 'students.rerank'").fetchall() == [
            (0,)
        ]


def rows(store: LabelStore) -> list[tuple]:
    with store.read() as con:
        return con.execute(
            "SELECT query, rank, document, score FROM candidates JOIN runs USING (run) WHERE name = 'tiny@first' ORDER BY ALL"
        ).fetchall()


def command(store: LabelStore) -> "subprocess.Popen[str]":
    return forked.Popen(
        [sys.executable, "-m", "cli.main", "students", "rerank", "tiny", "--run", "first", "--dataset", "c/train",
         "--precision", "fp32", "--store", str(store.path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def forget_run(store: LabelStore) -> None:
    with store.write() as con:
        con.execute("DELETE FROM candidates WHERE run IN (SELECT run FROM runs WHERE name = 'tiny@first')")
        con.execute("DELETE FROM runs WHERE name = 'tiny@first'")


def test_an_end_halfway_leaves_nothing_and_a_rerun_ends_it(tmp_path):
    end_halfway(tmp_path, 1)


@pytest.mark.slow
def test_many_ends_halfway_leave_nothing(tmp_path):
    end_halfway(tmp_path, 10)


def end_halfway(tmp_path, times):
    """SIGINT says so and ends with 130, SIGKILL with nothing said; in both cases the store is as it was."""
    model = tiny_models.make("bert", tmp_path / "model", layers=4, hidden=128)
    store = filled(tmp_path, model, 60, "what does water cause " * 8)
    forked.run([sys.executable, "-c", ""])  # the time below is that of the work
    started = time.monotonic()
    whole = command(store)
    whole.communicate()
    seconds, expected = time.monotonic() - started, rows(store)
    assert len(expected) == 1_800
    forget_run(store)
    rng = random.Random(1)
    to_send = [signal.SIGINT, signal.SIGKILL] * times
    while to_send:
        sent = to_send[-1]
        killed = command(store)
        time.sleep(seconds * rng.uniform(0.5, 0.9))
        killed.send_signal(sent)
        _, errors = killed.communicate(timeout=60)
        if rows(store) == expected:  # it was done before: the machine had more to give than for the first one
            seconds *= 0.8
            forget_run(store)
            continue
        to_send.pop()
        if sent == signal.SIGINT:
            assert killed.returncode == 130, errors
            assert "interrupted" in errors
            assert "Traceback" not in errors
        assert rows(store) == []
        with store.read() as con:
            assert con.execute("SELECT count(*) FROM runs").fetchall() == [(2,)]
        assert {path.name for path in tmp_path.iterdir()} <= {
            "model", "s.duckdb", "s.files", "s.duckdb.wal", ".s.duckdb.turn",
        }  # fmt: skip
        assert {f.what for f in verify(store).findings} <= {"leftover"}
    again = command(store)
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    assert rows(store) == expected
