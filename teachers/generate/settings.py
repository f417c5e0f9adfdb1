"""Settings of a labelling job, each with its default and its text for `--help`, and which of them fit together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from labelstore.errors import UsageError
from teachers.generate.calling.fusing import FUSIONS, Fusion
from teachers.models import TeacherModel

ENGINES = ("vllm", "openai", "openai-batch", "ray", "transformers", "cross-encoder", "bi-encoder")
PAIRS = ("cross-encoder", "bi-encoder")  # engines that score pairs, without a prompt
CONSTRAINING = ("vllm", "ray")
SERVERS = ("openai", "openai-batch")  # engines that ask a server, by the model's name there
BATCH_PRICE = 0.5  # of a batch's call, as a share of the registry's price
WINDOWS = ("window", "stride", "passes", "pivot", "keep", "children", "sort")  # settings of strategies
CHOOSING = {
    "setwise": "setwise@1",
    "pairwise": "pairwise@1",
}  # strategies that need the best passage alone, and prompts
THINK_TOKENS = 4096  # of a thought, by default
PROCESSOR = "teachers.engines.constrained:IdentifierConstraint"

# The settings of every job that asks a model, with their texts for `--help`.
MaxInFlight = Annotated[int | None, "The most requests at once: in vLLM's batch, or per server."]
Timeout = Annotated[float, "Seconds that a server may take for a reply."]
Tokenizer = Annotated[
    str | None, "The tokenizer of a server's model, a folder or an id, for exact token counts."
]
MaxCalls = Annotated[int | None, "Stop before the job makes more calls than this."]
MaxTokens = Annotated[int | None, "Stop before the job uses more tokens than this, in and out together."]
MaxCost = Annotated[float | None, "Stop before the job costs more than this, in US dollars."]
InputPrice = Annotated[
    float | None, "The price of a million input tokens in US dollars; by default the registry's."
]
OutputPrice = Annotated[
    float | None, "The price of a million output tokens in US dollars; by default the registry's."
]
Context = Annotated[int | None, "The most tokens of prompt and reply together."]
Temperature = Annotated[float, "The sampling temperature; 0 is greedy."]


@dataclass(frozen=True)
class Settings:
    """The settings of `msft teachers generate`; None means the default of the model or strategy.

    For settings without a text here, the text is in the command line's code.
    """

    model: Annotated[str, "Registry name, Hugging Face id, folder, student:NAME or minilm."]
    dataset: Annotated[str | None, "The dataset whose queries are labelled; by default the only one."] = None
    run: Annotated[str | None, "The run whose candidates are labelled; by default the only first stage."] = (
        None
    )
    depth: Annotated[int, "Candidates per query."] = 100
    head_of: Annotated[
        str | None,
        "Label only the first --depth passages of each list of this labeling, in its order; `combine --refine` joins the two.",
    ] = None
    strategy: Annotated[
        str | None,
        "sliding (default), single, full, top-down, tournament, setwise, pairwise; pointwise for prompts of one passage.",
    ] = None
    window: Annotated[int | None, "Passages per call; by default the model's."] = None
    stride: Annotated[int | None, "Passages by which a sliding window moves."] = None
    passes: Annotated[int | None, "Passes of a sliding window."] = None
    pivot: Annotated[int | None, "The rank of the pivot (top-down)."] = None
    keep: Annotated[
        int | None, "Passages of a group that go on (tournament), or ranks to settle (setwise, pairwise)."
    ] = None
    children: Annotated[int | None, "Passages that a passage is compared with in a call (setwise)."] = None
    sort: Annotated[str | None, "heap (default) or bubble (setwise, pairwise), or all pairs (pairwise)."] = (
        None
    )
    samples: Annotated[int, "Shuffled orders per query whose rankings are merged (self-consistency)."] = 1
    seed: Annotated[int, "The seed of shuffled orders and of sampling."] = 0
    engine: Annotated[
        str | None,
        "vllm, openai, openai-batch (a day, half the price), ray, transformers (scores alone), cross-encoder, bi-encoder.",
    ] = None
    base_urls: tuple[str, ...] = ()  # OpenAI-compatible servers
    engine_arguments: Mapping[str, Any] = field(default_factory=dict)  # arguments of vllm.LLM
    workers: Annotated[int, "Workers of --engine ray."] = 2
    max_in_flight: MaxInFlight = None
    timeout: Timeout = 300.0
    tokenizer: Tokenizer = None
    limit: Annotated[int | None, "Label only the first N queries."] = None
    max_calls: MaxCalls = None
    max_tokens: MaxTokens = None
    max_cost: MaxCost = None
    input_price: InputPrice = None
    output_price: OutputPrice = None
    max_attempts: Annotated[int, "Attempts per call before its query goes to quarantine."] = 3
    retry_quarantined: Annotated[bool, "Try quarantined queries again."] = False
    name: Annotated[str | None, "The name of the labeling; by default TEACHER@RUN."] = None
    prompt: Annotated[str | None, "A registered prompt, NAME@VERSION; by default the model's."] = None
    context: Context = None
    examples: Annotated[
        str | None,
        "A dataset whose judged queries stand as examples before the question; not a test set.",
    ] = None
    shots: Annotated[int, "How many judged queries --examples shows."] = 2
    temperature: Temperature = 0.0
    constrained: bool | None = None  # allow only unused identifiers; None: if the engine supports it
    top: Annotated[int | None, "End each reply after the best N identifiers; needs --constrained."] = None
    think_tokens: Annotated[
        int | None, "Tokens that a thinking model may spend before its answer; 4096 by default."
    ] = None
    keep_thoughts: Annotated[bool, "Store the thoughts of a thinking model with its replies."] = False
    logprobs: Annotated[bool, "Store the log-probabilities of identifiers as scores."] = False
    fuse: Annotated[bool, "Fuse a scoring model's ranking with the run's."] = False
    fuse_by: Annotated[
        str, "ranks sums reciprocal ranks; scores adds the scores, each scaled to 0..1 within the query."
    ] = "ranks"
    fuse_weight: Annotated[float, "The teacher's share in --fuse; the run has the rest."] = 0.5
    canaries: Annotated[
        int, "Calls repeated at each start to notice that a model has changed; 0 for none."
    ] = 3

    @property
    def fusion(self) -> Fusion | None:
        """How the teacher's ranking is fused with the run's; None: not at all."""
        return Fusion(self.fuse_by, self.fuse_weight) if self.fuse else None


LEAST = {
    "max_attempts": 1,
    "max_in_flight": 1,
    "max_calls": 0,
    "max_tokens": 0,
    "max_cost": 0,
    "temperature": 0,
}


def check_least(settings: object, **least: float) -> None:
    """Check numbers against the least that each may be.

    Raises:
        UsageError: a number is below it.
    """
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is not None and not value >= bound:  # NaN too
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} {value:g} is below {bound}", hint=f"{option} {bound} or more")


def check(settings: Settings) -> None:
    """Check the values that need no model.

    Raises:
        UsageError: if one is wrong.
    """
    check_least(settings, depth=1, limit=1, shots=1, top=1, samples=1, workers=1, **LEAST)
    if settings.top is not None and settings.constrained is False:
        raise UsageError("--top ends replies by constrained decoding, and --free switches that off")


def check_engine(settings: Settings, model: TeacherModel, engine: str, own: str | None) -> None:
    """Check the settings against the model and the engine.

    Args:
        own: name of an engine that the caller supplies.

    Raises:
        UsageError: if they do not fit.
    """
    if own is None and engine not in ENGINES:
        raise UsageError(f"no engine named {engine!r}", hint=f"--engine {' | '.join(ENGINES)}")
    _check_kind(settings, model, engine)
    if engine == "transformers" and not _scores(settings, model):
        raise UsageError(
            f"--engine transformers reads scores from one forward pass, and {model.name} writes replies to {model.prompt}",
            hint="--prompt yes-no@1, --strategy setwise --logprobs, or --engine vllm",
        )
    if settings.fuse and engine not in PAIRS:
        raise UsageError("--fuse is for --engine cross-encoder and bi-encoder")
    if settings.fuse_by not in FUSIONS:
        raise UsageError(f"no fusion by {settings.fuse_by!r}", hint=f"--fuse-by {' | '.join(FUSIONS)}")
    if not 0 < settings.fuse_weight < 1:
        raise UsageError(
            f"--fuse-weight is {settings.fuse_weight:g}: expected a number between 0 and 1",
            hint="--fuse-weight 0.7",
        )
    if settings.fuse_weight != 0.5 and not settings.fuse:
        raise UsageError("--fuse-weight is the teacher's share in a fused order", hint="add --fuse")
    if settings.fuse_by != "ranks" and not settings.fuse:
        raise UsageError("--fuse-by says how to fuse with the run", hint="add --fuse")
    if engine in PAIRS and (
        settings.constrained or settings.top or settings.logprobs or settings.samples > 1
    ):
        raise UsageError(
            f"--engine {engine} scores pairs: --constrained, --top, --logprobs, --samples do not apply"
        )
    if engine in SERVERS and not settings.base_urls:
        several = " (repeat it for several)" if engine == "openai" else ""
        raise UsageError(
            f"--engine {engine} needs a server", hint=f"--base-url http://127.0.0.1:8000/v1{several}"
        )
    if engine == "openai-batch":
        _check_batch(settings)
    if engine == "openai" and settings.top and not settings.constrained:
        raise UsageError(
            "--top ends replies by constrained decoding, which a server has to be started for",
            hint=f"--constrained, over vLLM servers with --logits-processors {PROCESSOR}",
        )
    if settings.max_cost is not None and (
        (settings.input_price if settings.input_price is not None else model.input_price) is None
        or (settings.output_price if settings.output_price is not None else model.output_price) is None
    ):
        raise UsageError(
            f"--max-cost needs prices, and {model.name} has no prices",
            hint="--input-price X --output-price Y, per million tokens",
        )


def _check_batch(settings: Settings) -> None:
    """Check the settings of provider batches."""
    if len(settings.base_urls) > 1:
        raise UsageError(
            f"--engine openai-batch asks one provider, and {len(settings.base_urls)} are given",
            hint="give one --base-url",
        )
    if settings.constrained or settings.top is not None:
        raise UsageError(
            "--engine openai-batch takes no --constrained and no --top: providers have no constrained decoding of rankings",
            hint="leave them out",
        )


def _scores(settings: Settings, model: TeacherModel) -> bool:
    """Tell whether the answer is read from the first token's probabilities alone."""
    if model.kind in PAIRS:
        return False
    choice = model.template.reads == "choice"
    return bool(model.template.answers) or model.scoring == "first-token" or (choice and settings.logprobs)


