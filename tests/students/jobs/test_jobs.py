"""The bridge: a run re-ranked into a run, models registered, nothing scored twice, bad input leaving no trace."""

import json
import re
from pathlib import Path

import made_store
import numpy as np
import pytest
import tiny_models

from labelstore.errors import DataMissing, UsageError
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from msft.errors import MsftError
from students.errors import StudentError
from students.jobs import candidates as jobs
from students.jobs.evaluate import evaluate
from students.jobs.register import add_student, student_rows
from students.jobs.rerank import rerank_run
from students.rerank import machines
from students.rerank.machines import LARGE, Scoring
from students.rerank.reranker import Reranker


@pytest.fixture
def store(tmp_path: Path, tiny) -> LabelStore:
    """Four test queries with 30 candidates each, and a tiny student."""
    made = made_store.make(tmp_path / "s.duckdb")
    add_student(made, str(tiny("bert")), name="tiny", max_length=48)
    return made


def counts(store: LabelStore) -> list[int]:
    with store.read() as con:
        return [
            con.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]
            for table in ("students", "runs", "candidates", "provenance", "filters")
        ]


def test_a_run_becomes_a_run_ranked_by_the_students_scores(store):
    made = rerank_run(
        store, student="tiny", dataset="c/test", run="first", depth=10, name="mine", precision="fp32"
    )
    with store.read() as con:
        source = lookup.run(con, lookup.dataset(con, "c/test"), "first")
        lists = jobs.lists(con, jobs.candidates(con, source, 10))
        ranked = con.execute(
            "SELECT query, document, rank, score FROM candidates WHERE run = ? ORDER BY query, rank",
            [made.run],
        ).fetchall()
    assert (made.kind, made.depth, made.n_queries, made.n_candidates) == ("student", 10, 4, 40)
    assert made.source_run == source.run
    assert made.parameters["source_hash"] == source.content_hash
    folder = store.files / "students" / "tiny"
    scores = Reranker.load(folder, precision="fp32", max_length=48, device="cpu").scores(lists.texts)
    expected = []
    for query, documents, row in zip(lists.query, lists.documents, scores, strict=True):
        for rank, i in enumerate(np.argsort(-row, kind="stable"), 1):
            expected.append((query, documents[i], rank, pytest.approx(float(row[i]), abs=1e-6)))
    assert ranked == sorted(expected, key=lambda row: (row[0], row[2]))
    assert len({score for *_, score in ranked}) > 20


def test_a_title_is_read_with_its_text(store):
    with store.write() as con:
        con.execute("UPDATE documents SET title = ' A title ' WHERE doc_id = 'd3'")
    with store.read() as con:
        source = lookup.run(con, lookup.dataset(con, "c/test"), "first")
        lists = jobs.lists(con, jobs.candidates(con, source, 30))
        (key,) = con.execute("SELECT document FROM documents WHERE doc_id = 'd3'").fetchall()[0]
    texts = {
        d: t
        for ds, (_, ts) in zip(lists.documents, lists.texts, strict=True)
        for d, t in zip(ds, ts, strict=True)
    }
    assert texts[key] == f"A title {made_store.text_of(3)}"


def test_what_is_done_is_not_done_again(store, monkeypatch):
    first = rerank_run(store, student="tiny", dataset="c/test", depth=10)
    before = counts(store)
    monkeypatch.setattr(Reranker, "load", lambda *a, **k: pytest.fail("it was loaded to be used again"))
    notes: list[str] = []
    again = rerank_run(store, student="tiny", dataset="c/test", run="first", depth=10, note=notes.append)
    assert again == first
    assert any("exists with the same settings" in note for note in notes)
    assert counts(store) == before


@pytest.mark.test_all
def test_other_depths_get_other_names_and_a_cascade_is_a_run_over_a_run(store):
    wide = rerank_run(store, student="tiny", dataset="c/test", run="first", depth=100)
    narrow = rerank_run(store, student="tiny", dataset="c/test", run="first", depth=5)
    assert (wide.name, wide.depth) == ("tiny@first", 30)
    assert (narrow.name, narrow.depth) == ("tiny@first-top5", 5)
    cascade = rerank_run(store, student="tiny", dataset="c/test", run="tiny@first", depth=7)
    assert cascade.source_run == wide.run
    with store.read() as con:
        top = "SELECT query, document FROM candidates WHERE run = ? AND rank <= 7 ORDER BY ALL"
        assert con.execute(top, [cascade.run]).fetchall() == con.execute(top, [wide.run]).fetchall(), (
            "the same student over its own top 7 keeps them"
        )


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"student": "tinny"}, DataMissing, "tinny"),
        ({"dataset": "c/tests"}, DataMissing, "c/tests"),
        ({"run": "second"}, DataMissing, "second"),
        ({"depth": 0}, UsageError, "depth"),
        ({"precision": "fp4"}, StudentError, "fp4"),
        ({"name": "first"}, UsageError, "first"),
    ],
)
def test_bad_input_leaves_the_store_as_it_was(store, arguments, error, says):
    before = counts(store)
    with pytest.raises(error, match=says) as raised:
        rerank_run(store, **{"student": "tiny", "dataset": "c/test", "run": "first", **arguments})
    assert raised.value.hint
    assert counts(store) == before


