"""What makes a training step fast on a GPU, shown on the CPU: even pieces, no waits, bf16 weights, compiled layers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_decoders
import tiny_models
import tiny_views
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from students.errors import StudentError
from students.losses import LOSSES, Targets, total
from students.model.bf16_weights import Bf16Weights
from students.model.encoder import CrossEncoder
from students.model.joined_products import join_products
from students.recipes.read import make_recipe
from students.text.batches import budget_batches
from students.text.frames import Framing
from students.train import optimiser, run
from students.train import stage as stages
from students.train.reduction import GradientSum
from students.train.run import train
from students.train.steps import Task, _pieces
from students.train.view_folder import read_view

BASE = {
    "regime": "kd", "max_length": 48, "lr": 2e-3, "lists": 5, "epochs": 4, "valid_every": 4, "patience": 0,
    "attention_dropout": 0.0, "hidden_dropout": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_views.write(tmp_path_factory.mktemp("views") / "kd", "distillation")


# ------------------------------------------------------------------------------------------- even pieces
@given(
    st.lists(st.integers(3, 90), min_size=1, max_size=120),
    st.integers(90, 900),
    st.booleans(),
    st.sampled_from([1, 8]),
)
@settings(max_examples=80, deadline=None)
def test_one_workers_pieces_are_even_and_no_more_than_the_budget_needs(
    lengths: list[int], budget: int, padded: bool, multiple: int
) -> None:
    budget = max(budget, 96)
    made = _pieces(np.array(lengths), budget, 1, multiple=multiple, padded=padded)
    fewest = budget_batches(lengths, budget, multiple=multiple, padded=padded)
    assert len(made) == len(fewest)
    np.testing.assert_array_equal(np.concatenate(made), np.concatenate(fewest), err_msg="the same order")

    def size(piece: Any) -> int:
        own = np.array(lengths)[piece]
        return int(len(own) * -(-own.max() // multiple) * multiple if padded else own.sum())

    sizes = [size(piece) for piece in made]
    assert max(sizes) <= budget
    assert max(sizes) <= max(size(piece) for piece in fewest)


def test_eight_lists_of_a_hundred_make_pieces_of_one_size() -> None:
    lengths = np.random.default_rng(0).integers(
        40, 124, 800
    )  # 65,766 tokens, in pieces of 32,743, 32,743 and 280 before
    lengths[0] += 65_766 - lengths.sum() % 65_766 if lengths.sum() < 65_766 else 0
    sizes = [int(lengths[piece].sum()) for piece in _pieces(lengths, 32_768, 1, multiple=8, padded=False)]
    assert max(sizes) < 1.06 * min(sizes), sizes


# ---------------------------------------------------------------------------------------------- no waits
WAITS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "is_nonzero",
    "unique",
    "equal",
    "repeat_interleave",
)


class Waits(TorchDispatchMode):
    """Collects the operations for which a GPU's host waits, because the result's size or value is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, torch.Tensor) and index.dtype is torch.bool for index in args[1]
        )
        if (name.startswith(WAITS) and name != "nonzero_static") or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_no_loss_waits_for_the_device(name: str) -> None:
    torch.manual_seed(0)
    loss = LOSSES[name]
    labels = torch.tensor([[1.0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
    if loss.needs == "order":
        labels = torch.tensor([[3.0, 2, 1, 0], [1, 0, 2, 3], [2, 1, 0, 0]])
    mask = torch.tensor([[True] * 4, [True] * 4, [True] * 3 + [False]])
    targets = Targets.of(labels, mask=mask, scores=torch.randn(3, 4))
    scores = torch.randn(3, 4, requires_grad=True)
    with Waits() as waits:
        total(loss(scores, targets), "list").backward()
    assert waits.found == []
    assert scores.grad is not None


def stage_run(tmp_path: Path, view: Path, base: Path, **more: Any) -> Any:
    from accelerate import Accelerator

    recipe = make_recipe(BASE | {"base": str(base), "precision": "fp32"} | more)
    accelerator = Accelerator(cpu=True)
    encoder = run._load(recipe, accelerator.device, lambda _: None)
    held = read_view(view)
    texts = [encoder.tokenise(column.to_pylist()) for column in (held.queries, held.passages)]
    (stage,) = recipe.stages
    tasks = [Task.of(stage.objectives[0], held, *texts)]
    return stages.StageRun(recipe, stage, tasks, encoder, accelerator, tmp_path, say=lambda _: None)


@pytest.mark.parametrize(
    "more", [{}, {"weights": "bf16", "precision": "bf16"}, {"memory_tokens": 200, "batch_tokens": 90}]
)
def test_a_step_waits_once_at_most(
    tiny: Any, tmp_path: Path, view: Path, more: dict[str, Any], monkeypatch: Any
) -> None:
    monkeypatch.setattr(CrossEncoder, "fuse", lambda self: False)
    stage = stage_run(tmp_path, view, tiny("electra"), layout="packed", **more)
    state = stages.StageState(1)
    step = stage._plan(0)
    assert len(step.micro_batches) > 1 or not more.get("memory_tokens")
    with Waits() as waits:
        stage._update(step, state, 0.0)
    assert waits.found == [], (
        "a step reads its figures in one call, which this watcher of operations does not see"
    )


def test_all_that_goes_to_the_device_is_in_page_locked_memory(
    tiny: Any, tmp_path: Path, view: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_run(tmp_path, view, tiny("electra"), long="max", max_length=16)
    micro = stage._plan(0).micro_batches[0]
    pinned: set[int] = set()

    def pin_memory(self: torch.Tensor) -> torch.Tensor:
        copy = self.clone()
        pinned.add(id(copy))
        return copy

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    made = micro.pin()
    held = [t for piece in made.pieces for t in vars(piece).values() if isinstance(t, torch.Tensor)]
    for part in made.parts:
        held += [part.cells.index, part.owner, *vars(part.targets).values()]
    assert len(held) > 8
    assert all(id(tensor) in pinned for tensor in held)
    copies: list[bool] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    real = torch.Tensor.to

    def to(self: torch.Tensor, *given: Any, **options: Any) -> torch.Tensor:
        if given and isinstance(given[0], torch.device):
            copies.append(options.get("non_blocking", False))
        return real(self, *given, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    n = sum(part.n_scores for part in made.parts)
    made.loss(torch.zeros(n, requires_grad=True), [1.0]).backward()
    assert len(copies) >= 7
    assert all(copies), "every copy is queued"


# ------------------------------------------------------------------------------------- clip and optimiser
@pytest.mark.parametrize("clip", [0.0, 0.05, 1e6])
def test_the_optimisers_own_division_is_clipping(clip: float) -> None:
    def parts() -> tuple[Any, list[torch.nn.Parameter]]:
        torch.manual_seed(3)
        held = [torch.nn.Parameter(torch.randn(n, 7)) for n in (3, 11)]
        for parameter in held:
            parameter.grad = torch.randn_like(parameter)
        return torch.optim.AdamW(held, lr=0.01, fused=True), held

    (one, mine), (two, theirs) = parts(), parts()
    for _ in range(3):
        norm = optimiser.set_divisor(one, mine, clip)
        one.step()
        wanted = torch.nn.utils.clip_grad_norm_(theirs, clip or float("inf"))
        two.step()
        torch.testing.assert_close(norm, wanted)
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
            a.grad, b.grad = (
                torch.randn(a.shape, generator=torch.Generator().manual_seed(7)) for _ in range(2)
            )


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone() -> None:
    parameter = torch.nn.Parameter(torch.ones(5))
    made = torch.optim.AdamW([parameter], lr=0.1, fused=True)
    parameter.grad = torch.tensor([1.0, float("nan"), 0, 0, 0])
    norm = optimiser.set_divisor(made, [parameter], 1.0)
    made.step()
    assert not torch.isfinite(norm)
    assert torch.equal(parameter.detach(), torch.ones(5))


# ----------------------------------------------------------------------------------------- bf16 weights
def last(result: Any, measure: str) -> float:
    return [r["value"] for r in result.log if r["measure"] == measure][-1]


@pytest.mark.test_all
@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        ("electra", {}),
        ("bert", {"gradient_cache": "always", "batch_tokens": 90}),
        ("modernbert", {"layout": "packed", "lr": 5e-4}),
    ],
)
def test_bf16_weights_reach_the_held_out_loss_of_fp32_weights(
    tiny: Any, view: Path, tmp_path: Path, architecture: str, more: dict[str, Any]
) -> None:
    def trained(name: str, **settings: Any) -> Any:
        recipe = make_recipe(
            BASE
            | {"base": str(tiny(architecture)), "keep": "last", "epochs": 2, "valid_every": 16}
            | more
            | settings
        )
        return train(recipe, [view], tmp_path / name, device="cpu")

    plain = trained("plain", precision="fp32")
    low = trained("low", precision="bf16", weights="bf16")
    first = next(r["value"] for r in plain.log if r["measure"] == "valid_loss")
    assert abs(last(plain, "valid_loss") - first) > 0.02, "it learns"
    assert abs(last(low, "valid_loss") - last(plain, "valid_loss")) < 0.002
    held = load_file(low.folder / "model.safetensors")
    assert {value.dtype for value in held.values()} == {torch.float32}
    moved = [
        value
        for value in held.values()
        if value.ndim == 2 and not torch.equal(value, value.bfloat16().float())
    ]
    assert len(moved) > 5, "the weights have more digits than bf16"
    (row,) = low.stages
    assert row["hyperparameters"]["weights"] == "bf16"


def test_bf16_weights_are_used_in_the_forward_and_gone_after_it(tiny: Any) -> None:
    encoder = CrossEncoder.load(
        tiny("electra"),
        precision="bf16",
        device="cpu",
        max_length=32,
        attention_dropout=0.0,
        hidden_dropout=0.0,
    ).train()
    low = Bf16Weights(encoder.model)
    layer = encoder.model.electra.encoder.layer[0]
    kinds: list[Any] = []
    layer.register_forward_hook(
        lambda _m, _i, out: kinds.append((out[0] if isinstance(out, tuple) else out).dtype)
    )
    texts = encoder.tokenise(tiny_models.sentences(4, 3, 9))
    each = np.arange(4)
    batch = encoder.collate(texts, texts, each, each)
    before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    with encoder.lowered(low):
        assert layer.attention.self.query.weight.dtype is torch.bfloat16
        assert encoder.model.classifier.dense.weight.dtype is torch.float32
        for _ in range(2):
            scores = encoder(batch)
            scores.sum().backward()
    assert scores.dtype is torch.float32
    assert kinds == [torch.bfloat16] * 2
    for name, parameter in encoder.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        if parameter.grad is not None:
            assert parameter.grad.dtype is torch.float32
    twice = layer.attention.self.query.weight.grad.clone()
    encoder.model.zero_grad()
    with encoder.lowered(low):
        encoder(batch).sum().backward()
    torch.testing.assert_close(twice, 2 * layer.attention.self.query.weight.grad, rtol=0.02, atol=1e-3)


def test_bf16_weights_need_bf16_products(tiny: Any, view: Path, tmp_path: Path) -> None:
    recipe = make_recipe(BASE | {"base": str(tiny("electra")), "precision": "fp32", "weights": "bf16"})
    with pytest.raises(StudentError, match="needs precision bf16") as refused:
        train(recipe, [view], tmp_path / "out", device="cpu")
    assert refused.value.exit_code == 2
    assert "precision = 'bf16'" in (refused.value.hint or "")


@pytest.mark.test_all
@pytest.mark.parametrize("lora", ["", pytest.param("r=4,dropout=0.1", marks=pytest.mark.needs("peft"))])
def test_bf16_weights_resume_to_the_same_bits(
    tiny: Any, view: Path, tmp_path: Path, lora: str, monkeypatch: Any
) -> None:
    base = tiny_decoders.make("qwen3", tmp_path / "base", causal=False) if lora else tiny("electra")
    more: dict[str, Any] = {"lora": lora, "frame": "plain"} if lora else {"hidden_dropout": 0.1}
    recipe = make_recipe(
        BASE | {"base": str(base), "max_length": 32, "max_steps": 6, "lists": 3, "epochs": 0, "precision": "bf16",
                "weights": "bf16", "layout": "packed", "checkpoint_every": 2, "valid_every": 3, "valid_lists": 3} | more
    )  # fmt: skip
    whole = train(recipe, [view], tmp_path / "whole", device="cpu")
    real, calls = stages.StageRun._update, []

    def breaking(self: Any, *given: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, *given)

    monkeypatch.setattr(stages.StageRun, "_update", breaking)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, [view], tmp_path / "cut", device="cpu")
    assert list((tmp_path / "cut").glob("checkpoint-*"))
    again = train(recipe, [view], tmp_path / "cut", device="cpu")
    mine, theirs = ((r.folder / "model.safetensors").read_bytes() for r in (again, whole))
    assert mine == theirs


# ------------------------------------------------------------------------- one product for query, key, value
def batch_of(encoder: CrossEncoder) -> Any:
    texts = encoder.tokenise(tiny_models.sentences(6, 3, 20))
    each = np.arange(6)
    return encoder.collate(texts, texts, each, each[::-1].copy())


@pytest.mark.test_all
@pytest.mark.parametrize(
    ("architecture", "attention", "backend", "joined"),
    [
        ("electra", None, None, 2),
        ("roberta", "packed_varlen", None, 1),
        ("bert", "packed_varlen", "aot_eager", 1),
        ("qwen3", "packed_varlen", None, 2),
        ("modernbert", None, None, 0),
    ],
)
def test_one_product_gives_query_key_and_value(
    tiny: Any, tmp_path: Path, architecture: str, attention: str | None, backend: str | None, joined: int
) -> None:
    decoder = architecture == "qwen3"
    base = tiny_decoders.make("qwen3", tmp_path / "base", causal=False) if decoder else tiny(architecture)
    found = []
    for change in (False, True):
        encoder = CrossEncoder.load(
            base, precision="fp32", device="cpu", max_length=96, attention=attention, attention_dropout=0.0,
            hidden_dropout=0.0, framing=Framing("plain") if decoder else Framing(),
        )  # fmt: skip
        names = set(encoder.model.state_dict())
        if change:
            n = join_products(encoder.model, first_tokens=attention is not None and not decoder)
            assert n == joined
            assert set(encoder.model.state_dict()) == names
            if backend:
                encoder.compile_layers(backend)
        for _ in range(2):
            encoder.model.zero_grad()
            scores = encoder(batch_of(encoder))
            scores.square().sum().backward()
        found.append(
            (scores.detach(), {n: p.grad for n, p in encoder.model.named_parameters() if p.grad is not None})
        )
    (plain, theirs), (mine, own) = found
    torch.testing.assert_close(mine, plain, atol=2e-6, rtol=1e-5)
    assert own.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(own[name], gradient, atol=2e-5, rtol=1e-4, msg=name)


# --------------------------------------------------------------------------------------- compiled layers
@pytest.mark.test_all
@pytest.mark.parametrize(
    ("architecture", "attention", "backend"),
    [("electra", None, "aot_eager"), ("modernbert", "packed_varlen", "eager")],
)
def test_compiled_layers_compute_the_same_without_a_compiler(
    tiny: Any, architecture: str, attention: str | None, backend: str
) -> None:
    found = []
    for compiled in (False, True):
        encoder = CrossEncoder.load(
            tiny(architecture), precision="fp32", device="cpu", max_length=48, attention=attention,
            attention_dropout=0.0, hidden_dropout=0.0,
        )  # fmt: skip
        if compiled:
            encoder.compile_layers(backend)
        scores = []
        for longest in (6, 30):
            texts = encoder.tokenise(tiny_models.sentences(5, 3, longest))
            each = np.arange(5)
            scores.append(encoder(encoder.collate(texts, texts, each, each)))
        torch.cat(scores).square().sum().backward()
        gradients = {n: p.grad for n, p in encoder.model.named_parameters() if p.grad is not None}
        found.append((torch.cat(scores).detach(), gradients))
    (plain, theirs), (mine, own) = found
    torch.testing.assert_close(mine, plain, atol=2e-6, rtol=1e-5)
    assert own.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(own[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("device", "wanted", "triton", "compiler", "checkpointing", "compiles"),
    [
        ("cuda", None, True, True, False, True),
        ("cuda", None, False, True, False, False),
        ("cuda", None, True, False, False, False),
        ("cuda", False, True, True, False, False),
        ("cuda", None, True, True, True, False),
        ("cpu", None, True, True, False, False),
        ("cpu", True, True, True, False, True),
    ],
)
def test_layers_are_compiled_by_default_on_a_gpu_that_has_a_compiler(
    tiny: Any, monkeypatch: Any, device: str, wanted: bool | None, triton: bool, compiler: bool, checkpointing: bool,
    compiles: bool,
) -> None:  # fmt: skip
    from students.model import compiled_layers

    encoder = CrossEncoder.load(tiny("bert"), precision="fp32", device="cpu")
    monkeypatch.setattr(CrossEncoder, "device", property(lambda self: torch.device(device)))
    monkeypatch.setattr(
        compiled_layers.importlib.util, "find_spec", lambda name: object() if triton else None
    )
    monkeypatch.setattr(compiled_layers.shutil, "which", lambda name: "/usr/bin/gcc" if compiler else None)
    given = {} if wanted is None else {"compile": wanted}
    recipe = make_recipe(BASE | {"base": "bert", "gradient_checkpointing": checkpointing} | given)
    assert run.wants_compiled(recipe, encoder) is compiles


# ------------------------------------------------------------------------------------- several processes
def test_processes_wait_longer_than_any_tokenising(
    tiny: Any, view: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    import accelerate

    asked: list[Any] = []

    class Asked(Exception):
        pass

    def accelerator(**options: Any) -> Any:
        asked.extend(options["kwargs_handlers"])
        raise Asked

    monkeypatch.setattr(accelerate, "Accelerator", accelerator)
    with pytest.raises(Asked):
        train(make_recipe(BASE | {"base": str(tiny("bert"))}), [view], tmp_path / "out", device="cpu")
    assert [handler.timeout.total_seconds() >= 86_400 for handler in asked] == [True]


@pytest.fixture
def alone_in_a_group(tmp_path: Path) -> Any:
    from torch import distributed

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield distributed
    distributed.destroy_process_group()


def test_gradients_are_sent_in_buckets_during_the_last_backward_pass(alone_in_a_group: Any) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4)))
    unused = torch.nn.Parameter(torch.zeros(3))
    parameters = [*model.parameters(), unused]
    summed = GradientSum(parameters, lambda p: p.grad, bucket=79)
    assert [sum(p.numel() for p in held) for held in summed._buckets] == [75, 72, 72, 72]
    sent: list[int] = []
    for layer in model:
        layer.register_full_backward_hook(lambda *_: sent.append(len(summed._sent)))
    data = torch.randn(5, 8, requires_grad=True)
    model(data).sum().backward()
    assert sent == [0] * 4, "only the last pass sends"
    summed.arm()
    model(data).square().sum().backward()
    assert len(summed._sent) == 0, (
        "the first bucket waits for a parameter without a gradient, and the others for it"
    )
    wanted = [None if p.grad is None else p.grad.clone() for p in parameters]
    figures, found = summed.finish(torch.tensor([2.0, 3.0]))
    assert figures.tolist() == [2.0, 3.0]
    assert torch.equal(found[unused], torch.zeros(3))
    for parameter, gradient in zip(parameters[:-1], wanted, strict=False):
        assert torch.equal(found[parameter], gradient)
    summed.close()
    without = GradientSum(list(model.parameters()), lambda p: p.grad, bucket=79)
    steps: list[int] = []
    for layer in model:
        layer.register_full_backward_hook(lambda *_: steps.append(len(without._sent)))
    without.arm()
    model(data).sum().backward()
    assert len(without._sent) == 4
    assert steps[0] < steps[-1], "the last layers' gradients are sent while the first ones are computed"
    without.finish(torch.zeros(1))
