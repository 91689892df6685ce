"""GSM8K (Cobbe et al. 2021): word problems of grade school whose answers are numbers."""

from __future__ import annotations

from pathlib import Path

from forethought.problems.adapters.jsonl import Row, read_rows
from forethought.problems.adapters.math_verify import LONGEST, MathVerifier, number
from forethought.problems.problem import CORRECT, Problem, Verdict, wrong


class Gsm8k:
    """The problems of a file like openai/grade-school-math's ``test.jsonl``: ``question``, and an
    ``answer`` that ends in ``#### GOLD``. A `ProblemSource`.

    Answers that are one plain number are decided here. Others ("18 dollars", "x = 18") go to
    ``verifier``; without one, and so without a sandbox, they are wrong. Raises UserError for a
    file of another shape.
    """

    def __init__(
        self, path: Path, verifier: MathVerifier | None = None, *, name: str = "gsm8k"
    ) -> None:
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
        """Whether a final answer is the number: "18", "$18.00", "1,234."."""
        if self._verifier is not None:
            return self._verifier.verify(problem.answer, answer)
        value = number(answer) if len(answer) <= LONGEST else None
        if value is None:
            return wrong("not one number")
        return CORRECT if value == number(problem.answer) else wrong("not the right number")


def _problem(row: Row, index: int, name: str) -> Problem:
    question, solution = row.text("question"), row.text("answer")
    gold = solution.rpartition("####")[2].strip() if "####" in solution else ""
    if number(gold) is None:
        raise row.wrong("gives no number after ####")
    return Problem(
        family=name,
        level=1,
        seed=index,
        language="en",
        text=question,
        answer=gold.replace(",", ""),
        canonical=f"gsm8k:{' '.join(question.split())}",
    )
