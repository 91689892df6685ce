"""Captured decode steps on a GPU, and what happens where there are none."""

from __future__ import annotations

import contextlib
import logging
from itertools import chain
from random import Random

import pytest
import torch

from forethought.checkpoints.network_config import DenseConfig
from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.captures import Captures
from forethought.engines.torch.cuda.dense import neighbours
from forethought.engines.torch.cuda.draw import Mode
from forethought.engines.torch.cuda.graphs import Steps
from forethought.engines.torch.cuda.rollout import CudaRollout
from forethought.engines.torch.rollout import Rollout, RolloutSample
from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3.routing import flipped_share, replayed
from forethought.models.dense import DenseLM
from forethought.models.layers import initialise
from tiny_training import tiny_dense, tiny_v3

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
GREEDY, PLAIN = SamplingParameters(0.0, 1.0), SamplingParameters(1.0, 1.0)
VOCABULARY, END = 64, 3
KINDS = ["dense", "v3", "llama", "latent", "latent, halves"]
"""`v3` chooses among groups of experts: no fused step is written for that."""
LATENT = {
    "hidden_size": 96,
    "num_attention_heads": 6,
    "q_lora_rank": None,
    "kv_lora_rank": 48,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
    "moe_intermediate_size": 40,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "n_group": 1,
    "topk_group": 1,
}
HALVES = {
    "rope_interleave": False,
    "attention_bias": True,
    "norm_topk_prob": False,
    "first_k_dense_replace": 0,
    "n_group": 1,
    "topk_group": 1,
}
PLACES = [("cpu", 24), pytest.param("cuda", 256, marks=GPU)]
"""Devices, and how many prompts there."""


def made(kind: str, dtype: torch.dtype, device: str = "cuda") -> CausalLM:
    if kind == "dense":
        return tiny_dense(VOCABULARY, seed=0).to(device, dtype)
    if kind == "v3":
        return tiny_v3(VOCABULARY, seed=0).to(device, dtype)
    if kind.startswith("latent"):
        changes = LATENT if kind == "latent" else HALVES
        return tiny_v3(VOCABULARY, seed=0, **changes).to(device, dtype)
    config = DenseConfig(
        model_type="llama",
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
        max_position_embeddings=512,
        rope_theta=10000.0,
        tie_word_embeddings=True,
    )
    network = DenseLM(config)
    initialise(network, 0.2, torch.Generator().manual_seed(0))
    return network.to(device, dtype)


def prompts_of(count: int) -> list[list[int]]:
    rng = Random(4)
    return [[rng.randrange(4, VOCABULARY) for _ in range(rng.randint(1, 70))] for _ in range(count)]


def both(
    network: CausalLM, prompts: list[list[int]], n: int, sampling: SamplingParameters, rows: int
) -> tuple[list[RolloutSample], list[RolloutSample]]:
    """Samples of ours and of the plain path."""
    experts = network.__class__.__name__ == "DeepseekV3"
    kinds = {"ends": (END,), "vocabulary": VOCABULARY, "record_experts": experts}
    seeds = list(range(len(prompts)))
    ours = CudaRollout(network, rows=rows, **kinds).sample(prompts, n, seeds, sampling, 60)
    theirs = Rollout(network, rows=len(prompts) * n, **kinds).sample(
        prompts, n, seeds, sampling, 60
    )
    return list(chain(*ours)), list(chain(*theirs))


@pytest.mark.parametrize(("device", "prompts"), PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_samples_of_mixed_prompts_are_the_plain_paths(kind, device, prompts):
    network = made(kind, torch.float32, device)
    for left, right in zip(*both(network, prompts_of(prompts), 1, GREEDY, 96), strict=True):
        assert left.ids == right.ids
        if left.experts is not None and right.experts is not None:
            assert flipped_share(left.experts.long(), right.experts.cpu().long()) == 0


@GPU
@pytest.mark.parametrize("kind", KINDS)
def test_drawn_samples_are_the_plain_paths(kind):
    network = made(kind, torch.float32)
    same = 0
    for left, right in zip(*both(network, prompts_of(40), 8, PLAIN, 96), strict=True):
        if left.ids == right.ids:  # a number between two tokens' shares goes either way
            same += 1
            # Sums of float32 in another order, of logits that are tens: 2.3e-5 was seen.
            torch.testing.assert_close(left.logprobs, right.logprobs.cpu(), rtol=0, atol=5e-5)
    assert same >= 318


@torch.no_grad()
@pytest.mark.parametrize(("device", "count"), PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_greedy_samples_part_at_ties_alone(kind, device, count):
    """Where the two paths first differ, float32 holds their tokens' logits for nearly equal: closer
    than bfloat16 logits of this network are to those of float32. Or, with experts, a gate of one
    path had chosen others by then, which it may near a tie of its own: in few places."""
    network, wide = (made(kind, torch.bfloat16, device) for _ in range(2))
    wide = wide.float()
    prompts = prompts_of(count)
    ours, theirs = both(network, prompts, 1, GREEDY, 96)
    apart, flips, choices = 0, 0, 0
    for prompt, left, right in zip(prompts, ours, theirs, strict=True):
        pairs = list(zip(left.ids, right.ids, strict=False))
        at = next((at for at, (mine, other) in enumerate(pairs) if mine != other), None)
        if at is None:
            assert len(left.ids) == len(right.ids)
            continue
        apart += 1
        taken: list[contextlib.AbstractContextManager[None]] = [contextlib.nullcontext()] * 2
        if left.experts is not None and right.experts is not None:
            # Of all tokens that both computed before they drew apart.
            chosen = [one.experts[:, : len(prompt) + at].to(device) for one in (left, right)]
            sets = [experts_MTK.sort(dim=-1).values for experts_MTK in chosen]
            differs_MT = (sets[0] != sets[1]).any(dim=-1)
            flips, choices = flips + int(differs_MT.sum()), choices + differs_MT.numel()
            if differs_MT.any():
                continue
            # float32 might choose others again.
            taken = [replayed(one, chosen[0].long()) for one in (wide, network)]
        seen = torch.tensor([[*prompt, *left.ids[:at]]], device=device)
        with taken[0]:
            logits_V = wide(seen)[0, -1].float()
        with taken[1]:
            rounding = (network(seen)[0, -1].float() - logits_V).abs().max()
        gap = abs(float(logits_V[left.ids[at]] - logits_V[right.ids[at]]))
        assert gap <= 4 * float(rounding) + 1e-3
    # Experts make a step of what is a slope elsewhere: 56% was seen, of random weights.
    assert apart < (count // 2 if kind in ("dense", "llama") else 3 * count // 4)
    assert flips <= 0.05 * choices


@GPU
@pytest.mark.parametrize("kind", KINDS)
def test_graphs_see_weights_that_change_in_place_and_parameters_that_move(kind):
    network = made(kind, torch.float32)
    fast = CudaRollout(network, ends=(END,), vocabulary=VOCABULARY, rows=16)
    prompts, seeds = prompts_of(8), list(range(8))

    def agree() -> None:
        ours = fast.sample(prompts, 2, seeds, GREEDY, 24)
        plain = Rollout(network, ends=(END,), vocabulary=VOCABULARY, rows=16)
        theirs = plain.sample(prompts, 2, seeds, GREEDY, 24)
        assert [s.ids for s in chain(*ours)] == [s.ids for s in chain(*theirs)]

    agree()
    agree()
    captured = fast.decoder.steps.captured
    assert captured > 0
    generator = torch.Generator("cuda").manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator, device="cuda")
            parameter.add_(0.1 * parameter.std() * noise)
        for buffer in network.buffers():
            buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator, device="cuda"))
    agree()
    assert fast.decoder.steps.captured >= captured
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.data = 0.9 * parameter.data
    agree()
    for part in network.modules():
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.flip(0))
    agree()


