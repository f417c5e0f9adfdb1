"""Remove a dataset, run, labeling, view, student or negatives, with what depends on it, in one transaction.

Parts of a thing go with it: a run's candidates, a labeling's lists, a student's stages. What was made from it depends on it.
Rankings, negatives, labels and evaluations go too. Views and students stay, since they are whole without it: they keep its
name and hash, and lose the link. Calls stay as long as their query does, so the same labels cost nothing a second time.
"""

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

import duckdb

from labelstore.errors import BadInput, UsageError
from labelstore.provenance import record as provenance
from labelstore.store import lookup
from labelstore.store.job_lock import labeling_alone, student_alone
from labelstore.store.label_store import LabelStore, in_transaction
from labelstore.store.own_folders import own_folder
from labelstore.store.removed_folders import Note, Removed

COLUMNS = ("what", "name", "rows", "becomes")
REMOVED = "removed"
KINDS = ("dataset", "run", "negatives", "verdicts", "labels", "judging", "view", "student")

# What goes with a removed row: (table, column, table of the removed row, further condition).
_WITH = (
    ("runs", "dataset", "datasets", "true"),
    ("minings", "dataset", "datasets", "true"),
    ("labelings", "dataset", "datasets", "true"),
    ("evaluations", "dataset", "datasets", "true"),
    ("judgings", "dataset", "datasets", "true"),
    ("checkings", "dataset", "datasets", "true"),
    ("query_filters", "dataset", "datasets", "true"),
    ("runs", "source_run", "runs", "true"),
    ("runs", "student", "students", "true"),
    ("minings", "mining", "runs", "true"),  # by the runs of its negatives
    ("labelings", "run", "runs", "origin = 'generated'"),  # imported labels stand by themselves
    ("evaluations", "run", "runs", "true"),
    ("evaluations", "labeling", "labelings", "true"),
)
_KEYS = {
    "datasets": "dataset", "runs": "run", "minings": "mining", "labelings": "labeling", "views": "view",
    "students": "student", "evaluations": "evaluation", "judgings": "judging", "query_filters": "filter",
    "checkings": "checking",
}  # fmt: skip
_TABLES = {
    "dataset": "datasets", "run": "runs", "negatives": "minings", "labels": "labelings", "view": "views",
    "student": "students", "judging": "judgings", "verdicts": "checkings",
}  # fmt: skip
_IN_VIEWS = {"dataset": "datasets", "run": "runs", "mining": "minings", "labeling": "labelings"}


class Affected(NamedTuple):
    """What happens to a thing: how many rows it has, and whether they are removed or stay without the link."""

    what: str
    name: str
    rows: int
    becomes: str


@dataclass
class Plan:
    """What a removal does.

    Attributes:
        affected: the thing itself first (all views of a name), then what depends on it.
        namesakes: the hashes of several views that have the name, newest first.
        folders: the folders to remove.
        left: folders that lead out of the store and are left as they are, with the reason.
    """

    affected: list[Affected]
    keys: dict[str, set[int]]
    labelings: list[str]
    students: list[str]
    folders: list[Removed] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    namesakes: list[str] = field(default_factory=list)

    @property
    def dependents(self) -> list[Affected]:
        return self.affected[max(1, len(self.namesakes)) :]


def plan(store: LabelStore, kind: str, name: str, dataset: str | None = None) -> Plan:
    """Find what the removal of a thing would do.

    Args:
        kind: one of :data:`KINDS`. dataset: of a run; by default the only dataset with a run of that name.

    Raises:
        DataMissing: it is not found.
        UsageError: several datasets have a run of that name.
    """
    with store.read() as con:
        return _plan(con, store, kind, _found(con, kind, name, dataset))


