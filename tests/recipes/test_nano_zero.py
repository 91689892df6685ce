"""The recipe that made nano, its records, and the model itself."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

import forethought as ft
from forethought.checkpoints.bundled import read_card
from forethought.problems.registry import BUNDLED, families
from forethought.recipes.dry_run import dry_run
from forethought.recipes.reading import bundled_recipes, read_recipe
from forethought.training.config import PretrainConfig, RLConfig

REPOSITORY = Path(__file__).parents[2]
REPORT = REPOSITORY / "docs" / "reports" / "nano-zero"
ZOO = REPOSITORY / "src" / "forethought" / "zoo"


def test_the_committed_run_is_the_bundled_recipe() -> None:
    assert "nano-zero" in bundled_recipes()
    loaded = read_recipe("nano-zero")
    assert read_recipe(str(REPORT / "recipe.toml")).digest == loaded.digest
    card = read_card((ZOO / "nano.json").read_bytes())
    assert card.recipe_digest == loaded.digest
    assert set(card.families) == set(loaded.recipe.problems.families) == set(BUNDLED)
    assert card.size == (ZOO / "nano.gguf").stat().st_size


def test_it_is_checked_without_a_gpu() -> None:
    loaded = read_recipe("nano-zero")
    text = dry_run(loaded).as_text()
    assert "19,536,560, 7,150,256 active per token" in text
    base, rl = loaded.recipe.stages
    assert isinstance(base, PretrainConfig)
    assert isinstance(rl, RLConfig)
    assert base.corpus.max_document_tokens <= loaded.recipe.model.max_position_embeddings


def test_the_records_are_those_of_the_run() -> None:
    with lzma.open(REPORT / "metrics.jsonl.xz", "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    first, last = [line for line in lines if line["pass_at_1"] is not None][-5::4]
    assert (first["stage"], first["step"], last["stage"], last["step"]) == ("rl", 0, "rl", 560)
    page = (REPORT.parent / "nano-zero.md").read_text("utf-8")
    assert f"{first['pass_at_1']:.3f} | {last['pass_at_1']:.3f} |" in page
    steps = [line for line in lines if line["stage"] == "rl" and line["loss"] is not None]
    assert len(steps) == 560
    measured = [line["kl_sampler_trainer"] for line in steps]
    assert max(kl for kl in measured if kl is not None) < 1e-3


def test_the_card_has_the_figures_of_the_records() -> None:
    made = subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks" / "data" / "nano_card.py")],
        capture_output=True,
        check=True,
    )
    figures = json.loads(made.stdout)
    card = json.loads((ZOO / "nano.json").read_text("utf-8"))
    flat = {
        f"{key} / {name}" if isinstance(value, dict) else key: inner
        for key, value in figures.items()
        for name, inner in (value.items() if isinstance(value, dict) else [("", value)])
    }
    assert card["figures"] == flat
    page = (REPORT.parent / "nano-zero.md").read_text("utf-8")
    for name in ("pass@1, mean of 14 families", "base", "majority of 16", "three bare families"):
        assert f"{figures[name]:.3f}" in page, name


@pytest.mark.slow
def test_nano_solves_what_it_was_trained_for() -> None:
    """One held-out problem of each family and level in each language, greedily."""
    with ft.load("nano", threads=1) as model:
        right, asked = 0, 0
        for family in families(BUNDLED):
            for level in range(1, family.levels + 1):
                for language in family.languages:
                    held_out = (
                        problem
                        for seed in range(1000)
                        if (problem := family.problem(level, seed, language)).held_out
                    )
                    for problem in islice(held_out, 1):
                        answer = model.ask(problem.text, temperature=0.0, seed=1).answer
                        right += family.verify(problem, answer).correct
                        asked += 1
    assert asked == 2 * sum(family.levels for family in families(BUNDLED))
    assert right / asked > 0.8  # 0.91 over many problems; 5 standard errors of so few are 0.14


@pytest.mark.parametrize(
    "question", ["Use 19, 36, 55 and 7 to make 65.", "用 19、36、55 和 7 算出 65。"]
)
def test_the_first_question_of_all(question: str) -> None:
    countdown = families(["countdown"])[0]
    with ft.load("nano", threads=1) as model:
        reply = model.ask(question, seed=0)
    from forethought.problems.families.countdown import check_combination

    assert countdown.name == "countdown"
    assert check_combination(reply.answer, (19, 36, 55, 7), 65).correct
    assert "needs" in reply.thought or "要" in reply.thought
