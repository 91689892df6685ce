"""Where a remote server is, and which key may be sent there."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from forethought.errors import UserError

KEY_VARIABLE = "FORETHOUGHT_API_KEY"
"""The environment variable that holds the key for whatever server was named."""

_KEY_OF_VENDOR = {
    "openai.com": "OPENAI_API_KEY",
    "deepseek.com": "DEEPSEEK_API_KEY",
    "openrouter.ai": "OPENROUTER_API_KEY",
}
"""Keys many people have set anyway. Each goes to its own vendor's hosts and to no other: a key in
the environment must not reach a server just because someone typed its address."""

_ENDPOINTS = ("/chat/completions", "/completions", "/models")
_HOST = re.compile(r"[\w.:%-]+")
_VERSION_SEGMENT = re.compile(r"/v\d[^/]*(/|$)")


@dataclass(frozen=True, slots=True)
class Address:
    """A server: ``base_url`` ends in its version segment, without a slash; the key is not shown."""

    base_url: str
    host: str
    port: int
    secure: bool
    loopback: bool
    api_key: str | None = field(default=None, repr=False)

    @property
    def place(self) -> str:
        """``host:port``, for sentences."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_address(base_url: str, api_key: str | None = None) -> Address:
    """Normalise a base URL and find the key for it.

    With or without ``/v1``, with a trailing slash or a whole endpoint pasted: all mean the same.
    The key is the argument, else FORETHOUGHT_API_KEY, else the vendor's own variable for the
    vendor's own hosts. Raises UserError for what is no http(s) address, for credentials inside the
    address, and for a key that would travel unencrypted to another machine.
    """
    shown = base_url.split("@")[-1]
    try:
        parts = urlsplit(base_url.strip())
        port = parts.port
    except ValueError as error:
        raise UserError(f"{shown!r} is not a server address: {error}.") from None
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host or not _HOST.fullmatch(host):
        raise UserError(
            f"{shown!r} is not a server address: write it like http://127.0.0.1:1234/v1."
        )
    if parts.username is not None or parts.password is not None:
        raise UserError(
            f"the address of {host} holds a user name or password: "
            f"leave it out and set {KEY_VARIABLE} to the key."
        )
    if parts.query or parts.fragment:
        raise UserError(f"{shown!r} has a ? or # part: give the address alone, ending in /v1.")
    path = parts.path.rstrip("/")
    for endpoint in _ENDPOINTS:
        path = path.removesuffix(endpoint)
    path = path.rstrip("/")
    if not _VERSION_SEGMENT.search(path):
        path += "/v1"
    secure = parts.scheme == "https"
    loopback = _is_loopback(host)
    key = _find_key(host, api_key)
    if key is not None and not secure and not loopback:
        raise UserError(
            f"there is an API key for {host}, but http:// would send it unencrypted: "
            f"use https://, or unset {KEY_VARIABLE} if this server needs no key."
        )
    return Address(
        base_url=f"{parts.scheme}://{parts.netloc}{path}",
        host=host,
        port=port if port is not None else (443 if secure else 80),
        secure=secure,
        loopback=loopback,
        api_key=key,
    )


def _find_key(host: str, api_key: str | None) -> str | None:
    key = api_key if api_key is not None else os.environ.get(KEY_VARIABLE)
    if not key:
        for domain, variable in _KEY_OF_VENDOR.items():
            if host == domain or host.endswith("." + domain):
                key = os.environ.get(variable)
    key = (key or "").strip()
    if not key:
        return None
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            "the API key holds characters that no key has (a line break?): copy it again."
        )
    return key


def key_hint(address: Address) -> str:
    """Which variable to set for this server."""
    for domain, variable in _KEY_OF_VENDOR.items():
        if address.host == domain or address.host.endswith("." + domain):
            return f"{KEY_VARIABLE} (or {variable})"
    return KEY_VARIABLE
