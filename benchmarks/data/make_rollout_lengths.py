"""Draws benchmarks/data/rollout_lengths.json, once: lengths of 2048 samples for measurements.

    python benchmarks/data/make_rollout_lengths.py

No record of a real rollout holds the length of every sample, only means and maxima (mean 158
tokens after 57 steps of a first R1-Zero trial, at most 640 allowed). So they are drawn: lognormal
with sigma 0.6, clipped at 640, with the mean brought to 158 by bisection on mu.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

SAMPLES, MEAN, MOST, SIGMA, SEED = 2048, 158.0, 640, 0.6, 20261126


def drawn(mu: float) -> list[int]:
    rng = random.Random(SEED)
    return [min(MOST, max(2, round(math.exp(rng.gauss(mu, SIGMA))))) for _ in range(SAMPLES)]


def main() -> None:
    low, high = math.log(MEAN) - 2, math.log(MEAN) + 1
    for _ in range(60):
        middle = (low + high) / 2
        if sum(drawn(middle)) / SAMPLES < MEAN:
            low = middle
        else:
            high = middle
    lengths = drawn(high)
    record = {
        "what": "tokens of each sample, the end token counted; 128 prompts x 16 samples in order",
        "source": "drawn, not observed: lognormal, clipped; see make_rollout_lengths.py",
        "sigma": SIGMA,
        "mu": round(high, 4),
        "seed": SEED,
        "mean": round(sum(lengths) / SAMPLES, 2),
        "most": MOST,
        "at_most": sum(length == MOST for length in lengths),
        "lengths": lengths,
    }
    Path(__file__).with_name("rollout_lengths.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
