"""Fixtures for all tests: the real model, found or fetched once, and a scripted one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from forethought.checkpoints import pull, store
from forethought.engines.model import Model
from forethought.errors import DownloadError

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell makes its background jobs ignore Ctrl-C, and every child here would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).parents[1]
LOCAL_MODELS = REPOSITORY / ".cache" / "models"


def _models_root() -> Path | None:
    """Where smollm2:135m is on disk: the user's models, else fetched beside the repository."""
    for root in (None, LOCAL_MODELS):
        found = store.find_installed("smollm2:135m", root=root)
        if found is not None:
            return root or store.paths.models_dir()
    os.environ["FORETHOUGHT_MODELS"] = str(LOCAL_MODELS)
    try:
        pull.pull("smollm2:135m")
    except DownloadError:
        return None
    return LOCAL_MODELS


@pytest.fixture(scope="session", autouse=True)
def _isolated_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Models come from where they are; everything else of the user's home stays untouched."""
    models = _models_root()
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("FORETHOUGHT_"):
                patch.delenv(name)
        patch.setenv("FORETHOUGHT_HOME", str(home))
        patch.setenv("FORETHOUGHT_MODELS", str(models or LOCAL_MODELS))
        # No measurement in the processes that the tests start. Two threads collapse where something
        # else computes too, as another worker of the tests does.
        patch.setenv("FORETHOUGHT_THREADS", "1")
        yield home


@pytest.fixture(scope="session")
def smollm2_path(_isolated_home: Path) -> Path:
    """The GGUF of smollm2:135m; skips where it is neither on disk nor to be fetched."""
    found = store.find_installed("smollm2:135m")
    if found is None:
        pytest.skip("smollm2:135m is not on disk and cannot be fetched here")
    return found.path


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> Iterator[Model]:
    """smollm2:135m loaded in reproducible mode with four slots, shared by all tests."""
    import forethought as ft

    with ft.load("smollm2:135m", slots=4, threads=1, reproducible=True) as model:
        yield model


@pytest.fixture(scope="session")
def scripted_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF whose greedy text is written down in :mod:`scripted_model`."""
    from scripted_model import write_scripted_model

    return write_scripted_model(tmp_path_factory.mktemp("scripted") / "scripted.gguf")


@pytest.fixture(scope="session")
def scripted(scripted_path: Path) -> Iterator[Model]:
    """The scripted model, loaded."""
    import forethought as ft

    with ft.load(str(scripted_path), threads=1, context=512, slots=4) as model:
        yield model
