"""Where forethought keeps its files.

`FORETHOUGHT_HOME` overrides everything with one folder; `FORETHOUGHT_MODELS` overrides the models
folder alone. Otherwise: the XDG base directories on Linux, `~/Library` on macOS, `%APPDATA%` and
`%LOCALAPPDATA%` on Windows. Nothing is created or read when this module is imported, and no
function here creates a folder: the one who writes does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from forethought.errors import UserError

APP = "forethought"


def expand(path_text: str) -> Path:
    """The path that a person wrote, ``~`` and ``~name`` replaced by that home.

    Raises UserError where there is no such home, or where no path can be written like that.
    """
    if "\0" in path_text:
        raise UserError(f"{path_text!r} has a NUL character, which no path can have.")
    try:
        return Path(path_text).expanduser()
    except RuntimeError:
        home = Path(path_text).parts[0]
        raise UserError(
            f"{path_text}: the home folder {home} is not known here; write the whole path, or "
            f"./{path_text} for a file of that name."
        ) from None


def _from_env(name: str) -> Path | None:
    """The absolute folder that a variable names, or None if it is unset or empty."""
    value = os.environ.get(name, "").strip()
    return expand(value).absolute() if value else None


def _xdg(name: str, fallback: str) -> Path:
    """An XDG base directory; relative values are ignored, as the specification asks."""
    value = os.environ.get(name, "")
    if value and Path(value).is_absolute():
        return Path(value)
    return Path.home() / fallback


def _windows(name: str, fallback: str) -> Path:
    value = os.environ.get(name, "")
    return Path(value) if value else Path.home() / "AppData" / fallback


def home_override() -> Path | None:
    """The folder in `FORETHOUGHT_HOME`, or None."""
    return _from_env("FORETHOUGHT_HOME")


def config_dir() -> Path:
    """The folder of the configuration file."""
    home = home_override()
    if home is not None:
        return home
    if sys.platform == "win32":
        return _windows("APPDATA", "Roaming") / APP
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / APP
    return _xdg("XDG_CONFIG_HOME", ".config") / APP


def config_file() -> Path:
    """The configuration file (it need not exist)."""
    return config_dir() / "config.toml"


def data_dir() -> Path:
    """The folder of things worth keeping: models, history."""
    home = home_override()
    if home is not None:
        return home
    if sys.platform == "win32":
        return _windows("LOCALAPPDATA", "Local") / APP
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / APP
    return _xdg("XDG_DATA_HOME", ".local/share") / APP


def models_dir() -> Path:
    """The folder under which every downloaded model lives (`FORETHOUGHT_MODELS` overrides)."""
    return _from_env("FORETHOUGHT_MODELS") or data_dir() / "models"


def cache_dir() -> Path:
    """The folder of things that can be made again."""
    home = home_override()
    if home is not None:
        return home / "cache"
    if sys.platform == "win32":
        return _windows("LOCALAPPDATA", "Local") / APP / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / APP
    return _xdg("XDG_CACHE_HOME", ".cache") / APP


def history_file() -> Path:
    """The line history of `forethought chat`."""
    return data_dir() / "chat_history"
