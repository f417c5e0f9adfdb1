"""Validation lists that are too few to tell which step is best are said."""

import pytest

from students.recipes.read import make_recipe
from students.train import diagnostics


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
