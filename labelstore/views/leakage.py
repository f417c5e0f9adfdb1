"""The leakage guard finds training queries whose normalised text a test set of the store has.

Queries are compared by `keys.normal_hash` (NFKC, case folded, letters and digits alone), so that
another case, width or punctuation does not hide one. Every dataset of role ``test`` is protected, over any collection: the
queries that it judges (only those are measured, and a folder's queries often have all splits), or all if it judges none.
"""

from collections.abc import Sequence

import duckdb

from labelstore.errors import UsageError
from labelstore.store.lookup import Dataset

REASON = "stands in a test set"
HINT = "--allow-overlap trains on them anyway"


def protect(con: duckdb.DuckDBPyConnection, *, allow_overlap: bool) -> None:
    """Make the temporary table ``protected(normal_hash)`` of test queries; empty under `allow_overlap`."""
    con.execute(
        """CREATE OR REPLACE TEMP TABLE protected AS
           SELECT DISTINCT q.normal_hash
           FROM datasets d JOIN dataset_queries dq USING (dataset) JOIN queries q USING (query)
           LEFT JOIN (SELECT DISTINCT dataset, query FROM qrels) j ON j.dataset = d.dataset AND j.query = q.query
           WHERE d.role = 'test' AND NOT ?
             AND (j.query IS NOT NULL OR d.dataset NOT IN (SELECT dataset FROM qrels))""",
        [allow_overlap],
    )


def refuse_test_sets(datasets: Sequence[Dataset], *, allow_overlap: bool) -> None:
    """Refuse to train on a dataset whose role is test.

    Raises:
        UsageError: the message names the dataset, the hint both ways out.
    """
    if allow_overlap:
        return
    for dataset in datasets:
        if dataset.role == "test":
            raise UsageError(
                f"{dataset.name} is a test set: training on it would leak its queries",
                hint=f"give --allow-overlap to use it, or `msft data add {dataset.name}{_origin(dataset)} --role train` if it is"
                " not a test set",
            )


def _origin(dataset: Dataset) -> str:
    return "" if dataset.ir_datasets_id is not None else " --from FOLDER"


def trained_on(
    con: duckdb.DuckDBPyConnection, students: Sequence[str], datasets: Sequence[str]
) -> list[tuple[str, str, int, int]]:
    """Find students that a view with `allow_overlap` taught, where the view's sources have judged queries of these datasets.

    Returns:
        (student, dataset, its judged queries that the sources have, its judged queries), most queries first.
    """
    found: list[tuple[str, str, int, int]] = con.execute(
        """WITH taught AS (
               SELECT DISTINCT s.name AS student, vs.kind, vs.source
               FROM students s JOIN stages g USING (student) JOIN views v USING (view) JOIN view_sources vs USING (view)
               WHERE list_contains(?, s.name) AND (v.parameters ->> 'allow_overlap') = 'true'
           ), sources AS (
               SELECT DISTINCT t.student, coalesce(r.dataset, m.dataset, l.dataset, d.dataset) AS dataset FROM taught t
               LEFT JOIN runs r ON t.kind = 'run' AND r.run = t.source
               LEFT JOIN minings m ON t.kind = 'mining' AND m.mining = t.source
               LEFT JOIN labelings l ON t.kind = 'labeling' AND l.labeling = t.source
               LEFT JOIN datasets d ON t.kind = 'dataset' AND d.dataset = t.source
           ), seen AS (
               SELECT DISTINCT o.student, q.normal_hash FROM sources o JOIN dataset_queries dq USING (dataset)
               JOIN queries q USING (query)
           ), judged AS (
               SELECT DISTINCT d.name AS dataset, j.query, q.normal_hash FROM datasets d JOIN qrels j USING (dataset)
               JOIN queries q USING (query) WHERE list_contains(?, d.name)
           )
           SELECT s.student, j.dataset, count(DISTINCT j.query) AS shared, any_value(n.n)
           FROM judged j JOIN seen s USING (normal_hash)
           JOIN (SELECT dataset, count(DISTINCT query) AS n FROM judged GROUP BY dataset) n ON n.dataset = j.dataset
           GROUP BY s.student, j.dataset ORDER BY shared DESC, s.student, j.dataset""",
        [list(students), list(datasets)],
    ).fetchall()
    return found


def warnings(con: duckdb.DuckDBPyConnection, students: Sequence[str], datasets: Sequence[str]) -> list[str]:
    """Say of which datasets `trained_on` finds that students were taught their queries."""
    return [
        f"{student} was trained with --allow-overlap on data that has {shared:,} of the {judged:,} judged queries of"
        f" {dataset}: its values there do not hold for other queries"
        for student, dataset, shared, judged in trained_on(con, students, datasets)
    ]
