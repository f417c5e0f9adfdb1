"""Run a training: one plain loop over the stages of a recipe.

    python -m students.train --view FOLDER [--view FOLDER] --recipe FILE --out FOLDER

This command needs view folders, torch, transformers, accelerate, numpy and pyarrow, and no other dependency of the
project. ``accelerate launch -m students.train …`` or torchrun run it in several processes. Each step then takes the same
lists, split over the processes by tokens. ``out`` gets ``model/`` (an ordinary Hugging Face folder), ``stages.json``,
``training_log.jsonl`` and ``training.json``. During training it also holds a checkpoint, from which the same command
continues.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from msft import refusals
from msft.host import extras
from msft.job_lock import alone
from students.errors import ExitCode, StudentError
from students.losses import check_pairing, get
from students.model import lora
from students.model import packed_attention as attention
from students.model.decoder import is_decoder
from students.model.encoder import CrossEncoder
from students.model.head import HeadStart
from students.model.joined_products import join_products
from students.recipes.recipe import Objective, Recipe, Stage
from students.text.token_cache import TokenCache
from students.text.tokens import PairFormat, Tokens
from students.train import checkpoints, diagnostics
from students.train.checkpoints import StageState
from students.train.records import Records, stage_record
from students.train.stage import Note, StageRun, Tick
from students.train.steps import Task
from students.train.view_folder import View, assign_views, read_view

if TYPE_CHECKING:
    from accelerate import Accelerator


PATIENCE = timedelta(days=7)  # processes wait while one tokenises; a lost one ends the launcher's others


@dataclass(frozen=True)
class TrainingResult:
    """The results of a training.

    Attributes:
        folder: the student, an ordinary Hugging Face folder.
        stages: a row for each stage, with the columns of the ``stages`` table.
        log: a row for each figure, with the columns of the ``training_log`` table.
    """

    folder: Path
    stages: list[dict[str, Any]]
    log: list[dict[str, Any]]


def train(
    recipe: Recipe,
    views: Mapping[str, str | Path] | Sequence[str | Path],
    out: str | Path,
    *,
    tokens: str | Path | None = None,
    progress: Tick | None = None,
    note: Note | None = None,
    trackers: Sequence[str] = (),
    device: str | None = None,
) -> TrainingResult:
    """Train a student. The same call again continues from the last checkpoint, or returns the finished training.

    Args:
        views: folders by objective (``cl``, ``kd``) or stage (``2``, ``2:kd``), or a sequence of folders, which their
            kinds tell apart.
        tokens: folder of the token cache; by default ``out/tokens``.
        progress: called with (pairs trained, pairs in the stage or None) and figures.
        note: called with messages about choices, and with diagnostics.
        trackers: names of Accelerate's trackers (``tensorboard`` …); they write to ``out/trackers``.
        device: ``cpu`` trains on the CPU even if there is a GPU.

    Raises:
        StudentError: a view is not found or does not fit its loss, the base model is not found, ``out`` holds another
            training, or a loss is not finite.
        MsftError: another process trains in ``out`` (exit code 3), the disk is full, the file system is read-only, or
            memory is too small.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs

    out = Path(out)
    if recipe.lora.r:
        extras.require("lora")
    accelerator = Accelerator(
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        cpu=device == "cpu",
        log_with=list(trackers) or None,
        project_dir=str(out / "trackers") if trackers else None,
    )
    say = note if note is not None and accelerator.is_main_process else _silent
    folders = assign_views(recipe.stages, views)
    held = {folder: read_view(folder) for of_stage in folders for folder in of_stage.values()}
    for stage, of_stage in zip(recipe.stages, folders, strict=True):
        _check_losses(stage, {name: held[folder] for name, folder in of_stage.items()})
    with (
        refusals.named(out, RuntimeError, SafetensorError, ImportError),
        _alone(out, accelerator.is_main_process),
    ):
        return _train(recipe, folders, held, out, accelerator, tokens, progress, say, trackers)


