"""A whole run with a curriculum: stopped, killed or by two processes, it climbs as undisturbed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from climbing_run import write_recipe
from forethought.recipes.run import train
from micro_run import StopAt, lines, outcome

sys.path.append(str(Path(__file__).parents[1] / "training"))

from test_ranks import free_port, start

CHILD = """
import os, signal, sys
from pathlib import Path
from climbing_run import write_recipe
from forethought.recipes.run import train
from micro_run import StopAt
folder, resume, stop = Path(sys.argv[1]), sys.argv[2] == "resume", int(sys.argv[3])
class Killed(StopAt):
    # At the end of a step: after its metrics, before its state.
    def step(self, *args, **named):
        super().step(*args, **named)
        if self.stopping():
            os.kill(os.getpid(), signal.SIGKILL)
monitor = (Killed if sys.argv[2] == "killed" else StopAt)(stop or None)
train(write_recipe(folder), folder / "run", resume=resume, monitor=monitor)
"""
PRETRAINING = 60


def children(folder: Path, count: int, how: str = "new", stop: int = 0) -> list[Any]:
    """So many ranks of the run, begun. ``how``: "new", "resume" or "killed"."""
    port = free_port()
    command = ["-c", CHILD, str(folder), how]
    # Only the first rank hears of steps.
    return [
        start([*command, str(stop if rank == 0 else 0)], rank, port, count) for rank in range(count)
    ]


def ended(ranks: list[subprocess.Popen[str]]) -> None:
    for one in ranks:
        _, errors = one.communicate(timeout=180)
        assert one.returncode == 0, errors


def levels(run: Path, family: str = "lenient") -> list[int]:
    """The newest open level of each step."""
    key = f"open_level/{family}"
    return [line[key] for line in lines(run / "metrics.jsonl") if key in line]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert train(write_recipe(folder), folder / "run").finished
    return folder / "run"


def test_every_step_of_rl_says_what_is_open(whole: Path) -> None:
    found = levels(whole)
    assert len(found) == 8
    assert found == sorted(found)
    assert set(found) == {1, 2, 4}
    assert levels(whole, "sorting") == [1] * 8
    others = [line for line in lines(whole / "metrics.jsonl") if "open_level/lenient" not in line]
    assert all(line["stage"] == "pretrain" or line["pass_at_1"] is not None for line in others)


def test_held_out_problems_are_of_all_levels_from_the_start(whole: Path) -> None:
    film = lines(whole / "film.jsonl")
    first = {(f["family"], f["level"]) for f in film if f["stage"] == "rl" and f["step"] == 0}
    assert first == {("lenient", 1), ("lenient", 2), ("lenient", 4), ("sorting", 1)}


@pytest.mark.parametrize("stops", [(2,), (3, 4, 5)])
def test_a_climb_that_was_stopped_is_the_same_climb(
    stops: tuple[int, ...], whole: Path, tmp_path: Path
) -> None:
    recipe, out, done = write_recipe(tmp_path), tmp_path / "run", 0
    for number, stop in enumerate(stops):
        monitor = StopAt(PRETRAINING + stop - done)
        assert not train(recipe, out, resume=number > 0, monitor=monitor).finished
        done = PRETRAINING + stop
    assert train(recipe, out, resume=True).finished
    assert outcome(out) == outcome(whole)


def test_a_climb_that_was_killed_is_the_same_climb(whole: Path, tmp_path: Path) -> None:
    (child,) = children(tmp_path, 1, "killed", stop=PRETRAINING + 5)
    child.communicate(timeout=180)
    assert child.returncode == -signal.SIGKILL
    assert levels(tmp_path / "run") == levels(whole)[:5]
    ended(children(tmp_path, 1, "resume"))
    assert outcome(tmp_path / "run") == outcome(whole)


@pytest.mark.slow
def test_two_processes_climb_together_and_go_on_where_they_stopped(
    whole: Path, tmp_path: Path
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    ended(children(one, 2))
    found = levels(one / "run")
    assert found == sorted(found)
    assert len(set(found)) > 1
    ended(children(other, 2, stop=PRETRAINING + found.index(max(found))))
    assert not (other / "run" / "done.json").exists()
    ended(children(other, 2, "resume"))
    assert outcome(other / "run") == outcome(one / "run")
