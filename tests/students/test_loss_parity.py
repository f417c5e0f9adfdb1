"""Losses against the peers': equal values and gradients where those are right; where they are not, that is shown."""

import math
from types import SimpleNamespace

import pytest
import torch

from students.losses import Targets, get, reduce

lightning = pytest.importorskip("lightning_ir")
peers = pytest.importorskip("sentence_transformers.cross_encoder.losses")

SCORES = [[0.3, -1.2, 2.0, 0.7], [1.5, 0.2, -0.4, 0.1], [-0.6, 0.8, 0.5, 1.9]]
GRADES = [[3, 0, 2, 1], [0, 3, 1, 2], [2, 1, 3, 0]]
TEACHER = [[1.5, -0.7, 0.9, 0.2], [-1.0, 2.0, 0.1, 0.7], [0.8, 0.3, 1.1, -2.0]]
RAGGED = [[3, 0, 2, 1], [0, 3, 1], [2, 2, 0, 1]]


class Scored(torch.nn.Module):
    """What sentence-transformers' losses take for a model: it knows the scores of pairs that are numbers already."""

    num_labels = 1
    device = torch.device("cpu")

    def __init__(self, scores: list[list[float]]) -> None:
        super().__init__()
        self.leaves = torch.tensor([s for row in scores for s in row], requires_grad=True)

    def preprocess(self, pairs, **_):
        return {"index": torch.tensor([int(document) for _, document in pairs])}

    def forward(self, tokens):
        return {"scores": self.leaves[tokens["index"]]}


def theirs(make, scores, labels) -> tuple[float, list[float]]:
    """Value and gradient of one of sentence-transformers' listwise losses."""
    model = Scored(scores)
    numbers = iter(range(len(model.leaves)))
    documents = [[str(next(numbers)) for _ in row] for row in scores]
    inputs = [[f"q{i}" for i in range(len(scores))], documents]
    loss = make(model)(inputs, [torch.tensor(row, dtype=torch.float32) for row in labels])
    loss.backward()
    return loss.item(), model.leaves.grad.tolist()


class ScoredByQuery(Scored):
    """The same for losses that pair each query with other lists' passages."""

    def preprocess(self, pairs, **_):
        return {"index": torch.tensor([[int(query) * 6 + int(document)] for query, document in pairs])}


@pytest.mark.parametrize(("columns", "scale"), [(1, 10.0), (2, 10.0), (2, 3.0)])
def test_cmnrl_with_all_in_batch_negatives(monkeypatch, columns, scale):
    monkeypatch.setattr(f"{peers.__name__}.multiple_negatives_ranking.CrossEncoder", Scored)
    n, generator = 6 // columns, torch.Generator().manual_seed(3)
    scores = torch.randn(n, 6, generator=generator) * 2  # of query i and document j
    model = ScoredByQuery(scores.tolist())
    numbers = [[str(k * n + i) for i in range(n)] for k in range(columns)]  # positives, then hard negatives
    loss = peers.MultipleNegativesRankingLoss(model, num_negatives=None, scale=scale)
    value = loss([[str(i) for i in range(n)], *numbers], None)
    value.backward()
    leaf = scores.clone().requires_grad_()
    labels = torch.tensor([[float(j == i) for j in range(6)] for i in range(n)])
    own = reduce(get("cmnrl")(leaf, Targets.of(labels), scale=scale), "list")
    own.backward()
    assert own.item() == pytest.approx(value.item(), rel=1e-5)
    assert leaf.grad.flatten().tolist() == pytest.approx(model.leaves.grad.tolist(), abs=1e-6)


def of_lightning(loss, scores, targets) -> tuple[float, list[float]]:
    leaf = torch.tensor(scores, requires_grad=True)
    value = loss.compute_loss(SimpleNamespace(scores=leaf), SimpleNamespace(targets=torch.tensor(targets)))
    value.backward()
    return value.item(), leaf.grad.flatten().tolist()


def ours(name, scores, labels, teacher=None, *, reduction="pair", **parameters) -> tuple[float, list[float]]:
    n = max(map(len, scores))

    def matrix(rows, fill=0.0):
        return torch.tensor([[float(v) for v in row] + [fill] * (n - len(row)) for row in rows])

    mask = torch.tensor([[True] * len(row) + [False] * (n - len(row)) for row in scores])
    targets = Targets.of(matrix(labels), mask, None if teacher is None else matrix(teacher))
    leaf = matrix(scores).requires_grad_()
    value = reduce(get(name)(leaf, targets, **parameters), reduction)
    value.backward()
    return value.item(), leaf.grad[mask].tolist()


def same(a: tuple[float, list[float]], b: tuple[float, list[float]], factor: float = 1.0) -> None:
    assert a[0] * factor == pytest.approx(b[0], rel=1e-5)
    assert [g * factor for g in a[1]] == pytest.approx(b[1], rel=1e-4, abs=1e-6)
    assert max(map(abs, b[1])) > 1e-3


