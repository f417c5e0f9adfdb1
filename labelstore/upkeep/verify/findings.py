"""What a check finds: one thing that is wrong, where it is, and how it is mended."""

from dataclasses import dataclass

EXAMPLES = 5  # things of one kind that are named; the rest is counted
COPY = "put the rows back from a copy: `msft merge COPY.duckdb`, or `msft import-store` from an archive"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        what: the kind of thing: block, run, view, student, documents …
        name: which one.
        problem: what is wrong with it, with both values where two disagree.
        hint: the command that mends it.
    """

    what: str
    name: str
    problem: str
    hint: str
