"""How fast the bundled model writes, and how soon its first token comes.

    python benchmarks/nano_speed.py [--rounds 5] [--runs 10] [--threads 2]

On 2 cores (this process and its children keep to them): 512 tokens after a prompt of 64, greedily,
with no end token, through the llama.cpp that `forethought ask` loads. The first token ends the
prefill and is not counted among those that are written; medians of the rounds after one that warms
up. Then process start to first token, as `first_token.py` has it. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any, Final

import forethought as ft
from _machine import describe, save
from first_token import QUESTIONS, measure, table
from forethought.checkpoints.bundled import card_of
from forethought.checkpoints.catalogue import find
from forethought.engines.llama_cpp import LlamaCppEngine

NAME: Final = "nano"
CORES: Final = 2
PROMPT: Final = 64
NEW: Final = 512
LEAST_TOKENS: Final = 350.0
"""A second."""
MOST_SECONDS: Final = 0.6
"""From process start to first token."""


def one_round(native: Any, ids: list[int]) -> tuple[float, float]:
    """Seconds to the first token, and tokens a second after it."""
    marks: list[float] = []

    def callback(chunk: Any) -> bool:
        marks.append(time.perf_counter())
        return False

    body = {
        "prompt": ids,
        "n_predict": NEW,
        "stream": True,
        "temperature": 0.0,
        "ignore_eos": True,
        "cache_prompt": False,
        "return_tokens": True,
    }
    began = time.perf_counter()
    native.handle_completions(body, callback)
    return marks[0] - began, (NEW - 1) / (marks[-1] - marks[0])


def writing(rounds: int, threads: int) -> tuple[list[float], list[float]]:
    """Seconds of prefill and tokens a second, of each round."""
    prefill, speeds = [], []
    with ft.load(NAME, threads=threads, context=PROMPT + NEW) as model:
        assert isinstance(model.engine, LlamaCppEngine)
        ids = list(model.prompt(QUESTIONS[NAME]).ids or ())[:PROMPT]
        assert len(ids) == PROMPT
        for turn in range(rounds + 1):
            first, speed = one_round(model.engine.server._native, ids)
            if turn:  # the first warms up
                prefill.append(first)
                speeds.append(speed)
    return prefill, speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=CORES)
    chosen = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    card = card_of(find(NAME))
    assert card is not None
    prefill, speeds = writing(chosen.rounds, chosen.threads)
    tokens, seconds = measure(NAME, chosen.runs, chosen.threads)
    speed, first = statistics.median(speeds), statistics.median(seconds["forethought ask"])
    print(f"{describe()}\nnano {card.sha256[:16]}, {chosen.threads} threads\n")
    print(f"{NEW} new tokens after a prompt of {PROMPT}, {chosen.rounds} rounds")
    print(f"{'':<42}{'median':>9}{'min':>9}{'max':>9}")
    print(f"{'written, tokens/s':<42}{speed:>9.0f}{min(speeds):>9.0f}{max(speeds):>9.0f}")
    print(
        f"{'prefill, ms':<42}{1e3 * statistics.median(prefill):>9.1f}"
        f"{1e3 * min(prefill):>9.1f}{1e3 * max(prefill):>9.1f}\n"
    )
    print(f"prompt {tokens} tokens, {chosen.runs} runs each")
    table(seconds)
    for name, held in (
        (f"at least {LEAST_TOKENS:.0f} tokens/s", speed >= LEAST_TOKENS),
        (f"first token after at most {MOST_SECONDS} s", first <= MOST_SECONDS),
    ):
        print(f"{name}: {'yes' if held else 'NO'}")
    save(
        "nano_speed",
        {
            "sha256": card.sha256,
            "threads": chosen.threads,
            "tokens_per_second": round(speed, 1),
            "rounds": [round(one, 1) for one in speeds],
            "prefill_ms": [round(1e3 * one, 2) for one in prefill],
            "prompt_tokens": tokens,
            "first_token_s": {
                row: round(statistics.median(values), 3) for row, values in seconds.items()
            },
            "runs_s": {row: [round(v, 3) for v in values] for row, values in seconds.items()},
        },
    )


if __name__ == "__main__":
    main()
