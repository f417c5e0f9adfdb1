"""Say from which grade a passage counts as relevant, if the judgments have more than two grades."""

from collections.abc import Iterable, Sequence

import duckdb

from labelstore.datasets import catalog
from labelstore.evaluation import measures as measuring


def told(con: duckdb.DuckDBPyConnection, datasets: Iterable[str], measures: Sequence[str]) -> list[str]:
    """Make a sentence for each dataset of one's own whose grades a binary measure folds; the literature's need none.

    Args:
        measures: ir-measures names.
    """
    folding = [name for name in measures if _folds(name)]
    if not folding:
        return []
    found = []
    for name in datasets:
        rows = con.execute(
            """SELECT max(q.relevance), any_value(coalesce(d.ir_datasets_id, d.name)) FROM qrels q
               JOIN datasets d USING (dataset) WHERE d.name = ?""",
            [name],
        ).fetchall()
        highest, known_as = rows[0]
        if highest is None or highest < 2 or catalog.measures(known_as) != catalog.OTHER:
            continue
        measure, at, cut = folding[0].partition("@")
        found.append(
            f"{name} has grades up to {highest}; {', '.join(folding)} count passages of grade 1 and above as relevant."
            f"\n  For grade 2 and above: --measure '{measure}(rel=2){at}{cut}'"
        )
    return found


def _folds(name: str) -> bool:
    """Tell whether a measure takes a grade from which passages are relevant, and its name does not say it."""
    measure = measuring.parse(name)
    return "rel" in measure.SUPPORTED_PARAMS and "rel" not in measure.params
