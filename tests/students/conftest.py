"""Tiny models, made once per test session."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``tiny("bert")`` is the folder of a tiny random model (bert, electra, roberta, modernbert)."""
    import tiny_models

    made: dict[str, Path] = {}

    def get(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = tiny_models.make(architecture, tmp_path_factory.mktemp(architecture))
        return made[architecture]

    return get
