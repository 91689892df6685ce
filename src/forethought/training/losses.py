"""What a policy is trained on: rewards to advantages, log-probabilities to a loss. Pure functions.

Everything works on packed tokens: the completions of a micro-batch one behind the other, without
prompts and without padding. Which token belongs to which sample follows from lengths, never from
ids, so an end token that was sampled is a token like any other. A sample lies whole in one
micro-batch.

What a loss is divided by is counted over the whole optimiser step (:class:`Normaliser`), so that
the losses of its micro-batches add up to the loss of the step, however they are cut. What has no
loss is in no denominator: samples that are masked are not packed, and a token for which the
sampler gave no finite log-probability is not counted.

Sources: DeepSeek-R1 (arXiv:2501.12948), DeepSeekMath (arXiv:2402.03300), DAPO (arXiv:2503.14476),
Dr. GRPO (arXiv:2503.20783).

P: problems, G: samples of a problem, S: samples of a micro-batch, N: its loss tokens, K: the terms
that ratios are taken of, tokens or samples. Log-probabilities and divergences are in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from forethought.errors import UserError

STD_EPSILON = 1e-4
"""Added to a group's standard deviation: a difference in a reward's last bits stays nothing."""

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this on both sides before the exponential."""

AdvantageScale = Literal["std", "none"]
Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum", "constant"]
Preset = Literal["token", "paper", "grpo", "dapo", "dr_grpo"]

PRESETS: Mapping[Preset, Mapping[str, str | float]] = {
    "token": {},
    "paper": {
        "ratio": "sequence",
        "aggregation": "sequence_sum",
        "clip_epsilon_low": 10.0,
        "clip_epsilon_high": 10.0,
        "kl": "k3",
        "beta": 0.001,
    },
    "grpo": {"aggregation": "sequence_mean", "clip_epsilon_high": 0.2, "kl": "k3", "beta": 0.04},
    "dapo": {"overlong": "penalise"},
    "dr_grpo": {"advantage_scale": "none", "aggregation": "constant", "clip_epsilon_high": 0.2},
}
"""Where each named recipe differs from the defaults of :class:`LossConfig`."""


class LossConfig(BaseModel):
    """Which loss, of those in use. Keys that contradict each other are a ValueError.

    ``preset`` says where to start, keys given beside it replace its own: "paper" is R1's equation
    1, "grpo" DeepSeekMath's, "dapo" and "dr_grpo" those of their papers; "token", the default, is
    DAPO's without its penalty on length.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    preset: Preset = "token"
    advantage_scale: AdvantageScale = "std"
    """Divide reward - mean by the group's standard deviation ("std"), or leave it ("none")."""
    ratio: Literal["token", "sequence"] = "token"
    """New policy / old policy of each token, or of a whole sample: the product of its tokens'."""
    aggregation: Aggregation = "token_mean"
    """"token_mean": over all tokens of the step (DAPO). "sequence_mean": over a sample's tokens,
    then over samples (GRPO; favours short right and long wrong samples). "sequence_sum": a
    sample's sum, then the mean over samples (R1). "constant": the sum over samples times the limit
    of length (Dr. GRPO)."""
    clip_epsilon_low: Annotated[float, Field(ge=0)] = 0.2
    """Ratios below 1 - this have no gradient where the advantage is negative; from 1 on, none."""
    clip_epsilon_high: Annotated[float, Field(ge=0)] = 0.28
    """Ratios above 1 + this have no gradient where the advantage is positive."""
    kl: Literal["none", "k2", "k3"] = "none"
    """Estimator of the divergence from the reference that the loss contains. The gradient of k3
    is biased, that of k2 is not on samples of the current policy."""
    beta: Annotated[float, Field(ge=0)] = 0.0
    """Weight of that divergence."""
    overlong: Literal["keep", "mask", "penalise"] = "keep"
    """A sample that was cut off at the limit of length: train on the reward it got ("keep"), or
    give it no loss ("mask"). "penalise" takes from the reward of every sample near the limit."""
    overlong_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """"penalise" only: the last part of the limit, over which the penalty grows from 0 to 1."""

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, keys: object) -> object:
        if not isinstance(keys, Mapping):
            return keys
        start = next((PRESETS[name] for name in PRESETS if name == keys.get("preset")), {})
        return {**start, **keys}

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.ratio == "sequence" and self.aggregation != "sequence_sum":
            raise ValueError(
                f"aggregation is {self.aggregation!r}, but with ratio 'sequence' a sample is one "
                "term: set aggregation to 'sequence_sum' or ratio to 'token'"
            )
        if (self.kl == "none") != (self.beta == 0):
            raise ValueError(
                f"kl is {self.kl!r} and beta is {self.beta:g}: a divergence in the loss takes an "
                "estimator ('k2' or 'k3') and a beta above 0; without one set kl to 'none' and "
                "beta to 0"
            )
        return self


