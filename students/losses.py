"""Ranking losses as small pure functions on padded, masked lists.

A batch has shape (L, n): L lists, padded to the longest. Every loss returns, per list, the sum of its terms and their
count (or total weight). `reduce` turns them into one number. Counts depend on the targets only, never on the scores, so
a batch that is cut into pieces gives exactly the loss and the gradient of the whole batch. Scores are raw logits. The
losses compute in fp32 (fp64 stays fp64). A list without a valid term has count 0. It adds nothing to the loss, and the
trainer counts it as skipped.

Symbols: s is the student's scores; y is the graded target (higher is better, equal values are ties); π is the rank by y
(1 is the best, ties share their mean rank); t is the teacher's scores; σ is the logistic function.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch.nn import functional

from students.errors import ExitCode, StudentError

Reduction = Literal["list", "pair", "batch"]
REDUCTIONS: tuple[Reduction, ...] = ("list", "pair", "batch")

_FAR = -1e9  # replaces -inf: a softmax gives the same result, and the gradient is 0 instead of NaN


@dataclass(frozen=True)
class Targets:
    """Training targets of a batch of lists; all tensors are (L, n).

    Attributes:
        mask: True at passages, False at padding.
        labels: y. A contrastive list has 1 for positives and 0 for negatives.
        scores: t. NaN where the teacher gave no score.
        weights: the weight of each passage, 1 or less (denoised negatives).
        places: 1..n by y. The trainer's seed breaks ties at random. ListMLE reads this order.
    """

    mask: torch.Tensor
    labels: torch.Tensor
    scores: torch.Tensor
    weights: torch.Tensor
    places: torch.Tensor

    @classmethod
    def of(
        cls,
        labels: torch.Tensor,
        mask: torch.Tensor | None = None,
        scores: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        tiebreak: torch.Tensor | None = None,
    ) -> "Targets":
        """Make targets with defaults for what is not given.

        ``tiebreak`` (L, n) orders equal labels, smaller first; by default they keep the list's order.
        """
        mask = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask
        if tiebreak is None:
            tiebreak = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
        by_tiebreak = tiebreak.argsort(dim=1, stable=True)
        keys = torch.where(mask, labels.double(), torch.full_like(labels, -math.inf, dtype=torch.float64))
        order = by_tiebreak.gather(
            1, keys.gather(1, by_tiebreak).argsort(dim=1, descending=True, stable=True)
        )
        places = torch.empty_like(order).scatter_(
            1, order, torch.arange(1, labels.shape[1] + 1, device=labels.device).expand_as(order)
        )
        return cls(
            mask=mask,
            labels=labels,
            scores=torch.full_like(labels, math.nan, dtype=torch.float32) if scores is None else scores,
            weights=torch.ones_like(labels, dtype=torch.float32) if weights is None else weights,
            places=places,
        )

    def ranks(self) -> torch.Tensor:
        """Compute π, the mean rank by label within the list: (L, n) float, 1 at padding."""
        other = self.mask.unsqueeze(1)
        higher = ((self.labels.unsqueeze(1) > self.labels.unsqueeze(2)) & other).sum(2)
        equal = ((self.labels.unsqueeze(1) == self.labels.unsqueeze(2)) & other).sum(2)
        ranks = higher + (equal + 1) / 2
        return torch.where(self.mask, ranks, torch.ones_like(ranks))

    def positives(self) -> torch.Tensor:
        """Mark passages with a label above 0: (L, n) bool."""
        return self.mask & (self.labels > 0)

    def pairs(self) -> torch.Tensor:
        """Mark ordered pairs: (L, n, n) bool, where entry [l, i, j] is True if y_i > y_j."""
        both = self.mask.unsqueeze(2) & self.mask.unsqueeze(1)
        return both & (self.labels.unsqueeze(2) > self.labels.unsqueeze(1))

    def pair_weights(self) -> torch.Tensor:
        """Multiply the weights of each pair's two passages: (L, n, n)."""
        return self.weights.unsqueeze(2) * self.weights.unsqueeze(1)

    def to(self, device: torch.device | str) -> "Targets":
        """Copy the targets to a device; copies from pinned memory do not block."""
        moved = (getattr(self, name).to(device, non_blocking=True) for name in self.__dataclass_fields__)
        return Targets(*moved)

    def pin(self) -> "Targets":
        """Copy the targets to page-locked memory."""
        return Targets(*(getattr(self, name).pin_memory() for name in self.__dataclass_fields__))


