"""Run folders of processes that are killed at any moment: the next one goes on from a whole state.

Started as a program, this file is the process that forks training processes and kills them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from forethought.errors import UserError
from forethought.training.run_files import STATE
from forethought.training.run_folder import RunFolder
from training.numbered_run import IDENTITY, RECIPE_TEXT, again, check, new, save, step

TESTS = Path(__file__).parents[1]


def chaos(*arguments: object, limit_s: float = 240) -> dict[str, int]:
    """Run this file as a program; what its last line says."""
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_killed_at_random_moments(tmp_path):
    """Rule R25: 60 times, in states of some megabytes."""
    found = chaos("random", tmp_path / "run", 60)
    assert found["kills"] == 60
    assert found["step"] > 5


@pytest.mark.slow
def test_killed_at_random_moments_for_longer(tmp_path):
    assert chaos("random", tmp_path / "run", 200)["kills"] == 200


def test_killed_at_some_calls_that_name_a_file(tmp_path):
    """From the making of the folder to the second retention, with one state kept."""
    assert chaos("calls", tmp_path / "runs", 7)["kills"] > 10


@pytest.mark.slow
def test_killed_at_every_call_that_names_a_file(tmp_path):
    assert chaos("calls", tmp_path / "runs", 1)["kills"] > 70


MEGABYTES = 500_000
"""Numbers of a state of 2.3 MB."""


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def _open_run(path: Path, keep: int = 2) -> RunFolder:
    """As ``train`` does: the run that is there, or a new one."""
    try:
        return RunFolder.resume(path, IDENTITY, keep=keep)
    except UserError:
        return RunFolder.create(path, IDENTITY, RECIPE_TEXT, keep=keep)


def _train(path: Path, tell: int, size: int, steps: int, keep: int = 2) -> None:
    run = _open_run(path, keep)
    first = check(run, size)
    os.write(tell, b"restored %d\n" % first)
    for number in range(first + 1, first + 1 + steps):
        step(run, number)
        save(run, number, size, pinned=number % 40 == 0)
        os.write(tell, b"saved %d\n" % number)
    run.close()


def _heard(listen: int) -> dict[str, int]:
    """The last that the child said of each kind."""
    text = os.read(listen, 1 << 16)
    return {kind: int(n) for kind, n in (line.split() for line in text.decode().splitlines())}


def _random(path: Path, kills: int) -> dict[str, int]:
    """What a child said is saved must be what the next one restores, or one that came after."""
    chance = random.Random(kills)
    saved = _refuse_while_alive(path)
    for _ in range(kills):
        listen, tell = os.pipe()
        child = _fork(lambda: _train(path, tell, MEGABYTES, 1_000_000))  # noqa: B023
        time.sleep(chance.uniform(0, 0.25))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the child failed"
        os.write(tell, b"end 0\n")
        heard = _heard(listen)
        os.close(listen)
        os.close(tell)
        if "restored" in heard:
            assert saved <= heard["restored"] <= saved + 1, (saved, heard)
            saved = heard.get("saved", heard["restored"])
    with _open_run(path) as run:
        assert saved <= check(run, MEGABYTES) <= saved + 1
        return {"kills": kills, "step": run.states.numbers()[-1]}


def _die_at(nth: int) -> None:
    """Kill this process at its nth call that opens, renames, makes or removes a file."""
    left = nth
    watched = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate"}

    def hook(event: str, _: object) -> None:
        nonlocal left
        if event in watched:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _calls(path: Path, every: int) -> dict[str, int]:
    """A run for each ``every``-th call, killed there, that the next process goes on with."""
    kills = 0
    while True:
        nth = 1 + kills * every
        run = path / str(nth)
        listen, tell = os.pipe()

        def doomed() -> None:
            _die_at(nth)  # noqa: B023
            _train(run, tell, 1000, 3, keep=1)  # noqa: B023

        _, status = os.waitpid(_fork(doomed), 0)
        os.write(tell, b"end 0\n")
        saved = _heard(listen).get("saved", 0)
        _, after = os.waitpid(_fork(lambda: _train(run, tell, 1000, 2, keep=1)), 0)  # noqa: B023
        os.write(tell, b"end 0\n")
        heard = _heard(listen)
        os.close(listen)
        os.close(tell)
        assert after == 0, f"killed at call {nth}, and not resumed"
        assert saved <= heard["restored"] <= saved + 1, (nth, saved, heard)
        left = {p.name for p in (run / STATE).iterdir()}
        assert left == {"LATEST", f"{heard['saved']:08d}"}, (nth, left)
        shutil.rmtree(run)
        if status == 0:
            return {"kills": kills, "step": heard["saved"]}
        assert os.WIFSIGNALED(status), nth
        kills += 1


def _refuse_while_alive(path: Path) -> int:
    """No second process trains in the folder while the first lives; what that one saved."""
    listen, tell = os.pipe()
    child = _fork(lambda: _train(path, tell, MEGABYTES, 1_000_000))
    heard: dict[str, int] = {}
    while "saved" not in heard:
        heard = _heard(listen)
    for attempt in (again, new):
        with pytest.raises(UserError, match="Another process is training"):
            attempt(path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.write(tell, b"end 0\n")
    heard |= _heard(listen)
    os.close(listen)
    os.close(tell)
    return heard["saved"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    modes = {"random": _random, "calls": _calls}
    print(json.dumps(modes[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))))
