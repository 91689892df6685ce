"""The next token of every row of a batch: filters, seeded draws, exact log-probabilities.

A row's draw is a function of its logits, its parameters and one uniform number that depends on
(seed, index, position) alone: the smallest id whose cumulative probability, in the order of the
vocabulary, exceeds that number. Rows that share their sampling parameters are computed together;
no operation reduces over rows, so that a draw is the same to the bit whatever the other rows are.

On the CPU no vocabulary is sorted. What a filter can keep is found first, by comparing blocks of
the vocabulary with a bound, and only these candidates are sorted and summed, in float64. On CUDA
everything is dense, and nothing waits for the device.

B: rows of the batch, G: rows of a group, V: vocabulary, N: blocks of it, W: width of a block,
K: candidates of a row (shorter lists are padded), H: blocks picked out of all rows. Lists of the
candidates of all rows have no suffix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from forethought.engines.protocol import LogprobKind, SamplingParameters
from forethought.engines.torch.noise import NoiseAhead, uniform
from forethought.errors import ModelError, UserError

GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy: logits divided by less would leave float32 (as in vLLM)."""

_BLOCK_BITS = 6
_BLOCK = 1 << _BLOCK_BITS
"""Rows are padded to a multiple of this many ids."""
_LIKELY = 1e-4
"""First bound on a candidate's probability for top-p; nearly always the nucleus lies above it."""
_MUCH = 1 / 64
"""Share of a row from which on a block's sum is taken in float64."""
_AT_ONCE = 1 << 20
"""Logits that are scaled at a time: more leave the processor's cache before they are read again."""
_COLD = 0.5
"""Below this temperature the maximum is taken away first: products round in large numbers."""
_ROUNDING = 5e-7
"""A share of probability that the float32 sums cannot tell from none."""


@dataclass(frozen=True, slots=True)
class RowParameters:
    """How one row of a batch is sampled.

    ``forbidden_ids`` are never drawn. ``logprobs``: "sampling" (under the distribution that is
    drawn from), "raw" (the model's own, at temperature 1, forbidden ids included) or None.
    """

    sampling: SamplingParameters
    seed: int
    index: int
    logprobs: LogprobKind | None = None
    forbidden_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Drawn:
    """The drawn ids (int64 [B]) and their log-probabilities (float64 [B], NaN in rows that did not
    ask; None when no row asked), on the device of the logits."""

    ids_B: torch.Tensor
    logprobs_B: torch.Tensor | None


def check_sampling(sampling: SamplingParameters) -> None:
    """Raise UserError for a value outside its range; the sentence names it."""
    temperature, top_p, min_p = sampling.temperature, sampling.top_p, sampling.min_p
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature is {temperature}; it must be 0 (greedy) or more.")
    if sampling.top_k < 0:
        raise UserError(f"top_k is {sampling.top_k}; it must be 0 (off) or more.")
    for name, value in (("top_p", top_p), ("min_p", min_p)):
        if not 0 <= value <= 1:
            raise UserError(f"{name} is {value}; it must be between 0 and 1.")


def is_greedy(sampling: SamplingParameters) -> bool:
    """Whether these parameters always take the most probable token."""
    return sampling.temperature < GREEDY_BELOW


def distribution(logits_BV: torch.Tensor, sampling: SamplingParameters) -> torch.Tensor:
    """The probabilities that are drawn from, float64 [B, V]; the readable reference.

    Order: temperature, top-k, top-p, min-p, each on what the one before left. Among equal logits
    the lower id counts as the more probable. Top-p keeps the fewest most probable tokens that
    together reach ``top_p``; min-p keeps those of at least ``min_p`` times the most probable one.
    """
    logits_BV = logits_BV.to(torch.float64)
    if is_greedy(sampling):
        best_B1 = logits_BV.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits_BV).scatter_(-1, best_B1, 1.0)
    weights_BV = _filtered_weights(logits_BV, sampling)
    return weights_BV / weights_BV.sum(dim=-1, keepdim=True)


