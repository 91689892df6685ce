"""Equal compute: what the seconds of nano's RL would have bought otherwise, from the same base.

    python benchmarks/nano_control.py RUN --keep DIR --seconds S --arms pretrain,rejection

- ``pretrain``: further pretraining on the same kind of documents, with a new warm-up and decay;
- ``rejection``: one round of rejection sampling, half of the seconds for samples of the base, the
  other half for fine-tuning on what was right and well formed.

S are RL's own seconds in RUN's timings unless given. Steps are as many as RUN's own timings say
fit, so that the rate can decay in time, and samples as many as a short trial of the base says;
what an arm really took is reported.
Evaluations and the making of states are not counted. Each arm is a model folder DIR/ARM that
nano_figures.py reads; one that is there already is kept. DIR/control.json is written after each.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _nano import machine, on_device, save, workshop, write_json
from equal_compute import QUIET, SAMPLING_SHARE, arm, seconds_of
from forethought.engines.protocol import SamplingParameters
from forethought.errors import ForethoughtError, ModelError
from forethought.problems.adapters.adapters import Adapters
from forethought.recipes.reading import LoadedRecipe, open_adapters, read_recipe
from forethought.recipes.run import train
from forethought.training.config import (
    OptimizerConfig,
    PretrainConfig,
    RejectionConfig,
    RLConfig,
)
from forethought.training.judged_samples import judged_samples, pool_for
from forethought.training.policy import noise_seed

ARMS = ("pretrain", "rejection")
BASE = Path("checkpoints") / "1-pretrain"
PURPOSE = 77
"""Number of the stream of problems on which the base's pace is measured; no stage has it."""
MEASURED_BATCHES = 4
"""Samples of the measurement, in times of those side by side."""


