"""A dataset of the store as PyTerrier's frames: topics, qrels and runs with texts.

topics, qrels = pyterrier.topics(store, "mydata/test"), pyterrier.qrels(store, "mydata/test")
bm25 = pt.Transformer.from_df(pyterrier.run(store, "mydata/test", "bm25s"))
"""

from typing import TYPE_CHECKING

from labelstore.errors import DataMissing
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from msft.host import extras

if TYPE_CHECKING:
    import pandas as pd


def topics(store: LabelStore, dataset: str | None = None) -> "pd.DataFrame":
    """Return the queries of a dataset (by default the only one): qid and query."""
    return _frame(
        store,
        dataset,
        "SELECT query_id AS qid, text AS query FROM dataset_queries JOIN queries USING (query) WHERE dataset = ?"
        " ORDER BY query_id",
    )


def qrels(store: LabelStore, dataset: str | None = None) -> "pd.DataFrame":
    """Return the human judgments of a dataset: qid, docno and label.

    Raises:
        DataMissing: the dataset has none.
    """
    found = _frame(
        store,
        dataset,
        "SELECT query_id AS qid, doc_id AS docno, relevance::BIGINT AS label FROM qrels"
        " JOIN queries USING (query) JOIN documents USING (document) WHERE qrels.dataset = ? ORDER BY query_id, doc_id",
    )
    if found.empty:
        raise DataMissing("the dataset has no judgments", hint="msft data add DATASET --qrels FILE")
    return found


def run(store: LabelStore, dataset: str | None = None, run: str | None = None) -> "pd.DataFrame":
    """Return a run with its texts: qid, query, docno, text, score and rank (from 0), best first.

    Args:
        dataset, run: names; None takes the only one that fits.

    Raises:
        DataMissing: a name is not found.
    """
    extras.require("pyterrier")
    with store.read() as con:
        of = lookup.pick_dataset(con, dataset)
        source = lookup.pick_run(con, of, run)
        return con.execute(
            f"""SELECT query_id AS qid, asked AS query, doc_id AS docno, {lookup.FULL_TEXT} AS text,
                       score::DOUBLE AS score, (rank - 1)::BIGINT AS rank
                FROM candidates JOIN (SELECT query, query_id, text AS asked FROM queries) USING (query)
                JOIN documents USING (document) WHERE run = ? ORDER BY query_id, rank""",
            [source.run],
        ).df()


def _frame(store: LabelStore, dataset: str | None, sql: str) -> "pd.DataFrame":
    extras.require("pyterrier")
    with store.read() as con:
        return con.execute(sql, [lookup.pick_dataset(con, dataset).dataset]).df()
