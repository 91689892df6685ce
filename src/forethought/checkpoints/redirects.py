"""Which addresses a download may go to (rule R8).

The endpoint itself is the user's choice. What it redirects to is not: a redirect may stay on the
endpoint's host, or go from https to https at a public address. Only an endpoint on this machine
(a test, a mirror) may redirect to this machine.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import SplitResult, urlsplit

from forethought.errors import DownloadError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: str) -> bool:
    """Whether an IP address is reachable by anyone: not private, loopback, link-local, ..."""
    ip: Address = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.is_global and not ip.is_multicast


def resolve_host(host: str, port: int) -> list[str]:
    """The IP addresses of a host; empty where the name is unknown here (a proxy may know it)."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(item[4][0]) for item in found]


def is_loopback_host(host: str) -> bool:
    """`localhost`, or an address of this machine. Names are not looked up."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


def split(url: str) -> SplitResult:
    """The parts of an http(s) URL. Raises DownloadError for anything else."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise DownloadError(f"{url[:200]!r} is no http(s) address: check the address of the hub.")
    return parts


def port_of(parts: SplitResult) -> int:
    """The port, the scheme's own where none is given."""
    return parts.port or (443 if parts.scheme == "https" else 80)


def same_origin(a: str, b: str) -> bool:
    """Whether two URLs have the same scheme, host and port."""
    one, two = split(a), split(b)
    return (one.scheme, one.hostname, port_of(one)) == (two.scheme, two.hostname, port_of(two))


def check_redirect(base: str, here: str, there: str) -> None:
    """Raise DownloadError unless a download that began at `base` may go from `here` to `there`."""
    if same_origin(base, there):
        return
    target = split(there)
    host = target.hostname or ""
    if is_loopback_host(split(base).hostname or ""):
        if is_loopback_host(host) or target.scheme == "https":
            return
    elif target.scheme == "https" and split(here).scheme == "https":
        addresses = resolve_host(host, port_of(target))
        if not is_loopback_host(host) and all(is_public(address) for address in addresses):
            return
    raise DownloadError(
        f"The download was redirected to {target.scheme}://{host}, which is not a public https "
        "address: it was refused; check the address of the hub."
    )


def check_peer(base: str, url: str, peer: object) -> None:
    """Check the address really connected to: a name may change between look-up and connection.

    `peer` is what the socket reports; anything but (host, port, ...) is not checked.
    """
    if same_origin(base, url) or is_loopback_host(split(base).hostname or ""):
        return
    if isinstance(peer, tuple) and peer and not is_public(str(peer[0])):
        raise DownloadError(
            f"The download was redirected to {peer[0]}, which is not a public address: it was "
            "refused; check the address of the hub."
        )
