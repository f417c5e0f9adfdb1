"""Measure constrained decoding and stopping a reply early (`--top`): tokens saved, and the effect on the order.

    python -m benchmarks.early_stop [--queries 48] [--data ../shared/data] [--tops 5,10,15]

The first part runs a tiny random Mistral on a real vLLM through `teachers generate`, in sliding windows of 20 over
ragged lists. Its replies are free, constrained, or constrained to stop after ``top`` identifiers. This part measures
tokens and time. The orders are random but the same in every row, because greedy replies begin alike.

    free_usable_share             share of calls with a usable reply, unconstrained
    constrained_usable_share      the same if a reply may contain unused identifiers only
    constrained_tokens_per_call   tokens generated
    top_M_tokens_saved            share of the tokens saved by stopping after M; top_M_seconds_saved: of the job's seconds
    top_M_head_equal              share of queries whose first M passages equal those of whole replies, in order

The second part replays real rankings: RankZephyr's orders of dl19's queries answer the windows over bm25's order, by
each strategy. RankZephyr ranked PISA's BM25, so it has three quarters of bm25's candidates. For the resulting order:

    STRATEGY_top_M_ndcg10_loss    nDCG@10 with whole replies minus nDCG@10 with replies stopped after M
    STRATEGY_top_M_tau            Kendall's tau between the two orders of the whole list
    STRATEGY_top_M_named_share    identifiers named, as a share of the identifiers in whole replies
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.labelling_store import WORDS, make
from benchmarks.real_lists import DATA, Candidates, candidates, rows
from benchmarks.teachers import BATCH, ragged
from msft.rankings import kendall_tau
from teachers.strategies import by_name as windows

Row = dict[str, Any]
TEACHER, FIRST_STAGE = "rankzephyr-7b", "pisa-bm25-100"
STRATEGIES = ("sliding", "single", "top-down", "tournament")


# --------------------------------------------------------------------------------------------------- with vLLM
def with_model(folder: Path, queries: int, tops: Sequence[int]) -> Row:
    """Run the same job with free replies, constrained replies, and replies stopped after each of ``tops``."""
    from benchmarks.tiny_mistral import make as make_model

    model = make_model(folder / "tiny", [" ".join(WORDS)] * 4)
    free = label(folder, model, "free", queries, constraint=None)
    whole = label(folder, model, "constrained", queries)
    row: Row = {
        "queries": queries,
        "free_usable_share": free["usable"],
        "constrained_usable_share": whole["usable"],
        "constrained_tokens_per_call": whole["tokens"],
    }
    for top in tops:
        stopped = label(folder, model, f"top-{top}", queries, top=top)
        equal = [stopped["orders"][query][:top] == order[:top] for query, order in whole["orders"].items()]
        row[f"top_{top}_tokens_saved"] = 1 - stopped["tokens"] / whole["tokens"]
        row[f"top_{top}_seconds_saved"] = 1 - stopped["seconds"] / whole["seconds"]
        row[f"top_{top}_head_equal"] = statistics.fmean(equal)
    return row


def label(folder: Path, model: Path, name: str, queries: int, **sampling: Any) -> Row:
    """Label a new store on a new engine, after a job that warms up the engine."""
    from teachers.engines.base import Sampling
    from teachers.engines.vllm import VllmEngine
    from teachers.generate.job import generate
    from teachers.generate.settings import Settings

    chosen = Sampling(**{"constraint": "identifiers", **sampling})
    settings = Settings(
        model=str(model),
        canaries=0,
        top=chosen.top,
        constrained=chosen.constraint is not None,
        max_attempts=1,
    )
    engine = VllmEngine(str(model), chosen, max_num_seqs=BATCH)
    generate(make(folder / f"{name}-warm.duckdb", 4, seed=1), settings, engine=engine)
    store = make(folder / f"{name}.duckdb", queries, length=ragged(0))
    done = generate(store, settings, engine=engine)
    engine.close()
    with store.read() as con:
        usable, tokens = con.execute(
            "SELECT avg((status IN ('ok', 'repaired'))::INTEGER), avg(tokens_out) FROM teacher_calls"
        ).fetchall()[0]
        orders = con.execute("SELECT query_id, list(doc_id ORDER BY rank) FROM labels GROUP BY 1").fetchall()
    print(f"{name}: {tokens:.1f} tokens a call, {done.figures.seconds:.1f} s", file=sys.stderr)
    return {"usable": usable, "tokens": tokens, "seconds": done.figures.seconds, "orders": dict(orders)}


# ----------------------------------------------------------------------------------------------- real rankings
def replayed(data: Path, tops: Sequence[int]) -> Row:
    """Run every strategy over bm25's order of dl19, with RankZephyr's ranking as whole and as stopped replies."""
    folder = data / "dl19-passage"
    ranked = {
        row["query_id"]: {doc_id: rank for rank, doc_id in enumerate(row["permutation"])}
        for row in rows(folder / "permutations.jsonl.gz")
        if (row["teacher"], row["first_stage"]) == (TEACHER, FIRST_STAGE)
    }
    if not ranked:
        raise SystemExit(f"{folder} has no rankings of {TEACHER} over {FIRST_STAGE}")
    lists = shared(candidates("dl19-passage", data=data), ranked)
    row: Row = {"replayed_queries": len(lists.query_ids)}
    for name in STRATEGIES:
        whole, named = orders(lists, ranked, name, None)
        row[f"{name}_ndcg10"] = lists.ndcg(whole)
        for top in tops:
            stopped, fewer = orders(lists, ranked, name, top)
            row[f"{name}_top_{top}_ndcg10_loss"] = row[f"{name}_ndcg10"] - lists.ndcg(stopped)
            row[f"{name}_top_{top}_tau"] = statistics.fmean(map(kendall_tau, whole, stopped))
            row[f"{name}_top_{top}_named_share"] = fewer / named
    return row


def shared(lists: Candidates, ranked: dict[str, dict[str, int]]) -> Candidates:
    """Keep the candidates that the teacher ranked, in the run's order, for queries with at least two of them."""
    both = [
        (
            query_id,
            text,
            [(d, p) for d, p in zip(ids, passages, strict=True) if d in ranked.get(query_id, ())],
        )
        for query_id, (text, passages), ids in zip(lists.query_ids, lists.lists, lists.doc_ids, strict=True)
    ]
    kept = [one for one in both if len(one[2]) > 1]
    return Candidates(
        lists.name,
        [query_id for query_id, _, _ in kept],
        [(text, [passage for _, passage in pairs]) for _, text, pairs in kept],
        [[doc_id for doc_id, _ in pairs] for _, _, pairs in kept],
        lists.qrels,
    )


