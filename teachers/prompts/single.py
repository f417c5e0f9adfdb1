"""Prompts that show one passage, and ask for a query that it answers or for its grade; or negatives beside a positive.

The files lie in ``templates/single/``; they are templates as in :mod:`teachers.prompts.template`, with ``{passage}``,
``{query}`` for a judge, and ``{examples}`` where examples of the store can stand. A released file never changes.

Sources: InPars' ``templates.yaml``, Promptagator's form, UMBRELA's ``qrel_zeroshot_bing`` and ``qrel_zeroshot_basic``. The
prompts for verdicts ask in RLHN's form (arXiv 2505.16967), in words of this project.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from teachers.errors import ExitCode, TeacherError
from teachers.prompts.template import Template, parse_template

GENERATE, JUDGE, CHECK = "generate", "judge", "check"
QUERY_TOKENS = 64  # of a reply with one query, as InPars has it
GRADE_TOKENS = 100  # of a reply with a grade, as UMBRELA has it
EXPLANATION_TOKENS = 600
VERDICT_TOKENS = 2048  # of reasons and a comparison for each document, and the verdict


@dataclass(frozen=True)
class Single:
    """What a prompt asks for, how long its replies are, and whether it takes examples of the store.

    Attributes:
        reply_tokens: for each query that is wanted, if the prompt is styled.
        examples: ``needs`` (few-shot), ``takes``, or ``none`` (it has its own, or none).
        styled: whether it says how many queries are wanted, and of which style.
    """

    task: str
    reply_tokens: int
    examples: str = "none"
    styled: bool = False


PROMPTS = {
    "inpars@1": Single(GENERATE, QUERY_TOKENS),
    "inpars-gbq@1": Single(GENERATE, QUERY_TOKENS),
    "promptagator@1": Single(GENERATE, QUERY_TOKENS, "needs"),
    "question@1": Single(GENERATE, QUERY_TOKENS, "takes"),
    "queries@1": Single(GENERATE, QUERY_TOKENS, "takes", styled=True),
    "umbrela@1": Single(JUDGE, GRADE_TOKENS),
    "umbrela-basic@1": Single(JUDGE, EXPLANATION_TOKENS),
    "rating@1": Single(JUDGE, GRADE_TOKENS),
    "rlhn@1": Single(CHECK, VERDICT_TOKENS),
}


# Styles of queries, and what a prompt says of them.
STYLES = {
    "keyword": "Each query is two to five keywords, without a verb.",
    "question": "Each query is a complete question of one sentence.",
    "long": "Each query describes the need of a person in detail, in 15 to 30 words.",
}
MOST_QUERIES = 20  # of a reply


def names(task: str) -> list[str]:
    """List the prompts of a task as ``NAME@VERSION``."""
    return [ident for ident, form in PROMPTS.items() if form.task == task]


def ident(name: str, task: str) -> str:
    """Complete ``NAME`` to its newest ``NAME@VERSION``.

    Raises:
        TeacherError: no prompt of this task has the name.
    """
    found = [full for full in names(task) if name in (full, full.rpartition("@")[0])]
    if not found:
        raise TeacherError(
            f"no prompt named {name!r} that can {task}",
            hint=f"--prompt {' | '.join(names(task))}",
            exit_code=ExitCode.USAGE,
        )
    return found[-1]


@cache
def prompt(
    full: str, examples: tuple[tuple[str, str], ...] = (), style: str = "question", wanted: int = 1
) -> Template:
    """Read a prompt by ``NAME@VERSION``.

    Args:
        examples: (passage, query) pairs, prepared as passages are; they enter the hash.
        style, wanted: of the queries, for a prompt that is styled; they enter the hash.

    Raises:
        TeacherError: the prompt takes no examples, or needs some.
    """
    form = PROMPTS[full]
    if examples and form.examples == "none":
        raise TeacherError(
            f"{full} has its own examples",
            hint="leave out --examples, or --prompt promptagator@1",
            exit_code=ExitCode.USAGE,
        )
    if not examples and form.examples == "needs":
        raise TeacherError(
            f"{full} shows judged queries as examples, and none are named",
            hint="--examples DATASET, or --prompt inpars@1",
            exit_code=ExitCode.USAGE,
        )
    name, _, version = full.rpartition("@")
    data = files("teachers").joinpath("templates", "single", f"{full}.txt").read_bytes()
    if form.styled:
        number = "one query" if wanted == 1 else f"{wanted} different queries"
        data = data.replace(b"{wanted}", number.encode()).replace(b"{style}", STYLES[style].encode())
    made = Template(
        name=name,
        version=int(version),
        turns=parse_template(data.decode("utf-8")),
        hash=_hash(data),
        reply_tokens=form.reply_tokens * (wanted if form.styled else 1),
        beside=form.task == CHECK,
        entry="Doc ({identifier}): {passage}" if form.task == CHECK else Template.entry,
    )
    if not examples:
        return made
    shown = written(examples)
    return replace(made, examples=shown, hash=_hash(data + b"\x00" + shown.encode("utf-8", "surrogatepass")))


def written(examples: Sequence[tuple[str, str]]) -> str:
    """Write examples as they stand in a prompt."""
    return "".join(f"Document: {passage}\nQuery: {query}\n\n" for passage, query in examples)


def _hash(data: bytes) -> str:
    return hashlib.blake2b(b"msft:prompt:single:" + data, digest_size=16).hexdigest()