class ListLoss(NamedTuple):
    """The sum of each list's terms, and their number or total weight (0 without a valid term); both are (L,)."""

    sums: torch.Tensor
    counts: torch.Tensor


LossFunction = Callable[..., ListLoss]


def total(loss: ListLoss, reduction: Reduction) -> torch.Tensor:
    """Compute the numerator of a reduction. It is additive over any split of a batch into lists."""
    if reduction == "list":
        return (loss.sums / loss.counts.clamp(min=1e-12)).where(loss.counts > 0, 0.0).sum()
    return loss.sums.where(loss.counts > 0, 0.0).sum()


def normaliser(counts: torch.Tensor, reduction: Reduction) -> torch.Tensor:
    """Compute the denominator of a reduction: the number of lists (list, batch) or of terms (pair). It is additive."""
    return counts.sum() if reduction == "pair" else (counts > 0).sum().to(counts.dtype)


def reduce(loss: ListLoss, reduction: Reduction) -> torch.Tensor:
    """Reduce the lists' losses to one number.

    ``list`` is the mean of the lists' means, ``pair`` the mean of all terms, ``batch`` the mean of the lists' sums. The
    result is 0 (not NaN) if no list has a valid term.
    """
    return total(loss, reduction) / normaliser(loss.counts, reduction).clamp(min=1e-12)


# ------------------------------------------------------------------------------------------------ the losses
def lce(scores: torch.Tensor, targets: Targets, *, temperature: float = 1.0) -> ListLoss:
    """Localized contrastive estimation (InfoNCE): mean over positives of −s₊ + logsumexp over the group.

    Several positives share the target uniformly. A group without a positive, or without a negative, has no term. A
    negative with weight w counts w times in the sum.
    """
    s = _exact(scores) / temperature
    positive = targets.positives()
    negative = targets.mask & ~positive
    n_positive = positive.sum(1)
    valid = (n_positive > 0) & negative.any(1)
    logits = s + torch.where(negative, targets.weights.clamp(min=1e-12).log(), 0.0).to(s.dtype)
    every = torch.logsumexp(logits.masked_fill(~targets.mask, _FAR), dim=1)
    chosen = s.where(positive, 0.0).sum(1) / n_positive.clamp(min=1)
    return ListLoss((every - chosen).where(valid, 0.0), valid.to(s.dtype))


def cmnrl(scores: torch.Tensor, targets: Targets, *, scale: float = 10.0) -> ListLoss:
    """LCE of scale·σ(s), the (cached) multiple negatives ranking loss of cross-encoders.

    Its negatives are those of the list and, with ``in_batch`` in a recipe, passages of the step's other lists.
    """
    return lce(_exact(scores).sigmoid() * scale, targets)


def ranknet(scores: torch.Tensor, targets: Targets) -> ListLoss:
    """RankNet (Burges et al. 2005): softplus(−(s_i − s_j)) over pairs with y_i > y_j; ties are skipped."""
    s = _exact(scores)
    weights = targets.pair_weights().to(s.dtype).where(targets.pairs(), 0.0)
    terms = functional.softplus(-_differences(s, targets)) * weights
    return ListLoss(terms.sum((1, 2)), weights.sum((1, 2)))


def weighted_ranknet(scores: torch.Tensor, targets: Targets) -> ListLoss:
    """RankNet with weights 1/(π_i + π_j) by the *teacher's* ranks (FIRST, arXiv 2406.15657)."""
    s = _exact(scores)
    ranks = targets.ranks().to(s.dtype)
    weights = targets.pair_weights().to(s.dtype) / (ranks.unsqueeze(2) + ranks.unsqueeze(1))
    weights = weights.where(targets.pairs(), 0.0)
    terms = functional.softplus(-_differences(s, targets)) * weights
    return ListLoss(terms.sum((1, 2)), weights.sum((1, 2)))


