"""Students and labels are pushed to a hub: private, with a card and a licence, or not at all."""

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_hub
import made_store
import pyarrow.parquet as pq
import pytest
import yaml
from runner import Commands

from labelstore.store.label_store import LabelStore
from students.jobs.register import add_student

pytestmark = pytest.mark.test_all


@pytest.fixture(scope="module")
def hub() -> Iterator[fake_hub.FakeHub]:
    with fake_hub.hub() as held:
        yield held


@functools.cache
def commands() -> Commands:
    """A process of this file alone: huggingface_hub reads the address and the mode when it is imported."""
    return Commands()


@pytest.fixture
def store(tiny: Any, tmp_path: Path) -> LabelStore:
    made = made_store.make(tmp_path / "s.duckdb")
    add_student(made, str(tiny("bert")), name="tiny", max_length=48)
    add_student(made, str(tiny("bert")), name="free", max_length=48, licence="MIT")
    return made


def msft(
    store: LabelStore, hub: fake_hub.FakeHub, *arguments: str, code: int = 0, token: str = fake_hub.TOKEN
) -> Any:
    own = {
        "MSFT_STORE": str(store.path),
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
    }
    done = commands().run(arguments, store.path.parent, {**os.environ, "HF_HUB_OFFLINE": "0", **own})
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    return done


def card(hub: fake_hub.FakeHub, repo: str) -> dict[str, Any]:
    return yaml.safe_load(hub.files(repo)["README.md"].decode().split("---\n")[1])


def test_a_student_is_pushed_privately_and_again_to_the_same_repository(
    store: LabelStore, hub: fake_hub.FakeHub, tmp_path: Path
) -> None:
    done = msft(store, hub, "students", "export", "free", "--push", "me/free")
    assert f"{hub.url}/me/free" in done.out + done.err
    assert (hub.repos["me/free"]["kind"], hub.repos["me/free"]["private"]) == ("model", True)
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(hub.files("me/free"))
    assert card(hub, "me/free")["license"] == "mit"
    msft(store, hub, "students", "export", "free", "--push", "me/free", "-o", str(tmp_path / "kept"))
    assert (tmp_path / "kept/config.json").read_bytes() == hub.files("me/free")["config.json"]
    msft(store, hub, "students", "export", "tiny", "--push", "me/open", "--licence", "apache-2.0", "--public")
    assert hub.repos["me/open"]["private"] is False
    assert card(hub, "me/open")["license"] == "apache-2.0"


def test_without_a_licence_a_name_or_a_token_nothing_is_sent(
    store: LabelStore, hub: fake_hub.FakeHub
) -> None:
    before = len(hub.requests)
    done = msft(store, hub, "students", "export", "tiny", "--push", "me/none", code=4)
    assert "no licence" in done.err
    assert "--licence" in done.err
    assert "OWNER/NAME" in msft(store, hub, "students", "export", "free", "--push", "alone", code=2).err
    done = msft(store, hub, "students", "export", "free", "--push", "me/x", "--licence", "apache-2.0", code=2)
    assert "MIT" in done.err
    assert len(hub.requests) == before
    assert (
        "hf auth login"
        in msft(store, hub, "students", "export", "free", "--push", "me/x", token="bad", code=4).err
    )
    assert "me/none" not in hub.repos
    assert "-o" in msft(store, hub, "students", "export", "free", code=2).err


def test_labels_are_pushed_as_a_dataset_with_a_card(
    store: LabelStore, hub: fake_hub.FakeHub, tmp_path: Path
) -> None:
    msft(store, hub, "teachers", "export", "teacher@first", "--push", "me/labels")
    assert hub.repos["me/labels"]["kind"] == "dataset"
    held = card(hub, "me/labels")
    assert held["license"] == "other"
    assert "text-ranking" in held["task_categories"]
    body = hub.files("me/labels")["README.md"].decode()
    for fact in ("teacher@first", "c/train", "research only", "11 lists"):
        assert fact in body, fact
    (name,) = [name for name in hub.files("me/labels") if name.endswith(".parquet")]
    (tmp_path / "labels.parquet").write_bytes(hub.files("me/labels")[name])
    table = pq.read_table(tmp_path / "labels.parquet")
    assert len(set(table["query_id"].to_pylist())) == 11
    assert json.dumps(held)
