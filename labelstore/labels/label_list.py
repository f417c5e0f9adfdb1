"""An imported list before repairs, and the interface of a reader of replies.

The caller gives the reader, so that this package needs no prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class Parsed(Protocol):
    """What a reply parser returns: ``teachers.prompts.replies.Parsed``."""

    @property
    def order(self) -> Sequence[int] | None: ...
    @property
    def status(self) -> str: ...
    @property
    def n_missing(self) -> int: ...
    @property
    def n_repeated(self) -> int: ...
    @property
    def n_out_of_range(self) -> int: ...


Parse = Callable[[str, int], Parsed]


class Reader(Protocol):
    """The rules for replies and lists; the module ``teachers.prompts.replies`` has them."""

    def parse(self, text: str, n: int) -> Parsed:
        """Read the order that a reply states for `n` passages."""

    def is_ranking(self, named: int, wanted: int) -> bool:
        """Tell whether a list that names so many of the wanted passages is a ranking."""


@dataclass
class LabelList:
    """One query's order as the file has it, before repairs.

    Attributes:
        place: ``file:line`` (or ``file, list k``).
        ranking: doc_ids, best first.
        groups: ties, best first: numbers of passages per group of `ranking`; None: no ties.
        scores: one per passage of `ranking`; None if the file has no useful scores.
        initial: doc_ids as the teacher was shown them; None if unknown.
        reply, parsed: the raw reply over `initial` and its parsed form, if the file has replies.
        settled: the number of first places that the teacher decided, if it did not decide all.
        n_without_text: passages that the source left out because it had no text for them.
        texts: doc_id -> (title, text), if the file has texts.
    """

    place: str
    query_id: str | None
    ranking: list[str]
    query_text: str | None = None
    teacher: str | None = None
    first_stage: str | None = None
    groups: list[int] | None = None
    scores: list[float] | None = None
    initial: list[str] | None = None
    reply: str | None = None
    parsed: Parsed | None = None
    n_without_text: int = 0
    n_calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    depth: int | None = None
    settled: int | None = None
    licence: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, tuple[str | None, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Malformed:
    """A list that cannot be read: where it stands and why."""

    place: str
    reason: str
    detail: str
    query_id: str | None = None
    teacher: str | None = None
    first_stage: str | None = None


Item = LabelList | Malformed


class BadList(Exception):
    """A line that is not a label: (reason, detail)."""


class Worst:
    """The outcome of several calls: the worst status and the sums of repairs. The list is the merged one."""

    _ORDER = ("ok", "repaired", "wrong_format", "truncated", "refused", "engine_error")

    def __init__(self, calls: Sequence[Parsed]) -> None:
        self.status = max((c.status for c in calls), key=self._ORDER.index)
        self.n_missing = sum(c.n_missing for c in calls)
        self.n_repeated = sum(c.n_repeated for c in calls)
        self.n_out_of_range = sum(c.n_out_of_range for c in calls)
        self.order: Sequence[int] | None = () if all(c.order is not None for c in calls) else None
