"""Mine hard negatives: candidates of a query that train as not relevant, with the evidence for each.

Candidates come from one run or several; ranks, scores, margins against the positive and a teacher's labels filter
them; a seed or the rank picks among those left. Random passages of the
collection can stand beside them. The SQL is ``negatives/mining*.sql``; the options cover what
sentence-transformers' ``mine_hard_negatives`` has (its model's scores are the run's, its cross-encoder's those of
``scores``, a run that a student or re-ranker made over the same dataset).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import duckdb

from labelstore.errors import BadInput, DataMissing, UsageError
from labelstore.files.work_folder import work_folder
from labelstore.negatives.parameters import Parameters, make_parameters
from labelstore.provenance import record as provenance
from labelstore.store import lookup
from labelstore.store.keys import canonical_json, content_key
from labelstore.store.label_store import LabelStore, next_id
from labelstore.store.row_hashes import id_hash, ranking_hash, row_sum
from labelstore.store.rows import fetch
from labelstore.store.sql_steps import Filter, filters, reasons, set_variables, sql_file
from labelstore.views.build import DEFAULT_SEED

ABOVE, FLAGGED = "the teacher ranks it above a positive", "the verdict is that it is a false negative"


@dataclass(frozen=True)
class Mined:
    """A mining and the counts of its steps; `new` is False if the store had an equal one."""

    mining: lookup.Mining
    counts: list[Filter]
    new: bool


def mine(
    store: LabelStore,
    *,
    dataset: str | None = None,
    runs: Sequence[str] = (),
    name: str | None = None,
    seed: int = DEFAULT_SEED,
    denoise_labels: str | None = None,
    scores: str | None = None,
    replace: bool = False,
    note: Callable[[str], None] | None = None,
    **parameters: Any,
) -> Mined:
    """Mine negatives for a dataset's judged queries and store them.

    Args:
        dataset: its judgments give the positives; by default the only one.
        runs: the runs of the candidates; by default the only first stage.
        denoise_labels: a labeling that judges the candidates, or an LLM's verdicts on mined negatives.
        scores: a run whose scores the margins and limits compare, instead of the candidates' own.
        replace: replace a mining of the same name with other content.
        note: called with what was chosen.
        parameters: fields of :class:`Parameters`.

    Raises:
        UsageError: a parameter has no meaning or a wrong value.
        DataMissing: a source is not found, or no negative is left.
        BadInput: the name belongs to a mining with other content.
    """
    options = make_parameters(parameters, len(runs) or 1)
    if options.max_flags is not None and denoise_labels is None:
        raise UsageError("--max-flags counts what --denoise flags", hint="--denoise VERDICTS")
    clock = provenance.Clock()
    with work_folder(store.path.parent) as work:
        file = work / "negatives.parquet"
        with store.read(reach=[work]) as con:
            sources = _sources(con, dataset, runs, denoise_labels, scores, note or (lambda message: None))
            counts = _select(con, sources, options, seed)
            row = _row(con, sources, options, seed, counts)
            con.execute(f"COPY mining_rows TO '{str(file).replace(chr(39), chr(39) * 2)}' (FORMAT parquet)")
        name = name or _default_name(sources, options, seed)
        return _record(store, name, row, counts, file, clock, replace)


@dataclass(frozen=True)
class _Sources:
    """What is mined: the runs' candidates, judged by `labels` or `verdicts` and scored by `scorer` if there are any."""

    dataset: lookup.Dataset
    runs: list[lookup.Run]
    labels: lookup.Labeling | None
    verdicts: lookup.Checking | None
    scorer: lookup.Run | None

    @property
    def denoiser(self) -> str | None:
        return self.labels.name if self.labels else self.verdicts.name if self.verdicts else None


