"""The layouts of labels from elsewhere: TREC runs, RankGPT, RankLLM, conversations, Parquet, and real files."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_store
import polars as pl
import pytest
from label_files import ITEMS, rows, take

from labelstore.errors import BadInput, DataMissing, UsageError
from labelstore.labels.import_file import import_labels
from labelstore.labels.staging import LabelsToImport
from labelstore.store.label_store import LabelStore
from teachers.prompts import replies as reader


def test_trec_runs(store: LabelStore, tmp_path: Path) -> None:
    path = tmp_path / "rankzephyr.run.gz"
    with gzip.open(path, "wt") as out:
        out.write(
            "q0 Q0 d1 2 9.25 zephyr\nq0 Q0 d0 1 9.5 zephyr\nq1 Q0 d3 1 2.5 zephyr\nq1 Q0 d4 2 -1 zephyr\n"
        )
    done = take(store, path)
    assert (done.layout, done.labelings[0].name) == ("trec", "zephyr")
    assert [row[0] for row in rows(store, ITEMS)] == ["d0", "d1", "d3", "d4"]
    assert [row[4] for row in rows(store, ITEMS)] == [9.5, 9.25, 2.5, -1.0]
    assert take(store, path, model="rankzephyr").labelings[0].name == "rankzephyr"


def test_scores_that_only_say_the_rank_are_no_scores(store: LabelStore, tmp_path: Path) -> None:
    for name, lines in {
        "counted": ["q0 Q0 d1 1 2 t", "q0 Q0 d0 2 1 t", "q1 Q0 d3 1 2 t", "q1 Q0 d4 2 1 t"],
        "reciprocal": [
            "q0 Q0 d1 1 1 t",
            "q0 Q0 d0 2 .5 t",
            "q0 Q0 d2 3 .333 t",
            "q1 Q0 d3 1 1 t",
            "q1 Q0 d4 2 .5 t",
        ],
        "contradicting": ["q0 Q0 d1 1 1.5 t", "q0 Q0 d0 2 3.5 t", "q0 Q0 d2 3 2 t"],
    }.items():
        path = tmp_path / f"{name}.run"
        path.write_text("\n".join(lines) + "\n")
        take(store, path, name=name)
    assert rows(store, "SELECT DISTINCT score FROM permutation_items") == [(None,)]


def test_trec_runs_that_are_broken(store: LabelStore, tmp_path: Path) -> None:
    path = tmp_path / "bad.run"
    path.write_text("q0 Q0 d1 1 2 t\nq0 Q0 d0 2 nan t\n")
    with pytest.raises(BadInput, match=r"bad\.run:2"):
        take(store, path)
    with pytest.raises(DataMissing, match="no file"):
        take(store, tmp_path / "nowhere.run")


def rankgpt_pair(tmp_path: Path, replies: list[Any], with_ids: bool = True) -> tuple[Path, Path]:
    rows = []
    for k in range(len(replies)):
        row: dict[str, Any] = {
            "query": made_store.WORDS[k].join(["which ", f" is number {k}"]),
            "retrieved_passages": [
                {"docid": f"p{k}{j}", "text": f"passage {k} {j}", "rank": j + 1} for j in range(3)
            ],
        }
        if with_ids:
            row["query_id"] = f"q{k}"
        rows.append(row)
    first, second = tmp_path / "marco.jsonl", tmp_path / "permutations.json"
    first.write_text("".join(json.dumps(row) + "\n" for row in rows))
    second.write_text(json.dumps(replies))
    return first, second


def test_rankgpts_pair_of_files_is_joined_by_position(store: LabelStore, tmp_path: Path) -> None:
    replies = ["[2] > [3] > [1]", "[1] > [1] > [3]", "Error code: 400 [3] > [1] > [2]", [3, 1, 2], 7]
    first, second = rankgpt_pair(tmp_path, replies)
    done = take(store, first, second, layout="rankgpt", model="rankgpt-3.5", first_stage="bm25")
    assert done.labelings[0].name == "rankgpt-3.5@bm25"
    assert rows(store, "SELECT query_id, doc_id, initial_rank, status FROM labels ORDER BY query_id, rank") == [
        ("q0", "p01", 2, "ok"), ("q0", "p02", 3, "ok"), ("q0", "p00", 1, "ok"),
        ("q1", "p10", 1, "repaired"), ("q1", "p12", 3, "repaired"), ("q1", "p11", 2, "repaired"),
        ("q3", "p32", 3, "ok"), ("q3", "p30", 1, "ok"), ("q3", "p31", 2, "ok"),
    ]  # fmt: skip
    assert rows(store, "SELECT reason FROM quarantine ORDER BY reason") == [
        ("engine_error",),
        ("malformed reply",),
    ]
    found = rows(
        store, "SELECT query_id, status, reply, n_missing, n_repeated FROM teacher_calls ORDER BY query_id"
    )
    assert found[:2] == [("q0", "ok", "[2] > [3] > [1]", 0, 0), ("q1", "repaired", "[1] > [1] > [3]", 1, 1)]
    assert rows(
        store,
        "SELECT position FROM request_passages JOIN requests USING (request) ORDER BY request, position",
    )[:3] == [(1,), (2,), (3,)]


def test_rankgpts_files_of_different_lengths_are_refused(store: LabelStore, tmp_path: Path) -> None:
    first, second = rankgpt_pair(tmp_path, ["[2] > [3] > [1]"] * 3)
    for wrong in (["[1]"] * 2, ["[1]"] * 4):
        second.write_text(json.dumps(wrong))
        with pytest.raises(BadInput, match="joined by position"):
            take(store, first, second, layout="rankgpt", model="r")
    with pytest.raises(UsageError, match="second file"):
        take(store, first, None, layout="rankgpt", model="r")
    with pytest.raises(UsageError, match="second file"):
        take(store, first, second, layout="trec", model="r")
    assert rows(store, "SELECT count(*) FROM labelings") == [(0,)]


def test_queries_without_ids_are_found_by_their_text(store: LabelStore, tmp_path: Path) -> None:
    first, second = rankgpt_pair(tmp_path, ["[2] > [3] > [1]"] * 2, with_ids=False)
    take(store, first, second, layout="rankgpt", model="r")
    assert rows(store, "SELECT DISTINCT query_id FROM labels ORDER BY 1") == [("q0",), ("q1",)]


def test_texts_from_the_file_make_a_dataset_of_their_own(store: LabelStore, tmp_path: Path) -> None:
    first, second = rankgpt_pair(tmp_path, ["[2] > [3] > [1]"] * 4, with_ids=False)
    done = take(store, first, second, layout="rankgpt", model="r", dataset="rankgpt100k", with_texts=True)
    assert done.n_not_held == 0
    assert rows(store, "SELECT role FROM datasets WHERE name = 'rankgpt100k'") == [("train",)]
    assert rows(store, "SELECT count(*) FROM labels WHERE text_is_current") == [(12,)]
    assert rows(store, "SELECT text FROM documents WHERE doc_id = 'p12'") == [("passage 1 2",)]
    again = take(store, first, second, layout="rankgpt", model="r", dataset="rankgpt100k", with_texts=True)
    assert not again.changed
    fresh = LabelStore(tmp_path / "fresh.duckdb")
    assert import_labels(
        fresh, first, LabelsToImport("d", "rankgpt", "r", replies=second, with_texts=True), reader
    ).changed


def rankllm_row(query_id: str, docs: list[str], responses: list[str]) -> dict[str, Any]:
    prompt = "I will provide you with 3 passages, each indicated by …"
    return {
        "query": {
            "text": f"which {made_store.WORDS[int(query_id[1:])]} is number {query_id[1:]}",
            "qid": query_id,
        },
        "candidates": [
            {"docid": d, "score": 9.5 - k, "doc": {"contents": f"text of {d}"}} for k, d in enumerate(docs)
        ],
        "invocations_history": [
            {"prompt": prompt, "response": r, "input_token_count": 100, "output_token_count": 10}
            for r in responses
        ],
    }


@pytest.mark.parametrize("shape", ["lines", "list"])
def test_rankllm_results_whose_windows_failed_are_not_labels(
    store: LabelStore, tmp_path: Path, shape: str
) -> None:
    found = [
        rankllm_row("q0", ["d2", "d0", "d1"], ["[3] > [1] > [2]", "[1] > [2] > [3]"]),
        rankllm_row("q1", ["d2", "d0", "d1"], ["[3] > [1]"]),
        rankllm_row("q2", ["d0", "d1", "d2"], ["[3] > [1] > [2]", "Error code: 429 [2] > [1]"]),
    ]
    path = tmp_path / "results.jsonl"
    path.write_text(
        "".join(json.dumps(r) + "\n" for r in found) if shape == "lines" else json.dumps(found, indent=1)
    )
    done = take(store, path, model="rank_zephyr")
    assert done.layout == "rankllm"
    assert rows(store, "SELECT query, status, repairs, n_calls, tokens_in, tokens_out FROM permutations ORDER BY query") == [
        (0, "ok", 0, 2, 200, 20), (1, "repaired", 1, 1, 100, 10),
    ]  # fmt: skip
    assert [row[4] for row in rows(store, ITEMS)] == [None] * 6  # the first stage's scores are no labels
    assert rows(store, "SELECT reason FROM quarantine") == [("engine_error",)]


def test_older_rankllm_hits(store: LabelStore, file: Callable[..., Path]) -> None:
    hits = [
        {"content": f"text {k}", "qid": "q0", "docid": f"d{k}", "rank": k, "score": 3 - k} for k in (2, 0, 1)
    ]
    take(store, file({"query": "which river is number 0", "hits": hits}), model="T")
    assert [row[0] for row in rows(store, ITEMS)] == ["d2", "d0", "d1"]


def test_raw_replies_become_calls(store: LabelStore, file: Callable[..., Path]) -> None:
    path = file(
        {
            "query_id": "q0",
            "passages": ["d0", "d1", "d2"],
            "reply": "[2] > [3] > [1]",
            "model": "T",
            "tokens_in": 90,
        },
        {"query_id": "q1", "passages": ["d0", "d1", "d2"], "response": "<think> [2] > [1]", "model": "T"},
        {"query_id": "q2", "passages": ["d0", "d1", "d2"], "response": "Sure: [2] > [3] > [1]", "model": "T"},
    )
    done = take(store, path)
    assert done.layout == "replies"
    assert rows(store, "SELECT query_id, status, reply, tokens_in FROM teacher_calls ORDER BY query_id") == [
        ("q0", "ok", "[2] > [3] > [1]", 90), ("q2", "repaired", "Sure: [2] > [3] > [1]", 0),
    ]  # fmt: skip
    assert rows(store, "SELECT parsed, server FROM calls ORDER BY call")[0] == ([2, 3, 1], "imported")
    assert rows(store, "SELECT reason FROM quarantine") == [("truncated",)]
    assert not take(store, path).changed


def test_conversations(store: LabelStore, file: Callable[..., Path]) -> None:
    prompt = (
        "I will provide you with 2 passages, each indicated by a numerical identifier []. Rank the passages based on "
        "their relevance to the search query: which river is number 0.\n\n[1] one\n[5] still one\n[2] two\n"
        "Search Query: which river is number 0.\nRank the 2 passages above …"
    )
    turns = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": prompt},
        {"from": "gpt", "value": "[2] > [1]"},
    ]
    done = take(store, file({"id": "x1", "conversations": turns}), model="T", with_texts=True)
    assert done.layout == "conversations"
    found = rows(
        store, "SELECT d.text FROM permutation_items i JOIN documents d USING (document) ORDER BY i.rank"
    )
    assert found == [("two",), ("one\n[5] still one",)]
    with pytest.raises(BadInput, match="malformed line"):
        take(store, file({"id": "x1", "conversations": turns[:1]}), model="T")


def test_parquet(store: LabelStore, tmp_path: Path) -> None:
    path = tmp_path / "distillm.parquet"
    pl.DataFrame(
        {
            "qid": ["q0", "q0", "q1", "q1"],
            "docno": ["d1", "d0", "d3", "d4"],
            "rank": [1, 2, 2, 1],
            "score": [5.0, 3.5, 1.0, 2.0],
        }
    ).write_parquet(path)
    take(store, path, model="rankzephyr", first_stage="colbertv2")
    assert rows(store, "SELECT labeling, query_id, doc_id, score FROM labels ORDER BY query_id, rank") == [
        ("rankzephyr@colbertv2", "q0", "d1", 5.0), ("rankzephyr@colbertv2", "q0", "d0", 3.5),
        ("rankzephyr@colbertv2", "q1", "d4", 2.0), ("rankzephyr@colbertv2", "q1", "d3", 1.0),
    ]  # fmt: skip
    pl.DataFrame({"qid": ["q0"], "rank": [1]}).write_parquet(path)
    with pytest.raises(BadInput, match="no column doc_id"):
        take(store, path, model="T")
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(BadInput, match="no Parquet"):
        take(store, path, model="T")


@pytest.mark.parametrize("content", ["a b c\n", "<html>\n", '"text"\n', "{}\n"])
def test_files_that_are_no_labels(store: LabelStore, tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(BadInput, match="no layout of labels") as caught:
        take(store, path)
    assert "--layout" in str(caught.value.hint)


REAL = [
    ("dl19-passage", 817, 19, 9, 0),
    ("dl21-passage", 424, 8, 2, 0),
    ("msmarco-train-rankzephyr100", 100, 1, 1, 1),
    ("msmarco-tfrank367", 367, 1, 1, 0),
    ("noveleval", 567, 27, 27, 0),
]


@pytest.mark.test_all
@pytest.mark.needs("shared")
@pytest.mark.parametrize(("folder", "n_lists", "n_labelings", "n_teachers", "n_refused"), REAL)
def test_real_files(
    shared: Path, tmp_path: Path, folder: str, n_lists: int, n_labelings: int, n_teachers: int, n_refused: int
) -> None:
    from cli.main import run

    path = tmp_path / "real.duckdb"
    with pytest.raises(SystemExit) as ended:
        run(["data", "add", "d", "--from", str(shared / folder), "--store", str(path), "-q"])
    assert not ended.value.code
    store = LabelStore(path)
    done = take(store, shared / folder / "permutations.jsonl.gz", dataset="d")
    assert (done.n_read, len(done.labelings), done.n_refused) == (n_lists, n_labelings, n_refused)
    assert rows(store, "SELECT count(*) FROM teachers") == [(n_teachers,)]
    assert all(" " not in x.name and "(" not in x.name and len(x.name) < 80 for x in done.labelings)
    assert not take(store, shared / folder / "permutations.jsonl.gz", dataset="d").changed
    if folder == "msmarco-tfrank367":
        assert rows(store, "SELECT count(*) FILTER (WHERE status = 'repaired') FROM permutations") == [(33,)]
        assert (
            rows(
                store,
                "SELECT count(*) FROM (SELECT permutation, grade FROM permutation_items GROUP BY ALL HAVING count(*) > 1)",
            )[0][0]
            > 300
        )


@pytest.mark.needs("shared")
def test_ids_alone_are_taken_where_the_queries_are_known(shared: Path, tmp_path: Path) -> None:
    file = shared / "msmarco-train-rankzephyr-100-ids" / "permutations.jsonl.gz"
    with gzip.open(file, "rt", newline="\n") as lines:
        ids = [json.loads(one)["query_id"] for one in lines]
    store = made_store.make(tmp_path / "s.duckdb", labels=False)
    with pytest.raises(BadInput, match="unknown query"):
        take(store, file)
    with store.write() as con:
        for k, query_id in enumerate(ids):
            con.execute(
                "INSERT INTO queries VALUES (?, 1, ?, ?, ?, ?)", [1000 + k, query_id, f"query {k}", k, k]
            )
            con.execute("INSERT INTO dataset_queries VALUES (1, ?)", [1000 + k])
    done = take(store, file)
    assert [(x.name, x.n_lists, x.depth) for x in done.labelings] == [("rankzephyr@colbertv2", 100, 100)]
    assert done.n_not_held == rows(store, "SELECT count(*) FROM documents WHERE text IS NULL")[0][0] > 9_000
