"""Forecast a job before its first call: calls, tokens, money, time.

The number of calls comes from the strategy. For prompt tokens, the windows are rendered with the model's tokenizer.
Each reply is assumed to keep its window's order. If an earlier job has the answer on record, that answer is used, and
the call is not counted. The result is exact for strategies whose windows do not depend on replies. A sliding window
may carry other passages on than assumed; this changes the sum by the difference of their lengths. With more than a few
hundred queries a sample is rendered, and the forecast includes the standard error.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from teachers.engines.base import Request
from teachers.scheduling.job import Answer
from teachers.strategies.by_name import Order, Strategy, Window

SAMPLE = 300


@dataclass(frozen=True)
class Forecast:
    """The forecast of a job.

    Attributes:
        queries: number of queries without labels.
        calls_least, calls_most: equal unless the number depends on the replies.
        recorded: calls already answered by earlier jobs, not counted.
        tokens_in: prompt tokens (of the most calls, if the number depends on the replies).
        tokens_in_error: standard error of `tokens_in` from a sample of queries; 0 if all were rendered.
        tokens_out_most: output tokens if each reply takes all the tokens reserved for it.
        unrenderable: queries whose prompt cannot fit the context.
    """

    queries: int
    calls_least: int
    calls_most: int
    recorded: int
    tokens_in: int
    tokens_in_error: int
    tokens_out_most: int
    unrenderable: int = 0


@dataclass
class _Sum:
    """Calls and tokens of one query."""

    calls: int = 0
    known: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    fits: bool = True


def forecast(
    strategy: Strategy,
    lengths: Sequence[int],
    render: Callable[[int, Window], Request | None],
    known: Callable[[Request], Answer | None] = lambda request: None,
    *,
    sample: int = SAMPLE,
    seed: int = 0,
) -> Forecast:
    """Forecast calls and tokens of a strategy over lists of these lengths.

    Args:
        render: (list, window) -> its request; None if no prompt can be made.
        known: returns the recorded answer to a request.
        sample: most lists to render.
    """
    numbers = list(range(len(lengths)))
    if len(numbers) > sample:
        numbers = sorted(Random(seed).sample(numbers, sample))
    sums = [_walk(strategy, number, lengths[number], render, known) for number in numbers]
    bounds = [strategy.calls(n) for n in lengths]
    recorded = sum(s.known for s in sums)
    least, most = sum(b.least for b in bounds), sum(b.most for b in bounds)
    if len(numbers) == len(lengths):
        taken = sum(s.known for s in sums) + sum(
            strategy.calls(lengths[n]).most for n, s in zip(numbers, sums, strict=True) if not s.fits
        )
        scale, error = 1.0, 0.0
    else:
        taken = round(recorded * len(lengths) / len(numbers))
        scale, error = _scale(strategy, lengths, numbers, sums)
        recorded = taken
    # The walk may have made fewer calls than replies can cause; the others are charged at the mean.
    walked = sum(s.calls for s in sums)
    expected = sum(
        strategy.calls(lengths[n]).most - s.known for n, s in zip(numbers, sums, strict=True) if s.fits
    )
    stretch = expected / walked if walked else 1.0
    return Forecast(
        queries=len(lengths),
        calls_least=max(least - taken, 0),
        calls_most=max(most - taken, 0),
        recorded=recorded,
        tokens_in=round(sum(s.tokens_in for s in sums) * scale * stretch),
        tokens_in_error=round(error * stretch),
        tokens_out_most=round(sum(s.tokens_out for s in sums) * scale * stretch),
        unrenderable=sum(not s.fits for s in sums),
    )


def _walk(
    strategy: Strategy,
    number: int,
    n: int,
    render: Callable[[int, Window], Request | None],
    known: Callable[[Request], Answer | None],
) -> _Sum:
    """Run the strategy over one list; replies come from the record or keep the order."""
    total = _Sum()
    steps = strategy.steps(n)
    try:
        windows = next(steps)
        while True:
            orders: list[Order] = []
            for window in windows:
                request = render(number, tuple(window))
                if request is None:
                    return _Sum(known=total.known, fits=False)
                answer = known(request)
                if answer is not None and answer.order is not None:
                    total.known += 1
                    orders.append(answer.order)
                    continue
                total.calls += 1
                total.tokens_in += request.n_prompt_tokens
                total.tokens_out += request.max_tokens
                orders.append(range(len(window)))
            windows = steps.send(orders)
    except StopIteration:
        return total


def _scale(
    strategy: Strategy, lengths: Sequence[int], numbers: Sequence[int], sums: Sequence[_Sum]
) -> tuple[float, float]:
    """Return (factor from the sample to all, standard error of the total): a ratio estimate over passages shown."""
    size = [strategy.calls(n).most * min(n, getattr(strategy, "window", n)) for n in lengths]
    sampled = [size[number] for number in numbers]
    if not sum(sampled):
        return 1.0, 0.0
    ratio = sum(s.tokens_in for s in sums) / sum(sampled)
    residuals = [s.tokens_in - ratio * own for s, own in zip(sums, sampled, strict=True)]
    variance = sum(r * r for r in residuals) / max(len(residuals) - 1, 1)
    share = len(numbers) / len(lengths)
    error = len(lengths) * math.sqrt(variance / len(numbers) * (1 - share))
    return sum(size) / sum(sampled), error
