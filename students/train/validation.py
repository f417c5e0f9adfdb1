"""Validate on held-out lists: loss, nDCG@10 against human judgments, Kendall's τ against the teacher."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from msft.rankings import kendall_tau
from students.losses import get, reduce
from students.recipes.recipe import Objective, Stage
from students.text.tokens import Ints
from students.train.lists import Draw, ViewLists, draw, stream_key, usable
from students.train.steps import Task, targets_of

HIGHER_IS_BETTER = {"loss": False, "nDCG@10": True, "tau": True}


MOST_TIMES, LEAST_TIMES = 10, 2
_SHARE = 0.1  # of a stage's time that validations may take if nothing depends on them
_UPDATE_OVER_FORWARD = 3  # a pair that is learnt takes as long as three that are scored


@dataclass(frozen=True)
class ValidationLists:
    """Validation lists of one objective, always with the same passages."""

    task: Task
    lists: ViewLists
    drawn: Draw
    n_lists: int


def choose_lists(tasks: list[Task], stage: Stage, seed: int, max_pairs: int) -> list[ValidationLists]:
    """Choose each objective's validation lists: at most ``valid_lists``, and ``max_pairs`` pairs in all."""
    held = []
    for task in tasks:
        lists = task.view.valid
        own = replace(task.objective, in_batch=0)  # validation measures the lists as they are
        good = np.flatnonzero(usable(lists, own, get(task.objective.loss)))
        key = stream_key(task.view.view_hash, seed, 0, f"valid:{task.objective.name}")
        good = np.sort(good[np.argsort(_shuffled(len(good), key))][: stage.valid_lists])
        wide = replace(own, group_size=_width(own))
        drawn = draw(lists, good, wide, key)
        sizes = np.bincount(drawn.local, minlength=len(good))
        fits = int(np.searchsorted(np.cumsum(sizes), max_pairs // len(tasks), side="right"))
        n = max(min(len(good), fits), min(len(good), 1))
        if n:
            held.append(ValidationLists(task, lists, drawn.take(drawn.local < n), n))
    return held


def times(held: list[ValidationLists], stage: Stage, pairs: int) -> int:
    """Return into how many parts a stage is divided by validations.

    Ten, but fewer if nothing depends on them (``keep`` last without ``patience``), the stage is bounded by pairs, and ten
    would take more than a tenth of its time: a short training on a CPU spent half of its time on them.

    Args:
        pairs: the stage's bound in pairs; 0 without one.
    """
    scored = sum(one.drawn.local.size for one in held)
    if stage.keep == "best" or stage.patience or not pairs or not scored:
        return MOST_TIMES
    paid = _SHARE * _UPDATE_OVER_FORWARD * pairs / scored
    return max(LEAST_TIMES, min(MOST_TIMES, int(paid)))


def _shuffled(n: int, key: int) -> Ints:
    return np.random.default_rng(key).permutation(n)


def _width(objective: Objective) -> int:
    """Choose the passages per validation list: at least 20 for ``cl``, because a short list hardly tests a ranking."""
    return max(objective.group_size, 20) if objective.name == "cl" else objective.group_size


def measure(
    held: list[ValidationLists],
    score: Callable[[Task, ViewLists, Draw], NDArray[np.float32]],
) -> dict[str, float]:
    """Compute ``valid_loss`` and ``valid_spread`` (of scores in a list).

    ``valid_nDCG@10`` and ``valid_tau`` are added if the lists have judgments or teacher scores.

    Args:
        score: a function from (task, lists, drawn passages) to their scores.
    """
    values: dict[str, list[float]] = {"nDCG@10": [], "tau": [], "spread": []}
    loss = 0.0
    for one in held:
        scores = score(one.task, one.lists, one.drawn)
        cells, targets = targets_of(one.lists, one.drawn, one.n_lists)
        objective = one.task.objective
        value = get(objective.loss)(cells.matrix(torch.from_numpy(scores)), targets, **objective.parameters)
        loss += objective.weight * float(reduce(value, objective.reduction))
        relevances = one.lists.relevances[one.drawn.rows]
        labels = one.lists.labels[one.drawn.rows]
        for i in range(one.n_lists):
            mine = one.drawn.local == i
            values["spread"].append(float(np.std(scores[mine])))
            if (relevances[mine] > 0).any():
                values["nDCG@10"].append(ndcg(scores[mine], relevances[mine]))
            if objective.name == "kd":
                values["tau"].append(kendall_tau(scores[mine].tolist(), labels[mine].tolist()))
    means = {f"valid_{name}": float(np.mean(each)) for name, each in values.items() if each}
    return {"valid_loss": loss, **means}


def ndcg(scores: NDArray[Any], relevances: NDArray[Any], cutoff: int = 10) -> float:
    """Compute nDCG of one list with trec_eval's linear gains; unjudged (-1) counts 0, and tied scores average.

    The ideal ranking contains only the list's passages.
    """
    gains = np.maximum(relevances, 0).astype(float)
    discounts = np.where(np.arange(len(gains)) < cutoff, 1 / np.log2(np.arange(len(gains)) + 2), 0.0)
    ideal = float(np.sort(gains)[::-1] @ discounts)
    if ideal == 0:
        return 0.0
    _, group = np.unique(-scores, return_inverse=True)
    mean_gain = np.bincount(group, gains) / np.bincount(group)
    return float(mean_gain[np.sort(group)] @ discounts) / ideal
