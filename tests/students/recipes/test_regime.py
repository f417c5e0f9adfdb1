"""Recipes: precedence, all errors at once, grids, and that every shipped one is what it says."""

from pathlib import Path

import pytest

from students.errors import StudentError
from students.recipes.read import load_grid, load_recipe, make_recipe, shipped
from students.recipes.recipe import parse_regime


@pytest.fixture
def recipe_file(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "own.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("cl", (("cl",),)),
        ("kd,cl", (("kd",), ("cl",))),
        ("CL -> KD", (("cl",), ("kd",))),
        ("cl→kd→cl", (("cl",), ("kd",), ("cl",))),
        ("kd+cl,kd", (("cl", "kd"), ("kd",))),
    ],
)
def test_regimes(text, stages):
    assert parse_regime(text) == stages


@pytest.mark.parametrize("text", ["", "cl,", "lc", "cl+cl", "cl;kd"])
def test_a_regime_that_is_none(text):
    with pytest.raises(StudentError, match="regime") as raised:
        parse_regime(text)
    assert raised.value.exit_code == 2
    assert raised.value.hint


def test_defaults_are_by_objective():
    recipe = make_recipe({"regime": "cl,kd"})
    cl, kd = (stage.objectives[0] for stage in recipe.stages)
    assert (cl.loss, cl.group_size, kd.loss, kd.group_size) == ("lce", 8, "ranknet", 0)
    assert recipe.name == "default"


def test_the_nearer_table_wins(recipe_file):
    path = recipe_file(
        'regime = "cl,kd,cl+kd"\nlr = 1e-1\nclip = 5\n[kd]\nlr = 1e-2\n["cl+kd"]\nlr = 1e-3\n[stage-2]\nclip = 7\n'
        '["stage-3:cl+kd"]\nclip = 9\nweight = 0.5\n'
    )
    recipe = load_recipe(path)
    assert [(s.lr, s.clip) for s in recipe.stages] == [(1e-1, 5.0), (1e-2, 7.0), (1e-3, 9.0)]
    assert [o.weight for o in recipe.stages[2].objectives] == [0.5, 0.5]
    assert recipe.name == "own"


def test_what_a_command_says_wins_over_every_table(recipe_file):
    path = recipe_file('regime = "cl,kd"\nlr = 1e-1\n[kd]\nlr = 1e-2\n[stage-1]\nlr = 1e-3\n')
    assert [s.lr for s in load_recipe(path, {"lr": 7e-5}).stages] == [7e-5, 7e-5]
    assert [s.lr for s in load_recipe(path, {"regime": "kd"}).stages] == [1e-3]


def test_a_setting_of_a_table_can_be_given_alone(recipe_file):
    path = recipe_file('regime = "cl,kd"\n[kd]\nloss = "kl"\nlists = 5\n')
    recipe = load_recipe(path, {"kd.loss": "margin_mse", "stage-1.lr": 0.5})
    cl, kd = recipe.stages
    assert (kd.loss, kd.objectives[0].lists, cl.loss, cl.lr, kd.lr) == ("margin_mse", 5, "lce", 0.5, 1e-5)
    with pytest.raises(StudentError, match=r"\[kd\] unknown setting 'losss'"):
        load_recipe(path, {"kd.losss": "kl"})


