"""Download one file: resumable after any kill, checked before it gets its name.

Bytes go to `<name>.part`; `<name>.part.json` says what they are of (address, ETag, expected size
and SHA-256). A later process goes on with `Range: bytes=N-` and `If-Range: <ETag>`; a changed ETag
or a 200 answer starts afresh. The SHA-256 of the whole file is compared before the rename, so
whatever has the final name is whole and right (rules R1, R57).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from forethought.checkpoints import locks, redirects
from forethought.errors import DownloadError

if TYPE_CHECKING:
    import httpx

Progress = Callable[[int, int | None], None]
Report = Callable[[str], None]

CHUNK = 1 << 20
CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 60.0
MAX_REDIRECTS = 10
# Room left on the disk beyond the file itself.
DISK_SLACK = 16 << 20
_PROGRESS_EVERY_S = 0.1
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to download. `base` is the endpoint the user chose; sizes are in bytes."""

    url: str
    base: str
    sha256: str | None
    size: int | None = None
    token: str | None = None


@dataclass(frozen=True, slots=True)
class _Sidecar:
    url: str
    etag: str
    size: int | None
    sha256: str | None


class _TransientError(Exception):
    """Worth another try; the text says why, for the sentence if no try succeeds."""


class _RestartError(Exception):
    """The bytes in the .part cannot be continued."""


class _Meter:
    """Calls a progress function at most ten times a second, and once at the end."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._last = 0.0

    def __call__(self, done: int, total: int | None, *, final: bool = False) -> None:
        now = time.monotonic()
        if self._progress is not None and (final or now - self._last >= _PROGRESS_EVERY_S):
            self._last = now
            self._progress(done, total)


def part_path(target: Path) -> Path:
    """Where the bytes of an unfinished `target` are."""
    return target.with_name(target.name + ".part")


def _sidecar_path(target: Path) -> Path:
    return target.with_name(target.name + ".part.json")


def sha256_of(path: Path, hasher: hashlib._Hash | None = None) -> str:
    """The SHA-256 of a file in hex, read in pieces."""
    digest = hasher or hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def download(
    wanted: Wanted,
    target: Path,
    *,
    progress: Progress | None = None,
    report: Report | None = None,
    retries: int = 5,
    back_off_s: float = 1.0,
) -> Path:
    """Download `wanted` to `target`, going on from an earlier attempt where there is one.

    `progress(done, total)` gets bytes. Transient failures after the first contact are retried
    `retries` times in a row without progress. Raises DownloadError; Ctrl-C keeps the .part.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locks.held(target.with_name(target.name + ".lock"), report=report):
            if target.exists() and _is_it(target, wanted):
                return target
            _download_locked(wanted, target, _Meter(progress), report, retries, back_off_s)
    except OSError as error:
        raise disk_error(error, target) from error
    return target


def _is_it(target: Path, wanted: Wanted) -> bool:
    """Whether `target` is already the wanted file."""
    if wanted.size is not None and target.stat().st_size != wanted.size:
        return False
    return wanted.sha256 is None or sha256_of(target) == wanted.sha256


