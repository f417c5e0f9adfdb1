"""The folders that documentation pages' commands run in: small collections under the names that the pages use."""

import gzip
import json
import random
import shutil
from pathlib import Path

from made_words import FILLER, TOPICS

FIRST_WORDS = 40
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def small(folder: Path) -> None:
    """``mydata`` (and ``FOLDER``, the same): 240 passages, 60 queries in three judged splits; ``mydata/log``: a query log."""
    here = folder / "mydata"
    (here / "log").mkdir(parents=True)
    rng = random.Random(7)
    passages = []
    for n in range(240):
        words = [TOPICS[n % 10], TOPICS[(n // 10) % 10], *rng.choices(FILLER, k=12), f"w{n}"]
        rng.shuffle(words)
        passages.append({"doc_id": f"{n:04d}", "title": f"Passage {n}", "text": " ".join(words)})
    (here / "docs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in passages))
    queries, judged = [], []
    for q in range(60):
        relevant = passages[q * 4]
        topics = [word for word in relevant["text"].split() if word in TOPICS]
        queries.append(f"q{q:02d}\t{' '.join([*topics, rng.choice(FILLER), f'about{q}'])}\n")
        judged.append(f"q{q:02d} 0 {relevant['doc_id']} 1\n")
    (here / "queries.tsv").write_text("".join(queries))
    for split, part in {"train": slice(0, 30), "dev": slice(30, 40), "test": slice(40, 60)}.items():
        (here / f"qrels.{split}.txt").write_text("".join(judged[part]))
    log = [f"l{q:02d}\t{rng.choice(TOPICS)} and {rng.choice(TOPICS)} {q}\n" for q in range(30)]
    (here / "log" / "queries.tsv").write_text("".join(log))
    (folder / "FOLDER").symlink_to(here)


def research(folder: Path) -> None:
    """``mydata``, and ``grid.toml`` as the research guide prints it."""
    small(folder)
    page = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "research.md").read_text("utf-8")
    (folder / "grid.toml").write_text(page.split("```toml\n", 1)[1].split("```", 1)[0])


def mysearch(folder: Path) -> None:
    """``mysearch``: the first words of cranfield's passages, and two thirds of its queries as a log.

    The other queries are judged, in ``mysearch/judged``. Whole passages would take four times as long to embed.
    """
    here, source = folder / "mysearch", SHARED / "cranfield"
    (here / "judged").mkdir(parents=True)
    passages = [json.loads(line) for line in _lines(source / "docs.jsonl.gz") if line]
    for passage in passages:
        passage["text"] = " ".join(passage["text"].split()[:FIRST_WORDS])
    (here / "docs.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    queries = [line for line in _lines(source / "queries.tsv.gz") if line]
    held_out = {line.split("\t")[0] for line in queries[2::3]}
    for file, wanted in ((here / "queries.tsv", False), (here / "judged" / "queries.tsv", True)):
        chosen = [line for line in queries if (line.split("\t")[0] in held_out) == wanted]
        file.write_text("".join(line + "\n" for line in chosen))
    judged = [line for line in _lines(source / "qrels.txt.gz") if line and line.split()[0] in held_out]
    (here / "judged" / "qrels.txt").write_text("".join(line + "\n" for line in judged))


def teachers(folder: Path) -> None:
    """``mydata``, and ``tiny``: a random Mistral that stands in for a 7B teacher."""
    from benchmarks.tiny_mistral import make

    small(folder)
    make(folder / "tiny", [line.split("\t")[1] for line in _plain(folder / "mydata" / "queries.tsv")])


def documents(folder: Path) -> None:
    """``mysearch``: passages alone; ``real``: 40 queries of people, of which 20 are judged in ``mysearch-test.qrels.txt``."""
    small(folder)
    (folder / "mysearch").mkdir()
    shutil.move(folder / "mydata" / "docs.jsonl", folder / "mysearch" / "docs.jsonl")
    (folder / "real").mkdir()
    queries = _plain(folder / "mydata" / "queries.tsv")[20:]
    (folder / "real" / "queries.tsv").write_text("".join(line + "\n" for line in queries))
    shutil.copy(folder / "mydata" / "qrels.test.txt", folder / "mysearch-test.qrels.txt")


def _plain(file: Path) -> list[str]:
    return file.read_text("utf-8").splitlines()


def _lines(file: Path) -> list[str]:
    with gzip.open(file, "rt", encoding="utf-8") as text:
        return text.read().split("\n")


FOLDERS = {
    "small": small,
    "mysearch": mysearch,
    "research": research,
    "teachers": teachers,
    "documents": documents,
}
