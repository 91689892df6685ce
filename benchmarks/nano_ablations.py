"""What each choice of nano's RL is worth: seconds of RL from one saved base, choice by choice.

    python benchmarks/nano_ablations.py BASE_RUN --seconds 30 --only G4,G8,G16 --out FILE.json

BASE_RUN is the folder of a run; its base is in checkpoints/1-pretrain (or it is a model itself),
its recipe has an RL stage. Every arm is that stage with one thing changed, for the same seconds
from its second step on (the first compiles and captures, and is counted as one step of the usual
length), without decay of the rate. All are evaluated on the same held-out problems with the same
noise. FILE is written after each arm; arms that are in it are not computed again. ``--only list``
says which there are.

Arms named in NETWORKS train a base of their own, each with ``--dense-seconds`` of pretraining and
as many of RL: ``moe-60`` is the recipe's network, ``dense-60`` one without experts whose dense
layers have the parameters that a token uses, the others are shapes of nano_shapes.py. ``dense``
stands for the first two.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from _nano import (
    Clock,
    held_out,
    in_turn,
    machine,
    mean_error,
    on_device,
    over_families,
    rows_of,
    save,
    with_recipe,
    workshop,
    write_json,
)
from forethought.checkpoints.network_config import DeepseekConfig
from forethought.checkpoints.network_tensors import count_parameters
from forethought.errors import ForethoughtError, UserError
from forethought.evaluation.held_out import evaluate
from forethought.problems.adapters.adapters import Adapters
from forethought.problems.problem import Problem
from forethought.recipes.reading import open_adapters, read_recipe
from forethought.recipes.recipe import Recipe
from forethought.recipes.workshop import Workshop
from forethought.training.config import PretrainConfig, RLConfig
from forethought.training.judged_samples import pool_for
from forethought.training.losses import LossConfig, Preset
from forethought.training.stage import Stage

FOREVER: Final = 10**6
"""Steps of a stage that seconds end."""
PAPER_MINIBATCHES: Final = 16
"""R1-Zero: 8,192 samples of a rollout in 16 minibatches of 512."""
CALIBRATION: Final = (4, 8)
"""Steps of pretraining that warm up, and that are then timed."""
Change = Callable[[RLConfig], RLConfig]
Figures = dict[str, Any]


def group_of(size: int) -> Change:
    """Another size of groups, with as many samples a rollout."""

    def change(rl: RLConfig) -> RLConfig:
        samples = rl.problems_per_rollout * rl.group_size
        problems = max(1, samples // size // rl.minibatches) * rl.minibatches
        return _changed(rl, problems_per_rollout=problems, group_size=size)

    return change


def format_of(weight: float) -> Change:
    return lambda rl: _changed(rl, reward=rl.reward.model_copy(update={"format": weight}))


def preset(name: Preset) -> Change:
    return lambda rl: _changed(rl, loss=LossConfig(preset=name))


def kl_of(beta: float) -> Change:
    """The recipe's loss with or without a divergence."""

    def change(rl: RLConfig) -> RLConfig:
        keys = {**rl.loss.model_dump(), "kl": "k3" if beta else "none", "beta": beta}
        return _changed(rl, loss=LossConfig.model_validate(keys))

    return change


def paper(rl: RLConfig) -> RLConfig:
    """R1-Zero's loss and its 16 minibatches a rollout, as far as the problems allow."""
    share = next(n for n in range(PAPER_MINIBATCHES, 0, -1) if rl.problems_per_rollout % n == 0)
    return _changed(rl, loss=LossConfig(preset="paper"), minibatches=share)


def _changed(rl: RLConfig, **keys: object) -> RLConfig:
    """Checked anew: `model_copy` takes anything."""
    return RLConfig.model_validate({**{name: getattr(rl, name) for name in type(rl).model_fields},
                                    **keys})  # fmt: skip


ARMS: Final[dict[str, Change]] = {
    "recipe": lambda rl: rl,
    "paper": preset("paper"),
    "paper-16-minibatches": paper,
    "dr_grpo": preset("dr_grpo"),
    "dapo": preset("dapo"),
    "grpo": preset("grpo"),
    "token": preset("token"),
    "G4": group_of(4),
    "G8": group_of(8),
    "G16": group_of(16),
    "format0.1": format_of(0.1),
    "format1.0": format_of(1.0),
    "kl-on": kl_of(0.001),
    "kl-off": kl_of(0.0),
}
"""What each does to the recipe's stage of RL. The most informative first."""
DENSE: Final = ("moe-60", "dense-60")


def shape(**change: int) -> Callable[[Recipe], DeepseekConfig]:
    """The recipe's network with other sizes."""
    return lambda recipe: _experts(recipe).model_copy(update=change)