def _check_kind(settings: Settings, model: TeacherModel, engine: str) -> None:
    """Check that the model, the engine and the strategy score passages or order lists alike."""
    if model.kind in PAIRS and engine not in PAIRS:
        raise UsageError(
            f"{model.name} is a {model.kind}: it scores pairs and cannot be asked for a list",
            hint=f"--engine {model.kind}",
        )
    if model.kind == "pointwise" and (engine in PAIRS or _asks_for_lists(settings)):
        raise UsageError(
            f"{model.name} scores one passage a call, by its prompt {model.prompt}:"
            f" {f'--engine {engine}' if engine in PAIRS else _asks_for_lists(settings)} does not apply",
            hint="leave it out"
            if engine not in PAIRS
            else "--engine vllm, or --engine openai with --base-url",
        )
    if model.kind == "pointwise" and engine in SERVERS and model.template.reads == "logit":
        raise UsageError(
            f"the score of {model.name} is a logit, and servers send log-probabilities alone",
            hint="--engine vllm",
        )
    if settings.strategy in CHOOSING and settings.samples > 1:
        raise UsageError(
            f"--strategy {settings.strategy} settles its first ranks alone: --samples does not apply",
            hint="leave --samples out, or choose another strategy",
        )
    _check_thoughts(settings, model)
    if settings.examples is not None:
        _check_examples(model)
    if model.kind == "listwise" and model.template.reads == "choice":
        _check_choice(settings, model)
    if model.kind not in ("pointwise", *PAIRS) and settings.strategy == "pointwise":
        raise UsageError(
            f"{model.name} orders lists by its prompt {model.prompt}: --strategy pointwise does not apply",
            hint="leave it out, or ask the model with a prompt for one passage: --prompt yes-no@1 or rating@1",
        )


