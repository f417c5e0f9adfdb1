"""`msft reproduce`: the study's numbers, what is missing and how it ends, and the whole grid with stand-ins."""

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runner import Done, commands

import cli.main  # noqa: F401 - the steps call its commands
from cli.workflows.reproduce import plan as reproduce_plan
from cli.workflows.reproduce import reproduce
from cli.workflows.reproduce import spec as reproduce_spec
from cli.workflows.reproduce import table as reproduce_table
from cli.workflows.reproduce import tiny as reproduce_tiny
from cli.workflows.steps import Steps
from labelstore.errors import BadInput, DataMissing, PartlyDone, UsageError
from labelstore.store.label_store import LabelStore

pytestmark = pytest.mark.test_all


REGIMES = ("cl", "kd", "cl,kd", "kd,cl")
CELLS = {
    (student, regime, stage)
    for student in ("electra", "roberta")
    for regime in REGIMES
    for stage in ("bm25", "colbertv2")
}
SMALL = reproduce_tiny.Size(
    packages=("networkx",), passages=150, queries=6, dl19=5, dl20=5, dev=5, train=24, depth=6, per_query=4, steps=2,
    vocabulary=600,
)  # fmt: skip


def msft(*arguments: str, store: Path, code: int = 0, cwd: Path) -> Done:
    done = commands().run(arguments, cwd, {**os.environ, "MSFT_STORE": str(store)})
    assert done.code == code, f"{done.out}\n{done.err}"
    assert "Traceback" not in done.err
    return done


# ------------------------------------------------------------------------------------------------------------ recipe
def test_the_studys_numbers_stand_in_the_recipe() -> None:
    spec = reproduce_spec.read("pezzuti2025")
    published = spec.published
    assert len(published) == 53
    assert published["electra", "kd,cl", "colbertv2", "dl20", "nDCG@10"] == 0.759
    assert published["roberta", "kd", "bm25", "dev", "RR@10"] == 0.271
    assert published["", "", "bm25", "dl19", "nDCG@10"] == 0.512
    assert published["", "", "colbertv2", "dev", "RR@10"] == 0.391
    assert {(t.base, t.recipe.regime) for t in spec.trainings} == {c[:2] for c in CELLS}
    assert [(t.name, t.measures[0]) for t in spec.test_sets] == [
        ("dl19", "nDCG@10"), ("dl20", "nDCG@10"), ("dlhard", "nDCG@10"), ("dev", "RR@10"),
    ]  # fmt: skip
    other = reproduce_spec.read("pezzuti2025-lr")
    assert {k: v for k, v in published.items() if k[0] != "roberta"} == other.published
    assert Counter(t.variant for t in other.trainings)["stage-2.lr=6e-12"] == 2


def test_all_that_is_wrong_with_a_recipe_is_said_at_once(tmp_path: Path) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        """regimes = ["cl", "kd"]
[evaluate]
depht = 100
margin = -1
[evaluate.cl]
dataset = "train"
[[evaluate.first_stages]]
name = "bm25"
retriever = "bm52"
[[evaluate.datasets]]
name = "dl19"
measures = ["nDCG@ten"]
[[published]]
dataset = "dl19"
"""
    )
    with pytest.raises(UsageError) as error:
        reproduce_spec.read(str(recipe))
    message = str(error.value)
    for part in (
        "'depht'", "margin must be above 0", "lacks run", "lacks negatives", "bm25s, bm25, colbert", "nDCG@ten",
        "[evaluate.kd] is missing", "[[published]] 1: lacks first_stage, measure",
    ):  # fmt: skip
        assert part in message, part


# -------------------------------------------------------------------------------------------------- what is missing
def test_without_anything_all_is_missing_and_named(tmp_path: Path) -> None:
    store = tmp_path / "none.duckdb"
    done = msft("reproduce", "pezzuti2025", "--format", "json", store=store, code=4, cwd=tmp_path)
    rows = json.loads(done.out)
    assert {row["status"] for row in rows} == {"missing"}
    assert {(r["student"], r["regime"], r["first_stage"]) for r in rows if r["student"]} == CELLS
    assert next(r for r in rows if r["student"] == "electra")["published"] == 0.724
    for part in (
        "msft data add train", "msft data add dl19", "msft data add dev", "GPU hours",
        "msft teachers import marco-train-100k.jsonl", "--replies marco-train-100k-gpt3.5.json",
        "msft runs import FILE --dataset train --name colbertv2", "none of the 180 values",
    ):  # fmt: skip
        assert part in done.err, part
    assert not store.exists(), "nothing to write, no store"
    dry = msft("reproduce", "pezzuti2025", "--dry-run", "--format", "json", store=store, cwd=tmp_path)
    assert json.loads(dry.out) == rows
    assert not store.exists()


