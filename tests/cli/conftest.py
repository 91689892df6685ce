"""The real program in a subprocess, in a home of its own, with the real model."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nano_stand_in import source_root

PROGRAM = [sys.executable, "-m", "forethought"]
SRC = Path(__file__).resolve().parents[2] / "src"
GENERAL = "smollm2:135m"
"""The model of tests that need one which answers anything."""
QUESTION = "Are tomatoes fruits?"


def environment(home: Path, **more: str) -> dict[str, str]:
    """A clean environment: nothing of the person who runs the tests, and no colours."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FORETHOUGHT_", "XDG_", "LC_", "_FORETHOUGHT"))
        and name not in ("NO_COLOR", "VISUAL", "EDITOR", "COLUMNS")
    }
    kept |= {
        # two threads collapse on a machine that something else uses too
        "FORETHOUGHT_THREADS": "1",
        "FORETHOUGHT_HOME": str(home),
        "PYTHONPATH": os.pathsep.join([str(source_root()), kept.get("PYTHONPATH", "")]).rstrip(
            os.pathsep
        ),
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color",
    }
    return kept | more


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


Cli = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def cli(home: Path) -> Cli:
    """Run ``forethought`` with these arguments; stdin is empty unless ``stdin`` is given."""

    def run(
        *args: str, stdin: bytes | None = None, timeout: float = 120, **variables: str
    ) -> subprocess.CompletedProcess[bytes]:
        source = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        return subprocess.run(
            [*PROGRAM, *args],
            env=environment(home, **variables),
            capture_output=True,
            timeout=timeout,
            check=False,
            **source,
        )

    return run


def ended_by_ctrl_c(code: int | None, err: bytes) -> bool:
    """Did a program that Ctrl-C met at any moment end as it should?

    Until our first line runs it is Python that the signal meets: it dies of it, or says with 1
    that it could not start.
    """
    if code == 1:
        return b"Fatal Python error" in err or b"Could not import runpy" in err
    return code == -signal.SIGINT or (code == 130 and b"Traceback" not in err)


def local(path: Path) -> dict[str, str]:
    """Variables with which the model at ``path``, smollm2:135m, is on disk and asked."""
    return {"FORETHOUGHT_MODELS": str(path.parents[1]), "FORETHOUGHT_MODEL": GENERAL}


@pytest.fixture
def ask(cli: Cli, smollm2_path: Path) -> Cli:
    """Run ``forethought ask`` with a real general model."""

    def run(*args: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
        return cli("ask", *args, **(local(smollm2_path) | more))

    return run


def sentence(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one sentence on stderr; fails on a traceback or on more than that."""
    text = done.stderr.decode()
    assert "Traceback" not in text, text
    assert text.startswith("forethought: "), text
    assert text.count("\n") == 1, text
    return text


# -- checkpoints, for the torch engine and the conversions


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Folders of a small Qwen3 and a small DeepSeek-V3, with transformers' own models."""
    from checkpoints import tiny_checkpoints

    root = tmp_path_factory.mktemp("made")
    return {
        name: (root / name, tiny_checkpoints.make(name, root / name, max_position_embeddings=4096))
        for name in ("qwen3", "deepseek_v3")
    }


@pytest.fixture
def qwen3(made: dict[str, tuple[Path, Any]]) -> Path:
    return made["qwen3"][0]


@pytest.fixture
def deepseek(made: dict[str, tuple[Path, Any]]) -> Path:
    return made["deepseek_v3"][0]


@pytest.fixture
def damaged(qwen3: Path, tmp_path: Path) -> Path:
    """A copy of the Qwen3, for a test to damage."""
    return shutil.copytree(qwen3, tmp_path / "damaged")


@pytest.fixture
def no_extra(tmp_path: Path) -> dict[str, str]:
    """Variables of a process in which the extra ``train`` is not installed."""
    site = tmp_path / "no-extra"
    site.mkdir()
    names = ("torch", "numpy", "safetensors", "tokenizers", "gguf")
    # None in sys.modules is what both import and find_spec take for "not there"
    (site / "sitecustomize.py").write_text(f"import sys\nsys.modules |= dict.fromkeys({names})\n")
    return {"PYTHONPATH": os.pathsep.join([str(site), str(SRC)])}
