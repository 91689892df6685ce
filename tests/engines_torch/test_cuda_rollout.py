"""The rollout of `engines.torch.cuda` against the plain one, on any device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain

import pytest
import torch

from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.cuda.rollout import CudaRollout
from forethought.engines.torch.rollout import Rollout, RolloutSample
from forethought.errors import ModelError, UserError
from forethought.models.causal_lm import CausalLM
from tiny_training import tiny_dense, tiny_v3

VOCABULARY, PADDED = 61, 64
ENDS = (3, 11, 17, 25, 40)
MAX_TOKENS = 40
PROMPTS = [
    [5, 9, 2],
    [7],
    list(range(1, 42)),
    [30, 31, 32, 33, 34],
    list(range(20, 37)),  # all but its last token fill a page
]
SEEDS = [101, 7, 9 << 40, 12, -5]
SAMPLES = 6
PLAIN = SamplingParameters(1.0, 1.0)
KINDS = ["dense", "v3"]


def made(kind: str) -> CausalLM:
    return tiny_dense(PADDED, seed=0) if kind == "dense" else tiny_v3(PADDED, seed=0)


def fast(network: CausalLM, rows: int = 64, **options) -> CudaRollout:
    return CudaRollout(network, ends=ENDS, vocabulary=VOCABULARY, rows=rows, **options)


def plain(
    network: CausalLM, sampling: SamplingParameters, rows: int = 64, **options
) -> list[list[RolloutSample]]:
    rollout = Rollout(network, ends=ENDS, vocabulary=VOCABULARY, rows=rows, **options)
    return rollout.sample(PROMPTS, SAMPLES, SEEDS, sampling, MAX_TOKENS)


def agree(
    ours: Sequence[Sequence[RolloutSample]], theirs: Sequence[Sequence[RolloutSample]]
) -> None:
    assert [len(group) for group in ours] == [len(group) for group in theirs]
    for left, right in zip(chain(*ours), chain(*theirs), strict=True):
        assert left.ids == right.ids
        assert left.truncated == right.truncated
        assert left.logprobs.dtype == torch.float32
        torch.testing.assert_close(left.logprobs, right.logprobs, rtol=0, atol=1e-5)
        assert (left.experts is None) == (right.experts is None)
        if left.experts is not None:
            assert left.experts.dtype == torch.int16
            assert torch.equal(left.experts.sort().values, right.experts.sort().values)


@pytest.mark.parametrize("rows", [1, 3, 7, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_the_plain_rollouts(kind, rows):
    network = made(kind)
    ours = fast(network, rows, record_experts=True)
    expected = plain(network, PLAIN, record_experts=True)
    lengths = {len(sample.ids) for group in expected for sample in group}
    assert len(lengths) > 5  # otherwise no row would ever have been taken over
    agree(ours.sample(PROMPTS, SAMPLES, SEEDS, PLAIN, MAX_TOKENS), expected)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParameters(0.0, 1.0),
        SamplingParameters(0.6, 0.95),
        SamplingParameters(1.2, 1.0, top_k=5),
        SamplingParameters(0.9, 0.8, top_k=20, min_p=0.05),
        SamplingParameters(1.0, 1.0, min_p=0.1),
    ],
)
def test_every_way_of_drawing(sampling):
    network = made("dense")
    ours = fast(network, 5)
    agree(ours.sample(PROMPTS, SAMPLES, SEEDS, sampling, MAX_TOKENS), plain(network, sampling))


@pytest.mark.parametrize("kind", KINDS)
def test_one_object_serves_many_calls_and_weights(kind):
    network = made(kind)
    ours = fast(network, 4)
    for step in range(3):
        expected = plain(network, PLAIN)
        agree(ours.sample(PROMPTS, SAMPLES, SEEDS, PLAIN, MAX_TOKENS), expected)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * (step + 1) * torch.randn_like(parameter))
    short = ours.sample(PROMPTS[:1], 1, SEEDS[:1], PLAIN, 3)
    assert len(short[0][0].ids) <= 3


@pytest.mark.parametrize("pages", [10, 14, 20])
def test_with_too_few_pages_samples_begin_again_and_draw_the_same(pages):
    network = made("v3")
    ours = fast(network, 16, pages=pages, record_experts=True)
    expected = plain(network, PLAIN, record_experts=True)
    agree(ours.sample(PROMPTS, SAMPLES, SEEDS, PLAIN, MAX_TOKENS), expected)


def test_each_sample_is_handed_out_once_and_before_the_last_has_ended():
    network = made("dense")
    heard: list[tuple[int, int, RolloutSample]] = []
    groups = fast(network, 4).sample(
        PROMPTS, SAMPLES, SEEDS, PLAIN, MAX_TOKENS, on_finished=lambda *one: heard.append(one)
    )
    assert len(heard) == len(PROMPTS) * SAMPLES
    assert {(p, i): s for p, i, s in heard} == {
        (p, i): s for p, group in enumerate(groups) for i, s in enumerate(group)
    }


def test_lengths_can_be_forced():
    network = made("dense")
    lengths = [[1 + (7 * p + 5 * i) % 30 for i in range(SAMPLES)] for p in range(len(PROMPTS))]
    groups = fast(network, 7).sample(PROMPTS, SAMPLES, SEEDS, PLAIN, MAX_TOKENS, lengths=lengths)
    for group, own in zip(groups, lengths, strict=True):
        assert [len(sample.ids) for sample in group] == own
        for sample in group:
            assert sample.ids[-1] == ENDS[0]
            assert not set(sample.ids[:-1]) & set(ENDS)
            assert not sample.truncated


def test_a_request_longer_than_the_cache_takes_the_plain_path_and_says_so(caplog):
    network = made("dense")
    ours = fast(network, 4, most_tokens=48)
    heard: list[int] = []
    with caplog.at_level(logging.WARNING):
        groups = ours.sample(
            PROMPTS, SAMPLES, SEEDS, PLAIN, MAX_TOKENS, on_finished=lambda p, i, s: heard.append(p)
        )
    assert len(caplog.records) == 1
    assert "80 tokens, more than the cache's 48" in caplog.text
    agree(groups, plain(network, PLAIN))
    assert len(heard) == len(PROMPTS) * SAMPLES


def test_a_pool_too_small_for_one_sample_says_what_to_lower():
    with pytest.raises(UserError, match="max_tokens"):
        fast(made("dense"), 4, pages=5).sample(PROMPTS, 1, SEEDS, PLAIN, MAX_TOKENS)


def test_no_memory_names_the_key_to_lower(monkeypatch):
    ours = fast(made("dense"), 8)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(ours.decoder, "run", full)
    with pytest.raises(UserError, match=r"lower `rows` .*to 4, which would save"):
        ours.sample(PROMPTS, SAMPLES, SEEDS, PLAIN, MAX_TOKENS)


def test_logits_that_are_no_numbers_are_refused():
    network = made("dense")
    with torch.no_grad():
        network.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="finite"):
        fast(network, 4).sample(PROMPTS, SAMPLES, SEEDS, PLAIN, MAX_TOKENS)


def test_calls_inside_inference_mode_leave_the_network_trainable():
    network = made("dense")
    ours = fast(network, 8)
    with torch.inference_mode():
        first = ours.sample(PROMPTS, 2, SEEDS, PLAIN, 10)
    agree(ours.sample(PROMPTS, 2, SEEDS, PLAIN, 10), first)
    network(torch.tensor([PROMPTS[0]])).sum().backward()


def test_nothing_asked_is_nothing_sampled():
    assert fast(made("dense")).sample([], 4, [], PLAIN, 5) == []
