"""Register students in the store, list and show them, and collect the facts of their cards."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelstore.errors import DataMissing, UsageError
from labelstore.files.work_folder import set_aside
from labelstore.provenance import record as provenance
from labelstore.store import lookup
from labelstore.store.foreign import check_name
from labelstore.store.keys import file_hash
from labelstore.store.label_store import LabelStore, next_id
from labelstore.store.rows import fetch
from students.jobs.card import CardFacts, Measured, StageFacts, write_card
from students.model.bases import licence_of
from students.text.frames import Framing

if TYPE_CHECKING:
    import duckdb

    from students.model.encoder import CrossEncoder


def add_student(
    store: LabelStore,
    model: str,
    *,
    name: str | None = None,
    regime: str = "none",
    max_length: int | None = None,
    seed: int = 42,
    licence: str | None = None,
    framing: Framing = Framing(),
) -> lookup.Student:
    """Register a model as a student. Its weights are copied beside the store, so later changes do not affect them.

    An untrained base (regime none) gets a new head from `seed`, as at the start of training, so that `eval` can show
    it. Adding the same weights under the same name again changes nothing.

    Args:
        model: a folder, a Hugging Face id, or an alias such as ``minilm``.
        name: by default the model's last path component.
        regime: how it was trained elsewhere; by default not at all.
        licence: terms of the weights; by default those that `msft students bases` lists.
        framing: a decoder's text frame, if it is not the one that its name says.

    Raises:
        StudentError: the model is not found (exit code 4), or it is a decoder without a frame (exit code 2).
        UsageError: another model has the name.
    """
    from students.model.encoder import CrossEncoder

    clock = provenance.Clock()
    name = check_name(name or Path(model.rstrip("/")).name.lower())
    encoder = CrossEncoder.load(
        model, max_length=max_length, precision="fp32", device="cpu", seed=seed, framing=framing
    )
    folder = store.folder("students") / name
    staged = folder.with_name(f".{name}.adding")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        encoder.save(staged)
        hash_ = file_hash(staged / "model.safetensors")
        if store.exists and (taken := _named(store, name)) is not None:
            if taken.weights_hash == hash_:
                return taken
            raise UsageError(
                f"student {name!r} exists with other weights", hint="choose another name with --name"
            )
        with store.write() as con, provenance.recorded_in(con, "students.add", clock) as job:
            student = insert_student(
                con,
                job.job,
                name=name,
                base=model,
                base_revision=base_revision(model, encoder),
                encoder=encoder,
                regime=regime,
                weights_hash=hash_,
                seed=seed,
                recipe=None,
                licence=licence or licence_of(model),
            )
            clear(folder, hash_)
            staged.rename(folder)
            write_card(folder, card_facts(con, student))
        return student
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def clear(folder: Path, weights_hash: str) -> None:
    """Make room for a student's folder. Remains of an interrupted job are removed; anything else is moved aside."""
    weights = folder / "model.safetensors"
    if weights.is_file() and not folder.is_symlink() and file_hash(weights) == weights_hash:
        shutil.rmtree(folder)
    elif folder.exists() or folder.is_symlink():
        set_aside(folder)


