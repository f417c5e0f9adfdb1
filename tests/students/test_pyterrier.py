"""PyTerrier: a student in a pipeline scores as `rerank` does, and the store's frames make its experiments."""

from typing import Any

import made_store
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

from labelstore import pyterrier as frames
from labelstore.errors import DataMissing
from labelstore.evaluation import scores as evaluation
from labelstore.store.label_store import LabelStore
from students.errors import StudentError
from students.jobs.register import add_student
from students.jobs.rerank import load_reranker, rerank_run
from students.pyterrier import Rerank


@pytest.fixture
def store(tiny: Any, tmp_path: Any) -> LabelStore:
    made = made_store.make(tmp_path / "s.duckdb", labels=False)
    add_student(made, str(tiny("bert")), name="tiny", max_length=48)
    return made


def test_a_pipeline_gives_the_scores_and_measures_of_the_store(store: LabelStore) -> None:
    rerank_run(store, student="tiny", dataset="c/train", run="first", precision="fp32")
    first = frames.run(store, "c/train", "first")
    assert list(first.columns) == ["qid", "query", "docno", "text", "score", "rank"]
    assert len(first) == 12 * 30
    pipeline = pt.Transformer.from_df(first) >> Rerank(load_reranker(store, "tiny", precision="fp32"))
    topics = frames.topics(store, "c/train")
    found = pipeline(topics)
    wanted = frames.run(store, "c/train", "tiny@first")
    both = found.merge(wanted, on=["qid", "docno"], suffixes=("", "_wanted"))
    assert len(both) == len(found) == len(wanted)
    np.testing.assert_allclose(both["score"], both["score_wanted"], atol=1e-5)
    assert (both["rank"] == both["rank_wanted"]).mean() > 0.99
    table = pt.Experiment([pipeline], topics, frames.qrels(store, "c/train"), ["ndcg_cut.10", "recip_rank"])
    (ours,) = [
        row["value"]
        for row in evaluation.evaluate(store, "c/train", measures=["nDCG@10"])
        if row["kind"] == "student"
    ]
    assert table["ndcg_cut.10"][0] == pytest.approx(ours, abs=1e-6)


def test_queries_of_any_order_and_a_column_of_another_name(store: LabelStore) -> None:
    frame = (
        frames.run(store, "c/test", "first").sample(frac=1, random_state=1).rename(columns={"text": "body"})
    )
    student = load_reranker(store, "tiny", precision="fp32")
    found = Rerank(student, text="body")(frame)
    assert found["docno"].tolist() == frame["docno"].tolist()
    for qid, own in found.groupby("qid"):
        texts = own["body"].tolist()
        np.testing.assert_allclose(
            own["score"], student.scores([(own["query"].iloc[0], texts)])[0], atol=1e-5
        )
        assert sorted(own["rank"]) == list(range(len(own))), qid
        assert own.sort_values("rank")["score"].is_monotonic_decreasing
    assert Rerank(student)(frames.run(store, "c/test", "first")[:0]).empty


def test_what_is_missing_is_said(store: LabelStore) -> None:
    student = load_reranker(store, "tiny", precision="fp32")
    with pytest.raises(StudentError, match="no column text"):
        Rerank(student)(frames.run(store, "c/test", "first").drop(columns="text"))
    with pytest.raises(StudentError, match="document d9 has no text"):
        Rerank(student)(pd.DataFrame([{"qid": "1", "query": "q", "docno": "d9", "text": None}]))
    with store.write() as con:
        con.execute("DELETE FROM qrels WHERE dataset = 2")
    with pytest.raises(DataMissing, match="no judgments"):
        frames.qrels(store, "c/test")
