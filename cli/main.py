"""`msft`: the command line. Each module adds its commands; a heavy library is imported when a command needs it."""

import sys

from cli.app import app, command_tree
from cli.output import diagnostics
from cli.workflows import config_file


def _assemble() -> None:
    from cli.commands import (
        compare,
        data,
        evaluate,
        negatives,
        report,
        retrieve,
        runs,
        students,
        teachers,
        views,
    )
    from cli.commands import store as store_commands
    from cli.commands import upkeep as store_upkeep
    from cli.commands.from_documents import queries
    from cli.workflows.demo import demo
    from cli.workflows.reproduce import reproduce

    for module in (
        demo,
        data,
        queries,
        runs,
        retrieve,
        teachers,
        negatives,
        views,
        students,
        evaluate,
        compare,
        reproduce,
        report,
        store_commands,
        store_upkeep,
    ):
        module.add_to(app)


def run(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code."""
    try:
        root = command_tree()
        defaults = config_file.read(root).defaults
        code = root.main(args=arguments, prog_name="msft", standalone_mode=False, default_map=defaults)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the one place that turns errors into codes
        diagnostics.fail(error)
    raise SystemExit(code if isinstance(code, int) else 0)


_assemble()


def main() -> None:
    """Run the console script in its process.

    If scikit-learn is installed, transformers imports it, with pandas, for text generation that no command uses. This
    import takes a third of the start of a command that loads a model. So scikit-learn is hidden from this process.
    """
    sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]
    run(sys.argv[1:])


if __name__ == "__main__":
    main()
