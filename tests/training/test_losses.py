"""Losses against a naive float64 reference, and the field's known mistakes as tests by name."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from forethought.training.logprobs import token_logprobs
from forethought.training.losses import (
    PRESETS,
    LossConfig,
    Normaliser,
    TokenBatch,
    advantages,
    k3_mismatch,
    policy_loss,
    sft_loss,
)

MAX_TOKENS = 9
LENGTHS = [3, 1, 7, 2, 5, 4]
CLIPS = {"clip_epsilon_low": 0.2, "clip_epsilon_high": 0.28}
DIVERGENCES = [{"kl": "none"}, {"kl": "k2", "beta": 0.3}, {"kl": "k3", "beta": 0.3}]
COMBINATIONS = [
    LossConfig(ratio=ratio, aggregation=aggregation, **CLIPS, **divergence)
    for ratio, aggregation in [
        ("token", "token_mean"),
        ("token", "sequence_mean"),
        ("token", "sequence_sum"),
        ("token", "constant"),
        ("sequence", "sequence_sum"),
    ]
    for divergence in DIVERGENCES
]
EVERY_DEFINITION = [LossConfig(preset=name) for name in PRESETS] + COMBINATIONS


def named(config: LossConfig) -> str:
    return f"{config.preset}-{config.ratio}-{config.aggregation}-{config.kl}"


def step(lengths=LENGTHS, seed=0, spread=0.4, dtype=torch.float64) -> TokenBatch:
    """All samples of an optimiser step; the ratios reach beyond the clips of DAPO on both sides."""
    random_ = torch.Generator().manual_seed(seed)
    count = sum(lengths)

    def normal(size):
        return torch.randn(size, generator=random_, dtype=torch.float64)

    old_N = -normal(count).abs() - 0.1
    return TokenBatch(
        logprobs_N=(old_N + spread * normal(count)).clamp(max=0).to(dtype).requires_grad_(),
        old_N=old_N.to(dtype),
        lengths_S=torch.tensor(lengths),
        advantages_S=normal(len(lengths)).to(dtype),
        ref_N=(old_N + spread * normal(count)).clamp(max=0).to(dtype),
    )


def select(batch: TokenBatch, samples: list[int]) -> TokenBatch:
    """The micro-batch of these samples, in this order; its gradient reaches `batch.logprobs_N`."""
    ends = batch.lengths_S.cumsum(0).tolist()
    tokens = [
        token
        for sample in samples
        for token in range(ends[sample] - int(batch.lengths_S[sample]), ends[sample])
    ]
    return TokenBatch(
        batch.logprobs_N[tokens],
        batch.old_N[tokens],
        batch.lengths_S[samples],
        batch.advantages_S[samples],
        None if batch.ref_N is None else batch.ref_N[tokens],
    )


def normaliser_of(batch: TokenBatch) -> Normaliser:
    return Normaliser.of(batch.old_N, batch.lengths_S, MAX_TOKENS)


def loss_and_gradient(batch, config, parts=None):
    """The sum of the losses of micro-batches (lists of samples), its gradient, their metrics."""
    normaliser = normaliser_of(batch)
    total, metrics = 0.0, None
    batch.logprobs_N.grad = None
    for part in parts or [list(range(len(batch.lengths_S)))]:
        loss, share = policy_loss(select(batch, part), config, normaliser)
        loss.backward()
        total += float(loss.detach())
        metrics = share if metrics is None else metrics + share
    return total, batch.logprobs_N.grad.clone(), metrics


def naive(batch: TokenBatch, config: LossConfig):
    """The definitions, sample by sample and token by token on padded rows; (loss, gradient)."""
    leaf = batch.logprobs_N.detach().clone().requires_grad_()
    lengths, longest = batch.lengths_S.tolist(), max(batch.lengths_S.tolist())
    new, old, ref = ([[0.0] * longest for _ in lengths] for _ in range(3))
    has_loss = [[False] * longest for _ in lengths]
    position = 0
    for i, length in enumerate(lengths):
        for t in range(length):
            new[i][t], old[i][t] = leaf[position], float(batch.old_N[position])
            ref[i][t] = float(batch.ref_N[position])
            has_loss[i][t] = math.isfinite(old[i][t])
            position += 1

    def bounded(x):
        return x if abs(float(x.detach())) <= 20 else x.detach().clamp(-20, 20)

    def surrogate(log_ratio, advantage):
        ratio = torch.exp(bounded(log_ratio))
        low, high = 1 - config.clip_epsilon_low, 1 + config.clip_epsilon_high
        if advantage > 0 and ratio > high:
            return torch.tensor(high * advantage, dtype=leaf.dtype)
        if advantage < 0 and ratio < low:
            return torch.tensor(low * advantage, dtype=leaf.dtype)
        return ratio * advantage

    def divergence(i, t):
        if config.kl == "none":
            return 0.0
        if config.kl == "k2":
            return 0.5 * (ref[i][t] - new[i][t]) ** 2
        log_ratio = bounded(ref[i][t] - new[i][t])
        return torch.exp(log_ratio) - log_ratio - 1

    counted = [i for i in range(len(lengths)) if any(has_loss[i])]
    tokens = sum(map(sum, has_loss))
    total = 0.0 * leaf.sum()
    for i in counted:
        advantage = float(batch.advantages_S[i])
        here = [t for t in range(longest) if has_loss[i][t]]
        penalty = [config.beta * divergence(i, t) for t in here]
        if config.ratio == "sequence":
            gain = surrogate(sum(new[i][t] - old[i][t] for t in here), advantage)
            total = total + (sum(penalty) - gain) / len(counted)
            continue
        terms = [
            extra - surrogate(new[i][t] - old[i][t], advantage)
            for t, extra in zip(here, penalty, strict=True)
        ]
        divisor = {
            "token_mean": tokens,
            "sequence_mean": len(here) * len(counted),
            "sequence_sum": len(counted),
            "constant": len(counted) * MAX_TOKENS,
        }[config.aggregation]
        total = total + sum(terms) / divisor
    total.backward()
    return float(total.detach()), leaf.grad


def close(one, other, tolerance=1e-10):
    one, other = (torch.as_tensor(x, dtype=torch.float64) for x in (one, other))
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# Every definition, against the reference


@pytest.mark.parametrize("config", EVERY_DEFINITION, ids=named)
def test_every_definition_equals_the_naive_reference(config):
    batch = step()
    loss, gradient, _ = loss_and_gradient(batch, config)
    expected, expected_gradient = naive(batch, config)
    close(loss, expected)
    close(gradient, expected_gradient)


@pytest.mark.parametrize("config", EVERY_DEFINITION, ids=named)
def test_loss_and_gradient_do_not_depend_on_the_micro_batches(config):
    batch = step()
    whole = loss_and_gradient(batch, config)
    for parts in ([[0], [1], [2], [3], [4], [5]], [[2], [0, 1, 3, 4, 5]], [[5, 4, 3], [2, 1, 0]]):
        loss, gradient, metrics = loss_and_gradient(batch, config, parts)
        close(loss, whole[0])
        close(gradient, whole[1])
        for field in metrics.__slots__:
            close(getattr(metrics, field), getattr(whole[2], field))


@settings(deadline=None, max_examples=30)
@given(
    config=st.sampled_from(EVERY_DEFINITION),
    lengths=st.lists(st.integers(1, MAX_TOKENS), min_size=1, max_size=7),
    seed=st.integers(0, 99),
)
def test_the_order_of_samples_and_the_cuts_change_nothing(config, lengths, seed):
    batch = step(lengths, seed)
    order = random.Random(seed).sample(range(len(lengths)), len(lengths))
    cut = seed % (len(lengths) + 1)
    parts = [part for part in (order[:cut], order[cut:]) if part]
    loss, gradient, _ = loss_and_gradient(batch, config, parts)
    expected, expected_gradient = naive(batch, config)
    close(loss, expected)
    close(gradient, expected_gradient)


def test_float32_is_the_same_loss():
    for config in EVERY_DEFINITION:
        exact, exact_gradient, _ = loss_and_gradient(step(), config)
        loss, gradient, _ = loss_and_gradient(step(dtype=torch.float32), config)
        assert gradient.dtype == torch.float32
        close(loss, exact, 1e-4)
        close(gradient.double(), exact_gradient, 1e-4)


# Known mistakes: what a loss is divided by


def test_long_and_short_samples_weigh_the_same_by_token_under_token_mean():
    """Length bias: with a mean for each sample, tokens of short samples weigh more."""
    batch = step([1, 9], spread=0.0)
    batch = TokenBatch(
        batch.logprobs_N, batch.old_N, batch.lengths_S, torch.ones(2, dtype=torch.float64)
    )
    _, gradient, _ = loss_and_gradient(batch, LossConfig(preset="dapo"))
    close(gradient, torch.full((10,), -1 / 10, dtype=torch.float64))
    mean = LossConfig(aggregation="sequence_mean")
    _, gradient, _ = loss_and_gradient(batch, mean)
    close(gradient, torch.tensor([-1 / 2] + [-1 / 18] * 9, dtype=torch.float64))
    _, gradient, _ = loss_and_gradient(batch, LossConfig(preset="dr_grpo"))
    close(gradient, torch.full((10,), -1 / (2 * MAX_TOKENS), dtype=torch.float64))


@pytest.mark.parametrize("config", EVERY_DEFINITION, ids=named)
def test_masked_samples_leave_numerator_and_denominator(config):
    """A sample without loss is not packed: the rest is divided by what is left, not by the step
    as it was sampled."""
    batch = step()
    kept = select(batch, [0, 2, 3, 5])
    assert normaliser_of(kept) == Normaliser(4, 16, MAX_TOKENS)
    loss, _ = policy_loss(kept, config, normaliser_of(kept))
    loss.backward()
    expected, expected_gradient = naive(kept, config)
    close(loss.detach(), expected)
    has_loss_N = torch.tensor([True, False, True, True, False, True]).repeat_interleave(
        batch.lengths_S
    )
    close(batch.logprobs_N.grad[has_loss_N], expected_gradient)
    assert not batch.logprobs_N.grad[~has_loss_N].any()


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
@pytest.mark.parametrize("config", EVERY_DEFINITION, ids=named)
def test_tokens_without_a_finite_sampler_logprob_leave_numerator_and_denominator(config, bad):
    batch = step()
    batch.old_N[[0, 3, 6]] = bad  # Sample 1 is token 3 alone.
    assert normaliser_of(batch) == Normaliser(5, 19, MAX_TOKENS)
    for parts in (None, [[0, 3], [1], [2, 4, 5]]):
        loss, gradient, metrics = loss_and_gradient(batch, config, parts)
        expected, expected_gradient = naive(batch, config)
        close(loss, expected)
        close(gradient, expected_gradient)
        assert gradient[[0, 3, 6]].tolist() == [0, 0, 0]
        assert all(getattr(metrics, field).isfinite() for field in metrics.__slots__)


@pytest.mark.parametrize("config", EVERY_DEFINITION, ids=named)
def test_a_step_without_any_loss_token_has_loss_zero_and_no_gradient(config):
    batch = step()
    batch.old_N[:] = math.nan
    loss, gradient, metrics = loss_and_gradient(batch, config)
    assert loss == 0
    assert not gradient.any()
    assert metrics.ratio_max == 0


@pytest.mark.parametrize("config", EVERY_DEFINITION, ids=named)
def test_a_micro_batch_without_samples_adds_nothing(config):
    batch = step()
    empty, metrics = policy_loss(select(batch, []), config, normaliser_of(batch))
    assert empty == 0
    whole = loss_and_gradient(batch, config)[2]
    assert metrics + whole == whole


def test_lengths_that_do_not_add_up_are_refused():
    batch = step()
    wrong = TokenBatch(batch.logprobs_N, batch.old_N, batch.lengths_S + 1, batch.advantages_S)
    with pytest.raises(RuntimeError):
        policy_loss(wrong, LossConfig(), Normaliser(6, 22, MAX_TOKENS))


# Known mistakes: tokens


@pytest.mark.parametrize("config", EVERY_DEFINITION, ids=named)
def test_the_end_token_is_trained_like_every_other(config):
    batch = step(spread=0.0)
    batch = TokenBatch(
        batch.logprobs_N, batch.old_N, batch.lengths_S, batch.advantages_S, batch.old_N
    )
    _, gradient, _ = loss_and_gradient(batch, config)
    for of_sample, advantage in zip(
        gradient.split(LENGTHS), batch.advantages_S.tolist(), strict=True
    ):
        assert of_sample[-1] != 0
        assert math.copysign(1, of_sample[-1]) == -math.copysign(1, advantage)
        close(of_sample, of_sample[-1].expand_as(of_sample))


def test_masks_come_from_lengths_and_never_from_ids():
    """The end token's id is 0, as padding's often is, and it also stands in the middle."""
    torch.manual_seed(0)
    ids_N = torch.tensor([4, 0, 2, 0, 3, 0])
    hidden_ND = torch.randn(6, 5, dtype=torch.float64)
    head_VD = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    logprobs_N, _ = token_logprobs(hidden_ND, head_VD, ids_N)
    batch = TokenBatch(
        logprobs_N,
        logprobs_N.detach(),
        torch.tensor([4, 2]),
        torch.tensor([1.0, -0.5], dtype=torch.float64),
    )
    loss, _ = policy_loss(batch, LossConfig(), normaliser_of(batch))
    loss.backward()
    again_VD = head_VD.detach().clone().requires_grad_()
    all_NV = torch.log_softmax(hidden_ND @ again_VD.T, dim=-1)
    weights = [-1 / 6] * 4 + [0.5 / 6] * 2
    sum(w * all_NV[n, ids_N[n]] for n, w in enumerate(weights)).backward()
    close(head_VD.grad, again_VD.grad)


def test_a_truncated_sample_is_trained_on_all_its_tokens_unless_it_is_masked():
    """Its reward is whatever the verdict says; without an end token its last one is ordinary."""
    found = advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), "std")
    batch = step([3, MAX_TOKENS, 2, 4], spread=0.0)
    batch = TokenBatch(batch.logprobs_N, batch.old_N, batch.lengths_S, found.values_PG[0])
    _, gradient, _ = loss_and_gradient(batch, LossConfig())
    close(gradient[3:12], (-found.values_PG[0, 1] / 18).expand(9))
    rest = select(batch, [0, 2, 3])
    assert normaliser_of(rest) == Normaliser(3, 9, MAX_TOKENS)


# Known mistakes: ratios


def test_log_ratios_are_clamped_before_the_exponential():
    old_N = torch.tensor([-800.0, -1.0, -1.0])
    new_N = torch.tensor([-1.0, -800.0, -1.0], requires_grad=True)
    ref_N = torch.tensor([-1.0, -1.0, -900.0])
    for ratio, advantage, kl in itertools.product(("token", "sequence"), (1.0, -1.0), ("k2", "k3")):
        config = LossConfig(
            ratio=ratio,
            aggregation="sequence_sum",
            kl=kl,
            beta=0.001,
            clip_epsilon_low=10,
            clip_epsilon_high=10,
        )
        batch = TokenBatch(
            new_N, old_N, torch.tensor([1, 1, 1]), torch.full((3,), advantage), ref_N
        )
        loss, gradient, metrics = loss_and_gradient(batch, config)
        assert math.isfinite(loss)
        assert gradient.isfinite().all()
        close(metrics.ratio_max, torch.tensor(math.exp(20)), 1e-5)


def test_beyond_the_clamp_k3_does_not_push_away_from_the_reference():
    new_N = torch.tensor([-50.0, -1.0], dtype=torch.float64, requires_grad=True)
    ref_N = torch.tensor([-1.0, -50.0], dtype=torch.float64)
    batch = TokenBatch(
        new_N, new_N.detach(), torch.tensor([2]), torch.zeros(1, dtype=torch.float64), ref_N
    )
    _, gradient, _ = loss_and_gradient(batch, LossConfig(kl="k3", beta=1.0))
    assert gradient[0] <= 0  # A step against the gradient raises what the reference holds likely,
    assert gradient[1] >= 0  # and lowers what it does not.


def test_sequence_ratio_off_policy_by_hand():
    """Two samples of two tokens after an update: e^0.3 gains, e^-0.5 is cut off below 0.8."""
    new_N = torch.tensor([-0.9, -0.9, -1.5, -2.0], dtype=torch.float64, requires_grad=True)
    old_N = torch.tensor([-1.0, -1.1, -1.0, -2.0], dtype=torch.float64)
    batch = TokenBatch(
        new_N, old_N, torch.tensor([2, 2]), torch.tensor([2.0, -1.0], dtype=torch.float64)
    )
    config = LossConfig(preset="paper", kl="none", beta=0.0)
    loss, gradient, metrics = loss_and_gradient(batch, config)
    close(loss, -(2 * math.exp(0.3) - math.exp(-0.5)) / 2)
    first, second = -2 * math.exp(0.3) / 2, math.exp(-0.5) / 2
    close(gradient, torch.tensor([first, first, second, second], dtype=torch.float64))
    close(metrics.ratio_mean, (math.exp(0.3) + math.exp(-0.5)) / 2)

    narrow = LossConfig(ratio="sequence", aggregation="sequence_sum", **CLIPS)
    loss, gradient, metrics = loss_and_gradient(batch, narrow)
    close(loss, -(2 * 1.28 - 0.8) / 2)
    assert not gradient.any()
    close(metrics.clipped_low, 0.5, 1e-6)
    close(metrics.clipped_high, 0.5, 1e-6)


def test_the_paper_s_clip_only_caps_what_grew_more_than_elevenfold():
    new_N = torch.tensor([-1.0, -9.0, -1.0, -9.0], dtype=torch.float64, requires_grad=True)
    old_N = torch.tensor([-4.0, -1.0, -4.0, -1.0], dtype=torch.float64)
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    batch = TokenBatch(new_N, old_N, torch.tensor([1, 1, 1, 1]), signs)
    config = LossConfig(preset="paper", kl="none", beta=0.0)
    loss, gradient, metrics = loss_and_gradient(batch, config)
    close(loss, -(11 + math.exp(-8) - math.exp(3) - math.exp(-8)) / 4)
    assert (gradient != 0).tolist() == [False, True, True, True]
    close(metrics.clipped_high, 0.25, 1e-6)
    assert metrics.clipped_low == 0


def test_on_policy_every_definition_has_the_policy_gradient():
    """With ratio 1 the gradient of a token is -advantage times its weight, clip or no clip."""
    batch = step(spread=0.0)
    _, gradient, metrics = loss_and_gradient(batch, LossConfig(**CLIPS))
    expected_N = -batch.advantages_S.repeat_interleave(batch.lengths_S) / sum(LENGTHS)
    close(gradient, expected_N)
    assert metrics.clipped_low == metrics.clipped_high == 0
    close(metrics.ratio_mean, 1.0, 1e-12)


def test_k2_has_the_unbiased_gradient_on_policy_and_k3_does_not():
    """Exactly, over a vocabulary of three: the expected gradient against that of the true KL."""
    logits = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([1.0, 0.2, -0.7], dtype=torch.float64), 0)
    new = torch.log_softmax(logits, 0)
    (true,) = torch.autograd.grad((new.exp() * (new - reference)).sum(), logits, retain_graph=True)
    expected = {}
    for kl in ("k2", "k3"):
        total = torch.zeros(3, dtype=torch.float64)
        for token in range(3):
            batch = TokenBatch(
                new[token : token + 1],
                new[token : token + 1].detach(),
                torch.tensor([1]),
                torch.zeros(1, dtype=torch.float64),
                reference[token : token + 1],
            )
            loss, metrics = policy_loss(batch, LossConfig(kl=kl, beta=1.0), Normaliser(1, 1, 1))
            close(metrics.kl, loss.detach())
            (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
            total += new[token].exp().detach() * gradient
        expected[kl] = total
    close(expected["k2"], true)
    assert (expected["k3"] - true).abs().max() > 0.01


def test_metrics_are_means_over_what_has_a_loss():
    batch = step()
    batch.old_N[[0, 3, 6]] = math.nan
    kept_N = batch.old_N.isfinite()
    advantage_N = batch.advantages_S.repeat_interleave(batch.lengths_S)[kept_N]
    ratio_N = (batch.logprobs_N.detach() - batch.old_N)[kept_N].exp()
    to_reference_N = (batch.ref_N - batch.logprobs_N.detach())[kept_N]
    config = LossConfig(kl="k3", beta=0.3)
    _, _, found = loss_and_gradient(batch, config, [[4, 0], [1, 2, 3], [5]])
    low_N, high_N = (ratio_N < 0.8) & (advantage_N < 0), (ratio_N > 1.28) & (advantage_N > 0)
    assert low_N.any()
    assert high_N.any()
    close(found.clipped_low, low_N.double().mean(), 1e-6)
    close(found.clipped_high, high_N.double().mean(), 1e-6)
    close(found.ratio_mean, ratio_N.mean())
    close(found.ratio_max, ratio_N.max())
    close(found.kl, (to_reference_N.exp() - 1 - to_reference_N).mean())
    without_kl, _, _ = loss_and_gradient(batch, LossConfig())
    close(found.policy_loss, without_kl)


def test_a_kl_term_without_a_reference_is_refused():
    batch = step()
    bare = TokenBatch(batch.logprobs_N, batch.old_N, batch.lengths_S, batch.advantages_S)
    with pytest.raises(ValueError, match="reference"):
        policy_loss(bare, LossConfig(preset="paper"), normaliser_of(bare))


# Supervised loss and mismatch


def test_sft_losses_of_micro_batches_add_up_to_the_mean_cross_entropy():
    logprobs_N = step().logprobs_N
    parts = [sft_loss(part, 22) for part in logprobs_N.split([5, 16, 1])]
    close(sum(parts), -logprobs_N.mean())
    assert sft_loss(logprobs_N[:0], 0) == 0


def test_mismatch_is_zero_for_equal_and_positive_for_other_policies():
    batch = step()
    assert k3_mismatch(batch.old_N, batch.old_N).kl == 0
    found = k3_mismatch(batch.logprobs_N, batch.old_N)
    log_ratio_N = batch.logprobs_N.detach() - batch.old_N
    close(found.kl, float((log_ratio_N.exp() - 1 - log_ratio_N).mean()))
    assert found.dropped == 0


def test_mismatch_estimates_the_divergence_of_sampler_from_trainer():
    """In this direction: exact over a vocabulary, weighted by the sampler's probabilities."""
    torch.manual_seed(1)
    sampler, trainer = torch.log_softmax(torch.randn(2, 50, dtype=torch.float64), dim=-1)
    estimate = sum(
        float(p) * k3_mismatch(new[None], old[None]).kl
        for p, new, old in zip(sampler.exp(), trainer, sampler, strict=True)
    )
    close(estimate, float((sampler.exp() * (sampler - trainer)).sum()))


