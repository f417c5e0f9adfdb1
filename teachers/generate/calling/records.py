"""The records of a call and of a query's merged order: plain values for the journal, and the scheduler's answer."""

from collections.abc import Sequence
from datetime import UTC, datetime

from teachers.engines.base import Completion, Request
from teachers.generate.calling.teacher import Teacher
from teachers.generate.worklist import Task
from teachers.journal.exact_json import clean
from teachers.journal.segments import Record
from teachers.prompts import replies
from teachers.scheduling.job import Answer, Result
from teachers.strategies.by_name import Window

Scores = list[float | None] | None


def answered(key: str, done: Completion, attempt: int, parsed: replies.Parsed, found: Scores) -> Answer:
    """Make the answer that the scheduler takes from a completed call."""
    return Answer(
        call_key=key,
        status=parsed.status,
        order=list(parsed.order) if parsed.order is not None else None,
        scores=found,
        repairs=parsed.repairs,
        tokens_in=done.tokens_in,
        tokens_out=done.tokens_out,
        attempt=attempt,
        retryable=done.error is None or done.retryable,
        retry_after=done.retry_after,
        detail=clean(done.error or done.text or "")[:2000],
    )


def call_record(
    *,
    call_key: str,
    task: Task,
    window: Window,
    request: Request,
    completion: Completion,
    attempt: int,
    parsed: replies.Parsed,
    scores: Scores,
    job_key: str,
    words: int | None,
) -> Record:
    """Make the journal record of a completed call, with text ids and content keys, so that any store can merge it."""
    doc_ids, _, _, hashes, *_ = zip(*map(task.candidates.__getitem__, window), strict=True)
    return {
        "t": "call",
        "key": call_key,
        "request": request.key,
        "job": job_key,
        "query_id": task.query_id,
        "docs": doc_ids,
        "hashes": hashes,
        "prompt_tokens": request.n_prompt_tokens,
        "words": words,
        "attempt": attempt,
        "sample": request.sample,
        "status": parsed.status,
        "reply": _clean(completion.error if completion.error is not None else completion.text),
        "parsed": [position + 1 for position in parsed.order] if parsed.order is not None else None,
        "scores": scores,
        "missing": parsed.n_missing,
        "repeated": parsed.n_repeated,
        "out_of_range": parsed.n_out_of_range,
        "finish": _finish(completion),
        "in": completion.tokens_in,
        "out": completion.tokens_out,
        "seconds": round(completion.seconds, 6),
        "server": completion.server,
        "retryable": completion.error is None or completion.retryable,
        "at": datetime.now(UTC).isoformat(),
    }


def _clean(text: str | None) -> str | None:
    return None if text is None else clean(text)


# Added to a row's finish reason.
OWN_COUNTS = "tokens counted here"
THOUGHT = "thought of "


def _finish(completion: Completion) -> str | None:
    """Return the engine's finish reason, with marks for a thought, and for token counts that are not the server's."""
    if not (completion.thought_tokens or completion.own_counts):
        return completion.finish_reason or None
    thought = f"{THOUGHT}{completion.thought_tokens} tokens" if completion.thought_tokens else None
    marks = (completion.finish_reason, thought, OWN_COUNTS if completion.own_counts else None)
    return "; ".join(filter(None, marks)) or None


def engine_reason(finish: str | None) -> str | None:
    """Return the engine's finish reason from a row's."""
    parts = (finish or "").split("; ")
    return "; ".join(p for p in parts if p != OWN_COUNTS and not p.startswith(THOUGHT)) or None


def permutation_record(task: Task, result: Result, order: Sequence[int], teacher: Teacher) -> Record:
    """Make the journal record of a query's merged order."""
    doc_ids, _, _, hashes, initial, _ = zip(*map(task.candidates.__getitem__, order), strict=True)
    return {
        "t": "permutation",
        "query_id": task.query_id,
        "docs": doc_ids,
        "hashes": hashes,
        "initial": initial,
        "scores": None if result.scores is None else [result.scores[index] for index in order],
        "status": result.status,
        "repairs": result.repairs,
        "calls": result.calls,
        "in": result.tokens_in,
        "out": result.tokens_out,
        "disagreement": result.ranked.disagreement,
        "settled": settled(result, teacher.sampling.top),
    }


def settled(result: Result, top: int | None) -> int | None:
    """Return how many first places the teacher decided: the strategy's settled places, at most `top`."""
    known = [places for places in (result.ranked.settled, top) if places is not None]
    least = min(known, default=None)
    return least if least is not None and least < len(result.ranked.order) else None