def disk_error(error: OSError, target: Path) -> DownloadError:
    """The sentence for a failure to write."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return DownloadError(
            f"The disk is full: {target.name} does not fit into {target.parent}; free some room, "
            "or set FORETHOUGHT_MODELS to a folder on a larger disk, and try again."
        )
    return DownloadError(
        f"{target} cannot be written ({error.strerror or error}): check the folder's permissions."
    )


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise DownloadError if `needed` bytes do not fit into the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if needed + DISK_SLACK > free:
        raise DownloadError(
            f"The disk is full: {what} needs {needed / 1e9:.2f} GB more in {folder}, and "
            f"{free / 1e9:.2f} GB are free; free some room, or set FORETHOUGHT_MODELS to a folder "
            "on a larger disk."
        )


def _download_locked(
    wanted: Wanted,
    target: Path,
    meter: _Meter,
    report: Report | None,
    retries: int,
    back_off_s: float,
) -> None:
    # httpx takes a tenth of a second to import: only who downloads pays.
    import httpx

    part = part_path(target)
    timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    failures, contacted = 0, False
    with httpx.Client(timeout=timeout, follow_redirects=False) as client:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                _attempt(client, wanted, target, meter)
                break
            except _RestartError:
                _forget(target)
                failures += 1
                reason = "the server's file changed again and again"
            except (_TransientError, httpx.TransportError) as error:
                reason = str(error) or type(error).__name__
                lost = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                contacted = contacted or not lost
                grown = (part.stat().st_size if part.exists() else 0) > before
                failures = 1 if grown else failures + 1
                if not contacted:
                    # The first contact gets one try: offline must not take minutes.
                    failures = retries + 1
            if failures > retries:
                host = redirects.split(wanted.url).hostname
                raise DownloadError(
                    f"{target.name} could not be downloaded from {host} ({reason}): check the "
                    "network and try again; what has arrived is kept."
                )
            if report is not None:
                report(f"{target.name}: {reason}; trying again.")
            time.sleep(min(back_off_s * 2 ** (failures - 1), 30.0))
    _finish(wanted, target, meter)


def _forget(target: Path) -> None:
    part_path(target).unlink(missing_ok=True)
    _sidecar_path(target).unlink(missing_ok=True)


def _load_sidecar(target: Path) -> _Sidecar | None:
    try:
        data: object = json.loads(_sidecar_path(target).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(data, dict):
        return None
    url, etag, size, sha256 = (data.get(key) for key in ("url", "etag", "size", "sha256"))
    if not isinstance(url, str) or not isinstance(etag, str):
        return None
    return _Sidecar(
        url,
        etag,
        size if isinstance(size, int) else None,
        sha256 if isinstance(sha256, str) else None,
    )


def _save_sidecar(target: Path, sidecar: _Sidecar) -> None:
    path = _sidecar_path(target)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(asdict(sidecar)) + "\n", encoding="utf-8")
    temporary.replace(path)


def _resume_point(wanted: Wanted, target: Path) -> tuple[int, str]:
    """How many bytes can be kept, and the ETag they came with.

    Bytes of another hash, or of another address where no hash is known, are thrown away.
    """
    part = part_path(target)
    have = part.stat().st_size if part.exists() else 0
    sidecar = _load_sidecar(target)
    if not have:
        return 0, ""
    if (
        sidecar is None
        or sidecar.sha256 != wanted.sha256
        or (wanted.sha256 is None and sidecar.url != wanted.url)
        or (wanted.size is not None and have > wanted.size)
        # Without an ETag only the hash of the whole can tell whether the pieces belong together.
        or (not sidecar.etag and wanted.sha256 is None)
    ):
        _forget(target)
        return 0, ""
    return have, sidecar.etag


def _attempt(client: httpx.Client, wanted: Wanted, target: Path, meter: _Meter) -> None:
    """One request: from where the .part ends to the end of the file."""
    have, etag = _resume_point(wanted, target)
    if wanted.size is not None:
        if have == wanted.size:
            return
        check_room(target.parent, wanted.size - have, target.name)
    headers = {"Accept-Encoding": "identity", "User-Agent": "forethought"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if etag:
            headers["If-Range"] = etag
    with contextlib.ExitStack() as stack:
        response = _open(client, stack, wanted, headers)
        have = _check_answer(response, wanted, target, have)
        total = wanted.size
        length = response.headers.get("Content-Length", "")
        if total is None and length.isdigit():
            total = have + int(length)
            check_room(target.parent, int(length), target.name)
        fresh = response.headers.get("ETag", "")
        strong = fresh if fresh.startswith('"') else ""
        if have == 0 or strong != etag:
            _save_sidecar(target, _Sidecar(wanted.url, strong, wanted.size, wanted.sha256))
        part = part_path(target)
        with part.open("ab" if have else "wb", buffering=0) as stream:
            _copy(response, stream, have, total, meter)


def _copy(
    response: httpx.Response, stream: BinaryIO, have: int, total: int | None, meter: _Meter
) -> None:
    done = have
    # Small pieces: what arrived before a kill must be in the file, not in our memory.
    for block in response.iter_raw(1 << 16):
        view = memoryview(block)
        while view:
            view = view[stream.write(view) :]
        done += len(block)
        if total is not None and done > total:
            raise _RestartError
        meter(done, total)
    if total is not None and done < total:
        raise _TransientError(f"the connection ended after {done} of {total} bytes")
    os.fsync(stream.fileno())


def _check_answer(response: httpx.Response, wanted: Wanted, target: Path, have: int) -> int:
    """Where the answer's bytes belong (0 for a fresh start). Raises for every other answer."""
    status = response.status_code
    if status == 200:
        return 0
    if status == 206 and have:
        unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
        span, _, total = rest.partition("/")
        start = span.partition("-")[0]
        if unit != "bytes" or start != str(have):
            raise _RestartError
        if wanted.size is not None and total not in {"*", str(wanted.size)}:
            raise _RestartError
        return have
    if status == 416:
        raise _RestartError
    host = response.url.host
    if status in _TRANSIENT:
        raise _TransientError(f"{host} answered {status}")
    if status in {401, 403}:
        raise DownloadError(
            f"{host} refuses {target.name} ({status}): accept the model's terms on its page, and "
            "set HF_TOKEN to a token that may read it."
        )
    raise DownloadError(
        f"{host} does not give {target.name} (it answered {status}): check the name, or try again "
        "later."
    )