def remove(
    store: LabelStore,
    kind: str,
    name: str,
    planned: Plan,
    dataset: str | None = None,
    waiting: Collection[str] = (),
) -> Plan:
    """Remove a thing as planned.

    Args:
        waiting: labelings with calls in the journal that are not in the store yet.

    Raises:
        BadInput: the store has changed since the plan was made.
        UsageError: calls of a labeling wait in the journal.
        MsftError: a job is making one of the labelings or students (exit code 3).
    """
    for labeling in sorted(set(waiting) & set(planned.labelings)):
        raise UsageError(
            f"labels {labeling}: calls wait in the journal, and would bring the labels back",
            hint="run its `msft teachers generate` command to its end first; see the journal with `msft status`",
        )
    with ExitStack() as alone:
        for labeling in planned.labelings:
            alone.enter_context(labeling_alone(store, labeling))
        for student in planned.students:
            alone.enter_context(student_alone(store, student))
        with store.write(transaction=False) as con:
            with in_transaction(con):
                made = _plan(con, store, kind, _found(con, kind, name, dataset))
                if made != planned:  # a removed view's key is used again, so its hash counts
                    raise BadInput(
                        f"{kind} {name}: this, or what depends on it, has changed meanwhile",
                        hint="run the command again",
                    )
                with provenance.recorded_in(con, f"{kind}.remove") as job:
                    _delete(con, made.keys)
                    _record(con, job, made)
                note = Note(store.files, made.folders)
            note.move_away()
        note.drop()
    return made


def _record(con: duckdb.DuckDBPyConnection, job: provenance.Job, made: Plan) -> None:
    """Count what was removed and what stays; several views of one name have one count."""
    for what, name in dict.fromkeys((one.what, one.name) for one in made.affected):
        rows = [one for one in made.affected if (one.what, one.name) == (what, name)]
        removed = [one.rows for one in rows if one.becomes == REMOVED]
        drops: dict[str, tuple[int, str | None]] = {"removed": (sum(removed), None)} if removed else {}
        job.count(con, what, name, sum(one.rows for one in rows), drops)


def _found(con: duckdb.DuckDBPyConnection, kind: str, name: str, dataset: str | None) -> set[int]:
    """Look up the keys of what a name stands for; several views may share one."""
    if kind == "dataset":
        return {lookup.dataset(con, name).dataset}
    if kind == "run":
        return {_run(con, name, dataset)}
    if kind == "negatives":
        return {lookup.mining(con, name).mining}
    if kind == "labels":
        return {lookup.labeling(con, name).labeling}
    if kind == "judging":
        return {lookup.judging(con, name).judging}
    if kind == "verdicts":
        return {lookup.checking(con, name).checking}
    if kind == "student":
        return {lookup.student(con, name).student}
    newest = lookup.view(con, name)
    if newest.name != name:  # named by its hash
        return {newest.view}
    return {view for (view,) in con.execute("SELECT view FROM views WHERE name = ?", [name]).fetchall()}


def _run(con: duckdb.DuckDBPyConnection, name: str, dataset: str | None) -> int:
    if dataset is not None:
        return lookup.run(con, lookup.dataset(con, dataset), name).run
    held = con.execute(
        "SELECT r.run, d.name FROM runs r JOIN datasets d USING (dataset) WHERE r.name = ? ORDER BY d.name",
        [name],
    ).fetchall()
    if len(held) > 1:
        raise UsageError(
            f"{len(held)} datasets have a run {name}",
            hint=f"--dataset {' | '.join(of for _, of in held[:8])}",
        )
    if not held:
        known = [run for (run,) in con.execute("SELECT DISTINCT name FROM runs").fetchall()]
        raise lookup.missing("run", name, known, "msft runs list")
    return int(held[0][0])


# ---------------------------------------------------------------------------------------------------------- planning
def _plan(con: duckdb.DuckDBPyConnection, store: LabelStore, kind: str, first: set[int]) -> Plan:
    keys = _closed(con, _TABLES[kind], first)
    itself: list[Affected] = []
    others: list[Affected] = []
    for what, table in _TABLES.items():
        for key, row in _things(con, what, keys[table]):
            (itself if what == kind and key in first else others).append(row)
    others += _evaluations(con, keys) + _calls(con, keys) + _detached(con, keys)
    made = Plan(
        itself + others,
        keys,
        _names(con, "labelings", keys["labelings"]),
        _names(con, "students", keys["students"]),
    )
    if kind == "view" and len(first) > 1:
        made.namesakes = [
            view_hash
            for (view_hash,) in con.execute(
                "SELECT view_hash FROM views WHERE list_contains(?, view) ORDER BY view DESC", [sorted(first)]
            ).fetchall()
        ]
    _add_folders(con, store, made)
    return made


