"""Chunked log-probabilities against the plain computation, and against the sampler's."""

from __future__ import annotations

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.sampler import RowParameters, Sampler
from forethought.training.logprobs import token_logprobs


def inputs(tokens, width, vocabulary, dtype=torch.float64, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64) * scale
    head = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    return hidden.to(dtype).requires_grad_(), head.to(dtype).requires_grad_(), targets


def plain(hidden, head, targets, temperature):
    all_NV = torch.log_softmax(hidden @ head.T / temperature, dim=-1)
    chosen = all_NV.gather(-1, targets[:, None]).squeeze(-1)
    return chosen, -(all_NV.exp() * all_NV).sum(dim=-1)


def close(one, other, tolerance=1e-10):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=40)
@given(
    tokens=st.integers(1, 12),
    vocabulary=st.integers(1, 40),
    width=st.integers(1, 6),
    chunk=st.one_of(st.none(), st.integers(1, 13)),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.5]),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_equal_the_plain_computation_in_float64(
    tokens, vocabulary, width, chunk, temperature, seed
):
    hidden, head, targets = inputs(tokens, width, vocabulary, seed=seed)
    weights = torch.linspace(-2, 3, tokens, dtype=torch.float64)
    ours, entropy = token_logprobs(hidden, head, targets, temperature, chunk)
    expected, expected_entropy = plain(hidden, head, targets, temperature)
    close(ours, expected)
    close(entropy, expected_entropy)
    for one, other in zip(
        torch.autograd.grad((weights * ours).sum(), (hidden, head)),
        torch.autograd.grad((weights * expected).sum(), (hidden, head)),
        strict=True,
    ):
        close(one, other)


def test_gradients_pass_gradcheck():
    hidden, head, targets = inputs(7, 3, 5)
    assert torch.autograd.gradcheck(
        lambda h, w: token_logprobs(h, w, targets, 0.7, 3)[0], (hidden, head)
    )


@pytest.mark.parametrize("frozen", ["hidden", "head"])
@pytest.mark.parametrize("chunk", [2, 100])
def test_only_what_is_trained_gets_a_gradient(frozen, chunk):
    hidden, head, targets = inputs(5, 3, 4)
    trained = head if frozen == "hidden" else hidden
    (hidden if frozen == "hidden" else head).requires_grad_(False)
    token_logprobs(hidden, head, targets, chunk=chunk)[0].sum().backward()
    gradient = trained.grad.clone()
    trained.grad = None
    plain(hidden, head, targets, 1.0)[0].sum().backward()
    close(gradient, trained.grad)


def test_the_entropy_has_no_gradient():
    hidden, head, targets = inputs(5, 3, 4)
    logprobs, entropy = token_logprobs(hidden, head, targets)
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def test_temperature_is_in_the_log_probabilities_as_the_sampler_has_it():
    """What the sampler says of the tokens it drew at 0.6, to the precision of float32: ratio 1."""
    hidden, head, _ = inputs(64, 16, 300, torch.float32, scale=0.7)
    rows = [
        RowParameters(SamplingParameters(0.6, 1.0), seed=1, index=at, logprobs="sampling")
        for at in range(64)
    ]
    drawn = Sampler(rows).sample((hidden @ head.T).detach(), torch.arange(64))
    ours, _ = token_logprobs(hidden, head, drawn.ids_B, 0.6)
    close(ours.detach().double(), drawn.logprobs_B, 2e-5)
    at_one, _ = token_logprobs(hidden, head, drawn.ids_B, 1.0)
    assert (at_one - ours).abs().mean() > 0.1


@pytest.mark.parametrize("chunk", [3, 64])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_log_probabilities_are_never_positive_and_always_finite(dtype, scale, chunk):
    """Certain tokens and impossible ones: logits of up to 100,000 on both sides."""
    hidden, head, _ = inputs(64, 8, 33, dtype, scale=scale)
    best = (hidden.float() @ head.float().T).argmax(dim=-1)
    for targets in (best, (best + 1) % 33):
        logprobs, entropy = token_logprobs(hidden, head, targets, 0.5, chunk)
        assert logprobs.dtype == entropy.dtype == torch.float32
        assert (logprobs <= 0).all()
        assert logprobs.isfinite().all()
        assert (entropy >= 0).all()
        assert (entropy <= 3.4966).all()
        gradient, _ = torch.autograd.grad(logprobs.sum(), (hidden, head))
        assert gradient.dtype == dtype


@pytest.mark.parametrize("chunk", [5, 64])
def test_low_precision_inputs_are_computed_in_float32(chunk):
    """Logits are never rounded to bfloat16: equal to float64 on the rounded inputs."""
    hidden, head, targets = inputs(64, 16, 100, torch.bfloat16)
    wide = [x.detach().double().requires_grad_() for x in (hidden, head)]
    ours, _ = token_logprobs(hidden, head, targets, 0.7, chunk)
    expected, _ = plain(*wide, targets, 0.7)
    close(ours.double(), expected, 1e-5)
    for one, other in zip(
        torch.autograd.grad(ours.sum(), (hidden, head)),
        torch.autograd.grad(expected.sum(), wide),
        strict=True,
    ):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.double(), other, rtol=1e-2, atol=1e-3)


def test_an_improbable_token_keeps_its_log_probability():
    """exp(-200) is 0 in float32; its logarithm is not minus infinity."""
    hidden = torch.tensor([[1.0]])
    head = torch.tensor([[0.0], [-200.0]])
    logprobs, entropy = token_logprobs(hidden, head, torch.tensor([1]))
    assert logprobs.tolist() == [-200.0]
    assert entropy.tolist() == [0.0]


class _Largest(TorchDispatchMode):
    """The largest number of elements that any operation made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return made


def test_no_more_logits_than_a_chunk_exist_at_once():
    hidden, head, targets = inputs(60, 4, 50)
    with _Largest() as largest:
        token_logprobs(hidden, head, targets, chunk=8)[0].sum().backward()
    assert largest.elements == 8 * 50


def test_probabilities_that_were_kept_are_released_with_the_graph():
    hidden, head, targets = inputs(6, 4, 5)
    logprobs, _ = token_logprobs(hidden, head, targets)
    node = weakref.ref(logprobs.grad_fn)
    logprobs.sum().backward()
    del logprobs
    assert node() is None


def test_a_second_backward_pass_is_refused_rather_than_wrong():
    hidden, head, targets = inputs(6, 4, 5)
    logprobs, _ = token_logprobs(hidden, head, targets)
    logprobs.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        logprobs.sum().backward()


@pytest.mark.parametrize("chunk", [None, 1])
def test_no_tokens_are_no_error(chunk):
    hidden, head, targets = inputs(0, 4, 5)
    logprobs, entropy = token_logprobs(hidden, head, targets, chunk=chunk)
    assert logprobs.shape == entropy.shape == (0,)
    logprobs.sum().backward()
    assert not head.grad.any()


@pytest.mark.parametrize(("temperature", "chunk"), [(0.0, None), (-1.0, None), (1.0, 0)])
def test_impossible_arguments_are_refused(temperature, chunk):
    with pytest.raises(ValueError, match=r"temperature|chunk"):
        token_logprobs(*inputs(2, 3, 4), temperature, chunk)