def dense(recipe: Recipe) -> DeepseekConfig:
    """The recipe's network without experts: every layer is dense, as wide as makes the parameters
    of all together what a token uses."""
    model = _experts(recipe)
    layers, first = model.num_hidden_layers, model.first_k_dense_replace
    used = (model.num_experts_per_tok + model.n_shared_experts) * model.moe_intermediate_size
    width = (first * model.intermediate_size + (layers - first) * used) / layers
    change = {"first_k_dense_replace": layers, "intermediate_size": max(8, round(width / 8) * 8)}
    return model.model_copy(update=change)


def _experts(recipe: Recipe) -> DeepseekConfig:
    if not isinstance(recipe.model, DeepseekConfig):
        raise SystemExit("nano_ablations: the recipe's network has no experts")
    return recipe.model


NETWORKS: Final[dict[str, Callable[[Recipe], DeepseekConfig]]] = {
    "moe-60": shape(),
    "dense-60": dense,
    "L6m160-60": shape(num_hidden_layers=6, moe_intermediate_size=160),
    "L6E8m288-60": shape(num_hidden_layers=6, n_routed_experts=8, moe_intermediate_size=288),
}
"""What trains from nothing: equal GPU time for each."""


# Seconds of a stage


@dataclass(frozen=True, slots=True)
class Spent:
    steps: int
    seconds: float
    """Without the first step."""
    first: float
    tokens: int
    last: Figures


def run_for(stage: Stage, seconds: float, steps: int = FOREVER) -> Spent:
    """Steps for so many seconds, or so many steps."""
    _wait()
    began = time.perf_counter()
    result = stage.step()
    _wait()
    started = time.perf_counter()
    first, done, tokens, last = started - began, 1, result.tokens, dict(result.metrics)
    while done < steps:
        spent = time.perf_counter() - started
        # The first step is one of the usual length.
        usual = spent / (done - 1) if done > 1 else 0.0
        if spent + usual >= seconds and stage.resumable:
            break
        result = stage.step()
        done, tokens = done + 1, tokens + result.tokens
        last |= {key: value for key, value in result.metrics.items() if value is not None}
    _wait()
    return Spent(done, time.perf_counter() - started, first, tokens, last)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# Arms


