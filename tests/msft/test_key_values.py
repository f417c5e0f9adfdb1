"""KEY=VALUE options are read in one way by every command."""

import pytest

from msft.errors import ExitCode, MsftError
from msft.key_values import json_value, key_values, toml_value


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {}),
        (["clip=10", "schedule=cosine"], {"clip": 10, "schedule": "cosine"}),
        (
            [" lr =1e-5", "freeze=['embeddings', \"layers:0-5\"]"],
            {"lr": 1e-5, "freeze": ["embeddings", "layers:0-5"]},
        ),
        (["base=a=b", "note="], {"base": "a=b", "note": ""}),
        (["on=true", "on=false"], {"on": False}),
        (["x=1\ny = 2"], {"x": "1\ny = 2"}),
    ],
)
def test_values_are_those_of_toml(given: list[str], expected: dict[str, object]) -> None:
    assert key_values("--set", given, "clip=10", toml_value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2", 2),
        ("true", True),
        ("null", None),
        ('{"a": [1]}', {"a": [1]}),
        ("auto", "auto"),
        ("1e", "1e"),
        ("'x'", "'x'"),
    ],
)
def test_values_are_those_of_json(text: str, expected: object) -> None:
    assert key_values("--engine-arg", [f"key={text}"], "tensor_parallel_size=2", json_value) == {
        "key": expected
    }


@pytest.mark.parametrize("text", ["lr", "=1", "", "  =x", "a b"])
def test_a_text_without_a_key_or_a_value_is_a_usage_error(text: str) -> None:
    with pytest.raises(MsftError) as caught:
        key_values("--param", ["a=1", text], "dataset=dl19")
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.message == f"--param {text}: expected KEY=VALUE"
    assert caught.value.hint == "write --param dataset=dl19"
