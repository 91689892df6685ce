"""What a confined child tries against its own sandbox, to prove that it is one."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any


def probe(payload: Any) -> dict[str, object]:
    """Try what must fail; the parent judges the report.

    ``payload``: "canary" (a file outside the sandbox), "port" (where the parent listens),
    "read_only" (folders that must not be writable).
    """
    return {
        "network": _connects(payload["port"]),
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
        "host_file": _opens(payload["canary"]),
        "environment": sorted(os.environ),
        "processes": sum(entry.name.isdigit() for entry in Path("/proc").iterdir()),
        "fork": _forks(),
        "writable": [folder for folder in payload["read_only"] if _writes(folder)],
    }


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _opens(path: str) -> bool:
    try:
        Path(path).read_bytes()
    except OSError:
        return False
    return True


def _forks() -> bool:
    try:
        pid = os.fork()
    except OSError:
        return False
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return True


def _writes(folder: str) -> bool:
    path = Path(folder) / f"probe-{os.getpid()}"
    try:
        path.touch()
        path.unlink()
    except OSError:
        return False
    return True
