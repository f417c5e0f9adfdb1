"""A teacher as its calls see it: the model, its prompt, and how replies are drawn and read."""

from dataclasses import dataclass

from teachers.engines.base import Sampling
from teachers.generate.calling.examples import Example
from teachers.prompts import template as prompts


@dataclass(frozen=True)
class Teacher:
    """A model with its prompt and sampling: together with the passages, they determine a reply.

    Attributes:
        key: content key (the store's ``teacher_key``).
        revision: revision of the weights; enters every request key.
        template: the prompt's template; None for engines that score pairs without a prompt.
        context: most tokens of prompt and reply together; None if unknown.
        keep_thoughts: whether a thinking model's thoughts are stored with its replies.
        renders: whether the prompt's token ids are made here (and keyed); a server may use another chat template.
        examples: judged queries before the question, and a spare one; empty without examples.
        reading: ``text`` (a list in the grammar), ``choice`` (the best passage), ``first`` (letters ranked by the first
            token's log-probabilities), ``labels`` (the same, with bounds for labels that a server leaves out), ``answers`` (a
            passage's score by them) or ``scores`` (a score per passage).
    """

    key: str
    revision: str
    template: prompts.Template | None
    sampling: Sampling
    context: int | None = None
    reading: str = "text"
    renders: bool = True
    keep_thoughts: bool = False
    examples: tuple[Example, ...] = ()
