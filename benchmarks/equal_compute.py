"""Equal compute: what the seconds that tiny-zero gives to RL would have bought otherwise.

From the one base model of a finished run, the same seconds on the same cores go into

- further pretraining on the same documents (a new warm-up and decay),
- rejection sampling: sample the base, keep what is right and well formed, fine-tune on it,
- the same in four rounds, each with the newest weights (for what it is worth),
- RL with two seeds,

and 60 seconds into further pretraining, which says whether the base had converged.

Every arm is evaluated on the same held-out problems with the same noise; standard errors are over
problems, and differences are paired. Evaluations and the making of states are not counted.

    python benchmarks/equal_compute.py runs/tiny          # prints a table, ends with one JSON line
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from _machine import describe, save
from forethought.evaluation.held_out import evaluate
from forethought.recipes.canonical import canonical_text
from forethought.recipes.reading import LoadedRecipe, open_adapters, read_recipe
from forethought.recipes.recipe import Recipe
from forethought.recipes.run import train
from forethought.recipes.workshop import Workshop
from forethought.training.config import (
    OptimizerConfig,
    PretrainConfig,
    RejectionConfig,
    RLConfig,
)
from forethought.training.judged_samples import pool_for

SAMPLES = 4
"""Of each held-out problem in the final evaluations."""
PLATEAU_SECONDS = 60
ROUNDS = 4
SAMPLING_SHARE = 0.5
"""Of rejection sampling's seconds: the rest goes into fine-tuning on what was kept."""
QUIET = {"evaluate_every": 0, "save_every": 10**6}


def seconds_of(run: Path, stage: str) -> list[float]:
    """What each optimiser step of a stage took, evaluations apart."""
    lines = [json.loads(line) for line in (run / "timings.jsonl").read_text().splitlines()]
    return [line["seconds"] for line in lines if line["stage"] == stage and "seconds" in line]


def sampling_rate(run: Path) -> float:
    """Seconds of one RL sample, verdict included."""
    lines = [json.loads(line) for line in (run / "timings.jsonl").read_text().splitlines()]
    spent: float = sum(
        line["seconds/sampling"] + line["seconds/verdicts"]
        for line in lines
        if line["stage"] == "rl" and "seconds/sampling" in line
    )
    recipe = read_recipe(str(run / "recipe.toml")).recipe
    rl = next(stage for stage in recipe.stages if isinstance(stage, RLConfig))
    return spent / (rl.steps / rl.minibatches * rl.problems_per_rollout * rl.group_size)


def arm(recipe: Recipe, base: Path, stage: object, seed: int, folder: Path) -> LoadedRecipe:
    """A recipe of one stage that starts from the base."""
    made = recipe.model_copy(
        update={
            "base": str(base.resolve()),
            "model": None,
            "stages": (stage,),
            "seed": seed,
            "evaluation": recipe.evaluation.model_copy(update={"film": 0}),
        }
    )
    path = folder / "arm.toml"
    path.write_text(canonical_text(made))
    return read_recipe(str(path))


def measure(loaded: LoadedRecipe, out: Path) -> tuple[float, list[float]]:
    """Run an arm; its seconds of training, and the held-out verdicts of its model by problem."""
    train(loaded, out)
    spent = sum(seconds_of(out, loaded.recipe.stages[0].kind))
    return spent, verdicts(loaded, out)