def test_what_can_run_runs_and_the_rest_is_left(tmp_path: Path) -> None:
    from shelves import DOCS, Shelf

    store = LabelStore(tmp_path / "s.duckdb")
    shelf = Shelf(store)
    collection = shelf.collection("msmarco-passage", DOCS)
    dataset = shelf.dataset(
        "dl19", collection, {"q1": "one", "q2": "two"}, {"q1": {"d0": 3}, "q2": {"d1": 2}}
    )
    shelf.run("bm25", dataset, {"q1": DOCS, "q2": DOCS})
    rows = reproduce.run(store, reproduce_spec.read("pezzuti2025"), None)
    run = {
        (r["student"], r["first_stage"], r["dataset"], r["measure"]): r for r in rows if r["status"] == "run"
    }
    assert set(run) == {(None, "bm25", "dl19", m) for m in ("nDCG@10", "AP(rel=2)", "RR(rel=2)@10")}
    reciprocal = run[None, "bm25", "dl19", "RR(rel=2)@10"]
    assert reciprocal["value"] == pytest.approx(0.75)
    assert run[None, "bm25", "dl19", "nDCG@10"]["published"] == 0.512
    student = next(r for r in rows if r["student"] == "roberta" and r["dataset"] == "dl19")
    assert (student["status"], student["value"]) == ("missing", None)
    assert student["why"]
    assert next(r for r in rows if r["dataset"] == "dev")["why"] == "dataset dev"
    with pytest.raises(PartlyDone, match="177 of 180"):
        reproduce.end(rows)
    with pytest.raises(DataMissing):
        reproduce.end([r for r in rows if r["status"] == "missing"])
    assert reproduce.end(list(run.values())) is None


def test_a_command_that_fails_ends_what_depends_on_it_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = LabelStore(tmp_path / "s.duckdb")
    plan = reproduce_plan.Plan(
        (
            reproduce_plan.PlannedCommand(("run", "d", "r"), ("retrieve", "--dataset", "nowhere")),
            reproduce_plan.PlannedCommand(("negatives", "n"), ("negatives", "mine"), (("run", "d", "r"),)),
            reproduce_plan.PlannedCommand(("data", "x"), ("sql", "--list")),
        )
    )
    steps = Steps(store.path)
    with steps.environment():
        after = reproduce_plan.carry_out(plan, steps)
    assert [step.done for step in after.steps] == [False, False, True]
    assert "nowhere" in capsys.readouterr().err
    assert "failed, exit 4" in str(after.why(("negatives", "n")))


OWN = """
bases = [{base}]
regimes = ["cl", "cl,kd"]
seeds = [1, 2]
max_length = 48
lr = 1e-3
lists = 4
group_size = 4
max_steps = 2
epochs = 0
[evaluate]
depth = 10
[evaluate.cl]
dataset = "own/train"
run = "bm25"
depth = 20
per_query = 5
negatives = "hard"
[evaluate.kd]
dataset = "own/train"
labels = "labels"
layout = "permutations"
file = "labels.jsonl"
[[evaluate.first_stages]]
name = "bm25"
retriever = "bm25s"
depth = 20
[[evaluate.datasets]]
name = "own/test"
measures = ["RR@10"]
"""


