"""Views: what they keep, what they leave out and say so, their hashes, their folders."""

import json
from pathlib import Path

import made_store
import pyarrow.parquet as pq
import pytest

from labelstore.errors import DataMissing, UsageError
from labelstore.negatives import mine as negatives
from labelstore.store import keys
from labelstore.store.label_store import LabelStore
from labelstore.views import build as views
from labelstore.views import folder as export
from labelstore.views import parameters


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return made_store.make(tmp_path / "s.duckdb")


def read(store: LabelStore, view) -> tuple[dict, list[dict], dict[int, str], dict[int, str]]:
    """Manifest, lists, doc_id by passage, query_id by query."""
    folder = views.folder_of(store, view)
    passages = pq.read_table(folder / "passages.parquet").to_pylist()
    queries = pq.read_table(folder / "queries.parquet").to_pylist()
    assert [p["passage"] for p in passages] == list(range(len(passages)))
    assert [q["query"] for q in queries] == list(range(len(queries)))
    return (
        export.read_manifest(folder),
        pq.read_table(folder / "lists.parquet").to_pylist(),
        {p["passage"]: p["doc_id"] for p in passages},
        {q["query"]: q["query_id"] for q in queries},
    )


def test_contrastive_lists_hold_the_positive_and_negatives_of_the_run(store: LabelStore) -> None:
    view = views.build(store, "contrastive", datasets=["c/train"], runs=["first"], per_query=5, depth=10)
    manifest, lists, docs, queries = read(store, view)
    assert len(lists) == view.n_lists == 11  # the twelfth stands in the test set
    for row in lists:
        n = int(queries[row["query"]][1:])
        ids = [docs[p] for p in row["passages"]]
        assert row["labels"] == [1, 0, 0, 0, 0, 0]
        assert ids[0] == f"d{n}"
        assert len(set(ids)) == 6
        ranked = [f"d{(n * 3 + k) % 60}" for k in range(10)]
        assert [ranked.index(d) + 1 for d in ids[1:]] == row["ranks"][1:]
        assert row["ranks"][1:] == sorted(row["ranks"][1:])
        assert row["relevances"][0] == 1
        assert row["scores"] is None
    assert manifest["counts"] == {"in": 12, "kept": 11, "dropped": {"stands in a test set": 1}}
    for count in [manifest["counts"], *manifest["more_counts"].values()]:
        assert count["in"] == count["kept"] + sum(count["dropped"].values())
    assert manifest["more_counts"]["passages"]["kept"] == 55
    assert manifest["n_pairs"] == 66


def test_the_counts_are_in_the_store(store: LabelStore) -> None:
    view = views.build(store, "contrastive", datasets=["c/train"], runs=["first"], per_query=5, depth=10)
    with store.read() as con:
        steps = con.execute(
            """SELECT f.step, f.n_in, f.n_kept, coalesce(sum(d.n), 0) FROM filters f LEFT JOIN drops d USING (job, step, subject)
               WHERE f.subject = ? GROUP BY ALL""",
            [view.name],
        ).fetchall()
    assert {s for s, *_ in steps} == {"view queries", "view positives", "view passages"}
    for _, n_in, kept, dropped in steps:
        assert n_in == kept + dropped


def test_same_parameters_and_content_are_one_view(store: LabelStore) -> None:
    first = views.build(store, "contrastive", datasets=["c/train"], runs=["first"], per_query=5)
    again = views.build(store, "contrastive", datasets=["c/train"], runs=["first"], per_query=5)
    other = views.build(store, "contrastive", datasets=["c/train"], runs=["first"], per_query=5, seed=7)
    assert first == again
    assert other.view_hash != first.view_hash
    assert sorted(p.name for p in (store.files / "views").iterdir()) == sorted(
        [first.view_hash, other.view_hash]
    )


@pytest.mark.test_all
def test_hash_does_not_depend_on_surrogate_keys(tmp_path: Path) -> None:
    one = made_store.make(tmp_path / "one.duckdb")
    two = made_store.make(tmp_path / "two.duckdb", offset=5000)
    for kind, source in (
        ("contrastive", {"runs": ["first"]}),
        ("distillation", {"labels": ["teacher@first"]}),
    ):
        built = [views.build(s, kind, datasets=["c/train"], **source) for s in (one, two)]
        assert built[0].view_hash == built[1].view_hash
    folder = views.folder_of(one, built[0])
    assert export.findings(folder, built[0].view_hash, "distillation") == []


