"""The first run of the real program against a real local hub: consent, download, answer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cli.conftest import PROGRAM, Cli, environment
from hub_server import HubServer

REFERENCE = "hf://maker/scripted-GGUF:scripted-Q8_0.gguf"


@pytest.fixture
def served(tmp_path: Path, scripted_path: Path):
    folder = tmp_path / "served" / "maker" / "scripted-GGUF"
    folder.mkdir(parents=True)
    shutil.copy(scripted_path, folder / "scripted-Q8_0.gguf")
    with HubServer(tmp_path / "served") as server:
        yield server


def variables(server: HubServer, tmp_path: Path) -> dict[str, str]:
    return {"FORETHOUGHT_HUB": server.url, "FORETHOUGHT_MODELS": str(tmp_path / "models")}


def test_without_a_word_nothing_is_fetched(cli: Cli, served: HubServer, tmp_path: Path) -> None:
    done = cli("ask", "hi", "-m", REFERENCE, **variables(served, tmp_path))
    assert done.returncode == 2
    assert b"--yes" in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert served.ranges() == []


def test_yes_fetches_once_and_answers(cli: Cli, served: HubServer, tmp_path: Path) -> None:
    options = ("-m", REFERENCE, "--temperature", "0")
    done = cli("ask", "hi", *options, "--yes", **variables(served, tmp_path))
    assert done.returncode == 0, done.stderr
    assert "XYZ🎉W".encode() in done.stdout
    assert b"abcdefgh" in done.stderr
    asked = len(served.requests)
    again = cli("ask", "hi", *options, FORETHOUGHT_OFFLINE="1", **variables(served, tmp_path))
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout
    assert len(served.requests) == asked


def test_on_a_terminal_it_asks_first(served: HubServer, tmp_path: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    home = tmp_path / "home"
    home.mkdir()
    command = [*PROGRAM, "ask", "hi", "-m", REFERENCE, "--temperature", "0"]
    env = environment(home, **variables(served, tmp_path))
    for word, code in (("n", 2), ("y", 0)):
        child = pexpect.spawn(command[0], command[1:], env=env, timeout=60, encoding="utf-8")
        child.expect(r"scripted")
        child.expect(r"\?|\]")
        child.sendline(word)
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == code
        assert ("XYZ🎉W" in child.before) == (code == 0)


def test_offline_with_nothing_on_disk(cli: Cli, tmp_path: Path) -> None:
    done = cli(
        "ask", "hi", "-m", "qwen3:0.6b", "--yes",
        FORETHOUGHT_OFFLINE="1", FORETHOUGHT_MODELS=str(tmp_path / "models"),
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert b"offline" in done.stderr.lower()
    assert b"Traceback" not in done.stderr
