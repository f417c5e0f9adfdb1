"""A graph for OpenVINO gives the student's scores in fp32, near ones in int8, wherever a student can be used."""

import json
from pathlib import Path
from typing import Any

import made_store
import numpy as np
import pytest
import tiny_decoders
import tiny_families
import tiny_models
from shelves import msft

from students.errors import StudentError
from students.jobs.register import add_student
from students.jobs.rerank import load_reranker
from students.rerank.exports import export_graph
from students.rerank.openvino import FILE, export_openvino
from students.rerank.reranker import Reranker

pytestmark = pytest.mark.test_all


def lists() -> list[tuple[str, list[str]]]:
    return [
        (q, tiny_models.sentences(3 + 4 * n, n, 70)) for n, q in enumerate(tiny_models.sentences(4, 5, 6))
    ]


@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta", "modernbert", "deberta-v2"])
def test_fp32_scores_are_equal_and_int8_scores_near(tmp_path: Path, architecture: str) -> None:
    source = tiny_families.make(architecture, tmp_path / "source")
    student = Reranker.load(source, precision="fp32", max_length=64, device="cpu")
    exact = np.concatenate(student.scores(lists()))
    export_openvino(source, tmp_path / "fp32", max_length=64)
    export_openvino(source, tmp_path / "int8", max_length=64, calibrate=lists()[1:])
    plain = Reranker.load(tmp_path / "fp32")
    assert plain.precision == "fp32"
    found = plain.scores(lists())
    assert [len(part) for part in found] == [3, 7, 11, 15]
    np.testing.assert_allclose(np.concatenate(found), exact, atol=1e-4 * np.ptp(exact) + 1e-6)
    rough = Reranker.load(tmp_path / "int8")
    assert rough.precision == "int8"
    near = np.concatenate(rough.scores(lists()))
    assert np.abs(near - exact).max() > 0
    assert np.corrcoef(near, exact)[0, 1] > 0.5, "random weights lose more than a trained student's"
    sizes = [(tmp_path / form / FILE).with_suffix(".bin").stat().st_size for form in ("fp32", "int8")]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("backend", ["openvino", "onnx"])
@pytest.mark.parametrize(
    ("kind", "name"), [("qwen3", "Qwen3-Reranker-0.6B"), ("gemma", "bge-reranker-v2-gemma")]
)
def test_decoders_give_their_scores_as_graphs_too(tmp_path: Path, kind: str, name: str, backend: str) -> None:
    source = tiny_decoders.make(kind, tmp_path / name)
    exact = np.concatenate(
        Reranker.load(source, precision="fp32", max_length=160, device="cpu").scores(lists())
    )
    export_graph(source, tmp_path / "graph", backend, max_length=160)
    found = np.concatenate(Reranker.load(tmp_path / "graph").scores(lists()))
    np.testing.assert_allclose(found, exact, atol=1e-4 * np.ptp(exact) + 1e-6)
    export_graph(source, tmp_path / "int8", backend, max_length=160, int8=True, calibrate=lists())
    rough = np.concatenate(Reranker.load(tmp_path / "int8").scores(lists()))
    assert np.corrcoef(rough, exact)[0, 1] > 0.5, "random weights lose more than a trained student's"


