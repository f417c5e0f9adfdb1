"""Training: one plain loop over the stages of a recipe.

    python -m students.train --view FOLDER [--view FOLDER] --recipe FILE --out FOLDER

needs view folders, torch, transformers, accelerate, numpy and pyarrow, and nothing else of the project's dependencies.
``accelerate launch -m students.train …`` or torchrun run it in several processes: the same lists per step, split by
tokens. ``out`` gets ``model/`` (an ordinary Hugging Face folder), ``stages.json``, ``training_log.jsonl`` and
``training.json``; while it runs, a checkpoint from which the same command goes on.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from students import checkpoints, diagnostics, gradcache, optimiser, validation
from students.attention import supports
from students.batches import budget_batches
from students.checkpoints import StageState
from students.encoder import CrossEncoder
from students.errors import StudentError
from students.lists import Draw, Lists, View, assign_views, read_view
from students.losses import check_pairing, get
from students.records import Log, Records, stage_record
from students.regime import Recipe, Stage
from students.stepping import MicroBatch, Step, Task, collate_rows, plan
from students.token_cache import TokenCache

Tick = Callable[..., None]  # progress(done, total or None, **figures such as loss)
Note = Callable[[str], None]


@dataclass(frozen=True)
class TrainingResult:
    """What a training left.

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
    """Train a student; the same call again goes on from the last checkpoint, or returns what is complete.

    Args:
        views: folders by objective (``cl``, ``kd``) or stage (``2``, ``2:kd``), or a sequence, told apart by their kind.
        tokens: folder of the token cache; default ``out/tokens``.
        progress: called with (pairs trained, pairs in the stage or None) and figures.
        note: called with what was chosen, and with diagnostics.
        trackers: names of Accelerate's trackers (``tensorboard`` …); they write to ``out/trackers``.
        device: ``cpu`` to leave a GPU alone.

    Raises:
        StudentError: a view that is not there or does not fit its loss, a base model that is not there, another
            training in ``out``, a loss that is no number.
    """
    from accelerate import Accelerator

    out = Path(out)
    accelerator = Accelerator(
        cpu=device == "cpu",
        log_with=list(trackers) or None,
        project_dir=str(out / "trackers") if trackers else None,
    )
    say = note if note is not None and accelerator.is_main_process else _silent
    folders = assign_views(recipe.stages, views)
    held = {folder: read_view(folder) for of_stage in folders for folder in of_stage.values()}
    for stage, of_stage in zip(recipe.stages, folders, strict=True):
        _check_losses(stage, {name: held[folder] for name, folder in of_stage.items()})
    hashes = [{name: held[folder].view_hash for name, folder in of_stage.items()} for of_stage in folders]
    records = Records.open(out, recipe, hashes, main=accelerator.is_main_process)
    accelerator.wait_for_everyone()
    if records.complete:
        say(f"{out} holds this training, complete")
        return TrainingResult(out / "model", records.stages(), records.log())
    encoder = _load(recipe, accelerator.device, say)
    if trackers:
        accelerator.init_trackers("msft", config={"recipe": json.dumps(recipe.flat())})
    cache = TokenCache(tokens or out / "tokens", encoder.tokenizer)
    with accelerator.main_process_first():  # one process tokenises, the others find it done
        texts = {folder: _tokenised(cache, view, progress, say) for folder, view in held.items()}
    resume = checkpoints.newest(out)
    begun = len(records.stages()) + 1
    if resume is not None and checkpoints.stage_of(resume) != begun:  # of a stage that was just completed
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
        tasks = [Task.of(o, held[of_stage[o.name]], *texts[of_stage[o.name]]) for o in stage.objectives]
        run = _StageRun(recipe, stage, tasks, encoder, accelerator, out, say, progress, bool(trackers))
        state = run.train(resume if stage.number == begun else None)
        following = out / f"start-{stage.number + 1}.safetensors"
        if accelerator.is_main_process:
            moved = diagnostics.weights_moved(encoder.model, start)
            for sentence in diagnostics.of_stage(stage, state, moved, sum(len(t.view.train) for t in tasks)):
                say(sentence)
            checkpoints.save_weights(encoder.model, following)
            records.add_stage(
                stage_record(
                    recipe,
                    stage,
                    state,
                    hashes[stage.number - 1],
                    encoder,
                    run.settings,
                    moved,
                    start,
                    following,
                )
            )
            checkpoints.clear(out)
        accelerator.wait_for_everyone()
    if begun > len(recipe.stages):  # stopped between the last stage and the end
        checkpoints.load_weights(encoder.model, out / f"start-{begun}.safetensors")
    if accelerator.is_main_process:
        shutil.rmtree(out / "model", ignore_errors=True)
        encoder.save(out / "model")
        records.finish()
        for path in out.glob("start-*.safetensors"):
            path.unlink()
        for path in out.glob("best-*.safetensors"):
            path.unlink()
        if tokens is None:
            shutil.rmtree(out / "tokens", ignore_errors=True)
    accelerator.wait_for_everyone()
    if trackers:
        accelerator.end_training()
    return TrainingResult(out / "model", records.stages(), records.log())


