"""The linear maps against float64, and the bits of a row whatever stands beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rounding_noise import RANGE_STEPS

from forethought.engines.torch.kernels import (
    SUM_OF_TWO,
    BlockedKernel,
    Int8Kernel,
    Kernel,
    PlainKernel,
    Precision,
    StackedPair,
    can_block,
    can_int8,
    has_vnni,
    make_kernel,
    make_pair,
    quantize_rows,
)

BUCKETS = (1, 2, 4, 8, 16, 32)
SHAPES = [(1, 1), (3, 7), (17, 33), (64, 64), (65, 130), (96, 301), (330, 96)]

needs_blocked = pytest.mark.skipif(not can_block(torch.float32), reason="a torch without oneDNN")
needs_half = pytest.mark.skipif(not can_block(torch.bfloat16), reason="no bfloat16 in oneDNN here")
needs_int8 = pytest.mark.skipif(not can_int8(), reason="a torch without fbgemm")
FLOAT_KERNELS = [
    pytest.param(PlainKernel, id="plain"),
    pytest.param(BlockedKernel, id="blocked", marks=needs_blocked),
]


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * scale


def parts(outputs: int, inputs: int, rows: int, bias: bool) -> tuple[torch.Tensor, ...]:
    weight_OI = numbers(outputs, inputs, seed=1, scale=inputs**-0.5)
    bias_O = numbers(outputs, seed=2) if bias else None
    return weight_OI, bias_O, numbers(rows, inputs, seed=3), numbers(rows, outputs, seed=4)


def exact(weight_OI: torch.Tensor, bias_O: torch.Tensor | None, x_NI: torch.Tensor) -> torch.Tensor:
    return F.linear(x_NI.double(), weight_OI.double(), None if bias_O is None else bias_O.double())


def forms(kernel: Kernel, x_NI: torch.Tensor, other_NO: torch.Tensor) -> list[torch.Tensor]:
    """The result as it is, with the sum, and where the kernel has them silu and product."""
    found = [kernel(x_NI), kernel.plus(x_NI, other_NO)]
    if isinstance(kernel, BlockedKernel):
        found += [kernel.swish(x_NI), kernel.times(x_NI, other_NO)]
    return found


def check_all(
    kernel: Kernel, y_NO: torch.Tensor, x_NI: torch.Tensor, other_NO: torch.Tensor, bound: float
) -> None:
    """Every form of a kernel against float64, within `bound` of the greatest value."""
    before = x_NI.clone(), other_NO.clone()
    wide_NO = other_NO.double()
    expectations = (y_NO, y_NO + wide_NO, F.silu(y_NO), y_NO * wide_NO)
    for got, expected in zip(forms(kernel, x_NI, other_NO), expectations, strict=False):
        assert got.shape == expected.shape
        assert float((got.double() - expected).abs().max()) <= bound * (
            1 + float(expected.abs().max())
        )
    assert torch.equal(x_NI, before[0])
    assert torch.equal(other_NO, before[1])


@pytest.mark.parametrize("make", FLOAT_KERNELS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_float32_against_float64(make: type[Kernel], outputs: int, inputs: int, bias: bool) -> None:
    for rows in (1, 2, 5, 16, 33):
        weight_OI, bias_O, x_NI, other_NO = parts(outputs, inputs, rows, bias)
        kernel = make(weight_OI, bias_O)  # type: ignore[call-arg]
        assert kernel.out_features == outputs
        check_all(kernel, exact(weight_OI, bias_O, x_NI), x_NI, other_NO, 2e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_bfloat16_rounds_its_result_and_no_more(bias: bool) -> None:
    """Products of bfloat16 numbers are summed in float32; each form rounds a few times."""
    weight_OI, bias_O, x_NI, other_NO = (
        None if part is None else part.bfloat16() for part in parts(65, 130, 5, bias)
    )
    kernel = make_kernel(weight_OI, bias_O, "bfloat16")
    assert kernel(x_NI).dtype is torch.bfloat16
    check_all(kernel, exact(weight_OI, bias_O, x_NI), x_NI, other_NO, 2**-7)


@pytest.fixture(params=[False, True], ids=["wide", "narrow"])
def narrow(request: pytest.FixtureRequest) -> bool:
    """Narrow weights, and wide ones where their products do not saturate."""
    found: bool = request.param
    if not found and not has_vnni():
        pytest.skip("products of wide weights saturate on a CPU without VNNI")
    return found


@needs_int8
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_int8_is_off_by_half_a_level_of_weights_and_inputs(
    outputs: int, inputs: int, bias: bool, narrow: bool
) -> None:
    """|error| <= sum over the inputs of |w| dx + |x| dw + dw dx, all of it known beforehand."""
    for rows in (1, 2, 5, 16):
        weight_OI, bias_O, x_NI, _ = parts(outputs, inputs, rows, bias)
        got_NO = Int8Kernel(weight_OI, bias_O, narrow=narrow)(x_NI).double()
        half_weight_O1 = quantize_rows(weight_OI, narrow=narrow)[1].double()[:, None] / 2
        # A range of [-1, 1] in 255 steps. Zero is a level, so the range moves by up to half
        # a step, and what stands at its end is off by as much more.
        largest_N1 = x_NI.double().abs().amax(dim=1, keepdim=True)
        half_step_N1 = largest_N1 / RANGE_STEPS
        off_NI = half_step_N1 * (1 + (x_NI.double().abs() > largest_N1 - half_step_N1).double())
        bound_NO = (
            off_NI @ weight_OI.double().abs().T
            + x_NI.double().abs().sum(dim=1, keepdim=True) * half_weight_O1.T
            + off_NI.sum(dim=1, keepdim=True) * half_weight_O1.T
        )
        error_NO = (got_NO - exact(weight_OI, bias_O, x_NI)).abs()
        assert bool((error_NO <= bound_NO + 1e-5).all())


@needs_int8
def test_int8_is_within_two_percent_on_ordinary_rows(narrow: bool) -> None:
    weight_OI, _, x_NI, other_NO = parts(330, 96, 8, False)
    y_NO = exact(weight_OI, None, x_NI)
    kernel = Int8Kernel(weight_OI, narrow=narrow)
    error_NO = kernel(x_NI).double() - y_NO
    assert float(error_NO.norm() / y_NO.norm()) < 0.02
    check_all(kernel, y_NO, x_NI, other_NO, 0.05)


@needs_int8
def test_narrow_weights_never_saturate() -> None:
    """With the instructions of a CPU that has no VNNI nothing saturates, also at the worst: the
    largest weights side by side, under the largest activations of one sign.

    In a process of its own, since fbgemm chooses once. That wide weights do saturate there shows
    that it has chosen so.
    """
    code = """
