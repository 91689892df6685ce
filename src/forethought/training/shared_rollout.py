"""A rollout that several ranks draw and judge: each a share of the problems, then all know it all.

Problem i belongs to rank i % count. Whose samples they are makes no difference: each has a seed of
its own. Verdicts travel too, so that a verifier that fails now and then (a time-out) fails for all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from forethought.engines.torch.rollout import RolloutSample
from forethought.problems.problem import Verdict
from forethought.training.judging import Judged, Reply
from forethought.training.ranks import Ranks

Groups: TypeAlias = list[list[RolloutSample]]
Place: TypeAlias = tuple[int, int]
"""The number of a problem, and which of its samples."""


def gather_samples(ranks: Ranks, own: Groups, problems: int) -> Groups:
    """All groups in the order of the problems; ``own`` are those of ``ranks.own(problems)``."""
    if ranks.alone:
        return own
    # One message: each costs a turn of all ranks.
    parts = ranks.gather_bytes(_packed(own))
    by_rank = [own if rank == ranks.rank else _unpacked(part) for rank, part in enumerate(parts)]
    return [by_rank[at % ranks.count][at // ranks.count] for at in range(problems)]


_HEAD: Final = 5
"""Groups, samples, layers with experts, experts of a token, tokens."""


def _packed(groups: Groups) -> bytes:
    """Groups as bytes: the head, how many samples each group has, three figures of each sample
    (all int64), ids (int32), log-probabilities (float32), experts (int16)."""
    samples = [sample for group in groups for sample in group]
    experts = [sample.experts for sample in samples if sample.experts is not None]
    layers, chosen = (experts[0].shape[0], experts[0].shape[2]) if experts else (0, 0)
    lengths = [len(sample.ids) for sample in samples]
    head = [len(groups), len(samples), layers, chosen, sum(lengths)]
    figures = [
        (length, sample.truncated, -1 if sample.experts is None else sample.experts.shape[1])
        for length, sample in zip(lengths, samples, strict=True)
    ]
    ids = np.fromiter(
        chain.from_iterable(sample.ids for sample in samples), dtype=np.int32, count=sum(lengths)
    )
    arrays = (
        np.array([*head, *(len(group) for group in groups)], dtype=np.int64),
        np.array(figures, dtype=np.int64),
        ids,
        _joined([sample.logprobs for sample in samples], torch.float32),
        _joined([one.reshape(-1) for one in experts], torch.int16),
    )
    return b"".join(array.tobytes() for array in arrays)


def _joined(tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> NDArray[Any]:
    if not tensors:
        return np.zeros(0)
    whole: NDArray[Any] = torch.cat(list(tensors)).cpu().to(dtype).numpy()
    return whole


def _unpacked(data: bytes) -> Groups:
    """What :func:`_packed` was given."""
    start = 0

    def read(dtype: type[np.generic], count: int) -> NDArray[Any]:
        nonlocal start
        array = np.frombuffer(data, dtype, count, start)
        start += array.nbytes
        return array

    groups, samples, layers, chosen, tokens = read(np.int64, _HEAD).tolist()
    sizes = read(np.int64, groups).tolist()
    figures = read(np.int64, 3 * samples).reshape(samples, 3).tolist()
    ids = read(np.int32, tokens).tolist()
    # Copies: what is read from bytes cannot be written to, and torch warns of it. They are cut as
    # arrays, which takes a tenth of the time of cutting tensors.
    logprobs = read(np.float32, tokens).copy()
    per_token = layers * chosen
    computed = sum(max(0, count) for *_, count in figures)
    experts = read(np.int16, per_token * computed).copy()
    made: list[RolloutSample] = []
    token = number = 0
    for length, truncated, count in figures:
        chosen_MTK = None
        if count >= 0:
            end = number + per_token * count
            chosen_MTK = torch.from_numpy(experts[number:end].reshape(layers, count, chosen))
            number = end
        own_ids = tuple(ids[token : token + length])
        own_logprobs = torch.from_numpy(logprobs[token : token + length])
        made.append(RolloutSample(own_ids, own_logprobs, bool(truncated), chosen_MTK))
        token += length
    rest = iter(made)
    return [list(islice(rest, size)) for size in sizes]


def gather_judged(ranks: Ranks, own: Mapping[Place, Judged]) -> dict[Place, Judged]:
    """The verdicts of all ranks by place."""
    if ranks.alone:
        return dict(own)
    data = json.dumps([[*place, _as_json(judged)] for place, judged in own.items()])
    others = {
        (problem, index): _from_json(fields)
        for rank, part in enumerate(ranks.gather_bytes(data.encode()))
        if rank != ranks.rank
        for problem, index, fields in json.loads(part)
    }
    return {**own, **others}


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
