"""Measure labelling: the scheduler against sequential queries, lockstep and RankLLM, its overhead and its memory.

    python -m benchmarks.teachers [--queries 96] [--rounds 12] [--only vllm,scripted,memory,server]
        [--rankllm-python PATH]

Everything runs through `teachers generate`: rendering, hashing, scheduler, parsing, journal and store. Each part has
its own process and store. The model is a tiny random Mistral in a real vLLM on this machine, constrained to rank. Lists
have 5 to 100 passages, in sliding windows of 20.

calls_per_second            of the scheduler
sequential_, lockstep_      the same code limited to one query after another (on fewer queries), or to sending a
                            step's windows only when all replies of the step before are in. All use one engine in
                            turns; figures are medians over rounds. Passages have --words words (6), because the
                            scheduler saves engine steps, which count if replies take the time and not prompts
speedup_over_sequential     the scheduler's calls per second over theirs, median over rounds; speedups_… are the rounds'
speedup_over_lockstep
speedup_over_batches        over lockstep with at most as many queries at once as one batch of the engine has requests
steps_over_lockstep         engine steps of lockstep over those of the scheduler, for the same calls. This is the gain on
steps_over_batches          a machine where a step's cost does not grow with its tokens; it has no noise
occupancy                   mean requests in flight over the number that the engine wants, while work was left
overhead_share              (wall - engine time) / wall of a whole job on five times the queries: plan, store, scheduler,
                            journal, merge; engine time is time in which the engine had work
scripted_calls_per_second   with an engine that answers at once, over the time of labelling; …_whole_ also counts
                            reading the store before it and merging the journal after it
peak_memory_ratio           peak resident memory of the labelling process (plan, scheduler, journal): a scripted job of
                            10,000 queries over one of 100; peak_memory_gb is that of the larger
store_memory_ratio          the same for the separate processes in which a large job reads the store and merges the
                            journal; store_memory_gb is that of the larger, bounded by MSFT_MEMORY
server_calls_per_second     with --engine openai over a vLLM server on loopback whose every reply ranks 20 passages;
                            these lists have 20, 30 … 100 passages, so that every window has 20
rankllm_calls_per_second    RankLLM's OpenAI client on the same lists and server (it sends one call after another);
speedup_over_rankllm        only with --rankllm-python: an environment of `pip install --no-deps rank-llm` and
                            `pip install torch transformers==4.48.3 openai tiktoken ftfy dacite pandas pyyaml
                            python-dotenv`
pointwise_over_score        pairs per second of a pointwise teacher (tiny Qwen3 in Qwen3-Reranker's frame) over those of
                            vLLM's own `LLM.score` on the same pairs, median over rounds (`benchmarks.pointwise`)
pointwise_overhead_share    as overhead_share, of these jobs; pointwise_score_difference is between the two sides
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from operator import truediv
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.labelling_store import WORDS, make

Row = dict[str, Any]
BATCH = 32  # requests in one batch of vLLM
WINDOW = 20
BASELINES: dict[str, Row] = {
    "scheduler": {},
    "lockstep": {"lockstep": True},
    "batches": {"lockstep": True, "max_active": BATCH},
    "sequential": {"max_active": 1},
}
CLIENT = Path(__file__).with_name("rankllm_client.py")


def ragged(seed: int) -> Callable[[int], int]:
    """Return a function from a query to its number of candidates: 5 to 100, with short and long lists equally frequent."""
    rng = Random(seed)
    drawn = [rng.randint(5, 100) for _ in range(10_007)]
    return lambda k: drawn[k % len(drawn)]


# --------------------------------------------------------------------------------------------------- with vLLM
def vllm(folder: Path, options: argparse.Namespace) -> Row:
    """Run the scheduler and its baselines in turns on one engine. Each round has new lists and texts."""
    model, engine = tiny_engine(folder)
    taken = count_steps(engine)
    rates: dict[str, list[float]] = {how: [] for how in BASELINES}
    steps: dict[str, list[int]] = {how: [] for how in BASELINES}
    for turn in range(options.rounds):
        first = turn % len(BASELINES)
        order = list(BASELINES)[first:] + list(BASELINES)[:first]
        for how in order:
            queries = options.queries // 12 if how == "sequential" else options.queries
            # different texts of the same lengths, so that one way's prompts are not in vLLM's cache for another
            seed = 10 * turn + order.index(how)
            store = make(
                folder / f"{how}-{turn}.duckdb", queries, length=ragged(turn), words=options.words, seed=seed
            )
            before = taken()
            done = label(store, model, engine, queries, **BASELINES[how])
            steps[how].append(taken() - before)
            rates[how].append(done.figures.calls / done.figures.seconds)
            print(
                f"{how}: {done.figures.calls} calls in {done.figures.seconds:.1f} s, {steps[how][-1]} steps",
                file=sys.stderr,
            )
    engine.close()
    row: Row = {
        f"{how}_calls_per_second".removeprefix("scheduler_"): statistics.median(rates[how]) for how in rates
    }
    for peer in ("sequential", "lockstep", "batches"):
        ratios = [ours / theirs for ours, theirs in zip(rates["scheduler"], rates[peer], strict=True)]
        row |= {f"speedup_over_{peer}": statistics.median(ratios), f"speedups_over_{peer}": ratios}
    for peer in ("lockstep", "batches"):  # all make the same calls, so their steps are comparable
        row[f"steps_over_{peer}"] = statistics.median(map(truediv, steps[peer], steps["scheduler"]))
    return row


def count_steps(engine: Any) -> Callable[[], int]:
    """Return a function that counts the engine's steps since this call."""
    step, number = engine._engine.step, 0

    def counted() -> Any:
        nonlocal number
        number += 1
        return step()

    engine._engine.step = counted
    return lambda: number