@pytest.mark.parametrize("long", ["first", "max"])
def test_windows_of_long_passages_are_scored_as_in_torch(tiny: Any, tmp_path: Path, long: str) -> None:
    export_openvino(tiny("bert"), tmp_path / "graph", max_length=24)
    of_torch = Reranker.load(tiny("bert"), precision="fp32", max_length=24, device="cpu", long=long)
    graph = Reranker.load(tmp_path / "graph", long=long)
    for a, b in zip(of_torch.scores(lists()), graph.scores(lists()), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.fixture
def store(tiny: Any, tmp_path: Path) -> Any:
    made = made_store.make(tmp_path / "s.duckdb")
    add_student(made, str(tiny("bert")), name="tiny", max_length=48)
    return made


def test_the_export_is_checked_and_can_be_served_and_loaded_by_its_folder(
    store: Any, tmp_path: Path, capfd: Any
) -> None:
    for form in ("openvino", "openvino-int8"):
        done = msft(store, "students", "export", "tiny", "--format", form, "-o", str(tmp_path / form), "--dataset", "c/test")  # fmt: skip
        assert "max_difference" in done.out
        assert "Statistics collection" not in done.out + done.err
        names = {path.name for path in (tmp_path / form).iterdir()}
        assert {"README.md", FILE, "openvino_model.bin", "config.json", "tokenizer.json"} <= names
        assert json.loads((tmp_path / form / "config.json").read_text())["msft_graph"] == (
            "int8" if form.endswith("int8") else "fp32"
        )
    exact = load_reranker(store, "tiny", precision="fp32").scores(lists())
    graph = Reranker.load(tmp_path / "openvino", max_length=48)
    np.testing.assert_allclose(np.concatenate(exact), np.concatenate(graph.scores(lists())), atol=1e-5)
    msft(store, "students", "export", "tiny", "--format", "hf", "-o", str(tmp_path / "openvino"), "--replace")
    assert {"model.safetensors"} <= {path.name for path in (tmp_path / "openvino").iterdir()}


@pytest.mark.parametrize(
    ("backend", "precision"), [("openvino", "fp32"), ("openvino", "int8"), ("onnx", "fp32")]
)
def test_rerank_by_a_backend_keeps_its_runs_apart(store: Any, backend: str, precision: str) -> None:
    options = ["--dataset", "c/test", "--run", "first", "--depth", "10"]
    msft(store, "students", "rerank", "tiny", *options, "--precision", "fp32", "--name", "plain")
    by = ["--backend", backend, "--precision", precision]
    msft(store, "students", "rerank", "tiny", *options, *by, "--name", "other")
    again = msft(store, "students", "rerank", "tiny", *options, *by, "--name", "other")
    assert "nothing to score" in again.err
    with store.read() as con:
        held = {name: json.loads(p) for name, p in con.execute("SELECT name, parameters FROM runs WHERE kind = 'student'").fetchall()}  # fmt: skip
        scores = dict(
            con.execute(
                "SELECT r.name, list(score ORDER BY query, document) FROM candidates c JOIN runs r USING (run)"
                " WHERE r.kind = 'student' GROUP BY ALL"
            ).fetchall()
        )
    assert "backend" not in held["plain"]
    assert (held["other"]["backend"], held["other"]["precision"]) == (backend, precision)
    tolerance = 1e-5 if precision == "fp32" else np.ptp(scores["plain"])
    np.testing.assert_allclose(scores["other"], scores["plain"], atol=tolerance)


def test_what_a_backend_cannot_do_is_said(tiny: Any, store: Any, tmp_path: Path) -> None:
    rerank = ["students", "rerank", "tiny", "--dataset", "c/test", "--run", "first"]
    assert "torch | openvino | onnx" in msft(store, *rerank, "--backend", "tensorrt", code=2).err
    assert "fp32 | int8" in msft(store, *rerank, "--backend", "openvino", "--precision", "bf16", code=2).err
    assert "--backend openvino" in msft(store, *rerank, "--precision", "int8", code=2).err
    with pytest.raises(StudentError, match="needs pairs to calibrate"):
        Reranker.load(tiny("bert"), backend="openvino", precision="int8")
    export_openvino(tiny("bert"), tmp_path / "graph", max_length=32)
    with pytest.raises(StudentError, match="is an export for openvino, not for onnx"):
        Reranker.load(tmp_path / "graph", backend="onnx")
    with pytest.raises(StudentError, match="is in fp32, not in int8"):
        Reranker.load(tmp_path / "graph", precision="int8")
