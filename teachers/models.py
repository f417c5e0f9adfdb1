"""Registry of teachers: model, prompt, context, prices and terms by name.

`--model` takes a name from this registry, a Hugging Face id, a folder, or ``student:NAME``. For an id or folder
outside the registry, a chat model gets the generic listwise prompt; a sequence classifier or an embedding model scores
pointwise. ``--prompt`` overrides the choice; with ``yes-no@1`` or ``rating@1`` any chat model scores one passage a call.
"""

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from teachers.errors import ExitCode, TeacherError
from teachers.prompts import template as prompts

_OPENAI_TERMS = "OpenAI terms of use: outputs not for models that compete with OpenAI's"


@dataclass(frozen=True)
class TeacherModel:
    """A teacher with all settings for its calls.

    Attributes:
        name: registry name, or the last part of an id or folder.
        model: Hugging Face id, folder or ``student:NAME``; None where only a prompt is registered.
        kind: ``listwise`` (an LLM that orders windows), ``pointwise`` (an LLM that scores one passage a call),
            ``cross-encoder`` or ``bi-encoder`` (scores without a prompt).
        prompt: template as ``NAME@VERSION``; None without a prompt.
        scoring: ``generation``, ``first-token`` (FIRST: identifiers' log-probabilities at the first position), or ``answers``
            (of one passage: the answers' log-probabilities at the first position).
        context: tokens of prompt and reply together; None: the limit in the model's configuration.
        engine: the engine to use without ``--engine``.
        window: passages per call in the model's training.
        input_price, output_price: US dollars per million tokens; None for local models or if unknown.
        licence: terms of its labels, if known.
        note: one line for `msft teachers list`.
    """

    name: str
    model: str | None
    kind: str = "listwise"
    prompt: str | None = None
    scoring: str = "generation"
    context: int | None = None
    engine: str = "vllm"
    window: int = 20
    input_price: float | None = None
    output_price: float | None = None
    licence: str | None = None
    note: str = ""

    @property
    def template(self) -> prompts.Template:
        """Return the model's prompt.

        Raises:
            TeacherError: if the model takes no prompt.
        """
        if self.prompt is None:
            raise TeacherError(f"{self.name} is a {self.kind} and takes no prompt")
        return prompts.template(self.prompt)

    @property
    def identifiers(self) -> str:
        """Return ``numbers`` or ``letters``, the prompt's kind of identifiers."""
        return self.template.identifiers


def _t5(name: str, model: str, prompt: str, kind: str = "pointwise") -> TeacherModel:
    """Describe an encoder-decoder of castorini that scores a passage, or a pair, by `true` against `false`."""
    what = "a call per passage" if kind == "pointwise" else "a call per ordered pair (--strategy pairwise)"
    return TeacherModel(
        name,
        model,
        kind=kind,
        prompt=prompt,
        scoring="answers",
        context=512,
        engine="transformers",
        licence="Apache-2.0",
        note=f"{what}, scored by the log-odds of true against false",
    )


def _scorer(name: str, model: str, prompt: str, licence: str = "Apache-2.0") -> TeacherModel:
    """Describe a model that was trained to score a passage by the first token's probabilities."""
    note = "a call per passage, scored by the first token's logits"
    return TeacherModel(
        name,
        model,
        kind="pointwise",
        prompt=prompt,
        scoring="answers",
        context=8192,
        licence=licence,
        note=note,
    )