def overhead(folder: Path, options: argparse.Namespace) -> Row:
    """Measure the share of a whole job in which the engine had work, on five times the queries with longer passages."""
    model, engine = tiny_engine(folder)
    queries = options.queries * 5
    store = make(folder / "overhead.duckdb", queries, length=ragged(0))
    began = time.perf_counter()
    done = label(store, model, engine, queries)
    wall = time.perf_counter() - began
    engine.close()
    return {
        "occupancy": done.figures.occupancy,
        "overhead_share": (wall - done.figures.engine_seconds) / wall,
        "overhead_calls": done.figures.calls,
        "overhead_seconds": wall,
        "tokens_per_second": done.figures.tokens_per_second,
    }


def tiny_engine(folder: Path) -> tuple[Path, Any]:
    """Make the model's folder, and a vLLM with this model that has labelled a few queries."""
    from benchmarks.tiny_mistral import make as make_model
    from teachers.engines.base import Sampling
    from teachers.engines.vllm import VllmEngine

    model = make_model(folder / f"tiny-{time.time_ns()}", [" ".join(WORDS)] * 4)
    engine = VllmEngine(str(model), Sampling(constraint="identifiers"), max_num_seqs=BATCH)
    label(make(folder / f"{model.name}-warm.duckdb", 4, seed=99), model, engine, 4)
    return model, engine


def label(store: Any, model: Path, engine: Any, queries: int, **scheduling: Any) -> Any:
    """Run a whole job; ``scheduling`` are the scheduler's arguments."""
    from teachers.generate import job
    from teachers.generate.settings import Settings
    from teachers.scheduling.scheduler import Scheduler

    job.Scheduler = partial(Scheduler, **scheduling)  # type: ignore[assignment,misc]
    done = job.generate(store, Settings(model=str(model), canaries=0), engine=engine)
    if done.labelled != queries:
        raise RuntimeError(f"{done.labelled} of {queries} queries are labelled")
    return done


# ------------------------------------------------------------------------------------------------ without model
def scripted(folder: Path, options: argparse.Namespace, queries: int | None = None) -> Row:
    """Run a job whose engine answers at once, to time everything except the model."""
    from teachers.generate.job import generate
    from teachers.generate.settings import Settings
    from tests.helpers.scripted_engine import ScriptedEngine

    number = queries or options.scripted_queries
    store = make(folder / "s.duckdb", number)
    engine = ScriptedEngine(prepared_replies(WINDOW))
    began = time.perf_counter()
    done = generate(store, Settings(model="rankzephyr", canaries=0), engine=engine)
    wall = time.perf_counter() - began
    if done.labelled != number:
        raise RuntimeError(f"{done.labelled} of {number} queries are labelled")
    return {
        "scripted_calls": done.figures.calls,
        "scripted_calls_per_second": done.figures.calls / done.figures.seconds,
        "scripted_whole_calls_per_second": done.figures.calls / wall,
    }


def prepared_replies(n: int, number: int = 1009) -> Callable[[Any], str]:
    """Choose one of `number` prepared rankings of n passages by the request's key, because shuffling takes time."""
    rng = Random(0)
    replies = [" > ".join(f"[{k}]" for k in rng.sample(range(1, n + 1), n)) for _ in range(number)]
    return lambda request: replies[int(request.key[:8], 16) % number]


def memory(folder: Path, options: argparse.Namespace, queries: int) -> Row:
    """Measure the peak memory of a scripted job. Another process makes the store, because that needs memory too."""
    from teachers.generate.job import generate
    from teachers.generate.settings import Settings
    from tests.helpers.scripted_engine import ScriptedEngine, hashed_order

    path = folder / f"memory-{queries}.duckdb"
    made = f"from pathlib import Path; from benchmarks.labelling_store import make; make(Path({str(path)!r}), {queries})"
    subprocess.run([sys.executable, "-c", made], check=True)
    from labelstore.store.label_store import LabelStore
    from teachers.generate import child_process

    child_process.LARGE_BYTES = child_process.LARGE_CANDIDATES = (
        0  # the small job also reads and merges in a separate process
    )
    generate(LabelStore(path), Settings(model="rankzephyr", canaries=0), engine=ScriptedEngine(hashed_order))
    beside = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {"peak_memory_gb": peak_gb(), "store_memory_gb": beside}


