"""Readers name file:line; writers write what the readers read back."""

import gzip
import io
import math
from pathlib import Path

import numpy
import pytest
import zstandard

from labelstore.errors import BadInput, DataMissing
from labelstore.files import jsonl
from labelstore.files import lines as formats
from labelstore.files import trec as trec_module
from labelstore.files.run_lines import run_lines


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.ZstdCompressor().compress])
def test_compression_is_seen_by_content_not_name(tmp_path: Path, pack) -> None:
    path = write(tmp_path / "queries.tsv", pack(b"007\twho\n8\twhat is\tthis\r\n"))
    assert [(q.line, q.query_id, q.text) for q in jsonl.read_queries(path)] == [
        (1, "007", "who"),
        (2, "8", "what is\tthis"),
    ]


def test_two_gzip_members_and_two_zstd_frames_are_one_file(tmp_path: Path) -> None:
    a, b = b"1 0 a 1\n", b"1 0 b 0\n"
    frame = zstandard.ZstdCompressor().compress
    for data in (gzip.compress(a, mtime=0) + gzip.compress(b, mtime=0), frame(a) + frame(b)):
        path = write(tmp_path / "qrels", data)
        assert [j.doc_id for j in trec_module.read_qrels(path)] == ["a", "b"]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor(write_checksum=True).compress])
def test_a_file_cut_anywhere_or_flipped_is_refused(tmp_path: Path, pack) -> None:
    lines = b"".join(b"q%d Q0 d%d %d %f t\n" % (i, i * 7919 % 1013, i, -i) for i in range(500))
    whole = pack(lines)
    for cut in range(5, len(whole), len(whole) // 23):
        path = write(tmp_path / "run", whole[:cut])
        with pytest.raises(BadInput, match="cut short or damaged"):
            list(trec_module.read_run(path))
        with pytest.raises(BadInput, match="cut short or damaged"):
            run_lines(path, tmp_path)
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 0x55
    with pytest.raises(BadInput, match="cut short or damaged"):
        run_lines(write(tmp_path / "run", bytes(broken)), tmp_path)


def test_only_newline_ends_a_line(tmp_path: Path) -> None:
    text = "one\u0085two\u2028three\u2029four\x0bfive"
    path = write(tmp_path / "docs.jsonl", f'{{"doc_id": "01", "text": "{text[:-5]}"}}\n'.encode())
    assert [d.text for d in jsonl.read_documents(path)] == [text[:-5]]
    path = write(tmp_path / "queries.tsv", f"q\t{text}\n".encode())
    assert [q.text for q in jsonl.read_queries(path)] == [text]


def test_document_fields(tmp_path: Path) -> None:
    path = write(
        tmp_path / "docs.jsonl",
        b'{"_id": "a", "title": "T", "text": "x"}\n\n{"id": 7, "contents": "y"}\n{"doc_id": "c", "title": null, "text": null}\n',
    )
    assert [(d.line, d.doc_id, d.title, d.text) for d in jsonl.read_documents(path)] == [
        (1, "a", "T", "x"),
        (3, "7", None, "y"),
        (4, "c", None, ""),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"doc_id": "a", "text": "x"', "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"text": "x"}', "doc_id is missing"),
        (b'{"doc_id": "", "text": "x"}', "doc_id is missing"),
        (b'{"doc_id": true, "text": "x"}', "doc_id is missing"),
        (b'{"doc_id": 1.5, "text": "x"}', "doc_id is missing"),
        (b'{"doc_id": "a b", "text": "x"}', "white space"),
        (b'{"doc_id": "a"}', "no field text"),
        (b'{"doc_id": "a", "text": 5}', "text is not text"),
        (b'{"doc_id": "a", "text": "x\\u0000"}', "NUL"),
        (b'{"doc_id": "a", "text": "\\ud800"}', "surrogate"),
        (b'{"doc_id": "a", "text": "caf\xe9"}', "not UTF-8"),
        (b'{"doc_id": "a", "text": "x"}\x00', "NUL"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_document_is_named_by_its_line(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path / "docs.jsonl", b'{"doc_id": "fine", "text": "x"}\n' + line + b"\n")
    with pytest.raises(BadInput, match=message) as error:
        list(jsonl.read_documents(path))
    assert f"{path}:2:" in error.value.message
    assert error.value.hint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"q Q0 d 1 2.5", "5 fields"),
        (b"q Q0 d 1 2.5 t t", "7 fields"),
        (b"q Q0 d one 2.5 t", "rank 'one'"),
        (b"q Q0 d 1.5 2.5 t", "rank '1.5'"),
        (b"q Q0 d 1 nan t", "not a finite"),
        (b"q Q0 d 1 inf t", "not a finite"),
        (b"q Q0 d 1 -Infinity t", "not a finite"),
        (b"q Q0 d 1 1e39 t", "not a finite"),
        (b"q Q0 d 1 2,5 t", "not a finite"),
        (b"q Q0 d\xff 1 2.5 t", "not UTF-8"),
    ],
)
def test_a_bad_run_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path / "run", b"# ir_metadata.start\n#\nq Q0 x 0 3 t\n\n" + line + b"\n")
    with pytest.raises(BadInput, match=message) as error:
        list(trec_module.read_run(path))
    assert f"{path}:5:" in error.value.message


