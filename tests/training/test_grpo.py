"""GRPO whole: gradients against a naive step, what a rollout holds, and a policy that learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.rollout import RolloutSample
from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3.routing import gates
from forethought.problems.problem import Problem, Verdict, unscorable
from forethought.problems.stream import ProblemStream
from forethought.training.batches import TokenSequence
from forethought.training.config import BalanceConfig, OptimizerConfig, RewardConfig, RLConfig
from forethought.training.grpo import GRPO
from forethought.training.judging import Judge, OwnReward, Reply
from forethought.training.losses import LossConfig
from forethought.training.optimizer import MasterAdamW
from forethought.training.policy import Policy, noise_seed
from forethought.training.prompting import Prompter
from forethought.training.stage import TrainingStopped
from forethought.training.supervised import Supervised
from tiny_training import ShownDigit, optimizer_of, tiny_dense, tiny_tokenizer, tiny_v3

TOKENIZER = tiny_tokenizer()
PROMPTER = Prompter(TOKENIZER, "chat")
PROBLEMS, GROUP, MAX_TOKENS, SEED = 4, 4, 8, 3


def stream(level: int = 3) -> ProblemStream:
    return ProblemStream([ShownDigit()], 2, levels={"shown_digit": (level,)})


def network(kind: str = "v3", dtype: torch.dtype = torch.float32) -> CausalLM:
    """Random, with an end token that comes now and then."""
    made = (tiny_dense if kind == "dense" else tiny_v3)(TOKENIZER.padded_size, dtype=dtype)
    with torch.no_grad():
        made.head_weight[TOKENIZER.eos_id] *= 3
    return made


class Spy(MasterAdamW):
    """Keeps the gradient of each step as it is before clipping."""

    def __init__(self, net: CausalLM, **options: Any) -> None:
        options = {"learning_rate": 1e-2, "clip_norm": 1e6, **options}
        super().__init__(net.named_parameters(), OptimizerConfig(**options))
        self._net = net
        self.seen: list[dict[str, torch.Tensor]] = []

    def step(self, rate: float, grad_scale: float = 1.0) -> torch.Tensor:
        named = self._net.named_parameters()
        self.seen.append({n: p.grad.clone() for n, p in named if p.grad is not None})
        return super().step(rate, grad_scale)


def by_length(problem: Problem, reply: Reply) -> float:
    """Some reward that random samples differ in."""
    return float(len(reply.answer) % 4)


def config(**options: Any) -> RLConfig:
    options = {
        "problems_per_rollout": PROBLEMS,
        "group_size": GROUP,
        "steps": 12,
        "max_tokens": MAX_TOKENS,
        "micro_batch_tokens": 64,
        **options,
    }
    return RLConfig(optimizer=OptimizerConfig(learning_rate=1e-2), **options)


def judge(own: OwnReward | None = by_length, verifier: Any = None) -> Judge:
    return Judge(TOKENIZER, {"shown_digit": verifier or ShownDigit()}, RewardConfig(), own)


def stage(
    net: CausalLM, *, of: type[Policy] = Policy, judged: Judge | None = None, **options: Any
) -> tuple[GRPO, Spy]:
    spy = Spy(net)
    policy = of(net, TOKENIZER, PROMPTER)
    return GRPO(policy, spy, config(**options), stream(), judged or judge(), SEED), spy


def sampled(net: CausalLM, temperature: float = 1.0, first: int = 0) -> list[list[RolloutSample]]:
    """What a rollout from this problem on samples."""
    return Policy(net, TOKENIZER, PROMPTER).sample(
        [stream()[first + at] for at in range(PROBLEMS)],
        GROUP,
        [noise_seed(SEED, first + at) for at in range(PROBLEMS)],
        SamplingParameters(temperature=temperature, top_p=1.0),
        MAX_TOKENS,
        rows=64,
        record_experts=True,
    )


def naive_advantages(
    samples: Sequence[Sequence[RolloutSample]], judged: Judge, overlong: str = "keep"
) -> list[list[float | None]]:
    """(reward - mean) / (std + 1e-4) in each group; None for what is not trained."""
    found: list[list[float | None]] = []
    for at, group in enumerate(samples):
        rewards = [judged.judge(stream()[at], one.ids).reward for one in group]
        if overlong == "penalise":
            near = round(0.2 * MAX_TOKENS)
            for i, one in enumerate(group):
                beyond = len(one.ids) - (MAX_TOKENS - near)
                rewards[i] -= min(1.0, max(0.0, beyond / near))
        known = [reward for reward in rewards if reward is not None]
        if len(set(known)) < 2:
            found.append([None] * len(group))
            continue
        mean = sum(known) / len(known)
        std = math.sqrt(sum((one - mean) ** 2 for one in known) / (len(known) - 1))
        values = [None if r is None else (r - mean) / (std + 1e-4) for r in rewards]
        if overlong == "mask":
            values = [None if one.truncated else v for v, one in zip(values, group, strict=True)]
        found.append(values)
    return found


def naive_gradient(
    net: CausalLM,
    samples: Sequence[Sequence[RolloutSample]],
    values: Sequence[Sequence[float | None]],
    temperature: float = 1.0,
    whole_samples: bool = False,
) -> dict[str, torch.Tensor]:
    """Sample by sample: of the token mean, or of the paper's ratios of whole samples."""
    pairs = [
        (stream()[at], sample, value)
        for at, (group, own) in enumerate(zip(samples, values, strict=True))
        for sample, value in zip(group, own, strict=True)
        if value is not None
    ]
    tokens = sum(len(sample.ids) for _, sample, _ in pairs)
    loss = torch.zeros((), dtype=torch.float64)
    for problem, sample, value in pairs:
        prompt = PROMPTER.ids(problem.text)
        logits = net(torch.tensor([[*prompt, *sample.ids[:-1]]]))[0, len(prompt) - 1 :]
        logprobs = (logits[:, : TOKENIZER.size] / temperature).log_softmax(dim=-1)
        own = logprobs.gather(1, torch.tensor(sample.ids)[:, None])[:, 0]
        ratios = own - sample.logprobs
        if whole_samples:
            loss = loss - ratios.sum().exp() * value / len(pairs)
        else:
            loss = loss - (ratios.exp() * value).sum() / tokens
    names = dict(net.named_parameters())
    found = torch.autograd.grad(loss, list(names.values()), allow_unused=True)
    return {n: g for n, g in zip(names, found, strict=True) if g is not None}


