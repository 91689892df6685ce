"""``forethought paths``: where everything is, how large it is, and which variables there are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from forethought.cli import options
from forethought.cli.settings import (
    export_to_environment,
    load_settings,
    variables_table,
    warn_unknown_variables,
)
from forethought.cli.terminal import columns, print_json, show, size


def paths(
    variables: Annotated[
        bool,
        typer.Option(
            "--variables", help="List the settings instead: variable, key in config.toml, option."
        ),
    ] = False,
    as_json: options.AsJson = False,
) -> Callable[[], int]:
    """Show where everything is, with sizes, or list the settings.

    FORETHOUGHT_HOME moves all of them into one folder, FORETHOUGHT_MODELS the models alone.
    A setting is taken from its option, else its variable, else config.toml, else its default.
    """
    return lambda: run(variables=variables, as_json=as_json)


def run(*, variables: bool, as_json: bool) -> int:
    """Print the table; the exit code."""
    warn_unknown_variables()
    if variables:
        return _print_variables(as_json=as_json)
    export_to_environment(load_settings())
    entries = locations()
    if as_json:
        print_json(entries, indent=2, ascii_only=True)
        return 0

    rows = [
        [
            str(entry["name"]),
            size(int(str(entry["bytes"]))) if entry["exists"] else "-",
            str(entry["path"]),
        ]
        for entry in entries
    ]
    show(columns(rows, right=frozenset({1})))
    return 0


def locations() -> list[dict[str, object]]:
    """Every place: name, path, whether it exists, and the bytes in it."""
    from forethought import paths as places

    named = [
        ("config", places.config_file()),
        ("data", places.data_dir()),
        ("models", places.models_dir()),
        ("cache", places.cache_dir()),
        ("history", places.history_file()),
    ]
    return [
        {"name": name, "path": str(path), "exists": path.exists(), "bytes": used(path)}
        for name, path in named
    ]


def used(path: Path) -> int:
    """Bytes of a file, or of all files under a folder; links are not followed."""
    try:
        if path.is_file():
            return path.stat().st_size
    except OSError:
        return 0
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(Path(folder) / name).st_size
            except OSError:
                continue  # gone since it was listed
    return total


def _print_variables(*, as_json: bool) -> int:
    table = variables_table()
    if as_json:
        print_json(table, indent=2, ascii_only=True)
        return 0
    rows = [["variable", "config.toml", "option", "default", "what it does"]]
    rows += [
        [row["variable"], row["key"] or "-", row["flag"] or "-", row["default"] or "-", row["help"]]
        for row in table
    ]
    show(columns(rows))
    return 0
