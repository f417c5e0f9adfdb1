"""Packed rows equal the padded forward; and what would break that is seen to break it."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_models
import torch
from torch.utils.flop_counter import FlopCounterMode

from students.batches import collate
from students.encoder import CrossEncoder

QUERIES = tiny_models.sentences(9, 3, 6)
PASSAGES = tiny_models.sentences(9, 4, 40)


def both(folder):
    padded = CrossEncoder.load(folder, precision="fp32", device="cpu", max_length=48).eval()
    packed = CrossEncoder.load(
        folder, precision="fp32", device="cpu", max_length=48, attention="packed_varlen"
    ).eval()
    return padded, packed


def batch_for(encoder, **options):
    each = np.arange(len(QUERIES))
    return collate(
        encoder.form,
        encoder.tokenise(QUERIES),
        encoder.tokenise(PASSAGES),
        each,
        each,
        layout=encoder.layout,
        **{"position_start": encoder.position_start, **options},
    )


@pytest.mark.parametrize("multiple", [1, 64])
@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_scores_and_gradients_equal_the_padded_forward(tiny, architecture, multiple):
    padded, packed = both(tiny(architecture))
    weights = torch.linspace(-1, 1, len(QUERIES))
    results = []
    for encoder in (padded, packed):
        scores = encoder(batch_for(encoder, multiple=multiple))
        (scores * weights).sum().backward()
        results.append((scores.detach(), {n: p.grad for n, p in encoder.model.named_parameters()}))
    torch.testing.assert_close(results[1][0], results[0][0], atol=2e-6, rtol=1e-5)
    for name, gradient in results[0][1].items():
        if gradient is not None:
            torch.testing.assert_close(results[1][1][name], gradient, atol=2e-5, rtol=1e-4, msg=name)
    assert float(results[0][0].std()) > 1e-3


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_ignoring_the_boundaries_changes_the_scores(tiny, architecture, monkeypatch):
    _, packed = both(tiny(architecture))
    batch = batch_for(packed)
    right = packed(batch).detach()
    import students.attention as attention

    def as_one(segments):
        return replace(segments, queries=segments.queries[[0, -1]], keys=segments.keys[[0, -1]])

    real = attention._loop
    monkeypatch.setattr(attention, "_loop", lambda q, k, v, s, *rest: real(q, k, v, as_one(s), *rest))
    assert float((right - packed(batch).detach()).abs().max()) > 1e-3


@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta"])
def test_the_last_layer_runs_for_first_tokens_alone(tiny, architecture):
    """Its products are counted: all tokens take keys and values, 4 of a layer's 24 H² FLOPs each; the rest is the first's."""
    _, packed = both(tiny(architecture))
    batch, config = batch_for(packed), packed.model.config
    width, inner, tokens = config.hidden_size, config.intermediate_size, batch.ids.shape[1]
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        packed(batch)
    of_layer = 2 * (4 * width * width + 2 * width * inner)  # products of one token
    of_last = tokens * 4 * width * width + len(QUERIES) * (of_layer - 4 * width * width)
    products = sum(n for op, n in counted.get_flop_counts()["Global"].items() if "mm" in str(op))
    head = 2 * len(QUERIES) * width * (width + 1)  # of all three: a dense layer, and one output
    if architecture == "electra" and config.embedding_size != width:
        head += 2 * tokens * config.embedding_size * width
    assert products == (config.num_hidden_layers - 1) * tokens * of_layer + of_last + head


@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta"])
def test_the_last_layers_attention_drops_while_it_learns(tiny, architecture):
    _, packed = both(tiny(architecture))
    batch, attend = batch_for(packed), packed.model.base_model.encoder.layer[-1].attention.self
    for module in packed.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    kept = packed(batch).detach()
    packed.train()
    torch.testing.assert_close(packed(batch).detach(), kept)
    attend.dropout.p = 0.5
    assert float((packed(batch).detach() - kept).abs().max()) > 1e-3
    packed.eval()
    torch.testing.assert_close(packed(batch).detach(), kept)


def test_roberta_with_positions_from_zero_changes_the_scores(tiny):
    _, packed = both(tiny("roberta"))
    assert packed.position_start == 2
    right, wrong = packed(batch_for(packed)), packed(batch_for(packed, position_start=0))
    assert float((right - wrong).detach().abs().max()) > 1e-3


def test_no_boundaries_is_an_error_not_a_wrong_score(tiny):
    _, packed = both(tiny("bert"))
    batch = batch_for(packed)
    with pytest.raises(RuntimeError, match="boundaries"):
        packed.model(input_ids=batch.ids)


def test_modernberts_mean_pooling(tiny):
    padded, packed = both(tiny("modernbert"))
    padded.model.config.classifier_pooling = packed.model.config.classifier_pooling = "mean"
    torch.testing.assert_close(packed(batch_for(packed)), padded(batch_for(padded)), atol=2e-6, rtol=1e-5)


def test_modernberts_window_matters_and_is_right(tiny):
    """The tiny model's local layers see 8 tokens on either side; pairs are longer than that."""
    padded, packed = both(tiny("modernbert"))
    batch = batch_for(packed)
    assert batch.longest > 20
    for layer in packed.model.model.layers:
        if layer.attn.sliding_window is not None:
            layer.attn.sliding_window += 1
    assert float((packed(batch) - padded(batch_for(padded))).detach().abs().max()) > 1e-5


def test_a_saved_packed_model_is_an_ordinary_one(tiny, tmp_path):
    _, packed = both(tiny("electra"))
    expected = packed(batch_for(packed)).detach()
    again = CrossEncoder.load(packed.save(tmp_path / "m"), precision="fp32", device="cpu")
    assert again.layout == "padded"
    assert packed.layout == "packed"
    torch.testing.assert_close(again.eval()(batch_for(again)).detach(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.needs("gpu")
@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_the_kernel_equals_the_padded_forward(tiny, architecture):
    folder = tiny(architecture)
    options = {"precision": "bf16", "device": "cuda", "max_length": 48, "attention_dropout": 0.0}
    padded = CrossEncoder.load(folder, **options).eval()
    packed = CrossEncoder.load(folder, attention="packed_varlen", **options).eval()
    exact = CrossEncoder.load(folder, precision="fp32", device="cpu", max_length=48).eval()
    reference = exact(batch_for(exact)).detach()
    for encoder in (padded, packed):
        scores = encoder(batch_for(encoder).to("cuda")).detach().cpu()
        torch.testing.assert_close(scores, reference, atol=5e-2, rtol=5e-2)


def test_replacing_the_mask_is_seen(tiny):
    """The control of the control: the padded forward does look at its mask."""
    padded, _ = both(tiny("bert"))
    batch = batch_for(padded)
    blind = replace(batch, mask=torch.ones_like(batch.mask))
    assert float((padded(batch) - padded(blind)).detach().abs().max()) > 1e-4