def test_a_candidate_without_text_is_named_not_scored_as_empty(tmp_path, tiny):
    store = made_store.make(tmp_path / "s.duckdb", unheld=(5, 6))
    add_student(store, str(tiny("bert")), name="tiny")
    before = counts(store)
    with pytest.raises(
        DataMissing, match=r"\d+ of 120 candidates have no text in the store; the first is d5"
    ):
        rerank_run(store, student="tiny", dataset="c/test", depth=30)
    assert counts(store) == before


def test_scores_that_are_not_finite_are_refused(store, monkeypatch):
    monkeypatch.setattr(
        Reranker, "score_pairs", lambda self, pairs, progress=None: np.full(len(pairs.query), np.nan)
    )
    before = counts(store)
    with pytest.raises(StudentError, match="not finite"):
        rerank_run(store, student="tiny", dataset="c/test", depth=5)
    assert counts(store) == before


def test_a_lost_folder_is_named(store):
    folder = store.files / "students" / "tiny"
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(DataMissing, match="students/tiny"):
        rerank_run(store, student="tiny", dataset="c/test", depth=5)


def test_adding_twice_changes_nothing_and_other_weights_are_refused(store, tiny, tmp_path):
    before = counts(store)
    again = add_student(store, str(tiny("bert")), name="tiny", max_length=48)
    assert again.name == "tiny"
    assert counts(store) == before
    other = tiny_models.make("bert", tmp_path / "other", seed=9)
    weights = (store.files / "students/tiny/model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="other weights"):
        add_student(store, str(other), name="tiny", max_length=48)
    assert counts(store) == before
    assert (store.files / "students/tiny/model.safetensors").read_bytes() == weights
    assert not list((store.files / "students").glob(".*")), "no half-made folder stays"


def test_an_untrained_base_gets_a_head_of_its_seed(tmp_path, tiny):
    from transformers import AutoModel

    headless = tmp_path / "headless"
    AutoModel.from_pretrained(tiny("electra")).save_pretrained(headless)
    tiny_models.tokenizer_for("electra").save_pretrained(headless)
    store = LabelStore(tmp_path / "s.duckdb")
    one = add_student(store, str(headless), name="one", seed=1)
    two = add_student(store, str(headless), name="two", seed=2)
    same = add_student(store, str(headless), name="same", seed=1)
    assert one.weights_hash == same.weights_hash != two.weights_hash
    assert {row["regime"] for row in student_rows(store)} == {"none"}


@pytest.mark.parametrize("name", ["../x", "a/b", "/", ".hidden", "a\nb"])
def test_a_name_that_cannot_be_a_folder_is_refused(tmp_path, tiny, name):
    store = LabelStore(tmp_path / "s.duckdb")
    with pytest.raises(UsageError):
        add_student(store, str(tiny("bert")), name=name)
    assert not store.exists


def test_the_parameters_of_a_run_say_what_made_it(store):
    made = rerank_run(store, student="tiny", dataset="c/test", depth=10, precision="fp32")
    with store.read() as con:
        (parameters, kind, command) = con.execute(
            "SELECT r.parameters, p.kind, p.command FROM runs r JOIN provenance p USING (job) WHERE r.run = ?",
            [made.run],
        ).fetchall()[0]
        (weights,) = con.execute("SELECT weights_hash FROM students WHERE name = 'tiny'").fetchall()[0]
    assert json.loads(parameters) | {"source_hash": ""} == {
        "depth": 10, "precision": "fp32", "max_length": 48, "weights_hash": weights, "source_hash": "",
    }  # fmt: skip
    assert kind == "students.rerank"
    assert command


@pytest.mark.parametrize(
    ("scoring", "said"),
    [
        (Scoring(gpus=3), "--gpus 3: this machine has no GPUs"),
        (Scoring(engine="slurm"), "'slurm' is not known"),
        (Scoring(workers=2), "those of a Ray cluster"),
        (Scoring(engine="ray", gpus=2), "--gpus counts GPUs of this machine"),
        (Scoring(engine="ray", workers=0), "0 workers"),
    ],
)
def test_machines_that_are_not_there_are_refused_before_anything_is_read(store, monkeypatch, scoring, said):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    before = counts(store)
    for command in (
        lambda: rerank_run(store, student="absent", dataset="c/test", scoring=scoring),
        lambda: evaluate(store, "absent", rerank=scoring),
    ):
        with pytest.raises(MsftError, match=re.escape(said)) as refused:
            command()
        assert refused.value.exit_code == 2
        assert refused.value.hint
    assert counts(store) == before


def test_few_pairs_take_one_gpu_and_many_take_all(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert [Scoring().n_gpus(n) for n in (10, LARGE - 1, LARGE)] == [1, 1, 8]
    assert Scoring(gpus=2).n_gpus(10) == 2
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert Scoring().n_gpus(LARGE) == 1


@pytest.mark.test_all
def test_all_gpus_of_the_machine_score_a_large_run(store, monkeypatch):
    """Two processes on the CPU stand for the GPUs."""
    from students.rerank import gpus

    alone = rerank_run(store, student="tiny", dataset="c/test", name="alone", precision="fp32")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(machines, "LARGE", 100)
    asked = []

    def on_gpus(path, number, **options):
        asked.append(number)
        return gpus.on_devices(path, ["cpu"] * number, **options)

    monkeypatch.setattr(gpus, "on_gpus", on_gpus)
    notes = []
    store_two = rerank_run(
        store, student="tiny", dataset="c/test", name="together", precision="fp32", note=notes.append
    )
    assert asked == [2]
    assert store_two.content_hash == alone.content_hash
    assert "2 GPUs score, with a process each" in notes
