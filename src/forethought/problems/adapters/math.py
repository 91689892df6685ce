r"""MATH (Hendrycks et al. 2021), MATH-500 and files of the same shape, AIME's among them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from forethought.problems.adapters.jsonl import Row, read_rows
from forethought.problems.adapters.math_verify import MathVerifier
from forethought.problems.problem import Problem, Verdict

LEVELS: Final = 5
_LEVEL: Final = re.compile(r"(?:Level )?([1-5])")
_BOX: Final = re.compile(r"\\f?box(?:ed)?(?![A-Za-z])\s*")


class MathProblems:
    """The problems of a file: ``problem``, ``answer`` or a ``solution`` with a box, and perhaps a
    ``level`` (1 to 5, or "Level 1"; 1 where there is none). A `ProblemSource`. The same problem in
    two files has the same ``canonical``, so that one file can be kept out of another.

    Raises UserError for a file of another shape.
    """

    def __init__(self, path: Path, verifier: MathVerifier, *, name: str = "math") -> None:
        self._name = name
        self._verifier = verifier
        self._problems = [_problem(row, index, name) for index, row in enumerate(read_rows(path))]

    @property
    def name(self) -> str:
        """What its problems give as their family."""
        return self._name

    def __len__(self) -> int:
        return len(self._problems)

    def problem(self, index: int) -> Problem:
        """The problem of a line, counted from 0."""
        return self._problems[index]

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """The verdict on a final answer (the content of the last box)."""
        return self._verifier.verify(problem.answer, answer)


def _problem(row: Row, index: int, name: str) -> Problem:
    text = row.text("problem", "question")
    has_answer = "answer" in row.fields
    answer = row.text("answer") if has_answer else last_box(row.text("solution")) or ""
    if not answer.strip():
        raise row.wrong("has neither an answer nor a box in its solution")
    level = _LEVEL.fullmatch(str(row.fields.get("level", "")))
    return Problem(
        family=name,
        level=int(level[1]) if level else 1,
        seed=index,
        language="en",
        text=text,
        answer=answer.strip(),
        canonical=f"math:{' '.join(text.split())}",
    )


def last_box(solution: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` (or ``\fbox{...}``, ``\boxed 5``) of a solution."""
    found = None
    for match in _BOX.finditer(solution):
        found = match
    if found is None:
        return None
    start = found.end()
    if not solution.startswith("{", start):
        bare = re.match(r"[^\s$.]+", solution[start:])
        return bare[0] if bare else None
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", solution[start:]):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return solution[start + 1 : start + brace.start()].strip()
    return None
