"""Sampling on the CPU: our llama.cpp engine beside the raw xllamacpp Server it stands on.

    python benchmarks/cpu_sampling.py [--runs 5] [--threads 2]

SmolLM2-135M, 64 new tokens for each of n = 1, 4, 16 samples of one prompt. Both load the model in
the same way (one unified cache, flash attention on, the same threads), take turns round by round,
and draw with the same parameters and seeds, so that both compute the same tokens: that is checked.
The raw server hands its chunks to a callback that does nothing; ours splits thought from answer,
finds every token's id and probability, and counts. Prints a table and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import forethought as ft
from _machine import describe, save
from forethought.engines.llama_cpp import LlamaCppEngine

NEW_TOKENS = 64
SAMPLES = (1, 4, 16)
PROMPT = "Once upon a time, in a forest far away, there lived a fox who"


def raw(native: Any, ids: tuple[int, ...], n: int, seed: int) -> tuple[float, str]:
    """Seconds and text of the raw server's Python API."""
    texts: dict[int, list[str]] = {}

    def callback(chunk: Any) -> bool:
        choice = chunk["choices"][0]
        texts.setdefault(choice["index"], []).append(choice["text"])
        return False

    body: dict[str, Any] = {
        "prompt": list(ids),
        "n_predict": NEW_TOKENS,
        "stream": True,
        "seed": seed,
        "temperature": 0.6,
        "top_k": 0,
        "top_p": 0.95,
        "min_p": 0.0,
        "samplers": ["temperature", "top_k", "top_p", "min_p"],
    }
    if n > 1:
        body["n_cmpl"] = n
    started = time.perf_counter()
    native.handle_completions(body, callback)
    return time.perf_counter() - started, "".join(texts[0])


def ours(model: ft.Model, prompt: ft.Prompt, n: int, seed: int) -> tuple[float, str, int]:
    """Seconds, text and tokens of the engine, through the events a display consumes."""
    started = time.perf_counter()
    handle = model.submit(prompt, n=n, seed=seed, max_tokens=NEW_TOKENS)
    for _batch in handle.batches():
        pass
    spent = time.perf_counter() - started
    samples = handle.wait()
    return spent, samples[0].text, sum(s.usage.completion_tokens for s in samples)


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    model = ft.load("smollm2:135m", slots=16, threads=arguments.threads, context=512)
    engine = model.engine
    assert isinstance(engine, LlamaCppEngine)
    # "bare": every token is answer, so that nothing is forced and both compute the same
    prompt = model.prompt(PROMPT, template="bare")
    assert prompt.ids is not None
    native = engine.server._native
    print(
        f"{describe()}\nSmolLM2-135M Q4_1, {NEW_TOKENS} new tokens, {arguments.threads} threads\n"
    )
    print(f"{'n':>3}{'raw tokens/s':>14}{'ours tokens/s':>15}{'ours / raw, median [min, max]':>32}")
    rows = []
    for n in SAMPLES:
        pairs: list[tuple[float, float]] = []
        seed = 0
        while len(pairs) <= arguments.runs:
            seed += 100
            # the order changes, so that neither always follows the other
            if len(pairs) % 2:
                raw_s, raw_text = raw(native, prompt.ids, n, seed)
                our_s, our_text, counted = ours(model, prompt, n, seed)
            else:
                our_s, our_text, counted = ours(model, prompt, n, seed)
                raw_s, raw_text = raw(native, prompt.ids, n, seed)
            if raw_text != our_text:
                raise SystemExit("the two did not compute the same tokens")
            if counted == n * NEW_TOKENS:  # else a story ended early: another seed
                pairs.append((raw_s, our_s))
        del pairs[0]  # the first round warms up
        ratios = [raw_s / our_s for raw_s, our_s in pairs]
        row = {
            "n": n,
            "raw_tokens_per_s": round(n * NEW_TOKENS / statistics.median(p[0] for p in pairs), 1),
            "our_tokens_per_s": round(n * NEW_TOKENS / statistics.median(p[1] for p in pairs), 1),
            "ratio_median": round(statistics.median(ratios), 3),
            "ratio_min": round(min(ratios), 3),
            "ratio_max": round(max(ratios), 3),
        }
        rows.append(row)
        spread = f"{row['ratio_median']:.3f} [{row['ratio_min']:.3f}, {row['ratio_max']:.3f}]"
        print(f"{n:>3}{row['raw_tokens_per_s']:>14}{row['our_tokens_per_s']:>15}{spread:>32}")
    model.close()
    save("cpu_sampling", {"threads": arguments.threads, "runs": arguments.runs, "rows": rows})


if __name__ == "__main__":
    main()
