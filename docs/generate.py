"""Write the pages of docs/reference/ and README's list of rooms from the code.

Run `python docs/generate.py` (or `make docs`) after a change to schema.sql, a command, a setting, a loss, a recipe or a
file's first docstring. A test compares the pages with what this makes. `--demo FILE` also renews README's table of the
demo, from what `msft demo --format json` printed.
"""

import ast
import inspect
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import Enum
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin

import typer

FOLDER = Path(__file__).resolve().parent
_COMMON = ("store", "format", "quiet", "verbose", "debug")


# ------------------------------------------------------------------------------------------------------------ schema
def schema_page() -> str:
    """Every table and view with its columns, in the order of schema.sql."""
    import duckdb

    sql = files("labelstore").joinpath("schema.sql").read_text("utf-8")
    con = duckdb.connect()
    con.execute(sql)
    comments = _column_comments(sql)
    columns: dict[str, list[tuple[str, str]]] = {}
    for table, column, kind in con.execute(
        "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal ORDER BY table_name, column_index"
    ).fetchall():
        columns.setdefault(table, []).append((column, kind))
    about = dict(
        con.execute(
            """SELECT table_name, comment FROM duckdb_tables() UNION ALL
               SELECT view_name, comment FROM duckdb_views() WHERE NOT internal"""
        ).fetchall()
    )
    lines = [
        "# The store's schema",
        "",
        "<!-- Made from labelstore/schema.sql by docs/generate.py. -->",
        "",
        _introduction(sql),
        "",
        "`msft sql` asks the store; the views at the end carry text ids, so most questions need no surrogate key.",
        "",
    ]
    for kind, name in _outline(sql):
        if kind == "section":
            lines += [f"## {name}", ""]
            continue
        lines += [f"### {name}", "", about[name] + ".", ""]
        if kind == "view":
            lines += [", ".join(f"`{column}`" for column, _ in columns[name]), ""]
            continue
        lines += ["| column | type | |", "|---|---|---|"]
        lines += [
            f"| `{column}` | {_type(of)} | {_cell(comments[name, column])} |" for column, of in columns[name]
        ]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _introduction(sql: str) -> str:
    """The comment at the head of the file, as paragraphs."""
    head = sql.split("\n\n", 1)[0].splitlines()
    paragraphs: list[list[str]] = [[]]
    for line in head:
        text = line.removeprefix("--").strip()
        paragraphs[-1].append(text) if text else paragraphs.append([])
    return "\n\n".join(" ".join(paragraph) for paragraph in paragraphs if paragraph)


def _outline(sql: str) -> Iterator[tuple[str, str]]:
    """(section | table | view, its name) in the file's order."""
    for line in sql.splitlines():
        if found := re.match(r"-- -{10,} (.+)", line):
            yield "section", found[1][0].upper() + found[1][1:]
        elif found := re.match(r"CREATE (TABLE|VIEW) (\w+)", line):
            yield found[1].lower(), found[2]


def _column_comments(sql: str) -> dict[tuple[str, str], str]:
    """(table, column) -> the comment behind it."""
    comments, table = {}, None
    for line in sql.splitlines():
        if found := re.match(r"CREATE TABLE (\w+)", line):
            table = found[1]
        elif line.startswith(")"):
            table = None
        elif table and (found := re.match(r"\s+(\w+)\s+.*?--\s*(.+)", line)):
            comments[table, found[1]] = found[2].strip()
    return comments


def _type(name: str) -> str:
    return name.lower().replace("timestamp with time zone", "timestamptz")


# ---------------------------------------------------------------------------------------------------------- commands
@dataclass(frozen=True)
class Parameter:
    """An argument or option as a command's function declares it."""

    name: str
    kind: Any  # its type: str, int, bool, Path, an enum; of several: the type of one
    info: Any  # typer's ArgumentInfo or OptionInfo
    default: Any
    repeatable: bool

    @property
    def is_argument(self) -> bool:
        return isinstance(self.info, typer.models.ArgumentInfo)

    @property
    def declared(self) -> tuple[str, ...]:
        """--names as they were declared; typer keeps the first of them apart, as a default."""
        first = self.info.default
        named = (first,) if isinstance(first, str) and first.startswith("-") else ()
        return (*named, *(self.info.param_decls or ()))

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True)
class Leaf:
    """A command that does something: its full name, help, example and parameters."""

    name: str
    help: str
    example: str
    parameters: tuple[Parameter, ...]


