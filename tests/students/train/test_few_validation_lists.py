"""Validation lists that are too few to tell which step is best: this is said, no curve is drawn, no step is chosen."""

from pathlib import Path

import pytest
import tiny_views

from students.recipes.read import make_recipe
from students.train import diagnostics
from students.train.run import train


@pytest.mark.parametrize(
    ("regime", "n", "says"),
    [("cl", 2, True), ("kd", 19, True), ("cl", 20, False), ("kd", 500, False), ("cl", 0, False)],
)
def test_few_validation_lists_are_said(regime: str, n: int, says: bool) -> None:
    stage = make_recipe({"regime": regime, "base": "minilm"}, where="options").stages[0]
    told = diagnostics.of_validation(stage, n)
    assert (told is not None) is says
    if told:
        assert f"validation has {n} lists" in told
        assert "--valid-fraction" in told


@pytest.mark.parametrize(("kind", "regime"), [("distillation", "kd"), ("contrastive", "cl")])
@pytest.mark.parametrize(("n_valid", "curve"), [(20, True), (19, False), (1, False)])
def test_a_curve_is_drawn_and_a_step_chosen_from_enough_lists_alone(
    tmp_path: Path, tiny, kind: str, regime: str, n_valid: int, curve: bool
) -> None:
    view = tiny_views.write(tmp_path / "v", kind, n_lists=20 + n_valid, n_valid=n_valid)
    recipe = make_recipe(
        {
            "base": str(tiny("bert")), "regime": regime, "max_length": 32, "precision": "fp32", "lists": 4, "lr": 0.3,
            "schedule": "constant", "warmup": 0.0, "epochs": 0, "max_steps": 6, "valid_every": 1, "patience": 2,
        }
    )  # fmt: skip
    notes: list[str] = []
    result = train(recipe, [view], tmp_path / "out", device="cpu", note=notes.append)
    stage = result.stages[0]
    assert any(row["measure"] == "valid_loss" for row in result.log) is curve
    assert any("fewer than 20" in note for note in notes) is not curve
    if not curve:  # the wild rate makes validation worse from the first step on, and no step is chosen by it
        assert (stage["steps"], stage["best_step"], stage["best_value"]) == (6, None, None)
        assert stage["stopped_by"] == "max_steps"
        assert not any("never got better" in note or "ends with the weights" in note for note in notes)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"pairs": 500, "last_loss": 0.69}, "500 pairs are few, 7,000 and more are usual"),
        ({"pairs": 50_000, "last_loss": 0.69}, "--easy 3"),
        (
            {"pairs": 500, "last_loss": 0.2, "first_value": 0.5, "best_value": 0.6},
            "500 pairs are few, 7,000 and more",
        ),
        (
            {"pairs": 100, "truncated_pairs": 45, "last_loss": 0.2},
            "cut 45% of its pairs at max_length 48, and up to 20%",
        ),
    ],
)
def test_a_warning_names_the_likely_cause_with_the_usual_number(state: dict, says: str) -> None:
    from students.train.checkpoints import StageState

    stage = make_recipe({"regime": "kd", "base": "minilm"}, where="options").stages[0]
    (told,) = diagnostics.of_stage(stage, StageState(1, **state), 0.1, 10, 48)
    assert says in told
