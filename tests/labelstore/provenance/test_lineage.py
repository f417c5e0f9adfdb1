"""The lineage of a student: every source down to prompt hash and model revision, also of what was replaced since."""

import json

import made_store
import pytest

from labelstore.errors import DataMissing
from labelstore.labels.write import Teacher, store_teacher
from labelstore.negatives import mine as negatives
from labelstore.provenance import lineage
from labelstore.store import keys
from labelstore.store.label_store import LabelStore
from labelstore.views import build as views

PROMPT = "f" * 32


@pytest.fixture
def store(tmp_path) -> LabelStore:
    """A student trained cl,kd; its labels come from a prompted teacher, its base is another student."""
    made = made_store.make(tmp_path / "s.duckdb")
    with made.write() as con:
        teacher = Teacher(
            "rankzephyr",
            "vllm",
            "castorini/rank_zephyr_7b_v1_full",
            "abc123",
            "rankzephyr@1",
            PROMPT,
            {"temperature": 0.0},
        )
        con.execute("UPDATE labelings SET teacher = ?", [store_teacher(con, teacher)])
    negatives.mine(
        made,
        dataset="c/train",
        runs=["first"],
        per_query=4,
        depth=20,
        name="hard",
        denoise_labels="teacher@first",
    )
    cl = views.build(made, "contrastive", negatives=["hard"], name="cl")
    kd = views.build(made, "distillation", labels=["teacher@first"], name="kd")
    with made.write() as con:
        for key, name, base, regime in (
            (1, "parent", "google/electra-base-discriminator", "cl"),
            (2, "child", "student:parent", "cl,kd"),
        ):
            con.execute(
                "INSERT INTO students VALUES (?, ?, ?, 'rev', 'electra', ?, ?, ?, 64, 42, NULL, NULL, 1)",
                [key, name, base, regime, f"students/{name}", keys.content_key("weights", name)],
            )
        stages = [(1, 1, "cl", "lce", cl.view, cl.view_hash), (2, 1, "cl", "lce", cl.view, cl.view_hash), (2, 2, "kd", "ranknet", kd.view, kd.view_hash), (2, 3, "cl+kd", "lce+ranknet", None, f"{cl.view_hash}+{kd.view_hash}")]  # fmt: skip
        for student, stage, objective, loss, view, view_hash in stages:
            con.execute(
                "INSERT INTO stages VALUES (?, ?, ?, ?, ?, ?, 'a', 'b', '{\"lr\": 1e-5}', 4, 40, 0, 0, 1, 0.1, NULL, NULL, 'end')",
                [student, stage, objective, loss, view, view_hash],
            )
        con.execute("INSERT INTO runs SELECT 9, 'child@first', dataset, 'student', 'student:child', run, 2, '{}', depth, n_queries, n_candidates, content_hash, job FROM runs WHERE run = 2")  # fmt: skip
        con.execute(
            "INSERT INTO evaluations SELECT 1, 2, 9, NULL, content_hash, 'q', 'nDCG@10', 0.5, 4, 0, 1 FROM runs WHERE run = 9"
        )
    return made


def tree(store: LabelStore, name: str = "child") -> lineage.Node:
    with store.read() as con:
        return lineage.lineage(con, name)


def test_the_tree_reaches_prompt_hash_and_model_revision(store: LabelStore) -> None:
    drawn = lineage.text(tree(store))
    assert drawn.splitlines()[0].startswith("student child [")
    for line in (
        "├─ evaluated run c/test/child@first",
        "│  └─ view cl [",
        "teacher rankzephyr [",
        "model castorini/rank_zephyr_7b_v1_full: revision abc123",
        f"prompt rankzephyr@1 [{PROMPT}]",
        "negatives hard [",
        "run c/train/first [",
        "dataset c/train [",
        "└─ base student:parent [rev]",
        "└─ base google/electra-base-discriminator [rev]",
    ):
        assert line in drawn, line
    assert "nDCG@10 0.5" in drawn
    assert "denoise labels teacher@first" in drawn


def test_a_joint_stage_has_both_views(store: LabelStore) -> None:
    stage = next(node for node in tree(store).children if node.name == "3 cl+kd")
    assert [view.name for view in stage.children] == ["cl", "kd"]


def test_rows_are_flat_and_name_their_parents(store: LabelStore) -> None:
    rows = lineage.rows(tree(store))
    assert [row["node"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[0]["parent"] is None
    assert all(row["parent"] < row["node"] for row in rows[1:])
    by_number = {row["node"]: row for row in rows}
    assert all(row["level"] == by_number[row["parent"]]["level"] + 1 for row in rows[1:])
    assert {row["what"] for row in rows} == {
        "student", "evaluated run", "stage", "view", "dataset", "negatives", "run", "labels", "teacher", "model", "prompt", "base",
    }  # fmt: skip
    assert all(list(row) == list(lineage.COLUMNS) for row in rows)
    json.dumps(rows)
    prompt = next(row for row in rows if row["what"] == "prompt")
    assert (prompt["name"], prompt["hash"]) == ("rankzephyr@1", PROMPT)


@pytest.mark.test_all
def test_what_was_replaced_since_is_told_by_what_the_view_recorded(store: LabelStore) -> None:
    with store.read() as con:
        ((before,),) = con.execute("SELECT content_hash FROM minings").fetchall()
    negatives.mine(store, dataset="c/train", runs=["first"], per_query=3, depth=20, name="hard", replace=True)
    with store.write() as con:
        con.execute("UPDATE runs SET content_hash = 'replaced' WHERE run = 1")
        con.execute("UPDATE datasets SET qrels_hash = 'later' WHERE name = 'c/train'")
    drawn = lineage.text(tree(store))
    assert f"mining hard [{before}]: now replaced since, or not in this store" in drawn
    assert "dataset c/train [later]" in drawn
    assert ", then " in drawn


def test_an_unknown_student_is_named(store: LabelStore) -> None:
    with pytest.raises(DataMissing, match="chlid") as raised:
        tree(store, "chlid")
    assert "child" in (raised.value.hint or "")
