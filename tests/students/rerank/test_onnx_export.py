"""The exported graph gives the student's scores: equal in fp32, near in int8, and the difference is measured."""

import json
import logging
import sys
from pathlib import Path

import forked
import made_store
import numpy as np
import pytest
import tiny_families
import tiny_models
import usual_names
from torch.torch_version import TorchVersion

from labelstore.errors import BadInput, UsageError
from labelstore.evaluation import scores as evaluation
from students.errors import StudentError
from students.jobs.export import export_student
from students.jobs.export_check import slower_than_student
from students.jobs.register import add_student
from students.jobs.rerank import rerank_run
from students.jobs.serve import warnings_in
from students.rerank import onnx
from students.rerank.onnx import FILE, export_onnx
from students.rerank.reranker import Reranker


def lists() -> list[tuple[str, list[str]]]:
    return [
        (q, tiny_models.sentences(3 + 4 * n, n, 70)) for n, q in enumerate(tiny_models.sentences(4, 5, 6))
    ]


@pytest.mark.test_all
@pytest.mark.parametrize(
    "architecture",
    ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("electra", "roberta", "modernbert"))],
)
def test_fp32_scores_are_equal_and_int8_scores_near(tiny, tmp_path, architecture):
    source = tiny(architecture)
    exact = np.concatenate(
        Reranker.load(source, precision="fp32", max_length=64, device="cpu").scores(lists())
    )
    export_onnx(source, tmp_path / "onnx", max_length=64)
    export_onnx(source, tmp_path / "int8", max_length=64, int8=True)
    plain = Reranker.load(tmp_path / "onnx").scores(lists())
    assert [len(part) for part in plain] == [3, 7, 11, 15]
    np.testing.assert_allclose(np.concatenate(plain), exact, atol=5e-6)
    rough = np.concatenate(Reranker.load(tmp_path / "int8").scores(lists()))
    assert 0 < np.abs(rough - exact).max() < np.ptp(exact)
    assert np.corrcoef(rough, exact)[0, 1] > 0.8
    assert (tmp_path / "int8" / FILE).stat().st_size < (tmp_path / "onnx" / FILE).stat().st_size


@pytest.mark.parametrize(("pairs", "graph", "told"), [(5000, 40, True), (5000, 60, False), (50, 40, False)])
def test_an_int8_graph_that_is_slower_is_told(pairs: int, graph: float, told: bool) -> None:
    row = {"pairs": pairs, "student_pairs_per_second": 54, "export_pairs_per_second": graph}
    said = slower_than_student(row)
    assert ("slower than the student in fp32: 40 and 54 pairs/s" in said) == told


@pytest.mark.test_all
def test_the_export_carries_its_measured_difference_and_card(tiny, tmp_path):
    store = made_store.make(tmp_path / "s.duckdb")
    add_student(store, str(tiny("bert")), name="tiny", max_length=48)
    out = tmp_path / "out"
    (row,) = export_student(store, "tiny", out, form="int8", dataset="c/test", run="first")
    assert (row["dataset"], row["run"], row["pairs"]) == ("c/test", "first", 120)
    assert 0 < row["mean_difference"] <= row["max_difference"] < 10 * row["score_deviation"]
    assert row["value_loss"] == pytest.approx(row["student_value"] - row["export_value"])
    assert 0 <= row["student_value"] <= 1
    assert min(row["student_pairs_per_second"], row["export_pairs_per_second"]) > 0
    assert {"README.md", FILE, "config.json", "tokenizer.json"} <= {path.name for path in out.iterdir()}
    (row,) = export_student(store, "tiny", tmp_path / "hf", form="hf")
    assert "max_difference" not in row
    assert (tmp_path / "hf" / "model.safetensors").is_file()


