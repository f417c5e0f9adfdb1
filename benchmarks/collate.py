"""Measure collating from the token cache in pairs/s on one core, beside the founding study's way with pandas.

    python -m benchmarks.collate [--passages 200000] [--queries 2000] [--depth 100] [--repeats 5]

Texts have MS MARCO's lengths (passages log-normal with a mean of 56 words, queries of 6 words) and a real tokenizer's
words. The cache is the memory-mapped one that trainings use. Both ways make padded batches of at most 256 tokens per
pair from lists of `depth` passages drawn from the whole collection.

pairs_per_second           lists -> length-sorted batches of tensors, planning included; one thread, median
founding_pairs_per_second  per query: a pandas merge of its candidates with the texts, then the tokenizer on pairs
                           (without its threads, as in a loader's process), padded to the longest; on fewer queries
speedup_over_founding
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

MAX_LENGTH, BATCH_TOKENS = 256, 16_384
FOUNDING_QUERIES = 20


def texts(tokenizer: Any, n: int, mean_words: float, spread: float, seed: int) -> list[str]:
    """Make texts of the tokenizer's words; the number of words is log-normal with this mean."""
    rng = np.random.default_rng(seed)
    words = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha())
    mu = np.log(mean_words) - spread**2 / 2
    lengths = np.clip(rng.lognormal(mu, spread, n).astype(int), 1, 400)
    drawn = iter(rng.integers(0, len(words), int(lengths.sum())).tolist())
    return [" ".join(words[next(drawn)] for _ in range(length)) for length in lengths.tolist()]


def ours(tokenizer: Any, queries: Any, passages: Any, lists: np.ndarray, repeats: int) -> dict[str, Any]:
    """Measure the seconds for all lists, a hundred lists (one step) at a time."""
    from students.text.batches import budget_batches, collate
    from students.text.tokens import PairFormat

    form = PairFormat.of(tokenizer, MAX_LENGTH)
    seconds, tokens = [], 0
    for _ in range(repeats):
        began, tokens = time.perf_counter(), 0
        for first in range(0, len(lists), 100):
            step = lists[first : first + 100]
            query = np.repeat(np.arange(first, first + len(step)), step.shape[1])
            passage = step.ravel()
            lengths = form.lengths(queries.lengths[query], passages.lengths[passage])
            for rows in budget_batches(lengths, BATCH_TOKENS):
                tokens += collate(form, queries, passages, query[rows], passage[rows]).n_tokens
        seconds.append(time.perf_counter() - began)
    return {
        "pairs_per_second": lists.size / statistics.median(seconds),
        "tokens_per_pair": tokens / lists.size,
    }


def founding(
    tokenizer: Any, query_texts: list[str], passage_texts: list[str], lists: np.ndarray
) -> dict[str, Any]:
    """Measure the founding study's way, one query at a time: merge, texts, tokenizer."""
    import pandas as pd

    n = min(FOUNDING_QUERIES, len(lists))
    documents = pd.DataFrame({"doc_id": np.arange(len(passage_texts)), "text": passage_texts}).set_index(
        "doc_id"
    )
    run = pd.DataFrame(
        {
            "query_id": np.repeat(np.arange(len(lists)), lists.shape[1]),
            "doc_id": lists.ravel(),
            "rank": np.tile(np.arange(1, lists.shape[1] + 1), len(lists)),
        }
    )
    groups = run.groupby("query_id")
    began = time.perf_counter()
    for query in range(n):
        found = (
            groups.get_group(query).merge(documents, left_on="doc_id", right_index=True).sort_values("rank")
        )
        tokenizer(
            [query_texts[query]] * len(found), found["text"].tolist(),
            padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt",
        )  # fmt: skip
    return {
        "founding_pairs_per_second": n * lists.shape[1] / (time.perf_counter() - began),
        "founding_queries": n,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # here alone: other benchmarks import this file

    import torch
    from transformers import AutoTokenizer

    from students.model.encoder import resolve_base
    from students.text.token_cache import TokenCache

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(resolve_base("minilm"))
    query_texts = texts(tokenizer, arguments.queries, 6, 0.35, seed=1)
    passage_texts = texts(tokenizer, arguments.passages, 56, 0.47, seed=2)
    lists = np.random.default_rng(3).integers(0, arguments.passages, (arguments.queries, arguments.depth))
    with tempfile.TemporaryDirectory(prefix="msft-collate-") as folder:
        cache = TokenCache(Path(folder), tokenizer)
        print("tokenising …", file=sys.stderr, flush=True)
        queries, passages = cache.tokens(query_texts), cache.tokens(passage_texts)
        row = {
            "benchmark": "collate",
            "passages": arguments.passages,
            "pairs": int(lists.size),
            **ours(tokenizer, queries, passages, lists, arguments.repeats),
            **founding(tokenizer, query_texts, passage_texts, lists),
        }
    row["speedup_over_founding"] = row["pairs_per_second"] / row["founding_pairs_per_second"]
    print(json.dumps({key: round(v, 1) if isinstance(v, float) else v for key, v in row.items()}))


if __name__ == "__main__":
    main()
