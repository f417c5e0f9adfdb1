"""`bm25s`: BM25 in this process, in Lucene's variant and with Lucene's English analysis.

score(q, d) = Σ_t idf(t) · tf / (tf + k1 (1 − b + b·|d|/avg|d|)), idf(t) = ln(1 + (N − df + .5)/(df + .5)); Lucene and
Anserini rank by the same formula with document lengths rounded to one byte, hence their small differences.
"""

import json
import os
import re
import tempfile
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from labelstore.errors import UsageError
from labelstore.retrieval import memory_needed, scripts
from labelstore.retrieval.common import Corpus, Note, Progress, Ranking, batches, frame, index_folder
from labelstore.retrieval.postings import Postings

# org.apache.lucene.analysis.en.EnglishAnalyzer's default set.
LUCENE_STOP_WORDS = frozenset(
    [
        "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not",
        "of", "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was",
        "will", "with",
    ]
)  # fmt: skip

# The tokens of Lucene's StandardTokenizer (Unicode UAX 29): runs of letters, digits and _, joined by
# . ' ’ : between letters and by . , ; ' ’ between digits.
_TOKEN = re.compile(r"\w+(?:(?:(?<=[^\W\d_])[.'’:](?=[^\W\d_])|(?<=\d)[.,;'’](?=\d))\w+)*")
_POSSESSIVE = re.compile(r"['’]s$")
_QUERIES_AT_ONCE = 256


class Analyser:
    """Splits a text into stemmed tokens, as Lucene's EnglishAnalyzer: tokens, possessive 's, lower case, stop words, stem.

    Args:
        language: a Snowball stemmer's name; ``english`` takes Porter's original, as Lucene does. Stop words and the
            possessive are English's alone. ``none`` does not stem.

    Raises:
        UsageError: the stemmer is not found.
    """

    def __init__(self, language: str = "english") -> None:
        import Stemmer

        known = sorted(Stemmer.algorithms(aliases=True))
        self._stem: Callable[[str], str]
        if language == "none":
            self._stem = str
        elif language in known:
            self._stem = Stemmer.Stemmer("porter" if language == "english" else language).stemWord
        elif language.lower() in scripts.NAMES:
            raise UsageError(
                f"bm25s does not segment {language}",
                hint=f"--retriever bm25 --language {scripts.NAMES[language.lower()]}",
            )
        else:
            raise UsageError(f"no stemmer for {language!r}", hint=f"--language none | {' | '.join(known)}")
        self._english = language in ("english", "en", "porter")
        self._cache: dict[str, str | None] = {}

    def __call__(self, text: str) -> list[str]:
        found = []
        for token in _TOKEN.findall(text.lower()):
            if token in self._cache:
                stem = self._cache[token]
            else:
                stem = self._cache[token] = self._normal(token)
            if stem is not None:
                found.append(stem)
        return found

    def _normal(self, token: str) -> str | None:
        if self._english:
            token = _POSSESSIVE.sub("", token)
            if token in LUCENE_STOP_WORDS:
                return None
        return self._stem(token) or None


