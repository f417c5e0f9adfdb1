"""The table of a grid of one's own: every measure, every seed, and a word on students that are far below their first stage."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.output.render import Format
from cli.workflows.reproduce import plan, sources, spec, table
from labelstore.errors import UsageError
from labelstore.store.label_store import LabelStore

GRID = """
base = "minilm"
regimes = ["cl", "kd"]
seeds = [1, 2]
[evaluate]
margin = 0.02
[evaluate.views]
easy = 3
judged_first = true
[evaluate.cl]
dataset = "own/train"
run = "bm25"
negatives = "hard"
[evaluate.kd]
dataset = "own/train"
labels = "labels"
[[evaluate.first_stages]]
name = "bm25"
retriever = "bm25s"
[[evaluate.datasets]]
name = "own/test"
measures = ["nDCG@10", "RR@10"]
"""


@pytest.fixture
def grid(tmp_path: Path) -> spec.Spec:
    (tmp_path / "grid.toml").write_text(GRID)
    return spec.read(str(tmp_path / "grid.toml"))


def rows(grid: spec.Spec, values: dict[str, float]) -> list[dict[str, Any]]:
    """Rows of a grid whose seeds differ by .02 around the values."""
    held = {}
    for training in grid.trainings:
        for measure in ("nDCG@10", "RR@10"):
            value = values[training.recipe.regime] + (0.01 if training.recipe.seed == 1 else -0.01)
            held[training.name, "bm25", "own/test", measure] = value
    held |= {("", "bm25", "own/test", measure): values["bm25"] for measure in ("nDCG@10", "RR@10")}
    return table.rows(grid, plan.Plan(()), held, {})


def test_every_measure_and_every_seed_is_shown(grid: spec.Spec, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(grid, {"cl": 0.4, "kd": 0.5, "bm25": 0.45})
    cl = next(row for row in found if row["regime"] == "cl")
    assert (cl["seeds"], cl["by_seed"]) == (2, "1: 0.4100, 2: 0.3900")
    assert cl["sd"] == pytest.approx(0.0141, abs=1e-4)
    (first, *students) = table.beside(grid, found)
    assert list(first)[-2:] == ["own/test nDCG@10", "own/test RR@10"]
    assert [row["seeds"] for row in students] == [2, 2]
    each = table.seed_rows(grid, found)
    assert [(row["regime"], row["seed"], row["own/test RR@10"]) for row in each] == [
        ("cl", 1, 0.41), ("cl", 2, 0.39), ("kd", 1, 0.51), ("kd", 2, 0.49),
    ]  # fmt: skip
    table.show(grid, found, Format.table)
    shown = capsys.readouterr().out
    assert "Each seed" in shown
    assert "0.5100" in shown


def test_a_grid_in_latex_can_be_printed(grid: spec.Spec, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(grid, {"cl": 0.4, "kd": 0.5, "bm25": 0.45})
    kd = next(row for row in found if row["regime"] == "kd")
    kd |= dict.fromkeys(("ci90_low", "ci90_high"), 0.05) | {
        "verdict": "better", "p_holm": 2e-5, "tost_p": 0.9, "margin_showable": 0.03, "weights_moved": 0.1,
        "single_stage": "cl", "single_difference": 0.1,
    }  # fmt: skip
    table.show(grid, found, Format.latex)
    out = capsys.readouterr().out
    assert out.count(r"\begin{table}") == out.count(r"\end{table}") == 3
    assert r"$\mathbf{0.500}$" in out
    assert "+0.050 to +0.050" in out
    assert r"$2.0\times10^{-5}$" in out
    assert "Values of the grid. Seeds: trainings that a value is the mean of" in out
    for left in ("Status", "ci90", "study", "first\\_stage"):
        assert left not in out


def test_the_tables_fit_80_columns(
    grid: spec.Spec, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = rows(grid, {"cl": 0.2, "kd": 0.3, "bm25": 0.45})
    kd = next(row for row in found if row["regime"] == "kd")
    kd |= dict.fromkeys(("ci90_low", "ci90_high"), 0.05) | {
        "verdict": "worse", "p_holm": 2e-5, "tost_p": 0.9, "margin_showable": 0.03, "weights_moved": 1e-9,
        "single_stage": "cl", "single_difference": 0.1,
    }  # fmt: skip
    table.show(grid, found, Format.table)
    (tmp_path / "varied.toml").write_text(of_teachers())
    varied = spec.read(str(tmp_path / "varied.toml"))
    table.show(varied, table.rows(varied, plan.Plan(()), {}, {}), Format.table)
    shown = capsys.readouterr().out
    assert "which is not a training" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80, shown


@pytest.mark.parametrize("recipe", ["pezzuti2025", "pezzuti2025-lr", "teachers-2026"])
def test_a_dry_run_shows_no_empty_column(
    recipe: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Nothing is measured yet: the values of the study stand alone, with what the rows are."""
    from labelstore.store.label_store import LabelStore

    read = spec.read(recipe)
    made = plan.make(LabelStore(tmp_path / "none.duckdb"), read, prepared=False)
    found = table.rows(read, made, {}, {})
    table.show(read, found, Format.table)
    shown = capsys.readouterr().out
    assert shown.startswith("status: missing\n")
    assert "@10" not in shown
    assert ("dl19 study" in shown) is bool(read.published)
    assert max(map(len, shown.splitlines())) <= 80, shown
    table.show(read, found, Format.json)
    assert json.loads(capsys.readouterr().out) == found


