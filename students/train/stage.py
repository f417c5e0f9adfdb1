"""Run one stage of a training: its optimiser, its loop, its validations. No state carries over between stages."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from students.cpu.workers import MAX_WORKERS
from students.errors import ExitCode, StudentError
from students.model.bf16_weights import Bf16Weights
from students.model.encoder import CrossEncoder
from students.recipes.recipe import Recipe, Stage
from students.text.batches import budget_batches
from students.text.windows import aggregate
from students.train import checkpoints, diagnostics, optimiser, validation
from students.train import gradient_cache as gradcache
from students.train.checkpoints import StageState
from students.train.lists import Draw, ViewLists
from students.train.parallel_gradients import ParallelGradients
from students.train.records import Log
from students.train.reduction import GradientSum
from students.train.steps import Step, Task, collate_rows, plan

Tick = Callable[..., None]  # progress(done, total or None, **figures such as loss)
Note = Callable[[str], None]

CPU_BATCH_TOKENS, CUDA_BATCH_TOKENS = 2_048, 131_072  # most tokens of one forward pass
CPU_VALID_PAIRS, CUDA_VALID_PAIRS = 1_000, 20_000
CPU_ACTIVATIONS = 4 << 30  # bytes of activations held at once, if the recipe does not set a limit
_LONGEST_INTERVAL = 600  # longest time between validations, and between checkpoints


class StageRun:
    """A stage ready to train.

    Args:
        out: the training's folder.
        offset: steps of the stages before, for the trackers' axis.
        trackers: send the figures to Accelerate's trackers.

    Raises:
        StudentError: no list of a view has the targets that the loss needs, or a part to freeze is not found.
    """

    def __init__(
        self,
        recipe: Recipe,
        stage: Stage,
        tasks: list[Task],
        encoder: CrossEncoder,
        accelerator: Any,
        out: Path,
        *,
        say: Note,
        progress: Tick | None = None,
        offset: int = 0,
        trackers: bool = False,
    ) -> None:
        self.recipe, self.stage, self.tasks, self.encoder = recipe, stage, tasks, encoder
        self.accelerator, self.out, self.say = accelerator, out, say
        self.offset, self.trackers = offset, trackers
        self.progress = progress if accelerator.is_main_process else None
        self.name = f"stage {stage.number} ({stage.objective})"
        empty = [task for task in tasks if not len(task.train)]
        if empty:
            raise StudentError(
                f"{self.name}: no list of view {empty[0].view.name} has what the loss needs",
                hint="build a contrastive view with positives and negatives, or a distillation view with orders",
            )
        on_gpu = accelerator.device.type == "cuda"
        fits = _fitting_tokens(encoder)
        most = min(CUDA_BATCH_TOKENS, max(fits, CPU_BATCH_TOKENS)) if on_gpu else CPU_BATCH_TOKENS
        self.batch_tokens = stage.batch_tokens or most
        self.memory_tokens = stage.memory_tokens or max(fits, self.batch_tokens)
        self.workers = min(torch.get_num_threads(), MAX_WORKERS) if encoder.fused else 1
        frozen = optimiser.freeze(encoder.model, stage.freeze)
        self.optimiser = optimiser.make(encoder.model, stage)
        self.learning = [p for p in encoder.parameters() if p.requires_grad]
        self.low = Bf16Weights(encoder.model) if recipe.weights == "bf16" else None
        self.reduction: GradientSum | None = None
        if accelerator.num_processes > 1:
            gradient = self.low.gradient if self.low is not None else _gradient
            self.reduction = GradientSum(self.learning, gradient)
        self.parallel_gradients: ParallelGradients | None = None
        self.per_epoch = max(task.steps_per_epoch for task in tasks)
        self.bounds = optimiser.Bounds.of(stage, self.per_epoch)
        self.held = validation.choose_lists(
            tasks, stage, recipe.seed, CUDA_VALID_PAIRS if on_gpu else CPU_VALID_PAIRS
        )
        few = diagnostics.of_validation(stage, sum(one.n_lists for one in self.held))
        self.validations = validation.times(self.held, stage, self.bounds.pairs)
        self.curve = few is None  # too few lists: no curve is drawn from them, and no step is chosen by them
        if few is not None:
            say(few)
        self.length = diagnostics.length(encoder.model)
        diagnostics.check_base(self.length, recipe.base if stage.number == 1 else "the stage before")
        if stage.warmup >= 1 and self.bounds.steps and stage.warmup >= self.bounds.steps:
            say(
                f"{self.name}: warmup ({stage.warmup:g} steps) is as long as the stage ({self.bounds.steps:,} steps); "
                "the learning rate only rises"
            )
        self.settings = {
            "precision": encoder.precision,
            "layout": encoder.layout,
            "fused": encoder.fused,
            "processes": accelerator.num_processes,
            "batch_tokens": self.batch_tokens,
            "memory_tokens": self.memory_tokens,
            "workers": self.workers,
            "frozen": len(frozen),
        }
        if recipe.weights != "fp32":
            self.settings["weights"] = recipe.weights

    def train(self, resume: Path | None) -> StageState:
        """Run the loop. At its end the encoder has the best (or last) weights."""
        stage, accelerator = self.stage, self.accelerator
        state = StageState(stage.number, lists_skipped=sum(task.n_skipped for task in self.tasks))
        torch.manual_seed(self.recipe.seed * 1000 + stage.number + 100_000 * accelerator.process_index)
        if resume is not None:
            state = self._resumed(resume)
        self.encoder.refresh()
        log = Log(self.out, state, main=accelerator.is_main_process)
        clock = time.monotonic() - state.seconds
        if state.step == 0:
            self._validate(state, log)
        steps = _Steps(self._plan, ahead=accelerator.device.type == "cuda")
        if self.workers > 1:
            self.parallel_gradients = ParallelGradients(
                self.encoder, list(self.encoder.parameters()), self.workers
            )
        while state.stopped_by is None:
            done = self._progress(state)
            if state.step <= stage.warmup:
                state.warm = done
            rate = optimiser.learning_rate(stage, done, state.step, state.warm)
            optimiser.set_rate(self.optimiser, rate)
            step = steps.take(state.step)
            state.lists_skipped += step.n_skipped
            now = None
            if not step.empty:
                figures, now = self._update(step, state, clock)
                for name, value in (*figures.items(), ("n", 1.0)):
                    state.sums[name] = state.sums.get(name, 0.0) + value
            state.step += 1
            state.pairs += step.n_pairs
            state.truncated_pairs += step.n_truncated
            state.seconds = self._agreed(time.monotonic() - clock) if now is None else now
            state.stopped_by = self.bounds.reached(state.step, state.pairs, state.seconds, stage)
            if state.step % stage.log_every == 0 or state.stopped_by:
                self._log(state, log, rate)
            before, done = done, self._progress(state)
            valid = _due(stage.valid_every, state, _passed(before, done, self.validations), state.looked)
            saves = _due(
                stage.checkpoint_every or stage.valid_every, state, _passed(before, done, 10), state.saved
            )
            if valid or saves or state.stopped_by:
                diagnostics.check_weights(self.encoder.model, self.optimiser, self.length, stage, state.step)
            if valid or state.stopped_by:
                self._validate(state, log)
                state.looked = state.seconds
            if self.progress is not None:
                self.progress(state.pairs, self.bounds.expected_pairs(state.pairs, done), **log.last)
            if saves and not state.stopped_by:
                state.saved = state.seconds
                self._checkpoint(state, log)
        steps.close()
        for held in (self.parallel_gradients, self.low, self.reduction):
            if held is not None:
                held.close()
        log.close()
        if stage.keep == "best" and state.best_step not in (None, state.step):
            checkpoints.load_weights(self.encoder.model, checkpoints.best_path(self.out, state))
            self.encoder.refresh()
            self.say(f"{self.name} ends with the weights of step {state.best_step:,}")
        optimiser.freeze(self.encoder.model, ())
        return state

    def _resumed(self, checkpoint: Path) -> StageState:
        """Restore weights, optimiser and random generators from the checkpoint."""
        state, of_optimiser = checkpoints.read_state(checkpoint)
        checkpoints.load_weights(self.encoder.model, checkpoint / "weights.safetensors")
        self.optimiser.load_state_dict(of_optimiser)
        if not checkpoints.restore_random(checkpoint, self.accelerator.process_index):
            self.say("more processes than before: their dropout starts with a new random state")
        self.say(f"continuing {self.name} at step {state.step:,}")
        return state

    def _progress(self, state: StageState) -> float:
        done = self.bounds.progress(state.step, state.pairs, state.seconds, state.half)
        if state.half is None and self.bounds.half_over(state.seconds):
            state.half = done
        return done

    def _plan(self, number: int) -> Step:
        return plan(
            self.tasks, self.encoder, self.stage, self.recipe.seed, number,
            batch_tokens=self.batch_tokens, memory_tokens=self.memory_tokens,
            rank=self.accelerator.process_index, processes=self.accelerator.num_processes,
            workers=self.workers,
        )  # fmt: skip

    def _update(self, step: Step, state: StageState, clock: float) -> tuple[dict[str, float], float | None]:
        """Take one optimiser step.

        Returns:
            The loss over all processes and the gradient's norm before clipping; and the main process's seconds, if
            there are several processes.
        """
        stage, device = self.stage, self.accelerator.device
        self.encoder.train()
        with self._lowered():
            loss = self._gradients(step)
            figures = loss.double()[None]
            if self.reduction is not None:
                figures, summed = self.reduction.finish(torch.stack([loss.double(), self._told(clock)]))
        if self.reduction is not None:
            for parameter, gradient in summed.items():
                parameter.grad = gradient
        norm = optimiser.clipped(self.optimiser, self.learning, stage.clip)
        queued = device.type == "cuda"  # its kernel spares the weights if the norm is not finite
        if queued:
            self.optimiser.step()
        found = torch.cat([figures, norm.to(figures)[None]])
        found_loss, *now, found_norm = found.tolist()  # the step's only wait for the device
        diagnostics.check_step(found_loss, found_norm, stage, state.step)
        if not queued:
            self.optimiser.step()
        self.encoder.refresh()
        self.optimiser.zero_grad(set_to_none=True)
        return {"loss": found_loss, "grad_norm": found_norm}, now[0] if now else None

    def _gradients(self, step: Step) -> torch.Tensor:
        """Add this process's gradients of a step to the parameters; returns its part of the loss."""
        stage, device = self.stage, self.accelerator.device
        loss = torch.zeros((), device=device)
        for micro in step.micro_batches:
            cached = stage.gradient_cache == "always" or (
                stage.gradient_cache == "auto" and micro.n_tokens > self.memory_tokens
            )
            loss_of = partial(micro.loss, denominators=step.denominators)
            if self.parallel_gradients is not None:
                loss += self.parallel_gradients.backward(micro.pieces, loss_of, cached=cached)
                continue
            last = micro is step.micro_batches[-1]
            loss += gradcache.backward(
                self.encoder, micro.pieces, loss_of, cached=cached, device=device,
                before_last=self.reduction.arm if self.reduction is not None and last else None,
            )  # fmt: skip
        return loss

    def _lowered(self) -> AbstractContextManager[None]:
        """The context in which the model computes with bf16 weights, if the recipe says so."""
        return nullcontext() if self.low is None else self.encoder.lowered(self.low)

    def _told(self, clock: float) -> torch.Tensor:
        """The main process's seconds, which others add nothing to. A fill does not wait for the device."""
        now = time.monotonic() - clock if self.accelerator.is_main_process else 0.0
        return torch.full((), now, dtype=torch.float64, device=self.accelerator.device)

    def _agreed(self, seconds: float) -> float:
        """Return the main process's time, so that all processes stop at the same step."""
        if self.accelerator.num_processes == 1:
            return seconds
        told = torch.tensor(
            [seconds if self.accelerator.is_main_process else 0.0], device=self.accelerator.device
        )
        return float(self.accelerator.reduce(told, "sum"))

    def _validate(self, state: StageState, log: Log) -> None:
        """Measure, save the best weights, and end the stage after too many validations without a better value."""
        if not self.held:
            return
        stage = self.stage
        self.encoder.eval()
        values = validation.measure(self.held, self._scores)
        diagnostics.check_validation(values, stage, state.step)
        if self.curve:
            log.write(state, values)
            self._track(state, values)
        spread = values["valid_spread"]
        if diagnostics.collapsed(spread) and "collapsed" not in state.warned and self._warm(state):
            state.warned.append("collapsed")
            self.say(diagnostics.of_collapse(stage, state, spread))
        value = values.get(f"valid_{stage.stop_on}")
        if value is None:
            raise StudentError(
                f"{self.name} stops on {stage.stop_on}, which its validation lists cannot give",
                hint="set stop_on = 'loss'; nDCG@10 needs human judgments, tau a distillation view",
                exit_code=ExitCode.USAGE,
            )
        if state.step == 0:  # only for comparison: a stage ends with weights that it trained
            state.first_value, state.first_spread = value if self.curve else None, spread
        if state.step == 0 or not self.curve:
            return
        higher = validation.HIGHER_IS_BETTER[stage.stop_on]
        if state.best_value is None or (value > state.best_value if higher else value < state.best_value):
            state.best_value, state.best_step, state.worse = value, state.step, 0
            if stage.keep == "best" and self.accelerator.is_main_process:
                checkpoints.save_weights(self.encoder.model, checkpoints.best_path(self.out, state))
            return
        state.worse += 1
        if stage.patience and state.worse >= stage.patience and state.stopped_by is None:
            state.stopped_by = "early_stopping"

    def _warm(self, state: StageState) -> bool:
        """Return True if the warm-up is over. Its steps are so small that a model may not rank yet."""
        if state.stopped_by is not None:
            return True
        done = state.step if self.stage.warmup >= 1 else self._progress(state)
        return state.step > 0 and done > self.stage.warmup

    @torch.inference_mode()
    def _scores(self, task: Task, lists: ViewLists, drawn: Draw) -> NDArray[np.float32]:
        """Score the drawn rows; the processes share the work."""
        accelerator, encoder = self.accelerator, self.encoder
        of_queries, of_passages = task.lengths(lists, drawn)
        windows = encoder.windows(of_queries, of_passages, task.form)
        owner = windows.owner
        lengths = (task.form or encoder.form).lengths(of_queries[owner], of_passages[owner])
        scores = torch.zeros(len(owner), device=accelerator.device)
        pieces = budget_batches(
            lengths, self.batch_tokens, multiple=encoder.multiple, padded=encoder.layout == "padded"
        )
        for piece in pieces[accelerator.process_index :: accelerator.num_processes]:
            batch = collate_rows(encoder, task, lists, drawn, owner[piece], windows.starts(piece))
            batch = batch.to(accelerator.device)
            scores[torch.as_tensor(piece, device=scores.device)] = encoder(batch)
        if accelerator.num_processes > 1:
            scores = accelerator.reduce(scores, "sum")
        return aggregate(scores.cpu(), torch.from_numpy(owner), len(drawn.rows), encoder.long).numpy()

    def _log(self, state: StageState, log: Log, rate: float) -> None:
        n = state.sums.pop("n", 0.0)
        values = {name: value / n for name, value in state.sums.items()} if n else {}
        state.sums = {}
        state.last_loss = values.get("loss", state.last_loss)
        values |= {"lr": rate}
        log.write(state, values)
        self._track(state, values)

    def _track(self, state: StageState, values: dict[str, float]) -> None:
        if self.trackers:
            named = {f"stage-{state.stage}/{name}": value for name, value in values.items()}
            self.accelerator.log(named, step=self.offset + state.step)

    def _checkpoint(self, state: StageState, log: Log) -> None:
        log.flush(state)
        checkpoints.save(
            self.out, state, self.encoder.model, self.optimiser,
            rank=self.accelerator.process_index, wait=self.accelerator.wait_for_everyone,
        )  # fmt: skip


