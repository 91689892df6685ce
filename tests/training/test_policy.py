"""Sampling and scoring are one policy: the same numbers, temperatures and experts included."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.rollout import RolloutSample
from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3.routing import gates
from forethought.problems.problem import Problem
from forethought.training.batches import PackedBatch
from forethought.training.losses import k3_mismatch
from forethought.training.policy import Policy, Scored, experts_of, noise_seed
from forethought.training.prompting import Prompter
from tiny_training import ShownDigit, optimizer_of, tiny_dense, tiny_tokenizer, tiny_v3

TOKENIZER = tiny_tokenizer()
PROBLEMS = [
    replace(ShownDigit().problem(3, seed), text=text)
    for seed, text in enumerate(["7?", "Which digit is shown: 4?", "", "2"])
]
SEEDS = [5, 6, 7, 8]
MAX_TOKENS = 14
Pairs = list[tuple[Problem, RolloutSample]]


def network(kind: str, seed: int = 0) -> CausalLM:
    """One whose end token comes now and then, and whose padding would be drawn."""
    make = tiny_dense if kind == "dense" else tiny_v3
    made = make(TOKENIZER.padded_size, seed=seed)
    with torch.no_grad():
        made.head_weight[TOKENIZER.eos_id] *= 3
        made.head_weight[TOKENIZER.size :] *= 10
    return made


def policy(kind: str, seed: int = 0) -> Policy:
    return Policy(network(kind, seed), TOKENIZER, Prompter(TOKENIZER, "chat"))


def sampled(one: Policy, temperature: float = 1.0, rows: int = 64) -> Pairs:
    groups = one.sample(
        PROBLEMS,
        3,
        SEEDS,
        SamplingParameters(temperature=temperature, top_p=1.0),
        MAX_TOKENS,
        rows=rows,
        record_experts=True,
    )
    return [(p, s) for p, group in zip(PROBLEMS, groups, strict=True) for s in group]


def batch_of(one: Policy, pairs: Pairs) -> PackedBatch:
    return PackedBatch([one.sequence(problem, sample) for problem, sample in pairs])


def scored(one: Policy, pairs: Pairs, temperature: float = 1.0, **options) -> Scored:
    return one.score(batch_of(one, pairs), temperature, **options)


def drawn_logprobs(pairs: Pairs) -> torch.Tensor:
    return torch.cat([sample.logprobs for _, sample in pairs])


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("kind", ["dense", "v3"])
def test_the_trainer_gives_the_sampler_s_logprobs(kind, temperature):
    one = policy(kind)
    pairs = sampled(one, temperature)
    old, new = drawn_logprobs(pairs), scored(one, pairs, temperature).logprobs_L.detach()
    assert float((new - old).abs().max()) < 1e-5
    assert k3_mismatch(new, old).kl < 1e-9
    # A trainer that forgot the temperature would be another policy.
    if temperature != 1:
        other = scored(one, pairs, 1.0).logprobs_L.detach()
        assert float((other - old).abs().max()) > 0.1
    assert all(max(sample.ids) < TOKENIZER.size for _, sample in pairs)
    assert {sample.truncated for _, sample in pairs} == {True, False}


def test_entropies_are_those_of_the_distribution_drawn_from():
    one = policy("v3")
    pairs = sampled(one, 0.7)
    batch = batch_of(one, pairs)
    with torch.no_grad():
        hidden = one.network.hidden(batch.ids_1N, batch.positions_1N, batch.packed)
        logits = one.network.logits(hidden)[0, batch.rows_L, : TOKENIZER.size].double() / 0.7
    logprobs = logits.log_softmax(dim=-1)
    expected = -(logprobs.exp() * logprobs).sum(dim=-1)
    entropy = one.score(batch, 0.7).entropy_L
    torch.testing.assert_close(entropy.double(), expected, rtol=1e-4, atol=1e-5)


def test_every_token_of_a_sample_is_scored_its_end_token_too():
    one = policy("v3")
    pairs = sampled(one)
    batch = batch_of(one, pairs)
    assert batch.targets_L.tolist() == [i for _, sample in pairs for i in sample.ids]
    assert batch.lengths_S.tolist() == [len(sample.ids) for _, sample in pairs]
    ended = [pair for pair in pairs if pair[1].ids[-1] == TOKENIZER.eos_id]
    assert ended
    last = batch_of(one, ended[:1])
    one.score(last, 1.0).logprobs_L[-1].backward()
    gradient = one.network.lm_head.weight.grad
    # Upwards for the end token, downwards for what else could have been drawn.
    assert gradient is not None
    hidden = one.network.hidden(last.ids_1N, last.positions_1N, last.packed)[0, -1].detach()
    pull = gradient @ hidden
    assert float(pull[TOKENIZER.eos_id]) > 0
    assert int((pull[: TOKENIZER.size] < 0).sum()) == TOKENIZER.size - 1
    assert not pull[TOKENIZER.size :].any()


def test_experts_are_recorded_alike():
    one = policy("v3")
    for rows in (3, 64):
        pairs = sampled(one, rows=rows)
        experts = experts_of([sample for _, sample in pairs])
        got = scored(one, pairs).experts_MNK
        assert experts is not None
        assert experts.shape == got.shape == (2, batch_of(one, pairs).tokens, 2)
        assert torch.equal(experts.sort(-1).values, got.sort(-1).values)
    assert scored(policy("dense"), sampled(policy("dense"))).experts_MNK is None
    assert experts_of([sample for _, sample in sampled(policy("dense"))]) is None


def test_replayed_experts_are_used_and_gates_get_gradients():
    one = policy("v3")
    pairs = sampled(one)
    own = scored(one, pairs)
    altered = (experts_of([sample for _, sample in pairs]) + 3) % 8
    replay = scored(one, pairs, replay_MNK=altered)
    assert torch.equal(replay.experts_MNK, altered)
    assert float((replay.logprobs_L - own.logprobs_L).detach().abs().max()) > 0.01
    replay.logprobs_L.sum().backward()
    assert all(float(gate.weight.grad.abs().max()) > 0 for gate in gates(one.network))
    again = scored(one, pairs)
    assert torch.equal(again.logprobs_L, own.logprobs_L)


def test_another_network_scores_under_the_same_distribution():
    one, other = policy("v3"), policy("v3", seed=1)
    pairs = sampled(one)
    expected = scored(other, pairs, 0.7).logprobs_L
    got = one.score_with(other.network, batch_of(one, pairs), 0.7).logprobs_L
    assert torch.equal(got, expected)
    assert not torch.equal(got, scored(one, pairs, 0.7).logprobs_L)


@pytest.mark.parametrize("kind", ["dense", "v3"])
def test_sampler_and_trainer_move_together(kind):
    """Sample, step, sample again: no cache and no copy of the weights is left behind."""
    one = policy(kind)
    optimizer = optimizer_of(one.network)
    before = sampled(one)
    old_again = None
    for _ in range(3):
        scored(one, before).logprobs_L.mean().backward()
        optimizer.step(0.03)
        after = sampled(one)
        new = scored(one, after).logprobs_L.detach()
        assert float((new - drawn_logprobs(after)).abs().max()) < 2e-5
        moved = scored(one, before).logprobs_L.detach() - drawn_logprobs(before)
        assert float(moved.abs().max()) > 0.01
        assert [s.ids for _, s in after] != [s.ids for _, s in before]
        assert old_again is None or old_again != after
        old_again, before = after, after


def test_seeds_of_noise_fit_into_63_bits_and_differ():
    seeds = {noise_seed(seed, problem) for seed in (0, 1, 70) for problem in range(50)}
    assert len(seeds) == 150
    assert noise_seed(3, 5) == (3 << 40) + 5
    largest = noise_seed((2**32 - 2) * 64 + 5, 1 << 30)
    assert 0 <= largest < 1 << 63
    torch.tensor([largest])
