"""Score generated queries with the passages that they were made from, for `msft queries filter --reranker`."""

from labelstore.generated.filter import pick
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from students.jobs.candidates import Tick
from students.jobs.rerank import load_reranker

STUDENT = "student:"


def query_scores(
    store: LabelStore, dataset: str, model: str, progress: Tick | None = None
) -> dict[int, float]:
    """Score every generated query of a dataset with its own passage; the store is closed while the model scores.

    Args:
        model: student:NAME, a Hugging Face id or a folder of a cross-encoder.

    Returns:
        The raw logit by the query's key.

    Raises:
        DataMissing, StudentError: the dataset or the model is not found.
    """
    from students.rerank.reranker import Reranker

    with store.read() as con:
        of = pick(con, dataset)
        rows = con.execute(
            f"""SELECT o.query, q.text, p.passage FROM query_origins o JOIN queries q USING (query)
                JOIN (SELECT document, {lookup.FULL_TEXT} AS passage FROM documents) p ON p.document = o.document
                WHERE o.dataset = ? AND p.passage IS NOT NULL ORDER BY q.query_id""",
            [of.dataset],
        ).fetchall()
    if model.startswith(STUDENT):
        reranker = load_reranker(store, model.removeprefix(STUDENT))
    else:
        reranker = Reranker.load(model)
    scores = reranker.scores([(text, [passage]) for _, text, passage in rows], progress)
    return {query: float(score[0]) for (query, _, _), score in zip(rows, scores, strict=True)}
