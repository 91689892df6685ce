"""Self-speculation: does guessing with the MTP module pay at batch 1 on a CPU?

    python benchmarks/self_speculation.py [--steps 400] [--threads 2]

Trains a small DeepSeek-V3 with its MTP module on the repository's own prose (bytes as tokens; the
last tenth is held out), then writes greedily from held-out beginnings, plainly and with guesses, in
turn. The two texts must be identical. Prints the accepted share of guesses, steps a token and
tokens a second, and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import tokenizers
import torch
import torch.nn.functional as F
from tokenizers.pre_tokenizers import ByteLevel

from _machine import describe, save
from forethought.checkpoints.hf_tokenizer import HFTokenizer
from forethought.checkpoints.network_config import DeepseekConfig
from forethought.dialogue.messages import Prompt
from forethought.engines.protocol import Budget, Request, SamplingParameters
from forethought.engines.torch.apart import apart
from forethought.engines.torch.engine import TorchEngine, TorchOptions
from forethought.models import build
from forethought.models.deepseek_v3 import DeepseekV3

ROOT = Path(__file__).parents[1]
PROSE = ("README.md", "SECURITY.md", "CONTRIBUTING.md", "docs/*.md", "benchmarks/texts/*.txt")
CONTEXT, BATCH, NEW_TOKENS, PROMPTS, PROMPT_TOKENS = 128, 16, 160, 12, 64
MTP_WEIGHT = 0.3
"""V3's weight of the MTP loss for most of its pretraining."""

CONFIG = DeepseekConfig(
    model_type="deepseek_v3",
    vocab_size=256,
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    rms_norm_eps=1e-6,
    max_position_embeddings=512,
    tie_word_embeddings=False,
    rope_theta=10000.0,
    q_lora_rank=96,
    kv_lora_rank=64,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=32,
    moe_intermediate_size=128,
    n_routed_experts=8,
    n_shared_experts=1,
    num_experts_per_tok=2,
    n_group=1,
    topk_group=1,
    routed_scaling_factor=1.0,
    scoring_func="sigmoid",
    topk_method="noaux_tc",
    norm_topk_prob=True,
    first_k_dense_replace=1,
    num_nextn_predict_layers=1,
)


def byte_tokenizer() -> HFTokenizer:
    """One token a byte."""
    vocabulary = {letter: at for at, letter in enumerate(sorted(ByteLevel.alphabet()))}
    whole = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    whole.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
    return HFTokenizer(json.loads(whole.to_str()), "bytes")


def train(ids: torch.Tensor, steps: int, threads: int) -> dict[str, torch.Tensor]:
    """Weights after ``steps`` steps of AdamW on both losses."""
    torch.set_num_threads(threads)
    network = build(CONFIG, mtp=True, generator=torch.Generator().manual_seed(0))
    assert isinstance(network, DeepseekV3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 3e-4)
    generator = torch.Generator().manual_seed(1)
    for step in range(1, steps + 1):
        starts = torch.randint(len(ids) - CONTEXT - 2, (BATCH, 1), generator=generator)
        batch = ids[starts + torch.arange(CONTEXT + 2)]
        hidden = network.hidden(batch[:, :-2])
        main = F.cross_entropy(network.logits(hidden).flatten(0, 1), batch[:, 1:-1].flatten())
        ahead = network.mtp_logits(batch[:, 1:-1], hidden)
        further = F.cross_entropy(ahead.flatten(0, 1), batch[:, 2:].flatten())
        optimizer.zero_grad()
        (main + MTP_WEIGHT * further).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: next token {main.item():.3f}, the one after {further.item():.3f}")
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}


def main() -> None:
    """Train, measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    tokenizer = byte_tokenizer()
    files = sorted(file for pattern in PROSE for file in ROOT.glob(pattern))
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    ids = torch.tensor(tokenizer.encode(text, parse_special=False))
    cut = len(ids) * 9 // 10
    print(f"{describe()}, torch {torch.__version__}, seeds 0 and 1; {len(ids)} tokens of prose\n")
    # Trained apart: its helper threads must not stay beside those of the steps.
    weights = apart(lambda: train(ids[:cut], arguments.steps, arguments.threads))

    def engine(speculate: bool) -> TorchEngine:
        def make() -> TorchEngine:
            network = build(CONFIG, mtp=True)
            network.load_state_dict(weights)
            options = TorchOptions(
                "small", 512, 512, threads=arguments.threads, speculate=speculate
            )
            return TorchEngine(network, tokenizer, options)

        return apart(make)

    plain, guessing = engine(False), engine(True)
    held_out = ids[cut:].tolist()
    stride = (len(held_out) - PROMPT_TOKENS) // PROMPTS
    ratios: list[float] = []
    seconds = {"plain": 0.0, "guessing": 0.0}
    for at in range(-1, PROMPTS):  # the first round warms up
        start = max(at, 0) * stride
        prompt = Prompt(
            (), ids=tuple(held_out[start : start + PROMPT_TOKENS]), thinks=False, exact=True
        )
        request = Request(
            prompt, 1, SamplingParameters(temperature=0), Budget(max_tokens=NEW_TOKENS), seed=0
        )
        texts, spent = {}, {}
        order = [("plain", plain), ("guessing", guessing)]
        for name, made in order if at % 2 else reversed(order):
            began = time.perf_counter()
            texts[name] = made.submit(request).wait()[0].ids
            spent[name] = time.perf_counter() - began
        if texts["plain"] != texts["guessing"]:
            raise SystemExit("the text with guesses differs from the text without")
        if at < 0:
            guessing.acceptance_counts.guessed = guessing.acceptance_counts.accepted = 0
            first_steps = (plain.steps, guessing.steps)
            continue
        ratios.append(spent["plain"] / spent["guessing"])
        for name in seconds:
            seconds[name] += spent[name]
    tokens = PROMPTS * NEW_TOKENS
    acceptance = guessing.acceptance
    assert acceptance is not None
    result: dict[str, Any] = {
        "acceptance": round(acceptance, 3),
        "steps_per_token": {
            "plain": round((plain.steps - first_steps[0]) / tokens, 3),
            "guessing": round((guessing.steps - first_steps[1]) / tokens, 3),
        },
        "tokens_per_s": {name: round(tokens / spent, 1) for name, spent in seconds.items()},
        "speed_ratio_median": round(statistics.median(ratios), 3),
    }
    print(f"\n{PROMPTS} greedy texts of {NEW_TOKENS} tokens, identical with and without guesses")
    print(f"accepted guesses      {result['acceptance']:.1%}")
    for name in seconds:
        print(
            f"{name:<10} {result['steps_per_token'][name]:>6} steps a token"
            f"{result['tokens_per_s'][name]:>9} tokens/s"
        )
    print(f"guessing / plain, median of texts: {result['speed_ratio_median']}\n")
    save("self_speculation", {"steps": arguments.steps, "threads": arguments.threads, **result})


if __name__ == "__main__":
    main()
