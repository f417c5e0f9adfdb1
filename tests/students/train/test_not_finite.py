"""A gradient, weight, setting or optimiser state that is not finite ends a training with an error; checkpoints stay."""

import math
import shutil

import pytest
import tiny_views
import torch
from safetensors.torch import load_file, save_file

from students.errors import StudentError
from students.recipes.read import make_recipe
from students.train import __main__ as command
from students.train import stage as stages
from students.train import steps as stepping
from students.train.run import train

NOT_FINITE = [math.nan, math.inf, -math.inf]


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    return {
        "with": tiny_views.write(folder / "with", "distillation"),
        "without": tiny_views.write(
            folder / "without", "distillation", n_valid=0
        ),  # no list to validate with
    }


@pytest.fixture
def settings(tiny):
    return {
        "base": str(tiny("bert")), "regime": "kd", "max_length": 48, "lr": 2e-3, "lists": 5, "epochs": 0, "max_steps": 8,
        "precision": "fp32", "valid_every": 4, "attention_dropout": 0.0, "hidden_dropout": 0.0,
    }  # fmt: skip


def after_step(monkeypatch, number: int, change) -> None:
    """Change the model or the optimiser after one of the training's steps."""
    real, taken = stages.StageRun._update, []

    def update(run, *given):
        figures = real(run, *given)
        taken.append(1)
        if len(taken) == number:
            change(run)
        return figures

    monkeypatch.setattr(stages.StageRun, "_update", update)


def ends(settings, view, out, words: str) -> None:
    """The training ends with an error; no student is made, and what is kept is finite."""
    with pytest.raises(StudentError, match=words) as raised:
        train(make_recipe(settings), [view], out, device="cpu")
    assert raised.value.exit_code == 1
    assert raised.value.hint
    assert not (out / "model").exists()
    for kept in out.glob("checkpoint-*"):
        assert all(bool(v.isfinite().all()) for v in load_file(kept / "weights.safetensors").values())


@pytest.mark.parametrize(("value", "view"), zip(NOT_FINITE, ["with", "without", "with"], strict=True))
def test_a_loss_that_is_not_finite_at_the_last_step(settings, views, tmp_path, monkeypatch, value, view):
    real, calls = stepping.total, []

    def total(*given):
        calls.append(1)
        return real(*given) * (value if len(calls) == 8 else 1.0)

    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    monkeypatch.setattr(stepping, "total", total)
    ends(settings, views[view], tmp_path / "out", r"loss of stage 1 \(kd, ranknet\) is -?(nan|inf)")
    (kept,) = (tmp_path / "out").glob("checkpoint-*")
    assert kept.name == "checkpoint-1-4"
    monkeypatch.setattr(stepping, "total", real)
    assert train(make_recipe(settings), [views[view]], tmp_path / "out", device="cpu").stages[0]["steps"] == 8


@pytest.mark.parametrize(("value", "step"), zip(NOT_FINITE, [8, 5, 8], strict=True))
def test_a_weight_that_is_not_finite_is_never_saved(settings, views, tmp_path, monkeypatch, value, step):
    def spoil(run):
        with torch.no_grad():
            next(run.encoder.parameters()).view(-1)[-1] = value

    after_step(monkeypatch, step, spoil)
    ends(settings, views["without"], tmp_path / "out", "stage 1")
    (kept,) = (tmp_path / "out").glob("checkpoint-*")
    assert kept.name == "checkpoint-1-4"


@pytest.mark.parametrize(("key", "value"), [("exp_avg", math.nan), ("exp_avg_sq", math.inf), ("exp_avg", -math.inf)])  # fmt: skip
def test_an_optimiser_state_that_is_not_finite_is_never_saved(
    settings, views, tmp_path, monkeypatch, key, value
):
    def spoil(run):
        unused = list(run.optimiser.state.values())[-1]
        unused[key].view(-1)[0] = value

    after_step(monkeypatch, 8, spoil)  # the last step: no step follows that would spread it to the weights
    ends(settings, views["without"], tmp_path / "out", "the optimiser's state of stage 1")


@pytest.mark.parametrize(("value", "place"), zip(NOT_FINITE, [0, -1, 7], strict=True))
def test_a_base_whose_weights_are_not_finite_is_named(settings, views, tiny, tmp_path, value, place):
    base = tmp_path / "base"
    shutil.copytree(tiny("bert"), base)
    held = load_file(base / "model.safetensors")
    held[sorted(held)[place]].view(-1)[0] = value
    save_file(held, base / "model.safetensors", metadata={"format": "pt"})
    ends(settings | {"base": str(base)}, views["without"], tmp_path / "out", f"the weights of {base}")


@pytest.mark.parametrize("value", ["0", "0.0", "-1", "-1e-5", "1e400", "-1e400", "nan", "-inf", "x"])
@pytest.mark.parametrize("key", ["lr", "temperature"])
def test_a_setting_that_no_training_can_use_is_a_usage_error(views, tmp_path, capsys, key, value):
    words = ["--view", str(views["with"]), "--regime", "kd", "--out", str(tmp_path / "out")]
    assert command.main([*words, "--set", f"{key}={value}"]) == 2
    assert key in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
