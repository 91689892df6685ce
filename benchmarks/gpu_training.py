"""Training on one GPU beside its peers: pretraining, and whole GRPO steps.

Pretraining: one optimiser step after another on the same batch of 64 texts of 1,025 random tokens,
ours against transformers' DeepseekV3ForCausalLM in bfloat16 under torch.compile, with torch's fused
AdamW. Ours keeps float32 masters, theirs has none. It is measured twice: with the grouped experts
that it chooses by itself, and with its loop over experts.

GRPO: a step is 128 prompts of 48 tokens x 16 samples, drawn, rewarded and trained on. All lengths
are forced from `data/rollout_lengths.json`, for us by the sampler (an end token when a sample's
time has come, none before), for TRL by a LogitsProcessor in the call of `generate` that does the
same to the same places of the batch. Rewards are a parity of the first token on both sides, so
verdicts cost nothing. TRL draws with transformers' `generate`: its vLLM mode needs vLLM, which is
not on this machine, and its paged mode was 14 times slower than `generate` when it was tried.
TRL's passes hold the samples that `THEIRS` says; no other size was tried, so TRL is not tuned.
Gradient checkpointing is off for it. The V3 shape runs in transformers with the grouped experts
that it chooses by itself, not with a loop over experts. Our step is the quicker of two after two
that warm up, TRL's the one after its first.

Peers and we are measured one after the other; each part says on which card and when. Every part
is measured in a process of its own, so peaks of memory are its own; the first step of
each (compilation, graphs, planning) is reported apart.

    python benchmarks/gpu_training.py                # prints tables, ends with one JSON line
    python benchmarks/gpu_training.py --only pretrain-v3-ours,grpo-v3-ours
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import torch

from _gpu_shapes import PEAK, SHAPES, transformers_config

Figures = dict[str, Any]
ROWS: Final = 64
LENGTH: Final = 1024
MICRO: Final = {"llama-24m": 40_960, "v3": 65_536, "qwen2.5-0.5b": 4_096}
"""Tokens of our passes."""
SIDE_BY_SIDE: Final = {"llama-24m": 2048, "v3": 2048, "qwen2.5-0.5b": 1024}
"""Samples that we draw at the same time: all, but where their cache alone would be TRL's peak."""
THEIRS: Final = {"llama-24m": 128, "v3": 128, "qwen2.5-0.5b": 16}
"""Samples of TRL's passes."""
THEIR_STEPS: Final = {"llama-24m": 2, "v3": 2, "qwen2.5-0.5b": 1}
"""The last one counts. The largest shape has but one, with a second or two of start-up in it."""


def _texts(vocabulary: int) -> list[tuple[int, ...]]:
    rng = Random(7)
    return [tuple(rng.choices(range(vocabulary), k=LENGTH + 1)) for _ in range(ROWS)]