def _sources(
    con: duckdb.DuckDBPyConnection,
    dataset: str | None,
    runs: Sequence[str],
    denoise_labels: str | None,
    scores: str | None,
    say: Callable[[str], None],
) -> _Sources:
    of = lookup.pick_dataset(con, dataset)
    if dataset is None:
        say(f"dataset: {of.name} (the only one)")
    own = [lookup.run(con, of, run) for run in dict.fromkeys(runs)] or [lookup.pick_run(con, of, None)]
    if not runs:
        say(f"run: {own[0].name} (the only first stage of {of.name})")
    labels, verdicts = _denoiser(con, denoise_labels) if denoise_labels else (None, None)
    if verdicts is not None and verdicts.dataset != of.dataset:
        raise UsageError(
            f"the verdicts {verdicts.name} are on negatives of another dataset than {of.name}",
            hint=f"msft negatives check NEGATIVES --model MODEL, with negatives of {of.name}",
        )
    if labels is not None and labels.dataset != of.dataset and not _shares_queries(con, labels, of):
        raise UsageError(
            f"{labels.name} labels none of {of.name}'s queries",
            hint="name a labeling of this dataset: --denoise",
        )
    return _Sources(of, own, labels, verdicts, lookup.run(con, of, scores) if scores else None)


def _denoiser(
    con: duckdb.DuckDBPyConnection, name: str
) -> tuple[lookup.Labeling | None, lookup.Checking | None]:
    """Look up a labeling or verdicts by their name.

    Raises:
        UsageError: both have the name. DataMissing: none has it.
    """
    held = [
        con.execute(f"SELECT 1 FROM {table} WHERE name = ?", [name]).fetchall()
        for table in ("labelings", "checkings")
    ]
    if all(held):
        raise UsageError(
            f"--denoise {name}: labels and verdicts both have this name",
            hint="remove one of them: msft teachers remove, or msft negatives remove",
        )
    if held[1]:
        return None, lookup.checking(con, name)
    return lookup.labeling(con, name), None


# Parameters that came later than stores with minings, and stand in a row only if they are given.
LATER: dict[str, Any] = {"random": 0, "max_flags": None}


@dataclass(frozen=True)
class _Row:
    """A mining's row in the store, without its key, name and job."""

    dataset: int
    settings: str
    seed: int
    n_queries: int
    n_negatives: int
    content_hash: str


def _row(
    con: duckdb.DuckDBPyConnection,
    sources: _Sources,
    options: Parameters,
    seed: int,
    counts: Sequence[Filter],
) -> _Row:
    n_queries, n_rows = con.execute("SELECT count(DISTINCT query), count(*) FROM mining_rows").fetchall()[0]
    if not n_rows:
        raise DataMissing(
            f"no negative is left ({reasons(counts)})",
            hint="loosen the margins, or give judgments: `msft data show`",
        )
    settings = {
        **{key: value for key, value in asdict(options).items() if key not in LATER or value != LATER[key]},
        "runs": [{"name": run.name, "hash": run.content_hash} for run in sources.runs],
        "denoise_labels": sources.labels.name if sources.labels else None,
        "scores": sources.scorer.name if sources.scorer else None,
        **({"denoise_verdicts": sources.verdicts.name} if sources.verdicts else {}),
    }
    of = sources.dataset.dataset
    return _Row(of, canonical_json(settings), seed, n_queries, n_rows, _content_hash(con))


