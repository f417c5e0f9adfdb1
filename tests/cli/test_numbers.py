"""Numbers on the command line are plain digits: what Python's or another library's reading takes besides is refused."""

import pytest

from cli import main

OTHER_DIGITS = "１００"
COMMANDS = [
    ["retrieve", "--dataset", "x", "--depth", "1_000"],
    ["compare", "--margin", "0.0_1"],
    ["negatives", "mine", "--dataset", "x", "--share", "0.5", "--share", "0_5"],
    ["negatives", "mine", "--dataset", "x", "--max-score=-1_0"],
    ["students", "train", "--regime", "cl", "--lr", "1_0e-5"],
    ["students", "rerank", "s", "--depth", OTHER_DIGITS],
    ["teachers", "generate", "--model", "m", "--max-cost", "1_0.5"],
    ["sql", "SELECT 1", "--limit", "1_0"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words))
def test_a_number_that_is_not_in_plain_digits_is_a_usage_error(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main.run([*words, "--store", str(tmp_path / "s.duckdb")])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert "error: Invalid value for" in error
    assert "hint: " in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["sql", "SELECT 1_000 AS n", "--limit", "7"],
        ["runs", "list", "--dataset", "a_1"],
        ["sql", "SELECT '１'"],
    ],
)
def test_texts_keep_their_underscores_and_digits(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main.run([*words, "--store", str(tmp_path / "none.duckdb")])
    assert ended.value.code == 4  # the store is missing: the words were taken
    assert "Invalid value" not in capsys.readouterr().err
