"""`msft students serve` with students of a store: several by name, fused with a first stage, an offline teacher."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import forked
import httpx
import made_store
import numpy as np
import pytest
import tiny_models

from benchmarks import serve
from cli.workflows.served_teachers import EmbeddingScorer, open_teacher
from labelstore.errors import DataMissing, MsftError, UsageError
from labelstore.evaluation import fusion
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from labelstore.store.row_hashes import qrels_hash
from students.jobs.evaluate import evaluate, scorer
from students.jobs.register import add_student
from students.jobs.rerank import load_reranker
from students.jobs.serve import Fusion, serve_students
from teachers.engines.bi_encoder import BiEncoderEngine

DEV = 50_000  # its queries' numbers begin here
QUERIES = 8


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    """Two students, a dev set with a run `first` beside the train and the test set, an embedding model in a folder."""
    folder = tmp_path_factory.mktemp("served")
    made = made_store.make(folder / "s.duckdb", n_queries=10, n_documents=60, depth=12, labels=False)
    with made.write() as con:
        con.execute("INSERT INTO datasets VALUES (9, 'c/dev', 1, 'dev', NULL, 'made', NULL, 1)")
        numbers = [DEV + n for n in range(QUERIES)]
        made_store.add_queries(con, 9, 0, numbers)
        made_store.add_run(con, 9, "first", 0, numbers, 60, 12, 1, 9)
        made_store.bulk(con, "qrels", [[9, n, (n * 3 + n % 5) % 60, 1] for n in numbers])
        con.execute("UPDATE datasets SET qrels_hash = ? WHERE dataset = 9", [qrels_hash(con, 9)])
    for seed, name in enumerate(("one", "two")):
        add_student(made, str(tiny_models.make("bert", folder / name, seed=seed)), name=name, max_length=48)
    return made


@contextlib.contextmanager
def served(store: LabelStore, *arguments: str) -> Iterator[tuple[str, "subprocess.Popen[str]", Path]]:
    """The address of the command's server, its process, and the file of what it says."""
    said = store.path.with_suffix(".said")
    with said.open("w") as file:
        process = forked.Popen(
            [sys.executable, "-m", "cli.main", "students", "serve", *arguments, "--port", "0", "--precision", "fp32",
             "--store", str(store.path)],
            cwd=serve.ROOT, stderr=file, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while (found := re.search(r"(http://\S+)/rerank", said.read_text())) is None:
                assert process.poll() is None, said.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            until(lambda: httpx.get(f"{found[1]}/health").status_code == 200)
            yield found[1], process, said
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def until(ready) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(httpx.TransportError):
            if ready():
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ranked(url: str, **body) -> list[tuple[int, float]]:
    answer = httpx.post(f"{url}/v1/rerank", json={"query": "which water is it", **body}, timeout=60)
    assert answer.status_code == 200, answer.text
    return [(row["index"], row["relevance_score"]) for row in answer.json()["results"]]


@pytest.mark.test_all
def test_a_served_student_is_fused_by_the_weight_of_eval(store: LabelStore) -> None:
    """In the precision of both: near ties can order otherwise in another, and another weight then fits."""
    evaluate(store, "c/test", students=["one"], measures=["nDCG@10"], fuse="c/dev")
    with store.read() as con:
        ((weight,),) = con.execute("SELECT parameters->>'weight' FROM runs WHERE kind = 'fused'").fetchall()
    found = fusion.weight_for_use(store, "one", "first", scorer(store, "one"))
    assert found.weight == pytest.approx(float(weight))


@pytest.mark.test_all
def test_two_students_are_served_by_name_each_fused_by_its_own_weight(store: LabelStore) -> None:
    weight = fusion.weight_for_use(store, "one", "first", scorer(store, "one", "fp32")).weight
    texts = tiny_models.sentences(9, 1)
    first = [float(len(text)) for text in texts]
    own = {
        name: load_reranker(store, name, precision="fp32").scores([("which water is it", texts)])[0]
        for name in ("one", "two")
    }
    with served(store, "two", "one", "--fuse", "first") as (url, process, said):
        assert (
            f"one is fused with first: weight {weight:.2f} from {QUERIES} queries, dataset c/dev"
            in said.read_text()
        )
        assert httpx.get(f"{url}/info", params={"model": "one"}).json()["fuse"] == {
            "run": "first",
            "weight": weight,
        }
        values = weight * scaled(own["one"]) + (1 - weight) * scaled(np.array(first))
        found = ranked(url, model="one", documents=texts, scores=first)
        assert [i for i, _ in found] == np.argsort(-values, kind="stable").tolist()
        assert [v for _, v in found] == pytest.approx(np.sort(values)[::-1].tolist(), abs=1e-4)
        process.send_signal(signal.SIGHUP)
        until(lambda: "reloaded two, one" in said.read_text())
        assert np.array(ranked(url, model="one", documents=texts, scores=first)) == pytest.approx(
            np.array(found)
        )
        with store.write() as con:
            con.execute("UPDATE students SET folder = 'students/nowhere' WHERE name = 'two'")
        process.send_signal(signal.SIGHUP)
        until(lambda: "not reloaded" in said.read_text())
        assert np.array(ranked(url, model="one", documents=texts, scores=first)) == pytest.approx(
            np.array(found)
        )
        with store.write() as con:
            con.execute("UPDATE students SET folder = 'students/two' WHERE name = 'two'")
    with served(store, "two", "one") as (url, _, _):
        for name in ("one", "two"):
            found = ranked(url, model=name, documents=texts, use_activation=False)
            assert [i for i, _ in found] == np.argsort(-own[name], kind="stable").tolist()
        assert ranked(url, documents=texts, use_activation=False) == found


@pytest.mark.test_all
@pytest.mark.parametrize("backend", ["openvino", "onnx"])
def test_a_backend_serves_the_scores_of_torch(store: LabelStore, backend: str) -> None:
    texts = tiny_models.sentences(9, 1)
    own = load_reranker(store, "one", precision="fp32").scores([("which water is it", texts)])[0]
    with served(store, "one", "--backend", backend) as (url, _, _):
        found = ranked(url, documents=texts, use_activation=False)
        assert [i for i, _ in found] == np.argsort(-own, kind="stable").tolist()
        assert [v for _, v in found] == pytest.approx(np.sort(own)[::-1].tolist(), abs=1e-5)


def scaled(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min())


def test_the_weight_is_never_fixed_on_a_test_set(store: LabelStore) -> None:
    score = scorer(store, "one", "fp32")
    with pytest.raises(UsageError, match="c/test is a test set"):
        fusion.weight_for_use(store, "one", "first", score, on="c/test")
    with store.read() as con:
        one, run = lookup.student(con, "one"), fusion.first_stage_named(con, "first")
        found = fusion.validation_for_use(con, store.files, run, one, "c/train")
        assert found is not None
        ids = con.execute(
            "SELECT query_id FROM queries WHERE query IN (SELECT unnest(?::INTEGER[]))", [list(found.queries)]
        ).fetchall()
    assert {f"q{n}" for n in range(9)} == {name for (name,) in ids}, "q9 has the text of a test query"


@pytest.mark.parametrize(
    ("student", "run", "says"),
    [("one", "absent", "absent"), ("nobody", "first", "nobody")],
)
def test_what_the_weight_needs_is_named(store: LabelStore, student: str, run: str, says: str) -> None:
    with pytest.raises(DataMissing, match=says):
        fusion.weight_for_use(store, student, run, scorer(store, "one"))


def test_without_validation_queries_the_weight_is_asked_for(store: LabelStore, tmp_path: Path) -> None:
    made = made_store.make(tmp_path / "s.duckdb", n_queries=4, n_documents=30, depth=8, labels=False)
    add_student(made, str(store.files / "students" / "one"), name="one")
    with pytest.raises(DataMissing, match="no validation queries") as raised:
        fusion.weight_for_use(made, "one", "first", scorer(made, "one"))
    assert "--fuse-weight" in (raised.value.hint or "")


@pytest.mark.parametrize(
    ("names", "settings", "says"),
    [
        (["one", "one"], None, "one name"),
        (["one", "student:one"], None, "one name"),
        (["nobody"], None, "nobody"),
        (["teacher:absent"], None, "absent"),
        (["teacher:rankzephyr"], None, "bi-encoder or a cross-encoder"),
        (["teacher:minilm"], Fusion("first"), "--fuse-weight|validation queries"),
    ],
)
def test_what_cannot_be_served_is_said_before_a_request(
    store: LabelStore, names: list[str], settings: Fusion | None, says: str
) -> None:
    from students.jobs.serve import Place

    with pytest.raises(MsftError, match=says):
        serve_students(
            store,
            names,
            place=Place(port=0),
            fusion=settings,
            open_teacher=lambda name: open_teacher(store, name, "fp32"),
        )


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_is_a_share(weight: float) -> None:
    with pytest.raises(UsageError, match="from 0 to 1"):
        Fusion("first", weight=weight)
    with pytest.raises(UsageError, match="--fuse-on"):
        Fusion("first", on="c/dev", weight=0.5)


# -------------------------------------------------------------------------------------------------- offline teachers
@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bi-encoder's folder in sentence-transformers' layout."""
    from transformers import AutoModel

    folder = tiny_models.make("bert", tmp_path_factory.mktemp("embedder") / "tiny-embedder")
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    (folder / "modules.json").write_text("[]")
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "query "}}')
    return folder


def test_an_embedding_teacher_is_served_with_the_scores_of_its_labels(
    store: LabelStore, embedder: Path
) -> None:
    from served import serving_app

    from students.serve.app import create_app_of
    from students.serve.models import Model

    made, about = open_teacher(store, str(embedder), "fp32")
    texts = tiny_models.sentences(7, 5, 30)
    engine = BiEncoderEngine(str(embedder), precision="fp32")
    (query,) = engine.embed(["query which water"])
    expected = [float(query.vector @ own.vector) for own in engine.embed(texts)]
    model = Model(
        "teacher",
        made,
        {"max_input_length": about["max_input_length"]},
        relevance=about.get("relevance", float),
    )
    with serving_app(create_app_of([model])) as url:
        answer = httpx.post(
            f"{url}/v1/rerank", json={"query": "which water", "documents": texts}, timeout=30
        ).json()
    found = {row["index"]: row["relevance_score"] for row in answer["results"]}
    assert [found[i] for i in range(7)] == pytest.approx(expected, abs=1e-5)
    assert [row["index"] for row in answer["results"]] == np.argsort(
        -np.array(expected), kind="stable"
    ).tolist()
    assert isinstance(made, EmbeddingScorer)
    assert made.cut(["the red river", "a"], 2) == ["the red", "a"]


def test_a_teacher_of_the_store_is_found_by_its_name(store: LabelStore, embedder: Path) -> None:
    with store.write() as con:
        con.execute(
            "INSERT INTO teachers (teacher, teacher_key, name, model, engine) VALUES (77, 'k77', 'ours', ?, 'bi-encoder')",
            [str(embedder)],
        )
    scorer, about = open_teacher(store, "ours", "fp32")
    assert isinstance(scorer, EmbeddingScorer)
    assert about["engine"] == "bi-encoder"


@pytest.mark.test_all
def test_a_teacher_of_the_store_is_served_by_the_command(store: LabelStore, embedder: Path) -> None:
    """It opens in its process and scores as its engine does."""
    with store.write() as con:
        con.execute(
            "INSERT INTO teachers (teacher, teacher_key, name, model, engine) VALUES (78, 'k78', 'embedder', ?, 'bi-encoder')",
            [str(embedder)],
        )
    texts = tiny_models.sentences(6, 5, 30)
    engine = BiEncoderEngine(str(embedder), precision="fp32")
    (query,) = engine.embed(["query which water is it"])
    expected = [float(query.vector @ own.vector) for own in engine.embed(texts)]
    with served(store, "teacher:embedder") as (url, _, said):
        found = dict(ranked(url, documents=texts))
        assert [found[i] for i in range(6)] == pytest.approx(expected, abs=1e-5)
        info = httpx.get(f"{url}/info").json()
        assert (info["model_id"], info["engine"]) == ("teacher:embedder", "bi-encoder")
        assert "Traceback" not in said.read_text()


def test_a_cross_encoder_teacher_is_served_like_a_student(store: LabelStore) -> None:
    scorer, about = open_teacher(store, str(store.files / "students" / "two"), "fp32")
    texts = tiny_models.sentences(5, 2)
    own = load_reranker(store, "two", precision="fp32").scores([("q", texts)])[0]
    assert scorer.scores([("q", texts)])[0].tolist() == pytest.approx(own.tolist(), abs=1e-5)
    assert about["relevance"](0.0) == 0.5
