"""What holds for every problem family, for its own test file to call."""

from __future__ import annotations

from random import Random

from forethought.problems.family import Family
from forethought.problems.problem import LANGUAGES, Problem


def first_problems(family: Family, level: int, count: int) -> list[Problem]:
    """The first problems of a level, each in the language that it draws."""
    return [family.problem(level, seed) for seed in range(count)]


def problems_of(family: Family, per_level: int) -> list[Problem]:
    """The first problems of every level, in both languages in turn."""
    return [
        family.problem(level, seed, LANGUAGES[seed % 2])
        for level in range(1, family.levels + 1)
        for seed in range(per_level)
    ]


def check_contract(family: Family, per_level: int = 150) -> None:
    """The contract of `forethought.problems.family`, over the first problems of every level."""
    for problem in problems_of(family, per_level):
        level, seed = problem.level, problem.seed
        assert family.problem(level, seed, problem.language) == problem
        other = family.problem(level, seed, "zh" if problem.language == "en" else "en")
        assert (other.task, other.canonical) == (problem.task, problem.canonical)
        assert other.text != problem.text
        assert family.problem(level, seed).text in (problem.text, other.text)
        for one in (problem, other):
            assert family.verify(one, one.answer).correct, one
            assert "<" not in one.answer
            assert one.text == one.text.strip()
            assert "  " not in one.text
            assert any("\u4e00" <= letter <= "\u9fff" for letter in one.text) == (
                one.language == "zh"
            )
            wrong = family.wrong_answer(one, Random(seed))
            assert not family.verify(one, wrong).correct, (one, wrong)
            guess = family.guess(one, Random(seed))
            assert guess == family.guess(one, Random(seed))
            # Another problem's answer, which may be right, or else something wrong.
            drawn = family.draw(Random(seed), level)
            expected = family.answer(drawn, one.language) if _is_whole(one.answer) else wrong
            assert guess == expected, (one, guess)
        for style in family.styles:
            _check_worked(family, problem, style)
    for level in range(1, family.levels + 1):
        texts = {family.problem(level, seed).text for seed in range(100)}
        assert len(texts) > 60, level


def _is_whole(answer: str) -> bool:
    try:
        int(answer)
    except ValueError:
        return False
    return True


def _check_worked(family: Family, problem: Problem, style: str) -> None:
    worked = family.worked(problem, Random(problem.seed), style=style)
    assert worked == family.worked(problem, Random(problem.seed), style=style)
    assert worked.answer is not None
    assert family.verify(problem, worked.answer).correct, (problem, worked)
    assert all(step == step.strip() and step for step in worked.steps)
    stops = ".?!:" if problem.language == "en" else "。？！："
    assert all(step[-1] in stops for step in worked.steps), worked


def share_right(family: Family, style: str, slip: float, per_level: int = 100) -> float:
    """How often a thought that may slip arrives at a right answer."""
    right = [
        worked.answer is not None and family.verify(problem, worked.answer).correct
        for problem in problems_of(family, per_level)
        for worked in [family.worked(problem, Random(problem.seed), style=style, slip=slip)]
    ]
    return sum(right) / len(right)
