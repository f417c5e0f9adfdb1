import math
from itertools import pairwise

import pytest
import tiny_models
import torch

from students.errors import StudentError
from students.model.encoder import CrossEncoder
from students.recipes.read import make_recipe
from students.train.optimiser import Bounds, freeze, learning_rate, make


def stage(**settings):
    return make_recipe(settings).stages[0]


@pytest.fixture(scope="module")
def models(tiny):
    return {name: CrossEncoder.load(tiny(name), device="cpu").model for name in tiny_models.ARCHITECTURES}


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_parts_freeze_by_name(models, architecture):
    model = models[architecture]
    names = {name for name, _ in model.named_parameters()}
    layers = freeze(model, ["layers:0-0"])
    assert layers
    assert all(".0." in name for name in layers)
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == set(layers)
    embeddings = freeze(model, ["embeddings"])
    assert embeddings == sorted(n for n in names if "embeddings" in n)
    positions = freeze(model, ["position_embeddings"])
    assert len(positions) == (0 if architecture == "modernbert" else 1)
    assert freeze(model, []) == []
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("parts", "says"),
    [(["embedings"], "embedings"), (["layers:a-b"], "not a range"), ([""], "nothing to learn")],
)
def test_what_cannot_freeze(models, parts, says):
    with pytest.raises(StudentError, match=says) as raised:
        freeze(models["bert"], parts)
    assert raised.value.exit_code == 2


def test_biases_norms_and_what_is_frozen_do_not_decay(models):
    model = models["bert"]
    freeze(model, ["embeddings"])
    optimiser = make(model, stage(lr=3e-4, weight_decay=0.2))
    decayed, plain = ({id(p) for p in group["params"]} for group in optimiser.param_groups)
    assert (optimiser.param_groups[0]["weight_decay"], optimiser.param_groups[1]["weight_decay"]) == (
        0.2,
        0.0,
    )
    learning = {id(p): p for p in model.parameters() if p.requires_grad}
    assert decayed | plain == set(learning)
    assert all(learning[i].ndim > 1 for i in decayed)
    assert all(learning[i].ndim == 1 for i in plain)
    freeze(model, [])


@pytest.mark.parametrize(
    ("settings", "per_epoch", "steps", "pairs", "seconds"),
    [
        ({"epochs": 3}, 10, 30, 0, 0),
        ({"epochs": 0.25}, 10, 3, 0, 0),
        ({"epochs": 3, "max_steps": 12}, 10, 12, 0, 0),
        ({"epochs": 0, "max_pairs": 500, "max_minutes": 2.0}, 10, 0, 500, 120),
    ],
)
def test_bounds(settings, per_epoch, steps, pairs, seconds):
    assert Bounds.of(stage(**settings), per_epoch) == Bounds(steps, pairs, seconds)


def test_what_ends_a_stage():
    bounds, by_steps = Bounds(10, 100, 60.0), stage(epochs=0, max_steps=10)
    assert bounds.reached(9, 99, 59.9, by_steps) is None
    assert bounds.reached(10, 0, 0.0, by_steps) == "max_steps"
    assert bounds.reached(10, 0, 0.0, stage(epochs=2)) == "end"
    assert bounds.reached(3, 100, 0.0, by_steps) == "max_pairs"
    assert bounds.reached(3, 5, 60.0, by_steps) == "max_minutes"


def test_time_bends_the_learning_rate_only_where_it_is_the_only_bound():
    assert Bounds(10, 0, 60.0).progress(1, 0, 59.0) == 0.1
    assert Bounds(0, 0, 60.0).progress(1, 0, 30.0) == 0.5
    assert Bounds(10, 100, 0.0).progress(1, 90, 0.0) == 0.9


