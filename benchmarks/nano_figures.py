"""Every figure of nano that comes from sampling, for one model or several on the same problems.

    python benchmarks/nano_figures.py RUN [MODEL ...] --name RL,base --out FILE.json

RUN is the folder of a run; its recipe says families, prompt and device. The models are RUN itself
and the folders after it (``RUN/checkpoints/1-pretrain``). Parts, what matters most first:

- ``T1``: for each family ``--problems`` held-out problems, ``--samples`` of each at temperature 1;
- ``T0.6``: the first model at what `ask` takes (temperature 0.6, top_p 0.95), fewer samples;
- ``transfer``: never trained, countdown with five numbers and sums of numbers two digits longer;
- ``gym``: a family of reasoning-gym, graded in the sandbox (left out, and said so, where there is
  none). ``--parts`` names those to do.

All samples of a part go through one batch and are judged in side processes meanwhile. FILE is
written after each part. After ``--seconds-limit`` it stops, and says what is missing; a part that
was cut keeps the problems of all families up to where it was cut. Standard errors are clustered by
problem; differences are paired by problem and noise.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Final

import torch

from _nano import (
    Answered,
    Clock,
    answers,
    centred,
    held_out,
    in_turn,
    machine,
    mean,
    mean_error,
    on_device,
    over_families,
    pearson,
    ranked,
    rows_of,
    save,
    unseen,
    workshop,
    write_json,
)
from _nano_problems import majority, never_trained
from forethought.engines.protocol import SamplingParameters
from forethought.errors import ForethoughtError
from forethought.problems.families.countdown import Countdown
from forethought.problems.problem import Problem
from forethought.problems.source import LevelledSource
from forethought.recipes.reading import open_adapters, read_recipe
from forethought.recipes.workshop import Workshop
from forethought.training.config import RewardConfig
from forethought.training.judge_pool import JudgePool, judging_workers
from forethought.training.judging import Judge

HOT: Final = SamplingParameters(temperature=1.0, top_p=1.0)
COOL: Final = SamplingParameters(temperature=0.6, top_p=0.95)
PARTS: Final = ("T1", "T0.6", "transfer", "gym")
Figures = dict[str, Any]


# From samples to figures


def of_family(family: LevelledSource, found: list[Answered]) -> Figures:
    """The figures of one family; ``shares`` are those that are paired."""
    shares = [mean([float(one.verdict.correct) for one in it.judged]) for it in found]
    votes = [majority(family, it.problem, it.judged) for it in found]
    value, error = mean_error(shares)
    cons, cons_error = mean_error(votes)
    figures: Figures = {
        "problems": len(found),
        "pass_at_1": value,
        "stderr": error,
        "cons_at_k": cons,
        "cons_stderr": cons_error,
        "any_of_k": mean([float(share > 0) for share in shares]),
        **rates(found),
        "by_level": {},
        "by_language": {},
        "shares": [round(share, 4) for share in shares],
        "canonical": [it.problem.canonical for it in found],
    }
    for level in sorted({it.problem.level for it in found}):
        own = [at for at, it in enumerate(found) if it.problem.level == level]
        value, error = mean_error([shares[at] for at in own])
        cons, _ = mean_error([votes[at] for at in own])
        figures["by_level"][str(level)] = {
            "problems": len(own),
            "pass_at_1": value,
            "stderr": error,
            "cons_at_k": cons,
            "thought_tokens": mean([thought(found[at]) for at in own]),
        }
    for language in sorted({it.problem.language for it in found}):
        own = [at for at, it in enumerate(found) if it.problem.language == language]
        figures["by_language"][language] = mean([shares[at] for at in own])
    pairs = lengths(found)
    figures["length_by_level"] = {"pearson": pearson(pairs), "spearman": pearson(ranked(pairs))}
    return figures


def thought(it: Answered) -> float:
    return mean([float(one.reply.thought_tokens) for one in it.judged])


def lengths(found: list[Answered]) -> list[tuple[float, float]]:
    """Level and mean thought length of each problem."""
    return [(float(it.problem.level), thought(it)) for it in found]


def rates(found: list[Answered]) -> Figures:
    judged = [one for it in found for one in it.judged]
    return {
        "samples": len(judged),
        "close_missing": mean([float(not one) for it in found for one in it.closed]),
        "unparsable": mean([float(one.reply.final_answer is None) for one in judged]),
        "well_formed": mean([one.format for one in judged]),
        "truncated": mean([float(one) for it in found for one in it.truncated]),
        "unscorable": sum(one.verdict.status == "unscorable" for one in judged),
        "thought_tokens": mean([float(one.reply.thought_tokens) for one in judged]),
        "sample_tokens": mean([float(one) for it in found for one in it.tokens]),
    }


def of_part(families: list[LevelledSource], found: list[Answered]) -> Figures:
    """All families, their mean, the bare ones apart, and lengths with families' own taken out."""
    by_name = {one.name: [it for it in found if it.problem.family == one.name] for one in families}
    by_name = {name: own for name, own in by_name.items() if own}
    figures = {
        one.name: of_family(one, by_name[one.name]) for one in families if one.name in by_name
    }
    bare = [one.name for one in families if getattr(one, "bare", False) and one.name in figures]
    pairs = [lengths(own) for own in by_name.values()]
    return {
        "families": figures,
        "mean": _mean_of(figures, list(figures)),
        "bare": {"names": bare, **_mean_of(figures, bare)},
        "rates": rates(found),
        "length_by_level": {
            "pearson": pearson([pair for own in pairs for pair in centred(own)]),
            "spearman": pearson([pair for own in pairs for pair in centred(ranked(own))]),
        },
    }


