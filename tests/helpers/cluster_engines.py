"""Engines for Ray's workers: scripted ones that write down what they answered, so that a test can count and kill."""

import os
from collections.abc import Sequence
from pathlib import Path

from teachers.engines.base import Completion, Request
from teachers.errors import TeacherError
from teachers.generate.plan import Plan
from tests.helpers.scripted_engine import ScriptedEngine, hashed_order


class Logged(ScriptedEngine):
    """Answers within some milliseconds; the folder gets a file per process with the keys of what it answered."""

    name = "vllm"

    def __init__(self, folder: Path) -> None:
        super().__init__(
            hashed_order, capacity=4, delay=lambda request: (int(request.key[:4], 16) % 10) / 100
        )
        self._asked: dict[int, str] = {}
        self._log = (folder / f"{os.getpid()}").open("a", buffering=1)

    def submit(self, requests: Sequence[Request]) -> None:
        super().submit(requests)
        self._asked |= {request.ticket: request.key for request in requests}

    def poll(self, timeout: float) -> list[Completion]:
        done = super().poll(timeout)
        for completion in done:
            self._log.write(self._asked.pop(completion.ticket) + "\n")
        return done


def logged(folder: Path, plan: Plan) -> Logged:
    return Logged(folder)


def missing(plan: Plan) -> Logged:
    raise TeacherError("no model at nowhere", hint="look again", exit_code=4)


def dying(plan: Plan) -> Logged:
    os._exit(3)
