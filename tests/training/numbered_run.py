"""A run whose every step is a function of its number, so that its folder can be checked."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from forethought.training.run_files import LOCK
from forethought.training.run_folder import RunFolder

IDENTITY = {
    "forethought": "0.1.0",
    "recipe": "ab12",
    "threads": 2,
    "torch": "2.13.0",
    "python": "3.11",
    "machine": "x86_64",
    "capability": "AVX512",
    "commit": "abc",
    "host": "here",
    "started": "today",
}
RECIPE_TEXT = "# a recipe\nname = 'é'\n"


def state_of(number: int, size: int = 1000) -> dict[str, torch.Tensor]:
    """A pure function of the step, as training is."""
    noise = torch.Generator().manual_seed(number)
    return {
        "weight": torch.rand(size, generator=noise),
        "half": torch.rand(size // 4, generator=noise).to(torch.bfloat16),
        "random": noise.get_state(),
    }


def line_of(number: int) -> dict[str, float | int | str]:
    return {"step": number, "loss": 1 / number, "note": "x" * (number % 50)}


def step(run: RunFolder, number: int) -> None:
    run.append_metrics(line_of(number))
    run.append_timing({"step": number, "seconds": number / 7})
    for problem in range(number % 3):
        run.append_film({"step": number, "problem": problem, "text": "日本\n"})


def save(run: RunFolder, number: int, size: int = 1000, *, pinned: bool = False) -> None:
    run.save(number, state_of(number, size), {"step": number}, pinned=pinned)


def check(run: RunFolder, size: int = 1000) -> int:
    """Restore, and check tensors and logs against the step that they say; that step."""
    state = run.restore()
    number = 0
    if state is not None:
        number = state.number
        assert state.facts == {"step": number}
        expected = state_of(number, size)
        tensors = state.tensors()
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)
        assert max(run.states.numbers()) == number
    else:
        assert run.states.numbers() == []
    steps = range(1, number + 1)
    assert lines(run.metrics_path) == [line_of(n) for n in steps]
    assert [line["step"] for line in lines(run.timings_path)] == list(steps)
    assert [line["step"] for line in lines(run.film_path)] == [
        n for n in steps for _ in range(n % 3)
    ]
    return number


def lines(path: Path) -> list[dict[str, object]]:
    with path.open(encoding="utf-8", newline="\n") as stream:
        return [json.loads(line) for line in stream]


def new(path: Path) -> RunFolder:
    return RunFolder.create(path, IDENTITY, RECIPE_TEXT)


def again(path: Path, **changed: object) -> RunFolder:
    return RunFolder.resume(path, {**IDENTITY, **changed})


def content(folder: Path) -> dict[str, bytes]:
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != LOCK)
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}