@pytest.mark.parametrize(("schedule", "halfway"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_the_rate_warms_up_and_comes_down(schedule, halfway):
    one = stage(lr=2.0, schedule=schedule, warmup=0.1)
    assert learning_rate(one, 0.0, 0) == pytest.approx(0.02), "the first step is not for nothing"
    assert learning_rate(one, 0.05, 5) == pytest.approx(1.0)
    assert learning_rate(one, 0.1, 10) == pytest.approx(2.0)
    assert learning_rate(one, 0.55, 55) == pytest.approx(2.0 * halfway)
    assert learning_rate(one, 1.0, 100) == pytest.approx(2.0 if schedule == "constant" else 0.0)
    rates = [learning_rate(one, p / 100, p) for p in range(10, 101)]
    assert rates == sorted(rates, reverse=True)


def test_warm_up_in_steps_and_none():
    assert learning_rate(stage(lr=1.0, warmup=4), 0.0, 1) == 0.5
    assert learning_rate(stage(lr=1.0, warmup=4, schedule="constant"), 0.5, 40) == 1.0
    assert learning_rate(stage(lr=1.0, warmup=0.0), 0.25, 1) == 0.75
    assert math.isclose(learning_rate(stage(lr=1.0, warmup=0.0, schedule="cosine"), 0.5, 1), 0.5)


@pytest.mark.parametrize(("total", "warm"), [(100, 50), (40, 4), (1000, 900), (7, 1)])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_after_a_warm_up_in_steps_the_schedule_runs_over_the_rest(total, warm, schedule):
    one = stage(lr=1.0, warmup=float(warm), schedule=schedule, epochs=0, max_steps=total)
    until = warm / total
    rates = [learning_rate(one, i / total, i, until) for i in range(total + 1)]
    assert rates[warm] == 1.0
    assert rates[(warm + total) // 2] == pytest.approx(0.5, abs=1.6 / (total - warm))
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert rates[warm:] == sorted(rates[warm:], reverse=True)


@pytest.mark.parametrize("pace", [0.6, 0.31, 0.05])
def test_a_time_guard_ends_the_schedule_at_its_end(pace):
    bounds, half, seen = Bounds(0, 1000, 100.0), None, []
    for second in range(101):
        done = bounds.progress(0, int(10 * pace * second), float(second), half)
        if half is None and bounds.half_over(second):
            half = done
        seen.append(done)
    assert seen[-1] == 1.0
    assert seen == sorted(seen)
    assert max(b - a for a, b in pairwise(seen)) < 0.03
    assert seen[:50] == [int(10 * pace * s) / 1000 for s in range(50)]


@pytest.mark.parametrize(("architecture", "part"), [
    ("bert", "layers:7-9"), ("modernbert", "token_type_embeddings"), ("roberta", "embeddings_project"),
])  # fmt: skip
def test_a_part_that_the_architecture_lacks_does_not_freeze(models, architecture, part):
    with pytest.raises(StudentError, match=part) as raised:
        freeze(models[architecture], [part])
    assert raised.value.exit_code == 2
    assert raised.value.hint


def test_the_optimiser_is_torchs_adamw(models):
    assert type(make(models["bert"], stage())) is torch.optim.AdamW


@pytest.mark.parametrize(
    ("bounds", "pairs", "steps", "expected"),
    [
        (Bounds(0, 6_000, 0.0), 1_234, 0, 6_000),
        (Bounds(0, 6_000, 0.0), 6_016, 0, 6_016),
        (Bounds(100, 0, 0.0), 333, 10, 3_300),
        (Bounds(100, 0, 0.0), 366, 11, 3_300),
        (Bounds(100, 0, 0.0), 3_340, 100, 3_340),
        (Bounds(100, 0, 0.0), 3_360, 100, 3_360),
        (Bounds(100, 9_000, 0.0), 333, 10, 3_300),
    ],
)
def test_the_expected_pairs_seldom_change_from_step_to_step(
    bounds: Bounds, pairs: int, steps: int, expected: int
) -> None:
    assert bounds.expected_pairs(pairs, bounds.progress(steps, pairs, 0.0)) == expected
    assert bounds.expected_pairs(0, 0.0) is None
