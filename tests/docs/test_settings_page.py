"""docs/reference/settings.md lists every setting with its default, every loss with its needs, and every recipe of msft."""

import re
from dataclasses import MISSING, Field, fields
from typing import Any

import pages
import pytest

from students.losses import LOSSES
from students.recipes.read import shipped
from students.recipes.recipe import Lora, Objective, Recipe, Stage

TEXT = (pages.ROOT / "docs" / "reference" / "settings.md").read_text("utf-8")


def rows(heading: str) -> dict[str, list[str]]:
    """The table below a heading: first cell without its ticks -> the other cells."""
    assert f"## {heading}\n" in TEXT
    section = TEXT.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")][2:]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    return {first.strip("`"): rest for first, *rest in cells}


def shown(field: Field[Any]) -> str:
    if field.default is None:
        return ""
    if isinstance(field.default, str):
        return f'`"{field.default}"`'
    if isinstance(field.default, bool):
        return f"`{field.default}`".lower()  # as TOML writes it
    return "`[]`" if field.default == () else f"`{field.default}`"


@pytest.mark.parametrize(
    ("kind", "heading", "left_out"),
    [
        (Recipe, "Settings of the whole training", {"stages", "lora", "instructions"}),
        (Lora, "Settings of LoRA", set()),
        (Stage, "Settings of a stage", {"number", "objectives"}),
        (Objective, "Settings of an objective", {"name"}),
    ],
)
def test_every_setting_stands_there_with_its_default(kind: Any, heading: str, left_out: set[str]) -> None:
    held = rows(heading)
    wanted = {f.name: shown(f) for f in fields(kind) if f.name not in left_out}
    assert all(f.default is not MISSING for f in fields(kind) if f.name in wanted)
    assert {name: default for name, (_, default, _) in held.items()} == wanted
    assert all(type_ and about for type_, _, about in held.values())


def test_every_loss_stands_there_with_its_needs_and_parameters() -> None:
    held = rows("Losses")
    assert set(held) == set(LOSSES)
    for name, (needs, parameters, about) in held.items():
        loss = LOSSES[name]
        given = {k: float(v) for k, v in re.findall(r"`(\w+)` ([\d.]+)", parameters)}
        assert (needs, given) == (loss.needs, dict(loss.parameters)), name
        assert about


def test_every_shipped_recipe_stands_there() -> None:
    assert set(rows("Recipes that come with msft")) == set(shipped())
