"""Read recipes and grids from TOML. All errors are reported together."""

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from msft.key_values import toml_value
from students.errors import ExitCode, StudentError
from students.losses import LOSSES
from students.recipes.recipe import (
    DEFAULT_LOSS,
    OBJECTIVES,
    RECIPES,
    Grid,
    Lora,
    Objective,
    Recipe,
    Stage,
    parse_regime,
)


def make_recipe(
    settings: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    where: str = "recipe",
) -> Recipe:
    """Make a recipe from plain settings, as a TOML file would hold them; ``overrides`` as in `load_recipe`.

    Raises:
        StudentError: lists every unknown key, wrong type and impossible value, one per line (exit code 2).
    """
    given = settings or {}
    return _single(_build(_nested(given), where, _nested(overrides or {}, given)), where)


def load_recipe(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Load a recipe by shipped name (``small``) or path.

    Args:
        overrides: settings that replace the file's, including those of its tables (``kd.loss``). A base, regime or seed among them
            selects that training from a grid.
    """
    path, settings = _read(name_or_path)
    return _single(_build(settings, str(path), _nested(overrides or {}, settings)), str(path))


def load_grid(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Grid:
    """Load all trainings of a recipe file, and the settings of their evaluation; ``overrides`` as in `load_recipe`."""
    path, settings = _read(name_or_path)
    return _build(settings, str(path), _nested(overrides or {}, settings))


def _nested(given: Mapping[str, Any], below: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Put settings of LoRA into one table: ``lora.r`` of ``--set``, the text of ``--lora``, and those of the file below."""
    found = {key: value for key, value in given.items() if not key.startswith("lora.") and key != "lora"}
    of_file, table = (below or {}).get("lora", {}), given.get("lora", {})
    inner = {key.removeprefix("lora."): value for key, value in given.items() if key.startswith("lora.")}
    if table or inner:
        parts = [lora_settings(part) if isinstance(part, str) else part for part in (of_file, table)]
        wrong = next((part for part in parts if not isinstance(part, dict)), None)
        found["lora"] = {k: v for part in parts for k, v in part.items()} | inner if wrong is None else wrong
    return found


def lora_settings(text: str) -> dict[str, Any]:
    """Read ``r=32,alpha=64,targets=q_proj,v_proj`` as the settings of a recipe's table ``[lora]``.

    Raises:
        StudentError: a part has no key (exit code 2).
    """
    found: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if equals:
            found[key.strip()] = [value.strip()] if key.strip() == "targets" else toml_value(value)
        elif "targets" in found and part.strip():
            found["targets"].append(part.strip())
        else:
            raise StudentError(
                f"lora {text!r}: expected KEY=VALUE, found {part!r}",
                hint="write r=32, or r=32,alpha=64,dropout=0.1,targets=q_proj,v_proj",
                exit_code=ExitCode.USAGE,
            )
    return found


def _single(grid: Grid, where: str) -> Recipe:
    if len(grid.recipes) != 1:
        raise StudentError(
            f"{where} is a grid of {len(grid.recipes)} trainings",
            hint="run a grid with msft reproduce, or choose one training by base, regime and seed",
            exit_code=ExitCode.USAGE,
        )
    return grid.recipes[0]


def shipped() -> list[str]:
    """List the names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def _read(name_or_path: str | Path) -> tuple[Path, dict[str, Any]]:
    path = Path(name_or_path)
    if not path.suffix and not path.is_file():
        path = RECIPES / f"{name_or_path}.toml"
    if not path.is_file():
        raise StudentError(
            f"recipe not found: {name_or_path}",
            hint=f"give a TOML file, or one of auto, {', '.join(shipped())}",
            exit_code=ExitCode.DATA_MISSING,
        )
    try:
        return path, {"name": path.stem, **tomllib.loads(path.read_text(encoding="utf-8"))}
    except tomllib.TOMLDecodeError as error:
        raise StudentError(
            f"{path}: {error}", hint="write the recipe as a TOML file", exit_code=ExitCode.USAGE
        ) from error


MOST_HEAD_SCALE = 1000.0
_GRID_KEYS = {"bases": "base", "regimes": "regime", "seeds": "seed"}


def _build(settings: dict[str, Any], where: str, overrides: Mapping[str, Any]) -> Grid:
    errors: list[str] = []
    overrides = in_tables(overrides, settings)
    evaluate, published = settings.pop("evaluate", {}), settings.pop("published", [])
    vary = settings.pop("vary", {})
    stage_names = _stage_names(settings.get("regimes", [settings.get("regime", Recipe.regime)]))
    for many, one in _GRID_KEYS.items():
        for given, replaced in ((one, many), (many, one)):
            if given in overrides:
                settings.pop(replaced, None)
    last = {key: value for key, value in overrides.items() if key in _STAGE_TYPES}
    settings |= overrides
    axes = {}
    for many, one in _GRID_KEYS.items():
        values = settings.pop(many, None)
        if values is None:
            continue
        if one in settings:
            errors.append(f"{one} and {many} exclude each other")
        if not isinstance(values, list) or not values:
            errors.append(f"{many} must be a list of at least one value")
        else:
            axes[one] = values
    recipes, choices = [], []
    for combination in product(*axes.values()):
        chosen = dict(zip(axes, combination, strict=True))
        for varied in _varied(vary, {**settings, **chosen}, overrides, errors):
            nested = in_tables(_nested(varied, settings), settings)
            recipe = _one({**settings, **chosen, **nested}, last, errors)
            if recipe is not None:
                recipes.append(recipe)
                choices.append({**chosen, **varied})
    stage_names |= _stage_names([recipe.regime for recipe in recipes])
    errors += [
        f"[{key}]: no such stage (stages: {', '.join(sorted(stage_names))})"
        for key, value in settings.items()
        if isinstance(value, dict) and key.startswith("stage-") and key not in stage_names
    ]
    if errors:
        unique = list(dict.fromkeys(errors))
        raise StudentError(
            f"{where}: {len(unique)} error{'s' if len(unique) > 1 else ''}\n"
            + "\n".join(f"  {e}" for e in unique),
            hint="see every setting in docs/reference/settings.md",
            exit_code=ExitCode.USAGE,
        )
    return Grid(tuple(recipes), tuple(choices), evaluate, tuple(published))


def in_tables(overrides: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Put ``kd.loss`` into the table ``kd``, beside what the file has there; `_nested` does so for LoRA."""
    dotted = {key for key in overrides if "." in key and not key.startswith("lora.")}
    made: dict[str, Any] = {key: value for key, value in overrides.items() if key not in dotted}
    for key, value in overrides.items():
        if key in dotted:
            table, _, name = key.rpartition(".")
            before = made.get(table, settings.get(table))
            made[table] = {**(before if isinstance(before, Mapping) else {}), name: value}
    return made


def _varied(
    vary: Any, settings: dict[str, Any], overrides: Mapping[str, Any], errors: list[str]
) -> list[dict[str, Any]]:
    """Combine the values of the ``[vary]`` table that affect one training, as overrides; [{}] if none does."""
    if not isinstance(vary, dict):
        errors.append("vary must be a table")
        return []
    regime = settings.get("regime", Recipe.regime)
    axes = {}
    for key, values in vary.items():
        table = key.rpartition(".")[0]
        if not isinstance(values, list) or not values:
            errors.append(f"[vary] {key} must be a list of at least one value")
        elif (table or key) not in overrides and _has_table(regime, table):
            axes[key] = values
    return [dict(zip(axes, combination, strict=True)) for combination in product(*axes.values())]


def _has_table(regime: Any, table: str) -> bool:
    """Return False for the table of a stage or an objective that the regime does not have."""
    names = _stage_names([regime])
    if table in OBJECTIVES:
        return any(table in name.partition(":")[2].split("+") for name in names)
    return not table.startswith("stage-") or table in names


def _stage_names(regimes: Any) -> set[str]:
    """List the names that tables of these regimes' stages may have. An invalid regime is reported elsewhere."""
    names = set()
    for text in regimes if isinstance(regimes, list) else []:
        try:
            stages = parse_regime(str(text))
        except StudentError:
            continue
        for number, objectives in enumerate(stages, 1):
            names |= {f"stage-{number}", f"stage-{number}:{'+'.join(objectives)}"}
    return names


def _one(settings: dict[str, Any], last: dict[str, Any], errors: list[str]) -> Recipe | None:
    """Make one training of the file.

    Args:
        last: settings that replace those of every stage and table. ``settings`` holds them too, and their types are
            checked there.
    """
    own, stage_wide, tables = _split(settings, errors)
    last = {key: stage_wide[key] for key in last if key in stage_wide}
    try:
        regime = parse_regime(str(own.get("regime", Recipe.regime)))
    except StudentError as error:
        errors.append(error.message)
        return None
    stages = tuple(_stage(i, names, stage_wide, tables, last, errors) for i, names in enumerate(regime, 1))
    recipe = Recipe(**{**own, "stages": stages}) if not errors else None
    if recipe is not None:
        _check_recipe(recipe, errors)
    return recipe


def _split(
    settings: dict[str, Any], errors: list[str]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, Any]]]:
    """Split settings into the recipe's, those of every stage, and the tables; check their types."""
    own: dict[str, Any] = {}
    stage_wide: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        if key == "lora":
            own["lora"] = Lora(**_lora(value, errors))
        elif key == "instructions":
            own["instructions"] = _instructions(value, errors)
        elif not isinstance(value, dict):
            known, into = (_RECIPE_TYPES, own) if key in _RECIPE_TYPES else (_STAGE_TYPES, stage_wide)
            into |= _typed(known, key, value, "", errors)
        elif key in OBJECTIVES or key == "cl+kd" or key.startswith("stage-"):
            tables[key] = {}
            for inner, setting in value.items():
                tables[key] |= _typed(_STAGE_TYPES, inner, setting, f"[{key}] ", errors)
        else:
            errors.append(
                f"[{key}]: unknown table (cl, kd, cl+kd, stage-N, stage-N:kd, lora, instructions, evaluate)"
            )
    return own, stage_wide, tables


