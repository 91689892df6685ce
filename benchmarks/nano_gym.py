"""Transfer of nano to a family of reasoning-gym, which it was never shown, beside its base.

    python benchmarks/nano_gym.py RUN [--family leg_counting] [--problems 64] [--samples 4]

Both models are asked through llama.cpp, from f32 GGUFs of the run's folder and of its base
(``RUN/checkpoints/1-pretrain``), at temperature 1 on the same problems with the same seeds;
reasoning-gym grades in the sandbox. Standard errors are over problems. Prints a table and ends
with one JSON line. Needs the extras train and problems, and the program bwrap.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import forethought as ft
from _machine import describe, save
from forethought.checkpoints.export import export_gguf
from forethought.problems.problem import Problem
from forethought.problems.source import LevelledSource
from forethought.recipes.reading import open_adapters


def shares(
    folder: Path, source: LevelledSource, problems: Sequence[Problem], samples: int, threads: int
) -> tuple[list[float], float]:
    """For each problem the share of right samples; the mean length of a thought in tokens."""
    found, thoughts = [], []
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.gguf"
        export_gguf(folder, path, "f32")
        with ft.load(str(path), engine="llama.cpp", threads=threads, slots=samples) as model:
            for number, problem in enumerate(problems):
                replies = model.samples(
                    problem.text, n=samples, seed=1000 * number, temperature=1.0, top_p=1.0
                )
                right = [
                    reply.final_answer is not None
                    and source.verify(problem, reply.final_answer).correct
                    for reply in replies
                ]
                found.append(sum(right) / samples)
                thoughts += [reply.usage.thought_tokens for reply in replies]
    return found, statistics.fmean(thoughts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path, nargs="?", help="the folder of a run")
    parser.add_argument("--family", default="leg_counting")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    if chosen.run is None:
        print("nano_gym: skipped, it needs the folder of a run", file=sys.stderr)
        return
    print(describe())
    result: dict[str, object] = {"family": chosen.family, "samples": chosen.samples}
    with open_adapters() as adapters:
        source = adapters.source(f"reasoning-gym/{chosen.family}", Path(), {})
        problems = list(source.problems(1, range(chosen.problems)))
        print(f"reasoning-gym/{chosen.family}, {len(problems)} problems x {chosen.samples}, T 1\n")
        print(f"{'':8}{'pass@1':>8}{'s.e.':>8}{'thought tokens':>16}")
        for name, folder in (
            ("nano", chosen.run),
            ("base", chosen.run / "checkpoints" / "1-pretrain"),
        ):
            found, thought = shares(folder, source, problems, chosen.samples, chosen.threads)
            mean = statistics.fmean(found)
            error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else 0.0
            print(f"{name:8}{mean:>8.3f}{error:>8.3f}{thought:>16.1f}")
            result[name] = {"pass_at_1": round(mean, 4), "stderr": round(error, 4)}
        adapters.check_health()
    save("nano_gym", result)


if __name__ == "__main__":
    main()
