"""The catalogue of datasets: short name, id in ir_datasets, collection, role, and the measures of the literature.

Other ids of ir_datasets work too; their collection and role follow from the name.
"""

import re
from dataclasses import dataclass
from typing import Final

TREC_DL: Final = ("nDCG@10", "AP(rel=2)", "RR(rel=2)@10", "R(rel=2)@100")
MARCO: Final = ("RR@10", "nDCG@10", "R@100")
BEIR: Final = ("nDCG@10", "R@100")
CLASSIC: Final = ("nDCG@10", "AP", "P@10", "R@100")
OTHER: Final = ("nDCG@10", "AP", "RR@10", "R@100")

NANO: Final = ("nDCG@10", "RR@10", "AP")  # those of sentence-transformers' evaluator
BRIGHT: Final = ("nDCG@10",)

SELF_RETRIEVING: Final = ("arguana", "quora")  # BEIR's collections whose queries are passages

ROLES: Final = ("train", "dev", "test")


@dataclass(frozen=True)
class Entry:
    """A known dataset.

    Attributes:
        name: how commands call it.
        ir_datasets_id: its id in ir_datasets; None where that has none.
        collection: the corpus it shares with others.
        role: train, dev or test; the leakage guard protects test.
        measures: in ir-measures' names, the first is the headline.
        licence: terms of the texts, if they restrict use.
    """

    name: str
    ir_datasets_id: str | None
    collection: str
    role: str
    measures: tuple[str, ...]
    licence: str | None = None


_MARCO_TERMS = "MS MARCO: non-commercial research"


def _marco(name: str, path: str, role: str, measures: tuple[str, ...]) -> Entry:
    return Entry(name, f"msmarco-passage/{path}", "msmarco-passage", role, measures, _MARCO_TERMS)


def _marco_v2(name: str, path: str, role: str, measures: tuple[str, ...]) -> Entry:
    return Entry(name, f"msmarco-passage-v2/{path}", "msmarco-passage-v2", role, measures, _MARCO_TERMS)


_MARCO_ENTRIES = [
    _marco("dl19", "trec-dl-2019/judged", "test", TREC_DL),
    _marco("dl20", "trec-dl-2020/judged", "test", TREC_DL),
    _marco("dlhard", "trec-dl-hard", "test", TREC_DL),
    _marco(
        "dev", "dev/small", "test", MARCO
    ),  # the literature tests on it; training queries must not meet it
    _marco("train", "train/judged", "train", MARCO),
    _marco_v2("dl21", "trec-dl-2021/judged", "test", TREC_DL),
    _marco_v2("dl22", "trec-dl-2022/judged", "test", TREC_DL),
    _marco_v2("dl23", "trec-dl-2023/judged", "test", TREC_DL),
    _marco_v2("dev-v2", "dev1", "test", MARCO),
    _marco_v2("train-v2", "train", "train", MARCO),
]

_CQADUPSTACK = (
    "android", "english", "gaming", "gis", "mathematica", "physics", "programmers", "stats", "tex", "unix",
    "webmasters", "wordpress",
)  # fmt: skip
# BEIR's test set, and the train and dev sets it has; "" where ir_datasets keeps the test set without a suffix.
_BEIR_SETS = {
    "arguana": ("",), "climate-fever": ("",), "nq": ("",), "scidocs": ("",), "trec-covid": ("",),
    "dbpedia-entity": ("test", "dev"), "quora": ("test", "dev"),
    "fever": ("test", "dev", "train"), "fiqa": ("test", "dev", "train"), "hotpotqa": ("test", "dev", "train"),
    "nfcorpus": ("test", "dev", "train"), "scifact": ("test", "train"),
    **{f"cqadupstack/{forum}": ("",) for forum in _CQADUPSTACK},
}  # fmt: skip


def _beir() -> list[Entry]:
    entries = [
        Entry("touche-2020", "beir/webis-touche2020/v2", "webis-touche2020-v2", "test", BEIR),
        Entry("webis-touche2020", "beir/webis-touche2020", "webis-touche2020", "test", BEIR),
    ]
    for name, splits in _BEIR_SETS.items():
        for split in splits:
            short = f"{name}/{split}" if split in ("train", "dev") else name
            path = f"beir/{name}/{split}" if split else f"beir/{name}"
            role = split if split in ("train", "dev") else "test"
            entries.append(Entry(short, path, name, role, BEIR))
    return entries


_CLASSIC = [
    Entry("cranfield", "cranfield", "cranfield", "test", CLASSIC),
    Entry("vaswani", "vaswani", "vaswani", "test", CLASSIC),
    Entry("cisi", None, "cisi", "test", CLASSIC),
    Entry("noveleval", None, "noveleval", "test", ("nDCG@10", "nDCG@5", "nDCG@1")),
    Entry("antique", "antique/test", "antique", "test", ("nDCG@10", "RR(rel=3)@10", "AP(rel=3)", "R(rel=3)@100")),
    Entry("antique/train", "antique/train", "antique", "train", ("nDCG@10", "RR(rel=3)@10")),
    Entry("robust04", "disks45/nocr/trec-robust-2004", "disks45-nocr", "test", ("nDCG@20", "AP", "P@20", "R@1000")),
]  # fmt: skip

