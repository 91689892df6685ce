"""Held-out pass@1 of a model under training, on fixed problems with fixed seeds.

pass@1 is the mean verdict over all samples that were made (never over those that were asked for);
its standard error is over problems. Source: DeepSeek-R1 (arXiv:2501.12948) section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.rollout import RolloutSample
from forethought.errors import ModelError
from forethought.problems.problem import Problem
from forethought.training.config import EvaluationConfig
from forethought.training.judge_pool import JudgePool
from forethought.training.judged_samples import judged_samples
from forethought.training.judging import Judged
from forethought.training.monitor import FilmFrame, Number
from forethought.training.policy import Policy
from forethought.training.reflection import reflection_words

_SEED = 0x5EED


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``correct``: for each problem the share of its samples that were right."""

    metrics: dict[str, Number]
    correct: tuple[float, ...]
    samples: tuple[tuple[RolloutSample, ...], ...]
    judged: tuple[tuple[Judged, ...], ...]
    tokens: int


def evaluate(
    policy: Policy,
    pool: JudgePool,
    problems: Sequence[Problem],
    config: EvaluationConfig,
    *,
    rows: int,
) -> Evaluation:
    """Sample and judge ``problems``; the same samples whenever the weights are the same, but for
    rounding where ``rows`` differ.

    Raises ModelError where a verifier failed on every sample of a problem: then there is no figure.
    """
    sampling = SamplingParameters(temperature=config.temperature, top_p=config.top_p)
    found = judged_samples(
        policy,
        pool,
        problems,
        config.samples,
        [_SEED + at for at in range(len(problems))],
        sampling,
        config.max_tokens,
        rows=rows,
    )
    groups, judged = found.samples, found.judged
    correct = [_share(problem, group) for problem, group in zip(problems, judged, strict=True)]
    flat = [one for group in judged for one in group]
    samples = [sample for group in groups for sample in group]
    metrics: dict[str, Number] = {
        "pass_at_1": _mean(correct),
        "pass_at_1_stderr": _standard_error(correct),
        "reward_accuracy": _mean([one.accuracy for one in flat]),
        "reward_format": _mean([one.format for one in flat]),
        "thought_tokens": _mean([one.reply.thought_tokens for one in flat]),
        "truncated": _mean([float(sample.truncated) for sample in samples]),
        "reflection_words": _mean([float(reflection_words(one.reply.thought)) for one in flat]),
        "unscorable": sum(one.verdict.status == "unscorable" for one in flat),
    }
    for name in sorted({problem.family for problem in problems}):
        own = [c for c, problem in zip(correct, problems, strict=True) if problem.family == name]
        metrics[f"pass_at_1/{name}"] = _mean(own)
    return Evaluation(
        metrics,
        tuple(correct),
        tuple(tuple(group) for group in groups),
        tuple(tuple(group) for group in judged),
        found.tokens,
    )


def film_frames(
    evaluation: Evaluation,
    policy: Policy,
    problems: Sequence[Problem],
    count: int,
    stage: str,
    step: int,
) -> list[FilmFrame]:
    """The first samples of the film's problems: ``count`` of them, spread evenly over all."""
    chosen = [at * len(problems) // count for at in range(min(count, len(problems)))]
    pieces = policy.tokenizer.tokenizer.pieces
    frames = []
    for number, at in enumerate(chosen):
        problem, sample = problems[at], evaluation.samples[at][0]
        ids = [token for token in sample.ids if token != policy.tokenizer.eos_id]
        frames.append(
            FilmFrame(
                stage,
                step,
                number,
                problem.text,
                problem.answer,
                problem.family,
                problem.level,
                problem.language,
                b"".join(pieces(ids)).decode("utf-8", "replace"),
                evaluation.judged[at][0].verdict.correct,
                sample.truncated,
                len(sample.ids),
            )
        )
    return frames


def _share(problem: Problem, group: Sequence[Judged]) -> float:
    scored = [one.accuracy for one in group if one.verdict.status != "unscorable"]
    if not scored:
        raise ModelError(
            f"the verifier of {problem.family} failed on every sample of a held-out problem "
            f"({group[0].verdict.reason}): pass@1 cannot be told."
        )
    return _mean(scored)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _standard_error(values: Sequence[float]) -> float:
    """Of the mean, over problems."""
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))