def test_a_recipe_of_ones_own_goes_on_as_what_is_missing_comes(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["rank", "query", "passage", "index", "search", "water", "energy", "volcano", "river", "music"]
    texts = [f"{words[n % 10]} {words[n // 10]} of the {words[(n * 7) % 10]} {n}" for n in range(60)]
    Path("docs.jsonl").write_text(
        "".join(json.dumps({"doc_id": f"d{n}", "text": t}) + "\n" for n, t in enumerate(texts))
    )
    Path("queries.tsv").write_text("".join(f"q{n}\t{t}\n" for n, t in enumerate(texts)))
    Path("own.toml").write_text(OWN.format(base=json.dumps(str(tiny_bert))))
    store = LabelStore(tmp_path / "own.duckdb")
    steps = Steps(store.path)
    for part, chosen in (("train", range(40)), ("test", range(40, 60))):
        Path(f"qrels.{part}.txt").write_text("".join(f"q{n} 0 d{n} 1\n" for n in chosen))
        with steps.environment():
            steps(
                "data",
                "add",
                f"own/{part}",
                "--from",
                ".",
                "--qrels",
                f"qrels.{part}.txt",
                "--collection",
                "own",
            )

    def run() -> dict[str | None, dict[str, Any]]:
        return {r["regime"]: r for r in reproduce.run(store, reproduce_spec.read("own.toml"), None)}

    first = run()
    assert {regime: row["status"] for regime, row in first.items()} == {
        None: "run",
        "cl": "run",
        "cl,kd": "missing",
    }
    assert first["cl,kd"]["why"] == "labels labels"
    assert first["cl"]["seeds"] == 2
    Path("labels.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "query_id": f"q{n}",
                    "teacher": "t",
                    "permutation": [f"d{n}", f"d{(n + 1) % 60}", f"d{(n + 9) % 60}"],
                }
            )
            + "\n"
            for n in range(40)
        )
    )
    second = run()
    assert {row["status"] for row in second.values()} == {"run"}
    assert second["cl"] == first["cl"]
    assert second["cl,kd"]["single_stage"] == "cl"
    assert second["cl,kd"]["verdict"] in ("better", "worse", "equivalent", "inconclusive")
    assert jobs(store)["students.train"] == 4
    spec = reproduce_spec.read("own.toml")
    assert list(reproduce_table.beside(spec, list(second.values()))[0]) == [
        "first_stage", "student", "regime", "seeds", "status", "own/test RR@10",
    ]  # fmt: skip
    each = reproduce_table.seed_rows(spec, list(second.values()))
    assert [(row["regime"], row["seed"]) for row in each] == [
        (regime, seed) for regime in ("cl", "cl,kd") for seed in (1, 2)
    ]
    mean = sum(row["own/test RR@10"] for row in each[:2]) / 2
    assert mean == pytest.approx(second["cl"]["value"], abs=1e-4)
    Path("own.toml").write_text(Path("own.toml").read_text() + "[evaluate.views]\neasy = 2\n")
    changed = reproduce_plan.make(store, reproduce_spec.read("own.toml"), prepared=False)
    assert [step.done for step in changed.steps if step.key[0] == "student"] == [False] * 4, (
        "other views, other students"
    )


# ---------------------------------------------------------------------------------------------------- with stand-ins
def jobs(store: LabelStore) -> Counter[str]:
    with store.read() as con:
        return Counter(kind for (kind,) in con.execute("SELECT kind FROM provenance").fetchall())


