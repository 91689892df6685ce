"""Passes of a policy update: of fixed sizes and captured, against those made for their samples."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from forethought.engines.torch.rollout import RolloutSample
from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3.routing import gates
from forethought.problems.problem import Problem
from forethought.problems.stream import ProblemStream
from forethought.training.batches import Row, RowSize, TokenSequence, even_batches
from forethought.training.config import OptimizerConfig, RewardConfig, RLConfig
from forethought.training.grpo import GRPO
from forethought.training.judging import Judge, Reply
from forethought.training.losses import LossConfig, Normaliser
from forethought.training.optimizer import MasterAdamW
from forethought.training.pass_inputs import Room
from forethought.training.policy import Policy
from forethought.training.policy_inputs import FilledPolicyRoom, PolicyRoom, TrainedSample
from forethought.training.prompting import Prompter
from tiny_training import ShownDigit, tiny_dense, tiny_tokenizer, tiny_v3

TOKENIZER = tiny_tokenizer()
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def made(kind: str, dtype: torch.dtype, device: str = "cpu") -> CausalLM:
    network = (tiny_dense if kind == "dense" else tiny_v3)(TOKENIZER.padded_size, dtype=dtype)
    with torch.no_grad():
        network.head_weight[TOKENIZER.eos_id] *= 3
    return network.to(device)


def by_length(problem: Problem, reply: Reply) -> float:
    return float(len(reply.answer) % 4)


def stage(network: CausalLM, *, fixed: bool, rate: float = 1e-3, **options: Any) -> GRPO:
    adam = OptimizerConfig(learning_rate=rate, clip_norm=1e6)
    config = RLConfig(
        optimizer=adam,
        **{
            "problems_per_rollout": 4,
            "group_size": 4,
            "steps": 12,
            "max_tokens": 8,
            "micro_batch_tokens": 48,
            **options,
        },
    )
    stream = ProblemStream([ShownDigit()], 2, levels={"shown_digit": (3,)})
    return GRPO(
        Policy(network, TOKENIZER, Prompter(TOKENIZER, "chat")),
        MasterAdamW(network.named_parameters(), adam),
        config,
        stream,
        Judge(TOKENIZER, {"shown_digit": ShownDigit()}, RewardConfig(), by_length),
        3,
        fixed_sizes=fixed,
    )


@pytest.mark.parametrize("kind", ["dense", "v3"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"micro_batch_tokens": 10_000, "bias_step": 0.01},
        {"loss": LossConfig(preset="paper"), "minibatches": 2},
        {"loss": LossConfig(preset="dr_grpo"), "replay_above": 0.0},
    ],
    ids=["plain", "one pass", "reference", "replayed"],
)
def test_padding_changes_nothing_about_a_run(kind: str, options: dict[str, Any]) -> None:
    """Metrics, weights and biases of several steps, in float64."""
    runs = []
    for fixed in (False, True):
        network = made(kind, torch.float64)
        one = stage(network, fixed=fixed, **options)
        runs.append(([one.step().metrics for _ in range(4)], network.state_dict()))
    (plain, plain_state), (padded, padded_state) = runs
    assert sum(metrics["trained_samples"] for metrics in plain) > 20
    for mine, other in zip(plain, padded, strict=True):
        assert mine.keys() == other.keys()
        for name, number in mine.items():
            # The number of passes may differ by one: theirs are not filled but of one size.
            if number is None or name == "replayed_micro_batches":
                assert (other[name] is None) == (number is None)
            else:
                assert other[name] == pytest.approx(number, rel=1e-7, abs=1e-12), name
    for name, tensor in plain_state.items():
        torch.testing.assert_close(padded_state[name], tensor, rtol=1e-8, atol=1e-10)


def test_a_rollout_of_many_sizes_has_few_rooms() -> None:
    """After the largest, those that are hardly smaller take its room."""
    one = stage(made("dense", torch.float32), fixed=True, micro_batch_tokens=400)
    captured, normaliser = one._passes._captured, Normaliser(1, 1, 9)
    assert captured is not None
    rooms, smallest = [], []
    for count in (119, *range(97, 119)):
        part = samples(4, count, None)
        one._passes._replays(captured, [part], normaliser, [False])
        rooms.append(captured.rooms[-1])
        row = Row([each.sequence for each in part])
        smallest.append(Room.of([row.size], 800, mtp=False))
    assert len(set(smallest)) > 3
    assert len(set(rooms)) == 1
    part = samples(4, 70, None)
    one._passes._replays(captured, [part], normaliser, [False])
    assert len(captured.rooms) == 2  # that would be too much padding


@pytest.mark.parametrize("fixed", [False, True])
def test_an_update_that_does_not_fit_is_taken_with_fewer_activations(
    fixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with experts that are replayed, whose passes are computed twice anyway."""
    runs = []
    for room in (10**9, 7):
        network = made("v3", torch.float64)
        one = stage(network, fixed=fixed, replay_above=0.0)
        left = [room]
        for layer in network.model.layers:

            def parts(
                *inputs: Any, kept: Any = layer.parts, net: Any = network, left: Any = left
            ) -> Any:
                if torch.is_grad_enabled() and not net.recompute:
                    left[0] -= 1
                    if left[0] < 0:
                        raise torch.OutOfMemoryError("CUDA out of memory.")
                return kept(*inputs)

            monkeypatch.setattr(layer, "parts", parts)
        metrics = [one.step().metrics for _ in range(3)]
        runs.append((metrics, network.state_dict(), network.recompute))
    (plain, weights, off), (small, others, on) = runs
    assert (off, on) == (False, True)
    assert [one["loss"] for one in small] == pytest.approx([one["loss"] for one in plain])
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-8, atol=1e-10)


