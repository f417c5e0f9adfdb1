"""One OpenAI-compatible server: its base URL, what must not be shown of it, and exchanges that end in time."""

import base64
import os
import re
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit, urlunsplit

import httpx

from teachers.engines.breaker import Breaker
from teachers.engines.openai_answer import receive
from teachers.errors import ExitCode, TeacherError
from teachers.journal.exact_json import clean

SHORTEST_SECRET = 6  # what is shorter (EMPTY, none) is a placeholder, and would mask words of replies
_KEY_LIKE = re.compile(r"\b(?:sk|pk|key)-[\w*-]{6,}")
_HIDDEN = re.compile(r"(?s)^(.*?://)?.*@|[?#].*$")
_OFFICIAL = "api.openai.com"


def masked_url(url: str) -> str:
    """A URL, even one that cannot be parsed, without what stands before its host and after its path."""
    return _HIDDEN.sub(lambda found: f"{found[1] or ''}***@" if found[0].endswith("@") else "?***", url)


def api_key(host: str) -> str | None:
    """The key for a host from the environment, without white space around it.

    Raises:
        TeacherError: if a header cannot carry it; the message does not show it (exit code 2).
    """
    names = ("MSFT_API_KEY", "OPENAI_API_KEY") if host == _OFFICIAL else ("MSFT_API_KEY",)
    name = next((name for name in names if os.environ.get(name) is not None), None)
    if name is None:
        return None
    key = os.environ[name].strip()
    odd = next((place for place, c in enumerate(key, start=1) if not "!" <= c <= "~"), None)
    if odd is not None:
        what = "a line break" if key[odd - 1] in "\r\n" else "a character that no key has"
        raise TeacherError(
            f"{name} has {what} at place {odd} of {len(key)}",
            hint=f"export {name}=KEY",
            exit_code=ExitCode.USAGE,
        )
    return key or None


class Mask:
    """Replaces secrets by ``***`` wherever a server, or an error about it, repeats them."""

    def __init__(self, secrets: set[str]) -> None:
        forms = {form for secret in secrets for form in (secret, quote(secret, safe=""))}
        long = sorted((form for form in forms if len(form) >= SHORTEST_SECRET), key=len, reverse=True)
        self._literal = re.compile("|".join(map(re.escape, long))) if long else None

    def reply(self, text: str) -> str:
        """A reply without the secrets themselves; nothing else in it changes."""
        return self._literal.sub("***", text) if self._literal is not None else text

    def message(self, text: str) -> str:
        """A message as it may be shown and stored: without secrets, without what only looks like a key."""
        return _KEY_LIKE.sub("***", self.reply(clean(text)))


class Line:
    """One thread's connection to a server. An exchange that is not over in time is cut off at its socket.

    The read timeout of httpx bounds each read. A server that sends a byte now and then, or one ``100 Continue`` after
    the other, would hold a thread for ever.
    """

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self._socket: socket.socket | None = None
        self._late = False

    def exchange(
        self, method: str, url: str, seconds: float, body: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        """Send a request and read its answer whole.

        Raises:
            httpx.ReadTimeout: if the answer is not complete after so many seconds.
            httpx.RequestError: if the server cannot be reached or does not speak HTTP.
            BadAnswer: if a good answer is too large or cannot be decoded.
        """
        self._late = False
        watchdog = threading.Timer(seconds, self._cut)
        watchdog.daemon = True
        watchdog.start()
        try:
            with self.client.stream(method, url, json=body, extensions={"trace": self._trace}) as streamed:
                response = receive(streamed)
        except (httpx.RequestError, OSError) as error:
            if not self._late:
                raise
            raise httpx.ReadTimeout("the answer was not complete in time") from error
        finally:
            watchdog.cancel()
        if self._late:
            raise httpx.ReadTimeout("the answer was not complete in time")
        return response

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
            if self._late:
                self._cut()

    def _cut(self) -> None:
        self._late = True
        if self._socket is not None:
            with suppress(OSError):  # it is closed already
                # not its own shutdown: that of a TLS socket would take the session away under the reading thread
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


@dataclass
class Server:
    """One base URL, without the credentials it may have carried.

    Attributes:
        label: host and port, as rows and messages name it.
        line: makes a connection of the caller's own.
    """

    url: str
    label: str
    official: bool
    mask: Mask
    line: Callable[[], Line]
    breaker: Breaker = field(default_factory=Breaker)
    in_flight: int = 0


def server_at(url: str, timeout: float, transport: httpx.BaseTransport | None = None) -> Server:
    """The server at a base URL.

    Raises:
        TeacherError: if it is not an http URL, or the key cannot be sent (exit code 2).
    """
    parts, host = _split(url)
    key = api_key(parts.hostname or "")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    query = parse_qsl(parts.query, keep_blank_values=True)
    named = "@" in parts.netloc
    secrets = {key or "", password or user, *(value or name for name, value in query)}
    if named:
        secrets.add(base64.b64encode(f"{user}:{password}".encode()).decode())
    headers = {"Accept-Encoding": "identity"}
    if key and not named:
        headers["Authorization"] = f"Bearer {key}"
    context: ssl.SSLContext | bool = httpx.create_ssl_context() if parts.scheme == "https" else False

    def line() -> Line:
        return Line(
            httpx.Client(
                timeout=httpx.Timeout(timeout, connect=min(10.0, timeout), pool=None),
                limits=httpx.Limits(max_connections=1),
                headers=headers,
                params=tuple(query),
                auth=(user, password) if named else None,
                transport=transport,
                verify=context,
                trust_env=parts.hostname not in ("127.0.0.1", "localhost", "::1"),
            )
        )

    clear = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
    return Server(clear, host, parts.hostname == _OFFICIAL, Mask(secrets), line)


def _split(url: str) -> tuple[SplitResult, str]:
    """A base URL's parts, and its host with its port."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        fits = parts.scheme in ("http", "https") and host and port != 0 and not parts.fragment
        if fits and re.search(r"[\s\x00-\x1f\x7f\\]", url) is None:
            shown = f"[{host}]" if ":" in host else host
            place = shown if port is None else f"{shown}:{port}"
            httpx.URL(urlunsplit((parts.scheme, place, parts.path, parts.query, "")))
            return parts, place
    except (
        ValueError,
        httpx.InvalidURL,
    ):  # a port that is no number, half an IPv6 address, no name of a host
        pass
    raise TeacherError(
        f"--base-url {masked_url(url)!r} is not an http URL",
        hint="--base-url http://127.0.0.1:8000/v1",
        exit_code=ExitCode.USAGE,
    )
