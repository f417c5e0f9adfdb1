"""Say why an analysis that comes with msft gives no row: the values that it used, and those that the store has."""

import re
from collections.abc import Mapping

import duckdb

from labelstore.analyses.ask import text_of
from labelstore.store.label_store import LabelStore

_PARAMETER = re.compile(r"(?:coalesce\()?getvariable\('(\w+)'\)(?:, '?([\w.]+)'?\))?")
_MOST = 8
# The values of a parameter, of the dataset that is asked for (all datasets if the store lacks it).
_DATASET = "(? NOT IN (SELECT name FROM datasets) OR d.name = ?)"
_VALUES = {
    "dataset": "SELECT name FROM datasets d WHERE ? IS NULL OR ? IS NULL OR true",
    "run": f"SELECT DISTINCT r.name FROM runs r JOIN datasets d USING (dataset) WHERE {_DATASET}",
    "labels": f"SELECT DISTINCT l.name FROM labelings l JOIN datasets d USING (dataset) WHERE {_DATASET}",
    "reference": f"SELECT DISTINCT l.name FROM labelings l JOIN datasets d USING (dataset) WHERE {_DATASET}",
    "negatives": f"SELECT DISTINCT m.name FROM minings m JOIN datasets d USING (dataset) WHERE {_DATASET}",
    "relevant": f"SELECT DISTINCT q.relevance::VARCHAR FROM qrels q JOIN datasets d USING (dataset) WHERE {_DATASET}",
}


def why(store: LabelStore, query: str, parameters: Mapping[str, str]) -> str:
    """Explain an empty answer of ``@NAME``."""
    taken: dict[str, str] = {}
    for name, default in _PARAMETER.findall(text_of(query)):
        if name in parameters:
            taken[name] = parameters[name]
        elif default and not default.endswith("name"):  # l.name: any
            taken.setdefault(name, f"{default} (the default)")
    dataset = taken.get("dataset", "").removesuffix(" (the default)")
    with store.read() as con:
        held = [
            f"--param {name}= {_some(con, sql, dataset)}"
            for name, sql in _VALUES.items()
            if name in dict(_PARAMETER.findall(text_of(query)))
        ]
    used = ", ".join(f"{name}={value}" for name, value in taken.items())
    return f"{query} found nothing{' for ' + used if used else ''}; the store has {'; '.join(held)}"


def _some(con: duckdb.DuckDBPyConnection, sql: str, dataset: str) -> str:
    found = [str(value) for (value,) in con.execute(f"{sql} ORDER BY 1", [dataset, dataset]).fetchall()]
    return (" | ".join(found[:_MOST]) + (" …" if len(found) > _MOST else "")) or "(none)"
