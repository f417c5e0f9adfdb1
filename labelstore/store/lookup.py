"""Look up datasets, runs, labelings, minings, students and views by name. An unknown name lists similar names."""

import difflib
import json
from dataclasses import dataclass
from typing import Any

import duckdb

from labelstore.errors import DataMissing, UsageError

# SQL over title and text: a passage as retrieval and students read it (teachers render the two separately).
FULL_TEXT = "concat_ws(' ', nullif(trim(title), ''), text)"


# The command that makes the first of its kind.
_MAKES = {
    "datasets": "msft data add DATASET",
    "runs": "msft retrieve --dataset DATASET --retriever bm25s",
    "labels": "msft teachers generate --model MODEL --dataset DATASET",
    "negatives": "msft negatives mine --dataset DATASET --run RUN",
    "views": "msft views build --kind contrastive --dataset DATASET",
    "students": "msft students train --regime cl --dataset DATASET",
}


@dataclass(frozen=True)
class Dataset:
    dataset: int
    name: str
    collection: int
    collection_name: str
    role: str
    ir_datasets_id: str | None
    qrels_hash: str | None


@dataclass(frozen=True)
class Run:
    run: int
    name: str
    dataset: int
    kind: str
    system: str
    source_run: int | None
    student: int | None
    parameters: dict[str, Any]
    depth: int
    n_queries: int
    n_candidates: int
    content_hash: str


@dataclass(frozen=True)
class Labeling:
    labeling: int
    name: str
    teacher: int
    teacher_name: str
    dataset: int
    run: int | None
    first_stage: str | None
    strategy: str
    depth: int
    reliable_depth: int | None
    licence: str | None


@dataclass(frozen=True)
class Mining:
    mining: int
    name: str
    dataset: int
    parameters: dict[str, Any]
    seed: int
    n_negatives: int
    content_hash: str


@dataclass(frozen=True)
class Judging:
    judging: int
    name: str
    dataset: int
    teacher: int
    model: str | None
    prompt: str | None
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Checking:
    checking: int
    name: str
    dataset: int
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Student:
    student: int
    name: str
    base: str
    architecture: str
    regime: str
    folder: str
    weights_hash: str
    max_length: int
    licence: str | None


@dataclass(frozen=True)
class View:
    view: int
    name: str
    kind: str
    view_hash: str
    folder: str
    n_lists: int
    n_pairs: int
    licence: str | None


def none_yet(things: str, dataset: str = "") -> str:
    """Say that the store, or a dataset, has no runs, labels …, and which command makes the first."""
    makes = _MAKES[things].replace("DATASET", dataset or "DATASET")
    return f"{dataset or 'the store'} has no {things} yet; make the first with `{makes}`"


def missing(what: str, name: str, known: list[str], lists: str, makes: str | None = None) -> DataMissing:
    """Make the error for an unknown name, with the nearest known names.

    Args:
        lists: the command that lists the known names. makes: the command that makes the first one.
    """
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {', '.join(near)}? list them with `{lists}`"
    elif known:
        hint = f"known: {', '.join(sorted(known)[:8])}"
        hint += f" …; `{lists}` lists them" if len(known) > 8 else ""
    else:
        hint = f"make the first one with `{makes or lists}`"
    return DataMissing(f"no {what} named {name!r}", hint=hint)


def dataset(con: duckdb.DuckDBPyConnection, name: str) -> Dataset:
    """Look up a dataset by its name, an alias, or its ir_datasets id.

    Raises:
        DataMissing: the dataset is not found.
    """
    found = con.execute(
        """SELECT d.dataset, d.name, d.collection, c.name, d.role, d.ir_datasets_id, d.qrels_hash
           FROM datasets d JOIN collections c USING (collection)
           WHERE d.name = ? OR d.ir_datasets_id = ? ORDER BY (d.name = ?) DESC LIMIT 1""",
        [name, name, name],
    ).fetchall()
    if not found:
        known = [n for (n,) in con.execute("SELECT name FROM datasets").fetchall()]
        raise missing("dataset", name, known, "msft data list", f"msft data add {name}")
    return Dataset(*found[0])


