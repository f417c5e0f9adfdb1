"""Large channels are split without a change of scores, so that int8 products keep the order."""

import numpy as np
import pytest
import tiny_models
import torch
from torch import nn

from students.errors import StudentError
from students.model.encoder import CrossEncoder
from students.rerank.channel_split import Split, largest_inputs, split_maps

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


def test_split_channels_give_the_same_product_over_a_smaller_range():
    x, weight = with_outliers(), linear(HIDDEN, 96, 0).weight.detach()
    split = Split(x.abs().amax(0), extra=32)
    torch.testing.assert_close(split(x) @ split.weight(weight).t(), x @ weight.t(), atol=1e-4, rtol=1e-5)
    assert split(x).shape == (50, HIDDEN + 32)
    assert split(x).abs().max() < x.abs().max() / 8


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
        largest_inputs(encoder)


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
