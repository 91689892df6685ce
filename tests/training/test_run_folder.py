"""Run folders: a run goes on from a whole state with logs that belong to it, or says why not."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forethought.errors import ModelError, UserError
from forethought.training.run_files import (
    DONE,
    FILM,
    LOCK,
    METRICS,
    RECIPE,
    RUN,
    STATE,
    TIMINGS,
)
from forethought.training.run_folder import RunFolder, recipe_of
from forethought.training.state_store import TENSORS, StateStore
from training.numbered_run import (
    IDENTITY,
    RECIPE_TEXT,
    again,
    check,
    content,
    line_of,
    lines,
    new,
    save,
    step,
)


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
