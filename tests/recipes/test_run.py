"""A recipe from its first step to its last: what is on disk, and that stopping changes nothing."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import forethought as ft
from forethought.errors import UserError
from forethought.recipes.run import train
from forethought.training.stage import METRICS, TrainingStopped
from micro_run import RECIPE, StopAt, lines, outcome, write_recipe

STEPS = 14


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    result = train(write_recipe(folder), folder / "run")
    assert result.finished
    return folder / "run"


def test_every_line_has_the_keys_and_pass_at_1_stands_on_evaluations_alone(whole: Path) -> None:
    metrics = lines(whole / "metrics.jsonl")
    assert all(list(line)[: 2 + len(METRICS)] == ["stage", "step", *METRICS] for line in metrics)
    evaluated = [(line["stage"], line["step"]) for line in metrics if line["pass_at_1"] is not None]
    assert evaluated == [("pretrain", 8), ("rl", 0), ("rl", 4), ("rl", 6)]
    assert [line["step"] for line in metrics if line["stage"] == "rl"] == [
        0,
        1,
        2,
        3,
        4,
        4,
        5,
        6,
        6,
    ]
    trained = [line for line in metrics if line["pass_at_1"] is None and line["stage"] == "rl"]
    assert all(line["kl_sampler_trainer"] < 1e-3 for line in trained[::2])
    # On the second minibatch the policy has moved on: no mismatch of sampler and trainer.
    assert all(line["kl_sampler_trainer"] is None for line in trained[1::2])
    assert all(line["grad_norm"] > 0 for line in trained)


def test_clock_times_are_in_timings_alone(whole: Path) -> None:
    assert "seconds" not in (whole / "metrics.jsonl").read_text()
    timings = lines(whole / "timings.jsonl")
    assert all(
        any(key.startswith("seconds") and value > 0 for key, value in line.items())
        for line in timings
    )


def test_the_film_shows_the_same_problems_at_every_evaluation(whole: Path) -> None:
    film = lines(whole / "film.jsonl")
    assert len(film) == 4 * 3
    for number in range(3):
        shots = [frame for frame in film if frame["number"] == number]
        assert len({frame["question"] for frame in shots}) == 1
        assert [frame["step"] for frame in shots] == [8, 0, 4, 6]
    # The evaluation before the first step of RL is that of the same weights.
    texts = {(f["stage"], f["step"], f["number"]): f["text"] for f in film}
    assert texts["pretrain", 8, 0] == texts["rl", 0, 0]


def test_a_run_ends_as_a_model_that_can_be_asked(whole: Path) -> None:
    with ft.load(str(whole)) as model:
        reply = model.ask("Sort from smallest to largest: 7, 2, 9", max_tokens=12, seed=1)
    assert reply.usage.completion_tokens > 0
    base = whole / "checkpoints" / "1-pretrain"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        p.name for p in base.iterdir()
    }


@pytest.mark.parametrize("stops", [(1,), (4, 9), (8, 12)])
def test_a_run_that_was_stopped_and_resumed_is_the_same_run(
    whole: Path, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    recipe, out = write_recipe(tmp_path), tmp_path / "run"
    done = 0
    for number, stop in enumerate(stops):
        monitor = StopAt(stop - done)
        result = train(recipe, out, resume=number > 0, monitor=monitor)
        assert not result.finished
        # A stop in the middle of a rollout waits for its minibatches.
        done = stop + (stop > 8 and (stop - 8) % 2)
    assert train(recipe, out, resume=True).finished
    assert outcome(out) == outcome(whole)


def test_a_run_that_rests_after_a_stage_goes_on_as_if_it_had_not(
    whole: Path, tmp_path: Path
) -> None:
    recipe, out = write_recipe(tmp_path), tmp_path / "run"
    rested = train(recipe, out, until="pretrain")
    assert not rested.finished
    assert rested.summary["stage"] == "pretrain"
    assert {line["stage"] for line in lines(out / "metrics.jsonl")} == {"pretrain"}
    assert (out / "checkpoints" / "1-pretrain" / "model.safetensors").is_file()
    # Asked again it still rests there, and after the last stage there is nothing to rest from.
    assert not train(recipe, out, resume=True, until="pretrain").finished
    assert train(recipe, out, resume=True, until="rl").finished
    assert outcome(out) == outcome(whole)


def test_a_stage_to_rest_after_must_not_be_over(tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path), tmp_path / "run"
    assert not train(recipe, out, monitor=StopAt(10)).finished
    before = lines(out / "metrics.jsonl")
    assert before[-1]["stage"] == "rl"
    with pytest.raises(UserError, match=r"--until pretrain: the run in .* is in rl already"):
        train(recipe, out, resume=True, until="pretrain")
    assert lines(out / "metrics.jsonl") == before


def test_a_stage_to_rest_after_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such stage; did you mean pretrain\?$"):
        train(write_recipe(tmp_path), tmp_path / "run", until="pretraining")
    assert not (tmp_path / "run").exists()


def test_lanes_of_a_resumed_run_are_those_of_the_undisturbed_one(tmp_path: Path) -> None:
    text = RECIPE.replace("threads = 1\n", "threads = 1\nlanes = 2\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    other = tmp_path / "a" / "run"
    train(write_recipe(tmp_path / "a", text), other)
    recipe, out = write_recipe(tmp_path / "b", text), tmp_path / "b" / "run"
    for number, steps in enumerate((3, 8)):
        assert not train(recipe, out, resume=number > 0, monitor=StopAt(steps)).finished
    with pytest.raises(UserError, match="lanes"):
        train(write_recipe(tmp_path / "b"), out, resume=True)
    assert train(recipe, out, resume=True).finished
    assert outcome(out) == outcome(other)


def test_another_recipe_seed_or_thread_count_is_not_resumed(tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path), tmp_path / "run"
    train(recipe, out, monitor=StopAt(2))
    with pytest.raises(UserError, match="seed"):
        train(recipe.changed(seed=4), out, resume=True)
    with pytest.raises(UserError, match="threads"):
        train(recipe.changed(threads=2), out, resume=True)
    with pytest.raises(UserError):
        train(recipe, out)
    with pytest.raises(UserError):
        train(recipe, tmp_path / "nothing", resume=True)


def test_a_loss_spike_stops_with_the_state_before_it(tmp_path: Path) -> None:
    text = RECIPE.replace("steps = 8\n", "steps = 60\n").replace(
        "learning_rate = 1e-2, warmup_steps = 2, decay_steps = 3", "learning_rate = 1e-3"
    )
    text = text.replace('kind = "pretrain"\n', 'kind = "pretrain"\nspike_factor = 0.5\n')
    recipe, out = write_recipe(tmp_path, text), tmp_path / "run"
    with pytest.raises(TrainingStopped, match=r"pretrain step \d+: the loss is .*learning_rate"):
        train(recipe, out)
    last = lines(out / "metrics.jsonl")[-1]["step"]
    assert (out / "state" / f"{last:08d}" / "manifest.json").is_file()
    # It is met again: nothing was skipped on the way.
    with pytest.raises(TrainingStopped, match=f"pretrain step {last + 1}:"):
        train(recipe, out, resume=True)


def test_python_needs_a_name_and_a_folder_only(tmp_path: Path) -> None:
    write_recipe(tmp_path, RECIPE.replace("steps = 6\n", "steps = 2\n"))
    result = ft.train(tmp_path / "micro.toml", tmp_path / "run", seed=5)
    assert result.finished
    assert result.summary["stage"] == "rl"


_CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from micro_run import write_recipe
from forethought.recipes.run import train
folder = Path(sys.argv[1])
print("begun", flush=True)
train(write_recipe(folder), folder / "run", resume=sys.argv[2] == "resume")
"""