_ALL = (
    TeacherModel(
        "rankzephyr",
        "castorini/rank_zephyr_7b_v1_full",
        prompt="rankzephyr@1",
        context=4096,
        licence="MIT (model); distilled from RankGPT-3.5 and RankGPT-4 permutations",
        note="Mistral-7B tuned to rank 20; nDCG@10 .737/.708 on DL19/DL20 over BM25",
    ),
    TeacherModel(
        "rankvicuna",
        "castorini/rank_vicuna_7b_v1",
        prompt="rankvicuna@1",
        context=4096,
        licence="Llama 2 community licence; distilled from RankGPT-3.5 permutations",
        note="Vicuna-7B tuned to rank 20; nDCG@10 .679/.658 on DL19/DL20 over BM25",
    ),
    TeacherModel(
        "first",
        "castorini/first_mistral",
        prompt="first@1",
        scoring="first-token",
        context=4096,
        note="one token per window, its log-probabilities are scores; nDCG@10 .729/.704",
    ),
    TeacherModel(
        "rankgpt",
        "gpt-3.5-turbo",
        prompt="rankgpt@1",
        context=16_385,
        engine="openai",
        input_price=0.5,
        output_price=1.5,
        licence=_OPENAI_TERMS,
        note="RankGPT's turns for any chat model (--engine openai --base-url …); nDCG@10 .67-.69/.62-.64",
    ),
    TeacherModel(
        "gpt-4o",
        "gpt-4o",
        prompt="rankgpt@1",
        context=128_000,
        engine="openai",
        input_price=2.5,
        output_price=10.0,
        licence=_OPENAI_TERMS,
        note="RankGPT's turns; GPT-4 stands at nDCG@10 .75/.70",
    ),
    TeacherModel(
        "gpt-4o-mini",
        "gpt-4o-mini",
        prompt="rankgpt@1",
        context=128_000,
        engine="openai",
        input_price=0.15,
        output_price=0.6,
        licence=_OPENAI_TERMS,
        note="RankGPT's turns",
    ),
    _scorer("qwen3-reranker-0.6b", "Qwen/Qwen3-Reranker-0.6B", "qwen3-reranker@1"),
    _scorer("qwen3-reranker-4b", "Qwen/Qwen3-Reranker-4B", "qwen3-reranker@1"),
    _scorer("qwen3-reranker-8b", "Qwen/Qwen3-Reranker-8B", "qwen3-reranker@1"),
    _scorer("mxbai-rerank-base-v2", "mixedbread-ai/mxbai-rerank-base-v2", "mxbai-rerank@1"),
    _scorer("mxbai-rerank-large-v2", "mixedbread-ai/mxbai-rerank-large-v2", "mxbai-rerank@1"),
    _scorer("bge-reranker-v2-gemma", "BAAI/bge-reranker-v2-gemma", "bge-gemma@1", "Gemma terms of use"),
    _t5("monot5-base", "castorini/monot5-base-msmarco", "monot5@1"),
    _t5("monot5-3b", "castorini/monot5-3b-msmarco", "monot5@1"),
    _t5("duot5-base", "castorini/duot5-base-msmarco", "duot5@1", "listwise"),
    _t5("duot5-3b", "castorini/duot5-3b-msmarco", "duot5@1", "listwise"),
    TeacherModel(
        "reasonrank",
        "liuwenhan/reasonrank-7B",
        prompt="reasonrank@1",
        note="thinks before it ranks a window (--think-tokens)",
    ),
    TeacherModel(
        "qwen3-thinking",
        "Qwen/Qwen3-4B-Thinking-2507",
        prompt="qwen3-thinking@1",
        licence="Apache-2.0",
        note="thinks before it ranks a window (--think-tokens)",
    ),
    TeacherModel(
        "rank-r1",
        None,
        prompt="rank-r1@1",
        note="a prompt for Rank-R1's models: thinks, then names the best passage (--strategy setwise --children 19)",
    ),
    TeacherModel(
        "yes-no",
        None,
        kind="pointwise",
        prompt="yes-no@1",
        scoring="answers",
        note="a prompt for any chat model: a call per passage, scored by the log-odds of yes against no",
    ),
    TeacherModel(
        "rating",
        None,
        kind="pointwise",
        prompt="rating@1",
        scoring="answers",
        note="a prompt for any chat model: a call per passage, scored by its expected rating from 0 to 4",
    ),
    TeacherModel(
        "listwise",
        None,
        prompt="listwise@1",
        note="the generic prompt for any chat model: --model HF_ID_OR_FOLDER takes it by itself",
    ),
)
REGISTRY: Mapping[str, TeacherModel] = {teacher.name: teacher for teacher in _ALL}


# A word of a model's name, and the family that it belongs to.
_FAMILIES = {
    "gpt": "gpt", "chatgpt": "gpt", "rankgpt": "gpt", "qwen": "qwen", "qwq": "qwen", "llama": "llama", "vicuna": "llama",
    "mistral": "mistral", "mixtral": "mistral", "zephyr": "mistral", "gemma": "gemma", "gemini": "gemini",
    "claude": "claude", "phi": "phi", "deepseek": "deepseek", "command": "command", "bge": "bge", "t5": "t5",
}  # fmt: skip


