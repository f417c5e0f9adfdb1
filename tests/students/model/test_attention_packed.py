"""Packed rows equal the padded forward; and what would break that is seen to break it."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_models
import torch
from torch.utils.flop_counter import FlopCounterMode

from students.errors import StudentError
from students.model import packed_attention as attention
from students.model.encoder import CrossEncoder
from students.recipes.read import make_recipe
from students.text.batches import collate
from students.train.run import choose_layout

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


def kernel(takes_dropout):
    """A stand-in for a kernel, with PyTorch's arguments or flash-attn's, that computes what the loop does."""
    called = []

    def attend(q, k, v, cu_q, cu_k, max_q, max_k, dropout, scale, window):
        assert (max_q, max_k) == tuple(int((cu[1:] - cu[:-1]).max()) for cu in (cu_q, cu_k))
        called.append(dropout)
        segments = attention._Segments(cu_q, cu_k, max_q, max_k)
        return attention._loop(q, k, v, segments, 0.0, scale, window)

    def torchs(*at, scale=None, window_size=(-1, -1)):
        return attend(*at, 0.0, scale, window_size)

    def flash(*at, dropout_p=0.0, softmax_scale=None, window_size=(-1, -1)):
        return attend(*at, dropout_p, softmax_scale, window_size)

    return (flash if takes_dropout else torchs), called


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_kernels_get_what_the_loop_gets(tiny, architecture, monkeypatch):
    _, packed = both(tiny(architecture))
    batch = batch_for(packed)
    expected = packed(batch).detach()
    torchs, flash = kernel(takes_dropout=False), kernel(takes_dropout=True)
    monkeypatch.setattr(attention, "_attend", lambda *args: attention._kernel(*[*args, None, (-1, -1)][:7]))
    for own, other in ((torchs, flash), (None, flash)):
        monkeypatch.setattr(attention, "_TORCH_VARLEN", own and own[0])
        monkeypatch.setattr(attention, "_FLASH_ATTN", other[0])
        torch.testing.assert_close(packed(batch).detach(), expected)
    n = packed.model.config.num_hidden_layers
    assert (torchs[1], flash[1]) == ([0.0] * n, [0.0] * n)


def test_dropout_is_flash_attns_or_an_error(tiny, monkeypatch):
    _, packed = both(tiny("bert"))
    batch = batch_for(packed)
    torchs, flash = kernel(takes_dropout=False), kernel(takes_dropout=True)
    monkeypatch.setattr(attention, "_attend", lambda *args: attention._kernel(*[*args, None, (-1, -1)][:7]))
    monkeypatch.setattr(attention, "_TORCH_VARLEN", torchs[0])
    monkeypatch.setattr(attention, "_FLASH_ATTN", flash[0])
    packed.train()
    packed(batch)
    assert set(flash[1]) == {0.1}
    assert torchs[1] == []
    monkeypatch.setattr(attention, "_FLASH_ATTN", None)
    with pytest.raises(StudentError, match=r"attention dropout \(0\.1 is set") as error:
        packed(batch)
    assert "flash-attn" in (error.value.hint or "")
    packed.eval()
    packed(batch)
    monkeypatch.setattr(attention, "_TORCH_VARLEN", None)
    with pytest.raises(StudentError, match="no kernel") as error:
        packed(batch)
    assert "layout = 'padded'" in (error.value.hint or "")


@pytest.mark.parametrize(
    ("kernels", "settings", "expected"),
    [
        ("torch", {}, (True, 0.0)),
        ("torch", {"attention_dropout": 0.1}, (False, 0.1)),
        ("torch", {"layout": "padded"}, (False, None)),
        ("torch flash", {}, (True, None)),
        ("flash", {"attention_dropout": 0.1}, (True, 0.1)),
        ("", {}, (False, None)),
        ("", {"layout": "packed"}, "no kernel"),
        ("torch", {"layout": "packed", "attention_dropout": 0.1}, "attention dropout"),
    ],
)
def test_what_a_gpu_packs(monkeypatch, kernels, settings, expected):
    for name, word in (("_TORCH_VARLEN", "torch"), ("_FLASH_ATTN", "flash")):
        monkeypatch.setattr(attention, name, object() if word in kernels.split() else None)
    recipe = make_recipe(settings)
    if isinstance(expected, str):
        with pytest.raises(StudentError, match=expected) as error:
            choose_layout(recipe, "electra", "cuda", "bf16")
        assert error.value.exit_code == 2
    else:
        assert choose_layout(recipe, "electra", "cuda", "bf16") == expected
    if "layout" not in settings:
        assert choose_layout(recipe, "electra", "cuda", "fp32")[0] is False
        assert choose_layout(recipe, "deberta-v2", "cuda", "bf16")[0] is False
        assert choose_layout(recipe, "electra", "cpu", "bf16")[0] is False


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
