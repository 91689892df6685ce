"""States: bit for bit back, whole or not there, damage passed over, the disk full at any moment."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from forethought.errors import ModelError
from forethought.training.state_store import (
    FACTS,
    LATEST,
    MANIFEST,
    TENSORS,
    SavedState,
    StateStore,
)

FACTS_IN = {"stage": "rl", "seed": 3, "nested": {"list": [1, 2.5, None, "é"]}, "tiny": 5e-324}


def tensors_of(number: int) -> dict[str, torch.Tensor]:
    """A pure function of the number, as a run's state is."""
    noise = torch.Generator().manual_seed(number)
    return {
        "weight": torch.randn(40, 50, generator=noise),
        "half": torch.randn(30, generator=noise).to(torch.bfloat16),
        "position": torch.tensor(number),
        "random": noise.get_state(),
    }


def save(store: StateStore, number: int, *, pinned: bool = False) -> Path:
    return store.save(number, tensors_of(number), {"step": number}, pinned=pinned)


def assert_is(state: SavedState | None, number: int) -> None:
    assert state is not None
    assert state.number == number
    assert state.facts["step"] == number
    assert_same(state.tensors(), tensors_of(number))


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        same = found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)
        assert torch.equal(*same), name


def entries(store: StateStore) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


def test_every_kind_of_tensor_comes_back_bit_for_bit(tmp_path):
    base = torch.randn(6, 8)
    tied = torch.randn(3, 4)
    tensors = {
        "float64": torch.randn(2, 3, dtype=torch.float64),
        "bfloat16": torch.randn(5).to(torch.bfloat16),
        "float16": torch.randn(5).half(),
        "int64": torch.tensor([1 << 62, -1]),
        "int32": torch.tensor([-5], dtype=torch.int32),
        "bool": torch.tensor([True, False]),
        "random": torch.get_rng_state(),
        "nan, -0, inf": torch.tensor([float("nan"), -0.0, float("inf")]),
        "number": torch.tensor(7.0),
        "empty": torch.empty(0, 3),
        "empty too": torch.empty(0),
        "transposed": base.T,
        "columns": base[:, 2:5],
        "row": base[1],
        "base": base,
        "tied": tied,
        "tied again": tied,
        "tied transposed": tied.T,
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "expanded": torch.tensor([1.0]).expand(4),
    }
    StateStore(tmp_path).save(12, tensors, FACTS_IN)
    state = StateStore(tmp_path).latest()
    assert state is not None
    assert (state.number, state.facts, state.pinned) == (12, FACTS_IN, False)
    assert_same(state.tensors(), {name: t.detach().contiguous() for name, t in tensors.items()})


def test_loaded_tensors_do_not_hang_on_the_file(tmp_path):
    save(StateStore(tmp_path), 1)
    state = StateStore(tmp_path).latest()
    assert state is not None
    loaded = state.tensors()
    file = tmp_path / "00000001" / TENSORS
    with file.open("r+b") as stream:
        stream.write(bytes(file.stat().st_size))
    assert_same(loaded, tensors_of(1))
    with pytest.raises(ModelError, match="changed since"):
        state.tensors()


def test_what_is_on_disk(tmp_path):
    store = StateStore(tmp_path / "run" / "state")
    path = save(store, 50)
    assert path == store.path(50)
    assert {p.name for p in path.iterdir()} == {TENSORS, FACTS, MANIFEST}
    assert (store.folder / LATEST).read_text() == "00000050\n"
    manifest = json.loads((path / MANIFEST).read_bytes())
    assert manifest["format"] == 1
    for name, entry in manifest["files"].items():
        data = (path / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_nothing_there():
    assert StateStore(Path("no such folder")).latest() is None
    assert StateStore(Path("no such folder")).numbers() == []


def test_numbers_only_rise(tmp_path):
    store = StateStore(tmp_path)
    save(store, 5)
    for number in (5, 4, -1):
        with pytest.raises(ValueError, match="cannot follow"):
            save(store, number)
    assert_is(store.latest(), 5)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _grow(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b" ")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flip": _flip,
    "cut": _cut,
    "grow": _grow,
    "empty": lambda path: os.truncate(path, 0),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("name", [TENSORS, FACTS, MANIFEST])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_passed_over_and_said(tmp_path, name, damage):
    store = StateStore(tmp_path)
    save(store, 1)
    save(store, 2)
    if (name, damage) == (MANIFEST, "grow"):
        pytest.skip("white space after JSON is no damage")
    DAMAGES[damage](tmp_path / "00000002" / name)
    assert_is(store.latest(), 1)
    (reason,) = store.passed_over
    assert str(tmp_path / "00000002") in reason
    assert name in reason or (name, damage) == (MANIFEST, "flip")
    assert (tmp_path / LATEST).read_text() == "00000002\n"  # a hint, no more
    # The same number can be saved once more, and the damaged one is gone then.
    save(store, 2)
    assert_is(store.latest(), 2)
    assert store.passed_over == []


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        "{}",
        "[" * 60_000,
        '{"format": 2, "number": 2, "pinned": false, "files": {}}',
        '{"format": 1, "number": 2, "pinned": false, "files": {}}',
        '{"format": 1, "number": 2, "pinned": false, "files": {"../x": {"bytes": 1}}}',
    ],
)
def test_a_manifest_of_anything_else(tmp_path, manifest):
    store = StateStore(tmp_path)
    save(store, 1)
    save(store, 2)
    (tmp_path / "00000002" / MANIFEST).write_text(manifest)
    assert_is(store.latest(), 1)
    assert "manifest.json is damaged" in store.passed_over[0]