def verdicts(loaded: LoadedRecipe, model: Path) -> list[float]:
    """The share of right samples of each held-out problem."""
    recipe = loaded.recipe.model_copy(update={"base": str(model.resolve()), "model": None})
    there = LoadedRecipe(recipe, loaded.folder, loaded.text, loaded.digest, loaded.source)
    with open_adapters() as adapters:
        shop = Workshop(there, model, adapters)
        config = recipe.evaluation.model_copy(update={"samples": SAMPLES})
        with pool_for(shop.policy, shop.judge()) as pool:
            return list(evaluate(shop.policy, pool, shop.held_out(), config, rows=256).correct)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def arms(run: Path) -> dict[str, tuple[object, int]]:
    """What is compared: a stage and a seed by name, each meant to take the seconds of RL."""
    recipe = read_recipe(str(run / "recipe.toml")).recipe
    rl = next(stage for stage in recipe.stages if isinstance(stage, RLConfig))
    pretrain = next(stage for stage in recipe.stages if isinstance(stage, PretrainConfig))
    budget = sum(seconds_of(run, "rl"))
    step = sum(seconds_of(run, "pretrain")) / pretrain.steps
    problems = math.ceil(SAMPLING_SHARE * budget / sampling_rate(run) / rl.group_size)
    tuned = math.ceil((1 - SAMPLING_SHARE) * budget / step)
    again = rl.model_copy(update=QUIET)

    def further(seconds: float) -> PretrainConfig:
        steps = math.ceil(seconds / step)
        change = {"warmup_steps": min(20, steps), "decay_steps": steps // 2}
        optimizer = pretrain.optimizer.model_copy(update=change)
        return pretrain.model_copy(update={**QUIET, "steps": steps, "optimizer": optimizer})

    def rejection(rounds: int) -> RejectionConfig:
        steps = math.ceil(tuned / rounds)
        return RejectionConfig(
            steps=steps,
            rounds=rounds,
            problems=math.ceil(problems / rounds),
            group_size=rl.group_size,
            keep=rl.group_size // 2,
            batch_conversations=48,
            max_tokens=rl.max_tokens,
            micro_batch_tokens=pretrain.micro_batch_tokens,
            optimizer=OptimizerConfig(
                learning_rate=pretrain.optimizer.learning_rate / 4,
                warmup_steps=min(10, steps),
                decay_steps=min(steps, tuned // 2),
            ),
            evaluate_every=QUIET["evaluate_every"],
            save_every=QUIET["save_every"],
        )

    return {
        f"{PLATEAU_SECONDS} s of pretraining": (further(PLATEAU_SECONDS), recipe.seed + 1),
        "further pretraining": (further(budget), recipe.seed + 1),
        "rejection sampling, then SFT": (rejection(1), recipe.seed),
        f"the same in {ROUNDS} rounds": (rejection(ROUNDS), recipe.seed),
        "RL, seed 1": (again, recipe.seed),
        "RL, seed 2": (again, recipe.seed + 1),
    }


def main() -> None:
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/tiny")
    if not run.exists():
        train(read_recipe("tiny-zero"), run)
    base = run / "checkpoints" / "1-pretrain"
    original = read_recipe(str(run / "recipe.toml"))
    budget = sum(seconds_of(run, "rl"))
    print(describe(), f"; {original.recipe.threads} threads, torch {torch.__version__}", sep="")
    folder = Path(tempfile.mkdtemp(prefix="forethought-equal-compute-"))
    started = time.perf_counter()
    results: dict[str, tuple[float, list[float]]] = {}
    try:
        for number, (name, (stage, seed)) in enumerate(arms(run).items()):
            loaded = arm(original.recipe, base, stage, seed, folder)
            if not results:
                results["base"] = (0.0, verdicts(loaded, base))
            results[name] = measure(loaded, folder / str(number))
            print(f"  {name}: {results[name][0]:.0f} s", file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report(results, budget, time.perf_counter() - started)


def report(results: dict[str, tuple[float, list[float]]], budget: float, took: float) -> None:
    figures: dict[str, object] = {"budget_seconds": round(budget, 1)}
    print(f"\nRL of the run took {budget:.0f} s. {len(results['base'][1])} held-out problems, "
          f"{SAMPLES} samples each.\n")  # fmt: skip
    print(f"| from the one base | seconds | pass@1 | standard error |\n|{'---|' * 4}")
    for name, (seconds, values) in results.items():
        mean, error = mean_and_error(values)
        print(f"| {name} | {seconds:.0f} | {mean:.3f} | {error:.3f} |")
        figures[name] = {"seconds": round(seconds, 1), "pass_at_1": mean, "stderr": error}
    print(f"\n| ahead by | pass@1 | standard error (paired) |\n|{'---|' * 3}")
    rounds = f"the same in {ROUNDS} rounds"
    for mine in ("RL, seed 1", "RL, seed 2"):
        for other in ("further pretraining", "rejection sampling, then SFT", rounds):
            pairs = zip(results[mine][1], results[other][1], strict=True)
            mean, error = mean_and_error([a - b for a, b in pairs])
            print(f"| {mine} over {other} | {mean:.3f} | {error:.3f} |")
            figures[f"{mine} - {other}"] = {"difference": mean, "stderr": error}
    print(f"\nAll of it took {took:.0f} s.")
    save("equal_compute", figures)


if __name__ == "__main__":
    main()
