"""Run folders: killed at any moment, a run goes on from a whole state with logs that belong to it.

Started as a program, this file is the process that forks training processes and kills them.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forethought.errors import ModelError, UserError
from forethought.training.run_folder import (
    DONE,
    FILM,
    LOCK,
    METRICS,
    RECIPE,
    RUN,
    STATE,
    TIMINGS,
    RunFolder,
    recipe_of,
)
from forethought.training.state_store import TENSORS, StateStore

IDENTITY = {
    "forethought": "0.1.0",
    "recipe": "ab12",
    "threads": 2,
    "torch": "2.13.0",
    "python": "3.11",
    "machine": "x86_64",
    "capability": "AVX512",
    "commit": "abc",
    "host": "here",
    "started": "today",
}
RECIPE_TEXT = "# a recipe\nname = 'é'\n"


def state_of(number: int, size: int = 1000) -> dict[str, torch.Tensor]:
    """A pure function of the step, as training is."""
    noise = torch.Generator().manual_seed(number)
    return {
        "weight": torch.rand(size, generator=noise),
        "half": torch.rand(size // 4, generator=noise).to(torch.bfloat16),
        "random": noise.get_state(),
    }


def line_of(number: int) -> dict[str, float | int | str]:
    return {"step": number, "loss": 1 / number, "note": "x" * (number % 50)}


def step(run: RunFolder, number: int) -> None:
    run.append_metrics(line_of(number))
    run.append_timing({"step": number, "seconds": number / 7})
    for problem in range(number % 3):
        run.append_film({"step": number, "problem": problem, "text": "日本\n"})


def save(run: RunFolder, number: int, size: int = 1000, *, pinned: bool = False) -> None:
    run.save(number, state_of(number, size), {"step": number}, pinned=pinned)


def check(run: RunFolder, size: int = 1000) -> int:
    """Restore, and check tensors and logs against the step that they say; that step."""
    state = run.restore()
    number = 0
    if state is not None:
        number = state.number
        assert state.facts == {"step": number}
        expected = state_of(number, size)
        tensors = state.tensors()
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)
        assert max(run.states.numbers()) == number
    else:
        assert run.states.numbers() == []
    steps = range(1, number + 1)
    assert lines(run.metrics_path) == [line_of(n) for n in steps]
    assert [line["step"] for line in lines(run.timings_path)] == list(steps)
    assert [line["step"] for line in lines(run.film_path)] == [
        n for n in steps for _ in range(n % 3)
    ]
    return number


def lines(path: Path) -> list[dict[str, object]]:
    with path.open(encoding="utf-8", newline="\n") as stream:
        return [json.loads(line) for line in stream]


def new(path: Path) -> RunFolder:
    return RunFolder.create(path, IDENTITY, RECIPE_TEXT)


def again(path: Path, **changed: object) -> RunFolder:
    return RunFolder.resume(path, {**IDENTITY, **changed})


def content(folder: Path) -> dict[str, bytes]:
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != LOCK)
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run that was stopped after step 5, with states of 2 and 4."""
    path = tmp_path / "run"
    with new(path) as run:
        for number in range(1, 6):
            step(run, number)
            if number % 2 == 0:
                save(run, number)
    return path


def test_goes_on_where_the_newest_state_was(trained):
    assert len(lines(trained / METRICS)) == 5
    with again(trained) as run:
        assert check(run) == 4
        step(run, 5)
        save(run, 5)
    with again(trained) as run:  # the hashes of the logs went on over the resumption
        assert check(run) == 5
        assert not run.finished


def test_what_a_new_run_has(tmp_path):
    with new(tmp_path / "deep" / "run") as run:
        assert {p.name for p in run.path.iterdir()} == {
            RUN, RECIPE, METRICS, TIMINGS, FILM, STATE, LOCK,
        }  # fmt: skip
        assert run.restore() is None
    assert json.loads((run.path / RUN).read_bytes()) == {"format": 1, "identity": IDENTITY}
    assert recipe_of(run.path) == RECIPE_TEXT
    assert not (run.path / LOCK).exists()
    run.close()


