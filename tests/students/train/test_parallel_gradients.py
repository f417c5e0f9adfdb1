"""Threads side by side give the gradients of one thread, dropout included, and the same bits every time."""

import pytest
import test_gradcache
import tiny_views
import torch
from hypothesis import given
from hypothesis import strategies as st

from students.recipes.read import make_recipe
from students.train.parallel_gradients import ParallelGradients, even_shares
from students.train.run import train


def gradient(encoder, step, *, cached: bool, workers: int = 2, seed: int = 7) -> tuple[float, torch.Tensor]:
    (micro,) = step.micro_batches
    assert len(micro.pieces) > 5
    encoder.zero_grad()
    torch.manual_seed(seed)
    side = ParallelGradients(encoder, list(encoder.parameters()), workers)
    try:
        loss = side.backward(micro.pieces, lambda s: micro.loss(s, step.denominators), cached=cached)
    finally:
        side.close()
    return float(loss), torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta"])
@pytest.mark.parametrize("cached", [False, True])
def test_gradients_are_those_of_one_thread(tiny, tmp_path, architecture, cached):
    encoder, _, step = test_gradcache.made(
        tmp_path, tiny(architecture), "ranknet", hidden_dropout=0.0, attention_dropout=0.0
    )
    encoder.fuse()
    encoder.train()
    value, expected = test_gradcache.gradient(encoder, step, cached=False)
    for workers in (2, 3):
        loss, got = gradient(encoder, step, cached=cached, workers=workers)
        assert loss == pytest.approx(value, rel=1e-6)
        assert relative(got, expected) <= 1e-5
    assert float(expected.norm()) > 1e-4


@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta"])
def test_dropout_follows_from_the_seed_alone(tiny, tmp_path, architecture):
    encoder, _, step = test_gradcache.made(
        tmp_path, tiny(architecture), "ranknet", hidden_dropout=0.3, attention_dropout=0.3
    )
    encoder.fuse()
    encoder.train()
    loss, first = gradient(encoder, step, cached=False)
    for _ in range(5):  # whichever thread is first
        assert torch.equal(gradient(encoder, step, cached=False)[1], first)
    again, cached = gradient(encoder, step, cached=True)
    assert again == pytest.approx(loss, rel=1e-6)
    assert relative(cached, first) <= 1e-5
    assert relative(gradient(encoder, step, cached=False, seed=8)[1], first) > 1e-2


def test_gradients_are_added_and_frozen_parts_get_none(tiny, tmp_path):
    encoder, _, step = test_gradcache.made(
        tmp_path, tiny("bert"), "ranknet", hidden_dropout=0.0, attention_dropout=0.0
    )
    encoder.fuse()
    for name, parameter in encoder.model.named_parameters():
        parameter.requires_grad_("embeddings" not in name)
    _, once = gradient(encoder, step, cached=False)
    (micro,) = step.micro_batches
    side = ParallelGradients(encoder, list(encoder.parameters()), 2)
    side.backward(micro.pieces, lambda s: micro.loss(s, step.denominators), cached=False)
    side.close()
    grads = {n: p.grad for n, p in encoder.model.named_parameters()}
    assert all((grad is None) == ("embeddings" in name) for name, grad in grads.items())
    twice = torch.cat([g.flatten() for g in grads.values() if g is not None])
    assert relative(twice, 2 * once) <= 1e-5


@pytest.mark.test_all
def test_a_training_with_threads_gives_the_same_weights_again(tiny, tmp_path):
    recipe = make_recipe(
        {
            "base": str(tiny("electra")), "regime": "kd", "precision": "fp32", "lists": 4, "epochs": 0, "max_steps": 4,
            "batch_tokens": 128, "max_length": 32, "hidden_dropout": 0.2, "attention_dropout": 0.2, "lr": 1e-3,
        }
    )  # fmt: skip
    view = tiny_views.write(tmp_path / "view", "distillation")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        made = [train(recipe, [view], tmp_path / str(i), device="cpu").stages[0] for i in range(3)]
    finally:
        torch.set_num_threads(before)
    assert made[0]["hyperparameters"]["workers"] == 2
    assert len({stage["weights_hash"] for stage in made}) == 1
    assert made[0]["weights_moved"] > 1e-3


@given(st.lists(st.integers(1, 2048), min_size=1, max_size=60), st.integers(1, 8))
def test_shares_are_even_and_whole(sizes, workers):
    shares = even_shares(sizes, workers)
    assert sorted(i for share in shares for i in share) == list(range(len(sizes)))
    assert all(shares)
    loads = [sum(sizes[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes)