def test_run_fields_may_stand_apart_by_any_white_space(tmp_path: Path) -> None:
    path = write(tmp_path / "run", b"\xef\xbb\xbf 007\tQ0  d\xc2\x85x   1 -1.5e-3\ttag \r\nq Q0 d 2.0 -2 tag")
    assert [(c.query_id, c.doc_id, c.rank, c.score) for c in trec_module.read_run(path)] == [
        ("007", "d\u0085x", 1, -0.0015),
        ("q", "d", 2, -2.0),
    ]


def test_qrels_of_trec_and_of_beir(tmp_path: Path) -> None:
    trec = write(tmp_path / "qrels.txt", b"01 0 d -2\n01\tQ0\te\t3\n")
    assert [(j.query_id, j.doc_id, j.relevance) for j in trec_module.read_qrels(trec)] == [
        ("01", "d", -2),
        ("01", "e", 3),
    ]
    beir = write(tmp_path / "test.tsv", b"query-id\tcorpus-id\tscore\n01\td\t1\n")
    assert [(j.query_id, j.doc_id, j.relevance) for j in trec_module.read_qrels(beir)] == [("01", "d", 1)]
    for bad in (b"1 0 d 1.5\n", b"1 0 d 99999\n", b"1 d 1\n"):
        with pytest.raises(BadInput, match=r"qrels.txt:1:"):
            list(trec_module.read_qrels(write(tmp_path / "qrels.txt", bad)))


def test_a_line_beyond_the_limit_is_refused_without_holding_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(formats, "MAX_LINE", 1 << 20)
    path = write(tmp_path / "queries.tsv", b"1\tfine\n2\t" + b"x" * (3 << 20))
    with pytest.raises(BadInput, match=r"queries.tsv:2: the line is longer"):
        list(jsonl.read_queries(path))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataMissing):
        list(trec_module.read_run(tmp_path / "none"))
    with pytest.raises(DataMissing):
        list(trec_module.read_run(tmp_path))


def test_written_scores_read_back_as_the_same_float32() -> None:
    rng = numpy.random.default_rng(3)
    bits = rng.integers(0, 1 << 32, 2000, dtype=numpy.uint64).astype(numpy.uint32)
    scores = [float(s) for s in bits.view(numpy.float32) if math.isfinite(s)]
    out = io.StringIO()
    n = trec_module.write_run(
        out, [("q", f"d{i}", i + 1, s) for i, s in enumerate(scores)], "a tag", ["ir_metadata.start"]
    )
    lines = out.getvalue().splitlines()
    assert n == len(scores)
    assert lines[0] == "# ir_metadata.start"
    assert [numpy.float32(line.split()[4]) for line in lines[1:]] == [numpy.float32(s) for s in scores]
    assert all(line.split()[5] == "a-tag" for line in lines[1:])


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_created_file_is_whole_or_absent(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"out.run{ending}"
    with pytest.raises(ZeroDivisionError), formats.create(path) as out:  # noqa: PT012 - breaks off between two writes
        out.write("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with formats.create(path) as out:
        out.write("1 0 dé 2\n")
    assert [j.doc_id for j in trec_module.read_qrels(path)] == ["dé"]
    assert formats.compression(path) == {"": "none", ".gz": "gzip", ".zst": "zstd"}[ending]
