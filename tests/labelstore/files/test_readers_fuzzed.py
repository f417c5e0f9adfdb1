"""Readers under random and hostile bytes: they take a file or name its line, and the quick readers agree with the reference.

What the reference reader takes, the quick one stores alike; what it refuses, the quick one refuses, with the same words.
"""

import gzip
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from labelstore.datasets.add import NewDataset
from labelstore.datasets.from_folder import add_folder
from labelstore.errors import BadInput, MsftError
from labelstore.files import fast_jsonl as quick_documents
from labelstore.files import jsonl, trec
from labelstore.runs import import_run
from labelstore.store.label_store import LabelStore

QUICK = settings(
    max_examples=40, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
IDS = [
    "1",
    "01",
    "001",
    "7",
    "+7",
    "7.0",
    "1e3",
    "1000",
    "10",
    "é",
    "d\u0085x",
    "a'b",
    'q"x',
    "#",
    "NULL",
    "-0",
    "0",
]


@pytest.fixture(scope="module", params=["numbers", "texts"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    """A collection whose ids are all whole numbers (looked up), or not (joined)."""
    folder = tmp_path_factory.mktemp(request.param)
    held = (
        ["0", "1", "7", "10", "1000"]
        if request.param == "numbers"
        else [i for i in IDS if i not in ("#", "d\u0085x")]
    )
    (folder / "docs.jsonl").write_text(
        "".join(json.dumps({"doc_id": i, "text": f"t {i}"}) + "\n" for i in held)
    )
    (folder / "queries.tsv").write_text("".join(f"{i}\tquery {i}\n" for i in held))
    store = LabelStore(folder / "s.duckdb")
    add_folder(store, folder, NewDataset("fuzz", collection="c", role="train"))
    return store


# ---------------------------------------------------------------------------------------------------- TREC runs
FIELD = st.sampled_from([*IDS, "Q0", "x\x0by", "x\x00", "a\tb", "\u2028"])
NUMBER = st.one_of(
    st.integers(-3, 60).map(str),
    st.floats(width=32).map(repr),
    st.sampled_from(["nan", "-inf", "1e39", "3.4028235e38", "1_0", "0x1", "1.", ".5", "+2", "2.5", "", "٣", "1e2", "-0", "1e400"]),
)  # fmt: skip
LINE = st.one_of(
    st.tuples(
        FIELD, st.just("Q0"), FIELD, NUMBER, NUMBER, st.sampled_from(["t", "t t", "t\x0b", "é", ""])
    ).map(list),
    st.sampled_from([[""], ["# a comment"], ["#", "Q0", "1", "1", "2", "t"], ["x"], [" ", "", ""]]),
)
SEPARATORS = st.sampled_from([" ", " ", " ", "\t", "  ", " \t"])
ENDINGS = st.sampled_from(["\n", "\n", "\n", "\r\n", "\r", "\n\n"])


@st.composite
def plausible_runs(draw: st.DrawFn) -> bytes:
    """Mostly good runs over the ids that are held: in order or not, with ties, negative scores, a few odd lines."""
    lines = []
    for query in draw(st.lists(st.sampled_from(["1", "7", "10", "0"]), min_size=1, max_size=4)):
        documents = draw(st.lists(st.sampled_from(["0", "1", "7", "10", "1000"]), max_size=5, unique=True))
        scores = draw(st.lists(st.integers(-4, 4), min_size=len(documents), max_size=len(documents)))
        if draw(st.booleans()):
            scores.sort(reverse=True)
        ranks = range(draw(st.integers(0, 2)), 99)
        lines += [
            [query, "Q0", d, str(r), f"{s / 2}", "t"]
            for d, r, s in zip(documents, ranks, scores, strict=False)
        ]
    for _ in range(draw(st.integers(0, 1))):
        lines.insert(draw(st.integers(0, len(lines))), draw(LINE))
    separator, ending = draw(SEPARATORS), draw(st.sampled_from(["\n", "\r\n"]))
    last = draw(st.sampled_from(["", ending]))
    return (ending.join(separator.join(line) for line in lines) + last).encode("utf-8", "surrogatepass")


@st.composite
def odd_runs(draw: st.DrawFn) -> bytes:
    """Lines of anything."""
    separator = draw(SEPARATORS)
    parts = [separator.join(line) + draw(ENDINGS) for line in draw(st.lists(LINE, max_size=6))]
    data = "".join(parts).encode("utf-8", "surrogatepass")
    if draw(st.booleans()):
        at = draw(st.integers(0, len(data)))
        data = (
            data[:at]
            + draw(st.sampled_from([b"\xff", b"\x00", b"\xc3", b"\xef\xbb\xbf", b" ", b"\n"]))
            + data[at:]
        )
    return draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"])) + data


def expected(store: LabelStore, path: Path) -> list[tuple[str, int, str, float]] | str:
    """What the reference reader makes of a run: rows by query and rank, or the message."""
    with store.read() as con:
        known = {i for (i,) in con.execute("SELECT doc_id FROM documents").fetchall()}
    try:
        read = list(trec.read_run(path))
    except BadInput as error:
        return error.message
    seen: dict[tuple[str, str], int] = {}
    for c in read:
        if c.query_id in known and c.doc_id in known and (c.query_id, c.doc_id) in seen:
            return "comes again"
        seen[c.query_id, c.doc_id] = c.line
    rows = []
    kept = [c for c in read if c.query_id in known and c.doc_id in known]
    for query in {c.query_id for c in kept}:
        own = sorted(
            (c for c in kept if c.query_id == query), key=lambda c: -c.score
        )  # stable: ties keep their order
        rows += [
            (query, rank, c.doc_id, struct.unpack("f", struct.pack("f", c.score))[0])
            for rank, c in enumerate(own, 1)
        ]
    return sorted(rows) or "no candidate|none of its"


def stored(store: LabelStore, path: Path) -> list[tuple[str, int, str, float]] | str:
    """What the import stores, taken out again; or its message."""
    try:
        run = import_run.import_run(store, path, "fuzz", "r", skip_unknown=True, replace=True).run
    except MsftError as error:
        return error.message
    with store.read() as con:
        return con.execute(
            """SELECT q.query_id, c.rank, d.doc_id, c.score FROM candidates c JOIN queries q USING (query)
               JOIN documents d ON d.document = c.document WHERE c.run = ? ORDER BY ALL""",
            [run.run],
        ).fetchall()


@pytest.mark.test_all
@pytest.mark.parametrize("made", [plausible_runs(), odd_runs()], ids=["plausible", "odd"])
def test_a_run_is_read_as_the_reference_reads_it(store: LabelStore, tmp_path: Path, made: Any) -> None:
    path = tmp_path / "run"

    @QUICK
    @given(
        data=made, packed=st.sampled_from([bytes, bytes, gzip.compress, zstandard.ZstdCompressor().compress])
    )
    @example(data=b"1 Q0 7 1 2 t\r1 Q0 10 2 1 t\n", packed=bytes)
    @example(data=b"1 Q0 7 1.5 2 t\n", packed=bytes)
    @example(data=b"1 Q0  7 1 2 t\n1 Q0 7 1 2 t\n", packed=bytes)
    @example(data=b"1 Q0 007 1 2 t\n1 Q0 1e3 2 1 t\n1 Q0 7 3 0 t\n", packed=bytes)
    @example(data=b"1 Q0 7 1 2 t\n# Q0 7 2 1 t\n", packed=bytes)
    @example(data=b"1 Q0 7 1 2 t\n1 Q0 10 2 1 t\x0bu\n", packed=bytes)
    @example(data=b"\xef\xbb\xbf1 Q0 7 1 2 t\n", packed=bytes)
    @example(data=b"\n\n1 Q0 7 1 2 t\n\n\n1 Q0 10 2 1 t", packed=bytes)
    def check(data: bytes, packed: Any) -> None:
        path.write_bytes(packed(data))
        wanted, found = expected(store, path), stored(store, path)
        if isinstance(wanted, str):
            assert isinstance(found, str), f"refused: {wanted}; stored: {found}"
            assert found == wanted or re.search(wanted if "|" in wanted else re.escape(wanted), found), (
                wanted,
                found,
            )
        else:
            assert found == wanted

    check()


# ---------------------------------------------------------------------------------------------- JSONL documents
KEYS = st.sampled_from(["doc_id", "_id", "id", "docno", "text", "contents", "title", "url", "score"])
VALUES = st.one_of(
    st.text(max_size=8), st.sampled_from([None, 7, 1.5, True, [1], {"a": 1}, "", " ", "\u2028x\u0085", "\ud800", "a\x00b", "x\ty", float("nan")]),
)  # fmt: skip


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """Mostly good JSONL in one naming, with some lines of anything."""
    id_key, text_key = draw(st.sampled_from([("doc_id", "text"), ("_id", "text"), ("id", "contents")]))
    lines: list[Any] = []
    for n in range(draw(st.integers(0, 5))):
        row = {id_key: draw(st.sampled_from([f"d{n}", f"{n:03d}"])), text_key: draw(st.text(max_size=12))}
        if draw(st.booleans()):
            row["title"] = draw(st.one_of(st.none(), st.text(max_size=5)))
        lines.append(json.dumps(row, ensure_ascii=draw(st.booleans())))
    for _ in range(draw(st.integers(0, 1))):
        odd = draw(
            st.one_of(
                st.dictionaries(KEYS, VALUES, max_size=4).map(json.dumps),
                st.sampled_from(["", " ", "[1]", "{", '{"doc_id": "a", "text": "b"} x', '{"doc_id": "a", "doc_id": "b", "text": "c"}',
                                 '{"doc_id": "a b", "text": "c"}', '{"doc_id": "a"}', ' {"doc_id": "z", "text": "c"}', "\x00", '{"doc_id":"k","text":"\\udc00"}']),
            )
        )  # fmt: skip
        lines.insert(draw(st.integers(0, len(lines))), odd)
    data = draw(st.sampled_from(["\n", "\n", "\r\n"])).join(lines).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 5)) == 0:
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.sampled_from([b"\xff", b"\x00", b"\xc3", b"\xef\xbb\xbf"])) + data[at:]
    return data + draw(st.sampled_from([b"", b"\n"]))


