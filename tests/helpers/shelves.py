"""A small store made by plain SQL: the evidence tests do not lean on the importers."""

import json
import os
from dataclasses import dataclass

from runner import Done, commands

from labelstore.store import keys
from labelstore.store.label_store import LabelStore, next_id

Ranked = dict[str, list[str]]  # query_id -> doc_ids, best first


def columns(n: int) -> str:
    """SQL of a table of n parameters, each a list: c1, c2, …; one statement in the place of one for each row."""
    return f"(SELECT {', '.join(f'unnest(?) AS c{k}' for k in range(1, n + 1))})"


@dataclass
class Shelf:
    """Fills a store: collections, datasets, runs, labelings, students; each call is one transaction."""

    store: LabelStore

    def collection(self, name: str, doc_ids: list[str]) -> int:
        with self.store.write() as con:
            key = next_id(con, "collections", "collection")
            con.execute("INSERT INTO collections VALUES (?, ?, NULL, NULL, NULL)", [key, name])
            first = next_id(con, "documents", "document")
            rows = [
                (first + i, d, f"text of {d}", keys.text_hash(None, f"text of {d}"))
                for i, d in enumerate(doc_ids)
            ]
            con.execute(
                f"INSERT INTO documents SELECT c1, ?, c2, NULL, c3, c4, 1 FROM {columns(4)}",
                [key, *zip(*rows, strict=True)],
            )
        return key

    def dataset(
        self,
        name: str,
        collection: int,
        queries: dict[str, str],
        qrels: dict[str, dict[str, int]],
        role: str = "test",
    ) -> int:
        with self.store.write() as con:
            key = next_id(con, "datasets", "dataset")
            con.execute(
                "INSERT INTO datasets VALUES (?, ?, ?, ?, NULL, NULL, ?, NULL)",
                [key, name, collection, role, keys.content_key("qrels", qrels) if qrels else None],
            )
            for query_id, text in queries.items():
                held = con.execute(
                    "SELECT query FROM queries WHERE collection = ? AND query_id = ?", [collection, query_id]
                ).fetchall()
                query = held[0][0] if held else next_id(con, "queries", "query")
                if not held:
                    con.execute(
                        "INSERT INTO queries VALUES (?, ?, ?, ?, ?, ?)",
                        [
                            query,
                            collection,
                            query_id,
                            text,
                            keys.text_hash(None, text),
                            keys.normal_hash(text),
                        ],
                    )
                con.execute("INSERT INTO dataset_queries VALUES (?, ?)", [key, query])
                for doc_id, relevance in qrels.get(query_id, {}).items():
                    con.execute(
                        "INSERT INTO qrels VALUES (?, ?, (SELECT document FROM documents WHERE collection = ? AND doc_id = ?), ?)",
                        [key, query, collection, doc_id, relevance],
                    )
        return key

    def run(
        self,
        name: str,
        dataset: int,
        ranked: Ranked,
        kind: str = "first_stage",
        source_run: int | None = None,
        student: int | None = None,
        scores: dict[str, list[float]] | None = None,
    ) -> int:
        with self.store.write() as con:
            key = next_id(con, "runs", "run")
            n = sum(map(len, ranked.values()))
            depth = max(map(len, ranked.values()))
            con.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                [
                    key, name, dataset, kind, name, source_run, student, json.dumps({"depth": depth}), depth,
                    len(ranked), n, keys.content_key("run", [ranked, scores]),
                ],
            )  # fmt: skip
            lists: list[tuple[str, int, str, float]] = []
            for query_id, doc_ids in ranked.items():
                values = (scores or {}).get(query_id, [1.0 / (i + 1) for i in range(len(doc_ids))])
                lists += [
                    (query_id, rank, doc_id, value)
                    for rank, (doc_id, value) in enumerate(zip(doc_ids, values, strict=True), 1)
                ]
            con.execute(
                f"""INSERT INTO candidates
                    SELECT ?, q.query, c2, d.document, c4 FROM {columns(4)} JOIN datasets ds ON ds.dataset = ?
                    JOIN queries q ON q.collection = ds.collection AND q.query_id = c1
                    JOIN documents d ON d.collection = ds.collection AND d.doc_id = c3 ORDER BY query, c2""",
                [key, *zip(*lists, strict=True), dataset],
            )
        return key

    def labeling(
        self, name: str, dataset: int, ranked: Ranked, run: int | None = None, first_stage: str | None = None
    ) -> int:
        with self.store.write() as con:
            teacher, key = next_id(con, "teachers", "teacher"), next_id(con, "labelings", "labeling")
            teacher_name = name.split("@")[0]
            con.execute(
                """INSERT INTO teachers (teacher, teacher_key, name, engine) VALUES (?, ?, ?, 'imported')""",
                [teacher, keys.content_key("teacher", name), teacher_name],
            )
            con.execute(
                """INSERT INTO labelings (labeling, name, teacher, dataset, run, first_stage, strategy, parameters,
                   depth, origin) VALUES (?, ?, ?, ?, ?, ?, 'imported', '{}', ?, 'test')""",
                [key, name, teacher, dataset, run, first_stage, max(map(len, ranked.values()))],
            )
            items: list[tuple[int, int, str, int]] = []
            for query_id, doc_ids in ranked.items():
                permutation = next_id(con, "permutations", "permutation")
                con.execute(
                    """INSERT INTO permutations SELECT ?, ?, q.query, 'ok', 0, 0, 0, 0, NULL, NULL, ?
                       FROM datasets ds JOIN queries q USING (collection) WHERE ds.dataset = ? AND q.query_id = ?""",
                    [permutation, key, keys.content_key("order", doc_ids), dataset, query_id],
                )
                items += [
                    (permutation, rank, doc_id, len(doc_ids) - rank) for rank, doc_id in enumerate(doc_ids, 1)
                ]
            con.execute(
                f"""INSERT INTO permutation_items
                    SELECT c1, c2, d.document, NULL, c4, NULL, NULL FROM {columns(4)} JOIN datasets ds ON ds.dataset = ?
                    JOIN documents d ON d.collection = ds.collection AND d.doc_id = c3 ORDER BY c1, c2""",
                [*zip(*items, strict=True), dataset],
            )
        return key

    def student(self, name: str, regime: str = "cl", seed: int = 1) -> int:
        with self.store.write() as con:
            key = next_id(con, "students", "student")
            con.execute(
                """INSERT INTO students (student, name, base, architecture, regime, folder, weights_hash, max_length, seed)
                   VALUES (?, ?, 'base', 'bert', ?, 'nowhere', ?, 64, ?)""",
                [key, name, regime, keys.content_key("weights", name), seed],
            )
        return key