class Ablations:
    """The base, the problems, and what arms found."""

    def __init__(self, arguments: argparse.Namespace, adapters: Adapters) -> None:
        self.arguments, self.adapters = arguments, adapters
        self.loaded = on_device(read_recipe(str(arguments.run / "recipe.toml")), arguments.device)
        recipe = self.loaded.recipe
        self.rl: RLConfig = next(s for s in recipe.stages if isinstance(s, RLConfig))
        base = arguments.run / "checkpoints" / "1-pretrain"
        self.base = base if (base / "config.json").is_file() else arguments.run
        sources = self.loaded.sources(adapters)
        each = -(-arguments.problems // len(sources))
        self.problems = in_turn(held_out(sources, each, recipe))
        self.clock = Clock(arguments.seconds_limit)
        out: Path = arguments.out
        self.found: Figures = json.loads(out.read_text()) if out.is_file() else {"arms": {}}
        same = {
            "seconds": arguments.seconds,
            "problems": len(self.problems),
            "samples": arguments.samples,
        }
        for key, value in same.items():
            if self.found.get(key, value) != value:
                raise UserError(
                    f"{out} has arms with {key} {self.found[key]}, and {value} is asked for now: "
                    "name another --out."
                )
        self.found |= {
            "benchmark": "nano_ablations", "machine": machine(), **same, "missing": []
        }  # fmt: skip

    def run(self, names: Sequence[str]) -> None:
        if any(name not in NETWORKS for name in names):
            self._keep("base", self._of_base)
        for seed in self.arguments.seeds:
            for name in names:
                if name in NETWORKS:
                    continue
                changed = ARMS[name](self.rl)
                self._keep(f"{name}, seed {seed}", partial(self._of_rl, changed, seed))
        for name in names:
            if name in NETWORKS:
                self._keep(name, partial(self._from_nothing, name))

    def _keep(self, name: str, compute: Callable[[], Figures]) -> None:
        if name in self.found["arms"] and "failed" not in self.found["arms"][name]:
            return
        if self.clock.left <= 0:
            self.found["missing"].append(name)
        else:
            began = time.perf_counter()
            try:
                figures = compute()
            except (ForethoughtError, torch.OutOfMemoryError) as error:
                figures = {"failed": str(error)}
            self.found["arms"][name] = {**figures, "whole": time.perf_counter() - began}
            print(f"  {name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            gc.collect()  # Graphs and caches of this arm's samplers.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        write_json(self.arguments.out, self.found)

    def _of_base(self) -> Figures:
        return self._evaluated(workshop(self.loaded, self.base, self.adapters))

    def _of_rl(self, rl: RLConfig, seed: int) -> Figures:
        recipe = self.loaded.recipe.model_copy(update={"seed": seed})
        shop = workshop(with_recipe(self.loaded, recipe), self.base, self.adapters)
        return self._trained(shop, rl, self.arguments.seconds)

    def _trained(self, shop: Workshop, rl: RLConfig, seconds: float) -> Figures:
        stage, optimizer = shop.stage(_without_end(rl))
        try:
            spent = run_for(stage, seconds)
        finally:
            stage.close()
            optimizer.close()
        return {
            "steps": spent.steps,
            "seconds": spent.seconds,
            "first_step": spent.first,
            "sampled_tokens": spent.tokens,
            "kl_sampler_trainer": spent.last.get("kl_sampler_trainer"),
            "reward_accuracy": spent.last.get("reward_accuracy"),
            **self._evaluated(shop),
        }

    def _evaluated(self, shop: Workshop) -> Figures:
        recipe = self.loaded.recipe
        config = recipe.evaluation.model_copy(
            update={"samples": self.arguments.samples, "temperature": 1.0, "top_p": 1.0}
        )
        with pool_for(shop.policy, shop.judge()) as pool:
            found = evaluate(
                shop.policy, pool, self.problems, config, rows=rows_of(recipe, self.arguments.rows)
            )
        return {**_figures(self.problems, found.correct), **{
            key: found.metrics[key] for key in ("reward_format", "truncated", "thought_tokens")
        }}  # fmt: skip

    def _from_nothing(self, name: str) -> Figures:
        """Pretraining and RL of a new network, as long as each other."""
        recipe, seconds = self.loaded.recipe, self.arguments.dense_seconds
        changed = recipe.model_copy(update={"model": NETWORKS[name](recipe)})
        loaded = with_recipe(self.loaded, changed)
        config: PretrainConfig = next(s for s in recipe.stages if isinstance(s, PretrainConfig))

        def of(steps: int) -> PretrainConfig:
            least = {"warmup_steps": min(config.optimizer.warmup_steps, max(1, steps // 10)),
                     "decay_steps": steps // 2}  # fmt: skip
            optimizer = config.optimizer.model_copy(update=least)
            return config.model_copy(update={"steps": steps, "optimizer": optimizer})

        warm, timed = CALIBRATION
        tokenizer = self.arguments.run  # The run's own vocabulary: what differs is the network.
        shop = Workshop(loaded, tokenizer, self.adapters)
        self._pretrained(shop, of(FOREVER), FOREVER, warm + timed)
        step = self._step_seconds
        shop = Workshop(loaded, tokenizer, self.adapters)
        steps = max(2, round(seconds / step))
        spent = self._pretrained(shop, of(steps), seconds * 1.5, steps)
        counted = count_parameters(shop.network.config)
        after = self._evaluated(shop)
        return {
            "parameters": counted.total,
            "active_parameters": counted.active,
            "pretrain_steps": spent.steps,
            "pretrain_seconds": spent.seconds,
            "base": {key: after[key] for key in ("pass_at_1", "stderr")},
            **self._trained(shop, self.rl, seconds),
        }

    _step_seconds = 0.0

    def _pretrained(
        self, shop: Workshop, config: PretrainConfig, seconds: float, steps: int
    ) -> Spent:
        """Steps of pretraining; notes how long each of the last ones took."""
        stage, optimizer = shop.stage(config)
        try:
            if steps > sum(CALIBRATION):
                return run_for(stage, seconds, steps)
            run_for(stage, seconds, CALIBRATION[0])
            _wait()
            began = time.perf_counter()
            spent = run_for(stage, seconds, CALIBRATION[1])
            self._step_seconds = (time.perf_counter() - began) / CALIBRATION[1]
            return spent
        finally:
            stage.close()
            optimizer.close()


def _without_end(rl: RLConfig) -> RLConfig:
    """The rate warms up and stays."""
    optimizer = rl.optimizer.model_copy(update={"decay_steps": 0})
    return rl.model_copy(update={"steps": FOREVER, "optimizer": optimizer})


def _figures(problems: Sequence[Problem], correct: Sequence[float]) -> Figures:
    """The mean over families and its error."""
    families: dict[str, list[float]] = {}
    for problem, value in zip(problems, correct, strict=True):
        families.setdefault(problem.family, []).append(value)
    parts = {name: mean_error(values) for name, values in families.items()}
    value, error = over_families(list(parts.values()))
    return {
        "pass_at_1": value,
        "stderr": error,
        "families": {name: one[0] for name, one in parts.items()},
        "shares": [round(one, 4) for one in correct],
    }


# What is printed

MEANS: Final = ("pass_at_1", "thought_tokens", "steps")
"""Of which figures means over seeds are printed, in this order."""


def report(found: Figures) -> Figures:
    """Print the table; the figures of the JSON line. Differences from the recipe's own arm of the
    seed are paired by problem."""
    print(
        f"{found['machine']}\n{found['problems']} held-out problems x {found['samples']} samples\n"
    )
    print(f"{'arm':30}{'steps':>7}{'seconds':>9}{'pass@1':>8}{'s.e.':>7}{'- recipe':>10}{'s.e.':>7}"
          f"{'form':>6}{'cut':>6}{'thought':>9}")  # fmt: skip
    compact: Figures = {}
    for name, one in found["arms"].items():
        if "failed" in one:
            print(f"{name:30} {one['failed'][:120]}")
            continue
        own = found["arms"].get(f"recipe, {name.rpartition(', ')[2]}", {})
        ahead = ""
        if "shares" in own and own is not one:
            pairs = zip(one["shares"], own["shares"], strict=True)
            value, error = mean_error([a - b for a, b in pairs])
            ahead = f"{value:>+10.3f}{error:>7.3f}"
        print(
            f"{name:30}{one.get('steps', '-'):>7}{one.get('seconds', 0.0):>9.1f}"
            f"{one['pass_at_1']:>8.3f}{one['stderr']:>7.3f}{ahead:17}{one['reward_format']:>6.2f}"
            f"{one['truncated']:>6.2f}{one['thought_tokens']:>9.1f}"
        )
        compact[name] = [round(one["pass_at_1"], 4), round(one["stderr"], 4)]
        if "base" in one:
            print(f"  {one['parameters']:,} parameters, {one['active_parameters']:,} active; "
                  f"{one['pretrain_steps']} steps of pretraining, {one['pretrain_seconds']:.0f} s: "
                  f"{one['base']['pass_at_1']:.3f}")  # fmt: skip
    _over_seeds(found["arms"])
    if found["missing"]:
        print("missing: " + "; ".join(found["missing"])[:600])
    print()
    return compact


def _over_seeds(arms: dict[str, Figures]) -> None:
    """Print what each arm with several seeds is in the mean."""
    seeds: dict[str, list[Figures]] = {}
    for name, one in arms.items():
        if ", seed " in name and "failed" not in one:
            seeds.setdefault(name.rpartition(", ")[0], []).append(one)
    print(f"\nmeans over seeds: {', '.join(MEANS)}")
    for name, ones in seeds.items():
        if len(ones) > 1:
            means = [sum(one[key] for one in ones) / len(ones) for key in MEANS]
            print(f"{name:30}" + "".join(f"{mean:>9.3f}" for mean in means))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path, nargs="?", help="the folder of a run")
    parser.add_argument("--seconds", type=float, default=30.0, help="of RL in each arm")
    parser.add_argument("--dense-seconds", type=float, default=60.0, help="of each stage of dense")
    parser.add_argument("--problems", type=int, default=1024, help="held out, over all families")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--only", default=",".join(ARMS), help="arms, by commas; list names them")
    parser.add_argument("--seconds-limit", type=float, default=1e9, help="no arm begins after it")
    parser.add_argument("--rows", type=int, help="samples side by side in evaluations")
    parser.add_argument("--device", help="instead of the recipe's")
    parser.add_argument("--save", action="store_true", help="keep what is printed in results/")
    parser.add_argument("--out", type=Path, default=Path("nano_ablations.json"))
    arguments = parser.parse_args()
    if arguments.only == "list":
        print("\n".join([*ARMS, *NETWORKS, "dense"]))
        return
    if arguments.run is None:
        print("nano_ablations: skipped, it needs the folder of a run", file=sys.stderr)
        return
    names = [name for name in arguments.only.split(",") if name]
    if unknown := set(names) - {*ARMS, *NETWORKS, "dense"}:
        parser.error(f"no such arm: {', '.join(sorted(unknown))}")
    names = [one for name in names for one in (DENSE if name == "dense" else (name,))]
    try:
        arguments.seeds = [int(seed) for seed in arguments.seeds.split(",")]
    except ValueError:
        parser.error(f"--seeds {arguments.seeds!r} are not whole numbers by commas")
    if not (arguments.run / "recipe.toml").is_file():
        parser.error(f"{arguments.run} holds no run")
    with open_adapters() as adapters:
        try:
            work = Ablations(arguments, adapters)
        except UserError as error:
            parser.error(str(error))
        work.run(names)
    save("nano_ablations", arguments.out, {"arms": report(work.found)}, keep=arguments.save)


if __name__ == "__main__":
    main()