def test_lines_keep_their_keys_and_text(tmp_path):
    line = {"z": 1, "a": [1.5, None, True], "text": "é\n\u2028\udc80 </think>", "tiny": 5e-324}
    with new(tmp_path / "run") as run:
        run.append_film(line)
        run.append_film({})
        data = run.film_path.read_bytes()
    assert data.count(b"\n") == 2
    first = json.loads(data.split(b"\n")[0])
    assert first == line
    assert list(first) == list(line)
    assert "é".encode() in data


@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), -float("inf"), [1, {"x": float("nan")}]]
)
def test_a_number_that_is_not_finite_is_no_line(tmp_path, bad):
    with new(tmp_path / "run") as run:
        step(run, 1)
        with pytest.raises(ModelError, match=r"^loss in a line for .*metrics.jsonl is not finite"):
            run.append_metrics({"step": 2, "loss": bad})
        save(run, 1)
    with again(tmp_path / "run") as run:
        assert check(run) == 1


def test_a_half_line_goes(trained):
    for name in (METRICS, TIMINGS, FILM):
        with (trained / name).open("ab") as stream:
            stream.write(b'{"step": 6, "lo')
    with again(trained) as run:
        assert check(run) == 4


def test_a_run_ended_before_its_first_state_begins_anew(tmp_path):
    with new(tmp_path / "run") as run:
        step(run, 1)
        step(run, 2)
    with again(tmp_path / "run") as run:
        assert run.restore() is None
        assert run.metrics_path.read_bytes() == b""
        step(run, 1)
        save(run, 1)
    with again(tmp_path / "run") as run:
        assert check(run) == 1


def test_nothing_is_added_before_restore(trained):
    with again(trained) as run:
        with pytest.raises(RuntimeError, match="restore"):
            run.append_metrics({})
        with pytest.raises(RuntimeError, match="restore"):
            save(run, 9)
        with pytest.raises(RuntimeError, match="restore"):
            run.finish()


@pytest.mark.parametrize("name", [METRICS, TIMINGS, FILM])
@pytest.mark.parametrize("change", ["flip", "cut", "gone"])
def test_a_log_that_somebody_changed_is_noticed(trained, name, change):
    file = trained / name
    if change == "flip":
        file.write_bytes(file.read_bytes().replace(b"2", b"3", 1))
    elif change == "cut":
        os.truncate(file, 20)
    else:
        file.unlink()
    before = content(trained)
    with again(trained) as run, pytest.raises(UserError, match=name):
        run.restore()
    assert content(trained) == before


def test_a_damaged_newer_state_is_passed_over_with_its_lines(trained):
    os.truncate(trained / STATE / "00000004" / TENSORS, 100)
    with again(trained) as run:
        assert check(run) == 2
        assert "00000004" in run.states.passed_over[0]
        assert run.states.numbers() == [2]
        step(run, 3)
        step(run, 4)
        save(run, 4)
    with again(trained) as run:
        assert check(run) == 4


def test_no_whole_state_is_not_a_new_beginning(trained):
    for number in (2, 4):
        os.truncate(trained / STATE / f"{number:08d}" / TENSORS, 100)
    before = content(trained)
    with again(trained) as run, pytest.raises(ModelError, match=r"No state of .*0004.*0002"):
        run.restore()
    assert content(trained) == before


def test_a_state_that_no_run_saved(trained):
    StateStore(trained / STATE).save(9, {}, {"logs": {METRICS: {"bytes": -1, "sha256": ""}}})
    with again(trained) as run, pytest.raises(ModelError, match=r"where metrics.jsonl ended"):
        run.restore()
    with new(trained.parent / "other") as run, pytest.raises(ValueError, match="own"):
        run.save(1, {}, {"logs": 1})


OTHERS = {
    "forethought": "0.2.0",
    "recipe": "cd34",
    "threads": 4,
    "torch": "2.14.0",
    "python": "3.12",
    "machine": "arm64",
    "capability": "DEFAULT",
}