def test_a_state_under_another_number_is_not_that_state(tmp_path):
    store = StateStore(tmp_path)
    save(store, 1)
    shutil.copytree(tmp_path / "00000001", tmp_path / "00000009")
    assert_is(store.latest(), 1)
    assert "state 1" in store.passed_over[0]


def test_the_newest_and_the_pinned_stay(tmp_path):
    store = StateStore(tmp_path, keep=2)
    for number in range(1, 8):
        save(store, number, pinned=number == 3)
    (tmp_path / "notes").mkdir()
    (tmp_path / "000000004").mkdir()  # no name that we give
    # Another process goes on: it counts what is on disk, not what it remembers.
    save(StateStore(tmp_path, keep=2), 8)
    assert entries(store) == {"00000003", "00000007", "00000008", LATEST, "notes", "000000004"}
    assert store.numbers() == [3, 7, 8]


def test_damaged_states_do_not_count_as_kept(tmp_path):
    store = StateStore(tmp_path, keep=3)
    for number in (1, 2, 3):
        save(store, number)
    _flip(tmp_path / "00000003" / TENSORS)
    save(store, 4)
    assert store.numbers() == [1, 2, 4]


def test_what_a_dead_process_left_goes_with_the_next_save(tmp_path):
    store = StateStore(tmp_path)
    save(store, 1)
    for name in (
        "00000002.tmp-4",
        f"00000002.tmp-{os.getpid()}",
        f"00000001.old.tmp-{os.getpid()}",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / TENSORS).write_bytes(b"half")
    (tmp_path / "LATEST.tmp-77").write_text("x")
    assert_is(store.latest(), 1)
    assert "00000002.tmp-4" in entries(store)  # a reader changes nothing
    save(store, 2)
    assert entries(store) == {"00000001", "00000002", LATEST}


def test_later_states_are_removed_on_request(tmp_path):
    store = StateStore(tmp_path, keep=9)
    for number in (1, 2, 3, 4):
        save(store, number)
    (tmp_path / f"00000003.old.tmp-{os.getpid()}").mkdir()
    (tmp_path / f"00000003.old.tmp-{os.getpid()}" / "x").touch()
    store.remove_after(2)
    assert entries(store) == {"00000001", "00000002", LATEST}


def test_facts_that_json_lacks_leave_nothing_behind(tmp_path):
    store = StateStore(tmp_path)
    save(store, 1)
    with pytest.raises(ValueError, match="JSON"):
        store.save(2, {}, {"loss": float("nan")})
    assert entries(store) == {"00000001", LATEST}
    with pytest.raises(ValueError, match="keep"):
        StateStore(tmp_path, keep=0)


class _Canary:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self):
        return (Path.touch, (self.flag,))


def test_a_pickle_in_any_file_is_never_opened_as_one(tmp_path):
    """Rule R14: with hashes that are right, so that nothing but the format protects."""
    flag = tmp_path / "flag"
    bait = pickle.dumps(_Canary(flag))
    pickle.loads(bait)
    assert flag.exists()
    flag.unlink()
    for number, target in enumerate((TENSORS, FACTS, MANIFEST), start=1):
        store = StateStore(tmp_path / target)
        path = save(store, number)
        for extra in ("optimizer.pt", "rng.pkl", "model.bin"):
            (path / extra).write_bytes(bait)
            (store.folder / extra).write_bytes(bait)
        (path / target).write_bytes(bait)
        if target != MANIFEST:
            manifest = json.loads((path / MANIFEST).read_bytes())
            manifest["files"][target] = {
                "bytes": len(bait),
                "sha256": hashlib.sha256(bait).hexdigest(),
            }
            (path / MANIFEST).write_text(json.dumps(manifest))
        state = store.latest()
        if target == TENSORS:
            assert state is not None
            with pytest.raises(ModelError, match="cannot be read"):
                state.tensors()
        else:
            assert state is None
    assert not flag.exists()


def refusal(store: StateStore, number: int) -> str | None:
    """The sentence with which a save fails; None where it does not."""
    try:
        save(store, number)
    except ModelError as error:
        return str(error)
    return None


