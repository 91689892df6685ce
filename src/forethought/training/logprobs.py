"""Log-probabilities and entropies of tokens, without holding the logits of a whole batch.

With a vocabulary of many thousands, logits outweigh the network that made them. Here they exist
for one chunk of tokens at a time; the backward pass computes them once more. A batch that fits
into one chunk keeps its probabilities instead, and computes nothing twice.

N: tokens, D: width of the residual stream, V: vocabulary, C: tokens of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

_HELD = 1 << 26
"""Numbers of a chunk's [C, V] unless the caller says otherwise: 256 MiB in float32."""


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
    if chunk is None:
        chunk = max(1, _HELD // head_weight_VD.shape[0])
    if chunk < 1:
        raise ValueError(f"chunk {chunk}: at least one token must be held")
    results: tuple[torch.Tensor, torch.Tensor] = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head_weight_VD, targets_N, temperature, chunk, entropy
    )
    return results


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
