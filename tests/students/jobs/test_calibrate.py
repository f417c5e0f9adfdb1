"""`msft students calibrate`: validation queries alone, kept in store, export and card, applied by serve and rerank."""

import json
from pathlib import Path

import httpx
import made_store
import numpy as np
import pytest
import tiny_models
from served import serving_app

from cli.main import run
from labelstore.errors import BadInput, DataMissing, UsageError
from labelstore.evaluation import calibration
from labelstore.report import page
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from labelstore.store.row_hashes import qrels_hash
from students.jobs.calibrate import calibrate_student, probability_run
from students.jobs.evaluate import evaluate
from students.jobs.export import CALIBRATION, export_student
from students.jobs.register import add_student
from students.jobs.rerank import rerank_run
from students.jobs.serve import _Loader
from students.serve.app import create_app_of

pytestmark = pytest.mark.test_all

DEV, N, DEPTH = 50_000, 30, 12


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose dev set is judged as the student scores, with noise; query 0 of dev has the text of a test query."""
    folder = tmp_path_factory.mktemp("calibrate")
    store = made_store.make(folder / "s.duckdb", n_queries=10, n_documents=60, depth=DEPTH, labels=False)
    add_student(store, str(tiny_models.make("bert", folder / "model")), name="tiny", max_length=48)
    numbers = [DEV + n for n in range(N)]
    with store.write() as con:
        con.execute("INSERT INTO datasets VALUES (9, 'c/dev', 1, 'dev', NULL, 'made', NULL, 1)")
        made_store.add_queries(con, 9, 0, numbers)
        made_store.add_run(con, 9, "first", 0, numbers, 60, DEPTH, 1, 9)
        con.execute(
            """UPDATE queries SET normal_hash = (SELECT normal_hash FROM queries WHERE query = ?) WHERE query = ?""",
            [made_store.TEST, DEV],
        )
    scored = rerank_run(store, student="tiny", dataset="c/dev", precision="fp32", depth=DEPTH)
    with store.write() as con:
        rows = con.execute(
            "SELECT query, document, score FROM candidates WHERE run = ? ORDER BY query, document",
            [scored.run],
        ).fetchall()
        rng, middle = np.random.default_rng(3), float(np.median([s for *_, s in rows]))
        spread = float(np.std([s for *_, s in rows]))
        grades = [int(rng.random() < 1 / (1 + np.exp(-2 * (s - middle) / spread))) for *_, s in rows]
        grades = [0 if q % 4 == 0 else g for (q, *_), g in zip(rows, grades, strict=True)]
        made_store.bulk(con, "qrels", [[9, q, d, g] for (q, d, _), g in zip(rows, grades, strict=True)])
        con.execute("UPDATE datasets SET qrels_hash = ? WHERE dataset = 9", [qrels_hash(con, 9)])
    return store.path


@pytest.fixture
def store(built: Path, tmp_path: Path) -> LabelStore:
    import shutil

    shutil.copy(built, tmp_path / "s.duckdb")
    shutil.copytree(built.with_suffix(".files"), tmp_path / "s.files")
    return LabelStore(tmp_path / "s.duckdb")


def calibrated(store: LabelStore) -> calibration.Stored:
    with store.read() as con:
        found = calibration.of_student(con, lookup.student(con, "tiny"))
    assert found is not None
    return found


def test_test_queries_are_refused_and_left_out(store: LabelStore) -> None:
    with pytest.raises(UsageError, match="c/test is a test set"):
        calibrate_student(store, "tiny", "c/test", precision="fp32")
    row = calibrate_student(store, "tiny", "c/dev", precision="fp32", depth=DEPTH)
    assert row["queries"] == N - 1, "one has the text of a test query"
    assert row["pairs"] == (N - 1) * DEPTH
    assert row["ece"] < row["ece_before"]
    found = calibrated(store)
    assert (found.dataset, found.run, found.depth, found.relevant_from) == ("c/dev", "first", DEPTH, 1)
    assert found.n_relevant == row["relevant"]
    few = calibrate_student(store, "tiny", "c/dev", precision="fp32", depth=5)
    assert few["pairs"] == (N - 1) * 5, "the stored run is deeper"


@pytest.mark.parametrize("method", calibration.METHODS)
def test_the_map_is_kept_in_export_and_card_and_applied_by_serve(
    store: LabelStore, tmp_path: Path, method: str
) -> None:
    row = calibrate_student(store, "tiny", "c/dev", method=method, precision="fp32", none_precision=0.5)
    export_student(store, "tiny", tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "config.json").read_text())[CALIBRATION]
    own = calibrated(store)
    assert calibration.map_of(kept).of(np.array([0.3])) == own.map.of(np.array([0.3]))
    card = " ".join((tmp_path / "out" / "README.md").read_text().split())
    assert f"({method}, fitted on {N - 1} judged queries of c/dev" in card
    assert "they are not probabilities" not in card

    texts = tiny_models.sentences(9, 4)
    for name in ("tiny", str(tmp_path / "out")):
        (model,) = _Loader(store, [name], "fp32", "auto", None, None, None, None).load()
        raw = model.scorer.scores([("what is water", texts)])[0]
        with serving_app(create_app_of([model])) as url:
            answer = httpx.post(
                f"{url}/v1/rerank", json={"query": "what is water", "documents": texts}
            ).json()
            info = httpx.get(f"{url}/info").json()
        results = answer["results"]
        assert [r["index"] for r in results] == np.argsort(-raw, kind="stable").tolist()
        expected = own.map.of(np.sort(raw.astype(np.float64))[::-1])
        assert [r["relevance_score"] for r in results] == pytest.approx(expected.tolist(), abs=1e-6)
        assert info["calibration"]["method"] == method
        if row["none_below"] is not None:
            assert answer["meta"]["none_relevant"] == (expected[0] < row["none_below"])


def test_rerank_stores_probabilities_in_the_logits_order(store: LabelStore) -> None:
    logits = rerank_run(store, student="tiny", dataset="c/test", precision="fp32")
    with pytest.raises(DataMissing, match="not calibrated"):
        probability_run(store, logits)
    calibrate_student(store, "tiny", "c/dev", precision="fp32")
    arguments = [
        "students",
        "rerank",
        "tiny",
        "--dataset",
        "c/test",
        "--precision",
        "fp32",
        "--probabilities",
        "-q",
    ]
    with pytest.raises(SystemExit) as ended:
        run([*arguments, "--store", str(store.path)])
    assert ended.value.code == 0
    mapped = probability_run(store, logits)
    assert mapped.name == "tiny@first-probabilities"
    calibrate_student(store, "tiny", "c/dev", method="isotonic", precision="fp32")
    with pytest.raises(UsageError, match="already"):
        probability_run(store, logits)
    mapped = probability_run(store, logits, replace=True)
    with store.read() as con:
        rows = con.execute(
            """SELECT a.document = b.document, a.score, b.score FROM candidates a JOIN candidates b USING (query, rank)
               WHERE a.run = ? AND b.run = ? ORDER BY query, rank""",
            [logits.run, mapped.run],
        ).fetchall()
    assert all(same for same, *_ in rows)
    expected = calibrated(store).map.of(np.array([s for _, s, _ in rows], dtype=np.float64))
    assert [p for *_, p in rows] == pytest.approx(expected.tolist(), abs=1e-6)
    fused = evaluate(store, "c/test", students=["tiny"], measures=["nDCG@10"], fuse="c/dev").rows
    assert [row["system"] for row in fused if row["kind"] == "fused"] == ["tiny+first"]


def test_a_calibration_is_that_of_its_weights(store: LabelStore) -> None:
    calibrate_student(store, "tiny", "c/dev", precision="fp32")
    with store.write() as con:
        con.execute("UPDATE students SET weights_hash = ? WHERE name = 'tiny'", ["f" * 32])
    with store.read() as con:
        assert calibration.of_student(con, lookup.student(con, "tiny")) is None
        assert calibration.of_all(con) == {}


def test_a_newer_calibration_takes_the_place_of_an_older_one_and_goes_with_its_student(
    store: LabelStore,
) -> None:
    calibrate_student(store, "tiny", "c/dev", precision="fp32")
    calibrate_student(store, "tiny", "c/dev", method="isotonic", precision="fp32")
    assert calibrated(store).map.method == "isotonic"
    with pytest.raises(SystemExit) as ended:
        run(["students", "remove", "tiny", "--yes", "-q", "--store", str(store.path)])
    assert ended.value.code == 0
    with store.read() as con:
        assert con.execute("SELECT count(*) FROM calibrations").fetchall() == [(0,)]


def test_the_report_shows_how_reliable_it_is(store: LabelStore, tmp_path: Path) -> None:
    assert 'id="calibration"' not in page.write(store, tmp_path / "a.html").path.read_text("utf-8")
    row = calibrate_student(store, "tiny", "c/dev", precision="fp32")
    html = page.write(store, tmp_path / "b.html").path.read_text("utf-8")
    assert f"{row['ece']:.4f}" in html
    assert "Reliability of tiny" in html
    assert html.count("predicted probability") >= 1


def test_the_command_says_what_its_figures_are(store: LabelStore, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "students",
        "calibrate",
        "tiny",
        "--dataset",
        "c/dev",
        "--precision",
        "fp32",
        "--store",
        str(store.path),
    ]
    with pytest.raises(SystemExit) as ended:
        run(arguments)
    shown = capsys.readouterr()
    assert ended.value.code == 0
    assert max(len(line) for line in shown.out.splitlines()) <= 80
    assert "not fitted on" in shown.err
    with pytest.raises(SystemExit) as ended:
        run([*arguments, "--format", "json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert row["ece"] < row["ece_before"]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"dataset": "c/absent"}, DataMissing, "c/absent"),
        ({"run": "absent"}, DataMissing, "absent"),
        ({"depth": 0}, UsageError, "depth"),
        ({"method": "spline"}, UsageError, "spline"),
        ({"relevant_from": 5}, BadInput, "0 relevant"),
    ],
)
def test_what_cannot_be_calibrated_is_named(
    store: LabelStore, options: dict[str, object], error: type[Exception], says: str
) -> None:
    given = {"dataset": "c/dev", "precision": "fp32"} | options
    with pytest.raises(error, match=says):
        calibrate_student(store, "tiny", **given)
