"""Collect the query explorer's data: queries with each system's top passages, the judgments, and the passages.

The size is bounded: it has the queries on which systems differ most, lists end at rank 10, and long passages are cut. Notes
say what was left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np

from labelstore.evaluation import systems as evaluated
from labelstore.evaluation.systems import System
from labelstore.report.boards import Board
from labelstore.store import lookup

TOP = 10  # ranks shown
MAX_SYSTEMS = {"first_stage": 6, "teacher": 10, "student": 10, "fused": 4}
MAX_JUDGED = 20  # judged passages of a query, the best grades first


@dataclass
class Explorer:
    """A dataset's part, as the page's script reads it.

    Attributes:
        systems: [{name, kind, over}]
        queries: [{id, text, scores: [value | None per system], lists: [[[passage, rank before | None], …] per system],
            judged: [[passage, grade], …]}]
        passages: [{id, title, text, cut}]; `cut` is the number of characters left out.
        notes: what was left out.
    """

    dataset: str
    measure: str | None
    systems: list[dict[str, Any]] = field(default_factory=list)
    queries: list[dict[str, Any]] = field(default_factory=list)
    passages: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "measure": self.measure,
            "systems": self.systems,
            "queries": self.queries,
            "passages": self.passages,
            "notes": self.notes,
        }


def explorer(
    con: duckdb.DuckDBPyConnection, board: Board, *, n_queries: int, n_characters: int, texts: bool
) -> Explorer:
    """Make the explorer of a dataset.

    Args:
        n_queries: the most queries.
        n_characters: the most characters of a passage.
        texts: whether passages' texts are shown; ids are always shown.
    """
    of = board.of
    systems = _systems(con, board)
    made = Explorer(of.name, board.headline if board.rows else None)
    if not systems:
        return made
    made.systems = [{"name": s.name, "kind": s.kind, "over": s.first_stage} for s in systems]
    chosen, total = _choose(con, board, systems, n_queries)
    passages: dict[int, int] = {}
    lists = [_lists(con, system, chosen, passages) for system in systems]
    judged = _judged(con, of, chosen, passages)
    names = {
        key: (query_id, text)
        for key, query_id, text in con.execute(
            "SELECT query, query_id, text FROM queries WHERE query IN (SELECT unnest(?::INTEGER[]))", [chosen]
        ).fetchall()
    }
    at = {query: n for n, query in enumerate(board.queries)}
    for query in chosen:
        query_id, text = names[query]
        made.queries.append(
            {
                "id": query_id,
                "text": text,
                "scores": [_score(board, s, at.get(query)) for s in systems],
                "lists": [ranked.get(query) for ranked in lists],
                "judged": judged.get(query, []),
            }
        )
    made.passages, n_cut, n_absent = _passages(con, passages, n_characters, texts)
    _say(made, total, n_cut, n_absent, n_characters, texts, _n_left(con, board, systems))
    return made


def _systems(con: duckdb.DuckDBPyConnection, board: Board) -> list[System]:
    """Choose the systems: measured ones by their place, otherwise all that ranked the dataset."""
    known = [row.system for row in board.rows] or evaluated.systems(con, board.of)
    room = dict(MAX_SYSTEMS)
    chosen = []
    for system in known:
        if room.get(system.kind, 0) > 0:
            room[system.kind] -= 1
            chosen.append(system)
    return sorted(chosen, key=lambda s: evaluated.KINDS.index(s.kind))


def _n_left(con: duckdb.DuckDBPyConnection, board: Board, shown: Sequence[System]) -> int:
    return len(evaluated.systems(con, board.of)) - len(shown)


def _choose(
    con: duckdb.DuckDBPyConnection, board: Board, systems: Sequence[System], n_queries: int
) -> tuple[list[int], int]:
    """Choose the queries on which systems differ most, and count all.

    Queries that the best re-ranking helps and hurts most come first, in turn. The queries on which any re-ranking
    differs most from its first stage follow.
    """
    if not board.rows:
        found = _by_movement(con, systems)
        return found[:n_queries], len(found)
    differences = _differences(board)
    by_size = np.argsort(-np.abs(differences).max(axis=0), kind="stable")
    falling = np.argsort(-differences[0], kind="stable")
    turns = [int(k) for pair in zip(falling, falling[::-1], strict=True) for k in pair][: 2 * n_queries // 3]
    chosen = list(dict.fromkeys([*turns, *map(int, by_size)]))[:n_queries]
    chosen.sort(key=lambda k: -differences[0][k])
    return [board.queries[k] for k in chosen], len(board.queries)


def _differences(board: Board) -> np.ndarray:
    """Make a matrix of re-rankings minus their first stages (rows) by query (columns); the best student is first.

    Without re-rankings the rows are the best system minus each of the others, or a single system's values.
    """
    by_run = {row.system.run: row.system for row in board.rows if row.system.run is not None}
    values = {row.system: board.scores[row.system, board.headline] for row in board.rows}
    pairs = [
        (s, base)
        for s in values
        if s.source_run is not None and (base := by_run.get(s.source_run)) is not None
    ]
    if pairs:
        pairs.sort(key=lambda pair: pair[0].kind not in ("student", "fused"))
        return np.array([values[s] - values[base] for s, base in pairs])
    best, *others = values.values()
    return np.array([best - other for other in others] or [best])


def _by_movement(con: duckdb.DuckDBPyConnection, systems: Sequence[System]) -> list[int]:
    """Order the queries of a dataset without judgments: first those whose best passage a teacher moved up most."""
    labelings = [s.labeling for s in systems if s.labeling is not None]
    if labelings:
        found = con.execute(
            """SELECT p.query, max(coalesce(i.initial_rank, 0)) AS moved FROM permutations p
               JOIN permutation_items i USING (permutation)
               WHERE i.rank = 1 AND p.labeling IN (SELECT unnest(?::INTEGER[])) GROUP BY p.query ORDER BY moved DESC, p.query""",
            [labelings],
        ).fetchall()
    else:
        runs = [s.run for s in systems if s.run is not None]
        found = con.execute(
            "SELECT DISTINCT query, 0 FROM candidates WHERE rank = 1 AND run IN (SELECT unnest(?::INTEGER[])) ORDER BY query",
            [runs],
        ).fetchall()
    return [query for query, _ in found]


def _lists(
    con: duckdb.DuckDBPyConnection, system: System, queries: Sequence[int], passages: dict[int, int]
) -> dict[int, list[list[int | None]]]:
    """Read query -> [passage, rank in the first stage] by rank; passages get numbers as they appear."""
    if system.run is not None:
        sql = """SELECT c.query, c.document, b.rank FROM candidates c
                 LEFT JOIN candidates b ON b.run = ? AND b.query = c.query AND b.document = c.document
                 WHERE c.run = ? AND c.rank <= ? AND c.query IN (SELECT unnest(?::INTEGER[])) ORDER BY c.query, c.rank"""
        rows = con.execute(sql, [system.source_run, system.run, TOP, list(queries)]).fetchall()
    else:
        sql = """SELECT p.query, i.document, i.initial_rank FROM permutations p JOIN permutation_items i USING (permutation)
                 WHERE p.labeling = ? AND i.rank <= ? AND p.status IN ('ok', 'repaired')
                   AND p.query IN (SELECT unnest(?::INTEGER[])) ORDER BY p.query, i.rank"""
        rows = con.execute(sql, [system.labeling, TOP, list(queries)]).fetchall()
    lists: dict[int, list[list[int | None]]] = {}
    for query, document, before in rows:
        number = passages.setdefault(document, len(passages))
        lists.setdefault(query, []).append([number, before])
    return lists


def _judged(
    con: duckdb.DuckDBPyConnection, of: lookup.Dataset, queries: Sequence[int], passages: dict[int, int]
) -> dict[int, list[list[int]]]:
    """Read query -> [passage, grade]: judgments of all shown passages, and the best other grades."""
    judged: dict[int, list[list[int]]] = {}
    held = set(passages)
    for query, document, grade, place in con.execute(
        """SELECT query, document, relevance, row_number() OVER (PARTITION BY query ORDER BY relevance DESC, document)
           FROM qrels WHERE dataset = ? AND query IN (SELECT unnest(?::INTEGER[])) ORDER BY query, relevance DESC, document""",
        [of.dataset, list(queries)],
    ).fetchall():
        if document in held or (grade > 0 and place <= MAX_JUDGED):
            number = passages.setdefault(document, len(passages))
            judged.setdefault(query, []).append([number, grade])
    return judged


def _score(board: Board, system: System, place: int | None) -> float | None:
    values = board.scores.get((system, board.headline))
    return None if values is None or place is None else round(float(values[place]), 4)


def _passages(
    con: duckdb.DuckDBPyConnection, numbers: dict[int, int], n_characters: int, texts: bool
) -> tuple[list[dict[str, Any]], int, int]:
    """Read the passages by number; count those that were cut, and those without text."""
    shown: list[dict[str, Any]] = [{} for _ in numbers]
    n_cut = n_absent = 0
    for document, doc_id, title, text in con.execute(
        "SELECT document, doc_id, title, text FROM documents WHERE document IN (SELECT unnest(?::INTEGER[]))",
        [list(numbers)],
    ).fetchall():
        entry: dict[str, Any] = {"id": doc_id}
        n_absent += text is None
        if texts and text is not None:
            cut = max(0, len(text) - n_characters)
            n_cut += cut > 0
            entry |= {"title": title or "", "text": text[:n_characters], "cut": cut}
        shown[numbers[document]] = entry
    return shown, n_cut, n_absent


def _say(
    made: Explorer, total: int, n_cut: int, n_absent: int, n_characters: int, texts: bool, n_left: int
) -> None:
    if len(made.queries) < total:
        which = (
            "on which re-rankings differ most from their first stage"
            if made.measure
            else "whose best passage the teacher fetched from farthest down"
        )
        made.notes.append(f"{len(made.queries)} of {total:,} queries: those {which}")
    made.notes.append(f"lists end at rank {TOP}")
    if n_left > 0:
        made.notes.append(f"{n_left} more systems ranked this dataset")
    if not texts:
        made.notes.append("passage texts are left out (--no-texts)")
    elif n_cut:
        made.notes.append(f"{n_cut:,} passages are cut at {n_characters:,} characters")
    if n_absent:
        made.notes.append(f"{n_absent:,} passages are known by id alone")
