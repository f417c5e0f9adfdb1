"""Pool the head of runs: the passages that someone has to judge, each once, with the reasons why others are left out."""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from labelstore.errors import DataMissing, UsageError
from labelstore.store import lookup
from labelstore.store.sql_steps import Filter, filter_of_pairs

JUDGED, NO_TEXT = "judged already", "no text in the store"


@dataclass(frozen=True)
class Pool:
    """What is pooled: it stands in the temporary table ``pool(query, document)``."""

    of: lookup.Dataset
    runs: tuple[lookup.Run, ...]
    depth: int
    count: Filter


def pool(
    con: duckdb.DuckDBPyConnection,
    dataset: str | None,
    runs: Sequence[str],
    depth: int,
    *,
    judged: bool = False,
) -> Pool:
    """Make the temporary table ``pool`` from the runs' top passages.

    Args:
        dataset: its name; by default the only one. runs: names; by default the only first stage.
        judged: take passages that people have judged as well.

    Raises:
        DataMissing: a name is not found, or nothing is left to judge.
        UsageError: the depth is below 1.
    """
    if depth < 1:
        raise UsageError(f"--depth {depth}: expected at least 1", hint="--depth 10")
    of = lookup.pick_dataset(con, dataset)
    chosen = tuple(lookup.run(con, of, name) for name in dict.fromkeys(runs)) or (
        lookup.pick_run(con, of, None),
    )
    con.execute(
        """CREATE OR REPLACE TEMP TABLE pooled AS
           SELECT DISTINCT c.query, c.document,
                  CASE WHEN NOT ? AND r.query IS NOT NULL THEN ?
                       WHEN d.text IS NULL OR trim(d.text) = '' THEN ? END AS reason
           FROM candidates c JOIN documents d ON d.document = c.document
           LEFT JOIN qrels r ON r.dataset = ? AND r.query = c.query AND r.document = c.document
           WHERE list_contains(?, c.run) AND c.rank <= ?""",
        [judged, JUDGED, NO_TEXT, of.dataset, [run.run for run in chosen], depth],
    )
    con.execute(
        "CREATE OR REPLACE TEMP TABLE pool AS SELECT query, document FROM pooled WHERE reason IS NULL"
    )
    count = filter_of_pairs(con, "pool", "pooled")
    if not count.kept:
        why = count.why() or "the runs are empty"
        raise DataMissing(
            f"{of.name}: no passage is left to judge of {', '.join(run.name for run in chosen)} to depth {depth} ({why})",
            hint="name other runs with --run, or a larger --depth",
        )
    return Pool(of, chosen, depth, count)
