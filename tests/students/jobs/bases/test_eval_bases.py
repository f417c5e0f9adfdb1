"""The row of the base that a student began from: which bases have one, what it costs, and what happens without them."""

import shutil
from pathlib import Path
from typing import Any

import made_store
import numpy as np
import pytest
import tiny_models

from labelstore.evaluation import bases as stored
from labelstore.evaluation.systems import Basis
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore, next_id
from labelstore.upkeep.verify.verify import verify
from students.errors import StudentError
from students.jobs.bases import find
from students.jobs.evaluate import Beside, Talk, evaluate
from students.jobs.register import add_student
from students.jobs.train import Sources, train_student
from students.model.bases import RERANKER, TABLE
from students.model.encoder import CrossEncoder
from students.rerank.reranker import Reranker

SETTINGS = {"max_steps": 1, "lists": 4, "max_length": 48, "precision": "fp32"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A re-ranker, and the encoder of one, whose folder holds no head."""
    folder = tmp_path_factory.mktemp("models")
    tiny_models.make("bert", folder / "ranker")
    encoder = CrossEncoder.load(folder / "ranker", precision="fp32", device="cpu")
    encoder.model.bert.save_pretrained(folder / "encoder")
    encoder.tokenizer.save_pretrained(folder / "encoder")
    return folder


def train(store: LabelStore, base: Path | str, name: str, **settings: Any) -> None:
    train_student(
        store, regime="cl", base=str(base), sources=Sources(datasets=["c/train"], runs=["first"]), name=name,
        settings={**SETTINGS, **settings},
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(models: Path, tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    """A store with a student of each of the two models."""
    store = made_store.make(tmp_path_factory.mktemp("bases") / "s.duckdb")
    train(store, models / "ranker", "of-ranker")
    train(store, models / "encoder", "of-encoder")
    return store


@pytest.fixture
def store(made: LabelStore, tmp_path: Path) -> LabelStore:
    own = LabelStore(tmp_path / "s.duckdb")
    shutil.copy(made.path, own.path)
    shutil.copytree(made.files, own.files)
    return own


def like(store: LabelStore, student: str, name: str, **changes: Any) -> None:
    """Register a student that differs from another one in its name and these columns."""
    with store.write() as con:
        held = con.execute("SELECT * FROM students WHERE name = ?", [student])
        columns = [column[0] for column in held.description or ()]
        row = dict(zip(columns, held.fetchall()[0], strict=True))
        new = row | {
            "student": next_id(con, "students", "student"),
            "name": name,
            "folder": f"students/{name}",
            **changes,
        }
        con.execute(f"INSERT INTO students VALUES ({', '.join('?' * len(new))})", list(new.values()))
        con.execute(
            "INSERT INTO stages SELECT * REPLACE (? AS student) FROM stages WHERE student = ?",
            [new["student"], row["student"]],
        )
    shutil.copytree(store.files / "students" / student, store.files / "students" / name)


def measured(
    store: LabelStore, untrained: bool | None = None, **options: Any
) -> tuple[dict[tuple[str, str], dict[str, Any]], list[str]]:
    """The rows by kind and system, and what was said."""
    said: list[str] = []
    rows = evaluate(
        store,
        "c/test",
        measures=["nDCG@10"],
        depth=10,
        fuse=Beside(untrained=untrained),
        talk=Talk(said.append, said.append),
        **options,
    ).rows
    found = {(row["kind"], row["system"]): row for row in rows}
    assert len(found) == len(rows)
    return found, said


@pytest.mark.parametrize(
    ("untrained", "kinds"),
    [(None, {"base-ranker"}), (True, {"base-ranker", "untrained-encoder"}), (False, set())],
)
def test_a_base_that_ranks_as_it_is_has_a_row_and_an_encoder_on_request(
    store: LabelStore, untrained: bool | None, kinds: set[str]
) -> None:
    found, said = measured(store, untrained=untrained)
    assert {name for kind, name in found if kind in stored.KINDS} == kinds
    for student, base in (("of-ranker", "base-ranker"), ("of-encoder", "untrained-encoder")):
        row = found["student", student]
        assert row["base"] == (base if base in kinds else None)
        assert (row["base_p_value"] is None) == (base not in kinds)
    assert sum("--no-untrained leaves it out" in text for text in said) == len(kinds)
    assert not verify(store).findings
    assert not list((store.files / "students").glob(".*"))


def test_its_scores_are_those_of_the_model_and_are_kept(
    store: LabelStore, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = measured(store, untrained=True)
    for name in ("base-ranker", "untrained-encoder"):
        with store.read() as con:
            run = lookup.run(con, lookup.dataset(con, "c/test"), f"{name}@first-top10")
            texts = con.execute(
                """SELECT q.text, d.text, c.score FROM candidates c JOIN queries q USING (query)
                   JOIN documents d USING (document) WHERE run = ? AND rank < 3 ORDER BY query, rank""",
                [run.run],
            ).fetchall()
        assert (run.kind, run.student, run.depth, run.parameters["max_length"]) == (
            name.partition("-")[0], None, 10, 48,
        )  # fmt: skip
        model = CrossEncoder.load(
            models / name.partition("-")[2], precision="fp32", device="cpu", max_length=48, seed=42
        )
        scores = [float(model.score(query, [passage])[0]) for query, passage, _ in texts]
        np.testing.assert_allclose(scores, [score for *_, score in texts], atol=2e-2)
    monkeypatch.setattr(Reranker, "load", None)  # nothing is scored anew
    monkeypatch.setattr(find, "folder_of", None)
    again, said = measured(store, untrained=True)
    assert again == first
    assert not any("re-ranks" in text for text in said)


def test_each_distinct_base_is_scored_once(store: LabelStore) -> None:
    like(store, "of-ranker", "other")
    like(store, "of-ranker", "seed", seed=7)
    like(store, "of-ranker", "longer", max_length=64)
    like(store, "of-encoder", "encoder-seed", seed=7)
    found, _ = measured(store, untrained=True)
    bases = {name for kind, name in found if kind in stored.KINDS}
    assert bases == {
        "base-ranker", "base-ranker-len64", "untrained-encoder", "untrained-encoder-seed7",
    }  # fmt: skip
    began = {name: row["base"] for (kind, name), row in found.items() if kind == "student"}
    assert began == {
        "of-ranker": "base-ranker", "other": "base-ranker", "seed": "base-ranker", "longer": "base-ranker-len64",
        "of-encoder": "untrained-encoder", "encoder-seed": "untrained-encoder-seed7",
    }  # fmt: skip


def test_a_base_that_is_a_student_is_that_students_row(store: LabelStore, models: Path) -> None:
    with store.read() as con:
        base = lookup.student(con, "of-ranker")
    like(store, "of-ranker", "third", base="student:of-ranker", base_revision=base.weights_hash)
    found, _ = measured(store, students=["third"])
    assert found["student", "third"]["base"] == "of-ranker"
    assert {name for kind, name in found if kind == "student"} == {"third", "of-ranker"}
    assert not [kind for kind, _ in found if kind in stored.KINDS]
    alone, _ = measured(store, students=["third"], untrained=False)
    assert ("student", "of-ranker") not in alone
    add_student(store, str(models / "ranker"), name="added", max_length=48)
    found, _ = measured(store)
    assert found["student", "of-ranker"]["base"] == "added"


def test_a_base_that_is_gone_or_changed_is_a_warning_that_names_it(
    store: LabelStore, tmp_path: Path, models: Path
) -> None:
    model = Path(shutil.copytree(models / "ranker", tmp_path / "moved"))
    like(store, "of-ranker", "of-moved", base=str(model), max_length=32)
    tiny_models.make("bert", model, seed=5)
    found, said = measured(store, students=["of-moved"])
    assert found["student", "of-moved"]["base"] is None
    assert [f"no row for the base {model}: {model} has other weights now" in text for text in said].count(
        True
    ) == 1
    shutil.rmtree(model)
    found, said = measured(store, students=["of-moved"])
    assert [f"no row for the base {model}: {model} is not on this machine" in text for text in said].count(
        True
    ) == 1
    _, said = measured(store, students=["of-moved"], untrained=False)
    assert not [text for text in said if "no row" in text]


def test_no_rerank_shows_only_what_is_stored(store: LabelStore) -> None:
    found, _ = measured(store, rerank=False)
    assert not [kind for kind, _ in found if kind in stored.KINDS]
    measured(store)
    found, _ = measured(store, rerank=False)
    assert [name for kind, name in found if kind in stored.KINDS] == ["base-ranker"]


def test_a_first_stage_that_was_replaced_is_ranked_anew(store: LabelStore) -> None:
    measured(store)
    with store.write() as con:
        con.execute("UPDATE runs SET content_hash = 'other' WHERE kind = 'first_stage'")
    _, said = measured(store)
    assert sum("the base ranker re-ranks first" in text for text in said) == 1
    with store.read() as con:
        assert len(lookup.runs(con, lookup.dataset(con, "c/test"), stored.KINDS)) == 1


@pytest.mark.parametrize("protocol", ["positives-in", "found-only"])
def test_the_protocols_of_benchmarks_measure_it_too(store: LabelStore, protocol: str) -> None:
    found, _ = measured(store, basis=Basis(protocol=protocol), untrained=True)
    for name in ("base-ranker", "untrained-encoder"):
        row = found[name.partition("-")[0], f"{name}@first-top10"]
        assert row["protocol"] == protocol
        assert row["p_value"] is not None


def test_the_table_of_bases_says_which_rank_as_they_are(store: LabelStore) -> None:
    for entry in TABLE:
        for name in (entry.base, entry.model):
            start = stored.Start(name, None, 64, 42)
            assert (find.kind_of(store, start) == stored.BASE) == (entry.kind == RERANKER)
            assert find.short_name(name) == entry.base


def test_a_base_of_the_hub_is_taken_from_its_cache_in_the_revision_of_the_student(
    store: LabelStore, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, commit = tmp_path / "hub", "0123456789" * 4
    shutil.copytree(models / "ranker", cache / "models--nobody--ranker" / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("socket.create_connection", None)  # nothing is asked of the Hub
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    like(store, "of-ranker", "of-hub", base="nobody/ranker", base_revision=commit)
    like(store, "of-ranker", "of-older", base="nobody/ranker", base_revision="f" * 40)
    found, said = measured(store)
    assert found["student", "of-hub"]["base"] == "base-ranker-len48"  # base-ranker is that of the folder
    assert found["student", "of-older"]["base"] is None
    assert (
        sum("no row for the base nobody/ranker: nobody/ranker is not on this machine" in s for s in said) == 1
    )
    assert find.kind_of(store, stored.Start("nobody/ranker", commit, 48, 42)) == stored.BASE


@pytest.mark.parametrize("name", ["nobody/never-cached", "not an id", "../gone", "/gone", "a/b/c"])
def test_a_base_that_is_nowhere_is_named(store: LabelStore, name: str) -> None:
    start = stored.Start(name, "0" * 40, 64, 42)
    with pytest.raises(StudentError, match=f"{name} is not on this machine"):
        find.folder_of(store, start)


def test_suites_and_several_datasets_have_its_row(store: LabelStore, tmp_path: Path) -> None:
    (tmp_path / "both.txt").write_text("c/test\nc/train\n")
    rows = evaluate(store, suite=str(tmp_path / "both.txt"), measures=["nDCG@10"], depth=30).rows
    own = [row for row in rows if row["kind"] == "base"]
    assert [row["system"] for row in own] == ["base-ranker"] * 3
    assert {"c/test", "c/train"} < {row["dataset"] for row in own}
