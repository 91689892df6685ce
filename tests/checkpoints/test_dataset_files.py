"""Data files from the disk, and from a hub on a local socket."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from forethought.checkpoints.dataset_files import dataset_file
from forethought.errors import DownloadError, UserError
from hub_server import HubServer

TEXT = '{"question": "1 + 1?", "answer": "#### 2"}\n'
SPEC = "hf://openai/gsm8k/main/test.jsonl"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    file = tmp_path / "hub/datasets/openai/gsm8k/resolve/main/main/test.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(TEXT)
    with HubServer(tmp_path / "hub") as server:
        # /cdn serves files by their bare paths, which is all that a data set needs.
        monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/cdn")
        monkeypatch.setenv("FORETHOUGHT_HOME", str(tmp_path / "home"))
        yield server


def test_fetched_once(hub: HubServer, tmp_path: Path) -> None:
    path = dataset_file(SPEC)
    assert path == tmp_path / "home/data/openai--gsm8k/main/main/test.jsonl"
    assert path.read_text() == TEXT
    asked = len(hub.requests)
    assert dataset_file(SPEC) == path
    assert len(hub.requests) == asked
    assert hub.requests[0].path == "/cdn/datasets/openai/gsm8k/resolve/main/main/test.jsonl"


def test_the_hash_is_checked(hub: HubServer, tmp_path: Path) -> None:
    right = hashlib.sha256(TEXT.encode()).hexdigest()
    with pytest.raises(DownloadError, match="wrong content"):
        dataset_file(SPEC, sha256="0" * 64)
    path = dataset_file(SPEC, sha256=right)
    path.write_text("changed")
    assert dataset_file(SPEC, sha256=right).read_text() == TEXT


def test_offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        dataset_file(SPEC)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    path = dataset_file(SPEC)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert dataset_file(SPEC) == path


def test_not_there(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="answered 404"):
        dataset_file("hf://openai/gsm8k/other.jsonl")
    with pytest.raises(UserError, match="There is no file"):
        dataset_file(str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    "spec",
    ["hf://openai", "hf://openai/gsm8k", "hf://openai/gsm8k/../x", "hf://../a/b", "hf://a/b//c"],
)
def test_names_that_cannot_be(hub: HubServer, spec: str) -> None:
    with pytest.raises(UserError, match="is not allowed"):
        dataset_file(spec)
    assert not hub.requests


def test_a_file_of_this_disk(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(TEXT)
    assert dataset_file(str(path)) == path