import torch
from forethought.engines.torch.kernels import Int8Kernel, quantize_rows

worst = torch.ones(8, 64)
weight = torch.cat((worst, -worst))
x = torch.cat((torch.ones(1, 64), -torch.ones(1, 64)))
for narrow in (True, False):
    levels, scale = quantize_rows(weight, narrow=narrow)
    exact = x.double() @ (levels * scale[:, None]).double().T
    error = Int8Kernel(weight, narrow=narrow)(x).double() - exact
    print(float((error / exact).abs().max()))
"""
    environment = os.environ | {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    narrow, wide = map(float, done.stdout.split())
    assert narrow < 0.005
    assert wide > 0.2


@given(
    st.integers(1, 5),
    st.integers(1, 40),
    st.sampled_from([0.0, 1.0, 8.0]),
    st.integers(0, 2**31),
)
def test_no_two_of_four_narrow_weights_have_a_large_sum(
    outputs: int, inputs: int, outliers: float, seed: int
) -> None:
    weight_OI = numbers(outputs, inputs, seed=seed) * (1 + outliers * numbers(outputs, inputs) ** 4)
    levels_OI, scale_O = quantize_rows(weight_OI, narrow=True)
    for row in levels_OI.int().abs().tolist():
        for at in range(0, inputs, 4):
            assert sum(sorted(row[at : at + 4])[-2:]) <= SUM_OF_TWO
    wide_O = quantize_rows(weight_OI)[1]
    assert bool((scale_O >= wide_O).all())
    assert bool((scale_O <= 2.01 * wide_O).all())


@pytest.mark.parametrize("narrow", [False, True])
def test_quantized_rows_come_back_within_half_a_level(narrow: bool) -> None:
    weight_OI = numbers(9, 31)
    weight_OI[4] = 0
    levels_OI, scale_O = quantize_rows(weight_OI, narrow=narrow)
    assert levels_OI.dtype is torch.int8
    assert 64 <= int(levels_OI.abs().max()) <= 127
    assert narrow or int(levels_OI.abs().max()) == 127
    error_OI = (levels_OI * scale_O[:, None] - weight_OI).abs()
    assert bool((error_OI <= scale_O[:, None] * 0.5001).all())
    assert float(scale_O[4]) == 1.0
    assert not bool(levels_OI[4].any())


@needs_int8
def test_int8_of_zeros_is_the_bias() -> None:
    """A row of zeros has no range of its own, and a weight of zeros no scale."""
    weight_OI, bias_O, x_NI, _ = parts(17, 33, 3, True)
    weight_OI[5] = 0
    x_NI[1] = 0
    y_NO = Int8Kernel(weight_OI, bias_O)(x_NI)
    assert torch.equal(y_NO[1], bias_O)
    assert torch.equal(y_NO[:, 5], bias_O[5].expand(3))
    assert bool(torch.isfinite(y_NO).all())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("precision", "bound"), [("float32", 2e-6), ("bfloat16", 0.02), ("int8", 0.05), ("plain", 2e-6)]
)
def test_a_gated_pair_against_float64(precision: str, bound: float, bias: bool) -> None:
    """silu(gate x) * up x, in one product or in two."""
    if precision == "int8" and not can_int8():
        pytest.skip("a torch without fbgemm")
    gate_FI, gate_bias, x_NI, _ = parts(96, 301, 5, bias)
    up_FI = numbers(96, 301, seed=5, scale=301**-0.5)
    up_bias = numbers(96, seed=6) if bias else None
    expected = F.silu(exact(gate_FI, gate_bias, x_NI)) * exact(up_FI, up_bias, x_NI)
    biases = None if gate_bias is None or up_bias is None else (gate_bias, up_bias)
    if precision == "plain":
        both = None if biases is None else torch.cat(biases)
        pair = StackedPair(PlainKernel(torch.cat((gate_FI, up_FI)), both))
    else:
        pair = make_pair(gate_FI, up_FI, biases, precision)  # type: ignore[arg-type]
    for rows in (1, 2, 5):
        x = x_NI[:rows].bfloat16() if precision == "bfloat16" else x_NI[:rows]
        got = pair(x)
        assert got.shape == (rows, 96)
        scale = 1 + float(expected[:rows].abs().max())
        assert float((got.double() - expected[:rows]).abs().max()) <= bound * scale


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_gated_pairs_bits_depend_on_the_bucket_alone(precision: Precision) -> None:
    if precision == "int8" and not can_int8():
        pytest.skip("a torch without fbgemm")
    pair = make_pair(numbers(96, 320, seed=1), numbers(96, 320, seed=2), None, precision)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    x_I = numbers(320, seed=3).to(dtype)
    for rows in BUCKETS:
        seen: torch.Tensor | None = None
        for at in sorted({0, 1 % rows, rows // 2, rows - 1}):
            x_NI = numbers(rows, 320, seed=at).to(dtype)
            x_NI[at] = x_I
            result_F = pair(x_NI)[at]
            seen = result_F if seen is None else seen
            assert torch.equal(result_F, seen), (rows, at)


ALIGNED = [(64, 576), (192, 64), (576, 320)]
UNALIGNED = [(65, 130), (330, 96), (7, 3)]


def blocked_bfloat16(weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> Kernel:
    bias_O = None if bias_O is None else bias_O.bfloat16()
    return BlockedKernel(weight_OI.bfloat16(), bias_O)


ALL_KERNELS = [
    pytest.param(PlainKernel, ALIGNED, id="plain"),
    pytest.param(BlockedKernel, ALIGNED + UNALIGNED, id="blocked", marks=needs_blocked),
    pytest.param(blocked_bfloat16, ALIGNED + UNALIGNED, id="bfloat16", marks=needs_half),
    pytest.param(Int8Kernel, ALIGNED, id="int8", marks=needs_int8),
]


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.alone)])
@pytest.mark.parametrize(("make", "shapes"), ALL_KERNELS)
def test_a_rows_bits_depend_on_the_bucket_alone(
    make: Callable[[torch.Tensor, torch.Tensor | None], Kernel],
    shapes: list[tuple[int, int]],
    threads: int,
) -> None:
    """Whatever the other rows hold (huge, zero) and wherever it stands among them.

    Widths that are no multiple of 32 are a matter of the blocked kernels alone: torch's own silu
    computes what is left over at the end of the last row one by one, which rounds differently.
    """
    torch.set_num_threads(threads)
    try:
        for outputs, inputs in shapes if threads == 1 else ALIGNED[-1:]:
            weight_OI, bias_O, x_1I, other_1O = parts(outputs, inputs, 1, True)
            buckets = BUCKETS if threads == 1 else (1, 4, 32)
            check_bits(make(weight_OI, bias_O), x_1I[0], other_1O[0], buckets)
    finally:
        torch.set_num_threads(1)


def check_bits(
    kernel: Kernel, x_I: torch.Tensor, other_O: torch.Tensor, buckets: Sequence[int]
) -> None:
    x_I = make_input(kernel, x_I[None])[0]
    other_O = other_O.to(x_I.dtype)
    for rows in buckets:
        seen: list[torch.Tensor] | None = None
        for at in sorted({0, 1 % rows, rows // 2, rows - 1}):
            for scale in (0.0, 1e4):
                x_NI = numbers(rows, len(x_I), seed=rows + at, scale=scale).to(x_I.dtype)
                other_NO = numbers(rows, len(other_O), seed=9).to(x_I.dtype)
                x_NI[at], other_NO[at] = x_I, other_O
                results = [form[at] for form in forms(kernel, x_NI, other_NO)]
                seen = seen or results
                assert all(map(torch.equal, seen, results)), (rows, at, scale)


def make_input(kernel: Kernel, x_NI: torch.Tensor) -> torch.Tensor:
    """In the dtype that the kernel takes."""
    try:
        kernel(x_NI)
    except RuntimeError:
        return x_NI.bfloat16()
    return x_NI


@needs_int8
@pytest.mark.parametrize(("outputs", "inputs"), [(65, 130), (330, 96), (64, 576)])
def test_int8_bits_are_the_same_in_every_bucket(outputs: int, inputs: int) -> None:
    """Integer sums are exact, whatever their order."""
    weight_OI, bias_O, x_NI, _ = parts(outputs, inputs, max(BUCKETS), True)
    kernel = Int8Kernel(weight_OI, bias_O)
    whole_NO = kernel(x_NI)
    for rows in BUCKETS:
        assert torch.equal(kernel(x_NI[:rows]), whole_NO[:rows])
    assert torch.equal(kernel(x_NI.flip(0)), whole_NO.flip(0))


@needs_int8
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 9), st.integers(0, 99))
def test_int8_is_what_its_levels_say(
    narrow: bool, outputs: int, inputs: int, rows: int, seed: int
) -> None:
    """Against the same quantisation written out: a level of the inputs is 2 / 255."""
    weight_OI = numbers(outputs, inputs, seed=seed)
    x_NI = numbers(rows, inputs, seed=seed + 1)
    kernel = Int8Kernel(weight_OI, narrow=narrow)
    levels_OI, scale_O = quantize_rows(weight_OI, narrow=narrow)
    largest_N1 = x_NI.abs().amax(dim=1, keepdim=True)
    level = 2 / RANGE_STEPS
    rounded_NI = (x_NI / largest_N1 / level).double().round() * level
    expected_NO = rounded_NI @ levels_OI.double().T * scale_O.double() * largest_N1.double()
    got_NO = kernel(x_NI).double()
    # Ties of the rounding may fall either way: one level of one input.
    slack_NO = largest_N1.double() * 2 / 127 * (weight_OI.double().abs().amax(dim=1) + 1e-6)
    assert bool(((got_NO - expected_NO).abs() <= slack_NO * 2 + 1e-5).all())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_make_kernel_shares_nothing_that_training_changes(precision: str) -> None:
    weight_OI, bias_O, x_NI, _ = parts(17, 33, 2, True)
    parameter = torch.nn.Parameter(weight_OI)
    kernel = make_kernel(parameter, bias_O, precision)  # type: ignore[arg-type]
    assert not kernel(x_NI.to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
                      ).requires_grad  # fmt: skip
