"""What pydantic refuses, as sentences that name the key, what it is, and what it should be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ValidationError

from forethought.checkpoints.folder import printable
from forethought.recipes.recipe import STAGE_KINDS, nearest_of, stage_name

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Location = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Mistake:
    """``key`` is dotted, "" for the whole file; ``text`` goes on after it, without a full stop."""

    key: str
    text: str

    def __str__(self) -> str:
        if not self.key or self.text.startswith((" ", ":")):
            return f"{self.key}{self.text.removeprefix(': ') if not self.key else self.text}"
        return f"{self.key} {self.text}"


def one_sentence(where: str, mistakes: Sequence[Mistake]) -> str:
    """The first mistake of the file ``where``, and how many more there are."""
    text = printable(str(mistakes[0]), 900)
    others = len(mistakes) - 1
    more = f" (and {others} more)" if others else ""
    stop = "?" if text.endswith("?") else "."
    return f"{where}: {text.removesuffix('?')}{more}{stop}"


def of_validation(
    error: ValidationError, model: type[BaseModel], prefix: Location = ()
) -> list[Mistake]:
    """The mistakes of one `ValidationError` of ``model``, whose keys lie below ``prefix``."""
    found: list[Mistake] = []
    unknown: list[Mistake] = []
    meant: set[str] = set()
    for detail in error.errors(include_url=False):
        location = (*prefix, *detail["loc"])
        if detail["type"] != "extra_forbidden":
            found.append(Mistake(dotted(location), _text(detail)))
            continue
        known = _keys_beside(detail["loc"], model)
        hint = nearest_of(str(location[-1]), known)
        meant.update(dotted((*location[:-1], key)) for key in known if hint.endswith(f" {key}?"))
        unknown.append(Mistake(dotted(location), f"is an unknown key; {hint}"))
    # A misspelt key is one mistake, not two: what it is and what is missing for it.
    return unknown + [one for one in found if one.key not in meant or one.text != _MISSING]


def dotted(location: Location) -> str:
    """``stages[2] (rl): loss.kl_weight`` for ("stages", 1, "rl", "loss", "kl_weight")."""
    parts = list(location)
    head = ""
    if len(parts) > 1 and parts[0] == "stages" and isinstance(parts[1], int):
        number = parts[1] + 1
        kind = parts[2] if len(parts) > 2 and parts[2] in STAGE_KINDS else None
        head = f"stages[{number}]" if kind is None else stage_name(number, str(kind))
        parts = parts[2 if kind is None else 3 :]
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part + 1}]"
        elif part != "[key]":
            text += f".{part}" if text else part
    return f"{head}: {text}" if head and text else head or text


def value_text(value: object) -> str:
    """A value as the file spells it, or nearly, and not too long."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, tuple):
        value = list(value)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        text = str(value)  # inf and nan as TOML has them, dates
    return text if len(text) <= 60 else text[:57] + "..."


_MISSING: Final = "is missing; it has no default, so the file must say it"
_WANTED: Final[Mapping[str, str]] = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text in quotes",
    "bool_type": "true or false",
    "tuple_type": "a list, [...]",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
_BOUNDS: Final[Mapping[str, str]] = {
    "greater_than": "above {gt:.16g}",
    "greater_than_equal": "at least {ge:.16g}",
    "less_than": "below {lt:.16g}",
    "less_than_equal": "at most {le:.16g}",
}


def _text(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    shown = f"is {value_text(detail['input'])}"
    if kind == "value_error":
        return f": {detail['msg'].removeprefix('Value error, ')}"
    if kind == "missing":
        return _MISSING
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return _stage_kind(detail["input"])
    if kind == "literal_error":
        return f"{shown}; it must be {context['expected']}"
    if kind in ("too_short", "string_too_short"):
        return "is empty; name at least one" if kind == "too_short" else "is empty; write a text"
    if kind == "string_pattern_mismatch":
        return f"{shown}; it must be cpu, cuda or cuda:N"
    if kind in _BOUNDS:
        return f"{shown}; it must be {_BOUNDS[kind].format(**context)}"
    if kind in _WANTED:
        return f"{shown}; it must be {_WANTED[kind]}"
    message = detail["msg"]
    return f"{shown}: {message[:1].lower()}{message[1:]}"


def _stage_kind(stage: object) -> str:
    kind = stage.get("kind") if isinstance(stage, Mapping) else None
    if kind is None:
        return f": kind is missing; there are {', '.join(STAGE_KINDS)}"
    return f": kind is {value_text(kind)}; {nearest_of(str(kind), STAGE_KINDS)}"


def _keys_beside(location: Location, model: type[BaseModel]) -> list[str]:
    """The keys of the table that the last part of ``location`` stands in."""
    tables: list[type[BaseModel]] = [model]
    for part in location[:-1]:
        if isinstance(part, str):
            tables = [found for table in tables for found in _inside(table, part)]
    return list(dict.fromkeys(key for table in tables for key in table.model_fields))


def _inside(table: type[BaseModel], part: str) -> list[type[BaseModel]]:
    """The classes of ``table``'s field ``part``; for a stage's kind the class of that kind."""
    field = table.model_fields.get(part)
    if field is not None:
        return list(_models(field.annotation))
    kind = table.model_fields.get("kind")
    return [table] if kind is not None and kind.default == part else []


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)