def listmle(scores: torch.Tensor, targets: Targets) -> ListLoss:
    """ListMLE (Xia et al. 2008): −Σ_i [s_o(i) − logsumexp_{k≥i} s_o(k)], where o(i) is the passage at place i."""
    terms, present = _plackett_luce(_exact(scores), targets)
    return _where_ordered(terms, present.to(terms.dtype), targets)


def p_listmle(scores: torch.Tensor, targets: Targets) -> ListLoss:
    """Position-aware ListMLE (Lan et al. 2014) with weights 1/log2(i + 1), because 2^(n−i) overflows."""
    terms, present = _plackett_luce(_exact(scores), targets)
    place = torch.arange(1, terms.shape[1] + 1, device=terms.device, dtype=terms.dtype)
    weights = present / torch.log2(place + 1)
    return _where_ordered(terms * weights, weights, targets)


def kl(
    scores: torch.Tensor, targets: Targets, *, temperature: float = 1.0, teacher_temperature: float = 1.0
) -> ListLoss:
    """KL(softmax(t/τ_t) ‖ softmax(s/τ_s)): ListNet's top-one distribution.

    Lists without teacher scores use t = −log2(1 + π). Raw ranks would make the distribution very peaked.
    """
    s = _exact(scores)
    known = (torch.isfinite(targets.scores) | ~targets.mask).all(1, keepdim=True)
    t = torch.where(
        known, torch.nan_to_num(targets.scores).to(s.dtype), -torch.log2(1 + targets.ranks()).to(s.dtype)
    )
    teacher = torch.log_softmax((t / teacher_temperature).masked_fill(~targets.mask, _FAR), dim=1)
    student = torch.log_softmax((s / temperature).masked_fill(~targets.mask, _FAR), dim=1)
    terms = (teacher.exp() * (teacher - student)).where(targets.mask, 0.0)
    valid = targets.mask.sum(1) > 1
    valid = valid & torch.where(known.squeeze(1), valid, targets.pairs().any(2).any(1))
    return ListLoss(terms.sum(1).where(valid, 0.0), valid.to(s.dtype))


def margin_mse(scores: torch.Tensor, targets: Targets) -> ListLoss:
    """MarginMSE (arXiv 2010.02666): ((s_i − s_j) − (t_i − t_j))² over pairs with y_i > y_j; needs teacher scores."""
    s = _exact(scores)
    t = targets.scores.to(s.dtype)
    known = torch.isfinite(t)
    weights = targets.pair_weights().to(s.dtype)
    weights = weights.where(targets.pairs() & known.unsqueeze(2) & known.unsqueeze(1), 0.0)
    margin = _differences(torch.nan_to_num(t), targets)
    terms = (_differences(s, targets) - margin).square() * weights
    return ListLoss(terms.sum((1, 2)), weights.sum((1, 2)))


def adr_mse(scores: torch.Tensor, targets: Targets, *, alpha: float = 1.0) -> ListLoss:
    """ADR-MSE (Rank-DistiLLM, arXiv 2405.07920): (1/n) Σ_i (π_i − π̂_i)² / log2(π_i + 1), π̂_i = 1 + Σ_{j≠i} σ(α(s_j − s_i))."""
    s = _exact(scores)
    soft = _soft_ranks(alpha * s, targets)
    ranks = targets.ranks().to(s.dtype)
    terms = ((ranks - soft).square() / torch.log2(ranks + 1)).where(targets.mask, 0.0)
    return _where_ordered(terms, targets.mask.to(s.dtype), targets)


def lambda_loss(scores: torch.Tensor, targets: Targets, *, mu: float = 10.0) -> ListLoss:
    """NDCG-Loss2++ (Wang et al. 2018): pairs y_i > y_j weighted by μ·|1/D_d − 1/D_{d+1}| + |1/D_i − 1/D_j|, times |G_i − G_j|.

    Ranks are the student's, without gradient; d is their distance, D_k = log2(1 + k). Gains are (2^y − 1)/maxDCG. For
    grades above 8, such as list positions, gains are y/maxDCG, because 2^y would overflow and only the first passage
    would count.
    """
    found = _discounted(_exact(scores), targets)
    return _lambda(found, targets, mu * found.apart + found.swapped)