# From rewards to advantages.


@dataclass(frozen=True, slots=True)
class Advantages:
    """How much better than its group each sample is, and which samples there is a reason to train.

    ``values_PG`` (float64) is 0 where ``learns_PG`` is false: for a sample without a verdict, and
    in a group of ``dead_P``, which prefers none of its samples. Unless the loss has a KL term,
    these have no gradient and need no forward pass.
    """

    values_PG: torch.Tensor
    learns_PG: torch.Tensor
    dead_P: torch.Tensor


def advantages(
    rewards_PG: torch.Tensor, scale: AdvantageScale, scorable_PG: torch.Tensor | None = None
) -> Advantages:
    """Rewards relative to their group, in float64: (reward - mean) / std (R1, equation 3).

    The papers do not say which standard deviation; this is TRL's, unbiased (n - 1) and plus
    ``STD_EPSILON``. With "none" there is no division (Dr. GRPO). Samples that are not scorable are
    in neither mean nor deviation. A group is dead when its scorable rewards are exactly equal or
    fewer than two. That is asked of the rewards, not of their deviation, which rounding makes
    differ from 0 for equal fractions.

    Raises UserError for groups of one sample, and for a scorable reward that is not finite.
    """
    rewards_PG = rewards_PG.to(torch.float64)
    if scorable_PG is None:
        scorable_PG = torch.ones_like(rewards_PG, dtype=torch.bool)
    _check_rewards(rewards_PG, scorable_PG)
    count_P1 = scorable_PG.sum(dim=1, keepdim=True)
    mean_P1 = rewards_PG.where(scorable_PG, 0).sum(dim=1, keepdim=True) / count_P1
    lowest_P = rewards_PG.where(scorable_PG, torch.inf).amin(dim=1)
    highest_P = rewards_PG.where(scorable_PG, -torch.inf).amax(dim=1)
    dead_P = lowest_P >= highest_P  # Above it where no sample is scorable.
    learns_PG = scorable_PG & ~dead_P[:, None]
    values_PG = (rewards_PG - mean_P1).where(learns_PG, 0)
    if scale == "std":
        variance_P1 = values_PG.square().sum(dim=1, keepdim=True) / (count_P1 - 1).clamp(min=1)
        values_PG = values_PG / (variance_P1.sqrt() + STD_EPSILON)
    return Advantages(values_PG, learns_PG, dead_P)


def _check_rewards(rewards_PG: torch.Tensor, scorable_PG: torch.Tensor) -> None:
    if rewards_PG.shape[1] < 2:
        raise UserError(
            "The groups have one sample each, but a reward is judged by the rest of its group; "
            "set group_size to 2 or more."
        )
    wrong = (scorable_PG & ~rewards_PG.isfinite()).nonzero().tolist()
    if wrong:
        group, sample = wrong[0]
        raise UserError(
            f"The reward of sample {sample} of group {group} is {rewards_PG[group, sample]:g}; "
            "a reward must be a finite number, or the sample be called unscorable."
        )


def soft_overlong_punishment(
    lengths_S: torch.Tensor, max_tokens: int, cache_tokens: int
) -> torch.Tensor:
    """What is added to the rewards of long samples (DAPO, equation 13); float64 [S].

    0 up to ``max_tokens - cache_tokens`` tokens, then linearly down to -1 at ``max_tokens``.
    Raises ValueError unless ``cache_tokens`` is between 1 and ``max_tokens``.
    """
    if not 1 <= cache_tokens <= max_tokens:
        raise ValueError(f"cache_tokens {cache_tokens} is not between 1 and {max_tokens}")
    beyond_S = lengths_S.to(torch.float64) - (max_tokens - cache_tokens)
    return -(beyond_S / cache_tokens).clamp(0, 1)


