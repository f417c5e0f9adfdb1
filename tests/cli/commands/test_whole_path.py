"""The whole path as a user walks it: documents in, tested student out, through the commands alone."""

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from made_words import FILLER, TOPICS
from runner import Done, commands

pytestmark = pytest.mark.test_all


def msft(store: Path, *arguments: str, code: int = 0) -> Done:
    """Run a command of msft outside this process and check its exit code."""
    environment = {**os.environ, "MSFT_STORE": str(store), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = commands().run(arguments, store.parent, environment)
    assert done.code == code, f"msft {' '.join(arguments)}\n{done.out}\n{done.err}"
    assert "Traceback" not in done.err
    return done


def rows(store: Path, *arguments: str) -> list[dict[str, Any]]:
    return json.loads(msft(store, *arguments, "--format", "json").out)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 passages on ten topics; 60 queries in three splits, a query's positive is on its two topics."""
    folder = tmp_path_factory.mktemp("collection")
    rng = random.Random(7)
    passages = []
    for n in range(240):
        words = [TOPICS[n % 10], TOPICS[(n // 10) % 10], *rng.choices(FILLER, k=12), f"w{n}"]
        rng.shuffle(words)
        passages.append({"doc_id": f"{n:04d}", "title": f"Passage {n}", "text": " ".join(words)})
    with gzip.open(folder / "docs.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(passage) + "\n" for passage in passages)
    queries, judged = [], []
    for q in range(60):
        relevant = passages[q * 4]
        topics = [word for word in relevant["text"].split() if word in TOPICS]
        queries.append((f"q{q:02d}", " ".join([*topics, rng.choice(FILLER), f"about{q}"])))
        judged.append((f"q{q:02d}", relevant["doc_id"]))
    (folder / "queries.tsv").write_text("".join(f"{q}\t{text}\n" for q, text in queries))
    for split, part in {"train": slice(0, 30), "dev": slice(30, 40), "test": slice(40, 60)}.items():
        (folder / f"qrels.{split}.txt").write_text("".join(f"{q} 0 {d} 1\n" for q, d in judged[part]))
    return folder


@pytest.fixture(scope="module")
def store(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the three splits, bm25s runs and negatives."""
    path = tmp_path_factory.mktemp("store") / "own.duckdb"
    for split in ("train", "dev", "test"):
        msft(
            path, "data", "add", f"own/{split}", "--from", str(collection),
            "--qrels", str(collection / f"qrels.{split}.txt"), "--collection", "own",
        )  # fmt: skip
        msft(
            path,
            "retrieve",
            "--dataset",
            f"own/{split}",
            "--retriever",
            "bm25s",
            "--depth",
            "30",
            "--name",
            "bm25",
        )
    msft(
        path, "negatives", "mine", "--dataset", "own/train", "--run", "bm25",
        "--depth", "30", "--per-query", "8", "--name", "hard",
    )  # fmt: skip
    return path


def test_documents_in_tested_student_out(store: Path, tiny_bert: Path) -> None:
    msft(
        store, "teachers", "generate", "--model", str(tiny_bert), "--engine", "cross-encoder",
        "--dataset", "own/train", "--run", "bm25", "--depth", "10", "--name", "labels",
    )  # fmt: skip
    for regime, options in {
        "cl": ["--negatives", "hard"],
        "kd": ["--labels", "labels"],
        "cl,kd": ["--negatives", "hard", "--labels", "labels"],
        "kd,cl": ["--negatives", "hard", "--labels", "labels"],
    }.items():
        msft(
            store, "students", "train", "--regime", regime, "--base", str(tiny_bert), "--dataset", "own/train",
            *options, "--name", f"student-{regime.replace(',', '-')}", "--batch", "8", "--max-steps", "4",
        )  # fmt: skip
    table = rows(store, "eval", "--dataset", "own/test", "--measure", "nDCG@10")
    systems = {row["system"]: row for row in table}
    assert systems["bm25"]["kind"] == "first_stage"
    assert {row["kind"] for row in table} >= {"first_stage", "student"}
    students = [row for row in table if row["kind"] == "student"]
    assert len(students) == 4
    assert all(
        row["first_stage"] == "bm25" and row["n_queries"] == 20 and 0 <= row["p_value"] <= 1
        for row in students
    )

    by_regime = rows(
        store, "sql",
        "SELECT regime, first_stage, value FROM results WHERE dataset = 'own/test' AND measure = 'nDCG@10' AND kind = 'student'",
    )  # fmt: skip
    assert {row["regime"] for row in by_regime} == {"cl", "kd", "cl,kd", "kd,cl"}
    stages = rows(store, "sql", "SELECT * FROM student_stages WHERE student = 'student-cl-kd' ORDER BY stage")
    assert [(s["objective"], s["steps"]) for s in stages] == [("cl", 4), ("kd", 4)]
    again = rows(store, "eval", "--dataset", "own/test", "--measure", "nDCG@10")
    assert again == table
    assert msft(store, "show", "lineage", "student-cl-kd").out.count("view") >= 2
    assert msft(store, "verify").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["students", "train", "--regime", "kl", "--dataset", "own/train"], 2, "cl,kd"),
        (["students", "train", "--regime", "cl", "--base", "no/such-model", "--dataset", "own/train", "--negatives", "hard"], 4, "no/such-model"),
        (["students", "train", "--regime", "kd", "--dataset", "own/train", "--labels", "nothing"], 4, "nothing"),
        (["students", "train", "--regime", "cl", "--dataset", "own/test", "--negatives", "hard"], 2, "own/train"),
        (["students", "train", "--regime", "cl", "--dataset", "own/test", "--run", "bm25"], 2, "--allow-overlap"),
        (["eval", "--dataset", "owm/test"], 4, "own/test"),
        (["runs", "import", "/no/such/file.run", "--dataset", "own/test", "--name", "x"], 4, "/no/such/file.run"),
        (["sql", "SELECT nothing FROM nowhere"], 1, "nowhere"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)  # fmt: skip
def test_a_wrong_command_gets_one_clear_line(store: Path, arguments: list[str], code: int, says: str) -> None:
    done = msft(store, *arguments, code=code)
    assert says in done.err
    assert "hint:" in done.err
    assert done.out == ""
