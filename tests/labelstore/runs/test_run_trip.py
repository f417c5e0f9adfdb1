"""A run's trip from a file to candidates: DuckDB reads every form strictly, each module is visited once, and the line
reader runs only where a line has to be named."""

import gzip
import itertools
import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import zstandard

from labelstore.datasets.add import NewDataset
from labelstore.datasets.from_folder import add_folder
from labelstore.errors import BadInput
from labelstore.files import run_lines, trec
from labelstore.runs import import_run
from labelstore.runs.known_ids import BATCH
from labelstore.store.label_store import LabelStore


@pytest.fixture(scope="module", params=["", "d"], ids=["numbers", "texts"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    """Queries 0…199 and passages 0…999, or the same with a letter before each id."""
    letter, source = request.param, tmp_path_factory.mktemp("source")
    (source / "docs.jsonl").write_text(
        "".join(json.dumps({"doc_id": f"{letter}{i}", "text": f"passage {i}"}) + "\n" for i in range(1000))
    )
    (source / "queries.tsv").write_text("".join(f"{letter}{i}\tquery {i}\n" for i in range(200)))
    store = LabelStore(source / "s.duckdb")
    add_folder(store, source, NewDataset("x", role="train"))
    return store


def run_of(store: LabelStore, depth: int) -> list[str]:
    with store.read() as con:
        letter = con.execute("SELECT min(doc_id) FROM documents").fetchall()[0][0].removesuffix("0")
    return [f"{letter}{q} Q0 {letter}{d} {d + 1} {1000 - d} T" for q in range(200) for d in range(depth)]


FORMS = {
    "plain": "\n".join,
    "tabs": lambda lines: "\n".join(lines).replace(" ", "\t"),
    "padded": lambda lines: "\n".join(lines).replace(" ", "   "),
    "crlf": "\r\n".join,
    "comments": lambda lines: "# made by hand\n" + "\n#\n\n".join(lines),
    "a byte order mark": lambda lines: "\ufeff" + "\n".join(lines),
    "an odd line at the end": lambda lines: "\n".join(lines[:-1]) + "\n\x0b" + lines[-1] + " \t",
    "an underscore in the tag": lambda lines: "\n".join(line + "_1" for line in lines),
    "shuffled": lambda lines: "\n".join([*lines[1::2], *lines[::2]]),
}


@pytest.mark.test_all
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.ZstdCompressor().compress], ids=["", "gz", "zst"])  # fmt: skip
def test_duckdb_reads_every_form_that_the_line_reader_takes(
    store: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, pack: Any
) -> None:
    lines = run_of(store, 5)
    path = tmp_path / "r.run"
    path.write_text("\n".join(lines))
    plain = import_run.import_run(store, path, "x", "plain").run
    path.write_bytes(pack(FORMS[form](lines).encode()))
    assert len(list(trec.read_run(path))) == len(lines)
    monkeypatch.setattr(trec, "read_run", None)
    imported = import_run.import_run(store, path, "x", "other", replace=True)
    assert (imported.n_read, imported.run.content_hash) == (len(lines), plain.content_hash)


LATE = {
    "5 fields": ("0 Q0 1 1 2", "5 fields"),
    "7 fields": ("0 Q0 1 1 2 t t", "7 fields"),
    "a word for a score": ("0 Q0 1 1 high t", "score 'high'"),
    "a word for a rank": ("0 Q0 1 first 2 t", "rank 'first'"),
    "half a rank": ("0 Q0 1 1.5 2 t", "rank '1.5'"),
    "an infinite score": ("0 Q0 1 1 1e39 t", "score '1e39'"),
    "two signs": ("0 Q0 1 1 +-2 t", r"score '\+-2'"),
    "a grouped number": ("0 Q0 1 1_0 2 t", "rank '1_0'"),
    "a lone carriage return": ("0 Q0 1 1 2 t\r0 Q0 2 2 1 t", "12 fields"),
    "a NUL": ("0 Q0 1 1 2 t\0", "NUL"),
    "not UTF-8": ("0 Q0 1 1 2 \udce9", "not UTF-8"),
    "a long line": ("0 Q0 1 1 2 " + "t" * (2 << 20), "longer than 1 MiB"),
}