def family(model: str | None) -> str | None:
    """Return the family of a model by the words of its name; None if it is not known."""
    words = re.findall(r"t5|[a-z]+", (model or "").rsplit("/", 1)[-1].lower())
    found = [
        family for word in words for known, family in _FAMILIES.items() if word.removeprefix("rank") == known
    ]
    return found[0] if found else None


def resolve(
    name: str,
    *,
    prompt: str | None = None,
    engine: str | None = None,
    context: int | None = None,
    input_price: float | None = None,
    output_price: float | None = None,
) -> TeacherModel:
    """Find the teacher for `--model`; the other arguments override the registry.

    Raises:
        TeacherError: if the name is unknown, the folder contains no model, or the prompt does not exist.
    """
    found = _find(name, engine)
    if prompt is not None:
        template = prompts.template(prompt)
        scoring = "first-token" if template.name == "first" else "generation"
        kind = "pointwise" if template.pointwise else "listwise"
        scoring = "answers" if template.pointwise else scoring
        found = replace(found, kind=kind, prompt=template.ident, scoring=scoring)
    if found.model is None:
        raise TeacherError(
            f"{name} is a prompt without a model",
            hint=f"--model HF_ID_OR_FOLDER --prompt {name}",
            exit_code=ExitCode.USAGE,
        )
    given: dict[str, Any] = {
        "engine": engine,
        "context": context,
        "input_price": input_price,
        "output_price": output_price,
    }
    return replace(found, **{key: value for key, value in given.items() if value is not None})


def _find(name: str, engine: str | None) -> TeacherModel:
    if name in REGISTRY:
        return REGISTRY[name]
    for teacher in _ALL:
        if teacher.model == name:
            return teacher
    if name.startswith("student:"):
        if not name.removeprefix("student:"):
            raise TeacherError("student: needs a name", hint="msft students list", exit_code=ExitCode.USAGE)
        return TeacherModel(name, name, kind="cross-encoder", engine="cross-encoder")
    folder = Path(name)
    if folder.is_dir():
        return _from_folder(folder, engine)
    if engine in ("openai", "openai-batch"):  # a server may give its models any names
        return TeacherModel(name.rsplit("/", 1)[-1], name, prompt="listwise@1", engine=engine)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _pointwise_or_chat(name.rsplit("/", 1)[-1], name, engine)
    near = difflib.get_close_matches(name, REGISTRY, n=2)
    raise TeacherError(
        f"no teacher named {name!r}, and no such folder",
        hint=(f"did you mean {' or '.join(near)}? " if near else "")
        + "`msft teachers list` shows the registry; a Hugging Face id is OWNER/NAME; --engine openai takes any name",
        exit_code=ExitCode.DATA_MISSING,
    )


def _pointwise_or_chat(short: str, model: str, engine: str | None) -> TeacherModel:
    if engine in ("cross-encoder", "bi-encoder"):
        return TeacherModel(short, model, kind=engine, engine=engine)
    return TeacherModel(short, model, prompt="listwise@1", engine=engine or "vllm")


def _from_folder(folder: Path, engine: str | None) -> TeacherModel:
    """Read the kind of teacher from ``config.json`` and ``modules.json`` in a model folder."""
    short = folder.resolve().name
    if engine in ("cross-encoder", "bi-encoder"):
        return _pointwise_or_chat(short, str(folder), engine)
    file = folder / "config.json"
    if not file.is_file():
        raise TeacherError(
            f"{folder} holds no config.json, so it is no model folder",
            hint="write one with save_pretrained, or list students for student:NAME with `msft students list`",
            exit_code=ExitCode.DATA_MISSING,
        )
    try:
        config = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise TeacherError(f"{file}: not JSON: {error}") from error
    architectures = " ".join(config.get("architectures") or [])
    if "ForSequenceClassification" in architectures:
        return TeacherModel(short, str(folder), kind="cross-encoder", engine="cross-encoder")
    if (folder / "modules.json").is_file():
        return TeacherModel(short, str(folder), kind="bi-encoder", engine="bi-encoder")
    context = config.get("max_position_embeddings")
    known = next((t for t in _ALL if t.model and t.model.rsplit("/", 1)[-1] == short), None)
    if known is not None:  # a local copy with the registered name keeps its prompt
        return replace(known, model=str(folder))
    if config.get("is_encoder_decoder"):
        return replace(_t5(short, str(folder), "monot5@1"), licence=None)
    return TeacherModel(short, str(folder), prompt="listwise@1", context=context, engine=engine or "vllm")
