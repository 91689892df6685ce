"""A Python process in a sandbox of bubblewrap: namespaces, limits, self-test, kill.

What runs inside, and how one talks to it, is not known here. The sandbox has fresh user, pid,
network, ipc, mount and (where the kernel has them) uts and cgroup namespaces, an environment of our
own, the system's libraries and the Python installation read-only, a /tmp of a few MiB, and nothing
else of the host: no home folder, no /etc, no network but its own loopback.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Final

from forethought.errors import ModelError, UserError

UNSAFE_OPTION: Final = "--unsafe-no-sandbox"
_PACKAGE: Final = Path(__file__).with_name("sandboxed")
_INSIDE: Final = Path("/forethought")
_RUN: Final = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from sandboxed.worker import main; main(*sys.argv[1:])"
)
# The same hash seed everywhere: a set of strings in a generator must not change its problems.
_ENVIRONMENT: Final = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "MPLCONFIGDIR": "/tmp",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
}
_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
# The worker and its child.
_OWN_PROCESSES: Final = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may use. Bytes and seconds; `processes` counts threads too.

    `memory_bytes` comes on top of what the worker's libraries take; `output_bytes` is the longest
    answer, `input_bytes` the longest request, `tmp_bytes` the size of /tmp.
    """

    seconds: float = 10.0
    start_seconds: float = 120.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20
    tmp_bytes: int = 16 << 20
    output_bytes: int = 1 << 20
    input_bytes: int = 1 << 20
    open_files: int = 64
    processes: int = 16


def bundled_program(name: str) -> Path:
    """The file of one of our own programs."""
    return _PACKAGE / f"{name}_program.py"


def command(program: Path, limits: Limits, *, isolated: bool) -> list[str]:
    """The command line of a worker that runs `program`.

    Raises UserError without bwrap, and on Windows, where a worker cannot fork.
    """
    if sys.platform == "win32":
        raise UserError(
            "reasoning-gym and math-verify are run on Linux only: use the Windows subsystem for "
            "Linux, or the families of problems that need no sandbox."
        )
    python = [sys.executable, "-P", "-s", "-B", "-c", _RUN]
    settings = json.dumps({**asdict(limits), "private_tmp": isolated})
    if not isolated:
        return [*python, str(_PACKAGE.parent), str(program), settings]
    inside = _INSIDE / "program" / program.name
    binds = ["--ro-bind", str(_PACKAGE), str(_INSIDE / _PACKAGE.name)]
    binds += ["--ro-bind", str(program), str(inside)]
    bwrap = [_bwrap(), *_namespaces(), *_mounts(limits), *binds, "--remount-ro", "/"]
    return [*bwrap, "--", *python, str(_INSIDE), str(inside), settings]


def _bwrap() -> str:
    found = shutil.which("bwrap")
    if found is None:
        raise UserError(
            "Grading with reasoning-gym or math-verify runs code on a model's text and needs the "
            "program bwrap, which is not on the PATH: install the Debian package bubblewrap, or "
            f"type {UNSAFE_OPTION} to run it unprotected."
        )
    return found


def _namespaces() -> list[str]:
    # As process 1, because bwrap's own would hold our pipes, open to the worker's child through
    # /proc/1/fd; the worker closes itself to others.
    options = ["--unshare-user", "--unshare-pid", "--as-pid-1", "--unshare-net", "--unshare-ipc"]
    options += ["--unshare-uts", "--unshare-cgroup-try"]
    options += ["--die-with-parent", "--new-session", "--clearenv"]
    options += ["--uid", "65534", "--gid", "65534", "--hostname", "sandbox", "--chdir", "/tmp"]
    for name, value in _ENVIRONMENT.items():
        options += ["--setenv", name, value]
    return options


def _mounts(limits: Limits) -> list[str]:
    options: list[str] = []
    for name in _SYSTEM:
        path = Path(name)
        if path.is_symlink():
            options += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            options += ["--ro-bind", name, name]
    options += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for folder in python_folders():
        options += ["--ro-bind", str(folder), str(folder)]
    options += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    return [*options, "--size", str(limits.tmp_bytes), "--tmpfs", "/tmp"]


def python_folders() -> list[Path]:
    """The folders of this Python and its packages that the system's folders do not hold.

    UserError where one of them holds a home folder or the whole disk, which the sandbox would show,
    or lies in /tmp, where it has its own.
    """
    real = Path(sys.executable).resolve().parents[1]
    named = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
    folders: list[Path] = []
    for folder in sorted({real, *map(Path, named)}):
        if any(folder.is_relative_to(known) for known in (*map(Path, _SYSTEM), *folders)):
            continue
        if Path.home().is_relative_to(folder.resolve()) or folder == Path(folder.anchor):
            raise UserError(
                f"The Python in {folder} cannot be shown to a sandbox without the home folder: "
                f"use a virtual environment, or type {UNSAFE_OPTION} to run graders unprotected."
            )
        if folder.resolve().is_relative_to("/tmp"):
            raise UserError(
                f"The Python in {folder} cannot be shown to a sandbox, which has a /tmp of its "
                f"own: move it out of /tmp, or type {UNSAFE_OPTION} to run graders unprotected."
            )
        folders.append(folder)
    return folders


def spawn(arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start a worker: pipes for its three standard streams, a session and environment of its own.

    Raises ModelError where the system cannot start it.
    """
    # bwrap dies with the thread that started it (PR_SET_PDEATHSIG), so that has to be one that
    # lives as long as we do.
    future = _spawner(os.getpid()).submit(
        subprocess.Popen,
        arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env=_ENVIRONMENT,
        start_new_session=True,
    )
    try:
        return future.result()
    except OSError as error:
        raise ModelError(
            f"The sandbox {arguments[0]} did not start ({error.strerror or error}): check that the "
            "machine has memory and processes left."
        ) from None


@cache
def _spawner(_pid: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="sandbox-spawner")


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a worker and everything it started."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


class Witness:
    """The things outside that a probe inside must not reach: a file, and a listening server."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._folder = tempfile.TemporaryDirectory(prefix="forethought-")
        self._canary = Path(self._folder.name) / "canary"
        self._canary.write_text("outside")

    def __enter__(self) -> Witness:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        self._folder.cleanup()

    def payload(self) -> dict[str, object]:
        """What the probe inside is told."""
        port: int = self._server.getsockname()[1]
        folders = ["/", "/usr", "/dev", str(_INSIDE), *map(str, python_folders())]
        return {"port": port, "canary": str(self._canary), "read_only": folders}


def leaks(report: Mapping[str, object]) -> list[str]:
    """What a probe's report says is not isolated; empty when all is."""
    found: list[str] = []
    if report.get("network") is not False or report.get("interfaces") != ["lo"]:
        found.append("the network can be reached")
    if report.get("host_file") is not False:
        found.append("a file outside can be read")
    names = report.get("environment")
    # PWD is bwrap's, LC_CTYPE Python's own.
    if not isinstance(names, list) or not set(names) <= {*_ENVIRONMENT, "PWD", "LC_CTYPE"}:
        found.append("the environment is not empty")
    if report.get("processes") != _OWN_PROCESSES:
        found.append("other processes can be seen")
    if report.get("fork") is not False:
        found.append("processes can be started")
    if report.get("writable") != []:
        found.append("system folders can be written")
    return found
