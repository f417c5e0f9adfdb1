"""A small store that fills every section of the report, with hostile texts and names in it.

Two first stages, three students (two of them of one recipe over few and over many labels), a fused run, a teacher on the
test set and on the training set; evaluated by the real evaluation.
"""

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import duckdb

from labelstore.evaluation import scores as evaluation
from labelstore.provenance import record as provenance
from labelstore.store import keys
from labelstore.store.label_store import LabelStore
from labelstore.store.row_hashes import qrels_hash, run_hash

HOSTILE = (
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    "<img src=x onerror='window.hacked = 3'>",
    '"><svg onload="window.hacked = 4">',
    "{{ 7 * 7 }} <!-- --> ]]> &amp; &lt;b&gt;",
    "next line\u2028paragraph\u2029separators \u202eright to left",
)
MEASURES = ["nDCG@10", "RR@10"]
N_DOCUMENTS, N_TEST, N_TRAIN, DEPTH = 40, 14, 12, 20
STUDENTS = {"cl-<i>one</i>": "cl", "kd-4": "kd", "kd-12": "kd"}  # name -> regime
LABELS = {"kd-4": 4, "kd-12": 12}  # lists that it learnt from
TOKENS, CALLS = (1000, 50), 2  # of each labelled list: in and out, calls


_MADE = tempfile.TemporaryDirectory(prefix="report-stores-")  # the store that others are copied from


def make(path: Path) -> LabelStore:
    """Fill a new store and evaluate it."""
    made = Path(_MADE.name) / "toy.duckdb"
    if not made.exists():
        _fill(LabelStore(made))
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(made, path)
    return LabelStore(path)


def candidates(con: duckdb.DuckDBPyConnection, run: int, rankings: dict[int, list[int]]) -> None:
    """Insert a run's rankings, each from the best document on, in one statement."""
    rows = [
        (query, rank, document)
        for query, ranked in rankings.items()
        for rank, document in enumerate(ranked, 1)
    ]
    con.execute(
        "INSERT INTO candidates SELECT ?, unnest(?), unnest(?), unnest(?), unnest(?)",
        [run, *map(list, zip(*rows, strict=True)), [float(DEPTH - rank) for _, rank, _ in rows]],
    )


def _fill(store: LabelStore) -> None:
    with store.write() as con:
        job = provenance.start(con, "made").job
        _corpus(con, job)
        runs = _runs(con, job)
        _labels(con, job, runs)
        _students(con, job, runs)
        con.execute("UPDATE provenance SET status = 'done', seconds = 1 WHERE job = ?", [job])
    evaluation.evaluate(store, "toy/test", measures=MEASURES)


def insert(con: duckdb.DuckDBPyConnection, table: str, **values: Any) -> None:
    """One row; columns that are not named stay NULL."""
    con.execute(
        f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})",
        [*values.values()],
    )


def _corpus(con: duckdb.DuckDBPyConnection, job: int) -> None:
    insert(con, "collections", collection=1, name="toy", job=job)
    for n in range(N_DOCUMENTS):
        text = f"{HOSTILE[n % len(HOSTILE)]} passage {n} " + "on and on " * (200 if n == 3 else n % 7)
        title = HOSTILE[0] if n % 5 == 0 else None
        con.execute(
            "INSERT INTO documents VALUES (?, 1, ?, ?, ?, ?, 1)",
            [n, f"d{n:02d}", title, text, keys.text_hash(title, text)],
        )
    for dataset, (name, role, first, count) in enumerate(
        (("toy/test", "test", 0, N_TEST), ("toy/train", "train", 100, N_TRAIN)), 1
    ):
        con.execute(
            "INSERT INTO datasets VALUES (?, ?, 1, ?, NULL, 'made', NULL, ?)", [dataset, name, role, job]
        )
        for query in range(first, first + count):
            text = f"query {query} {HOSTILE[query % len(HOSTILE)]}"
            con.execute(
                "INSERT INTO queries VALUES (?, 1, ?, ?, ?, ?)",
                [query, f"q{query}", text, keys.text_hash(None, text), keys.normal_hash(text)],
            )
            con.execute("INSERT INTO dataset_queries VALUES (?, ?)", [dataset, query])
    for query in range(N_TEST):
        for grade, step in ((3, 0), (2, 1), (1, 2), (0, 3)):
            con.execute(
                "INSERT INTO qrels VALUES (1, ?, ?, ?)", [query, (query * 2 + step) % N_DOCUMENTS, grade]
            )
    con.execute("UPDATE datasets SET qrels_hash = ? WHERE dataset = 1", [qrels_hash(con, 1)])


def _ranked(query: int, skill: int) -> list[int]:
    """A ranking that holds the relevant passages higher the greater the skill, by query more or less."""
    documents = [(query * 2 + k) % N_DOCUMENTS for k in range(DEPTH)]
    shift = max(0, 9 - skill - query % 5)
    return documents[4 : 4 + shift] + documents[:4] + documents[4 + shift :]


