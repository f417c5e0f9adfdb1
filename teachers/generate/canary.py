"""Canaries of a labelling job: fixed questions asked before it begins, to detect a changed model."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import duckdb

from labelstore.store import keys
from teachers.engines.base import Completion, Engine, Request
from teachers.errors import ExitCode, TeacherError
from teachers.generate.calling import reading
from teachers.generate.calls import Labelling, Rendering
from teachers.generate.worklist import Candidate, Task
from teachers.prompts import thoughts
from teachers.scheduling.budget import Budget


def requests(rendering: Rendering, number: int) -> list[Request]:
    """Return the first `number` canary questions as requests to this teacher."""
    made = []
    template = rendering.teacher.template
    most = None if template is None else template.most
    for k, (query, listed) in enumerate(QUESTIONS[:number]):
        passages = listed[:most]  # as many as the prompt can show
        shown = [
            Candidate(f"canary-{k}-{i}", None, text, keys.text_hash(None, text), i + 1, 10.0 - i)
            for i, text in enumerate(passages)
        ]
        made.append(rendering.request(Task(-1 - k, f"canary-{k}", query, shown), tuple(range(len(shown))))[0])
    return made


def first_answers(con: duckdb.DuckDBPyConnection, teacher_key: str) -> dict[str, str]:
    """Return request key -> reply hash of a teacher's first canaries."""
    return dict(
        con.execute(
            """SELECT c.request_key, arg_min(c.reply_hash, c.job) FROM canaries c JOIN teachers t USING (teacher)
               WHERE t.teacher_key = ? GROUP BY 1""",
            [teacher_key],
        ).fetchall()
    )


def run_canaries(
    engine: Engine,
    job: Labelling,
    number: int,
    first: Mapping[str, str],
    budget: Budget,
    note: Callable[[str], None],
) -> int:
    """Ask the canaries and record their answers in the journal; return the number that drifted.

    Their tokens count towards the budget, but they do not count as calls, because that limit is for calls that label.

    Raises:
        TeacherError: if the engine does not answer.
    """

    def read(request: Request, completion: Completion) -> str | None:
        if completion.error is not None:
            return None
        template = job.rendering.teacher.template
        if template is not None and template.thinks:
            return thoughts.split(completion.text or "").answer
        if job.rendering.teacher.reading in ("text", "answers", "choice"):
            return completion.text
        parsed, _ = reading.read(
            job.rendering.teacher, request, completion, len(request.identifiers or request.passages)
        )
        return None if parsed.order is None else " ".join(map(str, parsed.order))

    asked = requests(job.rendering, number)
    if not budget.charge(sum(r.n_prompt_tokens for r in asked), sum(r.max_tokens for r in asked)):
        note("the budget has no room for canaries: left out")
        return 0
    heard = ask(engine, asked, read, first)
    for answer in heard:
        job.journal.append(
            {
                "t": "canary",
                "request": answer.request_key,
                "reply_hash": answer.reply_hash,
                "reply": answer.reply,
            }
        )
    drifted = sum(bool(answer.drifted) for answer in heard)
    if drifted:
        note(
            f"warning: {drifted} of {len(heard)} canaries are answered differently than the first time: the model, its"
            " server or its engine has changed; labels from before and from now on are not one set (table canaries)"
        )
    if len(heard) < len(asked):
        note(f"{len(asked) - len(heard)} of {len(asked)} canaries failed")
    return drifted


TIMEOUT = 600.0  # seconds for all canaries together; a server's first call may load its model

QUESTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "why does the sky look blue at noon",
        (
            "Bread rises because yeast turns sugar into carbon dioxide, which the dough holds.",
            "Air molecules scatter short wavelengths more strongly than long ones, so blue light reaches us from all sides.",
            "The sky over a city at night may glow orange from street lamps.",
            "Rayleigh scattering grows with the fourth power of the frequency of light.",
            "Blue paint was made from ground lapis lazuli until the nineteenth century.",
        ),
    ),
    (
        "how long do honey bees live",
        (
            "A worker bee of the summer lives five to six weeks, one of the winter several months.",
            "Honey keeps for years when it is closed from the air.",
            "Queens may live three to five years and lay up to two thousand eggs a day.",
            "Bumble bees nest in the ground and their colonies die in autumn.",
            "Bees have two pairs of wings that beat about two hundred times a second.",
            "The hive's temperature is held near thirty-five degrees.",
        ),
    ),
    (
        "capital of the roman province of britain",
        (
            "Colchester, the Roman Camulodunum, was the first capital of the province.",
            "The wall of Hadrian runs from the Tyne to the Solway.",
            "Londinium became the seat of the governor before the end of the first century.",
            "Bath was known for its hot springs.",
        ),
    ),
)


@dataclass(frozen=True)
class CanaryAnswer:
    """The answer to one canary.

    Attributes:
        drifted: whether it differs from the first recorded answer; None if none was recorded.
    """

    request_key: str
    reply: str
    reply_hash: str
    drifted: bool | None


def ask(
    engine: Engine,
    requests: Sequence[Request],
    read: Callable[[Request, Completion], str | None],
    first: Mapping[str, str],
) -> list[CanaryAnswer]:
    """Ask all questions at once and compare the answers with the first recorded answers.

    Args:
        read: returns the part of an answer that should stay the same; None for a failed answer, which is not compared.
        first: request key -> reply hash of the first recorded answer.

    Raises:
        TeacherError: if the engine fails for good, or has not answered in ten minutes.
    """
    waiting = {}
    for ticket, request in enumerate(requests, start=1):
        request.ticket = -ticket
        waiting[-ticket] = request
    engine.submit(list(requests))
    deadline = time.monotonic() + TIMEOUT
    answers: dict[str, CanaryAnswer] = {}
    while waiting:
        for completion in engine.poll(1.0):
            request = waiting.pop(completion.ticket)
            reply = read(request, completion)
            if reply is None:
                continue
            own = hashlib.blake2b(reply.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
            known = first.get(request.key)
            answers[request.key] = CanaryAnswer(
                request.key, reply, own, None if known is None else known != own
            )
        if waiting and time.monotonic() > deadline:
            raise TeacherError(
                f"the model has not answered {len(waiting)} questions in {TIMEOUT:.0f} s",
                hint="check whether the server is overloaded, or start without canaries: --canaries 0",
                exit_code=ExitCode.TEACHER_ENGINE,
            )
    return [answers[request.key] for request in requests if request.key in answers]