def test_hash_depends_on_texts(tmp_path: Path) -> None:
    one = made_store.make(tmp_path / "one.duckdb")
    two = made_store.make(tmp_path / "two.duckdb")
    with two.write() as con:
        con.execute(
            "UPDATE documents SET text = 'other', text_hash = ? WHERE doc_id = 'd3'",
            [keys.text_hash(None, "other")],
        )
    built = [views.build(s, "contrastive", datasets=["c/train"], runs=["first"]) for s in (one, two)]
    assert built[0].view_hash != built[1].view_hash


def test_draws_are_uniform_over_ranks(tmp_path: Path) -> None:
    store = made_store.make(tmp_path / "s.duckdb", n_queries=400, n_documents=900, depth=40, labels=False)
    view = views.build(
        store, "contrastive", datasets=["c/train"], runs=["first"], per_query=10, depth=40, allow_overlap=True
    )
    _, lists, _, _ = read(store, view)
    ranks = [r for row in lists for r, label in zip(row["ranks"], row["labels"], strict=True) if not label]
    counts = [ranks.count(r) for r in range(1, 41)]
    mean = len(ranks) / 40
    chi2 = sum((c - mean) ** 2 / mean for c in counts)
    assert chi2 < 80  # 39 degrees of freedom: p < .0001 beyond; the seed makes it exact
    pairs = {(row["query"], r) for row in lists for r in row["ranks"]}
    assert len({tuple(row["ranks"][1:]) for row in lists}) > 390  # no two queries draw alike
    assert len(pairs) > 4000


def test_a_draw_from_few_takes_them_all(store: LabelStore) -> None:
    view = views.build(store, "contrastive", datasets=["c/train"], runs=["first"], per_query=99, depth=10)
    _, lists, docs, queries = read(store, view)
    for row in lists:
        n = int(queries[row["query"]][1:])
        own = {f"d{(n * 3 + k) % 60}" for k in range(10)} | {f"d{n}"}
        assert {docs[p] for p in row["passages"]} == own


def test_no_positive_and_positive_not_held_are_reasons(tmp_path: Path) -> None:
    store = made_store.make(tmp_path / "s.duckdb", unheld=(3, 20))
    with store.write() as con:
        con.execute("DELETE FROM qrels WHERE query = 5")
        con.execute("DELETE FROM candidates WHERE query = 6")
    view = views.build(store, "contrastive", datasets=["c/train"], runs=["first"])
    manifest, lists, docs, _ = read(store, view)
    assert manifest["counts"]["dropped"] == {
        "no positive": 1,
        "positive not held": 1,
        "no negatives": 1,
        "stands in a test set": 1,
    }
    assert not {"d3", "d20"} & {docs[p] for row in lists for p in row["passages"]}
    assert manifest["more_counts"]["passages"]["dropped"]["passage not held"] > 0


def test_a_negative_with_the_text_of_a_positive_is_left_out(store: LabelStore) -> None:
    text = made_store.text_of(0)
    with store.write() as con:  # d2 is among q0's candidates, d0 its positive
        con.execute(
            "UPDATE documents SET text = ?, text_hash = ? WHERE doc_id = 'd2'",
            [text, keys.text_hash(None, text)],
        )
    view = views.build(store, "contrastive", datasets=["c/train"], runs=["first"], depth=10)
    manifest, lists, docs, queries = read(store, view)
    (row,) = [r for r in lists if queries[r["query"]] == "q0"]
    assert "d2" not in {docs[p] for p in row["passages"]}
    assert manifest["more_counts"]["passages"]["dropped"]["same text as a positive"] == 1


@pytest.mark.test_all
def test_positives_each_one_all(store: LabelStore) -> None:
    with store.write() as con:
        con.execute("INSERT INTO qrels VALUES (1, 0, 40, 2), (1, 0, 41, 1)")
    base = {"datasets": ["c/train"], "runs": ["first"], "per_query": 4, "depth": 20}
    each = read(store, views.build(store, "contrastive", **base))
    one = read(store, views.build(store, "contrastive", positives="one", **base))
    every = read(store, views.build(store, "contrastive", positives="all", **base))
    capped = read(store, views.build(store, "contrastive", max_positives=2, **base))
    sizes = [sum(1 for r in m[1] if m[3][r["query"]] == "q0") for m in (each, one, every, capped)]
    assert sizes == [3, 1, 1, 2]
    (row,) = [r for r in every[1] if every[3][r["query"]] == "q0"]
    assert row["labels"] == [1, 1, 1, 0, 0, 0, 0]
    assert {every[2][p] for p in row["passages"][:3]} == {"d0", "d40", "d41"}
    assert one[0]["more_counts"]["positives"]["dropped"] == {"another positive was drawn": 2}
    draws = {tuple(r["passages"][1:]) for r in each[1] if each[3][r["query"]] == "q0"}
    assert len(draws) > 1  # each list draws its own negatives