def _train(
    recipe: Recipe,
    folders: Sequence[Mapping[str, Path]],
    held: Mapping[Path, View],
    out: Path,
    accelerator: "Accelerator",
    tokens: str | Path | None,
    progress: Tick | None,
    say: Note,
    trackers: Sequence[str],
) -> TrainingResult:
    """Train the stages that ``out`` lacks; the caller holds the folder's lock."""
    hashes = [{name: held[folder].view_hash for name, folder in of_stage.items()} for of_stage in folders]
    records = Records.open(out, recipe, hashes, main=False)
    if records.complete:
        say(f"the training in {out} is complete")
        return TrainingResult(out / "model", records.stages(), records.log())
    encoder = _load(recipe, accelerator.device, say)
    forms = {folder: encoder.form_for(view.datasets) for folder, view in held.items()}
    records = Records.open(out, recipe, hashes, main=accelerator.is_main_process)  # the recipe fits its base
    accelerator.wait_for_everyone()
    if trackers:
        accelerator.init_trackers("msft", config={"recipe": json.dumps(recipe.flat())})
    cache = TokenCache(tokens or out / "tokens", encoder.tokenizer)
    with accelerator.main_process_first():  # one process tokenises, and the others read the cache
        texts = {folder: _tokenised(cache, view, progress, say) for folder, view in held.items()}
    resume = checkpoints.newest(out)
    begun = len(records.stages()) + 1
    if (
        resume is not None and checkpoints.stage_of(resume) != begun
    ):  # the checkpoint belongs to a stage that was just completed
        resume = None
    for stage, of_stage in zip(recipe.stages, folders, strict=True):
        start = out / f"start-{stage.number}.safetensors"
        if stage.number < begun:
            continue
        if stage.number == begun and start.exists():
            checkpoints.load_weights(encoder.model, start)
        elif accelerator.is_main_process:
            checkpoints.save_weights(encoder.model, start)
        accelerator.wait_for_everyone()
        tasks = [_task(o, of_stage[o.name], held, texts, forms) for o in stage.objectives]
        run = StageRun(
            recipe, stage, tasks, encoder, accelerator, out, say=say, progress=progress,
            offset=sum(row["steps"] for row in records.stages()), trackers=bool(trackers),
        )  # fmt: skip
        state = run.train(resume if stage.number == begun else None)
        if accelerator.is_main_process:
            _record_stage(run, state, hashes[stage.number - 1], records)
        accelerator.wait_for_everyone()
    if begun > len(recipe.stages):  # stopped between the last stage and the end
        checkpoints.load_weights(encoder.model, out / f"start-{begun}.safetensors")
    if accelerator.is_main_process:
        _finish(encoder, out / "model")
        records.finish()
        checkpoints.clear_weights(out)
        if tokens is None:
            shutil.rmtree(out / "tokens", ignore_errors=True)
    accelerator.wait_for_everyone()
    if trackers:
        accelerator.end_training()
    return TrainingResult(out / "model", records.stages(), records.log())


def _task(
    objective: Objective,
    folder: Path,
    held: Mapping[Path, View],
    texts: Mapping[Path, tuple[Tokens, Tokens]],
    forms: Mapping[Path, PairFormat],
) -> Task:
    """Make an objective's task of its view."""
    return Task.of(objective, held[folder], *texts[folder], form=forms[folder])


def _finish(encoder: CrossEncoder, folder: Path) -> None:
    """Write the student. Adapters are written alone too, and then merged into the weights."""
    shutil.rmtree(folder, ignore_errors=True)
    if lora.is_adapted(encoder.model):
        lora.save_adapter(encoder.model, encoder.tokenizer, folder / lora.FOLDER)
        lora.merge(encoder.model)
    encoder.save(folder)


def _record_stage(run: StageRun, state: StageState, hashes: dict[str, str], records: Records) -> None:
    """Save a stage's final weights and its row, then remove its checkpoints."""
    number, model = run.stage.number, run.encoder.model
    start, following = (run.out / f"start-{n}.safetensors" for n in (number, number + 1))
    moved = diagnostics.weights_moved(model, start)
    for sentence in diagnostics.of_stage(
        run.stage, state, moved, sum(len(t.view.train) for t in run.tasks), run.recipe.max_length
    ):
        run.say(sentence)
    checkpoints.save_weights(model, following)
    records.add_stage(
        stage_record(run.recipe, run.stage, state, hashes, run.encoder, run.settings, moved, start, following)
    )
    checkpoints.clear(run.out)


def _alone(out: Path, main: bool) -> AbstractContextManager[None]:
    """Keep other trainings out of ``out``. If a training has several processes, only the main process locks."""
    return alone(out / ".lock", f"a student is being trained in {out}") if main else nullcontext()