def _mean_of(figures: dict[str, Figures], names: list[str]) -> Figures:
    value, error = over_families(
        [(figures[name]["pass_at_1"], figures[name]["stderr"]) for name in names]
    )
    cons = mean([figures[name]["cons_at_k"] for name in names])
    return {"pass_at_1": value, "stderr": error, "cons_at_k": cons, "families": len(names)}


def difference(one: Figures, other: Figures) -> Figures:
    """By how much a part of one model is ahead of another's, paired over the problems of both."""
    found: dict[str, tuple[float, float]] = {}
    for name in one["families"]:
        if name in other["families"]:
            pairs = zip(
                one["families"][name]["shares"], other["families"][name]["shares"], strict=False
            )
            found[name] = mean_error([a - b for a, b in pairs])
    bare = [found[name] for name in one["bare"]["names"] if name in found]
    return {
        "mean": over_families(list(found.values())),
        "bare": over_families(bare),
        "families": found,
    }


# The work


class Work:
    """Models, problems and what was found so far."""

    def __init__(self, arguments: argparse.Namespace, clock: Clock) -> None:
        self.arguments, self.clock = arguments, clock
        self.loaded = on_device(read_recipe(str(arguments.run / "recipe.toml")), arguments.device)
        self.folders: list[Path] = [arguments.run, *arguments.models]
        names = [name for name in arguments.name.split(",") if name]
        self.names: list[str] = names or [str(folder) for folder in self.folders]
        self.missing: list[str] = []
        self.found: Figures = {
            "benchmark": "nano_figures",
            "machine": "",
            "recipe": self.loaded.recipe.name,
            "problems": arguments.problems,
            "samples": arguments.samples,
            "max_tokens": self.loaded.recipe.evaluation.max_tokens,
            "models": {name: {} for name in self.names},
            "notes": [],
            "seconds": {},
        }
        self.shops: dict[str, Workshop] = {}
        self.pools: dict[str, JudgePool] = {}

    def run(self) -> None:
        with open_adapters() as adapters:
            try:
                self._run(adapters)
            finally:
                for pool in self.pools.values():
                    pool.close()

    def _run(self, adapters: Any) -> None:
        count, recipe = self.arguments.problems, self.loaded.recipe
        sources = self.loaded.sources(adapters)
        ladder = [one for one in sources if isinstance(one, Countdown)]
        transfer: list[LevelledSource] = list(never_trained(ladder[0] if ladder else None))
        began = self.clock.spent
        problems = in_turn(held_out(sources, count, recipe))
        few = min(count, self.arguments.transfer_problems)
        further = in_turn(unseen(transfer, few))
        self.found["machine"] = machine()  # Not before: it wakes the GPU.
        self.found["seconds"]["problems"] = self.clock.spent - began
        for name, folder in zip(self.names, self.folders, strict=True):
            self.shops[name] = workshop(self.loaded, folder, adapters)
        self._open_pools([*sources, *transfer])
        for at, name in enumerate(self.names):
            # Those after it have a right to as much.
            until = self.clock.spent + self.clock.left / (len(self.names) - at)
            self._part("T1", name, sources, problems, self.arguments.samples, HOT, until)
        first, cool = self.names[0], self.arguments.cool_samples
        self._part("T0.6", first, sources, problems, cool, COOL)
        for name in self.names:
            self._part("transfer", name, transfer, further, self.arguments.samples, HOT)
        self._gym(adapters, few)
        self.found["missing"] = self.missing
        self._write()

    def _open_pools(self, families: list[LevelledSource]) -> None:
        """Processes that judge; models with one tokenizer share them."""
        by_files: dict[tuple[bytes, ...], JudgePool] = {}
        for name, shop in self.shops.items():
            files = tuple(shop.tokenizer.files[key] for key in sorted(shop.tokenizer.files))
            if files not in by_files:
                judge = Judge(shop.tokenizer, {one.name: one for one in families}, RewardConfig())
                by_files[files] = JudgePool(judge, self._workers())
                by_files[files].start()
            self.pools[name] = by_files[files]

    def _workers(self) -> int:
        given: int | None = self.arguments.workers
        on_cuda = self.loaded.recipe.device != "cpu"
        return given if given is not None else judging_workers() if on_cuda else 0

    def _part(
        self,
        part: str,
        name: str,
        families: list[LevelledSource],
        problems: list[Problem],
        samples: int,
        sampling: SamplingParameters,
        until: float | None = None,
        pool: JudgePool | None = None,
    ) -> None:
        limit = self.clock.limit if until is None else min(until, self.clock.limit)
        if part not in self.arguments.parts:
            return
        if self.clock.spent >= limit:
            self.missing.append(f"{part} of {name}")
            return
        began = self.clock.spent
        found = answers(
            self.shops[name].policy,
            pool or self.pools[name],
            problems,
            samples,
            sampling,
            self.loaded.recipe.evaluation.max_tokens,
            rows=rows_of(self.loaded.recipe, self.arguments.rows),
            until=lambda: self.clock.spent >= limit,
        )
        if len(found) < len(problems):
            self.missing.append(f"{part} of {name}: {len(problems) - len(found)} of its problems")
        if found:
            self.found["models"][name][part] = {"k": samples, **of_part(families, found)}
        self.found["seconds"][f"{part} {name}"] = self.clock.spent - began
        self._write()
        print(f"  {part} of {name}: {self.clock.spent - began:.0f} s", file=sys.stderr, flush=True)

    def _gym(self, adapters: Any, few: int) -> None:
        """Here, not in side processes: the sandbox stays with who opened it."""
        spec = f"reasoning-gym/{self.arguments.gym}"
        if "gym" not in self.arguments.parts:
            return
        if self.clock.left <= 0:
            self.missing.append(spec)
            return
        try:
            gym = adapters.source(spec, Path(), {})
            problems = list(gym.problems(1, range(few)))
            for name, shop in self.shops.items():
                judge = Judge(shop.tokenizer, {gym.name: gym}, RewardConfig())
                with JudgePool(judge, 0) as pool:
                    self._part(
                        "gym", name, [gym], problems, self.arguments.gym_samples, HOT, pool=pool
                    )
            adapters.check_health()
        except (ForethoughtError, ImportError, OSError) as error:
            self.found["notes"].append(f"{spec} was left out: {error}")

    def _write(self) -> None:
        write_json(self.arguments.out, self.found)


