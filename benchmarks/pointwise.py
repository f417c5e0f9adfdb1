"""Compare a pointwise teacher on vLLM with vLLM's own offline scoring (`LLM.score`) on the same pairs.

Both load one tiny random Qwen3 in the frame of Qwen3-Reranker. vLLM's side is its converted head (`classifier_from_token`),
which computes two logits a pair; the teacher computes all logits and reports two. The sides take turns, on new texts each
round; each has its own engine and prefix cache. The teacher's side renders, asks, keeps a journal and merges it.

`LLM.score` has a process of its own: on a CPU two engines in one process slow each other down, even while one of them
waits, because each has its own team of OpenMP threads on the same cores (RMSNorm took 21 s in the place of 6).
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.labelling_store import make

Row = dict[str, Any]
PROMPT = "qwen3-reranker@1"
CONTEXT = 4096
CANDIDATES, WORDS = 50, 30  # of a query, of a passage
OVERRIDES = {
    "architectures": ["Qwen3ForSequenceClassification"],
    "classifier_from_token": ["no", "yes"],
    "is_original_qwen3_reranker": True,
}


def measure(folder: Path, options: argparse.Namespace, batch: int) -> Row:
    """Run both sides in turns; figures are medians over the rounds, each round on the same pairs."""
    model = _model(folder)
    found: dict[str, list[float]] = {"own": [], "whole": [], "peer": [], "overhead": [], "apart": []}
    engine = _engine(model, batch)
    try:
        with _scorer(model, batch) as peer:
            for turn in range(options.rounds + 1):  # the first round warms both up
                queries = max(options.queries // 4, 2)
                file = folder / f"pairs-{turn}.duckdb"
                store = make(file, queries, length=lambda k: CANDIDATES, words=WORDS, seed=turn)
                sides = [lambda s=store: _label(s, model, engine), lambda s=store: _score(s, peer)]
                results = [side() for side in (sides if turn % 2 else sides[::-1])]
                own, theirs = results if turn % 2 else results[::-1]
                if turn:
                    n = len(theirs["scores"])
                    found["own"].append(n / own["seconds"])
                    found["whole"].append(n / own["wall"])
                    found["peer"].append(n / theirs["seconds"])
                    found["overhead"].append((own["wall"] - own["engine"]) / own["wall"])
                    found["apart"].append(_apart(store, theirs["scores"]))
                    print(f"round {turn}: {n} pairs, {own}, score {theirs['seconds']:.2f} s", file=sys.stderr)
    finally:
        engine.close()
    middle = {name: statistics.median(values) for name, values in found.items()}
    ratios = [own / theirs for own, theirs in zip(found["own"], found["peer"], strict=True)]
    return {
        "pointwise_calls_per_second": middle["own"],
        "pointwise_whole_calls_per_second": middle["whole"],
        "score_pairs_per_second": middle["peer"],
        "pointwise_over_score": statistics.median(ratios),
        "pointwise_over_score_rounds": ratios,
        "pointwise_overhead_share": middle["overhead"],
        "pointwise_score_difference": max(found["apart"]),
    }


def _model(folder: Path) -> Path:
    from tests.helpers import tiny_qwen

    return tiny_qwen.make(folder / "tiny-qwen", hidden=128, layers=4)


def _engine(model: Path, batch: int) -> Any:
    from teachers.engines.base import Sampling
    from teachers.engines.vllm import VllmEngine

    options = {"dtype": "float32"}
    return VllmEngine(str(model), Sampling(logprobs=20), context=CONTEXT, max_num_seqs=batch, options=options)


@contextmanager
def _scorer(model: Path, batch: int) -> Iterator[Connection]:
    """Start a process that answers (queries, passages) with (seconds, scores) of one call of `LLM.score`."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_answer, args=(there, model, batch), daemon=True)
    process.start()
    there.close()  # so that the death of the process ends a wait for it
    try:
        here.recv()  # it is loaded
        yield here
    finally:
        here.close()
        process.join()


def _answer(pipe: Connection, model: Path, batch: int) -> None:
    from vllm import LLM, PoolingParams

    peer = LLM(
        model=str(model), runner="pooling", hf_overrides=OVERRIDES, dtype="float32", max_model_len=CONTEXT,
        max_num_seqs=batch, enforce_eager=True, gpu_memory_utilization=0.3, disable_log_stats=True,
    )  # fmt: skip
    template, raw = _jinja(), PoolingParams(use_activation=False)
    pipe.send("loaded")
    while True:
        try:
            queries, passages = pipe.recv()
        except EOFError:
            return
        began = time.perf_counter()
        outputs = peer.score(queries, passages, chat_template=template, use_tqdm=False, pooling_params=raw)
        seconds = time.perf_counter() - began
        pipe.send((seconds, [output.outputs.score for output in outputs]))


def _label(store: Any, model: Path, engine: Any) -> Row:
    from teachers.generate.job import generate
    from teachers.generate.settings import Settings

    settings = Settings(model=str(model), prompt=PROMPT, context=CONTEXT, canaries=0, name="scored")
    began = time.perf_counter()
    done = generate(store, settings, engine=engine)
    wall = time.perf_counter() - began
    if done.left or done.quarantined:
        raise RuntimeError(f"{done.labelled} of {done.queries} queries are labelled")
    return {
        "seconds": round(done.figures.seconds, 3),
        "wall": round(wall, 3),
        "engine": round(done.figures.engine_seconds, 3),
    }


def _score(store: Any, peer: Connection) -> Row:
    """Score the run's pairs in its order by one call of `LLM.score`, the way that its documentation calls fastest."""
    pairs = _pairs(store)
    peer.send(([query for query, _, _ in pairs], [text for _, text, _ in pairs]))
    seconds, scores = peer.recv()
    return {"seconds": seconds, "scores": scores}


def _pairs(store: Any) -> list[tuple[str, str, float | None]]:
    """Return (query, passage, the teacher's score if there is one) in the run's order."""
    with store.read() as con:
        found: list[tuple[str, str, float | None]] = con.execute(
            """SELECT q.text, d.text, s.score FROM candidates c JOIN queries q USING (query)
               JOIN documents d USING (document)
               LEFT JOIN permutations p USING (query)
               LEFT JOIN permutation_items s ON s.permutation = p.permutation AND s.document = c.document
               ORDER BY c.query, c.rank"""
        ).fetchall()
    return found


def _apart(store: Any, scores: list[float]) -> float:
    """Return the largest difference of the two sides' scores."""
    return max(
        abs(own - theirs)
        for (_, _, own), theirs in zip(_pairs(store), scores, strict=True)
        if own is not None
    )


def _jinja() -> str:
    """Write the teacher's frame as a template of vLLM's scoring interface, whose roles are `query` and `document`."""
    from teachers.prompts.template import template

    text = "".join(turn.text for turn in template(PROMPT).turns)
    role = "{{{{ (messages | selectattr('role', 'equalto', '{}') | first).content }}}}"
    filled = text.replace("{query}", role.format("query")).replace("{passage}", role.format("document"))
    return filled + "{{ '' }}"  # a template's last line break would be dropped
