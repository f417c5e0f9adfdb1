"""Canaries of a labelling job: asked before it begins, kept in the journal, compared with the store's first ones."""

from collections.abc import Callable, Mapping

import duckdb

from labelstore import keys
from teachers import canary
from teachers.budget import Budget
from teachers.engines.base import Completion, Engine, Request
from teachers.generate.calls import Labelling, Rendering
from teachers.generate.work import Candidate, Task


def requests(rendering: Rendering, number: int) -> list[Request]:
    """The first `number` questions as this teacher is asked."""
    made = []
    for k, (query, passages) in enumerate(canary.QUESTIONS[:number]):
        shown = [
            Candidate(f"canary-{k}-{i}", None, text, keys.text_hash(None, text), i + 1)
            for i, text in enumerate(passages)
        ]
        made.append(rendering.request(Task(-1 - k, f"canary-{k}", query, shown), tuple(range(len(shown))))[0])
    return made


def first_answers(con: duckdb.DuckDBPyConnection, teacher_key: str) -> dict[str, str]:
    """Request key -> reply hash of a teacher's first canaries."""
    return dict(
        con.execute(
            """SELECT c.request_key, arg_min(c.reply_hash, c.job) FROM canaries c JOIN teachers t USING (teacher)
               WHERE t.teacher_key = ? GROUP BY 1""",
            [teacher_key],
        ).fetchall()
    )


def sing(
    engine: Engine,
    job: Labelling,
    number: int,
    first: Mapping[str, str],
    budget: Budget,
    note: Callable[[str], None],
) -> int:
    """Ask the canaries and journal their answers; the number that drifted.

    Their tokens count towards the budget, their number does not: it limits calls that label.

    Raises:
        TeacherError: if the engine does not answer.
    """

    def read(request: Request, completion: Completion) -> str | None:
        if completion.error is not None:
            return None
        if job.rendering.teacher.reading == "text":
            return completion.text
        parsed, _ = job.read(request, completion, len(request.identifiers or request.passages))
        return None if parsed.order is None else " ".join(map(str, parsed.order))

    asked = requests(job.rendering, number)
    if not budget.charge(sum(r.n_prompt_tokens for r in asked), sum(r.max_tokens for r in asked)):
        note("the budget has no room for canaries: left out")
        return 0
    heard = canary.ask(engine, asked, read, first)
    for sung in heard:
        job.journal.append(
            {"t": "canary", "request": sung.request_key, "reply_hash": sung.reply_hash, "reply": sung.reply}
        )
    drifted = sum(bool(sung.drifted) for sung in heard)
    if drifted:
        note(
            f"warning: {drifted} of {len(heard)} canaries are answered otherwise than the first time: the model, its"
            " server or its engine has changed; labels from before and from now on are not one set (table canaries)"
        )
    if len(heard) < len(asked):
        note(f"{len(asked) - len(heard)} of {len(asked)} canaries failed")
    return drifted
