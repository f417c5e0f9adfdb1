"""Match teachers, labelings, requests, calls and evaluations of another store with this one's.

Partial labelings of one name unite query by query. If both stores labelled a query with the same order, the row whose calls
and figures are first in text order counts, so the result does not depend on the order of the merges. All calls are kept.
Different orders for a query are a contradiction.
"""

import json
from typing import Any

from labelstore.store.keys import canonical_json
from labelstore.upkeep.merge.maps import RENAME, SHOWN, Contradiction, Maps, shown

VALUE_TOLERANCE = 1e-6  # between values of one measure that two machines computed


def match_labels(maps: Maps) -> None:
    """Make m_teachers, m_labelings, m_permutations, m_requests and m_calls.

    m_permutations has the column take: whether the other store's row counts if both are equal.
    """
    maps.keyed("teachers", "teacher_key")
    maps.con.execute(
        "CREATE OR REPLACE TEMP TABLE p_permutations (other BIGINT, own BIGINT, take BOOLEAN, differs BOOLEAN)"
    )
    maps.match_by_name("labels", "labelings", _of_labeling, _keep_pairs)
    maps.map(
        "permutations",
        """SELECT o.permutation AS other, p.own, coalesce(p.take, false) AS take
           FROM msft_theirs.permutations o LEFT JOIN p_permutations p ON p.other = o.permutation""",
        ", take",
    )
    maps.keyed("requests", "request_key")
    maps.keyed("calls", "call_key")
    replies = maps.rows(
        """SELECT c.call_key, p.status || ' ' || coalesce(p.reply, ''), c.status || ' ' || coalesce(c.reply, ''),
                  count(*) OVER ()
           FROM msft_theirs.calls c JOIN calls p USING (call_key)
           WHERE p.reply IS DISTINCT FROM c.reply OR p.status <> c.status ORDER BY c.call_key LIMIT ?""",
        [SHOWN],
    )
    maps.contradictions += shown(
        "call", "call", replies, "one of them was edited: `msft verify` both, put back a copy of that one"
    )


def _keep_pairs(maps: Maps, other: int, own: int | None) -> None:
    """Add the lists of two labelings to p_permutations."""
    if own is not None:
        _pair(maps, other, own)
        maps.con.execute("INSERT INTO p_permutations FROM paired_permutations")


def _of_labeling(maps: Maps, other: int, name: str, own: int) -> list[Contradiction]:
    (theirs,) = maps.rows(
        """SELECT t.own, d.own, r.own, l.strategy, l.parameters, x.name, d.name, r.name
           FROM msft_theirs.labelings l JOIN m_teachers t ON t.other = l.teacher JOIN msft_theirs.teachers x ON x.teacher = l.teacher
           JOIN m_datasets d ON d.other = l.dataset LEFT JOIN m_runs r ON r.other = l.run WHERE l.labeling = ?""",
        [other],
    )
    (ours,) = maps.rows(
        """SELECT l.teacher, l.dataset, l.run, l.strategy, l.parameters, t.name, d.name, r.name
           FROM labelings l JOIN teachers t USING (teacher) JOIN datasets d ON d.dataset = l.dataset
           LEFT JOIN runs r ON r.run = l.run WHERE l.labeling = ?""",
        [own],
    )
    if _identity(ours) != _identity(theirs):
        return [Contradiction("labels", name, _described(ours), _described(theirs), RENAME)]
    _pair(maps, other, own)
    differing = maps.rows(
        """SELECT q.query_id,
                  (SELECT string_agg(d.doc_id, ' ' ORDER BY i.rank) FROM permutation_items i
                   JOIN documents d USING (document) WHERE i.permutation = p.own AND i.rank <= 10),
                  (SELECT string_agg(d.doc_id, ' ' ORDER BY i.rank) FROM msft_theirs.permutation_items i
                   JOIN msft_theirs.documents d USING (document) WHERE i.permutation = p.other AND i.rank <= 10),
                  count(*) OVER ()
           FROM paired_permutations p JOIN permutations o ON o.permutation = p.own JOIN queries q USING (query)
           WHERE p.differs ORDER BY q.query_id LIMIT ?""",
        [SHOWN],
    )
    return shown("labels", name, differing, RENAME)


