"""docs/training.md lists every setting with its default, every loss with what it needs, and every shipped recipe."""

import re
from dataclasses import MISSING, Field, fields
from typing import Any

import pages
import pytest

from students.losses import LOSSES
from students.recipes.read import shipped
from students.recipes.recipe import Objective, Recipe, Stage

TEXT = (pages.ROOT / "docs" / "training.md").read_text("utf-8")


def rows(heading: str) -> dict[str, list[str]]:
    """The table whose header begins with these cells: first cell without its ticks -> the other cells."""
    table = TEXT.partition(heading)[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    return {first.strip("`"): rest for first, *rest in cells}


def shown(field: Field[Any]) -> str:
    if field.default is None:
        return "none"
    if isinstance(field.default, str):
        return f'`"{field.default}"`'
    if isinstance(field.default, bool):
        return f"`{field.default}`".lower()  # as TOML writes it
    return "`[]`" if field.default == () else f"`{field.default}`"


@pytest.mark.parametrize(
    ("kind", "before", "left_out"),
    [
        (Recipe, "Of the whole training, at the top of a recipe:", {"stages"}),
        (Stage, "Of a stage, at the top (for all) or in a table:", {"number", "objectives"}),
        (Objective, "Of a stage's objective, in the same places", {"name"}),
    ],
)
def test_every_setting_stands_there_with_its_default(kind: Any, before: str, left_out: set[str]) -> None:
    assert before in TEXT
    section = TEXT.partition(before)[2].partition("|---|---|---|\n")[2].partition("\n\n")[0]
    held = {}
    for line in section.splitlines():
        name, default, about = (c.strip() for c in line.strip("|").split("|", 2))
        assert about.strip("| "), name
        held[name.strip("`")] = default
    wanted = {f.name: shown(f) for f in fields(kind) if f.name not in left_out}
    assert all(f.default is not MISSING for f in fields(kind) if f.name in wanted)
    assert held == wanted


def test_every_loss_stands_there_with_its_needs_and_parameters() -> None:
    held = rows("| loss | needs | parameters | |")
    assert set(held) == set(LOSSES)
    for name, (needs, parameters, about) in held.items():
        loss = LOSSES[name]
        given = {k: float(v) for k, v in re.findall(r"`(\w+)` ([\d.]+)", parameters)}
        assert (needs, given) == (loss.needs, dict(loss.parameters)), name
        assert about


def test_every_shipped_recipe_stands_there() -> None:
    assert set(rows("| shipped | |")) == set(shipped())
