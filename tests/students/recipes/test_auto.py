"""`--recipe auto`: what is chosen follows the device, the data and the minutes, and what is given is kept."""

from dataclasses import replace
from typing import Any

import pytest

from students.errors import StudentError
from students.recipes import auto
from students.recipes.auto import CPU, CUDA, Base, Facts, Lists

MINILM = Base("minilm", 23, True, "its wheel is installed")
LABELS = Lists("labels l", 1300, 20, judged=True)
NEGATIVES = Lists("negatives hard", 2500, 8)
FACTS = Facts(CPU, MINILM, "kd,cl", "labels and negatives", {"kd": LABELS, "cl": NEGATIVES}, 60)


def rows(plan: auto.Plan) -> dict[tuple[str | None, str], tuple[Any, str]]:
    return {(c.stage, c.choice): (c.value, c.taken_from) for c in plan.choices}


def test_on_a_cpu_it_is_the_recipe_that_the_trials_found() -> None:
    plan = auto.choose(FACTS)
    kd, cl = plan.recipe.stages
    assert (plan.recipe.base, plan.recipe.max_length) == ("minilm", 64)
    assert (plan.recipe.head_scale, plan.recipe.head_identity) == (5.0, True)
    assert (kd.lr, kd.objectives[0].lists, kd.objectives[0].group_size) == (2e-4, 4, 8)
    assert (cl.lr, cl.objectives[0].lists, cl.objectives[0].group_size) == (1e-4, 8, 8)
    assert plan.view_parameters == {"easy": 3, "stratified": 5, "judged_first": True}
    assert kd.max_pairs == 2 * cl.max_pairs == 12_800
    assert plan.pairs == 19_200
    assert plan.minutes == pytest.approx(10, rel=0.02)


def test_every_line_of_the_plan_has_a_value_and_what_it_was_taken_from() -> None:
    found = rows(auto.choose(FACTS))
    assert found[None, "base"] == ("minilm", "its wheel is installed")
    assert found["1 kd", "learns from"] == ("1,300 lists of 20", "labels l")
    assert found["1 kd", "steps"][0] == 400
    assert found["2 cl", "steps"][0] == 100
    assert found[None, "view: stratified"] == (5, "labels are 20 deep; results/students.md")
    assert all(taken for _, taken in found.values())


@pytest.mark.parametrize(("minutes", "pairs"), [(5, 9_600), (10, 19_200), (20, 38_400)])
def test_minutes_become_pairs(minutes: float, pairs: int) -> None:
    assert auto.choose(replace(FACTS, minutes=minutes)).pairs == pairs


@pytest.mark.parametrize(
    ("tokens", "max_length", "pairs"), [(30, 64, 19_200), (80, 96, 19_200), (400, 128, 14_400)]
)
def test_longer_passages_take_more_tokens_and_fewer_pairs(tokens: int, max_length: int, pairs: int) -> None:
    plan = auto.choose(replace(FACTS, tokens=tokens))
    assert (plan.recipe.max_length, plan.pairs) == (max_length, pairs)


def test_few_lists_are_not_repeated_without_end() -> None:
    few = replace(FACTS, regime="kd", lists={"kd": replace(LABELS, n=50)}, minutes=60)
    plan = auto.choose(few)
    assert plan.pairs == 50 * 8 * auto.MOST_EPOCHS
    assert plan.few_pairs is not None
    assert "2,000 pairs are few" in plan.few_pairs
    assert auto.choose(FACTS).few_pairs is None


@pytest.mark.parametrize(
    ("labels", "given", "views"),
    [
        (replace(LABELS, depth=5), {}, {"easy": 3}),
        (replace(LABELS, judged=False), {}, {"easy": 3, "stratified": 5}),
        (LABELS, {"easy": 1}, {"easy": 1, "stratified": 7, "judged_first": True}),
        (LABELS, {"stratified": 12}, {"easy": 3, "stratified": 12, "judged_first": True}),
    ],
)
def test_views_take_what_the_labels_allow_and_keep_what_is_given(
    labels: Lists, given: dict[str, Any], views: dict[str, Any]
) -> None:
    plan = auto.choose(replace(FACTS, lists={"kd": labels, "cl": NEGATIVES}, given_views=given))
    assert plan.view_parameters == views
    for name in given:
        assert rows(plan)[None, f"view: {name}"][1] == "given"


