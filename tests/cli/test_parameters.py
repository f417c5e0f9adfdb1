"""A command's dataclasses are its options: names, order, values; mistakes in them show when the command is made."""

import ast
import inspect
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from cli.command import Context, command
from cli.parameters import After, gathered, given, shown

ROOT = Path(__file__).resolve().parents[2]
MOST_PARAMETERS = 12


@dataclass(frozen=True)
class Job:
    """A job's own settings: it knows no Typer."""

    model: Annotated[str, "Who answers."]
    depth: Annotated[int, "Candidates."] = 100
    urls: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    keep_all: Annotated[bool, "A switch."] = False
    check: Annotated[bool, "On unless it is switched off."] = True


@dataclass(frozen=True)
class Asked(Job):
    """The same; the command line has another word for one of them."""

    urls: Annotated[tuple[str, ...], typer.Option("--url", help="Of a server.")] = ()


@dataclass(frozen=True)
class Limits:
    """A group."""

    low: Annotated[float | None, "Lowest."] = None
    shares: Annotated[tuple[float, ...], typer.Option("--share")] = ()


@dataclass(frozen=True)
class Nested:
    """A group of groups, with an argument."""

    file: Annotated[Path, typer.Argument(help="A file.")]
    limits: Limits = Limits()
    job: Asked = Asked("none")
    seed: Annotated[int, typer.Option("--seed", "-s", envvar="MADE_SEED")] = 42


def _run(function: Any, *arguments: str) -> tuple[Any, list[str]]:
    """What a command got, and the options that its help shows, in order."""
    got: list[Any] = []
    app = typer.Typer(add_completion=False)

    def only(context: Context, **values: Any) -> None:
        got.append(values)

    only.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
    command(app, "only", example="only")(only)
    compiled = typer.main.get_command(app)
    compiled(list(arguments), standalone_mode=False)
    options = [option for parameter in compiled.params for option in parameter.opts]
    return got[0], [o for o in options if o not in ("--store", "--quiet", "-q", "--verbose", "-v", "--debug")]


def flat(context: Context, options: Asked) -> None: ...
def nested(context: Context, options: Nested) -> None: ...
def mixed(
    context: Context,
    options: Asked,
    dry_run: Annotated[bool, typer.Option("--dry-run"), After("depth")] = False,
    pairs: Annotated[tuple[str, ...], typer.Option("--pair"), After("dry_run")] = (),
) -> None: ...


FLAT = ["--model", "--depth", "--url", "--keep-all", "--check"]


@pytest.mark.parametrize(
    ("function", "arguments", "expected", "options"),
    [
        (flat, ["--model", "m"], {"options": Asked("m")}, FLAT),
        (
            flat,
            ["--model", "m", "--url", "a", "--url", "b", "--depth", "3", "--keep-all", "--no-check"],
            {"options": Asked("m", 3, ("a", "b"), keep_all=True, check=False)},
            FLAT,
        ),
        (
            nested,
            ["f.txt", "--share", "0.5", "--share", "2", "-s", "7", "--low", "1", "--model", "m"],
            {"options": Nested(Path("f.txt"), Limits(1.0, (0.5, 2.0)), Asked("m"), 7)},
            ["file", "--low", "--share", *FLAT, "--seed", "-s"],
        ),
        (
            mixed,
            ["--model", "m", "--pair", "a=1", "--dry-run"],
            {"options": Asked("m"), "dry_run": True, "pairs": ("a=1",)},
            ["--model", "--depth", "--dry-run", "--pair", "--url", "--keep-all", "--check"],
        ),
        (mixed, ["--model", "m"], {"options": Asked("m"), "dry_run": False, "pairs": ()}, None),
    ],
)
def test_a_command_gets_its_dataclasses(
    function: Any, arguments: list[str], expected: Any, options: Any
) -> None:
    got, names = _run(function, *arguments)
    assert got == expected
    assert options is None or names == options


def test_a_variable_of_the_environment_reaches_a_nested_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADE_SEED", "11")
    assert _run(nested, "f", "--model", "m")[0]["options"].seed == 11


def test_each_call_has_a_mutable_default_of_its_own() -> None:
    first, second = (_run(flat, "--model", "m")[0]["options"] for _ in range(2))
    assert first.extra == {}
    assert first.extra is not second.extra


@dataclass(frozen=True)
class Hidden:
    """A field that is not on the command line shares its name with an option of another class."""

    depth: int = 7
    width: Annotated[int, "Shown."] = 1


def two(context: Context, hidden: Hidden, options: Asked) -> None: ...


def test_an_option_of_the_same_name_does_not_reach_a_hidden_field() -> None:
    got, _ = _run(two, "--model", "m", "--depth", "3")
    assert (got["hidden"], got["options"].depth) == (Hidden(), 3)


@dataclass(frozen=True)
class Unset:
    bare: int


@dataclass(frozen=True)
class Depth:
    depth: Annotated[int, "Again."] = 1


