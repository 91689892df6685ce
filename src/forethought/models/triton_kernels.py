"""Triton kernels of the small layers: one pass over memory each, where torch makes several.

What is here computes; gradients and the choice of when to use it are in `fused`. A module of its
own, since it needs triton: import it only where there is a CUDA device.

Rows are the leading axes of a tensor taken together; the last axis is contiguous. Sums are float32
and rounded once, to the dtype of what is written.
"""

# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def,untyped-decorator,attr-defined"
# Triton compiles the kernels below: their arguments are pointers and numbers of its own.

from __future__ import annotations

import torch
import triton
import triton.language as tl

_TILE = 4096
"""Numbers that one program holds at a time, roughly."""


def _rows_of_a_tile(width: int) -> int:
    return max(1, min(32, _TILE // width))


@triton.jit(do_not_specialize=["rows"])
def _norm_forward(
    x_ptr, delta_ptr, sum_ptr, weight_ptr, out_ptr, rstd_ptr,
    rows, stride, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < WIDTH)
    x = tl.load(x_ptr + row * stride + column, mask=inside, other=0.0)
    if ADD:
        delta = tl.load(delta_ptr + row * WIDTH + column, mask=inside, other=0.0)
        x = (x.to(tl.float32) + delta.to(tl.float32)).to(x.dtype)
        tl.store(sum_ptr + row * WIDTH + column, x, mask=inside)
    wide = x.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(wide * wide, axis=1)[:, None] / WIDTH + eps)
    normed = (wide * rstd).to(x.dtype)
    weight = tl.load(weight_ptr + column, mask=column < WIDTH, other=0.0)
    out = normed.to(tl.float32) * weight.to(tl.float32)
    tl.store(out_ptr + row * WIDTH + column, out.to(x.dtype), mask=inside)
    tl.store(rstd_ptr + row, rstd, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "tiles"])
