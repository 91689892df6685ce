"""The losses that TRL has too, against TRL's own `GRPOTrainer._compute_loss` in float64.

The trainer's method runs on a namespace with the attributes it reads; the log-probabilities of
the policy are given to it, padded, where it would ask its model for them.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from forethought.training.losses import (
    LossConfig,
    Normaliser,
    TokenBatch,
    advantages,
    policy_loss,
)

pytest.importorskip("trl", reason="TRL is not installed")
from trl import GRPOTrainer
from trl.trainer.utils import nanstd

MAX_TOKENS = 9
LENGTHS = [3, 1, 7, 2, 5, 4]
HALVES = [[0, 1, 3], [2, 4, 5]]

SAME_DEFINITIONS = [
    ("grpo", {"aggregation": "sequence_mean"}),
    ("bnpo", {"aggregation": "token_mean"}),
    ("dapo", {"aggregation": "token_mean"}),
    ("dr_grpo", {"aggregation": "constant"}),
    ("luspo", {"aggregation": "sequence_sum"}),
]
"""TRL's name, and ours. "bnpo" divides by the tokens of a micro-batch, so only a whole step agrees;
"luspo" with ratios of tokens is the sum over each sample."""


@pytest.fixture
def samples():
    """Sample by sample: (new with gradient, old, reference, advantage); clipped on both sides."""
    generator = torch.Generator().manual_seed(3)

    def normal(size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    made = []
    for length in LENGTHS:
        old = -normal(length).abs() - 0.1
        new, ref = ((old + 0.4 * normal(length)).clamp(max=0) for _ in range(2))
        made.append((new.requires_grad_(), old, ref, normal(1)))
    return made


def trl_loss(samples, loss_type, config, accumulation):
    """TRL's loss of one of `accumulation` micro-batches, and what it logs."""
    new, old, ref = (
        pad_sequence(column, batch_first=True)
        for column in zip(*(sample[:3] for sample in samples), strict=True)
    )
    mask = pad_sequence([torch.ones(len(s[0])) for s in samples], batch_first=True).double()
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, torch.zeros_like(new), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=config.beta,
        args=SimpleNamespace(
            use_bias_correction_kl=False, delta=None, steps_per_generation=accumulation
        ),
        loss_type=loss_type,
        epsilon_low=config.clip_epsilon_low,
        epsilon_high=config.clip_epsilon_high,
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=accumulation,
        max_completion_length=MAX_TOKENS,
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    prompt = torch.zeros(len(samples), 1, dtype=torch.int64)
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": prompt + 1,
        "completion_ids": torch.zeros_like(mask, dtype=torch.int64),
        "completion_mask": mask,
        "advantages": torch.cat([sample[3] for sample in samples]),
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "num_items_in_batch": torch.tensor(float(sum(LENGTHS))),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss, {name: values[0] for name, values in trainer._metrics["train"].items()}


def our_loss(samples, config):
    new, old, ref, advantage = (torch.cat(column) for column in zip(*samples, strict=True))
    lengths = torch.tensor([len(sample[0]) for sample in samples])
    normaliser = Normaliser(len(LENGTHS), sum(LENGTHS), MAX_TOKENS)
    return policy_loss(TokenBatch(new, old, lengths, advantage, ref), config, normaliser)


def gradients(losses, samples):
    return torch.cat(torch.autograd.grad(sum(losses), [sample[0] for sample in samples]))


@pytest.mark.parametrize("divergence", [{}, {"kl": "k3", "beta": 0.04}], ids=["no kl", "k3"])
@pytest.mark.parametrize(("loss_type", "keys"), SAME_DEFINITIONS)
def test_loss_gradient_and_metrics_equal_trl(samples, loss_type, keys, divergence):
    config = LossConfig(**keys, **divergence)
    ours, metrics = our_loss(samples, config)
    theirs, logged = trl_loss(samples, loss_type, config, accumulation=1)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        gradients([ours], samples), gradients([theirs], samples), rtol=1e-10, atol=1e-10
    )
    assert float(metrics.clipped_low) == pytest.approx(logged["clip_ratio/low_mean"], rel=1e-6)
    assert float(metrics.clipped_high) == pytest.approx(logged["clip_ratio/high_mean"], rel=1e-6)
    assert logged["clip_ratio/low_mean"] > 0
    assert logged["clip_ratio/high_mean"] > 0
    if divergence:
        assert float(metrics.kl) == pytest.approx(logged["kl"], rel=1e-6)


@pytest.mark.parametrize(
    ("loss_type", "keys"), [pair for pair in SAME_DEFINITIONS if pair[0] != "bnpo"]
)
def test_two_accumulated_micro_batches_equal_trl(samples, loss_type, keys):
    config = LossConfig(kl="k3", beta=0.04, **keys)
    parts = [[samples[at] for at in half] for half in HALVES]
    ours = [our_loss(part, config)[0] for part in parts]
    theirs = [trl_loss(part, loss_type, config, accumulation=2)[0] for part in parts]
    torch.testing.assert_close(sum(ours), sum(theirs), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        gradients(ours, samples), gradients(theirs, samples), rtol=1e-10, atol=1e-10
    )


def test_bnpo_of_two_micro_batches_is_another_loss_than_of_the_step(samples):
    """Why ours counts over the step: TRL says of "bnpo" that it depends on the micro-batch."""
    config = LossConfig()
    parts = [[samples[at] for at in half] for half in HALVES]
    cut = sum(trl_loss(part, "bnpo", config, accumulation=2)[0] for part in parts)
    whole = trl_loss(samples, "bnpo", config, accumulation=1)[0]
    assert (cut - whole).abs() > 1e-3


def test_advantages_equal_trl():
    """Its lines in `_generate_and_score_completions`, with its `nanstd`; NaN is unscorable.
    It counts samples in float32."""
    rewards = torch.tensor(
        [[1.0, 0.0, 0.0, 1.1], [0.3, torch.nan, 0.1, 1.0], [0.5, 0.5, 0.25, 0.5]],
        dtype=torch.float64,
    )
    centred = rewards - rewards.nanmean(dim=1, keepdim=True)
    scaled = centred / (nanstd(rewards, dim=1)[:, None] + 1e-4)
    for scale, expected in (("std", scaled), ("none", centred)):
        ours = advantages(rewards, scale, ~rewards.isnan()).values_PG
        torch.testing.assert_close(ours, expected.nan_to_num(0.0), rtol=1e-7, atol=1e-7)
