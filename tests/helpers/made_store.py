"""A small store made row by row, for tests of what reads stores: views, mining, verify, merge, archive.

`make` fills a collection ``c`` of documents d0..dN, a train and a test dataset, a run and a labeling. Everything is
derived from the arguments, so that two stores made alike are alike but for surrogate keys (`offset` shifts those).
"""

import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
from made_words import WORDS

from labelstore.labels.write import Teacher, permutation_hashes
from labelstore.provenance import record as provenance
from labelstore.store import keys
from labelstore.store.label_store import LabelStore
from labelstore.store.row_hashes import qrels_hash, run_hash

TEST = 100_000  # test queries' numbers begin here
_MADE = tempfile.TemporaryDirectory(
    prefix="made-stores-"
)  # one store of each kind, which others are copied from


def text_of(n: int, version: int = 1) -> str:
    """Some words that are unique to a document."""
    picked = [WORDS[(n * 7 + k * k) % len(WORDS)] for k in range(8)]
    return f"{' '.join(picked)} number {n}" + (f" version {version}" if version > 1 else "")


def make(
    path: Path,
    *,
    n_documents: int = 60,
    n_queries: int = 12,
    depth: int = 30,
    unheld: tuple[int, ...] = (),
    offset: int = 0,
    labels: bool = True,
) -> LabelStore:
    """A store with datasets c/train and c/test, run ``first`` over both, labeling ``teacher@first`` over c/train.

    Query i's judged positive is document i, its run ranks documents (i*3 + k) % N. The last train query shares its
    text, but for case, with a test query. Documents in `unheld` have no text.
    """
    kind = f"{n_documents}-{n_queries}-{depth}-{'.'.join(map(str, unheld))}-{offset}-{labels}"
    made = Path(_MADE.name) / f"{kind}.duckdb"
    if not made.exists():
        _fill(LabelStore(made), n_documents, n_queries, depth, unheld, offset, labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(made, path)
    return LabelStore(path)


def _fill(
    store: LabelStore,
    n_documents: int,
    n_queries: int,
    depth: int,
    unheld: tuple[int, ...],
    offset: int,
    labels: bool,
) -> None:
    with store.write() as con:
        job = provenance.start(con, "data.add").job
        con.execute("INSERT INTO collections VALUES (?, 'c', 'made', NULL, ?)", [1 + offset, job])
        bulk(
            con,
            "documents",
            [
                [offset + n, 1 + offset, f"d{n}", None, *((None, None, 0) if n in unheld else (text_of(n), keys.text_hash(None, text_of(n)), 1))]
                for n in range(n_documents)
            ],
        )  # fmt: skip
        for key, (name, role) in enumerate((("c/train", "train"), ("c/test", "test")), 1 + offset):
            first = 0 if role == "train" else TEST
            con.execute(
                "INSERT INTO datasets VALUES (?, ?, ?, ?, NULL, 'made', NULL, ?)",
                [key, name, 1 + offset, role, job],
            )
            count = n_queries if role == "train" else 4
            add_queries(con, key, offset, [first + n for n in range(count)])
            bulk(
                con, "qrels", [[key, offset + first + n, offset + (n % n_documents), 1] for n in range(count)]
            )
            add_run(
                con,
                key,
                "first",
                offset,
                [first + n for n in range(n_queries if role == "train" else 4)],
                n_documents,
                depth,
                job,
                key,
            )
            con.execute("UPDATE datasets SET qrels_hash = ? WHERE dataset = ?", [qrels_hash(con, key), key])
        last = con.execute("SELECT text FROM queries WHERE query = ?", [offset + n_queries - 1]).fetchall()[
            0
        ][0]
        shared = last.upper() + "!"
        con.execute(
            "UPDATE queries SET text = ?, text_hash = ?, normal_hash = ? WHERE query = ?",
            [shared, keys.text_hash(None, shared), keys.normal_hash(shared), offset + TEST + 3],
        )
        if labels:
            add_labeling(con, "teacher@first", 1 + offset, 1 + offset, offset, n_queries, n_documents, job)
        con.execute("UPDATE provenance SET status = 'done', seconds = 1 WHERE job = ?", [job])


def bulk(con, table: str, rows: list[list]) -> None:
    """Rows in one statement: executemany is slow in DuckDB."""
    if rows:
        columns = [(row[1], row[2]) for row in con.execute(f"PRAGMA table_info({table})").fetchall()]
        types = {"UBIGINT": pa.uint64()}
        frame = pa.table(
            {
                name: pa.array([row[k] for row in rows], types.get(kind))
                for k, (name, kind) in enumerate(columns)
            }
        )
        con.register("made_rows", frame)
        con.execute(f"INSERT INTO {table} SELECT * FROM made_rows")
        con.unregister("made_rows")


def add_queries(con, dataset: int, offset: int, numbers: list[int]) -> None:
    texts = [f"which {WORDS[n % len(WORDS)]} is number {n}" for n in numbers]
    bulk(
        con,
        "queries",
        [
            [offset + n, 1 + offset, f"q{n}", text, keys.text_hash(None, text), keys.normal_hash(text)]
            for n, text in zip(numbers, texts, strict=True)
        ],
    )
    bulk(con, "dataset_queries", [[dataset, offset + n] for n in numbers])


def add_run(
    con,
    dataset: int,
    name: str,
    offset: int,
    queries: list[int],
    n_documents: int,
    depth: int,
    job: int,
    run: int,
    step: int = 3,
) -> None:
    """Query n ranks documents (n*step + k) % N with scores depth - k."""
    con.execute(
        "INSERT INTO runs VALUES (?, ?, ?, 'first_stage', 'made', NULL, NULL, '{}', ?, ?, ?, '', ?)",
        [run, name, dataset, depth, len(queries), depth * len(queries), job],
    )
    bulk(
        con,
        "candidates",
        [
            [run, offset + n, k + 1, offset + (n * step + k) % n_documents, float(depth - k)]
            for n in queries
            for k in range(depth)
        ],
    )
    con.execute("UPDATE runs SET content_hash = ? WHERE run = ?", [run_hash(con, run), run])


def add_student(store: LabelStore, regime: str) -> None:
    """A student ``tiny`` with its folder, whose weights are no model's."""
    folder = store.folder("students") / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    with store.write() as con:
        con.execute(
            """INSERT INTO students VALUES (1, 'tiny', 'base', NULL, 'bert', ?, 'students/tiny', ?, 64, 42, NULL, NULL, 1)""",
            [regime, keys.file_hash(folder / "model.safetensors")],
        )


def add_labeling(
    con,
    name: str,
    dataset: int,
    run: int,
    offset: int,
    n_queries: int,
    n_documents: int,
    job: int,
    labeling: int | None = None,
) -> None:
    """Permutations that reverse the run's first ten; query 1 is repaired, query 2 has a wrong format."""
    labeling = labeling or 1 + offset
    con.execute(
        "INSERT INTO teachers VALUES (?, ?, ?, NULL, NULL, 'imported', NULL, NULL, NULL, NULL, NULL, 'research only') ON CONFLICT DO NOTHING",
        [1 + offset, Teacher("teacher", "imported").teacher_key, "teacher"],
    )
    con.execute(
        "INSERT INTO labelings VALUES (?, ?, ?, ?, ?, 'first', 'imported', '{}', 10, NULL, NULL, 'labels.jsonl', NULL, ?)",
        [labeling, name, 1 + offset, dataset, run, job],
    )
    permutations, items = [], []
    for n in range(n_queries):
        key = labeling * 1000 + n
        status, repairs = {1: ("repaired", 2), 2: ("wrong_format", 0)}.get(n, ("ok", 0))
        permutations.append(
            [
                key,
                labeling,
                offset + n,
                status,
                repairs,
                0,
                0,
                0,
                None,
                None,
                "",
            ]
        )
        ranked = [((n * 3 + k) % n_documents, k + 1) for k in reversed(range(10))]
        items += [
            [key, rank, offset + d, initial, 10 - rank, None, None]
            for rank, (d, initial) in enumerate(ranked, 1)
        ]
    bulk(con, "permutations", permutations)
    bulk(con, "permutation_items", items)
    con.execute(
        "UPDATE permutation_items SET text_hash = d.text_hash FROM documents d WHERE d.document = permutation_items.document"
    )
    con.execute(
        f"""UPDATE permutations SET content_hash = h.content_hash FROM ({permutation_hashes(labeling)}) h
            WHERE h.permutation = permutations.permutation"""
    )