def _twice(context: Context, options: Asked, depth: Annotated[int, typer.Option()] = 3) -> None: ...
def _twice_in_groups(context: Context, options: Asked, more: Depth) -> None: ...
def _after_nothing(context: Context, n: Annotated[int, "N.", After("nothing")] = 1) -> None: ...
def _after_itself(context: Context, n: Annotated[int, "N.", After("n")] = 1) -> None: ...
def _no_option(context: Context, n: int = 1) -> None: ...
def _no_option_either(context: Context, n: Annotated[int, After("m")] = 1) -> None: ...
def _unset(context: Context, options: Unset) -> None: ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_twice, "two parameters are named depth"),
        (_twice_in_groups, "two parameters are named depth"),
        (_after_nothing, "n stands after nothing, which is not a parameter"),
        (_after_itself, "n stands after n, which is not a parameter"),
        (_no_option, "parameter n has no option"),
        (_no_option_either, "parameter n has no option"),
        (_unset, "Unset.bare has neither an option nor a default"),
    ],
)
def test_a_wrong_parameter_fails_when_the_command_is_made(function: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        command(typer.Typer(), "only", example="only")(function)


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (Limits(), {"shares": ()}),
        (Limits(0.0), {"low": 0.0, "shares": ()}),
        (Depth(0), {"depth": 0}),
        (
            replace(Asked("m"), keep_all=True, check=False),
            {"model": "m", "depth": 100, "urls": (), "extra": {}, "keep_all": True},
        ),
    ],
)
def test_zero_is_given_and_a_switch_that_is_off_is_not(group: Any, expected: dict[str, Any]) -> None:
    assert given(group) == expected


@dataclass(frozen=True)
class ThreeValued:
    kept: Annotated[bool | None, "Whether to keep; None decides."] = None


def decide(context: Context, options: ThreeValued) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [([], {}), (["--kept"], {"kept": True}), (["--no-kept"], {"kept": False})],
)
def test_a_switch_of_three_values_can_be_given_as_off(arguments: list[str], expected: dict[str, Any]) -> None:
    got, _ = _run(decide, *arguments)
    assert given(got["options"]) == expected


def test_what_typer_parsed_makes_the_same_instance_as_python() -> None:
    values = {p.name: p.default for p in shown(flat)} | {"model": "m"}
    assert json.dumps(asdict(gathered(flat, values)["options"])) == json.dumps(asdict(Asked("m")))


# --------------------------------------------------------------------------------------------- bound on parameters
def wide(source: str) -> list[str]:
    """Names of functions with more parameters than `MOST_PARAMETERS`, ``*args`` and ``**kwargs`` among them."""
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and len(list(_names(node.args))) > MOST_PARAMETERS
    ]


def _names(arguments: ast.arguments) -> Iterator[ast.arg]:
    yield from (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    yield from (one for one in (arguments.vararg, arguments.kwarg) if one is not None)


@pytest.mark.parametrize("package", ["msft", "labelstore", "teachers", "students", "cli"])
def test_no_function_has_more_parameters_than_one_keeps_in_mind(package: str) -> None:
    """Group those that belong together in a dataclass; `cli.parameters` shows a command's."""
    found = {
        file.relative_to(ROOT).as_posix(): names
        for file in (ROOT / package).rglob("*.py")
        if (names := wide(file.read_text("utf-8")))
    }
    assert found == {}


def long_calls(source: str) -> list[int]:
    """Lines of calls that pass more than `MOST_PARAMETERS` arguments one by one."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and len(node.args) + len(node.keywords) > MOST_PARAMETERS
    ]


def test_no_command_copies_its_options_field_by_field() -> None:
    """Hand the dataclass on, or a group of it: ``**vars(options.sources)``."""
    files = (ROOT / "cli").rglob("*.py")
    assert {f.name: lines for f in files if (lines := long_calls(f.read_text("utf-8")))} == {}


A12 = ", ".join(f"a{k}" for k in range(12))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (f"def f({A12}): ...", []),
        (f"def f({A12}, b): ...", ["f"]),
        (f"def f({A12}, *rest): ...", ["f"]),
        (f"def f({A12}, **rest): ...", ["f"]),
        (f"def f(*, b, {A12}): ...", ["f"]),
        (f"def f(b, /, {A12}): ...", ["f"]),
        (f"class C:\n    def f(self, {A12}): ...", ["f"]),
        (f"def g():\n    async def f({A12}, b): ...", ["f"]),
    ],
)
def test_a_wide_function_is_found_in_every_form(source: str, expected: list[str]) -> None:
    assert wide(source) == expected


@pytest.mark.parametrize("call", ["f({})", "C(b=1, {})", "a.b.f(*rest, {})", "f(1, {}, **more)"])
def test_a_long_call_is_found_in_every_form(call: str) -> None:
    twelve = ", ".join(f"a{k}=o.a{k}" for k in range(12))
    assert long_calls("\n" + call.format(twelve)) == ([] if call == "f({})" else [2])
