"""Equal compute: what the seconds of nano's RL would have bought otherwise, from the same base.

    python benchmarks/nano_control.py RUN --keep DIR --seconds S --arms pretrain,rejection

- ``pretrain``: further pretraining on the same kind of documents, with a new warm-up and decay;
- ``rejection``: one round of rejection sampling, half of the seconds for samples of the base, the
  other half for fine-tuning on what was right and well formed.

S are RL's own seconds in RUN's timings unless given. Steps and samples are those that RUN's own
timings say fit, so that the rate can decay in time; what an arm really took is reported.
Evaluations and the making of states are not counted. Each arm is a model folder DIR/ARM that
nano_figures.py reads; one that is there already is kept. DIR/control.json is written after each.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from _nano import machine, on_device, save, write_json
from equal_compute import SAMPLING_SHARE, arm, sampling_rate, seconds_of
from forethought.errors import ForethoughtError
from forethought.recipes.reading import LoadedRecipe, read_recipe
from forethought.recipes.run import train
from forethought.training.config import (
    OptimizerConfig,
    PretrainConfig,
    RejectionConfig,
    RLConfig,
)

ARMS = ("pretrain", "rejection")
BASE = Path("checkpoints") / "1-pretrain"
CONVERSATION_TOKENS = 256
"""About the length of a kept sample with its prompt: as many go into a step of fine-tuning as fill
a step of pretraining."""
QUIET = {"evaluate_every": 0, "save_every": 10**6}


def further(run: Path, loaded: LoadedRecipe, seconds: float) -> PretrainConfig:
    """Pretraining for so many seconds."""
    pretrain = _stage(loaded, PretrainConfig)
    steps = max(1, round(seconds / _step(run, pretrain)))
    change = {"warmup_steps": min(pretrain.optimizer.warmup_steps, steps // 10),
              "decay_steps": steps // 2}  # fmt: skip
    optimizer = pretrain.optimizer.model_copy(update=change)
    return pretrain.model_copy(update={**QUIET, "steps": steps, "optimizer": optimizer})


def rejection(run: Path, loaded: LoadedRecipe, seconds: float, rate: float) -> RejectionConfig:
    """One round of so many seconds; ``rate``: seconds of a sample."""
    pretrain, rl = _stage(loaded, PretrainConfig), _stage(loaded, RLConfig)
    steps = max(1, round((1 - SAMPLING_SHARE) * seconds / _step(run, pretrain)))
    return RejectionConfig(
        steps=steps,
        problems=max(1, math.ceil(SAMPLING_SHARE * seconds / rate / rl.group_size)),
        group_size=rl.group_size,
        keep=max(1, rl.group_size // 2),
        batch_conversations=max(16, pretrain.batch_tokens // CONVERSATION_TOKENS),
        max_tokens=rl.max_tokens,
        rows=rl.rows,
        micro_batch_tokens=pretrain.micro_batch_tokens,
        optimizer=OptimizerConfig(
            learning_rate=pretrain.optimizer.learning_rate / 4,
            warmup_steps=min(10, steps),
            decay_steps=steps // 2,
        ),
        **QUIET,
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
    parser.add_argument(
        "--sample-rate", type=float, help="samples a second; the RL's own unless given"
    )
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
    if arguments.sample_rate is None and not seconds_of(run, "rl") and "rejection" in names:
        parser.error(f"{run} has no RL that tells how fast samples are: give --sample-rate")
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
            if name == "pretrain":
                stage: Any = further(run, loaded, seconds)
                seed = loaded.recipe.seed + 1
            else:
                rate = 1 / arguments.sample_rate if arguments.sample_rate else sampling_rate(run)
                stage, seed = rejection(run, loaded, seconds, rate), loaded.recipe.seed
            # What was left unfinished is not gone on with: seconds are counted in one go.
            if out.exists():
                parser.error(f"{out} holds an unfinished arm: remove it first")
            try:
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