def test_all_errors_come_at_once(recipe_file):
    path = recipe_file(
        'regime = "cl"\nlr = "fast"\nlearning_rate = 1e-5\nschedule = "cosin"\n[kd]\nloss = "ranknt"\n[stage-2]\nlr = 1.0\n'
        "[cl]\ntemperature = 0.5\nmu = 3\ngroup_size = 1\n[extra]\nx = 1\n"
    )
    with pytest.raises(StudentError) as raised:
        load_grid(path)
    message = raised.value.message
    for part in (
        "lr must be a number, not 'fast'",
        "unknown setting 'learning_rate'",
        "schedule must be one of linear, cosine, constant, not 'cosin'",
        "[stage-2]: no such stage",
        "[cl] mu is a parameter of lambda, not of lce",
        "[cl] group_size and depth must be at least 2",
        "[extra]: unknown table",
    ):
        assert part in message
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lrr": 1}, "did you mean lr?"),
        ({"seed": True}, "seed must be a whole number"),
        ({"lists": 2.5}, "lists must be a whole number"),
        ({"freeze": 3}, "freeze must be a list of strings"),
        ({"epochs": 0}, "one of epochs, max_steps, max_pairs, max_minutes"),
        ({"lr": 0}, "lr must be above 0"),
        ({"hidden_dropout": 1}, r"hidden_dropout must be in \[0, 1\)"),
        ({"head_scale": 0}, "head_scale must be above 0"),
        ({"head_scale": -5.0}, "head_scale must be above 0"),
        ({"head_scale": float("nan")}, "head_scale must be"),
        ({"head_scale": float("inf")}, "head_scale must be"),
        ({"max_length": 4}, "max_length must be at least 8"),
        ({"loss": "margin"}, "unknown loss 'margin'"),
        ({"bases": ["electra", "roberta"]}, "grid of 2 trainings"),
        ({"bases": []}, "bases must be a list"),
        ({"base": "electra", "bases": ["roberta"]}, "base and bases exclude each other"),
    ],
)
def test_one_error(settings, says):
    with pytest.raises(StudentError, match=says) as raised:
        make_recipe(settings)
    assert raised.value.exit_code == 2


def test_no_recipe_and_no_toml(recipe_file):
    with pytest.raises(StudentError, match="recipe not found: smal") as raised:
        load_recipe("smal")
    assert "small" in (raised.value.hint or "")
    assert raised.value.exit_code == 4
    with pytest.raises(StudentError, match=r"own\.toml"):
        load_recipe(recipe_file("regime = cl"))


def test_a_grid_is_every_combination(recipe_file):
    path = recipe_file(
        'bases = ["a", "b"]\nregimes = ["cl", "cl,kd"]\nseeds = [1, 2]\n["stage-2:kd"]\nlr = 6e-12\n'
        '[evaluate]\ndatasets = ["dl19"]\n[[published]]\nbase = "a"\nvalue = 0.7\n'
    )
    grid = load_grid(path)
    assert [(r.base, r.regime, r.seed) for r in grid.recipes] == [
        (b, g, s) for b in "ab" for g in ("cl", "cl,kd") for s in (1, 2)
    ]
    assert {s.lr for r in grid.recipes for s in r.stages} == {1e-5, 6e-12}
    assert grid.evaluate == {"datasets": ["dl19"]}
    assert grid.published == ({"base": "a", "value": 0.7},)
    one = load_recipe(path, {"base": "c", "regime": "kd", "seed": 9})
    assert (one.base, one.regime, one.seed) == ("c", "kd", 9)
    assert len(load_grid(path, {"seeds": [5]}).recipes) == 4


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_load_and_say_what_they_are(name):
    grid = load_grid(name)
    assert grid.recipes
    assert all(recipe.description and recipe.name == name for recipe in grid.recipes)


def test_the_founding_studys_grid_has_its_hyperparameters():
    grid = load_grid("pezzuti2025")
    assert [(r.base, r.regime) for r in grid.recipes] == [
        (base, regime) for base in ("electra", "roberta") for regime in ("cl", "kd", "cl,kd", "kd,cl")
    ]
    for recipe in grid.recipes:
        assert (recipe.seed, recipe.max_length, recipe.precision) == (42, 256, "bf16")
        for stage in recipe.stages:
            (objective,) = stage.objectives
            assert (stage.weight_decay, stage.clip, stage.freeze) == (0.01, 10.0, ("position_embeddings",))
            assert stage.patience == 10
            # the optimiser file of a second stage of distillation, and of it alone, holds 6e-12
            assert stage.lr == (6e-12 if (stage.number, objective.name) == (2, "kd") else 1e-5)
            expected = {"cl": ("lce", 100, 16, 1000), "kd": ("ranknet", 0, 32, 100)}[objective.name]
            assert (
                objective.loss,
                objective.group_size,
                objective.lists,
                stage.valid_every,
            ) == expected
            assert objective.name == "cl" or (objective.depth, stage.epochs) == (20, 15.0)