def _open(
    client: httpx.Client,
    stack: contextlib.ExitStack,
    wanted: Wanted,
    headers: Mapping[str, str],
) -> httpx.Response:
    """Follow redirects by hand, checking each; the token goes to the endpoint's origin only."""
    url = wanted.url
    for _ in range(MAX_REDIRECTS):
        sent = dict(headers)
        if wanted.token and may_send_token(wanted.base, url):
            sent["Authorization"] = f"Bearer {wanted.token}"
        response = stack.enter_context(client.stream("GET", url, headers=sent))
        if not _proxied(url):
            stream = response.extensions.get("network_stream")
            if stream is not None:
                redirects.check_peer(wanted.base, url, stream.get_extra_info("server_addr"))
        if response.status_code not in {301, 302, 303, 307, 308}:
            return response
        there = str(response.url.join(response.headers.get("Location", "")))
        redirects.check_redirect(wanted.base, url, there)
        url = there
        response.close()
    raise DownloadError(
        f"{redirects.split(wanted.url).hostname} redirects in circles: check the hub's address."
    )


def may_send_token(base: str, url: str) -> bool:
    """A token goes to the endpoint's own origin, and over https unless that is this machine."""
    parts = redirects.split(url)
    safe = parts.scheme == "https" or redirects.is_loopback_host(parts.hostname or "")
    return safe and redirects.same_origin(base, url)


def _proxied(url: str) -> bool:
    """Whether the environment sends this request through a proxy (the peer is then the proxy)."""
    parts = redirects.split(url)
    proxies = urllib.request.getproxies()
    if parts.scheme not in proxies and "all" not in proxies:
        return False
    return not urllib.request.proxy_bypass(parts.hostname or "")


def _finish(wanted: Wanted, target: Path, meter: _Meter) -> None:
    """Check the whole file, then give it its name."""
    part = part_path(target)
    size = part.stat().st_size
    found = sha256_of(part) if wanted.sha256 is not None else None
    if found != wanted.sha256 or (wanted.size is not None and size != wanted.size):
        _forget(target)
        raise DownloadError(
            f"{target.name} arrived with the wrong content (SHA-256 {found}, expected "
            f"{wanted.sha256}): it was removed; try again, and distrust the server if it recurs."
        )
    publish(part, target)
    _sidecar_path(target).unlink(missing_ok=True)
    meter(size, size, final=True)


def publish(part: Path, target: Path) -> None:
    """Make sure the bytes are on the disk, then rename: the last step of every download."""
    with part.open("rb+") as stream:
        os.fsync(stream.fileno())
    part.replace(target)
    if os.name == "posix":
        # The rename itself is durable once the folder is.
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
