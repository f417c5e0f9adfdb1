"""Build the demo's collection from docstrings of the Python packages installed beside msft.

A docstring's summary line is a query, and its body is the relevant passage. So the text is real, people wrote it, and
the docstring's author gave the judgment. Sources are parsed and never imported, so none of their code runs. The same
packages give the same collection on every machine.
"""

import ast
import hashlib
import json
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from labelstore.errors import BadInput
from labelstore.store import keys

STANDARD_LIBRARY = "python"
# The standard library, msft's core dependencies and their dependencies. The list is fixed: extras change nothing.
PACKAGES = (
    STANDARD_LIBRARY,
    "accelerate", "bm25s", "duckdb", "ftfy", "ir-datasets", "ir-measures", "jinja2", "numpy", "pandas", "polars",
    "pyarrow", "rich", "scipy", "statsmodels", "sympy", "networkx", "torch", "transformers", "typer",
    "huggingface-hub", "safetensors", "fsspec", "patsy", "pygments",
)  # fmt: skip
_SKIPPED_FOLDERS = {
    "test",
    "tests",
    "testing",
    "idlelib",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "__pycache__",
}
# Internal modules: they are slow to parse and full of copied docstrings.
_SKIPPED_MODULES = ("torch._", "torch.ao.", "torch.onnx.", "transformers.models.", "pandas.tests.")

QUERY_WORDS = (4, 20)
PASSAGE_WORDS = (15, 40)  # lengths that fit a small student's 64 to 80 tokens
DUPLICATE_SHINGLE = 4
_HASHES, _BANDS = 32, 8  # 8 bands of 4 rows: pairs above a Jaccard similarity of about .6 share a band
_ROWS = _HASHES // _BANDS
_PRIME = (1 << 61) - 1

_WORD = re.compile(r"[A-Za-z][A-Za-z'-]+")
_RST = re.compile(r":\w+:`~?([^`]*)`|``([^`]*)``|`([^`]*)`_?|\*\*([^*]+)\*\*")


@dataclass(frozen=True)
class Docstring:
    """A docstring: the dotted `name` of its object, its first sentence (`summary`) and the rest (`body`)."""

    name: str
    summary: str
    body: str


@dataclass(frozen=True)
class Collection:
    """The collection that :func:`build` made.

    `drops` maps a reason to (number, one example); ``n_read = len(docstrings) + the sum of its drops``.
    """

    docstrings: list[Docstring]
    n_read: int
    drops: dict[str, tuple[int, str]]

    @property
    def content_hash(self) -> str:
        """Hash the names, summaries and bodies; equal packages give equal collections."""
        return keys.rows_key("demo-collection", ([d.name, d.summary, d.body] for d in self.docstrings))


