"""One GPU and two: the same GRPO step, data-parallel, on one machine in one run.

A step is that of `gpu_training.py`: 128 prompts x 16 samples of forced lengths, drawn, rewarded and
trained on, with the V3 shape. Every rank draws its share of the problems and computes its share of
the passes; gradients are summed, the optimiser is replicated. The quicker of two steps counts,
after two that warm up.

    python benchmarks/two_gpus.py             # prints a table, ends with one JSON line
    python benchmarks/two_gpus.py --smoke     # the same way on the CPU, whose figures say nothing
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any, Final

import torch

Figures = dict[str, Any]
SHAPE: Final = "v3"
COUNTS: Final = (1, 2)


def _stage(ranks: Any, smoke: bool) -> Any:
    from _forced import (
        MOST,
        PROBLEMS,
        SAMPLES,
        ParityJudge,
        Problems,
        Prompts,
        Tokens,
        forced_policy,
    )
    from _gpu_shapes import SHAPES
    from forethought.models.loading import build
    from forethought.training.config import OptimizerConfig, RLConfig
    from forethought.training.grpo import GRPO
    from forethought.training.lanes import Lanes
    from forethought.training.optimizer import MasterAdamW
    from forethought.training.policy import Policy

    config = SHAPES[SHAPE]()
    if smoke:
        small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        config = config.model_copy(update=small)
    device = "cpu" if smoke else "cuda"
    generator = torch.Generator(device).manual_seed(1)
    dtype = torch.float32 if smoke else torch.bfloat16
    network = build(config, device=device, dtype=dtype, generator=generator)
    rl = RLConfig(
        steps=100,
        optimizer=OptimizerConfig(learning_rate=1e-6),
        micro_batch_tokens=1024 if smoke else 131_072,
        problems_per_rollout=4 if smoke else PROBLEMS,
        group_size=4 if smoke else SAMPLES,
        max_tokens=8 if smoke else MOST,
        rows=16 if smoke else PROBLEMS * SAMPLES,
    )
    optimizer = MasterAdamW(network.named_parameters(), rl.optimizer)
    if smoke:
        size = config.vocab_size
        policy: Any = Policy(network, Tokens(size), Prompts(size), lanes=Lanes(network, 1, ranks))  # type: ignore[arg-type]
    else:
        policy = forced_policy(network, config.vocab_size, ranks)
    return GRPO(policy, optimizer, rl, Problems(), ParityJudge(), 3)  # type: ignore[arg-type]


def rank(smoke: bool) -> None:
    """One of the processes: the first prints what it measured."""
    from forethought.training.ranks import joined

    with joined("cpu" if smoke else "cuda") as ranks:
        stage = _stage(ranks, smoke)
        seconds, steps = [], []
        for _ in range(4):
            ranks.wait()
            started = time.perf_counter()
            steps.append(stage.step())
            if not smoke:
                torch.cuda.synchronize()
            ranks.wait()
            seconds.append(time.perf_counter() - started)
        stage.close()
        if not ranks.first:
            return
        best, last = min(seconds[2:]), steps[-1]
        figures: Figures = {
            "ranks": ranks.count,
            "step_seconds": round(best, 3),
            "tokens": last.tokens,
            "tokens_per_second": round(last.tokens / best),
            "phases": {name: round(value, 3) for name, value in last.phases.items()},
            "loss": last.metrics["loss"],
            "grad_norm": last.metrics["grad_norm"],
            "peak_gib": 0.0 if smoke else round(torch.cuda.max_memory_allocated() / 2**30, 2),
        }
        print(json.dumps({"part": figures}), flush=True)


def measured(count: int, smoke: bool) -> Figures:
    """What the first of ``count`` ranks measured. Raises RuntimeError where one failed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), __file__, "--rank"]
    command += ["--smoke"] if smoke else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith('{"part"')]
    if done.returncode or not found:
        raise RuntimeError(done.stderr[-3000:])
    figures: Figures = json.loads(found[-1])["part"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true", help="a tiny network on the CPU")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.rank:
        rank(asked.smoke)
        return
    if not asked.smoke and torch.cuda.device_count() < max(COUNTS):
        print(f"Skipped: torch finds {torch.cuda.device_count()} GPUs here, two are needed.")
        return
    found = {count: measured(count, asked.smoke) for count in COUNTS}
    print("| GPUs | seconds a step | tokens/s | peak GiB of the first | sampling | training |")
    print(f"|{'---|' * 6}")
    for count, one in found.items():
        phases = one["phases"]
        print(f"| {count} | {one['step_seconds']} | {one['tokens_per_second']:,} "
              f"| {one['peak_gib']} | {phases['sampling']} | {phases['training']} |")  # fmt: skip
    first, second = (found[count]["tokens_per_second"] for count in COUNTS)
    print(f"\nTwo are {second / first:.2f} times as fast as one.")
    if asked.smoke:
        return
    from _machine import describe_gpu, save

    result = {"shape": SHAPE, "times_as_fast": round(second / first, 3)}
    parts = {str(count): one for count, one in found.items()}
    save("two_gpus", {**result, "parts": parts}, describe_gpu())


if __name__ == "__main__":
    main()