def _closed(con: duckdb.DuckDBPyConnection, table: str, first: set[int]) -> dict[str, set[int]]:
    """Collect the keys of everything that goes, until nothing more is found."""
    keys: dict[str, set[int]] = {name: set() for name in _KEYS}
    keys[table] = set(first)
    size = 0
    while size != (size := sum(map(len, keys.values()))):
        for dependent, column, target, condition in _WITH:
            source, of = dependent, column
            if column == "mining":
                source, of = "negatives", "source_run"
            found = con.execute(
                f"SELECT DISTINCT {_KEYS[dependent]} FROM {source} WHERE list_contains(?, {of}) AND {condition}",
                [sorted(keys[target])],
            ).fetchall()
            keys[dependent] |= {key for (key,) in found}
    return keys


_SIZES = {
    "dataset": "SELECT dataset, name, (SELECT count(*) FROM dataset_queries q WHERE q.dataset = t.dataset) FROM datasets t",
    "run": "SELECT run, d.name || '/' || t.name, n_candidates FROM runs t JOIN datasets d USING (dataset)",
    "negatives": "SELECT mining, name, n_negatives FROM minings t",
    "labels": "SELECT labeling, name, (SELECT count(*) FROM permutations p WHERE p.labeling = t.labeling) FROM labelings t",
    "view": "SELECT view, name, n_pairs FROM views t",
    "student": "SELECT student, name, (SELECT count(*) FROM stages g WHERE g.student = t.student) FROM students t",
    "judging": "SELECT judging, name, (SELECT count(*) FROM llm_judgments g WHERE g.judging = t.judging) FROM judgings t",
    "verdicts": "SELECT checking, name, (SELECT count(*) FROM verdicts v WHERE v.checking = t.checking) FROM checkings t",
}


def _things(con: duckdb.DuckDBPyConnection, what: str, keys: set[int]) -> list[tuple[int, Affected]]:
    key = _KEYS[_TABLES[what]]
    rows = con.execute(
        f"{_SIZES[what]} WHERE list_contains(?, t.{key}) ORDER BY 2, 1", [sorted(keys)]
    ).fetchall()
    return [(found, Affected(what, name, n, REMOVED)) for found, name, n in rows]


def _evaluations(con: duckdb.DuckDBPyConnection, keys: dict[str, set[int]]) -> list[Affected]:
    rows = con.execute(
        """SELECT d.name, count(*) FROM evaluations e JOIN datasets d USING (dataset)
           WHERE list_contains(?, evaluation) GROUP BY ALL ORDER BY ALL""",
        [sorted(keys["evaluations"])],
    ).fetchall()
    return [Affected("evaluations", name, n, REMOVED) for name, n in rows]


def _calls(con: duckdb.DuckDBPyConnection, keys: dict[str, set[int]]) -> list[Affected]:
    """Count the calls about queries that go with their dataset, and those that stay without their labeling."""
    _mark_queries(con, keys)
    gone = con.execute(
        """SELECT t.name, count(*) FROM calls c JOIN requests r USING (request) JOIN teachers t USING (teacher)
           WHERE r.query IN (FROM removed_queries) GROUP BY ALL ORDER BY ALL"""
    ).fetchall()
    documents = con.execute(
        """SELECT c.name, count(*) FROM documents d JOIN collections c USING (collection)
           WHERE d.collection IN (FROM removed_collections) GROUP BY ALL ORDER BY ALL"""
    ).fetchall()
    return [Affected("passages", name, n, REMOVED) for name, n in documents] + [
        Affected("calls", name, n, REMOVED) for name, n in gone
    ]


