"""Triton kernels between latent attention's projections and attention itself.

N: tokens, H: heads, Q: qk_nope_head_dim, P: qk_rope_head_dim, R = P / 2, V: v_head_dim, W: the
width that the attention kernel takes (at least Q + P and V, a multiple of 8; the rest is zero).

Queries and keys are joined of a part that is rotated and one that is not, and the rotated key is
every head's: done one by one that is two rotations, two concatenations, an expansion and a padding.
Here all of it is one pass over the data, and its gradient two. Needs triton, see `triton_kernels`.
"""

# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def,untyped-decorator,attr-defined"

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _turned(start, cos_ptr, sin_ptr, at, r, inside, HALF: tl.constexpr, PAIRS: tl.constexpr):
    """Column r of the rotated part of a row that begins at ``start``; halves lead in the result."""
    i = r % HALF
    first_at = 2 * i if PAIRS else i
    second_at = 2 * i + 1 if PAIRS else i + HALF
    first = tl.load(start + first_at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(start + second_at, mask=inside, other=0.0).to(tl.float32)
    cos = tl.load(cos_ptr + at + i, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + at + i, mask=inside, other=0.0).to(tl.float32)
    return tl.where(r < HALF, first * cos - second * sin, second * cos + first * sin)


@triton.jit
def _turned_back(start, cos_ptr, sin_ptr, at, r, inside, HALF: tl.constexpr, PAIRS: tl.constexpr):
    """The gradient of column r before the rotation, from that of its result at ``start``."""
    i = r // 2 if PAIRS else r % HALF
    is_second = (r % 2 == 1) if PAIRS else (r >= HALF)
    a = tl.load(start + i, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(start + HALF + i, mask=inside, other=0.0).to(tl.float32)
    cos = tl.load(cos_ptr + at + i, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + at + i, mask=inside, other=0.0).to(tl.float32)
    return tl.where(is_second, b * cos - a * sin, a * cos + b * sin)


@triton.jit(do_not_specialize=["rows"])
def _joined(
    q_ptr, kv_ptr, key_ptr, cos_ptr, sin_ptr, to_q_ptr, to_k_ptr, to_v_ptr,
    rows, q_stride, kv_stride, key_stride,
    HEADS: tl.constexpr, PLAIN: tl.constexpr, TURNED: tl.constexpr, VALUE: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    real = row < rows
    token, head = row // HEADS, row % HEADS
    plain = real & (column < PLAIN)
    r = column - PLAIN
    turned = real & (column >= PLAIN) & (column < PLAIN + TURNED)
    HALF: tl.constexpr = TURNED // 2
    at = token * HALF
    kind = to_q_ptr.dtype.element_ty

    start = q_ptr + token * q_stride + head * (PLAIN + TURNED)
    q = tl.load(start + column, mask=plain, other=0.0).to(tl.float32)
    q += _turned(start + PLAIN, cos_ptr, sin_ptr, at, r, turned, HALF, PAIRS)
    out = row * WIDTH + column
    stored = real & (column < WIDTH)
    tl.store(to_q_ptr + out, q.to(kind), mask=stored)

    start = kv_ptr + token * kv_stride + head * (PLAIN + VALUE)
    k = tl.load(start + column, mask=plain, other=0.0).to(tl.float32)
    k += _turned(key_ptr + token * key_stride, cos_ptr, sin_ptr, at, r, turned, HALF, PAIRS)
    tl.store(to_k_ptr + out, k.to(kind), mask=stored)
    value = tl.load(start + PLAIN + column, mask=real & (column < VALUE), other=0.0)
    tl.store(to_v_ptr + out, value, mask=stored)


@triton.jit(do_not_specialize=["rows"])
def _parted_heads(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, to_q_ptr, to_kv_ptr, rows,
    HEADS: tl.constexpr, PLAIN: tl.constexpr, TURNED: tl.constexpr, VALUE: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    real = row < rows
    token = row // HEADS
    plain = real & (column < PLAIN)
    r = column - PLAIN
    turned = real & (column >= PLAIN) & (column < PLAIN + TURNED)
    HALF: tl.constexpr = TURNED // 2
    kind = to_q_ptr.dtype.element_ty
    start = q_ptr + row * WIDTH
    q = tl.load(start + column, mask=plain, other=0.0).to(tl.float32)
    q += _turned_back(start + PLAIN, cos_ptr, sin_ptr, token * HALF, r, turned, HALF, PAIRS)
    tl.store(to_q_ptr + row * (PLAIN + TURNED) + column, q.to(kind), mask=plain | turned)
    k = tl.load(k_ptr + row * WIDTH + column, mask=plain, other=0.0)
    tl.store(to_kv_ptr + row * (PLAIN + VALUE) + column, k, mask=plain)
    value = real & (column < VALUE)
    v = tl.load(v_ptr + row * WIDTH + column, mask=value, other=0.0)
    tl.store(to_kv_ptr + row * (PLAIN + VALUE) + PLAIN + column, v, mask=value)


@triton.jit(do_not_specialize=["tokens"])
def _parted_key(
    k_ptr, cos_ptr, sin_ptr, to_key_ptr, tokens,
    HEADS: tl.constexpr, PLAIN: tl.constexpr, TURNED: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    r = tl.arange(0, BLOCK)[None, :]
    inside = (token < tokens) & (r < TURNED)
    HALF: tl.constexpr = TURNED // 2
    total = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for head in tl.static_range(HEADS):
        start = k_ptr + (token * HEADS + head) * WIDTH + PLAIN
        total += _turned_back(start, cos_ptr, sin_ptr, token * HALF, r, inside, HALF, PAIRS)
    tl.store(to_key_ptr + token * TURNED + r, total.to(to_key_ptr.dtype.element_ty), mask=inside)


def joined(
    q_NX: torch.Tensor,
    kv_NY: torch.Tensor,
    key_NP: torch.Tensor,
    cos_NR: torch.Tensor,
    sin_NR: torch.Tensor,
    *,
    heads: int,
    value: int,
    width: int,
    pairs: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of every head, [N, H, W] each, from the projections: q [N, H(Q+P)],
    kv [N, H(Q+V)], the key that is rotated [N, P]."""
    tokens, turned = key_NP.shape
    plain = q_NX.shape[1] // heads - turned
    made = q_NX.new_empty(3, tokens, heads, width)
    block = triton.next_power_of_2(width)
    per_tile = max(1, 2048 // block)
    _joined[(triton.cdiv(tokens * heads, per_tile),)](
        q_NX, kv_NY, key_NP, cos_NR, sin_NR, made[0], made[1], made[2],
        tokens * heads, q_NX.stride(0), kv_NY.stride(0), key_NP.stride(0),
        HEADS=heads, PLAIN=plain, TURNED=turned, VALUE=value, WIDTH=width,
        BLOCK=block, ROWS=per_tile, PAIRS=pairs,
    )  # fmt: skip
    return made[0], made[1], made[2]


def parted(
    to_q_NHW: torch.Tensor,
    to_k_NHW: torch.Tensor,
    to_v_NHW: torch.Tensor,
    cos_NR: torch.Tensor,
    sin_NR: torch.Tensor,
    *,
    value: int,
    pairs: bool,
    plain: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of `joined`'s q, kv and key from those of its results."""
    tokens, heads, width = to_q_NHW.shape
    turned = 2 * cos_NR.shape[-1]
    to_q = to_q_NHW.new_empty(tokens, heads * (plain + turned))
    to_kv = to_q_NHW.new_empty(tokens, heads * (plain + value))
    to_key = to_q_NHW.new_empty(tokens, turned)
    block = triton.next_power_of_2(width)
    per_tile = max(1, 2048 // block)
    _parted_heads[(triton.cdiv(tokens * heads, per_tile),)](
        to_q_NHW, to_k_NHW, to_v_NHW, cos_NR, sin_NR, to_q, to_kv, tokens * heads,
        HEADS=heads, PLAIN=plain, TURNED=turned, VALUE=value, WIDTH=width,
        BLOCK=block, ROWS=per_tile, PAIRS=pairs,
    )  # fmt: skip
    block = triton.next_power_of_2(turned)
    per_tile = max(1, 1024 // block)
    _parted_key[(triton.cdiv(tokens, per_tile),)](
        to_k_NHW, cos_NR, sin_NR, to_key, tokens,
        HEADS=heads, PLAIN=plain, TURNED=turned, WIDTH=width,
        BLOCK=block, ROWS=per_tile, PAIRS=pairs,
    )  # fmt: skip
    return to_q, to_kv, to_key