# From log-probabilities to the loss of a policy.


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """The completions of a micro-batch, packed in the order of their samples.

    ``logprobs_N``: the trainer's, with their gradient. ``old_N``: those of the policy that drew the
    tokens, as its sampler gave them; not finite where it had none. ``ref_N``: the reference's,
    where the loss has a KL term. ``lengths_S`` (int64) add up to N.
    """

    logprobs_N: torch.Tensor
    old_N: torch.Tensor
    lengths_S: torch.Tensor
    advantages_S: torch.Tensor
    ref_N: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Normaliser:
    """What an optimiser step is divided by, counted over all its micro-batches.

    ``samples`` with a loss token at least, their loss ``tokens``, and ``max_tokens``, the limit of
    a sample's length (used by the aggregation "constant" alone). Tensors (scalars, at least 1)
    where a captured pass reads them.
    """

    samples: int | torch.Tensor
    tokens: int | torch.Tensor
    max_tokens: int

    @classmethod
    def of(cls, old_N: torch.Tensor, lengths_S: torch.Tensor, max_tokens: int) -> Normaliser:
        """Counted from what the sampler gave for all samples of the step, as :class:`TokenBatch`
        has it; nothing needs to have been computed by the trainer."""
        tokens_S = _sum_by_sample(old_N.isfinite().long(), lengths_S)
        return cls(int((tokens_S > 0).sum()), int(tokens_S.sum()), max_tokens)


@dataclass(frozen=True, slots=True)
class LossMetrics:
    """What a micro-batch adds to the report of its step: tensors of no dimension, no gradient.

    All but ``ratio_max`` are already divided by the whole step, so micro-batches are added up.
    """

    policy_loss: torch.Tensor
    """The loss without its KL term."""
    kl: torch.Tensor
    """Divergence from the reference, mean over tokens."""
    clipped_low: torch.Tensor
    """Share of the ratios that the lower bound took out of the gradient."""
    clipped_high: torch.Tensor
    """Share of the ratios that the upper bound took out of the gradient."""
    ratio_mean: torch.Tensor
    ratio_max: torch.Tensor

    def __add__(self, other: LossMetrics) -> LossMetrics:
        return LossMetrics(
            policy_loss=self.policy_loss + other.policy_loss,
            kl=self.kl + other.kl,
            clipped_low=self.clipped_low + other.clipped_low,
            clipped_high=self.clipped_high + other.clipped_high,
            ratio_mean=self.ratio_mean + other.ratio_mean,
            ratio_max=torch.maximum(self.ratio_max, other.ratio_max),
        )


def policy_loss(
    batch: TokenBatch, config: LossConfig, normaliser: Normaliser
) -> tuple[torch.Tensor, LossMetrics]:
    """The clipped surrogate and its KL term (R1, equations 1 and 2): this micro-batch's share.

    With ratio "sequence" a sample is one term, and its ratio leaves 1 exponentially with its
    length: made for few updates a rollout and a wide clip. The KL term is summed over tokens
    whatever the ratio. R1 writes it with the probabilities of whole outputs; k3 of such a ratio is
    the exponential of the sum of all differences, and one sample would be the whole loss. The sum
    of the tokens' divergences estimates the same quantity (chain rule).

    Raises ValueError where the loss has a KL term and the batch no ``ref_N``.
    """
    has_loss_N = batch.old_N.isfinite()
    ones_N = has_loss_N.to(batch.logprobs_N.dtype)
    tokens_S = _sum_by_sample(ones_N, batch.lengths_S)
    sample_N = _sample_of_token(batch.lengths_S, len(ones_N))
    weight_N = ones_N / _divisor_N(tokens_S[sample_N], config.aggregation, normaliser)
    log_ratio_N = (batch.logprobs_N - batch.old_N).where(has_loss_N, 0)
    advantage_S = batch.advantages_S.to(batch.logprobs_N)
    if config.ratio == "token":
        log_ratio_K, advantage_K, weight_K = log_ratio_N, advantage_S[sample_N], weight_N
        terms = normaliser.tokens
    else:
        log_ratio_K, advantage_K = _sum_by_sample(log_ratio_N, batch.lengths_S), advantage_S
        weight_K = tokens_S.clamp(max=1) / _some(normaliser.samples)
        terms = normaliser.samples

    ratio_K = _bounded(log_ratio_K).exp()
    clipped_K = ratio_K.clamp(1 - config.clip_epsilon_low, 1 + config.clip_epsilon_high)
    surrogate_K = torch.minimum(ratio_K * advantage_K, clipped_K * advantage_K)
    policy = -(weight_K * surrogate_K).sum()
    kl_N = _divergence_N(batch, config).where(has_loss_N, 0)
    loss = policy + config.beta * (weight_N * kl_N).sum()

    counted_K, ratio_K = weight_K > 0, ratio_K.detach()
    low_K = (ratio_K < 1 - config.clip_epsilon_low) & (advantage_K < 0) & counted_K
    high_K = (ratio_K > 1 + config.clip_epsilon_high) & (advantage_K > 0) & counted_K
    ratio_K = ratio_K.where(counted_K, 0)
    return loss, LossMetrics(
        policy_loss=policy.detach(),
        kl=kl_N.detach().sum() / _some(normaliser.tokens),
        clipped_low=low_K.sum() / _some(terms),
        clipped_high=high_K.sum() / _some(terms),
        ratio_mean=ratio_K.sum() / _some(terms),
        ratio_max=torch.cat([ratio_K, ratio_K.new_zeros(1)]).amax(),
    )