@GPU
def test_a_step_that_cannot_be_captured_runs_as_it_is_and_says_so_once(caplog):
    count = torch.zeros(1, device="cuda")
    seen: list[float] = []

    def step(batch: int, mode: Mode) -> None:
        count.add_(batch)
        seen.append(float(count))  # waits for the device: no graph can hold it

    steps = Steps(step, torch.device("cuda"))
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            steps.run(2, Mode(PLAIN))
    assert float(count) == 8
    assert len(caplog.records) == 1
    assert "without CUDA graphs" in caplog.text


def test_without_cuda_steps_run_as_they_are():
    ran: list[int] = []
    steps = Steps(lambda batch, mode: ran.append(batch), torch.device("cpu"))
    for batch in (3, 3, 2):
        steps.run(batch, Mode(PLAIN))
    assert ran == [3, 3, 2]
    assert steps.captured == 0


class _Capture:
    """A graph's stand-in on machines without CUDA."""

    replays = 0

    def replay(self) -> None:
        _Capture.replays += 1


def test_the_second_step_of_a_size_is_captured_and_few_modes_are_kept(monkeypatch):
    ran: list[int] = []
    steps = Steps(lambda batch, mode: ran.append(batch), torch.device("cuda"))
    monkeypatch.setattr(Captures, "capture", lambda self, work: (_Capture(), None))
    _Capture.replays = 0
    for _ in range(3):
        steps.run(4, Mode(PLAIN))
    assert ran == [4]
    assert _Capture.replays == 2
    for temperature in (0.1, 0.2, 0.3, 0.4):
        for _ in range(2):
            steps.run(4, Mode(SamplingParameters(temperature, 1.0)))
    assert steps.captured == 4
    steps.run(4, Mode(PLAIN))  # forgotten: the longest unused
    assert ran[-1] == 4
    steps.forget()
    assert steps.captured == 0


def test_a_failed_capture_falls_back_with_one_line(monkeypatch, caplog):
    ran: list[int] = []
    steps = Steps(lambda batch, mode: ran.append(batch), torch.device("cuda"))

    def refused(self: Captures, work: object) -> None:
        raise RuntimeError("operation not permitted\nmore")

    monkeypatch.setattr(Captures, "capture", refused)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            steps.run(5, Mode(PLAIN))
    assert ran == [5, 5, 5, 5]
    assert [r.getMessage() for r in caplog.records] == [
        "Sampling without CUDA graphs, and slower: operation not permitted"
    ]


def test_neighbours_share_memory_with_the_parameters_they_were_made_of():
    parameters = [torch.nn.Parameter(torch.randn(rows, 4)) for rows in (3, 1, 2)]
    values = torch.cat([parameter.detach().clone() for parameter in parameters])
    joined = neighbours(parameters)
    assert torch.equal(joined, values)
    with torch.no_grad():
        parameters[1].fill_(7.0)
    assert torch.equal(joined[3], torch.full((4,), 7.0))
    places = [parameter.data_ptr() for parameter in parameters]
    assert neighbours(parameters).data_ptr() == joined.data_ptr()
    assert [parameter.data_ptr() for parameter in parameters] == places
    (sum(parameter.sum() for parameter in parameters)).backward()
    assert all(parameter.grad is not None for parameter in parameters)
    parameters[2].data = parameters[2].data.clone()
    assert torch.equal(neighbours(parameters), torch.cat([p.detach() for p in parameters]))
