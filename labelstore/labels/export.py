"""Export labels: permutations JSONL, TREC runs, Parquet, RankGPT's pair, RankLLM's results, raw replies, conversations.

`read_json` and `read_columns` read the files back to the same labels."""

import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import duckdb

from labelstore.errors import DataMissing, UsageError
from labelstore.files import trec
from labelstore.files.lines import create
from labelstore.files.whole_file import appearing
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from labelstore.store.rows import columns, named

LAYOUTS = ("permutations", "trec", "parquet", "rankgpt", "rankllm", "replies", "conversations")

Render = Callable[[str, Sequence[str]], Sequence[dict[str, str]]]


@dataclass
class ExportedList:
    """One query's labels as they are written: columns in rank order."""

    query_id: str
    query: str
    status: str
    repairs: int
    settled: int | None
    docs: list[str]
    initial_ranks: list[int | None]
    grades: list[int]
    scores: list[float | None]
    passages: list[str | None]

    @property
    def initial(self) -> list[str] | None:
        """doc_ids in the order in which the teacher was shown them; None if that is unknown."""
        if any(rank is None for rank in self.initial_ranks):
            return None
        return [self.docs[k] for k in self.shown]

    @property
    def shown(self) -> list[int]:
        """Places in rank order, by initial rank."""
        return sorted(range(len(self.docs)), key=lambda k: self.initial_ranks[k] or 0)


def lists(con: duckdb.DuckDBPyConnection, of: lookup.Labeling, texts: bool) -> Iterator[ExportedList]:
    """Read a labeling's usable permutations, by query_id.

    Args:
        texts: whether passages come with their text (None if the store has no text).
    """
    text = lookup.FULL_TEXT if texts else "NULL"
    cursor = con.execute(
        f"""SELECT q.query_id, q.text, p.status, p.repairs, p.settled, d.doc_id, i.initial_rank, i.grade, i.score,
                   CASE WHEN d.text IS NOT NULL THEN passage END
            FROM permutations p JOIN permutation_items i USING (permutation) JOIN queries q USING (query)
            JOIN (SELECT document, doc_id, text, {text} AS passage FROM documents) d USING (document)
            WHERE p.labeling = ? AND p.status IN ('ok', 'repaired') ORDER BY q.query_id, i.rank""",
        [of.labeling],
    )

    def rows() -> Iterator[tuple[Any, ...]]:
        while block := cursor.fetchmany(20_000):
            yield from block

    for key, group in itertools.groupby(rows(), key=lambda row: row[:5]):
        columns = zip(*(row[5:] for row in group), strict=True)
        docs, initial, grades, scores, passages = (list(column) for column in columns)
        query_id, query, status, repairs, settled = key
        yield ExportedList(query_id, query, status, repairs, settled, docs, initial, grades, scores, passages)


def export(
    store: LabelStore,
    name: str,
    out: Path | None,
    layout: str | None = None,
    *,
    stdout: IO[str] | None = None,
    render: Render | None = None,
) -> tuple[int, list[Path]]:
    """Write a labeling; (lists written, files).

    Args:
        out: the file; None: `stdout`, for the layouts that are one text file. ``.gz`` compresses.
        layout: one of :data:`LAYOUTS`; None: told by the file's name, otherwise permutations.
        render: query and passages -> messages, for conversations.

    Raises:
        DataMissing: the labeling is not found, or it lacks what the layout needs (initial order, texts, replies).
        UsageError: the layout is unknown, or needs a file.
    """
    layout = layout or _layout_of(out)
    if layout not in LAYOUTS:
        raise UsageError(f"no layout named {layout!r}", hint=f"--layout {' | '.join(LAYOUTS)}")
    if out is None and layout in ("parquet", "rankgpt"):
        raise UsageError(f"--layout {layout} needs a file", hint="-o FILE")
    if layout == "parquet" and out is not None:
        return _parquet(store, name, out), [out]
    with store.read() as con:
        of = lookup.labeling(con, name)
        if layout == "rankgpt" and out is not None:
            return _rankgpt(con, of, out)
        with _opened(out, stdout) as file:
            if layout == "trec":
                rows = (
                    (one.query_id, doc_id, rank, score)
                    for one in lists(con, of, texts=False)
                    for rank, (doc_id, score) in enumerate(zip(one.docs, _run_scores(one), strict=True), 1)
                )
                trec.write_run(file, rows, of.name)
                (n,) = con.execute(
                    "SELECT count(*) FROM permutations WHERE labeling = ? AND status IN ('ok', 'repaired')",
                    [of.labeling],
                ).fetchall()[0]
                return int(n), [out] if out else []
            writers: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
                "permutations": lambda: _permutations(con, of),
                "rankllm": lambda: _rankllm(con, of),
                "replies": lambda: _replies(con, of),
                "conversations": lambda: _conversations(con, of, render),
            }
            n = 0
            for row in writers[layout]():
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                n += 1
    return n, [out] if out else []