def _instructions(given: Any, errors: list[str]) -> tuple[tuple[str, str], ...]:
    """Check the table of datasets with their instructions."""
    if not isinstance(given, dict) or not all(isinstance(text, str) and text for text in given.values()):
        errors.append(f"instructions must be a table of datasets with a text each, not {given!r}")
        return ()
    return tuple(sorted(given.items()))


def _lora(given: Any, errors: list[str]) -> dict[str, Any]:
    """Check the settings of LoRA, a table or a text such as ``r=32``."""
    settings = lora_settings(given) if isinstance(given, str) else given
    if not isinstance(settings, dict):
        errors.append(f"lora must be a table with r, not {given!r}")
        return {}
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _typed(_LORA_TYPES, key, value, "[lora] ", errors)
    return found


def _stage(
    number: int,
    names: tuple[str, ...],
    stage_wide: dict[str, Any],
    tables: dict[str, dict[str, Any]],
    last: dict[str, Any],
    errors: list[str],
) -> Stage:
    """Make a stage. Later settings replace earlier ones.

    The order: defaults, the file's top, [cl] or [kd], ["cl+kd"], [stage-N], ["stage-N:kd"], the command's overrides.
    """
    joint = "+".join(names)
    last = {
        **(tables.get(joint, {}) if len(names) > 1 else {}),
        **tables.get(f"stage-{number}", {}),
        **tables.get(f"stage-{number}:{joint}", {}),
        **last,
    }
    objectives = []
    for name in names:
        merged = {**stage_wide, **tables.get(name, {}), **last}
        chosen = {k: v for k, v in merged.items() if k in _OBJECTIVE_FIELDS}
        objective = Objective(name, **chosen)
        objective = replace(
            objective,
            loss=objective.loss or DEFAULT_LOSS[name],
            group_size=objective.group_size or (8 if name == "cl" else 0),
        )
        _check_objective(objective, errors)
        objectives.append(objective)
    settings = {**stage_wide, **(tables.get(names[0], {}) if len(names) == 1 else {}), **last}
    stage = Stage(number, tuple(objectives), **{k: v for k, v in settings.items() if k in _STAGE_FIELDS})
    _check_stage(stage, errors)
    return stage


