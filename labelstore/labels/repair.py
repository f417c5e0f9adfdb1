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
    shown = list(dict.fromkeys(found.initial)) if found.initial is not None else None
    groups = found.groups or [1] * len(found.ranking)
    group_of = list(itertools.chain.from_iterable([k] * size for k, size in enumerate(groups)))
    scores: Sequence[float | None] = found.scores or [None] * len(found.ranking)
    known = None if shown is None else set(shown)
    docs: list[str] = []
    kept_groups: list[int] = []
    kept_scores: list[float | None] = []
    seen: set[str] = set()
    repeated = foreign = 0
    for doc_id, group, score in zip(found.ranking, group_of, scores, strict=True):
        if known is not None and doc_id not in known:
            foreign += 1
        elif doc_id in seen:
            repeated += 1
        else:
            seen.add(doc_id)
            docs.append(doc_id)
            kept_groups.append(group)
            kept_scores.append(score)
    missing = [doc_id for doc_id in shown or () if doc_id not in seen]
    if not is_ranking(len(docs), len(docs) + len(missing)):
        return _refused(found, LACKS_MOST, f"{len(docs)} ranked of {len(docs) + len(missing)} shown")
    docs += missing
    kept_scores += [None] * len(missing)
    kept_groups += [len(groups) + k for k in range(len(missing))]
    order = {group: k for k, group in enumerate(sorted(set(kept_groups)))}
    grades = [len(order) - 1 - order[group] for group in kept_groups]
    places = None if shown is None else {doc_id: k for k, doc_id in enumerate(shown, 1)}
    n_missing, n_repeated, n_foreign = len(missing), repeated, foreign
    status = OK
    if parsed is not None:  # the parser has appended and dropped already
        n_missing += parsed.n_missing
        n_repeated += parsed.n_repeated
        n_foreign += parsed.n_out_of_range
        status = parsed.status
    if n_missing or n_repeated or n_foreign:
        status = REPAIRED
    return Repaired(
        docs,
        grades,
        kept_scores,
        None if places is None else [places[doc_id] for doc_id in docs],
        status,
        n_missing,
        n_repeated,
        n_foreign,
    )


def _refused(found: LabelList, reason: str, detail: str) -> Malformed:
    return Malformed(found.place, reason, detail, found.query_id, found.teacher, found.first_stage)


def short_name(text: str) -> str:
    """Shorten a name for commands: without parentheses and without characters that need quoting."""
    bare = re.sub(r"\([^)]*\)", " ", text)
    return re.sub(r"[^\w.+/-]+", "-", bare.strip() or text.strip()).strip("-") or "unnamed"


def labeling_name(teacher: str, first_stage: str | None) -> str:
    """Make the default name: ``TEACHER@FIRST_STAGE``, or the teacher alone."""
    return short_name(teacher) + (f"@{short_name(first_stage)}" if first_stage else "")
