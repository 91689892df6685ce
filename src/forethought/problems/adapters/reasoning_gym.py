"""The families of reasoning-gym (Stojanovski et al. 2025), drawn and scored in a sandbox.

Its verifiers give an answer part of a point for containing the right one, or for nothing at all;
here an answer is correct at exactly 1.0 and wrong below.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Final

from forethought.errors import ModelError, UserError
from forethought.problems.problem import CORRECT, Language, Problem, Verdict, unscorable, wrong
from forethought.problems.sandbox import Outcome, Sandbox
from forethought.problems.sandbox_runner import Limits, bundled_program

PREFIX: Final = "reasoning-gym/"
"""Before a family's own name; keeps it apart from ours."""
LONGEST: Final = 10_000
"""Characters of a final answer that are looked at (boards are long); a longer one is wrong."""

JsonValue = str | int | float | bool | None | list["JsonValue"] | dict[str, "JsonValue"]

BROKEN: Final = {
    "game_of_life_halting": "its verifier accepts every answer that is not empty",
    "puzzle24": "its verifier does not look at which numbers are used, so that one answer is right "
    "for every problem; game24 asks the same",
    "composite": "its settings are other families: name those instead",
}
"""Families that are refused, and why (reasoning-gym 0.1.25)."""

# Their verifiers evaluate the answer as Python, some through sympy.
_EVALUATING: Final = frozenset(
    {
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)
# What Python code needs to get anywhere from an expression, and no honest answer has: names with
# two underscores, attributes, and the functions that make either out of strings. Letters beyond
# ASCII too, since Python reads some of them as ASCII ones.
_CODE: Final = re.compile(
    r"__|[A-Za-z_)\]}'\"]\s*\.|\.\s*[A-Za-z_]|[^\x00-\x7f]|[\\@`:;]|"
    r"\b(?:breakpoint|compile|delattr|dir|eval|exec|exit|getattr|globals|help|import|input|lambda|"
    r"locals|open|print|quit|setattr|super|type|vars|yield)\b"
)
# Its verifier looks at the digits alone: cos(pi) would be a number that costs nothing.
_SHAPES: Final = {"countdown": re.compile(r"(?:[0-9+\-()\s]|\*(?!\*)|/(?!/))+")}
_DRAWS_AT_ONCE: Final = 64
_DRAW_SECONDS: Final = 60.0


def reasoning_gym_sandbox(
    limits: Limits | None = None, *, unsafe_no_sandbox: bool = False
) -> Sandbox:
    """A sandbox with reasoning-gym in it, for any number of families; not started yet."""
    return Sandbox(bundled_program("reasoning_gym"), limits, unsafe_no_sandbox=unsafe_no_sandbox)


class ReasoningGym:
    """One family of reasoning-gym by its name there, with its settings. A `LevelledSource`.

    ``graded`` gives it the levels of its curriculum, with ``config`` on top of each; otherwise it
    has one level, the library's default settings with ``config``. Starts the sandbox. Raises
    UserError for an unknown name (with the nearest), a refused family, and refused settings.
    """

    languages: tuple[Language, ...] = ("en",)

    def __init__(
        self,
        name: str,
        sandbox: Sandbox,
        config: Mapping[str, JsonValue] = {},
        *,
        graded: bool = False,
    ) -> None:
        self._name = name
        self._sandbox = sandbox
        self._family: dict[str, object] = {"name": name, "config": dict(config), "graded": graded}
        self._check_name()
        self.levels = self._count_levels()

    @classmethod
    def at_its_levels(
        cls, name: str, sandbox: Sandbox, config: Mapping[str, JsonValue]
    ) -> ReasoningGym:
        """A family with the levels of its curriculum, or with one level where it has none."""
        for key in ("seed", "size"):
            if key in config:
                raise UserError(f"{PREFIX}{name} has no setting {key!r}: each problem has its own.")
        single = cls(name, sandbox, config)
        return cls(name, sandbox, config, graded=True) if single._has_curriculum() else single

    @property
    def name(self) -> str:
        """What its problems give as their family."""
        return PREFIX + self._name

    def problem(self, level: int, seed: int, language: Language | None = None) -> Problem:
        """The problem of a level and a seed. UserError for a level or a language it lacks."""
        return next(self.problems(level, [seed], language))

    def problems(
        self, level: int, seeds: Iterable[int], language: Language | None = None
    ) -> Iterator[Problem]:
        """Several, drawn some ahead: one way to the sandbox takes as long as 64 draws there.

        ModelError where drawing fails.
        """
        if not 1 <= level <= self.levels:
            raise UserError(f"{self.name} has no level {level}: its levels are 1 to {self.levels}.")
        if language not in {None, *self.languages}:
            raise UserError(f"{self.name} asks in English only: leave the language out.")
        left = iter(seeds)
        while some := list(islice(left, _DRAWS_AT_ONCE)):
            drawn = self._value("draw", {**self._family, "level": level, "seeds": some})
            assert isinstance(drawn, list)
            yield from (self._made(level, *pair) for pair in zip(some, drawn, strict=True))

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """The verdict on a final answer (hostile text, already taken out of the sample)."""
        if len(answer) > LONGEST:
            return wrong("too long for a final answer")
        if not answer.strip():
            return wrong("empty")
        if self._name in _EVALUATING and _CODE.search(answer):
            return wrong("reads like code, not like an answer")
        shape = _SHAPES.get(self._name)
        if shape is not None and not shape.fullmatch(answer):
            return wrong("not in the form that is asked for")
        outcome = self._sandbox.call(
            "score",
            {
                **self._family,
                "level": problem.level,
                "seed": problem.seed,
                "question": problem.text,
                "answer": answer,
            },
        )
        return _verdict(outcome)

    def _check_name(self) -> None:
        if self._name in BROKEN:
            raise UserError(f"{self.name} is not used: {BROKEN[self._name]}.")
        names = self._value("names", None)
        assert isinstance(names, list)
        if self._name not in names:
            near = difflib.get_close_matches(self._name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}."
            raise UserError(f"reasoning-gym has no family {self._name!r}: {hint}")

    def _has_curriculum(self) -> bool:
        outcome = self._sandbox.call("describe", {**self._family, "graded": True}, _DRAW_SECONDS)
        return outcome.kind == "raised" or outcome.value != {"levels": 0}

    def _count_levels(self) -> int:
        outcome = self._sandbox.call("describe", self._family, _DRAW_SECONDS)
        if outcome.kind == "raised":
            raise UserError(
                f"reasoning-gym refuses the settings of {self._name} ({outcome.reason}): look at "
                "its page for their names and bounds."
            )
        match outcome.value:
            case {"levels": int(levels)} if levels:
                return levels
            case {"levels": 0}:
                raise UserError(f"{self.name} has no curriculum: use it without graded.")
            case _:
                raise ModelError(f"{self.name} could not be drawn: {outcome.reason}.")

    def _value(self, op: str, payload: object) -> object:
        outcome = self._sandbox.call(op, payload, _DRAW_SECONDS)
        if outcome.kind != "ok":
            raise ModelError(f"{self.name} could not be drawn: {outcome.reason}.")
        return outcome.value

    def _made(self, level: int, seed: int, drawn: dict[str, str]) -> Problem:
        question = drawn["question"]
        digest = hashlib.blake2b(" ".join(question.split()).encode(), digest_size=16)
        return Problem(
            family=self.name,
            level=level,
            seed=seed,
            language="en",
            text=question,
            answer=drawn["answer"],
            canonical=f"{self.name}:{digest.hexdigest()}",
        )


def _verdict(outcome: Outcome) -> Verdict:
    if outcome.kind != "ok":
        return unscorable(outcome.reason)
    match outcome.value:
        case {"state": "scored", "score": int() | float() as score}:
            return CORRECT if score == 1.0 else wrong("not right")
        case {"state": "unreadable"}:
            return wrong("the verifier cannot read it")
        case {"state": "changed" | "failed", "reason": str(reason)}:
            return unscorable(reason)
        case _:
            return unscorable("the grader answered nonsense")