def _runs(con: duckdb.DuckDBPyConnection, job: int) -> dict[str, int]:
    made: dict[str, int] = {}

    def run(
        name: str,
        kind: str,
        skill: int,
        dataset: int = 1,
        source: str | None = None,
        student: int | None = None,
    ) -> None:
        key = len(made) + 1
        made[name] = key
        queries = range(N_TEST) if dataset == 1 else range(100, 100 + N_TRAIN)
        insert(
            con, "runs", run=key, name=name.removesuffix("/train"), dataset=dataset, kind=kind, system=name,
            source_run=made[source] if source else None, student=student, parameters=json.dumps({"depth": DEPTH}), depth=DEPTH,
            n_queries=len(queries), n_candidates=len(queries) * DEPTH, content_hash="", job=job,
        )  # fmt: skip
        candidates(con, key, {query: _ranked(query, skill) for query in queries})
        con.execute("UPDATE runs SET content_hash = ? WHERE run = ?", [run_hash(con, key), key])

    run("bm25", "first_stage", 2)
    run("dense", "first_stage", 4)
    for student, (name, skill) in enumerate(zip(STUDENTS, (3, 5, 7), strict=True), 1):
        run(f"{name}@bm25", "student", skill, source="bm25", student=student)
    run("kd-12+bm25", "fused", 8, source="bm25", student=3)
    run("bm25/train", "first_stage", 2, dataset=2)
    return made


def _labels(con: duckdb.DuckDBPyConnection, job: int, runs: dict[str, int]) -> None:
    insert(
        con, "teachers", teacher=1, teacher_key=keys.content_key("teacher", "t"), name="oracle", model="org/oracle-7b",
        revision="0123456789abcdef0123456789abcdef01234567", engine="vllm", prompt="rankzephyr@1",
        prompt_hash=keys.content_key("prompt", "p"), input_price=1.0, output_price=2.0,
    )  # fmt: skip
    call = 0
    for labeling, (name, dataset, run, first, count) in enumerate(
        (("oracle@bm25", 1, "bm25", 0, N_TEST), ("train-labels", 2, "bm25/train", 100, N_TRAIN)), 1
    ):
        insert(
            con, "labelings", labeling=labeling, name=name, teacher=1, dataset=dataset, run=runs[run], first_stage="bm25",
            strategy="sliding", parameters="{}", depth=DEPTH, reliable_depth=10, licence="research only", origin="generated", job=job,
        )  # fmt: skip
        for query in range(first, first + count):
            permutation = labeling * 1000 + query
            status, repairs = {first + 1: ("repaired", 2), first + 2: ("wrong_format", 0)}.get(
                query, ("ok", 0)
            )
            ranked, before = _ranked(query, 6), _ranked(query, 2)
            insert(
                con, "permutations", permutation=permutation, labeling=labeling, query=query, status=status, repairs=repairs,
                n_calls=CALLS, tokens_in=TOKENS[0], tokens_out=TOKENS[1], content_hash=keys.content_key("order", ranked),
            )  # fmt: skip
            for rank, document in enumerate(ranked, 1):
                con.execute(
                    "INSERT INTO permutation_items VALUES (?, ?, ?, ?, ?, NULL, NULL)",
                    [permutation, rank, document, before.index(document) + 1, DEPTH - rank],
                )
            call += 1
            insert(
                con,
                "requests",
                request=call,
                request_key=f"r{call}",
                teacher=1,
                query=query,
                n_passages=5,
                n_prompt_tokens=9,
            )
            con.execute(
                "INSERT INTO calls VALUES (?, ?, ?, 'j', 1, 0, 'ok', '[1] > [2]', [2, 1, 3, 5, 4], NULL, 0, 0, 0, 'stop', 9, 9, .1, NULL, now())",
                [call, f"c{call}", call],
            )
            con.execute("INSERT INTO labeling_calls VALUES (?, ?, 0, ?)", [labeling, query, call])
    insert(
        con,
        "quarantine",
        labeling=2,
        query=None,
        step=None,
        reason="refused",
        detail="no",
        attempts=3,
        job=job,
    )


def _students(con: duckdb.DuckDBPyConnection, job: int, runs: dict[str, int]) -> None:
    insert(
        con, "minings", mining=1, name="hard", dataset=2, parameters="{}", seed=1, n_queries=N_TRAIN, n_negatives=20,
        content_hash=keys.content_key("mining", 1), job=job,
    )  # fmt: skip
    views = [("contrastive", 12, [("dataset", 2), ("mining", 1)])] + [
        (f"distil-{n}", n, [("labeling", 2), ("run", runs["bm25/train"])]) for n in LABELS.values()
    ]
    for view, (name, n_lists, sources) in enumerate(views, 1):
        insert(
            con, "views", view=view, name=name, kind="contrastive" if view == 1 else "distillation", sql="", parameters="{}",
            seed=1, view_hash=keys.content_key("view", name), folder=name, n_lists=n_lists, n_pairs=n_lists * 8, job=job,
        )  # fmt: skip
        for kind, source in sources:
            insert(con, "view_sources", view=view, kind=kind, source=source)
    for student, (name, regime) in enumerate(STUDENTS.items(), 1):
        insert(
            con, "students", student=student, name=name, base="tiny", architecture="bert", regime=regime, folder=name,
            weights_hash=keys.content_key("weights", name), max_length=64, seed=1, job=job,
        )  # fmt: skip
        loss = "lce" if regime == "cl" else "ranknet"
        insert(
            con, "stages", student=student, stage=1, objective=regime, loss=loss, view=student,
            view_hash=keys.content_key("view", views[student - 1][0]), parent_hash="p", weights_hash=keys.content_key("weights", name),
            hyperparameters="{}", steps=50, pairs=400, lists_skipped=0, truncated_pairs=0, seconds=10.0 * student, weights_moved=0.01,
            stopped_by="end",
        )  # fmt: skip
        for step in range(10, 60, 10):
            logged = {
                "loss": math.exp(-step / 20) + 0.1 * student,
                "lr": 1e-5,
                "valid_loss": 1 / step,
                "valid_tau": step / 100,
            }
            for measure, value in logged.items():
                con.execute(
                    "INSERT INTO training_log VALUES (?, 1, ?, ?, ?, ?, ?)",
                    [student, step, step * 8, step / 5.0, measure, value],
                )