def samples(seed: int, count: int, experts: tuple[int, int] | None) -> list[TrainedSample]:
    rng, found = Random(seed), []
    for _ in range(count):
        prompt = tuple(rng.choices(range(50), k=rng.randint(2, 6)))
        ids = tuple(rng.choices(range(50), k=rng.randint(1, 9)))
        inputs = len(prompt) + len(ids) - 1
        chosen = None
        if experts is not None:
            numbers = [rng.randrange(300) for _ in range(experts[0] * inputs * experts[1])]
            chosen = torch.tensor(numbers, dtype=torch.int16).view(experts[0], inputs, experts[1])
        logprobs = torch.tensor([-rng.random() for _ in ids], dtype=torch.float32)
        sample = RolloutSample(ids, logprobs, False, chosen)
        sequence = TokenSequence((*prompt, *ids), len(prompt))
        found.append(TrainedSample(sequence, sample, rng.gauss(0, 1)))
    return found


@pytest.mark.parametrize("experts", [None, (3, 2), (1, 1)])
def test_a_room_holds_what_was_put_into_it_and_padding_that_counts_as_nothing(
    experts: tuple[int, int] | None,
) -> None:
    parts = [samples(seed, 3 + seed, experts) for seed in range(4)]
    rows = [Row([one.sequence for one in part]) for part in parts]
    room = PolicyRoom(Room.of([row.size for row in rows], 64, mtp=False), experts)
    normaliser = Normaliser(7, 31, 9)
    for part, row in zip(parts, rows, strict=True):
        filled = FilledPolicyRoom.of(room, row, part, normaliser, torch.device("cpu"))
        inputs = filled.inputs(filled.values)
        assert inputs.normaliser(9) == normaliser
        count, tokens = len(part), sum(len(one.sample.ids) for one in part)
        old_L = torch.cat([one.sample.logprobs for one in part])
        assert torch.equal(inputs.old_L[:tokens].float(), old_L)
        assert bool(inputs.old_L[tokens:].isnan().all())
        assert inputs.lengths_S[:count].tolist() == [len(one.sample.ids) for one in part]
        assert int(inputs.lengths_S.sum()) == len(inputs.targets_L) == len(inputs.rows_L)
        assert inputs.advantages_S[:count].tolist() == [one.advantage for one in part]
        assert inputs.targets_L[:tokens].tolist() == [i for one in part for i in one.sample.ids]
        if experts is None:
            assert inputs.sampled_MNK is None
            continue
        assert inputs.sampled_MNK is not None
        wanted = torch.cat([one.sample.experts for one in part], dim=1)
        assert torch.equal(inputs.sampled_MNK[:, : row.tokens], wanted)
        assert not inputs.sampled_MNK[:, row.tokens :].any()
    assert len({len(filled.values)}) == 1
    many = samples(9, 40, experts)
    with pytest.raises(ValueError, match="for Room"):
        room.filled(Row([one.sequence for one in many]), many, normaliser)


