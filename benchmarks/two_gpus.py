"""One GPU and two: the same GRPO step, data-parallel, on one machine in one run.

A step is that of `gpu_training.py`: 128 prompts x 16 samples of forced lengths, drawn, rewarded and
trained on, with the V3 shape. Every rank draws its share of the problems and computes its share of
the passes; gradients are summed, the optimiser is replicated. The quicker of two steps counts,
after two that warm up. Beside it the gradients of a supervised step in float64, by one process and
by two: how far they are apart, over their own size. (In float32 they were 3e-2 apart: other rows
stand in a pass, rounding differs, and near a tie it chooses another expert.)

    python benchmarks/two_gpus.py             # prints a table, ends with one JSON line
    python benchmarks/two_gpus.py --smoke     # the same way on the CPU, whose figures say nothing
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, Final

import torch

Figures = dict[str, Any]
SHAPE: Final = "v3"
COUNTS: Final = (1, 2)
SMALL: Final = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
"""What is smaller with --smoke."""


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
        config = config.model_copy(update=SMALL)
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


class _Kept(Exception):
    """The gradients are there: the step need not be taken."""


def gradients(smoke: bool, file: Path) -> None:
    """One of the processes: the first keeps the gradients of all in ``file``."""
    from safetensors.torch import save_file

    from _gpu_shapes import SHAPES
    from forethought.models.loading import build
    from forethought.training.batches import TokenSequence
    from forethought.training.config import BalanceConfig, OptimizerConfig
    from forethought.training.lanes import Lanes
    from forethought.training.optimizer import MasterAdamW
    from forethought.training.ranks import joined
    from forethought.training.supervised import Supervised

    def keep(_: float) -> None:
        raise _Kept

    config = SHAPES[SHAPE]()
    if smoke:
        config = config.model_copy(update=SMALL)
    device = "cpu" if smoke else "cuda"
    with joined(device) as ranks:
        generator = torch.Generator(device).manual_seed(1)
        network = build(config, device=device, dtype=torch.float64, generator=generator)
        rng = Random(5)
        texts = [
            TokenSequence(tuple(rng.choices(range(config.vocab_size), k=rng.randint(40, 250))))
            for _ in range(6 if smoke else 64)
        ]
        trainer = Supervised(
            network,
            MasterAdamW(network.named_parameters(), OptimizerConfig(learning_rate=1e-4)),
            vocabulary=config.vocab_size,
            micro_batch_tokens=512 if smoke else 4096,
            balance=BalanceConfig(),
            lanes=Lanes(network, 1, ranks),
        )
        with suppress(_Kept):
            trainer.step(texts, 1e-4, keep)
        if ranks.first:
            found = {n: p.grad.cpu() for n, p in network.named_parameters() if p.grad is not None}
            save_file(found, file)


def apart(one: Path, other: Path) -> float:
    """The largest distance between two files' gradients of a parameter, over the first's norm."""
    from safetensors.torch import load_file

    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    return max(
        float((second[name] - gradient).double().norm() / gradient.double().norm())
        for name, gradient in first.items()
    )


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


def launched(count: int, *arguments: str) -> str:
    """What the first of ``count`` ranks printed. Raises RuntimeError where one failed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return done.stdout


def measured(count: int, smoke: bool) -> Figures:
    """What the first of ``count`` ranks measured."""
    said = launched(count, "--rank", *(["--smoke"] if smoke else []))
    found = [line for line in said.splitlines() if line.startswith('{"part"')]
    figures: Figures = json.loads(found[-1])["part"]
    return figures


def gradients_apart(smoke: bool) -> float:
    """How far the gradients of two ranks are from those of one."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{count}.safetensors" for count in COUNTS]
        for count, file in zip(COUNTS, files, strict=True):
            launched(count, "--gradients", str(file), *(["--smoke"] if smoke else []))
        return apart(*files)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true", help="a tiny network on the CPU")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--gradients", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.gradients:
        gradients(asked.smoke, asked.gradients)
        return
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
    distance = gradients_apart(asked.smoke)
    print(f"Gradients of a supervised step in float64 are at most {distance:.1e} of theirs apart.")
    if asked.smoke:
        return
    from _machine import describe_gpu, save

    result = {
        "shape": SHAPE,
        "times_as_fast": round(second / first, 3),
        "gradients_apart": distance,
    }
    parts = {str(count): one for count, one in found.items()}
    save("two_gpus", {**result, "parts": parts}, describe_gpu())


if __name__ == "__main__":
    main()
