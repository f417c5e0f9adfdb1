"""LaTeX of `eval` and `reproduce` is as publishable as that of `compare`: a float, a caption, marks, three decimals."""

import re

import pytest
from shelves import Shelf, fill, msft

from cli.output import latex
from labelstore.store.label_store import LabelStore


@pytest.mark.parametrize("measures", [[], ["nDCG@10"], ["RR@10", "AP"]])
def test_eval_writes_a_table_with_a_caption(tmp_path, measures: list[str]) -> None:
    small = fill(Shelf(LabelStore(tmp_path / "s.duckdb")))
    words = [word for measure in measures for word in ("--measure", measure)]
    text = msft(small.store, "eval", "--no-rerank", "--format", "latex", *words).out
    assert text.startswith("\\begin{table}\n\\centering\n\\caption{")
    assert text.rstrip().endswith("\\end{table}")
    assert "toy/test: 6 queries" in text
    assert text.count("{") == text.count("}")
    assert not re.search(r"\d\.\d{4}", text)
    assert "\\mathbf{" in text
    assert re.search(r"cl-student(@bm25)? & bm25", text)


@pytest.mark.parametrize(("p", "marked"), [(0.049, True), (0.051, False), (None, False)])
def test_significant_values_are_marked(p: float | None, marked: bool) -> None:
    rows = [
        {"dataset": "d_1", "system": s, "first_stage": "bm25", "measure": "nDCG@10", "value": v, "n_queries": 9, "p_value": q, "depth": 20}
        for s, v, q in (("bm25", 0.41234, None), ("a_b", 0.52345, p))
    ]  # fmt: skip
    text = latex.scores(rows)
    assert ("$\\mathbf{0.523}^{\\dagger}$" in text) is marked
    assert "a\\_b & bm25" in text
    assert "bm25 & --" in text
    assert "d\\_1: 9 queries; lists of 20" in text


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (0.43217, "$0.432$"),
        (1.3e-5, r"$1.3\times10^{-5}$"),
        (-2e-4, r"$-2.0\times10^{-4}$"),
        (None, "--"),
        ("a & b", "a \\& b"),
        (0.0, "$0.000$"),
    ],
)
def test_any_rows_have_a_caption(value: object, cell: str) -> None:
    text = latex.captioned([{"name": "x", "value": value}], "All of it")
    assert f"x & {cell} \\\\" in text
    assert "\\caption{All of it.}" in text
    assert "Name & Value" in text


def test_the_best_value_of_a_column_is_bold() -> None:
    rows = [{"student": "a", "dl19 nDCG@10": 0.5}, {"student": "b", "dl19 nDCG@10": 0.7}]
    text = latex.captioned([*rows, {"student": "c", "dl19 nDCG@10": None}], "All", ["dl19 nDCG@10"])
    assert r"b & $\mathbf{0.700}$" in text
    assert "a & $0.500$" in text
    assert "Student & dl19 nDCG@10" in text
