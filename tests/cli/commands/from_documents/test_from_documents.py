"""From documents alone on the command line: a server writes queries and grades, filters and views use them, `eval` names its judge."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_store
import pytest
import usual_names
from openai_servers import Server, good, serving
from runner import Done, commands

from labelstore.report.boards import board
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore

pytestmark = pytest.mark.test_all

GRADING = "on an integer scale of 0 to 3"


def answer(number: int, body: dict[str, Any]) -> Any:
    """Grades and queries by the passage's number; a thought before them, and log-probabilities where they are asked for."""
    shown = body["messages"][-1]["content"]
    n = int(re.findall(r"number (\d+)", shown)[-1])
    reply = f"##final score: {n % 4}" if GRADING in shown else f"Query: where is thing {n} described"
    status, headers, sent = good(body, reply)
    if body.get("logprobs"):
        tokens = reply.split()
        sent["choices"][0]["logprobs"] = {"content": [{"token": t, "logprob": -n / 100} for t in tokens]}
    return status, headers, sent


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(answer) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return made_store.make(tmp_path / "s.duckdb", n_documents=40, n_queries=6)


def msft(store: LabelStore, *words: str) -> Done:
    environment = {**os.environ, "MSFT_STORE": str(store.path)}
    return commands().run(words, store.path.parent, environment)


