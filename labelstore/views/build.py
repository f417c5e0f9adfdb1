"""Build training views: an SQL file, parameters and a seed give a content-addressed folder, with counts of what was left out.

There are three kinds (``views/sql/KIND.sql`` has the exact rules):

- ``contrastive``: judged positives with negatives, mined ones or straight from a run;
- ``distillation``: the permutations of one or more labelings;
- ``rerank``: the lists of one or more runs.

Several datasets, minings and labelings, over several collections, make one view. `build` reads the store, writes the
folder beside it, and holds the store again only to record the view.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import duckdb

from labelstore.errors import DataMissing
from labelstore.files.work_folder import work_folder
from labelstore.provenance import record as provenance
from labelstore.store import foreign, lookup
from labelstore.store.keys import canonical_json
from labelstore.store.label_store import LabelStore, next_id
from labelstore.store.rows import fetch
from labelstore.store.sql_steps import Filter, filters, reasons, set_variables, sql_file
from labelstore.views import folder as export
from labelstore.views import leakage
from labelstore.views.parameters import (
    ENOUGH_RETRIEVED,
    ENOUGH_VALID,
    MOST_VALID,
    MOSTLY_RETRIEVED,
    USUAL_FRACTION,
    Contrastive,
    make_parameters,
)
from labelstore.views.positives import Positives, read_positives
from labelstore.views.sources import ViewSource, resolve

NO_LIMIT = 1_000_000_000
DEFAULT_SEED = 42


def build(
    store: LabelStore,
    kind: str,
    *,
    datasets: Sequence[str] = (),
    runs: Sequence[str] = (),
    negatives: Sequence[str] = (),
    labels: Sequence[str] = (),
    name: str | None = None,
    seed: int = DEFAULT_SEED,
    progress: export.Progress | None = None,
    note: Callable[[str], None] | None = None,
    **parameters: Any,
) -> lookup.View:
    """Build a view, or return the one that has the same content.

    Args:
        kind: contrastive, distillation or rerank.
        datasets: names; by default those of the negatives or labels, or the only one.
        runs: names of runs over the datasets (rerank; contrastive without negatives).
        negatives: names of minings (contrastive).
        labels: names of labelings (distillation).
        name: the view's name; by default from its sources.
        seed: of the random sample.
        progress: called with (lists written, total or None).
        note: called with what was chosen or left out.
        parameters: fields of :class:`Contrastive`, :class:`Distillation` or :class:`Rerank`.

    Raises:
        UsageError: an unknown kind or parameter, or a training set that is a test set.
        DataMissing: a source is not found, or no list is left for the view.
    """
    options = make_parameters(kind, parameters)
    say = note or (lambda message: None)
    clock = provenance.Clock()
    with work_folder(store.folder("views")) as work:
        staging = work / "view"
        staging.mkdir()
        with store.read(reach=[work]) as con:
            chosen, sources = resolve(
                con, kind, options, datasets=datasets, runs=runs, negatives=negatives, labels=labels, note=say
            )
            _say_grades(con, chosen, options, say)
            sql = select(con, kind, chosen, sources, options, seed)
            options = _decided(con, options, say)
            ending, counts = finish(con, kind)
            _require_lists(con, kind, counts)
            held_out = _held_out(con)
            if kind != "rerank" and options.valid_fraction is None and held_out > USUAL_FRACTION:
                _say_share(con, say)
            sizes = export.write_rows(con, kind, staging, progress)
            licence = _licence(con, chosen, sources)
        name = name or _default_name(kind, sources)
        manifest = {
            "format": export.FORMAT,
            "kind": kind,
            "name": name,
            "view_hash": export.content_hash(staging, kind),
            "seed": seed,
            **sizes,
            "held_out": held_out,
            "parameters": asdict(options),
            "sources": [{"kind": s.kind, "name": s.name, "hash": s.hash} for s in sources],
            "licence": licence,
            **_as_counts(counts),
        }
        return _record(store, staging, manifest, sql + ending, sources, counts, clock, say)


def held_out(
    store: LabelStore,
    kind: str,
    *,
    datasets: Sequence[str] = (),
    runs: Sequence[str] = (),
    negatives: Sequence[str] = (),
    labels: Sequence[str] = (),
    seed: int = DEFAULT_SEED,
    **parameters: Any,
) -> float:
    """Compute the share of queries that :func:`build` would hold out; nothing is written."""
    options = make_parameters(kind, parameters)
    with store.read() as con:
        chosen, sources = resolve(
            con, kind, options, datasets=datasets, runs=runs, negatives=negatives, labels=labels,
            note=lambda message: None,
        )  # fmt: skip
        select(con, kind, chosen, sources, options, seed)
        finish(con, kind)
        return _held_out(con)


def _say_grades(
    con: duckdb.DuckDBPyConnection,
    datasets: Sequence[lookup.Dataset],
    options: Any,
    say: Callable[[str], None],
) -> None:
    """Tell that positives have several grades, which the lists do not use."""
    if getattr(options, "graded", True):
        return
    grades = con.execute(
        "SELECT DISTINCT relevance FROM qrels WHERE list_contains(?, dataset) AND relevance >= ? ORDER BY 1",
        [[d.dataset for d in datasets], options.min_relevance],
    ).fetchall()
    if len(grades) > 1:
        found = ", ".join(str(grade) for (grade,) in grades)
        say(
            f"positives have the grades {found}, and all count alike; --graded with an order loss (lambda) learns them"
        )


def _decided(con: duckdb.DuckDBPyConnection, options: Any, say: Callable[[str], None]) -> Any:
    """Replace the parameter that the SQL decided, and tell the decision."""
    if not isinstance(options, Contrastive) or options.retrieved is not None:
        return options
    positives = read_positives(con)
    if told := positives.note():
        say(told)
    return replace(options, retrieved=positives.only_retrieved)


def _held_out(con: duckdb.DuckDBPyConnection) -> float:
    return float(con.execute("SELECT getvariable('held_out')").fetchall()[0][0])


def _say_share(con: duckdb.DuckDBPyConnection, say: Callable[[str], None]) -> None:
    """Tell that more than the usual share of the queries validates."""
    n, all_lists = con.execute("SELECT count(*) FILTER (valid), count(*) FROM numbered_lists").fetchall()[0]
    say(
        f"validation: {n:,} of {all_lists:,} lists are held out, since {USUAL_FRACTION:.0%} of the queries would be too few;"
        " --valid-fraction sets another share"
    )


def _say_drops(name: str, counts: Sequence[Filter], say: Callable[[str], None]) -> None:
    for count in counts:
        if count.drops:
            left = ", ".join(f"{n:,} {reason}" for reason, (n, _) in sorted(count.drops.items()))
            say(f"{name}: {count.step} {count.n_in:,} = {count.kept:,} kept + {left}")
        if leakage.REASON in count.drops:
            n, example = count.drops[leakage.REASON]
            say(f"{name}: {n:,} training queries stand in a test set (e.g. {example}); {leakage.HINT}")


def check(
    store: LabelStore,
    kind: str,
    *,
    datasets: Sequence[str] = (),
    runs: Sequence[str] = (),
    negatives: Sequence[str] = (),
    labels: Sequence[str] = (),
    **parameters: Any,
) -> None:
    """Check names, parameters and roles as :func:`build` would, without reading rows.

    Raises:
        UsageError, DataMissing: as :func:`build`.
    """
    options = make_parameters(kind, parameters)
    with store.read() as con:
        resolve(
            con, kind, options, datasets=datasets, runs=runs, negatives=negatives, labels=labels,
            note=lambda message: None,
        )  # fmt: skip


def select(
    con: duckdb.DuckDBPyConnection,
    kind: str,
    datasets: Sequence[lookup.Dataset],
    sources: Sequence[ViewSource],
    options: Any,
    seed: int,
) -> str:
    """Run a kind's SQL, which fills the temporary tables lists, pairs and tally for :func:`finish`.

    Works on a read-only connection and writes nothing into the store.

    Returns:
        The SQL that ran.
    """
    _prepare(con, kind, datasets, sources, options, seed)
    before = ("contrastive_positives", "own_passages") if kind == "contrastive" else ()
    text = "".join(sql_file(part) for part in ("sampling", *before, kind))
    if getattr(options, "scores", False):
        text += sql_file("contrastive_scores")
    con.execute(text)
    return text


def select_positives(
    con: duckdb.DuckDBPyConnection,
    datasets: Sequence[lookup.Dataset],
    sources: Sequence[ViewSource],
    options: Contrastive,
    seed: int = DEFAULT_SEED,
) -> Positives:
    """Run the part of a contrastive view's SQL that selects its positives, and return what it decided.

    The temporary tables positives and pool are there afterwards, as `select` would have them.
    """
    _prepare(con, "contrastive", datasets, sources, options, seed)
    con.execute(sql_file("sampling") + sql_file("contrastive_positives"))
    return read_positives(con)


def _prepare(
    con: duckdb.DuckDBPyConnection,
    kind: str,
    datasets: Sequence[lookup.Dataset],
    sources: Sequence[ViewSource],
    options: Any,
    seed: int,
) -> None:
    """Make the tables and set the variables that a kind's SQL reads."""
    leakage.protect(con, allow_overlap=getattr(options, "allow_overlap", True))
    _table(con, "chosen_datasets", "dataset INTEGER", [(d.dataset,) for d in datasets])
    _table(con, "chosen_labelings", "labeling INTEGER", [(s.key,) for s in sources if s.kind == "labeling"])
    _table(
        con,
        "chosen_sources",
        "source INTEGER, mining INTEGER, run INTEGER",
        [
            (s.number, s.key if s.kind == "mining" else None, s.key if s.kind == "run" else None)
            for s in sources
            if s.kind in ("mining", "run")
        ],
    )
    variables = asdict(options) | {"seed": seed, "kind": kind}
    variables.setdefault("min_passages", 2 if kind == "contrastive" else 1)
    variables.setdefault("valid_fraction", 0.0)
    variables |= {"usual_fraction": USUAL_FRACTION, "enough_valid": ENOUGH_VALID, "most_valid": MOST_VALID}
    variables |= {"mostly_retrieved": MOSTLY_RETRIEVED, "enough_retrieved": ENOUGH_RETRIEVED}
    variables.setdefault("max_lists", None)
    variables.setdefault("easy", 0)
    for key in ("depth", "per_query", "max_positives"):
        if key in variables and variables[key] is None:
            variables[key] = NO_LIMIT
    set_variables(con, variables)