RAGGED_SCORES = [SCORES[0], SCORES[1][:3], SCORES[2]]


# ------------------------------------------------------------------------------------ sentence-transformers
def test_ranknet_is_sentence_transformers_in_another_base():
    same(
        ours("ranknet", RAGGED_SCORES, RAGGED),
        theirs(peers.RankNetLoss, RAGGED_SCORES, RAGGED),
        1 / math.log(2),
    )


def test_lambda_is_sentence_transformers():
    same(ours("lambda", RAGGED_SCORES, RAGGED), theirs(peers.LambdaLoss, RAGGED_SCORES, RAGGED))


@pytest.mark.parametrize(
    ("name", "scheme"), [("lambdarank", "LambdaRankScheme"), ("ndcg_loss2", "NDCGLoss2Scheme")]
)
def test_the_weighings_of_lambda_loss_are_sentence_transformers(name, scheme):
    from sentence_transformers.cross_encoder.losses import lambda_loss as schemes

    def make(model):
        return peers.LambdaLoss(model, weighting_scheme=getattr(schemes, scheme)())

    same(ours(name, RAGGED_SCORES, RAGGED), theirs(make, RAGGED_SCORES, RAGGED))


def test_ndcg_loss1_is_sentence_transformers_but_for_pairs_of_a_passage_with_itself():
    """There each passage is paired with itself too, at one bit: a constant, and n more terms in the mean."""
    from sentence_transformers.cross_encoder.losses.lambda_loss import NDCGLoss1Scheme

    def make(model):
        return peers.LambdaLoss(model, weighting_scheme=NDCGLoss1Scheme())

    value, gradient = ours("ndcg_loss1", SCORES, GRADES)
    their_value, their_gradient = theirs(make, SCORES, GRADES)
    n_pairs, n_all = 3 * 4 * 3, 3 * 4 * 4
    assert [g * n_pairs / n_all for g in gradient] == pytest.approx(their_gradient, rel=1e-4, abs=1e-6)
    itself = 0.0
    for scores, grades in zip(SCORES, GRADES, strict=True):
        ideal = sum((2**g - 1) / math.log2(1 + k) for k, g in enumerate(sorted(grades, reverse=True), 1))
        order = sorted(range(4), key=lambda i: -scores[i])
        itself += sum((2 ** grades[i] - 1) / ideal / math.log2(1 + k) for k, i in enumerate(order, 1))
    assert (value * n_pairs + itself) / n_all == pytest.approx(their_value, rel=1e-5)


def test_mse_is_torchs_which_sentence_transformers_takes():
    leaf = torch.tensor(SCORES, requires_grad=True)
    value = torch.nn.MSELoss()(leaf, torch.tensor(TEACHER))
    value.backward()
    same(ours("mse", SCORES, GRADES, TEACHER), (value.item(), leaf.grad.flatten().tolist()))


def test_adr_mse_is_sentence_transformers_ties_included():
    same(ours("adr_mse", RAGGED_SCORES, RAGGED), theirs(peers.ADRMSELoss, RAGGED_SCORES, RAGGED))


def test_listmle_is_sentence_transformers_without_ties():
    graded = [[3, 0, 2, 1], [0, 3, 1], [2, 3, 0, 1]]

    def make(model):
        return peers.ListMLELoss(model, respect_input_order=False)

    value, gradient = ours("listmle", RAGGED_SCORES, graded, reduction="batch")
    same((value, gradient), theirs(make, RAGGED_SCORES, graded))


def test_kl_is_sentence_transformers_listnet_but_for_the_teachers_entropy():
    value, gradient = ours("kl", SCORES, GRADES, TEACHER, reduction="list")
    their_value, their_gradient = theirs(peers.ListNetLoss, SCORES, TEACHER)
    p = torch.tensor(TEACHER).softmax(1)
    entropy = float(-(p * p.log()).sum(1).mean())
    same((value + entropy, gradient), (their_value, their_gradient))