def _divisor_N(
    tokens_N: torch.Tensor, aggregation: Aggregation, step: Normaliser
) -> torch.Tensor | int:
    """What each token's term is divided by, given the loss tokens of its sample; at least 1, so
    that the loss of an empty batch is 0."""
    match aggregation:
        case "token_mean":
            return _some(step.tokens)
        case "sequence_mean":
            return tokens_N.clamp(min=1) * _some(step.samples)
        case "sequence_sum":
            return _some(step.samples)
        case "constant":
            return _some(step.samples) * step.max_tokens


def _some(count: int | torch.Tensor) -> int | torch.Tensor:
    """At least 1; a tensor is so already, and asking would wait for its device."""
    return max(1, count) if isinstance(count, int) else count


def _divergence_N(batch: TokenBatch, config: LossConfig) -> torch.Tensor:
    """KL(policy || reference) of every token, estimated from the token that was drawn."""
    if config.kl == "none":
        return torch.zeros_like(batch.logprobs_N)
    if batch.ref_N is None:
        raise ValueError(f"kl {config.kl!r} needs the log-probabilities of a reference")
    log_ratio_N = batch.ref_N - batch.logprobs_N
    return _k3(log_ratio_N) if config.kl == "k3" else log_ratio_N.square() / 2


def _k3(log_ratio: torch.Tensor) -> torch.Tensor:
    """ratio - 1 - log(ratio), exact for ratios near 1. Both terms have the bounded ratio: with the
    exponential alone bounded, the rest would push away from the reference."""
    log_ratio = _bounded(log_ratio)
    return log_ratio.expm1() - log_ratio


def _bounded(log_ratio: torch.Tensor) -> torch.Tensor:
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _sample_of_token(lengths_S: torch.Tensor, count: int) -> torch.Tensor:
    """The index of each token's sample; int64 [N]. ``count`` is N, so that no device waits."""
    return torch.repeat_interleave(lengths_S, output_size=count)


def _sum_by_sample(values_N: torch.Tensor, lengths_S: torch.Tensor) -> torch.Tensor:
    sample_N = _sample_of_token(lengths_S, len(values_N))
    return values_N.new_zeros(len(lengths_S)).index_add(0, sample_N, values_N)


# Supervised loss, and how far sampler and trainer disagree.


def sft_loss(logprobs_N: torch.Tensor, tokens: int) -> torch.Tensor:
    """Cross entropy, this micro-batch's share: ``tokens`` are the loss tokens of the whole step."""
    return -logprobs_N.sum() / max(1, tokens)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """How far a sampler was from the trainer.

    ``kl``: KL(sampler || trainer), mean over the tokens with a finite sampler log-probability; not
    a number where there is none. ``dropped``: the share of the other tokens.
    """

    kl: float
    dropped: float


def k3_mismatch(trainer_N: torch.Tensor, sampler_N: torch.Tensor) -> Mismatch:
    """The k3 estimate of their divergence, from the log-probabilities of sampled tokens."""
    share = sampler_N.isfinite().to(trainer_N.dtype).mean()
    return Mismatch(kl=float(k3_kl(trainer_N, sampler_N)), dropped=float(1 - share))


def k3_kl(trainer_N: torch.Tensor, sampler_N: torch.Tensor) -> torch.Tensor:
    """:attr:`Mismatch.kl` as a scalar tensor that nothing has waited for."""
    finite_N = sampler_N.isfinite()
    log_ratio_N = (trainer_N.detach() - sampler_N).where(finite_N, 0)
    return _k3(log_ratio_N).mean() / finite_N.to(log_ratio_N.dtype).mean()
