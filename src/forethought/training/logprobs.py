"""Log-probabilities and entropies of tokens, without holding the logits of a whole batch.

With a vocabulary of many thousands, logits outweigh the network that made them. Here they exist
for one chunk of tokens at a time; the backward pass computes them once more. A batch that fits
into one chunk keeps its probabilities instead, and computes nothing twice.

On CUDA in 16 bits the products take the head as it is and give float32: products of such numbers
are exact and sums are float32, which is what widening the whole head first would compute, without
the copy and at the speed of the matrix units. What follows is one kernel a pass over a row.

N: tokens, D: width of the residual stream, V: vocabulary, C: tokens of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from forethought.models import fused

_HELD = 1 << 26
"""Numbers of a chunk's [C, V] unless the caller says otherwise: 256 MiB in float32."""
_HELD_ON_CUDA = 1 << 28
"""The same on CUDA, 1 GiB: a product of fewer rows does not fill the device."""


def rows_of(hidden_1ND: torch.Tensor, rows_L: torch.Tensor) -> torch.Tensor:
    """Some rows of a packed row's states, each at most once; [L, D].

    The gradient is copied back to them; an index's own would be sorted and added up.
    """
    rows: torch.Tensor = _Rows.apply(hidden_1ND, rows_L)  # type: ignore[no-untyped-call]
    return rows


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_1ND: torch.Tensor, rows_L: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows_L)
        ctx.shape = hidden_1ND.shape
        return hidden_1ND[0].index_select(0, rows_L)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_LD: torch.Tensor) -> tuple[torch.Tensor, None]:
        (rows_L,) = ctx.saved_tensors
        whole = grad_LD.new_zeros(ctx.shape)
        whole[0].index_copy_(0, rows_L, grad_LD)
        return whole, None


