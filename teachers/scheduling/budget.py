"""Limits on calls, tokens and cost of a job. They are never exceeded, and few queries are left half done.

Two checks. *Admission*: a query starts only if the budget has room for all its calls, so that no money is spent on
windows of queries that cannot be finished. *Taking*: a call is sent only if its longest reply, plus the longest
replies of all calls in flight, stays within the limits.
"""

from dataclasses import dataclass, field


@dataclass
class Budget:
    """Limits of one job; None means no limit. Recorded answers that are reused cost nothing.

    Attributes:
        max_cost: limit in US dollars, as the prices.
        input_price, output_price: prices per million tokens; needed for a cost limit.
    """

    max_calls: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    input_price: float | None = None
    output_price: float | None = None
    calls: int = 0  # sent
    tokens_in: int = 0  # billed
    tokens_out: int = 0
    _reserved_calls: int = 0  # calls that started queries may still need
    _flying_in: int = 0
    _flying_out: int = 0
    _flying: int = 0
    _called_in: int = 0  # billed, without canaries
    _called_out: int = 0
    _reason: str | None = field(default=None)

    @property
    def limited(self) -> bool:
        return not (self.max_calls is self.max_tokens is self.max_cost is None)

    def cost(self, tokens_in: int | None = None, tokens_out: int | None = None) -> float:
        """Return the cost of tokens, by default of all billed so far; 0 without prices."""
        given_in = self.tokens_in if tokens_in is None else tokens_in
        given_out = self.tokens_out if tokens_out is None else tokens_out
        return (given_in * (self.input_price or 0.0) + given_out * (self.output_price or 0.0)) / 1e6

    def admits(self, calls: int) -> bool:
        """Return whether a query of `calls` calls can be expected to finish.

        Calls are counted exactly. Tokens and cost are estimated from the mean call so far.
        Before the first answer, one query is admitted at a time.
        """
        if not self.limited:
            return True
        if self.max_calls is not None and self.calls + self._reserved_calls + calls > self.max_calls:
            self._reason = "--max-calls"
            return False
        answered = self.calls - self._flying
        waiting = self._reserved_calls + calls
        if answered:
            mean_in, mean_out = self._called_in / answered, self._called_out / answered
            expected_in = int(self.tokens_in + waiting * mean_in)
            expected_out = int(self.tokens_out + waiting * mean_out)
            return self._within(expected_in, expected_out)
        # without an answer the cost of a call is unknown, so one query starts at a time
        return self._reserved_calls == 0 or (self.max_tokens is None and self.max_cost is None)

    def reserve(self, calls: int) -> None:
        self._reserved_calls += calls

    def release(self, calls: int) -> None:
        self._reserved_calls -= calls

    def take(self, tokens_in: int, most_out: int) -> bool:
        """Count a call as sent and return True; return False if its longest reply could exceed a limit."""
        if self.max_calls is not None and self.calls + 1 > self.max_calls:
            self._reason = "--max-calls"
            return False
        worst_in = self.tokens_in + self._flying_in + tokens_in
        worst_out = self.tokens_out + self._flying_out + most_out
        if not self._within(worst_in, worst_out):
            return False
        self.calls += 1
        self._flying += 1
        self._flying_in += tokens_in
        self._flying_out += most_out
        return True

    def charge(self, tokens_in: int, tokens_out: int) -> bool:
        """Count tokens outside of queries (canaries) as spent; return False if they could exceed a limit."""
        if self.max_calls == 0 or not self._within(self.tokens_in + tokens_in, self.tokens_out + tokens_out):
            return False
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        return True

    def settle(self, tokens_in: int, most_out: int, billed_in: int, billed_out: int) -> None:
        """Replace a call's reserved tokens by the billed tokens."""
        self._flying -= 1
        self._flying_in -= tokens_in
        self._flying_out -= most_out
        self.tokens_in += billed_in
        self.tokens_out += billed_out
        self._called_in += billed_in
        self._called_out += billed_out

    def share(self, parts: int, part: int) -> "Budget":
        """Return a worker's part of the limits, with nothing spent; the parts add up to the whole."""

        def of(limit: int | None) -> int | None:
            return None if limit is None else limit // parts + (part < limit % parts)

        cost = None if self.max_cost is None else self.max_cost / parts
        return Budget(of(self.max_calls), of(self.max_tokens), cost, self.input_price, self.output_price)

    def spent(self, calls: int, tokens_in: int, tokens_out: int) -> None:
        """Replace the counts by those of calls sent elsewhere (by Ray's workers)."""
        self.calls, self.tokens_in, self.tokens_out = calls, tokens_in, tokens_out
        self._called_in, self._called_out = tokens_in, tokens_out

    def reason(self) -> str:
        """Return the limit that refused last."""
        return self._reason or "the budget"

    def _within(self, tokens_in: int, tokens_out: int) -> bool:
        if self.max_tokens is not None and tokens_in + tokens_out > self.max_tokens:
            self._reason = "--max-tokens"
            return False
        if self.max_cost is not None and self.cost(tokens_in, tokens_out) > self.max_cost:
            self._reason = "--max-cost"
            return False
        return True