def test_mismatch_drops_what_is_not_finite_from_its_mean():
    trainer = torch.tensor([-1.0, -1.0, -1.0, -1.0])
    sampler = torch.tensor([-1.5, math.nan, -math.inf, -1.5])
    found = k3_mismatch(trainer, sampler)
    close(found.kl, math.exp(0.5) - 1.5, 1e-6)
    assert found.dropped == 0.5
    nothing = k3_mismatch(trainer, sampler * math.nan)
    assert math.isnan(nothing.kl)
    assert nothing.dropped == 1


def test_mismatch_resolves_differences_near_the_precision_of_float32():
    sampler = torch.full((1000,), -2.0)
    found = k3_mismatch(sampler + 1e-3, sampler)
    close(found.kl, 5e-7, 1e-9)


# The configuration


def test_presets_are_the_published_definitions():
    paper = LossConfig(preset="paper")
    assert (paper.ratio, paper.aggregation, paper.advantage_scale) == (
        "sequence",
        "sequence_sum",
        "std",
    )
    assert (paper.clip_epsilon_low, paper.clip_epsilon_high) == (10, 10)
    assert (paper.kl, paper.beta) == ("k3", 0.001)
    grpo = LossConfig(preset="grpo")
    assert (grpo.ratio, grpo.aggregation, grpo.kl) == ("token", "sequence_mean", "k3")
    dapo = LossConfig(preset="dapo")
    assert (dapo.aggregation, dapo.kl, dapo.overlong) == ("token_mean", "none", "penalise")
    assert (dapo.clip_epsilon_low, dapo.clip_epsilon_high) == (0.2, 0.28)
    dr_grpo = LossConfig(preset="dr_grpo")
    assert (dr_grpo.aggregation, dr_grpo.advantage_scale) == ("constant", "none")
    assert LossConfig() == LossConfig(preset="token")
    assert (LossConfig().aggregation, LossConfig().kl) == ("token_mean", "none")


