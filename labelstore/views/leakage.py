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
                hint=f"give --allow-overlap to use it, or `msft data add {dataset.name} --role train` if it is not a test set",
            )
