"""GRPO whose levels rise: on networks of width 16, with a judge that finds more and more right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from test_grpo import PROMPTER, SEED, TOKENIZER, Spy, config, judge, network, same, weights

from forethought.problems.problem import CORRECT, Problem, unscorable, wrong
from forethought.problems.stream import ProblemStream
from forethought.training.config import CurriculumConfig, RewardConfig
from forethought.training.grpo import GRPO
from forethought.training.judging import Judge, Judged
from forethought.training.losses import LossConfig
from forethought.training.policy import Policy
from forethought.training.stage import TrainingStopped
from tiny_training import ShownDigit

KEYS: dict[str, Any] = {"raise_at": 0.75, "over": 3, "newest": 0.5}


class Able(Judge):
    """Takes the samples of levels up to ``able`` for right, whatever they say."""

    def __init__(self, able: int = 0) -> None:
        super().__init__(TOKENIZER, {}, RewardConfig(), None)
        self.able = able
        self.seen: list[Problem] = []

    def judge(self, problem: Problem, ids: Sequence[int]) -> Judged:
        self.seen.append(problem)
        right = self.right(problem, ids)
        verdict = CORRECT if right else wrong("not able yet")
        own = float(len(ids) % 4)
        return Judged(self.read(ids), verdict, float(right), 0.0, own, right + own)

    def right(self, problem: Problem, ids: Sequence[int]) -> bool:
        return problem.level <= self.able


class Often(Able):
    """Finds most samples right, fewer of harder levels: a function of the sample alone."""

    def right(self, problem: Problem, ids: Sequence[int]) -> bool:
        return (problem.seed + sum(ids)) % 16 >= 3 * problem.level - 3


def stage(judged: Judge, net=None, curriculum: dict[str, Any] | None = KEYS, **options: Any):
    net = net or network()
    if curriculum is not None:
        options["curriculum"] = CurriculumConfig(**curriculum)
    stream = ProblemStream([ShownDigit()], 2)
    return GRPO(Policy(net, TOKENIZER, PROMPTER), Spy(net), config(**options), stream, judged, SEED)


def opened(one: GRPO) -> Any:
    """The newest open level, of the state that would be saved."""
    return one.state()[1]["curriculum"]["shown_digit"]["opened"]  # type: ignore[index,call-overload]


def test_levels_open_as_the_model_becomes_able():
    able = Able()
    one = stage(able, steps=40)
    for step in range(3):
        assert one.step().metrics["open_level/shown_digit"] == 1, step
    assert {problem.level for problem in able.seen} == {1}
    able.able = 1
    # This rollout is drawn from what was open before it.
    assert one.step().metrics["open_level/shown_digit"] == 1
    assert {problem.level for problem in able.seen} == {1}
    assert opened(one) == 2
    able.seen.clear()
    for step in range(4):
        assert one.step().metrics["open_level/shown_digit"] == 2, step
    levels = [problem.level for problem in able.seen]
    assert set(levels) == {1, 2}
    assert 0.2 < levels.count(2) / len(levels) < 0.8
    able.able = 3
    for _ in range(4):
        last = one.step().metrics
    assert last["open_level/shown_digit"] == 3
    able.seen.clear()
    for _ in range(6):
        assert one.step().metrics["open_level/shown_digit"] == 3
    assert {problem.level for problem in able.seen} == {1, 2, 3}


def test_right_is_the_answer_and_not_the_reward():
    """The own reward is high for everything and says nothing of the level."""
    one = stage(judge(lambda problem, reply: 100.0 + len(reply.answer) % 4))
    for _ in range(3):
        metrics = one.step().metrics
    assert metrics["reward"] > 99
    assert metrics["open_level/shown_digit"] == opened(one) == 1


def test_samples_without_a_verdict_open_nothing_and_close_nothing():
    class Half(Able):
        def judge(self, problem: Problem, ids: Sequence[int]) -> Judged:
            judged = super().judge(problem, ids)
            if len(self.seen) % 2:
                return replace(judged, verdict=unscorable("died"), accuracy=0.0, reward=None)
            return judged

    one = stage(Half(1), curriculum={**KEYS, "raise_at": 1.0})
    one.step()
    assert opened(one) == 2


def test_dead_groups_that_dynamic_sampling_puts_aside_count():
    class Same(Able):
        def judge(self, problem: Problem, ids: Sequence[int]) -> Judged:
            return replace(super().judge(problem, ids), reward=1.0)

    one = stage(Same(2), dynamic_sampling=True, dynamic_sampling_rounds=2)
    metrics = one.step().metrics
    assert metrics["groups"] == 8
    assert metrics["dead_groups"] == 1
    assert metrics["open_level/shown_digit"] == 1
    assert opened(one) == 2
    # The refill of a rollout is drawn from what the rest of it was drawn from.
    able = Same(1)
    other = stage(able, dynamic_sampling=True, dynamic_sampling_rounds=4)
    other.step()
    assert len(able.seen) == 4 * 4 * 4
    assert {problem.level for problem in able.seen} == {1}


def test_every_minibatch_of_a_rollout_has_the_level():
    one = stage(Able(1), minibatches=2)
    found = [one.step().metrics["open_level/shown_digit"] for _ in range(4)]
    assert found == [1, 1, 2, 2]


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_a_climb_goes_on_bit_for_bit(stop):
    options: dict[str, Any] = {
        "loss": LossConfig(kl="k2", beta=0.05),
        "minibatches": 2,
        "dynamic_sampling": True,
        "dynamic_sampling_rounds": 2,
        "curriculum": {**KEYS, "over": 5, "raise_at": 0.6},
    }
    nets = [network() for _ in range(3)]
    whole = stage(Often(), nets[0], **options)
    expected = [whole.step() for _ in range(10)]
    levels = [each.metrics["open_level/shown_digit"] for each in expected]
    assert levels[0] == 1
    assert levels[-1] == 3
    first = stage(Often(), nets[1], **options)
    for _ in range(stop):
        first.step()
    tensors, facts = first.state()
    saved = json.loads(json.dumps(facts))
    again = stage(Often(), nets[2], **options)
    for _ in range(2):
        again.step()  # Whatever it did before is forgotten.
    nets[2].load_state_dict(nets[1].state_dict())
    again.load(tensors, saved)
    got = [again.step() for _ in range(10 - stop)]
    assert [each.metrics for each in got] == [each.metrics for each in expected[stop:]]
    assert [each.thought for each in got] == [each.thought for each in expected[stop:]]
    assert same(weights(nets[2]), weights(nets[0]))
    assert again.state()[1] == whole.state()[1]


def test_a_rollout_that_could_not_be_judged_opens_nothing():
    class Dies(Able):
        """With most verdicts of the first rollout; every one that it still has is right."""

        def judge(self, problem: Problem, ids: Sequence[int]) -> Judged:
            judged = super().judge(problem, ids)
            if len(self.seen) % 4:
                return replace(judged, verdict=unscorable("died"), accuracy=0.0, reward=None)
            return judged

    one = stage(Dies(1))
    before = one.state()[1]
    with pytest.raises(TrainingStopped, match="could not be judged"):
        one.step()
    assert one.state()[1] == before


def test_without_one_nothing_is_said_and_nothing_saved():
    one = stage(Able(3), curriculum=None)
    assert not [key for key in one.step().metrics if key.startswith("open_level")]
    assert one.state()[1].keys() == {"number", "next_problem", "rollouts"}
    # A state of before is one without it.
    other = stage(Able(3), curriculum=None)
    other.load(one.state()[0], {"number": 1, "next_problem": 4, "rollouts": 1})
    assert other.number == 1
