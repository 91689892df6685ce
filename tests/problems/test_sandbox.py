"""The sandbox against a program that does what hostile code does (rules R20 to R23)."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from forethought.errors import ModelError, UserError
from forethought.problems import sandbox_runner
from forethought.problems.sandbox import Sandbox, SandboxStats
from forethought.problems.sandbox_runner import Limits

PROGRAM = Path(__file__).with_name("hostile_program.py")
HAS_BWRAP = shutil.which("bwrap") is not None
needs_bwrap = pytest.mark.skipif(
    not HAS_BWRAP and os.environ.get("CI") != "true", reason="bwrap is not installed"
)
QUICK = Limits(seconds=5.0, memory_bytes=256 << 20)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(PROGRAM, QUICK) as started:
        yield started


@pytest.fixture
def server() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def tree(sandbox: Sandbox) -> list[psutil.Process]:
    assert sandbox.pid is not None
    root = psutil.Process(sandbox.pid)
    return [root, *root.children(recursive=True)]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != "zombie"]


def refused(sandbox: Sandbox, op: str, payload: object, *errors: str) -> None:
    outcome = sandbox.call(op, payload)
    assert outcome.kind == "raised", outcome
    assert outcome.error in errors, outcome


@needs_bwrap
class TestProbes:
    @pytest.mark.parametrize(
        "path",
        ["/etc/shadow", "/etc/passwd", str(Path.home() / ".bashrc"), __file__],
    )
    def test_files_of_the_host_cannot_be_read(self, sandbox: Sandbox, path: str) -> None:
        refused(sandbox, "read", path, "FileNotFoundError", "PermissionError")

    def test_no_environment(self, sandbox: Sandbox) -> None:
        refused(sandbox, "read", "/proc/1/environ", "PermissionError")
        found = sandbox.call("read", "/proc/self/environ").value
        assert isinstance(found, str)
        assert {line.partition("=")[0] for line in found.split("\0") if line} <= {
            "HOME", "LANG", "MPLCONFIGDIR", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
            "PYTHONHASHSEED", "PWD",
        }  # fmt: skip

    def test_home_cannot_be_read(self, sandbox: Sandbox, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("token")
        refused(sandbox, "read", str(secret), "FileNotFoundError")

    def test_no_network(self, sandbox: Sandbox, server: int) -> None:
        refused(sandbox, "connect", ["127.0.0.1", server], "ConnectionRefusedError")
        refused(sandbox, "connect", ["169.254.169.254", 80], "OSError")
        refused(sandbox, "resolve", "localhost.example.org", "gaierror")
        assert sandbox.call("ctypes_socket", server).value == -1

    def test_no_processes(self, sandbox: Sandbox) -> None:
        assert sandbox.call("fork_bomb", None).value == 0
        assert sandbox.call("ctypes_fork", None).value == -1
        assert sandbox.call("shell", None).value != 0
        threads = sandbox.call("threads", None).value
        assert isinstance(threads, int)
        assert threads <= 200  # root is not held to RLIMIT_NPROC; they end with the request
        assert len(tree(sandbox)) == 2

    def test_disk_is_limited(self, sandbox: Sandbox) -> None:
        refused(sandbox, "big_file", "/tmp/big", "OSError")
        for folder in ("/", "/usr", "/dev/shm", sys.prefix):
            refused(sandbox, "big_file", f"{folder}/big", "OSError", "PermissionError")
        refused(sandbox, "many_files", "/tmp", "OSError")
        assert sandbox.call("echo", 1).value == 1

    def test_memory_is_limited(self, sandbox: Sandbox) -> None:
        refused(sandbox, "big_memory", None, "MemoryError")

    def test_a_detached_process_ends_with_its_request(self, sandbox: Sandbox) -> None:
        before = len(tree(sandbox))
        began = time.monotonic()
        assert sandbox.call("detach", None, 0.5).kind == "timeout"
        assert time.monotonic() - began < 3
        assert len(tree(sandbox)) == before
        assert sandbox.call("echo", 1).value == 1

    def test_a_child_cannot_reach_its_worker(self, sandbox: Sandbox) -> None:
        refused(sandbox, "kill_parent", None, "PermissionError")
        refused(sandbox, "kill_all", None, "PermissionError")
        refused(sandbox, "memory_of_parent", None, "PermissionError")
        starts = sandbox.stats.starts
        sandbox.call("forge", None)  # may spoil its own answer, and no other
        assert sandbox.call("echo", "honest").value == "honest"
        assert sandbox.stats.starts == starts


@needs_bwrap
class TestProtocol:
    def test_values_come_back(self, sandbox: Sandbox) -> None:
        value = {"a": [1, 2.5, None, True, "ü\n"], "b": {}}
        assert sandbox.call("echo", value).value == value

    def test_what_is_printed_stays_inside(self, sandbox: Sandbox) -> None:
        assert sandbox.call("prints", None).value == "honest"
        assert sandbox.call("echo", 2).value == 2

    def test_a_request_leaves_no_trace(self, sandbox: Sandbox) -> None:
        assert sandbox.call("poison", None).value is True
        assert sandbox.call("poisoned", None).value is False
        assert sandbox.call("echo", "honest").value == "honest"

    @pytest.mark.parametrize("depth", [1, 50])
    def test_nothing_stays_in_tmp(self, sandbox: Sandbox, depth: int) -> None:
        """What one answer writes is no message to the next, and does not fill the room."""
        starts = sandbox.stats.starts
        left = sandbox.call("litter", depth).value
        assert left == ["0", "1", "d" * 200, "file", "link"]
        assert sandbox.call("listing", "/tmp").value == []
        refused(sandbox, "many_files", "/tmp", "OSError")
        assert sandbox.call("listing", "/tmp").value == []
        assert sandbox.stats.starts == starts

    def test_nothing_stays_in_the_kernel(self, sandbox: Sandbox) -> None:
        assert sandbox.call("kernel_objects", None).value == [-1, -1, -1]

    def test_time_out(self, sandbox: Sandbox) -> None:
        outcome = sandbox.call("spin", None, 0.5)
        assert (outcome.kind, outcome.reason) == ("timeout", "timed out")
        assert sandbox.call("echo", 3).value == 3

    @pytest.mark.parametrize(("op", "payload"), [("crash", None), ("leave", 0), ("not_json", None)])
    def test_a_death_is_no_verdict(self, sandbox: Sandbox, op: str, payload: object) -> None:
        outcome = sandbox.call(op, payload)
        assert (outcome.kind, outcome.reason) == ("sandbox_error", "the grader's process died")
        assert sandbox.call("echo", 4).value == 4

    def test_leaving_by_exception_is_one(self, sandbox: Sandbox) -> None:
        refused(sandbox, "quit_politely", None, "SystemExit")

    def test_output_is_capped(self, sandbox: Sandbox) -> None:
        outcome = sandbox.call("long_output", None)
        assert (outcome.kind, outcome.reason) == ("sandbox_error", "the grader wrote too much")

    def test_input_is_capped(self, sandbox: Sandbox) -> None:
        with pytest.raises(ValueError, match="input_bytes"):
            sandbox.call("echo", "x" * (1 << 21))

    def test_threads_queue(self, sandbox: Sandbox) -> None:
        found: dict[int, object] = {}

        def ask(number: int) -> None:
            found[number] = sandbox.call("echo", number).value

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {number: number for number in range(8)}


@needs_bwrap
class TestLife:
    def test_nothing_is_left_after_closing(self) -> None:
        sandbox = Sandbox(PROGRAM, QUICK)
        sandbox.start()
        asking = threading.Thread(target=sandbox.call, args=("detach", None, 1.0))
        asking.start()
        time.sleep(0.3)
        processes = tree(sandbox)
        assert len(processes) == 3
        asking.join()
        sandbox.close()
        time.sleep(0.5)
        assert not alive(processes)
        assert sandbox.pid is None

    def test_nothing_is_left_when_we_are_killed(self) -> None:
        code = (
            "import sys, pathlib; from forethought.problems.sandbox import Sandbox\n"
            "s = Sandbox(pathlib.Path(sys.argv[1])); s.start(); print(s.pid, flush=True)\n"
            "s.call('spin', None, 60)"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, str(PROGRAM)], stdout=subprocess.PIPE
        ) as ours:
            assert ours.stdout is not None
            root = psutil.Process(int(ours.stdout.readline()))
            processes = [root, *root.children(recursive=True)]
            ours.kill()
        deadline = time.monotonic() + 2
        while alive(processes) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive(processes)

    def test_a_killed_worker_is_started_again(self) -> None:
        with Sandbox(PROGRAM, QUICK) as sandbox:
            tree(sandbox)[0].kill()
            time.sleep(0.2)
            assert sandbox.call("echo", 1).value == 1
            threading.Timer(0.3, tree(sandbox)[0].kill).start()
            outcome = sandbox.call("spin", None, 3.0)
            assert (outcome.kind, outcome.reason) == ("sandbox_error", "the worker died")
            assert sandbox.call("echo", 2).value == 2
            assert sandbox.stats == SandboxStats(ok=2, sandbox_error=1, starts=3)

    def test_it_outlives_the_thread_that_started_it(self) -> None:
        sandbox = Sandbox(PROGRAM, QUICK)
        starting = threading.Thread(target=sandbox.start)
        starting.start()
        starting.join()
        time.sleep(0.2)
        assert sandbox.call("echo", 1).value == 1
        assert sandbox.stats.starts == 1
        sandbox.close()

    def test_no_descriptor_leaks(self) -> None:
        with Sandbox(PROGRAM, QUICK) as sandbox:
            sandbox.call("echo", 1)
            before = psutil.Process().num_fds()
            for _ in range(2):
                sandbox.close()
                sandbox.call("echo", 1)
            assert psutil.Process().num_fds() == before

    def test_a_sick_sandbox_pauses_the_run(self) -> None:
        with Sandbox(PROGRAM, QUICK) as sandbox:
            for _ in range(3):
                sandbox.call("leave", 0)
            for _ in range(196):
                sandbox.call("echo", 0)
            sandbox.check_health()
            sandbox.call("echo", 0)
            with pytest.raises(ModelError, match="3 of 200 gradings"):
                sandbox.check_health()


@needs_bwrap
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_thousand_requests_leave_nothing() -> None:
    """Rule R22: one worker, honest and hostile requests mixed, and it is what it was at the end."""
    chance = random.Random(1)
    hostile: list[tuple[str, object, float]] = [
        ("litter", 3, 5.0),
        ("many_files", "/tmp", 5.0),
        ("spin", None, 0.02),
        ("threads", None, 5.0),
        ("big_memory", None, 5.0),
        ("long_output", None, 5.0),
        ("kernel_objects", None, 5.0),
        *((op, None, 5.0) for op in ("crash", "poison", "forge", "prints", "not_json")),
        ("leave", 1, 5.0),
        ("detach", None, 0.02),
    ]
    ours = psutil.Process()
    seen: list[tuple[int, int, int, int]] = []
    with Sandbox(PROGRAM, QUICK) as sandbox:
        assert sandbox.pid is not None
        for job in range(1, 10_001):
            if chance.random() < 0.1:
                sandbox.call(*chance.choice(hostile))
            else:
                assert sandbox.call("echo", job).value == job
            if job % 1000 == 0:
                processes = tree(sandbox)
                descriptors = [ours.num_fds()]
                with contextlib.suppress(psutil.AccessDenied):  # the worker hides from all but root
                    descriptors += [one.num_fds() for one in processes]
                resident = sum(one.memory_info().rss for one in processes)
                own = ours.memory_info().rss
                seen.append((len(processes), sum(descriptors), resident, own))
                assert sandbox.call("listing", "/tmp").value == []
        assert sandbox.stats.starts == 1
    first, *later = seen
    for processes, descriptors, resident, own in later:
        assert (processes, descriptors) == first[:2], seen
        assert resident < first[2] + (2 << 20), seen
        assert own < first[3] + (4 << 20), seen


class TestRefusal:
    def test_without_bwrap(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nonexistent")
        sandbox = Sandbox(PROGRAM, QUICK)
        for _ in range(2):
            with pytest.raises(UserError, match="package bubblewrap, or type --unsafe-no-sandbox"):
                sandbox.call("echo", 1)
        assert sandbox.stats.jobs == 0

    @pytest.mark.parametrize(
        ("folder", "message"),
        [("/tmp/made", "has a /tmp of its own"), (str(Path.home()), "without the home folder")],
    )
    def test_of_a_python_that_it_would_hide_or_that_would_show_the_home_folder(
        self, monkeypatch: pytest.MonkeyPatch, folder: str, message: str
    ) -> None:
        for name in ("prefix", "exec_prefix"):
            monkeypatch.setattr(sys, name, folder)
        with pytest.raises(UserError, match=f"{message}.*--unsafe-no-sandbox"):
            sandbox_runner.python_folders()

    def test_with_a_bwrap_that_may_not(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        script = tmp_path / "bwrap"
        script.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        with pytest.raises(UserError, match=r"bubblewrap.*uid map: Permission denied.*--unsafe"):
            Sandbox(PROGRAM, QUICK).start()

    @needs_bwrap
    @pytest.mark.parametrize(
        ("removed", "leak"),
        [
            ("--unshare-net", "the network can be reached"),
            ("--unshare-pid --as-pid-1", "other processes can be seen"),
            ("--clearenv", "the environment is not empty"),
            ("--remount-ro /", "system folders can be written"),
        ],
    )
    def test_with_a_bwrap_that_isolates_less(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, removed: str, leak: str
    ) -> None:
        """A real bwrap behind a script that drops one option: the self-test has to see it."""
        real = shutil.which("bwrap")
        script = tmp_path / "bwrap"
        script.write_text(
            f"#!{sys.executable}\nimport os, sys\n"
            f"options = '\\0'.join(sys.argv[1:]).replace({chr(0).join(removed.split())!r} + '\\0',"
            " '', 1)\n"
            "os.environ['HF_TOKEN'] = 'secret'\n"
            f"os.execv({real!r}, ['bwrap', *options.split('\\0')])\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        with pytest.raises(UserError, match=leak):
            Sandbox(PROGRAM, QUICK).start()

    def test_a_visible_canary_is_a_leak(self) -> None:
        good: dict[str, object] = {
            "network": False,
            "interfaces": ["lo"],
            "host_file": False,
            "environment": ["HOME", "PWD"],
            "processes": 2,
            "fork": False,
            "writable": [],
        }
        assert sandbox_runner.leaks(good) == []
        assert sandbox_runner.leaks({**good, "host_file": True}) == ["a file outside can be read"]
        assert sandbox_runner.leaks({**good, "fork": True}) == ["processes can be started"]
        assert len(sandbox_runner.leaks({})) == 6

    def test_a_missing_library_is_named(self, tmp_path: Path) -> None:
        program = tmp_path / "wants.py"
        program.write_text("import no_such_grader\nOPS = {}\n")
        with pytest.raises(UserError, match=r"package no_such_grader is not installed.*problems"):
            Sandbox(program, QUICK, unsafe_no_sandbox=True).start()


class TestUnsafe:
    def test_it_runs_only_when_asked_and_keeps_its_limits(self) -> None:
        with Sandbox(PROGRAM, QUICK, unsafe_no_sandbox=True) as sandbox:
            assert not sandbox.isolated
            assert sandbox.call("echo", 1).value == 1
            assert sandbox.call("spin", None, 0.3).kind == "timeout"
            refused(sandbox, "big_memory", None, "MemoryError")
            processes = tree(sandbox)
        assert not alive(processes)

    def test_it_hides_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "secret-token")
        with Sandbox(PROGRAM, QUICK, unsafe_no_sandbox=True) as sandbox:
            outcome = sandbox.call("read", "/proc/self/environ")
        assert "secret-token" not in json.dumps([outcome.value, outcome.reason])
