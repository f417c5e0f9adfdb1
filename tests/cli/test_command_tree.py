"""Commands, options, exit codes and JSON keys stay as they are, until someone changes the stored tree on purpose."""

import json
from typing import Annotated, Any

import command_tree
import pytest
import typer

# What changed on purpose since the commit before the rooms; everything else that was shipped is as it was.
_LABELLING = "teachers generate --model student:s --dataset mini/train --run bm25s --name labels"
CHANGED = {
    # a currency stands beside every price and cost
    " · json_keys · teachers list": "teacher model prompt scoring context window engine input_price output_price currency licence"
    " note",
    f" · json_keys · {_LABELLING} --dry-run": "labels strategy queries calls_least calls_most recorded tokens_in tokens_in_error"
    " tokens_in_by tokens_out_most cost_most currency tokens_per_second minutes reliable_depth",
    f" · json_keys · {_LABELLING}": "labels queries labelled quarantined left calls resumed repaired retried tokens_in tokens_out"
    " cost currency seconds tokens_per_second occupancy overhead_share drifted stopped_by",
    " · commands · msft runs import · file": "file... <list[Path]> required",  # one file as before, or several
    " · commands · msft students serve · student": "student... <list[str]> required",  # one as before, or several
    # no folder is needed with --push
    " · commands · msft students export · --output/-o": "-o, --output <path>",
    " · commands · msft sql · --limit": "--limit <int>",  # 1,000 rows on stdout as before; all of them with -o
    ' · ends · sql "DELETE FROM qrels"': 2,  # a usage error, for --write is missing
    # now a switch of three values, with --no-retrieved; the option itself is as before
    " · commands · msft students train · --retrieved": None,
    " · commands · msft views build · --retrieved": None,
    # By whom it was judged: null for people, as in every row before. A student's base, and the test against it.
    " · json_keys · eval --dataset mini/test --measure nDCG@10": "dataset system kind first_stage measure value"
    " n_queries p_value regime judged depth recall judge base base_p_value",
}
NOT_RUN = {
    "msft demo",
    "msft reproduce",
    "msft students export",
    "msft students calibrate",
}  # minutes each; tests of their own
NOT_RUN |= {
    "msft queries filter",
    "msft queries show",
    "msft negatives check",
    "msft teachers judge",
    "msft teachers agreement",
}  # need a chat model


@pytest.fixture(scope="module")
def tree() -> dict[str, Any]:
    return command_tree.tree()


@pytest.mark.test_all
def test_command_tree_is_the_stored_one(tree: dict[str, Any]) -> None:
    """After a change on purpose: `python tests/cli/command_tree.py`."""
    stored = json.loads(command_tree.FILE.read_text("utf-8"))
    for part in stored:
        assert tree[part] == stored[part], part
    assert command_tree.text(tree) == command_tree.FILE.read_text("utf-8")


def test_whatever_was_shipped_before_the_rooms_is_as_it_was() -> None:
    now = _flat(json.loads(command_tree.FILE.read_text("utf-8")))
    shipped = _flat(json.loads(command_tree.SHIPPED.read_text("utf-8")))
    differing = {path: now.get(path) for path, value in shipped.items() if now.get(path) != value}
    assert differing == CHANGED


def test_every_command_that_prints_rows_is_among_the_steps() -> None:
    tree = json.loads(command_tree.FILE.read_text("utf-8"))  # the test above compares it with the commands
    lines = [f"msft {line} " for line in command_tree.STEPS.split("\n") if line]
    for name, parameters in tree["commands"].items():
        if "--format" in parameters and name not in NOT_RUN:
            assert any(line.startswith(f"{name} ") for line in lines), name


def _signature(function: Any) -> dict[str, str]:
    app = typer.Typer()
    app.command("only")(function)
    return dict(command_tree.signatures(app))["msft"]


def _first(n: int = 3, names: Annotated[list[str] | None, typer.Option("--name")] = None) -> None: ...
def _default(n: int = 4, names: Annotated[list[str] | None, typer.Option("--name")] = None) -> None: ...
def _type(n: float = 3, names: Annotated[list[str] | None, typer.Option("--name")] = None) -> None: ...
def _single(n: int = 3, names: Annotated[str | None, typer.Option("--name")] = None) -> None: ...
def _named(n: int = 3, names: Annotated[list[str] | None, typer.Option("--names")] = None) -> None: ...
def _short(n: int = 3, names: Annotated[list[str] | None, typer.Option("--name", "-n")] = None) -> None: ...
def _needed(n: int = 3, *, names: Annotated[list[str], typer.Option("--name")]) -> None: ...
def _variable(
    n: int = 3, names: Annotated[list[str] | None, typer.Option("--name", envvar="NAME")] = None
) -> None: ...
def _argument(
    n: Annotated[int, typer.Argument()] = 3, names: Annotated[list[str] | None, typer.Option("--name")] = None
) -> None: ...
def _gone(n: int = 3) -> None: ...


@pytest.mark.parametrize(
    "changed", [_default, _type, _single, _named, _short, _needed, _variable, _argument, _gone]
)
def test_a_changed_signature_shows_in_the_tree(changed: Any) -> None:
    assert _signature(changed) != _signature(_first)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{path} · {key}").items()}
