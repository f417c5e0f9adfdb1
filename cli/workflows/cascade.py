"""`msft teachers combine CHEAP --refine STRONG`: a strong teacher orders the heads of a cheap labeling's lists."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labelstore.store.label_store import LabelStore
    from teachers.generate.job import Labelled


@dataclass(frozen=True)
class Saved:
    """Calls of the strong teacher over the heads, and those that the whole lists would have taken at least.

    Attributes:
        cost: US dollars that the difference would have cost; None without prices or calls.
    """

    calls: int
    whole: int
    cost: float | None

    def __str__(self) -> str:
        if self.whole <= self.calls:
            return f"{self.calls:,} calls, no fewer than the whole lists would take"
        share = f"{1 - self.calls / self.whole:.0%}"
        price = "" if self.cost is None else f", about {self.cost:.2f} US dollars"
        return f"{self.calls:,} calls in place of {self.whole:,} over the whole lists: {share} saved{price}"


def head_labels(store: "LabelStore", cheap: str, strong: str, ask: "Callable[[str], Labelled]") -> str:
    """Return the labeling of the heads: `strong` if it is one, else what the teacher `strong` answers.

    Args:
        ask: asks a teacher for the heads.

    Raises:
        UsageError: `strong` is a labeling of something else than the heads of `cheap`.
        PartlyDone: the teacher's job ended early.
    """
    with store.read() as con:
        found = con.execute(
            "SELECT parameters ->> 'head_of' FROM labelings WHERE name = ?", [strong]
        ).fetchall()
    if found:
        _check_head(found[0][0], cheap, strong)
        return strong
    result = ask(strong)
    if (error := result.partly_done()) is not None:
        raise error
    return result.plan.name


def _check_head(head_of: str | None, cheap: str, strong: str) -> None:
    from labelstore.errors import UsageError

    if head_of is not None and head_of != cheap:
        raise UsageError(
            f"{strong} orders the heads of {head_of}, not those of {cheap}",
            hint=f"combine {head_of} --refine {strong}, or give --refine a teacher",
        )


def saved(store: "LabelStore", cheap: str, head: str) -> Saved | None:
    """Compare the calls of the heads with those of whole lists; None for labels that no strategy of msft made."""
    from teachers.strategies import by_name

    with store.read() as con:
        strategy, parameters = con.execute(
            "SELECT strategy, parameters FROM labelings WHERE name = ?", [head]
        ).fetchall()[0]
        made: dict[str, Any] = json.loads(parameters) if parameters else {}
        lists = con.execute(
            """SELECT h.n_calls, (SELECT count(*) FROM permutation_items i WHERE i.permutation = c.permutation)
               FROM permutations h JOIN labelings hl ON hl.labeling = h.labeling AND hl.name = ?
               JOIN labelings cl ON cl.name = ? JOIN permutations c ON c.labeling = cl.labeling AND c.query = h.query""",
            [head, cheap],
        ).fetchall()
        cost = con.execute(
            """SELECT sum(c.tokens_in * t.input_price + c.tokens_out * t.output_price) / 1e6 / count(*)
               FROM labeling_calls u JOIN labelings l USING (labeling) JOIN calls c USING (call)
               JOIN requests r USING (request) JOIN teachers t ON t.teacher = r.teacher WHERE l.name = ?""",
            [head],
        ).fetchall()[0][0]
    given = {key: value for key, value in made.items() if key in by_name.PARAMETERS}
    if strategy not in by_name.STRATEGIES or not lists:
        return None
    whole = by_name.strategy(strategy, **given)
    calls = sum(n for n, _ in lists)
    most = sum(whole.calls(n).least for _, n in lists)
    return Saved(calls, most, None if cost is None else cost * max(most - calls, 0))
