"""A pool has each unjudged passage of the runs' heads once; a sheet's page is inert, whatever its texts are."""

import json
import re
from pathlib import Path

import made_store
import pytest

from labelstore.errors import DataMissing, UsageError
from labelstore.judgments import sheet
from labelstore.judgments.pool import JUDGED, NO_TEXT, pool
from labelstore.judgments.sheet import write_sheet
from labelstore.store.label_store import LabelStore


@pytest.mark.parametrize(("depth", "judged"), [(1, False), (5, False), (5, True)])
def test_a_pool_is_the_union_of_the_heads_without_what_is_judged(
    tmp_path: Path, depth: int, judged: bool
) -> None:
    store = made_store.make(tmp_path / "s.duckdb", n_documents=40, n_queries=6, unheld=(4,))
    with store.write() as con:
        made_store.add_run(con, 1, "second", 0, list(range(6)), 40, 20, 1, 9, step=5)
    with store.read() as con:
        found = pool(con, "c/train", ["first", "second"], depth, judged=judged)
        pairs = set(con.execute("SELECT query, document FROM pool").fetchall())
    heads = {(n, (n * step + k) % 40) for n in range(6) for step in (3, 5) for k in range(depth)}
    human = {(n, n) for n in range(6)}
    assert found.count.n_in == len(heads)
    assert pairs == {(q, d) for q, d in heads if d != 4 and (judged or (q, d) not in human)}
    assert found.count.kept == len(pairs)
    dropped = {reason: n for reason, (n, _) in found.count.drops.items()}
    assert dropped.get(JUDGED, 0) == (0 if judged else len(heads & human))
    assert dropped.get(NO_TEXT, 0) == sum(d == 4 for q, d in heads if judged or (q, d) not in human)


def test_what_cannot_be_pooled_is_refused(tmp_path: Path) -> None:
    store = made_store.make(tmp_path / "s.duckdb", n_documents=20, n_queries=3)
    with pytest.raises(UsageError, match="--depth 0"):
        write_sheet(store, "c/train", tmp_path / "s.html", depth=0)
    with pytest.raises(DataMissing, match="no run over c/train named 'missing'"):
        write_sheet(store, "c/train", tmp_path / "s.html", runs=["missing"])
    with store.write() as con:
        con.execute(
            "INSERT INTO qrels SELECT 1, query, document, 0 FROM candidates WHERE run = 1 EXCEPT SELECT 1, query, document, 0 FROM qrels WHERE dataset = 1"
        )
    with pytest.raises(DataMissing, match=f"no passage is left to judge.*{JUDGED}"):
        write_sheet(store, "c/train", tmp_path / "s.html", runs=["first"])
    assert not (tmp_path / "s.html").exists()


def _data(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_the_page_names_no_system_and_the_seed_orders_it(tmp_path: Path) -> None:
    store = made_store.make(tmp_path / "s.duckdb")
    with store.write() as con:
        con.execute("UPDATE runs SET name = 'secret-system', system = 'hidden-maker'")
    pages = []
    for seed in (1, 1, 2):
        made = write_sheet(store, "c/train", tmp_path / "s.html", runs=["secret-system"], depth=4, seed=seed)
        pages.append((tmp_path / "s.html").read_text("utf-8"))
    assert "secret-system" not in pages[0]
    assert "hidden-maker" not in pages[0]
    assert pages[0] == pages[1] != pages[2]
    pairs = [[(i["query_id"], i["doc_id"]) for i in _data(page)["items"]] for page in pages]
    assert sorted(pairs[0]) == sorted(pairs[2])
    assert len(pairs[0]) == len(set(pairs[0])) == made.count.kept
    queries = [query for query, _ in pairs[0]]
    assert (
        len([q for k, q in enumerate(queries) if k == 0 or queries[k - 1] != q]) == made.queries
    )  # query by query


@pytest.mark.parametrize(
    "text",
    ["</script><script>alert(1)</script>", "<!--", "\u2028 \u2029", "{{ policy }}", "' \" & <img src=x>"],
)
def test_no_text_leaves_the_data(text: str) -> None:
    item = {"query_id": "q", "query": text, "doc_id": "d", "title": text, "text": text}
    page = sheet.render(text, [item])
    assert page.lower().count("<script") == 2
    assert _data(page)["items"] == [item]


def test_ids_that_qrels_cannot_hold_are_counted(tmp_path: Path) -> None:
    store: LabelStore = made_store.make(tmp_path / "s.duckdb", n_documents=20, n_queries=4)
    with store.write() as con:
        con.execute("UPDATE documents SET doc_id = 'a b' WHERE doc_id = 'd1'")
    made = write_sheet(store, "c/train", tmp_path / "s.html", depth=6)
    n, example = made.count.drops[sheet.UNWRITABLE]
    assert n > 0
    assert example.endswith("a b")
    assert (
        len(_data((tmp_path / "s.html").read_text("utf-8"))["items"])
        == made.count.kept
        == made.count.n_in - n - made.count.drops[JUDGED][0]
    )
