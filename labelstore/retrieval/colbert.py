"""`colbert`: late interaction through PyLate, in a separate environment.

PyLate pins older transformers than msft's, so another interpreter runs `colbert_worker.py`: it reads the exported
collection and queries and writes a TREC run. `make setup-colbert` makes that environment; ``MSFT_COLBERT_PYTHON``
names another.
"""

import json
import os
import re
import subprocess
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelstore.errors import DataMissing, MsftError
from labelstore.retrieval.common import Corpus, Note, Progress, Ranking, batches, index_folder, read_trec
from labelstore.store import keys
from labelstore.store.keys import file_hash

DEFAULT_MODEL = "colbert-ir/colbertv2.0"
ENVIRONMENT = "MSFT_COLBERT_PYTHON"
_WORKER = Path(__file__).with_name("colbert_worker.py")
_PROGRESS = re.compile(r"progress (\d+) (\d+)")


@dataclass(frozen=True)
class Colbert:
    """A ColBERT checkpoint by id or folder.

    Args:
        device: cpu, cuda …; None lets the worker choose.
        threads: CPU threads; 0 leaves torch's default.
        batch_size: texts encoded at once.
    """

    model: str = DEFAULT_MODEL
    device: str | None = None
    threads: int = 0
    batch_size: int = 32

    @property
    def system(self) -> str:
        return "colbert"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"model": self.model, "weights": self._weights()}

    def search(self, corpus: Corpus, depth: int, progress: Progress, note: Note) -> Ranking:
        python = find_python()
        settings = {"model": self.model, "weights": self._weights()}
        with (
            index_folder(corpus, "colbert", settings, note) as (folder, complete),
            tempfile.TemporaryDirectory(prefix="msft-colbert-") as scratch_name,
        ):
            scratch = Path(scratch_name)
            _write(scratch / "queries.jsonl", corpus.queries)
            arguments = [
                *(str(python), str(_WORKER), "--model", self._location(), "--index", str(folder)),
                *("--queries", str(scratch / "queries.jsonl"), "--output", str(scratch / "run.trec")),
                *("--depth", str(depth), "--batch-size", str(self.batch_size)),
            ]
            if self.device is not None:
                arguments += ["--device", self.device]
            if complete:
                self._run(arguments, progress)
            else:
                source = scratch / "documents.jsonl"
                with corpus.documents() as path, source.open("w", encoding="utf-8") as file:
                    for document_keys, texts in batches(path):
                        for key, text in zip(document_keys, texts, strict=True):
                            file.write(json.dumps({"id": str(key), "text": text}) + "\n")
                self._run([*arguments, "--documents", str(source)], progress)
            versions = json.loads((folder / "versions.json").read_text(encoding="utf-8"))
            return Ranking(read_trec(scratch / "run.trec", depth), versions)

    def _run(self, arguments: list[str], progress: Progress) -> None:
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        # The worker's environment must not see msft's packages, nor this folder, where bm25s.py would hide bm25s.
        environment.pop("PYTHONPATH", None)
        environment["PYTHONSAFEPATH"] = "1"
        if self.threads:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        said: deque[str] = deque(maxlen=40)
        process = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
        )
        try:
            for line in process.stdout or ():
                if found := _PROGRESS.match(line):
                    progress(int(found[1]), int(found[2]))
                else:
                    said.append(line.strip())
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if code:
            reason = next((line for line in reversed(said) if line), "it said nothing")
            raise MsftError(
                f"the ColBERT worker failed (exit {code}) with {self.model}: {reason[:500]}",
                hint="--model takes a ColBERT checkpoint: an id that the model cache holds, or a folder",
            )

    def _location(self) -> str:
        return str(Path(self.model).resolve()) if Path(self.model).is_dir() else self.model

    def _weights(self) -> str | None:
        """Hash of a local checkpoint's weights, so that other weights in the same folder get an index of their own."""
        found = sorted(Path(self.model).glob("*.safetensors")) if Path(self.model).is_dir() else []
        return keys.content_key("colbert", [file_hash(path) for path in found]) if found else None


def find_python() -> Path:
    """Find the interpreter that has PyLate: ``MSFT_COLBERT_PYTHON``, or ``.venv-colbert`` here or beside the code.

    Raises:
        DataMissing: no such interpreter is found.
    """
    named = os.environ.get(ENVIRONMENT)
    if named:
        if not Path(named).is_file():
            raise DataMissing(f"{ENVIRONMENT} names {named}, which is not a file", hint="make setup-colbert")
        return Path(named)
    for root in (Path.cwd(), Path(__file__).resolve().parents[2]):
        python = root / ".venv-colbert" / "bin" / "python"
        if python.is_file():
            return python
    raise DataMissing(
        "the retriever colbert needs an environment with PyLate",
        hint=f"make .venv-colbert with make setup-colbert, or set {ENVIRONMENT} to the interpreter of another environment",
    )


def _write(path: Path, queries: list[tuple[int, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for query, text in queries:
            file.write(json.dumps({"id": str(query), "text": text}) + "\n")