def collection(con: duckdb.DuckDBPyConnection, name: str | None) -> int:
    """Look up a collection's key by its name, or the only one if no name is given.

    Raises:
        DataMissing: the collection is not found.
        UsageError: there are several, and no name is given.
    """
    found = dict(con.execute("SELECT name, collection FROM collections ORDER BY name").fetchall())
    if name is None and len(found) > 1:
        raise UsageError(
            "the store has several collections", hint=f"--collection {' | '.join(list(found)[:8])}"
        )
    if name is None and not found:
        raise DataMissing("the store has no collection", hint="msft data add DATASET --from FOLDER")
    if name is not None and name not in found:
        raise missing(
            "collection", name, list(found), "msft data list", "msft data add DATASET --from FOLDER"
        )
    return int(found[name] if name is not None else next(iter(found.values())))


def pick_dataset(con: duckdb.DuckDBPyConnection, name: str | None) -> Dataset:
    """Look up `dataset`, or the only one if no name is given.

    Raises:
        UsageError: there are several, and no name is given.
    """
    if name is not None:
        return dataset(con, name)
    known = [n for (n,) in con.execute("SELECT name FROM datasets ORDER BY name").fetchall()]
    if len(known) == 1:
        return dataset(con, known[0])
    if not known:
        raise DataMissing("the store has no dataset", hint=_MAKES["datasets"])
    raise UsageError("several datasets fit", hint=f"--dataset {' | '.join(known[:8])}")


_RUN = """SELECT run, name, dataset, kind, system, source_run, student, parameters, depth, n_queries, n_candidates,
          content_hash FROM runs"""


def _as_run(row: tuple[Any, ...]) -> Run:
    run, name, of, kind, system, source, student_key, parameters, *counts = row
    return Run(run, name, of, kind, system, source, student_key, json.loads(parameters), *counts)


def run(con: duckdb.DuckDBPyConnection, of: Dataset, name: str) -> Run:
    """Look up a run of a dataset by its name.

    Raises:
        DataMissing: the run is not found.
    """
    found = con.execute(f"{_RUN} WHERE dataset = ? AND name = ?", [of.dataset, name]).fetchall()
    if not found:
        known = [r.name for r in runs(con, of)]
        raise missing(
            f"run over {of.name}",
            name,
            known,
            f"msft runs list --dataset {of.name}",
            f"msft retrieve --dataset {of.name} --retriever bm25s",
        )
    return _as_run(found[0])


def run_by_id(con: duckdb.DuckDBPyConnection, key: int) -> Run:
    """Look up a run by its surrogate key."""
    return _as_run(con.execute(f"{_RUN} WHERE run = ?", [key]).fetchall()[0])


def runs(con: duckdb.DuckDBPyConnection, of: Dataset, kinds: tuple[str, ...] = ()) -> list[Run]:
    """List the runs over a dataset, oldest first, of the given `kinds`."""
    found = con.execute(f"{_RUN} WHERE dataset = ? ORDER BY run", [of.dataset]).fetchall()
    return [r for r in map(_as_run, found) if not kinds or r.kind in kinds]


def pick_run(con: duckdb.DuckDBPyConnection, of: Dataset, name: str | None) -> Run:
    """Look up `run`, or the only first stage if no name is given.

    Raises:
        UsageError: there are several, and no name is given.
    """
    if name is not None:
        return run(con, of, name)
    first = runs(con, of, ("first_stage", "imported"))
    if len(first) == 1:
        return first[0]
    if not first:
        raise DataMissing(
            f"{of.name} has no run", hint=f"msft retrieve --dataset {of.name} --retriever bm25s --depth 100"
        )
    raise UsageError(f"{of.name} has several runs", hint=f"--run {' | '.join(r.name for r in first[:8])}")


