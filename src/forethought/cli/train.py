"""``forethought train``: a recipe, from the first token to a model that thinks."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forethought.cli import options
from forethought.cli.interrupt import press, raise_if_pressed
from forethought.cli.settings import MAX_SEED, MAX_THREADS
from forethought.cli.terminal import note, print_json, require
from forethought.cli.terminal import show as show_text
from forethought.errors import UserError

if TYPE_CHECKING:
    from forethought.problems.adapters.adapters import Adapters
    from forethought.recipes.reading import LoadedRecipe

INTERRUPTED = 130
_MOST_GPUS = 64
_STOPPING = b"forethought: stopping after this step; once more leaves at once.\n"


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="The name of a bundled recipe, or the path of a TOML file."
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option("--out", help="The run's folder: a new one, or with --resume its own."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out from its last state.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything and say what it takes (sizes, memory, time); train nothing.",
        ),
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Another seed than the recipe's.", metavar="N"),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", help="Other CPU threads than the recipe's.", metavar="N"),
    ] = None,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Write the metrics for TensorBoard, too."),
    ] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Write where the time goes, and traces of a few steps, to DIR/profile.",
        ),
    ] = False,
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", help="Train on so many GPUs of this machine together.", metavar="N"),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--until", help="Rest after this stage, saved; --resume goes on.", metavar="STAGE"
        ),
    ] = None,
    as_json: options.AsJson = False,
    unsafe_no_sandbox: Annotated[
        bool,
        typer.Option(
            "--unsafe-no-sandbox",
            help="Grade problems of reasoning-gym, GSM8K and MATH outside a sandbox, on your risk.",
        ),
    ] = False,
) -> Callable[[], int]:
    """Train a model as a recipe says. Progress goes to stderr; needs the extra train.

    \b
      forethought train my-recipe.toml --dry-run
      forethought train my-recipe.toml --out my-run
      forethought train my-recipe.toml --out my-run --resume
      forethought train nano-zero --out runs/nano --until pretrain
      forethought train my-recipe.toml --out my-run --gpus 2

    Ctrl-C (or SIGTERM) finishes the step, saves, and prints the line that goes on from there;
    a second one leaves at once, and the run goes on from its last saved state.
    """
    asked = _Asked(recipe, out, seed, threads, unsafe_no_sandbox, gpus)

    def run() -> int:
        if dry_run:
            require(not resume, "--dry-run and --resume exclude each other: leave one out.")
            require(not profile, "--dry-run and --profile exclude each other: leave one out.")
            return _dry_run(asked, as_json=as_json)
        if gpus is not None and gpus != 1 and "RANK" not in os.environ:
            flags = {"--resume": resume, "--tensorboard": tensorboard, "--profile": profile}
            flags["--json"] = as_json
            given = [flag for flag, there in flags.items() if there]
            return _train_on_each(asked, given, until)
        return _train(
            asked,
            resume=resume,
            tensorboard=tensorboard,
            profile=profile,
            until=until,
            as_json=as_json,
        )

    return run


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the command line names."""

    recipe: str
    out: str | None
    seed: int | None
    threads: int | None
    unsafe_no_sandbox: bool
    gpus: int | None = None

    @contextmanager
    def load(self) -> Iterator[tuple[LoadedRecipe, Adapters]]:
        """The recipe with the options in it, and what grades other makers' problems, closed at the
        end. Raises UserError: one sentence."""
        from forethought.engines.load import require_torch

        _check_range("--seed", self.seed, 0, MAX_SEED)
        _check_range("--threads", self.threads, 1, MAX_THREADS)
        require_torch("train")
        from forethought.recipes.api import let_threads_sleep

        let_threads_sleep()
        from forethought.recipes.reading import open_adapters, read_recipe

        with open_adapters(unsafe_no_sandbox=self.unsafe_no_sandbox) as adapters:
            loaded = read_recipe(self.recipe, adapters)
            if loaded.adapted and self.unsafe_no_sandbox:
                note("Graders run without a sandbox: model output is evaluated on this machine.")
            yield loaded.changed(seed=self.seed, threads=self.threads), adapters

    def going_on(self) -> str:
        """The command line that goes on with the run."""
        words = ["forethought", *self.words(), "--resume"]
        return shlex.join(words)

    def words(self) -> list[str]:
        """The command, but for its flags."""
        words = ["train", self.recipe, "--out", self.out or ""]
        numbers = (("--seed", self.seed), ("--threads", self.threads), ("--gpus", self.gpus))
        for option, value in numbers:
            words += [] if value is None else [option, str(value)]
        words += ["--unsafe-no-sandbox"] if self.unsafe_no_sandbox else []
        return words


