"""LoRA with peft: small adapters and the head learn, and all other weights stay.

The adapters stand inside the model, which keeps its class and its config. `merge` adds them to the weights, so a finished
student is an ordinary folder. Its subfolder ``adapter`` holds them alone, in peft's format.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from msft.host import extras
from msft.host.permissions import as_umask
from students.errors import ExitCode, StudentError
from students.model.head import head_parts
from students.recipes.recipe import Lora

FOLDER = "adapter"  # within a student's folder
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of names in peft's files


def adapt(model: Any, settings: Lora, base: str) -> None:
    """Put adapters beside the linear maps that the settings name. Only they and the head learn from now on.

    Args:
        base: the base's id or folder, for those who load the adapter alone.

    Raises:
        MsftError: peft is not installed (exit code 4). StudentError: a target matches no linear map (exit code 2).
    """
    extras.require("lora")
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha or 2 * settings.r,  # type: ignore[arg-type]  # peft divides it only
        lora_dropout=settings.dropout,
        target_modules=find_targets(model, settings.targets),
        modules_to_save=None,  # the head learns in its place
        task_type="SEQ_CLS",
        base_model_name_or_path=base,
    )
    inject_adapter_in_model(config, model)
    model.adapter_config = config
    learning = learning_names(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learning)


def is_adapted(model: Any) -> bool:
    """Return True if the model has adapters that are not merged."""
    return getattr(model, "adapter_config", None) is not None


def learning_names(model: Any) -> set[str]:
    """Return the names of the parameters that may learn: adapters and head, or all without adapters."""
    names = {name for name, _ in model.named_parameters()}
    if not is_adapted(model):
        return names
    heads = tuple(f"{head}." for head in head_parts(model))
    return {name for name in names if ".lora_" in name or name.startswith(heads)}


def adapter_state(model: Any) -> dict[str, torch.Tensor]:
    """Return the weights of adapters and head, by their names in the model."""
    learning = learning_names(model)
    return {
        name: value.detach().contiguous() for name, value in model.state_dict().items() if name in learning
    }


def load_adapter_state(model: Any, state: dict[str, torch.Tensor]) -> None:
    """Put the weights of adapters and head back.

    Raises:
        StudentError: the names are not those of this model's adapters.
    """
    if state.keys() != adapter_state(model).keys():
        raise StudentError(
            "the checkpoint's adapters are not those of this recipe", hint="choose another folder with --out"
        )
    model.load_state_dict(state, strict=False)


def merge(model: Any) -> None:
    """Add the adapters to the weights beside them, and take them out of the model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, module.get_base_layer())
    model.adapter_config = None
    if hasattr(model, "peft_config"):
        del model.peft_config
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def save_adapter(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write adapters and head as a folder that peft loads, with the tokenizer."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {
        _PREFIX + name.replace(".default.", "."): value.cpu() for name, value in adapter_state(model).items()
    }
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    config = model.adapter_config
    config.inference_mode, config.modules_to_save = True, list(head_parts(model))
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    as_umask(folder)


def base_of(folder: str) -> str | None:
    """Return the base that an adapter's folder names; None if the folder is none.

    Raises:
        StudentError: the folder names no base (exit code 4). MsftError: peft is not installed (exit code 4).
    """
    path = Path(folder, CONFIG)
    if not path.is_file() or Path(folder, "config.json").is_file():
        return None
    base = json.loads(path.read_text("utf-8")).get("base_model_name_or_path")
    if not base:
        raise StudentError(
            f"{folder} is a LoRA adapter, and its {CONFIG} names no base",
            hint=f"set base_model_name_or_path in {path}",
            exit_code=ExitCode.DATA_MISSING,
        )
    extras.require("lora")
    return str(base)


def without_base(error: StudentError, adapter: str) -> StudentError:
    """Tell how to give an adapter its base, which cannot be loaded."""
    return StudentError(
        error.message,
        hint=f"put the base there, or set base_model_name_or_path in {Path(adapter, CONFIG)}",
        exit_code=error.exit_code,
    )


def add_adapter(model: Any, folder: str) -> None:
    """Load an adapter's folder over its base, and merge it.

    Raises:
        StudentError: the adapter does not fit the model (exit code 4).
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        PeftModel.from_pretrained(model, folder).merge_and_unload()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise StudentError(
            f"{folder}: the adapter does not fit its base: {str(error).strip().splitlines()[0]}",
            hint="check base_model_name_or_path in its adapter_config.json",
            exit_code=ExitCode.DATA_MISSING,
        ) from error


def find_targets(model: Any, wanted: tuple[str, ...]) -> list[str]:
    """Find the full names of the linear maps to adapt: those that end in a wanted name, by default all but the head's.

    Raises:
        StudentError: a wanted name matches none, or there are no linear maps (exit code 2).
    """
    heads = tuple(head_parts(model).values())
    inside = {id(module) for head in heads for module in head.modules()}
    maps = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in inside
    ]
    if not maps:
        raise StudentError(
            f"a {model.config.model_type} has no linear maps, and LoRA adapts only those",
            hint="leave lora out",
            exit_code=ExitCode.USAGE,
        )
    for target in wanted:
        if not any(_ends(name, target) for name in maps):
            known = sorted({name.rpartition(".")[2] for name in maps})
            raise StudentError(
                f"lora.targets: {target!r} matches no linear map of this {model.config.model_type}",
                hint=f"set targets to some of {', '.join(known)}, or leave them out for all",
                exit_code=ExitCode.USAGE,
            )
    return [name for name in maps if not wanted or any(_ends(name, target) for target in wanted)]


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