@pytest.mark.test_all
@pytest.mark.parametrize("kind", LATE)
def test_what_is_wrong_after_many_lines_is_named_by_its_line(
    store: LabelStore, tmp_path: Path, kind: str
) -> None:
    """DuckDB has begun to hand out batches by then, many of them for one kind, and its errors come through Arrow."""
    lines, (bad, message) = run_of(store, 700 if kind == "5 fields" else 60), LATE[kind]
    assert kind != "5 fields" or len(lines) > 2 * BATCH
    path = tmp_path / "r.run"
    path.write_bytes("\n".join([*lines, bad, ""]).encode("utf-8", "surrogateescape"))
    with pytest.raises(BadInput, match=rf"r\.run:{len(lines) + 1}: .*{message}"):
        import_run.import_run(store, path, "x", "late")
    with store.read() as con:
        assert con.execute("SELECT count(*) FROM runs WHERE name = 'late'").fetchall() == [(0,)]


TRIP = ("labelstore.files", "labelstore.runs")


def visited(store: LabelStore, path: Path) -> list[str]:
    """The modules of the trip that `import_run` calls, in order, each stretch once."""
    calls: list[str] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or frame.f_back is None:
            return
        module, caller = (f.f_globals.get("__name__", "") for f in (frame, frame.f_back))
        if caller == import_run.__name__ != module and module.startswith(TRIP):
            calls.append(module)

    sys.setprofile(note)
    try:
        import_run.import_run(store, path, "x", "r", replace=True)
    finally:
        sys.setprofile(None)
    steps = [m for m in calls if not m.endswith("work_folder")]
    return [m for k, m in enumerate(steps) if k == 0 or m != steps[k - 1]]


@pytest.mark.parametrize("form", ["plain", "crlf", "shuffled", "comments"])
def test_a_run_passes_each_module_once(store: LabelStore, tmp_path: Path, form: str) -> None:
    path = tmp_path / "r.run"
    path.write_text(FORMS[form](run_of(store, 5)))
    names = ["files.run_lines", "runs.staged_run", "runs.write"]  # a thread copies the ids beside the first
    assert visited(store, path) == [f"labelstore.{name}" for name in names]


@pytest.mark.parametrize(
    ("ranks", "upset"),
    [
        ([1, 2, 3, 4], 0),
        ([4, 3, 2, 1], 2),
        ([2, 1, 4, 3], 2),
        ([1, 3, 2, 4], 0),
    ],
)
def test_ranks_that_disagree_with_scores_are_told_ties_apart(
    store: LabelStore, tmp_path: Path, ranks: list[int], upset: int
) -> None:
    """Scores 9, 5, 5, 1 in two queries: the tie in the middle may have its ranks either way."""
    first, rest = run_of(store, 5)[:5], run_of(store, 5)[5:10]
    lines = []
    for own in (rest, first):
        for line, rank, score in zip(own[:4], ranks, (9, 5, 5, 1), strict=True):
            query, q0, document, _, _, tag = line.split()
            lines.append(f"{query} {q0} {document} {rank} {score} {tag}")
    path = tmp_path / "r.run"
    path.write_text("\n".join([*lines[:2], *lines[4:], *lines[2:4]]))
    notes: list[str] = []
    import_run.import_run(store, path, "x", "r", replace=True, note=notes.append)
    assert [n.split(": ")[1] for n in notes] == (
        [f"ranks disagree with scores in {upset} of 2 queries; the scores count"] if upset else []
    )


@pytest.mark.parametrize(
    ("line", "form"),
    [
        ("q7 Q0 d7 7 -7 t", (b" ", False)),
        ("q7 Q0 d7 7 -7 t\r", None),
        ("q7 Q0 d7 7  -7 t", None),
        ("# a comment", None),
        ("", None),
        ("q7 Q0 d7 7 -1_000 t", (b" ", True)),
        ("q7 Q0 caf\u00e9 7 +-7 t", (b" ", True)),
    ],
)
def test_one_odd_line_is_seen_wherever_a_file_is_cut_into_parts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, form: tuple[bytes, bool] | None
) -> None:
    run = tmp_path / "run"
    for part, at in itertools.product((1, 2, 37, 160, 1 << 20), (1, 7, 13)):
        monkeypatch.setattr(run_lines, "_PART", part)
        monkeypatch.setattr(run_lines, "_BLOCK", max(1, part // 3))
        lines = [line if k == at else f"q{k} Q0 d{k} {k} -{k} t" for k in range(15)]
        run.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
        assert run_lines._form(run) == form