@pytest.mark.parametrize("key", OTHERS)
def test_each_difference_is_named(trained, key):
    before = content(trained)
    then, now = json.dumps(IDENTITY[key]), json.dumps(OTHERS[key])
    with pytest.raises(UserError) as raised:
        again(trained, **{key: OTHERS[key]})
    assert f"{key} was {then} and is {now}" in str(raised.value)
    assert [other for other in OTHERS if f"{other} was " in str(raised.value)] == [key]
    assert content(trained) == before
    with again(trained) as run:  # the refused one left no lock
        assert check(run) == 4


def test_all_differences_are_named_and_informative_keys_are_not_compared(trained):
    with pytest.raises(UserError) as raised:
        again(trained, **OTHERS, new_key=None)
    for key in OTHERS:
        assert f"{key} was " in str(raised.value)
    assert "new_key was nothing and is null" in str(raised.value)
    missing = {key: value for key, value in IDENTITY.items() if key != "torch"}
    with pytest.raises(UserError, match=r'torch was "2.13.0" and is nothing'):
        RunFolder.resume(trained, missing)
    for equal in (2.0, True, "2"):
        with pytest.raises(UserError, match="threads was 2 and is"):
            again(trained, threads=equal)
    again(trained, commit="def", host="there", started="tomorrow").close()
    with pytest.raises(ValueError, match="torch of a run's identity is a list"):
        again(trained, torch=["2", "13"])


def test_one_owner_at_a_time(trained):
    with again(trained) as run:
        for attempt in (again, new):
            with pytest.raises(UserError, match="Another process is training in"):
                attempt(trained)
        assert check(run) == 4
    again(trained).close()


def test_a_finished_run_is_refused(trained):
    with again(trained) as run:
        run.restore()
        run.finish()
        assert run.finished
    before = content(trained)
    with pytest.raises(UserError, match="is finished"):
        again(trained, torch="another")
    # What a finished run has beside its own: the model, its states between, reports.
    (trained / "chat_template.jinja").write_text("{{ bos_token }}")
    (trained / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"holds a finished run: give the name of a new folder\."):
        new(trained)
    (trained / "chat_template.jinja").unlink()
    (trained / "checkpoints").rmdir()
    assert content(trained) == before
    assert DONE in before
    assert StateStore(trained / STATE).latest() is not None


@pytest.mark.parametrize("name", ["notes.txt", RECIPE, METRICS, STATE + "/model.pt", ".hidden"])
def test_a_folder_with_something_else_is_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds something else .{name.split('/')[0]}"):
        new(tmp_path)
    assert content(tmp_path) == {name: b"mine"}
    assert not (tmp_path / LOCK).exists()
    with pytest.raises(UserError, match="is a file"):
        new(tmp_path / name)


def test_a_run_is_never_written_over(trained, tmp_path):
    before = content(trained)
    with pytest.raises(UserError, match="holds another run: resume it"):
        new(trained)
    assert content(trained) == before
    with new(tmp_path / "no state") as run:
        step(run, 1)
    with pytest.raises(UserError, match="holds another run: resume it"):
        new(tmp_path / "no state")


def test_a_run_with_a_tokenizer_has_begun(tmp_path):
    """Another recipe in its place would train on a tokenizer that is not its own."""
    new(tmp_path / "run").close()
    (tmp_path / "run" / "tokenizer").mkdir()
    with pytest.raises(UserError, match="holds another run: resume it"):
        new(tmp_path / "run")


def test_a_run_that_never_began_gives_way(tmp_path):
    path = tmp_path / "run"
    RunFolder.create(path, {"old": 1}, "old").close()
    (path / f"{RUN}.tmp-1").write_text("half")
    (path / STATE / "00000001.tmp-1").mkdir()
    (path / LOCK).touch()
    (path / "tensorboard").mkdir()
    with new(path) as run:
        step(run, 1)
        save(run, 1)
    assert recipe_of(path) == RECIPE_TEXT
    with again(path) as run:
        assert check(run) == 1