def _timed(step: Callable[[], object], repeats: int) -> tuple[float, float]:
    """(seconds of the first call, of the quickest of those after the second)."""
    seconds = []
    for _ in range(repeats + 2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds[0], min(seconds[2:])


def _memory() -> Figures:
    """The most that tensors held, and the most that torch had taken for them (graphs included)."""
    return {
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
    }


def pretrain_ours(shape: str) -> Figures:
    from forethought.checkpoints.network_tensors import count_parameters
    from forethought.models.costs import CostModel
    from forethought.models.loading import build
    from forethought.training.batches import TokenSequence
    from forethought.training.config import BalanceConfig, OptimizerConfig
    from forethought.training.optimizer import MasterAdamW
    from forethought.training.supervised import Supervised

    config = SHAPES[shape]()
    network = build(config, device="cuda", dtype=torch.bfloat16)
    optimizer = MasterAdamW(network.named_parameters(), OptimizerConfig(learning_rate=1e-4))
    trainer = Supervised(
        network,
        optimizer,
        vocabulary=config.vocab_size,
        micro_batch_tokens=ROWS * LENGTH,
        balance=BalanceConfig(),
    )
    texts = [TokenSequence(ids) for ids in _texts(config.vocab_size)]
    ready = [trainer.prepare(texts)]

    def step() -> None:
        # The next batch is laid out while the device is busy, as pretraining does.
        trainer.step(ready.pop(), 1e-4, None, lambda: ready.append(trainer.prepare(texts)))

    first, best = _timed(step, 8)
    tokens = ROWS * LENGTH
    parameters = 6 * tokens * count_parameters(config).active
    everything = CostModel(config).training([LENGTH] * ROWS, tokens).flops
    return {
        "tokens_per_second": round(tokens / best),
        "first_step_seconds": round(first, 2),
        "mfu_parameters": round(parameters / best / PEAK, 4),
        "mfu_with_attention": round(everything / best / PEAK, 4),
        **_memory(),
    }


def pretrain_transformers(shape: str, experts: str | None = None) -> Figures:
    from transformers import AutoModelForCausalLM

    torch.set_float32_matmul_precision("high")
    config = transformers_config(shape)
    if experts is not None:
        config._experts_implementation = experts
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).cuda()
    model.train()
    compiled: Any = torch.compile(model)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.tensor(_texts(config.vocab_size), device="cuda")[:, :LENGTH]

    def step() -> None:
        compiled(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()

    first, best = _timed(step, 8 if experts is None else 3)
    return {
        "tokens_per_second": round(ROWS * LENGTH / best),
        "first_step_seconds": round(first, 2),
        "experts": str(getattr(model.config, "_experts_implementation", None)),
        **_memory(),
    }


def grpo_ours(shape: str) -> Figures:
    from _forced import MOST, PROBLEMS, SAMPLES, ParityJudge, Problems, forced_policy
    from forethought.models.loading import build
    from forethought.training.config import OptimizerConfig, RLConfig
    from forethought.training.grpo import GRPO
    from forethought.training.optimizer import MasterAdamW

    config = SHAPES[shape]()
    generator = torch.Generator("cuda").manual_seed(1)
    network = build(config, device="cuda", dtype=torch.bfloat16, generator=generator)
    rl = RLConfig(
        steps=100,
        optimizer=OptimizerConfig(learning_rate=1e-6),
        micro_batch_tokens=MICRO[shape],
        problems_per_rollout=PROBLEMS,
        group_size=SAMPLES,
        max_tokens=MOST,
        rows=SIDE_BY_SIDE[shape],
    )
    optimizer = MasterAdamW(network.named_parameters(), rl.optimizer)
    policy = forced_policy(network, config.vocab_size)
    stage = GRPO(policy, optimizer, rl, Problems(), ParityJudge(), 3)  # type: ignore[arg-type]
    steps = []

    def step() -> None:
        steps.append(stage.step())

    first, best = _timed(step, 2)
    last = steps[-1]
    stage.close()
    return {
        "step_seconds": round(best, 3),
        "first_step_seconds": round(first, 2),
        "tokens": last.tokens,
        "tokens_per_second": round(last.tokens / best),
        "phases": {name: round(seconds, 3) for name, seconds in last.phases.items()},
        "kl_sampler_trainer": last.metrics["kl_sampler_trainer"],
        "flipped_experts": last.metrics.get("flipped_experts"),
        "replayed_micro_batches": last.metrics.get("replayed_micro_batches"),
        "trained_samples": last.metrics["trained_samples"],
        **_memory(),
    }


def grpo_trl(shape: str) -> Figures:
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        AutoModelForCausalLM,
        LogitsProcessor,
        LogitsProcessorList,
        PreTrainedTokenizerFast,
        TrainerCallback,
    )
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    from _forced import END, MOST, PROBLEMS, SAMPLES, lengths, prompt_ids, reward_of

    config = transformers_config(shape, eos_token_id=END, pad_token_id=0, bos_token_id=None)
    words = {f"w{at}": at for at in range(config.vocab_size)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=f"w{END}", pad_token="w0", unk_token="w0"
    )
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).cuda()
    ends_R = torch.tensor([one for group in lengths() for one in group], device="cuda")

    class Ends(LogitsProcessor):
        """An end token when a sample's time has come, and none before."""

        def __init__(self, prompt: int) -> None:
            self.prompt = prompt

        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            due_R = ends_R <= ids.shape[1] - self.prompt + 1
            scores[:, END] = -torch.inf
            scores = scores.masked_fill(due_R[:, None], -torch.inf)
            scores[:, END] = scores[:, END].masked_fill(due_R, 0.0)
            return scores

    generate, spent = model.generate, []

    def forced(**inputs: Any) -> Any:
        torch.cuda.synchronize()
        started = time.perf_counter()
        processors = LogitsProcessorList([Ends(inputs["input_ids"].shape[1])])
        made = generate(**inputs, logits_processor=processors)
        torch.cuda.synchronize()
        spent.append(time.perf_counter() - started)
        return made

    model.generate = forced
    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            marks.append(time.perf_counter())

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        return [reward_of(ids) for ids in completion_ids]

    prompts = [
        " ".join(f"w{token}" for token in prompt_ids(number, config.vocab_size))
        for number in range(4 * PROBLEMS)
    ]
    settings = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=THEIRS[shape],
        gradient_accumulation_steps=PROBLEMS * SAMPLES // THEIRS[shape],
        num_generations=SAMPLES,
        max_completion_length=MOST,
        learning_rate=1e-6,
        max_steps=THEIR_STEPS[shape],
        bf16=True,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        optim="adamw_torch_fused",
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    torch.cuda.synchronize()
    started = time.perf_counter()
    trainer.train()
    seconds = marks[-1] - ([started, *marks][-2])
    tokens = int(ends_R.sum())
    return {
        "step_seconds": round(seconds, 3),
        "first_step_seconds": round(marks[0] - started, 2),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds),
        "phases": {"sampling": round(spent[-1], 3), "rest": round(seconds - spent[-1], 3)},
        "steps": len(marks),
        "samples_of_a_pass": THEIRS[shape],
        **_memory(),
    }


