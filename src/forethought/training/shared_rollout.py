"""A rollout that several ranks draw and judge: each a share of the problems, then all know it all.

Problem i belongs to rank i % count. Whose samples they are makes no difference: each has a seed of
its own. Verdicts travel too, so that a verifier that fails now and then (a time-out) fails for all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

from forethought.engines.torch.rollout import RolloutSample
from forethought.problems.problem import Problem, Verdict
from forethought.training.judging import Judge, Judged, Reply
from forethought.training.ranks import Ranks

Groups: TypeAlias = list[list[RolloutSample]]
Place: TypeAlias = tuple[int, int]
"""The number of a problem, and which of its samples."""


def gather_samples(ranks: Ranks, own: Groups, problems: int) -> Groups:
    """All groups in the order of the problems; ``own`` are those of ``ranks.own(problems)``."""
    if ranks.alone:
        return own
    samples = [sample for group in own for sample in group]
    experts = [sample.experts for sample in samples if sample.experts is not None]
    layers, chosen = (experts[0].shape[0], experts[0].shape[2]) if experts else (0, 0)
    heads = ranks.gather(torch.tensor([len(own), layers, chosen, *(len(group) for group in own)]))
    figures = ranks.gather(
        torch.tensor(
            [
                number
                for sample in samples
                for number in (
                    len(sample.ids),
                    int(sample.truncated),
                    -1 if sample.experts is None else sample.experts.shape[1],
                )
            ],
            dtype=torch.int64,
        )
    )
    ids = ranks.gather(torch.tensor([i for one in samples for i in one.ids], dtype=torch.int64))
    logprobs = ranks.gather(_joined([sample.logprobs.cpu() for sample in samples], torch.float32))
    choices = ranks.gather(_joined([one.cpu().reshape(-1) for one in experts], torch.int16))
    by_rank = [
        _unpacked(head.tolist(), *parts)
        for head, *parts in zip(heads, figures, ids, logprobs, choices, strict=True)
    ]
    return [by_rank[at % ranks.count][at // ranks.count] for at in range(problems)]


def _joined(tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    return torch.cat([torch.zeros(0, dtype=dtype), *(tensor.to(dtype) for tensor in tensors)])


def _unpacked(
    head: Sequence[int],
    figures: torch.Tensor,
    ids: torch.Tensor,
    logprobs: torch.Tensor,
    choices: torch.Tensor,
) -> Groups:
    """One rank's groups."""
    count, layers, chosen, *sizes = head
    rows = iter(figures.view(-1, 3).tolist())
    token = choice = 0
    groups: Groups = []
    for size in sizes[:count]:
        group = []
        for _ in range(size):
            length, truncated, computed = next(rows)
            experts = None
            if computed >= 0:
                numbers = layers * computed * chosen
                experts = choices[choice : choice + numbers].view(layers, computed, chosen)
                choice += numbers
            end = token + length
            group.append(
                RolloutSample(
                    tuple(ids[token:end].tolist()), logprobs[token:end], bool(truncated), experts
                )
            )
            token = end
        groups.append(group)
    return groups


def gather_judged(ranks: Ranks, own: Mapping[Place, Judged]) -> dict[Place, Judged]:
    """The verdicts of all ranks by place."""
    if ranks.alone:
        return dict(own)
    data = json.dumps([[*place, _as_json(judged)] for place, judged in own.items()])
    return {
        (problem, index): _from_json(fields)
        for part in ranks.gather_bytes(data.encode())
        for problem, index, fields in json.loads(part)
    }


def judge_groups(
    ranks: Ranks,
    judge: Judge,
    problems: Sequence[Problem],
    groups: Sequence[Sequence[RolloutSample]],
) -> list[list[Judged]]:
    """The verdicts on all samples; each rank judges those of its own problems."""
    own = {
        (at, index): judge.judge(problems[at], sample.ids)
        for at in ranks.own(len(problems))
        for index, sample in enumerate(groups[at])
    }
    found = gather_judged(ranks, own)
    return [[found[at, index] for index in range(len(group))] for at, group in enumerate(groups)]


def _as_json(judged: Judged) -> list[Any]:
    reply, verdict = judged.reply, judged.verdict
    return [
        [reply.thought, reply.answer, reply.final_answer, reply.well_formed, reply.thought_tokens],
        [verdict.status, verdict.reason],
        [judged.accuracy, judged.format, judged.own, judged.reward],
    ]


def _from_json(fields: list[Any]) -> Judged:
    reply, verdict, rewards = fields
    return Judged(Reply(*reply), Verdict(*verdict), *rewards)
