"""The parameters of a mining, with the texts that `--help` shows."""

from dataclasses import dataclass
from typing import Annotated, Any

from labelstore.errors import UsageError

STRATEGIES = ("uniform", "top")
DENOISING = ("drop", "relabel", "downweight")
MOST_RANDOM = 1000  # passages per query


@dataclass(frozen=True)
class Parameters:
    """The rules that make a candidate a negative.

    A margin or limit compares the candidates' own scores, or those of the run that `scores` names. A candidate that
    the denoising labeling ranks above the positive is dropped, becomes a positive (``relabel``), or keeps its place
    with the weight `denoise_weight` (``downweight``).
    """

    strategy: Annotated[str, "uniform (drawn at random) or top (the best ranked)."] = "uniform"
    depth: Annotated[int, "The deepest rank to take negatives from."] = 200
    min_rank: Annotated[int, "The first rank to take negatives from; 11 skips the first ten."] = 1
    per_query: Annotated[int, "The most negatives per query."] = 99
    random: Annotated[int, "Random passages of the collection per query, beside the mined ones."] = 0
    at_least: Annotated[int, "Leave out queries with fewer negatives than this."] = 1
    shares: tuple[float, ...] = ()  # of `per_query` for each run, in their order; equal by default
    min_relevance: Annotated[int, "The lowest grade that counts as positive."] = 1
    reference: Annotated[
        str, "The positive that margins compare with, if a query has several: best or worst."
    ] = "best"
    absolute_margin: Annotated[
        float | None, "A negative must score at least this much below the positive."
    ] = None
    relative_margin: Annotated[
        float | None,
        "A negative must score below the positive by at least this share of the positive's score.",
    ] = None
    max_score: Annotated[float | None, "The highest score that a negative may have."] = None
    min_score: Annotated[float | None, "The lowest score that a negative may have."] = None
    denoise: str = "drop"  # or relabel, downweight
    denoise_weight: Annotated[float, "The weight that downweight gives."] = 0.1
    max_flags: Annotated[
        int | None, "Leave out queries with more false negatives than this, by --denoise; RLHN takes 8."
    ] = None
    max_repairs: Annotated[int, "Do not denoise with permutations that needed more repairs than this."] = 10
    include_positives: Annotated[bool, "Also keep ranked positives, with label 1."] = False


def make_parameters(given: dict[str, Any], n_runs: int) -> Parameters:
    """Check the parameters of a mining.

    Raises:
        UsageError: a value is wrong; the message names the option and what it takes.
    """
    try:
        options = Parameters(**{key: value for key, value in given.items() if value is not None})
    except TypeError as error:
        raise UsageError(
            f"unknown parameter of mining: {error}", hint="list them with msft negatives mine --help"
        ) from error
    for key, allowed in (("strategy", STRATEGIES), ("reference", ("best", "worst")), ("denoise", DENOISING)):
        if getattr(options, key) not in allowed:
            raise UsageError(f"{key} is {getattr(options, key)!r}", hint=f"it takes {' | '.join(allowed)}")
    for key in ("min_rank", "depth", "per_query", "at_least"):
        if getattr(options, key) < 1:
            option = f"--{key.replace('_', '-')}"
            raise UsageError(
                f"{option} is {getattr(options, key)}: it must be at least 1",
                hint=f"set {option} to 1 or more",
            )
    if not 0 <= options.random <= MOST_RANDOM:
        raise UsageError(
            f"random is {options.random}: it must be from 0 to {MOST_RANDOM}", hint="give --random 3"
        )
    if options.max_flags is not None and options.max_flags < 0:
        raise UsageError(
            f"--max-flags is {options.max_flags}: it must be 0 or more", hint="give --max-flags 8"
        )
    if options.min_rank > options.depth:
        raise UsageError(
            f"ranks {options.min_rank} to {options.depth} hold nothing", hint="set --min-rank below --depth"
        )
    if options.at_least > options.per_query:
        raise UsageError("at_least is above per_query", hint=f"set --at-least to {options.per_query} or less")
    for key in ("absolute_margin", "relative_margin"):
        value = getattr(options, key)
        if value is not None and value < 0:
            raise UsageError(
                f"{key} is {value}: it must not be negative",
                hint="give the distance below the positive as a positive number",
            )
    if not 0 <= options.denoise_weight <= 1:
        raise UsageError(f"denoise_weight is {options.denoise_weight}", hint="give a weight from 0 to 1")
    if options.shares and (
        len(options.shares) != n_runs or min(options.shares) < 0 or sum(options.shares) <= 0
    ):
        raise UsageError(
            f"{len(options.shares)} shares for {n_runs} runs",
            hint="give one --share per --run, in the same order, not all 0",
        )
    return options