@pytest.mark.parametrize("mined", [False, True])
def test_positives_that_no_run_ranks_are_left_out_when_asked(store: LabelStore, mined: bool) -> None:
    with store.write() as con:  # q1's run ranks d3 … d32, q2's d6 … d35; q0's begins with its positive
        con.execute("INSERT INTO qrels VALUES (1, 1, 20, 1), (1, 2, 7, 1)")
    source: dict[str, object] = {"runs": ["first"], "depth": 10}
    if mined:
        negatives.mine(store, dataset="c/train", runs=["first"], depth=10, per_query=5, name="hard")
        source = {"negatives": ["hard"]}
    manifest, lists, docs, queries = read(
        store, views.build(store, "contrastive", datasets=["c/train"], retrieved=True, **source)
    )
    positives = {(queries[row["query"]], docs[row["passages"][0]]): row["ranks"][0] for row in lists}
    # d20 is at rank 18: within the mining's run, not within the ten taken straight from it
    assert positives.keys() == {("q0", "d0"), ("q2", "d7")} | ({("q1", "d20")} if mined else set())
    assert manifest["more_counts"]["positives"]["dropped"]["positive not retrieved"] == 11 - mined
    assert manifest["counts"]["dropped"] == {
        "positive not retrieved": 9 - mined,
        "stands in a test set": 1,
    }


def test_distillation_filters_by_status_repairs_and_text(store: LabelStore) -> None:
    with store.write() as con:
        con.execute(
            "UPDATE documents SET version = 2, text = 'new', text_hash = ? WHERE doc_id = 'd9'",
            [keys.text_hash(None, "new")],
        )
    view = views.build(store, "distillation", labels=["teacher@first"])
    manifest, lists, docs, queries = read(store, view)
    assert manifest["counts"] == {
        "in": 12,
        "kept": 10,
        "dropped": {"stands in a test set": 1, "status wrong_format": 1},
    }
    assert manifest["more_counts"]["passages"]["dropped"] == {"text has changed": 3}  # q0, q1 and q3 hold d9
    for row in lists:
        n = int(queries[row["query"]][1:])
        expected = [f"d{n * 3 + k}" for k in reversed(range(10)) if n * 3 + k != 9]
        assert [docs[p] for p in row["passages"]] == expected
        assert row["ranks"] == list(range(1, len(expected) + 1))
        assert row["labels"] == sorted(row["labels"], reverse=True)
    strict = views.build(store, "distillation", labels=["teacher@first"], max_repairs=1)
    assert read(store, strict)[0]["counts"]["dropped"]["too many repairs"] == 1
    assert view.licence == "research only"


@pytest.mark.parametrize("mined", [False, True])
def test_scores_of_the_run_come_in_when_asked(store: LabelStore, mined: bool) -> None:
    sources: dict[str, list[str]] = {"runs": ["first"]}
    if mined:
        negatives.mine(store, dataset="c/train", runs=["first"], depth=10, per_query=5, name="m")
        sources = {"negatives": ["m"]}
    options = {"datasets": ["c/train"], "per_query": 5, "depth": 10}
    with store.read() as con:
        scores = {
            (q, d): s for q, d, s in con.execute("SELECT query_id, doc_id, score FROM ranked").fetchall()
        }
    view = views.build(store, "contrastive", **options, **sources, scores=True)
    manifest, lists, docs, queries = read(store, view)
    assert lists
    for row in lists:
        own = [scores[queries[row["query"]], docs[p]] for p in row["passages"]]
        assert row["scores"] == own
    unranked = [q for q in range(11) if (f"q{q}", f"d{q}") not in scores]
    assert manifest["counts"]["dropped"].get("no run scores its positive", 0) == len(unranked)
    assert len(lists) == 11 - len(unranked)
    for count in [manifest["counts"], *manifest["more_counts"].values()]:
        assert count["in"] == count["kept"] + sum(count["dropped"].values())
    assert manifest["more_counts"]["passages"]["kept"] == sum(len(row["labels"]) - 1 for row in lists)


