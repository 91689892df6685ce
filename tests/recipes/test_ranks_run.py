"""A whole recipe by two processes: the run of one, and its own again after a stop."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from forethought.cli import train as train_command
from forethought.cli.gpus import run_on_each
from forethought.recipes.run import train
from micro_run import RECIPE, lines, outcome, write_recipe

sys.path.append(str(Path(__file__).parents[1] / "training"))

from test_ranks import free_port, start

CHILD = """
import sys
from pathlib import Path
from forethought.recipes.run import train
from micro_run import StopAt, write_recipe
folder, resume, stop = Path(sys.argv[1]), sys.argv[2] == "resume", sys.argv[3]
class Asked(StopAt):
    # Hears of no step, as the second rank does; asks to stop the so manyth time it is asked.
    calls = 0
    def stopping(self):
        self.calls += 1
        return stop != "none" and self.calls >= int(stop)
monitor = Asked()
print(train(write_recipe(folder), folder / "run", resume=resume, monitor=monitor).finished)
"""


def two(folder: Path, resume: bool = False, stops: tuple[str, str] = ("none", "none")) -> list[Any]:
    """The micro recipe by two ranks; what each printed, or the error of those that failed."""
    port = free_port()
    ranks = [
        start(["-c", CHILD, str(folder), "resume" if resume else "new", stops[rank]], rank, port)
        for rank in range(2)
    ]
    found = []
    for one in ranks:
        out, errors = one.communicate(timeout=180)
        found.append(out.strip() if one.returncode == 0 else errors)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    assert two(folder) == ["True", "True"]
    return folder / "run"


def test_it_is_the_run_of_one_process_but_for_rounding(run: Path, tmp_path: Path) -> None:
    assert train(write_recipe(tmp_path), tmp_path / "run").finished
    mine, one = lines(run / "metrics.jsonl"), lines(tmp_path / "run" / "metrics.jsonl")
    assert [(line["stage"], line["step"]) for line in mine] == [
        (line["stage"], line["step"]) for line in one
    ]
    for here, there in zip(mine, one, strict=True):
        assert here.keys() == there.keys()
        if here["stage"] == "pretrain" and here["pass_at_1"] is None:
            assert here["loss"] == pytest.approx(there["loss"], rel=1e-4)
            assert here["grad_norm"] == pytest.approx(there["grad_norm"], rel=1e-3)
    first = next(i for i, line in enumerate(mine) if line["stage"] == "rl" and line["step"] == 1)
    for key in ("reward", "entropy", "thought_tokens", "tokens"):
        assert mine[first][key] == pytest.approx(one[first][key], rel=1e-3), key
    weights, others = (load_file(at / "model.safetensors") for at in (run, tmp_path / "run"))
    assert weights.keys() == others.keys()


@pytest.mark.slow
def test_a_stop_that_one_is_asked_for_stops_both_and_resumes_to_the_same_bits(
    run: Path, tmp_path: Path
) -> None:
    # The second rank alone is asked; the first writes.
    assert two(tmp_path, stops=("none", "5")) == ["False", "False"]
    assert two(tmp_path, resume=True, stops=("6", "none")) == ["False", "False"]
    assert two(tmp_path, resume=True) == ["True", "True"]
    assert outcome(tmp_path / "run") == outcome(run)


def test_another_number_of_processes_does_not_go_on(tmp_path: Path) -> None:
    assert two(tmp_path, stops=("3", "none")) == ["False", "False"]
    with pytest.raises(Exception, match="ranks was 2"):
        train(write_recipe(tmp_path), tmp_path / "run", resume=True)


def test_a_mistake_ends_both(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    first, second = two(tmp_path)
    assert "holds something else" in first
    assert "another process of this run has ended" in second


@pytest.mark.slow
def test_the_benchmark_of_two_gpus_takes_the_same_steps_on_one_and_two() -> None:
    sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
    from two_gpus import measured

    one, both = measured(1, smoke=True), measured(2, smoke=True)
    assert (one["ranks"], both["ranks"]) == (1, 2)
    assert both["tokens"] == one["tokens"]
    assert both["loss"] == pytest.approx(one["loss"], rel=1e-2, abs=1e-6)
    assert both["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-2)


class TestOnEachGpu:
    """The launcher, with programs that need no GPU."""

    def test_each_has_its_place_and_the_first_the_terminal(
        self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        self._program(
            monkeypatch,
            tmp_path,
            "import os, pathlib\n"
            "keys = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR')\n"
            "print(*(os.environ[key] for key in keys), *sys.argv[1:])\n"
            f"pathlib.Path({str(tmp_path)!r}, 'rank' + os.environ['RANK']).touch()\n",
        )
        assert run_on_each(["train", "x"], 3) == 0
        assert capfd.readouterr().out == "0 0 3 127.0.0.1 train x\n"
        assert all((tmp_path / f"rank{rank}").exists() for rank in range(3))

    def test_the_first_that_fails_is_heard_and_ends_the_others(
        self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("forethought.cli.gpus._PATIENCE", 0.5)
        self._program(
            monkeypatch,
            tmp_path,
            "import os, time\n"
            "if os.environ['RANK'] == '1':\n"
            "    print('no memory', file=sys.stderr)\n"
            "    raise SystemExit(2)\n"
            "time.sleep(60)\n",
        )
        assert run_on_each([], 2) == 2
        assert capfd.readouterr().err == "no memory\n"

    def _program(self, monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
        """A package of the program's name that does something else."""
        package = folder / "path" / "forethought"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(f"import sys\n{text}")
        monkeypatch.setenv("PYTHONPATH", str(package.parent))


@pytest.mark.parametrize(
    ("options", "device", "message"),
    [
        (["--gpus", "2"], "cpu", '--gpus 2 is for a recipe with device = "cuda"'),
        (["--gpus", "65"], "cpu", "--gpus must be from 1 to 64, not 65"),
        (["--gpus", "2"], "cuda", "--gpus 2: torch finds 0 here"),
        ([], "cuda", "torch finds no CUDA GPU here; run the recipe micro on a machine that has"),
        (["--gpus", "2", "--until", "pre"], "cuda", "--until pre: the recipe micro has no such"),
    ],
)
def test_gpus_that_are_not_there(
    options: list[str], device: str, message: str, tmp_path: Path, capsys: Any
) -> None:
    import torch

    from forethought.cli.main import main

    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    write_recipe(tmp_path, RECIPE.replace("threads = 1", f'threads = 1\ndevice = "{device}"', 1))
    recipe, out = str(tmp_path / "micro.toml"), str(tmp_path / "run")
    assert main(["train", recipe, "--out", out, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_rank_does_not_start_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The ranks have the same command line."""
    monkeypatch.setenv("RANK", "0")
    called: list[str] = []
    monkeypatch.setattr(train_command, "_train", lambda *a, **k: called.append("trained") or 0)
    monkeypatch.setattr(train_command, "_train_on_each", lambda *a: called.append("started") or 0)
    from forethought.cli.main import main

    assert main(["train", "tiny-zero", "--out", str(tmp_path / "run"), "--gpus", "2"]) == 0
    assert called == ["trained"]