def token_logprobs(
    hidden_ND: torch.Tensor,
    head_weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    temperature: float = 1.0,
    chunk: int | None = None,
    *,
    entropy: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """How likely each target is, and how open the choice was: (logprobs_N, entropy_N), in nats.

    Row n of ``hidden_ND`` predicts ``targets_N[n]`` (int64). Both results are of the distribution
    softmax(hidden @ head.T / temperature), which is the sampler's when it neither truncates nor
    forbids ids; for a vocabulary padded beyond the tokenizer, give the rows of the head that can
    be drawn. Log-probabilities are never positive. Gradients reach hidden states and head through
    them; the entropy is for reading and has none.

    Whatever the dtype of the inputs, the computation and its results are float32, or float64 where
    the hidden states are. ``chunk``: tokens whose logits are held at once; the results do not
    depend on it, but for rounding. Without ``entropy`` that result is zeros. Raises ValueError for
    a temperature or chunk that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}: log-probabilities need a positive one")
    on_cuda = fused.usable(hidden_ND) and head_weight_VD.dtype == hidden_ND.dtype
    if chunk is None:
        held = _HELD_ON_CUDA if on_cuda else _HELD
        chunk = max(1, held // head_weight_VD.shape[0])
    if chunk < 1:
        raise ValueError(f"chunk {chunk}: at least one token must be held")
    way = _TokenLogprobsOnCuda if on_cuda else _TokenLogprobs
    results: tuple[torch.Tensor, torch.Tensor] = way.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head_weight_VD, targets_N, temperature, chunk, entropy
    )
    return results


def summed_surprise(
    hidden_ND: torch.Tensor,
    head_weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    weights_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """The sum of -log p(target) over the rows, a scalar: what cross entropy is before its division.
    Rows count with their weights (of any dtype, no gradient) where they are given.

    On CUDA in 16 bits the gradient is computed beside the value, while a chunk's logits exist: all
    of them are wanted with one weight, so nothing has to be computed again on the way back.
    """
    usable = fused.usable(hidden_ND) and head_weight_VD.dtype == hidden_ND.dtype
    if usable and torch.is_grad_enabled():
        total: torch.Tensor = _SummedSurprise.apply(  # type: ignore[no-untyped-call]
            hidden_ND, head_weight_VD, targets_N, weights_N
        )
        return total
    logprobs_N = token_logprobs(hidden_ND, head_weight_VD, targets_N, entropy=False)[0]
    return -(logprobs_N if weights_N is None else logprobs_N * weights_N).sum()


class _SummedSurprise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_N: torch.Tensor,
        weights_N: torch.Tensor | None,
    ) -> torch.Tensor:
        from forethought.training.logprob_kernels import row_gradient, row_statistics

        count = len(targets_N)
        chunk = max(1, _HELD_ON_CUDA // len(weight_VD))
        logprobs_N = torch.empty(count, dtype=torch.float32, device=hidden_ND.device)
        log_sum_N = torch.empty_like(logprobs_N)
        factors_N = torch.full_like(logprobs_N, -1.0) if weights_N is None else -weights_N.float()
        grad_ND = torch.empty_like(hidden_ND)
        grad_VD: torch.Tensor | None = None
        for rows in _slices(count, chunk):
            logits_CV = _logits(hidden_ND[rows], weight_VD)
            targets_C, log_sum_C = targets_N[rows], log_sum_N[rows]
            row_statistics(
                logits_CV, targets_C, logprobs_N[rows], logprobs_N, log_sum_C, 1.0, entropy=False
            )
            grad_CV = torch.empty_like(logits_CV, dtype=hidden_ND.dtype)
            row_gradient(logits_CV, targets_C, log_sum_C, factors_N[rows], grad_CV, 1.0)
            del logits_CV
            torch.mm(grad_CV, weight_VD, out=grad_ND[rows])
            grad_VD = _added(grad_VD, grad_CV, hidden_ND[rows], last=count <= chunk)
        if grad_VD is None:
            grad_VD = torch.zeros_like(weight_VD)
        ctx.save_for_backward(grad_ND, grad_VD)
        ctx.dtype = weight_VD.dtype
        return (logprobs_N * factors_N).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        grad_ND, grad_VD = ctx.saved_tensors
        # In float32: rounded to 16 bits, the factor would be off for all tokens alike.
        to_hidden = (grad_ND.float() * grad).to(grad_ND.dtype)
        return to_hidden, (grad_VD.float() * grad).to(ctx.dtype), None, None


class _TokenLogprobs(torch.autograd.Function):
    """d logprob / d logits = one-hot(target) - probabilities, and two products from there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_N: torch.Tensor,
        temperature: float,
        chunk: int,
        entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scaled_ND, wide_VD = _widened(hidden_ND, weight_VD, temperature)
        logprobs_N = scaled_ND.new_empty(len(targets_N))
        entropy_N = torch.zeros_like(logprobs_N)
        probs_CV = None
        for rows, logits_CV, probs_CV in _chunks(scaled_ND, wide_VD, chunk):
            # The normaliser, from the largest term: a probability that cannot underflow.
            log_sum_C = logits_CV.amax(dim=-1) - probs_CV.amax(dim=-1).log()
            chosen_C = logits_CV.gather(-1, targets_N[rows, None]).squeeze(-1)
            mean_C = logits_CV.mul_(probs_CV).sum(dim=-1)
            logprobs_N[rows] = (chosen_C - log_sum_C).clamp_(max=0)
            entropy_N[rows] = (log_sum_C - mean_C).clamp_(min=0)
        kept_NV = probs_CV if len(targets_N) <= chunk else None
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, kept_NV)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_N: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None, None, None]:
        hidden_ND, weight_VD, targets_N, kept_NV = ctx.saved_tensors
        scaled_ND, wide_VD = _widened(hidden_ND, weight_VD, ctx.temperature)
        grad_ND = torch.empty_like(scaled_ND) if ctx.needs_input_grad[0] else None
        grad_VD = torch.zeros_like(wide_VD) if ctx.needs_input_grad[1] else None
        if kept_NV is not None:
            parts = iter([(slice(None), kept_NV)])
        else:
            parts = ((rows, probs) for rows, _, probs in _chunks(scaled_ND, wide_VD, ctx.chunk))
        for rows, grad_CV in parts:
            # In place, where the probabilities are: autograd refuses a second backward pass.
            grad_C1 = grad_N[rows, None]
            grad_CV.mul_(-grad_C1).scatter_add_(-1, targets_N[rows, None], grad_C1)
            if grad_ND is not None:
                torch.mm(grad_CV, wide_VD, out=grad_ND[rows])
            if grad_VD is not None:
                grad_VD.addmm_(grad_CV.T, scaled_ND[rows])
        if grad_ND is not None:
            grad_ND = grad_ND.div_(ctx.temperature).to(hidden_ND.dtype)
        if grad_VD is not None:
            grad_VD = grad_VD.to(weight_VD.dtype)
        return grad_ND, grad_VD, None, None, None, None


