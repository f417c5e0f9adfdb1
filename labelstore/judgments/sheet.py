"""Write a sheet on which a person judges passages with the keyboard: one HTML file that needs no network.

The page holds queries and passages, not which system ranked them or where. The seed shuffles each query's passages. Grades
stay in the browser over a reload, and the page saves them as TREC qrels, which ``msft data add --qrels`` reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import jinja2
from markupsafe import Markup

from labelstore.errors import DataMissing
from labelstore.files import html_page
from labelstore.files.whole_file import appearing
from labelstore.judgments.pool import Pool, pool
from labelstore.store import keys
from labelstore.store.label_store import LabelStore
from labelstore.store.sql_steps import Filter

# The scale of TREC's Deep Learning track, as UMBRELA words it for a judge.
GRADES = (
    ("unrelated", "has nothing to do with the query"),
    ("related", "seems related to the query, but does not answer it"),
    ("partly", "has some answer, but unclear, or hidden amongst other information"),
    ("perfect", "is dedicated to the query and contains the exact answer"),
)
UNWRITABLE = "an id with white space, which TREC qrels cannot hold"


@dataclass(frozen=True)
class Sheet:
    """The file that was written: how many queries and passages it has, and what was left out."""

    path: Path
    dataset: str
    collection: str
    queries: int
    count: Filter


def write_sheet(
    store: LabelStore,
    dataset: str | None,
    path: str | Path = "sheet.html",
    *,
    runs: Sequence[str] = (),
    depth: int = 10,
    seed: int = 42,
    judged: bool = False,
) -> Sheet:
    """Write the sheet for the unjudged top of runs.

    Args:
        dataset: its name; by default the only one.
        runs: names of runs over it; by default its only first stage.
        judged: also show passages that people have judged.

    Raises:
        DataMissing: a name is not found, or nothing is left to judge.
        MsftError: the file cannot be written.
    """
    with store.read() as con:
        pooled = pool(con, dataset, runs, depth, judged=judged)
        items = _items(con, pooled, seed)
    content = render(pooled.of.name, items).encode("utf-8", "replace")
    path = Path(path)
    with appearing(path) as beside:
        beside.write_bytes(content)
    queries = len({item["query_id"] for item in items})
    return Sheet(path, pooled.of.name, pooled.of.collection_name, queries, pooled.count)


def _items(con: duckdb.DuckDBPyConnection, pooled: Pool, seed: int) -> list[dict[str, Any]]:
    """List what is judged, query by query; the seed orders queries and passages."""
    rows = con.execute(
        """SELECT q.query_id, q.text, d.doc_id, d.title, d.text FROM pool
           JOIN queries q ON q.query = pool.query JOIN documents d ON d.document = pool.document
           ORDER BY md5(concat(?, ':', q.query_id)), q.query_id, md5(concat_ws(':', ?, q.query_id, d.doc_id)), d.doc_id""",
        [seed, seed],
    ).fetchall()
    items: list[dict[str, Any]] = []
    unwritable: list[str] = []
    for query_id, query, doc_id, title, text in rows:
        if any(len(name.split()) != 1 for name in (query_id, doc_id)):
            unwritable.append(f"{query_id} {doc_id}")
            continue
        items.append(
            {"query_id": query_id, "query": query, "doc_id": doc_id, "title": title or "", "text": text}
        )
    if unwritable:
        pooled.count.drops[UNWRITABLE] = (len(unwritable), unwritable[0])
    if not items:
        raise DataMissing(
            f"{pooled.of.name}: each of {len(unwritable):,} pairs has {UNWRITABLE}",
            hint="add the collection with ids that have no white space",
        )
    return items


def render(dataset: str, items: Sequence[dict[str, Any]]) -> str:
    """Render the HTML; the key under which the browser keeps grades is a hash of the ids."""
    script = html_page.asset("judgments", "sheet.js")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("labelstore.judgments", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    key = keys.rows_key("sheet", ([item["query_id"], item["doc_id"]] for item in items))
    return environment.get_template("sheet.html.jinja").render(
        dataset=dataset,
        grades=GRADES,
        total=len(items),
        policy=html_page.policy(script),
        style=Markup(html_page.asset("judgments", "sheet.css")),
        script=Markup(script),
        data=Markup(
            html_page.embedded({"key": f"msft-sheet-{key}", "dataset": dataset, "items": list(items)})
        ),
    )