@pytest.mark.parametrize(("best", "says"), [(0.3, True), (0.42, True), (0.44, False), (0.6, False)])
def test_students_that_are_all_far_below_their_first_stage_are_said(
    grid: spec.Spec, capsys: pytest.CaptureFixture[str], best: float, says: bool
) -> None:
    found = rows(grid, {"cl": 0.2, "kd": best, "bm25": 0.45})
    told = table.below_first_stage(grid, found)
    assert bool(told) is says
    for format in (Format.table, Format.json):
        table.show(grid, found, format)
        captured = capsys.readouterr()
        where = captured.err if format is Format.json else captured.out
        assert ("every student is far below bm25" in " ".join(where.split())) is says
    if says:
        assert f"nDCG@10 {best:.3f} at best, and 0.450" in told[0]


def test_the_views_of_a_grid_are_options_of_each_training(grid: spec.Spec, tmp_path: Path) -> None:
    from labelstore.store.label_store import LabelStore

    made = plan.make(LabelStore(tmp_path / "none.duckdb"), grid, prepared=True)
    trainings = [step for step in made.steps if step.key[0] == "student"]
    assert len(trainings) == 4
    assert all("--easy 3 --judged-first --name" in str(step) for step in trainings)


@pytest.mark.parametrize(
    ("line", "option"),
    [("retrieved = true", "--retrieved"), ("retrieved = false", "--no-retrieved"), ("graded = false", None)],
)
def test_a_switch_of_views_can_be_off(tmp_path: Path, line: str, option: str | None) -> None:
    from labelstore.store.label_store import LabelStore

    path = tmp_path / "grid.toml"
    path.write_text(GRID.replace("easy = 3", line))
    made = plan.make(LabelStore(tmp_path / "none.duckdb"), spec.read(str(path)), prepared=True)
    (command, *_) = [step.command for step in made.steps if step.key[0] == "student"]
    given = {word for word in command if word.endswith(("retrieved", "graded"))}
    assert given == ({option} if option else set())


@pytest.mark.parametrize("recipe", ["pezzuti2025", "pezzuti2025-lr", "teachers-2026"])
def test_the_shipped_grids_keep_all_positives(recipe: str) -> None:
    assert spec.read(recipe).views["retrieved"] is False


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("retrieved = 'mostly'", "retrieved is 'mostly'"),
        ("esay = 3", "unknown setting 'esay'"),
        ("easy = -1", "easy is -1"),
        ("valid_fraction = 2", "valid_fraction is 2"),
    ],
)
def test_a_wrong_parameter_of_views_is_said(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(GRID.replace("easy = 3", line))
    with pytest.raises(UsageError, match=says):
        spec.read(str(path))


def test_the_research_guide_names_every_key_of_evaluate() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "guides" / "research.md").read_text("utf-8")
    keys = {
        *spec._KEYS,
        *spec.VIEW_OPTIONS,
        *spec.RETRIEVER_OPTIONS,
        *sources._CONTRASTIVE,
        *sources._KNOWN,
    }
    keys = keys - {"first_stages", "datasets", "cl", "kd"} | {"name", "retriever", "measures"}
    for key in keys - {"views"}:
        assert f"`{key}`" in page, key
    for heading in (
        "[evaluate.views]",
        "[evaluate.cl]",
        "[evaluate.kd]",
        "[[evaluate.first_stages]]",
        "[[evaluate.datasets]]",
    ):
        assert heading in page, heading


