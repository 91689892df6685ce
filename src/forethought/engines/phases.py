"""Where time goes: what samplers and trainers say to a clock, if there is one.

Whoever computes tells its phases apart and says what they cost; the clock decides whether anybody
listens. `SILENT` does not, and costs next to nothing: no cost is computed, no time is read.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Literal, Protocol, TypeAlias

from forethought.models.costs import Cost, CostModel

PhaseName: TypeAlias = Literal[
    "documents",
    "prefill",
    "decode",
    "sampling",
    "decode and sampling",
    "verdicts",
    "forward",
    "backward",
    "optimiser",
]
"""``documents``: making and tokenising what is trained on, or waiting for who does. ``decode``:
steps up to their logits; ``sampling``: tokens drawn from them; ``decode and sampling``: both, where
one graph holds them. ``verdicts``: judging, or waiting for who judges."""

Work: TypeAlias = Callable[[CostModel], Cost]
"""What was computed, asked for only where it is counted."""


class Phases(Protocol):
    """Hears of phases, from several threads at once. Phases of a thread do not nest."""

    def phase(
        self, name: PhaseName, work: Work | None = None, *, calls: int = 1
    ) -> AbstractContextManager[object]:
        """What is computed within it is this phase, ``calls`` times over, and was ``work``."""

    def count(self, name: PhaseName, work: Work) -> None:
        """Work of a phase that is known only now, or better here."""


class Silent:
    """Nobody listens."""

    def phase(
        self, name: PhaseName, work: Work | None = None, *, calls: int = 1
    ) -> AbstractContextManager[object]:
        return _NOTHING

    def count(self, name: PhaseName, work: Work) -> None: ...


_NOTHING: Final = nullcontext()
SILENT: Final = Silent()
