"""A sandbox's program that does what hostile code does; tests/problems/test_sandbox.py runs it."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

STATE = {"poisoned": False}


def echo(payload):
    return payload


def read(path):
    return Path(path).read_text(errors="replace")


def connect(address):
    socket.create_connection(tuple(address), timeout=1.0).close()
    return "connected"


def resolve(name):
    return socket.getaddrinfo(name, 80)


def ctypes_socket(port):
    """A connection without Python's socket module."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = libc.socket(socket.AF_INET, socket.SOCK_STREAM, 0)
    address = port.to_bytes(2, "big") + bytes([127, 0, 0, 1]) + bytes(8)
    raw = socket.AF_INET.to_bytes(2, sys.byteorder) + address
    return libc.connect(number, raw, len(raw))


def fork_bomb(_payload):
    started = 0
    for _ in range(1000):
        try:
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            started += 1
        except OSError:
            break
    return started


def ctypes_fork(_payload):
    return ctypes.CDLL(None).fork()


def shell(_payload):
    return os.system("true")  # noqa: S605


def threads(_payload):
    started = []
    try:
        for _ in range(200):
            threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
            started.append(1)
    except RuntimeError:
        pass
    return len(started)


def big_file(path):
    with Path(path).open("wb") as stream:
        for _ in range(10_000):
            stream.write(b"x" * (1 << 20))
    return "written"


def many_files(folder):
    count = 0
    for count in range(200):
        Path(folder, f"f{count}").write_bytes(b"x" * (1 << 19))
    return count


def litter(depth):
    """A file, a link, and a chain of folders that is too deep for any path, closed at its end."""
    os.chdir("/tmp")
    Path("file").write_bytes(b"x" * 1000)
    Path("link").symlink_to("/usr")
    for name in ("0", "1"):
        Path(name).mkdir()
    for _ in range(depth):
        Path("d" * 200).mkdir()
        os.chdir("d" * 200)
    Path("file").write_bytes(b"")
    Path().chmod(0)
    Path("/tmp").chmod(0o500)
    return listing("/tmp")


def listing(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def kernel_objects(_payload):
    """System V memory, semaphores and queues outlive the process that made them."""
    libc = ctypes.CDLL(None)
    return [libc.shmget(0, 1 << 20, 0o1600), libc.semget(0, 1, 0o1600), libc.msgget(0, 0o1600)]


def big_memory(_payload):
    return len(bytearray(10 << 30))


def detach(_payload):
    """Leaves its session and ignores every polite request to end."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        os.setsid()
    finally:
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        time.sleep(3600)


def spin(_payload):
    while True:
        pass


def crash(_payload):
    ctypes.string_at(0)


def leave(status):
    os._exit(status)


def quit_politely(_payload):
    raise SystemExit(0)


def long_output(_payload):
    return "x" * (8 << 20)


def poison(_payload):
    STATE["poisoned"] = True
    Path.read_text = lambda *_: "patched"
    OPS["echo"] = lambda _: "forged"
    return STATE["poisoned"]


def poisoned(_payload):
    return STATE["poisoned"]


def forge(_payload):
    """Writes answers to every open descriptor, in every process that it can see."""
    line = b'{"id": 1, "nonce": "", "status": "ok", "value": "forged"}\n'
    written = 0
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            entries = list(folder.iterdir())
        except OSError:
            continue
        for entry in entries:
            try:
                number = os.open(entry, os.O_WRONLY)
                os.write(number, line)
                written += 1
            except OSError:
                continue
    for number in range(3, 64):
        try:
            os.write(number, b"[" * 5000 + b"\n")
        except OSError:
            continue
    return written


def prints(_payload):
    print('{"status": "ok", "value": "forged"}', flush=True)
    os.write(1, b"noise\n")
    os.write(2, b"noise\n")
    return "honest"


def kill_parent(_payload):
    os.kill(os.getppid(), signal.SIGKILL)
    return "killed"


def kill_all(_payload):
    os.kill(-1, signal.SIGKILL)
    return "killed"


def memory_of_parent(_payload):
    with Path(f"/proc/{os.getppid()}/mem").open("r+b") as stream:
        return stream.fileno()


def not_json(_payload):
    return float("nan")


OPS = {name: value for name, value in globals().items() if callable(value) and name != "Path"}
