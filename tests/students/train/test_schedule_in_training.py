"""In a whole training: where the warm-up ends, where the schedule ends, and when validations and checkpoints come."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import tiny_views

from students.recipes.read import make_recipe
from students.train import checkpoints
from students.train import stage as stages
from students.train.run import train


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    return tiny_views.write(tmp_path_factory.mktemp("views") / "v", "contrastive")


@pytest.fixture
def trained(tiny, view, tmp_path, monkeypatch):
    """Train with a clock on which each step takes `pace` seconds; gives the log and the steps of the checkpoints."""

    def run(pace: float = 1.0, **settings):
        now, saved, real = [0.0], [], checkpoints.save

        def tick() -> float:
            now[0] += pace
            return now[0]

        def save(folder, state, *given, **options):
            saved.append(state.step)
            return real(folder, state, *given, **options)

        monkeypatch.setattr(stages, "time", SimpleNamespace(monotonic=tick))
        monkeypatch.setattr(checkpoints, "save", save)
        fixed = {
            "base": str(tiny("bert")), "regime": "cl", "max_length": 16, "lr": 1e-3, "lists": 2, "epochs": 0,
            "precision": "fp32", "valid_every": 0, "log_every": 1, "warmup": 0.0,
        }  # fmt: skip
        result = train(make_recipe(fixed | settings), [view], tmp_path / "out", device="cpu")
        of = {
            name: [(row["step"], row["value"]) for row in result.log if row["measure"] == name]
            for name in ("lr", "valid_loss")
        }
        return result.stages[0], of["lr"], [step for step, _ in of["valid_loss"]], saved

    return run


BOUNDS = {
    "minutes alone": {"max_minutes": 0.5},
    "a guard beside pairs": {"max_pairs": 100_000, "max_minutes": 0.5},
    "a guard beside epochs": {"epochs": 50, "max_minutes": 0.5},
    "a guard beside steps": {"max_steps": 1000, "max_minutes": 0.5},
    "a guard beyond the end": {"max_steps": 30, "max_minutes": 0.9},
    "pairs": {"max_pairs": 360},
}


@pytest.mark.test_all
@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
@pytest.mark.parametrize("warmup", [0.0, 5.0])
def test_the_schedule_ends_where_the_stage_ends(trained, bounds, warmup):
    stage, rates, looked, saved = trained(warmup=warmup, **bounds)
    steps = stage["steps"]
    values = [value for _, value in rates]
    assert 25 <= steps <= 36
    assert values[-1] < 0.12 * 1e-3, "the schedule is over at the last step"
    assert values[max(0, int(warmup) - 1) :] == sorted(values[max(0, int(warmup) - 1) :], reverse=True)
    if warmup:
        assert values[4] == pytest.approx(1e-3)
        assert values[:5] == sorted(values[:5])
    assert (looked[0], looked[-1]) == (0, steps)
    if "guard" not in next(name for name in BOUNDS if BOUNDS[name] is bounds):
        assert 10 <= len(looked) <= 12
        assert 9 <= len(saved) <= 11


@pytest.mark.parametrize(("pace", "gap"), [(300.0, 2), (200.0, 3), (700.0, 1)])
def test_validations_and_checkpoints_come_every_ten_minutes_at_least(trained, pace, gap):
    _, _, looked, saved = trained(pace, max_minutes=40 * pace / 60)
    for times in (looked, [0, *saved]):
        assert max(b - a for a, b in pairwise(times)) <= gap


@pytest.mark.parametrize(("warmup", "steps"), [(10, 20), (3, 13), (19, 20)])
def test_a_warm_up_in_steps_leaves_the_rest_to_the_schedule(trained, warmup, steps):
    _, rates, _, _ = trained(max_steps=steps, warmup=float(warmup))
    values = [value for _, value in rates]
    assert values[warmup - 1] == pytest.approx(1e-3)
    rest = values[warmup:]
    wanted = [1e-3 * (1 - k / (steps - warmup)) for k in range(steps - warmup)]
    assert rest == pytest.approx(wanted, abs=1e-3 / (steps - warmup) + 1e-9)