def _layout_of(out: Path | None) -> str:
    name = "" if out is None else out.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        return "parquet"
    return "trec" if name.endswith((".run", ".trec", ".txt")) else "permutations"


@contextmanager
def _opened(out: Path | None, stdout: IO[str] | None) -> Iterator[IO[str]]:
    """Write the file under a temporary name until it is complete, so that a failed export leaves nothing."""
    if out is None:
        buffer = io.StringIO() if stdout is None else stdout
        yield buffer
        return
    with create(out) as file:
        yield file


def _groups(one: ExportedList) -> list[list[str]] | None:
    """List tie groups, best first; None without ties."""
    if len(set(one.grades)) == len(one.grades):
        return None
    paired = zip(one.docs, one.grades, strict=True)
    return [[doc for doc, _ in same] for _, same in itertools.groupby(paired, key=lambda pair: pair[1])]


def _run_scores(one: ExportedList) -> list[float]:
    """Return scores that fall with the rank: the teacher's if they do, otherwise n - rank + 1."""
    own = [s for s in one.scores if s is not None]
    if len(own) == len(one.docs) and all(a >= b for a, b in itertools.pairwise(own)):
        return own
    return [float(len(one.docs) - k) for k in range(len(one.docs))]


def _permutations(con: duckdb.DuckDBPyConnection, of: lookup.Labeling) -> Iterator[dict[str, Any]]:
    for one in lists(con, of, texts=False):
        row: dict[str, Any] = {
            "query_id": one.query_id,
            "query": one.query,
            "teacher": of.teacher_name,
            "first_stage": of.first_stage,
            "initial": one.initial,
            "permutation": one.docs,
            "status": one.status,
            "repairs": one.repairs,
            "depth": of.depth,
            "licence": of.licence,
        }
        if one.settled is not None:
            row["settled"] = one.settled
        groups = _groups(one)
        if groups is not None:
            row["tie_groups"] = groups
        if all(score is not None for score in one.scores):
            row["scores"] = one.scores
        yield row


def _rankllm(con: duckdb.DuckDBPyConnection, of: lookup.Labeling) -> Iterator[dict[str, Any]]:
    for one in lists(con, of, texts=True):
        found = zip(one.docs, _run_scores(one), one.passages, strict=True)
        candidates = [
            {"docid": doc_id, "score": score, "doc": {} if text is None else {"contents": text}}
            for doc_id, score, text in found
        ]
        yield {
            "query": {"text": one.query, "qid": one.query_id},
            "candidates": candidates,
            "invocations_history": [],
        }


def _rankgpt(con: duckdb.DuckDBPyConnection, of: lookup.Labeling, out: Path) -> tuple[int, list[Path]]:
    """Write the pair of files: lists of retrieved passages, and ``.permutations.json`` beside it, joined by position."""
    second = out.with_name(out.name.removesuffix(".gz").removesuffix(".jsonl") + ".permutations.json")
    permutations: list[str] = []
    with _opened(out, None) as file:
        for one in lists(con, of, texts=True):
            _need_initial(of, one)
            place = {k: shown for shown, k in enumerate(one.shown, 1)}
            permutations.append(" > ".join(f"[{place[k]}]" for k in range(len(one.docs))))
            passages = [
                {"docid": one.docs[k], "text": one.passages[k] or "", "rank": rank}
                for rank, k in enumerate(one.shown, 1)
            ]
            row = {"query": one.query, "query_id": one.query_id, "retrieved_passages": passages}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        with _opened(second, None) as beside:
            json.dump(permutations, beside, ensure_ascii=False)
    return len(permutations), [out, second]


