"""Write a synthetic collection of MS MARCO's size and lengths: docs.jsonl, queries.tsv, qrels.txt, run.txt.

    python -m benchmarks.synthetic FOLDER --queries 100000 --depth 500 [--passages 8841823] [--texts]

These numbers are MS MARCO's: 8,841,823 passages with ids 0 … 8,841,822; log-normal passage lengths with a mean of 56
words (10th to 90th percentile 27 to 89); queries of 6 words with ids up to 1,185,869; 1.06 judged passages per query,
of which a first stage has 85 % in its top 500. Candidates are distinct, scores fall, and one in a hundred ties. The
seed determines everything. Memory holds one block of queries or passages.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

PASSAGES, TRAIN_QUERIES, MAX_QUERY_ID = 8_841_823, 502_939, 1_185_869
BLOCK = 2_000  # queries at a time


@dataclass(frozen=True)
class Shape:
    """The size of a synthetic collection."""

    queries: int = 100_000
    depth: int = 500
    passages: int = PASSAGES
    seed: int = 42

    @property
    def candidates(self) -> int:
        return self.queries * self.depth


def query_ids(shape: Shape) -> np.ndarray:
    """Draw distinct whole numbers, like MS MARCO's query ids, in random order."""
    return np.random.default_rng([shape.seed, 1]).permutation(max(MAX_QUERY_ID, shape.queries))[
        : shape.queries
    ]


