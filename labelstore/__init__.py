"""The label store: a DuckDB file with queries, passages, rankings, labels and evaluations.

Import the public names from here. They load on first use, so `import labelstore` stays fast:

    from labelstore import LabelStore, add_dataset, retrieve, sql

    store = LabelStore("msft.duckdb")
    add_dataset(store, "mydata/test", "mydata", qrels="qrels.test.txt")
    retrieve(store, "mydata/test", depth=100)
    print(sql(store, "SELECT query_id, doc_id, rank FROM ranked WHERE rank = 1"))

`docs/guides/python.md` goes through them. Errors that a user can act on carry `message`, `hint` and `exit_code`.
"""

from typing import TYPE_CHECKING

from msft import on_first_use

if TYPE_CHECKING:
    from labelstore.analyses.ask import sql, table
    from labelstore.datasets.add_dataset import add_dataset
    from labelstore.evaluation.comparison import compare
    from labelstore.negatives.mine import mine as mine_negatives
    from labelstore.report.page import write as write_report
    from labelstore.retrieval import retrieve
    from labelstore.runs.export import export_run
    from labelstore.runs.import_run import import_run
    from labelstore.store.label_store import LabelStore
    from labelstore.upkeep.archive import export_store, import_store
    from labelstore.upkeep.merge.job import merge_stores
    from labelstore.upkeep.verify.verify import verify
    from labelstore.views.build import build as build_view
    from labelstore.views.build import folder_of as view_folder

__all__ = [
    "LabelStore",
    "add_dataset",
    "build_view",
    "compare",
    "export_run",
    "export_store",
    "import_run",
    "import_store",
    "merge_stores",
    "mine_negatives",
    "retrieve",
    "sql",
    "table",
    "verify",
    "view_folder",
    "write_report",
]

_HOMES = {
    "LabelStore": "store.label_store:LabelStore",
    "add_dataset": "datasets.add_dataset:add_dataset",
    "build_view": "views.build:build",
    "compare": "evaluation.comparison:compare",
    "export_run": "runs.export:export_run",
    "export_store": "upkeep.archive:export_store",
    "import_run": "runs.import_run:import_run",
    "import_store": "upkeep.archive:import_store",
    "merge_stores": "upkeep.merge.job:merge_stores",
    "mine_negatives": "negatives.mine:mine",
    "retrieve": "retrieval:retrieve",
    "sql": "analyses.ask:sql",
    "table": "analyses.ask:table",
    "verify": "upkeep.verify.verify:verify",
    "view_folder": "views.build:folder_of",
    "write_report": "report.page:write",
}

__getattr__, __dir__ = on_first_use(__name__, _HOMES)
