"""Passes of training as CUDA graphs: a micro-batch forwards and backwards in one launch.

A small network's pass is a thousand kernels of some microseconds, and to launch them from Python
takes longer. A pass whose sizes are those of an earlier one (its room) is captured and replayed;
the first of a size runs as it is and is a pass like any other, it compiles what has to be
compiled. Graphs hold addresses: parameters and gradients may change, their places may not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from forethought.engines.torch.captures import Captures

_ROOMS = 12
"""Sizes whose graphs are kept; the longest unused is forgotten first."""
_log = logging.getLogger(__name__)

Inputs = TypeVar("Inputs")
Read = TypeVar("Read", covariant=True)


class Filled(Protocol[Read]):
    """What one pass reads, laid out on the CPU."""

    @property
    def room(self) -> Hashable:
        """Equal for passes that are the same work at the same addresses."""

    @property
    def values(self) -> torch.Tensor:
        """All numbers of the pass, int64 of one axis; equally many in equal rooms."""

    def inputs(self, buffer: torch.Tensor) -> Read:
        """Views of ``buffer``, on the device of the pass, in which the values stand or will."""


@dataclass(slots=True)
class _Held(Generic[Inputs]):
    buffer: torch.Tensor
    inputs: Inputs
    graph: torch.cuda.CUDAGraph | None = None
    said: torch.Tensor | None = None
    """What the captured pass returns."""


class CapturedPasses(Generic[Inputs]):
    """Runs ``compute``, from a graph where it can. Without ``capture``, never. It adds a
    micro-batch's gradients, and returns what is to be read of it, float64 of one axis.

    ``places`` are tensors whose memory graphs use beside their own: where one has moved, every
    graph is forgotten.
    """

    def __init__(
        self,
        compute: Callable[[Inputs], torch.Tensor],
        places: Callable[[], Sequence[torch.Tensor]],
        device: torch.device,
        *,
        capture: bool,
    ) -> None:
        self._compute, self._places, self._device = compute, places, device
        self._capture = capture
        self._held: dict[Hashable, _Held[Inputs]] = {}
        self._at: list[int] = []
        self._captures = Captures(device)

    @property
    def captured(self) -> int:
        """Graphs held now."""
        return sum(held.graph is not None for held in self._held.values())

    @property
    def rooms(self) -> tuple[Hashable, ...]:
        """Of which there are graphs, or will be at the next pass; the newest comes last."""
        return tuple(self._held)

    def run(self, filled: Filled[Inputs]) -> torch.Tensor:
        """One pass; what it says is the caller's to keep."""
        at = [one.data_ptr() for one in self._places()]
        if at != self._at:
            self._at = at
            self.forget()
        room = filled.room
        held = self._held.pop(room, None)
        first = held is None
        if held is None:
            buffer = torch.empty(len(filled.values), dtype=torch.int64, device=self._device)
            held = _Held(buffer, filled.inputs(buffer))
        self._held[room] = held  # the newest comes last
        if len(self._held) > _ROOMS:
            del self._held[next(iter(self._held))]
        held.buffer.copy_(filled.values, non_blocking=True)
        if not first and held.graph is None and self._capture:
            self._try_to_capture(held)
        if held.graph is None or held.said is None:
            # Not the inputs that are held: they remember the lengths of the first row.
            return self._compute(filled.inputs(held.buffer))
        held.graph.replay()
        return held.said.clone()

    def forget(self) -> None:
        """Drop every graph: what they read or write has moved, or the memory is wanted."""
        self._held.clear()
        self._captures.forget()

    def _try_to_capture(self, held: _Held[Inputs]) -> None:
        # A graph has memory of its own: what passes without one left behind is given back first.
        torch.cuda.empty_cache()
        try:
            held.graph, held.said = self._captures.capture(lambda: self._compute(held.inputs))
        except RuntimeError as error:  # too little memory is one of them
            self._capture = False
            self.forget()
            torch.cuda.empty_cache()
            reason = str(error).partition("\n")[0]
            _log.warning("Training without CUDA graphs, and slower: %s", reason)
