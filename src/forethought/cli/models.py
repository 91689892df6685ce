"""``forethought models``: the catalogue, and what is on disk."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forethought.cli import options
from forethought.cli.settings import export_to_environment, load_settings, warn_unknown_variables
from forethought.cli.terminal import (
    can_ask,
    columns,
    confirm,
    is_terminal,
    note,
    print_json,
    require,
    size,
)
from forethought.cli.terminal import show as show_text
from forethought.cli.usage import PlainCommand, PlainGroup
from forethought.errors import ForethoughtError, UserError

if TYPE_CHECKING:
    from forethought.checkpoints.bundled import Card
    from forethought.checkpoints.catalogue import Entry
    from forethought.checkpoints.store import Installed

DEFAULT_CONTEXT = 4096
"""Tokens of context that a table of memory is for, where nobody says another number."""

models = typer.Typer(
    cls=PlainGroup,
    help="See, download and remove models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Name = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A catalogue name, a GGUF file, a Hugging Face folder, or hf://org/repo[:file].",
    ),
]
Ctx = Annotated[
    int | None,
    typer.Option(
        "--ctx",
        help=f"Context length that the memory is for (default {DEFAULT_CONTEXT}).",
        metavar="N",
    ),
]


@models.command("list", cls=PlainCommand)
def list_(
    ctx: Ctx = None,
    installed: Annotated[
        bool, typer.Option("--installed", help="Only what is on this disk.")
    ] = False,
    as_json: options.AsJson = False,
) -> Callable[[], int]:
    """List the catalogue and what is on disk: size, memory needed, whether it thinks, licence.

    A size and the memory are known for models on disk only, from their own header.
    """
    return lambda: _list(ctx, only_installed=installed, as_json=as_json)


@models.command("pull", cls=PlainCommand)
def pull(
    name: Name, yes: options.Yes = False, as_json: options.AsJson = False
) -> Callable[[], int]:
    """Download a model, after saying what it is and how large. A broken download goes on."""
    return lambda: _pull(name, yes=yes, as_json=as_json)


@models.command("show", cls=PlainCommand)
def show(
    name: Name,
    ctx: Ctx = None,
    params: Annotated[
        bool,
        typer.Option(
            "--params",
            help="Show its network instead: shape, parameters, cache, memory, GGUF sizes.",
        ),
    ] = False,
    as_json: options.AsJson = False,
) -> Callable[[], int]:
    """Show everything known about one model, without loading it."""
    return lambda: _show(name, ctx, params=params, as_json=as_json)


@models.command("export", cls=PlainCommand)
def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A Hugging Face folder, a GGUF file, or the name of an installed model.",
        ),
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="A new file that ends in .gguf, or else a new folder."
        ),
    ],
    quantize: Annotated[
        str | None,
        typer.Option(
            "--quantize",
            help="How a GGUF holds the weights (default: f16).",
            metavar="f32|f16|bf16|q8_0|q4_0|q5_0",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="How a folder holds the weights (default: as the GGUF does, quantised ones as "
            "float32).",
            metavar="float32|bfloat16|float16",
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> Callable[[], int]:
    """Convert a Hugging Face folder to a GGUF file, or a GGUF file to a folder.

    \b
      forethought models export ./my-model my-model.gguf --quantize q8_0
      forethought models export my-model.gguf ./my-model

    A GGUF is checked against llama.cpp's own tokenizer first, and what llama.cpp would compute
    otherwise is refused. The target gets its name when it is whole. Needs the extra train.
    """

    def convert() -> int:
        from forethought.cli.export import run

        _prepare()
        return run(source, target, quantize, dtype, as_json=as_json)

    return convert


@models.command("rm", cls=PlainCommand)
def rm(
    name: Annotated[
        str, typer.Argument(metavar="MODEL", help="The name that `models list` shows.")
    ],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Remove without asking.")] = False,
    as_json: options.AsJson = False,
) -> Callable[[], int]:
    """Remove a model from disk."""
    return lambda: _rm(name, yes=yes, as_json=as_json)


def _prepare() -> None:
    export_to_environment(load_settings())
    warn_unknown_variables()


def _context(ctx: int | None) -> int:
    chosen = load_settings({"context": ctx}).integer("context")
    return DEFAULT_CONTEXT if chosen is None else chosen


def _print_json(value: object) -> None:
    print_json(value, indent=2)


# -- list


def _list(ctx: int | None, *, only_installed: bool, as_json: bool) -> int:
    from forethought.checkpoints import bundled
    from forethought.checkpoints.catalogue import catalogue
    from forethought.checkpoints.store import list_installed

    _prepare()
    context = _context(ctx)
    on_disk = list_installed()
    rows = []
    known: set[Path] = set()
    for entry in catalogue().entries:
        if bundled.source_of(entry) is not None:
            rows.append(_bundled_row(entry, context))
            continue
        copies = [item for item in on_disk if item.name == entry.name]
        known.update(item.path for item in copies)
        if copies:
            rows += [_entry_row(entry) | _disk_row(item, context) for item in copies]
        elif not only_installed:
            rows.append(_entry_row(entry))
    rows += [
        _blank_row(item.name) | _disk_row(item, context)
        for item in on_disk
        if item.path not in known
    ]
    if as_json:
        _print_json({"context": context, "models": rows})
    else:
        _print_table(rows, context)
    return 0


def _blank_row(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "description": None,
        "thinks": None,
        "license": None,
        "installed": False,
        "quant": None,
        "size_bytes": None,
        "memory_bytes": None,
        "path": None,
        "source": None,
        "sources": [],
    }


def _entry_row(entry: Entry) -> dict[str, Any]:
    from dataclasses import asdict

    row = _blank_row(entry.name)
    row |= {
        "description": entry.description,
        "thinks": entry.thinks,
        "license": entry.license,
        "quant": entry.sources[0].quant if entry.sources else None,
        "sources": [asdict(source) for source in entry.sources],
    }
    return row


def _bundled_row(entry: Entry, context: int) -> dict[str, Any]:
    from forethought.checkpoints import bundled

    row = _entry_row(entry)
    try:
        found = bundled.find(entry)
    except ForethoughtError as error:
        return row | {"installed": True, "problem": str(error)}
    assert found is not None
    return row | _disk_row(found, context)


def _disk_row(item: Installed, context: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "installed": True,
        "quant": item.quant,
        "size_bytes": item.size,
        "memory_bytes": None,
        "path": str(item.path),
        "source": item.source or None,
    }
    if item.license:
        row["license"] = item.license
    try:
        facts = header_facts(item.path, context)
    except ForethoughtError as error:
        # one damaged file must not hide the others
        row["problem"] = str(error)
        return row
    row["memory_bytes"] = facts["memory_bytes"]
    row["quant"] = item.quant or facts["quant"]
    return row


def header_facts(path: Any, context: int) -> dict[str, Any]:
    """What a GGUF header says, and the memory the model takes at ``context`` tokens, or at as many
    as it was trained for."""
    from forethought.checkpoints.gguf_header import read_header
    from forethought.checkpoints.gguf_memory import memory_needed

    header = read_header(path)
    limit = header.context_length
    context = min(context, limit) if limit else context
    need = memory_needed(header, context)
    return {
        "architecture": header.architecture,
        "quant": header.quantisation,
        "parameters": header.parameter_count,
        "layers": header.block_count,
        "vocabulary": header.vocabulary_size,
        "trained_context": limit,
        "chat_template": header.chat_template is not None,
        "context": context,
        "memory_bytes": need.total,
        "memory": {"weights": need.weights, "cache": need.cache, "compute": need.compute},
    }


def _print_table(rows: list[dict[str, Any]], context: int) -> None:
    head = ["name", "on disk", "memory", "quant", "thinks", "licence", "what it is"]
    cells = [
        [
            row["name"],
            size(row["size_bytes"]) if row["installed"] else "-",
            "damaged"
            if "problem" in row
            else size(row["memory_bytes"])
            if row["installed"]
            else "-",
            row["quant"] or "-",
            row["thinks"] or "-",
            row["license"] or "-",
            row["description"] or row["path"] or "",
        ]
        for row in rows
    ]
    if is_terminal(sys.stdout):
        _draw_table(head, cells)
    else:
        show_text(columns([head, *cells], right=frozenset({1, 2})))
    note(
        f"Memory is for a context of {context} tokens (--ctx), or all a model was trained for. "
        "forethought models pull NAME downloads one."
    )


def _draw_table(head: list[str], cells: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from forethought.cli.terminal import visible

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, title in enumerate(head):
        # the last column gives way on a narrow terminal; names must stay whole to be typed
        last = index == len(head) - 1
        table.add_column(
            title,
            justify="right" if index in (1, 2) else "left",
            no_wrap=not last,
            ratio=1 if last else None,
        )
    for row in cells:
        style = "dim" if row[1] == "-" else ""
        table.add_row(*(Text(visible(cell)) for cell in row), style=style)
    Console(highlight=False).print(table)


# -- show

_HIDDEN = ("size_bytes", "memory_bytes", "memory_dtype", "context")
"""What other lines of the table say better."""
_TABLES = ("shape", "figures")
"""What takes a line for each of its entries."""


def _show(name: str, ctx: int | None, *, params: bool, as_json: bool) -> int:
    from forethought.checkpoints import bundled
    from forethought.cli.on_disk import in_catalogue, where_is

    _prepare()
    context = _context(ctx)
    known = in_catalogue(name)
    card = None
    if known is not None:
        bundled.verify(known.entry, known.quant)
        card = bundled.card_of(known.entry)
    place = where_is(name)
    row = _described(name, place)
    if card is not None and not params:
        row |= _card_row(card)
    if params:
        from forethought.cli.network import show_params

        if place["path"] is None:
            raise UserError(place["note"])
        require(ctx is None, "--params is for every context: leave out --ctx.")
        return show_params(row["name"], Path(place["path"]), as_json=as_json)
    if place["path"] is not None:
        path = Path(place["path"])
        if path.is_dir():
            from forethought.cli.network import folder_facts

            row |= folder_facts(path, context)
        else:
            row |= header_facts(path, context)
    if as_json:
        _print_json(row)
        return 0
    if row["installed"]:
        kind = f" as {row['memory_dtype']}" if "memory_dtype" in row else ""
        held = row["context"]
        row["memory"] = f"{size(row['memory_bytes'])}{kind} at a context of {held} tokens"
        row["size"] = size(row["size_bytes"])
    lines = []
    for key, value in row.items():
        if value in (None, [], "") or key in _HIDDEN:
            continue
        if key in _TABLES:
            lines += [[f"{key}: {name}", _shown(one)] for name, one in value.items()]
        else:
            lines.append([key.replace("_", " "), _shown(value)])
    show_text(columns(lines))
    return 0


def _card_row(card: Card) -> dict[str, Any]:
    """What made a bundled model and what it reached; its file has been read and is whole."""
    return {
        "verified": True,
        "shape": dict(card.shape),
        "recipe": card.recipe,
        "recipe_digest": card.recipe_digest,
        "seed": card.seed,
        "commit": card.commit,
        "families": list(card.families),
        "languages": list(card.languages),
        "figures": dict(card.figures),
    }


def _described(name: str, place: dict[str, Any]) -> dict[str, Any]:
    from forethought.checkpoints.catalogue import match

    try:
        row = _entry_row(match(name)[0])
    except UserError:
        # not of the catalogue: a file, or a model that was pulled from elsewhere
        if place["path"] is None:
            raise UserError(place["note"]) from None
        row = _blank_row(place["name"])
    if place["path"] is not None:
        row |= {
            "installed": True,
            "path": str(place["path"]),
            "size_bytes": place["size_bytes"],
            "source": place["source"],
            "sha256": place["sha256"],
        }
    return row


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return "; ".join(_part(item) for item in value)
    return str(value)


def _part(item: object) -> str:
    """One of a list: a source in a few words, or a text."""
    if not isinstance(item, dict):
        return str(item)
    keys = ("repo", "package", "file", "version", "quant")
    return " ".join(str(item[key]) for key in keys if key in item)


# -- pull and rm


def _pull(name: str, *, yes: bool, as_json: bool) -> int:
    from forethought.checkpoints.resolve import resolve
    from forethought.cli.fetching import permission
    from forethought.cli.on_disk import where_is

    _prepare()
    policy, bar = permission(yes=yes)
    try:
        found = resolve(name, download=policy, progress=bar, report=note)
    finally:
        if bar is not None:
            bar.close()
    if found.path is None:
        raise UserError(f"{name} is a server: there is nothing to download.")
    place = where_is(name)
    if as_json:
        _print_json(_described(name, place))
    else:
        note(f"{found.name} is at {found.path} ({size(place['size_bytes'])}).")
    return 0


def _rm(name: str, *, yes: bool, as_json: bool) -> int:
    from forethought.checkpoints import bundled
    from forethought.checkpoints.catalogue import match
    from forethought.checkpoints.store import list_installed, remove
    from forethought.cli.on_disk import in_catalogue

    _prepare()
    wanted, quant = name, None
    items = [item for item in list_installed() if item.name == name]
    if not items:
        try:
            entry, quant = match(name)
            wanted = entry.name
        except UserError:
            pass  # remove() says which names there are
        items = [
            item
            for item in list_installed()
            if item.name == wanted and (quant is None or (item.quant or "").upper() == quant)
        ]
    own = in_catalogue(name)
    if not items and own is not None and bundled.source_of(own.entry) is not None:
        raise UserError(
            f"{own.entry.name} comes with forethought and is part of it: it goes when "
            "forethought is uninstalled."
        )
    if items and not yes:
        total = size(sum(item.size for item in items))
        if not can_ask():
            raise UserError(
                f"rm would remove {wanted} ({total}) and there is no terminal to ask. "
                f"Run: forethought models rm {name} --yes"
            )
        if not confirm(f"Remove {wanted} ({total}) from {items[0].path.parent}?"):
            note("Nothing was removed.")
            return 1
    freed = remove(wanted, quant)
    if as_json:
        _print_json({"name": wanted, "quant": quant, "freed_bytes": freed})
    else:
        note(f"Removed {wanted}: {size(freed)} are free again.")
    return 0
