"""`msft help [TOPIC]`: pages that need no network: commands, exit codes, settings of the environment, losses, suites."""

import inspect
from collections.abc import Callable
from typing import Any

TOPICS: dict[str, str] = {
    "commands": "every command, with a line on what it does",
    "config": "the configuration file, msft.toml",
    "environment": "the variables that commands read",
    "exit-codes": "what a command's exit code means",
    "losses": "the losses that students learn by",
    "recipes": "the recipes that come with msft",
    "suites": "suites of datasets for `msft eval --suite`",
}
ENVIRONMENT = {
    "MSFT_STORE": "the store that commands use; by default msft.duckdb, or the configuration's",
    "MSFT_LOCK_WAIT": "seconds to wait while another process holds the store; 60",
    "MSFT_MEMORY": "memory that DuckDB may use, e.g. 8GB; 3GB",
    "MSFT_API_KEY": "the key that --engine openai sends",
    "MSFT_SERVE_KEY": "the key that clients of `msft students serve` must send",
    "MSFT_COLBERT_PYTHON": "the Python that has PyLate",
    "HF_HUB_OFFLINE": "1: models come from this machine alone",
    "HF_ENDPOINT": "another hub than huggingface.co",
    "IR_DATASETS_HOME": "where ir_datasets keeps its files",
}


def page(topic: str, root: Any) -> str:
    """Return the page of a topic.

    Args:
        root: the command tree.

    Raises:
        UsageError: the topic is not known.
    """
    from labelstore.errors import UsageError

    if topic not in TOPICS:
        raise UsageError(
            f"no help on {topic!r}",
            hint=f"msft help {' | '.join(TOPICS)}, or a command: msft help students train",
        )
    if topic == "commands":
        return _table(list(_commands(root)))
    pages: dict[str, Callable[[], str]] = {
        "config": _config,
        "environment": lambda: _table(list(ENVIRONMENT.items())),
        "exit-codes": _exit_codes,
        "losses": _losses,
        "recipes": _recipes,
        "suites": _suites,
    }
    return pages[topic]()


def topics() -> str:
    """List the topics."""
    return _table([(f"msft help {name}", about) for name, about in TOPICS.items()])


def find(root: Any, words: list[str]) -> Any:
    """Return the command of these words; None if no command has them."""
    command = root
    for word in words:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            return None
    return command


def _commands(group: Any, before: str = "msft") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found += _commands(command, f"{before} {name}")
        else:
            found.append((f"{before} {name}", (command.help or "").strip().splitlines()[0]))
    return found


def _config() -> str:
    from cli.workflows import config_file

    return inspect.cleandoc(config_file.__doc__ or "")


def _exit_codes() -> str:
    about = {
        0: "done",
        1: "failure",
        2: "usage: the command line is wrong",
        3: "the store is locked, or from a newer version",
        4: "data, a model or a package is missing",
        5: "the teacher's engine failed",
        6: "partly done",
        130: "interrupted",
    }
    from msft.errors import ExitCode

    return _table([(str(int(code)), about[int(code)]) for code in ExitCode])


def _losses() -> str:
    from students.losses import LOSSES

    return _table(
        [(name, (inspect.getdoc(loss.function) or "").splitlines()[0]) for name, loss in LOSSES.items()]
    )


def _recipes() -> str:
    import tomllib

    from students.recipes.recipe import RECIPES

    return _table(
        [
            (file.stem, tomllib.loads(file.read_text("utf-8")).get("description", ""))
            for file in sorted(RECIPES.glob("*.toml"))
        ]
    )


def _suites() -> str:
    from labelstore.datasets.catalog import SUITES

    return _table([(name, ", ".join(datasets)) for name, datasets in SUITES.items()])


def _table(rows: list[tuple[str, str]]) -> str:
    import shutil
    import textwrap

    left = max(len(name) for name, _ in rows) + 2
    wide = max(40, min(shutil.get_terminal_size((100, 24)).columns, 120))
    lines = []
    for name, about in rows:
        text = textwrap.wrap(about, wide - left) or [""]
        lines += [f"{name:<{left}}{text[0]}", *(" " * left + more for more in text[1:])]
    return "\n".join(line.rstrip() for line in lines)
