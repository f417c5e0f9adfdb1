"""Parse stored replies again with the current parser, and rebuild the orders made from them (`msft teachers reread`).

A reply stays unchanged; only the parsed order is replaced. A store has one parsed order per reply, so all labelings
that share a reply are updated together. The strategy runs again over the recorded answers. If it now needs a window
that was never shown, the query waits for `msft teachers generate`. If a reply no longer yields an order, the query is
quarantined. All changes are one transaction.
"""

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import duckdb
import pyarrow as pa

from labelstore.errors import DataMissing, PartlyDone, UsageError
from labelstore.labels import write as labels
from labelstore.provenance import record as provenance
from labelstore.store import lookup
from labelstore.store.job_lock import labeling_alone
from labelstore.store.label_store import LabelStore
from teachers.generate import child_process
from teachers.generate import stored_replies as stored
from teachers.generate.calling.records import permutation_record
from teachers.generate.merge_journal import Target
from teachers.generate.stored_replies import Change
from teachers.generate.worklist import Candidate, Task
from teachers.journal.exact_json import clean
from teachers.journal.segments import Record
from teachers.scheduling.job import Answer, Result, scores_by_candidate
from teachers.strategies import by_name as strategies
from teachers.strategies.by_name import Order, Ranked, ScoredOrder, Steps, Strategy, Window

KIND = "teachers.reread"
QUERIES = 200  # queries whose calls are in memory at once

CHANGED, NEW, QUARANTINED, TO_ASK, SAME = "changed", "new", "quarantined", "to_ask", "same"


@dataclass
class Done:
    """The result of `reread`, or of its dry run.

    Attributes:
        n_read: number of replies that were parsed.
        changes: replies with a different result now.
        labelings: for each labeling with such replies, the number of queries by outcome: another order or status
            (``changed``), an order for the first time (``new``), no order because a reply yields none
            (``quarantined``) or because a window was never shown (``to_ask``), no change (``same``).
    """

    n_read: int
    changes: list[Change]
    labelings: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def statuses(self) -> dict[str, int]:
        """Count the replies by old and new status."""
        counts: dict[str, int] = {}
        for change in self.changes:
            same = change.before == change.parsed.status
            how = (
                f"{change.before} in another order" if same else f"{change.before} to {change.parsed.status}"
            )
            counts[how] = counts.get(how, 0) + 1
        return dict(sorted(counts.items()))

    def partly_done(self) -> PartlyDone | None:
        """Return the error for the end if queries lost their order."""
        lost = {name: n[QUARANTINED] + n[TO_ASK] for name, n in self.labelings.items()}
        if not any(lost.values()):
            return None
        return PartlyDone(
            f"{sum(lost.values()):,} queries of {', '.join(name for name, n in lost.items() if n)} have no order now",
            hint="give the `msft teachers generate` command of that labeling again: it asks what is missing;"
            " --retry-quarantined asks again where a reply states no order",
        )


def reread(store: LabelStore, name: str, *, dry_run: bool = False) -> Done:
    """Parse a labeling's stored replies again and rebuild the orders that depend on changed results.

    Raises:
        DataMissing: if the labeling is not found, or the store does not contain its replies.
        UsageError: if it was combined from other labelings.
        MsftError: if another process is working on the labeling, or on one that shares its replies.
    """
    with ExitStack() as locks:
        if not dry_run:
            locks.enter_context(labeling_alone(store, name))
            child_process.merge_small_or_large(store, store.folder("journal"), lambda note: None)
        with store.read() as con:
            of = lookup.labeling(con, name)
            _check_replies(con, of)
        scanned = stored.scan(store, of.labeling)
        if scanned.unknown and not scanned.n_read:
            raise DataMissing(
                f"this msft does not know the prompt of {name}: {', '.join(sorted(scanned.unknown))}",
                hint="read it again with the msft that made it",
            )
        done = Done(scanned.n_read, scanned.changes)
        if not done.changes:
            return done
        with store.read() as con:
            sharing = _Labeling.all_of(con, done.changes)
            if dry_run:
                for one, queries in sharing:
                    outcomes = chain.from_iterable(one.outcomes(con, queries))
                    done.labelings[one.of.name] = _counted(outcomes)
                return done
        for other in sorted({one.of.name for one, _ in sharing} - {name}):
            locks.enter_context(labeling_alone(store, other))
        with store.write() as con, provenance.recorded_in(con, KIND) as job:
            _write(con, job, name, done)
    return done