def labeling(con: duckdb.DuckDBPyConnection, name: str) -> Labeling:
    """Look up a labeling by its name.

    Raises:
        DataMissing: the labeling is not found.
    """
    found = con.execute(
        """SELECT l.labeling, l.name, l.teacher, t.name, l.dataset, l.run, l.first_stage, l.strategy, l.depth,
                  l.reliable_depth, l.licence
           FROM labelings l JOIN teachers t USING (teacher) WHERE l.name = ?""",
        [name],
    ).fetchall()
    if not found:
        known = [n for (n,) in con.execute("SELECT name FROM labelings").fetchall()]
        raise missing(
            "labeling",
            name,
            known,
            "msft teachers list",
            _MAKES["labels"],
        )
    return Labeling(*found[0])


def mining(con: duckdb.DuckDBPyConnection, name: str) -> Mining:
    """Look up mined negatives by their name.

    Raises:
        DataMissing: the mining is not found.
    """
    found = con.execute(
        "SELECT mining, name, dataset, parameters, seed, n_negatives, content_hash FROM minings WHERE name = ?",
        [name],
    ).fetchall()
    if not found:
        known = [n for (n,) in con.execute("SELECT name FROM minings").fetchall()]
        raise missing("negatives", name, known, "msft negatives list", _MAKES["negatives"])
    key, own_name, of, parameters, *rest = found[0]
    return Mining(key, own_name, of, json.loads(parameters), *rest)


def judging(con: duckdb.DuckDBPyConnection, name: str) -> Judging:
    """Look up an LLM judge's judgments by their name.

    Raises:
        DataMissing: the judging is not found.
    """
    found = con.execute(
        """SELECT j.judging, j.name, j.dataset, j.teacher, t.model, t.prompt, j.parameters
           FROM judgings j JOIN teachers t USING (teacher) WHERE j.name = ?""",
        [name],
    ).fetchall()
    if not found:
        known = [n for (n,) in con.execute("SELECT name FROM judgings").fetchall()]
        raise missing(
            "judging",
            name,
            known,
            "msft teachers list",
            "msft teachers judge --model MODEL --dataset DATASET --run RUN",
        )
    key, own_name, of, teacher, model, prompt, parameters = found[0]
    return Judging(key, own_name, of, teacher, model, prompt, json.loads(parameters))


def checking(con: duckdb.DuckDBPyConnection, name: str) -> Checking:
    """Look up the verdicts of an LLM on mined negatives by their name.

    Raises:
        DataMissing: the verdicts are not found.
    """
    found = con.execute(
        "SELECT checking, name, dataset, parameters FROM checkings WHERE name = ?", [name]
    ).fetchall()
    if not found:
        known = [n for (n,) in con.execute("SELECT name FROM checkings").fetchall()]
        raise missing(
            "verdicts", name, known, "msft negatives list", "msft negatives check NEGATIVES --model MODEL"
        )
    key, own_name, of, parameters = found[0]
    return Checking(key, own_name, of, json.loads(parameters))


def student(con: duckdb.DuckDBPyConnection, name: str) -> Student:
    """Look up a student by its name.

    Raises:
        DataMissing: the student is not found.
    """
    found = con.execute(
        """SELECT student, name, base, architecture, regime, folder, weights_hash, max_length, licence
           FROM students WHERE name = ?""",
        [name],
    ).fetchall()
    if not found:
        known = [n for (n,) in con.execute("SELECT name FROM students").fetchall()]
        raise missing("student", name, known, "msft students list", _MAKES["students"])
    return Student(*found[0])


def view(con: duckdb.DuckDBPyConnection, name: str) -> View:
    """Look up the newest view of a name, or the view with a hash.

    Raises:
        DataMissing: the view is not found.
    """
    found = con.execute(
        """SELECT view, name, kind, view_hash, folder, n_lists, n_pairs, licence FROM views
           WHERE name = ? OR view_hash = ? ORDER BY view DESC LIMIT 1""",
        [name, name],
    ).fetchall()
    if not found:
        known = [n for (n,) in con.execute("SELECT DISTINCT name FROM views").fetchall()]
        raise missing("view", name, known, "msft views list", _MAKES["views"])
    return View(*found[0])
