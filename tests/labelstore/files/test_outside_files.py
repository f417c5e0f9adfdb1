"""Files from outside, in forms that others write: read as they are meant, or refused by name; nothing silent."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from labelstore.datasets.add import NewDataset
from labelstore.datasets.from_folder import add_folder
from labelstore.errors import BadInput
from labelstore.labels.import_file import Imported, import_labels
from labelstore.labels.staging import LabelsToImport
from labelstore.runs import import_run
from labelstore.store.label_store import LabelStore
from teachers.prompts import replies as reader


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    (source / "docs.jsonl").write_text(
        "".join(json.dumps({"doc_id": f"d{i}", "text": f"passage {i}"}) + "\n" for i in range(300))
    )
    (source / "queries.tsv").write_text("q1\tfirst\nq2\tsecond\n")
    (source / "qrels.txt").write_text("q1 0 d1 2\nq2 0 d2 1\n")
    store = LabelStore(source / "s.duckdb")
    add_folder(store, source, NewDataset("x"))
    return store.path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> LabelStore:
    shutil.copy(made, tmp_path / "s.duckdb")
    return LabelStore(tmp_path / "s.duckdb")


def rows(store: LabelStore, sql: str) -> list[tuple[object, ...]]:
    with store.read() as con:
        return con.execute(sql).fetchall()


LINES = [f"q{q} Q0 d{i} {i} {400 - i} T" for q in (1, 2) for i in range(1, 201)]
HEADER = ["# ir_metadata.start", "# tag: t", "# ir_metadata.end"]


@pytest.mark.test_all
@pytest.mark.parametrize(
    "text",
    {
        "plain": "\r\n".join(LINES) + "\r\n",
        "no end of the last line": "\r\n".join(LINES),
        "header": "\r\n".join([*HEADER, *LINES]) + "\r\n",
        "header alone ends so": "\r\n".join(HEADER) + "\r\n" + "\n".join(LINES) + "\n",
        "body alone ends so": "\n".join(HEADER) + "\n" + "\r\n".join(LINES) + "\r\n",
        "blank lines": "\r\n" + "\r\n\r\n".join(LINES) + "\r\n\r\n",
        "trailing spaces": " \r\n".join(LINES) + " \r\n",
        "trailing tabs": "\t\r\n".join(line.replace(" ", "\t") for line in LINES) + "\t\r\n",
        "tabs": "\r\n".join(LINES).replace(" ", "\t") + "\r\n",
        "mixed, \\n first": "".join(line + ("\r\n" if k % 3 else "\n") for k, line in enumerate(LINES)),
        "mixed, \\r\\n once, late": "\n".join(LINES[:399]) + "\n" + LINES[399] + "\r\n",
        "byte order mark": "\ufeff" + "\r\n".join(LINES) + "\r\n",
    }.items(),
    ids=lambda item: item[0],
)
def test_a_run_whose_lines_end_with_crlf_is_the_run_whose_lines_end_with_lf(
    store: LabelStore, tmp_path: Path, text: tuple[str, str]
) -> None:
    (tmp_path / "lf.run").write_bytes("".join(line + "\n" for line in LINES).encode())
    (tmp_path / "crlf.run").write_bytes(text[1].encode())
    one = import_run.import_run(store, tmp_path / "lf.run", "x", "lf")
    other = import_run.import_run(store, tmp_path / "crlf.run", "x", "crlf")
    assert (other.n_read, other.run.content_hash) == (400, one.run.content_hash)
    assert other.run.system == "T"


@pytest.mark.test_all
@pytest.mark.parametrize("number", ["5_0", "1_000.5", "2e1_0", "٣", "१", "1__0", "0x10", "nan", "inf", "1,5"])
@pytest.mark.parametrize("place", ["rank", "score"])
def test_what_is_no_number_in_a_run_is_refused_with_its_line(
    store: LabelStore, tmp_path: Path, number: str, place: str
) -> None:
    bad = f"q1 Q0 d3 {number} 1 T" if place == "rank" else f"q1 Q0 d3 3 {number} T"
    (tmp_path / "r.run").write_text(f"q1 Q0 d1 1 9 T\nq1 Q0 d2 2 8 T\n{bad}\n")
    with pytest.raises(BadInput, match=f"r.run:3: {place} '{number}'"):
        import_run.import_run(store, tmp_path / "r.run", "x", "r")
    assert rows(store, "SELECT * FROM runs") == []


@pytest.mark.parametrize("grade", ["1_1", "٣", "1.5", "nan", "1e0", "+-1", "0b1"])
def test_what_is_no_whole_number_in_qrels_is_refused_with_its_line(
    store: LabelStore, tmp_path: Path, grade: str
) -> None:
    (tmp_path / "q.txt").write_text(f"q1 0 d1 1\nq2 0 d2 {grade}\n")
    with pytest.raises(BadInput, match=r"q.txt:2: relevance .* is not a small whole number") as error:
        add_folder(store, None, NewDataset("y", collection="x", judged_only=True), tmp_path / "q.txt")
    assert error.value.hint is not None
    assert "TREC" in error.value.hint


@pytest.mark.parametrize("line", ["q1\td1\t0.5", "q1\t0\td1\t1", "q1 d1", "q1\td1\thigh"])
def test_a_line_that_beir_cannot_have_is_refused_with_the_fields_of_beir(
    store: LabelStore, tmp_path: Path, line: str
) -> None:
    (tmp_path / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\nq2\td2\t1\n{line}\n")
    with pytest.raises(BadInput, match=r"test.tsv:3: ") as error:
        add_folder(store, None, NewDataset("y", collection="x", judged_only=True), tmp_path / "test.tsv")
    assert error.value.hint is not None
    assert "corpus-id" in error.value.hint
    assert "TREC" not in error.value.hint


@pytest.mark.parametrize("header", ["qid\tquery", "Query-ID\tText", "_id\ttext\tmetadata", "# topic\ttitle", '"id"\t"question"', "#query_id\tquery text", "topic_number\tQuery", "No.\tQuestion text", "query\ttext\tlang"])  # fmt: skip
def test_the_header_of_a_table_of_queries_is_no_query(store: LabelStore, tmp_path: Path, header: str) -> None:
    source = tmp_path / "h"
    source.mkdir()
    (source / "queries.tsv").write_text(f"{header}\nh1\ttext\nid\ta query named id\n")
    add_folder(store, source, NewDataset("h"))
    found = rows(
        store, "SELECT query_id, text FROM queries q JOIN collections c USING (collection) WHERE c.name = 'h'"
    )
    assert found == [("h1", "text"), ("id", "a query named id")]


@pytest.mark.parametrize(
    "first",
    ["text\tquery_id", "id\twhat is an id", "query\tperson", "q\ttext", "no\tquestions asked", "id\t題名"],
)
def test_a_first_query_that_resembles_a_header_is_a_query(
    store: LabelStore, tmp_path: Path, first: str
) -> None:
    source = tmp_path / "h"
    source.mkdir()
    (source / "queries.tsv").write_text(f"{first}\nh1\tother\n")
    add_folder(store, source, NewDataset("h"))
    found = rows(
        store, "SELECT query_id FROM queries q JOIN collections c USING (collection) WHERE c.name = 'h'"
    )
    assert found == [(first.split("\t")[0],), ("h1",)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("collection.tsv", "d1\tcats purr\nd2\ttabs\tin it\n"),
        ("docs.tsv", "doc_id\ttext\nd1\tcats purr\nd2\ttabs\tin it\n"),
        ("collection.tsv", "pid\tpassage\r\nd1\tcats purr\r\nd2\ttabs\tin it\r\n"),
    ],
)
def test_passages_come_from_a_table_too(store: LabelStore, tmp_path: Path, name: str, text: str) -> None:
    source = tmp_path / "t"
    source.mkdir()
    (source / name).write_bytes(text.encode())
    (source / "queries.tsv").write_text("q1\tcats\n")
    add_folder(store, source, NewDataset("t"))
    found = rows(
        store, "SELECT doc_id, text FROM documents JOIN collections c USING (collection) WHERE c.name = 't'"
    )
    assert found == [("d1", "cats purr"), ("d2", "tabs\tin it")]


@pytest.mark.parametrize(
    "name",
    [
        "documents.jsonl",
        "passages.tsv.gz",
        "my_corpus.jsonl.zst",
        "Collection.TSV",
        "docs.csv",
        "docs.json",
        "corpus.parquet",
    ],
)
def test_a_file_that_may_hold_passages_is_not_passed_over_without_a_word(
    store: LabelStore, tmp_path: Path, name: str
) -> None:
    source = tmp_path / "t"
    source.mkdir()
    (source / name).write_text("")
    (source / "queries.tsv").write_text("q1\tcats\n")
    assert any(name in note for note in add_folder(store, source, NewDataset("t")).notes)


@pytest.mark.parametrize(
    "text",
    [
        "q1 a d1 0\nq1 b d1 1\n",
        "q1 1 d1 1\nq2 2 d2 1\nq1 3 d1 1\n",
        "q1 1 d1 -2\nq1 1 d2 1\nq1 10 d1 -2\n",
    ],
)
def test_judgments_of_subtopics_are_refused(store: LabelStore, tmp_path: Path, text: str) -> None:
    (tmp_path / "div.txt").write_text(text)
    with pytest.raises(BadInput, match=r"div.txt:\d: d1 is judged for the subtopics .* of query q1"):
        add_folder(store, None, NewDataset("y", collection="x", judged_only=True), tmp_path / "div.txt")


def test_a_round_of_judging_in_the_second_field_is_no_subtopic(store: LabelStore, tmp_path: Path) -> None:
    (tmp_path / "covid.txt").write_text("q1 4.5 d1 2\nq1 0.5 d2 0\nq2 5 d1 1\n")
    added = add_folder(store, None, NewDataset("y", collection="x", judged_only=True), tmp_path / "covid.txt")
    assert added.steps[-1].n_kept == 3


@pytest.mark.parametrize("text", [b"", b"\n\n", b"query-id\tcorpus-id\tscore\n", b"\r\n \t\r\n"])
def test_a_file_without_a_judgment_says_so(store: LabelStore, tmp_path: Path, text: bytes) -> None:
    (tmp_path / "e.txt").write_bytes(text)
    with pytest.raises(BadInput, match=r"e.txt: the file holds no judgment"):
        add_folder(store, None, NewDataset("y", collection="x", judged_only=True), tmp_path / "e.txt")


@pytest.mark.parametrize(
    ("line", "offset"),
    [(b"q1 Q0 d1 1 9 T\xff", 14), (b"q1 Q0 d1\xc3 1 9 T", 8), ("é Q0 d1 1 9 ".encode() + b"\xe9", 13)],
)
def test_the_offset_of_a_wrong_byte_counts_from_the_start_of_its_line(
    store: LabelStore, tmp_path: Path, line: bytes, offset: int
) -> None:
    (tmp_path / "l.run").write_bytes(b"q1 Q0 d2 1 9 T\n" + line + b"\n")
    with pytest.raises(BadInput, match=rf"l.run:2: not UTF-8 \(byte 0x.. at {offset}\)"):
        import_run.import_run(store, tmp_path / "l.run", "x", "l")


@pytest.mark.parametrize("name", ["a[1].run", "what?.run", "st*r.run", "back\\slash.run", "it's.run"])
def test_a_run_is_read_whatever_the_file_is_called(store: LabelStore, tmp_path: Path, name: str) -> None:
    (tmp_path / "a1.run").write_text("another file that the pattern fits\n")
    (tmp_path / name).write_text("q1 Q0 d1 1 9 T\n")
    assert import_run.import_run(store, tmp_path / name, "x", "r").n_read == 1


PERMUTATION = '{"query_id": "q1", "permutation": ["d2", "d1"], "scores": [2.5, 1.5]}'
LABELS = {"query_id": ["q1"] * 3, "doc_id": ["d2", "d1", "d3"], "rank": [2, 1, 3]}


def take(store: LabelStore, path: Path, **options: str) -> Imported:
    return import_labels(store, path, LabelsToImport("x", model="T", **options), reader)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        f"{PERMUTATION}\r\n",
        f"\ufeff{PERMUTATION}\n",
        f"\r\n\r\n{PERMUTATION}\r\n",
        f"\ufeff[\r\n{PERMUTATION}\r\n]\r\n",
        "q1 Q0 d2 1 2.5 T\r\nq1 Q0 d1 2 1.5 T\r\n",
        "\ufeffq1\tQ0\td2\t1\t2.5\tT\r\nq1\tQ0\td1\t2\t1.5\tT",
        '{"query_id": "q1", "initial": ["d1", "d2"], "reply": "[2] > [1]"}\r\n',
    ],
)
def test_labels_with_crlf_or_a_byte_order_mark_are_read_as_without(
    store: LabelStore, tmp_path: Path, text: str
) -> None:
    (tmp_path / "labels").write_bytes(text.encode())
    take(store, tmp_path / "labels")
    assert rows(store, "SELECT doc_id FROM labels ORDER BY rank") == [("d2",), ("d1",)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (PERMUTATION.replace("2.5", "1_000"), "labels:1: not JSON"),
        (PERMUTATION.replace("2.5", '"1_000"'), "score '1_000'"),
        (PERMUTATION.replace("2.5", '"2.5"'), "score '2.5'"),
        (PERMUTATION.replace('"q1"', "1_0"), "labels:1: not JSON"),
        ("q1 Q0 d2 1_0 2.5 T\n", "labels:1: rank '1_0'"),
        (PERMUTATION.replace("q1", "\udce9"), "labels:1: not UTF-8 .byte 0xe9 at 14"),
        ("", "holds no list of labels"),
        ("\r\n\n", "holds no list of labels"),
    ],
)
def test_what_is_no_number_or_no_text_in_labels_is_refused_with_its_line(
    store: LabelStore, tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "labels").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BadInput, match=says) as error:
        take(store, tmp_path / "labels")
    assert error.value.hint is not None


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("rank", ["2", "10", "1"], "column rank holds String, not numbers"),
        ("rank", ["1_0", "9", "8"], "column rank holds String"),
        ("rank", [2, None, 1], "a rank is missing"),
        ("score", ["1_0", "9", "8"], "column score holds String"),
        ("initial_rank", [True, False, True], "column initial_rank holds Boolean"),
        ("settled", ["1", "1", "1"], "column settled holds String"),
    ],
)
def test_a_parquet_column_of_numbers_that_holds_something_else_is_refused(
    store: LabelStore, tmp_path: Path, column: str, values: list[object], says: str
) -> None:
    pl.DataFrame({**LABELS, column: values}).write_parquet(tmp_path / "labels.parquet")
    with pytest.raises(BadInput, match=says) as error:
        take(store, tmp_path / "labels.parquet")
    assert error.value.hint is not None


@pytest.mark.parametrize(
    "name", ["a[1].parquet", "st*r.parquet", "what?.parquet", "back\\slash.parquet", "[!a].jsonl"]
)
def test_labels_are_read_whatever_the_file_is_called(store: LabelStore, tmp_path: Path, name: str) -> None:
    for other in ("a1", "star", "whatx", "b"):
        pl.DataFrame({**LABELS, "rank": [1, 2, 3]}).write_parquet(tmp_path / f"{other}.parquet")
    if name.endswith(".jsonl"):
        (tmp_path / name).write_text('{"query_id": "q1", "permutation": ["d1", "d2", "d3"]}\n')
    else:
        pl.DataFrame(LABELS).write_parquet(tmp_path / name)
    assert take(store, tmp_path / name).n_read == 1
    assert rows(store, "SELECT doc_id FROM labels ORDER BY rank") == [("d1",), ("d2",), ("d3",)]
