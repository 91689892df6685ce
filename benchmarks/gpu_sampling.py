"""Sampling for GRPO on one GPU: ours, a naive loop in a CUDA graph, transformers' `generate`.

    python benchmarks/gpu_sampling.py [--runs 3] [--peers] [--shapes llama,fixed,v3,smollm]

Random weights in bfloat16, temperature 1, 128 prompts of 40 to 80 tokens x 16 samples. Lengths are
forced, at the same places for all: with weights that were never trained nothing else would end.
Wall time is that of a whole call: prompts computed, places refilled, tokens on the host and, for
ours, verdicts of worker processes (on a thought of the same length and an answer to its problem, so
that there is something to verify). Tokens that count: up to the end token, it included.

- `llama`: d512, 8 layers, 8 heads, 4 key heads, inner width 1408 (24M), lengths of
  data/rollout_lengths.json (mean 158, at most 640).
- `fixed`: the same, 256 tokens each; beside it the share of what reading the cache would allow at
  the device's own copy bandwidth.
- `v3`: d384, 6 layers (5 with 16 experts of width 160, 2 of them used), latents of 128 + 32.
- `smollm`: SmolLM2-135M's shape, 1024 rows.

KL(sampler, trainer): of the log-probabilities that were drawn from against those of one packed pass
of the trainer, mean of exp(d) - 1 - d with d = trainer - sampler. Prints a table and ends with one
JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from _gpu_peers import NaiveLoop, Transformers
from _gpu_shapes import SHAPES
from _machine import describe_gpu, save
from forethought.checkpoints.network_config import DeepseekConfig, DenseConfig, NetworkConfig
from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.cuda.rollout import CudaRollout
from forethought.engines.torch.rollout import RolloutSample
from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3 import DeepseekV3
from forethought.models.dense import DenseLM
from forethought.models.layers import initialise
from forethought.models.packed import PackedSequences
from forethought.problems.problem import Problem
from forethought.problems.registry import family
from forethought.training.config import RewardConfig
from forethought.training.judge_pool import JudgePool
from forethought.training.judging import Judge
from forethought.training.logprobs import token_logprobs
from forethought.training.tokenizer import TrainedTokenizer, train_tokenizer

HERE = Path(__file__).parent
PROMPTS, SAMPLES, END = 128, 16, 1
SAMPLING = SamplingParameters(temperature=1.0, top_p=1.0)
Groups = list[list[RolloutSample]]
Result = TypeVar("Result")


def network_of(name: str) -> CausalLM:
    """A network of one of the shapes, random weights in bfloat16."""
    config = SHAPES[name]()
    with torch.device("cuda"):
        network: CausalLM = (
            DenseLM(config) if isinstance(config, DenseConfig) else DeepseekV3(deepseek(config))
        )
    initialise(network, 0.02, torch.Generator("cuda").manual_seed(0))
    return network.to(torch.bfloat16).eval()


def deepseek(config: NetworkConfig) -> DeepseekConfig:
    assert isinstance(config, DeepseekConfig)
    return config


def prompts_of(count: int, vocabulary: int) -> list[list[int]]:
    rng = random.Random(1)
    return [
        [rng.randrange(300, vocabulary) for _ in range(rng.randint(40, 80))] for _ in range(count)
    ]


class Verdicts:
    """What is done with each sample as it ends: judged by worker processes. What weights that were
    never trained draw has no answer: a thought of the same length and one is judged in its place.
    """

    def __init__(self, count: int) -> None:
        countdown = family("countdown")
        self.problems: list[Problem] = [
            countdown.problem(1 + at % countdown.levels, at) for at in range(count)
        ]
        texts = [problem.text for problem in self.problems]
        for path in sorted((HERE.parent / "docs").glob("*.md")):
            texts.append(path.read_text(encoding="utf-8"))
        self.tokenizer: TrainedTokenizer = train_tokenizer(texts, 4096)
        plain = self.tokenizer.tokenizer
        self.answers = [
            tuple(plain.encode(f"<answer>{problem.answer}</answer>", parse_special=False))
            for problem in self.problems
        ]
        rng = random.Random(2)
        self.filler = tuple(rng.randrange(300, self.tokenizer.size) for _ in range(640))
        self.head = (self.tokenizer.think_id,)
        self.tail = (self.tokenizer.end_think_id,)
        judge = Judge(self.tokenizer, {"countdown": countdown}, RewardConfig())
        self.pool = JudgePool(judge, max(1, min(8, (os.cpu_count() or 2) - 2)))
        self.judged = 0
        self.correct = 0

    def submit(self, prompt: int, _: int, sample: RolloutSample) -> None:
        thought = self.filler[: len(sample.ids) - 1]
        ids = (*self.head, *thought, *self.tail, *self.answers[prompt], self.tokenizer.eos_id)
        self.pool.submit(self.problems[prompt], ids)

    def finish(self) -> None:
        found = self.pool.results()
        self.judged += len(found)
        self.correct += sum(one.verdict.correct for one in found)


def ours(
    network: CausalLM,
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[Sequence[int]],
    rows: int,
    vocabulary: int,
    verdicts: Verdicts | None,
) -> tuple[Callable[[], Groups], CudaRollout]:
    rollout = CudaRollout(network, ends=(END,), vocabulary=vocabulary, rows=rows)
    most = max(max(own) for own in lengths)

    def run() -> Groups:
        groups = rollout.sample(
            prompts,
            len(lengths[0]),
            range(len(prompts)),
            SAMPLING,
            most,
            lengths=lengths,
            on_finished=None if verdicts is None else verdicts.submit,
        )
        if verdicts is not None:
            verdicts.finish()
        return groups

    return run, rollout


def timed(run: Callable[[], Result], runs: int, warm: int = 2) -> tuple[list[float], Result]:
    """Seconds of each run, but of the first ``warm``, and what the last gave."""
    seconds: list[float] = []
    while True:
        torch.cuda.synchronize()
        started = time.perf_counter()
        result = run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        if len(seconds) == warm + runs:
            return seconds[warm:], result


@torch.no_grad()
def divergence(
    network: CausalLM, prompts: Sequence[Sequence[int]], groups: Groups, vocabulary: int
) -> tuple[float, float]:
    """(KL estimate, largest difference) on the first sample of some prompts."""
    pairs = [(prompt, group[0]) for prompt, group in zip(prompts, groups, strict=True)][:64]
    rows = [[*prompt, *sample.ids[:-1]] for prompt, sample in pairs]
    packed = PackedSequences([len(row) for row in rows], "cuda")
    ids = torch.tensor([[token for row in rows for token in row]], device="cuda")
    hidden_ND = network.hidden(ids, packed.positions_1N, packed)[0]
    places: list[int] = []
    targets: list[int] = []
    drawn = []
    for start, (prompt, sample) in zip(packed.starts, pairs, strict=True):
        # Not the forced end: the sampler could not have drawn it.
        count = len(sample.ids) - 1
        first = start + len(prompt) - 1
        places += range(first, first + count)
        targets += sample.ids[:-1]
        drawn.append(sample.logprobs[:-1])
    head = network.head_weight[:vocabulary]
    states = hidden_ND[torch.tensor(places, device="cuda")]
    trained, _ = token_logprobs(states, head, torch.tensor(targets, device="cuda"))
    # The sampler drew without the end token.
    logits = states.float() @ head.float().T
    share = logits.softmax(dim=-1)[:, END]
    gap = trained - torch.log1p(-share) - torch.cat(drawn).cuda()
    return float((gap.double().exp() - 1 - gap.double()).mean()), float(gap.abs().max())


def copy_bandwidth() -> float:
    """Bytes a second that a large copy on the device reads and writes."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    for _ in range(3):
        target.copy_(source)
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    started.record()
    for _ in range(10):
        target.copy_(source)
    ended.record()
    torch.cuda.synchronize()
    return 10 * 2 * (1 << 30) / (float(started.elapsed_time(ended)) / 1e3)


