"""Runs in and out: ranks follow scores, ties keep the file's order, whatever is wrong is named, nothing half stored."""

import gzip
import io
import json
import math
import random
from pathlib import Path
from typing import Any

import ir_measures
import numpy
import pyarrow as pa
import pytest

from labelstore.datasets.add import NewDataset
from labelstore.datasets.from_folder import add_folder
from labelstore.errors import BadInput
from labelstore.provenance import record as provenance
from labelstore.runs import export, import_run
from labelstore.runs import write as runs
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from labelstore.store.row_hashes import run_hash

N_DOCS, N_QUERIES = 50, 6


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    """Passages 00…49, queries q0…q5 of dataset `mine`, query `else` of dataset `other` over the same collection."""
    source = tmp_path / "f"
    source.mkdir()
    (source / "docs.jsonl").write_text(
        "".join(json.dumps({"doc_id": f"{i:02d}", "text": f"t{i}"}) + "\n" for i in range(N_DOCS))
    )
    (source / "queries.tsv").write_text("".join(f"q{i}\tquery {i}\n" for i in range(N_QUERIES)) + "else\tx\n")
    (source / "mine.txt").write_text("".join(f"q{i} 0 00 1\n" for i in range(N_QUERIES)))
    (source / "other.txt").write_text("else 0 00 1\n")
    store = LabelStore(tmp_path / "s.duckdb")
    for name in ("mine", "other"):
        add_folder(store, source, NewDataset(name, collection="c", judged_only=True), source / f"{name}.txt")
    return store


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(line + "\n" for line in lines))
    return path


def ranked(store: LabelStore, run: str = "r") -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(
            "SELECT query_id, rank, doc_id, score FROM ranked WHERE dataset = 'mine' AND run = ? ORDER BY 1, 2",
            [run],
        ).fetchall()


def state(store: LabelStore) -> list[list[tuple[Any, ...]]]:
    with store.read() as con:
        tables = ("provenance", "runs", "candidates", "filters", "drops", "documents", "queries")
        return [sorted(con.execute(f"SELECT * FROM {t}").fetchall(), key=repr) for t in tables]


def some_run(seed: int, tag: str = "sys") -> list[str]:
    rng = random.Random(seed)
    lines = []
    for q in range(N_QUERIES):
        docs = rng.sample(range(N_DOCS), 20)
        scores = sorted((round(rng.uniform(-3, 9), 4) for _ in docs), reverse=True)
        lines += [
            f"q{q} Q0 {d:02d} {r} {s:.4f} {tag}" for r, (d, s) in enumerate(zip(docs, scores, strict=True), 1)
        ]
    return lines


def test_a_run_comes_in(store: LabelStore, tmp_path: Path) -> None:
    lines = some_run(1)
    imported = import_run.import_run(store, write(tmp_path / "r.run", lines), "mine", "r")
    run = imported.run
    assert (run.kind, run.system, run.depth, run.n_queries, run.n_candidates) == (
        "first_stage",
        "sys",
        20,
        6,
        120,
    )
    expected = [(q, int(r), d, float(numpy.float32(s))) for q, _, d, r, s, _ in map(str.split, lines)]
    assert ranked(store) == expected
    with store.read() as con:
        assert con.execute("SELECT query, rank FROM candidates").fetchall() == sorted(
            con.execute("SELECT query, rank FROM candidates").fetchall()
        )
        assert run_hash(con, run.run) == run.content_hash


@pytest.mark.test_all
@pytest.mark.parametrize("seed", range(4))
def test_content_decides_the_hash_not_the_files_order_or_form(
    store: LabelStore, tmp_path: Path, seed: int
) -> None:
    lines = some_run(seed)
    first = import_run.import_run(store, write(tmp_path / "r.run", lines), "mine", "a").run
    shuffled = lines[:]
    random.Random(seed).shuffle(shuffled)
    tabs = "".join("\t".join(line.split()) + "\r\n" for line in shuffled)
    spaced = "# a comment of some words\n" + "".join(line.replace(" ", "   ") + "\n\n" for line in shuffled)
    for name, text in (("tabs", tabs), ("spaced", spaced)):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
        again = import_run.import_run(store, tmp_path / name, "mine", name).run
        assert again.content_hash == first.content_hash
        assert ranked(store, name) == ranked(store, "a")
    changed = lines[:]
    query_id, q0, doc_id, rank, score, tag = changed[-1].split()
    changed[-1] = " ".join([query_id, q0, doc_id, rank, f"{float(score) - 0.001:.4f}", tag])
    other = import_run.import_run(store, write(tmp_path / "o.run", changed), "mine", "other").run
    assert other.content_hash != first.content_hash


