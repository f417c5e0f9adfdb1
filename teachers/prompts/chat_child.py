"""A child process that renders chat templates. A model's template is a program by its author, so it runs with limits.

The process reads lines of JSON, ``{"template", "values", "messages"}``, and answers each with ``{"text"}`` or
``{"error"}``. The system limits CPU seconds and memory, and ends the process if it exceeds them. The environment is
the one used by transformers: jinja2's immutable sandbox.
"""

import json
import resource
import signal
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 5.0  # per prompt
MEMORY = 1 << 30  # bytes
LONGEST = 32 << 20  # characters of a prompt


class _Generation(Extension):
    """Support ``{% generation %}``, which marks training text, by keeping the text inside."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's interface)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


@lru_cache(1)
def _compiled(source: str) -> Template:
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    made.filters["tojson"] = _json
    made.globals["raise_exception"] = _raise
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made.from_string(source)


def _answer(asked: dict[str, Any]) -> dict[str, str]:
    try:
        text = _compiled(asked["template"]).render(messages=asked["messages"], **asked["values"])
    except TemplateError as error:
        return {"refusal": str(error) or type(error).__name__}
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    if len(text) > LONGEST:
        return {"error": f"a prompt of {len(text):,} characters, more than {LONGEST:,}"}
    return {"text": text}


def main() -> None:
    """Read requests from stdin and answer each on stdout, until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        answer = json.dumps(_answer(json.loads(line)))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
