"""The folder of a training run: what it was made with, its logs, its states, and one owner.

::

    run.json        the identity: what must be the same for a resumed run to be the same run
    recipe.toml     the recipe, as it was given
    metrics.jsonl   one line a step, no clock in it      timings.jsonl   what steps took
    film.jsonl      the fixed held-out problems, as each moment's model answers them
    state/          see `forethought.training.state_store`
    tokenizer/      what turns text into ids, from before the first step on
    checkpoints/    the model after each stage but the last
    tensorboard/    if asked for                                 profile/        if asked for
    done.json       there once the run is finished; the model's own files are beside it then

A state holds how long each log was and its SHA-256 up to there, so a resumed run cuts the logs
back to the state it goes on from, and a log that somebody changed is noticed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from forethought.checkpoints import locks
from forethought.checkpoints.folder import JSON, printable, read_json
from forethought.checkpoints.save_folder import sync_folder
from forethought.errors import DownloadError, ModelError, UserError
from forethought.training.run_files import (
    DONE,
    FILM,
    LOCK,
    METRICS,
    RECIPE,
    RUN,
    STATE,
    TENSORBOARD,
    TIMINGS,
    TOKENIZER,
)
from forethought.training.state_store import (
    FORMAT,
    TEMPORARY,
    SavedState,
    StateStore,
    write_atomically,
)

INFORMATIVE = frozenset({"commit", "host", "started"})
"""Keys of an identity that are kept and never compared."""

_LOGS = (METRICS, TIMINGS, FILM)
_UNBEGUN = frozenset({RUN, RECIPE, STATE, TENSORBOARD, f".{TOKENIZER}.unfinished", LOCK, *_LOGS})
"""All that there may be of a run before its tokenizer, which is where it begins."""
MARKS = "logs"


class RunFolder:
    """A run on disk, owned by this process until `close` (or the end of a ``with``).

    Made by `create` or `resume`; after `resume`, `restore` comes before anything is appended or
    saved.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self.states = StateStore(path / STATE, keep)
        self.metrics_path = path / METRICS
        self.timings_path = path / TIMINGS
        self.film_path = path / FILM
        self._lock = contextlib.ExitStack()
        self._logs = {name: _Log(path / name) for name in _LOGS}

    @classmethod
    def create(
        cls, path: Path, identity: Mapping[str, JSON], recipe_text: str, *, keep: int = 2
    ) -> RunFolder:
        """A new run at ``path``, which must not exist, be empty, or hold a run that never began.

        ``identity`` is flat; ``keep`` is the number of states that stay. Raises UserError where
        ``path`` is a file, holds anything else or another process trains there, ModelError where
        the disk is full.
        """
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file: give the name of a new folder for the run.")
        run = {"format": FORMAT, "identity": _checked(identity)}
        folder = cls(path, keep)
        with _writing(path), contextlib.ExitStack() as undo:
            undo.callback(folder.close)
            path.mkdir(parents=True, exist_ok=True)
            folder._take_lock()
            _check_free(path)
            # First of all: a recipe beside it is then ours, and none of a person's is written over.
            write_atomically(path / RUN, json.dumps(run, indent=2, allow_nan=False) + "\n")
            write_atomically(path / RECIPE, recipe_text)
            (path / STATE).mkdir(exist_ok=True)
            for log in folder._logs.values():
                log.start(_Mark(0, ""), hashlib.sha256())
            sync_folder(path)
            undo.pop_all()
        return folder

    @classmethod
    def resume(cls, path: Path, identity: Mapping[str, JSON], *, keep: int = 2) -> RunFolder:
        """The run at ``path``, if it was made with ``identity`` (but for what is INFORMATIVE).

        Raises UserError where there is no run, it is finished, another process trains there, or
        something differs: each such key is named, with what it was and what it is.
        """
        _check_run(path)
        now = _checked(identity)
        folder = cls(path, keep)
        with _writing(path), contextlib.ExitStack() as undo:
            undo.callback(folder.close)
            folder._take_lock()
            run = read_json(path / RUN)
            if run.get("format") != FORMAT:
                raise UserError(
                    f"{path} has run format {run.get('format')}, and this forethought writes "
                    f"{FORMAT}: resume it with the version that made it, or start a new run."
                )
            if folder.finished:
                raise UserError(f"{path} is finished: there is nothing to resume.")
            then = run.get("identity")
            if not isinstance(then, dict):
                raise ModelError(f"{path / RUN} has no identity: it is damaged, start a new run.")
            _compare(path, then, now)
            undo.pop_all()
        return folder

    @property
    def finished(self) -> bool:
        """Whether `finish` was called, in this process or before."""
        return (self.path / DONE).exists()

    def append_metrics(self, line: Mapping[str, JSON]) -> None:
        """Add one line, keys in their order. Raises ModelError for a number that is not finite,
        and where the disk is full; the file is then as before."""
        self._logs[METRICS].append(line)

    def append_timing(self, line: Mapping[str, JSON]) -> None:
        """The same, for what differs between two equal runs: seconds, tokens per second."""
        self._logs[TIMINGS].append(line)

    def append_film(self, line: Mapping[str, JSON]) -> None:
        """The same, for one answer of the film."""
        self._logs[FILM].append(line)

    def save(
        self,
        number: int,
        tensors: Mapping[str, torch.Tensor],
        facts: Mapping[str, JSON],
        *,
        pinned: bool = False,
    ) -> Path:
        """Sync the logs, then store a state that remembers where they end (`StateStore.save`).

        ``facts`` may not have the key "logs" (ValueError). Raises ModelError.
        """
        if MARKS in facts:
            raise ValueError(f"{MARKS!r} among the facts of a state is the run folder's own")
        marks: dict[str, JSON] = {name: log.mark() for name, log in self._logs.items()}
        return self.states.save(number, tensors, {**facts, MARKS: marks}, pinned=pinned)

    def restore(self) -> SavedState | None:
        """The newest verified state, with the logs cut back to it and later states removed.

        None where the run was ended before its first state: the logs are then empty. What was
        passed over on the way is in ``states.passed_over``. Raises ModelError where there are
        states and all are damaged, UserError where a log is not what it was; nothing is changed
        then.
        """
        state = self.states.latest()
        if state is None and self.states.passed_over:
            raise ModelError(
                f"No state of {self.path} is whole ({'; '.join(self.states.passed_over)}): put "
                f"one back from a copy, or start a new run."
            )
        marks = {name: _Mark(0, "") for name in _LOGS} if state is None else _marks(state)
        hashes = {name: log.check(marks[name]) for name, log in self._logs.items()}
        with _writing(self.path):
            for name, log in self._logs.items():
                log.start(marks[name], hashes[name])
            self.states.remove_after(-1 if state is None else state.number)
            sync_folder(self.path)
        if state is None:
            return None
        facts = {key: value for key, value in state.facts.items() if key != MARKS}
        return replace(state, facts=facts)

    def finish(self) -> None:
        """Mark the run as finished: it cannot be resumed after that. Raises ModelError."""
        marks: dict[str, JSON] = {name: log.mark() for name, log in self._logs.items()}
        with _writing(self.path):
            write_atomically(self.path / DONE, json.dumps({MARKS: marks}, indent=2) + "\n")

    def close(self) -> None:
        """Let another process have the run. Calling it twice does nothing."""
        for log in self._logs.values():
            log.close()
        self._lock.close()

    def _take_lock(self) -> None:
        try:
            self._lock.enter_context(locks.held(self.path / LOCK, wait_s=0))
        except DownloadError:
            raise UserError(
                f"Another process is training in {self.path}: wait for it, or end it first."
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def recipe_of(path: Path) -> str:
    """The recipe of the run at ``path``, as it was given. Raises UserError where there is none."""
    _check_run(path)
    try:
        return (path / RECIPE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise UserError(
            f"{path / RECIPE} cannot be read, so the run cannot go on: put it back, or start a "
            "new run."
        ) from None


@dataclass(frozen=True, slots=True)
class _Mark:
    """Where a log ended when a state was saved."""

    length: int
    """In bytes."""
    sha256: str


class _Log:
    """A file of JSON lines that is only added to; its hash is kept while it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._length = 0
        self._hash = hashlib.sha256()

    def check(self, mark: _Mark) -> hashlib._Hash:
        """The hash of the first bytes, if they are still those of `mark`. Raises UserError."""
        running = hashlib.sha256()
        left = mark.length
        if left:
            with contextlib.suppress(OSError), self.path.open("rb") as stream:
                while left and (chunk := stream.read(min(left, 1 << 20))):
                    running.update(chunk)
                    left -= len(chunk)
            if left or running.hexdigest() != mark.sha256:
                raise UserError(
                    f"{self.path} is {'shorter' if left else 'different'} from what it was when "
                    "the last state was saved: put the file back as it was, or start a new run."
                )
        return running

    def start(self, mark: _Mark, running: hashlib._Hash) -> None:
        """Cut the file (or begin it) where `mark` says, and go on from there. Raises OSError."""
        self.close()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(self.path, flags, 0o666)
        os.ftruncate(self._descriptor, mark.length)
        os.fsync(self._descriptor)
        self._length, self._hash = mark.length, running

    def append(self, line: Mapping[str, JSON]) -> None:
        descriptor = self._opened()
        try:
            text = json.dumps(line, ensure_ascii=False, allow_nan=False)
        except ValueError:
            raise ModelError(
                f"{printable(_not_finite(line), 120)} in a line for {self.path} is not finite: the "
                "training diverged; start again with a smaller learning rate."
            ) from None
        # A half surrogate, which UTF-8 cannot hold, becomes the \\u escape that JSON has for it.
        data = (text + "\n").encode("utf-8", "backslashreplace")
        with _writing(self.path):
            written = 0
            try:
                written = os.write(descriptor, data)
                if written < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                if written < len(data):
                    os.ftruncate(descriptor, self._length)
        self._length += len(data)
        self._hash.update(data)

    def mark(self) -> dict[str, JSON]:
        """Sync the file; where it ends. Raises ModelError."""
        with _writing(self.path):
            os.fsync(self._opened())
        return {"bytes": self._length, "sha256": self._hash.hexdigest()}

    def _opened(self) -> int:
        if self._descriptor is None:
            raise RuntimeError(f"{self.path} is not open: restore() comes first, close() last")
        return self._descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _not_finite(line: Mapping[str, JSON]) -> str:
    """The key whose value JSON cannot hold."""
    for key, value in line.items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            return key
    return "a key"


def _marks(state: SavedState) -> dict[str, _Mark]:
    """Where the logs ended at that state. Raises ModelError."""
    stored = state.facts.get(MARKS)
    found: dict[str, _Mark] = {}
    for name in _LOGS:
        match stored.get(name) if isinstance(stored, dict) else None:
            case {"bytes": int(length), "sha256": str(digest)} if length >= 0:
                found[name] = _Mark(length, digest)
            case _:
                raise ModelError(
                    f"{state.path} does not say where {name} ended: it was not saved by a run; "
                    "remove it to resume from an earlier state."
                )
    return found


def _check_run(path: Path) -> None:
    if not (path / RUN).is_file():
        what = "holds no run" if path.is_dir() else "is no folder"
        raise UserError(
            f"{path} {what}, so there is nothing to resume: give the folder of a run, or start one."
        )


def _check_free(path: Path) -> None:
    """Raise UserError unless all in ``path`` is what a run leaves that never began."""
    names = {entry.name for entry in path.iterdir()}
    if RUN in names:
        if DONE in names:
            raise UserError(f"{path} holds a finished run: give the name of a new folder.")
        logged = any((path / name).is_file() and (path / name).stat().st_size for name in _LOGS)
        if logged or TOKENIZER in names or StateStore(path / STATE).numbers():
            raise UserError(
                f"{path} holds another run: resume it, or give the name of a new folder."
            )
    named = {name for name in names if not name.startswith((RUN + TEMPORARY, RECIPE + TEMPORARY))}
    foreign = sorted(named - (_UNBEGUN if RUN in names else {LOCK}))
    if foreign:
        raise UserError(
            f"{path} holds something else ({printable(foreign[0], 80)}): give the name of a new "
            "folder for the run."
        )


def _checked(identity: Mapping[str, JSON]) -> dict[str, JSON]:
    for key, value in identity.items():
        if isinstance(value, (list, dict)):
            raise ValueError(f"{key} of a run's identity is a {type(value).__name__}, not a scalar")
    return dict(identity)


def _compare(path: Path, then: Mapping[str, JSON], now: Mapping[str, JSON]) -> None:
    """Raise UserError that names every key whose value differs, and how."""
    absent = "nothing"
    different = [
        f"{key} was {_shown(then[key]) if key in then else absent} and is "
        f"{_shown(now[key]) if key in now else absent}"
        for key in [*then, *(key for key in now if key not in then)]
        if key not in INFORMATIVE
        and (key not in then or key not in now or _shown(then[key]) != _shown(now[key]))
    ]
    if different:
        raise UserError(
            f"{path} cannot go on as the same run ({'; '.join(different)}): resume it as it was "
            "made, or start a new run."
        )


def _shown(value: JSON) -> str:
    """As JSON, which tells 1 from 1.0 and from true."""
    return printable(json.dumps(value, ensure_ascii=False), 120)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """OSError becomes a sentence about ``path``."""
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"{path} cannot be written ({error.strerror or error}): check the room on the disk and "
            "the folder's permissions, and resume."
        ) from None
