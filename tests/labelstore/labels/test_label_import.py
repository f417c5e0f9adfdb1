"""Labels from elsewhere: each layout, what is repaired, what is quarantined, and that a second import changes nothing."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from label_files import ITEMS, line, rows, take

from labelstore.errors import BadInput, DataMissing, UsageError
from labelstore.labels import write as labels
from labelstore.store.label_store import LabelStore


def test_permutations_with_initial_order(store: LabelStore, file: Callable[..., Path]) -> None:
    path = file(line("q0", ["d2", "d0", "d1"], initial=["d0", "d1", "d2"], licence="CC-BY", method="sliding"))
    done = take(store, path)
    assert [x.name for x in done.labelings] == ["T-1@first"]
    assert rows(store, ITEMS) == [("d2", 1, 3, 2, None), ("d0", 2, 1, 1, None), ("d1", 3, 2, 0, None)]
    found = rows(store, "SELECT name, strategy, depth, licence, origin, run FROM labelings")
    assert found == [("T-1@first", "imported", 3, "CC-BY", "labels.jsonl", None)]
    assert rows(store, "SELECT name, engine, licence FROM teachers") == [("T 1 (x)", "imported", "CC-BY")]
    assert rows(store, "SELECT status, repairs, n_calls, settled FROM permutations") == [("ok", 0, 0, None)]
    assert rows(store, "SELECT step, n_in, n_kept FROM filters WHERE step LIKE 'label%' ORDER BY step") == [
        ("label passages", 3, 3),
        ("labels", 1, 1),
    ]


def test_ties_and_scores(store: LabelStore, file: Callable[..., Path]) -> None:
    take(store, file(line("q0", ["d2", "d0", "d1"], tie_groups=[["d2", "d0"], ["d1"]], scores=[3, 3, 0.5])))
    assert rows(store, ITEMS) == [("d2", 1, None, 1, 3.0), ("d0", 2, None, 1, 3.0), ("d1", 3, None, 0, 0.5)]


def test_repeats_foreigners_and_gaps_are_repaired_and_counted(
    store: LabelStore, file: Callable[..., Path]
) -> None:
    path = file(
        line("q0", ["d2", "d2", "d9", "d0"], initial=["d0", "d1", "d2", "d1"]),
        line("q1", ["d1", "d0", "d1"], tie_groups=[["d1"], ["d0", "d1"]]),
    )
    done = take(store, path)
    assert rows(store, "SELECT query_id, doc_id, initial_rank, grade FROM labels ORDER BY query_id, rank") == [
        ("q0", "d2", 3, 2), ("q0", "d0", 1, 1), ("q0", "d1", 2, 0), ("q1", "d1", None, 1), ("q1", "d0", None, 0),
    ]  # fmt: skip
    assert rows(store, "SELECT status, repairs FROM permutations ORDER BY query") == [
        ("repaired", 3),
        ("repaired", 1),
    ]
    assert {reason: n for reason, (n, _) in done.passage_drops.items()} == {
        "repeated": 2,
        "not among those shown": 1,
    }
    n_in, kept = rows(store, "SELECT n_in, n_kept FROM filters WHERE step = 'label passages'")[0]
    assert (n_in, kept) == (7, 4)


BAD_LINES = [
    ("{", "malformed line"),
    ("[1, 2]", "malformed line"),
    ({"query_id": "q1"}, "malformed line"),
    ({"query_id": "q1", "permutation": ["d 1"]}, "malformed line"),
    ({"query_id": "q1", "permutation": [None]}, "malformed line"),
    ({"query_id": None, "permutation": ["d1"]}, "malformed line"),
    ({"query_id": "q1", "permutation": []}, "empty list"),
    ({"query_id": "q1", "permutation": ["d1", "d2"], "scores": [1]}, "malformed line"),
    ('{"query_id": "q1", "permutation": ["d1", "d2"], "scores": [1, NaN]}', "score is not a finite number"),
    ({"query_id": "q1", "permutation": ["d1", "d2"], "tie_groups": [["d2", "d1"]]}, "malformed line"),
    ({"query_id": "q1", "permutation": ["d1"], "initial": ["d1", "d2", "d3"]}, "lacks most of its passages"),
    ({"query_id": "nobody", "permutation": ["d1", "d2"]}, "unknown query"),
    ({"query_id": "q100000", "permutation": ["d1", "d2"]}, "unknown query"),  # of another dataset
    ({"query_id": "q1", "query": "something else", "permutation": ["d1", "d2"]}, "query has another text"),
    (
        {"query_id": "q0", "permutation": ["d1", "d2"], "teacher": "T 1 (x)", "first_stage": "first"},
        "second list for the query",
    ),
]


def test_bad_lines_are_quarantined_with_reason_and_place(
    store: LabelStore, file: Callable[..., Path]
) -> None:
    ours = {"teacher": "T 1 (x)", "first_stage": "first"}
    bad = [ours | row if isinstance(row, dict) else row for row, _ in BAD_LINES]
    done = take(
        store,
        file(line("q0", ["d2", "d0"], query="which RIVER is number 0?"), *bad),
        model="T 1 (x)",
        first_stage="first",
    )
    expected = Counter(reason for _, reason in BAD_LINES)
    assert done.n_read == 1 + len(BAD_LINES)
    assert {reason: n for reason, (n, _) in done.drops.items()} == expected
    assert done.n_faulty == len(BAD_LINES) - 1  # a query's second list is no fault
    assert rows(store, "SELECT count(*) FROM permutations") == [(1,)]
    found = {
        detail.split(":")[1]: reason
        for reason, detail in rows(store, "SELECT reason, detail FROM quarantine")
    }
    assert found == {str(k): reason for k, (_, reason) in enumerate(BAD_LINES, 2)}
    assert rows(store, "SELECT n_in, n_kept FROM filters WHERE step = 'labels'") == [(1 + len(BAD_LINES), 1)]
    assert dict(rows(store, "SELECT reason, n FROM drops WHERE step = 'labels'")) == expected


@pytest.mark.parametrize("k", [0, 2, 10, 11, 13])
def test_a_file_of_which_nothing_can_be_taken_leaves_the_store_as_it_was(
    store: LabelStore, file: Callable[..., Path], k: int
) -> None:
    bad, reason = BAD_LINES[k]
    tables = ("provenance", "labelings", "teachers", "documents", "quarantine", "filters")
    counts = [rows(store, f"SELECT count(*) FROM {table}") for table in tables]
    with pytest.raises(BadInput, match=r"labels\.jsonl:1") as caught:
        take(store, file(bad), model="T", layout="permutations")
    assert reason in str(caught.value)
    assert caught.value.hint
    assert [rows(store, f"SELECT count(*) FROM {table}") for table in tables] == counts


def test_a_second_import_changes_nothing(store: LabelStore, file: Callable[..., Path]) -> None:
    path = file(line("q0", ["d2", "new"]), line("nobody", ["d1"]), "{")
    first = take(store, path, model="T")
    assert first.changed
    tables = (
        "labelings",
        "permutations",
        "permutation_items",
        "quarantine",
        "provenance",
        "filters",
        "documents",
        "calls",
    )
    counts = [rows(store, f"SELECT count(*) FROM {table}") for table in tables]
    second = take(store, path, model="T")
    assert not second.changed
    assert [x.n_new for x in second.labelings] == [0] * len(second.labelings)
    assert [rows(store, f"SELECT count(*) FROM {table}") for table in tables] == counts


def test_another_order_under_the_same_name_needs_a_word(store: LabelStore, file: Callable[..., Path]) -> None:
    take(store, file(line("q0", ["d2", "d0"]), line("q1", ["d1", "d0"])))
    other = file(line("q0", ["d0", "d2"]), line("q1", ["d1", "d0"]), name="other.jsonl")
    with pytest.raises(BadInput, match="another order for 1 of these queries"):
        take(store, other)
    assert take(store, other, name="mine").labelings[0].n_new == 2
    assert take(store, other, replace=True).labelings[0].n_new == 1
    assert rows(store, "SELECT doc_id FROM labels WHERE labeling = 'T-1@first' AND query_id = 'q0' ORDER BY rank") == [
        ("d0",), ("d2",),
    ]  # fmt: skip
    assert rows(store, "SELECT count(*) FROM permutation_items") == [(8,)]


def test_names_are_unique_over_datasets_and_readable(store: LabelStore, file: Callable[..., Path]) -> None:
    path = file(line("q0", ["d2", "d0"]))
    take(store, path)
    other = file(line("q100000", ["d2", "d0"]), name="test.jsonl")
    done = take(store, other, dataset="c/test")
    assert done.labelings[0].name == "T-1@first@c/test"
    assert done.notes
    assert rows(store, "SELECT count(*) FROM teachers") == [(1,)]
    with pytest.raises(UsageError, match="--name can name one"):
        take(store, file(line("q0", ["d0"]), {**line("q1", ["d0"]), "first_stage": "b"}), name="n")
    assert not take(store, other, dataset="c/test").changed


def test_ids_that_the_store_does_not_hold_become_ids_without_text(
    store: LabelStore, file: Callable[..., Path]
) -> None:
    done = take(store, file(line("q0", ["d2", "elsewhere", "d7"])))
    assert done.n_not_held == 2
    assert rows(store, "SELECT doc_id, version, text FROM documents WHERE doc_id = 'elsewhere'") == [
        ("elsewhere", 0, None)
    ]
    pinned = rows(
        store,
        "SELECT doc_id, i.text_hash = d.text_hash FROM permutation_items i JOIN documents d USING (document) ORDER BY rank",
    )
    assert pinned == [("d2", True), ("elsewhere", None), ("d7", None)]


def test_a_named_run_gives_the_initial_ranks(store: LabelStore, file: Callable[..., Path]) -> None:
    (ranked,) = rows(
        store, "SELECT list(doc_id ORDER BY rank) FROM ranked WHERE dataset = 'c/train' AND query_id = 'q0'"
    )
    order = ranked[0][:3]
    take(
        store,
        file({"query_id": "q0", "permutation": [order[2], order[0], order[1]], "teacher": "T"}),
        run="first",
    )
    assert rows(store, "SELECT initial_rank FROM permutation_items ORDER BY rank") == [(3,), (1,), (2,)]
    assert rows(store, "SELECT l.name, r.name FROM labelings l JOIN runs r USING (run)") == [
        ("T@first", "first")
    ]
    with pytest.raises(DataMissing, match="no run over"):
        take(store, file(line("q0", ["d1"])), run="nowhere")


def test_the_teacher_must_be_named(store: LabelStore, file: Callable[..., Path]) -> None:
    with pytest.raises(BadInput, match="does not name the teacher") as caught:
        take(store, file({"query_id": "q0", "permutation": ["d0", "d1"]}))
    assert "--model" in str(caught.value.hint)
    with pytest.raises(DataMissing, match="no dataset named"):
        take(store, file(line("q0", ["d0"])), dataset="nowhere")
    with pytest.raises(UsageError, match="several datasets"):
        take(store, file(line("q0", ["d0"])), dataset=None)
    with pytest.raises(UsageError, match="no layout named"):
        take(store, file(line("q0", ["d0"])), layout="xml")


def test_stored_hashes_are_those_of_the_rows(store: LabelStore, file: Callable[..., Path]) -> None:
    take(
        store,
        file(line("q0", ["d2", "d0"], scores=[1.5, 0.25]), line("q1", ["d1", "d0"], initial=["d0", "d1"])),
    )
    derived = rows(store, labels.permutation_hashes(1))
    assert sorted(derived) == sorted(rows(store, "SELECT permutation, content_hash FROM permutations"))
    with store.write() as con:
        con.execute("UPDATE permutation_items SET rank = 3 - rank")
    assert sorted(rows(store, labels.permutation_hashes(1))) != sorted(derived)
