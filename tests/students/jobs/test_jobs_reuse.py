"""A stage that another student has been through is reused, and the result is the same."""

import json
import os
from pathlib import Path
from typing import Any

import made_store
import pytest

from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from labelstore.upkeep.verify.verify import verify
from students.jobs.train import Sources, train_student

SOURCES = {
    "cl": Sources(datasets=["c/train"], runs=["first"]),
    "cl,kd": Sources(datasets=["c/train"], runs=["first"], labels=["teacher@first"]),
}
SETTINGS = {"max_steps": 2, "lists": 4, "max_length": 48, "valid_every": 1, "precision": "fp32"}


def train(store: LabelStore, base: Path, regime: str, **settings: Any) -> tuple[lookup.Student, str]:
    notes: list[str] = []
    student = train_student(
        store, regime=regime, base=str(base), sources=SOURCES[regime], name=f"{regime.replace(',', '-')}{len(settings)}",
        settings={**SETTINGS, **settings}, note=notes.append,
    )  # fmt: skip
    return student, "\n".join(notes)


def rows(store: LabelStore, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(sql, list(parameters)).fetchall()


@pytest.mark.test_all
@pytest.mark.parametrize("other", [{}, {"lr": 3e-5}, {"seed": 7}])
def test_the_first_stage_is_taken_from_a_student_that_had_it(
    tmp_path: Path, tiny, other: dict[str, Any]
) -> None:
    base = tiny("bert")
    store, alone = (made_store.make(tmp_path / f"{name}.duckdb") for name in ("both", "alone"))
    first, _ = train(store, base, "cl", **other)
    both, said = train(store, base, "cl,kd")
    reference, _ = train(alone, base, "cl,kd")
    assert both.weights_hash == reference.weights_hash
    stages = rows(
        store, "SELECT parent_hash, weights_hash, steps, hyperparameters FROM stages WHERE student = ? ORDER BY stage",
        both.student,
    )  # fmt: skip
    assert [steps for _, _, steps, _ in stages] == [2, 2]
    assert stages[0][1] == stages[1][0]
    settings = json.loads(stages[0][3])
    if other:
        assert "reused from" not in said
        assert "reused_from" not in settings
    else:
        assert f"reused from student {first.name}" in said
        assert settings["reused_from"] == first.name
        assert stages[0][1] == first.weights_hash
    log = "SELECT stage, step, measure, value FROM training_log WHERE student = ? ORDER BY ALL"
    assert rows(store, log, both.student) == rows(alone, log, reference.student)


@pytest.mark.test_all
def test_weights_that_are_not_what_they_were_are_not_taken(tmp_path: Path, tiny) -> None:
    store = made_store.make(tmp_path / "s.duckdb")
    first, _ = train(store, tiny("bert"), "cl")
    weights = store.files / first.folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    _, said = train(store, tiny("bert"), "cl,kd")
    assert "reused from" not in said


@pytest.mark.test_all
@pytest.mark.parametrize("name", ["plain", "dots.and-dashes", "naïve"])
def test_a_training_of_yesterday_has_left_nothing_that_verify_finds(tmp_path: Path, tiny, name: str) -> None:
    store = made_store.make(tmp_path / "s.duckdb")
    train_student(
        store, regime="cl", base=str(tiny("bert")), sources=SOURCES["cl"], name=name,
        settings={**SETTINGS, "max_steps": 1},
    )  # fmt: skip
    for path in (store.files, *store.files.rglob("*")):
        os.utime(path, (0, 0))
    assert verify(store).findings == []
