"""Whether the levels of a recipe are a ladder that the curriculum of a stage can climb."""

from __future__ import annotations

from collections.abc import Sequence

from forethought.problems.source import LevelledSource
from forethought.recipes.mistakes import Mistake
from forethought.recipes.recipe import Recipe, stage_name
from forethought.training.config import RLConfig


def check_curricula(recipe: Recipe, families: Sequence[LevelledSource]) -> list[Mistake]:
    """Levels out of order, and ladders on which nothing could ever rise."""
    curricula = [
        (stage_name(number, stage.kind), stage.curriculum)
        for number, stage in enumerate(recipe.stages, 1)
        if isinstance(stage, RLConfig) and stage.curriculum is not None
    ]
    if not curricula:
        return []
    chosen = recipe.problems.levels
    mistakes: list[Mistake] = []
    for name, levels in chosen.items():
        rising = sorted(set(levels))
        if list(levels) != rising:
            text = (
                f"is {list(levels)}, and the curriculum of {curricula[0][0]} takes each level "
                f"once, the easiest first: write {rising}"
            )
            mistakes.append(Mistake(f"problems.levels.{name}", text))
    lengths = {one.name: len(chosen.get(one.name) or range(one.levels)) for one in families}
    longest, most = max(lengths.items(), key=lambda pair: pair[1])
    for where, curriculum in curricula:
        if curriculum.start_levels >= most:
            remedy = "lower it" if most > 1 else "give a family more in problems.levels"
            levels_text = "1 level" if most == 1 else f"{most} levels"
            text = (
                f"is {curriculum.start_levels}, and no family of the recipe has more than "
                f"{levels_text} ({longest}), so that none could ever open: {remedy}, or remove the "
                "curriculum"
            )
            mistakes.append(Mistake(f"{where}: curriculum.start_levels", text))
    return mistakes
