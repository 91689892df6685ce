"""The folder of a training run as it can be read at any moment: under way, broken off or finished.

Needs no torch. A last line that is only half written is left out, as a run may be writing it;
anything else that is not what a run writes is refused with the file and the line.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from forethought.checkpoints.folder import CONFIG, JSON, printable
from forethought.checkpoints.hf_config import read_config
from forethought.checkpoints.network_tensors import ParameterCount, count_parameters
from forethought.errors import ForethoughtError, UserError
from forethought.training.monitor import FilmFrame
from forethought.training.run_files import CHECKPOINTS, DONE, FILM, METRICS, RECIPE, RUN, TIMINGS

NOTE_ISOLATED: Final = "isolated"
"""In an identity: whether other makers' verifiers ran in a sandbox (null where there are none). In
a line of a log, where it is false, it is a note and no number."""

Identity: TypeAlias = "Mapping[str, str | int | float | bool | None]"


class Row(NamedTuple):
    """One line of a log. ``values``: its finite numbers by name, what is null left out."""

    stage: str
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage. ``planned``: the steps that the recipe asks for, None where it does not say.

    ``steps`` are the lines of optimiser steps, ``evaluations`` those of held-out evaluations, in
    their order. Seconds are those of all steps, and of all evaluations; None without timings.
    """

    name: str
    planned: int | None
    steps: tuple[Row, ...]
    evaluations: tuple[Row, ...]
    seconds: float | None
    evaluation_seconds: float | None

    @property
    def done(self) -> int:
        """Optimiser steps done."""
        return max((row.step for row in self.steps), default=0)

    @property
    def tokens(self) -> int:
        """Tokens trained or sampled by its steps."""
        return round(sum(row.values.get("tokens", 0.0) for row in self.steps))


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run. ``identity`` is what it was made with, ``recipe`` its text ("" where that is gone),
    ``parameters`` is None until a checkpoint has been written."""

    path: Path
    identity: Identity
    finished: bool
    stages: tuple[StageRecord, ...]
    frames: tuple[FilmFrame, ...]
    recipe: str
    parameters: ParameterCount | None

    @property
    def name(self) -> str:
        """The name of the recipe."""
        return str(self.identity.get("recipe") or self.path.resolve().name)

    @property
    def evaluations(self) -> tuple[Row, ...]:
        """The held-out evaluations of all stages, in their order."""
        return tuple(row for stage in self.stages for row in stage.evaluations)


def read_run(path: Path) -> RunRecord:
    """The run in the folder ``path``.

    Raises UserError where there is no run, where nothing was logged yet, or a file is damaged.
    """
    if not (path / RUN).is_file():
        what = "holds no run" if path.is_dir() else "is no folder"
        raise UserError(f"{path} {what}: give the folder that `forethought train --out` wrote.")
    identity = _identity(path / RUN)
    rows = list(_rows(path / METRICS))
    if not rows:
        raise UserError(
            f"{path / METRICS} has no line yet: wait for the first step of the run, then report it."
        )
    timings = list(_rows(path / TIMINGS)) if (path / TIMINGS).exists() else None
    recipe = _text(path / RECIPE) if (path / RECIPE).exists() else ""
    return RunRecord(
        path=path,
        identity=identity,
        finished=(path / DONE).exists(),
        stages=_stages(rows, timings, _planned(recipe)),
        frames=tuple(_frames(path / FILM)) if (path / FILM).exists() else (),
        recipe=recipe,
        parameters=_parameters(path),
    )


def _stages(
    rows: list[Row], timings: list[Row] | None, planned: Mapping[str, int | None]
) -> tuple[StageRecord, ...]:
    def seconds(name: str, key: str) -> float | None:
        if timings is None:
            return None
        return sum(row.values.get(key, 0.0) for row in timings if row.stage == name)

    names = dict.fromkeys([*(row.stage for row in rows), *planned])
    steps: dict[str, list[Row]] = {name: [] for name in names}
    evaluations: dict[str, list[Row]] = {name: [] for name in names}
    for row in rows:
        (evaluations if "pass_at_1" in row.values else steps)[row.stage].append(row)
    return tuple(
        StageRecord(
            name,
            planned.get(name),
            tuple(steps[name]),
            tuple(evaluations[name]),
            seconds(name, "seconds"),
            seconds(name, "seconds/evaluation"),
        )
        for name in names
    )


def _planned(recipe: str) -> dict[str, int | None]:
    """The stages of a recipe by the names that logs have for them, with their steps."""
    try:
        stages = tomllib.loads(recipe).get("stages")
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}
    found: dict[str, int | None] = {}
    kinds: list[str] = []
    for stage in stages if isinstance(stages, list) else []:
        if not isinstance(stage, dict) or not isinstance(stage.get("kind"), str):
            return {}
        kind, steps = stage["kind"], stage.get("steps")
        kinds.append(kind)
        name = kind if kinds.count(kind) == 1 else f"{kind}-{kinds.count(kind)}"
        found[name] = steps if isinstance(steps, int) else None
    return found


def _parameters(path: Path) -> ParameterCount | None:
    """Of the model in the run's folder, or of the newest checkpoint between stages."""
    for folder in (path, *sorted((path / CHECKPOINTS).glob("*"), reverse=True)):
        if (folder / CONFIG).is_file():
            try:
                return count_parameters(read_config(folder))
            except ForethoughtError:
                continue
    return None


