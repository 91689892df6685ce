"""The family and the reward that docs/your-own-task.md shows."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from family_contract import check_contract, problems_of, share_right
from forethought.errors import UserError
from forethought.evaluation.audit import audit
from forethought.problems.family import Family
from forethought.problems.registry import family

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture(scope="module")
def digit_sum() -> Family:
    return family("my_task.py:DigitSum", folder=EXAMPLES)


def test_it_keeps_the_contract_of_a_family(digit_sum: Family) -> None:
    check_contract(digit_sum)


def test_every_level_draws_what_the_docstring_says(digit_sum: Family) -> None:
    found: dict[int, set[int]] = {}
    for problem in problems_of(digit_sum, 400):
        assert int(problem.answer) == sum(map(int, str(problem.task)))
        found.setdefault(problem.level, set()).add(len(str(problem.task)))
    assert found == {1: {2}, 2: {3, 4}, 3: {5, 6, 7, 8}}


def test_slips_mislead_and_checks_repair(digit_sum: Family) -> None:
    assert share_right(digit_sum, "steps", 0.5) < 0.6
    assert share_right(digit_sum, "check", 0.5) == 1.0


def test_its_setting_is_checked() -> None:
    settings = {"digit_sum": {"longest": 4}}
    with pytest.raises(UserError, match="longest is 4; it must be at least 5"):
        family("my_task.py:DigitSum", folder=EXAMPLES, settings=settings)


def test_it_passes_the_audit_of_the_bundled_families(digit_sum: Family) -> None:
    (row,) = audit([digit_sum])
    assert row.passed, row.examples


@pytest.mark.parametrize(
    ("language", "thought", "reward"),
    [
        ("en", "6 plus 9", 1.0),
        ("zh", "六加九", 1.0),
        ("zh", "six", 0.0),
        ("en", "ab加加", 0.5),
        ("en", "6 + 9 = 15", 0.0),
    ],
)
def test_the_reward_is_the_share_of_the_language(
    language: str, thought: str, reward: float
) -> None:
    one_language: Any = runpy.run_path(str(EXAMPLES / "my_reward.py"))["one_language"]
    problem, reply = SimpleNamespace(language=language), SimpleNamespace(thought=thought)
    assert one_language(problem, reply) == reward
