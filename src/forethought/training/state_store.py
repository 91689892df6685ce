"""States of a run on disk: each whole or not there, checked by hash, the newest few kept.

A state is a folder ``<number>`` with two files, tensors (safetensors) and facts (JSON), and a
manifest of their sizes and SHA-256. It is written under a temporary name, every file is synced,
the manifest last, and then renamed: a kill at any moment leaves what was there before. Nothing but
safetensors and JSON is ever opened, so a state cannot run code.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from forethought.checkpoints.folder import JSON, parse_json, printable
from forethought.checkpoints.save_folder import own_storage, sync_file, sync_folder, write_json
from forethought.errors import ModelError

FORMAT = 1
TENSORS = "tensors.safetensors"
FACTS = "facts.json"
MANIFEST = "manifest.json"
LATEST = "LATEST"
TEMPORARY = ".tmp-"
MAX_MANIFEST_BYTES = 64 << 10
_NUMBER = re.compile(r"[0-9]{8,}")


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1]
    number: int
    pinned: bool
    files: dict[str, _File]


@dataclass(frozen=True, slots=True)
class SavedState:
    """A verified state. ``facts`` are as they were saved; tensors are read when asked for."""

    number: int
    facts: Mapping[str, JSON]
    pinned: bool
    path: Path
    sha256: str
    """Of the file of tensors."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by name, on the CPU, in memory of their own (the file is not mapped).

        The very bytes that are parsed are checked against the manifest. Raises ModelError.
        """
        path = self.path / TENSORS
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != self.sha256:
                raise ModelError(f"{path} has changed since it was checked: resume once more.")
            tensors: dict[str, torch.Tensor] = load(data)
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:
            raise ModelError(f"{path} cannot be read ({printable(str(error), 200)}).") from None
        return tensors


class StateStore:
    """The states under ``folder``, one writer at a time (`RunFolder` holds the lock).

    Reading changes nothing on disk, so others may read while a run goes on. The ``keep`` newest
    verified states stay, and all that were pinned.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}: a run without a state cannot be resumed")
        self.folder = folder
        self.keep = keep
        self.passed_over: list[str] = []
        """Why `latest` did not take the states that are newer than the one it gave."""

    def numbers(self) -> list[int]:
        """The states that have their final name, whole or damaged, ascending."""
        if not self.folder.is_dir():
            return []
        names = [path.name for path in self.folder.iterdir() if _NUMBER.fullmatch(path.name)]
        return sorted(int(name) for name in names if name == self.path(int(name)).name)

    def path(self, number: int) -> Path:
        """Where the state of that number is or would be."""
        return self.folder / f"{number:08d}"

    def save(
        self,
        number: int,
        tensors: Mapping[str, torch.Tensor],
        facts: Mapping[str, JSON],
        *,
        pinned: bool = False,
    ) -> Path:
        """Store a state and remove those that are no longer kept; its folder.

        ``number`` is the step over the whole run and must exceed every verified one. Tensors may
        have any dtype, device and layout in memory, and may share it. Raises ModelError when the
        disk is full or fails (what was there before stays), ValueError for NaN among the facts.
        """
        later = [n for n in self.numbers() if n >= number and not isinstance(self._check(n), str)]
        if number < 0 or later:
            raise ValueError(f"state {number} cannot follow state {max(later, default=0)}")
        final = self.path(number)
        temporary, hint = _beside(final), self.folder / LATEST
        try:
            self._make_folder()
            self._remove_leftovers()
            _write_state(temporary, number, tensors, facts, pinned)
            # Whatever takes room on the disk comes before the state has its name.
            _write_text(_beside(hint), final.name + "\n")
            self._remove(number)
            temporary.rename(final)
            sync_folder(self.folder)
            _beside(hint).replace(hint)
            sync_folder(self.folder)
            self._retain(number)
        except (OSError, SafetensorError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise ModelError(
                f"The state of step {number} cannot be written to {self.folder} "
                f"({printable(reason, 200)}): make room on the disk and resume; earlier states "
                "are as they were."
            ) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            _beside(hint).unlink(missing_ok=True)
        return final

    def latest(self) -> SavedState | None:
        """The newest state whose files are all as its manifest says; None where there is none."""
        self.passed_over = []
        for number in reversed(self.numbers()):
            found = self._check(number)
            if not isinstance(found, str):
                return found
            self.passed_over.append(f"{self.path(number)}: {found}")
        return None

    def remove_after(self, number: int) -> None:
        """Remove every state above ``number``, whole or damaged. Raises ModelError."""
        try:
            self._remove_leftovers()
            for later in self.numbers():
                if later > number:
                    self._remove(later)
        except OSError as error:
            raise ModelError(
                f"{self.folder}: a damaged state cannot be removed ({error.strerror or error})."
            ) from None

    def _check(self, number: int) -> SavedState | str:
        """The verified state, or what is wrong with it."""
        path = self.path(number)
        try:
            manifest = _read_manifest(path)
            if manifest.number != number:
                return f"its manifest is that of state {manifest.number}"
            for name in (TENSORS, FACTS):
                promised = manifest.files[name]
                size = (path / name).stat().st_size
                if size != promised.bytes:
                    return f"{name} has {size} bytes instead of {promised.bytes}"
                if _sha256(path / name) != promised.sha256:
                    return f"{name} is not what was written (its SHA-256 differs)"
            facts = parse_json((path / FACTS).read_bytes(), str(path / FACTS))
        except OSError as error:
            return f"{Path(error.filename or path).name} cannot be read ({error.strerror or error})"
        except ModelError as error:
            return str(error)
        return SavedState(number, facts, manifest.pinned, path, manifest.files[TENSORS].sha256)

    def _make_folder(self) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            sync_folder(self.folder.parent)

    def _remove_leftovers(self) -> None:
        """What has a temporary name was left by a process that died: the writer is alone."""
        for path in list(self.folder.iterdir()) if self.folder.is_dir() else []:
            if TEMPORARY in path.name:
                _delete(path)

    def _retain(self, newest: int) -> None:
        """Keep ``newest``, which is whole, the next newest verified, and the pinned."""
        kept = 1
        for number in reversed([n for n in self.numbers() if n < newest]):
            if kept < self.keep and not isinstance(self._check(number), str):
                kept += 1
            elif not self._pinned(number):
                self._remove(number)

    def _pinned(self, number: int) -> bool:
        try:
            return _read_manifest(self.path(number)).pinned
        except (OSError, ModelError):
            return False

    def _remove(self, number: int) -> None:
        """Under a temporary name first: half a state never has a final name."""
        path = self.path(number)
        if path.exists():
            doomed = _beside(path.with_suffix(".old"))
            path.rename(doomed)
            _delete(doomed)


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by a synced file of that text: the old one or the new one, never half."""
    temporary = _beside(path)
    try:
        _write_text(temporary, text)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """The temporary name of this process for ``path``."""
    return path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}")


def _write_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode())
    sync_file(path)


def _write_state(
    folder: Path,
    number: int,
    tensors: Mapping[str, torch.Tensor],
    facts: Mapping[str, JSON],
    pinned: bool,
) -> None:
    folder.mkdir()
    save_file(_apart(tensors), folder / TENSORS)
    sync_file(folder / TENSORS)
    write_json(folder / FACTS, facts)
    files: dict[str, JSON] = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
        for name in (TENSORS, FACTS)
    }
    manifest: dict[str, JSON] = {
        "format": FORMAT,
        "number": number,
        "pinned": pinned,
        "files": files,
    }
    write_json(folder / MANIFEST, manifest)
    sync_folder(folder)


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors contiguous on the CPU, no two in the same memory: the format has no sharing."""
    found: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        own = own_storage(tensor)
        if own.data_ptr() in taken:
            own = own.clone()
        taken.add(own.data_ptr())
        found[name] = own
    return found


def _read_manifest(folder: Path) -> _Manifest:
    """Raises OSError, or ModelError with what is wrong."""
    with (folder / MANIFEST).open("rb") as stream:
        data = stream.read(MAX_MANIFEST_BYTES + 1)
    try:
        manifest = _Manifest.model_validate_json(data)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ModelError(f"{MANIFEST} is damaged ({where or 'no JSON'})") from None
    if manifest.files.keys() != {TENSORS, FACTS}:
        raise ModelError(f"{MANIFEST} is damaged (files)")
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
