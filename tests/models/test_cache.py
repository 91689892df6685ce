"""The reference cache against attention over the whole sequence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.models.attention import AttentionCache, causal_attention
from forethought.models.cache import PlainCache


def tensors(heads: int, length: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, heads, length, width, generator=generator, dtype=torch.float64)


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention written out: softmax of masked products, each key head for its group."""
    group = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(group, 1).transpose(-1, -2) * scale
    length = q.shape[2]
    hidden = torch.arange(length)[None, :] > torch.arange(length)[:, None]
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return weights @ v.repeat_interleave(group, 1)


@settings(max_examples=25, deadline=None)
@given(
    chunks=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    groups=st.sampled_from([1, 3]),
    latent=st.booleans(),
)
def test_any_chunking_equals_the_whole(chunks: list[int], groups: int, latent: bool) -> None:
    length = sum(chunks)
    q, k = tensors(6, length, 7, 0), tensors(groups, length, 7, 1)
    v = None if latent else tensors(groups, length, 4, 2)
    expected = by_hand(q, k, k if v is None else v, 0.3)
    cache: AttentionCache = PlainCache(2, length, 2)
    parts = []
    first = 0
    for new in chunks:
        here = slice(first, first + new)
        value = None if v is None else v[:, :, here]
        for layer in (0, 1):
            out = cache.attend(layer, q[:, :, here], k[:, :, here], value, 0.3)
        parts.append(out)
        first += new
    torch.testing.assert_close(torch.cat(parts, dim=2), expected)
    if v is not None:
        torch.testing.assert_close(causal_attention(q, k, v, 0.3), expected)


def test_positions_follow_the_length() -> None:
    cache = PlainCache(2, 8, 1)
    assert cache.positions(3).tolist() == [[0, 1, 2], [0, 1, 2]]
    x = tensors(1, 3, 4, 0)
    cache.attend(0, x, x, x, 1.0)
    assert cache.length == 3
    assert cache.positions(2).tolist() == [[3, 4], [3, 4]]


def test_truncated_tokens_leave_no_trace() -> None:
    q, k, v = (tensors(2, 9, 5, seed) for seed in range(3))
    expected = by_hand(q, k, v, 1.0)
    cache = PlainCache(2, 9, 1)
    cache.attend(0, q[:, :, :4], k[:, :, :4], v[:, :, :4], 1.0)
    wrong = tensors(2, 3, 5, 9)
    cache.attend(0, wrong, wrong, wrong, 1.0)
    cache.truncate(4)
    assert cache.length == 4
    out = cache.attend(0, q[:, :, 4:], k[:, :, 4:], v[:, :, 4:], 1.0)
    torch.testing.assert_close(out, expected[:, :, 4:])


def test_more_than_the_capacity_or_another_batch_is_refused() -> None:
    cache = PlainCache(2, 4, 1)
    x = tensors(1, 5, 4, 0)
    with pytest.raises(ValueError, match="4 tokens, not 5"):
        cache.attend(0, x, x, x, 1.0)
    with pytest.raises(ValueError, match="2 rows, not 1"):
        cache.attend(0, x[:1, :, :1], x[:1, :, :1], x[:1, :, :1], 1.0)
    assert cache.length == 0
