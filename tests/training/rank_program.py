"""What each rank of a test runs: steps of the trainers on tiny networks, which the first keeps.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=... python rank_program.py OUT [TASK]
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from test_lanes import Spy

from forethought.engines.protocol import SamplingParameters
from forethought.errors import ForethoughtError
from forethought.models.deepseek_v3.routing import gates
from forethought.problems.problem import CORRECT, Problem, wrong
from forethought.problems.stream import ProblemStream
from forethought.training import ranks as ranks_module
from forethought.training.batches import TokenSequence
from forethought.training.config import (
    BalanceConfig,
    CurriculumConfig,
    OptimizerConfig,
    RewardConfig,
    RLConfig,
)
from forethought.training.grpo import GRPO
from forethought.training.judge_pool import JudgePool
from forethought.training.judged_samples import judged_samples
from forethought.training.judging import Judge, Judged, Reply
from forethought.training.lanes import Lanes
from forethought.training.losses import LossConfig
from forethought.training.policy import Policy
from forethought.training.prompting import Prompter
from forethought.training.ranks import Ranks, joined
from forethought.training.supervised import Supervised
from tiny_training import ShownDigit, tiny_dense, tiny_tokenizer, tiny_v3

TOKENIZER = tiny_tokenizer()
TEXTS = [TokenSequence(tuple(range(at, at + 3 + at % 7)), at % 3) for at in range(20)]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "reference": {"loss": LossConfig(preset="paper"), "minibatches": 2},
    "replayed": {"replay_above": 0.0},
    "few": {"problems_per_rollout": 1, "group_size": 8},
}


def network(kind: str, dtype: torch.dtype):
    if kind == "dense":
        return tiny_dense(TOKENIZER.padded_size, dtype=dtype)
    made = tiny_v3(TOKENIZER.padded_size, mtp=kind == "mtp", dtype=dtype)
    with torch.no_grad():
        made.head_weight[TOKENIZER.eos_id] *= 3
    return made


def by_length(problem: object, reply: Reply) -> float:
    return float(len(reply.answer) % 4)


def supervised(ranks: Ranks, kind: str, dtype: torch.dtype, lanes: int = 1):
    net = network(kind, dtype)
    spy = Spy(net)
    one = Supervised(
        net,
        spy,
        vocabulary=TOKENIZER.size,
        micro_batch_tokens=24,
        balance=BalanceConfig(loss_weight=0.1, bias_step=0.01),
        mtp_weight=0.3,
        lanes=Lanes(net, lanes, ranks),
    )
    metrics = one.step(TEXTS, 1e-3)
    biases = {f"bias.{at}": g.e_score_correction_bias.clone() for at, g in enumerate(gates(net))}
    # One text for two ranks: the other has nothing to do.
    first = spy.seen
    alone = one.step(TEXTS[:1], 1e-3)
    return first | biases, {"first": metrics, "alone": alone}


def reinforced(ranks: Ranks, options: dict[str, Any], dtype: torch.dtype, steps: int = 2):
    net = network("v3", dtype)
    spy = Spy(net)
    policy = Policy(net, TOKENIZER, Prompter(TOKENIZER, "chat"), lanes=Lanes(net, 1, ranks))
    judge = Judge(TOKENIZER, {"shown_digit": ShownDigit()}, RewardConfig(), by_length)
    keys = {"problems_per_rollout": 4, "group_size": 4, **options}
    config = RLConfig(
        steps=3,
        max_tokens=8,
        micro_batch_tokens=64,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        **keys,
    )
    stream = ProblemStream([ShownDigit()], 2, levels={"shown_digit": (3,)})
    grpo = GRPO(policy, spy, config, stream, judge, 3)
    metrics = [dict(grpo.step().metrics) for _ in range(steps)]
    return spy.seen, {"steps": metrics}


class Lenient(Judge):
    """Takes a share of the samples for right, of harder levels fewer."""

    def judge(self, problem: Problem, ids: Sequence[int]) -> Judged:
        right = (problem.seed + len(ids)) % 8 >= problem.level
        verdict = CORRECT if right else wrong("not lenient enough")
        reward = float(right) + 0.1 * (len(ids) % 4)
        return Judged(self.read(ids), verdict, float(right), 0.0, 0.0, reward)


def climbing(ranks: Ranks):
    net = network("v3", torch.float64)
    policy = Policy(net, TOKENIZER, Prompter(TOKENIZER, "chat"), lanes=Lanes(net, 1, ranks))
    config = RLConfig(
        steps=6,
        problems_per_rollout=3,
        group_size=4,
        max_tokens=8,
        dynamic_sampling=True,
        micro_batch_tokens=64,
        optimizer=OptimizerConfig(learning_rate=1e-3),
        curriculum=CurriculumConfig(raise_at=0.5, over=3),
    )
    judge = Lenient(TOKENIZER, {}, RewardConfig())
    grpo = GRPO(policy, Spy(net), config, ProblemStream([ShownDigit()], 2), judge, 3)
    metrics = [dict(grpo.step().metrics) for _ in range(6)]
    return {}, {"steps": metrics, "state": grpo.state()[1]}


def rollout(ranks: Ranks):
    net = network("v3", torch.float32)
    policy = Policy(net, TOKENIZER, Prompter(TOKENIZER, "chat"), lanes=Lanes(net, 1, ranks))
    problems = [ProblemStream([ShownDigit()], 2)[at] for at in range(5)]
    heard: list[tuple[int, int]] = []
    groups = policy.sample(
        problems, 3, range(5), SamplingParameters(temperature=1.0, top_p=1.0), 8, rows=4,
        record_experts=True, on_finished=lambda p, i, sample: heard.append((p, i)),
    )  # fmt: skip
    judge = Judge(TOKENIZER, {"shown_digit": ShownDigit()}, RewardConfig(), by_length)
    found = judged_samples(
        policy, JudgePool(judge, 0), problems, 3, range(5),
        SamplingParameters(temperature=1.0, top_p=1.0), 8, rows=4,
    )  # fmt: skip
    judged = found.judged
    assert [[one.ids for one in group] for group in found.samples] == [
        [one.ids for one in group] for group in groups
    ]
    flat = [one for group in groups for one in group]
    tensors = {
        "logprobs": torch.cat([one.logprobs for one in flat]),
        "experts": torch.cat([one.experts.flatten() for one in flat if one.experts is not None]),
    }
    facts = {
        "ids": [list(one.ids) for one in flat],
        "truncated": [one.truncated for one in flat],
        "judged": [repr(one) for group in judged for one in group],
        "heard": sorted(heard),
    }
    return tensors, facts


def everything(ranks: Ranks) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors: dict[str, torch.Tensor] = {}
    facts: dict[str, Any] = {}

    def keep(name: str, found: tuple[dict[str, torch.Tensor], dict[str, Any]]) -> None:
        tensors.update({f"{name}/{key}": value for key, value in found[0].items()})
        facts[name] = found[1]

    for kind in ("dense", "v3", "mtp"):
        keep(f"supervised {kind} float32", supervised(ranks, kind, torch.float32))
        keep(f"supervised {kind} float64", supervised(ranks, kind, torch.float64))
    keep("supervised v3 lanes", supervised(ranks, "v3", torch.float64, lanes=2))
    for name, options in OPTIONS.items():
        keep(f"rl {name} float64", reinforced(ranks, options, torch.float64))
    keep("rl plain float32", reinforced(ranks, {}, torch.float32, steps=1))
    keep("climbing float64", climbing(ranks))
    keep("rollout", rollout(ranks))
    return tensors, facts


def main() -> None:
    out, task = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    torch.set_num_threads(1)
    ranks_module.BUCKET = 100  # tiny networks fill several buckets
    with joined("cpu") as ranks:
        if task == "leaves" and not ranks.first:
            return
        if task == "leaves":
            began = time.monotonic()
            try:
                ranks.wait()
            except ForethoughtError as error:
                (out / "error").write_text(f"{type(error).__name__}: {error}")
            assert time.monotonic() - began < 20
            return
        tensors, facts = everything(ranks)
        if ranks.first:
            save_file({name: one.contiguous() for name, one in tensors.items()}, out / "tensors")
            (out / "facts").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
