"""Losses: closed forms by plain loops, gradients by finite differences, and what must never depend on padding or order."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from students.errors import StudentError
from students.losses import LOSSES, ListLoss, Targets, check_pairing, get, normaliser, reduce, total

NAMES = sorted(LOSSES)
POINTWISE = ("bce", "mse")  # a single passage has a term


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def logsumexp(values):
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def mean_ranks(y):
    return [1 + sum(b > a for b in y) + (sum(b == a for b in y) - 1) / 2 for a in y]


def by_loops(name, s, y, t, w):
    """(sum of terms, count) of one list, written from the formulas with loops; None where there is no term."""
    n = len(s)
    pairs = [(i, j) for i in range(n) for j in range(n) if y[i] > y[j]]
    rank = mean_ranks(y)
    if name == "cmnrl":
        return by_loops("lce", [10 * sigmoid(x) for x in s], y, t, w)
    if name == "lce":
        positive = [i for i in range(n) if y[i] > 0]
        if not positive or len(positive) == n:
            return None
        every = logsumexp([s[i] if i in positive else s[i] + math.log(w[i]) for i in range(n)])
        return sum(every - s[i] for i in positive) / len(positive), 1
    if name == "bce":
        return sum(w[i] * softplus(-s[i] if y[i] > 0 else s[i]) for i in range(n)), sum(w)
    if name == "mse":
        return sum(w[i] * (s[i] - t[i]) ** 2 for i in range(n)), sum(w)
    if not pairs:
        return None
    if name in ("ranknet", "weighted_ranknet", "margin_mse", "hinge"):
        value = count = 0.0
        for i, j in pairs:
            weight = w[i] * w[j] / (rank[i] + rank[j] if name == "weighted_ranknet" else 1)
            term = {
                "margin_mse": ((s[i] - s[j]) - (t[i] - t[j])) ** 2,
                "hinge": max(0.0, 1 - (s[i] - s[j])),
            }.get(name, softplus(-(s[i] - s[j])))
            value, count = value + weight * term, count + weight
        return value, count
    if name in ("listmle", "p_listmle"):
        order = sorted(range(n), key=lambda i: -y[i])  # ties as listed: the default tiebreak
        value = count = 0.0
        for place, i in enumerate(order, 1):
            weight = 1 / math.log2(place + 1) if name == "p_listmle" else 1.0
            value -= weight * (s[i] - logsumexp([s[k] for k in order[place - 1 :]]))
            count += weight
        return value, count
    if name == "kl":
        p = [x - logsumexp(t) for x in t]
        q = [x - logsumexp(s) for x in s]
        return sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)), 1
    if name == "adr_mse":
        soft = [1 + sum(sigmoid(s[j] - s[i]) for j in range(n) if j != i) for i in range(n)]
        return sum((rank[i] - soft[i]) ** 2 / math.log2(rank[i] + 1) for i in range(n)), n
    if name == "approx_ndcg":
        ideal = sum((2**g - 1) / math.log2(1 + k) for k, g in enumerate(sorted(y, reverse=True), 1))
        soft = [1 + sum(sigmoid(s[j] - s[i]) for j in range(n) if j != i) for i in range(n)]
        return 1 - sum((2**g - 1) / ideal / math.log2(1 + r) for g, r in zip(y, soft, strict=True)), 1
    if name in ("lambda", "lambdarank", "ndcg_loss1", "ndcg_loss2"):
        ideal = sum((2**g - 1) / math.log2(1 + k) for k, g in enumerate(sorted(y, reverse=True), 1))
        gain = [(2**g - 1) / ideal for g in y]
        place = [0] * n
        for k, i in enumerate(sorted(range(n), key=lambda i: -s[i]), 1):
            place[i] = k
        value = 0.0
        if name == "ndcg_loss1":
            for i in range(n):
                for j in set(range(n)) - {i}:
                    weight = gain[i] / math.log2(1 + place[i]) * w[i] * w[j]
                    value += weight * softplus(-(s[i] - s[j])) / math.log(2)
            return value, n * (n - 1)
        near, far = {"lambda": (10, 1), "lambdarank": (0, 1), "ndcg_loss2": (1, 0)}[name]
        for i, j in pairs:
            d = abs(place[i] - place[j])
            apart = abs(1 / math.log2(1 + d) - 1 / math.log2(2 + d))
            swap = abs(1 / math.log2(1 + place[i]) - 1 / math.log2(1 + place[j]))
            weight = (near * apart + far * swap) * abs(gain[i] - gain[j]) * w[i] * w[j]
            value += weight * softplus(-(s[i] - s[j])) / math.log(2)
        return value, len(pairs)
    raise AssertionError(name)


LISTS = [  # scores, labels, teacher scores, weights
    ([0.3, -1.2, 2.0, 0.7], [0, 1, 0, 0], [0.1, 3.0, -0.5, 0.2], [1.0, 1.0, 0.5, 1.0]),
    ([1.5, 0.2, -0.4], [2, 2, 0], [0.9, 0.4, -2.0], [1.0, 1.0, 1.0]),
    ([0.5], [1], [2.0], [1.0]),
    ([-0.5, 0.9], [0, 0], [2.0, 2.0], [1.0, 1.0]),
    ([5.0, 1.0, -3.0, 0.25, 0.5], [3, 0, 4, 1, 1], [1.5, -1.0, 2.5, 0.0, 0.5], [1.0] * 5),
]


def batch(rows=LISTS, extra=0, junk=1e4, dtype=torch.float64):
    """Rows padded to the longest plus ``extra``; the padding holds junk that must not matter."""
    n = max(len(s) for s, *_ in rows) + extra

    def column(k, fill):
        return torch.tensor(
            [list(map(float, row[k])) + [fill] * (n - len(row[k])) for row in rows], dtype=dtype
        )

    mask = torch.tensor([[True] * len(s) + [False] * (n - len(s)) for s, *_ in rows])
    targets = Targets.of(column(1, 7.0), mask, column(2, junk), column(3, 3.0))
    return column(0, junk), targets


@pytest.mark.parametrize("name", NAMES)
def test_closed_form(name):
    scores, targets = batch()
    sums, counts = get(name)(scores, targets)
    for i, (s, y, t, w) in enumerate(LISTS):
        expected = by_loops(name, s, y, t, w)
        if name == "kl" and expected is None and len(s) > 1:  # scores order a list whose labels are tied
            p, q = [x - logsumexp(t) for x in t], [x - logsumexp(s) for x in s]
            expected = sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)), 1
        if expected is None or (len(s) == 1 and name not in POINTWISE):
            assert float(counts[i]) == 0
            assert float(sums[i]) == 0
        else:
            assert float(sums[i]) == pytest.approx(expected[0], rel=1e-9, abs=1e-9)
            assert float(counts[i]) == pytest.approx(expected[1], rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_finite_differences(name):
    scores, targets = batch()
    loss = get(name)

    def value(s):
        return reduce(loss(s, targets), "list")

    assert torch.autograd.gradcheck(value, (scores.clone().requires_grad_(),), eps=1e-6, atol=1e-6)
    leaf = scores.clone().requires_grad_()
    value(leaf).backward()
    assert float(leaf.grad.abs().max()) > 1e-3
    assert torch.equal(leaf.grad[~targets.mask], torch.zeros_like(leaf.grad[~targets.mask]))


@pytest.mark.parametrize("reduction", ["list", "pair", "batch"])
@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name, reduction):
    loss = get(name)
    tight = reduce(loss(*batch()), reduction)
    for junk in (1e4, -1e4, 0.0, float("inf"), float("nan")):
        assert torch.allclose(reduce(loss(*batch(extra=4, junk=junk)), reduction), tight, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NAMES), st.permutations(range(5)))
def test_the_order_of_passages_changes_nothing(name, order):
    """Without ties: ListMLE's shuffled ties are by design a matter of the tiebreak."""
    s, y, t, w = [5.0, 1.0, -3.0, 0.25, 0.5], [3, 0, 4, 1, 2], [1.5, -1.0, 2.5, 0.0, 0.5], [1, 1, 0.5, 1, 1]
    plain = get(name)(*batch([(s, y, t, w)]))
    moved = get(name)(*batch([tuple([row[i] for i in order] for row in (s, y, t, w))]))
    assert torch.allclose(plain.sums, moved.sums)
    assert torch.allclose(plain.counts, moved.counts)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_in_pieces_is_the_batch(name):
    scores, targets = batch()
    loss = get(name)
    for reduction in ("list", "pair", "batch"):
        whole = reduce(loss(scores, targets), reduction)
        parts = [loss(*batch([row])) for row in LISTS]
        numerator = sum(total(part, reduction) for part in parts)
        denominator = sum(normaliser(part.counts, reduction) for part in parts)
        assert torch.allclose(numerator / denominator, whole)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ["ties", "single", "extreme", "no_positive", "empty"])
