"""Measure the quality of labels: statuses, repairs, position bias, agreement with judgments and other teachers, cost.

The figures come from the view `labeling_quality` and the analyses ``@label_quality``, ``@agreement`` and
``@position_bias``, so `msft sql` gives the same figures.
"""

import json
from importlib.resources import files
from typing import Any

import duckdb

from labelstore.labels.currency import CURRENCY
from labelstore.store import lookup
from labelstore.store.rows import Row, fetch

QUARANTINE_SHOWN = 20


def labelings(con: duckdb.DuckDBPyConnection, dataset: str | None = None) -> list[Row]:
    """List the labelings with their counts, oldest first."""
    return fetch(
        con,
        """SELECT q.labeling, q.teacher, q.first_stage, q.dataset, q.strategy, q.depth, q.reliable_depth, q.lists, q.ok,
                  q.repaired, q.quarantined, q.repairs, q.calls, q.licence
           FROM labeling_quality q JOIN labelings l ON l.name = q.labeling
           WHERE q.dataset = coalesce(?, q.dataset) ORDER BY l.labeling""",
        [dataset],
    )


def show(con: duckdb.DuckDBPyConnection, name: str) -> list[Row]:
    """Describe a labeling in flat rows (topic, name, value, n, detail).

    `n` is the sample of the value: lists, calls or shared passages.

    Raises:
        DataMissing: the labeling is not found.
    """
    of = lookup.labeling(con, name)
    quality = fetch(con, "SELECT * FROM labeling_quality WHERE labeling = ?", [of.name])[0]
    parts = [
        _origin(con, of, quality),
        _statuses(con, of),
        _calls(con, of),
        _bias(quality),
        _judgments(con, of),
        _agreement(con, of),
        _cost(con, of, quality),
        _canaries(con, of),
        _quarantine(con, of),
    ]
    return [row for part in parts for row in part]


def analysis(con: duckdb.DuckDBPyConnection, name: str, **parameters: Any) -> list[Row]:
    """Run an analysis that comes with msft; parameters that are not given are unset."""
    for key in ("dataset", "reference", "labels", "p", "bucket", "judged"):
        con.execute(f"SET VARIABLE {key} = ?", [parameters.get(key)])
    return fetch(con, files("labelstore").joinpath("analyses", f"{name}.sql").read_text("utf-8"))


def _row(topic: str, name: str, value: Any, n: int | None = None, detail: str | None = None) -> Row:
    return {"topic": topic, "name": name, "value": value, "n": n, "detail": detail}


def _origin(con: duckdb.DuckDBPyConnection, of: lookup.Labeling, quality: Row) -> list[Row]:
    found = fetch(
        con,
        """SELECT t.model, t.revision, t.engine, t.prompt, t.prompt_hash, t.sampling, l.parameters, l.origin, r.name AS run
           FROM labelings l JOIN teachers t USING (teacher) LEFT JOIN runs r ON r.run = l.run WHERE l.labeling = ?""",
        [of.labeling],
    )[0]
    strategy = json.loads(found["parameters"])
    shown = {
        "labeling": of.name,
        "teacher": of.teacher_name,
        "model": found["model"],
        "revision": found["revision"],
        "engine": found["engine"],
        "prompt": found["prompt"],
        "prompt_hash": found["prompt_hash"],
        "sampling": found["sampling"],
        "dataset": quality["dataset"],
        "run": found["run"],
        "first_stage": of.first_stage,
        "strategy": of.strategy,
        "parameters": ", ".join(f"{key} {value}" for key, value in strategy.items()) or None,
        "depth": of.depth,
        "reliable_depth": of.reliable_depth,
        "licence": of.licence,
        "origin": found["origin"],
    }
    return [_row("labels", key, value) for key, value in shown.items() if value is not None]