def distance(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest difference, against the largest gradient."""
    assert got.keys() == expected.keys()
    most = max(float(one.abs().max()) for one in expected.values())
    return max(float((got[n] - one).abs().max()) for n, one in expected.items()) / most


def weights(net: CausalLM) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# -- one step


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", ["dense", "v3"])
def test_the_gradient_is_the_naive_one_whatever_the_micro_batches(kind, temperature):
    net = network(kind, torch.float64)
    start = weights(net)
    samples = sampled(net, temperature)
    values = naive_advantages(samples, judge())
    expected = naive_gradient(net, samples, values, temperature)
    for budget in (1, 40, 10_000):
        net.load_state_dict(start)
        one, spy = stage(net, micro_batch_tokens=budget, temperature=temperature)
        result = one.step()
        assert distance(spy.seen[0], expected) < 1e-10
        alive = sum(value is not None for group in values for value in group)
        assert result.metrics["trained_samples"] == alive > 0
    # Each advantage belongs to its own tokens: any other assignment is another gradient.
    turned = [[*group[1:], group[0]] for group in values]
    assert distance(naive_gradient_of(start, samples, turned, temperature, kind), expected) > 0.1
    other = [*values[1:], values[0]]
    assert distance(naive_gradient_of(start, samples, other, temperature, kind), expected) > 0.1


def naive_gradient_of(start, samples, values, temperature, kind) -> dict[str, torch.Tensor]:
    net = network(kind, torch.float64)
    net.load_state_dict(start)
    return naive_gradient(net, samples, values, temperature)


@pytest.mark.parametrize("overlong", ["keep", "mask", "penalise"])
def test_samples_that_were_cut_off(overlong):
    net = network(dtype=torch.float64)
    samples = sampled(net)
    truncated = [one.truncated for group in samples for one in group]
    assert 0 < sum(truncated) < len(truncated)
    values = naive_advantages(samples, judge(), overlong)
    expected = naive_gradient(net, samples, values)
    one, spy = stage(net, loss=LossConfig(overlong=overlong))
    result = one.step()
    assert distance(spy.seen[0], expected) < 1e-10
    assert result.metrics["truncated"] == sum(truncated) / len(truncated)
    assert result.metrics["trained_samples"] == sum(v is not None for g in values for v in g)


def test_the_paper_s_loss_end_to_end():
    net = network(dtype=torch.float64)
    samples = sampled(net)
    values = naive_advantages(samples, judge())
    expected = naive_gradient(net, samples, values, whole_samples=True)
    # With a reference every sample that has a verdict counts, if only towards the divergence.
    assert all(value is not None for group in values for value in group)
    one, spy = stage(net, loss=LossConfig(preset="paper"), minibatches=1)
    results = [one.step() for _ in range(3)]
    assert distance(spy.seen[0], expected) < 1e-10
    assert results[0].metrics["kl_reference"] == 0
    assert all(math.isfinite(result.metrics["loss"]) for result in results)
    assert results[2].metrics["kl_reference"] > 0


def test_the_report_of_a_step():
    net = network()
    samples = [one for group in sampled(net) for one in group]
    one, _ = stage(net)
    result = one.step()
    metrics = result.metrics
    lengths = [len(sample.ids) for sample in samples]
    assert result.tokens == sum(lengths)
    assert metrics["sample_tokens"] == pytest.approx(sum(lengths) / len(lengths))
    assert metrics["longest_sample"] == max(lengths)
    assert metrics["groups"] == PROBLEMS
    assert 0 <= metrics["kl_sampler_trainer"] < 1e-9
    assert metrics["ratio_mean"] == pytest.approx(1, abs=1e-4)
    assert metrics["flipped_experts"] == 0
    assert metrics["replayed_micro_batches"] == 0
    assert metrics["entropy"] > 0
    assert "kl_reference" not in metrics
    assert {"sampling", "verdicts", "training"} <= result.phases.keys()
    assert result.thought is not None
    question, text, reward = result.thought
    assert question == stream()[0].text
    ids = [i for i in samples[0].ids if i != TOKENIZER.eos_id]
    assert text == b"".join(TOKENIZER.tokenizer.pieces(ids)).decode("utf-8", "replace")
    assert reward == judge().judge(stream()[0], samples[0].ids).reward


# -- what is trained


def dead_for_even(problem: Problem, reply: Reply) -> float:
    return 0.3 if is_even(problem) else by_length(problem, reply)


def is_even(problem: Problem) -> bool:
    assert isinstance(problem.task, tuple)
    return problem.task[1] % 2 == 0


def test_dead_groups_are_not_trained():
    net = network(dtype=torch.float64)
    samples = sampled(net)
    judged = judge(dead_for_even)
    values = naive_advantages(samples, judged)
    even = [is_even(stream()[at]) for at in range(PROBLEMS)]
    assert 0 < sum(even) < PROBLEMS
    assert [group[0] is None for group in values] == even
    expected = naive_gradient(net, samples, values)
    one, spy = stage(net, judged=judged)
    metrics = one.step().metrics
    assert distance(spy.seen[0], expected) < 1e-10
    assert metrics["dead_groups"] == sum(even) / PROBLEMS
    assert metrics["trained_samples"] == GROUP * (PROBLEMS - sum(even))


def test_a_rollout_of_dead_groups_changes_nothing():
    net = network()
    start = weights(net)
    one, spy = stage(net, judged=judge(lambda problem, reply: 1.0))
    metrics = one.step().metrics
    assert metrics["dead_groups"] == 1
    assert metrics["trained_samples"] == 0
    assert same(weights(net), start)
    assert not spy.seen
    assert one.number == 1


def test_dynamic_sampling_refills_and_counts():
    judged = judge(dead_for_even)
    one, _ = stage(network(), judged=judged, dynamic_sampling=True, dynamic_sampling_rounds=20)
    problems = 0
    for _ in range(3):
        metrics = one.step().metrics
        assert metrics["trained_samples"] == PROBLEMS * GROUP
        assert metrics["dead_groups"] == pytest.approx(1 - PROBLEMS / metrics["groups"])
        problems += metrics["groups"]
        assert one.state()[1]["next_problem"] == problems
    assert problems > 4 * PROBLEMS


def test_dynamic_sampling_gives_up_after_its_rounds():
    net = network()
    start = weights(net)
    constant = judge(lambda problem, reply: 1.0)
    one, _ = stage(net, judged=constant, dynamic_sampling=True, dynamic_sampling_rounds=3)
    metrics = one.step().metrics
    assert metrics["groups"] == 3 * PROBLEMS
    assert metrics["trained_samples"] == 0
    assert same(weights(net), start)


def test_a_sample_without_a_verdict_is_left_out_of_its_group():
    def half(problem: Problem, reply: Reply) -> float:
        return math.nan if len(reply.answer) % 3 == 0 else by_length(problem, reply)

    net = network(dtype=torch.float64)
    samples = sampled(net)
    values = naive_advantages(samples, judge(half))
    expected = naive_gradient(net, samples, values)
    one, spy = stage(net, judged=judge(half))
    metrics = one.step().metrics
    failed = [
        judge(half).judge(stream()[at], sample.ids).reward is None
        for at, group in enumerate(samples)
        for sample in group
    ]
    assert metrics["unscorable"] == sum(failed) > 0
    assert distance(spy.seen[0], expected) < 1e-10


# -- minibatches, reference, replay


def test_minibatches_share_a_rollout_and_the_second_is_off_policy():
    net = network()
    one, spy = stage(net, minibatches=2)
    first = one.step()
    assert first.metrics["kl_sampler_trainer"] < 1e-9
    assert "kl_old_new" not in first.metrics
    assert first.metrics["ratio_max"] == pytest.approx(1, abs=1e-4)
    assert not one.resumable
    with pytest.raises(ValueError, match="between rollouts"):
        one.state()
    second = one.step()
    assert second.tokens == 0
    assert second.thought is None
    assert "sampling" not in second.phases
    assert second.metrics["kl_sampler_trainer"] is None
    assert second.metrics["kl_old_new"] > 1e-5
    assert second.metrics["ratio_max"] > 1.001
    assert one.resumable
    assert len(spy.seen) == 2
    trained = first.metrics["trained_samples"] + second.metrics["trained_samples"]
    values = naive_advantages(sampled(network()), judge())
    assert trained == sum(value is not None for group in values for value in group)
    assert first.metrics["reward"] == second.metrics["reward"]
    assert one.state()[1]["next_problem"] == PROBLEMS
    third = one.step()
    assert third.tokens > 0
    assert third.metrics["ratio_max"] == pytest.approx(1, abs=1e-4)


def test_the_reference_becomes_the_policy_every_so_many_steps():
    loss = LossConfig(kl="k3", beta=0.05)
    one, _ = stage(network(), loss=loss, reference_every=3)
    divergences = [one.step().metrics["kl_reference"] for _ in range(7)]
    assert [at for at, value in enumerate(divergences) if value == 0] == [0, 3, 6]
    assert all(divergences[at] > 1e-6 for at in (1, 2, 4, 5))


class OtherExperts(Policy):
    """A sampler whose gates choose otherwise: the biases of their choice are turned round."""

    def sample(self, *arguments: Any, **options: Any) -> list[list[RolloutSample]]:
        biases = [gate.e_score_correction_bias for gate in gates(self.network)]
        for bias in biases:
            bias.copy_(bias.flip(0) * 3)
        try:
            return super().sample(*arguments, **options)
        finally:
            for bias in biases:
                bias.copy_((bias / 3).flip(0))


def test_experts_are_replayed_where_sampler_and_trainer_disagree():
    own, spy = stage(network(), of=OtherExperts, replay_above=1e8, micro_batch_tokens=40)
    alone = own.step().metrics
    assert alone["kl_sampler_trainer"] > 1e-3
    assert alone["replayed_micro_batches"] == 0
    assert 0.05 < alone["flipped_experts"] <= 1
    one, replaying = stage(network(), of=OtherExperts, micro_batch_tokens=40)
    metrics = one.step().metrics
    assert metrics["kl_sampler_trainer"] < 1e-9
    assert metrics["ratio_max"] == pytest.approx(1, abs=1e-4)
    assert metrics["replayed_micro_batches"] > 1
    assert metrics["flipped_experts"] > 0.05
    assert distance(replaying.seen[0], spy.seen[0]) > 0.01
    for name, gradient in replaying.seen[0].items():
        assert float(gradient.abs().max()) > 0, name
    # All micro-batches of all minibatches of the rollout take the same experts.
    both, _ = stage(network(), of=OtherExperts, minibatches=2, micro_batch_tokens=10_000)
    assert [both.step().metrics["replayed_micro_batches"] for _ in range(2)] == [1, 1]


def test_a_dense_network_has_no_experts_to_report():
    metrics = stage(network("dense"))[0].step().metrics
    assert "flipped_experts" not in metrics
    assert metrics["kl_sampler_trainer"] < 1e-9


def test_biases_of_the_gates_move_only_if_asked():
    for step in (0.0, 0.01):
        net = network()
        before = [gate.e_score_correction_bias.clone() for gate in gates(net)]
        stage(net, bias_step=step)[0].step()
        for gate, bias in zip(gates(net), before, strict=True):
            moved = (gate.e_score_correction_bias - bias).abs()
            assert float(moved.max()) == pytest.approx(step, abs=1e-6)


# -- going on, and stopping


@pytest.mark.parametrize("stop", [2, 4])
def test_a_run_goes_on_bit_for_bit(stop):
    options: dict[str, Any] = {
        "loss": LossConfig(kl="k2", beta=0.05),
        "reference_every": 3,
        "minibatches": 2,
        "bias_step": 0.01,
        "dynamic_sampling": True,
    }
    nets = [network() for _ in range(3)]
    whole, _ = stage(nets[0], **options)
    expected = [whole.step() for _ in range(6)]
    first, _ = stage(nets[1], **options)
    for _ in range(stop):
        first.step()
    tensors, facts = first.state()
    again, _ = stage(nets[2], **options)
    again.step()  # Whatever it did before is forgotten.
    again.close()
    nets[2].load_state_dict(nets[1].state_dict())
    again.load(tensors, facts)
    assert again.resumable
    got = [again.step() for _ in range(6 - stop)]
    assert [one.metrics for one in got] == [one.metrics for one in expected[stop:]]
    assert [one.thought for one in got] == [one.thought for one in expected[stop:]]
    assert same(weights(nets[2]), weights(nets[0]))
    ends = [one.state() for one in (whole, again)]
    assert ends[0][1] == ends[1][1]
    assert same(*({**tensors} for tensors, _ in ends))


def test_a_gradient_that_is_not_finite_stops_and_changes_nothing():
    net = network()
    one, _ = stage(net, minibatches=2)
    one.step()
    start = weights(net)
    handle = net.model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingStopped, match="the gradient is not finite"):
        one.step()
    handle.remove()
    assert same(weights(net), start)
    assert one.number == 1
    # The rest of that rollout is given up, and no gradient of it is left.
    assert one.resumable
    fresh_net = network()
    fresh_net.load_state_dict(start)
    fresh, _ = stage(fresh_net, minibatches=2)
    fresh.load(*one.state())
    assert one.step().metrics == fresh.step().metrics


class Broken:
    def verify(self, problem: Problem, answer: str) -> Verdict:
        return unscorable("the sandbox died")


@pytest.mark.parametrize("how", ["own", "verifier"])
def test_when_nothing_can_be_judged_training_stops_where_it_was(how):
    net = network()
    if how == "own":
        broken = judge(lambda problem, reply: 1 / 0)
    else:
        teach(net, steps=40)
        broken = judge(None, Broken())
    start = weights(net)
    one, spy = stage(net, judged=broken)
    reason = "ZeroDivisionError" if how == "own" else "the sandbox died"
    with pytest.raises(TrainingStopped, match=f"samples could not be judged .*{reason}"):
        one.step()
    assert same(weights(net), start)
    assert not spy.seen
    assert one.state()[1] == {"number": 0, "next_problem": 0, "rollouts": 0}


def test_the_largest_seed_of_a_recipe_is_no_overflow():
    net = network("dense")
    policy = Policy(net, TOKENIZER, PROMPTER)
    one = GRPO(policy, Spy(net), config(), stream(), judge(), (2**32 - 2) * 64 + 5)
    assert one.step().metrics["trained_samples"] > 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"top_p": 0.9}, "top_p is 0.9: rollouts must be drawn from the whole distribution"),
        ({"group_size": 1}, "group_size is 1"),
        ({"minibatches": 3}, "minibatches 3 does not divide problems_per_rollout 4"),
    ],
)
def test_what_cannot_be_is_refused(options, says):
    with pytest.raises(ValidationError, match=says):
        config(**options)


# -- learning


def teach(net: CausalLM, steps: int) -> None:
    """Supervised: the answer to each of three digits is any of them, the one shown twice as often
    as another."""
    data = []
    for digit in "012":
        prompt = PROMPTER.ids(digit)
        for answer in "012" + digit:
            body = TOKENIZER.tokenizer.encode(f"<answer>{answer}</answer>", parse_special=False)
            data.append(TokenSequence((*prompt, *body, TOKENIZER.eos_id), len(prompt)))
    trainer = Supervised(
        net,
        optimizer_of(net),
        vocabulary=TOKENIZER.size,
        micro_batch_tokens=4096,
        balance=BalanceConfig(),
    )
    for _ in range(steps):
        trainer.step(data, 0.02)


@pytest.mark.parametrize(
    ("kind", "least"), [("dense", 0.85), pytest.param("v3", 0.55, marks=pytest.mark.slow)]
)
def test_the_reward_rises(kind, least):
    """From answering with some digit, most often the one shown, to answering with that one."""
    steps = 50
    net = network(kind)
    teach(net, steps=120)
    made = RLConfig(
        problems_per_rollout=8,
        group_size=8,
        steps=steps,
        max_tokens=MAX_TOKENS,
        micro_batch_tokens=4096,
        optimizer=OptimizerConfig(learning_rate=2e-3),
        reward=RewardConfig(format=0.0),
    )
    own = Judge(TOKENIZER, {"shown_digit": ShownDigit()}, made.reward)
    policy = Policy(net, TOKENIZER, PROMPTER)
    one = GRPO(policy, optimizer_of(net, beta2=0.99), made, stream(level=1), own, SEED)
    metrics = [one.step().metrics for _ in range(steps)]
    rewards = [each["reward_accuracy"] for each in metrics]
    before, after = sum(rewards[:10]) / 10, sum(rewards[-10:]) / 10
    assert after > before + 0.2
    assert after > least
    # All that while sampler and trainer are one policy.
    assert max(each.get("kl_sampler_trainer") or 0.0 for each in metrics) < 1e-6
