"""Layers through torch.compile: the same scores and gradients, compiled once for all lengths."""

from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from students.errors import StudentError
from students.model.encoder import CrossEncoder
from students.text.batches import PairBatch

pytestmark = pytest.mark.test_all

QUERIES = tiny_models.sentences(10, 3, 6)


def load(folder: Any, **options: Any) -> CrossEncoder:
    return CrossEncoder.load(
        folder, max_length=64, attention_dropout=0.0, hidden_dropout=0.0, seed=1, **options
    )


def batch(encoder: CrossEncoder, shortest: int, longest: int) -> PairBatch:
    each = np.arange(len(QUERIES))
    passages = tiny_models.sentences(len(QUERIES), shortest, longest)
    return encoder.collate(encoder.tokenise(QUERIES), encoder.tokenise(passages), each, each)


def learnt(encoder: CrossEncoder, pairs: PairBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    encoder.model.zero_grad()
    scores = encoder(pairs.to(encoder.device))
    (scores * torch.linspace(-1, 1, len(QUERIES), device=scores.device)).sum().backward()
    return scores.detach(), {
        name: p.grad.clone() for name, p in encoder.model.named_parameters() if p.grad is not None
    }


@pytest.mark.needs("compiler")
@pytest.mark.parametrize(
    ("architecture", "attention"),
    [
        ("electra", None),
        ("modernbert", "packed_varlen"),
        # A minute each without a cache, and no code that the two above do not compile.
        pytest.param("electra", "packed_varlen", marks=pytest.mark.slow),
        pytest.param("modernbert", None, marks=pytest.mark.slow),
    ],
)
def test_compiled_layers_compute_the_same(tiny: Any, architecture: str, attention: str | None) -> None:
    from torch._dynamo.utils import counters

    folder = tiny(architecture)
    plain, compiled = (load(folder, precision="fp32", device="cpu", attention=attention) for _ in range(2))
    compiled.compile_layers()
    graphs: list[int] = []
    for shortest, longest in ((4, 8), (10, 20), (20, 40)):
        (scores, gradients), (theirs, their_gradients) = (
            learnt(encoder, batch(encoder, shortest, longest)) for encoder in (plain, compiled)
        )
        torch.testing.assert_close(theirs, scores, atol=2e-6, rtol=1e-5)
        assert their_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            off = (their_gradients[name] - gradient).norm()
            assert float(off) <= 1e-4 * float(gradient.norm()) + 1e-6, name
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[0] == graphs[-1], graphs  # other lengths need no other program


@pytest.mark.needs("gpu")
@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_compiled_layers_around_the_kernel_compute_the_same(tiny: Any, architecture: str) -> None:
    plain, compiled = (
        load(tiny(architecture), precision="bf16", device="cuda", attention="packed_varlen") for _ in range(2)
    )
    compiled.compile_layers()
    for shortest, longest in ((4, 8), (20, 40)):
        (scores, _), (theirs, _) = (
            learnt(encoder, batch(encoder, shortest, longest)) for encoder in (plain, compiled)
        )
        torch.testing.assert_close(theirs, scores, atol=5e-2, rtol=5e-2)


def test_without_a_compiler_the_error_says_what_to_do(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(StudentError, match="compiler") as error:
        load(tiny("bert"), device="cpu").compile_layers()
    assert "compile = false" in (error.value.hint or "")
