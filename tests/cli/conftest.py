"""A tiny random model for the commands' tests: the students' own."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "students"))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random BERT."""
    import tiny_models

    return tiny_models.make("bert", tmp_path_factory.mktemp("models") / "bert")