def _check_examples(model: TeacherModel) -> None:
    """Check that a model's prompt can have examples before its question.

    Raises:
        UsageError: if it cannot, with the reason.
    """
    if model.kind in PAIRS:
        reason = f"{model.name} scores pairs without a prompt"
    elif model.template.chat != "model":
        reason = f"{model.prompt} is the prompt of a model that was trained without examples"
    elif model.template.thinks:
        reason = f"the reply to {model.prompt} begins with a thought, and judgments have none"
    elif model.template.scored:
        reason = f"{model.prompt} shows first-stage scores, and the examples' passages have none"
    elif model.template.reads in ("expected", "logit"):
        reason = f"{model.prompt} asks for another scale than that of judgments"
    else:
        return
    raise UsageError(
        f"--examples does not apply: {reason}", hint="leave it out, or --prompt listwise@1 or yes-no@1"
    )


def _check_choice(settings: Settings, model: TeacherModel) -> None:
    """Check the settings of a prompt whose reply names the best passage alone."""
    if settings.strategy not in (None, *CHOOSING):
        raise UsageError(
            f"the prompt {model.prompt} asks for the best passage, and --strategy {settings.strategy} needs lists",
            hint="--strategy setwise or pairwise",
        )
    if settings.constrained or settings.top is not None:
        raise UsageError(
            f"--constrained and --top are for lists, and the prompt {model.prompt} asks for the best passage",
            hint="leave them out",
        )
    if settings.logprobs and model.template.identifiers != "letters" and not model.template.answers:
        raise UsageError(
            f"--logprobs reads one token a passage, and the prompt {model.prompt} names passages by numbers",
            hint="leave it out, or give --prompt setwise@1",
        )
    strategy = settings.strategy or default_strategy(model)
    window = 2 if strategy == "pairwise" else 1 + (settings.children or 3)
    most = model.template.most or (26 if model.template.identifiers == "letters" else window)
    if window > most:
        raise UsageError(
            f"the prompt {model.prompt} shows {most} passages, and --strategy {strategy} compares {window}",
            hint=f"--children {most - 1}",
        )


