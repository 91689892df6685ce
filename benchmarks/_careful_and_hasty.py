"""Careful and hasty samples of a finished run of tiny-zero, told apart, for trials of the recipe.

A thought of dots alone is hasty, every other one careful. For the base, the model after RL and one
round of rejection sampling from the base (that of equal_compute.py), a line for each family says

- ``share``: how many of the samples are careful,
- ``a``: how many of the careful ones are right,
- ``g``: how many of the hasty ones are, which are guesses,
- ``all``: how many of all.

``rl train acc`` is the accuracy on RL's own samples, over every ten steps. Problems are from the
training split, so that recipes can be compared by these figures without a look at the held-out
ones. Pretraining draws problems with so few digits again and again: held-out figures are lower.

    python benchmarks/_careful_and_hasty.py runs/tiny
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from equal_compute import arm, arms, seconds_of
from forethought.evaluation.held_out import evaluate
from forethought.problems.stream import ProblemStream
from forethought.recipes.reading import LoadedRecipe, open_adapters, read_recipe
from forethought.recipes.run import train
from forethought.recipes.workshop import Workshop
from forethought.training.config import RejectionConfig
from forethought.training.judged_samples import pool_for

PROBLEMS = 300
SAMPLES = 4
SEED = 987_654_321
"""Of the stream of problems, which no run uses."""
STEPS = 10
"""Of RL, to a figure of ``rl train acc``."""


def tell_apart(loaded: LoadedRecipe, model: Path, name: str) -> None:
    """Print the figures of one model."""
    recipe = loaded.recipe.model_copy(update={"base": str(model.resolve()), "model": None})
    there = LoadedRecipe(recipe, loaded.folder, loaded.text, loaded.digest, loaded.source)
    with open_adapters() as adapters:
        shop = Workshop(there, model, adapters)
        stream = ProblemStream(
            shop.families, SEED, levels=recipe.problems.levels, language=recipe.problems.language
        )
        problems = [stream[number] for number in range(PROBLEMS)]
        config = recipe.evaluation.model_copy(update={"samples": SAMPLES})
        with pool_for(shop.policy, shop.judge()) as pool:
            found = evaluate(shop.policy, pool, problems, config, rows=256)
    figures = found.metrics
    print(
        f"[{name}] pass {figures['pass_at_1']:.3f} form {figures['reward_format']:.3f} "
        f"thought {figures['thought_tokens']:.1f} trunc {figures['truncated']:.3f}"
    )
    for family in [*sorted({problem.family for problem in problems}), "all"]:
        careful: list[bool] = []
        hasty: list[bool] = []
        for problem, group in zip(problems, found.judged, strict=True):
            if family in (problem.family, "all"):
                for one in group:
                    thinks = bool(one.reply.thought.strip(" .\n"))
                    (careful if thinks else hasty).append(one.verdict.correct)
        both = careful + hasty
        print(
            f"    {family:20} share {len(careful) / len(both):.2f} a {_mean(careful):.2f} "
            f"g {_mean(hasty):.2f} all {_mean(both):.3f}"
        )


def accuracies(run: Path) -> list[float]:
    """The accuracy of RL's samples, over every ten steps."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [
        line["reward_accuracy"]
        for line in lines
        if line["stage"] == "rl" and line["reward"] is not None
    ]
    return [round(_mean(found[at : at + STEPS]), 2) for at in range(0, len(found), STEPS)]


def _mean(values: list[bool] | list[float]) -> float:
    return sum(values) / max(1, len(values))


def main() -> None:
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/tiny")
    loaded = read_recipe(str(run / "recipe.toml"))
    took = {stage: sum(seconds_of(run, stage)) for stage in ("pretrain", "rl")}
    print(" ".join(f"{stage} s {seconds:.1f}" for stage, seconds in took.items()))
    print("rl train acc", accuracies(run))
    base = run / "checkpoints" / "1-pretrain"
    tell_apart(loaded, base, "base")
    tell_apart(loaded, run, "rl")
    folder = Path(tempfile.mkdtemp(prefix="forethought-careful-"))
    try:
        stage, seed = next(
            (stage, seed)
            for stage, seed in arms(run).values()
            if isinstance(stage, RejectionConfig)
        )
        one = arm(loaded.recipe, base, stage, seed, folder)
        train(one, folder / "rejection")
        spent = sum(seconds_of(folder / "rejection", one.recipe.stages[0].kind))
        text = (folder / "rejection" / "metrics.jsonl").read_text()
        kept = {json.loads(line).get("kept") for line in text.splitlines()} - {None}
        print(
            f"rejection: problems {stage.problems} steps {stage.steps} kept {sorted(kept)} "
            f"s {spent:.1f}"
        )
        tell_apart(one, folder / "rejection", "rejection")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
