"""Processes beside this one: they answer in order, and end with whoever asks them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from forethought.errors import ModelError
from forethought.training import corpus
from forethought.training.side_process import SideProcess, packed

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX only")
ASKING = """
from forethought.training.side_process import SideProcess, packed
helper = SideProcess(packed(abs))
helper.send(-5)
print(helper.receive(), helper._process.pid, flush=True)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that ended and that nobody has waited for yet is no longer at work.
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def gone(pid: int, seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)


def test_requests_are_answered_in_order_also_ahead_of_their_answers():
    with SideProcess[int, int](packed(abs)) as helper:
        for at in (-3, 2, -1):
            helper.send(at)
        assert [helper.receive() for _ in range(3)] == [3, 2, 1]
        helper.send(-7)
        assert helper.receive() == 7
    assert helper.close() == 0


def test_one_that_fails_is_the_end_of_its_pipe(capfd: pytest.CaptureFixture[str]):
    with SideProcess[int, int](packed(abs)) as helper:
        helper.send("no number")  # type: ignore[arg-type]
        with pytest.raises(EOFError):
            helper.receive()
        assert helper.close() == 1
    assert "TypeError" in capfd.readouterr().err


def test_it_ends_also_where_it_waits_for_a_reader():
    with SideProcess[int, bytes](packed(bytes)) as helper:
        helper.send(10_000_000)
        time.sleep(0.2)
        began = time.monotonic()
    assert time.monotonic() - began < 4
    assert not alive(helper._process.pid)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_caller(how: signal.Signals):
    script = ASKING + "import time; time.sleep(60)\n"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as caller:
        assert caller.stdout is not None
        answer, pid = caller.stdout.readline().split()
        assert (answer, alive(int(pid))) == ("5", True)
        caller.send_signal(how)
        caller.wait()
        assert gone(int(pid))


def test_ctrl_c_is_the_callers_to_answer():
    with SideProcess[int, int](packed(abs)) as helper:
        helper.send(-1)
        assert helper.receive() == 1
        helper._process.send_signal(signal.SIGINT)
        helper.send(-2)
        assert helper.receive() == 2


def test_a_script_needs_no_guard_against_being_imported_again(tmp_path: Path):
    script = tmp_path / "trains.py"
    script.write_text(f"print('begun')\n{ASKING}\nhelper.close()\n")
    for command, given in (([str(script)], None), (["-"], script.read_text())):
        done = subprocess.run(
            [sys.executable, *command], input=given, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.split()[:2] == ["begun", "5"]


def test_a_maker_of_documents_that_ends_is_told(capfd: pytest.CaptureFixture[str]):
    with (
        corpus._made_by(2, _Breaks(), 0) as made,
        pytest.raises(ModelError, match=r"ended with code 1: .* workers = 0"),
    ):
        list(made)
    assert "ZeroDivisionError" in capfd.readouterr().err


class _Breaks:
    def __call__(self, numbers: range) -> list[int]:
        if numbers.start >= 256:
            raise ZeroDivisionError
        return list(numbers)


def test_what_is_made_does_not_depend_on_the_number_of_helpers():
    for workers in (0, 1, 3):
        with corpus._made_by(workers, list, 5) as made:
            assert list(islice(made, 2000)) == list(range(5, 2005))