def build(
    distributions: Iterable[str] = PACKAGES,
    limit: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Collection:
    """Read, filter and deduplicate the docstrings of installed packages.

    Args:
        distributions: names of installed distributions; ``python`` is the standard library. Missing ones are counted.
        limit: number of docstrings to keep, sampled by hash (the same sample each time).
        progress: called with (source files read, source files).
    """
    drops: dict[str, tuple[int, str]] = {}

    def drop(reason: str, example: str) -> None:
        n, first = drops.get(reason, (0, example))
        drops[reason] = (n + 1, first)

    n_read, kept, summaries, names = 0, [], set(), set()
    sources = [source for distribution in distributions for source in _sources(distribution)]
    for done, docstrings in enumerate(_parse(sources), 1):
        if progress is not None:
            progress(done, len(sources))
        for name, docstring in docstrings:
            n_read += 1
            found = _split(name, docstring)
            if isinstance(found, str):
                drop(found, name)
            elif (normal := keys.normalise_query(found.summary)) in summaries:
                drop("summary seen before", name)
            elif name in names:
                drop("name seen before", name)  # a property's setter, an overload
            else:
                names.add(name)
                summaries.add(normal)
                kept.append(found)
    duplicate = _near_duplicates([d.body for d in kept])
    for candidate, repeated in zip(kept, duplicate, strict=True):
        if repeated:
            drop("near-duplicate passage", candidate.name)
    kept = [d for d, repeated in zip(kept, duplicate, strict=True) if not repeated]
    if limit is not None and len(kept) > limit:
        chosen = set(sorted(kept, key=lambda d: keys.text_hash(None, d.name))[:limit])
        drop_n = len(kept) - limit
        kept = [d for d in kept if d in chosen]
        drops["over the limit"] = (drop_n, f"--limit {limit}")
    return Collection(kept, n_read, drops)


def _sources(distribution: str) -> Iterator[tuple[str, Path]]:
    """Yield (dotted module name, file) of a distribution's Python sources, sorted."""
    if distribution == STANDARD_LIBRARY:
        root = Path(sysconfig.get_path("stdlib"))
        paths = [(p.relative_to(root), p) for p in root.rglob("*.py")]
    else:
        try:
            listed = metadata.files(distribution) or []
        except metadata.PackageNotFoundError:
            return
        paths = [(Path(str(f)), Path(str(f.locate()))) for f in listed if f.suffix == ".py"]
    for relative, path in sorted(paths):
        parts = relative.with_suffix("").parts
        module = ".".join(p for p in parts if p != "__init__")
        wanted = not _SKIPPED_FOLDERS.intersection(parts) and not module.startswith(_SKIPPED_MODULES)
        if wanted and ".." not in parts and path.is_file():
            yield module, path


def _parse(sources: list[tuple[str, Path]]) -> Iterator[list[tuple[str, str]]]:
    """Yield the docstrings of each source, in the sources' order. All cores parse, because parsing is the slow part."""
    if len(sources) < 200:
        yield from map(_docstrings, sources)
        return
    with ProcessPoolExecutor() as pool:
        yield from pool.map(_docstrings, sources, chunksize=50)


def _docstrings(source: tuple[str, Path]) -> list[tuple[str, str]]:
    """List (dotted name, docstring) of a file's public classes, functions and methods, in source order."""
    module, path = source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates and sources for other Pythons
        return []
    found = []
    stack: list[tuple[str, ast.AST]] = [(module, tree)]
    while stack:
        prefix, node = stack.pop()
        children = []
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if child.name.startswith("_"):
                continue
            name = f"{prefix}.{child.name}"
            docstring = ast.get_docstring(child)
            if docstring:
                found.append((name, docstring))
            if isinstance(child, ast.ClassDef):
                children.append((name, child))
        stack.extend(reversed(children))
    return found


def _split(name: str, docstring: str) -> Docstring | str:
    """Split a docstring into summary and body, or return the reason why it is not usable."""
    head, _, rest = docstring.strip().partition("\n\n")
    summary, body = _plain(head), _plain(rest)
    if not QUERY_WORDS[0] <= len(_WORD.findall(summary)) <= QUERY_WORDS[1]:
        return "summary not a line of 4 to 20 words"
    if len(_WORD.findall(body)) < PASSAGE_WORDS[0]:
        return "body under 15 words"
    if keys.normalise_query(summary) in keys.normalise_query(body):
        return "body repeats the summary"
    if not (summary + body).isprintable():
        return "unprintable characters"
    return Docstring(name, summary.rstrip(" .:"), " ".join(body.split()[: PASSAGE_WORDS[1]]))


def _plain(text: str) -> str:
    """Turn a text into one line without reST and Markdown marks."""
    text = _RST.sub(lambda m: next(g for g in m.groups() if g is not None), text)
    text = re.sub(r"[-=~^*#]{3,}|\.\. [\w-]+::|>>>", " ", text)
    return " ".join(text.split())


def _near_duplicates(texts: list[str]) -> np.ndarray:
    """Find the texts that resemble an earlier text, by MinHash over word shingles (Broder 1997): bool per text."""
    generator = np.random.default_rng(7)
    a = generator.integers(1, 1 << 31, _HASHES, dtype=np.uint64)
    b = generator.integers(0, 1 << 31, _HASHES, dtype=np.uint64)
    duplicate = np.zeros(len(texts), dtype=bool)
    seen: list[dict[bytes, int]] = [{} for _ in range(_BANDS)]
    for position, text in enumerate(texts):
        words = _WORD.findall(text.lower())
        shingles = {
            " ".join(words[i : i + DUPLICATE_SHINGLE])
            for i in range(max(1, len(words) - DUPLICATE_SHINGLE + 1))
        }
        codes = np.array(
            [int.from_bytes(hashlib.blake2b(s.encode(), digest_size=4).digest(), "little") for s in shingles],
            dtype=np.uint64,
        )
        signature = ((codes[:, None] * a + b) % np.uint64(_PRIME)).min(axis=0)
        bands = [signature[k * _ROWS : (k + 1) * _ROWS].tobytes() for k in range(_BANDS)]
        if any(band in found for band, found in zip(bands, seen, strict=True)):
            duplicate[position] = True
            continue
        for band, found in zip(bands, seen, strict=True):
            found[band] = position
    return duplicate


@dataclass(frozen=True)
class Split:
    """The number of queries in each dataset of the demo. The bodies of all other docstrings are passages only."""

    test: int
    dev: int
    train: int


def write(collection: Collection, split: Split, folder: Path) -> None:
    """Write the collection for `msft data add`: docs.jsonl, queries.tsv and a file of judgments for each part.

    A hash of a query's text decides its dataset.

    Raises:
        BadInput: if there are fewer docstrings than the split asks for.
    """
    wanted = split.test + split.dev + split.train
    if len(collection.docstrings) < wanted:
        raise BadInput(
            f"the installed packages have {len(collection.docstrings):,} usable docstrings, the demo needs {wanted:,}",
            hint="`make setup` installs the packages that the demo reads",
        )
    order = sorted(
        range(len(collection.docstrings)), key=lambda n: keys.normal_hash(collection.docstrings[n].summary)
    )
    judged = folder / "judged"
    judged.mkdir(parents=True, exist_ok=True)
    (judged / "docs.jsonl").write_text(
        "".join(json.dumps({"doc_id": d.name, "text": d.body}) + "\n" for d in collection.docstrings),
        encoding="utf-8",
    )
    queries: list[str] = []
    start = 0
    for name in ("test", "dev", "train"):
        chosen = order[start : start + getattr(split, name)]
        start += len(chosen)
        queries += [_query(collection, n) for n in chosen]
        (judged / f"qrels.{name}.txt").write_text(
            "".join(f"q{n} 0 {collection.docstrings[n].name} 1\n" for n in chosen), encoding="utf-8"
        )
    (judged / "queries.tsv").write_text("".join(queries), encoding="utf-8")


def _query(collection: Collection, number: int) -> str:
    return f"q{number}\t{collection.docstrings[number].summary}\n"