def test_a_rollout_of_about_the_same_size_takes_the_room_that_is_known() -> None:
    room = Room.of([RowSize([30, 20, 10], 50), RowSize([40, 15], 45)], 640, mtp=False)
    assert room.holds([RowSize([30, 25], 52)])
    assert room.holds([RowSize([20, 20, 20], 60)])
    assert not room.holds([RowSize([70, 20], 60)])  # longer than what was captured
    assert not room.holds([RowSize([room.tokens + 1], 9)])
    assert not room.holds([RowSize([2] * room.sequences, 9)])
    assert not room.holds([RowSize([30, 30], room.targets + 1)])
    assert not room.holds([RowSize([2, 2, 2], 1)])  # what fills it takes two sequences


def test_samples_that_are_all_cut_off_at_one_length_have_a_room_as_others_do() -> None:
    one = stage(made("dense", torch.float32), fixed=True, micro_batch_tokens=2048)
    captured, rng = one._passes._captured, Random(1)
    assert captured is not None
    part = []
    for _ in range(3):
        ids = tuple(rng.choices(range(50), k=540))
        logprobs = torch.full((530,), -3.0)
        sample = RolloutSample(ids[10:], logprobs, True, None)
        part.append(TrainedSample(TokenSequence(ids, 10), sample, 1.0))
    (said,) = one._passes._replays(captured, [part], Normaliser(3, 1590, 530), [False])
    assert bool(said.isfinite().all())
    (room,) = captured.rooms
    assert room.base.even == 0


def test_passes_of_one_size_hold_about_the_same() -> None:
    rng = Random(5)
    lengths = [rng.randint(20, 600) for _ in range(300)]
    parts = even_batches(lengths, 8192, 1)
    loads = [sum(lengths[at] for at in part) for part in parts]
    assert sorted(at for part in parts for at in part) == list(range(300))
    assert max(loads) <= 8192
    assert len(parts) == -(-sum(lengths) // 8192)
    assert np.ptp(loads) < 600


@GPU
@pytest.mark.parametrize("kind", ["dense", "v3"])
@pytest.mark.parametrize("preset", ["token", "paper"])
def test_captured_passes_train_as_others_do(kind: str, preset: str) -> None:
    """Weights of several steps of one minibatch and of two, in bfloat16 with float32 masters."""
    runs = []
    for fixed in (False, True):
        network = made(kind, torch.bfloat16, "cuda")
        one = stage(network, fixed=fixed, loss=LossConfig(preset=preset), rate=1e-4)
        metrics = [one.step().metrics for _ in range(5)]
        runs.append((metrics, {name: p.float() for name, p in network.state_dict().items()}))
        assert (one._passes.graphs > 0) == fixed
    (plain, plain_state), (padded, padded_state) = runs
    # Samples may part near a tie once weights differ in their last bits: the first step is alike.
    assert padded[0]["loss"] == pytest.approx(plain[0]["loss"], rel=2e-2, abs=1e-3)
    assert padded[0]["grad_norm"] == pytest.approx(plain[0]["grad_norm"], rel=2e-2)
    for metrics in padded:
        assert metrics["kl_sampler_trainer"] < 1e-3
    for name, tensor in plain_state.items():
        torch.testing.assert_close(padded_state[name], tensor, rtol=0.02, atol=5e-3)


@GPU
def test_experts_are_replayed_beside_captured_passes() -> None:
    network = made("v3", torch.bfloat16, "cuda")
    one = stage(network, fixed=True, replay_above=0.0, micro_batch_tokens=10_000)
    before = gates(network)[0].weight.clone()
    metrics = [one.step().metrics for _ in range(3)]
    assert all(each["replayed_micro_batches"] == 1 for each in metrics)
    assert not torch.equal(gates(network)[0].weight, before)