def finish(con: duckdb.DuckDBPyConnection, kind: str) -> tuple[str, list[Filter]]:
    """Leave out equal texts, short and surplus lists, and number the others for :func:`folder.write_rows`.

    Returns:
        The SQL that ran, and what each step of the whole view left out.
    """
    names = ["numbering", "cuts"]
    con.execute(sql_file("numbering") + sql_file("cuts"))
    (n_cut,) = con.execute(
        "SELECT (SELECT count(*) FROM repeated) + (SELECT count(*) FROM cut_lists)"
    ).fetchall()[0]
    if n_cut:
        names += ["cuts_apply", "numbering"]
        con.execute(sql_file("cuts_apply") + sql_file("numbering"))
    text = "".join(sql_file(name) for name in names)
    if con.execute("SELECT getvariable('easy')").fetchall()[0][0]:
        text += _add_easy(con, kind)
    con.execute(sql_file("finish"))
    head = "queries" if kind == "contrastive" else "lists"
    return text + sql_file("finish"), filters(
        con, [head, "positives", "passages", "judged first", "easy passages"]
    )


def _add_easy(con: duckdb.DuckDBPyConnection, kind: str) -> str:
    """Put random passages into the lists that are left; returns the SQL that ran."""
    source = "pool" if kind == "contrastive" else "items"
    seen = f"CREATE OR REPLACE TEMP TABLE easy_seen AS SELECT DISTINCT query, document FROM {source};\n"
    text = seen + "".join(
        sql_file(part) for part in ("easy_asked", "own_passages", "random_passages", "easy", "numbering")
    )
    con.execute(text)
    return text


