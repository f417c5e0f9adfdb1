"""The fused forward that learns: scores and every gradient are those of transformers' own forward."""

import numpy as np
import pytest
import tiny_models
import torch

from students.model.encoder import CrossEncoder

FUSED = ("bert", "electra", "roberta")
QUERIES = tiny_models.sentences(9, 3, 6)
PASSAGES = tiny_models.sentences(9, 4, 40)


def loaded(folder, *, fuse: bool, dropout: float = 0.0, precision="fp32") -> CrossEncoder:
    encoder = CrossEncoder.load(
        folder,
        precision=precision,
        device="cpu",
        max_length=48,
        hidden_dropout=dropout,
        attention_dropout=dropout,
    )
    assert encoder.fuse() is fuse if fuse else not encoder.fused
    return encoder


def batch_of(encoder: CrossEncoder):
    each = np.arange(len(QUERIES))
    return encoder.collate(encoder.tokenise(QUERIES), encoder.tokenise(PASSAGES), each, each)


def scores_and_gradients(encoder: CrossEncoder):
    encoder.train()
    scores = encoder(batch_of(encoder))
    (scores * torch.linspace(-1, 1, len(QUERIES))).sum().backward()
    return scores.detach(), {n: p.grad for n, p in encoder.model.named_parameters()}


@pytest.mark.parametrize("architecture", FUSED)
def test_scores_and_gradients_are_transformers(tiny, architecture):
    expected, theirs = scores_and_gradients(loaded(tiny(architecture), fuse=False))
    got, mine = scores_and_gradients(loaded(tiny(architecture), fuse=True))
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)
    for name, gradient in theirs.items():
        if gradient is None:
            assert mine[name] is None, name
        else:
            torch.testing.assert_close(mine[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("architecture", FUSED)
def test_bf16_gradients_are_as_near_to_exact_ones_as_autocasts(tiny, architecture):
    def flat(gradients) -> torch.Tensor:
        return torch.cat([g.flatten() for g in gradients.values() if g is not None])

    exact = flat(scores_and_gradients(loaded(tiny(architecture), fuse=False))[1])
    errors = [
        float(
            (
                flat(scores_and_gradients(loaded(tiny(architecture), fuse=fuse, precision="bf16"))[1]) - exact
            ).norm()
        )
        for fuse in (False, True)
    ]
    assert errors[1] < 1.5 * errors[0]
    assert 0 < errors[1] < 0.05 * float(exact.norm())


@pytest.mark.test_all
def test_dropout_is_the_models_own_and_only_in_training(tiny):
    plain = loaded(tiny("bert"), fuse=True)
    dropping = loaded(tiny("bert"), fuse=True, dropout=0.2)
    batch = batch_of(plain)
    with torch.inference_mode():
        exact = plain.eval()(batch)
        assert torch.equal(dropping.eval()(batch), exact)
        dropping.train()
        torch.manual_seed(0)
        draws = torch.stack([dropping(batch) for _ in range(300)])
        theirs = CrossEncoder.load(
            tiny("bert"),
            precision="fp32",
            device="cpu",
            max_length=48,
            hidden_dropout=0.2,
            attention_dropout=0.2,
        ).train()
        reference = torch.stack([theirs(batch) for _ in range(300)])
    assert float(draws.std(0).min()) > 0
    torch.testing.assert_close(draws.std(0), reference.std(0), rtol=0.35, atol=1e-3)
    error = (draws.std(0) ** 2 / 300 + reference.std(0) ** 2 / 300).sqrt()
    assert float(((draws.mean(0) - reference.mean(0)).abs() / error).max()) < 5


def test_frozen_parts_get_no_gradient(tiny):
    encoder = loaded(tiny("electra"), fuse=True)
    for name, parameter in encoder.model.named_parameters():
        parameter.requires_grad_("embeddings" not in name and "layer.0" not in name)
    _, gradients = scores_and_gradients(encoder)
    got = {name for name, gradient in gradients.items() if gradient is not None}
    assert got == {n for n, p in encoder.model.named_parameters() if p.requires_grad}


def test_what_is_not_reproduced_stays_transformers(tiny):
    encoder = CrossEncoder.load(tiny("modernbert"), precision="fp32", device="cpu", max_length=48)
    assert not encoder.fuse()
    packed = CrossEncoder.load(tiny("bert"), precision="fp32", device="cpu", attention="packed_varlen")
    assert not packed.fuse()


@pytest.mark.parametrize("architecture", FUSED)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_after_a_refresh_the_whole_encoder_has_the_new_weights(tiny, architecture, precision):
    encoder = loaded(tiny(architecture), fuse=True, precision=precision).eval()
    batch = batch_of(encoder)
    with torch.no_grad():
        before = encoder(batch)
        for parameter in encoder.model.parameters():
            parameter.mul_(1.5)
        encoder.refresh()
        after = encoder(batch)
        anew = loaded(tiny(architecture), fuse=False, precision=precision).eval()
        anew.model.load_state_dict(encoder.model.state_dict())
        assert anew.fuse()
        assert torch.equal(after, anew(batch))
    assert not torch.equal(after, before)
