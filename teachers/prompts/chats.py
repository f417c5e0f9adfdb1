"""Render a model's chat template in a child process with limits. A template that loops or explodes becomes an error."""

import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from teachers.errors import ExitCode, TeacherError

_CHILD = Path(__file__).with_name("chat_child.py")


class Refused(TeacherError):
    """An error raised by the template for these messages."""


class Chat:
    """A tokenizer's chat template with its special tokens; several threads may call `render`.

    Args:
        options: further values for the template (``enable_thinking``).
    """

    def __init__(self, tokenizer: Any, options: Mapping[str, Any]) -> None:
        self._template = str(tokenizer.get_chat_template())
        special = {key: _plain(value) for key, value in tokenizer.special_tokens_map.items()}
        self._values = {
            "tools": None, "documents": None, "add_generation_prompt": True, **special, **options,
        }  # fmt: skip
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the prompt, with the assistant's turn opened.

        Raises:
            Refused: if the template raises an error on these messages.
            TeacherError: if it takes too long or too much memory, or fails (exit code 5).
        """
        asked = {"template": self._template, "values": self._values, "messages": list(messages)}
        with self._lock:
            child = self._running()
            try:
                print(json.dumps(asked), file=child.stdin, flush=True)
                line = child.stdout.readline() if child.stdout else ""
            except BrokenPipeError:
                line = ""
            if not line:
                child.kill()
                child.wait()
                self._child = None
        answer = json.loads(line) if line else {"error": "it took more than 5 s or 1 GB"}
        if "refusal" in answer:
            raise Refused(
                f"the model's chat template refuses the messages: {answer['refusal']}",
                hint=_HINT,
                exit_code=ExitCode.TEACHER_ENGINE,
            )
        if "error" in answer:
            raise TeacherError(
                f"the model's chat template fails: {answer['error']}",
                hint=_HINT,
                exit_code=ExitCode.TEACHER_ENGINE,
            )
        return str(answer["text"])

    def _running(self) -> "subprocess.Popen[str]":
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-I", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C must reach only the job, which ends its child processes
            )
            weakref.finalize(self, _end, self._child)
        return self._child


_HINT = "correct chat_template in the model's folder, or name another folder with --tokenizer"


def _end(child: "subprocess.Popen[str]") -> None:
    child.kill()
    child.wait()


def _plain(value: Any) -> Any:
    return [str(v) for v in value] if isinstance(value, list | tuple) else str(value)
