"""The table of score parity: what is exact is equal within 1e-5, what is rough is rough and still in order."""

import numpy as np
import pytest
import tiny_models

from benchmarks import parity
from benchmarks.real_lists import Candidates
from students.model.encoder import CrossEncoder

pytestmark = pytest.mark.test_all  # exporting to ONNX takes ten seconds

EXACT = ("hf_fp32", "st_fp32", "ours_fp32", "onnx_fp32", "openvino_fp32")
ROUGH = ("ours_bf16", "onnx_int8", "openvino_int8")


def candidates(n_queries: int = 4, depth: int = 12) -> Candidates:
    """Made lists of uneven lengths, one passage of each judged relevant."""
    ids = [[f"d{q}-{k}" for k in range(depth - q)] for q in range(n_queries)]
    lists = [
        (query, tiny_models.sentences(len(ids[q]), q, 70))
        for q, query in enumerate(tiny_models.sentences(n_queries, 9, 6))
    ]
    queries = [f"q{q}" for q in range(n_queries)]
    return Candidates("made", queries, lists, ids, {query: {ids[q][1]: 1} for q, query in enumerate(queries)})


@pytest.fixture(scope="module")
def rows(tiny, tmp_path_factory) -> dict[str, dict[str, float]]:
    folder = tmp_path_factory.mktemp("parity")
    encoder = CrossEncoder.load(tiny("bert"), precision="fp32", max_length=48, device="cpu")
    student = encoder.save(folder / "student")
    return parity.compare(parity.all_ways(student, 48, folder, candidates(3).lists), candidates())


def test_exact_ways_are_equal_and_rough_ones_near(rows):
    assert set(rows) == {*EXACT, *ROUGH}
    for name in EXACT:
        assert rows[name]["max_difference"] < 1e-5, name
        assert rows[name]["tau"] == pytest.approx(1.0, abs=0.02), name
        assert rows[name]["ndcg10_difference"] == pytest.approx(0.0, abs=1e-9), name
    for name in ROUGH:
        assert rows[name]["max_difference"] > 1e-4, f"{name} that equals fp32 was fp32"
        assert rows[name]["mean_difference"] < 5 * rows[name]["score_deviation"], name
        assert rows[name]["tau"] > 0.5, name


def test_the_table_has_a_line_for_each_way_and_all_columns(rows):
    head, _, *lines = parity.table("made", rows).splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == list(rows)
    assert all(line.count("|") == head.count("|") == len(parity.COLUMNS) + 2 for line in lines)


def test_a_way_that_orders_otherwise_shows(rows):
    """Reversed scores: the difference, tau and nDCG all say so."""
    on = candidates()
    exact = np.concatenate([np.arange(len(ids), dtype=float) for ids in on.doc_ids])
    found = parity.compare({"hf_fp32": lambda on: exact, "other": lambda on: -exact}, on)
    assert found["other"]["tau"] == pytest.approx(-1.0)
    assert found["other"]["max_difference"] == 22.0
    assert found["other"]["ndcg10_difference"] != 0