def _conversations(
    con: duckdb.DuckDBPyConnection, of: lookup.Labeling, render: Render | None
) -> Iterator[dict[str, Any]]:
    if render is None:
        raise UsageError("conversations need a prompt", hint="--prompt rankzephyr-train-variable")
    roles = {"system": "system", "user": "human", "assistant": "gpt"}
    for one in lists(con, of, texts=True):
        _need_initial(of, one)
        texts = [one.passages[k] for k in one.shown]
        if any(text is None for text in texts):
            raise DataMissing(
                f"{of.name}: passages of query {one.query_id} are known by id alone",
                hint="add their texts with msft data add",
            )
        place = {k: shown for shown, k in enumerate(one.shown, 1)}
        turns = [
            {"from": roles[m["role"]], "value": m["content"]}
            for m in render(one.query, [t or "" for t in texts])
        ]
        turns.append({"from": "gpt", "value": " > ".join(f"[{place[k]}]" for k in range(len(one.docs)))})
        yield {"id": one.query_id, "query_id": one.query_id, "doc_ids": one.initial, "conversations": turns}


def _need_initial(of: lookup.Labeling, one: ExportedList) -> None:
    if one.initial is None:
        raise DataMissing(
            f"{of.name}: the order in which query {one.query_id}'s passages were shown is not known",
            hint="use --layout permutations, trec or parquet, which do not need it, or `teachers import --run RUN`",
        )


def _replies(con: duckdb.DuckDBPyConnection, of: lookup.Labeling) -> Iterator[dict[str, Any]]:
    cursor = con.execute(
        """SELECT q.query_id, lc.step, c.sample, c.status, c.reply, c.finish_reason, c.tokens_in, c.tokens_out,
                  rq.request_key, (SELECT list(d.doc_id ORDER BY p.position) FROM request_passages p
                                   JOIN documents d USING (document) WHERE p.request = c.request) AS shown
           FROM labeling_calls lc JOIN calls c USING (call) JOIN requests rq ON rq.request = c.request
           JOIN queries q ON q.query = lc.query WHERE lc.labeling = ? ORDER BY q.query_id, lc.step""",
        [of.labeling],
    )
    names = columns(cursor)
    found = False
    while block := cursor.fetchmany(5_000):
        found = True
        for one in named(names, block):
            yield {
                "query_id": one.pop("query_id"),
                "teacher": of.teacher_name,
                "first_stage": of.first_stage,
                "passages": one.pop("shown"),
                **one,
            }
    if not found:
        raise DataMissing(f"{of.name} has no replies on record", hint="--layout permutations")


def _parquet(store: LabelStore, name: str, out: Path) -> int:
    """Write a row per ranked passage, as ``datasets.load_dataset("parquet", data_files=…)`` reads it."""
    with store.read() as con:
        of = lookup.labeling(con, name)
    with appearing(out) as part, store.read(reach=[part]) as con:
        con.execute(
            f"""COPY (
                SELECT q.query_id, q.text AS query, d.doc_id, i.rank::INTEGER AS rank, i.initial_rank::INTEGER AS initial_rank,
                       i.grade::INTEGER AS grade, i.score, l.name AS labeling, t.name AS teacher, l.first_stage,
                       p.status, p.repairs, p.settled, l.licence
                FROM permutations p JOIN permutation_items i USING (permutation) JOIN queries q USING (query)
                JOIN documents d USING (document) JOIN labelings l USING (labeling) JOIN teachers t USING (teacher)
                WHERE p.labeling = {of.labeling} AND p.status IN ('ok', 'repaired') ORDER BY q.query_id, i.rank
            ) TO '{str(part).replace("'", "''")}' (FORMAT parquet, COMPRESSION zstd)"""
        )
        (n,) = con.execute(
            "SELECT count(*) FROM permutations WHERE labeling = ? AND status IN ('ok', 'repaired')",
            [of.labeling],
        ).fetchall()[0]
    return int(n)