PARTS: Final[dict[str, Callable[[], Figures]]] = {
    "pretrain-v3-ours": partial(pretrain_ours, "v3"),
    "pretrain-v3-transformers": partial(pretrain_transformers, "v3"),
    "pretrain-v3-loop-transformers": partial(pretrain_transformers, "v3", "eager"),
    "pretrain-smollm2-135m-ours": partial(pretrain_ours, "smollm2-135m"),
    **{
        f"grpo-{shape}-{whose}": partial(function, shape)
        for shape in ("llama-24m", "v3", "qwen2.5-0.5b")
        for whose, function in (("ours", grpo_ours), ("trl", grpo_trl))
    },
}


def _child(name: str, seconds: float) -> Figures:
    """A part in a process of its own; what it says last, or why it said nothing."""
    command = [sys.executable, __file__, "--part", name]
    started = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {seconds:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"part"')]
    if not lines:
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1][-400:]}
    figures: Figures = json.loads(lines[-1])["figures"]
    return {**figures, "whole_process_seconds": round(time.perf_counter() - started, 1)}


def _ratio(found: dict[str, Figures], ours: str, theirs: str, key: str) -> float | None:
    one, other = found.get(ours, {}).get(key), found.get(theirs, {}).get(key)
    if not one or not other:
        return None
    return round(float(one / other if key == "tokens_per_second" else other / one), 2)


def _print_table(found: dict[str, Figures]) -> None:
    keys = (
        "step_seconds",
        "tokens_per_second",
        "mfu_parameters",
        "mfu_with_attention",
        "peak_gib",
        "reserved_gib",
        "first_step_seconds",
    )
    print(f"{'part':30}" + "".join(f"{key:>19}" for key in keys))
    for name in (name for name in PARTS if name in found):
        figures = found[name]
        if "failed" in figures:
            print(f"{name:30}    {figures['failed']}")
            continue
        print(f"{name:30}" + "".join(f"{figures.get(key, '-'):>19}" for key in keys))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=240.0, help="limit of each part")
    parser.add_argument("--parts-file", type=Path, help="what earlier calls found: read, added to")
    parser.add_argument("--save-as", default="gpu_training", help="name of the file of results")
    arguments = parser.parse_args()
    if arguments.part:
        figures = PARTS[arguments.part]()
        print(json.dumps({"part": arguments.part, "figures": figures}))
        return
    names = [name for name in arguments.only.split(",") if name]
    if names and not torch.cuda.is_available():
        print("gpu_training: skipped, it needs a CUDA device", file=sys.stderr)
        return
    from _machine import describe_gpu, save

    found: dict[str, Figures] = {}
    kept: Path | None = arguments.parts_file
    if kept is not None and kept.exists():
        found = json.loads(kept.read_text())
    if not names and not found:
        parser.error(f"nothing to measure or to print: name parts, or a --parts-file, not {kept}")
    for name in names:
        found[name] = {**_child(name, arguments.seconds), "machine": describe_gpu()}
        if kept is not None:
            kept.write_text(json.dumps(found))
    if not names:
        print("Parts that earlier calls measured, printed together; nothing was measured now.")
    _print_table(found)
    ratios = {
        **{
            name: _ratio(found, "pretrain-v3-ours", f"{name}-transformers", "tokens_per_second")
            for name in ("pretrain-v3", "pretrain-v3-loop")
        },
        **{
            f"grpo-{shape}": _ratio(
                found, f"grpo-{shape}-ours", f"grpo-{shape}-trl", "step_seconds"
            )
            for shape in MICRO
        },
    }
    print()
    for name, ratio in ratios.items():
        print(f"{name:20} {'-' if ratio is None else f'{ratio:.2f} times the peer'}")
    machines = sorted({str(figures["machine"]) for figures in found.values()})
    save(arguments.save_as, {"parts": found, "times_the_peer": ratios}, " | ".join(machines))


if __name__ == "__main__":
    main()