def test_bce_is_torchs_with_a_positive_weight():
    leaf = torch.tensor(SCORES, requires_grad=True)
    labels = [[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    value = torch.nn.functional.binary_cross_entropy_with_logits(
        leaf, torch.tensor(labels).float(), pos_weight=torch.tensor(3.0), reduction="sum"
    )
    value.backward()
    total = 3 * 3 + 9  # weights: three positives count three times
    same(
        ours("bce", SCORES, labels, positive_weight=3.0),
        (value.item() / total, (leaf.grad / total).flatten().tolist()),
    )


def test_sentence_transformers_lambda_is_no_number_on_list_positions():
    """Labels of a teacher's list of 200 are its positions, and 2^200 is beyond fp32."""
    scores, positions = [[i / 100 for i in range(200)]], [list(range(200, 0, -1))]
    value, _ = theirs(peers.LambdaLoss, scores, positions)
    assert not math.isfinite(value)
    value, gradient = ours("lambda", scores, positions)
    assert math.isfinite(value)
    assert max(map(abs, gradient)) > 1e-6


def test_p_listmle_is_sentence_transformers_with_our_weights():
    graded = [[3, 0, 2, 1], [0, 3, 1], [2, 3, 0, 1]]

    def weights(mask):
        return mask / torch.log2(mask.cumsum(1) + 1.0)

    def make(model):
        weight = peers.PListMLELambdaWeight(rank_discount_fn=weights)
        return peers.PListMLELoss(model, lambda_weight=weight, respect_input_order=False)

    same(ours("p_listmle", RAGGED_SCORES, graded, reduction="list"), theirs(make, RAGGED_SCORES, graded))


def test_sentence_transformers_p_listmle_learns_nothing_of_the_lower_half():
    """Its own weights, 2^(n−i) − 1, halve with each place: places 50 and 100 of a list of 100 are one and the same."""
    scores, positions = [[0.0] * 100], [list(range(100, 0, -1))]
    _, gradient = theirs(peers.PListMLELoss, scores, positions)
    assert gradient[49] == pytest.approx(gradient[99], rel=1e-6)
    _, gradient = ours("p_listmle", scores, positions, reduction="list")
    assert gradient[99] - gradient[49] > 1e-3


# --------------------------------------------------------------------------------------------- lightning-ir
def test_ranknet_is_lightning_irs():
    same(ours("ranknet", SCORES, GRADES), of_lightning(lightning.RankNet(), SCORES, GRADES))


def test_kl_is_lightning_irs():
    same(
        ours("kl", SCORES, GRADES, TEACHER, reduction="list"),
        of_lightning(lightning.KLDivergence(), SCORES, TEACHER),
    )


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_approx_ndcg_is_lightning_irs_where_its_ideal_order_is_right(temperature):
    """Its ideal ranks are those of an argsort of an argsort, which are ranks; ties there get ranks by position."""
    loss = lightning.ApproxNDCG(temperature=temperature)
    same(
        ours("approx_ndcg", SCORES, GRADES, reduction="list", temperature=temperature),
        of_lightning(loss, SCORES, GRADES),
    )


def test_margin_mse_is_lightning_irs():
    same(
        ours("margin_mse", SCORES, GRADES, TEACHER),
        of_lightning(lightning.SupervisedMarginMSE(), SCORES, TEACHER),
    )


def test_adr_mse_is_lightning_irs_with_its_discount_and_without_ties():
    same(
        ours("adr_mse", SCORES, GRADES),
        of_lightning(lightning.ApproxRankMSE(discount="log2"), SCORES, GRADES),
    )


def test_lightning_irs_rank_mse_is_without_the_papers_discount_unless_asked():
    by_default, _ = of_lightning(lightning.ApproxRankMSE(), SCORES, GRADES)
    assert by_default != pytest.approx(ours("adr_mse", SCORES, GRADES)[0], rel=0.05)


def test_lightning_irs_rank_mse_ranks_ties_by_chance_of_position():
    """Two passages that the teacher ties get ranks 1 and 2 there; equal scores are then wrong, as they are not."""
    scores, ties = [[1.0, 1.0, -5.0]], [[2, 2, 0]]
    _, gradient = of_lightning(lightning.ApproxRankMSE(discount="log2"), scores, ties)
    assert abs(gradient[0] - gradient[1]) > 1e-2
    _, gradient = ours("adr_mse", scores, ties)
    assert gradient[0] == pytest.approx(gradient[1], abs=1e-7)


def test_lce_is_lightning_irs_with_one_positive():
    binary = [[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]]
    same(ours("lce", SCORES, binary, reduction="list"), of_lightning(lightning.InfoNCE(), SCORES, binary))


def test_lightning_irs_infonce_takes_the_first_of_several_positives():
    """The second positive is pushed down there, as a negative."""
    several = [[1, 1, 0, 0]]
    _, gradient = of_lightning(lightning.InfoNCE(), [[0.0] * 4], several)
    assert gradient[0] < 0 < gradient[1]
    _, gradient = ours("lce", [[0.0] * 4], several, reduction="list")
    assert gradient[0] == gradient[1] < 0


def test_lightning_irs_infonce_makes_a_positive_of_the_first_passage_where_there_is_none():
    none = [[0, 0, 0, 0]]
    _, gradient = of_lightning(lightning.InfoNCE(), [[0.0] * 4], none)
    assert gradient[0] < -0.5
    value, gradient = ours("lce", [[0.0] * 4], none, reduction="list")
    assert (value, gradient) == (0.0, [0.0] * 4)