def peak_gb() -> float:
    """Read this process's peak resident memory. VmHWM starts anew with each program, unlike ru_maxrss."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20


# ------------------------------------------------------------------------------------------------ over a server
def server(folder: Path, options: argparse.Namespace) -> Row:
    """Run the clients of one vLLM server on loopback one after the other, on the same lists."""
    from benchmarks.vllm_server import served
    from teachers.generate.job import generate
    from teachers.generate.settings import Settings

    number = max(options.queries // 3, 4)
    drawn = ragged(0)
    store = make(folder / "server.duckdb", number, length=lambda k: max(round(drawn(k), -1), WINDOW))
    warm = make(folder / "server-warm.duckdb", 4, seed=1)
    lists = folder / "lists.json"
    with store.read() as con:
        found = con.execute(
            """SELECT q.query_id, q.text, list([d.doc_id, d.text] ORDER BY c.rank) FROM candidates c
               JOIN queries q USING (query) JOIN documents d USING (document) GROUP BY 1, 2 ORDER BY 1"""
        ).fetchall()
    lists.write_text(
        json.dumps([dict(zip(("query_id", "query", "passages"), row, strict=True)) for row in found])
    )
    processor = "benchmarks.ranking_replies:EveryReplyRanks"
    with served(folder, processor=processor, texts=[" ".join(WORDS)] * 4, context=4096, batch=BATCH) as (
        url,
        _,
    ):
        common: Row = {
            "model": "tiny",
            "prompt": "rankgpt",
            "engine": "openai",
            "base_urls": (url,),
            "canaries": 0,
        }
        generate(warm, Settings(**common))
        done = generate(store, Settings(**common))
        if done.labelled != number or done.figures.retried:
            raise RuntimeError(
                f"{done.labelled} of {number} queries labelled, {done.figures.retried} retries"
            )
        row = {
            "server_calls_per_second": done.figures.calls / done.figures.seconds,
            "server_calls": done.figures.calls,
        }
        if options.rankllm_python:
            command = [options.rankllm_python, str(CLIENT), str(lists), url, "tiny"]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            peer = json.loads(said.strip().splitlines()[-1])
            row |= {
                "rankllm_calls_per_second": peer["calls"] / peer["seconds"],
                "rankllm_calls": peer["calls"],
            }
            row["speedup_over_rankllm"] = row["server_calls_per_second"] / row["rankllm_calls_per_second"]
    return row


def pointwise(folder: Path, options: argparse.Namespace) -> Row:
    """Run a pointwise teacher and vLLM's own scoring in turns."""
    from benchmarks.pointwise import measure

    return measure(folder, options, BATCH)


PARTS: dict[str, Callable[[Path, argparse.Namespace], Row]] = {
    "vllm": vllm,
    "overhead": overhead,
    "scripted": scripted,
    "memory-100": partial(memory, queries=100),
    "memory-10000": partial(memory, queries=10_000),
    "server": server,
    "pointwise": pointwise,
}
GROUPS = {
    "vllm": ("vllm", "overhead"),
    "scripted": ("scripted",),
    "memory": ("memory-100", "memory-10000"),
    "server": ("server",),
    "pointwise": ("pointwise",),
}


def run(folder: Path, options: argparse.Namespace, groups: list[str]) -> Row:
    """Run the parts of these groups in separate processes, and compute the figures that combine them."""
    row: Row = {"queries": options.queries}
    peaks: list[Row] = []
    for part in (part for group in groups for part in GROUPS[group]):
        command = [
            sys.executable,
            "-m",
            "benchmarks.teachers",
            *sys.argv[1:],
            "--part",
            part,
            "--folder",
            str(folder),
        ]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        own = json.loads(said.strip().splitlines()[-1])
        print(f"{part}: {own}", file=sys.stderr)
        peaks += [own] if part.startswith("memory") else []
        row |= own
    if peaks:
        for what in ("peak", "store"):
            row[f"{what}_memory_ratio"] = peaks[-1][f"{what}_memory_gb"] / peaks[0][f"{what}_memory_gb"]
    return json.loads(json.dumps(row), parse_float=lambda text: round(float(text), 4))  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--queries", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=12, help="rounds of the scheduler and its baselines")
    parser.add_argument("--words", type=int, default=6, help="words per passage in these rounds")
    parser.add_argument("--scripted-queries", type=int, default=2000)
    parser.add_argument("--only", help=f"groups to run, from {','.join(GROUPS)}")
    parser.add_argument("--rankllm-python", help="the interpreter of an environment with RankLLM")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options.folder, options)))
        return
    groups = options.only.split(",") if options.only else list(GROUPS)
    with tempfile.TemporaryDirectory(prefix="msft-teachers-") as folder:
        print(json.dumps(run(Path(folder), options, groups)))


if __name__ == "__main__":
    main()