# What is printed


def report(found: Figures) -> Figures:
    """Print the tables; the figures of the JSON line."""
    names = list(found["models"])
    compact: dict[str, Any] = {}
    print(f"{found['machine']}\nrecipe {found['recipe']}; pass@1 (standard error), cons@k\n")
    parts = {name: found["models"][name].get("T1") for name in names}
    there = [name for name in names if parts[name]]
    if there:
        _families(parts, there)
        print()
        _rates(found, there)
        compact = {name: _short(parts[name]) for name in there}
        for name in there[1:]:
            ahead = difference(parts[there[0]], parts[name])
            for key in ("mean", "bare"):
                value, error = ahead[key]
                print(f"{there[0]} over {name}, {key}: {value:+.3f} ({error:.3f}), paired")
            compact[f"{there[0]} - {name}"] = [round(one, 4) for one in ahead["mean"]]
        print(f"\nthought tokens by level, {there[0]}; correlation with level (Spearman, Pearson)")
        for family, one in parts[there[0]]["families"].items():
            by_level = [f"{it['thought_tokens']:.0f}" for it in one["by_level"].values()]
            print(f"{family:20} {' '.join(by_level):26} {_both(one)}")
        print(f"{'all, less families':20} {'':26} {_both(parts[there[0]])}")
    _rest(found, names)
    for line in found["notes"]:
        print(line)
    if found.get("missing"):
        print("missing: " + "; ".join(found["missing"])[:600])
    print()
    return compact