def _mark_queries(con: duckdb.DuckDBPyConnection, keys: dict[str, set[int]]) -> None:
    """List the collections that no dataset uses any more, and the queries that nothing uses any more."""
    datasets = sorted(keys["datasets"])
    con.execute(
        """CREATE OR REPLACE TEMP TABLE removed_collections AS
           SELECT DISTINCT collection FROM datasets WHERE list_contains(?, dataset)
           EXCEPT SELECT collection FROM datasets WHERE NOT list_contains(?, dataset)""",
        [datasets, datasets],
    )
    con.execute(
        """CREATE OR REPLACE TEMP TABLE removed_queries AS
           SELECT query FROM dataset_queries WHERE list_contains(?, dataset)
           UNION SELECT query FROM query_origins WHERE list_contains(?, dataset)
           UNION SELECT query FROM queries WHERE collection IN (FROM removed_collections)""",
        [datasets, datasets],
    )
    for table, owner, of in (
        ("dataset_queries", "dataset", "datasets"),
        ("qrels", "dataset", "datasets"),
        ("candidates", "run", "runs"),
        ("negatives", "mining", "minings"),
        ("permutations", "labeling", "labelings"),
        ("labeling_calls", "labeling", "labelings"),
        ("quarantine", "labeling", "labelings"),
        ("query_scores", "evaluation", "evaluations"),
        ("query_origins", "dataset", "datasets"),
        ("llm_judgments", "judging", "judgings"),
        ("verdicts", "checking", "checkings"),
    ):
        con.execute(
            f"""DELETE FROM removed_queries WHERE query IN (
                    SELECT query FROM {table} WHERE NOT list_contains(?, {owner}) AND query IS NOT NULL)""",
            [sorted(keys[of])],
        )


def _detached(con: duckdb.DuckDBPyConnection, keys: dict[str, set[int]]) -> list[Affected]:
    """List what stays and loses its link to something that goes."""
    rows = []
    for kind, table in _IN_VIEWS.items():
        rows += con.execute(
            """SELECT 'view', v.name, v.n_pairs FROM views v WHERE NOT list_contains(?, v.view) AND v.view IN (
                   SELECT view FROM view_sources WHERE kind = ? AND list_contains(?, source)) ORDER BY v.view""",
            [sorted(keys["views"]), kind, sorted(keys[table])],
        ).fetchall()
    rows += con.execute(
        """SELECT 'student', s.name, count(*) FROM stages g JOIN students s USING (student)
           WHERE list_contains(?, g.view) AND NOT list_contains(?, g.student) GROUP BY ALL ORDER BY ALL""",
        [sorted(keys["views"]), sorted(keys["students"])],
    ).fetchall()
    rows += con.execute(
        """SELECT 'labels', name, (SELECT count(*) FROM permutations p WHERE p.labeling = labelings.labeling)
           FROM labelings WHERE list_contains(?, run) AND NOT list_contains(?, labeling)
           ORDER BY name""",
        [sorted(keys["runs"]), sorted(keys["labelings"])],
    ).fetchall()
    return [Affected(what, name, n, "stays, without the link") for what, name, n in dict.fromkeys(rows)]


def _names(con: duckdb.DuckDBPyConnection, table: str, keys: set[int]) -> list[str]:
    sql = f"SELECT name FROM {table} WHERE list_contains(?, {_KEYS[table]}) ORDER BY name"
    return [name for (name,) in con.execute(sql, [sorted(keys)]).fetchall()]


def _add_folders(con: duckdb.DuckDBPyConnection, store: LabelStore, made: Plan) -> None:
    """List the folders of views and students; one that leads out of the store, or that another row names, is left."""
    for table, what, hash_ in (("views", "view", "view_hash"), ("students", "student", "NULL")):
        keys = sorted(made.keys[table])
        rows = con.execute(
            f"""SELECT name, folder, {hash_}, folder IN (SELECT folder FROM {table} WHERE NOT list_contains(?, {_KEYS[table]}))
                FROM {table} WHERE list_contains(?, {_KEYS[table]}) ORDER BY name, {_KEYS[table]}""",
            [keys, keys],
        ).fetchall()
        for name, folder, view_hash, shared in rows:
            try:
                own_folder(store.files, what, name, folder, view_hash)
            except BadInput as error:
                made.left.append(error.message)
                continue
            if shared:
                made.left.append(f"{what} {name}: another row names its folder {folder!r} too")
            else:
                made.folders.append(Removed(name, folder, view_hash))