def draw(weights_BN: torch.Tensor, noise_B: torch.Tensor) -> torch.Tensor:
    """The first place whose cumulative share of the weights (float64) exceeds the noise; [B]."""
    sums_BN = _running_sums(weights_BN)
    return _first_above(sums_BN, noise_B[:, None] * sums_BN[:, -1:])[:, 0]


class Sampler:
    """Draws for a batch whose rows stay the same over many tokens; make a new one when they change.

    Each distinct set of sampling parameters in the batch costs one more round of small operations.
    Not for several threads at once: it keeps its buffers from step to step.
    ``allowed``: only ids below it are drawn (embeddings are often padded beyond the tokenizer).
    Raises UserError for sampling parameters outside their range.
    """

    def __init__(
        self,
        rows: Sequence[RowParameters],
        device: torch.device | str = "cpu",
        allowed: int | None = None,
    ) -> None:
        device = torch.device(device)
        self._size = len(rows)
        self._allowed = allowed
        groups: dict[SamplingParameters, list[int]] = {}
        for at, row in enumerate(rows):
            check_sampling(row.sampling)
            key = SamplingParameters(temperature=0) if is_greedy(row.sampling) else row.sampling
            groups.setdefault(key, []).append(at)
        self._groups = [
            _Group(
                sampling,
                None if len(groups) == 1 else torch.tensor(members, device=device),
                any(rows[at].logprobs == "sampling" for at in members),
            )
            for sampling, members in groups.items()
        ]
        self._seed_B = torch.tensor([row.seed for row in rows], dtype=torch.int64, device=device)
        self._index_B = torch.tensor([row.index for row in rows], dtype=torch.int64, device=device)
        self._ahead = None if device.type == "cuda" else NoiseAhead(self._seed_B, self._index_B)
        self._draws = any(not is_greedy(row.sampling) for row in rows)

        kinds = {row.logprobs for row in rows}
        self._kinds = kinds - {None}
        self._raw_B = torch.tensor([row.logprobs == "raw" for row in rows], device=device)
        self._silent_B = (
            torch.tensor([row.logprobs is None for row in rows], device=device)
            if None in kinds
            else None
        )
        banned = [
            (at, token)
            for at, row in enumerate(rows)
            for token in row.forbidden_ids
            if allowed is None or token < allowed
        ]
        self._banned = (
            torch.tensor(banned, dtype=torch.int64, device=device).unbind(1) if banned else None
        )
        self._clean_BV: torch.Tensor | None = None
        self._scratch: torch.Tensor | None = None

    def reseed(self, rows: Sequence[int], seeds: Sequence[int], indices: Sequence[int]) -> None:
        """Other samples, of the same parameters, take these rows over."""
        device = self._seed_B.device
        self._seed_B[rows] = torch.tensor(seeds, device=device)
        self._index_B[rows] = torch.tensor(indices, device=device)
        if self._ahead is not None:
            self._ahead = NoiseAhead(self._seed_B, self._index_B)

    def select(self, rows: Sequence[int]) -> None:
        """The batch becomes these rows of it; ValueError unless all had the same parameters."""
        if len(self._groups) != 1 or self._banned is not None or len(self._kinds) > 1:
            raise ValueError("only a batch of equal parameters can lose rows")
        at, self._size = torch.tensor(rows, device=self._seed_B.device), len(rows)
        self._seed_B, self._index_B = self._seed_B[at], self._index_B[at]
        self._raw_B = self._raw_B[at]
        if self._silent_B is not None:
            self._silent_B = self._silent_B[at]
        self._clean_BV = None
        if self._ahead is not None:
            self._ahead.select(at)

    def sample(self, logits_BV: torch.Tensor, position_B: torch.Tensor) -> Drawn:
        """Draw one token for each row.

        ``logits_BV``: float32 or bfloat16, left as they are; ``position_B``: int64, the place of
        the token to draw, on the same device. Raises ModelError where a row has no finite maximum
        (CPU only: on CUDA looking would wait for the device, and such a row draws any id).
        """
        assert logits_BV.shape[0] == position_B.shape[0] == self._size
        clean_BV = self._cleaned(logits_BV)
        noise_B = self._noise(position_B) if self._draws else None
        wants = "sampling" in self._kinds
        ids_B: torch.Tensor | None = None
        logprobs_B: torch.Tensor | None = None
        for group in self._groups:
            rows = group.rows
            if rows is None:
                ids_B, logprobs_B = self._sample_group(group, clean_BV, noise_B)
                break
            ids_G, logprobs_G = self._sample_group(
                group, clean_BV[rows], None if noise_B is None else noise_B[rows]
            )
            if ids_B is None:
                ids_B = torch.empty_like(position_B)
                logprobs_B = torch.full_like(ids_B, math.nan, dtype=torch.float64)
            ids_B[rows] = ids_G
            if logprobs_G is not None and logprobs_B is not None:
                logprobs_B[rows] = logprobs_G
        assert ids_B is not None
        if not self._kinds:
            return Drawn(ids_B, None)
        if "raw" in self._kinds:
            raw_B = raw_logprobs(logits_BV, ids_B)
            logprobs_B = (
                torch.where(self._raw_B, raw_B, logprobs_B)
                if wants and logprobs_B is not None
                else raw_B
            )
        assert logprobs_B is not None
        if self._silent_B is not None:
            logprobs_B = logprobs_B.masked_fill(self._silent_B, math.nan)
        return Drawn(ids_B, logprobs_B)

    def _noise(self, position_B: torch.Tensor) -> torch.Tensor:
        if self._ahead is not None:
            return self._ahead.at(position_B)
        return uniform(self._seed_B, self._index_B, position_B)

    def _cleaned(self, logits_BV: torch.Tensor) -> torch.Tensor:
        """Contiguous float32 rows of a multiple of _BLOCK ids, minus infinity where forbidden."""
        width = logits_BV.shape[1]
        allowed = width if self._allowed is None else min(width, self._allowed)
        if (
            self._banned is None
            and allowed == width
            and width % _BLOCK == 0
            and logits_BV.dtype == torch.float32
            and logits_BV.is_contiguous()
        ):
            return logits_BV
        clean_BV = self._clean_BV
        padded = -(-allowed // _BLOCK) * _BLOCK
        if clean_BV is None or clean_BV.shape[1] != padded:
            clean_BV = logits_BV.new_full((self._size, padded), -math.inf, dtype=torch.float32)
            self._clean_BV = clean_BV
        clean_BV[:, :allowed] = logits_BV[:, :allowed]
        if self._banned is not None:
            row, token = self._banned
            clean_BV.index_put_((row, token), clean_BV.new_full((), -math.inf))
        return clean_BV

    def _scratch_like(self, logits_GV: torch.Tensor) -> torch.Tensor:
        size = logits_GV.numel()
        if self._scratch is None or self._scratch.numel() < size:
            self._scratch = torch.empty(size)
        return self._scratch[:size].view_as(logits_GV)

    def _sample_group(
        self, group: _Group, logits_GV: torch.Tensor, noise_G: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        sampling = group.sampling
        if is_greedy(sampling):
            # A point mass: its one token has probability 1.
            ids_G = logits_GV.argmax(dim=-1) if logits_GV.is_cuda else _argmax(logits_GV)
            return ids_G, torch.zeros_like(ids_G, dtype=torch.float64) if group.logprobs else None
        assert noise_G is not None
        if logits_GV.is_cuda:
            weights_GV = _filtered_weights(logits_GV.to(torch.float64), sampling)
            return _draw_candidates(weights_GV, None, noise_G)
        if 0 < sampling.top_k < logits_GV.shape[1]:
            return _draw_above(logits_GV, _top_k_bound(logits_GV, sampling.top_k), group, noise_G)
        if sampling.top_p < 1:
            return _draw_nucleus(logits_GV, group, noise_G, self._scratch_like(logits_GV))
        if sampling.min_p > 0:
            best_G = _checked(_block_maxima(logits_GV).amax(dim=-1).to(torch.float64))
            # A little under the bound, which rounds; the exact comparison follows.
            bound_G = best_G + sampling.temperature * math.log(sampling.min_p)
            bound_G = bound_G - 1e-6 * (1 + bound_G.abs())
            return _draw_above(logits_GV, bound_G.to(torch.float32), group, noise_G)
        return _draw_from_all(logits_GV, group, noise_G, self._scratch_like(logits_GV))


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that share their sampling parameters; ``rows`` None means the whole batch."""

    sampling: SamplingParameters
    rows: torch.Tensor | None
    logprobs: bool


def raw_logprobs(logits_BV: torch.Tensor, ids_B: torch.Tensor) -> torch.Tensor:
    """log_softmax of the logits at the ids, float64 [B], to 1e-6 of its value."""
    if logits_BV.is_cuda or logits_BV.shape[1] % _BLOCK:
        whole_BV = torch.log_softmax(logits_BV.to(torch.float64), dim=-1)
        return whole_BV.gather(-1, ids_B[:, None])[:, 0]
    logits_BV = logits_BV.float().contiguous()
    probs_BV, blocks_BN = _softmax(logits_BV, 1.0, torch.empty_like(logits_BV), _BLOCK)
    return _logprobs_of_all(logits_BV, ids_B[:, None], 1.0, probs_BV, blocks_BN)


# -- weights and draws, on few candidates or on everything


def _filtered_weights(
    logits_GK: torch.Tensor,
    sampling: SamplingParameters,
    unseen_G: torch.Tensor | None = None,
) -> torch.Tensor:
    """exp((logits - max) / temperature), 0 where a filter drops the token; float64 [G, K].

    ``logits_GK``: float64, by ascending id. ``unseen_G``: the weight of the tokens that are not in
    the list, as a share of the weight of those that are; none of them may be in the result.
    """
    best_G1 = logits_GK.amax(dim=-1, keepdim=True)
    weights_GK = torch.exp((logits_GK - best_G1) / sampling.temperature)
    width = logits_GK.shape[1]
    by_rank = 0 < sampling.top_k < width
    if by_rank or sampling.top_p < 1:
        # Stable: of equal logits the lower id comes first.
        order_GK = logits_GK.sort(dim=-1, descending=True, stable=True).indices
        ranked_GK = weights_GK.gather(-1, order_GK)
        if by_rank:
            ranked_GK[:, sampling.top_k :] = 0
        if sampling.top_p < 1:
            sums_GK = _running_sums(ranked_GK)
            total_G1 = sums_GK[:, -1:]
            if unseen_G is not None:
                total_G1 = total_G1 * (1 + unseen_G[:, None])
            dropped_GK = sums_GK - ranked_GK >= total_G1 * sampling.top_p
            dropped_GK[:, 0] = False
            ranked_GK = ranked_GK.masked_fill(dropped_GK, 0)
        weights_GK = torch.empty_like(weights_GK).scatter_(-1, order_GK, ranked_GK)
    if sampling.min_p > 0:
        weights_GK = weights_GK.masked_fill(weights_GK < sampling.min_p, 0)
    return weights_GK


def _running_sums(values_GK: torch.Tensor) -> torch.Tensor:
    """Cumulative sums along the row that are the same to the bit for any number of rows."""
    width = values_GK.shape[1]
    if not values_GK.is_cuda or width <= _BLOCK:
        return values_GK.cumsum(dim=-1)
    # CUDA scans a single long row in another order than several, and in no fixed one.
    padded_GV = torch.nn.functional.pad(values_GK, (0, -width % _BLOCK))
    sums_GNW = padded_GV.view(len(padded_GV), -1, _BLOCK).cumsum(dim=-1)
    before_GN = torch.nn.functional.pad(_running_sums(sums_GNW[:, :, -1])[:, :-1], (1, 0))
    return (sums_GNW + before_GN[:, :, None]).flatten(1)[:, :width]


def _first_above(sums_GK: torch.Tensor, target_G1: torch.Tensor) -> torch.Tensor:
    """The first place whose running sum exceeds the target; [G, 1].

    There is one: noise is at most 1 - 2^-53, and that times a total rounds to less than the total.
    Rows without numbers, which are refused later or not at all, must still not index out of bounds.
    """
    return torch.searchsorted(sums_GK, target_G1, right=True).clamp_(max=sums_GK.shape[1] - 1)


def _draw_candidates(
    weights_GK: torch.Tensor, ids_GK: torch.Tensor | None, noise_G: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw among the candidates; the ids and their log-probabilities. No ids: all tokens."""
    sums_GK = _running_sums(weights_GK)
    at_G1 = _first_above(sums_GK, noise_G[:, None] * sums_GK[:, -1:])
    logprobs_G = (weights_GK.gather(-1, at_G1)[:, 0] / sums_GK[:, -1]).log()
    return (at_G1 if ids_GK is None else ids_GK.gather(-1, at_G1))[:, 0], logprobs_G


# -- the CPU's ways, which look at the whole vocabulary as little as they can


def _block_maxima(logits_GV: torch.Tensor) -> torch.Tensor:
    return logits_GV.view(len(logits_GV), -1, _BLOCK).amax(dim=-1)


def _checked(best_G: torch.Tensor) -> torch.Tensor:
    """The rows' maxima, once they are known to be numbers."""
    if not math.isfinite(float(best_G.sum(dtype=torch.float64))):
        raise ModelError(
            "The network gave logits without a finite maximum (NaN, infinity, or every token "
            "forbidden), so no token can be drawn; the weights may be damaged, or overflow in "
            "this number format."
        )
    return best_G


def _argmax(logits_GV: torch.Tensor) -> torch.Tensor:
    """As argmax, the lower id of equals. Maxima of blocks are vectorised, places of maxima not."""
    best_G, block_G = _block_maxima(logits_GV).max(dim=-1)
    _checked(best_G)
    rows_NW = logits_GV.view(-1, _BLOCK)
    start_G = torch.arange(0, len(rows_NW), logits_GV.shape[1] // _BLOCK)
    return block_G * _BLOCK + rows_NW.index_select(0, start_G + block_G).argmax(dim=-1)


def _top_k_bound(logits_GV: torch.Tensor, k: int) -> torch.Tensor:
    """A logit that at least the k highest of a row reach, and not many more; [G].

    The k highest block maxima are k different tokens, so that the k-th of them is such a bound.
    """
    maxima_GN = _block_maxima(logits_GV)
    _checked(maxima_GN.amax(dim=-1))
    if k > maxima_GN.shape[1]:
        maxima_GN = logits_GV
    return maxima_GN.topk(k, dim=-1, sorted=False).values.amin(dim=-1)


def _softmax(
    logits_GV: torch.Tensor, temperature: float, probs_GV: torch.Tensor, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax at a temperature into ``probs_GV``, and its sums over blocks [G, N] in float32.

    The kernel's own normaliser is off by as much as 1e-5, the same for the whole row: shares are to
    be taken of the sums.
    """
    groups, vocabulary = logits_GV.shape
    blocks_GN = logits_GV.new_empty(groups, vocabulary // width)
    step = max(1, _AT_ONCE // vocabulary)
    scaled = None if temperature == 1 else logits_GV.new_empty(min(step, groups), vocabulary)
    for start in range(0, groups, step):
        rows = slice(start, min(start + step, groups))
        source = logits_GV[rows]
        if scaled is not None:
            out = scaled[: len(source)]
            if temperature < _COLD:
                torch.sub(source, source.amax(dim=-1, keepdim=True), out=out)
                source = out
            source = torch.mul(source, 1 / temperature, out=out)
        probs = torch.softmax(source, dim=-1, out=probs_GV[rows])
        torch.sum(probs.view(len(source), -1, width), dim=-1, out=blocks_GN[rows])
    return probs_GV, blocks_GN


def _logprobs_of_all(
    logits_GV: torch.Tensor,
    ids_G1: torch.Tensor,
    temperature: float,
    probs_GV: torch.Tensor,
    blocks_GN: torch.Tensor,
) -> torch.Tensor:
    """log_softmax(logits / temperature) at the ids, float64 [G].

    The blocks that hold much of the probability are summed again in float64, from the logits; of
    the others the float32 sums do.
    """
    groups, blocks = blocks_GN.shape
    width = logits_GV.shape[1] // blocks
    best_G = logits_GV.amax(dim=-1).to(torch.float64)
    bound_G1 = blocks_GN.amax(dim=-1, keepdim=True).clamp_(max=_MUCH)
    heavy_GN = blocks_GN >= bound_G1
    row_H, block_H = heavy_GN.nonzero().unbind(1)
    exact_HW = logits_GV.view(-1, width).index_select(0, row_H * blocks + block_H)
    exact_HW = exact_HW.to(torch.float64).sub_(best_G.index_select(0, row_H)[:, None])
    exact_H = exact_HW.div_(temperature).exp_().sum(dim=-1)
    heavy_G = best_G.new_zeros(groups).index_add_(0, row_H, exact_H)
    # In the softmax's own unit, what the heavy blocks hold and what is left beside them.
    share_G = blocks_GN.masked_fill(~heavy_GN, 0).sum(dim=-1, dtype=torch.float64)
    rest_G = blocks_GN.masked_fill(heavy_GN, 0).sum(dim=-1, dtype=torch.float64)
    logit_G = logits_GV.gather(-1, ids_G1)[:, 0].to(torch.float64)
    sum_G = heavy_G * (1 + rest_G / share_G)
    return (logit_G - best_G) / temperature - sum_G.log()


@dataclass(frozen=True, slots=True)
class _Found:
    """Candidates of all rows, one after the other: by row, then by ascending id.

    ``place``: row x V + id; ``slot``: row x K + rank, where K is the longest row's count.
    """

    row: torch.Tensor
    place: torch.Tensor
    slot: torch.Tensor
    values: torch.Tensor
    longest: int


def _find(values_GV: torch.Tensor, bound: float | torch.Tensor, blocks_GN: torch.Tensor) -> _Found:
    """What reaches the bound (one, or one for each row [G]).

    ``blocks_GN``: for each block a number that none of its values exceeds.
    """
    groups, blocks = blocks_GN.shape
    hot_GN = blocks_GN >= (bound if isinstance(bound, float) else bound[:, None])
    row_H, block_H = hot_GN.nonzero().unbind(1)
    hot_H = row_H * blocks + block_H
    values_HW = values_GV.view(-1, _BLOCK).index_select(0, hot_H)
    reached_HW = values_HW >= (
        bound if isinstance(bound, float) else bound.index_select(0, row_H)[:, None]
    )
    found = reached_HW.view(-1).nonzero()[:, 0]
    in_hot = found >> _BLOCK_BITS
    row = row_H.index_select(0, in_hot)
    place = (hot_H.index_select(0, in_hot) << _BLOCK_BITS) + (found & (_BLOCK - 1))
    count_G = torch.bincount(row, minlength=groups)
    longest = max(1, int(count_G.max()))
    # Where row g would begin if its list came right behind the others, and where it does.
    shift_G = torch.arange(0, groups * longest, longest) - (count_G.cumsum(0) - count_G)
    slot = torch.arange(len(place)) + shift_G.index_select(0, row)
    return _Found(row, place, slot, values_HW.view(-1).index_select(0, found), longest)


def _draw_among(
    logits_GV: torch.Tensor,
    found: _Found,
    unseen_G: torch.Tensor | None,
    group: _Group,
    noise_G: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw among what was found, which holds all that the filters keep."""
    groups, vocabulary = logits_GV.shape
    logits_GK = torch.full((groups, found.longest), -math.inf, dtype=torch.float64)
    logits = logits_GV.view(-1).index_select(0, found.place)
    logits_GK.view(-1).index_copy_(0, found.slot, logits.to(torch.float64))
    place_GK = torch.zeros(groups, found.longest, dtype=torch.int64)
    place_GK.view(-1).index_copy_(0, found.slot, found.place)
    weights_GK = _filtered_weights(logits_GK, group.sampling, unseen_G)
    place_G, logprobs_G = _draw_candidates(weights_GK, place_GK, noise_G)
    return place_G % vocabulary, logprobs_G


def _draw_above(
    logits_GV: torch.Tensor, bound_G: torch.Tensor, group: _Group, noise_G: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw where everything below the bound is known to be dropped: top-k, or min-p alone."""
    found = _find(logits_GV, bound_G, _block_maxima(logits_GV))
    return _draw_among(logits_GV, found, None, group, noise_G)


def _draw_nucleus(
    logits_GV: torch.Tensor, group: _Group, noise_G: torch.Tensor, probs_GV: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw under top-p without top-k.

    Whatever lies above a bound is a prefix of the tokens in order of probability, so if it holds
    ``top_p`` of all, the nucleus is within it. Tokens below (1 - top_p) / V cannot together hold
    1 - top_p: above that bound lies enough, however flat the row is.
    """
    top_p = group.sampling.top_p
    probs_GV, blocks_GN = _softmax(logits_GV, group.sampling.temperature, probs_GV, _BLOCK)
    total_G = _checked(blocks_GN.sum(dim=-1, dtype=torch.float64))
    enough = 0.5 * (1 - top_p) / logits_GV.shape[1]
    found = _find(probs_GV, max(_LIKELY, enough), blocks_GN)
    seen_G = _seen(found, len(logits_GV))
    ids_G, logprobs_G = _draw_among(
        logits_GV, found, _share_unseen(seen_G, total_G), group, noise_G
    )
    short_G = seen_G < total_G * top_p
    if bool(short_G.any()):
        # Flat rows, again from a bound that is sure.
        rows = short_G.nonzero()[:, 0]
        found = _find(probs_GV[rows], enough, blocks_GN[rows])
        unseen_R = _share_unseen(_seen(found, len(rows)), total_G[rows])
        ids_G[rows], logprobs_G[rows] = _draw_among(
            logits_GV[rows], found, unseen_R, group, noise_G[rows]
        )
    return ids_G, logprobs_G


def _seen(found: _Found, groups: int) -> torch.Tensor:
    """Sums of the values found in each row, float64 [G].

    One after the other: a sum over padded lists would depend on the longest of the others.
    """
    sums_G = torch.zeros(groups, dtype=torch.float64)
    return sums_G.index_add_(0, found.row, found.values.to(torch.float64))


def _share_unseen(seen_G: torch.Tensor, total_G: torch.Tensor) -> torch.Tensor:
    """What lies below the bound as a share of what lies above; rounding alone counts as nothing."""
    share_G = total_G / seen_G - 1
    return share_G.masked_fill_(share_G < _ROUNDING, 0)


def _draw_from_all(
    logits_GV: torch.Tensor, group: _Group, noise_G: torch.Tensor, probs_GV: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Draw without filters: sums of blocks, then the running sums inside one block."""
    temperature = group.sampling.temperature
    width = math.gcd(logits_GV.shape[1], 256)
    probs_GV, blocks_GN = _softmax(logits_GV, temperature, probs_GV, width)
    sums_GN = blocks_GN.to(torch.float64).cumsum(dim=-1)
    target_G1 = noise_G[:, None] * _checked(sums_GN[:, -1:])
    block_G1 = _first_above(sums_GN, target_G1)
    before_G1 = sums_GN.gather(-1, (block_G1 - 1).clamp_(min=0)).masked_fill_(block_G1 == 0, 0)
    start_G1 = torch.arange(0, sums_GN.numel(), sums_GN.shape[1])[:, None]
    inside_GW = probs_GV.view(-1, width).index_select(0, (start_G1 + block_G1)[:, 0])
    inside_GW = inside_GW.to(torch.float64).cumsum(dim=-1)
    place_G1 = _first_above(inside_GW, target_G1 - before_G1)
    # The block's float32 sum may be more than its running sum: then its last token of any weight.
    last_G1 = torch.searchsorted(inside_GW, inside_GW[:, -1:].contiguous())
    ids_G1 = block_G1 * width + torch.minimum(place_G1, last_G1)
    if not group.logprobs:
        return ids_G1[:, 0], None
    return ids_G1[:, 0], _logprobs_of_all(logits_GV, ids_G1, temperature, probs_GV, blocks_GN)
