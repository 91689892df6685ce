"""The end of a decode step: the next token of every row, taken down without asking the device.

B: rows of the bucket, R: all rows, V: vocabulary, F: fields of the state, S: steps of a chunk.

The draw is that of `forethought.engines.torch.sampler`: the smallest id whose cumulative
probability exceeds the uniform number of (seed, index, place), so the tokens are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.cuda.schedule import (
    ALIVE,
    DRAWN,
    INDEX,
    LENGTH,
    LIMIT,
    MOST_STEPS,
    NEXT,
    SEED,
)
from forethought.engines.torch.noise import uniform
from forethought.engines.torch.sampler import distribution, draw, is_greedy

IDS, LOGPROBS = 0, 1
"""Fields of the log: drawn ids, and float32 log-probabilities by their bits."""


@dataclass(frozen=True, slots=True)
class Mode:
    """What a captured step has fixed: how tokens are drawn, and whether lengths are forced (an end
    token is drawn at the row's limit and nowhere before it)."""

    sampling: SamplingParameters
    forced: bool = False

    @property
    def filtered(self) -> bool:
        """Whether top-p, top-k or min-p may drop tokens."""
        sampling = self.sampling
        filters = sampling.top_p < 1 or sampling.top_k > 0 or sampling.min_p > 0
        return filters and not is_greedy(sampling)


class DrawLog:
    """What the steps of a chunk draw: [S, 2, R] int32, and which of them comes next.

    ``ends``: ids that end a sample; ``vocabulary``: only ids below it are drawn.
    """

    def __init__(self, rows: int, is_end_V: torch.Tensor, device: torch.device) -> None:
        self.drawn_S2R = torch.zeros(MOST_STEPS, 2, rows, dtype=torch.int32, device=device)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.is_end_V = is_end_V.to(device)
        self.end_id = int(is_end_V.nonzero()[0]) if bool(is_end_V.any()) else 0

    def restart(self) -> None:
        """The next step is the first of a chunk."""
        self.step.zero_()


def take_step(logits_BV: torch.Tensor, state_FR: torch.Tensor, log: DrawLog, mode: Mode) -> None:
    """Draw the next token of the first B rows, write it to the log and move the state on.

    ``logits``: float32 (wider ones on other devices than CUDA), of the ids that may be drawn. Rows
    that are not alive stay as they are; their columns of the log hold anything.
    """
    if logits_BV.is_cuda and logits_BV.dtype == torch.float32:
        from forethought.engines.torch.cuda import kernels

        if not mode.filtered:
            kernels.draw_and_advance(logits_BV, state_FR, log, mode)
            return
        noise_B = kernels.noise(state_FR, len(logits_BV))
        ids_B, logprobs_B = _drawn(logits_BV, state_FR, log, mode, noise_B)
        kernels.advance(ids_B, logprobs_B, state_FR, log)
        return
    batch = len(logits_BV)
    noise_B = uniform(state_FR[SEED, :batch], state_FR[INDEX, :batch], state_FR[DRAWN, :batch])
    ids_B, logprobs_B = _drawn(logits_BV, state_FR, log, mode, noise_B)
    _advance(ids_B, logprobs_B, state_FR, log)


def _drawn(
    logits_BV: torch.Tensor,
    state_FR: torch.Tensor,
    log: DrawLog,
    mode: Mode,
    noise_B: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids and their log-probabilities, float32; the reference, and the way of the filters."""
    batch = len(logits_BV)
    forced_B1 = torch.zeros(batch, 1, dtype=torch.bool, device=logits_BV.device)
    if mode.forced:
        forced_B1 = (state_FR[DRAWN, :batch] + 1 >= state_FR[LIMIT, :batch])[:, None]
        # An end where one is forced, none where it is not.
        logits_BV = logits_BV.masked_fill(log.is_end_V & ~forced_B1, -torch.inf)
    probs_BV = distribution(logits_BV, mode.sampling)
    ids_B = draw(probs_BV, noise_B)
    if mode.forced:
        ids_B = torch.where(forced_B1[:, 0], log.end_id, ids_B)
    return ids_B, probs_BV.gather(1, ids_B[:, None])[:, 0].log().float()


def _advance(
    ids_B: torch.Tensor, logprobs_B: torch.Tensor, state_FR: torch.Tensor, log: DrawLog
) -> None:
    batch = len(ids_B)
    drawn_2B = torch.stack((ids_B.int(), logprobs_B.view(torch.int32)))
    log.drawn_S2R[:, :, :batch].index_copy_(0, log.step, drawn_2B[None])
    state_FB = state_FR[:, :batch]
    alive_B = state_FB[ALIVE] != 0
    over_B = log.is_end_V[ids_B] | (state_FB[DRAWN] + 1 >= state_FB[LIMIT])
    state_FB[LENGTH] += alive_B
    state_FB[DRAWN] += alive_B
    state_FB[NEXT] = torch.where(alive_B, ids_B, state_FB[NEXT])
    state_FB[ALIVE] = (alive_B & ~over_B).long()
    log.step += 1