def _check_replies(con: duckdb.DuckDBPyConnection, of: lookup.Labeling) -> None:
    (origin, layout, dataset, n_calls) = con.execute(
        """SELECT l.origin, l.parameters ->> 'layout', d.name,
                  (SELECT count(*) FROM labeling_calls c WHERE c.labeling = l.labeling)
           FROM labelings l JOIN datasets d USING (dataset) WHERE l.labeling = ?""",
        [of.labeling],
    ).fetchall()[0]
    if origin == "combined":
        raise UsageError(
            f"{of.name} is combined from other labelings and has no replies of its own",
            hint="read its parts again, then give the `msft teachers combine` command that made it",
        )
    if origin != "generated" and not n_calls:
        command = f"msft teachers import {shlex.quote(origin)} --dataset {shlex.quote(dataset)}"
        raise DataMissing(
            f"the store does not hold the replies of {of.name}: its lists come from {origin}",
            hint=f"give the command that made it again with --replace: `{command} --name {shlex.quote(of.name)}"
            f"{f' --layout {layout}' if layout else ''} --replace`",
        )


def _write(con: duckdb.DuckDBPyConnection, job: provenance.Job, name: str, done: Done) -> None:
    """Write all changes, in the caller's transaction."""
    readings = {change.call: change for change in done.changes}
    for one, queries in _Labeling.all_of(con, done.changes):
        target = Target(one.of.teacher, one.of.labeling, one.collection, job)
        counts = _counted(())
        for outcomes in one.outcomes(con, queries):
            moved = [outcome for outcome in outcomes if outcome.kind != SAME]
            labels.withdraw(con, one.of.labeling, [outcome.query for outcome in moved])
            target.lists(con, [outcome.record for outcome in moved if outcome.record is not None])
            for kind, n in _counted(outcomes).items():
                counts[kind] += n
        readings |= {change.call: change for change in one.also}
        done.labelings[one.of.name] = counts
        reasons = {QUARANTINED: "a reply states no order any more", TO_ASK: "a window was never shown"}
        drops = {reason: (counts[kind], None) for kind, reason in reasons.items()}
        job.count(con, "reread lists", one.of.name, len(queries), drops)
    job.count(con, "reread replies", name, done.n_read, {how: (n, None) for how, n in done.statuses.items()})
    con.register("reread_readings", _readings(list(readings.values())))
    labels.store_readings(con, "reread_readings")
    con.unregister("reread_readings")


def _readings(changes: Sequence[Change]) -> pa.Table:
    parsed = [change.parsed for change in changes]
    return pa.table(
        {
            "call": pa.array([change.call for change in changes], pa.int64()),
            "status": pa.array([one.status for one in parsed], pa.string()),
            "parsed": pa.array([stored.identifiers(one) for one in parsed], pa.list_(pa.uint16())),
            "n_missing": pa.array([one.n_missing for one in parsed], pa.uint16()),
            "n_repeated": pa.array([one.n_repeated for one in parsed], pa.uint16()),
            "n_out_of_range": pa.array([one.n_out_of_range for one in parsed], pa.uint16()),
        }
    )


@dataclass(frozen=True)
class _Outcome:
    """The outcome for a query; `record` is a journal record of a permutation or of a quarantined query."""

    query: int
    kind: str
    record: Record | None = None


def _counted(outcomes: Iterable[_Outcome]) -> dict[str, int]:
    counts = dict.fromkeys((CHANGED, NEW, QUARANTINED, TO_ASK, SAME), 0)
    for outcome in outcomes:
        counts[outcome.kind] += 1
    return counts


@dataclass
class _Query:
    """A query from the store: candidates by initial rank, its order, its answers by the passages shown."""

    query: int
    query_id: str
    candidates: list[Candidate]
    before: tuple[list[str], str, int] | None  # doc_ids, status, repairs
    set_aside: tuple[int, str] | None = None  # step and reason of its quarantine
    used: set[str] = field(default_factory=set)  # call keys
    answers: dict[tuple[str, ...], tuple[tuple[bool, bool, int], Answer, list[int]]] = field(
        default_factory=dict
    )