def _norm_backward(
    grad_ptr, through_ptr, x_ptr, weight_ptr, rstd_ptr, out_ptr, partial_ptr,
    rows, tiles, stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK)[None, :]
    weight = tl.load(weight_ptr + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    total = tl.zeros((1, BLOCK), dtype=tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row = (tile * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        inside = (row < rows) & (column < WIDTH)
        x = tl.load(x_ptr + row * stride + column, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + row * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)
        normed = x * rstd
        total += tl.sum(grad * normed, axis=0)[None, :]
        scaled = grad * weight
        mean = tl.sum(scaled * normed, axis=1)[:, None] / WIDTH
        out = rstd * (scaled - normed * mean)
        if ADD:
            through = tl.load(through_ptr + row * WIDTH + column, mask=inside, other=0.0)
            out += through.to(tl.float32)
        tl.store(out_ptr + row * WIDTH + column, out.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(partial_ptr + tl.program_id(0) * WIDTH + column, total, mask=column < WIDTH)


def norm_forward(
    x_ND: torch.Tensor, delta_ND: torch.Tensor | None, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x + delta, its RMSNorm, 1 / rms [N] float32); without delta the sum is x itself."""
    rows, width = x_ND.shape
    out = torch.empty(rows, width, dtype=x_ND.dtype, device=x_ND.device)
    rstd = torch.empty(rows, dtype=torch.float32, device=x_ND.device)
    total = x_ND if delta_ND is None else torch.empty_like(out)
    block = triton.next_power_of_2(width)
    per_tile = _rows_of_a_tile(block)
    _norm_forward[(triton.cdiv(rows, per_tile),)](
        x_ND, delta_ND, total, weight_D, out, rstd, rows, x_ND.stride(0), eps,
        WIDTH=width, BLOCK=block, ROWS=per_tile, ADD=delta_ND is not None,
        num_warps=4 if block <= 2048 else 8,
    )  # fmt: skip
    return total, out, rstd


def norm_backward(
    grad_ND: torch.Tensor,
    through_ND: torch.Tensor | None,
    x_ND: torch.Tensor,
    weight_D: torch.Tensor,
    rstd_N: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of (x, weight); ``through_ND`` is what reaches x past the norm."""
    rows, width = x_ND.shape
    out = torch.empty(rows, width, dtype=x_ND.dtype, device=x_ND.device)
    block = triton.next_power_of_2(width)
    per_tile = _rows_of_a_tile(2 * block)
    tiles = triton.cdiv(rows, per_tile)
    programs = min(tiles, 4 * _processors(x_ND.device.index))
    partial = torch.empty(programs, width, dtype=torch.float32, device=x_ND.device)
    _norm_backward[(programs,)](
        grad_ND, through_ND, x_ND, weight_D, rstd_N, out, partial, rows, tiles, x_ND.stride(0),
        WIDTH=width, BLOCK=block, ROWS=per_tile, ADD=through_ND is not None,
        num_warps=4 if block <= 2048 else 8,
    )  # fmt: skip
    return out, partial.sum(dim=0).to(weight_D.dtype)


def _processors(index: int | None) -> int:
    if not torch.cuda.is_available():
        return 1
    return int(torch.cuda.get_device_properties(index or 0).multi_processor_count)


@triton.jit(do_not_specialize=["rows"])
def _swiglu_forward(
    gate_ptr, up_ptr, out_ptr, rows, gate_stride, up_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < WIDTH)
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=inside, other=0.0)
    up = tl.load(up_ptr + row * up_stride + column, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    out = silu.to(tl.float32) * up.to(tl.float32)
    tl.store(out_ptr + row * WIDTH + column, out.to(gate.dtype), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _swiglu_backward(
    grad_ptr, gate_ptr, up_ptr, to_gate_ptr, to_up_ptr, rows, gate_stride, up_stride, to_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < WIDTH)
    grad = tl.load(grad_ptr + row * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    share = 1.0 / (1.0 + tl.exp(-gate))
    silu = gate * share
    to_gate = grad * up * (share + silu * (1.0 - share))
    kind = to_gate_ptr.dtype.element_ty
    tl.store(to_gate_ptr + row * to_stride + column, to_gate.to(kind), mask=inside)
    tl.store(to_up_ptr + row * to_stride + column, (grad * silu).to(kind), mask=inside)


def _swiglu_tiles(rows: int, width: int) -> tuple[int, int, tuple[int, int]]:
    block = min(1024, triton.next_power_of_2(width))
    per_tile = max(1, 2048 // block)
    return block, per_tile, (triton.cdiv(rows, per_tile), triton.cdiv(width, block))


def swiglu_forward(gate_NF: torch.Tensor, up_NF: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, [N, F]; both may be columns of one wider tensor."""
    rows, width = gate_NF.shape
    out = torch.empty(rows, width, dtype=gate_NF.dtype, device=gate_NF.device)
    block, per_tile, grid = _swiglu_tiles(rows, width)
    _swiglu_forward[grid](
        gate_NF, up_NF, out, rows, gate_NF.stride(0), up_NF.stride(0),
        WIDTH=width, BLOCK=block, ROWS=per_tile,
    )  # fmt: skip
    return out


def swiglu_backward(
    grad_NF: torch.Tensor, gate_NF: torch.Tensor, up_NF: torch.Tensor
) -> torch.Tensor:
    """Gradients of gate and up side by side, [2, N, F] for separate inputs laid one after the
    other; see `swiglu_backward_into` for columns of one tensor."""
    out = torch.empty(2, *gate_NF.shape, dtype=gate_NF.dtype, device=gate_NF.device)
    swiglu_backward_into(grad_NF, gate_NF, up_NF, out[0], out[1])
    return out


def swiglu_backward_into(
    grad_NF: torch.Tensor,
    gate_NF: torch.Tensor,
    up_NF: torch.Tensor,
    to_gate_NF: torch.Tensor,
    to_up_NF: torch.Tensor,
) -> None:
    """Write the gradients of gate and up, whose rows are equally far apart."""
    rows, width = gate_NF.shape
    block, per_tile, grid = _swiglu_tiles(rows, width)
    _swiglu_backward[grid](
        grad_NF, gate_NF, up_NF, to_gate_NF, to_up_NF,
        rows, gate_NF.stride(0), up_NF.stride(0), to_gate_NF.stride(0),
        WIDTH=width, BLOCK=block, ROWS=per_tile,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "steps"])
def _rotate(
    x_ptr, cos_ptr, sin_ptr, out_ptr,
    rows, steps, x_batch, x_head, x_step, cos_batch, out_batch, out_head, out_step,
    HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    IN_PAIRS: tl.constexpr, OUT_PAIRS: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < HALF)
    head, token = row % HEADS, row // HEADS
    batch, step = token // steps, token % steps
    at = batch * cos_batch + step * HALF + column
    cos = tl.load(cos_ptr + at, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if BACK:
        sin = -sin
    start = x_ptr + batch * x_batch + head * x_head + step * x_step
    if IN_PAIRS:
        first = tl.load(start + 2 * column, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(start + 2 * column + 1, mask=inside, other=0.0).to(tl.float32)
    else:
        first = tl.load(start + column, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(start + HALF + column, mask=inside, other=0.0).to(tl.float32)
    a = (first * cos - second * sin).to(out_ptr.dtype.element_ty)
    b = (second * cos + first * sin).to(out_ptr.dtype.element_ty)
    start = out_ptr + batch * out_batch + head * out_head + step * out_step
    if OUT_PAIRS:
        tl.store(start + 2 * column, a, mask=inside)
        tl.store(start + 2 * column + 1, b, mask=inside)
    else:
        tl.store(start + column, a, mask=inside)
        tl.store(start + HALF + column, b, mask=inside)


def rotate(
    x_BHTD: torch.Tensor,
    cos_BTR: torch.Tensor,
    sin_BTR: torch.Tensor,
    *,
    pairs: bool,
    back: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotated columns, [B, H, T, D], laid out token by token unless ``out`` says where. ``back``:
    the gradient's way."""
    batch, heads, steps, width = x_BHTD.shape
    if out is None:
        out = x_BHTD.new_empty(batch, steps, heads, width).transpose(1, 2)
    half = width // 2
    block = triton.next_power_of_2(half)
    per_tile = max(1, 1024 // block)
    rows = batch * steps * heads
    _rotate[(triton.cdiv(rows, per_tile),)](
        x_BHTD, cos_BTR, sin_BTR, out, rows, steps, *x_BHTD.stride()[:3],
        0 if cos_BTR.shape[0] == 1 else cos_BTR.stride(0), *out.stride()[:3],
        HEADS=heads, HALF=half, BLOCK=block, ROWS=per_tile,
        IN_PAIRS=pairs and not back, OUT_PAIRS=pairs and back, BACK=back,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["tokens"])
def _gather_sum(
    rows_ptr, place_ptr, weight_ptr, base_ptr, out_ptr, tokens,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, USED: tl.constexpr, WEIGHTED: tl.constexpr,
    ADD: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for k in tl.static_range(USED):
        place = tl.load(place_ptr + token * USED + k).to(tl.int64)
        part = tl.load(rows_ptr + place * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
        if WEIGHTED:
            part *= tl.load(weight_ptr + token * USED + k)
        total += part
    if ADD:
        # Rounded before it is added, as two operations would.
        total = total.to(out_ptr.dtype.element_ty).to(tl.float32)
        base = tl.load(base_ptr + token * WIDTH + column, mask=inside, other=0.0)
        total += base.to(tl.float32)
    tl.store(out_ptr + token * WIDTH + column, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _scatter(
    tokens_ptr, place_ptr, weight_ptr, rows_ptr, out_ptr, to_weight_ptr, tokens,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, USED: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    x = tl.load(tokens_ptr + token * WIDTH + column, mask=inside, other=0.0)
    for k in tl.static_range(USED):
        place = tl.load(place_ptr + token * USED + k).to(tl.int64)
        if WEIGHTED:
            wide = x.to(tl.float32)
            row = tl.load(rows_ptr + place * WIDTH + column, mask=inside, other=0.0)
            tl.store(to_weight_ptr + token * USED + k, tl.sum(wide * row.to(tl.float32)))
            weight = tl.load(weight_ptr + token * USED + k)
            tl.store(out_ptr + place * WIDTH + column, (wide * weight).to(x.dtype), mask=inside)
        else:
            tl.store(out_ptr + place * WIDTH + column, x, mask=inside)


def gather_sum(
    rows_MD: torch.Tensor,
    place_NK: torch.Tensor,
    weights_NK: torch.Tensor | None,
    base_ND: torch.Tensor | None = None,
) -> torch.Tensor:
    """For each token the (weighted) sum of its K rows, in float32 and rounded, plus ``base_ND``
    where it is given; [N, D]."""
    tokens, used = place_NK.shape
    width = rows_MD.shape[1]
    out = rows_MD.new_empty(tokens, width)
    block = triton.next_power_of_2(width)
    _gather_sum[(tokens,)](
        rows_MD, place_NK, weights_NK, base_ND, out, tokens,
        WIDTH=width, BLOCK=block, USED=used, WEIGHTED=weights_NK is not None,
        ADD=base_ND is not None, num_warps=_few_warps(block),
    )  # fmt: skip
    return out


def scatter(tokens_ND: torch.Tensor, place_NK: torch.Tensor) -> torch.Tensor:
    """Each token's row at its K places; [N * K, D]."""
    tokens, used = place_NK.shape
    width = tokens_ND.shape[1]
    out = tokens_ND.new_empty(tokens * used, width)
    block = triton.next_power_of_2(width)
    _scatter[(tokens,)](
        tokens_ND, place_NK, None, None, out, None, tokens,
        WIDTH=width, BLOCK=block, USED=used, WEIGHTED=False, num_warps=_few_warps(block),
    )  # fmt: skip
    return out


def scatter_weighted(
    grad_ND: torch.Tensor,
    place_NK: torch.Tensor,
    weights_NK: torch.Tensor,
    rows_MD: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of a weighted `gather_sum`: (of its rows [M, D], of its weights [N, K])."""
    tokens, used = place_NK.shape
    width = grad_ND.shape[1]
    out, to_weights = torch.empty_like(rows_MD), torch.empty_like(weights_NK)
    block = triton.next_power_of_2(width)
    _scatter[(tokens,)](
        grad_ND, place_NK, weights_NK, rows_MD, out, to_weights, tokens,
        WIDTH=width, BLOCK=block, USED=used, WEIGHTED=True, num_warps=_few_warps(block),
    )  # fmt: skip
    return out, to_weights


def _few_warps(block: int) -> int:
    return max(1, min(8, block // 256))


@triton.jit(do_not_specialize=["tokens"])
def _top_columns(
    choice_ptr, out_ptr, tokens,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, USED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row[:, None] < tokens) & (column < COLUMNS)
    at = choice_ptr + row[:, None] * COLUMNS + column
    choice = tl.load(at, mask=inside, other=float("-inf"))
    for k in tl.static_range(USED):
        best = tl.argmax(choice, axis=1)
        tl.store(out_ptr + row * USED + k, best.to(tl.int64), mask=row < tokens)
        choice = tl.where(column == best[:, None], float("-inf"), choice)


def top_columns(choice_NE: torch.Tensor, top_k: int) -> torch.Tensor:
    """The columns of each row's ``top_k`` largest numbers, the larger first; int64 [N, K]."""
    tokens, columns = choice_NE.shape
    out = torch.empty(tokens, top_k, dtype=torch.int64, device=choice_NE.device)
    block = triton.next_power_of_2(columns)
    per_tile = max(1, 2048 // block)
    _top_columns[(triton.cdiv(tokens, per_tile),)](
        choice_NE, out, tokens, COLUMNS=columns, BLOCK=block, ROWS=per_tile, USED=top_k
    )
    return out