def test_scores_of_the_teacher_are_kept(store: LabelStore) -> None:
    with store.write() as con:
        con.execute("UPDATE permutation_items SET score = 1.5 * grade WHERE permutation <> 1003")
    _, lists, _, queries = read(store, views.build(store, "distillation", labels=["teacher@first"]))
    for row in lists:
        if queries[row["query"]] == "q3":
            assert row["scores"] is None
        else:
            assert row["scores"] == [1.5 * g for g in row["labels"]]


def test_rerank_takes_the_run_as_it_is(store: LabelStore) -> None:
    view = views.build(store, "rerank", datasets=["c/test"], runs=["first"], depth=5)
    manifest, lists, docs, queries = read(store, view)
    assert view.n_lists == 4
    for row in lists:
        n = int(queries[row["query"]][1:])
        assert [docs[p] for p in row["passages"]] == [f"d{(n * 3 + k) % 60}" for k in range(5)]
        assert row["ranks"] == [1, 2, 3, 4, 5]
        assert row["labels"] == [0] * 5
        assert row["split"] == "train"
    assert manifest["more_counts"]["passages"]["dropped"] == {"below the depth": 100}


def test_a_test_set_is_refused(store: LabelStore) -> None:
    with pytest.raises(UsageError, match="c/test is a test set") as error:
        views.build(store, "contrastive", datasets=["c/test"], runs=["first"])
    assert "--allow-overlap" in str(error.value.hint)
    assert "--role train" in str(error.value.hint)
    view = views.build(store, "contrastive", datasets=["c/test"], runs=["first"], allow_overlap=True)
    assert view.n_lists == 4


def test_only_judged_test_queries_are_protected_unless_none_is(store: LabelStore) -> None:
    with store.write() as con:
        con.execute("DELETE FROM qrels WHERE query = ?", [made_store.TEST + 3])
    judged = views.build(store, "contrastive", datasets=["c/train"], runs=["first"])
    with store.write() as con:
        con.execute("DELETE FROM qrels WHERE dataset = 2")
    none_judged = views.build(store, "contrastive", datasets=["c/train"], runs=["first"])
    assert (judged.n_lists, none_judged.n_lists) == (12, 11)


def test_bad_input_leaves_no_trace(store: LabelStore) -> None:
    with store.read() as con:
        before = con.execute("SELECT count(*) FROM provenance").fetchall()
    for arguments, wanted in (
        ({"kind": "contrastive", "datasets": ["c/trian"]}, DataMissing),
        ({"kind": "contrastive", "datasets": ["c/train"], "runs": ["frist"]}, DataMissing),
        ({"kind": "contrastive", "datasets": ["c/train"], "negatives": ["none"]}, DataMissing),
        ({"kind": "distillation", "labels": ["none"]}, DataMissing),
        ({"kind": "distillation", "labels": ["teacher@first"], "depth": 0}, UsageError),
        ({"kind": "distillation", "labels": ["teacher@first"], "per_query": 3}, UsageError),
        ({"kind": "distillation", "runs": ["first"]}, UsageError),
        ({"kind": "other"}, UsageError),
        ({"kind": "contrastive", "datasets": ["c/train"], "min_relevance": 3}, DataMissing),
    ):
        with pytest.raises(wanted) as error:
            views.build(store, **arguments)
        assert error.value.hint
    with store.read() as con:
        assert con.execute("SELECT count(*) FROM provenance").fetchall() == before
        assert con.execute("SELECT count(*) FROM views").fetchall() == [(0,)]
    assert list((store.files / "views").iterdir()) == []


def test_validation_split_follows_the_query(tmp_path: Path) -> None:
    store = made_store.make(tmp_path / "s.duckdb", n_queries=300, n_documents=400)
    split: dict[str, set[str]] = {}
    for kind, arguments in (("contrastive", {"runs": ["first"]}), ("distillation", {})):
        _, lists, _, queries = read(
            store, views.build(store, kind, datasets=["c/train"], valid_fraction=0.1, **arguments)
        )
        for row in lists:
            split.setdefault(queries[row["query"]], set()).add(row["split"])
    assert all(len(sides) == 1 for sides in split.values())
    share = sum("valid" in sides for sides in split.values()) / len(split)
    assert 0.05 < share < 0.16
    tiny = read(
        store, views.build(store, "contrastive", datasets=["c/train"], runs=["first"], valid_fraction=1e-6)
    )
    assert sum(r["split"] == "valid" for r in tiny[1]) == 1