@contextlib.contextmanager
def failing_at(patch: pytest.MonkeyPatch, nth: int) -> Iterator[list[str]]:
    """From the nth call on that takes room on the disk, there is none. Yields the calls."""
    calls: list[str] = []

    def failing(name: str) -> None:
        real = getattr(os, name)

        def call(*args, **kwargs):
            calls.append(name)
            if len(calls) >= nth:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        patch.setattr(os, name, call)

    with patch.context() as patch:
        for name in ("fsync", "mkdir", "rename", "replace", "write"):
            failing(name)
        yield calls


def test_disk_full_at_the_nth_call_for_all_n(tmp_path, monkeypatch):
    """Rule R26: a sync that fails stands for the writes before it (both report a full disk)."""
    store = StateStore(tmp_path, keep=1)
    save(store, 1)
    number, nth = 1, 0
    while True:
        nth += 1
        with failing_at(monkeypatch, nth) as calls:
            said = refusal(store, number + 1)
        if said is None:
            break
        assert "No space left on device" in said
        assert str(store.folder) in said
        assert not any(".tmp-" in name for name in entries(store) if not name.count(".old"))
        newest = store.latest()
        assert newest is not None
        assert newest.number in (number, number + 1)  # after the rename the new one is whole
        assert_is(newest, newest.number)
        number = newest.number
    assert nth > 10
    assert len(calls) < nth
    save(store, number + 2)
    assert entries(store) == {f"{number + 2:08d}", LATEST}


def test_writes_that_the_system_refuses_at_any_length(tmp_path):
    """Real refusals, from the middle of each file: the system's limit on a file's size."""
    store = StateStore(tmp_path)
    path = save(store, 1)
    sizes = {name: (path / name).stat().st_size for name in (TENSORS, FACTS, MANIFEST)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in [*range(0, sizes[TENSORS], 997), *range(1, sizes[MANIFEST], 13)]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(ModelError, match="too large"):
                save(store, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert entries(store) == {"00000001", LATEST}
    assert_is(store.latest(), 1)
    save(store, 2)
    assert_is(store.latest(), 2)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk")
def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        store = StateStore(disk / "state")
        save(store, 1)
        full = disk / "filler"
        room = shutil.disk_usage(disk).free
        for left in range(0, room, 4096):
            full.write_bytes(bytes(room - left))
            said = refusal(store, 2)
            if said is None:
                break
            assert "No space left on device" in said
            assert_is(store.latest(), 1)
            assert entries(store) == {"00000001", LATEST}
        else:
            pytest.fail("there was never room enough")
        assert left > 4096
        assert_is(store.latest(), 2)
    finally:
        subprocess.run(["umount", disk], check=True)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("save"), st.integers(1, 3), st.booleans()),
        st.tuples(st.just("damage"), st.integers(0, 4), st.sampled_from(sorted(DAMAGES))),
        st.tuples(st.just("resume"), st.just(0), st.just(0)),
    ),
    max_size=14,
)


@given(steps=STEPS, keep=st.integers(1, 3))
@example(
    steps=[
        ("save", 1, True),
        ("damage", 0, "cut"),
        ("resume", 0, 0),
        ("save", 1, False),
        ("save", 1, False),
    ],
    keep=1,
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_retention_under_saves_damage_and_resumes(tmp_path, steps, keep):
    """Rule R31, against a model: which states are there, which of them whole, which pinned."""
    folder = tmp_path / "state"
    shutil.rmtree(folder, ignore_errors=True)
    store = StateStore(folder, keep)
    whole: set[int] = set()
    damaged: set[int] = set()
    pinned: set[int] = set()
    readable: set[int] = set()  # with a manifest that says whether they are pinned
    for kind, number, how in steps:
        if kind == "save":
            number += max(whole | damaged, default=0)
            save(store, number, pinned=bool(how))
            whole.add(number)
            readable.add(number)
            # a number that a resume took away may come again, and then it says anew what it is
            pinned = pinned | {number} if how else pinned - {number}
            kept = set(sorted(whole)[-keep:]) | (pinned & readable)
            whole, damaged = whole & kept, damaged & kept
        elif kind == "damage" and whole | damaged:
            number = sorted(whole | damaged)[number % len(whole | damaged)]
            names = (TENSORS, FACTS, MANIFEST)[: 2 if how in ("grow", "flip") else 3]
            file = store.path(number) / names[number % len(names)]
            if file.exists() and file.stat().st_size and number in whole:
                DAMAGES[str(how)](file)
                whole.discard(number)
                damaged.add(number)
                readable -= {number} if file.name == MANIFEST else set()
        elif kind == "resume":
            store = StateStore(folder, keep)
            newest = store.latest()
            store.remove_after(newest.number if newest else -1)
            damaged = {n for n in damaged if newest and n < newest.number}
        newest = store.latest()
        assert (newest.number if newest else None) == max(whole, default=None)
        if newest:
            assert_is(newest, newest.number)
        assert set(store.numbers()) == whole | damaged