def _table(con: duckdb.DuckDBPyConnection, name: str, columns: str, rows: list[tuple[Any, ...]]) -> None:
    con.execute(f"CREATE OR REPLACE TEMP TABLE {name} ({columns})")
    if rows:
        con.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(rows[0]))})", rows)


def _require_lists(con: duckdb.DuckDBPyConnection, kind: str, counts: list[Filter]) -> None:
    (n,) = con.execute("SELECT count(*) FROM numbered_lists").fetchall()[0]
    if n:
        return
    hint = "check the sources: `msft data list`, `msft status`"
    if any(leakage.REASON in step.drops for step in counts):
        hint = leakage.HINT
    elif any("not held" in reason or "no passage held" in reason for step in counts for reason in step.drops):
        hint = "add the collection's texts: `msft data add`"
    raise DataMissing(f"the {kind} view has no list ({reasons(counts)})", hint=hint)


def _as_counts(counts: Sequence[Filter]) -> dict[str, Any]:
    """Write the counts for the manifest: those of lists or queries, and those of the other steps."""
    head, *more = (
        {"in": c.n_in, "kept": c.kept, "dropped": {reason: n for reason, (n, _) in c.drops.items()}}
        for c in counts
    )
    return {"counts": head, "more_counts": {c.step: each for c, each in zip(counts[1:], more, strict=True)}}


def _default_name(kind: str, sources: Sequence[ViewSource]) -> str:
    own = [s for s in sources if s.kind != "dataset"] or list(sources)
    stem = "+".join(dict.fromkeys(re.sub(r"[^\w.@-]+", "-", s.name) for s in own))
    return f"{kind}-{stem[:80]}"


