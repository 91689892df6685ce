"""What the benchmarks of nano share: models of a run, held-out problems, sampling, statistics."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import torch

import _machine
import forethought
from forethought.engines.machine import cores, processor
from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.rollout import RolloutSample
from forethought.problems.adapters.adapters import Adapters
from forethought.problems.family import Family
from forethought.problems.problem import Problem
from forethought.problems.source import LevelledSource
from forethought.problems.stream import held_out_problems
from forethought.recipes.reading import LoadedRecipe
from forethought.recipes.recipe import Recipe
from forethought.recipes.run import evaluation_rows
from forethought.recipes.workshop import Workshop
from forethought.training.judge_pool import JudgePool
from forethought.training.judging import Judged
from forethought.training.policy import Policy

PROBLEM_SEED: Final = 20_260_101
"""Of the held-out problems: not those that a run's own evaluations look at."""
NOISE_SEED: Final = 0xF16


class Clock:
    """Seconds since it was made, and a limit on them."""

    def __init__(self, limit: float) -> None:
        self._began, self.limit = time.perf_counter(), limit

    @property
    def spent(self) -> float:
        return time.perf_counter() - self._began

    @property
    def left(self) -> float:
        return self.limit - self.spent


def machine() -> str:
    """One line: card or processor, versions, date; needs no package but torch."""
    if torch.cuda.is_available():
        where = f"{torch.cuda.get_device_name()}, {cores()[1]} CPU threads allowed"
    else:
        where = f"{processor()}, {cores()[1]} threads allowed"
    return (
        f"{where}; Python {platform.python_version()}, torch {torch.__version__}, forethought "
        f"{forethought.__version__}; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    )


def write_json(path: Path, figures: Mapping[str, Any]) -> None:
    """Whole or not at all: a kill leaves the file of before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.unfinished")
    beside.write_text(json.dumps(figures))
    beside.replace(path)


def save(name: str, out: Path, compact: dict[str, object], *, keep: bool) -> None:
    """The end of a benchmark: its JSON line, and all that was printed, beside ``out`` and (with
    ``keep``) in results/."""
    if keep:
        _machine.save(name, compact, machine())
    else:
        print(json.dumps({"benchmark": name, "machine": machine(), **compact}))
    out.with_suffix(".txt").write_text("".join(_machine._tee.parts))


def on_device(loaded: LoadedRecipe, device: str | None) -> LoadedRecipe:
    """The recipe on another device, if one is named; on a CPU in float32, since few have
    bfloat16's products."""
    if device is None:
        return loaded
    change = {"device": device} | ({"dtype": "float32"} if device == "cpu" else {})
    return with_recipe(loaded, loaded.recipe.model_copy(update=change))


def with_recipe(loaded: LoadedRecipe, recipe: Recipe) -> LoadedRecipe:
    return LoadedRecipe(recipe, loaded.folder, loaded.text, loaded.digest, loaded.source)


def workshop(loaded: LoadedRecipe, model: Path, adapters: Adapters) -> Workshop:
    """The parts of a run's recipe around the weights of a folder."""
    change = {"base": str(model.resolve()), "model": None}
    there = with_recipe(loaded, loaded.recipe.model_copy(update=change))
    torch.set_num_threads(loaded.recipe.threads or max(1, cores()[0]))
    return Workshop(there, model, adapters)


def rows_of(recipe: Recipe, rows: int | None) -> int:
    """Samples side by side: those asked for, else those of the run's evaluations."""
    return rows or evaluation_rows(recipe, recipe.device.partition(":")[0])


# Problems


def held_out(
    families: Sequence[LevelledSource], count: int, recipe: Recipe
) -> dict[str, list[Problem]]:
    """``count`` held-out problems of each family, the same for every model. Families that are
    ours are drawn side by side: call it before the first use of a GPU, since it forks."""
    problems = recipe.problems
    return _side_by_side(
        _held_out, [(one, count, problems.levels, problems.language) for one in families]
    )


def unseen(families: Sequence[LevelledSource], count: int) -> dict[str, list[Problem]]:
    """The first ``count`` problems of families that no training saw."""
    return _side_by_side(_first, [(one, count) for one in families])


def _side_by_side(
    draw: Callable[[Any], list[Problem]], arguments: Sequence[tuple[Any, ...]]
) -> dict[str, list[Problem]]:
    families = [of[0] for of in arguments]
    gpu_in_use = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if all(isinstance(one, Family) for one in families) and not gpu_in_use:
        with ProcessPoolExecutor(max(1, cores()[1]), get_context("fork")) as pool:
            drawn = list(pool.map(draw, arguments))
    else:
        drawn = [draw(one) for one in arguments]
    return {one.name: found for one, found in zip(families, drawn, strict=True)}


def _held_out(of: tuple[LevelledSource, int, dict[str, tuple[int, ...]], Any]) -> list[Problem]:
    family, count, levels, language = of
    return held_out_problems([family], count, PROBLEM_SEED, levels=levels, language=language)


def _first(of: tuple[LevelledSource, int]) -> list[Problem]:
    family, count = of
    return [family.problem(1, seed) for seed in range(count)]


def in_turn(problems: Mapping[str, Sequence[Problem]]) -> list[Problem]:
    """Family after family: whatever is cut off at the end, all are cut alike."""
    longest = max(map(len, problems.values()), default=0)
    return [own[at] for at in range(longest) for own in problems.values() if at < len(own)]


# Samples


@dataclass(frozen=True, slots=True)
class Answered:
    """A problem and its samples, as far as figures need them."""

    problem: Problem
    judged: tuple[Judged, ...]
    truncated: tuple[bool, ...]
    closed: tuple[bool, ...]
    """Whether the thought was closed."""
    tokens: tuple[int, ...]


class _OutOfTimeError(Exception):
    pass


def answers(
    policy: Policy,
    pool: JudgePool,
    problems: Sequence[Problem],
    n: int,
    sampling: SamplingParameters,
    max_tokens: int,
    *,
    rows: int,
    until: Callable[[], bool],
) -> list[Answered]:
    """``n`` samples of each problem through one batch; as many problems, from the first on, as
    were finished when ``until`` said so (heard of on CUDA alone: elsewhere it waits for all).

    Up to the first unfinished one, not all that are finished: these would be the short ones.
    """
    places: list[tuple[int, int]] = []
    kept: dict[tuple[int, int], tuple[bool, bool, int]] = {}
    end = policy.tokenizer.end_think_id

    def finished(problem: int, index: int, sample: RolloutSample) -> None:
        pool.submit(problems[problem], sample.ids)
        places.append((problem, index))
        kept[problem, index] = (sample.truncated, end in sample.ids, len(sample.ids))
        if len(places) % 64 == 0 and until():
            raise _OutOfTimeError

    # By position, so that the same problem has the same noise for every model.
    seeds = [(NOISE_SEED << 32) + at for at in range(len(problems))]
    with_time = True
    try:
        policy.sample(problems, n, seeds, sampling, max_tokens, rows=rows, on_finished=finished)
    except _OutOfTimeError:
        with_time = False
    judged = dict(zip(places, pool.results(), strict=True))
    found = []
    for at, problem in enumerate(problems):
        group = [(at, index) for index in range(n)]
        if any(place not in judged for place in group):
            break
        facts = [kept[place] for place in group]
        found.append(
            Answered(
                problem,
                tuple(judged[place] for place in group),
                tuple(one[0] for one in facts),
                tuple(one[1] for one in facts),
                tuple(one[2] for one in facts),
            )
        )
    assert not with_time or len(found) == len(problems)
    return found


# Statistics


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def mean_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and its standard error where each value is a problem's."""
    if len(values) < 2:
        return mean(values), float("nan")
    middle = mean(values)
    variance = sum((value - middle) ** 2 for value in values) / (len(values) - 1)
    return middle, math.sqrt(variance / len(values))


def over_families(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The mean of families' means; its error from theirs (families are fixed, problems drawn)."""
    count = max(1, len(parts))
    return mean([one[0] for one in parts]), math.sqrt(sum(one[1] ** 2 for one in parts)) / count


def ranks(values: Sequence[float]) -> list[float]:
    """From 1, ties share the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found, start = [0.0] * len(values), 0
    while start < len(order):
        stop = start
        while stop < len(order) and values[order[stop]] == values[order[start]]:
            stop += 1
        for at in order[start:stop]:
            found[at] = (start + stop + 1) / 2
        start = stop
    return found


def pearson(pairs: Sequence[tuple[float, float]]) -> float | None:
    """None where one side does not vary."""
    if len(pairs) < 3:
        return None
    x, y = mean([a for a, _ in pairs]), mean([b for _, b in pairs])
    xx = sum((a - x) ** 2 for a, _ in pairs)
    yy = sum((b - y) ** 2 for _, b in pairs)
    if xx <= 0 or yy <= 0:
        return None
    return sum((a - x) * (b - y) for a, b in pairs) / math.sqrt(xx * yy)


def centred(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Less the mean of each side: what is left of a family without what is its own."""
    x, y = mean([a for a, _ in pairs]), mean([b for _, b in pairs])
    return [(a - x, b - y) for a, b in pairs]


def ranked(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Ranks over their number, so that large families do not outweigh others."""
    count = max(1, len(pairs))
    sides = zip(ranks([a for a, _ in pairs]), ranks([b for _, b in pairs]), strict=True)
    return [(a / count, b / count) for a, b in sides]
