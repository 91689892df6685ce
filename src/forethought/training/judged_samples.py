"""Samples and the verdicts on them, given while the rest is drawn.

What GRPO, rejection sampling and evaluations have in common.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.rollout import RolloutSample
from forethought.problems.problem import Problem
from forethought.training.judge_pool import JudgePool, judging_workers
from forethought.training.judging import Judge, Judged
from forethought.training.policy import Policy
from forethought.training.shared_rollout import Groups, Place, gather_judged


@dataclass(frozen=True, slots=True)
class JudgedSamples:
    """Samples of problems and their verdicts, both by problem and in the order of the samples, and
    the seconds of drawing and of waiting for the last verdicts."""

    samples: Groups
    judged: list[list[Judged]]
    sampling_seconds: float
    verdict_seconds: float

    @property
    def tokens(self) -> int:
        return sum(len(sample.ids) for group in self.samples for sample in group)


def pool_for(policy: Policy, judge: Judge) -> JudgePool:
    """Where a policy's samples are judged: on other cores where there is a GPU to keep busy, else
    here. Whoever asks closes it."""
    on_cuda = policy.network.device.type == "cuda"
    return JudgePool(judge, judging_workers() if on_cuda else 0, policy.phases)


def judged_samples(
    policy: Policy,
    pool: JudgePool,
    problems: Sequence[Problem],
    n: int,
    seeds: Sequence[int],
    sampling: SamplingParameters,
    max_tokens: int,
    *,
    rows: int,
    record_experts: bool = False,
) -> JudgedSamples:
    """As :meth:`Policy.sample`; each rank has its own samples judged, and all know all verdicts."""
    started = time.perf_counter()
    places: list[Place] = []

    def finished(problem: int, index: int, sample: RolloutSample) -> None:
        pool.submit(problems[problem], sample.ids)
        places.append((problem, index))

    samples = policy.sample(
        problems,
        n,
        seeds,
        sampling,
        max_tokens,
        rows=rows,
        record_experts=record_experts,
        on_finished=finished,
    )
    drawn = time.perf_counter()
    own = dict(zip(places, pool.results(), strict=True))
    found = gather_judged(policy.lanes.ranks, own)
    judged = [[found[at, index] for index in range(len(group))] for at, group in enumerate(samples)]
    return JudgedSamples(samples, judged, drawn - started, time.perf_counter() - drawn)
