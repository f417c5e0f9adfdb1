"""A passage gets a new text: a new version, labels stay with the old one and leave new views, all of it counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.main import run

N_PASSAGES, N_QUERIES, DEPTH = 30, 6, 8
CHANGED = ["p03", "p07"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "collection"
    made.mkdir()
    _write(made, {})
    (made / "queries.tsv").write_text(
        "".join(f"q{k}\tplant number {k} or {k + 6}\n" for k in range(N_QUERIES))
    )
    (made / "qrels.txt").write_text("".join(f"q{k} 0 p{k:02d} 1\n" for k in range(N_QUERIES)))
    return made


def _write(folder: Path, other: dict[str, str]) -> None:
    (folder / "docs.jsonl").write_text(
        "".join(
            json.dumps(
                {"doc_id": (i := f"p{k:02d}"), "text": other.get(i, f"plant number {k} grows {k % 7} leaves")}
            )
            + "\n"
            for k in range(N_PASSAGES)
        )
    )


@pytest.mark.test_all
def test_labels_stay_with_the_text_they_were_given_for(
    folder: Path, tmp_path: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "s.duckdb"

    def msft(*arguments: object, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            run([*(str(a) for a in arguments), "--store", str(store)])
        captured = capsys.readouterr()
        assert int(ended.value.code or 0) == code, captured.err
        return captured.err if code else captured.out

    def rows(*arguments: object) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(msft(*arguments, "--format", "json"))
        return found

    def sql(query: str) -> list[dict[str, Any]]:
        return rows("sql", query, "--files")  # the views' Parquet files are read too

    add = ("data", "add", "own/train", "--from", folder)
    msft(*add)
    msft("retrieve", "--dataset", "own/train", "--retriever", "bm25s", "--depth", DEPTH, "--name", "bm25")
    label = (
        "teachers",
        "generate",
        "--model",
        tiny_bert,
        "--engine",
        "cross-encoder",
        "--run",
        "bm25",
        "--depth",
        DEPTH,
    )
    msft(*label, "--name", "labels")
    msft("negatives", "mine", "--run", "bm25", "--per-query", 3, "--name", "hard")
    build = ("views", "build", "--kind", "distillation", "--labels", "labels", "--name", "kd")
    (before,) = rows(*build)
    named = sql(f"SELECT count(*) AS n FROM labels WHERE doc_id IN ('{CHANGED[0]}', '{CHANGED[1]}')")[0]["n"]
    assert named > 2, "the passages that will change are among those labelled"

    # ---- without --update a differing text is an error, with it a new version
    _write(folder, {doc_id: f"an entirely new text of {doc_id}" for doc_id in CHANGED})
    error = msft(*add, code=1)
    assert "docs.jsonl:4: p03 has another text" in error
    assert "--update" in error
    documents = {row["step"]: row for row in rows(*add, "--update")}["documents"]
    assert (documents["read"], documents["new"], documents["updated"]) == (N_PASSAGES, 0, 2)
    assert sql("SELECT doc_id, version, text FROM passages WHERE version > 1 ORDER BY doc_id") == [
        {"doc_id": doc_id, "version": 2, "text": f"an entirely new text of {doc_id}"} for doc_id in CHANGED
    ]
    assert sql("SELECT doc_id, v.version, v.text FROM document_versions v JOIN documents USING (document) ORDER BY 1") == [
        {"doc_id": f"p{k:02d}", "version": 1, "text": f"plant number {k} grows {k % 7} leaves"} for k in (3, 7)
    ]  # fmt: skip
    assert {row["updated"] for row in rows(*add, "--update")} == {0}, "the same again changes nothing"

    # ---- the labels are all there, pinned to the old text
    assert sql("SELECT count(*) AS n, count(*) FILTER (NOT text_is_current) AS old FROM labels WHERE labeling = 'labels'") == [
        {"n": N_QUERIES * DEPTH, "old": named}
    ]  # fmt: skip
    assert sql("""SELECT count(*) AS n FROM permutation_items i JOIN document_versions v USING (document)
                  WHERE i.text_hash = v.text_hash""") == [{"n": named}]  # fmt: skip
    assert sql("""SELECT count(*) AS n FROM request_passages i JOIN document_versions v USING (document)
                  WHERE i.text_hash = v.text_hash""") == [{"n": named}]  # fmt: skip

    # ---- they leave new views, with counts; the view that was built before is as it was
    (after,) = rows(*build)
    assert after["view_hash"] != before["view_hash"]
    assert after["pairs"] == before["pairs"] - named
    counted = {row["reason"]: row for row in rows("views", "show", "kd") if row.get("reason")}
    assert counted["text has changed"]["left_out"] == named
    dropped = sql("SELECT step, reason, n FROM drops WHERE reason = 'text has changed'")
    assert dropped == [{"step": "view passages", "reason": "text has changed", "n": named}]
    (passages,) = sql(
        f"""SELECT count(*) FILTER (doc_id IN ('{CHANGED[0]}', '{CHANGED[1]}')) AS changed, count(*) AS n
            FROM read_parquet('{store.with_name("s.files")}/views/{after["view_hash"]}/passages.parquet')"""
    )
    assert passages["changed"] == 0
    assert passages["n"] > 0

    # ---- a contrastive view shows the new text: judgments are by id
    (contrastive,) = rows("views", "build", "--kind", "contrastive", "--negatives", "hard", "--name", "cl")
    texts = sql(
        f"""SELECT doc_id, text FROM read_parquet('{store.with_name("s.files")}/views/{contrastive["view_hash"]}/passages.parquet')
            WHERE doc_id = 'p03'"""
    )
    assert texts == [{"doc_id": "p03", "text": "an entirely new text of p03"}]

    # ---- labels of the new texts come by a labeling of their own, and all of it verifies
    msft(*label, "--name", "again")
    assert sql("SELECT count(*) FILTER (NOT text_is_current) AS old, count(*) AS n FROM labels WHERE labeling = 'again'") == [
        {"old": 0, "n": N_QUERIES * DEPTH}
    ]  # fmt: skip
    assert rows("verify") == []


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