def test_the_grid_with_stand_ins_is_whole_and_goes_on_where_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("tiny")
    study = reproduce_spec.read("pezzuti2025")
    two = replace(study, test_sets=tuple(t for t in study.test_sets if t.name in ("dl20", "dev")))
    spec = reproduce_tiny.stand_ins(two, folder, SMALL)
    store = LabelStore(folder / "reproduce.duckdb")
    call, seen = Steps.__call__, []

    def interrupted(self: Steps, *arguments: str) -> str:
        seen.append(arguments[:2])
        if seen.count(("students", "train")) == 4:
            raise SystemExit(130)
        return call(self, *arguments)

    monkeypatch.setattr(Steps, "__call__", interrupted)
    with pytest.raises(SystemExit):
        reproduce.run(store, spec, folder, SMALL)
    assert jobs(store)["students.train"] == 3
    monkeypatch.setattr(Steps, "__call__", call)

    rows = reproduce.run(store, spec, folder, SMALL)
    reproduce.end(rows)
    for dataset in ("dl20", "dev"):
        there = [r for r in rows if r["dataset"] == dataset and r["student"]]
        assert {(r["student"], r["regime"], r["first_stage"]) for r in there} == CELLS
        assert all(0 <= r["value"] <= 1 for r in there)
    assert {r["status"] for r in rows} == {"run"}
    assert Counter(r["verdict"] is not None for r in rows)[True] == 2 * 2 * 2 * 2
    made = jobs(store)
    assert (made["students.train"], made["students.rerank"]) == (8, 32)
    # the study's second stage of distillation moves nothing, so its students rank as those of one stage do
    parity = [r for r in rows if r["regime"] == "cl,kd" and r["verdict"]]
    assert {(r["verdict"], r["single_difference"]) for r in parity} == {("equivalent", 0.0)}
    shown = reproduce_table.on_par(spec, rows)
    assert len(shown) == 16
    assert [said.partition(":")[0] for said in reproduce_table.hardly_trained(shown)] == [
        "electra cl,kd",
        "roberta cl,kd",
    ]
    electra = next(
        s
        for s in shown
        if (s["dataset"], s["first_stage"], s["regimes"]) == ("dl20", "colbertv2", "kd,cl - cl")
    )
    assert electra["study"] == pytest.approx(0.759 - 0.734)

    again = reproduce.run(store, spec, folder, SMALL)
    assert again == rows
    assert jobs(store) == made, "a finished cell is not done again, nor is anything else"
    with pytest.raises(BadInput, match="another recipe or size"):
        reproduce.run(store, spec, folder, replace(SMALL, steps=3))


TEACHERS_2026 = {
    (teacher, loss)
    for teacher in ("rankgpt-3.5", "qwen3-reranker", "mxbai-rerank", "ensemble")
    for loss in ("ranknet", "adr_mse", "margin_mse", "kl")
    if teacher != "rankgpt-3.5" or loss in ("ranknet", "adr_mse")
}


def test_teachers_2026_with_stand_ins_has_every_cell_and_a_verdict_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("tiny")
    study = reproduce_spec.read("teachers-2026")
    spec = reproduce_tiny.stand_ins(replace(study, test_sets=study.test_sets[:1]), folder, SMALL)
    store = LabelStore(folder / "reproduce.duckdb")
    rows = reproduce.run(store, spec, folder, SMALL)
    reproduce.end(rows)
    students = [r for r in rows if r["student"] and r["measure"] == "nDCG@10"]
    taught = {tuple(r["setting"].split(" kd.loss=")) for r in students if r["regime"] == "kd"}
    assert taught == TEACHERS_2026
    assert [r["verdict"] is not None for r in students] == [r["regime"] == "kd" for r in students]
    assert {r["single_stage"] for r in students if r["regime"] == "kd"} == {"cl"}
    with store.read() as con:
        learnt = dict(
            con.execute("""SELECT s.name, g.loss FROM students s JOIN stages g USING (student)""").fetchall()
        )
        parts = con.execute("SELECT parameters FROM labelings WHERE origin = 'combined'").fetchall()
    assert len(learnt) == len(TEACHERS_2026) + 1
    assert all(loss in (name.rpartition("kd.loss=")[2], "lce") for name, loss in learnt.items())
    assert len(parts) == 1
    made = jobs(store)
    assert reproduce.run(store, spec, folder, SMALL) == rows
    assert jobs(store) == made, "a finished cell is not done again"


@pytest.mark.slow
def test_tiny_scale_ends_with_all_sixteen_cells_for_each_test_set(tmp_path: Path) -> None:
    done = msft(
        "reproduce",
        "pezzuti2025",
        "--scale",
        "tiny",
        "--format",
        "json",
        store=tmp_path / "s.duckdb",
        cwd=tmp_path,
    )
    rows: list[dict[str, Any]] = json.loads(done.out)
    cells = {
        dataset: {
            (r["student"], r["regime"], r["first_stage"])
            for r in rows
            if r["dataset"] == dataset and r["student"]
        }
        for dataset in ("dl19", "dl20", "dlhard", "dev")
    }
    assert cells == dict.fromkeys(cells, CELLS)
    assert {r["status"] for r in rows} == {"run"}
    assert sum(r["published"] is not None for r in rows) == 53
    assert all("a stand-in" in r["measured_on"] for r in rows)
    assert (tmp_path / "pezzuti2025-tiny" / "reproduce.duckdb").is_file()
