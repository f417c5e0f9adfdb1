"""Read scores: those of an engine that scores pairs, and those that the first token's probabilities hold."""

import math
from collections.abc import Iterable, Mapping, Sequence

from teachers.prompts.replies import OK, REPAIRED, WRONG_FORMAT, Parsed

Scores = list[float | None]
LEAST = -100.0  # lowest bound of a log-probability; servers write impossible tokens as -9999


def read_scores(scores: Sequence[float] | None, n: int) -> tuple[Parsed, Scores | None]:
    """Turn a score per passage into an order; ties keep the prior order, a NaN makes the call unusable."""
    if scores is None or len(scores) != n or any(score != score for score in scores):
        return Parsed(None, WRONG_FORMAT), None
    order = sorted(range(n), key=lambda position: -scores[position])
    return Parsed(tuple(order), OK), [float(score) for score in scores]


def identifier_scores(logprobs: Mapping[str, float] | None, identifiers: Sequence[str]) -> Scores | None:
    """Return each identifier's log-probability at the first generated position.

    The engine reports the alternatives by identifier. If identifiers share a first token (1 and 10 with split digits),
    the engine reports neither of them.
    """
    if not logprobs:
        return None
    return [logprobs.get(identifier) for identifier in identifiers]


# ------------------------------------------------------------------------------------------------- one passage's score
def read_answers(
    logprobs: Mapping[str, float] | None, floor: float | None, answers: Sequence[str], reads: str
) -> tuple[Parsed, Scores | None]:
    """Read a passage's score from the log-probabilities of the answers to it.

    An answer that the engine does not report is at most as likely as `floor`. Log-odds then use that bound, and the call is
    ``repaired`` with one missing answer; an expected value leaves the answer out. Without any answer, or without a bound where
    one is needed, the call is ``wrong_format`` and has no score.

    Args:
        logprobs: answer -> log-probability (``logit``: the logit), over all tokens that spell it.
        reads: as in :class:`teachers.prompts.template.Template`.
    """
    known = {a: v for a in answers if (v := (logprobs or {}).get(a)) is not None and math.isfinite(v)}
    missing = len(answers) - len(known)
    score: float | None = None
    if reads == "expected" and known:
        top = max(known.values())
        weights = {answer: math.exp(value - top) for answer, value in known.items()}
        score = sum(float(answer) * weight for answer, weight in weights.items()) / sum(weights.values())
    elif reads == "logit" and known:
        score = known[answers[0]]
    elif reads == "log-odds" and known and (not missing or floor is not None):
        yes, no = (known.get(answer, floor) for answer in answers)
        score = None if yes is None or no is None else yes - no
    if score is None:
        return Parsed(None, WRONG_FORMAT, n_missing=missing), None
    return Parsed((0,), REPAIRED if missing else OK, n_missing=missing), [score]


def read_labels(
    logprobs: Mapping[str, float] | None, floor: float | None, labels: Sequence[str]
) -> tuple[Parsed, Scores | None]:
    """Read an order and scores from the log-probabilities of the passages' labels (setwise by likelihood, duoT5).

    A label that the engine does not report gets `floor`, the highest value that it can have; the call is then ``repaired``.
    Equal values keep the order shown. Without any label, or without a bound where one is needed, the call is ``wrong_format``.
    """
    known = [v if v is not None and math.isfinite(v) else None for v in map((logprobs or {}).get, labels)]
    missing = known.count(None)
    if missing == len(labels) or (missing and floor is None):
        return Parsed(None, WRONG_FORMAT, n_missing=missing), None
    values = [floor or 0.0 if value is None else value for value in known]
    order = sorted(range(len(labels)), key=lambda place: -values[place])
    return Parsed(tuple(order), REPAIRED if missing else OK, n_missing=missing), list(values)


def by_answer(
    logprobs: Mapping[str, float], answers: Sequence[str], spelling: str
) -> tuple[dict[str, float], float]:
    """Add up a server's alternatives by answer; also return the highest log-probability that another token can have.

    Args:
        logprobs: token text -> log-probability.
        spelling: as in :class:`teachers.prompts.template.Template`.
    """
    spelt = ((answer_of(token, answers, spelling), value) for token, value in logprobs.items())
    left = 1.0 - sum(math.exp(value) for value in logprobs.values() if value <= 0)
    floor = max(min(min(logprobs.values()), math.log(max(left, 1e-9))), LEAST)
    return summed(spelt), floor


def answer_of(token: str, answers: Sequence[str], spelling: str) -> str | None:
    """Return the answer that a token spells."""
    if spelling == "exact":
        return token if token in answers else None
    plain = token.replace("▁", " ").replace("Ġ", " ").strip()
    if spelling == "cased":
        return plain if plain in answers else None
    return next((answer for answer in answers if answer.casefold() == plain.casefold()), None)


def summed(spelt: Iterable[tuple[str | None, float]]) -> dict[str, float]:
    """Add up the probabilities of each answer's tokens, given as logarithms; pairs without an answer are left out."""
    found: dict[str, list[float]] = {}
    for answer, value in spelt:
        if answer is not None and math.isfinite(value):
            found.setdefault(answer, []).append(value)
    return {answer: _log_of_sum(values) for answer, values in found.items()}


def highest(named: Iterable[tuple[str | None, float]]) -> dict[str, float]:
    """Return each identifier's highest value; pairs without an identifier are left out."""
    found: dict[str, float] = {}
    for identifier, value in named:
        if identifier is not None:
            found[identifier] = max(value, found.get(identifier, -math.inf))
    return found


def _log_of_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))