def positives(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Draw (query index, passage) of the judgments: one for each query, a second for 6 %."""
    rng = np.random.default_rng([shape.seed, 2])
    first = rng.integers(0, shape.passages, shape.queries)
    second = np.flatnonzero(rng.random(shape.queries) < 0.06)
    passages = np.concatenate(
        [first, (first[second] + 1 + rng.integers(0, shape.passages - 1, len(second))) % shape.passages]
    )
    owners = np.concatenate([np.arange(shape.queries), second])
    order = np.argsort(owners, kind="stable")
    return owners[order], passages[order]


def run_blocks(shape: Shape) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (query indices, passages, scores) for blocks of queries; the last two are (block, depth), best first.

    A query's passages are an arithmetic sequence modulo the largest prime below the collection's size, so they are
    distinct. For 85 % of the queries the first judged passage is among them, at a rank drawn log-uniformly.
    """
    prime = _prime_below(shape.passages)
    ranks = np.arange(shape.depth, dtype=np.int64)
    owners, judged = positives(shape)
    first = judged[np.searchsorted(owners, np.arange(shape.queries))]
    for start in range(0, shape.queries, BLOCK):
        rng = np.random.default_rng([shape.seed, 3, start])
        n = min(BLOCK, shape.queries - start)
        step = rng.integers(1, prime, (n, 1))
        passages = (rng.integers(0, prime, (n, 1)) + ranks * step) % prime
        block_first = first[start : start + n]
        place = np.minimum(
            np.exp(rng.random(n) * np.log(shape.depth + 1)).astype(np.int64) - 1, shape.depth - 1
        )
        found = (rng.random(n) < 0.85) & ~(passages == block_first[:, None]).any(axis=1)
        passages[found, place[found]] = block_first[found]
        gaps = rng.exponential(0.02, (n, shape.depth)) * (rng.random((n, shape.depth)) > 0.01)
        scores = rng.uniform(18, 32, (n, 1)) - np.cumsum(gaps, axis=1)
        yield np.arange(start, start + n), passages, scores


def write_run(shape: Shape, path: Path, tag: str = "synthetic") -> None:
    """Write a TREC run in the common form: one space between fields, ranks from 1, six decimals."""
    ids = query_ids(shape)
    options = csv.WriteOptions(include_header=False, delimiter=" ", quoting_style="none")
    names = ["query_id", "q0", "doc_id", "rank", "score", "tag"]
    types = [pa.int64(), pa.string(), pa.int64(), pa.int32(), pa.float64(), pa.string()]
    schema = pa.schema(list(zip(names, types, strict=True)))
    with csv.CSVWriter(str(path), schema, write_options=options) as writer:
        for queries, passages, scores in run_blocks(shape):
            n = passages.size
            columns = [
                np.repeat(ids[queries], shape.depth),
                pa.repeat("Q0", n),
                passages.ravel(),
                np.tile(np.arange(1, shape.depth + 1, dtype=np.int32), len(queries)),
                np.round(scores.ravel(), 6),
                pa.repeat(tag, n),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def write_queries(shape: Shape, path: Path) -> None:
    """Write queries.tsv: six words on average, all texts distinct."""
    rng = np.random.default_rng([shape.seed, 4])
    words = _vocabulary(shape.seed)
    lengths = np.clip(rng.poisson(5, shape.queries), 2, 20)
    drawn = words[_zipf(rng, int(lengths.sum()), len(words))]
    ends = np.cumsum(lengths)
    with path.open("w", encoding="utf-8") as out:
        for k, query_id in enumerate(query_ids(shape)):
            text = " ".join(drawn[ends[k] - lengths[k] : ends[k]])
            out.write(f"{query_id}\t{text} {k}\n")


def write_qrels(shape: Shape, path: Path) -> None:
    """Write qrels.txt in TREC's format."""
    ids = query_ids(shape)
    owners, passages = positives(shape)
    with path.open("w", encoding="utf-8") as out:
        out.writelines(f"{ids[q]} 0 {d} 1\n" for q, d in zip(owners, passages, strict=True))


def write_documents(shape: Shape, path: Path, texts: bool = True) -> None:
    """Write docs.jsonl. Without `texts` each passage is one word, for measurements that do not read texts."""
    rng = np.random.default_rng([shape.seed, 5])
    words = _vocabulary(shape.seed)
    source = words[_zipf(rng, 2_000_000, len(words))]
    with path.open("w", encoding="utf-8") as out:
        for start in range(0, shape.passages, 100_000):
            n = min(100_000, shape.passages - start)
            lengths = np.clip(rng.lognormal(np.log(51), 0.43, n).astype(int), 3, 250)
            begins = rng.integers(0, len(source) - 250, n)
            lines = []
            for k in range(n):
                text = " ".join(source[begins[k] : begins[k] + lengths[k]]) if texts else f"w{start + k}"
                lines.append(f'{{"doc_id": "{start + k}", "text": {json.dumps(text)}}}\n')
            out.writelines(lines)


def _vocabulary(seed: int, size: int = 60_000) -> np.ndarray:
    """Make synthetic words; common words are short."""
    rng = np.random.default_rng([seed, 6])
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    weights = 1 / np.arange(2, len(letters) + 2)
    lengths = np.clip(2 + np.log2(np.arange(1, size + 1)) / 2 + rng.normal(0, 1, size), 1, 14).astype(int)
    drawn = rng.choice(letters, int(lengths.sum()), p=weights / weights.sum())
    ends = np.cumsum(lengths)
    return np.array(["".join(drawn[e - n : e]) for e, n in zip(ends, lengths, strict=True)])


def _zipf(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """Draw ranks by Zipf's law over `size` words (inverse transform of the continuous law)."""
    return (np.exp(rng.random(n) * np.log(size)) - 1).astype(np.int64)


def _prime_below(n: int) -> int:
    candidate = n
    while candidate > 2 and any(candidate % k == 0 for k in range(2, int(candidate**0.5) + 1)):
        candidate -= 1
    return candidate


def write_all(shape: Shape, folder: Path, texts: bool) -> None:
    """Write the four files of a collection."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in (
        ("queries.tsv", write_queries),
        ("qrels.txt", write_qrels),
        ("run.txt", write_run),
    ):
        print(f"writing {folder / name}", file=sys.stderr)
        write(shape, folder / name)
    print(f"writing {folder / 'docs.jsonl'}", file=sys.stderr)
    write_documents(shape, folder / "docs.jsonl", texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--queries", type=int, default=Shape.queries)
    parser.add_argument("--depth", type=int, default=Shape.depth)
    parser.add_argument("--passages", type=int, default=Shape.passages)
    parser.add_argument("--seed", type=int, default=Shape.seed)
    parser.add_argument("--texts", action="store_true", help="passages of MS MARCO's lengths, not one word")
    options = parser.parse_args()
    shape = Shape(options.queries, options.depth, options.passages, options.seed)
    write_all(shape, options.folder, options.texts)
    print(json.dumps({"queries": shape.queries, "candidates": shape.candidates, "passages": shape.passages}))


if __name__ == "__main__":
    main()
