"""The audit of the verifiers: ours pass it, and ones with the usual faults do not."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest

from forethought.evaluation.audit import AuditRow, audit
from forethought.problems.families.game24 import Game24
from forethought.problems.families.letter_counting import LetterCounting
from forethought.problems.families.sorting import Sorting
from forethought.problems.problem import CORRECT, Problem, Verdict, unscorable, wrong
from forethought.problems.registry import BUNDLED, family


@pytest.mark.parametrize("name", BUNDLED)
def test_no_verifier_accepts_a_hostile_sample_or_refuses_a_right_one(name: str):
    (row,) = audit([family(name)])
    assert (row.family, row.hostile, row.right) == (name, 200, 200)
    assert row.passed, row.examples


def verdict(correct: bool) -> Verdict:
    return CORRECT if correct else wrong("no")


@dataclass(frozen=True)
class Containing(Sorting):
    """Finds the right answer anywhere in a text."""

    def verify(self, problem: Problem, answer: str) -> Verdict:
        return verdict(problem.answer in answer)


@dataclass(frozen=True)
class PythonNumbers(LetterCounting):
    """Takes Python's word for what a whole number is: digits of every script."""

    def verify(self, problem: Problem, answer: str) -> Verdict:
        try:
            return verdict(
                int(answer.strip("*$`\"'“”‘’「」.。 \n\t\r\u3000")) == int(problem.answer)
            )
        except ValueError:
            return wrong("no number")


@dataclass(frozen=True)
class AnyNumbers(Game24):
    """Accepts what comes to 24, whatever the numbers."""

    def verify(self, problem: Problem, answer: str) -> Verdict:
        right = super().verify(problem, answer)
        return CORRECT if right.reason.startswith("does not use") else right


@pytest.mark.parametrize("lax", [Containing(), PythonNumbers(), AnyNumbers()], ids=type)
def test_a_verifier_that_is_lax_is_caught(lax):
    (row,) = audit([lax])
    assert row.false_accepts
    assert not row.passed
    assert row.examples[0].startswith("correct (")


@dataclass(frozen=True)
class NoFullStop(LetterCounting):
    def verify(self, problem: Problem, answer: str) -> Verdict:
        if answer.endswith((".", "。")):
            return wrong("ends with a full stop")
        return super().verify(problem, answer)


@dataclass(frozen=True)
class NoChineseQuotes(Sorting):
    def verify(self, problem: Problem, answer: str) -> Verdict:
        return super().verify(problem, answer) if answer.isascii() else wrong("not ASCII")


@pytest.mark.parametrize("strict", [NoFullStop(), NoChineseQuotes()], ids=type)
def test_a_verifier_that_is_too_strict_is_caught(strict):
    (row,) = audit([strict])
    assert not row.false_accepts
    assert row.false_rejects > 1
    assert not row.passed
    assert row.examples[0].startswith("wrong (")


@dataclass(frozen=True)
class Raising(LetterCounting):
    def verify(self, problem: Problem, answer: str) -> Verdict:
        return verdict(int(answer) == int(problem.answer))


@dataclass(frozen=True)
class Shrugging(LetterCounting):
    def verify(self, problem: Problem, answer: str) -> Verdict:
        right = super().verify(problem, answer)
        return right if right.correct else unscorable("who knows")


@pytest.mark.parametrize(
    ("broken", "said"), [(Raising(), "raises ValueError"), (Shrugging(), "unscorable")], ids=str
)
def test_a_verifier_that_raises_or_knows_nothing_is_caught(broken, said):
    (row,) = audit([broken])
    assert row.false_accepts > 50
    assert row.examples[0].startswith(said)


@dataclass(frozen=True)
class Recording(Sorting):
    """Accepts everything and remembers for what it was asked."""

    asked: ClassVar[list[tuple[int, str, str]]] = []

    def verify(self, problem: Problem, answer: str) -> Verdict:
        self.asked.append((problem.level, problem.language, answer))
        return CORRECT


def test_all_levels_and_languages_are_audited_with_many_texts():
    Recording.asked.clear()
    (row,) = audit([Recording()])
    assert row.false_rejects == 0
    # The others hold no final answer, which is for the judge to see.
    assert 120 < row.false_accepts < 200
    cells = [(level, language) for level, language, _ in Recording.asked]
    counts = {cell: cells.count(cell) for cell in cells}
    assert len(counts) == 8
    assert min(counts.values()) > len(cells) / 16
    assert len({answer for _, _, answer in Recording.asked}) > 300


def test_an_audit_is_always_the_same():
    assert audit([Containing()]) == audit([Containing()])


@pytest.mark.parametrize(
    ("accepts", "rejects", "passed"), [(0, 0, True), (0, 1, True), (0, 2, False), (1, 0, False)]
)
def test_the_criterion(accepts: int, rejects: int, passed: bool):
    assert AuditRow("sorting", 200, accepts, 200, rejects, ()).passed is passed


@pytest.mark.slow
def test_the_command_prints_a_row_for_each_family():
    command = [sys.executable, "-m", "forethought", "problems", "audit"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["passed"] is True
    assert [row["family"] for row in report["families"]] == list(BUNDLED)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[1].split() == ["countdown", "200", "0", "200", "0"]