def quickly(path: Path) -> list[tuple[int, str, str | None, str]] | None:
    """(line, doc_id, title, text) by the quick reader; None where it leaves the file to the reference."""
    rows = []
    try:
        for _, batch, empty in quick_documents.batches(path):
            rows += [(r["line"], r["doc_id"], r["title"], r["text"]) for r in batch.to_pylist()]
            rows += [(line, doc_id, None, "") for line, doc_id in empty]
    except quick_documents.UnusualForm:
        return None
    return sorted(rows)


@pytest.mark.test_all
def test_documents_are_read_as_the_reference_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    taken = []

    @settings(QUICK, max_examples=400)
    @given(data=documents(), packed=st.sampled_from([bytes, gzip.compress]))
    @example(data=b'{"doc_id": "1"\n,"text": "a"}{"doc_id": "2", "text": "b"}\n', packed=bytes)
    @example(data=b'{"doc_id": "1", "text": "a"}\n\n{"doc_id": "2", "text": "b"}\n', packed=bytes)
    @example(data=b'{"doc_id": "1", "_id": 4, "text": "a"}\n', packed=bytes)
    @example(data=b'{"_id": "1", "text": "a"}\n{"doc_id": "2", "_id": "3", "text": "a"}\n', packed=bytes)
    def check(data: bytes, packed: Any) -> None:
        path.write_bytes(packed(data))
        found = quickly(path)
        if found is None:
            return
        taken.append(len(found))
        reference = [
            (d.line, d.doc_id, d.title, d.text)
            if d.text.strip() or (d.title or "").strip()
            else (d.line, d.doc_id, None, "")
            for d in jsonl.read_documents(path)
        ]
        assert found == reference

    check()
    assert sum(n > 0 for n in taken) > 50, "the quick reader takes what is in the common form"