def lambdarank(scores: torch.Tensor, targets: Targets) -> ListLoss:
    """LambdaRank in the LambdaLoss framework (Wang et al. 2018): pairs y_i > y_j weighted by |1/D_i − 1/D_j| · |G_i − G_j|.

    Ranks, D and gains are those of ``lambda``.
    """
    found = _discounted(_exact(scores), targets)
    return _lambda(found, targets, found.swapped)


def ndcg_loss2(scores: torch.Tensor, targets: Targets) -> ListLoss:
    """NDCG-Loss2 (Wang et al. 2018): pairs y_i > y_j weighted by |1/D_d − 1/D_{d+1}| · |G_i − G_j|, d the ranks' distance."""
    found = _discounted(_exact(scores), targets)
    return _lambda(found, targets, found.apart)


def ndcg_loss1(scores: torch.Tensor, targets: Targets) -> ListLoss:
    """NDCG-Loss1 (Wang et al. 2018): all pairs of two passages i and j, weighted by G_i / D_i; looser than ``ndcg_loss2``."""
    found = _discounted(_exact(scores), targets)
    both = targets.mask.unsqueeze(2) & targets.mask.unsqueeze(1)
    itself = torch.eye(found.s.shape[1], dtype=torch.bool, device=found.s.device)
    pairs = both & ~itself & targets.pairs().any(2).any(1)[:, None, None]
    return _weighed(found, targets, (found.gains * found.inverse).unsqueeze(2).expand_as(found.apart), pairs)


def approx_ndcg(scores: torch.Tensor, targets: Targets, *, temperature: float = 1.0) -> ListLoss:
    """ApproxNDCG (Qin et al. 2010): 1 − Σ_i G_i / log2(1 + π̂_i), with the soft rank π̂_i = 1 + Σ_{j≠i} σ((s_j − s_i)/τ).

    Gains are those of ``lambda``. A list without a gain has no term.
    """
    s = _exact(scores)
    ranks = _soft_ranks(s / temperature, targets)
    gains, ideal = _normal_gains(targets, s.dtype)
    value = 1 - (gains / torch.log2(1 + ranks)).where(targets.mask, 0.0).sum(1)
    valid = targets.pairs().any(2).any(1) & (ideal.squeeze(1) > 0)
    return ListLoss(value.where(valid, 0.0), valid.to(s.dtype))


def mse(scores: torch.Tensor, targets: Targets) -> ListLoss:
    """Mean squared error on scores: (s_i − t_i)² over passages; needs teacher scores on the scale of logits."""
    s = _exact(scores)
    known = torch.isfinite(targets.scores) & targets.mask
    weights = targets.weights.to(s.dtype).where(known, 0.0)
    terms = (s - torch.nan_to_num(targets.scores).to(s.dtype)).where(known, 0.0).square() * weights
    return ListLoss(terms.sum(1), weights.sum(1))


def hinge(scores: torch.Tensor, targets: Targets, *, margin: float = 1.0) -> ListLoss:
    """Hinge loss: max(0, m − (s_i − s_j)) over pairs with y_i > y_j."""
    s = _exact(scores)
    weights = targets.pair_weights().to(s.dtype).where(targets.pairs(), 0.0)
    terms = functional.relu(margin - _differences(s, targets)) * weights
    return ListLoss(terms.sum((1, 2)), weights.sum((1, 2)))


def bce(scores: torch.Tensor, targets: Targets, *, positive_weight: float = 1.0) -> ListLoss:
    """Pointwise binary cross-entropy; positives count ``positive_weight`` times."""
    s = _exact(scores)
    positive = targets.positives()
    weights = torch.where(positive, positive_weight * targets.weights, targets.weights).to(s.dtype)
    weights = weights.where(targets.mask, 0.0)
    terms = functional.softplus(torch.where(positive, -s, s).where(targets.mask, 0.0)) * weights
    return ListLoss(terms.sum(1), weights.sum(1))