# ---------------------------------------------------------------------------------------------------------- removing
def _delete(con: duckdb.DuckDBPyConnection, keys: dict[str, set[int]]) -> None:
    """Delete the planned rows with their parts, and what nothing uses any more."""
    _mark_queries(con, keys)

    def delete(table: str, of: str, column: str | None = None) -> None:
        con.execute(f"DELETE FROM {table} WHERE list_contains(?, {column or _KEYS[of]})", [sorted(keys[of])])

    delete("query_scores", "evaluations")
    delete("evaluations", "evaluations")
    con.execute(
        """DELETE FROM permutation_items WHERE permutation IN (
               SELECT permutation FROM permutations WHERE list_contains(?, labeling))""",
        [sorted(keys["labelings"])],
    )
    for table in ("permutations", "labeling_calls", "quarantine", "labelings"):
        delete(table, "labelings")
    for table in ("llm_judgments", "judgings"):
        delete(table, "judgings")
    for table in ("verdicts", "checkings"):
        delete(table, "checkings")
    for table in ("query_tests", "query_filters"):
        delete(table, "query_filters")
    delete("negatives", "minings")
    delete("minings", "minings")
    delete("candidates", "runs")
    con.execute("UPDATE labelings SET run = NULL WHERE list_contains(?, run)", [sorted(keys["runs"])])
    delete("runs", "runs")
    for table in ("training_log", "stages", "calibrations", "students"):
        delete(table, "students")
    con.execute("UPDATE stages SET view = NULL WHERE list_contains(?, view)", [sorted(keys["views"])])
    delete("view_sources", "views")
    delete("views", "views")
    for kind, table in _IN_VIEWS.items():
        con.execute(
            "UPDATE view_sources SET source = NULL WHERE kind = ? AND list_contains(?, source)",
            [kind, sorted(keys[table])],
        )
    for table in ("qrels", "query_origins", "dataset_queries", "datasets"):
        delete(table, "datasets")
    _delete_unused(con)


def _delete_unused(con: duckdb.DuckDBPyConnection) -> None:
    """Delete queries, requests and calls that nothing uses any more, collections without a dataset, and idle teachers."""
    documents = "(SELECT document FROM documents WHERE collection IN (FROM removed_collections))"
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE removed_requests AS
            SELECT request FROM requests WHERE query IN (FROM removed_queries)
            UNION SELECT request FROM request_passages WHERE document IN {documents}"""
    )
    for table in ("calls", "request_passages", "requests"):
        con.execute(f"DELETE FROM {table} WHERE request IN (FROM removed_requests)")
    con.execute("DELETE FROM queries WHERE query IN (FROM removed_queries)")
    con.execute(f"DELETE FROM document_versions WHERE document IN {documents}")
    for table in ("documents", "collections"):
        con.execute(f"DELETE FROM {table} WHERE collection IN (FROM removed_collections)")
    con.execute(
        """CREATE OR REPLACE TEMP TABLE removed_teachers AS SELECT teacher FROM teachers
           EXCEPT SELECT teacher FROM labelings EXCEPT SELECT teacher FROM requests EXCEPT SELECT teacher FROM judgings
           EXCEPT SELECT teacher FROM checkings EXCEPT SELECT strong FROM checkings"""
    )
    for table in ("canaries", "teachers"):
        con.execute(f"DELETE FROM {table} WHERE teacher IN (FROM removed_teachers)")
    for table in ("removed_queries", "removed_collections", "removed_teachers", "removed_requests"):
        con.execute(f"DROP TABLE {table}")