# ------------------------------------------------------------------------------------------------- anything else
READERS = [jsonl.read_documents, jsonl.read_queries, trec.read_qrels, trec.read_run]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_no_bytes_make_a_reader_fail_without_naming_the_file(tmp_path: Path, reader: Any) -> None:
    path = tmp_path / "file.jsonl"

    @settings(QUICK, max_examples=200)
    @given(
        data=st.one_of(st.binary(max_size=60), odd_runs(), documents()),
        packed=st.sampled_from([bytes, gzip.compress, zstandard.ZstdCompressor().compress]),
        cut=st.one_of(st.none(), st.integers(0, 60)),
    )
    def check(data: bytes, packed: Any, cut: int | None) -> None:
        path.write_bytes(packed(data)[:cut])
        refused: BadInput | None = None
        try:
            lines = [row.line for row in reader(path)]
        except BadInput as error:
            refused, lines = error, []
        assert lines == sorted(set(lines))
        assert refused is None or (str(path) in refused.message and refused.hint)

    check()


def _long_line(size: int) -> Iterator[bytes]:
    block = b"x" * (1 << 20)
    yield b'{"doc_id": "a", "text": "fine"}\n{"doc_id": "b", "text": "'
    for _ in range(size >> 20):
        yield block
    yield b'"}\n'


