"""The kernels of CUDA against float64: results and gradients, for shapes that fit no tile."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from reference import random_ids

from forethought.models import fused, packed, rope
from forethought.models.deepseek_v3.experts import grouped_experts, loop_experts
from forethought.models.deepseek_v3.routing import RoutingRecorder, gates
from forethought.models.packed import PackedSequences
from forethought.training.logprobs import summed_surprise, token_logprobs
from tiny_training import tiny_dense, tiny_v3

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

HALF = torch.bfloat16
ROUNDED = 6e-3
"""Relative error of a whole tensor that several roundings to bfloat16 may make."""


def drawn(*shape: int) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, device="cuda").to(HALF)


def error(one: torch.Tensor, other: torch.Tensor) -> float:
    difference = one.detach().double() - other.detach().double()
    return float(difference.norm() / other.detach().double().norm())


def compare(ours, reference, inputs, tolerance=ROUNDED):
    """Both on the same numbers, ours in bfloat16 and the reference in float64."""
    halves = [x.clone().requires_grad_() for x in inputs]
    doubles = [x.double().requires_grad_() for x in inputs]
    results, expected = ours(*halves), reference(*doubles)
    if isinstance(results, torch.Tensor):
        results, expected = (results,), (expected,)
    grads = [drawn(*x.shape) for x in results]
    found = torch.autograd.grad(
        results, halves, [g.to(x) for g, x in zip(grads, results, strict=True)]
    )
    right = torch.autograd.grad(expected, doubles, [g.double() for g in grads])
    for one, other in zip((*results, *found), (*expected, *right), strict=True):
        assert one.isfinite().all()
        assert error(one, other) < tolerance


@pytest.mark.parametrize(("rows", "width"), [(1000, 512), (777, 576), (301, 896), (5, 63), (1, 8)])
def test_norms(rows, width):
    def norm(x, weight):
        return F.rms_norm(x, (width,), weight, 1e-6)

    inputs = (drawn(rows, width), drawn(width))
    compare(lambda x, w: fused.rms_norm(x, w, 1e-6), norm, inputs)
    compare(
        lambda x, delta, w: fused.add_rms_norm(x, delta, w, 1e-6),
        lambda x, delta, w: (x + delta, norm(x + delta, w)),
        (drawn(1, rows, width), drawn(1, rows, width).flip(1), drawn(width)),
    )


def test_a_norm_of_columns():
    whole = drawn(333, 96)
    columns = whole[:, :64]
    weight = drawn(64)
    ours = fused.rms_norm(columns, weight, 1e-6)
    assert error(ours, F.rms_norm(columns.double(), (64,), weight.double(), 1e-6)) < ROUNDED


@pytest.mark.parametrize("width", [160, 1408, 33])
def test_swiglu(width):
    compare(
        fused.swiglu,
        lambda gate, up: F.silu(gate) * up,
        (drawn(1, 77, width), drawn(1, 78, width)[:, 1:]),
    )
    compare(
        fused.swiglu_of_columns,
        lambda both: F.silu(both[..., :width]) * both[..., width:],
        (drawn(1, 77, 2 * width),),
    )


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_rotations(pairs, batch):
    cos, sin = drawn(1, 55, 12), drawn(1, 55, 12).flip(1)
    plain = rope._rotated

    def reference(x):
        first, second = (x[..., 0::2], x[..., 1::2]) if pairs else x.chunk(2, dim=-1)
        return plain(first, second, cos.double(), sin.double())

    x = drawn(batch, 55, 5, 32)[..., 4:28].transpose(1, 2)
    compare(lambda x: fused.rotated(x, cos, sin, pairs=pairs), reference, (x,))


@pytest.mark.parametrize("biased", [False, True])
def test_joined_products(biased):
    layers = [torch.nn.Linear(64, width, bias=biased) for width in (48, 16, 16)]
    parameters = [drawn(*p.shape) * 0.1 for layer in layers for p in layer.parameters()]

    def of(function, x, *parts):
        step = 2 if biased else 1
        for layer, at in zip(layers, range(0, len(parts), step), strict=True):
            layer.weight, layer.bias = (
                torch.nn.Parameter(parts[at]),
                torch.nn.Parameter(parts[at + 1]) if biased else None,
            )
        return function(x)

    x = drawn(1, 2000, 64)
    ours = of(lambda x: fused.joined_linear(x, layers), x, *parameters)
    plain = torch.cat(
        [
            F.linear(
                x.double(),
                layer.weight.double(),
                None if layer.bias is None else layer.bias.double(),
            )
            for layer in layers
        ],
        -1,
    )
    assert error(ours, plain) < ROUNDED
    grad = drawn(*ours.shape)
    ours.backward(grad)
    start = 0
    for layer in layers:
        part = grad[0, :, start : start + layer.out_features].double()
        start += layer.out_features
        assert error(layer.weight.grad, part.T @ x[0].double()) < ROUNDED
        if biased:
            assert error(layer.bias.grad, part.sum(dim=0)) < ROUNDED


def test_experts():
    generator = torch.Generator("cuda").manual_seed(1)
    indices = torch.rand(3000, 16, generator=generator, device="cuda").topk(2).indices
    indices[:, 0].clamp_(max=12)  # Some experts have little to do, one nothing.
    weights = torch.rand(3000, 2, generator=generator, device="cuda")
    parts = (
        drawn(3000, 128),
        drawn(16, 320, 128) * 0.1,
        drawn(16, 128, 160) * 0.1,
        drawn(3000, 128),
    )
    halves = [x.clone().requires_grad_() for x in (parts[0], *parts[1:])] + [
        weights.requires_grad_()
    ]
    doubles = [x.detach().double().requires_grad_() for x in halves]
    x, gate_up, down, base, w = halves
    ours = grouped_experts(x, indices, w, gate_up, down, base)
    x, gate_up, down, base, w = doubles
    plain = loop_experts(x, indices, w, gate_up, down) + base
    grad = drawn(*ours.shape)
    assert error(ours, plain) < ROUNDED
    for one, other in zip(
        torch.autograd.grad(ours, halves, grad),
        torch.autograd.grad(plain, doubles, grad.double()),
        strict=True,
    ):
        assert error(one, other) < ROUNDED


@pytest.mark.parametrize(("vocabulary", "chunk"), [(4096, None), (4001, 300), (151_936, 200)])
def test_logprobs(vocabulary, chunk):
    hidden, head = drawn(500, 256), drawn(vocabulary, 256) * 0.2
    targets = torch.randint(vocabulary, (500,), device="cuda")
    ours = [x.clone().requires_grad_() for x in (hidden, head)]
    doubles = [x.double().requires_grad_() for x in (hidden, head)]
    logprobs, entropy = token_logprobs(*ours, targets, 0.8, chunk)
    expected, right = token_logprobs(*doubles, targets, 0.8, 64)
    assert float((logprobs - expected).abs().max()) < 2e-4
    assert float((entropy - right).abs().max()) < 2e-4
    assert (logprobs <= 0).all()
    grad = torch.randn(500, device="cuda")
    for one, other in zip(
        torch.autograd.grad(logprobs, ours, grad),
        torch.autograd.grad(expected, doubles, grad.double()),
        strict=True,
    ):
        assert error(one, other) < ROUNDED


def test_surprise_is_the_sum_of_logprobs():
    hidden, head = drawn(700, 256), drawn(4096, 256) * 0.2
    targets = torch.randint(4096, (700,), device="cuda")
    ours = [x.clone().requires_grad_() for x in (hidden, head)]
    doubles = [x.double().requires_grad_() for x in (hidden, head)]
    loss = 0.3 * summed_surprise(*ours, targets) / 700
    expected = -0.3 * token_logprobs(*doubles, targets)[0].sum() / 700
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    loss.backward()
    expected.backward()
    for one, other in zip(ours, doubles, strict=True):
        assert error(one.grad, other.grad) < ROUNDED


@pytest.mark.parametrize("kind", ["dense", "v3"])
@pytest.mark.parametrize("lengths", [[700, 1, 33, 520, 64], [600] * 4, [9]])
def test_a_packed_row_on_cuda_is_that_of_the_padded_path(kind, lengths, monkeypatch):
    """Gradients are no further from those of float32 than torch's own kernels on the padded path
    are: roundings to bfloat16 alone make 2 to 12% of the norm at a width of 16."""
    make = tiny_dense if kind == "dense" else tiny_v3
    network, reference = (make(320).to("cuda", dtype) for dtype in (HALF, torch.float32))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            reference.get_parameter(name).copy_(parameter)
    ids = random_ids(320, 1, sum(lengths), 3).cuda()
    row = PackedSequences(lengths, "cuda")
    with RoutingRecorder(reference) as recorder:
        reference.hidden(ids, row.positions_1N, row)
    chosen = [routing.indices_NK for routing in recorder.routings] if recorder.layers else []

    def gradient(one):
        one.zero_grad(set_to_none=True)
        for gate, indices_NK in zip(gates(one), chosen, strict=True):
            gate.replay_NK = indices_NK
        hidden_1ND = one.hidden(ids, row.positions_1N, row)
        summed_surprise(hidden_1ND[0], one.head_weight, ids[0].roll(-1)).backward()
        return torch.cat([p.grad.flatten().float() for p in one.parameters()])

    expected = gradient(reference)
    fast = error(gradient(network), expected)
    monkeypatch.setattr(packed, "_no_cudnn", [True])
    without_cudnn = error(gradient(network), expected)
    monkeypatch.setattr(packed, "_HALVES", ())
    allowed = fused.allow(False)
    try:
        plain = error(gradient(network), expected)
    finally:
        fused.allow(allowed)
    assert max(fast, without_cudnn) < 1.5 * plain + 0.01
