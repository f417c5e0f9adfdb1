"""Read the head of a re-ranker that sentence-transformers saved as modules of its own, as the Ettin re-rankers are.

Such a folder has the encoder alone in ``model.safetensors``, and ``modules.json`` names the head's parts. Its weights are
those of transformers' ModernBERT classifier under other names.
"""

import json
from typing import Any

import torch

from students.errors import ExitCode, StudentError
from students.model.hub import model_file

_PARTS = ["Transformer", "Pooling", "Dense", "LayerNorm", "Dense"]
_GELU = "torch.nn.modules.activation.GELU"


def load_module_head(model: Any, source: str, local_only: bool) -> bool:
    """Fill a classifier's head from the folder's modules; False if the folder has no such head.

    Raises:
        StudentError: a head of other parts (exit code 2).
    """
    modules = _json(source, "modules.json", local_only) or []
    parts = [module["type"].rsplit(".", 1)[-1] for module in modules]
    paths = [module["path"] for module in modules]
    if "Dense" not in parts:
        return False
    settings = [_json(source, f"{path}/config.json", local_only) or {} for path in paths]
    last = len(parts) - 1 - parts[::-1].index("Dense")
    if settings[last].get("out_features") != 1:  # an embedding model, whose head is new as any encoder's
        return False
    pooling = settings[1].get("pooling_mode", "cls" if settings[1].get("pooling_mode_cls_token") else None)
    fits = parts == _PARTS and model.config.model_type == "modernbert" and pooling == "cls"
    if not fits or settings[2].get("activation_function") != _GELU:
        raise StudentError(
            f"{source}: its head is {' + '.join(parts[1:])} of a {model.config.model_type}, and a student takes"
            f" {' + '.join(_PARTS[1:])} over the first token of a modernbert",
            hint="name the encoder that it was made from; its head is then new",
            exit_code=ExitCode.USAGE,
        )
    model.config.classifier_pooling = "cls"
    for target, path in (
        (model.head.dense, paths[2]),
        (model.head.norm, paths[3]),
        (model.classifier, paths[4]),
    ):
        _fill(target, _weights(source, f"{path}/model.safetensors", local_only), f"{source}/{path}")
    return True


def _fill(target: Any, weights: dict[str, torch.Tensor], where: str) -> None:
    """Copy weights and biases into a layer. A bias that the layer lacks must be zero, and the reverse."""
    held = {name.rsplit(".", 1)[-1]: value for name, value in weights.items()}
    own = dict(target.named_parameters())
    lost = [name for name in held if name not in own and held[name].any()]
    if lost or held["weight"].shape != own["weight"].shape:
        raise StudentError(
            f"{where}: weights {tuple(held['weight'].shape)} {' '.join(lost)} do not fit {target}",
            hint="name the encoder that it was made from; its head is then new",
            exit_code=ExitCode.USAGE,
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(held[name].float()) if name in held else parameter.zero_()


def _weights(source: str, name: str, local_only: bool) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    path = model_file(source, name, local_only)
    if path is None:
        raise StudentError(
            f"{source}: {name} is missing", hint="fetch the model again", exit_code=ExitCode.DATA_MISSING
        )
    return load_file(path)


def _json(source: str, name: str, local_only: bool) -> Any:
    path = model_file(source, name, local_only)
    return None if path is None else json.loads(path.read_text("utf-8"))
