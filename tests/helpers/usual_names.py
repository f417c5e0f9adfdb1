"""A small store whose names are as long as usual ones, for tests of the tables that list them."""

from pathlib import Path

import made_store

from labelstore.store.label_store import LabelStore
from labelstore.views import build as views

TRAIN, TEST = "msmarco-passage/train", "msmarco-passage/trec-dl-2019"
RUN, LABELS = "pisa-bm25-100", "rankzephyr-7b@pisa-bm25-100"
STUDENT = "electra-base-cl-kd-seed42"
NEGATIVES = "msmarco-passage-train-pisa-bm25-100-uniform5of20"


def make(path: Path) -> LabelStore:
    """Make the store, with a dataset, run, labeling, mining, views of one name, a student and its stages."""
    from labelstore.negatives import mine

    store = made_store.make(path)
    made_store.add_student(store, "cl,kd")
    with store.write() as con:
        con.execute("UPDATE collections SET name = 'msmarco-passage'")
        con.execute("UPDATE datasets SET name = CASE name WHEN 'c/train' THEN ? ELSE ? END", [TRAIN, TEST])
        con.execute("UPDATE datasets SET ir_datasets_id = ? WHERE name = ?", [f"{TEST}/judged", TEST])
        con.execute("UPDATE runs SET name = ?, system = 'Anserini BM25 k1=0.9 b=0.4'", [RUN])
        con.execute("UPDATE labelings SET name = ?, first_stage = ?, strategy = 'sliding'", [LABELS, RUN])
        con.execute("UPDATE teachers SET name = 'rankzephyr-7b'")
        con.execute(
            "UPDATE students SET name = ?, base = 'google/electra-base-discriminator', licence = 'apache-2.0'",
            [STUDENT],
        )
    for per_query in (3, 5):
        mine.mine(store, dataset=TRAIN, runs=(RUN,), per_query=per_query, depth=20)
    for depth in (10, 20):
        views.build(
            store, "contrastive", name="msmarco-train-cl", datasets=(TRAIN,), runs=(RUN,), depth=depth
        )
    views.build(store, "distillation", name="msmarco-train-kd", labels=(LABELS,))
    return store
