"""The keys of teachers are those that stores hold already, and verify knows every one that a row may have."""

from typing import Any

import pytest

from labelstore.labels import teacher_key
from labelstore.labels.write import Teacher

DRAWN = {"temperature": 0.0}


@pytest.mark.parametrize(
    ("teacher", "key"),
    [
        (Teacher("a", "imported"), "d10f1d664f5eac2c6632c62ca8cc8bbe"),
        (
            Teacher("a", "imported", "m", "r", "t@1", "p", {"temperature": 0}),
            "5e02d3c6b764be3f715c9148bc956f26",
        ),
        (Teacher("a", "vllm", "m", sampling={}), "54bb497c8b71fe6e3b36cd0e678589e9"),
    ],
)
def test_a_teacher_of_labels_from_elsewhere_keeps_its_key(teacher: Teacher, key: str) -> None:
    assert teacher.teacher_key == key
    said = (
        teacher.name,
        teacher.model,
        teacher.revision,
        teacher.engine,
        teacher.prompt_hash,
        teacher.sampling,
    )
    assert key in teacher_key.possible(*said)


@pytest.mark.parametrize(
    ("row", "kind", "key"),
    [
        (("m", "r", "p", DRAWN), "listwise", "bf46527d3a227a56bddb6b279032efac"),
        (("m", None, None, None), "cross-encoder", "098579fad34dafe6aa885a4655b2a57c"),
        (("f", None, None, None), "bi-encoder", "709518a26702b70c17e66b85834beb2a"),
    ],
)
def test_a_teacher_that_msft_asks_keeps_its_key(row: tuple[Any, ...], kind: str, key: str) -> None:
    model, revision, prompt_hash, sampling = row
    assert teacher_key.asked(model, revision, prompt_hash, sampling, kind) == key
    stored = {} if sampling is None else sampling  # as the journal writes a teacher without sampling
    assert key in teacher_key.possible("name", model, revision, "vllm", prompt_hash, stored)
