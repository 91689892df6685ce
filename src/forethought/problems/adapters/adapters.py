"""Problems of other makers by name, and the sandboxes that they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

from forethought.errors import UserError
from forethought.paths import expand
from forethought.problems.adapters.fixed_list import FixedList
from forethought.problems.adapters.gsm8k import Gsm8k
from forethought.problems.adapters.math import MathProblems
from forethought.problems.adapters.math_verify import MathVerifier, math_verify_sandbox
from forethought.problems.adapters.reasoning_gym import (
    PREFIX,
    ReasoningGym,
    reasoning_gym_sandbox,
)
from forethought.problems.sandbox_runner import Limits
from forethought.problems.source import LevelledSource, ProblemSource

_LISTS: Final = ("gsm8k", "math")
_HUB: Final = "hf://"


def is_adapted(spec: str) -> bool:
    """Whether a name is one of other makers' problems (see `registry.source`)."""
    kind, colon, _ = spec.partition(":")
    return kind in _LISTS if colon else spec.startswith(PREFIX)


class Adapters:
    """Other makers' problems, with one sandbox for each library that grades them.

    A sandbox starts with the first name that needs it, and ends with `close` (or the end of a
    ``with``). ``fetch`` gives the local file of an ``hf://`` address. ``unsafe_no_sandbox`` runs
    the graders without isolation, which only a user may ask for, in so many words.
    """

    def __init__(
        self,
        fetch: Callable[[str], Path] | None = None,
        *,
        limits: Limits | None = None,
        unsafe_no_sandbox: bool = False,
    ) -> None:
        self._fetch = fetch
        self._gym = reasoning_gym_sandbox(limits, unsafe_no_sandbox=unsafe_no_sandbox)
        self._maths = math_verify_sandbox(limits, unsafe_no_sandbox=unsafe_no_sandbox)

    @property
    def isolated(self) -> bool:
        """Whether graders run in a sandbox; where not, every report has to say so."""
        return self._gym.isolated

    def source(
        self, spec: str, folder: Path, settings: Mapping[str, bool | int | float | str]
    ) -> LevelledSource:
        """The problems of a name that `is_adapted`; paths are relative to ``folder``.

        Raises UserError for an unknown name (with the nearest), refused settings, a file that is
        not there or of another shape, and where the sandbox or its library is not to be had;
        ModelError where the sandbox fails.
        """
        if spec.startswith(PREFIX):
            name = spec.removeprefix(PREFIX)
            return ReasoningGym.at_its_levels(name, self._gym, settings)
        kind, _, address = spec.partition(":")
        path = self._file(spec, address, folder)
        name = f"{kind}/{path.stem}"
        for key in settings:
            raise UserError(f"{name} has no setting {key!r}: a list of problems has none.")
        self._maths.start()
        verifier = MathVerifier(self._maths)
        found: ProblemSource = (
            Gsm8k(path, verifier, name=name)
            if kind == "gsm8k"
            else MathProblems(path, verifier, name=name)
        )
        return FixedList(found)

    def check_health(self) -> None:
        """Raise ModelError where more than 1 % of a sandbox's jobs failed in the sandbox itself."""
        self._gym.check_health()
        self._maths.check_health()

    def close(self) -> None:
        """End the sandboxes; a later use starts them again."""
        self._gym.close()
        self._maths.close()

    def __enter__(self) -> Adapters:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _file(self, spec: str, address: str, folder: Path) -> Path:
        if not address:
            raise UserError(f"{spec!r} names no file: write {spec}path/to/file.jsonl.")
        if not address.startswith(_HUB):
            return folder / expand(address)
        if self._fetch is None:
            raise UserError(f"{spec} is on the hub: give the path of a local file here.")
        return self._fetch(address)