def _check_thoughts(settings: Settings, model: TeacherModel) -> None:
    """Check the settings of thoughts against the prompt."""
    thinks = model.kind == "listwise" and bool(model.template.thinks)
    if not thinks and (settings.think_tokens is not None or settings.keep_thoughts):
        raise UsageError(
            f"{model.name} writes no thought: --think-tokens and --keep-thoughts do not apply",
            hint="leave them out, or give a prompt with a thought: --prompt qwen3-thinking@1, reasonrank@1 or rank-r1@1",
        )
    if thinks and settings.logprobs:
        raise UsageError(
            f"the prompt {model.prompt} begins with a thought: --logprobs does not apply",
            hint="leave it out",
        )
    if settings.think_tokens is not None and settings.think_tokens < 1:
        raise UsageError(f"--think-tokens {settings.think_tokens} is below 1")


def default_strategy(model: TeacherModel) -> str:
    """Return the strategy that fits a model's prompt."""
    if model.kind == "pointwise":
        return "pointwise"
    if model.template.reads != "choice":
        return "sliding"
    return "pairwise" if model.template.most == 2 else "setwise"


def _asks_for_lists(settings: Settings) -> str | None:
    """Name the first option that is for windows of passages, if one was given."""
    given = {
        f"--strategy {settings.strategy}": settings.strategy not in (None, "pointwise"),
        **{f"--{name}": getattr(settings, name) is not None for name in WINDOWS},
        "--samples": settings.samples > 1,
        "--constrained": bool(settings.constrained),
        "--top": settings.top is not None,
        "--logprobs": settings.logprobs,
    }
    return next((option for option, is_given in given.items() if is_given), None)
