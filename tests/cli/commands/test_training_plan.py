"""`msft students train --dry-run` prints a plan within 80 columns, and makes nothing."""

import json
import re
from pathlib import Path
from typing import Any

import made_store
import pytest
from typer.testing import CliRunner

from cli.main import app
from labelstore.negatives.mine import mine
from labelstore.store.label_store import LabelStore


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    made = made_store.make(tmp_path / "s.duckdb")
    mine(made, dataset="c/train", name="hard", per_query=7)
    return made


def held(store: LabelStore) -> tuple[list[Path], list[Any]]:
    """List the files of a store, and count its rows of what a training makes."""
    with store.read() as con:
        counts = con.execute(
            """SELECT (SELECT count(*) FROM views), (SELECT count(*) FROM students), (SELECT count(*) FROM stages),
                      (SELECT count(*) FROM provenance)"""
        ).fetchall()
    return sorted(store.files.rglob("*")) if store.files.exists() else [], counts


def dry_run(store: LabelStore, *options: str) -> str:
    done = CliRunner().invoke(
        app, ["students", "train", "--dry-run", *options, "--store", str(store.path)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_the_plan_of_auto_is_a_table_of_80_columns(store: LabelStore) -> None:
    before = held(store)
    out = dry_run(store, "--recipe", "auto", "--base", "minilm", "--minutes", "5")
    assert held(store) == before, "a plan makes nothing"
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["choice", "value", "taken", "from"]
    taken_from = lines[0].index("taken from")
    rows: dict[tuple[str, str], tuple[str, str]] = {}
    stage = ""
    for line in lines[2:]:
        name, _, rest = line[:taken_from].strip().partition("  ")
        if not name:  # a further line of a reason
            continue
        if re.fullmatch(r"stage .*|all stages", line):
            stage = line
            continue
        rows[stage, name] = (rest.strip(), line[taken_from:])
    assert all(reason for _, reason in rows.values())
    assert rows["", "base"] == ("minilm", "given")
    assert rows["", "regime"] == ("kd,cl", "labels teacher@first and negatives hard")
    assert rows["", "minutes asked for"] == ("5", "given")
    assert rows["", "view: retrieved"] == ("no", "1 of 11 positives are retrieved: too")
    assert rows["stage 1 kd", "learns from"] == ("10 lists of 10", "labels teacher@first")
    assert rows["stage 2 cl", "learns from"] == ("11 lists of 8", "negatives hard")
    assert rows["stage 1 kd", "loss"][0] == "ranknet"
    for name, values in {"pairs": ("400", "400"), "steps": ("13", "7"), "minutes": ("0.2", "0.2")}.items():
        assert (rows["stage 1 kd", name][0], rows["stage 2 cl", name][0]) == values
    assert rows["all stages", "pairs planned"][0] == "800"
    assert rows["all stages", "minutes planned"][0] == "0.4"


def test_other_formats_have_a_flat_row_for_each_choice(store: LabelStore) -> None:
    rows = json.loads(dry_run(store, "--base", "minilm", "--no-retrieved", "--format", "json"))
    assert {tuple(row) for row in rows} == {("stage", "choice", "value", "taken_from")}
    found = {(row["stage"], row["choice"]): (row["value"], row["taken_from"]) for row in rows}
    assert found[None, "view: retrieved"] == (False, "given")
    assert found["2 cl", "pairs"][0] == 400
    assert found[None, "pairs planned"][0] == 800


@pytest.mark.parametrize(("option", "recorded"), [("--retrieved", True), ("--no-retrieved", False)])
def test_views_build_takes_the_option_either_way(store: LabelStore, option: str, recorded: bool) -> None:
    done = CliRunner().invoke(
        app,
        [
            "views", "build", "--kind", "contrastive", "--negatives", "hard", option, "--format", "json",
            "--store", str(store.path),
        ],
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    (row,) = json.loads(done.stdout)
    manifest = json.loads((Path(row["folder"]) / "manifest.json").read_text("utf-8"))
    assert manifest["parameters"]["retrieved"] is recorded
