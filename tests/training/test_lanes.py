"""Lanes: the same steps as one network makes, side by side."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from forethought.engines.protocol import SamplingParameters
from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3.routing import gates
from forethought.problems.stream import ProblemStream
from forethought.training.batches import PackedBatch, TokenSequence
from forethought.training.config import BalanceConfig, OptimizerConfig, RewardConfig, RLConfig
from forethought.training.grpo import GRPO
from forethought.training.judging import Judge, Reply
from forethought.training.lanes import Lanes
from forethought.training.losses import LossConfig
from forethought.training.optimizer import MasterAdamW
from forethought.training.policy import Policy, experts_of
from forethought.training.prompting import Prompter
from forethought.training.supervised import Supervised
from tiny_training import ShownDigit, optimizer_of, tiny_dense, tiny_tokenizer, tiny_v3

TOKENIZER = tiny_tokenizer()
TEXTS = [TokenSequence(tuple(range(at, at + 3 + at % 7)), at % 3) for at in range(20)]


def network(kind: str = "v3") -> CausalLM:
    if kind == "dense":
        return tiny_dense(TOKENIZER.padded_size, dtype=torch.float64)
    made = tiny_v3(TOKENIZER.padded_size, mtp=kind == "mtp", dtype=torch.float64)
    with torch.no_grad():
        made.head_weight[TOKENIZER.eos_id] *= 3
    return made


class Spy(MasterAdamW):
    """Keeps the gradients of the last step as they are before clipping."""

    def __init__(self, net: CausalLM) -> None:
        super().__init__(net.named_parameters(), OptimizerConfig(learning_rate=1e-2, clip_norm=1e6))
        self._net = net
        self.seen: dict[str, torch.Tensor] = {}

    def step(self, rate: float, grad_scale: float = 1.0) -> torch.Tensor:
        named = self._net.named_parameters()
        self.seen = {name: one.grad.clone() for name, one in named if one.grad is not None}
        return super().step(rate, grad_scale)


def test_each_lane_has_its_own_modules_and_gradients_over_the_same_tensors():
    net = network("mtp")
    first, second = Lanes(net, 2).networks
    assert first is net
    assert not set(map(id, first.modules())) & set(map(id, second.modules()))
    for own, twin in zip(first.parameters(), second.parameters(), strict=True):
        assert own is not twin
        assert own.data_ptr() == twin.data_ptr()
    for own, twin in zip(first.buffers(), second.buffers(), strict=True):
        assert own.data_ptr() == twin.data_ptr()
    with torch.no_grad():
        net.head_weight.fill_(7)
    assert bool((second.head_weight == 7).all())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_items_go_round_the_lanes_and_results_keep_their_order(count: int):
    lanes = Lanes(network("dense"), count)
    done = lanes.run(lambda lane, item: (lane, item), list("abcdefg"))
    assert done == [(at % count, letter) for at, letter in enumerate("abcdefg")]
    assert lanes.run(lambda lane, item: item, [5]) == [5]
    assert lanes.run(lambda lane, item: item, []) == []


def test_lanes_run_at_the_same_time():
    lanes = Lanes(network("dense"), 2)
    both = threading.Barrier(2, timeout=30)
    lanes.run(lambda lane, item: both.wait(), [0, 1])


@pytest.mark.parametrize("fails", [0, 1])
def test_an_error_comes_when_every_lane_has_stopped(fails: int):
    lanes = Lanes(network("dense"), 2)
    other_may_end = threading.Event()
    ended = []

    def work(lane: int, item: int) -> None:
        if lane == fails:
            other_may_end.set()
            raise KeyError(item)
        assert other_may_end.wait(30)
        ended.append(lane)

    with pytest.raises(KeyError):
        lanes.run(work, [0, 1])
    assert ended == [1 - fails]


def test_at_least_one_lane():
    with pytest.raises(ValueError, match="at least one"):
        Lanes(network("dense"), 0)


@pytest.mark.parametrize("kind", ["dense", "v3", "mtp"])
@pytest.mark.parametrize("count", [2, 3])
def test_a_supervised_step_has_the_gradients_and_the_experts_counts_of_one_lane(
    kind: str, count: int
):
    found: list[Any] = []
    for lanes in (1, count):
        net = network(kind)
        spy = Spy(net)
        one = Supervised(
            net,
            spy,
            vocabulary=TOKENIZER.size,
            micro_batch_tokens=24,
            balance=BalanceConfig(loss_weight=0.1, bias_step=0.01),
            mtp_weight=0.3,
            lanes=Lanes(net, lanes),
        )
        one.step(TEXTS, 1e-3)
        metrics = {k: v for k, v in one.step(TEXTS[5:], 1e-3).items() if v is not None}
        found.append(
            (spy.seen, metrics, [gate.e_score_correction_bias.clone() for gate in gates(net)])
        )
    (mine, metrics, biases), (theirs, others, other_biases) = found
    assert mine.keys() == theirs.keys()
    for name, gradient in mine.items():
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-10, atol=1e-12)
    assert others == pytest.approx(metrics, rel=1e-10)
    assert all(map(torch.equal, biases, other_biases))


def by_length(problem: object, reply: Reply) -> float:
    return float(len(reply.answer) % 4)


def rl_step(count: int, **options: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    net = network()
    spy = Spy(net)
    policy = Policy(net, TOKENIZER, Prompter(TOKENIZER, "chat"), lanes=Lanes(net, count))
    judge = Judge(TOKENIZER, {"shown_digit": ShownDigit()}, RewardConfig(), by_length)
    config = RLConfig(
        problems_per_rollout=4,
        group_size=4,
        steps=3,
        max_tokens=8,
        micro_batch_tokens=64,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        **options,
    )
    stream = ProblemStream([ShownDigit()], 2, levels={"shown_digit": (3,)})
    grpo = GRPO(policy, spy, config, stream, judge, 3)
    grpo.step()
    return spy.seen, dict(grpo.step().metrics)


@pytest.mark.parametrize(
    "options",
    [{}, {"loss": LossConfig(preset="paper"), "minibatches": 2}, {"replay_above": 0.0}],
    ids=["plain", "reference", "replayed"],
)
def test_an_rl_step_has_the_gradients_of_one_lane(options: dict[str, Any]):
    mine, metrics = rl_step(1, **options)
    theirs, others = rl_step(2, **options)
    assert metrics["trained_samples"] > 4
    for name, gradient in mine.items():
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-10, atol=1e-12)
    for name in ("loss", "entropy", "reward", "grad_norm"):
        assert others[name] == pytest.approx(metrics[name], rel=1e-9)


def test_replayed_experts_are_those_of_one_lane_only():
    net = network()
    policy = Policy(net, TOKENIZER, Prompter(TOKENIZER, "chat"), lanes=Lanes(net, 2))
    problems = [ProblemStream([ShownDigit()], 2)[at] for at in range(2)]
    groups = policy.sample(
        problems, 2, [1, 2], SamplingParameters(temperature=1.0, top_p=1.0), 8, rows=4,
        record_experts=True,
    )  # fmt: skip
    samples = [sample for group in groups for sample in group]
    pairs = zip(problems, groups, strict=True)
    batch = PackedBatch(
        [policy.sequence(problem, one) for problem, group in pairs for one in group]
    )
    chosen = experts_of(samples)
    assert chosen is not None
    others = (chosen + 1) % 8
    together = threading.Barrier(2, timeout=30)

    def score(lane: int, replay: torch.Tensor | None) -> torch.Tensor:
        together.wait()
        return policy.score(batch, 1.0, replay_MNK=replay, lane=lane).logprobs_L.detach()

    alone = policy.score(batch, 1.0).logprobs_L.detach()
    free, moved = policy.lanes.run(score, [None, others])
    assert torch.equal(free, alone)
    assert not torch.allclose(moved, alone, atol=1e-3)


def test_what_a_stopped_step_left_in_a_lane_is_forgotten():
    lanes = Lanes(network("dense"), 2)
    for net in lanes.networks:
        net.head_weight.grad = torch.ones_like(net.head_weight)
    lanes.networks[0].zero_grad()
    lanes.drop_gradients()
    lanes.gather_gradients()
    assert lanes.networks[0].head_weight.grad is None


def test_gradients_of_the_lanes_add_up_in_the_first():
    lanes = Lanes(network("dense"), 3)
    first, *others = lanes.networks
    for number, net in enumerate(others, 1):
        net.head_weight.grad = torch.full_like(net.head_weight, number)
    lanes.gather_gradients()
    assert first.head_weight.grad is not None
    assert bool((first.head_weight.grad == 3).all())
    assert all(net.head_weight.grad is None for net in others)


def test_the_optimiser_moves_every_lane():
    net = network("dense")
    lanes = Lanes(net, 2)
    before = net.head_weight.detach().clone()
    Supervised(
        net,
        optimizer_of(net, learning_rate=1e-2),
        vocabulary=TOKENIZER.size,
        micro_batch_tokens=24,
        balance=BalanceConfig(),
        lanes=lanes,
    ).step(TEXTS, 1e-2)
    assert not torch.equal(net.head_weight, before)
    assert torch.equal(lanes.networks[1].head_weight, net.head_weight)
