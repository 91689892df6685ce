"""The number of threads: measured once on the real wheel, remembered, overridable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forethought import paths
from forethought.engines import threads
from forethought.engines.llama_server import LoadOptions
from forethought.engines.machine import available_memory, cores, total_memory


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORETHOUGHT_HOME", str(tmp_path))


def test_measured_once_then_remembered(scripted_path: Path) -> None:
    notes: list[str] = []
    options = LoadOptions(scripted_path, cells=256)
    chosen = threads.choose_threads(options, notes.append)
    assert chosen in threads.candidates()
    assert threads.remembered_threads(scripted_path) == (chosen if notes else None)
    asked = len(notes)
    assert threads.choose_threads(options, notes.append) == chosen
    assert len(notes) == asked


def test_what_is_remembered_wins_and_nonsense_does_not(scripted_path: Path) -> None:
    threads.remember(scripted_path, 7)
    assert threads.choose_threads(LoadOptions(scripted_path, cells=256)) == 7
    file = paths.cache_dir() / "threads.json"
    key = next(iter(json.loads(file.read_text())))
    for nonsense in ("{", "[]", json.dumps({key: "many"}), json.dumps({key: 0})):
        file.write_text(nonsense)
        assert threads.remembered_threads(scripted_path) is None


def test_a_measurement_is_a_speed(scripted_path: Path) -> None:
    assert threads.measure(LoadOptions(scripted_path, cells=256, threads=1)) > 10


def test_the_machine() -> None:
    physical, logical = cores()
    assert 1 <= physical <= logical
    assert 0 < available_memory() <= total_memory()
