"""What an engine's threads completed reaches the job, also when one of them has failed."""

import queue

import pytest

from teachers.engines.base import Completion, completed
from teachers.errors import TeacherError


def test_completed_calls_come_before_the_error_that_followed_them() -> None:
    done: queue.SimpleQueue[Completion | TeacherError] = queue.SimpleQueue()
    calls = [Completion(key, "[1]") for key in ("a", "b")]
    for item in (*calls, TeacherError("the model is gone", exit_code=5)):
        done.put(item)
    assert completed(done, 0.0) == calls
    with pytest.raises(TeacherError, match="the model is gone"):
        completed(done, 0.0)
    assert completed(done, 0.0) == []
    assert completed(done, 0.01) == []
