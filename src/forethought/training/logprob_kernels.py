"""Triton kernels over rows of logits: what a token's probability needs, in one pass each.

A module of its own, since it needs triton: import it only where there is a CUDA device.
"""

# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def,untyped-decorator,attr-defined"
# Triton compiles the kernels below: their arguments are pointers and numbers of its own.

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _row_statistics(
    logits_ptr, target_ptr, logprob_ptr, entropy_ptr, log_sum_ptr, stride, inverse_temperature,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ENTROPY: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    start = logits_ptr + row * stride
    highest = tl.full((BLOCK,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    mean = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in range(0, WIDTH, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < WIDTH
        logit = tl.load(start + column, mask=inside, other=float("-inf")) * inverse_temperature
        # Every lane keeps its own maximum: no reduction until the row is read. A lane that has
        # read nothing yet has -inf, and its sums stay 0.
        above = tl.maximum(highest, logit)
        shift = tl.where(above == float("-inf"), 0.0, above)
        kept = tl.exp(highest - shift)
        weight = tl.exp(logit - shift)
        total = total * kept + weight
        if ENTROPY:
            mean = mean * kept + tl.where(inside, weight * logit, 0.0)
        highest = above
    top = tl.max(highest, axis=0)
    share = tl.exp(highest - top)
    weight_sum = tl.sum(total * share, axis=0)
    log_sum = top + tl.log(weight_sum)
    target = tl.load(target_ptr + row)
    chosen = tl.load(start + target) * inverse_temperature
    tl.store(logprob_ptr + row, tl.minimum(chosen - log_sum, 0.0))
    tl.store(log_sum_ptr + row, log_sum)
    if ENTROPY:
        entropy = log_sum - tl.sum(mean * share, axis=0) / weight_sum
        tl.store(entropy_ptr + row, tl.maximum(entropy, 0.0))


@triton.jit
def _row_gradient(
    logits_ptr, target_ptr, log_sum_ptr, grad_ptr, out_ptr, stride, inverse_temperature,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    logit = tl.load(logits_ptr + row * stride + column, mask=inside, other=float("-inf"))
    log_sum = tl.load(log_sum_ptr + row)
    grad = tl.load(grad_ptr + row) * inverse_temperature
    target = tl.load(target_ptr + row)
    probability = tl.exp(logit * inverse_temperature - log_sum)
    out = grad * (tl.where(column == target, 1.0, 0.0) - probability)
    tl.store(out_ptr + row * WIDTH + column, out.to(out_ptr.dtype.element_ty), mask=inside)


def row_statistics(
    logits_CV: torch.Tensor,
    targets_C: torch.Tensor,
    logprobs_C: torch.Tensor,
    entropy_C: torch.Tensor,
    log_sum_C: torch.Tensor,
    temperature: float,
    *,
    entropy: bool,
) -> None:
    """Fill the log-probabilities of the targets, the entropies and the log of the normaliser, from
    float32 logits that are read once."""
    rows, width = logits_CV.shape
    block = min(4096, triton.next_power_of_2(width))
    if rows:
        _row_statistics[(rows,)](
            logits_CV, targets_C, logprobs_C, entropy_C, log_sum_C,
            logits_CV.stride(0), 1.0 / temperature,
            WIDTH=width, BLOCK=block, ENTROPY=entropy, num_warps=8 if block >= 2048 else 4,
        )  # fmt: skip


def row_gradient(
    logits_CV: torch.Tensor,
    targets_C: torch.Tensor,
    log_sum_C: torch.Tensor,
    grad_C: torch.Tensor,
    out_CV: torch.Tensor,
    temperature: float,
) -> None:
    """Fill the gradient of the logits, grad * (one-hot - probabilities) / temperature."""
    rows, width = logits_CV.shape
    block = min(2048, triton.next_power_of_2(width))
    if rows:
        _row_gradient[(rows, triton.cdiv(width, block))](
            logits_CV, targets_C, log_sum_C, grad_C, out_CV,
            logits_CV.stride(0), 1.0 / temperature, WIDTH=width, BLOCK=block, num_warps=4,
        )  # fmt: skip
