"""Rollouts against the naive way: the whole forward pass for every token, and the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import pytest
import torch

from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.rollout import PREFILL_TOKENS, Rollout, RolloutSample
from forethought.engines.torch.sampler import RowParameters, Sampler
from forethought.errors import ModelError
from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3.routing import RoutingRecorder
from tiny_training import optimizer_of, tiny_dense, tiny_v3

VOCABULARY, PADDED = 61, 64
ENDS = (3, 11, 17, 25, 40)
MAX_TOKENS = 20
PROMPTS = [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13], [30, 31, 32, 33, 34]]
SEEDS = [101, 7, 9 << 40, 12]
SAMPLES = 4
ROWS = [1, 3, 64]
KINDS = ["dense", "v3"]


def made(kind: str, seed: int = 0) -> CausalLM:
    """A network whose padding ids would be drawn nearly always, if they could be."""
    network = tiny_dense(PADDED, seed=seed) if kind == "dense" else tiny_v3(PADDED, seed=seed)
    with torch.no_grad():
        last = network.model.norm.weight
        network.head_weight[VOCABULARY:] = 30.0 * torch.ones_like(last)
    return network


def rollout(network: CausalLM, rows: int = 64, ends: Sequence[int] = ENDS, **options) -> Rollout:
    return Rollout(network, ends=ends, vocabulary=VOCABULARY, rows=rows, **options)


def sampled(
    network: CausalLM, rows: int, temperature: float = 1.0, **options
) -> list[list[RolloutSample]]:
    sampling = SamplingParameters(temperature=temperature, top_p=1.0)
    return rollout(network, rows, **options).sample(PROMPTS, SAMPLES, SEEDS, sampling, MAX_TOKENS)


@lru_cache
@torch.no_grad()
def naive(network: CausalLM, prompt: int, index: int, temperature: float) -> list[int]:
    """One sample, without a cache and without company; the network must not change."""
    parameters = RowParameters(
        SamplingParameters(temperature=temperature, top_p=1.0), SEEDS[prompt], index, "sampling"
    )
    sampler = Sampler([parameters], allowed=VOCABULARY)
    ids: list[int] = []
    while len(ids) < MAX_TOKENS and not (ids and ids[-1] in ENDS):
        logits = network(torch.tensor([[*PROMPTS[prompt], *ids]]))[0, -1:]
        ids.append(int(sampler.sample(logits, torch.tensor([len(ids)])).ids_B))
    return ids


@torch.no_grad()
def trainers(
    network: CausalLM, prompt: Sequence[int], ids: Sequence[int], temperature: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities (float64) of a sample under one whole pass, and the experts of the pass."""
    with RoutingRecorder(network) as recorder:
        logits = network(torch.tensor([[*prompt, *ids[:-1]]]))[0, len(prompt) - 1 :, :VOCABULARY]
        experts = recorder.indices_MNK() if recorder.layers else None
    logprobs = torch.log_softmax(logits.double() / temperature, dim=-1)
    return logprobs.gather(1, torch.tensor(ids)[:, None])[:, 0], experts


@lru_cache
def shared(kind: str) -> CausalLM:
    return made(kind)