def _statuses(con: duckdb.DuckDBPyConnection, of: lookup.Labeling) -> list[Row]:
    found = con.execute(
        """SELECT status, count(*), sum(repairs)::BIGINT, max(repairs) FROM permutations WHERE labeling = ?
           GROUP BY status ORDER BY status""",
        [of.labeling],
    ).fetchall()
    total = sum(n for _, n, _, _ in found)
    rows = [
        _row("lists", status, n, total, f"{repairs} repairs, at most {most} in a list" if repairs else None)
        for status, n, repairs, most in found
    ]
    held, named = con.execute(
        """SELECT count(d.text), count(*) FROM permutations p JOIN permutation_items i USING (permutation)
           JOIN documents d USING (document) WHERE p.labeling = ?""",
        [of.labeling],
    ).fetchall()[0]
    rows.append(
        _row("lists", "passages", named, total, f"{named - held} known by id alone" if held < named else None)
    )
    (settled,) = con.execute(
        "SELECT count(*) FROM permutations WHERE labeling = ? AND settled IS NOT NULL", [of.labeling]
    ).fetchall()[0]
    if settled:
        rows.append(_row("lists", "stopped early", settled, total, "their lower ranks keep the prior order"))
    return rows


def _calls(con: duckdb.DuckDBPyConnection, of: lookup.Labeling) -> list[Row]:
    """Count the statuses of all answers to this labeling's requests, also of those that it did not use."""
    found = con.execute(
        """SELECT c.status, count(*), sum(c.n_missing)::BIGINT, sum(c.n_repeated)::BIGINT, sum(c.n_out_of_range)::BIGINT,
                  count(*) FILTER (WHERE u.call IS NOT NULL)
           FROM calls c
           JOIN (SELECT DISTINCT request FROM calls JOIN labeling_calls USING (call) WHERE labeling = ?) r USING (request)
           LEFT JOIN (SELECT DISTINCT call FROM labeling_calls WHERE labeling = ?) u USING (call)
           GROUP BY c.status ORDER BY c.status""",
        [of.labeling, of.labeling],
    ).fetchall()
    total = sum(row[1] for row in found)
    rows = []
    for status, n, missing, repeated, out_of_range, used in found:
        repairs = {"missing": missing, "repeated": repeated, "out of range": out_of_range}
        said = [f"{count} {what}" for what, count in repairs.items() if count]
        said += [f"{n - used} not used"] if used < n else []
        rows.append(_row("calls", status, n, total, ", ".join(said) or None))
    return rows


def _bias(quality: Row) -> list[Row]:
    n = quality["lists"]
    return [
        _row(
            "position", "position_bias", quality["position_bias"], n,
            "share of neighbours left in their prior order; .5 by chance, 1: nothing moved"
            if quality["position_bias"] is not None else "the first stage's order is not known",
        ),
        _row("position", "untouched", quality["untouched"], n, "share of lists left exactly as they were"),
    ] + ([_row("position", "disagreement", quality["disagreement"], n, "1 - Kendall tau between samples, the orders of pairs, or parts")]
         if quality["disagreement"] is not None else [])  # fmt: skip


def _judgments(con: duckdb.DuckDBPyConnection, of: lookup.Labeling) -> list[Row]:
    (dataset,) = con.execute("SELECT name FROM datasets WHERE dataset = ?", [of.dataset]).fetchall()[0]
    own = [
        row
        for row in analysis(con, "label_quality", dataset=dataset, reference=of.name)
        if row["labeling"] == of.name
    ]
    value = own[0]["nDCG@10"] if own else None
    (judged, shown) = con.execute(
        """SELECT count(q.relevance), count(*) FROM permutations p JOIN permutation_items i USING (permutation)
           LEFT JOIN qrels q ON q.dataset = ? AND q.query = p.query AND q.document = i.document
           WHERE p.labeling = ? AND i.rank <= 10""",
        [of.dataset, of.labeling],
    ).fetchall()[0]
    (n,) = con.execute("SELECT count(DISTINCT query) FROM qrels WHERE dataset = ?", [of.dataset]).fetchall()[
        0
    ]
    if not n:
        return [_row("judgments", "nDCG@10", None, 0, "the dataset has no judgments")]
    return [
        _row("judgments", "nDCG@10", value, n, "over the dataset's judged queries"),
        _row(
            "judgments",
            "judged@10",
            judged / shown if shown else None,
            n,
            "share of the first ten with a judgment",
        ),
    ]


