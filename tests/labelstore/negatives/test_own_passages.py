"""Queries that are passages themselves: never their own negatives, and left out of their rankings where asked."""

import json
from pathlib import Path

import duckdb
import pytest

from labelstore.datasets import catalog
from labelstore.datasets.add import NewDataset
from labelstore.datasets.from_folder import add_folder
from labelstore.evaluation import comparison
from labelstore.evaluation import scores as evaluation
from labelstore.negatives import mine as negatives
from labelstore.runs import import_run
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from labelstore.store.sql_steps import sql_file
from labelstore.views import build as views

OTHERS = [{"doc_id": f"o{k}", "text": f"another passage {k}"} for k in range(5)]


def made(tmp_path: Path, query: tuple[str, str], own: dict[str, str], name: str = "x") -> LabelStore:
    """One query; a run has its own passage first, then others, the last of which is relevant."""
    tmp_path.joinpath("f").mkdir()
    documents = [own, *OTHERS]
    (tmp_path / "f/docs.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    (tmp_path / "f/queries.tsv").write_text("\t".join(query) + "\n")
    (tmp_path / "f/qrels.txt").write_text(f"{query[0]} 0 o4 1\n")
    lines = [f"{query[0]} Q0 {d['doc_id']} {k} {10 - k} T\n" for k, d in enumerate(documents, 1)]
    (tmp_path / "r.run").write_text("".join(lines))
    store = LabelStore(tmp_path / "s.duckdb")
    add_folder(store, tmp_path / "f", NewDataset(name, role="train"))
    import_run.import_run(store, tmp_path / "r.run", name, "r")
    return store


# Query, passage, why it is the query itself, and the dataset's name.
SAME = [
    (("a1", "ban smoking in parks"), {"doc_id": "a1", "text": "other words"}, "same id", "arguana"),
    (("7", "ban smoking in parks"), {"doc_id": "7", "text": "ban parks"}, "same id", "beir/quora/test"),
    (("712", "ban smoking"), {"doc_id": "712", "text": "Ban smoking"}, "same text", "x"),
    (("q", "ban smoking in parks"), {"doc_id": "p", "text": "Ban  smoking\n in parks "}, "same text", "x"),
    (("q", "Ban smoking in parks"), {"doc_id": "p", "title": "ban smoking", "text": "in parks"}, "same text", "x"),
    (("q", "公园里 禁烟"), {"doc_id": "p", "title": "t", "text": "公园里 禁烟"}, "same text", "x"),
    (("q", "Cafe\u0301 au lait"), {"doc_id": "p", "text": "caf\u00e9 au lait"}, "same text", "x"),
]  # fmt: skip


@pytest.mark.test_all
@pytest.mark.parametrize(("query", "own", "how", "name"), SAME)
@pytest.mark.parametrize("strategy", ["top", "uniform"])
def test_a_passage_that_is_the_query_is_never_its_negative_and_is_counted(
    tmp_path: Path, query: tuple[str, str], own: dict[str, str], how: str, name: str, strategy: str
) -> None:
    store = made(tmp_path, query, own, name)
    mined = negatives.mine(store, dataset=name, runs=["r"], strategy=strategy)
    drops = next(c for c in mined.counts if c.step == "candidates").drops
    assert drops[f"is the query itself: {how}"][0] == 1
    with store.read() as con:
        found = con.execute(
            "SELECT doc_id FROM negatives JOIN documents USING (document) ORDER BY 1"
        ).fetchall()
        ((kept,),) = con.execute("SELECT n FROM drops WHERE reason LIKE 'is the query itself%'").fetchall()
    assert found == [("o0",), ("o1",), ("o2",), ("o3",)]
    assert kept == 1


@pytest.mark.parametrize(
    ("own", "name"),
    [
        ({"doc_id": "p", "text": "ban smoking in parks now"}, "x"),
        ({"doc_id": "a11", "text": "ban"}, "arguana"),
        ({"doc_id": "p", "title": "ban", "text": "smoking in the parks"}, "quora"),
        ({"doc_id": "a1", "text": "the same id by chance"}, "cranfield"),
        ({"doc_id": "a1", "text": "parks"}, "quorum"),
        ({"doc_id": "a1", "title": "ban smoking in parks", "text": "as the mayor wants"}, "my-arguana"),
    ],
)
def test_a_passage_that_resembles_the_query_or_has_its_id_by_chance_stays(
    tmp_path: Path, own: dict[str, str], name: str
) -> None:
    store = made(tmp_path, ("a1", "ban smoking in parks"), own, name)
    mined = negatives.mine(store, dataset=name, runs=["r"], strategy="top")
    assert mined.mining.n_negatives == 5


@pytest.mark.parametrize(
    ("name", "asked", "value"),
    [
        ("own", False, 1 / 6),
        ("own", True, 1 / 5),
        ("arguana", False, 1 / 5),
        ("quora/dev", False, 1 / 5),
        ("beir/quora/test", True, 1 / 5),
        ("nfcorpus/train", False, 1 / 6),
    ],
)
def test_a_passage_with_the_id_of_its_query_is_left_out_where_the_protocol_or_the_user_says_so(
    tmp_path: Path, name: str, asked: bool, value: float
) -> None:
    store = made(tmp_path, ("a1", "ban smoking"), {"doc_id": "a1", "text": "ban smoking"}, name)
    for _ in range(2):  # the second time from what the store kept
        rows = evaluation.evaluate(store, name, measures=["RR@10"], exclude_self=asked)
        assert [row["value"] for row in rows] == [pytest.approx(value)]
    with store.read() as con:
        kept = con.execute("SELECT value FROM evaluations WHERE measure = 'RR@10'").fetchall()
        of = lookup.dataset(con, name)
    assert kept == ([] if name == "own" and asked else [(pytest.approx(value),)])
    assert of.qrels_hash is not None


def test_values_without_the_query_itself_leave_those_with_it_as_they_were(tmp_path: Path) -> None:
    store = made(tmp_path, ("a1", "ban smoking"), {"doc_id": "a1", "text": "ban smoking"})
    for asked, value in ((False, 1 / 6), (True, 1 / 5), (False, 1 / 6)):
        rows = evaluation.evaluate(store, "x", measures=["RR@10"], exclude_self=asked)
        assert rows[0]["value"] == pytest.approx(value)


@pytest.mark.parametrize(("query", "own", "how", "name"), [SAME[0], SAME[2], SAME[3]])
def test_a_view_that_draws_from_a_run_leaves_the_query_itself_out(
    tmp_path: Path, query: tuple[str, str], own: dict[str, str], how: str, name: str
) -> None:
    store = made(tmp_path, query, own, name)
    view = views.build(store, "contrastive", runs=["r"], depth=10, per_query=10)
    manifest = json.loads((views.folder_of(store, view) / "manifest.json").read_text())
    assert manifest["more_counts"]["passages"]["dropped"][f"is the query itself: {how}"] == 1


@pytest.mark.parametrize(("query", "name"), [(("a1", "ban smoking"), "x"), (("a1", "other words"), "y")])
def test_a_comparison_leaves_the_query_itself_out_as_a_measurement_does(
    tmp_path: Path, query: tuple[str, str], name: str
) -> None:
    store = made(tmp_path, query, {"doc_id": "a1", "text": "ban smoking"}, name)
    import_run.import_run(store, tmp_path / "r.run", name, "again")
    for asked, value in ((False, 1 / 6), (True, 1 / 5)):
        rows = comparison.compare(
            store,
            None,
            [name],
            measures=["RR@10"],
            baseline="r",
            selection=comparison.Selection(exclude_self=asked),
        )
        assert [(r["value"], r["baseline_value"]) for r in rows] == [(pytest.approx(value),) * 2]


@pytest.mark.parametrize(
    "name", [*catalog.ENTRIES, "quora/validation", "beir/arguana", "quorum", "my/quora", "beir/nq"]
)
def test_mining_and_evaluation_know_the_same_protocols(tmp_path: Path, name: str) -> None:
    with duckdb.connect() as con:
        con.execute("CREATE TABLE collections AS SELECT 1 AS collection, 'c' AS name")
        con.execute(
            "CREATE TABLE datasets AS SELECT 1 AS collection, NULL AS ir_datasets_id, ? AS name", [name]
        )
        text = sql_file("own_passages")
        con.execute(text[text.index("CREATE OR REPLACE TEMP TABLE self_retrieving") :].split(";")[0])
        found = con.execute("FROM self_retrieving").fetchall()
    assert bool(found) == catalog.leaves_out_self(name)
