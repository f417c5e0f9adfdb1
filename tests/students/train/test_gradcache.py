"""Gradients in pieces are those of the whole, for every loss, dropout included; the price is memory or one forward."""

import pytest
import tiny_models
import tiny_views
import torch

from students.losses import LOSSES, get, reduce
from students.model.encoder import CrossEncoder
from students.recipes.read import make_recipe
from students.train import gradient_cache as gradcache
from students.train.steps import MicroBatch, Step, Task, plan, targets_of
from students.train.view_folder import read_view


def made(tmp_path, folder, loss: str, **options) -> tuple[CrossEncoder, Task, Step]:
    """An encoder, a task over a tiny view, and its first step in pieces of 64 tokens."""
    objective = "cl" if LOSSES[loss].needs == "binary" else "kd"
    kind = {"cl": "contrastive", "kd": "distillation"}[objective]
    view = read_view(tiny_views.write(tmp_path / "view", kind, scores=True))
    encoder = CrossEncoder.load(folder, precision="fp32", device="cpu", max_length=32, **options)
    recipe = make_recipe({"regime": objective, "loss": loss, "lists": 5})
    (stage,) = recipe.stages
    task = Task.of(
        stage.objectives[0],
        view,
        encoder.tokenise(view.queries.to_pylist()),
        encoder.tokenise(view.passages.to_pylist()),
    )
    return encoder, task, plan([task], encoder, stage, 1, 0, batch_tokens=64, memory_tokens=1 << 20)


def gradient(encoder: CrossEncoder, step: Step, *, cached: bool) -> tuple[float, torch.Tensor]:
    (micro,) = step.micro_batches
    assert len(micro.pieces) > 5
    encoder.zero_grad()
    loss = gradcache.backward(
        encoder,
        micro.pieces,
        lambda scores: micro.loss(scores, step.denominators),
        cached=cached,
        device=torch.device("cpu"),
    )
    return float(loss), torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])


@pytest.mark.test_all
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_cached_gradients_are_the_direct_ones_and_those_of_the_plain_loss(tiny, tmp_path, loss):
    encoder, task, step = made(tmp_path, tiny("bert"), loss, hidden_dropout=0.0, attention_dropout=0.0)
    value, direct = gradient(encoder, step, cached=False)
    again, cached = gradient(encoder, step, cached=True)
    assert again == pytest.approx(value, rel=1e-6)
    assert float((cached - direct).norm() / direct.norm()) <= 1e-5
    assert float(direct.norm()) > 1e-4
    # and by hand: each list scored alone, the loss of the step's matrix
    chosen, drawn = task.drawn(1, 1, 0)
    lists = task.view.train
    encoder.zero_grad()
    scores = torch.cat(
        [
            encoder(
                encoder.collate(
                    task.queries, task.passages, drawn.query[mine], lists.passage[drawn.rows[mine]]
                )
            )
            for mine in (drawn.local == i for i in range(len(chosen)))
        ]
    )
    cells, targets = targets_of(lists, drawn, len(chosen))
    plain = reduce(get(loss)(cells.matrix(scores), targets), "list")
    plain.backward()
    assert value == pytest.approx(plain.item(), rel=1e-5)
    by_hand = torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])
    assert float((by_hand - direct).norm() / direct.norm()) <= 1e-5


@pytest.mark.test_all
@pytest.mark.parametrize(
    ("architecture", "fuse"), [("electra", True), ("electra", False), ("modernbert", False)]
)
def test_dropout_is_replayed(tiny, tmp_path, architecture, fuse):
    encoder, _, step = made(
        tmp_path, tiny(architecture), "ranknet", hidden_dropout=0.3, attention_dropout=0.3
    )
    if fuse:
        encoder.fuse()
    encoder.train()
    found = {}
    for cached in (False, True):
        torch.manual_seed(7)
        found[cached] = (*gradient(encoder, step, cached=cached), torch.get_rng_state())
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-6)
    assert float((found[True][1] - found[False][1]).norm() / found[False][1].norm()) <= 1e-5
    assert torch.equal(found[True][2], found[False][2]), "the generator goes on where it would have"
    torch.manual_seed(8)
    assert gradient(encoder, step, cached=True)[0] != pytest.approx(found[True][0], rel=1e-4)


def test_scoring_again_is_without_a_graph_the_first_time(tiny, tmp_path):
    encoder, _, step = made(tmp_path, tiny("bert"), "lce")
    seen: list[bool] = []

    def score(batch):
        seen.append(torch.is_grad_enabled())
        return encoder(batch)

    micro: MicroBatch = step.micro_batches[0]
    gradcache.backward(
        score,
        micro.pieces,
        lambda s: micro.loss(s, step.denominators),
        cached=True,
        device=torch.device("cpu"),
    )
    n = len(micro.pieces)
    assert seen == [False] * n + [True] * n


def test_tiny_models_learn(tiny):
    """The gradients above are of models whose scores differ: else they would prove little."""
    encoder = CrossEncoder.load(tiny("bert"), precision="fp32", device="cpu", max_length=32)
    scores = encoder.score("what is water", tiny_models.sentences(6, 2, 20))
    assert float(scores.std()) > 1e-3
