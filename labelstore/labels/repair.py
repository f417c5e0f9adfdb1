"""Repair an imported list in the usual ways, or refuse it with a reason.

Repeats are dropped (the first counts), and so are passages that were not shown. Passages that were shown but not ranked follow
in their prior order. Each repair is counted. A list that names too few of the shown passages is refused.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from labelstore.labels.label_list import LabelList, Malformed

OK, REPAIRED = "ok", "repaired"
LACKS_MOST = "lacks most of its passages"
MAX_PASSAGES = 65_535  # the highest value of a rank column


@dataclass(frozen=True)
class Repaired:
    """A whole list.

    Attributes:
        docs: doc_ids, best first, each once.
        grades: one per passage, higher is better, 0 for the last group; equal grades are ties.
        initial_ranks: from 1; None if the shown order is unknown.
        status: ``ok`` or ``repaired``.
    """

    docs: list[str]
    grades: list[int]
    scores: list[float | None]
    initial_ranks: list[int] | None
    status: str
    n_missing: int
    n_repeated: int
    n_out_of_range: int

    @property
    def repairs(self) -> int:
        return self.n_missing + self.n_repeated + self.n_out_of_range


def repair(found: LabelList, is_ranking: Callable[[int, int], bool]) -> Repaired | Malformed:
    """Repair a list, or tell why it cannot be repaired.

    Args:
        is_ranking: passages named, passages shown -> whether that is a ranking (:class:`label_list.Reader`).
    """
    fault = _fault(found)
    if fault is not None:
        return fault
    shown = None if found.initial is None else list(dict.fromkeys(found.initial))
    named = _named(found, None if shown is None else set(shown))
    missing = [doc_id for doc_id in shown or () if doc_id not in named.rows]
    n_ranked, n_shown = len(named.rows), len(named.rows) + len(missing)
    if not is_ranking(n_ranked, n_shown):
        return _refused(found, LACKS_MOST, f"{n_ranked} ranked of {n_shown} shown")
    last = len(found.groups or found.ranking)  # the missing passages follow, each in a group of its own
    rows = named.rows | {doc_id: (last + k, None) for k, doc_id in enumerate(missing)}
    order = {group: k for k, group in enumerate(sorted({group for group, _ in rows.values()}))}
    places = {doc_id: k for k, doc_id in enumerate(shown or (), 1)}
    n_missing, n_repeated, n_foreign = len(missing), named.repeated, named.foreign
    if found.parsed is not None:  # the parser has appended and dropped already
        n_missing += found.parsed.n_missing
        n_repeated += found.parsed.n_repeated
        n_foreign += found.parsed.n_out_of_range
    return Repaired(
        docs=list(rows),
        grades=[len(order) - 1 - order[group] for group, _ in rows.values()],
        scores=[score for _, score in rows.values()],
        initial_ranks=None if shown is None else [places[doc_id] for doc_id in rows],
        status=REPAIRED
        if n_missing or n_repeated or n_foreign
        else found.parsed.status
        if found.parsed
        else OK,
        n_missing=n_missing,
        n_repeated=n_repeated,
        n_out_of_range=n_foreign,
    )


@dataclass(frozen=True)
class _Named:
    """The passages that a list names, best first: doc_id -> (group, score); and how many were left out."""

    rows: dict[str, tuple[int, float | None]]
    repeated: int
    foreign: int


def _named(found: LabelList, shown: set[str] | None) -> _Named:
    """Keep each passage where it is named first; leave out those that were not shown."""
    groups = found.groups or [1] * len(found.ranking)
    group_of = itertools.chain.from_iterable([k] * size for k, size in enumerate(groups))
    scores: Sequence[float | None] = found.scores or [None] * len(found.ranking)
    rows: dict[str, tuple[int, float | None]] = {}
    repeated = foreign = 0
    for doc_id, group, score in zip(found.ranking, group_of, scores, strict=True):
        if shown is not None and doc_id not in shown:
            foreign += 1
        elif doc_id in rows:
            repeated += 1
        else:
            rows[doc_id] = (group, score)
    return _Named(rows, repeated, foreign)


def _fault(found: LabelList) -> Malformed | None:
    """Tell why a list cannot be a ranking, whatever it names."""
    parsed = found.parsed
    if parsed is not None and parsed.order is None:
        reply = " ".join((found.reply or "").split())[:200]
        return _refused(
            found, parsed.status, f"reply {reply!r}" if found.reply else "a window without an order"
        )
    if not found.ranking:
        return _refused(found, "empty list", "no passages")
    if len(found.ranking) > MAX_PASSAGES:
        return _refused(found, "too long", f"{len(found.ranking)} passages")
    return None


def _refused(found: LabelList, reason: str, detail: str) -> Malformed:
    return Malformed(found.place, reason, detail, found.query_id, found.teacher, found.first_stage)


def short_name(text: str) -> str:
    """Shorten a name for commands: without parentheses and without characters that need quoting."""
    bare = re.sub(r"\([^)]*\)", " ", text)
    return re.sub(r"[^\w.+/-]+", "-", bare.strip() or text.strip()).strip("-") or "unnamed"


def labeling_name(teacher: str, first_stage: str | None) -> str:
    """Make the default name: ``TEACHER@FIRST_STAGE``, or the teacher alone."""
    return short_name(teacher) + (f"@{short_name(first_stage)}" if first_stage else "")
