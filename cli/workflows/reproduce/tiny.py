"""`msft reproduce --scale tiny`: run the whole grid by the same commands, with small stand-ins for data and models.

Docstrings of the standard library stand in for MS MARCO's passages, and random models of a few thousand weights for the
base models. Another BM25 stands in for a first stage that needs a GPU, and an ordering by word overlap for the LLM. The
numbers show that every step works; they say nothing about the study.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.output import diagnostics
from cli.workflows.reproduce.plan import StoreContents
from cli.workflows.reproduce.sources import Teacher
from cli.workflows.reproduce.spec import FirstStage, Spec

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

    from cli.workflows.demo.collection import Docstring
    from cli.workflows.steps import Steps
    from labelstore.store.label_store import LabelStore

COLLECTION = "docstrings"
NOTE = "random tiny models over docstrings, a stand-in"
TEACHER = "word-overlap"
ARCHITECTURES = ("electra", "roberta", "bert")


@dataclass(frozen=True)
class Size:
    """The sizes of the stand-ins. The test sets are as large as TREC's; dev is smaller."""

    packages: tuple[str, ...] = ("python",)
    passages: int | None = None
    queries: int = 50  # queries of a test set that is not named here
    dl19: int = 43
    dl20: int = 54
    dev: int = 100
    train: int = 300
    depth: int = 20
    per_query: int = 7
    steps: int = 30
    vocabulary: int = 2000

    def of(self, name: str) -> int:
        return int(getattr(self, name, self.queries))


def stand_ins(spec: Spec, folder: Path, size: Size = Size()) -> Spec:
    """Replace the spec's large data and models by those that :func:`prepare` makes in `folder`, under the same names.

    Raises:
        UsageError: a base model has no stand-in.
    """
    _check_bases(spec)
    names = {name: f"tiny-{name}" for name in [t.name for t in spec.test_sets]}
    names |= {name: f"tiny-{name}" for name in spec.training_sets}
    stages = {stage.name: _stage(stage, k, size) for k, stage in enumerate(spec.first_stages)}
    labelled = next(iter(stages.values())).run
    contrastive = dict(spec.contrastive)
    if contrastive:
        run = stages[contrastive["run"]].run if contrastive["run"] in stages else labelled
        contrastive |= {
            "dataset": names[contrastive["dataset"]], "depth": size.depth, "per_query": size.per_query,
            "negatives": f"{run}-negatives",
        }  # fmt: skip
    labels = {t.labels: f"{TEACHER}{f'-{t.name}' if t.name else ''}@{labelled}" for t in spec.teachers}
    return replace(
        spec,
        test_sets=tuple(replace(t, dataset=names[t.name]) for t in spec.test_sets),
        first_stages=tuple(stages.values()),
        contrastive=contrastive,
        teachers=tuple(
            replace(
                t, dataset=names[t.dataset], labels=labels[t.labels], how=_how(t, labels, labelled, folder)
            )
            for t in spec.teachers
        ),
        trainings=tuple(
            replace(
                t,
                folder=str(folder / "models" / str(_architecture(t.base))),
                labels=labels.get(t.labels or "", t.labels),
            )
            for t in spec.trainings
        ),
        depth=size.depth,
        needs_gpu=False,
        views={"valid_fraction": 0.2, **spec.views},
        settings=_settings(spec, size),
        note=NOTE,
    )


def _how(teacher: Teacher, labels: dict[str, str], run: str, folder: Path) -> dict[str, Any]:
    """Say how a teacher's stand-in comes into the store: combined as in the recipe, else imported from a file.

    A teacher without scores has RankGPT's pair of files.
    """
    if teacher.parts:
        return {**teacher.how, "parts": [labels.get(part, part) for part in teacher.parts]}
    name = labels[teacher.labels].partition("@")[0]
    made = {"model": name, "first_stage": run, "file": str(folder / "data" / f"{name}.jsonl")}
    if "replies" in teacher.how:
        return {**made, "layout": "rankgpt", "replies": str(folder / "data" / f"{name}-replies.json")}
    return {**made, "layout": "permutations"}