def test_max_lists_draws_and_counts(store: LabelStore) -> None:
    view = views.build(store, "contrastive", datasets=["c/train"], runs=["first"], max_lists=4)
    manifest, lists, _, _ = read(store, view)
    assert len(lists) == 4
    assert manifest["counts"]["dropped"]["beyond max_lists"] == 7
    for count in [manifest["counts"], *manifest["more_counts"].values()]:
        assert count["in"] == count["kept"] + sum(count["dropped"].values())


def test_one_view_across_collections(store: LabelStore) -> None:
    with store.write() as con:
        con.execute("INSERT INTO collections VALUES (7, 'other', NULL, NULL, 1)")
        con.execute(
            "INSERT INTO documents VALUES (9000, 7, 'd0', 'T', 'another d0', 5, 1), (9001, 7, 'x', NULL, 'x', 6, 1)"
        )
        con.execute("INSERT INTO datasets VALUES (7, 'other/train', 7, 'train', NULL, NULL, NULL, 1)")
        con.execute("INSERT INTO queries VALUES (9000, 7, 'q0', 'what is x', 77, 78)")
        con.execute("INSERT INTO dataset_queries VALUES (7, 9000)")
        con.execute("INSERT INTO qrels VALUES (7, 9000, 9001, 1)")
        con.execute(
            "INSERT INTO runs VALUES (7, 'first', 7, 'first_stage', 'x', NULL, NULL, '{}', 2, 1, 2, 'h', 1)"
        )
        con.execute("INSERT INTO candidates VALUES (7, 9000, 1, 9000, 2.0), (7, 9000, 2, 9001, 1.0)")
    view = views.build(store, "contrastive", datasets=["c/train", "other/train"], runs=["first"])
    _, lists, docs, queries = read(store, view)
    assert view.n_lists == 12
    assert [queries[r["query"]] for r in lists].count("q0") == 2
    texts = pq.read_table(views.folder_of(store, view) / "passages.parquet").column("text").to_pylist()
    assert "T another d0" in texts
    assert sum(d == "d0" for d in docs.values()) == 2


def test_an_edited_folder_is_found(store: LabelStore) -> None:
    view = views.build(store, "distillation", labels=["teacher@first"])
    folder = views.folder_of(store, view)
    assert export.findings(folder, view.view_hash, view.kind) == []
    table = pq.read_table(folder / "lists.parquet")
    pq.write_table(table, folder / "lists.parquet", compression="snappy")
    assert any("was changed" in f for f in export.findings(folder, view.view_hash, view.kind))
    assert export.content_hash(folder, view.kind) == view.view_hash  # other bytes, same rows
    flipped = table.set_column(0, "list", table["list"])
    labels = [row[::-1] for row in table["labels"].to_pylist()]
    import pyarrow as pa

    flipped = table.set_column(3, "labels", pa.array(labels, pa.list_(pa.int16())))
    pq.write_table(flipped, folder / "lists.parquet")
    assert export.content_hash(folder, view.kind) != view.view_hash
    (folder / "queries.parquet").unlink()
    assert any("queries.parquet is missing" in f for f in export.findings(folder, view.view_hash, view.kind))