def rows(store: LabelStore, *words: str) -> list[dict[str, Any]]:
    done = msft(store, *words, "--format", "json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_from_documents_to_a_judged_ranking(store: LabelStore, server: Server) -> None:
    plain = rows(store, "eval", "--dataset", "c/test", "--measure", "nDCG@10")
    asking = ("--engine", "openai", "--base-url", server.url, "--model", "tiny")
    (made,) = rows(store, "queries", "generate", *asking, "--collection", "c", "--n", "12", "--logprobs")
    assert (made["dataset"], made["passages"], made["queries"], made["calls"]) == ("c/synthetic", 12, 12, 12)
    assert all(body["logprobs"] and body["max_tokens"] == 64 for body in server.asked)
    again = rows(store, "queries", "generate", *asking, "--collection", "c", "--n", "12", "--logprobs")[0]
    assert (again["calls"], again["new"], again["resumed"]) == (0, 0, 12)
    none_yet = msft(store, "queries", "show", "c/synthetic").err
    assert "make one with `msft queries filter c/synthetic --words 3-40`" in none_yet
    filtered = rows(
        store,
        "queries",
        "filter",
        "c/synthetic",
        "--words",
        "3-40",
        "--min-log-probability",
        "-0.2",
        "--copied",
    )
    kept = {row["filter"]: row["kept"] for row in filtered}
    values = rows(store, "sql", "SELECT doc_id, log_probability, kept FROM generated_queries")
    assert all(row["log_probability"] == pytest.approx(-int(row["doc_id"][1:]) / 100) for row in values)
    assert {row["kept"] for row in values} == {True, False}
    assert kept["log-probability"] == sum(row["log_probability"] >= -0.2 - 1e-6 for row in values)
    shown = rows(store, "queries", "show", "c/synthetic", "--examples", "1")
    table = msft(store, "queries", "show", "c/synthetic").out
    assert max(map(len, table.splitlines())) <= 80, table
    assert [row["filter"] for row in shown] == ["length", "copied", "log-probability"]
    assert (
        rows(store, "queries", "filter", "c/synthetic", "--undo", "all")[0]["back"]
        == 12 - kept["log-probability"]
    )
    assert (
        msft(store, "retrieve", "--dataset", "c/synthetic", "--retriever", "bm25s", "--depth", "10").code == 0
    )
    round_trip = rows(store, "queries", "filter", "c/synthetic", "--round-trip", "10")
    assert round_trip[0]["tested"] == 12
    (judged,) = rows(
        store, "teachers", "judge", *asking, "--dataset", "c/test", "--run", "first", "--name", "j"
    )
    assert judged["judged"] == judged["pooled"] == sum(judged[f"grade_{grade}"] for grade in range(4))
    told = {(row["what"], row["of"]): row["value"] for row in rows(store, "teachers", "agreement", "j")}
    assert {"kappa", "bias", "confusion", "same grade"} <= {what for what, _ in told}
    by_judge = rows(store, "eval", "--dataset", "c/test", "--measure", "nDCG@10", "--judge", "j")
    assert {row["judge"] for row in by_judge} == {"j"}
    table = msft(store, "eval", "--dataset", "c/test", "--measure", "nDCG@10", "--judge", "j+human")
    assert "j+human" in table.out + table.err
    assert rows(store, "eval", "--dataset", "c/test", "--measure", "nDCG@10") == plain
    assert msft(store, "verify").code == 0
    assert msft(store, "teachers", "remove", "j").code == 0
    assert rows(store, "sql", "SELECT count(*) AS n FROM llm_judgments") == [{"n": 0}]
    assert rows(store, "eval", "--dataset", "c/test", "--measure", "nDCG@10") == plain
    assert msft(store, "verify").code == 0


def test_names_of_usual_length_fit_80_columns(tmp_path: Path, server: Server) -> None:
    store = usual_names.make(tmp_path / "s.duckdb")
    asking = ("--engine", "openai", "--base-url", server.url, "--model", "tiny")
    made = "msmarco-passage/synthetic"
    judging = f"gpt-4o-mini-2024-07-18@{usual_names.TEST}"
    grading = ("teachers", "judge", *asking, "--dataset", usual_names.TEST, "--name", judging)
    for words in (
        ("queries", "generate", *asking, "--collection", "msmarco-passage", "--n", "6", "--dry-run"),
        ("queries", "generate", *asking, "--collection", "msmarco-passage", "--n", "6"),
        ("queries", "generate", "--model", "sentences", "--collection", "msmarco-passage", "--n", "10"),
        ("queries", "filter", made, "--words", "3-40", "--copied", "--near-duplicates", "0.8"),
        ("queries", "filter", made, "--undo", "length", "--undo", "duplicate"),
        (*grading, "--dry-run"),
        grading,
        ("teachers", "agreement", judging),
    ):
        done = msft(store, *words)
        assert done.code == 0, done.err
        assert done.out, words
        assert max(map(len, done.out.splitlines())) <= 80, done.out


def test_generated_queries_as_a_test_set_are_warned_of(store: LabelStore, server: Server) -> None:
    asking = ("--engine", "openai", "--base-url", server.url, "--model", "tiny")
    rows(store, "queries", "generate", *asking, "--collection", "c", "--n", "4")
    assert (
        msft(store, "retrieve", "--dataset", "c/synthetic", "--retriever", "bm25s", "--depth", "5").code == 0
    )
    rows(store, "teachers", "judge", *asking, "--dataset", "c/synthetic", "--name", "j")
    done = msft(store, "eval", "--dataset", "c/synthetic", "--judge", "j", "--measure", "nDCG@5")
    assert done.code == 0, done.err
    assert "c/synthetic: its queries were generated by a model" in done.err
    assert "queries_by" in done.out
    measured = rows(store, "eval", "--dataset", "c/synthetic", "--judge", "j", "--measure", "nDCG@5")
    assert {row["queries_by"] for row in measured} == {"model"}
    assert not any("queries_by" in row for row in rows(store, "eval", "--dataset", "c/test"))
    with store.read() as con:
        notes = {name: board(con, lookup.dataset(con, name)).notes for name in ("c/synthetic", "c/test")}
    assert "a model wrote the queries; people did not ask them" in notes["c/synthetic"]
    assert not any("model" in note for note in notes["c/test"])
    assert "generated" not in msft(store, "eval", "--dataset", "c/test", "--measure", "nDCG@5").err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (
            ("queries", "generate", "--model", "sentences", "--collection", "c", "--prompt", "inpars@1"),
            2,
            "--prompt: --model sentences asks no model",
        ),
        (
            ("queries", "generate", "--model", "sentences", "--collection", "c", "--max-calls", "5"),
            2,
            "--max-calls",
        ),
        (("queries", "generate", "--model", "tiny", "--engine", "openai"), 2, "needs a server"),
        (("queries", "generate", "--model", "nothing-here"), 4, "no teacher named"),
        (
            ("queries", "generate", "--model", "gpt-4o-mini", "--engine", "ray", "--base-url", "x"),
            2,
            "--engine ray",
        ),
        (("queries", "filter", "c/synthetic", "--copied"), 4, "no dataset named"),
        (("queries", "filter", "c/train", "--copied"), 4, "no generated queries"),
        (("queries", "filter", "c/train", "--words", "many"), 2, "--words many"),
        (("queries", "filter", "c/train", "--words", "9-3"), 2, "--words 9-3"),
        (("queries", "filter", "c/train", "--run", "first"), 2, "--round-trip"),
        (("queries", "filter", "c/train", "--top", "3"), 2, "need a re-ranker"),
        (("queries", "filter", "c/train", "--copied", "--undo", "length"), 2, "exclude each other"),
        (("queries", "filter", "c/train"), 2, "no filter is given"),
        (("queries", "show", "c/train"), 4, "no generated queries"),
        (
            ("teachers", "judge", "--model", "tiny", "--engine", "openai", "--dataset", "c/test"),
            2,
            "needs a server",
        ),
        (("teachers", "judge", "--model", "minilm", "--dataset", "c/test"), 4, "no teacher named"),
        (("teachers", "agreement", "j"), 4, "no judging named 'j'"),
        (
            (
                "teachers",
                "judge",
                "--model",
                "tiny",
                "--engine",
                "openai",
                "--base-url",
                "x",
                "--prompt",
                "inpars@1",
            ),
            2,
            "no prompt named 'inpars@1' that can judge",
        ),
        (
            ("eval", "--dataset", "c/test", "--calibrate", "c/test"),
            2,
            "--calibrate corrects the grades of a judge",
        ),
        (
            ("negatives", "check", "hard", "--model", "tiny", "--engine", "openai", "--base-url", "x"),
            4,
            "no negatives named 'hard'",
        ),
        (("negatives", "mine", "--dataset", "c/train", "--denoise", "none"), 4, "no labeling named 'none'"),
        (("negatives", "mine", "--dataset", "c/train", "--max-flags", "-1"), 2, "--max-flags is -1"),
        (
            ("queries", "generate", "--model", "sentences", "--collection", "c", "--style", "long"),
            2,
            "--style:",
        ),
        (("eval", "--dataset", "c/test", "--judge", "j"), 4, "no judging named 'j'"),
        (("data", "sheet", "c/test", "--run", "none"), 4, "no run over c/test"),
        (
            ("views", "build", "--kind", "contrastive", "--dataset", "c/train", "--positives", "made"),
            2,
            "each | one | all | generated",
        ),
    ],
)
def test_bad_input_is_one_line_with_a_hint(
    store: LabelStore, words: tuple[str, ...], code: int, said: str
) -> None:
    done = msft(store, *words)
    assert done.code == code, done.err
    assert said in done.err
    assert "hint:" in done.err
    assert "Traceback" not in done.err


