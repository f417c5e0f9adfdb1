"""The positives of a contrastive view: how many of them the negatives' runs rank, and whether only those are used.

``views/sql/contrastive_positives.sql`` selects them and decides.
"""

from dataclasses import dataclass

import duckdb

from labelstore.views.parameters import ENOUGH_RETRIEVED, MOSTLY_RETRIEVED


@dataclass(frozen=True)
class Positives:
    """What the SQL decided.

    Attributes:
        n: positives that can be used. retrieved: those of them that the runs rank; 0 if nobody asked.
        only_retrieved: whether only those are used.
    """

    n: int
    retrieved: int
    only_retrieved: bool

    @property
    def reason(self) -> str:
        """Say what the decision rests on."""
        return self.counts + (": too few to use only these" if self.too_few else "")

    @property
    def counts(self) -> str:
        """Say how many positives are retrieved."""
        return f"{self.retrieved:,} of {self.n:,} positives are retrieved"

    @property
    def too_few(self) -> bool:
        """Return True if most positives are not retrieved, and too few others remain."""
        return not self.only_retrieved and 0 < self.retrieved < min(
            MOSTLY_RETRIEVED * self.n, ENOUGH_RETRIEVED
        )

    def note(self) -> str | None:
        """Say what was decided by default; None if most positives are retrieved, which changes nothing."""
        if self.only_retrieved:
            return f"{self.counts}, so only these are used; --no-retrieved uses all"
        if self.too_few:
            return f"{self.reason}, so all are used; --retrieved uses only these"
        return None


def read_positives(con: duckdb.DuckDBPyConnection) -> Positives:
    """Read the decision from the variables of the SQL, which must have run."""
    n, retrieved, only = con.execute(
        "SELECT getvariable('n_positives'), getvariable('n_retrieved'), getvariable('retrieved')"
    ).fetchall()[0]
    return Positives(n, retrieved, bool(only))
