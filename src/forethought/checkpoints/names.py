"""The one place where names from elsewhere become paths on this disk (rules R1 and R2).

A name of a repository or a file that a server, a catalogue or a command line gives is checked
against a narrow alphabet, and against what Windows does with names, on every platform: a models
folder on a shared disk must mean the same everywhere.
"""

from __future__ import annotations

import re
from pathlib import Path

from forethought.errors import UserError

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}", re.ASCII)
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", re.ASCII)
# Windows opens the device, whatever the extension and the case.
_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$"]
    + [f"{port}{digit}" for port in ("com", "lpt") for digit in range(10)]
)


def _refuse(what: str, text: str) -> UserError:
    shown = text if len(text) <= 80 else text[:77] + "..."
    return UserError(
        f"{what} {shown!r} is not allowed: use letters, digits, '.', '_' and '-', starting with "
        "a letter or digit."
    )


def check_part(text: str, what: str = "The file name") -> str:
    """One component of a path; returns it unchanged.

    Raises UserError for separators, dots alone, drive letters, streams, device names, endings
    that Windows drops, and every character outside a small alphabet.
    """
    if (
        not _PART.fullmatch(text)
        or text.endswith(".")
        or ".." in text
        or text.split(".")[0].lower() in _DEVICES
    ):
        raise _refuse(what, text)
    return text


def check_repo(text: str) -> str:
    """An `owner/name` of the hub; returns it unchanged. Raises UserError for anything else."""
    owner, slash, name = text.partition("/")
    for part in (owner, name):
        if not slash or not _OWNER.fullmatch(part) or "--" in part:
            raise _refuse("The repository name", text)
        check_part(part, "The repository name")
    return text


def check_file(text: str) -> str:
    """A file inside a repository, with `/` between folders; returns it unchanged."""
    parts = text.split("/")
    if len(parts) > 8:
        raise _refuse("The file name", text)
    for part in parts:
        check_part(part)
    return text


def folder_name(name: str) -> str:
    """The folder of a model: `deepseek-r1:7b` -> `deepseek-r1-7b`, `org/repo` -> `org--repo`."""
    if "/" in name:
        return check_repo(name).replace("/", "--")
    return check_part(name.replace(":", "-"), "The model name")


def path_under(root: Path, name: str, remote_file: str) -> Path:
    """Where the file `remote_file` of the model `name` lives under `root`.

    Folders inside a repository are dropped: the parts of a split model lie side by side. Raises
    UserError for a hostile name, and where a symbolic link would lead out of `root`.
    """
    path = root / folder_name(name) / check_file(remote_file).rsplit("/", 1)[-1]
    return inside(root, path)


def inside(root: Path, path: Path) -> Path:
    """`path`, if it lies inside `root` once links are followed; else UserError."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"{path} leads out of the models folder {root} through a link: remove the link, or "
            "give the file's own path as the model."
        )
    return path