class _StageRun:
    """One stage: its optimiser, its loop, its validations. Made anew for each stage, so nothing carries over."""

    def __init__(
        self,
        recipe: Recipe,
        stage: Stage,
        tasks: list[Task],
        encoder: CrossEncoder,
        accelerator: Any,
        out: Path,
        say: Note,
        progress: Tick | None,
        tracked: bool,
    ) -> None:
        self.recipe, self.stage, self.tasks, self.encoder = recipe, stage, tasks, encoder
        self.accelerator, self.out, self.say, self.tracked = accelerator, out, say, tracked
        self.progress = progress if accelerator.is_main_process else None
        on_gpu = accelerator.device.type == "cuda"
        self.batch_tokens = stage.batch_tokens or (32_768 if on_gpu else 2_048)
        self.memory_tokens = stage.memory_tokens or (131_072 if on_gpu else 32_768)
        frozen = optimiser.freeze(encoder.model, stage.freeze)
        self.optimiser = optimiser.make(encoder.model, stage)
        self.wrapped = accelerator.prepare(encoder) if accelerator.num_processes > 1 else encoder
        empty = [task for task in tasks if not len(task.train)]
        if empty:
            raise StudentError(
                f"stage {stage.number} ({stage.objective}): no list of view {empty[0].view.name} has what the loss needs",
                hint="a contrastive view needs lists with a positive and a negative, a distillation view lists with an order",
            )
        self.per_epoch = max(task.steps_per_epoch for task in tasks)
        self.bounds = optimiser.Bounds.of(stage, self.per_epoch)
        self.held = validation.hold(tasks, stage, recipe.seed, 20_000 if on_gpu else 1_000)
        self.valid_every = stage.valid_every or max(1, (self.bounds.steps or self.per_epoch) // 10)
        self.checkpoint_every = stage.checkpoint_every or self.valid_every
        self.settings = {
            "precision": encoder.precision,
            "layout": encoder.layout,
            "processes": accelerator.num_processes,
            "batch_tokens": self.batch_tokens,
            "memory_tokens": self.memory_tokens,
            "frozen": len(frozen),
        }

    def train(self, resume: Path | None) -> StageState:
        """The loop. Ends with the best (or last) weights in the encoder."""
        stage, encoder, accelerator = self.stage, self.encoder, self.accelerator
        state = StageState(stage.number, lists_skipped=sum(task.n_skipped for task in self.tasks))
        torch.manual_seed(self.recipe.seed * 1000 + stage.number + 100_000 * accelerator.process_index)
        if resume is not None:
            state, held = checkpoints.read_state(resume)
            checkpoints.load_weights(encoder.model, resume / "weights.safetensors")
            self.optimiser.load_state_dict(held)
            if not checkpoints.restore_random(resume, accelerator.process_index):
                self.say("more processes than before: their dropout is drawn anew")
            self.say(f"going on with stage {stage.number} ({stage.objective}) at step {state.step:,}")
        log = Log(self.out, state, main=accelerator.is_main_process)
        clock = time.monotonic() - state.seconds
        if state.step == 0:
            self._validate(state, log)
        while state.stopped_by is None:
            encoder.train()
            rate = optimiser.learning_rate(
                stage, self.bounds.progress(state.step, state.pairs, state.seconds), state.step
            )
            optimiser.set_rate(self.optimiser, rate)
            step = plan(
                self.tasks, encoder, stage, self.recipe.seed, state.step,
                batch_tokens=self.batch_tokens, memory_tokens=self.memory_tokens,
                rank=accelerator.process_index, processes=accelerator.num_processes,
            )  # fmt: skip
            state.lists_skipped += step.n_skipped
            if not step.empty:
                loss, norm = self._update(step, state)
                for name, value in (("loss", loss), ("grad_norm", norm), ("n", 1.0)):
                    state.sums[name] = state.sums.get(name, 0.0) + value
            state.step += 1
            state.pairs += step.n_pairs
            state.seconds = self._agreed(time.monotonic() - clock)
            state.stopped_by = self.bounds.reached(state.step, state.pairs, state.seconds, stage)
            if state.step % stage.log_every == 0 or state.stopped_by:
                self._log(state, log, rate)
            if state.step % self.valid_every == 0 or (state.stopped_by and self.held):
                self._validate(state, log)
            if self.progress is not None:
                done = self.bounds.progress(state.step, state.pairs, state.seconds)
                self.progress(state.pairs, int(state.pairs / done) if done else None, **log.last)
            if state.step % self.checkpoint_every == 0 and not state.stopped_by:
                self._checkpoint(state, log)
        log.close()
        best = self.out / f"best-{stage.number}.safetensors"
        if stage.keep == "best" and state.best_step not in (None, state.step) and best.exists():
            checkpoints.load_weights(encoder.model, best)
            self.say(
                f"stage {stage.number} ({stage.objective}) ends with the weights of step {state.best_step:,}"
            )
        for parameter in encoder.model.parameters():
            parameter.requires_grad_(True)
        return state

    def _update(self, step: Step, state: StageState) -> tuple[float, float]:
        """One optimiser step; the global loss and the gradient's norm before clipping."""
        stage, accelerator = self.stage, self.accelerator
        device, processes = accelerator.device, accelerator.num_processes
        share = torch.zeros((), device=device)
        micro_batches = step.micro_batches or ([step.filler] if step.filler else [])
        for number, micro in enumerate(micro_batches, 1):
            scale = processes if step.micro_batches else 0
            cached = stage.gradient_cache == "always" or (
                stage.gradient_cache == "auto" and micro.n_tokens > self.memory_tokens
            )
            pieces = micro.batches(self.encoder)
            share += gradcache.backward(
                self.wrapped, pieces,
                partial(_scaled_loss, micro, step.denominators, scale),
                cached=cached, device=device, quiet=lambda: accelerator.no_sync(self.wrapped),
                sync=number == len(micro_batches),
            )  # fmt: skip
            state.truncated_pairs += sum(piece.n_truncated for piece in pieces) if step.micro_batches else 0
        loss = accelerator.reduce(share, "sum") / processes
        diagnostics.check_finite(loss, stage, state.step)
        norm = torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), stage.clip or float("inf"))
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return float(loss), float(norm)

    def _agreed(self, seconds: float) -> float:
        """The main process's clock, so that all stop at the same step."""
        if self.accelerator.num_processes == 1:
            return seconds
        told = torch.tensor(
            [seconds if self.accelerator.is_main_process else 0.0], device=self.accelerator.device
        )
        return float(self.accelerator.reduce(told, "sum"))

    def _validate(self, state: StageState, log: Log) -> None:
        """Measure, keep the best weights, and end the stage when they have not got better for long."""
        if not self.held:
            return
        stage = self.stage
        self.encoder.eval()
        values = validation.measure(self.held, self._scores)
        log.write(state, values)
        if self.tracked:
            self.accelerator.log(values, step=state.step)
        if state.step and diagnostics.collapsed(values["valid_spread"]) and "collapsed" not in state.warned:
            state.warned.append("collapsed")
            self.say(
                f"stage {stage.number} ({stage.objective}): scores within a list differ by {values['valid_spread']:.1e} "
                f"at step {state.step:,}, the model ranks nothing; lower lr ({stage.lr:g}) or look at the labels"
            )
        value = values.get(f"valid_{stage.stop_on}")
        if value is None:
            raise StudentError(
                f"stage {stage.number} ({stage.objective}) stops on {stage.stop_on}, which its validation lists cannot give",
                hint="stop_on = 'loss'; nDCG@10 needs human judgments, tau a distillation view",
                exit_code=2,
            )
        higher = validation.HIGHER_IS_BETTER[stage.stop_on]
        if state.step == 0:  # to compare with; a stage ends with weights that it trained
            state.first_value = value
            return
        if state.best_value is None or (value > state.best_value if higher else value < state.best_value):
            state.best_value, state.best_step, state.worse = value, state.step, 0
            if stage.keep == "best" and self.accelerator.is_main_process:
                checkpoints.save_weights(self.encoder.model, self.out / f"best-{stage.number}.safetensors")
            return
        state.worse += 1
        if stage.patience and state.worse >= stage.patience and state.stopped_by is None:
            state.stopped_by = "early_stopping"

    @torch.inference_mode()
    def _scores(self, task: Task, lists: Lists, drawn: Draw) -> NDArray[np.float32]:
        """Scores of drawn rows; processes share the work."""
        accelerator, encoder = self.accelerator, self.encoder
        lengths = encoder.form.lengths(
            task.queries.lengths[lists.query_of(drawn.rows)], task.passages.lengths[lists.passage[drawn.rows]]
        )
        scores = torch.zeros(len(drawn.rows), device=accelerator.device)
        pieces = budget_batches(lengths, self.batch_tokens, padded=encoder.layout == "padded")
        for piece in pieces[accelerator.process_index :: accelerator.num_processes]:
            batch = collate_rows(encoder, task, lists, drawn.rows[piece]).to(accelerator.device)
            scores[torch.as_tensor(piece, device=scores.device)] = encoder(batch)
        scores = accelerator.reduce(scores, "sum")
        return scores.cpu().numpy()

    def _log(self, state: StageState, log: Log, rate: float) -> None:
        n = state.sums.pop("n", 0.0)
        values = {name: value / n for name, value in state.sums.items()} if n else {}
        state.sums = {}
        values |= {"lr": rate}
        log.write(state, values)
        if self.tracked:
            self.accelerator.log(values, step=state.step)

    def _checkpoint(self, state: StageState, log: Log) -> None:
        log.flush(state)
        checkpoints.save(
            self.out, state, self.encoder.model, self.optimiser,
            rank=self.accelerator.process_index, wait=self.accelerator.wait_for_everyone,
        )  # fmt: skip


