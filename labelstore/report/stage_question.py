"""Answer "one stage or two?": each regime of several stages against the single stages of its base and first stage.

Students that differ only in their seed are one group. The verdicts are those of `msft compare`, by each dataset's first
measure; Holm's correction covers all comparisons of a dataset.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import duckdb

from labelstore.evaluation import comparison, seed_groups
from labelstore.evaluation import scores as evaluation
from labelstore.evaluation.seed_groups import SeedGroup
from labelstore.report.boards import Board

MAX_PAIRS = 12  # comparisons of a dataset; the best groups come first
_OUTCOMES = {
    "better": "two stages are better",
    "worse": "one stage is better",
    "equivalent": f"one stage is as good, within ± {comparison.MARGIN}",
    "inconclusive": "undecided",
}


@dataclass(frozen=True)
class Comparison:
    """A regime of several stages against one of a single stage."""

    dataset: str
    measure: str
    first_stage: str
    base: str
    one: str  # the regime of one stage
    two: str
    names: tuple[str, str]  # the groups' names: one stage, several
    values: tuple[float, float]
    seeds: tuple[int, int]
    difference: float  # several stages minus one
    low: float  # of the 95 % interval
    high: float
    p_holm: float
    verdict: str
    margin: float


@dataclass(frozen=True)
class Answer:
    """All comparisons, the answer in a sentence, and what to know about it."""

    says: str
    rows: tuple[Comparison, ...]
    notes: tuple[str, ...]


class _About(NamedTuple):
    base: str
    regime: str
    max_length: int


def answer(con: duckdb.DuckDBPyConnection, boards: list[Board]) -> Answer | None:
    """Answer from the measured datasets; None without students of both kinds over one first stage."""
    about = {
        name: _About(base, regime, max_length)
        for name, base, regime, max_length in con.execute(
            "SELECT name, base, regime, max_length FROM students"
        ).fetchall()
    }
    rows: list[Comparison] = []
    notes: list[str] = []
    for board in boards:
        if board.rows:
            found, left = _of_board(con, board, about)
            rows += found
            if left:
                notes.append(
                    f"{board.of.name}: {left} more comparisons are left out; msft compare makes them"
                )
    if not rows:
        return None
    fewest = min(n for row in rows for n in row.seeds)
    if fewest < comparison.ENOUGH_SEEDS:
        trainings = "One training" if fewest == 1 else f"{fewest} trainings"
        notes.append(
            f"{trainings} of a regime can say little about its next seed: from {comparison.ENOUGH_SEEDS} seeds on"
            " the intervals are over seeds and queries, before that over queries alone"
        )
    return Answer(_sentence(rows), tuple(rows), tuple(notes))


def _sentence(rows: list[Comparison]) -> str:
    counts = Counter(row.verdict for row in rows)
    if len(counts) == 1:
        verdict = next(iter(counts))
        said = _OUTCOMES[verdict]
        where = {1: "in the one comparison", 2: "in both comparisons"}.get(
            len(rows), f"in all {len(rows)} comparisons"
        )
        return f"{said[0].upper()}{said[1:]} {where}."
    parts = [f"{said} in {counts[verdict]}" for verdict, said in _OUTCOMES.items() if counts[verdict]]
    return f"It depends: {', '.join(parts)} of {len(rows)} comparisons."


def _of_board(
    con: duckdb.DuckDBPyConnection, board: Board, about: Mapping[str, _About]
) -> tuple[list[Comparison], int]:
    """Compare the groups of a dataset; return the comparisons and the number left out."""
    measured = {row.system for row in board.rows if row.system.kind == "student"}
    groups = [
        SeedGroup(group.name, kept)
        for group in seed_groups.find(con, board.of, None)
        if (kept := tuple(s for s in group.systems if s in measured and s.student in about))
    ]
    values = {
        group.name: {board.headline: board.scores_of(group.systems, board.headline)} for group in groups
    }
    groups.sort(key=lambda group: -float(values[group.name][board.headline].mean()))
    pairs = [
        (two, one)
        for two in groups
        for one in groups
        if _n_stages(_regime(two, about)) > 1
        and _n_stages(_regime(one, about)) == 1
        and _place(two, about) == _place(one, about)
    ]
    kept_pairs = pairs[:MAX_PAIRS]
    if not kept_pairs:
        return [], 0
    missing = {
        group.name: max(evaluation.n_missing(con, board.of, s) for s in group.systems) for group in groups
    }
    compared = comparison.compare_pairs(
        comparison.Board(board.of.name, tuple(groups), (board.headline,), values, missing),
        [(two.name, one.name) for two, one in kept_pairs],
    )
    rows = [_comparison(row, one, two, about) for row, (two, one) in zip(compared, kept_pairs, strict=True)]
    return rows, len(pairs) - len(kept_pairs)


def _comparison(
    row: comparison.Row, one: SeedGroup, two: SeedGroup, about: Mapping[str, _About]
) -> Comparison:
    base, first_stage, *_ = _place(two, about)
    return Comparison(
        row["dataset"], row["measure"], first_stage or "–", base, _regime(one, about), _regime(two, about),
        (one.name, two.name), (row["baseline_value"], row["value"]), (len(one.systems), len(two.systems)),
        row["difference"], row["ci95_low"], row["ci95_high"], row["p_holm"], row["verdict"], row["margin"],
    )  # fmt: skip


def _regime(group: SeedGroup, about: Mapping[str, _About]) -> str:
    return about[str(group.systems[0].student)].regime


def _place(group: SeedGroup, about: Mapping[str, _About]) -> tuple[str, str | None, int, int]:
    """Return what two groups must share to be compared: base, first stage, depth and tokens per pair."""
    system = group.systems[0]
    own = about[str(system.student)]
    return own.base, system.first_stage, system.depth, own.max_length


def _n_stages(regime: str) -> int:
    """Count the stages of a regime; an untrained student has none."""
    return 0 if regime == "none" else len(regime.split(","))
