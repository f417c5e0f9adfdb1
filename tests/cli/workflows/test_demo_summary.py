"""What the demo prints at its end fits a terminal of 80 columns, and csv has the table alone."""

import csv
import io
from typing import Any

import pytest

from cli.output.render import Format
from cli.workflows.demo import summary

SYSTEMS = [
    ("labels@docstrings/test", "teacher", 10, 0.442, 4.57e-07),
    ("minilm-kd-cl+bm25s", "fused", 10, 0.4242, 1.45e-06),
    ("minilm-kd-cl", "student", 10, 0.4066, 0.1882),
    ("bm25s", "first_stage", 30, 0.3903, None),
]
ROWS: list[dict[str, Any]] = [
    {
        "dataset": "docstrings/test", "system": name, "kind": kind, "first_stage": "bm25s", "n_queries": 600, "depth": depth,
        "recall": 0.6, "measure": measure, "value": value, "p_value": p_value,
    }
    for name, kind, depth, value, p_value in SYSTEMS for measure in ("RR@10", "nDCG@10")
]  # fmt: skip
ANSWERS: dict[str, list[dict[str, Any]]] = {
    "Which view?": [
        {"student": "minilm-kd-cl", "stage": k, "objective": "kd", "view": "dfdd836c", "made_from": "labeling",
         "source": "docstrings/train", "teacher": None}
        for k in (1, 2)
    ],
    "Nothing?": [],
}  # fmt: skip


def test_it_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    summary.show(ROWS, ANSWERS, Format.table)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "dataset: docstrings/test; first_stage: bm25s; n_queries: 600"
    assert [line.split()[0] for line in lines[4:8]] == [name for name, *_ in SYSTEMS]
    assert "Which view?" in lines


def test_csv_has_the_table_alone_with_all_columns(capsys: pytest.CaptureFixture[str]) -> None:
    summary.show(ROWS, ANSWERS, Format.csv)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["system"], row["first_stage"], row["n_queries"]) for row in rows] == [
        (name, "bm25s", "600") for name, *_ in SYSTEMS
    ]
