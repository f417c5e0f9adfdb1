"""The content key of a teacher: what two teachers have in common whose replies may stand for each other's.

The name, the prices and the licence are left out, since they say nothing about replies. Keys of the two forms that
exist are stored in every store, so neither form may change.
"""

from collections.abc import Mapping
from typing import Any

from labelstore.store.keys import content_key

KINDS = ("listwise", "cross-encoder", "bi-encoder", "pointwise")


def asked(
    model: str | None,
    revision: str | None,
    prompt_hash: str | None,
    sampling: Mapping[str, Any] | None,
    kind: str,
) -> str:
    """Compute the key of a teacher that msft asks itself.

    Args:
        model: what the engine loads; it counts only without a revision.
        revision: the exact weights.
        kind: one of `KINDS`.
    """
    drawn = dict(sampling) if sampling else None
    content = {"model": revision or model, "prompt_hash": prompt_hash, "sampling": drawn, "kind": kind}
    return content_key("teacher", content)


def imported(
    model: str, revision: str | None, engine: str, prompt_hash: str | None, sampling: Mapping[str, Any] | None
) -> str:
    """Compute the key of a teacher whose labels were made elsewhere."""
    content = {
        "model": model,
        "revision": revision,
        "engine": engine,
        "prompt_hash": prompt_hash,
        "sampling": dict(sampling) if sampling is not None else None,
    }
    return content_key("teacher", content)


def possible(
    name: str,
    model: str | None,
    revision: str | None,
    engine: str,
    prompt_hash: str | None,
    sampling: Mapping[str, Any] | None,
) -> list[str]:
    """List every key that a stored row of `teachers` may have, the likeliest first: the row does not hold the kind."""
    ours = [asked(model, revision, prompt_hash, sampling, kind) for kind in KINDS]
    theirs = imported(name if model is None else model, revision, engine, prompt_hash, sampling)
    return [theirs, *ours] if engine == "imported" else [*ours, theirs]