@pytest.mark.parametrize(
    ("rows", "temperature"), [*((rows, 1.0) for rows in ROWS), (3, 0.7), (64, 1.3)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_those_of_the_naive_way_and_logprobs_the_trainers(kind, rows, temperature):
    network = shared(kind)
    groups = sampled(network, rows, temperature)
    assert [len(group) for group in groups] == [SAMPLES] * len(PROMPTS)
    lengths = set()
    for prompt, group in enumerate(groups):
        for index, sample in enumerate(group):
            assert list(sample.ids) == naive(network, prompt, index, temperature)
            expected, _ = trainers(network, PROMPTS[prompt], sample.ids, temperature)
            assert sample.logprobs.dtype == torch.float32
            torch.testing.assert_close(sample.logprobs.double(), expected, rtol=0, atol=1e-5)
            lengths.add(len(sample.ids))
    # Otherwise no row would ever have been taken over.
    assert len(lengths) > 5


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_ends_with_an_end_token_or_says_that_it_was_cut_off(kind, rows):
    samples = [sample for group in sampled(shared(kind), rows) for sample in group]
    for sample in samples:
        assert not set(sample.ids[:-1]) & set(ENDS)
        assert max(sample.ids) < VOCABULARY
        assert sample.truncated == (sample.ids[-1] not in ENDS)
        assert len(sample.ids) == MAX_TOKENS or not sample.truncated
        assert len(sample.logprobs) == len(sample.ids)
    assert {sample.truncated for sample in samples} == {True, False}


def test_padding_above_the_vocabulary_would_have_been_drawn():
    with torch.no_grad():
        logits = shared("dense")(torch.tensor([PROMPTS[0]]))[0, -1]
    likely = float(logits.softmax(dim=-1)[VOCABULARY:].sum())
    whole = Rollout(shared("dense"), ends=ENDS, vocabulary=PADDED, rows=4)
    groups = whole.sample(PROMPTS, 8, SEEDS, SamplingParameters(1.0, 1.0), MAX_TOKENS)
    assert likely > 0.5 or any(max(s.ids) >= VOCABULARY for group in groups for s in group)


@pytest.mark.parametrize("rows", ROWS)
def test_experts_are_those_of_the_trainers_pass(rows):
    network = shared("v3")
    for prompt, group in enumerate(sampled(network, rows, record_experts=True)):
        for sample in group:
            _, expected = trainers(network, PROMPTS[prompt], sample.ids, 1.0)
            assert sample.experts is not None
            assert sample.experts.dtype == torch.int16
            assert sample.experts.shape == expected.shape
            got = sample.experts.long().sort(dim=-1).values
            assert torch.equal(got, expected.sort(dim=-1).values)


def test_no_experts_where_none_were_asked_for_or_the_network_has_none():
    for kind, record in (("v3", False), ("dense", True)):
        groups = sampled(shared(kind), 3, record_experts=record)
        assert all(sample.experts is None for group in groups for sample in group)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", ROWS)
def test_samples_of_a_single_token(kind, rows):
    network = shared(kind)
    everything = rollout(network, rows, range(VOCABULARY), record_experts=True)
    groups = everything.sample(PROMPTS, SAMPLES, SEEDS, SamplingParameters(1.0, 1.0), MAX_TOKENS)
    for prompt, group in enumerate(groups):
        for index, sample in enumerate(group):
            assert list(sample.ids) == naive(network, prompt, index, 1.0)[:1]
            assert not sample.truncated
            if sample.experts is not None:
                assert sample.experts.shape[1] == len(PROMPTS[prompt])
    one = rollout(network, rows).sample(PROMPTS, SAMPLES, SEEDS, SamplingParameters(1.0, 1.0), 1)
    assert [[s.ids for s in group] for group in one] == [[s.ids for s in g] for g in groups]
    assert any(s.truncated for group in one for s in group)


def test_a_row_that_ends_is_taken_over_at_once():
    network, steps = shared("dense"), 0

    def count(module, inputs, output):
        nonlocal steps
        steps += output.shape[1] == 1 and output.shape[0] > 1

    handle = network.model.norm.register_forward_hook(count)
    groups = sampled(network, 3)
    handle.remove()
    lengths = [len(sample.ids) - 1 for group in groups for sample in group]
    # Three rows, each taking the next sample in order when its own is over.
    busy = [0, 0, 0]
    for length in lengths:
        busy[busy.index(min(busy))] += length
    assert steps <= max(busy)
    static = sum(max(lengths[at : at + 3]) for at in range(0, len(lengths), 3))
    assert steps < static


def test_prompts_beyond_one_prefill_pass_give_the_same_samples():
    network = shared("dense")
    prompts = [
        [(7 * at + i) % VOCABULARY for i in range(150)] for at in range(PREFILL_TOKENS // 100)
    ]
    sampling = SamplingParameters(temperature=1.0, top_p=1.0)
    seeds = list(range(len(prompts)))
    many = rollout(network, 64).sample(prompts, 1, seeds, sampling, 3)
    for at in (0, len(prompts) // 2, len(prompts) - 1):
        alone = rollout(network).sample([prompts[at]], 1, [seeds[at]], sampling, 3)[0][0]
        assert many[at][0].ids == alone.ids


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_stale_after_a_step(kind):
    network = made(kind)
    one = rollout(network, 8, record_experts=True)
    optimizer = optimizer_of(network)
    sampling = SamplingParameters(temperature=1.0, top_p=1.0)

    def check() -> list[list[RolloutSample]]:
        groups = one.sample(PROMPTS, SAMPLES, SEEDS, sampling, MAX_TOKENS)
        for prompt, group in enumerate(groups):
            for sample in group:
                expected, _ = trainers(network, PROMPTS[prompt], sample.ids, 1.0)
                torch.testing.assert_close(sample.logprobs.double(), expected, rtol=0, atol=1e-5)
        return groups

    before = check()
    for _ in range(2):
        ids = torch.tensor([[*PROMPTS[2], 20, 21]])
        logits = network(ids)[0, :, :VOCABULARY]
        torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:]).backward()
        optimizer.step(0.02)
        after = check()
        assert [[s.ids for s in group] for group in after] != [[s.ids for s in g] for g in before]
        moved, _ = trainers(network, PROMPTS[0], before[0][0].ids, 1.0)
        assert float((moved - before[0][0].logprobs.double()).abs().max()) > 1e-3
        before = after


def test_a_network_without_numbers_is_refused():
    network = made("dense")
    with torch.no_grad():
        network.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="no token can be drawn"):
        sampled(network, 3)


def test_only_a_batch_of_equal_parameters_is_taken_over():
    rows = [RowParameters(SamplingParameters(t, 1.0), 1, 0, "sampling") for t in (0.7, 1.3)]
    with pytest.raises(ValueError, match="equal parameters"):
        Sampler(rows).select([0])


@pytest.mark.parametrize("wait", [0, 3, 70])
def test_a_sampler_that_changed_its_rows_draws_what_a_new_one_draws(wait):
    sampling = SamplingParameters(temperature=1.0, top_p=1.0)
    logits = torch.randn(4, PADDED, generator=torch.Generator().manual_seed(1))

    def sampler(owners: list[tuple[int, int]]) -> Sampler:
        return Sampler([RowParameters(sampling, seed, i, "sampling") for seed, i in owners])

    one = sampler([(1, 0), (1, 1), (2, 0), (2, 1)])
    positions = torch.tensor([0, 5, 9, 2])
    for _ in range(wait):
        one.sample(logits, positions)
        positions += 1
    one.reseed([1, 3], [8, 9], [4, 5])
    positions[1] = positions[3] = 0
    owners = [(1, 0), (8, 4), (2, 0), (9, 5)]
    for kept in ([0, 1, 2, 3], [0, 3, 2], [2, 1]):
        if len(kept) < len(owners):
            one.select(kept)
            owners = [owners[at] for at in kept]
            positions, logits = positions[kept], logits[kept]
        fresh = sampler(owners).sample(logits, positions)
        drawn = one.sample(logits, positions)
        assert torch.equal(drawn.ids_B, fresh.ids_B)
        assert torch.equal(drawn.logprobs_B, fresh.logprobs_B)
        positions = positions + 1