def further(run: Path, loaded: LoadedRecipe, seconds: float) -> PretrainConfig:
    """Pretraining for so many seconds."""
    pretrain: PretrainConfig = _stage(loaded, PretrainConfig)
    steps = max(1, round(seconds / _step(run, pretrain)))
    change = {"warmup_steps": min(pretrain.optimizer.warmup_steps, steps // 10),
              "decay_steps": steps // 2}  # fmt: skip
    optimizer = pretrain.optimizer.model_copy(update=change)
    return pretrain.model_copy(update={**QUIET, "steps": steps, "optimizer": optimizer})


@dataclass(frozen=True, slots=True)
class Pace:
    """How the base samples: samples a second, verdicts included, and tokens of a kept one with its
    prompt."""

    samples_per_second: float
    kept_tokens: float


def pace_of(loaded: LoadedRecipe, base: Path, adapters: Adapters) -> Pace:
    """Measured, since RL's samples differ in length from the base's. The first pass captures and
    compiles; the second is long enough for its ragged end to count little."""
    shop, rl = workshop(loaded, base, adapters), _stage(loaded, RLConfig)
    stream = shop.stream(PURPOSE)
    with pool_for(shop.policy, shop.judge()) as pool:
        first = 0
        for batches in (1, MEASURED_BATCHES):
            problems = [
                stream[first + at] for at in range(max(1, batches * rl.rows // rl.group_size))
            ]
            first += len(problems)
            found = judged_samples(
                shop.policy,
                pool,
                problems,
                rl.group_size,
                [noise_seed(PURPOSE, first + at) for at in range(len(problems))],
                SamplingParameters(temperature=1.0, top_p=1.0),
                rl.max_tokens,
                rows=rl.rows,
            )
    lengths = [
        len(shop.policy.sequence(problem, sample).ids)
        for problem, group, judged in zip(problems, found.samples, found.judged, strict=True)
        for sample, one in zip(group, judged, strict=True)
        if one.verdict.correct and one.reply.well_formed
    ]
    if not lengths:
        raise ModelError("nothing that the base samples is right and well formed.")
    taken = found.sampling_seconds + found.verdict_seconds
    return Pace(len(problems) * rl.group_size / taken, sum(lengths) / len(lengths))


def rejection(run: Path, loaded: LoadedRecipe, seconds: float, pace: Pace) -> RejectionConfig:
    """One round of so many seconds. A step of fine-tuning has as many tokens as one of pretraining,
    and is taken to last as long."""
    pretrain, rl = _stage(loaded, PretrainConfig), _stage(loaded, RLConfig)
    steps = max(1, round((1 - SAMPLING_SHARE) * seconds / _step(run, pretrain)))
    samples = SAMPLING_SHARE * seconds * pace.samples_per_second
    return RejectionConfig(
        steps=steps,
        problems=max(1, math.ceil(samples / rl.group_size)),
        group_size=rl.group_size,
        keep=max(1, rl.group_size // 2),
        batch_conversations=max(1, round(pretrain.batch_tokens / pace.kept_tokens)),
        max_tokens=rl.max_tokens,
        rows=rl.rows,
        micro_batch_tokens=pretrain.micro_batch_tokens,
        optimizer=OptimizerConfig(
            learning_rate=pretrain.optimizer.learning_rate / 4,
            warmup_steps=min(10, steps),
            decay_steps=steps // 2,
        ),
        evaluate_every=QUIET["evaluate_every"],
        save_every=QUIET["save_every"],
    )


def _stage(loaded: LoadedRecipe, kind: Any) -> Any:
    return next(stage for stage in loaded.recipe.stages if isinstance(stage, kind))


def _step(run: Path, pretrain: PretrainConfig) -> float:
    """Seconds of a step of pretraining, as the run had them."""
    taken = seconds_of(run, "pretrain")
    if not taken:
        raise SystemExit(f"nano_control: {run / 'timings.jsonl'} tells of no pretraining")
    return sum(taken) / len(taken)


def figures_of(out: Path, planned: float) -> dict[str, Any]:
    """What an arm took and reached on the run's own evaluation."""
    kind = read_recipe(str(out / "recipe.toml")).recipe.stages[0].kind
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if line.get("pass_at_1") is not None)
    timings = [json.loads(line) for line in (out / "timings.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {
        "planned_seconds": planned,
        "seconds": sum(seconds_of(out, kind)),
        "sampling_seconds": sum(line.get("seconds/sampling", 0.0) for line in timings),
        "steps": last["step"],
        "pass_at_1": last["pass_at_1"],
        "stderr": last["pass_at_1_stderr"],
    }
    kept = [line["kept"] for line in lines if line.get("kept")]
    if kept:
        found["kept"] = kept[-1]
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path, nargs="?", help="the folder of a finished run")
    parser.add_argument(
        "--keep", type=Path, default=Path("nano_control"), help="folder of the arms"
    )
    parser.add_argument("--seconds", type=float, help="of each arm; RL's own unless given")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--device", help="instead of the recipe's")
    parser.add_argument("--save", action="store_true", help="keep what is printed in results/")
    arguments = parser.parse_args()
    if arguments.run is None:
        print("nano_control: skipped, it needs the folder of a run", file=sys.stderr)
        return
    run, names = arguments.run, [name for name in arguments.arms.split(",") if name]
    if unknown := set(names) - set(ARMS):
        parser.error(f"no such arm: {', '.join(sorted(unknown))}")
    if not (run / BASE / "config.json").is_file():
        parser.error(f"{run / BASE} holds no base")
    loaded = on_device(read_recipe(str(run / "recipe.toml")), arguments.device)
    seconds = arguments.seconds or sum(seconds_of(run, "rl"))
    if not seconds:
        parser.error(f"{run} has no RL whose seconds could be taken: give --seconds")
    folder: Path = arguments.keep
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "control.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {"arms": {}}
    found |= {"benchmark": "nano_control", "machine": machine()}
    for name in names:
        out = folder / name
        if (out / "config.json").is_file():
            print(f"{name}: {out} is there already and is kept", file=sys.stderr)
        else:
            # What was left unfinished is not gone on with: seconds are counted in one go.
            if out.exists():
                parser.error(f"{out} holds an unfinished arm: remove it first")
            try:
                if name == "pretrain":
                    stage: Any = further(run, loaded, seconds)
                    seed = loaded.recipe.seed + 1
                else:
                    with open_adapters() as adapters:
                        pace = pace_of(loaded, run / BASE, adapters)
                    stage, seed = rejection(run, loaded, seconds, pace), loaded.recipe.seed
                train(arm(loaded.recipe, run / BASE, stage, seed, folder), out)
            except ForethoughtError as error:  # The other arm is worth having all the same.
                found["arms"][name] = {"failed": str(error)}
                write_json(kept, found)
                continue
        found["arms"][name] = figures_of(out, seconds)
        write_json(kept, found)
    (folder / "arm.toml").unlink(missing_ok=True)
    print(f"{found['machine']}\nfrom the one base, planned for {seconds:.0f} s each\n")
    print(
        f"{'arm':12}{'seconds':>9}{'sampling':>10}{'steps':>8}{'kept':>8}{'pass@1':>9}{'s.e.':>8}"
    )
    for name, one in found["arms"].items():
        if "failed" in one:
            print(f"{name:12} {one['failed'][:300]}")
            continue
        print(
            f"{name:12}{one['seconds']:>9.1f}{one['sampling_seconds']:>10.1f}{one['steps']:>8}"
            f"{one.get('kept', '-'):>8}{one['pass_at_1']:>9.3f}{one['stderr']:>8.3f}"
        )
    print()
    save("nano_control", kept, {"arms": found["arms"]}, keep=arguments.save)


if __name__ == "__main__":
    main()
