"""Limits on calls, tokens and cost that a job never passes, and that leave whole permutations behind.

Two guards. *Admission*: a query starts only while the budget has room for all its calls, so that money is not spent
on windows of queries that cannot be finished. *Taking*: a call is sent only if even its longest reply stays within
the limits, counting what is in flight at its longest.
"""

from dataclasses import dataclass, field


@dataclass
class Budget:
    """Limits of one job; None: no limit. Answers reused from the record cost nothing.

    Attributes:
        max_cost: in the currency of the prices.
        input_price, output_price: per million tokens; needed for a cost limit.
    """

    max_calls: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    input_price: float | None = None
    output_price: float | None = None
    calls: int = 0  # sent
    tokens_in: int = 0  # billed
    tokens_out: int = 0
    _reserved_calls: int = 0  # that started queries may still need
    _flying_in: int = 0
    _flying_out: int = 0
    _flying: int = 0
    _called_in: int = 0  # billed without canaries
    _called_out: int = 0
    _reason: str | None = field(default=None)

    @property
    def limited(self) -> bool:
        return not (self.max_calls is self.max_tokens is self.max_cost is None)

    def cost(self, tokens_in: int | None = None, tokens_out: int | None = None) -> float:
        """What tokens cost, by default those billed so far; 0 without prices."""
        given_in = self.tokens_in if tokens_in is None else tokens_in
        given_out = self.tokens_out if tokens_out is None else tokens_out
        return (given_in * (self.input_price or 0.0) + given_out * (self.output_price or 0.0)) / 1e6

    def admits(self, calls: int) -> bool:
        """Whether a query of that many calls can be expected to finish.

        Calls are exact; tokens and cost go by the mean of the calls so far (the first queries are let in).
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
        # nothing answered yet: one query at a time until the first answer tells what a call takes
        return self._reserved_calls == 0 or (self.max_tokens is None and self.max_cost is None)

    def reserve(self, calls: int) -> None:
        self._reserved_calls += calls

    def release(self, calls: int) -> None:
        self._reserved_calls -= calls

    def take(self, tokens_in: int, most_out: int) -> bool:
        """Count a call as sent, unless its longest reply could pass a limit."""
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
        """Count tokens that are no call of a query's (canaries) as spent, unless they could pass a limit."""
        if self.max_calls == 0 or not self._within(self.tokens_in + tokens_in, self.tokens_out + tokens_out):
            return False
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        return True

    def settle(self, tokens_in: int, most_out: int, billed_in: int, billed_out: int) -> None:
        """Replace what a call in flight could have taken by what it took."""
        self._flying -= 1
        self._flying_in -= tokens_in
        self._flying_out -= most_out
        self.tokens_in += billed_in
        self.tokens_out += billed_out
        self._called_in += billed_in
        self._called_out += billed_out

    def share(self, parts: int, part: int) -> "Budget":
        """A worker's part of the limits, nothing of it spent; the parts' sum is the whole."""

        def of(limit: int | None) -> int | None:
            return None if limit is None else limit // parts + (part < limit % parts)

        cost = None if self.max_cost is None else self.max_cost / parts
        return Budget(of(self.max_calls), of(self.max_tokens), cost, self.input_price, self.output_price)

    def spent(self, calls: int, tokens_in: int, tokens_out: int) -> None:
        """What was sent and billed elsewhere, in place of what is counted here."""
        self.calls, self.tokens_in, self.tokens_out = calls, tokens_in, tokens_out
        self._called_in, self._called_out = tokens_in, tokens_out

    def reason(self) -> str:
        """The limit that last refused."""
        return self._reason or "the budget"

    def _within(self, tokens_in: int, tokens_out: int) -> bool:
        if self.max_tokens is not None and tokens_in + tokens_out > self.max_tokens:
            self._reason = "--max-tokens"
            return False
        if self.max_cost is not None and self.cost(tokens_in, tokens_out) > self.max_cost:
            self._reason = "--max-cost"
            return False
        return True
