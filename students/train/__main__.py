"""Train on a machine that has view folders but no store (``python -m students.train``)."""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msft import refusals
from msft.errors import ExitCode, MsftError
from msft.host import extras
from msft.key_values import key_values, toml_value
from students.recipes.read import load_recipe, make_recipe, shipped


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, train, and print the stages as JSON; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m students.train", description=__doc__)
    parser.add_argument(
        "--view",
        action="append",
        required=True,
        metavar="[STAGE=]FOLDER",
        help="a view folder; once for each objective",
    )
    parser.add_argument("--recipe", help=f"a TOML file, or one of {', '.join(shipped())}")
    parser.add_argument("--regime", help="cl, kd, cl,kd, kd,cl … instead of the recipe's")
    parser.add_argument("--base", help="base model instead of the recipe's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="set another top-level setting"
    )
    parser.add_argument("--lora", metavar="r=32[,alpha=64,…]", help="train LoRA adapters and the head")
    parser.add_argument("--out", required=True, type=Path, help="output folder")
    parser.add_argument(
        "--tokens", type=Path, help="folder of the token cache, to share it between trainings"
    )
    parser.add_argument(
        "--tracker", action="append", default=[], help="one of Accelerate's trackers, e.g. tensorboard"
    )
    parser.add_argument("--device", choices=["cpu"], help="train on the CPU even if there is a GPU")
    parser.add_argument("-q", "--quiet", action="store_true", help="show neither notes nor progress")
    options = parser.parse_args(arguments)
    try:
        overrides = key_values("--set", options.set, "lr=1e-5", toml_value)
        overrides |= {k: v for k in ("regime", "base", "lora") if (v := getattr(options, k)) is not None}
        recipe = (
            load_recipe(options.recipe, overrides)
            if options.recipe
            else make_recipe(overrides, where="options")
        )
        with refusals.named(options.out, ImportError):  # torch's own libraries may not fit into memory
            from students.train.run import train

        if "tensorboard" in options.tracker:
            extras.require("trackers")
        with _stdout_kept():
            result = train(
                recipe,
                _views(options.view),
                options.out,
                tokens=options.tokens,
                progress=None if options.quiet else _Progress(),
                note=None if options.quiet else _note,
                trackers=options.tracker,
                device=options.device,
            )
    except MsftError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue from the last checkpoint", file=sys.stderr)
        return ExitCode.INTERRUPTED
    if int(os.environ.get("RANK", "0")) == 0:  # torchrun and accelerate number the processes
        sys.stdout.write(json.dumps(result.stages, indent=1) + "\n")
    return 0


@contextmanager
def _stdout_kept() -> Iterator[None]:
    """Send what libraries print to stderr, native code included: torch 2.9's Gloo prints its connections to stdout."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _views(given: list[str]) -> Any:
    """Read view folders, each with its stage or objective before ``=``; without names, their kinds tell them apart."""
    if not any("=" in view for view in given):
        return [Path(view) for view in given]
    from students.recipes.recipe import KINDS
    from students.train.view_folder import read_kind

    by_kind = {kind: objective for objective, kind in KINDS.items()}
    named = {}
    for view in given:
        name, _, folder = view.rpartition("=")
        named[name or by_kind.get(read_kind(folder), read_kind(folder))] = Path(folder)
    return named


def _note(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


class _Progress:
    """Print a line every ten seconds: pairs done, pairs/s, time left, the last figures."""

    def __init__(self) -> None:
        self._began = self._shown = time.monotonic()
        self._first: int | None = None
        self._done = 0

    def __call__(self, done: int, total: int | None = None, **figures: object) -> None:
        now = time.monotonic()
        if self._first is None or done < self._done:
            self._first, self._began = done, now
        self._done = done
        if now - self._shown < 10:
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._began, 1e-9)
        left = f", {(total - done) / rate:,.0f} s left" if total and rate > 0 else ""
        shown = "".join(
            f", {name} {value:.4g}" for name, value in figures.items() if isinstance(value, float)
        )
        of = f" of {total:,}" if total else ""
        print(f"{done:,}{of} done, {rate:,.1f}/s{left}{shown}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]  # transformers would import it, which takes 3 seconds
    raise SystemExit(main())
