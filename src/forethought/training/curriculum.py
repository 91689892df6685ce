"""Levels that open as they are solved: which of a family's levels training draws from, and when the
next one joins them.

Pure: no clock, no noise. What is open follows from the results that were heard, in their order, so
that ranks that hear the same agree, and a run that goes on from saved `facts` climbs as it would
have.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from forethought.checkpoints.folder import JSON
from forethought.problems.stream import LEVEL_BITS
from forethought.training.config import CurriculumConfig

_DRAWS: Final = 1 << LEVEL_BITS


@dataclass(frozen=True, slots=True)
class LevelResult:
    """One group: ``right`` of its ``judged`` samples (those with a verdict) answered right."""

    family: str
    level: int
    right: int
    judged: int


class _Climb:
    """One family: its ladder, how many rungs are open, and the groups that judge the newest."""

    def __init__(self, ladder: tuple[int, ...], opened: int, over: int) -> None:
        self.ladder = ladder
        self.opened = opened
        self.recent: deque[tuple[int, int]] = deque(maxlen=over)
        """(right, judged) of the newest groups of the newest open level."""

    @property
    def newest(self) -> int:
        return self.ladder[self.opened - 1]


class Curriculum:
    """What is open of each family's ladder of levels.

    ``ladders``: by name of the family its levels, easiest first. ``start_levels`` of each are open
    at first, or all where there are fewer. The next one opens as soon as ``raise_at`` of the
    samples of the last ``over`` groups of the newest level are right; it is judged by groups of its
    own. Nothing ever closes.
    """

    def __init__(self, config: CurriculumConfig, ladders: Mapping[str, tuple[int, ...]]) -> None:
        self._config = config
        self._climbs = {
            name: _Climb(ladder, min(config.start_levels, len(ladder)), config.over)
            for name, ladder in ladders.items()
        }
        # However small the share is, some draws are of the newest level: or it would never rise.
        self._newest_draws = max(1, round(config.newest * _DRAWS))

    def level(self, family: str, draw: int) -> int:
        """The level that a number of `LEVEL_BITS` uniform bits means now: the newest open one for
        the share ``newest`` of them, else one of the open ones below it, each as often."""
        climb = self._climbs[family]
        below = climb.opened - 1
        rest = draw - self._newest_draws
        if not below or rest < 0:
            return climb.newest
        return climb.ladder[rest * below // (_DRAWS - self._newest_draws)]

    def hear(self, results: Iterable[LevelResult]) -> None:
        """The groups of a rollout, those that teach nothing included, in the order of their
        problems. Groups of any level but the newest say nothing, nor do those without a verdict,
        nor any where all levels are open."""
        for one in results:
            climb = self._climbs[one.family]
            whole = climb.opened == len(climb.ladder)
            if whole or one.level != climb.newest or not one.judged:
                continue
            climb.recent.append((one.right, one.judged))
            if self._solved(climb):
                climb.opened += 1
                climb.recent.clear()

    def _solved(self, climb: _Climb) -> bool:
        if len(climb.recent) < self._config.over:
            return False
        right = sum(right for right, _ in climb.recent)
        # Whole numbers until the one division: a share of exactly raise_at is enough.
        return right / sum(judged for _, judged in climb.recent) >= self._config.raise_at

    def newest(self) -> dict[str, int]:
        """The newest open level of each family."""
        return {name: climb.newest for name, climb in self._climbs.items()}

    def facts(self) -> dict[str, JSON]:
        """All of the state, as JSON."""
        return {
            name: {"opened": climb.opened, "recent": [list(pair) for pair in climb.recent]}
            for name, climb in self._climbs.items()
        }

    def load(self, facts: Mapping[str, JSON]) -> None:
        """Go on from what `facts` said, of the same config and ladders."""
        for name, climb in self._climbs.items():
            own = facts[name]
            assert isinstance(own, dict)
            opened, recent = own["opened"], own["recent"]
            assert isinstance(opened, int)
            assert isinstance(recent, list)
            climb.opened = opened
            climb.recent.clear()
            for pair in recent:
                assert isinstance(pair, list)
                right, judged = pair
                assert isinstance(right, int)
                assert isinstance(judged, int)
                climb.recent.append((right, judged))
