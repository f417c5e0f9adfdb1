"""The card of a labeling that is shared as a dataset: who made it, from what, and on which terms."""

import duckdb
import yaml

from labelstore.errors import UsageError
from labelstore.store import lookup
from msft.host.hub import spdx_id

_FORM = """---
{metadata}---

# Labels {name}

{n:,} lists of the dataset `{dataset}`, ranked by the teacher `{teacher}` over the first stage `{first_stage}` to depth
{depth}, with the strategy `{strategy}`. Made with msft.

| | |
|---|---|
| teacher | {teacher} |
| model, revision | {model}, {revision} |
| prompt | {prompt} |
| statuses | {statuses} |
| terms | {terms} |

An LLM made these labels; people did not judge them. `labels.parquet` has a row per ranked passage: its rank, and the rank
at which the teacher was shown it. `msft teachers import labels.parquet --dataset DATASET` reads it back.
"""


def card(con: duckdb.DuckDBPyConnection, name: str, n: int, licence: str | None = None) -> str:
    """Write the card of a labeling with `n` lists.

    Args:
        licence: the terms of labels that have none on record.

    Raises:
        DataMissing: the labeling is not found.
        UsageError: the labels have other terms on record.
    """
    of = lookup.labeling(con, name)
    ((dataset, model, revision, prompt, held),) = con.execute(
        """SELECT d.name, t.model, t.revision, t.prompt, coalesce(l.licence, t.licence)
           FROM labelings l JOIN datasets d USING (dataset) JOIN teachers t USING (teacher) WHERE l.labeling = ?""",
        [of.labeling],
    ).fetchall()
    if licence is not None and held and licence != held:
        raise UsageError(f"{name} is under {held}, not under {licence}", hint="leave --licence out")
    terms = held or licence
    statuses = con.execute(
        "SELECT status, count(*) FROM permutations WHERE labeling = ? GROUP BY ALL ORDER BY ALL",
        [of.labeling],
    ).fetchall()
    spdx = spdx_id(terms)
    metadata = {
        "license": spdx or ("other" if terms else None),
        "license_name": "terms-of-the-teacher" if terms and not spdx else None,
        "task_categories": ["text-ranking"],
        "tags": ["msft", "llm-labels", "reranking"],
        "pretty_name": name,
    }
    return _FORM.format(
        metadata=yaml.safe_dump({k: v for k, v in metadata.items() if v is not None}, sort_keys=False),
        name=name,
        n=n,
        dataset=dataset,
        teacher=of.teacher_name,
        first_stage=of.first_stage or "unknown",
        depth=of.depth,
        strategy=of.strategy,
        model=model or "unknown",
        revision=revision or "unknown",
        prompt=prompt or "unknown",
        statuses=", ".join(f"{count:,} {status}" for status, count in statuses),
        terms=terms or "not recorded",
    )