def _check_objective(objective: Objective, errors: list[str]) -> None:
    where = f"[{objective.name}]"
    if objective.loss not in LOSSES:
        errors.append(f"{where} unknown loss {objective.loss!r}: one of {', '.join(LOSSES)}")
        return
    takes = LOSSES[objective.loss].parameters
    for name in objective.parameters:
        if name not in takes:
            takers = ", ".join(loss for loss in LOSSES if name in LOSSES[loss].parameters)
            errors.append(f"{where} {name} is a parameter of {takers}, not of {objective.loss}")
    for name in ("temperature", "teacher_temperature", "alpha", "positive_weight", "scale"):
        value = getattr(objective, name)
        if value is not None and value <= 0:
            errors.append(f"{where} {name} must be above 0, not {value}")
    if objective.lists < 1:
        errors.append(f"{where} lists must be at least 1, not {objective.lists}")
    if objective.group_size == 1 or objective.group_size < 0 or objective.depth < 2:
        errors.append(f"{where} group_size and depth must be at least 2")
    if objective.in_batch < 0 or (objective.in_batch and objective.name != "cl"):
        errors.append(
            f"{where} in_batch is a number of negatives for cl, 0 or more, not {objective.in_batch}"
        )
    if objective.weight < 0:
        errors.append(f"{where} weight must not be negative")