def prepare(store: "LabelStore", steps: "Steps", spec: Spec, folder: Path, size: Size = Size()) -> None:
    """Make data, labels and base models in `folder` and add the datasets to its store. Existing files stay.

    Args:
        spec: the spec of :func:`stand_ins`.

    Raises:
        BadInput: if the folder holds a reproduction of another recipe, size or Python.
    """
    held = StoreContents.read(store)
    wanted = {t.dataset: "test" for t in spec.test_sets}
    wanted |= dict.fromkeys(spec.training_sets, "train")
    models = {str(t.folder): str(_architecture(t.base)) for t in spec.trainings}
    asked = [t for t in spec.teachers if not t.parts]
    unlabelled = any(t.labels not in held.labelings for t in asked)
    same = _check_record(spec, folder, size)
    if same and not unlabelled and wanted.keys() <= held.datasets.keys() and all(map(_is_model, models)):
        return
    docstrings = _collection(spec, size)
    data = folder / "data"
    _write_data(docstrings, spec, data, size)
    for name, role in wanted.items():
        steps(
            "data", "add", name, "--from", str(data), "--qrels", str(data / f"qrels.{name}.txt"),
            "--collection", COLLECTION, "--role", role,
        )  # fmt: skip
    if unlabelled:
        stage = spec.first_stages[0]
        for train in dict.fromkeys(t.dataset for t in asked):
            steps("retrieve", "--dataset", train, *stage.arguments)
            run = steps("runs", "export", stage.run, "--dataset", train)
            for number, teacher in enumerate(asked):
                if teacher.dataset == train:
                    _write_labels(run, docstrings, teacher, number)
    texts = [f"{d.summary} {d.body}" for d in docstrings]
    for name, architecture in models.items():
        if not _is_model(name):
            _make_model(architecture, Path(name), texts, size)


def _stage(stage: FirstStage, number: int, size: Size) -> FirstStage:
    """Make a first stage with the embedded BM25. Each has other parameters, so that the candidates differ."""
    options = {} if number == 0 else {"k1": round(0.9 + 0.9 * number, 1), "b": 0.9}
    name = "bm25s" if number == 0 else f"bm25s-k1-{options['k1']:g}"
    return FirstStage(stage.name, name, "bm25s", size.depth, options)