def test_the_hash_sees_every_swap(store: LabelStore) -> None:
    """Equal sums of parts do not make equal content: ranks, passages, scores or queries exchanged."""
    base = [
        ("q0", "00", 2.0),
        ("q0", "01", 1.0),
        ("q1", "01", 2.0),
        ("q1", "00", 1.0),
        ("q2", "00", 2.0),
        ("q2", "02", 2.0),
    ]
    variants = [
        base,
        [("q0", "01", 2.0), ("q0", "00", 1.0), *base[2:]],
        [("q1", d, s) if q == "q0" else ("q0", d, s) if q == "q1" else (q, d, s) for q, d, s in base],
        [("q0", "00", 2.5), ("q0", "01", 1.0), *base[2:]],
        [*base[:4], ("q2", "02", 2.0), ("q2", "03", 2.0)],
        base[:-1],
    ]
    hashes = []
    for k, rows in enumerate(variants):
        with store.write() as con, provenance.recorded_in(con, "test") as job:
            hashes.append(stored(con, job, f"v{k}", rows).content_hash)
    assert len(set(hashes)) == len(variants)


def stored(con: Any, job: Any, name: str, rows: list[tuple[str, str, float]], **options: Any) -> lookup.Run:
    """store_run over rows of text ids."""
    query = dict(con.execute("SELECT query_id, query FROM queries").fetchall())
    document = dict(con.execute("SELECT doc_id, document FROM documents").fetchall())
    frame = pa.table(
        {
            "query": [query[q] for q, *_ in rows],
            "document": [document[d] for _, d, *_ in rows],
            "score": [row[2] for row in rows],
            **({"rank": [row[3] for row in rows]} if len(rows[0]) > 3 else {}),
        }
    )
    con.register("made_rows", frame)
    dataset = lookup.dataset(con, "mine").dataset
    return runs.store_run(con, job, runs.NewRun(dataset, name, "first_stage", "s"), "made_rows", **options)


def test_store_run_ranks_by_score_and_breaks_ties(store: LabelStore) -> None:
    rows = [("q0", "03", 1.0), ("q0", "02", 1.0), ("q0", "01", 5.0)]
    with store.write() as con, provenance.recorded_in(con, "test") as job:
        by_id = stored(con, job, "r", rows)
        assert stored(con, job, "r", rows[::-1]) == by_id
        with pytest.raises(BadInput, match="is there with other content"):
            stored(con, job, "r", rows[:2])
        stored(con, job, "tied", [(*rows[0], 2), (*rows[1], 7), (*rows[2], 9)])
        replaced = stored(con, job, "r", rows[:2], replace=True)
        assert (replaced.run, replaced.n_candidates) == (by_id.run, 2)
        with pytest.raises(BadInput, match="comes twice"):
            stored(con, job, "twice", [*rows, rows[0]])
        for bad in (math.nan, math.inf):
            with pytest.raises(BadInput, match="not finite"):
                stored(con, job, "bad", [("q0", "03", bad)])
    assert [d for _, _, d, _ in ranked(store)] == ["02", "03"]
    assert [d for _, _, d, _ in ranked(store, "tied")] == ["01", "03", "02"]


def test_scores_decide_and_ties_keep_the_files_order(store: LabelStore, tmp_path: Path) -> None:
    notes: list[str] = []
    lines = ["q0 Q0 05 1 1.0 t", "q0 Q0 04 2 2.0 t", "q0 Q0 03 3 1.0 t", "q1 Q0 01 9 1 t", "q1 Q0 00 10 1 t"]
    import_run.import_run(store, write(tmp_path / "r", lines), "mine", "r", note=notes.append)
    assert [(q, r, d) for q, r, d, _ in ranked(store)] == [
        ("q0", 1, "04"),
        ("q0", 2, "05"),
        ("q0", 3, "03"),
        ("q1", 1, "01"),
        ("q1", 2, "00"),
    ]
    assert len(notes) == 1
    assert "ranks disagree with scores in 1 of 2 queries" in notes[0]


def test_files_in_an_odd_but_consistent_order_are_taken_without_a_note(
    store: LabelStore, tmp_path: Path
) -> None:
    notes: list[str] = []
    lines = ["q1 Q0 02 0 2 t", "q0 Q0 05 0 1.0 t", "q1 Q0 03 1 1 t", "q0 Q0 04 1 0.5 t"]
    import_run.import_run(store, write(tmp_path / "r", lines), "mine", "r", note=notes.append)
    assert [(q, r, d) for q, r, d, _ in ranked(store)] == [
        ("q0", 1, "05"),
        ("q0", 2, "04"),
        ("q1", 1, "02"),
        ("q1", 2, "03"),
    ]
    assert notes == []


