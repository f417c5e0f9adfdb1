"""Few-shot examples: judged queries of the store with their passages, before the question; none of a test set."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import duckdb

from labelstore.errors import DataMissing
from labelstore.generated import store as generated
from labelstore.store import keys, lookup
from labelstore.views import leakage
from teachers.prompts import passages as texts
from teachers.prompts.template import Message, Template

WORDS = 100  # most words of a passage in an example
PASSAGES = 4  # of an example for a list or a choice

# A judged query's passages: the judged ones, and those that a first stage found and nobody judged, which count as 0.
_PASSAGES = """
SELECT query, doc_id, title, text, grade, md5(concat(?, ':', doc_id)) AS place FROM (
    SELECT r.query, d.doc_id, d.title, d.text, greatest(r.relevance, 0) AS grade, 0 AS found
    FROM qrels r JOIN documents d USING (document) WHERE r.dataset = ?
    UNION ALL
    SELECT c.query, d.doc_id, d.title, d.text, 0, 1 FROM candidates c JOIN runs s USING (run) JOIN documents d USING (document)
    WHERE s.dataset = ? AND s.kind IN ('first_stage', 'imported')
      AND NOT EXISTS (SELECT 1 FROM qrels r WHERE r.dataset = s.dataset AND r.query = c.query AND r.document = c.document)
) WHERE text IS NOT NULL AND trim(text) <> ''
QUALIFY row_number() OVER (PARTITION BY query, grade > 0 ORDER BY grade DESC, found, place) <= 3"""


@dataclass(frozen=True)
class Example:
    """A judged query and some of its passages: (title, text, grade), in the order in which they are shown."""

    query: str
    passages: tuple[tuple[str | None, str, int], ...]

    @property
    def normal_hash(self) -> int:
        return keys.normal_hash(self.query)


def draw(con: duckdb.DuckDBPyConnection, name: str, shots: int, seed: int) -> tuple[Example, ...]:
    """Draw examples, and a spare one for a question that is itself among them.

    Raises:
        UsageError: the dataset is a test set.
        DataMissing: it has too few judged queries with a relevant passage and another one.
    """
    of = lookup.dataset(con, name)
    generated.refuse_test_set(of.role, of.name)
    leakage.protect(con, allow_overlap=False)
    rows = con.execute(
        f"""SELECT any_value(q.text), list([p.title, p.text, p.grade::VARCHAR] ORDER BY md5(concat(?, q.query_id, ':', p.doc_id)))
            FROM ({_PASSAGES}) p JOIN queries q USING (query)
            WHERE q.normal_hash NOT IN (SELECT normal_hash FROM protected)
            GROUP BY p.query HAVING max(p.grade) > 0 AND min(p.grade) = 0
            ORDER BY md5(concat(?, ':', any_value(q.query_id))), p.query LIMIT ?""",
        [seed, seed, of.dataset, of.dataset, seed, shots + 1],
    ).fetchall()
    if len(rows) < shots + 1:
        raise DataMissing(
            f"--examples {of.name}: {len(rows)} judged queries have a relevant passage and another one; {shots + 1} are needed,"
            " since one is a spare",
            hint="give fewer --shots, or another dataset with judgments and a run",
        )
    return tuple(Example(query, _few(found)) for query, found in rows)


def _few(found: Sequence[Sequence[str | None]]) -> tuple[tuple[str | None, str, int], ...]:
    """Keep a few passages in their drawn order, one relevant passage and one other at least."""
    named = [(title, str(text), int(str(grade))) for title, text, grade in found]
    best = max(named, key=lambda p: p[2])
    other = next(p for p in named if p[2] == 0)
    rest = [p for p in named if p is not best and p is not other][: PASSAGES - 2]
    return tuple(p for p in named if p is best or p is other or p in rest)


def key(examples: Sequence[Example]) -> str:
    """Return a hash over the examples, which is part of the teacher's key."""
    digest = hashlib.blake2b(b"msft:examples:", digest_size=16)
    for example in examples:
        digest.update(repr((example.query, example.passages)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def messages(
    template: Template, examples: Sequence[Example], neutralise: texts.Neutraliser, fix: Callable[[str], str]
) -> list[list[Message]]:
    """Write each example as the turns of a question with its right answer.

    Args:
        fix: a last step over each passage's text.
    """
    made = []
    for number, example in enumerate(examples):
        query = texts.query(example.query, neutralise)
        shown = list(example.passages)
        if template.pointwise:  # relevant and other passages take turns
            relevant = [p for p in shown if (p[2] > 0) == (number % 2 == 0)]
            shown = relevant[:1]
        if template.most == 2:
            pair = (max(shown, key=lambda p: p[2]), next(p for p in shown if p[2] == 0))
            shown = [p for p in shown if p in pair]
        prepared = [fix(texts.passage(title, text, neutralise, WORDS)) for title, text, _ in shown]
        asked = [turn for turn in template.render(query, prepared) if turn["role"] != "system"]
        made.append([*asked, {"role": "assistant", "content": _answer(template, [p[2] for p in shown])}])
    return made


def _answer(template: Template, grades: Sequence[int]) -> str:
    """Write the reply that the grades of the shown passages ask for."""
    if template.pointwise:
        return template.answers[0] if grades[0] > 0 else template.answers[1]
    order = sorted(range(len(grades)), key=lambda place: -grades[place])
    if template.reads == "choice":
        return f"{template.prefill} {template.identifier(order[0] + 1)}".strip()
    ranking = template.ranking(order)
    return ranking if template.wrapped is None else f"{template.wrapped[0]} {ranking} {template.wrapped[1]}"