def quotas(per_query: int, shares: Sequence[float]) -> list[int]:
    """Divide `per_query` negatives among the sources: whole numbers with that sum, by largest remainders."""
    exact = [per_query * share / sum(shares) for share in shares]
    whole = [int(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda k: (whole[k] - exact[k], k))
    for k in order[: per_query - sum(whole)]:
        whole[k] += 1
    return whole


def _select(
    con: duckdb.DuckDBPyConnection, sources: _Sources, options: Parameters, seed: int
) -> list[Filter]:
    """Fill the temporary table ``mining_rows``; works on a read-only connection."""
    runs = sources.runs
    con.execute(
        "CREATE OR REPLACE TEMP TABLE mined_dataset AS SELECT ?::INTEGER AS dataset",
        [sources.dataset.dataset],
    )
    con.execute("CREATE OR REPLACE TEMP TABLE mined_sources (source INTEGER, run INTEGER)")
    con.executemany(
        "INSERT INTO mined_sources VALUES (?, ?)", [(n, run.run) for n, run in enumerate(runs, 1)]
    )
    con.execute("CREATE OR REPLACE TEMP TABLE denoiser (labeling INTEGER, checking INTEGER)")
    con.execute("CREATE OR REPLACE TEMP TABLE scorer (run INTEGER)")
    if sources.denoiser is not None:
        labeling = sources.labels.labeling if sources.labels else None
        checking = sources.verdicts.checking if sources.verdicts else None
        con.execute("INSERT INTO denoiser VALUES (?, ?)", [labeling, checking])
    if sources.scorer is not None:
        con.execute("INSERT INTO scorer VALUES (?)", [sources.scorer.run])
    limits = (options.absolute_margin, options.relative_margin, options.max_score, options.min_score)
    variables = asdict(options) | {"seed": seed, "needs_score": any(limit is not None for limit in limits)}
    variables["flag_reason"] = FLAGGED if sources.verdicts else ABOVE
    del variables["shares"]
    set_variables(con, variables)
    for part, room in (
        ("sampling", "views/sql"), ("mining_asked", "negatives"), ("own_passages", "views/sql"), ("mining", "negatives"),
    ):  # fmt: skip
        con.execute(sql_file(part, room))
    draw = sql_file("mining_draw", "negatives")
    shares = quotas(options.per_query, options.shares or [1.0] * len(runs))
    passes = [(source, quota, False) for source, quota in enumerate(shares, 1)]
    if len(runs) > 1:  # if a source has too few, the others fill up
        passes += [(source, options.per_query, True) for source in range(1, len(runs) + 1)]
    for source, quota, final in passes:
        set_variables(con, {"source": source, "quota": quota, "final": final})
        con.execute(draw)
    con.execute(sql_file("mining_end", "negatives"))
    if options.random:
        for part, room in (
            ("mining_drawers", "negatives"),
            ("random_passages", "views/sql"),
            ("mining_random", "negatives"),
        ):
            con.execute(sql_file(part, room))
    return filters(con, ["queries", "candidates", "denoising", "random passages"])


def _shares_queries(con: duckdb.DuckDBPyConnection, labels: lookup.Labeling, of: lookup.Dataset) -> bool:
    (n,) = con.execute(
        """SELECT count(*) FROM permutations WHERE labeling = ?
           AND query IN (SELECT query FROM dataset_queries WHERE dataset = ?)""",
        [labels.labeling, of.dataset],
    ).fetchall()[0]
    return bool(n)


def _content_hash(con: duckdb.DuckDBPyConnection, relation: str = "mining_rows") -> str:
    """Compute the content key over a mining's rows by text ids, in columns of `negatives` (`verify` computes it again)."""
    groups = con.execute(f"SELECT DISTINCT label, weight FROM {relation} ORDER BY ALL").fetchall()
    parts = []
    for label, weight in groups:
        rows = f"""(SELECT n.query, n.source_rank * 65536 + coalesce(n.teacher_rank, 0) AS rank,
                           coalesce(n.source_score, 0) AS score,
                           xor({id_hash("d.doc_id")}, md5_number_lower(coalesce(r.name, 'random'))) AS id_hash
                    FROM {relation} n JOIN documents d USING (document) LEFT JOIN runs r ON r.run = n.source_run
                    WHERE n.label = {int(label)} AND n.weight = {float(weight)!r}::FLOAT)"""
        parts.append([int(label), float(weight), ranking_hash(con, f"({row_sum(rows)})")[0]])
    return content_key("negatives", parts)


def content_hash(con: duckdb.DuckDBPyConnection, mining: int) -> str:
    """Compute the content hash of a stored mining again from its rows."""
    return _content_hash(con, f"(SELECT * FROM negatives WHERE mining = {int(mining)})")


def _default_name(sources: _Sources, options: Parameters, seed: int) -> str:
    parts = [
        sources.dataset.name,
        "+".join(run.name for run in sources.runs),
        f"{options.strategy}{options.per_query}of{options.depth}",
    ]
    changed = {
        key: value
        for key, value in asdict(options).items()
        if key not in ("strategy", "per_query", "depth") and value != getattr(Parameters(), key)
    }
    if sources.denoiser is not None:
        changed["denoise"] = f"{options.denoise}:{sources.denoiser}"
    if changed:
        parts.append(content_key("parameters", changed)[:6])
    if seed != DEFAULT_SEED:
        parts.append(f"seed{seed}")
    return "-".join(parts).replace("/", "-")


def _record(
    store: LabelStore,
    name: str,
    row: _Row,
    counts: list[Filter],
    file: Path,
    clock: provenance.Clock,
    replace: bool,
) -> Mined:
    with store.write(reach=[file]) as con:
        known = con.execute(
            "SELECT mining, content_hash, dataset FROM minings WHERE name = ?", [name]
        ).fetchall()
        if known and known[0][1:] == (row.content_hash, row.dataset):
            return Mined(lookup.mining(con, name), counts, new=False)
        if known and not replace:
            raise BadInput(
                f"negatives named {name!r} are there with other content",
                hint="choose another name with --name, or give --replace",
            )
        with provenance.recorded_in(con, "negatives.mine", clock) as job:
            key = next_id(con, "minings", "mining")
            if known:
                con.execute("DELETE FROM negatives WHERE mining = ?", [known[0][0]])
                con.execute("DELETE FROM minings WHERE mining = ?", [known[0][0]])
            con.execute(
                "INSERT INTO minings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [key, name, *astuple(row), job.job],
            )
            con.execute(
                """INSERT INTO negatives SELECT ?, query, document, source_run, source_rank, source_score, teacher_rank,
                          label, weight FROM read_parquet(?)""",
                [key, str(file)],
            )
            for count in counts:
                job.count(con, f"negatives {count.step}", name, count.n_in, count.drops)
        return Mined(lookup.mining(con, name), counts, new=True)


def listed(con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """List the minings as flat rows, newest first."""
    return fetch(
        con,
        """SELECT m.name AS negatives, d.name AS dataset,
                  (SELECT string_agg(x->>'name', ', ') FROM unnest(from_json(m.parameters->'runs', '["JSON"]')) t(x)) AS runs,
                  m.parameters->>'strategy' AS strategy, (m.parameters->>'depth')::INTEGER AS depth,
                  (m.parameters->>'per_query')::INTEGER AS per_query, coalesce(m.parameters->>'denoise_labels', m.parameters->>'denoise_verdicts') AS denoise,
                  m.n_queries AS queries, m.n_negatives AS rows, m.seed, p.started_at AS made
           FROM minings m JOIN datasets d USING (dataset) LEFT JOIN provenance p ON p.job = m.job ORDER BY m.mining DESC""",
    )


def shown(
    con: duckdb.DuckDBPyConnection, mining: lookup.Mining, query_id: str | None, limit: int
) -> list[dict[str, Any]]:
    """List the first `limit` negatives of a mining (of one query) with their evidence."""
    return fetch(
        con,
        """SELECT q.query_id, d.doc_id, coalesce(r.name, 'random') AS source_run, n.source_rank, n.source_score,
                  n.teacher_rank, n.label, n.weight, left(d.text, 80) AS text
           FROM negatives n JOIN queries q USING (query) JOIN documents d USING (document)
           LEFT JOIN runs r ON r.run = n.source_run
           WHERE n.mining = ? AND (? IS NULL OR q.query_id = ?)
           ORDER BY q.query_id, n.source_run, n.source_rank LIMIT ?""",
        [mining.mining, query_id, query_id, limit],
    )