class _Labeling:
    """A labeling whose queries are ordered again from the recorded answers."""

    def __init__(self, con: duckdb.DuckDBPyConnection, name: str) -> None:
        self.of = lookup.labeling(con, name)
        self.teacher = stored.teachers_of_replies(con)[0][self.of.teacher]
        self.also: list[Change] = []  # changed replies of these queries, used or not
        self.collection, parameters, origin = con.execute(
            """SELECT d.collection, l.parameters, l.origin FROM labelings l JOIN datasets d USING (dataset)
               WHERE l.labeling = ?""",
            [self.of.labeling],
        ).fetchall()[0]
        self.imported = origin != "generated"
        self.steps = one_call if self.imported else _strategy(self.of.strategy, json.loads(parameters)).steps

    @classmethod
    def all_of(
        cls, con: duckdb.DuckDBPyConnection, changes: list[Change]
    ) -> list[tuple["_Labeling", list[int]]]:
        """Return the labelings that depend on these replies, each with the affected queries."""
        return [(cls(con, name), queries) for name, queries in stored.affected(con, changes).items()]

    def outcomes(self, con: duckdb.DuckDBPyConnection, queries: Sequence[int]) -> Iterator[list[_Outcome]]:
        """Yield the outcomes for these queries, in batches."""
        for first in range(0, len(queries), QUERIES):
            yield [self._outcome(query) for query in self._load(con, list(queries[first : first + QUERIES]))]

    def _outcome(self, query: _Query) -> _Outcome:
        hashes = {c.doc_id: c.text_hash for c in query.candidates}

        def answer(window: Window) -> Answer | None:
            shown = tuple(query.candidates[index].doc_id for index in window)
            found = query.answers.get(shown)
            if found is None:
                return None
            hashes.update(zip(shown, found[2], strict=True))  # labels belong to the text that was shown
            return found[1]

        result, step, failed = replay(self.steps(len(query.candidates)), answer)
        if failed is not None:
            if query.before is None and query.set_aside == (step, failed.status):
                return _Outcome(query.query, SAME)
            kind = QUARANTINED if query.before is not None else CHANGED
            return _Outcome(
                query.query, kind, _failure(query.query_id, None if self.imported else step, failed)
            )
        if result is None:
            return _Outcome(query.query, TO_ASK)
        candidates = [c._replace(text_hash=hashes[c.doc_id]) for c in query.candidates]
        task = Task(0, query.query_id, "", candidates)
        record = permutation_record(task, result, result.ranked.order, self.teacher)
        if self.imported:  # as in an import: the last grade is 0
            record["grades"] = list(reversed(range(len(candidates))))
        after = (list(record["docs"]), result.status, result.repairs)
        if after == query.before and {key for _, key in result.calls} == query.used:
            return _Outcome(query.query, SAME)
        return _Outcome(query.query, NEW if query.before is None else CHANGED, record)

    def _load(self, con: duckdb.DuckDBPyConnection, queries: list[int]) -> list[_Query]:
        found = self._labelled(con, queries)
        found |= self._unlabelled(con, [query for query in queries if query not in found])
        rows = con.execute(
            """SELECT r.query, c.call, c.call_key, c.status, c.reply, c.parsed, c.scores, c.finish_reason, c.tokens_in,
                      c.tokens_out, c.attempt, c.n_missing + c.n_repeated + c.n_out_of_range, s.docs, s.hashes,
                      u.call IS NOT NULL
               FROM requests r JOIN calls c USING (request)
               JOIN (SELECT request, list(doc_id ORDER BY position) AS docs, list(p.text_hash ORDER BY position) AS hashes
                     FROM request_passages p JOIN requests USING (request) JOIN documents USING (document)
                     WHERE teacher = $teacher AND query IN (SELECT unnest($queries)) GROUP BY request) s USING (request)
               LEFT JOIN (SELECT DISTINCT call, query FROM labeling_calls WHERE labeling = $labeling) u
                      ON u.call = c.call AND u.query = r.query
               WHERE r.teacher = $teacher AND r.query IN (SELECT unnest($queries)) ORDER BY c.call""",
            {"teacher": self.of.teacher, "queries": queries, "labeling": self.of.labeling},
        ).fetchall()
        for query, *row in rows:
            if query in found:
                self._add_answer(found[query], row)
        return list(found.values())

    def _add_answer(self, query: _Query, row: list[Any]) -> None:
        (
            call, key, status, reply, parsed, scores, finish, tokens_in, tokens_out, attempt, repairs, docs, hashes, used,
        ) = row  # fmt: skip
        now = stored.reading(self.teacher, status, reply, scores, finish, len(docs))
        if now is not None:
            if (now.status, stored.identifiers(now)) != (status, parsed):
                self.also.append(Change(call, status, now))
            status, parsed, repairs = now.status, stored.identifiers(now), now.repairs
        order = None if parsed is None else [position - 1 for position in parsed]
        detail = clean(reply or "")[:2000]
        answer = Answer(key, status, order, scores, repairs, tokens_in, tokens_out, attempt, detail=detail)
        if used:
            query.used.add(key)
        # Of several answers prefer a complete one, then the one used before.
        worth = (answer.complete, used, call)
        known = query.answers.get(tuple(docs))
        if known is None or known[0] < worth:
            query.answers[tuple(docs)] = (worth, answer, hashes)

    def _labelled(self, con: duckdb.DuckDBPyConnection, queries: list[int]) -> dict[int, _Query]:
        rows = con.execute(
            """SELECT p.query, q.query_id, p.status, p.repairs, list(d.doc_id ORDER BY i.rank),
                      list(i.initial_rank ORDER BY i.rank), list(i.text_hash ORDER BY i.rank)
               FROM permutations p JOIN queries q USING (query) JOIN permutation_items i USING (permutation)
               JOIN documents d USING (document)
               WHERE p.labeling = ? AND p.query IN (SELECT unnest(?)) GROUP BY ALL ORDER BY p.query""",
            [self.of.labeling, queries],
        ).fetchall()
        found = {}
        for query, query_id, status, repairs, docs, initial, hashes in rows:
            shown = [
                Candidate(*c)
                for c in zip(docs, [None] * len(docs), [""] * len(docs), hashes, initial, strict=True)
            ]
            shown.sort(key=lambda candidate: candidate.initial_rank)
            found[query] = _Query(query, query_id, shown, (docs, status, repairs))
        return found

    def _unlabelled(self, con: duckdb.DuckDBPyConnection, queries: list[int]) -> dict[int, _Query]:
        rows = con.execute(
            """SELECT c.query, q.query_id, list(d.doc_id ORDER BY c.rank), list(c.rank ORDER BY c.rank),
                      list(d.text_hash ORDER BY c.rank), any_value(z.step), any_value(z.reason)
               FROM candidates c JOIN queries q USING (query) JOIN documents d USING (document)
               LEFT JOIN (SELECT query, step, reason FROM quarantine WHERE labeling = ?) z
                      ON z.query = c.query
               WHERE c.run = ? AND c.rank <= ? AND c.query IN (SELECT unnest(?)) GROUP BY ALL ORDER BY c.query""",
            [self.of.labeling, self.of.run, self.of.depth, queries],
        ).fetchall()
        return {
            query: _Query(
                query,
                query_id,
                [Candidate(d, None, "", h, rank) for d, h, rank in zip(docs, hashes, ranks, strict=True)],
                None,
                None if reason is None else (step, reason),
            )
            for query, query_id, docs, ranks, hashes, step, reason in rows
        }


