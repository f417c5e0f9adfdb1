"""The row of a student's offline teacher in `msft eval`: its value, what it costs, and when it is missing."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import made_store
import pytest
import tiny_models
from runner import Done
from shelves import msft

from labelstore.store.label_store import LabelStore
from students.jobs.train import Sources, train_student
from students.model.encoder import CrossEncoder
from teachers.generate.job import generate
from teachers.generate.settings import Settings

LABELS = "tiny-labels"


@dataclass(frozen=True)
class Taught:
    store: LabelStore
    model: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    """A student that learnt from the labels of a tiny re-ranker."""
    folder = tmp_path_factory.mktemp("taught")
    model = tiny_models.make("bert", folder / "model")
    store = made_store.make(folder / "s.duckdb", labels=False)
    generate(
        store,
        Settings(
            model=str(model),
            dataset="c/train",
            run="first",
            depth=10,
            engine="cross-encoder",
            name=LABELS,
            canaries=0,
        ),
    )
    train_student(
        store, regime="kd", base=str(model), sources=Sources(labels=[LABELS]), name="student",
        settings={"max_steps": 1, "lists": 4, "max_length": 48, "precision": "fp32"},
    )  # fmt: skip
    return Taught(store, model)


@pytest.fixture
def store(made: Taught, tmp_path: Path) -> LabelStore:
    own = LabelStore(tmp_path / "s.duckdb")
    shutil.copy(made.store.path, own.path)
    shutil.copytree(made.store.files, own.files)
    return own


def evaluated(store: LabelStore, *options: str, depth: int = 10) -> tuple[list[dict[str, Any]], Done]:
    """The teachers' rows of an evaluation, and how it ended."""
    done = msft(
        store, "eval", "--dataset", "c/test", "--measure", "RR@10", "--depth", str(depth), "--no-untrained",
        "--format", "json", *options,
    )  # fmt: skip
    rows = json.loads(done.out)
    assert {row["kind"] for row in rows} >= {"first_stage", "student"}
    return [row for row in rows if row["kind"] == "teacher"], done


def answers(store: LabelStore) -> int:
    with store.read() as con:
        return int(con.execute("SELECT count(*) FROM calls").fetchall()[0][0])


def test_its_row_has_the_value_of_its_own_order(store: LabelStore, made: Taught) -> None:
    (row,), done = evaluated(store)
    assert f"the teacher of {LABELS} ({made.model}) labels first to depth 10" in " ".join(done.err.split())
    assert (row["system"], row["first_stage"], row["depth"]) == (f"{LABELS}@c/test", "first", 10)
    assert row["p_value"] is not None
    assert row["base"] is None
    model = CrossEncoder.load(made.model, precision="fp32", device="cpu")
    with store.read() as con:
        lists = con.execute(
            """SELECT q.text, list(d.text ORDER BY c.rank), list(j.relevance IS NOT NULL ORDER BY c.rank)
               FROM candidates c JOIN runs r USING (run) JOIN datasets s USING (dataset) JOIN queries q USING (query)
               JOIN documents d USING (document)
               LEFT JOIN qrels j ON j.dataset = s.dataset AND j.query = c.query AND j.document = c.document
               WHERE r.name = 'first' AND s.name = 'c/test' AND c.rank <= 10 GROUP BY q.query, q.text"""
        ).fetchall()
    values = []
    for query, texts, relevant in lists:
        scores = model.score(query, texts)
        order = sorted(range(len(texts)), key=lambda i: -scores[i])
        values.append(next((1 / rank for rank, i in enumerate(order, 1) if relevant[i]), 0.0))
    assert row["value"] == pytest.approx(sum(values) / len(values))
    assert row["value"] > 0


def test_a_second_evaluation_labels_nothing_anew(store: LabelStore) -> None:
    first, _ = evaluated(store)
    held = answers(store)
    assert held == 12 + 4
    again, done = evaluated(store)
    assert again == first
    assert answers(store) == held
    assert "labels first" not in done.err


@pytest.mark.parametrize("options", [["--no-teacher"], ["--no-rerank"], ["--labels", LABELS]])
def test_it_is_left_out_on_request(store: LabelStore, options: list[str]) -> None:
    if "--labels" in options:
        done = msft(store, "eval", "--dataset", "c/test", *options, code=2)
        assert f"labeling '{LABELS}' is not over c/test" in done.err
    else:
        msft(store, "students", "rerank", "student", "--dataset", "c/test", "--depth", "10")
        rows, _ = evaluated(store, *options)
        assert rows == []
    assert answers(store) == 12


def test_a_student_that_is_not_evaluated_brings_no_teacher(store: LabelStore, made: Taught) -> None:
    msft(store, "students", "add", str(made.model), "--name", "other")
    rows, _ = evaluated(store, "--student", "other")
    assert rows == []
    assert answers(store) == 12


def test_a_model_that_is_gone_or_changed_is_a_warning(
    store: LabelStore, made: Taught, tmp_path: Path
) -> None:
    moved = tmp_path / "model"
    shutil.copytree(made.model, moved)
    try:
        tiny_models.make("bert", made.model, seed=5)
        rows, done = evaluated(store)
        said = " ".join(done.err.split())
        assert f"no row for the teacher of {LABELS}: {made.model} is another model now" in said
        shutil.rmtree(made.model)
        rows, done = evaluated(store)
        assert f"no row for the teacher of {LABELS}: " in " ".join(done.err.split())
        assert str(made.model) in done.err
    finally:
        shutil.rmtree(made.model, ignore_errors=True)
        shutil.copytree(moved, made.model)
    assert rows == []
    assert answers(store) == 12


def test_another_depth_has_another_name(store: LabelStore) -> None:
    evaluated(store, depth=5)
    rows, _ = evaluated(store, depth=10)
    assert {(row["system"], row["depth"]) for row in rows} == {
        (f"{LABELS}@c/test", 5), (f"{LABELS}@c/test@first@10", 10),
    }  # fmt: skip
    held = answers(store)
    evaluated(store, depth=5)  # the deeper labels do for it
    assert answers(store) == held


def test_a_first_stage_with_fewer_candidates_is_labelled_as_deep_as_it_is(store: LabelStore) -> None:
    with store.write() as con:
        ((dataset,),) = con.execute("SELECT dataset FROM datasets WHERE name = 'c/test'").fetchall()
        made_store.add_run(
            con, dataset, "short", 0, [made_store.TEST + n for n in range(4)], 60, 3, 1, 77, step=5
        )
    rows, done = evaluated(store)
    assert "no row for" not in done.err, done.err
    assert {(row["first_stage"], row["depth"]) for row in rows} == {("first", 10), ("short", 3)}
    held = answers(store)
    again, done = evaluated(store)
    assert again == rows
    assert answers(store) == held
    assert "labels short" not in done.err
