"""Views: what they keep, what they leave out and say so, their hashes, their folders."""

import json
import os
import stat
from pathlib import Path

import made_store
import pyarrow.parquet as pq
import pytest
from read_views import read

from labelstore.errors import DataMissing, UsageError
from labelstore.negatives import mine as negatives
from labelstore.store import keys
from labelstore.store.label_store import LabelStore
from labelstore.views import build as views
from labelstore.views import folder as export
from labelstore.views import leakage


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


@pytest.mark.parametrize("min_relevance", [1, 2])
def test_graded_lists_hold_all_positives_with_their_grades(store: LabelStore, min_relevance: int) -> None:
    with store.write() as con:
        con.execute(
            "INSERT INTO qrels SELECT 1, query, query + 40, 1 + query % 3 FROM qrels WHERE dataset = 1"
        )
    named = {"datasets": ["c/train"], "runs": ["first"], "min_relevance": min_relevance}
    notes: list[str] = []
    plain = read(store, views.build(store, "contrastive", note=notes.append, **named))
    assert all(set(row["labels"]) <= {0, 1} for row in plain[1])
    assert any("--graded with an order loss" in note for note in notes)
    _, lists, docs, queries = read(store, views.build(store, "contrastive", graded=True, **named))
    for row in lists:
        n = int(queries[row["query"]][1:])
        own = {docs[p]: label for p, label in zip(row["passages"], row["labels"], strict=True) if label}
        wanted = {f"d{n}": 1, f"d{n + 40}": 1 + n % 3}
        assert own == {doc_id: grade for doc_id, grade in wanted.items() if grade >= min_relevance}


def test_graded_lists_are_those_of_all_positives(store: LabelStore) -> None:
    with pytest.raises(UsageError, match="graded lists hold all positives"):
        views.build(store, "contrastive", datasets=["c/train"], graded=True, positives="one")


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
    assert "msft data add c/test --from FOLDER --role train" in str(error.value.hint)
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


@pytest.mark.parametrize(
    ("n_queries", "wanted"), [(15, 0), (60, 12), (200, 40), (251, 50), (900, 50), (6000, None)]
)
def test_few_validation_lists_take_a_larger_share(tmp_path: Path, n_queries: int, wanted: int | None) -> None:
    """50 lists or 20 %, whichever is less; 1 % where that is enough. Fewer than twenty lists hold out nothing more."""
    store = made_store.make(tmp_path / "s.duckdb", n_queries=n_queries, n_documents=40, depth=4, labels=False)
    named = {"datasets": ["c/train"], "runs": ["first"], "allow_overlap": True, "retrieved": False}
    notes: list[str] = []
    view = views.build(store, "contrastive", note=notes.append, **named)
    manifest, lists, _, queries = read(store, view)
    valid = {queries[row["query"]] for row in lists if row["split"] == "valid"}
    if wanted is None:
        assert 30 < len(valid) < 100
        assert manifest["held_out"] == pytest.approx(0.01, abs=0.005)
        return
    assert abs(len(valid) - wanted) <= 1
    assert any(f"{len(valid)} of {n_queries} lists are held out" in note for note in notes) is (wanted > 0)
    share = views.held_out(store, "contrastive", **named)
    assert share == manifest["held_out"]
    wider = read(store, views.build(store, "contrastive", valid_fraction=min(0.9, 2 * share), **named))
    assert valid <= {wider[3][row["query"]] for row in wider[1] if row["split"] == "valid"}


def test_a_given_share_is_kept_however_few_lists_it_gives(tmp_path: Path) -> None:
    store = made_store.make(tmp_path / "s.duckdb", n_queries=100, n_documents=120, labels=False)
    given = read(
        store, views.build(store, "contrastive", datasets=["c/train"], runs=["first"], valid_fraction=0.01)
    )
    assert sum(row["split"] == "valid" for row in given[1]) <= 5


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


def test_a_student_that_a_test_set_taught_is_found(store: LabelStore) -> None:
    clean = views.build(store, "contrastive", datasets=["c/train"], runs=["first"])
    leaking = views.build(store, "contrastive", datasets=["c/test"], runs=["first"], allow_overlap=True)
    with store.write() as con:
        for student, (name, view) in enumerate((("clean", clean), ("leaking", leaking)), 1):
            con.execute(
                "INSERT INTO students VALUES (?, ?, 'b', NULL, 'bert', 'cl', ?, 'h', 64, 1, NULL, NULL, NULL)",
                [student, name, name],
            )
            con.execute(
                """INSERT INTO stages SELECT ?, 1, 'cl', 'lce', view, view_hash, 'a', 'b', '{}', 1, 1, 0, 0, 1, 0.1,
                          NULL, NULL, 'end' FROM views WHERE view_hash = ?""",
                [student, view.view_hash],
            )
    with store.read() as con:
        found = leakage.trained_on(con, ["clean", "leaking"], ["c/test", "c/train"])
    assert found == [("leaking", "c/test", 4, 4), ("leaking", "c/train", 1, 12)]  # one query stands in both


@pytest.mark.parametrize("made", [False, True])
def test_an_exported_view_can_be_read_as_the_umask_says(
    store: LabelStore, tmp_path: Path, made: bool
) -> None:
    view = views.build(store, "contrastive", datasets=["c/train"], runs=["first"])
    folder, target = store.files / view.folder, tmp_path / "out"
    folder.chmod(0o700)
    if made:
        target.mkdir(mode=0o711)
    before = os.umask(0o027)
    try:
        export.copy_folder(folder, target)
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == (0o711 if made else 0o750)
    assert {stat.S_IMODE(file.stat().st_mode) for file in target.iterdir()} == {0o640}