def _identity(labeling: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what identifies a labeling: teacher, dataset, run, strategy and, unless it was imported, its parameters."""
    teacher, dataset, run, strategy, parameters, *_ = labeling
    settings = None if strategy == "imported" else canonical_json(json.loads(parameters))
    return teacher, dataset, run, strategy, settings


def _described(labeling: tuple[Any, ...]) -> str:
    *_, strategy, parameters, teacher, dataset, run = labeling
    return f"{teacher} over {dataset}/{run or '-'}, {strategy} {parameters}"


# The other values of an equal permutation's row as one text: its calls by step (none comes last), then its figures.
_FIGURES = """concat_ws(' ', coalesce((SELECT string_agg(c.call_key, ' ' ORDER BY u.step, c.call_key)
        FROM {0}labeling_calls u JOIN {0}calls c USING (call) WHERE u.labeling = {1}.labeling AND u.query = {1}.query), '~'),
    {1}.repairs, {1}.n_calls, {1}.tokens_in, {1}.tokens_out, {1}.disagreement, {1}.settled)"""


def _pair(maps: Maps, other: int, own: int) -> None:
    """Make paired_permutations(other, own, take, differs) of two labelings: queries that both have labelled.

    Permutations are equal if they have the same items and status, on the same texts if both record them.
    """
    maps.con.execute(
        f"""CREATE OR REPLACE TEMP TABLE paired_permutations AS
            SELECT o.permutation AS other, p.permutation AS own,
                   {_FIGURES.format("msft_theirs.", "o")} < {_FIGURES.format("", "p")} AS take,
                   o.content_hash <> p.content_hash OR o.status <> p.status OR texts.permutation IS NOT NULL AS differs
            FROM msft_theirs.permutations o JOIN m_queries m ON m.other = o.query
            JOIN permutations p ON p.query = m.own AND p.labeling = {own}
            LEFT JOIN (SELECT DISTINCT i.permutation
                       FROM msft_theirs.permutations a JOIN m_queries n ON n.other = a.query
                       JOIN permutations b ON b.query = n.own AND b.labeling = {own}
                       JOIN msft_theirs.permutation_items i ON i.permutation = a.permutation
                       JOIN permutation_items j ON j.permutation = b.permutation AND j.rank = i.rank
                       WHERE a.labeling = {other} AND i.text_hash <> j.text_hash) texts ON texts.permutation = o.permutation
            WHERE o.labeling = {other}"""
    )


def match_judgings(maps: Maps) -> None:
    """Make m_judgings: the same name with the same judge over the same pool, and no pair with two grades."""
    maps.match_by_name("judging", "judgings", _of_judging)


def _of_judging(maps: Maps, other: int, name: str, own: int) -> list[Contradiction]:
    found = maps.compared(
        "judging",
        name,
        """SELECT unnest(['dataset', 'judge', 'parameters']),
                  unnest([d.name, t.teacher_key, p.parameters::VARCHAR]),
                  unnest([m.name, x.teacher_key, o.parameters::VARCHAR])
           FROM (FROM judgings WHERE judging = ?) p JOIN datasets d ON d.dataset = p.dataset
                JOIN teachers t ON t.teacher = p.teacher,
                (FROM msft_theirs.judgings WHERE judging = ?) o JOIN m_datasets m ON m.other = o.dataset
                JOIN msft_theirs.teachers x ON x.teacher = o.teacher""",
        [own, other],
    )
    grades = maps.rows(
        """SELECT q.query_id || ' ' || d.doc_id, p.grade, o.grade, count(*) OVER ()
           FROM msft_theirs.llm_judgments o JOIN m_queries mq ON mq.other = o.query
           JOIN m_documents md ON md.other = o.document
           JOIN llm_judgments p ON p.judging = ? AND p.query = mq.own AND p.document = md.own
           JOIN queries q ON q.query = p.query JOIN documents d ON d.document = p.document
           WHERE o.judging = ? AND p.grade <> o.grade ORDER BY 1 LIMIT ?""",
        [own, other, SHOWN],
    )
    return found + shown("judging", name, grades, RENAME)


def match_checkings(maps: Maps) -> None:
    """Make m_checkings: the same name with the same models over the same negatives, and no passage with two verdicts."""
    maps.match_by_name("verdicts", "checkings", _of_checking)


def _of_checking(maps: Maps, other: int, name: str, own: int) -> list[Contradiction]:
    found = maps.compared(
        "verdicts",
        name,
        """SELECT unnest(['dataset', 'model', 'strong model', 'parameters']),
                  unnest([d.name, t.teacher_key, s.teacher_key, p.parameters::VARCHAR]),
                  unnest([m.name, x.teacher_key, y.teacher_key, o.parameters::VARCHAR])
           FROM (FROM checkings WHERE checking = ?) p JOIN datasets d ON d.dataset = p.dataset
                JOIN teachers t ON t.teacher = p.teacher LEFT JOIN teachers s ON s.teacher = p.strong,
                (FROM msft_theirs.checkings WHERE checking = ?) o JOIN m_datasets m ON m.other = o.dataset
                JOIN msft_theirs.teachers x ON x.teacher = o.teacher
                LEFT JOIN msft_theirs.teachers y ON y.teacher = o.strong""",
        [own, other],
    )
    differing = maps.rows(
        """SELECT q.query_id || ' ' || d.doc_id, p.verdict, o.verdict, count(*) OVER ()
           FROM msft_theirs.verdicts o JOIN m_queries mq ON mq.other = o.query
           JOIN m_documents md ON md.other = o.document
           JOIN verdicts p ON p.checking = ? AND p.query = mq.own AND p.document = md.own AND p.stage = o.stage
           JOIN queries q ON q.query = p.query JOIN documents d ON d.document = p.document
           WHERE o.checking = ? AND p.verdict <> o.verdict ORDER BY 1 LIMIT ?""",
        [own, other, SHOWN],
    )
    return found + shown("verdicts", name, differing, RENAME)


def match_evaluations(maps: Maps) -> None:
    """Make m_evaluations: the same ranking, judgments and measure make the same evaluation."""
    maps.con.execute(
        """CREATE OR REPLACE TEMP TABLE p_evaluations AS
           SELECT e.evaluation AS other, p.evaluation AS own, e.value AS there, p.value AS here, d.name AS dataset,
                  coalesce(r.name, l.name) AS system, e.measure
           FROM msft_theirs.evaluations e JOIN m_datasets d ON d.other = e.dataset
           LEFT JOIN m_runs r ON r.other = e.run LEFT JOIN m_labelings l ON l.other = e.labeling
           LEFT JOIN evaluations p ON p.dataset = d.own AND p.run IS NOT DISTINCT FROM r.own
                AND p.labeling IS NOT DISTINCT FROM l.own AND p.run_hash = e.run_hash
                AND p.qrels_hash = e.qrels_hash AND p.measure = e.measure"""
    )
    differing = maps.rows(
        """SELECT concat_ws(' ', dataset, system, measure), here, there, count(*) OVER () FROM p_evaluations
           WHERE abs(here - there) > ? ORDER BY 1 LIMIT ?""",
        [VALUE_TOLERANCE, SHOWN],
    )
    hint = "one of them is wrong: `msft eval` measures again where it was deleted (`msft sql --write`)"
    maps.contradictions += shown("evaluation", "of", differing, hint)
    maps.map("evaluations", "SELECT other, own FROM p_evaluations")