def test_a_line_of_100_mb_is_refused_by_its_number(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    with (folder / "docs.jsonl").open("wb") as file:
        file.writelines(_long_line(100 << 20))
    with pytest.raises(BadInput, match=r"docs.jsonl:2: the line is longer than 64 MiB"):
        add_folder(LabelStore(tmp_path / "s.duckdb"), folder, NewDataset("d"))
    run = tmp_path / "run"
    with run.open("wb") as file:
        file.writelines(_long_line(100 << 20))
    with pytest.raises(BadInput):
        list(trec.read_run(run))


def test_the_hash_of_rows_in_sql_is_as_it_was_defined() -> None:
    """Stores hold these hashes: the same in whole numbers of any size, step by step."""
    import duckdb

    from labelstore.store.row_hashes import id_hash, number_hash, row_sum, small_number_hash

    def mixed(h: int) -> int:
        return ((h & 0xFFFFFFFF) * 2654435769) ^ ((h >> 32) * 2246822519)

    def hashed(number: int, rank: int, score: float) -> int:
        (bits,) = struct.unpack("I", struct.pack("f", score))
        h = mixed(mixed(mixed(mixed(number + 1) ^ (rank * 3266489917)) ^ (bits * 668265263)))
        return h ^ (h >> 29)

    numbers = [0, 1, 7, 8_841_822, 10**17 - 1]
    scores = [-1.5, 0.0, -0.0, 3.4e38, 1e-45]
    rows = [(k, str(n), k + 1, s) for k, (n, s) in enumerate(zip(numbers, scores, strict=True))]
    with duckdb.connect() as con:
        con.execute("CREATE TABLE t (query INTEGER, doc_id VARCHAR, rank INTEGER, score FLOAT)")
        con.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", rows)
        for by in (id_hash("doc_id"), number_hash("doc_id::BIGINT")):
            sums = con.execute(row_sum(f"(SELECT *, {by} AS id_hash FROM t)") + " ORDER BY query").fetchall()
            assert [total for _, total, _ in sums] == [
                hashed(n, k, s) for k, (n, s) in enumerate(zip(numbers, scores, strict=True), 1)
            ]
        small = "SELECT unnest([0, 1, 7, 8_841_822, 4_294_967_294])::UINTEGER AS n"
        assert (
            con.execute(
                f"SELECT n FROM ({small}) WHERE {small_number_hash('n')} IS DISTINCT FROM {number_hash('n::UBIGINT')}"
            ).fetchall()
            == []
        )