DOCS = [f"d{i}" for i in range(12)]


@dataclass
class Small:
    """Six queries (the last without a ranked list in `short`), a first stage, a student, a teacher."""

    shelf: Shelf
    store: LabelStore
    dataset: int
    bm25: int
    qrels: dict[str, dict[str, int]]
    ranked: dict[str, Ranked]


def fill(shelf: Shelf) -> Small:
    collection = shelf.collection("toy", DOCS)
    queries = {f"q{i}": f"question number {i}" for i in range(6)}
    qrels = {q: {DOCS[i]: 2, DOCS[i + 1]: 1, DOCS[i + 2]: 0} for i, q in enumerate(queries)}
    dataset = shelf.dataset("toy/test", collection, queries, qrels)
    first = dict.fromkeys(queries, DOCS)
    better = {q: [DOCS[i], *(d for d in DOCS if d != DOCS[i])] for i, q in enumerate(queries)}
    short = {q: docs for q, docs in better.items() if q != "q5"}
    bm25 = shelf.run("bm25", dataset, first)
    student = shelf.student("cl-student")
    shelf.run("cl-student@bm25", dataset, better, "student", bm25, student)
    shelf.labeling("oracle@bm25", dataset, better, run=bm25, first_stage="bm25")
    shelf.run("short", dataset, short)
    return Small(shelf, shelf.store, dataset, bm25, qrels, {"bm25": first, "better": better, "short": short})


def msft(store: LabelStore, *arguments: str, code: int = 0) -> Done:
    """Run a command outside this process and check its exit code."""
    done = commands().run(arguments, store.path.parent, {**os.environ, "MSFT_STORE": str(store.path)})
    assert done.code == code, f"msft {' '.join(arguments)}\n{done.out}\n{done.err}"
    assert "Traceback" not in done.err
    return done
