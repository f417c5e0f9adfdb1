"""The parameters of each kind of training view."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from labelstore.errors import UsageError

MOST_EASY = 1000  # random passages per list
USUAL_FRACTION = 0.01  # of the queries validate …
ENOUGH_VALID = 50  # … or more, if that gives fewer lists than this …
MOST_VALID = 0.2  # … but at most this share of the lists
MOSTLY_RETRIEVED = 0.5  # if a smaller share of the positives is retrieved, only those are used …
ENOUGH_RETRIEVED = (
    200  # … unless fewer remain: lists of eight, five times, are the pairs that a small model needs
)


@dataclass(frozen=True)
class Contrastive:
    """Parameters of a contrastive view.

    Args:
        depth: deepest rank that a negative straight from a run may have (mined negatives: the mining decided).
        per_query: negatives per list; None takes all.
        positives: ``each`` judged positive makes a list of its own, ``one`` is drawn per query, or ``all`` of a
            query's positives stand in one list. ``generated``: as ``each``, and the passages that queries were generated
            from are positives too; without it they are none.
        max_positives: with ``each``: lists per query at most.
        min_relevance: the lowest grade that counts as positive.
        judging: an LLM judge whose grades count where people have not judged; refused for a test set that it judges.
        graded: all positives of a query in one list, with their grades as labels, for losses that learn an order.
        retrieved: use only positives that a run of the negatives ranks; otherwise a student may learn to recognise
            retrieved passages instead of relevant ones. None does so if fewer than half of the positives are retrieved,
            and at least 200 of them. The view records what was decided.
        scores: put the runs' scores into the lists (for layouts with scores); lists are left out
            if no run ranks their positive.
        easy: random passages of the collection in each list, as further negatives.
        max_lists: the most lists, drawn by the seed.
        valid_fraction: share of queries in the validation split; None takes 1 %, or as much as gives 50 lists, at most 20 %.
        allow_overlap: train even on queries that a test set has.
    """

    depth: int = 200
    per_query: int | None = 99
    positives: str = "each"
    max_positives: int | None = None
    min_relevance: int = 1
    judging: str | None = None
    graded: bool = False
    retrieved: bool | None = None
    scores: bool = False
    easy: int = 0
    max_lists: int | None = None
    valid_fraction: float | None = None
    allow_overlap: bool = False


@dataclass(frozen=True)
class Distillation:
    """Parameters of a distillation view.

    Args:
        statuses: statuses of the permutations that are used.
        max_repairs: the most repairs of a permutation that is used.
        depth: teacher ranks below this are left out; None takes all.
        min_passages: the fewest passages of a list after all filters.
        judged_first: passages that are judged relevant lead their list, the higher grade first. A list that changes loses
            its scores, since they no longer fit its order.
        stratified: passages per list, one drawn from each of so many equal bands of the teacher's order; None takes all.
        easy: random passages of the collection in each list, tied below those that the teacher ranked.
    """

    statuses: tuple[str, ...] = ("ok", "repaired")
    max_repairs: int = 10
    depth: int | None = None
    min_passages: int = 2
    judged_first: bool = False
    stratified: int | None = None
    easy: int = 0
    max_lists: int | None = None
    valid_fraction: float | None = None
    allow_overlap: bool = False


@dataclass(frozen=True)
class Rerank:
    """Parameters of a rerank view: `depth` passages of each list; None takes all."""

    depth: int | None = None


KINDS: dict[str, type] = {"contrastive": Contrastive, "distillation": Distillation, "rerank": Rerank}


def make_parameters(kind: str, given: Mapping[str, Any]) -> Any:
    """Make the parameters of a kind, with their defaults.

    Raises:
        UsageError: the kind, a parameter or a value is unknown.
    """
    if kind not in KINDS:
        raise UsageError(f"no view kind {kind!r}", hint=f"--kind {' | '.join(KINDS)}")
    known = {f.name for f in fields(KINDS[kind])}
    unknown = sorted(set(given) - known)
    if unknown:
        raise UsageError(
            f"a {kind} view takes no parameter {', '.join(unknown)}",
            hint=f"it takes {', '.join(sorted(known))}",
        )
    if given.get("graded") and given.get("positives", "all") != "all":
        raise UsageError(
            f"graded lists hold all positives of a query, not {given['positives']}",
            hint="leave out --positives, or give --positives all",
        )
    options = KINDS[kind](**{**given, **({"positives": "all"} if given.get("graded") else {})})
    for key in ("depth", "per_query", "max_positives", "max_lists", "min_passages", "stratified"):
        value = getattr(options, key, None)
        if value is not None and value < 1:
            raise UsageError(f"{key} is {value}: it must be at least 1", hint=f"--{key.replace('_', '-')} N")
    easy = getattr(options, "easy", 0)
    if not 0 <= easy <= MOST_EASY:
        raise UsageError(f"easy is {easy}: it must be from 0 to {MOST_EASY}", hint="--easy 3")
    if easy and getattr(options, "scores", False):
        raise UsageError("random passages have no scores", hint="leave out --easy or --scores")
    if isinstance(options, Contrastive) and options.positives not in ("each", "one", "all", "generated"):
        raise UsageError(
            f"positives is {options.positives!r}", hint="--positives each | one | all | generated"
        )
    retrieved = getattr(options, "retrieved", None)
    if retrieved not in (None, True, False):
        raise UsageError(
            f"retrieved is {retrieved!r}: it must be true or false", hint="--retrieved or --no-retrieved"
        )
    share = getattr(options, "valid_fraction", None)
    if share is not None and not 0 <= share < 1:
        raise UsageError(f"valid_fraction is {share}", hint="--valid-fraction 0.01")
    return options