def test_huggingface_reads_the_folder(store: LabelStore, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    view = views.build(store, "distillation", labels=["teacher@first"])
    target = tmp_path / "copy"
    export.copy_folder(views.folder_of(store, view), target)
    loaded = datasets.load_dataset(str(target), "lists", split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == view.n_lists
    assert len(loaded[0]["passages"]) == len(loaded[0]["labels"])


def test_manifest_is_plain_json(store: LabelStore) -> None:
    view = views.build(store, "distillation", labels=["teacher@first"])
    manifest = json.loads((views.folder_of(store, view) / "manifest.json").read_text())
    assert {
        "format",
        "kind",
        "name",
        "view_hash",
        "seed",
        "n_lists",
        "n_pairs",
        "n_queries",
        "n_passages",
    } <= set(manifest)
    assert set(manifest["files"]) == {"queries.parquet", "passages.parquet", "lists.parquet", "README.md"}


BOTH = [
    ("contrastive", {"datasets": ["c/train"], "runs": ["first"], "per_query": 4, "depth": 8}),
    ("distillation", {"labels": ["teacher@first"]}),
]


@pytest.mark.parametrize("easy", [1, 3, 7])
@pytest.mark.parametrize(("kind", "base"), BOTH)
def test_easy_passages_stand_tied_below_what_was_labelled(
    store: LabelStore, kind: str, base: dict, easy: int
) -> None:
    plain = read(store, views.build(store, kind, **base, name="plain"))
    view = views.build(store, kind, **base, easy=easy, name="easy")
    manifest, lists, docs, queries = read(store, view)
    assert len(lists) == len(plain[1])
    for row, before in zip(lists, plain[1], strict=True):
        n = int(queries[row["query"]][1:])
        own = [docs[p] for p in row["passages"]]
        assert own[:-easy] == [plain[2][p] for p in before["passages"]]
        assert len(set(own)) == len(own) == len(before["passages"]) + easy
        bottom, top = row["labels"][-easy:], row["labels"][:-easy]
        assert set(bottom) == {0}
        assert min(top) > 0 if kind == "distillation" else top == before["labels"]
        assert row["relevances"][-easy:] == [-1] * easy
        seen = 8 if kind == "contrastive" else 10  # of the run, of the labeling
        assert not set(own[-easy:]) & ({f"d{(n * 3 + k) % 60}" for k in range(seen)} | {f"d{n}"})
    count = manifest["more_counts"]["easy passages"]
    assert count == {"in": easy * len(lists), "kept": easy * len(lists), "dropped": {}}
    assert manifest["counts"] == plain[0]["counts"]
    assert manifest["more_counts"]["passages"] == plain[0]["more_counts"]["passages"]
    with store.read() as con:
        found = con.execute(
            "SELECT n_in, n_kept FROM filters WHERE subject = 'easy' AND step = 'view easy passages'"
        ).fetchall()
    assert found == [(easy * len(lists),) * 2]


@pytest.mark.test_all
@pytest.mark.parametrize(("kind", "base"), BOTH)
def test_easy_draws_follow_the_seed_and_no_surrogate_key(tmp_path: Path, kind: str, base: dict) -> None:
    hashes = []
    for name, offset, seed in (("a", 0, 1), ("b", 700, 1), ("c", 0, 2)):
        store = made_store.make(tmp_path / f"{name}.duckdb", offset=offset)
        hashes.append(views.build(store, kind, **base, easy=3, seed=seed).view_hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_easy_passages_are_neither_judged_nor_equal_in_text_and_a_lack_is_counted(tmp_path: Path) -> None:
    store = made_store.make(tmp_path / "s.duckdb", n_documents=14, n_queries=2, depth=10, unheld=(13,))
    with store.write() as con:  # q0's run ranks d0 … d9: d10, d11 and d12 are left
        con.execute("DELETE FROM dataset_queries WHERE query = 1")
        con.execute("INSERT INTO qrels VALUES (1, 0, 10, 0)")
        con.execute(
            "UPDATE documents SET text = ?, text_hash = ? WHERE doc_id = 'd11'",
            [made_store.text_of(0), keys.text_hash(None, made_store.text_of(0))],
        )
    view = views.build(store, "contrastive", datasets=["c/train"], runs=["first"], easy=3, allow_overlap=True)
    manifest, (row,), docs, _ = read(store, view)
    assert docs[row["passages"][-1]] == "d12"
    assert not {"d10", "d11", "d13"} & {docs[p] for p in row["passages"]}
    assert manifest["more_counts"]["easy passages"] == {
        "in": 3,
        "kept": 1,
        "dropped": {"the collection has too few others": 2},
    }


def judge(store: LabelStore, query: int, grades: dict[int, int]) -> None:
    """Grades for passages at these places of the teacher's order over `query` (0 is its first)."""
    with store.write() as con:
        for place, grade in grades.items():
            con.execute(
                """INSERT INTO qrels SELECT 1, p.query, i.document, ? FROM permutation_items i JOIN permutations p
                   USING (permutation) WHERE p.query = ? AND i.rank = ? AND NOT EXISTS (FROM qrels q
                   WHERE q.dataset = 1 AND q.query = p.query AND q.document = i.document)""",
                [grade, query, place + 1],
            )


@pytest.mark.parametrize("grades", [{9: 2}, {4: 1, 7: 3}, {2: 0, 5: 1, 8: 1}, {1: 1, 0: 1}])
def test_judged_first_leads_by_grade_and_counts_lists_without_one(store: LabelStore, grades: dict) -> None:
    base = {"labels": ["teacher@first"]}
    judge(store, 5, grades)
    with store.write() as con:
        con.execute("UPDATE permutation_items SET score = 100 - rank")
    before = {r["query"]: r for r in read(store, views.build(store, "distillation", **base))[1]}
    view = views.build(store, "distillation", **base, judged_first=True)
    manifest, lists, _, _ = read(store, view)
    led = 0
    for row in lists:
        plain = before[row["query"]]
        leads = [r > 0 for r in plain["relevances"]]
        order = sorted(range(len(leads)), key=lambda k: (not leads[k], -plain["relevances"][k] * leads[k], k))
        assert row["passages"] == [plain["passages"][k] for k in order]
        assert row["ranks"] == list(range(1, len(order) + 1))
        n, labels = sum(leads), row["labels"]
        assert labels[n:] == [plain["labels"][k] for k in order[n:]], "below them the teacher's order stands"
        assert not n or min(labels[:n]) > max(plain["labels"])
        assert [labels[k] > labels[k + 1] for k in range(n - 1)] == [
            row["relevances"][k] > row["relevances"][k + 1] for k in range(n - 1)
        ], "equal judgments are ties"
        assert (row["scores"] is None) == (order != sorted(order)), "scores that no longer fit are left out"
        led += bool(n)
    assert led
    left = len(lists) - led
    drops = {"no passage of the list is judged relevant": left} if left else {}
    assert manifest["more_counts"]["judged first"] == {"in": len(lists), "kept": led, "dropped": drops}


@pytest.mark.test_all
@pytest.mark.parametrize("bands", [2, 3, 5])
@pytest.mark.parametrize("place", [0, 3, 9])
def test_judged_first_is_always_drawn_by_stratified(store: LabelStore, bands: int, place: int) -> None:
    judge(store, 5, {place: 1})
    view = views.build(
        store, "distillation", labels=["teacher@first"], judged_first=True, stratified=bands, easy=2
    )
    _, lists, _, queries = read(store, view)
    (row,) = (r for r in lists if queries[r["query"]] == "q5")
    assert row["relevances"][0] == 1
    assert len(row["passages"]) == bands + 2
    assert row["labels"] == sorted(row["labels"], reverse=True)


@pytest.mark.parametrize("bands", [2, 3, 5])
def test_stratified_takes_one_passage_of_each_band_of_the_order(store: LabelStore, bands: int) -> None:
    every = read(store, views.build(store, "distillation", labels=["teacher@first"]))
    view = views.build(store, "distillation", labels=["teacher@first"], stratified=bands)
    manifest, lists, docs, _ = read(store, view)
    picks = set()
    for row, before in zip(lists, every[1], strict=True):
        order = [every[2][p] for p in before["passages"]]
        places = [order.index(docs[p]) for p in row["passages"]]
        assert [place * bands // len(order) for place in places] == list(range(bands))
        assert row["ranks"] == list(range(1, bands + 1))
        picks.add(tuple(places))
    assert len(picks) > 1
    count = manifest["more_counts"]["passages"]
    assert count["kept"] == bands * len(lists)
    assert count["in"] - count["kept"] == count["dropped"]["not drawn"]


@pytest.mark.test_all
def test_defaults_of_easy_and_stratified_keep_a_views_key(store: LabelStore) -> None:
    for kind, base in BOTH:
        plain = views.build(store, kind, **base)
        assert views.build(store, kind, **base, easy=0) == plain
    assert views.build(store, "distillation", labels=["teacher@first"], judged_first=False) == plain
    few = views.build(store, "distillation", labels=["teacher@first"], stratified=50)
    assert few == plain  # shorter lists are taken whole


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("contrastive", {"easy": -1}),
        ("distillation", {"easy": 5000}),
        ("distillation", {"stratified": 0}),
        ("contrastive", {"stratified": 3}),
        ("contrastive", {"judged_first": True}),
        ("rerank", {"easy": 3}),
        ("contrastive", {"easy": 3, "scores": True}),
    ],
)
def test_easy_and_stratified_are_refused_where_they_make_no_sense(kind: str, given: dict) -> None:
    with pytest.raises(UsageError):
        parameters.make_parameters(kind, given)