@dataclass(frozen=True)
class Bm25s:
    """The embedded retriever.

    Args:
        k1: saturation of term frequency, ≥ 0.
        b: length normalisation, 0 to 1.
        threads: for searching, fewer if the free memory asks for it; 0 takes one per core.

    Raises:
        UsageError: k1, b or the language has a wrong value.
    """

    k1: float = 0.9
    b: float = 0.4
    language: str = "english"
    threads: int = 0

    def __post_init__(self) -> None:
        check_weights(self.k1, self.b)
        Analyser(self.language)

    @property
    def system(self) -> str:
        return "bm25s"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"variant": "lucene", "k1": self.k1, "b": self.b, "language": self.language}

    def search(self, corpus: Corpus, depth: int, progress: Progress, note: Note) -> Ranking:
        analyse = Analyser(self.language)
        with index_folder(corpus, "bm25s", self.parameters, note) as (folder, complete):
            if not complete:
                memory_needed.check(corpus)
                self._build(corpus, folder, analyse, progress, note)
            # Searched inside the context: while it is being built the folder still has its temporary name.
            return self._search(corpus, folder, analyse, depth, progress)

    def _build(self, corpus: Corpus, folder: Path, analyse: Analyser, progress: Progress, note: Note) -> None:
        vocabulary: dict[str, int] = {}
        documents = array("i")
        with tempfile.TemporaryDirectory(dir=folder) as work, corpus.documents() as path:
            postings = Postings(Path(work))
            for keys, texts in batches(path):
                documents.extend(keys)
                postings.add(
                    np.array([vocabulary.setdefault(t, len(vocabulary)) for t in analyse(text)], np.int32)
                    for text in texts
                )
                progress(len(documents), corpus.n_documents)
            if not vocabulary:  # passages of stop words alone: nothing to find, but an index nonetheless
                vocabulary[""] = 0
            if corpus.n_documents >= memory_needed.SMALL:
                note(f"bm25s: writing the index of {corpus.collection}")
            postings.write(folder / "bm25s", len(vocabulary), k1=self.k1, b=self.b)
        np.save(folder / "documents.npy", np.frombuffer(documents, dtype=np.int32))
        (folder / "vocabulary.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")

    def _search(
        self, corpus: Corpus, folder: Path, analyse: Analyser, depth: int, progress: Progress
    ) -> Ranking:
        import bm25s

        index = bm25s.BM25.load(str(folder / "bm25s"), mmap=True, load_vocab=False)
        vocabulary = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        documents = np.load(folder / "documents.npy", mmap_mode="r")
        k = min(depth, len(documents))
        tokens = [
            (query, [vocabulary[t] for t in analyse(text) if t in vocabulary])
            for query, text in corpus.queries
        ]
        askable = [(query, ids) for query, ids in tokens if ids]
        parts = []
        top_k = partial(_top_k, index, k)
        cores = self.threads or os.cpu_count() or 1
        with ThreadPoolExecutor(memory_needed.threads(len(documents), cores)) as pool:
            for start in range(0, len(askable), _QUERIES_AT_ONCE):
                chunk = askable[start : start + _QUERIES_AT_ONCE]
                for (query, _), (positions, scores) in zip(
                    chunk, pool.map(top_k, [ids for _, ids in chunk]), strict=True
                ):
                    parts.append(frame(np.full(len(positions), query), documents[positions], scores))
                progress(start + len(chunk), len(askable))
        rows = pl.concat(parts) if parts else frame(np.empty(0), np.empty(0), np.empty(0))
        return Ranking(rows, {"bm25s": bm25s.__version__})


def _top_k(index: Any, k: int, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return (positions, scores) of the k best passages with a positive score, best first, ties by position.

    argpartition alone breaks ties at the cut arbitrarily. Positions are in document order, so every tie is broken in the same
    way on every machine.
    """
    scores = index.get_scores_from_ids(ids)
    if k < len(scores):
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        above = np.flatnonzero(scores > least)
        level = np.flatnonzero(scores == least)[: k - len(above)]
        positions = np.concatenate([above, level])
    else:
        positions = np.arange(len(scores))
    positions = positions[scores[positions] > 0]
    positions = positions[np.lexsort((positions, -scores[positions]))]
    return positions, scores[positions]


def check_weights(k1: float, b: float) -> None:
    """Raise UsageError unless k1 ≥ 0 and 0 ≤ b ≤ 1."""
    if not (0 <= k1 < float("inf")):
        raise UsageError(f"k1 is {k1}", hint="give a number from 0 up, e.g. --k1 0.9")
    if not 0 <= b <= 1:
        raise UsageError(f"b is {b}", hint="give a number from 0 to 1, e.g. --b 0.4")
