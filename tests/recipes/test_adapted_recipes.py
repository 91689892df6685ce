"""Recipes with problems of other makers, through the real sandbox."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest

from forethought.checkpoints.save_folder import save_folder
from forethought.errors import ModelError, UserError
from forethought.problems.sandbox import SandboxStats
from forethought.recipes.reading import LoadedRecipe, open_adapters, read_recipe
from forethought.recipes.run import train
from micro_run import REWARD, StopAt, lines
from tiny_training import tiny_dense, tiny_tokenizer

RECIPE = """
name = "adapted"
threads = 1
base = "base"
[problems]
families = ["reasoning-gym/chain_sum", "math:sums.jsonl", "sorting"]
levels = { sorting = [1], "reasoning-gym/chain_sum" = [1, 2], "math/sums" = [1, 3] }
settings = { "reasoning-gym/chain_sum" = { allow_negation = true } }
[evaluation]
problems = 6
max_tokens = 8
film = 3
[[stages]]
kind = "rl"
steps = 2
problems_per_rollout = 4
group_size = 2
max_tokens = 8
save_every = 1
reward = { own = "reward.py:shorter" }
optimizer = { learning_rate = 1e-3 }
"""
PRETRAIN = """
[[stages]]
kind = "pretrain"
steps = 1
batch_tokens = 512
optimizer.learning_rate = 1e-3
"""


def needs(package: str) -> pytest.MarkDecorator:
    there = shutil.which("bwrap") is not None and importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(
        not there and os.environ.get("CI") != "true", reason=f"bwrap or {package} is not installed"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the recipe names: a base of random weights, a list of sums, a reward."""
    tokenizer = tiny_tokenizer()
    network = tiny_dense(tokenizer.size)
    save_folder(
        tmp_path / "base",
        network.config,
        network.checkpoint_tensors(),
        tokenizer_files=tokenizer.files,
    )
    (tmp_path / "reward.py").write_text(REWARD)
    rows = [
        {"problem": f"What is ${n} + {n}$?", "answer": str(2 * n), "level": 1 + 2 * (n % 2)}
        for n in range(200)
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def read(folder: Path, text: str) -> LoadedRecipe:
    (folder / "r.toml").write_text(text)
    return read_recipe(str(folder / "r.toml"))


def refused(folder: Path, old: str, new: str) -> str:
    assert RECIPE.count(old) == 1
    with pytest.raises(UserError) as caught:
        read(folder, RECIPE.replace(old, new))
    return str(caught.value).removeprefix(f"{folder / 'r.toml'}: ")


@needs("reasoning_gym")
def test_an_unknown_name_of_reasoning_gym_has_its_nearest(folder: Path) -> None:
    assert refused(folder, '["reasoning-gym/chain_sum"', '["reasoning-gym/chain_sun"') == (
        "problems.families[1]: reasoning-gym has no family 'chain_sun': did you mean 'chain_sum'?"
    )


@needs("math_verify")
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('["reasoning-gym/chain_sum", "math:sums.jsonl", "sorting"]',
         '["math:sums.jsonl", "sorting", "gsm8k:none.jsonl"]',
         "problems.families[3]: FOLDER/none.jsonl cannot be read (No such file or directory): give "
         "the path of a file of JSON lines."),
        ('["reasoning-gym/chain_sum", ', '["math:", ',
         "problems.families[1]: 'math:' names no file: write math:path/to/file.jsonl."),
        ('["reasoning-gym/chain_sum", "math:sums.jsonl"', '["math:sums.jsonl"',
         "problems.levels.reasoning-gym/chain_sum is for a family that is not in "
         "problems.families; there are math/sums, sorting (and 1 more)."),
        ('"reasoning-gym/chain_sum", "math:sums.jsonl", "sorting"]\nlevels',
         '"math:sums.jsonl", "sorting"]\nlanguage = "zh"\nlevels',
         'problems.language is "zh", and math:sums.jsonl asks in English only.'),
    ],
    ids=range(4),
)  # fmt: skip
def test_a_mistake_is_one_sentence(old: str, new: str, said: str, folder: Path) -> None:
    assert refused(folder, old, new).replace(str(folder), "FOLDER") == said


@needs("math_verify")
def test_levels_that_a_list_lacks_are_named_before_the_run(folder: Path) -> None:
    text = RECIPE.replace('"reasoning-gym/chain_sum", ', "").replace(
        'levels = { sorting = [1], "reasoning-gym/chain_sum" = [1, 2], "math/sums" = [1, 3] }\n'
        'settings = { "reasoning-gym/chain_sum" = { allow_negation = true } }\n',
        "",
    )
    with pytest.raises(
        UserError, match=r"math/sums has no problem of level 2: its levels are 1, 3"
    ):
        read(folder, text)


def test_nothing_is_pretrained_on_problems_that_nobody_works_out(folder: Path) -> None:
    said = refused(folder, "[[stages]]", PRETRAIN + "[[stages]]")
    assert said.startswith("problems.families[1] (reasoning-gym/chain_sum) has no worked documents")
    assert "stages[1] (pretrain)" in said


@pytest.mark.slow
@needs("reasoning_gym")
def test_a_run_on_other_makers_problems(folder: Path) -> None:
    with open_adapters() as adapters:
        (folder / "r.toml").write_text(RECIPE)
        recipe = read_recipe(str(folder / "r.toml"), adapters)
        pid = adapters._gym.pid
        assert pid is not None
        out = folder / "run"
        assert not train(recipe, out, monitor=StopAt(1), adapters=adapters).finished
        assert adapters._gym.pid == pid  # one sandbox for reading and running
    assert not Path(f"/proc/{pid}").exists()
    assert train(recipe, out, resume=True).finished
    assert json.loads((out / "run.json").read_text())["identity"]["isolated"] is True
    metrics = lines(out / "metrics.jsonl")
    assert all("isolated" not in line for line in metrics)
    assert {frame["family"] for frame in lines(out / "film.jsonl")} == {
        "reasoning-gym/chain_sum",
        "math/sums",
        "sorting",
    }
    assert any("reward_accuracy/reasoning-gym/chain_sum" in line for line in metrics)


@pytest.mark.slow
@needs("reasoning_gym")
def test_a_run_without_a_sandbox_says_so_everywhere(folder: Path) -> None:
    with open_adapters(unsafe_no_sandbox=True) as adapters:
        (folder / "r.toml").write_text(RECIPE)
        recipe = read_recipe(str(folder / "r.toml"), adapters)
        train(recipe, folder / "run", adapters=adapters, monitor=StopAt(1))
    run = folder / "run"
    assert json.loads((run / "run.json").read_text())["identity"]["isolated"] is False
    for name in ("metrics.jsonl", "film.jsonl"):
        assert {line["isolated"] for line in lines(run / name)} == {False}
    with pytest.raises(UserError, match="isolated was false and is true"):
        train(recipe, run, resume=True)


@pytest.mark.slow
@needs("reasoning_gym")
def test_a_run_pauses_when_the_sandbox_fails_too_often(folder: Path) -> None:
    recipe, run = read(folder, RECIPE), folder / "run"
    with open_adapters() as adapters:
        adapters._gym._stats = SandboxStats(ok=980, sandbox_error=20)
        with pytest.raises(ModelError, match=r"rl step 1: 20 of 1\d\d\d gradings .*more than 1 in"):
            train(recipe, run, adapters=adapters)
    assert train(recipe, run, resume=True).finished
    assert [line["step"] for line in lines(run / "metrics.jsonl")] == [0, 1, 2, 2]