class Table:
    def __init__(self) -> None:
        self.result: dict[str, object] = {}
        print(f"{'what':44} {'seconds':>9} {'tokens/s':>12}")

    def row(self, name: str, key: str, seconds: Sequence[float], tokens: int) -> float:
        best = statistics.median(seconds)
        print(f"{name:44} {best:9.3f} {tokens / best:12,.0f}", flush=True)
        self.result[key] = round(tokens / best)
        self.result[key + "_seconds"] = [round(one, 4) for one in seconds]
        return tokens / best

    def note(self, name: str, key: str, value: float, form: str) -> None:
        print(f"  {name}: {format(value, form)}", flush=True)
        self.result[key] = value


def grouped(lengths: Sequence[int]) -> list[list[int]]:
    return [list(lengths[at : at + SAMPLES]) for at in range(0, len(lengths), SAMPLES)]


def shape_of(
    table: Table,
    key: str,
    title: str,
    name: str,
    lengths: list[list[int]],
    *,
    rows: int = 2048,
    runs: int = 3,
    verdicts: bool = True,
    naive: bool = True,
    peer: int | None = None,
) -> Groups:
    """One shape: ours, the naive loop, and transformers (``peer``: its most tokens)."""
    network = network_of(name)
    vocabulary = network.config.vocab_size
    prompts = prompts_of(len(lengths), vocabulary)
    tokens = sum(map(sum, lengths))
    flat = [one for own in lengths for one in own]
    judged = Verdicts(len(prompts)) if verdicts else None
    run, rollout = ours(network, prompts, lengths, rows, vocabulary, judged)
    torch.cuda.reset_peak_memory_stats()
    seconds, groups = timed(run, runs)
    rate = table.row(f"{title}, ours", key, seconds, tokens)
    cache = rollout.decoder.cache
    assert cache is not None
    table.note("memory of pages, GiB", key + "_pages_gib", cache.bytes / 2**30, ".2f")
    kl, gap = divergence(network, prompts, groups, vocabulary)
    table.note("KL(sampler, trainer)", key + "_kl", kl, ".2e")
    table.note("largest difference of a log-probability", key + "_gap", gap, ".2e")
    if judged is not None:
        assert judged.correct == judged.judged
        judged.pool.close()
    rollout.decoder.let_go()
    if naive:
        longest = max(len(prompt) for prompt in prompts) + max(flat)
        loop = NaiveLoop(network, len(flat), -(-longest // 8) * 8, END)
        seconds, counted = timed(lambda: loop(prompts, SAMPLES, flat), runs, warm=1)
        assert counted == tokens
        other = table.row(f"{title}, naive static graph", key + "_naive", seconds, tokens)
        table.note("ours is times that", key + "_over_naive", rate / other, ".2f")
        del loop
    if peer is not None:
        generate = Transformers(name, END)
        short = [min(one, peer) for one in flat]
        seconds, counted = timed(lambda: generate(prompts, SAMPLES, short), 1, warm=0)
        other = table.row(
            f"{title}, transformers {generate.version}", key + "_transformers", seconds, counted
        )
        table.note("ours is times that", key + "_over_transformers", rate / other, ".1f")
    torch.cuda.empty_cache()
    return groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peers", action="store_true", help="transformers beside ours")
    parser.add_argument("--shapes", default="llama,fixed,v3,smollm")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_sampling: skipped, it needs a CUDA device", file=sys.stderr)
        return
    shapes, runs = options.shapes.split(","), options.runs
    lengths = json.loads((HERE / "data" / "rollout_lengths.json").read_text())["lengths"]
    print(describe_gpu())
    bandwidth = copy_bandwidth()
    table = Table()
    table.note("copy bandwidth, TB/s", "copy_tb_s", bandwidth / 1e12, ".2f")
    if "llama" in shapes:
        shape_of(
            table,
            "llama",
            "24M Llama, real spread",
            "llama-24m",
            grouped(lengths),
            runs=runs,
            peer=640 if options.peers else None,
        )
    if "fixed" in shapes:
        tokens = 256
        shape_of(
            table,
            "fixed",
            "24M Llama, 256 tokens each",
            "llama-24m",
            grouped([tokens] * PROMPTS * SAMPLES),
            runs=runs,
            verdicts=False,
        )
        config = SHAPES["llama-24m"]()
        assert isinstance(config, DenseConfig)
        per_token = 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        limit = bandwidth / (per_token * (60 + tokens / 2))
        share = float(str(table.result["fixed"])) / limit
        table.note("limit by reading the cache, tokens/s", "fixed_limit", limit, ",.0f")
        table.note("ours is of it", "fixed_share", share, ".2f")
    if "v3" in shapes:
        shape_of(
            table,
            "v3",
            "V3 shape, latent cache, real spread",
            "v3",
            grouped(lengths),
            runs=runs,
            naive=False,
        )
    if "smollm" in shapes:
        shape_of(
            table,
            "smollm",
            "SmolLM2-135M's shape, 1024 rows, 256 tokens",
            "smollm2-135m",
            grouped([256] * 1024),
            rows=1024,
            runs=runs,
            verdicts=False,
            naive=False,
            peer=64 if options.peers else None,
        )
    save("gpu_sampling", table.result, describe_gpu())


if __name__ == "__main__":
    main()
