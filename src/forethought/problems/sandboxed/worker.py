"""The process inside the sandbox. It answers requests and never runs one itself.

It imports a program (a Python file with ``OPS``, a dict of name -> function of one JSON value)
once, because importing sympy takes seconds, and forks a child for every request: whatever a hostile
answer does to the child (patched modules, threads, memory) ends with the child. The child is
confined by limits and by the system-call filter before it looks at the request's payload, and holds
neither end of the channel to the parent. What it leaves in the sandbox's own /tmp is removed.

Requests and answers are JSON lines on what were stdin and stdout:
``{"id", "nonce", "op", "payload", "seconds"}`` and ``{"id", "nonce", "status", ...}``, status one
of "ok" (with "value"), "raised" (with "error" and "message"), "timeout", "died", "output".
The first line says ``{"ready": true}``, or which module is missing.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NoReturn

from . import syscalls
from .probes import probe

Op = Callable[[Any], object]
_TMP = Path("/tmp")


def main(program_path: str, settings_text: str) -> None:
    """Answer requests until stdin ends."""
    requests, answers = _take_channel()
    settings: dict[str, int] = json.loads(settings_text)
    try:
        ops: dict[str, Op] = {**_load(program_path).OPS, "probe": probe}
    except ImportError as error:
        _send(answers, {"ready": False, "missing": error.name or str(error)})
        return
    syscalls.hide()
    gc.collect()
    gc.freeze()  # so that a child's collector does not copy the pages it shares with us
    _send(answers, {"ready": True})
    for line in requests:
        request = json.loads(line)
        answer = _in_child(ops, request, settings, (requests, answers))
        _send(answers, {**answer, "id": request["id"], "nonce": request["nonce"]})


def _take_channel() -> tuple[BinaryIO, BinaryIO]:
    """Stdin and stdout under other numbers: what a library prints must not reach the parent."""
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.close(nothing)
    return os.fdopen(requests, "rb"), os.fdopen(answers, "wb")


def _load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("program", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["program"] = module
    spec.loader.exec_module(module)
    return module


def _send(answers: BinaryIO, answer: dict[str, object]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


def _in_child(
    ops: dict[str, Op],
    request: dict[str, Any],
    settings: dict[str, int],
    channel: tuple[BinaryIO, BinaryIO],
) -> dict[str, object]:
    """Run one request in a child and wait for its line, its end, or the end of its time."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(ops, request, settings, write_end, [read_end, *(end.fileno() for end in channel)])
    os.close(write_end)
    try:
        return _read(read_end, time.monotonic() + request["seconds"], settings["output_bytes"])
    finally:
        os.close(read_end)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if settings["private_tmp"]:
            clear(_TMP)  # where that fails we end without an answer, and another worker begins


def clear(folder: Path) -> None:
    """Remove all that is in ``folder``, whatever its depth and modes. OSError where that fails.

    Folders move up to ``folder`` before they are emptied: a path as deep as a hostile child makes
    it has no name that the kernel takes.
    """
    waiting, number = [folder], 0
    while waiting:
        at = waiting.pop()
        at.chmod(0o755)
        with os.scandir(at) as entries:
            inside = [(Path(entry), entry.is_dir(follow_symlinks=False)) for entry in entries]
        for path, is_folder in inside:
            if not is_folder:
                path.unlink()
                continue
            if at != folder:
                path.chmod(0o755)  # a folder that moves has to be writable itself
                while os.path.lexists(above := folder / str(number)):
                    number += 1
                path = path.rename(above)
            waiting.append(path)
        if at != folder:
            at.rmdir()


def _read(descriptor: int, deadline: float, most: int) -> dict[str, object]:
    """What the child wrote. It is only looked at, as JSON: the child may be hostile by now."""
    data = bytearray()
    while not data.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            return {"status": "timeout"}
        block = os.read(descriptor, 1 << 16)
        if not block:
            return {"status": "died"}
        data += block
        if len(data) > most:
            return {"status": "output"}
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        return {"status": "died"}
    if not isinstance(answer, dict) or answer.get("status") not in {"ok", "raised"}:
        return {"status": "died"}
    return answer


def _child(
    ops: dict[str, Op],
    request: dict[str, Any],
    settings: dict[str, int],
    write_end: int,
    others: list[int],
) -> NoReturn:
    try:
        for number in others:
            os.close(number)
        _limit(settings, request["seconds"])
        syscalls.confine()
        answer = _run(ops[request["op"]], request["payload"])
        data = json.dumps(answer, allow_nan=False).encode() + b"\n"
        while data:
            data = data[os.write(write_end, data) :]
    finally:
        os._exit(0)


def _run(op: Op, payload: object) -> dict[str, object]:
    try:
        return {"status": "ok", "value": op(payload)}
    except BaseException as error:  # an answer can make a library raise anything, SystemExit too
        return {"status": "raised", "error": type(error).__name__, "message": str(error)[:500]}


def _limit(settings: dict[str, int], seconds: float) -> None:
    used = 0
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = {
        resource.RLIMIT_AS: used + settings["memory_bytes"],
        resource.RLIMIT_CPU: int(seconds) + 2,
        resource.RLIMIT_FSIZE: settings["file_bytes"],
        resource.RLIMIT_NOFILE: settings["open_files"],
        resource.RLIMIT_NPROC: settings["processes"],
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(limit, (value, value))
        except (OSError, ValueError):
            if sys.platform == "linux":  # macOS refuses some; only --unsafe-no-sandbox runs there
                raise