def choose_layout(
    recipe: Recipe, architecture: str, device: str, precision: str
) -> tuple[bool, float | None]:
    """Choose whether to pack, and the attention dropout; None keeps the base model's dropout.

    PyTorch's kernel for GPUs has no attention dropout. So if the recipe sets none, packed training on a GPU uses 0,
    unless flash-attn is installed.

    Raises:
        StudentError: the recipe requests packed, which is not possible here (exit code 2).
    """
    wanted, on_gpu = recipe.attention_dropout, device == "cuda"
    able = attention.supports(architecture)
    if recipe.layout == "packed" and not able:
        raise StudentError(
            f"{architecture} does not run packed",
            hint="set layout = 'padded' (or 'auto')",
            exit_code=ExitCode.USAGE,
        )
    if recipe.layout == "packed" and on_gpu:
        attention.check_kernel(wanted or 0.0)
    of_itself = able and on_gpu and precision == "bf16" and attention.has_kernel(dropout=bool(wanted))
    if recipe.layout == "padded" or (recipe.layout == "auto" and not of_itself):
        return False, wanted
    if on_gpu and wanted is None and not attention.has_kernel(dropout=True):
        return True, 0.0
    return True, wanted


def _load(recipe: Recipe, device: torch.device, say: Note) -> CrossEncoder:
    """Load the base model with the recipe's settings."""
    options: dict[str, Any] = {
        "max_length": recipe.max_length,
        "precision": recipe.precision,
        "device": device,
        "hidden_dropout": recipe.hidden_dropout,
        "seed": recipe.seed,
        "layers": recipe.layers or None,
        "head": HeadStart(recipe.head_scale, recipe.head_identity),
        "framing": recipe.framing,
    }
    encoder = CrossEncoder.load(recipe.base, attention_dropout=recipe.attention_dropout, **options)
    packed, attention_dropout = choose_layout(recipe, encoder.architecture, device.type, encoder.precision)
    if packed:
        if attention_dropout != recipe.attention_dropout:
            say("packed attention on the GPU: attention_dropout is 0")
        encoder = CrossEncoder.load(
            recipe.base, attention_dropout=attention_dropout, attention="packed_varlen", **options
        )
    encoder.long = recipe.long
    if recipe.weights == "bf16" and encoder.precision != "bf16":
        raise StudentError(
            f"weights = 'bf16' needs precision bf16, and it is {encoder.precision}",
            hint="set precision = 'bf16', or leave weights out",
            exit_code=ExitCode.USAGE,
        )
    if recipe.lora.r:
        torch.manual_seed(recipe.seed)
        lora.adapt(encoder.model, recipe.lora, recipe.base)
    if recipe.gradient_checkpointing:
        encoder.model.gradient_checkpointing_enable({"use_reentrant": False})
    compiled = wants_compiled(recipe, encoder)
    plain = recipe.weights == "fp32" and not (compiled or recipe.gradient_checkpointing or recipe.lora.r)
    fused = plain and encoder.fuse()
    if device.type == "cpu" and not fused and not packed and encoder.precision == "bf16":
        encoder.model.set_attn_implementation(
            "eager"
        )  # the backward pass of SDPA in bf16 is far slower on a CPU
    if device.type == "cuda" and not recipe.lora.r:
        join_products(encoder.model, first_tokens=packed and not is_decoder(encoder.model.config))
    if compiled:
        encoder.compile_layers()
    how = f", LoRA of rank {recipe.lora.r}" if recipe.lora.r else ""
    how += ", compiled" if compiled else ""
    how += ", bf16 weights" if recipe.weights == "bf16" else ""
    say(f"{recipe.base}: {encoder.architecture}, {encoder.precision}, {encoder.layout}{how} on {device}")
    return encoder


def wants_compiled(recipe: Recipe, encoder: CrossEncoder) -> bool:
    """Choose whether layers are compiled: as the recipe says, by default on a GPU if that is possible."""
    if recipe.compile is not None:
        return recipe.compile
    return encoder.device.type == "cuda" and not recipe.gradient_checkpointing and encoder.compiles


def _check_losses(stage: Stage, views: Mapping[str, View]) -> None:
    for objective in stage.objectives:
        view = views[objective.name]
        check_pairing(
            get(objective.loss),
            kind=view.kind,
            has_scores=view.has_scores,
            where=f"view {view.name} ({view.folder})",
        )


def _tokenised(cache: TokenCache, view: View, progress: Tick | None, say: Note) -> Any:
    before = cache.n_tokenised
    texts = cache.tokens(view.queries, progress), cache.tokens(view.passages, progress)
    if cache.n_tokenised > before:
        say(f"view {view.name}: {cache.n_tokenised - before:,} texts tokenised")
    return texts


def _silent(_: str) -> None:
    return None