_RESTRICTED = re.compile(r"(?i)non.?commercial|\bnc\b|-nc-|research")


def _licence(
    con: duckdb.DuckDBPyConnection, datasets: Sequence[lookup.Dataset], sources: Sequence[ViewSource]
) -> str | None:
    """Collect the licences of labels and texts, the restricting ones first."""
    terms = {
        term
        for (term,) in con.execute(
            """SELECT licence FROM collections WHERE list_contains(?, collection)
               UNION SELECT coalesce(l.licence, t.licence) FROM labelings l JOIN teachers t USING (teacher)
               WHERE list_contains(?, labeling)""",
            [[d.collection for d in datasets], [s.key for s in sources if s.kind == "labeling"]],
        ).fetchall()
        if term
    }
    return "; ".join(sorted(terms, key=lambda t: (_RESTRICTED.search(t) is None, t))) or None


def _record(
    store: LabelStore,
    staging: Path,
    manifest: dict[str, Any],
    sql: str,
    sources: Sequence[ViewSource],
    counts: Sequence[Filter],
    clock: provenance.Clock,
    say: Callable[[str], None],
) -> lookup.View:
    """Complete the folder, move it to its place and record the view, unless the store has the same content."""
    export.write_manifest(staging, manifest)
    _say_drops(manifest["name"], counts, say)
    view_hash = manifest["view_hash"]
    place = store.files / "views" / view_hash
    with store.read() as con:
        known = con.execute("SELECT name FROM views WHERE view_hash = ?", [view_hash]).fetchall()
        if known and place.is_dir():
            if known[0][0] != manifest["name"]:
                say(f"{manifest['name']}: the same content is there as view {known[0][0]}")
            return lookup.view(con, view_hash)
    if not place.is_dir():
        staging.rename(place)
    if known:  # the view's folder was lost and is restored
        with store.read() as con:
            return lookup.view(con, view_hash)
    with store.write() as con, provenance.recorded_in(con, "views.build", clock) as job:
        view = next_id(con, "views", "view")
        con.execute(
            "INSERT INTO views VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                view,
                manifest["name"],
                manifest["kind"],
                sql,
                canonical_json({**manifest["parameters"], "sources": manifest["sources"]}),
                manifest["seed"],
                view_hash,
                f"views/{view_hash}",
                manifest["n_lists"],
                manifest["n_pairs"],
                manifest["licence"],
                job.job,
            ],
        )
        con.executemany(
            "INSERT INTO view_sources VALUES (?, ?, ?, ?)", [(view, s.kind, s.key, s.hash) for s in sources]
        )
        for count in counts:
            job.count(con, f"view {count.step}", manifest["name"], count.n_in, count.drops)
        return lookup.view(con, view_hash)


def folder_of(store: LabelStore, view: lookup.View) -> Path:
    """Find a view's folder.

    Raises:
        DataMissing: if it is gone.
        BadInput: if its row leads out of the store.
    """
    folder = foreign.own_folder(store.files, "view", view.name, view.folder, view.view_hash)
    if not folder.is_dir():
        raise DataMissing(
            f"the folder of view {view.name} is not at {folder}",
            hint=f"{store.missing_hint(view.folder)}; or make it again with `msft views build` and the same parameters",
        )
    return folder


def listed(con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """List the views as flat rows, newest first."""
    return fetch(
        con,
        """SELECT v.name AS view, v.kind, v.n_lists AS lists, v.n_pairs AS pairs, v.seed,
                  (SELECT string_agg(x->>'name', ', ') FROM unnest(from_json(v.parameters->'sources', '["JSON"]')) t(x)
                   WHERE x->>'kind' <> 'dataset') AS sources,
                  v.licence, v.view_hash, p.started_at AS made
           FROM views v LEFT JOIN provenance p USING (job) ORDER BY v.view DESC""",
    )


def counted(con: duckdb.DuckDBPyConnection, view: lookup.View) -> list[dict[str, Any]]:
    """Count what each step of a view kept and left out, in a flat row per reason."""
    return fetch(
        con,
        """SELECT f.subject AS view, replace(f.step, 'view ', '') AS step, f.n_in AS "in", f.n_kept AS kept, d.reason,
                  d.n AS left_out, d.example
           FROM views v JOIN filters f ON f.job = v.job AND f.step LIKE 'view %'
           LEFT JOIN drops d ON d.job = f.job AND d.step = f.step AND d.subject = f.subject
           WHERE v.view = ? ORDER BY f.step DESC, d.n DESC""",
        [view.view],
    )
