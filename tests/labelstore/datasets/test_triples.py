"""Files of triples: the forms that tools write, judgments and candidates from them, and lines that are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.main import run
from cli.workflows.triples import add_triples
from labelstore.errors import BadInput
from labelstore.store.label_store import LabelStore


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return LabelStore(tmp_path / "s.duckdb")


def written(folder: Path, *rows: Any, name: str = "triples.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def rows(store: LabelStore, sql: str) -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(sql).fetchall()


FORMS: dict[str, dict[str, Any]] = {
    "ToolBench": {"query": "play music", "positives": ["a player"], "negatives": ["a mail tool", "a map"]},
    "FlagEmbedding": {"query": "play music", "pos": ["a player"], "neg": ["a mail tool", "a map"], "pos_scores": [1.0]},
    "sentence-transformers": {"anchor": "play music", "positive": "a player", "negative": ["a mail tool", "a map"]},
    "Tevatron": {
        "query_id": "7", "query": "play music", "positive_passages": [{"docid": "d1", "title": "T", "text": "a player"}],
        "negative_passages": [{"docid": "d2", "title": "", "text": "a mail tool"}, {"docid": "d3", "text": "a map"}],
    },
    "question": {"question": "play music", "positives": [{"id": 1, "text": "a player"}], "negatives": ["a mail tool", "a map"]},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_each_tools_lines_become_judgments_and_candidates(
    store: LabelStore, tmp_path: Path, form: str
) -> None:
    added = add_triples(store, "tools/train", written(tmp_path, FORMS[form]))
    assert (added.dataset, added.role) == ("tools/train", "train")
    assert rows(store, "SELECT text FROM queries") == [("play music",)]
    found = rows(
        store,
        """SELECT r.rank, d.text, q.relevance FROM ranked r JOIN documents d USING (doc_id)
           LEFT JOIN judgments q USING (query_id, doc_id) WHERE r.run = 'triples' ORDER BY rank""",
    )
    assert found == [(1, "a player", 1), (2, "a mail tool", None), (3, "a map", None)]
    ids = {doc_id for (doc_id,) in rows(store, "SELECT doc_id FROM documents")}
    assert ("d1" in ids, "1" in ids) == (form == "Tevatron", form == "question")
    assert any("2 of them given negatives" in line for line in added.notes)


def test_given_negatives_are_mined_and_trained_on(store: LabelStore, tmp_path: Path) -> None:
    lines = [{"query": f"query {n}", "pos": [f"good {n}"], "neg": [f"bad {n}", "shared"]} for n in range(6)]
    file = written(tmp_path, *lines)
    for arguments in (
        ["data", "add", "t/train", "--from", str(file), "--layout", "triples"],
        ["negatives", "mine", "--dataset", "t/train", "--run", "triples", "--name", "given"],
    ):
        with pytest.raises(SystemExit) as ended:
            run([*arguments, "-q", "--store", str(store.path)])
        assert ended.value.code == 0
    mined = rows(store, "SELECT query_id, count(*) FROM mined GROUP BY 1")
    assert [n for _, n in mined] == [2] * 6
    assert len(rows(store, "SELECT * FROM documents")) == 13, "a text that several lines have is one passage"


def test_a_query_on_several_lines_is_one_query_and_twice_changes_nothing(
    store: LabelStore, tmp_path: Path
) -> None:
    file = written(
        tmp_path,
        {"query": "q", "pos": "a", "neg": "b"},
        {"query": "q", "pos": "b", "neg": ["c", "a"]},
    )
    added = add_triples(store, "t/train", file)
    assert rows(store, "SELECT count(*) FROM judgments") == [(2,)]
    assert any("2 passages are positive and negative" in line for line in added.notes)
    before = rows(store, "SELECT name, content_hash FROM runs")
    assert not add_triples(store, "t/train", file).changed
    assert rows(store, "SELECT name, content_hash FROM runs") == before


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ("{}", "no query"),
        ('{"query": " ", "pos": ["a"]}', "no query"),
        ('{"query": 3, "pos": ["a"]}', "no query"),
        ('{"query": "q"}', "no positive"),
        ('{"query": "q", "pos": []}', "no positive"),
        ('{"query": "q", "pos": [7]}', "is no text"),
        ('{"query": "q", "pos": [""]}', "is no text"),
        ('{"query": "q", "pos": ["a"], "neg": [{"title": "t"}]}', "is no text"),
        ('{"query": "q", "pos": ["\\u0000"]}', "is no text"),
        ('{"query": "q", "pos": ["\\ud800"]}', "is no text"),
        ('{"query_id": "a b", "query": "other", "pos": ["a"]}', "holds white space"),
        ('{"query_id": "1", "query": "other", "pos": ["a"]}', "another text before"),
        ('{"query": "q", "pos": [{"id": "d", "text": "other"}]}', "another text before"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_stored(
    store: LabelStore, tmp_path: Path, line: str, says: str
) -> None:
    file = tmp_path / "bad.jsonl"
    good = {"query_id": "1", "query": "q1", "pos": [{"id": "d", "text": "a"}]}
    file.write_text(json.dumps(good) + "\n\n" + line + "\n")
    with pytest.raises(BadInput, match=f"bad.jsonl:3: .*{says}"):
        add_triples(store, "t/train", file)
    assert not store.exists or rows(store, "SELECT count(*) FROM datasets") == [(0,)]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--from", "FILE", "--qrels", "FILE"], 2, "one file"),
        (["--from", "FILE", "--splits"], 2, "one file"),
        (["--from", "FILE", "--skip-bad-lines", "1"], 2, "one file"),
        ([], 2, "one file"),
        (["--from", "absent.jsonl"], 4, "absent"),
        (["--from", "EMPTY"], 1, "holds no line"),
        (["--from", "FILE", "--role", "exam"], 2, "exam"),
    ],
)
def test_what_does_not_fit_triples_is_said(
    store: LabelStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    says: str,
) -> None:
    file = written(tmp_path, {"query": "q", "pos": ["a"]})
    (tmp_path / "empty.jsonl").write_text("\n")
    names = {"FILE": str(file), "EMPTY": str(tmp_path / "empty.jsonl")}
    given = [names.get(option, option) for option in options]
    with pytest.raises(SystemExit) as ended:
        run(["data", "add", "t/train", "--layout", "triples", *given, "--store", str(store.path)])
    assert (ended.value.code, says in capsys.readouterr().err) == (code, True)
