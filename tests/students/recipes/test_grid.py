"""Grids: every combination, what takes one of them out of the file, and axes of any setting."""

from pathlib import Path

import pytest

from students.errors import StudentError
from students.recipes.read import load_grid, load_recipe

pytestmark = pytest.mark.test_all

RECIPE = """
bases = ["a", "b"]
regimes = ["cl", "cl,kd"]
lr = 1e-4
["stage-2"]
warmup = 0.0
[vary]
"stage-2.lr" = [1e-8, 1e-5]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "grid.toml"
    path.write_text(text)
    return path


def test_an_axis_of_a_stage_bears_on_regimes_that_have_it(tmp_path: Path) -> None:
    grid = load_grid(write(tmp_path, RECIPE))
    found = [(r.base, r.regime, [s.lr for s in r.stages]) for r in grid.recipes]
    assert found == [
        (base, regime, rates)
        for base in ("a", "b")
        for regime, rates in (("cl", [1e-4]), ("cl,kd", [1e-4, 1e-8]), ("cl,kd", [1e-4, 1e-5]))
    ]
    assert grid.choices[1] == {"base": "a", "regime": "cl,kd", "stage-2.lr": 1e-8}
    assert grid.recipes[1].stages[1].warmup == 0.0


def test_a_choice_takes_its_training_out_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, RECIPE)
    grid = load_grid(path)
    for recipe, choice in zip(grid.recipes, grid.choices, strict=True):
        assert load_recipe(path, choice) == recipe
    with pytest.raises(StudentError, match="a grid of 2 trainings"):
        load_recipe(path, {"base": "a", "regime": "cl,kd"})


def test_an_axis_of_an_objective_bears_on_regimes_that_have_it(tmp_path: Path) -> None:
    text = 'regimes = ["cl", "kd", "cl+kd"]\n[kd]\nlr = 1e-3\n[vary]\n"kd.loss" = ["ranknet", "kl"]\n'
    path = write(tmp_path, text)
    grid = load_grid(path)
    found = [(r.regime, r.stages[0].loss, r.stages[0].lr) for r in grid.recipes]
    assert found == [
        ("cl", "lce", 1e-5), ("kd", "ranknet", 1e-3), ("kd", "kl", 1e-3), ("cl+kd", "lce+ranknet", 1e-5),
        ("cl+kd", "lce+kl", 1e-5),
    ]  # fmt: skip
    for recipe, choice in zip(grid.recipes, grid.choices, strict=True):
        assert load_recipe(path, choice) == recipe


@pytest.mark.parametrize(
    ("vary", "says"),
    [
        ('"stage-2.lr" = 1e-5', "must be a list"),
        ('"stage-2.lr" = []', "at least one value"),
        ('"stage-2.rate" = [1]', "unknown setting 'rate'"),
        ('"stage-2.lr" = ["high"]', "lr must be a number"),
    ],
)
def test_an_axis_that_cannot_be_is_named(tmp_path: Path, vary: str, says: str) -> None:
    with pytest.raises(StudentError, match=says):
        load_grid(write(tmp_path, f'regimes = ["cl,kd"]\n[vary]\n{vary}\n'))


def test_the_studys_open_question_is_a_grid() -> None:
    grid = load_grid("pezzuti2025-lr")
    rates = {
        regime: [r.stages[1].lr for r in grid.recipes if r.regime == regime] for regime in ("cl,kd", "kd,cl")
    }
    assert rates["cl,kd"] == rates["kd,cl"] == [6e-12, 1e-8, 1e-7, 1e-6, 1e-5]
    # all else is as in the study's own grid
    study = {r.regime: r for r in load_grid("pezzuti2025").recipes if r.base == "electra"}
    assert [r.stages for r in grid.recipes if r.regime in ("cl", "kd")] == [
        study["cl"].stages,
        study["kd"].stages,
    ]
    assert next(r for r in grid.recipes if r.regime == "cl,kd").stages == study["cl,kd"].stages
    assert [r for r in grid.recipes if r.regime == "kd,cl"][-1].stages == study["kd,cl"].stages
