"""From problems to groups of judged samples: what one rollout of GRPO is made of.

P: problems, G: samples of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from forethought.engines.torch.rollout import RolloutSample
from forethought.problems.problem import Problem
from forethought.training.curriculum import LevelResult
from forethought.training.hack_signs import commonest_answer, reads_like_code
from forethought.training.judging import Judged
from forethought.training.losses import LossConfig, advantages, soft_overlong_punishment
from forethought.training.monitor import Number
from forethought.training.reflection import reflection_words


@dataclass(frozen=True, slots=True)
class Group:
    """The samples of one problem, what they were worth, and which of them are trained on."""

    problem: Problem
    samples: tuple[RolloutSample, ...]
    judged: tuple[Judged, ...]
    advantages_G: torch.Tensor
    """float64."""
    learns: tuple[bool, ...]
    dead: bool
    """All rewards are equal: nothing is learnt from it."""


def rewards_of(
    samples: Sequence[Sequence[RolloutSample]],
    judged: Sequence[Sequence[Judged]],
    loss: LossConfig,
    max_tokens: int,
) -> torch.Tensor:
    """Rewards, float64 [P, G], NaN where a verifier failed; with the penalty on length, if any."""
    rows = [
        [float("nan") if one.reward is None else one.reward for one in group] for group in judged
    ]
    rewards_PG = torch.tensor(rows, dtype=torch.float64)
    if loss.overlong == "penalise":
        lengths_PG = torch.tensor([[len(one.ids) for one in group] for group in samples])
        near = max(1, round(loss.overlong_share * max_tokens))
        rewards_PG = rewards_PG + soft_overlong_punishment(lengths_PG, max_tokens, near)
    return rewards_PG


def groups_of(
    problems: Sequence[Problem],
    samples: Sequence[Sequence[RolloutSample]],
    judged: Sequence[Sequence[Judged]],
    loss: LossConfig,
    max_tokens: int,
) -> list[Group]:
    """The groups of a rollout with their advantages. A sample has loss where it has a verdict, its
    group is alive and (with "mask") it was not cut off."""
    rewards_PG = rewards_of(samples, judged, loss, max_tokens)
    found = advantages(rewards_PG, loss.advantage_scale, ~rewards_PG.isnan())
    groups = []
    for at, problem in enumerate(problems):
        learns = found.learns_PG[at].tolist()
        if loss.overlong == "mask":
            learns = [
                one and not sample.truncated
                for one, sample in zip(learns, samples[at], strict=True)
            ]
        groups.append(
            Group(
                problem,
                tuple(samples[at]),
                tuple(judged[at]),
                found.values_PG[at],
                tuple(learns),
                bool(found.dead_P[at]),
            )
        )
    return groups


def rollout_metrics(groups: Sequence[Group]) -> dict[str, Number]:
    """What a whole rollout says, dead groups included."""
    judged = [one for group in groups for one in group.judged]
    samples = [one for group in groups for one in group.samples]
    scored = [one.reward for one in judged if one.reward is not None]
    lengths = [len(one.ids) for one in samples]
    metrics: dict[str, Number] = {
        "reward": _mean(scored),
        "reward_accuracy": _mean([one.accuracy for one in judged if one.reward is not None]),
        "reward_format": _mean([one.format for one in judged]),
        "thought_tokens": _mean([float(one.reply.thought_tokens) for one in judged]),
        "truncated": _mean([float(one.truncated) for one in samples]),
        "dead_groups": _mean([float(group.dead) for group in groups]),
        "sample_tokens": _mean([float(length) for length in lengths]),
        "longest_sample": max(lengths),
        "reflection_words": _mean([float(reflection_words(one.reply.thought)) for one in judged]),
        "unscorable": sum(one.reward is None for one in judged),
        "solved_by_any": _mean([float(any(o.accuracy for o in g.judged)) for g in groups]),
    }
    answers = [(g.problem.family, one.reply.final_answer) for g in groups for one in g.judged]
    metrics["code_answers"] = sum(reads_like_code(answer) for _, answer in answers)
    metrics["commonest_answer"] = commonest_answer(answers)
    for name in sorted({group.problem.family for group in groups}):
        own = [one.accuracy for g in groups if g.problem.family == name for one in g.judged]
        metrics[f"reward_accuracy/{name}"] = _mean(own)
    return metrics


def level_result(group: Group) -> LevelResult:
    """What a group says of its level. Right answers alone count, whatever else is rewarded."""
    judged = [one for one in group.judged if one.reward is not None]
    right = sum(one.verdict.correct for one in judged)
    return LevelResult(group.problem.family, group.problem.level, right, len(judged))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
