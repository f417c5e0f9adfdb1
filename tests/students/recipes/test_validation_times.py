"""How often a stage validates: ten times, unless nothing depends on it and it would take a large part of the time."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from students.recipes.recipe import Stage
from students.train import validation


def held(pairs: int) -> list[Any]:
    return [SimpleNamespace(drawn=SimpleNamespace(local=np.zeros(pairs)))]


@pytest.mark.parametrize(
    ("settings", "bound", "scored", "times"),
    [
        ({}, 7_000, 1_000, 10),  # the best step is kept
        ({"keep": "last", "patience": 3}, 7_000, 1_000, 10),  # the stage may end early
        ({"keep": "last", "patience": 0}, 0, 1_000, 10),  # bounded by epochs or steps
        ({"keep": "last", "patience": 0}, 7_000, 0, 10),  # nothing to validate on
        ({"keep": "last", "patience": 0}, 7_000, 1_000, 2),
        ({"keep": "last", "patience": 0}, 14_000, 1_000, 4),
        ({"keep": "last", "patience": 0}, 1_000, 1_000, 2),
        ({"keep": "last", "patience": 0}, 100_000, 1_000, 10),
    ],
)
def test_validations_take_at_most_a_tenth_of_a_stage(
    settings: dict[str, Any], bound: int, scored: int, times: int
) -> None:
    found = validation.times(
        held(scored) if scored else [], Stage(number=1, objectives=(), **settings), bound
    )
    assert found == times
    if 2 < found < 10:
        assert found * scored / 3 <= 0.1 * bound
