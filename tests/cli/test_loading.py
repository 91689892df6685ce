"""Loading beside the main thread: what nobody waits for any more is closed."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from forethought.cli.loading import Loading

from .conftest import environment


class SlowLoad:
    """Loads when told to; ``closed`` is set when the model is closed."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.closed = threading.Event()

    def __call__(self) -> Any:
        self.go.wait(10)
        return SimpleNamespace(close=self.closed.set)


def test_a_load_that_ctrl_c_left_closes_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    load = SlowLoad()
    loading = Loading(load)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loading._thread, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loading.wait()
    assert not load.closed.is_set()
    load.go.set()
    assert load.closed.wait(10)


def test_a_load_that_was_done_when_ctrl_c_came_is_closed_too() -> None:
    load = SlowLoad()
    loading = Loading(load)
    load.go.set()
    loading._thread.join()
    assert not load.closed.is_set()
    loading.abandon()
    assert load.closed.is_set()


def test_a_normal_exit_does_not_wait_for_a_load(tmp_path: Any) -> None:
    """The interpreter must not take down a thread that is inside llama.cpp."""
    code = (
        "import atexit, sys, time\n"
        "from forethought.cli import loading, main\n"
        "loading.Loading(lambda: time.sleep(60))\n"
        "atexit.register(lambda: sys.stderr.write('torn down'))\n"
        "sys.exit(main.main(['paths']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, timeout=30
    )
    assert done.returncode == 0
    assert b"models" in done.stdout
    assert done.stderr == b""