FINE = "q0 Q0 01 1 9.0 t"


@pytest.mark.test_all
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "q0 Q0 99 2 8 t",
            r"r:3: passage 99 is unknown to c; unknown in all: 1 passages \(1 lines\) of 4 lines",
        ),
        ("zz Q0 02 2 8 t", r"r:3: query zz is unknown to c; unknown in all: 1 queries \(1 lines\)"),
        ("q0 Q0 1 2 8 t", r"r:3: passage 1 is unknown"),
        ("q0 Q0 02 2 nan t", r"r:3: score 'nan' is not a finite number"),
        ("q0 Q0 02 2 -inf t", r"r:3: score '-inf'"),
        ("q0 Q0 02 2 1e39 t", r"r:3: score '1e39'"),
        ("q0 Q0 02 2 8", r"r:3: 5 fields, not 6"),
        ("q0 Q0 02 second 8 t", r"r:3: rank 'second'"),
        ("q0 Q0 01 2 8 t", r"r:3: passage 01 comes again for query q0 \(first on line 1\)"),
        ("q0 Q0 0\x002 2 8 t", r"r:3: a NUL byte"),
        ("q0 Q0 02 2 8 t\rq0 Q0 03 3 8 t", r"r:3: 12 fields"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_wrong_is_named_and_nothing_is_stored(
    store: LabelStore, tmp_path: Path, line: str, message: str, packed: bool
) -> None:
    before = state(store)
    text = "\n".join([FINE, "", line, "q1 Q0 02 1 3 t", "q1 Q0 03 2 2 t", ""])
    (tmp_path / "r").write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    with pytest.raises(BadInput, match=message) as error:
        import_run.import_run(store, tmp_path / "r", "mine", "r")
    assert error.value.hint
    assert state(store) == before


def test_unknown_lines_can_be_left_out_with_counts(store: LabelStore, tmp_path: Path) -> None:
    lines = [FINE, "zz Q0 02 1 5 t", "q0 Q0 98 2 8 t", "q0 Q0 02 3 7 t", "else Q0 01 1 3 t", "zz Q0 99 2 4 t"]
    imported = import_run.import_run(store, write(tmp_path / "r", lines), "mine", "r", skip_unknown=True)
    assert {reason: n for reason, (n, _) in imported.drops.items()} == {
        import_run.UNKNOWN_QUERY: 2,
        import_run.UNKNOWN_PASSAGE: 1,
        import_run.OTHER_QUERY: 1,
    }
    assert [(q, r, d) for q, r, d, _ in ranked(store)] == [("q0", 1, "01"), ("q0", 2, "02")]
    with store.read() as con:
        assert con.execute("SELECT n_in, n_kept FROM filters WHERE step = 'run'").fetchall() == [(6, 2)]
        assert con.execute("SELECT sum(n) FROM drops WHERE step = 'run'").fetchall() == [(4,)]


def test_queries_of_another_dataset_are_left_out_without_a_fuss(store: LabelStore, tmp_path: Path) -> None:
    imported = import_run.import_run(store, write(tmp_path / "r", [FINE, "else Q0 77 1 3 t"]), "mine", "r")
    assert {reason: n for reason, (n, _) in imported.drops.items() if n} == {import_run.OTHER_QUERY: 1}
    before = state(store)
    with pytest.raises(BadInput, match="none of its 1 lines"):
        import_run.import_run(store, write(tmp_path / "s", ["else Q0 01 1 3 t"]), "mine", "s")
    assert state(store) == before


@pytest.mark.test_all
def test_the_same_run_again_leaves_no_trace(store: LabelStore, tmp_path: Path) -> None:
    path = write(tmp_path / "r", some_run(3))
    assert import_run.import_run(store, path, "mine", "r").new
    before = state(store)
    assert not import_run.import_run(store, path, "mine", "r").new
    assert state(store) == before
    other = write(tmp_path / "o", some_run(4))
    with pytest.raises(BadInput, match="is there with other content"):
        import_run.import_run(store, other, "mine", "r")
    assert state(store) == before
    assert import_run.import_run(store, other, "mine", "r", replace=True).new
    assert len(ranked(store)) == 120


def test_a_cut_file_is_refused_even_where_it_ends_with_a_line(store: LabelStore, tmp_path: Path) -> None:
    before = state(store)
    packed = gzip.compress("".join(line + "\n" for line in some_run(5)).encode())
    (tmp_path / "r").write_bytes(packed[:-6])
    with pytest.raises(BadInput, match="cut short or damaged"):
        import_run.import_run(store, tmp_path / "r", "mine", "r")
    broken = bytearray(packed)
    broken[-7] ^= 1  # the checksum alone
    (tmp_path / "r").write_bytes(bytes(broken))
    with pytest.raises(BadInput, match="cut short or damaged"):
        import_run.import_run(store, tmp_path / "r", "mine", "r")
    (tmp_path / "r").write_bytes(b"")
    with pytest.raises(BadInput, match="no candidate"):
        import_run.import_run(store, tmp_path / "r", "mine", "r")
    assert state(store) == before


def test_out_and_in_again_is_the_same_run(store: LabelStore, tmp_path: Path) -> None:
    first = import_run.import_run(store, write(tmp_path / "r", some_run(6)), "mine", "r").run
    with store.read() as con:
        of = lookup.dataset(con, "mine")
    out = io.StringIO()
    assert (
        export.write_trec(store, of, first, out, header=["ir_metadata.start", "tag: r"], tag="my tag") == 120
    )
    assert out.getvalue().startswith("# ir_metadata.start\n# tag: r\nq0 Q0 ")
    (tmp_path / "out").write_text(out.getvalue())
    again = import_run.import_run(store, tmp_path / "out", "mine", "again").run
    assert again.content_hash == first.content_hash
    assert again.system == "my-tag"


@pytest.mark.test_all
@pytest.mark.needs("shared")
@pytest.mark.parametrize(("run", "value"), [("bm25", 0.5058), ("splade-pp-ed", 0.7308), ("tasb", 0.7210)])
def test_real_runs_keep_their_measure(tmp_path: Path, shared: Path, run: str, value: float) -> None:
    store = LabelStore(tmp_path / "s.duckdb")
    add_folder(store, shared / "dl19-passage", NewDataset("dl19"))
    import_run.import_run(store, shared / f"dl19-passage/runs/{run}.run.gz", "dl19", run)
    with store.read() as con:
        rows = con.execute("SELECT query_id, doc_id, -rank::DOUBLE FROM ranked").fetchall()
        judged = con.execute("SELECT query_id, doc_id, relevance FROM judgments").fetchall()
    measure = ir_measures.parse_measure("nDCG@10")
    found = ir_measures.calc_aggregate(
        [measure], [ir_measures.Qrel(*j) for j in judged], [ir_measures.ScoredDoc(*r) for r in rows]
    )
    assert found[measure] == pytest.approx(value, abs=5e-4)


@pytest.mark.test_all
def test_rankings_of_colbert_and_ms_marco_are_runs_too(store: LabelStore, tmp_path: Path) -> None:
    trec = ["q0 Q0 02 1 8.5 t", "q0 Q0 01 2 8 t", "q1 Q0 03 1 3 t"]
    rows = [line.split() for line in trec]
    write(tmp_path / "trec", trec)
    write(tmp_path / "colbert.tsv", [f"{q}\t{d}\t{r}\t{s}" for q, _, d, r, s, _ in rows])
    write(tmp_path / "marco.tsv", [f"{q}\t{d}\t{r}" for q, _, d, r, _, _ in rows])
    first = import_run.import_run(store, tmp_path / "trec", "mine", "trec").run
    colbert = import_run.import_run(store, tmp_path / "colbert.tsv", "mine", "colbertv2").run
    assert colbert.content_hash == first.content_hash
    assert colbert.system == "ranking"
    import_run.import_run(store, tmp_path / "marco.tsv", "mine", "marco")
    with store.read() as con:
        sql = "SELECT query_id, doc_id, rank, score FROM ranked WHERE run = ? ORDER BY query_id, rank"
        assert [row[:3] for row in con.execute(sql, ["marco"]).fetchall()] == [
            row[:3] for row in con.execute(sql, ["trec"]).fetchall()
        ]
        assert [row[3] for row in con.execute(sql, ["marco"]).fetchall()] == [-1.0, -2.0, -1.0]
    write(tmp_path / "mixed.tsv", ["q0\t02\t1", "q0\t01\t2\t8"])
    with pytest.raises(BadInput, match=r"mixed.tsv:2: 4 fields, not 3"):
        import_run.import_run(store, tmp_path / "mixed.tsv", "mine", "mixed")
