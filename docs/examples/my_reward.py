"""A reward of one's own: thinking in the language of the question (DeepSeek-R1, section 2.3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forethought.problems.problem import Problem
    from forethought.training.judging import Reply


def one_language(problem: Problem, reply: Reply) -> float:
    """The share of the thought's letters that are of the problem's language; 0 without letters."""
    letters = [letter for letter in reply.thought if letter.isalpha()]
    chinese = sum("一" <= letter <= "鿿" for letter in letters)
    own = chinese if problem.language == "zh" else len(letters) - chinese
    return own / len(letters) if letters else 0.0