@pytest.mark.test_all
def test_an_export_prints_a_table_that_fits_and_no_warning_of_torchvision(tmp_path: Path) -> None:
    """A process of its own: torch writes to the stderr that it began with."""
    store = usual_names.make(tmp_path / "s.duckdb")
    name = f"{usual_names.STUDENT}-untrained"
    add_student(store, str(tiny_families.make("bert", tmp_path / "source")), name=name, max_length=48)
    words = ["students", "export", name, "--format", "onnx", "-o", f"{name}-onnx", "--store", str(store.path)]
    done = forked.run(
        [sys.executable, "-m", "cli.main", *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80, done.stdout
    assert "export_pairs_per_second" in done.stdout
    assert "torchvision" not in done.stderr


def test_other_warnings_of_the_exporter_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    with onnx._without_torchvision():
        logger.warning("torchvision is not installed. Skipping %s", "torchvision::nms")
        logger.warning("an operator is unknown")
    logger.warning("torchvision is not installed, later")
    assert caplog.messages == ["an operator is unknown", "torchvision is not installed, later"]


def test_a_torch_that_cannot_export_is_said_to_be_too_old(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.__version__", TorchVersion("2.9.1"))
    with pytest.raises(StudentError, match=r"torch 2\.9\.1") as caught:
        export_onnx(tiny("bert"), tmp_path / "onnx", max_length=48)
    assert "msft[onnx]" in str(caught.value.hint)
    assert not (tmp_path / "onnx").exists()


def test_what_cannot_be_exported_is_refused_and_nothing_is_overwritten(tiny, tmp_path):
    store = made_store.make(tmp_path / "s.duckdb")
    add_student(store, str(tiny("bert")), name="tiny")
    with pytest.raises(UsageError, match="tflite"):
        export_student(store, "tiny", tmp_path / "x", form="tflite")
    precious: Path = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("…")
    (tmp_path / "file").write_text("…")
    for replace in (False, True):
        with pytest.raises(BadInput, match="something other than an exported student"):
            export_student(store, "tiny", precious, replace=replace)
        with pytest.raises(BadInput, match="not a folder"):
            export_student(store, "tiny", tmp_path / "file", replace=replace)
    assert [p.name for p in precious.iterdir()] == ["thesis.txt"]


@pytest.mark.test_all
@pytest.mark.parametrize(("before", "after"), [("hf", "hf"), ("hf", "onnx"), ("onnx", "hf")])
def test_replace_takes_the_place_of_an_export_alone(tiny, tmp_path, before, after):
    store = made_store.make(tmp_path / "s.duckdb")
    add_student(store, str(tiny("bert")), name="tiny", max_length=48)
    out = tmp_path / "out"
    export_student(store, "tiny", out, form=before, check=False)
    (out / "left-over").write_text("of the old export")
    with pytest.raises(BadInput) as caught:
        export_student(store, "tiny", out, form=after, check=False)
    assert "--replace" in str(caught.value.hint)
    export_student(store, "tiny", out, form=after, check=False, replace=True)
    names = {p.name for p in out.iterdir()}
    assert ("model.safetensors" if after == "hf" else FILE) in names
    assert "left-over" not in names
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".out")) == []


@pytest.mark.test_all
def test_a_student_that_is_worse_is_exported_with_a_warning_and_a_card_that_says_so(tiny, tmp_path):
    store = made_store.make(tmp_path / "s.duckdb", n_queries=40, n_documents=150)
    add_student(store, str(tiny("bert")), name="tiny", max_length=48)
    with store.write() as con:  # the judged passage of every query stands first in the run
        con.execute("UPDATE datasets SET role = 'dev'")
        con.execute(
            """INSERT INTO qrels SELECT 1, c.query, c.document, 5 FROM candidates c JOIN runs r USING (run)
               WHERE r.dataset = 1 AND c.rank = 1
               AND NOT EXISTS (FROM qrels q WHERE q.query = c.query AND q.document = c.document)"""
        )
    rerank_run(store, student="tiny", dataset="c/train", run="first", precision="fp32")
    evaluation.evaluate(store, "c/train", measures=["nDCG@10"])
    told: list[str] = []
    export_student(store, "tiny", tmp_path / "out", warn=told.append)
    assert len(told) == 1
    assert told[0].startswith("tiny alone is worse than first on c/train: nDCG@10 0.")
    assert "use first" in told[0]
    assert f"> **Warning:** {told[0]}." in (tmp_path / "out" / "README.md").read_text("utf-8")
    assert json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))["msft_warnings"] == told
    assert warnings_in(tmp_path / "out") == told

    # a student that was made from the export has its own verdict: none yet
    add_student(store, str(tmp_path / "out"), name="from-export", max_length=48)
    again: list[str] = []
    export_student(store, "from-export", tmp_path / "again", warn=again.append)
    assert again == warnings_in(tmp_path / "again") == []
    assert "msft_warnings" not in (tmp_path / "again" / "config.json").read_text("utf-8")
