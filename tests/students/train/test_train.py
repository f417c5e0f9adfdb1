"""Training: it learns, it does what a plain loop does, and it says when it did nothing or cannot begin."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny_views
import torch
from safetensors.torch import load_file

from msft.errors import MsftError
from msft.job_lock import alone
from students.errors import StudentError
from students.losses import get, reduce
from students.model.encoder import CrossEncoder
from students.recipes.read import make_recipe
from students.train import diagnostics
from students.train import stage as stages
from students.train.checkpoints import StageState
from students.train.optimiser import Bounds, learning_rate, make, set_rate
from students.train.run import train
from students.train.steps import Task, targets_of
from students.train.view_folder import file_hash, read_view


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    return {
        "cl": tiny_views.write(folder / "cl", "contrastive"),
        "kd": tiny_views.write(folder / "kd", "distillation"),
        "scored": tiny_views.write(folder / "scored", "distillation", scores=True),
    }


@pytest.fixture
def recipe(tiny):
    def of(regime: str = "cl", architecture: str = "bert", **settings):
        defaults = {
            "base": str(tiny(architecture)), "regime": regime, "max_length": 48, "lr": 2e-3, "lists": 5, "epochs": 4,
            "precision": "fp32", "valid_every": 4, "attention_dropout": 0.0, "hidden_dropout": 0.0,
        }  # fmt: skip
        return make_recipe(defaults | settings)

    return of


def figures(result, measure: str, stage: int = 1) -> list[float]:
    return [r["value"] for r in result.log if (r["measure"], r["stage"]) == (measure, stage)]


def weights(folder) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


# ------------------------------------------------------------------------------------------------ it learns
@pytest.mark.test_all
@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_a_student_learns(recipe, views, tmp_path, architecture):
    chosen = recipe("kd", architecture, epochs=25, lr=5e-3, valid_every=20)
    result = train(chosen, [views["kd"]], tmp_path / "out")
    tau, loss = figures(result, "valid_tau"), figures(result, "valid_loss")
    assert tau[-1] > max(tau[0] + 0.3, 0.5)
    assert loss[-1] < loss[0]
    (stage,) = result.stages
    assert stage["weights_moved"] > 1e-2
    assert (stage["steps"], stage["stopped_by"]) == (100, "end")
    assert stage["pairs"] == 25 * 20 * 6
    encoder = CrossEncoder.load(result.folder, precision="fp32", device="cpu")
    assert encoder.max_length == 48


@pytest.mark.test_all
@pytest.mark.parametrize("regime", ["cl", "cl+kd"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_cache": "always", "batch_tokens": 90},
        {"memory_tokens": 300},
        pytest.param({"compile": True}, marks=pytest.mark.needs("compiler")),
    ],
)
def test_the_loop_is_a_plain_one(recipe, views, tmp_path, regime, settings):
    """Weights after nine steps equal those of a loop written out with transformers' own forward and torch's autograd."""
    chosen = recipe(
        regime, max_steps=9, epochs=0, weight_decay=0.1, clip=0.05, keep="last", weight=0.7, **settings
    )
    (stage,) = chosen.stages
    result = train(chosen, [views[o] for o in regime.split("+")], tmp_path / "out")

    encoder = CrossEncoder.load(
        chosen.base,
        max_length=48,
        precision="fp32",
        device="cpu",
        seed=42,
        attention_dropout=0.0,
        hidden_dropout=0.0,
    )
    tasks = []
    for objective in stage.objectives:
        view = read_view(views[objective.name])
        texts = (encoder.tokenise(column.to_pylist()) for column in (view.queries, view.passages))
        tasks.append(Task.of(objective, view, *texts))
    optimiser, bounds, losses, norms = make(encoder.model, stage), Bounds.of(stage, 99), [], []
    encoder.train()
    for step in range(9):
        loss = torch.zeros(())
        for task in tasks:
            lists, (picked, drawn) = task.view.train, task.drawn(42, 1, step)
            cells, targets = targets_of(lists, drawn, len(picked))
            batch = encoder.collate(task.queries, task.passages, drawn.query, lists.passage[drawn.rows])
            terms = get(task.objective.loss)(cells.matrix(encoder(batch)), targets)
            loss = loss + 0.7 * reduce(terms, "list")
        optimiser.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(encoder.model.parameters(), 0.05).item())
        losses.append(loss.item())
        set_rate(optimiser, learning_rate(stage, bounds.progress(step, 0, 0.0), step))
        optimiser.step()
    assert figures(result, "loss")[0] == pytest.approx(np.mean(losses), rel=1e-5)
    assert figures(result, "grad_norm")[0] == pytest.approx(np.mean(norms), rel=1e-4)
    begun, trained = (
        CrossEncoder.load(folder, precision="fp32", device="cpu").model.state_dict()
        for folder in (chosen.base, result.folder)
    )
    for name, value in encoder.model.state_dict().items():
        # a softmax sees neither: their gradient is noise, which AdamW makes steps of
        if not name.endswith(("key.bias", "classifier.bias")):
            way = (value - begun[name]).norm()
            assert float((trained[name] - value).norm()) < 2e-3 * float(way), name


@pytest.mark.test_all
def test_the_same_recipe_gives_the_same_bits_and_another_seed_does_not(recipe, views, tmp_path):
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(recipe("cl,kd", seed=seed, hidden_dropout=0.1), [views["cl"], views["kd"]], tmp_path / name)
        made.append(weights(tmp_path / name))
    assert made[0] == made[1] != made[2]


# ----------------------------------------------------------------------------------------------- the stages
@pytest.mark.test_all
def test_each_stage_goes_on_from_the_one_before_with_a_fresh_optimiser(recipe, views, tmp_path):
    both = train(recipe("cl,kd"), [views["cl"], views["kd"]], tmp_path / "both")
    first = train(recipe("cl"), [views["cl"]], tmp_path / "first")
    one, two = both.stages
    assert one["weights_hash"] == two["parent_hash"] == first.stages[0]["weights_hash"]
    assert two["weights_hash"] == file_hash(tmp_path / "both/model/model.safetensors")
    assert (one["view_hash"], two["view_hash"]) == tuple(read_view(views[o]).view_hash for o in ("cl", "kd"))
    # as if the second were a training of its own, from that folder: nothing else carries over
    alone = train(recipe("kd", base=str(tmp_path / "first/model")), [views["kd"]], tmp_path / "alone")
    assert figures(alone, "valid_loss")[0] == pytest.approx(figures(both, "valid_loss", 2)[0], rel=1e-6)


@pytest.mark.test_all
def test_what_is_frozen_does_not_move(recipe, views, tmp_path):
    chosen = recipe("cl,kd", **{"stage-1": {"freeze": ["embeddings", "layers:0-0"]}})
    result = train(chosen, [views["cl"], views["kd"]], tmp_path / "out")
    assert [s["hyperparameters"]["frozen"] > 0 for s in result.stages] == [True, False]
    half = train(recipe("cl", freeze=["embeddings", "layers:0-0"]), [views["cl"]], tmp_path / "half")
    base = CrossEncoder.load(chosen.base, device="cpu").model.state_dict()
    ends = {
        name: CrossEncoder.load(r.folder, device="cpu").model.state_dict()
        for name, r in (("two", result), ("one", half))
    }
    for name, value in base.items():
        frozen = "embeddings" in name or ".layer.0." in name
        assert torch.equal(ends["one"][name], value) is frozen, name
        assert not torch.equal(ends["two"][name], value), f"{name} is free in stage 2"


def test_bounds_end_stages(recipe, views, tmp_path):
    for settings, steps, why in (
        ({"epochs": 0, "max_steps": 3}, 3, "max_steps"),
        ({"epochs": 0, "max_pairs": 100}, 4, "max_pairs"),
        ({"epochs": 0.5}, 2, "end"),
        ({"epochs": 0, "max_minutes": 1e-6}, 1, "max_minutes"),
    ):
        (stage,) = train(recipe("kd", **settings), [views["kd"]], tmp_path / why).stages
        assert (stage["steps"], stage["stopped_by"]) == (steps, why)


@pytest.mark.test_all
def test_the_best_weights_are_kept_and_patience_ends_a_stage(recipe, views, tmp_path):
    wild = {"lr": 0.3, "schedule": "constant", "warmup": 0.0, "epochs": 40, "valid_every": 1, "patience": 3}
    notes: list[str] = []
    for stop_on in ("loss", "nDCG@10", "tau"):
        out = tmp_path / stop_on
        result = train(recipe("kd", stop_on=stop_on, **wild), [views["kd"]], out, note=notes.append)
        (stage,) = result.stages
        values = figures(result, f"valid_{stop_on}")[1:]  # without the one before the first step
        best = min(values) if stop_on == "loss" else max(values)
        assert stage["stopped_by"] == "early_stopping"
        assert stage["best_value"] == best
        assert stage["best_step"] == values.index(best) + 1
        assert stage["steps"] == stage["best_step"] + 3
        assert stage["weights_hash"] == file_hash(out / "model/model.safetensors")
        kept = train(
            recipe(
                "kd", stop_on=stop_on, **wild | {"epochs": 0, "max_steps": stage["best_step"], "keep": "last"}
            ),
            [views["kd"]],
            tmp_path / f"{stop_on} again",
        )
        assert kept.stages[0]["weights_hash"] == stage["weights_hash"], "they are the best step's weights"
    assert any("ends with the weights of step" in note for note in notes)


# -------------------------------------------------------------------------------------- it says what is wrong
def test_a_rate_of_6e_12_is_told(recipe, views, tmp_path):
    notes: list[str] = []
    chosen = recipe("cl,kd", **{"stage-2:kd": {"lr": 6e-12}})
    result = train(chosen, [views["cl"], views["kd"]], tmp_path / "out", note=notes.append)
    moved = [stage["weights_moved"] for stage in result.stages]
    assert moved[0] > 1e-3
    assert moved[1] < 1e-6
    (told,) = [note for note in notes if "hardly trained" in note]
    assert told.startswith("stage 2 (kd)")
    assert f"{moved[1]:.1e}" in told
    assert "learning rate 6e-12" in told


@pytest.fixture
def flat(tmp_path, tiny) -> str:
    """A model that gives every pair the same score."""
    model = CrossEncoder.load(tiny("bert"), device="cpu")
    with torch.no_grad():
        model.model.classifier.weight.zero_()
    model.save(tmp_path / "flat")
    return str(tmp_path / "flat")


@pytest.mark.parametrize("warmup", [0.1, 0.5, 9.0])
def test_collapsed_scores_are_told_once_and_after_the_warm_up(recipe, views, tmp_path, flat, warmup):
    notes: list[str] = []
    chosen = recipe("kd", base=flat, lr=1e-9, warmup=warmup, valid_every=1)
    (stage,) = train(chosen, [views["kd"]], tmp_path / "out", note=notes.append).stages
    (told,) = [note for note in notes if "the model ranks nothing" in note]
    step = int(told.split(" at step ")[1].split(",")[0])
    assert step > (warmup if warmup >= 1 else warmup * stage["steps"])
    assert "pairs are few" in told
    (coin,) = [note for note in notes if "orders at random has 0.693" in note]
    assert "pairs are few" in coin


@pytest.mark.parametrize(
    ("first", "pairs", "lr", "cause"),
    [
        (0.4, 20_000, 1e-3, "too large: lower lr (0.001)"),
        (0.4, 100, 5e-4, "too large: lower lr (0.0005)"),
        (1e-5, 900, 1e-4, "900 pairs are few"),
        (None, 20_000, 1e-8, "lr (1e-08) is small"),
        (0.0, 20_000, 1e-4, "--easy 3"),
    ],
)
def test_the_likely_cause_of_scores_that_are_alike_is_named(first, pairs, lr, cause):
    state = StageState(1, step=50, pairs=pairs, first_spread=first)
    told = diagnostics.of_collapse(make_recipe({"regime": "kd", "lr": lr}).stages[0], state, 1e-6)
    assert cause in told
    assert "the model ranks nothing" in told


def test_skipped_lists_and_cut_pairs_are_counted_and_told(recipe, tmp_path):
    notes: list[str] = []
    lists = [{"labels": [0] * 6}, {"labels": [1] * 6}]
    folder = tiny_views.write(tmp_path / "v", "contrastive", lists=lists)
    (stage,) = train(
        recipe("cl", max_length=16, epochs=1), [folder], tmp_path / "out", note=notes.append
    ).stages
    assert (stage["lists_skipped"], stage["pairs"]) == (2, 18 * 6)
    assert 0 < stage["truncated_pairs"] <= stage["pairs"]
    assert any("skipped lists 2 times (it has 20), without a positive or a negative" in n for n in notes)
    assert any("of its pairs at max_length" in n for n in notes)


def test_a_loss_that_is_no_number_stops_before_the_weights(recipe, views, tmp_path, monkeypatch):
    from students.train import steps

    real = steps.total
    monkeypatch.setattr(steps, "total", lambda *a: real(*a) * float("nan"))
    with pytest.raises(StudentError, match=r"stage 1 \(kd, ranknet\) is nan at step 0") as raised:
        train(recipe("kd"), [views["kd"]], tmp_path / "out")
    assert "lower lr (0.002)" in (raised.value.hint or "")


@pytest.mark.parametrize("lr", [1e30, 1e5, 1e20])
def test_weights_that_no_training_makes_end_the_stage_and_leave_no_student(recipe, views, tmp_path, lr):
    with pytest.raises(StudentError, match=r"stage 1 \(kd, ranknet\)"):
        train(recipe("kd", lr=lr, warmup=0.0), [views["kd"]], tmp_path / "out")
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_no_number_ends_before_the_step_and_the_checkpoint_stays(
    recipe, views, tmp_path, monkeypatch, bad, clip
):
    from students.train import gradient_cache as gradcache

    real, calls = gradcache.backward, []

    def backward(encoder, *given, **options):
        loss = real(encoder, *given, **options)
        calls.append(1)
        if len(calls) == 6:
            next(p for p in encoder.parameters() if p.grad is not None).grad.view(-1)[0] = bad
        return loss

    monkeypatch.setattr(gradcache, "backward", backward)
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    with pytest.raises(StudentError, match="gradient's norm of stage 1") as raised:
        train(recipe("kd", clip=clip), [views["kd"]], tmp_path / "out")
    assert "last checkpoint is kept" in (raised.value.hint or "")
    (kept,) = (tmp_path / "out").glob("checkpoint-*")
    assert kept.name == "checkpoint-1-4"
    assert all(bool(v.isfinite().all()) for v in load_file(kept / "weights.safetensors").values())


@pytest.mark.parametrize("key", ["lr", "clip", "weight_decay", "warmup", "epochs", "temperature"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_settings_that_are_no_finite_numbers_are_refused(key, value):
    with pytest.raises(StudentError, match=f"{key} must be a finite number") as raised:
        make_recipe({key: value})
    assert raised.value.exit_code == 2


@pytest.mark.test_all
@pytest.mark.parametrize("bounds", [
    {"epochs": 0, "max_pairs": 600}, {"epochs": 50, "max_pairs": 600}, {"epochs": 0, "max_steps": 20},
])  # fmt: skip
def test_validation_comes_ten_times_by_the_nearest_bound(recipe, views, tmp_path, bounds):
    result = train(recipe("cl", valid_every=0, lists=2, **bounds), [views["cl"]], tmp_path / "out")
    assert 10 <= len(figures(result, "valid_loss")) <= 12


@pytest.mark.parametrize(
    ("seconds", "last", "due"), [(601.0, 0.0, True), (599.0, 0.0, False), (1300.0, 700.0, True)]
)
def test_validation_comes_after_ten_minutes_at_the_latest(seconds, last, due):
    assert stages._due(0, StageState(1, step=3, seconds=seconds), False, last) is due


@pytest.mark.parametrize("out", ["a", "b c", "deep/er"])
def test_a_second_training_of_one_student_is_told_who_holds_it(tmp_path, out):
    lock = tmp_path / out / ".name.lock"
    code = (
        "import sys, pathlib; from msft.job_lock import alone\n"
        "with alone(pathlib.Path(sys.argv[1]), 'x'): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(MsftError, match=f"PID {holder.pid}") as raised,
        alone(lock, "student x is being trained"),
    ):
        pytest.fail("both hold it")
    assert raised.value.exit_code == 3
    holder.kill()
    holder.communicate()
    with alone(lock, "student x"):
        assert lock.read_text().strip() == str(os.getpid())


@pytest.mark.parametrize(
    ("regime", "settings", "view", "says"),
    [
        (
            "kd",
            {"loss": "margin_mse"},
            "kd",
            "margin_mse needs a teacher score for every passage, and view tiny-d",
        ),
        ("kd", {"loss": "lce"}, "kd", "lce needs positives and negatives"),
        ("cl", {"loss": "margin_mse"}, "cl", "margin_mse needs a teacher score"),
        ("kd", {}, "cl", r"stage 1 \(kd\) has no view"),
    ],
)
def test_what_cannot_be_learnt_is_refused_before_anything_is_done(
    recipe, views, tmp_path, monkeypatch, regime, settings, view, says
):
    monkeypatch.setattr(CrossEncoder, "load", lambda *a, **k: pytest.fail("the model was loaded"))
    with pytest.raises(StudentError, match=says) as raised:
        train(recipe(regime, **settings), [views[view]], tmp_path / "out")
    assert raised.value.exit_code == 2
    assert raised.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.test_all
def test_margin_mse_learns_from_scores(recipe, views, tmp_path):
    result = train(recipe("kd", loss="margin_mse", epochs=10), [views["scored"]], tmp_path / "out")
    loss = figures(result, "valid_loss")
    assert loss[-1] < loss[0]


def test_a_view_without_a_single_useful_list(recipe, tmp_path):
    folder = tiny_views.write(
        tmp_path / "v", "contrastive", n_lists=3, n_valid=0, lists=[{"labels": [0] * 6}] * 3
    )
    with pytest.raises(StudentError, match="no list of view tiny-contrastive has what the loss needs"):
        train(recipe("cl"), [folder], tmp_path / "out")


def test_a_measure_that_validation_cannot_give(recipe, views, tmp_path):
    with pytest.raises(StudentError, match="stops on tau") as raised:
        train(recipe("cl", stop_on="tau"), [views["cl"]], tmp_path / "out")
    assert raised.value.exit_code == 2


# ---------------------------------------------------------------------------------------------- its folder
def test_a_finished_training_is_taken_as_it_is_and_another_is_refused(recipe, views, tmp_path, monkeypatch):
    first = train(recipe("cl", epochs=1), [views["cl"]], tmp_path / "out")
    kept = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert kept == [".lock", "model", "stages.json", "training.json", "training_log.jsonl"]
    with pytest.raises(StudentError, match="holds another training: its stages differ") as raised:
        train(recipe("cl", epochs=2), [views["cl"]], tmp_path / "out")
    assert raised.value.exit_code == 2
    monkeypatch.setattr(CrossEncoder, "load", lambda *a, **k: pytest.fail("the model was loaded"))
    again = train(recipe("cl", epochs=1), [views["cl"]], tmp_path / "out")
    assert (again.stages, again.log, again.folder) == (first.stages, first.log, first.folder)


def test_the_log_has_what_the_store_wants(recipe, views, tmp_path):
    result = train(recipe("kd", log_every=2), [views["kd"]], tmp_path / "out")
    assert {row["measure"] for row in result.log} == {
        "loss", "grad_norm", "lr", "valid_loss", "valid_nDCG@10", "valid_tau", "valid_spread",
    }  # fmt: skip
    assert [row["step"] for row in result.log if row["measure"] == "lr"] == [*range(2, 17, 2)]
    assert [row["step"] for row in result.log if row["measure"] == "valid_tau"] == [0, 4, 8, 12, 16]
    assert all(row["pairs"] == row["step"] * 30 for row in result.log)
    json.dumps(result.log, allow_nan=False)


def test_tensorboard_gets_both_stages_on_one_axis(recipe, views, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(
        recipe("cl,kd", log_every=2), [views["cl"], views["kd"]], tmp_path / "out", trackers=["tensorboard"]
    )
    (events,) = (tmp_path / "out/trackers/msft").glob("events.out.*")
    found = EventAccumulator(str(events)).Reload()
    tags = found.Tags()["scalars"]
    assert {"stage-1/loss", "stage-1/valid_loss", "stage-2/loss", "stage-2/valid_tau", "stage-2/lr"} <= set(
        tags
    )
    assert [e.step for e in found.Scalars("stage-2/lr")] == [16 + s for s in range(2, 17, 2)]


def test_progress_and_the_shared_token_cache(recipe, views, tmp_path):
    ticks: list[tuple] = []
    notes: list[str] = []
    for name in ("one", "two"):
        train(
            recipe("cl", epochs=1), [views["cl"]], tmp_path / name, tokens=tmp_path / "tokens", note=notes.append,
            progress=lambda done, total=None, **values: ticks.append((done, total, values)),
        )  # fmt: skip
    assert sum("texts tokenised" in note for note in notes) == 1
    assert ticks[-1][0] == ticks[-1][1] == 4 * 30
    assert "loss" in ticks[-1][2]
    assert (tmp_path / "tokens").is_dir()