def _check_stage(stage: Stage, errors: list[str]) -> None:
    where = f"stage {stage.number}:"
    bounds = (stage.epochs, stage.max_steps, stage.max_pairs, stage.max_minutes)
    if any(bound < 0 for bound in bounds) or not any(bounds):
        errors.append(
            f"{where} one of epochs, max_steps, max_pairs, max_minutes must be above 0, and none may be negative"
        )
    if not 0 < stage.lr <= 1e30:  # more does not fit the optimiser's 32 bits
        errors.append(f"{where} lr must be above 0 and at most 1e30, not {stage.lr}")
    for name in (
        "warmup",
        "weight_decay",
        "clip",
        "valid_every",
        "patience",
        "checkpoint_every",
        "batch_tokens",
    ):
        if getattr(stage, name) < 0:
            errors.append(f"{where} {name} must not be negative")
    if stage.log_every < 1:
        errors.append(f"{where} log_every must be at least 1")


def _check_recipe(recipe: Recipe, errors: list[str]) -> None:
    if recipe.max_length < 8:
        errors.append(f"max_length must be at least 8, not {recipe.max_length}")
    if recipe.layers < 0:
        errors.append("layers must not be negative")
    if not 0 < recipe.head_scale <= MOST_HEAD_SCALE:
        errors.append(f"head_scale must be above 0 and at most {MOST_HEAD_SCALE:g}, not {recipe.head_scale}")
    if recipe.lora.r < 0 or recipe.lora.alpha < 0:
        errors.append("[lora] r and alpha must not be negative")
    if recipe.lora != Lora() and not recipe.lora.r:
        errors.append("[lora] its settings need a rank: r = 32")
    if not 0 <= recipe.lora.dropout < 1:
        errors.append(f"[lora] dropout must be in [0, 1), not {recipe.lora.dropout}")
    for name in ("attention_dropout", "hidden_dropout"):
        value = getattr(recipe, name)
        if value is not None and not 0 <= value < 1:
            errors.append(f"{name} must be in [0, 1), not {value}")


def _types(kind: type, leave_out: Iterable[str]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind) if f.name not in leave_out}


_OBJECTIVE_FIELDS = _types(Objective, ("name",))
_STAGE_FIELDS = _types(Stage, ("number", "objectives"))
_STAGE_TYPES = {**_OBJECTIVE_FIELDS, **_STAGE_FIELDS}
_RECIPE_TYPES = _types(Recipe, ("stages", "lora", "instructions"))
_LORA_TYPES = _types(Lora, ())


def _typed(known: Mapping[str, Any], key: str, value: Any, where: str, errors: list[str]) -> dict[str, Any]:
    """Return {key: value} with numbers widened if the key and type are right; otherwise note an error and return {}."""
    if key not in known:
        near = difflib.get_close_matches(key, [*known, *_RECIPE_TYPES, *_GRID_KEYS], 1)
        errors.append(f"{where}unknown setting {key!r}" + (f" (did you mean {near[0]}?)" if near else ""))
        return {}
    kind = known[key]
    options = [a for a in get_args(kind) if a is not type(None)] if get_origin(kind) is not None else [kind]
    if get_origin(kind) is Literal:
        if value not in options:
            errors.append(f"{where}{key} must be one of {', '.join(map(str, options))}, not {value!r}")
            return {}
        return {key: value}
    if get_origin(kind) is tuple:
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            errors.append(f"{where}{key} must be a list of strings, not {value!r}")
            return {}
        return {key: tuple(value)}
    wanted = options[0]
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        errors.append(f"{where}{key} must be {_named(wanted)}, not {value!r}")
        return {}
    if isinstance(value, float) and not math.isfinite(value):
        errors.append(f"{where}{key} must be a finite number, not {value}")
        return {}
    return {key: value}


def _named(kind: Any) -> str:
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(kind, str(kind))