def orders(
    lists: Candidates, ranked: dict[str, dict[str, int]], name: str, top: int | None
) -> tuple[list[list[float]], int]:
    """Return the scores of each list's passages (minus the final place) and the number of identifiers in the replies."""
    named = 0
    scores = []
    for query_id, ids in zip(lists.query_ids, lists.doc_ids, strict=True):
        places = [ranked[query_id][doc_id] for doc_id in ids]

        def reply(window: windows.Window, places: Sequence[int] = places) -> list[int]:
            nonlocal named
            whole = sorted(range(len(window)), key=lambda position: places[window[position]])
            head = whole[:top]
            named += len(head)
            return head + sorted(set(whole) - set(head))  # the rest keeps its order, as in teachers.replies

        final, _ = windows.run(windows.strategy(name), len(ids), reply)
        place = {candidate: rank for rank, candidate in enumerate(final.order)}
        scores.append([-float(place[candidate]) for candidate in range(len(ids))])
    return scores, named


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--queries", type=int, default=48)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--tops", default="5,10,15")
    parser.add_argument("--only", choices=("model", "replayed"))
    options = parser.parse_args()
    tops = [int(top) for top in options.tops.split(",")]
    parts: dict[str, Callable[[], Row]] = {"replayed": lambda: replayed(options.data, tops)}
    with tempfile.TemporaryDirectory(prefix="msft-early-stop-") as folder:
        # a sliding window of 20 passes 10 passages on, and `generate` refuses to settle fewer
        parts["model"] = lambda: with_model(Path(folder), options.queries, [t for t in tops if t >= 10])
        row: Row = {}
        for name, part in parts.items():
            row |= part() if options.only in (None, name) else {}
    print(json.dumps({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()}))


if __name__ == "__main__":
    main()