def _agreement(con: duckdb.DuckDBPyConnection, of: lookup.Labeling) -> list[Row]:
    (dataset,) = con.execute("SELECT name FROM datasets WHERE dataset = ?", [of.dataset]).fetchall()[0]
    rows = []
    for pair in analysis(con, "agreement", dataset=dataset, labels=of.name):
        other = pair["other"] if pair["labeling"] == of.name else pair["labeling"]
        queries = f"{pair['shared_passages']} shared passages of {pair['shared_queries']} queries"
        rows.append(_row("tau with", other, pair["tau"], pair["shared_passages"], queries))
        rows.append(_row("rbo with", other, pair["rbo"], pair["shared_passages"], queries))
    return sorted(rows, key=lambda row: (row["topic"] != "tau with", -(row["value"] or -1.0), row["name"]))


def _cost(con: duckdb.DuckDBPyConnection, of: lookup.Labeling, quality: Row) -> list[Row]:
    if not quality["calls"]:
        return []
    own = next(
        r for r in analysis(con, "label_costs", dataset=quality["dataset"]) if r["labeling"] == of.name
    )
    seconds, queries = con.execute(
        """SELECT sum(c.seconds), count(DISTINCT lc.query) FROM labeling_calls lc JOIN calls c USING (call)
           WHERE lc.labeling = ?""",
        [of.labeling],
    ).fetchall()[0]
    rows = [
        _row("cost", "calls", quality["calls"], quality["lists"]),
        _row("cost", "tokens_in", quality["tokens_in"], quality["calls"]),
        _row("cost", "tokens_out", quality["tokens_out"], quality["calls"]),
        _row(
            "cost",
            "price",
            own["cost"],
            quality["calls"],
            CURRENCY if own["cost"] is not None else "no price known",
        ),
    ]
    (thought,) = con.execute(
        """SELECT sum(nullif(regexp_extract(c.finish_reason, 'thought of (\\d+) tokens', 1), '')::BIGINT)
           FROM labeling_calls lc JOIN calls c USING (call) WHERE lc.labeling = ?""",
        [of.labeling],
    ).fetchall()[0]
    if thought:
        rows.append(_row("cost", "thought_tokens", thought, quality["calls"], "part of tokens_out"))
    if queries:
        rows.append(
            _row("cost", "call_seconds", seconds, quality["calls"], "summed over calls that ran side by side")
        )
    return rows


def _canaries(con: duckdb.DuckDBPyConnection, of: lookup.Labeling) -> list[Row]:
    asked, starts, drifted = con.execute(
        """SELECT count(*), count(DISTINCT job), count(*) FILTER (WHERE drifted) FROM canaries WHERE teacher = ?""",
        [of.teacher],
    ).fetchall()[0]
    if not asked:
        return []
    return [_row("canary", "drifted", drifted, asked, f"replies that changed, over {starts} starts")]


def _quarantine(con: duckdb.DuckDBPyConnection, of: lookup.Labeling) -> list[Row]:
    found = con.execute(
        """SELECT q.query_id, z.step, z.reason, z.detail, z.attempts, count(*) OVER ()
           FROM quarantine z LEFT JOIN queries q USING (query) WHERE z.labeling = ?
           ORDER BY z.reason, q.query_id, z.detail LIMIT ?""",
        [of.labeling, QUARANTINE_SHOWN],
    ).fetchall()
    rows = []
    for query_id, step, reason, detail, attempts, _ in found:
        where = f"call {step}: " if step is not None else ""
        rows.append(
            _row("quarantine", query_id or "-", reason, attempts, where + " ".join(detail.split())[:160])
        )
    if found and found[0][5] > len(found):
        rows.append(
            _row("quarantine", "…", None, found[0][5], f"{found[0][5] - len(found)} more in table quarantine")
        )
    return rows
