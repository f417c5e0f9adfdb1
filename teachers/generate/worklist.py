"""A job's working file: queries, passages and recorded answers, for use while the store is closed.

It is one SQLite file (rebuilt at each start, removed at the end). A job of a hundred thousand queries must not hold
their passages or a million answers in memory, and must not lock the store. One query is loaded at a time.
"""

import json
import operator
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from teachers.journal import exact_json
from teachers.scheduling.job import Answer

_SCHEMA = """
CREATE TABLE documents (document INTEGER PRIMARY KEY, doc_id TEXT, title TEXT, text TEXT, text_hash TEXT);
CREATE TABLE lists (number INTEGER PRIMARY KEY, query_id TEXT, text TEXT, documents TEXT, ranks TEXT, scores TEXT,
                    n INTEGER);
CREATE TABLE answers (request_key TEXT PRIMARY KEY, number INTEGER, answer BLOB) WITHOUT ROWID;
"""


FRESH = 1000  # new answers written in one batch


class Candidate(NamedTuple):
    """A passage of a run, with its text, the hash of the text that labels belong to, and its first-stage score."""

    doc_id: str
    title: str | None
    text: str
    text_hash: int
    initial_rank: int
    score: float | None = None


@dataclass(slots=True)
class Task:
    """A query and its candidates, best first by the run; `prepared` caches texts prepared for the prompt."""

    number: int
    query_id: str
    text: str
    candidates: Sequence[Candidate]
    query_text: str | None = None
    prepared: dict[int, str] = field(default_factory=dict)


class Answers(Protocol):
    """Recorded answers, and new answers from the job."""

    def known(self, request_key: str) -> Answer | None:
        """Return the answer to a request; None if it is not recorded."""

    def learn(self, request_key: str, answer: Answer) -> None:
        """Remember an answer for the rest of the job."""


class Work:
    """The job's working file.

    Args:
        path: path of the file; an existing file is replaced unless `keep`.
    """

    def __init__(self, path: Path, *, keep: bool = False) -> None:
        if not keep:
            path.unlink(missing_ok=True)
        self._con = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._con.executescript("PRAGMA synchronous=OFF; PRAGMA journal_mode=OFF; PRAGMA cache_size=-4096;")
        if not keep:
            self._con.executescript(_SCHEMA)
        self._fresh: dict[str, tuple[int | None, Answer]] = {}  # new answers that are not yet in the file
        self._any_answers = self._con.execute("SELECT 1 FROM answers LIMIT 1").fetchone() is not None

    def add_documents(self, rows: Iterable[tuple[int, str, str | None, str, int]]) -> None:
        """Add (document, doc_id, title, text, text_hash) rows."""
        self._con.execute("BEGIN")
        self._con.executemany(
            "INSERT OR IGNORE INTO documents VALUES (?, ?, ?, ?, ?)",
            ((*row[:4], str(row[4])) for row in rows),
        )
        self._con.execute("COMMIT")

    def add_lists(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Add (number, query_id, text, documents, initial ranks) rows, with first-stage scores at their end if there are any."""
        self._con.execute("BEGIN")
        self._con.executemany(
            "INSERT INTO lists VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                (number, query_id, text, *(json.dumps(list(values)) for values in columns), len(columns[0]))
                for number, query_id, text, *given in rows
                if (columns := given if len(given) == 3 else [*given, [None] * len(given[0])])
            ),
        )
        self._con.execute("COMMIT")

    def add_answers(self, rows: Iterable[tuple[int, str, Answer]]) -> None:
        """Add (query's number, request_key, answer) rows.

        The last answer of a key counts, but it never replaces a complete one.
        """
        self._con.execute("BEGIN")
        for number, request_key, answer in rows:
            known = self.known(request_key)
            if known is None or not known.complete or answer.complete:
                self.learn(request_key, answer, number)
        self._write_fresh()
        self._con.execute("COMMIT")

    def answers_of(self, numbers: Sequence[int]) -> list[tuple[int, str, Answer]]:
        """Return (number, request_key, answer) of these queries, as in `add_answers`."""
        self._write_fresh()
        if not self._any_answers:
            return []
        self._con.execute("CREATE INDEX IF NOT EXISTS answers_number ON answers (number)")
        marks = ",".join("?" * len(numbers))
        rows = self._con.execute(
            f"SELECT number, request_key, answer FROM answers WHERE number IN ({marks})", list(numbers)
        )
        return [(number, key, Answer(*exact_json.loads(answer))) for number, key, answer in rows]

    def known(self, request_key: str) -> Answer | None:
        fresh = self._fresh.get(request_key)
        if fresh is not None:
            return fresh[1]
        if not self._any_answers:
            return None
        row = self._con.execute("SELECT answer FROM answers WHERE request_key = ?", (request_key,)).fetchone()
        return None if row is None else Answer(*exact_json.loads(row[0]))

    def lengths(self) -> list[int]:
        """Return the number of candidates per query, in query order."""
        return [n for (n,) in self._con.execute("SELECT n FROM lists ORDER BY number")]

    def numbers(self, *, longest_first: bool = False) -> list[int]:
        """Return the queries' numbers, in query order or by the length of their lists."""
        order = "n DESC, number" if longest_first else "number"
        return [number for (number,) in self._con.execute(f"SELECT number FROM lists ORDER BY {order}")]

    def tasks(self) -> Iterator[Task]:
        """Yield the tasks one by one, longest lists first, so that no long query runs alone at the end."""
        for number in self.numbers(longest_first=True):
            yield self.task(number)

    def task(self, number: int) -> Task:
        query_id, text, documents, ranks, scores = self._con.execute(
            "SELECT query_id, text, documents, ranks, scores FROM lists WHERE number = ?", (number,)
        ).fetchone()
        keys = json.loads(documents)
        marks = ",".join("?" * len(keys))
        found = self._con.execute(f"SELECT * FROM documents WHERE document IN ({marks})", keys)
        rows = {row[0]: row for row in found}
        _, doc_ids, titles, texts, hashes = zip(*map(rows.__getitem__, keys), strict=True)
        of_run = (json.loads(ranks), json.loads(scores))
        columns = zip(doc_ids, titles, texts, map(int, hashes), *of_run, strict=True)
        return Task(number, query_id, text, list(map(_CANDIDATE, columns)))

    def close(self) -> None:
        self._con.close()

    def learn(self, request_key: str, answer: Answer, number: int | None = None) -> None:
        self._fresh[request_key] = (number, answer)
        if len(self._fresh) >= FRESH:
            self._write_fresh()

    def _write_fresh(self) -> None:
        if not self._fresh:
            return
        self._any_answers = True
        rows = [
            (key, number, exact_json.dumps(_fields(answer), finite=answer.scores is None))
            for key, (number, answer) in sorted(self._fresh.items())
        ]
        self._con.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)
        self._fresh.clear()

    def begin(self) -> None:
        """Begin the job: new answers need not reach the disk, because the journal has them.

        The file is removed at the end of the job.
        """
        self._con.execute("BEGIN")


_CANDIDATE = partial(tuple.__new__, Candidate)  # avoids a Python call: a job makes one per candidate
_fields = operator.attrgetter(*Answer.__dataclass_fields__)
