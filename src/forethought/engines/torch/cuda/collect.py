"""Tokens that came from the device, put together into samples. Arrays on the host.

R: rows, S: steps of a chunk, T: tokens of a sample, M: layers with experts, K: experts a token
uses, N: samples that drew in a chunk.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from forethought.engines.torch.cuda.pages import IntArray
from forethought.engines.torch.cuda.schedule import Absorbed
from forethought.engines.torch.rollout import RolloutSample
from forethought.errors import ModelError

Experts = npt.NDArray[np.int16]


class Collector:
    """Room for the samples that are being drawn: ``rows`` of them, ``most_tokens`` long.

    ``experts``: (M, K) where the gates' choices are kept.
    """

    def __init__(
        self,
        rows: int,
        most_tokens: int,
        tickets: int,
        is_end_V: npt.NDArray[np.bool_],
        experts: tuple[int, int] | None,
    ) -> None:
        self._ids_RT = np.zeros((rows, most_tokens), dtype=np.int32)
        self._logprobs_RT = np.zeros((rows, most_tokens), dtype=np.float32)
        self._experts_RTMK: Experts | None = None
        if experts is not None:
            self._experts_RTMK = np.zeros((rows, most_tokens, *experts), dtype=np.int16)
        self._is_end_V = is_end_V
        self._free = list(range(rows))
        self._slot: IntArray = np.full(tickets, -1, dtype=np.int64)
        """Where each ticket's tokens are kept."""

    def add(
        self,
        absorbed: Absorbed,
        ids_SR: npt.NDArray[np.int32],
        logprobs_SR: npt.NDArray[np.float32],
        experts_SRMK: Experts | None,
    ) -> None:
        """Keep what the tickets of a chunk drew. ModelError where it was drawn from no numbers."""
        tickets = absorbed.tickets
        for ticket in tickets[absorbed.before == 0].tolist():
            while ticket >= len(self._slot):
                self._slot = np.concatenate((self._slot, np.full_like(self._slot, -1)))
            if self._slot[ticket] < 0:
                self._slot[ticket] = self._free.pop()
        slots = self._slot[tickets]
        for step in range(len(ids_SR)):
            drew = absorbed.counts > step
            at, place = slots[drew], absorbed.before[drew] + step
            columns = absorbed.columns[drew]
            logprobs_N = logprobs_SR[step, columns]
            if np.isnan(logprobs_N).any():
                raise ModelError(
                    "The network gave logits without a finite maximum (NaN or infinity), so no "
                    "token can be drawn; the weights may be damaged, or overflow in this number "
                    "format."
                )
            self._ids_RT[at, place] = ids_SR[step, columns]
            self._logprobs_RT[at, place] = logprobs_N
            if self._experts_RTMK is not None and experts_SRMK is not None:
                self._experts_RTMK[at, place] = experts_SRMK[step, columns]

    def sample(
        self, ticket: int, count: int, prompt_experts_MPK: torch.Tensor | None
    ) -> RolloutSample:
        """A ticket's sample of ``count`` tokens, whose room is free again.

        ``prompt_experts``: int16, of all tokens of the prompt but its last.
        """
        slot = int(self._slot[ticket])
        self.drop(ticket)
        ids = self._ids_RT[slot, :count].tolist()
        experts = None
        if self._experts_RTMK is not None:
            own_TMK = torch.from_numpy(self._experts_RTMK[slot, :count].copy())
            experts = own_TMK.transpose(0, 1)
            if prompt_experts_MPK is not None:
                experts = torch.cat((prompt_experts_MPK, experts), dim=1)
            experts = experts.contiguous()
        return RolloutSample(
            tuple(ids),
            torch.from_numpy(self._logprobs_RT[slot, :count].copy()),
            not self._is_end_V[ids[-1]],
            experts,
        )

    def drop(self, ticket: int) -> None:
        """A ticket gives its room back, if it has any."""
        if ticket < len(self._slot) and self._slot[ticket] >= 0:
            self._free.append(int(self._slot[ticket]))
            self._slot[ticket] = -1