def commands_page() -> str:
    """Every command with its arguments and options, as `--help` has them."""
    from cli.main import app

    found = sorted(leaves(app, "msft"), key=lambda leaf: leaf.name)
    common = {
        p.name: p
        for leaf in found
        for p in leaf.parameters
        if f"--{p.name}" in p.declared and p.name in _COMMON and leaf.name == "msft status"
    }
    lines = [
        "# Commands",
        "",
        "<!-- Made from the command line by docs/generate.py. -->",
        "<!-- docs: parse this is a reference, the guides run these commands -->",
        "",
        "stdout is data, stderr is talk. Exit codes: 0 ok, 1 failure, 2 usage, 3 store locked or from a newer version,",
        "4 data missing, 5 teacher engine, 6 partly done, 130 interrupted.",
        "",
        "Every command takes these (`--format` where it lists):",
        "",
        *_table([common[name] for name in _COMMON]),
        "",
    ]
    for leaf in found:
        own = [p for p in leaf.parameters if not any(p.info is c.info for c in common.values())]
        arguments = [p for p in own if p.is_argument]
        options = [p for p in own if not p.is_argument]
        usage = " ".join([leaf.name, *(["[OPTIONS]"] if options else []), *(_metavar(p) for p in arguments)])
        lines += [f"## {leaf.name}", "", _text(leaf.help), "", f"`{usage}`", ""]
        if own:
            lines += [*_table([*arguments, *options]), ""]
        lines += ["```sh", leaf.example, "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def leaves(app: typer.Typer, name: str) -> Iterator[Leaf]:
    """Every command of an app, groups flattened."""
    for command in app.registered_commands:
        signature = inspect.signature(command.callback)
        yield Leaf(
            f"{name} {command.name}",
            command.help or "",
            (command.epilog or "").removeprefix("Example: "),
            tuple(map(_parameter, signature.parameters.values())),
        )
    for group in app.registered_groups:
        yield from leaves(group.typer_instance, f"{name} {group.name}")


def _parameter(declared: inspect.Parameter) -> Parameter:
    kind, info = get_args(declared.annotation)[:2]
    several = get_origin(kind) is list
    parts = [part for part in get_args(kind) if part is not type(None)]
    if parts and not several:  # X | None
        kind = parts[0]
        several = get_origin(kind) is list
    if several:
        kind = get_args(kind)[0]
    return Parameter(declared.name, kind, info, declared.default, several)


def _text(help: str) -> str:
    paragraphs = re.split(r"\n\s*\n", help.strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _metavar(parameter: Parameter) -> str:
    name = parameter.name.upper() + ("..." if parameter.repeatable else "")
    return name if parameter.required else f"[{name}]"


def _table(parameters: list[Parameter]) -> list[str]:
    lines = ["| | default | |", "|---|---|---|"]
    for p in parameters:
        shown = f"`{_metavar(p)}`" if p.is_argument else _names(p)
        lines.append(f"| {shown} | {_default(p)} | {_cell(p.info.help or '')} |")
    return lines


def _names(p: Parameter) -> str:
    declared = [name for names in p.declared for name in names.split("/")]
    if not declared:
        option = p.name.replace("_", "-")
        declared = [f"--{option}", f"--no-{option}"] if p.kind is bool else [f"--{option}"]
    takes = "" if p.kind is bool else f" {_kind(p)}"
    return ", ".join(f"`{name}`" for name in declared) + takes + (", repeatable" if p.repeatable else "")


def _kind(p: Parameter) -> str:
    if isinstance(p.kind, type) and issubclass(p.kind, Enum):
        return " \\| ".join(str(member.value) for member in p.kind)
    return {int: "N", float: "X", str: "TEXT", Path: "PATH"}[p.kind]


def _default(p: Parameter) -> str:
    if isinstance(p.info.show_default, str):
        return f"`{p.info.show_default}`"
    if p.required:
        return "required"
    if p.default is None or p.default is False:
        return ""
    if p.default is True:
        return "on"
    return f"`{getattr(p.default, 'value', p.default)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# ---------------------------------------------------------------------------------------------------------- settings
def settings_page() -> str:
    """Every setting of a recipe with its default, every loss, and the recipes that come with msft."""
    from students.recipes.recipe import Lora, Objective, Recipe, Stage

    return "\n".join(
        [
            "# Settings of a recipe",
            "",
            "<!-- Made from students/recipes/ and students/losses.py by docs/generate.py. -->",
            "",
            "A recipe is a TOML file, see [Training](../guides/training.md#recipes). `--set KEY=VALUE` wins over the file.",
            "",
            "## Settings of the whole training",
            "",
            "They stand at the top of a recipe.",
            "",
            *_setting_table(Recipe, {"stages", "lora", "instructions"}),
            "",
            'The table `[instructions]` has an instruction for each of some datasets: `nfcorpus = "…"` or',
            '`"nfcorpus/train" = "…"`. It is used in training and in re-ranking.',
            "",
            "## Settings of LoRA",
            "",
            "They stand in the table `[lora]`. On a command line: `--lora r=32,alpha=64`, or `--set lora.r=32`.",
            "",
            *_setting_table(Lora, set()),
            "",
            "## Settings of a stage",
            "",
            "They stand at the top for all stages, or in a table (`[cl]`, `[kd]`, `[stage-2]`) for some of them.",
            "",
            *_setting_table(Stage, {"number", "objectives"}),
            "",
            "## Settings of an objective",
            "",
            "They stand in the same places. In a joint stage, `[cl]` and `[kd]` tell its objectives apart.",
            "",
            *_setting_table(Objective, {"name"}),
            "",
            "## Losses",
            "",
            "`binary` is a contrastive view. `order` is any view: positives stand above negatives. `scores` is a view",
            "whose passages all have a score of the teacher.",
            "",
            *_loss_table(),
            "",
            "## Recipes that come with msft",
            "",
            *_recipe_table(),
            "",
        ]
    )


def _setting_table(kind: type, left_out: set[str]) -> list[str]:
    about = _attribute_texts(kind)
    lines = ["| setting | type | default | |", "|---|---|---|---|"]
    for field in fields(kind):
        if field.name in left_out:
            continue
        if field.name not in about:
            raise SystemExit(f"{kind.__name__}.{field.name} has no docstring below it")
        lines.append(
            f"| `{field.name}` | {_annotation(field.type)} | {_toml(field.default)} | {_cell(about[field.name])} |"
        )
    return lines


def _attribute_texts(kind: type) -> dict[str, str]:
    """Field -> the docstring below it."""
    (body,) = [
        node.body for node in ast.parse(inspect.getsource(kind)).body if isinstance(node, ast.ClassDef)
    ]
    return {
        field.target.id: text.value.value
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def _annotation(kind: Any) -> str:
    """A field's type in TOML's words."""
    words = {str: "text", int: "integer", float: "number", bool: "true or false"}
    if kind in words:
        return words[kind]
    parts = [part for part in get_args(kind) if part is not type(None)]
    if all(isinstance(part, str) for part in parts):
        return ", ".join(f"`{part}`" for part in parts)
    return f"list of {_annotation(parts[0])}s" if get_origin(kind) is tuple else _annotation(parts[0])


def _toml(default: Any) -> str:
    if default is None:
        return ""
    if isinstance(default, str):
        return f'`"{default}"`'
    if isinstance(default, bool):
        return f"`{default}`".lower()
    return "`[]`" if default == () else f"`{default}`"


def _loss_table() -> list[str]:
    from students.losses import LOSSES

    lines = ["| loss | needs | parameters | |", "|---|---|---|---|"]
    for name, loss in LOSSES.items():
        parameters = ", ".join(f"`{key}` {value:g}" for key, value in loss.parameters.items())
        about = (inspect.getdoc(loss.function) or "").split("\n\n")[0]
        lines.append(f"| `{name}` | {loss.needs} | {parameters} | {_cell(about)} |")
    return lines


def _recipe_table() -> list[str]:
    from students.recipes.read import shipped
    from students.recipes.recipe import RECIPES

    lines = ["| recipe | |", "|---|---|"]
    for name in shipped():
        held = tomllib.loads((RECIPES / f"{name}.toml").read_text("utf-8"))
        lines.append(f"| `{name}` | {_cell(held['description'])} |")
    return lines


# ------------------------------------------------------------------------------------------------------------- files
def files_page() -> str:
    """Every source file of the four packages with the first sentence of its docstring, room by room."""
    lines = [
        "# Files",
        "",
        "<!-- Made from the first sentences of the files by docs/generate.py. -->",
        "",
        "Every source file of the four packages, room by room. [Architecture](../explanation/architecture.md) tells how they",
        "work together. The tests mirror the packages.",
        "",
    ]
    for package, about in PACKAGES.items():
        lines += [f"## {package}/", "", f"{about[0].upper()}{about[1:]}.", ""]
        for folder in [ROOT / package, *_rooms(package)]:
            held = sorted(f for f in folder.iterdir() if f.suffix in (".py", ".sql"))
            if folder != ROOT / package:
                lines += [f"### {folder.relative_to(ROOT)}/", "", _about(folder / "__init__.py") + ".", ""]
            rows = [f"| `{f.name}` | {_cell(_about(f))} |" for f in held if f.name != "__init__.py"]
            lines += ["| file | |", "|---|---|", *rows, ""] if rows else []
    return "\n".join(lines).rstrip() + "\n"


# ------------------------------------------------------------------------------------------------------------ README
def front_door() -> str:
    """README.md with its list of rooms as they are now."""
    text = (ROOT / "README.md").read_text("utf-8")
    begin, end = "<!-- made: rooms -->\n", "<!-- /made: rooms -->"
    head, found, rest = text.partition(begin)
    if not found or end not in rest:
        raise SystemExit(f"README.md has lost its marks {begin.strip()} and {end}")
    return head + begin + "\n".join(_room_list()) + "\n" + end + rest.partition(end)[2]


def demo_block(file: Path) -> str:
    """README.md with the table of a demo: `file` has what `msft demo --format json` printed."""
    kinds = {"first_stage": "first stage", "fused": "fused with BM25"}
    lines = ["| system | kind | RR@10 | p against BM25 |", "|---|---|---|---|"]
    for row in json.loads(file.read_text("utf-8")):
        p = "" if row["p_value"] is None else f"{row['p_value']:.2g}".removeprefix("0")
        value = f"{row['RR@10']:.3f}".removeprefix("0")
        lines.append(f"| {row['system']} | {kinds.get(row['kind'], row['kind'])} | {value} | {p} |")
    text = (ROOT / "README.md").read_text("utf-8")
    found = re.search(r"(<!-- made: demo [^\n]*\n).*?(<!-- /made: demo -->)", text, re.DOTALL)
    if found is None:
        raise SystemExit("README.md has lost its marks <!-- made: demo … --> and <!-- /made: demo -->")
    return text[: found.end(1)] + "\n".join(lines) + "\n" + text[found.start(2) :]


def _room_list() -> list[str]:
    """The tree with a line for each room: the first sentence of its docstring."""
    width = max(len(room.name) for package in PACKAGES for room in _rooms(package)) + 4
    lines = ["```text"]
    for package, about in PACKAGES.items():
        lines.append(f"{f'{package}/':<{width}}  {about}")
        lines += [
            f"{f'  {room.name}/':<{width}}  {_about(room / '__init__.py')}"
            for room in _rooms(package)
            if room.parent == ROOT / package
        ]
    return [*lines, "```"]


def _rooms(package: str) -> list[Path]:
    """The folders of a package that hold code, rooms within rooms too."""
    found = {file.parent for file in (ROOT / package).rglob("__init__.py")}
    return sorted(found - {ROOT / package})


PACKAGES = {
    "msft": "what all packages may import: no library",
    "labelstore": "the data: no torch, no LLM",
    "teachers": "the labels: no training",
    "students": "the learning: reads view folders, knows no store",
    "cli": "the commands",
}


def _about(file: Path) -> str:
    """The first sentence of a file's docstring, or of an SQL file's first comment."""
    text = file.read_text("utf-8")
    if file.suffix == ".sql":
        comment = [
            line.removeprefix("--").strip()
            for line in text.split("\n\n")[0].splitlines()
            if line.startswith("--")
        ]
        return _sentence(" ".join(comment[: comment.index("") if "" in comment else None]))
    return _sentence(" ".join((ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].split()))


def _sentence(text: str) -> str:
    """The first sentence, without its full stop; sentences end before a capital letter."""
    return re.split(r"(?<=[^.][.])\s+(?=[A-Z`])", text, maxsplit=1)[0].rstrip(".").replace("``", "`")


ROOT = FOLDER.parent
PAGES = {
    "docs/reference/schema.md": schema_page,
    "docs/reference/commands.md": commands_page,
    "docs/reference/settings.md": settings_page,
    "docs/reference/files.md": files_page,
    "README.md": front_door,
}


def main() -> None:
    """Write the pages that differ; with ``--demo FILE`` README's table of the demo first."""
    if sys.argv[1:2] == ["--demo"]:
        (ROOT / "README.md").write_text(demo_block(Path(sys.argv[2])), encoding="utf-8")
    for name, make in PAGES.items():
        file, text = ROOT / name, make()
        if not file.exists() or file.read_text("utf-8") != text:
            file.write_text(text, encoding="utf-8")
            print(name, file=sys.stderr)


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER.parent))
    main()