def _both(one: Figures) -> str:
    values = [one["length_by_level"][key] for key in ("spearman", "pearson")]
    return " ".join("-" if value is None else f"{value:+.2f}" for value in values)


def _cell(one: Figures) -> str:
    return f"{one['pass_at_1']:.3f} ({one['stderr']:.3f}) {one['cons_at_k']:.3f}"


def _families(parts: dict[str, Figures], there: list[str]) -> None:
    print(f"{'':20}" + "".join(f"{name[:20]:>22}" for name in there))
    for family in parts[there[0]]["families"]:
        own = [parts[name]["families"].get(family) for name in there]
        print(f"{family:20}" + "".join(f"{_cell(one) if one else '-':>22}" for one in own))
        if family == "countdown":
            for level, words in (("1", "  three numbers"), ("2", "  four numbers")):
                cells = [one["by_level"].get(level) if one else None for one in own]
                print(f"{words:20}" + "".join(f"{_cell(c) if c else '-':>22}" for c in cells))
    for key, words in (("mean", "mean of families"), ("bare", "bare families")):
        if parts[there[0]][key]["families"]:
            print(f"{words:20}" + "".join(f"{_cell(parts[name][key]):>22}" for name in there))


_RATES: Final = ("close_missing", "unparsable", "truncated", "well_formed", "thought_tokens")


def _rates(found: Figures, there: list[str]) -> None:
    print(f"{'':20}" + "".join(f"{key:>16}" for key in _RATES))
    for name in there:
        own = found["models"][name]["T1"]["rates"]
        print(f"{name[:20]:20}" + "".join(f"{own[key]:>16.4f}" for key in _RATES))


def _rest(found: Figures, names: list[str]) -> None:
    for name in names:
        for part in ("T0.6", "transfer", "gym"):
            one = found["models"][name].get(part)
            if one is None:
                continue
            if part == "T0.6":
                print(f"T0.6 of {name}, k {one['k']}, mean of families: {_cell(one['mean'])}")
                continue
            for family, own in one["families"].items():
                print(f"{family} of {name}, k {one['k']}: {_cell(own)}")


def _short(part: Figures) -> Figures:
    return {
        "mean": round(part["mean"]["pass_at_1"], 4),
        "stderr": round(part["mean"]["stderr"], 4),
        "bare": round(part["bare"]["pass_at_1"], 4),
        "close_missing": round(part["rates"]["close_missing"], 5),
        "unparsable": round(part["rates"]["unparsable"], 5),
        "truncated": round(part["rates"]["truncated"], 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path, nargs="?", help="the folder of a run")
    parser.add_argument("models", type=Path, nargs="*", help="folders of further models")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--name", default="", help="what the models are called, by commas")
    parser.add_argument("--problems", type=int, default=512, help="of each family")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--cool-samples", type=int, default=4, help="at temperature 0.6")
    parser.add_argument("--transfer-problems", type=int, default=256)
    parser.add_argument("--gym", default="leg_counting", help="a family of reasoning-gym")
    parser.add_argument("--gym-samples", type=int, default=4)
    parser.add_argument("--seconds-limit", type=float, default=1e9)
    parser.add_argument("--rows", type=int, help="samples side by side")
    parser.add_argument("--workers", type=int, help="processes that judge")
    parser.add_argument("--device", help="instead of the recipe's")
    parser.add_argument("--save", action="store_true", help="keep what is printed in results/")
    parser.add_argument("--out", type=Path, default=Path("nano_figures.json"))
    arguments = parser.parse_args()
    if arguments.run is None:
        print("nano_figures: skipped, it needs the folder of a run", file=sys.stderr)
        return
    for folder in (arguments.run, *arguments.models):
        if not (folder / "config.json").is_file():
            parser.error(f"{folder} holds no model")
    names = [name for name in arguments.name.split(",") if name]
    count = 1 + len(arguments.models)
    if names and len(set(names)) != count:
        parser.error(f"--name gives {len(set(names))} different names to {count} models")
    work = Work(arguments, Clock(arguments.seconds_limit))
    with torch.no_grad():
        work.run()
    save("nano_figures", arguments.out, report(work.found), keep=arguments.save)


if __name__ == "__main__":
    main()