def test_nothing_to_resume(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        for attempt in (again, recipe_of):
            with pytest.raises(UserError, match="nothing to resume"):
                attempt(path)
    assert not (tmp_path / "none").exists()


def test_another_format_and_damage_of_the_identity(trained):
    good = (trained / RUN).read_text()
    (trained / RUN).write_text(good.replace('"format": 1', '"format": 2'))
    with pytest.raises(UserError, match="run format 2"):
        again(trained)
    for bad in ("", "[]", "[" * 100_000, '{"format": 1}', '{"a": 1, "a": 1}'):
        (trained / RUN).write_text(bad)
        with pytest.raises((ModelError, UserError)):
            again(trained)
    (trained / RECIPE).unlink()
    with pytest.raises(UserError, match=r"recipe\.toml cannot be read"):
        recipe_of(trained)


class _Canary:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self):
        return (Path.touch, (self.flag,))


def test_no_file_of_a_run_is_opened_as_a_pickle(trained, tmp_path):
    """Rule R14: a canary in each file that resuming opens, and beside them."""
    flag = tmp_path / "flag"
    bait = pickle.dumps(_Canary(flag))
    for name in ("optimizer.pt", "rng_state.pth", "scheduler.pkl"):
        (trained / name).write_bytes(bait)
        (trained / STATE / "00000004" / name).write_bytes(bait)
    for name in content(trained):
        copy = tmp_path / "copy"
        shutil.copytree(trained, copy)
        (copy / name).write_bytes(bait)
        with contextlib.suppress(ModelError, UserError), again(copy) as run:
            state = run.restore()
            assert state is not None
            state.tensors()
        shutil.rmtree(copy)
        assert not flag.exists(), name