TEACHERS = """
[vary]
"kd.loss" = ["ranknet", "margin_mse"]
[[evaluate.kd]]
name = "orders"
dataset = "own/train"
labels = "orders@bm25"
losses = ["ranknet"]
file = "orders.jsonl"
[[evaluate.kd]]
name = "scores"
dataset = "own/train"
labels = "scores@bm25"
model = "minilm"
engine = "bi-encoder"
run = "bm25"
depth = 10
[[evaluate.kd]]
name = "both"
dataset = "own/train"
labels = "both@bm25"
parts = ["orders@bm25", "scores@bm25"]
by = "rrf"
"""


def of_teachers(more: str = TEACHERS) -> str:
    single = '[evaluate.kd]\ndataset = "own/train"\nlabels = "labels"\n'
    return GRID.replace(single, "").replace("margin = 0.02", 'margin = 0.02\nverdicts = "all"') + more


def test_each_teacher_is_learnt_from_with_the_losses_that_it_has_labels_for(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(of_teachers())
    grid = spec.read(str(tmp_path / "grid.toml"))
    learnt = [(t.recipe.regime, t.labels, t.variant) for t in grid.trainings if t.recipe.seed == 1]
    assert learnt == [
        ("cl", None, ""),
        ("kd", "orders@bm25", "orders kd.loss=ranknet"),
        ("kd", "scores@bm25", "scores kd.loss=ranknet"),
        ("kd", "both@bm25", "both kd.loss=ranknet"),
        ("kd", "scores@bm25", "scores kd.loss=margin_mse"),
        ("kd", "both@bm25", "both kd.loss=margin_mse"),
    ]
    steps = plan.make(LabelStore(tmp_path / "none.duckdb"), grid, prepared=False)
    labels = [(str(step), step.needs) for step in steps.steps if step.key[0] == "labels"]
    data = ("data", "own/train")
    assert labels == [
        ("msft teachers import orders.jsonl --dataset own/train --name orders@bm25", (data,)),
        (
            "msft teachers generate --dataset own/train --model minilm --run bm25 --depth 10 --engine bi-encoder"
            " --name scores@bm25",
            (data, ("run", "own/train", "bm25")),
        ),
        (
            "msft teachers combine orders@bm25 scores@bm25 --by rrf --name both@bm25",
            (("labels", "orders@bm25"), ("labels", "scores@bm25")),
        ),
    ]
    trained = {step.key[1]: str(step) for step in steps.steps if step.key[0] == "student"}
    name = "grid-minilm-kd-both-kd.loss=margin_mse-s2"
    assert "--labels both@bm25" in trained[name]
    assert """--set 'kd.loss="margin_mse"'""" in trained[name]
    assert steps.why(("labels", "both@bm25")) == "labels orders@bm25", (
        "a part that is missing is what is missing"
    )


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('name = "scores"', 'name = "orders"', "two have the name 'orders'"),
        ('losses = ["ranknet"]', 'losses = ["rank"]', "orders: unknown loss 'rank'"),
        ('losses = ["ranknet"]', 'losses = "ranknet"', "orders: losses must be a list"),
        ('model = "minilm"\n', "", "scores: lacks model"),
        ('run = "bm25"\ndepth = 10', 'run = "bm25"\nfile = "x"', "exclude each other"),
        ('by = "rrf"', 'how = "rrf"', "both: unknown setting 'how'"),
        ('labels = "both@bm25"', "", "both: lacks labels"),
    ],
)
def test_a_wrong_teacher_is_said(tmp_path: Path, before: str, after: str, says: str) -> None:
    assert before in TEACHERS
    (tmp_path / "grid.toml").write_text(of_teachers(TEACHERS.replace(before, after)))
    with pytest.raises(UsageError, match=says):
        spec.read(str(tmp_path / "grid.toml"))