def _passed(before: float, done: float, parts: int) -> bool:
    """Return True if the stage went from one of its equal parts into the next."""
    return int(parts * done) > int(parts * before)


def _due(every: int, state: StageState, passed: bool, last: float) -> bool:
    """Return True if it is time: after every ``every`` steps, or after each part of the stage and after ten minutes."""
    if every:
        return state.step % every == 0
    return passed or state.seconds - last >= _LONGEST_INTERVAL


class _Steps:
    """Plans the steps in order. With ``ahead``, it plans the next step in page-locked memory while the device computes."""

    def __init__(self, make: Callable[[int], Step], *, ahead: bool) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="plan") if ahead else None
        self._next: tuple[int, Future[Step]] | None = None

    def take(self, number: int) -> Step:
        """Return the plan of a step."""
        if self._thread is None:
            return self._make(number)
        planned, future = self._next or (number, self._thread.submit(self._pinned, number))
        if planned != number:
            raise StudentError(f"step {number} was requested, but step {planned} was planned")
        step = future.result()
        self._next = (number + 1, self._thread.submit(self._pinned, number + 1))
        return step

    def close(self) -> None:
        """Drop the step that was planned ahead."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _pinned(self, number: int) -> Step:
        step = self._make(number)
        step.micro_batches[:] = [micro.pin() for micro in step.micro_batches]
        return step


def _fitting_tokens(encoder: CrossEncoder) -> int:
    """Compute how many tokens' activations fit into half of a GPU's memory, or into `CPU_ACTIVATIONS` bytes elsewhere.

    A token takes about ``42 hidden + 6 heads × length`` bytes per layer in bf16. Packed batches have no term in the
    square of the length, but fp32 residuals. The same GPU model or kind of device always gives the same number.
    """
    config = encoder.model.config
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    per_layer = 60 * hidden if encoder.layout == "packed" else 42 * hidden + 6 * heads * encoder.max_length
    per_token = int(config.num_hidden_layers) * per_layer * (2 if encoder.precision == "fp32" else 1)
    budget = CPU_ACTIVATIONS
    if encoder.device.type == "cuda":
        budget = torch.cuda.get_device_properties(encoder.device).total_memory // 2
    return budget // per_token


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor | None:
    return parameter.grad
