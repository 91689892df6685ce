"""What went wrong at a remote server, as one sentence each.

A server's words are shown only after :func:`clean`: they are hostile input that ends in a terminal.
"""

from __future__ import annotations

import json
import socket
import ssl
import unicodedata
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING, Any

from forethought.engines.remote_address import Address, key_hint
from forethought.errors import ForethoughtError, ServerError, UserError

if TYPE_CHECKING:
    import httpx

MAX_MESSAGE = 300
"""Characters of a server's own message that are shown."""


def clean(text: str, address: Address) -> str:
    """A server's message on one line: no control or formatting characters (terminal escapes,
    direction marks), no page of HTML, no key, at most ``MAX_MESSAGE`` characters."""
    if address.api_key is not None:
        text = text.replace(address.api_key, "***")
    start = text.lstrip()[:200].lower()
    if start.startswith(("<!doctype", "<html", "<?xml", "<head", "<body")) or "<html" in start:
        return "an HTML page, not an API message"
    text = text[: 4 * MAX_MESSAGE]
    text = "".join(" " if unicodedata.category(c).startswith(("C", "Z")) else c for c in text)
    text = " ".join(text.split())
    if len(text) > MAX_MESSAGE:
        text = text[: MAX_MESSAGE - 1] + "…"
    return text.rstrip(".")


def error_message(payload: Any) -> str | None:
    """The message in an error object of any of the known shapes, None when it is no error.

    OpenAI ``{"error": {"message"}}``, Ollama and optillm ``{"error": "text"}``, older vLLM
    ``{"object": "error", "message"}``.
    """
    if not isinstance(payload, dict):
        return None
    error = payload.get("error")
    if error is None or error is False:
        if payload.get("object") != "error":
            return None
        error = payload
    if isinstance(error, dict):
        for key in ("message", "detail", "type", "code"):
            if error.get(key):
                return str(error[key])
        return "an error without a message"
    return str(error)


def message_of_body(body: bytes, address: Address) -> str:
    """The cleaned message of an HTTP error's body; empty when there is none."""
    text = body.decode("utf-8", errors="replace")
    try:
        payload = json.loads(text)
    except ValueError:
        return clean(text, address)
    message = error_message(payload)
    if message is None and isinstance(payload, dict):
        message = next((str(payload[k]) for k in ("message", "detail") if payload.get(k)), None)
    return clean(message if message is not None else text, address)


def http_error(
    status: int, message: str, address: Address, retry_after: float | None, location: str | None
) -> ForethoughtError:
    """The sentence for an HTTP status that is not 200."""
    tail = f": {message}." if message else "."
    if status in (401, 403):
        if address.api_key is None:
            why = f"the server at {address.place} wants an API key: set {key_hint(address)}"
        else:
            why = (
                f"the server at {address.place} refused the API key: "
                f"check {key_hint(address)} or the key that was given"
            )
        return UserError(f"{why} (HTTP {status}{', ' + message if message else ''}).")
    if 300 <= status < 400:
        # Followed, a redirect could carry the key and the question to another host.
        target = clean(location or "", address) or "nowhere"
        return ServerError(
            f"the server at {address.place} redirects to {target} (HTTP {status}): "
            "give that address itself; redirects are not followed."
        )
    if status == 404:
        return ServerError(
            f"{address.base_url}/chat/completions does not exist there (HTTP 404){tail} "
            "Is the address right, and does it end in /v1?"
        )
    if status == 429 and retry_after is not None:
        return ServerError(
            f"the server at {address.place} is busy and asks to wait {retry_after:.0f} s "
            f"(HTTP 429){tail}"
        )
    return ServerError(f"the server at {address.place} answered HTTP {status}{tail}")


def retry_after_seconds(value: str | None) -> float | None:
    """A Retry-After header (RFC 9110, 10.2.3: seconds or a date) as seconds from now."""
    if not value:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (ValueError, TypeError, OverflowError):
        return None


def unreachable(error: httpx.TransportError, address: Address, seconds: float) -> ServerError:
    """The sentence for a connection that gave no answer. ``seconds``: how long it was silent."""
    import httpx

    cause: BaseException | None = error
    while cause is not None and not isinstance(
        cause, ConnectionRefusedError | socket.gaierror | ssl.SSLError
    ):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ConnectionRefusedError):
        return ServerError(
            f"nothing listens at {address.place} (connection refused): "
            "start the server, or check host and port."
        )
    if isinstance(cause, socket.gaierror):
        return ServerError(
            f"cannot reach {address.place}: the name {address.host} is not known here; "
            "check its spelling and the network."
        )
    if isinstance(cause, ssl.SSLError):
        what = "its certificate is not trusted" if "CERTIFICATE" in str(cause) else "TLS failed"
        return ServerError(
            f"cannot reach {address.place}: {what} ({clean(str(cause), address)}); "
            "check https:// and the port."
        )
    if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout):
        return ServerError(
            f"cannot reach {address.place}: no answer to the connection within {seconds:g} s; "
            "check host, port and firewall."
        )
    if isinstance(error, httpx.TimeoutException):
        return ServerError(
            f"the server at {address.place} took the question and was then silent for "
            f"{seconds:g} s; is it still loading the model?"
        )
    detail = clean(str(error), address) or type(error).__name__
    return ServerError(
        f"cannot reach {address.place} ({detail}): is the server running, and is it this address?"
    )


def died(address: Address, thought: int, answer: int, why: str) -> ServerError:
    """The sentence for a stream that broke off; both counts are characters already shown."""
    if thought and answer:
        came = f"{thought} characters of thought and {answer} of answer had come"
    elif thought:
        came = f"{thought} characters of thought had come, and no answer"
    elif answer:
        came = f"{answer} characters of answer had come"
    else:
        came = "no text had come"
    return ServerError(f"the server at {address.place} broke off in the middle ({why}): {came}.")


def not_the_protocol(url: str, content_type: str, address: Address) -> ServerError:
    """The sentence for a 200 that is no chat completion: a web page, a login form, a proxy."""
    kind = clean(content_type, address) or "no content type"
    return ServerError(
        f"{url} answered with {kind} instead of a chat completion: "
        "is this the address of an OpenAI-compatible API?"
    )
