"""Rotary positions against transformers' frequencies and against complex numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DeepseekV3Config, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from forethought.checkpoints.network_config import Llama3Scaling, YarnScaling
from forethought.models.rope import (
    rotary_cos_sin,
    rotary_table,
    rotate_half,
    rotate_pairs,
    yarn_softmax_scale,
)

DEEPSEEK = YarnScaling(
    factor=40.0,
    original_max_position_embeddings=4096,
    beta_fast=32.0,
    beta_slow=1.0,
    mscale=1.0,
    mscale_all_dim=1.0,
)


def theirs(kind: str, dim: int, **rope: float) -> tuple[torch.Tensor, float]:
    config = LlamaConfig(
        hidden_size=2 * dim,
        num_attention_heads=2,
        head_dim=dim,
        max_position_embeddings=1 << 20,
        rope_parameters={"rope_type": kind, **rope},
    )
    return ROPE_INIT_FUNCTIONS[kind](config, "cpu")


@settings(max_examples=60, deadline=None)
@given(
    half=st.integers(2, 64),
    theta=st.sampled_from([10000.0, 500000.0, 1e6]),
    factor=st.floats(1.0, 64.0),
    low=st.floats(0.5, 2.0),
    width=st.floats(0.5, 8.0),
    original=st.integers(16, 16384),
)
def test_llama3_frequencies_are_those_of_transformers(
    half: int, theta: float, factor: float, low: float, width: float, original: int
) -> None:
    scaling = Llama3Scaling(
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=low + width,
        original_max_position_embeddings=original,
    )
    expected, attention = theirs(
        "llama3",
        2 * half,
        rope_theta=theta,
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=low + width,
        original_max_position_embeddings=original,
    )
    table = rotary_table(theta, 2 * half, scaling, 1 << 20)
    torch.testing.assert_close(table.inv_freq, expected, rtol=2e-5, atol=0)
    assert table.factor == attention == 1.0


@settings(max_examples=60, deadline=None)
@given(
    half=st.integers(2, 64),
    theta=st.sampled_from([10000.0, 1e6]),
    factor=st.floats(1.0, 64.0),
    fast=st.floats(8.0, 64.0),
    slow=st.floats(0.25, 4.0),
    original=st.integers(16, 16384),
    mscales=st.sampled_from([(1.0, 0.0), (1.0, 1.0), (0.707, 0.707), (2.0, 0.5)]),
)
def test_yarn_frequencies_and_factor_are_those_of_transformers(
    half: int,
    theta: float,
    factor: float,
    fast: float,
    slow: float,
    original: int,
    mscales: tuple[float, float],
) -> None:
    fields = {
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": fast,
        "beta_slow": slow,
        "mscale": mscales[0],
        "mscale_all_dim": mscales[1],
    }
    expected, attention = theirs("yarn", 2 * half, rope_theta=theta, **fields)
    table = rotary_table(theta, 2 * half, YarnScaling(**fields), 1 << 20)
    torch.testing.assert_close(table.inv_freq, expected, rtol=2e-5, atol=0)
    assert table.factor == pytest.approx(attention, rel=1e-12)


def test_deepseek_corrects_the_softmax_and_not_the_rotation() -> None:
    config = DeepseekV3Config(
        rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, **DEEPSEEK.model_dump()}
    )
    expected, attention = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    table = rotary_table(10000.0, 64, DEEPSEEK, 163840)
    torch.testing.assert_close(table.inv_freq, expected, rtol=1e-6, atol=0)
    assert table.factor == attention == 1.0
    assert yarn_softmax_scale(DEEPSEEK) == pytest.approx((0.1 * math.log(40) + 1) ** 2)
    assert yarn_softmax_scale(DEEPSEEK) == pytest.approx(1.3689**2, rel=1e-4)
    assert yarn_softmax_scale(DEEPSEEK.model_copy(update={"mscale_all_dim": 0.0})) == 1.0
    assert yarn_softmax_scale(None) == 1.0


def test_plain_frequencies_survive_the_meta_device() -> None:
    with torch.device("meta"):
        table = rotary_table(10000.0, 6, None, 128)
    assert table.inv_freq.device.type == "cpu"
    expected = torch.tensor([1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)])
    torch.testing.assert_close(table.inv_freq, expected)
    assert table.factor == 1.0


def test_an_odd_width_is_refused() -> None:
    with pytest.raises(ValueError, match="even, not 7"):
        rotary_table(10000.0, 7, None, 128)


def test_angles_are_computed_in_float32_whatever_the_dtype() -> None:
    table = rotary_table(10000.0, 8, None, 1 << 20)
    positions = torch.tensor([[3, 100_001], [0, 65_537]])
    exact = positions.double()[..., None] * table.inv_freq.double()
    cos, sin = rotary_cos_sin(table, positions, torch.bfloat16)
    assert cos.dtype == sin.dtype == torch.bfloat16
    assert cos.shape == (2, 2, 4)
    # 100,001 in bfloat16 would be off by hundreds; in float32 the angle is within 0.01.
    torch.testing.assert_close(cos.double(), exact.cos(), rtol=0, atol=0.02)
    torch.testing.assert_close(sin.double(), exact.sin(), rtol=0, atol=0.02)


def test_the_factor_multiplies_cosines_and_sines() -> None:
    scaling = YarnScaling(factor=4.0, original_max_position_embeddings=32)
    cos, sin = rotary_cos_sin(
        rotary_table(1e4, 8, scaling, 128), torch.arange(5)[None], torch.float32
    )
    lengths = (cos**2 + sin**2).sqrt()
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.1 * math.log(4) + 1))


@pytest.mark.parametrize("rotate", [rotate_half, rotate_pairs])
def test_a_rotation_is_a_product_of_complex_numbers(rotate) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 10, generator=generator, dtype=torch.float64)
    angles = torch.randn(2, 5, 5, generator=generator, dtype=torch.float64)
    if rotate is rotate_half:
        z = torch.complex(x[..., :5], x[..., 5:])
    else:
        z = torch.complex(x[..., 0::2], x[..., 1::2])
    turned = z * torch.polar(torch.ones_like(angles), angles)[:, None]
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    torch.testing.assert_close(rotate(x, angles.cos(), angles.sin()), expected)


@pytest.mark.parametrize("rotate", [rotate_half, rotate_pairs])
def test_products_depend_on_the_distance_alone(rotate) -> None:
    table = rotary_table(10000.0, 12, None, 4096)
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 1, 1, 1, 12, generator=generator, dtype=torch.float64)

    def product(at_q: int, at_k: int) -> float:
        turned = [
            rotate(x, *rotary_cos_sin(table, torch.tensor([[at]]), torch.float64))
            for x, at in ((q, at_q), (k, at_k))
        ]
        return float((turned[0] * turned[1]).sum())

    assert product(9, 2) == pytest.approx(product(107, 100), abs=1e-4)
    assert product(9, 2) != pytest.approx(product(9, 3), abs=1e-2)