# -- files


def _identity(path: Path) -> Identity:
    try:
        content = _parsed(_text(path))
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read as JSON ({error}): put it back from a copy."
        ) from None
    identity = content.get("identity") if isinstance(content, dict) else None
    if not isinstance(identity, dict):
        raise UserError(f"{path} has no identity of a run: put it back from a copy.")
    return {key: value for key, value in identity.items() if not isinstance(value, (list, dict))}


def _rows(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        stage, step = line.get("stage"), line.get("step")
        if not isinstance(stage, str) or not _is_count(step):
            raise _damaged(path, number, "it has no stage and step")
        values: dict[str, float] = {}
        for key, value in line.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                if value is None or key == "stage" or key == NOTE_ISOLATED:
                    continue
                raise _damaged(path, number, f"{printable(key, 80)} is no number")
            if key != "step":
                values[key] = _finite(value, path, number, key)
        yield Row(stage, int(str(step)), values)


def _finite(value: float, path: Path, number: int, key: str) -> float:
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise _damaged(path, number, f"{printable(key, 80)} is not finite")
    return found


_KINDS: Final[Mapping[str, type]] = {"int": int, "str": str, "bool": bool}


def _frames(path: Path) -> Iterator[FilmFrame]:
    for number, line in _lines(path):
        values = {field.name: line.get(field.name) for field in fields(FilmFrame)}
        for field in fields(FilmFrame):
            value = values[field.name]
            if type(value) is not _KINDS[str(field.type)]:
                raise _damaged(path, number, f"{field.name} is missing, or not what a film has")
            if field.type == "int" and not _is_count(value):
                raise _damaged(path, number, f"{field.name} is below 0 or absurdly large")
        yield FilmFrame(**values)  # type: ignore[arg-type]  # checked field by field above


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def _lines(path: Path) -> Iterator[tuple[int, dict[str, JSON]]]:
    """The objects of a JSON lines file with the numbers of their lines."""
    for number, line in enumerate(_text(path, whole_lines=True).split("\n")[:-1], 1):
        try:
            found = _parsed(line)
        except ValueError as error:
            raise _damaged(path, number, str(error)) from None
        if not isinstance(found, dict):
            raise _damaged(path, number, "it is no JSON object")
        yield number, found


def _damaged(path: Path, number: int, why: str) -> UserError:
    return UserError(
        f"Line {number} of {path} is not what a run writes ({why}): put the file back from a copy."
    )


def _text(path: Path, *, whole_lines: bool = False) -> str:
    """The text of a file; with ``whole_lines`` up to its last newline, so that a line (or half a
    character) that is being written is not met."""
    try:
        data = path.read_bytes()
        return (data[: data.rfind(b"\n") + 1] if whole_lines else data).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: put it back from a copy.") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}): put it back from a copy, or "
            "report another run."
        ) from None


def _parsed(text: str) -> JSON:
    """Raises ValueError that says what is wrong."""
    try:
        found: JSON = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")