def _settings(spec: Spec, size: Size) -> dict[str, Any]:
    """Make the settings that override every training's. The study is about second stages' learning rates: they stay."""
    rates = {f"{name}.lr": 1e-3 for name in spec.objectives}
    return {
        "max_length": 96, "precision": "fp32", "lists": 8, "group_size": 4, "epochs": 0.0, "max_steps": size.steps,
        "valid_every": max(1, size.steps // 2), "log_every": 5, **rates,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------- collection
def _check_record(spec: Spec, folder: Path, size: Size) -> bool:
    """Check whether the folder already belongs to this reproduction. A new folder gets a record.

    Raises:
        BadInput: the folder belongs to another reproduction.
    """
    from labelstore.errors import BadInput

    record = folder / "reproduce.json"
    text = json.dumps({"recipe": spec.recipe, "size": asdict(size)}, indent=1)
    if not record.is_file():
        record.write_text(text, encoding="utf-8")
        return False
    if record.read_text(encoding="utf-8") != text:
        raise BadInput(
            f"{folder} has a reproduction of another recipe or size",
            hint="choose --folder OTHER, or remove it",
        )
    return True


def _collection(spec: Spec, size: Size) -> "list[Docstring]":
    """Collect docstrings, ordered by a hash of their summaries. A docstring's number is its query's id.

    Raises:
        BadInput: there are too few docstrings.
    """
    from cli.workflows.demo import collection as demo_collection
    from labelstore.errors import BadInput

    with diagnostics.progress("reading docstrings", unit="files") as tick:
        made = demo_collection.build(size.packages, limit=size.passages, progress=tick)
    wanted = sum(size.of(t.name) for t in spec.test_sets) + size.train
    if len(made.docstrings) < wanted:
        raise BadInput(
            f"{', '.join(size.packages)}: {len(made.docstrings):,} usable docstrings, {wanted:,} are needed",
            hint="use a Python that has the sources of its standard library",
        )
    return sorted(made.docstrings, key=lambda d: (_hash(d.summary), d.name))


def _write_data(docstrings: "Sequence[Docstring]", spec: Spec, data: Path, size: Size) -> None:
    """Write docs.jsonl, queries.tsv and each dataset's judgments: graded for DL's sets, one passage for others."""
    data.mkdir(parents=True, exist_ok=True)
    _jsonl(data / "docs.jsonl", ({"doc_id": d.name, "text": d.body} for d in docstrings))
    (data / "queries.tsv").write_text(
        "".join(f"q{n}\t{d.summary}\n" for n, d in enumerate(docstrings)), encoding="utf-8"
    )
    siblings: dict[str, list[str]] = {}
    for d in docstrings:
        siblings.setdefault(d.name.rpartition(".")[0], []).append(d.name)
    start = 0
    graded: list[int] = []
    for test_set in spec.test_sets:
        n = size.of(test_set.name)
        shared = (
            graded[: n // 2] if test_set.name == "dlhard" else []
        )  # because DL-Hard takes topics of DL 2019 and 2020
        chosen = [*shared, *range(start, start + n - len(shared))]
        start += n - len(shared)
        binary = test_set.name == "dev"
        graded += [] if binary else chosen
        lines = []
        for q in chosen:
            own = docstrings[q].name
            lines.append(f"q{q} 0 {own} {1 if binary else 3}\n")
            near = [] if binary else [s for s in siblings[own.rpartition(".")[0]] if s != own][:5]
            lines += [f"q{q} 0 {s} 1\n" for s in near]
        (data / f"qrels.{test_set.dataset}.txt").write_text("".join(lines), encoding="utf-8")
    for name in spec.training_sets:
        lines = [f"q{q} 0 {docstrings[q].name} 1\n" for q in range(start, start + size.train)]
        (data / f"qrels.{name}.txt").write_text("".join(lines), encoding="utf-8")


def _write_labels(run: str, docstrings: "Sequence[Docstring]", teacher: Teacher, number: int) -> None:
    """Write a teacher's lists over a first stage, ordered by the words that a passage shares with the query's answer.

    Args:
        run: the first stage's run in TREC format.
        number: the teacher's place; each one gives the length of a passage another weight.
    """
    body = {d.name: d.body for d in docstrings}
    answer = {f"q{n}": d for n, d in enumerate(docstrings)}
    lists: dict[str, list[str]] = {}
    for line in run.splitlines():
        if not line.startswith("#"):
            query, _, doc, *_ = line.split()
            lists.setdefault(query, []).append(doc)
    rows, replies = [], []
    for query, docs in lists.items():
        wanted = set(answer[query].body.lower().split())
        words = [set(body[d].lower().split()) for d in docs]
        scores = [len(wanted & own) / max(len(own), 1) ** (number / 4) for own in words]
        order = sorted(range(len(docs)), key=lambda k: (-scores[k], k))
        replies.append(" > ".join(f"[{k + 1}]" for k in order))
        asked = {"query": answer[query].summary, "query_id": query}
        shown = [{"docid": d, "text": body[d], "rank": k} for k, d in enumerate(docs, 1)]
        ranked = {"permutation": [docs[k] for k in order], "scores": [scores[k] for k in order]}
        rows.append(asked | ({"retrieved_passages": shown} if "replies" in teacher.how else ranked))
    _jsonl(Path(teacher.how["file"]), rows)
    if "replies" in teacher.how:
        Path(teacher.how["replies"]).write_text(json.dumps(replies), encoding="utf-8")


def _jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _hash(text: str) -> int:
    from labelstore.store import keys

    return keys.normal_hash(text)


# ----------------------------------------------------------------------------------------------------------- models
def _architecture(base: str) -> str | None:
    from students.model.bases import BASES

    by_id = {id_: name for name, id_ in BASES.items()}
    name = by_id.get(base, base)
    return name if name in ARCHITECTURES else None


def _check_bases(spec: Spec) -> None:
    from labelstore.errors import UsageError

    wrong = sorted({t.base for t in spec.trainings if _architecture(t.base) is None})
    if wrong:
        raise UsageError(
            f"no tiny model stands in for {', '.join(wrong)}",
            hint=f"--scale tiny has models for {', '.join(ARCHITECTURES)}",
        )


def _is_model(folder: str) -> bool:
    return (Path(folder) / "model.safetensors").is_file()


def _make_model(architecture: str, folder: Path, texts: list[str], size: Size) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    from students.model.encoder import QuietLoading

    tokenizer = _tokenizer(architecture == "roberta", texts, size.vocabulary)
    torch.manual_seed(42)
    model = AutoModelForSequenceClassification.from_config(
        _config(architecture, tokenizer), dtype=torch.float32
    )
    with torch.no_grad():  # at this size the usual initial weights are too small: all scores look alike
        for name, weights in model.named_parameters():
            if weights.ndim == 2 and "embeddings" not in name:
                weights.mul_(4.0)
    tokenizer.save_pretrained(folder)
    with QuietLoading():
        model.save_pretrained(folder, safe_serialization=True)
    diagnostics.note(
        f"{folder}: {architecture} of {sum(p.numel() for p in model.parameters()):,} random weights"
    )


def _config(architecture: str, tokenizer: "PreTrainedTokenizerFast") -> "PretrainedConfig":
    from transformers import BertConfig, ElectraConfig, RobertaConfig

    hidden = 32
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": hidden, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 2 * hidden, "pad_token_id": tokenizer.pad_token_id, "num_labels": 1,
    }  # fmt: skip
    if architecture == "roberta":
        return RobertaConfig(**common, max_position_embeddings=130, type_vocab_size=1)
    if architecture == "electra":
        return ElectraConfig(**common, max_position_embeddings=128, embedding_size=hidden)
    return BertConfig(**common, max_position_embeddings=128)


def _tokenizer(byte_level: bool, texts: list[str], vocabulary: int) -> "PreTrainedTokenizerFast":
    """Train RoBERTa's byte-level BPE, or the WordPiece of BERT and ELECTRA."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if byte_level:
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=special, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.post_processor = processors.RobertaProcessing(
            ("</s>", 2), ("<s>", 0), add_prefix_space=False
        )
        first, pad, last, unknown, mask = special
        inputs = ["input_ids", "attention_mask"]
    else:
        pad, unknown, first, last, mask = special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocabulary, special_tokens=special, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unknown, pad_token=pad, cls_token=first, sep_token=last, mask_token=mask,
        model_max_length=128, model_input_names=inputs,
    )  # fmt: skip