def _widened(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states divided by the temperature (N x D divisions, not N x V), and the head."""
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    return hidden_ND.to(wide) / temperature, weight_VD.to(wide)


def _chunks(
    scaled_ND: torch.Tensor, weight_VD: torch.Tensor, chunk: int
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """(rows, logits_CV, probabilities_CV) in turn; the two buffers are filled anew each time."""
    count = len(scaled_ND)
    size = max(1, min(chunk, count))
    logits_CV = scaled_ND.new_empty(size, len(weight_VD))
    probs_CV = torch.empty_like(logits_CV)
    for start in range(0, count, size):
        rows = slice(start, min(start + size, count))
        some = slice(0, rows.stop - rows.start)
        torch.mm(scaled_ND[rows], weight_VD.T, out=logits_CV[some])
        torch.softmax(logits_CV[some], dim=-1, out=probs_CV[some])
        yield rows, logits_CV[some], probs_CV[some]


class _TokenLogprobsOnCuda(torch.autograd.Function):
    """The same from 16-bit inputs, with float32 logits; see the top of the module."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_N: torch.Tensor,
        temperature: float,
        chunk: int,
        entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        from forethought.training.logprob_kernels import row_statistics

        count = len(targets_N)
        logprobs_N = torch.empty(count, dtype=torch.float32, device=hidden_ND.device)
        log_sum_N, entropy_N = torch.empty_like(logprobs_N), torch.zeros_like(logprobs_N)
        logits_CV = None
        for rows in _slices(count, chunk):
            logits_CV = _logits(hidden_ND[rows], weight_VD)
            row_statistics(
                logits_CV,
                targets_N[rows],
                logprobs_N[rows],
                entropy_N[rows],
                log_sum_N[rows],
                temperature,
                entropy=entropy,
            )
        kept_NV = logits_CV if count <= chunk else None
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, log_sum_N, kept_NV)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_N: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None, None, None]:
        from forethought.training.logprob_kernels import row_gradient

        hidden_ND, weight_VD, targets_N, log_sum_N, kept_NV = ctx.saved_tensors
        grad_N = grad_N.float().contiguous()
        grad_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        grad_VD: torch.Tensor | None = None
        for rows in _slices(len(targets_N), ctx.chunk):
            logits_CV = _logits(hidden_ND[rows], weight_VD) if kept_NV is None else kept_NV
            grad_CV = torch.empty_like(logits_CV, dtype=hidden_ND.dtype)
            row_gradient(
                logits_CV, targets_N[rows], log_sum_N[rows], grad_N[rows], grad_CV, ctx.temperature
            )
            del logits_CV
            if grad_ND is not None:
                torch.mm(grad_CV, weight_VD, out=grad_ND[rows])
            if ctx.needs_input_grad[1]:
                grad_VD = _added(grad_VD, grad_CV, hidden_ND[rows], last=kept_NV is not None)
        if ctx.needs_input_grad[1]:
            grad_VD = (
                torch.zeros_like(weight_VD) if grad_VD is None else grad_VD.to(weight_VD.dtype)
            )
        return grad_ND, grad_VD, None, None, None, None


def _slices(count: int, chunk: int) -> Iterator[slice]:
    for start in range(0, count, chunk):
        yield slice(start, min(start + chunk, count))


def _logits(hidden_CD: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
    return torch.mm(hidden_CD, weight_VD.t(), out_dtype=torch.float32)


def _added(
    total_VD: torch.Tensor | None, grad_CV: torch.Tensor, hidden_CD: torch.Tensor, *, last: bool
) -> torch.Tensor:
    """total + grad.T @ hidden in float32; in the inputs' own dtype where it is the only part."""
    if last:
        return grad_CV.t() @ hidden_CD
    part_VD = torch.mm(grad_CV.t(), hidden_CD, out_dtype=torch.float32)
    return part_VD if total_VD is None else total_VD.add_(part_VD)
