"""The demo's collection: what is kept of a package's docstrings, what is dropped and why, and how it is split."""

import json
from pathlib import Path

import pytest

from cli.workflows.demo import collection as demo_collection
from labelstore.errors import BadInput
from labelstore.files import jsonl, trec
from labelstore.store import keys

BODY = "It walks the tree from the root to the leaves and {what} each of them, in the order in which they were added {n}."


def function(name: str, summary: str, body: str) -> str:
    return f'def {name}():\n    """{summary}\n\n    {body}\n    """\n'


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed distribution `treewalk` with every kind of docstring, and a module that would fail if imported."""
    root = tmp_path / "site"
    (root / "treewalk" / "tests").mkdir(parents=True)
    (root / "treewalk-1.0.dist-info").mkdir()
    (root / "treewalk" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (root / "treewalk" / "core.py").write_text(
        function("collect", "Return all leaves of a given tree.", BODY.format(what="returns", n="first"))
        + function("tiny", "Too short.", BODY.format(what="sees", n="second"))
        + function("bare", "Return the root of a tree.", "No more to say.")
        + function("again", "Return all LEAVES of a given tree!", "Other words follow here, enough of them to be kept, yet the summary line was there before, seen above.")
        + function("echo", "Copy each branch in turn.", "Copy each branch in turn. " + BODY.format(what="copies", n="third"))
        + function("_hidden", "Never shown to any user.", BODY.format(what="hides", n="fourth"))
        + function("twin", "Gather every leaf of some tree.", BODY.format(what="returns", n="first"))
        + "class Walker:\n    def step(self):\n        \"\"\"Move on to the next node.\n\n        "
        + "The walker keeps :class:`Node` objects in ``self.queue`` and takes the oldest; it stops when none is left over.\n        \"\"\"\n"
    )  # fmt: skip
    (root / "treewalk" / "tests" / "test_core.py").write_text(
        function("test_it", "Check all leaves of a given tree.", BODY.format(what="tests", n="fifth"))
    )
    (root / "treewalk" / "template.py").write_text("{{ not python }}\n")
    files = sorted(p.relative_to(root) for p in root.rglob("*.py"))
    (root / "treewalk-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: treewalk\nVersion: 1.0\n"
    )
    (root / "treewalk-1.0.dist-info" / "RECORD").write_text("".join(f"{f},,\n" for f in files))
    monkeypatch.syspath_prepend(str(root))
    return "treewalk"


def test_what_is_kept_and_why_the_rest_is_not(package: str) -> None:
    made = demo_collection.build([package, "no-such-distribution"])
    assert [(d.name, d.summary) for d in made.docstrings] == [
        ("treewalk.core.collect", "Return all leaves of a given tree"),
        ("treewalk.core.Walker.step", "Move on to the next node"),
    ]
    assert "Node objects in self.queue" in made.docstrings[1].body
    assert made.drops == {
        "summary not a line of 4 to 20 words": (1, "treewalk.core.tiny"),
        "body under 15 words": (1, "treewalk.core.bare"),
        "summary seen before": (1, "treewalk.core.again"),
        "body repeats the summary": (1, "treewalk.core.echo"),
        "near-duplicate passage": (1, "treewalk.core.twin"),
    }
    assert made.n_read == len(made.docstrings) + sum(n for n, _ in made.drops.values())
    assert made.content_hash == demo_collection.build([package]).content_hash
    limited = demo_collection.build([package], limit=1)
    assert len(limited.docstrings) == 1
    assert limited.drops["over the limit"][0] == 1
    assert limited.content_hash != made.content_hash


@pytest.mark.test_all
def test_parsing_by_all_cores_gives_the_same() -> None:
    sources = [s for s in demo_collection._sources("python") if s[0].startswith(("asyncio", "email", "json"))]
    serial = list(map(demo_collection._docstrings, sources))
    many = [*sources, *sources[:1] * 200]
    parallel = list(demo_collection._parse(many))
    assert parallel[: len(sources)] == serial
    assert sum(map(len, serial)) > 100


def test_near_duplicates_are_found_and_different_texts_kept() -> None:
    base = "the reader takes one line after the other from the file and gives back what it found as a list of words"
    changed = base.replace(" from the", " quickly from the")
    other = (
        "a solver of linear systems by conjugate gradients with an optional preconditioner and a tolerance"
    )
    texts = [base, changed, other, base]
    assert demo_collection._near_duplicates(texts).tolist() == [False, True, False, True]


def test_the_split_is_disjoint_judged_and_stable(tmp_path: Path) -> None:
    docstrings = [
        demo_collection.Docstring(f"m.f{n}", f"Summary number {n} of this", f"Body {n} \u2028 text")
        for n in range(50)
    ]
    made = demo_collection.Collection(docstrings, 50, {})
    split = demo_collection.Split(test=10, dev=5, train=20)
    demo_collection.write(made, split, tmp_path)
    judged = {
        part: [(j.query_id, j.doc_id) for j in trec.read_qrels(tmp_path / "judged" / f"qrels.{part}.txt")]
        for part in ("test", "dev", "train")
    }
    assert {part: len(rows) for part, rows in judged.items()} == {"test": 10, "dev": 5, "train": 20}
    known = {q.query_id: q.text for q in jsonl.read_queries(tmp_path / "judged" / "queries.tsv")}
    assert len(known) == 35
    assert all(
        f"q{doc_id.removeprefix('m.f')}" == query_id for rows in judged.values() for query_id, doc_id in rows
    )
    assert [
        json.loads(line)["text"]
        for line in (tmp_path / "judged" / "docs.jsonl").read_text().split("\n")
        if line
    ] == [d.body for d in docstrings]
    # One docstring less elsewhere moves no query from the test set to training.
    fewer = demo_collection.Collection(docstrings[1:], 49, {})
    demo_collection.write(fewer, split, tmp_path / "fewer")
    normal = {keys.normal_hash(text) for text in known.values()}
    again = {q.query_id: q.text for q in jsonl.read_queries(tmp_path / "fewer" / "judged" / "queries.tsv")}
    assert len(normal & {keys.normal_hash(text) for text in again.values()}) >= 33


def test_too_few_docstrings_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="needs 35"):
        demo_collection.write(
            demo_collection.Collection([], 0, {}), demo_collection.Split(10, 5, 20), tmp_path
        )