def test_a_reranker_keeps_the_queries_that_it_scores_best(
    store: LabelStore, server: Server, tiny_bert: Path
) -> None:
    from students.rerank.reranker import Reranker

    rows(
        store, "queries", "generate", "--model", "tiny", "--engine", "openai", "--base-url", server.url, "--collection", "c",
        "--n", "9",
    )  # fmt: skip
    (done,) = rows(store, "queries", "filter", "c/synthetic", "--reranker", str(tiny_bert), "--top", "4")
    assert (done["tested"], done["kept"]) == (9, 4)
    texts = rows(
        store,
        "sql",
        "SELECT g.text, d.text AS passage, g.kept FROM generated_queries g JOIN documents d USING (doc_id) ORDER BY query_id",
    )
    scores = Reranker.load(tiny_bert).scores([(row["text"], [row["passage"]]) for row in texts])
    best = sorted(range(9), key=lambda k: -float(scores[k][0]))[:4]
    assert {k for k in range(9) if texts[k]["kept"]} == set(best)


def test_negatives_are_checked_by_two_models_and_mined_again(store: LabelStore) -> None:
    """The cheap model flags every third passage, the strong one every ninth."""

    def verdict(number: int, body: dict[str, Any]) -> Any:
        shown = re.findall(r"^Doc \(\d+\): .*number (\d+)$", body["messages"][-1]["content"], re.M)
        least = 9 if body["model"] == "strong" else 3
        found = ", ".join(f"Doc ({k})" for k, n in enumerate(shown, 1) if int(n) % least == 0)
        return good(body, f"<verdict><better>[{found}]</better><worse>[]</worse></verdict>")

    rows(
        store,
        "negatives",
        "mine",
        "--dataset",
        "c/train",
        "--run",
        "first",
        "--depth",
        "20",
        "--name",
        "hard",
    )
    with serving(verdict) as server:
        server.models = (
            200,
            {},
            {"data": [{"id": name, "max_model_len": 32_768} for name in ("tiny", "strong")]},
        )
        checking = (
            "negatives", "check", "hard", "--model", "tiny", "--then", "strong", "--engine", "openai", "--base-url", server.url,
            "--input-price", "1", "--output-price", "1", "--then-input-price", "9", "--then-output-price", "9", "--name", "v",
        )  # fmt: skip
        first, second = rows(store, *checking, "--dry-run")
        assert not server.asked
        assert second["cost_most"] == pytest.approx(9 * first["cost_most"])
        first, second = rows(store, *checking)
        assert (first["model"], second["model"]) == ("tiny", "strong")
        assert second["negatives"] == first["flagged"] > second["flagged"] > 0
        n_asked = len(server.asked)
        done = msft(store, *checking)
        assert len(server.asked) == n_asked, "nothing is asked a second time"
    assert f"{second['flagged']} false negatives in" in done.err
    (by_sql,) = rows(
        store, "sql", "SELECT count(*) AS n FROM negative_verdicts WHERE checking = 'v' AND flagged"
    )
    assert by_sql["n"] == second["flagged"]
    counted = rows(
        store,
        "negatives",
        "mine",
        "--dataset",
        "c/train",
        "--run",
        "first",
        "--denoise",
        "v",
        "--name",
        "clean",
    )
    (denoising,) = (row for row in counted if row["step"] == "denoising")
    assert denoising["reasons"] == f"dropped: the verdict is that it is a false negative: {by_sql['n']}"
    assert "v on hard" in msft(store, "negatives", "list").err
    assert msft(store, "negatives", "remove", "v").code == 0
    assert msft(store, "verify").code == 0


def test_a_server_that_answers_prose_ends_partly_done(store: LabelStore) -> None:
    prose = "It really depends on what you are looking for, and there are many views."
    with serving(lambda number, body: good(body, prose)) as server:
        done = msft(
            store, "teachers", "judge", "--engine", "openai", "--base-url", server.url, "--model", "tiny", "--dataset", "c/test",
            "--run", "first", "--depth", "2", "--name", "j", "--max-attempts", "2",
        )  # fmt: skip
        assert len(server.asked) == 2 * 8
    assert done.code == 6
    assert "a reply without a grade is never a 0" in done.err
    assert rows(store, "sql", "SELECT count(*) AS n, count(grade) AS graded FROM judge_grades") == [
        {"n": 8, "graded": 0}
    ]
