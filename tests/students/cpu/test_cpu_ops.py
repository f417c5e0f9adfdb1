"""The CPU's own operations against torch's: values, gradients, dropout's rate, and weights that are never stale."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from students.cpu import capabilities
from students.cpu import operations as cpu_ops
from students.cpu.operations import FirstTokenAttention, LiveProduct, attention, drop, frozen_product
from students.recipes.read import make_recipe
from students.train.optimiser import make


def linears(*sizes: int, width: int = 24) -> list[nn.Linear]:
    torch.manual_seed(3)
    return [nn.Linear(width, size) for size in sizes]


def inputs(width: int = 24) -> torch.Tensor:
    return torch.randn(5, 7, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["onednn", "plain"])
def products(request, monkeypatch):
    """Both ways to multiply, whichever this torch has."""
    if request.param == "plain":
        monkeypatch.setattr(cpu_ops, "has_onednn", lambda *_: False)
    elif not cpu_ops.has_onednn():
        pytest.skip("this torch has no oneDNN operators")


@pytest.mark.parametrize("gelu", [False, True])
def test_a_frozen_product_is_the_linear_maps_side_by_side(products, gelu):
    maps = linears(8, 16)
    expected = torch.cat([m(inputs()) for m in maps], -1).detach()
    got = frozen_product(maps, torch.float32, gelu=gelu)(inputs())
    torch.testing.assert_close(got, F.gelu(expected) if gelu else expected, atol=1e-6, rtol=1e-5)
    rough = frozen_product(maps, torch.bfloat16, gelu=gelu)(inputs().bfloat16())
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), F.gelu(expected) if gelu else expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("frozen", [(), (0,), (0, 1)])
def test_a_learning_products_gradients_are_torchs(products, frozen):
    maps = linears(8, 16)
    for i in frozen:
        maps[i].requires_grad_(False)
    x = inputs().requires_grad_()
    weight = torch.randn(5, 7, 24, generator=torch.Generator().manual_seed(2))
    parameters = [p for m in maps for p in m.parameters() if p.requires_grad]

    def gradients(outputs: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad((outputs * weight).sum(), [x, *parameters]))

    expected = gradients(torch.cat([m(x) for m in maps], -1))
    got = gradients(LiveProduct(maps, torch.float32)(x))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    product = LiveProduct(maps, torch.bfloat16)
    rough = gradients(product(x.bfloat16()).float())
    for a, b in zip(rough, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, atol=0.15, rtol=0.05)


def stepped(layer: nn.Linear, **options) -> None:
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.5, **options)
    layer(inputs()).sum().backward()
    optimiser.step()


def of_a_stage(layer: nn.Linear) -> None:
    optimiser = make(layer, make_recipe({"lr": 0.5}).stages[0])
    layer(inputs()).sum().backward()
    optimiser.step()


def loaded(layer: nn.Linear) -> None:
    layer.load_state_dict({"weight": torch.zeros(8, 24), "bias": torch.ones(8)})


def behind_autograd(layer: nn.Linear) -> None:
    layer.weight.data.mul_(3)


CHANGES = {
    "a stage's optimiser": of_a_stage,
    "a fused optimiser": lambda layer: stepped(layer, fused=True),
    "an optimiser over lists": lambda layer: stepped(layer, foreach=True),
    "weights that are loaded": loaded,
    "a change behind autograd": behind_autograd,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_refresh_takes_every_change_of_the_weights(products, change, dtype):
    (layer,) = linears(8)
    product = LiveProduct([layer], dtype)
    before = product(inputs())
    change(layer)
    assert torch.equal(product(inputs()), before), "the old weights until it is refreshed"
    product.refresh()
    after = product(inputs())
    expected = F.linear(inputs().to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))
    torch.testing.assert_close(after, expected, atol=1e-5 if dtype == torch.float32 else 0.1, rtol=0.02)
    assert float((after - before).detach().abs().max()) > 0.5


@pytest.mark.parametrize("missing", ["_linear_pointwise", "_reorder_linear_weight"])
def test_a_torch_without_an_operator_takes_the_public_functions(monkeypatch, missing):
    class Operators:
        def __getattr__(self, name):
            if name == missing:
                raise AttributeError(name)
            return getattr(torch.ops.mkldnn, name)

    class Without:
        mkldnn = Operators()

    monkeypatch.setattr(capabilities, "torch", Torch(ops=Without))
    assert not capabilities.has_onednn.__wrapped__()


def _refusing(*_):
    raise RuntimeError("unknown overload")


@pytest.mark.parametrize("wrong", [lambda x, *_: x * 0, lambda *_: torch.zeros(()), _refusing])
def test_an_operator_that_changed_is_not_used(monkeypatch, wrong):
    class Operators:
        _linear_pointwise = staticmethod(wrong)
        _reorder_linear_weight = staticmethod(lambda weight, rows: weight)

    class Changed:
        mkldnn = Operators()

    monkeypatch.setattr(capabilities, "torch", Torch(ops=Changed))
    assert not capabilities.has_onednn.__wrapped__()


class Torch:
    """torch with other operators."""

    def __init__(self, ops):
        self.ops = ops

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [9, 1])
def test_attention_is_sdpa(dtype, masked, rows):
    generator = torch.Generator().manual_seed(4)
    packed = torch.randn(3, 9, 3, 2, 8, generator=generator)
    mask = torch.arange(9)[None, :] < torch.tensor([9, 4, 6])[:, None] if masked else None
    mask = None if mask is None else mask[:, None, None, :]
    weight = torch.randn(3, 2, rows, 8, generator=generator)

    def both(of, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = given.clone().requires_grad_()
        q, k, v = leaf.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = of(q[:, :, :rows], k, v, mask)
        (mixed.float() * weight).sum().backward()
        return mixed.detach().float(), leaf.grad.float()

    expected = both(F.scaled_dot_product_attention, packed)
    got = both(attention, packed.to(dtype))
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
    if masked:
        blind = both(lambda q, k, v, _: attention(q, k, v, None), packed.to(dtype))
        assert float((blind[0] - got[0]).abs().max()) > 0.1


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [1, 9])
def test_scores_in_bf16_attend_alike_with_amx_and_without(monkeypatch, amx, masked, rows):
    monkeypatch.setattr(cpu_ops, "cpu_capabilities", lambda: {"amx_bf16": amx})
    taken = []
    theirs = F.scaled_dot_product_attention

    def counted(*given, **options):
        taken.append(1)
        return theirs(*given, **options)

    q, k, v = torch.randn(3, 3, 2, 9, 8, generator=torch.Generator().manual_seed(6)).unbind(0)
    mask = torch.arange(9)[None, :] < torch.tensor([9, 4, 6])[:, None] if masked else None
    mask = None if mask is None else mask[:, None, None, :]
    expected = theirs(q[:, :, :rows], k, v, attn_mask=mask)
    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    with torch.inference_mode():
        got = attention(q[:, :, :rows].bfloat16(), k.bfloat16(), v.bfloat16(), mask)
    torch.testing.assert_close(got.float(), expected, atol=0.03, rtol=0.03)
    assert bool(taken) == amx
    with torch.no_grad():  # as gradient caching scores its pieces: the same way as with gradients
        attention(q[:, :, :rows].bfloat16(), k.bfloat16(), v.bfloat16(), mask)
    assert len(taken) == amx


@pytest.mark.parametrize("shift", [0.0, 30.0, -30.0, 2000.0, -2000.0])
def test_scores_in_bf16_attend_alike_however_large_they_are(monkeypatch, shift):
    """Far from 0 an exponential is infinite or 0, and the softmax, which takes the largest score off, must step in."""
    monkeypatch.setattr(cpu_ops, "cpu_capabilities", lambda: {"amx_bf16": False})
    q, k, v = torch.randn(3, 2, 2, 7, 16, generator=torch.Generator().manual_seed(8)).bfloat16().unbind(0)
    q[..., 0], k[..., 0] = 4.0, shift  # adds the same to every score, which attention does not see
    mask = (torch.arange(7) < torch.tensor([[7], [5]]))[:, None, None, :]
    with torch.no_grad():
        softmaxs = attention(q, k, v, mask)  # not in inference mode
    again = softmaxs_calls(monkeypatch)
    with torch.inference_mode():
        got = attention(q, k, v, mask)
    assert again == ([] if abs(shift) < 100 else [4])
    # scores of 30 are an eighth apart in bf16, and scaled by another number they are rounded otherwise
    torch.testing.assert_close(got, softmaxs, atol=0.03 if shift == 0 else 0.15, rtol=0.03)
    assert float(got.float().std()) > 0.1


def softmaxs_calls(monkeypatch):
    """How many heads' attention each call of the softmax's way is given, from now on."""
    calls, by_softmax = [], cpu_ops._by_softmax

    def counted(q, *given):
        calls.append(len(q))
        return by_softmax(q, *given)

    monkeypatch.setattr(cpu_ops, "_by_softmax", counted)
    return calls


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("at_once", [1, 300, 1 << 20])
def test_a_head_with_large_scores_changes_no_other(monkeypatch, masked, at_once):
    monkeypatch.setattr(cpu_ops, "cpu_capabilities", lambda: {"amx_bf16": False})
    monkeypatch.setattr(cpu_ops, "_SCORES_AT_ONCE", at_once)  # one pair, three and all five
    q, k, v = torch.randn(3, 5, 2, 7, 16, generator=torch.Generator().manual_seed(8)).bfloat16().unbind(0)
    mask = (torch.arange(7) < torch.tensor([7, 5, 6, 3, 7])[:, None])[:, None, None, :] if masked else None
    again = softmaxs_calls(monkeypatch)
    with torch.inference_mode():
        without = attention(q, k, v, mask)
        assert not again
        q[2, 1] *= 300
        got = attention(q, k, v, mask)
    assert again == [1]
    changed = torch.zeros(5, 2, dtype=torch.bool)
    changed[2, 1] = True
    assert torch.equal(got[~changed], without[~changed])
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
    torch.testing.assert_close(got[2, 1].float(), expected[2, 1], atol=0.03, rtol=0.03)


@pytest.mark.parametrize("masked", [False, True])
def test_a_first_token_attends_without_keys_and_values(masked):
    generator = torch.Generator().manual_seed(9)
    query, key, value = (torch.nn.Linear(24, 24) for _ in range(3))
    x = torch.randn(3, 9, 24, generator=generator)
    mask = torch.arange(9)[None, :] < torch.tensor([9, 4, 6])[:, None] if masked else None
    mask = None if mask is None else mask[:, None, None, :]
    with torch.inference_mode():
        q, k, v = (linear(x).view(3, 9, 4, 6).transpose(1, 2) for linear in (query, key, value))
        expected = F.scaled_dot_product_attention(q[:, :, :1], k, v, attn_mask=mask)
        attend = FirstTokenAttention(query, key, value, heads=4)
    for linear in (query, key, value):  # it keeps the weights that it was made of
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    with torch.inference_mode():
        got = attend(x, mask)
    torch.testing.assert_close(got, expected.transpose(1, 2).reshape(3, 1, 24), atol=1e-6, rtol=1e-5)


def test_attention_without_dropout_equals_the_explicit_products():
    """fp32 takes SDPA without dropout and the explicit way with it: a dropout that drops nothing must not differ."""
    q, k, v = torch.randn(3, 2, 2, 5, 8, generator=torch.Generator().manual_seed(5)).unbind(0)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])[:, None, None, :]
    torch.testing.assert_close(attention(q, k, v, mask, 1e-9), attention(q, k, v, mask), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_has_its_rate_keeps_the_mean_and_masks_the_gradient(dtype, p):
    torch.manual_seed(0)
    x = torch.ones(500, 401, dtype=dtype).requires_grad_()
    y = drop(x, p)
    kept = y != 0
    share = float(kept.double().mean())
    deviation = (p * (1 - p) / x.numel()) ** 0.5
    assert abs(share - (1 - p)) < 5 * deviation
    assert torch.allclose(y[kept].double(), torch.tensor(1 / (1 - p), dtype=torch.float64), rtol=0.005)
    by_row = kept.double().mean(1)
    assert float(by_row.std()) == pytest.approx((p * (1 - p) / 401) ** 0.5, rel=0.2), "rows are independent"
    y.backward(torch.full_like(y, 2.0))
    assert torch.equal(x.grad != 0, kept)
    assert torch.allclose(x.grad[kept].double(), torch.tensor(2 / (1 - p), dtype=torch.float64), rtol=0.01)


def test_dropout_follows_the_generator_and_clears_what_is_no_number():
    x = torch.full((1000,), float("nan"))
    state = torch.get_rng_state()
    first, second = drop(x, 0.5), drop(x, 0.5)
    torch.set_rng_state(state)
    assert torch.equal(first.isnan(), drop(x, 0.5).isnan())
    assert not torch.equal(first.isnan(), second.isnan())
    assert set(first[~first.isnan()].tolist()) == {0.0}
    assert drop(x, 0.0) is x


@pytest.mark.parametrize("rows", [1, 16, 17, 128, 130, 1024, 1100])
def test_a_product_of_few_sizes_is_the_same_product(products, rows):
    maps, seen = linears(8, 16), []
    whole = frozen_product(maps, torch.float32, gelu=True)
    x = torch.randn(rows, 1, 24, generator=torch.Generator().manual_seed(1))
    got = cpu_ops.of_few_sizes(lambda y: (seen.append(y.shape[1]), whole(y))[1])(x)
    torch.testing.assert_close(got, whole(x), atol=1e-6, rtol=1e-5)
    assert seen == [{1: 16, 16: 16, 17: 32, 128: 128, 130: 192, 1024: 1024, 1100: 1152}[rows]]


def test_few_sizes_come_of_many(products):
    seen: set[int] = set()
    product = cpu_ops.of_few_sizes(lambda y: (seen.add(y.shape[1]), y)[1])
    for rows in range(1, 2049):
        assert product(torch.ones(rows, 3)).shape == (rows, 3)
    assert len(seen) < 35
