"""A recipe as the one text that says everything: TOML, every default spelled out.

Two files that mean the same give the same text, whatever their order, comments and spelling of
numbers, so that its digest is the recipe's identity; reading the text gives the recipe back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from forethought.recipes.model_table import from_network
from forethought.recipes.recipe import Recipe

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def canonical_text(recipe: Recipe) -> str:
    """The TOML of ``recipe``; what is None is left out, and so is what `base` replaces."""
    return "\n".join(_table(canonical_values(recipe), ())).strip() + "\n"


def canonical_values(recipe: Recipe) -> dict[str, object]:
    """Everything that `canonical_text` writes, as plain nested data."""
    unused = {"model", "stages"} | ({"tokenizer"} if recipe.base is not None else set())
    values: dict[str, object] = recipe.model_dump(exclude=unused, exclude_none=True)
    # A stage begins with its kind, which says what its other keys mean.
    dumped = [stage.model_dump(exclude_none=True) for stage in recipe.stages]
    values["stages"] = [{"kind": stage["kind"], **stage} for stage in dumped]
    if recipe.model is not None:
        values["model"] = from_network(recipe.model)
    return values


def flat_values(recipe: Recipe) -> dict[str, bool | int | float | str]:
    """`canonical_values` by dotted key, stages numbered from 1, lists as their TOML: what a run's
    identity compares, key by key."""
    return dict(_flat(canonical_values(recipe), ""))


def _flat(values: object, path: str) -> Iterator[tuple[str, bool | int | float | str]]:
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    elif isinstance(values, list | tuple) and any(isinstance(item, Mapping) for item in values):
        for number, item in enumerate(values, 1):
            yield from _flat(item, f"{path}[{number}]")
    else:
        yield path, values if isinstance(values, bool | int | float | str) else _value(values)


def _table(values: Mapping[str, object], path: tuple[str, ...]) -> Iterator[str]:
    tables: list[tuple[str, Mapping[str, object]]] = []
    arrays: list[tuple[str, Sequence[Mapping[str, object]]]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            tables.append((key, value))
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            arrays.append((key, value))
        else:
            yield f"{_key(key)} = {_value(value)}"
    for key, table in tables:
        inner = (*path, key)
        yield f"\n[{'.'.join(map(_key, inner))}]"
        yield from _table(table, inner)
    for key, items in arrays:
        inner = (*path, key)
        for item in items:
            yield f"\n[[{'.'.join(map(_key, inner))}]]"
            yield from _table(item, inner)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _text(key)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    raise TypeError(f"no TOML for {type(value).__name__}")


def _text(text: str) -> str:
    # A JSON string is a basic string of TOML, but that TOML wants DEL escaped too.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
