"""The benchmarks of nano, each on a run of a very small network, and the figures they make."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from _nano import (  # noqa: E402
    answers,
    centred,
    held_out,
    in_turn,
    mean_error,
    over_families,
    pearson,
    ranked,
    ranks,
    workshop,
)
from _nano_problems import FiveNumbers, LongerOperands, class_of, majority  # noqa: E402
from forethought.engines.protocol import SamplingParameters  # noqa: E402
from forethought.problems.families.countdown import Countdown  # noqa: E402
from forethought.problems.families.letter_counting import LetterCounting  # noqa: E402
from forethought.problems.problem import Problem  # noqa: E402
from forethought.problems.source import LevelledSource  # noqa: E402
from forethought.recipes.reading import open_adapters, read_recipe  # noqa: E402
from forethought.training.judge_pool import JudgePool  # noqa: E402
from forethought.training.judging import Judged, Reply  # noqa: E402
from forethought.training.policy import Policy  # noqa: E402
from nano_ablations import NETWORKS  # noqa: E402
from nano_shapes import SHAPES  # noqa: E402


def ran(script: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{script}.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Figures


def answered(family: LevelledSource, problem: Problem, *answers: str | None) -> list[Judged]:
    found = []
    for answer in answers:
        verdict = family.verify(problem, answer or "")
        right = float(verdict.correct)
        found.append(Judged(Reply("x", "", answer, True, 1), verdict, right, 1.0, 0.0, right))
    return found


def test_a_vote_goes_by_what_an_answer_says_not_by_how_it_is_written():
    family = LetterCounting()
    problem = family.problem(1, 5)
    right = int(problem.answer)
    other = str(right + 1)
    samples = answered(family, problem, f"{right}", f"{right}.", f"**{right}**", other, f"+{other}")
    assert majority(family, problem, samples) == 1.0
    assert class_of(family, problem, samples[3]) == class_of(family, problem, samples[4])
    # A tie is worth what a draw among the winners is; who answers nothing has no vote.
    assert majority(family, problem, [samples[0], samples[3]]) == 0.5
    assert majority(family, problem, answered(family, problem, None, None, f"{right}")) == 1.0
    assert majority(family, problem, answered(family, problem, None)) == 0.0


def test_expressions_are_one_answer_where_only_the_order_differs():
    family = Countdown()
    problem = next(
        one for one in (family.problem(1, seed) for seed in range(99)) if "+" in one.answer
    )
    a, b, c = problem.task.numbers
    sums = answered(family, problem, f"{a} + {b} + {c}", f"{c} + ({b} + {a})", f"{a} * {b} + {c}")
    names = [class_of(family, problem, one) for one in sums]
    assert names[0] == names[1] != names[2]
    assert class_of(family, problem, answered(family, problem, "no idea")[0]) == "text no idea"


def test_statistics():
    assert mean_error([0.0, 1.0, 1.0, 0.0]) == (0.5, pytest.approx((1 / 12) ** 0.5))
    assert over_families([(0.2, 0.03), (0.4, 0.04)]) == (pytest.approx(0.3), pytest.approx(0.025))
    assert ranks([3.0, 1.0, 3.0, 2.0]) == [3.5, 1.0, 3.5, 2.0]
    assert pearson([(1, 2), (2, 4), (3, 6)]) == pytest.approx(1)
    assert pearson([(1, 2), (1, 4), (1, 6)]) is None
    # Ranks do not ask how much longer; centred families do not lend each other their lengths.
    assert pearson(ranked([(1, 1), (2, 10), (3, 1000)])) == pytest.approx(1)
    long_and_easy, short_and_hard = [(1, 100), (2, 101)], [(3, 1), (4, 2)]
    assert (pearson(long_and_easy + short_and_hard) or 0) < 0
    assert pearson(centred(long_and_easy) + centred(short_and_hard)) == pytest.approx(1)


def test_problems_that_were_never_trained():
    for seed in range(20):
        five = FiveNumbers(largest=9).problem(1, seed)
        assert len(five.task.numbers) == 5
        assert FiveNumbers().verify(five, five.answer).correct
        long = LongerOperands().problem(1, seed)
        numbers = long.canonical.partition(":")[2].replace("-", "+").split("+")
        assert {len(one) for one in numbers if one} == {5}
        assert LongerOperands().verify(long, long.answer).correct


class AsOnCuda(Policy):
    """Draws with the sampler for GPUs, which hears of samples as they end."""

    def _draw(self, prompts, n, seeds, sampling, max_tokens, rows, record_experts, on_finished):
        fast = self._on_cuda(rows, record_experts)
        return fast.sample(prompts, n, seeds, sampling, max_tokens, on_finished=on_finished)


def test_a_batch_that_is_cut_keeps_its_first_problems_whole(micro_run: Path):
    loaded = read_recipe(str(micro_run / "recipe.toml"))
    with open_adapters() as adapters:
        shop = workshop(loaded, micro_run, adapters)
        policy = AsOnCuda(shop.network, shop.tokenizer, shop.prompter)
        problems = in_turn(held_out(shop.families, 30, loaded.recipe))
        heat = SamplingParameters(temperature=1.0, top_p=1.0)
        asked: list[bool] = []

        def cut() -> bool:
            asked.append(True)
            return len(asked) == 3

        def draw(until):
            with JudgePool(shop.judge(), 1) as pool:
                return answers(policy, pool, problems, 3, heat, 40, rows=32, until=until)

        whole = draw(lambda: False)
        part = draw(cut)
        again = draw(lambda: False)
    assert len(whole) == len(problems) == 120
    assert 30 < len(part) <= 64
    assert part == whole[: len(part)]
    assert again == whole
    assert [it.problem for it in whole] == problems


# Scripts


@pytest.mark.slow
def test_figures_of_two_models(micro_run: Path, tmp_path: Path):
    out = tmp_path / "figures.json"
    printed = ran(
        "nano_figures", micro_run, micro_run / "checkpoints" / "1-pretrain", "--name", "RL,base",
        "--problems", 6, "--samples", 3, "--transfer-problems", 3, "--workers", 1, "--out", out,
    )  # fmt: skip
    assert len(printed) < 6000
    assert out.with_suffix(".txt").read_text() == printed
    found = json.loads(out.read_text())
    assert not [line for line in found["missing"] if "gym" not in line]
    assert found["machine"]
    one, other = found["models"]["RL"]["T1"], found["models"]["base"]["T1"]
    names = ["letter_counting", "chained_arithmetic", "countdown", "base_conversion"]
    assert one["rates"] != other["rates"]
    for part in (one, other):
        assert list(part["families"]) == names
        assert {own["problems"] for own in part["families"].values()} == {6}
        assert part["rates"]["samples"] == 4 * 6 * 3
        shares = part["families"]["letter_counting"]["shares"]
        assert part["families"]["letter_counting"]["pass_at_1"] == pytest.approx(
            sum(shares) / 6, abs=1e-3
        )
        assert part["bare"]["names"] == ["base_conversion"]
    # The same problems for both, held out, with countdown's two sizes apart.
    for name in names:
        asked = one["families"][name]["canonical"]
        assert asked == other["families"][name]["canonical"]
    assert list(one["families"]["countdown"]["by_level"]) == ["1", "2"]
    assert set(found["models"]["RL"]["transfer"]["families"]) == {
        "countdown_five", "arithmetic_longer"
    }  # fmt: skip
    assert "T0.6" in found["models"]["RL"]
    assert "gym" in found["models"]["RL"] or "was left out" in found["notes"][0]


@pytest.mark.slow
def test_figures_stop_in_time_and_say_what_is_missing(micro_run: Path, tmp_path: Path):
    out = tmp_path / "figures.json"
    printed = ran(
        "nano_figures", micro_run, "--problems", 2, "--seconds-limit", "0.01", "--out", out
    )
    assert "missing: T1 of" in printed
    assert json.loads(out.read_text())["models"] == {str(micro_run): {}}


@pytest.mark.slow
def test_the_control_leaves_two_models(micro_run: Path, tmp_path: Path):
    ran("nano_control", micro_run, "--keep", tmp_path, "--seconds", 2)
    found = json.loads((tmp_path / "control.json").read_text())["arms"]
    assert list(found) == ["pretrain", "rejection"]
    for name, one in found.items():
        assert "failed" not in one, one
        assert (tmp_path / name / "config.json").is_file()
        assert one["seconds"] > 0
    assert found["rejection"]["sampling_seconds"] > 0
    assert found["rejection"]["kept"] > 0
    again = ran("nano_control", micro_run, "--keep", tmp_path, "--seconds", 2)
    assert "pretrain" in again


def test_networks_from_nothing_are_the_shapes_whose_speed_is_measured():
    recipe = read_recipe("nano-zero").recipe
    assert recipe.model is not None
    for name, shape in (("L6m160-60", "d384 L6 E16k2 m160"), ("L6E8m288-60", "d384 L6 E8k2 m288")):
        assert NETWORKS[name](recipe) == recipe.model.model_copy(update=SHAPES[shape])
    assert NETWORKS["moe-60"](recipe) == recipe.model


@pytest.mark.slow
def test_ablations_keep_what_they_have(micro_run: Path, tmp_path: Path):
    out = tmp_path / "ablations.json"
    common = ("--seconds", 0.5, "--problems", 8, "--samples", 1, "--out", out)
    ran("nano_ablations", micro_run, *common, "--only", "recipe,G8,kl-on,paper", "--seeds", "1,2")
    arms = json.loads(out.read_text())["arms"]
    expected = [f"{name}, seed {seed}" for seed in (1, 2)
                for name in ("recipe", "G8", "kl-on", "paper")]  # fmt: skip
    assert list(arms) == ["base", *expected]
    assert all(arms[name]["steps"] >= 2 for name in expected)
    printed = ran(
        "nano_ablations", micro_run, *common, "--only", "recipe,dense", "--seeds", 1,
        "--dense-seconds", 2,
    )  # fmt: skip
    after = json.loads(out.read_text())["arms"]
    assert {name: after[name] for name in arms} == arms
    moe, dense = after["moe-60"], after["dense-60"]
    assert moe["parameters"] > dense["parameters"] == dense["active_parameters"]
    assert dense["active_parameters"] == pytest.approx(moe["active_parameters"], rel=0.02)
    assert "paper, seed 2" in printed
