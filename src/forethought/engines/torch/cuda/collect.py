"""Tokens that came from the device, put together into samples. Arrays on the host.

R: rows, S: steps of a chunk, T: steps that are kept, M: layers with experts, K: experts a token
uses, N: samples that drew in a chunk.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from forethought.engines.torch.cuda.pages import IntArray
from forethought.engines.torch.cuda.schedule import MOST_STEPS, Absorbed
from forethought.engines.torch.rollout import RolloutSample
from forethought.errors import ModelError

Experts = npt.NDArray[np.int16]
Number = TypeVar("Number", bound=np.generic)


class Collector:
    """What was drawn, step after step, and where in it each ticket's tokens stand.

    ``rows`` are drawn side by side, samples are at most ``most_tokens`` long. ``experts``: (M, K)
    where the gates' choices are kept. Chunks are copied whole; only a sample that is over is
    looked for, so a token costs no work of its own.
    """

    def __init__(
        self,
        rows: int,
        most_tokens: int,
        tickets: int,
        is_end_V: npt.NDArray[np.bool_],
        experts: tuple[int, int] | None,
    ) -> None:
        steps = most_tokens + MOST_STEPS
        self._ids_TR = np.zeros((steps, rows), dtype=np.int32)
        self._logprobs_TR = np.zeros((steps, rows), dtype=np.float32)
        self._experts_TRMK: Experts | None = None
        if experts is not None:
            self._experts_TRMK = np.zeros((steps, rows, *experts), dtype=np.int16)
        self._is_end_V = is_end_V
        self._first = self._next = 0
        """Steps whose tokens are kept: from the first to before the next."""
        self._pieces: dict[int, list[tuple[int, int]]] = {}
        """Of each ticket that draws: from which step on it is in which column."""
        self._column: IntArray = np.full(tickets, -1, dtype=np.int64)
        """Where each ticket drew last."""

    def add(
        self,
        absorbed: Absorbed,
        ids_SR: npt.NDArray[np.int32],
        logprobs_SR: npt.NDArray[np.float32],
        experts_SRMK: Experts | None,
    ) -> None:
        """Keep what the tickets of a chunk drew. ModelError where it was drawn from no numbers."""
        tickets, columns, steps = absorbed.tickets, absorbed.columns, len(ids_SR)
        if not len(tickets):
            return
        self._check(absorbed, logprobs_SR)
        self._make_room(steps)
        start = self._next - self._first
        kept = slice(start, start + steps), slice(0, int(columns.max()) + 1)
        self._ids_TR[kept] = ids_SR[:, kept[1]]
        self._logprobs_TR[kept] = logprobs_SR[:, kept[1]]
        if self._experts_TRMK is not None and experts_SRMK is not None:
            self._experts_TRMK[kept] = experts_SRMK[:, kept[1]]
        missing = int(tickets.max()) + 1 - len(self._column)
        if missing > 0:
            self._column = np.pad(self._column, (0, missing), constant_values=-1)
        moved = self._column[tickets] != columns
        for ticket, column in zip(tickets[moved].tolist(), columns[moved].tolist(), strict=True):
            self._pieces.setdefault(ticket, []).append((self._next, column))
        self._column[tickets] = columns
        self._next += steps

    @staticmethod
    def _check(absorbed: Absorbed, logprobs_SR: npt.NDArray[np.float32]) -> None:
        none_SN = np.isnan(logprobs_SR[:, absorbed.columns])
        # What a row draws after its end is nobody's.
        if none_SN.any() and (none_SN & (np.arange(len(none_SN))[:, None] < absorbed.counts)).any():
            raise ModelError(
                "The network gave logits without a finite maximum (NaN or infinity), so no "
                "token can be drawn; the weights may be damaged, or overflow in this number "
                "format."
            )

    def _make_room(self, steps: int) -> None:
        """Forget the steps before the oldest ticket's first, and take more memory if those are
        few."""
        used = self._next - self._first
        if used + steps <= len(self._ids_TR):
            return
        oldest = min((pieces[0][0] for pieces in self._pieces.values()), default=self._next)
        gone = slice(oldest - self._first, used)
        size = len(self._ids_TR)
        if (oldest - self._first) * 2 < size or self._next - oldest + steps > size:
            size = 2 * size + steps
        self._ids_TR = _moved(self._ids_TR, gone, size)
        self._logprobs_TR = _moved(self._logprobs_TR, gone, size)
        if self._experts_TRMK is not None:
            self._experts_TRMK = _moved(self._experts_TRMK, gone, size)
        self._first = oldest

    def sample(self, ticket: int, count: int, prompt_experts_MPK: Experts | None) -> RolloutSample:
        """A ticket's sample of ``count`` tokens, which is forgotten here.

        ``prompt_experts``: of all tokens of the prompt but its last.
        """
        pieces = self._pieces[ticket]
        self.drop(ticket)
        ends = [*(step for step, _ in pieces[1:]), pieces[0][0] + count]
        # After its last token it may have gone on and moved.
        places = [
            (slice(step - self._first, min(end, ends[-1]) - self._first), column)
            for (step, column), end in zip(pieces, ends, strict=True)
            if step < ends[-1]
        ]
        ids = np.concatenate([self._ids_TR[place] for place in places]).tolist()
        experts = None
        if self._experts_TRMK is not None:
            own = [self._experts_TRMK[place].swapaxes(0, 1) for place in places]
            before = [] if prompt_experts_MPK is None else [prompt_experts_MPK]
            experts = torch.from_numpy(np.concatenate((*before, *own), axis=1))
        return RolloutSample(
            tuple(ids),
            torch.from_numpy(np.concatenate([self._logprobs_TR[place] for place in places])),
            not self._is_end_V[ids[-1]],
            experts,
        )

    def drop(self, ticket: int) -> None:
        """Forget what a ticket drew, if anything."""
        if self._pieces.pop(ticket, None) is not None:
            self._column[ticket] = -1


def _moved(whole: npt.NDArray[Number], kept: slice, size: int) -> npt.NDArray[Number]:
    """The rows ``kept`` of an array at the beginning of one with ``size`` rows."""
    made = np.zeros((size, *whole.shape[1:]), dtype=whole.dtype)
    made[: kept.stop - kept.start] = whole[kept]
    return made