def insert_student(
    con: "duckdb.DuckDBPyConnection",
    job: int,
    *,
    name: str,
    base: str,
    base_revision: str | None,
    encoder: "CrossEncoder",
    regime: str,
    weights_hash: str,
    seed: int,
    recipe: dict[str, Any] | None,
    licence: str | None,
) -> lookup.Student:
    """Insert a row of `students` with the folder ``students/NAME``, inside the caller's transaction."""
    con.execute(
        """INSERT INTO students (student, name, base, base_revision, architecture, regime, folder, weights_hash,
                                 max_length, seed, recipe, licence, job)
           VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
        [
            next_id(con, "students", "student"),
            name,
            base,
            base_revision,
            encoder.architecture,
            regime,
            f"students/{name}",
            weights_hash,
            encoder.max_length,
            seed,
            None if recipe is None else json.dumps(recipe),
            licence,
            job,
        ],
    )
    return lookup.student(con, name)


def base_licence(con: "duckdb.DuckDBPyConnection", base: str) -> str | None:
    """Return the terms of a student's base, a student of the store among them; None if they are not on record."""
    if not base.startswith("student:"):
        return licence_of(base)
    found = con.execute(
        "SELECT licence FROM students WHERE name = ?", [base.removeprefix("student:")]
    ).fetchall()
    return found[0][0] if found else None


def inherited(labels: Sequence[str | None], base: str | None) -> str | None:
    """Join the terms of a student's labels and of its base; None if those of no label are known, because then the base's
    alone would say too much."""
    known = [terms for terms in labels if terms]
    if not known:
        return None
    held = known if base is None else [*known, base]
    return "; ".join(dict.fromkeys(term for terms in held for term in terms.split("; ")))


def base_revision(model: str, encoder: "CrossEncoder | None" = None) -> str | None:
    """Return a Hub model's commit, or the hash of a folder's weights; None if neither is known."""
    from students.model.encoder import resolve_base

    for name in ("model.safetensors", "adapter_model.safetensors"):
        weights = Path(resolve_base(model)) / name
        if weights.is_file():
            return file_hash(weights)
    commit = getattr(encoder.model.config, "_commit_hash", None) if encoder is not None else None
    return None if commit is None else str(commit)


def _named(store: LabelStore, name: str) -> lookup.Student | None:
    with store.read() as con:
        try:
            return lookup.student(con, name)
        except DataMissing:
            return None


def student_rows(store: LabelStore) -> list[dict[str, Any]]:
    """List one flat row per student, oldest first."""
    return _query(
        store,
        """SELECT s.name AS student, s.base, s.architecture, s.regime, s.max_length, s.seed,
                  count(g.stage) AS stages, coalesce(sum(g.steps), 0)::BIGINT AS steps,
                  coalesce(sum(g.pairs), 0)::BIGINT AS pairs, round(coalesce(sum(g.seconds), 0), 1) AS seconds,
                  s.weights_hash, s.licence
           FROM students s LEFT JOIN stages g USING (student)
           GROUP BY ALL ORDER BY any_value(s.student)""",
        [],
    )


def stage_rows(store: LabelStore, name: str) -> list[dict[str, Any]]:
    """List one flat row per stage of a student; one row with stage NULL for an untrained model.

    Raises:
        DataMissing: the student is not found.
    """
    with store.read() as con:
        key = lookup.student(con, name).student
    return _query(
        store,
        """SELECT s.name AS student, s.base, s.base_revision, s.regime, g.stage, g.objective, g.loss,
                  v.name AS view, g.view_hash, g.steps, g.pairs, round(g.seconds, 1) AS seconds, g.weights_moved,
                  g.best_step, g.best_value, g.stopped_by, g.lists_skipped, g.truncated_pairs,
                  g.hyperparameters, s.weights_hash, s.licence, p.command
           FROM students s LEFT JOIN stages g USING (student) LEFT JOIN views v USING (view)
           LEFT JOIN provenance p ON p.job = s.job
           WHERE s.student = ? ORDER BY g.stage""",
        [key],
    )


def log_rows(store: LabelStore, name: str) -> list[dict[str, Any]]:
    """List the figures logged during training, in their order.

    Raises:
        DataMissing: the student is not found.
    """
    with store.read() as con:
        key = lookup.student(con, name).student
    return _query(
        store,
        """SELECT stage, step, pairs, round(seconds, 2) AS seconds, measure, value FROM training_log
           WHERE student = ? ORDER BY stage, step, measure""",
        [key],
    )


def card_facts(con: "duckdb.DuckDBPyConnection", student: lookup.Student) -> CardFacts:
    """Collect the card's facts from the store."""
    (revision, seed) = con.execute(
        "SELECT base_revision, seed FROM students WHERE student = ?", [student.student]
    ).fetchall()[0]
    stages = con.execute(
        """SELECT g.objective, g.loss, v.name, g.view_hash, g.steps, g.pairs, g.weights_moved, g.hyperparameters,
                  v.n_lists, v.licence,
                  (SELECT list(DISTINCT coalesce(t.model, t.name) || ' with ' || t.prompt ORDER BY 1)
                   FROM view_sources vs JOIN query_origins qo ON qo.dataset = vs.source JOIN calls c ON c.call = qo.call
                   JOIN requests r USING (request) JOIN teachers t USING (teacher)
                   WHERE vs.view = v.view AND vs.kind = 'dataset' AND v.parameters->>'positives' = 'generated'),
                  v.parameters->>'judging',
                  (SELECT list(DISTINCT o.source ORDER BY 1) FROM student_sources o
                   WHERE o.student = ? AND o.stage = g.stage)
           FROM stages g LEFT JOIN views v USING (view) WHERE g.student = ? ORDER BY g.stage""",
        [student.name, student.student],
    ).fetchall()
    measured = con.execute(
        """SELECT dataset, first_stage, measure, value, n_queries, system, kind = 'student' FROM results
           WHERE student = ? ORDER BY dataset, first_stage, kind DESC, system, measure""",
        [student.name],
    ).fetchall()
    return CardFacts(
        name=student.name,
        base=student.base,
        base_revision=revision,
        architecture=student.architecture,
        regime=student.regime,
        max_length=student.max_length,
        seed=seed,
        licence=student.licence,
        base_licence=base_licence(con, student.base),
        weights_hash=student.weights_hash,
        stages=[
            StageFacts(
                objective, loss, view, view_hash, steps, pairs, moved, json.loads(settings or "{}"), n_lists,
                licence, list(sources or []), list(generated or []), judging,
            )
            for (
                objective, loss, view, view_hash, steps, pairs, moved, settings, n_lists, licence, generated, judging, sources
            ) in stages
        ],
        measured=[Measured(*row) for row in measured],
        warnings=warnings_of(con, student.name) + _leaks(con, student, {row[0] for row in measured}),
        calibration=_calibration(con, student),
    )  # fmt: skip


def _leaks(con: "duckdb.DuckDBPyConnection", student: lookup.Student, measured: set[str]) -> list[str]:
    """Warn of the test sets, and of the datasets that the student was measured on, whose queries it was trained on."""
    from labelstore.views import leakage

    tests = con.execute("SELECT name FROM datasets WHERE role = 'test'").fetchall()
    return leakage.warnings(con, [student.name], sorted(measured | {name for (name,) in tests}))


def _calibration(con: "duckdb.DuckDBPyConnection", student: lookup.Student) -> dict[str, Any] | None:
    from labelstore.evaluation import calibration  # imports scipy

    found = calibration.of_student(con, student)
    return None if found is None else found.settings()


def warnings_of(con: "duckdb.DuckDBPyConnection", name: str) -> list[str]:
    """List evaluations in which a student alone is worse than its first stage, and the better alternative."""
    from labelstore.evaluation import advice  # imports scipy

    found = (own.warning() for own in advice.of_student(con, name))
    return [warning for warning in found if warning is not None]


def _query(store: LabelStore, sql: str, parameters: list[Any]) -> list[dict[str, Any]]:
    with store.read() as con:
        return fetch(con, sql, parameters)
