"""The model that comes with forethought: a GGUF in `zoo`, and its card, a JSON file beside it.

It is read where it lies: no network, no copy in the models folder. The card has the file's size and
SHA-256. Size and first bytes are looked at whenever the model is used; the hash, which takes tens
of milliseconds, only by `verify`. `benchmarks/data/release_nano.py` writes both files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias, cast

from forethought.checkpoints.catalogue import BundledSource, Entry
from forethought.checkpoints.gguf_header import MAGIC
from forethought.checkpoints.store import Installed
from forethought.errors import ModelError, UserError

ZOO: Final = Path(__file__).parents[1] / "zoo"
FORMAT: Final = 1
SOURCE: Final = "comes with forethought"

Figure: TypeAlias = int | float | str
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Card(NamedTuple):
    """What is known of a bundled model. `shape`: keys of Hugging Face's config.json; `commit`: of
    the source that trained it; `figures`: what it was measured to reach, by name; `families`: the
    problems that it knows; `size` in bytes and `sha256` (hex): of the GGUF."""

    name: str
    parameters: int
    shape: Mapping[str, Figure]
    recipe: str
    recipe_digest: str
    seed: int
    commit: str
    families: tuple[str, ...]
    languages: tuple[str, ...]
    size: int
    sha256: str
    figures: Mapping[str, Figure]


def source_of(entry: Entry) -> BundledSource | None:
    """Where the model is in `zoo`, None for a model that is not bundled."""
    for source in entry.sources:
        if isinstance(source, BundledSource):
            return source
    return None


def card_of(entry: Entry) -> Card | None:
    """The card of a bundled model, None for any other. Raises ModelError where it is damaged."""
    source = source_of(entry)
    return None if source is None else _read_card(entry.name, source)


def find(entry: Entry, quant: str | None = None) -> Installed | None:
    """The bundled model as one that is installed, None for a model that is not bundled.

    Raises UserError for a quantisation that it does not come in, ModelError where a file is
    missing, is damaged, or has another size than its card says.
    """
    source = source_of(entry)
    if source is None:
        return None
    if quant is not None and quant.upper() != source.quant:
        raise UserError(
            f"{entry.name} comes as {source.quant} only, not as {quant}: leave that out."
        )
    card = _read_card(entry.name, source)
    path = ZOO / source.file
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            magic = stream.read(len(MAGIC))
    except OSError as error:
        raise _damaged(entry.name, path, str(error.strerror)) from None
    if size != card.size:
        raise _damaged(entry.name, path, f"{size} bytes instead of {card.size}")
    if magic != MAGIC:
        raise _damaged(entry.name, path, "it does not begin as a GGUF file does")
    return Installed(
        name=entry.name,
        path=path,
        size=size,
        source=SOURCE,
        quant=source.quant,
        sha256=card.sha256,
        license=entry.license,
        files=(path.name,),
    )


def verify(entry: Entry, quant: str | None = None) -> Installed | None:
    """`find`, and the whole file is read: ModelError where its SHA-256 is not that of the card."""
    found = find(entry, quant)
    if found is not None:
        # here: it loads OpenSSL, and most uses never verify
        import hashlib

        try:
            with found.path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise _damaged(entry.name, found.path, str(error.strerror)) from None
        if digest != found.sha256:
            raise _damaged(entry.name, found.path, f"SHA-256 {digest}, not {found.sha256}")
    return found


def _damaged(name: str, path: Path, why: str) -> ModelError:
    return ModelError(
        f"{name}, which comes with forethought, is damaged ({path}: {why}): install "
        "forethought again, or choose another model with -m."
    )


def _read_card(name: str, source: BundledSource) -> Card:
    path = (ZOO / source.file).with_suffix(".json")
    try:
        return read_card(path.read_bytes())
    except OSError as error:
        raise _damaged(name, path, str(error.strerror)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(name, path, f"not a card: {error}") from None


def read_card(data: bytes) -> Card:
    """The card in a JSON file. Raises ValueError, KeyError or TypeError where it is none."""
    record: object = json.loads(data)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"it has no format {FORMAT}")
    card = Card(
        name=_text(record["name"]),
        parameters=_count(record["parameters"]),
        shape=_figures(record["shape"]),
        recipe=_text(record["recipe"]),
        recipe_digest=_hash(record["recipe_digest"]),
        seed=_count(record["seed"]),
        commit=_text(record["commit"]),
        families=_texts(record["families"]),
        languages=_texts(record["languages"]),
        size=_count(record["size"]),
        sha256=_hash(record["sha256"]),
        figures=_figures(record["figures"]),
    )
    if not card.families:
        raise ValueError("families is empty")
    return card


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{value!r} is no text")
    return value


def _hash(value: object) -> str:
    if _SHA256.fullmatch(_text(value)) is None:
        raise ValueError(f"{value!r} is no SHA-256")
    return _text(value)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is no whole number")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return tuple(_text(one) for one in value)


def _figures(value: object) -> dict[str, Figure]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is no object")
    for one in value.values():
        if not isinstance(one, int | float | str):
            raise TypeError(f"{one!r} is no figure")
    return cast("dict[str, Figure]", value)
