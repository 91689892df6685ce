"""Endless problems of several families: the n-th is a function of (seed, n), so that a cursor is
one number and a run can go on where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from forethought.errors import UserError
from forethought.problems.family import Family
from forethought.problems.problem import Language, Problem

_TRIES = 10_000


class ProblemStream:
    """Problems for training: families in turn by weight, every level of a family equally often.

    ``levels`` restricts a family to some of its levels, by name. Problems that are held out never
    come (``held_out`` turns that round: then nothing else does). Raises UserError for a level that
    the family lacks or a weight that is not positive.
    """

    def __init__(
        self,
        families: Sequence[Family],
        seed: int,
        *,
        levels: dict[str, tuple[int, ...]] | None = None,
        weights: dict[str, float] | None = None,
        language: Language | None = None,
        held_out: bool = False,
    ) -> None:
        if not families:
            raise UserError("no problem family was named; name at least one.")
        self._seed = seed
        self._language = language
        self._held_out = held_out
        self._families = list(families)
        self._levels: list[tuple[int, ...]] = []
        self._weights: list[float] = []
        for one in families:
            chosen = (levels or {}).get(one.name) or tuple(range(1, one.levels + 1))
            for level in chosen:
                if not 1 <= level <= one.levels:
                    raise UserError(
                        f"{one.name} has no level {level}: its levels are 1 to {one.levels}."
                    )
            weight = (weights or {}).get(one.name, 1.0)
            if not weight > 0:
                raise UserError(f"the weight of {one.name} is {weight}; it must be above 0.")
            self._levels.append(tuple(chosen))
            self._weights.append(weight)

    def __getitem__(self, index: int) -> Problem:
        """The problem number ``index`` (from 0)."""
        rng = Random((self._seed << 40) ^ index)
        at = rng.choices(range(len(self._families)), self._weights)[0]
        one, levels = self._families[at], self._levels[at]
        for _ in range(_TRIES):
            level = levels[rng.randrange(len(levels))]
            problem = one.problem(level, rng.getrandbits(48), self._language)
            if problem.held_out == self._held_out:
                return problem
        raise UserError(
            f"{one.name} has too few problems: none of {_TRIES} draws was "
            f"{'' if self._held_out else 'not '}held out."
        )


def held_out_problems(
    families: Sequence[Family],
    count: int,
    seed: int,
    *,
    levels: dict[str, tuple[int, ...]] | None = None,
) -> list[Problem]:
    """``count`` different held-out problems, over families, their levels and languages equally.

    In turn: family by family, and for each level after level, so that any figure over them weighs
    all levels equally (to within one problem). A level with too few different ones repeats some.
    """
    rng = Random(seed)
    cells = [
        (one, level)
        for one in families
        for level in ((levels or {}).get(one.name) or range(1, one.levels + 1))
    ]
    share = [len([c for c in cells if c[0] is one]) for one, _ in cells]
    chosen: list[Problem] = []
    given = [0] * len(cells)
    seen: set[str] = set()
    while len(chosen) < count:
        # The cell that is furthest behind its share of its family's equal part.
        at = min(range(len(cells)), key=lambda i: (given[i] * share[i], i))
        one, level = cells[at]
        language: Language = "zh" if given[at] % 2 else "en"
        problem = None
        for attempt in range(_TRIES):
            drawn = one.problem(level, rng.getrandbits(48), language)
            if drawn.held_out and (drawn.canonical not in seen or attempt > _TRIES // 4):
                problem = drawn
                break
        if problem is None:
            raise UserError(f"{one.name} has no held-out problem at level {level}.")
        seen.add(problem.canonical)
        given[at] += 1
        chosen.append(problem)
    return chosen