def _child(folder: Path, resume: bool) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(folder), "resume" if resume else "new",
         str(Path(__file__).parents[1])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def _killed_run(folder: Path, kills: int, seed: int) -> Any:
    """The outcome of a run that was killed so often, at random times, and resumed each time.

    A kill that comes before the folder is a run leaves nothing to resume: it begins anew then.
    """
    rng = random.Random(seed)
    left = kills
    while True:
        resume = (folder / "run" / "run.json").is_file()
        child = _child(folder, resume)
        assert child.stdout is not None
        child.stdout.readline()
        if left:
            # A whole run takes a few seconds from here; every part of it is hit by some kill.
            time.sleep(rng.uniform(0.0, 2.5) ** 1.5)
            left -= 1
            child.send_signal(signal.SIGKILL)
        _, errors = child.communicate()
        over = child.returncode == 0 or "finished" in errors
        assert over or child.returncode == -signal.SIGKILL, errors
        if over:
            found = outcome(folder / "run")
            if not left:
                return found
            # It ended before its kills were used up: the rest of them meet another run.
            shutil.rmtree(folder / "run")


@pytest.mark.skipif(os.name != "posix", reason="kills with SIGKILL")
def test_a_killed_run_is_the_same_run(whole: Path, tmp_path: Path) -> None:
    assert _killed_run(tmp_path, 2, seed=1) == outcome(whole)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(os.name != "posix", reason="kills with SIGKILL")
def test_thirty_kills_change_nothing(whole: Path, tmp_path: Path) -> None:
    assert _killed_run(tmp_path, 30, seed=2) == outcome(whole)