def test_keys_beside_a_preset_replace_its_own_and_a_dump_reads_back():
    config = LossConfig(preset="paper", clip_epsilon_high=5, beta=0.01)
    assert (config.clip_epsilon_high, config.clip_epsilon_low, config.beta) == (5, 10, 0.01)
    for one in (config, *EVERY_DEFINITION):
        assert LossConfig.model_validate(one.model_dump()) == one
        assert LossConfig.model_validate_json(one.model_dump_json()) == one


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"ratio": "sequence"}, "set aggregation to 'sequence_sum'"),
        ({"preset": "paper", "aggregation": "token_mean"}, "set aggregation to 'sequence_sum'"),
        ({"kl": "k3"}, "kl is 'k3' and beta is 0"),
        ({"beta": 0.1}, "kl is 'none' and beta is 0.1"),
        ({"preset": "paper", "kl": "none"}, "set kl to 'none' and beta to 0"),
        ({"preset": "ppo"}, "'token', 'paper', 'grpo', 'dapo' or 'dr_grpo'"),
        ({"preset": ["paper"]}, "preset"),
        ({"clip_epsilon": 0.2}, "clip_epsilon"),
        ({"clip_epsilon_low": -0.1}, "greater than or equal to 0"),
        ({"beta": math.nan, "kl": "k3"}, "finite"),
        ({"overlong_share": 0}, "greater than 0"),
    ],
)
def test_impossible_configurations_are_refused_with_a_sentence(keys, sentence):
    with pytest.raises(ValidationError, match=sentence):
        LossConfig.model_validate(keys)
