"""Train cross-encoders (students) on the store's judgments and labels, and re-rank with them.

Import the public names from here. They load on first use, so `import students` needs neither torch nor a store:

    from labelstore import LabelStore
    from students import Reranker, Sources, evaluate, train_student

    store = LabelStore("msft.duckdb")
    train_student(store, regime="kd", base="minilm", sources=Sources(labels=["minilm@bm25s"]), name="student")
    for row in evaluate(store, "mydata/test").rows:
        print(row["system"], row["measure"], row["value"])
    scores = Reranker.load("msft.files/students/student").scores([("a query", ["a passage", "another"])])

`docs/guides/python.md` goes through them. `python -m students.train` trains from view folders alone, without a store.
"""

from typing import TYPE_CHECKING

from msft import on_first_use

if TYPE_CHECKING:
    from students.jobs.evaluate import Beside, Talk, evaluate
    from students.jobs.export import export_student
    from students.jobs.plan import Sources
    from students.jobs.register import add_student
    from students.jobs.rerank import load_reranker, rerank_run
    from students.jobs.train import train_student
    from students.recipes.read import load_recipe
    from students.rerank.reranker import Reranker

__all__ = [
    "Beside",
    "Reranker",
    "Sources",
    "Talk",
    "add_student",
    "evaluate",
    "export_student",
    "load_recipe",
    "load_reranker",
    "rerank_run",
    "train_student",
]

_HOMES = {
    "Beside": "jobs.evaluate:Beside",
    "Reranker": "rerank.reranker:Reranker",
    "Sources": "jobs.plan:Sources",
    "Talk": "jobs.evaluate:Talk",
    "add_student": "jobs.register:add_student",
    "evaluate": "jobs.evaluate:evaluate",
    "export_student": "jobs.export:export_student",
    "load_recipe": "recipes.read:load_recipe",
    "load_reranker": "jobs.rerank:load_reranker",
    "rerank_run": "jobs.rerank:rerank_run",
    "train_student": "jobs.train:train_student",
}

__getattr__, __dir__ = on_first_use(__name__, _HOMES)
