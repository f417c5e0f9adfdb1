"""One OpenAI-compatible server: its base URL, its secrets, and exchanges with a time limit."""

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

SHORTEST_SECRET = 6  # shorter keys (EMPTY, none) are placeholders; masking them would damage replies
_KEY_LIKE = re.compile(r"\b(?:sk|pk|key)-[\w*-]{6,}")
_HIDDEN = re.compile(r"(?s)^(.*?://)?.*@|[?#].*$")
_OFFICIAL = "api.openai.com"


def masked_url(url: str) -> str:
    """Return a URL without credentials, query and fragment, even if it cannot be parsed."""
    return _HIDDEN.sub(lambda found: f"{found[1] or ''}***@" if found[0].endswith("@") else "?***", url)


def api_key(host: str) -> str | None:
    """Return the API key for a host from the environment, without surrounding white space.

    Raises:
        TeacherError: if a header cannot carry the key; the message does not show it (exit code 2).
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
    """Replace secrets by ``***`` in texts from a server and in errors about it."""

    def __init__(self, secrets: set[str]) -> None:
        forms = {form for secret in secrets for form in (secret, quote(secret, safe=""))}
        long = sorted((form for form in forms if len(form) >= SHORTEST_SECRET), key=len, reverse=True)
        self._literal = re.compile("|".join(map(re.escape, long))) if long else None

    def reply(self, text: str) -> str:
        """Mask only the exact secrets in a reply."""
        return self._literal.sub("***", text) if self._literal is not None else text

    def message(self, text: str) -> str:
        """Mask secrets, and texts that look like a key, in a message to be shown and stored."""
        return _KEY_LIKE.sub("***", self.reply(clean(text)))


class Line:
    """One thread's connection to a server. An exchange that exceeds its time limit is cut off at the socket.

    The read timeout of httpx limits each read only. A server that sends a byte now and then, or one ``100 Continue``
    after another, would block a thread forever.
    """

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self._socket: socket.socket | None = None
        self._late = False

    def exchange(
        self, method: str, url: str, seconds: float, body: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        """Send a request and read its whole answer.

        Raises:
            httpx.ReadTimeout: if the answer is not complete after `seconds`.
            httpx.RequestError: if the server cannot be reached or does not use HTTP.
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
            with suppress(OSError):  # the socket is already closed
                # not TLS's shutdown method: it would remove the session that the reading thread uses
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


@dataclass
class Server:
    """A server's base URL, without credentials.

    Attributes:
        label: host and port, as in rows and messages.
        line: makes a connection for the caller.
    """

    url: str
    label: str
    official: bool
    mask: Mask
    line: Callable[[], Line]
    breaker: Breaker = field(default_factory=Breaker)
    in_flight: int = 0


def server_at(url: str, timeout: float, transport: httpx.BaseTransport | None = None) -> Server:
    """Make the server for a base URL.

    Raises:
        TeacherError: if the URL is not an http URL, or the key cannot be sent (exit code 2).
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
    """Split a base URL into its parts, and its host with its port."""
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
    ):  # a port that is not a number, half an IPv6 address, an invalid host name
        pass
    raise TeacherError(
        f"--base-url {masked_url(url)!r} is not an http URL",
        hint="--base-url http://127.0.0.1:8000/v1",
        exit_code=ExitCode.USAGE,
    )
