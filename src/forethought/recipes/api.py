"""Training from Python: ``ft.train("tiny-zero", out="runs/tiny")``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from forethought.errors import UserError

if TYPE_CHECKING:
    from forethought.recipes.reading import LoadedRecipe
    from forethought.recipes.run import RunResult
    from forethought.training.monitor import Monitor

# What the extra brings: any of them missing means that it is not installed.
_OF_THE_EXTRA = frozenset({"torch", "numpy", "safetensors", "tokenizers"})


def let_threads_sleep() -> None:
    """Make torch's helper threads sleep between operations instead of spinning, if torch is not
    loaded yet. Where other programs want the cores too, spinning ones slow a small network down
    many times; on idle cores sleeping ones cost a few per cent."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def train(
    recipe: str | os.PathLike[str] | LoadedRecipe,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    monitor: Monitor | None = None,
    seed: int | None = None,
    threads: int | None = None,
    tensorboard: bool = False,
    profile: bool = False,
    until: str | None = None,
    unsafe_no_sandbox: bool = False,
) -> RunResult:
    """Run a recipe (the name of a bundled one, or a TOML file) in the folder ``out``.

    ``out`` becomes a Hugging Face folder at the end. ``resume`` goes on with the run that is there.
    ``seed`` and ``threads`` take the place of the recipe's. ``profile`` writes where the time goes
    to ``out/profile``. ``until`` lets the run rest, saved, after that stage.
    ``unsafe_no_sandbox`` grades the problems of reasoning-gym, GSM8K and MATH without isolation.
    Raises UserError for a mistake in the recipe or the folder, ModelError where training cannot go
    on; the state is saved then.
    """
    let_threads_sleep()
    try:
        from forethought.recipes import reading, run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _OF_THE_EXTRA:
            raise
        raise UserError(
            f"training needs {error.name}; install it with: pip install 'forethought[train]'"
        ) from None
    with reading.open_adapters(unsafe_no_sandbox=unsafe_no_sandbox) as adapters:
        if isinstance(recipe, str | os.PathLike):
            recipe = reading.read_recipe(os.fspath(recipe), adapters)
        return run.train(
            recipe.changed(seed=seed, threads=threads),
            Path(out),
            resume=resume,
            monitor=monitor,
            tensorboard=tensorboard,
            profile=profile,
            until=until,
            adapters=adapters,
        )
