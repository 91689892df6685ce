"""What a run came to, in figures: what it reached, what it took, and what went badly."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Final

from forethought.checkpoints.folder import JSON
from forethought.evaluation.run_record import Row, RunRecord, StageRecord

_WINDOW: Final = 50
_WARM: Final = 20
SPIKE_FACTOR: Final = 5.0
"""A gradient norm this many times the median of the steps before it is a spike."""
SUSPICIOUS_ERRORS: Final = 2.0
"""A held-out pass@1 that falls by so many standard errors while the reward rises is suspicious."""
_FAMILY: Final = "pass_at_1/"


@dataclass(frozen=True, slots=True)
class Held:
    """A held-out evaluation. ``pass_at_1_stderr`` is over problems; ``reward_format``,
    ``truncated`` are shares of samples, ``thought_tokens`` and ``reflection_words`` means over
    them; ``families``: pass@1 of each family. None is what the evaluation does not say."""

    stage: str
    step: int
    pass_at_1: float
    pass_at_1_stderr: float | None
    reward_format: float | None
    truncated: float | None
    thought_tokens: float | None
    reflection_words: float | None
    families: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Peak:
    """The largest value of a metric, and where it was."""

    value: float
    stage: str
    step: int


@dataclass(frozen=True, slots=True)
class StageSummary:
    """A stage: optimiser steps done and planned, seconds of steps and of evaluations, tokens."""

    stage: str
    steps: int
    planned: int | None
    seconds: float | None
    evaluation_seconds: float | None
    tokens: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """What went badly.

    ``dead_group_steps`` of ``group_steps`` had groups whose samples all got one reward;
    ``dead_groups`` is the mean share of such groups, ``truncated`` that of truncated samples, over
    the training steps that say one, ``most_truncated`` the worst step. ``spikes`` are steps whose
    gradient norm was over `SPIKE_FACTOR` times the median of the steps before; the value of
    ``largest_spike`` is how many times. ``unscorable`` held-out samples had a verifier that failed.
    """

    dead_group_steps: int
    group_steps: int
    dead_groups: float | None
    truncated: float | None
    most_truncated: Peak | None
    spikes: int
    largest_spike: Peak | None
    largest_kl_sampler_trainer: Peak | None
    unscorable: int
    below_best: float | None
    """How far the last held-out pass@1 is below the best one; None unless it is."""
    reward_up_test_down: int
    """How often, from one evaluation of a stage to the next, the mean reward of training rose over
    that of the steps before while pass@1 fell by over `SUSPICIOUS_ERRORS` standard errors of the
    difference: a sign of a verifier that is being exploited."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in figures; see `held_out.Evaluation` for what held-out figures are."""

    recipe: str
    finished: bool
    identity: Mapping[str, str | int | float | bool | None]
    parameters: int | None
    active_parameters: int | None
    stages: tuple[StageSummary, ...]
    seconds: float | None
    tokens: int
    first: Held | None
    best: Held | None
    last: Held | None
    trouble: Trouble

    def as_json(self) -> dict[str, JSON]:
        """The same as plain data."""
        plain: dict[str, JSON] = asdict(self)
        return plain


def summarise(run: RunRecord) -> Summary:
    """The figures of a run, whatever it has got to."""
    evaluations = [held(row) for row in run.evaluations]
    best = max(evaluations, key=lambda one: one.pass_at_1, default=None)
    stages = tuple(
        StageSummary(
            stage.name,
            stage.done,
            stage.planned,
            stage.seconds,
            stage.evaluation_seconds,
            stage.tokens,
        )
        for stage in run.stages
    )
    known = [
        (stage.seconds, stage.evaluation_seconds or 0.0)
        for stage in stages
        if stage.seconds is not None
    ]
    return Summary(
        recipe=run.name,
        finished=run.finished,
        identity=run.identity,
        parameters=run.parameters.total if run.parameters else None,
        active_parameters=run.parameters.active if run.parameters else None,
        stages=stages,
        seconds=sum(map(sum, known)) if known else None,
        tokens=sum(stage.tokens for stage in stages),
        first=evaluations[0] if evaluations else None,
        best=best,
        last=evaluations[-1] if evaluations else None,
        trouble=_trouble(run, best, evaluations),
    )


def held(row: Row) -> Held:
    """The evaluation that a line of metrics holds."""
    values = row.values
    return Held(
        row.stage,
        row.step,
        values["pass_at_1"],
        values.get("pass_at_1_stderr"),
        values.get("reward_format"),
        values.get("truncated"),
        values.get("thought_tokens"),
        values.get("reflection_words"),
        {
            key.removeprefix(_FAMILY): value
            for key, value in values.items()
            if key.startswith(_FAMILY)
        },
    )


def _trouble(run: RunRecord, best: Held | None, evaluations: list[Held]) -> Trouble:
    steps = [row for stage in run.stages for row in stage.steps]
    groups = [row.values["dead_groups"] for row in steps if "dead_groups" in row.values]
    cut = [row.values["truncated"] for row in steps if "truncated" in row.values]
    spikes = [peak for stage in run.stages for peak in _spikes(stage.steps)]
    behind = best.pass_at_1 - evaluations[-1].pass_at_1 if best is not None else 0.0
    return Trouble(
        dead_group_steps=sum(value > 0 for value in groups),
        group_steps=len(groups),
        dead_groups=statistics.fmean(groups) if groups else None,
        truncated=statistics.fmean(cut) if cut else None,
        most_truncated=peak_of(steps, "truncated"),
        spikes=len(spikes),
        largest_spike=max(spikes, key=lambda peak: peak.value, default=None),
        largest_kl_sampler_trainer=peak_of(steps, "kl_sampler_trainer"),
        unscorable=round(sum(row.values.get("unscorable", 0.0) for row in run.evaluations)),
        below_best=behind if behind > 0 else None,
        reward_up_test_down=sum(_exploited(stage) for stage in run.stages),
    )


def _exploited(stage: StageRecord) -> int:
    """See `Trouble.reward_up_test_down`. A stage without rewards has none."""
    at = [row.step for row in stage.evaluations]
    rewards: list[list[float]] = [[] for _ in [*at, None]]
    for row in stage.steps:
        if "reward" in row.values:
            rewards[bisect_left(at, row.step)].append(row.values["reward"])
    found, reward_before = 0, math.inf
    for (before, after), between in zip(pairwise(stage.evaluations), rewards[1:], strict=False):
        if between:
            errors = [row.values.get("pass_at_1_stderr", 0.0) for row in (before, after)]
            fall = before.values["pass_at_1"] - after.values["pass_at_1"]
            reward = statistics.fmean(between)
            found += fall > SUSPICIOUS_ERRORS * math.hypot(*errors) and reward > reward_before
            reward_before = reward
    return found


def peak_of(rows: Iterable[Row], key: str) -> Peak | None:
    """The largest value of a metric; None where no row has it."""
    having = [row for row in rows if key in row.values]
    top = max(having, key=lambda row: row.values[key], default=None)
    return None if top is None else Peak(top.values[key], top.stage, top.step)


def _spikes(rows: Iterable[Row]) -> list[Peak]:
    """Steps with a gradient norm far above those before them; ``value`` is how many times."""
    found: list[Peak] = []
    before: list[float] = []
    for row in rows:
        norm = row.values.get("grad_norm")
        if norm is None:
            continue
        if len(before) >= _WARM:
            usual = statistics.median(before[-_WINDOW:])
            if usual > 0 and norm > SPIKE_FACTOR * usual:
                found.append(Peak(norm / usual, row.stage, row.step))
        before.append(norm)
    return found