def _check_range(option: str, value: int | None, low: int, high: int) -> None:
    require(
        value is None or low <= value <= high,
        f"{option} must be from {low} to {high}, not {value}.",
    )


def _dry_run(asked: _Asked, *, as_json: bool) -> int:
    with asked.load() as (loaded, _):
        from forethought.recipes.dry_run import dry_run

        found = dry_run(loaded)
    if as_json:
        print_json(found.as_json(), indent=2)
    else:
        show_text(found.as_text())
    return 0


def _train_on_each(asked: _Asked, flags: Sequence[str], until: str | None) -> int:
    """The same command as one rank for each GPU, once all that can be wrong with it is checked."""
    from forethought.cli.gpus import run_on_each

    count = asked.gpus or 0
    _check_range("--gpus", count, 1, _MOST_GPUS)
    _out(asked)
    with asked.load() as (loaded, _):
        from forethought.models.loading import gpus
        from forethought.recipes.run import check_until

        check_until(loaded.recipe, until)
        device, found = loaded.recipe.device, gpus()
        require(
            device == "cuda",
            f'--gpus {count} is for a recipe with device = "cuda", and this one has "{device}".',
        )
        require(count <= found, f"--gpus {count}: torch finds {found} here.")
    resting = [] if until is None else ["--until", until]
    return run_on_each([*asked.words(), *flags, *resting], count)


def _out(asked: _Asked) -> Path:
    if not asked.out:
        raise UserError("train needs --out DIR, the folder of the run (or --dry-run).")
    from forethought.paths import expand

    return expand(asked.out)


def _train(
    asked: _Asked,
    *,
    resume: bool,
    tensorboard: bool,
    profile: bool,
    until: str | None,
    as_json: bool,
) -> int:
    out = _out(asked)
    with asked.load() as (loaded, adapters):
        from forethought.cli.train_display import TrainDisplay
        from forethought.recipes import run
        from forethought.training.ranks import rank_here

        first = rank_here() == 0  # of several processes that train together one has the terminal
        with (
            Path(os.devnull).open("w") as nowhere,
            StopAfterStep() as stop,
            TrainDisplay(sys.stderr if first else nowhere, loaded.recipe.name, stop) as display,
        ):
            result = run.train(
                loaded,
                out,
                resume=resume,
                monitor=display,
                tensorboard=tensorboard,
                profile=profile,
                until=until,
                adapters=adapters,
            )
    if not first:
        return 0
    if profile:
        from forethought.training.run_files import PHASES_TEXT, PROFILE

        note((result.path / PROFILE / PHASES_TEXT).read_text("utf-8").rstrip())
    if as_json:
        print_json(
            {
                "recipe": loaded.recipe.name,
                "digest": loaded.digest,
                "path": str(result.path),
                "finished": result.finished,
                "summary": result.summary,
            },
            indent=2,
        )
    if result.finished:
        note(f"Done: {_shown(result.path)}")
        return 0
    note(f"resumable: {asked.going_on()}")
    return INTERRUPTED if stop.signal == signal.SIGINT else 0


def _shown(path: Path) -> str:
    return shlex.quote(str(path))


class StopAfterStep:
    """While entered, the first Ctrl-C or SIGTERM asks the run to stop, the second one raises.

    Calling it says whether the run was asked. The handler writes with `os.write` alone: it may
    interrupt anything, also a write to the same terminal.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopAfterStep:
        raise_if_pressed()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._asked)
        return self

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            press(number, frame)
        self.signal = signal.Signals(number)
        try:
            if not os.isatty(2):  # on a terminal the display says it
                os.write(2, _STOPPING)
        except OSError:
            pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
