"""Write down msft's whole command tree as data: `python tests/cli/command_tree.py` updates `command_tree.json`.

Commands with their arguments and options (names, metavar, default), the exit codes, how a few commands end, and
the keys of what every listing command prints as JSON. Help texts are left out: they may get better at any time.
"""

import contextlib
import io
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FILE = HERE / "command_tree.json"
SHIPPED = HERE / "command_tree_shipped.json"  # of the commit before the rooms; never updated
STEPS = """
data add mini/train --from mini --qrels qrels.train.txt --collection mini
data add mini/test --from mini --qrels qrels.test.txt --collection mini
data list
data show mini/train
retrieve --dataset mini/train --retriever bm25s --depth 10
retrieve --dataset mini/test --retriever bm25s --depth 10
runs list
data sheet mini/test --run bm25s --depth 3
runs export bm25s --dataset mini/test -o exported.run
runs import exported.run --dataset mini/test --name imported
negatives mine --dataset mini/train --run bm25s --name hard
negatives list
negatives show hard
views build --kind contrastive --dataset mini/train --negatives hard --name cl --allow-overlap
views list
views show cl
students train --regime cl --base tiny --dataset mini/train --negatives hard --name s --max-steps 1 --batch 2 --max-length 32 --precision fp32
students list
students show s
students rerank s --dataset mini/test --run bm25s
teachers list
teachers generate --model student:s --dataset mini/train --run bm25s --name labels --dry-run
teachers generate --model student:s --dataset mini/train --run bm25s --name labels
teachers import labels.txt --layout trec --model other --dataset mini/train --run bm25s --name others
teachers show labels
teachers reread labels
teachers combine labels others --by rrf --name both
teachers compare labels others both
eval --dataset mini/test --measure nDCG@10
compare bm25s s@bm25s --dataset mini/test --measure nDCG@10
sql "SELECT name AS dataset, role FROM datasets"
status
verify
show lineage s
report -o report.html
export-store archive
import-store archive --store copy.duckdb
merge copy.duckdb
queries generate --model sentences --collection mini --n 5
views remove cl --yes
negatives remove hard --yes
teachers remove both --yes
teachers remove others --yes
students remove s --yes
runs remove imported --dataset mini/test --yes
data remove mini/test --yes
clean --yes
students bases
"""
ENDS = """
sql "SELECT 1"
data list
data show nothing
data add mini
data add mini --from nowhere
runs import nothing.run --dataset mini/test --name x
runs export nothing --dataset mini/test -o x.run
retrieve --dataset mini/test --retriever nothing
teachers generate --model student:nothing --dataset mini/train --run bm25s
students train --regime nothing --dataset mini/train
students train --regime cl --base tiny --dataset mini/train --precision nothing
views build --kind nothing
views show nothing
sql "DELETE FROM qrels"
sql "SELECT nothing"
status --nothing
nothing
show lineage nothing
merge nothing.duckdb
status --store nowhere/store.duckdb
"""


def tree() -> dict[str, Any]:
    """The whole tree, of values that JSON holds."""
    from cli.main import app
    from labelstore.errors import ExitCode

    rows, ends = _printed()
    return {
        "exit_codes": {code.name: int(code) for code in ExitCode},
        "commands": dict(sorted(signatures(app))),
        "ends": ends,
        "json_keys": rows,
    }


def text(of: Mapping[str, Any]) -> str:
    """A tree as the stored file has it."""
    return json.dumps(of, indent=1, ensure_ascii=False) + "\n"


# -------------------------------------------------------------------------------------------------------- signatures
def signatures(app: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """(command, its parameters as the help shows them) of a Typer app."""
    import typer

    yield from _leaves(typer.main.get_command(app), typer.Context, "msft", None)


def _leaves(command: Any, context_of: Any, name: str, parent: Any) -> Iterator[tuple[str, dict[str, str]]]:
    context = context_of(command, info_name=name, parent=parent)
    if hasattr(command, "commands"):
        for key, inner in command.commands.items():
            yield from _leaves(inner, context_of, f"{name} {key}", context)
        return
    yield name, {_key(p): _parameter(p, context) for p in command.params}


def _key(parameter: Any) -> str:
    return "/".join([*parameter.opts, *parameter.secondary_opts])


def _parameter(parameter: Any, context: Any) -> str:
    """What the help shows of it, then what it does not: required, repeatable, the variable, the default."""
    record = parameter.get_help_record(context)
    words = [record[0] if record else " ".join(parameter.get_usage_pieces(context))]
    words += [word for word in ("required", "multiple") if getattr(parameter, word, False)]
    words += [f"${parameter.envvar}"] if parameter.envvar else []
    if parameter.default is not None and parameter.default is not False:
        words.append(f"= {json.dumps(_plain(parameter.default))}")
    return " ".join(words)


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


# ------------------------------------------------------------------------------------------------------------- output
def _printed() -> tuple[dict[str, str], dict[str, int]]:
    """The keys of what each step's rows have, and how the commands of ENDS end."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            _collection(Path("mini"))
            keys = {line: _keys(line) for line in STEPS.split("\n") if line}
            return keys, {line: _run(line)[0] for line in ENDS.split("\n") if line}
        finally:
            os.chdir(here)


def _keys(line: str) -> str:
    words = ["--format", "json"] if " export " not in f" {line}" else []
    code, out, err = _run(line, *words)
    if code != 0:
        raise RuntimeError(f"msft {line} ended with {code}: {err}")
    rows = json.loads(out) if words else []
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if any(list(row) != keys for row in rows):
        raise RuntimeError(f"msft {line}: rows differ in their keys: {out}")
    return " ".join(keys)


def _run(line: str, *more: str) -> tuple[int, str, str]:
    from cli.main import run

    code: Any = 0
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        try:
            run([*shlex.split(line), *more])
        except SystemExit as ended:
            code = ended.code
    return int(code or 0), out.getvalue(), err.getvalue()


def _collection(folder: Path) -> None:
    """40 passages, 16 queries in two judged splits; a tiny BERT; rankings of another's for the train split."""
    import tiny_models

    folder.mkdir()
    words = ("otter", "walnut", "glacier", "violin", "harbor", "comet", "meadow", "copper")
    texts = [f"{words[n % 8]} {words[(n // 8) % 8]} {words[n // 5 % 8]} w{n}" for n in range(40)]
    rows = [{"doc_id": f"d{n:02d}", "title": f"Passage {n}", "text": text} for n, text in enumerate(texts)]
    (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = [f"q{n:02d}\t{words[n % 8]} {words[(n + 3) % 8]} about{n}\n" for n in range(16)]
    (folder / "queries.tsv").write_text("".join(queries))
    for split, first in (("train", 0), ("test", 8)):
        judged = [f"q{n:02d} 0 d{n:02d} 1\n" for n in range(first, first + 8)]
        (folder / f"qrels.{split}.txt").write_text("".join(judged))
    ranked = [f"q{n:02d} Q0 d{(n + k) % 40:02d} {k + 1} {9 - k} other\n" for n in range(8) for k in range(4)]
    Path("labels.txt").write_text("".join(ranked))
    tiny_models.make("bert", Path("tiny"))


if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "helpers")]
    FILE.write_text(text(tree()), encoding="utf-8")