# NanoBEIR's sets: sentence-transformers' name of each, and its id in ir_datasets.
_NANO_SETS = {
    "NanoArguAna": "arguana", "NanoClimateFEVER": "climate-fever", "NanoDBPedia": "dbpedia-entity",
    "NanoFEVER": "fever", "NanoFiQA2018": "fiqa", "NanoHotpotQA": "hotpotqa", "NanoMSMARCO": "msmarco",
    "NanoNFCorpus": "nfcorpus", "NanoNQ": "nq", "NanoQuoraRetrieval": "quora", "NanoSCIDOCS": "scidocs",
    "NanoSciFact": "scifact", "NanoTouche2020": "webis-touche2020",
}  # fmt: skip
_NANO = [Entry(name, f"nano-beir/{own}", name, "test", NANO) for name, own in _NANO_SETS.items()]
# mteb's tasks have "Retrieval" after the name, but for these.
_OTHER_TASKS = {"NanoClimateFEVER": "NanoClimateFeverRetrieval", "NanoQuoraRetrieval": "NanoQuoraRetrieval"}

_BRIGHT_SETS = (
    "biology", "earth-science", "economics", "psychology", "robotics", "stackoverflow", "sustainable-living", "leetcode",
    "pony", "aops", "theoremqa-questions", "theoremqa-theorems",
)  # fmt: skip
_BRIGHT = [
    Entry(f"bright/{part}", f"bright/{part}", f"bright/{part}", "test", BRIGHT) for part in _BRIGHT_SETS
]


def mteb_task(name: str) -> str | None:
    """Return the name of mteb's task over a set of NanoBEIR; None for other datasets."""
    return _OTHER_TASKS.get(name, f"{name}Retrieval") if name in _NANO_SETS else None


ENTRIES: Final[dict[str, Entry]] = {
    e.name: e for e in [*_MARCO_ENTRIES, *_beir(), *_CLASSIC, *_NANO, *_BRIGHT]
}
_BY_ID = {e.ir_datasets_id: e for e in ENTRIES.values() if e.ir_datasets_id} | {
    str(mteb_task(e.name)): e for e in _NANO
}

# Of BEIR the datasets that anybody can fetch.
SUITES: Final[dict[str, tuple[str, ...]]] = {
    "dl": ("dl19", "dl20", "dlhard"),
    "beir": (
        "arguana", "climate-fever", "dbpedia-entity", "fever", "fiqa", "hotpotqa", "nfcorpus", "nq", "quora",
        "scidocs", "scifact", "touche-2020", "trec-covid", *(f"cqadupstack/{forum}" for forum in _CQADUPSTACK),
    ),
    "nano-beir": tuple(_NANO_SETS),
    "bright": tuple(entry.name for entry in _BRIGHT),
}  # fmt: skip


def find(name: str) -> Entry | None:
    """Find the entry of a short name, an ir_datasets id or an mteb task; None for other names."""
    return ENTRIES.get(name) or _BY_ID.get(name)


def of_split(name: str, split: str) -> str:
    """Name the dataset of a split: NAME/SPLIT, but a known test set by its known name (``nfcorpus``)."""
    entry = find(name)
    return entry.name if split == "test" and entry and entry.role == "test" else f"{name}/{split}"


def measures(name: str) -> tuple[str, ...]:
    """List the measures that the literature reports on a dataset; a general set for other names.

    A name below a known one (``nfcorpus/validation``) takes its measures.
    """
    entry = find(name)
    if entry:
        return entry.measures
    if "/trec-dl-" in name:
        return TREC_DL
    for prefix, usual in (("msmarco-", MARCO), ("beir/", BEIR)):
        if name.startswith(prefix):
            return usual
    parent = find(name.rpartition("/")[0]) if "/" in name else None
    return parent.measures if parent else OTHER


def leaves_out_self(name: str) -> bool:
    """Tell whether the queries are passages, which the literature leaves out of their own rankings."""
    return collection(name) in SELF_RETRIEVING or name in {f"beir/{known}" for known in SELF_RETRIEVING}


def role(name: str, has_judgments: bool) -> str:
    """Tell a dataset's role: from the catalogue, else from the name (…/train, msmarco-train-x), else test if it has judgments."""
    entry = find(name)
    if entry:
        return entry.role
    words = re.split(r"[/_.-]", name.lower())
    by_ending = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev", "test": "test"}
    if len(words) > 1 and words[-1] in by_ending:
        return by_ending[words[-1]]
    if "train" in words:
        return "train"
    return "test" if has_judgments else "train"


def collection(name: str) -> str:
    """Tell a dataset's collection: from the catalogue, else the name without its split."""
    entry = find(name)
    if entry:
        return entry.collection
    head, slash, tail = name.rpartition("/")
    if slash and tail in ("train", "dev", "validation", "valid", "test", "judged"):
        return collection(head)
    return name
