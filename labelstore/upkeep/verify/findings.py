"""A finding of a check: a fault, its place, and how to repair it."""

from dataclasses import dataclass

EXAMPLES = 5  # things of one kind that are named; the rest is counted
COPY = "put the rows back from a copy: `msft merge COPY.duckdb`, or `msft import-store` from an archive"


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        what: the kind of thing: block, run, view, student, documents …
        name: which one.
        problem: the fault, with both values if two disagree.
        hint: the command that repairs it.
    """

    what: str
    name: str
    problem: str
    hint: str
