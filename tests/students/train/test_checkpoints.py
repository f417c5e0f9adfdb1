"""Checkpoints hold all that a stage needs, are whole or not there, and leave nothing behind."""

from dataclasses import asdict

import pytest
import torch
from torch import nn

from students.train import checkpoints
from students.train.checkpoints import StageState


def model_and_optimiser(seed: int = 0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def step(model, optimiser) -> None:
    optimiser.zero_grad()
    model(torch.ones(3, 4)).square().sum().backward()
    optimiser.step()


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


STATE = StageState(
    2, step=7, pairs=91, seconds=1.5, best_value=0.25, best_step=4, sums={"loss": 0.1}, warned=["x"]
)


def test_a_restored_training_goes_on_bit_for_bit(tmp_path):
    model, optimiser = model_and_optimiser()
    for _ in range(3):
        step(model, optimiser)
    path = checkpoints.save(tmp_path, STATE, model, optimiser, rank=0, wait=lambda: None)
    for _ in range(4):
        step(model, optimiser)
    other, fresh = model_and_optimiser(seed=9)
    state, of_optimiser = checkpoints.read_state(path)
    checkpoints.load_weights(other, path / "weights.safetensors")
    fresh.load_state_dict(of_optimiser)
    assert checkpoints.restore_random(path, 0)
    assert not checkpoints.restore_random(path, 1), "there was one process"
    for _ in range(4):
        step(other, fresh)
    assert torch.equal(weights(other), weights(model))
    assert asdict(state) == asdict(STATE)


def test_the_newest_is_kept_and_found_by_number(tmp_path):
    model, optimiser = model_and_optimiser()
    for number in (9, 10, 100):
        checkpoints.save(tmp_path, StageState(1, step=number), model, optimiser, rank=0, wait=lambda: None)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1-100"]
    (tmp_path / "checkpoint-1-99").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    newest = checkpoints.newest(tmp_path)
    assert newest is not None
    assert newest.name == "checkpoint-1-100"
    assert checkpoints.stage_of(newest) == 1
    assert checkpoints.newest(tmp_path / "none") is None


def test_a_checkpoint_that_was_being_written_is_none(tmp_path):
    model, optimiser = model_and_optimiser()
    (tmp_path / ".checkpoint-1-5").mkdir()
    (tmp_path / ".checkpoint-1-5" / "state.pt").write_bytes(b"half")
    assert checkpoints.newest(tmp_path) is None
    checkpoints.save(tmp_path, StageState(1, step=5), model, optimiser, rank=0, wait=lambda: None)
    assert checkpoints.read_state(tmp_path / "checkpoint-1-5")[0].step == 5
    (tmp_path / ".checkpoint-1-6").mkdir()
    checkpoints.clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_best_weights_that_a_checkpoint_names_stay_until_the_next_one(tmp_path):
    model, optimiser = model_and_optimiser()
    first = StageState(1, step=4, best_step=2)
    checkpoints.save_weights(model, checkpoints.best_path(tmp_path, first))
    checkpoints.save(tmp_path, first, model, optimiser, rank=0, wait=lambda: None)
    later = StageState(1, step=6, best_step=6)
    checkpoints.save_weights(model, checkpoints.best_path(tmp_path, later))
    assert checkpoints.best_path(tmp_path, first).exists(), (
        "a kill now goes back to step 4, whose best was step 2"
    )
    checkpoints.save(tmp_path, later, model, optimiser, rank=0, wait=lambda: None)
    assert [p.name for p in tmp_path.glob("best-*")] == ["best-1-6.safetensors"]
    checkpoints.clear_weights(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_state_is_read_as_values_alone(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    (tmp_path / "checkpoint-1-1").mkdir()
    torch.save({"state": Evil(), "optimiser": {}}, tmp_path / "checkpoint-1-1" / "state.pt")
    with pytest.raises(Exception, match=r"[Uu]nsupported|[Ww]eights"):
        checkpoints.read_state(tmp_path / "checkpoint-1-1")


def test_saved_weights_are_those_that_transformers_would_write(tiny, tmp_path):
    from students.model.encoder import CrossEncoder

    encoder = CrossEncoder.load(tiny("electra"), device="cpu")
    encoder.save(tmp_path / "model")
    checkpoints.save_weights(encoder.model, tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").read_bytes() == (tmp_path / "model/model.safetensors").read_bytes()