def _failure(query_id: str, step: int | None, answer: Answer) -> Record:
    return {
        "t": "quarantine",
        "query_id": query_id,
        "step": step,
        "reason": answer.status,
        "detail": answer.detail,
        "attempts": answer.attempt,
    }


def one_call(n: int) -> Steps:
    """Ask for all passages at once, as in the call of an imported reply."""
    (order,) = yield [tuple(range(n))]
    return Ranked(tuple(order))


def _strategy(name: str, parameters: dict[str, Any]) -> Strategy:
    drawn = {k: v for k, v in parameters.items() if k not in ("depth", "fuse", "shuffle_first")}
    return strategies.strategy(name, **drawn)


def replay(
    steps: Steps, answer: Callable[[Window], Answer | None]
) -> tuple[Result | None, int, Answer | None]:
    """Run a strategy over recorded answers; return (result, step, answer).

    If it cannot finish, the result is None, and the step and answer (None: not recorded) show where it stopped.
    """
    result, step = Result(), 0
    orders: list[Order] | None = None
    while True:
        try:
            windows = next(steps) if orders is None else steps.send(list(orders))
        except StopIteration as end:
            result.ranked = end.value
            if result.ranked.scores is not None:
                result.scores = list(result.ranked.scores)
            return result, step, None
        orders = []
        for place, window in enumerate(windows):
            found = answer(tuple(window))
            if found is None or found.order is None:
                return None, step + place, found
            result.take(step + place, found)
            orders.append(ScoredOrder(found.order, found.scores) if found.scores else found.order)
            alone = step == 0 and len(windows) == 1
            result.scores = scores_by_candidate(tuple(window), found.scores) if alone else None
        step += len(windows)
