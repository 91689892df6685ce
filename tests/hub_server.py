"""A local server that speaks the hub's protocol over real sockets, with faults on demand.

It serves `root/owner/repo/...` files. Library use:

    with HubServer(root) as hub:
        hub.faults.drop_after = 1000
        ...  # endpoint: hub.url; what was asked: hub.requests

As a program: `python tests/hub_server.py DIR [PORT]`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE = 16384


@dataclass
class Faults:
    """What goes wrong. Zero, empty or False is off."""

    bytes_per_second: int = 0
    drop_after: int = 0  # close the connection after so many bytes of a body...
    drop_times: int = 1 << 30  # ... so many times
    etag_suffix: str = ""  # changes every ETag
    lie_about_hash: bool = False
    redirect: bool = False  # answer with a redirect to /cdn/...
    redirect_to: str = ""  # ... or to this address
    status: int = 0  # answer every file request with this
    status_times: int = 1 << 30
    gated: bool = False  # 403 with X-Error-Code: GatedRepo
    ignore_range: bool = False
    html: bool = False  # /api answers HTML
    corrupt: bool = False  # flips a byte of every body


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: HubServer


class HubServer:
    """The server; a context manager that starts and stops it."""

    def __init__(self, root: Path, port: int = 0) -> None:
        self.root = root
        self.faults = Faults()
        self.requests: list[Request] = []
        self._hashes: dict[tuple[Path, int, int], str] = {}
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.owner = self
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, args=(0.02,), daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def sha256(self, path: Path) -> str:
        """The SHA-256 of a file, remembered."""
        stat = path.stat()
        key = (path, stat.st_mtime_ns, stat.st_size)
        if key not in self._hashes:
            with path.open("rb") as stream:
                self._hashes[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        return self._hashes[key]

    def ranges(self) -> list[str]:
        """The Range headers of the file requests, in order; '' where there was none."""
        return [
            request.headers.get("range", "")
            for request in self.requests
            if request.method == "GET" and not request.path.startswith("/api/")
        ]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def _serve(self, body: bool) -> None:
        hub = self.server.owner
        headers = {key.lower(): value for key, value in self.headers.items()}
        hub.requests.append(Request(self.command, self.path, headers))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if ".." in parts:
            return self._error(404, "EntryNotFound")
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            return self._api(parts[2:], body)
        if parts[0] == "cdn" and len(parts) >= 4:
            return self._file(hub.root.joinpath(*parts[1:]), body)
        if len(parts) >= 5 and parts[2] == "resolve":
            path = hub.root.joinpath(parts[0], parts[1], *parts[4:])
            faults = hub.faults
            if (faults.redirect or faults.redirect_to) and path.is_file():
                there = faults.redirect_to or "/cdn/" + "/".join([*parts[:2], *parts[4:]])
                self.send_response(302)
                self.send_header("Location", there)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("X-Linked-Size", str(path.stat().st_size))
                self.send_header("X-Linked-Etag", f'"{hub.sha256(path)}"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None
            return self._file(path, body)
        return self._error(404, "RepoNotFound")

    def _error(self, status: int, code: str) -> None:
        text = json.dumps({"error": code}).encode()
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _api(self, parts: list[str], body: bool) -> None:
        hub = self.server.owner
        folder = hub.root.joinpath(*parts[:2])
        if hub.faults.gated:
            return self._error(403, "GatedRepo")
        if not folder.is_dir():
            return self._error(404, "RepoNotFound")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        listed = []
        for path in files:
            sha256 = "0" * 64 if hub.faults.lie_about_hash else hub.sha256(path)
            listed.append((str(path.relative_to(folder).as_posix()), path.stat().st_size, sha256))
        if hub.faults.html:
            text, kind = b"<html>Sign in to the wireless network</html>", "text/html"
        elif len(parts) >= 4 and parts[2] == "tree":
            tree = [
                {
                    "type": "file",
                    "path": name,
                    "size": size,
                    "oid": sha256[:40],
                    "lfs": {"oid": sha256, "size": size, "pointerSize": 134},
                }
                for name, size, sha256 in listed
            ]
            text, kind = json.dumps(tree).encode(), "application/json"
        else:
            if len(parts) >= 4 and parts[3] not in {"main", COMMIT}:
                return self._error(404, "RevisionNotFound")
            info = {
                "_id": "1",
                "id": "/".join(parts[:2]),
                "modelId": "/".join(parts[:2]),
                "sha": COMMIT,
                "private": False,
                "gated": False,
                "downloads": 0,
                "likes": 0,
                "tags": ["gguf", "license:apache-2.0"],
                "siblings": [
                    {
                        "rfilename": name,
                        "size": size,
                        "blobId": sha256[:40],
                        "lfs": {"sha256": sha256, "size": size, "pointerSize": 134},
                    }
                    for name, size, sha256 in listed
                ],
            }
            text, kind = json.dumps(info).encode(), "application/json"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if body:
            self.wfile.write(text)
        return None

    def _file(self, path: Path, body: bool) -> None:
        faults = self.server.owner.faults
        if not path.is_file():
            return self._error(404, "EntryNotFound")
        if faults.status and faults.status_times > 0:
            faults.status_times -= 1
            return self._error(faults.status, "Fault")
        sha256 = self.server.owner.sha256(path)
        etag = f'"{sha256}{faults.etag_suffix}"'
        size = path.stat().st_size
        start = self._start(size, etag)
        if start is not None and start >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        self.send_response(206 if start is not None else 200)
        self.send_header("ETag", etag)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Size", str(size))
        self.send_header("X-Linked-Etag", f'"{sha256}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - (start or 0)))
        self.end_headers()
        if body:
            self._body(path, start or 0)
        return None

    def _start(self, size: int, etag: str) -> int | None:
        """Where a range request begins, or None if the whole file must be sent."""
        wanted = self.headers.get("Range", "")
        if self.server.owner.faults.ignore_range or not wanted.startswith("bytes="):
            return None
        if self.headers.get("If-Range", etag) != etag:
            return None
        first = wanted.removeprefix("bytes=").partition("-")[0]
        return int(first) if first.isdigit() else None

    def _body(self, path: Path, start: int) -> None:
        faults = self.server.owner.faults
        sent = 0
        with path.open("rb") as stream:
            stream.seek(start)
            while block := stream.read(PIECE):
                if faults.corrupt:
                    block = bytes([block[0] ^ 1]) + block[1:]
                if faults.drop_after and faults.drop_times > 0:
                    block = block[: faults.drop_after - sent]
                try:
                    self.wfile.write(block)
                except OSError:
                    self.close_connection = True
                    return
                sent += len(block)
                if faults.drop_after and faults.drop_times > 0 and sent >= faults.drop_after:
                    faults.drop_times -= 1
                    self.close_connection = True
                    return
                if faults.bytes_per_second:
                    time.sleep(len(block) / faults.bytes_per_second)


def main(arguments: list[str]) -> None:
    """Serve a folder until Ctrl-C."""
    port = int(arguments[1]) if len(arguments) > 1 else 0
    with HubServer(Path(arguments[0]), port) as hub:
        print(hub.url, flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main(sys.argv[1:])