# ------------------------------------------------------------------------------------------- shared pieces
def _exact(scores: torch.Tensor) -> torch.Tensor:
    return scores if scores.dtype == torch.float64 else scores.float()


def _differences(s: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Compute s_i − s_j, (L, n, n); 0 if i or j is padding, whatever value the padding holds."""
    clean = s.where(targets.mask, 0.0)
    return (clean.unsqueeze(2) - clean.unsqueeze(1)).where(
        targets.mask.unsqueeze(2) & targets.mask.unsqueeze(1), 0.0
    )


def _soft_ranks(s: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Compute 1 + Σ_{j≠i} σ(s_j − s_i), (L, n); 1 at padding."""
    both = targets.mask.unsqueeze(2) & targets.mask.unsqueeze(1)
    itself = torch.eye(s.shape[1], dtype=torch.bool, device=s.device)
    return 1 + torch.sigmoid(-_differences(s, targets)).where(both & ~itself, 0.0).sum(2)


@dataclass(frozen=True)
class _Discounted:
    """What the losses of the LambdaLoss framework weigh pairs by; ranks are the student's, without gradient.

    Attributes:
        s: the scores, (L, n).
        gains: G, (L, n). inverse: 1/D at each passage's rank, (L, n).
        apart: |1/D_d − 1/D_{d+1}| for the ranks' distance d, (L, n, n). swapped: |1/D_i − 1/D_j|, (L, n, n).
    """

    s: torch.Tensor
    gains: torch.Tensor
    inverse: torch.Tensor
    apart: torch.Tensor
    swapped: torch.Tensor


def _discounted(s: torch.Tensor, targets: Targets) -> _Discounted:
    gains, _ = _normal_gains(targets, s.dtype)
    order = s.detach().masked_fill(~targets.mask, -math.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(s).scatter_(
        1, order, torch.arange(1, s.shape[1] + 1, device=s.device, dtype=s.dtype).expand_as(s)
    )
    inverse = 1 / torch.log2(1 + rank)
    distance = (rank.unsqueeze(2) - rank.unsqueeze(1)).abs().clamp(min=1)
    apart = (1 / torch.log2(1 + distance) - 1 / torch.log2(2 + distance)).abs()
    swapped = (inverse.unsqueeze(2) - inverse.unsqueeze(1)).abs()
    return _Discounted(s, gains, inverse, apart, swapped)


def _lambda(found: _Discounted, targets: Targets, weights: torch.Tensor) -> ListLoss:
    """Sum softplus(−(s_i − s_j)) in bits over pairs with y_i > y_j, weighted and times |G_i − G_j|."""
    gained = (found.gains.unsqueeze(2) - found.gains.unsqueeze(1)).abs()
    return _weighed(found, targets, weights * gained, targets.pairs())


def _weighed(found: _Discounted, targets: Targets, weights: torch.Tensor, pairs: torch.Tensor) -> ListLoss:
    s = found.s
    weights = (weights * targets.pair_weights().to(s.dtype)).where(pairs, 0.0)
    terms = functional.softplus(-_differences(s, targets)) / math.log(2) * weights
    return ListLoss(terms.sum((1, 2)), pairs.sum((1, 2)).to(s.dtype))


def _plackett_luce(s: torch.Tensor, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute ListMLE's terms by place, (L, n), and mark the places that hold a passage."""
    by_place = targets.places.argsort(dim=1)
    present = targets.mask.gather(1, by_place)
    ordered = s.gather(1, by_place).masked_fill(~present, _FAR)
    rest = torch.logcumsumexp(ordered.flip(1), dim=1).flip(1)
    return (rest - ordered).where(present, 0.0), present


def _where_ordered(terms: torch.Tensor, counts: torch.Tensor, targets: Targets) -> ListLoss:
    """Sum over lists that have an order. A list of one passage, or of ties only, teaches nothing."""
    valid = targets.pairs().any(2).any(1)
    return ListLoss(terms.sum(1).where(valid, 0.0), counts.sum(1).where(valid, 0.0))


def _gains(targets: Targets) -> torch.Tensor:
    grades = targets.labels.clamp(min=0).to(torch.float64).where(targets.mask, 0.0)
    large = grades.amax(1, keepdim=True) > 8
    return torch.where(large, grades, torch.exp2(grades.clamp(max=8)) - 1)


def _normal_gains(targets: Targets, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute gains over the best possible DCG, (L, n), and that DCG, (L, 1)."""
    gains = _gains(targets).to(dtype)
    ideal = (gains / torch.log2(1 + targets.places.to(dtype))).sum(1, keepdim=True)
    return gains / ideal.clamp(min=1e-12), ideal


# -------------------------------------------------------------------------------------------- the registry
Need = Literal["order", "scores", "binary"]


@dataclass(frozen=True)
class Loss:
    """A named loss, the targets that it needs, and its parameters with their defaults.

    ``weighted`` is True if the loss uses passages' weights.
    """

    name: str
    function: LossFunction
    needs: Need
    weighted: bool = True
    parameters: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, scores: torch.Tensor, targets: Targets, **parameters: float) -> ListLoss:
        return self.function(scores, targets, **{**self.parameters, **parameters})


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("lce", lce, "binary", parameters={"temperature": 1.0}),
        Loss("cmnrl", cmnrl, "binary", parameters={"scale": 10.0}),
        Loss("ranknet", ranknet, "order"),
        Loss("weighted_ranknet", weighted_ranknet, "order"),
        Loss("listmle", listmle, "order", weighted=False),
        Loss("p_listmle", p_listmle, "order", weighted=False),
        Loss("kl", kl, "order", weighted=False, parameters={"temperature": 1.0, "teacher_temperature": 1.0}),
        Loss("margin_mse", margin_mse, "scores"),
        Loss("adr_mse", adr_mse, "order", weighted=False, parameters={"alpha": 1.0}),
        Loss("lambda", lambda_loss, "order", parameters={"mu": 10.0}),
        Loss("lambdarank", lambdarank, "order"),
        Loss("ndcg_loss1", ndcg_loss1, "order"),
        Loss("ndcg_loss2", ndcg_loss2, "order"),
        Loss("approx_ndcg", approx_ndcg, "order", weighted=False, parameters={"temperature": 1.0}),
        Loss("mse", mse, "scores"),
        Loss("hinge", hinge, "order", parameters={"margin": 1.0}),
        Loss("bce", bce, "binary", parameters={"positive_weight": 1.0}),
    )
}

_WHY: dict[Need, str] = {
    "binary": "positives and negatives (a contrastive view)",
    "order": "graded labels",
    "scores": "a teacher score for every passage",
}


def get(name: str) -> Loss:
    """Find a loss by its name.

    Raises:
        StudentError: the loss is not found (exit code 2).
    """
    if name not in LOSSES:
        raise StudentError(
            f"unknown loss {name!r}", hint=f"choose one of {', '.join(LOSSES)}", exit_code=ExitCode.USAGE
        )
    return LOSSES[name]


def check_pairing(loss: Loss, *, kind: str, has_scores: bool, where: str) -> None:
    """Check that a view holds the targets that a loss needs.

    Args:
        kind: the view's kind, contrastive or distillation. has_scores: whether every passage has a teacher score.
        where: the view's name in the message.

    Raises:
        StudentError: the view lacks targets; the message lists what the loss needs, what the view holds, and losses
            that fit (exit code 2).
    """
    holds: set[Any] = {"order"}
    if kind == "contrastive":
        holds.add("binary")
    if has_scores:
        holds.add("scores")
    if loss.needs in holds:
        return
    has = "binary labels" if kind == "contrastive" else "permutations"
    has += " with teacher scores" if has_scores else " without teacher scores"
    fitting = [name for name, other in LOSSES.items() if other.needs in holds]
    raise StudentError(
        f"loss {loss.name} needs {_WHY[loss.needs]}, and {where} holds {has}",
        hint=f"choose a loss that fits: {', '.join(fitting)}",
        exit_code=ExitCode.USAGE,
    )
