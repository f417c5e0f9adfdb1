"""Ask the Hugging Face Hub only if it can be reached: its client would retry for half a minute."""

import os
import socket
import threading
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

WAIT = 3.0  # seconds for a name and a connection


def local_only(source: str | Path) -> bool:
    """Tell whether a model's files must be taken from this machine: a folder, or the hub is off or out of reach."""
    if Path(source).is_dir() or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return True
    return not _reachable()


def obtainable(model: str) -> bool:
    """Tell whether a model of the hub is in the cache of this machine, or can be downloaded."""
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(model, "config.json")
    return isinstance(cached, str) or not local_only(model)


@cache
def _reachable() -> bool:
    """Try to connect to the hub, or to the proxy in front of it; once in a process."""
    from huggingface_hub import constants

    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    where = urlsplit(proxy if proxy and "//" in proxy else f"//{proxy}" if proxy else constants.ENDPOINT)
    port = where.port or (80 if where.scheme == "http" else 443)
    found = threading.Event()

    def connect() -> None:  # a name server that does not answer holds getaddrinfo beyond any timeout
        try:
            socket.create_connection((where.hostname or "", port), WAIT).close()
        except OSError:
            return
        found.set()

    trial = threading.Thread(target=connect, daemon=True)
    trial.start()
    trial.join(WAIT)
    return found.is_set()


def model_file(source: str, name: str, local_only: bool) -> Path | None:
    """Find one of the model's files in its folder, the cache or the hub; None if the model has no such file."""
    if Path(source).is_dir():
        path = Path(source, name)
        return path if path.is_file() else None
    from transformers.utils import cached_file

    found = cached_file(
        source,
        name,
        local_files_only=local_only,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)
