"""What `msft eval` does before it measures: datasets that are missing, first stages, students over first stages."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cli.output import diagnostics

if TYPE_CHECKING:
    import polars as pl

    from labelstore.store import lookup
    from labelstore.store.label_store import LabelStore

Pending = list[tuple[str, "lookup.Run"]]


def ensure_dataset(store: "LabelStore", name: str) -> str:
    """The dataset's name in the store; added from ir_datasets when the store lacks it.

    Raises:
        DataMissing: if ir_datasets has it neither on disk nor within reach.
    """
    from labelstore.datasets import add as ingest
    from labelstore.datasets import catalog
    from labelstore.datasets.from_ir_datasets import add_ir_dataset, knows
    from labelstore.errors import DataMissing
    from labelstore.store import lookup

    if store.exists:
        with store.read() as con:
            try:
                return lookup.dataset(con, name).name
            except DataMissing:
                if catalog.find(name) is None and not knows(name):
                    raise  # an own name, perhaps misspelt: its near names are the better hint
    entry = catalog.find(name)
    ir_id = entry.ir_datasets_id if entry else name
    if ir_id is None:
        raise DataMissing(
            f"the store lacks {name}, and ir_datasets has none such",
            hint=f"msft data add {name} --from FOLDER",
        )
    own_name = entry.name if entry else name
    diagnostics.note(f"{own_name} is not in the store: adding {ir_id} from ir_datasets")
    with diagnostics.progress(f"adding {own_name}", unit="passages") as tick:
        add_ir_dataset(store, ingest.Request(name=own_name, ir_datasets_id=ir_id), tick)
    return own_name


def ensure_first_stage(store: "LabelStore", dataset: str, depth: int) -> None:
    """Retrieve with the embedded BM25 where nothing has ranked the dataset yet."""
    from labelstore import retrieval
    from labelstore.evaluation import systems
    from labelstore.retrieval.bm25s import Bm25s
    from labelstore.store import lookup

    with store.read() as con:
        of = lookup.dataset(con, dataset)
        if systems.systems(con, of):
            return
    diagnostics.note(f"{dataset} has no run yet: retrieving {depth} passages per query with bm25s")
    with diagnostics.progress("bm25s", unit="texts") as tick:
        retrieval.retrieve(store, dataset, Bm25s(), depth, progress=tick, note=diagnostics.note)


def first_stages(store: "LabelStore", dataset: str, named: Sequence[str] | None) -> "list[lookup.Run]":
    """The runs that students re-rank: the named ones, or every first stage."""
    from labelstore.store import lookup

    with store.read() as con:
        of = lookup.dataset(con, dataset)
        if named:
            return [lookup.run(con, of, name) for name in named]
        return lookup.runs(con, of, ("first_stage", "imported"))


def pending(
    store: "LabelStore",
    dataset: str,
    students: Sequence[str] | None,
    runs: "Sequence[lookup.Run]",
    depth: int,
) -> Pending:
    """Which student has not re-ranked which first stage to `depth` yet."""
    from labelstore.store import lookup

    with store.read() as con:
        of = lookup.dataset(con, dataset)
        names = students or [
            n for (n,) in con.execute("SELECT name FROM students ORDER BY student").fetchall()
        ]
        chosen = [lookup.student(con, name) for name in names]
        done = {(r.student, r.source_run): r.depth for r in lookup.runs(con, of, ("student",))}
    return [
        (student.name, run)
        for student in chosen
        for run in runs
        if done.get((student.student, run.run), -1) < min(depth, run.depth)
    ]


def rerank_pending(store: "LabelStore", dataset: str, todo: Pending, depth: int) -> None:
    """Announce what is to be re-ranked in pairs and minutes, then do it, one run at a time."""
    from students.jobs.rerank import rerank_run

    if not todo:
        return
    sizes = [_pairs(store, run, depth) for _, run in todo]
    diagnostics.note(
        f"{dataset}: re-ranking {sum(sizes):,} pairs in {len(todo)} run{'s' if len(todo) > 1 else ''}"
        f" ({_minutes(store, sum(sizes))}); what is re-ranked already is reused"
    )
    for (student, run), size in zip(todo, sizes, strict=True):
        with diagnostics.progress(f"{student} over {run.name}", size, "pairs") as tick:
            rerank_run(store, student=student, dataset=dataset, run=run.name, depth=depth, progress=tick)


def _pairs(store: "LabelStore", run: "lookup.Run", depth: int) -> int:
    with store.read() as con:
        sql = "SELECT count(*) FROM candidates WHERE run = ? AND rank <= ?"
        ((pairs,),) = con.execute(sql, [run.run, depth]).fetchall()
    return int(pairs)


def _minutes(store: "LabelStore", pairs: int) -> str:
    """Time from what re-ranking took in this store before, loading included."""
    with store.read() as con:
        ((done, seconds),) = con.execute(
            """SELECT sum(r.n_candidates), sum(p.seconds) FROM runs r JOIN provenance p USING (job)
               WHERE r.kind = 'student' AND p.kind = 'students.rerank' AND p.seconds > 0"""
        ).fetchall()
    if not done:
        return "the first one shows how long it takes"
    minutes = pairs / (done / seconds) / 60
    return f"about {minutes:.0f} min" if minutes >= 1.5 else f"about {minutes * 60:.0f} s"


def fuse(
    store: "LabelStore", dataset: str, students: Sequence[str] | None, runs: "Sequence[lookup.Run]",
    measure: str, on: str | None,
) -> None:  # fmt: skip
    """A fused run for each student's run over the given first stages."""
    from labelstore.evaluation import fusion
    from labelstore.store import lookup

    with store.read() as con:
        of = lookup.dataset(con, dataset)
        wanted = {run.run for run in runs}
        keys = {lookup.student(con, name).student for name in students} if students else None
        chosen = [
            r
            for r in lookup.runs(con, of, ("student",))
            if r.source_run in wanted and (keys is None or r.student in keys)
        ]
    for student_run in chosen:
        fusion.fuse(
            store, of, student_run, _scorer(store, student_run), measure, on=on, note=diagnostics.note
        )


def _scorer(store: "LabelStore", student_run: "lookup.Run"):  # type: ignore[no-untyped-def]
    """How fusion gets scores for validation queries that no stored run holds."""

    def score(run: "lookup.Run", queries: Sequence[int], depth: int) -> "pl.DataFrame":
        import polars as pl

        from labelstore.store import lookup
        from students.jobs import candidates as jobs
        from students.jobs.rerank import student_folder
        from students.rerank.reranker import Reranker

        with store.read() as con:
            sql = "SELECT name FROM students WHERE student = ?"
            ((name,),) = con.execute(sql, [student_run.student]).fetchall()
            student = lookup.student(con, name)
            found = jobs.candidates(con, run, depth, queries)
        reranker = Reranker.load(
            student_folder(store, student),
            precision=student_run.parameters.get("precision", "auto"),
            max_length=student.max_length,
        )
        with diagnostics.progress(f"{student.name} over validation queries", found.n_pairs, "pairs") as tick:
            scores = jobs.score(store, reranker, found, progress=tick)
        return pl.DataFrame(
            {"query": found.query, "document": found.document, "score": scores},
            schema_overrides={"score": pl.Float64},
        )

    return score
