"""Tiny models on disk and loaded, shared by the tests of the torch engine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forethought.engines.model import Model

for _room in ("models", "checkpoints"):
    sys.path.insert(0, str(Path(__file__).parents[1] / _room))
pytest.importorskip("torch")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """The shapes here are tiny: a second thread costs more than it computes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with one of `tiny_checkpoints.MODELS` and its tokenizer, made once."""
    import tiny_checkpoints

    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("tiny") / name
            tiny_checkpoints.make(name, made[name])
        return made[name]

    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Callable[[str], Path]) -> Iterator[Callable[[str], Model]]:
    """Such a model on the torch engine, loaded once; its text is lively nonsense."""
    import forethought as ft

    loaded: dict[str, Model] = {}

    def model(name: str) -> Model:
        if name not in loaded:
            loaded[name] = ft.load(str(tiny_folder(name)), engine="torch", device="cpu", threads=1)
        return loaded[name]

    yield model
    for each in loaded.values():
        each.close()


@pytest.fixture(scope="session")
def scripted_torch(scripted_path: Path) -> Iterator[Model]:
    """The scripted model on the torch engine."""
    import forethought as ft

    with ft.load(str(scripted_path), engine="torch", device="cpu", threads=1, context=512) as model:
        yield model


@pytest.fixture(scope="session", params=["llama.cpp", "torch"])
def scripted_either(request: pytest.FixtureRequest) -> Model:
    """The scripted model on one local engine and then on the other: what holds for both."""
    name = "scripted" if request.param == "llama.cpp" else "scripted_torch"
    model: Model = request.getfixturevalue(name)
    return model