@pytest.mark.parametrize(
    ("loss", "scored", "bottom"),
    [("margin_mse", True, None), ("kl", True, None), ("kl", False, 3), ("listmle", True, 3)],
)
def test_a_loss_on_scores_gets_lists_that_keep_their_scores(
    loss: str, scored: bool, bottom: int | None
) -> None:
    kd = replace(FACTS, regime="kd", lists={"kd": replace(LABELS, scored=scored)}, given={"loss": loss})
    views = auto.choose(kd).view_parameters
    assert views.get("easy") == bottom
    assert views["stratified"] == 8 - (bottom or 0)
    assert ("judged_first" in views) is (bottom is not None)


def test_kl_reads_scores_in_units_of_their_spread() -> None:
    cosines = replace(LABELS, scored=True, spread=0.0834)
    kd = replace(FACTS, regime="kd", lists={"kd": cosines}, given={"kd": {"loss": "kl"}})
    assert auto.choose(kd).recipe.stages[0].objectives[0].teacher_temperature == 0.083
    given = replace(kd, given={"kd": {"loss": "kl", "teacher_temperature": 2.0}})
    assert auto.choose(given).recipe.stages[0].objectives[0].teacher_temperature == 2.0
    plain = replace(kd, given={})
    assert auto.choose(plain).recipe.stages[0].objectives[0].teacher_temperature is None


def test_given_settings_win_over_every_stage() -> None:
    given = {"lr": 5e-5, "max_length": 32, "base": "other", "kd": {"group_size": 4}}
    plan = auto.choose(replace(FACTS, given=given))
    kd, cl = plan.recipe.stages
    assert (kd.lr, cl.lr, plan.recipe.max_length, plan.recipe.base) == (5e-5, 5e-5, 32, "other")
    assert (kd.objectives[0].group_size, kd.objectives[0].lists) == (4, 4)
    assert rows(plan)["1 kd", "lr"] == (5e-5, "given")
    assert rows(plan)["1 kd", "passages per list"] == (4, "given")


@pytest.mark.parametrize(
    ("given", "pairs"), [({"max_steps": 4}, 4 * 32), ({"epochs": 2}, 2 * 1300 * 8), ({"max_pairs": 77}, 77)]
)
def test_a_given_bound_replaces_the_minutes(given: dict[str, Any], pairs: int) -> None:
    plan = auto.choose(replace(FACTS, regime="kd", given=given))
    told = "steps" if "max_steps" in given else "given"
    assert rows(plan)["1 kd", "pairs"] == (pairs, told)
    assert rows(plan)["1 kd", "steps"][1] == ("given" if told == "steps" else "pairs")
    stage = plan.recipe.stages[0]
    assert {k: getattr(stage, k) for k in ("epochs", "max_steps", "max_pairs")} == {
        "epochs": 0, "max_steps": 0, "max_pairs": 0, **given,
    }  # fmt: skip


def test_a_gpu_has_a_larger_base_lower_rates_and_more_pairs() -> None:
    electra = Base("electra", 109, True, "a GPU")
    lists = {"kd": replace(LABELS, n=100_000), "cl": replace(NEGATIVES, n=500_000)}
    plan = auto.choose(replace(FACTS, device=CUDA, base=electra, tokens=200, lists=lists))
    kd, cl = plan.recipe.stages
    assert (kd.lr, cl.lr, kd.objectives[0].lists, plan.recipe.max_length) == (1e-5, 1e-5, 32, 256)
    assert plan.pairs == 1_800_000
    assert kd.freeze == ()
    small = auto.choose(replace(FACTS, device=CUDA, base=electra))
    assert (small.recipe.stages[0].lr, small.recipe.stages[0].objectives[0].lists) == (2e-5, 4)


def test_a_base_with_a_trained_head_learns_more_slowly() -> None:
    plan = auto.choose(replace(FACTS, base=Base("ms-marco-MiniLM-L6", 23, False, "given")))
    assert (plan.recipe.head_scale, plan.recipe.head_identity) == (1.0, False)
    assert plan.recipe.stages[0].lr == pytest.approx(2e-5)