def test_no_nan_at_the_edges(name, case):
    rows = {
        "ties": [([1.0, 1.0, 1.0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 1, 1])],
        "single": [([3.0], [1], [1.0], [1])],
        "extreme": [([1e4, -1e4, 3e4, 0.0], [0, 1, 0, 0], [9e3, -9e3, 0.0, 1.0], [1, 1, 1, 1])],
        "no_positive": [([1.0, 2.0], [0, 0], [0.0, 0.0], [1, 1])],
        "empty": [([], [], [], []), ([1.0, 0.0], [1, 0], [1.0, 0.0], [1, 1])],
    }[case]
    scores, targets = batch(rows, extra=1, dtype=torch.float32)
    leaf = scores.requires_grad_()
    loss = get(name)(leaf, targets)
    value = reduce(loss, "list")
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(leaf.grad).all()
    if (
        case in ("single", "no_positive")
        and name not in POINTWISE
        and not (name == "kl" and case == "no_positive")
    ):
        assert float(value) == 0
        assert float(loss.counts.sum()) == 0


def test_scores_in_bf16_are_computed_with_in_fp32():
    scores, targets = batch(dtype=torch.float32)
    rough = scores.clamp(-10, 10).bfloat16()
    for name in NAMES:
        assert torch.equal(get(name)(rough, targets).sums, get(name)(rough.float(), targets).sums)


