"""Families by name: the bundled ones, a person's own from a file, and other makers' problems."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from forethought.errors import UserError
from forethought.problems.adapters.adapters import Adapters, is_adapted
from forethought.problems.family import Family
from forethought.problems.own_code import own_module
from forethought.problems.source import LevelledSource

Setting: TypeAlias = "bool | int | float | str"

BUNDLED: Final = {
    "countdown": "countdown:Countdown",
    "game24": "game24:Game24",
    "chained_arithmetic": "chained_arithmetic:ChainedArithmetic",
    "linear_equations": "linear_equations:LinearEquations",
    "gcd_lcm": "gcd_lcm:GcdLcm",
    "base_conversion": "base_conversion:BaseConversion",
    "letter_counting": "letter_counting:LetterCounting",
    "sorting": "sorting:Sorting",
    "calendar_clock": "calendar_clock:CalendarClock",
    "number_sequences": "number_sequences:NumberSequences",
    "knights_knaves": "knights_knaves:KnightsKnaves",
    "family_relations": "family_relations:FamilyRelations",
    "word_problems": "word_problems:WordProblems",
    "sudoku4": "sudoku4:Sudoku4",
}
"""Name: file and class in `forethought.problems.families`. Imported when first used."""


def family(
    spec: str, *, folder: Path | None = None, settings: Mapping[str, Mapping[str, Setting]] = {}
) -> Family:
    """The family of a name, or of ``path/to/file.py:Class`` (relative to ``folder``).

    Other makers' problems are no families, since nobody works them out: `source` finds them too.
    ``settings``: fields to set, by the family's name. A file is the person's own code and is run.
    Raises UserError: an unknown name or field (with the nearest one), a value of another type or
    that the family refuses, a file or class that is not there or is no family.
    """
    if is_adapted(spec):
        raise UserError(f"{spec} brings no worked thoughts, so no documents can be made of it.")
    if ":" in spec:
        return _made(_from_file(spec, folder or Path()), spec, settings)
    place = BUNDLED.get(spec)
    if place is None:
        near = difflib.get_close_matches(spec, BUNDLED, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(BUNDLED)}."
        raise UserError(f"there is no problem family {spec!r}: {hint}")
    module, _, name = place.partition(":")
    found = importlib.import_module(f"forethought.problems.families.{module}")
    return _made(getattr(found, name), spec, settings)


def families(
    specs: Iterable[str],
    *,
    folder: Path | None = None,
    settings: Mapping[str, Mapping[str, Setting]] = {},
) -> list[Family]:
    """Several of them; UserError where two have the same name."""
    found = [family(spec, folder=folder, settings=settings) for spec in specs]
    _check_names(found)
    return found


def source(
    spec: str,
    adapters: Adapters,
    *,
    folder: Path | None = None,
    settings: Mapping[str, Mapping[str, Setting]] = {},
) -> LevelledSource:
    """What `family` finds, and by further names the problems of other makers:

    - ``reasoning-gym/chain_sum``: a family of reasoning-gym. Its levels are those of its
      curriculum; ``settings`` are its own, on top of each level.
    - ``gsm8k:train.jsonl``, ``math:train.jsonl``: a list in the form of GSM8K or of MATH, in a file
      (relative to ``folder``) or on the hub (``gsm8k:hf://OWNER/NAME/FILE``). It is called
      ``gsm8k/train``, ``math/train``: by its kind and its file. Levels are MATH's own.

    These are asked in English, never worked out, and graded in the sandboxes of ``adapters``. Held
    out is one in 16 by the text of the question, as of every family. Raises what `family` raises,
    and what `Adapters.source` does.
    """
    if is_adapted(spec):
        name = spec if ":" not in spec else f"{spec.partition(':')[0]}/{Path(spec).stem}"
        return adapters.source(spec, folder or Path(), settings.get(name, {}))
    return family(spec, folder=folder, settings=settings)


def sources(
    specs: Iterable[str],
    adapters: Adapters,
    *,
    folder: Path | None = None,
    settings: Mapping[str, Mapping[str, Setting]] = {},
) -> list[LevelledSource]:
    """Several of them; UserError where two have the same name."""
    found = [source(spec, adapters, folder=folder, settings=settings) for spec in specs]
    _check_names(found)
    return found


def _check_names(found: Sequence[LevelledSource]) -> None:
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two problem families are called {name!r}: give one another name.")


def _made(cls: type[Family], spec: str, settings: Mapping[str, Mapping[str, Setting]]) -> Family:
    """The family with its settings, or UserError."""
    own = settings.get(getattr(cls, "name", spec), {})
    known = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key, value in own.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}."
            raise UserError(f"{spec} has no setting {key!r}: {hint}")
        wanted = type(known[key].default)
        if wanted in (bool, int, float, str) and type(value) is not wanted:
            raise UserError(
                f"{spec}: {key} is {value!r}, and a value such as {known[key].default!r} is wanted."
            )
    try:
        return cls(**own)
    except TypeError as error:
        raise UserError(f"{spec} cannot be made ({error}).") from None


def _from_file(spec: str, folder: Path) -> type[Family]:
    file_text, _, name = spec.rpartition(":")
    path = (folder / file_text).resolve()
    if not path.is_file():
        raise UserError(f"{spec}: there is no file {path}; write path/to/file.py:Class.")
    module = own_module(path)
    cls = getattr(module, name, None)
    if not (isinstance(cls, type) and issubclass(cls, Family)):
        raise UserError(f"{path} has no class {name!r} that is a Family.")
    return cls