def _load(recipe: Recipe, device: torch.device, say: Note) -> CrossEncoder:
    """The base model as the recipe wants it."""
    attention_dropout = recipe.attention_dropout
    packed = recipe.layout == "packed"
    options: dict[str, Any] = {
        "max_length": recipe.max_length,
        "precision": recipe.precision,
        "device": device,
        "hidden_dropout": recipe.hidden_dropout,
        "seed": recipe.seed,
        "layers": recipe.layers or None,
    }
    encoder = CrossEncoder.load(recipe.base, attention_dropout=attention_dropout, **options)
    if packed and not supports(encoder.architecture):
        raise StudentError(
            f"{encoder.architecture} does not run packed", hint="layout = 'padded' (or 'auto')", exit_code=2
        )
    if recipe.layout == "auto" and device.type == "cuda" and encoder.precision == "bf16":
        packed = supports(encoder.architecture) and attention_dropout in (None, 0.0)
    if packed:
        if device.type == "cuda" and attention_dropout is None:
            attention_dropout = 0.0
            say("packed attention on the GPU: attention_dropout is 0")
        encoder = CrossEncoder.load(
            recipe.base, attention_dropout=attention_dropout, attention="packed_varlen", **options
        )
    say(f"{recipe.base}: {encoder.architecture}, {encoder.precision}, {encoder.layout} on {device}")
    return encoder


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


def _scaled_loss(
    micro: MicroBatch, denominators: list[torch.Tensor], scale: int, scores: torch.Tensor
) -> torch.Tensor:
    """A micro-batch's share of the loss; times the processes, as their gradients are averaged."""
    return scale * micro.loss(scores, denominators)


def _silent(_: str) -> None:
    return None


if __name__ == "__main__":
    from students.train_command import main

    raise SystemExit(main())