def test_long_lists_do_not_overflow():
    n = 200
    y = torch.arange(n, 0, -1).float()[None]
    for name in NAMES:
        scores = torch.randn(1, n, generator=torch.Generator().manual_seed(1)).requires_grad_()
        reduce(get(name)(scores, Targets.of(y, scores=y)), "batch").backward()
        assert torch.isfinite(scores.grad).all(), name


def test_every_loss_prefers_the_right_order():
    """Descending along the gradient must bring the scores into the labels' order."""
    y = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    for name in set(NAMES) - {"lce", "cmnrl", "bce"}:
        scores = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).requires_grad_()
        optimiser = torch.optim.Adam([scores], lr=0.1)
        for _ in range(200):
            optimiser.zero_grad()
            reduce(get(name)(scores, Targets.of(y, scores=y)), "list").backward()
            optimiser.step()
        assert scores.argsort().tolist() == [[0, 1, 2, 3]], name


def test_ties_are_shuffled_by_the_tiebreak_alone():
    y = torch.tensor([[1.0, 1.0, 0.0]])
    one = Targets.of(y, tiebreak=torch.tensor([[0, 1, 2]])).places
    two = Targets.of(y, tiebreak=torch.tensor([[5, 1, 0]])).places
    assert one.tolist() == [[1, 2, 3]]
    assert two.tolist() == [[2, 1, 3]]


def test_mean_ranks_of_ties():
    y = torch.tensor([[2.0, 5.0, 2.0, 0.0]])
    assert Targets.of(y).ranks().tolist() == [[2.5, 1.0, 2.5, 4.0]]


def test_kl_of_permutations_uses_log_discounts():
    s, y = torch.tensor([[0.2, -0.1, 0.4]]), torch.tensor([[3.0, 2.0, 1.0]])
    t = -torch.log2(1 + torch.tensor([[1.0, 2.0, 3.0]]))
    assert torch.allclose(get("kl")(s, Targets.of(y)).sums, get("kl")(s, Targets.of(y, scores=t)).sums)


def test_down_weighted_negatives_count_less():
    y = torch.tensor([[1.0, 0.0, 0.0]])
    s = torch.tensor([[0.0, 0.5, 0.5]])
    half = Targets.of(y, weights=torch.tensor([[1.0, 1.0, 0.5]]))
    assert float(get("lce")(s, half).sums) < float(get("lce")(s, Targets.of(y)).sums)
    gone = Targets.of(y, weights=torch.tensor([[1.0, 1.0, 0.0]]))
    alone = Targets.of(y[:, :2])
    assert torch.allclose(get("lce")(s, gone).sums, get("lce")(s[:, :2], alone).sums)
    assert torch.allclose(get("ranknet")(s, gone).sums, get("ranknet")(s[:, :2], alone).sums)


@pytest.mark.parametrize(
    ("name", "kind", "has_scores", "fits"),
    [
        ("margin_mse", "distillation", False, False),
        ("margin_mse", "distillation", True, True),
        ("margin_mse", "contrastive", False, False),
        ("lce", "distillation", True, False),
        ("bce", "distillation", False, False),
        ("lce", "contrastive", False, True),
        ("ranknet", "contrastive", False, True),
        ("ranknet", "distillation", False, True),
        ("adr_mse", "distillation", False, True),
    ],
)
def test_pairings(name, kind, has_scores, fits):
    if fits:
        check_pairing(get(name), kind=kind, has_scores=has_scores, where="v")
        return
    with pytest.raises(StudentError, match=f"{name} needs .*, and v holds") as caught:
        check_pairing(get(name), kind=kind, has_scores=has_scores, where="v")
    assert caught.value.exit_code == 2
    assert name not in (caught.value.hint or "")


def test_an_unknown_loss_is_named():
    with pytest.raises(StudentError, match="unknown loss 'lse'"):
        get("lse")


def test_reductions_differ_as_they_say():
    loss = ListLoss(torch.tensor([6.0, 1.0, 5.0]), torch.tensor([3.0, 1.0, 0.0]))
    assert float(reduce(loss, "list")) == pytest.approx((2 + 1) / 2)
    assert float(reduce(loss, "pair")) == pytest.approx(7 / 4)
    assert float(reduce(loss, "batch")) == pytest.approx(7 / 2)
    assert float(reduce(ListLoss(torch.zeros(2), torch.zeros(2)), "list")) == 0