@pytest.mark.parametrize(
    ("regime", "shares"),
    [("cl", [1]), ("kd,cl,kd", [0.4, 0.2, 0.4]), ("cl+kd", [1]), ("cl,cl+kd", [0.25, 0.75])],
)
def test_the_stages_share_the_minutes(regime: str, shares: list[float]) -> None:
    plan = auto.choose(replace(FACTS, regime=regime))
    assert [s.max_pairs for s in plan.recipe.stages] == [
        pytest.approx(19_200 * share, abs=100) for share in shares
    ]


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_minutes_must_be_above_0(minutes: float) -> None:
    with pytest.raises(StudentError, match="minutes is") as raised:
        auto.choose(replace(FACTS, minutes=minutes))
    assert raised.value.exit_code == 2


def test_a_very_small_base_is_not_planned_as_endlessly_fast() -> None:
    tiny = auto.choose(replace(FACTS, base=Base("tiny", 0.01, True, "given")))
    assert tiny.pairs_per_second <= 4 * auto.choose(FACTS).pairs_per_second


@pytest.mark.parametrize(
    ("settings", "pairs"),
    [
        ({"epochs": 1}, 1300 * 20),
        ({"epochs": 1, "depth": 10}, 1300 * 10),
        ({"epochs": 0, "max_minutes": 2}, 120),
    ],
)
def test_the_pairs_of_any_recipe_can_be_told(settings: dict[str, Any], pairs: int) -> None:
    from students.recipes.read import make_recipe

    stage = make_recipe({"regime": "kd", **settings}).stages[0]
    assert auto.stage_pairs(stage, {"kd": LABELS}, speed=1.0) == pairs


def test_the_positives_of_cl_are_chosen_and_the_reason_is_told() -> None:
    counts = "16,686 of 110,484 positives are retrieved"
    lists = {"cl": replace(NEGATIVES, positives=counts, retrieved=True)}
    plan = auto.choose(replace(FACTS, regime="cl", lists=lists))
    assert plan.view_parameters["retrieved"] is True
    assert rows(plan)[None, "view: retrieved"] == (True, counts)
    given = auto.choose(replace(FACTS, regime="cl", lists=lists, given_views={"retrieved": False}))
    assert given.view_parameters["retrieved"] is False
    assert rows(given)[None, "view: retrieved"] == (False, "given")


def test_the_default_losses_have_their_reasons() -> None:
    scored = {
        "kd": replace(LABELS, scored=True), "cl": replace(NEGATIVES, grades=(1, 2)),
    }  # fmt: skip
    found = rows(auto.choose(replace(FACTS, lists=scored)))
    value, reason = found["1 kd", "loss"]
    assert value == "ranknet"
    assert "kl on the scores was no better (.380, results/students.md)" in reason
    value, reason = found["2 cl", "loss"]
    assert value == "lce"
    assert reason.startswith("grades 1, 2 count alike; --graded with --set cl.loss=lambda")
    plain = rows(auto.choose(FACTS))
    assert plain["1 kd", "loss"][1] == "learns the order; not all passages have a score"
    assert plain["2 cl", "loss"][1] == "the default of its objective"


def test_minutes_asked_for_and_planned_are_told_apart() -> None:
    found = rows(auto.choose(replace(FACTS, minutes=10, lists={"kd": replace(LABELS, n=50)}, regime="kd")))
    assert found[None, "minutes asked for"] == (10, "given")
    assert found[None, "pairs planned"][0] == 2_000
    assert found[None, "minutes planned"][0] == found["1 kd", "minutes"][0] == 1.0
    bounded = rows(auto.choose(replace(FACTS, given={"max_pairs": 77})))
    assert bounded[None, "minutes asked for"] == (10, "the default for cpu, but max_pairs bounds")


def test_lines_of_a_plan_stay_within_80_columns() -> None:
    long = "labels " + ", ".join(f"teacher-{k}@first-stage" for k in range(8))
    plan = auto.choose(
        replace(FACTS, lists={"kd": replace(LABELS, names=long), "cl": NEGATIVES}, regime_why=long)
    )
    assert max(map(len, plan.lines)) <= 80
    assert "stage 1 kd" in plan.lines
    path = "/a/" + "long/" * 16 + "folder"
    kept = auto.choose(replace(FACTS, base=Base(path, 23, True, "given"))).lines
    assert any(path in line for line in kept), "a path stays whole"