def test_a_disk_full_in_the_middle_of_a_line(tmp_path):
    """The system refuses a write at every length; what was there before stays."""
    with new(tmp_path / "run") as run:
        step(run, 1)
        before = content(run.path)
        size = len(before[METRICS])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for limit in range(size, 2 * size - 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                with pytest.raises(ModelError, match=r"metrics.jsonl cannot be written"):
                    run.append_metrics(line_of(1))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert content(run.path) == before
        save(run, 1)
    with again(tmp_path / "run") as run:
        assert check(run) == 1


def test_a_disk_full_at_a_save_leaves_the_run_resumable(trained):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with again(trained) as run:
        check(run)
        step(run, 5)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
        try:
            with pytest.raises(ModelError, match="step 5 cannot be written"):
                save(run, 5)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        save(run, 5)  # a run may go on once there is room
    with again(trained) as run:
        assert check(run) == 5


EVENTS = st.lists(
    st.sampled_from(["step", "step", "save", "pin", "die", "half a line", "damage"]), max_size=25
)


@given(events=EVENTS)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_life_of_a_run(tmp_path, events):
    path = tmp_path / "run"
    shutil.rmtree(path, ignore_errors=True)
    run = new(path)
    number, whole = 0, set()
    for event in events:
        if event == "step":
            number += 1
            step(run, number)
        elif event in ("save", "pin") and number > max(whole, default=0):
            save(run, number, pinned=event == "pin")
            whole.add(number)
        elif event == "damage" and len(run.states.numbers()) > 1 and max(whole) == number:
            os.truncate(run.states.path(number) / TENSORS, 10)
            whole.discard(number)
            number += 1
            step(run, number)
        elif event in ("die", "half a line"):
            if event == "half a line":
                with run.metrics_path.open("ab") as stream:
                    stream.write(b'{"st')
            run.close()
            run = again(path)
            there = whole & set(run.states.numbers())
            number = check(run)
            assert number == max(there, default=0)
    run.close()


# --- processes that are really killed ---


def chaos(*arguments: object, limit_s: float = 240) -> dict[str, int]:
    """Run this file as a program; what its last line says."""
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_killed_at_random_moments(tmp_path):
    """Rule R25: 60 times, in states of some megabytes."""
    found = chaos("random", tmp_path / "run", 60)
    assert found["kills"] == 60
    assert found["step"] > 5


@pytest.mark.slow
def test_killed_at_random_moments_for_longer(tmp_path):
    assert chaos("random", tmp_path / "run", 200)["kills"] == 200


def test_killed_at_some_calls_that_name_a_file(tmp_path):
    """From the making of the folder to the second retention, with one state kept."""
    assert chaos("calls", tmp_path / "runs", 7)["kills"] > 10


@pytest.mark.slow
def test_killed_at_every_call_that_names_a_file(tmp_path):
    assert chaos("calls", tmp_path / "runs", 1)["kills"] > 70


MEGABYTES = 500_000
"""Numbers of a state of 2.3 MB."""


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def _open_run(path: Path, keep: int = 2) -> RunFolder:
    """As ``train`` does: the run that is there, or a new one."""
    try:
        return RunFolder.resume(path, IDENTITY, keep=keep)
    except UserError:
        return RunFolder.create(path, IDENTITY, RECIPE_TEXT, keep=keep)


def _train(path: Path, tell: int, size: int, steps: int, keep: int = 2) -> None:
    run = _open_run(path, keep)
    first = check(run, size)
    os.write(tell, b"restored %d\n" % first)
    for number in range(first + 1, first + 1 + steps):
        step(run, number)
        save(run, number, size, pinned=number % 40 == 0)
        os.write(tell, b"saved %d\n" % number)
    run.close()


def _heard(listen: int) -> dict[str, int]:
    """The last that the child said of each kind."""
    text = os.read(listen, 1 << 16)
    return {kind: int(n) for kind, n in (line.split() for line in text.decode().splitlines())}


def _random(path: Path, kills: int) -> dict[str, int]:
    """What a child said is saved must be what the next one restores, or one that came after."""
    chance = random.Random(kills)
    saved = _refuse_while_alive(path)
    for _ in range(kills):
        listen, tell = os.pipe()
        child = _fork(lambda: _train(path, tell, MEGABYTES, 1_000_000))  # noqa: B023
        time.sleep(chance.uniform(0, 0.25))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the child failed"
        os.write(tell, b"end 0\n")
        heard = _heard(listen)
        os.close(listen)
        os.close(tell)
        if "restored" in heard:
            assert saved <= heard["restored"] <= saved + 1, (saved, heard)
            saved = heard.get("saved", heard["restored"])
    with _open_run(path) as run:
        assert saved <= check(run, MEGABYTES) <= saved + 1
        return {"kills": kills, "step": run.states.numbers()[-1]}


def _die_at(nth: int) -> None:
    """Kill this process at its nth call that opens, renames, makes or removes a file."""
    left = nth
    watched = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate"}

    def hook(event: str, _: object) -> None:
        nonlocal left
        if event in watched:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _calls(path: Path, every: int) -> dict[str, int]:
    """A run for each ``every``-th call, killed there, that the next process goes on with."""
    kills = 0
    while True:
        nth = 1 + kills * every
        run = path / str(nth)
        listen, tell = os.pipe()

        def doomed() -> None:
            _die_at(nth)  # noqa: B023
            _train(run, tell, 1000, 3, keep=1)  # noqa: B023

        _, status = os.waitpid(_fork(doomed), 0)
        os.write(tell, b"end 0\n")
        saved = _heard(listen).get("saved", 0)
        _, after = os.waitpid(_fork(lambda: _train(run, tell, 1000, 2, keep=1)), 0)  # noqa: B023
        os.write(tell, b"end 0\n")
        heard = _heard(listen)
        os.close(listen)
        os.close(tell)
        assert after == 0, f"killed at call {nth}, and not resumed"
        assert saved <= heard["restored"] <= saved + 1, (nth, saved, heard)
        left = {p.name for p in (run / STATE).iterdir()}
        assert left == {"LATEST", f"{heard['saved']:08d}"}, (nth, left)
        shutil.rmtree(run)
        if status == 0:
            return {"kills": kills, "step": heard["saved"]}
        assert os.WIFSIGNALED(status), nth
        kills += 1


def _refuse_while_alive(path: Path) -> int:
    """No second process trains in the folder while the first lives; what that one saved."""
    listen, tell = os.pipe()
    child = _fork(lambda: _train(path, tell, MEGABYTES, 1_000_000))
    heard: dict[str, int] = {}
    while "saved" not in heard:
        heard = _heard(listen)
    for attempt in (again, new):
        with pytest.raises(UserError, match="Another process is training"):
            attempt(path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.write(tell, b"end 0\n")
    heard |= _heard(listen)
    os.close(listen)
    os.close(tell)
    return heard["saved"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    modes = {"random": _random, "calls": _calls}
    print(json.dumps(modes[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))))
