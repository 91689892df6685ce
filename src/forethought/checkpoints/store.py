"""What is on disk under the models folder.

One folder for each model with a readable name; in it plain GGUF files, and beside each model's
first file a small JSON manifest `<file>.json`. GGUF files that somebody put there by hand count
too. Everything that removes stays inside the root once links are followed (rule R2).
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from forethought import paths
from forethought.checkpoints import names
from forethought.errors import UserError

_LATER_PART = re.compile(r".*-(?!00001)\d{5}-of-\d{5}\.gguf")


@dataclass(frozen=True)
class Installed:
    """One model on disk.

    `path` is its (first) file, `files` the names of all its files in that folder, `size` their
    bytes together; `sha256` is of the first file, empty where nobody recorded it; `date` is when
    it came, in UTC as ISO 8601.
    """

    name: str
    path: Path
    size: int
    source: str
    quant: str | None = None
    sha256: str = ""
    license: str = ""
    date: str = ""
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Manifest:
    name: str
    source: str
    sha256: str
    size: int
    date: str
    quant: str | None
    license: str
    files: list[str]


def manifest_path(file: Path) -> Path:
    """The manifest beside a model's first file."""
    return file.with_name(file.name + ".json")


def record(
    path: Path,
    *,
    name: str,
    source: str,
    sha256: str,
    quant: str | None,
    license: str,
    files: tuple[str, ...] = (),
) -> Installed:
    """Write the manifest of a model that has just arrived; `path` is its first file."""
    # Only who writes a manifest needs the date: looking models up must stay fast.
    from datetime import UTC, datetime

    files = files or (path.name,)
    size = sum((path.parent / file).stat().st_size for file in files)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = _Manifest(name, source, sha256, size, date, quant, license, list(files))
    target = manifest_path(path)
    temporary = target.with_name(target.name + ".part")
    temporary.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    temporary.replace(target)
    return Installed(name, path, size, source, quant, sha256, license, date, files)


def _read(path: Path, root: Path) -> Installed:
    """The model whose first file is `path`; a manifest that makes no sense counts as absent."""
    stem = str(path.relative_to(root).with_suffix("")).replace("\\", "/")
    plain = Installed(stem, path, path.stat().st_size, "put here by hand", files=(path.name,))
    try:
        data: object = json.loads(manifest_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return plain
    if not isinstance(data, dict):
        return plain

    def text(key: str) -> str:
        value = data.get(key)
        return value if isinstance(value, str) else ""

    listed = data.get("files")
    files = [path.name]
    if isinstance(listed, list):
        with contextlib.suppress(UserError):
            files = [names.check_part(str(item)) for item in listed]
    size = sum(
        file.stat().st_size for file in (path.parent / item for item in files) if file.is_file()
    )
    return Installed(
        name=text("name") or stem,
        path=path,
        size=size,
        source=text("source"),
        quant=text("quant") or None,
        sha256=text("sha256"),
        license=text("license"),
        date=text("date"),
        files=tuple(files),
    )


def list_installed(root: Path | None = None) -> list[Installed]:
    """All models under the models folder, by name."""
    root = root or paths.models_dir()
    if not root.is_dir():
        return []
    found = [
        _read(path, root)
        for path in sorted([*root.glob("*.gguf"), *root.glob("*/*.gguf")])
        if path.is_file() and not _LATER_PART.fullmatch(path.name)
    ]
    return sorted(found, key=lambda item: (item.name, item.quant or ""))


def total_size(root: Path | None = None) -> int:
    """Bytes of all models on disk."""
    return sum(item.size for item in list_installed(root))


def find_installed(
    name: str, quant: str | None = None, file: str | None = None, root: Path | None = None
) -> Installed | None:
    """The model `name` on disk, of the given quantisation or file if one is named, else None.

    Only models whose files are all there count.
    """
    root = root or paths.models_dir()
    folder = root / names.folder_name(name)
    if not folder.is_dir():
        return None
    wanted = None if file is None else names.check_file(file).rsplit("/", 1)[-1]
    for path in sorted(folder.glob("*.gguf")):
        if not path.is_file() or _LATER_PART.fullmatch(path.name):
            continue
        item = _read(path, root)
        if not all((folder / other).is_file() for other in item.files):
            continue
        if wanted is not None and wanted not in item.files:
            continue
        if quant is None or (item.quant or "").upper() == quant.upper():
            return item
    return None


def remove(name: str, quant: str | None = None, root: Path | None = None) -> int:
    """Remove a model and its manifest (and what an unfinished download left); returns the bytes.

    Raises UserError if it is not on disk, and where a link leads out of the models folder.
    """
    root = root or paths.models_dir()
    items = [
        item
        for item in list_installed(root)
        if item.name == name and (quant is None or (item.quant or "").upper() == quant.upper())
    ]
    if not items:
        known = ", ".join(item.name for item in list_installed(root)) or "none"
        raise UserError(f"There is no model {name!r} on this disk; there are: {known}.")
    freed = 0
    for item in items:
        folder = names.inside(root, item.path.parent)
        doomed = [names.inside(root, folder / file) for file in item.files]
        for path in [*doomed, manifest_path(item.path)]:
            if path.is_file():
                freed += path.stat().st_size
                path.unlink()
        if folder != root:
            _tidy(folder)
    return freed


def _tidy(folder: Path) -> None:
    """Remove what unfinished downloads left, then the folder, unless a model still lives in it."""
    if any(folder.glob("*.gguf")):
        return
    for pattern in ("*.part", "*.part.json", "*.lock"):
        for path in folder.glob(pattern):
            path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()
